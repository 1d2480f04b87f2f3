//! Limits on what one source may do (`--max-per-source`, `--rate-per-source`): an IPv4 address, or an IPv6 /64.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::time::Instant;

use super::quota::{Exceeded, Quota, Spent};
use super::source::Source;
use crate::stream::Remote;

/// Sources without a connection that are remembered for their rate, at most. Beyond that they are forgotten, which is a gift
/// of one second's connections to each: an attacker with so many addresses has these anyway.
const REMEMBERED: usize = 16 * 1024;

/// What the sources of a pipe's connections have.
#[derive(Default)]
pub(super) struct BySource(Mutex<State>);

#[derive(Default)]
struct State {
    limits: Quota,
    sources: HashMap<IpAddr, Spent>,
}

impl BySource {
    /// Has `limits` hold from now on, for the connections that are there as well.
    pub(super) fn set_limits(&self, limits: Quota) {
        let mut state = self.state();
        state.limits = limits;
        state.sources.retain(|_, spent| spent.has_connections());
    }

    /// Counts one more connection of `remote`, until what is given is dropped. None where nothing is limited.
    ///
    /// # Errors
    /// [`Exceeded`], if the source may not have it.
    pub(super) fn enter(self: &Arc<Self>, remote: Remote) -> Result<Option<OfSource>, Exceeded> {
        let mut state = self.state();
        let State { limits, sources } = &mut *state;
        let Some(source) = Source::of(remote).host() else { return Ok(None) };
        if *limits == Quota::default() {
            return Ok(None);
        }
        let now = Instant::now();
        if sources.len() >= REMEMBERED && !sources.contains_key(&source) {
            forget(sources, *limits, now);
        }
        sources.entry(source).or_insert_with(|| Spent::new(*limits, now)).take(*limits, now)?;
        Ok(Some(OfSource { by_source: Arc::clone(self), source }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A panic elsewhere leaves it whole: every change to it is one step.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Makes room for one more source: forgets those about which there is nothing to know, and if that is not enough, all that have
/// no connection.
fn forget(sources: &mut HashMap<IpAddr, Spent>, limits: Quota, now: Instant) {
    sources.retain(|_, spent| spent.has_connections() || !spent.is_refilled(limits, now));
    if sources.len() >= REMEMBERED {
        sources.retain(|_, spent| spent.has_connections());
    }
}

/// A connection, counted at its source until this is dropped.
pub struct OfSource {
    by_source: Arc<BySource>,
    source: IpAddr,
}

impl Drop for OfSource {
    fn drop(&mut self) {
        let mut state = self.by_source.state();
        let needs_rate = state.limits.rate.is_some();
        if let Some(spent) = state.sources.get_mut(&self.source) {
            spent.give_back();
            if !spent.has_connections() && !needs_rate {
                state.sources.remove(&self.source);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZero;
    use std::time::Duration;

    use super::*;

    fn limits(connections: u32, rate: u32) -> Arc<BySource> {
        let limits = Quota { connections: NonZero::new(connections), rate: NonZero::new(rate) };
        let by_source = Arc::<BySource>::default();
        by_source.set_limits(limits);
        by_source
    }

    fn enter(by_source: &Arc<BySource>, ip: &str) -> Result<Option<OfSource>, Exceeded> {
        by_source.enter(Remote::Ip(ip.parse().unwrap(), 1))
    }

    #[tokio::test(start_paused = true)]
    async fn a_source_has_as_many_connections_as_it_may() {
        let by_source = limits(2, 0);
        let first = enter(&by_source, "192.0.2.1").unwrap();
        let _second = enter(&by_source, "::ffff:192.0.2.1").unwrap();
        assert_eq!(enter(&by_source, "192.0.2.1").err(), Some(Exceeded::Connections));
        assert!(enter(&by_source, "192.0.2.2").is_ok(), "it is another source");
        drop(first);
        assert!(enter(&by_source, "192.0.2.1").is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn the_addresses_of_one_ipv6_network_are_one_source() {
        let by_source = limits(1, 0);
        let _first = enter(&by_source, "2001:db8:0:1::1").unwrap();
        assert!(enter(&by_source, "2001:db8:0:1:ffff::").is_err());
        assert!(enter(&by_source, "2001:db8:0:2::1").is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn a_source_has_new_connections_at_its_rate() {
        let by_source = limits(0, 10);
        for _ in 0..10 {
            drop(enter(&by_source, "192.0.2.1").unwrap());
        }
        assert_eq!(enter(&by_source, "192.0.2.1").err(), Some(Exceeded::Rate));
        tokio::time::advance(Duration::from_millis(250)).await;
        assert!(enter(&by_source, "192.0.2.1").is_ok() && enter(&by_source, "192.0.2.1").is_ok());
        assert!(enter(&by_source, "192.0.2.1").is_err());
        tokio::time::advance(Duration::from_secs(3_600)).await;
        let burst = (0..20).filter(|_| enter(&by_source, "192.0.2.1").is_ok()).count();
        assert_eq!(burst, 10, "what was not used is not kept for more than a second");
    }

    #[tokio::test(start_paused = true)]
    async fn a_changed_limit_counts_the_connections_that_are_there() {
        let by_source = limits(5, 0);
        let _three = [(); 3].map(|()| enter(&by_source, "192.0.2.1").unwrap());
        by_source.set_limits(Quota { connections: NonZero::new(3), rate: None });
        assert!(enter(&by_source, "192.0.2.1").is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn local_connections_are_not_counted() {
        let by_source = limits(1, 1);
        let entered = [(); 5].map(|()| by_source.enter(Remote::Local).unwrap());
        assert!(entered.iter().all(Option::is_none));
    }

    #[tokio::test(start_paused = true)]
    async fn without_limits_nothing_is_remembered() {
        let by_source = limits(0, 0);
        assert!(enter(&by_source, "192.0.2.1").unwrap().is_none());
        assert!(by_source.state().sources.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn memory_is_bounded_whatever_sources_come() {
        let by_source = limits(0, 2);
        let _stays = enter(&by_source, "203.0.113.1").unwrap();
        for number in 0..100_000_u32 {
            let ip = std::net::Ipv4Addr::from_bits(number);
            drop(by_source.enter(Remote::Ip(ip.into(), 1)).unwrap());
            assert!(by_source.state().sources.len() <= REMEMBERED);
        }
        assert!(by_source.state().sources.contains_key(&"203.0.113.1".parse().unwrap()));
    }
}
