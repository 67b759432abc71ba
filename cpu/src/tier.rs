//! A faster tier above the interpreter: code that a translator has made for hot blocks, run by the interpreter's own chain.
//!
//! A block starts out with a first op that counts ([`count`]); when it has run [`hot_after`](Cpu::set_tier) times, the tier is told of it. The
//! tier compiles where and when it likes, and [`Cpu::install`]s the code: the first op's handler is then [`run_code`], which enters it. So links,
//! the jump cache and the dispatcher know nothing of tiers, and both run side by side at no cost to either.
//!
//! Code made from several blocks is taken away from its head as soon as one of them dies.
use crate::arena::{Arena, List};
use crate::block::{Block, ModeKey};
use crate::cpu::Cpu;
use crate::op::{Handler, Op};
use crate::state::Activity;
use std::cell::Cell;

/// Enters compiled code: takes the vCPU, the code's ops, RIP, and the code; returns why the code (or what it has gone on to) was left, with the
/// state in memory complete.
pub type Enter = unsafe extern "C" fn(*mut Cpu, *const Op, u64, *const u8) -> u32;

/// Memory of the tier's own, which its code reaches from the vCPU's pointer.
#[repr(C, align(64))]
pub struct TierMemory(pub [u8; 1024]);

/// Execution goes on at RIP.
pub const LEFT_NEXT: u32 = 1;
/// The interpreter must execute the instruction at RIP, which has not begun.
pub const LEFT_INTERPRET: u32 = 3;
/// An interpreter's handler has stopped, perhaps with a fault to be delivered.
const LEFT_STOPPED: u32 = 4;
/// Dead blocks that may wait to be freed before the dispatcher is asked to.
const GRAVES: usize = 64;

/// The block at RIP, of the baseline, has run often.
pub const LEFT_HOT: u32 = 6;
/// A bit in [`Compiled::ops`] that says that the rest is not ops but where baseline code goes on that has registers and flags in its own places.
pub const BASELINE: u64 = 1;

/// A jump in a tier's code that leads straight to the code of a block.
#[derive(Clone, Copy)]
pub struct Link {
    /// The jump's displacement, where it can be written.
    pub at: *mut u8,
    /// The displacement to have when the block's code is taken away.
    pub back: i32,
}

/// Code for a block.
#[derive(Clone, Copy)]
pub struct Compiled {
    /// What it is entered by.
    pub enter: Enter,
    /// The code.
    pub code: *const u8,
    /// Its ops.
    pub ops: *const Op,
}

/// Entries of the table that compiled code finds other code in.
pub const CODE_JUMPS: usize = 1 << 16;

/// Compiled code known at a linear address.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct CodeJump {
    /// The address.
    pub lin: u64,
    /// The [`mynah_mmu::TlbView::code_tags`] under which the code is there.
    pub tag: u64,
    /// The code.
    pub code: *const u8,
    /// Its ops.
    pub ops: *const Op,
}

impl CodeJump {
    /// No code: no tag is 0.
    pub(crate) const NONE: Self = Self { lin: 0, tag: 0, code: std::ptr::null(), ops: std::ptr::null() };

    /// The entry that a linear address has.
    #[inline(always)]
    fn index(lin: u64) -> usize {
        (lin ^ (lin >> 12)) as usize & (CODE_JUMPS - 1)
    }
}

/// What makes code.
pub trait Tier: Send {
    /// The vCPU that the tier is given to: its code may run from now on.
    fn attach(&mut self, cpu: &mut Cpu);
    /// The block at this physical address, under this mode key, is hot. Called on the vCPU's thread, with no code of this tier executing.
    fn hot(&mut self, cpu: &mut Cpu, phys: u64, key: u32);
    /// The number of executions after which [`Self::known`] is asked for a block's code.
    fn known_after(&self) -> u32 {
        u32::MAX
    }
    /// The block has run a few times: it may get code that there is already. Called as [`Self::hot`] is.
    fn known(&mut self, _cpu: &mut Cpu, _phys: u64, _key: u32) {}
    /// The block, which has code, was left with [`LEFT_HOT`]. Called as `hot` is.
    fn hotter(&mut self, cpu: &mut Cpu, phys: u64, key: u32) {
        let _ = (cpu, phys, key);
    }
    /// [`crate::board::EV_TIER`] was raised: code may be ready to be installed.
    fn ready(&mut self, cpu: &mut Cpu);
    /// What [`Cpu::record`] was asked for. Called as `hot` is.
    fn recorded(&mut self, cpu: &mut Cpu, blocks: Vec<Recorded>) {
        let _ = (cpu, blocks);
    }
}

/// A block with code that was executed while that was recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Recorded {
    /// Physical address.
    pub phys: u64,
    /// Mode key.
    pub key: u32,
    /// Linear address.
    pub lin: u64,
}

/// Blocks that are being recorded, and how many there are to be.
pub(crate) struct Recording {
    blocks: Vec<Recorded>,
    most: usize,
}

/// What the tiers keep with a block.
pub(crate) struct BlockTier {
    /// The handler of the first op, behind what counts or enters code.
    first: Cell<Handler>,
    heat: Cell<u32>,
    code: Cell<Option<Compiled>>,
    /// The tier's own number for the block, or [`NO_NUMBER`].
    number: Cell<u32>,
    /// Heads of the code that this block went into.
    heads: List<(u64, u32)>,
    /// Entries of the table of [`CodeJump`]s that may name its code.
    jumps: Cell<Jumps>,
    /// Jumps that lead to its code.
    links: List<Link>,
}

/// A block that the tier has given no number.
const NO_NUMBER: u32 = u32::MAX;

/// The first few entries of a table that name a block, and how many there are.
#[derive(Clone, Copy, Default)]
pub(crate) struct Jumps {
    number: u16,
    first: [u16; 5],
}

impl Jumps {
    /// Takes note of an entry.
    #[inline]
    pub fn add(&mut self, at: u16) {
        let n = usize::from(self.number);
        if self.first[..n.min(self.first.len())].contains(&at) {
            return;
        }
        if let Some(s) = self.first.get_mut(n) {
            *s = at;
        }
        self.number = self.number.saturating_add(1);
    }

    /// The entries; `None` if they are too many, and any may name the block.
    pub fn known(&self) -> Option<&[u16]> {
        self.first.get(..usize::from(self.number))
    }
}

impl BlockTier {
    pub(crate) fn new(first: Handler) -> Self {
        Self {
            first: Cell::new(first),
            heat: Cell::new(0),
            code: Cell::new(None),
            number: Cell::new(NO_NUMBER),
            heads: List::new(),
            jumps: Cell::default(),
            links: List::new(),
        }
    }

    /// Has no jump lead to its code any more.
    fn sever(&self, arena: &mut Arena) {
        for l in self.links.iter() {
            // SAFETY: see `Cpu::link_code`.
            unsafe { l.at.cast::<i32>().write_unaligned(l.back) };
        }
        self.links.clear(arena);
    }

    /// Gives back what it has of the arena; nobody looks at it any more.
    pub(crate) fn drop_lists(&self, arena: &mut Arena) {
        self.links.clear(arena);
        self.heads.clear(arena);
    }

    /// The tier's number for the block, if it has given one.
    pub(crate) fn number(&self) -> Option<u32> {
        Some(self.number.get()).filter(|&n| n != NO_NUMBER)
    }

    /// The block's code, if it has any.
    pub(crate) fn compiled(&self) -> Option<Compiled> {
        self.code.get()
    }

    /// The block dies: whose code it went into.
    pub(crate) fn die(&self, arena: &mut Arena) -> Vec<(u64, u32)> {
        self.sever(arena);
        self.code.set(None);
        let heads = self.heads.iter().collect();
        self.heads.clear(arena);
        heads
    }
}

/// The handler of a first op that counts.
pub(crate) fn count(cpu: &mut Cpu, op: &Op) -> *const Op {
    let block = cpu.blocks.current;
    // SAFETY: `current` is the live block whose first op this is; it stays until the dispatcher is back.
    let block = unsafe { &*block };
    let tier = &block.tier;
    let heat = tier.heat.get() + 1;
    tier.heat.set(heat);
    let first = tier.first.get();
    if heat >= cpu.hot_after || heat == cpu.known_after {
        let hot = heat >= cpu.hot_after;
        if hot {
            block.set_first(first);
        }
        let (phys, key) = (block.phys, block.key);
        if let Some(mut t) = cpu.tier.take() {
            if hot {
                t.hot(cpu, phys, key);
            } else {
                t.known(cpu, phys, key);
            }
            cpu.tier = Some(t);
        }
        if tier.code.get().is_some() {
            // There was some, or it was compiled at once. The ops are gone.
            return run_code(cpu, op);
        }
    }
    first(cpu, op)
}

/// The gate of a block that has compiled code: enters it.
pub(crate) fn run_code(cpu: &mut Cpu, _: &Op) -> *const Op {
    if cpu.recording.is_some() {
        return record(cpu);
    }
    let next = run_regions(cpu);
    cpu.leave_host_float();
    next
}

/// The gate of a block whose code was taken away: the interpreter executes it again.
pub(crate) fn restore_and_run(cpu: &mut Cpu, _: &Op) -> *const Op {
    // SAFETY: `current` is the live block whose gate this is.
    let block = unsafe { &*cpu.blocks.current };
    if !restore(cpu, block) {
        return std::ptr::null();
    }
    cpu.count_block(block);
    let first = block.first();
    // SAFETY: ops that are there stay until the block has code or is freed; ops are changed by this thread only.
    let first = unsafe { &*first };
    (first.run)(cpu, first)
}

/// Gives the current block, which was just entered, its ops back. False if the dispatcher has to look for another one.
fn restore(cpu: &mut Cpu, block: &Block) -> bool {
    let done = cpu.restore_ops(block);
    if !done {
        cpu.icount -= block.op_count() as u64;
        cpu.kill_block(block);
    }
    done
}

/// Records the block and has the interpreter execute it, instead of its code.
#[cold]
fn record(cpu: &mut Cpu) -> *const Op {
    // SAFETY: `current` is the live block whose gate this is.
    let block = unsafe { &*cpu.blocks.current };
    let lin = cpu.code_linear();
    let full = cpu.recording.as_mut().is_none_or(|r| {
        r.blocks.push(Recorded { phys: block.phys, key: block.key, lin });
        r.blocks.len() >= r.most
    });
    if full
        && let Some(recording) = cpu.recording.take()
        && let Some(mut t) = cpu.tier.take()
    {
        for r in &recording.blocks {
            cpu.drop_restored(r.phys, r.key);
        }
        t.recorded(cpu, recording.blocks);
        cpu.tier = Some(t);
    }
    if !restore(cpu, block) {
        return std::ptr::null();
    }
    let first = block.first();
    // SAFETY: ops that are there stay until the block has code once more or is freed.
    (block.tier.first.get())(cpu, unsafe { &*first })
}

fn run_regions(cpu: &mut Cpu) -> *const Op {
    let mut block = cpu.blocks.current;
    // The code counts its instructions itself.
    // SAFETY: `current` is live.
    cpu.icount -= unsafe { &*block }.op_count() as u64;
    loop {
        // SAFETY: `current` is live, or has died in code that it left at once.
        let Some(code) = (unsafe { (*block).tier.code.get() }) else { return std::ptr::null() };
        cpu.faulted = false;
        if cpu.check.is_some() {
            return run_checked(cpu, block, &code);
        }
        let rip = cpu.state.gpr[crate::state::gpr::RIP];
        // SAFETY: as above.
        cpu.note_code(unsafe { &(*block).tier }, &code, rip);
        let count = cpu.icount;
        // SAFETY: installed code is kept until it is uninstalled on this thread, which does not happen while it runs; it accesses the
        // vCPU through this reference alone. The table of code that it goes on to names installed code only.
        let left = unsafe { (code.enter)(cpu, code.ops, rip, code.code) };
        cpu.left[left as usize & 7] += 1;
        cpu.in_code = cpu.in_code.wrapping_add(cpu.icount.wrapping_sub(count));
        match left {
            LEFT_HOT => tell_hotter(cpu),
            LEFT_INTERPRET => {
                cpu.leave_host_float();
                cpu.interpret_one();
                if cpu.blocks.is_full() {
                    return std::ptr::null();
                }
            }
            LEFT_STOPPED if cpu.faulted => cpu.deliver_fault(),
            _ => {}
        }
        let next = cpu.go_on();
        if next.is_null() {
            return std::ptr::null();
        }
        // SAFETY: `go_on` returns a live block.
        let n = unsafe { &*next };
        if n.tier.code.get().is_none() || cpu.recording.is_some() {
            cpu.enter(next);
            return n.first();
        }
        cpu.blocks.current = next;
        block = next;
    }
}

/// Enters code that may be checked, and no other.
#[cold]
fn run_checked(cpu: &mut Cpu, block: *const Block, code: &Compiled) -> *const Op {
    let count = cpu.icount;
    // SAFETY: `current` is live.
    let left = if cpu.wants_check(unsafe { &*block }) {
        let world = (!cpu.sole).then(|| cpu.world.clone());
        let _alone = world.as_ref().map(|w| cpu.alone(w));
        if world.is_some() {
            // It has just stood still for whoever asked it to.
            cpu.events.take(crate::board::EV_SYNC);
            if cpu.events.pending() & cpu.event_mask != 0 {
                // Others may have changed the code meanwhile.
                return std::ptr::null();
            }
        }
        cpu.enter_checked(code)
    } else {
        let rip = cpu.state.gpr[crate::state::gpr::RIP];
        // SAFETY: as in `run_code`.
        unsafe { (code.enter)(cpu, code.ops, rip, code.code) }
    };
    cpu.left[left as usize & 7] += 1;
    cpu.in_code = cpu.in_code.wrapping_add(cpu.icount.wrapping_sub(count));
    cpu.interpret_next = left == LEFT_INTERPRET;
    if left == LEFT_HOT {
        tell_hotter(cpu);
    }
    std::ptr::null()
}

/// Tells the tier of the block at RIP.
#[cold]
fn tell_hotter(cpu: &mut Cpu) {
    let Ok(block) = cpu.find_block(cpu.mode_key) else { return };
    // SAFETY: `find_block` returns a live block.
    let (phys, key) = unsafe { ((*block).phys, (*block).key) };
    if let Some(mut t) = cpu.tier.take() {
        t.hotter(cpu, phys, key);
        cpu.tier = Some(t);
    }
}

impl Cpu {
    /// The block at RIP, after what comes before its first instruction; null if the dispatcher has to look after something.
    #[inline]
    fn go_on(&mut self) -> *const Block {
        let next = if self.single_wanted() { std::ptr::null() } else { self.next_block() };
        if !next.is_null() && self.state.activity == Activity::Running {
            return next;
        }
        self.go_on_slowly()
    }

    fn go_on_slowly(&mut self) -> *const Block {
        if self.unchained {
            return std::ptr::null();
        }
        self.leave_host_float();
        loop {
            let pending = self.events.pending() & self.event_mask != 0;
            let wants_room = self.blocks.graves() > GRAVES || self.blocks.is_full();
            if pending || self.state.activity != Activity::Running || wants_room {
                return std::ptr::null();
            }
            if self.single_wanted() {
                self.step_once();
                continue;
            }
            match self.find_block(self.mode_key) {
                Ok(b) => return b,
                Err(_) => self.deliver_fault(),
            }
        }
    }

    /// Whether execution can go on at RIP with other code at once, when code has just executed an instruction that ended its block.
    #[inline]
    pub fn can_go_on(&self) -> bool {
        !self.faulted && !self.unchained && self.kept.is_none() && self.is_undisturbed()
    }

    /// Lets other code find the code of the block at RIP, which is about to be entered: the block is there under the present mappings.
    #[inline(always)]
    fn note_code(&mut self, tier: &BlockTier, code: &Compiled, rip: u64) {
        let tag = self.tlb.code_tag(rip);
        let at = CodeJump::index(rip);
        let jump = &mut self.blocks.code_jumps[at];
        if jump.lin == rip && jump.tag == tag && jump.code == code.code {
            return;
        }
        if self.unchained || crate::block::wraps(rip) {
            return;
        }
        *jump = CodeJump { lin: rip, tag, code: code.code, ops: code.ops };
        let mut known = tier.jumps.get();
        known.add(at as u16);
        tier.jumps.set(known);
    }

    /// The code of a block is no longer to be found.
    pub(crate) fn forget_code_jumps(&mut self, tier: &BlockTier) {
        let Some(code) = tier.code.get() else { return };
        let forget = |jump: &mut CodeJump| {
            if jump.code == code.code {
                *jump = CodeJump::NONE;
            }
        };
        match tier.jumps.take().known() {
            Some(known) => known.iter().for_each(|&at| forget(&mut self.blocks.code_jumps[usize::from(at)])),
            None => self.blocks.code_jumps.iter_mut().for_each(forget),
        }
    }

    /// Has the interpreter execute the next blocks that have code, and tells the tier which they were ([`Tier::recorded`]).
    pub fn record(&mut self, blocks: usize) {
        self.recording = Some(Box::new(Recording { blocks: Vec::with_capacity(blocks), most: blocks }));
    }

    /// Gives the vCPU a tier above the interpreter, which is told of blocks that have run `hot_after` times.
    pub fn set_tier(&mut self, mut tier: Box<dyn Tier>, hot_after: u32) {
        tier.attach(self);
        self.known_after = tier.known_after();
        self.tier = Some(tier);
        self.hot_after = hot_after.clamp(1, u32::MAX - 1);
        self.flush_blocks();
    }

    /// Starts to count a block, if there is a tier that may want it; whether there is.
    pub(crate) fn count_block(&self, block: &Block) -> bool {
        let key = ModeKey(block.key);
        let fits = key.has(ModeKey::LONG) || key.has(ModeKey::FLAT) && key.has(ModeKey::D32);
        // The tier itself is not in its place while it is told of a block.
        let counts = self.hot_after != u32::MAX && fits && !key.has(ModeKey::SINGLE);
        if counts {
            block.set_first(count);
        }
        counts
    }

    /// Has a hot block counted again from the start: the tier could not take it now.
    pub fn cool(&self, phys: u64, key: u32) {
        if let Some(b) = self.blocks.block_at(phys, key)
            && b.tier.code.get().is_none()
        {
            b.tier.heat.set(0);
            self.count_block(b);
        }
    }

    /// Installs code for the block at `phys`, made from the blocks `parts`; false if one of them is gone.
    ///
    /// # Safety
    /// The code must be valid until it is uninstalled, and do what the blocks' instructions do.
    pub unsafe fn install(&mut self, phys: u64, key: u32, parts: &[u64], code: Compiled) -> bool {
        let Some(head) = self.blocks.block_at(phys, key) else { return false };
        if parts.iter().any(|&p| self.blocks.block_at(p, key).is_none()) {
            return false;
        }
        let block: *const Block = head;
        for &p in parts {
            let part: Option<*const Block> = self.blocks.block_at(p, key).map(|b| b as _);
            // SAFETY: it was just found, and nothing here takes blocks out.
            if let Some(b) = part.map(|b| unsafe { &*b })
                && !b.tier.heads.iter().any(|head| head == (phys, key))
            {
                b.tier.heads.push(self.blocks.arena(), (phys, key));
            }
        }
        // SAFETY: `block_at` returns a live block; for the code the caller vouches.
        unsafe { self.install_block(block, code) };
        true
    }

    /// As [`Self::install`], of code that was made from the block alone.
    ///
    /// # Safety
    /// As there; the block must be live.
    pub unsafe fn install_block(&mut self, block: *const Block, code: Compiled) {
        // SAFETY: the block stays in the cache: nothing below takes blocks out.
        let head = unsafe { &*block };
        self.forget_code_jumps(&head.tier);
        head.tier.sever(self.blocks.arena());
        head.tier.code.set(Some(code));
        self.blocks.has_code(head);
    }

    /// The numbers of blocks that have died since this was asked last; `None` if all have.
    pub fn take_dead(&mut self) -> Option<Vec<u32>> {
        let dead = std::mem::take(&mut self.blocks.dead_numbers);
        (!std::mem::take(&mut self.blocks.all_died)).then_some(dead)
    }

    /// Whether [`Self::take_dead`] has something to tell.
    #[inline]
    pub fn has_dead(&self) -> bool {
        self.blocks.all_died || !self.blocks.dead_numbers.is_empty()
    }

    /// Takes a block's code away, if it has any.
    pub fn uninstall(&mut self, phys: u64, key: u32) {
        let Some(b) = self.blocks.block_at(phys, key) else { return };
        if b.tier.code.get().is_none() {
            return;
        }
        let block: *const Block = b;
        // SAFETY: the block stays in the cache: nothing below takes blocks out.
        let block = unsafe { &*block };
        let tier = &block.tier;
        self.forget_code_jumps(tier);
        tier.sever(self.blocks.arena());
        tier.code.set(None);
        self.blocks.lost_code(block, tier.first.get());
        // The block itself is still there, and may well be hot.
        self.cool(phys, key);
    }

    /// Whether code may lead straight to other code.
    pub fn links_code(&self) -> bool {
        !self.unchained && self.check.is_none()
    }

    /// Has a jump of the tier's lead straight to the code of a block by a displacement, until that code is taken away.
    ///
    /// # Safety
    /// The block is live. `link.at` is the displacement of a jump in the tier's code, mapped as long as the vCPU has the tier, which may lead to the block's
    /// code with `to` and anywhere with `link.back`; no code of this vCPU's executes.
    pub unsafe fn link_code(&mut self, block: *const Block, link: Link, to: i32) {
        // SAFETY: as the caller vouches.
        let tier = unsafe {
            link.at.cast::<i32>().write_unaligned(to);
            &(*block).tier
        };
        if !tier.links.iter().any(|l| l.at == link.at) {
            tier.links.push(self.blocks.arena(), link);
        }
    }

    /// Forgets all decoded blocks (and their code).
    pub fn flush_blocks(&mut self) {
        self.blocks.clear();
        self.from = (std::ptr::null(), 0);
    }

    /// Adds a block's ops with the handlers that the interpreter has for them, whatever tier it is in. False if they are not there and cannot be decoded
    /// again.
    pub fn plain_ops(&self, block: &Block, to: &mut Vec<Op>) -> bool {
        let Some(ops) = block.ops() else { return self.decode_ops_again(block, to) };
        let first = to.len();
        // SAFETY: ops are changed by the vCPU's own thread only, which is this one.
        to.extend(ops.iter().map(|op| unsafe { *op.get() }));
        to[first].run = block.tier.first.get();
        true
    }

    /// The ops of a block with code that were restored while it was recorded are of no more use.
    fn drop_restored(&mut self, phys: u64, key: u32) {
        let Some(block) = self.blocks.block_at(phys, key) else { return };
        let block: *const Block = block;
        // SAFETY: it was just found; none of its ops executes, as this is asked where a gate is.
        let block = unsafe { &*block };
        if block.tier.code.get().is_some() {
            self.blocks.has_code(block);
        }
    }

    /// The block at a physical address of RAM under a mode key, decoded if need be; `lin` is where the guest has it, for the log. `None` if it is not on one
    /// page of plain memory, or if there is no room for it now.
    pub fn know_block(&mut self, lin: u64, phys: u64, key: u32) -> Option<&Block> {
        if self.blocks.block_at(phys, key).is_none() {
            self.decode_ahead(lin, phys, key)?;
        }
        self.blocks.block_at(phys, key).filter(|b| b.second_page().is_none())
    }
}

impl Block {
    /// The block's code, if it has any.
    #[inline]
    pub fn code(&self) -> Option<Compiled> {
        self.tier.code.get()
    }

    /// Gives the block a number by which [`Cpu::take_dead`] tells of its death.
    pub fn set_number(&self, number: u32) {
        self.tier.number.set(number);
    }

    /// Takes the number away: the block's death concerns the tier no more.
    pub fn forget_number(&self) {
        self.tier.number.set(NO_NUMBER);
    }
}
