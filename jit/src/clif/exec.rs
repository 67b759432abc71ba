//! The operations of [`Exec`] as Cranelift instructions. An integer of width W is a value of the type of that width; a
//! truth value is an `i8`, 0 or 1.
use crate::abi::cpu;
use crate::clif::{Emit, Recent, Step, Translator};
use crate::host::primitives;
use crate::plan::{AUX, RES};
use cranelift_codegen::ir::condcodes::{CondCode, IntCC};
use cranelift_codegen::ir::{InstBuilder, InstructionData, Opcode, Type, Value, types};
use iced_x86::Mnemonic;
use mynah_cpu::Stop;
use mynah_cpu::exec::{Exec, Sem, cc};
use mynah_cpu::flags::{AUX_AF, AUX_CF, AUX_PO, AUX_TOP};
use mynah_cpu::op::{CHECKED, Helper, LOCK, Op};
use mynah_cpu::state::{fl, gpr};
use mynah_cpu::width::{W16, W32, W64, Width};

/// The type of width W.
fn ty<W: Width>() -> Type {
    match W::BITS {
        8 => types::I8,
        16 => types::I16,
        32 => types::I32,
        _ => types::I64,
    }
}

impl Translator<'_> {
    fn constant_of(&mut self, t: Type, v: u64) -> Value {
        self.b.ins().iconst(t, (v & u64::MAX >> (64 - t.bits())) as i64)
    }
    fn constant_bool(&mut self, v: bool) -> Value {
        self.b.ins().iconst(types::I8, i64::from(v))
    }

    /// The value zero-extended or cut to a type.
    pub(crate) fn fit(&mut self, v: Value, t: Type) -> Value {
        let from = self.type_of(v);
        if from.bits() < t.bits() {
            self.b.ins().uextend(t, v)
        } else if from.bits() > t.bits() {
            self.b.ins().ireduce(t, v)
        } else {
            v
        }
    }
    fn sign_fit(&mut self, v: Value, t: Type) -> Value {
        if self.type_of(v).bits() < t.bits() { self.b.ins().sextend(t, v) } else { self.fit(v, t) }
    }

    /// A bound of a value, from how it was made.
    pub(crate) fn bound(&self, v: Value) -> u64 {
        let bits = self.type_of(v).bits();
        let all = u64::MAX >> (64 - bits);
        if let Some(c) = self.constant(v) {
            return c;
        }
        match self.definition(v) {
            Some(&InstructionData::Binary { opcode: Opcode::Band, args }) => {
                args.iter().filter_map(|&a| self.constant(a)).min().unwrap_or(all)
            }
            Some(&InstructionData::Unary { opcode: Opcode::Uextend, arg }) => self.bound(arg),
            _ => all,
        }
    }

    /// A shift as the interpreter does it, in 64 bits: `beyond` is what counts from 64 up give.
    fn wide_shift(&mut self, a: Value, n: Value, op: Opcode, result: Type) -> Value {
        let bits = u64::from(result.bits());
        let limit = self.bound(n);
        let arithmetic = op == Opcode::Sshr;
        if limit < bits {
            // In the value's own width.
            return match op {
                Opcode::Ishl => self.b.ins().ishl(a, n),
                Opcode::Ushr => self.b.ins().ushr(a, n),
                _ => self.b.ins().sshr(a, n),
            };
        }
        let wide = if arithmetic { self.sign_fit(a, types::I64) } else { self.fit(a, types::I64) };
        let n = self.fit(n, types::I64);
        let r = if arithmetic {
            let top = self.constant_of(types::I64, 63);
            let n = if limit < 64 { n } else { self.b.ins().umin(n, top) };
            self.b.ins().sshr(wide, n)
        } else {
            let r = if op == Opcode::Ishl { self.b.ins().ishl(wide, n) } else { self.b.ins().ushr(wide, n) };
            if limit < 64 {
                r
            } else {
                let inside = self.b.ins().icmp_imm_u(IntCC::UnsignedLessThan, n, 64);
                let zero = self.constant_of(types::I64, 0);
                self.b.ins().select(inside, r, zero)
            }
        };
        self.fit(r, result)
    }

    fn set_flags(&mut self, res: Value, aux: Value) {
        self.set_var(RES, res);
        self.set_var(AUX, aux);
    }

    /// `aux` for a carry vector: see [`mynah_cpu::flags`].
    fn aux_of_carries(&mut self, carries: Value) -> Value {
        let bits = self.type_of(carries).bits();
        let wide = self.fit(carries, types::I64);
        let top = if bits < 64 { self.b.ins().ishl_imm_u(wide, i64::from(64 - bits)) } else { wide };
        let top = self.b.ins().band_imm_s(top, AUX_TOP as i64);
        let af = self.b.ins().band_imm_u(wide, AUX_AF as i64);
        self.b.ins().bor(top, af)
    }
    fn add_carries(&mut self, a: Value, b: Value, r: Value) -> Value {
        let both = self.b.ins().band(a, b);
        let any = self.b.ins().bor(a, b);
        let not = self.b.ins().bnot(r);
        let through = self.b.ins().band(any, not);
        self.b.ins().bor(both, through)
    }
    fn sub_borrows(&mut self, a: Value, b: Value, r: Value) -> Value {
        let not = self.b.ins().bnot(a);
        let both = self.b.ins().band(not, b);
        let any = self.b.ins().bor(not, b);
        let through = self.b.ins().band(any, r);
        self.b.ins().bor(both, through)
    }
    /// CF and CF xor OF at their places in `aux`.
    fn aux_of_bools(&mut self, cf: Value, of: Value) -> Value {
        let change = self.b.ins().bxor(cf, of);
        let cf = self.fit(cf, types::I64);
        let change = self.fit(change, types::I64);
        let cf = self.b.ins().ishl_imm_u(cf, 63);
        let change = self.b.ins().ishl_imm_u(change, 62);
        self.b.ins().bor(cf, change)
    }
    /// `aux` with CF (bit 63 of `cf`) replaced, and CF xor OF such that OF stays.
    fn keep_cf(&mut self, aux: Value, cf: Value) -> Value {
        let x = self.b.ins().bxor(aux, cf);
        let change = self.b.ins().band_imm_s(x, AUX_CF as i64);
        let lower = self.b.ins().ushr_imm_u(change, 1);
        let aux = self.b.ins().bxor(aux, change);
        self.b.ins().bxor(aux, lower)
    }
    /// Sets the flags of a comparison of floating-point numbers: CF, PF and ZF as in RFLAGS, the others are cleared.
    pub(crate) fn set_compared(&mut self, v: Value) {
        let bit = |t: &mut Self, n: i64| {
            let v = t.b.ins().ushr_imm_u(v, n);
            t.b.ins().band_imm_u(v, 1)
        };
        let (cf, pf, zf) = (bit(self, 0), bit(self, 2), bit(self, 6));
        // See `mynah_cpu::flags::pack`: SF = OF = AF = 0.
        let res = self.b.ins().bxor_imm_u(zf, 1);
        let fix = self.b.ins().bxor(pf, zf);
        let fix = self.b.ins().ishl_imm_u(fix, 8);
        let carry = self.b.ins().ineg(cf);
        let carry = self.b.ins().band_imm_s(carry, AUX_TOP as i64);
        let aux = self.b.ins().bor(carry, fix);
        self.set_flags(res, aux);
        self.recent = Recent::Compared(v);
    }
    fn top_bit(&mut self, v: Value) -> Value {
        let v = self.b.ins().ushr_imm_u(v, 63);
        self.fit(v, types::I8)
    }
    fn invert(&mut self, x: Value) -> Value {
        self.b.ins().bxor_imm_u(x, 1)
    }
    fn zero_compare(&mut self, c: IntCC, v: Value) -> Value {
        self.b.ins().icmp_imm_s(c, v, 0)
    }

    /// A condition (`code` even) from what is known of the instruction that set the flags.
    fn recent_condition(&mut self, code: u8) -> Option<Value> {
        use IntCC::*;
        let of_result = |t: &mut Self, r: Value| match code {
            cc::E => Some(t.zero_compare(Equal, r)),
            cc::S => Some(t.zero_compare(SignedLessThan, r)),
            _ => None,
        };
        match self.recent {
            Recent::Nothing => None,
            Recent::Result(r) => of_result(self, r),
            Recent::Compared(v) => {
                let mask = match code {
                    cc::B => 1,
                    cc::E | cc::LE => 0x40,
                    cc::BE => 0x41,
                    cc::P => 4,
                    _ => return Some(self.constant_bool(false)),
                };
                let v = self.b.ins().band_imm_u(v, mask);
                Some(self.zero_compare(IntCC::NotEqual, v))
            }
            Recent::Sub(a, b, r) => {
                let c = match code {
                    cc::B => UnsignedLessThan,
                    cc::E => Equal,
                    cc::BE => UnsignedLessThanOrEqual,
                    cc::L => SignedLessThan,
                    cc::LE => SignedLessThanOrEqual,
                    _ => return of_result(self, r),
                };
                Some(self.b.ins().icmp(c, a, b))
            }
            Recent::Add(a, r) => match code {
                cc::B => Some(self.b.ins().icmp(UnsignedLessThan, r, a)),
                _ => of_result(self, r),
            },
            Recent::Logic(r) => match code {
                cc::O | cc::B => Some(self.constant_bool(false)),
                cc::BE => of_result(self, r).or_else(|| Some(self.zero_compare(Equal, r))),
                cc::L => Some(self.zero_compare(SignedLessThan, r)),
                cc::LE => Some(self.zero_compare(SignedLessThanOrEqual, r)),
                _ => of_result(self, r),
            },
        }
    }

    /// A condition (`code` even) from `res` and `aux`.
    fn lazy_condition(&mut self, code: u8) -> Value {
        let zf = |t: &mut Self| {
            let res = t.var(RES);
            t.zero_compare(IntCC::Equal, res)
        };
        let sf = |t: &mut Self| {
            let (res, aux) = (t.var(RES), t.var(AUX));
            let fix = t.b.ins().ishl_imm_u(aux, 2);
            let v = t.b.ins().bxor(res, fix);
            t.top_bit(v)
        };
        let cf = |t: &mut Self| {
            let aux = t.var(AUX);
            t.top_bit(aux)
        };
        let of = |t: &mut Self| {
            let aux = t.var(AUX);
            let up = t.b.ins().ishl_imm_u(aux, 1);
            let v = t.b.ins().bxor(aux, up);
            t.top_bit(v)
        };
        match code {
            cc::O => of(self),
            cc::B => cf(self),
            cc::E => zf(self),
            cc::BE => {
                let (c, z) = (cf(self), zf(self));
                self.b.ins().bor(c, z)
            }
            cc::S => sf(self),
            cc::P => {
                let (res, aux) = (self.var(RES), self.var(AUX));
                let fix = self.b.ins().ushr_imm_u(aux, 8);
                let v = self.b.ins().bxor(res, fix);
                let v = self.b.ins().band_imm_u(v, 0xff);
                let n = self.b.ins().popcnt(v);
                let n = self.fit(n, types::I8);
                let odd = self.b.ins().band_imm_u(n, 1);
                self.invert(odd)
            }
            code => {
                let (s, o) = (sf(self), of(self));
                let l = self.b.ins().bxor(s, o);
                if code == cc::L {
                    return l;
                }
                let z = zf(self);
                self.b.ins().bor(l, z)
            }
        }
    }

    /// The place that a relative branch of distance `imm` from the block leads to; `None` if its target is cut to 16
    /// bits.
    fn relative(&mut self, op: &Op, imm: u64) -> Option<i64> {
        match op.width {
            8 => Some(self.base().wrapping_add(imm as i64)),
            4 => Some(self.base().wrapping_add(i64::from(imm as i32))),
            _ => None,
        }
    }
    fn following(&self, op: &Op) -> i64 {
        self.base() + i64::from(op.off) + i64::from(op.len)
    }

    fn stack_value(&mut self, op: &Op, sp: Value) -> Value {
        match op.stack {
            8 => sp,
            4 => {
                let cut = self.b.ins().band_imm_u(sp, 0xffff_ffff);
                self.note_cut(cut, sp);
                cut
            }
            _ => self.b.ins().band_imm_u(sp, 0xffff),
        }
    }
    fn set_stack(&mut self, op: &Op, sp: Value) {
        let v = match op.stack {
            2 => {
                let old = self.var(gpr::RSP);
                let high = self.b.ins().band_imm_s(old, !0xffff);
                let low = self.b.ins().band_imm_u(sp, 0xffff);
                self.b.ins().bor(high, low)
            }
            _ => self.stack_value(op, sp),
        };
        self.set_var(gpr::RSP, v);
    }
}

impl<'a> Exec for Translator<'a> {
    type Int = Value;
    type Bool = Value;
    type Next = Step;
    type Handler = Option<Emit<'a>>;

    fn handler<S: Sem<Self>>() -> Self::Handler {
        Some(S::exec)
    }
    /// Helpers are called by way of the interpreter's handler, whichever they are.
    fn helper(_: Helper) -> Self::Handler {
        None
    }

    fn imm<W: Width>(&mut self, v: u64) -> Value {
        self.constant_of(ty::<W>(), v)
    }
    fn reg<W: Width>(&mut self, r: u8) -> Value {
        let v = self.var(usize::from(r & 15));
        let v = if W::BITS == 8 && r & 0x20 != 0 { self.b.ins().ushr_imm_u(v, 8) } else { v };
        self.fit(v, ty::<W>())
    }
    fn set_reg<W: Width>(&mut self, r: u8, v: Value) {
        if self.unable {
            return;
        }
        let n = usize::from(r & 15);
        let v = self.fit(v, ty::<W>());
        let wide = self.fit(v, types::I64);
        let v = match W::BITS {
            64 | 32 => wide,
            bits => {
                let shift = if bits == 8 && r & 0x20 != 0 { 8 } else { 0 };
                let old = self.var(n);
                let rest = self.b.ins().band_imm_s(old, !(W::MASK << shift) as i64);
                let new = if shift == 0 { wide } else { self.b.ins().ishl_imm_u(wide, 8) };
                self.b.ins().bor(rest, new)
            }
        };
        self.set_var(n, v);
    }
    fn ea(&mut self, op: &Op) -> Value {
        self.address(op, None)
    }
    fn load<W: Width>(&mut self, op: &Op) -> Result<Value, Stop> {
        let off = self.address(op, None);
        let lin = self.linear(op, off, W::BYTES, false);
        Ok(self.load_linear(ty::<W>(), lin))
    }
    fn store<W: Width>(&mut self, op: &Op, v: Value) -> Result<(), Stop> {
        if self.unable {
            return Err(Stop::Again);
        }
        let off = self.address(op, None);
        let lin = self.linear(op, off, W::BYTES, true);
        let v = self.fit(v, ty::<W>());
        let v = self.as_stored(v);
        self.store_linear(v, lin);
        Ok(())
    }
    fn modify<W: Width>(
        &mut self,
        op: &Op,
        lock: bool,
        f: impl FnMut(&mut Self, Value) -> Value,
    ) -> Result<(Value, Value), Stop> {
        let off = self.address(op, None);
        let lin = self.linear(op, off, W::BYTES, true);
        Ok(self.modify_at_linear(ty::<W>(), lin, lock || op.flags & LOCK != 0, f))
    }
    fn load_at<W: Width>(&mut self, op: &Op, offset: Value) -> Result<Value, Stop> {
        let off = self.address(op, Some(offset));
        let lin = self.linear(op, off, W::BYTES, false);
        Ok(self.load_linear(ty::<W>(), lin))
    }
    fn modify_at<W: Width>(
        &mut self,
        op: &Op,
        offset: Value,
        f: impl FnMut(&mut Self, Value) -> Value,
    ) -> Result<(Value, Value), Stop> {
        let off = self.address(op, Some(offset));
        let lin = self.linear(op, off, W::BYTES, true);
        Ok(self.modify_at_linear(ty::<W>(), lin, op.flags & LOCK != 0, f))
    }
    fn push<W: Width>(&mut self, op: &Op, v: Value) -> Result<(), Stop> {
        let sp = self.var(gpr::RSP);
        let sp = self.add_const(sp, -(W::BYTES as i64));
        let at = self.stack_value(op, sp);
        let lin = self.stack_linear(at, W::BYTES);
        let v = self.fit(v, ty::<W>());
        self.store_linear(v, lin);
        self.set_stack(op, sp);
        Ok(())
    }
    fn peek<W: Width>(&mut self, op: &Op) -> Result<Value, Stop> {
        let sp = self.var(gpr::RSP);
        let at = self.stack_value(op, sp);
        let lin = self.stack_linear(at, W::BYTES);
        Ok(self.load_linear(ty::<W>(), lin))
    }
    fn drop_stack(&mut self, op: &Op, bytes: u64) {
        let sp = self.var(gpr::RSP);
        let sp = self.add_const(sp, bytes as i64);
        self.set_stack(op, sp);
    }

    fn step_index(&mut self, op: &Op, r: usize, bytes: u64) {
        let flags = self.b.ins().load(types::I64, self.access.state, self.cpu, cpu::RFLAGS);
        let down = self.b.ins().band_imm_u(flags, fl::DF as i64);
        let down =
            self.b.ins().ushr_imm_u(down, i64::from(fl::DF.trailing_zeros() - (2 * bytes).trailing_zeros()));
        let old = self.var(r);
        let up = self.add_const(old, bytes as i64);
        let new = self.b.ins().isub(up, down);
        match op.ashift & 63 {
            0 => self.set_reg::<W64>(r as u8, new),
            32 => self.set_reg::<W32>(r as u8, new),
            _ => self.set_reg::<W16>(r as u8, new),
        }
    }

    fn add<W: Width>(&mut self, a: Value, b: Value) -> Value {
        self.b.ins().iadd(a, b)
    }
    fn sub<W: Width>(&mut self, a: Value, b: Value) -> Value {
        self.b.ins().isub(a, b)
    }
    fn and<W: Width>(&mut self, a: Value, b: Value) -> Value {
        self.b.ins().band(a, b)
    }
    fn or<W: Width>(&mut self, a: Value, b: Value) -> Value {
        self.b.ins().bor(a, b)
    }
    fn xor<W: Width>(&mut self, a: Value, b: Value) -> Value {
        self.b.ins().bxor(a, b)
    }
    fn not<W: Width>(&mut self, a: Value) -> Value {
        self.b.ins().bnot(a)
    }
    fn shl<W: Width>(&mut self, a: Value, n: Value) -> Value {
        self.wide_shift(a, n, Opcode::Ishl, ty::<W>())
    }
    fn shr<W: Width>(&mut self, a: Value, n: Value) -> Value {
        self.wide_shift(a, n, Opcode::Ushr, ty::<W>())
    }
    fn sar<W: Width>(&mut self, a: Value, n: Value) -> Value {
        self.wide_shift(a, n, Opcode::Sshr, ty::<W>())
    }
    fn rotl<W: Width>(&mut self, a: Value, n: Value) -> Value {
        self.b.ins().rotl(a, n)
    }
    fn mul<W: Width>(&mut self, a: Value, b: Value) -> Value {
        if W::BITS < 16 {
            let (a, b) = (self.fit(a, types::I32), self.fit(b, types::I32));
            let r = self.b.ins().imul(a, b);
            return self.fit(r, ty::<W>());
        }
        self.b.ins().imul(a, b)
    }
    fn umulh<W: Width>(&mut self, a: Value, b: Value) -> Value {
        if W::BITS == 64 {
            return self.b.ins().umulhi(a, b);
        }
        let (a, b) = (self.fit(a, types::I64), self.fit(b, types::I64));
        let r = self.b.ins().imul(a, b);
        let r = self.b.ins().ushr_imm_u(r, i64::from(W::BITS));
        self.fit(r, ty::<W>())
    }
    fn smulh<W: Width>(&mut self, a: Value, b: Value) -> Value {
        if W::BITS == 64 {
            return self.b.ins().smulhi(a, b);
        }
        let (a, b) = (self.sign_fit(a, types::I64), self.sign_fit(b, types::I64));
        let r = self.b.ins().imul(a, b);
        let r = self.b.ins().ushr_imm_u(r, i64::from(W::BITS));
        self.fit(r, ty::<W>())
    }
    fn divide<W: Width>(
        &mut self,
        hi: Value,
        lo: Value,
        d: Value,
        signed: bool,
    ) -> Result<(Value, Value), Stop> {
        let t = ty::<W>();
        let wide = if W::BITS == 64 { types::I64 } else { types::I32 };
        // All that may raise #DE, and a little more, is the interpreter's.
        let (hi, lo, divisor) = if !signed {
            let bad = self.b.ins().icmp(IntCC::UnsignedGreaterThanOrEqual, hi, d);
            self.bail_if(bad);
            let (hi, lo, d) = (self.fit(hi, wide), self.fit(lo, wide), self.fit(d, wide));
            if W::BITS < 32 {
                let high = self.b.ins().ishl_imm_u(hi, i64::from(W::BITS));
                let zero = self.constant_of(wide, 0);
                (zero, self.b.ins().bor(high, lo), d)
            } else {
                (hi, lo, d)
            }
        } else {
            // 0 and -1.
            let next = self.add_const(d, 1);
            let bad = self.b.ins().icmp_imm_u(IntCC::UnsignedLessThanOrEqual, next, 1);
            self.bail_if(bad);
            if W::BITS < 32 {
                let (high, low) = (self.sign_fit(hi, wide), self.fit(lo, wide));
                let high = self.b.ins().ishl_imm_u(high, i64::from(W::BITS));
                let n = self.b.ins().bor(high, low);
                let sign = self.b.ins().sshr_imm_u(n, 31);
                (sign, n, self.sign_fit(d, wide))
            } else {
                let sign = self.b.ins().sshr_imm_u(lo, i64::from(W::BITS) - 1);
                let bad = self.b.ins().icmp(IntCC::NotEqual, sign, hi);
                self.bail_if(bad);
                (hi, lo, d)
            }
        };
        let (q, r) = match primitives::divide(wide == types::I64, signed) {
            Some(bytes) => {
                let results = self.primitive(bytes, &[divisor, lo, hi], &[], 2, 0);
                (results[0], results[1])
            }
            None => self.divide_alone(wide, signed, (hi, lo), divisor),
        };
        let narrow = self.fit(q, t);
        if signed && W::BITS < 32 {
            let q = self.fit(q, wide);
            let again = self.sign_fit(narrow, wide);
            let bad = self.b.ins().icmp(IntCC::NotEqual, again, q);
            self.bail_if(bad);
        }
        Ok((narrow, self.fit(r, t)))
    }
    fn deposit<W: Width>(&mut self, a: Value, mask: Value) -> Value {
        self.bits_by_mask::<W>(Mnemonic::Pdep, a, mask)
    }
    fn gather<W: Width>(&mut self, a: Value, mask: Value) -> Value {
        self.bits_by_mask::<W>(Mnemonic::Pext, a, mask)
    }
    fn sext<F: Width, T: Width>(&mut self, a: Value) -> Value {
        self.sign_fit(a, ty::<T>())
    }
    fn zext<F: Width, T: Width>(&mut self, a: Value) -> Value {
        self.fit(a, ty::<T>())
    }
    fn trunc<F: Width, T: Width>(&mut self, a: Value) -> Value {
        self.fit(a, ty::<T>())
    }
    fn bswap<W: Width>(&mut self, a: Value) -> Value {
        if W::BITS == 8 { a } else { self.b.ins().bswap(a) }
    }
    fn popcnt<W: Width>(&mut self, a: Value) -> Value {
        let a = self.fit(a, types::I64);
        let n = self.b.ins().popcnt(a);
        self.fit(n, ty::<W>())
    }
    fn clz<W: Width>(&mut self, a: Value) -> Value {
        let a = self.fit(a, types::I64);
        let n = self.b.ins().clz(a);
        let n = self.add_const(n, i64::from(W::BITS) - 64);
        self.fit(n, ty::<W>())
    }
    fn ctz<W: Width>(&mut self, a: Value) -> Value {
        let a = self.fit(a, types::I64);
        // A one above the width stops the count there.
        let a = if W::BITS < 64 { self.b.ins().bor_imm_u(a, 1 << W::BITS) } else { a };
        let n = self.b.ins().ctz(a);
        self.fit(n, ty::<W>())
    }

    fn eq<W: Width>(&mut self, a: Value, b: Value) -> Value {
        self.b.ins().icmp(IntCC::Equal, a, b)
    }
    fn ult<W: Width>(&mut self, a: Value, b: Value) -> Value {
        self.b.ins().icmp(IntCC::UnsignedLessThan, a, b)
    }
    fn bit<W: Width>(&mut self, a: Value, n: u32) -> Value {
        let v = if n == 0 { a } else { self.b.ins().ushr_imm_u(a, i64::from(n)) };
        let v = self.fit(v, types::I8);
        self.b.ins().band_imm_u(v, 1)
    }
    fn both(&mut self, x: Value, y: Value) -> Value {
        self.b.ins().band(x, y)
    }
    fn differ(&mut self, x: Value, y: Value) -> Value {
        self.b.ins().bxor(x, y)
    }
    fn int_of<W: Width>(&mut self, x: Value) -> Value {
        self.fit(x, ty::<W>())
    }
    fn select<W: Width>(&mut self, x: Value, a: Value, b: Value) -> Value {
        self.b.ins().select(x, a, b)
    }

    fn flags_add<W: Width>(&mut self, a: Value, b: Value, r: Value) {
        let res = self.sign_fit(r, types::I64);
        let carries = self.add_carries(a, b, r);
        let aux = self.aux_of_carries(carries);
        self.set_flags(res, aux);
        // With a carry in, r < a does not tell the carry out.
        let plain = matches!(self.definition(r), Some(&InstructionData::Binary { opcode: Opcode::Iadd, args }) if args == [a, b]);
        self.recent = if plain { Recent::Add(a, r) } else { Recent::Result(r) };
    }
    fn flags_sub<W: Width>(&mut self, a: Value, b: Value, r: Value) {
        let res = self.sign_fit(r, types::I64);
        let borrows = self.sub_borrows(a, b, r);
        let aux = self.aux_of_carries(borrows);
        self.set_flags(res, aux);
        let plain = matches!(self.definition(r), Some(&InstructionData::Binary { opcode: Opcode::Isub, args }) if args == [a, b]);
        self.recent = if plain { Recent::Sub(a, b, r) } else { Recent::Result(r) };
    }
    fn flags_logic<W: Width>(&mut self, r: Value) {
        let res = self.sign_fit(r, types::I64);
        let aux = self.constant_of(types::I64, 0);
        self.set_flags(res, aux);
        self.recent = Recent::Logic(r);
    }
    fn flags_inc<W: Width>(&mut self, r: Value) {
        let old = self.var(AUX);
        let one = self.constant_of(ty::<W>(), 1);
        let a = self.b.ins().isub(r, one);
        let carries = self.add_carries(a, one, r);
        let aux = self.aux_of_carries(carries);
        let aux = self.keep_cf(aux, old);
        let res = self.sign_fit(r, types::I64);
        self.set_flags(res, aux);
        self.recent = Recent::Result(r);
    }
    fn flags_dec<W: Width>(&mut self, r: Value) {
        let old = self.var(AUX);
        let one = self.constant_of(ty::<W>(), 1);
        let a = self.b.ins().iadd(r, one);
        let borrows = self.sub_borrows(a, one, r);
        let aux = self.aux_of_carries(borrows);
        let aux = self.keep_cf(aux, old);
        let res = self.sign_fit(r, types::I64);
        self.set_flags(res, aux);
        self.recent = Recent::Result(r);
    }
    fn flags_result<W: Width>(&mut self, r: Value, cf: Value, of: Value) {
        let res = self.sign_fit(r, types::I64);
        let aux = self.aux_of_bools(cf, of);
        self.set_flags(res, aux);
        self.recent = Recent::Result(r);
    }
    fn flags_shift<W: Width>(&mut self, n: Value, r: Value, cf: Value, of: Value) {
        match self.constant(n) {
            Some(0) => {}
            Some(_) => self.flags_result::<W>(r, cf, of),
            None => {
                let (old_res, old_aux) = (self.var(RES), self.var(AUX));
                let res = self.sign_fit(r, types::I64);
                let aux = self.aux_of_bools(cf, of);
                let res = self.b.ins().select(n, res, old_res);
                let aux = self.b.ins().select(n, aux, old_aux);
                self.set_flags(res, aux);
                self.recent = Recent::Nothing;
            }
        }
    }
    fn flags_rotate<W: Width>(&mut self, n: Value, cf: Value, of: Value) {
        let known = self.constant(n);
        if known == Some(0) {
            return;
        }
        let old = self.var(AUX);
        let top = self.aux_of_bools(cf, of);
        let rest = self.b.ins().band_imm_s(old, !(AUX_CF | AUX_PO) as i64);
        let aux = self.b.ins().bor(rest, top);
        let aux = if known.is_some() { aux } else { self.b.ins().select(n, aux, old) };
        self.set_var(AUX, aux);
        self.carry_changed();
    }
    fn flags_zero_only<W: Width>(&mut self, v: Value) {
        let nonzero = self.zero_compare(IntCC::NotEqual, v);
        let nonzero = self.fit(nonzero, types::I64);
        let res = self.b.ins().ishl_imm_u(nonzero, 8);
        let aux = self.constant_of(types::I64, 0x100);
        self.set_flags(res, aux);
        self.recent = Recent::Nothing;
    }
    fn set_cf(&mut self, cf: Value) {
        let old = self.var(AUX);
        let cf = self.fit(cf, types::I64);
        let cf = self.b.ins().ishl_imm_u(cf, 63);
        let aux = self.keep_cf(old, cf);
        self.set_var(AUX, aux);
        self.carry_changed();
    }
    fn set_of(&mut self, of: Value) {
        let old = self.var(AUX);
        let up = self.b.ins().ishl_imm_u(old, 1);
        let now = self.b.ins().bxor(old, up);
        let now = self.top_bit(now);
        let wrong = self.b.ins().bxor(now, of);
        let wrong = self.fit(wrong, types::I64);
        let wrong = self.b.ins().ishl_imm_u(wrong, 62);
        let aux = self.b.ins().bxor(old, wrong);
        self.set_var(AUX, aux);
        self.carry_changed();
    }
    fn cf(&mut self) -> Value {
        self.cond(cc::B)
    }
    fn cond(&mut self, code: u8) -> Value {
        let x = match self.recent_condition(code & !1) {
            Some(x) => x,
            None => self.lazy_condition(code & !1),
        };
        if code & 1 == 0 {
            return x;
        }
        if let Some(&InstructionData::IntCompare { cond, args, .. }) = self.definition(x) {
            return self.b.ins().icmp(cond.complement(), args[0], args[1]);
        }
        self.invert(x)
    }

    fn next(&mut self, _: &Op) -> Step {
        Step::Next
    }
    fn fall(&mut self, op: &Op) -> Step {
        let to = self.following(op);
        self.go_to(to, 1);
        Step::Ended
    }
    fn jump(&mut self, op: &Op) -> Step {
        match self.relative(op, op.imm) {
            Some(to) => self.go_to(to, 1),
            None => {
                let to = self.base().wrapping_add(op.imm as i64);
                let rip = self.rip_at(to);
                let rip = self.b.ins().band_imm_u(rip, 0xffff);
                self.leave_to(rip, &[]);
            }
        }
        Step::Ended
    }
    fn branch(&mut self, op: &Op, x: Value) -> Step {
        match self.relative(op, op.imm) {
            Some(to) => {
                let other = self.following(op);
                self.branch_to(x, to, other);
            }
            None => self.failed = true,
        }
        Step::Ended
    }
    fn jump_to(&mut self, op: &Op, target: Value) -> Result<Step, Stop> {
        let target = self.fit(target, types::I64);
        Exec::check_target(self, target)?;
        let sites = if op.is_return() { self.return_sites() } else { Vec::new() };
        self.leave_to(target, &sites);
        Ok(Step::Ended)
    }
    fn check_target(&mut self, target: Value) -> Result<(), Stop> {
        let target = self.fit(target, types::I64);
        // In flat 32-bit code every target is within the limit. An op jumps to one target only, so it is checked once.
        if self.checked.is_none() && self.is_long() {
            let up = self.b.ins().ishl_imm_u(target, 16);
            let back = self.b.ins().sshr_imm_u(up, 16);
            let bad = self.b.ins().icmp(IntCC::NotEqual, back, target);
            self.bail_if(bad);
        }
        self.checked = Some(target);
        Ok(())
    }
    fn check_relative(&mut self, op: &Op) -> Result<(), Stop> {
        self.failed |= op.flags & CHECKED != 0;
        Ok(())
    }
    fn return_address(&mut self, op: &Op) -> Value {
        let to = self.following(op);
        self.rip_at(to)
    }
}

impl Translator<'_> {
    /// Quotient and remainder, on hosts that divide no two words by one: where the upper one has more than the lower
    /// one's sign the interpreter does. Neither overflows.
    fn divide_alone(
        &mut self,
        wide: Type,
        signed: bool,
        (hi, lo): (Value, Value),
        divisor: Value,
    ) -> (Value, Value) {
        if signed {
            return (self.b.ins().sdiv(lo, divisor), self.b.ins().srem(lo, divisor));
        }
        if wide == types::I64 {
            self.bail_if(hi);
            return (self.b.ins().udiv(lo, divisor), self.b.ins().urem(lo, divisor));
        }
        // 64 bits by 32; the quotient has 32, as the upper word is less than the divisor.
        let high = self.fit(hi, types::I64);
        let high = self.b.ins().ishl_imm_u(high, 32);
        let low = self.fit(lo, types::I64);
        let n = self.b.ins().bor(high, low);
        let d = self.fit(divisor, types::I64);
        (self.b.ins().udiv(n, d), self.b.ins().urem(n, d))
    }

    /// PDEP and PEXT, where the host has them.
    fn bits_by_mask<W: Width>(&mut self, id: Mnemonic, a: Value, mask: Value) -> Value {
        let Some(bytes) = primitives::bits_by_mask(id) else {
            self.unable = true;
            return a;
        };
        let r = self.primitive(&bytes, &[a, mask], &[], 1, 0)[0];
        self.fit(r, ty::<W>())
    }

    /// CF or OF were replaced; the rest of the flags is as it was.
    fn carry_changed(&mut self) {
        self.recent = match self.recent {
            Recent::Sub(_, _, r) | Recent::Add(_, r) | Recent::Logic(r) | Recent::Result(r) => {
                Recent::Result(r)
            }
            Recent::Nothing | Recent::Compared(_) => Recent::Nothing,
        };
    }
}

/// What an op is, as far as jumps ask.
trait Kind {
    fn is_return(&self) -> bool;
}
impl Kind for Op {
    fn is_return(&self) -> bool {
        self.code().mnemonic() == iced_x86::Mnemonic::Ret
    }
}
