//! What a kernel executes again and again: CLI, STI, PUSHFQ and CMPXCHG16B.
use super::*;
use mynah_cpu::board::EV_INTR;

impl Emitter<'_> {
    /// CLI, and STI where it is not a block's last instruction, at CPL 0: no event is looked at before the instruction
    /// that follows is done. Elsewhere it depends on IOPL.
    pub(super) fn interrupts_op(&mut self, on: bool) -> Option<()> {
        if self.user {
            return None;
        }
        self.save_flags();
        self.flags_lost();
        self.a.is_zero8(CPU, cpu::CPL);
        let site = self.a.jcc(cc::NE);
        self.out_of_line(Cold::Interpret { site, k: self.k });
        if on {
            self.a.or_mem32(CPU, cpu::RFLAGS, fl::IF as i32);
            self.a.or_mem32(CPU, cpu::EVENT_MASK, EV_INTR as i32);
        } else {
            self.a.and_mem32(CPU, cpu::RFLAGS, !(fl::IF as i32));
            self.a.and_mem32(CPU, cpu::EVENT_MASK, !(EV_INTR as i32));
        }
        Some(())
    }

    /// PUSHFQ: of 64-bit mode, where neither VM nor RF is set in what is executed here.
    pub(super) fn push_flags_op(&mut self, op: &Op) -> Option<()> {
        use host::{R10, R11, RAX};
        let len = self.stack_width(op, 8)?;
        self.save_flags();
        self.flags_lost();
        self.stack_below(len);
        // LAHF's byte is above SETO's.
        self.a.load8(R11, CPU, FLAGS + 1);
        self.a.load8(RAX, CPU, FLAGS);
        self.a.shl(RAX, fl::OF.trailing_zeros() as u8);
        self.a.lea(true, R11, R11, Some((RAX, 0)), 0);
        self.a.or_mem(R11, CPU, cpu::RFLAGS);
        self.a.store(true, R11, R10, 0);
        self.move_stack(-(len as i32));
        Some(())
    }

    /// CMPXCHG16B.
    pub(super) fn exchange_pair_op(&mut self, op: &Op) -> Option<()> {
        use host::{R13, RAX};
        if !self.long || !self.can_address(op) {
            return None;
        }
        self.operand_aligned(op, 16, true);
        // All but ZF stay.
        self.want_flags();
        self.a.mov(RAX, R13);
        self.a.exchange_pair(op.flags & LOCK != 0, host::R10);
        self.a.mov(R13, RAX);
        self.flags_written();
        Some(())
    }
}
