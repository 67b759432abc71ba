//! The human monitor's side of a line: what edits, answers and waits its turn.
//!
//! ```text
//!   line --> what was typed, in its order --> editor --line--> Monitor::command, on a thread of its own
//!                                               | echo                 | answer, prompt
//!                                               +------> line <--------+
//! ```
//!
//! Keys are taken on the line's thread, which must not wait. A command may (for vCPUs, for a disk), so it is
//! carried out on a thread that lasts as long as there are commands; what is typed meanwhile waits. One thread at a
//! time has the session, so that all comes in its order.
//!
//! A client that asks and does not read its answers is not read itself: lines are carried out while the answers
//! have room, and [`OWED`] bytes further, so that a command gets through to a line that is full of the guest's
//! output. Then what comes in waits here ([`QUEUE`] bytes), and after that at the client's end.
//!
//! Locks: `state` is held while an answer is put into the line's buffer, so that none goes to the next client, and
//! never while a command is carried out.
use super::{Chardev, Event, Receiver};
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::sync::{Arc, Weak};
use std::thread;
use std::time::Duration;

/// Typed bytes that may wait.
pub(super) const QUEUE: usize = 4096;
/// The longest line that is taken; more of it is dropped.
const LINE: usize = 4096;
/// Bytes of answers that may wait beyond a backend's room.
const OWED: usize = 64 << 10;

/// What answers lines typed at the monitor.
pub trait Monitor: Send + Sync {
    /// Carries a command out and returns what is to be shown. One at a time of those of a line.
    fn command(&self, line: &str) -> String;
    /// Whether that may wait for anything. What never does is done on the line's thread.
    fn may_wait(&self, line: &str) -> bool {
        let _ = line;
        true
    }
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

/// What is to be done for the one who types.
pub(super) enum Item {
    /// A key.
    Key(u8),
    /// Text to show.
    Say(String),
    /// The prompt.
    Prompt,
    /// The line that is being edited is to be forgotten.
    Forget,
}

/// What a monitor keeps of the one who types at it.
#[derive(Default)]
pub(super) struct Session {
    state: Mutex<Typed>,
}

#[derive(Default)]
struct Typed {
    /// What has not been looked at.
    waiting: VecDeque<Item>,
    editor: Editor,
    /// Bytes of answers sent since the line last had room.
    owed: usize,
    /// Somebody has the session: he looks at all that waits.
    busy: bool,
    /// He was asked to meanwhile.
    again: bool,
    /// The line was told that there is no room for what is typed.
    refused: bool,
    /// Counts those who type: what was done for one is not shown to the next.
    client: usize,
}

/// A line, its monitor, and a session between them.
pub(super) trait Seat: Send + Sync + 'static {
    fn session(&self) -> &Session;
    fn line(&self) -> &dyn Chardev;
    fn monitor(&self) -> Option<Arc<dyn Monitor>>;
    /// Whether the prompt is to be shown after a command.
    fn prompts(&self) -> bool {
        true
    }
}

/// What comes next.
enum Step {
    Show(Vec<u8>),
    Prompt,
    Line(String),
    Nothing,
}

impl Session {
    /// How many bytes may be typed now.
    pub(super) fn room(&self) -> usize {
        let mut state = self.state.lock();
        let room = QUEUE.saturating_sub(state.waiting.len());
        state.refused |= room == 0;
        room
    }

    /// Takes what was typed; more than there is room for is dropped.
    pub(super) fn push(&self, bytes: &[u8]) {
        let mut state = self.state.lock();
        let room = QUEUE.saturating_sub(state.waiting.len());
        state.waiting.extend(bytes.iter().take(room).map(|b| Item::Key(*b)));
    }

    /// Adds what is to be done behind what was typed, for which there is as much room again.
    pub(super) fn add<const N: usize>(&self, items: [Item; N]) {
        let mut state = self.state.lock();
        if state.waiting.len() < 2 * QUEUE {
            state.waiting.extend(items);
        }
    }

    /// Forgets what was typed, as somebody else does so from now on.
    pub(super) fn clear(&self) {
        let mut state = self.state.lock();
        state.waiting.clear();
        state.editor = Editor::default();
        state.owed = 0;
        state.client += 1;
    }

    /// Shows text to whoever types.
    pub(super) fn print(&self, line: &dyn Chardev, text: &str) {
        let mut state = self.state.lock();
        state.send(line, &cooked(text));
    }

    /// Shows it to `client`, if it is he who types.
    fn print_for(&self, client: usize, line: &dyn Chardev, text: &str) {
        let mut state = self.state.lock();
        if state.client == client {
            state.send(line, &cooked(text));
        }
    }

    /// Takes the session, unless somebody has it, who is then told to look again.
    fn take(&self) -> bool {
        let mut state = self.state.lock();
        state.again = true;
        !std::mem::replace(&mut state.busy, true)
    }

    /// What is to be done next, and for whom. With nothing to do, or no room for an answer, the session is given back.
    fn next(&self, line: &dyn Chardev) -> Option<(usize, Step)> {
        let mut accept = false;
        let next = loop {
            let mut state = self.state.lock();
            state.again = false;
            // Asked each time, as it is this question that `writable` answers.
            let room = parking_lot::MutexGuard::unlocked(&mut state, || line.room());
            if room > 0 {
                state.owed = 0;
            }
            let item = if state.owed < OWED { state.waiting.pop_front() } else { None };
            let (len, stops) = (state.waiting.len(), item.is_none());
            if state.refused && (len <= QUEUE / 2 || stops && len < QUEUE) {
                (state.refused, accept) = (false, true);
            }
            let step = match item {
                None if state.again => continue,
                None => {
                    state.busy = false;
                    break None;
                }
                Some(Item::Say(text)) => Step::Show(cooked(&text)),
                Some(Item::Prompt) => Step::Prompt,
                Some(Item::Forget) => {
                    state.editor = Editor::default();
                    Step::Nothing
                }
                Some(Item::Key(byte)) => match state.editor.key(byte) {
                    Key::Nothing => Step::Nothing,
                    Key::Echo(bytes) => Step::Show(bytes),
                    Key::Line(text) => Step::Line(text),
                },
            };
            if let Step::Show(bytes) = &step {
                state.send(line, bytes);
            }
            break Some((state.client, step));
        };
        if accept {
            line.accept_input();
        }
        next
    }
}

impl Typed {
    fn send(&mut self, line: &dyn Chardev, bytes: &[u8]) {
        let full = line.room() < bytes.len();
        line.write_all(bytes, Duration::ZERO);
        self.owed = if full { self.owed + bytes.len() } else { 0 };
    }
}

/// Does what was typed, as far as the answers may go. Never waits.
pub(super) fn work<S: Seat>(seat: &Arc<S>) {
    if let Some(monitor) = seat.monitor()
        && seat.session().take()
    {
        go_on(seat, &monitor, false);
    }
}

/// The same for who has the session. If he must not wait, a thread takes over at a command that may.
fn go_on<S: Seat>(seat: &Arc<S>, monitor: &Arc<dyn Monitor>, may_wait: bool) {
    let (session, line) = (seat.session(), seat.line());
    while let Some((client, step)) = session.next(line) {
        match step {
            Step::Nothing | Step::Show(_) => {}
            Step::Prompt => session.print_for(client, line, monitor.prompt()),
            Step::Line(text) => {
                session.print_for(client, line, "\n");
                let text = text.trim();
                if text.is_empty() || may_wait || !monitor.may_wait(text) {
                    answer(seat, monitor, client, text);
                    continue;
                }
                let (theirs, text) = ((seat.clone(), monitor.clone()), text.to_owned());
                let started = thread::Builder::new().name("mynah-monitor".into()).spawn(move || {
                    let (seat, monitor) = theirs;
                    answer(&seat, &monitor, client, &text);
                    go_on(&seat, &monitor, true);
                });
                match started {
                    Ok(_) => return,
                    Err(e) => session.print_for(client, line, &format!("Error: no thread for it: {e}\n")),
                }
            }
        }
    }
}

/// Carries a command out, and shows the answer and the next prompt.
fn answer<S: Seat>(seat: &Arc<S>, monitor: &Arc<dyn Monitor>, client: usize, text: &str) {
    let (session, line) = (seat.session(), seat.line());
    if !text.is_empty() {
        let mut answer = monitor.command(text);
        if !answer.is_empty() && !answer.ends_with('\n') {
            answer.push('\n');
        }
        session.print_for(client, line, &answer);
    }
    if seat.prompts() {
        session.print_for(client, line, monitor.prompt());
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
}

impl Seat for MonitorLine {
    fn session(&self) -> &Session {
        &self.session
    }

    fn line(&self) -> &dyn Chardev {
        &*self.line
    }

    fn monitor(&self) -> Option<Arc<dyn Monitor>> {
        Some(self.monitor.clone())
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
        work(&m);
    }

    fn writable(&self) {
        if let Some(m) = self.0.upgrade() {
            work(&m);
        }
    }

    fn event(&self, event: Event) {
        let Some(m) = self.0.upgrade() else { return };
        match event {
            Event::Opened => {
                m.session.clear();
                m.session.add([Item::Say(m.monitor.greeting().to_owned()), Item::Prompt]);
                work(&m);
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
    use std::sync::mpsc::{Receiver as Receives, Sender, channel};

    pub(crate) struct Upper;
    impl Monitor for Upper {
        fn command(&self, line: &str) -> String {
            line.to_uppercase()
        }
        fn may_wait(&self, _: &str) -> bool {
            false
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
            fn may_wait(&self, _: &str) -> bool {
                false
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

    /// A monitor whose commands wait until the test lets them go on; it says when it has begun one.
    pub(crate) struct Waits {
        pub(crate) begun: Mutex<Sender<String>>,
        pub(crate) go_on: Mutex<Receives<()>>,
    }

    impl Waits {
        pub(crate) fn new() -> (Arc<Self>, Receives<String>, Sender<()>) {
            let ((begun, begins), (go_on, goes_on)) = (channel(), channel());
            (Arc::new(Waits { begun: Mutex::new(begun), go_on: Mutex::new(goes_on) }), begins, go_on)
        }
    }

    impl Monitor for Waits {
        fn command(&self, line: &str) -> String {
            self.begun.lock().send(line.to_owned()).unwrap();
            let _ = self.go_on.lock().recv();
            line.to_uppercase()
        }
        fn prompt(&self) -> &str {
            "> "
        }
    }

    /// Waits until the line has shown this.
    pub(crate) fn wait_for(line: &Loose, text: &str) {
        while *line.written.lock() != text.as_bytes() {
            std::thread::yield_now();
        }
        line.take();
    }

    #[test]
    fn a_command_that_waits_keeps_only_what_is_typed_behind_it_waiting() {
        let line = Loose::new();
        let (waits, begins, go_on) = Waits::new();
        let monitor = MonitorLine::new(line.clone(), waits);
        let client = line.receiver();
        client.receive(b"one\ntw");
        client.receive(b"o\nthr");
        assert_eq!(begins.recv().unwrap(), "one");
        wait_for(&line, "one\r\n");
        // It is not read for ever.
        client.receive(&[b'e'; 5000]);
        assert_eq!(client.can_receive(), 0);
        go_on.send(()).unwrap();
        assert_eq!(begins.recv().unwrap(), "two");
        wait_for(&line, "ONE\r\n> two\r\n");
        go_on.send(()).unwrap();
        let rest = QUEUE - "two\nthr".len();
        wait_for(&line, &format!("TWO\r\n> thr{}", "e".repeat(rest)));
        assert!(*line.accepts.lock() > 0 && client.can_receive() == QUEUE);
        // It may go with the thread that carries its command out.
        client.receive(b"\n");
        begins.recv().unwrap();
        let gone = Arc::downgrade(&monitor);
        drop(monitor);
        drop(go_on);
        while gone.strong_count() > 0 {
            std::thread::yield_now();
        }
    }

    #[test]
    fn what_one_client_has_asked_is_not_shown_to_the_next() {
        let line = Loose::new();
        let (waits, begins, go_on) = Waits::new();
        let _monitor = MonitorLine::new(line.clone(), waits);
        let client = line.receiver();
        client.event(Event::Opened);
        client.receive(b"first\nmore\n");
        assert_eq!(begins.recv().unwrap(), "first");
        client.event(Event::Closed);
        line.take();
        client.event(Event::Opened);
        client.receive(b"second\n");
        go_on.send(()).unwrap();
        assert_eq!(begins.recv().unwrap(), "second");
        go_on.send(()).unwrap();
        wait_for(&line, "> second\r\nSECOND\r\n> ");
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
