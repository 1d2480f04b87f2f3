//! What has happened and what is happening: counters, the connections that run, and events that repeat.
//!
//! Counting is for all; reading is for those who ask. A connection tells of its bytes by two plain stores into memory of its own
//! ([`Live`]), and all sums are made by the reader. Counters belong to pipes as the configuration knows them, not to the objects
//! that serve them, so that a reload does not begin anew.

mod causes;
mod histogram;
mod live;
mod of_pipe;
mod of_target;
mod repeated;
mod usage;

pub use self::causes::{Cause, CloseReason, Kinds, PerKind};
pub use self::histogram::Histogram;
pub use self::live::{Addresses, Dialed, Ends, Live};
pub use self::of_pipe::{
    Carried, Failure, HISTORY_STEP, History, LiveView, OfPipe, Rate, Running, Stranger, Totals,
};
pub use self::of_target::{DialResult, OfTarget};
pub use self::repeated::Repeated;
pub use self::usage::{LastUsed, Usage};
