//! The translation look-aside buffer of one vCPU, made to be inlined by generated code.
//!
//! One direct-mapped table per (address space, mode). The current one is named by `TlbView` (table, mask), so
//! that a change of CPL, of EFLAGS.AC under SMAP, or a CR3 write with PCID swaps two words and flushes
//! nothing. A look-up is
//! `e = table[(lin ^ lin >> 14) >> 12 & entries - 1]; if e.read == (lin + size - 1) & !0xfff { *(lin + e.addend) }`.
//!
//! Address spaces are PCIDs; the last few used keep their tables (`User`, `SuperAc`). `Super`, where with
//! SMAP only the kernel's own pages are, nearly all of them global, is one table for all spaces, and loses
//! what is not global when the space changes. Tables grow with use. Large guest pages are entered 4 KiB at a
//! time.
//!
//! A `Tlb` belongs to one vCPU thread and has no lock. `insert` may move the current table: engines that keep
//! the view in registers load it again after anything that can fill the TLB.

mod table;

use crate::{PAGE_MASK, PAGE_SIZE};
use bitvec::{boxed::BitBox, order::Lsb0};
use table::{LargeSpans, Table, Which};

/// A tag that never matches.
pub const NEVER: u64 = u64::MAX;

/// Address spaces whose tables are kept.
const SPACES: usize = 8;
/// Bits of the filter of pages that were executable (a power of two).
const EXEC_FILTER: usize = 1 << 15;

/// One translation. A tag is the page's linear address where the access may go fast, else it has low bits set
/// and never matches.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct TlbEntry {
    /// Host address minus linear address. It comes first: the tag is predicted, this is waited for, and with an index
    /// and no displacement a load takes a cycle less.
    pub addend: u64,
    /// Tag for data reads.
    pub read: u64,
    /// Tag for data writes (only if the page is dirty in its PTE, is RAM, holds no decoded code, ...).
    pub write: u64,
    /// Tag for instruction fetches.
    pub exec: u64,
}

/// By how much a linear address is shifted to give the offset of its entry.
pub const ENTRY_SHIFT: u32 = 12 - size_of::<TlbEntry>().trailing_zeros();
const _: () = assert!(size_of::<TlbEntry>().is_power_of_two());

/// Higher bits of an address are folded into those that choose its entry: buffers a power of two apart are often used
/// in turns.
pub const HASH_SHIFT: u32 = 11;

/// The bits of an address that choose its entry, from bit 12 on.
#[inline(always)]
fn fold(lin: u64) -> u64 {
    lin ^ (lin >> HASH_SHIFT)
}

/// Whether a page has the entry of the page before it: then the tag of the last byte of an access across both would
/// match in the wrong entry, so such a page must have no fast accesses. So it is at multiples of 4 GiB, and for page 0,
/// which follows the last one of 64-bit mode.
#[inline(always)]
pub fn shares_entry_with_previous(lin: u64) -> bool {
    let page = lin & !PAGE_MASK;
    let differ = fold(page) ^ fold(page.wrapping_sub(PAGE_MASK + 1));
    differ >> 12 & (table::MIN_ENTRIES as u64 - 1) == 0
}

/// What generated code loads for each access.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct TlbView {
    /// The current table.
    pub table: *mut TlbEntry,
    /// Bytes of the table less those of one entry: the offset of an entry in bytes is `(lin ^ lin >> HASH_SHIFT) >>
    /// ENTRY_SHIFT & mask`.
    pub mask: u64,
    /// What code cached by linear address is good for, never 0, by the address's bit 63: `exec_generation`, and from
    /// bit 0 the key given to `set_code_key`.
    pub code_tags: [u64; 2],
    /// What the tags of [`Place`]s that are good now have in bits 5 to 11; never 0.
    pub place_key: u64,
}

/// A translation that some instruction of generated code has used last: cheaper to ask than the table, for who uses one
/// page again and again.
///
/// Code that has found an entry of the table writes its place itself, with the entry's tag and the
/// [`TlbView::place_key`] in its low bits, and adds that key to the address that it compares. So an access is found
/// only as long as the table would allow it: the key changes with every flush, and each mode has its own. As no more
/// than bits 0 to 4 of the address are left beside the key, what is not aligned to its length, and may lie on two
/// pages, is never found.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Place {
    /// The page's linear address, plus the key.
    pub tag: u64,
    /// Host address minus linear address.
    pub addend: u64,
}

impl Place {
    const NONE: Self = Self { tag: 0, addend: 0 };
}

/// Number of [`Place`]s.
pub const PLACES: usize = 1024;
/// Places from here on are those of writes, which need the table's tag for writes.
pub const WRITE_PLACES: usize = PLACES / 4 * 3;

/// Where the key's mode stands, and by what it changes with a flush.
const KEY_MODE: u32 = 5;
const KEY_STEP: u64 = 4 << KEY_MODE;

/// On whose behalf memory is accessed.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// CPL 3.
    User = 0,
    /// CPL 0-2, or an implicit supervisor access, with user pages forbidden if CR4.SMAP (EFLAGS.AC clear).
    Super = 1,
    /// CPL 0-2 with EFLAGS.AC set or without SMAP.
    SuperAc = 2,
}

/// An address space with tables of its own.
struct Space {
    /// The PCID; `None` while the space was never used.
    pcid: Option<u16>,
    /// When it was last current, in switches.
    used: u64,
    /// What `exec_generation` says of it while it is current.
    exec_generation: u64,
    user: Table,
    super_ac: Table,
}

impl Space {
    fn flush_non_global(&mut self) {
        self.user.flush_non_global();
        self.super_ac.flush_non_global();
    }

    fn flush_page(&mut self, lin: u64, which: Which) {
        self.user.flush_page(lin, which);
        self.super_ac.flush_page(lin, which);
    }
}

/// The pages that were entered as executable since the last `flush_all`, hashed: flushing any other page
/// cannot have taken away a translation of code, and needs no new `exec_generation`.
struct ExecFilter {
    pages: BitBox<usize, Lsb0>,
    large: LargeSpans,
}

impl ExecFilter {
    fn new() -> Self {
        Self { pages: bitvec::bitbox![usize, Lsb0; 0; EXEC_FILTER], large: LargeSpans::EMPTY }
    }

    /// The bit of a page. The pages of an aligned group of up to `EXEC_FILTER` have bits in an aligned group
    /// of that size.
    #[inline]
    fn bit(lin: u64) -> usize {
        let page = lin >> 12;
        (page ^ (page >> 15) ^ (page >> 30)) as usize % EXEC_FILTER
    }

    fn add(&mut self, lin: u64, page_size: u64) {
        self.pages.set(Self::bit(lin), true);
        self.large.add(lin & !PAGE_MASK, page_size);
    }

    /// Whether code may have been entered out of the guest's page of `lin`.
    fn may_hold(&self, lin: u64) -> bool {
        self.pages[Self::bit(lin)]
            || self.large.around(lin & !PAGE_MASK).any(|(_, size, base)| {
                let group = ((size / PAGE_SIZE) as usize).min(EXEC_FILTER);
                let first = Self::bit(base) & !(group - 1);
                self.pages[first..first + group].any()
            })
    }

    fn clear(&mut self) {
        self.pages.fill(false);
        self.large = LargeSpans::EMPTY;
    }
}

/// A vCPU's TLB.
#[repr(C)]
pub struct Tlb {
    /// The current table; first, so that its offset is known.
    pub view: TlbView,
    /// See [`Place`].
    pub places: [Place; PLACES],
    mode: Mode,
    /// Index of the current space.
    current: usize,
    spaces: [Space; SPACES],
    supervisor: Table,
    switches: u64,
    /// The last number given as an `exec_generation`.
    last_generation: u64,
    /// The `exec_generation` of the upper half in all spaces, as long as all that was executable there is global.
    upper_generation: u64,
    /// Since the last `flush_all` a page of the upper half was executable that is not global, or may not be.
    upper_private: bool,
    exec_filter: ExecFilter,
    code_key: u8,
}

// SAFETY: `view` points into one of the tables, which the `Tlb` owns and which are themselves `Send`.
unsafe impl Send for Tlb {}

impl Default for Tlb {
    fn default() -> Self {
        Self::new()
    }
}

impl Tlb {
    /// An empty TLB; current are `Mode::Super` and PCID 0.
    pub fn new() -> Self {
        let supervisor = Table::new();
        let (table, mask) = supervisor.view();
        let spaces = std::array::from_fn(|i| Space {
            pcid: (i == 0).then_some(0),
            used: 0,
            exec_generation: i as u64 + 1,
            user: Table::new(),
            super_ac: Table::new(),
        });
        Self {
            view: TlbView {
                table,
                mask,
                code_tags: [1 << 8, (SPACES as u64 + 1) << 8],
                place_key: KEY_STEP | (Mode::Super as u64) << KEY_MODE,
            },
            places: [Place::NONE; PLACES],
            mode: Mode::Super,
            current: 0,
            spaces,
            supervisor,
            switches: 0,
            last_generation: SPACES as u64 + 1,
            upper_generation: SPACES as u64 + 1,
            upper_private: false,
            exec_filter: ExecFilter::new(),
            code_key: 0,
        }
    }

    /// The entry that `lin` maps to in the current table.
    #[inline(always)]
    pub fn entry(&self, lin: u64) -> &TlbEntry {
        // SAFETY: `view` always names a table of `mask + 1` entries that `self` owns: `select_table` sets it
        // after each operation that can replace a table or change which one is current. They are written only
        // through `&mut self`.
        unsafe { &*self.view.table.byte_add(((fold(lin) >> ENTRY_SHIFT) & self.view.mask) as usize) }
    }

    #[inline(always)]
    fn table(&self, mode: Mode) -> &Table {
        match mode {
            Mode::User => &self.spaces[self.current].user,
            Mode::Super => &self.supervisor,
            Mode::SuperAc => &self.spaces[self.current].super_ac,
        }
    }

    fn table_mut(&mut self, mode: Mode) -> &mut Table {
        match mode {
            Mode::User => &mut self.spaces[self.current].user,
            Mode::Super => &mut self.supervisor,
            Mode::SuperAc => &mut self.spaces[self.current].super_ac,
        }
    }

    /// Puts the current table in `view`.
    #[inline(always)]
    fn select_table(&mut self) {
        let (table, mask) = self.table(self.mode).view();
        let place_key = self.view.place_key & !(KEY_STEP - 1) | (self.mode as u64) << KEY_MODE;
        self.view = TlbView { table, mask, code_tags: self.code_tags(), place_key };
    }

    /// What places hold is no longer good.
    #[inline]
    fn forget_places(&mut self) {
        self.view.place_key += KEY_STEP;
        if self.view.place_key > PAGE_MASK {
            self.places.fill(Place::NONE);
            self.view.place_key = KEY_STEP | (self.mode as u64) << KEY_MODE;
        }
    }

    #[inline(always)]
    fn code_tags(&self) -> [u64; 2] {
        [0, 1 << 63].map(|lin| self.exec_generation(lin) << 8 | u64::from(self.code_key))
    }

    /// Sets the mode bits that code cached by linear address is made for: they become part of `TlbView::code_tags`.
    #[inline]
    pub fn set_code_key(&mut self, key: u8) {
        self.code_key = key;
        self.view.code_tags = self.code_tags();
    }

    /// What code cached for `lin` is good for: see `TlbView::code_tags`.
    #[inline(always)]
    pub fn code_tag(&self, lin: u64) -> u64 {
        self.view.code_tags[(lin >> 63) as usize]
    }

    /// Makes `mode`'s table of the current address space the current one.
    #[inline]
    pub fn select(&mut self, mode: Mode) {
        self.mode = mode;
        self.select_table();
    }

    /// The current mode.
    #[inline]
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// The PCID of the current address space.
    pub fn pcid(&self) -> u16 {
        self.spaces[self.current].pcid.unwrap_or(0)
    }

    /// Changes to the address space of `pcid`; unless `keep`, its non-global translations are flushed.
    pub fn switch_space(&mut self, pcid: u16, keep: bool) {
        let old = self.current;
        let found = match self.spaces[old].pcid == Some(pcid) {
            true => Some(old),
            false => self.spaces.iter().position(|s| s.pcid == Some(pcid)),
        };
        if found == Some(old) && keep {
            return;
        }
        self.forget_places();
        self.supervisor.flush_non_global();
        let new = match found {
            Some(i) => i,
            // One that was never used, or the one left the longest ago.
            None => (0..SPACES)
                .filter(|&i| i != old)
                .min_by_key(|&i| (self.spaces[i].pcid.is_some(), self.spaces[i].used))
                .unwrap_or(old),
        };
        self.switches += 1;
        self.current = new;
        let space = &mut self.spaces[new];
        space.used = self.switches;
        if found.is_none() || !keep {
            space.pcid = Some(pcid);
            space.flush_non_global();
            self.last_generation += 1;
            space.exec_generation = self.last_generation;
        }
        self.select_table();
    }

    /// Fills an entry of `mode`'s table in the current space. `entry` holds finished tags; `global` survives
    /// `switch_space`; `page_size` is that of the guest's page (for INVLPG of large pages).
    pub fn insert(&mut self, mode: Mode, lin: u64, entry: TlbEntry, global: bool, page_size: u64) {
        if entry.exec & PAGE_MASK == 0 {
            self.exec_filter.add(lin, page_size);
            self.upper_private |= !global && lin >> 63 != 0;
        }
        let (old, page) = (self.entry_of(mode, lin), lin & !PAGE_MASK);
        let loses = |was: u64, is: u64| was == page && (is != page || old.addend != entry.addend);
        if loses(old.read, entry.read) || loses(old.write, entry.write) {
            // It gives less than what it replaces, or something else.
            self.forget_places();
        }
        self.table_mut(mode).insert(lin, entry, global, page_size);
        self.select_table();
    }

    /// The entry of `mode`'s table (for accesses on behalf of another mode than the current one).
    #[inline]
    pub fn entry_of(&self, mode: Mode, lin: u64) -> TlbEntry {
        self.table(mode).entry(lin)
    }

    /// Flushes everything, global or not, in all spaces.
    pub fn flush_all(&mut self) {
        self.forget_places();
        self.supervisor.flush_all();
        for space in &mut self.spaces {
            space.user.flush_all();
            space.super_ac.flush_all();
        }
        self.exec_filter.clear();
        self.upper_private = false;
        self.new_upper_generation();
        self.new_exec_generations();
    }

    /// Flushes what is not global, in all spaces.
    pub fn flush_non_global(&mut self) {
        self.forget_places();
        self.supervisor.flush_non_global();
        for space in &mut self.spaces {
            space.flush_non_global();
        }
        self.new_exec_generations();
    }

    /// INVLPG: flushes the page of `lin` in the current space, and global ones in all.
    pub fn flush_page(&mut self, lin: u64) {
        self.forget_places();
        self.supervisor.flush_page(lin, Which::All);
        for (i, space) in self.spaces.iter_mut().enumerate() {
            space.flush_page(lin, if i == self.current { Which::All } else { Which::Global });
        }
        if self.exec_filter.may_hold(lin) {
            if lin >> 63 != 0 {
                self.new_upper_generation();
            }
            if lin >> 63 == 0 || self.upper_private {
                self.new_exec_generations();
            }
        }
    }

    /// INVPCID type 0: flushes the non-global page of `lin` in the space of `pcid`.
    pub fn flush_page_pcid(&mut self, pcid: u16, lin: u64) {
        self.forget_places();
        let Some(i) = self.spaces.iter().position(|s| s.pcid == Some(pcid)) else { return };
        self.spaces[i].flush_page(lin, Which::NonGlobal);
        if i == self.current {
            self.supervisor.flush_page(lin, Which::NonGlobal);
        }
        if (lin >> 63 == 0 || self.upper_private) && self.exec_filter.may_hold(lin) {
            self.new_exec_generation(i);
        }
    }

    /// INVPCID type 1: flushes what is not global in the space of `pcid`.
    pub fn flush_pcid(&mut self, pcid: u16) {
        self.forget_places();
        let Some(i) = self.spaces.iter().position(|s| s.pcid == Some(pcid)) else { return };
        self.spaces[i].flush_non_global();
        if i == self.current {
            self.supervisor.flush_non_global();
        }
        self.new_exec_generation(i);
    }

    /// Takes away the permission to write fast from every entry that maps the 4 KiB host page at `host` (it
    /// now holds code, or is clean).
    pub fn protect_host_page(&mut self, host: *const u8) {
        self.forget_places();
        let host = host.addr() as u64;
        self.supervisor.protect(host);
        for space in self.spaces.iter_mut().filter(|s| s.pcid.is_some()) {
            space.user.protect(host);
            space.super_ac.protect(host);
        }
    }

    /// Takes note that code on the guest's page of `lin` is cached by linear address though it has no exec
    /// entry (it lies on a page that a TLB cannot map), so that flushing the page changes `exec_generation`.
    pub fn note_exec(&mut self, lin: u64, page_size: u64) {
        self.exec_filter.add(lin, page_size);
        if lin >> 63 != 0 && !self.upper_private {
            self.upper_private = true;
            self.view.code_tags = self.code_tags();
        }
    }

    /// Changes with every flush that may have removed an exec translation of the current space in the half that
    /// `lin` is in, and with the space, unless the half is the upper one and no page was executable there that is
    /// not global (as it is with kernels that have their own pages there); caches keyed by linear address (and mode)
    /// compare it. Compare for equality only: when a space becomes current again and nothing of it was flushed
    /// meanwhile, so does its number, and what was cached under it is right again. No number is used twice. This goes
    /// for pages that were entered with an exec tag or named to `note_exec`.
    #[inline]
    pub fn exec_generation(&self, lin: u64) -> u64 {
        if lin >> 63 != 0 && !self.upper_private {
            return self.upper_generation;
        }
        self.spaces[self.current].exec_generation
    }

    fn new_upper_generation(&mut self) {
        self.last_generation += 1;
        self.upper_generation = self.last_generation;
        self.view.code_tags = self.code_tags();
    }

    fn new_exec_generation(&mut self, space: usize) {
        self.last_generation += 1;
        self.spaces[space].exec_generation = self.last_generation;
        self.view.code_tags = self.code_tags();
    }

    fn new_exec_generations(&mut self) {
        for i in 0..SPACES {
            self.new_exec_generation(i);
        }
    }
}
