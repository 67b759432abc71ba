//! Page tables in all four formats (SDM volume 3A, chapter 4): the first 4 MiB mapped to themselves with 4 KiB pages.
use crate::layout::{RAM_END, TABLES};

/// A paging format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// 32-bit paging.
    Legacy,
    /// PAE paging.
    Pae,
    /// 4-level paging.
    Level4,
    /// 5-level paging.
    Level5,
}

/// Flags of paging-structure entries.
#[allow(missing_docs)]
pub mod pte {
    pub const P: u64 = 1;
    pub const W: u64 = 2;
    pub const U: u64 = 4;
    pub const A: u64 = 1 << 5;
    pub const D: u64 = 1 << 6;
    pub const PS: u64 = 1 << 7;
    pub const G: u64 = 1 << 8;
    pub const NX: u64 = 1 << 63;
    /// Present, writable, user.
    pub const ALL: u64 = P | W | U;
}

/// Tables being built. They start at [`TABLES`]: the root first, one table for each level, two of the lowest where
/// entries are 8 bytes wide.
#[derive(Clone, Debug)]
pub struct PageTables {
    /// The format.
    pub format: Format,
    bytes: Vec<u8>,
}

impl PageTables {
    /// Tables that map the first 4 MiB to themselves, present and writable; for level 3 too if `user`.
    pub fn new(format: Format, user: bool) -> Self {
        let levels = match format {
            Format::Legacy => 2,
            Format::Pae => 3,
            Format::Level4 => 4,
            Format::Level5 => 5,
        };
        let mut t = Self { format, bytes: vec![0; (levels + 3) * 0x1000] };
        let leaf = if user { pte::ALL } else { pte::P | pte::W };
        for level in (2..=levels as u32).rev() {
            let flags = if format == Format::Pae && level == 3 { pte::P } else { pte::ALL };
            t.set(level, 0, u64::from(t.table(level - 1)) | flags);
        }
        if format != Format::Legacy {
            // The lowest level has a second table, for 2-4 MiB.
            t.set(2, 0x20_0000, u64::from(t.table(1) + 0x1000) | pte::ALL);
        }
        for page in (0..RAM_END).step_by(0x1000) {
            t.set(1, page, u64::from(page) | leaf);
        }
        t
    }

    /// Levels of tables.
    pub fn levels(&self) -> u32 {
        self.bytes.len() as u32 / 0x1000 - 3
    }

    /// Bytes of an entry.
    pub fn entry_size(&self) -> u32 {
        if self.format == Format::Legacy { 4 } else { 8 }
    }

    /// What CR3 must hold.
    pub fn root(&self) -> u32 {
        TABLES
    }

    /// Physical address of the (first) table at `level`; 1 is the lowest.
    pub fn table(&self, level: u32) -> u32 {
        TABLES + (self.levels() - level) * 0x1000
    }

    /// Physical address of the entry at `level` for a linear address in the first 4 MiB.
    pub fn entry(&self, level: u32, lin: u32) -> u32 {
        let n = if self.format == Format::Legacy { 10 } else { 9 };
        let shift = 12 + n * (level - 1);
        let index = if shift >= 32 { 0 } else { lin >> shift & ((1 << n) - 1) };
        let second = if level == 1 && self.format != Format::Legacy { lin >> 21 & 1 } else { 0 };
        self.table(level) + second * 0x1000 + index * self.entry_size()
    }

    /// Writes an entry.
    pub fn set(&mut self, level: u32, lin: u32, value: u64) {
        let at = (self.entry(level, lin) - TABLES) as usize;
        let n = self.entry_size() as usize;
        self.bytes[at..at + n].copy_from_slice(&value.to_le_bytes()[..n]);
    }

    /// Reads an entry.
    pub fn get(&self, level: u32, lin: u32) -> u64 {
        let at = (self.entry(level, lin) - TABLES) as usize;
        let n = self.entry_size() as usize;
        let mut b = [0; 8];
        b[..n].copy_from_slice(&self.bytes[at..at + n]);
        u64::from_le_bytes(b)
    }

    /// Sets the user bit of the pages `from .. to` as given.
    pub fn user(&mut self, from: u32, to: u32, on: bool) {
        for page in (from..to).step_by(0x1000) {
            let e = self.get(1, page);
            self.set(1, page, if on { e | pte::U } else { e & !pte::U });
        }
    }

    /// The tables' bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}
