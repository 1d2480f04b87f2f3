//! spipe: a symmetric-key encrypted pipe.
//!
//! ```text
//!  client ──plain──▶ spipe -e ══════ sealed frames ══════▶ spipe -d ──plain──▶ service
//!                   (initiator)       one TCP stream      (responder)
//!                                     per connection
//! ```
//!
//! The modules, in the order in which a byte travels (an arrow means "uses", and none points back):
//!
//! ```text
//!  main ─▶ cli ─▶ config ─▶ net::pipes ─▶ net::serve ─▶ net::pipe ─▶ net::pump ─▶ proto::frame
//!           │     flags     all pipes,    accept,       one          one          seal, open
//!           │     and       reload,       limits        connection   direction
//!           │     files     drain                          │
//!           ▼                                              └─▶ net::handshake ─▶ proto::handshake ─▶ proto::noise
//!        service                                               deadlines          steps, messages     state
//!        what a process owes its system
//! ```
//!
//! [`proto`] is pure: bytes in, bytes out. [`net`] moves bytes and knows nothing of ciphers. [`config`] says what pipes there
//! are to be. `docs/DESIGN.md` has the reasons, `docs/PROTOCOL.md` the wire.
//!
//! The library exists for the binary, its tests and its benchmarks; its interface is not stable.

#![forbid(unsafe_code)]

pub mod cli;
pub mod config;
pub mod net;
pub mod proto;
pub mod service;
