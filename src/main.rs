//! The `spipe` command.

use std::io::Write;
use std::process::ExitCode;

fn main() -> ExitCode {
    match spipe::cli::run(std::env::args_os()) {
        Ok(code) => code,
        Err(error) => {
            // Not eprintln!, which panics when standard error is closed or full.
            let _ = writeln!(std::io::stderr(), "spipe: {error}");
            ExitCode::FAILURE
        }
    }
}
