//! When keys expire: for the log, and for connections that are to end then. That new connections are refused is the gate's affair.

use std::collections::HashMap;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use super::spec::Spec;
use crate::connection::clock;
use crate::proto::key::Fingerprint;

/// How long before a key expires the log says so.
const NOTICE: SignedDuration = SignedDuration::from_hours(7 * 24);

/// The longest pause before the clock is looked at again: it may be set meanwhile, and the host may sleep.
const LOOK: Duration = Duration::from_secs(60);

/// What the calendar says of the keys of all pipes, from now on.
#[derive(Default)]
pub struct Expiries(Vec<Expiry>);

/// A key that expires, or has expired.
#[derive(Clone, Debug)]
pub struct Expiry {
    /// Which key.
    pub key: Fingerprint,
    /// The file that it comes from.
    pub file: Option<String>,
    /// Whose it is.
    pub name: Option<String>,
    /// When.
    pub expires: Timestamp,
    /// How far it is.
    pub stage: Stage,
}

/// How far a key is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// It expires within a week.
    Soon,
    /// It has expired.
    Now,
}

impl Expiry {
    /// When there is something to say.
    fn due(&self) -> Timestamp {
        match self.stage {
            Stage::Soon => self.expires.saturating_sub(NOTICE).unwrap_or(self.expires),
            Stage::Now => self.expires,
        }
    }
}

impl Expiries {
    pub(super) fn of<'s>(specs: impl Iterator<Item = &'s Spec>) -> Self {
        let mut by_key = HashMap::new();
        for Spec { role, rules, common, .. } in specs {
            for key in role.keys().iter().map(|key| key.fingerprint()) {
                if let Some(expires) = rules.of_keys.get(&key).and_then(|rules| rules.expires) {
                    let [file, name] = [common.key_names.file(key), common.key_names.name(key)]
                        .map(|text| text.map(ToOwned::to_owned));
                    by_key.insert(key, Expiry { key, file, name, expires, stage: Stage::Now });
                }
            }
        }
        let now = Timestamp::now();
        let ahead = by_key.values().filter(|expiry| expiry.expires > now);
        let notices: Vec<_> = ahead.map(|expiry| Expiry { stage: Stage::Soon, ..expiry.clone() }).collect();
        let mut all: Vec<_> = notices.into_iter().chain(by_key.into_values()).collect();
        // The next one is at the end.
        all.sort_by_key(|expiry| std::cmp::Reverse(expiry.due()));
        Self(all)
    }

    /// Waits until there is something to say. For ever, where no key expires.
    pub async fn next(&mut self) -> Expiry {
        loop {
            let Some(next) = self.0.last() else { return std::future::pending().await };
            let left = Duration::try_from(Timestamp::now().duration_until(next.due())).unwrap_or_default();
            if left.is_zero() {
                return self.0.pop().expect("it was there");
            }
            clock::sleep(left.min(LOOK)).await;
        }
    }
}
