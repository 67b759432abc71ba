//! What the leader asks of its board and devices is written down, with what it was told, and the follower is told the
//! same: it must ask for the same things in the same order.
//!
//! ```text
//!   leader  --Recorder--> devices        \ Log: Asked, Dma, Map, in the order of execution
//!   follower --Player------------------- /
//! ```
//!
//! Devices write to the leader's RAM at any time. While the leader runs they wait ([`mynah_mmu::Tap::dma_begins`]);
//! what they write while it waits for one of them is in the log where it happened, and what they write while it stands still
//! is copied before it runs again.
use mynah_cpu::board::EV_STRETCH;
use mynah_cpu::sys::msr::index::APIC_BASE;
use mynah_cpu::{Board, Events};
use mynah_mmu::{Gpa, MapCopy, PhysMemory, Tap};
use parking_lot::{Condvar, Mutex};
use std::fmt;
use std::sync::{Arc, Weak};
use std::thread::ThreadId;

/// What a vCPU asks of what is not memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    PortRead(u16, u8),
    PortWrite(u16, u8, u32),
    MmioRead(Gpa, u8),
    MmioWrite(Gpa, u8, u64),
    ApicRead(u32, u8),
    ApicWrite(u32, u8, u64),
    MsrRead(u32),
    MsrWrite(u32, u64),
    SetCr8(u8),
    Tsc,
    Random,
    // What an engine may ask more or less often than another.
    Cr8,
    ApicPage,
    Ferr(bool),
    Ignne,
}

impl Request {
    /// How often it is asked is the engine's own affair.
    fn is_soft(self) -> bool {
        matches!(self, Self::Cr8 | Self::ApicPage | Self::Ferr(_) | Self::Ignne | Self::MsrRead(APIC_BASE))
    }
}

impl fmt::Display for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PortRead(port, size) => write!(f, "a read of {size} bytes of port {port:#x}"),
            Self::PortWrite(port, size, v) => write!(f, "a write of {v:#x} ({size} bytes) to port {port:#x}"),
            Self::MmioRead(at, size) => write!(f, "a read of {size} bytes of a device at {at:#x}"),
            Self::MmioWrite(at, size, v) => {
                write!(f, "a write of {v:#x} ({size} bytes) to a device at {at:#x}")
            }
            Self::ApicRead(at, size) => write!(f, "a read of {size} bytes of the local APIC at {at:#x}"),
            Self::ApicWrite(at, size, v) => {
                write!(f, "a write of {v:#x} ({size} bytes) to the local APIC at {at:#x}")
            }
            Self::MsrRead(index) => write!(f, "a read of MSR {index:#x}"),
            Self::MsrWrite(index, v) => write!(f, "a write of {v:#x} to MSR {index:#x}"),
            Self::SetCr8(v) => write!(f, "a write of {v:#x} to CR8"),
            Self::Tsc => write!(f, "a look at the time-stamp counter"),
            Self::Random => write!(f, "a random number"),
            Self::Cr8 => write!(f, "a read of CR8"),
            Self::ApicPage => write!(f, "a look at where the local APIC is"),
            Self::Ferr(v) => write!(f, "FERR# {}", if *v { "asserted" } else { "not asserted" }),
            Self::Ignne => write!(f, "a look at IGNNE#"),
        }
    }
}

#[derive(Clone)]
enum Entry {
    /// The request and its answer, of which there may be none: #GP, say.
    Asked(Request, Option<u64>),
    /// A device has written to RAM.
    Dma(Gpa, Arc<[u8]>),
    /// The map has changed.
    Map(Arc<MapCopy>),
}

type Soft = [Option<u64>; 4];

/// Whose place in the log it is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Who {
    Leader = 0,
    Follower = 1,
}

#[derive(Default)]
struct Inner {
    entries: Vec<Entry>,
    /// How far leader (run again) and follower are.
    at: [usize; 2],
    /// What they have asked for that the log has not.
    wrong: [Option<String>; 2],
    /// The leader runs again, by the log.
    again: bool,
    /// The last answers to soft requests: CR8, the APIC's page, IGNNE#, IA32_APIC_BASE; and those at the start.
    soft: [Soft; 2],
    soft_before: Soft,
    /// The leader executes guest code, and devices wait.
    running: bool,
    /// Turns of devices that are under way.
    turns: usize,
    /// It is within a stretch, though perhaps in a device.
    within: bool,
    /// What devices have written while it was not.
    between: Vec<(Gpa, u64)>,
    map_generation: u64,
}

/// The log of a stretch, and the gate between the leader and devices.
pub struct Log {
    inner: Mutex<Inner>,
    changed: Condvar,
    vcpu: ThreadId,
}

impl Log {
    /// For a leader that runs on this thread.
    pub fn new() -> Arc<Self> {
        Arc::new(Self { inner: Mutex::default(), changed: Condvar::new(), vcpu: std::thread::current().id() })
    }

    /// Has devices wait, after those that are at it.
    pub fn close(&self) {
        let mut inner = self.inner.lock();
        while inner.turns != 0 {
            self.changed.wait(&mut inner);
        }
        inner.running = true;
    }

    /// Lets devices go on.
    pub fn open(&self) {
        self.inner.lock().running = false;
        self.changed.notify_all();
    }

    /// A new stretch begins; the gate is closed, and nothing is left of what devices have written.
    pub fn begin(&self, map_generation: u64) {
        let mut inner = self.inner.lock();
        inner.entries.clear();
        inner.at = [0, 0];
        inner.wrong = [None, None];
        inner.within = true;
        inner.soft_before = inner.soft[0];
        inner.soft[1] = inner.soft[0];
        inner.map_generation = map_generation;
    }

    /// The stretch is over for the leader.
    pub fn end(&self) {
        self.inner.lock().within = false;
    }

    /// What devices have written since, outside of stretches.
    pub fn take_between(&self) -> Vec<(Gpa, u64)> {
        std::mem::take(&mut self.inner.lock().between)
    }

    /// Both begin at the stretch's start once more, the leader by the log (or, with false, no more by it).
    pub fn again(&self, on: bool) {
        let mut inner = self.inner.lock();
        inner.again = on;
        if on {
            inner.at = [0, 0];
            inner.wrong = [None, None];
            inner.soft = [inner.soft_before; 2];
        }
    }

    /// What this one has asked for that the log has not.
    pub fn wrong(&self, who: Who) -> Option<String> {
        self.inner.lock().wrong[who as usize].clone()
    }

    /// What the leader has asked for and the follower has not; nothing if that is nothing of weight.
    pub fn left(&self) -> Option<String> {
        let inner = self.inner.lock();
        let end = if inner.again { inner.at[0].min(inner.entries.len()) } else { inner.entries.len() };
        inner.entries.get(inner.at[1]..end)?.iter().find_map(|e| match e {
            // Time may be looked at in vain: an interrupt that is due comes first.
            Entry::Asked(r, _) if !r.is_soft() && *r != Request::Tsc => Some(r.to_string()),
            _ => None,
        })
    }

    /// How far one of them is.
    pub fn place(&self, who: Who) -> usize {
        self.inner.lock().at[who as usize]
    }

    /// Has one of them be where it was.
    pub fn set_place(&self, who: Who, place: usize) {
        let mut inner = self.inner.lock();
        inner.at[who as usize] = place;
        inner.wrong[who as usize] = None;
    }

    /// Whether the map has changed in this stretch.
    pub fn has_new_map(&self) -> bool {
        self.inner.lock().entries.iter().any(|e| matches!(e, Entry::Map(_)))
    }

    /// Does to `memory` what devices have done in the rest of the stretch.
    pub fn finish(&self, who: Who, memory: &PhysMemory) {
        let rest: Vec<Entry> = {
            let mut inner = self.inner.lock();
            let at = std::mem::replace(&mut inner.at[who as usize], usize::MAX);
            inner.entries.get(at..).unwrap_or(&[]).to_vec()
        };
        rest.iter().for_each(|e| apply(e, memory));
    }

    /// Answers from the log.
    fn answer(&self, who: Who, request: Request, memory: &PhysMemory) -> Option<u64> {
        let (who, mut inner) = (who as usize, self.inner.lock());
        loop {
            let at = inner.at[who];
            let Some(entry) = inner.entries.get(at).cloned() else { break };
            match &entry {
                Entry::Asked(r, answer) if *r == request => {
                    inner.at[who] = at + 1;
                    if let Some(n) = soft_index(request) {
                        inner.soft[who][n] = *answer;
                    }
                    return *answer;
                }
                Entry::Asked(r, answer) if r.is_soft() && !request.is_soft() => {
                    if let Some(n) = soft_index(*r) {
                        inner.soft[who][n] = *answer;
                    }
                    inner.at[who] = at + 1;
                }
                Entry::Asked(..) => break,
                Entry::Dma(..) | Entry::Map(_) if request.is_soft() => break,
                Entry::Dma(..) | Entry::Map(_) => {
                    inner.at[who] = at + 1;
                    drop(inner);
                    apply(&entry, memory);
                    inner = self.inner.lock();
                }
            }
        }
        if let Some(n) = soft_index(request) {
            return inner.soft[who][n];
        }
        if !request.is_soft() && inner.wrong[who].is_none() {
            let at = inner.at[who];
            let rest = inner.entries.get(at..).unwrap_or(&[]);
            let next = rest.iter().find_map(|e| match e {
                Entry::Asked(r, _) if !r.is_soft() => Some(format!("{r} is next")),
                _ => None,
            });
            let next = next.unwrap_or_else(|| "nothing is".into());
            inner.wrong[who] = Some(format!("{request}, where by the other engine {next}"));
        }
        Some(u64::MAX)
    }

    /// The leader asks; `ask` has the answer if it is not in the log.
    fn record(
        &self,
        request: Request,
        events: &Events,
        memory: &PhysMemory,
        ask: impl FnOnce() -> Option<u64>,
    ) -> Option<u64> {
        let running = {
            let inner = self.inner.lock();
            if inner.again {
                drop(inner);
                return self.answer(Who::Leader, request, memory);
            }
            inner.running
        };
        if running {
            self.open();
        }
        let answer = ask();
        if running {
            self.close();
        }
        let mut inner = self.inner.lock();
        if let Some(n) = soft_index(request) {
            inner.soft[0][n] = answer;
        }
        if inner.within {
            inner.entries.push(Entry::Asked(request, answer));
            let generation = memory.map_generation();
            if generation != inner.map_generation {
                inner.map_generation = generation;
                inner.entries.push(Entry::Map(Arc::new(memory.map_copy())));
                // TLBs are to follow at once.
                drop(inner);
                events.raise(EV_STRETCH);
            }
        }
        answer
    }

    fn is_vcpu(&self) -> bool {
        std::thread::current().id() == self.vcpu
    }
}

fn soft_index(request: Request) -> Option<usize> {
    match request {
        Request::Cr8 => Some(0),
        Request::ApicPage => Some(1),
        Request::Ignne => Some(2),
        Request::MsrRead(APIC_BASE) => Some(3),
        _ => None,
    }
}

fn apply(entry: &Entry, memory: &PhysMemory) {
    match entry {
        Entry::Dma(gpa, bytes) => memory.write(*gpa, bytes),
        Entry::Map(map) => memory.set_map((**map).clone()),
        Entry::Asked(..) => {}
    }
}

/// The leader's board, with all that it is asked written down.
pub struct Recorder {
    pub log: Arc<Log>,
    /// For the vCPU; what the memory has needs none.
    pub board: Option<Arc<dyn Board>>,
    pub events: Arc<Events>,
    pub memory: Weak<PhysMemory>,
}

impl Recorder {
    fn ask(&self, request: Request, ask: impl FnOnce() -> Option<u64>) -> Option<u64> {
        match self.memory.upgrade() {
            Some(memory) => self.log.record(request, &self.events, &memory, ask),
            None => ask(),
        }
    }
}

/// The follower's board, which has its answers from the log.
pub struct Player {
    pub log: Arc<Log>,
    pub memory: Weak<PhysMemory>,
}

impl Player {
    fn ask(&self, request: Request, _: impl FnOnce() -> Option<u64>) -> Option<u64> {
        self.log.answer(Who::Follower, request, &*self.memory.upgrade()?)
    }
}

/// Both ask in the same words.
macro_rules! board {
    ($type:ty, $self:ident, $inner:expr) => {
        impl Board for $type {
            fn port_read(&$self, port: u16, size: u8) -> u32 {
                $self.ask(Request::PortRead(port, size), || $inner.map(|b| u64::from(b.port_read(port, size))))
                    .unwrap_or(u64::MAX) as u32
            }
            fn port_write(&$self, port: u16, size: u8, value: u32) {
                $self.ask(Request::PortWrite(port, size, value), || {
                    $inner.map(|b| b.port_write(port, size, value));
                    None
                });
            }
            fn acknowledge(&$self) -> Option<u8> {
                $inner.and_then(|b| b.acknowledge())
            }
            fn cr8(&$self) -> u8 {
                $self.ask(Request::Cr8, || $inner.map(|b| u64::from(b.cr8()))).unwrap_or(0) as u8
            }
            fn set_cr8(&$self, v: u8) {
                $self.ask(Request::SetCr8(v), || {
                    $inner.map(|b| b.set_cr8(v));
                    None
                });
            }
            fn apic_msr_read(&$self, index: u32) -> Result<u64, ()> {
                $self.ask(Request::MsrRead(index), || $inner.and_then(|b| b.apic_msr_read(index).ok())).ok_or(())
            }
            fn apic_msr_write(&$self, index: u32, value: u64) -> Result<(), ()> {
                let ask = || $inner.and_then(|b| b.apic_msr_write(index, value).ok()).map(|()| 0);
                $self.ask(Request::MsrWrite(index, value), ask).map(|_| ()).ok_or(())
            }
            fn apic_page(&$self) -> Option<u64> {
                $self.ask(Request::ApicPage, || $inner.and_then(|b| b.apic_page()))
            }
            fn apic_read(&$self, offset: u32, size: u8) -> u64 {
                $self.ask(Request::ApicRead(offset, size), || $inner.map(|b| b.apic_read(offset, size))).unwrap_or(0)
            }
            fn apic_write(&$self, offset: u32, size: u8, value: u64) {
                $self.ask(Request::ApicWrite(offset, size, value), || {
                    $inner.map(|b| b.apic_write(offset, size, value));
                    None
                });
            }
            fn tsc(&$self) -> u64 {
                $self.ask(Request::Tsc, || $inner.map(|b| b.tsc())).unwrap_or(0)
            }
            fn random(&$self) -> Option<u64> {
                $self.ask(Request::Random, || $inner.and_then(|b| b.random()))
            }
            fn ferr(&$self, asserted: bool) {
                $self.ask(Request::Ferr(asserted), || {
                    $inner.map(|b| b.ferr(asserted));
                    None
                });
            }
            fn ignne(&$self) -> bool {
                $self.ask(Request::Ignne, || $inner.map(|b| u64::from(b.ignne()))).is_none_or(|v| v != 0)
            }
        }
    };
}
board!(Recorder, self, self.board.as_ref());
board!(Player, self, None::<&dyn Board>);

impl Tap for Recorder {
    fn dma_begins(&self) {
        let mut inner = self.log.inner.lock();
        while inner.running && !self.log.is_vcpu() {
            self.log.changed.wait(&mut inner);
        }
        inner.turns += 1;
    }

    fn dma_ends(&self) {
        let mut inner = self.log.inner.lock();
        inner.turns = inner.turns.saturating_sub(1);
        drop(inner);
        self.log.changed.notify_all();
    }

    fn ram_written(&self, gpa: Gpa, len: u64) {
        let mut inner = self.log.inner.lock();
        if inner.again || inner.running && self.log.is_vcpu() {
            // The leader's own.
            return;
        }
        if !inner.within {
            match inner.between.last_mut() {
                Some((at, n)) if *at + *n == gpa => *n += len,
                _ => inner.between.push((gpa, len)),
            }
            return;
        }
        drop(inner);
        let Some(memory) = self.memory.upgrade() else { return };
        let mut bytes = vec![0; len as usize];
        memory.read(gpa, &mut bytes);
        self.log.inner.lock().entries.push(Entry::Dma(gpa, bytes.into()));
    }

    fn mmio_read(&self, gpa: Gpa, size: u8, read: &mut dyn FnMut() -> u64) -> u64 {
        if !self.log.is_vcpu() {
            return read();
        }
        self.ask(Request::MmioRead(gpa, size), || Some(read())).unwrap_or(u64::MAX)
    }

    fn mmio_write(&self, gpa: Gpa, size: u8, value: u64, write: &mut dyn FnMut()) {
        if !self.log.is_vcpu() {
            return write();
        }
        self.ask(Request::MmioWrite(gpa, size, value), || {
            write();
            None
        });
    }
}

impl Tap for Player {
    fn dma_begins(&self) {}
    fn dma_ends(&self) {}
    fn ram_written(&self, _: Gpa, _: u64) {}
    fn mmio_read(&self, gpa: Gpa, size: u8, _: &mut dyn FnMut() -> u64) -> u64 {
        self.ask(Request::MmioRead(gpa, size), || None).unwrap_or(u64::MAX)
    }
    fn mmio_write(&self, gpa: Gpa, size: u8, value: u64, _: &mut dyn FnMut()) {
        self.ask(Request::MmioWrite(gpa, size, value), || None);
    }
}
