//! X25519 (RFC 7748), the arithmetic that a connection costs most of (docs/PERFORMANCE.md).

use aws_lc_rs::agreement::{PrivateKey, UnparsedPublicKey, X25519, agree};

use super::noise::Secret;

/// Bytes of a secret, of a public key, and of what two ends agree on.
pub const LENGTH: usize = 32;

/// The key pair of one handshake. The library has the secret in memory of its own, and wipes that when this is dropped.
///
/// What computing with it leaves on the stack is wiped by [`super::stack::wiped`].
pub struct KeyPair {
    secret: PrivateKey,
    public: [u8; LENGTH],
}

impl KeyPair {
    /// Of 32 random bytes.
    pub fn new(secret: &[u8; LENGTH]) -> Self {
        let secret = PrivateKey::from_private_key(&X25519, secret).expect("any 32 bytes are a secret");
        let public = secret.compute_public_key().expect("every secret has a public key");
        let public = public.as_ref().try_into().expect("a public key has 32 bytes");
        Self { secret, public }
    }

    /// What the peer gets.
    pub fn public(&self) -> &[u8; LENGTH] {
        &self.public
    }

    /// What both ends agree on. All zeros, and no error, where `public` is a point of low order: whether that matters is for the
    /// caller to say.
    pub fn agree(&self, public: &[u8; LENGTH]) -> Secret {
        let mut shared = Secret::default();
        // The one thing that the library refuses is a result of zeros (RFC 7748, section 6.1).
        let _ = agree(&self.secret, UnparsedPublicKey::new(&X25519, public), (), |agreed| {
            shared.copy_from_slice(agreed);
            Ok(())
        });
        shared
    }
}
