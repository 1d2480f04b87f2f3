//! The side of the process that takes over.

use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use rustix::net::sockopt::socket_peercred;
use socket2::{Domain, SockAddr, Socket, Type};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;
use tracing::info;

use super::HandOverError;
use super::links::Predecessors;
use super::wire::{self, PATIENCE, Purpose, Received, Wanted};
use crate::addr::Source;
use crate::listen::{self, Bound, HandedOver, ListenError, Listener, Passed, SocketMode, SocketPermissions};

/// What the process that serves has handed over, as far as it was wanted; nothing, if there is none.
#[derive(Default)]
pub struct Handed {
    /// Sockets of pipes.
    pub pipes: Vec<HandedOver>,
    /// Sockets of the status.
    pub status: Vec<HandedOver>,
    /// The lock of the pid file.
    pub pid_file: Option<OwnedFd>,
    /// Who has handed it over.
    pub predecessor: Option<Predecessor>,
}

/// The process that serves, and goes on until it is relieved.
pub struct Predecessor {
    stream: UnixStream,
    pid: i32,
    path: PathBuf,
    /// Connections to those before it.
    older: Vec<UnixStream>,
}

/// Asks the process that serves at `path`, if there is one, for what is `wanted`.
///
/// # Errors
/// [`HandOverError`].
pub fn ask(path: &Path, wanted: &Wanted) -> Result<Handed, HandOverError> {
    let Some(mut conversation) = Conversation::start(path, &wanted.question())? else {
        return Ok(Handed::default());
    };
    let (mut handed, mut older) = (Handed::default(), Vec::new());
    let sources: Vec<_> = wanted.sources().collect();
    loop {
        // Without an answer, it is just ending.
        let Some(line) = conversation.hear()? else { return Ok(Handed::default()) };
        if line == wire::DONE {
            break;
        }
        if line == wire::DENIED {
            return Err(HandOverError::Denied { path: path.to_owned(), pid: conversation.pid });
        }
        if let Some(by) = line.strip_prefix(wire::BUSY) {
            return Err(HandOverError::Busy { path: path.to_owned(), by: by.to_owned() });
        }
        let descriptor = conversation.received.descriptor().ok_or_else(|| conversation.foreign())?;
        if line == wire::PID_FILE {
            handed.pid_file = Some(descriptor);
        } else if line == wire::PREDECESSOR {
            older.push(UnixStream::from(descriptor));
        } else {
            let (purpose, source, _) =
                sources.iter().find(|(_, _, known)| *known == line).ok_or_else(|| conversation.foreign())?;
            let socket = HandedOver::new(descriptor, (*source).clone())
                .map_err(HandOverError::refused(path, "use a socket of the process that serves"))?;
            match purpose {
                Purpose::Pipe => handed.pipes.push(socket),
                Purpose::Status => handed.status.push(socket),
            }
        }
    }
    let Conversation { stream, pid, path, .. } = conversation;
    handed.predecessor = Some(Predecessor { stream, pid, path: path.to_owned(), older });
    Ok(handed)
}

/// Whether a process serves at `path`, and answers.
///
/// # Errors
/// [`HandOverError`], when there is one that does not answer.
pub fn answers(path: &Path) -> Result<bool, HandOverError> {
    let question = format!("{}\n{}\n\n", wire::GREETING, wire::HELLO);
    let Some(mut conversation) = Conversation::start(path, &question)? else { return Ok(false) };
    match conversation.hear()? {
        Some(line) if line == wire::HERE => Ok(true),
        Some(_) => Err(conversation.foreign()),
        None => Ok(false),
    }
}

struct Conversation<'p> {
    path: &'p Path,
    stream: UnixStream,
    pid: i32,
    received: Received,
}

impl<'p> Conversation<'p> {
    fn start(path: &'p Path, question: &str) -> Result<Option<Self>, HandOverError> {
        match std::fs::symlink_metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(HandOverError::refused(path, "look at it")(error)),
            Ok(metadata) if !metadata.file_type().is_socket() => {
                return Err(HandOverError::NotASocket(path.to_owned()));
            }
            Ok(_) => {}
        }
        let connect = || {
            let socket = Socket::new(Domain::UNIX, Type::STREAM.cloexec(), None)?;
            // A process that hangs may have a queue that is full.
            socket.set_write_timeout(Some(PATIENCE))?;
            socket.set_read_timeout(Some(PATIENCE))?;
            socket.connect(&SockAddr::unix(path)?)?;
            io::Result::Ok(socket)
        };
        let socket = match connect() {
            // Such as a killed process leaves behind.
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => return Ok(None),
            connected => {
                connected.map_err(HandOverError::refused(path, "connect to the process that serves"))?
            }
        };
        let pid = socket_peercred(&socket).map_or(0, |credentials| credentials.pid.as_raw_pid());
        let mut conversation = Self { path, stream: socket.into(), pid, received: Received::default() };
        match conversation.stream.write_all(question.as_bytes()) {
            // It has closed already; what it has said before that counts.
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(conversation.silent_or(error)),
            _ => Ok(Some(conversation)),
        }
    }

    /// The next line. None, at the end.
    fn hear(&mut self) -> Result<Option<String>, HandOverError> {
        loop {
            if let Some(line) = self.received.line() {
                return Ok(Some(line));
            }
            if self.received.is_too_long() {
                return Err(self.foreign());
            }
            match self.received.read(&self.stream) {
                Ok(true) => {}
                Ok(false) => return Ok(None),
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(None),
                Err(error) => return Err(self.silent_or(error)),
            }
        }
    }

    fn silent_or(&self, error: io::Error) -> HandOverError {
        match error.kind() {
            io::ErrorKind::WouldBlock => HandOverError::Silent { path: self.path.to_owned(), pid: self.pid },
            _ => HandOverError::refused(self.path, "talk to the process that serves")(error),
        }
    }

    fn foreign(&self) -> HandOverError {
        HandOverError::Foreign { path: self.path.to_owned(), pid: self.pid }
    }
}

/// Where this process will be asked to hand over, under a name that nobody knows yet.
pub struct Place {
    bound: Bound,
    path: PathBuf,
}

/// The same, known to the runtime. What comes after it can fail only at the other process.
pub struct Ready {
    listener: Listener,
    path: PathBuf,
}

impl Place {
    /// Listens beside `path`, for the same user only.
    ///
    /// # Errors
    /// [`HandOverError`].
    pub fn listen(path: &Path) -> Result<Self, HandOverError> {
        let refused = HandOverError::refused(path, "listen beside it");
        // In the background, a relative path will lead elsewhere.
        let path = std::path::absolute(path).map_err(&refused)?;
        let beside = format!("{}.{}", path.display(), std::process::id());
        let source: Source = beside.parse().map_err(io::Error::other).map_err(&refused)?;
        let owner_only = SocketPermissions { mode: Some(SocketMode::OWNER), owner: None };
        let bound = listen::listen(&source, &owner_only, &mut Passed::default());
        let bound = bound.map_err(io::Error::other).map_err(&refused)?.swap_remove(0);
        Ok(Self { bound, path })
    }

    /// Makes it known to the runtime, within which this is to be called.
    ///
    /// # Errors
    /// [`ListenError`], when the runtime cannot take a socket.
    pub fn register(self) -> Result<Ready, ListenError> {
        Ok(Ready { listener: self.bound.into_listener()?, path: self.path })
    }
}

impl Ready {
    /// Takes the path, and the place of `predecessor`, if there is one: from here on this process serves.
    ///
    /// # Errors
    /// [`HandOverError`]. The process that serves goes on then.
    pub async fn take_over(self, predecessor: Option<Predecessor>) -> Result<Heir, HandOverError> {
        let Self { mut listener, path } = self;
        // First, since it may be refused.
        listener.rename(&path).map_err(HandOverError::refused(&path, "give its socket this name"))?;
        let predecessors = match predecessor {
            Some(predecessor) => predecessor.relieve().await?,
            None => Predecessors::default(),
        };
        Ok(Heir { listener, predecessors })
    }
}

/// What comes with the place of the process that serves.
pub struct Heir {
    /// Where it is asked to hand over.
    pub(super) listener: Listener,
    /// Those that let their connections finish.
    pub(super) predecessors: Predecessors,
}

impl Predecessor {
    async fn relieve(self) -> Result<Predecessors, HandOverError> {
        let Self { stream, pid, path, older } = self;
        let refused = HandOverError::refused(&path, "relieve the process that serves");
        stream.set_nonblocking(true).map_err(&refused)?;
        let mut stream = tokio::net::UnixStream::from_std(stream).map_err(&refused)?;
        let mut predecessors = Predecessors::new(older).map_err(&refused)?;
        let go = async {
            stream.write_all(format!("{}\n", wire::READY).as_bytes()).await?;
            let mut line = Vec::new();
            while !line.ends_with(b"\n") && stream.read_buf(&mut line).await? > 0 {}
            io::Result::Ok(line)
        };
        let said =
            timeout(PATIENCE, go).await.map_err(|_| HandOverError::Silent { path: path.clone(), pid })?;
        // One that is gone instead of an answer leaves all to us as well.
        let said = said.unwrap_or_default();
        let said = String::from_utf8_lossy(&said);
        let connections =
            said.trim_end().strip_prefix(wire::GO).and_then(|count| count.parse::<usize>().ok());
        info!(from = pid, connections, "took over: the other process lets its connections finish");
        predecessors.add(stream);
        Ok(predecessors)
    }
}
