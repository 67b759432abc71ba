//! INT 1Ah B1xxh: the PCI BIOS, by configuration mechanism #1.
//!
//! Source: PCI BIOS Specification 2.1, chapter 4. The 32-bit entry, special cycles and interrupt routing tables are absent.
use super::{Outcome, Platform, Regs};

const ADDRESS: u16 = 0xcf8;
const DATA: u16 = 0xcfc;
const UNSUPPORTED: u8 = 0x81;
const BAD_VENDOR: u8 = 0x83;
const NOT_FOUND: u8 = 0x86;
const BAD_REGISTER: u8 = 0x87;

/// "PCI ".
const SIGNATURE: u32 = 0x2049_4350;

fn select(pc: &mut dyn Platform, bdf: u16, register: u8) -> u16 {
    pc.port_out(ADDRESS, 4, 1 << 31 | u32::from(bdf) << 8 | u32::from(register & !3));
    DATA + u16::from(register & 3)
}

fn read(pc: &mut dyn Platform, bdf: u16, register: u8, size: u8) -> u32 {
    let port = select(pc, bdf, register);
    pc.port_in(port, size)
}

/// Every function of bus 0 that is there.
fn functions(pc: &mut dyn Platform) -> Vec<u16> {
    let mut found = Vec::new();
    for device in 0..32u16 {
        for function in 0..8u16 {
            let bdf = device << 3 | function;
            if read(pc, bdf, 0, 2) & 0xffff != 0xffff {
                found.push(bdf);
            }
            // Others than function 0 exist only where the header says so.
            if function == 0 && read(pc, bdf, 0x0e, 1) & 0x80 == 0 {
                break;
            }
        }
    }
    found
}

fn find(r: &mut Regs, pc: &mut dyn Platform, is: impl Fn(&mut dyn Platform, u16) -> bool) -> Outcome {
    let number = usize::from(r.esi as u16);
    let mut matching = Vec::new();
    for bdf in functions(pc) {
        if is(pc, bdf) {
            matching.push(bdf);
        }
    }
    match matching.get(number) {
        Some(bdf) => {
            r.set_bx(*bdf);
            r.ok()
        }
        None => r.fail(NOT_FOUND),
    }
}

/// INT 1Ah with AH B1h.
pub(super) fn service(r: &mut Regs, pc: &mut dyn Platform) -> Outcome {
    match r.al() {
        0x01 => {
            r.edx = SIGNATURE;
            r.set_bx(0x0210);
            r.set_cl(0); // the last bus
            r.set_al(0x01); // mechanism #1, no special cycles
            r.ok()
        }
        0x02 if r.dx() == 0xffff => r.fail(BAD_VENDOR),
        0x02 => {
            let id = u32::from(r.cx()) << 16 | u32::from(r.dx());
            find(r, pc, |pc, bdf| read(pc, bdf, 0, 4) == id)
        }
        0x03 => {
            let class = r.ecx & 0xff_ffff;
            find(r, pc, |pc, bdf| read(pc, bdf, 8, 4) >> 8 == class)
        }
        function @ 0x08..=0x0d => {
            let size = 1u8 << ((function - 8) % 3);
            let register = r.edi as u16;
            if register > 0xff || register & u16::from(size - 1) != 0 {
                return r.fail(BAD_REGISTER);
            }
            let port = select(pc, r.bx(), register as u8);
            match (function, size) {
                (0x08, _) => r.set_cl(pc.inb(port)),
                (0x09, _) => r.set_cx(pc.port_in(port, 2) as u16),
                (0x0a, _) => r.ecx = pc.port_in(port, 4),
                _ => pc.port_out(port, size, r.ecx),
            }
            r.ok()
        }
        _ => r.fail(UNSUPPORTED),
    }
}
