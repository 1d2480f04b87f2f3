//! What is known of the process as a whole, for those who ask how it is doing.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;

use super::measures::Measures;

/// What is known of the process as a whole.
pub struct Facts {
    /// When it started.
    pub started: Timestamp,
    /// What locks it in, as the log has it.
    pub sandbox: String,
    /// What it has of the system.
    pub measures: Measures,
    is_stopping: AtomicBool,
    reloads: Mutex<Reloads>,
}

/// How often the configuration was read again.
#[derive(Clone, Default)]
pub struct Reloads {
    /// Times that it was put into force.
    pub succeeded: u64,
    /// Times that it was wrong.
    pub failed: u64,
    /// The last time, and what was wrong.
    pub last: Option<(Timestamp, Result<(), String>)>,
}

impl Facts {
    /// Of a process that `sandbox` locks in, of which `measures` were opened before.
    pub fn new(sandbox: String, measures: Measures) -> Self {
        let (is_stopping, reloads) = (AtomicBool::new(false), Mutex::default());
        Self { started: Timestamp::now(), sandbox, measures, is_stopping, reloads }
    }

    /// Takes note of a reload.
    pub fn note_reload(&self, result: Result<(), String>) {
        let mut reloads = self.lock();
        match &result {
            Ok(()) => reloads.succeeded += 1,
            Err(_) => reloads.failed += 1,
        }
        reloads.last = Some((Timestamp::now(), result));
    }

    /// How often the configuration was read again.
    pub fn reloads(&self) -> Reloads {
        self.lock().clone()
    }

    /// The process accepts no more from now on.
    pub fn note_stop(&self) {
        self.is_stopping.store(true, Ordering::Relaxed);
    }

    /// Whether it accepts no more.
    pub fn is_stopping(&self) -> bool {
        self.is_stopping.load(Ordering::Relaxed)
    }

    fn lock(&self) -> MutexGuard<'_, Reloads> {
        // A panic elsewhere leaves it whole: nothing in the changes to it panics half-way.
        self.reloads.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
