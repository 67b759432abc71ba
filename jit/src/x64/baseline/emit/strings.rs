//! MOVS, STOS and LODS.
use super::*;

impl Emitter<'_> {
    /// MOVS, STOS and LODS of one element, upward; downward is the interpreter's.
    pub(super) fn string_op(&mut self, op: &Op, one: One) -> Option<()> {
        if op.flags & CHECKED != 0 || !matches!(op.ashift, 0 | 32) {
            return None;
        }
        let wide = op.ashift == 0;
        let (len, reads, writes) = match one {
            One::Movs(n) => (n, true, true),
            One::Stos(n) => (n, false, true),
            One::Lods(n) => (n, true, false),
        };
        self.save_flags();
        self.flags_lost();
        let site = self.goes_down();
        self.out_of_line(Cold::Interpret { site, k: self.k });
        let [source, destination] = [gpr::RSI, gpr::RDI].map(|r| MAP[r].unwrap_or(host::RAX));
        if reads {
            self.a.lea(wide, host::R10, source, None, 0);
            self.add_segment(op);
            self.look_up(len as u64, false);
            let to = if writes { host::RAX } else { host::R13 };
            self.a.load_part(len, to, host::R10, 0);
            if writes {
                self.a.store(true, host::RAX, CPU, ASIDE);
            }
        }
        if writes {
            self.a.lea(wide, host::R10, destination, None, 0);
            self.look_up(len as u64, true);
            let from = if reads { host::RAX } else { host::R13 };
            if reads {
                self.a.load(host::RAX, CPU, ASIDE);
            }
            self.a.store_part(len, from, host::R10, 0);
        }
        for (r, moves) in [(source, reads), (destination, writes)] {
            if moves {
                self.a.lea(wide, r, r, None, len as i32);
            }
        }
        Some(())
    }

    /// REP MOVS and REP STOS, upward, of what lies on one page: the host's own. The rest is called, as is what the TLB
    /// does not know.
    pub(super) fn repeated_op(&mut self, op: &Op, one: One) -> Option<()> {
        use host::{R10, R11, R13, RAX, RCX, RDI};
        let (len, copies) = match one {
            One::Movs(n) => (n, true),
            One::Stos(n) => (n, false),
            One::Lods(_) => return None,
        };
        let wide = self.long;
        if op.flags & CHECKED != 0 || op.ashift != if wide { 0 } else { 32 } {
            return None;
        }
        self.flush_x87();
        self.save_flags();
        self.flags_lost();
        let times = Some((RCX, len.trailing_zeros() as u8));
        let [source, destination] = [gpr::RSI, gpr::RDI].map(|r| MAP[r].unwrap_or(RAX));
        let mut called = [None; 4];
        called[0] = Some(self.goes_down());
        self.a.test_width(wide, RCX);
        let nothing = self.a.jcc(cc::E);
        self.a.cmp_imm32(wide, RCX, (PAGE_SIZE as usize / len) as i32);
        called[1] = Some(self.a.jcc(cc::A));
        if !wide {
            self.a.mov_width(false, RCX, RCX);
        }
        let look_up = |e: &mut Self, write: bool| {
            e.a.lea(true, RAX, R10, times, -1);
            e.a.look_up_to(write);
            let missed = e.a.jcc(cc::NE);
            e.a.add_mem(R10, R11, tlb::ADDEND);
            Some(missed)
        };
        if copies {
            self.a.lea(wide, R10, source, None, 0);
            self.add_segment(op);
            called[2] = look_up(self, false);
            self.a.store(true, R10, CPU, ASIDE);
        }
        self.a.lea(wide, R10, destination, None, 0);
        called[3] = look_up(self, true);
        self.a.lea(wide, destination, destination, times, 0);
        if copies {
            // The source's place afterwards, and the vCPU's, wait in the scratch registers.
            self.a.lea(wide, R11, source, times, 0);
            self.a.load(source, CPU, ASIDE);
            self.a.mov(RAX, RDI);
        } else {
            self.a.mov(R11, RDI);
            self.a.mov(RAX, R13);
        }
        self.a.mov(RDI, R10);
        self.a.repeat(copies, len);
        self.a.mov(RDI, if copies { RAX } else { R11 });
        if copies {
            self.a.mov(source, R11);
        }
        let back = self.a.at();
        self.lead(nothing, back);
        let op = self.keep(op);
        self.out_of_line(Cold::Call { sites: called, back, op, k: self.k });
        self.called_op();
        Some(())
    }

    /// Jumps where DF is set.
    fn goes_down(&mut self) -> usize {
        self.a.test_mem8(CPU, cpu::RFLAGS + 1, (fl::DF >> 8) as u8);
        self.a.jcc(cc::NE)
    }
}
