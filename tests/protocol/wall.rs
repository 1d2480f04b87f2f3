//! The walls between the rooms (the top-level modules) of `src`: each room uses only later ones, and `proto` is pure.
//!
//! Because of these rules every protocol test is deterministic, every fuzz target is a function call, and all
//! cryptography is in one directory. The compiler cannot enforce them inside one crate, so these tests do.

use std::fs;
use std::path::{Path, PathBuf};

/// Names that would make `proto` impure: I/O, the clock, the environment, threads, and its own randomness.
///
/// `core::net` is allowed. `SocketAddr` is plain data, and `proto` has one in *Open*; it is written as `core::net` to
/// show that no sockets are involved.
const IMPURE: &[&str] = &[
    "tokio",
    "std::net",
    "std::io",
    "std::fs",
    "std::env",
    "std::os",
    "std::path",
    "std::process",
    "std::thread",
    "std::time",
    "async",
    "await",
    "Instant",
    "SystemTime",
    "rand",
    "rand_core",
    "getrandom",
    "SystemRandom",
    "rustix",
    "socket2",
    "tracing",
    "println",
    "eprintln",
    "print",
    "eprint",
    "dbg",
];

/// Notations of `std` paths that the list above would not recognise.
const HIDDEN: &[&str] = &["std::{", "std::*", "std as ", "::std::"];

/// Names that only `proto` may use. (`x25519` is not listed: it is a field of `InitiatorRandomness`, which `tunnel`
/// fills.)
const CRYPTOGRAPHY: &[&str] = &[
    "aegis",
    "chacha20poly1305",
    "aws_lc_rs",
    "hkdf",
    "hmac",
    "sha2",
    "x25519_dalek",
    "libcrux_ml_kem",
    "crypto_bigint",
];

#[test]
fn proto_uses_no_io_clock_environment_or_randomness() {
    assert_names_none("proto", IMPURE);
    assert_names_none("proto", HIDDEN);
}

/// All rooms in the order in which they use each other: each may use later ones, and no earlier one.
const ROOMS: &[&str] = &[
    "cli",
    "config",
    "status",
    "service",
    "pipe",
    "connection",
    "tunnel",
    "upstream",
    "gate",
    "listen",
    "pump",
    "stats",
    "stream",
    "names",
    "proxy_header",
    "addr",
    "proto",
];

#[test]
fn every_room_is_in_the_order() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found: Vec<_> = fs::read_dir(source)
        .unwrap()
        .map(|entry| entry.unwrap().path().file_stem().unwrap().to_string_lossy().into_owned())
        .filter(|name| name != "lib" && name != "main")
        .collect();
    let mut known = ROOMS.to_vec();
    found.sort();
    known.sort_unstable();
    assert_eq!(found, known);
}

#[test]
fn no_room_uses_an_earlier_room() {
    for (place, room) in ROOMS.iter().enumerate() {
        assert_uses_none(room, &ROOMS[..place]);
    }
}

#[test]
fn the_map_in_lib_rs_has_every_arrow_and_no_other() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let map = fs::read_to_string(source.join("lib.rs")).unwrap();
    let rows: Vec<Vec<&str>> = map
        .lines()
        .filter_map(|line| line.strip_prefix("//! | [`"))
        .map(|row| row.split(" | ").collect())
        .collect();
    let drawn: Vec<&str> = rows.iter().map(|row| row[0].trim_end_matches("`]")).collect();
    assert_eq!(drawn, ROOMS, "the rows are the rooms, in their order");
    for row in &rows {
        let room = row[0].trim_end_matches("`]");
        let arrows: Vec<&str> = row[2].split('`').skip(1).step_by(2).collect();
        let used = ROOMS.iter().filter(|other| **other != room && uses(room, other)).copied();
        assert_eq!(arrows, used.collect::<Vec<_>>(), "what {room} uses");
    }
}

/// Whether code of `room` names `other`.
fn uses(room: &str, other: &str) -> bool {
    let word = format!("crate::{other}");
    let uses = |file: &PathBuf| {
        let text = fs::read_to_string(file).unwrap();
        text.lines().take_while(|line| *line != "#[cfg(test)]").any(|line| names(line, &word))
    };
    files_of(room).iter().any(uses)
}

#[test]
fn only_proto_names_cryptography() {
    for room in ROOMS.iter().filter(|room| **room != "proto") {
        assert_names_none(room, CRYPTOGRAPHY);
    }
}

#[test]
fn the_search_finds_whole_words_only() {
    // All tests in this file depend on this function.
    for (code, word) in [
        ("use std::io;", "std::io"),
        ("x = std::io::Error;", "std::io"),
        ("async fn f() {}", "async"),
        ("a.await", "await"),
        ("use std::{fmt, io};", "std::{"),
        ("let t = Instant::now(); // why", "Instant"),
        ("let url = \"http://x\"; tokio", "tokio"),
    ] {
        assert!(names(code, word), "{code} names {word}");
    }
    for (code, word) in [
        ("use std::iox;", "std::io"),
        ("let randomness = 1;", "rand"),
        ("use core::net::IpAddr;", "std::net"),
        ("fn instant() {}", "Instant"),
        ("// tokio is not used here", "tokio"),
        ("/// as std::io does", "std::io"),
        ("let x = 1; // async", "async"),
        ("use core::net::IpAddr;", "crate::net"),
    ] {
        assert!(!names(code, word), "{code} does not name {word}");
    }
}

/// Fails for each line in `src/ROOM` that uses one of the rooms `others`, or that could do so undetected.
fn assert_uses_none(room: &str, others: &[&str]) {
    for other in others {
        assert_names_none(room, &[&format!("crate::{other}")]);
    }
    assert_names_none(room, &["crate::{", "super::super"]);
}

/// Fails for each line in `src/ROOM` that names one of `words`. Also fails if there is no such room, so that a
/// renamed room does not escape the test.
fn assert_names_none(room: &str, words: &[&str]) {
    let files = files_of(room);
    assert!(!files.is_empty(), "no Rust files in {room}");
    let mut found = Vec::new();
    for file in files {
        let text = fs::read_to_string(&file).unwrap();
        for (number, line) in (1..).zip(text.lines()) {
            for word in words.iter().filter(|word| names(line, word)) {
                found.push(format!("{}:{number} names {word}", file.display()));
            }
        }
    }
    assert!(found.is_empty(), "{}", found.join("\n"));
}

fn files_of(room: &str) -> Vec<PathBuf> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let file = source.join(format!("{room}.rs"));
    if file.exists() { vec![file] } else { rust_files(&source.join(room)) }
}

fn rust_files(directory: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(directory) else { return Vec::new() };
    let paths = entries.map(|entry| entry.unwrap().path());
    let files = paths.flat_map(|path| if path.is_dir() { rust_files(&path) } else { vec![path] });
    files.filter(|path| path.extension().is_some_and(|extension| extension == "rs")).collect()
}

/// Whether the code of this line, without its comment, has `word` as a whole word.
///
/// Words in string literals and block comments count: such a false alarm is visible and easy to avoid.
fn names(line: &str, word: &str) -> bool {
    let code = code(line);
    code.match_indices(word).any(|(at, _)| {
        let before = code[..at].chars().next_back();
        let after = code[at + word.len()..].chars().next();
        let open = |neighbour: Option<char>| neighbour.is_none_or(|c| !c.is_alphanumeric() && c != '_');
        // A word that begins or ends with punctuation is bounded by it. `net::` in `core::net::IpAddr` is not a whole
        // word: it continues a path.
        let starts = open(before) && (before != Some(':') || word.starts_with(':'));
        let ends = open(after) || !word.ends_with(|c: char| c.is_alphanumeric());
        starts && ends
    })
}

/// The line up to a `//` that is not part of a string such as a URL.
fn code(line: &str) -> &str {
    let comment = line.match_indices("//").find(|(at, _)| line[..*at].matches('"').count().is_multiple_of(2));
    comment.map_or(line, |(at, _)| &line[..at])
}
