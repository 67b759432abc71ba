//! Setting a mode: registers, colours, font, and what the data area says of it.
use super::tables::{self, Lines, Mode, Palette};
use super::{Bios, COLOUR, MONO, Platform, bda, fonts, rom, vbe};

pub(super) const SEQUENCER: u16 = 0x3c4;
pub(super) const GRAPHICS: u16 = 0x3ce;
const ATTRIBUTE: u16 = 0x3c0;
const MISC: u16 = 0x3c2;
/// The attribute controller's palette is the screen's.
const PALETTE_TO_SCREEN: u8 = 0x20;

/// Where the CRTC is.
pub(super) fn crtc_port(pc: &mut dyn Platform) -> u16 {
    if pc.u16(bda::CRTC_PORT) == 0x3b4 { 0x3b4 } else { 0x3d4 }
}

/// Writes a register of an index and a data port.
pub(super) fn set(pc: &mut dyn Platform, port: u16, index: u8, value: u8) {
    pc.outb(port, index);
    pc.outb(port + 1, value);
}

/// Reads one.
pub(super) fn get(pc: &mut dyn Platform, port: u16, index: u8) -> u8 {
    pc.outb(port, index);
    pc.inb(port + 1)
}

/// The next write to the attribute controller is an index.
fn reset_attribute(pc: &mut dyn Platform) {
    let status = crtc_port(pc) + 6;
    pc.inb(status);
}

/// Writes registers of the attribute controller from `first` on.
pub(super) fn set_attributes(pc: &mut dyn Platform, first: u8, values: &[u8]) {
    reset_attribute(pc);
    for (index, value) in (first..).zip(values) {
        pc.outb(ATTRIBUTE, index);
        pc.outb(ATTRIBUTE, *value);
    }
    pc.outb(ATTRIBUTE, PALETTE_TO_SCREEN);
}

/// Reads one of them.
pub(super) fn attribute(pc: &mut dyn Platform, index: u8) -> u8 {
    reset_attribute(pc);
    pc.outb(ATTRIBUTE, index);
    let value = pc.inb(ATTRIBUTE + 1);
    reset_attribute(pc);
    pc.outb(ATTRIBUTE, PALETTE_TO_SCREEN);
    value
}

/// Writes colours of the DAC.
pub(super) fn set_dac<'a>(pc: &mut dyn Platform, first: u8, colours: impl IntoIterator<Item = &'a [u8; 3]>) {
    pc.outb(0x3c8, first);
    for colour in colours {
        colour.iter().for_each(|c| pc.outb(0x3c9, *c));
    }
}

/// Reads a colour.
pub(super) fn dac(pc: &mut dyn Platform, index: u8) -> [u8; 3] {
    pc.outb(0x3c7, index);
    [0; 3].map(|_| pc.inb(0x3c9))
}

/// A grey as bright as a colour.
pub(super) fn grey([r, g, b]: [u8; 3]) -> [u8; 3] {
    let sum = 77 * u32::from(r) + 151 * u32::from(g) + 28 * u32::from(b);
    [((sum + 0x80) >> 8).min(0x3f) as u8; 3]
}

/// Scan lines that text modes are to have.
fn lines(pc: &mut dyn Platform) -> Lines {
    match pc.u8(bda::MODE_CONTROL) & 0x90 {
        0x10 => Lines::L400,
        0x80 => Lines::L200,
        _ => Lines::L350,
    }
}

/// The VGA's mode that is on; none in one of VBE.
pub(super) fn current(pc: &mut dyn Platform) -> Option<Mode> {
    let number = pc.u8(bda::VIDEO_MODE);
    tables::mode(number & 0x7f, Lines::L400)
}

/// The registers of a mode.
pub(super) fn set_registers(pc: &mut dyn Platform, m: &Mode) {
    vbe::disable(pc);
    let crtc = if m.misc & 1 != 0 { 0x3d4 } else { 0x3b4 };
    pc.set_u16(bda::CRTC_PORT, crtc);
    set(pc, SEQUENCER, 0, 1);
    pc.outb(MISC, m.misc);
    for (index, value) in (1..).zip(m.seq) {
        set(pc, SEQUENCER, index, value);
    }
    set(pc, SEQUENCER, 0, 3);
    // Registers 0 to 7 may be protected.
    set(pc, crtc, 0x11, 0);
    for (index, value) in (0..).zip(m.crtc) {
        set(pc, crtc, index, value);
    }
    for (index, value) in (0..).zip(m.graphics()) {
        set(pc, GRAPHICS, index, value);
    }
    set_attributes(pc, 0, &m.attribute());
}

/// The colours of a mode, unless programs keep theirs.
pub(super) fn set_colours(pc: &mut dyn Platform, palette: Palette) {
    let control = pc.u8(bda::MODE_CONTROL);
    pc.outb(0x3c6, 0xff);
    if control & 0x08 != 0 {
        return;
    }
    let mut colours = tables::dac(palette);
    if control & 0x02 != 0 {
        colours.iter_mut().for_each(|c| *c = grey(*c));
    }
    set_dac(pc, 0, &colours);
}

impl Bios {
    /// Sets one of the VGA's modes; false if there is none of this number.
    pub(super) fn set_adapter_mode(&mut self, pc: &mut dyn Platform, number: u8, keep: bool) -> bool {
        let lines = lines(pc);
        let Some(m) = tables::mode(number, lines) else { return false };
        set_registers(pc, &m);
        set_colours(pc, m.palette);
        if !keep {
            clear(pc, &m);
        }
        if m.layout == tables::Layout::Text {
            fonts::load(pc, 0, 0, m.height, fonts::rom_font(m.height));
        }
        describe(pc, &m);
        let control = pc.u8(bda::VIDEO_CONTROL) & 0x7f;
        pc.set_u8(bda::VIDEO_CONTROL, control | if keep { 0x80 } else { 0 });
        true
    }
}

/// The memory that a mode shows.
fn clear(pc: &mut dyn Platform, m: &Mode) {
    let (bytes, len): (&[u8], usize) = match m.layout {
        tables::Layout::Text => (&[b' ', 7], 0x8000),
        tables::Layout::Cga(_) => (&[0, 0], 0x8000),
        tables::Layout::Planar | tables::Layout::Bytes => (&[0, 0], 0x1_0000),
    };
    pc.write(m.base(), &bytes.repeat(len / 2));
}

/// What the data area says of a mode.
pub(super) fn describe(pc: &mut dyn Platform, m: &Mode) {
    let text = m.layout == tables::Layout::Text;
    pc.set_u8(bda::VIDEO_MODE, m.number);
    pc.set_u16(bda::VBE_MODE, m.number.into());
    pc.set_u16(bda::VIDEO_COLUMNS, m.columns.into());
    pc.set_u16(bda::VIDEO_PAGE_SIZE, m.page);
    pc.set_u16(bda::VIDEO_PAGE_START, 0);
    pc.write(bda::CURSORS, &[0; 16]);
    pc.set_u16(bda::CURSOR_SHAPE, if text { 0x0607 } else { 0 });
    pc.set_u8(bda::VIDEO_PAGE, 0);
    pc.set_u8(bda::VIDEO_ROWS, m.rows - 1);
    pc.set_u16(bda::CHAR_HEIGHT, m.height.into());
    // What a CGA's control and colour registers would hold.
    let control = match m.number {
        0..=7 => [0x2c, 0x28, 0x2d, 0x29, 0x2a, 0x2e, 0x1e, 0x29][usize::from(m.number)],
        _ => 0,
    };
    pc.set_u8(bda::CGA_CONTROL, control);
    pc.set_u8(bda::CGA_COLOURS, if m.number == 6 { 0x3f } else { 0x30 });
    let equipment = pc.u16(bda::EQUIPMENT) & !0x30;
    pc.set_u16(bda::EQUIPMENT, equipment | if m.misc & 1 != 0 { COLOUR } else { MONO });
    pc.set_u32(4 * 0x43, rom::font_pointer(m.height));
    pc.set_u32(4 * 0x1f, rom::upper_font_pointer());
}
