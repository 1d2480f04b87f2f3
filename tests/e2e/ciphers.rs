//! Choosing the cipher for the data.

use crate::support::pipe::{Pipe, field};
use crate::support::socket::{assert_echoes, echo};

/// Asserts that a pipe carries data under the cipher `agreed` when the ends have these values of `--cipher`.
fn assert_agrees(initiator: &str, responder: &str, agreed: &str) {
    let pipe = Pipe::to(echo())
        .initiator_args(&["--cipher", initiator])
        .responder_args(&["--cipher", responder])
        .start();
    let mut client = pipe.connect();
    assert_echoes(&mut client, "some data");
    drop(client);
    for end in [&pipe.initiator, &pipe.responder] {
        assert_eq!(field(&end.await_line(&[" closed "]), "cipher"), agreed);
    }
}

#[test]
fn aegis_on_both_ends_carries_data() {
    assert_agrees("aegis256x4", "aegis256x4", "aegis256x4");
}

#[test]
fn aes_on_both_ends_carries_data() {
    assert_agrees("aes256gcm", "aes256gcm", "aes256gcm");
}

#[test]
fn chacha_on_both_ends_carries_data() {
    assert_agrees("chacha20poly1305", "chacha20poly1305", "chacha20poly1305");
}

#[test]
fn auto_takes_the_cipher_that_the_initiator_fixes() {
    assert_agrees("chacha20poly1305", "auto", "chacha20poly1305");
    assert_agrees("aes256gcm", "auto", "aes256gcm");
}

#[test]
fn auto_takes_the_cipher_that_the_responder_fixes() {
    assert_agrees("auto", "chacha20poly1305", "chacha20poly1305");
    assert_agrees("auto", "aes256gcm", "aes256gcm");
}

/// As the kernel tells it.
#[test]
fn auto_takes_the_fastest_cipher_that_the_processor_has_instructions_for() {
    let processor = std::fs::read_to_string("/proc/cpuinfo").expect("the kernel tells of its processors");
    let flags = processor.lines().find(|line| line.starts_with("flags") || line.starts_with("Features"));
    let flags: Vec<_> = flags.expect("it tells what they can do").split_whitespace().collect();
    let has = |all: &[&str]| all.iter().all(|flag| flags.contains(flag));
    let best = if has(&["aes", "pclmulqdq", "avx"]) || has(&["aes", "pmull"]) {
        "aegis256x4"
    } else if has(&["aes", "pclmulqdq"]) {
        "aes256gcm"
    } else {
        "chacha20poly1305"
    };
    assert_agrees("auto", "auto", best);
}

#[test]
fn ends_that_fix_different_ciphers_log_the_reason() {
    let pipe = Pipe::to(echo())
        .initiator_args(&["--cipher", "aes256gcm"])
        .responder_args(&["--cipher", "chacha20poly1305"])
        .start();
    pipe.initiator.assert_resets_a_client();
    pipe.initiator.await_line(&["failed", "no transport cipher in common", "aes256gcm only"]);
    pipe.responder.await_line(&["refused", "no transport cipher in common", "chacha20poly1305 only"]);
}
