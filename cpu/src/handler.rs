//! How one op leads to the next: the handlers that all helpers have in common, and the way from block to block.
//!
//! A handler executes one op and returns the next: the following one, the first of a linked block, or null to come
//! back to the dispatcher.
use crate::block::Block;
use crate::cpu::Cpu;
use crate::event::Stop;
use crate::mode::ModeKey;
use crate::op::{Handler, Op};
use crate::state::{gpr, seg};

/// Calls the helper and goes on.
pub fn run_straight(cpu: &mut Cpu, op: &Op) -> *const Op {
    match (op.helper)(cpu, op) {
        Ok(()) => op.next(),
        Err(stop) => cpu.stopped(op, stop),
    }
}

/// Calls the helper and leaves the block.
pub fn run_ender(cpu: &mut Cpu, op: &Op) -> *const Op {
    cpu.next_ip = cpu.ip_after(op);
    match (op.helper)(cpu, op) {
        Ok(()) => {
            cpu.state.gpr[gpr::RIP] = cpu.next_ip;
            std::ptr::null()
        }
        Err(stop) => cpu.stopped(op, stop),
    }
}

/// Leaves the block at this op, which is not executed (the end of a block that was cut, or a block that has died).
pub fn leave_before(cpu: &mut Cpu, op: &Op) -> *const Op {
    cpu.state.gpr[gpr::RIP] = cpu.ip(op);
    cpu.chain(1, u64::from(op.off))
}

/// Leaves a block that has died at this op, which is not executed.
pub(crate) fn leave_dead(cpu: &mut Cpu, op: &Op) -> *const Op {
    cpu.uncount(op, false);
    leave_before(cpu, op)
}

/// Raises #UD.
pub fn undefined(cpu: &mut Cpu, _: &Op) -> Result<(), Stop> {
    Err(cpu.ud())
}

/// Raises #GP(0) for an instruction of more than 15 bytes.
pub fn too_long(cpu: &mut Cpu, _: &Op) -> Result<(), Stop> {
    Err(cpu.gp(0))
}

/// As [`leave_before`] at the end of a block, where instructions are counted exactly: this is none.
fn leave_uncounted(cpu: &mut Cpu, op: &Op) -> *const Op {
    cpu.icount = cpu.icount.wrapping_sub(1);
    leave_before(cpu, op)
}

/// An op that ends a block of `len` bytes before the next instruction; it is counted as one, if not `exactly`.
pub(crate) fn leave_op(len: usize, exactly: bool) -> Op {
    Op { off: len as u16, ..gate(if exactly { leave_uncounted } else { leave_before }) }
}

/// An op that does nothing but call `run`.
pub(crate) const fn gate(run: Handler) -> Op {
    Op {
        run,
        helper: undefined,
        imm: 0,
        disp: 0,
        base: gpr::ZERO as u8,
        index: gpr::ZERO as u8,
        scale: 0,
        seg: 0,
        ashift: 0,
        dst: 0,
        src: 0,
        src2: 0,
        width: 0,
        len: 0,
        flags: 0,
        stack: 0,
        off: 0,
        code: 0,
    }
}

impl Cpu {
    #[cold]
    #[inline(never)]
    pub(crate) fn stopped(&mut self, op: &Op, stop: Stop) -> *const Op {
        if stop != Stop::FaultInNewTask {
            self.state.gpr[gpr::RIP] = self.ip(op);
        }
        self.faulted = stop != Stop::Again;
        self.uncount(op, self.faulted);
        std::ptr::null()
    }

    /// The current block is left at `op`, which is `counted` as an instruction. In step with another vCPU, those behind
    /// it are not: the whole block was counted when it was entered. (Compiled code counts as it goes.)
    #[cold]
    fn uncount(&mut self, op: &Op, counted: bool) {
        if !self.marks_stores {
            return;
        }
        // SAFETY: `current` was entered and is not freed before the dispatcher is back.
        let Some(block) = (unsafe { self.blocks.current.as_ref() }) else { return };
        let Some(ops) = block.ops() else { return };
        let at = (&raw const *op as usize).wrapping_sub(ops.as_ptr() as usize) / size_of::<Op>();
        if let Some(rest) = block.op_count().checked_sub(at) {
            self.icount = self.icount.wrapping_sub(rest.saturating_sub(usize::from(counted)) as u64);
        }
    }

    /// Goes to the block at the current RIP, through link `slot` of the current one if it is known.
    #[inline(always)]
    pub(crate) fn chain(&mut self, slot: usize, relative: u64) -> *const Op {
        // SAFETY: `current` is the block whose op is executing; dead blocks stay allocated until the dispatcher runs.
        let next = unsafe { (*self.blocks.current).link[slot].get() };
        if next.is_null() || self.events.pending() & self.event_mask != 0 {
            return self.chain_slow(slot, relative);
        }
        self.enter(next);
        // SAFETY: links are cleared when their target dies.
        unsafe { (*next).first() }
    }

    #[inline(always)]
    pub(crate) fn enter(&mut self, block: *const Block) {
        self.blocks.current = block;
        // SAFETY: callers pass a live block.
        self.icount += unsafe { &*block }.op_count() as u64;
    }

    #[inline(never)]
    fn chain_slow(&mut self, slot: usize, relative: u64) -> *const Op {
        let from = self.blocks.current;
        let next = self.go();
        // SAFETY: as in `chain`.
        if next.is_null() && self.mode_key & (ModeKey::LONG | ModeKey::FLAT) != 0 {
            self.from = (from, slot);
            self.from_relative = relative;
        }
        next
    }

    /// Goes to the block at the current RIP if the jump cache knows it and nothing is pending.
    #[inline(always)]
    pub(crate) fn go(&mut self) -> *const Op {
        let next = self.next_block();
        if next.is_null() {
            return std::ptr::null();
        }
        self.enter(next);
        // SAFETY: jump-cache entries are removed when their block dies.
        unsafe { (*next).first() }
    }

    /// The block at the current RIP if the jump cache knows it and nothing is pending.
    #[inline(always)]
    pub(crate) fn next_block(&mut self) -> *const Block {
        if self.events.pending() & self.event_mask != 0 || self.single || self.unchained {
            return std::ptr::null();
        }
        if self.mode_key & (ModeKey::LONG | ModeKey::FLAT) == 0 {
            return std::ptr::null();
        }
        // Flat or 64-bit: the linear address is RIP.
        let lin = self.state.gpr[gpr::RIP];
        self.blocks.jump(lin, self.mode_key, self.tlb.exec_generation(lin))
    }

    #[inline(always)]
    pub(crate) fn jump_relative(&mut self, op: &Op, slot: usize, imm: u64) -> *const Op {
        let sum = self.state.gpr[gpr::RIP].wrapping_add(imm);
        let target = match op.width {
            8 => sum,
            4 => sum & 0xffff_ffff,
            _ => sum & 0xffff,
        };
        if op.flags & crate::op::CHECKED != 0 && target > u64::from(self.state.seg[seg::CS].limit) {
            let stop = self.gp(0);
            return self.stopped(op, stop);
        }
        self.state.gpr[gpr::RIP] = target;
        // The distance in its own width: near branches reach 2 GiB.
        let distance = if op.width == 2 { imm as i16 as u64 } else { imm as i32 as u64 };
        self.chain(slot, distance)
    }
}
