//! Requests that go to a file by one of the kernel's rings (io_uring): `aio=io_uring`, `aio=native`.
//!
//! One thread has the ring: it puts in what the drive has, and waits in the kernel for an end or for the [`Waker`].
//! What a transfer reads from or writes to belongs to the ring until the kernel says that it has ended; nobody gets it
//! before, and a ring that is dropped waits for that.
use crate::drive::{Job, Request};
use crate::host::ALIGN;
use crate::image::Image;
use io_uring::{IoUring, Probe, opcode, squeue, types};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::Arc;

/// Requests that are under way at most.
const DEPTH: usize = 128;
/// Most bytes of one entry of the ring: larger requests are several.
const MOST: usize = 1 << 30;
/// What stands in the entry that waits for the waker.
const WAKER: u64 = u64::MAX;

/// Wakes the thread that waits in [`Ring::wait`].
pub(crate) struct Waker(OwnedFd);

impl Waker {
    fn new() -> io::Result<Self> {
        // SAFETY: no pointers; what it gives is a new descriptor, or -1.
        let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: it was made just now, and nobody else has it.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// Has the thread's wait, or the next one, end.
    pub(crate) fn wake(&self) {
        // SAFETY: eight bytes that are readable. It fails only if it is full, and wakes then as well.
        unsafe { libc::write(self.0.as_raw_fd(), 1u64.to_ne_bytes().as_ptr().cast(), 8) };
    }

    fn clear(&self) {
        let mut count = [0u8; 8];
        // SAFETY: eight bytes that are writable; the descriptor does not block.
        unsafe { libc::read(self.0.as_raw_fd(), count.as_mut_ptr().cast(), 8) };
    }
}

/// What is done for a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// It is read or written.
    Transfer,
    /// What was written is made durable.
    Sync,
}

/// A request at its end.
pub(crate) struct Ended {
    pub(crate) job: Job,
    pub(crate) medium: Arc<dyn Image>,
    pub(crate) stage: Stage,
    /// The bytes that were there, of a read: fewer at the file's end.
    pub(crate) reply: io::Result<Vec<u8>>,
}

/// A request under way.
struct Flight {
    job: Job,
    /// Keeps the file open.
    medium: Arc<dyn Image>,
    stage: Stage,
    fd: types::Fd,
    at: u64,
    len: usize,
    done: usize,
    /// What is read, or written if the request's own bytes are not aligned; from `skip` on.
    room: Vec<u8>,
    skip: usize,
    /// It goes past the page cache.
    aligned: bool,
}

impl Flight {
    /// The ring's entry for what is left of it.
    fn entry(&mut self) -> squeue::Entry {
        if self.stage == Stage::Sync {
            return opcode::Fsync::new(self.fd).flags(types::FsyncFlags::DATASYNC).build();
        }
        let (at, left) = (self.at + self.done as u64, (self.len - self.done).min(MOST) as u32);
        match &self.job.request {
            Request::Write { data, .. } => {
                let bytes = if self.room.is_empty() { &data[..] } else { &self.room[self.skip..] };
                opcode::Write::new(self.fd, bytes[self.done..].as_ptr(), left).offset(at).build()
            }
            _ => {
                let bytes = self.room[self.skip + self.done..].as_mut_ptr();
                opcode::Read::new(self.fd, bytes, left).offset(at).build()
            }
        }
    }

    /// Notes what the kernel says; how it ended, if it did.
    fn advance(&mut self, result: i32) -> Option<io::Result<()>> {
        if result < 0 {
            return match -result {
                libc::EINTR | libc::EAGAIN => None,
                code => Some(Err(io::Error::from_raw_os_error(code))),
            };
        }
        let writes = matches!(self.job.request, Request::Write { .. });
        match (self.stage, result) {
            (Stage::Sync, _) => Some(Ok(())),
            (_, 0) if writes => Some(Err(io::ErrorKind::WriteZero.into())),
            (_, 0) => Some(Ok(())),
            (_, n) => {
                self.done = (self.done + n as usize).min(self.len);
                // Past the page cache what follows the file's end is not aligned.
                let cut = !writes && self.aligned && !self.done.is_multiple_of(512);
                (self.done == self.len || cut).then_some(Ok(()))
            }
        }
    }

    fn ended(mut self, result: io::Result<()>) -> Ended {
        if self.stage == Stage::Transfer
            && let Some(file) = self.medium.plain(self.at, false)
        {
            file.end_transfer(self.aligned);
        }
        let reply = result.map(|()| {
            if matches!(self.job.request, Request::Write { .. }) || self.stage == Stage::Sync {
                return Vec::new();
            }
            self.room.copy_within(self.skip..self.skip + self.done, 0);
            self.room.truncate(self.done);
            self.room
        });
        Ended { job: self.job, medium: self.medium, stage: self.stage, reply }
    }
}

/// A ring, and what is under way in it.
pub(crate) struct Ring {
    uring: IoUring,
    waker: Arc<Waker>,
    /// There is an entry for the waker.
    armed: bool,
    flights: Vec<Option<Flight>>,
    free: Vec<usize>,
}

impl Ring {
    /// A new one.
    ///
    /// # Errors
    /// The host forbids it, or its kernel is too old.
    pub(crate) fn new() -> io::Result<Self> {
        let uring = IoUring::new(DEPTH as u32 + 8)?;
        let mut probe = Probe::new();
        uring.submitter().register_probe(&mut probe)?;
        let needed = [opcode::Read::CODE, opcode::Write::CODE, opcode::Fsync::CODE, opcode::PollAdd::CODE];
        if !needed.iter().all(|code| probe.is_supported(*code)) {
            return Err(io::Error::new(io::ErrorKind::Unsupported, "the kernel is older than 5.6"));
        }
        Ok(Self {
            uring,
            waker: Arc::new(Waker::new()?),
            armed: false,
            flights: (0..DEPTH).map(|_| None).collect(),
            free: (0..DEPTH).rev().collect(),
        })
    }

    /// Wakes who waits.
    pub(crate) fn waker(&self) -> Arc<Waker> {
        self.waker.clone()
    }

    /// How many requests it takes.
    pub(crate) fn room(&self) -> usize {
        self.free.len()
    }

    /// How many are under way.
    pub(crate) fn under_way(&self) -> usize {
        DEPTH - self.free.len()
    }

    /// Begins a read, a write or a flush whose range is within the disk; gives it back if it cannot go by the ring.
    pub(crate) fn begin(&mut self, job: Job, medium: &Arc<dyn Image>, stage: Stage) -> Result<(), Job> {
        let (at, len, write) = match &job.request {
            _ if stage == Stage::Sync => (0, 0, false),
            Request::Read { at, len } => (*at, *len, false),
            Request::Write { at, data } => (*at, data.len(), true),
            _ => return Err(job),
        };
        if stage == Stage::Transfer && len == 0 {
            return Err(job);
        }
        let Some(&free) = self.free.last() else { return Err(job) };
        let Some(file) = medium.plain(at, write) else { return Err(job) };
        let (file, aligned): (&File, bool) = if stage == Stage::Sync {
            (file.file(), false)
        } else {
            match file.begin_transfer(at, len) {
                Some(file) => file,
                None => return Err(job),
            }
        };
        let fd = types::Fd(file.as_raw_fd());
        let (mut room, mut skip) = (Vec::new(), 0);
        let own = match &job.request {
            Request::Write { data, .. } => Some(&data[..]),
            _ => None,
        };
        let fits = own.is_some_and(|data| !aligned || (data.as_ptr() as usize).is_multiple_of(ALIGN));
        if stage == Stage::Transfer && !fits {
            room.resize(len + if aligned { ALIGN } else { 0 }, 0);
            skip = if aligned { room.as_ptr().align_offset(ALIGN) } else { 0 };
            if let Some(data) = own {
                room[skip..skip + len].copy_from_slice(data);
            }
        }
        let medium = medium.clone();
        self.flights[free] = Some(Flight { job, medium, stage, fd, at, len, done: 0, room, skip, aligned });
        self.free.pop();
        self.push(free);
        Ok(())
    }

    /// Puts what is left of a flight into the ring.
    fn push(&mut self, n: usize) {
        let Some(flight) = &mut self.flights[n] else { return };
        let entry = flight.entry().user_data(n as u64);
        // SAFETY: the descriptor is open as long as the flight has its medium, and the buffer is the flight's: its
        // vectors are neither freed nor changed in length before the kernel has told of the end ([`Ring::reap`]).
        unsafe { self.put(&entry) };
    }

    /// # Safety
    /// What the entry refers to is there until its end.
    unsafe fn put(&mut self, entry: &squeue::Entry) {
        // SAFETY: the caller's promise.
        while unsafe { self.uring.submission().push(entry) }.is_err() {
            // It is full: what is in it goes to the kernel.
            let _ = self.uring.submit();
        }
    }

    /// Gives the kernel what was put in; waits for an end, or for the waker, if `block`. Those that have ended.
    pub(crate) fn wait(&mut self, block: bool, ended: &mut Vec<Ended>) {
        if !self.armed {
            let entry = opcode::PollAdd::new(types::Fd(self.waker.0.as_raw_fd()), libc::POLLIN as u32);
            // SAFETY: the ring has the waker, and there is no buffer.
            unsafe { self.put(&entry.build().user_data(WAKER)) };
            self.armed = true;
        }
        // What is interrupted, or finds no room for ends, is done again by who calls.
        if let Err(e) = self.uring.submit_and_wait(usize::from(block))
            && !matches!(e.raw_os_error(), Some(libc::EINTR | libc::EAGAIN | libc::EBUSY))
        {
            tracing::warn!("io_uring: {e}");
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        self.reap(ended);
    }

    fn reap(&mut self, ended: &mut Vec<Ended>) {
        let ends: Vec<(u64, i32)> = self.uring.completion().map(|e| (e.user_data(), e.result())).collect();
        for (data, result) in ends {
            if data == WAKER {
                self.armed = false;
                self.waker.clear();
                continue;
            }
            let n = data as usize;
            match self.flights[n].as_mut().and_then(|flight| flight.advance(result)) {
                None => self.push(n),
                Some(result) => {
                    ended.extend(self.flights[n].take().map(|flight| flight.ended(result)));
                    self.free.push(n);
                }
            }
        }
    }
}

impl Drop for Ring {
    /// What the kernel may still write to is freed after it has done so.
    fn drop(&mut self) {
        let mut ended = Vec::new();
        while self.under_way() > 0 {
            self.wait(true, &mut ended);
        }
    }
}

/// Whether the host lets us have a ring.
///
/// # Errors
/// Why it does not.
pub(crate) fn check() -> io::Result<()> {
    Ring::new().map(drop)
}
