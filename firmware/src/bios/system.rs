//! INT 15h: memory map and sizes, block moves, the A20 gate, delays, the configuration table.
use super::{Bios, Outcome, Platform, Regs, bda, linear, rom};

/// "SMAP", in EAX and EDX of E820h.
const SMAP: u32 = 0x534d_4150;
/// A function that is not there.
const UNSUPPORTED: u8 = 0x86;
/// Bit of port 92h: address line 20 passes.
const A20: u8 = 1 << 1;
/// A delay this long is slept through, from tick to tick; a shorter one is polled.
const LONG_DELAY: u64 = 60_000_000;

impl Bios {
    /// INT 15h.
    pub(super) fn system(&mut self, r: &mut Regs, pc: &mut dyn Platform) -> Outcome {
        match (r.ah(), r.al()) {
            (0x24, function) => a20(r, pc, function),
            // Keyboard intercept: the scan code in AL stands.
            (0x4f, _) => {
                r.carry(true);
                Outcome::Return
            }
            (0x53, function) => apm(r, pc, function, Some(self.rom.apm)),
            (0x80..=0x82 | 0x85 | 0x90 | 0x91, _) => r.ok(),
            (0x83, _) => super::time::event_wait(r, pc),
            (0x86, _) => self.delay(r, pc),
            (0x87, _) => block_move(r, pc),
            (0x88, _) => {
                // KiB above 1 MiB: no more than 63 MiB, which old programs can count.
                r.set_ax((self.upper / 1024).min(63 * 1024) as u16);
                r.carry(false);
                Outcome::Return
            }
            (0x89, _) => self.protect(r, pc),
            (0xc2, _) => self.mouse(r, pc),
            (0xc0, _) => {
                r.es = super::SEGMENT;
                r.set_bx(rom::CONFIG_TABLE);
                r.ok()
            }
            (0xc1, _) => {
                r.es = pc.u16(bda::EBDA_SEGMENT);
                r.carry(false);
                Outcome::Return
            }
            // The caller will run in long mode, or in both modes: nothing here depends on it.
            (0xec, 0x00) => r.ok(),
            (0xe8, 0x01) => {
                let (low, high) = self.e801();
                r.set_ax(low);
                r.set_cx(low);
                r.set_bx(high);
                r.set_dx(high);
                r.carry(false);
                Outcome::Return
            }
            (0xe8, 0x81) => {
                let (low, high) = self.e801();
                (r.eax, r.ecx, r.ebx, r.edx) = (low.into(), low.into(), high.into(), high.into());
                r.carry(false);
                Outcome::Return
            }
            (0xe8, 0x20) => self.e820(r, pc),
            (function, sub) => {
                tracing::debug!("INT 15h: no function {function:02x}{sub:02x}");
                r.fail(UNSUPPORTED)
            }
        }
    }

    /// KiB from 1 to 16 MiB, and units of 64 KiB from 16 MiB up to the first hole.
    fn e801(&self) -> (u16, u16) {
        const FIFTEEN_MIB: u64 = 15 << 20;
        let low = self.upper.min(FIFTEEN_MIB) / 1024;
        let high = self.upper.saturating_sub(FIFTEEN_MIB) / 65536;
        (low as u16, high.min(0xffff) as u16)
    }

    /// E820h: the entry of number EBX to ES:DI (ACPI 6.5, 15.1).
    fn e820(&self, r: &mut Regs, pc: &mut dyn Platform) -> Outcome {
        let entries = self.e820.entries();
        let (Some(e), true, true) = (entries.get(r.ebx as usize), r.edx == SMAP, r.ecx >= 20) else {
            return r.fail(UNSUPPORTED);
        };
        let mut out = [0; 20];
        out[..8].copy_from_slice(&e.base.to_le_bytes());
        out[8..16].copy_from_slice(&e.len.to_le_bytes());
        out[16..].copy_from_slice(&(e.kind as u32).to_le_bytes());
        pc.write(linear(r.es, r.edi as u16), &out);
        let next = r.ebx + 1;
        (r.eax, r.ecx) = (SMAP, 20);
        r.ebx = if (next as usize) < entries.len() { next } else { 0 };
        r.carry(false);
        Outcome::Return
    }

    /// AH 89h: the interrupt controllers at BH and BL, A20 open, and into protected mode with the GDT at ES:SI.
    fn protect(&mut self, r: &mut Regs, pc: &mut dyn Platform) -> Outcome {
        let (first, second) = (r.bh(), r.bl());
        for (base, vector, wiring) in [(0x20, first, 0x04), (0xa0, second, 0x02)] {
            pc.outb(base, 0x11);
            // All masked: it is the caller's to open them.
            for v in [vector, wiring, 0x01, 0xff] {
                pc.outb(base + 1, v);
            }
        }
        let now = pc.inb(0x92);
        pc.outb(0x92, (now | A20) & !1);
        r.ip = self.rom.protect;
        Outcome::Jump
    }

    /// AH 86h: waits for CX:DX microseconds.
    fn delay(&mut self, r: &mut Regs, pc: &mut dyn Platform) -> Outcome {
        let now = pc.now();
        let nanos = (u64::from(r.cx()) << 16 | u64::from(r.dx())) * 1000;
        let end = *self.delay.get_or_insert(now.saturating_add(nanos));
        match end.checked_sub(now) {
            None | Some(0) => {
                self.delay = None;
                r.ok()
            }
            Some(LONG_DELAY..) => Outcome::Wait,
            Some(_) => Outcome::Poll,
        }
    }
}

/// AH 53h: APM 1.2 (BIOS Interface Specification, 1996), by which programs without ACPI switch the machine off;
/// there is nothing to save power with. `entries` are those of protected mode, 16 bits and 32, which connecting
/// tells; from there (none) nothing is connected.
pub(super) fn apm(r: &mut Regs, pc: &mut dyn Platform, function: u8, entries: Option<[u16; 2]>) -> Outcome {
    const VERSION: u16 = 0x0102;
    /// Interfaces for 16 and for 32 bits are there.
    const INTERFACES: u16 = 3;
    /// Bytes of a segment of code or data, from F0000h on.
    const LENGTH: u16 = 0xfff0;
    const ALL_DEVICES: u16 = 1;
    const OFF: u16 = 3;
    match function {
        0x00 => {
            r.set_ax(VERSION);
            r.set_bx(u16::from_be_bytes(*b"PM"));
            r.set_cx(INTERFACES);
            r.carry(false);
            Outcome::Return
        }
        // Connect to and disconnect from real mode, idle, busy, engage and enable.
        0x01 | 0x04..=0x06 | 0x08 | 0x0d | 0x0f => r.ok(),
        // Connect to 16 bits: AX and BX the entry, CX the data segment, SI and DI their lengths.
        0x02 if let Some([entry, _]) = entries => {
            r.set_ax(super::SEGMENT);
            r.set_bx(entry);
            r.set_cx(super::SEGMENT);
            (r.esi, r.edi) = (r.esi & !0xffff | u32::from(LENGTH), r.edi & !0xffff | u32::from(LENGTH));
            r.carry(false);
            Outcome::Return
        }
        // To 32 bits: AX and EBX the entry, CX the segment of 16-bit code, DX of data, ESI both codes' lengths.
        0x03 if let Some([_, entry]) = entries => {
            r.set_ax(super::SEGMENT);
            r.ebx = entry.into();
            r.set_cx(super::SEGMENT);
            r.set_dx(super::SEGMENT);
            r.esi = u32::from(LENGTH) << 16 | u32::from(LENGTH);
            r.edi = r.edi & !0xffff | u32::from(LENGTH);
            r.carry(false);
            Outcome::Return
        }
        // It is connected already.
        0x02 => r.fail(0x05),
        0x03 => r.fail(0x07),
        0x07 => {
            if (r.bx(), r.cx()) == (ALL_DEVICES, OFF) {
                // PM1a control: sleep enable, with the type that is off.
                pc.port_out(crate::tables::PM_BASE + 4, 2, 0x2000);
            }
            r.ok()
        }
        // Power: from the mains, no battery.
        0x0a => {
            r.set_bx(0x01ff);
            r.set_cx(0x80ff);
            r.set_dx(0xffff);
            r.ok()
        }
        // No event.
        0x0b => r.fail(0x80),
        0x0e => {
            r.set_ax(VERSION.min(r.cx()));
            r.carry(false);
            Outcome::Return
        }
        _ => r.fail(0x0c),
    }
}

/// AH 24h, by port 92h.
fn a20(r: &mut Regs, pc: &mut dyn Platform, function: u8) -> Outcome {
    let now = pc.inb(0x92);
    match function {
        0 | 1 => {
            pc.outb(0x92, if function == 1 { now | A20 } else { now & !A20 } & !1);
            r.ok()
        }
        2 => {
            r.set_al(now >> 1 & 1);
            r.ok()
        }
        3 => {
            // Supported by the keyboard controller and by port 92h.
            r.set_bx(3);
            r.ok()
        }
        _ => r.fail(UNSUPPORTED),
    }
}

/// AH 87h: CX words from one place in physical memory to another, as the descriptors at ES:SI say.
fn block_move(r: &mut Regs, pc: &mut dyn Platform) -> Outcome {
    let table = linear(r.es, r.esi as u16);
    let words = r.cx();
    if words > 0x8000 {
        return r.fail(0x02);
    }
    let mut base = |index: u32| {
        let mut d = [0; 8];
        pc.read(table + 8 * index, &mut d);
        u64::from(u32::from_le_bytes([d[2], d[3], d[4], d[7]]))
    };
    let (from, to) = (base(2), base(3));
    let mut data = vec![0; 2 * usize::from(words)];
    pc.read_physical(from, &mut data);
    pc.write_physical(to, &data);
    r.set_ah(0);
    r.carry(false);
    r.zero(true);
    Outcome::Return
}
