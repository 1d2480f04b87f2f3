//! Redis: its own benchmark through the pipe.

use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::time::Duration;

use super::client::timed;
use crate::count::{float_len, whole};
use crate::error::Result;
use crate::machine::command;
use crate::pipe::{Backend, Pipe};
use crate::process::{Process, output};
use crate::work::{Metric, Values};

pub(crate) const NEEDS: [(&str, &str); 2] =
    [("redis-server", "redis-server"), ("redis-benchmark", "redis-tools")];
const CLIENTS: &str = "50";

/// A server that keeps nothing on disk.
pub(crate) struct Server {
    pub(crate) backend: Backend,
    _process: Process,
}

impl Server {
    pub(crate) fn start(directory: &Path) -> Result<Self> {
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let mut server = command("redis-server")?;
        server.args(["--bind", &address.ip().to_string(), "--port", &address.port().to_string()]);
        server.args(["--save", "", "--appendonly", "no", "--dir"]).arg(directory);
        let process = Process::spawn(&mut server, directory.join("redis.log"))?;
        Ok(Self { backend: Backend { address, hello: b"PING\r\n" }, _process: process })
    }
}

pub(crate) fn run(pipe: &Pipe, pipeline: usize, time: Duration) -> Result<Values> {
    // First a few requests, to see how many fill the time; too few would measure the clients' connecting.
    let trial = 2000 * pipeline;
    let (took, done) = timed(|| benchmark(pipe.entrance, pipeline, trial));
    done?;
    let fitting = float_len(trial) * time.div_duration_f64(took);
    let requests = (10 * trial).max(whole(fitting));
    let before = pipe.cpu()?;
    let [set, get] = benchmark(pipe.entrance, pipeline, requests)?;
    let after = pipe.cpu()?;
    let mut values = vec![(Metric::SetsPerSecond, set), (Metric::GetsPerSecond, get)];
    if let (Some(before), Some(after)) = (before, after) {
        // As many SETs as GETs.
        values.push((Metric::CpuMicrosPerRequest, (after - before) * 1e6 / float_len(2 * requests)));
    }
    Ok(values)
}

/// Requests a second, for SET and GET.
fn benchmark(entrance: SocketAddr, pipeline: usize, requests: usize) -> Result<[f64; 2]> {
    let mut benchmark = command("redis-benchmark")?;
    benchmark.args(["-h", &entrance.ip().to_string(), "-p", &entrance.port().to_string(), "--csv"]);
    benchmark.args([
        "-t",
        "set,get",
        "-c",
        CLIENTS,
        "-P",
        &pipeline.to_string(),
        "-n",
        &requests.to_string(),
    ]);
    let said = output(&mut benchmark)?;
    let rate = |test: &str| {
        let line = said.lines().find_map(|line| line.strip_prefix(&format!("\"{test}\",\"")))?;
        line.split('"').next()?.parse().ok()
    };
    rate("SET").zip(rate("GET")).map(|(set, get)| [set, get]).ok_or_else(|| format!("it says {said}").into())
}
