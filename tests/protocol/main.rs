//! The protocol, tested through the public functions that the network code calls.
//!
//! Most tests are about refusals: a few tests show that two ends that agree understand each other, and the promises
//! of the specification (docs/PROTOCOL.md, section 6) are mostly about messages that the ends do *not* accept.

mod aegis_vectors;
mod frame_refusals;
mod handshake_refusals;
mod noise_vectors;
mod recorded;
mod second;
mod snow_peer;
mod spiped;
mod stack;
mod support;
mod wall;
mod x25519;
