//! What a device has of a disk: requests that are carried out elsewhere.
//!
//! Requests wait in one queue and are carried out by up to [`Options::threads`] threads, which come with the requests
//! and go when there are none, so they may end in any order:
//! a device that has promised an order waits for an end before it submits the next. The end of a request is told on
//! one of these threads with no lock held; it may submit others.
//!
//! With [`Aio::IoUring`] one more thread gives the kernel's ring what is read from, written to and flushed of an image
//! whose bytes are its file's ([`Image::plain`]), as many at a time as there are. What it cannot do goes to the others.
//!
//! An error ends a request, or holds it (`werror=stop`): the machine is told to stop, and when it goes on the request
//! is tried again. A device therefore keeps what it has submitted until it ends: what is held when the machine is
//! saved is not saved here, the device saves it and submits it again.
//!
//! Locks: the drive's, then that of its limits; none is held while an image or an end is called.
use crate::image::Image;
use crate::ops::is_zero;
#[cfg(target_os = "linux")]
use crate::ring::{self, Ended, Ring, Stage, Waker};
#[cfg(not(target_os = "linux"))]
use crate::storage::unsupported;
#[cfg(target_os = "linux")]
use crate::storage::{Storage, cut};
use crate::throttle::{Limits, ThrottleGroup};
use parking_lot::{Condvar, Mutex, MutexGuard, RwLock};
use std::cell::Cell;
use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Weak};
use std::thread;
use std::time::{Duration, Instant};

/// A thread that has had nothing to do for so long ends.
const IDLE: Duration = Duration::from_secs(5);
/// How often a host that has no thread is asked for the first one.
const TRIES: u32 = 20;

/// What is asked of a drive.
#[derive(Debug, PartialEq, Eq)]
pub enum Request {
    /// The bytes from `at` on.
    Read {
        /// The first one's offset.
        at: u64,
        /// How many.
        len: usize,
    },
    /// These bytes are to stand from `at` on.
    Write {
        /// The first one's offset.
        at: u64,
        /// What to write.
        data: Vec<u8>,
    },
    /// What was written and has ended is to outlive a power failure.
    Flush,
    /// See [`Image::discard`].
    Discard {
        /// The first byte's offset.
        at: u64,
        /// How many.
        len: u64,
    },
    /// See [`Image::zero`].
    Zero {
        /// The first byte's offset.
        at: u64,
        /// How many.
        len: u64,
        /// Whether their room may be given back.
        unmap: bool,
    },
}

impl Request {
    fn changes(&self) -> bool {
        matches!(self, Self::Write { .. } | Self::Discard { .. } | Self::Zero { .. })
    }

    fn range(&self) -> Option<(u64, u64)> {
        match self {
            Self::Read { at, len } => Some((*at, *len as u64)),
            Self::Write { at, data } => Some((*at, data.len() as u64)),
            Self::Discard { at, len } | Self::Zero { at, len, .. } => Some((*at, *len)),
            Self::Flush => None,
        }
    }
}

impl fmt::Display for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self {
            Self::Read { .. } => "read",
            Self::Write { .. } => "write",
            Self::Flush => "flush",
            Self::Discard { .. } => "discard",
            Self::Zero { .. } => "write of zeros",
        };
        match self.range() {
            Some((at, len)) => write!(f, "{name} of {len} bytes at {at:#x}"),
            None => f.write_str(name),
        }
    }
}

/// How a request ended: the bytes of a read, nothing otherwise.
pub type Reply = Result<Vec<u8>, DriveError>;

/// Why a request failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DriveError {
    /// There is none in the drive.
    #[error("no medium")]
    NoMedium,
    /// The medium is not written.
    #[error("read-only")]
    ReadOnly,
    /// Some of the range is beyond the medium's end.
    #[error("beyond the end")]
    Range,
    /// The host has no room for it.
    #[error("no space left on the host")]
    NoSpace,
    /// The host could not do it.
    #[error("I/O error")]
    Io,
}

/// What becomes of an error of the host: `werror=` and `rerror=`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnError {
    /// The guest gets it.
    Report,
    /// The guest is told that all is well; what it reads is zeros.
    Ignore,
    /// The machine stops; when it goes on the request is tried again.
    Stop,
    /// [`OnError::Stop`] if the host has no room, else [`OnError::Report`].
    Enospc,
}

/// What the user has chosen of a drive.
#[derive(Clone, Debug)]
pub struct Options {
    /// `id=`, or the name that QEMU gives it (`ide0-hd0`).
    pub name: String,
    /// `serial=`.
    pub serial: Option<String>,
    /// `werror=`, of flushes and discards too.
    pub werror: OnError,
    /// `rerror=`.
    pub rerror: OnError,
    /// `readonly=on`: writes are refused whatever the image allows.
    pub read_only: bool,
    /// `cache=writethrough`, `directsync`: a write ends when it is durable.
    pub write_through: bool,
    /// `cache=unsafe`: flushes do nothing.
    pub no_flush: bool,
    /// `discard=unmap`: what the guest discards is given back to the host.
    pub discard: bool,
    /// `detect-zeroes=`: what becomes of writes of zeros.
    pub detect_zeroes: DetectZeroes,
    /// `copy-on-read=on`: what is read of the backing file is written to the image.
    pub copy_on_read: bool,
    /// `throttling.*`.
    pub limits: Limits,
    /// `throttling.group`: limits that it shares with others; its own do not count then.
    pub group: Option<Arc<ThrottleGroup>>,
    /// `aio=`.
    pub aio: Aio,
    /// Most threads that carry out requests.
    pub threads: usize,
}

/// `aio=`: who reads and writes the files of plain images.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Aio {
    /// The drive's threads, each one request at a time.
    #[default]
    Threads,
    /// The kernel, from a ring that one thread has.
    IoUring,
}

impl Aio {
    /// Whether the host has it.
    ///
    /// # Errors
    /// Why it has not: a kernel that is too old, a sandbox or an administrator that forbids it.
    pub fn check(self) -> io::Result<()> {
        match self {
            Self::Threads => Ok(()),
            #[cfg(target_os = "linux")]
            Self::IoUring => ring::check(),
            #[cfg(not(target_os = "linux"))]
            Self::IoUring => Err(unsupported("this host is no Linux")),
        }
    }
}

/// `detect-zeroes=`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DetectZeroes {
    /// They are writes.
    #[default]
    Off,
    /// The image has zeros there, without their bytes where it can.
    On,
    /// Their room is given back too, with `discard=unmap`.
    Unmap,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            name: String::new(),
            serial: None,
            werror: OnError::Enospc,
            rerror: OnError::Report,
            read_only: false,
            write_through: false,
            no_flush: false,
            discard: false,
            detect_zeroes: DetectZeroes::Off,
            copy_on_read: false,
            limits: Limits::default(),
            group: None,
            aio: Aio::Threads,
            threads: 4,
        }
    }
}

/// Who stops the machine when a request is held. It must not wait for the machine to stand still.
pub trait Stopper: Send + Sync {
    /// The drive `name` holds a request; `why` is for people.
    fn stop(&self, name: &str, why: &str);
}

/// The device of a drive, as whoever changes the medium sees it.
pub trait MediumWatcher: Send + Sync {
    /// There is another medium, or none. Called with no lock held.
    fn medium_changed(&self);
    /// Somebody wishes to take a medium out that the guest has locked in: as the button at a tray's front.
    fn eject_requested(&self) {}
    /// The medium has another size. Called with no lock held.
    fn resized(&self) {}
}

/// Counts of what was done.
#[derive(Default)]
pub struct Counts {
    /// Bytes read.
    pub read_bytes: AtomicU64,
    /// Bytes written.
    pub written_bytes: AtomicU64,
    /// Reads.
    pub reads: AtomicU64,
    /// Writes.
    pub writes: AtomicU64,
    /// Flushes.
    pub flushes: AtomicU64,
    /// Requests that failed.
    pub failed: AtomicU64,
}

type Done = Box<dyn FnOnce(Reply) + Send>;

/// A request, and whom to tell of its end.
pub(crate) struct Job {
    pub(crate) request: Request,
    done: Done,
}

#[derive(Default)]
struct State {
    medium: Option<Arc<dyn Image>>,
    queue: VecDeque<Job>,
    /// Those that limits hold back, and until when.
    late: VecDeque<(Instant, Job)>,
    /// Those for the thread that has the ring.
    #[cfg(target_os = "linux")]
    by_ring: ByRing,
    /// Failed, to be tried again when the machine goes on.
    held: Vec<Job>,
    /// Requests that threads carry out.
    busy: usize,
    threads: usize,
    idle: usize,
    /// The guest has locked the medium in.
    locked: bool,
    /// The tray is out.
    open: bool,
    /// Media that have been put in or taken out.
    media: u64,
    /// What people call the one that was put in.
    medium_name: Option<String>,
    closing: bool,
    watcher: Option<Weak<dyn MediumWatcher>>,
    stopper: Option<Weak<dyn Stopper>>,
}

/// What there is of the ring's thread.
#[cfg(target_os = "linux")]
#[derive(Default)]
struct ByRing {
    queue: VecDeque<Job>,
    /// Not while its thread has it.
    ring: Option<Ring>,
    waker: Option<Arc<Waker>>,
    /// There is a thread.
    runs: bool,
    /// It waits in the kernel, and has to be woken.
    in_kernel: bool,
}

impl State {
    /// Whether nothing is under way or about to be.
    fn is_quiet(&self) -> bool {
        self.busy == 0 && self.queue.is_empty() && self.late.is_empty() && !self.ring_has_work()
    }

    #[cfg(target_os = "linux")]
    fn ring_has_work(&self) -> bool {
        !self.by_ring.queue.is_empty()
    }

    #[cfg(not(target_os = "linux"))]
    fn ring_has_work(&self) -> bool {
        false
    }

    /// Threads of any kind.
    fn all_threads(&self) -> usize {
        #[cfg(target_os = "linux")]
        return self.threads + usize::from(self.by_ring.runs);
        #[cfg(not(target_os = "linux"))]
        self.threads
    }

    /// Puts those into the queue whose time has come; when that of the next one is.
    fn due(&mut self) -> Option<Instant> {
        let now = Instant::now();
        while let Some((time, job)) = self.late.pop_front() {
            if time > now {
                // Reads and writes have limits of their own: one behind may be earlier.
                self.late.push_front((time, job));
                let (due, late) =
                    std::mem::take(&mut self.late).into_iter().partition(|(time, _)| *time <= now);
                self.late = late;
                let due: VecDeque<(Instant, Job)> = due;
                self.queue.extend(due.into_iter().map(|(_, job)| job));
                break;
            }
            self.queue.push_back(job);
        }
        self.late.iter().map(|(time, _)| *time).min()
    }

    /// Nothing is held back any longer.
    fn hurry(&mut self) {
        let late = std::mem::take(&mut self.late);
        self.queue.extend(late.into_iter().map(|(_, job)| job));
    }
}

/// A drive, with or without a medium.
pub struct Drive {
    shared: Arc<Shared>,
}

struct Shared {
    options: Options,
    /// The guest may switch it off, which has each write flushed.
    write_cache: AtomicBool,
    counts: Counts,
    /// What holds requests back.
    limits: Option<Arc<ThrottleGroup>>,
    /// A read that copies has it alone, changes share it: none is undone by what was read before it.
    copying: RwLock<()>,
    state: Mutex<State>,
    /// There is something in the queue, or the drive is closing.
    work: Condvar,
    /// The same, for the thread that has the ring.
    #[cfg(target_os = "linux")]
    ring_work: Condvar,
    /// Nothing is under way.
    quiet: Condvar,
}

impl Drive {
    /// A drive with this medium. It has no thread before there is something to do.
    ///
    /// # Errors
    /// The host does not have what [`Options::aio`] asks for.
    pub fn new(options: Options, medium: Option<Arc<dyn Image>>) -> io::Result<Arc<Self>> {
        let own = || options.limits.any().then(|| Arc::new(ThrottleGroup::new(options.limits)));
        let limits = options.group.clone().or_else(own);
        #[cfg(not(target_os = "linux"))]
        options.aio.check()?;
        #[cfg(target_os = "linux")]
        let by_ring = match options.aio {
            Aio::Threads => ByRing::default(),
            Aio::IoUring => {
                let ring = Ring::new()?;
                ByRing { waker: Some(ring.waker()), ring: Some(ring), ..ByRing::default() }
            }
        };
        let shared = Arc::new(Shared {
            write_cache: AtomicBool::new(!options.write_through),
            options,
            counts: Counts::default(),
            state: Mutex::new(State {
                medium,
                #[cfg(target_os = "linux")]
                by_ring,
                ..State::default()
            }),
            limits,
            copying: RwLock::new(()),
            work: Condvar::new(),
            #[cfg(target_os = "linux")]
            ring_work: Condvar::new(),
            quiet: Condvar::new(),
        });
        Ok(Arc::new(Self { shared }))
    }

    /// What was chosen of it.
    pub fn options(&self) -> &Options {
        &self.shared.options
    }

    /// `id=`.
    pub fn name(&self) -> &str {
        &self.shared.options.name
    }

    /// What was done so far.
    pub fn counts(&self) -> &Counts {
        &self.shared.counts
    }

    /// Who is told of other media.
    pub fn watch(&self, watcher: Weak<dyn MediumWatcher>) {
        self.shared.state.lock().watcher = Some(watcher);
    }

    /// Who stops the machine.
    pub fn on_stop(&self, stopper: Weak<dyn Stopper>) {
        self.shared.state.lock().stopper = Some(stopper);
    }

    /// The medium, if there is one and the tray is in.
    pub fn medium(&self) -> Option<Arc<dyn Image>> {
        let state = self.shared.state.lock();
        if state.open { None } else { state.medium.clone() }
    }

    /// Counts the media that have been in it.
    pub fn media(&self) -> u64 {
        self.shared.state.lock().media
    }

    /// Tells what people call the medium that was put in by [`Drive::change`].
    pub fn name_medium(&self, name: &str) {
        self.shared.state.lock().medium_name = Some(name.into());
    }

    /// What people call the medium, if it is not the first one.
    pub fn medium_name(&self) -> Option<String> {
        self.shared.state.lock().medium_name.clone()
    }

    /// The medium's bytes, 0 if there is none.
    pub fn size(&self) -> u64 {
        self.medium().map_or(0, |m| m.size())
    }

    /// Whether writes are refused.
    pub fn read_only(&self) -> bool {
        self.shared.options.read_only || self.medium().is_some_and(|m| m.read_only())
    }

    /// Whether writes may end before they are durable.
    pub fn write_cache(&self) -> bool {
        self.shared.write_cache.load(Relaxed)
    }

    /// Has each write be durable when it ends, or not.
    pub fn set_write_cache(&self, on: bool) {
        self.shared.write_cache.store(on, Relaxed);
    }

    /// Has `request` carried out, and `done` called with how it ended.
    pub fn submit(&self, request: Request, done: impl FnOnce(Reply) + Send + 'static) {
        let job = Job { request, done: Box::new(done) };
        let mut state = self.shared.state.lock();
        let wait = self.shared.limits.as_ref().map_or(Duration::ZERO, |l| l.take(&job.request));
        if !wait.is_zero() {
            state.late.push_back((Instant::now() + wait, job));
        } else {
            let Some(job) = self.shared.to_ring(&mut state, job) else { return };
            state.queue.push_back(job);
        }
        self.shared.wake(&mut state);
    }

    /// Has `request` carried out, and waits for its end: for firmware, whose callers wait as well. Errors are counted
    /// and told of as others are, and ignored where the user wants it.
    ///
    /// # Errors
    /// How it ended. One that is to stop the machine does so and ends with [`DriveError::Io`]: it is not held, as who
    /// waits has nothing that could be saved.
    pub fn wait(&self, request: Request) -> Reply {
        let medium = self.medium();
        let failure = match self.shared.carry_out(&request, medium.as_deref()) {
            Ok(data) => return Ok(data),
            Err(failure) => failure,
        };
        match self.shared.judge(&request, &failure) {
            Verdict::Report => {}
            Verdict::Ignore(reply) => return Ok(reply),
            Verdict::Stop(stopper, why) => stopper.stop(self.name(), &why),
        }
        Err(failure.kind)
    }

    /// Waits until no request is under way. Those that are held stay so; no limit holds one back meanwhile.
    pub fn drain(&self) {
        let mut state = self.shared.state.lock();
        while !state.is_quiet() {
            state.hurry();
            if !state.queue.is_empty() {
                self.shared.wake(&mut state);
            }
            self.shared.quiet.wait(&mut state);
        }
    }

    /// The machine goes on: what is held is tried again.
    pub fn resume(&self) {
        let mut state = self.shared.state.lock();
        let held = std::mem::take(&mut state.held);
        for job in held.into_iter().rev() {
            state.queue.push_front(job);
        }
        self.shared.wake(&mut state);
    }

    /// The device is reset: waits for what is under way, and forgets what is held. The medium is not locked in then.
    pub fn reset(&self) {
        self.drain();
        let held = {
            let mut state = self.shared.state.lock();
            state.locked = false;
            std::mem::take(&mut state.held)
        };
        drop(held);
        self.set_write_cache(!self.shared.options.write_through);
    }

    /// Gives the medium another size, for a user: `block_resize`.
    ///
    /// # Errors
    /// There is none, it is not written, or its format has the size that it has.
    pub fn resize(&self, size: u64) -> io::Result<()> {
        let wrong = |text: &str| io::Error::new(io::ErrorKind::InvalidInput, text);
        if !size.is_multiple_of(512) || i64::try_from(size).is_err() {
            return Err(wrong("a disk has whole sectors of 512 bytes"));
        }
        let medium = self.medium().ok_or_else(|| wrong("there is no medium"))?;
        if self.read_only() {
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, "the drive is read-only"));
        }
        self.drain();
        medium.resize(size)?;
        let watcher = self.shared.state.lock().watcher.clone();
        if let Some(watcher) = watcher.and_then(|w| w.upgrade()) {
            watcher.resized();
        }
        Ok(())
    }

    /// The guest locks the medium in, or does not.
    pub fn lock(&self, locked: bool) {
        self.shared.state.lock().locked = locked;
    }

    /// Whether the guest has locked the medium in.
    pub fn locked(&self) -> bool {
        self.shared.state.lock().locked
    }

    /// The guest moves the tray. A medium that is in it stays there.
    pub fn set_tray_open(&self, open: bool) {
        self.shared.state.lock().open = open;
    }

    /// Whether the tray is out.
    pub fn tray_open(&self) -> bool {
        self.shared.state.lock().open
    }

    /// Puts another medium into the drive, or takes it out, for a user: `change`, `eject`. What is under way ends
    /// first. With `force` whether the guest has locked it in is nothing to it.
    ///
    /// # Errors
    /// The guest has locked it in; it has been told that somebody wishes it out.
    pub fn change(&self, medium: Option<Arc<dyn Image>>, force: bool) -> Result<(), Locked> {
        let locked = |state: &State| state.locked && !state.open && !force;
        let refused = {
            let state = self.shared.state.lock();
            locked(&state).then(|| state.watcher.clone())
        };
        if let Some(watcher) = refused {
            if let Some(watcher) = watcher.and_then(|w| w.upgrade()) {
                watcher.eject_requested();
            }
            return Err(Locked);
        }
        self.drain();
        let (old, watcher) = {
            let mut state = self.shared.state.lock();
            state.open = medium.is_none();
            state.media += 1;
            state.medium_name = None;
            (std::mem::replace(&mut state.medium, medium), state.watcher.clone())
        };
        drop(old);
        if let Some(watcher) = watcher.and_then(|w| w.upgrade()) {
            watcher.medium_changed();
        }
        Ok(())
    }
}

/// The guest has locked the medium in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the guest has locked the medium in")]
pub struct Locked;

thread_local! {
    /// Whether this thread is one of some drive's own.
    static OF_A_DRIVE: Cell<bool> = const { Cell::new(false) };
}

impl Drop for Drive {
    /// What was submitted is carried out, then the medium is flushed and closed. The caller waits for that, unless it
    /// is the end of a request.
    fn drop(&mut self) {
        let mut state = self.shared.state.lock();
        state.closing = true;
        state.hurry();
        self.shared.wake(&mut state);
        self.shared.work.notify_all();
        #[cfg(target_os = "linux")]
        self.shared.ring_work.notify_all();
        while state.all_threads() > 0 && !OF_A_DRIVE.get() {
            self.shared.quiet.wait(&mut state);
        }
        if state.all_threads() == 0 {
            let (medium, held) = (state.medium.take(), std::mem::take(&mut state.held));
            MutexGuard::unlocked(&mut state, || self.shared.close(medium, held));
        }
    }
}

/// Why the host could not carry out a request.
struct Failure {
    kind: DriveError,
    /// What the host said.
    cause: Option<io::Error>,
}

/// What becomes of a failed request.
enum Verdict {
    Report,
    /// It ends so.
    Ignore(Vec<u8>),
    /// The machine stops; why.
    Stop(Arc<dyn Stopper>, String),
}

impl From<DriveError> for Failure {
    fn from(kind: DriveError) -> Self {
        Self { kind, cause: None }
    }
}

impl From<io::Error> for Failure {
    fn from(e: io::Error) -> Self {
        let kind = match e.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => {
                DriveError::NoSpace
            }
            _ => DriveError::Io,
        };
        Self { kind, cause: Some(e) }
    }
}

impl Shared {
    /// Sees to it that what is in the queue will be carried out.
    fn wake(self: &Arc<Self>, state: &mut MutexGuard<'_, State>) {
        self.work.notify_one();
        let waiting = state.queue.len() + usize::from(!state.late.is_empty());
        if waiting <= state.idle || state.threads >= self.options.threads.max(1) {
            return;
        }
        for _ in 0..TRIES {
            match self.spawn() {
                Ok(()) => {
                    state.threads += 1;
                    return;
                }
                // Those that are there will come to it.
                Err(_) if state.threads > 0 => return,
                Err(e) => {
                    tracing::warn!("drive {}: the host has no thread for it: {e}", self.options.name);
                    thread::sleep(Duration::from_millis(50));
                }
            }
        }
    }

    fn spawn(self: &Arc<Self>) -> io::Result<()> {
        let shared = self.clone();
        self.thread("disk").spawn(move || shared.work()).map(drop)
    }

    /// A thread of the drive's. Linux keeps 15 bytes of its name; a drive's may have any characters.
    fn thread(&self, kind: &str) -> thread::Builder {
        let own = self.options.name.chars().filter(char::is_ascii_graphic);
        let name = kind.chars().chain([' ']).chain(own).take(15).collect();
        thread::Builder::new().name(name).stack_size(256 << 10)
    }

    /// What a thread does.
    fn work(&self) {
        OF_A_DRIVE.set(true);
        let mut state = self.state.lock();
        loop {
            let next = state.due();
            if let Some(job) = state.queue.pop_front() {
                state.busy += 1;
                let medium = if state.open { None } else { state.medium.clone() };
                MutexGuard::unlocked(&mut state, || self.end(job, medium));
                state.busy -= 1;
                if state.is_quiet() {
                    self.quiet.notify_all();
                }
            } else if state.closing {
                break;
            } else {
                state.idle += 1;
                let time = next.map_or(IDLE, |next| next.saturating_duration_since(Instant::now()));
                let late = self.work.wait_for(&mut state, time).timed_out();
                state.idle -= 1;
                if late && state.queue.is_empty() && state.late.is_empty() {
                    break;
                }
            }
        }
        self.close_if_last(&mut state);
        state.threads -= 1;
        self.quiet.notify_all();
    }

    /// A thread is about to end: the last one closes what was in the drive that is gone.
    fn close_if_last(&self, state: &mut MutexGuard<'_, State>) {
        if state.closing && state.all_threads() == 1 {
            let medium = state.medium.take();
            let held = std::mem::take(&mut state.held);
            MutexGuard::unlocked(state, || self.close(medium, held));
        }
    }

    #[cfg(not(target_os = "linux"))]
    fn to_ring(self: &Arc<Self>, _: &mut MutexGuard<'_, State>, job: Job) -> Option<Job> {
        Some(job)
    }

    /// Gives a request to the thread that has the ring; it comes back if there is none, or it is not for it.
    #[cfg(target_os = "linux")]
    fn to_ring(self: &Arc<Self>, state: &mut MutexGuard<'_, State>, job: Job) -> Option<Job> {
        let plain = !self.options.copy_on_read && self.options.detect_zeroes == DetectZeroes::Off;
        let kind = matches!(job.request, Request::Read { .. } | Request::Write { .. } | Request::Flush);
        if self.options.aio != Aio::IoUring || !plain || !kind {
            return Some(job);
        }
        let by_ring = &mut state.by_ring;
        if !by_ring.runs {
            let Some(ring) = by_ring.ring.take() else { return Some(job) };
            let (shared, room) = (self.clone(), Arc::new(Mutex::new(Some(ring))));
            let given = room.clone();
            let begun = self.thread("ring").spawn(move || {
                if let Some(ring) = given.lock().take() {
                    shared.work_by_ring(ring);
                }
            });
            if begun.is_err() {
                // The other threads have those for which there is none.
                by_ring.ring = room.lock().take();
                return Some(job);
            }
            by_ring.runs = true;
        }
        by_ring.queue.push_back(job);
        if std::mem::take(&mut by_ring.in_kernel) {
            by_ring.waker.iter().for_each(|waker| waker.wake());
        } else {
            self.ring_work.notify_one();
        }
        None
    }

    /// What the thread does that has the ring.
    #[cfg(target_os = "linux")]
    fn work_by_ring(self: &Arc<Self>, mut ring: Ring) {
        OF_A_DRIVE.set(true);
        let mut ended = Vec::new();
        let mut state = self.state.lock();
        loop {
            let many = state.by_ring.queue.len().min(ring.room());
            let jobs: Vec<Job> = state.by_ring.queue.drain(..many).collect();
            if jobs.is_empty() && ring.under_way() == 0 {
                if state.closing {
                    break;
                }
                let late = self.ring_work.wait_for(&mut state, IDLE).timed_out();
                if late && state.by_ring.queue.is_empty() {
                    break;
                }
                continue;
            }
            state.busy += jobs.len();
            let medium = if state.open { None } else { state.medium.clone() };
            let mut elsewhere = Vec::new();
            MutexGuard::unlocked(&mut state, || {
                for job in jobs {
                    elsewhere.extend(self.begin(&mut ring, job, medium.as_ref()));
                }
                drop(medium);
            });
            for job in elsewhere {
                state.busy -= 1;
                state.queue.push_back(job);
                self.wake(&mut state);
            }
            let block = ring.under_way() > 0 && (state.by_ring.queue.is_empty() || ring.room() == 0);
            state.by_ring.in_kernel = block;
            let ends = MutexGuard::unlocked(&mut state, || {
                ring.wait(block, &mut ended);
                ended.drain(..).map(|end| usize::from(self.end_by_ring(&mut ring, end))).sum::<usize>()
            });
            state.by_ring.in_kernel = false;
            state.busy -= ends;
            if state.is_quiet() {
                self.quiet.notify_all();
            }
        }
        self.close_if_last(&mut state);
        state.by_ring.ring = Some(ring);
        state.by_ring.runs = false;
        self.quiet.notify_all();
    }

    /// Has the ring begin with a request, which comes back if it cannot. Those that are refused are for the others too.
    #[cfg(target_os = "linux")]
    fn begin(&self, ring: &mut Ring, job: Job, medium: Option<&Arc<dyn Image>>) -> Option<Job> {
        let Some(medium) = medium else { return Some(job) };
        let refused = match job.request.range() {
            Some((at, len)) => at.checked_add(len).is_none_or(|end| end > medium.size()),
            None => self.options.no_flush,
        };
        let changes = job.request.changes() || job.request == Request::Flush;
        if refused || changes && (self.options.read_only || medium.read_only()) {
            return Some(job);
        }
        let stage = if job.request == Request::Flush { Stage::Sync } else { Stage::Transfer };
        ring.begin(job, medium, stage).err()
    }

    /// A request has come back from the ring: whether that is its end.
    #[cfg(target_os = "linux")]
    fn end_by_ring(&self, ring: &mut Ring, ended: Ended) -> bool {
        let Ended { job, medium, stage, mut reply } = ended;
        let count = |counter: &AtomicU64, n: u64| counter.fetch_add(n, Relaxed);
        match (&job.request, &mut reply) {
            (Request::Read { at, len }, Ok(data)) => {
                if data.len() < *len {
                    // Zeros fill the last sector up; more is missing of a file that was cut.
                    let end = medium.plain(*at, false).map_or(Ok(0), |file| file.len());
                    match end {
                        Ok(end) if *at + *len as u64 <= end.saturating_add(511) & !511 => {
                            data.resize(*len, 0)
                        }
                        Ok(end) => reply = Err(cut(end)),
                        Err(e) => reply = Err(e),
                    }
                }
                if reply.is_ok() {
                    count(&self.counts.reads, 1);
                    count(&self.counts.read_bytes, *len as u64);
                }
            }
            (Request::Write { data, .. }, Ok(_)) if stage == Stage::Transfer => {
                count(&self.counts.writes, 1);
                count(&self.counts.written_bytes, data.len() as u64);
                if !self.write_cache.load(Relaxed) && !self.options.no_flush {
                    // There is room: that of the write.
                    return match ring.begin(job, &medium, Stage::Sync) {
                        Ok(()) => false,
                        Err(job) => {
                            let reply = medium.flush();
                            drop(medium);
                            self.tell(job, reply.map(|()| Vec::new()).map_err(Failure::from));
                            true
                        }
                    };
                }
            }
            (Request::Flush, Ok(_)) => _ = count(&self.counts.flushes, 1),
            _ => {}
        }
        drop(medium);
        self.tell(job, reply.map_err(Failure::from));
        true
    }

    fn close(&self, medium: Option<Arc<dyn Image>>, held: Vec<Job>) {
        drop(held);
        if let Some(medium) = medium
            && !medium.read_only()
            && !self.options.no_flush
            && let Err(e) = medium.flush()
        {
            tracing::warn!("drive {}: cannot flush: {e}", self.options.name);
        }
    }

    /// Carries out a request, and tells of its end or holds it.
    fn end(&self, job: Job, medium: Option<Arc<dyn Image>>) {
        let reply = self.carry_out(&job.request, medium.as_deref());
        drop(medium);
        self.tell(job, reply);
    }

    /// Tells how a request ended, or holds it.
    fn tell(&self, job: Job, reply: Result<Vec<u8>, Failure>) {
        let failure = match reply {
            Ok(data) => return (job.done)(Ok(data)),
            Err(failure) => failure,
        };
        match self.judge(&job.request, &failure) {
            Verdict::Report => (job.done)(Err(failure.kind)),
            Verdict::Ignore(reply) => (job.done)(Ok(reply)),
            Verdict::Stop(stopper, why) => {
                self.state.lock().held.push(job);
                stopper.stop(&self.options.name, &why);
            }
        }
    }

    /// What becomes of a request that has failed: `werror=`, `rerror=`. What the guest has done wrong it is told.
    fn judge(&self, request: &Request, failure: &Failure) -> Verdict {
        self.counts.failed.fetch_add(1, Relaxed);
        let Some(cause) = &failure.cause else { return Verdict::Report };
        let why = format!("{request}: {cause}");
        let read = matches!(request, Request::Read { .. });
        let policy = if read { self.options.rerror } else { self.options.werror };
        let stop =
            policy == OnError::Stop || policy == OnError::Enospc && failure.kind == DriveError::NoSpace;
        let name = &self.options.name;
        if policy == OnError::Ignore {
            tracing::warn!("drive {name}: {why}; ignored");
            return Verdict::Ignore(if let Request::Read { len, .. } = request {
                vec![0; *len]
            } else {
                Vec::new()
            });
        }
        tracing::warn!("drive {name}: {why}");
        let stopper = self.state.lock().stopper.clone();
        match stopper.filter(|_| stop).and_then(|s| s.upgrade()) {
            Some(stopper) => Verdict::Stop(stopper, why),
            None => Verdict::Report,
        }
    }

    /// Reads, and writes to the image what it has only of what it stands on.
    fn read_and_copy(&self, medium: &dyn Image, at: u64, data: &mut [u8]) -> io::Result<()> {
        let missing = |from: usize| -> io::Result<(bool, usize)> {
            let extent = medium.extent(at + from as u64)?;
            let len = extent.len.min((data.len() - from) as u64).max(1);
            Ok((!extent.allocated, len as usize))
        };
        let (mut from, mut parts) = (0, Vec::new());
        while from < data.len() {
            let (wanted, len) = missing(from)?;
            if wanted {
                parts.push(from..from + len);
            }
            from += len;
        }
        if parts.is_empty() || medium.backing().is_none() {
            return medium.read(at, data);
        }
        let _alone = self.copying.write();
        medium.read(at, data)?;
        for part in parts {
            // Somebody may have written there meanwhile: what was read just now has it.
            let (place, part) = (at + part.start as u64, &data[part]);
            let done = if is_zero(part) {
                medium.zero(place, part.len() as u64, false)
            } else {
                medium.write(place, part)
            };
            // The guest has what it has asked for.
            if let Err(e) = done {
                tracing::warn!("drive {}: copy-on-read: {e}", self.options.name);
                break;
            }
        }
        Ok(())
    }

    fn carry_out(&self, request: &Request, medium: Option<&dyn Image>) -> Result<Vec<u8>, Failure> {
        let medium = medium.ok_or(DriveError::NoMedium)?;
        if let Some((at, len)) = request.range()
            && at.checked_add(len).is_none_or(|end| end > medium.size())
        {
            return Err(DriveError::Range.into());
        }
        if request.changes() && (self.options.read_only || medium.read_only()) {
            return Err(DriveError::ReadOnly.into());
        }
        let _shared = (self.options.copy_on_read && request.changes()).then(|| self.copying.read());
        let count = |counter: &AtomicU64, n: u64| counter.fetch_add(n, Relaxed);
        let mut data = Vec::new();
        match request {
            Request::Read { at, len } => {
                data.resize(*len, 0);
                if self.options.copy_on_read && !self.options.read_only && !medium.read_only() {
                    self.read_and_copy(medium, *at, &mut data)?;
                } else {
                    medium.read(*at, &mut data)?;
                }
                count(&self.counts.reads, 1);
                count(&self.counts.read_bytes, *len as u64);
            }
            Request::Write { at, data } => {
                if self.options.detect_zeroes != DetectZeroes::Off && is_zero(data) {
                    let unmap = self.options.detect_zeroes == DetectZeroes::Unmap && self.options.discard;
                    medium.zero(*at, data.len() as u64, unmap)?;
                } else {
                    medium.write(*at, data)?;
                }
                count(&self.counts.writes, 1);
                count(&self.counts.written_bytes, data.len() as u64);
            }
            Request::Discard { at, len } if self.options.discard => medium.discard(*at, *len)?,
            Request::Discard { .. } => {}
            Request::Zero { at, len, unmap } => {
                medium.zero(*at, *len, *unmap && self.options.discard)?;
            }
            Request::Flush => {
                count(&self.counts.flushes, 1);
            }
        }
        let durable = *request == Request::Flush || request.changes() && !self.write_cache.load(Relaxed);
        if durable && !self.options.no_flush && !medium.read_only() {
            medium.flush()?;
        }
        Ok(data)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::Memory;
    use std::sync::mpsc;

    struct Machine(Mutex<Vec<String>>);

    impl Stopper for Machine {
        fn stop(&self, name: &str, why: &str) {
            self.0.lock().push(format!("{name}: {why}"));
        }
    }

    fn drive(options: Options) -> (Arc<Drive>, Arc<Memory>) {
        let memory = Arc::new(Memory::new(vec![0; 4096]));
        (Drive::new(options, Some(memory.clone())).expect("a thread"), memory)
    }

    fn ask(drive: &Drive, request: Request) -> Reply {
        let (tx, rx) = mpsc::channel();
        drive.submit(request, move |reply| tx.send(reply).expect("we wait"));
        rx.recv_timeout(Duration::from_secs(20)).expect("an end")
    }

    fn write(drive: &Drive, at: u64, byte: u8) -> Reply {
        ask(drive, Request::Write { at, data: vec![byte; 512] })
    }

    #[test]
    fn a_drive_s_name_may_have_any_characters() {
        for name in ["aäääääääää", "a\0b", "ä"] {
            let (drive, _) = drive(Options { name: name.into(), ..Options::default() });
            assert_eq!(write(&drive, 0, 1), Ok(Vec::new()), "{name:?}");
        }
    }

    #[test]
    fn what_was_written_is_read_and_durable_after_a_flush() {
        let (drive, memory) = drive(Options::default());
        assert_eq!(write(&drive, 512, 7), Ok(vec![]));
        assert_eq!(ask(&drive, Request::Read { at: 511, len: 2 }), Ok(vec![0, 7]));
        assert_eq!(memory.durable()[512], 0);
        assert_eq!(ask(&drive, Request::Flush), Ok(vec![]));
        assert_eq!(memory.durable()[512], 7);
        drive.set_write_cache(false);
        assert_eq!(write(&drive, 0, 8), Ok(vec![]));
        assert_eq!(memory.durable()[0], 8);
    }

    #[test]
    fn a_drive_that_is_dropped_has_flushed() {
        let (drive, memory) = drive(Options::default());
        drive.submit(Request::Write { at: 0, data: vec![9; 512] }, drop);
        drop(drive);
        assert_eq!(memory.durable()[..513], [vec![9; 512], vec![0]].concat());
    }

    #[test]
    fn refused_are_ranges_beyond_the_end_writes_to_what_is_read_only_and_all_without_a_medium() {
        let (drive, _) = drive(Options { read_only: true, ..Options::default() });
        assert_eq!(ask(&drive, Request::Read { at: 4095, len: 2 }), Err(DriveError::Range));
        assert_eq!(ask(&drive, Request::Read { at: u64::MAX, len: 2 }), Err(DriveError::Range));
        assert_eq!(write(&drive, 0, 1), Err(DriveError::ReadOnly));
        drive.change(None, false).expect("not locked");
        assert_eq!(ask(&drive, Request::Read { at: 0, len: 1 }), Err(DriveError::NoMedium));
    }

    #[test]
    fn a_request_that_stops_the_machine_is_tried_again_when_it_goes_on() {
        let (drive, memory) = drive(Options { name: "hd".into(), ..Options::default() });
        let machine = Arc::new(Machine(Mutex::default()));
        let dynamic: Arc<dyn Stopper> = machine.clone();
        drive.on_stop(Arc::downgrade(&dynamic));
        memory.fail(Some(io::ErrorKind::StorageFull));
        let (tx, rx) = mpsc::channel();
        drive.submit(Request::Write { at: 0, data: vec![5; 512] }, move |reply| tx.send(reply).unwrap());
        drive.drain();
        assert!(machine.0.lock()[0].starts_with("hd: write of 512 bytes at 0x0: "), "{:?}", machine.0.lock());
        assert!(rx.try_recv().is_err());
        memory.fail(None);
        drive.resume();
        assert_eq!(rx.recv_timeout(Duration::from_secs(20)).expect("an end"), Ok(vec![]));
        assert_eq!(memory.contents()[0], 5);
    }

    #[test]
    fn an_error_is_reported_or_ignored_as_chosen() {
        let (drive_a, memory) = drive(Options::default());
        memory.fail(Some(io::ErrorKind::Other));
        assert_eq!(write(&drive_a, 0, 1), Err(DriveError::Io));
        let options = Options { werror: OnError::Ignore, rerror: OnError::Ignore, ..Options::default() };
        let (drive_b, memory) = drive(options);
        memory.fail(Some(io::ErrorKind::Other));
        assert_eq!(write(&drive_b, 0, 1), Ok(vec![]));
        assert_eq!(ask(&drive_b, Request::Read { at: 0, len: 2 }), Ok(vec![0, 0]));
    }

    #[test]
    fn a_drive_has_no_thread_before_the_first_request() {
        let (drive, memory) = drive(Options::default());
        assert_eq!(drive.shared.state.lock().threads, 0);
        drive.drain();
        drive.reset();
        assert_eq!(drive.shared.state.lock().threads, 0);
        memory.write(0, &[3]).expect("room");
        drop(drive);
        assert_eq!(memory.durable()[0], 3, "flushed without a thread");
    }

    #[test]
    fn limits_hold_requests_back_and_nothing_else() {
        let mut limits = Limits::default();
        limits.bytes[2].per_second = 1;
        let (drive, _) = drive(Options { limits, ..Options::default() });
        let (tx, rx) = mpsc::channel();
        for n in 0..3 {
            let tx = tx.clone();
            drive.submit(Request::Write { at: 0, data: vec![n; 512] }, move |_| tx.send(n).expect("we wait"));
        }
        // Reads pass by the writes that wait, as does the first of these.
        assert_eq!(ask(&drive, Request::Read { at: 0, len: 1 }).map(|d| d.len()), Ok(1));
        assert_eq!(rx.recv_timeout(Duration::from_secs(20)), Ok(0));
        assert_eq!(drive.shared.state.lock().late.len(), 2);
        // Who waits for the drive to be quiet does not wait for the limits.
        drive.drain();
        let mut rest: Vec<u8> = rx.try_iter().collect();
        rest.sort_unstable();
        assert_eq!(rest, [1, 2]);
    }

    #[test]
    fn zeros_that_are_written_are_found() {
        let path = crate::testing::scratch("zeros");
        std::fs::write(&path, vec![7; 1 << 20]).expect("a file");
        let open = || crate::open(&crate::OpenOptions::new(&path)).expect("it is there");
        let options = Options { detect_zeroes: DetectZeroes::Unmap, discard: true, ..Options::default() };
        let drive = Drive::new(options, Some(open())).expect("a drive");
        let zeros = Request::Write { at: 65_536, data: vec![0; 524_288] };
        assert_eq!(ask(&drive, zeros), Ok(vec![]));
        let extent = drive.medium().expect("it has one").extent(65_536).expect("it is there");
        assert!(!cfg!(target_os = "linux") || !extent.data && extent.len == 524_288, "{extent:?}");
        drop(drive);
        std::fs::remove_file(path).expect("it is there");
    }

    #[test]
    fn what_is_read_of_the_backing_file_is_copied_once() {
        let below: Arc<dyn Image> = Arc::new(Memory::read_only(vec![5; 1 << 20]));
        let top = crate::overlay(below).expect("an overlay");
        let options = Options { copy_on_read: true, ..Options::default() };
        let drive = Drive::new(options, Some(top.clone())).expect("a drive");
        assert!(!top.extent(200_000).expect("within").allocated);
        assert_eq!(ask(&drive, Request::Read { at: 200_000, len: 3 }), Ok(vec![5; 3]));
        assert!(top.extent(200_000).expect("within").allocated);
        // Readers and writers at once: nothing that was written is undone.
        let (tx, rx) = mpsc::channel();
        for n in 0..64u64 {
            let at = 400_000 + n * 512;
            let tx = tx.clone();
            drive.submit(Request::Read { at: 400_000, len: 64 * 512 }, drop);
            drive.submit(Request::Write { at, data: vec![9; 512] }, move |_| tx.send(n).expect("we wait"));
        }
        for _ in 0..64 {
            rx.recv_timeout(Duration::from_secs(20)).expect("an end");
        }
        assert_eq!(ask(&drive, Request::Read { at: 400_000, len: 64 * 512 }), Ok(vec![9; 64 * 512]));
    }

    struct Watching(AtomicU64);

    impl MediumWatcher for Watching {
        fn medium_changed(&self) {}
        fn resized(&self) {
            self.0.fetch_add(1, Relaxed);
        }
    }

    #[test]
    fn a_disk_that_has_another_size_tells_its_device() {
        let (drive, _) = drive(Options::default());
        let device = Arc::new(Watching(AtomicU64::new(0)));
        let watcher: Arc<dyn MediumWatcher> = device.clone();
        drive.watch(Arc::downgrade(&watcher));
        assert!(drive.resize(1000).is_err());
        drive.resize(8192).expect("it is memory");
        assert_eq!((drive.size(), device.0.load(Relaxed)), (8192, 1));
        drive.change(None, true).expect("forced");
        assert!(drive.resize(512).is_err());
    }

    #[test]
    fn a_medium_that_the_guest_has_locked_in_stays_unless_forced() {
        let (drive, _) = drive(Options::default());
        drive.lock(true);
        assert_eq!(drive.change(None, false), Err(Locked));
        assert_eq!(drive.size(), 4096);
        assert_eq!(drive.change(None, true), Ok(()));
        assert_eq!((drive.size(), drive.tray_open()), (0, true));
    }

    #[test]
    fn an_end_may_submit_more_and_a_drain_waits_for_that_too() {
        let (drive, memory) = drive(Options::default());
        let again = drive.clone();
        let write = |at| Request::Write { at, data: vec![1; 512] };
        drive.submit(write(0), move |_| again.submit(write(512), drop));
        drive.drain();
        assert_eq!(memory.contents()[..1024], [1; 1024]);
    }
}
