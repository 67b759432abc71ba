//! The small services: equipment, memory size, serial ports, the printer that there is not, reset.
use super::{Outcome, Platform, Regs, bda};

/// Divisors of 115,200 for the rates 110 to 9,600 baud of INT 14h AH 00h.
pub(super) const DIVISORS: [u16; 8] = [1047, 768, 384, 192, 96, 48, 24, 12];

/// INT 11h.
pub(super) fn equipment(r: &mut Regs, pc: &mut dyn Platform) -> Outcome {
    r.set_ax(pc.u16(bda::EQUIPMENT));
    Outcome::Return
}

/// INT 12h.
pub(super) fn memory_size(r: &mut Regs, pc: &mut dyn Platform) -> Outcome {
    r.set_ax(pc.u16(bda::MEMORY_KIB));
    Outcome::Return
}

/// Line parameters as INT 14h has them (bits 0-1 length, 2 stop bits, 3-4 parity), and the divisor.
pub(super) fn set_up_serial(pc: &mut dyn Platform, base: u16, parameters: u8, divisor: u16) {
    let line = parameters & 0x1f;
    pc.outb(base + 3, line | 0x80);
    pc.outb(base, divisor as u8);
    pc.outb(base + 1, (divisor >> 8) as u8);
    pc.outb(base + 3, line);
    pc.outb(base + 1, 0);
    // DTR and RTS.
    pc.outb(base + 4, 3);
}

/// INT 14h: port DX.
pub(super) fn serial(r: &mut Regs, pc: &mut dyn Platform) -> Outcome {
    const READY: u8 = 1;
    const TX_EMPTY: u8 = 1 << 5;
    const TIMEOUT: u8 = 1 << 7;
    let port = u32::from(r.dx());
    let base = if port < 4 { pc.u16(bda::COM + 2 * port) } else { 0 };
    if base == 0 {
        r.set_ah(TIMEOUT);
        return Outcome::Return;
    }
    match r.ah() {
        0 => {
            let p = r.al();
            set_up_serial(pc, base, p, DIVISORS[usize::from(p >> 5)]);
        }
        1 => {
            if pc.inb(base + 5) & TX_EMPTY == 0 {
                return Outcome::Poll;
            }
            pc.outb(base, r.al());
            r.set_ah(pc.inb(base + 5));
            return Outcome::Return;
        }
        2 => {
            let status = pc.inb(base + 5);
            if status & READY == 0 {
                r.set_ah(status | TIMEOUT);
            } else {
                r.set_al(pc.inb(base));
                r.set_ah(status & 0x1e);
            }
            return Outcome::Return;
        }
        _ => {}
    }
    r.set_ah(pc.inb(base + 5));
    r.set_al(pc.inb(base + 6));
    Outcome::Return
}

/// INT 17h: no port has a printer.
pub(super) fn printer(r: &mut Regs) -> Outcome {
    r.set_ah(0x01);
    Outcome::Return
}

/// An interrupt line that no driver has taken: ends it, and masks it so that it comes but once.
pub(super) fn stray_interrupt(pc: &mut dyn Platform) -> Outcome {
    for (port, other) in [(0xa0, true), (0x20, false)] {
        pc.outb(port, 0x0b);
        let serving = pc.inb(port);
        // The cascade is no source of its own.
        let serving = if other { serving } else { serving & !0x04 };
        if serving == 0 {
            continue;
        }
        let line = serving & serving.wrapping_neg();
        let mask = pc.inb(port + 1);
        pc.outb(port + 1, mask | line);
        pc.outb(port, 0x20);
        if other {
            pc.outb(0x20, 0x20);
            break;
        }
    }
    Outcome::Return
}

/// POST again: the whole machine is reset, unless the reset does not come.
pub(super) fn reset(r: &mut Regs, pc: &mut dyn Platform, halt: u16) -> Outcome {
    // The PIIX3's reset control: hard reset, then the trigger.
    pc.outb(0xcf9, 0x02);
    pc.outb(0xcf9, 0x06);
    r.ip = halt;
    Outcome::Jump
}
