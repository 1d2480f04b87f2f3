//! What a process says of itself to those who ask: people, programs, and the administrator's own command.

pub mod human;
pub mod page;
pub mod report;
