//! Numbers for people: short, with their units. Exact ones are for programs.

use jiff::Timestamp;

/// What stands for a number that is none.
const UNKNOWN: &str = "unknown";

const BYTE_UNITS: [&str; 7] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];

/// `12,345`: with a comma between thousands.
pub fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// `1.2 MiB`: three digits at most but for 1000 to 1023, with the binary unit.
pub fn bytes(number: f64) -> String {
    if !number.is_finite() {
        return UNKNOWN.to_owned();
    }
    let (mut rest, mut unit) = (number.max(0.0), 0);
    // What would be rounded up to 1024 of a unit is 1 of the next.
    while rest >= 1023.5 && unit + 1 < BYTE_UNITS.len() {
        rest /= 1024.0;
        unit += 1;
    }
    let decimals = usize::from(unit > 0 && rest < 99.95);
    format!("{rest:.decimals$} {}", BYTE_UNITS[unit])
}

/// `0`, `0.4`, `12.3`, `1,234`: how much there is a second.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "the cast saturates")]
pub fn rate(number: f64) -> String {
    match number {
        _ if !number.is_finite() => UNKNOWN.to_owned(),
        _ if number < 0.05 => "0".to_owned(),
        _ if number < 99.95 => format!("{number:.1}"),
        _ => count(number.round() as u64),
    }
}

/// `61 µs`, `1.2 ms`, `12 s`, `4 min 5 s`, `3 d 4 h`: two units at most, and none that says nothing.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "the cast saturates")]
pub fn duration(seconds: f64) -> String {
    match seconds {
        _ if !seconds.is_finite() => UNKNOWN.to_owned(),
        _ if seconds < 0.000_000_5 => "0 s".to_owned(),
        _ if seconds < 0.000_999_5 => format!("{:.0} µs", seconds * 1e6),
        _ if seconds < 0.009_95 => format!("{:.1} ms", seconds * 1e3),
        _ if seconds < 0.999_5 => format!("{:.0} ms", seconds * 1e3),
        _ if seconds < 9.95 => format!("{seconds:.1} s"),
        _ => whole_seconds(seconds.round() as u64),
    }
}

/// `12 s`, `4 min 5 s`, `3 d 4 h`: the same of whole seconds.
pub fn whole_seconds(whole: u64) -> String {
    let (minutes, hours, days) = (whole / 60, whole / 3600, whole / 86400);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{whole} s"),
        (0, 0, _) => two((minutes, "min"), (whole % 60, "s")),
        (0, _, _) => two((hours, "h"), (minutes % 60, "min")),
        (_, _, _) => two((days, "d"), (hours % 24, "h")),
    }
}

fn two((number, unit): (u64, &str), (rest, smaller): (u64, &str)) -> String {
    let number = count(number);
    if rest == 0 { format!("{number} {unit}") } else { format!("{number} {unit} {rest} {smaller}") }
}

/// `2026-03-01 09:00:00 UTC`.
pub fn moment(at: Timestamp) -> String {
    at.strftime("%Y-%m-%d %H:%M:%S UTC").to_string()
}

/// `3 h 4 min`: the time from one moment to another, in whole seconds; nothing, where a clock was set back.
pub fn between(from: Timestamp, to: Timestamp) -> String {
    whole_seconds(u64::try_from((to.as_millisecond() - from.as_millisecond()) / 1000).unwrap_or_default())
}

/// `3 h 4 min ago`, `in 6 d`, `now`: as seen from `now`.
pub fn relative(at: Timestamp, now: Timestamp) -> String {
    match now.as_millisecond() - at.as_millisecond() {
        -999..=999 => "now".to_owned(),
        1_000.. => format!("{} ago", between(at, now)),
        _ => format!("in {}", between(now, at)),
    }
}

/// `wrong_key_or_label` as `wrong key or label`: what programs read, for people.
pub fn words(kind: &str) -> String {
    kind.replace('_', " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thousands_are_separated() {
        for (number, text) in [
            (0, "0"),
            (999, "999"),
            (1000, "1,000"),
            (123_456, "123,456"),
            (u64::MAX, "18,446,744,073,709,551,615"),
        ] {
            assert_eq!(count(number), text);
        }
    }

    #[test]
    fn bytes_have_the_unit_that_keeps_them_short() {
        for (number, text) in [
            (0.0, "0 B"),
            (0.4, "0 B"),
            (1000.0, "1000 B"),
            (1023.0, "1023 B"),
            (1023.6, "1.0 KiB"),
            (1024.0, "1.0 KiB"),
            (99.9 * 1024.0, "99.9 KiB"),
            (99.99 * 1024.0, "100 KiB"),
            (1023.9 * 1024.0, "1.0 MiB"),
            (1.25 * 1024.0 * 1024.0, "1.2 MiB"),
            (2_f64.powi(64), "16.0 EiB"),
            (1e30, "867361737988 EiB"),
        ] {
            assert_eq!(bytes(number), text);
        }
    }

    #[test]
    fn rates_have_a_decimal_where_it_says_something() {
        for (number, text) in
            [(0.0, "0"), (0.04, "0"), (0.05, "0.1"), (12.34, "12.3"), (99.96, "100"), (12_345.6, "12,346")]
        {
            assert_eq!(rate(number), text);
        }
    }

    #[test]
    fn durations_have_two_units_at_most() {
        for (seconds, text) in [
            (0.0, "0 s"),
            (0.000_061, "61 µs"),
            (0.000_999_6, "1.0 ms"),
            (0.001_23, "1.2 ms"),
            (0.009_96, "10 ms"),
            (0.012_3, "12 ms"),
            (0.999_6, "1.0 s"),
            (9.96, "10 s"),
            (59.4, "59 s"),
            (59.6, "1 min"),
            (245.0, "4 min 5 s"),
            (3599.6, "1 h"),
            (11_040.0, "3 h 4 min"),
            (273_600.0, "3 d 4 h"),
            (86_400.0 * 4000.0, "4,000 d"),
        ] {
            assert_eq!(duration(seconds), text);
        }
    }

    #[test]
    fn what_is_no_number_is_unknown_and_what_is_negative_is_nothing() {
        for number in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            assert_eq!([bytes(number), rate(number), duration(number)], [UNKNOWN; 3]);
        }
        assert_eq!([bytes(-1.0), rate(-1.0), duration(-1.0)], ["0 B", "0", "0 s"]);
    }

    #[test]
    fn moments_are_told_in_utc_and_from_now() {
        let now: Timestamp = "2026-03-01T09:00:00.9Z".parse().unwrap();
        assert_eq!(moment(now), "2026-03-01 09:00:00 UTC");
        for (at, text) in [
            ("2026-03-01T09:00:00.1Z", "now"),
            ("2026-03-01T09:00:01.5Z", "now"),
            ("2026-03-01T08:59:57Z", "3 s ago"),
            ("2026-03-01T05:56:00Z", "3 h 4 min ago"),
            ("2026-03-07T09:00:00.9Z", "in 6 d"),
            ("-009999-01-02T01:59:59Z", "4,392,099 d 7 h ago"),
        ] {
            assert_eq!(relative(at.parse().unwrap(), now), text, "{at}");
        }
    }
}
