//! Numbers, times and names as people read them.

use std::borrow::Cow;
use std::fmt::Write as _;

use unicode_width::UnicodeWidthChar;

use crate::service::log::one_line;
pub(super) use crate::status::human::{between, bytes, duration, moment as time};
use crate::status::report::{Mode, PipeState, State, TargetState};

/// `text` on one line, with nothing in it that would change what a terminal shows around it.
pub(super) fn printable(text: &str) -> Cow<'_, str> {
    let line = one_line(text);
    if !line.contains(changes_order) {
        return line;
    }
    let escape = |c: char| if changes_order(c) { c.escape_default().collect() } else { String::from(c) };
    Cow::Owned(line.chars().map(escape).collect())
}

/// Characters without a width that end lines or change the direction of those after them (UAX #9).
fn changes_order(c: char) -> bool {
    matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

/// Columns of a terminal that `text` takes, character by character as [`cut`] counts them.
pub(super) fn width(text: &str) -> usize {
    text.chars().filter_map(UnicodeWidthChar::width).sum()
}

/// As much of the beginning of `text` as has room in so many columns.
pub(super) fn cut(text: &str, columns: usize) -> &str {
    let mut used = 0;
    let end = text.char_indices().find(|(_, c)| {
        used += c.width().unwrap_or(0);
        used > columns
    });
    end.map_or(text, |(at, _)| &text[..at])
}

/// A count as a number of bytes.
pub(super) fn count_of_bytes(count: u64) -> String {
    #[expect(clippy::cast_precision_loss, reason = "for people")]
    bytes(count as f64)
}

/// `1 connection`, `2 connections`
pub(super) fn connections(count: u64) -> String {
    format!("{count} connection{}", if count == 1 { "" } else { "s" })
}

/// `12 of 100`
pub(super) fn of_limit(now: usize, limit: Option<usize>) -> String {
    let mut text = now.to_string();
    if let Some(limit) = limit {
        let _ = write!(text, " of {limit}");
    }
    text
}

/// Causes and how often each was there: those that were there.
pub(super) fn causes<'map>(counts: impl IntoIterator<Item = (&'map String, &'map u64)>) -> String {
    let there = counts.into_iter().filter(|(_, count)| **count > 0);
    there.map(|(cause, count)| format!("{cause} {count}")).collect::<Vec<_>>().join(", ")
}

pub(super) fn state(state: State) -> &'static str {
    match state {
        State::Serving => "serving",
        State::Stopping => "stopping",
    }
}

pub(super) fn mode(mode: Mode) -> &'static str {
    match mode {
        Mode::Encrypt => "encrypts",
        Mode::Decrypt => "decrypts",
    }
}

pub(super) fn pipe_state(state: PipeState) -> &'static str {
    match state {
        PipeState::Listening => "listening",
        PipeState::WaitingForName => "waiting for name",
        PipeState::Dead => "dead",
        PipeState::Removed => "removed",
        PipeState::Stopping => "stopping",
    }
}

pub(super) fn target_state(state: TargetState) -> &'static str {
    match state {
        TargetState::Up => "up",
        TargetState::Avoided => "avoided",
        TargetState::Down => "down",
        TargetState::Drained => "drained",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_would_change_a_terminal_is_escaped() {
        assert_eq!(printable("a\u{1b}[2J\u{202e}b\n\u{2028}"), "a\\u{1b}[2J\\u{202e}b\\n\\u{2028}");
        assert_eq!(printable("Grüße 世界 e\u{301}"), "Grüße 世界 e\u{301}");
    }

    #[test]
    fn a_wide_character_is_cut_as_a_whole() {
        assert_eq!(
            [0, 1, 2, 3, 4, 9].map(|columns| cut("a世b", columns)),
            ["", "a", "a", "a世", "a世b", "a世b"]
        );
        assert_eq!(cut("e\u{301}x", 1), "e\u{301}", "an accent takes no column");
    }
}
