//! What is seen as lines of text: pure functions, whatever the terminal is.

use std::borrow::Cow;
use std::ffi::OsStr;
use std::fmt::Write as _;

use jiff::Timestamp;

use super::watch::{Carrying, Seen};
use crate::cli::control::client::ControlError;
use crate::cli::text::{
    between, bytes, count_of_bytes, cut, duration, of_limit, pipe_state, printable, state, target_state,
    width,
};
use crate::status::report::{Pipe, PipeState, Report, State, TargetState};

/// The size of a terminal.
#[derive(Clone, Copy, Debug)]
pub(super) struct Size {
    pub(super) columns: usize,
    pub(super) lines: usize,
}

/// Whether there are colours. They repeat what words say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Paint {
    Colours,
    Plain,
}

impl Paint {
    /// What the environment variable `NO_COLOR` says (<https://no-color.org>).
    pub(super) fn chosen(no_color: Option<&OsStr>) -> Self {
        if no_color.is_some_and(|value| !value.is_empty()) { Self::Plain } else { Self::Colours }
    }
}

/// How a part of a line stands out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tone {
    Plain,
    Heading,
    Good,
    Warning,
    Bad,
}

impl Tone {
    /// Of ECMA-48, 8.3.117.
    fn code(self) -> Option<&'static str> {
        match self {
            Self::Plain => None,
            Self::Heading => Some("1"),
            Self::Good => Some("32"),
            Self::Warning => Some("33"),
            Self::Bad => Some("1;31"),
        }
    }
}

/// A part of a line, without anything that moves the cursor.
struct Span {
    text: String,
    tone: Tone,
}

impl Span {
    fn new(tone: Tone, text: impl AsRef<str>) -> Self {
        Self { text: printable(text.as_ref()).into_owned(), tone }
    }

    fn plain(text: impl AsRef<str>) -> Self {
        Self::new(Tone::Plain, text)
    }

    /// A count that should be zero.
    fn bad_unless_zero(count: u64) -> Self {
        Self::new(if count == 0 { Tone::Plain } else { Tone::Warning }, count.to_string())
    }
}

type Line = Vec<Span>;

/// As much of a line as has room, with colours or without.
fn fit(line: &[Span], columns: usize, paint: Paint) -> String {
    let (mut text, mut left) = (String::new(), columns);
    for Span { text: whole, tone } in line {
        let part = cut(whole, left);
        match tone.code().filter(|_| paint == Paint::Colours && !part.is_empty()) {
            Some(code) => {
                let _ = write!(text, "\x1b[{code}m{part}\x1b[0m");
            }
            None => text.push_str(part),
        }
        if part.len() < whole.len() {
            break;
        }
        left -= width(part);
    }
    text.truncate(text.trim_end_matches(' ').len());
    text
}

/// Which part of what is too long is shown.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Scroll {
    /// The first line.
    first: usize,
    /// How many there were room for last.
    page: usize,
}

/// Where to scroll.
#[derive(Clone, Copy, Debug)]
pub(super) enum To {
    Start,
    End,
    /// So many lines down.
    Line(isize),
    /// So many pages down.
    Page(isize),
}

impl Scroll {
    /// Scrolls; how far there is something to see is known when it is drawn.
    pub(super) fn go(&mut self, to: To) {
        self.first = match to {
            To::Start => 0,
            To::End => usize::MAX,
            To::Line(lines) => self.first.saturating_add_signed(lines),
            To::Page(pages) => {
                self.first.saturating_add_signed(pages.saturating_mul(self.page.cast_signed()))
            }
        };
    }
}

/// What there is to see.
pub(super) struct View {
    /// Stays where it is.
    head: Vec<Line>,
    /// Scrolls.
    body: Vec<Line>,
    /// What the connections are sorted by.
    sort: &'static str,
}

impl View {
    /// `failed` is why the process could not be asked since.
    pub(super) fn of(seen: &Seen, failed: Option<&ControlError>) -> Self {
        let report = &seen.report;
        let second = match failed {
            None => vec![Span::plain(resources(seen))],
            Some(error) => {
                vec![Span::new(Tone::Bad, format!("Trying again; this is what was seen last. {error}"))]
            }
        };
        let mut body = Vec::new();
        for reason in &report.not_ready {
            body.push(vec![Span::new(Tone::Bad, format!("not ready: {reason}"))]);
        }
        if let Some(last) = &report.reload.last
            && let Some(error) = &last.error
        {
            let ago = between(last.at, report.now);
            body.push(vec![Span::new(Tone::Bad, format!("not reloaded, {ago} ago: {error}"))]);
        }
        for table in [pipes(report), keys(report), targets(report)] {
            body.push(Vec::new());
            body.extend(table.lines());
        }
        body.push(Vec::new());
        let first = if seen.connections.len() < seen.total {
            format!(", the first {}", seen.connections.len())
        } else {
            String::new()
        };
        let title = format!("{} connections by {}{first}", seen.total, seen.sort.name());
        body.push(vec![Span::plain(title)]);
        body.extend(connections(&seen.connections).lines());
        Self { head: vec![process(report), second], body, sort: seen.sort.name() }
    }

    /// All of it, without colours.
    pub(super) fn plain(&self) -> impl Iterator<Item = String> {
        self.head.iter().chain(&self.body).map(|line| fit(line, usize::MAX, Paint::Plain))
    }

    /// As many lines as the terminal has at most, with the keys in the last. Takes `scroll` back to where there is something to see.
    pub(super) fn render(&self, size: Size, scroll: &mut Scroll, paint: Paint) -> Vec<String> {
        scroll.page = size.lines.saturating_sub(self.head.len() + 1);
        scroll.first = scroll.first.min(self.body.len().saturating_sub(scroll.page));
        let shown = self.body.iter().skip(scroll.first).take(scroll.page);
        let mut lines: Vec<_> =
            self.head.iter().chain(shown).map(|line| fit(line, size.columns, paint)).collect();
        lines.resize(size.lines.saturating_sub(1), String::new());
        if size.lines > 0 {
            let last = (scroll.first + scroll.page).min(self.body.len());
            let keys = format!(
                "q quit  s sort ({})  arrows, page up and down: scroll  {}-{last} of {}",
                self.sort,
                scroll.first + 1,
                self.body.len()
            );
            lines.push(fit(&[Span::new(Tone::Heading, keys)], size.columns, paint));
        }
        lines
    }
}

fn process(report: &Report) -> Line {
    let doing = match report.state {
        State::Serving => Tone::Good,
        State::Stopping => Tone::Warning,
    };
    let ready = if report.ready { Span::new(Tone::Good, "ready") } else { Span::new(Tone::Bad, "not ready") };
    vec![
        Span::new(Tone::Heading, format!("spipe {}", report.version)),
        Span::plain(format!("  process {}  ", report.pid)),
        Span::new(doing, state(report.state)),
        Span::plain("  "),
        ready,
        Span::plain(format!("  for {}", between(report.started, report.now))),
    ]
}

fn resources(seen: &Seen) -> String {
    let (process, reload) = (&seen.report.process, &seen.report.reload);
    let limit = process.descriptors_limit.map(|limit| format!(" of {limit}")).unwrap_or_default();
    let parts = [
        process.descriptors.map(|open| format!("files {open}{limit}")),
        process.resident_bytes.map(|bytes| format!("memory {}", count_of_bytes(bytes))),
        seen.processors.map(|processors| format!("processor {:.1} %", processors * 100.0)),
        process.threads.map(|threads| format!("threads {threads}")),
        Some(format!("reloads {} ({} failed)", reload.succeeded + reload.failed, reload.failed)),
    ];
    parts.into_iter().flatten().collect::<Vec<_>>().join("  ")
}

/// On which side of its column a text is.
#[derive(Clone, Copy)]
enum Align {
    Left,
    Right,
}
use Align::{Left, Right};

/// Columns as wide as what is in them.
struct Table {
    columns: &'static [(&'static str, Align)],
    rows: Vec<Line>,
}

impl Table {
    fn lines(self) -> Vec<Line> {
        let heading = self.columns.iter().map(|(name, _)| Span::new(Tone::Heading, name)).collect();
        let rows: Vec<Line> = std::iter::once(heading).chain(self.rows).collect();
        let widest =
            |column: usize| rows.iter().map(|row| width(&row[column].text)).max().unwrap_or_default();
        let widths: Vec<_> = (0..self.columns.len()).map(widest).collect();
        let pad = |row: Line| {
            let mut line = Vec::with_capacity(2 * row.len());
            for ((span, width_of_column), (_, align)) in row.into_iter().zip(&widths).zip(self.columns) {
                let space = Span { text: " ".repeat(width_of_column - width(&span.text)), tone: Tone::Plain };
                let gap = Span { text: "  ".to_owned(), tone: Tone::Plain };
                match align {
                    Left => line.extend([span, space, gap]),
                    Right => line.extend([space, span, gap]),
                }
            }
            line
        };
        rows.into_iter().map(pad).collect()
    }
}

fn pipes(report: &Report) -> Table {
    let row = |pipe: &Pipe| {
        let tone = match pipe.state {
            PipeState::Listening => Tone::Good,
            PipeState::WaitingForName | PipeState::Removed | PipeState::Stopping => Tone::Warning,
            PipeState::Dead => Tone::Bad,
        };
        vec![
            Span::plain(&pipe.name),
            Span::new(tone, pipe_state(pipe.state)),
            Span::plain(of_limit(pipe.connections.now, pipe.connections.limit)),
            Span::plain(format!("{:.1}", pipe.rate.connections)),
            Span::plain(bytes(pipe.rate.to_target)),
            Span::plain(bytes(pipe.rate.from_target)),
            Span::plain(pipe.strangers.to_string()),
            Span::bad_unless_zero(pipe.failures.last_24_hours.values().sum()),
        ]
    };
    Table {
        columns: &[
            ("PIPE", Left),
            ("STATE", Left),
            ("CONNECTIONS", Right),
            ("NEW/S", Right),
            ("TO TARGET/S", Right),
            ("FROM TARGET/S", Right),
            ("STRANGERS", Right),
            ("FAILED 24H", Right),
        ],
        rows: report.pipes.iter().map(row).collect(),
    }
}

fn keys(report: &Report) -> Table {
    let ago = |time: Option<Timestamp>| match time {
        Some(time) => Cow::Owned(format!("{} ago", between(time, report.now))),
        None => Cow::Borrowed("not known"),
    };
    let expires = |time: Option<Timestamp>| match time {
        Some(time) if time <= report.now => Span::new(Tone::Bad, "expired"),
        Some(time) => Span::plain(format!("in {}", between(report.now, time))),
        None => Span::plain("never"),
    };
    let rows = report.pipes.iter().flat_map(|pipe| {
        pipe.keys.iter().map(move |key| {
            vec![
                Span::plain(&key.fingerprint),
                Span::plain(key.name.as_deref().unwrap_or_default()),
                Span::plain(&pipe.name),
                Span::plain(key.connections.to_string()),
                Span::plain(ago(key.last_used)),
                expires(key.expires),
            ]
        })
    });
    Table {
        columns: &[
            ("KEY", Left),
            ("NAME", Left),
            ("PIPE", Left),
            ("CONNECTIONS", Right),
            ("LAST USED", Right),
            ("EXPIRES", Right),
        ],
        rows: rows.collect(),
    }
}

fn targets(report: &Report) -> Table {
    let rows = report.pipes.iter().flat_map(|pipe| {
        pipe.targets.iter().map(move |target| {
            let tone = match target.state {
                TargetState::Up => Tone::Good,
                TargetState::Avoided | TargetState::Drained => Tone::Warning,
                TargetState::Down => Tone::Bad,
            };
            vec![
                Span::plain(&target.target),
                Span::plain(&pipe.name),
                Span::new(tone, target_state(target.state)),
                Span::plain(between(target.since, report.now)),
                Span::plain(target.connections.to_string()),
                Span::plain(target.last_error.as_deref().unwrap_or_default()),
            ]
        })
    });
    Table {
        columns: &[
            ("TARGET", Left),
            ("PIPE", Left),
            ("STATE", Left),
            ("FOR", Right),
            ("CONNECTIONS", Right),
            ("LAST ERROR", Left),
        ],
        rows: rows.collect(),
    }
}

/// The numbers first, since a narrow terminal cuts what comes last.
fn connections(connections: &[Carrying]) -> Table {
    let row = |carrying: &Carrying| {
        let connection = &carrying.connection;
        vec![
            Span::plain(bytes(carrying.to_target)),
            Span::plain(bytes(carrying.from_target)),
            Span::plain(count_of_bytes(connection.to_target.saturating_add(connection.from_target))),
            Span::plain(duration(connection.age_seconds)),
            Span::plain(duration(connection.idle_seconds)),
            Span::plain(&connection.id),
            Span::plain(connection.key_name.as_ref().unwrap_or(&connection.key)),
            Span::plain(connection.client.as_deref().unwrap_or("not known")),
            Span::plain(&connection.target),
            Span::plain(&connection.pipe),
            Span::plain(&connection.peer),
            Span::plain(&connection.cipher),
        ]
    };
    Table {
        columns: &[
            ("TO/S", Right),
            ("FROM/S", Right),
            ("TOTAL", Right),
            ("AGE", Right),
            ("IDLE", Right),
            ("ID", Left),
            ("KEY", Left),
            ("CLIENT", Left),
            ("TARGET", Left),
            ("PIPE", Left),
            ("PEER", Left),
            ("CIPHER", Left),
        ],
        rows: connections.iter().map(row).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::control::samples;
    use crate::cli::control::top::watch::Sort;
    use crate::status::report::Connection;

    fn seen(count: usize) -> Seen {
        let carrying = |number| {
            let connection = Connection { id: format!("{number:016x}"), ..samples::connection() };
            Carrying { connection, to_target: 2_000.0, from_target: 0.0 }
        };
        Seen {
            report: samples::report(),
            processors: Some(0.5),
            sort: Sort::Rate,
            connections: (0..count).map(carrying).collect(),
            total: count,
        }
    }

    fn render(seen: &Seen, columns: usize, lines: usize, scroll: &mut Scroll, paint: Paint) -> Vec<String> {
        View::of(seen, None).render(Size { columns, lines }, scroll, paint)
    }

    fn plain(seen: &Seen) -> String {
        View::of(seen, None).plain().collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn no_size_gets_more_lines_or_columns_than_it_has() {
        let mut seen = seen(30);
        seen.report.pipes[0].name = "世界世界世界".to_owned();
        for columns in 0..200 {
            for lines in [0, 1, 2, 3, 4, 10, 200] {
                let rendered = render(&seen, columns, lines, &mut Scroll::default(), Paint::Plain);
                assert_eq!(rendered.len(), lines, "{columns} columns");
                assert!(rendered.iter().all(|line| width(line) <= columns), "{columns}: {rendered:?}");
            }
        }
    }

    #[test]
    fn names_with_escape_sequences_and_line_breaks_move_nothing() {
        let mut seen = seen(1);
        let evil = "\u{1b}[2J\u{9b}1A\r\n\t\u{7}\u{202e}";
        let report = &mut seen.report;
        report.version = evil.to_owned();
        report.ready = false;
        report.not_ready = vec![evil.to_owned()];
        report.pipes[0].name = evil.to_owned();
        report.pipes[0].keys[0].name = Some(evil.to_owned());
        report.pipes[0].targets[0].target = evil.to_owned();
        report.pipes[0].targets[0].last_error = Some(evil.to_owned());
        let connection = &mut seen.connections[0].connection;
        *connection = Connection {
            id: evil.to_owned(),
            pipe: evil.to_owned(),
            client: Some(evil.to_owned()),
            peer: evil.to_owned(),
            target: evil.to_owned(),
            key_name: Some(evil.to_owned()),
            cipher: evil.to_owned(),
            ..samples::connection()
        };
        let error = ControlError::Refused(evil.to_owned());
        let view = View::of(&seen, Some(&error));
        let size = Size { columns: 1000, lines: 100 };
        for line in view.plain().chain(view.render(size, &mut Scroll::default(), Paint::Plain)) {
            assert!(!line.contains(|c: char| c.is_control() || c == '\u{202e}'), "{line:?}");
        }
    }

    #[test]
    fn columns_line_up_below_wide_characters() {
        let mut seen = seen(0);
        let mut second = seen.report.pipes[0].clone();
        second.name = "ab".to_owned();
        seen.report.pipes[0].name = "世界".to_owned();
        seen.report.pipes.push(second);
        let text = plain(&seen);
        let pipes: Vec<_> = text.lines().filter(|line| line.contains("listening")).collect();
        let before = |line: &str| width(line.split("listening").next().unwrap_or_default());
        assert_eq!(before(pipes[0]), before(pipes[1]), "{text}");
        assert_eq!(pipes.len(), 2);
    }

    #[test]
    fn states_are_words_with_colours_and_without() {
        let mut seen = seen(0);
        seen.report.state = State::Stopping;
        for (pipe, pipe_word) in [
            (PipeState::Listening, "listening"),
            (PipeState::WaitingForName, "waiting for name"),
            (PipeState::Dead, "dead"),
            (PipeState::Removed, "removed"),
            (PipeState::Stopping, "stopping"),
        ] {
            for (target, target_word) in [
                (TargetState::Up, "up"),
                (TargetState::Avoided, "avoided"),
                (TargetState::Down, "down"),
                (TargetState::Drained, "drained"),
            ] {
                seen.report.pipes[0].state = pipe;
                seen.report.pipes[0].targets[0].state = target;
                for paint in [Paint::Plain, Paint::Colours] {
                    let text = render(&seen, 200, 50, &mut Scroll::default(), paint).join("\n");
                    assert!(text.contains(pipe_word) && text.contains(target_word), "{text}");
                    assert_eq!(text.contains('\u{1b}'), paint == Paint::Colours);
                }
            }
        }
    }

    #[test]
    fn a_colour_ends_before_the_line_is_cut() {
        for columns in 0..100 {
            for line in render(&seen(3), columns, 30, &mut Scroll::default(), Paint::Colours) {
                let colours = ["0", "1", "32", "33", "1;31"].map(|code| format!("\u{1b}[{code}m"));
                let text = colours.iter().fold(line.clone(), |text, colour| text.replace(colour, ""));
                assert!(!text.contains('\u{1b}') && width(&text) <= columns, "{line:?}");
                let ends = line.matches("\u{1b}[0m").count();
                assert_eq!(line.matches('\u{1b}').count(), 2 * ends, "{line:?}");
            }
        }
    }

    #[test]
    fn no_color_counts_unless_it_is_empty() {
        let chosen = |value: &str| Paint::chosen(Some(OsStr::new(value)));
        assert_eq!([chosen("1"), chosen("0"), chosen("")], [Paint::Plain, Paint::Plain, Paint::Colours]);
        assert_eq!(Paint::chosen(None), Paint::Colours);
    }

    #[test]
    fn scrolling_ends_where_there_is_nothing_more_to_see() {
        let (seen, mut scroll) = (seen(100), Scroll::default());
        let mut shown = |to| {
            scroll.go(to);
            render(&seen, 200, 20, &mut scroll, Paint::Plain).join("\n")
        };
        let id = |number: usize| format!("{number:016x}");
        assert!(shown(To::Line(-5)).contains("PIPE"));
        assert!(shown(To::End).contains(&id(99)));
        let end = shown(To::Page(3));
        assert!(end.contains(&id(99)) && end.contains(&id(83)), "the last page is full: {end}");
        assert!(!shown(To::Page(-1)).contains(&id(99)));
        assert!(shown(To::Start).contains("PIPE"));
        assert!(shown(To::Line(isize::MAX)).contains(&id(99)));
        assert!(shown(To::Page(isize::MIN)).contains("PIPE"));
    }

    #[test]
    fn what_was_seen_last_stays_beside_why_nothing_newer_is() {
        let error = ControlError::Refused("the reason".to_owned());
        let view = View::of(&seen(1), Some(&error));
        let text =
            view.render(Size { columns: 100, lines: 40 }, &mut Scroll::default(), Paint::Plain).join("\n");
        assert!(
            text.contains("Trying again") && text.contains("the reason") && text.contains("redis"),
            "{text}"
        );
    }

    #[test]
    fn a_list_that_is_not_whole_says_so() {
        let mut seen = seen(3);
        assert!(plain(&seen).contains("3 connections by rate\n"));
        seen.total = 20_000;
        assert!(plain(&seen).contains("20000 connections by rate, the first 3\n"));
    }

    #[test]
    fn nothing_is_lost_of_ten_thousand_connections() {
        let (seen, mut scroll) = (seen(10_000), Scroll::default());
        assert_eq!(plain(&seen).lines().filter(|line| line.contains("2.0 KiB")).count(), 10_000);
        scroll.go(To::End);
        let last = render(&seen, 200, 20, &mut scroll, Paint::Plain).join("\n");
        assert!(last.contains(&format!("{:016x}", 9_999)), "{last}");
    }
}
