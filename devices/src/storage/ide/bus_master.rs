//! A channel's bus master: it moves a device's data to and from the places in memory that a table names.
//!
//! The table's entries (physical region descriptors) have an address, a count (0 is 64 KiB), and a bit that says that
//! it is the last one. Counts and addresses are even. A table is at most 4 KiB: one without a last entry ends there.
//!
//! A table that is too short ends the command, and no interrupt comes; one that is longer leaves the bus master
//! active; memory that is not there sets its error bit. So a guest sees what it sees of QEMU.
//!
//! Source: Intel 82371FB/82371SB (PIIX/PIIX3) data sheet (290550-002), 2.7 and 3.5; Programming Interface for Bus
//! Master IDE Controller, revision 1.0.
use crate::dma::{Dma, DmaError};
use crate::storage::ata::{Device, Direction};
use serde::{Deserialize, Serialize};

/// Bits of the command register.
const START: u8 = 1 << 0;
const TO_MEMORY: u8 = 1 << 3;
/// Bits of the status register.
const ACTIVE: u8 = 1 << 0;
const ERROR: u8 = 1 << 1;
pub(super) const INTERRUPT: u8 = 1 << 2;
const CAPABLE: u8 = 3 << 5;
/// Most bytes of a table.
const TABLE: u32 = 4096;

/// The registers, and where in the table it is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BusMaster {
    command: u8,
    pub(super) status: u8,
    table: u32,
    /// Bytes of the table that have been read.
    read: u32,
    /// The region that it is in.
    address: u32,
    left: u32,
    last: bool,
    /// It has come to the table's end.
    exhausted: bool,
}

impl BusMaster {
    /// Reads a byte of the registers.
    pub fn read(&self, offset: u16) -> u8 {
        match offset {
            0 => self.command,
            2 => self.status,
            4..8 => self.table.to_le_bytes()[usize::from(offset - 4)],
            _ => 0xff,
        }
    }

    /// Writes a byte of them.
    pub fn write(&mut self, offset: u16, value: u8) {
        match offset {
            0 => {
                let (was, is) = (self.command & START != 0, value & START != 0);
                self.command = value & (START | TO_MEMORY);
                if is == was {
                    return;
                }
                (self.read, self.left, self.last, self.exhausted) = (0, 0, false, false);
                self.status = self.status & !ACTIVE | u8::from(is);
            }
            2 => {
                let kept = self.status & !value & (ERROR | INTERRUPT);
                self.status = self.status & ACTIVE | value & CAPABLE | kept;
            }
            4..8 => {
                let mut bytes = self.table.to_le_bytes();
                bytes[usize::from(offset - 4)] = value;
                self.table = u32::from_le_bytes(bytes) & !3;
            }
            _ => {}
        }
    }

    /// A device begins a command: that the table has come to its end was another one's concern.
    pub fn command_begins(&mut self) {
        self.exhausted = false;
    }

    /// Moves what can be moved.
    pub fn run(&mut self, dma: &Dma, device: &mut Device) {
        while let Some(direction) = device.dma() {
            if self.status & ACTIVE == 0 {
                if self.exhausted {
                    device.dma_broken();
                }
                return;
            }
            match self.step(dma, device, direction) {
                Ok(()) => {}
                Err(why) => {
                    tracing::debug!("an IDE transfer: {why}");
                    self.status = self.status & !ACTIVE | ERROR;
                    device.dma_broken();
                }
            }
        }
    }

    fn step(&mut self, dma: &Dma, device: &mut Device, direction: Direction) -> Result<(), DmaError> {
        if self.left == 0 {
            self.next_region(dma)?;
            return Ok(());
        }
        let bytes = device.dma_bytes();
        let n = bytes.len().min(self.left as usize);
        let (bytes, at) = (&mut bytes[..n], u64::from(self.address));
        match direction {
            Direction::In => dma.write(at, bytes)?,
            Direction::Out => dma.read(at, bytes)?,
        }
        self.address = self.address.wrapping_add(n as u32);
        self.left -= n as u32;
        self.end_of_region();
        if n == 0 {
            device.dma_broken()
        } else {
            device.dma_moved(n)
        }
        Ok(())
    }

    fn end_of_region(&mut self) {
        if self.left == 0 && self.last {
            self.status &= !ACTIVE;
            self.exhausted = true;
        }
    }

    /// The next entry of the table.
    fn next_region(&mut self, dma: &Dma) -> Result<(), DmaError> {
        if self.read >= TABLE {
            self.last = true;
            self.end_of_region();
            return Ok(());
        }
        let mut entry = [0; 8];
        dma.read(u64::from(self.table.wrapping_add(self.read)), &mut entry)?;
        self.read += 8;
        let [a, b, c, d, low, high, _, flags] = entry;
        self.address = u32::from_le_bytes([a, b, c, d]) & !1;
        self.left = match u32::from(low & !1) | u32::from(high) << 8 {
            0 => 0x1_0000,
            n => n,
        };
        self.last = flags & 0x80 != 0;
        Ok(())
    }
}
