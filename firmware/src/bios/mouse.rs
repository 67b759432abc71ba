//! INT 15h C2h: the PS/2 mouse, and IRQ 12, which gathers packets and calls the program's handler.
//!
//! The handler gets status, X, Y and Z as words on the stack and returns far. What is kept is in the EBDA, from 22h
//! on: the handler, how many bytes of a packet there are, how many it has, the bytes.
//!
//! Source: IBM PS/2 and PC BIOS Interface Technical Reference, INT 15h C2h.
use super::{Bios, Outcome, Platform, Regs, SEGMENT, linear};
use crate::tables::EBDA;

const HANDLER: u32 = EBDA as u32 + 0x22;
const COUNT: u32 = EBDA as u32 + 0x26;
/// Bit 7: there is a handler; bits 0 to 2: bytes of a packet, less one.
const FLAGS: u32 = EBDA as u32 + 0x27;
const DATA: u32 = EBDA as u32 + 0x28;
const INSTALLED: u8 = 1 << 7;

const BAD_FUNCTION: u8 = 1;
const BAD_INPUT: u8 = 2;
const INTERFACE: u8 = 3;
const NO_HANDLER: u8 = 5;

/// Bits of the 8042's status.
const OUTPUT_FULL: u8 = 1;
const INPUT_FULL: u8 = 2;
const AUX: u8 = 1 << 5;
/// Bits of its command byte.
const AUX_INTERRUPT: u8 = 1 << 1;
const KEYBOARD_OFF: u8 = 1 << 4;
const AUX_OFF: u8 = 1 << 5;
/// Tries until a chip that does not answer is taken to be absent.
const TRIES: usize = 2000;

const ACK: u8 = 0xfa;

fn ready(pc: &mut dyn Platform) {
    for _ in 0..TRIES {
        if pc.inb(0x64) & INPUT_FULL == 0 {
            return;
        }
    }
}

/// A byte from the controller, or from the mouse.
fn receive(pc: &mut dyn Platform, aux: bool) -> Option<u8> {
    for _ in 0..TRIES {
        let status = pc.inb(0x64);
        if status & OUTPUT_FULL == 0 || status == 0xff {
            continue;
        }
        let byte = pc.inb(0x60);
        if (status & AUX != 0) == aux {
            return Some(byte);
        }
    }
    None
}

fn command_byte(pc: &mut dyn Platform) -> Option<u8> {
    ready(pc);
    pc.outb(0x64, 0x20);
    receive(pc, false)
}

fn set_command_byte(pc: &mut dyn Platform, byte: u8) {
    ready(pc);
    pc.outb(0x64, 0x60);
    ready(pc);
    pc.outb(0x60, byte);
}

/// Bytes to the mouse, each acknowledged; then its answer. The keyboard is silent meanwhile, and IRQ 12 off.
fn talk<const N: usize>(pc: &mut dyn Platform, bytes: &[u8]) -> Result<[u8; N], u8> {
    let before = command_byte(pc).ok_or(INTERFACE)?;
    set_command_byte(pc, before & !(AUX_INTERRUPT | AUX_OFF) | KEYBOARD_OFF);
    let mut answer = [0; N];
    let mut result = Ok(());
    for byte in bytes {
        ready(pc);
        pc.outb(0x64, 0xd4);
        ready(pc);
        pc.outb(0x60, *byte);
        if receive(pc, true) != Some(ACK) {
            result = Err(INTERFACE);
        }
    }
    for byte in &mut answer {
        match (result, receive(pc, true)) {
            (Ok(()), Some(b)) => *byte = b,
            _ => result = Err(INTERFACE),
        }
    }
    set_command_byte(pc, before & !AUX_OFF | AUX_INTERRUPT);
    result.map(|()| answer)
}

impl Bios {
    /// INT 15h C2h.
    pub(super) fn mouse(&mut self, r: &mut Regs, pc: &mut dyn Platform) -> Outcome {
        match mouse_function(r, pc) {
            Ok(()) => r.ok(),
            Err(code) => r.fail(code),
        }
    }

    /// IRQ 12.
    pub(super) fn mouse_interrupt(&mut self, r: &mut Regs, pc: &mut dyn Platform) -> Outcome {
        let status = pc.inb(0x64);
        if status & (OUTPUT_FULL | AUX) != OUTPUT_FULL | AUX {
            return Outcome::Return;
        }
        let byte = pc.inb(0x60);
        let flags = pc.u8(FLAGS);
        if flags & INSTALLED == 0 {
            return Outcome::Return;
        }
        let count = pc.u8(COUNT) & 7;
        // A packet's first byte has bit 3; what has not is the rest of one whose beginning was lost.
        if count == 0 && flags & 7 == 2 && byte & 8 == 0 {
            return Outcome::Return;
        }
        pc.set_u8(DATA + u32::from(count), byte);
        if count < flags & 7 {
            pc.set_u8(COUNT, count + 1);
            return Outcome::Return;
        }
        pc.set_u8(COUNT, 0);
        let mut data = [0; 4];
        pc.read(DATA, &mut data[..usize::from((flags & 7) + 1).min(4)]);
        let (offset, segment) = (pc.u16(HANDLER), pc.u16(HANDLER + 2));
        // From the top down: status, X, Y, Z, and where it returns to.
        for word in [data[0], data[1], data[2], data[3]]
            .map(u16::from)
            .into_iter()
            .chain([SEGMENT, self.rom.mouse_done])
        {
            let sp = (r.esp as u16).wrapping_sub(2);
            r.esp = r.esp & !0xffff | u32::from(sp);
            pc.set_u16(linear(r.ss, sp), word);
        }
        (r.cs, r.ip) = (segment, offset);
        Outcome::Jump
    }
}

fn mouse_function(r: &mut Regs, pc: &mut dyn Platform) -> Result<(), u8> {
    const RATES: [u8; 7] = [10, 20, 40, 60, 80, 100, 200];
    match (r.al(), r.bh()) {
        (0, 0) => talk::<0>(pc, &[0xf5]).map(drop)?,
        (0, 1) => {
            if pc.u8(FLAGS) & INSTALLED == 0 {
                return Err(NO_HANDLER);
            }
            talk::<0>(pc, &[0xf4])?;
        }
        // Reset, and initialise with packets of BH bytes, which is a reset as well.
        (function @ (1 | 5), size) => {
            if function == 5 {
                if !(1..=8).contains(&size) {
                    return Err(BAD_INPUT);
                }
                let flags = pc.u8(FLAGS);
                pc.set_u8(FLAGS, flags & !7 | (size - 1));
            }
            pc.set_u8(COUNT, 0);
            let [passed, id] = talk(pc, &[0xff])?;
            if function == 1 {
                r.set_bl(passed);
                r.set_bh(id);
            }
        }
        (2, rate) => {
            let rate = *RATES.get(usize::from(rate)).ok_or(BAD_INPUT)?;
            talk::<0>(pc, &[0xf3, rate])?;
        }
        (3, resolution @ 0..=3) => talk::<0>(pc, &[0xe8, resolution]).map(drop)?,
        (4, _) => {
            let [id] = talk(pc, &[0xf2])?;
            r.set_bh(id);
        }
        (6, 0) => {
            let [status, resolution, rate] = talk(pc, &[0xe9])?;
            r.set_bl(status);
            r.set_cl(resolution);
            r.set_dl(rate);
        }
        (6, scaling @ (1 | 2)) => talk::<0>(pc, &[0xe5 + scaling]).map(drop)?,
        (7, _) => {
            let (offset, segment) = (r.bx(), r.es);
            pc.set_u16(HANDLER, offset);
            pc.set_u16(HANDLER + 2, segment);
            pc.set_u8(COUNT, 0);
            // Packets of three bytes unless a program has said otherwise; none at 0:0.
            let size = pc.u8(FLAGS) & 7;
            let size = if size == 0 { 2 } else { size };
            let installed = if (offset, segment) == (0, 0) { 0 } else { INSTALLED };
            pc.set_u8(FLAGS, size | installed);
        }
        (0 | 3 | 6, _) => return Err(BAD_INPUT),
        _ => return Err(BAD_FUNCTION),
    }
    Ok(())
}
