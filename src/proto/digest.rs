//! The digest of public texts, for what others define by it: pins of TLS servers, policies of the status page.

use sha2::{Digest, Sha256};

/// SHA-256. For nothing secret: it wipes nothing.
pub fn sha256(public: &[u8]) -> [u8; 32] {
    Sha256::digest(public).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_digest_is_sha256() {
        // FIPS 180-2, appendix B.1.
        assert_eq!(sha256(b"abc")[..4], [0xba, 0x78, 0x16, 0xbf]);
    }
}
