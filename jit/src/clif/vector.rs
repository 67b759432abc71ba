//! Vector instructions: [`VecExec`] with 128-bit Cranelift vectors, lanes of 8 bits by default.
//!
//! The low 128 bits of vector registers are variables of the region, as general registers are. Operations on bits are
//! Cranelift's where it has them, and else [primitives](crate::clif::primitive): the very instruction. What the host
//! has not is given up (`unable`): what has been emitted of it has changed nothing, and its interpreter's handler is
//! called. Floating point: [`crate::clif::float`]. MMX instructions are given up at their first check.
use crate::abi::cpu;
use crate::clif::Translator;
use crate::host::{features, primitives};
use crate::plan::{HIGH, XMM};
use cranelift_codegen::ir::{
    Endianness, InstBuilder, InstructionData, MemFlagsData, Opcode, Type, Value, condcodes::IntCC, types,
};
use iced_x86::Mnemonic;
use mynah_cpu::op::Op;
use mynah_cpu::sse::{FloatOp, FusedOp, PairOp, VecExec, VecFlags, VecOp, VecOp3, VecToInt};
use mynah_cpu::width::Width;
use mynah_cpu::{Exec, Stop};

/// The vector type with lanes of width W.
fn lanes<W: Width>() -> Type {
    match W::BITS {
        8 => types::I8X16,
        16 => types::I16X8,
        32 => types::I32X4,
        _ => types::I64X2,
    }
}

/// Bytes of a constant shuffle from two vectors: 0-15 the first's, 16-31 the second's.
type Mask = [u8; 16];

/// The mask whose lanes of `size` bytes are the given ones, numbered through both vectors.
fn lane_mask(size: usize, lane: impl Fn(usize) -> usize) -> Mask {
    std::array::from_fn(|n| (lane(n / size) * size + n % size) as u8)
}
/// The two-bit field `k` of an immediate.
fn field(imm: u8, k: usize) -> usize {
    usize::from(imm >> (2 * k) & 3)
}

impl Translator<'_> {
    pub(crate) fn as_lanes(&mut self, v: Value, t: Type) -> Value {
        if self.type_of(v) == t {
            return v;
        }
        self.b.ins().bitcast(t, MemFlagsData::new().with_endianness(Endianness::Little), v)
    }

    pub(crate) fn zero_vector(&mut self) -> Value {
        let zero = self.b.ins().iconst(types::I64, 0);
        let v = self.b.ins().splat(types::I64X2, zero);
        self.as_lanes(v, types::I8X16)
    }

    fn shuffle(&mut self, a: Value, b: Value, mask: Mask) -> Value {
        let (a, b) = (self.as_lanes(a, types::I8X16), self.as_lanes(b, types::I8X16));
        let mask = self.b.func.dfg.immediates.push(mask.as_slice().into());
        self.b.ins().shuffle(a, b, mask)
    }

    /// The operation on two vectors that `id` names, as Cranelift has it; `None` if it has not.
    fn whole(&mut self, id: Mnemonic, a: Value, b: Value) -> Option<Value> {
        use Mnemonic::*;
        let lane = match id {
            Pand | Andps | Andpd | Por | Orps | Orpd | Pxor | Xorps | Xorpd | Pandn | Andnps | Andnpd
            | Paddb | Psubb | Pcmpeqb | Pcmpgtb | Pminub | Pmaxub | Pminsb | Pmaxsb | Paddsb | Paddusb
            | Psubsb | Psubusb | Pavgb | Pshufb | Pabsb | Pmovsxbw | Pmovzxbw => types::I8X16,
            Paddw | Psubw | Pcmpeqw | Pcmpgtw | Pmullw | Pminsw | Pmaxsw | Pminuw | Pmaxuw | Paddsw
            | Paddusw | Psubsw | Psubusw | Pavgw | Pabsw | Phaddw | Packsswb | Packuswb | Pmovsxwd
            | Pmovzxwd => types::I16X8,
            Paddd | Psubd | Pcmpeqd | Pcmpgtd | Pmulld | Pminsd | Pmaxsd | Pminud | Pmaxud | Pabsd
            | Phaddd | Packssdw | Packusdw | Pmovsxdq | Pmovzxdq => types::I32X4,
            Paddq | Psubq | Pcmpeqq | Pcmpgtq => types::I64X2,
            _ => return None,
        };
        let (a, b) = (self.as_lanes(a, lane), self.as_lanes(b, lane));
        let i = self.b.ins();
        Some(match id {
            Pand | Andps | Andpd => i.band(a, b),
            Por | Orps | Orpd => i.bor(a, b),
            Pxor | Xorps | Xorpd => i.bxor(a, b),
            Pandn | Andnps | Andnpd => i.band_not(b, a),
            Paddb | Paddw | Paddd | Paddq => i.iadd(a, b),
            Psubb | Psubw | Psubd | Psubq => i.isub(a, b),
            Paddsb | Paddsw => i.sadd_sat(a, b),
            Paddusb | Paddusw => i.uadd_sat(a, b),
            Psubsb | Psubsw => i.ssub_sat(a, b),
            Psubusb | Psubusw => i.usub_sat(a, b),
            Pavgb | Pavgw => i.avg_round(a, b),
            Pmullw | Pmulld => i.imul(a, b),
            Pcmpeqb | Pcmpeqw | Pcmpeqd | Pcmpeqq => i.icmp(IntCC::Equal, a, b),
            Pcmpgtb | Pcmpgtw | Pcmpgtd | Pcmpgtq => i.icmp(IntCC::SignedGreaterThan, a, b),
            Pminub | Pminuw | Pminud => i.umin(a, b),
            Pmaxub | Pmaxuw | Pmaxud => i.umax(a, b),
            Pminsb | Pminsw | Pminsd => i.smin(a, b),
            Pmaxsb | Pmaxsw | Pmaxsd => i.smax(a, b),
            Pabsb | Pabsw | Pabsd => i.iabs(b),
            Phaddw | Phaddd => i.iadd_pairwise(a, b),
            Packsswb | Packssdw => i.snarrow(a, b),
            Packuswb | Packusdw => i.unarrow(a, b),
            Pmovsxbw | Pmovsxwd | Pmovsxdq => i.swiden_low(b),
            Pmovzxbw | Pmovzxwd | Pmovzxdq => i.uwiden_low(b),
            _ if primitives::HERE => i.x86_pshufb(a, b),
            _ => {
                // Bit 7 of an index stands for zero, and four bits for a byte. To a swizzle all beyond 15 is zero.
                let index = self.b.ins().iconst(types::I8, 0x8f);
                let index = self.b.ins().splat(types::I8X16, index);
                let index = self.b.ins().band(b, index);
                self.b.ins().swizzle(a, index)
            }
        })
    }

    /// The shuffle of two vectors that `id` names with an immediate.
    fn shuffled(&mut self, id: Mnemonic, a: Value, b: Value, imm: u8) -> Option<Value> {
        use Mnemonic::*;
        // Lanes of `size` bytes from `from` on, of both in turn.
        let interleave =
            |size, from| lane_mask(size, |n| from + n / 2 + if n & 1 != 0 { 16 / size } else { 0 });
        let blend = |size, bits: u8| lane_mask(size, |n| if bits >> n & 1 != 0 { n + 16 / size } else { n });
        let (x, y, mask) = match id {
            Punpcklbw => (a, b, interleave(1, 0)),
            Punpcklwd => (a, b, interleave(2, 0)),
            Punpckldq | Unpcklps => (a, b, interleave(4, 0)),
            Punpcklqdq | Unpcklpd | Movlhps | Movhps => (a, b, interleave(8, 0)),
            Punpckhbw => (a, b, interleave(1, 8)),
            Punpckhwd => (a, b, interleave(2, 4)),
            Punpckhdq | Unpckhps => (a, b, interleave(4, 2)),
            Punpckhqdq | Unpckhpd => (a, b, interleave(8, 1)),
            Movhlps => (a, b, lane_mask(8, |n| [3, 1][n & 1])),
            Movss => (a, b, blend(4, 1)),
            Movsd | Movlps => (a, b, blend(8, 1)),
            Blendps => (a, b, blend(4, imm)),
            Blendpd => (a, b, blend(8, imm)),
            Pblendw => (a, b, blend(2, imm)),
            Pshufd => (b, b, lane_mask(4, |n| field(imm, n & 3))),
            Pshuflw => (b, b, lane_mask(2, |n| if n < 4 { field(imm, n) } else { n })),
            Pshufhw => (b, b, lane_mask(2, |n| if n < 4 { n } else { 4 + field(imm, n & 3) })),
            Shufps => (a, b, lane_mask(4, |n| field(imm, n & 3) + if n < 2 { 0 } else { 4 })),
            Shufpd => (a, b, lane_mask(8, |n| usize::from(imm >> (n & 1) & 1) + if n == 0 { 0 } else { 2 })),
            Vpbroadcastb => (b, b, lane_mask(1, |_| 0)),
            Vpbroadcastw => (b, b, lane_mask(2, |_| 0)),
            Vpbroadcastd => (b, b, lane_mask(4, |_| 0)),
            Movddup | Vpbroadcastq => (b, b, lane_mask(8, |_| 0)),
            Movshdup => (b, b, lane_mask(4, |n| n | 1)),
            Movsldup => (b, b, lane_mask(4, |n| n & !1)),
            Palignr if imm <= 16 => (b, a, std::array::from_fn(|n| n as u8 + imm)),
            Movq => (b, self.zero_vector(), interleave(8, 0)),
            _ => return None,
        };
        Some(self.shuffle(x, y, mask))
    }

    /// A shift by a known count.
    fn shifted(&mut self, id: Mnemonic, a: Value, n: u64) -> Option<Value> {
        use Mnemonic::*;
        let t = match id {
            Psllw | Psrlw | Psraw => types::I16X8,
            Pslld | Psrld | Psrad => types::I32X4,
            Psllq | Psrlq => types::I64X2,
            Pslldq | Psrldq => types::I8X16,
            _ => return None,
        };
        let bits = u64::from(t.lane_bits());
        let zero = self.zero_vector();
        Some(match id {
            Pslldq | Psrldq if n > 15 => zero,
            Pslldq => self.shuffle(zero, a, std::array::from_fn(|k| (16 + k as u64 - n) as u8)),
            Psrldq => self.shuffle(a, zero, std::array::from_fn(|k| (k as u64 + n) as u8)),
            Psraw | Psrad => {
                let a = self.as_lanes(a, t);
                self.b.ins().sshr_imm_u(a, n.min(bits - 1) as i64)
            }
            _ if n >= bits => zero,
            Psllw | Pslld | Psllq => {
                let a = self.as_lanes(a, t);
                self.b.ins().ishl_imm_u(a, n as i64)
            }
            _ => {
                let a = self.as_lanes(a, t);
                self.b.ins().ushr_imm_u(a, n as i64)
            }
        })
    }

    /// The instruction itself, `a` and `b` its operands.
    pub(crate) fn vector_primitive(&mut self, id: Mnemonic, a: Value, b: Value, imm: u8) -> Option<Value> {
        let bytes = primitives::binary(id, imm)?;
        self.primitive(&bytes, &[], &[a, b], 0, 1).first().copied()
    }

    fn operation(&mut self, id: Mnemonic, a: Value, b: Value, imm: u8) -> Option<Value> {
        if let Some(&n) = self.vector_constants.get(&b)
            && let Some(r) = self.shifted(id, a, n)
        {
            return Some(r);
        }
        self.whole(id, a, b).or_else(|| self.shuffled(id, a, b, imm)).or_else(|| {
            // From memory the source is one element, whatever the immediate says.
            let imm = if id == Mnemonic::Insertps && self.op().is_mem() { imm & 0x3f } else { imm };
            self.vector_primitive(id, a, b, imm)
        })
    }

    /// An integer as it is best stored: a vector's low lane straight from there.
    pub(crate) fn as_stored(&mut self, v: Value) -> Value {
        let Some(&InstructionData::BinaryImm8 { opcode: Opcode::Extractlane, arg, imm: 0 }) =
            self.definition(v)
        else {
            return v;
        };
        let t = match self.type_of(arg) {
            types::I64X2 => types::F64X2,
            types::I32X4 => types::F32X4,
            _ => return v,
        };
        let v = self.as_lanes(arg, t);
        self.b.ins().extractlane(v, 0)
    }

    fn give_up(&mut self) -> Value {
        self.unable = true;
        self.zero_vector()
    }

    fn give_up_int(&mut self) -> Value {
        self.unable = true;
        self.b.ins().iconst(types::I64, 0)
    }

    fn vector_linear(&mut self, op: &Op, len: u64, aligned: bool, write: bool) -> Value {
        let off = self.address(op, None);
        let lin = self.linear(op, off, len, write);
        if aligned {
            let low = self.b.ins().band_imm_u(lin, len as i64 - 1);
            self.bail_if(low);
        }
        lin
    }

    /// ZF and CF of a test of vectors: of the sum of lanes, zero or not, and of the rest of `b` outside of `a`.
    fn test_vectors(&mut self, id: Mnemonic, pairs: &[(Value, Value)]) {
        let signs = match id {
            Mnemonic::Ptest => None,
            Mnemonic::Vtestps => Some([0, 0, 0, 0x80].repeat(4)),
            Mnemonic::Vtestpd => Some([0, 0, 0, 0, 0, 0, 0, 0x80].repeat(2)),
            _ => {
                self.unable = true;
                return;
            }
        };
        let (mut inside, mut outside) = (None, None);
        for &(a, b) in pairs {
            for (sum, v) in
                [(&mut inside, self.b.ins().band(a, b)), (&mut outside, self.b.ins().band_not(b, a))]
            {
                *sum = Some(match *sum {
                    Some(s) => self.b.ins().bor(s, v),
                    None => v,
                });
            }
        }
        let clear = |t: &mut Self, v: Option<Value>| {
            let v = v.unwrap_or(t.cpu);
            let v = match &signs {
                Some(bytes) => {
                    let mask = t.b.func.dfg.constants.insert(bytes.as_slice().into());
                    let mask = t.b.ins().vconst(types::I8X16, mask);
                    t.b.ins().band(v, mask)
                }
                None => v,
            };
            let some = t.b.ins().vany_true(v);
            let some = t.fit(some, types::I64);
            t.b.ins().bxor_imm_u(some, 1)
        };
        let (zf, cf) = (clear(self, inside), clear(self, outside));
        let zf = self.b.ins().ishl_imm_u(zf, 6);
        let flags = self.b.ins().bor(zf, cf);
        self.set_compared(flags);
    }
}

impl VecExec for Translator<'_> {
    type Vec = Value;

    fn sse_check(&mut self) -> Result<(), Stop> {
        if self.ready.sse {
            return Ok(());
        }
        let at = cpu::SSE_TRAP;
        let trap = self.b.ins().load(types::I8, self.access.state, self.cpu, at);
        self.bail_if(trap);
        self.ready.sse = true;
        Ok(())
    }
    fn avx_check(&mut self) -> Result<(), Stop> {
        if self.ready.avx {
            return Ok(());
        }
        let at = cpu::AVX_TRAP;
        let trap = self.b.ins().load(types::I8, self.access.state, self.cpu, at);
        self.bail_if(trap);
        self.ready.avx = true;
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
        self.var(XMM + usize::from(r & 15))
    }
    fn set_xmm(&mut self, r: u8, v: Value) {
        if self.unable {
            return;
        }
        let v = self.as_lanes(v, types::I8X16);
        self.set_var(XMM + usize::from(r & 15), v);
    }
    fn ymm_high(&mut self, r: u8) -> Value {
        self.var(HIGH + usize::from(r & 15))
    }
    fn set_ymm_high(&mut self, r: u8, v: Value) {
        if self.unable {
            return;
        }
        let n = HIGH + usize::from(r & 15);
        let bit = 1 << (r & 15);
        if self.vector_constants.get(&v) == Some(&0) {
            // What instructions on 128 bits leave: stored at once, and once.
            if self.ready.high_zero & bit == 0 {
                self.set_stored_var(n, v);
                self.ready.high_zero |= bit;
            }
            return;
        }
        let v = self.as_lanes(v, types::I8X16);
        self.set_var(n, v);
        self.ready.high_zero &= !bit;
    }
    fn mm(&mut self, _: u8) -> Value {
        self.give_up_int()
    }
    fn set_mm(&mut self, _: u8, _: Value) {
        self.unable = true;
    }
    fn load_vec(&mut self, op: &Op, aligned: bool) -> Result<Value, Stop> {
        let lin = self.vector_linear(op, 16, aligned, false);
        Ok(self.load_vectors::<1>(lin)[0])
    }
    fn load_low<W: Width>(&mut self, op: &Op) -> Result<Value, Stop> {
        if W::BITS < 32 {
            let v = Exec::load::<W>(self, op)?;
            return Ok(self.vec_of::<W>(v));
        }
        let off = self.address(op, None);
        let lin = self.linear(op, off, W::BYTES, false);
        Ok(self.load_low_linear(if W::BITS == 64 { types::I64 } else { types::I32 }, lin))
    }
    fn store_vec(&mut self, op: &Op, v: Value, aligned: bool) -> Result<(), Stop> {
        if self.unable {
            return Err(Stop::Again);
        }
        let lin = self.vector_linear(op, 16, aligned, true);
        let v = self.as_lanes(v, types::I8X16);
        self.store_linear(v, lin);
        Ok(())
    }
    fn load_pair(&mut self, op: &Op, aligned: bool) -> Result<[Value; 2], Stop> {
        let lin = self.vector_linear(op, 32, aligned, false);
        Ok(self.load_vectors(lin))
    }
    fn store_pair(&mut self, op: &Op, v: [Value; 2], aligned: bool) -> Result<(), Stop> {
        if self.unable {
            return Err(Stop::Again);
        }
        let lin = self.vector_linear(op, 32, aligned, true);
        let host = self.host(lin, 32, true);
        for (v, at) in v.into_iter().zip([0, 16]) {
            let v = self.as_lanes(v, types::I8X16);
            self.guest_store(v, host, at);
        }
        Ok(())
    }

    fn vec_of<W: Width>(&mut self, x: Value) -> Value {
        let known = self.constant(x);
        let (x, t) = match self.type_of(x) {
            types::I64 => (x, types::I64X2),
            _ => (self.fit(x, types::I32), types::I32X4),
        };
        let v = self.b.ins().scalar_to_vector(t, x);
        let v = self.as_lanes(v, types::I8X16);
        if let Some(n) = known {
            self.vector_constants.insert(v, n);
        }
        v
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

    fn vec<O: VecOp>(&mut self, a: Value, b: Value, imm: u8) -> Value {
        match self.operation(O::ID, a, b, imm) {
            Some(v) => self.as_lanes(v, types::I8X16),
            None => self.give_up(),
        }
    }
    fn vec64<O: VecOp>(&mut self, _: Value, _: Value, _: u8) -> Value {
        self.give_up_int()
    }
    fn vec3<O: VecOp3>(&mut self, a: Value, b: Value, c: Value) -> Value {
        use Mnemonic::*;
        if !features::has_blends() {
            return self.give_up();
        }
        let t = match O::ID {
            Pblendvb => types::I8X16,
            Blendvps => types::I32X4,
            Blendvpd => types::I64X2,
            id => {
                // The third operand is XMM0, the result in XMM1.
                return match primitives::with_xmm0(id) {
                    Some(bytes) => self.primitive(&bytes, &[], &[c, a, b], 0, 2)[1],
                    None => self.give_up(),
                };
            }
        };
        let (a, b, c) = (self.as_lanes(a, t), self.as_lanes(b, t), self.as_lanes(c, t));
        let r = self.b.ins().blendv(c, b, a);
        self.as_lanes(r, types::I8X16)
    }
    fn pair<O: PairOp>(&mut self, a: [Value; 2], b: [Value; 2]) -> [Value; 2] {
        match primitives::across_lanes(O::ID) {
            Some(bytes) => {
                let r = self.primitive(&bytes, &[], &[a[0], a[1], b[0], b[1]], 0, 2);
                [r[0], r[1]]
            }
            None => {
                self.unable = true;
                a
            }
        }
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
    fn vec_flags<O: VecFlags>(&mut self, a: Value, b: Value) {
        if !self.unable {
            self.test_vectors(O::ID, &[(a, b)]);
        }
    }
    fn vec_flags_pair<O: VecFlags>(&mut self, a: [Value; 2], b: [Value; 2]) {
        if !self.unable {
            self.test_vectors(O::ID, &[(a[0], b[0]), (a[1], b[1])]);
        }
    }
    fn float<O: FloatOp>(&mut self, a: Value, b: Value, imm: u8) -> Result<Value, Stop> {
        self.float_vector(O::ID, a, b, imm)
    }
    fn float_int<O: FloatOp>(&mut self, b: Value) -> Result<Value, Stop> {
        self.float_to_int(O::ID, b)
    }
    fn int_float<O: FloatOp>(&mut self, a: Value, b: Value) -> Result<Value, Stop> {
        self.int_to_float(O::ID, a, b)
    }
    fn float_flags<O: FloatOp>(&mut self, a: Value, b: Value) -> Result<(), Stop> {
        self.float_compare(O::ID, a, b)
    }
    fn float_pair<O: FloatOp>(&mut self, a: [Value; 2], b: [Value; 2], imm: u8) -> Result<[Value; 2], Stop> {
        // With all exceptions masked the lanes have nothing to do with each other.
        Ok([self.float_vector(O::ID, a[0], b[0], imm)?, self.float_vector(O::ID, a[1], b[1], imm)?])
    }
    fn fused<O: FusedOp>(&mut self, a: Value, b: Value, c: Value) -> Result<Value, Stop> {
        self.float_fused(O::ID, a, b, c)
    }
    fn fused_pair<O: FusedOp>(
        &mut self,
        a: [Value; 2],
        b: [Value; 2],
        c: [Value; 2],
    ) -> Result<[Value; 2], Stop> {
        Ok([self.float_fused(O::ID, a[0], b[0], c[0])?, self.float_fused(O::ID, a[1], b[1], c[1])?])
    }
}
