//! A man in the middle: a relay between the two ends that cuts or alters the stream where a test wants it.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use super::socket::{self, Service};

/// What to do to one direction of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rule {
    Pass,
    /// After this many bytes, close both sides in an orderly way (FIN), as an attacker on the path can.
    CutAfter(usize),
    /// Invert the lowest bit of the byte at this offset.
    FlipAt(usize),
    /// Keep each piece back for so long, as a long way does.
    Delay(Duration),
}

/// What to do to a connection.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    /// From the initiator to the responder.
    pub(crate) forth: Rule,
    pub(crate) back: Rule,
}

impl Plan {
    pub(crate) const PASS: Self = Self { forth: Rule::Pass, back: Rule::Pass };

    pub(crate) fn forth(rule: Rule) -> Self {
        Self { forth: rule, ..Self::PASS }
    }

    pub(crate) fn back(rule: Rule) -> Self {
        Self { back: rule, ..Self::PASS }
    }
}

/// The relay, which runs until the test ends.
pub(crate) struct Relay {
    address: SocketAddr,
    recorded: Arc<Mutex<Recorded>>,
}

/// All bytes that went through a relay, by direction.
#[derive(Clone, Default)]
pub(crate) struct Recorded {
    pub(crate) forth: Vec<u8>,
    pub(crate) back: Vec<u8>,
}

impl Relay {
    /// A relay that follows `plan` on its first connection, and relays later ones unchanged.
    pub(crate) fn start(to: SocketAddr, plan: Plan) -> Self {
        let first = Mutex::new(Some(plan));
        let next = move || first.lock().unwrap_or_else(PoisonError::into_inner).take().unwrap_or(Plan::PASS);
        Self::start_with(to, next)
    }

    /// A relay that follows `plan` on every connection.
    pub(crate) fn start_every(to: SocketAddr, plan: Plan) -> Self {
        Self::start_with(to, move || plan)
    }

    fn start_with(to: SocketAddr, next: impl Fn() -> Plan + Send + Sync + 'static) -> Self {
        let recorded = Arc::new(Mutex::new(Recorded::default()));
        let recorder = Arc::clone(&recorded);
        let next = Arc::new(next);
        let address = Service::start().serve(move |near| {
            let plan = next();
            let far = socket::connect(to);
            // The relay must not fail when a test is idle.
            for stream in [&near, &far] {
                stream.set_read_timeout(None).expect("the socket is open");
            }
            let clone = |stream: &TcpStream| stream.try_clone().expect("descriptors are left");
            let (near_too, far_too) = (clone(&near), clone(&far));
            let (forth, back) = (Arc::clone(&recorder), Arc::clone(&recorder));
            let returning = thread::spawn(move || {
                pass(far_too, near_too, plan.back, |bytes| lock(&back).back.extend(bytes));
            });
            pass(near, far, plan.forth, |bytes| lock(&forth).forth.extend(bytes));
            let _ = returning.join();
        });
        Self { address, recorded }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(crate) fn recorded(&self) -> Recorded {
        lock(&self.recorded).clone()
    }
}

fn lock(recorded: &Mutex<Recorded>) -> std::sync::MutexGuard<'_, Recorded> {
    recorded.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A reset is passed on as a reset, and without an end before it. Linux resets a connection whose socket is connected to nowhere
/// (connect(2), AF_UNSPEC), whoever else has it.
fn reset(stream: &TcpStream) {
    let _ = rustix::net::connect_unspec(stream);
}

/// Passes bytes on until `from` ends.
fn pass(mut from: TcpStream, mut to: TcpStream, rule: Rule, record: impl Fn(&[u8])) {
    let mut buffer = vec![0; 64 * 1024];
    let mut offset = 0;
    loop {
        let mut bytes = match from.read(&mut buffer) {
            Ok(0) => {
                let _ = to.shutdown(Shutdown::Write);
                return;
            }
            Ok(count) => &mut buffer[..count],
            Err(_) => {
                reset(&to);
                return;
            }
        };
        record(bytes);
        let mut cut = false;
        match rule {
            Rule::Delay(time) => thread::sleep(time),
            Rule::FlipAt(place) if (offset..offset + bytes.len()).contains(&place) => {
                bytes[place - offset] ^= 1;
            }
            Rule::CutAfter(length) if offset + bytes.len() >= length => {
                bytes = &mut bytes[..length - offset];
                cut = true;
            }
            _ => {}
        }
        offset += bytes.len();
        if to.write_all(bytes).is_err() {
            reset(&from);
            return;
        }
        if cut {
            // Only the sending sides: closing a socket with unread bytes would cause a reset, which is easy to
            // distinguish from an end. The thread of the other direction continues to read.
            let _ = to.shutdown(Shutdown::Write);
            let _ = from.shutdown(Shutdown::Write);
            while let Ok(1..) = from.read(&mut buffer) {}
            return;
        }
    }
}
