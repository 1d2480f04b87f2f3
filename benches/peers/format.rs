//! How numbers and tables are written.

use std::fmt::Write as _;
use std::time::Duration;

use crate::count::float_len;

/// In place of a value that there is none of.
pub(crate) const ABSENT: &str = "–";

/// Three significant digits, and thousands apart.
pub(crate) fn number(value: f64) -> String {
    let size = value.abs();
    let decimals = match size {
        _ if size >= 100.0 || size == 0.0 => 0,
        _ if size >= 10.0 => 1,
        _ if size >= 0.1 => 2,
        _ => 3,
    };
    let text = format!("{value:.decimals$}");
    let mut grouped = String::new();
    for (index, digit) in text.char_indices() {
        if decimals == 0 && index > 0 && digit != '-' && (text.len() - index).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

/// How far a run is, and when it ends if what is left takes as long as what is done.
pub(crate) fn progress(done: usize, all: usize, elapsed: Duration) -> String {
    if done == 0 {
        return format!("0 of {all} measured");
    }
    let left = elapsed.as_secs_f64() / float_len(done) * float_len(all - done);
    format!("{done} of {all} measured, about {:.0} min left", (left / 60.0).ceil())
}

/// Rows of cells, the first one the heading, with columns that line up.
pub(crate) fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.first().map_or(0, Vec::len);
    let widths: Vec<usize> = (0..columns)
        .map(|column| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0))
        .collect();
    let mut text = String::new();
    for (index, row) in rows.iter().enumerate() {
        for (column, (cell, width)) in row.iter().zip(&widths).enumerate() {
            let _ = if column == 0 {
                write!(text, "| {cell:<width$} |")
            } else {
                write!(text, " {cell:>width$} |")
            };
        }
        text.push('\n');
        if index == 0 {
            for (column, width) in widths.iter().enumerate() {
                let dashes = "-".repeat(*width);
                let _ = if column == 0 { write!(text, "|-{dashes}-|") } else { write!(text, "-{dashes}:|") };
            }
            text.push('\n');
        }
    }
    text
}
