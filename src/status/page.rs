//! The status page: one document without outside resources, which works without scripts. With them, the server's events
//! replace what it says.
//!
//! `page.html` has the whole of it: the style, the script, and between `<main>` and `</main>` a template, which gets a `View`.
//! Names, addresses and reasons come from peers, clients and the network: all of them are escaped, and should that ever fail, the
//! [policy](Page::content_security_policy) lets nothing of theirs run or load.

use base64ct::{Base64, Encoding};
use jiff::Timestamp;
use minijinja::syntax::SyntaxConfig;
use minijinja::value::Serde;
use minijinja::{AutoEscape, Environment, Error, ErrorKind, UndefinedBehavior};
use serde::Serialize;

use super::human;
use super::report::{ConnectionList, Failures, Pipe, PipeState, Report, SortBy, State, Target, TargetState};
use crate::proto::digest::sha256;

const DOCUMENT: &str = include_str!("page.html");
const CONTENT: &str = "content";

/// More pipes than these are shown folded up, under a table of all.
const UNFOLDED_PIPES: usize = 3;
/// Things that need attention which are listed one by one.
const NOTES: usize = 20;
/// Keys that expire within this time need attention: as long before as the log warns.
const EXPIRES_SOON_SECONDS: i64 = 7 * 24 * 60 * 60;

/// The size of a chart, in units of its own. One point a unit: the history has 180.
const CHART_WIDTH: usize = 180;
const CHART_HEIGHT: i32 = 40;

/// In which order connections are shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sorting {
    /// By what.
    pub by: SortBy,
    /// Which way round.
    pub order: Order,
}

/// Which way round a list is sorted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Order {
    /// As [`SortBy`] has it.
    #[default]
    Usual,
    /// The other way round.
    Reversed,
}

/// The page, ready to be filled in.
pub struct Page {
    environment: Environment<'static>,
    policy: String,
}

impl Default for Page {
    fn default() -> Self {
        Self::new()
    }
}

impl Page {
    /// Reads the template. That takes a millisecond: once a process is enough.
    pub fn new() -> Self {
        let mut environment = Environment::new();
        environment.set_auto_escape_callback(|_| AutoEscape::Html);
        environment.set_undefined_behavior(UndefinedBehavior::Strict);
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.expect("its delimiters are the usual ones"));
        environment.add_filter("count", human::count);
        environment.add_filter("bytes", human::bytes);
        environment.add_filter("rate", human::rate);
        environment.add_filter("duration", human::duration);
        environment.add_filter("words", |kind: &str| human::words(kind));
        environment.add_filter("moment", |at: &str| timestamp(at).map(human::moment));
        environment.add_filter("relative", |at: &str, now: &str| {
            Ok::<_, Error>(human::relative(timestamp(at)?, timestamp(now)?))
        });
        environment.add_filter("anchor", |pipe: &str| anchor(pipe));
        environment.add_filter("share", share);
        environment.add_filter("plus", u64::saturating_add);
        let content = between(DOCUMENT, "<main>", "</main>");
        environment.add_template(CONTENT, content).expect("the template is a part of this program");
        Self { environment, policy: content_security_policy() }
    }

    /// The header `Content-Security-Policy` of the page. It allows the page's own style and script, by their digests, and events
    /// of the server that the page is from. Digests and no nonces: the policy is the same for each answer, and allows nothing that
    /// is not in this program.
    pub fn content_security_policy(&self) -> &str {
        &self.policy
    }

    /// The whole document. `list` is sorted as `sorting` says.
    ///
    /// # Errors
    /// None for any report, as far as tests know: the template would have a fault.
    pub fn render(&self, report: &Report, list: &ConnectionList, sorting: Sorting) -> Result<String, Error> {
        let content = self.render_content(report, list, sorting)?;
        let (before, rest) = DOCUMENT.split_once("<main>").expect("the page has it");
        let (_, after) = rest.split_once("</main>").expect("the page has it");
        Ok([before, "<main>", &content, "</main>", after].concat())
    }

    /// The content of `<main>`, in one line: it is the data of an event as it is. At most some 10 KiB a pipe, and half a KiB a
    /// connection. A hundred pipes and 200 connections take 64 ms without optimisation, so not on a thread that serves connections.
    ///
    /// # Errors
    /// As [`render`](Self::render).
    pub fn render_content(
        &self,
        report: &Report,
        list: &ConnectionList,
        sorting: Sorting,
    ) -> Result<String, Error> {
        let content =
            self.environment.get_template(CONTENT)?.render(Serde(View::of(report, list, sorting)))?;
        // Some names may have such characters as well. They are white space in HTML, and would end a field of an event.
        Ok(content.replace(['\n', '\r'], " "))
    }
}

fn content_security_policy() -> String {
    let [script, style] = [("<script>", "</script>"), ("<style>", "</style>")].map(|(start, end)| {
        let digest = sha256(between(DOCUMENT, start, end).as_bytes());
        format!("'sha256-{}'", Base64::encode_string(&digest))
    });
    format!(
        "default-src 'none'; script-src {script}; style-src {style}; connect-src 'self'; img-src data:; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
}

fn between<'text>(text: &'text str, start: &str, end: &str) -> &'text str {
    let (_, rest) = text.split_once(start).expect("the page has it");
    rest.split_once(end).expect("the page has it").0
}

fn timestamp(text: &str) -> Result<Timestamp, Error> {
    text.parse().map_err(|error| Error::new(ErrorKind::InvalidOperation, "no time").with_source(error))
}

/// The id of a pipe's part of the page: of letters, digits, `-` and `_` alone, and another for each name.
fn anchor(pipe: &str) -> String {
    let character = |byte: u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' => char::from(byte).to_string(),
        _ => format!("_{byte:02x}"),
    };
    pipe.bytes().map(character).fold("pipe-".to_owned(), |id, character| id + &character)
}

/// How much of `limit` is in use, from 0 to 100.
fn share(used: f64, limit: f64) -> u64 {
    let percent = (used / limit * 100.0).clamp(0.0, 100.0);
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "it is in 0..=100, or no number"
    )]
    let percent = percent.round() as u64;
    // Few of very many are some.
    if used > 0.0 { percent.max(1) } else { percent }
}

/// What the template gets.
#[derive(Serialize)]
struct View<'a> {
    report: &'a Report,
    totals: Totals,
    notes: Vec<Note<'a>>,
    /// Further ones, which are not listed.
    more_notes: usize,
    pipes: Vec<PipeView<'a>>,
    unfolded: bool,
    columns: Vec<Column>,
    list: &'a ConnectionList,
}

/// Of all pipes.
#[derive(Default, Serialize)]
struct Totals {
    connections: usize,
    new: f64,
    rate_to_target: f64,
    rate_from_target: f64,
    to_target: u64,
    from_target: u64,
    strangers: usize,
    failures: u64,
}

/// Something that an administrator should know.
#[derive(Serialize)]
struct Note<'a> {
    severity: Severity,
    pipe: Option<&'a str>,
    text: String,
}

/// How bad something is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
enum Severity {
    Bad,
    Warning,
    /// An administrator wants it so.
    Muted,
}

/// A pipe, with what is not in its report as such.
#[derive(Serialize)]
struct PipeView<'a> {
    #[serde(flatten)]
    pipe: &'a Pipe,
    targets_up: usize,
    failures_of_a_day: u64,
    /// The causes that occurred, the most frequent first.
    causes: Vec<Kind<'a>>,
    /// The reasons that occurred, the most frequent first.
    reasons: Vec<Kind<'a>>,
    charts: [Chart; 4],
    /// What the charts span.
    history_seconds: u64,
}

/// A kind of event, and how often it occurred.
#[derive(Serialize)]
struct Kind<'a> {
    word: &'a str,
    day: u64,
    total: u64,
}

/// A line over time.
#[derive(Serialize)]
struct Chart {
    label: &'static str,
    now: String,
    /// The least and the most there was. Null without a history.
    range: Option<(String, String)>,
    /// The line, as SVG has paths.
    path: String,
}

/// A column of the table of connections.
#[derive(Serialize)]
struct Column {
    label: &'static str,
    is_number: bool,
    /// What its head sorts by.
    by: Option<SortBy>,
    /// How the table is sorted by it, as `aria-sort` has it.
    sorted: Option<&'static str>,
    /// Whether its head turns the order round.
    reverses: bool,
}

impl<'a> View<'a> {
    fn of(report: &'a Report, list: &'a ConnectionList, sorting: Sorting) -> Self {
        let pipes: Vec<_> = report.pipes.iter().map(PipeView::of).collect();
        let mut notes = notes(report);
        let more_notes = notes.len().saturating_sub(NOTES);
        notes.truncate(NOTES);
        Self {
            totals: Totals::of(&pipes),
            notes,
            more_notes,
            unfolded: pipes.len() <= UNFOLDED_PIPES,
            pipes,
            columns: columns(sorting),
            report,
            list,
        }
    }
}

impl Totals {
    fn of(pipes: &[PipeView<'_>]) -> Self {
        pipes.iter().fold(Self::default(), |sum, view| Self {
            connections: sum.connections.saturating_add(view.pipe.connections.now),
            new: sum.new + view.pipe.rate.connections,
            rate_to_target: sum.rate_to_target + view.pipe.rate.to_target,
            rate_from_target: sum.rate_from_target + view.pipe.rate.from_target,
            to_target: sum.to_target.saturating_add(view.pipe.bytes.to_target),
            from_target: sum.from_target.saturating_add(view.pipe.bytes.from_target),
            strangers: sum.strangers.saturating_add(view.pipe.strangers),
            failures: sum.failures.saturating_add(view.failures_of_a_day),
        })
    }
}

impl<'a> PipeView<'a> {
    fn of(pipe: &'a Pipe) -> Self {
        let Failures { last_24_hours, .. } = &pipe.failures;
        let history = &pipe.history;
        #[expect(clippy::cast_precision_loss, reason = "a chart is not that exact")]
        let connections: Vec<_> = history.connections.iter().map(|&number| number as f64).collect();
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "they come from whole numbers"
        )]
        let whole = |number| human::count(number as u64);
        let per_second = |number| format!("{}/s", human::rate(number));
        let bytes_per_second = |number| format!("{}/s", human::bytes(number));
        Self {
            targets_up: pipe.targets.iter().filter(|target| target.state == TargetState::Up).count(),
            failures_of_a_day: last_24_hours.values().fold(0, |sum, &count| sum.saturating_add(count)),
            causes: causes(&pipe.failures),
            reasons: most_frequent(pipe.closed.iter().map(|(word, &total)| Kind { word, day: 0, total })),
            charts: [
                Chart::of("Connections", human::count(pipe.connections.now as u64), &connections, whole),
                Chart::of("New", per_second(pipe.rate.connections), &history.new, per_second),
                Chart::of(
                    "To target",
                    bytes_per_second(pipe.rate.to_target),
                    &history.to_target,
                    bytes_per_second,
                ),
                Chart::of(
                    "From target",
                    bytes_per_second(pipe.rate.from_target),
                    &history.from_target,
                    bytes_per_second,
                ),
            ],
            history_seconds: history.step_seconds.saturating_mul(CHART_WIDTH as u64),
            pipe,
        }
    }
}

fn causes(failures: &Failures) -> Vec<Kind<'_>> {
    let day = |cause| failures.last_24_hours.get(cause).copied().unwrap_or_default();
    most_frequent(failures.total.iter().map(|(word, &total)| Kind { word, day: day(word), total }))
}

fn most_frequent<'a>(kinds: impl Iterator<Item = Kind<'a>>) -> Vec<Kind<'a>> {
    let mut kinds: Vec<_> = kinds.filter(|kind| kind.total > 0).collect();
    kinds.sort_by_key(|kind| std::cmp::Reverse((kind.day, kind.total)));
    kinds
}

impl Chart {
    fn of(label: &'static str, now: String, values: &[f64], text: impl Fn(f64) -> String) -> Self {
        // The right end is now; a process that is younger than the chart is wide has nothing at the left.
        let values = &values[values.len().saturating_sub(CHART_WIDTH)..];
        let numbers = || values.iter().copied().filter(|value| value.is_finite());
        let most = numbers().fold(0.0, f64::max);
        let least = numbers().fold(most, f64::min);
        let range = (!values.is_empty()).then(|| (text(least), text(most)));
        Self { label, now, range, path: path(values, most) }
    }
}

/// The area below a line. Its sides and its floor are outside of the chart, so that only the line is seen to be drawn. Points are
/// relative to the one before, and those between two that are as high are left out: a hundred pipes are a long page, and most are
/// idle most of the time.
fn path(values: &[f64], most: f64) -> String {
    #[expect(clippy::cast_possible_truncation, reason = "it is within the chart")]
    let height = |value: f64| {
        let part = if most > 0.0 && value.is_finite() { (value / most).clamp(0.0, 1.0) } else { 0.0 };
        (f64::from(CHART_HEIGHT - 1) - part * f64::from(CHART_HEIGHT - 3)).round() as i32
    };
    let heights: Vec<_> = values.iter().map(|&value| height(value)).collect();
    let Some(&first) = heights.first() else { return String::new() };
    let (start, floor) = (CHART_WIDTH - heights.len(), CHART_HEIGHT + 2);
    let (mut steps, mut last) = (Vec::new(), (0, first));
    for (place, &height) in heights.iter().enumerate().skip(1) {
        if height != heights[place - 1] || heights.get(place + 1).is_some_and(|&next| next != height) {
            steps.push(format!("{} {}", place - last.0, height - last.1));
            last = (place, height);
        }
    }
    // One that begins at the left edge comes from beyond it.
    let start =
        if start == 0 { format!("M-2 {floor}V{first}H0") } else { format!("M{start} {floor}V{first}") };
    let line = if steps.is_empty() { String::new() } else { format!("l{}", steps.join(" ")) };
    format!("{start}{line}H{}V{floor}Z", CHART_WIDTH + 2)
}

/// All that an administrator should know at once, the worst first.
fn notes(report: &Report) -> Vec<Note<'_>> {
    let mut notes = of_the_process(report);
    notes.extend(report.pipes.iter().flat_map(|pipe| of_a_pipe(pipe, report.now)));
    notes.sort_by_key(|note| note.severity);
    notes
}

fn of_the_process(report: &Report) -> Vec<Note<'_>> {
    let note = |severity, text| Note { severity, pipe: None, text };
    let mut notes: Vec<_> =
        report.not_ready.iter().map(|why| note(Severity::Bad, format!("not ready: {why}"))).collect();
    if let Some(last) = &report.reload.last
        && let Some(error) = &last.error
    {
        let text = format!("the last reload failed, and what was in force stays in force: {error}");
        notes.push(note(Severity::Bad, text));
    }
    if report.state == State::Stopping {
        let text = "the process stops: connections may finish, and no new ones are accepted";
        notes.push(note(Severity::Warning, text.to_owned()));
    }
    if report.sandbox == "off" {
        notes.push(note(Severity::Warning, "the sandbox is off".to_owned()));
    }
    let process = &report.process;
    if let (Some(open), Some(limit)) = (process.descriptors, process.descriptors_limit)
        && open >= limit - limit / 10
    {
        let [open, limit] = [open, limit].map(human::count);
        let text = format!("{open} of {limit} descriptors are open: raise the limit on open files");
        notes.push(note(Severity::Warning, text));
    }
    if report.log_lines_dropped > 0 {
        let lost = human::count(report.log_lines_dropped);
        let text =
            format!("{lost} log lines were lost, since the log was not read as fast as it was written");
        notes.push(note(Severity::Warning, text));
    }
    notes
}

fn of_a_pipe(pipe: &Pipe, now: Timestamp) -> Vec<Note<'_>> {
    let note = |severity, text| Note { severity, pipe: Some(&pipe.name), text };
    let mut notes = Vec::new();
    match pipe.state {
        PipeState::Listening | PipeState::Stopping => {}
        PipeState::WaitingForName => {
            let text = "it does not listen yet: the name of a source does not resolve";
            notes.push(note(Severity::Warning, text.to_owned()));
        }
        PipeState::Dead => {
            let text = "it does not listen: its accept loop has died; a reload listens anew";
            notes.push(note(Severity::Bad, text.to_owned()));
        }
        PipeState::Removed => {
            // Nothing else of it matters any more.
            let text = "a reload took it away; the connections that it had go on";
            return vec![note(Severity::Muted, text.to_owned())];
        }
    }
    if let Some(limit) = pipe.connections.limit
        && pipe.connections.now >= limit
    {
        let text = format!("all {} connections are in use: further clients wait", human::count(limit as u64));
        notes.push(note(Severity::Warning, text));
    }
    notes.extend(pipe.targets.iter().filter_map(|target| {
        let (severity, text) = of_a_target(target, now)?;
        Some(note(severity, text))
    }));
    for key in &pipe.keys {
        let name = key.name.as_deref().unwrap_or(&key.fingerprint);
        let Some(expires) = key.expires.filter(|at| at.as_second() - now.as_second() < EXPIRES_SOON_SECONDS)
        else {
            continue;
        };
        let relative = human::relative(expires, now);
        notes.push(if expires <= now {
            note(Severity::Bad, format!("the key {name} has expired: {relative}"))
        } else {
            note(Severity::Warning, format!("the key {name} expires {relative}"))
        });
    }
    notes
}

fn of_a_target(target: &Target, now: Timestamp) -> Option<(Severity, String)> {
    let (severity, state) = match target.state {
        TargetState::Up => return None,
        TargetState::Avoided => (Severity::Warning, "avoided"),
        TargetState::Down => (Severity::Bad, "down"),
        TargetState::Drained => (Severity::Muted, "drained"),
    };
    let time = human::between(target.since, now);
    let why = target.last_error.as_ref().filter(|_| target.state != TargetState::Drained);
    let why = why.map(|error| format!(": {error}")).unwrap_or_default();
    Some((severity, format!("the target {} has been {state} for {time}{why}", target.target)))
}

/// The columns of the table of connections, in the order in which the template fills them in.
fn columns(sorting: Sorting) -> Vec<Column> {
    const UP: &str = "ascending";
    const DOWN: &str = "descending";
    let columns = [
        ("Client", Some((SortBy::Client, UP))),
        ("Pipe", Some((SortBy::Pipe, UP))),
        ("Peer", None),
        ("Key", Some((SortBy::Key, UP))),
        ("Target", Some((SortBy::Target, UP))),
        ("Age", Some((SortBy::Age, UP))),
        ("Idle", Some((SortBy::Idle, UP))),
        ("To target", Some((SortBy::ToTarget, DOWN))),
        ("From target", Some((SortBy::FromTarget, DOWN))),
        ("Both", Some((SortBy::Bytes, DOWN))),
        ("Id", None),
    ];
    let column = |(label, sort): (&'static str, Option<(SortBy, &'static str)>)| {
        let sorted = sort.filter(|(by, _)| *by == sorting.by).map(|(_, usual)| match sorting.order {
            Order::Usual => usual,
            Order::Reversed if usual == UP => DOWN,
            Order::Reversed => UP,
        });
        Column {
            label,
            is_number: matches!(label, "Age" | "Idle" | "To target" | "From target" | "Both"),
            by: sort.map(|(by, _)| by),
            sorted,
            reverses: sorted.is_some() && sorting.order == Order::Usual,
        }
    };
    columns.map(column).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_anchor_has_no_special_characters_and_is_another_for_each_name() {
        assert_eq!(anchor("redis-1"), "pipe-redis-1");
        let names = ["a b", "a_20b", "a-b", "a", "", "ä", "\"><script>", "[::1]:80"];
        let anchors = names.map(anchor);
        for (place, id) in anchors.iter().enumerate() {
            assert!(id.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte)), "{id}");
            assert!(!anchors[..place].contains(id), "{id}");
        }
    }

    #[test]
    fn shares_are_in_range_and_some_is_not_none() {
        for (used, limit, percent) in [
            (0.0, 10.0, 0),
            (1.0, 1e6, 1),
            (5.0, 10.0, 50),
            (20.0, 10.0, 100),
            (0.0, 0.0, 0),
            (1.0, 0.0, 100),
        ] {
            assert_eq!(share(used, limit), percent, "{used} of {limit}");
        }
    }

    #[test]
    fn a_chart_ends_at_its_right_edge_and_leaves_out_what_is_flat() {
        assert_eq!(path(&[0.0; CHART_WIDTH], 0.0), "M-2 42V39H0H182V42Z");
        assert_eq!(path(&[1.0, 2.0], 2.0), "M178 42V21l1 -19H182V42Z");
        assert_eq!(path(&[], 0.0), "");
    }

    #[test]
    fn a_chart_takes_what_is_no_number() {
        let chart = Chart::of("New", String::new(), &[f64::NAN, f64::INFINITY, -1.0, 1.0], human::rate);
        assert_eq!(chart.path, "M176 42V39l2 0 1 -37H182V42Z");
    }

    #[test]
    fn a_column_that_sorts_says_how_and_turns_the_order_round() {
        for (by, order, sorted, reverses) in [
            (SortBy::Age, Order::Usual, "ascending", true),
            (SortBy::Age, Order::Reversed, "descending", false),
            (SortBy::Bytes, Order::Usual, "descending", true),
            (SortBy::Bytes, Order::Reversed, "ascending", false),
        ] {
            let columns = columns(Sorting { by, order });
            let sorting: Vec<_> = columns.iter().filter(|column| column.sorted.is_some()).collect();
            assert_eq!(sorting.len(), 1);
            assert_eq!(
                (sorting[0].sorted, sorting[0].reverses),
                (Some(sorted), reverses),
                "{by:?} {order:?}"
            );
        }
    }
}
