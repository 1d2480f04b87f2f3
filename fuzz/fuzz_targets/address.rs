//! The address parser: it takes whatever an administrator may type, and what it accepts it writes so that it reads the same
//! again.

#![no_main]

use libfuzzer_sys::fuzz_target;
use spipe::addr::{Outgoing, Source, Target};

fuzz_target!(|text: &str| {
    let target = text.parse::<Target>();
    if let Ok(target) = &target {
        assert_eq!(target.to_string().parse().as_ref(), Ok(target));
    }
    if let Ok(outgoing) = text.parse::<Outgoing>() {
        assert_eq!(outgoing.to_string().parse(), Ok(outgoing));
    }
    match text.parse::<Source>() {
        Ok(source) => assert_eq!(source.to_string().parse(), Ok(source)),
        // What can be connected to can be listened on.
        Err(_) => assert!(target.is_err()),
    }
});
