//! Processes that are locked in, and what they try then. Each test runs in a process of its own, which is not let out
//! again.
//!
//! A kernel without landlock or seccomp fails them: what was not tried has not been shown.

mod calls;
mod files;
mod isolated;
mod log_lines;
mod memory;
mod network;
mod pipes;
mod reload;
mod resolver;
