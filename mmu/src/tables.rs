//! Page tables as they lie in memory, for who looks at a guest from outside: nothing is changed by it, no accessed flag
//! is set, and no access is judged.
//!
//! Tables are the guest's and may be anything: they may lead back to themselves, so that five levels have 2^45 pages.
//! [`Tables::visit`] reads a table no more often than it is allowed to.
//!
//! Source: as of [`crate::walk()`].
use crate::walk::{CR0_PG, CR4_LA57, CR4_PAE, CR4_PSE, EFER_LMA};
use crate::{Gpa, PAGE_SIZE, Paging, PhysMemory};
use std::ops::ControlFlow;

/// Flags of an entry that people are shown.
pub mod flag {
    #![allow(missing_docs)]
    pub const PRESENT: u64 = 1 << 0;
    pub const WRITABLE: u64 = 1 << 1;
    pub const USER: u64 = 1 << 2;
    pub const WRITE_THROUGH: u64 = 1 << 3;
    pub const CACHE_DISABLE: u64 = 1 << 4;
    pub const ACCESSED: u64 = 1 << 5;
    pub const DIRTY: u64 = 1 << 6;
    pub const PAGE_SIZE: u64 = 1 << 7;
    pub const GLOBAL: u64 = 1 << 8;
    pub const NO_EXECUTE: u64 = 1 << 63;
}

/// A page that tables map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leaf {
    /// Its first linear address, in canonical form.
    pub linear: u64,
    /// Its first physical address.
    pub physical: Gpa,
    /// Its size.
    pub size: u64,
    /// The entry that maps it.
    pub entry: u64,
    /// Flags that are set at every level.
    pub all: u64,
}

/// The tables of a vCPU.
#[derive(Clone, Copy, Debug)]
pub struct Tables {
    paging: Paging,
    /// Tables that one has to go through; 0 without paging.
    levels: u32,
    /// Bytes of an entry.
    entry: u64,
    /// Linear address bits of a level.
    index_bits: u32,
}

/// Where a walk is.
#[derive(Clone, Copy)]
struct Node {
    table: Gpa,
    level: u32,
    linear: u64,
    all: u64,
}

impl Tables {
    /// The tables that these registers lead to.
    pub fn new(paging: Paging) -> Self {
        let (levels, entry, index_bits) = match paging {
            Paging { cr0, .. } if cr0 & CR0_PG == 0 => (0, 8, 9),
            Paging { cr4, .. } if cr4 & CR4_PAE == 0 => (2, 4, 10),
            Paging { efer, .. } if efer & EFER_LMA == 0 => (3, 8, 9),
            Paging { cr4, .. } if cr4 & CR4_LA57 == 0 => (4, 8, 9),
            _ => (5, 8, 9),
        };
        Self { paging, levels, entry, index_bits }
    }

    /// Whether paging is on.
    pub fn is_on(&self) -> bool {
        self.levels != 0
    }

    /// The physical address behind a linear one, as data are read; none if nothing is mapped there.
    pub fn translate(&self, mem: &PhysMemory, linear: u64) -> Option<Gpa> {
        if self.levels == 0 {
            return Some(linear & 0xffff_ffff & self.paging.a20_mask);
        }
        let linear = self.canonical(linear)?;
        let mut node = self.root();
        loop {
            let shift = self.shift(node.level);
            let index = linear >> shift & self.mask(node.level);
            let entry = self.read(mem, node, index);
            if !Self::leads_on(node.level, entry) {
                return None;
            }
            if self.is_page(node.level, entry) {
                let offset = linear & ((1 << shift) - 1);
                return Some((self.page(node.level, entry) | offset) & self.paging.a20_mask);
            }
            node = Node { table: entry & self.physical_mask(), level: node.level - 1, ..node };
        }
    }

    /// Calls `see` for each page that is mapped, in the order of linear addresses, until it breaks. Reads no more than
    /// `most` tables; whether all there are were read.
    pub fn visit(&self, mem: &PhysMemory, most: usize, mut see: impl FnMut(Leaf) -> ControlFlow<()>) -> bool {
        if self.levels == 0 {
            return true;
        }
        // A table's position for each level that one is in.
        let mut trail = vec![(self.root(), 0)];
        let mut read = 1;
        while let Some((node, index)) = trail.last_mut() {
            let (here, at) = (*node, *index);
            if at > self.mask(here.level) {
                trail.pop();
                continue;
            }
            *index += 1;
            let entry = self.read(mem, here, at);
            if !Self::leads_on(here.level, entry) {
                continue;
            }
            let shift = self.shift(here.level);
            let linear = here.linear | at << shift;
            // The rights of a directory pointer without levels above it are those of what it leads to.
            let own = if self.levels == 3 && here.level == 3 { u64::MAX } else { entry };
            let all = here.all & own;
            if self.is_page(here.level, entry) {
                let physical = self.page(here.level, entry) & self.paging.a20_mask;
                let leaf = Leaf { linear: self.extended(linear), physical, size: 1 << shift, entry, all };
                if see(leaf).is_break() {
                    return false;
                }
            } else if read == most {
                return false;
            } else {
                read += 1;
                let table = entry & self.physical_mask();
                trail.push((Node { table, level: here.level - 1, linear, all }, 0));
            }
        }
        true
    }

    fn root(&self) -> Node {
        let mask = match self.levels {
            2 => 0xffff_f000,
            3 => 0xffff_ffe0,
            _ => self.physical_mask(),
        };
        Node { table: self.paging.cr3 & mask, level: self.levels, linear: 0, all: u64::MAX }
    }

    /// Bits of an address of a table or a 4 KiB page.
    fn physical_mask(&self) -> u64 {
        let bits = u32::from(self.paging.phys_bits).clamp(32, 52);
        if self.entry == 4 { 0xffff_f000 } else { ((1 << bits) - 1) & !(PAGE_SIZE - 1) }
    }

    fn shift(&self, level: u32) -> u32 {
        12 + (level - 1) * self.index_bits
    }

    /// The highest index of a level's table.
    fn mask(&self, level: u32) -> u64 {
        if self.levels == 3 && level == 3 { 3 } else { (1 << self.index_bits) - 1 }
    }

    fn read(&self, mem: &PhysMemory, node: Node, index: u64) -> u64 {
        // Under PAE the processor has the directory pointers in registers.
        if self.levels == 3 && node.level == 3 {
            return self.paging.pdpte.get(index as usize).copied().unwrap_or(0);
        }
        let at = (node.table + index * self.entry) & self.paging.a20_mask;
        let mut bytes = [0; 8];
        mem.read(at, &mut bytes[..self.entry as usize]);
        u64::from_le_bytes(bytes)
    }

    /// Whether an entry is present. There are no pages at the levels above those of 1 GiB.
    fn leads_on(level: u32, entry: u64) -> bool {
        entry & flag::PRESENT != 0 && (level < 4 || entry & flag::PAGE_SIZE == 0)
    }

    fn is_page(&self, level: u32, entry: u64) -> bool {
        let large = match (self.levels, level) {
            (_, 1) => return true,
            (2, 2) => self.paging.cr4 & CR4_PSE != 0,
            (_, 2) => true,
            (4 | 5, 3) => true,
            _ => false,
        };
        large && entry & flag::PAGE_SIZE != 0
    }

    /// The first address of the page that an entry maps.
    fn page(&self, level: u32, entry: u64) -> Gpa {
        let base = entry & self.physical_mask() & !((1 << self.shift(level)) - 1);
        // PSE-36: bits 20:13 are address bits 39:32.
        if self.entry == 4 && level == 2 { base | (entry >> 13 & 0xff) << 32 } else { base }
    }

    /// A linear address that can be, without the bits that only repeat the highest one.
    fn canonical(&self, linear: u64) -> Option<u64> {
        if self.levels < 4 {
            return Some(linear & 0xffff_ffff);
        }
        let low = linear & ((1 << self.linear_bits()) - 1);
        (self.extended(low) == linear).then_some(low)
    }

    fn extended(&self, linear: u64) -> u64 {
        if self.levels < 4 {
            return linear;
        }
        let unused = 64 - self.linear_bits();
        (linear << unused).cast_signed().wrapping_shr(unused).cast_unsigned()
    }

    fn linear_bits(&self) -> u32 {
        12 + self.levels * self.index_bits
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Access, GuestRam, Mode, walk};
    use std::sync::Arc;

    fn memory() -> Arc<PhysMemory> {
        PhysMemory::new(GuestRam::new(1 << 20).unwrap(), 1 << 20)
    }

    fn paging(cr4: u64, efer: u64) -> Paging {
        Paging { cr0: CR0_PG, cr3: 0x1000, cr4, efer, phys_bits: 40, a20_mask: !0, ..Paging::default() }
    }

    fn all(tables: &Tables, mem: &PhysMemory) -> Vec<Leaf> {
        let mut seen = Vec::new();
        assert!(tables.visit(mem, 1000, |leaf| {
            seen.push(leaf);
            ControlFlow::Continue(())
        }));
        seen
    }

    /// What is seen is what the processor finds there.
    fn as_walked(p: Paging, mem: &PhysMemory, leaf: &Leaf) {
        let access = Access { write: false, fetch: false, mode: Mode::Super };
        for at in [leaf.linear, leaf.linear + leaf.size - 1] {
            let found = walk(mem, &p, at, access).unwrap();
            assert_eq!((found.gpa, found.page_size), (leaf.physical + (at - leaf.linear), leaf.size));
            assert_eq!(Tables::new(p).translate(mem, at), Some(found.gpa), "{at:#x}");
        }
    }

    #[test]
    fn tables_of_every_format_are_read_as_the_processor_does() {
        let mem = memory();
        let w = |at: u64, v: u64| mem.write(at, &v.to_le_bytes());
        // 32 bits: a page of 4 MiB above 4 GiB, and one of 4 KiB.
        mem.write(0x1004, &(0x0080_0000u32 | 3 << 13 | 0x83).to_le_bytes());
        mem.write(0x1ffc, &0x2067u32.to_le_bytes());
        mem.write(0x2ffc, &0x9107u32.to_le_bytes());
        let p = paging(CR4_PSE, 0);
        let seen = all(&Tables::new(p), &mem);
        let of = |l: &Leaf| (l.linear, l.physical, l.size, l.all & flag::USER != 0);
        let expected = [(0x40_0000, 0x3_0080_0000, 4 << 20, false), (0xffff_f000, 0x9000, 4096, true)];
        assert_eq!(seen.iter().map(of).collect::<Vec<_>>(), expected);
        seen.iter().for_each(|leaf| as_walked(p, &mem, leaf));
        assert_eq!(Tables::new(p).translate(&mem, 0x1234), None);
        // PAE: directory pointers are registers.
        w(0x3000, 0x4001);
        w(0x4000 + 8 * 511, 0x20_0000 | 0x83);
        w(0x4008, 0x5001);
        w(0x5000, 0x7001);
        let p = Paging { pdpte: [0, 0, 0, 0x4001], cr3: 0x3000, ..paging(CR4_PAE, 0) };
        let seen = all(&Tables::new(p), &mem);
        let expected = [(0xc020_0000, 0x7000, 4096, false), (0xffe0_0000, 0x20_0000, 2 << 20, false)];
        assert_eq!(seen.iter().map(of).collect::<Vec<_>>(), expected);
        seen.iter().for_each(|leaf| as_walked(p, &mem, leaf));
        // Four and five levels: the last page of all, and one of 1 GiB.
        w(0x1000, 0);
        w(0x1008, 0);
        for (cr4, levels) in [(CR4_PAE, 4), (CR4_PAE | CR4_LA57, 5)] {
            let last = |table: u64, v: u64| w(table + 8 * 511, v);
            (1..levels).for_each(|n| last(n << 12, (n + 1) << 12 | 7));
            last(levels << 12, 0x8000 | 7);
            w((levels - 2) << 12, 0xc000_0000 | 0x87);
            let p = paging(cr4, EFER_LMA);
            let seen = all(&Tables::new(p), &mem);
            assert_eq!(seen.last().map(of), Some((0u64.wrapping_sub(4096), 0x8000, 4096, true)));
            assert!(seen.iter().any(|l| (l.size, l.physical) == (1 << 30, 0xc000_0000)), "{seen:x?}");
            let end = seen.len() - 1;
            seen[..end].iter().for_each(|leaf| as_walked(p, &mem, leaf));
            assert_eq!(Tables::new(p).translate(&mem, 1 << 60), None, "not canonical");
        }
    }

    #[test]
    fn tables_that_lead_to_themselves_have_an_end() {
        let mem = memory();
        for entry in [0x1007u64, 0x1087, 0x1007 | 1 << 63, !0] {
            (0..512).for_each(|n| mem.write(0x1000 + 8 * n, &entry.to_le_bytes()));
            for (cr4, efer) in [(0, 0), (CR4_PSE, 0), (CR4_PAE, 0), (CR4_PAE, EFER_LMA), (!0, !0)] {
                let p = Paging { pdpte: [entry; 4], ..paging(cr4, efer) };
                let mut seen = 0;
                Tables::new(p).visit(&mem, 100, |_| {
                    seen += 1;
                    ControlFlow::Continue(())
                });
                assert!(seen <= 100 * 1024, "{seen}");
                Tables::new(p).translate(&mem, 0x1234_5678);
            }
        }
        // What is nowhere reads as all ones.
        let p = Paging { cr3: 0xff_ffff_f000, ..paging(CR4_PAE, EFER_LMA) };
        Tables::new(p).visit(&mem, 100, |_| ControlFlow::Continue(()));
        let p = Paging { cr3: 0xffff_f000, ..paging(0, 0) };
        assert!(!Tables::new(p).visit(&mem, 100, |_| ControlFlow::Break(())));
    }
}
