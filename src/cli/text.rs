//! Numbers, times and names as people read them.

use std::borrow::Cow;
use std::fmt::Write as _;

use jiff::Timestamp;
use unicode_width::UnicodeWidthChar;

use crate::service::log::one_line;
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

/// `12.3 MB`
pub(super) fn bytes(bytes: f64) -> String {
    let mut units = ["B", "kB", "MB", "GB", "TB", "PB"].into_iter();
    let (mut value, mut unit) = (bytes, units.next().unwrap_or_default());
    for larger in units {
        // Not 1000, which three digits would round to.
        if value < 999.5 {
            break;
        }
        (value, unit) = (value / 1000.0, larger);
    }
    if unit == "B" || value >= 99.95 { format!("{value:.0} {unit}") } else { format!("{value:.1} {unit}") }
}

/// A count as a number of bytes.
pub(super) fn count_of_bytes(count: u64) -> String {
    #[expect(clippy::cast_precision_loss, reason = "for people")]
    bytes(count as f64)
}

/// `3d 4h`
pub(super) fn duration(seconds: f64) -> String {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "whole seconds; below zero is zero"
    )]
    let seconds = seconds as u64;
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, _) => format!("{minutes}m {}s", seconds % 60),
        (0, _, _) => format!("{hours}h {}m", minutes % 60),
        _ => format!("{days}d {}h", hours % 24),
    }
}

/// From `then` to `now`; nothing, where a clock was set back.
pub(super) fn between(then: Timestamp, now: Timestamp) -> String {
    duration(then.duration_until(now).as_secs_f64())
}

/// `2026-03-01 09:00:00 UTC`
pub(super) fn time(time: Timestamp) -> String {
    time.strftime("%F %T UTC").to_string()
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
        PipeState::WaitingForName => "waiting for a name",
        PipeState::Dead => "dead",
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
    fn amounts_have_three_digits_and_a_unit() {
        let amounts = [0.0, 999.0, 999.6, 1234.0, 99_940.0, 99_960.0, 999_600.0, 2.5e9, 1e19];
        let shown = ["0 B", "999 B", "1.0 kB", "1.2 kB", "99.9 kB", "100 kB", "1.0 MB", "2.5 GB", "10000 PB"];
        assert_eq!(amounts.map(bytes), shown);
    }

    #[test]
    fn durations_have_two_units() {
        let seconds = [-5.0, 0.9, 59.9, 60.0, 3_599.0, 3_600.0, 86_399.0, 86_400.0, 1e6, f64::NAN];
        let shown = ["0s", "0s", "59s", "1m 0s", "59m 59s", "1h 0m", "23h 59m", "1d 0h", "11d 13h", "0s"];
        assert_eq!(seconds.map(duration), shown);
    }

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
