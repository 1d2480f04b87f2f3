//! Runs the commands of the guides in `docs/guides` exactly as written.
//!
//! A block of commands names its host after the language (` ```sh server `). A following block that is marked `text`
//! is the output of these commands: a line of `…` matches any lines, and `…` in a line matches any text.

use std::path::Path;

use super::host::Host;

/// A fenced code block.
struct Block {
    /// The words after the opening fence.
    info: Vec<String>,
    text: String,
    line: usize,
}

/// Runs all commands in section `section` of `docs/guides/NAME`, in order.
#[track_caller]
pub(crate) fn follow(name: &str, section: &str, server: &Host, client: &Host) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/guides").join(name);
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let mut printed: Option<String> = None;
    let blocks = blocks(&text, section);
    assert!(!blocks.is_empty(), "{name} has no commands in '{section}'");
    for Block { info, text, line } in blocks {
        let info: Vec<_> = info.iter().map(String::as_str).collect();
        let place = format!("{name}:{line}");
        let mut run = |host: &Host| {
            // Both streams in the order in which a terminal shows them.
            let ended = host.try_run(&format!("exec 2>&1\n{text}"));
            assert!(ended.success, "{place} failed:\n{text}\n{}\n{}", ended.text, host.journal("'spipe*'"));
            printed = Some(ended.text);
        };
        match info[..] {
            ["sh", "server"] => run(server),
            ["sh", "client"] => run(client),
            ["sh", "both"] => {
                run(server);
                run(client);
            }
            ["text"] => {
                let printed = printed.as_deref().unwrap_or_else(|| panic!("{place} follows no commands"));
                assert!(matches(printed, &text), "{place}: expected\n{text}\nbut they print\n{printed}");
            }
            _ => panic!("{place}: a block is marked sh and a host, or text, and not {info:?}"),
        }
    }
}

/// The code blocks of the section with this heading.
fn blocks(text: &str, section: &str) -> Vec<Block> {
    let mut blocks = Vec::new();
    let (mut within, mut open): (bool, Option<Block>) = (false, None);
    for (number, line) in text.lines().enumerate() {
        match (&mut open, line.strip_prefix("```")) {
            (Some(_), Some(_)) => blocks.extend(open.take()),
            (Some(block), None) => {
                block.text.push_str(line);
                block.text.push('\n');
            }
            (None, Some(info)) if within => {
                let info = info.split_whitespace().map(ToOwned::to_owned).collect();
                open = Some(Block { info, text: String::new(), line: number + 1 });
            }
            (None, Some(_)) => open = None,
            (None, None) => {
                if let Some(heading) = line.strip_prefix("## ") {
                    within = heading == section;
                }
            }
        }
    }
    blocks
}

/// Whether `printed` matches the pattern `expected`.
fn matches(printed: &str, expected: &str) -> bool {
    let mut rest = printed.trim();
    let mut pieces = expected.trim().split('…').map(str::trim).enumerate().peekable();
    while let Some((index, piece)) = pieces.next() {
        let Some(at) = rest.find(piece) else { return false };
        let is_last = pieces.peek().is_none();
        if (index == 0 && at != 0) || (is_last && !piece.is_empty() && !rest.ends_with(piece)) {
            return false;
        }
        rest = &rest[at + piece.len()..];
    }
    true
}
