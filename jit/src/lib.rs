//! The translator: hot guest code turned into host code by Cranelift.
//!
//! An instruction's meaning is written once, in `mynah-cpu`, generic over the machine that executes it. Here that machine is a
//! [`Translator`], whose integers are Cranelift values: the very functions that the interpreter runs emit code. What they do not say in those terms
//! (helpers: long, rare or stateful instructions) is called, by the interpreter's own handler, with the state in memory. So all of the
//! instruction set can be in a region from the first day.
//!
//! * `region`: what is compiled together. [`translate`], `exec`, `memory`, `vector`: how it is emitted. `compile`: Cranelift.
//! * `code`: executable memory. `runtime`: what code calls.
//! * [`Engine`]: compiles what is hot and runs it, in turns with the interpreter.
//!
//! Not here yet: compiling on another thread, code kept on disk, regions that lead to one another without a look-up, and hosts whose memory
//! order is weaker than x86's ([`Engine::new`] refuses them).
mod code;
mod compile;
mod exec;
mod float;
mod memory;
mod primitive;
mod region;
mod runtime;
pub mod tier;
pub mod translate;
mod vector;

pub use code::CompiledRegion;
pub use runtime::Left;
pub use translate::Translator;

use code::CodeMemory;
use compile::Compiler;
use mynah_cpu::block::{Block, ModeKey};
use mynah_cpu::engine::Turn;
use mynah_cpu::tier::Enter;
use mynah_cpu::{Cpu, Exit, state::gpr};
use region::Plan;
use runtime::Context;
use std::collections::HashMap;

/// Names a compiled region.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RegionId(u64);

/// What an engine has done.
#[derive(Clone, Copy, Debug, Default)]
pub struct Statistics {
    /// Regions compiled.
    pub compiled: u64,
    /// Blocks that could not be compiled.
    pub refused: u64,
    /// Regions thrown away, because the guest's code changed or for want of memory.
    pub dropped: u64,
    /// Times that a region was entered.
    pub entered: u64,
    /// Blocks interpreted.
    pub interpreted: u64,
    /// Times that a region was left for the interpreter to execute an instruction.
    pub declined: u64,
}

/// Where the engine last found a region for an address.
#[derive(Clone, Copy)]
struct Jump {
    lin: u64,
    key: u32,
    generation: u64,
    epoch: u64,
    region: RegionId,
    code: *const u8,
    ops: *const mynah_cpu::Op,
}

const JUMPS: usize = 1 << 12;
/// Executions after which a block is compiled.
const HOT: u32 = 50;
/// Bytes of code that an engine keeps.
const CODE: usize = 64 << 20;

/// A synchronous engine for one vCPU: it counts how often blocks are interpreted, compiles a hot one on the spot, on the vCPU's own thread, and
/// runs what is compiled. Made for tests and measurements: while it compiles the guest stands still.
pub struct Engine {
    compiler: Compiler,
    memory: CodeMemory,
    context: Box<Context>,
    enter: Enter,
    regions: HashMap<RegionId, CompiledRegion>,
    /// By guest physical address and mode key.
    index: HashMap<(u64, u32), RegionId>,
    heat: HashMap<(u64, u32), u32>,
    jumps: Box<[Jump]>,
    next_id: u64,
    threshold: u32,
    statistics: Statistics,
}

// SAFETY: the raw pointers lead into code memory and op arrays that the engine owns itself, and to the events of the vCPU, which are shared
// by nature and which `run` finds anew each time.
unsafe impl Send for Engine {}

impl Engine {
    /// An engine for this host; an error says why it cannot be.
    pub fn new() -> Result<Self, String> {
        if !cfg!(target_arch = "x86_64") {
            return Err("the guest's memory order is not yet kept on this host".into());
        }
        let mut compiler = Compiler::new()?;
        let mut memory = CodeMemory::new(CODE).map_err(|e| format!("no executable memory: {e}"))?;
        let (context, enter) = Context::new(&mut compiler, &mut memory, std::ptr::null())?;
        Ok(Self {
            compiler,
            memory,
            context: Box::new(context),
            enter,
            regions: HashMap::new(),
            index: HashMap::new(),
            heat: HashMap::new(),
            jumps: vec![NO_JUMP; JUMPS].into_boxed_slice(),
            next_id: 0,
            threshold: HOT,
            statistics: Statistics::default(),
        })
    }

    /// Compiles blocks that were executed `n` times.
    pub fn set_threshold(&mut self, n: u32) {
        self.threshold = n;
    }

    /// What has been done so far.
    pub fn statistics(&self) -> Statistics {
        self.statistics
    }

    /// Bytes of host code kept.
    pub fn code_bytes(&self) -> usize {
        self.memory.used()
    }

    /// The compiled regions.
    pub fn regions(&self) -> impl Iterator<Item = &CompiledRegion> {
        self.regions.values()
    }

    /// Compiles the region that begins with `block`, a live block of `cpu`; `None` if that is not possible.
    pub fn compile(&mut self, cpu: &Cpu, block: &Block) -> Option<RegionId> {
        let id = self.try_compile(cpu, block);
        match id {
            Some(_) => self.statistics.compiled += 1,
            None => self.statistics.refused += 1,
        }
        id
    }

    fn try_compile(&mut self, cpu: &Cpu, block: &Block) -> Option<RegionId> {
        let mut plan = Plan::new(cpu, block, &mut self.compiler.info)?;
        let code = self.compiler.region(&plan, &cpu.model)?;
        let placed = self.memory.place(&code)?;
        if let Some(segment) = placed.evicted {
            self.drop_regions(|r| r.segment == segment);
        }
        self.next_id += 1;
        let id = RegionId(self.next_id);
        let region = CompiledRegion {
            code: placed.address,
            parts: plan.take_parts(),
            segment: placed.segment,
            epoch: cpu.code_epoch(),
            phys: block.phys,
            key: block.key,
            size: code.len(),
            instructions: plan.instruction_count(),
            ops: plan.ops.into(),
        };
        self.regions.insert(id, region);
        if let Some(old) = self.index.insert((block.phys, block.key), id) {
            self.forget(old);
        }
        Some(id)
    }

    fn forget(&mut self, id: RegionId) {
        if self.regions.remove(&id).is_some() {
            self.statistics.dropped += 1;
        }
        for j in self.jumps.iter_mut().filter(|j| j.region == id) {
            *j = NO_JUMP;
        }
    }

    fn drop_regions(&mut self, which: impl Fn(&CompiledRegion) -> bool) {
        let gone: Vec<_> =
            self.regions.iter().filter(|(_, r)| which(r)).map(|(&id, r)| (id, r.phys, r.key)).collect();
        for (id, phys, key) in gone {
            self.index.remove(&(phys, key));
            self.forget(id);
        }
    }

    /// Runs until something has to be done outside, as [`Cpu::run`] does.
    pub fn run(&mut self, cpu: &mut Cpu) -> Exit {
        self.context.events = cpu.events.as_ptr();
        loop {
            // Back in a region that was found here before, with nothing in the way.
            let jump = self.jumps[slot(cpu)];
            let block = if jump.fits(cpu) && cpu.is_undisturbed() {
                if self.enter(cpu, jump.code, jump.ops) != Left::Interpret {
                    continue;
                }
                match cpu.turn() {
                    Turn::Exit(e) => return e,
                    Turn::Done => continue,
                    Turn::Block(b) => b,
                }
            } else {
                let block = match cpu.turn() {
                    Turn::Exit(e) => return e,
                    Turn::Done => continue,
                    Turn::Block(b) => b,
                };
                // SAFETY: valid until the next turn.
                if let Some((id, code, ops)) = self.region_at(cpu, unsafe { &*block }) {
                    self.remember(cpu, id, code, ops);
                    if self.enter(cpu, code, ops) != Left::Interpret {
                        continue;
                    }
                    match cpu.turn() {
                        Turn::Exit(e) => return e,
                        Turn::Done => continue,
                        Turn::Block(b) => b,
                    }
                } else {
                    block
                }
            };
            self.statistics.interpreted += 1;
            // SAFETY: `turn` has just named the block.
            unsafe { cpu.interpret_block(block) };
            cpu.settle();
        }
    }

    /// Enters a region, and settles what it leaves.
    fn enter(&mut self, cpu: &mut Cpu, code: *const u8, ops: *const mynah_cpu::Op) -> Left {
        self.statistics.entered += 1;
        // SAFETY: the region holds for the code at RIP (`fits`, `region_at`), its code and ops are kept until this engine drops them, which it does
        // not do while one runs; the context lives as long as the engine. The code accesses the vCPU through this reference alone.
        let context: *mut Context = &mut *self.context;
        let rip = cpu.state.gpr[gpr::RIP];
        let left = Left::from_raw(unsafe { (self.enter)(cpu, context.cast(), ops, rip, code) });
        cpu.leave_host_float();
        match left {
            Left::Stopped => {
                cpu.settle();
            }
            Left::Interpret => self.statistics.declined += 1,
            _ => {}
        }
        left
    }

    /// The region for a block, compiled if it has become hot.
    fn region_at(&mut self, cpu: &Cpu, block: &Block) -> Option<(RegionId, *const u8, *const mynah_cpu::Op)> {
        let at = (block.phys, block.key);
        let epoch = cpu.code_epoch();
        let mut id = self.index.get(&at).copied();
        if let Some(known) = id
            && let Some(r) = self.regions.get_mut(&known)
            && r.epoch != epoch
        {
            if r.holds(cpu) {
                r.epoch = epoch;
            } else {
                self.index.remove(&at);
                self.forget(known);
                self.heat.remove(&at);
                id = None;
            }
        }
        if id.is_none() {
            let heat = self.heat.entry(at).or_insert(0);
            *heat = heat.saturating_add(1);
            if *heat == self.threshold.saturating_add(1) {
                id = self.compile(cpu, block);
            }
        }
        let id = id?;
        let r = self.regions.get(&id)?;
        Some((id, r.code, r.ops.as_ptr()))
    }

    fn remember(&mut self, cpu: &Cpu, region: RegionId, code: *const u8, ops: *const mynah_cpu::Op) {
        self.jumps[slot(cpu)] = Jump {
            lin: cpu.state.gpr[gpr::RIP],
            key: cpu.mode_key,
            generation: cpu.tlb.exec_generation(),
            epoch: cpu.code_epoch(),
            region,
            code,
            ops,
        };
    }
}

const NO_JUMP: Jump = Jump {
    lin: 0,
    key: ModeKey::SINGLE,
    generation: 0,
    epoch: 0,
    region: RegionId(0),
    code: std::ptr::null(),
    ops: std::ptr::null(),
};

impl Jump {
    fn fits(&self, cpu: &Cpu) -> bool {
        // Regions are of flat or 64-bit code: the linear address is RIP.
        self.lin == cpu.state.gpr[gpr::RIP]
            && self.key == cpu.mode_key
            && self.generation == cpu.tlb.exec_generation()
            && self.epoch == cpu.code_epoch()
    }
}

fn slot(cpu: &Cpu) -> usize {
    let rip = cpu.state.gpr[gpr::RIP];
    (rip ^ (rip >> 12)) as usize & (JUMPS - 1)
}
