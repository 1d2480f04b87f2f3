//! The administrator's commands: they ask a running process over its control socket.

mod client;
mod status;
mod top;

use std::process::ExitCode;
use std::time::Duration;

use self::client::{Client, Counted, Destination, Done, Order, Readiness};
use super::args::{Administration, Closing, DestinationArgs, StatusForm};
use super::progress::Progress;
use super::text::{connections, printable};
use super::{Error, say};
use crate::addr::Target;
use crate::service::runtime::{self, Threads};
use crate::status::report::{Report, TargetState};

pub use self::client::{ControlError, Fault};

/// How often `drain --wait` looks.
const LOOK: Duration = Duration::from_secs(1);

/// Runs one command to its end.
///
/// # Errors
/// [`enum@Error`], if the process cannot be asked, or does not do it.
pub(super) fn run(command: Administration) -> Result<ExitCode, Error> {
    let runtime =
        runtime::build(Threads::One).map_err(|source| Error::System { doing: "start a runtime", source })?;
    let client = Client::new(command.socket());
    runtime.block_on(async {
        match command {
            Administration::Status { form, .. } => status(&client, &form).await,
            Administration::Top { interval, count, .. } => {
                top::run(client, Duration::from_secs(interval.into()), count).await
            }
            Administration::Reload { .. } => reload(&client).await,
            Administration::Close { what, .. } => close(&client, &what).await,
            Administration::Drain { destination, wait: false, .. } => {
                let counted = drain(&client, destination.borrowed()).await?;
                say(&format!("{} left", connections(counted)))
            }
            Administration::Drain { destination, wait: true, .. } => {
                let left = drain(&client, destination.borrowed()).await?;
                await_none(&client, destination.borrowed(), left).await?;
                say("no connection is left")
            }
            Administration::Resume { destination, .. } => {
                let done: Done = client.order(Order::Resume(destination.borrowed())).await?;
                say(&printable(&done.message))
            }
        }
    })
}

async fn status(client: &Client, form: &StatusForm) -> Result<ExitCode, Error> {
    if form.ready {
        return match client.readiness().await? {
            Readiness::Ready => say("ready"),
            Readiness::NotReady(why) => {
                let reasons: Vec<_> = why.lines().map(printable).collect();
                say(&reasons.join("\n")).map(|_| ExitCode::FAILURE)
            }
        };
    }
    if form.json {
        let report = client.report_as_it_came().await?;
        return say(String::from_utf8_lossy(&report).trim_end());
    }
    say(status::text(&client.report().await?).trim_end())
}

async fn reload(client: &Client) -> Result<ExitCode, Error> {
    let mut progress = Progress::new();
    progress.show("waiting until the process has read its configuration and looked up its names");
    let done: Done = client.order(Order::Reload).await?;
    progress.erase();
    say(&printable(&done.message))
}

async fn close(client: &Client, what: &Closing) -> Result<ExitCode, Error> {
    let (order, name) = match (&what.id, &what.key) {
        (Some(id), _) => (Order::CloseConnection(id), id),
        (None, Some(key)) => (Order::CloseKey(key), key),
        (None, None) => unreachable!("clap requires one of them"),
    };
    let counted: Counted = client.order(order).await?;
    match counted.connections {
        0 => Err(ControlError::NoConnection(name.clone()).into()),
        closed => say(&format!("{} closed", connections(closed))),
    }
}

/// How many connections have the target now.
async fn drain(client: &Client, destination: Destination<'_>) -> Result<u64, Error> {
    let counted: Counted = client.order(Order::Drain(destination)).await?;
    say(&printable(&counted.message))?;
    Ok(counted.connections)
}

/// Waits until no connection has the target, of which `left` have it now.
async fn await_none(client: &Client, destination: Destination<'_>, mut left: u64) -> Result<(), Error> {
    let mut progress = Progress::new();
    while left > 0 {
        progress.show(&format!("waiting for {} to {}", connections(left), destination.target));
        tokio::time::sleep(LOOK).await;
        left = connections_left(&client.report().await?, destination)?;
    }
    Ok(())
}

/// How many connections have a drained target.
fn connections_left(report: &Report, destination: Destination<'_>) -> Result<u64, ControlError> {
    // One address may be written in several ways.
    let parsed: Option<Target> = destination.target.parse().ok();
    let is_it = |text: &str| text == destination.target || parsed.is_some() && text.parse().ok() == parsed;
    let pipes = report.pipes.iter().filter(|pipe| destination.pipe.is_none_or(|name| name == pipe.name));
    let targets: Vec<_> =
        pipes.flat_map(|pipe| &pipe.targets).filter(|target| is_it(&target.target)).collect();
    let name = || destination.target.to_owned();
    if targets.is_empty() {
        return Err(ControlError::NoTarget(name()));
    }
    if targets.iter().any(|target| target.state != TargetState::Drained) {
        return Err(ControlError::Resumed(name()));
    }
    Ok(targets.iter().map(|target| target.connections as u64).sum())
}

impl DestinationArgs {
    fn borrowed(&self) -> Destination<'_> {
        Destination { target: &self.target, pipe: self.pipe.as_deref() }
    }
}

#[cfg(test)]
mod samples;

#[cfg(test)]
mod tests {
    use super::*;

    fn left(report: &Report, target: &str, pipe: Option<&str>) -> Result<u64, ControlError> {
        connections_left(report, Destination { target, pipe })
    }

    fn drained() -> Report {
        let mut report = samples::report();
        report.pipes[0].targets[0].state = TargetState::Drained;
        let mut other = report.pipes[0].clone();
        other.name = "other".to_owned();
        other.targets[0].connections = 4;
        report.pipes.push(other);
        report
    }

    #[test]
    fn connections_of_all_pipes_or_of_one_are_left() {
        let report = drained();
        assert_eq!(left(&report, "[10.0.0.1]:6380", None).unwrap(), 5);
        assert_eq!(left(&report, "[10.0.0.1]:6380", Some("other")).unwrap(), 4);
        assert_eq!(left(&report, "10.0.0.1:6380", Some("redis")).unwrap(), 1, "written in another way");
    }

    #[test]
    fn a_target_that_is_not_there_is_not_taken_for_one_without_connections() {
        let report = drained();
        for (target, pipe) in
            [("[10.0.0.1]:6381", None), ("[10.0.0.1]:6380", Some("no")), ("no target", None)]
        {
            assert!(matches!(left(&report, target, pipe), Err(ControlError::NoTarget(_))), "{target}");
        }
    }

    #[test]
    fn a_target_that_is_used_again_is_not_waited_for() {
        let mut report = drained();
        report.pipes[1].targets[0].state = TargetState::Up;
        assert!(matches!(left(&report, "[10.0.0.1]:6380", None), Err(ControlError::Resumed(_))));
        assert_eq!(left(&report, "[10.0.0.1]:6380", Some("redis")).unwrap(), 1);
    }
}
