//! `spipe top`: looks at a process again and again.

mod screen;
mod view;
mod watch;

use std::convert::Infallible;
use std::env;
use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;
use std::time::Duration;

use crossterm::event::{Event, KeyCode, KeyModifiers};
use tokio::sync::{mpsc, watch as latest};
use tokio::time::Instant;

use self::screen::{Screen, events, gone};
use self::view::{Paint, Scroll, View};
use self::watch::{Seen, Sort, Watch};
use super::client::{Client, ControlError};
use crate::cli::Error;
use crate::service::signals::Signals;

/// Looks `count` times: by default until somebody quits on a terminal, and once elsewhere.
pub(super) async fn run(client: Client, interval: Duration, count: Option<u32>) -> Result<ExitCode, Error> {
    let watch = Watch::new(client);
    let understands_escapes = env::var_os("TERM").is_none_or(|term| term != "dumb");
    if io::stdout().is_terminal() && understands_escapes {
        show(watch, interval, count).await?;
    } else {
        print(watch, interval, count.unwrap_or(1)).await?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Plain text, for files and other programs.
async fn print(mut watch: Watch, interval: Duration, count: u32) -> Result<(), Error> {
    let mut due = tokio::time::interval(interval);
    for frame in 0..count {
        due.tick().await;
        let seen = watch.look(Sort::default()).await?;
        let mut text = if frame == 0 { String::new() } else { "\n".to_owned() };
        for line in View::of(&seen, None).plain() {
            text += &line;
            text.push('\n');
        }
        let mut output = io::stdout().lock();
        match output.write_all(text.as_bytes()).and_then(|()| output.flush()) {
            Ok(()) => {}
            // Who reads has seen enough.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => break,
            Err(source) => return Err(Error::System { doing: "write to standard output", source }),
        }
    }
    Ok(())
}

/// What came of one look.
type Look = Result<Seen, ControlError>;

/// On a terminal, until a key or a signal quits.
async fn show(mut watch: Watch, interval: Duration, count: Option<u32>) -> Result<(), Error> {
    // An error at the first look is a mistake of use, and better read on the screen as it was.
    let mut seen = watch.look(Sort::default()).await?;
    let mut signals = Signals::new().map_err(|source| Error::System { doing: "watch signals", source })?;
    let mut screen = Screen::enter().map_err(|source| Error::System { doing: "use the terminal", source })?;
    let mut events = events();
    let (sort, wanted) = latest::channel(Sort::default());
    let (answer, mut looks) = mpsc::channel(1);
    // Beside everything else, since a process may take long to answer, and keys should not.
    let mut looking = std::pin::pin!(look_on(watch, interval, wanted, answer));
    let mut gone = std::pin::pin!(gone());

    let paint = Paint::chosen(env::var_os("NO_COLOR").as_deref());
    // Each look is shown for an interval, the last one too.
    let (mut left, mut scroll) = (count, Scroll::default());
    let mut view = View::of(&seen, None);
    while left != Some(0) {
        screen
            .draw(|size| view.render(size, &mut scroll, paint))
            .map_err(|source| Error::System { doing: "write to the terminal", source })?;
        tokio::select! {
            biased;
            _ = signals.next() => break,
            () = &mut gone => break,
            event = events.recv() => match event.map(|event| event.map(Action::of)) {
                Some(Ok(Action::Quit)) | None => break,
                Some(Ok(Action::Sort)) => {
                    sort.send_modify(|sort| *sort = sort.next());
                    scroll = Scroll::default();
                }
                Some(Ok(Action::Scroll(to))) => scroll.go(to),
                Some(Ok(Action::Draw)) => {}
                Some(Err(source)) => return Err(Error::System { doing: "read keys from the terminal", source }),
            },
            Some(look) = looks.recv() => {
                left = left.map(|left| left - 1);
                let failed = look.map(|now| seen = now).err();
                view = View::of(&seen, failed.as_ref());
            }
            never = &mut looking => match never {},
        }
    }
    Ok(())
}

/// Looks every `interval`, and when the order changes.
async fn look_on(
    mut watch: Watch,
    interval: Duration,
    mut wanted: latest::Receiver<Sort>,
    looks: mpsc::Sender<Look>,
) -> Infallible {
    let mut due = Instant::now() + interval;
    loop {
        tokio::select! {
            () = tokio::time::sleep_until(due) => {}
            Ok(()) = wanted.changed() => {}
        }
        due = Instant::now() + interval;
        let sort = *wanted.borrow_and_update();
        // Its receiver is in the same function that polls this.
        let _ = looks.send(watch.look(sort).await).await;
    }
}

/// What an event of the terminal asks for.
enum Action {
    Quit,
    Sort,
    Scroll(view::To),
    /// A new size, and keys without a meaning.
    Draw,
}

impl Action {
    fn of(event: Event) -> Self {
        let Event::Key(key) = event else { return Self::Draw };
        match key.code {
            KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => Self::Quit,
            KeyCode::Char('q') => Self::Quit,
            KeyCode::Char('s') => Self::Sort,
            KeyCode::Up => Self::Scroll(view::To::Line(-1)),
            KeyCode::Down => Self::Scroll(view::To::Line(1)),
            KeyCode::PageUp => Self::Scroll(view::To::Page(-1)),
            KeyCode::PageDown => Self::Scroll(view::To::Page(1)),
            KeyCode::Home => Self::Scroll(view::To::Start),
            KeyCode::End => Self::Scroll(view::To::End),
            _ => Self::Draw,
        }
    }
}
