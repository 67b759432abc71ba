//! AH 4Fh: VBE 3.0, the linear modes of the Bochs display interface.
//!
//! Mode numbers are VESA's below 120h, then those that Bochs has given to others. A mode that there is no memory for is
//! not in the list. Modes of 8 bits and more are linear at BAR 0, and have a window of 64 KiB at A0000h; those of 4
//! bits have the window alone.
//!
//! Not there: hardware that waits for the retrace (set display start at the retrace does it at once), triple buffering,
//! stereo, refresh rates that are chosen.
//!
//! Sources: VESA BIOS Extension 3.0; VBE/DDC 1.1; VBE/PM 1.0; Bochs' VBE display API.
use super::modes::{self, SEQUENCER, dac, get, set, set_dac};
use super::tables::{self, Lines, Palette};
use super::{Bios, Platform, Regs, bda, graphics, linear as far, rom, state};
use crate::bios::pci;

/// The Bochs interface: the index's port, and the data's next to it.
pub(super) const INDEX: u16 = 0x1ce;
const DATA: u16 = 0x1cf;
const ID: u16 = 0;
const XRES: u16 = 1;
const YRES: u16 = 2;
pub(super) const BPP: u16 = 3;
const ENABLE: u16 = 4;
pub(super) const BANK: u16 = 5;
pub(super) const VIRT_WIDTH: u16 = 6;
const VIRT_HEIGHT: u16 = 7;
pub(super) const X_OFFSET: u16 = 8;
pub(super) const Y_OFFSET: u16 = 9;
const MEMORY_64K: u16 = 10;
/// Bits of ENABLE.
const ON: u16 = 1;
const DAC_8BIT: u16 = 0x20;
const LINEAR: u16 = 0x40;
const KEEP: u16 = 0x80;

/// Bits of the mode number of 4F02h.
const WITH_LINEAR: u16 = 0x4000;
const WITHOUT_CLEARING: u16 = 0x8000;
const NUMBER: u16 = 0x01ff;

/// Modes: number, width, height, bits.
const MODES: [(u16, u16, u16, u16); 82] = [
    (0x100, 640, 400, 8),
    (0x101, 640, 480, 8),
    (0x102, 800, 600, 4),
    (0x103, 800, 600, 8),
    (0x104, 1024, 768, 4),
    (0x105, 1024, 768, 8),
    (0x106, 1280, 1024, 4),
    (0x107, 1280, 1024, 8),
    (0x10d, 320, 200, 15),
    (0x10e, 320, 200, 16),
    (0x10f, 320, 200, 24),
    (0x110, 640, 480, 15),
    (0x111, 640, 480, 16),
    (0x112, 640, 480, 24),
    (0x113, 800, 600, 15),
    (0x114, 800, 600, 16),
    (0x115, 800, 600, 24),
    (0x116, 1024, 768, 15),
    (0x117, 1024, 768, 16),
    (0x118, 1024, 768, 24),
    (0x119, 1280, 1024, 15),
    (0x11a, 1280, 1024, 16),
    (0x11b, 1280, 1024, 24),
    (0x11c, 1600, 1200, 8),
    (0x11d, 1600, 1200, 15),
    (0x11e, 1600, 1200, 16),
    (0x11f, 1600, 1200, 24),
    (0x140, 320, 200, 32),
    (0x141, 640, 400, 32),
    (0x142, 640, 480, 32),
    (0x143, 800, 600, 32),
    (0x144, 1024, 768, 32),
    (0x145, 1280, 1024, 32),
    (0x146, 320, 200, 8),
    (0x147, 1600, 1200, 32),
    (0x148, 1152, 864, 8),
    (0x149, 1152, 864, 15),
    (0x14a, 1152, 864, 16),
    (0x14b, 1152, 864, 24),
    (0x14c, 1152, 864, 32),
    (0x175, 1280, 768, 16),
    (0x176, 1280, 768, 24),
    (0x177, 1280, 768, 32),
    (0x178, 1280, 800, 16),
    (0x179, 1280, 800, 24),
    (0x17a, 1280, 800, 32),
    (0x17b, 1280, 960, 16),
    (0x17c, 1280, 960, 24),
    (0x17d, 1280, 960, 32),
    (0x17e, 1440, 900, 16),
    (0x17f, 1440, 900, 24),
    (0x180, 1440, 900, 32),
    (0x181, 1400, 1050, 16),
    (0x182, 1400, 1050, 24),
    (0x183, 1400, 1050, 32),
    (0x184, 1680, 1050, 16),
    (0x185, 1680, 1050, 24),
    (0x186, 1680, 1050, 32),
    (0x187, 1920, 1200, 16),
    (0x188, 1920, 1200, 24),
    (0x189, 1920, 1200, 32),
    (0x18a, 2560, 1600, 16),
    (0x18b, 2560, 1600, 24),
    (0x18c, 2560, 1600, 32),
    (0x18d, 1280, 720, 16),
    (0x18e, 1280, 720, 24),
    (0x18f, 1280, 720, 32),
    (0x190, 1920, 1080, 16),
    (0x191, 1920, 1080, 24),
    (0x192, 1920, 1080, 32),
    (0x193, 1600, 900, 8),
    (0x194, 1600, 900, 16),
    (0x195, 1600, 900, 24),
    (0x196, 1600, 900, 32),
    (0x197, 2560, 1440, 8),
    (0x198, 2560, 1440, 16),
    (0x199, 2560, 1440, 24),
    (0x19a, 2560, 1440, 32),
    (0x19b, 1366, 768, 8),
    (0x19c, 1366, 768, 16),
    (0x19d, 1366, 768, 24),
    (0x19e, 1366, 768, 32),
];

fn read(pc: &mut dyn Platform, register: u16) -> u16 {
    pc.port_out(INDEX, 2, register.into());
    pc.port_in(DATA, 2) as u16
}

fn write(pc: &mut dyn Platform, register: u16, value: u16) {
    pc.port_out(INDEX, 2, register.into());
    pc.port_out(DATA, 2, value.into());
}

/// The VGA's own modes are back.
pub(super) fn disable(pc: &mut dyn Platform) {
    write(pc, ENABLE, 0);
}

/// Which 64 KiB the window shows.
pub(super) fn set_bank(pc: &mut dyn Platform, bank: u16) {
    write(pc, BANK, bank);
}

/// All that is stored, for a saved state.
pub(super) fn registers(pc: &mut dyn Platform) -> [u16; 10] {
    std::array::from_fn(|n| read(pc, n as u16))
}

/// Stores it again.
pub(super) fn set_registers(pc: &mut dyn Platform, values: impl Iterator<Item = u16>) {
    let all: Vec<u16> = values.take(10).collect();
    let order = [ID, XRES, YRES, BPP, ENABLE, BANK, VIRT_WIDTH, X_OFFSET, Y_OFFSET];
    for n in order {
        let value = all.get(usize::from(n)).copied().unwrap_or(0);
        write(pc, n, if n == ENABLE { value | KEEP } else { value });
    }
}

fn memory(pc: &mut dyn Platform) -> u32 {
    u32::from(read(pc, MEMORY_64K)) << 16
}

/// Of the linear mode that is on: its bits, bytes from line to line, bytes of memory.
pub(super) fn linear(pc: &mut dyn Platform) -> Option<(u16, u32, u32)> {
    let (enable, bits) = (read(pc, ENABLE), read(pc, BPP));
    let pitch = pitch(read(pc, VIRT_WIDTH), bits);
    let memory = memory(pc);
    (enable & ON != 0).then_some((bits, pitch, memory))
}

fn pitch(width: u16, bits: u16) -> u32 {
    match bits {
        4 => u32::from(width) / 8,
        _ => u32::from(width) * u32::from(bits.div_ceil(8)),
    }
}

/// The physical address of the framebuffer.
pub(super) fn framebuffer(pc: &mut dyn Platform, adapter: u16) -> u64 {
    (pci::read(pc, adapter, 0x10, 4) & !0xf).into()
}

/// Places and sizes of red, green, blue and what is left, as mode information has them: size, place.
fn fields(bits: u16) -> [u8; 8] {
    match bits {
        15 => [5, 10, 5, 5, 5, 0, 1, 15],
        16 => [5, 11, 6, 5, 5, 0, 0, 0],
        24 => [8, 16, 8, 8, 8, 0, 0, 0],
        32 => [8, 16, 8, 8, 8, 0, 8, 24],
        _ => [0; 8],
    }
}

/// A pixel of one of the 16 colours.
pub(super) fn pixel(bits: u16, colour: u8) -> u32 {
    if bits <= 8 {
        return colour.into();
    }
    let f = fields(bits);
    let parts = graphics::rgb(colour).into_iter().zip(f.chunks_exact(2));
    parts.fold(0, |all, (c, f)| all | (u32::from(c) >> (8 - f[0])) << f[1])
}

/// A mode that there is memory for.
fn mode(pc: &mut dyn Platform, number: u16) -> Option<(u16, u16, u16)> {
    let (_, width, height, bits) = *MODES.iter().find(|m| m.0 == number)?;
    // The adapter has widths of eight pixels.
    let need = pitch(width & !7, bits) * u32::from(height) * if bits == 4 { 4 } else { 1 };
    (need <= memory(pc)).then_some((width & !7, height, bits))
}

impl Bios {
    /// AH 4Fh.
    pub(super) fn vbe(&mut self, r: &mut Regs, pc: &mut dyn Platform) {
        let Some(adapter) = self.adapter else { return };
        let done = match r.al() {
            0x00 => information(r, pc),
            0x01 => mode_information(r, pc, adapter),
            0x02 => self.set_vbe_mode(pc, r.bx()),
            0x03 => {
                let mode = pc.u16(bda::VBE_MODE);
                r.set_bx(mode);
                true
            }
            0x04 => save_restore(r, pc),
            0x05 => window(r, pc),
            0x06 => line_length(r, pc),
            0x07 => display_start(r, pc),
            0x08 => dac_width(r, pc),
            0x09 => palette(r, pc),
            0x0a => protected_interface(r, pc),
            0x10 => power(r, pc),
            0x15 => identification(r, pc, adapter),
            _ => {
                r.set_ax(0x0100);
                return;
            }
        };
        r.set_ax(if done { 0x004f } else { 0x014f });
    }

    fn set_vbe_mode(&mut self, pc: &mut dyn Platform, wanted: u16) -> bool {
        let (number, keep) = (wanted & NUMBER, wanted & WITHOUT_CLEARING != 0);
        if number < 0x100 {
            let set = number < 0x80 && self.set_adapter_mode(pc, number as u8, keep);
            if set {
                self.fit_terminal(pc);
            }
            return set;
        }
        let Some((width, height, bits)) = mode(pc, number) else { return false };
        if bits == 4 && wanted & WITH_LINEAR != 0 {
            return false;
        }
        let base = if bits == 4 { 0x12 } else { 0x13 };
        if let Some(m) = tables::mode(base, Lines::L400) {
            modes::set_registers(pc, &m);
            modes::describe(pc, &m);
        }
        modes::set_colours(pc, if bits == 4 { Palette::Ega } else { Palette::Vga });
        for (register, value) in [(XRES, width), (YRES, height), (BPP, bits)] {
            write(pc, register, value);
        }
        write(pc, ENABLE, ON | LINEAR | if keep { KEEP } else { 0 });
        pc.set_u8(bda::VIDEO_MODE, 0xff);
        pc.set_u16(bda::VBE_MODE, number | wanted & (WITH_LINEAR | WITHOUT_CLEARING));
        pc.set_u16(bda::VIDEO_COLUMNS, width / 8);
        pc.set_u8(bda::VIDEO_ROWS, (height / 16).saturating_sub(1).min(254) as u8);
        pc.set_u16(bda::CHAR_HEIGHT, 16);
        pc.set_u32(4 * 0x43, rom::font_pointer(16));
        self.fit_terminal(pc);
        true
    }
}

/// 4F00h.
fn information(r: &Regs, pc: &mut dyn Platform) -> bool {
    let at = far(r.es, r.edi as u16);
    let two = pc.u32(at) == u32::from_le_bytes(*b"VBE2");
    let mut b = vec![0; if two { 512 } else { 256 }];
    // Modes are told behind the fields, in the block itself.
    const LIST: u16 = 0x22;
    b[..6].copy_from_slice(b"VESA\x00\x03");
    b[6..10].copy_from_slice(&rom::pointer(rom::OEM).to_le_bytes());
    // The DAC can have eight bits.
    b[10] = 1;
    let list = u32::from(r.es) << 16 | u32::from((r.edi as u16).wrapping_add(LIST));
    b[14..18].copy_from_slice(&list.to_le_bytes());
    let units = read(pc, MEMORY_64K);
    b[18..20].copy_from_slice(&units.to_le_bytes());
    if two {
        b[20..22].copy_from_slice(&[0, 1]);
        for (n, name) in [rom::VENDOR, rom::PRODUCT, rom::REVISION].into_iter().enumerate() {
            b[22 + 4 * n..26 + 4 * n].copy_from_slice(&rom::pointer(name).to_le_bytes());
        }
    }
    let mut place = usize::from(LIST);
    for (number, ..) in MODES {
        if mode(pc, number).is_some() {
            b[place..place + 2].copy_from_slice(&number.to_le_bytes());
            place += 2;
        }
    }
    b[place..place + 2].copy_from_slice(&[0xff; 2]);
    pc.write(at, &b);
    true
}

/// 4F01h.
fn mode_information(r: &Regs, pc: &mut dyn Platform, adapter: u16) -> bool {
    let Some((width, height, bits)) = mode(pc, r.cx() & NUMBER) else { return false };
    let planar = bits == 4;
    let mut b = [0; 256];
    let mut put = |at: usize, bytes: &[u8]| b[at..at + bytes.len()].copy_from_slice(bytes);
    // There, with all information, text by INT 10h, in colours, graphics; linear.
    put(0, &(0x1f | if planar { 0 } else { 0x80_u16 }).to_le_bytes());
    // Window A: there, read and written, 64 KiB in steps of 64, at A000h.
    put(2, &[7, 0, 64, 0, 64, 0, 0x00, 0xa0, 0, 0]);
    put(12, &rom::pointer(rom::WINDOW_FUNCTION).to_le_bytes());
    let pitch = pitch(width, bits);
    let pitch_bytes = (pitch as u16).to_le_bytes();
    put(16, &pitch_bytes);
    put(18, &width.to_le_bytes());
    put(20, &height.to_le_bytes());
    put(22, &[8, 16, if planar { 4 } else { 1 }, bits as u8, 1]);
    // Memory models: planes, packed, direct colour.
    let model = match bits {
        4 => 3,
        8 => 4,
        _ => 6,
    };
    let planes = if planar { 4 } else { 1 };
    let pages = memory(pc) / (pitch * u32::from(height) * planes).max(1);
    let pages = pages.saturating_sub(1).min(255) as u8;
    put(27, &[model, 0, pages, 1]);
    put(31, &fields(bits));
    // What is left over in a pixel may be used; colours of direct modes cannot be programmed.
    put(39, &[if bits > 8 { 2 } else { 0 }]);
    if !planar {
        put(40, &(framebuffer(pc, adapter) as u32).to_le_bytes());
        // VBE 3: the same for linear modes.
        put(50, &pitch_bytes);
        put(52, &[pages, pages]);
        put(54, &fields(bits));
        put(62, &230_000_000_u32.to_le_bytes());
    }
    pc.write(far(r.es, r.edi as u16), &b);
    true
}

/// 4F04h.
fn save_restore(r: &mut Regs, pc: &mut dyn Platform) -> bool {
    let parts = r.cx() & 0x0f;
    match r.dl() {
        0 => r.set_bx(state::blocks(parts)),
        1 | 2 => state::transfer(pc, parts, far(r.es, r.bx()), r.dl() == 1),
        _ => return false,
    }
    true
}

/// 4F05h: there is window A, of banks of 64 KiB.
fn window(r: &mut Regs, pc: &mut dyn Platform) -> bool {
    if r.bl() != 0 || linear(pc).is_none() {
        return false;
    }
    match r.bh() {
        0 => {
            set_bank(pc, r.dx());
            read(pc, BANK) == r.dx()
        }
        1 => {
            let bank = read(pc, BANK);
            r.set_dx(bank);
            true
        }
        _ => false,
    }
}

/// 4F06h.
fn line_length(r: &mut Regs, pc: &mut dyn Platform) -> bool {
    let Some((bits, _, memory)) = linear(pc) else { return false };
    let planes = if bits == 4 { 4 } else { 1 };
    let per_pixel = u32::from(bits.div_ceil(8));
    // As much as there is memory for of the rows that show.
    let rows = u32::from(read(pc, YRES)).max(1);
    let most = (memory / planes / rows).min(0xffff);
    let most_pixels = if bits == 4 { most * 8 } else { most / per_pixel }.min(16_000) & !7;
    match r.bl() {
        0 | 2 => {
            let wanted = match (r.bl(), bits) {
                (0, _) => u32::from(r.cx()),
                (_, 4) => u32::from(r.cx()) * 8,
                _ => u32::from(r.cx()).div_ceil(per_pixel),
            };
            let wanted = wanted.next_multiple_of(8);
            if wanted > most_pixels {
                return false;
            }
            write(pc, VIRT_WIDTH, wanted as u16);
        }
        1 => {}
        3 => {
            r.set_bx(pitch(most_pixels as u16, bits) as u16);
            r.set_cx(most_pixels as u16);
            r.set_dx(rows as u16);
            return true;
        }
        _ => return false,
    }
    let width = read(pc, VIRT_WIDTH);
    let height = read(pc, VIRT_HEIGHT);
    r.set_bx(pitch(width, bits) as u16);
    r.set_cx(width);
    r.set_dx(height);
    true
}

/// 4F07h.
fn display_start(r: &mut Regs, pc: &mut dyn Platform) -> bool {
    if linear(pc).is_none() {
        return false;
    }
    match r.bl() {
        0 | 0x80 => {
            write(pc, X_OFFSET, r.cx());
            write(pc, Y_OFFSET, r.dx());
            // What would lie beyond the memory is refused.
            read(pc, X_OFFSET) == r.cx() && read(pc, Y_OFFSET) == r.dx()
        }
        1 => {
            let (x, y) = (read(pc, X_OFFSET), read(pc, Y_OFFSET));
            r.set_bh(0);
            r.set_cx(x);
            r.set_dx(y);
            true
        }
        _ => false,
    }
}

/// 4F08h.
fn dac_width(r: &mut Regs, pc: &mut dyn Platform) -> bool {
    if linear(pc).is_none_or(|(bits, ..)| bits > 8) {
        return false;
    }
    match r.bl() {
        0 => {
            let wide = r.bh() >= 8;
            // Neither clears the memory.
            let now = read(pc, ENABLE) & !DAC_8BIT | KEEP;
            write(pc, ENABLE, now | if wide { DAC_8BIT } else { 0 });
            r.set_bh(if wide { 8 } else { 6 });
        }
        1 => {
            let wide = read(pc, ENABLE) & DAC_8BIT != 0;
            r.set_bh(if wide { 8 } else { 6 });
        }
        _ => return false,
    }
    true
}

/// 4F09h: blue, green, red, and a byte that is nothing.
fn palette(r: &Regs, pc: &mut dyn Platform) -> bool {
    let (count, first) = (r.cx(), r.dx());
    if first > 255 || count > 256 - first {
        return false;
    }
    let at = far(r.es, r.edi as u16);
    for n in 0..u32::from(count) {
        let index = first as u8 + n as u8;
        match r.bl() {
            0 | 0x80 => {
                let [b, g, red, _] = pc.u32(at + 4 * n).to_le_bytes();
                set_dac(pc, index, &[[red, g, b]]);
            }
            1 => {
                let [red, g, b] = dac(pc, index);
                pc.write(at + 4 * n, &[b, g, red, 0]);
            }
            _ => return false,
        }
    }
    true
}

/// 4F0Ah.
fn protected_interface(r: &mut Regs, pc: &mut dyn Platform) -> bool {
    if r.bl() != 0 {
        return false;
    }
    let (at, len) = (rom::pointer(rom::PROTECTED), rom::protected_len(pc));
    r.es = (at >> 16) as u16;
    r.edi = r.edi & !0xffff | at & 0xffff;
    r.set_cx(len);
    true
}

/// 4F10h: the monitor's power (VBE/PM).
fn power(r: &mut Regs, pc: &mut dyn Platform) -> bool {
    const BLANK: u8 = 0x20;
    match r.bl() {
        // Version 1.0; standby, suspend and off.
        0 => r.set_bx(0x0710),
        1 => {
            let mode = get(pc, SEQUENCER, 1) & !BLANK;
            set(pc, SEQUENCER, 1, if r.bh() == 0 { mode } else { mode | BLANK });
        }
        2 => {
            let off = get(pc, SEQUENCER, 1) & BLANK != 0;
            r.set_bh(if off { 4 } else { 0 });
        }
        _ => return false,
    }
    true
}

/// 4F15h: the monitor's EDID (VBE/DDC), which the adapter has at the beginning of BAR 2.
fn identification(r: &mut Regs, pc: &mut dyn Platform, adapter: u16) -> bool {
    match r.bl() {
        // A second for a block, by DDC2.
        0 => {
            r.set_bx(0x0102);
            true
        }
        1 => {
            let at = u64::from(pci::read(pc, adapter, 0x18, 4) & !0xf);
            let mut edid = [0; 128];
            if r.dx() != 0 || at == 0 {
                return false;
            }
            pc.read_physical(at, &mut edid);
            let there = edid[..8] == [0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0];
            if there {
                pc.write(far(r.es, r.edi as u16), &edid);
            }
            there
        }
        _ => false,
    }
}
