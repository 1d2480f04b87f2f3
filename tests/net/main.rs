//! The network code over streams in memory. `tokio::io::duplex(8)` passes at most eight bytes at a time, so messages
//! and frames arrive in many small pieces, and a writer often waits for its reader.

mod handshake;
mod pump;
mod spiped;
mod support;
