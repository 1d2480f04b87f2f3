//! What people install: Debian's and RPM's packages, and the crate. (`tests/hosts` installs them.) Each test is named after the one
//! behaviour that it tests.

mod contents;
mod krate;
mod made;
mod version;
