//! The command lines of spiped and of the spipe that comes with it, for scripts and units that were written for those.
//!
//! They are read here and said in the words of our own command line; what those words mean, and all that follows, is the same as
//! for a pipe that was asked for in them. `docs/SPIPED-COMMAND-LINE.md` tells where the two programs differ.

mod getopt;

use std::ffi::OsString;
use std::fmt::Display;
use std::fs;
use std::io::{self, Write};
use std::net::Ipv6Addr;
use std::os::unix::fs::PermissionsExt;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;

use self::getopt::{Asked, Given, Mistake, Syntax};
use super::args::Args;
use super::{Error, describe, serve};
use crate::addr::{Endpoint, Outgoing, Source, Target};
use crate::config::Origin;
use crate::config::key_file::KeySource;
use crate::config::options::{FineSeconds, PipeOptions, ServiceOptions};
use crate::connection::Common;
use crate::names::{self, Lookup};
use crate::service::daemon;
use crate::service::log::one_line;
use crate::service::process;

/// The release of spiped whose command line this is.
const RELEASE: &str = "1.6.4";

/// spiped's limit by default.
const MAX_CONNECTIONS: usize = 100;

/// A program of spiped's.
struct Program {
    name: &'static str,
    usage: &'static str,
    syntax: Syntax,
    translate: fn(&Given) -> Result<Vec<String>, Mistake>,
}

const SPIPED: Program = Program {
    name: "spiped",
    usage: "\
usage: spiped {-e | -d} -s SOURCE -t TARGET -k KEYFILE [-b BIND] [-DFj]
           [-f | -g] [-n MAX] [-o SECONDS] [-p PIDFILE] [-r SECONDS | -R]
           [--syslog] [-u {USER | :GROUP | USER:GROUP}]
       spiped -v",
    syntax: Syntax { flags: "DFRdefgj", values: "bknoprstu", words: &["--syslog"] },
    translate: service,
};

const SPIPE: Program = Program {
    name: "spipe",
    usage: "\
usage: spipe -t TARGET -k KEYFILE [-b BIND] [-f | -g] [-j] [-o SECONDS]
       spipe -v",
    syntax: Syntax { flags: "fgj", values: "bkot", words: &[] },
    translate: client,
};

/// Runs spiped's command line `arguments`, the program's name first, to its end.
///
/// # Errors
/// [`enum@Error`], for what goes wrong after it was read.
pub(super) fn run(arguments: impl IntoIterator<Item = OsString>) -> Result<ExitCode, Error> {
    let (mut options, service) = match SPIPED.options(arguments) {
        Ok(options) => options,
        Err(code) => return Ok(code),
    };
    process::harden();
    // The files that it names are beside the directory that it was called in.
    let directory = std::env::current_dir().unwrap_or_default();
    let background = match service.daemon.then(daemon::split).transpose()? {
        Some(daemon::Side::Foreground(code)) => return Ok(code),
        Some(daemon::Side::Background(background)) => Some(background),
        None => None,
    };
    warn_of_readers(&SPIPED, &options);
    look_up(&mut options)?;
    let origin = Origin::CommandLine(Box::new(options), directory);
    let parsed = origin.parse()?;
    serve::serve_as(origin, parsed, service, background)
}

/// The same for spiped's spipe.
///
/// # Errors
/// [`enum@Error`], for what goes wrong after it was read, and when the connection fails.
pub(super) fn run_client(arguments: impl IntoIterator<Item = OsString>) -> Result<ExitCode, Error> {
    let (options, service) = match SPIPE.options(arguments) {
        Ok(options) => options,
        Err(code) => return Ok(code),
    };
    process::harden();
    warn_of_readers(&SPIPE, &options);
    serve::connect(options, &service)
}

impl Program {
    /// What `arguments` ask for, in our words. If that is not to be served, it has been said, and what is given is the exit code.
    fn options(
        &self,
        arguments: impl IntoIterator<Item = OsString>,
    ) -> Result<(PipeOptions, ServiceOptions), ExitCode> {
        let given = match getopt::read(&self.syntax, arguments.into_iter().skip(1)) {
            Ok(Asked::Run(given)) => given,
            Ok(Asked::Version) => {
                print(format_args!(
                    "{} {RELEASE} (spipe {}, compatible)",
                    self.name,
                    env!("CARGO_PKG_VERSION")
                ));
                return Err(ExitCode::SUCCESS);
            }
            Err(mistake) => return Err(self.refuse(&mistake)),
        };
        let words = (self.translate)(&given).map_err(|mistake| self.refuse(&mistake))?;
        let args =
            Args::try_parse_from(words).map_err(|error| self.refuse(&Mistake::Value(describe(&error))))?;
        let Args { pipe: Some(options), service, .. } = args else { unreachable!("there is a target") };
        let has_no_port = |source: &Source| matches!(source, Source::At(at) if at.port() == Some(0));
        match options.source.iter().find(|source| has_no_port(source)) {
            None => Ok((options, service)),
            // Scripts would not know where to connect.
            Some(source) => Err(self.refuse(&Mistake::Value(format!(
                "{source}: 0 is not a port; write a number from 1 to 65535"
            )))),
        }
    }

    fn refuse(&self, mistake: &Mistake) -> ExitCode {
        match mistake {
            Mistake::Usage(None) => print(self.usage),
            Mistake::Usage(Some(reason)) => {
                self.warn(reason);
                print(self.usage);
            }
            Mistake::Value(reason) => self.warn(reason),
        }
        ExitCode::FAILURE
    }

    fn warn(&self, text: &str) {
        print(format_args!("{}: {}", self.name, one_line(text)));
    }
}

/// As spiped, on standard error, the version too.
fn print(text: impl Display) {
    let _ = writeln!(io::stderr(), "{text}");
}

/// What spiped was asked for.
fn service(given: &Given) -> Result<Vec<String>, Mistake> {
    let mode = match (given.has("-e"), given.has("-d")) {
        (true, false) => "--encrypt",
        (false, true) => "--decrypt",
        _ => return Err(Mistake::Usage(None)),
    };
    let source = required(given, "-s")?;
    let mut words = client(given)?;
    words.extend([
        mode.to_owned(),
        format!("--source={source}"),
        format!("--max-connections={}", count(given, "-n", MAX_CONNECTIONS)?),
        // It drains for as long as it takes.
        format!("--drain-timeout={}", u32::MAX),
    ]);
    let interval = seconds(given, "-r", Lookup::INTERVAL)?;
    words.push(match given.has("-R") {
        false => format!("--resolve-interval={interval}"),
        true if Duration::from(interval) == Lookup::INTERVAL => "--resolve-once".to_owned(),
        true => return Err(Mistake::Usage(None)),
    });
    if given.has("-D") {
        words.push("--wait-for-names".to_owned());
    }
    if let Some(user) = given.value("-u") {
        words.push(format!("--user={user}"));
    }
    if !given.has("-F") {
        let beside_source = format!("{source}.pid");
        let pid_file = given.value("-p").unwrap_or(&beside_source);
        words.extend(["--daemon".to_owned(), format!("--pid-file={pid_file}")]);
    }
    Ok(words)
}

/// What its spipe was asked for, and spiped as well.
fn client(given: &Given) -> Result<Vec<String>, Mistake> {
    let mut words = vec![
        "spipe".to_owned(),
        "--protocol=spiped".to_owned(),
        // spiped does not look; there is a warning instead.
        "--insecure-key-permissions".to_owned(),
        format!("--target={}", required(given, "-t")?),
        format!("--key={}", required(given, "-k")?),
        format!("--timeout={}", seconds(given, "-o", Common::TIMEOUT)?),
    ];
    if let Some(bind) = given.value("-b") {
        words.push(format!("--bind={bind}"));
    }
    words.extend(match (given.has("-f"), given.has("-g")) {
        (false, false) => None,
        (true, false) => Some("--no-forward-secrecy".to_owned()),
        (false, true) => Some("--forward-secrecy".to_owned()),
        (true, true) => return Err(Mistake::Usage(None)),
    });
    words.extend(given.has("-j").then(|| "--no-keepalive".to_owned()));
    Ok(words)
}

fn required<'g>(given: &'g Given, option: &str) -> Result<&'g str, Mistake> {
    given.value(option).ok_or(Mistake::Usage(None))
}

/// A time, of which 0 is the default, as spiped has it; what is out of our range becomes the nearest that is within.
fn seconds(given: &Given, option: &str, default: Duration) -> Result<FineSeconds, Mistake> {
    let Some(text) = given.value(option) else { return Ok(FineSeconds::nearest(default)) };
    let time = text.trim_ascii_start().parse::<f64>().ok().filter(|seconds| *seconds >= 0.0);
    match time {
        Some(0.0) => Ok(FineSeconds::nearest(default)),
        Some(seconds) => {
            Ok(FineSeconds::nearest(Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX)))
        }
        None => Err(Mistake::Value(format!("{option} {text}: write a number of seconds, such as 2.5"))),
    }
}

/// A number as strtoumax(3) reads it: in octal after 0, in hexadecimal after 0x. 0 is no limit, and so is what spiped takes a number
/// below it for.
fn count(given: &Given, option: &str, default: usize) -> Result<usize, Mistake> {
    let Some(text) = given.value(option) else { return Ok(default) };
    let number = text.trim_ascii_start();
    let (is_negative, number) = match number.strip_prefix('-') {
        Some(number) => (true, number),
        None => (false, number.strip_prefix('+').unwrap_or(number)),
    };
    let hexadecimal = number.strip_prefix("0x").or_else(|| number.strip_prefix("0X"));
    let (radix, digits) = match (hexadecimal, number.strip_prefix('0')) {
        (Some(digits), _) => (16, digits),
        (None, Some(digits)) if !digits.is_empty() => (8, digits),
        _ => (10, number),
    };
    let has_sign = digits.starts_with(['+', '-']);
    match usize::from_str_radix(digits, radix) {
        Ok(_) if is_negative && !has_sign => Ok(0),
        Ok(count) if !has_sign => Ok(count),
        _ => Err(Mistake::Value(format!("{option} {text}: write a whole number"))),
    }
}

/// Whether others can read the key is not what spiped looks at, so it is no error here. To be told on the terminal.
fn warn_of_readers(program: &Program, options: &PipeOptions) {
    for key in &options.key {
        let KeySource::File(path) = key else { continue };
        let mode = fs::metadata(path).map(|file| file.permissions().mode() & 0o7777);
        if let Ok(mode) = mode
            && mode & 0o077 != 0
        {
            let path = path.display();
            program.warn(&format!(
                "warning: others can read the key {path} (mode {mode:04o}); type: chmod 600 {path}"
            ));
        }
    }
}

/// Looks all names up, as spiped does at its start, and has the source be the one place that spiped would take: of a name, its first
/// address.
fn look_up(options: &mut PipeOptions) -> Result<(), Error> {
    for source in &mut options.source {
        match source {
            // One socket for both families, as Linux has it by default.
            Source::At(Endpoint::Ip(address)) if address.ip() == Ipv6Addr::UNSPECIFIED => {
                *source = Source::Every { port: address.port() };
            }
            Source::At(Endpoint::Name { host, port }) => match names::resolve_blocking(host, *port) {
                Ok(addresses) => {
                    let first = Source::At(Endpoint::Ip(*addresses.first()));
                    if addresses.len() > 1 {
                        SPIPED.warn(&format!(
                            "warning: listening on the first of several addresses of {host}: {first}"
                        ));
                    }
                    *source = first;
                }
                Err(_) if options.wait_for_names => {}
                Err(error) => return Err(error.into()),
            },
            _ => {}
        }
    }
    if options.wait_for_names {
        return Ok(());
    }
    let targets = options.target.iter().map(Target::endpoint);
    for endpoint in targets.chain(options.bind.as_ref().map(Outgoing::endpoint)) {
        if let Endpoint::Name { host, port } = endpoint {
            names::resolve_blocking(host, *port)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given(arguments: &[&str]) -> Given {
        match getopt::read(&SPIPED.syntax, arguments.iter().map(OsString::from)) {
            Ok(Asked::Run(given)) => given,
            other => panic!("{other:?}"),
        }
    }

    const PIPE: [&str; 7] = ["-e", "-s", "/s", "-t", "h:1", "-k", "key"];

    /// What follows from `arguments` besides those that every pipe has.
    fn words(arguments: &[&str]) -> Result<Vec<String>, Mistake> {
        service(&given(&[&PIPE, arguments].concat()))
    }

    #[test]
    fn the_defaults_are_those_of_spiped() {
        assert_eq!(
            words(&[]).unwrap().join(" "),
            "spipe --protocol=spiped --insecure-key-permissions --target=h:1 --key=key --timeout=5 --encrypt --source=/s \
             --max-connections=100 --drain-timeout=4294967295 --resolve-interval=60 --daemon --pid-file=/s.pid"
        );
    }

    #[test]
    fn a_process_in_the_foreground_has_no_pid_file() {
        let words = words(&["-F", "-p", "pid", "--syslog"]).unwrap();
        let is_of_the_background = |word: &&String| {
            ["--daemon", "--pid-file", "--syslog"].iter().any(|option| word.starts_with(option))
        };
        assert_eq!(words.iter().find(is_of_the_background), None);
    }

    #[test]
    fn times_are_real_numbers_and_0_is_the_default() {
        for (text, expected) in [
            ("0", "5"),
            ("0.0", "5"),
            ("0.5", "0.5"),
            (".5", "0.5"),
            (" 2", "2"),
            ("1e1", "10"),
            ("0.01", "0.1"),
            ("inf", "86400"),
        ] {
            let time = seconds(&given(&["-o", text]), "-o", Duration::from_secs(5)).unwrap();
            assert_eq!(time.to_string(), expected, "{text}");
        }
        for text in ["", "abc", "-1", "1,5", "1e", "5s", "nan"] {
            assert!(matches!(words(&["-o", text]), Err(Mistake::Value(_))), "{text}");
            assert!(matches!(words(&["-r", text]), Err(Mistake::Value(_))), "{text}");
        }
    }

    #[test]
    fn numbers_of_connections_are_read_as_strtoumax_reads_them() {
        for (text, expected) in
            [("0", 0), ("5", 5), ("0x10", 16), ("010", 8), ("+5", 5), (" 5", 5), ("-1", 0)]
        {
            assert_eq!(count(&given(&["-n", text]), "-n", 1), Ok(expected), "{text}");
        }
        for text in ["", "abc", "0x", "08", "5 ", "1k", "+-5", "--5", "99999999999999999999"] {
            assert!(matches!(words(&["-n", text]), Err(Mistake::Value(_))), "{text}");
        }
    }

    #[test]
    fn options_that_exclude_each_other_are_mistakes_of_use() {
        for arguments in [&["-d"][..], &["-f", "-g"], &["-R", "-r", "5"]] {
            assert_eq!(words(arguments), Err(Mistake::Usage(None)), "{arguments:?}");
        }
        assert!(words(&["-R", "-r", "60.0"]).unwrap().contains(&"--resolve-once".to_owned()));
    }

    #[test]
    fn what_spiped_cannot_do_without_is_a_mistake_of_use() {
        for missing in ["-e", "-s", "-t", "-k"] {
            let at = PIPE.iter().position(|argument| *argument == missing).unwrap();
            let mut arguments = PIPE.to_vec();
            arguments.drain(at..at + if missing == "-e" { 1 } else { 2 });
            assert_eq!(service(&given(&arguments)), Err(Mistake::Usage(None)), "{missing}");
        }
    }

    #[test]
    fn our_command_line_understands_what_is_said_to_it() {
        for arguments in [
            &["-DfjR", "-n0", "-u", ":nogroup", "-b", "127.0.0.1"][..],
            &["-Fg", "-r", "0.01"],
            &["-p", "-odd"],
        ] {
            assert!(Args::try_parse_from(words(arguments).unwrap()).is_ok(), "{arguments:?}");
        }
    }
}
