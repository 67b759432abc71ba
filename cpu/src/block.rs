//! Decoded blocks: straight runs of instructions, decoded once and kept until their bytes change.
//!
//! A block is keyed by the guest physical address of its first byte and by the mode bits that change decoding ([`ModeKey`]); it never reaches
//! beyond its page, but for a single instruction that crosses into the next one, which is a block of its own. Pages that hold blocks are
//! marked in [`mynah_mmu::PhysMemory`], so that every store to them comes through [`Cpu::invalidate_code`].
//!
//! A block that dies while it runs (self-modifying code) stays allocated until the dispatcher is back; the handlers of its remaining ops are
//! replaced by one that leaves the block, so that the very next instruction is fetched anew.
use crate::cpu::{Cpu, SegView, Stop};
use crate::decode::{Run, decode_op};
use crate::interp::run_straight;
use crate::op::{Flow, Op};
use crate::state::{Segment, State, cr0, fl, seg};
use crate::sys::flags::sti_inside;
use crate::tier::{CODE_JUMPS, CodeJump, Jumps};
use iced_x86::Code;
use mynah_mmu::{PAGE_MASK, PhysMemory};
use std::cell::{Cell, UnsafeCell};
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::Arc;

/// The mode bits that decoding and handlers depend on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ModeKey(pub u32);

impl ModeKey {
    /// CS.D: 32-bit operands and addresses by default.
    pub const D32: u32 = 1;
    /// 64-bit mode.
    pub const LONG: u32 = 2;
    /// SS.B: 32-bit stack pointer.
    pub const STACK32: u32 = 4;
    /// CR0.PE.
    pub const PE: u32 = 8;
    /// Virtual-8086 mode.
    pub const VM: u32 = 16;
    /// ES, CS, SS and DS are readable (DS, ES, SS writable), with base 0 and limit 4 GiB.
    pub const FLAT: u32 = 32;
    /// Blocks of a single instruction.
    pub const SINGLE: u32 = 64;
    /// CPL 3: what the jump cache knows to be executable at one level may not be at the other.
    pub const USER: u32 = 128;
    /// A change of one of these changes how segments are applied.
    pub const SEGMENTED: u32 = Self::LONG | Self::PE | Self::VM;

    /// The key of a state, without `FLAT` and `SINGLE`.
    pub fn of(s: &State) -> Self {
        let mut k = if s.cpl == 3 { Self::USER } else { 0 };
        if s.cr0 & cr0::PE != 0 {
            k |= Self::PE;
        }
        if s.rflags & fl::VM != 0 {
            k |= Self::VM;
        }
        if s.is_long64() {
            return Self(k | Self::LONG);
        }
        if s.seg[seg::CS].attr & Segment::DB != 0 {
            k |= Self::D32;
        }
        if s.seg[seg::SS].attr & Segment::DB != 0 {
            k |= Self::STACK32;
        }
        Self(k)
    }

    /// `FLAT` if it holds.
    pub fn flat(v: &[SegView; 8], s: &State) -> u32 {
        if s.is_long64() {
            return Self::FLAT;
        }
        let full = |lo: u64, hi: u64| lo == 0 && hi == 0xffff_ffff;
        let ok = (0..4).all(|i| {
            let v = &v[i];
            v.base == 0 && full(v.read_lo, v.read_hi) && (i == seg::CS || full(v.write_lo, v.write_hi))
        });
        if ok { Self::FLAT } else { 0 }
    }

    /// Whether `bit` is set.
    pub fn has(self, bit: u32) -> bool {
        self.0 & bit != 0
    }
}

/// A decoded block.
pub struct Block {
    /// The instructions; the last one ends the block.
    pub ops: Box<[UnsafeCell<Op>]>,
    /// Physical address of the first byte.
    pub phys: u64,
    /// Physical page of the bytes beyond the page boundary, if the (only) instruction crosses it.
    pub second_page: Option<u64>,
    /// Mode key.
    pub key: u32,
    /// Bytes.
    pub len: u32,
    /// What the ops were decoded from. What stands in memory may be newer until the vCPU looks at its events.
    pub bytes: Box<[u8]>,
    /// Successors on the same page: of a taken branch, and of falling through.
    pub link: [Cell<*const Block>; 2],
    dead: Cell<bool>,
    /// Entries of the jump cache that were set to this block.
    jumps: Cell<Jumps>,
    pub(crate) tier: crate::tier::BlockTier,
}

impl Block {
    /// The first op.
    #[inline(always)]
    pub fn first(&self) -> *const Op {
        self.ops[0].get()
    }
}

#[derive(Default)]
pub(crate) struct AddressHasher(u64);
impl Hasher for AddressHasher {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        for &b in bytes {
            self.write_u64(u64::from(b));
        }
    }
    fn write_u64(&mut self, v: u64) {
        self.0 = (self.0 ^ v).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29);
    }
    fn write_u32(&mut self, v: u32) {
        self.write_u64(u64::from(v));
    }
}
type Map<K, V> = HashMap<K, V, BuildHasherDefault<AddressHasher>>;

#[derive(Clone, Copy)]
struct Jump {
    lin: u64,
    generation: u64,
    block: *const Block,
    key: u32,
}

const JUMPS: usize = 1 << 15;
const _: () = assert!(JUMPS <= 1 << 16);
/// Ops kept before the cache is emptied as a whole (some 200 MB).
const MAX_OPS: usize = 4 << 20;
/// Instructions in a block.
const MAX_BLOCK: usize = 64;
/// Bytes that are copied at once to be decoded: most blocks are shorter.
const PIECE: usize = 64;

/// All decoded blocks of a vCPU.
pub struct BlockCache {
    blocks: Map<(u64, u32), Box<Block>>,
    /// The blocks on each page; the pages are held in `mem` (`PhysMemory::hold_code`).
    pages: Map<u64, Vec<*const Block>>,
    mem: Arc<PhysMemory>,
    jumps: Box<[Jump]>,
    /// Compiled code by linear address.
    pub(crate) code_jumps: Box<[CodeJump]>,
    /// The block that is executing.
    pub(crate) current: *const Block,
    // Boxed: the blocks must stay where they are.
    #[allow(clippy::vec_box)]
    graveyard: Vec<Box<Block>>,
    ops: usize,
    /// Memory for the ops of a block that is being decoded.
    scratch: Vec<Op>,
    /// Numbers that the tier gave blocks which have died since it asked; or all have.
    pub(crate) dead_numbers: Vec<u32>,
    pub(crate) all_died: bool,
    /// Blocks decoded since the start.
    pub decoded: u64,
    /// Blocks invalidated since the start.
    pub invalidated: u64,
}

// SAFETY: the raw pointers point to boxes that the cache itself owns (`blocks`, `graveyard`); a vCPU is used by one thread at a time.
unsafe impl Send for BlockCache {}

impl BlockCache {
    pub(crate) fn new(mem: Arc<PhysMemory>) -> Self {
        // SAFETY: all of a jump may be zero: it then names no block.
        let jumps = unsafe { Box::<[Jump]>::new_zeroed_slice(JUMPS).assume_init() };
        // SAFETY: as above; it is `CodeJump::NONE`.
        let code_jumps = unsafe { Box::<[CodeJump]>::new_zeroed_slice(CODE_JUMPS).assume_init() };
        Self {
            blocks: Map::default(),
            pages: Map::default(),
            mem,
            jumps,
            code_jumps,
            current: std::ptr::null(),
            graveyard: Vec::new(),
            ops: 0,
            scratch: Vec::new(),
            dead_numbers: Vec::new(),
            all_died: false,
            decoded: 0,
            invalidated: 0,
        }
    }

    /// The block cached for a linear address, if it is known under the present mappings.
    #[inline(always)]
    pub(crate) fn jump(&self, lin: u64, key: u32, generation: u64) -> *const Block {
        let j = &self.jumps[Self::slot(lin)];
        if j.lin == lin && j.key == key && j.generation == generation { j.block } else { std::ptr::null() }
    }

    #[inline(always)]
    fn slot(lin: u64) -> usize {
        (lin ^ (lin >> 12)) as usize & (JUMPS - 1)
    }

    /// The live block at a physical address under a mode key.
    pub(crate) fn block_at(&self, phys: u64, key: u32) -> Option<&Block> {
        self.blocks.get(&(phys, key)).map(|b| &**b)
    }

    fn set_jump(&mut self, jump: Jump) {
        let at = Self::slot(jump.lin);
        self.jumps[at] = jump;
        // SAFETY: callers pass a live block.
        let known = unsafe { &(*jump.block).jumps };
        let mut jumps = known.get();
        jumps.add(at as u16);
        known.set(jumps);
    }

    fn forget_jumps(&mut self, dead: &Block) {
        let forget = |j: &mut Jump| {
            if std::ptr::eq(j.block, dead) {
                j.block = std::ptr::null();
            }
        };
        match dead.jumps.get().known() {
            Some(known) => known.iter().for_each(|&s| forget(&mut self.jumps[usize::from(s)])),
            None => self.jumps.iter_mut().for_each(forget),
        }
    }

    /// How many blocks died and are not yet freed.
    #[inline]
    pub(crate) fn graves(&self) -> usize {
        self.graveyard.len()
    }

    /// Frees blocks that died, if any; only when none is executing.
    pub(crate) fn bury(&mut self) -> bool {
        let any = !self.graveyard.is_empty();
        self.graveyard.clear();
        any
    }

    /// Empties the cache.
    pub(crate) fn clear(&mut self) {
        self.invalidated += self.blocks.len() as u64;
        self.graveyard.extend(self.blocks.drain().map(|(_, b)| b));
        for (page, _) in self.pages.drain() {
            self.mem.release_code(page);
        }
        self.ops = 0;
        self.dead_numbers.clear();
        self.all_died = true;
        for j in self.jumps.iter_mut() {
            j.block = std::ptr::null();
        }
        self.code_jumps.fill(CodeJump::NONE);
    }
}

impl Drop for BlockCache {
    fn drop(&mut self) {
        self.clear();
    }
}

/// Whether `lin` is on the last page: an instruction there may go on in the other half of the address space, and is not cached by its address.
#[inline(always)]
pub(crate) fn wraps(lin: u64) -> bool {
    lin | PAGE_MASK == u64::MAX
}

impl Cpu {
    /// Holds the page of a physical address, before bytes of it are decoded: from now on stores to it, by whomever, come to be known.
    fn hold_page(&mut self, gpa: u64) {
        let page = gpa & !PAGE_MASK;
        if self.blocks.pages.contains_key(&page) {
            return;
        }
        self.blocks.pages.insert(page, Vec::new());
        self.mem.hold_code(page);
        if self.sole {
            self.protect_own(page);
            return;
        }
        let writers = self.mem.writers(page);
        if writers & self.writer_bit != 0 {
            self.protect_own(page);
        }
        let others = if self.world.len() > 64 { writers } else { writers & !self.writer_bit };
        if others != 0 {
            let world = self.world.clone();
            if self.is_tentative() {
                // Nobody else runs.
                world.ask_protect_alone(self.seat, others, page);
            } else {
                world.ask_protect(self.seat, others, page);
                self.serve_protect();
            }
        }
    }

    /// The block at the current RIP, decoded if need be. An error is a fault of the fetch (in `self.fault`).
    pub(crate) fn find_block(&mut self, key: u32) -> Result<*const Block, Stop> {
        let (lin, left) = self.fetch_address()?;
        let generation = self.tlb.exec_generation(lin);
        let known = self.blocks.jump(lin, key, generation);
        if !known.is_null() {
            // SAFETY: jump-cache entries are removed when their block dies.
            let len = unsafe { (*known).len };
            if u64::from(len) <= left {
                return Ok(known);
            }
        }
        let e = self.tlb.entry(lin);
        let (phys, host) = if e.exec == lin & !PAGE_MASK {
            let host = (lin & !PAGE_MASK).wrapping_add(e.addend) as *mut u8;
            match self.ram_address(host) {
                Some(p) => (p | (lin & PAGE_MASK), Some(host)),
                None => self.fetch_page(lin)?,
            }
        } else {
            self.fetch_page(lin)?
        };
        let mut found: *const Block = match self.blocks.blocks.get(&(phys, key)) {
            Some(b) if u64::from(b.len) <= left => &**b,
            _ => std::ptr::null(),
        };
        // SAFETY: null, or just taken from the map.
        let second = unsafe { found.as_ref() }.and_then(|b| b.second_page);
        if let Some(second) = second {
            // The mapping of the next page may have changed since.
            let next = (lin & !PAGE_MASK).wrapping_add(PAGE_MASK + 1);
            if self.fetch_page(next)?.0 & !PAGE_MASK != second {
                self.kill_block(found);
                found = std::ptr::null();
            }
        }
        if found.is_null() {
            found = self.decode_block(lin, phys, host, key, left)?;
        }
        if !wraps(lin) {
            let generation = self.tlb.exec_generation(lin);
            self.blocks.set_jump(Jump { lin, generation, block: found, key });
        }
        Ok(found)
    }

    /// Decodes a block that is not about to run. Nothing that the guest can see changes.
    pub(crate) fn decode_ahead(&mut self, lin: u64, phys: u64, key: u32) -> Option<()> {
        // To make room is to drop all blocks, one of which may be executing.
        if self.blocks.ops > MAX_OPS || (lin ^ phys) & PAGE_MASK != 0 {
            return None;
        }
        let (host, _) = self.plain(phys)?;
        // An instruction across pages would be fetched from the next page: it is not for a block that is only guessed at.
        let mut copy = [0u8; 15];
        let n = (PAGE_MASK + 1 - (phys & PAGE_MASK)).min(15) as usize;
        self.mem.read(phys, &mut copy[..n]);
        decode_op(&self.model, ModeKey(key), &copy[..n], 0)?;
        let (fault, cr2) = (self.fault, self.state.cr2);
        let block = self.decode_block(lin, phys, Some(host), key, u64::MAX);
        (self.fault, self.state.cr2) = (fault, cr2);
        block.ok().map(drop)
    }

    /// The linear address to fetch from, and how many bytes are left below the limit of CS.
    fn fetch_address(&mut self) -> Result<(u64, u64), Stop> {
        let ip = self.state.gpr[crate::state::gpr::RIP];
        if self.state.is_long64() {
            return Ok((ip, u64::MAX));
        }
        let cs = &self.state.seg[seg::CS];
        if ip > u64::from(cs.limit) {
            return Err(self.gp(0));
        }
        Ok((cs.base.wrapping_add(ip) & 0xffff_ffff, u64::from(cs.limit) - ip + 1))
    }

    fn decode_block(
        &mut self,
        lin: u64,
        phys: u64,
        host: Option<*mut u8>,
        key: u32,
        left: u64,
    ) -> Result<*const Block, Stop> {
        if self.blocks.ops > MAX_OPS {
            self.blocks.clear();
        }
        let in_page = (PAGE_MASK + 1 - (lin & PAGE_MASK)).min(left) as usize;
        self.hold_page(phys);
        let mode = ModeKey(key);
        let limit = if mode.has(ModeKey::SINGLE) || host.is_none() { 1 } else { MAX_BLOCK };
        // A copy, as far as it is wanted: all of the decoding sees the same bytes, whatever others store meanwhile.
        let mut copy = [0u8; MAX_BLOCK * 15];
        let most = in_page.min(if host.is_some() { copy.len() } else { 15 });
        let mut have = 0;
        let mut crossing = [0u8; 15];
        let mut ops = std::mem::take(&mut self.blocks.scratch);
        ops.clear();
        let mut len = 0;
        let mut second_page = None;
        let mut ended = false;
        // A STI at the end of what there is so far, as it ends a block.
        let mut after_sti = None;
        let mut cut = false;
        'copied: loop {
            let more = most.min(have + PIECE);
            self.copy_code(host, phys + have as u64, &mut copy[have..more]);
            have = more;
            let mut run = Run::new(&self.model, mode, &copy[..have], len);
            loop {
                if have < most && len + 15 > have {
                    continue 'copied;
                }
                let (mut op, mut flow) = match run.next(&self.model, len) {
                    Some(x) => x,
                    None if !ops.is_empty() => break 'copied, // crosses the page: a block of its own
                    None => {
                        let (page, decoded) =
                            self.decode_crossing(lin, left, mode, &copy[..have], &mut crossing)?;
                        second_page = Some(page);
                        decoded
                    }
                };
                if op.code == Code::Sti as u16
                    && flow == Flow::Ends
                    && limit > 1
                    && second_page.is_none()
                    && after_sti.is_none()
                {
                    after_sti = Some(op);
                    (op.run, op.helper, flow) = (run_straight, sti_inside, Flow::Straight);
                } else {
                    // Events are looked at behind it.
                    cut = after_sti.take().is_some();
                }
                len += usize::from(op.len);
                ops.push(op);
                if flow == Flow::Ends {
                    ended = true;
                    break 'copied;
                }
                if cut || second_page.is_some() || ops.len() >= limit || len >= most {
                    break 'copied;
                }
            }
        }
        if let Some(sti) = after_sti {
            // Nothing follows here: it ends the block, and the next instruction is executed by itself.
            ops.pop();
            ops.push(sti);
            ended = true;
        }
        if !ended {
            ops.push(crate::interp::leave_op(len));
        }
        let bytes: Box<[u8]> =
            if second_page.is_some() { crossing[..len].into() } else { copy[..len].into() };
        if self.trace.is_some() {
            self.trace_decoded(lin, &bytes);
        }
        self.blocks.decoded += 1;
        self.blocks.ops += ops.len();
        let first = ops[0].run;
        let block = Box::new(Block {
            tier: crate::tier::BlockTier::new(first),
            ops: ops.iter().map(|&op| UnsafeCell::new(op)).collect(),
            phys,
            second_page,
            key,
            len: len as u32,
            bytes,
            link: [Cell::new(std::ptr::null()), Cell::new(std::ptr::null())],
            dead: Cell::new(false),
            jumps: Cell::default(),
        });
        self.blocks.scratch = ops;
        self.count_block(&block);
        let ptr: *const Block = &*block;
        self.blocks.pages.entry(phys & !PAGE_MASK).or_default().push(ptr);
        if let Some(p) = second_page {
            self.blocks.pages.entry(p).or_default().push(ptr);
        }
        if let Some(old) = self.blocks.blocks.insert((phys, key), block) {
            self.unlist(&old);
            self.retire(old);
        }
        Ok(ptr)
    }

    /// Copies bytes of a page of code, which begins at `host` if it is plain memory, from the physical address on. The page is held.
    fn copy_code(&self, host: Option<*mut u8>, phys: u64, to: &mut [u8]) {
        match host {
            // SAFETY: `fetch_page` vouches for the whole page. Guest stores may race with this read as on hardware; what is decoded is then
            // invalidated by the store, which sees that the page is held.
            Some(p) => unsafe { crate::width::copy_out(p.wrapping_add((phys & PAGE_MASK) as usize), to) },
            None => {
                for (i, b) in to.iter_mut().enumerate() {
                    *b = self.mem.phys_read(phys + i as u64, 1) as u8;
                }
            }
        }
    }

    /// Decodes an instruction that needs more bytes than the `first`, all that its page (or the segment, which has `left`) has of it. Returns the page of the
    /// others as well; all its bytes are in `crossing`.
    fn decode_crossing(
        &mut self,
        lin: u64,
        left: u64,
        mode: ModeKey,
        first: &[u8],
        crossing: &mut [u8; 15],
    ) -> Result<(u64, (Op, Flow)), Stop> {
        let n = first.len().min(15);
        crossing[..n].copy_from_slice(&first[..n]);
        if (n as u64) >= left {
            return Err(self.gp(0));
        }
        let next = (lin & !PAGE_MASK).wrapping_add(PAGE_MASK + 1);
        let next = if self.state.is_long64() { next } else { next & 0xffff_ffff };
        let (phys, host) = self.fetch_page(next)?;
        self.hold_page(phys);
        let total = (left.min(15)) as usize;
        self.copy_code(host, phys, &mut crossing[n..total]);
        let decoded = decode_op(&self.model, mode, &crossing[..total], 0);
        // Longer than 15 bytes, or beyond the limit.
        Ok((phys & !PAGE_MASK, decoded.ok_or_else(|| self.gp(0))?))
    }

    /// Bytes of guest RAM have changed: blocks made of them die.
    pub fn invalidate_code(&mut self, gpa: u64, len: u64) {
        let page = gpa & !PAGE_MASK;
        let Some(list) = self.blocks.pages.get(&page) else { return };
        let hit: Vec<*const Block> = list
            .iter()
            .copied()
            .filter(|&b| {
                // SAFETY: pages list live blocks only.
                let b = unsafe { &*b };
                let in_first = gpa < b.phys + u64::from(b.len) && b.phys < gpa + len;
                // Bytes of a crossing instruction on its second page: at most 14.
                let in_second = b.second_page == Some(page) && gpa & PAGE_MASK < 15;
                in_first || in_second
            })
            .collect();
        for b in hit {
            self.kill_block(b);
        }
        if self.blocks.pages.get(&page).is_some_and(Vec::is_empty) {
            self.blocks.pages.remove(&page);
            self.mem.release_code(page);
        }
    }

    /// Something else stands at these physical addresses now: blocks on their pages die.
    pub(crate) fn invalidate_range(&mut self, first: u64, last: u64) {
        let (first, last) = (first & !PAGE_MASK, last & !PAGE_MASK);
        let pages: Vec<u64> =
            self.blocks.pages.keys().copied().filter(|p| (first..=last).contains(p)).collect();
        for page in pages {
            self.invalidate_code(page, PAGE_MASK + 1);
        }
    }

    /// Forgets all decoded blocks: the next instruction is decoded anew. For those who change guest memory behind the vCPU's back; not while it
    /// runs.
    pub fn forget_code(&mut self) {
        self.blocks.clear();
    }

    /// The guest physical address of a host address in RAM.
    fn ram_address(&self, host: *const u8) -> Option<u64> {
        let offset = (host as u64).wrapping_sub(self.mem.ram().base() as u64);
        let below = self.mem.below_4g();
        if offset < below {
            Some(offset)
        } else if offset < self.mem.ram().size() {
            Some((1 << 32) + offset - below)
        } else {
            None
        }
    }

    fn kill_block(&mut self, b: *const Block) {
        // SAFETY: callers pass live blocks.
        let (phys, key) = unsafe { ((*b).phys, (*b).key) };
        if let Some(block) = self.blocks.blocks.remove(&(phys, key)) {
            self.unlist(&block);
            self.retire(block);
        }
    }

    fn unlist(&mut self, b: &Block) {
        let ptr: *const Block = b;
        for page in [Some(b.phys & !PAGE_MASK), b.second_page].into_iter().flatten() {
            if let Some(v) = self.blocks.pages.get_mut(&page) {
                v.retain(|&x| x != ptr);
                // Links point only within a page: no successor may keep one to the dead block.
                for &other in v.iter() {
                    // SAFETY: pages list live blocks only.
                    for l in unsafe { &(*other).link } {
                        if l.get() == ptr {
                            l.set(std::ptr::null());
                        }
                    }
                }
            }
        }
    }

    fn retire(&mut self, b: Box<Block>) {
        self.blocks.invalidated += 1;
        self.blocks.ops = self.blocks.ops.saturating_sub(b.ops.len());
        self.blocks.forget_jumps(&b);
        b.dead.set(true);
        for op in b.ops.iter() {
            // SAFETY: ops are only read by this thread, through copies of this pointer; no reference to `run` is held across a handler.
            unsafe { (*op.get()).run = crate::interp::leave_before };
        }
        for l in &b.link {
            l.set(std::ptr::null());
        }
        self.forget_code_jumps(&b.tier);
        self.blocks.dead_numbers.extend(b.tier.number());
        let heads = b.tier.take_heads();
        self.blocks.graveyard.push(b);
        for (phys, key) in heads {
            self.uninstall(phys, key);
        }
    }
}

/// A block whose op is being executed: for engines that need its extent.
impl Block {
    /// Whether the block's bytes have changed.
    pub fn is_dead(&self) -> bool {
        self.dead.get()
    }
}
