//! What a process says of itself: the JSON of `/status`, from which the page and `spipe top` are made as well. `docs/STATUS.md`
//! lists every field.
//!
//! Programs read this. Fields may be added; those that are there keep their names, types and meaning as long as `schema` stays.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// The version of what is below.
pub const SCHEMA: u32 = 1;

/// The whole process.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Report {
    /// [`SCHEMA`].
    pub schema: u32,
    /// Of spipe.
    pub version: String,
    /// The process id.
    pub pid: u32,
    /// When the process started.
    pub started: Timestamp,
    /// When this was said.
    pub now: Timestamp,
    /// What the process does.
    pub state: State,
    /// Whether new connections are served, as `/readyz` has it.
    pub ready: bool,
    /// Why not, in words.
    pub not_ready: Vec<String>,
    /// What locks the process in, as the line `sandboxed` of the log has it, or `off`.
    pub sandbox: String,
    /// Of the system.
    pub process: Process,
    /// Of the configuration.
    pub reload: Reloads,
    /// Look-ups of host names.
    pub name_lookups: Lookups,
    /// Log lines that were lost, since the log was not read as fast as it was written.
    pub log_lines_dropped: u64,
    /// The pipes, in the order of the configuration.
    pub pipes: Vec<Pipe>,
}

/// What a process does.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// It serves.
    Serving,
    /// It lets connections finish, and accepts no more.
    Stopping,
}

/// What a process has of the system. What the system does not tell is left out.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct Process {
    /// Open files.
    pub descriptors: Option<u64>,
    /// The most there may be.
    pub descriptors_limit: Option<u64>,
    /// Memory in use.
    pub resident_bytes: Option<u64>,
    /// Address space in use.
    pub virtual_bytes: Option<u64>,
    /// Processor time, of all threads.
    pub cpu_seconds: Option<f64>,
    /// Threads.
    pub threads: Option<u64>,
}

/// How often the configuration was read again.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct Reloads {
    /// Times that it was put into force.
    pub succeeded: u64,
    /// Times that it was wrong, so that what was in force stayed in force.
    pub failed: u64,
    /// The last time, if there was one.
    pub last: Option<Reload>,
}

/// One time that the configuration was read again.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Reload {
    /// When.
    pub at: Timestamp,
    /// What was wrong. Null, if nothing was.
    pub error: Option<String>,
}

/// Look-ups of host names, in the background included.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct Lookups {
    /// Those that found addresses.
    pub found: u64,
    /// Those that failed.
    pub failed: u64,
}

/// One pipe.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Pipe {
    /// Its `name`, or else its sources. Peers of whom it is not known which of several pipes with one source they are for have an
    /// entry of their own, with the names of these pipes and commas between them.
    pub name: String,
    /// What it does.
    pub mode: Mode,
    /// Whether it serves.
    pub state: PipeState,
    /// Where it listens: the addresses as they are.
    pub sources: Vec<String>,
    /// Since when everything below counts: reloads do not begin anew.
    pub since: Timestamp,
    /// The ciphers that it accepts.
    pub ciphers: Vec<String>,
    /// Its connections.
    pub connections: Connections,
    /// How much there was a second, over the last five.
    pub rate: Rate,
    /// Payload bytes carried, of connections that run as well.
    pub bytes: Bytes,
    /// Connections that have not proved the key so far.
    pub strangers: usize,
    /// How long handshakes took.
    pub handshake: Durations,
    /// How long connections lasted.
    pub duration: Durations,
    /// Its keys.
    pub keys: Vec<Key>,
    /// Its targets.
    pub targets: Vec<Target>,
    /// Connections that never carried anything.
    pub failures: Failures,
    /// Connections that have ended, by reason. Every reason is there.
    pub closed: BTreeMap<String, u64>,
    /// The last 15 minutes.
    pub history: History,
}

/// What a pipe does.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// `-e`.
    Encrypt,
    /// `-d`.
    Decrypt,
}

/// Whether a pipe serves.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum PipeState {
    /// It accepts connections.
    Listening,
    /// The name of a source does not resolve yet.
    WaitingForName,
    /// Its accept loop has died: a fault in spipe, which a reload mends.
    Dead,
    /// A reload has taken it away; what is left are its connections.
    Removed,
    /// The process stops.
    Stopping,
}

/// The connections of a pipe.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Connections {
    /// Those that carry.
    pub now: usize,
    /// The most at a time (`-n`). Null is no limit.
    pub limit: Option<usize>,
    /// The most that carried at a time.
    pub max: usize,
    /// Those that arrived and may be here by where they come from.
    pub accepted: u64,
    /// Those that carried, or still do.
    pub established: u64,
    /// Those over a tunnel that had carried others before. Older processes do not say.
    #[serde(default)]
    pub reused: u64,
}

/// How much there is a second.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct Rate {
    /// New connections that carry.
    pub connections: f64,
    /// Payload bytes to the target.
    pub to_target: f64,
    /// Payload bytes from the target.
    pub from_target: f64,
}

/// Payload bytes by direction.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct Bytes {
    /// To the target.
    pub to_target: u64,
    /// From the target.
    pub from_target: u64,
}

/// Durations of many events, in seconds.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct Durations {
    /// How many there were.
    pub count: u64,
    /// The median. Null, if there were none.
    pub p50: Option<f64>,
    /// What 99 of 100 did not exceed.
    pub p99: Option<f64>,
}

/// A key of a pipe.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Key {
    /// Its fingerprint.
    pub fingerprint: String,
    /// Whose it is, if that is said.
    pub name: Option<String>,
    /// Where it comes from.
    pub file: Option<String>,
    /// Connections of the pipe that carry and have it.
    pub connections: usize,
    /// Connections of the pipe that carried and had it, by cipher.
    pub established: BTreeMap<String, u64>,
    /// When a connection of the process last had it. Null, if that is not known.
    pub last_used: Option<Timestamp>,
    /// From when on it is refused.
    pub expires: Option<Timestamp>,
}

/// A target of a pipe.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Target {
    /// As it was written.
    pub target: String,
    /// Whether connections get it.
    pub state: TargetState,
    /// Since when.
    pub since: Timestamp,
    /// How checks see it. Null without `--check`.
    pub check: Option<Check>,
    /// What it said when it last failed.
    pub last_error: Option<String>,
    /// Connections of the pipe that have it, those included that are being set up.
    pub connections: usize,
    /// Attempts to connect to it, of checks as well, by result. Every result is there.
    pub dials: BTreeMap<String, u64>,
    /// How long it took to connect.
    pub dial: Durations,
    /// The addresses that its name has now. Empty, if it is an address itself, or has never been looked up.
    pub addresses: Vec<String>,
}

/// Whether connections get a target.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum TargetState {
    /// They do.
    Up,
    /// A connection to it has failed: others come first.
    Avoided,
    /// Checks have found it down.
    Down,
    /// An administrator has taken it away from new connections.
    Drained,
}

/// Checks that contradict the state of a target: at `needed` of them in a row, it changes.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Check {
    /// So many were there so far.
    pub contradictions: u32,
    /// So many are needed.
    pub needed: u32,
}

/// Connections that never carried anything.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Failures {
    /// By cause. Every cause is there.
    pub total: BTreeMap<String, u64>,
    /// The same of the last 24 hours, to the hour.
    pub last_24_hours: BTreeMap<String, u64>,
    /// The last 20, the newest first. Of those that come by the thousand, some.
    pub last: Vec<Failure>,
}

/// One failure.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Failure {
    /// When.
    pub at: Timestamp,
    /// Its cause, by which it is counted.
    pub cause: String,
    /// Of whom, and why.
    pub text: String,
}

/// The last 15 minutes, the oldest point first. All lists have the same length.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct History {
    /// Seconds between two points.
    pub step_seconds: u64,
    /// Connections that carried at that time.
    pub connections: Vec<usize>,
    /// New connections a second since the point before.
    pub new: Vec<f64>,
    /// Payload bytes a second to the target.
    pub to_target: Vec<f64>,
    /// Payload bytes a second from the target.
    pub from_target: Vec<f64>,
}

/// Connections that carry: the JSON of `/connections`.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct ConnectionList {
    /// [`SCHEMA`].
    pub schema: u32,
    /// How many there are; the list may be shorter.
    pub total: usize,
    /// The first of them, in the order that was asked for.
    pub connections: Vec<Connection>,
}

/// A connection that carries.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Connection {
    /// What both ends call it.
    pub id: String,
    /// The name of its pipe.
    pub pipe: String,
    /// The client, if that is known.
    pub client: Option<String>,
    /// The other end of the tunnel.
    pub peer: String,
    /// The address that was dialed.
    pub target: String,
    /// The target, as it was written.
    pub configured: String,
    /// The fingerprint of its key.
    pub key: String,
    /// Whose that is, if that is said.
    pub key_name: Option<String>,
    /// What seals its data.
    pub cipher: String,
    /// How long it has lasted.
    pub age_seconds: f64,
    /// For how long it has carried nothing.
    pub idle_seconds: f64,
    /// Payload bytes to the target.
    pub to_target: u64,
    /// Payload bytes from the target.
    pub from_target: u64,
}

/// What connections are sorted by.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum SortBy {
    /// How long they have lasted, the newest first.
    #[default]
    Age,
    /// For how long they have carried nothing, the busiest first.
    Idle,
    /// Bytes of both directions, the most first.
    Bytes,
    /// Bytes to the target, the most first.
    ToTarget,
    /// Bytes from the target, the most first.
    FromTarget,
    /// The client.
    Client,
    /// The key, by its name or else its fingerprint.
    Key,
    /// The target.
    Target,
    /// The pipe.
    Pipe,
}
