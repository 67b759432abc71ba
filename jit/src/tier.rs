//! The tier above the interpreter: regions compiled on a thread of their own while the vCPU goes on interpreting.
//!
//! ```text
//!   interpreter --hot block--> Plan --queue (bounded)--> compiler thread --code--> ready list, EV_TIER --> install on the vCPU's thread
//! ```
//!
//! A plan is made on the vCPU's thread, which owns the decoded blocks; compiling needs nothing but the plan. When code comes back the blocks
//! may have died meanwhile: [`mynah_cpu::Cpu::install`] takes it only if all of them are there, and their bytes are compared.
use crate::baseline::{self, Baseline};
use crate::code::{CodeMemory, Part};
use crate::compile::Compiler;
pub use crate::compile::Optimize;
use crate::listing::{Mark, host_code};
use crate::perf::{Perf, Symbols};
use crate::region::Plan;
use crate::runtime::{Context, Stub};
use iced_x86::InstructionInfoFactory;
use mynah_cpu::board::EV_TIER;
use mynah_cpu::state::{gpr, seg};
use mynah_cpu::tier::{Compiled, Enter, Tier};
use mynah_cpu::{Cpu, CpuModel, Events, Op};
use parking_lot::{Condvar, Mutex};
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;

/// Executions after which a block is compiled.
pub const HOT: u32 = 500;
/// Executions in the baseline after which a block is compiled by Cranelift.
const HOTTER: u32 = 30_000;
/// Plans that may wait for the compiler; then the oldest is dropped, and its block counted anew.
const QUEUE: usize = 64;
/// Bytes of code kept.
const CODE: usize = 128 << 20;

/// Guest instructions within which a block that is compiled again counts as one that is written and run in turn.
const STORM: u64 = 1 << 20;
/// Blocks whose last compilation is remembered.
const HISTORY: usize = 1 << 16;

/// When a block was compiled last, and how often it must get hot before it is compiled again.
struct Past {
    icount: u64,
    level: u32,
    skip: u32,
}

/// What has been done.
#[derive(Default)]
pub struct Counters {
    /// Blocks compiled by the baseline.
    pub blocks: AtomicU64,
    /// Guest instructions in them.
    pub block_instructions: AtomicU64,
    /// Bytes of their host code.
    pub block_bytes: AtomicU64,
    /// Nanoseconds spent on compiling them.
    pub block_nanos: AtomicU64,
    /// By instruction code: how many of them they call the interpreter for.
    pub block_called: Mutex<HashMap<u16, u64>>,
    /// Regions compiled.
    pub compiled: AtomicU64,
    /// Regions installed.
    pub installed: AtomicU64,
    /// Regions that came too late: their blocks had changed.
    pub late: AtomicU64,
    /// Blocks that could not be compiled.
    pub refused: AtomicU64,
    /// Times that the queue was full.
    pub full: AtomicU64,
    /// Times that a hot block was left to the interpreter because it had been compiled a short while before.
    pub put_off: AtomicU64,
    /// Guest instructions in compiled regions.
    pub instructions: AtomicU64,
    /// Bytes of host code.
    pub bytes: AtomicU64,
    /// By instruction code: how many of them the code calls the interpreter for.
    pub called: Mutex<HashMap<u16, u64>>,
    /// What the vCPU last told: instructions executed, and how often compiled code was left, by reason.
    pub running: Mutex<(u64, [u64; 8])>,
    /// And how many of those instructions were executed in compiled code.
    pub in_code: AtomicU64,
    /// Nanoseconds spent compiling.
    pub nanos: AtomicU64,
}

impl Counters {
    /// Notes how far the vCPU has come.
    fn tell(&self, cpu: &Cpu) {
        *self.running.lock() = (cpu.icount, cpu.left);
        self.in_code.store(cpu.in_code, Ordering::Relaxed);
    }
}

struct Job {
    plan: Plan,
    /// The linear address at which the block got hot.
    lin: u64,
    phys: u64,
    key: u32,
}

struct Done {
    lin: u64,
    code: Vec<u8>,
    ops: Box<[Op]>,
    parts: Box<[Part]>,
    phys: u64,
    key: u32,
    /// What its code was made from, and how wide that code's addresses are; if somebody wants to know.
    marks: (u32, Vec<Mark>),
}

#[derive(Default)]
struct Shared {
    queue: Mutex<(VecDeque<Job>, bool)>,
    wake: Condvar,
    done: Mutex<Vec<Done>>,
}

/// What is kept of installed code.
struct Region {
    /// The code calls the interpreter's handlers for these.
    _ops: Box<[Op]>,
    segment: usize,
    phys: u64,
    key: u32,
}

/// Where a text about the code of a guest address goes.
pub type Sink = Arc<dyn Fn(u64, &str) + Send + Sync>;

/// What is told of regions to those who look inside.
#[derive(Default)]
pub struct Inside {
    /// Takes Cranelift's intermediate representation of each.
    pub ir: Option<Sink>,
    /// Takes the host code of each.
    pub asm: Option<Sink>,
    /// Takes their names and places.
    pub perf: Option<Arc<Perf>>,
    /// The names of the guest's functions.
    pub symbols: Arc<Symbols>,
}

/// Who compiles.
enum Worker {
    /// A thread, while the vCPU goes on interpreting.
    Thread(Option<JoinHandle<()>>),
    /// The vCPU's own thread, which stands still meanwhile.
    AtOnce(Box<Compiler>),
}

/// The translator as a tier of one vCPU.
pub struct Translating {
    worker: Worker,
    shared: Arc<Shared>,
    counters: Arc<Counters>,
    memory: CodeMemory,
    context: Option<Context>,
    enter: Enter,
    regions: HashMap<(u64, u32), Region>,
    history: HashMap<(u64, u32), Past>,
    /// Of blocks of the baseline that have died.
    rewritten: HashMap<(u64, u32), Past>,
    info: InstructionInfoFactory,
    inside: Inside,
    stubs: Vec<Stub>,
    baseline: Option<Box<Baseline>>,
}

// SAFETY: the raw pointers in `context` lead to code that `memory` owns, to functions, and to the events of the vCPU, which outlive it; ops hold
// function pointers.
unsafe impl Send for Translating {}

impl Translating {
    /// A tier for a vCPU of `model` that compiles in the background; an error says why this host has none.
    pub fn new(model: Arc<CpuModel>, events: Arc<Events>) -> Result<Self, String> {
        Self::new_with(model, events, Inside::default())
    }

    /// As [`Self::new`], for somebody who looks inside.
    pub fn new_with(model: Arc<CpuModel>, events: Arc<Events>, inside: Inside) -> Result<Self, String> {
        let (mut compiler, mut tier) = Self::prepare(&events, Optimize::Speed)?;
        (compiler.ir, compiler.symbols) = (inside.ir.clone(), inside.symbols.clone());
        for stub in &tier.stubs {
            if let Some(perf) = &inside.perf {
                perf.stub(stub.address, &stub.code, stub.name);
            }
        }
        let baseline = Baseline::new(tier.enter, HOTTER)?;
        if let Some(perf) = &inside.perf {
            let (address, code) = baseline.stubs();
            perf.stub(address, code, "baseline");
        }
        tier.baseline = Some(Box::new(baseline));
        tier.inside = inside;
        let (shared, counters) = (tier.shared.clone(), tier.counters.clone());
        let thread = std::thread::Builder::new()
            .name("mynah-jit".into())
            .spawn(move || work(compiler, &model, &events, &shared, &counters))
            .map_err(|e| format!("no thread to compile on: {e}"))?;
        tier.worker = Worker::Thread(Some(thread));
        Ok(tier)
    }

    /// A tier that compiles a hot block before it goes on: for tests, where what runs compiled must not depend on time.
    pub fn at_once(events: Arc<Events>) -> Result<Self, String> {
        Self::at_once_with(events, Optimize::Speed)
    }

    /// A tier that compiles a hot block by the baseline, and one that has run `hotter` times more by Cranelift, before it goes on: for tests.
    pub fn in_turn(events: Arc<Events>, hotter: u32) -> Result<Self, String> {
        let mut tier = Self::at_once(events)?;
        tier.baseline = Some(Box::new(Baseline::new(tier.enter, hotter)?));
        Ok(tier)
    }

    /// As [`Self::at_once`], with a choice of how much is optimised.
    pub fn at_once_with(events: Arc<Events>, optimize: Optimize) -> Result<Self, String> {
        let (compiler, mut tier) = Self::prepare(&events, optimize)?;
        if optimize == Optimize::Baseline {
            tier.baseline = Some(Box::new(Baseline::new(tier.enter, u32::MAX >> 1)?));
            return Ok(tier);
        }
        tier.worker = Worker::AtOnce(Box::new(compiler));
        Ok(tier)
    }

    fn prepare(events: &Arc<Events>, optimize: Optimize) -> Result<(Compiler, Self), String> {
        if !cfg!(target_arch = "x86_64") {
            return Err("the guest's memory order is not yet kept on this host".into());
        }
        let mut compiler = Compiler::new(optimize)?;
        let mut memory = CodeMemory::new(CODE).map_err(|e| format!("no executable memory: {e}"))?;
        let mut stubs = Vec::new();
        let (context, enter) = Context::new(&mut compiler, &mut memory, events.as_ptr(), &mut stubs)?;
        let tier = Self {
            worker: Worker::Thread(None),
            shared: Arc::default(),
            counters: Arc::default(),
            memory,
            context: Some(context),
            enter,
            regions: HashMap::new(),
            history: HashMap::new(),
            rewritten: HashMap::new(),
            info: InstructionInfoFactory::new(),
            inside: Inside::default(),
            stubs,
            baseline: None,
        };
        Ok((compiler, tier))
    }

    /// Executions after which the tier wants to be told of a block.
    pub fn hot_after(&self) -> u32 {
        if self.baseline.is_some() { baseline::HOT } else { HOT }
    }

    /// The counters, which go on counting.
    pub fn counters(&self) -> Arc<Counters> {
        self.counters.clone()
    }
}

fn work(mut compiler: Compiler, model: &CpuModel, events: &Events, shared: &Shared, counters: &Counters) {
    loop {
        let job = {
            let mut q = shared.queue.lock();
            loop {
                if q.1 {
                    return;
                }
                // The latest first: what has just become hot is what is running.
                if let Some(job) = q.0.pop_back() {
                    break job;
                }
                shared.wake.wait(&mut q);
            }
        };
        if let Some(done) = compile(&mut compiler, model, job, counters) {
            shared.done.lock().push(done);
            events.raise(EV_TIER);
        }
    }
}

fn compile(compiler: &mut Compiler, model: &CpuModel, mut job: Job, counters: &Counters) -> Option<Done> {
    let start = std::time::Instant::now();
    let code = compiler.region(&job.plan, model, job.lin);
    counters.nanos.fetch_add(start.elapsed().as_nanos() as u64, Ordering::Relaxed);
    let Some(code) = code else {
        counters.refused.fetch_add(1, Ordering::Relaxed);
        tracing::debug!(phys = format_args!("{:#x}", job.phys), "refused");
        return None;
    };
    counters.compiled.fetch_add(1, Ordering::Relaxed);
    counters.instructions.fetch_add(job.plan.instruction_count() as u64, Ordering::Relaxed);
    counters.bytes.fetch_add(code.len() as u64, Ordering::Relaxed);
    let mut called = counters.called.lock();
    for &op in compiler.called() {
        *called.entry(op).or_default() += 1;
    }
    drop(called);
    let marked = compiler.marks().iter().filter_map(|&(offset, mark)| {
        let (lin, bytes) = job.plan.marked(mark, job.lin)?;
        Some(Mark { offset: offset as usize, lin, bytes })
    });
    let marks = (job.plan.bitness(), marked.collect());
    let parts = job.plan.take_parts();
    Some(Done { lin: job.lin, code, ops: job.plan.ops.into(), parts, phys: job.phys, key: job.key, marks })
}

/// The linear address of the instruction at RIP.
fn code_linear(cpu: &Cpu) -> u64 {
    let base = if cpu.state.is_long64() { 0 } else { cpu.state.seg[seg::CS].base };
    cpu.state.gpr[gpr::RIP].wrapping_add(base)
}

/// Tells those who look inside of the block at RIP, which the baseline has just compiled.
fn show_block(cpu: &Cpu, b: &Baseline, inside: &Inside) {
    let lin = code_linear(cpu);
    if let Some(perf) = &inside.perf {
        let (address, code) = b.latest();
        perf.region(address, code, lin);
    }
    if let Some(asm) = &inside.asm {
        let (address, code) = b.latest();
        let (bitness, marks) = b.latest_marks(cpu, lin);
        asm(lin, &host_code(address, code, &inside.symbols.describe(lin), bitness, &marks));
    }
}

/// Whether a block that is hot is to be compiled. One that is written and run in turn must get hot twice as often each time.
fn is_worth_it(history: &mut HashMap<(u64, u32), Past>, icount: u64, block: (u64, u32)) -> bool {
    if history.len() >= HISTORY {
        history.clear();
    }
    let Some(past) = history.get_mut(&block) else {
        history.insert(block, Past { icount, level: 0, skip: 0 });
        return true;
    };
    if past.skip > 0 {
        past.skip -= 1;
        return false;
    }
    past.level = if icount.wrapping_sub(past.icount) < STORM { (past.level + 1).min(20) } else { 0 };
    past.icount = icount;
    past.skip = (1 << past.level) - 1;
    true
}

impl Tier for Translating {
    fn attach(&mut self, cpu: &mut Cpu) {
        if let Some(mut context) = self.context.take() {
            if let Some(b) = &self.baseline {
                b.attach(&mut context);
            }
            // SAFETY: the memory is large enough and aligned, and made for this.
            unsafe { cpu.tier_memory.0.as_mut_ptr().cast::<Context>().write(context) };
        }
    }

    fn hot(&mut self, cpu: &mut Cpu, phys: u64, key: u32) {
        if self.baseline.as_ref().is_some_and(|b| b.knows(phys, key) && !b.has(cpu, phys, key))
            && !is_worth_it(&mut self.rewritten, cpu.icount, (phys, key))
        {
            self.counters.put_off.fetch_add(1, Ordering::Relaxed);
            cpu.cool(phys, key);
            return;
        }
        let start = std::time::Instant::now();
        if let Some(b) = &mut self.baseline
            && !b.has(cpu, phys, key)
            && b.compile(cpu, phys, key)
        {
            self.counters.block_nanos.fetch_add(start.elapsed().as_nanos() as u64, Ordering::Relaxed);
            show_block(cpu, b, &self.inside);
            self.counters.tell(cpu);
            let mut called = self.counters.block_called.lock();
            for &code in b.latest_called() {
                *called.entry(code).or_default() += 1;
            }
            drop(called);
            self.counters.blocks.store(b.compiled, Ordering::Relaxed);
            self.counters.block_instructions.store(b.instructions, Ordering::Relaxed);
            self.counters.block_bytes.store(b.bytes, Ordering::Relaxed);
            return;
        }
        self.hotter(cpu, phys, key);
    }

    fn hotter(&mut self, cpu: &mut Cpu, phys: u64, key: u32) {
        self.counters.tell(cpu);
        if let Some(b) = &mut self.baseline {
            // Should it not be compiled now.
            b.count_again(cpu, phys, key);
        }
        if !is_worth_it(&mut self.history, cpu.icount, (phys, key)) {
            self.counters.put_off.fetch_add(1, Ordering::Relaxed);
            cpu.cool(phys, key);
            return;
        }
        let Some(mut plan) = cpu.known_block(phys, key).and_then(|b| Plan::new(cpu, b, &mut self.info))
        else {
            self.counters.refused.fetch_add(1, Ordering::Relaxed);
            return;
        };
        // The blocks of a loop become hot together: one region is enough, unless they go on being entered from elsewhere.
        for part in plan.part_addresses().filter(|&p| p != phys) {
            cpu.cool(part, key);
            if let Some(b) = &mut self.baseline {
                b.count_again(cpu, part, key);
            }
        }
        let lin = code_linear(cpu);
        plan.marks = (self.inside.ir.is_some() || self.inside.asm.is_some()).then_some(lin as u32);
        let job = Job { plan, lin, phys, key };
        if let Worker::Thread(None) = &self.worker {
            return;
        }
        if let Worker::AtOnce(compiler) = &mut self.worker {
            let model = cpu.model.clone();
            if let Some(done) = compile(compiler, &model, job, &self.counters) {
                self.install(cpu, done);
            }
            return;
        }
        let mut queue = self.shared.queue.lock();
        queue.0.push_back(job);
        let dropped = if queue.0.len() > QUEUE { queue.0.pop_front() } else { None };
        drop(queue);
        if let Some(old) = dropped {
            self.counters.full.fetch_add(1, Ordering::Relaxed);
            self.history.remove(&(old.phys, old.key));
            cpu.cool(old.phys, old.key);
        }
        self.shared.wake.notify_one();
    }

    fn ready(&mut self, cpu: &mut Cpu) {
        let done = std::mem::take(&mut *self.shared.done.lock());
        for d in done {
            self.install(cpu, d);
        }
    }
}

impl Translating {
    /// Puts code into place for the vCPU, if the blocks that it was made of are still there.
    fn install(&mut self, cpu: &mut Cpu, d: Done) {
        if !d.parts.iter().all(|p| p.holds(cpu, d.key)) {
            self.counters.late.fetch_add(1, Ordering::Relaxed);
            cpu.cool(d.phys, d.key);
            return;
        }
        let Some(placed) = self.memory.place(&d.code) else { return };
        if let Some(segment) = placed.evicted {
            self.regions.retain(|_, r| {
                if r.segment == segment {
                    cpu.uninstall(r.phys, r.key);
                }
                r.segment != segment
            });
        }
        let code = Compiled { enter: self.enter, code: placed.address, ops: d.ops.as_ptr() };
        let parts: Vec<u64> = d.parts.iter().map(|p| p.phys).collect();
        // SAFETY: code, ops and context stay until the region is uninstalled (above) or the vCPU, which owns this tier, ends.
        if unsafe { cpu.install(d.phys, d.key, &parts, code) } {
            if let Some(perf) = &self.inside.perf {
                perf.region(placed.address, &d.code, d.lin);
            }
            if let Some(asm) = &self.inside.asm {
                let what = self.inside.symbols.describe(d.lin);
                asm(d.lin, &host_code(placed.address, &d.code, &what, d.marks.0, &d.marks.1));
            }
            self.counters.installed.fetch_add(1, Ordering::Relaxed);
            let region = Region { _ops: d.ops, segment: placed.segment, phys: d.phys, key: d.key };
            self.regions.insert((d.phys, d.key), region);
        }
    }
}

impl Drop for Translating {
    fn drop(&mut self) {
        self.shared.queue.lock().1 = true;
        self.shared.wake.notify_one();
        if let Worker::Thread(Some(t)) = std::mem::replace(&mut self.worker, Worker::Thread(None)) {
            let _ = t.join();
        }
        let c = &self.counters;
        let n = |v: &AtomicU64| v.load(Ordering::Relaxed);
        tracing::info!(
            compiled = n(&c.compiled),
            installed = n(&c.installed),
            late = n(&c.late),
            refused = n(&c.refused),
            full = n(&c.full),
            instructions = n(&c.instructions),
            bytes = n(&c.bytes),
            ms = n(&c.nanos) / 1_000_000,
            blocks = n(&c.blocks),
            block_instructions = n(&c.block_instructions),
            block_bytes = n(&c.block_bytes),
            left = ?c.running.lock(),
            "translator"
        );
    }
}
