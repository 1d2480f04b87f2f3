//! Server-sent events (HTML, section 9.2): an answer that goes on.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::body::{Body, Bytes, Frame};
use tokio::sync::mpsc;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep_until};

/// The time between two events.
const EVERY: Duration = Duration::from_secs(1);

/// The longest time between two events. Those that take long to make come less often, so that they take a twentieth of one processor
/// at most; a reader that has heard nothing for much longer takes it that the process does not answer.
const SELDOM: Duration = Duration::from_secs(4);
const SHARE: u32 = 20;

/// How long a reader may leave an event unread before its stream ends.
const PATIENCE: Duration = Duration::from_secs(30);

/// The body of such an answer.
pub(super) struct Events(mpsc::Receiver<Bytes>);

impl Events {
    /// An event each second, with what `make` gives at that time, on a thread where it may take a while; no more, once it gives
    /// nothing. Of a reader that is slow, no more than one event waits.
    pub(super) fn each_second(make: impl Fn() -> Option<String> + Clone + Send + 'static) -> Self {
        let (sender, receiver) = mpsc::channel(1);
        tokio::spawn(async move {
            loop {
                let began = Instant::now();
                let made = spawn_blocking(make.clone()).await;
                let pause = (began.elapsed() * SHARE).clamp(EVERY, SELDOM);
                let Ok(Some(data)) = made else { return };
                if sender.send_timeout(event(&data), PATIENCE).await.is_err() {
                    return;
                }
                tokio::select! {
                    () = sleep_until(began + pause) => {}
                    () = sender.closed() => return,
                }
            }
        });
        Self(receiver)
    }
}

/// An event with `data`, whatever lines that has.
fn event(data: &str) -> Bytes {
    let mut event = String::with_capacity(data.len() + data.len() / 16);
    for line in data.lines() {
        event.push_str("data: ");
        event.push_str(line);
        event.push('\n');
    }
    event.push('\n');
    event.into()
}

impl Body for Events {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0.poll_recv(context).map(|event| event.map(|event| Ok(Frame::data(event))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_line_of_an_event_is_marked_as_its_own() {
        assert_eq!(event("a\nb: c\n"), "data: a\ndata: b: c\n\n");
        assert_eq!(event("a\r\nb"), "data: a\ndata: b\n\n");
    }

    #[tokio::test(start_paused = true)]
    async fn a_reader_that_reads_nothing_is_given_up() {
        let Events(receiver) = Events::each_second(|| Some("x".to_owned()));
        // One event waits in the channel, and the next one for room.
        tokio::time::sleep(EVERY + PATIENCE + Duration::from_secs(1)).await;
        assert!(receiver.is_closed());
    }

    #[tokio::test(start_paused = true)]
    async fn events_come_each_second() {
        let Events(mut receiver) = Events::each_second(|| Some("x".to_owned()));
        let start = Instant::now();
        for _ in 0..4 {
            assert_eq!(receiver.recv().await.unwrap(), "data: x\n\n");
        }
        assert_eq!(start.elapsed(), 3 * EVERY);
    }
}
