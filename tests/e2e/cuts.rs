//! A stream that is cut or altered on the wire never looks finished: the local side is reset, and other connections
//! are not affected.

use std::io::{ErrorKind, Read, Write};

use crate::support::pipe::Pipe;
use crate::support::relay::{Plan, Rule};
use crate::support::socket::{Service, assert_echoes, assert_reset, echo};

/// Bytes of message 1 and message 2 (docs/PROTOCOL.md, section 3).
const MESSAGE_1: usize = 32 + (1184 + 16) + (16 + 16);
const MESSAGE_2: usize = 32 + (1088 + 16) + (16 + 16);
/// The bytes of a frame besides its payload: length, kind and tag.
const OVERHEAD: usize = 2 + 1 + 16;
/// *Open* for a client with an IPv4 address: two fields of 3 + 4 + 2 bytes for addresses, and one of 3 + 8 for an id.
const OPEN: usize = OVERHEAD + 9 + 9 + 11;
/// What the client sends, in a separate frame.
const WORDS: &str = "twenty bytes of text";
const DATA: usize = OVERHEAD + WORDS.len();
/// What a responder says first, once its target stands: *Data* without payload.
const ACKNOWLEDGEMENT: usize = OVERHEAD;

/// A pipe to an echo target with these arguments for both ends, through a relay that follows `plan`.
fn pipe_through(plan: Plan, args: &[&str]) -> Pipe {
    Pipe::to(echo()).args(args).through(plan).start()
}

/// Sends through a pipe with `plan`, and asserts that the client is reset and that the next one is served.
pub(crate) fn assert_client_is_reset(plan: Plan, args: &[&str]) {
    let pipe = pipe_through(plan, args);
    if let Some(mut client) = pipe.initiator.connect_unless_reset() {
        // Several frames, so that enough bytes follow an altered length, which may be longer than the frame.
        let words = WORDS.repeat(10_000);
        // The client never ends its stream, so only a failure can end it. The first call after the reset gets the
        // error, and later calls get an end of file.
        match client.write_all(words.as_bytes()) {
            Ok(()) => {
                let received = assert_reset(&mut client);
                assert!(words.as_bytes().starts_with(&received), "all delivered bytes are authentic");
            }
            Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset),
        }
    }
    assert_echoes(&mut pipe.connect(), "the next connection is served");
}

#[test]
fn the_sizes_on_the_wire_are_as_computed() {
    // The tests below rely on these boundaries. This also shows that the relay itself changes nothing.
    let pipe = pipe_through(Plan::PASS, &[]);
    let mut client = pipe.connect();
    for _ in 0..3 {
        assert_echoes(&mut client, WORDS);
    }
    let wire = pipe.relay.as_ref().expect("the pipe has a relay").recorded();
    assert_eq!(wire.forth.len(), MESSAGE_1 + OPEN + 3 * DATA);
    assert_eq!(wire.back.len(), MESSAGE_2 + ACKNOWLEDGEMENT + 3 * DATA);
}

macro_rules! client_is_reset {
    ($($name:ident: $plan:expr;)*) => {
        $(#[test]
        fn $name() {
            assert_client_is_reset($plan, &[]);
        })*
    };
}

client_is_reset! {
    cut_before_message_1: Plan::forth(Rule::CutAfter(0));
    cut_inside_message_1: Plan::forth(Rule::CutAfter(MESSAGE_1 / 2));
    cut_one_byte_before_the_end_of_message_1: Plan::forth(Rule::CutAfter(MESSAGE_1 - 1));
    cut_after_message_1: Plan::forth(Rule::CutAfter(MESSAGE_1));
    cut_inside_open: Plan::forth(Rule::CutAfter(MESSAGE_1 + 5));
    cut_after_open: Plan::forth(Rule::CutAfter(MESSAGE_1 + OPEN));
    cut_inside_a_header_to_the_target: Plan::forth(Rule::CutAfter(MESSAGE_1 + OPEN + 1));
    cut_inside_a_frame_to_the_target: Plan::forth(Rule::CutAfter(MESSAGE_1 + OPEN + 30));
    cut_before_message_2: Plan::back(Rule::CutAfter(0));
    cut_inside_message_2: Plan::back(Rule::CutAfter(MESSAGE_2 / 2));
    cut_after_message_2: Plan::back(Rule::CutAfter(MESSAGE_2));
    cut_inside_the_acknowledgement: Plan::back(Rule::CutAfter(MESSAGE_2 + 5));
    cut_after_the_acknowledgement: Plan::back(Rule::CutAfter(MESSAGE_2 + ACKNOWLEDGEMENT));
    cut_inside_a_header_to_the_client: Plan::back(Rule::CutAfter(MESSAGE_2 + ACKNOWLEDGEMENT + 1));
    cut_inside_a_frame_to_the_client: Plan::back(Rule::CutAfter(MESSAGE_2 + ACKNOWLEDGEMENT + 30));

    altered_at_the_start_of_message_1: Plan::forth(Rule::FlipAt(0));
    altered_at_the_end_of_message_1: Plan::forth(Rule::FlipAt(MESSAGE_1 - 1));
    altered_in_the_tag_of_open: Plan::forth(Rule::FlipAt(MESSAGE_1 + OPEN - 1));
    altered_in_a_length_to_the_target: Plan::forth(Rule::FlipAt(MESSAGE_1 + OPEN));
    altered_in_a_payload_to_the_target: Plan::forth(Rule::FlipAt(MESSAGE_1 + OPEN + 10));
    altered_at_the_start_of_message_2: Plan::back(Rule::FlipAt(0));
    altered_at_the_end_of_message_2: Plan::back(Rule::FlipAt(MESSAGE_2 - 1));
    altered_in_the_acknowledgement: Plan::back(Rule::FlipAt(MESSAGE_2 + 3));
    altered_in_a_length_to_the_client: Plan::back(Rule::FlipAt(MESSAGE_2 + ACKNOWLEDGEMENT));
    altered_in_a_payload_to_the_client: Plan::back(Rule::FlipAt(MESSAGE_2 + ACKNOWLEDGEMENT + 10));
}

/// Asserts that the target is reset when `rule` cuts or alters the wire after the first whole frame.
fn assert_target_is_reset_after_first_frame(rule: Rule) {
    let service = Service::start();
    let pipe = Pipe::to(service.address()).through(Plan::forth(rule)).start();
    let mut client = pipe.connect();
    let mut served = service.accept();
    client.write_all(WORDS.as_bytes()).expect("the pipe accepts the bytes");
    let mut words = [0; WORDS.len()];
    if matches!(rule, Rule::CutAfter(length) | Rule::FlipAt(length) if length > MESSAGE_1 + OPEN + DATA) {
        served.read_exact(&mut words).expect("the first frame arrives whole");
        assert_eq!(&words, WORDS.as_bytes());
        client.write_all(WORDS.as_bytes()).expect("the pipe accepts the bytes");
    }
    let rest = assert_reset(&mut served);
    assert!(WORDS.as_bytes().starts_with(&rest), "no altered byte is delivered");
    assert_reset(&mut client);
}

#[test]
fn the_target_is_reset_after_a_cut_between_frames() {
    assert_target_is_reset_after_first_frame(Rule::CutAfter(MESSAGE_1 + OPEN + DATA));
}

#[test]
fn the_target_is_reset_after_a_cut_inside_the_second_frame() {
    assert_target_is_reset_after_first_frame(Rule::CutAfter(MESSAGE_1 + OPEN + DATA + 10));
}

#[test]
fn the_target_is_reset_after_a_change_in_the_second_frame() {
    assert_target_is_reset_after_first_frame(Rule::FlipAt(MESSAGE_1 + OPEN + DATA + 10));
}

#[test]
fn the_client_is_reset_after_a_cut_between_frames() {
    let pipe = pipe_through(Plan::back(Rule::CutAfter(MESSAGE_2 + ACKNOWLEDGEMENT + DATA)), &[]);
    let mut client = pipe.connect();
    client.write_all(WORDS.as_bytes()).expect("the pipe accepts the bytes");
    // The frame before the cut is whole, so it is delivered.
    assert_eq!(assert_reset(&mut client), WORDS.as_bytes());
    pipe.initiator.await_line(&["closed", "cut short"]);
}

#[test]
fn other_connections_continue_when_one_is_altered() {
    let pipe = pipe_through(Plan::forth(Rule::FlipAt(MESSAGE_1 + OPEN + DATA + 10)), &[]);
    let mut doomed = pipe.connect();
    assert_echoes(&mut doomed, WORDS);
    let mut survivor = pipe.connect();
    assert_echoes(&mut survivor, "before");
    doomed.write_all(WORDS.as_bytes()).expect("the pipe accepts the bytes");
    assert_reset(&mut doomed);
    pipe.responder.await_line(&["closed", "does not authenticate"]);
    assert_echoes(&mut survivor, "after");
}
