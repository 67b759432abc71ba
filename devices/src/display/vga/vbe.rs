//! The Bochs display interface ("VBE dispi"): an index and a data register by which guests choose linear modes.
//!
//! ```text
//!   0 ID       B0C0h to B0C5h: what is written of these reads back     5 BANK         64 KiB of the window at A0000h
//!   1 XRES     in pixels, a multiple of 8                              6 VIRT_WIDTH   pixels from row to row
//!   2 YRES                                                             7 VIRT_HEIGHT  rows that there is memory for
//!   3 BPP      4, 8, 15, 16, 24, 32                                    8 X_OFFSET     what is at the screen's upper
//!   4 ENABLE   bits below                                              9 Y_OFFSET     left corner
//!                                                                     10 VIDEO_MEMORY_64K  read only
//! ```
//!
//! Source: Bochs' VBE display API 0.7 (vbe_display_api.txt); limits and rounding as QEMU's.
use serde::{Deserialize, Serialize};

pub const ID: u16 = 0;
pub const XRES: u16 = 1;
pub const YRES: u16 = 2;
pub const BPP: u16 = 3;
pub const ENABLE: u16 = 4;
pub const BANK: u16 = 5;
pub const VIRT_WIDTH: u16 = 6;
pub const VIRT_HEIGHT: u16 = 7;
pub const X_OFFSET: u16 = 8;
pub const Y_OFFSET: u16 = 9;
pub const VIDEO_MEMORY_64K: u16 = 10;
/// Registers that are stored.
pub const COUNT: usize = 10;

/// Bits of ENABLE.
pub mod enable {
    /// The mode is on.
    pub const ENABLED: u16 = 1 << 0;
    /// Resolution registers read as the most that there is.
    pub const GET_CAPABILITIES: u16 = 1 << 1;
    /// Colours of the palette have 8 bits, not 6.
    pub const DAC_8BIT: u16 = 1 << 5;
    /// The framebuffer is linear: it is, in either case.
    pub const LINEAR: u16 = 1 << 6;
    /// The memory stays as it is.
    pub const KEEP_MEMORY: u16 = 1 << 7;
}

const FIRST_ID: u16 = 0xb0c0;
const LAST_ID: u16 = 0xb0c5;
/// What the resolution registers hold at most.
pub const MAX_XRES: u16 = 16_000;
/// The same, in rows.
pub const MAX_YRES: u16 = 12_000;
const MAX_BPP: u16 = 32;

/// The registers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vbe {
    pub index: u16,
    regs: [u16; COUNT],
}

impl Default for Vbe {
    fn default() -> Self {
        let mut regs = [0; COUNT];
        regs[usize::from(ID)] = LAST_ID;
        Self { index: 0, regs }
    }
}

/// What a write asks for beside itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    None,
    /// What is shown, or where the window is, has changed.
    Changed,
    /// A mode begins; the memory of its picture is cleared if true.
    Begins(bool),
    /// The VGA's own modes are back.
    Ends,
}

impl Vbe {
    /// The stored value of a register.
    pub fn get(&self, index: u16) -> u16 {
        self.regs.get(usize::from(index)).copied().unwrap_or(0)
    }

    fn put(&mut self, index: u16, value: u16) {
        self.regs[usize::from(index)] = value;
    }

    pub fn enabled(&self) -> bool {
        self.get(ENABLE) & enable::ENABLED != 0
    }

    pub fn dac_8bit(&self) -> bool {
        self.get(ENABLE) & enable::DAC_8BIT != 0
    }

    /// Bits of a pixel in memory.
    pub fn bits(&self) -> u64 {
        match self.get(BPP) {
            15 => 16,
            n => n.into(),
        }
    }

    /// Bytes from row to row.
    pub fn pitch(&self) -> u64 {
        u64::from(self.get(VIRT_WIDTH)) * self.bits() / 8
    }

    /// Where in memory the picture begins.
    pub fn start(&self) -> u64 {
        u64::from(self.get(Y_OFFSET)) * self.pitch() + u64::from(self.get(X_OFFSET)) * self.bits() / 8
    }

    pub fn read(&self, memory: u64) -> u16 {
        let capabilities = self.get(ENABLE) & enable::GET_CAPABILITIES != 0;
        match self.index {
            XRES if capabilities => MAX_XRES,
            YRES if capabilities => MAX_YRES,
            BPP if capabilities => MAX_BPP,
            VIDEO_MEMORY_64K => (memory >> 16) as u16,
            n => self.get(n),
        }
    }

    /// Writes the register of the index; `memory` is how many bytes there are.
    pub fn write(&mut self, value: u16, memory: u64) -> Effect {
        match self.index {
            ID if (FIRST_ID..=LAST_ID).contains(&value) => {
                self.put(ID, value);
                Effect::None
            }
            XRES | YRES | BPP | VIRT_WIDTH | X_OFFSET | Y_OFFSET => {
                self.put(self.index, value);
                self.settle(memory);
                Effect::Changed
            }
            BANK => {
                // As many banks as there are of 64 KiB.
                self.put(BANK, value & ((memory >> 16).max(1) - 1) as u16);
                Effect::Changed
            }
            ENABLE => self.enable(value, memory),
            _ => Effect::None,
        }
    }

    fn enable(&mut self, value: u16, memory: u64) -> Effect {
        let was = self.enabled();
        let known = enable::ENABLED
            | enable::GET_CAPABILITIES
            | enable::DAC_8BIT
            | enable::LINEAR
            | enable::KEEP_MEMORY;
        self.put(ENABLE, value & known);
        match (was, self.enabled()) {
            (false, true) => {
                [VIRT_WIDTH, X_OFFSET, Y_OFFSET, BANK].into_iter().for_each(|n| self.put(n, 0));
                self.settle(memory);
                Effect::Begins(value & enable::KEEP_MEMORY == 0)
            }
            (true, false) => {
                self.put(BANK, 0);
                Effect::Ends
            }
            _ => Effect::Changed,
        }
    }

    /// While a mode is on, brings all into the limits that there are.
    fn settle(&mut self, memory: u64) {
        if !self.enabled() {
            return;
        }
        if !matches!(self.get(BPP), 4 | 8 | 15 | 16 | 24 | 32) {
            self.put(BPP, 8);
        }
        let width = |n: u16| (n & !7).min(MAX_XRES);
        self.put(XRES, width(self.get(XRES)).max(8));
        self.put(VIRT_WIDTH, width(self.get(VIRT_WIDTH)).max(self.get(XRES)));
        let rows = (memory / self.pitch()).min(u16::MAX.into()) as u16;
        self.put(VIRT_HEIGHT, rows);
        self.put(YRES, self.get(YRES).clamp(1, MAX_YRES).min(rows.max(1)));
        let shown = u64::from(self.get(YRES)) * self.pitch();
        for offset in [Y_OFFSET, X_OFFSET] {
            if self.start() + shown > memory {
                self.put(offset, 0);
            }
        }
    }

    /// Whether these are registers that writes can have brought about.
    pub fn is_valid(&self, memory: u64) -> bool {
        let mut settled = self.clone();
        settled.settle(memory);
        *self == settled
            && (FIRST_ID..=LAST_ID).contains(&self.get(ID))
            && u64::from(self.get(BANK)) < (memory >> 16).max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MEMORY: u64 = 16 << 20;

    fn vbe(writes: &[(u16, u16)]) -> Vbe {
        let mut vbe = Vbe::default();
        for (index, value) in writes {
            vbe.index = *index;
            vbe.write(*value, MEMORY);
            assert!(vbe.is_valid(MEMORY), "{vbe:?}");
        }
        vbe
    }

    fn read(vbe: &mut Vbe, index: u16) -> u16 {
        vbe.index = index;
        vbe.read(MEMORY)
    }

    #[test]
    fn ids_that_there_are_read_back() {
        let mut v = vbe(&[]);
        assert_eq!(read(&mut v, ID), 0xb0c5);
        let mut v = vbe(&[(ID, 0xb0c0), (ID, 0xb0c6), (ID, 0)]);
        assert_eq!((read(&mut v, ID), read(&mut v, VIDEO_MEMORY_64K), read(&mut v, 11)), (0xb0c0, 256, 0));
    }

    #[test]
    fn a_mode_has_as_many_rows_as_there_is_memory_for() {
        let mut v = vbe(&[(XRES, 1027), (YRES, 60_000), (BPP, 32), (ENABLE, 0x41)]);
        let seen = [XRES, YRES, VIRT_WIDTH, VIRT_HEIGHT].map(|n| read(&mut v, n));
        assert_eq!(seen, [1024, 4096, 1024, 4096]);
        let mut v = vbe(&[(XRES, 2560), (YRES, 1600), (BPP, 32), (ENABLE, 0x41)]);
        assert_eq!([XRES, YRES].map(|n| read(&mut v, n)), [2560, 1600]);
    }

    #[test]
    fn the_picture_stays_in_memory() {
        let mode = [(XRES, 1024), (YRES, 768), (BPP, 32), (ENABLE, 0x41)];
        let mut v = vbe(&[&mode[..], &[(VIRT_WIDTH, 2048), (Y_OFFSET, 1280), (X_OFFSET, 1000)]].concat());
        assert_eq!((v.pitch(), v.start()), (8192, 1000 * 4), "the last row would be cut off");
        assert_eq!(read(&mut v, VIRT_HEIGHT), 2048);
        let v = vbe(&[&mode[..], &[(Y_OFFSET, 768)]].concat());
        assert_eq!(v.start(), 768 * 4096);
    }

    #[test]
    fn a_mode_begins_and_ends_once() {
        let mut v = vbe(&[(XRES, 640), (YRES, 480), (BPP, 5)]);
        v.index = ENABLE;
        assert_eq!(v.write(1, MEMORY), Effect::Begins(true));
        assert_eq!(v.get(BPP), 8);
        assert_eq!(v.write(1, MEMORY), Effect::Changed);
        v.index = BANK;
        v.write(0x1ff, MEMORY);
        assert_eq!(v.get(BANK), 0xff);
        v.index = ENABLE;
        assert_eq!(v.write(0, MEMORY), Effect::Ends);
        assert_eq!((v.write(0x81, MEMORY), v.get(BANK)), (Effect::Begins(false), 0));
        v.write(3, MEMORY);
        assert_eq!([XRES, YRES, BPP].map(|n| read(&mut v, n)), [16_000, 12_000, 32]);
    }
}
