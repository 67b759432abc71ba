//! The regions of memory of a command (AHCI 1.3.1, 4.2.3.3): where in them a transfer is.
use crate::dma::{Dma, DmaError};
use serde::{Deserialize, Serialize};
use std::ops::Range;

/// Why a transfer does not go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The table is over.
    Short,
    /// There is no memory.
    Bus,
}

/// A place in the regions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cursor {
    /// Where the table is, and how many entries it has.
    table: u64,
    entries: u16,
    /// The entry, and how much of it is done.
    index: u32,
    offset: u32,
}

impl Cursor {
    /// The beginning of a table.
    pub fn new(table: u64, entries: u16) -> Self {
        Self { table, entries, index: 0, offset: 0 }
    }

    /// Takes bytes to memory; whether a region ends that interrupts.
    ///
    /// # Errors
    /// Not all of them can be: some may be.
    pub fn write(&mut self, dma: &Dma, bytes: &[u8]) -> Result<bool, Fault> {
        self.walk(dma, bytes.len(), |at, range| dma.write(at, &bytes[range]))
    }

    /// Fills bytes from memory; whether a region ends that interrupts.
    ///
    /// # Errors
    /// Not all of them can be.
    pub fn read(&mut self, dma: &Dma, bytes: &mut [u8]) -> Result<bool, Fault> {
        self.walk(dma, bytes.len(), |at, range| dma.read(at, &mut bytes[range]))
    }

    fn walk(
        &mut self,
        dma: &Dma,
        len: usize,
        mut copy: impl FnMut(u64, Range<usize>) -> Result<(), DmaError>,
    ) -> Result<bool, Fault> {
        const ENTRY: u64 = 16;
        const INTERRUPT: u32 = 1 << 31;
        let (mut done, mut interrupt) = (0, false);
        while done < len {
            if self.index >= self.entries.into() {
                return Err(Fault::Short);
            }
            let mut entry = [0; ENTRY as usize];
            let at = self.table.wrapping_add(ENTRY * u64::from(self.index));
            dma.read(at, &mut entry).map_err(|_| Fault::Bus)?;
            let [low, high, _, word] = [0, 4, 8, 12].map(|n| le32(&entry, n));
            // A number of bytes less 1, which is odd; and an even address.
            let base = (u64::from(high) << 32 | u64::from(low)) & !1;
            let size = (word & 0x3f_ffff | 1) + 1;
            let n = (size.saturating_sub(self.offset) as usize).min(len - done);
            copy(base.wrapping_add(self.offset.into()), done..done + n).map_err(|_| Fault::Bus)?;
            done += n;
            self.offset += n as u32;
            if self.offset >= size {
                (self.index, self.offset) = (self.index + 1, 0);
                interrupt |= word & INTERRUPT != 0;
            }
        }
        Ok(interrupt)
    }
}

/// The 32 bits at `at`; 0 beyond the end.
pub fn le32(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..).and_then(|rest| rest.first_chunk()).map_or(0, |b| u32::from_le_bytes(*b))
}
