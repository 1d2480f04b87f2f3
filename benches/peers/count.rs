//! Counts as factors, and back.

/// A count as a factor: none here comes near the 2⁵³ where this would round.
#[expect(clippy::cast_precision_loss, reason = "none comes near 2⁵³")]
pub(crate) fn float(count: u64) -> f64 {
    count as f64
}

/// [`float`] for what std counts.
pub(crate) fn float_len(count: usize) -> f64 {
    float(u64::try_from(count).expect("a length fits"))
}

/// The whole part of a count.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "it is a count")]
pub(crate) fn whole(count: f64) -> usize {
    count as usize
}
