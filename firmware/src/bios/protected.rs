//! Calls from protected mode: the PCI BIOS and APM, by entries of 32 bits and of 16.
//!
//! ```text
//!   32-bit code  BIOS32 directory (`_32_`) -> PCI BIOS, far call
//!   16-bit code  F000:FE6Eh (INT 1Ah) with AH B1h, flags pushed and far call, as if it were an interrupt
//!   both         INT 15h 5302h, 5303h -> APM, far call
//! ```
//!
//! Nothing else answers there: what is called by INT in real mode loads segments as real mode does. A caller's segments
//! are its own, so that their bases come with the call.
//!
//! Sources: PCI BIOS 2.1, 3.1 to 3.3; Standard BIOS 32-bit Service Directory 0.4; APM BIOS Interface 1.2, 3.2 and 4.
use super::pci::Pointers;
use super::{Bios, CF, Platform, Regs, Service, pci, system};

/// A descriptor table: linear base, and limit in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DescriptorsAt {
    /// Linear address.
    pub base: u32,
    /// Of its last byte.
    pub limit: u32,
}

impl DescriptorsAt {
    /// The base of the segment that the descriptor at `index` (a multiple of 8) describes, if there is one.
    fn base_of(self, index: u16, pc: &mut dyn Platform) -> Option<u32> {
        if u32::from(index) + 7 > self.limit {
            return None;
        }
        let mut d = [0; 8];
        pc.read(self.base.wrapping_add(index.into()), &mut d);
        Some(u32::from_le_bytes([d[2], d[3], d[4], d[7]]))
    }
}

/// What a caller in protected mode has beside its registers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Caller {
    /// The base of ES.
    pub es: u32,
    /// The base of SS.
    pub ss: u32,
    /// The stack is addressed by ESP, and not by SP.
    pub wide_stack: bool,
    /// The GDT.
    pub gdt: DescriptorsAt,
    /// The LDT; of limit 0 if there is none.
    pub ldt: DescriptorsAt,
}

impl Caller {
    /// The base of the segment that a selector names; 0 if it names none.
    pub(super) fn base_of(&self, selector: u16, pc: &mut dyn Platform) -> u32 {
        let table = if selector & 4 == 0 { self.gdt } else { self.ldt };
        table.base_of(selector & !7, pc).unwrap_or(0)
    }

    /// The caller's flags, in the frame that its "interrupt" has pushed: IP, CS, flags.
    fn frame(&self, r: &Regs) -> u32 {
        let sp = if self.wide_stack { r.esp } else { r.esp & 0xffff };
        self.ss.wrapping_add(sp).wrapping_add(4)
    }
}

impl Bios {
    /// Carries out what a caller in protected mode asks for, whose OUT was at `ip` behind F0000h (physical): the
    /// general registers then change, and carry in `regs.flags` is to be the vCPU's; nothing else does. False if the
    /// stub is none for that mode.
    pub fn call_protected(
        &mut self,
        regs: &mut Regs,
        ip: u16,
        caller: &Caller,
        pc: &mut dyn Platform,
    ) -> bool {
        let Some(stub) = self.rom.stubs.get(&ip) else { return false };
        let before = *regs;
        match stub.service {
            Service::Pci32 => {
                let at = caller.es.wrapping_add(regs.edi);
                pci::service(regs, pc, at, Pointers::Flat(caller.es));
            }
            Service::Clock if regs.ah() == 0xb1 => {
                let (at, frame) = (caller.es.wrapping_add(regs.edi & 0xffff), caller.frame(regs));
                regs.flags = pc.u16(frame);
                pci::service(regs, pc, at, Pointers::Selectors(caller));
                pc.set_u16(frame, regs.flags);
            }
            Service::Apm => {
                system::apm(regs, pc, regs.al(), None);
            }
            _ => return false,
        }
        let carry = regs.flags & CF;
        (regs.esp, regs.ip, regs.cs, regs.flags) = (before.esp, before.ip, before.cs, carry);
        true
    }
}
