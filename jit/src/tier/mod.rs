//! The tiers above the interpreter: blocks compiled by the baseline at once, and regions on threads of their own while
//! the vCPU goes on.
//!
//! ```text
//!   hot block --> store: in memory, on disk --known--> install on the vCPU's thread
//!                   | no                                        ^
//!                   v                                           |
//!               baseline: code of the block            ready list, EV_TIER
//!                   | hotter                                    |
//!                   v                                           |
//!               store --no--> Plan --> pool (queue, threads) --> store
//! ```
//!
//! A plan is made on the vCPU's thread, which owns the decoded blocks; compiling needs nothing but the plan.
//! A region is installed if the bytes of all its blocks are the guest's at that moment; blocks that are not
//! decoded then are, as a block that dies takes the code along that was made of it.
mod counters;
pub(crate) mod pool;

use crate::abi::{Context, NO_BLOCK, PLACE_MISSES};
pub use crate::cache::key::Image;
use crate::cache::pack::Head;
use crate::cache::store::{Region, Store};
use crate::cache::{Cache, SHARES};
pub use crate::cache::{Folder, LIMIT};
use crate::clif::compile::Compiler;
pub use crate::clif::compile::Optimize;
use crate::clif::emitted;
use crate::code::dual_map::{self, Executed};
use crate::code::flush::synchronise;
use crate::code::provider::Provider;
use crate::host::baseline::{self, Baseline};
use crate::host::x87::is_x87_number;
use crate::inside::Marks;
pub use crate::inside::{Inside, Sink};
use crate::plan::Plan;
pub use counters::Counters;
use iced_x86::InstructionInfoFactory;
use mynah_cpu::block::Block;
use mynah_cpu::mode::ModeKey;
use mynah_cpu::tier::{Compiled, Enter, Recorded, Tier};
use mynah_cpu::{Cpu, CpuModel, Events, Op};
use mynah_mmu::{PAGE_MASK, PAGE_SIZE};
use pool::{Done, Job, Place, Pool, Seat};
use rustc_hash::FxHashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Whether this host has a baseline.
pub const HAS_BASELINE: bool = baseline::HERE;
/// Executions after which a block is compiled, where there is no baseline.
pub const HOT: u32 = 500;
/// Jumps backwards to a block in the baseline after which it is compiled by Cranelift.
const HOTTER: u32 = 20_000;
/// Jumps backwards after that, during which it is looked at how much else is executed meanwhile.
const PROBE: u32 = 10_000;
/// How often that is looked at before a block stays in the baseline.
const PROBES: u32 = 3;
/// Blocks that are recorded to find those that are executed with a hot loop that stays in the baseline, and how often
/// one must be among them.
const RECORDED: usize = 1024;
const OFTEN: usize = RECORDED / 256;
/// The same of a kernel's blocks: its ways are long, and pages change with what it is asked for.
const KERNEL_OFTEN: usize = RECORDED / 32;
/// Up to this address it is no kernel that runs as one, but what loads and unpacks it: that has loops as programs have.
const LOADERS: u64 = 0x7fff_ffff;
/// Executions after which a block's code is looked for among what has been compiled before: what was hot once
/// will be again. With the baseline it is looked for when that would take the block, which is earlier.
const KNOWN: u32 = 8;
/// Bytes that regions take, and each vCPU's baseline, unless told otherwise.
pub const REGION_BYTES: usize = 64 << 20;
/// See [`REGION_BYTES`].
pub const BASELINE_BYTES: usize = 192 << 20;
/// Bytes that the stubs may take.
const STUBS: usize = 64 << 10;

/// Guest instructions within which a block that is compiled again counts as one that is written and run in
/// turn.
const STORM: u64 = 1 << 20;
/// Blocks whose last compilation is remembered.
const HISTORY: usize = 1 << 14;
/// Blocks that have code of regions.
const INSTALLED: usize = 1 << 14;

/// When a block was compiled last, and how often it must get hot before it is compiled again.
struct Past {
    icount: u64,
    level: u32,
    skip: u32,
}

/// Where regions are kept on disk.
pub struct OnDisk {
    /// The folder.
    pub folder: Folder,
    /// Bytes that it may take.
    pub limit: u64,
    /// What the guest is booted from: code is kept for that alone, in a quarter of the room. Without, what is there is
    /// for every guest that has none.
    pub image: Option<Image>,
}

/// What an engine is to be like.
pub struct Options {
    /// How much is optimised.
    pub optimize: Optimize,
    /// There is a baseline (if the host has one), and blocks that it has run so often go on to Cranelift.
    pub baseline: Option<u32>,
    /// Bytes that regions may take, with all that is kept of them.
    pub region_bytes: usize,
    /// Bytes that the baseline of each vCPU may take: code, counted twice as it is mapped twice, and what is known of
    /// it.
    pub baseline_bytes: usize,
    /// No memory for code can be both written and executed at one address.
    pub split_wx: bool,
    /// Where regions are kept.
    pub disk: Option<OnDisk>,
    /// Blocks are compiled before the vCPU goes on, by itself, and half of the baseline's look into places from the
    /// start: for tests, where what runs compiled must not depend on time.
    pub at_once: bool,
    /// For those who look inside.
    pub inside: Inside,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            optimize: Optimize::Speed,
            baseline: Some(HOTTER),
            region_bytes: REGION_BYTES,
            baseline_bytes: BASELINE_BYTES,
            split_wx: true,
            disk: None,
            at_once: false,
            inside: Inside::default(),
        }
    }
}

/// What the translator has kept and found again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StoreInfo {
    /// Bytes of memory for code.
    pub code_bytes: u64,
    /// Regions that were taken from memory where they had been compiled for another vCPU or place.
    pub shared: u64,
    /// Segments of code that were given up to make room.
    pub given_up: u64,
    /// What is on disk, if anything is kept there.
    pub disk: Option<DiskInfo>,
}

/// What was kept on disk and found there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DiskInfo {
    /// Regions that there are.
    pub regions: u64,
    /// Regions found.
    pub hits: u64,
    /// Bytes of code found.
    pub read: u64,
    /// Regions looked for and not found.
    pub misses: u64,
    /// Regions that were damaged.
    pub damaged: u64,
    /// Files that were not used: damaged, or not this user's alone.
    pub refused: u64,
    /// Regions written.
    pub written: u64,
    /// Bytes written.
    pub written_bytes: u64,
}

/// The translator of a machine: what its vCPUs have in common.
pub struct Engine {
    optimize: Optimize,
    baseline: Option<u32>,
    /// See [`Options::baseline_bytes`].
    baseline_bytes: usize,
    split_wx: bool,
    inside: Arc<Inside>,
    store: Arc<Store>,
    /// None: each vCPU compiles by itself.
    pool: Option<Arc<Pool>>,
    context: Context,
    enter: Enter,
    stubs: Arc<Executed>,
}

// SAFETY: the pointers in `context` and `enter` lead to code that `stubs` keeps, and to functions.
unsafe impl Send for Engine {}
// SAFETY: as above; what changes has locks.
unsafe impl Sync for Engine {}

impl Engine {
    /// An engine for vCPUs of `model`; an error says why this host has none.
    pub fn new(model: &Arc<CpuModel>, options: Options) -> Result<Self, String> {
        Self::build(Some(model), options)
    }

    /// Threads and what is on disk need a model.
    fn build(model: Option<&Arc<CpuModel>>, options: Options) -> Result<Self, String> {
        if !cfg!(any(target_arch = "x86_64", target_arch = "aarch64")) {
            return Err(
                "the translator makes code for x86-64 and arm64 hosts only; -accel interp runs here".into()
            );
        }
        if !baseline::HERE && options.optimize == Optimize::Baseline {
            return Err("this host has no baseline: that is for x86-64 hosts".into());
        }
        let memory = |e| format!("no executable memory: {e}");
        let mut compiler = Compiler::new(options.optimize)?;
        let (write, execute) = dual_map::map(STUBS, options.split_wx).map_err(memory)?;
        let stubs = compiler.stubs(Provider::new(write), &execute)?;
        let (context, enter) = Context::new(&stubs);
        for stub in [stubs.entry, stubs.refill, stubs.fill, stubs.chain] {
            if let Some(perf) = &options.inside.perf {
                perf.stub(stub.address, &stub.code, stub.name);
            }
        }
        let inside = Arc::new(options.inside);
        let keeps = options.disk.is_some() && model.is_some();
        let store = Arc::new(
            Store::new(options.region_bytes, inside.clone(), keeps, options.split_wx).map_err(memory)?,
        );
        if let (Some(OnDisk { folder, limit, image }), Some(model)) = (options.disk, model) {
            let (store, model, optimize) = (store.clone(), model.clone(), options.optimize);
            let isa = compiler.isa_text();
            let open = move || {
                let cache = crate::cache::key::cache_key(&model, optimize, &isa)
                    .and_then(|key| match image {
                        Some(image) => {
                            let own = crate::cache::key::of_image(&key, &image.hash());
                            Cache::open(folder, own, limit, limit / SHARES)
                        }
                        None => Cache::open(folder, key, limit, limit),
                    })
                    .inspect_err(|e| tracing::warn!("compiled code is not kept: {e}"));
                store.set_cache(cache.ok());
                if let Some(cache) = store.cache() {
                    cache.tidy();
                }
            };
            if options.at_once {
                open();
            } else {
                // Reading the program takes some time, in which the machine can be built.
                std::thread::Builder::new()
                    .name("mynah-cache".into())
                    .spawn(open)
                    .map_err(|e| format!("no thread to read the cache: {e}"))?;
            }
        }
        let pool = match model {
            Some(model) if !options.at_once => {
                let mut compilers = vec![compiler];
                for _ in 1..pool::threads() {
                    compilers.push(Compiler::new(options.optimize)?);
                }
                for c in &mut compilers {
                    (c.ir, c.symbols) = (inside.ir.clone(), inside.symbols.clone());
                }
                Some(Pool::start(model.clone(), store.clone(), compilers)?)
            }
            _ => None,
        };
        Ok(Self {
            optimize: options.optimize,
            baseline: options.baseline.filter(|_| baseline::HERE),
            baseline_bytes: options.baseline_bytes,
            split_wx: options.split_wx,
            inside,
            store,
            pool,
            context,
            enter,
            stubs: Arc::new(execute),
        })
    }

    /// Ends the threads, and writes what is to be kept. What vCPUs still have compiled is not.
    pub fn close(&self) {
        if let Some(pool) = &self.pool {
            pool.stop();
        }
        self.store.write();
    }

    /// What has been kept and found again.
    pub fn info(&self) -> StoreInfo {
        let n = |v: &AtomicU64| v.load(Ordering::Relaxed);
        let disk = self.store.cache().map(|cache| {
            let c = &cache.counters;
            DiskInfo {
                regions: cache.len() as u64,
                hits: n(&c.hits),
                read: n(&c.read),
                misses: n(&c.misses),
                damaged: n(&c.damaged),
                refused: n(&c.refused),
                written: n(&c.written.0),
                written_bytes: n(&c.written.1),
            }
        });
        let c = &self.store.counters;
        StoreInfo {
            code_bytes: self.store.bytes() as u64,
            shared: n(&c.shared),
            given_up: n(&c.given_up),
            disk,
        }
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.close();
    }
}

/// The translator as a tier of one vCPU.
pub struct Translating {
    /// Compiles, if the pool does not: then the vCPU stands still meanwhile.
    compiler: Option<Box<Compiler>>,
    pool: Option<Arc<Pool>>,
    store: Arc<Store>,
    seat: Arc<Seat>,
    context: Option<Context>,
    enter: Enter,
    /// What `context` and `enter` lead to.
    _stubs: Arc<Executed>,
    /// What blocks have code of.
    installed: FxHashMap<(u64, u32), Arc<Region>>,
    /// How often the store had given up code when it was looked at last.
    given_up: u64,
    history: FxHashMap<(u64, u32), Past>,
    /// Of blocks of the baseline that have died.
    rewritten: FxHashMap<(u64, u32), Past>,
    info: InstructionInfoFactory,
    inside: Arc<Inside>,
    baseline: Option<Box<Baseline>>,
    /// Loops that are looked at: the count of instructions when that began, and how often it was.
    probed: FxHashMap<(u64, u32), (u64, u32)>,
    /// An engine of this vCPU's own, which ends with it.
    _own: Option<Engine>,
}

// SAFETY: the raw pointers in `context` lead to code that `_stubs` keeps, to functions, and to the events of
// the vCPU, which outlive it.
unsafe impl Send for Translating {}

impl Translating {
    /// A tier for a vCPU of the engine's model, whose events these are.
    pub fn new(engine: &Engine, events: Arc<Events>) -> Result<Self, String> {
        let compiler = match engine.pool {
            // What is for the baseline alone is not compiled further.
            None if engine.optimize != Optimize::Baseline => {
                let mut compiler = Compiler::new(engine.optimize)?;
                (compiler.ir, compiler.symbols) = (engine.inside.ir.clone(), engine.inside.symbols.clone());
                Some(Box::new(compiler))
            }
            _ => None,
        };
        let baseline = match engine.baseline {
            Some(hotter) => {
                let baseline = Baseline::new(
                    engine.enter,
                    hotter,
                    engine.baseline_bytes,
                    engine.pool.is_none(),
                    engine.split_wx,
                )?;
                if let Some(perf) = &engine.inside.perf {
                    let (address, code) = baseline.stubs();
                    perf.stub(address, code, "baseline");
                }
                Some(Box::new(baseline))
            }
            None => None,
        };
        engine.store.tell(&events);
        Ok(Self {
            compiler,
            pool: engine.pool.clone(),
            store: engine.store.clone(),
            context: Some(engine.context.with_events(events.as_ptr())),
            seat: Seat::new(events),
            enter: engine.enter,
            _stubs: engine.stubs.clone(),
            installed: FxHashMap::default(),
            given_up: 0,
            history: FxHashMap::default(),
            rewritten: FxHashMap::default(),
            probed: FxHashMap::default(),
            info: InstructionInfoFactory::new(),
            inside: engine.inside.clone(),
            baseline,
            _own: None,
        })
    }

    /// A tier that compiles a hot block before it goes on: for tests, where what runs compiled must not depend on
    /// time.
    pub fn at_once(events: Arc<Events>) -> Result<Self, String> {
        Self::at_once_with(events, Optimize::Speed)
    }

    /// As [`Self::at_once`], with a choice of how much is optimised.
    pub fn at_once_with(events: Arc<Events>, optimize: Optimize) -> Result<Self, String> {
        let baseline = (optimize == Optimize::Baseline).then_some(u32::MAX >> 1);
        Self::alone(events, optimize, baseline)
    }

    /// A tier that compiles a hot block by the baseline, and one that has run `hotter` times more by Cranelift, before
    /// it goes on: for tests.
    pub fn in_turn(events: Arc<Events>, hotter: u32) -> Result<Self, String> {
        Self::alone(events, Optimize::Speed, Some(hotter))
    }

    fn alone(events: Arc<Events>, optimize: Optimize, baseline: Option<u32>) -> Result<Self, String> {
        let options = Options { optimize, baseline, at_once: true, ..Options::default() };
        let engine = Engine::build(None, options)?;
        let mut tier = Self::new(&engine, events)?;
        tier._own = Some(engine);
        Ok(tier)
    }

    /// Executions after which the tier wants to be told of a block.
    pub fn hot_after(&self) -> u32 {
        if self.baseline.is_some() { baseline::HOT } else { HOT }
    }

    /// The counters, which go on counting.
    pub fn counters(&self) -> Arc<Counters> {
        self.seat.counters.clone()
    }
}

impl Tier for Translating {
    fn recorded(&mut self, cpu: &mut Cpu, mut blocks: Vec<Recorded>) {
        self.let_go(cpu);
        blocks.sort_unstable();
        for same in blocks.chunk_by(PartialEq::eq) {
            let Recorded { phys, key, lin } = same[0];
            let kernel = !ModeKey(key).has(ModeKey::USER) && lin > LOADERS;
            let often = if kernel { KERNEL_OFTEN } else { OFTEN };
            if same.len() >= often && self.baseline.as_mut().is_some_and(|b| b.place(cpu, phys, key, lin)) {
                self.seat.counters.placed.fetch_add(1, Ordering::Relaxed);
                self.show_latest(cpu, lin);
            }
        }
    }

    fn attach(&mut self, cpu: &mut Cpu) {
        synchronise();
        if let Some(mut context) = self.context.take() {
            if let Some(b) = &self.baseline {
                b.attach(&mut context);
            }
            // SAFETY: the memory is large enough and aligned, and made for this.
            unsafe { cpu.tier_memory.0.as_mut_ptr().cast::<Context>().write(context) };
        }
    }

    fn known_after(&self) -> u32 {
        KNOWN
    }

    fn known(&mut self, cpu: &mut Cpu, phys: u64, key: u32) {
        self.let_go(cpu);
        self.install_known(cpu, phys, key);
    }

    fn hot(&mut self, cpu: &mut Cpu, phys: u64, key: u32) {
        self.seat.counters.tell(cpu);
        self.let_go(cpu);
        if self.install_known(cpu, phys, key) {
            return;
        }
        if self.baseline.as_mut().is_some_and(|b| b.knows(phys, key) && !b.has(cpu, phys, key))
            && !is_worth_it(&mut self.rewritten, cpu.icount, (phys, key))
        {
            self.seat.counters.put_off.fetch_add(1, Ordering::Relaxed);
            cpu.cool(phys, key);
            return;
        }
        let start = std::time::Instant::now();
        if let Some(b) = &mut self.baseline
            && !b.has(cpu, phys, key)
            && b.compile(cpu, phys, key)
        {
            let c = &self.seat.counters;
            c.block_nanos.fetch_add(start.elapsed().as_nanos() as u64, Ordering::Relaxed);
            let mut called = None;
            for code in b.latest_called() {
                *called.get_or_insert_with(|| c.block_called.lock()).entry(code).or_default() += 1;
            }
            drop(called);
            self.show_latest(cpu, cpu.code_linear());
            return;
        }
        self.compile(cpu, phys, key);
    }

    fn hotter(&mut self, cpu: &mut Cpu, phys: u64, key: u32) {
        self.seat.counters.tell(cpu);
        self.let_go(cpu);
        if !self.install_known(cpu, phys, key) {
            self.compile(cpu, phys, key);
        }
    }

    fn ready(&mut self, cpu: &mut Cpu) {
        self.let_go(cpu);
        self.look_at_places(cpu);
        self.look_at_refused(cpu);
        self.look_at_narrow(cpu);
        for done in self.seat.take() {
            match done {
                Done::Region(place, region) => {
                    if !self.install(cpu, place, &region) {
                        self.seat.counters.late.fetch_add(1, Ordering::Relaxed);
                        self.count_again(cpu, place.phys, place.key);
                    }
                }
                Done::Dropped(place) => {
                    self.history.remove(&(place.phys, place.key));
                    self.count_again(cpu, place.phys, place.key);
                }
            }
        }
    }
}

/// Takes the block that code has asked for other code for in this field of the context: its number, and the linear
/// address of its page.
fn take_asked(cpu: &mut Cpu, field: fn(&mut Context) -> &mut [u64; 2]) -> Option<(u64, u64)> {
    // SAFETY: `attach` has put a context there, which nothing else refers to now.
    let context = unsafe { &mut *cpu.tier_memory.0.as_mut_ptr().cast::<Context>() };
    let [number, page] = std::mem::replace(field(context), [NO_BLOCK, 0]);
    (number != NO_BLOCK).then_some((number, page))
}

/// Whether the guest has these bytes at a distance from `phys`, on the same page.
fn is_there(cpu: &Cpu, phys: u64, delta: i64, bytes: &[u8]) -> bool {
    let at = phys.wrapping_add(delta as u64);
    if at & !PAGE_MASK != phys & !PAGE_MASK || bytes.len() as u64 > PAGE_SIZE - (at & PAGE_MASK) {
        return false;
    }
    let mut now = [0; PAGE_SIZE as usize];
    let now = &mut now[..bytes.len()];
    cpu.mem.read(at, now);
    now == bytes
}

/// Whether a block that is hot is to be compiled. One that is written and run in turn must get hot twice as often each
/// time.
fn is_worth_it(history: &mut FxHashMap<(u64, u32), Past>, icount: u64, block: (u64, u32)) -> bool {
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

impl Translating {
    /// The baseline has compiled a block, which is at this linear address.
    fn show_latest(&self, cpu: &Cpu, lin: u64) {
        let Some(b) = &self.baseline else { return };
        let (bitness, mut body) =
            if self.inside.asm.is_some() { b.latest_marks(cpu, lin) } else { Marks::default() };
        let [first, second] = b.latest();
        let mut seldom = body.split_off(body.partition_point(|m| m.offset < first.1.len()));
        seldom.iter_mut().for_each(|m| m.offset -= first.1.len());
        for ((address, code), marks) in [(first, body), (second, seldom)] {
            self.inside.show(address, code, lin, &(bitness, marks));
        }
        let c = &self.seat.counters;
        c.blocks.store(b.compiled, Ordering::Relaxed);
        c.block_instructions.store(b.instructions, Ordering::Relaxed);
        c.block_bytes.store(b.bytes, Ordering::Relaxed);
    }

    /// Looks at the place that has missed last, if one waits for that.
    fn look_at_places(&mut self, cpu: &mut Cpu) {
        let Some(b) = &mut self.baseline else { return };
        // SAFETY: `attach` has put a context there, which nothing else refers to now.
        let at = unsafe {
            let context = cpu.tier_memory.0.as_mut_ptr().cast::<Context>();
            let at = std::mem::take(&mut (*context).place_missed);
            if at == 0 {
                return;
            }
            (*context).place_misses = PLACE_MISSES;
            at
        };
        self.seat.counters.missed.fetch_add(PLACE_MISSES, Ordering::Relaxed);
        if let Some(lin) = b.look_at_misses(cpu, at) {
            self.seat.counters.unplaced.fetch_add(1, Ordering::Relaxed);
            self.show_latest(cpu, lin);
        }
    }

    /// Has a block's x87 instructions called if the host must not execute them.
    fn look_at_refused(&mut self, cpu: &mut Cpu) {
        let Some(b) = &mut self.baseline else { return };
        if let Some((number, page)) = take_asked(cpu, |context| &mut context.refused)
            && let Some(offset) = b.refuse_x87(cpu, number)
        {
            let mut called = self.seat.counters.block_called.lock();
            for code in b.latest_called().filter(|&c| is_x87_number(c)) {
                *called.entry(code).or_default() += 1;
            }
            drop(called);
            self.show_latest(cpu, page.wrapping_add(offset));
        }
    }

    /// Makes code without a window for a block that has met the end of its stack's page.
    fn look_at_narrow(&mut self, cpu: &mut Cpu) {
        let Some(b) = &mut self.baseline else { return };
        if let Some((number, page)) = take_asked(cpu, |context| &mut context.narrow)
            && let Some(offset) = b.make_narrow(cpu, number)
        {
            self.show_latest(cpu, page.wrapping_add(offset));
        }
    }

    /// A block that has no region is counted from the start.
    fn count_again(&mut self, cpu: &mut Cpu, phys: u64, key: u32) {
        cpu.cool(phys, key);
        if let Some(b) = &mut self.baseline {
            b.count_again(cpu, phys, key);
        }
    }

    /// Begins to look at what a loop that is hot executes, if that has not been done. Tiers that compile at once do
    /// not.
    fn begins_probe(&mut self, cpu: &mut Cpu, phys: u64, key: u32) -> bool {
        let (Some(b), Some(_)) = (&mut self.baseline, &self.pool) else { return false };
        if self.probed.len() >= HISTORY {
            self.probed.clear();
        }
        let probe = self.probed.entry((phys, key)).or_insert((0, 0));
        let begins = probe.0 == 0;
        if begins {
            probe.0 = cpu.icount.max(1);
            b.count_to(cpu, phys, key, PROBE);
        }
        begins
    }

    /// Whether hardly more was executed than the loop of so many instructions while it was looked at. A loop that is
    /// left after a few rounds each time is better off in the baseline, which keeps registers where they are.
    fn spins(&mut self, cpu: &mut Cpu, phys: u64, key: u32, size: usize) -> bool {
        let (Some(b), Some(probe)) = (&mut self.baseline, self.probed.get_mut(&(phys, key))) else {
            return true;
        };
        let executed = cpu.icount.wrapping_sub(std::mem::take(&mut probe.0));
        if executed * 4 <= size as u64 * u64::from(PROBE) * 5 {
            return true;
        }
        probe.1 += 1;
        if probe.1 == 1 {
            cpu.record(RECORDED);
        }
        if probe.1 >= PROBES && b.keep(cpu, phys, key) {
            self.show_latest(cpu, cpu.code_linear());
        }
        false
    }

    /// Has the region that begins with a block compiled.
    fn compile(&mut self, cpu: &mut Cpu, phys: u64, key: u32) {
        if let Some(b) = &mut self.baseline {
            // Should it not be compiled now.
            b.count_again(cpu, phys, key);
        }
        if self.begins_probe(cpu, phys, key) {
            return;
        }
        if !is_worth_it(&mut self.history, cpu.icount, (phys, key)) {
            self.seat.counters.put_off.fetch_add(1, Ordering::Relaxed);
            cpu.cool(phys, key);
            return;
        }
        let Some(mut plan) =
            cpu.known_block(phys, key).and_then(|b| Plan::new(cpu, b, &mut self.info, emitted))
        else {
            self.seat.counters.refused.fetch_add(1, Ordering::Relaxed);
            return;
        };
        if let Some(b) = &mut self.baseline
            && !(plan.is_loop() || cpu.sees_every_block())
        {
            self.seat.counters.refused.fetch_add(1, Ordering::Relaxed);
            b.count_long(cpu, phys, key);
            cpu.record(RECORDED);
            return;
        }
        if !self.spins(cpu, phys, key, plan.loop_size()) {
            self.history.remove(&(phys, key));
            self.seat.counters.put_off.fetch_add(1, Ordering::Relaxed);
            return;
        }
        // The blocks of a loop become hot together: one region is enough, unless they go on being entered from
        // elsewhere.
        for part in plan.part_addresses().filter(|&p| p != phys) {
            self.count_again(cpu, part, key);
        }
        let place = Place { lin: cpu.code_linear(), phys, key };
        plan.marks = (self.inside.ir.is_some() || self.inside.asm.is_some()).then_some(place.lin as u32);
        // Regions of one block, for the log, are worth nothing to others.
        let job = Job::new(plan, place, self.seat.clone(), !cpu.sees_every_block());
        match (&mut self.compiler, &self.pool) {
            (Some(compiler), _) => {
                let model = cpu.model.clone();
                if let Some(region) = pool::compile(compiler, &model, &self.store, job) {
                    self.install(cpu, place, &region);
                }
            }
            (None, Some(pool)) => pool.submit(job),
            (None, None) => {}
        }
    }

    /// Takes the code away whose memory the store wants for other code.
    fn let_go(&mut self, cpu: &mut Cpu) {
        let given_up = self.store.given_up();
        if std::mem::replace(&mut self.given_up, given_up) == given_up {
            return;
        }
        self.installed.retain(|&(phys, key), region| {
            let stays = !region.code().segment.is_given_up();
            if !stays {
                cpu.uninstall(phys, key);
            }
            stays
        });
    }

    /// Forgets blocks that have lost their code or died, when there are many; takes all others' away if there are too
    /// many of them.
    fn make_room(&mut self, cpu: &mut Cpu) {
        if self.installed.len() < INSTALLED {
            return;
        }
        self.installed.retain(|&(phys, key), region| {
            let code = cpu.known_block(phys, key).and_then(Block::code);
            code.is_some_and(|c| c.code == region.code().address())
        });
        if self.installed.len() > INSTALLED / 2 {
            for ((phys, key), _) in self.installed.drain() {
                cpu.uninstall(phys, key);
            }
        }
    }

    /// Installs code for the block that is about to be executed if it was compiled before.
    fn install_known(&mut self, cpu: &mut Cpu, phys: u64, key: u32) -> bool {
        if cpu.sees_every_block() {
            return false;
        }
        let Some(block) = cpu.known_block(phys, key).filter(|b| b.second_page().is_none()) else {
            return false;
        };
        let head = Head::of(key, block.bytes());
        let there = |delta: i64, bytes: &[u8]| is_there(cpu, phys, delta, bytes);
        let place = Place { lin: cpu.code_linear(), phys, key };
        let region = match self.store.find(head, key, there) {
            Some(region) => {
                self.store.counters.shared.fetch_add(1, Ordering::Relaxed);
                region
            }
            None => {
                let Some(entry) = self.store.find_on_disk(head, key, there) else { return false };
                let pieces = entry.pieces.iter().map(|p| (p.delta, &*p.bytes));
                let Some(ops) = decode(cpu, place, pieces).filter(|ops| ops.len() == entry.ops as usize)
                else {
                    return false;
                };
                let Some(region) = self.store.add(entry, ops.into(), place.lin, &Marks::default(), false)
                else {
                    return false;
                };
                region
            }
        };
        let done = self.install(cpu, place, &region);
        if done {
            self.seat.counters.known.fetch_add(1, Ordering::Relaxed);
        }
        done
    }

    /// Puts code into place for the vCPU, if the blocks that it was made of are the guest's.
    fn install(&mut self, cpu: &mut Cpu, place: Place, region: &Arc<Region>) -> bool {
        let Place { phys, key, .. } = place;
        // What stands in memory may be newer than what was decoded, until the vCPU looks at its events.
        let there = region.pieces().all(|(delta, bytes)| is_there(cpu, phys, delta, bytes));
        if !there || cpu.known_block(phys, key).is_none() || decode(cpu, place, region.pieces()).is_none() {
            return false;
        }
        // It may have been made by another thread.
        synchronise();
        let parts: Vec<u64> = region.pieces().map(|(delta, _)| phys.wrapping_add(delta as u64)).collect();
        let code = Compiled { enter: self.enter, code: region.code().address(), ops: region.ops.as_ptr() };
        // SAFETY: code, ops and context stay until the region is uninstalled (`let_go`, or another takes its
        // place here) or the vCPU, which owns this tier, ends.
        if !unsafe { cpu.install(phys, key, &parts, code) } {
            return false;
        }
        for &part in parts.iter().filter(|&&p| p != phys) {
            self.count_again(cpu, part, key);
        }
        self.seat.counters.installed.fetch_add(1, Ordering::Relaxed);
        self.make_room(cpu);
        self.installed.insert((phys, key), region.clone());
        true
    }
}

/// The ops of blocks at distances from a place, which are decoded now if they are not yet; `None` if one does
/// not consist of these bytes.
fn decode<'a>(cpu: &mut Cpu, place: Place, pieces: impl Iterator<Item = (i64, &'a [u8])>) -> Option<Vec<Op>> {
    let mut ops = Vec::new();
    for (delta, bytes) in pieces {
        let (lin, phys) = (place.lin.wrapping_add(delta as u64), place.phys.wrapping_add(delta as u64));
        cpu.know_block(lin, phys, place.key)?;
        let block = cpu.known_block(phys, place.key).filter(|b| b.bytes() == bytes)?;
        if !cpu.plain_ops(block, &mut ops) {
            return None;
        }
    }
    Some(ops)
}

impl Drop for Translating {
    fn drop(&mut self) {
        let c = &self.seat.counters;
        let n = |v: &AtomicU64| v.load(Ordering::Relaxed);
        tracing::info!(
            compiled = n(&c.compiled),
            installed = n(&c.installed),
            known = n(&c.known),
            late = n(&c.late),
            refused = n(&c.refused),
            full = n(&c.full),
            instructions = n(&c.instructions),
            bytes = n(&c.bytes),
            ms = n(&c.nanos) / 1_000_000,
            blocks = n(&c.blocks),
            block_instructions = n(&c.block_instructions),
            block_bytes = n(&c.block_bytes),
            placed = n(&c.placed),
            unplaced = n(&c.unplaced),
            misses = n(&c.missed),
            "translator"
        );
    }
}
