//! What the vCPUs of a machine do together: being stopped for a moment, and telling each other what has changed in
//! memory.
//!
//! Each vCPU has a [`Seat`]. While it executes guest code it counts as *running*; it stops running when it leaves its
//! run loop (halted, paused, kicked) and wherever it waits for others, each time with no instruction half done. Two
//! things need all others at such a point:
//!
//! * A locked access that the host cannot make atomic (across pages that are not neighbours on the host) is made while
//!   no other vCPU runs: [`World::exclusive`].
//! * Before a vCPU decodes bytes of a page, those that may write to that page by their TLB alone give that up:
//!   [`World::ask_protect`] leaves a note in their inboxes and waits until they have acted on it, or do not run. Who
//!   does not run looks at its inbox before it runs again.
//!
//! A vCPU that waits does not itself count as running, so that two that wait for each other do not wait for ever. What
//! it has been asked meanwhile it does as soon as it runs again ([`crate::Cpu`] calls `serve_protect` after each
//! wait).
//!
//! Lock order: `turn`, then nothing; inboxes and event words are leaves. `running` and `waiting` are looked at
//! crosswise: one side stores its own and then reads the other's, sequentially consistent.
use crate::board::{EV_MEMORY, EV_SYNC, Events};
use mynah_mmu::{CodeWatcher, PAGE_MASK};
use parking_lot::{Condvar, Mutex};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering, fence};

/// Ranges of written code that are told apart; with more, all code is forgotten.
const MAX_RANGES: usize = 128;

/// What other threads tell a vCPU about memory; raise [`EV_MEMORY`] after filling it.
#[derive(Default)]
pub struct MemoryChanges {
    /// The A20 gate was opened or closed.
    pub a20: Option<bool>,
    /// The physical map changed: flush the TLB.
    pub flush: bool,
    /// The physical map changed in these ranges (first and last address): decoded code of them does not hold.
    pub(crate) map: Vec<(u64, u64)>,
    /// Bytes on code pages were written: address and length, within a page.
    pub(crate) code: Vec<(u64, u64)>,
    /// Too many of them: nothing that was decoded holds.
    pub(crate) all_code: bool,
    /// Pages that another vCPU is about to decode: no more fast writes to them.
    pub(crate) protect: Vec<u64>,
    /// Too many of them: no more fast writes to any page.
    pub(crate) protect_all: bool,
    /// How many such pages there have ever been.
    pub(crate) asked: u64,
}

impl MemoryChanges {
    /// Bytes `gpa .. gpa + len`, within a page, were written.
    pub fn code_written(&mut self, gpa: u64, len: u64) {
        if self.all_code {
            return;
        }
        // Ranges on one page become one that holds them all: too much forgotten is no harm.
        for (at, n) in &mut self.code {
            if *at & !PAGE_MASK == gpa & !PAGE_MASK {
                let end = (*at + *n).max(gpa + len);
                *at = (*at).min(gpa);
                *n = end - *at;
                return;
            }
        }
        if self.code.len() >= MAX_RANGES {
            self.all_code = true;
            self.code.clear();
        } else {
            self.code.push((gpa, len));
        }
    }

    /// The page at `gpa` is to be protected; returns how many there have been by now.
    fn ask(&mut self, gpa: u64) -> u64 {
        if self.protect.len() >= MAX_RANGES {
            // A vCPU that sleeps for long is asked many a time.
            self.protect_all = true;
            self.protect.clear();
        }
        if !self.protect_all {
            self.protect.push(gpa);
        }
        self.asked += 1;
        self.asked
    }

    /// Takes out everything but the requests to protect pages.
    pub(crate) fn take(&mut self) -> Self {
        let protect = std::mem::take(&mut self.protect);
        let (protect_all, asked) = (self.protect_all, self.asked);
        std::mem::replace(self, Self { protect, protect_all, asked, ..Self::default() })
    }
}

/// A vCPU's place among the others.
pub struct Seat {
    /// Its event word.
    pub events: Arc<Events>,
    /// Its inbox.
    pub inbox: Arc<Mutex<MemoryChanges>>,
    running: AtomicBool,
    /// How many of the pages in `MemoryChanges::asked` it has protected.
    served: AtomicU64,
}

impl Seat {
    fn new(events: Arc<Events>, inbox: Arc<Mutex<MemoryChanges>>) -> Self {
        Self { events, inbox, running: AtomicBool::new(false), served: AtomicU64::new(0) }
    }

    fn is_running(&self) -> bool {
        self.running.load(Ordering::SeqCst)
    }

    /// Has the vCPU look at its inbox: at once if it runs, else before it runs again.
    fn notify(&self) {
        if self.is_running() {
            self.events.raise(EV_MEMORY);
        } else {
            self.events.mark(EV_MEMORY);
        }
    }
}

/// All vCPUs of a machine.
pub struct World {
    seats: Box<[Seat]>,
    /// Someone has or wants the machine for itself. The same as what `turn` guards, to be read without it.
    exclusive: AtomicBool,
    turn: Mutex<bool>,
    /// A vCPU has stopped running, or has protected pages, or an exclusive section has ended.
    changed: Condvar,
    /// Threads that wait for `changed` because of what others do without the lock.
    waiting: AtomicUsize,
    /// Whether a locked access across a cache line's border may be left to the host.
    split_locks: bool,
}

/// The machine is its holder's alone: no other vCPU runs.
pub struct Exclusive<'a>(&'a World);

impl Drop for Exclusive<'_> {
    fn drop(&mut self) {
        let mut held = self.0.turn.lock();
        *held = false;
        self.0.exclusive.store(false, Ordering::SeqCst);
        drop(held);
        self.0.changed.notify_all();
    }
}

impl World {
    /// The world of vCPUs with these event words and inboxes, in the order of their seats.
    pub fn new(seats: impl IntoIterator<Item = (Arc<Events>, Arc<Mutex<MemoryChanges>>)>) -> Arc<Self> {
        Arc::new(Self {
            seats: seats.into_iter().map(|(e, i)| Seat::new(e, i)).collect(),
            exclusive: AtomicBool::new(false),
            turn: Mutex::new(false),
            changed: Condvar::new(),
            waiting: AtomicUsize::new(0),
            split_locks: host_has_split_locks(),
        })
    }

    /// The inbox of a seat.
    pub(crate) fn inbox(&self, n: usize) -> Option<Arc<Mutex<MemoryChanges>>> {
        self.seats.get(n).map(|s| s.inbox.clone())
    }

    /// How many vCPUs there are.
    pub fn len(&self) -> usize {
        self.seats.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.seats.is_empty()
    }

    /// Whether the host makes locked accesses across cache lines atomic and lets us use them.
    pub(crate) fn split_locks(&self) -> bool {
        self.split_locks
    }

    /// The bit of a vCPU in the masks of writers. Beyond 64 vCPUs several share one.
    pub(crate) fn writer_bit(n: usize) -> u64 {
        1 << (n % 64)
    }

    /// vCPU `n` begins to run; waits while another has the machine for itself. What is in its inbox must be looked at
    /// next.
    pub fn enter(&self, n: usize) {
        if self.seats.len() == 1 {
            return;
        }
        let Some(seat) = self.seats.get(n) else { return };
        loop {
            seat.running.store(true, Ordering::SeqCst);
            fence(Ordering::SeqCst);
            if !self.exclusive.load(Ordering::SeqCst) {
                return;
            }
            self.leave(n);
            let mut held = self.turn.lock();
            while *held {
                self.changed.wait(&mut held);
            }
        }
    }

    /// vCPU `n` does not run any more (for now).
    pub fn leave(&self, n: usize) {
        let Some(seat) = self.seats.get(n) else { return };
        seat.running.store(false, Ordering::SeqCst);
        self.tell_waiting();
    }

    fn tell_waiting(&self) {
        if self.waiting.load(Ordering::SeqCst) != 0 {
            drop(self.turn.lock());
            self.changed.notify_all();
        }
    }

    /// Stops the other vCPUs at instruction boundaries and keeps them there. For vCPU `n`, which runs and has no
    /// instruction's effects half done.
    pub(crate) fn exclusive(&self, n: usize) -> Exclusive<'_> {
        self.leave(n);
        let mut held = self.turn.lock();
        while *held {
            self.changed.wait(&mut held);
        }
        *held = true;
        self.exclusive.store(true, Ordering::SeqCst);
        let others = || self.seats.iter().enumerate().filter(|&(i, _)| i != n).map(|(_, s)| s);
        for s in others().filter(|s| s.is_running()) {
            s.events.raise(EV_SYNC);
        }
        self.waiting.fetch_add(1, Ordering::SeqCst);
        while others().any(Seat::is_running) {
            self.changed.wait(&mut held);
        }
        self.waiting.fetch_sub(1, Ordering::SeqCst);
        if let Some(seat) = self.seats.get(n) {
            seat.running.store(true, Ordering::SeqCst);
        }
        drop(held);
        Exclusive(self)
    }

    /// Tells the vCPUs in `mask` (but for `n`) to allow no fast writes to the page at `gpa` before they go on; who
    /// they are, and what number that was.
    fn leave_note(&self, n: usize, mask: u64, gpa: u64) -> Vec<(&Seat, u64)> {
        self.seats
            .iter()
            .enumerate()
            .filter(|&(i, _)| i != n && mask & Self::writer_bit(i) != 0)
            .map(|(_, seat)| {
                let ticket = seat.inbox.lock().ask(gpa);
                seat.notify();
                (seat, ticket)
            })
            .collect()
    }

    /// As [`Self::ask_protect`], for a vCPU that has the machine for itself: the others look at their inboxes before
    /// they run again.
    pub(crate) fn ask_protect_alone(&self, n: usize, mask: u64, gpa: u64) {
        self.leave_note(n, mask, gpa);
    }

    /// Waits until the vCPUs in `mask` (but for `n`, which runs and has no instruction half done) allow no fast writes
    /// to the page at `gpa`.
    pub(crate) fn ask_protect(&self, n: usize, mask: u64, gpa: u64) {
        let asked = self.leave_note(n, mask, gpa);
        let open =
            |&(seat, ticket): &(&Seat, u64)| seat.is_running() && seat.served.load(Ordering::SeqCst) < ticket;
        if !asked.iter().any(open) {
            return;
        }
        self.leave(n);
        let mut held = self.turn.lock();
        self.waiting.fetch_add(1, Ordering::SeqCst);
        while asked.iter().any(open) {
            self.changed.wait(&mut held);
        }
        self.waiting.fetch_sub(1, Ordering::SeqCst);
        drop(held);
        self.enter(n);
    }

    /// vCPU `n` has protected the first `count` pages that it was ever asked to protect.
    pub(crate) fn protected(&self, n: usize, count: u64) {
        if let Some(seat) = self.seats.get(n) {
            seat.served.store(count, Ordering::SeqCst);
            self.tell_waiting();
        }
    }
}

/// What tells a vCPU of writes by others to pages that it holds code of, and of changes of the map.
pub(crate) struct Mail {
    pub(crate) world: Arc<World>,
    pub(crate) seat: usize,
}

impl CodeWatcher for Mail {
    fn code_written(&self, gpa: u64, len: u64) {
        let Some(seat) = self.world.seats.get(self.seat) else { return };
        seat.inbox.lock().code_written(gpa, len);
        seat.notify();
    }
    fn map_changed(&self, first: u64, last: u64) {
        let Some(seat) = self.world.seats.get(self.seat) else { return };
        let mut inbox = seat.inbox.lock();
        inbox.flush = true;
        if inbox.map.len() < MAX_RANGES {
            inbox.map.push((first, last));
        } else {
            inbox.all_code = true;
        }
        drop(inbox);
        seat.notify();
    }
}

/// Locked accesses across cache lines are atomic on x86 hosts. Some kernels punish or kill who makes them, if the CPU
/// can tell.
fn host_has_split_locks() -> bool {
    if !cfg!(target_arch = "x86_64") {
        return false;
    }
    #[cfg(target_os = "linux")]
    if let Ok(info) = std::fs::read_to_string("/proc/cpuinfo") {
        let watched = ["split_lock_detect", "bus_lock_detect"];
        return !info
            .lines()
            .find(|l| l.starts_with("flags"))
            .is_some_and(|l| l.split_whitespace().any(|f| watched.contains(&f)));
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicU32;
    use std::time::Duration;

    fn world(n: usize) -> Arc<World> {
        World::new((0..n).map(|_| Default::default()))
    }

    #[test]
    fn ranges_on_a_page_become_one_and_too_many_become_all() {
        let mut m = MemoryChanges::default();
        m.code_written(0x1010, 4);
        m.code_written(0x1000, 2);
        m.code_written(0x2000, 1);
        m.code_written(0x1008, 1);
        assert_eq!(m.code, [(0x1000, 0x14), (0x2000, 1)]);
        for page in 0..1000 {
            m.code_written(page << 12, 1);
        }
        assert!(m.all_code && m.code.is_empty());
    }

    #[test]
    fn taking_the_changes_leaves_what_is_to_be_protected() {
        let mut m = MemoryChanges { a20: Some(true), asked: 3, ..Default::default() };
        m.protect.push(0x5000);
        let taken = m.take();
        assert_eq!((taken.a20, m.a20), (Some(true), None));
        assert_eq!((m.protect.len(), m.asked, taken.protect.len()), (1, 3, 0));
        for page in 0..1000 {
            m.ask(page << 12);
        }
        assert_eq!((m.protect.len(), m.protect_all, m.asked), (0, true, 1003));
    }

    /// Threads that run, stop where they are told to, and take the machine for themselves now and then.
    #[test]
    fn in_an_exclusive_section_nobody_else_runs() {
        const VCPUS: usize = 4;
        const TURNS: u32 = 300;
        let world = world(VCPUS);
        let inside = AtomicU32::new(0);
        let plain = std::cell::UnsafeCell::new(0u32);
        struct Shared<'a>(&'a std::cell::UnsafeCell<u32>);
        // SAFETY: the cell is only accessed in exclusive sections.
        unsafe impl Sync for Shared<'_> {}
        let shared = Shared(&plain);
        std::thread::scope(|scope| {
            for n in 0..VCPUS {
                let (world, inside, shared) = (&world, &inside, &shared);
                scope.spawn(move || {
                    world.enter(n);
                    inside.fetch_add(1, Ordering::SeqCst);
                    for _ in 0..TURNS {
                        // An instruction boundary.
                        if world.seats[n].events.take(EV_SYNC) != 0 {
                            inside.fetch_sub(1, Ordering::SeqCst);
                            world.leave(n);
                            world.enter(n);
                            inside.fetch_add(1, Ordering::SeqCst);
                        }
                        inside.fetch_sub(1, Ordering::SeqCst);
                        let alone = world.exclusive(n);
                        assert_eq!(inside.load(Ordering::SeqCst), 0);
                        // SAFETY: nobody else is in here.
                        unsafe { *shared.0.get() += 1 };
                        inside.fetch_add(1, Ordering::SeqCst);
                        drop(alone);
                    }
                    inside.fetch_sub(1, Ordering::SeqCst);
                    world.leave(n);
                });
            }
        });
        assert_eq!(plain.into_inner(), VCPUS as u32 * TURNS);
    }

    #[test]
    fn who_asks_waits_for_those_that_run_and_for_nobody_else() {
        let world = world(3);
        world.enter(0);
        world.ask_protect(0, !0, 0x1000);
        assert_eq!(world.seats[1].inbox.lock().protect, [0x1000], "an idle vCPU finds it when it runs again");
        assert_eq!(world.seats[1].events.pending(), EV_MEMORY);
        world.enter(1);
        let answered = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                std::thread::sleep(Duration::from_millis(20));
                answered.store(true, Ordering::SeqCst);
                let asked = world.seats[1].inbox.lock().asked;
                world.protected(1, asked);
            });
            world.ask_protect(0, World::writer_bit(1), 0x2000);
            assert!(answered.load(Ordering::SeqCst));
        });
    }

    #[test]
    fn two_that_ask_each_other_both_go_on() {
        let world = world(2);
        std::thread::scope(|scope| {
            for n in 0..2 {
                let world = &world;
                scope.spawn(move || {
                    world.enter(n);
                    for page in 0..2000 {
                        world.ask_protect(n, !0, page << 12);
                        let asked = {
                            let mut inbox = world.seats[n].inbox.lock();
                            inbox.protect.clear();
                            inbox.asked
                        };
                        world.protected(n, asked);
                    }
                    world.leave(n);
                });
            }
        });
    }
}
