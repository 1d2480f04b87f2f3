//! spipe beside its peers: the same work through each in turn, in several rounds, on this machine.
//!
//! ```text
//!  client ─▶ near end ─▶ far end ─▶ service          all on loopback; client and service are the benchmark's own
//! ```
//!
//! Only for new connections over a distance are the ends on two hosts, see `host`.
//!
//! `cargo bench --bench peers` installs what is missing from Debian's packages, prints a table for each work, and writes
//! tables, raw values and plots to `docs/benchmarks`. It takes root, or sudo to install and root to see spipe's memory.
//! `cargo bench --bench peers -- --help` has the options.
//!
//! A file uses only files on lines below its own, and the left and the right column use nothing of each other:
//!
//! ```text
//!                             main
//!
//!  load/mod                                      report
//!  load/active, bulk, burst, connect,            goals, plot
//!    distant, idle, redis, round_trip            format, results
//!  load/client
//!  load/echo, service
//!  pipe
//!  host
//!  relay
//!  secrets
//!  machine
//!  process
//!  account
//!  count
//!
//!                             peer
//!                             work
//!                             error
//! ```
//!
//! So a report takes nothing but results, wherever they come from: a measurement or a `results.json`.

mod account;
mod count;
mod error;
mod format;
mod goals;
mod host;
mod load;
mod machine;
mod peer;
mod pipe;
mod plot;
mod process;
mod relay;
mod report;
mod results;
mod secrets;
mod work;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;
use error::Result;
use host::Host;
use load::echo::Echo;
use load::service::Service;
use load::{Effort, redis};
use peer::Peer;
use pipe::{Backend, First, OPEN_FILES, Pipe};
use results::{Record, Results};
use secrets::Secrets;
use spipe::cli::progress::Progress;
use tempfile::TempDir;
use work::{Kind, Work};

const FULL_OUT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/benchmarks");
/// A run that leaves something out does not replace the published one.
const PARTIAL_OUT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/target/peers/results");

/// Runs the same work through spipe and its peers, and compares.
#[derive(Parser)]
#[command(name = "peers", disable_help_subcommand = true)]
struct Options {
    /// How often each measurement is made
    #[arg(long, default_value_t = 3)]
    rounds: usize,

    /// Which pipes to measure [default: all but shadowsocks, which takes part if it is installed]
    #[arg(long, value_delimiter = ',', value_name = "PEER,...")]
    only: Vec<Peer>,

    /// Which work to do [default: all]
    #[arg(long, value_delimiter = ',', value_name = "WORK,...")]
    work: Vec<Kind>,

    /// One round, with less of each work and no 5,000 idle connections: in twenty minutes
    #[arg(long)]
    quick: bool,

    /// Build shadowsocks-rust if it is not installed; this takes minutes
    #[arg(long)]
    with_shadowsocks: bool,

    /// Another build of spipe to measure beside this one, to see what a change is worth
    #[arg(long, value_name = "FILE")]
    against: Option<PathBuf>,

    /// Where to write the results [default: docs/benchmarks; target/peers/results if something is left out]
    #[arg(long, value_name = "DIRECTORY")]
    out: Option<PathBuf>,

    /// Measure nothing: write tables and plots again from a results.json
    #[arg(long, value_name = "FILE")]
    from: Option<PathBuf>,

    /// What cargo adds
    #[arg(long, hide = true)]
    bench: bool,

    /// To be an end of [`Peer::TokioRustls`], and nothing else
    #[command(subcommand)]
    relay: Option<relay::End>,
}

impl Options {
    fn peers(&self) -> Vec<Peer> {
        let chosen = |peer: &Peer| match peer {
            Peer::Other => self.against.is_some(),
            _ if self.only.contains(peer) => true,
            Peer::Shadowsocks => {
                self.with_shadowsocks || self.only.is_empty() && machine::find("ssserver").is_some()
            }
            _ => self.only.is_empty(),
        };
        Peer::ALL.into_iter().filter(chosen).collect()
    }

    fn works(&self) -> Vec<Work> {
        let chosen = |work: &Work| self.work.is_empty() || self.work.contains(&work.kind());
        let fits = |work: &Work| !(self.quick && *work == Work::Idle { count: 5000 });
        Work::ALL.into_iter().filter(|work| chosen(work) && fits(work)).collect()
    }

    fn out(&self) -> &Path {
        let partial = self.quick || self.against.is_some() || !self.only.is_empty() || !self.work.is_empty();
        self.out.as_deref().unwrap_or(Path::new(if partial { PARTIAL_OUT } else { FULL_OUT }))
    }
}

fn main() -> ExitCode {
    let options = Options::parse();
    if let Some(Err(error)) = options.relay.as_ref().map(relay::End::run) {
        eprintln!("{error}");
        return ExitCode::FAILURE;
    }
    let results = match &options.from {
        Some(path) => Results::load(path),
        None => measure(&options),
    };
    match results.and_then(|results| publish(&results, options.out()).map(|()| results.errors)) {
        Ok(errors) if errors.is_empty() => ExitCode::SUCCESS,
        Ok(errors) => {
            eprintln!("\nNot everything worked:");
            for error in errors {
                eprintln!("  {error}");
            }
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("peers: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Everything that all measurements share.
struct Bench {
    /// Configurations, keys and logs; stays if something fails.
    directory: TempDir,
    secrets: Secrets,
    service: Service,
    redis: Option<redis::Server>,
    /// The near and the far one of [`Work::Distant`].
    distant: Option<[Host; 2]>,
    effort: Effort,
    /// The program of [`Peer::Other`].
    other: Option<PathBuf>,
}

fn measure(options: &Options) -> Result<Results> {
    let (peers, works) = (options.peers(), options.works());
    let with_redis = works.iter().any(|work| work.kind() == Kind::Redis);
    let mut needs: Vec<_> = peers.iter().flat_map(|peer| peer.needs()).copied().collect();
    if with_redis {
        needs.extend(redis::NEEDS);
    }
    let with_distant = works.contains(&Work::Distant);
    if with_distant {
        needs.extend(host::NEEDS);
    }
    machine::install(&needs)?;
    if peers.contains(&Peer::Shadowsocks) {
        machine::shadowsocks()?;
    }
    machine::raise_file_limit(OPEN_FILES)?;

    let directory = tempfile::Builder::new().prefix("spipe-peers-").tempdir()?;
    let mut bench = Bench {
        secrets: Secrets::make(&peers, directory.path())?,
        service: Service::start()?,
        redis: with_redis.then(|| redis::Server::start(directory.path())).transpose()?,
        distant: with_distant.then(Host::distant).transpose()?,
        effort: if options.quick { Effort::quick() } else { Effort::full() },
        directory,
        other: options.against.clone(),
    };
    let rounds = if options.quick { 1 } else { options.rounds };
    let mut results =
        Results { machine: machine::describe(&peers), rounds, records: Vec::new(), errors: Vec::new() };
    let start = Instant::now();
    let takes_part = |work: Work| peers.iter().copied().filter(move |peer| peer.takes_part_in(work));
    let all = rounds * works.iter().map(|&work| takes_part(work).count()).sum::<usize>();
    let mut progress = Progress::new();
    for round in 1..=rounds {
        for &work in &works {
            for peer in takes_part(work) {
                progress.erase();
                println!("{:>5} s  round {round}  {}  {}", start.elapsed().as_secs(), work.id(), peer.name());
                let done = results.records.len() + results.errors.len();
                progress.show(&format::progress(done, all, start.elapsed()));
                match bench.one(round, work, peer) {
                    Ok(record) => results.records.push(record),
                    Err(error) => {
                        progress.erase();
                        let error = format!("round {round}, {}, {}: {error}", work.id(), peer.name());
                        eprintln!("         {error}");
                        results.errors.push(error);
                        bench.directory.disable_cleanup(true);
                    }
                }
            }
        }
    }
    Ok(results)
}

impl Bench {
    /// One peer, started afresh, at one work.
    fn one(&self, round: usize, work: Work, peer: Peer) -> Result<Record> {
        let directory = self.directory.path().join(format!("{round}-{}-{peer:?}", work.id()));
        fs::create_dir(&directory)?;
        let here = Host::here();
        let (hosts, first) = match &self.distant {
            Some(distant) if work == Work::Distant => (distant, First::Clients),
            _ => (&here, First::Own),
        };
        let [near, far] = hosts;
        // Of one measurement only: connections of an earlier one, which the kernel keeps for a minute, take none of its ports.
        let echo = far.enter(|| Ok(Echo::start(far.address)?))?;
        let backend = match (work, &self.redis) {
            (Work::Redis { .. }, Some(redis)) => redis.backend,
            (Work::Active { .. } | Work::Distant | Work::Burst { .. }, _) => {
                Backend { address: echo.address, hello: b"a" }
            }
            _ => Backend { address: self.service.address, hello: b"a" },
        };
        near.enter(|| {
            let other = self.other.as_deref();
            let pipe = Pipe::start(peer, backend, &self.secrets, &directory, other, hosts, first)?;
            let values = load::measure(work, &pipe, &self.service, &self.effort)
                .map_err(|error| format!("{error}; the logs are in {}", directory.display()))?;
            Ok(Record { round, work: work.id(), peer, values })
        })
    }
}

/// Prints the tables, and writes everything to `directory`.
fn publish(results: &Results, directory: &Path) -> Result<()> {
    println!();
    for work in results.works() {
        println!("{}", report::work(results, work));
    }
    println!("{}", report::judgement(results));
    println!("{}", goals::verdicts(results));
    print!("{}", report::growth(results));
    fs::create_dir_all(directory)?;
    results.save(&directory.join("results.json"))?;
    fs::write(directory.join("results.md"), report::document(results))?;
    for chart in plot::charts(results) {
        chart.draw(directory)?;
    }
    println!("\nWritten to {}", directory.display());
    Ok(())
}
