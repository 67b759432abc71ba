//! The enhanced configuration access mechanism: configuration space of all functions in memory, 4 KiB each.
//!
//! ```text
//!   base + bus << 20 + device << 15 + function << 12 + register
//! ```
//!
//! A host bridge maps an [`Ecam`] where its registers say. An access goes to the function within one word of 32 bits;
//! one across its end is carried out byte by byte, one of 64 bits as two.
//!
//! Source: PCI Express Base Specification 2.0, 7.2.2.
use super::{DevFn, PciBus};
use mynah_mmu::Mmio;
use std::sync::Weak;

/// Bytes of a bus.
pub const BUS: u64 = 1 << 20;

/// The window to a bus 0 and what is behind it. Its length is the mapping's.
pub struct Ecam(pub Weak<PciBus>);

fn place(offset: u64) -> (u8, DevFn, u16) {
    let devfn = DevFn::new((offset >> 15) as u8 & 0x1f, (offset >> 12) as u8 & 7);
    ((offset >> 20) as u8, devfn, offset as u16 & 0xfff)
}

/// The pieces, each within a word, of an access: where it begins in it, and how many bytes it has.
fn pieces(offset: u64, size: u8) -> impl Iterator<Item = (u8, u8)> {
    let width = match size {
        1 | 2 | 4 if offset % 4 + u64::from(size) <= 4 => size,
        8 if offset.is_multiple_of(4) => 4,
        _ => 1,
    };
    (0..size).step_by(width.into()).map(move |at| (at, width))
}

impl Mmio for Ecam {
    fn read(&self, offset: u64, size: u8) -> u64 {
        let Some(bus) = self.0.upgrade() else { return u64::MAX };
        pieces(offset, size.min(8)).fold(0, |value, (at, width)| {
            let (number, devfn, register) = place(offset.wrapping_add(at.into()));
            value | u64::from(bus.config_read(number, devfn, register, width)) << (8 * at)
        })
    }

    fn write(&self, offset: u64, size: u8, value: u64) {
        let Some(bus) = self.0.upgrade() else { return };
        for (at, width) in pieces(offset, size.min(8)) {
            let (number, devfn, register) = place(offset.wrapping_add(at.into()));
            bus.config_write(number, devfn, register, width, (value >> (8 * at)) as u32);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::Pc;
    use super::super::{ConfigSpace, PciDevice};
    use super::*;
    use parking_lot::Mutex;
    use std::sync::Arc;

    struct Card(Mutex<ConfigSpace>);
    impl PciDevice for Card {
        fn config(&self) -> &Mutex<ConfigSpace> {
            &self.0
        }
    }

    #[test]
    fn configuration_space_is_memory_at_every_width() {
        let pc = Pc::new();
        let card = Arc::new(Card(Mutex::new(ConfigSpace::new(0x1234, 0x5678, 0xff_0000, 3))));
        pc.bus.attach(DevFn::new(4, 2), card);
        pc.memory.map_mmio(0xb000_0000, 256 * BUS, Arc::new(Ecam(Arc::downgrade(&pc.bus))));
        let at = 0xb000_0000 + (4 << 15) + (2 << 12);
        let read = |offset: u64, size| pc.memory.phys_read(at + offset, size);
        assert_eq!((read(0, 4), read(2, 2), read(1, 1)), (0x5678_1234, 0x5678, 0x12));
        assert_eq!((read(0, 8), read(1, 2), read(3, 4)), (0x5678_1234, 0x7812, 0x56));
        assert_eq!((read(0x100, 4), read(0x1000, 4), read(BUS, 4)), (0xffff_ffff, 0xffff_ffff, 0xffff_ffff));
        pc.memory.phys_write(at + 0x3c, 1, 0xa5);
        assert_eq!(pc.read(DevFn::new(4, 2), 0x3c, 1), 0xa5);
    }
}
