//! Stacks as far transfers and event delivery use them: pushes to a stack that is not current yet, pops that are
//! undone by a fault.
use super::descriptor::contains;
use crate::cpu::Cpu;
use crate::event::{Stop, vector};
use crate::state::{Segment, State, cr4, fl, gpr, seg};
use crate::width::{W16, W32, W64};
use mynah_mmu::Mode;

/// The mask of the stack pointer that SS gives in the current mode.
pub(crate) fn stack_mask(s: &State) -> u64 {
    if s.is_long64() {
        u64::MAX
    } else if s.seg[seg::SS].attr & Segment::DB != 0 {
        0xffff_ffff
    } else {
        0xffff
    }
}

/// A stack with a pointer of its own. Nothing of the CPU's state changes until [`Stack::commit`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stack {
    /// The stack segment.
    pub segment: Segment,
    /// The pointer.
    pub sp: u64,
    /// What of the pointer counts.
    pub mask: u64,
    /// 64-bit mode: no segment.
    pub flat: bool,
    /// On whose behalf it is accessed.
    pub mode: Mode,
    /// Error code of a #SS.
    pub error: u32,
    /// No checks but the limit's (real and virtual-8086 mode have no types).
    unchecked: bool,
}

impl Stack {
    /// The current stack.
    pub fn current(cpu: &Cpu) -> Self {
        let s = &cpu.state;
        let mask = stack_mask(s);
        Self {
            segment: s.seg[seg::SS],
            sp: s.gpr[gpr::RSP] & mask,
            mask,
            flat: s.is_long64(),
            mode: cpu.access_mode(),
            error: 0,
            unchecked: !s.is_protected(),
        }
    }

    /// A new stack at privilege level `cpl`, in a segment that was checked; faults name its selector.
    pub fn new(cpu: &Cpu, segment: Segment, sp: u64, cpl: u8) -> Self {
        let mask = if segment.attr & Segment::DB != 0 { 0xffff_ffff } else { 0xffff };
        let error = super::descriptor::code_of(segment.sel);
        Self { segment, sp: sp & mask, mask, flat: false, mode: mode_at(cpu, cpl), error, unchecked: false }
    }

    /// A stack of 64-bit mode at privilege level `cpl`.
    pub fn long(cpu: &Cpu, sp: u64, cpl: u8) -> Self {
        Self {
            segment: Segment::default(),
            sp,
            mask: u64::MAX,
            flat: true,
            mode: mode_at(cpu, cpl),
            error: 0,
            unchecked: false,
        }
    }

    fn linear(&self, cpu: &mut Cpu, offset: u64, len: u64) -> Result<u64, Stop> {
        if self.flat {
            if !cpu.is_canonical(offset) || !cpu.is_canonical(offset.wrapping_add(len - 1)) {
                return Err(cpu.raise_ec(vector::SS, self.error));
            }
            return Ok(offset);
        }
        let usable = self.unchecked || self.segment.usable() && self.segment.attr & 0x9a == 0x92;
        if !usable || !contains(&self.segment, offset, len) {
            return Err(cpu.raise_ec(vector::SS, self.error));
        }
        Ok(self.segment.base.wrapping_add(offset) & 0xffff_ffff)
    }

    /// Pushes `size` (2, 4, 8) bytes.
    pub fn push(&mut self, cpu: &mut Cpu, size: u64, v: u64) -> Result<(), Stop> {
        let sp = self.sp.wrapping_sub(size) & self.mask;
        let lin = self.linear(cpu, sp, size)?;
        if self.mode == Mode::User {
            cpu.align_check(lin, size)?;
        }
        match size {
            2 => cpu.store_as::<W16>(lin, v, self.mode, seg::SS as u8)?,
            4 => cpu.store_as::<W32>(lin, v, self.mode, seg::SS as u8)?,
            _ => cpu.store_as::<W64>(lin, v, self.mode, seg::SS as u8)?,
        }
        self.sp = sp;
        Ok(())
    }

    /// Pops `size` bytes.
    pub fn pop(&mut self, cpu: &mut Cpu, size: u64) -> Result<u64, Stop> {
        let lin = self.linear(cpu, self.sp, size)?;
        if self.mode == Mode::User {
            cpu.align_check(lin, size)?;
        }
        let v = match size {
            2 => cpu.load_as::<W16>(lin, self.mode, seg::SS as u8)?,
            4 => cpu.load_as::<W32>(lin, self.mode, seg::SS as u8)?,
            _ => cpu.load_as::<W64>(lin, self.mode, seg::SS as u8)?,
        };
        self.sp = self.sp.wrapping_add(size) & self.mask;
        Ok(v)
    }

    /// Releases `n` bytes.
    pub fn release(&mut self, n: u64) {
        self.sp = self.sp.wrapping_add(n) & self.mask;
    }

    /// Checks that `n` bytes can be pushed as far as the segment's limit is concerned, before anything is written.
    pub fn room(&self, cpu: &mut Cpu, n: u64) -> Result<(), Stop> {
        if self.flat {
            return Ok(());
        }
        // A frame may wrap around the top of the segment, as single pushes do: only its ends are looked at then.
        let bottom = self.sp.wrapping_sub(n) & self.mask;
        if bottom < self.sp {
            self.linear(cpu, bottom, n)?;
        } else {
            self.linear(cpu, bottom, 1)?;
        }
        Ok(())
    }

    /// RSP with this stack's pointer in it: bits that the stack's width does not cover stay.
    pub fn merged(&self, rsp: u64) -> u64 {
        match self.mask {
            0xffff => rsp & !0xffff | self.sp,
            _ => self.sp,
        }
    }

    /// Makes the pointer current.
    pub fn commit(&self, cpu: &mut Cpu) {
        cpu.state.gpr[gpr::RSP] = self.merged(cpu.state.gpr[gpr::RSP]);
    }
}

/// The mode of explicit accesses at privilege level `cpl`, other registers as they are.
pub(crate) fn mode_at(cpu: &Cpu, cpl: u8) -> Mode {
    let s = &cpu.state;
    if cpl == 3 {
        Mode::User
    } else if s.cr4 & cr4::SMAP != 0 && s.rflags & fl::AC == 0 {
        Mode::Super
    } else {
        Mode::SuperAc
    }
}

impl Cpu {
    /// Pushes `size` bytes on the current stack.
    pub(crate) fn push_value(&mut self, size: u64, v: u64) -> Result<(), Stop> {
        let mut st = Stack::current(self);
        st.push(self, size, v)?;
        st.commit(self);
        Ok(())
    }
}
