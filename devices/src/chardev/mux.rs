//! The multiplexer of `mon:`: one terminal for the guest's line and the monitor, with commands behind Ctrl-A.
//!
//! ```text
//!   terminal --> Ctrl-A? --yes--> X quit, C switch, H help, S sync, B break, Ctrl-A itself
//!                   | no
//!                   +--> queue --> guest's device          (focus: guest)
//!                   +--> Session --> Monitor::command      (focus: monitor)
//!   guest's device --> terminal    (whatever the focus)
//! ```
//!
//! What is typed waits in a queue here while the guest's device has no room (or the monitor's answers have
//! none), so that Ctrl-A works with a guest that does not read, on a terminal that does not show. With the queue
//! full, a file or a program on the line waits, and what a person types is dropped, as a terminal does it: the
//! commands still get through.
//!
//! Locks: `state` is held while input is taken apart and handed to the guest's receiver (which keeps its
//! order), never while a hook or the monitor runs. A receiver must not call the mux from `receive`.
use super::monitor::{Item, QUEUE, Seat, Session, cooked, work};
use super::{Chardev, Event, Monitor, Receiver};
use parking_lot::{Mutex, MutexGuard, RwLock};
use std::collections::VecDeque;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

type Hook = Box<dyn Fn() + Send + Sync>;

#[derive(Default)]
struct Hooks {
    monitor: Option<Arc<dyn Monitor>>,
    quit: Option<Hook>,
    sync: Option<Hook>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Focus {
    Guest,
    Monitor,
}

struct State {
    escaped: bool,
    focus: Focus,
    /// Typed bytes that wait for the guest.
    queue: VecDeque<u8>,
    guest: Option<Arc<dyn Receiver>>,
}

/// What a typed byte asks for that must be done without the lock.
enum Action {
    Help,
    Quit,
    Sync,
    Switch,
    Monitor,
    Break,
}

/// A line shared by the guest and the monitor; for the guest's device it is a `Chardev`.
pub struct Mux {
    line: Arc<dyn Chardev>,
    escape: u8,
    /// Whether a person types.
    terminal: bool,
    state: Mutex<State>,
    session: Session,
    hooks: RwLock<Hooks>,
}

impl Mux {
    /// The escape character unless another is chosen: Ctrl-A.
    pub const ESCAPE: u8 = 0x01;

    /// A multiplexer in front of `line`, with the focus on the guest.
    pub fn new(line: Arc<dyn Chardev>) -> Arc<Self> {
        Self::with_escape(line, Self::ESCAPE)
    }

    /// The same with another escape character (QEMU's `-echr`).
    pub fn with_escape(line: Arc<dyn Chardev>, escape: u8) -> Arc<Self> {
        let state = State { escaped: false, focus: Focus::Guest, queue: VecDeque::new(), guest: None };
        let mux = Arc::new(Self {
            line: line.clone(),
            escape,
            terminal: line.is_terminal(),
            state: Mutex::new(state),
            session: Session::default(),
            hooks: RwLock::new(Hooks::default()),
        });
        line.set_receiver(Arc::new(Typed(Arc::downgrade(&mux))));
        mux
    }

    /// Who answers at the monitor.
    pub fn set_monitor(&self, monitor: Arc<dyn Monitor>) {
        self.hooks.write().monitor = Some(monitor);
    }

    /// All devices are plugged in: if none reads what is typed here, the monitor does from the start.
    pub fn start(self: &Arc<Self>) {
        let Some(monitor) = self.hooks.read().monitor.clone() else { return };
        {
            let mut state = self.state.lock();
            if state.guest.is_some() || state.focus == Focus::Monitor {
                return;
            }
            state.focus = Focus::Monitor;
            let typed: Vec<u8> = state.queue.drain(..).collect();
            self.session.add([Item::Say(monitor.greeting().to_owned()), Item::Prompt]);
            self.session.push(&typed);
        }
        work(self);
    }

    /// What Ctrl-A X does. It runs on the terminal's thread: it should ask the machine to stop and return.
    pub fn set_quit(&self, quit: impl Fn() + Send + Sync + 'static) {
        self.hooks.write().quit = Some(Box::new(quit));
    }

    /// What Ctrl-A S does (write disk images' caches back).
    pub fn set_sync(&self, sync: impl Fn() + Send + Sync + 'static) {
        self.hooks.write().sync = Some(Box::new(sync));
    }

    /// Shows text to the user, with line ends as a terminal in raw mode needs them.
    pub fn print(&self, text: &str) {
        self.line.write_all(&cooked(text), Duration::ZERO);
    }

    /// The escape character as the user types it.
    fn escape_name(&self) -> String {
        match self.escape {
            c @ 1..=26 => format!("C-{}", char::from(c - 1 + b'a')),
            c => format!("{:?}", char::from(c)),
        }
    }

    fn help(&self) -> String {
        let e = self.escape_name();
        format!(
            "\n{e} h    this help\n{e} x    quit the emulator\n{e} s    write disk data back to its files\n\
             {e} b    send a break\n{e} c    switch between guest and monitor\n{e} {e}  send {e}\n"
        )
    }

    /// Hands queued bytes to the guest as far as it has room.
    fn deliver(state: &mut MutexGuard<'_, State>) {
        let Some(guest) = state.guest.clone() else { return };
        while !state.queue.is_empty() {
            let n = guest.can_receive().min(state.queue.len());
            if n == 0 {
                return;
            }
            let bytes: Vec<u8> = state.queue.drain(..n).collect();
            guest.receive(&bytes);
        }
    }

    /// Takes one typed byte apart.
    fn typed(&self, state: &mut State, byte: u8) -> Option<Action> {
        if state.escaped {
            state.escaped = false;
            match byte {
                b'h' | b'H' | b'?' => return Some(Action::Help),
                b'x' | b'X' => return Some(Action::Quit),
                b's' | b'S' => return Some(Action::Sync),
                b'b' | b'B' => return Some(Action::Break),
                b'c' | b'C' => return Some(Action::Switch),
                b if b == self.escape => {}
                // Anything else is no command and is swallowed.
                _ => return None,
            }
        } else if byte == self.escape {
            state.escaped = true;
            return None;
        }
        match state.focus {
            Focus::Guest => {
                if state.queue.len() < QUEUE {
                    state.queue.push_back(byte);
                }
                None
            }
            Focus::Monitor => {
                self.session.push(&[byte]);
                matches!(byte, b'\r' | b'\n').then_some(Action::Monitor)
            }
        }
    }

    fn act(self: &Arc<Self>, action: Action) {
        match action {
            Action::Help => self.session.print(&*self.line, &self.help()),
            Action::Quit => {
                // The prompt of the user's shell is to start on a line of its own; the rest is the hook's to
                // say.
                self.print("\n");
                if let Some(quit) = &self.hooks.read().quit {
                    quit();
                }
            }
            Action::Sync => {
                if let Some(sync) = &self.hooks.read().sync {
                    sync();
                }
            }
            Action::Break => {
                let guest = self.state.lock().guest.clone();
                if let Some(guest) = guest {
                    guest.event(Event::Break);
                }
            }
            Action::Switch => {
                if self.hooks.read().monitor.is_none() {
                    self.print("\nThere is no monitor here.\n");
                    return;
                }
                let mut state = self.state.lock();
                // Behind what was typed before.
                if state.focus == Focus::Guest {
                    state.focus = Focus::Monitor;
                    let e = self.escape_name();
                    let text = format!("\nMynah monitor: 'help' lists commands, {e} c goes back\n");
                    self.session.add([Item::Say(text), Item::Prompt]);
                } else if state.guest.is_some() {
                    state.focus = Focus::Guest;
                    self.session.add([Item::Forget, Item::Say("\n".to_owned())]);
                }
                drop(state);
                work(self);
            }
            Action::Monitor => work(self),
        }
    }
}

impl Seat for Mux {
    fn session(&self) -> &Session {
        &self.session
    }

    fn line(&self) -> &dyn Chardev {
        &*self.line
    }

    fn monitor(&self) -> Option<Arc<dyn Monitor>> {
        self.hooks.read().monitor.clone()
    }

    fn prompts(&self) -> bool {
        self.state.lock().focus == Focus::Monitor
    }
}

impl Chardev for Mux {
    fn write(&self, bytes: &[u8]) -> usize {
        self.line.write(bytes)
    }

    fn write_all(&self, bytes: &[u8], patience: Duration) {
        self.line.write_all(bytes, patience);
    }

    fn room(&self) -> usize {
        self.line.room()
    }

    fn set_receiver(&self, receiver: Arc<dyn Receiver>) {
        let mut state = self.state.lock();
        state.guest = Some(receiver);
        Self::deliver(&mut state);
    }

    fn flush(&self, until: Instant) {
        self.line.flush(until);
    }

    fn hurry(&self) {
        self.line.hurry();
    }

    fn unsent(&self) -> u64 {
        self.line.unsent()
    }

    fn is_terminal(&self) -> bool {
        self.terminal
    }

    fn name(&self) -> String {
        self.line.name()
    }

    fn accept_input(&self) {
        let mut state = self.state.lock();
        if !state.queue.is_empty() {
            Self::deliver(&mut state);
            drop(state);
            self.line.accept_input();
        }
    }
}

/// The mux as the line sees it; weak, so that the line does not keep the mux alive that owns it.
struct Typed(Weak<Mux>);

impl Receiver for Typed {
    fn can_receive(&self) -> usize {
        self.0.upgrade().map_or(0, |mux| match mux.terminal {
            true => QUEUE,
            false => QUEUE.saturating_sub(mux.state.lock().queue.len()).min(mux.session.room()),
        })
    }

    fn receive(&self, bytes: &[u8]) {
        let Some(mux) = self.0.upgrade() else { return };
        for &byte in bytes {
            let action = {
                let mut state = mux.state.lock();
                mux.typed(&mut state, byte)
            };
            if let Some(action) = action {
                // What was typed before a command arrives before it takes effect.
                Mux::deliver(&mut mux.state.lock());
                mux.act(action);
            }
        }
        Mux::deliver(&mut mux.state.lock());
        work(&mux);
    }

    fn writable(&self) {
        let Some(mux) = self.0.upgrade() else { return };
        // The monitor first: a guest may take all the room that there is.
        work(&mux);
        let guest = mux.state.lock().guest.clone();
        if let Some(guest) = guest {
            guest.writable();
        }
    }

    fn event(&self, event: Event) {
        let guest = self.0.upgrade().and_then(|mux| mux.state.lock().guest.clone());
        if let Some(guest) = guest {
            guest.event(event);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chardev::monitor::tests::{Upper, Waits, wait_for};
    use crate::chardev::testing::{Loose, Sink};
    use std::sync::atomic::{AtomicUsize, Ordering};

    fn setup(room: usize) -> (Arc<Loose>, Arc<Mux>, Arc<Sink>) {
        let line = Loose::new();
        let mux = Mux::new(line.clone());
        let guest = Sink::new(room);
        mux.set_receiver(guest.clone());
        (line, mux, guest)
    }

    fn shown(line: &Loose) -> String {
        String::from_utf8(line.take()).unwrap()
    }

    #[test]
    fn plain_bytes_go_to_the_guest_and_a_double_escape_is_one() {
        let (line, _mux, guest) = setup(100);
        line.receiver().receive(b"ls\x03\r\x01\x01");
        assert_eq!(*guest.got.lock(), b"ls\x03\r\x01");
    }

    #[test]
    fn quit_runs_its_hook_even_if_the_guest_reads_nothing() {
        let (line, mux, guest) = setup(0);
        let quits = Arc::new(AtomicUsize::new(0));
        let q = quits.clone();
        mux.set_quit(move || {
            q.fetch_add(1, Ordering::SeqCst);
        });
        line.receiver().receive(b"typed in vain\x01x");
        assert_eq!(quits.load(Ordering::SeqCst), 1);
        assert!(guest.got.lock().is_empty());
    }

    #[test]
    fn what_the_guest_has_no_room_for_waits_and_arrives_in_order() {
        let (line, mux, guest) = setup(2);
        line.receiver().receive(b"abcdef");
        assert_eq!(*guest.got.lock(), b"ab");
        assert_eq!(line.receiver().can_receive(), QUEUE - 4);
        *guest.limit.lock() = 5;
        mux.accept_input();
        *guest.limit.lock() = 100;
        line.receiver().receive(b"gh");
        assert_eq!(*guest.got.lock(), b"abcdefgh");
        assert_eq!(line.receiver().can_receive(), QUEUE);
    }

    #[test]
    fn the_monitor_gets_lines_and_the_guest_does_not() {
        let (line, mux, guest) = setup(100);
        mux.set_monitor(Arc::new(Upper));
        line.receiver().receive(b"a\x01cinfx\x7fo\x1b[A\rno\x15q\r\x01cb");
        assert_eq!(*guest.got.lock(), b"ab");
        let shown = shown(&line);
        assert!(shown.contains("\r\nINFO\r\n> ") && shown.contains("\r\nQ\r\n> "), "{shown:?}");
    }

    #[test]
    fn without_a_monitor_the_focus_stays() {
        let (line, _mux, guest) = setup(100);
        line.receiver().receive(b"\x01cx");
        assert_eq!(*guest.got.lock(), b"x");
        assert!(shown(&line).contains("no monitor"));
    }

    #[test]
    fn break_help_and_unknown_commands() {
        let (line, mux, guest) = setup(100);
        let syncs = Arc::new(AtomicUsize::new(0));
        let s = syncs.clone();
        mux.set_sync(move || {
            s.fetch_add(1, Ordering::SeqCst);
        });
        line.receiver().receive(b"\x01b\x01h\x01s\x01zq");
        assert_eq!(*guest.events.lock(), [Event::Break]);
        assert_eq!(*guest.got.lock(), b"q");
        assert_eq!(syncs.load(Ordering::SeqCst), 1);
        assert!(shown(&line).contains("C-a x    quit"));
    }

    #[test]
    fn guest_output_passes_whatever_the_focus() {
        let (line, mux, _guest) = setup(100);
        mux.set_monitor(Arc::new(Upper));
        line.receiver().receive(b"\x01c");
        line.take();
        mux.write(b"kernel says\n");
        assert_eq!(shown(&line), "kernel says\n");
    }

    #[test]
    fn ctrl_a_x_is_heard_on_a_terminal_behind_any_amount_of_typing() {
        struct Terminal(Arc<Loose>);
        impl Chardev for Terminal {
            fn write(&self, bytes: &[u8]) -> usize {
                self.0.write(bytes)
            }
            fn write_all(&self, bytes: &[u8], patience: Duration) {
                self.0.write_all(bytes, patience);
            }
            fn room(&self) -> usize {
                self.0.room()
            }
            fn set_receiver(&self, receiver: Arc<dyn Receiver>) {
                self.0.set_receiver(receiver);
            }
            fn flush(&self, _: Instant) {}
            fn is_terminal(&self) -> bool {
                true
            }
        }
        // It shows nothing, the guest reads nothing, and neither does the monitor get anywhere.
        let line = Loose::new();
        *line.limit.lock() = Some(0);
        let mux = Mux::new(Arc::new(Terminal(line.clone())));
        mux.set_monitor(Arc::new(Upper));
        let guest = Sink::new(0);
        mux.set_receiver(guest.clone());
        let quits = Arc::new(AtomicUsize::new(0));
        let q = quits.clone();
        mux.set_quit(move || {
            q.fetch_add(1, Ordering::SeqCst);
        });
        for focus in 1..=2 {
            for _ in 0..50 {
                assert!(line.receiver().can_receive() > 0);
                line.receiver().receive(&b"typed in vain, line by line\r".repeat(100));
            }
            line.receiver().receive(b"\x01x\x01c");
            assert_eq!(quits.load(Ordering::SeqCst), focus);
        }
        assert!(line.reserve.lock().len() < 200 << 10, "what the monitor says in vain is bounded");
        let mux_holds = mux.state.lock().queue.len();
        assert_eq!(mux_holds, QUEUE);
    }

    #[test]
    fn ctrl_a_x_is_heard_behind_a_command_that_waits() {
        let (line, mux, guest) = setup(100);
        let (waits, begins, go_on) = Waits::new();
        mux.set_monitor(waits);
        let quits = Arc::new(AtomicUsize::new(0));
        let q = quits.clone();
        mux.set_quit(move || {
            q.fetch_add(1, Ordering::SeqCst);
        });
        line.receiver().receive(b"\x01c");
        line.take();
        line.receiver().receive(b"long\r");
        assert_eq!(begins.recv().unwrap(), "long");
        wait_for(&line, "long\r\n");
        // The guest is there too.
        line.receiver().receive(b"half\x01cguest");
        assert_eq!(*guest.got.lock(), b"guest");
        line.receiver().receive(b"\x01x");
        assert_eq!(quits.load(Ordering::SeqCst), 1);
        wait_for(&line, "\r\n");
        go_on.send(()).unwrap();
        wait_for(&line, "LONG\r\nhalf\r\n");
    }

    #[test]
    fn a_command_gets_through_to_a_line_full_of_the_guests_output() {
        let (line, mux, _guest) = setup(100);
        mux.set_monitor(Arc::new(Upper));
        *line.limit.lock() = Some(4);
        assert_eq!(mux.write(b"flood"), 4);
        line.receiver().receive(b"\x01cquit\r");
        let said = String::from_utf8(line.reserve.lock().clone()).unwrap();
        assert!(said.contains("QUIT"), "{said}");
    }

    #[test]
    fn a_line_without_a_guest_is_the_monitors_from_the_start() {
        let line = Loose::new();
        let mux = Mux::new(line.clone());
        mux.set_monitor(Arc::new(Upper));
        line.receiver().receive(b"ear");
        mux.start();
        line.receiver().receive(b"ly\r");
        assert_eq!(shown(&line), "hello\r\n> early\r\nEARLY\r\n> ");

        let (line, mux, guest) = setup(100);
        mux.set_monitor(Arc::new(Upper));
        mux.start();
        line.receiver().receive(b"x");
        assert_eq!((shown(&line).as_str(), guest.got.lock().as_slice()), ("", b"x".as_slice()));
    }
}
