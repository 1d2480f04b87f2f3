//! Random bytes that are cheap to make and to compare, so that any change to them is found.

/// SplitMix64 (Steele, Lea and Flood 2014): not for secrets, but good enough to find lost, repeated or swapped bytes.
/// The same seed gives the same stream, however it is cut into multiples of 8 bytes.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        // Seeds that differ by one must not give streams that are one step apart.
        Self(seed.wrapping_mul(0xd134_2543_de82_ef95))
    }

    pub(crate) fn fill(&mut self, bytes: &mut [u8]) {
        for piece in bytes.chunks_mut(8) {
            self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut word = self.0;
            word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            piece.copy_from_slice(&(word ^ (word >> 31)).to_le_bytes()[..piece.len()]);
        }
    }

    pub(crate) fn bytes(seed: u64, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count];
        Self::new(seed).fill(&mut bytes);
        bytes
    }
}

/// `bytes` as hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |hex, byte| format!("{hex}{byte:02x}"))
}
