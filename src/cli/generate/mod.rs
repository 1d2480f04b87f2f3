//! `spipe generate`: the manual pages and the completions of shells, from the definitions that `--help` is made from.
//!
//! The pages' own text is beside this file, in the language of man(7). What follows from the definitions takes the place of words
//! such as `@options@` in it.

use std::fmt::Write as _;
use std::fs;
use std::io::{self, Write};
use std::path::Path;

use clap::builder::StyledStr;
use clap::{Arg, ArgAction, ArgGroup, Args as _, Command, CommandFactory};
use clap_complete::{Generator, shells};

use super::Error;
use super::args::{ADDRESSES, Args, EXAMPLES, Generated, Shell};
use crate::config::options::{PipeOptions, ServiceOptions};

/// `spipe generate`
pub(super) fn run(what: Generated) -> Result<(), Error> {
    match what {
        Generated::Man { directory } => {
            write(&directory, "spipe.1", &command_page())?;
            write(&directory, "spipe.toml.5", &file_page())?;
            write(&directory, "spiped.1", &spipeds_page())
        }
        Generated::Completions { shell } => print_completions(shell),
    }
}

fn write(directory: &Path, name: &str, page: &str) -> Result<(), Error> {
    let path = directory.join(name);
    fs::write(&path, page).map_err(|source| Error::Write { path, source })
}

fn print_completions(shell: Shell) -> Result<(), Error> {
    match shell {
        Shell::Bash => print_completions_by(shells::Bash),
        Shell::Fish => print_completions_by(shells::Fish),
        Shell::Zsh => print_completions_by(shells::Zsh),
    }
}

fn print_completions_by(generator: impl Generator) -> Result<(), Error> {
    // Into memory first: clap_complete panics if it cannot write.
    let mut script = Vec::new();
    clap_complete::generate(generator, &mut without_hidden(&Args::command()), "spipe", &mut script);
    io::stdout()
        .write_all(&script)
        .map_err(|source| Error::System { doing: "write to standard output", source })
}

/// The command line without what is hidden, which clap_complete would offer like the rest. (clap can hide, but not remove.)
fn without_hidden(command: &Command) -> Command {
    let options: Vec<_> = visible(command).cloned().collect();
    // Options refer to groups, and groups may not refer to options that are not there.
    let groups = command.get_groups().map(|group| {
        let members = group.get_args().filter(|id| options.iter().any(|option| option.get_id() == *id));
        ArgGroup::new(group.get_id().clone()).multiple(true).args(members.cloned())
    });
    Command::new("spipe")
        .version(env!("CARGO_PKG_VERSION"))
        .disable_version_flag(true)
        .disable_help_subcommand(true)
        .groups(groups.collect::<Vec<_>>())
        .args(options)
        .subcommands(visible_subcommands(command).cloned())
}

/// spipe(1)
fn command_page() -> String {
    let mut command = Args::command();
    command.build();
    let options: String = visible(&command).map(option).collect();
    let commands: String =
        visible_subcommands(&command).map(|subcommand| section(subcommand, &command)).collect();
    include_str!("spipe.1.in")
        .replace("@version@", env!("CARGO_PKG_VERSION"))
        .replace("@options@\n", &options)
        .replace("@commands@\n", &commands)
        .replace("@addresses@\n", &literal(without_heading(ADDRESSES)))
        .replace("@examples@\n", &literal(without_heading(EXAMPLES)))
}

/// spipe.toml(5)
fn file_page() -> String {
    let options = |command: Command| -> String { visible(&command).filter_map(option_of_file).collect() };
    include_str!("spipe.toml.5.in")
        .replace("@version@", env!("CARGO_PKG_VERSION"))
        .replace("@process@\n", &options(ServiceOptions::augment_args(Command::new("spipe.toml"))))
        .replace("@pipe@\n", &options(PipeOptions::augment_args(Command::new("spipe.toml"))))
}

/// spiped(1): what differs from the page of spiped's package, whose command line it is.
fn spipeds_page() -> String {
    include_str!("spiped.1.in").replace("@version@", env!("CARGO_PKG_VERSION"))
}

fn visible(command: &Command) -> impl Iterator<Item = &Arg> {
    command.get_arguments().filter(|argument| !argument.is_hide_set())
}

fn visible_subcommands(command: &Command) -> impl Iterator<Item = &Command> {
    command.get_subcommands().filter(|subcommand| !subcommand.is_hide_set())
}

/// The section of a subcommand. Options that mean what they mean without a subcommand are named and not explained again.
fn section(subcommand: &Command, parent: &Command) -> String {
    let usage = subcommand.clone().render_usage().to_string();
    let (known, own): (Vec<_>, Vec<_>) = visible(subcommand).partition(|argument| {
        visible(parent)
            .any(|other| names(other) == names(argument) && other.get_help() == argument.get_help())
    });
    let mut text = format!(".SS {}\n", escape(usage.trim_start_matches("Usage: ")));
    let _ = writeln!(text, "{}.", escape(&plain(subcommand.get_about())));
    text.extend(own.into_iter().map(option));
    let known: Vec<_> = known.into_iter().filter(|argument| argument.get_id() != "help").map(names).collect();
    if !known.is_empty() {
        let _ = writeln!(text, ".PP\nAs above: {}.", known.join("; "));
    }
    if let Some(after) = subcommand.get_after_help() {
        let _ = write!(text, ".PP\n{}", literal(&after.to_string()));
    }
    text
}

/// `-s, --source SOURCE` and what it means.
fn option(argument: &Arg) -> String {
    let values = value_names(argument).map(|name| format!(" \\fI{}\\fR", escape(name)));
    let names = names(argument);
    let head = if names.is_empty() {
        values.collect::<String>().trim_start().to_owned()
    } else {
        values.fold(names, |head, value| head + &value)
    };
    format!(".TP\n{head}\n{}\n", explanation(argument))
}

/// `source = ["SOURCE", ...]` and what it means; None for what a file does not have.
fn option_of_file(argument: &Arg) -> Option<String> {
    let name = argument.get_long().filter(|name| !PipeOptions::NOT_IN_A_FILE.contains(name))?;
    let value = match (value_names(argument).next(), argument.get_action()) {
        (None, _) => "true".to_owned(),
        (Some(value), _) if ["COUNT", "MAX", "SECONDS"].contains(&value) => format!("\\fI{value}\\fR"),
        (Some(value), ArgAction::Append) => format!("[\"\\fI{}\\fR\", ...]", escape(value)),
        (Some(value), _) => format!("\"\\fI{}\\fR\"", escape(value)),
    };
    Some(format!(".TP\n\\fB{}\\fR = {value}\n{}\n", escape(name), explanation(argument)))
}

/// `-s, --source`; empty for an argument that has its place and no name.
fn names(argument: &Arg) -> String {
    let shorts = argument.get_short_and_visible_aliases().unwrap_or_default();
    let shorts = shorts.into_iter().map(|short| format!("-{short}"));
    let long = argument.get_long().map(|long| format!("--{long}"));
    shorts.chain(long).map(|name| format!("\\fB{}\\fR", escape(&name))).collect::<Vec<_>>().join(", ")
}

fn value_names(argument: &Arg) -> impl Iterator<Item = &str> {
    let names = argument.get_value_names().filter(|_| argument.get_action().takes_values());
    names.unwrap_or_default().iter().map(clap::builder::Str::as_str)
}

/// What `--help` says of it.
fn explanation(argument: &Arg) -> String {
    let mut text = plain(argument.get_help());
    if argument.get_action().takes_values() {
        let defaults: Vec<_> =
            argument.get_default_values().iter().map(|value| value.to_string_lossy()).collect();
        let possible: Vec<_> =
            argument.get_possible_values().iter().map(|value| value.get_name().to_owned()).collect();
        if !defaults.is_empty() {
            let _ = write!(text, " [default: {}]", defaults.join(", "));
        }
        if !possible.is_empty() {
            let _ = write!(text, " [possible values: {}]", possible.join(", "));
        }
    }
    escape(&text)
}

fn plain(text: Option<&StyledStr>) -> String {
    text.map(ToString::to_string).unwrap_or_default()
}

fn without_heading(text: &str) -> &str {
    text.split_once('\n').map_or(text, |(_, rest)| rest)
}

/// A text whose lines are to stay as they are.
fn literal(text: &str) -> String {
    format!(".nf\n{}\n.fi\n", escape(text))
}

/// `text` as roff(7) prints it unchanged: these characters would be control characters, or become typographic ones, which cannot
/// be copied into a shell.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for (at, character) in text.char_indices() {
        match character {
            '\\' => escaped.push_str("\\e"),
            '-' => escaped.push_str("\\-"),
            '\'' => escaped.push_str("\\(aq"),
            '`' => escaped.push_str("\\(ga"),
            '^' => escaped.push_str("\\(ha"),
            '~' => escaped.push_str("\\(ti"),
            '.' if at == 0 || text[..at].ends_with('\n') => escaped.push_str("\\&."),
            other => escaped.push(other),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_roff_would_change_is_escaped() {
        assert_eq!(escape(".a\n.b\n'c"), "\\&.a\n\\&.b\n\\(aqc");
        assert_eq!(escape(r"--x 'PING\r\n' a.b ~`^"), r"\-\-x \(aqPING\er\en\(aq a.b \(ti\(ga\(ha");
    }

    #[test]
    fn every_word_of_a_page_s_text_that_stands_for_something_is_replaced() {
        for page in [command_page(), file_page(), spipeds_page()] {
            let left = page.lines().find(|line| line.starts_with('@') || line.contains("@version@"));
            assert_eq!(left, None);
        }
    }
}
