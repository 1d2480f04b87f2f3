//! What goes wrong, in words: nothing here tells one kind of error from another. Threads give it on.

use std::error::Error;

pub(crate) type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;
