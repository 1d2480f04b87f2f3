//! Connecting out: from a target to a connected stream.

mod attempt;
mod dial;
mod route;

pub use self::attempt::Refusals;
pub use self::dial::{Connected, DialError, DialFailure, Dialer};
pub use self::route::{FamilyMismatch, Route};
