//! Virtual-8086 mode extensions (VME) and protected-mode virtual interrupts: SDM volume 3B, 20.3 and 20.4, and volume
//! 3A, 2.3 (VIF, VIP).
use super::far::Target;
use super::stack::Stack;
use crate::cpu::Cpu;
use crate::event::{Stop, vector};
use crate::state::{Segment, cr4, fl, seg};
use crate::width::{W8, W16};

impl Cpu {
    /// Sets or clears VIF.
    pub(crate) fn set_vif(&mut self, on: bool) {
        if on {
            self.state.rflags |= fl::VIF;
        } else {
            self.state.rflags &= !fl::VIF;
        }
    }

    /// INT n in virtual-8086 mode: whether the interrupt goes to the 8086 program's own handler. #GP(0) if it may not
    /// be made at all (SDM volume 3B, table 20-2).
    pub(crate) fn redirected(&mut self, vector: u8) -> Result<bool, Stop> {
        let iopl3 = self.state.iopl() == 3;
        if self.state.cr4 & cr4::VME == 0 {
            return if iopl3 { Ok(false) } else { Err(self.gp(0)) };
        }
        let tr = self.state.tr;
        if tr.attr & 8 == 0 || tr.limit < 0x67 {
            return Err(self.gp(0));
        }
        let io_base = self.load_sys::<W16>(tr.base.wrapping_add(0x66))?;
        // The bitmap's 32 bytes end where the I/O permission bitmap begins.
        let at = io_base.wrapping_sub(32).wrapping_add(u64::from(vector >> 3));
        if at > u64::from(tr.limit) {
            return Err(self.gp(0));
        }
        let byte = self.load_sys::<W8>(tr.base.wrapping_add(at))?;
        if byte >> (vector & 7) & 1 == 0 {
            return Ok(true);
        }
        if iopl3 { Ok(false) } else { Err(self.gp(0)) }
    }

    /// Enters the 8086 program's handler through the table at linear address 0. With IOPL below 3 the program sees VIF
    /// as IF, and IOPL 3.
    pub(crate) fn redirect(&mut self, vector: u8, rip: u64) -> Result<u64, Stop> {
        let at = u64::from(vector) * 4;
        let ip = self.load::<W16>(at, seg::DS as u8)?;
        let sel = self.load::<W16>(at + 2, seg::DS as u8)? as u16;
        let virtual_if = self.state.iopl() < 3;
        let image = self.v86_flags_image();
        let mut st = Stack::current(self);
        st.push(self, 2, image)?;
        st.push(self, 2, u64::from(self.state.seg[seg::CS].sel))?;
        st.push(self, 2, rip)?;
        st.commit(self);
        self.state.rflags &= !(fl::TF | fl::RF | if virtual_if { fl::VIF } else { fl::IF });
        self.enter_code(&Target { segment: Segment::real(sel, 3), ip, cpl: 3 });
        self.mode_changed();
        Ok(ip)
    }

    /// FLAGS as PUSHF and a redirected INT n push them: with IOPL below 3 (and VME) IF is VIF, and IOPL reads 3.
    pub(crate) fn v86_flags_image(&self) -> u64 {
        let f = self.state.rflags();
        if self.state.iopl() == 3 {
            return f;
        }
        let vif = if f & fl::VIF != 0 { fl::IF } else { 0 };
        f & !fl::IF | vif | fl::IOPL
    }

    /// Whether CLI, STI and their kin work on VIF: VME in virtual-8086 mode, PVI at CPL 3 of protected mode, both with
    /// IOPL below 3.
    pub(crate) fn uses_vif(&self) -> bool {
        let s = &self.state;
        if s.iopl() == 3 {
            return false;
        }
        if s.is_v86() { s.cr4 & cr4::VME != 0 } else { s.cpl == 3 && s.cr4 & cr4::PVI != 0 }
    }

    /// #GP(0) for an IOPL-sensitive instruction.
    pub(crate) fn iopl_fault(&mut self) -> Stop {
        self.raise_ec(vector::GP, 0)
    }
}
