//! How one target is doing, by what connections and checks have found. Without a clock of its own, so that each rule is a test.

use std::num::NonZero;
use std::time::Duration;

use tokio::time::Instant;

/// How long a target that failed is avoided at first, and at most; each failed trial doubles the time.
const PAUSE: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(30);

/// The health of a target.
#[derive(Debug)]
pub(super) struct Health {
    state: State,
    /// When the target came up or went down.
    since: Instant,
    /// What the target said when it last failed.
    reason: String,
    /// Checks in a row that contradict the state.
    contradictions: u32,
}

#[derive(Debug)]
enum State {
    Up,
    /// A connection failed. The target is tried last, until the time is over and one connection tries it in its turn.
    Avoided {
        until: Instant,
        pause: Duration,
        trial: Trial,
    },
    /// Checks failed. The target is not tried at all, and only checks bring it up: one that accepts connections can still be
    /// the wrong one, such as a Redis that is a replica now.
    Down,
}

/// Whether a connection is trying an avoided target.
#[derive(Debug, PartialEq, Eq)]
enum Trial {
    None,
    Running,
}

/// What a target is to a connection that looks for one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It is up.
    Up,
    /// It has been avoided for long enough: one connection may try it.
    Due,
    /// It is to be tried when all others have failed.
    Avoided,
    /// It is not to be tried.
    Down,
}

/// How a target is doing, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Condition {
    /// Whether connections get it.
    pub standing: Standing,
    /// For how long that has been so.
    pub time: Duration,
    /// Checks in a row that contradict it.
    pub contradictions: u32,
    /// What the target said when it last failed. Empty, if it never did.
    pub reason: String,
}

/// What the log is to say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// A connection failed: the target is avoided.
    Avoided,
    /// Checks failed: the target is down.
    Down,
    /// It is up again, after so long.
    Up { after: Duration },
}

impl Health {
    /// Nothing has failed so far.
    pub(super) fn new(now: Instant) -> Self {
        Self { state: State::Up, since: now, reason: String::new(), contradictions: 0 }
    }

    pub(super) fn standing(&self, now: Instant) -> Standing {
        match &self.state {
            State::Up => Standing::Up,
            State::Avoided { until, trial: Trial::None, .. } if now >= *until => Standing::Due,
            State::Avoided { .. } => Standing::Avoided,
            State::Down => Standing::Down,
        }
    }

    /// How it is doing, for people.
    pub(super) fn condition(&self, now: Instant) -> Condition {
        let Self { since, reason, contradictions, .. } = self;
        let (reason, contradictions) = (reason.clone(), *contradictions);
        Condition { standing: self.standing(now), time: now - *since, contradictions, reason }
    }

    /// What the target said when it last failed.
    pub(super) fn reason(&self) -> &str {
        &self.reason
    }

    /// Whether the last check has found what the state says.
    pub(super) fn is_settled(&self) -> bool {
        self.contradictions == 0 && !matches!(self.state, State::Avoided { .. })
    }

    /// Takes the trial of a target that is due; false, if another connection was faster.
    pub(super) fn begin_trial(&mut self, now: Instant) -> bool {
        let is_due = self.standing(now) == Standing::Due;
        if is_due && let State::Avoided { trial, .. } = &mut self.state {
            *trial = Trial::Running;
        }
        is_due
    }

    /// Gives the trial back without a result, for another connection.
    pub(super) fn end_trial(&mut self) {
        if let State::Avoided { trial, .. } = &mut self.state {
            *trial = Trial::None;
        }
    }

    /// A connection to the target works.
    pub(super) fn connection_worked(&mut self, now: Instant) -> Option<Change> {
        matches!(self.state, State::Avoided { .. }).then(|| self.come_up(now))
    }

    /// A connection to the target failed.
    pub(super) fn connection_failed(&mut self, now: Instant, reason: String) -> Option<Change> {
        match &mut self.state {
            State::Up => {
                self.state = State::Avoided { until: now + PAUSE, pause: PAUSE, trial: Trial::None };
                self.since = now;
                self.reason = reason;
                Some(Change::Avoided)
            }
            // A failure of now, or of a connection that began before the time was over, says nothing new.
            State::Avoided { until, .. } if now < *until => None,
            State::Avoided { until, pause, trial } => {
                *pause = (*pause * 2).min(PAUSE_MAX);
                *until = now + *pause;
                *trial = Trial::None;
                self.reason = reason;
                None
            }
            State::Down => None,
        }
    }

    /// A check succeeded; `rise` of them in a row bring the target up.
    pub(super) fn check_worked(&mut self, now: Instant, rise: NonZero<u32>) -> Option<Change> {
        match self.state {
            State::Up => {
                self.contradictions = 0;
                None
            }
            // What one connection found, one check can refute.
            State::Avoided { .. } => Some(self.come_up(now)),
            State::Down => self.is_contradicted(rise).then(|| self.come_up(now)),
        }
    }

    /// A check failed; `fall` of them in a row bring the target down.
    pub(super) fn check_failed(
        &mut self,
        now: Instant,
        fall: NonZero<u32>,
        reason: String,
    ) -> Option<Change> {
        self.reason = reason;
        match self.state {
            State::Down => {
                self.contradictions = 0;
                None
            }
            State::Up | State::Avoided { .. } => self.is_contradicted(fall).then(|| {
                if let State::Up = self.state {
                    self.since = now;
                }
                self.state = State::Down;
                self.contradictions = 0;
                Change::Down
            }),
        }
    }

    fn is_contradicted(&mut self, enough: NonZero<u32>) -> bool {
        self.contradictions += 1;
        self.contradictions >= enough.get()
    }

    fn come_up(&mut self, now: Instant) -> Change {
        let after = now - self.since;
        (self.state, self.since, self.contradictions) = (State::Up, now, 0);
        Change::Up { after }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn of(count: u32) -> NonZero<u32> {
        NonZero::new(count).unwrap()
    }

    fn avoided(now: Instant) -> Health {
        let mut health = Health::new(now);
        assert_eq!(health.connection_failed(now, "refused".to_owned()), Some(Change::Avoided));
        health
    }

    fn down(now: Instant) -> Health {
        let mut health = Health::new(now);
        assert_eq!(health.check_failed(now, of(1), "wrong answer".to_owned()), Some(Change::Down));
        health
    }

    #[test]
    fn a_target_that_failed_is_avoided_for_a_second() {
        let now = Instant::now();
        let health = avoided(now);
        assert_eq!(health.standing(now), Standing::Avoided);
        assert_eq!(health.standing(now + SECOND - Duration::from_millis(1)), Standing::Avoided);
        assert_eq!(health.standing(now + SECOND), Standing::Due);
        assert_eq!(health.reason(), "refused");
    }

    #[test]
    fn each_failed_trial_doubles_the_time_up_to_30_seconds() {
        let mut now = Instant::now();
        let mut health = avoided(now);
        for seconds in [1, 2, 4, 8, 16, 30, 30] {
            now += seconds * SECOND;
            assert_eq!(health.standing(now - Duration::from_millis(1)), Standing::Avoided, "{seconds} s");
            assert!(health.begin_trial(now));
            assert_eq!(health.connection_failed(now, String::new()), None);
        }
    }

    #[test]
    fn one_connection_at_a_time_tries_a_target_that_is_due() {
        let now = Instant::now();
        let mut health = avoided(now);
        assert!(!health.begin_trial(now), "its time is not over");
        assert!(health.begin_trial(now + SECOND));
        assert!(!health.begin_trial(now + SECOND));
        assert_eq!(health.standing(now + SECOND), Standing::Avoided);
        health.end_trial();
        assert!(health.begin_trial(now + SECOND));
    }

    #[test]
    fn failures_at_the_same_time_count_once() {
        let now = Instant::now();
        let mut health = avoided(now);
        for _ in 0..1_000 {
            assert_eq!(health.connection_failed(now, "again".to_owned()), None);
        }
        assert_eq!(health.standing(now + SECOND), Standing::Due);
        assert_eq!(health.reason(), "refused");
    }

    #[test]
    fn a_connection_that_works_brings_an_avoided_target_up() {
        let now = Instant::now();
        let mut health = avoided(now);
        assert_eq!(health.connection_worked(now + 3 * SECOND), Some(Change::Up { after: 3 * SECOND }));
        assert_eq!(health.standing(now + 3 * SECOND), Standing::Up);
        assert_eq!(health.connection_worked(now), None);
    }

    #[test]
    fn the_time_starts_over_after_a_target_was_up() {
        let now = Instant::now();
        let mut health = avoided(now);
        health.connection_failed(now + SECOND, String::new());
        health.connection_worked(now + SECOND);
        health.connection_failed(now + SECOND, String::new());
        assert_eq!(health.standing(now + 2 * SECOND), Standing::Due);
    }

    #[test]
    fn as_many_failed_checks_as_fall_says_bring_a_target_down() {
        let now = Instant::now();
        let mut health = Health::new(now);
        let fail = |health: &mut Health| health.check_failed(now, of(3), "silent".to_owned());
        assert_eq!((fail(&mut health), fail(&mut health)), (None, None));
        assert_eq!(health.check_worked(now, of(2)), None);
        assert_eq!((fail(&mut health), fail(&mut health)), (None, None), "they are counted in a row");
        assert!(!health.is_settled());
        assert_eq!(fail(&mut health), Some(Change::Down));
        assert!(health.is_settled());
        assert_eq!(health.standing(now + 3_600 * SECOND), Standing::Down);
    }

    #[test]
    fn as_many_checks_as_rise_says_bring_a_target_up() {
        let now = Instant::now();
        let mut health = down(now);
        assert_eq!(health.check_worked(now, of(2)), None);
        assert_eq!(health.check_failed(now, of(3), String::new()), None);
        assert_eq!(health.check_worked(now, of(2)), None, "they are counted in a row");
        assert_eq!(health.check_worked(now + SECOND, of(2)), Some(Change::Up { after: SECOND }));
    }

    #[test]
    fn no_connection_brings_up_what_checks_have_found_down() {
        let now = Instant::now();
        let mut health = down(now);
        assert_eq!(health.connection_worked(now), None);
        assert_eq!(health.connection_failed(now, String::new()), None);
        assert_eq!(health.standing(now + 3_600 * SECOND), Standing::Down);
    }

    #[test]
    fn one_check_brings_up_what_a_connection_has_found_down() {
        let now = Instant::now();
        let mut health = avoided(now);
        assert!(!health.is_settled());
        assert_eq!(health.check_worked(now, of(5)), Some(Change::Up { after: Duration::ZERO }));
    }

    #[test]
    fn checks_take_down_an_avoided_target_too_and_it_was_down_since_the_connection_failed() {
        let now = Instant::now();
        let mut health = avoided(now);
        assert_eq!(health.check_failed(now + SECOND, of(1), String::new()), Some(Change::Down));
        assert_eq!(health.check_worked(now + 2 * SECOND, of(1)), Some(Change::Up { after: 2 * SECOND }));
    }
}
