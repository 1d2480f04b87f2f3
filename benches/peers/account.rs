//! What an end of a pipe costs, by the operating system's own accounting.
//!
//! An end may be many processes (nginx has workers, sshd forks for each client), so everything is summed over a process
//! and all that descend from it. A child that has exited and been waited for lives on in its parent's `cutime`.

use std::collections::BTreeMap;
use std::fs;

use crate::count::float;
use crate::error::Result;

/// One process as `/proc/PID/stat` has it.
struct Stat {
    parent: u32,
    /// User and system time, with that of children waited for.
    ticks: u64,
}

/// Every process of the machine.
fn processes() -> Result<BTreeMap<u32, Stat>> {
    let mut all = BTreeMap::new();
    for entry in fs::read_dir("/proc")? {
        let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        // It may have gone since the directory was read.
        let Ok(text) = fs::read_to_string(format!("/proc/{pid}/stat")) else { continue };
        all.insert(pid, parse(&text).ok_or_else(|| format!("/proc/{pid}/stat reads {text:?}"))?);
    }
    Ok(all)
}

fn parse(text: &str) -> Option<Stat> {
    // A process's name may hold blanks and parentheses, but no field behind it does.
    let (_, fields) = text.rsplit_once(") ")?;
    let fields: Vec<&str> = fields.split(' ').collect();
    let parent = fields.get(1)?.parse().ok()?;
    let ticks = fields.get(11..15)?.iter().map(|field| field.parse::<u64>().ok()).sum::<Option<u64>>()?;
    Some(Stat { parent, ticks })
}

/// `roots` and all their descendants, parents first.
fn tree(all: &BTreeMap<u32, Stat>, roots: &[u32]) -> Vec<u32> {
    let mut found: Vec<u32> = roots.iter().copied().filter(|pid| all.contains_key(pid)).collect();
    let mut next = 0;
    while let Some(&pid) = found.get(next) {
        found.extend(all.iter().filter(|(_, stat)| stat.parent == pid).map(|(&child, _)| child));
        next += 1;
    }
    found
}

/// A process and all its descendants, parents first.
pub(crate) fn descendants(root: u32) -> Result<Vec<u32>> {
    Ok(tree(&processes()?, &[root]))
}

/// The CPU seconds that `roots` and their descendants have used so far.
pub(crate) fn cpu(roots: &[u32]) -> Result<f64> {
    let all = processes()?;
    let ticks: u64 = tree(&all, roots).iter().map(|pid| all[pid].ticks).sum();
    Ok(float(ticks) / float(rustix::param::clock_ticks_per_second()))
}

/// The memory of a process and its descendants in KiB; what is shared counts in proportion (PSS).
pub(crate) fn memory(root: u32) -> Result<f64> {
    let mut sum = 0;
    for pid in descendants(root)? {
        let path = format!("/proc/{pid}/smaps_rollup");
        // spipe is not dumpable, for its key's sake: only root may look.
        let text = fs::read_to_string(&path)
            .map_err(|error| format!("{path}: {error} (to measure memory takes root)"))?;
        let kib = text.lines().find_map(|line| line.strip_prefix("Pss:")?.trim().strip_suffix(" kB"));
        sum += kib.and_then(|kib| kib.parse::<u32>().ok()).ok_or_else(|| format!("{path} has no PSS"))?;
    }
    Ok(f64::from(sum))
}
