//! The initiator's reader of message 2.

#![no_main]

use libfuzzer_sys::fuzz_target;
use spipe_fuzz::{array, damage, message_2, start, valid_message_2};

fuzz_target!(|data: &[u8]| {
    let valid = *valid_message_2();

    // A stranger's bytes.
    let raw = array(data);
    let is_valid = raw == valid;
    assert_eq!(start().0.finish(&raw).is_ok(), is_valid);

    // A key holder's message, damaged.
    let mut damaged = valid;
    damage(&mut damaged, data);
    let is_valid = damaged == valid;
    assert_eq!(start().0.finish(&damaged).is_ok(), is_valid);

    // A key holder's message with anything in it. Every ciphertext has a secret (FIPS 203 rejects implicitly), so what
    // decides is the choice alone: it must be the one cipher that the initiator offered.
    let payload = array::<16>(data);
    let (message, _) = message_2(&array(data.get(16..).unwrap_or_default()), &payload);
    assert_eq!(start().0.finish(&message).is_ok(), payload[0] == 1);
});
