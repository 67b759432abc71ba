//! `vc`: a text console on the display. What a device writes stands on a screen of 80 by 24; who shows it gives it
//! what is typed.
//!
//! Of a terminal's sequences those are followed that a monitor's line editor and plain programs use: movements of the
//! cursor, erasing, scrolling by line feeds. Colours and modes are passed over.
//!
//! Source: ECMA-48.
use super::{Chardev, Receiver};
use crate::event_loop::EventLoop;
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

/// Columns of its screen.
pub const COLUMNS: usize = 80;
/// Rows of its screen.
pub const ROWS: usize = 24;
/// Typed bytes that wait for the device; more are dropped.
const MOST_TYPED: usize = 4096;
/// Numbers of a sequence that are kept.
const MOST_NUMBERS: usize = 4;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Parse {
    Text,
    Escape,
    /// A control sequence: digits and semicolons until its final byte.
    Sequence,
    /// A string (a title): until BEL or ESC.
    Title,
}

/// What stands on the screen.
struct Terminal {
    cells: Vec<char>,
    row: usize,
    /// At 80 the next character goes to the next row.
    column: usize,
    parse: Parse,
    numbers: Vec<usize>,
    /// Bytes of a character in UTF-8 that is not whole.
    partial: Vec<u8>,
    /// Counts what has been written.
    changes: u64,
}

impl Terminal {
    fn new() -> Self {
        Self {
            cells: vec![' '; COLUMNS * ROWS],
            row: 0,
            column: 0,
            parse: Parse::Text,
            numbers: Vec::new(),
            partial: Vec::new(),
            changes: 0,
        }
    }

    fn line_feed(&mut self) {
        if self.row + 1 < ROWS {
            self.row += 1;
        } else {
            self.cells.drain(..COLUMNS);
            self.cells.resize(COLUMNS * ROWS, ' ');
        }
    }

    fn put(&mut self, c: char) {
        if self.column >= COLUMNS {
            self.column = 0;
            self.line_feed();
        }
        self.cells[self.row * COLUMNS + self.column] = c;
        self.column += 1;
    }

    fn byte(&mut self, b: u8) {
        match self.parse {
            Parse::Text => self.text(b),
            Parse::Escape => {
                self.numbers.clear();
                self.parse = match b {
                    b'[' => Parse::Sequence,
                    b']' => Parse::Title,
                    _ => Parse::Text,
                };
            }
            Parse::Sequence => match b {
                b'0'..=b'9' => {
                    if self.numbers.is_empty() {
                        self.numbers.push(0);
                    }
                    if let Some(n) = self.numbers.last_mut() {
                        *n = (*n * 10 + usize::from(b - b'0')).min(999);
                    }
                }
                b';' if self.numbers.len() < MOST_NUMBERS => {
                    if self.numbers.is_empty() {
                        self.numbers.push(0);
                    }
                    self.numbers.push(0);
                }
                0x40..=0x7e => {
                    self.parse = Parse::Text;
                    self.sequence(b);
                }
                0x1b => self.parse = Parse::Escape,
                _ => {}
            },
            Parse::Title => match b {
                0x07 => self.parse = Parse::Text,
                0x1b => self.parse = Parse::Escape,
                _ => {}
            },
        }
    }

    fn text(&mut self, b: u8) {
        if b < 0x80 && !self.partial.is_empty() {
            self.partial.clear();
            self.put('?');
        }
        match b {
            0x1b => self.parse = Parse::Escape,
            b'\r' => self.column = 0,
            b'\n' => self.line_feed(),
            8 => self.column = self.column.min(COLUMNS).saturating_sub(1),
            b'\t' => self.column = (self.column / 8 * 8 + 8).min(COLUMNS - 1),
            0x20..=0x7e => self.put(b.into()),
            0x80.. => {
                self.partial.push(b);
                match std::str::from_utf8(&self.partial) {
                    Ok(text) => {
                        let c = text.chars().next().unwrap_or(' ');
                        self.partial.clear();
                        self.put(c);
                    }
                    Err(e) if e.error_len().is_some() || self.partial.len() >= 4 => {
                        self.partial.clear();
                        self.put('?');
                    }
                    Err(_) => {}
                }
            }
            _ => {}
        }
    }

    fn sequence(&mut self, end: u8) {
        let number = |n: usize, usual: usize| match self.numbers.get(n) {
            None | Some(0) => usual,
            Some(n) => *n,
        };
        let (first, second) = (number(0, 1), number(1, 1));
        let kind = self.numbers.first().copied().unwrap_or(0);
        let column = self.column.min(COLUMNS - 1);
        let here = self.row * COLUMNS + column;
        match end {
            b'A' => self.row = self.row.saturating_sub(first),
            b'B' => self.row = (self.row + first).min(ROWS - 1),
            b'C' => self.column = (column + first).min(COLUMNS - 1),
            b'D' => self.column = column.saturating_sub(first),
            b'G' => self.column = first.min(COLUMNS) - 1,
            b'H' | b'f' => (self.row, self.column) = (first.min(ROWS) - 1, second.min(COLUMNS) - 1),
            b'J' | b'K' => {
                let (start, all) = match end {
                    b'J' => (0, COLUMNS * ROWS),
                    _ => (self.row * COLUMNS, (self.row + 1) * COLUMNS),
                };
                let range = match kind {
                    0 => here..all,
                    1 => start..here + 1,
                    _ => start..all,
                };
                self.cells[range].fill(' ');
            }
            b'P' => {
                let end = (self.row + 1) * COLUMNS;
                let gone = first.min(end - here);
                self.cells.copy_within(here + gone..end, here);
                self.cells[end - gone..end].fill(' ');
            }
            b'@' => {
                let end = (self.row + 1) * COLUMNS;
                let new = first.min(end - here);
                self.cells.copy_within(here..end - new, here + new);
                self.cells[here..here + new].fill(' ');
            }
            _ => {}
        }
    }
}

/// A picture of the console.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Picture {
    /// Characters, row by row.
    pub cells: Vec<char>,
    /// Column and row.
    pub cursor: (usize, usize),
    /// Differs if anything has been written since another one.
    pub changes: u64,
}

/// A text console.
pub struct Vc {
    terminal: Mutex<Terminal>,
    receiver: Mutex<Option<Arc<dyn Receiver>>>,
    typed: Mutex<VecDeque<u8>>,
    events: Arc<EventLoop>,
    me: Weak<Vc>,
}

impl Vc {
    /// An empty one; `events` gives the device what is typed.
    pub fn new(events: Arc<EventLoop>) -> Arc<Self> {
        Arc::new_cyclic(|me| Self {
            terminal: Mutex::new(Terminal::new()),
            receiver: Mutex::default(),
            typed: Mutex::default(),
            events,
            me: me.clone(),
        })
    }

    /// What stands on it.
    pub fn picture(&self) -> Picture {
        let t = self.terminal.lock();
        Picture { cells: t.cells.clone(), cursor: (t.column.min(COLUMNS - 1), t.row), changes: t.changes }
    }

    /// Somebody types.
    pub fn type_in(&self, bytes: &[u8]) {
        {
            let mut typed = self.typed.lock();
            let room = MOST_TYPED - typed.len();
            typed.extend(&bytes[..bytes.len().min(room)]);
        }
        self.deliver_soon();
    }

    fn deliver_soon(&self) {
        let me = self.me.clone();
        self.events.post(move || {
            if let Some(vc) = me.upgrade() {
                vc.deliver();
            }
        });
    }

    /// On the loop's thread.
    fn deliver(&self) {
        let Some(receiver) = self.receiver.lock().clone() else { return };
        loop {
            let room = receiver.can_receive();
            let bytes: Vec<u8> = {
                let mut typed = self.typed.lock();
                let n = room.min(typed.len());
                typed.drain(..n).collect()
            };
            if bytes.is_empty() {
                return;
            }
            receiver.receive(&bytes);
        }
    }
}

impl Chardev for Vc {
    fn write(&self, bytes: &[u8]) -> usize {
        let mut t = self.terminal.lock();
        bytes.iter().for_each(|b| t.byte(*b));
        t.changes += 1;
        bytes.len()
    }
    fn write_all(&self, bytes: &[u8], _: Duration) {
        self.write(bytes);
    }
    fn room(&self) -> usize {
        usize::MAX
    }
    fn set_receiver(&self, receiver: Arc<dyn Receiver>) {
        *self.receiver.lock() = Some(receiver);
        self.deliver_soon();
    }
    fn flush(&self, _: Instant) {}
    fn name(&self) -> String {
        "vc".to_owned()
    }
    fn is_terminal(&self) -> bool {
        true
    }
    fn accept_input(&self) {
        self.deliver_soon();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chardev::testing::Sink;

    fn shown(text: &[u8]) -> (Vec<String>, (usize, usize)) {
        let vc = Vc::new(Arc::new(EventLoop::new().unwrap()));
        // In pieces, as it comes.
        text.chunks(3).for_each(|c| _ = vc.write(c));
        let p = vc.picture();
        let rows = p.cells.chunks(COLUMNS).map(|r| r.iter().collect::<String>().trim_end().to_owned());
        (rows.take_while(|r| !r.is_empty()).collect(), p.cursor)
    }

    #[test]
    fn text_and_a_line_editors_sequences_are_shown() {
        assert_eq!(shown(b"ab\r\ncd\tx"), (vec!["ab".into(), "cd      x".into()], (9, 1)));
        assert_eq!(shown(b"abc\x1b[D\x1b[Dx\x1b[K"), (vec!["ax".into()], (2, 0)));
        assert_eq!(shown(b"abcd\x1b[3D\x1b[P\x1b[31mz\x1b[2@"), (vec!["az  d".into()], (2, 0)));
        assert_eq!(shown("\x1b[2J\x1b[2;3Hä\x1b]0;title\x07!\x1b[1;1H>".as_bytes()).0, [">", "  ä!"]);
        assert_eq!(shown(b"\xff\xc3(").0, ["??("]);
        let mut many: Vec<u8> = (0..100).flat_map(|n| format!("{n}\r\n").into_bytes()).collect();
        many.extend([b'x'; 81]);
        let (rows, cursor) = shown(&many);
        assert_eq!((rows[0].as_str(), rows.len(), cursor), ("78", ROWS, (1, ROWS - 1)));
        // Numbers beyond all bounds.
        shown(b"\x1b[99999999999999999999;7;7;7;7;7;7H\x1b[999P\x1b[999@\x1b[999A\x1b[1J");
    }

    #[test]
    fn what_is_typed_waits_for_the_device() {
        let vc = Vc::new(Arc::new(EventLoop::new().unwrap()));
        vc.type_in(b"ab");
        let sink = Sink::new(3);
        vc.set_receiver(sink.clone());
        sink.wait(2);
        vc.type_in(&[b'x'; 2 * MOST_TYPED]);
        assert_eq!(sink.wait(3), b"abx");
        *sink.limit.lock() = usize::MAX;
        vc.accept_input();
        assert_eq!(sink.wait(2 + MOST_TYPED).len(), 2 + MOST_TYPED);
    }
}
