//! What the process asks of the operating system when it starts, and what it finds there.

use std::num::NonZero;
use std::thread::available_parallelism;

use rustix::fs::Mode;
use rustix::process::{
    DumpableBehavior, Resource, Rlimit, getrlimit, set_dumpable_behavior, setrlimit, umask,
};

use super::sandbox;
use crate::proto::cipher::AesSupport;

/// Keeps keys out of core dumps and away from debuggers of the same user, and makes room for many connections.
///
/// All of it is a second line of defence: where the system refuses, the pipe works as well, so failures are passed over.
pub fn harden() {
    sandbox::allow_locking();
    // A socket or a pid file that everybody may write to is never meant, whatever the umask of a careless parent.
    let mask = umask(Mode::RWXU | Mode::RWXG | Mode::RWXO);
    umask(mask | Mode::WOTH);
    let _ = setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) });
    let _ = set_dumpable_behavior(DumpableBehavior::NotDumpable);
    // The customary soft limit of 1,024 descriptors is there for programs that use select(2).
    let descriptors = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: descriptors.maximum, ..descriptors });
}

/// How many files the process may have open.
pub fn descriptors() -> usize {
    let limit = getrlimit(Resource::Nofile).current;
    limit.map_or(usize::MAX, |limit| usize::try_from(limit).unwrap_or(usize::MAX))
}

/// Which ciphers run on instructions of their own here.
pub fn aes_support() -> AesSupport {
    #[cfg(target_arch = "x86_64")]
    let (aes, multiplication, registers) = (
        std::arch::is_x86_feature_detected!("aes"),
        std::arch::is_x86_feature_detected!("pclmulqdq"),
        // AEGIS's implementation needs AVX besides, which a few small processors with AES lack.
        std::arch::is_x86_feature_detected!("avx"),
    );
    #[cfg(target_arch = "aarch64")]
    let (aes, multiplication, registers) = (
        std::arch::is_aarch64_feature_detected!("aes"),
        std::arch::is_aarch64_feature_detected!("pmull"),
        true,
    );
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let (aes, multiplication, registers) = (false, false, false);
    match (aes && multiplication, registers) {
        (true, true) => AesSupport::GcmAndAegis,
        (true, false) => AesSupport::Gcm,
        (false, _) => AesSupport::None,
    }
}

/// How many processors there are for us, where that can be told. To be asked before the sandbox is closed: the files that tell
/// a quota (cgroups(7)) are out of reach later.
pub(super) fn processors() -> Option<NonZero<usize>> {
    available_parallelism().ok()
}
