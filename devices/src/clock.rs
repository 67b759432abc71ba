//! The virtual clock and its timers: devices ask it for the time and to be called; none sleeps or asks the host.
//!
//! Two clocks stand behind the traits. [`HostClock`] follows the host's monotonic clock, less the time for which
//! the machine was paused; its timers run on one thread of its own. [`ManualClock`] moves only when it is told to, and
//! calls timers on the thread that moves it: for tests and for deterministic runs.
//!
//! Rules for users:
//! - A callback may arm and cancel any timer, its own too: no lock of the clock is held while it runs.
//! - A device may arm and cancel under its own lock; the callback may take that lock.
//! - `arm` and `cancel` do not wait for a callback that has already begun. A device therefore checks in its callback,
//!   under its own lock, whether what it waited for is due, and ignores the call if not.
//! - Callbacks hold their device weakly, or device and timer would keep each other alive.
//!
//! Locks: one mutex for the list of deadlines, a leaf. Reading the time takes no lock.
use crate::host_time::HostTime;
use parking_lot::{Condvar, Mutex, MutexGuard};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering, fence};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Guest time in nanoseconds since power-on.
pub type Nanos = u64;

/// Nanoseconds in a second.
pub const SECOND: Nanos = 1_000_000_000;

/// A clock that devices are given. `HostClock` runs with the host's monotonic clock (stopped while the machine is paused);
/// `ManualClock` is driven by tests.
pub trait Clock: Send + Sync {
    /// Guest time now.
    fn now(&self) -> Nanos;
    /// Makes a timer that calls `f` (on the event-loop thread) when its deadline passes.
    fn timer(&self, f: Box<dyn Fn() + Send + Sync>) -> Arc<dyn Timer>;
}

/// A one-shot timer.
pub trait Timer: Send + Sync {
    /// Arms the timer for `deadline`; an earlier arming is forgotten. A deadline that has passed fires at once.
    fn arm(&self, deadline: Nanos);
    /// Disarms the timer.
    fn cancel(&self);
}

/// The host's wall-clock time in nanoseconds since 1970-01-01 00:00 UTC: what a board gives to the RTC at power-on.
pub fn host_unix_nanos() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

type Callback = dyn Fn() + Send + Sync;

/// The armed timers, by deadline and then by age. A timer is in it at most once.
#[derive(Default)]
struct Deadlines {
    armed: BTreeMap<(Nanos, u64), Arc<Callback>>,
    /// What the next timer is called.
    next_id: u64,
}

impl Deadlines {
    fn first(&self) -> Option<Nanos> {
        self.armed.first_key_value().map(|((deadline, _), _)| *deadline)
    }

    /// Takes out the first timer if it is due at `now`.
    fn pop_due(&mut self, now: Nanos) -> Option<(Nanos, Arc<Callback>)> {
        let entry = self.armed.first_entry().filter(|e| e.key().0 <= now)?;
        let ((deadline, _), f) = entry.remove_entry();
        Some((deadline, f))
    }

    fn id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }
}

/// One timer's place among the deadlines: shared by both clocks.
struct Slot {
    id: u64,
    f: Arc<Callback>,
    /// The deadline under which the timer stands in the list, if it still does. Changed under the list's lock only.
    deadline: Mutex<Option<Nanos>>,
}

impl Slot {
    fn arm(&self, list: &mut Deadlines, deadline: Nanos) {
        self.cancel(list);
        list.armed.insert((deadline, self.id), self.f.clone());
        *self.deadline.lock() = Some(deadline);
    }

    fn cancel(&self, list: &mut Deadlines) {
        if let Some(old) = self.deadline.lock().take() {
            list.armed.remove(&(old, self.id));
        }
    }
}

/// The host's monotonic clock less an offset that grows by each pause. A sequence lock: readers retry when a pause or a resume
/// came in between, so that the time never jumps, and never wait.
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
                return if stopped_at == RUNNING { host.saturating_sub(offset) } else { stopped_at };
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

struct HostState {
    list: Deadlines,
    quit: bool,
}

struct HostShared {
    base: TimeBase,
    state: Mutex<HostState>,
    wake: Condvar,
}

impl HostShared {
    /// The event loop of the timer thread.
    fn run(&self) {
        let mut state = self.state.lock();
        while !state.quit {
            if self.base.is_stopped() {
                self.wake.wait(&mut state);
                continue;
            }
            let now = self.base.now();
            if let Some((_, f)) = state.list.pop_due(now) {
                MutexGuard::unlocked(&mut state, || {
                    f();
                    drop(f);
                });
                continue;
            }
            match state.list.first() {
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
/// thread named `mynah-timers`, which ends when the clock is dropped (timers armed then never fire).
pub struct HostClock {
    shared: Arc<HostShared>,
    thread: Option<JoinHandle<()>>,
}

impl HostClock {
    /// A clock that starts now, at zero. Fails if the host gives no thread.
    pub fn new() -> std::io::Result<Self> {
        let base = TimeBase {
            host: HostTime::new(),
            sequence: AtomicU64::new(0),
            offset: AtomicU64::new(0),
            stopped_at: AtomicU64::new(RUNNING),
        };
        let state = Mutex::new(HostState { list: Deadlines::default(), quit: false });
        let shared = Arc::new(HostShared { base, state, wake: Condvar::new() });
        let for_thread = shared.clone();
        let thread = std::thread::Builder::new().name("mynah-timers".into()).spawn(move || {
            ask_for_exact_wakeups();
            for_thread.run();
        })?;
        Ok(Self { shared, thread: Some(thread) })
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
            base.change(base.host.nanos().saturating_sub(at), RUNNING);
            self.shared.wake.notify_one();
        }
    }

    /// Whether the clock stands still.
    pub fn is_paused(&self) -> bool {
        self.shared.base.is_stopped()
    }
}

/// Linux rounds a thread's wake-ups by up to 50 us to save power; a guest's timers want them exact.
fn ask_for_exact_wakeups() {
    #[cfg(target_os = "linux")]
    // SAFETY: PR_SET_TIMERSLACK takes one integer (nanoseconds), touches no memory of ours, and concerns this thread only.
    unsafe {
        libc::prctl(libc::PR_SET_TIMERSLACK, 1 as libc::c_ulong);
    }
}

impl Clock for HostClock {
    fn now(&self) -> Nanos {
        self.shared.base.now()
    }

    fn timer(&self, f: Box<dyn Fn() + Send + Sync>) -> Arc<dyn Timer> {
        let id = self.shared.state.lock().list.id();
        let slot = Slot { id, f: f.into(), deadline: Mutex::new(None) };
        Arc::new(HostTimer { shared: self.shared.clone(), slot })
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
    fn arm(&self, deadline: Nanos) {
        let mut state = self.shared.state.lock();
        self.slot.arm(&mut state.list, deadline);
        if state.list.first() == Some(deadline) {
            self.shared.wake.notify_one();
        }
    }

    fn cancel(&self) {
        self.slot.cancel(&mut self.shared.state.lock().list);
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

    /// Moves the time on by `ns`, calling each timer whose deadline comes, in their order, at its deadline. A timer that was
    /// armed for the past fires here too, even with `ns` = 0 (not in `arm`, whose caller may hold its device's lock).
    pub fn advance(&self, ns: Nanos) {
        let target = self.state.lock().now.saturating_add(ns);
        loop {
            let mut state = self.state.lock();
            let Some((deadline, f)) = state.list.pop_due(target) else {
                state.now = state.now.max(target);
                return;
            };
            state.now = state.now.max(deadline);
            drop(state);
            f();
        }
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

    fn timer(&self, f: Box<dyn Fn() + Send + Sync>) -> Arc<dyn Timer> {
        let id = self.state.lock().list.id();
        let slot = Slot { id, f: f.into(), deadline: Mutex::new(None) };
        Arc::new(ManualTimer { state: self.state.clone(), slot })
    }
}

struct ManualTimer {
    state: Arc<Mutex<ManualState>>,
    slot: Slot,
}

impl Timer for ManualTimer {
    fn arm(&self, deadline: Nanos) {
        self.slot.arm(&mut self.state.lock().list, deadline);
    }

    fn cancel(&self) {
        self.slot.cancel(&mut self.state.lock().list);
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

    type Log = Arc<Mutex<Vec<(&'static str, Nanos)>>>;

    /// Makes timers that write their name and the time into a log.
    fn recorder(clock: &ManualClock) -> (Log, impl Fn(&'static str) -> Arc<dyn Timer>) {
        let log = Log::default();
        let (clock, l) = (clock.clone(), log.clone());
        (log, move |name| {
            let (log, c) = (l.clone(), clock.clone());
            clock.timer(Box::new(move || log.lock().push((name, c.now()))))
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
        let timer = clock.timer(Box::new(move || {
            let k = n.fetch_add(1, Ordering::SeqCst) + 1;
            if let Some(t) = &*o.lock() {
                t.arm(10 * (k + 1));
            }
        }));
        *own.lock() = Some(timer.clone());
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
    fn host_timers_fire_in_order_and_never_early() {
        let clock = Arc::new(HostClock::new().unwrap());
        let (tx, rx) = mpsc::channel();
        let make = |name: u32| {
            let (tx, clock) = (tx.clone(), Arc::downgrade(&clock));
            move || {
                let _ = tx.send((name, clock.upgrade().map_or(0, |c| c.now())));
            }
        };
        let (a, b) = (clock.timer(Box::new(make(1))), clock.timer(Box::new(make(2))));
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
        let clock = HostClock::new().unwrap();
        clock.pause();
        let at = clock.now();
        let (tx, rx) = mpsc::channel();
        let timer = clock.timer(Box::new(move || {
            let _ = tx.send(());
        }));
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
        let clock = HostClock::new().unwrap();
        let held = Arc::new(());
        let in_callback = held.clone();
        let timer = clock.timer(Box::new(move || {
            let _ = &in_callback;
        }));
        timer.arm(u64::MAX);
        let shared = Arc::downgrade(&clock.shared);
        drop(clock);
        drop(timer);
        assert_eq!(shared.strong_count(), 0);
        assert_eq!(Arc::strong_count(&held), 1);
    }
}
