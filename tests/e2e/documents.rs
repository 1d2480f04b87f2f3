//! The examples in the documents are correct. (`tests/hosts` follows the guides.)

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::pipe::{End, Key};
use crate::support::process::{run, spipe};
use crate::support::site::Site;
use crate::support::socket::echo;

fn document(name: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(name))
        .expect("the document is in the repository")
}

/// The indented lines of `document` from the one that starts with `first`, without the indentation.
#[track_caller]
fn example(document: &str, first: &str) -> Vec<String> {
    let lines = document.lines().map(|line| line.strip_prefix("    "));
    let example: Vec<_> = lines
        .skip_while(|line| !line.is_some_and(|line| line.starts_with(first)))
        .map_while(|line| line.map(ToOwned::to_owned))
        .collect();
    assert!(!example.is_empty(), "no example that starts with {first}");
    example
}

#[test]
fn the_configuration_of_the_readme_is_valid() {
    let site = Site::new();
    let fingerprint = site.add_key("redis.key");
    site.configure(example(&document("README.md"), "[[pipe]]").join("\n"));
    let said = run(spipe().arg("check").arg(site.file())).succeeded().text();
    let pipe = format!("redis: encrypt [127.0.0.1]:8000 to [server]:6380, key {fingerprint}");
    assert_eq!(said.lines().next(), Some(pipe.as_str()));
}

#[test]
fn the_configuration_of_the_guide_to_one_key_per_client_is_valid() {
    let site = Site::new();
    let keys = ["web1", "web2", "backup"].map(|name| site.add_key(&format!("redis.keys/{name}.key")));
    let guide = document("docs/guides/one-key-per-client.md");
    let (_, rest) = guide.split_once("```toml\n").expect("an example");
    let (example, _) = rest.split_once("```").expect("its end");
    site.configure(example);
    let said = run(spipe().arg("check").arg(site.file())).succeeded().text();
    assert!(keys.iter().all(|key| said.contains(key)), "{said}");
}

#[test]
fn the_command_in_the_sandbox_document_prints_what_it_shows() {
    let end = End::initiator(&Key::new(), "127.0.0.1:9").start();
    let shown = example(&document("docs/SANDBOX.md"), "$ grep");
    let (command, output) = shown.split_first().expect("a command and its output");
    let command = command.trim_start_matches("$ ").replace("$(pidof spipe)", &end.process.pid().to_string());
    let said = run(Command::new("sh").args(["-c", &command])).succeeded().text();
    let fields = |line: &str| line.split_whitespace().map(ToOwned::to_owned).collect::<Vec<_>>();
    let (said, output): (Vec<_>, Vec<_>) =
        (said.lines().map(fields).collect(), output.iter().map(|line| fields(line)).collect());
    // The amount of locked memory depends on the machine's limits.
    assert_eq!((said.len(), &said[0][0]), (output.len(), &output[0][0]));
    assert_eq!(said[1..], output[1..], "no_new_privs and seccomp");
}

#[test]
fn the_log_line_of_the_sandbox_matches_the_document() {
    let end = End::initiator(&Key::new(), "127.0.0.1:9").start();
    let line = end.await_line(&["sandboxed"]);
    let shown = example(&document("docs/SANDBOX.md"), "INFO sandboxed").remove(0);
    let names = |line: &str| -> Vec<String> {
        let fields = line.split_once("sandboxed").expect("the line has 'sandboxed'").1.split_whitespace();
        fields.map(|field| field.split('=').next().unwrap_or_default().to_owned()).collect()
    };
    assert_eq!(names(&line), names(&shown));
}

/// The exit codes of `spipe ping` in lines that begin with them, with what stands before and behind.
fn exit_codes<'t>(text: &'t str, before: &'t str, behind: &'t str) -> Vec<u8> {
    let code = |line: &str| line.strip_prefix(before)?.split_once(behind)?.0.parse().ok();
    text.lines().filter_map(code).collect()
}

#[test]
fn the_guide_to_troubleshooting_has_each_exit_code_of_ping() {
    let help = run(spipe().args(["ping", "--help"])).succeeded().text();
    let guide = document("docs/guides/troubleshooting.md");
    let told = exit_codes(&help, "  ", "  ");
    assert_eq!(told, (0..=7).collect::<Vec<_>>());
    assert_eq!(exit_codes(&guide, "| ", " |"), told);
}

#[test]
fn the_guide_to_troubleshooting_shows_what_ping_prints() {
    let key = Key::new();
    let responder = End::responder(&key, echo()).start();
    let shown = example(&document("docs/guides/troubleshooting.md"), "$ spipe ping");
    let (command, shown) = shown.split_first().expect("a command and its output");
    let command = command
        .replace("server:6380", &format!("localhost:{}", responder.port()))
        .replace("redis.key", &key.path().display().to_string());
    let said = run(spipe().args(command.trim_start_matches("$ spipe ").split(' '))).succeeded().text();
    // Names, addresses, keys and times differ.
    let is_told = |word: &&str| word.chars().all(|character| character.is_ascii_lowercase());
    let words =
        |line: &str| line.split_whitespace().filter(is_told).map(ToOwned::to_owned).collect::<Vec<_>>();
    let shown: Vec<_> = shown.iter().map(|line| words(&line.replace("server", "localhost"))).collect();
    assert_eq!(said.lines().map(words).collect::<Vec<_>>(), shown, "{said}");
}

#[test]
fn every_option_in_the_help_is_also_an_option_of_the_file() {
    let site = Site::with_key();
    let help = run(spipe().arg("--help")).succeeded().text();
    // Options that a file expresses in another way or does not need.
    let of_the_command_line =
        ["encrypt", "decrypt", "foreground", "forward-secrecy", "version", "help", "source", "target", "key"];
    let names = help.lines().filter_map(|line| {
        let option = line.trim_start().starts_with('-').then(|| line.split_once("--"))??.1;
        option.split([' ', ',']).next().filter(|name| !of_the_command_line.contains(name))
    });
    let names: Vec<_> = names.collect();
    assert!(names.contains(&"max-connections") && names.contains(&"drain-timeout"), "{names:?}");
    for name in names {
        // The option is known either above all pipes or in a pipe; an integer may be the wrong type of value for it.
        let known = |text: String| {
            site.configure(text);
            !run(spipe().arg("check").arg(site.file())).stderr.contains("unknown field")
        };
        let pipe = site.encrypt("a", "127.0.0.1:9");
        let process = known(format!("{name} = 1\n{pipe}"));
        let of_a_pipe = pipe.contains(&format!("\n{name} = ")) || known(format!("{pipe}{name} = 1\n"));
        assert!(process != of_a_pipe, "--{name}: for the process {process}, for a pipe {of_a_pipe}");
    }
}

#[test]
fn every_test_that_a_promise_names_is_in_the_tree() {
    let text = document("docs/RELIABILITY.md");
    let links: Vec<_> = text
        .split("[`")
        .skip(1)
        .filter_map(|rest| rest.split_once("`](../")?.1.split_once(')').map(|(file, _)| (rest, file)))
        .collect();
    assert!(links.len() > 20, "{}", links.len());
    for (rest, file) in links {
        let (name, _) = rest.split_once('`').expect("a link has an end");
        assert!(document(file).contains(&format!("fn {name}(")), "{name} is not in {file}");
    }
}

/// What the macros of the log say, in all files below `src`: their last texts.
fn events_in_the_code() -> BTreeSet<String> {
    let mut events = BTreeSet::new();
    for file in files_below(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src")) {
        let code = fs::read_to_string(&file).expect("the file can be read");
        let code = code.split("#[cfg(test)]\nmod tests").next().unwrap_or_default();
        for start in ["debug!(", "info!(", "warn!(", "error!(", "$level!("] {
            for (at, _) in code.match_indices(start) {
                // Not the end of another macro's name.
                if code[..at].ends_with(|before: char| before.is_alphanumeric() || before == '_') {
                    continue;
                }
                events.extend(last_text(&code[at + start.len()..]));
            }
        }
        // A text that is chosen beforehand, by the one macro that has its text as an argument.
        let permits = code.split("self.permit(").skip(1).filter(|_| file.ends_with("gate/mod.rs"));
        events.extend(permits.filter_map(last_text));
    }
    events.remove("{message}");
    events
}

/// The last text among the arguments of a call that begins behind its parenthesis, unless it is the value of a field.
fn last_text(arguments: &str) -> Option<String> {
    let (mut depth, mut last, mut at) = (1, None, 0);
    while depth > 0 {
        let rest = &arguments[at..];
        match rest.chars().next()? {
            '"' => {
                let (text, length) = text(rest)?;
                if !arguments[..at].trim_end().ends_with(['=', '(']) {
                    last = Some(text);
                }
                at += length;
                continue;
            }
            '(' => depth += 1,
            ')' => depth -= 1,
            _ => {}
        }
        at += rest.chars().next()?.len_utf8();
    }
    last
}

/// The text at the beginning of `code`, without its quotes and line breaks, and how long it is there.
fn text(code: &str) -> Option<(String, usize)> {
    let (mut text, mut characters) = (String::new(), code.char_indices().skip(1));
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return Some((text, at + 1)),
            '\\' => match characters.next()?.1 {
                '\n' => {
                    let spaces = |(_, character): &(usize, char)| character.is_whitespace();
                    let mut rest = characters.clone().peekable();
                    while rest.next_if(spaces).is_some() {
                        characters.next();
                    }
                }
                other => text.push(other),
            },
            other => text.push(other),
        }
    }
    None
}

fn files_below(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).expect("the directory can be read");
    let paths = entries.map(|entry| entry.expect("it can be read").path());
    let files = paths.flat_map(|path| if path.is_dir() { files_below(&path) } else { vec![path] });
    files.filter(|path| path.extension().is_some_and(|extension| extension == "rs")).collect()
}

#[test]
fn the_list_of_events_has_each_that_is_logged_and_no_other() {
    let document = document("docs/LOGGING.md");
    let rows = document.lines().filter_map(|line| line.strip_prefix("| `")?.split_once("` | "));
    let is_event = |(_, rest): &(&str, &str)| {
        ["DEBUG", "INFO", "WARN", "ERROR"].iter().any(|level| rest.starts_with(level))
    };
    let listed: BTreeSet<_> = rows.filter(is_event).map(|(event, _)| event.to_owned()).collect();
    let logged = events_in_the_code();
    assert!(logged.len() > 50, "the search finds them: {logged:?}");
    assert_eq!(listed.symmetric_difference(&logged).collect::<Vec<_>>(), Vec::<&String>::new());
}
