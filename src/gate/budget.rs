//! What a process can hold at a time: it has so many descriptors (RLIMIT_NOFILE), and whatever goes beyond them fails at the
//! worst place, when a client that was accepted is to be connected on. So they are planned, and those that there are none for
//! wait in the kernel's queue.

/// Descriptors that are neither sockets that listen nor connections: the log, the runtime, files that are read at a reload, and
/// look-ups of names.
const RESERVED: usize = 24;

/// The most places for strangers, which a process with descriptors enough has: they cost a socket and a few KiB each.
const STRANGERS: usize = 8192;

/// The most key holders of one pipe that wait for another to end. They keep the pipe busy when it ends; the next ones wait in
/// the kernel's queue.
const WAITING: usize = 32;

/// The most idle tunnels, which wait for another client: enough for a burst.
const IDLE: usize = 1024;

/// The most peers that were told that this end gives up, and have not closed the connection yet. An honest one does so within a round
/// trip: at one of 50 ms, these are 5,000 a second. Beyond, this end closes first, and if a packet is lost, a reset overtakes the word.
const PARTING: usize = 256;

/// How the descriptors of a process are shared out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Budget {
    /// Connections that carry or are about to, with two descriptors each.
    pub(crate) connections: usize,
    /// Connections that have not proved the key, with one descriptor each.
    pub(crate) strangers: usize,
    /// Peers of one responder that have proved it and wait, with one descriptor each.
    pub(crate) waiting: usize,
    /// Idle tunnels, with one descriptor each.
    pub(crate) idle: usize,
    /// Peers that were told that this end gives up, with one descriptor each.
    pub(crate) parting: usize,
}

impl Budget {
    /// Shares out `descriptors` in a process that listens at `sources` places. If it has responders, it has strangers, and at most as
    /// many as `strangers_max` says.
    pub(crate) fn of(descriptors: usize, sources: usize, strangers_max: Option<usize>) -> Self {
        let free = descriptors.saturating_sub(RESERVED + sources);
        let (strangers, waiting, parting) = match strangers_max {
            Some(max) => (
                (free / 2).clamp(3, STRANGERS).min(max),
                (free / 16).clamp(1, WAITING),
                (free / 32).clamp(1, PARTING),
            ),
            None => (0, 0, 0),
        };
        let idle = (free / 16).clamp(1, IDLE);
        let connections = (free.saturating_sub(strangers + waiting + idle + parting) / 2).max(1);
        Self { connections, strangers, waiting, idle, parting }
    }

    /// How many descriptors it takes to have `connections` at a time, about.
    pub(crate) fn descriptors_for(connections: usize, sources: usize, has_responders: bool) -> usize {
        let carried = connections.saturating_mul(2);
        // 21 of 32 parts of all that are free, or one sixteenth.
        let others = if has_responders {
            (carried / 11).saturating_mul(21).saturating_add(32).min(STRANGERS + WAITING + IDLE + PARTING)
        } else {
            (carried / 15).saturating_add(2).min(IDLE)
        };
        carried.saturating_add(others + RESERVED + sources + 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_is_planned_than_there_are_descriptors() {
        for descriptors in [64, 100, 256, 1024, 4096, 1 << 20] {
            for sources in [1, 9] {
                let Budget { connections, strangers, waiting, idle, parting } =
                    Budget::of(descriptors, sources, Some(usize::MAX));
                let others = strangers + waiting + idle + parting;
                assert!(RESERVED + sources + 2 * connections + others <= descriptors);
                assert!(connections > 2 && strangers > 7 && waiting > 0 && parting > 0);
            }
        }
    }

    #[test]
    fn a_process_with_next_to_none_still_has_one_connection() {
        let least = Budget { connections: 1, strangers: 3, waiting: 1, idle: 1, parting: 1 };
        assert_eq!(Budget::of(3, 1, Some(usize::MAX)), least);
    }

    #[test]
    fn descriptors_that_strangers_may_not_have_are_for_connections() {
        let [many, few] = [usize::MAX, 8].map(|max| Budget::of(20_000, 1, Some(max)));
        assert_eq!((many.strangers, few.strangers), (8192, 8));
        assert_eq!(few.connections, many.connections + (8192 - 8) / 2);
    }

    #[test]
    fn without_responders_nothing_is_kept_for_strangers() {
        assert_eq!(
            Budget::of(1024, 1, None),
            Budget { connections: 468, strangers: 0, waiting: 0, idle: 62, parting: 0 }
        );
    }

    #[test]
    fn the_descriptors_that_are_asked_for_are_enough() {
        for connections in [1, 10, 100, 1000, 100_000] {
            for has_responders in [false, true] {
                let descriptors = Budget::descriptors_for(connections, 3, has_responders);
                let strangers_max = has_responders.then_some(usize::MAX);
                assert!(Budget::of(descriptors, 3, strangers_max).connections >= connections);
            }
        }
    }
}
