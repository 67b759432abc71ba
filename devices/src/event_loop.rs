//! The event loop: one thread, `mynah-events`, for what comes from the host: descriptors that can be read or written,
//! deadlines, and work that was finished elsewhere.
//!
//! ```text
//!   descriptor --epoll, kqueue, IOCP--+
//!   Timer (host time) ----------------+--> mynah-events --> Source::ready, TimedSource::due, what was posted
//!   EventLoop::post, any thread ------+
//! ```
//!
//! Rules for users:
//! - A callback must not wait: not for a descriptor, a disk, a vCPU or a lock that somebody holds while he waits. What
//!   has to wait is done on another thread, which posts what is to follow.
//! - A callback does a bounded piece of work. In each turn of the loop each source that is ready, each timer that is
//!   due and what had been posted by then come once, so that none of them keeps the others waiting.
//! - Interest is for one call: a source that is ready is told so once, and says what it waits for next
//!   ([`Registration::want`]). A call may come for nothing, as when the other side hangs up.
//! - The loop holds sources and owners of timers weakly. Dropping a [`Registration`] or a [`Timer`] ends what it
//!   stands for; it does not wait for a callback that has already begun.
//! - A callback that panics has its source forgotten; the panic's hook ends the machine as that of any thread.
//!
//! The loop ends with the last who holds it. It is the host's side and does not stop with the machine: guest time has
//! its own timers (`clock`), on a thread that is woken a little faster and that no console's callback delays.
//!
//! Locks: one mutex for what there is to do, a leaf; none is held while anything is called.
use parking_lot::Mutex;
use polling::{Event, Events, Poller};
use std::collections::{BTreeMap, HashMap};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, OnceLock, Weak};
use std::thread::{self, JoinHandle, ThreadId};
use std::time::Instant;

pub use crate::descriptor::Descriptor;
#[cfg(windows)]
pub use crate::descriptor::Handle;

/// What has come from another thread.
type Job = Box<dyn FnOnce() + Send>;

/// Who is behind a descriptor.
pub trait Source: Send + Sync {
    /// The descriptor can be read or written without waiting, or has failed; it is not waited for any longer.
    fn ready(&self, readable: bool, writable: bool);
}

/// Whose a timer is.
pub trait TimedSource: Send + Sync {
    /// A timer has run out: it may be one that was set anew just now, which the owner tells by its own state.
    fn due(&self);
}

#[derive(Default)]
struct State {
    sources: HashMap<usize, Weak<dyn Source>>,
    /// By deadline, then by age.
    timers: BTreeMap<(Instant, usize), Weak<dyn TimedSource>>,
    posted: Vec<Job>,
    /// Until when the loop waits, if it does and no longer than that.
    waits_until: Option<Instant>,
    /// The loop looks at the timers before it waits.
    looks: bool,
    /// What the next source or timer is called. A number is used once: what is still on its way to one that is gone
    /// finds nobody.
    next: usize,
    ended: bool,
}

struct Shared {
    poller: Poller,
    state: Mutex<State>,
    thread: OnceLock<ThreadId>,
}

/// The loop and its thread.
pub struct EventLoop {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

/// A descriptor that the loop waits for, until this is dropped.
pub struct Registration {
    shared: Arc<Shared>,
    key: usize,
    descriptor: Descriptor,
}

/// A one-shot timer in host time: whose it is, and its deadline.
pub struct Timer {
    shared: Arc<Shared>,
    id: usize,
    owner: Weak<dyn TimedSource>,
    /// Under which it stands in the list, if it does. Changed under the list's lock only.
    deadline: Mutex<Option<Instant>>,
}

impl EventLoop {
    /// Starts a loop. Fails if the host gives no thread or nothing to wait with.
    pub fn new() -> io::Result<Self> {
        let (poller, state) = (Poller::new()?, Mutex::default());
        let shared = Arc::new(Shared { poller, state, thread: OnceLock::new() });
        let theirs = shared.clone();
        let thread = thread::Builder::new().name("mynah-events".into()).spawn(move || theirs.run())?;
        let _ = shared.thread.set(thread.thread().id());
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Waits for `descriptor` on behalf of `source`: for input if `read`, for room for output if `write`. Fails for
    /// what cannot be waited for, on Linux a regular file or /dev/null (EPERM, `epoll_ctl(2)`), on Windows all but
    /// sockets.
    pub fn add(
        &self,
        descriptor: &Descriptor,
        source: Weak<dyn Source>,
        read: bool,
        write: bool,
    ) -> io::Result<Registration> {
        let key = {
            let mut state = self.shared.state.lock();
            let key = state.name();
            state.sources.insert(key, source);
            key
        };
        // Made first, so that a failure takes the source out again.
        let made = Registration { shared: self.shared.clone(), key, descriptor: descriptor.clone() };
        #[cfg(unix)]
        let raw = std::os::fd::AsRawFd::as_raw_fd(&source_of(descriptor)?);
        #[cfg(windows)]
        let raw = std::os::windows::io::AsRawSocket::as_raw_socket(&source_of(descriptor)?);
        // SAFETY: the registration owns the descriptor with us, and deletes it from the poller before it lets go.
        unsafe { self.shared.poller.add(raw, Event::new(key, read, write)) }?;
        Ok(made)
    }

    /// Whether `descriptor` can be waited for.
    pub fn can_wait_for(&self, descriptor: &Descriptor) -> bool {
        struct Nobody;
        impl Source for Nobody {
            fn ready(&self, _: bool, _: bool) {}
        }
        self.add(descriptor, Weak::<Nobody>::new(), false, false).is_ok()
    }

    /// Makes a timer of `owner`.
    pub fn timer(&self, owner: Weak<dyn TimedSource>) -> Timer {
        let id = self.shared.state.lock().name();
        Timer { shared: self.shared.clone(), id, owner, deadline: Mutex::new(None) }
    }

    /// Has the loop's thread call `job`, after what was posted before. It is dropped uncalled if the loop has ended.
    pub fn post(&self, job: impl FnOnce() + Send + 'static) {
        let job: Job = Box::new(job);
        {
            let mut state = self.shared.state.lock();
            if !state.ended {
                state.posted.push(job);
                if state.posted.len() > 1 {
                    // Whoever posted the first has seen to it.
                    return;
                }
                drop(state);
                self.shared.wake();
                return;
            }
        }
        // Without the lock: what it holds may have something to say to the loop when it goes.
        drop(job);
    }

    /// Whether the caller is called by the loop.
    pub fn is_own_thread(&self) -> bool {
        self.shared.is_own_thread()
    }
}

impl Drop for EventLoop {
    fn drop(&mut self) {
        self.shared.state.lock().ended = true;
        let _ = self.shared.poller.notify();
        if let Some(thread) = self.thread.take().filter(|_| !self.is_own_thread()) {
            let _ = thread.join();
        }
    }
}

/// What the poller knows it by.
#[cfg(unix)]
fn source_of(descriptor: &Descriptor) -> io::Result<std::os::fd::BorrowedFd<'_>> {
    Ok(descriptor.source())
}

/// What the poller knows it by, if it can be waited for.
#[cfg(windows)]
fn source_of(descriptor: &Descriptor) -> io::Result<std::os::windows::io::BorrowedSocket<'_>> {
    descriptor.socket().ok_or_else(|| io::ErrorKind::Unsupported.into())
}

impl Registration {
    /// What is waited for from now on, for one call of [`Source::ready`].
    pub fn want(&self, read: bool, write: bool) -> io::Result<()> {
        self.shared.poller.modify(source_of(&self.descriptor)?, Event::new(self.key, read, write))
    }

    /// What is waited for.
    pub fn descriptor(&self) -> &Descriptor {
        &self.descriptor
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.shared.state.lock().sources.remove(&self.key);
        // It was never added if that has failed, which is why this is dropped.
        if let Ok(source) = source_of(&self.descriptor) {
            let _ = self.shared.poller.delete(source);
        }
    }
}

impl Timer {
    /// Sets the deadline, or cancels the timer; an earlier one is forgotten. One that has passed is due at once.
    pub fn set(&self, deadline: Option<Instant>) {
        let mut state = self.shared.state.lock();
        if let Some(old) = std::mem::replace(&mut *self.deadline.lock(), deadline) {
            state.timers.remove(&(old, self.id));
        }
        let Some(deadline) = deadline.filter(|_| !state.ended) else { return };
        state.timers.insert((deadline, self.id), self.owner.clone());
        // A loop that waits too short looks again by itself.
        if !state.looks && state.waits_until.is_none_or(|until| deadline < until) {
            drop(state);
            self.shared.wake();
        }
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        self.set(None);
    }
}

impl State {
    fn name(&mut self) -> usize {
        self.next += 1;
        self.next
    }

    /// Takes out the first timer if it is due at `now`.
    fn pop_due(&mut self, now: Instant) -> Option<Weak<dyn TimedSource>> {
        let entry = self.timers.first_entry().filter(|e| e.key().0 <= now)?;
        Some(entry.remove())
    }
}

impl Shared {
    fn is_own_thread(&self) -> bool {
        self.thread.get() == Some(&thread::current().id())
    }

    /// Has the loop look at its state; its own thread does so before it waits.
    fn wake(&self) {
        if !self.is_own_thread() {
            // It fails only when the host has no memory for a number.
            let _ = self.poller.notify();
        }
    }

    fn run(&self) {
        let mut events = Events::new();
        loop {
            let deadline = {
                let mut state = self.state.lock();
                if state.ended {
                    break;
                }
                // With work left, what is ready is only looked for.
                let deadline = if !state.posted.is_empty() {
                    Some(Instant::now())
                } else {
                    state.timers.first_key_value().map(|((deadline, _), _)| *deadline)
                };
                (state.looks, state.waits_until) = (false, deadline);
                deadline
            };
            events.clear();
            let found = match deadline {
                Some(deadline) => self.poller.wait_deadline(&mut events, deadline),
                None => self.poller.wait(&mut events, None),
            };
            if let Err(e) = found {
                panic!("the host does not tell what is ready: {e}");
            }
            self.turn(&events);
        }
        // Dropped without the lock, as what goes may cancel and deregister.
        let nothing = State { ended: true, ..State::default() };
        let left = std::mem::replace(&mut *self.state.lock(), nothing);
        drop(left);
    }

    /// One turn: the timers that are due, the sources that are ready, what has been posted; each once.
    fn turn(&self, events: &Events) {
        let now = Instant::now();
        // One at a time, as each may cancel others; no more than there are now, as each may be set anew.
        let due = {
            let mut state = self.state.lock();
            state.looks = true;
            state.timers.range(..=(now, usize::MAX)).count()
        };
        for _ in 0..due {
            let Some(owner) = self.state.lock().pop_due(now) else { break };
            call(|| owner.upgrade().inspect(|owner| owner.due()));
        }
        for event in events.iter() {
            let source = self.state.lock().sources.get(&event.key).and_then(Weak::upgrade);
            if let Some(source) = source
                && !call(move || source.ready(event.readable, event.writable))
            {
                self.state.lock().sources.remove(&event.key);
            }
        }
        let posted = std::mem::take(&mut self.state.lock().posted);
        for job in posted {
            call(job);
        }
    }
}

/// Calls something of somebody else's; whether it has come to its end.
fn call<T>(f: impl FnOnce() -> T) -> bool {
    // Whoever panics is not called again; the panic's hook has ended the machine.
    catch_unwind(AssertUnwindSafe(|| drop(f()))).is_ok()
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;
    use parking_lot::Condvar;
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc;
    use std::time::Duration;

    /// A source that is a function, which gets the registration and what is ready.
    struct Calls<F> {
        at: OnceLock<Registration>,
        f: F,
    }

    impl<F: Fn(&Registration, bool, bool) + Send + Sync> Source for Calls<F> {
        fn ready(&self, readable: bool, writable: bool) {
            // The test may still be about to put it there.
            (self.f)(self.at.wait(), readable, writable);
        }
    }

    impl<F: Fn() + Send + Sync> TimedSource for F {
        fn due(&self) {
            self();
        }
    }

    fn source<F: Fn(&Registration, bool, bool) + Send + Sync + 'static>(
        events: &EventLoop,
        stream: &UnixStream,
        (read, write): (bool, bool),
        f: F,
    ) -> Arc<Calls<F>> {
        stream.set_nonblocking(true).unwrap();
        let descriptor: Descriptor = Arc::new(stream.try_clone().unwrap());
        let calls = Arc::new(Calls { at: OnceLock::new(), f });
        let me: Weak<dyn Source> = Arc::downgrade(&calls) as Weak<dyn Source>;
        let _ = calls.at.set(events.add(&descriptor, me, read, write).unwrap());
        calls
    }

    /// Waits until the loop has done all that it had to do by now.
    fn settle(events: &EventLoop) {
        // The second is of a later turn than whatever was ready when the first was posted.
        for _ in 0..2 {
            let (tell, told) = mpsc::channel();
            events.post(move || tell.send(()).unwrap());
            told.recv().unwrap();
        }
    }

    /// Holds the loop up until what is returned is dropped.
    fn hold(events: &EventLoop) -> mpsc::Sender<()> {
        let ((hold, held), (tell, told)) = (mpsc::channel::<()>(), mpsc::channel());
        events.post(move || {
            tell.send(()).unwrap();
            held.recv().unwrap_or(());
        });
        told.recv().unwrap();
        hold
    }

    #[test]
    fn a_source_is_called_once_for_what_it_waits_for() {
        let events = EventLoop::new().unwrap();
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        let (tell, told) = mpsc::channel();
        let s = source(&events, &theirs, (true, false), move |_, r, w| tell.send((r, w)).unwrap());
        settle(&events);
        assert!(told.try_recv().is_err(), "nothing was sent");
        ours.write_all(b"a").unwrap();
        assert_eq!(told.recv().unwrap(), (true, false));
        settle(&events);
        assert!(told.try_recv().is_err(), "it has not asked again");
        // What was not read is there still when it asks.
        s.at.wait().want(true, false).unwrap();
        assert_eq!(told.recv().unwrap(), (true, false));
        s.at.wait().want(false, true).unwrap();
        assert_eq!(told.recv().unwrap(), (false, true));
        s.at.wait().want(true, true).unwrap();
        assert_eq!(told.recv().unwrap(), (true, true));
        s.at.wait().want(false, false).unwrap();
        settle(&events);
        assert!(told.try_recv().is_err(), "it waits for nothing");
    }

    #[test]
    fn who_deregisters_while_ready_is_not_called_any_more() {
        let events = EventLoop::new().unwrap();
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        let count = Arc::new(AtomicUsize::new(0));
        for round in 0..100 {
            // Both are ready in one turn, and the first that is called lets go of the other.
            let others: Arc<Mutex<Vec<Arc<dyn Source>>>> = Arc::default();
            let both = [theirs.try_clone().unwrap(), theirs.try_clone().unwrap()];
            let hold = hold(&events);
            for stream in &both {
                let (theirs, count) = (others.clone(), count.clone());
                let s = source(&events, stream, (true, true), move |_, _, _| {
                    count.fetch_add(1, Ordering::SeqCst);
                    let all = std::mem::take(&mut *theirs.lock());
                    drop(all);
                });
                others.lock().push(s);
            }
            ours.write_all(b"x").unwrap();
            drop(hold);
            settle(&events);
            assert_eq!(count.load(Ordering::SeqCst), round + 1);
        }
        assert!(events.shared.state.lock().sources.is_empty());
    }

    #[test]
    fn what_many_threads_post_comes_once_and_in_the_order_of_each() {
        const EACH: usize = 2000;
        let events = EventLoop::new().unwrap();
        let got = Arc::new(Mutex::new(vec![Vec::new(); 4]));
        thread::scope(|scope| {
            for n in 0..4 {
                let (got, events) = (got.clone(), &events);
                scope.spawn(move || {
                    for i in 0..EACH {
                        let got = got.clone();
                        events.post(move || got.lock()[n].push(i));
                    }
                });
            }
        });
        settle(&events);
        for of_one in &*got.lock() {
            assert!(of_one.iter().copied().eq(0..EACH));
        }
    }

    #[test]
    fn timers_come_in_their_order_and_those_that_are_cancelled_do_not() {
        let events = EventLoop::new().unwrap();
        let (tell, told) = mpsc::channel();
        let owners: Vec<Arc<dyn TimedSource>> = (0..5)
            .map(|n| {
                let tell = Mutex::new(tell.clone());
                Arc::new(move || tell.lock().send((n, Instant::now())).unwrap()) as Arc<dyn TimedSource>
            })
            .collect();
        let timers: Vec<Timer> = owners.iter().map(|o| events.timer(Arc::downgrade(o))).collect();
        // However slow this thread is, all is set before the first is called.
        let hold = hold(&events);
        let start = Instant::now();
        let at = |ms| Some(start + Duration::from_millis(ms));
        timers[0].set(at(40));
        timers[1].set(at(20));
        timers[2].set(at(3_600_000));
        timers[3].set(at(10));
        timers[4].set(at(5));
        // Earlier after all, and not at all.
        timers[2].set(at(30));
        timers[4].set(None);
        drop(hold);
        let came: Vec<(usize, Instant)> = (0..4).map(|_| told.recv().unwrap()).collect();
        for (n, (_, when)) in came.iter().enumerate() {
            assert!(*when >= start + Duration::from_millis([10, 20, 30, 40][n]));
        }
        assert_eq!(came.iter().map(|(n, _)| *n).collect::<Vec<_>>(), [3, 1, 2, 0]);
        // One that has passed is due at once; of one whose owner or self has gone nobody hears.
        timers[4].set(at(0));
        assert_eq!(told.recv().unwrap().0, 4);
        timers[3].set(at(3_600_000));
        drop(owners);
        timers[1].set(at(0));
        settle(&events);
        assert!(told.try_recv().is_err());
        drop(timers);
        assert!(events.shared.state.lock().timers.is_empty());
    }

    #[test]
    fn the_loop_is_woken_by_who_wants_it_earlier_and_by_nobody_else() {
        let events = EventLoop::new().unwrap();
        let (tell, told) = mpsc::channel();
        let owner: Arc<dyn TimedSource> = Arc::new(move || tell.send(()).unwrap());
        let timer = events.timer(Arc::downgrade(&owner));
        let later = Instant::now() + Duration::from_secs(3000);
        let waits = |until: Option<Instant>| {
            let so = |state: &State| !state.looks && state.waits_until == until;
            while !so(&events.shared.state.lock()) {
                thread::yield_now();
            }
        };
        timer.set(Some(later));
        waits(Some(later));
        // What is further away leaves it asleep.
        timer.set(Some(later + Duration::from_secs(1)));
        thread::sleep(Duration::from_millis(20));
        waits(Some(later));
        for _ in 0..100 {
            timer.set(Some(Instant::now() + Duration::from_micros(100)));
            told.recv_timeout(Duration::from_secs(60)).expect("it is called when its time has come");
            timer.set(Some(later));
            waits(Some(later));
        }
    }

    #[test]
    fn a_timer_that_cancels_the_next_one_is_heeded() {
        let events = EventLoop::new().unwrap();
        let calls = Arc::new(AtomicUsize::new(0));
        let timers: Arc<Mutex<Vec<Timer>>> = Arc::default();
        let (theirs, count) = (timers.clone(), calls.clone());
        let owner: Arc<dyn TimedSource> = Arc::new(move || {
            count.fetch_add(1, Ordering::SeqCst);
            for timer in &*theirs.lock() {
                timer.set(None);
            }
        });
        let hold = hold(&events);
        for _ in 0..3 {
            let timer = events.timer(Arc::downgrade(&owner));
            timer.set(Some(Instant::now()));
            timers.lock().push(timer);
        }
        drop(hold);
        settle(&events);
        assert_eq!(calls.load(Ordering::SeqCst), 1);
        timers.lock().clear();
    }

    #[test]
    fn who_is_always_ready_keeps_nobody_waiting() {
        let events = Arc::new(EventLoop::new().unwrap());
        // One can always be written, one timer is always due, one job posts itself again.
        let (busy, _other_end) = UnixStream::pair().unwrap();
        let (turns, quit) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let count = turns.clone();
        let _busy = source(&events, &busy, (false, true), move |at, _, _| {
            count.fetch_add(1, Ordering::SeqCst);
            at.want(false, true).unwrap();
        });
        let timer: Arc<OnceLock<Timer>> = Arc::default();
        let theirs = timer.clone();
        let owner: Arc<dyn TimedSource> = Arc::new(move || theirs.wait().set(Some(Instant::now())));
        let _ = timer.set(events.timer(Arc::downgrade(&owner)));
        timer.wait().set(Some(Instant::now()));
        fn again(events: Weak<EventLoop>, quit: Arc<AtomicUsize>) {
            if let Some(all) = events.upgrade().filter(|_| quit.load(Ordering::SeqCst) == 0) {
                all.post(move || again(events, quit));
            }
        }
        again(Arc::downgrade(&events), quit.clone());
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        let (tell, told) = mpsc::channel();
        let stream = theirs.try_clone().unwrap();
        let _quiet = source(&events, &theirs, (true, false), move |at, _, _| {
            let mut byte = [0];
            (&stream).read_exact(&mut byte).unwrap();
            tell.send(byte[0]).unwrap();
            at.want(true, false).unwrap();
        });
        for n in 0..100 {
            let before = turns.load(Ordering::SeqCst);
            ours.write_all(&[n]).unwrap();
            assert_eq!(told.recv().unwrap(), n);
            settle(&events);
            assert!(turns.load(Ordering::SeqCst) > before, "nor is it kept waiting itself");
        }
        quit.store(1, Ordering::SeqCst);
        // Held by nobody but this test: the timer's owner, a cycle of the test's own, goes first.
        settle(&events);
        drop(owner);
    }

    #[test]
    fn dropping_a_busy_loop_ends_its_thread_and_leaves_nothing() {
        for _ in 0..50 {
            let events = EventLoop::new().unwrap();
            let (busy, mut other_end) = UnixStream::pair().unwrap();
            other_end.write_all(b"never read").unwrap();
            let s = source(&events, &busy, (true, true), |at, _, _| at.want(true, true).unwrap());
            let owner: Arc<dyn TimedSource> = Arc::new(|| ());
            let timer = events.timer(Arc::downgrade(&owner));
            timer.set(Some(Instant::now() + Duration::from_secs(3600)));
            let held = Arc::new(());
            for _ in 0..10 {
                let held = held.clone();
                events.post(move || drop(held));
            }
            let shared = Arc::downgrade(&events.shared);
            drop(events);
            assert_eq!((Arc::strong_count(&s), Arc::weak_count(&s)), (1, 0));
            assert_eq!(Arc::strong_count(&held), 1, "what was posted was called or dropped");
            drop((s, timer));
            assert_eq!(shared.strong_count(), 0);
        }
    }

    #[test]
    fn a_loop_may_go_with_what_it_calls() {
        let events = Arc::new(EventLoop::new().unwrap());
        let (shared, last) = (Arc::downgrade(&events.shared), events.clone());
        let (hold, held) = mpsc::channel::<()>();
        events.post(move || {
            held.recv().unwrap_or(());
            drop(last);
        });
        drop(events);
        drop(hold);
        while shared.strong_count() > 0 {
            thread::yield_now();
        }
    }

    #[test]
    fn who_panics_is_forgotten_and_the_others_go_on() {
        let events = EventLoop::new().unwrap();
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        let _s = source(&events, &theirs, (true, false), |at, _, _| {
            at.want(true, false).unwrap();
            panic!("on purpose");
        });
        events.post(|| panic!("on purpose, too"));
        ours.write_all(b"x").unwrap();
        while !events.shared.state.lock().sources.is_empty() {
            thread::yield_now();
        }
        settle(&events);
    }

    #[test]
    fn what_cannot_be_waited_for_is_told_from_what_can() {
        let events = EventLoop::new().unwrap();
        let null: Descriptor = Arc::new(std::fs::File::open("/dev/null").unwrap());
        let (reader, _writer) = io::pipe().unwrap();
        let pipe: Descriptor = Arc::new(reader);
        assert!(events.can_wait_for(&pipe));
        if cfg!(target_os = "linux") {
            assert!(!events.can_wait_for(&null));
        }
        assert!(events.shared.state.lock().sources.is_empty());
    }

    /// Waits until a flag is set.
    #[derive(Default)]
    struct Flag(Mutex<bool>, Condvar);

    #[test]
    fn a_job_of_another_thread_wakes_a_loop_that_sleeps() {
        let events = EventLoop::new().unwrap();
        for _ in 0..1000 {
            let flag = Arc::new(Flag::default());
            let theirs = flag.clone();
            events.post(move || {
                *theirs.0.lock() = true;
                theirs.1.notify_all();
            });
            let mut set = flag.0.lock();
            while !*set {
                flag.1.wait(&mut set);
            }
        }
    }
}
