//! What two ends can do beyond wire version 1 as it began, and how they agree on that (PROTOCOL.md, section 4.1).

use super::cipher::Ciphers;

/// A set of features, as a payload carries it: one bit each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Features(u8);

impl Features {
    /// Not one.
    pub const NONE: Self = Self(0);
    /// The responder's first frame says that its target stands, before any byte of the target; and it answers probes.
    pub const ACKNOWLEDGEMENT: Self = Self(1);
    /// The responder answers pings.
    pub const PING: Self = Self(2);
    /// When a connection has ended well, its tunnel can carry another one.
    pub const REUSE: Self = Self(4);
    /// All that are known here.
    pub const KNOWN: Self = Self(Self::ACKNOWLEDGEMENT.0 | Self::PING.0 | Self::REUSE.0);

    /// Those that are in one or the other.
    #[must_use]
    pub const fn or(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// All but `others`.
    #[must_use]
    pub const fn without(self, others: Self) -> Self {
        Self(self.0 & !others.0)
    }

    /// Those that are in both.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// Whether all of `others` are in it.
    pub const fn have(self, others: Self) -> bool {
        self.0 & others.0 == others.0
    }

    /// Of a byte from the wire; bits without a meaning here count for nothing.
    pub(super) const fn from_byte(byte: u8) -> Self {
        Self(byte).and(Self::KNOWN)
    }

    pub(super) const fn byte(self) -> u8 {
        self.0
    }
}

/// What an end can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Abilities {
    /// The ciphers that it accepts.
    pub ciphers: Ciphers,
    /// The features that it knows, and has a use for.
    pub features: Features,
}

/// Ciphers, and no features.
impl From<Ciphers> for Abilities {
    fn from(ciphers: Ciphers) -> Self {
        Self { ciphers, features: Features::NONE }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_of_later_versions_are_passed_over() {
        assert_eq!(Features::from_byte(0xff), Features::KNOWN);
        assert_eq!(Features::from_byte(0xf8), Features::NONE);
    }

    #[test]
    fn each_feature_is_agreed_on_by_itself() {
        for (one, other) in
            [(Features::ACKNOWLEDGEMENT, Features::PING), (Features::PING, Features::ACKNOWLEDGEMENT)]
        {
            assert_eq!(Features::KNOWN.and(one), one);
            assert!(!one.have(other) && !one.have(Features::KNOWN));
        }
    }

    #[test]
    fn what_one_end_lacks_is_not_agreed_on() {
        let both = Features::ACKNOWLEDGEMENT.and(Features::NONE);
        assert!(!both.have(Features::ACKNOWLEDGEMENT));
        assert!(Features::ACKNOWLEDGEMENT.and(Features::KNOWN).have(Features::ACKNOWLEDGEMENT));
    }
}
