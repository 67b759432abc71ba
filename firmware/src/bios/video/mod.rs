//! INT 10h: the text screen of a serial console, and a VGA if there is one.
//!
//! ```text
//!   INT 10h --> video ---+--> terminal   what text there is, for a serial port and debug ports
//!                        +--> adapter    characters (text), pixels (graphics), modes, registers, fonts, state, vbe
//! ```
//!
//! Position and size of the screen are the BIOS data area's, as programs change them there. Without an adapter there
//! are text modes only, of which the screen of `terminal` is all; with one, what is written to the page that shows goes
//! to the terminal as well, in graphics modes too. The adapter is QEMU's standard VGA: everything is done by its ports
//! and by the window at A0000h, but for linear pixels, which are at its BAR 0.
//!
//! Not there: light pen, the bell, the save pointer's tables of programs, VBE's protected-mode entry point (PMID).
//!
//! Sources: IBM PS/2 and PC BIOS Interface Technical Reference, INT 10h; VESA BIOS Extension 3.0.
mod fonts;
mod glyphs;
mod graphics;
mod modes;
mod registers;
pub(super) mod rom;
mod state;
mod tables;
mod terminal;
mod text;
mod vbe;

use super::{Bios, Outcome, Platform, Regs, bda, linear};
pub(super) use terminal::Screen;

/// The ROM's font of 8 lines.
pub(super) fn font_8() -> &'static [u8] {
    fonts::rom_font(8)
}

/// What a mode set leaves in the data area, for mode 3.
pub(super) fn initial_bda() -> Vec<(u32, Vec<u8>)> {
    vec![
        (bda::VIDEO_MODE, vec![3]),
        (bda::VIDEO_COLUMNS, vec![80, 0]),
        (bda::VIDEO_PAGE_SIZE, 0x1000u16.to_le_bytes().to_vec()),
        (bda::VIDEO_PAGE_START, vec![0; 2]),
        (bda::CURSORS, vec![0; 16]),
        (bda::CURSOR_SHAPE, vec![0x07, 0x06]),
        (bda::VIDEO_PAGE, vec![0]),
        (bda::CRTC_PORT, 0x3d4u16.to_le_bytes().to_vec()),
        (bda::VIDEO_ROWS, vec![24]),
        (bda::CHAR_HEIGHT, vec![16, 0]),
    ]
}

/// Columns and rows of the screen.
fn size(pc: &mut dyn Platform) -> (u8, u8) {
    let columns = pc.u16(bda::VIDEO_COLUMNS).clamp(1, 255) as u8;
    (columns, pc.u8(bda::VIDEO_ROWS).min(254) + 1)
}

/// The cursor of a page: row and column, on the screen.
fn position(pc: &mut dyn Platform, page: u8) -> (u8, u8) {
    let (columns, rows) = size(pc);
    let at = pc.u16(cursor_of(page));
    (((at >> 8) as u8).min(rows - 1), (at as u8).min(columns - 1))
}

fn cursor_of(page: u8) -> u32 {
    bda::CURSORS + 2 * u32::from(page & 7)
}

/// Bit 5 and up of the equipment word's low byte: a monochrome or a colour adapter.
const MONO: u16 = 0x30;
const COLOUR: u16 = 0x20;

impl Bios {
    /// Finds the adapter and brings it to life, in mode 3.
    pub(super) fn start_video(&mut self, pc: &mut dyn Platform) {
        self.adapter = rom::adapter(pc);
        if self.adapter.is_some() {
            rom::install(pc);
            for (at, byte) in
                [(bda::VIDEO_CONTROL, 0x60), (bda::VIDEO_SWITCHES, 0xf9), (bda::MODE_CONTROL, 0x51)]
            {
                pc.set_u8(at, byte);
            }
            pc.set_u8(bda::DISPLAY_COMBINATION, 8);
            pc.set_u32(bda::SAVE_POINTER, rom::save_pointer());
            self.set_adapter_mode(pc, 3, false);
        }
    }

    /// INT 10h.
    pub(super) fn video(&mut self, r: &mut Regs, pc: &mut dyn Platform) -> Outcome {
        let has_adapter = self.adapter.is_some();
        match r.ah() {
            0x00 => self.set_mode(r, pc),
            0x01 => {
                pc.set_u16(bda::CURSOR_SHAPE, r.cx());
                self.show_cursor_shape(pc);
            }
            0x02 => self.set_cursor(pc, r.bh(), r.dh(), r.dl()),
            0x03 => {
                let (at, shape) = (pc.u16(cursor_of(r.bh())), pc.u16(bda::CURSOR_SHAPE));
                r.set_dx(at);
                r.set_cx(shape);
            }
            // The light pen is not there.
            0x04 => r.set_ah(0),
            0x05 if has_adapter => self.show_page(pc, r.al()),
            0x06 | 0x07 => {
                let (columns, rows) = size(pc);
                let window = text::Window {
                    top: r.ch(),
                    left: r.cl(),
                    bottom: r.dh().min(rows - 1),
                    right: r.dl().min(columns - 1),
                };
                let page = pc.u8(bda::VIDEO_PAGE);
                self.scroll(pc, page, window, r.al(), r.ah() == 6, r.bh());
            }
            0x08 => {
                let (row, column) = position(pc, r.bh());
                let (c, attribute) = self.cell(pc, r.bh(), row, column);
                r.set_al(c);
                r.set_ah(attribute);
            }
            0x09 | 0x0a => self.repeat(r, pc),
            0x0b if has_adapter => registers::cga_palette(r, pc),
            0x0c if has_adapter => self.set_pixel(r, pc),
            0x0d if has_adapter => self.get_pixel(r, pc),
            0x0e => {
                let page = pc.u8(bda::VIDEO_PAGE);
                self.teletype(pc, page, r.al(), None, r.bl());
            }
            0x0f => {
                let kept = pc.u8(bda::VIDEO_CONTROL) & 0x80;
                r.set_al(pc.u8(bda::VIDEO_MODE) | kept);
                r.set_ah(pc.u16(bda::VIDEO_COLUMNS) as u8);
                r.set_bh(pc.u8(bda::VIDEO_PAGE));
            }
            0x10 if has_adapter => registers::palette(r, pc),
            0x11 if has_adapter => self.fonts(r, pc),
            // Information is that of a 16-line font, whose bits there are not.
            0x11 if r.al() == 0x30 => {
                r.set_cx(16);
                r.set_dl(24);
            }
            0x12 if has_adapter => registers::alternate_select(r, pc),
            0x13 => self.write_string(r, pc),
            0x1a if has_adapter => state::display_combination(r, pc),
            0x1b if has_adapter => state::functionality(r, pc),
            0x1c if has_adapter => state::save_restore(r, pc),
            0x4f if has_adapter && !self.cfg.text_only => self.vbe(r, pc),
            _ => {}
        }
        Outcome::Return
    }

    /// AH 00h.
    fn set_mode(&mut self, r: &mut Regs, pc: &mut dyn Platform) {
        let (mode, keep) = (r.al() & 0x7f, r.al() & 0x80 != 0);
        if self.adapter.is_some() {
            if !self.set_adapter_mode(pc, mode, keep) {
                return;
            }
            self.fit_terminal(pc);
        } else {
            if !matches!(mode, 0..=3 | 7) {
                tracing::debug!(mode, "INT 10h: no such video mode without an adapter");
                return;
            }
            for (at, bytes) in initial_bda() {
                pc.write(at, &bytes);
            }
            pc.set_u8(bda::VIDEO_MODE, mode);
            if mode < 2 {
                pc.set_u16(bda::VIDEO_COLUMNS, 40);
            }
        }
        if !keep {
            self.clear_terminal(pc);
        }
        r.set_al(match mode {
            6 => 0x3f,
            0..=7 => 0x30,
            _ => 0x20,
        });
    }

    /// AH 09h and 0Ah: a character, so many times, from the cursor on.
    fn repeat(&mut self, r: &Regs, pc: &mut dyn Platform) {
        let (columns, rows) = size(pc);
        let (row, column) = position(pc, r.bh());
        let first = u32::from(row) * u32::from(columns) + u32::from(column);
        let end = (first + u32::from(r.cx())).min(u32::from(columns) * u32::from(rows));
        // On a screen of characters AH 0Ah leaves the attributes; pixels have the colour in either case.
        let attribute = (r.ah() == 9).then(|| r.bl());
        for at in first..end {
            let (row, column) = ((at / u32::from(columns)) as u8, (at % u32::from(columns)) as u8);
            self.put(pc, r.bh(), row, column, r.al(), attribute, r.bl());
        }
    }

    /// AH 13h: AL bit 0 moves the cursor, bit 1 has attributes between the characters.
    fn write_string(&mut self, r: &Regs, pc: &mut dyn Platform) {
        let page = r.bh() & 7;
        let before = pc.u16(cursor_of(page));
        self.set_cursor(pc, page, r.dh(), r.dl());
        let mut at = r.ebp as u16;
        for _ in 0..r.cx() {
            let c = pc.u8(linear(r.es, at));
            at = at.wrapping_add(1);
            let mut attribute = r.bl();
            if r.al() & 2 != 0 {
                attribute = pc.u8(linear(r.es, at));
                at = at.wrapping_add(1);
            }
            self.teletype(pc, page, c, Some(attribute), attribute);
        }
        if r.al() & 1 == 0 {
            self.set_cursor(pc, page, (before >> 8) as u8, before as u8);
        }
    }

    /// Prints a text as the firmware itself does.
    pub(super) fn print(&mut self, pc: &mut dyn Platform, text: &str) {
        for c in text.bytes() {
            let page = pc.u8(bda::VIDEO_PAGE);
            if c == b'\n' {
                self.teletype(pc, page, b'\r', None, 7);
            }
            self.teletype(pc, page, c, None, 7);
        }
    }
}
