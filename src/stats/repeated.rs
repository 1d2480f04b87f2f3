//! Events that strangers, or a shortage, can bring about by the thousand: the log has some of them as they come, and the number
//! of the rest.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

/// How long a spell lasts that begins with an event.
const SPELL: Duration = Duration::from_secs(60);

/// Events of one kind that are logged one by one in a spell.
const ONE_BY_ONE: u32 = 10;

/// Decides what is logged of events that may repeat, by their kinds.
pub struct Repeated {
    spells: Mutex<HashMap<&'static str, Spell>>,
    /// Logs that there were so many more of a kind.
    summary: Box<dyn Fn(&'static str, u64) + Send + Sync>,
}

struct Spell {
    ends: Instant,
    logged: u32,
    /// Not logged so far.
    more: u64,
}

impl Repeated {
    /// At the end of each spell, `summary` logs how many events of a kind were not logged one by one.
    pub fn new(summary: impl Fn(&'static str, u64) + Send + Sync + 'static) -> Arc<Self> {
        Arc::new(Self { spells: Mutex::default(), summary: Box::new(summary) })
    }

    /// An event: has `log` log it, or counts it as one of its kind, if it has one that may repeat. To be called within the
    /// runtime.
    pub fn event(self: &Arc<Self>, kind: Option<&'static str>, log: impl FnOnce()) {
        let Some(kind) = kind else { return log() };
        let now = Instant::now();
        let mut spells = self.spells();
        let spell = spells.entry(kind).or_insert(Spell { ends: now + SPELL, logged: 0, more: 0 });
        if spell.ends <= now && spell.more == 0 {
            *spell = Spell { ends: now + SPELL, logged: 0, more: 0 };
        }
        if spell.logged < ONE_BY_ONE {
            spell.logged += 1;
            drop(spells);
            log();
            return;
        }
        spell.more += 1;
        if spell.more == 1 {
            let (ends, weak) = (spell.ends, Arc::downgrade(self));
            tokio::spawn(async move {
                sleep_until(ends).await;
                Weak::upgrade(&weak).inspect(|repeated| repeated.summarize(kind));
            });
        }
    }

    /// Ends the spell of this kind.
    fn summarize(&self, kind: &'static str) {
        let spell = self.spells().remove(kind);
        if let Some(Spell { more: more @ 1.., .. }) = spell {
            (self.summary)(kind, more);
        }
    }

    fn spells(&self) -> MutexGuard<'_, HashMap<&'static str, Spell>> {
        // A panic elsewhere leaves the map whole: every change to it is one step.
        self.spells.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What was counted is not lost when a pipe is removed or the process stops.
impl Drop for Repeated {
    fn drop(&mut self) {
        let kinds: Vec<_> = self.spells().keys().copied().collect();
        for kind in kinds {
            self.summarize(kind);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What was logged: how many events by themselves, and summaries.
    type Logged = (u64, Vec<(&'static str, u64)>);

    #[derive(Clone, Default)]
    struct Log(Arc<Mutex<Logged>>);

    impl Log {
        fn repeated(&self) -> Arc<Repeated> {
            let log = self.clone();
            Repeated::new(move |kind, more| log.0.lock().unwrap().1.push((kind, more)))
        }

        fn event(&self, repeated: &Arc<Repeated>, kind: &'static str) {
            repeated.event(Some(kind), || self.0.lock().unwrap().0 += 1);
        }

        fn logged(&self) -> Logged {
            self.0.lock().unwrap().clone()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn thousands_of_events_in_a_minute_are_a_few_lines_and_their_number() {
        let log = Log::default();
        let repeated = log.repeated();
        for _ in 0..10_000 {
            log.event(&repeated, "stranger");
        }
        assert_eq!(log.logged(), (10, vec![]));
        sleep_until(Instant::now() + SPELL + Duration::from_secs(1)).await;
        assert_eq!(log.logged(), (10, vec![("stranger", 9_990)]));
    }

    #[tokio::test(start_paused = true)]
    async fn a_kind_that_repeats_does_not_hide_another() {
        let log = Log::default();
        let repeated = log.repeated();
        for _ in 0..100 {
            log.event(&repeated, "stranger");
        }
        log.event(&repeated, "target");
        assert_eq!(log.logged().0, 11);
    }

    #[tokio::test(start_paused = true)]
    async fn events_that_come_now_and_then_are_all_logged() {
        let log = Log::default();
        let repeated = log.repeated();
        for _ in 0..50 {
            log.event(&repeated, "stranger");
            tokio::time::sleep(SPELL / 8).await;
        }
        assert_eq!(log.logged(), (50, vec![]));
    }

    #[tokio::test(start_paused = true)]
    async fn a_new_spell_begins_after_the_summary_of_the_last() {
        let log = Log::default();
        let repeated = log.repeated();
        for _ in 0..2 {
            for _ in 0..20 {
                log.event(&repeated, "stranger");
            }
            tokio::time::sleep(SPELL * 2).await;
        }
        assert_eq!(log.logged(), (20, vec![("stranger", 10), ("stranger", 10)]));
    }

    #[tokio::test(start_paused = true)]
    async fn events_that_were_counted_are_reported_when_the_pipe_goes() {
        let log = Log::default();
        let repeated = log.repeated();
        for _ in 0..12 {
            log.event(&repeated, "stranger");
        }
        drop(repeated);
        assert_eq!(log.logged(), (10, vec![("stranger", 2)]));
    }
}
