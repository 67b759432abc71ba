//! The screen in the terminal: characters with their colours and the cursor; what is typed goes to the keyboard.
//!
//! ```text
//!   Display::text, Vc::picture --> view: rows of cells --> what differs from what the terminal shows --> standard output
//!   standard input --> keys: bytes to keys --> Input, one stroke after another
//!                                         \--> Vc (a monitor, a serial port), by Alt-1 and up
//! ```
//!
//! One thread does all of it, as writing to a terminal may wait. It looks at the screen 20 times a second, and five
//! times while nothing changes. A terminal that is too small shows the part that has the cursor. Graphics are told by a
//! line, not drawn. By default nothing of the terminal is touched before there is something on the screen.
use super::input::Input;
use super::{Display, cp437};
use crate::chardev::ChardevError;
use crate::chardev::stdio::{self, ENTER_SCREEN, FullScreen, has_continued};
use crate::chardev::vc::{self, Vc};
use keys::{Decoder, Typed};
use parking_lot::{Condvar, Mutex};
use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use view::{Cell, View};

pub mod keys;
mod view;

/// Between two looks at the screen, while it changes and while it does not.
const BUSY: Duration = Duration::from_millis(50);
const IDLE: Duration = Duration::from_millis(200);
/// Between two strokes: a keyboard has room for a few, and guests want time for each.
const STROKE: Duration = Duration::from_millis(8);
/// How long an ESC waits for what belongs to it.
const ESCAPE: Duration = Duration::from_millis(40);
/// Strokes that wait; more are dropped.
const MOST_STROKES: usize = 1024;
/// How long the end waits for the thread.
const PATIENCE: Duration = Duration::from_millis(300);

/// A text console and what it is called.
pub type Console = (String, Arc<Vc>);

/// What is chosen.
pub struct CursesOptions {
    /// Nothing is done before the screen shows something.
    pub lazy: bool,
    /// The consoles of Alt-2 and up.
    pub consoles: Vec<Console>,
    /// The keyboard's layout.
    pub layout: &'static super::layout::Layout,
}

#[derive(Default)]
struct Ending {
    told: AtomicBool,
    gone: Mutex<bool>,
    changed: Condvar,
}

/// The terminal as a screen, until it is stopped or dropped.
pub struct Curses(Arc<Ending>);

impl Curses {
    /// Shows `display` in the terminal, and gives what is typed to `input`.
    ///
    /// # Errors
    /// Standard input and output are no terminal, or somebody has them.
    pub fn start(
        options: CursesOptions,
        display: Arc<dyn Display>,
        input: Arc<dyn Input>,
    ) -> Result<Self, ChardevError> {
        let ending = Arc::new(Ending::default());
        let screen = if options.lazy { None } else { Some(FullScreen::enter()?) };
        let shared = ending.clone();
        let work = move || {
            let mut painter = Painter::new(options, display, input, screen, shared.clone());
            painter.run();
            drop(painter);
            *shared.gone.lock() = true;
            shared.changed.notify_all();
        };
        let thread = std::thread::Builder::new().name("mynah-curses".into()).spawn(work);
        thread.map_err(|cause| ChardevError::Thread { name: "the terminal".into(), cause })?;
        Ok(Self(ending))
    }

    /// Gives the terminal back. A thread that waits for a terminal which is stopped is not waited for.
    pub fn stop(&self) {
        self.0.told.store(true, Ordering::SeqCst);
        let until = Instant::now() + PATIENCE;
        let mut gone = self.0.gone.lock();
        while !*gone && !self.0.changed.wait_until(&mut gone, until).timed_out() {}
        drop(gone);
        crate::chardev::stdio::restore_terminal();
    }
}

impl Drop for Curses {
    fn drop(&mut self) {
        self.stop();
    }
}

struct Painter {
    display: Arc<dyn Display>,
    input: Arc<dyn Input>,
    consoles: Vec<Console>,
    ending: Arc<Ending>,
    /// The terminal, once it is ours.
    screen: Option<FullScreen>,
    decoder: Decoder,
    strokes: VecDeque<keys::Stroke>,
    /// 0 for the screen, else a console.
    shown: usize,
    view: View,
    /// The terminal has gone.
    closed: bool,
}

impl Painter {
    fn new(
        options: CursesOptions,
        display: Arc<dyn Display>,
        input: Arc<dyn Input>,
        screen: Option<FullScreen>,
        ending: Arc<Ending>,
    ) -> Self {
        Self {
            display,
            input,
            consoles: options.consoles,
            ending,
            screen,
            decoder: Decoder::new(options.layout),
            strokes: VecDeque::new(),
            shown: 0,
            view: View::default(),
            closed: false,
        }
    }

    fn run(&mut self) {
        let mut began = self.screen.is_none();
        let mut pause = BUSY;
        let (mut looked, mut pressed) = (Instant::now() - IDLE, Instant::now());
        while !self.ending.told.load(Ordering::SeqCst) && !self.closed {
            if self.screen.is_none() {
                if self.display.text().is_none_or(|t| t.rows().all(|r| r.is_empty())) {
                    std::thread::sleep(BUSY);
                    continue;
                }
                match FullScreen::enter() {
                    Ok(screen) => self.screen = Some(screen),
                    Err(e) => return tracing::debug!("the terminal: {e}"),
                }
            }
            if has_continued() || !began || self.view.is_new() {
                began = true;
                self.view.forget();
                self.write(ENTER_SCREEN);
            }
            if looked.elapsed() >= pause {
                looked = Instant::now();
                pause = if self.show() { BUSY } else { IDLE };
            }
            let mut wait = pause.saturating_sub(looked.elapsed());
            if !self.strokes.is_empty() {
                wait = wait.min(STROKE);
            }
            if self.decoder.waits() {
                wait = wait.min(ESCAPE);
            }
            if self.read(wait) {
                pause = BUSY;
            }
            if pressed.elapsed() >= STROKE
                && let Some(stroke) = self.strokes.pop_front()
            {
                pressed = Instant::now();
                stroke.iter().for_each(|(key, down)| self.input.key(*key, *down));
            }
        }
    }

    /// Waits for what is typed; whether something was.
    fn read(&mut self, wait: Duration) -> bool {
        let mut bytes = [0; 256];
        let mut typed = Vec::new();
        match stdio::typed(wait, &mut bytes) {
            stdio::Typed::Ended => {
                self.closed = true;
                return false;
            }
            stdio::Typed::Nothing => typed.extend(self.decoder.nothing_came()),
            stdio::Typed::Bytes(n) => typed.extend(self.decoder.bytes(&bytes[..n])),
            stdio::Typed::Elsewhere => std::thread::sleep(IDLE),
        }
        let any = !typed.is_empty();
        for what in typed {
            self.typed(what);
        }
        any
    }

    fn typed(&mut self, what: Typed) {
        if let Some(n) = what.console {
            if n <= self.consoles.len() {
                self.shown = n;
                self.view.forget();
            }
            return;
        }
        match self.shown.checked_sub(1).and_then(|n| self.consoles.get(n)) {
            Some((_, console)) => console.type_in(&what.bytes),
            None if self.strokes.len() < MOST_STROKES => self.strokes.push_back(what.stroke),
            None => {}
        }
    }

    /// Brings the terminal up to date; whether anything was written.
    fn show(&mut self) -> bool {
        let (cells, columns, cursor) = match self.shown.checked_sub(1).and_then(|n| self.consoles.get(n)) {
            Some((_, console)) => {
                let picture = console.picture();
                let cells = picture.cells.iter().map(|c| Cell { c: *c, attribute: 7 }).collect();
                (cells, vc::COLUMNS, Some(picture.cursor))
            }
            None => match self.display.text() {
                Some(text) => {
                    let cell =
                        |c: &super::TextCell| Cell { c: cp437::to_char(c.code), attribute: c.attribute };
                    (text.cells.iter().map(cell).collect(), text.columns, text.cursor)
                }
                None => self.graphics(),
            },
        };
        let status = self.status();
        let output = self.view.update(&cells, columns, cursor, &status);
        self.write(&output);
        !output.is_empty()
    }

    /// What there is to say of a screen that shows pixels.
    fn graphics(&self) -> (Vec<Cell>, usize, Option<(usize, usize)>) {
        let (width, height) = self.display.size();
        let lines = [format!("{width} x {height} Graphic mode"), "(a viewer shows it: -vnc :0)".into()];
        let (columns, rows) = (vc::COLUMNS, vc::ROWS);
        let mut cells = vec![Cell { c: ' ', attribute: 7 }; columns * rows];
        for (n, line) in lines.iter().enumerate() {
            let at = (rows / 2 + n) * columns + columns.saturating_sub(line.len()) / 2;
            for (cell, c) in cells[at..].iter_mut().zip(line.chars()) {
                cell.c = c;
            }
        }
        (cells, columns, None)
    }

    fn status(&self) -> String {
        let mut text = "Mynah   Alt-1 screen".to_owned();
        for (n, (name, _)) in self.consoles.iter().enumerate().take(8) {
            text += &format!("   Alt-{} {name}", n + 2);
        }
        text + "   (-vnc :0 for a window)"
    }

    fn write(&mut self, bytes: &[u8]) {
        if bytes.is_empty() || self.ending.told.load(Ordering::SeqCst) {
            return;
        }
        let mut out = io::stdout().lock();
        if out.write_all(bytes).and_then(|()| out.flush()).is_err() {
            self.closed = true;
        }
    }
}
