//! spipe: a symmetric-key encrypted pipe.
//!
//! ```text
//!  client ──plain──▶ spipe -e ══════ sealed frames ══════▶ spipe -d ──plain──▶ service
//!                   (initiator)       one TCP stream      (responder)
//!                                     per connection
//! ```
//!
//! A connection is a row of values, each made from the one before in a room of its own:
//!
//! ```text
//!  initiator:  listen ─ Arrival ─▶ gate ─ Admitted ─▶ upstream ─ Connected ─▶ tunnel ─ Tunnel ─┐
//!                                                                                              ├─▶ pump ─▶ Carried
//!  responder:  listen ─ Arrival ─▶ gate ─ Admitted ─▶ tunnel ─ Tunnel ─▶ upstream ─ Connected ─┘
//! ```
//!
//! [`connection`] has each of the two lines as one file. The rooms, in the order in which they use each other: each may use
//! those below it, and none above.
//!
//! | room | what lives there | uses |
//! |---|---|---|
//! | [`cli`] | the command line; start-up of what it asks for | `config`, `status`, `service`, `pipe`, `connection`, `upstream`, `gate`, `listen`, `pump`, `stats`, `stream`, `names`, `addr`, `proto` |
//! | [`config`] | texts become pipes that are valid, with their keys | `status`, `service`, `pipe`, `connection`, `tunnel`, `upstream`, `gate`, `listen`, `stream`, `names`, `proxy_header`, `addr`, `proto` |
//! | [`status`] | what a process says of itself to those who ask | `service`, `pipe`, `upstream`, `listen`, `stats`, `stream`, `addr`, `proto` |
//! | [`service`] | what a process owes its system; signals, reload, drain, hand-over | `pipe`, `upstream`, `listen`, `stats`, `stream`, `names`, `addr`, `proto` |
//! | [`pipe`] | what pipes there are to be, and those at work; what outlives a reload | `connection`, `tunnel`, `upstream`, `gate`, `listen`, `stats`, `names`, `addr`, `proto` |
//! | [`connection`] | one life of each role | `tunnel`, `upstream`, `gate`, `pump`, `stats`, `stream`, `names`, `proxy_header`, `addr`, `proto` |
//! | [`tunnel`] | the handshake under its deadline | `pump`, `stream`, `proto` |
//! | [`upstream`] | connecting out | `stats`, `stream`, `names`, `addr`, `proto` |
//! | [`gate`] | which arrivals are admitted | `listen`, `stats`, `stream`, `proxy_header`, `addr`, `proto` |
//! | [`listen`] | sources become sockets, sockets become arrivals | `stats`, `stream`, `names`, `addr` |
//! | [`pump`] | both directions of a connection, and its buffers | `stream`, `proto` |
//! | [`stats`] | counters; the connections that run; events that repeat | `stream`, `addr`, `proto` |
//! | [`stream`] | one connected byte stream | |
//! | [`names`] | host names become addresses | |
//! | [`proxy_header`] | what a proxy tells of a client: bytes in, bytes out | |
//! | [`addr`] | texts become addresses | |
//! | [`proto`] | the protocol: bytes in, bytes out | |
//!
//! `tests/protocol/wall.rs` compares this table with the code, and `docs/DESIGN.md` has the reasons; `docs/PROTOCOL.md` is the
//! wire.
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
pub mod proxy_header;
pub mod pump;
pub mod service;
pub mod stats;
pub mod status;
pub mod stream;
pub mod tunnel;
pub mod upstream;
