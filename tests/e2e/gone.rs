//! A client or a peer that is gone before its connection is established: nothing is kept for it.

use std::fmt::Display;

use crate::support::pipe::{End, Key};
use crate::support::socket::{BlackHole, Service, assert_reset, reset};

/// An option for a handshake that never times out while a test runs, so that only being gone can end it.
const PATIENT: [&str; 2] = ["-o", "600"];

/// An initiator with one place.
fn initiator_to(target: impl Display) -> End {
    End::initiator(&Key::new(), target).args(&PATIENT).args(&["-n", "1"]).start()
}

#[test]
fn a_client_that_is_reset_while_its_responder_is_dialed_frees_its_place() {
    let initiator = initiator_to(BlackHole::start().address());
    for _ in 0..3 {
        reset(initiator.connect());
        initiator.await_line(&["failed", "the other side went away before the connection was established"]);
    }
}

#[test]
fn a_client_that_is_reset_during_the_handshake_leaves_no_connection_to_the_responder() {
    let mute = Service::start();
    let initiator = initiator_to(mute.address());
    let client = initiator.connect();
    let mut wire = mute.accept();
    reset(client);
    // Behind message 1.
    assert_reset(&mut wire);
    // The only place is free.
    let _next = initiator.connect();
    mute.accept();
}
