//! The terminal: taken at the start, and given back as it was, however the command ends.

use std::io::{self, Stdout, Write};
use std::panic;
use std::thread;
use std::time::Duration;

use crossterm::cursor::{Hide, Show};
use crossterm::event::{self, Event};
use crossterm::terminal::{
    DisableLineWrap, EnableLineWrap, EnterAlternateScreen, LeaveAlternateScreen, disable_raw_mode,
    enable_raw_mode, is_raw_mode_enabled, window_size,
};
use crossterm::{execute, queue};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tokio::sync::mpsc;

use super::view::Size;

/// How often to see whether the terminal is still there.
const LOOK: Duration = Duration::from_secs(1);

/// Where the size is not known.
const USUAL: Size = Size { columns: 80, lines: 24 };

/// The other screen of the terminal, without echo, line wrap and cursor, for as long as this lives.
pub(super) struct Screen(Stdout);

impl Screen {
    /// # Errors
    /// The operating system's.
    pub(super) fn enter() -> io::Result<Self> {
        enable_raw_mode()?;
        let mut screen = Self(io::stdout());
        // What a panic says belongs on the screen that stays.
        let report = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            restore();
            report(info);
        }));
        // A line that is wider than was thought must not push others away.
        execute!(screen.0, EnterAlternateScreen, Hide, DisableLineWrap)?;
        Ok(screen)
    }

    /// Shows these lines of the present size, in place of all that was there.
    pub(super) fn draw(&mut self, lines: impl FnOnce(Size) -> Vec<String>) -> io::Result<()> {
        let lines = lines(size()).join("\x1b[K\r\n");
        // From the upper left; each line is cleared behind its end, and what is below the last one.
        let mut output = self.0.lock();
        write!(output, "\x1b[H{lines}\x1b[K\x1b[J")?;
        output.flush()
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        restore();
    }
}

/// Gives the terminal back, once: a second time would take the cursor back to where it was in the beginning.
fn restore() {
    if is_raw_mode_enabled().is_ok_and(|raw| raw) {
        // A terminal that is gone needs nothing.
        let _ = queue!(io::stdout(), EnableLineWrap, Show, LeaveAlternateScreen);
        let _ = io::stdout().flush();
        let _ = disable_raw_mode();
    }
}

fn size() -> Size {
    match window_size() {
        Ok(size) if size.columns > 0 && size.rows > 0 => {
            Size { columns: size.columns.into(), lines: size.rows.into() }
        }
        _ => USUAL,
    }
}

/// Ends when the terminal has gone. A process need not get SIGHUP then, and crossterm 0.29 reads the end of such a terminal for ever,
/// with all of a processor.
pub(super) async fn gone() {
    loop {
        let terminal = io::stdout();
        let mut look = [PollFd::new(&terminal, PollFlags::empty())];
        let found = poll(&mut look, Some(&Timespec::default()));
        if found.is_ok() && look[0].revents().intersects(PollFlags::HUP | PollFlags::ERR) {
            return;
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Keys and new sizes, from a thread that ends with the process or at the first error.
pub(super) fn events() -> mpsc::UnboundedReceiver<io::Result<Event>> {
    let (sender, receiver) = mpsc::unbounded_channel();
    thread::spawn(move || {
        loop {
            let event = event::read();
            let last = event.is_err();
            if sender.send(event).is_err() || last {
                break;
            }
        }
    });
    receiver
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::env;
    use std::process::Command;

    /// Set in the process that is to panic.
    const PANICS: &str = "SPIPE_TEST_PANICS_ON_ITS_SCREEN";

    #[test]
    fn a_panic_is_read_on_the_screen_that_stays() {
        if env::var_os(PANICS).is_some() {
            let _screen = Screen::enter().unwrap();
            panic!("on purpose");
        }
        let program = env::current_exe().unwrap();
        let test = "cli::control::top::screen::tests::a_panic_is_read_on_the_screen_that_stays";
        // After it, the terminal has its echo again.
        let command = format!("{} --exact {test} --nocapture; stty -a", program.display());
        let mut script = Command::new("script");
        script.args(["--quiet", "--command", &command, "/dev/null"]).env(PANICS, "");
        let output = script.output().expect("this test needs script, of Debian's bsdutils");
        let output = String::from_utf8_lossy(&output.stdout);
        let (screen, after) =
            output.split_once("\x1b[?1049l").unwrap_or_else(|| panic!("no way back: {output}"));
        assert!(screen.contains("\x1b[?1049h") && !screen.contains("on purpose"), "{output}");
        assert!(after.contains("on purpose"), "{output}");
        assert!(after.contains(" echo ") && after.contains(" icanon "), "{output}");
        assert!(!after.contains("\x1b[?1049l"), "only once: {output}");
    }
}
