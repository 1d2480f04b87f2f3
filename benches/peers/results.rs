//! All that was measured, as `results.json` keeps it.

use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::error::Result;
use crate::peer::Peer;
use crate::work::{Metric, Values, Work};

#[derive(Serialize, Deserialize)]
pub(crate) struct Results {
    /// Names and values.
    pub(crate) machine: Vec<(String, String)>,
    pub(crate) rounds: usize,
    pub(crate) records: Vec<Record>,
    /// What did not work, in words.
    pub(crate) errors: Vec<String>,
}

/// One measurement.
#[derive(Serialize, Deserialize)]
pub(crate) struct Record {
    pub(crate) round: usize,
    /// [`Work::id`].
    pub(crate) work: String,
    pub(crate) peer: Peer,
    pub(crate) values: Values,
}

/// The rounds' values of one metric.
#[derive(Clone, Copy)]
pub(crate) struct Spread {
    pub(crate) median: f64,
    pub(crate) min: f64,
    pub(crate) max: f64,
}

impl Results {
    pub(crate) fn load(path: &Path) -> Result<Self> {
        Ok(serde_json::from_str(&fs::read_to_string(path)?)?)
    }

    pub(crate) fn save(&self, path: &Path) -> Result<()> {
        Ok(fs::write(path, serde_json::to_string_pretty(self)? + "\n")?)
    }

    /// The peers that took part, in their order.
    pub(crate) fn peers(&self) -> Vec<Peer> {
        let mut peers: Vec<Peer> = self.records.iter().map(|record| record.peer).collect();
        peers.sort_unstable();
        peers.dedup();
        peers
    }

    pub(crate) fn took_part(&self, peer: Peer) -> bool {
        self.records.iter().any(|record| record.peer == peer)
    }

    /// The work that was done, in its order.
    pub(crate) fn works(&self) -> Vec<Work> {
        let done = |work: &Work| self.records.iter().any(|record| record.work == work.id());
        Work::ALL.into_iter().filter(done).collect()
    }

    /// What was measured at `work`, in the order of the first record that has it all.
    pub(crate) fn metrics(&self, work: Work) -> Vec<Metric> {
        let id = work.id();
        let values = self.records.iter().filter(|record| record.work == id).map(|record| &record.values);
        values
            .max_by_key(|values| values.len())
            .map_or_else(Vec::new, |values| values.iter().map(|(metric, _)| *metric).collect())
    }

    pub(crate) fn spread(&self, work: Work, peer: Peer, metric: Metric) -> Option<Spread> {
        let id = work.id();
        let mut values: Vec<f64> = self
            .records
            .iter()
            .filter(|record| record.work == id && record.peer == peer)
            .flat_map(|record| &record.values)
            .filter_map(|&(of, value)| (of == metric).then_some(value))
            .collect();
        values.sort_unstable_by(f64::total_cmp);
        let (min, max) = (*values.first()?, *values.last()?);
        let middle = values.len() / 2;
        let median = if values.len() % 2 == 1 {
            values[middle]
        } else {
            f64::midpoint(values[middle - 1], values[middle])
        };
        Some(Spread { median, min, max })
    }

    /// The encrypted peer that is best at this, of those that are `eligible`.
    pub(crate) fn best_rival(
        &self,
        work: Work,
        metric: Metric,
        eligible: impl Fn(Peer) -> bool,
    ) -> Option<(Peer, Spread)> {
        let rivals = self.peers().into_iter().filter(|&peer| peer.is_rival() && eligible(peer));
        let values = rivals.filter_map(|peer| Some((peer, self.spread(work, peer, metric)?)));
        values.min_by(|(_, a), (_, b)| {
            let order = a.median.total_cmp(&b.median);
            if metric.is_cost() { order } else { order.reverse() }
        })
    }
}
