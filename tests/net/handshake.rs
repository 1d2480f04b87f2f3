//! The handshake driver.

use spipe::proto::cipher::{AesSupport, Cipher, Ciphers};
use spipe::proto::handshake::{HandshakeError, Label, MESSAGE_1};
use spipe::proto::key::Key;
use spipe::pump::Inbox;
use spipe::tunnel::handshake::{self, TunnelError};
use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};
use tokio::time::{Duration, Instant};

use crate::support::{deadline, establish, key};

#[tokio::test]
async fn a_handshake_cut_into_eight_byte_pieces_succeeds() {
    let (near, far) = duplex(8);
    establish(near, far, Cipher::Aes256Gcm).await;
}

#[tokio::test]
async fn a_responder_sends_nothing_to_a_peer_with_another_key() {
    let (mut stranger, mut wire) = duplex(4096);
    let other = Key::from_bytes(&[43; 32]).unwrap();
    let label = Label::default();
    let initiate = handshake::initiate(
        &mut stranger,
        &other,
        &label,
        Ciphers::auto(AesSupport::GcmAndAegis),
        deadline(),
    );
    let keys = [key()];
    let respond = async {
        let result =
            handshake::respond(&mut wire, &keys, &label, Ciphers::auto(AesSupport::GcmAndAegis), deadline())
                .await;
        drop(wire);
        result
    };
    let (initiated, responded) = tokio::join!(initiate, respond);
    assert!(matches!(responded.err(), Some(TunnelError::Forged)));
    assert!(matches!(initiated.err(), Some(TunnelError::Incomplete { got: 0, .. })));
}

#[tokio::test]
async fn an_incomplete_message_1_is_distinguished_from_a_forged_one() {
    for length in [0, 1, MESSAGE_1 - 1] {
        let (mut stranger, mut wire) = duplex(4096);
        stranger.write_all(&vec![7; length]).await.unwrap();
        drop(stranger);
        let failure = handshake::respond(
            &mut wire,
            &[key()],
            &Label::default(),
            Ciphers::auto(AesSupport::GcmAndAegis),
            deadline(),
        )
        .await;
        assert!(
            matches!(failure.err(), Some(TunnelError::Incomplete { got, wanted: MESSAGE_1, .. }) if got == length),
            "{length}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_silent_peer_is_given_up_at_the_deadline() {
    let (_silent, mut wire) = duplex(4096);
    let start = Instant::now();
    let deadline = start + Duration::from_secs(5);
    let failure = handshake::respond(
        &mut wire,
        &[key()],
        &Label::default(),
        Ciphers::auto(AesSupport::GcmAndAegis),
        deadline,
    )
    .await;
    assert!(matches!(failure.err(), Some(TunnelError::Incomplete { got: 0, .. })));
    assert_eq!(start.elapsed().as_secs(), 5);
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_trickles_bytes_is_given_up_at_the_deadline_too() {
    let (mut slow, mut wire) = duplex(4096);
    let deadline = Instant::now() + Duration::from_secs(5);
    let trickle = async {
        while slow.write_all(&[7]).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    let respond = async {
        let result = handshake::respond(
            &mut wire,
            &[key()],
            &Label::default(),
            Ciphers::auto(AesSupport::GcmAndAegis),
            deadline,
        )
        .await;
        drop(wire);
        result
    };
    let ((), responded) = tokio::join!(trickle, respond);
    assert!(matches!(responded.err(), Some(TunnelError::Incomplete { got: 40..=60, .. })));
}

#[tokio::test]
async fn an_initiator_refuses_a_forged_message_2() {
    let (mut near, mut impostor) = duplex(4096);
    let (key, label) = (key(), Label::default());
    let initiate =
        handshake::initiate(&mut near, &key, &label, Ciphers::auto(AesSupport::GcmAndAegis), deadline());
    let answer = async {
        impostor.read_exact(&mut [0; MESSAGE_1]).await.unwrap();
        impostor.write_all(&[7; 2000]).await.unwrap();
    };
    let (initiated, ()) = tokio::join!(initiate, answer);
    assert!(matches!(initiated.err(), Some(TunnelError::Forged)));
}

#[tokio::test]
async fn both_ends_report_that_they_have_no_cipher_in_common() {
    let (mut near, mut far) = duplex(4096);
    let (keys, label) = ([key()], Label::default());
    let (aes, chacha) = (Ciphers::only(Cipher::Aes256Gcm), Ciphers::only(Cipher::ChaCha20Poly1305));
    let initiate = handshake::initiate(&mut near, &keys[0], &label, aes, deadline());
    let respond = handshake::respond(&mut far, &keys, &label, chacha, deadline());
    let (initiated, responded) = tokio::join!(initiate, respond);
    let no_common =
        |failure| matches!(failure, Some(TunnelError::Handshake(HandshakeError::NoCommonCipher(_))));
    assert!(no_common(initiated.err()));
    assert!(no_common(responded.err()));
}

#[tokio::test(start_paused = true)]
async fn a_replayed_message_1_is_answered_and_establishes_no_connection() {
    let (mut near, mut far) = duplex(4096);
    let (keys, label) = ([key()], Label::default());
    let mut message = vec![0; MESSAGE_1];
    let _ = tokio::join!(
        handshake::initiate(
            &mut near,
            &keys[0],
            &label,
            Ciphers::auto(AesSupport::GcmAndAegis),
            Instant::now()
        ),
        far.read_exact(&mut message),
    );

    let (mut attacker, mut wire) = duplex(4096);
    attacker.write_all(&message).await.unwrap();
    let deadline = Instant::now() + Duration::from_secs(5);
    let (established, _) =
        handshake::respond(&mut wire, &keys, &label, Ciphers::auto(AesSupport::GcmAndAegis), deadline)
            .await
            .expect("the frame is authentic");
    // The recording ends here: without the ephemeral secrets the attacker cannot seal Open, only send other bytes.
    attacker.write_all(&[0, 40]).await.unwrap();
    attacker.write_all(&[7; 40]).await.unwrap();
    let opened = handshake::await_open(&mut wire, established.opener, Inbox::new(), deadline).await;
    assert!(matches!(opened.err(), Some(TunnelError::NotOpened(_))));
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_proves_the_key_and_sends_no_open_is_given_up_at_the_deadline() {
    let (mut near, mut far) = duplex(4096);
    let (keys, label) = ([key()], Label::default());
    let deadline = Instant::now() + Duration::from_secs(5);
    let initiate =
        handshake::initiate(&mut near, &keys[0], &label, Ciphers::auto(AesSupport::GcmAndAegis), deadline);
    let respond = async {
        let (established, _) =
            handshake::respond(&mut far, &keys, &label, Ciphers::auto(AesSupport::GcmAndAegis), deadline)
                .await
                .expect("both ends hold the key");
        handshake::await_open(&mut far, established.opener, Inbox::new(), deadline).await
    };
    let (_initiated, opened) = tokio::join!(initiate, respond);
    assert!(matches!(opened.err(), Some(TunnelError::NotOpenedInTime)));
}
