//! The configuration space of a PCI function: 256 bytes, a mask of what software may write, and base address
//! registers.
//!
//! Registers are data: each byte has a value, a write mask and a write-1-to-clear mask. Base address
//! registers (BARs) are sized by their masks, as on hardware: the address bits below the size read as zero.
//! What an access means beyond storage (a moved BAR, a routing register) is seen by comparing before and
//! after, by the bus for BARs and by the device for the rest.
//!
//! Source: PCI Local Bus Specification 2.1, chapter 6.
use super::bridge;
use crate::device::Invalid;
use serde::{Deserialize, Serialize};

/// Offsets of the standard header (6.1).
pub mod reg {
    /// Vendor id, 16 bits.
    pub const VENDOR_ID: u8 = 0x00;
    /// Device id, 16 bits.
    pub const DEVICE_ID: u8 = 0x02;
    /// Command register, 16 bits.
    pub const COMMAND: u8 = 0x04;
    /// Status register, 16 bits, write 1 to clear.
    pub const STATUS: u8 = 0x06;
    /// Revision, 8 bits.
    pub const REVISION: u8 = 0x08;
    /// Programming interface, 8 bits; then subclass and class.
    pub const CLASS: u8 = 0x09;
    /// Cache line size.
    pub const CACHE_LINE_SIZE: u8 = 0x0c;
    /// Latency timer.
    pub const LATENCY_TIMER: u8 = 0x0d;
    /// Header type; bit 7: the device has several functions.
    pub const HEADER_TYPE: u8 = 0x0e;
    /// The first of six base address registers.
    pub const BAR0: u8 = 0x10;
    /// Of a bridge: the bus behind it.
    pub const SECONDARY_BUS: u8 = 0x19;
    /// Of a bridge: the last bus behind it.
    pub const SUBORDINATE_BUS: u8 = 0x1a;
    /// Subsystem vendor id, 16 bits.
    pub const SUBSYSTEM_VENDOR_ID: u8 = 0x2c;
    /// Subsystem id, 16 bits.
    pub const SUBSYSTEM_ID: u8 = 0x2e;
    /// Expansion ROM base address.
    pub const ROM: u8 = 0x30;
    /// Offset of the first capability.
    pub const CAPABILITIES: u8 = 0x34;
    /// Interrupt line: a note for software.
    pub const INTERRUPT_LINE: u8 = 0x3c;
    /// Interrupt pin: 0 none, 1 INTA# to 4 INTD#.
    pub const INTERRUPT_PIN: u8 = 0x3d;
}

/// Bits of the command register (6.2.2).
pub mod command {
    /// Answers I/O accesses.
    pub const IO: u16 = 1 << 0;
    /// Answers memory accesses.
    pub const MEMORY: u16 = 1 << 1;
    /// May master the bus.
    pub const MASTER: u16 = 1 << 2;
    /// Does not assert its INTx pin.
    pub const INTERRUPT_DISABLE: u16 = 1 << 10;
}

/// Bits of the low byte of the status register (6.2.3).
pub mod status {
    /// INTx is asserted, or would be if it were not disabled.
    pub const INTERRUPT: u8 = 1 << 3;
    /// There is a list of capabilities.
    pub const CAPABILITIES: u8 = 1 << 4;
}

/// BARs of a type 0 header: six, and the expansion ROM's as number 6.
pub const BARS: usize = 7;
/// The number of the expansion ROM's BAR.
pub const ROM_BAR: usize = 6;

/// What a BAR decodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BarKind {
    /// I/O ports.
    Io,
    /// Memory below 4 GiB.
    Memory32 {
        /// Reads have no side effects.
        prefetchable: bool,
    },
    /// Memory anywhere; takes the next BAR too.
    Memory64 {
        /// Reads have no side effects.
        prefetchable: bool,
    },
}

#[derive(Clone, Copy)]
struct Bar {
    kind: BarKind,
    size: u64,
}

/// What is saved of a configuration space.
#[derive(Clone, Serialize, Deserialize)]
pub struct ConfigV1(#[serde(with = "serde_bytes")] [u8; 256]);

/// A function's configuration space.
#[derive(Clone)]
pub struct ConfigSpace {
    data: [u8; 256],
    /// Bits that software may change.
    writable: [u8; 256],
    /// Bits that software clears by writing 1.
    clearable: [u8; 256],
    bars: [Option<Bar>; BARS],
    /// Behind the last capability.
    capabilities_end: u8,
    /// `data` at reset.
    initial: [u8; 256],
}

impl ConfigSpace {
    /// A function with the standard header. `class` is class, subclass and programming interface, as in
    /// 0x060100.
    pub fn new(vendor: u16, device: u16, class: u32, revision: u8) -> Self {
        let mut c = Self {
            data: [0; 256],
            writable: [0; 256],
            clearable: [0; 256],
            bars: [None; BARS],
            capabilities_end: 0x40,
            initial: [0; 256],
        };
        c.set16(reg::VENDOR_ID, vendor);
        c.set16(reg::DEVICE_ID, device);
        c.set8(reg::REVISION, revision);
        c.set8(reg::CLASS, class as u8);
        c.set16(reg::CLASS + 1, (class >> 8) as u16);
        // Enables, parity and SERR# response, INTx disable.
        c.allow16(reg::COMMAND, 0x0547);
        // Parity error, aborts, system error.
        c.clearable[usize::from(reg::STATUS) + 1] = 0xf9;
        c.allow8(reg::CACHE_LINE_SIZE, 0xff);
        c.allow8(reg::LATENCY_TIMER, 0xff);
        c.allow8(reg::INTERRUPT_LINE, 0xff);
        c
    }

    /// The byte at `offset`.
    pub fn get8(&self, offset: u8) -> u8 {
        self.data[usize::from(offset)]
    }

    /// The 16 bits at `offset`.
    pub fn get16(&self, offset: u8) -> u16 {
        self.read(offset, 2) as u16
    }

    /// The 32 bits at `offset`.
    pub fn get32(&self, offset: u8) -> u32 {
        self.read(offset, 4)
    }

    /// Sets a byte, whatever its mask, and its value after a reset: for making a device.
    pub fn set8(&mut self, offset: u8, value: u8) {
        self.data[usize::from(offset)] = value;
        self.initial[usize::from(offset)] = value;
    }

    /// Sets 16 bits, as `set8`.
    pub fn set16(&mut self, offset: u8, value: u16) {
        for (i, b) in value.to_le_bytes().into_iter().enumerate() {
            self.set8(offset.wrapping_add(i as u8), b);
        }
    }

    /// Sets 32 bits, as `set8`.
    pub fn set32(&mut self, offset: u8, value: u32) {
        for (i, b) in value.to_le_bytes().into_iter().enumerate() {
            self.set8(offset.wrapping_add(i as u8), b);
        }
    }

    /// Changes the bits of `mask` in a byte to those of `value` (a status bit, say); the value at reset
    /// stays.
    pub fn change8(&mut self, offset: u8, mask: u8, value: u8) {
        let b = &mut self.data[usize::from(offset)];
        *b = *b & !mask | value & mask;
    }

    /// Names the bits of a byte that software may write.
    pub fn allow8(&mut self, offset: u8, mask: u8) {
        self.writable[usize::from(offset)] = mask;
    }

    /// Names the bits of 16 that software may write.
    pub fn allow16(&mut self, offset: u8, mask: u16) {
        for (i, b) in mask.to_le_bytes().into_iter().enumerate() {
            self.allow8(offset.wrapping_add(i as u8), b);
        }
    }

    /// Names the bits of 32 that software may write.
    pub fn allow32(&mut self, offset: u8, mask: u32) {
        for (i, b) in mask.to_le_bytes().into_iter().enumerate() {
            self.allow8(offset.wrapping_add(i as u8), b);
        }
    }

    /// Names the bits of a byte that software clears by writing 1.
    pub fn allow_clear8(&mut self, offset: u8, mask: u8) {
        self.clearable[usize::from(offset)] = mask;
    }

    /// Adds BAR `index` (0 to 5, or `ROM_BAR`) of `size` bytes or ports, a power of two. A 64-bit BAR takes
    /// `index` + 1 as well.
    ///
    /// # Panics
    /// If the BAR does not exist, is taken, or has an impossible size: a mistake in a device, not of a guest.
    pub fn add_bar(&mut self, index: usize, kind: BarKind, size: u64) {
        let most = match kind {
            BarKind::Io => 256,
            BarKind::Memory32 { .. } => 1 << 31,
            BarKind::Memory64 { .. } => 1 << 62,
        };
        let least = if kind == BarKind::Io { 4 } else { 16 };
        assert!(size.is_power_of_two() && (least..=most).contains(&size), "BAR {index} of {size} bytes");
        let wide = matches!(kind, BarKind::Memory64 { .. });
        assert!(index < BARS && self.bars[index].is_none() && !(wide && index >= 5), "BAR {index}");
        self.bars[index] = Some(Bar { kind, size });
        let offset = Self::bar_offset(index);
        let mask = !(size - 1);
        let flags = match kind {
            BarKind::Io => 1,
            BarKind::Memory32 { prefetchable } => u32::from(prefetchable) << 3,
            BarKind::Memory64 { prefetchable } => 4 | u32::from(prefetchable) << 3,
        };
        if index == ROM_BAR {
            self.allow32(offset, mask as u32 & !0x7ff | 1);
        } else {
            self.set32(offset, flags);
            self.allow32(offset, mask as u32 & if kind == BarKind::Io { !3 } else { !0xf });
        }
        if wide {
            self.allow32(offset + 4, (mask >> 32) as u32);
        }
    }

    /// Adds a capability of `len` bytes behind those that there are, first in the list (6.7).
    ///
    /// # Panics
    /// There is no room left: a mistake in a device, not of a guest.
    pub fn add_capability(&mut self, id: u8, len: u8) -> u8 {
        let at = self.capabilities_end.next_multiple_of(4);
        let end = usize::from(at) + usize::from(len);
        assert!(end < 256, "capability {id:#x} ends at {end:#x}");
        self.capabilities_end = end as u8;
        self.set8(at, id);
        self.set8(at + 1, self.get8(reg::CAPABILITIES));
        self.set8(reg::CAPABILITIES, at);
        self.set8(reg::STATUS, self.get8(reg::STATUS) | status::CAPABILITIES);
        at
    }

    /// Where the capability is, if there is such a one.
    pub fn capability(&self, id: u8) -> Option<u8> {
        let mut at = self.initial[usize::from(reg::CAPABILITIES)];
        while at != 0 {
            if self.initial[usize::from(at)] == id {
                return Some(at);
            }
            at = self.initial[usize::from(at) + 1];
        }
        None
    }

    fn bar_offset(index: usize) -> u8 {
        if index == ROM_BAR { reg::ROM } else { reg::BAR0 + 4 * index as u8 }
    }

    /// Whether it is a function of PCI Express, whose configuration space has 4096 bytes.
    pub fn is_express(&self) -> bool {
        self.capability(bridge::EXPRESS).is_some()
    }

    /// Kind and size of a BAR.
    pub fn bar(&self, index: usize) -> Option<(BarKind, u64)> {
        self.bars.get(index).copied().flatten().map(|b| (b.kind, b.size))
    }

    /// Where a BAR is decoded now: none while it is not set up, or the command register forbids it.
    pub fn bar_address(&self, index: usize) -> Option<u64> {
        let bar = self.bars.get(index).copied().flatten()?;
        let offset = Self::bar_offset(index);
        let low = u64::from(self.get32(offset));
        let command = self.get16(reg::COMMAND);
        let (enabled, address, top) = match bar.kind {
            BarKind::Io => (command & command::IO != 0, low & !3, 1 << 16),
            BarKind::Memory32 { .. } if index == ROM_BAR => {
                (command & command::MEMORY != 0 && low & 1 != 0, low & !0x7ff, 1 << 32)
            }
            BarKind::Memory32 { .. } => (command & command::MEMORY != 0, low & !0xf, 1 << 32),
            BarKind::Memory64 { .. } => {
                let high = u64::from(self.get32(offset + 4));
                (command & command::MEMORY != 0, high << 32 | low & !0xf, 1 << 52)
            }
        };
        // Address 0 is "not set up"; all ones is what software writes to learn the size, and does not fit
        // below the top.
        let fits = address.checked_add(bar.size).is_some_and(|end| end < top);
        (enabled && address != 0 && fits).then_some(address)
    }

    /// Reads `size` bytes at `offset`; beyond the end there are zeroes.
    pub fn read(&self, offset: u8, size: u8) -> u32 {
        crate::bus::read_bytes(size, |i| {
            self.data.get(usize::from(offset) + usize::from(i)).copied().unwrap_or(0)
        })
    }

    /// Writes `size` bytes at `offset` as far as the masks allow.
    pub fn write(&mut self, offset: u8, size: u8, value: u32) {
        crate::bus::write_bytes(size, value, |i, b| {
            let at = usize::from(offset) + usize::from(i);
            if let (Some(data), Some(w), Some(c)) =
                (self.data.get_mut(at), self.writable.get(at), self.clearable.get(at))
            {
                *data = (*data & !w | b & w) & !(b & c);
            }
        });
    }

    /// What is saved of it: its bytes.
    pub fn save(&self) -> ConfigV1 {
        ConfigV1(self.data)
    }

    /// Takes on the bytes of a function that was made in the same way. Its owner lets what they decide follow.
    ///
    /// # Errors
    /// They are another device's.
    pub fn restore(&mut self, ConfigV1(data): ConfigV1) -> Result<(), Invalid> {
        const CLASS: usize = reg::CLASS as usize;
        if data[..4] != self.initial[..4] || data[CLASS..CLASS + 3] != self.initial[CLASS..CLASS + 3] {
            return Err(Invalid("the PCI device's identity"));
        }
        self.data = data;
        Ok(())
    }

    /// The values that the device was made with.
    pub fn reset(&mut self) {
        self.data = self.initial;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn space() -> ConfigSpace {
        let mut c = ConfigSpace::new(0x8086, 0x100e, 0x02_0000, 3);
        c.add_bar(0, BarKind::Memory32 { prefetchable: false }, 0x2_0000);
        c.add_bar(1, BarKind::Io, 64);
        c.add_bar(2, BarKind::Memory64 { prefetchable: true }, 1 << 33);
        c
    }

    #[test]
    fn the_header_names_the_device_and_cannot_be_changed() {
        let mut c = space();
        c.write(0, 4, 0);
        c.write(8, 4, 0);
        assert_eq!((c.get32(0), c.get32(8)), (0x100e_8086, 0x0200_0003));
    }

    #[test]
    fn bars_tell_their_size_and_kind() {
        let mut c = space();
        for (offset, mask) in
            [(0x10, 0xfffe_0000), (0x14, 0xffff_ffc1), (0x18, 0x0000_000c), (0x1c, 0xffff_fffe), (0x20, 0)]
        {
            c.write(offset, 4, u32::MAX);
            assert_eq!(c.get32(offset), mask, "{offset:#x}");
        }
    }

    #[test]
    fn a_bar_is_decoded_while_it_is_set_up_and_enabled() {
        let mut c = space();
        c.write(reg::COMMAND, 2, 3);
        assert_eq!(c.bar_address(0), None);
        c.write(0x10, 4, 0xfebc_1234);
        c.write(0x14, 4, 0xc041);
        c.write(0x1c, 4, 0x8);
        assert_eq!((c.bar_address(0), c.bar_address(1)), (Some(0xfebc_0000), Some(0xc040)));
        assert_eq!(c.bar_address(2), Some(0x8_0000_0000));
        c.write(reg::COMMAND, 1, 1);
        assert_eq!((c.bar_address(0), c.bar_address(1)), (None, Some(0xc040)));
        c.write(0x14, 4, u32::MAX);
        assert_eq!(c.bar_address(1), None, "while it is sized");
    }

    #[test]
    fn status_bits_are_cleared_by_writing_ones() {
        let mut c = space();
        c.change8(reg::STATUS + 1, 0x20, 0x20);
        c.write(reg::STATUS, 2, 0);
        assert_eq!(c.get16(reg::STATUS), 0x2000);
        c.write(reg::COMMAND, 4, 0x2000_0000);
        assert_eq!(c.get16(reg::STATUS), 0);
    }

    #[test]
    fn a_rom_has_an_enable_bit_of_its_own() {
        let mut c = ConfigSpace::new(1, 2, 0, 0);
        c.add_bar(ROM_BAR, BarKind::Memory32 { prefetchable: false }, 0x1_0000);
        c.write(reg::COMMAND, 2, 2);
        c.write(reg::ROM, 4, 0xfe00_0000);
        assert_eq!(c.bar_address(ROM_BAR), None);
        c.write(reg::ROM, 4, 0xfe00_0001);
        assert_eq!(c.bar_address(ROM_BAR), Some(0xfe00_0000));
    }
}
