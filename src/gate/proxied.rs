//! Connections that a proxy brings (`--accept-proxy`): first it says who is behind it.

use std::io;
use std::time::Duration;

use thiserror::Error;
use tokio::io::AsyncReadExt;
use tokio::time::timeout;

use crate::proxy_header::{self, Malformed, Told};
use crate::stream::Stream;

/// How long a header may take. Proxies send it at once; without a limit of its own, one that does not would be taken for a silent
/// client.
const TIME: Duration = Duration::from_secs(5);

/// Why there is no header.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum HeaderError {
    /// The connection was closed without a byte, as health checks do.
    #[error("it closed the connection without a PROXY header")]
    Nothing,
    /// It took too long.
    #[error("its PROXY header has not come in {} s; does the proxy send one?", TIME.as_secs())]
    TimedOut,
    /// The connection ended in the middle.
    #[error("its PROXY header stopped in the middle")]
    CutShort,
    /// The connection broke.
    #[error("it broke before its PROXY header had come: {0}")]
    Broken(#[source] io::Error),
    /// It is none.
    #[error("{0}; does the proxy send one?")]
    Malformed(#[from] Malformed),
}

/// Reads the header at the beginning of `stream`, and not a byte behind it.
///
/// # Errors
/// [`HeaderError`].
pub async fn read_header(stream: &mut Stream) -> Result<Told, HeaderError> {
    let reading = async {
        let (mut reader, _) = stream.split();
        let mut header = Vec::new();
        loop {
            let missing = proxy_header::missing(&header)?;
            if missing == 0 {
                return Ok(proxy_header::parse(&header)?);
            }
            // A few bytes at a time: what is behind the header is not ours.
            let end = header.len();
            header.resize(end + missing, 0);
            match reader.read(&mut header[end..]).await {
                Ok(0) | Err(_) if end == 0 => return Err(HeaderError::Nothing),
                Ok(0) => return Err(HeaderError::CutShort),
                Ok(count) => header.truncate(end + count),
                Err(error) => return Err(HeaderError::Broken(error)),
            }
        }
    };
    timeout(TIME, reading).await.unwrap_or(Err(HeaderError::TimedOut))
}
