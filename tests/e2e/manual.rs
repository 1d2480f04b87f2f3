//! The manual pages: complete, and as the tools that print them want them.

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;

use crate::support::process::{run, spipe};
use crate::support::site::Site;

const COMMAND: &str = "spipe.1";
const FILE: &str = "spipe.toml.5";
const SPIPED: &str = "spiped.1";

/// A directory with all pages.
fn pages() -> Site {
    let site = Site::new();
    run(spipe().args(["generate", "man", &site.name("")])).succeeded();
    site
}

/// What a terminal shows of the page.
fn shown(site: &Site, page: &str) -> String {
    let text = run(Command::new("mandoc").args(["-T", "ascii"]).arg(site.path(page))).succeeded().text();
    let mut shown = String::new();
    for character in text.chars() {
        // Bold and underlined characters are typed over others.
        match character {
            '\u{8}' => {
                shown.pop();
            }
            other => shown.push(other),
        }
    }
    shown
}

fn words(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The options in a help text, each with what it says of them.
fn options(help: &str) -> Vec<(String, String)> {
    let lines = help.lines().skip_while(|line| *line != "Options:").skip(1);
    let mut options: Vec<(String, String)> = Vec::new();
    for line in lines.take_while(|line| !line.is_empty()) {
        // Explanations, which may begin with a dash as well, stand further right.
        let option = line.trim_start();
        let (head, rest) = match option.split_once("  ") {
            _ if line.len() - option.len() > 6 => (None, line),
            Some((head, rest)) => (Some(head), rest),
            None => (Some(option), ""),
        };
        if let Some(head) = head {
            let name = head.split_once("--").expect("each option has a long name").1;
            options.push((format!("--{}", name.replace(['<', '>'], "")), String::new()));
        }
        let (_, explanation) = options.last_mut().expect("the first line is that of an option");
        *explanation = words(&format!("{explanation} {rest}"));
    }
    options
}

/// The subcommands in the help text.
fn commands(help: &str) -> Vec<&str> {
    let lines = help.lines().skip_while(|line| *line != "Commands:").skip(1);
    let names = lines.take_while(|line| !line.is_empty()).filter_map(|line| line.strip_prefix("  "));
    names.filter(|line| !line.starts_with(' ')).filter_map(|line| line.split(' ').next()).collect()
}

#[test]
fn mandoc_finds_nothing_to_warn_of() {
    let site = pages();
    for page in [COMMAND, FILE, SPIPED] {
        let said = run(Command::new("mandoc").args(["-T", "lint", "-W", "warning"]).arg(site.path(page)))
            .succeeded();
        assert_eq!(said.text(), "", "{page}");
    }
}

#[test]
fn mandoc_warns_of_a_page_that_is_wrong() {
    // Without this, the test above would also succeed with a mandoc that does not look.
    let site = pages();
    let page = fs::read_to_string(site.path(COMMAND)).expect("the page is there");
    fs::write(site.path(COMMAND), page.replace(".SH OPTIONS", ".XX OPTIONS")).expect("it can be written");
    let said = run(Command::new("mandoc").args(["-T", "lint", "-W", "warning"]).arg(site.path(COMMAND)));
    assert_ne!(said.code, Some(0), "{said:?}");
}

#[test]
fn the_page_of_the_command_has_every_option_of_the_help_with_its_explanation() {
    let page = words(&shown(&pages(), COMMAND));
    let help = run(spipe().arg("--help")).succeeded().text();
    let mut count = 0;
    let mut helps = vec![help.clone()];
    helps.extend(commands(&help).iter().map(|name| run(spipe().args([*name, "--help"])).succeeded().text()));
    for help in helps {
        for (option, explanation) in options(&help) {
            // The page has this name beside the others.
            let explanation = explanation.trim_end_matches(" [alias: -v]");
            let entry = format!("{option} {explanation}");
            assert!(page.contains(&entry), "the page does not have: {entry}");
            count += 1;
        }
    }
    assert!(count > 90, "{count} options");
}

#[test]
fn the_page_of_the_command_has_a_section_for_every_command_of_the_help() {
    let page = shown(&pages(), COMMAND);
    let help = run(spipe().arg("--help")).succeeded().text();
    let commands = commands(&help);
    assert!(commands.contains(&"keygen") && commands.contains(&"resume"), "{commands:?}");
    for command in commands {
        let heading = |line: &str| {
            line.strip_prefix("   spipe ").is_some_and(|rest| rest.split(' ').next() == Some(command))
        };
        assert!(page.lines().any(heading), "no section for {command}");
    }
}

/// The page's options in the section with this heading, and how it writes their values.
fn listed(page: &str, heading: &str) -> Vec<(String, String)> {
    let lines = page.lines().skip_while(|line| *line != heading).skip(1);
    let entries = lines
        .take_while(|line| line.is_empty() || line.starts_with(' '))
        .filter_map(|line| line.strip_prefix("       ").filter(|line| !line.starts_with(' ')))
        .filter_map(|line| line.split_once(" = "));
    entries.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

/// The parts of a file, by the page's headings for their options.
const PARTS: [(&str, &str); 3] =
    [("OPTIONS OF THE PROCESS", ""), ("OPTIONS OF A PIPE", "[[pipe]]\n"), ("OPTIONS OF A KEY", "[[key]]\n")];

#[test]
fn the_page_of_the_file_has_exactly_the_options_that_a_file_may_have() {
    let site = pages();
    let page = shown(&site, FILE);
    for (heading, table) in PARTS {
        site.configure(format!("{table}none-of-these = 1\n"));
        let refused = run(spipe().arg("check").arg(site.file())).stderr;
        let (_, known) = refused.split_once("expected one of ").expect("the error has all names");
        let known: BTreeSet<_> = known.split('`').skip(1).step_by(2).collect();
        let listed = listed(&page, heading);
        assert_eq!(listed.iter().map(|(name, _)| name.as_str()).collect::<BTreeSet<_>>(), known, "{heading}");
        assert_eq!(listed.len(), known.len(), "{heading}: one is there twice");
    }
}

#[test]
fn the_page_of_the_file_shows_of_which_type_each_value_is() {
    let site = pages();
    let page = shown(&site, FILE);
    for (heading, table) in PARTS {
        for (name, written) in listed(&page, heading) {
            let right: &[&str] = match written.as_str() {
                "true" => &["true"],
                "DATE" => &["2027-01-31"],
                text if text.starts_with('"') => &["'x'"],
                text if text.starts_with('[') => &["'x'", "['x', 'y']"],
                _ => &["1"],
            };
            for value in ["true", "2027-01-31", "'x'", "['x', 'y']", "1"] {
                site.configure(format!("{table}{name} = {value}\n"));
                let said = run(spipe().arg("check").arg(site.file())).stderr;
                let fits = !said.contains("invalid type") && !said.contains("wanted ");
                assert_eq!(fits, right.contains(&value), "{name} = {written}: {value}: {said}");
            }
        }
    }
}

#[test]
fn pages_for_a_directory_that_is_not_there_fail() {
    let site = Site::new();
    let path = site.name("not/there");
    run(spipe().args(["generate", "man", &path]))
        .failed_with(1, &["cannot write", "not/there/spipe.1", "No such file or directory"]);
}

#[test]
fn pages_that_are_there_already_are_replaced() {
    let site = pages();
    let page = fs::read_to_string(site.path(FILE)).expect("the page is there");
    fs::write(site.path(FILE), page.repeat(2)).expect("it can be written");
    run(spipe().args(["generate", "man", &site.name("")])).succeeded();
    assert_eq!(fs::read_to_string(site.path(FILE)).expect("the page is there"), page);
}
