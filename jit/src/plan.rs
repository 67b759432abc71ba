//! What is compiled: a block and those that it leads to on the same page, with the sets that the translator needs to
//! know beforehand.
//!
//! A region lies on one page, so that it holds wherever the page is mapped; it has one entry. Only blocks that the
//! interpreter has decoded go into it: those that have run. Loops are closed inside; a block that an edge leads back
//! to tests for events. Everything else that is jumped to is a side exit.
//!
//! Two sets of variables (registers, flags) are computed over the region's blocks: *dirty*, those that may differ from
//! the state in memory, and *live*, those that must have a value because they are read, or dirty where the region may
//! be left. As it may be left before any instruction, what is dirty is always live.
use crate::host::forms::emits;
use crate::instructions::{Row, row};
use iced_x86::{
    Decoder, EncodingKind, FlowControl, Instruction, InstructionInfoFactory, Mnemonic, OpAccess, OpKind,
    Register,
};
use mynah_cpu::block::Block;
use mynah_cpu::mode::ModeKey;
use mynah_cpu::{Cpu, CpuModel, Op};
use std::collections::{HashMap, VecDeque};
use std::ops::Range;

use crate::code::Part;

/// Number of the variable of `State::res`; registers have their own numbers.
pub(crate) const RES: usize = 16;
/// Number of the variable of `State::aux`.
pub(crate) const AUX: usize = 17;
/// Number of the variable of XMM0's low 128 bits; the others follow.
pub(crate) const XMM: usize = 18;
/// Number of the variable of YMM0's bits 128-255; the others follow.
pub(crate) const HIGH: usize = XMM + 16;

/// Variables of the translator: 16 registers, two words of flags, 16 vector registers in two halves.
pub(crate) const VARS: usize = 50;
/// A set of variables, one bit each.
pub(crate) type Set = u64;
const FLAGS: Set = 1 << RES | 1 << AUX;

/// Blocks in a region.
const MAX_BLOCKS: usize = 32;
/// Instructions in a region.
const MAX_OPS: usize = 320;
/// Return sites that a RET is compared with.
const MAX_SITES: usize = 4;

/// A block of a region.
pub(crate) struct PlanBlock {
    /// Distance of its first byte from the entry's.
    pub delta: i64,
    /// Its ops, in [`Plan::ops`].
    pub ops: Range<usize>,
    /// An edge leads back to it.
    pub is_head: bool,
    /// It can follow itself.
    pub in_loop: bool,
    /// The innermost loop that the block is in, if it is in one.
    pub innermost: Option<Loop>,
    /// It calls what the baseline has in its code.
    pub calls: bool,
    /// Variables that have values when it begins.
    pub live_in: Set,
    /// Variables that may be dirty when it begins.
    pub dirty_in: Set,
    followers: Vec<usize>,
    /// Blocks that it can follow.
    pub comes_from: Vec<usize>,
}

/// What is done to the general registers in a loop, a bit for each.
#[derive(Clone, Copy, Default)]
pub(crate) struct Loop {
    /// They are loaded from memory: pointers that lead anywhere.
    pub loaded: u16,
    /// They are written otherwise than by steps of a constant.
    pub wild: u16,
}

/// Says of each op of a plan whether the translator emits it, or calls its handler.
pub(crate) type Emitted = fn(&Plan, &CpuModel) -> Vec<bool>;

/// A region before translation.
pub(crate) struct Plan {
    pub blocks: Vec<PlanBlock>,
    pub ops: Vec<Op>,
    /// What each op was decoded from; `None` for the end of a block that was cut.
    pub instructions: Vec<Option<Instruction>>,
    /// Variables that must have values after each op.
    pub live_after: Vec<Set>,
    /// Blocks that calls in the region return to, by distance.
    pub return_sites: Vec<i64>,
    /// 64-bit code.
    pub long: bool,
    /// The low half of the linear address at which the region was planned, if its code is to tell what it was made
    /// from.
    pub marks: Option<u32>,
    pub mode: ModeKey,
    index: HashMap<i64, usize>,
    parts: Vec<Part>,
}

impl Plan {
    /// The block at a distance from the entry.
    pub fn find(&self, delta: i64) -> Option<usize> {
        self.index.get(&delta).copied()
    }

    /// Whether the region begins with the head of a loop that it closes, and no loop in it calls what the baseline has
    /// in its code: elsewhere what is gained is lost by moving registers between the baseline's places and a region's.
    pub fn is_loop(&self) -> bool {
        self.blocks.first().is_some_and(|b| b.in_loop) && !self.blocks.iter().any(|b| b.in_loop && b.calls)
    }

    /// Instructions of the loop that the region begins with.
    pub fn loop_size(&self) -> usize {
        // It leads to all: what leads to it is in its loop.
        let leads = self.reached(&[0], |b| &b.comes_from);
        self.blocks.iter().zip(leads).filter(|(_, leads)| *leads).map(|(b, _)| b.ops.len()).sum()
    }

    /// Which blocks are reached from these, themselves included, by the edges that are given of each.
    fn reached(&self, from: &[usize], edges: impl Fn(&PlanBlock) -> &[usize]) -> Vec<bool> {
        self.reached_as_well(vec![false; self.blocks.len()], from, edges)
    }

    /// As [`Self::reached`], with some that have been, from which no more are.
    fn reached_as_well(
        &self,
        mut reached: Vec<bool>,
        from: &[usize],
        edges: impl Fn(&PlanBlock) -> &[usize],
    ) -> Vec<bool> {
        let mut next = from.to_vec();
        while let Some(n) = next.pop() {
            if !std::mem::replace(&mut reached[n], true) {
                next.extend(edges(&self.blocks[n]));
            }
        }
        reached
    }

    /// The instruction that code with this mark was made from: its linear address if the region was planned at `lin`,
    /// and its bytes.
    pub fn marked(&self, mark: u32, lin: u64) -> Option<(u64, Vec<u8>)> {
        let delta = i64::from(mark.wrapping_sub(lin as u32) as i32);
        self.blocks.iter().zip(&self.parts).find_map(|(block, part)| {
            let op = self.ops[block.ops.clone()].iter().find(|o| block.delta + i64::from(o.off) == delta)?;
            let at = usize::from(op.off);
            let bytes = part.bytes.get(at..at + usize::from(op.len))?;
            Some((lin.wrapping_add(delta as u64), bytes.to_vec()))
        })
    }

    /// How wide addresses are in its code: 16, 32 or 64 bits.
    pub fn bitness(&self) -> u32 {
        self.mode.bitness()
    }

    /// Guest physical addresses of the region's blocks.
    pub fn part_addresses(&self) -> impl Iterator<Item = u64> {
        self.parts.iter().map(|p| p.phys)
    }

    /// What is kept for telling whether the code still holds.
    pub fn parts(&self) -> &[Part] {
        &self.parts
    }

    /// Instructions of the guest.
    pub fn instruction_count(&self) -> usize {
        self.instructions.iter().flatten().count()
    }

    /// The region that begins with `entry`; `None` if it is not one to be compiled: code that is neither 64-bit nor
    /// flat 32-bit, or a block across pages.
    pub fn new(
        cpu: &Cpu,
        entry: &Block,
        info: &mut InstructionInfoFactory,
        emitted: Emitted,
    ) -> Option<Self> {
        let mode = ModeKey(entry.key);
        let long = mode.has(ModeKey::LONG);
        let flat32 = ModeKey::FLAT | ModeKey::D32 | ModeKey::STACK32;
        if !long && entry.key & flat32 != flat32 || mode.has(ModeKey::SINGLE) || !fits(entry) {
            return None;
        }
        let mut plan = Self {
            blocks: Vec::new(),
            ops: Vec::new(),
            instructions: Vec::new(),
            live_after: Vec::new(),
            return_sites: Vec::new(),
            long,
            marks: None,
            mode,
            index: HashMap::new(),
            parts: Vec::new(),
        };
        let most = if cpu.sees_every_block() { 1 } else { MAX_BLOCKS };
        let mut wanted = VecDeque::from([0]);
        while let Some(delta) = wanted.pop_front() {
            if plan.index.contains_key(&delta) || plan.blocks.len() >= most || plan.ops.len() >= MAX_OPS {
                continue;
            }
            let phys = entry.phys.wrapping_add(delta as u64);
            if phys >> 12 != entry.phys >> 12 {
                continue;
            }
            if let Some(block) = cpu.known_block(phys, entry.key).filter(|b| fits(b)) {
                wanted.extend(plan.add(cpu, block, delta)?);
            }
        }
        if most == 1 {
            // Nor does it go on with itself.
            plan.index.clear();
        }
        plan.return_sites.retain(|d| plan.index.contains_key(d));
        plan.return_sites.truncate(MAX_SITES);
        plan.connect();
        plan.arrange();
        plan.connect();
        plan.find_loops(info);
        let emitted = emitted(&plan, &cpu.model);
        plan.solve(&emitted, info);
        Some(plan)
    }

    /// Adds a block; returns where it leads.
    fn add(&mut self, cpu: &Cpu, block: &Block, delta: i64) -> Option<Vec<i64>> {
        let bytes = block.bytes();
        let options = cpu.model.decoder_options();
        let first = self.ops.len();
        if !cpu.plain_ops(block, &mut self.ops) {
            return None;
        }
        for op in &self.ops[first..] {
            let at = usize::from(op.off);
            let instruction = if op.len == 0 {
                None
            } else {
                let code = bytes.get(at..at + usize::from(op.len))?;
                let mut d = Decoder::with_ip(self.mode.bitness(), code, at as u64, options);
                let i = d.decode();
                // The bytes have been decoded before: another result means that they are just changing.
                if i.code() as u16 != op.code {
                    return None;
                }
                Some(i)
            };
            self.instructions.push(instruction);
        }
        let ops = first..self.ops.len();
        self.index.insert(delta, self.blocks.len());
        let mut leads = Vec::new();
        let last = ops.end.checked_sub(1)?;
        let op = &self.ops[last];
        let after = delta + i64::from(op.off) + i64::from(op.len);
        match &self.instructions[last] {
            None => leads.push(after),
            Some(i) => {
                let near = match i.op0_kind() {
                    OpKind::NearBranch64 => Some(delta.wrapping_add(op.imm as i64)),
                    OpKind::NearBranch32 => Some(delta.wrapping_add(i64::from(op.imm as i32))),
                    _ => None,
                };
                match i.flow_control() {
                    FlowControl::ConditionalBranch => leads.extend(near.into_iter().chain([after])),
                    FlowControl::UnconditionalBranch => leads.extend(near),
                    FlowControl::Call => {
                        leads.extend(near.into_iter().chain([after]));
                        self.return_sites.push(after);
                    }
                    FlowControl::IndirectCall => {
                        leads.push(after);
                        self.return_sites.push(after);
                    }
                    _ => {}
                }
            }
        }
        self.blocks.push(PlanBlock {
            delta,
            ops,
            is_head: false,
            in_loop: false,
            innermost: None,
            calls: false,
            live_in: 0,
            dirty_in: 0,
            followers: Vec::new(),
            comes_from: Vec::new(),
        });
        self.parts.push(Part { phys: block.phys, bytes: bytes.into() });
        Some(leads)
    }

    /// Puts the blocks in an order in which each comes behind those that lead to it, but for loops (reverse
    /// postorder); what is not led to is left out.
    fn arrange(&mut self) {
        let mut reached = vec![false; self.blocks.len()];
        let mut order = Vec::with_capacity(self.blocks.len());
        let mut path = vec![(0, 0)];
        reached[0] = true;
        while let Some((n, next)) = path.pop() {
            match self.blocks[n].followers.get(next) {
                Some(&f) => {
                    path.push((n, next + 1));
                    if !std::mem::replace(&mut reached[f], true) {
                        path.push((f, 0));
                    }
                }
                None => order.push(n),
            }
        }
        order.reverse();
        let mut old = std::mem::take(&mut self.blocks)
            .into_iter()
            .zip(std::mem::take(&mut self.parts))
            .map(Some)
            .collect::<Vec<_>>();
        let (ops, instructions) = (std::mem::take(&mut self.ops), std::mem::take(&mut self.instructions));
        self.index.retain(|_, n| reached[*n]);
        for n in order {
            let Some((mut block, part)) = old[n].take() else { continue };
            let range = std::mem::replace(&mut block.ops, self.ops.len()..0);
            self.ops.extend_from_slice(&ops[range.clone()]);
            self.instructions.extend_from_slice(&instructions[range]);
            block.ops.end = self.ops.len();
            if let Some(at) = self.index.get_mut(&block.delta) {
                *at = self.blocks.len();
            }
            self.blocks.push(block);
            self.parts.push(part);
        }
    }

    /// Finds each block's followers in the region, and which are led back to.
    fn connect(&mut self) {
        for b in &mut self.blocks {
            b.is_head = false;
            b.comes_from.clear();
        }
        for n in 0..self.blocks.len() {
            let b = &self.blocks[n];
            let last = b.ops.end - 1;
            let op = &self.ops[last];
            let after = b.delta + i64::from(op.off) + i64::from(op.len);
            let places: Vec<i64> = match &self.instructions[last] {
                None => vec![after],
                Some(i) => {
                    let near = match i.op0_kind() {
                        OpKind::NearBranch64 => vec![b.delta.wrapping_add(op.imm as i64)],
                        OpKind::NearBranch32 => vec![b.delta.wrapping_add(i64::from(op.imm as i32))],
                        _ => Vec::new(),
                    };
                    match i.flow_control() {
                        FlowControl::ConditionalBranch => near.into_iter().chain([after]).collect(),
                        FlowControl::UnconditionalBranch | FlowControl::Call => near,
                        FlowControl::Return => self.return_sites.clone(),
                        _ => Vec::new(),
                    }
                }
            };
            let followers: Vec<usize> = places.iter().filter_map(|&d| self.find(d)).collect();
            for &f in &followers {
                self.blocks[f].is_head |= f <= n;
                self.blocks[f].comes_from.push(n);
            }
            self.blocks[n].followers = followers;
        }
    }

    /// Finds the blocks in loops, and what is done to registers there.
    fn find_loops(&mut self, info: &mut InstructionInfoFactory) {
        for n in 0..self.blocks.len() {
            self.blocks[n].in_loop = self.reached(&self.blocks[n].followers, |b| &b.followers)[n];
        }
        // The smallest first.
        let mut loops: Vec<Vec<bool>> = Vec::new();
        for (head, b) in self.blocks.iter().enumerate() {
            loops.extend(b.comes_from.iter().filter(|&&n| n >= head).map(|&n| self.body(head, n)));
        }
        loops.sort_by_key(|body| body.iter().filter(|&&b| b).count());
        for body in &loops {
            let members = self.blocks.iter().zip(body).filter(|(_, inside)| **inside);
            let within = members.flat_map(|(b, _)| &self.instructions[b.ops.clone()]);
            let mut of = Loop::default();
            for i in within.flatten() {
                of.loaded |= loaded(i).map_or(0, |r| 1 << r);
                of.wild |= if is_step(i) { 0 } else { written(i, info) };
            }
            for (b, _) in self.blocks.iter_mut().zip(body).filter(|(_, inside)| **inside) {
                b.innermost.get_or_insert(of);
            }
        }
    }

    /// The blocks of a loop that `last` leads back to the head of: those that reach it without coming by the head.
    fn body(&self, head: usize, last: usize) -> Vec<bool> {
        let mut body = vec![false; self.blocks.len()];
        body[head] = true;
        self.reached_as_well(body, &[last], |b| &b.comes_from)
    }

    /// Computes the sets, given which ops are emitted.
    fn solve(&mut self, emitted: &[bool], info: &mut InstructionInfoFactory) {
        let uses: Vec<Use> = emitted
            .iter()
            .zip(&self.instructions)
            .map(|(emitted, i)| match (emitted, i) {
                (true, Some(i)) => Use::of(i, self.long, info),
                (false, Some(_)) => Use::Call,
                (_, None) => Use::Variables { reads: 0, writes: 0, kills: 0, stored: 0 },
            })
            .collect();
        for b in &mut self.blocks {
            let mut ops = uses[b.ops.clone()].iter().zip(&self.instructions[b.ops.clone()]);
            b.calls = ops.any(|(u, i)| matches!(u, Use::Call) && i.as_ref().is_some_and(emits));
        }
        // Forward: dirty.
        let mut dirty_after = vec![0; self.ops.len()];
        let mut changed = true;
        while changed {
            changed = false;
            for n in 0..self.blocks.len() {
                let mut dirty = self.blocks[n].dirty_in;
                for k in self.blocks[n].ops.clone() {
                    dirty = match uses[k] {
                        Use::Call => 0,
                        Use::Variables { writes, stored, .. } => (dirty | writes) & !stored,
                    };
                    dirty_after[k] = dirty;
                }
                for f in self.blocks[n].followers.clone() {
                    let to = &mut self.blocks[f].dirty_in;
                    changed |= dirty & !*to != 0;
                    *to |= dirty;
                }
            }
        }
        // Backward: live.
        self.live_after = vec![0; self.ops.len()];
        changed = true;
        while changed {
            changed = false;
            for n in (0..self.blocks.len()).rev() {
                let b = &self.blocks[n];
                let mut live = b.followers.iter().fold(0, |l, &f| l | self.blocks[f].live_in);
                for k in b.ops.clone().rev() {
                    live |= dirty_after[k];
                    self.live_after[k] = live;
                    live = match uses[k] {
                        Use::Call => 0,
                        Use::Variables { reads, kills, .. } => live & !kills | reads,
                    };
                    // What is dirty before the op.
                    live |= if k == b.ops.start { b.dirty_in } else { dirty_after[k - 1] };
                }
                changed |= self.blocks[n].live_in != live;
                self.blocks[n].live_in = live;
            }
        }
    }
}

/// The number of the general register that an instruction loads a pointer into, if it may be one.
fn loaded(i: &Instruction) -> Option<usize> {
    let from_memory = match i.mnemonic() {
        Mnemonic::Mov => i.op1_kind() == OpKind::Memory,
        Mnemonic::Pop => true,
        _ => false,
    };
    let r = i.op0_register();
    (from_memory && r.is_gpr() && r.size() >= 4).then(|| r.number())
}

/// Whether an instruction adds a constant to a general register, and writes no other.
fn is_step(i: &Instruction) -> bool {
    let r = i.op0_register();
    let steps = match i.mnemonic() {
        Mnemonic::Inc | Mnemonic::Dec => true,
        Mnemonic::Add | Mnemonic::Sub => i.op1_kind() != OpKind::Register && i.op1_kind() != OpKind::Memory,
        Mnemonic::Lea => {
            i.memory_base().full_register() == r.full_register() && i.memory_index() == Register::None
        }
        // RSI and RDI, by the length of an element.
        Mnemonic::Movsb | Mnemonic::Movsd | Mnemonic::Movsq | Mnemonic::Movsw => return !i.has_rep_prefix(),
        _ => false,
    };
    steps && r.is_gpr() && r.size() >= 4
}

/// The general registers that an instruction writes.
fn written(i: &Instruction, info: &mut InstructionInfoFactory) -> u16 {
    let writes = |access| {
        matches!(
            access,
            OpAccess::Write | OpAccess::CondWrite | OpAccess::ReadWrite | OpAccess::ReadCondWrite
        )
    };
    let used = info.info(i).used_registers().iter();
    used.filter(|r| writes(r.access()) && r.register().is_gpr())
        .fold(0, |all, r| all | 1 << r.register().full_register().number())
}

/// Whether a block can be in a region.
fn fits(b: &Block) -> bool {
    b.second_page().is_none() && !b.is_dead() && b.len > 0
}

/// What an op does to the variables.
#[derive(Clone, Copy)]
enum Use {
    /// It is called with the state in memory.
    Call,
    /// It is emitted. `kills` are written without regard to what they were, `stored` such that the state in memory has
    /// them at once.
    Variables { reads: Set, writes: Set, kills: Set, stored: Set },
}

impl Use {
    /// Of an instruction that is emitted. More than it really reads costs a load; less would be noticed by the
    /// translator.
    fn of(i: &Instruction, long: bool, info: &mut InstructionInfoFactory) -> Self {
        let (mut reads, mut writes, mut kills, mut stored): (Set, Set, Set, Set) = (0, 0, 0, 0);
        let vex = i.encoding() == EncodingKind::VEX;
        let wide = (0..i.op_count()).any(|n| i.op_register(n).is_ymm());
        if matches!(i.mnemonic(), Mnemonic::Vzeroupper | Mnemonic::Vzeroall) {
            let all: Set = if long { 0xffff } else { 0xff };
            let low = if i.mnemonic() == Mnemonic::Vzeroall { all << XMM } else { 0 };
            return Self::Variables { reads: 0, writes: low, kills: low | all << HIGH, stored: all << HIGH };
        }
        let Row { whole, sets_flags, .. } = row(i);
        for r in info.info(i).used_registers() {
            let vector = r.register().is_vector_register();
            if !r.register().is_gpr() && !vector {
                continue;
            }
            let number = r.register().full_register().number();
            if vector && vex {
                let (low, high): (Set, Set) = (1 << (XMM + (number & 15)), 1 << (HIGH + (number & 15)));
                let source = if wide { low | high } else { low };
                let (read, write) = match r.access() {
                    OpAccess::None | OpAccess::NoMemAccess => continue,
                    OpAccess::Read | OpAccess::CondRead => (true, false),
                    OpAccess::Write => (false, true),
                    _ => (true, true),
                };
                if read {
                    reads |= source;
                }
                if write {
                    writes |= source;
                    kills |= low | high;
                    stored |= if wide { 0 } else { high };
                }
                continue;
            }
            let bit = 1 << if vector { XMM + (number & 15) } else { number };
            let wide = r.register().size() >= 4;
            match r.access() {
                OpAccess::Write if whole && wide => {
                    kills |= bit;
                    writes |= bit;
                }
                OpAccess::Read | OpAccess::CondRead => reads |= bit,
                OpAccess::None | OpAccess::NoMemAccess => {}
                _ => {
                    reads |= bit;
                    writes |= bit;
                }
            }
        }
        // Of an idiom that makes zero iced-x86 knows that its sources do not matter; they are read all the same.
        for r in (1..i.op_count()).map(|n| i.op_register(n)).filter(|r| vex && r.is_vector_register()) {
            let n = r.number() & 15;
            reads |= 1 << (XMM + n) | if wide { 1 << (HIGH + n) } else { 0 };
        }
        kills &= !reads;
        let arithmetic = 0x3f; // OF, SF, ZF, AF, CF, PF as iced-x86 numbers them
        let modified = i.rflags_modified() & arithmetic;
        if modified != 0 {
            writes |= FLAGS;
            if sets_flags {
                kills |= FLAGS;
            } else {
                reads |= FLAGS;
            }
        }
        if i.rflags_read() & arithmetic != 0 {
            reads |= FLAGS;
            kills &= !FLAGS;
        }
        Self::Variables { reads, writes, kills, stored }
    }
}
