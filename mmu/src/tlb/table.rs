//! One direct-mapped table of a TLB: entries for generated code, and beside them what flushing needs to know.
//!
//! Flushes cost what was filled, not the size of the table: slots are listed when they are filled, non-global
//! and global ones apart. An entry out of a large page remembers the page's size; INVLPG then looks at the
//! slots that such a page can have filled. For `protect` a compact array holds the host page behind each
//! slot, so that a search reads 4 bytes a slot in a loop that vectorises.

use super::{NEVER, TlbEntry, fold};
use crate::{PAGE_MASK, PAGE_SIZE};

/// Entries of a new table.
pub(super) const MIN_ENTRIES: usize = 1024;
/// Entries that a table grows to at most.
pub(super) const MAX_ENTRIES: usize = 16384;

/// An entry that matches nothing.
pub(super) const INVALID: TlbEntry = TlbEntry { read: NEVER, write: NEVER, exec: NEVER, addend: 0 };

/// The slot holds a translation of the page that the other bits name.
const VALID: u64 = 1 << 0;
/// The translation is global.
const GLOBAL: u64 = 1 << 1;
/// The slot is on the list of non-global fillings.
const LISTED: u64 = 1 << 2;
/// The slot is on the list of global fillings.
const LISTED_GLOBAL: u64 = 1 << 3;
/// Where the class of the guest's page size stands: 0 for 4 KiB, else 1 + an index of `LARGE`.
const CLASS_SHIFT: u32 = 4;
const CLASS: u64 = 3 << CLASS_SHIFT;

/// The large page sizes.
const LARGE: [u64; 3] = [2 << 20, 4 << 20, 1 << 30];

/// Which translations of a page a flush takes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Which {
    All,
    NonGlobal,
    Global,
}

impl Which {
    #[inline]
    fn takes(self, meta: u64) -> bool {
        match self {
            Self::All => meta & VALID != 0,
            Self::NonGlobal => meta & (VALID | GLOBAL) == VALID,
            Self::Global => meta & (VALID | GLOBAL) == VALID | GLOBAL,
        }
    }
}

/// The class of a guest's page size: 0 for 4 KiB, else 1 + an index of `LARGE`.
fn class_of(page_size: u64) -> u64 {
    match page_size {
        ..=PAGE_SIZE => 0,
        _ => LARGE.iter().position(|&size| page_size <= size).unwrap_or(LARGE.len() - 1) as u64 + 1,
    }
}

/// For each large page size the lowest and the highest 4 KiB page that was filled out of a page of that size.
#[derive(Clone)]
pub(super) struct LargeSpans([(u64, u64); LARGE.len()]);

impl LargeSpans {
    /// Nothing was filled.
    pub const EMPTY: Self = Self([(u64::MAX, 0); LARGE.len()]);

    /// Takes note of a page.
    pub fn add(&mut self, page: u64, page_size: u64) {
        self.add_class(page, class_of(page_size));
    }

    fn add_class(&mut self, page: u64, class: u64) {
        if let Some((min, max)) = (class as usize).checked_sub(1).and_then(|i| self.0.get_mut(i)) {
            *min = page.min(*min);
            *max = page.max(*max);
        }
    }

    /// The large pages (class, size, base) around `page` that something may have been filled out of.
    #[inline]
    pub fn around(&self, page: u64) -> impl Iterator<Item = (u64, u64, u64)> + use<> {
        let spans = self.0;
        (0..LARGE.len()).filter_map(move |i| {
            let ((min, max), size) = (spans[i], LARGE[i]);
            let base = page & !(size - 1);
            (min <= (base | (size - 1)) && base <= max).then_some((i as u64 + 1, size, base))
        })
    }
}

/// A table.
pub(super) struct Table {
    /// `mask + 1` entries that this table owns. A raw pointer, as generated code reads them while the table
    /// is borrowed.
    entries: *mut TlbEntry,
    mask: u64,
    /// For each slot the page's linear address and the flags above.
    meta: Vec<u64>,
    /// For each slot the low bits of the host page number of an entry that was filled with a fast write tag.
    /// May be stale.
    hosts: Vec<u32>,
    listed: Vec<u32>,
    listed_global: Vec<u32>,
    large: LargeSpans,
    /// Valid entries that others have displaced since the last flush or growth.
    displaced: usize,
}

// SAFETY: the entries are owned by the table and reached only through it, or through the `Tlb` that owns it.
unsafe impl Send for Table {}

impl Table {
    pub fn new() -> Self {
        Self::with_entries(MIN_ENTRIES)
    }

    fn with_entries(count: usize) -> Self {
        debug_assert!(count.is_power_of_two());
        Self {
            entries: Box::into_raw(vec![INVALID; count].into_boxed_slice()).cast(),
            mask: count as u64 - 1,
            meta: vec![0; count],
            hosts: vec![0; count],
            listed: Vec::new(),
            listed_global: Vec::new(),
            large: LargeSpans::EMPTY,
            displaced: 0,
        }
    }

    /// What generated code sees of the table.
    #[inline(always)]
    pub fn view(&self) -> (*mut TlbEntry, u64) {
        (self.entries, self.mask * size_of::<TlbEntry>() as u64)
    }

    /// Number of slots.
    pub fn len(&self) -> usize {
        self.meta.len()
    }

    #[inline(always)]
    fn slot(&self, lin: u64) -> usize {
        ((fold(lin) >> 12) & self.mask) as usize
    }

    #[inline(always)]
    fn get(&self, slot: usize) -> TlbEntry {
        assert!(slot < self.meta.len());
        // SAFETY: there are as many entries as metas, the table owns them, and no reference to one outlives a
        // borrow of the table.
        unsafe { self.entries.add(slot).read() }
    }

    #[inline(always)]
    fn set(&mut self, slot: usize, entry: TlbEntry) {
        assert!(slot < self.meta.len());
        // SAFETY: as in `get`; `&mut self` excludes other users.
        unsafe { self.entries.add(slot).write(entry) }
    }

    /// The entry of the slot that `lin` maps to.
    #[inline]
    pub fn entry(&self, lin: u64) -> TlbEntry {
        self.get(self.slot(lin))
    }

    /// Fills a slot, and makes the table larger if too much was displaced.
    pub fn insert(&mut self, lin: u64, entry: TlbEntry, global: bool, page_size: u64) {
        let page = lin & !PAGE_MASK;
        let mut slot = self.slot(lin);
        let old = self.meta[slot];
        if old & VALID != 0 && old & !PAGE_MASK != page {
            self.displaced += 1;
            if self.displaced > self.len() / 2 && self.len() < MAX_ENTRIES {
                self.grow();
                slot = self.slot(lin);
            }
        }
        let flags = VALID | if global { GLOBAL } else { 0 } | class_of(page_size) << CLASS_SHIFT;
        self.fill(slot, page | flags, entry);
    }

    fn fill(&mut self, slot: usize, meta: u64, entry: TlbEntry) {
        let mut lists = self.meta[slot] & (LISTED | LISTED_GLOBAL);
        let (bit, list) = match meta & GLOBAL {
            0 => (LISTED, &mut self.listed),
            _ => (LISTED_GLOBAL, &mut self.listed_global),
        };
        if lists & bit == 0 {
            lists |= bit;
            list.push(slot as u32);
        }
        let page = meta & !PAGE_MASK;
        self.large.add_class(page, (meta & CLASS) >> CLASS_SHIFT);
        self.meta[slot] = meta | lists;
        self.hosts[slot] = match entry.write & PAGE_MASK {
            0 => host_key(page.wrapping_add(entry.addend)),
            _ => 0,
        };
        self.set(slot, entry);
    }

    /// Doubles the table; entries keep their translations.
    fn grow(&mut self) {
        let mut new = Self::with_entries(self.len() * 2);
        for (slot, &meta) in self.meta.iter().enumerate() {
            if meta & VALID != 0 {
                new.fill(new.slot(meta), meta & !(LISTED | LISTED_GLOBAL), self.get(slot));
            }
        }
        *self = new;
    }

    /// Makes a slot match nothing; it stays on the lists that it is on.
    #[inline]
    fn invalidate(&mut self, slot: usize) {
        self.meta[slot] &= LISTED | LISTED_GLOBAL;
        self.set(slot, INVALID);
    }

    /// Flushes what is not global.
    pub fn flush_non_global(&mut self) {
        let mut listed = std::mem::take(&mut self.listed);
        for &slot in &listed {
            let slot = slot as usize;
            self.meta[slot] &= !LISTED;
            if self.meta[slot] & GLOBAL == 0 {
                self.invalidate(slot);
            }
        }
        listed.clear();
        self.listed = listed;
        self.displaced = 0;
        if self.listed_global.is_empty() {
            self.large = LargeSpans::EMPTY;
        }
    }

    /// Flushes everything.
    pub fn flush_all(&mut self) {
        self.flush_non_global();
        let mut listed = std::mem::take(&mut self.listed_global);
        for &slot in &listed {
            self.meta[slot as usize] = 0;
            self.set(slot as usize, INVALID);
        }
        listed.clear();
        self.listed_global = listed;
        self.large = LargeSpans::EMPTY;
    }

    /// Flushes the guest's page that `lin` is on, with all entries filled out of it if it is large.
    pub fn flush_page(&mut self, lin: u64, which: Which) {
        if which == Which::Global && self.listed_global.is_empty() {
            return;
        }
        let (page, slot) = (lin & !PAGE_MASK, self.slot(lin));
        let meta = self.meta[slot];
        if meta & !PAGE_MASK == page && which.takes(meta) {
            self.invalidate(slot);
        }
        for (class, size, base) in self.large.around(page) {
            self.flush_large(base, size, class, which);
        }
    }

    /// Flushes all entries filled out of the large page of `size` bytes at `base`. Its pages fill an aligned
    /// group of slots: page and table are powers of two, the table is no smaller than a 4 MiB page, and what is folded
    /// into a page's slot is the same for all of a page of up to 4 MiB; larger ones may be anywhere.
    #[cold]
    fn flush_large(&mut self, base: u64, size: u64, class: u64, which: Which) {
        let group = ((size / PAGE_SIZE) as usize).min(self.len());
        let first = if size > 4 << 20 { 0 } else { self.slot(base) & !(group - 1) };
        let end = if size > 4 << 20 { self.len() } else { first + group };
        for slot in first..end {
            let meta = self.meta[slot];
            if (meta & CLASS) >> CLASS_SHIFT == class && meta & !(size - 1) == base && which.takes(meta) {
                self.invalidate(slot);
            }
        }
    }

    /// Takes fast writes away from entries that map the host page at `host`.
    pub fn protect(&mut self, host: u64) {
        let key = host_key(host);
        for start in (0..self.len()).step_by(64) {
            let chunk = &self.hosts[start..start + 64];
            // No early exit: this is the loop that vectorises.
            if !chunk.iter().fold(false, |any, &h| any | (h == key)) {
                continue;
            }
            for slot in start..start + 64 {
                let (meta, mut entry) = (self.meta[slot], self.get(slot));
                let maps = (meta & !PAGE_MASK).wrapping_add(entry.addend) & !PAGE_MASK == host & !PAGE_MASK;
                if self.hosts[slot] == key && meta & VALID != 0 && maps {
                    entry.write |= 1;
                    self.hosts[slot] = 0;
                    self.set(slot, entry);
                }
            }
        }
    }
}

impl Drop for Table {
    fn drop(&mut self) {
        let slice = std::ptr::slice_from_raw_parts_mut(self.entries, self.meta.len());
        // SAFETY: the pointer came from a box of that many entries, and nobody else frees it.
        drop(unsafe { Box::from_raw(slice) });
    }
}

/// A host page's number, cut to 32 bits: for searching, a match is verified.
#[inline]
fn host_key(host: u64) -> u32 {
    (host >> 12) as u32
}
