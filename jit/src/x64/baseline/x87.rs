//! x87 instructions in the baseline: the guest's own, executed by the host's unit, which holds the guest's registers
//! meanwhile ([`mynah_cpu::host_float`]; [`crate::x64::x87`] says which).
//!
//! The pointers to the last instruction and its operand are noted while a block is emitted, and stored where it ends,
//! before what is called, and on side exits. Where an exception is unmasked the host must not execute any: the
//! block's are called then ([`Baseline::refuse_x87`](super::Baseline::refuse_x87)).
use super::emit::{Cold, Emitter, LastX87};
use crate::abi::{context, cpu, in_context};
use crate::x64::asm::{CPU, cc, host};
use crate::x64::stubs::PAGE_RIP;
use crate::x64::x87::{MASKS, bytes_of, is_control, is_store, loads_control};
use iced_x86::{Code, Instruction};
use mynah_cpu::host_float::X87;
use mynah_cpu::op::Op;
use mynah_cpu::state::seg;

/// Where a control word waits, read once, to be loaded.
const COPY: i32 = in_context(context::ASIDE);

fn data_at(slot: u8) -> i32 {
    in_context(context::X87_DATA) + 8 * i32::from(slot)
}

impl Emitter<'_> {
    /// Before an instruction of the x87 unit. R10, R11, RAX and flags are lost.
    fn want_x87(&mut self) {
        if !self.x87 {
            self.save_flags();
            self.flags_lost();
            self.a.test_mem8(CPU, cpu::FLOAT_LIVE, X87);
            let site = self.a.jcc(cc::E);
            let (back, k) = (self.a.at(), self.k);
            self.out_of_line(Cold::Float { site, back, k, which: X87 });
            self.x87 = true;
        }
    }

    pub(super) fn x87_op(&mut self, op: &Op, i: &Instruction) -> Option<()> {
        let code = i.code();
        if self.soft_x87 || op.is_mem() && !self.can_address(op) {
            return None;
        }
        self.want_x87();
        if code == Code::Wait {
            // No exception is pending.
            return Some(());
        }
        let (first, second) = bytes_of(op);
        let last = self.last_x87.and_then(|l| l.data);
        let mut data = last;
        if op.is_mem() {
            self.save_flags();
            self.address(op, host::R10);
            if !is_control(code) {
                // The other one is good until the access has been made.
                let slot = last.map_or(0, |d| d.0 ^ 1);
                self.a.store(true, host::R10, CPU, data_at(slot));
                data = Some((slot, op.seg));
            }
            self.operand_at(op, i.memory_size().size() as u64, is_store(code));
            if loads_control(code) {
                self.load_control();
            } else {
                // The operand at R10.
                self.a.bytes(&[0x41, first, second & 0x38 | 2]);
            }
        } else {
            match code {
                Code::Fnstsw_AX | Code::Fstsw_AX => {
                    // fnstsw ax
                    self.a.bytes(&[0xdf, 0xe0]);
                    self.a.mov16(host::R13, host::RAX);
                }
                Code::Fcmovb_st0_sti
                | Code::Fcmove_st0_sti
                | Code::Fcmovbe_st0_sti
                | Code::Fcmovu_st0_sti
                | Code::Fcmovnb_st0_sti
                | Code::Fcmovne_st0_sti
                | Code::Fcmovnbe_st0_sti
                | Code::Fcmovnu_st0_sti => {
                    self.want_flags();
                    self.a.bytes(&[first, second]);
                }
                _ => self.a.bytes(&[first, second]),
            }
            if matches!(
                code,
                Code::Fcomi_st0_sti | Code::Fcomip_st0_sti | Code::Fucomi_st0_sti | Code::Fucomip_st0_sti
            ) {
                self.flags_written();
            }
        }
        if !is_control(code) {
            self.last_x87 = Some(LastX87 { here: self.here, opcode: op.imm as u16 & 0x7ff, data });
        }
        Some(())
    }

    /// FLDCW from the address in R10: a copy is looked at, and loaded.
    fn load_control(&mut self) {
        self.flags_lost();
        self.a.load16(host::RAX, host::R10, 0);
        self.a.store(false, host::RAX, CPU, COPY);
        self.a.not32(host::RAX);
        self.a.test_al(MASKS as u8);
        let site = self.a.jcc(cc::NE);
        self.out_of_line(Cold::Interpret { site, k: self.k });
        self.a.x87_mem(0xd9, 5, COPY);
    }

    /// Stores what is known of the last x87 instruction.
    pub(super) fn flush_x87(&mut self) {
        let last = self.last_x87.take();
        self.store_last_x87(last);
    }

    /// Stores what was known of the last x87 instruction. RAX is lost.
    pub(super) fn store_last_x87(&mut self, last: Option<LastX87>) {
        let Some(last) = last else { return };
        self.a.load(host::RAX, CPU, PAGE_RIP);
        self.a.lea(self.long, host::RAX, host::RAX, None, last.here as i32);
        self.a.store(true, host::RAX, CPU, cpu::FIP);
        self.a.load16(host::RAX, CPU, cpu::selector(seg::CS as u8));
        self.a.store_part(2, host::RAX, CPU, cpu::FCS);
        self.a.store_imm16(last.opcode, CPU, cpu::FOP);
        if let Some((slot, segment)) = last.data {
            self.a.load(host::RAX, CPU, data_at(slot));
            self.a.store(true, host::RAX, CPU, cpu::FDP);
            self.a.load16(host::RAX, CPU, cpu::selector(segment));
            self.a.store_part(2, host::RAX, CPU, cpu::FDS);
        }
    }
}
