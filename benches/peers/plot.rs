//! The results as bar charts, legible on light and on dark pages.

use std::path::Path;

use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use crate::error::Result;
use crate::format::number;
use crate::peer::Peer;
use crate::results::{Results, Spread};
use crate::work::{Direction, Metric, Work};

/// Text and lines: as far from white as from GitHub's dark page.
const INK: RGBColor = RGBColor(0x7d, 0x7d, 0x7d);
const SPIPE: RGBColor = RGBColor(0xe8, 0x6a, 0x17);
const ENCRYPTED: RGBColor = RGBColor(0x5b, 0x8d, 0xb8);
const PLAIN: RGBColor = RGBColor(0x9a, 0x9a, 0x9a);

const WIDTH: i32 = 800;
const BARS_LEFT: i32 = 210;
const BARS_RIGHT: i32 = WIDTH - 140;
const TOP: i32 = 76;
const BAR: i32 = 16;
const GAP: i32 = 10;

/// One picture.
pub(crate) struct Chart {
    pub(crate) file: &'static str,
    pub(crate) title: &'static str,
    note: &'static str,
    work: Work,
    /// Each peer has a bar for each.
    bars: &'static [(Metric, &'static str)],
    rows: Vec<(Peer, Vec<Spread>)>,
}

/// The pictures that these results allow.
pub(crate) fn charts(results: &Results) -> Vec<Chart> {
    const BULK: Work = Work::Bulk { streams: 1, direction: Direction::Up };
    let chart = |file, title, note, work, bars| Chart { file, title, note, work, bars, rows: Vec::new() };
    let mut charts = vec![
        chart(
            "cpu-per-gb.svg",
            "CPU seconds per GB, both ends together",
            "one stream; less is better",
            BULK,
            &[(Metric::CpuPerGb, "s")],
        ),
        chart(
            "gb-per-second.svg",
            "GB per second",
            "one stream; more is better",
            BULK,
            &[(Metric::GbPerSecond, "GB/s")],
        ),
        chart(
            "round-trip.svg",
            "Round trip of 64 bytes",
            "median, and below it the 99th percentile; less is better",
            Work::RoundTrip { size: 64 },
            &[(Metric::P50Micros, "µs"), (Metric::P99Micros, "µs (p99)")],
        ),
        chart(
            "active.svg",
            "Round trip of 64 bytes with 5,000 active connections",
            "median, and below it the 99th percentile; 5,000 messages a second in all; less is better",
            Work::Active { count: 5000 },
            &[(Metric::P50Micros, "µs"), (Metric::P99Micros, "µs (p99)")],
        ),
        chart(
            "connections.svg",
            "Connections per second",
            "with one byte there and back; 8 clients; more is better; ssh -L makes none of its own",
            Work::Connect,
            &[(Metric::ConnectionsPerSecond, "")],
        ),
        chart(
            "new-connection.svg",
            "New connection at a round trip of 50 ms",
            "until the answer's first byte: one at a time, and below it 64 at once (median); less is better",
            Work::Distant,
            &[(Metric::InTurnP50Millis, "ms"), (Metric::AtOnceP50Millis, "ms (64)")],
        ),
        chart(
            "idle-memory.svg",
            "Memory per idle connection, both ends together",
            "at 5,000 connections; less is better",
            Work::Idle { count: 5000 },
            &[(Metric::KibPerConnection, "KiB")],
        ),
        chart(
            "burst-memory.svg",
            "Memory per connection after a burst, both ends together",
            "1,000 idle connections, each of which carried 64 KiB both ways, 256 at once; less is better",
            Work::Burst { count: 1000 },
            &[(Metric::KibPerConnection, "KiB")],
        ),
        chart(
            "redis.svg",
            "Redis GET requests per second",
            "50 clients, no pipelining; more is better",
            Work::Redis { pipeline: 1 },
            &[(Metric::GetsPerSecond, "")],
        ),
    ];
    for chart in &mut charts {
        chart.rows = results.peers().into_iter().filter_map(|peer| chart.row(results, peer)).collect();
    }
    charts.retain(|chart| chart.rows.len() > 1);
    charts
}

impl Chart {
    fn row(&self, results: &Results, peer: Peer) -> Option<(Peer, Vec<Spread>)> {
        let spreads = self.bars.iter().map(|&(metric, _)| results.spread(self.work, peer, metric));
        Some((peer, spreads.collect::<Option<_>>()?))
    }

    pub(crate) fn draw(&self, directory: &Path) -> Result<()> {
        let bars = i32::try_from(self.bars.len())?;
        let height = TOP + i32::try_from(self.rows.len())? * (bars * BAR + GAP) + 4;
        let path = directory.join(self.file);
        let area = SVGBackend::new(&path, (WIDTH.try_into()?, height.try_into()?)).into_drawing_area();
        area.draw(&text(self.title, (8, 20), 18, INK, HPos::Left).bold())?;
        let scale = Scale::of(&self.rows);
        let mut legend = "grey is not encrypted".to_owned();
        if self.rows.iter().flat_map(|(_, row)| row).any(|spread| spread.min < spread.max) {
            legend.push_str("; a line runs from the smallest to the largest round");
        }
        if self.rows.iter().flat_map(|(_, row)| row).any(|spread| scale.cuts(spread.median)) {
            legend.push_str("; a broken bar is longer than shown");
        }
        area.draw(&text(self.note, (8, 40), 13, INK, HPos::Left).plain())?;
        area.draw(&text(&legend, (8, 57), 12, INK, HPos::Left).plain())?;
        let mut top = TOP;
        for (peer, spreads) in &self.rows {
            let color = match peer {
                Peer::Spipe => SPIPE,
                peer if peer.is_encrypted() => ENCRYPTED,
                _ => PLAIN,
            };
            let label_color = if *peer == Peer::Spipe { SPIPE } else { INK };
            let label =
                text(peer.name(), (BARS_LEFT - 10, top + bars * BAR / 2), 14, label_color, HPos::Right);
            area.draw(&if *peer == Peer::Spipe { label.bold() } else { label.plain() })?;
            for (index, (spread, (_, unit))) in spreads.iter().zip(self.bars).enumerate() {
                // The second bar, of the tail, is paler.
                let color = color.mix(if index == 0 { 1.0 } else { 0.5 });
                let (upper, lower) = (top + 1, top + BAR - 1);
                let end = scale.x(spread.median);
                let bar = |from, to| Rectangle::new([(from, upper), (to, lower)], color.filled());
                if scale.cuts(spread.median) {
                    // Broken: it is longer than there is room for.
                    area.draw(&bar(BARS_LEFT, end - 18))?;
                    area.draw(&bar(end - 14, end))?;
                } else {
                    area.draw(&bar(BARS_LEFT, end))?;
                    let middle = i32::midpoint(upper, lower);
                    let line = vec![(scale.x(spread.min), middle), (scale.x(spread.max), middle)];
                    area.draw(&PathElement::new(line, INK.stroke_width(2)))?;
                }
                let at = (end.max(scale.x(spread.max)) + 8, i32::midpoint(upper, lower));
                let value = format!("{} {unit}", number(spread.median));
                area.draw(&text(value.trim(), at, 13, label_color, HPos::Left).plain())?;
                top += BAR;
            }
            top += GAP;
        }
        area.present()?;
        Ok(())
    }
}

/// From values to where a bar ends.
struct Scale {
    limit: f64,
}

impl Scale {
    /// One that leaves out what would make all others tiny.
    fn of(rows: &[(Peer, Vec<Spread>)]) -> Self {
        let mut values: Vec<f64> = rows.iter().flat_map(|(_, row)| row).map(|spread| spread.median).collect();
        values.sort_unstable_by(f64::total_cmp);
        let middle = values[values.len() / 2];
        let limit = values.iter().copied().filter(|value| *value <= 5.0 * middle).fold(middle, f64::max);
        Self { limit: 1.1 * limit }
    }

    fn cuts(&self, value: f64) -> bool {
        value > self.limit
    }

    #[expect(clippy::cast_possible_truncation, reason = "it is between the two ends of the bars")]
    fn x(&self, value: f64) -> i32 {
        let share = (value / self.limit).clamp(0.0, 1.0);
        BARS_LEFT + (f64::from(BARS_RIGHT - BARS_LEFT) * share).round() as i32
    }
}

/// A text still to be given its weight.
struct Label<'a> {
    text: &'a str,
    at: (i32, i32),
    size: i32,
    color: RGBColor,
    side: HPos,
}

fn text(text: &str, at: (i32, i32), size: i32, color: RGBColor, side: HPos) -> Label<'_> {
    Label { text, at, size, color, side }
}

impl<'a> Label<'a> {
    fn plain(self) -> Text<'a, (i32, i32), &'a str> {
        self.with(FontStyle::Normal)
    }

    fn bold(self) -> Text<'a, (i32, i32), &'a str> {
        self.with(FontStyle::Bold)
    }

    fn with(self, weight: FontStyle) -> Text<'a, (i32, i32), &'a str> {
        let font = ("sans-serif", self.size).into_font().style(weight);
        let (color, pos) = (self.color.to_backend_color(), Pos::new(self.side, VPos::Center));
        let style = TextStyle { font, color, pos };
        Text::new(self.text, self.at, style)
    }
}
