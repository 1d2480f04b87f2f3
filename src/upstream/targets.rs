//! The targets of a pipe, and how one of them is chosen: pure data.

use std::fmt;
use std::num::NonZero;
use std::str::FromStr;
use std::time::Duration;

use thiserror::Error;
use vec1::Vec1;

use super::route::Route;
use crate::addr::Target;

/// What a pipe may connect to. Each target can take the place of each other.
#[derive(Clone, Debug)]
pub struct Targets {
    routes: Vec1<Route>,
    balance: Balance,
    check: Option<Check>,
}

/// A target that is there twice.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("the target {0} is there twice; name each target once")]
pub struct RepeatedTarget(Target);

impl Targets {
    /// The ways to some targets, of which each connection takes one by `balance`; `check` says how to look after them.
    ///
    /// # Errors
    /// [`RepeatedTarget`].
    pub fn new(routes: Vec1<Route>, balance: Balance, check: Option<Check>) -> Result<Self, RepeatedTarget> {
        for (place, route) in routes.iter().enumerate() {
            if routes[..place].iter().any(|before| before.target() == route.target()) {
                return Err(RepeatedTarget(route.target().clone()));
            }
        }
        Ok(Self { routes, balance, check })
    }

    /// The way to each of them, in the order in which they were written.
    pub fn routes(&self) -> &Vec1<Route> {
        &self.routes
    }

    /// How a connection gets one of them.
    pub fn balance(&self) -> Balance {
        self.balance
    }

    /// How they are looked after in the background, if they are.
    pub fn check(&self) -> Option<&Check> {
        self.check.as_ref()
    }
}

impl From<Route> for Targets {
    fn from(route: Route) -> Self {
        Self { routes: Vec1::new(route), balance: Balance::default(), check: None }
    }
}

impl From<Target> for Targets {
    fn from(target: Target) -> Self {
        Route::from(target).into()
    }
}

/// As they were written, for the log.
impl fmt::Display for Targets {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, route) in self.routes.iter().enumerate() {
            write!(formatter, "{}{}", if place == 0 { "" } else { ", " }, route.target())?;
        }
        Ok(())
    }
}

/// How a connection gets one of several targets (`--balance`). Targets that are down come last, whatever this says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Balance {
    /// The first one that is up.
    #[default]
    Failover,
    /// The one after that of the connection before.
    RoundRobin,
    /// The one with the fewest connections of this pipe; among equals, in turn.
    LeastConnections,
}

impl FromStr for Balance {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "failover" => Ok(Self::Failover),
            "round-robin" => Ok(Self::RoundRobin),
            "least-connections" => Ok(Self::LeastConnections),
            _ => {
                Err(format!("'{text}' is no way to choose; write failover, round-robin or least-connections"))
            }
        }
    }
}

impl fmt::Display for Balance {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Failover => "failover",
            Self::RoundRobin => "round-robin",
            Self::LeastConnections => "least-connections",
        })
    }
}

/// How targets are looked after in the background (`--check`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    /// The time from one check of a target to the next, while its state does not change.
    pub every: Duration,
    /// So many checks that succeed in a row bring a target up.
    pub rise: NonZero<u32>,
    /// So many that fail in a row bring it down.
    pub fall: NonZero<u32>,
    /// What a responder says to its target, and hears from it. Without, a connection is enough.
    pub exchange: Option<Exchange>,
    /// What becomes of the connections to a target that checks have found down.
    pub on_down: Running,
}

impl Check {
    /// [`rise`](Self::rise) by default, as HAProxy has it.
    pub const RISE: NonZero<u32> = NonZero::new(2).expect("it is not zero");
    /// [`fall`](Self::fall) by default, as HAProxy has it.
    pub const FALL: NonZero<u32> = NonZero::new(3).expect("it is not zero");
    /// The longest time to the next check while the state of a target may be about to change.
    const SOON: Duration = Duration::from_secs(1);

    /// The time to the next check of a target whose state `is_settled`, or is contradicted by the last check.
    pub(crate) fn pause(&self, is_settled: bool) -> Duration {
        if is_settled { self.every } else { self.every.min(Self::SOON) }
    }
}

/// What a check says, and what it is to hear.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exchange {
    /// Sent to the target. May be empty: some services speak first.
    pub send: Vec<u8>,
    /// What is to occur in the target's answer. Not empty.
    pub expect: Vec<u8>,
}

/// What becomes of running connections when their target goes down (`--on-down`), or their key is not accepted any more
/// (`--on-revoke`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Running {
    /// They go on: they may still work, and may be all that a client has; and a key is changed more often than it is lost.
    #[default]
    Keep,
    /// They are reset, so that clients do not stick to a service that is not what it was (a demoted Redis), nor to a key that others
    /// have.
    Reset,
}

impl FromStr for Running {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "keep" => Ok(Self::Keep),
            "reset" => Ok(Self::Reset),
            _ => Err(format!("'{text}' is not what can be done; write keep or reset")),
        }
    }
}

impl fmt::Display for Running {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Keep => "keep",
            Self::Reset => "reset",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_cannot_be_there_twice() {
        let route = |text: &str| Route::from(text.parse::<Target>().unwrap());
        let of = |texts: &[&str]| {
            let routes = texts.iter().map(|text| route(text)).collect();
            Targets::new(Vec1::try_from_vec(routes).unwrap(), Balance::default(), None)
        };
        assert!(of(&["a:1", "b:1", "a:2"]).is_ok());
        assert_eq!(of(&["a:1", "b:1", "a:1"]).err(), Some(RepeatedTarget("a:1".parse().unwrap())));
    }

    #[test]
    fn checks_come_soon_while_a_state_may_change_but_no_later_than_otherwise() {
        let check = |every| Check {
            every: Duration::from_millis(every),
            rise: Check::RISE,
            fall: Check::FALL,
            exchange: None,
            on_down: Running::Keep,
        };
        assert_eq!(check(5_000).pause(true), Duration::from_secs(5));
        assert_eq!(check(5_000).pause(false), Duration::from_secs(1));
        assert_eq!(check(200).pause(false), Duration::from_millis(200));
    }
}
