//! The VGA's window into its memory, A0000h to BFFFFh: maps, planes, latches, write and read modes.
//!
//! The four planes lie side by side in the adapter's memory: byte `4 * a + p` is byte `a` of plane `p`. The modes that
//! lead neighbouring bytes to different planes (chain 4, odd/even) use `a = address / 4` and `address / 2`, so that
//! chain-4 memory lies in a row, as the framebuffer of linear modes does, and as QEMU has it. (A VGA leaves gaps there,
//! and steps over them as it shows the picture.)
//!
//! Source: IBM PS/2 Video Subsystem Technical Reference, "VGA Function", graphics controller.
use super::regs::{Registers, misc};
use mynah_mmu::DeviceRam;

/// Where the window is, and its length.
pub const BASE: u64 = 0xa_0000;
/// Its length.
pub const LEN: u64 = 0x2_0000;

/// A part of the window, and what of the memory shows in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Direct {
    /// Where it begins, counted from [`BASE`].
    pub at: u64,
    /// Its length.
    pub len: u64,
    /// Where it begins in memory.
    pub memory: u64,
}

/// How bytes of the window belong to planes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Addressing {
    /// All planes have them at the same address.
    Planar,
    /// The lowest bit of the address chooses between a pair.
    OddEven,
    /// The two lowest bits choose.
    Chain4,
}

/// Four times the same byte.
fn spread(byte: u8) -> u32 {
    u32::from(byte) * 0x0101_0101
}

/// A byte of ones for each bit of four.
fn mask_of(bits: u8) -> u32 {
    (0..4).fold(0, |m, p| m | (u32::from(bits >> p & 1) * 0xff) << (8 * p))
}

impl Registers {
    /// The part of the window that is mapped, by its map select.
    fn window(&self) -> (u64, u64) {
        match self.gc[6] >> 2 & 3 {
            0 => (0, 0x2_0000),
            1 => (0, 0x1_0000),
            2 => (0x1_0000, 0x8000),
            _ => (0x1_8000, 0x8000),
        }
    }

    /// What is added to addresses in the window.
    fn bank(&self) -> u64 {
        // Only the 64 KiB at A0000h have banks.
        if self.gc[6] & 0x0c == 0x04 { u64::from(self.vbe.get(super::vbe::BANK)) << 16 } else { 0 }
    }

    fn addressing(&self) -> Addressing {
        if self.seq[4] & 0x08 != 0 {
            Addressing::Chain4
        } else if self.gc[5] & 0x10 != 0 {
            Addressing::OddEven
        } else {
            Addressing::Planar
        }
    }

    /// Offset in the mapped part, with the bank, of a byte of the window.
    fn address(&self, offset: u64) -> Option<u64> {
        let (first, len) = self.window();
        let at = offset.checked_sub(first)?;
        (at < len && self.misc & misc::RAM != 0).then(|| at + self.bank())
    }

    /// Where the window shows plain memory: chain 4, with nothing that changes bytes on their way.
    pub fn direct(&self) -> Option<Direct> {
        let plain = self.misc & misc::RAM != 0
            && self.seq[4] & 0x08 != 0
            && self.seq[2] == 0x0f
            && self.gc[1] == 0
            && self.gc[3] == 0
            && self.gc[5] & 0x0b == 0
            && self.gc[8] == 0xff;
        let (at, len) = self.window();
        plain.then(|| Direct { at, len, memory: self.bank() })
    }

    /// A byte read by the CPU; the latches take what the four planes have there.
    pub fn read_window(&mut self, ram: &DeviceRam, offset: u64) -> u8 {
        let Some(address) = self.address(offset) else { return 0xff };
        let (at, plane) = match self.addressing() {
            Addressing::Chain4 => (address >> 2, address as u8 & 3),
            Addressing::OddEven => (address >> 1, self.gc[4] & 2 | address as u8 & 1),
            Addressing::Planar => (address, self.gc[4] & 3),
        };
        let mut planes = [0; 4];
        ram.read(4 * at, &mut planes);
        self.latch = u32::from_le_bytes(planes);
        if self.gc[5] & 0x08 == 0 {
            return planes[usize::from(plane)];
        }
        // Ones where the colour of all planes that count is the one to compare with.
        let differ = (self.latch ^ mask_of(self.gc[2])) & mask_of(self.gc[7]);
        !differ.to_le_bytes().into_iter().fold(0, |all, plane| all | plane)
    }

    /// A byte written by the CPU.
    pub fn write_window(&mut self, ram: &DeviceRam, offset: u64, value: u8) {
        let Some(address) = self.address(offset) else { return };
        let (at, reached) = match self.addressing() {
            Addressing::Chain4 => (address >> 2, 1 << (address & 3)),
            Addressing::OddEven => (address >> 1, 0b0101 << (address & 1)),
            Addressing::Planar => (address, 0x0f),
        };
        let planes = mask_of(self.seq[2] & reached);
        if planes == 0 {
            return;
        }
        let new = self.combine(value);
        if planes.count_ones() == 8 {
            let plane = planes.trailing_zeros() / 8;
            return ram.write(4 * at + u64::from(plane), &[(new >> (8 * plane)) as u8]);
        }
        let mut old = [0; 4];
        if planes != u32::MAX {
            ram.read(4 * at, &mut old);
        }
        let old = u32::from_le_bytes(old);
        ram.write(4 * at, &(old & !planes | new & planes).to_le_bytes());
    }

    /// What the graphics controller makes of a byte for the four planes.
    fn combine(&self, value: u8) -> u32 {
        let [set_reset, enable, _, function, _, mode, _, _, bit_mask] = self.gc;
        let rotated = value.rotate_right(u32::from(function & 7));
        let (data, bits) = match mode & 3 {
            0 => {
                let fixed = mask_of(enable);
                (spread(rotated) & !fixed | mask_of(set_reset) & fixed, spread(bit_mask))
            }
            1 => return self.latch,
            2 => (mask_of(value), spread(bit_mask)),
            _ => (mask_of(set_reset), spread(bit_mask & rotated)),
        };
        let data = match function >> 3 & 3 {
            0 => data,
            1 => data & self.latch,
            2 => data | self.latch,
            _ => data ^ self.latch,
        };
        data & bits | self.latch & !bits
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    /// A planar mode: all planes, 64 KiB at A0000h.
    fn planar() -> (Registers, Arc<DeviceRam>) {
        let mut r = Registers::default();
        (r.misc, r.seq[2], r.seq[4], r.gc[6], r.gc[8]) = (3, 0x0f, 0x06, 0x05, 0xff);
        (r, DeviceRam::new(1 << 20).unwrap())
    }

    fn planes(ram: &DeviceRam, at: u64) -> [u8; 4] {
        let mut planes = [0; 4];
        ram.read(4 * at, &mut planes);
        planes
    }

    #[test]
    fn the_map_select_says_where_the_window_is() {
        let (mut r, ram) = planar();
        for (select, seen) in [(0, [1, 1, 1, 1]), (1, [1, 0xff, 0xff, 0xff]), (2, [0xff, 0xff, 1, 0xff])] {
            r.gc[6] = select << 2 | 1;
            ram.clear(0, 1 << 20);
            for at in [0, 0x1_8000, 0x1_0000] {
                r.write_window(&ram, at, 1);
            }
            assert_eq!([0, 0x1_8000, 0x1_0000, 0x1_8000].map(|at| r.read_window(&ram, at)), seen, "{select}");
        }
        r.gc[6] = 0x0d;
        r.write_window(&ram, 0x1_8000, 9);
        assert_eq!((r.read_window(&ram, 0x1_8000), r.read_window(&ram, 0x1_7fff)), (9, 0xff));
        r.misc = 1;
        assert_eq!(r.read_window(&ram, 0x1_8000), 0xff, "the memory does not answer");
    }

    #[test]
    fn write_mode_0_rotates_sets_and_masks() {
        let (mut r, ram) = planar();
        ram.write(4 * 5, &[0x0f, 0xf0, 0x55, 0xaa]);
        assert_eq!(r.read_window(&ram, 5), 0x0f, "the latches are loaded");
        // Plane 3 is set, plane 2 reset, the others get 0x81 rotated by one: 0xc0; bits 7 to 4 only.
        (r.gc[0], r.gc[1], r.gc[3], r.gc[8]) = (0x08, 0x0c, 1, 0xf0);
        r.write_window(&ram, 5, 0x81);
        assert_eq!(planes(&ram, 5), [0xcf, 0xc0, 0x05, 0xfa]);
        // Plane 1 alone, at another address: the rest of the byte is the latches'.
        r.seq[2] = 2;
        r.write_window(&ram, 6, 0x81);
        assert_eq!(planes(&ram, 6), [0, 0xc0, 0, 0]);
    }

    #[test]
    fn functions_combine_with_the_latches() {
        let (mut r, ram) = planar();
        ram.write(0, &[0x33; 4]);
        for (function, result) in [(0, 0x0f), (1, 0x03), (2, 0x3f), (3, 0x3c)] {
            r.gc[3] = function << 3;
            r.read_window(&ram, 0);
            r.write_window(&ram, 1, 0x0f);
            assert_eq!(planes(&ram, 1), [result; 4]);
        }
    }

    #[test]
    fn write_modes_1_to_3_copy_paint_and_mask() {
        let (mut r, ram) = planar();
        ram.write(0, &[1, 2, 3, 4]);
        r.read_window(&ram, 0);
        r.gc[5] = 1;
        r.write_window(&ram, 7, 0xff);
        assert_eq!(planes(&ram, 7), [1, 2, 3, 4]);
        (r.gc[5], r.gc[8]) = (2, 0x0f);
        r.write_window(&ram, 8, 0x05);
        assert_eq!(planes(&ram, 8), [0x0f, 0x02 & 0xf0, 0x0f, 0x04 & 0xf0]);
        (r.gc[5], r.gc[0], r.gc[8]) = (3, 0x0a, 0x3c);
        r.write_window(&ram, 9, 0xf0);
        assert_eq!(planes(&ram, 9), [1, 2 | 0x30, 3, 4 | 0x30].map(|b| b & 0x3f), "0x30 is set or reset");
        assert_eq!(planes(&ram, 9)[0], 1);
    }

    #[test]
    fn read_mode_1_compares_colours() {
        let (mut r, ram) = planar();
        // Bits: colour 5 in the upper half, colour 4 below.
        ram.write(0, &[0xf0, 0, 0xff, 0]);
        (r.gc[5], r.gc[2], r.gc[7]) = (8, 5, 0x0f);
        assert_eq!(r.read_window(&ram, 0), 0xf0);
        r.gc[7] = 0x0e;
        assert_eq!(r.read_window(&ram, 0), 0xff, "plane 0 does not care");
        r.gc[2] = 7;
        assert_eq!(r.read_window(&ram, 0), 0);
    }

    #[test]
    fn odd_and_even_bytes_are_in_two_planes_and_fonts_in_a_third() {
        let (mut r, ram) = planar();
        (r.seq[2], r.seq[4], r.gc[5], r.gc[6]) = (3, 2, 0x10, 0x0e);
        r.write_window(&ram, 0x1_8000, b'A');
        r.write_window(&ram, 0x1_8001, 0x1f);
        r.write_window(&ram, 0x1_8002, b'B');
        assert_eq!((planes(&ram, 0), planes(&ram, 1)), ([b'A', 0x1f, 0, 0], [b'B', 0, 0, 0]));
        assert_eq!((r.read_window(&ram, 0x1_8001), r.read_window(&ram, 0x1_8002)), (0x1f, b'B'));
        (r.seq[2], r.seq[4], r.gc[5], r.gc[6], r.gc[4]) = (4, 6, 0, 4, 2);
        r.write_window(&ram, 1, 0x7e);
        assert_eq!(planes(&ram, 1), [b'B', 0, 0x7e, 0]);
        assert_eq!(r.read_window(&ram, 1), 0x7e);
    }

    #[test]
    fn chained_memory_is_in_a_row_and_direct_while_nothing_changes_it() {
        let (mut r, ram) = planar();
        assert_eq!(r.direct(), None);
        (r.seq[4], r.gc[5]) = (0x0e, 0x40);
        assert_eq!(r.direct(), Some(Direct { at: 0, len: 0x1_0000, memory: 0 }));
        for at in 0..8 {
            r.write_window(&ram, at, at as u8 + 1);
        }
        assert_eq!((planes(&ram, 0), planes(&ram, 1)), ([1, 2, 3, 4], [5, 6, 7, 8]));
        assert_eq!(r.read_window(&ram, 6), 7);
        for (register, value) in [(1, 1), (3, 1), (3, 8), (5, 1), (5, 8), (8, 0xfe)] {
            let mut other = r.clone();
            other.gc[register] = value;
            assert_eq!(other.direct(), None, "{register}");
        }
        r.seq[2] = 7;
        assert_eq!(r.direct(), None);
        r.write_window(&ram, 7, 0xee);
        assert_eq!(r.read_window(&ram, 7), 8);
    }
}
