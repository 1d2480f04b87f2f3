//! Comparing secrets, for rooms that use no cryptography themselves.

use aws_lc_rs::constant_time::verify_slices_are_equal;

/// Whether both are the same. How long it takes tells their lengths, and not where they differ.
pub fn are_equal(one: &[u8], other: &[u8]) -> bool {
    verify_slices_are_equal(one, other).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_the_same_is_equal() {
        assert!(are_equal(b"", b"") && are_equal(b"abc", b"abc"));
        assert!(!are_equal(b"abc", b"abd") && !are_equal(b"abc", b"ab") && !are_equal(b"", b"a"));
    }
}
