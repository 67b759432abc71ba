//! AH 0Bh, 10h and 12h: colours, and what is chosen by bits of registers.
use super::modes::{self, SEQUENCER, attribute, dac, get, grey, set, set_attributes, set_dac};
use super::{Platform, Regs, bda, linear};

/// The attribute controller's mode control, overscan and colour select.
const MODE: u8 = 0x10;
const OVERSCAN: u8 = 0x11;
const COLOUR_SELECT: u8 = 0x14;

/// AH 0Bh: border and background, or a CGA's palette.
pub(super) fn cga_palette(r: &Regs, pc: &mut dyn Platform) {
    let kept = pc.u8(bda::CGA_COLOURS);
    if r.bh() == 0 {
        let colour = r.bl() & 0x1f;
        let border = colour & 0x0f | (colour & 0x08) << 1;
        set_attributes(pc, 0, &[border]);
        set_attributes(pc, OVERSCAN, &[border]);
        for index in 1..4 {
            let now = attribute(pc, index);
            set_attributes(pc, index, &[now & !0x10 | colour & 0x10]);
        }
        pc.set_u8(bda::CGA_COLOURS, kept & 0xe0 | colour);
    } else {
        for index in 1..4 {
            let now = attribute(pc, index);
            set_attributes(pc, index, &[now & !1 | r.bl() & 1]);
        }
        pc.set_u8(bda::CGA_COLOURS, kept & !0x20 | (r.bl() & 1) << 5);
    }
}

/// AH 10h.
pub(super) fn palette(r: &mut Regs, pc: &mut dyn Platform) {
    let table = linear(r.es, r.dx());
    match r.al() {
        0x00 if r.bl() <= COLOUR_SELECT => set_attributes(pc, r.bl(), &[r.bh()]),
        0x01 => set_attributes(pc, OVERSCAN, &[r.bh()]),
        0x02 => {
            let mut all = [0; 17];
            pc.read(table, &mut all);
            set_attributes(pc, 0, &all[..16]);
            set_attributes(pc, OVERSCAN, &all[16..]);
        }
        0x03 => {
            let mode = attribute(pc, MODE) & !0x08;
            set_attributes(pc, MODE, &[mode | (r.bl() & 1) << 3]);
        }
        0x07 if r.bl() <= COLOUR_SELECT => {
            let value = attribute(pc, r.bl());
            r.set_bh(value);
        }
        0x08 => {
            let value = attribute(pc, OVERSCAN);
            r.set_bh(value);
        }
        0x09 => {
            let mut all = [0; 17];
            for (index, value) in (0..).zip(&mut all[..16]) {
                *value = attribute(pc, index);
            }
            all[16] = attribute(pc, OVERSCAN);
            pc.write(table, &all);
        }
        0x10 => {
            let colour = [r.dh(), r.ch(), r.cl()];
            let colour = if sums_to_grey(pc) { grey(colour) } else { colour };
            set_dac(pc, r.bl(), &[colour]);
        }
        0x12 => {
            let greys = sums_to_grey(pc);
            for n in 0..r.cx().min(256) {
                let mut colour = [0; 3];
                pc.read(table + 3 * u32::from(n), &mut colour);
                let colour = if greys { grey(colour) } else { colour };
                set_dac(pc, r.bl().wrapping_add(n as u8), &[colour]);
            }
        }
        0x13 => {
            // Four pages of 64 colours or sixteen of 16, and which of them.
            let mode = attribute(pc, MODE);
            if r.bl() == 0 {
                set_attributes(pc, MODE, &[mode & 0x7f | r.bh() << 7]);
            } else {
                let page = if mode & 0x80 != 0 { r.bh() & 0x0f } else { r.bh() << 2 & 0x0c };
                set_attributes(pc, COLOUR_SELECT, &[page]);
            }
        }
        0x15 => {
            let [red, green, blue] = dac(pc, r.bl());
            r.set_dh(red);
            r.set_cx(u16::from(green) << 8 | u16::from(blue));
        }
        0x17 => {
            for n in 0..r.cx().min(256) {
                let colour = dac(pc, r.bl().wrapping_add(n as u8));
                pc.write(table + 3 * u32::from(n), &colour);
            }
        }
        0x18 => pc.outb(0x3c6, r.bl()),
        0x19 => {
            let mask = pc.inb(0x3c6);
            r.set_bl(mask);
        }
        0x1a => {
            let paging = attribute(pc, MODE) >> 7;
            let page = attribute(pc, COLOUR_SELECT) & 0x0f;
            r.set_bl(paging);
            r.set_bh(if paging != 0 { page } else { page >> 2 });
        }
        0x1b => {
            for n in 0..r.cx().min(256) {
                let index = r.bl().wrapping_add(n as u8);
                let colour = grey(dac(pc, index));
                set_dac(pc, index, &[colour]);
            }
        }
        _ => {}
    }
}

fn sums_to_grey(pc: &mut dyn Platform) -> bool {
    pc.u8(bda::MODE_CONTROL) & 0x02 != 0
}

/// AH 12h.
pub(super) fn alternate_select(r: &mut Regs, pc: &mut dyn Platform) {
    let mut change = |at: u32, mask: u8, bits: u8| {
        let old = pc.u8(at);
        pc.set_u8(at, old & !mask | bits);
    };
    match r.bl() {
        0x10 => {
            let mono = modes::crtc_port(pc) == 0x3b4;
            // 256 KiB.
            r.set_bx(u16::from(mono) << 8 | 3);
            let switches = pc.u8(bda::VIDEO_SWITCHES) & 0x0f;
            r.set_cx(switches.into());
            return;
        }
        // Scan lines of text modes: 200, 350, 400.
        0x30 => match r.al() {
            0 => change(bda::MODE_CONTROL, 0x90, 0x80),
            1 => change(bda::MODE_CONTROL, 0x90, 0),
            2 => change(bda::MODE_CONTROL, 0x90, 0x10),
            _ => {
                r.set_al(0);
                return;
            }
        },
        0x31 => change(bda::MODE_CONTROL, 0x08, (r.al() & 1) << 3),
        0x32 => {
            let misc = pc.inb(0x3cc) & !0x02;
            pc.outb(0x3c2, misc | (!r.al() & 1) << 1);
        }
        0x33 => change(bda::MODE_CONTROL, 0x02, (!r.al() & 1) << 1),
        0x34 => change(bda::VIDEO_CONTROL, 0x01, r.al() & 1),
        0x35 => {}
        0x36 => {
            let mode = get(pc, SEQUENCER, 1) & !0x20;
            set(pc, SEQUENCER, 1, mode | (r.al() & 1) << 5);
        }
        _ => return,
    }
    r.set_al(0x12);
}
