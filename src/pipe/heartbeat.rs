//! Signs of life from the accept loops.
//!
//! A process that runs need not serve: a loop that is stuck, or that a panic has ended, accepts no connection. So the loops
//! themselves are asked, and each answers from within its own task.

use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::{mpsc, oneshot};

/// Asks loops whether they still turn.
#[derive(Default)]
pub struct Heartbeat {
    loops: Mutex<Vec<mpsc::Sender<Question>>>,
}

/// Answered by being used up.
type Question = oneshot::Sender<()>;

impl Heartbeat {
    /// Does `work`, and answers for it as long as it goes on.
    ///
    /// Work that comes to its end is no longer asked. Work that is dropped before, by a panic for example, counts as stuck.
    pub async fn beside<T>(&self, work: impl Future<Output = T>) -> T {
        // More than one question is there only when several ask.
        let (asker, mut questions) = mpsc::channel(1);
        self.lock().push(asker.clone());
        let answer = async {
            while let Some(question) = questions.recv().await {
                let _gone_meanwhile = question.send(());
            }
            // Not reached: `asker` is still here.
            std::future::pending().await
        };
        let result = tokio::select! {
            // The work first, so that an answer says that its turn was not the one that got stuck.
            biased;
            result = work => result,
            result = answer => result,
        };
        self.lock().retain(|other| !other.same_channel(&asker));
        result
    }

    /// Waits until every loop has answered: for ever, if one never does.
    pub async fn answers(&self) {
        let loops = self.lock().clone();
        for asker in loops {
            let (question, answer) = oneshot::channel();
            let asked = asker.send(question).await.is_ok() && answer.await.is_ok();
            // A loop that has ended meanwhile gives no answer, and need not; one that is still on the list must.
            if !asked && self.lock().iter().any(|other| other.same_channel(&asker)) {
                std::future::pending::<()>().await;
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<mpsc::Sender<Question>>> {
        // A panic elsewhere leaves the list whole: every change to it is one call.
        self.loops.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    /// Longer than anything here takes; the clock is paused, so the test does not wait for it.
    const LONG: Duration = Duration::from_secs(3600);

    async fn answers(heartbeat: &Heartbeat) -> bool {
        timeout(LONG, heartbeat.answers()).await.is_ok()
    }

    /// Puts `work` into a task of its own, under `heartbeat`.
    async fn start<T: Send + 'static>(
        heartbeat: &Arc<Heartbeat>,
        work: impl Future<Output = T> + Send + 'static,
    ) -> tokio::task::JoinHandle<T> {
        let heartbeat = Arc::clone(heartbeat);
        let task = tokio::spawn(async move { heartbeat.beside(work).await });
        tokio::task::yield_now().await;
        task
    }

    #[tokio::test(start_paused = true)]
    async fn a_loop_that_waits_answers_each_time() {
        let heartbeat = Arc::default();
        let _loop = start(&heartbeat, std::future::pending::<()>()).await;
        for _ in 0..3 {
            assert!(answers(&heartbeat).await);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn with_no_loop_there_is_no_answer_to_wait_for() {
        assert!(answers(&Heartbeat::default()).await);
    }

    #[tokio::test(start_paused = true)]
    async fn one_stuck_loop_among_others_is_enough_for_silence() {
        let heartbeat = Arc::default();
        let _good = start(&heartbeat, std::future::pending::<()>()).await;
        // Entered, and never polled again: what a loop that blocks its thread looks like from outside.
        let mut stuck = Box::pin(heartbeat.beside(std::future::pending::<()>()));
        assert!(
            std::future::poll_fn(|context| std::task::Poll::Ready(stuck.as_mut().poll(context).is_pending()))
                .await
        );
        assert!(!answers(&heartbeat).await);
    }

    #[tokio::test(start_paused = true)]
    async fn a_loop_that_died_of_a_panic_does_not_answer() {
        let heartbeat = Arc::default();
        let task = start(&heartbeat, async { panic!("on purpose") }).await;
        assert!(task.await.is_err());
        assert!(!answers(&heartbeat).await);
    }

    #[tokio::test(start_paused = true)]
    async fn a_loop_that_has_ended_is_not_waited_for() {
        let heartbeat = Arc::default();
        let task = start(&heartbeat, async { 7 }).await;
        assert_eq!(task.await.unwrap(), 7);
        assert!(answers(&heartbeat).await);
    }
}
