//! The compiled regions of a machine, for all of its vCPUs: in memory, and on disk behind that.
//!
//! A region is found by its head (mode and bytes of its first block); it is taken where the bytes of all of
//! its blocks are the guest's. So it serves every vCPU, every place that the code stands at, and every run of
//! a guest.
use crate::cache::Cache;
use crate::cache::pack::{Entry, Head, Id, Piece, View};
use crate::code::{Code, CodeMemory, Segment};
use crate::inside::{Inside, Marks};
use mynah_cpu::board::EV_TIER;
use mynah_cpu::{Events, Op};
use parking_lot::{Mutex, RwLock};
use rustc_hash::FxHashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant};

/// Regions with the same head that are kept in memory.
const CANDIDATES: usize = 64;
/// Bytes that a region takes in tables and by its allocations.
const BESIDE: usize = 256;
/// Bytes of code that wait to be written to disk before they are written while the machine runs.
const PENDING: usize = 4 << 20;
/// How long they wait if they are fewer.
const WAIT: Duration = Duration::from_secs(10);

/// A compiled region.
pub(crate) struct Region {
    entry: Entry<Code>,
    id: Id,
    /// The ops of its blocks: the code calls the interpreter's handlers for some of them.
    pub ops: Box<[Op]>,
}

// SAFETY: ops are never changed once they are here; what their handlers point to is the program's own code.
unsafe impl Send for Region {}
// SAFETY: as above.
unsafe impl Sync for Region {}

impl AsRef<[u8]> for Code {
    fn as_ref(&self) -> &[u8] {
        self.bytes()
    }
}

impl Region {
    /// Where its code lies.
    pub fn code(&self) -> &Code {
        &self.entry.code
    }

    /// Its blocks: distance from the first, and bytes.
    pub fn pieces(&self) -> impl Iterator<Item = (i64, &[u8])> {
        self.entry.pieces.iter().map(|p| (p.delta, &*p.bytes))
    }
}

/// What is to be written to disk.
#[derive(Default)]
struct Pending {
    regions: Vec<Arc<Region>>,
    bytes: usize,
    since: Option<Instant>,
}

/// What has been done.
#[derive(Default)]
pub(crate) struct Counters {
    /// Regions that a vCPU took which had been compiled before: for another vCPU, another place or another
    /// time.
    pub shared: AtomicU64,
    /// Segments of code that were given up for others.
    pub given_up: AtomicU64,
}

/// The regions.
pub(crate) struct Store {
    memory: Mutex<CodeMemory>,
    known: RwLock<FxHashMap<Head, Vec<Arc<Region>>>>,
    /// What is on disk, as soon as it is open.
    cache: OnceLock<Cache>,
    /// There is a disk to write to, or will be.
    keeps: AtomicBool,
    pending: Mutex<Pending>,
    inside: Arc<Inside>,
    pub counters: Counters,
    /// How often code was given up: who keeps some looks whether it is theirs when this has changed.
    given_up: AtomicU64,
    /// Who is told of that.
    keepers: Mutex<Vec<Weak<Events>>>,
}

impl Store {
    /// A store whose regions take up to `limit` bytes, and that `keeps` regions for [`Self::set_cache`]; an
    /// error says that the host has no executable memory.
    pub fn new(limit: usize, inside: Arc<Inside>, keeps: bool, split: bool) -> std::io::Result<Self> {
        Ok(Self {
            memory: Mutex::new(CodeMemory::new(limit, split)?),
            known: RwLock::default(),
            cache: OnceLock::new(),
            keeps: AtomicBool::new(keeps),
            pending: Mutex::default(),
            inside,
            counters: Counters::default(),
            given_up: AtomicU64::new(0),
            keepers: Mutex::default(),
        })
    }

    /// A vCPU keeps regions: it is told when it is to let some go, even if it sleeps.
    pub fn tell(&self, events: &Arc<Events>) {
        self.keepers.lock().push(Arc::downgrade(events));
    }

    /// Puts what is on disk behind the store, or nothing if it cannot be used. Once.
    pub fn set_cache(&self, cache: Option<Cache>) {
        match cache {
            Some(c) => {
                let _ = self.cache.set(c);
            }
            None => {
                self.keeps.store(false, Ordering::Relaxed);
                *self.pending.lock() = Pending::default();
            }
        }
    }

    /// What is on disk.
    pub fn cache(&self) -> Option<&Cache> {
        self.cache.get()
    }

    /// How often code was given up.
    pub fn given_up(&self) -> u64 {
        self.given_up.load(Ordering::Acquire)
    }

    /// Bytes of memory for code.
    pub fn bytes(&self) -> usize {
        self.memory.lock().bytes()
    }

    /// The largest region in memory with this head and mode whose blocks are found by `matches` to be the
    /// guest's.
    pub fn find(&self, head: Head, mode: u32, matches: impl Fn(i64, &[u8]) -> bool) -> Option<Arc<Region>> {
        let known = self.known.read();
        let fit =
            known.get(&head).into_iter().flatten().filter(|r| {
                r.entry.mode == mode && r.entry.pieces.iter().all(|p| matches(p.delta, &p.bytes))
            });
        fit.max_by_key(|r| r.entry.instructions).cloned()
    }

    /// A region in memory.
    pub fn get(&self, head: Head, id: Id) -> Option<Arc<Region>> {
        self.known.read().get(&head)?.iter().find(|r| r.id == id).cloned()
    }

    /// As [`Self::find`], of what is on disk. The region is not known in memory before [`Self::add`].
    pub fn find_on_disk(
        &self,
        head: Head,
        mode: u32,
        matches: impl Fn(i64, &[u8]) -> bool,
    ) -> Option<Entry<Vec<u8>>> {
        let fits = |v: &View| v.mode == mode && v.pieces().all(|(delta, bytes)| matches(delta, bytes));
        self.cache.get()?.find(head, fits)
    }

    /// Puts a region into memory, named by the linear address `lin` to those who look inside; it will be
    /// written to disk if it is `new`. `None` if there is no room.
    pub fn add(
        &self,
        e: Entry<Vec<u8>>,
        ops: Box<[Op]>,
        lin: u64,
        marks: &Marks,
        new: bool,
    ) -> Option<Arc<Region>> {
        let (head, id) = (e.head(), e.id());
        let pieces: usize = e.pieces.iter().map(|p| p.bytes.len() + size_of::<Piece>()).sum();
        let beside = size_of::<Region>() + size_of_val(&*ops) + pieces + BESIDE;
        let placed = self.memory.lock().place(&e.code, beside)?;
        let code = placed.code;
        let region = Arc::new(Region {
            entry: Entry { mode: e.mode, instructions: e.instructions, ops: e.ops, pieces: e.pieces, code },
            id,
            ops,
        });
        self.inside.show(region.code().address(), region.code().bytes(), lin, marks);
        {
            let mut known = self.known.write();
            for old in placed.given_up {
                self.forget(&mut known, &old);
            }
            let list = known.entry(head).or_default();
            if list.len() >= CANDIDATES {
                list.remove(0);
            }
            list.push(region.clone());
        }
        if new && self.keeps.load(Ordering::Relaxed) {
            let mut p = self.pending.lock();
            p.bytes += region.code().len;
            p.since.get_or_insert_with(Instant::now);
            p.regions.push(region.clone());
        }
        Some(region)
    }

    fn forget(&self, known: &mut FxHashMap<Head, Vec<Arc<Region>>>, old: &Arc<Segment>) {
        known.retain(|_, list| {
            list.retain(|r| !Arc::ptr_eq(&r.code().segment, old));
            !list.is_empty()
        });
        self.counters.given_up.fetch_add(1, Ordering::Relaxed);
        self.given_up.fetch_add(1, Ordering::Release);
        self.keepers.lock().retain(|k| k.upgrade().inspect(|events| events.raise(EV_TIER)).is_some());
    }

    /// When what waits to be written is due: at once, later, or `None` if nothing waits.
    pub fn write_due(&self) -> Option<Duration> {
        self.cache.get()?;
        let p = self.pending.lock();
        let since = p.since?;
        Some(if p.bytes >= PENDING { Duration::ZERO } else { WAIT.saturating_sub(since.elapsed()) })
    }

    /// Writes what is not on disk yet.
    pub fn write(&self) {
        let Some(cache) = self.cache.get() else { return };
        let regions = {
            let mut p = self.pending.lock();
            (p.bytes, p.since) = (0, None);
            std::mem::take(&mut p.regions)
        };
        cache.write(&regions.iter().map(|r| &r.entry).collect::<Vec<_>>());
    }
}
