//! The POST memory manager, by which option ROMs have memory while they are started: a structure in the ROM names a far
//! entry, called with its arguments on the stack. When booting begins the structure is gone, and what was allocated is
//! anybody's.
//!
//! ROMs are started in big real mode, in which they reach such memory (3.2).
//!
//! Source: POST Memory Manager Specification 1.01 (1997).
use super::{Bios, Outcome, Platform, Regs, SEGMENT, linear, rom};
use serde::{Deserialize, Serialize};
use std::ops::Range;

/// Memory below 1 MiB that nobody has before a system is booted: above the boot sector, below option ROMs' own ideas.
const CONVENTIONAL: Range<u32> = 0x2_0000..0x7_0000;
/// Most of the memory above 1 MiB that is given out.
const EXTENDED: u32 = 32 << 20;
/// Above 1 MiB nothing is given out below this, which ROMs may use without asking.
const FIRST: u32 = 2 << 20;
/// Blocks at a time: a ROM that loops gets no more.
const MOST: usize = 256;
/// The handle of a block without a name.
const ANONYMOUS: u32 = u32::MAX;

/// A block that was given out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Block {
    first: u32,
    len: u32,
    handle: u32,
}

impl Bios {
    /// A far call of the entry: function and arguments behind the return address. DX:AX is the result.
    pub(super) fn pmm(&mut self, r: &mut Regs, pc: &mut dyn Platform) -> Outcome {
        let mut word = |n: u16| pc.u16(linear(r.ss, (r.esp as u16).wrapping_add(4 + 2 * n)));
        let function = word(0);
        let first = u32::from(word(1)) | u32::from(word(2)) << 16;
        let second = u32::from(word(3)) | u32::from(word(4)) << 16;
        let flags = word(5);
        // It is kept while nobody is to find it.
        let starting = self.boot.pmm.is_empty();
        let result = match function {
            _ if !starting => ANONYMOUS,
            0 => self.allocate(first, second, flags),
            1 => {
                let named = |b: &&Block| b.handle == first && first != ANONYMOUS;
                self.boot.blocks.iter().find(named).map_or(0, |b| b.first)
            }
            2 => match self.boot.blocks.iter().position(|b| b.first == first) {
                Some(n) => {
                    self.boot.blocks.remove(n);
                    0
                }
                None => 1,
            },
            _ => ANONYMOUS,
        };
        r.set_ax(result as u16);
        r.set_dx((result >> 16) as u16);
        if starting {
            // What was given out is to be reached.
            pc.set_big_real(true);
        }
        Outcome::Return
    }

    /// `paragraphs` of memory below 1 MiB (flag 0), above it (flag 1) or anywhere, aligned by its size if that is asked
    /// for (flag 2): where; 0 if there is none. No paragraphs: how many there are in one piece.
    fn allocate(&mut self, paragraphs: u32, handle: u32, flags: u16) -> u32 {
        let end = (1 << 20) + self.upper.min(u64::from(u32::MAX) - (1 << 20)) as u32;
        let extended = end.saturating_sub(EXTENDED).max(FIRST.min(end))..end;
        let zones: &[Range<u32>] = match flags & 3 {
            1 => &[CONVENTIONAL],
            2 => &[extended],
            3 => &[CONVENTIONAL, extended],
            _ => return 0,
        };
        if paragraphs == 0 {
            return zones
                .iter()
                .flat_map(|z| self.gaps(z))
                .map(|g| (g.end - g.start) / 16)
                .max()
                .unwrap_or(0);
        }
        let Some(len) = paragraphs.checked_mul(16) else { return 0 };
        // The lowest bit that is set in the length.
        let align = if flags & 4 != 0 { len & len.wrapping_neg() } else { 16 };
        let fits = |gap: Range<u32>| {
            let first = gap.start.checked_next_multiple_of(align)?;
            (first.checked_add(len)? <= gap.end).then_some(first)
        };
        let taken = self.boot.blocks.iter().any(|b| b.handle == handle && handle != ANONYMOUS);
        let found = zones.iter().flat_map(|z| self.gaps(z)).find_map(fits);
        match found.filter(|_| !taken && self.boot.blocks.len() < MOST) {
            Some(first) => {
                self.boot.blocks.push(Block { first, len, handle });
                first
            }
            None => 0,
        }
    }

    /// What is free of a zone, from below.
    fn gaps(&self, zone: &Range<u32>) -> Vec<Range<u32>> {
        let mut blocks: Vec<&Block> = self.boot.blocks.iter().filter(|b| zone.contains(&b.first)).collect();
        blocks.sort_by_key(|b| b.first);
        let mut from = zone.start;
        let mut gaps = Vec::new();
        for b in blocks {
            gaps.push(from..b.first.max(from));
            from = from.max(b.first.saturating_add(b.len));
        }
        gaps.push(from..zone.end.max(from));
        gaps
    }

    /// Booting begins: there is no memory manager any more.
    pub(super) fn end_pmm(&mut self, pc: &mut dyn Platform) {
        self.boot.blocks.clear();
        pc.set_big_real(false);
        let mut structure = [0; 16];
        pc.read(linear(SEGMENT, rom::PMM), &mut structure);
        if structure != [0; 16] {
            self.boot.pmm = structure.to_vec();
            pc.write(linear(SEGMENT, rom::PMM), &[0; 16]);
        }
    }

    /// An option ROM is started that was not before: there is a memory manager for it.
    pub(super) fn begin_pmm(&mut self, pc: &mut dyn Platform) {
        pc.write(linear(SEGMENT, rom::PMM), &std::mem::take(&mut self.boot.pmm));
    }
}
