//! What may become a connection, and how many.

pub mod lobby;
