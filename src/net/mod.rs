//! Moving bytes: sockets, deadlines, the accept loop, the pumps.
//!
//! This room knows nothing of ciphers. It asks [`crate::proto`] for handshake messages and frames, and carries them.

pub mod addr;
pub mod buffer;
pub mod connections;
pub mod dial;
pub mod handshake;
pub mod heartbeat;
pub mod listen;
pub mod lobby;
pub mod pipe;
pub mod pipes;
pub mod pump;
pub mod serve;
mod socket_file;
pub mod stream;
pub mod usage;
