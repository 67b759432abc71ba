//! AH 11h: the fonts, in the ROM and in plane 2.
use super::glyphs::{FONT_8, FONT_14, FONT_16};
use super::modes::{self, GRAPHICS, SEQUENCER, get, set};
use super::tables::Layout;
use super::{Bios, Platform, Regs, bda, linear, rom};

/// The ROM's font of this height.
pub(super) fn rom_font(height: u8) -> &'static [u8] {
    match height {
        8 => &FONT_8,
        14 => &FONT_14,
        _ => &FONT_16,
    }
}

/// Bytes of a character in plane 2.
const SLOT: usize = 32;

/// Puts characters from `first` on into one of the eight fonts in plane 2.
pub(super) fn load(pc: &mut dyn Platform, block: u8, first: u8, height: u8, glyphs: &[u8]) {
    let height = usize::from(height.clamp(1, 32));
    let mono = modes::crtc_port(pc) == 0x3b4;
    // Plane 2 alone, in a row, at A0000h; then as text modes have it.
    for (port, index, value) in
        [(SEQUENCER, 2, 4), (SEQUENCER, 4, 7), (GRAPHICS, 4, 2), (GRAPHICS, 5, 0), (GRAPHICS, 6, 4)]
    {
        set(pc, port, index, value);
    }
    let mut at = 0xa_0000 + (u32::from(block & 3) << 14) + (u32::from(block & 4) << 11);
    at += u32::from(first) * SLOT as u32;
    for glyph in glyphs.chunks(height).take(256 - usize::from(first)) {
        let mut slot = [0; SLOT];
        slot[..glyph.len()].copy_from_slice(glyph);
        // Lines below the font's own stay.
        pc.write(at, &slot[..height.next_multiple_of(2).min(SLOT)]);
        at += SLOT as u32;
    }
    let map = if mono { 0x0a } else { 0x0e };
    for (port, index, value) in
        [(SEQUENCER, 2, 3), (SEQUENCER, 4, 2), (GRAPHICS, 4, 0), (GRAPHICS, 5, 0x10), (GRAPHICS, 6, map)]
    {
        set(pc, port, index, value);
    }
}

impl Bios {
    /// AH 11h.
    pub(super) fn fonts(&mut self, r: &mut Regs, pc: &mut dyn Platform) {
        match r.al() {
            0x00 | 0x10 => {
                let height = r.bh().clamp(1, 32);
                let mut glyphs = vec![0; usize::from(r.cx().min(256)) * usize::from(height)];
                pc.read(linear(r.es, r.ebp as u16), &mut glyphs);
                self.load_font(pc, r.al() == 0x10, r.bl(), r.dx() as u8, height, &glyphs);
            }
            0x01 | 0x11 => self.load_font(pc, r.al() == 0x11, r.bl(), 0, 14, &FONT_14),
            0x02 | 0x12 => self.load_font(pc, r.al() == 0x12, r.bl(), 0, 8, &FONT_8),
            0x04 | 0x14 => self.load_font(pc, r.al() == 0x14, r.bl(), 0, 16, &FONT_16),
            0x03 => set(pc, SEQUENCER, 3, r.bl()),
            0x20 => pc.set_u32(4 * 0x1f, far(r.es, r.ebp as u16)),
            0x21 => self.graphics_font(pc, far(r.es, r.ebp as u16), r.cx().clamp(1, 32) as u8, r),
            0x22 => self.graphics_font(pc, rom::font_pointer(14), 14, r),
            0x23 => self.graphics_font(pc, rom::font_pointer(8), 8, r),
            0x24 => self.graphics_font(pc, rom::font_pointer(16), 16, r),
            0x30 => {
                let pointer = match r.bh() {
                    0 => pc.u32(4 * 0x1f),
                    1 => pc.u32(4 * 0x43),
                    2 => rom::font_pointer(14),
                    3 => rom::font_pointer(8),
                    4 => rom::upper_font_pointer(),
                    5 | 7 => rom::alternate_font_pointer(),
                    6 => rom::font_pointer(16),
                    _ => return,
                };
                r.es = (pointer >> 16) as u16;
                r.ebp = r.ebp & !0xffff | pointer & 0xffff;
                let height = pc.u16(bda::CHAR_HEIGHT);
                r.set_cx(height);
                let last = pc.u8(bda::VIDEO_ROWS);
                r.set_dl(last);
            }
            _ => {}
        }
    }

    /// Loads a font; with `fits` rows and cursor follow its height.
    fn load_font(
        &mut self,
        pc: &mut dyn Platform,
        fits: bool,
        block: u8,
        first: u8,
        height: u8,
        glyphs: &[u8],
    ) {
        if self.layout(pc) != Layout::Text {
            return;
        }
        load(pc, block, first, height, glyphs);
        if !fits {
            return;
        }
        let crtc = modes::crtc_port(pc);
        let scan = get(pc, crtc, 9);
        set(pc, crtc, 9, scan & 0xe0 | (height - 1));
        let overflow = get(pc, crtc, 7);
        let lines = u16::from(get(pc, crtc, 0x12))
            + (u16::from(overflow >> 1 & 1) << 8)
            + (u16::from(overflow >> 6 & 1) << 9)
            + 1;
        // Each line may be shown twice.
        let shown = u16::from(height) << (scan >> 7);
        let rows = (lines / shown).clamp(1, 255);
        let last = rows * shown - 1;
        set(pc, crtc, 0x12, last as u8);
        let bits = (last >> 8 & 1) << 1 | (last >> 9 & 1) << 6;
        set(pc, crtc, 7, overflow & !0x42 | bits as u8);
        if pc.u8(bda::VIDEO_MODE) == 7 {
            set(pc, crtc, 0x14, height - 1);
        }
        let columns = pc.u16(bda::VIDEO_COLUMNS).min(255);
        pc.set_u8(bda::VIDEO_ROWS, (rows - 1) as u8);
        pc.set_u16(bda::CHAR_HEIGHT, height.into());
        pc.set_u16(bda::VIDEO_PAGE_SIZE, (rows * columns * 2).next_multiple_of(0x100));
        self.show_cursor_shape(pc);
    }

    /// AL 20h and up: the font of graphics modes; BL is how many rows there are.
    fn graphics_font(&mut self, pc: &mut dyn Platform, pointer: u32, height: u8, r: &Regs) {
        pc.set_u32(4 * 0x43, pointer);
        pc.set_u16(bda::CHAR_HEIGHT, height.into());
        let rows = match r.bl() {
            0 => r.dl(),
            1 => 14,
            3 => 43,
            _ => 25,
        };
        pc.set_u8(bda::VIDEO_ROWS, rows.saturating_sub(1));
    }
}

fn far(segment: u16, offset: u16) -> u32 {
    u32::from(segment) << 16 | u32::from(offset)
}
