//! What sandboxed processes can and cannot do. Each test runs in a separate process, since a sandbox cannot be left.
//!
//! On a kernel without landlock or seccomp the tests fail, since they could not show anything.

mod calls;
mod capabilities;
mod files;
mod isolated;
mod log_lines;
mod memory;
mod network;
mod pipes;
mod reload;
mod resolver;
