//! The network code over memory: `tokio::io::duplex(8)` passes eight bytes at a time, so every message and every
//! frame is cut at every boundary, and a writer waits for its reader all the time.

mod handshake;
mod other_framing;
mod pump;
mod support;
