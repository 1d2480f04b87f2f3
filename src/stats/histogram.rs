//! Durations, counted by how long they were.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Buckets of one octave: each ends 19 % after the one before, which is as exact as a quantile is.
const PER_OCTAVE: i32 = 4;
/// The first bucket ends at 2^-14 s, 61 µs.
const FIRST_OCTAVE: i32 = -14;
/// The last one ends at 2^20 s, twelve days; what is longer counts as infinite.
const LAST_OCTAVE: i32 = 20;
const BUCKETS: usize = ((LAST_OCTAVE - FIRST_OCTAVE) * PER_OCTAVE) as usize + 1;

/// Durations, counted by how long they were. Has 1.1 KiB; counting takes no lock.
pub struct Histogram {
    /// The last one is for those beyond.
    buckets: [AtomicU64; BUCKETS + 1],
    microseconds: AtomicU64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { buckets: [const { AtomicU64::new(0) }; BUCKETS + 1], microseconds: AtomicU64::new(0) }
    }
}

/// In seconds, where the bucket with this number ends.
#[expect(clippy::cast_precision_loss, reason = "there are some hundred buckets")]
fn end(bucket: usize) -> f64 {
    (f64::from(FIRST_OCTAVE) + bucket as f64 / f64::from(PER_OCTAVE)).exp2()
}

impl Histogram {
    /// Counts one that took `duration`.
    pub fn count(&self, duration: Duration) {
        let place = (duration.as_secs_f64().log2() - f64::from(FIRST_OCTAVE)) * f64::from(PER_OCTAVE);
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "the cast saturates")]
        let bucket = (place.ceil() as usize).min(BUCKETS);
        self.buckets[bucket].fetch_add(1, Ordering::Relaxed);
        let microseconds = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        self.microseconds.fetch_add(microseconds, Ordering::Relaxed);
    }

    /// How many there were.
    pub fn total(&self) -> u64 {
        self.buckets.iter().map(|bucket| bucket.load(Ordering::Relaxed)).sum()
    }

    /// How long all of them took together, in seconds.
    #[expect(clippy::cast_precision_loss, reason = "285 years are exact to the microsecond")]
    pub fn seconds(&self) -> f64 {
        self.microseconds.load(Ordering::Relaxed) as f64 / 1e6
    }

    /// The time that `share` of them did not exceed, in seconds: 0.5 is the median. None without any.
    #[expect(clippy::cast_precision_loss, reason = "as exact as a bucket")]
    pub fn quantile(&self, share: f64) -> Option<f64> {
        let total = self.total();
        let wanted = (total > 0).then_some(share * total as f64)?;
        let mut below = 0.0;
        for (bucket, count) in self.buckets.iter().enumerate() {
            let count = count.load(Ordering::Relaxed) as f64;
            if count > 0.0 && below + count >= wanted {
                let start = if bucket == 0 { 0.0 } else { end(bucket - 1) };
                // Beyond the last, nothing is known but that.
                let end = end(bucket.min(BUCKETS - 1)).max(start);
                return Some(start + (end - start) * ((wanted - below) / count).clamp(0.0, 1.0));
            }
            below += count;
        }
        Some(end(BUCKETS - 1))
    }

    /// For Prometheus: how many took as long as each power of two of a second from 2^`first` to 2^`last` at most, with that;
    /// and how many there were in all, with infinity.
    pub fn cumulative(&self, first: i32, last: i32) -> Vec<(f64, u64)> {
        let (mut cumulative, mut next, mut count) = (Vec::new(), first.max(FIRST_OCTAVE), 0);
        for (bucket, in_bucket) in self.buckets.iter().enumerate() {
            count += in_bucket.load(Ordering::Relaxed);
            #[expect(clippy::float_cmp, reason = "powers of two are exact")]
            if next <= last.min(LAST_OCTAVE) && end(bucket) == f64::from(next).exp2() {
                cumulative.push((end(bucket), count));
                next += 1;
            }
        }
        cumulative.push((f64::INFINITY, count));
        cumulative
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(durations: impl IntoIterator<Item = f64>) -> Histogram {
        let histogram = Histogram::default();
        durations.into_iter().for_each(|seconds| histogram.count(Duration::from_secs_f64(seconds)));
        histogram
    }

    #[test]
    fn quantiles_are_right_within_a_bucket() {
        let histogram = of((1..=1000).map(|milliseconds| f64::from(milliseconds) / 1e3));
        for (share, seconds) in [(0.5, 0.5), (0.9, 0.9), (0.99, 0.99)] {
            let quantile = histogram.quantile(share).unwrap();
            assert!((quantile / seconds - 1.0).abs() < 0.1, "{share}: {quantile}");
        }
    }

    #[test]
    fn nothing_has_no_quantile() {
        assert_eq!(Histogram::default().quantile(0.5), None);
    }

    #[test]
    fn no_duration_is_too_short_or_too_long() {
        let histogram = of([0.0, 1e-9, 1e9]);
        assert_eq!(histogram.total(), 3);
        let cumulative = histogram.cumulative(-13, 20);
        assert_eq!((cumulative[0], cumulative.last()), ((end(4), 2), Some(&(f64::INFINITY, 3))));
        assert!(histogram.quantile(0.99).unwrap() >= 1e6);
    }

    #[test]
    fn what_is_cumulative_counts_each_duration_from_its_bucket_on() {
        let histogram = of([0.5, 0.6, 1.0, 1.5, 3.0, 3.0]);
        let expected = [(0.5, 1), (1.0, 3), (2.0, 4), (4.0, 6), (f64::INFINITY, 6)];
        assert_eq!(histogram.cumulative(-1, 2), expected);
        assert!((histogram.seconds() - 9.6).abs() < 1e-9);
    }
}
