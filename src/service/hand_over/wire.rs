//! What two processes say to each other: lines, each with at most one descriptor.

use std::collections::VecDeque;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recv, recvmsg, sendmsg,
};

use crate::addr::Source;

/// How long the other process may take for an answer.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);

/// The first line of each question.
pub(super) const GREETING: &str = "spipe hand-over 1";
/// The second line, for who only wants to know whether there is an answer.
pub(super) const HELLO: &str = "hello";
/// The answer to that.
pub(super) const HERE: &str = "here";
/// The second line, for who wants to take over.
pub(super) const TAKE: &str = "take";
/// One of the lines that follow: the lock of the pid file is wanted. In the answer, it comes with the line.
pub(super) const PID_FILE: &str = "pid-file";
/// In the answer, with a connection to a process that lets its connections finish.
pub(super) const PREDECESSOR: &str = "predecessor";
/// The last line of an answer.
pub(super) const DONE: &str = "done";
/// Instead of an answer, with the process that is taking over.
pub(super) const BUSY: &str = "busy ";
/// Instead of an answer.
pub(super) const DENIED: &str = "denied";
/// Instead of an answer to a question in other words.
pub(super) const WHAT: &str = "what";
/// Who takes over can do so.
pub(super) const READY: &str = "ready";
/// It is to, from now on.
pub(super) const GO: &str = "go ";

/// More than the sources of any configuration take.
pub(super) const QUESTION_MAX: usize = 4 << 20;
/// More than any line takes.
const LINE_MAX: usize = 4096;

/// What a socket is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    Pipe,
    Status,
}

impl Purpose {
    /// The line about a socket for `source`. Sources are compared as they were written, and a path may have more than one line.
    pub(super) fn line(self, source: &Source) -> String {
        let purpose = match self {
            Self::Pipe => "pipe",
            Self::Status => "status",
        };
        format!("{purpose} {}", source.to_string().replace('\\', "\\\\").replace('\n', "\\n"))
    }
}

/// What a process that takes over has a use for.
#[derive(Default)]
pub struct Wanted {
    /// The sources of its pipes.
    pub pipes: Vec<Source>,
    /// Where it serves the status.
    pub status: Vec<Source>,
    /// Whether it has a pid file.
    pub pid_file: bool,
}

impl Wanted {
    /// Each source, with its line.
    pub(super) fn sources(&self) -> impl Iterator<Item = (Purpose, &Source, String)> {
        let pipes = self.pipes.iter().map(|source| (Purpose::Pipe, source));
        let status = self.status.iter().map(|source| (Purpose::Status, source));
        pipes.chain(status).map(|(purpose, source)| (purpose, source, purpose.line(source)))
    }

    /// The question. An empty line ends it.
    pub(super) fn question(&self) -> String {
        let sources = self.sources().map(|(_, _, line)| line);
        let pid_file = self.pid_file.then(|| PID_FILE.to_owned());
        let lines: Vec<_> =
            [GREETING.to_owned(), TAKE.to_owned()].into_iter().chain(sources).chain(pid_file).collect();
        lines.join("\n") + "\n\n"
    }
}

/// Sends `line`, perhaps with a descriptor.
pub(super) fn send(stream: impl AsFd, line: &str, descriptor: Option<BorrowedFd<'_>>) -> io::Result<()> {
    let text = format!("{line}\n");
    let descriptor = descriptor.as_slice();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut beside = SendAncillaryBuffer::new(&mut space);
    if !descriptor.is_empty() {
        beside.push(SendAncillaryMessage::ScmRights(descriptor));
    }
    let sent = sendmsg(stream, &[IoSlice::new(text.as_bytes())], &mut beside, SendFlags::NOSIGNAL)?;
    // The kernel takes so little as a whole.
    if sent == text.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
}

/// Lines and descriptors as they come.
#[derive(Default)]
pub(super) struct Received {
    bytes: Vec<u8>,
    descriptors: VecDeque<OwnedFd>,
}

/// Whether nothing more comes from the other process.
pub(super) fn has_ended(stream: impl AsFd) -> bool {
    let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
    !matches!(recv(stream, &mut [0], flags), Ok((1.., _)) | Err(Errno::WOULDBLOCK))
}

impl Received {
    /// Reads once. Gives whether there may be more.
    pub(super) fn read(&mut self, stream: impl AsFd) -> io::Result<bool> {
        let mut bytes = [0; LINE_MAX];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
        let mut beside = RecvAncillaryBuffer::new(&mut space);
        let message =
            recvmsg(stream, &mut [IoSliceMut::new(&mut bytes)], &mut beside, RecvFlags::CMSG_CLOEXEC)?;
        for message in beside.drain() {
            if let RecvAncillaryMessage::ScmRights(descriptors) = message {
                self.descriptors.extend(descriptors);
            }
        }
        self.bytes.extend_from_slice(&bytes[..message.bytes]);
        Ok(message.bytes > 0)
    }

    /// The next line that is whole.
    pub(super) fn line(&mut self) -> Option<String> {
        let end = self.bytes.iter().position(|byte| *byte == b'\n')?;
        let line: Vec<_> = self.bytes.drain(..=end).collect();
        Some(String::from_utf8_lossy(&line[..end]).into_owned())
    }

    /// The descriptor that came with a line. They come in the order of their lines.
    pub(super) fn descriptor(&mut self) -> Option<OwnedFd> {
        self.descriptors.pop_front()
    }

    /// Whether there is so much without an end of the line that it is none.
    pub(super) fn is_too_long(&self) -> bool {
        self.bytes.len() > LINE_MAX
    }
}
