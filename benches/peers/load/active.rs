//! Many active connections: a message now and then on each of them, which a service returns.
//!
//! All connections together send at one rate, whatever their number, so that a difference between few and many is the
//! price of their number. Each sends its next message only after the answer to the one before. One thread sends and
//! another takes the answers, so that an answer never waits for the next message's time.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::fd::OwnedFd;
use rustix::time::Timespec;

use super::client::{open, percentile};
use super::service::{PATIENCE, Request};
use crate::count::float_len;
use crate::error::Result;
use crate::pipe::Pipe;
use crate::work::{Metric, Values};

/// Between two messages, over all connections together: 5,000 a second, which leaves the slowest peer time to spare.
const INTERVAL: Duration = Duration::from_micros(200);
const MESSAGE: usize = 64;
/// How often the thread that takes answers looks whether it is done.
const LOOK: Timespec = Timespec { tv_sec: 0, tv_nsec: 50_000_000 };

pub(crate) fn run(pipe: &Pipe, count: usize, time: Duration) -> Result<Values> {
    let streams = open(pipe.entrance, count, Request::Answer, 1);
    // With fewer, the result would be one for fewer.
    if streams.len() < count {
        return Err(format!("only {} of {count} connections succeeded", streams.len()).into());
    }
    let clients = Clients::new(streams)?;
    // Every connection has carried a byte. The first messages find cold caches and small windows.
    clients.drive(time / 4)?;
    let before = pipe.cpu()?;
    let start = Instant::now();
    let mut times = clients.drive(time)?;
    let took = start.elapsed();
    let after = pipe.cpu()?;
    times.sort_unstable();
    let micros = |percent| percentile(&times, percent).as_secs_f64() * 1e6;
    let done = float_len(times.len());
    let mut values = vec![(Metric::P50Micros, micros(50)), (Metric::P99Micros, micros(99))];
    if let (Some(before), Some(after)) = (before, after) {
        values.push((Metric::CpuMicrosPerRequest, (after - before) * 1e6 / done));
    }
    values.push((Metric::RequestsPerSecond, done / took.as_secs_f64()));
    Ok(values)
}

struct Clients {
    all: Vec<Client>,
    /// Says which of them have bytes to read, by index.
    readable: OwnedFd,
    epoch: Instant,
}

struct Client {
    stream: TcpStream,
    /// When its message was sent, in nanoseconds since the epoch; 0 once the answer is there.
    sent: AtomicU64,
}

impl Clients {
    fn new(streams: Vec<TcpStream>) -> Result<Self> {
        let readable = epoll::create(CreateFlags::CLOEXEC)?;
        let mut all = Vec::with_capacity(streams.len());
        for (index, stream) in (0..).zip(streams) {
            epoll::add(&readable, &stream, EventData::new_u64(index), EventFlags::IN)?;
            all.push(Client { stream, sent: AtomicU64::new(0) });
        }
        Ok(Self { all, readable, epoch: Instant::now() })
    }

    fn now(&self) -> u64 {
        u64::try_from(self.epoch.elapsed().as_nanos()).expect("a run takes less than centuries")
    }

    /// Sends messages for `time`, waits for the last answers, and returns how long each took.
    fn drive(&self, time: Duration) -> Result<Vec<Duration>> {
        let all_sent = AtomicBool::new(false);
        thread::scope(|scope| {
            let answers = scope.spawn(|| self.take_answers(&all_sent));
            let sent = self.send_messages(time);
            all_sent.store(true, Ordering::Release);
            let answers = answers.join().expect("it does not panic")?;
            sent?;
            Ok(answers)
        })
    }

    fn send_messages(&self, time: Duration) -> io::Result<()> {
        let start = Instant::now();
        let mut due = Duration::ZERO;
        for client in self.all.iter().cycle() {
            // One that still waits for its answer loses its turn.
            if client.sent.load(Ordering::Acquire) == 0 {
                client.sent.store(self.now(), Ordering::Release);
                (&client.stream).write_all(&[7; MESSAGE])?;
            }
            due += INTERVAL;
            if due >= time {
                break;
            }
            if let Some(early) = due.checked_sub(start.elapsed()) {
                sleep(early);
            }
        }
        Ok(())
    }

    fn take_answers(&self, all_sent: &AtomicBool) -> Result<Vec<Duration>> {
        let mut times = Vec::new();
        let mut taken = vec![0; self.all.len()];
        let mut events = Vec::with_capacity(256);
        let mut last = Instant::now();
        while !(all_sent.load(Ordering::Acquire) && self.waiting() == 0) {
            epoll::wait(&self.readable, spare_capacity(&mut events), Some(&LOOK))?;
            if events.is_empty() && last.elapsed() > PATIENCE {
                return Err(format!("{} connections wait for an answer in vain", self.waiting()).into());
            }
            for event in events.drain(..) {
                let index = usize::try_from(event.data.u64())?;
                let client = &self.all[index];
                match (&client.stream).read(&mut [0; MESSAGE])? {
                    0 => return Err("a connection has ended".into()),
                    count => taken[index] += count,
                }
                if taken[index] == MESSAGE {
                    taken[index] = 0;
                    let sent = client.sent.swap(0, Ordering::AcqRel);
                    times.push(Duration::from_nanos(self.now() - sent));
                }
                last = Instant::now();
            }
        }
        Ok(times)
    }

    /// How many have no answer yet.
    fn waiting(&self) -> usize {
        self.all.iter().filter(|client| client.sent.load(Ordering::Acquire) != 0).count()
    }
}
