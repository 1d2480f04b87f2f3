//! The `spipe` command.

use std::io::Write;
use std::process::ExitCode;

use spipe::cli::Called;
use spipe::service::log::one_line;

fn main() -> ExitCode {
    let called = Called::by_name();
    let ended = spipe::cli::run(called, std::env::args_os());
    spipe::service::log::writer::flush();
    match ended {
        Ok(code) => code,
        Err(error) => {
            // Not eprintln!, which panics when standard error is closed or full.
            let _ = writeln!(std::io::stderr(), "{called}: {}", one_line(&error.to_string()));
            error.exit_code()
        }
    }
}
