//! Decoded blocks: straight runs of instructions, decoded once and kept until their bytes change.
//!
//! A block is keyed by the guest physical address of its first byte and by the mode bits that change decoding
//! ([`crate::mode::ModeKey`]); it never reaches beyond its page, but for a single instruction that crosses into the
//! next one, which is a block of its own. Pages that hold blocks are marked in [`mynah_mmu::PhysMemory`], so that
//! every store to them comes through [`crate::Cpu::invalidate_code`].
//!
//! A block that dies while it runs (self-modifying code) stays allocated until the dispatcher is back; the handlers of
//! its remaining ops are replaced by one that leaves the block, so that the very next instruction is fetched anew.
//!
//! A block that has compiled code keeps no ops: they take most of its memory, and its bytes say all that they do. In
//! their place stands a *gate*, an op that enters the code, or has the bytes decoded again if the code was taken away
//! meanwhile. Where there is a tier that compiles what runs a few times, blocks that have not become so hot while some
//! thousand others were decoded keep none either. All blocks of a vCPU and what is known of their pages lie in an
//! [`Arena`], which bounds them; when it is full all go.
use crate::arena::{Arena, List};
use crate::chains::{Chained, Chains};
use crate::op::{Handler, Op};
use crate::tier::{BlockTier, CODE_JUMPS, CODE_PLACES, CodeJump, CodePlace, Compiled, Jumps};
use mynah_mmu::{PAGE_MASK, PhysMemory};
use std::cell::{Cell, UnsafeCell};
use std::sync::Arc;

/// What stands for the ops of a block that has none.
pub(crate) struct Gates {
    /// It has code: enters it.
    pub compiled: Op,
    /// It is cold, or its code was taken away: has them decoded again.
    pub forgotten: Op,
    /// It has died: leaves it.
    pub dead: Op,
}

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
    pub(crate) tier: BlockTier,
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
        // SAFETY: then they are so many in one piece, which stays until the block is freed or its ops are
        // (`BlockCache::drop_ops`).
        self.has_ops
            .get()
            .then(|| unsafe { std::slice::from_raw_parts(self.ops.get().cast(), self.op_count()) })
    }

    /// Has the handler of the first op be `run`, if the ops are there.
    pub(crate) fn set_first(&self, run: Handler) {
        if let Some(ops) = self.ops() {
            // SAFETY: ops are only read by the vCPU's thread, through copies of this pointer; no reference to `run` is
            // held across a handler.
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

    /// Whether the block's bytes have changed.
    pub fn is_dead(&self) -> bool {
        self.dead.get()
    }

    /// Whether the ops are there.
    pub(crate) fn has_ops(&self) -> bool {
        self.has_ops.get()
    }

    /// The block's code, if it has any.
    #[inline]
    pub fn code(&self) -> Option<Compiled> {
        self.tier.compiled()
    }

    /// Gives the block a number by which [`crate::Cpu::take_dead`] tells of its death.
    pub fn set_number(&self, number: u32) {
        self.tier.set_number(number);
    }

    /// Takes the number away: the block's death concerns the tier no more.
    pub fn forget_number(&self) {
        self.tier.forget_number();
    }

    /// Whether the (only) instruction goes on at the beginning of this page.
    #[inline(always)]
    pub(crate) fn crosses_to(&self, page: u64) -> bool {
        self.second == page
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
pub(crate) struct Page {
    address: u64,
    next: Cell<*mut Page>,
    /// Those that begin there.
    blocks: Cell<*mut Block>,
    /// Those that begin elsewhere and end there.
    crossing: List<*mut Block>,
    /// A bit for each [`GRAIN`] bytes that blocks were made from, and perhaps more.
    grains: Cell<u64>,
    /// Offsets of the first and last bytes of stores that have met no block, since blocks were made of the page last.
    /// Boot loaders keep variables between their code, and store there again and again.
    quiet: Cell<[(u16, u16); QUIET]>,
}

/// Stores that a [`Page`] remembers to have met no block.
const QUIET: usize = 4;
/// None.
const NOT_QUIET: [(u16, u16); QUIET] = [(1, 0); QUIET];

/// Bytes for each of which a [`Page`] has a bit.
const GRAIN: u64 = (PAGE_MASK + 1) / u64::BITS as u64;

/// The bits of bytes of a page, from `first` to `last`, counted from its beginning.
fn grains(first: u64, last: u64) -> u64 {
    let (first, last) = (first / GRAIN, last.min(PAGE_MASK) / GRAIN);
    u64::MAX << first & u64::MAX >> (u64::from(u64::BITS) - 1 - last)
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
    /// Whether blocks may be made from some of these bytes, by their physical address.
    #[inline]
    pub fn may_hold(&self, gpa: u64, len: u64) -> bool {
        let (first, last) = Self::offsets(gpa, len);
        let within = |&(from, to): &(u16, u16)| u64::from(from) <= first && last <= u64::from(to);
        self.grains.get() & grains(first, last) != 0 && !self.quiet.get().iter().any(within)
    }

    /// Takes note that no block is made from any of these bytes.
    pub fn note_quiet(&self, gpa: u64, len: u64) {
        let (first, last) = Self::offsets(gpa, len);
        let mut quiet = self.quiet.get();
        quiet.rotate_right(1);
        quiet[0] = (first as u16, last.min(PAGE_MASK) as u16);
        self.quiet.set(quiet);
    }

    fn offsets(gpa: u64, len: u64) -> (u64, u64) {
        let first = gpa & PAGE_MASK;
        (first, first.saturating_add(len.max(1) - 1))
    }

    /// Takes note of the bytes that a block is made from.
    fn note(&self, block: &Block) {
        self.quiet.set(NOT_QUIET);
        let mut bits = self.grains.get();
        if block.phys & !PAGE_MASK == self.address {
            let first = block.phys & PAGE_MASK;
            bits |= grains(first, first + u64::from(block.len.max(1)) - 1);
        }
        if block.second == self.address {
            bits |= grains(0, u64::from(block.len));
        }
        self.grains.set(bits);
    }

    /// All blocks.
    pub fn all(&self) -> impl Iterator<Item = *mut Block> + '_ {
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
/// Bytes of blocks unless told otherwise ([`crate::Cpu::bound_blocks`]).
const BLOCK_BYTES: usize = 128 << 20;
/// Blocks that are decoded before it is looked at which of the earlier half are still cold.
const YOUNG: usize = 1 << 14;
/// All decoded blocks of a vCPU.
pub struct BlockCache {
    gates: &'static Gates,
    arena: Arena,
    blocks: Chains<Block>,
    pages: Chains<Page>,
    mem: Arc<PhysMemory>,
    jumps: Box<[Jump]>,
    /// Compiled code by linear address.
    pub(crate) code_jumps: Box<[CodeJump]>,
    /// Compiled code by where its bytes are.
    pub(crate) code_places: Box<[CodePlace]>,
    /// The block that is executing.
    pub(crate) current: *const Block,
    /// Blocks that live.
    live: usize,
    /// Nothing was decoded since all was forgotten: no table has anything.
    empty: bool,
    /// Those that died and are not yet freed, chained.
    dead: *mut Block,
    graves: usize,
    /// Blocks that were decoded last, if they are counted: see [`YOUNG`].
    young: Vec<(u64, u32)>,
    /// Memory for the ops of a block that is being decoded.
    pub(crate) scratch: Vec<Op>,
    /// Numbers that the tier gave blocks which have died since it asked; or all have.
    pub(crate) dead_numbers: Vec<u32>,
    pub(crate) all_died: bool,
    /// Blocks decoded since the start.
    pub decoded: u64,
    /// Blocks invalidated since the start.
    pub invalidated: u64,
}

// SAFETY: the raw pointers point to what lies in the arena that the cache itself owns; a vCPU is used by one thread at
// a time.
unsafe impl Send for BlockCache {}

impl BlockCache {
    pub(crate) fn new(mem: Arc<PhysMemory>, gates: &'static Gates) -> Self {
        // SAFETY: all of a jump may be zero: it then names no block.
        let jumps = unsafe { Box::<[Jump]>::new_zeroed_slice(JUMPS).assume_init() };
        // SAFETY: as above; it is `CodeJump::NONE`.
        let code_jumps = unsafe { Box::<[CodeJump]>::new_zeroed_slice(CODE_JUMPS).assume_init() };
        // SAFETY: as above; it is `CodePlace::NONE`.
        let code_places = unsafe { Box::<[CodePlace]>::new_zeroed_slice(CODE_PLACES).assume_init() };
        let (arena, blocks, pages) = Self::room(BLOCK_BYTES);
        Self {
            gates,
            arena,
            blocks,
            pages,
            mem,
            jumps,
            code_jumps,
            code_places,
            current: std::ptr::null(),
            live: 0,
            empty: true,
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

    /// The block that the jump cache had for a linear address under earlier mappings: it lives.
    #[inline(always)]
    pub(crate) fn stale_jump(&self, lin: u64, key: u32) -> Option<&Block> {
        let j = &self.jumps[Self::slot(lin)];
        // SAFETY: null, or a live block: entries are removed when their block dies.
        if j.lin == lin && j.key == key { unsafe { j.block.as_ref() } } else { None }
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

    /// Has a live block found by its linear address, under the present mappings.
    pub(crate) fn set_jump(&mut self, lin: u64, generation: u64, block: *const Block, key: u32) {
        let at = Self::slot(lin);
        self.jumps[at] = Jump { lin, generation, block, key };
        // SAFETY: callers pass a live block.
        let known = unsafe { &(*block).jumps };
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
            self.drop_ops(b, &self.gates.dead);
            b.tier.drop_lists(&mut self.arena);
            // SAFETY: as above.
            unsafe { self.arena.give_back(piece, size) };
        }
        true
    }

    /// Has a gate stand for a block's ops, whose memory is given back if they are there. None of them is executed any
    /// more.
    fn drop_ops(&mut self, block: &Block, gate: &'static Op) {
        let ops = block.ops.replace(gate);
        if block.has_ops.replace(false) {
            // SAFETY: they were taken with this size, and are no more referred to.
            unsafe { self.arena.give_back(ops.cast_mut().cast(), size_of::<Op>() * block.op_count()) };
        }
    }

    /// The block has code from now on: its ops go.
    pub(crate) fn has_code(&mut self, block: &Block) {
        self.drop_ops(block, &self.gates.compiled);
    }

    /// The block has no code any more; `run` is to handle its first op.
    pub(crate) fn lost_code(&mut self, block: &Block, run: Handler) {
        block.set_first(run);
        if !block.has_ops.get() {
            block.ops.set(&self.gates.forgotten);
        }
    }

    /// Takes the ops of blocks that have been there for a while and are still cold. No block is executing.
    #[cold]
    pub(crate) fn cool_down(&mut self) {
        let old: Vec<(u64, u32)> = self.young.drain(..YOUNG / 2).collect();
        for (phys, key) in old {
            // SAFETY: null, or a live block, which stays where it is.
            let Some(b) = (unsafe { self.blocks.find((phys, key)).as_ref() }) else { continue };
            if b.tier.compiled().is_none() {
                self.drop_ops(b, &self.gates.forgotten);
            }
        }
    }

    /// Gives a block ops.
    pub(crate) fn put_ops(&mut self, block: &Block, ops: &[Op]) {
        let piece: *mut Op = self.arena.take(size_of_val(ops)).cast();
        // SAFETY: the piece is new and so large.
        unsafe { piece.copy_from_nonoverlapping(ops.as_ptr(), ops.len()) };
        block.ops.set(piece);
        block.has_ops.set(true);
    }

    /// Empties the cache.
    pub(crate) fn clear(&mut self) {
        // Memory of tables that were never used is none, and stays so.
        if std::mem::replace(&mut self.empty, true) && self.pages.is_empty() {
            self.all_died = true;
            return;
        }
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
        self.code_places.fill(CodePlace::NONE);
    }

    /// The page that is held at a physical address, if it is.
    pub(crate) fn page(&self, gpa: u64) -> Option<&Page> {
        // SAFETY: null, or a page in the arena, which stays until it is released.
        unsafe { self.pages.find(gpa & !PAGE_MASK).as_ref() }
    }

    /// Takes a page that is held on record.
    pub(crate) fn add_page(&mut self, address: u64) {
        let page: *mut Page = self.arena.take(size_of::<Page>()).cast();
        let new = Page {
            address,
            next: Cell::default(),
            blocks: Cell::default(),
            crossing: List::new(),
            grains: Cell::default(),
            quiet: Cell::new(NOT_QUIET),
        };
        // SAFETY: the piece is new, large enough and aligned; it stays until the page is released.
        unsafe {
            page.write(new);
            self.pages.insert(page);
        }
    }

    /// Lets go of a page if no block is on it.
    pub(crate) fn release_if_empty(&mut self, gpa: u64) {
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

    /// Puts a new block in, whose pages are held and in whose place there is none.
    pub(crate) fn add(
        &mut self,
        phys: u64,
        key: u32,
        second: Option<u64>,
        bytes: &[u8],
        ops: &[Op],
    ) -> *const Block {
        self.decoded += 1;
        self.live += 1;
        self.empty = false;
        let block: *mut Block = self.arena.take(size_of::<Block>() + bytes.len()).cast();
        // SAFETY: the piece is new, aligned, and large enough for the block and its bytes behind it.
        let b = unsafe {
            let behind: *mut u8 = block.add(1).cast();
            behind.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len());
            block.write(Block {
                ops: Cell::new(&raw const self.gates.dead),
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
                tier: BlockTier::new(ops[0].run),
            });
            &*block
        };
        self.put_ops(b, ops);
        // SAFETY: the block stays where it is until it is taken out and freed.
        unsafe { self.blocks.insert(block) };
        if let Some(page) = self.page(phys) {
            b.on_page.set(page.blocks.replace(block));
            page.note(b);
        }
        // Both may be the same physical page, mapped twice.
        if let Some(second) = second.filter(|&p| p != phys & !PAGE_MASK) {
            let page = self.pages.find(second);
            // SAFETY: null, or a page in the arena.
            if let Some(page) = unsafe { page.as_ref() } {
                page.crossing.push(&mut self.arena, block);
                page.note(b);
            }
        }
        block
    }

    /// A new block is counted: it may turn out to be cold.
    pub(crate) fn note_young(&mut self, phys: u64, key: u32) {
        self.young.push((phys, key));
    }

    /// Whether it is time to look which blocks have stayed cold.
    #[inline(always)]
    pub(crate) fn wants_cooling(&self) -> bool {
        self.young.len() >= YOUNG
    }

    /// The pages that are held.
    pub(crate) fn held_pages(&self) -> impl Iterator<Item = u64> + '_ {
        // SAFETY: pages that are in the table are in the arena.
        self.pages.iter().map(|p| unsafe { (*p).address })
    }

    /// Has blocks take up to so many bytes from now on. There is none, dead or alive.
    pub(crate) fn bound(&mut self, bytes: usize) {
        (self.arena, self.blocks, self.pages) = Self::room(bytes);
    }

    /// A live block is found no more: it is marked as dead.
    pub(crate) fn take_out(&mut self, block: &Block) {
        block.dead.set(true);
        self.blocks.remove(block);
    }

    /// Takes the blocks of a page off its list that are marked as dead.
    pub(crate) fn unlist_dead(&mut self, page: u64) {
        let page = self.pages.find(page);
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
        page.crossing.retain(&mut self.arena, |b| !is_dead(b));
        page.grains.set(0);
        // Links point only within a page: no successor may keep one to a dead block.
        for b in page.all() {
            // SAFETY: as above.
            page.note(unsafe { &*b });
            // SAFETY: as above.
            for link in unsafe { &(*b).link } {
                if is_dead(link.get()) {
                    link.set(std::ptr::null());
                }
            }
        }
    }

    /// What is left to be done when a block has died that is in no table any more. Returns the heads of code that it
    /// went into.
    pub(crate) fn retire(&mut self, block: *mut Block) -> Vec<(u64, u32)> {
        // SAFETY: it stays in the arena until it is freed.
        let b = unsafe { &*block };
        let gate = &self.gates.dead;
        self.invalidated += 1;
        self.forget_jumps(b);
        match b.ops() {
            // One of them may be executing: their memory stays until then.
            Some(ops) => {
                for op in ops {
                    // SAFETY: ops are only read by this thread, through copies of this pointer; no reference to `run`
                    // is held across a handler.
                    unsafe { (*op.get()).run = gate.run };
                }
            }
            None => b.ops.set(gate),
        }
        for l in &b.link {
            l.set(std::ptr::null());
        }
        self.forget_code_jumps(&b.tier);
        self.dead_numbers.extend(b.tier.number());
        let heads = b.tier.die(&mut self.arena);
        self.live -= 1;
        self.graves += 1;
        b.next.set(std::mem::replace(&mut self.dead, block));
        heads
    }

    /// The code of a block is no longer to be found.
    pub(crate) fn forget_code_jumps(&mut self, tier: &BlockTier) {
        let Some(code) = tier.compiled() else { return };
        let forget = |jump: &mut CodeJump| {
            if jump.code == code.code {
                *jump = CodeJump::NONE;
            }
        };
        match tier.jumps.take().known() {
            Some(known) => known.iter().for_each(|&at| forget(&mut self.code_jumps[usize::from(at)])),
            None => self.code_jumps.iter_mut().for_each(forget),
        }
        let place = &mut self.code_places[tier.place.get() as usize];
        if place.ops == code.ops {
            *place = CodePlace::NONE;
        }
    }
}

impl Drop for BlockCache {
    fn drop(&mut self) {
        // `clear` would write to the tables, most of which a short run has never touched.
        for page in self.pages.iter() {
            // SAFETY: pages that are in the table are in the arena.
            self.mem.release_code(unsafe { (*page).address });
        }
    }
}

/// Whether `lin` is on the last page: an instruction there may go on in the other half of the address space, and is
/// not cached by its address.
#[inline(always)]
pub(crate) fn wraps(lin: u64) -> bool {
    lin | PAGE_MASK == u64::MAX
}
