//! What a process says of itself to those who ask: people, programs, and the administrator's own command.
//!
//! ```text
//!  pipe, stats, service ─▶ gather ─▶ Report ─┬─▶ page       for people
//!                                            ├─▶ JSON       for programs, and for spipe status and top
//!                                            └─▶ metrics    for Prometheus
//! ```

mod access;
mod events;
mod gather;
mod http;
pub mod human;
mod listening;
mod metrics;
pub mod page;
mod query;
pub mod report;
mod verbs;

pub use self::access::StatusUser;
pub use self::gather::Gatherer;
pub use self::listening::{Listening, Plan, PlanError, Registered, Serving};
pub use self::verbs::Reload;
