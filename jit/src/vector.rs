//! Vector instructions: [`VecExec`] with 128-bit Cranelift vectors, lanes of 8 bits by default.
//!
//! Vector registers stay in the vCPU's state and are loaded and stored there. Emitted are moves, accesses, lane transfers, and the operations in
//! [`Translator::vec`]'s table; for any other operation the translator gives the op up (`unable`): what has been emitted of it has changed nothing, and its
//! interpreter's handler is called. MMX instructions are given up at their first check.
use crate::translate::Translator;
use cranelift_codegen::ir::{Endianness, InstBuilder, MemFlagsData, Type, Value, condcodes::IntCC, types};
use iced_x86::Mnemonic;
use mynah_cpu::op::Op;
use mynah_cpu::sse::{FloatOp, FusedOp, PairOp, VecExec, VecFlags, VecOp, VecOp3, VecToInt};
use mynah_cpu::state::Vector;
use mynah_cpu::width::Width;
use mynah_cpu::{Cpu, State, Stop};
use std::mem::{offset_of, size_of};

/// The vector type with lanes of width W.
fn lanes<W: Width>() -> Type {
    match W::BITS {
        8 => types::I8X16,
        16 => types::I16X8,
        32 => types::I32X4,
        _ => types::I64X2,
    }
}

fn register_offset(r: u8) -> i32 {
    (offset_of!(Cpu, state) + offset_of!(State, xmm) + usize::from(r & 31) * size_of::<Vector>()) as i32
}

impl Translator<'_> {
    fn as_lanes(&mut self, v: Value, t: Type) -> Value {
        if self.type_of(v) == t {
            return v;
        }
        self.b.ins().bitcast(t, MemFlagsData::new().with_endianness(Endianness::Little), v)
    }

    fn zero_vector(&mut self) -> Value {
        let zero = self.b.ins().iconst(types::I64, 0);
        let v = self.b.ins().splat(types::I64X2, zero);
        self.as_lanes(v, types::I8X16)
    }

    /// The operation on whole vectors that `id` names, if it is emitted.
    fn whole(&mut self, id: Mnemonic, a: Value, b: Value) -> Option<Value> {
        use Mnemonic::*;
        let lane = match id {
            Pand | Andps | Andpd | Por | Orps | Orpd | Pxor | Xorps | Xorpd | Pandn | Andnps | Andnpd
            | Paddb | Psubb | Pcmpeqb | Pcmpgtb | Pminub | Pmaxub => types::I8X16,
            Paddw | Psubw | Pcmpeqw | Pcmpgtw | Pmullw | Pminsw | Pmaxsw => types::I16X8,
            Paddd | Psubd | Pcmpeqd | Pcmpgtd => types::I32X4,
            Paddq | Psubq => types::I64X2,
            _ => return None,
        };
        let (a, b) = (self.as_lanes(a, lane), self.as_lanes(b, lane));
        let i = self.b.ins();
        let r = match id {
            Pand | Andps | Andpd => i.band(a, b),
            Por | Orps | Orpd => i.bor(a, b),
            Pxor | Xorps | Xorpd => i.bxor(a, b),
            Pandn | Andnps | Andnpd => i.band_not(b, a),
            Paddb | Paddw | Paddd | Paddq => i.iadd(a, b),
            Psubb | Psubw | Psubd | Psubq => i.isub(a, b),
            Pmullw => i.imul(a, b),
            Pcmpeqb | Pcmpeqw | Pcmpeqd => i.icmp(IntCC::Equal, a, b),
            Pcmpgtb | Pcmpgtw | Pcmpgtd => i.icmp(IntCC::SignedGreaterThan, a, b),
            Pminub => i.umin(a, b),
            Pmaxub => i.umax(a, b),
            Pminsw => i.smin(a, b),
            _ => i.smax(a, b),
        };
        Some(self.as_lanes(r, types::I8X16))
    }

    fn give_up(&mut self) -> Value {
        self.unable = true;
        self.zero_vector()
    }

    fn give_up_int(&mut self) -> Value {
        self.unable = true;
        self.b.ins().iconst(types::I64, 0)
    }

    fn vector_linear(&mut self, op: &Op, aligned: bool, write: bool) -> Value {
        let off = self.address(op, None);
        let lin = self.linear(op, off, 16, write);
        if aligned {
            let low = self.b.ins().band_imm_u(lin, 15);
            self.bail_if(low);
        }
        lin
    }
}

impl VecExec for Translator<'_> {
    type Vec = Value;

    fn sse_check(&mut self) -> Result<(), Stop> {
        let at = offset_of!(Cpu, sse_trap) as i32;
        let trap = self.b.ins().load(types::I8, self.access.state, self.cpu, at);
        self.bail_if(trap);
        Ok(())
    }
    fn avx_check(&mut self) -> Result<(), Stop> {
        let at = offset_of!(Cpu, avx_trap) as i32;
        let trap = self.b.ins().load(types::I8, self.access.state, self.cpu, at);
        self.bail_if(trap);
        Ok(())
    }
    fn mmx_check(&mut self) -> Result<(), Stop> {
        Err(Stop::Again)
    }
    fn x87_check(&mut self) -> Result<(), Stop> {
        Err(Stop::Again)
    }
    /// Comes behind a check that has given the op up.
    fn enter_mmx(&mut self) {
        self.unable = true;
    }
    fn xmm(&mut self, r: u8) -> Value {
        self.b.ins().load(types::I8X16, self.access.state, self.cpu, register_offset(r))
    }
    fn set_xmm(&mut self, r: u8, v: Value) {
        if self.unable {
            return;
        }
        let v = self.as_lanes(v, types::I8X16);
        self.b.ins().store(self.access.state, v, self.cpu, register_offset(r));
    }
    fn ymm_high(&mut self, r: u8) -> Value {
        self.b.ins().load(types::I8X16, self.access.state, self.cpu, register_offset(r) + 16)
    }
    fn set_ymm_high(&mut self, r: u8, v: Value) {
        if self.unable {
            return;
        }
        let v = self.as_lanes(v, types::I8X16);
        self.b.ins().store(self.access.state, v, self.cpu, register_offset(r) + 16);
    }
    fn mm(&mut self, _: u8) -> Value {
        self.give_up_int()
    }
    fn set_mm(&mut self, _: u8, _: Value) {
        self.unable = true;
    }
    fn load_vec(&mut self, op: &Op, aligned: bool) -> Result<Value, Stop> {
        let lin = self.vector_linear(op, aligned, false);
        let host = self.host(lin, 16, false);
        Ok(self.load_host(types::I8X16, host))
    }
    fn store_vec(&mut self, op: &Op, v: Value, aligned: bool) -> Result<(), Stop> {
        if self.unable {
            return Err(Stop::Again);
        }
        let lin = self.vector_linear(op, aligned, true);
        let host = self.host(lin, 16, true);
        let v = self.as_lanes(v, types::I8X16);
        self.store_host(v, host);
        Ok(())
    }
    fn load_pair(&mut self, _: &Op, _: bool) -> Result<[Value; 2], Stop> {
        Err(Stop::Again)
    }
    fn store_pair(&mut self, _: &Op, _: [Value; 2], _: bool) -> Result<(), Stop> {
        Err(Stop::Again)
    }

    fn vec_of<W: Width>(&mut self, v: Value) -> Value {
        let v = self.fit(v, types::I64);
        let v = self.b.ins().scalar_to_vector(types::I64X2, v);
        self.as_lanes(v, types::I8X16)
    }
    fn lane<W: Width>(&mut self, v: Value, n: u8) -> Value {
        let t = lanes::<W>();
        let v = self.as_lanes(v, t);
        self.b.ins().extractlane(v, n & (t.lane_count() as u8 - 1))
    }
    fn with_lane<W: Width>(&mut self, v: Value, n: u8, x: Value) -> Value {
        let t = lanes::<W>();
        let v = self.as_lanes(v, t);
        let x = self.fit(x, t.lane_type());
        let v = self.b.ins().insertlane(v, x, n & (t.lane_count() as u8 - 1));
        self.as_lanes(v, types::I8X16)
    }

    fn vec<O: VecOp>(&mut self, a: Value, b: Value, _: u8) -> Value {
        match self.whole(O::ID, a, b) {
            Some(v) => v,
            None => self.give_up(),
        }
    }
    fn vec64<O: VecOp>(&mut self, _: Value, _: Value, _: u8) -> Value {
        self.give_up_int()
    }
    fn vec3<O: VecOp3>(&mut self, _: Value, _: Value, _: Value) -> Value {
        self.give_up()
    }
    fn pair<O: PairOp>(&mut self, a: [Value; 2], _: [Value; 2]) -> [Value; 2] {
        self.unable = true;
        a
    }
    fn vec_int<O: VecToInt>(&mut self, b: Value) -> Value {
        let t = match O::ID {
            Mnemonic::Pmovmskb => types::I8X16,
            Mnemonic::Movmskps => types::I32X4,
            Mnemonic::Movmskpd => types::I64X2,
            _ => return self.give_up_int(),
        };
        let b = self.as_lanes(b, t);
        self.b.ins().vhigh_bits(types::I32, b)
    }
    fn vec_flags<O: VecFlags>(&mut self, _: Value, _: Value) {
        self.unable = true;
    }
    fn vec_flags_pair<O: VecFlags>(&mut self, _: [Value; 2], _: [Value; 2]) {
        self.unable = true;
    }
    fn float<O: FloatOp>(&mut self, _: Value, _: Value, _: u8) -> Result<Value, Stop> {
        Err(Stop::Again)
    }
    fn float_int<O: FloatOp>(&mut self, _: Value) -> Result<Value, Stop> {
        Err(Stop::Again)
    }
    fn int_float<O: FloatOp>(&mut self, _: Value, _: Value) -> Result<Value, Stop> {
        Err(Stop::Again)
    }
    fn float_flags<O: FloatOp>(&mut self, _: Value, _: Value) -> Result<(), Stop> {
        Err(Stop::Again)
    }
    fn float_pair<O: FloatOp>(&mut self, _: [Value; 2], _: [Value; 2], _: u8) -> Result<[Value; 2], Stop> {
        Err(Stop::Again)
    }
    fn fused<O: FusedOp>(&mut self, _: Value, _: Value, _: Value) -> Result<Value, Stop> {
        Err(Stop::Again)
    }
    fn fused_pair<O: FusedOp>(
        &mut self,
        _: [Value; 2],
        _: [Value; 2],
        _: [Value; 2],
    ) -> Result<[Value; 2], Stop> {
        Err(Stop::Again)
    }
}

const _: () = assert!(size_of::<Vector>() == 64);
