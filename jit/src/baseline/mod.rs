//! The baseline: blocks as host code of the same instructions, made in about the time that interpreting them a hundred times takes.
//!
//! Only for x86-64 hosts. Each instruction of the guest's that is not about memory becomes itself, on other registers; a memory operand becomes a look-up in
//! the TLB and then itself; the rest calls the interpreter's handler. So arithmetic and its flags are the host's own.
//!
//! ```text
//!   guest   RAX RCX RDX RBX RSP RBP RSI RDI R8 R9 R12   R10 R11 R13 R14 R15   flags
//!   host    R13 RCX RDX RBX R14 RBP RSI R15 R8 R9 R12   in the vCPU's state   the host's, or saved
//! ```
//!
//! RDI is the vCPU, RSP the host's stack, RAX, R10 and R11 are scratch. Flags live in the host's until something clobbers them (a look-up does), which is
//! when they are saved, as LAHF and SETO have them; where a block ends and wherever it may be left they are saved. [`stubs`] move everything to the state and
//! back.
//!
//! As in Cranelift's regions code raises no faults: what is not plain leaves the block before the instruction, and the interpreter executes it.
//!
//! A block counts the jumps backwards that lead to it; when those are many, Cranelift may get it ([`Left::Hot`](crate::runtime::Left)). Blocks of a page jump to
//! each other; other jumps go by the table of [`CodeJump`](mynah_cpu::tier::CodeJump)s. Code lies in one stretch of memory, which is emptied when it is full.
mod asm;
mod emit;
pub(crate) mod kinds;
mod stubs;

use crate::listing::Mark;
use crate::runtime::{CONTEXT, Context};
use crate::translate::Translator;
use crate::twice::{self, Executed, Written};
use emit::Emitter;
use iced_x86::{Decoder, DecoderOptions, Encoder, Instruction, InstructionInfoFactory};
use mynah_cpu::block::ModeKey;
use mynah_cpu::decode::{bitness, build};
use mynah_cpu::flags::pack;
use mynah_cpu::tier::{BASELINE, Compiled, Enter, Link};
use mynah_cpu::{Cpu, Op};
use mynah_mmu::{PAGE_MASK, PAGE_SIZE};
use std::collections::HashMap;
use stubs::Stubs;

/// The host's register for each of the guest's, if it has one.
const MAP: [Option<u8>; 16] = [
    Some(13),
    Some(1),
    Some(2),
    Some(3),
    Some(14),
    Some(5),
    Some(6),
    Some(15),
    Some(8),
    Some(9),
    None,
    None,
    Some(12),
    None,
    None,
    None,
];

/// Executions by the interpreter after which a block is compiled.
pub(crate) const HOT: u32 = 3;
/// Bytes of code.
const CODE: usize = 96 << 20;
/// Least bytes of code.
const LEAST: usize = 1 << 20;
/// Blocks.
const BLOCKS: usize = 1 << 18;

/// A compiled block.
struct Entry {
    /// Offset of where other tiers enter.
    entry: usize,
    /// Offset of where events are tested.
    tested: usize,
    /// Offset of where other jumps lead.
    body: usize,
    counter: usize,
    /// Where its jumps lead, and the offsets of their displacements.
    leaps: Vec<((u64, u32), usize)>,
    /// The code calls the interpreter's handlers for these.
    #[expect(clippy::vec_box, reason = "code has their addresses")]
    _called: Vec<Box<Op>>,
}

/// A jump that leads to a block when there is code for it.
#[derive(Clone, Copy)]
struct Waiting {
    /// Offset of its displacement.
    site: usize,
    /// Offset of where it leads without.
    stub: usize,
    /// It leads backwards, and events are to be tested.
    back: bool,
}

/// The baseline of one vCPU.
pub(crate) struct Baseline {
    write: Written,
    execute: Executed,
    used: usize,
    stubs: Stubs,
    /// Where code begins.
    start: usize,
    entries: HashMap<(u64, u32), Entry>,
    waiting: HashMap<(u64, u32), Vec<Waiting>>,
    counters: Box<[u32]>,
    counted: usize,
    flag_words: Box<[[u64; 2]]>,
    encoder: Encoder,
    info: InstructionInfoFactory,
    enter: Enter,
    /// Executions after which Cranelift gets a block.
    hot: u32,
    /// Blocks compiled.
    pub compiled: u64,
    /// Instructions in them.
    pub instructions: u64,
    /// Bytes of their code.
    pub bytes: u64,
    latest: Latest,
}

/// The block that was compiled last.
#[derive(Default)]
struct Latest {
    at: (u64, u32),
    origin: usize,
    len: usize,
    /// See [`emit::Emitted::places`].
    places: Vec<usize>,
    called: Vec<u16>,
}

impl Baseline {
    /// A baseline whose code is entered by `enter`, or why there is none. A block that has run `hot` times goes on to the next tier. Its code takes up to
    /// `bytes`, or less.
    pub fn new(enter: Enter, hot: u32, bytes: usize) -> Result<Self, String> {
        let size = bytes.clamp(LEAST, CODE).next_multiple_of(PAGE_SIZE as usize);
        let mut code = Vec::new();
        let stubs = Stubs::new(&mut code).map_err(|e| format!("a stub of the baseline: {e}"))?;
        let (mut write, execute) = twice::map(size).map_err(|e| format!("no executable memory: {e}"))?;
        write.put(0, &code);
        let start = code.len().next_multiple_of(16);
        let flag_words = (0..512u64)
            .map(|n| {
                // LAHF's byte, and OF in bit 8.
                let (res, aux) = pack(n & 0xff | (n >> 8) << 11);
                [res, aux]
            })
            .collect();
        Ok(Self {
            write,
            execute,
            used: start,
            stubs,
            start,
            entries: HashMap::new(),
            waiting: HashMap::new(),
            counters: vec![0; BLOCKS].into_boxed_slice(),
            counted: 0,
            flag_words,
            encoder: Encoder::new(64),
            info: InstructionInfoFactory::new(),
            enter,
            hot,
            compiled: 0,
            instructions: 0,
            bytes: 0,
            latest: Latest::default(),
        })
    }

    /// Makes the context fit for this code.
    pub fn attach(&self, context: &mut Context) {
        context.flag_words = self.flag_words.as_ptr().cast();
        context.counters = self.counters.as_ptr();
    }

    /// The stubs: address and code.
    pub fn stubs(&self) -> (*const u8, &[u8]) {
        (self.address(0), self.write.bytes(0, self.start))
    }

    /// The code of the block that was compiled last, and where it is.
    pub fn latest(&self) -> (*const u8, &[u8]) {
        let Latest { origin, len, .. } = self.latest;
        (self.address(origin), self.write.bytes(origin, len))
    }

    /// The codes of the instructions in it that are called.
    pub fn latest_called(&self) -> &[u16] {
        &self.latest.called
    }

    /// What it was made from, if the block is at the linear address `lin`, and how wide addresses are there.
    pub fn latest_marks(&self, cpu: &Cpu, lin: u64) -> (u32, Vec<Mark>) {
        let Latest { at: (phys, key), places, .. } = &self.latest;
        let Some(block) = cpu.known_block(*phys, *key) else { return (64, Vec::new()) };
        let mark = |(n, &offset): (usize, &usize)| {
            let bytes = (n < block.ops.len()).then(|| {
                let op = cpu.plain_op(block, n);
                let at = usize::from(op.off);
                (
                    u64::from(op.off),
                    block.bytes.get(at..at + usize::from(op.len)).unwrap_or_default().to_vec(),
                )
            });
            let (distance, bytes) = bytes.unwrap_or_default();
            Mark { offset, lin: lin.wrapping_add(distance), bytes }
        };
        (bitness(ModeKey(*key)), places.iter().enumerate().map(mark).collect())
    }

    fn address(&self, offset: usize) -> *const u8 {
        self.execute.address(offset)
    }

    /// The code that a block has, if it is of this tier.
    fn entry_of(&self, cpu: &Cpu, at: (u64, u32)) -> Option<&Entry> {
        let e = self.entries.get(&at)?;
        let code = cpu.code_of(at.0, at.1)?;
        (code.code == self.address(e.entry)).then_some(e)
    }

    /// Whether a block has code of this tier.
    pub fn has(&self, cpu: &Cpu, phys: u64, key: u32) -> bool {
        self.entry_of(cpu, (phys, key)).is_some()
    }

    /// Whether a block was compiled before.
    pub fn knows(&self, phys: u64, key: u32) -> bool {
        self.entries.contains_key(&(phys, key))
    }

    /// Counts a block's executions from the start.
    pub fn count_again(&mut self, cpu: &Cpu, phys: u64, key: u32) {
        self.count_to(cpu, phys, key, self.hot);
    }

    /// Counts so many of a block's executions.
    pub fn count_to(&mut self, cpu: &Cpu, phys: u64, key: u32, number: u32) {
        if let Some(e) = self.entry_of(cpu, (phys, key)) {
            self.counters[e.counter] = number;
        }
    }

    /// Leaves a block to this tier.
    pub fn keep(&mut self, cpu: &Cpu, phys: u64, key: u32) {
        self.count_to(cpu, phys, key, i32::MAX as u32);
    }

    /// Compiles a block and gives it the code. False if it is not one for this tier.
    pub fn compile(&mut self, cpu: &mut Cpu, phys: u64, key: u32) -> bool {
        let mode = ModeKey(key);
        let long = mode.has(ModeKey::LONG);
        let flat32 = ModeKey::FLAT | ModeKey::D32 | ModeKey::STACK32;
        if !long && key & flat32 != flat32 || mode.has(ModeKey::SINGLE) {
            return false;
        }
        let Some(block) = cpu.known_block(phys, key).filter(|b| !b.is_dead() && b.len > 0) else {
            return false;
        };
        let first = (phys & PAGE_MASK) as u16;
        let mut ops: Vec<(Op, Option<(Instruction, bool)>)> = Vec::with_capacity(block.ops.len());
        for n in 0..block.ops.len() {
            let op = cpu.plain_op(block, n);
            let at = usize::from(op.off);
            let i = if op.len == 0 {
                None
            } else {
                let Some(code) = block.bytes.get(at..at + usize::from(op.len)) else { return false };
                let ip = u64::from(first) + at as u64;
                let i = Decoder::with_ip(bitness(mode), code, ip, DecoderOptions::AMD).decode();
                if i.code() as u16 != op.code {
                    return false;
                }
                // What is undefined on this model, or with this prefix, is a helper, as all that is not emitted.
                let known = build::<Translator>(&cpu.model, mode, &i, at)
                    .is_some_and(|b| b.1.handler.is_some() || kinds::is_helper(i.mnemonic()));
                Some((i, known))
            };
            ops.push((op, i));
        }
        if self.counted == self.counters.len() {
            self.empty(cpu);
        }
        let counter = self.counted;
        let plan = emit::Block { ops: &ops, first, long, counter };
        let mut made = Emitter::emit(&plan, &self.stubs, self.used, &mut self.encoder, &mut self.info);
        if self.used + made.code.len() > self.write.len() {
            self.empty(cpu);
            let plan = emit::Block { ops: &ops, first, long, counter: 0 };
            made = Emitter::emit(&plan, &self.stubs, self.used, &mut self.encoder, &mut self.info);
        }
        let origin = self.used;
        self.write.put(origin, &made.code);
        self.used = (origin + made.code.len()).next_multiple_of(16);
        self.compiled += 1;
        self.instructions += ops.iter().filter(|o| o.1.is_some()).count() as u64;
        self.bytes += made.code.len() as u64;
        let (places, called) = (made.places, made.called.iter().map(|op| op.code).collect());
        self.latest = Latest { at: (phys, key), origin, len: made.code.len(), places, called };
        let counter = self.counted;
        self.counted += 1;
        self.counters[counter] = self.hot;
        let entry = Entry {
            entry: origin,
            tested: origin + made.tested,
            body: origin + made.body,
            counter,
            leaps: Vec::new(),
            _called: made.called,
        };
        let body = self.address(entry.body).map_addr(|a| a | BASELINE as usize);
        let code = Compiled { enter: self.enter, code: self.address(origin), ops: body.cast() };
        if let Some(old) = self.entries.insert((phys, key), entry) {
            // The block has died and was decoded again: its old code has no jumps to be led anywhere.
            for (to, site) in old.leaps {
                if let Some(list) = self.waiting.get_mut(&to) {
                    list.retain(|w| w.site != site);
                }
            }
        }
        // SAFETY: the code stays until this tier is emptied, which takes it away from all blocks, or the vCPU ends; it was made of the block's instructions.
        if !unsafe { cpu.install(phys, key, &[], code) } {
            return false;
        }
        if !cpu.links_code() {
            return true;
        }
        for leap in &made.leaps {
            if !(0..=PAGE_MASK as i64).contains(&leap.target) {
                continue;
            }
            let to = (phys & !PAGE_MASK | leap.target as u64, key);
            let back = leap.target <= i64::from(first);
            let waiting = Waiting { site: origin + leap.site, stub: origin + leap.stub, back };
            self.waiting.entry(to).or_default().push(waiting);
            if let Some(e) = self.entries.get_mut(&(phys, key)) {
                e.leaps.push((to, waiting.site));
            }
            if to != (phys, key) {
                self.lead(cpu, to, waiting);
            }
        }
        for w in self.waiting.get(&(phys, key)).cloned().unwrap_or_default() {
            self.lead(cpu, (phys, key), w);
        }
        true
    }

    /// Has a jump lead straight to a block, if that has code.
    fn lead(&mut self, cpu: &Cpu, to: (u64, u32), w: Waiting) {
        let Some(e) = self.entry_of(cpu, to) else { return };
        // What follows the page depends on where that is mapped.
        if cpu.known_block(to.0, to.1).is_none_or(|b| b.second_page.is_some()) {
            return;
        }
        let target = if w.back { e.tested } else { e.body };
        let distance = |t: usize| (t as i64 - (w.site as i64 + 4)) as i32;
        let at = self.write.at(w.site);
        // SAFETY: the site is a displacement in code of this tier, which is mapped as long as the vCPU has it, and changed by its thread only, while none of
        // its code runs.
        unsafe { cpu.link_code(to.0, to.1, Link { at, back: distance(w.stub) }, distance(target)) };
    }

    /// Takes all code away.
    fn empty(&mut self, cpu: &mut Cpu) {
        for at in self.entries.keys().copied().collect::<Vec<_>>() {
            if self.has(cpu, at.0, at.1) {
                cpu.uninstall(at.0, at.1);
            }
        }
        self.entries.clear();
        self.waiting.clear();
        self.used = self.start;
        self.counted = 0;
    }
}

const _: () = assert!(CONTEXT < i32::MAX as usize);
