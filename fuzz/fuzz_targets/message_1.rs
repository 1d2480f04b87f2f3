//! The responder's reader of message 1: the one function that every stranger on the network reaches.

#![no_main]

use libfuzzer_sys::fuzz_target;
use spipe_fuzz::{array, damage, message_1, respond, valid_message_1};

fuzz_target!(|data: &[u8]| {
    // A stranger's bytes. No input finds a tag by chance, so what is accepted can only be the seed.
    let valid = *valid_message_1();
    let raw = array(data);
    assert_eq!(respond(&raw).is_some(), raw == valid);

    // A key holder's message, damaged.
    let mut damaged = valid;
    damage(&mut damaged, data);
    assert_eq!(respond(&damaged).is_some(), damaged == valid);

    // A key holder's message with anything in it. FIPS 203 forbids most ML-KEM keys made so, and some it must take.
    respond(&message_1(&array(data), &array(data)));
    let tail = data.get(16..).unwrap_or_default();
    let (mut kem_key, mut field) = ([0; spipe_fuzz::KEM_KEY], [0; spipe_fuzz::PAYLOAD]);
    damage(&mut kem_key, tail);
    field.copy_from_slice(&array::<16>(data));
    let answered = respond(&message_1(&kem_key, &field));
    if let Some((_, established)) = answered {
        // The offer is the front half of the payload; the other half is reserved and ignored.
        assert_eq!(established.is_some(), field[..8].contains(&1));
    }
});
