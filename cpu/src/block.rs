//! Decoded blocks: straight runs of instructions, decoded once and kept until their bytes change.
//!
//! A block is keyed by the guest physical address of its first byte and by the mode bits that change decoding ([`ModeKey`]); it never reaches
//! beyond its page, but for a single instruction that crosses into the next one, which is a block of its own. Pages that hold blocks are
//! marked in [`mynah_mmu::PhysMemory`], so that every store to them comes through [`Cpu::invalidate_code`].
//!
//! A block that dies while it runs (self-modifying code) stays allocated until the dispatcher is back; the handlers of its remaining ops are
//! replaced by one that leaves the block, so that the very next instruction is fetched anew.
//!
//! A block that has compiled code keeps no ops: they take most of its memory, and its bytes say all that they do. In their place stands a *gate*, an op that
//! enters the code, or has the bytes decoded again if the code was taken away meanwhile. Where there is a tier that compiles what runs a few times, blocks that
//! have not become so hot while some thousand others were decoded keep none either. All blocks of a vCPU and what is known of their pages lie in an
//! [`Arena`], which bounds them; when it is full all go.
use crate::arena::{Arena, List};
use crate::chains::{Chained, Chains};
use crate::cpu::{Cpu, SegView, Stop};
use crate::decode::{Run, decode_op};
use crate::interp::{gate, leave_before, run_straight};
use crate::op::{Flow, Handler, Op};
use crate::state::{Segment, State, cr0, fl, seg};
use crate::sys::flags::sti_inside;
use crate::tier::{CODE_JUMPS, CodeJump, Jumps, restore_and_run, run_code};
use iced_x86::Code;
use mynah_mmu::{PAGE_MASK, PhysMemory};
use smallvec::SmallVec;
use std::cell::{Cell, UnsafeCell};
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

/// Stands for the ops of a block that has code: enters it.
static COMPILED: Op = gate(run_code);
/// Stands for the ops of a block that is cold, or whose code was taken away: has them decoded again.
static FORGOTTEN: Op = gate(restore_and_run);
/// Stands for the ops of a block that has died: leaves it.
static DEAD: Op = gate(leave_before);

/// In place of the address of a second page.
const NO_PAGE: u64 = u64::MAX;

/// A decoded block.
pub struct Block {
    /// The instructions, the last of which ends the block; or a gate.
    ops: Cell<*const Op>,
    /// Successors on the same page: of a taken branch, and of falling through.
    pub link: [Cell<*const Block>; 2],
    /// Physical address of the first byte.
    pub phys: u64,
    /// Mode key.
    pub key: u32,
    /// Bytes.
    pub len: u32,
    /// Number of ops.
    count: u16,
    /// They are there.
    has_ops: Cell<bool>,
    dead: Cell<bool>,
    /// What the ops were decoded from.
    bytes: *const u8,
    /// Physical page of the bytes beyond the page boundary, or `NO_PAGE`.
    second: u64,
    /// The next block in the table of all, or of the dead.
    next: Cell<*mut Block>,
    /// The next block that begins on the same page.
    on_page: Cell<*mut Block>,
    /// Entries of the jump cache that were set to this block.
    jumps: Cell<Jumps>,
    pub(crate) tier: crate::tier::BlockTier,
}

impl Block {
    /// The first op.
    #[inline(always)]
    pub fn first(&self) -> *const Op {
        self.ops.get()
    }

    /// How many ops it has, whether or not they are there now.
    #[inline(always)]
    pub fn op_count(&self) -> usize {
        usize::from(self.count)
    }

    /// The ops, if they are there.
    pub(crate) fn ops(&self) -> Option<&[UnsafeCell<Op>]> {
        // SAFETY: then they are so many in one piece, which stays until the block is freed or its ops are (`BlockCache::drop_ops`).
        self.has_ops
            .get()
            .then(|| unsafe { std::slice::from_raw_parts(self.ops.get().cast(), self.op_count()) })
    }

    /// Has the handler of the first op be `run`, if the ops are there.
    pub(crate) fn set_first(&self, run: Handler) {
        if let Some(ops) = self.ops() {
            // SAFETY: ops are only read by the vCPU's thread, through copies of this pointer; no reference to `run` is held across a handler.
            unsafe { (*ops[0].get()).run = run };
        }
    }

    /// What the ops were decoded from. What stands in memory may be newer until the vCPU looks at its events.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: they lie behind the block, as long as that is there.
        unsafe { std::slice::from_raw_parts(self.bytes, self.len as usize) }
    }

    /// Physical page of the bytes beyond the page boundary, if the (only) instruction crosses it.
    pub fn second_page(&self) -> Option<u64> {
        Some(self.second).filter(|&p| p != NO_PAGE)
    }

    /// Bytes of the piece that holds it.
    fn size(&self) -> usize {
        size_of::<Self>() + self.len as usize
    }
}

impl Chained for Block {
    type Key = (u64, u32);
    fn key(&self) -> (u64, u32) {
        (self.phys, self.key)
    }
    #[inline(always)]
    fn number((phys, key): (u64, u32)) -> u64 {
        phys ^ u64::from(key) << 48
    }
    fn next(&self) -> &Cell<*mut Self> {
        &self.next
    }
}

/// A page that is held (`PhysMemory::hold_code`), and the blocks on it.
struct Page {
    address: u64,
    next: Cell<*mut Page>,
    /// Those that begin there.
    blocks: Cell<*mut Block>,
    /// Those that begin elsewhere and end there.
    crossing: List<*mut Block>,
}

impl Chained for Page {
    type Key = u64;
    fn key(&self) -> u64 {
        self.address
    }
    fn number(address: u64) -> u64 {
        address >> 12
    }
    fn next(&self) -> &Cell<*mut Self> {
        &self.next
    }
}

impl Page {
    /// All blocks.
    fn all(&self) -> impl Iterator<Item = *mut Block> + '_ {
        let mut at = self.blocks.get();
        let begin = std::iter::from_fn(move || {
            // SAFETY: pages list live blocks only.
            let next = unsafe { at.as_ref() }?.on_page.get();
            Some(std::mem::replace(&mut at, next))
        });
        begin.chain(self.crossing.iter())
    }
}

#[derive(Clone, Copy)]
struct Jump {
    lin: u64,
    generation: u64,
    block: *const Block,
    key: u32,
}

const JUMPS: usize = 1 << 15;
const _: () = assert!(JUMPS <= 1 << 16);
/// Bytes of blocks unless told otherwise ([`Cpu::bound_blocks`]).
const BLOCK_BYTES: usize = 128 << 20;
/// Blocks that are decoded before it is looked at which of the earlier half are still cold.
const YOUNG: usize = 1 << 14;
/// Instructions in a block.
const MAX_BLOCK: usize = 64;
/// Bytes that are copied at once to be decoded: most blocks are shorter.
const PIECE: usize = 64;

/// All decoded blocks of a vCPU.
pub struct BlockCache {
    arena: Arena,
    blocks: Chains<Block>,
    pages: Chains<Page>,
    mem: Arc<PhysMemory>,
    jumps: Box<[Jump]>,
    /// Compiled code by linear address.
    pub(crate) code_jumps: Box<[CodeJump]>,
    /// The block that is executing.
    pub(crate) current: *const Block,
    /// Blocks that live.
    live: usize,
    /// Those that died and are not yet freed, chained.
    dead: *mut Block,
    graves: usize,
    /// Blocks that were decoded last, if they are counted: see [`YOUNG`].
    young: Vec<(u64, u32)>,
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

// SAFETY: the raw pointers point to what lies in the arena that the cache itself owns; a vCPU is used by one thread at a time.
unsafe impl Send for BlockCache {}

impl BlockCache {
    pub(crate) fn new(mem: Arc<PhysMemory>) -> Self {
        // SAFETY: all of a jump may be zero: it then names no block.
        let jumps = unsafe { Box::<[Jump]>::new_zeroed_slice(JUMPS).assume_init() };
        // SAFETY: as above; it is `CodeJump::NONE`.
        let code_jumps = unsafe { Box::<[CodeJump]>::new_zeroed_slice(CODE_JUMPS).assume_init() };
        let (arena, blocks, pages) = Self::room(BLOCK_BYTES);
        Self {
            arena,
            blocks,
            pages,
            mem,
            jumps,
            code_jumps,
            current: std::ptr::null(),
            live: 0,
            dead: std::ptr::null_mut(),
            graves: 0,
            young: Vec::new(),
            scratch: Vec::new(),
            dead_numbers: Vec::new(),
            all_died: false,
            decoded: 0,
            invalidated: 0,
        }
    }

    /// An arena and tables that take up to `bytes` together, or a little more than 1 MiB.
    fn room(bytes: usize) -> (Arena, Chains<Block>, Chains<Page>) {
        let heads = (bytes / 1024).clamp(1 << 12, 1 << 19).next_power_of_two();
        let tables = (heads + heads / 4) * size_of::<*mut u8>();
        (Arena::new(bytes.saturating_sub(tables)), Chains::new(heads), Chains::new(heads / 4))
    }

    /// Bytes that blocks take of the host's memory, the tables that they are found by not counted.
    pub(crate) fn bytes(&self) -> usize {
        self.arena.bytes()
    }

    /// What lists of blocks' lie in.
    #[inline(always)]
    pub(crate) fn arena(&mut self) -> &mut Arena {
        &mut self.arena
    }

    /// Whether there is hardly room for more blocks: all are to be dropped where none is executing.
    #[inline(always)]
    pub(crate) fn is_full(&self) -> bool {
        self.arena.is_full()
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
        // SAFETY: null, or a live block, which stays at least until the next time that one is killed.
        unsafe { self.blocks.find((phys, key)).as_ref() }
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
        self.graves
    }

    /// Frees blocks that died, if any; only when none is executing.
    pub(crate) fn free_dead(&mut self) -> bool {
        if self.graves == 0 {
            return false;
        }
        self.graves = 0;
        let mut at = std::mem::replace(&mut self.dead, std::ptr::null_mut());
        if self.live == 0 && self.pages.is_empty() {
            // SAFETY: all that was in the arena is dead, and nobody executes it.
            unsafe { self.arena.reset() };
            return true;
        }
        // SAFETY: the dead are chained, and in the arena; nobody executes them.
        while let Some(b) = unsafe { at.as_ref() } {
            let (piece, size) = (at.cast(), b.size());
            at = b.next.get();
            self.drop_ops(b, &DEAD);
            b.tier.drop_lists(&mut self.arena);
            // SAFETY: as above.
            unsafe { self.arena.give_back(piece, size) };
        }
        true
    }

    /// Has a gate stand for a block's ops, whose memory is given back if they are there. None of them is executed any more.
    fn drop_ops(&mut self, block: &Block, gate: &'static Op) {
        let ops = block.ops.replace(gate);
        if block.has_ops.replace(false) {
            // SAFETY: they were taken with this size, and are no more referred to.
            unsafe { self.arena.give_back(ops.cast_mut().cast(), size_of::<Op>() * block.op_count()) };
        }
    }

    /// The block has code from now on: its ops go.
    pub(crate) fn has_code(&mut self, block: &Block) {
        self.drop_ops(block, &COMPILED);
    }

    /// The block has no code any more; `run` is to handle its first op.
    pub(crate) fn lost_code(&mut self, block: &Block, run: Handler) {
        block.set_first(run);
        if !block.has_ops.get() {
            block.ops.set(&FORGOTTEN);
        }
    }

    /// Takes the ops of blocks that have been there for a while and are still cold. No block is executing.
    #[cold]
    fn cool_down(&mut self) {
        let old: Vec<(u64, u32)> = self.young.drain(..YOUNG / 2).collect();
        for (phys, key) in old {
            // SAFETY: null, or a live block, which stays where it is.
            let Some(b) = (unsafe { self.blocks.find((phys, key)).as_ref() }) else { continue };
            if b.tier.compiled().is_none() {
                self.drop_ops(b, &FORGOTTEN);
            }
        }
    }

    /// Gives a block ops.
    fn put_ops(&mut self, block: &Block, ops: &[Op]) {
        let piece: *mut Op = self.arena.take(size_of_val(ops)).cast();
        // SAFETY: the piece is new and so large.
        unsafe { piece.copy_from_nonoverlapping(ops.as_ptr(), ops.len()) };
        block.ops.set(piece);
        block.has_ops.set(true);
    }

    /// Empties the cache.
    pub(crate) fn clear(&mut self) {
        self.invalidated += self.live as u64;
        for b in self.blocks.iter() {
            // SAFETY: live blocks stay in the arena until they are freed.
            unsafe { (*b).next.set(self.dead) };
            self.dead = b;
        }
        (self.graves, self.live) = (self.graves + self.live, 0);
        self.blocks.clear();
        for page in self.pages.iter() {
            // SAFETY: pages that are in the table are in the arena.
            let p = unsafe { &*page };
            self.mem.release_code(p.address);
            p.crossing.clear(&mut self.arena);
            // SAFETY: it is in no table any more when this is done.
            unsafe { self.arena.give_back(page.cast(), size_of::<Page>()) };
        }
        self.pages.clear();
        self.young.clear();
        self.dead_numbers.clear();
        self.all_died = true;
        for j in self.jumps.iter_mut() {
            j.block = std::ptr::null();
        }
        self.code_jumps.fill(CodeJump::NONE);
    }

    /// The page that is held at a physical address, if it is.
    fn page(&self, gpa: u64) -> Option<&Page> {
        // SAFETY: null, or a page in the arena, which stays until it is released.
        unsafe { self.pages.find(gpa & !PAGE_MASK).as_ref() }
    }

    /// Takes a page that is held on record.
    fn add_page(&mut self, address: u64) {
        let page: *mut Page = self.arena.take(size_of::<Page>()).cast();
        let new = Page { address, next: Cell::default(), blocks: Cell::default(), crossing: List::new() };
        // SAFETY: the piece is new, large enough and aligned; it stays until the page is released.
        unsafe {
            page.write(new);
            self.pages.insert(page);
        }
    }

    /// Lets go of a page if no block is on it.
    fn release_if_empty(&mut self, gpa: u64) {
        let page = self.pages.find(gpa & !PAGE_MASK);
        // SAFETY: null, or a page in the arena.
        let Some(p) = (unsafe { page.as_ref() }) else { return };
        if p.all().next().is_none() {
            self.pages.remove(p);
            self.mem.release_code(p.address);
            // SAFETY: it is not in the table any more.
            unsafe { self.arena.give_back(page.cast(), size_of::<Page>()) };
        }
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
        if self.blocks.page(page).is_some() {
            return;
        }
        self.blocks.add_page(page);
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
        let mut found: *const Block = match self.blocks.block_at(phys, key) {
            Some(b) if u64::from(b.len) <= left => b,
            _ => std::ptr::null(),
        };
        // SAFETY: null, or just taken from the table.
        let second = unsafe { found.as_ref() }.and_then(Block::second_page);
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
        if self.blocks.is_full() || (lin ^ phys) & PAGE_MASK != 0 {
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
        let bytes = if second_page.is_some() { &crossing[..len] } else { &copy[..len] };
        if self.trace.is_some() {
            self.trace_decoded(lin, bytes);
        }
        let ptr = self.add_block(phys, key, second_page, bytes, &ops);
        self.blocks.scratch = ops;
        Ok(ptr)
    }

    /// Puts a new block in the place of what there was.
    fn add_block(
        &mut self,
        phys: u64,
        key: u32,
        second: Option<u64>,
        bytes: &[u8],
        ops: &[Op],
    ) -> *const Block {
        if let Some(old) = self.blocks.block_at(phys, key).map(|b| (&raw const *b).cast_mut()) {
            self.kill(&[old]);
        }
        // Walking the page tables may have written to them, and so have killed the last block of one that holds code.
        self.hold_page(phys);
        if let Some(p) = second {
            self.hold_page(p);
        }
        let cache = &mut self.blocks;
        cache.decoded += 1;
        cache.live += 1;
        let block: *mut Block = cache.arena.take(size_of::<Block>() + bytes.len()).cast();
        // SAFETY: the piece is new, aligned, and large enough for the block and its bytes behind it.
        let b = unsafe {
            let behind: *mut u8 = block.add(1).cast();
            behind.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len());
            block.write(Block {
                ops: Cell::new(&raw const DEAD),
                link: [Cell::new(std::ptr::null()), Cell::new(std::ptr::null())],
                phys,
                key,
                len: bytes.len() as u32,
                count: ops.len() as u16,
                has_ops: Cell::new(false),
                dead: Cell::new(false),
                bytes: behind,
                second: second.unwrap_or(NO_PAGE),
                next: Cell::default(),
                on_page: Cell::default(),
                jumps: Cell::default(),
                tier: crate::tier::BlockTier::new(ops[0].run),
            });
            &*block
        };
        cache.put_ops(b, ops);
        // SAFETY: the block stays where it is until it is taken out and freed.
        unsafe { cache.blocks.insert(block) };
        if let Some(page) = cache.page(phys) {
            b.on_page.set(page.blocks.replace(block));
        }
        // Both may be the same physical page, mapped twice.
        if let Some(second) = second.filter(|&p| p != phys & !PAGE_MASK) {
            let page = cache.pages.find(second);
            // SAFETY: null, or a page in the arena.
            if let Some(page) = unsafe { page.as_ref() } {
                page.crossing.push(&mut cache.arena, block);
            }
        }
        if self.count_block(b) {
            self.blocks.young.push((phys, key));
        }
        block
    }

    /// Decodes a block's ops again from its bytes, behind what is in `ops`; false if that gives others.
    pub(crate) fn decode_ops_again(&self, block: &Block, ops: &mut Vec<Op>) -> bool {
        let (first, mode, bytes) = (ops.len(), ModeKey(block.key), block.bytes());
        let mut run = Run::new(&self.model, mode, bytes, 0);
        let (mut len, mut ended) = (0, false);
        while len < bytes.len() {
            let next = match block.second_page() {
                None => run.next(&self.model, len),
                Some(_) => decode_op(&self.model, mode, bytes, 0),
            };
            let Some((mut op, flow)) = next.filter(|(op, _)| op.len != 0) else { return false };
            len += usize::from(op.len);
            ended = flow == Flow::Ends;
            if ended && len < bytes.len() {
                // As a block goes on behind a STI only.
                (op.run, op.helper) = (run_straight, sti_inside);
            }
            ops.push(op);
        }
        if !ended {
            ops.push(crate::interp::leave_op(len));
        }
        len == bytes.len() && ops.len() == first + block.op_count()
    }

    /// Gives a block its ops back if it has none; false if they could not be decoded again.
    pub(crate) fn restore_ops(&mut self, block: &Block) -> bool {
        if block.has_ops.get() {
            return true;
        }
        let mut ops = std::mem::take(&mut self.blocks.scratch);
        ops.clear();
        let same = self.decode_ops_again(block, &mut ops);
        if same {
            self.blocks.put_ops(block, &ops);
            if block.tier.compiled().is_some() {
                block.set_first(run_code);
            }
        }
        self.blocks.scratch = ops;
        same
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
        let Some(held) = self.blocks.page(page) else { return };
        let hit: SmallVec<[*mut Block; 16]> = held
            .all()
            .filter(|&b| {
                // SAFETY: pages list live blocks only.
                let b = unsafe { &*b };
                let in_first = gpa < b.phys + u64::from(b.len) && b.phys < gpa + len;
                // Bytes of a crossing instruction on its second page: at most 14.
                let in_second = b.second == page && gpa & PAGE_MASK < 15;
                in_first || in_second
            })
            .collect();
        self.kill(&hit);
        self.blocks.release_if_empty(page);
    }

    /// Something else stands at these physical addresses now: blocks on their pages die.
    pub(crate) fn invalidate_range(&mut self, first: u64, last: u64) {
        let (first, last) = (first & !PAGE_MASK, last & !PAGE_MASK);
        // SAFETY: pages that are in the table are in the arena.
        let all = self.blocks.pages.iter().map(|p| unsafe { (*p).address });
        let pages: Vec<u64> = all.filter(|p| (first..=last).contains(p)).collect();
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

    pub(crate) fn kill_block(&mut self, b: *const Block) {
        self.kill(&[b.cast_mut()]);
    }

    /// Kills live blocks.
    fn kill(&mut self, blocks: &[*mut Block]) {
        let mut pages: SmallVec<[u64; 4]> = SmallVec::new();
        for &b in blocks {
            // SAFETY: callers pass live blocks.
            let b = unsafe { &*b };
            b.dead.set(true);
            self.blocks.blocks.remove(b);
            for page in [Some(b.phys & !PAGE_MASK), b.second_page()].into_iter().flatten() {
                if !pages.contains(&page) {
                    pages.push(page);
                }
            }
        }
        for page in pages {
            self.unlist_dead(page);
        }
        for &b in blocks {
            self.retire(b);
        }
    }

    /// Takes the blocks of a page off its list that are marked as dead.
    fn unlist_dead(&mut self, page: u64) {
        let page = self.blocks.pages.find(page);
        // SAFETY: null, or a page in the arena.
        let Some(page) = (unsafe { page.as_ref() }) else { return };
        // SAFETY: what pages and links name is in the arena: blocks that died just now are not yet freed.
        let is_dead = |b: *const Block| unsafe { b.as_ref() }.is_some_and(Block::is_dead);
        let mut place = &page.blocks;
        loop {
            let at = place.get();
            // SAFETY: as above.
            let Some(b) = (unsafe { at.as_ref() }) else { break };
            if b.is_dead() {
                place.set(b.on_page.get());
            } else {
                place = &b.on_page;
            }
        }
        page.crossing.retain(&mut self.blocks.arena, |b| !is_dead(b));
        // Links point only within a page: no successor may keep one to a dead block.
        for b in page.all() {
            // SAFETY: as above.
            for link in unsafe { &(*b).link } {
                if is_dead(link.get()) {
                    link.set(std::ptr::null());
                }
            }
        }
    }

    /// What is left to be done when a block has died that is in no table any more.
    fn retire(&mut self, block: *mut Block) {
        // SAFETY: it stays in the arena until it is freed.
        let b = unsafe { &*block };
        let cache = &mut self.blocks;
        cache.invalidated += 1;
        cache.forget_jumps(b);
        match b.ops() {
            // One of them may be executing: their memory stays until then.
            Some(ops) => {
                for op in ops {
                    // SAFETY: ops are only read by this thread, through copies of this pointer; no reference to `run` is held across a handler.
                    unsafe { (*op.get()).run = leave_before };
                }
            }
            None => b.ops.set(&DEAD),
        }
        for l in &b.link {
            l.set(std::ptr::null());
        }
        self.forget_code_jumps(&b.tier);
        let cache = &mut self.blocks;
        cache.dead_numbers.extend(b.tier.number());
        let heads = b.tier.die(&mut cache.arena);
        cache.live -= 1;
        cache.graves += 1;
        b.next.set(std::mem::replace(&mut cache.dead, block));
        for (phys, key) in heads {
            self.uninstall(phys, key);
        }
    }

    /// Has decoded blocks take up to so many bytes of the host's memory, and at least 1 MiB; they are dropped. Not while the vCPU runs.
    pub fn bound_blocks(&mut self, bytes: usize) {
        self.flush_blocks();
        self.blocks.free_dead();
        (self.blocks.arena, self.blocks.blocks, self.blocks.pages) = BlockCache::room(bytes);
    }

    /// Bytes of the host's memory that decoded blocks take.
    pub fn block_bytes(&self) -> usize {
        self.blocks.bytes()
    }

    /// Between two instructions: frees what has died, and makes room if there is none.
    #[inline(always)]
    pub(crate) fn tidy_blocks(&mut self) {
        if self.blocks.is_full() {
            self.flush_blocks();
        } else if self.blocks.young.len() >= YOUNG {
            self.blocks.cool_down();
        }
        if self.blocks.free_dead() {
            self.from = (std::ptr::null(), 0);
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
