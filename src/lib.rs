//! spipe: a symmetric-key encrypted pipe.
//!
//! ```text
//!  client ──plain──▶ spipe -e ══════ sealed frames ══════▶ spipe -d ──plain──▶ service
//!                   (initiator)       one TCP stream      (responder)
//!                                     per connection
//! ```
//!
//! The rooms, in the order in which they use each other: an arrow means "uses", and none points back.
//!
//! ```text
//!  main ─▶ cli ─▶ config ─▶ service ─▶ pipe ─▶ connection ─┬─▶ tunnel ───▶ proto
//!          flags  flags     what a     accept,  one life    │   handshake  keys, frames
//!                 and files process    reload,  of each     ├─▶ upstream
//!                           owes its   drain    role        │   dialing
//!                           system                          ├─▶ gate, listen
//!                                                           │   who comes in
//!                                                           └─▶ pump ─▶ stream
//!                                                               bytes    sockets
//! ```
//!
//! [`addr`] has the addresses that all of them speak of, and [`stats`] counts. [`proto`] is pure: bytes in, bytes out; all other
//! rooms know nothing of ciphers. `tests/protocol/wall.rs` holds the order. `docs/DESIGN.md` has the reasons,
//! `docs/PROTOCOL.md` the wire.
//!
//! The library exists for the binary, its tests and its benchmarks; its interface is not stable.

#![forbid(unsafe_code)]

pub mod addr;
pub mod cli;
pub mod config;
pub mod connection;
pub mod gate;
pub mod listen;
pub mod names;
pub mod pipe;
pub mod proto;
pub mod pump;
pub mod service;
pub mod stats;
pub mod stream;
pub mod tunnel;
pub mod upstream;
