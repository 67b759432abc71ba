//! The human monitor's side of a line: what edits, answers and waits its turn.
//!
//! A client that asks and does not read its answers is not read itself: lines are carried out while the answers
//! have room, and [`OWED`] bytes further, so that a command gets through to a line that is full of the guest's
//! output. Then what comes in waits here ([`QUEUE`] bytes), and after that at the client's end.
use super::{Chardev, Event, Receiver};
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::sync::{Arc, Weak};
use std::time::Duration;

/// Typed bytes that may wait.
pub(super) const QUEUE: usize = 4096;
/// The longest line that is taken; more of it is dropped.
const LINE: usize = 4096;
/// Bytes of answers that may wait beyond a backend's room.
const OWED: usize = 64 << 10;

/// What answers lines typed at the monitor. Called on the terminal's thread.
pub trait Monitor: Send + Sync {
    /// Carries a command out and returns what is to be shown.
    fn command(&self, line: &str) -> String;
    /// What is shown before each command.
    fn prompt(&self) -> &str {
        "(mynah) "
    }
    /// What is shown to somebody who comes, before the first prompt.
    fn greeting(&self) -> &str {
        ""
    }
}

/// Text with line ends as a terminal in raw mode needs them.
pub(super) fn cooked(text: &str) -> Vec<u8> {
    text.replace('\n', "\r\n").into_bytes()
}

/// What stands of an escape sequence (a cursor key) that the line editor swallows.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Swallow {
    #[default]
    No,
    Escape,
    Sequence,
}

/// What a key does.
enum Key {
    Nothing,
    Echo(Vec<u8>),
    Line(String),
}

/// A line editor: backspace, Ctrl-U, Ctrl-D and Ctrl-C drop the line, Enter ends it.
#[derive(Default)]
struct Editor {
    edited: Vec<u8>,
    swallow: Swallow,
    /// The last byte was a carriage return: a newline after it is part of it.
    returned: bool,
}

impl Editor {
    fn key(&mut self, byte: u8) -> Key {
        match (self.swallow, byte) {
            (Swallow::Escape, b'[' | b'O') => {
                self.swallow = Swallow::Sequence;
                return Key::Nothing;
            }
            (Swallow::Sequence, 0x20..=0x3f) => return Key::Nothing,
            (Swallow::Escape | Swallow::Sequence, _) => {
                self.swallow = Swallow::No;
                return Key::Nothing;
            }
            (Swallow::No, 0x1b) => {
                self.swallow = Swallow::Escape;
                return Key::Nothing;
            }
            (Swallow::No, _) => {}
        }
        if std::mem::replace(&mut self.returned, byte == b'\r') && byte == b'\n' {
            return Key::Nothing;
        }
        match byte {
            b'\r' | b'\n' => {
                Key::Line(String::from_utf8_lossy(&std::mem::take(&mut self.edited)).into_owned())
            }
            0x08 | 0x7f => {
                // A whole character of UTF-8 goes at once.
                while self.edited.last().is_some_and(|b| b & 0xc0 == 0x80) {
                    self.edited.pop();
                }
                match self.edited.pop() {
                    Some(_) => Key::Echo(b"\x08 \x08".to_vec()),
                    None => Key::Nothing,
                }
            }
            0x03 | 0x04 | 0x15 => {
                let shown = self.edited.iter().filter(|b| **b & 0xc0 != 0x80).count();
                self.edited.clear();
                Key::Echo(b"\x08 \x08".repeat(shown))
            }
            0x20.. if self.edited.len() < LINE => {
                self.edited.push(byte);
                Key::Echo(vec![byte])
            }
            _ => Key::Nothing,
        }
    }
}

/// What a monitor keeps of the one who types at it. All but `room` are for the line's thread.
#[derive(Default)]
pub(super) struct Session {
    state: Mutex<Typed>,
}

#[derive(Default)]
struct Typed {
    /// What has not been looked at.
    waiting: VecDeque<u8>,
    editor: Editor,
    /// Bytes of answers sent since the line last had room.
    owed: usize,
}

impl Session {
    /// How many bytes may be typed now.
    pub(super) fn room(&self) -> usize {
        QUEUE.saturating_sub(self.state.lock().waiting.len())
    }

    /// Takes what was typed; more than there is room for is dropped.
    pub(super) fn push(&self, bytes: &[u8]) {
        let mut state = self.state.lock();
        let room = QUEUE.saturating_sub(state.waiting.len());
        state.waiting.extend(bytes.iter().take(room));
    }

    /// Forgets what was typed, as somebody else does so from now on.
    pub(super) fn clear(&self) {
        *self.state.lock() = Typed::default();
    }

    /// Forgets the line that is being edited.
    pub(super) fn clear_line(&self) {
        self.state.lock().editor = Editor::default();
    }

    /// Shows text to whoever types.
    pub(super) fn print(&self, line: &dyn Chardev, text: &str) {
        self.send(line, &cooked(text));
    }

    fn send(&self, line: &dyn Chardev, bytes: &[u8]) {
        let full = line.room() < bytes.len();
        line.write_all(bytes, Duration::ZERO);
        let owed = &mut self.state.lock().owed;
        *owed = if full { *owed + bytes.len() } else { 0 };
    }

    /// Carries out what was typed, as far as the answers may go. `more` says after each command whether the
    /// prompt is to be shown.
    pub(super) fn work(&self, line: &dyn Chardev, monitor: &dyn Monitor, more: impl Fn() -> bool) {
        loop {
            // Asked each time, as it is this question that `writable` answers.
            let room = line.room();
            let key = {
                let mut state = self.state.lock();
                if room > 0 {
                    state.owed = 0;
                } else if state.owed >= OWED {
                    return;
                }
                let Some(byte) = state.waiting.pop_front() else { return };
                state.editor.key(byte)
            };
            match key {
                Key::Nothing => {}
                Key::Echo(bytes) => self.send(line, &bytes),
                Key::Line(text) => {
                    self.print(line, "\n");
                    let text = text.trim();
                    if !text.is_empty() {
                        let mut answer = monitor.command(text);
                        if !answer.is_empty() && !answer.ends_with('\n') {
                            answer.push('\n');
                        }
                        self.print(line, &answer);
                    }
                    if more() {
                        self.print(line, monitor.prompt());
                    }
                }
            }
        }
    }
}

/// A monitor that has a line for itself (`-monitor`).
pub struct MonitorLine {
    line: Arc<dyn Chardev>,
    monitor: Arc<dyn Monitor>,
    session: Session,
}

impl MonitorLine {
    /// Has `monitor` answer at `line`, as long as what is returned is kept.
    pub fn new(line: Arc<dyn Chardev>, monitor: Arc<dyn Monitor>) -> Arc<Self> {
        let this = Arc::new(Self { line: line.clone(), monitor, session: Session::default() });
        line.set_receiver(Arc::new(Client(Arc::downgrade(&this))));
        this
    }

    fn work(&self) {
        self.session.work(&*self.line, &*self.monitor, || true);
    }
}

/// The monitor as its line sees it; weak, so that the line does not keep the monitor alive that owns it.
struct Client(Weak<MonitorLine>);

impl Receiver for Client {
    fn can_receive(&self) -> usize {
        self.0.upgrade().map_or(0, |m| m.session.room())
    }

    fn receive(&self, bytes: &[u8]) {
        let Some(m) = self.0.upgrade() else { return };
        m.session.push(bytes);
        m.work();
    }

    fn writable(&self) {
        if let Some(m) = self.0.upgrade() {
            let full = m.session.room() == 0;
            m.work();
            if full {
                m.line.accept_input();
            }
        }
    }

    fn event(&self, event: Event) {
        let Some(m) = self.0.upgrade() else { return };
        match event {
            Event::Opened => {
                m.session.clear();
                m.session.print(&*m.line, m.monitor.greeting());
                m.session.print(&*m.line, m.monitor.prompt());
            }
            Event::Closed => m.session.clear(),
            Event::Break => {}
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::chardev::testing::Loose;

    pub(crate) struct Upper;
    impl Monitor for Upper {
        fn command(&self, line: &str) -> String {
            line.to_uppercase()
        }
        fn prompt(&self) -> &str {
            "> "
        }
        fn greeting(&self) -> &str {
            "hello\n"
        }
    }

    fn shown(line: &Loose) -> String {
        String::from_utf8(line.take()).unwrap()
    }

    #[test]
    fn each_client_is_greeted_and_answered() {
        let line = Loose::new();
        let _monitor = MonitorLine::new(line.clone(), Arc::new(Upper));
        let client = line.receiver();
        client.event(Event::Opened);
        assert_eq!(shown(&line), "hello\r\n> ");
        client.receive(b"inf");
        client.event(Event::Closed);
        client.event(Event::Opened);
        line.take();
        client.receive(b"quit\r\n");
        assert_eq!(shown(&line), "quit\r\nQUIT\r\n> ");
        client.receive(b"a\nb\n");
        assert_eq!(shown(&line), "a\r\nA\r\n> b\r\nB\r\n> ");
    }

    #[test]
    fn a_client_that_does_not_read_is_not_read_for_ever() {
        struct Long;
        impl Monitor for Long {
            fn command(&self, _: &str) -> String {
                "x".repeat(1000)
            }
        }
        let line = Loose::new();
        *line.limit.lock() = Some(2000);
        let monitor = MonitorLine::new(line.clone(), Arc::new(Long));
        let client = line.receiver();
        let mut asked = 0;
        while client.can_receive() >= 2 {
            client.receive(b"l\n");
            asked += 1;
            assert!(asked < 100_000, "it reads on and on");
        }
        let held = line.written.lock().len() + line.reserve.lock().len();
        assert!(held < 2000 + OWED + 2000, "{held} bytes of answers");
        // What it has asked for comes when it reads.
        *line.limit.lock() = None;
        client.writable();
        assert!(client.can_receive() >= QUEUE - 1 && *line.accepts.lock() > 0);
        let answers = line.take().iter().chain(line.reserve.lock().iter()).filter(|b| **b == b'x').count();
        assert_eq!(answers, asked * 1000);
        drop(monitor);
        assert_eq!(client.can_receive(), 0);
    }

    #[test]
    fn a_line_without_an_end_is_cut() {
        let line = Loose::new();
        let _monitor = MonitorLine::new(line.clone(), Arc::new(Upper));
        for _ in 0..100 {
            line.receiver().receive(&[b'a'; 1000]);
        }
        line.take();
        line.receiver().receive(b"\r");
        assert_eq!(shown(&line).matches('A').count(), LINE);
    }
}
