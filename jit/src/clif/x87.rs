//! x87 and MMX instructions: executed by the host's own unit, which holds the guest's registers meanwhile
//! ([`mynah_cpu::host_float`]).
//!
//! Each is a [primitive](crate::clif::primitive): the guest's own bytes, with the memory operand's address in RDI. So
//! stack faults, tags, rounding, precision and the condition code are what the processor makes of them. The pointers
//! to the last instruction and its operand (FIP, FCS, FOP, FDP, FDS), which only say something to who asks, are noted
//! during translation and stored where a block ends or the region is left.
//!
//! Hosts without such a unit have all of them called.
//!
//! Left to the interpreter: what stores or loads the whole unit, FNINIT and FNCLEX, conversions between MMX and XMM
//! registers.
use crate::abi::cpu;
use crate::clif::{Emit, Step, Translator};
use crate::host::features;
use crate::host::primitives::{self, MmxOperand};
use crate::host::x87::{MASKS, is_control, is_direct, is_store, is_x87, loads_control};
use cranelift_codegen::ir::{InstBuilder, Value, condcodes::IntCC, types};
use iced_x86::{Code, Instruction, OpCodeOperandKind as Kind, OpKind};
use mynah_cpu::Stop;
use mynah_cpu::exec::{Exec, cc};
use mynah_cpu::op::Op;
use mynah_cpu::state::{gpr, seg};
use mynah_cpu::width::{W16, W32};

/// The last x87 instruction of a straight run of code, not yet stored.
#[derive(Clone, Copy)]
pub(crate) struct LastX87 {
    /// Distance of the instruction from the entry.
    delta: i64,
    opcode: u16,
    /// Offset and segment of the last memory operand, if there was one since the last store.
    data: Option<(Value, u8)>,
}

/// The emitter of an x87 or MMX instruction; `None` for others and for those that are called.
pub(crate) fn select<'a>(i: &Instruction) -> Option<Emit<'a>> {
    use Code::*;
    if !primitives::HERE {
        return None;
    }
    let code = i.code();
    match code {
        Wait => {
            return Some(|t, _| {
                t.ready_x87();
                Ok(Step::Next)
            });
        }
        Emms => {
            return Some(|t, _| {
                t.ready_x87();
                t.primitive(primitives::EMMS, &[], &[], 0, 0);
                Ok(Step::Next)
            });
        }
        _ => {}
    }
    if is_x87(code) {
        return is_direct(code).then_some(Translator::emit_x87);
    }
    let o = code.op_code();
    let mm = |k| matches!(k, Kind::mm_reg | Kind::mm_rm | Kind::mm_or_mem);
    let plain = |k| {
        mm(k)
            || matches!(
                k,
                Kind::imm8 | Kind::mem | Kind::r32_reg | Kind::r64_reg | Kind::r32_or_mem | Kind::r64_or_mem
            )
    };
    let kinds = || (0..i.op_count()).map(|n| o.op_kind(n));
    let shaped = kinds().any(mm)
        && kinds().all(plain)
        && (0..i.op_count())
            .all(|n| matches!(i.op_kind(n), OpKind::Register | OpKind::Memory | OpKind::Immediate8));
    (shaped && features::on_host(code)).then_some(Translator::emit_mmx as Emit<'a>)
}

impl<'a> Translator<'a> {
    fn emit_x87(&mut self, op: &Op) -> Result<Step, Stop> {
        use Code::*;
        self.ready_x87();
        let code = op.code();
        let mut data = None;
        if op.is_mem() {
            let len = code.op_code().memory_size().size() as u64;
            let write = is_store(code);
            let off = self.address(op, None);
            let lin = self.linear(op, off, len, write);
            let host = self.host(lin, len, write);
            let at = if loads_control(code) {
                let word = self.copy_of(types::I16, host);
                let masks = self.b.ins().band_imm_u(word.value(), MASKS);
                let unmasked = self.b.ins().icmp_imm_u(IntCC::NotEqual, masks, MASKS);
                self.bail_if(unmasked);
                self.address_of(word)
            } else {
                host
            };
            self.primitive(&primitives::x87_on_memory(op), &[at], &[], 0, 0);
            data = Some((off, op.seg));
        } else {
            match code {
                Fnstsw_AX | Fstsw_AX => {
                    let word = self.primitive(primitives::X87_STATUS, &[], &[], 1, 0)[0];
                    self.set_reg::<W16>(gpr::RAX as u8, word);
                }
                Fcomi_st0_sti | Fcomip_st0_sti | Fucomi_st0_sti | Fucomip_st0_sti => {
                    let flags = self.primitive(&primitives::x87_compare(op), &[], &[], 1, 0)[0];
                    let flags = primitives::compared(&mut self.b, flags);
                    self.set_compared(flags);
                }
                Fcmovb_st0_sti | Fcmove_st0_sti | Fcmovbe_st0_sti | Fcmovu_st0_sti | Fcmovnb_st0_sti
                | Fcmovne_st0_sti | Fcmovnbe_st0_sti | Fcmovnu_st0_sti => {
                    let condition = match code {
                        Fcmovb_st0_sti => cc::B,
                        Fcmove_st0_sti => cc::E,
                        Fcmovbe_st0_sti => cc::BE,
                        Fcmovu_st0_sti => cc::P,
                        Fcmovnb_st0_sti => cc::AE,
                        Fcmovne_st0_sti => cc::NE,
                        Fcmovnbe_st0_sti => cc::A,
                        _ => cc::NP,
                    };
                    let x = self.cond(condition);
                    self.primitive(&primitives::x87_move_if(op), &[x], &[], 0, 0);
                }
                _ => {
                    self.primitive(&primitives::x87(op), &[], &[], 0, 0);
                }
            }
        }
        if !is_control(code) {
            let delta = self.base() + i64::from(op.off);
            let data = data.or(self.last_x87.and_then(|l| l.data));
            self.last_x87 = Some(LastX87 { delta, opcode: op.imm as u16 & 0x7ff, data });
        }
        Ok(Step::Next)
    }

    /// Stores what is known of the last x87 instruction, where a straight run of code ends.
    pub(crate) fn flush_x87(&mut self) {
        let last = self.last_x87.take();
        self.store_last_x87(last);
    }

    /// Stores what was known of the last x87 instruction.
    pub(crate) fn store_last_x87(&mut self, last: Option<LastX87>) {
        let Some(last) = last else { return };
        let state = self.access.state;
        let selector = |t: &mut Self, s: u8, to: i32| {
            let v = t.b.ins().load(types::I16, state, t.cpu, cpu::selector(s));
            t.b.ins().store(state, v, t.cpu, to);
        };
        let ip = self.rip_at(last.delta);
        self.b.ins().store(state, ip, self.cpu, cpu::FIP);
        selector(self, seg::CS as u8, cpu::FCS);
        let opcode = self.b.ins().iconst(types::I16, i64::from(last.opcode));
        self.b.ins().store(state, opcode, self.cpu, cpu::FOP);
        if let Some((ea, s)) = last.data {
            self.b.ins().store(state, ea, self.cpu, cpu::FDP);
            selector(self, s, cpu::FDS);
        }
    }

    fn emit_mmx(&mut self, op: &Op) -> Result<Step, Stop> {
        let code = op.code();
        let o = code.op_code();
        self.ready_x87();
        let (mut operands, mut ints, mut result) = (Vec::new(), Vec::new(), None);
        for n in 0..o.op_count() {
            let number = [op.dst, op.src, op.src2][n.min(2) as usize];
            let kind = o.op_kind(n);
            match kind {
                Kind::imm8 => {
                    operands.push(MmxOperand::Immediate(op.imm as u8));
                    continue;
                }
                Kind::mem | Kind::mm_or_mem | Kind::r32_or_mem | Kind::r64_or_mem if op.is_mem() => {
                    let (len, write) = (o.memory_size().size() as u64, n == 0);
                    let off = self.address(op, None);
                    let lin = self.linear(op, off, len, write);
                    ints.push(self.host(lin, len, write));
                    operands.push(MmxOperand::Memory);
                    continue;
                }
                _ => {}
            }
            let mm = matches!(kind, Kind::mm_reg | Kind::mm_rm | Kind::mm_or_mem);
            let wide = matches!(kind, Kind::r64_reg | Kind::r64_or_mem);
            operands.push(if mm {
                MmxOperand::Mm(number & 7)
            } else if n == 0 {
                result = Some(number);
                MmxOperand::Result { wide }
            } else {
                let v = self.var(usize::from(number & 15));
                ints.push(v);
                MmxOperand::Source { wide }
            });
        }
        let bytes = primitives::mmx(code, &operands).ok_or(Stop::Again)?;
        let Some(number) = result else {
            self.primitive(&bytes, &ints, &[], 0, 0);
            return Ok(Step::Next);
        };
        // Results of 32 bits are extended with zeros, and so written as 64.
        let v = self.primitive(&bytes, &ints, &[], 1, 0)[0];
        if matches!(o.op_kind(0), Kind::r64_or_mem) {
            self.set_reg::<mynah_cpu::width::W64>(number, v);
        } else {
            self.set_reg::<W32>(number, v);
        }
        Ok(Step::Next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::forms::emits;
    use iced_x86::Register;

    /// What the host would do with the guest's bytes at that very moment, whatever was looked at before.
    #[test]
    fn no_control_register_is_loaded_from_the_guest_s_own_memory() {
        let mut seen = 0;
        for code in Code::values().filter(|&c| loads_control(c)) {
            let mut i = Instruction::default();
            i.set_code(code);
            i.set_op_kind(0, OpKind::Memory);
            i.set_memory_base(Register::RSI);
            assert!(!emits(&i), "{code:?}: the baseline has no copy");
            // FLDCW has one, see `emit_x87` and the baseline's `load_control`.
            assert!(code == Code::Fldcw_m2byte || !is_direct(code), "{code:?}");
            assert!(code == Code::Fldcw_m2byte || select(&i).is_none(), "{code:?}");
            seen += 1;
        }
        assert_eq!(seen, 13);
    }

    /// The list is complete: names of instructions with a memory operand that load what decides about exceptions.
    #[test]
    fn every_instruction_that_loads_control_registers_is_known_as_such() {
        let names = ["Fldcw", "Fldenv", "Frstor", "Fxrstor", "Ldmxcsr", "Xrstor"];
        for code in Code::values() {
            let name = format!("{:?}", code.mnemonic());
            let name = name.strip_prefix('V').unwrap_or(&name);
            let known = names.iter().any(|n| name.starts_with(n)) || name == "ldmxcsr";
            assert_eq!(loads_control(code), known, "{code:?}");
        }
    }
}
