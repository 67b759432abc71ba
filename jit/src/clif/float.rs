//! Floating point by the host's own instructions: SSE's as [primitives](crate::clif::primitive), under the guest's
//! MXCSR.
//!
//! An operation is the guest's instruction, executed where the guest executes it, so that rounding, flushing, NaNs and
//! sticky flags are exact by construction. The host's MXCSR is the guest's meanwhile: see [`mynah_cpu::host_float`].
//! That is tested once in a straight run of code.
use crate::abi::{FLOAT, context, cpu};
use crate::clif::Translator;
use crate::host::primitives;
use cranelift_codegen::ir::{InstBuilder, Value, types};
use iced_x86::{Mnemonic, OpCodeOperandKind as Kind};
use mynah_cpu::Stop;
use mynah_cpu::host_float::{SSE, X87};

impl Translator<'_> {
    /// Has the host's registers hold the guest's MXCSR or x87 unit; leaves for the interpreter where they must not.
    fn host_float(&mut self, which: u8) {
        let t = types::I64;
        let at = cpu::FLOAT_LIVE;
        let live = self.b.ins().load(types::I8, self.access.state, self.cpu, at);
        let live = self.b.ins().band_imm_u(live, i64::from(which));
        let out = self.interpret_here();
        let enter = self.b.create_block();
        let on = self.b.create_block();
        self.b.set_cold_block(enter);
        self.b.ins().brif(live, on, &[], enter, &[]);
        self.b.switch_to_block(enter);
        self.b.seal_block(enter);
        let kind = self.b.ins().iconst(t, (FLOAT | u64::from(which)) as i64);
        let done = self.call_stub(context::FILL_STUB, kind);
        self.b.ins().brif(done, on, &[], out, &[]);
        self.b.switch_to_block(on);
        self.b.seal_block(on);
    }

    /// Before an instruction that reads or changes MXCSR.
    fn ready_float(&mut self) {
        if !self.ready.float {
            self.host_float(SSE);
            self.ready.float = true;
        }
    }

    /// Before an instruction of the x87 unit or MMX.
    pub(crate) fn ready_x87(&mut self) {
        if !self.ready.x87 {
            self.host_float(X87);
            self.ready.x87 = true;
        }
    }

    pub(crate) fn float_vector(&mut self, id: Mnemonic, a: Value, b: Value, imm: u8) -> Result<Value, Stop> {
        if self.unable {
            return Err(Stop::Again);
        }
        let bytes = primitives::binary(id, imm).ok_or(Stop::Again)?;
        self.ready_float();
        Ok(self.primitive(&bytes, &[], &[a, b], 0, 1)[0])
    }

    /// On three vectors, the first the destination's old value.
    pub(crate) fn float_fused(&mut self, id: Mnemonic, a: Value, b: Value, c: Value) -> Result<Value, Stop> {
        let bytes = primitives::fused(id).filter(|_| !self.unable).ok_or(Stop::Again)?;
        self.ready_float();
        Ok(self.primitive(&bytes, &[], &[a, b, c], 0, 1)[0])
    }

    /// To a general register of the current instruction's width.
    pub(crate) fn float_to_int(&mut self, id: Mnemonic, b: Value) -> Result<Value, Stop> {
        let wide = matches!(self.op().code().op_code().op_kind(0), Kind::r64_reg);
        let bytes = primitives::float_to_int(id, wide).filter(|_| !self.unable).ok_or(Stop::Again)?;
        self.ready_float();
        Ok(self.primitive(&bytes, &[], &[b], 1, 0)[0])
    }

    /// From an integer of 32 or 64 bits.
    pub(crate) fn int_to_float(&mut self, id: Mnemonic, a: Value, b: Value) -> Result<Value, Stop> {
        let wide = self.type_of(b) == types::I64;
        let bytes = primitives::int_to_float(id, wide).filter(|_| !self.unable).ok_or(Stop::Again)?;
        self.ready_float();
        Ok(self.primitive(&bytes, &[b], &[a], 0, 1)[0])
    }

    /// COMISS and its kin.
    pub(crate) fn float_compare(&mut self, id: Mnemonic, a: Value, b: Value) -> Result<(), Stop> {
        let bytes = primitives::compare(id).filter(|_| !self.unable).ok_or(Stop::Again)?;
        self.ready_float();
        let flags = self.primitive(&bytes, &[], &[a, b], 1, 0)[0];
        let flags = primitives::compared(&mut self.b, flags);
        self.set_compared(flags);
        Ok(())
    }
}
