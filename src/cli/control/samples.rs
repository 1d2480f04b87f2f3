//! What a healthy process says, for tests: here, and of the whole command.

use serde::Deserialize;

use crate::status::report::{Connection, Report};

#[derive(Deserialize)]
struct Sample {
    report: Report,
    connection: Connection,
}

fn sample() -> Sample {
    serde_json::from_str(include_str!("sample.json")).unwrap()
}

pub(super) fn report() -> Report {
    sample().report
}

pub(super) fn connection() -> Connection {
    sample().connection
}
