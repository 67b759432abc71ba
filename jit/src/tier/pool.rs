//! The threads that compile for the vCPUs of a machine, and the queue before them.
//!
//! ```text
//!   vCPU --Job--> queue (bounded, the latest first) --> thread --Region--> store; Done --> the vCPU's seat,
//!   EV_TIER
//! ```
//!
//! A vCPU never waits for a thread: it holds the queue's lock for a push, and takes what is done when it
//! looks at its events. A region that another vCPU has had compiled meanwhile is not compiled again, and two
//! vCPUs that want the same one while it is compiled both get it.
use super::counters::Counters;
use crate::cache::pack::{Entry, Id, Piece};
use crate::cache::store::{Region, Store};
use crate::clif::compile::Compiler;
use crate::listing::Mark;
use crate::plan::Plan;
use mynah_cpu::board::EV_TIER;
use mynah_cpu::{CpuModel, Events};
use parking_lot::{Condvar, Mutex};
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

/// Plans that may wait for a thread; then the oldest is dropped, and its block counted anew.
const QUEUE: usize = 64;
/// Most threads.
const THREADS: usize = 4;

/// Threads for this host: one CPU is left to the guest.
pub(crate) fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, |n| n.get().saturating_sub(1)).clamp(1, THREADS)
}

/// What a vCPU and the threads share.
pub(crate) struct Seat {
    events: Arc<Events>,
    pub counters: Arc<Counters>,
    done: Mutex<Vec<Done>>,
}

impl Seat {
    pub fn new(events: Arc<Events>) -> Arc<Self> {
        Arc::new(Self { events, counters: Arc::default(), done: Mutex::default() })
    }

    /// What has been done for the vCPU.
    pub fn take(&self) -> Vec<Done> {
        std::mem::take(&mut *self.done.lock())
    }

    fn tell(&self, done: Done) {
        self.done.lock().push(done);
        self.events.raise(EV_TIER);
    }
}

/// Where a region is wanted.
#[derive(Clone, Copy)]
pub(crate) struct Place {
    /// The linear address at which the block got hot.
    pub lin: u64,
    pub phys: u64,
    pub key: u32,
}

/// What a vCPU gets for a job.
pub(crate) enum Done {
    /// The region.
    Region(Place, Arc<Region>),
    /// Nothing: the queue was full.
    Dropped(Place),
}

/// A region to be compiled.
pub(crate) struct Job {
    plan: Plan,
    /// What it will be: without code as yet.
    entry: Entry<Vec<u8>>,
    id: Id,
    place: Place,
    seat: Arc<Seat>,
    keep: bool,
}

impl Job {
    /// The region of a plan, for a vCPU; `keep` it for others, too.
    pub fn new(plan: Plan, place: Place, seat: Arc<Seat>, keep: bool) -> Self {
        let deltas = plan.blocks.iter().map(|b| b.delta);
        let pieces =
            deltas.zip(plan.parts()).map(|(delta, p)| Piece { delta, bytes: p.bytes.clone() }).collect();
        let (instructions, ops) = (plan.instruction_count() as u32, plan.ops.len() as u32);
        let entry = Entry { mode: place.key, instructions, ops, pieces, code: Vec::new() };
        Self { id: entry.id(), plan, entry, place, seat, keep }
    }
}

/// Compiles a region, on whichever thread, and puts it into the store.
pub(crate) fn compile(
    compiler: &mut Compiler,
    model: &CpuModel,
    store: &Store,
    job: Job,
) -> Option<Arc<Region>> {
    let counters = &job.seat.counters;
    let start = Instant::now();
    let code = compiler.region(&job.plan, model, job.place.lin);
    counters.nanos.fetch_add(start.elapsed().as_nanos() as u64, Ordering::Relaxed);
    let Some(code) = code else {
        counters.refused.fetch_add(1, Ordering::Relaxed);
        tracing::debug!(phys = format_args!("{:#x}", job.place.phys), "refused");
        return None;
    };
    counters.compiled.fetch_add(1, Ordering::Relaxed);
    counters.instructions.fetch_add(u64::from(job.entry.instructions), Ordering::Relaxed);
    counters.bytes.fetch_add(code.len() as u64, Ordering::Relaxed);
    let mut called = counters.called.lock();
    for &op in compiler.called() {
        *called.entry(op).or_default() += 1;
    }
    drop(called);
    let lin = job.place.lin;
    let marked = compiler.marks().iter().filter_map(|&(offset, mark)| {
        let (lin, bytes) = job.plan.marked(mark, lin)?;
        Some(Mark { offset: offset as usize, lin, bytes })
    });
    let marks = (job.plan.bitness(), marked.collect());
    store.add(Entry { code, ..job.entry }, job.plan.ops.into(), lin, &marks, job.keep)
}

#[derive(Default)]
struct Queue {
    jobs: VecDeque<Job>,
    /// What is being compiled, and who wants it too.
    busy: HashMap<Id, Vec<(Place, Arc<Seat>)>>,
    stopped: bool,
}

/// The queue and what the threads work on.
pub(crate) struct Pool {
    model: Arc<CpuModel>,
    store: Arc<Store>,
    queue: Mutex<Queue>,
    wake: Condvar,
}

impl Pool {
    /// Threads, one for each compiler; an error says that there are none.
    pub fn start(
        model: Arc<CpuModel>,
        store: Arc<Store>,
        compilers: Vec<Compiler>,
    ) -> Result<Arc<Self>, String> {
        let pool = Arc::new(Self { model, store, queue: Mutex::default(), wake: Condvar::new() });
        for (n, compiler) in compilers.into_iter().enumerate() {
            let p = pool.clone();
            // Nobody waits for their end: what they are compiling then is not wanted.
            let started =
                std::thread::Builder::new().name(format!("mynah-jit{n}")).spawn(move || p.work(compiler));
            match started {
                Ok(_) => {}
                Err(e) if n == 0 => return Err(format!("no thread to compile on: {e}")),
                Err(_) => break,
            }
        }
        Ok(pool)
    }

    /// Has a region compiled.
    pub fn submit(&self, job: Job) {
        let mut q = self.queue.lock();
        q.jobs.push_back(job);
        let dropped = if q.jobs.len() > QUEUE { q.jobs.pop_front() } else { None };
        drop(q);
        self.wake.notify_one();
        if let Some(old) = dropped {
            old.seat.counters.full.fetch_add(1, Ordering::Relaxed);
            old.seat.tell(Done::Dropped(old.place));
        }
    }

    /// Has the threads end when they have finished what they are at.
    pub fn stop(&self) {
        let mut q = self.queue.lock();
        q.stopped = true;
        q.jobs.clear();
        drop(q);
        self.wake.notify_all();
    }

    /// The next job; what waits to be written is written meanwhile. `None`: stop.
    fn next(&self) -> Option<Job> {
        let mut q = self.queue.lock();
        loop {
            if q.stopped {
                return None;
            }
            let due = self.store.write_due();
            if due.is_some_and(|d| d.is_zero()) {
                drop(q);
                self.store.write();
                q = self.queue.lock();
                continue;
            }
            // The latest first: what has just become hot is what is running.
            if let Some(job) = q.jobs.pop_back() {
                return Some(job);
            }
            match due {
                Some(d) => {
                    self.wake.wait_for(&mut q, d);
                }
                None => self.wake.wait(&mut q),
            }
        }
    }

    fn work(&self, mut compiler: Compiler) {
        while let Some(job) = self.next() {
            let (id, head, mine) = (job.id, job.entry.head(), (job.place, job.seat.clone()));
            {
                let mut q = self.queue.lock();
                if let Some(waiting) = q.busy.get_mut(&id) {
                    waiting.push(mine);
                    continue;
                }
                if let Some(region) = self.store.get(head, id) {
                    drop(q);
                    mine.1.tell(Done::Region(mine.0, region));
                    continue;
                }
                q.busy.insert(id, Vec::new());
            }
            let region = compile(&mut compiler, &self.model, &self.store, job);
            let waiting = self.queue.lock().busy.remove(&id).unwrap_or_default();
            if let Some(region) = region {
                for (place, seat) in waiting.into_iter().chain([mine]) {
                    seat.tell(Done::Region(place, region.clone()));
                }
            }
        }
    }
}
