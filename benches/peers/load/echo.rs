//! A service that returns all that it gets, on more connections than [`Service`](super::service::Service) has threads.

use std::io;
use std::net::{IpAddr, SocketAddr};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::runtime::{Builder, Runtime};

/// More than ever arrive at once: what does not fit waits a second for its SYN to be sent again.
const BACKLOG: u32 = 4096;
/// What is read at a time.
const CHUNK: usize = 16 << 10;

/// The service. Its connections end with it.
pub(crate) struct Echo {
    pub(crate) address: SocketAddr,
    _runtime: Runtime,
}

impl Echo {
    /// Listens on a port of its own, in the network namespace of the thread that calls.
    pub(crate) fn start(address: IpAddr) -> io::Result<Self> {
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_io().build()?;
        let listener = runtime.block_on(async {
            let socket = TcpSocket::new_v4()?;
            socket.bind((address, 0).into())?;
            socket.listen(BACKLOG)
        })?;
        let address = listener.local_addr()?;
        runtime.spawn(serve(listener));
        Ok(Self { address, _runtime: runtime })
    }
}

async fn serve(listener: TcpListener) {
    while let Ok((stream, _)) = listener.accept().await {
        // What goes wrong here shows at the client.
        tokio::spawn(echo(stream));
    }
}

async fn echo(mut stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut chunk = vec![0; CHUNK];
    loop {
        match stream.read(&mut chunk).await? {
            0 => return Ok(()),
            count => stream.write_all(&chunk[..count]).await?,
        }
    }
}
