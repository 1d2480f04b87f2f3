//! Completions, in the shells that they are for.

use std::fs::{self, File};
use std::process::{Command, Stdio};

use crate::support::process::{run, spipe};
use crate::support::site::Site;

/// A directory with the completions of this shell.
fn completions(shell: &str) -> Site {
    let site = Site::new();
    let script = run(spipe().args(["generate", "completions", shell])).succeeded();
    fs::write(site.path(shell), script.stdout).expect("the file can be written");
    site
}

/// What bash offers for the last of these words, sorted.
fn offered_by_bash(words: &[&str]) -> Vec<String> {
    let site = completions("bash");
    // As bash calls it: the command, the word, and the one before. `complete -p` fails if the script has not registered it.
    let script = "source \"$0\" && complete -p spipe >/dev/null || exit 1
        COMP_WORDS=(\"$@\") COMP_CWORD=$(($# - 1))
        _spipe spipe \"${COMP_WORDS[COMP_CWORD]}\" \"${COMP_WORDS[COMP_CWORD - 1]}\"
        printf '%s\\n' \"${COMPREPLY[@]}\"";
    let mut bash = Command::new("bash");
    bash.args(["--norc", "-c", script, &site.name("bash"), "spipe"]).args(words);
    sorted(&run(&mut bash).succeeded().text())
}

/// What fish offers for the end of this command line, sorted.
fn offered_by_fish(line: &str) -> Vec<String> {
    let site = completions("fish");
    let mut fish = Command::new("fish");
    fish.args(["--no-config", "-c", "source $argv[1]; complete -C $argv[2]", &site.name("fish"), line]);
    // Behind a tab is the explanation.
    let said = run(&mut fish).succeeded().text();
    sorted(&said.lines().filter_map(|line| line.split('\t').next()).collect::<Vec<_>>().join("\n"))
}

fn sorted(lines: &str) -> Vec<String> {
    let mut lines: Vec<_> = lines.lines().filter(|line| !line.is_empty()).map(ToOwned::to_owned).collect();
    lines.sort();
    lines
}

#[test]
fn bash_completes_options() {
    let expected = ["--state-directory", "--status", "--status-public", "--status-user"];
    assert_eq!(offered_by_bash(&["--st"]), expected);
}

#[test]
fn bash_completes_commands_and_their_options() {
    assert_eq!(offered_by_bash(&["re"]), ["reload", "resume"]);
    assert_eq!(offered_by_bash(&["ping", "--th"]), ["--through"]);
}

#[test]
fn bash_completes_the_values_of_an_option() {
    assert_eq!(offered_by_bash(&["--cipher", "a"]), ["aegis256x4", "aes256gcm", "auto"]);
}

#[test]
fn bash_does_not_complete_what_is_hidden() {
    assert_eq!(offered_by_bash(&["gen"]), [""; 0]);
}

#[test]
fn fish_completes_options_and_commands() {
    let expected = ["--state-directory", "--status", "--status-public", "--status-user"];
    assert_eq!(offered_by_fish("spipe --st"), expected);
    assert_eq!(offered_by_fish("spipe re"), ["reload", "resume"]);
}

#[test]
fn fish_completes_the_values_of_an_option() {
    assert_eq!(offered_by_fish("spipe ping --cipher a"), ["aegis256x4", "aes256gcm", "auto"]);
    // With a space instead, the script of clap_complete takes the option for one whose value is missing, and fish offers files.
    assert_eq!(
        offered_by_fish("spipe --cipher=a"),
        ["--cipher=aegis256x4", "--cipher=aes256gcm", "--cipher=auto"]
    );
}

#[test]
fn fish_does_not_complete_what_is_hidden() {
    // With nothing to offer, fish offers files.
    assert!(!offered_by_fish("spipe gen").contains(&"generate".to_owned()));
}

#[test]
fn zsh_accepts_its_completions() {
    let site = completions("zsh");
    run(Command::new("zsh").args(["-f", "-n", &site.name("zsh")])).succeeded();
    let register = "autoload -U compinit && compinit -u -D && source $1 && print $_comps[spipe]";
    let said = run(Command::new("zsh").args(["-f", "-c", register, "zsh", &site.name("zsh")])).succeeded();
    assert_eq!((said.text().as_str(), said.stderr.as_str()), ("_spipe", ""));
}

#[test]
fn a_shell_that_has_no_completions_is_a_usage_error() {
    run(spipe().args(["generate", "completions", "tcsh"])).failed_with(2, &["'tcsh'", "bash", "fish", "zsh"]);
}

#[test]
fn completions_that_find_no_room_are_an_error() {
    let full = File::options().write(true).open("/dev/full").expect("/dev/full can be opened");
    let mut command = spipe();
    command.args(["generate", "completions", "bash"]).stdout(Stdio::from(full));
    let ended = command.stderr(Stdio::piped()).output().expect("spipe can be started");
    let said = String::from_utf8_lossy(&ended.stderr).into_owned();
    assert_eq!(ended.status.code(), Some(1), "{said}");
    assert!(said.contains("cannot write to standard output: No space left on device"), "{said}");
}
