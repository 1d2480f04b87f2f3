//! What the process has of the system, from proc(5).
//!
//! The files are opened before the sandbox is closed, and read again and again: each read from their beginning is an answer of that
//! moment.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::{Mutex, PoisonError};

use procfs_core::FromRead;
use procfs_core::process::Stat;
use rustix::fs::Dir;
use rustix::param::{clock_ticks_per_second, page_size};

use super::process;

/// The files to read it from. What cannot be opened is left out of the answers.
pub struct Measures {
    /// `/proc/self/stat`.
    stat: Option<File>,
    /// `/proc/self/fd`.
    descriptors: Option<Mutex<Dir>>,
    /// Bytes. Asked for now, since that opens files as well.
    page: u64,
    /// The unit of processor times: so many a second.
    ticks: u64,
}

/// Numbers of a moment; None where the system does not tell.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Numbers {
    /// Open files.
    pub descriptors: Option<u64>,
    /// The most there may be; None also where there is no limit.
    pub descriptors_limit: Option<u64>,
    /// Bytes of memory in use.
    pub resident: Option<u64>,
    /// Bytes of address space in use.
    pub addressed: Option<u64>,
    /// Seconds of processor time, of all threads.
    pub cpu: Option<f64>,
    /// Threads.
    pub threads: Option<u64>,
}

impl Measures {
    /// Opens what there is. To be called in the process that is measured, after the last fork(2).
    pub fn open() -> Self {
        // A process that may not be dumped may look at itself all the same (proc_pid_fd(5)).
        let directory = File::open("/proc/self/fd").ok().and_then(|directory| Dir::new(directory).ok());
        Self {
            stat: File::open("/proc/self/stat").ok(),
            descriptors: directory.map(Mutex::new),
            page: page_size() as u64,
            ticks: clock_ticks_per_second(),
        }
    }

    /// The numbers as they are now.
    pub fn take(&self) -> Numbers {
        let limit = u64::try_from(process::descriptors()).ok().filter(|limit| *limit < u64::MAX >> 1);
        let numbers =
            Numbers { descriptors: self.descriptors(), descriptors_limit: limit, ..Numbers::default() };
        let Some(stat) = self.stat() else { return numbers };
        #[expect(clippy::cast_precision_loss, reason = "ticks of a hundredth of a second")]
        let cpu = (stat.utime + stat.stime) as f64 / self.ticks as f64;
        Numbers {
            resident: Some(stat.rss * self.page),
            addressed: Some(stat.vsize),
            cpu: Some(cpu),
            threads: u64::try_from(stat.num_threads).ok(),
            ..numbers
        }
    }

    fn stat(&self) -> Option<Stat> {
        // A line of 52 numbers.
        let mut line = [0; 2048];
        let length = self.stat.as_ref()?.read_at(&mut line, 0).ok()?;
        Stat::from_read(&line[..length]).ok()
    }

    fn descriptors(&self) -> Option<u64> {
        let mut directory = self.descriptors.as_ref()?.lock().unwrap_or_else(PoisonError::into_inner);
        directory.rewind();
        let mut count: u64 = 0;
        while let Some(entry) = directory.read() {
            let is_descriptor = entry.ok()?.file_name().to_bytes().first().is_some_and(u8::is_ascii_digit);
            count += u64::from(is_descriptor);
        }
        Some(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_numbers_of_this_process_are_told_again_and_again() {
        let measures = Measures::open();
        let before = measures.take();
        let _files = [(); 3].map(|()| File::open("/dev/null").unwrap());
        let after = measures.take();
        // Other tests open and close files at the same time.
        assert!(before.descriptors.unwrap() > 3 && after.descriptors.unwrap() > 6, "{before:?} {after:?}");
        assert!(after.resident.unwrap() > 1 << 20 && after.addressed.unwrap() > after.resident.unwrap());
        assert!(after.cpu.unwrap() >= before.cpu.unwrap() && after.threads.unwrap() >= 1);
    }
}
