//! The thread that writes log lines, so that nothing else waits for the reader of the log.
//!
//! Until it is started, lines are written where they are logged: it must not be there before the sandbox is closed, which holds
//! for threads that are born later only. From then on a line goes into a queue; when that is full, it is dropped and counted.

use std::cell::Cell;
use std::io::Write;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, SyncSender, TrySendError, channel, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use tracing::warn;

use super::one_line;

/// Lines that wait to be written. At some 300 bytes a line they take a third of a MiB at most.
const QUEUE: usize = 1024;

/// How long a process that ends waits until its last lines are written.
const FLUSH: Duration = Duration::from_secs(1);

/// The queue, once there is a thread that empties it.
static WRITER: OnceLock<SyncSender<Message>> = OnceLock::new();

/// Lines that found no room in the queue, and were not reported yet.
static DROPPED: AtomicU64 = AtomicU64::new(0);

/// All of them.
static DROPPED_IN_ALL: AtomicU64 = AtomicU64::new(0);

enum Message {
    /// One line, and where it goes.
    Line(Box<dyn Write + Send>, Vec<u8>),
    /// To be answered once all lines before it are written.
    Flush(Sender<()>),
}

/// Starts the thread, once for the process. Where the system has no thread for it, lines are written as before.
pub fn start() {
    let (lines, received) = sync_channel(QUEUE);
    let thread = thread::Builder::new().name("log".into()).spawn(move || write_all(&received));
    if thread.is_ok() {
        let _started_before = WRITER.set(lines);
    }
}

/// How many lines were lost, since the log was not read as fast as it was written.
pub fn dropped() -> u64 {
    DROPPED_IN_ALL.load(Ordering::Relaxed)
}

/// Waits until all lines so far are written, for a second at most. To be called at the end of the process.
pub fn flush() {
    let Some(writer) = WRITER.get() else { return };
    let deadline = Instant::now() + FLUSH;
    let (written, all_written) = channel();
    while let Err(TrySendError::Full(_)) = writer.try_send(Message::Flush(written.clone())) {
        if Instant::now() > deadline {
            return;
        }
        thread::sleep(Duration::from_millis(5));
    }
    let _in_time = all_written.recv_timeout(deadline.saturating_duration_since(Instant::now()));
}

thread_local! {
    /// Whether this is the thread that may wait for the reader of the log.
    static IS_WRITER: Cell<bool> = const { Cell::new(false) };
}

fn write_all(messages: &Receiver<Message>) {
    IS_WRITER.set(true);
    for message in messages {
        match message {
            // A log that cannot be written to loses its lines, and nothing else.
            Message::Line(mut place, line) => drop(place.write_all(&line).and_then(|()| place.flush())),
            Message::Flush(written) => drop(written.send(())),
        }
        report_dropped();
    }
}

/// Logs how many lines were lost, now that one could be written.
fn report_dropped() {
    let lines = DROPPED.swap(0, Ordering::Relaxed);
    if lines > 0 {
        warn!(lines, "log lines were lost, since the log was not read as fast as it was written");
    }
}

/// One log line on its way to `place`.
pub(super) struct Line {
    /// None once it is sent.
    place: Option<Box<dyn Write + Send>>,
}

impl Line {
    pub(super) fn new(place: impl Write + Send + 'static) -> Self {
        Self { place: Some(Box::new(place)) }
    }
}

impl Write for Line {
    /// tracing gives a whole line at once, with its end.
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let Some(mut place) = self.place.take() else { return Ok(bytes.len()) };
        let text = String::from_utf8_lossy(bytes.strip_suffix(b"\n").unwrap_or(bytes));
        let line = format!("{}\n", one_line(&text)).into_bytes();
        match WRITER.get() {
            Some(writer) if !IS_WRITER.get() => {
                if writer.try_send(Message::Line(place, line)).is_err() {
                    DROPPED.fetch_add(1, Ordering::Relaxed);
                    DROPPED_IN_ALL.fetch_add(1, Ordering::Relaxed);
                }
            }
            _ => place.write_all(&line).and_then(|()| place.flush())?,
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
