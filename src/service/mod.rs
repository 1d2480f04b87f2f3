//! What a service owes the system that it runs on: one concern a file.

pub mod activation;
pub mod daemon;
pub mod facts;
pub mod hand_over;
pub mod log;
pub mod measures;
pub mod notify;
pub mod parent;
pub mod pid_file;
pub mod privileges;
pub mod process;
pub mod runtime;
pub mod sandbox;
pub mod signals;
pub mod startup;
pub mod state;
pub mod supervisor;
