//! AH 1Ah to 1Ch: what adapter there is, what it is doing, and its state in a buffer.
use super::modes::{self, GRAPHICS, SEQUENCER, attribute, dac, get, set, set_attributes, set_dac};
use super::{Platform, Regs, bda, linear, rom, vbe};

/// AH 1Ah: a VGA with a colour monitor, and no other adapter.
pub(super) fn display_combination(r: &mut Regs, pc: &mut dyn Platform) {
    match r.al() {
        0 => {
            let active = pc.u8(bda::DISPLAY_COMBINATION);
            r.set_bx(active.into());
        }
        1 => pc.set_u8(bda::DISPLAY_COMBINATION, r.bl()),
        _ => return,
    }
    r.set_al(0x1a);
}

/// AH 1Bh: the table of what is on now.
pub(super) fn functionality(r: &mut Regs, pc: &mut dyn Platform) {
    if r.bx() != 0 {
        return;
    }
    let mut t = [0; 64];
    t[..4].copy_from_slice(&rom::functionality().to_le_bytes());
    pc.read(bda::VIDEO_MODE, &mut t[4..0x22]);
    // As in the data area: one less than there are.
    t[0x22] = pc.u8(bda::VIDEO_ROWS);
    pc.read(bda::CHAR_HEIGHT, &mut t[0x23..0x25]);
    t[0x25] = pc.u8(bda::DISPLAY_COMBINATION);
    let (colours, pages) = match t[4] {
        0..=3 => (16, 8),
        4 | 5 => (4, 1),
        6 => (2, 1),
        7 => (0, 8),
        0x0d => (16, 8),
        0x0e => (16, 4),
        0x0f => (0, 2),
        0x10 => (16, 2),
        0x11 => (2, 1),
        0x12 => (16, 1),
        _ => (256_u16, 1),
    };
    t[0x27..0x29].copy_from_slice(&colours.to_le_bytes());
    t[0x29] = pages;
    let crtc = modes::crtc_port(pc);
    let overflow = get(pc, crtc, 7);
    let lines = u16::from(get(pc, crtc, 0x12))
        + (u16::from(overflow >> 1 & 1) << 8)
        + (u16::from(overflow >> 6 & 1) << 9);
    t[0x2a] = match lines {
        0..=199 => 0,
        200..=349 => 1,
        350..=399 if t[0x23] != 8 => 2,
        350..=399 => 0,
        _ => 3,
    };
    let fonts = get(pc, SEQUENCER, 3);
    t[0x2b] = fonts & 3 | fonts >> 2 & 4;
    t[0x2c] = fonts >> 2 & 3 | fonts >> 3 & 4;
    let control = pc.u8(bda::MODE_CONTROL);
    let blinks = attribute(pc, 0x10) & 8 != 0;
    t[0x2d] = u8::from(control & 2 != 0) << 1
        | u8::from(control & 8 != 0) << 3
        | u8::from(pc.u8(bda::VIDEO_CONTROL) & 1 == 0) << 4
        | u8::from(blinks) << 5
        | 1;
    // 256 KiB.
    t[0x31] = 3;
    pc.write(linear(r.es, r.edi as u16), &t);
    r.set_al(0x1b);
}

/// What of the state is in a buffer.
mod part {
    pub const HARDWARE: u16 = 1;
    pub const DATA: u16 = 2;
    pub const DAC: u16 = 4;
    /// VBE's.
    pub const LINEAR: u16 = 8;
}

const BLOCK: usize = 64;

/// Bytes of a part, in whole blocks.
fn length(part: u16) -> usize {
    match part {
        part::HARDWARE | part::DATA | part::LINEAR => 2 * BLOCK,
        _ => 13 * BLOCK,
    }
}

/// The 64-byte blocks that parts take.
pub(super) fn blocks(parts: u16) -> u16 {
    let all = [part::HARDWARE, part::DATA, part::DAC, part::LINEAR];
    (all.into_iter().filter(|p| parts & p != 0).map(length).sum::<usize>() / BLOCK) as u16
}

/// Bytes of the data area that are saved: where, and how many.
const DATA: [(u32, usize); 5] =
    [(bda::VIDEO_MODE, 30), (bda::VIDEO_ROWS, 7), (bda::SAVE_POINTER, 4), (4 * 0x1f, 4), (4 * 0x43, 4)];

fn save_part(pc: &mut dyn Platform, part: u16) -> Vec<u8> {
    let mut b = Vec::new();
    match part {
        part::HARDWARE => {
            let crtc = modes::crtc_port(pc);
            b.extend([pc.inb(SEQUENCER), pc.inb(crtc), pc.inb(GRAPHICS)]);
            b.push(pc.inb(0x3cc));
            (0..5).for_each(|n| b.push(get(pc, SEQUENCER, n)));
            (0..25).for_each(|n| b.push(get(pc, crtc, n)));
            (0..9).for_each(|n| b.push(get(pc, GRAPHICS, n)));
            (0..21).for_each(|n| b.push(attribute(pc, n)));
            b.extend(crtc.to_le_bytes());
        }
        part::DATA => {
            for (at, len) in DATA {
                let mut bytes = vec![0; len];
                pc.read(at, &mut bytes);
                b.extend(bytes);
            }
            b.extend(pc.u16(bda::VBE_MODE).to_le_bytes());
        }
        part::DAC => {
            b.push(pc.inb(0x3c6));
            (0..=255).for_each(|n| b.extend(dac(pc, n)));
        }
        _ => vbe::registers(pc).into_iter().for_each(|v| b.extend(v.to_le_bytes())),
    }
    b.resize(length(part), 0);
    b
}

fn restore_part(pc: &mut dyn Platform, part: u16, b: &[u8]) {
    match part {
        part::HARDWARE => {
            let crtc = if b[64..66] == [0xb4, 0x03] { 0x3b4 } else { 0x3d4 };
            set(pc, SEQUENCER, 0, 1);
            pc.outb(0x3c2, b[3]);
            pc.set_u16(bda::CRTC_PORT, crtc);
            (1..5).for_each(|n: u8| set(pc, SEQUENCER, n, b[4 + usize::from(n)]));
            set(pc, SEQUENCER, 0, b[4]);
            set(pc, crtc, 0x11, 0);
            (0..25).for_each(|n: u8| set(pc, crtc, n, b[9 + usize::from(n)]));
            (0..9).for_each(|n: u8| set(pc, GRAPHICS, n, b[34 + usize::from(n)]));
            set_attributes(pc, 0, &b[43..64]);
            for (port, index) in [SEQUENCER, crtc, GRAPHICS].into_iter().zip(b) {
                pc.outb(port, *index);
            }
        }
        part::DATA => {
            let mut from = 0;
            for (at, len) in DATA {
                pc.write(at, &b[from..from + len]);
                from += len;
            }
            pc.write(bda::VBE_MODE, &b[from..from + 2]);
        }
        part::DAC => {
            pc.outb(0x3c6, b[0]);
            let (colours, _) = b[1..769].as_chunks::<3>();
            set_dac(pc, 0, colours);
        }
        _ => {
            let (words, _) = b.as_chunks::<2>();
            vbe::set_registers(pc, words.iter().map(|w| u16::from_le_bytes(*w)));
        }
    }
}

/// Saves or restores parts of the state at `at`.
pub(super) fn transfer(pc: &mut dyn Platform, parts: u16, at: u32, save: bool) {
    let mut at = at;
    // A linear mode goes before the registers that it changes, and what the data area says behind those.
    for part in [part::LINEAR, part::HARDWARE, part::DATA, part::DAC] {
        if parts & part == 0 {
            continue;
        }
        if save {
            let bytes = save_part(pc, part);
            pc.write(at, &bytes);
        } else {
            let mut bytes = vec![0; length(part)];
            pc.read(at, &mut bytes);
            restore_part(pc, part, &bytes);
        }
        at += length(part) as u32;
    }
}

/// AH 1Ch.
pub(super) fn save_restore(r: &mut Regs, pc: &mut dyn Platform) {
    let parts = r.cx() & 7;
    match r.al() {
        0 => r.set_bx(blocks(parts)),
        1 | 2 => transfer(pc, parts, linear(r.es, r.bx()), r.al() == 1),
        _ => return,
    }
    r.set_al(0x1c);
}
