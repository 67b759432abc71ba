//! The baseline: blocks as host code of the same instructions, made in about the time that interpreting them a hundred
//! times takes.
//!
//! Only for x86-64 hosts. Each instruction of the guest's that is not about memory becomes itself, on other registers;
//! a memory operand becomes a look-up in the TLB and then itself; the rest calls the interpreter's handler. So
//! arithmetic and its flags are the host's own.
//!
//! ```text
//!   guest   RAX RCX RDX RBX RSP RBP RSI RDI R8 R9 R12   R10 R11 R13 R14 R15   flags
//!   host    R13 RCX RDX RBX R14 RBP RSI R15 R8 R9 R12   in the vCPU's state   the host's, or saved
//! ```
//!
//! RDI is the vCPU, RSP the host's stack, RAX, R10 and R11 are scratch. Flags live in the host's until something
//! clobbers them (a look-up does), which is when they are saved, as LAHF and SETO have them; where a block ends and
//! wherever it may be left they are saved. [`stubs`](crate::x64::stubs) move everything to the state and back.
//!
//! As in Cranelift's regions code raises no faults: what is not plain leaves the block before the instruction, and the
//! interpreter executes it.
//!
//! A block counts the jumps backwards that lead to it; when those are many, Cranelift may get it
//! ([`Left::Hot`](crate::abi::Left)). Blocks of a page jump to each other; other jumps go by the table of
//! [`CodeJump`](mynah_cpu::tier::CodeJump)s.
//!
//! Bodies of blocks and what is executed seldom (side exits, entries from other tiers) lie in chunks of their own, so
//! that the host's caches hold more bodies. All chunks are of one stretch of memory, which is emptied when it is full.
mod emit;
mod x87;

use crate::abi::{CONTEXT, Context, PLACE_MISSES};
use crate::code::dual_map::{self, Executed, Written};
use crate::listing::Mark;
use crate::x64::forms;
use crate::x64::stubs::Stubs;
use crate::x64::x87::is_direct;
use emit::Emitter;
use iced_x86::{Decoder, Encoder, Instruction, InstructionInfoFactory};
use mynah_cpu::block::Block;
use mynah_cpu::flags::pack;
use mynah_cpu::mode::ModeKey;
use mynah_cpu::op::HELPER;
use mynah_cpu::tier::{Compiled, Enter, Link};
use mynah_cpu::{Cpu, Op};
use mynah_mmu::{PAGE_MASK, PAGE_SIZE};
use rustc_hash::FxHashMap;
use smallvec::SmallVec;

/// Whether the host has one.
pub(crate) const HERE: bool = cfg!(target_arch = "x86_64");
/// Executions by the interpreter after which a block is compiled.
pub(crate) const HOT: u32 = 2;
/// Most bytes of code.
const CODE: usize = 96 << 20;
/// Least bytes of code.
const LEAST: usize = 1 << 20;
/// Chunks at least.
const LEAST_CHUNKS: usize = 16;
/// Most bytes of a chunk: a huge page of the host's.
const MOST_CHUNK: usize = 2 << 20;
/// Instructions per miss of a place beyond which misses do not matter.
const SELDOM: u64 = 1500;
/// Least blocks with code, and others that jumps lead to.
const LEAST_BLOCKS: usize = 1 << 12;
/// Places that are remembered to have missed.
const BLAMED: usize = 1 << 13;
/// No entry.
const NONE: u32 = 0;

/// What is known of a block that was compiled, or that a jump leads to. Offsets are in the code.
struct Entry {
    /// Physical address and mode key.
    at: (u64, u32),
    /// The entry behind it in its chain, counted from 1, or [`NONE`].
    next: u32,
    /// The block with this code, as long as it is live; else null.
    block: *const Block,
    /// Where other tiers enter.
    entry: u32,
    /// Where events are tested, or 0: nowhere as yet.
    tested: u32,
    /// Where other jumps go to.
    body: u32,
    /// Jumps that are linked with it when there is code.
    waiting: SmallVec<[Waiting; 1]>,
    /// Jumps of its own: the number of the entry of each one\'s target, and its site.
    exits: SmallVec<[(u32, u32); 2]>,
    /// Where it was when it was given places, for the log.
    lin: u64,
    /// It stays in this tier, and does not count.
    kept: bool,
    /// Which of its first 64 ops look into places; see [`Baseline::place`].
    placed: u64,
    /// x87 instructions are called; see [`Baseline::refuse_x87`].
    soft_x87: bool,
    /// The site of the jump that is to lead to code without a window, of code that has one and no such code yet.
    narrow: Option<u32>,
    /// The code calls the interpreter's handlers for these.
    #[expect(clippy::vec_box, reason = "code has their addresses")]
    called: Vec<Box<Op>>,
}

/// A jump that is linked with a block when there is code for it.
#[derive(Clone, Copy)]
struct Waiting {
    /// Offset of its displacement.
    site: u32,
    /// Offset of where it goes to without.
    stub: u32,
    /// It goes backwards, or interrupts have been enabled: events are to be tested.
    back: bool,
}

/// The baseline of one vCPU.
pub(crate) struct Baseline {
    write: Written,
    execute: Executed,
    room: Room,
    stubs: Stubs,
    /// Where code begins.
    start: usize,
    /// Each has a counter of the same number.
    entries: Vec<Entry>,
    /// The entries by what they are of, in chains: their numbers counted from 1, or [`NONE`].
    heads: Box<[u32]>,
    /// Bytes that entries have beside themselves, or more, and how many they may have.
    beside: usize,
    most_beside: usize,
    counters: Box<[u32]>,
    scratch: Scratch,
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
    places: emit::Places,
    /// How often each place was found to have missed when too many did, by entry and op.
    blamed: FxHashMap<(u32, u8), u32>,
    /// The count of instructions when that was looked at last.
    looked: u64,
    /// Every other block looks into places from the start.
    places_at_once: bool,
}

/// A stretch that is not used: offsets of its first byte and of what is behind it.
#[derive(Clone, Copy)]
struct Chunk {
    used: usize,
    end: usize,
}

/// Memory for code that is not used.
struct Room {
    /// Where the next block's body may lie, and what is executed seldom of it.
    bodies: Chunk,
    seldom: Chunk,
    /// Where chunks begin that nothing lies in, how long each is, and where memory ends.
    free: usize,
    chunk: usize,
    end: usize,
}

impl Room {
    /// All from `start` to `end`.
    fn new(start: usize, end: usize) -> Self {
        let chunk = (end / LEAST_CHUNKS).min(MOST_CHUNK);
        let (bodies, seldom) = (Chunk { used: start, end: chunk }, Chunk { used: 0, end: 0 });
        Self { bodies, seldom, free: chunk, chunk, end }
    }

    /// Makes room for the parts of a block, if there are chunks that nothing lies in.
    fn grow(&mut self, body: usize, seldom: usize) -> bool {
        for (chunk, len) in [(&mut self.bodies, body), (&mut self.seldom, seldom)] {
            // A body's first bits are given.
            if chunk.used + len + 16 <= chunk.end {
                continue;
            }
            if self.free + self.chunk > self.end {
                return false;
            }
            *chunk = Chunk { used: self.free, end: self.free + self.chunk };
            self.free += self.chunk;
        }
        true
    }
}

/// The block that was compiled last.
#[derive(Default)]
struct Latest {
    at: (u64, u32),
    /// Where its body is, and what is executed seldom, and how long they are.
    parts: [(usize, usize); 2],
    /// See [`emit::Emitted::places`].
    places: Vec<usize>,
    /// Number of its entry.
    number: usize,
}

impl Baseline {
    /// A baseline whose code is entered by `enter`, or why there is none. A block that has run `hot` times goes on to
    /// the next tier. Code and what is known of it take up to `bytes`, or a few MiB. With `places_at_once` half of the
    /// blocks look into places from the start.
    pub fn new(
        enter: Enter,
        hot: u32,
        bytes: usize,
        places_at_once: bool,
        split: bool,
    ) -> Result<Self, String> {
        // The code is resident twice, as who counts by mappings sees it.
        let size = (bytes / 3).clamp(LEAST, CODE).next_multiple_of(PAGE_SIZE as usize);
        let known = bytes / 3;
        let each = size_of::<Entry>() + size_of::<u32>() * 3;
        let blocks = (known / 8 * 5 / each).clamp(LEAST_BLOCKS, 1 << 20);
        let mut code = Vec::new();
        let stubs = Stubs::new(&mut code).map_err(|e| format!("a stub of the baseline: {e}"))?;
        let (mut write, execute) =
            dual_map::map(size, split).map_err(|e| format!("no executable memory: {e}"))?;
        write.put(0, &code);
        let start = code.len().next_multiple_of(16);
        let room = Room::new(start, write.len());
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
            room,
            stubs,
            start,
            // Neither grows, and memory that was never used is none.
            entries: Vec::with_capacity(blocks),
            heads: vec![NONE; blocks.next_power_of_two()].into_boxed_slice(),
            beside: 0,
            most_beside: (known / 8 * 3).max(LEAST),
            counters: vec![0; blocks].into_boxed_slice(),
            scratch: Scratch::default(),
            flag_words,
            encoder: Encoder::new(64),
            info: InstructionInfoFactory::new(),
            enter,
            hot,
            compiled: 0,
            instructions: 0,
            bytes: 0,
            latest: Latest::default(),
            places: emit::Places::default(),
            blamed: FxHashMap::default(),
            looked: 0,
            places_at_once,
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

    /// The code of the block that was compiled last, and where it is: its body and what is executed seldom.
    pub fn latest(&self) -> [(*const u8, &[u8]); 2] {
        self.latest.parts.map(|(at, len)| (self.address(at), self.write.bytes(at, len)))
    }

    /// The codes of the instructions in it that are called.
    pub fn latest_called(&self) -> impl Iterator<Item = u16> {
        self.entries.get(self.latest.number).into_iter().flat_map(|e| e.called.iter().map(|op| op.code))
    }

    /// What it was made from, if the block is at the linear address `lin`, and how wide addresses are there. Offsets
    /// are as if both of its parts were one.
    pub fn latest_marks(&self, cpu: &Cpu, lin: u64) -> (u32, Vec<Mark>) {
        let Latest { at: (phys, key), places, .. } = &self.latest;
        let Some(block) = cpu.known_block(*phys, *key) else { return (64, Vec::new()) };
        let mut ops = Vec::new();
        cpu.plain_ops(block, &mut ops);
        let mark = |(n, &offset): (usize, &usize)| {
            let bytes = ops.get(n).map(|op| {
                let at = usize::from(op.off);
                let bytes = block.bytes().get(at..at + usize::from(op.len));
                (u64::from(op.off), bytes.unwrap_or_default().to_vec())
            });
            let (distance, bytes) = bytes.unwrap_or_default();
            Mark { offset, lin: lin.wrapping_add(distance), bytes }
        };
        (ModeKey(*key).bitness(), places.iter().enumerate().map(mark).collect())
    }

    fn address(&self, offset: usize) -> *const u8 {
        self.execute.address(offset)
    }

    /// Takes note of blocks that have died: what entries say of them is no longer looked at.
    fn retire_dead(&mut self, cpu: &mut Cpu) {
        if !cpu.has_dead() {
            return;
        }
        match cpu.take_dead() {
            Some(dead) => {
                for number in dead {
                    if let Some(e) = self.entries.get_mut(number as usize) {
                        e.block = std::ptr::null();
                    }
                }
            }
            None => self.entries.iter_mut().for_each(|e| e.block = std::ptr::null()),
        }
    }

    /// The number of a block's entry, if it has code of this tier.
    fn number_of(&mut self, cpu: &mut Cpu, at: (u64, u32)) -> Option<usize> {
        self.retire_dead(cpu);
        let number = self.find(at)?;
        self.has_code(number).then_some(number)
    }

    /// Where the chain of a block's entry begins.
    fn chain(&self, (phys, key): (u64, u32)) -> usize {
        let hash = (phys ^ u64::from(key) << 48).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        (hash >> (64 - self.heads.len().trailing_zeros())) as usize
    }

    /// The number of the entry for a block.
    fn find(&self, at: (u64, u32)) -> Option<usize> {
        let mut next = self.heads[self.chain(at)];
        while next != NONE {
            let number = next as usize - 1;
            if self.entries[number].at == at {
                return Some(number);
            }
            next = self.entries[number].next;
        }
        None
    }

    /// Whether the block of an entry has the entry's code. Blocks that died have been retired.
    fn has_code(&self, number: usize) -> bool {
        let e = &self.entries[number];
        // SAFETY: null, or a live block: blocks tell of their death by their number, which is looked at first
        // (`retire_dead`).
        unsafe { e.block.as_ref() }
            .and_then(Block::code)
            .is_some_and(|code| code.code == self.address(e.entry as usize))
    }

    /// Whether a block has code of this tier.
    pub fn has(&mut self, cpu: &mut Cpu, phys: u64, key: u32) -> bool {
        self.number_of(cpu, (phys, key)).is_some()
    }

    /// Whether a block was compiled before.
    pub fn knows(&self, phys: u64, key: u32) -> bool {
        self.find((phys, key)).is_some_and(|n| self.entries[n].entry != 0)
    }

    /// Counts a block's executions from the start.
    pub fn count_again(&mut self, cpu: &mut Cpu, phys: u64, key: u32) {
        self.count_to(cpu, phys, key, self.hot);
    }

    /// Counts so many of a block's executions.
    pub fn count_to(&mut self, cpu: &mut Cpu, phys: u64, key: u32, number: u32) {
        if let Some(n) = self.number_of(cpu, (phys, key)) {
            self.counters[n] = number;
        }
    }

    /// Leaves a block to this tier until it is counted from the start, for another reason.
    pub fn count_long(&mut self, cpu: &mut Cpu, phys: u64, key: u32) {
        self.count_to(cpu, phys, key, i32::MAX as u32);
    }

    /// Leaves a block to this tier. Returns whether there is new code.
    pub fn keep(&mut self, cpu: &mut Cpu, phys: u64, key: u32) -> bool {
        let Some(number) = self.number_of(cpu, (phys, key)) else { return false };
        !std::mem::replace(&mut self.entries[number].kept, true) && self.compile(cpu, phys, key)
    }

    /// Has the accesses of a block with code look into places ([`mynah_mmu::Place`]) instead of the TLB: for blocks
    /// that run again and again. `lin` is where it is. Returns whether there is new code.
    pub fn place(&mut self, cpu: &mut Cpu, phys: u64, key: u32, lin: u64) -> bool {
        let Some(number) = self.number_of(cpu, (phys, key)) else { return false };
        self.entries[number].lin = lin;
        self.entries[number].placed == 0 && self.place_ops(cpu, number, u64::MAX)
    }

    /// Compiles a block with code again, with these ops looking into places.
    fn place_ops(&mut self, cpu: &mut Cpu, number: usize, placed: u64) -> bool {
        let (left, (phys, key)) = (self.counters[number], self.entries[number].at);
        self.entries[number].placed = placed;
        let done = self.compile(cpu, phys, key);
        self.count_to(cpu, phys, key, left);
        done
    }

    /// A place has missed, at this offset in the vCPU: one of [`PLACE_MISSES`]. If places have missed often of late,
    /// and this one for the second time, its access looks into the TLB again. Returns the block's linear address if
    /// there is new code.
    pub fn look_at_misses(&mut self, cpu: &mut Cpu, at: u64) -> Option<u64> {
        let executed = cpu.icount.wrapping_sub(std::mem::replace(&mut self.looked, cpu.icount));
        if executed > PLACE_MISSES * SELDOM {
            return None;
        }
        self.retire_dead(cpu);
        let owner = self.places.owner(at)?;
        if self.blamed.len() >= BLAMED {
            self.blamed.clear();
        }
        let blamed = self.blamed.entry(owner).or_default();
        *blamed += 1;
        let number = owner.0 as usize;
        if *blamed < 2 || !self.has_code(number) {
            return None;
        }
        let Entry { placed, lin, .. } = self.entries[number];
        let less = placed & !(1 << owner.1);
        (less != placed && self.place_ops(cpu, number, less)).then_some(lin)
    }

    /// Has the x87 instructions of this block called from now on, as the host must not execute them: with an
    /// exception unmasked each would leave the block. Returns the block's offset in its page if there is new code.
    pub fn refuse_x87(&mut self, cpu: &mut Cpu, number: u64) -> Option<u64> {
        self.retire_dead(cpu);
        let number = number as usize;
        if number >= self.entries.len() || !self.has_code(number) || self.entries[number].soft_x87 {
            return None;
        }
        let (left, (phys, key)) = (self.counters[number], self.entries[number].at);
        self.entries[number].soft_x87 = true;
        let done = self.compile(cpu, phys, key);
        self.count_to(cpu, phys, key, left);
        done.then_some(phys & PAGE_MASK)
    }

    /// Makes code without a window for the block with this number, besides what it has. Returns its offset in its page
    /// if there is new code.
    pub fn make_narrow(&mut self, cpu: &mut Cpu, number: u64) -> Option<u64> {
        self.retire_dead(cpu);
        let number = number as usize;
        if number >= self.entries.len() || !self.has_code(number) {
            return None;
        }
        self.entries[number].narrow?;
        let (phys, key) = self.entries[number].at;
        self.compile_as(cpu, phys, key, true).then_some(phys & PAGE_MASK)
    }

    /// The number of the entry for a block, which is made if there is none.
    fn enter(&mut self, at: (u64, u32)) -> u32 {
        let number = self.find(at).unwrap_or(self.entries.len());
        if number == self.entries.len() {
            let chain = self.chain(at);
            let next = std::mem::replace(&mut self.heads[chain], number as u32 + 1);
            self.entries.push(Entry {
                at,
                next,
                block: std::ptr::null(),
                entry: 0,
                tested: 0,
                body: 0,
                waiting: SmallVec::new(),
                exits: SmallVec::new(),
                lin: 0,
                kept: false,
                placed: 0,
                soft_x87: false,
                narrow: None,
                called: Vec::new(),
            });
        }
        number as u32
    }

    /// Which ops of a block look into places from the start.
    fn places_of_new(&self, number: usize) -> u64 {
        if self.places_at_once && number & 1 != 0 { u64::MAX } else { 0 }
    }

    /// Compiles a block and gives it the code. False if it is not one for this tier.
    pub fn compile(&mut self, cpu: &mut Cpu, phys: u64, key: u32) -> bool {
        self.compile_as(cpu, phys, key, false)
    }

    /// Compiles a block and gives it the code; or compiles it without a window, for when its code with one does not do.
    fn compile_as(&mut self, cpu: &mut Cpu, phys: u64, key: u32, narrow: bool) -> bool {
        let mode = ModeKey(key);
        let long = mode.has(ModeKey::LONG);
        let flat32 = ModeKey::FLAT | ModeKey::D32 | ModeKey::STACK32;
        if !long && key & flat32 != flat32 || mode.has(ModeKey::SINGLE) {
            return false;
        }
        self.retire_dead(cpu);
        let Some(block) = cpu.known_block(phys, key).filter(|b| !b.is_dead() && b.len > 0) else {
            return false;
        };
        let first = (phys & PAGE_MASK) as u16;
        let mut ops = std::mem::take(&mut self.scratch.ops);
        ops.clear();
        let plain = &mut self.scratch.plain;
        plain.clear();
        if !cpu.plain_ops(block, plain) {
            return false;
        }
        if !decode(cpu, block, mode, first, plain, &mut ops) {
            return false;
        }
        let block: *const Block = block;
        // Each jump of the block may want an entry.
        if self.entries.len() + ops.len() + 3 > self.counters.len() || self.beside > self.most_beside {
            if narrow {
                return false;
            }
            self.empty(cpu);
        }
        let (number, mut made) = loop {
            let number = self.enter((phys, key)) as usize;
            let places = self.places_of_new(number);
            let e = &mut self.entries[number];
            if e.block != block {
                // What was known is known of what stood there before.
                (e.placed, e.kept, e.soft_x87) = (places, false, false);
            }
            let Entry { placed, kept, soft_x87, .. } = *e;
            let (counts, user) = (!kept, mode.has(ModeKey::USER));
            let loops = e.waiting.iter().any(|w| w.back) || leads_to_itself(&ops, first);
            let number32 = number as u32;
            let plan = emit::Block {
                ops: &ops,
                first,
                long,
                number: number32,
                placed,
                counts,
                loops,
                user,
                soft_x87,
                may_window: !narrow,
            };
            let emitted = std::mem::take(&mut self.scratch.emitted);
            let (encoder, info) = (&mut self.encoder, &mut self.info);
            let (stubs, places) = (&self.stubs, &mut self.places);
            let made = Emitter::emit(&plan, stubs, places, self.room.bodies.used, encoder, info, emitted);
            let fits = made.origin + made.split <= self.room.bodies.end;
            if fits && self.room.seldom.used + made.seldom() <= self.room.seldom.end {
                break (number, made);
            }
            let grown = self.room.grow(made.split, made.seldom());
            self.scratch.emitted = made;
            if !grown {
                if narrow {
                    return false;
                }
                self.empty(cpu);
            }
        };
        let (origin, split, seldom) = (made.origin, made.split, self.room.seldom.used);
        let at =
            move |offset: usize| if offset < split { origin + offset } else { seldom + (offset - split) };
        made.part(seldom.wrapping_sub(origin + split));
        self.write.put(origin, &made.code[..split]);
        self.write.put(seldom, &made.code[split..]);
        (self.room.bodies.used, self.room.seldom.used) = (origin + split, seldom + made.seldom());
        self.compiled += 1;
        self.instructions += ops.iter().filter(|o| o.1.is_some()).count() as u64;
        self.bytes += made.code.len() as u64;
        self.scratch.ops = ops;
        self.latest.at = (phys, key);
        (self.latest.parts, self.latest.number) = ([(origin, split), (seldom, made.seldom())], number);
        std::mem::swap(&mut self.latest.places, &mut made.places);
        let bytes = |called: &Vec<Box<Op>>| called.len() * (size_of::<Op>() + 16);
        self.beside += bytes(&made.called);
        if narrow {
            let e = &mut self.entries[number];
            e.called.append(&mut made.called);
            if let Some(site) = e.narrow.take() {
                let distance = at(made.body) as i64 - (i64::from(site) + 4);
                self.write.put(site as usize, &(distance as i32).to_le_bytes());
            }
            if cpu.links_code() {
                self.link(cpu, number, &made.exits, narrow, at);
            }
            self.scratch.emitted = made;
            return true;
        }
        self.counters[number] = self.hot;
        let e = &mut self.entries[number];
        (e.entry, e.tested, e.body) = (seldom as u32, made.tested.map_or(0, at) as u32, at(made.body) as u32);
        e.block = block;
        e.narrow = made.narrow.map(|site| at(site) as u32);
        self.beside = self.beside.saturating_sub(bytes(&e.called));
        e.called = std::mem::take(&mut made.called);
        // If the block had died and was decoded again: no jump of its old code is to be linked.
        for (to, site) in std::mem::take(&mut e.exits) {
            self.entries[to as usize].waiting.retain(|w| w.site != site);
        }
        let (code, ops) = (self.address(seldom), self.address(at(made.body)).cast());
        let code = Compiled { enter: self.enter, code, ops };
        // SAFETY: the block is live, as nothing was decoded since it was found. The code stays until this tier is
        // emptied, which takes it away from all blocks, or the vCPU ends; it was made of the block's instructions.
        unsafe {
            cpu.install_block(block, code);
            (*block).set_number(number as u32);
        }
        if cpu.links_code() {
            self.link(cpu, number, &made.exits, narrow, at);
            for n in 0..self.entries[number].waiting.len() {
                self.link_jump(cpu, number, self.entries[number].waiting[n]);
            }
        }
        self.scratch.emitted = made;
        true
    }

    /// Links the code of an entry, which was just made, with that of other blocks on its page; jumps to the entry
    /// itself only if others are `linked` with it. `at` says where an offset in that code has come to lie.
    fn link(
        &mut self,
        cpu: &mut Cpu,
        number: usize,
        exits: &[emit::DirectExit],
        linked: bool,
        at: impl Fn(usize) -> usize,
    ) {
        let (phys, key) = self.entries[number].at;
        let first = (phys & PAGE_MASK) as i64;
        for exit in exits.iter().filter(|l| l.is_in_page()) {
            let to = self.enter((phys & !PAGE_MASK | exit.target as u64, key));
            let back = exit.tests || exit.target <= first;
            let waiting = Waiting { site: at(exit.site) as u32, stub: at(exit.stub) as u32, back };
            self.beside += push(&mut self.entries[to as usize].waiting, waiting);
            self.beside += push(&mut self.entries[number].exits, (to, waiting.site));
            if linked || to as usize != number {
                self.link_jump(cpu, to as usize, waiting);
            }
        }
    }

    /// Links a jump with the block of an entry, if that has code. Blocks that died have been retired.
    fn link_jump(&mut self, cpu: &mut Cpu, to: usize, w: Waiting) {
        // What follows the page depends on where that is mapped.
        // SAFETY: null, or a live block, as in `has_code`.
        let block = unsafe { self.entries[to].block.as_ref() };
        if block.is_none_or(|b| b.second_page().is_some()) || !self.has_code(to) {
            return;
        }
        if w.back && self.entries[to].tested == 0 && !self.make_tests(to) {
            return;
        }
        let e = &self.entries[to];
        let target = if w.back { e.tested } else { e.body };
        let distance = |t: u32| (i64::from(t) - (i64::from(w.site) + 4)) as i32;
        let at = self.write.at(w.site as usize);
        // SAFETY: the block is live. The site is a displacement in code of this tier, which is mapped as long as the
        // vCPU has it, and changed by its thread only, while none of its code runs.
        unsafe { cpu.link_code(e.block, Link { at, back: distance(w.stub) }, distance(target)) };
    }

    /// Makes what jumps backwards to the code of an entry pass. False if there is no room.
    fn make_tests(&mut self, number: usize) -> bool {
        let e = &self.entries[number];
        let tests =
            emit::Tests { number: number as u32, counts: !e.kept, first: (e.at.0 & PAGE_MASK) as i64 };
        let body = e.body as usize;
        if !self.room.grow(0, emit::Tests::MOST) {
            return false;
        }
        let at = self.room.seldom.used;
        let code = tests.apart(&self.stubs, at, body);
        debug_assert!(code.len() <= emit::Tests::MOST);
        self.write.put(at, &code);
        self.room.seldom.used += code.len();
        self.bytes += code.len() as u64;
        self.entries[number].tested = at as u32;
        true
    }

    /// Takes all code away. Blocks that died have been retired.
    fn empty(&mut self, cpu: &mut Cpu) {
        cpu.forget_returns();
        for number in 0..self.entries.len() {
            // The number will be another block's.
            // SAFETY: null, or a live block, as in `has_code`.
            if let Some(block) = unsafe { self.entries[number].block.as_ref() } {
                block.forget_number();
            }
            if self.has_code(number) {
                let (phys, key) = self.entries[number].at;
                cpu.uninstall(phys, key);
            }
        }
        self.entries.clear();
        self.heads.fill(NONE);
        self.beside = 0;
        self.places = emit::Places::default();
        self.blamed.clear();
        self.room = Room::new(self.start, self.write.len());
    }
}

/// The instructions that a block's ops were decoded from, and whether each is one that its bytes say. False if the
/// bytes have changed.
fn decode(
    cpu: &Cpu,
    block: &Block,
    mode: ModeKey,
    first: u16,
    plain: &[Op],
    ops: &mut Vec<(Op, Option<(Instruction, bool)>)>,
) -> bool {
    let options = cpu.model.decoder_options();
    let mut decoder = Decoder::with_ip(mode.bitness(), block.bytes(), u64::from(first), options);
    for &op in plain {
        if op.len == 0 {
            ops.push((op, None));
            continue;
        }
        let at = usize::from(op.off);
        if decoder.position() != at {
            decoder.set_ip(u64::from(first) + at as u64);
            if decoder.set_position(at).is_err() {
                return false;
            }
        }
        let i = decoder.decode();
        if i.code() as u16 != op.code {
            return false;
        }
        // What is undefined on this model, or with this prefix, is a helper, as all that is not emitted.
        let known = op.flags & HELPER == 0
            || (forms::is_helper(&i) || is_direct(i.code()) && !i.has_lock_prefix()) && cpu.model.allows(&i);
        ops.push((op, Some((i, known))));
    }
    true
}

/// Whether a block whose first byte is at this offset in its page ends with a jump to that.
fn leads_to_itself(ops: &[(Op, Option<(Instruction, bool)>)], first: u16) -> bool {
    let last = ops.last().and_then(|op| op.1);
    last.is_some_and(|(i, _)| i.is_jcc_short_or_near() && i.near_branch_target() == u64::from(first))
}

/// Adds something, and says how many bytes more are taken by that.
fn push<A: smallvec::Array>(to: &mut SmallVec<A>, item: A::Item) -> usize {
    let bytes = |v: &SmallVec<A>| if v.spilled() { v.capacity() * size_of::<A::Item>() + 16 } else { 0 };
    let before = bytes(to);
    to.push(item);
    bytes(to) - before
}

/// Memory that is used again for each block.
#[derive(Default)]
struct Scratch {
    plain: Vec<Op>,
    ops: Vec<(Op, Option<(Instruction, bool)>)>,
    emitted: emit::Emitted,
}

// SAFETY: the pointers to blocks are looked at with the vCPU at hand only, whose blocks they are.
unsafe impl Send for Baseline {}

const _: () = assert!(CONTEXT < i32::MAX as usize);
