//! The protocol, tested through the same public functions that the network code calls.
//!
//! Refusals outnumber successes on purpose: that two ends which agree understand each other is soon shown, and what
//! the specification promises (docs/PROTOCOL.md, section 6) is mostly what they do *not* accept.

mod frame_refusals;
mod handshake_refusals;
mod noise_vectors;
mod recorded;
mod snow_peer;
mod support;
mod wall;
