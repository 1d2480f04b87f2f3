//! `spipe ping`: tries the way to the other end, with a line on standard output for each step that worked.

use std::fmt;
use std::process::ExitCode;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};
use tracing::level_filters::LevelFilter;

use super::serve::{start_log, start_small_runtime};
use super::{Error, say};
use crate::config::ConfigError;
use crate::config::key_file::Owners;
use crate::config::options::{Pause, PingOptions, ServiceOptions, Trips};
use crate::config::plan::Planner;
use crate::connection::{PingError, Pinger, Pinging};
use crate::upstream::DialFailure;

/// What each step ends with that fails, as `--help` has it.
pub(super) fn exit_code(error: &PingError) -> ExitCode {
    ExitCode::from(match error {
        PingError::Name { .. } | PingError::NameTimedOut(_) => 3,
        // That of the outgoing address.
        PingError::Connect(error) if matches!(*error.source, DialFailure::Unresolved(_)) => 3,
        PingError::Connect(_) => 4,
        PingError::Handshake { .. } => 5,
        PingError::TooOld(_)
        | PingError::NoPlace
        | PingError::NoAnswer
        | PingError::Altered
        | PingError::Ended
        | PingError::OtherEnd(_) => 6,
        PingError::TargetUnreachable | PingError::TargetTimedOut => 7,
    })
}

/// Takes the steps that `options` say.
///
/// # Errors
/// [`enum@Error`]: the step that failed.
pub(super) fn run(options: PingOptions) -> Result<ExitCode, Error> {
    let service = ServiceOptions::default();
    // What goes wrong is said once, at the end.
    start_log(&service, LevelFilter::ERROR);
    let (Trips(count), Pause(interval), through) = (options.count, options.interval, options.through);
    let (common, key) = Planner::new(Owners::new(None)).ping(options).map_err(ConfigError::from)?;
    let runtime = start_small_runtime(&common, &service)?;
    let pinger = Pinger::new(common, key);
    let tried = runtime.block_on(async {
        reach_other_end(&pinger, count.get(), interval).await?;
        if through { ask_for_target(&pinger).await } else { Ok(()) }
    });
    // A thread may still wait for a DNS server, and nothing can wake it.
    runtime.shutdown_background();
    tried.map(|()| ExitCode::SUCCESS)
}

async fn reach_other_end(pinger: &Pinger, count: u32, interval: Duration) -> Result<(), Error> {
    let deadline = pinger.deadline();
    let (resolved, time) = timed(pinger.look_up(deadline)).await?;
    if let Some((name, addresses)) = resolved {
        let addresses: Vec<_> = addresses.iter().map(|address| address.ip().to_string()).collect();
        tell("name", &format!("{name} → {}", addresses.join(", ")), time)?;
    }
    let (connected, time) = timed(pinger.connect(deadline)).await?;
    let step = if connected.remote.ip().is_some() { "TCP" } else { "socket" };
    tell(step, &pinger.describe(connected.remote), time)?;
    let (tunnel, time) = timed(pinger.shake_hands(connected, deadline)).await?;
    tell("handshake", &format!("key {}, cipher {}", tunnel.key(), tunnel.cipher()), time)?;
    let (begun, time) = timed(pinger.begin(tunnel)).await?;
    let Some(mut pinging) = begun else {
        return tell("other end", "holds the key; spiped's protocol has no pings, so this is all", time);
    };
    tell("other end", "has a place for us", time)?;
    let mut times = Times::default();
    let pinged = ping(&mut pinging, count, interval, &mut times).await;
    // Also of those that came before one that failed.
    if count > 1 && times.count > 0 {
        say(&times.to_string())?;
    }
    pinged?;
    Ok(pinging.finish().await?)
}

/// Sends `count` pings, one each `interval` or as soon as the one before is back.
async fn ping(pinging: &mut Pinging, count: u32, interval: Duration, times: &mut Times) -> Result<(), Error> {
    for number in 1..=count {
        let next = Instant::now() + interval;
        let ((), time) = timed(pinging.round_trip()).await?;
        times.add(time);
        let of_several = if count > 1 { format!(", {number} of {count}") } else { String::new() };
        tell("ping", &format!("answered{of_several}"), time)?;
        if number < count {
            sleep_until(next).await;
        }
    }
    Ok(())
}

async fn ask_for_target(pinger: &Pinger) -> Result<(), Error> {
    let tunnel = pinger.prepare_probe().await?;
    let ((), time) = timed(pinger.probe(tunnel)).await?;
    tell("target", "the other end has connected to its target", time)
}

/// Takes a step, and the time that it takes.
async fn timed<T>(step: impl Future<Output = Result<T, PingError>>) -> Result<(T, Duration), PingError> {
    let begun = Instant::now();
    let taken = step.await?;
    Ok((taken, begun.elapsed()))
}

/// A line for a step that worked.
fn tell(step: &str, found: &str, time: Duration) -> Result<(), Error> {
    say(&format!("{step:<10} {found:<48} {:>9.2} ms", milliseconds(time))).map(drop)
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1_000.0
}

/// The times of round trips.
struct Times {
    count: u32,
    least: Duration,
    most: Duration,
    total: Duration,
}

impl Default for Times {
    fn default() -> Self {
        Self { count: 0, least: Duration::MAX, most: Duration::ZERO, total: Duration::ZERO }
    }
}

impl Times {
    fn add(&mut self, time: Duration) {
        self.count += 1;
        self.least = self.least.min(time);
        self.most = self.most.max(time);
        self.total += time;
    }
}

/// As ping(8) has it, where there are any.
impl fmt::Display for Times {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mean = self.total / self.count.max(1);
        let [least, mean, most] = [self.least, mean, self.most].map(milliseconds);
        write!(
            formatter,
            "{:<10} {} answered, min/avg/max {least:.2}/{mean:.2}/{most:.2} ms",
            "pings", self.count
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_statistics_have_the_least_the_mean_and_the_most() {
        let mut times = Times::default();
        for milliseconds in [3, 1, 2] {
            times.add(Duration::from_millis(milliseconds));
        }
        assert_eq!(times.to_string(), "pings      3 answered, min/avg/max 1.00/2.00/3.00 ms");
    }

    #[test]
    fn of_one_ping_all_three_are_the_same() {
        let mut times = Times::default();
        times.add(Duration::from_micros(1_250));
        assert_eq!(times.to_string(), "pings      1 answered, min/avg/max 1.25/1.25/1.25 ms");
    }
}
