//! The side of the process that serves, and is asked to hand over.

use std::collections::HashSet;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use rustix::process::geteuid;
use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::links::{Predecessors, Successor};
use super::predecessor::Heir;
use super::wire::{self, PATIENCE, Purpose, QUESTION_MAX, Received};
use crate::addr::Source;
use crate::listen::{Handle, Listener, Listeners, ListeningSocket};
use crate::stream::{Keepalive, Stream};

/// What another process wants.
pub enum Request {
    /// To take over: it is to get what is among these lines.
    Take {
        /// Its process id.
        by: i32,
        /// The lines of what it wants.
        wanted: HashSet<String>,
        /// Where the answer goes.
        answer: oneshot::Sender<Result<Offer, Busy>>,
    },
    /// To leave things as they are: it has ended, or closed the connection.
    GiveUp,
    /// To serve from now on.
    Serve(Successor),
}

/// What is handed over, each with its line.
pub struct Offer {
    sockets: Vec<(String, Arc<ListeningSocket>)>,
    others: Vec<(&'static str, OwnedFd)>,
}

/// Another process is taking over already.
pub struct Busy(i32);

/// Who comes after this process, and who came before it.
#[derive(Default)]
pub struct Succession {
    door: Option<Door>,
    status: Vec<Handle>,
    elsewhere: CancellationToken,
    pid_file: Option<OwnedFd>,
    predecessors: Predecessors,
    candidate: Option<Candidate>,
}

/// A process that has our sockets, and does not serve yet.
struct Candidate {
    pid: i32,
    /// Whose sockets it has.
    sources: HashSet<Source>,
}

struct Door {
    requests: mpsc::Receiver<Request>,
    attending: JoinSet<()>,
}

impl Succession {
    /// Waits for a process that is to take over, with the `status` sockets and the lock of the pid file. When it serves the status,
    /// `elsewhere` is said.
    pub fn new(
        Heir { listener, predecessors }: Heir,
        status: Vec<Handle>,
        elsewhere: CancellationToken,
        pid_file: Option<OwnedFd>,
    ) -> Self {
        let (asked, requests) = mpsc::channel(1);
        let mut attending = JoinSet::new();
        attending.spawn(attend(listener, asked));
        let door = Some(Door { requests, attending });
        Self { door, status, elsewhere, pid_file, predecessors, candidate: None }
    }

    /// What another process wants next; nothing ever, if this one does not hand over.
    pub async fn next(&mut self) -> Request {
        match &mut self.door {
            Some(door) => match door.requests.recv().await {
                Some(request) => request,
                None => std::future::pending().await,
            },
            None => std::future::pending().await,
        }
    }

    /// Answers process `by`, which wants what has the lines `wanted`. `pipes` are the sockets of the pipes.
    ///
    /// # Errors
    /// [`Busy`].
    pub fn offer<'h>(
        &mut self,
        by: i32,
        wanted: &HashSet<String>,
        pipes: impl Iterator<Item = &'h Handle>,
    ) -> Result<Offer, Busy> {
        if let Some(candidate) = &self.candidate {
            return Err(Busy(candidate.pid));
        }
        let (mut sockets, mut sources) = (Vec::new(), HashSet::new());
        let pipes = pipes.map(|handle| (Purpose::Pipe, handle));
        let status = self.status.iter().map(|handle| (Purpose::Status, handle));
        for (purpose, handle) in pipes.chain(status) {
            let line = purpose.line(handle.source());
            if wanted.contains(&line)
                && let Some(socket) = handle.socket()
            {
                sockets.push((line, socket));
                sources.insert(handle.source().clone());
            }
        }
        let pid_file = self.pid_file.as_ref().filter(|_| wanted.contains(wire::PID_FILE));
        let pid_file = pid_file.and_then(|lock| lock.try_clone().ok()).map(|lock| (wire::PID_FILE, lock));
        let older = self.predecessors.descriptors().into_iter().map(|link| (wire::PREDECESSOR, link));
        let others = pid_file.into_iter().chain(older).collect();
        self.candidate = Some(Candidate { pid: by, sources });
        Ok(Offer { sockets, others })
    }

    /// The processes that let their connections finish.
    pub fn predecessors(&mut self) -> &mut Predecessors {
        &mut self.predecessors
    }

    /// The process that was taking over does not.
    pub fn forget_candidate(&mut self) {
        if let Some(Candidate { pid, .. }) = self.candidate.take() {
            warn!(pid, "a process that was taking over has ended before it could serve: nothing has changed");
        }
    }

    /// Closes the door. Gives the sources whose sockets another process has by now, and those that came before us. Their sockets'
    /// files are not ours to remove any more: a process that was taking over may serve without us.
    pub async fn end(self) -> (HashSet<Source>, Predecessors) {
        if let Some(mut door) = self.door {
            door.attending.shutdown().await;
        }
        let sources = self.candidate.map(|candidate| candidate.sources).unwrap_or_default();
        if !sources.is_empty() {
            self.elsewhere.cancel();
        }
        (sources, self.predecessors)
    }
}

/// Talks to whoever comes, each on its own.
async fn attend(listener: Listener, asked: mpsc::Sender<Request>) {
    let mut listeners = Listeners::new(vec![listener], Keepalive::default());
    let mut conversations = JoinSet::new();
    loop {
        tokio::select! {
            arrival = listeners.accept(|| {}) => if let Stream::Unix(stream) = arrival.stream {
                let asked = asked.clone();
                conversations.spawn(async move {
                    if let Err(error) = converse(stream, asked).await {
                        debug!(%error, "a process that asked for a hand-over is gone");
                    }
                });
            },
            Some(_ended) = conversations.join_next() => {}
        }
    }
}

async fn converse(stream: UnixStream, asked: mpsc::Sender<Request>) -> io::Result<()> {
    let mut received = Received::default();
    let question = timeout(PATIENCE, question(&stream, &mut received)).await??;
    let mut lines = question.into_iter();
    match (lines.next().as_deref(), lines.next().as_deref()) {
        (Some(wire::GREETING), Some(wire::HELLO)) => return send(&stream, wire::HERE, None).await,
        (Some(wire::GREETING), Some(wire::TAKE)) => {}
        _ => return send(&stream, wire::WHAT, None).await,
    }
    let peer = stream.peer_cred()?;
    let by = peer.pid().unwrap_or_default();
    // The mode of the file says the same, unless somebody has changed it.
    if peer.uid() != 0 && peer.uid() != geteuid().as_raw() {
        warn!(pid = by, uid = peer.uid(), "a process of another user was not handed over to");
        return send(&stream, wire::DENIED, None).await;
    }
    let (answer, answered) = oneshot::channel();
    let gone = || io::Error::from(io::ErrorKind::BrokenPipe);
    asked.send(Request::Take { by, wanted: lines.collect(), answer }).await.map_err(|_| gone())?;
    let Ok(answer) = answered.await else { return Ok(()) };
    let offer = match answer {
        Ok(offer) => offer,
        Err(Busy(pid)) => return send(&stream, &format!("{}{pid}", wire::BUSY), None).await,
    };
    let request = match become_ready(&stream, &mut received, offer).await {
        Ok(true) => Request::Serve(Successor::new(stream, by)),
        Ok(false) | Err(_) => Request::GiveUp,
    };
    asked.send(request).await.map_err(|_| gone())
}

/// Hands `offer` over, and waits until the other process is ready. False, if it gives up.
async fn become_ready(stream: &UnixStream, received: &mut Received, offer: Offer) -> io::Result<bool> {
    for (line, socket) in &offer.sockets {
        send(stream, line, Some(socket.as_fd())).await?;
    }
    for (line, descriptor) in &offer.others {
        send(stream, line, Some(descriptor.as_fd())).await?;
    }
    drop(offer);
    send(stream, wire::DONE, None).await?;
    let Some(line) = line(stream, received).await? else { return Ok(false) };
    // One that could not wait for us any longer may have ended behind that.
    Ok(line == wire::READY && !wire::has_ended(stream))
}

/// All lines up to an empty one.
async fn question(stream: &UnixStream, received: &mut Received) -> io::Result<Vec<String>> {
    let (mut lines, mut length) = (Vec::new(), 0);
    while let Some(line) = line(stream, received).await? {
        length += line.len();
        if line.is_empty() || length > QUESTION_MAX {
            break;
        }
        lines.push(line);
    }
    Ok(lines)
}

/// The next line. None, at the end.
async fn line(stream: &UnixStream, received: &mut Received) -> io::Result<Option<String>> {
    loop {
        if let Some(line) = received.line() {
            return Ok(Some(line));
        }
        if received.is_too_long() || !stream.async_io(Interest::READABLE, || received.read(stream)).await? {
            return Ok(None);
        }
    }
}

async fn send(
    stream: &UnixStream,
    line: &str,
    descriptor: Option<std::os::fd::BorrowedFd<'_>>,
) -> io::Result<()> {
    stream.async_io(Interest::WRITABLE, || wire::send(stream, line, descriptor)).await
}
