//! INT 1Ah B1xxh: the PCI BIOS, by configuration mechanism #1.
//!
//! Source: PCI BIOS Specification 2.1, chapter 4. The entries of protected mode are [`super::Bios::call_protected`].
use super::{Caller, Outcome, Platform, Regs, linear, rom};
use crate::tables::Chipset;

const ADDRESS: u16 = 0xcf8;
const DATA: u16 = 0xcfc;
const UNSUPPORTED: u8 = 0x81;
const BAD_VENDOR: u8 = 0x83;
const NOT_FOUND: u8 = 0x86;
const BAD_REGISTER: u8 = 0x87;
const SET_FAILED: u8 = 0x88;
const BUFFER_TOO_SMALL: u8 = 0x89;
/// Slots of the interrupt routing table.
const SLOTS: std::ops::Range<u8> = 1..32;

/// Ids of the chips that route interrupts: PIIX3, ICH9.
pub(super) const ROUTERS: [u32; 2] = [0x7000_8086, 0x2918_8086];
/// "PCI ".
const SIGNATURE: u32 = 0x2049_4350;

fn select(pc: &mut dyn Platform, bdf: u16, register: u8) -> u16 {
    pc.port_out(ADDRESS, 4, 1 << 31 | u32::from(bdf) << 8 | u32::from(register & !3));
    DATA + u16::from(register & 3)
}

pub(super) fn read(pc: &mut dyn Platform, bdf: u16, register: u8, size: u8) -> u32 {
    let port = select(pc, bdf, register);
    pc.port_in(port, size)
}

pub(super) fn write(pc: &mut dyn Platform, bdf: u16, register: u8, size: u8, value: u32) {
    let port = select(pc, bdf, register);
    pc.port_out(port, size, value);
}

/// The highest bus, by the bridges that were numbered.
fn last_bus(pc: &mut dyn Platform) -> u8 {
    let mut last = 0;
    for bdf in functions_of(pc, 0) {
        if read(pc, bdf, 0x0e, 1) & 0x7f == 1 {
            last = last.max(read(pc, bdf, 0x1a, 1) as u8);
        }
    }
    last
}

/// Every function that is there, on all buses.
pub(super) fn functions(pc: &mut dyn Platform) -> Vec<u16> {
    (0..=last_bus(pc)).flat_map(|bus| functions_of(pc, bus)).collect()
}

/// Every function of a bus.
pub(super) fn functions_of(pc: &mut dyn Platform, bus: u8) -> Vec<u16> {
    let mut found = Vec::new();
    for device in 0..32u16 {
        for function in 0..8u16 {
            let bdf = u16::from(bus) << 8 | device << 3 | function;
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

/// What a caller's pointers in memory are.
#[derive(Clone, Copy)]
pub(super) enum Pointers<'a> {
    /// Offset and segment.
    Real,
    /// 32 bits behind the base of its segments.
    Flat(u32),
    /// Offset of 16 bits and selector.
    Selectors(&'a Caller),
}

/// INT 1Ah with AH B1h; `at` is ES:DI.
pub(super) fn service(r: &mut Regs, pc: &mut dyn Platform, at: u32, pointers: Pointers<'_>) -> Outcome {
    match r.al() {
        0x01 => {
            r.edx = SIGNATURE;
            r.set_bx(0x0210);
            r.set_cl(last_bus(pc));
            r.set_al(0x11); // mechanism #1, and special cycles by it
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
        // A special cycle on bus BH: a write to the device and function that none is.
        0x06 => {
            let value = r.edx;
            write(pc, u16::from(r.bh()) << 8 | 0xff, 0, 4, value);
            r.ok()
        }
        0x0e => routing(r, pc, at, pointers),
        0x0f => set_route(r, pc),
        _ => r.fail(UNSUPPORTED),
    }
}

/// The chipset, by its host bridge.
pub(super) fn chipset(pc: &mut dyn Platform) -> Chipset {
    const Q35: u32 = 0x29c0_8086;
    if read(pc, 0, 0, 4) == Q35 { Chipset::Q35 } else { Chipset::I440fx }
}

/// B10Eh: the routing table to the caller's buffer: its length and address are at `at`.
fn routing(r: &mut Regs, pc: &mut dyn Platform, at: u32, pointers: Pointers<'_>) -> Outcome {
    let chipset = chipset(pc);
    let room = pc.u16(at);
    let (low, high) = (pc.u16(at.wrapping_add(2)), pc.u16(at.wrapping_add(4)));
    let to = match pointers {
        Pointers::Flat(base) => base.wrapping_add(u32::from(high) << 16 | u32::from(low)),
        Pointers::Real => linear(high, low),
        Pointers::Selectors(caller) => caller.base_of(high, pc).wrapping_add(low.into()),
    };
    let table: Vec<u8> = SLOTS.flat_map(|device| rom::slot(chipset, device)).collect();
    pc.set_u16(at, table.len() as u16);
    if usize::from(room) < table.len() {
        return r.fail(BUFFER_TOO_SMALL);
    }
    pc.write(to, &table);
    r.set_bx(0); // no interrupt is PCI's alone
    r.ok()
}

/// B10Fh: interrupt CH for pin CL (0Ah to 0Dh) of function BX.
fn set_route(r: &mut Regs, pc: &mut dyn Platform) -> Outcome {
    let chipset = chipset(pc);
    let (irq, pin) = (r.ch(), r.cl().wrapping_sub(0x0a));
    let routable = irq < 16 && rom::ROUTABLE >> irq & 1 != 0;
    let router = functions_of(pc, 0).into_iter().find(|bdf| ROUTERS.contains(&read(pc, *bdf, 0, 4)));
    let (Some(router), true, true, 0) = (router, pin < 4, routable, r.bh()) else {
        return r.fail(SET_FAILED);
    };
    let link = rom::link(chipset, r.bl() >> 3, pin);
    write(pc, router, link, 1, irq.into());
    // It is level-triggered from now on.
    let port = 0x4d0 + u16::from(irq >> 3);
    let level = pc.inb(port);
    pc.outb(port, level | 1 << (irq & 7));
    r.ok()
}
