//! `spipe echo`: a service that shows what it sees, for trying a set-up.

use std::io::{self, Write as _};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::Error;
use crate::addr::Source;
use crate::gate::read_header;
use crate::listen::{self, Arrival, Listeners, Passed, SocketPermissions};
use crate::service::runtime::{self, Threads};
use crate::stream::Keepalive;

/// Bytes of what a client says that are shown in one line.
const LINE: usize = 64;

/// How long a client that does not read is waited for.
const PATIENCE: Duration = Duration::from_secs(60);

/// Serves at `source` until it is killed, or nobody reads its output.
///
/// # Errors
/// [`enum@Error`], when it cannot listen there, or print.
pub(super) fn serve(source: &Source, accept_proxy: bool) -> Result<(), Error> {
    let bound = listen::listen(source, &SocketPermissions::default(), &mut Passed::default())?;
    let runtime =
        runtime::build(Threads::One).map_err(|source| Error::System { doing: "start a runtime", source })?;
    runtime.block_on(async {
        let listeners: Result<Vec<_>, _> = bound.into_iter().map(listen::Bound::into_listener).collect();
        let listeners = listeners?;
        for listener in &listeners {
            print(&format!("listening at {}", listener.local()))?;
        }
        let mut listeners = Listeners::new(listeners, Keepalive::default());
        // One that cannot print cannot go on, and neither can the others.
        let (failed, mut failure) = tokio::sync::mpsc::channel(1);
        let failed = Arc::new(failed);
        loop {
            let arrival = tokio::select! {
                arrival = listeners.accept(|| {}) => arrival,
                Some(error) = failure.recv() => return Err(error),
            };
            let failed = Arc::clone(&failed);
            tokio::spawn(async move {
                if let Err(error) = show(arrival, accept_proxy).await {
                    // If another one was first, that is enough.
                    let _ = failed.try_send(error);
                }
            });
        }
    })
}

/// Shows one connection from its beginning to its end.
async fn show(Arrival { mut stream, remote }: Arrival, accept_proxy: bool) -> Result<(), Error> {
    print(&format!("{remote} connected"))?;
    if accept_proxy {
        match read_header(&mut stream).await {
            Ok(told) => {
                for line in told.to_string().lines() {
                    print(&format!("{remote} header: {line}"))?;
                }
            }
            Err(error) => return print(&format!("{remote} closed: {error}")),
        }
    }
    let mut bytes = vec![0; 16 * 1024];
    let ending = loop {
        let (mut reader, mut writer) = stream.split();
        match reader.read(&mut bytes).await {
            Ok(0) => {
                let _ = writer.shutdown().await;
                break "ended".to_owned();
            }
            Ok(count) => {
                for line in bytes[..count].chunks(LINE) {
                    print(&format!("{remote} says: {}", line.escape_ascii()))?;
                }
                let written = tokio::time::timeout(PATIENCE, writer.write_all(&bytes[..count])).await;
                match written {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => break format!("broke: {error}"),
                    Err(_) => break "closed: it does not read".to_owned(),
                }
            }
            Err(error) => break format!("broke: {error}"),
        }
    };
    print(&format!("{remote} {ending}"))
}

/// One line to standard output. It blocks: who reads it sees what comes, in order.
fn print(line: &str) -> Result<(), Error> {
    writeln!(io::stdout(), "{line}")
        .map_err(|source| Error::System { doing: "write to standard output", source })
}
