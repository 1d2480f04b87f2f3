//! One line on standard error about work that takes long, for a person who waits for it.

use std::io::{self, IsTerminal, Stderr, Write};

use super::text::{cut, printable};

/// The line. It is there only if standard error is a terminal, and is erased when this is dropped.
pub struct Progress {
    terminal: Option<Stderr>,
}

impl Progress {
    /// Shows nothing yet.
    pub fn new() -> Self {
        Self { terminal: Some(io::stderr()).filter(Stderr::is_terminal) }
    }

    /// Shows `text` in place of what was shown before.
    pub fn show(&mut self, text: &str) {
        if let Some(terminal) = &mut self.terminal {
            // One column is left, since some terminals begin a new line when the last one is filled.
            let columns = crossterm::terminal::window_size().map_or(0, |size| size.columns);
            let columns = if columns == 0 { 80 } else { usize::from(columns) } - 1;
            // Who closes a terminal does not want to hear of it, and the work goes on.
            let _ = write!(terminal, "\r{}\x1b[K", cut(&printable(text), columns));
        }
    }

    /// Makes room for other output, which may go to the same terminal.
    pub fn erase(&mut self) {
        if let Some(terminal) = &mut self.terminal {
            let _ = write!(terminal, "\r\x1b[K");
        }
    }
}

impl Default for Progress {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.erase();
    }
}
