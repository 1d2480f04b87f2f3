//! A search through the memory of another process for secrets that the test knows.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;

use rustix::process::{Pid, geteuid};

/// Bytes of a piece. A secret is found when any aligned piece of it is: a register that was saved leaves no more than 8 bytes,
/// and 8 bytes are random enough to occur nowhere by chance.
const PIECE: usize = 8;

/// All readable memory of a process at one moment.
pub(crate) struct Memory(Vec<Mapping>);

struct Mapping {
    /// As `/proc/PID/maps` has it.
    name: String,
    bytes: Vec<u8>,
    is_writable: bool,
}

impl Memory {
    /// Reads it through `/proc`, while the process goes on.
    pub(crate) fn of(process: Pid) -> Self {
        assert!(
            geteuid().is_root(),
            "only root can read the memory of a process that is not dumpable (PR_SET_DUMPABLE)"
        );
        let maps = fs::read_to_string(format!("/proc/{process}/maps")).expect("the process runs");
        let memory = File::open(format!("/proc/{process}/mem")).expect("root may open it");
        Self(maps.lines().filter_map(|line| Mapping::read(line, &memory)).collect())
    }

    /// Each place of 32 bytes, aligned as numbers are, that could be a secret: random bytes hardly repeat a value.
    pub(crate) fn candidates(&self) -> impl Iterator<Item = &[u8; 32]> {
        let writable = self.0.iter().filter(|mapping| mapping.is_writable);
        let windows = writable.flat_map(|mapping| {
            (0..mapping.bytes.len()).step_by(PIECE).filter_map(|at| mapping.bytes[at..].first_chunk::<32>())
        });
        windows.filter(|window| {
            let mut seen = [false; 256];
            window.iter().for_each(|byte| seen[usize::from(*byte)] = true);
            seen.iter().filter(|seen| **seen).count() >= 22
        })
    }

    /// What lies around each occurrence of `bytes`: `before` bytes, the occurrence, `after` bytes.
    pub(crate) fn around(&self, bytes: &[u8], before: usize, after: usize) -> Vec<Vec<u8>> {
        let mut found = Vec::new();
        for mapping in &self.0 {
            let places = mapping.bytes.windows(bytes.len()).enumerate();
            for (at, _) in places.filter(|(_, window)| *window == bytes) {
                let start = at.checked_sub(before);
                found.extend(
                    start
                        .and_then(|start| mapping.bytes.get(start..at + bytes.len() + after))
                        .map(<[_]>::to_vec),
                );
            }
        }
        found
    }
}

impl Mapping {
    /// The mapping that this line is about, unless it cannot be read.
    fn read(line: &str, memory: &File) -> Option<Self> {
        let mut fields = line.split_whitespace();
        let (range, rights) = (fields.next()?, fields.next()?);
        let name = fields.nth(3).unwrap_or("anonymous").to_owned();
        // What the kernel shows of itself: it belongs to no process.
        if !rights.starts_with('r') || name.starts_with("[v") {
            return None;
        }
        let (start, end) = range.split_once('-')?;
        let address = |text| u64::from_str_radix(text, 16).expect("/proc/PID/maps has addresses");
        let (start, end) = (address(start), address(end));
        let mut bytes = vec![0; usize::try_from(end - start).expect("it fits the process")];
        // A mapping may have gone since its line was read.
        memory.read_exact_at(&mut bytes, start).ok()?;
        Some(Self { name, bytes, is_writable: rights.contains('w') })
    }
}

/// Secrets to look for, by what they are.
#[derive(Clone, Default)]
pub(crate) struct Secrets(Vec<(String, Vec<u8>)>);

impl Secrets {
    pub(crate) fn add(&mut self, name: impl Into<String>, secret: &[u8]) {
        self.0.push((name.into(), secret.to_vec()));
    }

    pub(crate) fn extend(&mut self, other: Self) {
        self.0.extend(other.0);
    }

    /// Those whose name starts with one of `names`.
    pub(crate) fn only(&self, names: &[&str]) -> Self {
        let is_wanted = |name: &String| names.iter().any(|wanted| name.starts_with(wanted));
        Self(self.0.iter().filter(|(name, _)| is_wanted(name)).cloned().collect())
    }

    /// All others.
    pub(crate) fn without(&self, names: &[&str]) -> Self {
        let is_wanted = |name: &String| !names.iter().any(|unwanted| name.starts_with(unwanted));
        Self(self.0.iter().filter(|(name, _)| is_wanted(name)).cloned().collect())
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// Looks at every offset for every piece of every secret, also in the forms in which hash functions and ciphers keep it.
    pub(crate) fn find_in(&self, memory: &Memory) -> Found {
        let mut pieces: HashMap<u64, usize> = HashMap::new();
        // Most of the memory is ruled out by one look at this.
        let mut is_possible = vec![false; 1 << 24];
        let place = |piece: u64| usize::try_from(piece & 0xff_ffff).expect("24 bits");
        for (number, (_, secret)) in self.0.iter().enumerate() {
            for form in forms(secret) {
                for piece in form.as_chunks::<PIECE>().0 {
                    let piece = u64::from_le_bytes(*piece);
                    pieces.insert(piece, number);
                    is_possible[place(piece)] = true;
                }
            }
        }
        let mut found = BTreeMap::new();
        for Mapping { name, bytes, .. } in &memory.0 {
            for window in bytes.windows(PIECE) {
                let piece = u64::from_le_bytes(window.try_into().expect("a window has its size"));
                if is_possible[place(piece)]
                    && let Some(number) = pieces.get(&piece)
                {
                    found.entry(*number).or_insert_with(|| name.clone());
                }
            }
        }
        Found(found.into_iter().map(|(number, mapping)| (self.0[number].0.clone(), mapping)).collect())
    }
}

/// A secret as it is, as HMAC pads it (RFC 2104), and each also with the bytes of its 32-bit words reversed, as SHA-256 reads it.
fn forms(secret: &[u8]) -> impl Iterator<Item = Vec<u8>> {
    let padded = [0, 0x36, 0x5c].map(|pad| secret.iter().map(|byte| byte ^ pad).collect::<Vec<u8>>());
    padded.into_iter().flat_map(|form| {
        let reversed = form.chunks(4).flat_map(|word| word.iter().rev().copied()).collect();
        [form, reversed]
    })
}

/// Secrets that were found, each with the mapping that it was found in first.
pub(crate) struct Found(Vec<(String, String)>);

impl Found {
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// How many of each name are in which mapping.
impl fmt::Display for Found {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut counts: BTreeMap<_, usize> = BTreeMap::new();
        for found in &self.0 {
            *counts.entry(found).or_default() += 1;
        }
        for ((name, mapping), count) in counts {
            writeln!(formatter, "{count} x {name} in {mapping}")?;
        }
        Ok(())
    }
}
