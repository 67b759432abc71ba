//! The VGA's registers: what ports read and write, and what they mean.
//!
//! ```text
//!   3C0h/1h attribute controller   3C4h/5h sequencer     3CEh/Fh graphics controller   3B4h/5h, 3D4h/5h CRTC
//!   3C2h    miscellaneous output, input status 0         3C6h-9h DAC                   3BAh, 3DAh input status 1
//! ```
//!
//! Source: IBM PS/2 Video Subsystem Technical Reference (VGA Function); the names are its own.
use super::vbe::Vbe;
use serde::{Deserialize, Serialize};

/// Registers of the CRTC.
pub const CRTC: usize = 0x19;
/// Registers of the attribute controller.
pub const AC: usize = 0x15;

/// Bits that the sequencer's registers have.
const SEQ_MASK: [u8; 5] = [0x03, 0x3d, 0x0f, 0x3f, 0x0e];
/// Bits that the graphics controller's registers have.
const GC_MASK: [u8; 9] = [0x0f, 0x0f, 0x0f, 0x1f, 0x03, 0x7b, 0x0f, 0x0f, 0xff];

/// Bits of the miscellaneous output register.
pub mod misc {
    /// CRTC and status 1 are at 3Dxh, not 3Bxh.
    pub const COLOUR: u8 = 1 << 0;
    /// The memory answers the CPU.
    pub const RAM: u8 = 1 << 1;
}

/// The PAS bit of the attribute controller's index: the palette is the screen's, not the CPU's.
pub const PALETTE_TO_SCREEN: u8 = 1 << 5;

/// The palette and its ports.
#[derive(Clone, Serialize, Deserialize)]
pub struct Dac {
    #[serde(with = "serde_bytes")]
    pub colours: [u8; 768],
    pub mask: u8,
    read_index: u8,
    write_index: u8,
    /// Which of the three colours comes next.
    component: u8,
    /// Those written that wait for the third.
    latch: [u8; 2],
    /// The last index written was for reading.
    reading: bool,
}

/// All of it.
#[derive(Clone, Serialize, Deserialize)]
pub struct Registers {
    pub misc: u8,
    pub feature: u8,
    pub seq_index: u8,
    pub seq: [u8; 5],
    pub crtc_index: u8,
    pub crtc: [u8; CRTC],
    pub gc_index: u8,
    pub gc: [u8; 9],
    /// With the PAS bit.
    pub ac_index: u8,
    pub ac: [u8; AC],
    /// The next write to 3C0h is data.
    pub ac_data: bool,
    pub dac: Dac,
    /// What the four planes had at the last read.
    pub latch: u32,
    pub vbe: Vbe,
    /// The framebuffer's pixels are big-endian.
    pub big_endian: bool,
}

impl Default for Registers {
    fn default() -> Self {
        let dac = Dac {
            colours: [0; 768],
            mask: 0xff,
            read_index: 0,
            write_index: 0,
            component: 0,
            latch: [0; 2],
            reading: false,
        };
        Self {
            misc: 0,
            feature: 0,
            seq_index: 0,
            seq: [0; 5],
            crtc_index: 0,
            crtc: [0; CRTC],
            gc_index: 0,
            gc: [0; 9],
            ac_index: 0,
            ac: [0; AC],
            ac_data: false,
            dac,
            latch: 0,
            vbe: Vbe::default(),
            big_endian: false,
        }
    }
}

fn get(regs: &[u8], index: u8) -> u8 {
    regs.get(usize::from(index)).copied().unwrap_or(0)
}

impl Registers {
    /// Whether a port of the CRTC or of status 1 is where the miscellaneous output register has it.
    fn answers(&self, port: u16) -> bool {
        (port & 0xfff0 == 0x3d0) == (self.misc & misc::COLOUR != 0)
    }

    /// Reads a port, 3B0h to 3DFh. `status` is input status 1, without the attribute controller's part in it.
    pub fn read(&mut self, port: u16, status: impl FnOnce(&Self) -> u8) -> u8 {
        match port {
            0x3b4 | 0x3b5 | 0x3ba | 0x3d4 | 0x3d5 | 0x3da if !self.answers(port) => 0xff,
            0x3c0 => self.ac_index,
            0x3c1 => get(&self.ac, self.ac_index & 0x1f),
            // Switch sense: what a colour monitor gives is none of our business.
            0x3c2 => 0,
            // The adapter is on.
            0x3c3 => 1,
            0x3c4 => self.seq_index,
            0x3c5 => get(&self.seq, self.seq_index),
            0x3c6 => self.dac.mask,
            0x3c7 => 3 * u8::from(self.dac.reading),
            0x3c8 => self.dac.write_index,
            0x3c9 => self.dac.read(),
            0x3ca => self.feature,
            0x3cc => self.misc,
            0x3ce => self.gc_index,
            0x3cf => get(&self.gc, self.gc_index),
            0x3b4 | 0x3d4 => self.crtc_index,
            0x3b5 | 0x3d5 => get(&self.crtc, self.crtc_index),
            0x3ba | 0x3da => {
                self.ac_data = false;
                status(self)
            }
            _ => 0xff,
        }
    }

    /// Writes a port, 3B0h to 3DFh.
    pub fn write(&mut self, port: u16, value: u8) {
        match port {
            0x3b4 | 0x3b5 | 0x3ba | 0x3d4 | 0x3d5 | 0x3da if !self.answers(port) => {}
            0x3c0 => self.write_attribute(value),
            0x3c2 => self.misc = value & !0x10,
            0x3c4 => self.seq_index = value & 7,
            0x3c5 => set(&mut self.seq, self.seq_index, value, &SEQ_MASK),
            0x3c6 => self.dac.mask = value,
            0x3c7 => self.dac.begin(value, true),
            0x3c8 => self.dac.begin(value, false),
            0x3c9 => self.dac.write(value, self.vbe.dac_8bit()),
            0x3ce => self.gc_index = value & 0x0f,
            0x3cf => set(&mut self.gc, self.gc_index, value, &GC_MASK),
            0x3b4 | 0x3d4 => self.crtc_index = value,
            0x3b5 | 0x3d5 => self.write_crtc(value),
            0x3ba | 0x3da => self.feature = value & 0x08,
            _ => {}
        }
    }

    fn write_attribute(&mut self, value: u8) {
        self.ac_data = !self.ac_data;
        if self.ac_data {
            self.ac_index = value & 0x3f;
            return;
        }
        let index = usize::from(self.ac_index & 0x1f);
        let mask = match index {
            0x00..=0x0f | 0x12 => 0x3f,
            0x10 => 0xef,
            0x11 => 0xff,
            _ => 0x0f,
        };
        if let Some(reg) = self.ac.get_mut(index) {
            *reg = value & mask;
        }
    }

    fn write_crtc(&mut self, value: u8) {
        const PROTECT: u8 = 1 << 7;
        const LINE_COMPARE_8: u8 = 1 << 4;
        let index = usize::from(self.crtc_index);
        if self.crtc[0x11] & PROTECT != 0 && index <= 7 {
            if index == 7 {
                self.crtc[7] = self.crtc[7] & !LINE_COMPARE_8 | value & LINE_COMPARE_8;
            }
            return;
        }
        if let Some(reg) = self.crtc.get_mut(index) {
            *reg = value;
        }
    }

    // ---- what they mean
    // -----------------------------------------------------------------------------------------------

    /// A vertical value of the CRTC: its low byte, and where its bits 8 and 9 are in the overflow register.
    fn vertical(&self, low: usize, bit8: u8, bit9: u8) -> u32 {
        let overflow = u32::from(self.crtc[7]);
        u32::from(self.crtc[low]) | (overflow >> bit8 & 1) << 8 | (overflow >> bit9 & 1) << 9
    }

    /// Characters in a row that are displayed.
    pub fn horizontal_displayed(&self) -> u32 {
        u32::from(self.crtc[1]) + 1
    }

    /// Characters in a row with all that is not displayed.
    pub fn horizontal_total(&self) -> u32 {
        u32::from(self.crtc[0]) + 5
    }

    /// Scan lines that are displayed.
    pub fn vertical_displayed(&self) -> u32 {
        self.vertical(0x12, 1, 6) + 1
    }

    /// Scan lines in all.
    pub fn vertical_total(&self) -> u32 {
        self.vertical(0x06, 0, 5) + 2
    }

    /// The first scan line of the vertical retrace, and how many it has.
    pub fn vertical_retrace(&self) -> (u32, u32) {
        let start = self.vertical(0x10, 2, 7);
        let lines = u32::from(self.crtc[0x11]).wrapping_sub(start) & 0x0f;
        (start, if lines == 0 { 16 } else { lines })
    }

    /// The scan line after which the picture begins again at address 0.
    pub fn line_compare(&self) -> u32 {
        self.vertical(0x18, 4, 10) & 0x1ff | u32::from(self.crtc[9] & 0x40) << 3
    }

    /// Dots of a character.
    pub fn dots(&self) -> u32 {
        if self.seq[1] & 1 != 0 { 8 } else { 9 }
    }

    /// Each dot is two of the dot clock.
    pub fn half_clock(&self) -> bool {
        self.seq[1] & 1 << 3 != 0
    }

    /// Dots in a second.
    pub fn dot_clock(&self) -> u64 {
        match self.misc >> 2 & 3 {
            1 => 28_322_000,
            _ => 25_175_000,
        }
    }

    /// While a mode of the Bochs interface is on, the registers that decide on the window at A0000h and tell a guest of
    /// the mode have its values.
    pub fn follow_vbe(&mut self) {
        use super::vbe::{BPP, XRES, YRES};
        if !self.vbe.enabled() {
            return;
        }
        // Graphics, at A0000h.
        self.gc[6] = self.gc[6] & !0x0c | 0x05;
        self.seq[1] &= !(1 << 3);
        // Every map, and no row is shown twice.
        self.crtc[0x17] |= 3;
        self.crtc[0x13] = (self.vbe.pitch() >> 3) as u8;
        self.crtc[1] = ((self.vbe.get(XRES) >> 3) - 1) as u8;
        let last = self.vbe.get(YRES) - 1;
        self.crtc[0x12] = last as u8;
        let bits = (last >> 8 & 1) << 1 | (last >> 9 & 1) << 6;
        self.crtc[7] = self.crtc[7] & !0x42 | bits as u8;
        // The line compare is beyond the last row.
        self.crtc[0x18] = 0xff;
        self.crtc[7] |= 0x10;
        self.crtc[9] |= 0x40;
        if self.vbe.get(BPP) == 4 {
            self.gc[5] &= !0x60;
            self.seq[4] &= !0x08;
        } else {
            self.gc[5] = self.gc[5] & !0x60 | 0x40;
            self.seq[4] |= 0x08;
            self.seq[2] |= 0x0f;
        }
        self.crtc[9] &= !0x9f;
    }

    /// The colours of the DAC as pixels; those of the palette mask alone are shown.
    pub fn colour(&self, index: u8) -> u32 {
        let at = 3 * usize::from(index & self.dac.mask);
        let wide = |n: u8| match self.vbe.dac_8bit() {
            true => u32::from(n),
            false => u32::from((n & 0x3f) << 2 | n >> 4 & 3),
        };
        let c = &self.dac.colours[at..at + 3];
        wide(c[0]) << 16 | wide(c[1]) << 8 | wide(c[2])
    }

    /// What the attribute controller makes of four bits.
    pub fn attribute_colour(&self, pixel: u8) -> u8 {
        let palette = self.ac[usize::from(pixel & 0x0f)];
        if self.ac[0x10] & 1 << 7 != 0 {
            palette & 0x0f | self.ac[0x14] << 4
        } else {
            palette & 0x3f | (self.ac[0x14] & 0x0c) << 4
        }
    }

    /// Whether a restored state is one that writes can bring about.
    pub fn is_valid(&self, memory: u64) -> bool {
        let masked = |regs: &[u8], masks: &[u8]| regs.iter().zip(masks).all(|(r, m)| r & !m == 0);
        masked(&self.seq, &SEQ_MASK)
            && masked(&self.gc, &GC_MASK)
            && self.seq_index < 8
            && self.gc_index < 16
            && self.ac_index < 0x40
            && self.dac.component < 3
            && self.vbe.is_valid(memory)
    }
}

fn set(regs: &mut [u8], index: u8, value: u8, masks: &[u8]) {
    if let (Some(reg), Some(mask)) = (regs.get_mut(usize::from(index)), masks.get(usize::from(index))) {
        *reg = value & mask;
    }
}

impl Dac {
    fn begin(&mut self, index: u8, reading: bool) {
        self.component = 0;
        self.reading = reading;
        if reading {
            self.read_index = index;
            // As the chip has one counter, which stands at the next colour.
            self.write_index = index.wrapping_add(1);
        } else {
            self.write_index = index;
        }
    }

    fn read(&mut self) -> u8 {
        let value = self.colours[3 * usize::from(self.read_index) + usize::from(self.component)];
        self.component = (self.component + 1) % 3;
        if self.component == 0 {
            self.read_index = self.read_index.wrapping_add(1);
        }
        value
    }

    fn write(&mut self, value: u8, wide: bool) {
        let value = if wide { value } else { value & 0x3f };
        if let Some(waits) = self.latch.get_mut(usize::from(self.component)) {
            *waits = value;
            self.component += 1;
            return;
        }
        let at = 3 * usize::from(self.write_index);
        self.colours[at..at + 3].copy_from_slice(&[self.latch[0], self.latch[1], value]);
        self.component = 0;
        self.write_index = self.write_index.wrapping_add(1);
    }
}
