//! The virtual clock and its timers: devices ask it for the time and to be called; none sleeps or asks the host.
//!
//! Two clocks stand behind the traits. [`HostClock`] follows the host's monotonic clock, less the time for which
//! the machine was paused. Its timers are called by a thread of its own, or, if the host lets that thread come late, by
//! whoever reads the time for a guest ([`Clock::catch_up`]): a guest never sees a time by which a timer should have run
//! out that has not. [`ManualClock`] moves only when it is told to, and calls timers on the thread that moves it: for
//! tests and for deterministic runs.
//!
//! Rules for users:
//! - A callback may arm and cancel any timer, its own too: no lock of the clock is held while it runs.
//! - A device may arm and cancel under its own lock; the callback may take that lock.
//! - `arm` and `cancel` do not wait for a callback that has already begun. A device therefore checks in its callback,
//!   under its own lock, whether what it waited for is due, and ignores the call if not.
//! - A timer is its owner and a deadline, no more: so it can be saved with its owner, and armed again when that is
//!   restored.
//! - The clock holds owners weakly, or device and timer would keep each other alive.
//!
//! Locks: one mutex for the list of deadlines, a leaf; one held by whoever calls timers, outermost. Reading the time
//! takes no lock.
use crate::host_time::HostTime;
use parking_lot::{Condvar, Mutex, MutexGuard};
use std::cell::Cell;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering, fence};
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Guest time in nanoseconds since power-on.
pub type Nanos = u64;

/// No machine runs for as long as this, 73 years: times of a saved machine are within it, on either side of zero.
pub(crate) const LONGEST: Nanos = 1 << 61;

/// Nanoseconds in a second.
pub const SECOND: Nanos = 1_000_000_000;

/// A clock that devices are given. `HostClock` runs with the host's monotonic clock (stopped while the machine is
/// paused); `ManualClock` is driven by tests.
pub trait Clock: Send + Sync {
    /// Guest time now.
    fn now(&self) -> Nanos;
    /// Makes a timer. When its deadline passes [`TimerOwner::expired`] is called, on the clock's thread or on one that
    /// is in
    /// [`Clock::catch_up`].
    fn timer(&self, owner: Weak<dyn TimerOwner>) -> Arc<dyn Timer>;
    /// Returns when all timers that are due have been called. For a vCPU's thread, before it shows its guest what
    /// depends on the time; no lock that a callback takes may be held.
    fn catch_up(&self) {}
}

/// Whom a timer calls.
pub trait TimerOwner: Send + Sync {
    /// A timer has run out: it may be one that was armed anew or disarmed just now, which the owner tells by its own
    /// state.
    fn expired(&self);
}

/// A one-shot timer: whose it is, and its deadline.
pub trait Timer: Send + Sync {
    /// Arms the timer for `deadline`, or disarms it; an earlier arming is forgotten. A deadline that has passed fires
    /// at once.
    fn set(&self, deadline: Option<Nanos>);
    /// The deadline that the timer is armed for.
    fn deadline(&self) -> Option<Nanos>;
    /// Arms the timer for `deadline`.
    fn arm(&self, deadline: Nanos) {
        self.set(Some(deadline));
    }
    /// Disarms the timer.
    fn cancel(&self) {
        self.set(None);
    }
}

/// The host's wall-clock time in nanoseconds since 1970-01-01 00:00 UTC: what a board gives to the RTC at power-on.
pub fn host_unix_nanos() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

/// The armed timers, by deadline and then by age. A timer is in it at most once.
#[derive(Default)]
struct Deadlines {
    armed: BTreeMap<(Nanos, u64), Weak<dyn TimerOwner>>,
    /// What the next timer is called.
    next_id: u64,
}

impl Deadlines {
    fn first(&self) -> Option<Nanos> {
        self.armed.first_key_value().map(|((deadline, _), _)| *deadline)
    }

    /// Takes out the first timer if it is due at `now`.
    fn pop_due(&mut self, now: Nanos) -> Option<(Nanos, Weak<dyn TimerOwner>)> {
        let entry = self.armed.first_entry().filter(|e| e.key().0 <= now)?;
        let ((deadline, _), owner) = entry.remove_entry();
        Some((deadline, owner))
    }

    fn id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }
}

/// One timer's place among the deadlines: shared by both clocks.
struct Slot {
    id: u64,
    owner: Weak<dyn TimerOwner>,
    /// The deadline under which the timer stands in the list, if it still does. Changed under the list's lock only.
    deadline: Mutex<Option<Nanos>>,
}

impl Slot {
    fn set(&self, list: &mut Deadlines, deadline: Option<Nanos>) {
        if let Some(old) = std::mem::replace(&mut *self.deadline.lock(), deadline) {
            list.armed.remove(&(old, self.id));
        }
        if let Some(deadline) = deadline {
            list.armed.insert((deadline, self.id), self.owner.clone());
        }
    }

    /// The deadline, if it is still to come.
    fn deadline(&self, list: &Deadlines) -> Option<Nanos> {
        self.deadline.lock().filter(|deadline| list.armed.contains_key(&(*deadline, self.id)))
    }
}

/// The host's monotonic clock less an offset that grows by each pause (below zero in a machine that has run before, on
/// another host). A sequence lock: readers retry when a pause or a resume came in between, so that the time never
/// jumps, and never wait.
struct TimeBase {
    host: HostTime,
    /// Odd while the two fields below change.
    sequence: AtomicU64,
    offset: AtomicU64,
    /// The guest time at which the clock stands still; `RUNNING` while it runs.
    stopped_at: AtomicU64,
}

const RUNNING: u64 = u64::MAX;

impl TimeBase {
    fn now(&self) -> Nanos {
        loop {
            let before = self.sequence.load(Ordering::Acquire);
            let offset = self.offset.load(Ordering::Relaxed);
            let stopped_at = self.stopped_at.load(Ordering::Relaxed);
            let host = if stopped_at == RUNNING { self.host.nanos() } else { 0 };
            fence(Ordering::Acquire);
            if before & 1 == 0 && self.sequence.load(Ordering::Relaxed) == before {
                let running = || host.wrapping_sub(offset).cast_signed().max(0).cast_unsigned();
                return if stopped_at == RUNNING { running() } else { stopped_at };
            }
            std::hint::spin_loop();
        }
    }

    /// Changes the fields; writers are serialised by the lock of the deadlines.
    fn change(&self, offset: u64, stopped_at: u64) {
        self.sequence.fetch_add(1, Ordering::AcqRel);
        fence(Ordering::Release);
        self.offset.store(offset, Ordering::Relaxed);
        self.stopped_at.store(stopped_at, Ordering::Relaxed);
        self.sequence.fetch_add(1, Ordering::Release);
    }

    fn is_stopped(&self) -> bool {
        self.stopped_at.load(Ordering::Relaxed) != RUNNING
    }
}

#[derive(Default)]
struct HostState {
    list: Deadlines,
    /// The deadline of the timer that is being called.
    calling: Option<Nanos>,
    /// Until when the clock's thread sleeps, if it does: whoever wants it earlier wakes it, and nobody else.
    sleeps_until: Option<Nanos>,
    quit: bool,
}

struct HostShared {
    base: TimeBase,
    state: Mutex<HostState>,
    wake: Condvar,
    /// The earliest deadline of a timer whose call has not ended; `u64::MAX` if there is none. Changed under the lock
    /// of `state`.
    next: AtomicU64,
    /// Held while timers are called: one at a time, by one thread at a time.
    turn: Mutex<()>,
}

thread_local! {
    /// This thread calls timers just now, and must not wait for its own turn.
    static CALLS_TIMERS: Cell<bool> = const { Cell::new(false) };
}

impl HostShared {
    /// To be called after each change of the deadlines.
    fn publish(&self, state: &HostState) {
        let next = state.list.first().into_iter().chain(state.calling).min();
        self.next.store(next.unwrap_or(u64::MAX), Ordering::Release);
    }

    fn is_due(&self, now: Nanos) -> bool {
        self.next.load(Ordering::Acquire) <= now
    }

    /// Calls the timers that are due; those that another thread has begun to call have been called when this returns.
    #[cold]
    fn call_due(&self) {
        if CALLS_TIMERS.get() {
            return;
        }
        let _turn = self.turn.lock();
        struct Calls;
        impl Drop for Calls {
            fn drop(&mut self) {
                CALLS_TIMERS.set(false);
            }
        }
        CALLS_TIMERS.set(true);
        let _calls = Calls;
        // What falls due meanwhile is the next one's concern: a timer that is always late must not keep a vCPU here.
        let now = self.base.now();
        let mut state = self.state.lock();
        // Should a callback have panicked, nobody waits for its end.
        state.calling = None;
        while !state.quit && !self.base.is_stopped() {
            let Some((deadline, owner)) = state.list.pop_due(now) else { break };
            state.calling = Some(deadline);
            MutexGuard::unlocked(&mut state, || {
                if let Some(owner) = owner.upgrade() {
                    owner.expired();
                }
            });
            state.calling = None;
        }
        self.publish(&state);
    }

    /// The event loop of the timer thread.
    fn run(&self) {
        let mut state = self.state.lock();
        while !state.quit {
            state.sleeps_until = None;
            if self.base.is_stopped() {
                state.sleeps_until = Some(Nanos::MAX);
                self.wake.wait(&mut state);
                continue;
            }
            let now = self.base.now();
            if self.is_due(now) {
                MutexGuard::unlocked(&mut state, || self.call_due());
                continue;
            }
            let first = state.list.first();
            state.sleeps_until = Some(first.unwrap_or(Nanos::MAX));
            match first {
                None => self.wake.wait(&mut state),
                Some(deadline) => {
                    let wait = Duration::from_nanos(deadline.saturating_sub(now).min(3600 * SECOND));
                    self.wake.wait_for(&mut state, wait);
                }
            }
        }
    }
}

/// Guest time that runs with the host's monotonic clock, and stands still while paused. Its timers are called on a
/// thread named `mynah-timers`, if no other comes first ([`Clock::catch_up`]); it ends when the clock is dropped
/// (timers armed then never fire).
pub struct HostClock {
    shared: Arc<HostShared>,
    thread: Option<JoinHandle<()>>,
}

impl HostClock {
    /// A clock that starts now, at zero. Fails if the host gives no thread.
    pub fn new() -> std::io::Result<Self> {
        let mut clock = Self::without_thread();
        let shared = clock.shared.clone();
        clock.thread = Some(std::thread::Builder::new().name("mynah-timers".into()).spawn(move || {
            ask_for_exact_wakeups();
            shared.run();
        })?);
        Ok(clock)
    }

    /// A clock whose own thread never comes.
    fn without_thread() -> Self {
        let base = TimeBase {
            host: HostTime::new(),
            sequence: AtomicU64::new(0),
            offset: AtomicU64::new(0),
            stopped_at: AtomicU64::new(RUNNING),
        };
        let state = Mutex::new(HostState::default());
        let (wake, next, turn) = (Condvar::new(), AtomicU64::new(u64::MAX), Mutex::new(()));
        Self { shared: Arc::new(HostShared { base, state, wake, next, turn }), thread: None }
    }

    /// The time for a guest: all timers of before then have been called.
    pub fn now_for_guest(&self) -> Nanos {
        let now = self.shared.base.now();
        if self.shared.is_due(now) {
            self.shared.call_due();
        }
        now
    }

    /// Stops guest time: [`Clock::now`] stands still and no timer fires until [`HostClock::resume`].
    pub fn pause(&self) {
        let _state = self.shared.state.lock();
        let base = &self.shared.base;
        if !base.is_stopped() {
            let now = base.now();
            base.change(base.offset.load(Ordering::Relaxed), now);
        }
    }

    /// Lets guest time go on from where it was paused.
    pub fn resume(&self) {
        let _state = self.shared.state.lock();
        let base = &self.shared.base;
        if base.is_stopped() {
            let at = base.stopped_at.load(Ordering::Relaxed);
            base.change(base.host.nanos().wrapping_sub(at), RUNNING);
            self.shared.wake.notify_one();
        }
    }

    /// To be called while the clock is paused: returns when no timer's owner is being called any more. No lock that an
    /// owner takes may be held.
    pub fn wait_still(&self) {
        if !CALLS_TIMERS.get() {
            drop(self.shared.turn.lock());
        }
    }

    /// Sets the time of a paused clock: that of a machine that is being restored, before anything of it is.
    pub fn set_paused_at(&self, now: Nanos) {
        let _state = self.shared.state.lock();
        let base = &self.shared.base;
        if base.is_stopped() {
            base.change(base.offset.load(Ordering::Relaxed), now.min(RUNNING - 1));
        }
    }

    /// Whether the clock stands still.
    pub fn is_paused(&self) -> bool {
        self.shared.base.is_stopped()
    }
}

/// Hosts round wake-ups to save power, Linux a thread's by up to 50 us; a guest's timers want them exact.
fn ask_for_exact_wakeups() {
    #[cfg(target_os = "linux")]
    // SAFETY: PR_SET_TIMERSLACK takes one integer (nanoseconds), touches no memory of ours, and concerns this thread
    // only.
    unsafe {
        libc::prctl(libc::PR_SET_TIMERSLACK, 1 as libc::c_ulong);
    }
    // Windows wakes by a tick of 15.6 ms unless a process asks for another, for as long as it lives.
    #[cfg(windows)]
    // SAFETY: it takes a number of milliseconds.
    unsafe {
        windows_sys::Win32::Media::timeBeginPeriod(1);
    }
}

impl Clock for HostClock {
    fn now(&self) -> Nanos {
        self.shared.base.now()
    }

    fn timer(&self, owner: Weak<dyn TimerOwner>) -> Arc<dyn Timer> {
        let id = self.shared.state.lock().list.id();
        let slot = Slot { id, owner, deadline: Mutex::new(None) };
        Arc::new(HostTimer { shared: self.shared.clone(), slot })
    }

    fn catch_up(&self) {
        self.now_for_guest();
    }
}

impl Drop for HostClock {
    fn drop(&mut self) {
        self.shared.state.lock().quit = true;
        self.shared.wake.notify_one();
        if let Some(thread) = self.thread.take().filter(|t| t.thread().id() != std::thread::current().id()) {
            // A callback that panicked has said so on stderr already.
            let _ = thread.join();
        }
    }
}

struct HostTimer {
    shared: Arc<HostShared>,
    slot: Slot,
}

impl Timer for HostTimer {
    fn set(&self, deadline: Option<Nanos>) {
        let mut state = self.shared.state.lock();
        self.slot.set(&mut state.list, deadline);
        self.shared.publish(&state);
        // One that sleeps too short looks again by itself: guests mostly move their timers further away.
        if deadline.is_some_and(|at| state.sleeps_until.is_some_and(|until| at < until)) {
            state.sleeps_until = None;
            self.shared.wake.notify_one();
        }
    }

    fn deadline(&self) -> Option<Nanos> {
        self.slot.deadline(&self.shared.state.lock().list)
    }
}

impl Drop for HostTimer {
    fn drop(&mut self) {
        self.cancel();
    }
}

#[derive(Default)]
struct ManualState {
    now: Nanos,
    list: Deadlines,
}

/// A clock that moves only by [`ManualClock::advance`]. Clones are the same clock.
#[derive(Clone, Default)]
pub struct ManualClock {
    state: Arc<Mutex<ManualState>>,
}

impl ManualClock {
    /// A clock that stands at zero.
    pub fn new() -> Self {
        Self::default()
    }

    /// Moves the time on by `ns`, calling each timer whose deadline comes, in their order, at its deadline. A timer
    /// that was armed for the past fires here too, even with `ns` = 0 (not in `arm`, whose caller may hold its device's
    /// lock).
    pub fn advance(&self, ns: Nanos) {
        let target = self.state.lock().now.saturating_add(ns);
        loop {
            let mut state = self.state.lock();
            let Some((deadline, owner)) = state.list.pop_due(target) else {
                state.now = state.now.max(target);
                return;
            };
            state.now = state.now.max(deadline);
            drop(state);
            if let Some(owner) = owner.upgrade() {
                owner.expired();
            }
        }
    }

    /// Moves the time on by `ns` and calls no timer, as when the host is late: the next [`Clock::catch_up`] or
    /// [`ManualClock::advance`] calls them.
    pub fn jump(&self, ns: Nanos) {
        let mut state = self.state.lock();
        state.now = state.now.saturating_add(ns);
    }

    /// The earliest armed deadline.
    pub fn next_deadline(&self) -> Option<Nanos> {
        self.state.lock().list.first()
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Nanos {
        self.state.lock().now
    }

    fn timer(&self, owner: Weak<dyn TimerOwner>) -> Arc<dyn Timer> {
        let id = self.state.lock().list.id();
        let slot = Slot { id, owner, deadline: Mutex::new(None) };
        Arc::new(ManualTimer { state: self.state.clone(), slot })
    }

    fn catch_up(&self) {
        self.advance(0);
    }
}

struct ManualTimer {
    state: Arc<Mutex<ManualState>>,
    slot: Slot,
}

impl Timer for ManualTimer {
    fn set(&self, deadline: Option<Nanos>) {
        self.slot.set(&mut self.state.lock().list, deadline);
    }

    fn deadline(&self) -> Option<Nanos> {
        self.slot.deadline(&self.state.lock().list)
    }
}

impl Drop for ManualTimer {
    fn drop(&mut self) {
        self.cancel();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    /// A timer that calls a function, and its owner.
    struct Calls(Arc<dyn Timer>, #[allow(dead_code)] Arc<dyn TimerOwner>);

    impl std::ops::Deref for Calls {
        type Target = dyn Timer;
        fn deref(&self) -> &Self::Target {
            &*self.0
        }
    }

    fn calls(clock: &dyn Clock, f: impl Fn() + Send + Sync + 'static) -> Calls {
        struct Owner<F>(F);
        impl<F: Fn() + Send + Sync> TimerOwner for Owner<F> {
            fn expired(&self) {
                (self.0)();
            }
        }
        let owner: Arc<dyn TimerOwner> = Arc::new(Owner(f));
        Calls(clock.timer(Arc::downgrade(&owner)), owner)
    }

    type Log = Arc<Mutex<Vec<(&'static str, Nanos)>>>;

    /// Makes timers that write their name and the time into a log.
    fn recorder(clock: &ManualClock) -> (Log, impl Fn(&'static str) -> Calls) {
        let log = Log::default();
        let (clock, l) = (clock.clone(), log.clone());
        (log, move |name| {
            let (log, c) = (l.clone(), clock.clone());
            calls(&clock, move || log.lock().push((name, c.now())))
        })
    }

    #[test]
    fn manual_timers_fire_in_the_order_of_their_deadlines_at_their_time() {
        let clock = ManualClock::new();
        let (log, timer) = recorder(&clock);
        let (a, b, c) = (timer("a"), timer("b"), timer("c"));
        a.arm(300);
        b.arm(100);
        c.arm(301);
        clock.advance(300);
        assert_eq!(*log.lock(), [("b", 100), ("a", 300)]);
        assert_eq!(clock.now(), 300);
        assert_eq!(clock.next_deadline(), Some(301));
    }

    #[test]
    fn rearming_forgets_the_earlier_deadline_and_cancel_forgets_all() {
        let clock = ManualClock::new();
        let (log, timer) = recorder(&clock);
        let (a, b) = (timer("a"), timer("b"));
        a.arm(10);
        a.arm(50);
        b.arm(20);
        b.cancel();
        clock.advance(100);
        assert_eq!(*log.lock(), [("a", 50)]);
        a.arm(5);
        assert_eq!(log.lock().len(), 1, "a past deadline must not call back inside arm");
        clock.advance(0);
        assert_eq!(*log.lock(), [("a", 50), ("a", 100)]);
    }

    #[test]
    fn a_callback_may_rearm_its_own_timer() {
        let clock = ManualClock::new();
        let count = Arc::new(AtomicU64::new(0));
        let own: Arc<Mutex<Option<Arc<dyn Timer>>>> = Arc::default();
        let (n, o) = (count.clone(), own.clone());
        let timer = calls(&clock, move || {
            let k = n.fetch_add(1, Ordering::SeqCst) + 1;
            if let Some(t) = &*o.lock() {
                t.arm(10 * (k + 1));
            }
        });
        *own.lock() = Some(timer.0.clone());
        timer.arm(10);
        clock.advance(100);
        assert_eq!(count.load(Ordering::SeqCst), 10);
        own.lock().take();
    }

    #[test]
    fn a_dropped_timer_does_not_fire() {
        let clock = ManualClock::new();
        let (log, timer) = recorder(&clock);
        timer("gone").arm(1);
        clock.advance(10);
        assert!(log.lock().is_empty());
    }

    #[test]
    fn a_guest_sees_no_time_by_which_a_timer_should_have_run_out() {
        // The clock's thread never comes, as on a host that is busy with something else.
        let clock = Arc::new(HostClock::without_thread());
        let called = Arc::new(Mutex::new(Vec::new()));
        let timers: Vec<_> = (0..8u64)
            .map(|n| {
                let called = called.clone();
                let timer = calls(&*clock, move || called.lock().push(n));
                timer.arm(1_000_000 * (8 - n));
                timer
            })
            .collect();
        loop {
            let now = clock.now_for_guest();
            let due = (0..8u64).rev().filter(|n| 1_000_000 * (8 - n) <= now).collect::<Vec<_>>();
            assert!(called.lock().starts_with(&due), "at {now}: {called:?}");
            if due.len() == 8 {
                break;
            }
        }
        timers[3].arm(0);
        clock.pause();
        clock.catch_up();
        assert_eq!(called.lock().len(), 8, "no timer runs while the clock stands still");
        clock.resume();
        clock.catch_up();
        assert_eq!(called.lock()[8..], [3]);
    }

    #[test]
    fn a_guest_waits_for_a_timer_that_the_clocks_thread_has_begun_to_call() {
        let clock = Arc::new(HostClock::new().unwrap());
        let (begun, hears) = mpsc::channel();
        let done = Arc::new(AtomicU64::new(0));
        let set = done.clone();
        let timer = calls(&*clock, move || {
            begun.send(()).unwrap();
            std::thread::sleep(Duration::from_millis(50));
            set.store(1, Ordering::SeqCst);
        });
        timer.arm(0);
        hears.recv().unwrap();
        // Another timer comes and goes in between: the one that is being called stays due.
        let other = calls(&*clock, || ());
        other.arm(u64::MAX);
        drop(other);
        clock.catch_up();
        assert_eq!(done.load(Ordering::SeqCst), 1);
    }

    #[test]
    fn the_clock_s_thread_is_woken_by_who_wants_it_earlier_and_by_nobody_else() {
        const LATER: Nanos = 3_000 * SECOND;
        let clock = HostClock::new().unwrap();
        let (tell, told) = mpsc::channel();
        let timer = calls(&clock, move || tell.send(()).unwrap());
        let sleeps_until = |at: Option<Nanos>| {
            while clock.shared.state.lock().sleeps_until != at {
                std::thread::yield_now();
            }
        };
        sleeps_until(Some(Nanos::MAX));
        timer.arm(LATER);
        sleeps_until(Some(LATER));
        // What is further away leaves it asleep.
        timer.arm(2 * LATER);
        assert_eq!(clock.shared.state.lock().sleeps_until, Some(LATER));
        for _ in 0..100 {
            timer.arm(clock.now() + 100_000);
            told.recv_timeout(Duration::from_secs(60)).expect("it is called when its time has come");
            sleeps_until(Some(Nanos::MAX));
            timer.arm(LATER);
        }
    }

    #[test]
    fn a_callback_may_ask_to_catch_up() {
        let clock = Arc::new(HostClock::new().unwrap());
        let (tx, rx) = mpsc::channel();
        let own = Arc::downgrade(&clock);
        let timer = calls(&*clock, move || {
            if let Some(clock) = own.upgrade() {
                clock.catch_up();
            }
            tx.send(()).unwrap();
        });
        timer.arm(0);
        rx.recv().unwrap();
    }

    #[test]
    fn host_timers_fire_in_order_and_never_early() {
        let clock = Arc::new(HostClock::new().unwrap());
        let (tx, rx) = mpsc::channel();
        let make = |name: u32| {
            let (tx, clock) = (tx.clone(), Arc::downgrade(&clock));
            move || {
                let _ = tx.send((name, clock.upgrade().map_or(0, |c| c.now())));
            }
        };
        let (a, b) = (calls(&*clock, make(1)), calls(&*clock, make(2)));
        let t0 = clock.now();
        a.arm(t0 + 4_000_000);
        b.arm(t0 + 2_000_000);
        let first = rx.recv().unwrap();
        let second = rx.recv().unwrap();
        assert_eq!((first.0, second.0), (2, 1));
        assert!(first.1 >= t0 + 2_000_000 && second.1 >= t0 + 4_000_000);
        a.arm(0);
        assert_eq!(rx.recv().unwrap().0, 1, "a deadline in the past fires at once");
    }

    #[test]
    fn a_paused_host_clock_stands_still_and_goes_on_where_it_stopped() {
        let clock = Arc::new(HostClock::new().unwrap());
        clock.pause();
        let at = clock.now();
        let (tx, rx) = mpsc::channel();
        let timer = calls(&*clock, move || {
            let _ = tx.send(());
        });
        timer.arm(at);
        assert!(rx.recv_timeout(Duration::from_millis(5)).is_err(), "no timer fires while paused");
        assert_eq!(clock.now(), at);
        assert!(clock.is_paused());
        clock.resume();
        rx.recv().unwrap();
        assert!(clock.now() >= at);
    }

    #[test]
    fn dropping_the_host_clock_ends_its_thread() {
        let clock = Arc::new(HostClock::new().unwrap());
        let held = Arc::new(());
        let in_callback = held.clone();
        let timer = calls(&*clock, move || {
            let _ = &in_callback;
        });
        timer.arm(u64::MAX);
        let shared = Arc::downgrade(&clock.shared);
        drop(clock);
        drop(timer);
        assert_eq!(shared.strong_count(), 0);
        assert_eq!(Arc::strong_count(&held), 1);
    }

    #[test]
    fn a_timer_tells_what_it_is_armed_for_until_that_has_come() {
        let clock = ManualClock::new();
        let timer = calls(&clock, || ());
        assert_eq!(timer.deadline(), None);
        timer.arm(30);
        timer.set(Some(20));
        assert_eq!(timer.deadline(), Some(20));
        clock.advance(20);
        assert_eq!(timer.deadline(), None);
        timer.arm(50);
        timer.cancel();
        assert_eq!((timer.deadline(), clock.next_deadline()), (None, None));
    }

    #[test]
    fn a_paused_clock_takes_the_time_of_another_machine_and_goes_on_from_there() {
        const YEAR: Nanos = 365 * 86_400 * SECOND;
        let clock = Arc::new(HostClock::new().unwrap());
        let (tx, rx) = mpsc::channel();
        let timer = calls(&*clock, move || tx.send(()).unwrap());
        clock.pause();
        // A machine that has run for longer than this host, then one that has just begun.
        for at in [YEAR, SECOND] {
            clock.set_paused_at(at);
            timer.arm(at + 1_000_000);
            assert_eq!(clock.now(), at);
            clock.resume();
            rx.recv().unwrap();
            clock.pause();
            clock.wait_still();
            assert!((at + 1_000_000..at + 3600 * SECOND).contains(&clock.now()));
        }
    }
}
