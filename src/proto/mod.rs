//! The protocol: bytes in, bytes out.
//!
//! Nothing here knows of sockets, files, clocks or the environment, and randomness is always an argument. So every
//! protocol test is deterministic and every fuzz target is one function call. `tests/protocol/wall.rs` keeps it so.
//! `docs/PROTOCOL.md` is the specification; comments cite its steps (I1, R1, …).

mod aead;
pub mod cipher;
pub mod connection_info;
pub mod digest;
pub mod features;
pub mod frame;
pub mod framing;
pub mod handshake;
pub mod key;
pub mod noise;
pub mod secret;
pub mod spiped;
pub mod stack;
pub mod x25519;
