//! Two ends of a pipe over memory.

use std::time::Duration;

use spipe::proto::cipher::{Cipher, Ciphers};
use spipe::proto::connection_info::ConnectionInfo;
use spipe::proto::frame::{FRAME_MAX, Opener, Sealer};
use spipe::proto::handshake::Label;
use spipe::proto::key::Key;
use spipe::pump::{Inbox, OpenPump, SealPump};
use spipe::tunnel::handshake;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;

/// The limit that turns a hang into a failure.
pub(crate) fn deadline() -> Instant {
    Instant::now() + Duration::from_secs(60)
}

pub(crate) fn key() -> Key {
    Key::from_bytes(&[42; 32]).expect("32 bytes are a key")
}

/// The state of an established end.
pub(crate) struct End {
    pub(crate) sealer: Sealer,
    pub(crate) opener: Opener,
    pub(crate) inbox: Inbox,
}

impl End {
    pub(crate) fn pumps(self) -> (SealPump<Sealer>, OpenPump<Opener>) {
        (SealPump::new(self.sealer), OpenPump::new(self.opener, self.inbox))
    }
}

/// Performs the handshake over a wire, including *Open*. Returns the initiator's end and the responder's end.
pub(crate) async fn establish(
    mut near: impl AsyncRead + AsyncWrite + Unpin,
    mut far: impl AsyncRead + AsyncWrite + Unpin,
    cipher: Cipher,
) -> (End, End) {
    let (label, ciphers, keys) = (Label::default(), Ciphers::only(cipher), [key()]);
    let initiate = async {
        let established = handshake::initiate(&mut near, &keys[0], &label, ciphers, deadline())
            .await
            .expect("both ends hold the key");
        let mut open = vec![0; FRAME_MAX];
        let (sealer, length) = established.sealer.open(&ConnectionInfo::default(), &mut open);
        tokio::io::AsyncWriteExt::write_all(&mut near, &open[..length])
            .await
            .expect("the responder reads Open");
        End { sealer, opener: established.opener, inbox: Inbox::new() }
    };
    let respond = async {
        let (established, _) = handshake::respond(&mut far, &keys, &label, ciphers, deadline())
            .await
            .expect("both ends hold the key");
        let (opener, _, inbox) =
            handshake::await_open(&mut far, established.opener, Inbox::new(), deadline())
                .await
                .expect("Open arrives");
        End { sealer: established.sealer, opener, inbox }
    };
    tokio::join!(initiate, respond)
}
