//! The service behind the pipe: it does what a connection's first bytes ask for.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

/// More than the clients ever keep busy: some pipes connect here before their client has proved who it is.
const THREADS: usize = 64;
/// Of reads and writes in bulk.
pub(crate) const CHUNK: usize = 256 << 10;
/// How long any one step may take before it counts as failed.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);

/// What a client asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Request {
    /// A byte back, and no more.
    Answer,
    /// A byte back, and to keep the connection until [`Service::release`].
    Hold,
    /// A byte back, then every message of so many bytes back.
    Echo(usize),
    /// A byte back; then, at the client's go (one byte), to take the one and to send the other number of bytes. All taken
    /// is confirmed by a byte.
    Bulk { take: usize, send: usize },
}

impl Request {
    /// [`Request::Answer`] is a single byte, for the work that carries one.
    pub(super) fn to_bytes(self) -> Vec<u8> {
        let number = |number: usize| u64::try_from(number).expect("a length fits").to_be_bytes();
        match self {
            Self::Answer => vec![b'a'],
            Self::Hold => vec![b'h'],
            Self::Echo(size) => [&b"e"[..], &number(size)].concat(),
            Self::Bulk { take, send } => [&b"b"[..], &number(take), &number(send)].concat(),
        }
    }

    fn read(stream: &mut TcpStream) -> io::Result<Self> {
        let mut kind = [0];
        stream.read_exact(&mut kind)?;
        let mut number = || {
            let mut number = [0; 8];
            stream.read_exact(&mut number)?;
            usize::try_from(u64::from_be_bytes(number)).map_err(io::Error::other)
        };
        match kind {
            [b'a'] => Ok(Self::Answer),
            [b'h'] => Ok(Self::Hold),
            [b'e'] => Ok(Self::Echo(number()?)),
            [b'b'] => Ok(Self::Bulk { take: number()?, send: number()? }),
            _ => Err(io::ErrorKind::InvalidData.into()),
        }
    }
}

/// The service, for as long as the benchmark runs.
pub(crate) struct Service {
    pub(crate) address: SocketAddr,
    held: Arc<Mutex<Vec<TcpStream>>>,
}

impl Service {
    pub(crate) fn start() -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let address = listener.local_addr()?;
        let held = Arc::new(Mutex::new(Vec::new()));
        for _ in 0..THREADS {
            let (listener, held) = (listener.try_clone()?, Arc::clone(&held));
            thread::spawn(move || {
                while let Ok((stream, _)) = listener.accept() {
                    // What goes wrong here shows at the client, which counts it.
                    let _ = serve(stream, &held);
                }
            });
        }
        Ok(Self { address, held })
    }

    /// Closes the connections that were to be held.
    pub(crate) fn release(&self) {
        self.held.lock().expect("no thread panics with it").clear();
    }
}

/// Gives a connection `TCP_NODELAY` and patience that ends, at either side of the pipe.
pub(super) fn prepare(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))
}

fn serve(mut stream: TcpStream, held: &Mutex<Vec<TcpStream>>) -> io::Result<()> {
    prepare(&stream)?;
    let request = Request::read(&mut stream)?;
    stream.write_all(b"!")?;
    match request {
        Request::Answer => {
            // The client closes first.
            stream.read(&mut [0]).map(drop)?;
        }
        Request::Hold => held.lock().expect("no thread panics with it").push(stream),
        Request::Echo(size) => {
            let mut message = vec![0; size];
            loop {
                stream.read_exact(&mut message)?;
                stream.write_all(&message)?;
            }
        }
        Request::Bulk { take, send } => {
            stream.read_exact(&mut [0])?;
            exchange(&stream, send, take)?;
            stream.write_all(b".")?;
            stream.read(&mut [0]).map(drop)?;
        }
    }
    Ok(())
}

/// Sends and takes so many bytes, both at once.
pub(super) fn exchange(stream: &TcpStream, send: usize, take: usize) -> io::Result<()> {
    thread::scope(|scope| {
        let sending = (send > 0).then(|| scope.spawn(move || give(stream, send)));
        swallow(stream, take)?;
        sending.map_or(Ok(()), |sending| sending.join().expect("it does not panic"))
    })
}

fn give(mut stream: &TcpStream, mut left: usize) -> io::Result<()> {
    let chunk = vec![7; CHUNK.min(left)];
    while left > 0 {
        left -= stream.write(&chunk[..CHUNK.min(left)])?;
    }
    Ok(())
}

fn swallow(mut stream: &TcpStream, mut left: usize) -> io::Result<()> {
    let mut chunk = vec![0; CHUNK.min(left)];
    while left > 0 {
        let room = CHUNK.min(left);
        match stream.read(&mut chunk[..room])? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            count => left -= count,
        }
    }
    Ok(())
}
