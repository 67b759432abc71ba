//! The interpreter: [`Exec`] for [`Cpu`], with plain integers.
use crate::cpu::Cpu;
use crate::event::{Stop, vector};
use crate::exec::{Exec, Sem, cc};
use crate::flags::{AUX_CF, AUX_PO, add_carries, aux_of_carries, sub_borrows};
use crate::handler::{run_ender, run_straight};
use crate::op::{Flow, Handler, Helper, LOCK, Op};
use crate::state::{gpr, seg};
use crate::width::Width;

fn run_sem<S: Sem<Cpu>>(cpu: &mut Cpu, op: &Op) -> *const Op {
    match S::exec(cpu, op) {
        Ok(next) => next,
        Err(stop) => cpu.stopped(op, stop),
    }
}

impl Cpu {
    /// The mask of the stack pointer for `op`.
    #[inline(always)]
    pub(crate) fn stack_mask(op: &Op) -> u64 {
        match op.stack {
            8 => u64::MAX,
            4 => 0xffff_ffff,
            _ => 0xffff,
        }
    }

    /// Writes the stack pointer in its width.
    #[inline(always)]
    pub(crate) fn set_sp(&mut self, op: &Op, v: u64) {
        let sp = &mut self.state.gpr[gpr::RSP];
        *sp = match op.stack {
            8 => v,
            4 => v & 0xffff_ffff,
            _ => *sp & !0xffff | v & 0xffff,
        };
    }

    /// The linear address of `len` bytes at offset `sp` in SS.
    #[inline(always)]
    pub(crate) fn stack_linear(&mut self, op: &Op, sp: u64, len: u64, write: bool) -> Result<u64, Stop> {
        let sp = sp & Self::stack_mask(op);
        if op.flags & crate::op::LONG != 0 {
            return Ok(sp);
        }
        self.linear(seg::SS, sp, len, write)
    }
}

/// Quotient and remainder of unsigned `hi:lo` by `d`.
#[inline(always)]
fn div<W: Width>(hi: u64, lo: u64, d: u64) -> Option<(u64, u64)> {
    // hi >= d: the quotient does not fit (and d = 0 is among them).
    if hi >= d {
        return None;
    }
    Some(if W::BITS < 64 {
        let n = hi << W::BITS | lo;
        (n / d, n % d)
    } else if hi == 0 {
        (lo / d, lo % d)
    } else {
        let n = u128::from(hi) << 64 | u128::from(lo);
        ((n / u128::from(d)) as u64, (n % u128::from(d)) as u64)
    })
}

/// Quotient and remainder of signed `hi:lo` by `d`.
#[inline(always)]
fn idiv<W: Width>(hi: u64, lo: u64, d: u64) -> Option<(u64, u64)> {
    let d = W::sext(d) as i64;
    let n = i128::from(W::sext(hi) as i64) << W::BITS | i128::from(lo);
    if d == 0 {
        return None;
    }
    let (q, r) = match i64::try_from(n) {
        Ok(n) => (i128::from(n) / i128::from(d), i128::from(n.wrapping_rem(d))),
        Err(_) => (n.wrapping_div(i128::from(d)), n.wrapping_rem(i128::from(d))),
    };
    let half = 1i128 << (W::BITS - 1);
    (-half..half).contains(&q).then_some((q as u64 & W::MASK, r as u64 & W::MASK))
}

impl Exec for Cpu {
    type Int = u64;
    type Bool = bool;
    type Next = *const Op;
    type Handler = Handler;

    fn handler<S: Sem<Self>>() -> Handler {
        run_sem::<S>
    }
    fn helper(h: Helper) -> Handler {
        match h.flow {
            Flow::Straight => run_straight,
            Flow::Ends => run_ender,
        }
    }

    #[inline(always)]
    fn imm<W: Width>(&mut self, v: u64) -> u64 {
        v & W::MASK
    }
    #[inline(always)]
    fn reg<W: Width>(&mut self, r: u8) -> u64 {
        let v = self.state.gpr[usize::from(r & 31)];
        if W::BITS == 8 { (v >> ((r >> 5) * 8)) & 0xff } else { v & W::MASK }
    }
    #[inline(always)]
    fn set_reg<W: Width>(&mut self, r: u8, v: u64) {
        let p = &mut self.state.gpr[usize::from(r & 31)];
        *p = match W::BITS {
            64 | 32 => v,
            16 => *p & !0xffff | v,
            _ => {
                let shift = (r >> 5) * 8;
                *p & !(0xff << shift) | v << shift
            }
        };
    }
    #[inline(always)]
    fn ea(&mut self, op: &Op) -> u64 {
        Cpu::ea(self, op)
    }
    #[inline(always)]
    fn load<W: Width>(&mut self, op: &Op) -> Result<u64, Stop> {
        self.load_op::<W>(op)
    }
    #[inline(always)]
    fn store<W: Width>(&mut self, op: &Op, v: u64) -> Result<(), Stop> {
        self.store_op::<W>(op, v)
    }
    #[inline(always)]
    fn modify<W: Width>(
        &mut self,
        op: &Op,
        lock: bool,
        f: impl FnMut(&mut Self, u64) -> u64,
    ) -> Result<(u64, u64), Stop> {
        let lin = self.operand(op, W::BYTES, true)?;
        self.rmw::<W>(lin, op.seg, lock || op.flags & LOCK != 0, f)
    }
    #[inline(always)]
    fn load_at<W: Width>(&mut self, op: &Op, offset: u64) -> Result<u64, Stop> {
        let lin = self.operand_at(op, offset, W::BYTES, false)?;
        Cpu::load::<W>(self, lin, op.seg)
    }
    #[inline(always)]
    fn modify_at<W: Width>(
        &mut self,
        op: &Op,
        offset: u64,
        f: impl FnMut(&mut Self, u64) -> u64,
    ) -> Result<(u64, u64), Stop> {
        let lin = self.operand_at(op, offset, W::BYTES, true)?;
        self.rmw::<W>(lin, op.seg, op.flags & LOCK != 0, f)
    }
    #[inline(always)]
    fn push<W: Width>(&mut self, op: &Op, v: u64) -> Result<(), Stop> {
        let sp = self.state.gpr[gpr::RSP].wrapping_sub(W::BYTES);
        let lin = self.stack_linear(op, sp, W::BYTES, true)?;
        Cpu::store::<W>(self, lin, v, seg::SS as u8)?;
        self.set_sp(op, sp);
        Ok(())
    }
    #[inline(always)]
    fn peek<W: Width>(&mut self, op: &Op) -> Result<u64, Stop> {
        let sp = self.state.gpr[gpr::RSP];
        let lin = self.stack_linear(op, sp, W::BYTES, false)?;
        Cpu::load::<W>(self, lin, seg::SS as u8)
    }
    #[inline(always)]
    fn drop_stack(&mut self, op: &Op, bytes: u64) {
        let sp = self.state.gpr[gpr::RSP].wrapping_add(bytes);
        self.set_sp(op, sp);
    }

    #[inline(always)]
    fn step_index(&mut self, op: &Op, r: usize, bytes: u64) {
        crate::int::string::advance(self, op, r, bytes);
    }

    #[inline(always)]
    fn add<W: Width>(&mut self, a: u64, b: u64) -> u64 {
        a.wrapping_add(b) & W::MASK
    }
    #[inline(always)]
    fn sub<W: Width>(&mut self, a: u64, b: u64) -> u64 {
        a.wrapping_sub(b) & W::MASK
    }
    #[inline(always)]
    fn and<W: Width>(&mut self, a: u64, b: u64) -> u64 {
        a & b
    }
    #[inline(always)]
    fn or<W: Width>(&mut self, a: u64, b: u64) -> u64 {
        a | b
    }
    #[inline(always)]
    fn xor<W: Width>(&mut self, a: u64, b: u64) -> u64 {
        a ^ b
    }
    #[inline(always)]
    fn not<W: Width>(&mut self, a: u64) -> u64 {
        !a & W::MASK
    }
    #[inline(always)]
    fn shl<W: Width>(&mut self, a: u64, n: u64) -> u64 {
        if n >= 64 { 0 } else { (a << n) & W::MASK }
    }
    #[inline(always)]
    fn shr<W: Width>(&mut self, a: u64, n: u64) -> u64 {
        if n >= 64 { 0 } else { a >> n }
    }
    #[inline(always)]
    fn sar<W: Width>(&mut self, a: u64, n: u64) -> u64 {
        ((W::sext(a) as i64 >> n.min(63)) as u64) & W::MASK
    }
    #[inline(always)]
    fn rotl<W: Width>(&mut self, a: u64, n: u64) -> u64 {
        let n = (n as u32) & (W::BITS - 1);
        if n == 0 { a } else { ((a << n) | (a >> (W::BITS - n))) & W::MASK }
    }
    #[inline(always)]
    fn mul<W: Width>(&mut self, a: u64, b: u64) -> u64 {
        a.wrapping_mul(b) & W::MASK
    }
    #[inline(always)]
    fn umulh<W: Width>(&mut self, a: u64, b: u64) -> u64 {
        ((u128::from(a) * u128::from(b)) >> W::BITS) as u64
    }
    #[inline(always)]
    fn smulh<W: Width>(&mut self, a: u64, b: u64) -> u64 {
        let p = i128::from(W::sext(a) as i64) * i128::from(W::sext(b) as i64);
        (p >> W::BITS) as u64 & W::MASK
    }
    #[inline(always)]
    fn sext<F: Width, T: Width>(&mut self, a: u64) -> u64 {
        F::sext(a) & T::MASK
    }
    #[inline(always)]
    fn zext<F: Width, T: Width>(&mut self, a: u64) -> u64 {
        a
    }
    #[inline(always)]
    fn trunc<F: Width, T: Width>(&mut self, a: u64) -> u64 {
        a & T::MASK
    }
    #[inline(always)]
    fn bswap<W: Width>(&mut self, a: u64) -> u64 {
        a.swap_bytes() >> (64 - W::BITS)
    }
    #[inline(always)]
    fn divide<W: Width>(&mut self, hi: u64, lo: u64, d: u64, signed: bool) -> Result<(u64, u64), Stop> {
        let r = if signed { idiv::<W>(hi, lo, d) } else { div::<W>(hi, lo, d) };
        r.ok_or_else(|| self.raise(vector::DE))
    }
    #[inline(always)]
    fn deposit<W: Width>(&mut self, mut a: u64, mut mask: u64) -> u64 {
        let mut r = 0;
        while mask != 0 {
            let low = mask & mask.wrapping_neg();
            if a & 1 != 0 {
                r |= low;
            }
            a >>= 1;
            mask ^= low;
        }
        r
    }
    #[inline(always)]
    fn gather<W: Width>(&mut self, a: u64, mut mask: u64) -> u64 {
        let (mut r, mut at) = (0, 0);
        while mask != 0 {
            let low = mask & mask.wrapping_neg();
            r |= u64::from(a & low != 0) << at;
            at += 1;
            mask ^= low;
        }
        r
    }
    #[inline(always)]
    fn popcnt<W: Width>(&mut self, a: u64) -> u64 {
        u64::from(a.count_ones())
    }
    #[inline(always)]
    fn clz<W: Width>(&mut self, a: u64) -> u64 {
        u64::from(a.leading_zeros() - (64 - W::BITS))
    }
    #[inline(always)]
    fn ctz<W: Width>(&mut self, a: u64) -> u64 {
        u64::from(a.trailing_zeros().min(W::BITS))
    }

    #[inline(always)]
    fn eq<W: Width>(&mut self, a: u64, b: u64) -> bool {
        a == b
    }
    #[inline(always)]
    fn ult<W: Width>(&mut self, a: u64, b: u64) -> bool {
        a < b
    }
    #[inline(always)]
    fn bit<W: Width>(&mut self, a: u64, n: u32) -> bool {
        a >> n & 1 != 0
    }
    #[inline(always)]
    fn both(&mut self, x: bool, y: bool) -> bool {
        x & y
    }
    #[inline(always)]
    fn differ(&mut self, x: bool, y: bool) -> bool {
        x ^ y
    }
    #[inline(always)]
    fn int_of<W: Width>(&mut self, x: bool) -> u64 {
        u64::from(x)
    }
    #[inline(always)]
    fn select<W: Width>(&mut self, x: bool, a: u64, b: u64) -> u64 {
        if x { a } else { b }
    }

    #[inline(always)]
    fn flags_add<W: Width>(&mut self, a: u64, b: u64, r: u64) {
        self.state.res = W::sext(r);
        self.state.aux = aux_of_carries(add_carries(a, b, r), W::BITS);
    }
    #[inline(always)]
    fn flags_sub<W: Width>(&mut self, a: u64, b: u64, r: u64) {
        self.state.res = W::sext(r);
        self.state.aux = aux_of_carries(sub_borrows(a, b, r), W::BITS);
    }
    #[inline(always)]
    fn flags_logic<W: Width>(&mut self, r: u64) {
        self.state.res = W::sext(r);
        self.state.aux = 0;
    }
    #[inline(always)]
    fn flags_inc<W: Width>(&mut self, r: u64) {
        let cf = self.state.aux & AUX_CF;
        let aux = aux_of_carries(add_carries(r.wrapping_sub(1) & W::MASK, 1, r), W::BITS);
        self.state.res = W::sext(r);
        self.state.aux = keep_cf(aux, cf);
    }
    #[inline(always)]
    fn flags_dec<W: Width>(&mut self, r: u64) {
        let cf = self.state.aux & AUX_CF;
        let aux = aux_of_carries(sub_borrows(r.wrapping_add(1) & W::MASK, 1, r), W::BITS);
        self.state.res = W::sext(r);
        self.state.aux = keep_cf(aux, cf);
    }
    #[inline(always)]
    fn flags_result<W: Width>(&mut self, r: u64, cf: bool, of: bool) {
        self.state.res = W::sext(r);
        self.state.aux = u64::from(cf) << 63 | u64::from(cf ^ of) << 62;
    }
    #[inline(always)]
    fn flags_shift<W: Width>(&mut self, n: u64, r: u64, cf: bool, of: bool) {
        if n != 0 {
            self.flags_result::<W>(r, cf, of);
        }
    }
    #[inline(always)]
    fn flags_rotate<W: Width>(&mut self, n: u64, cf: bool, of: bool) {
        if n != 0 {
            let top = u64::from(cf) << 63 | u64::from(cf ^ of) << 62;
            self.state.aux = self.state.aux & !(AUX_CF | AUX_PO) | top;
        }
    }
    #[inline(always)]
    fn flags_zero_only<W: Width>(&mut self, v: u64) {
        // Any nonzero result will do for ZF = 0; 1 << 8 has an even low byte, corrected to PF = 0.
        self.state.res = u64::from(v != 0) << 8;
        self.state.aux = 0x100;
    }
    #[inline(always)]
    fn set_cf(&mut self, cf: bool) {
        self.state.aux = keep_cf(self.state.aux, u64::from(cf) << 63);
    }
    #[inline(always)]
    fn set_of(&mut self, of: bool) {
        // Bit 62 is CF xor OF.
        let wrong = self.state.of() != of;
        self.state.aux ^= u64::from(wrong) << 62;
    }
    #[inline(always)]
    fn cf(&mut self) -> bool {
        self.state.cf()
    }
    #[inline(always)]
    fn cond(&mut self, code: u8) -> bool {
        let s = &self.state;
        let x = match code & !1 {
            cc::O => s.of(),
            cc::B => s.cf(),
            cc::E => s.zf(),
            cc::BE => s.cf() | s.zf(),
            cc::S => s.sf(),
            cc::P => s.pf(),
            cc::L => s.sf() ^ s.of(),
            _ => s.zf() | (s.sf() ^ s.of()),
        };
        x ^ (code & 1 != 0)
    }

    #[inline(always)]
    fn next(&mut self, op: &Op) -> *const Op {
        op.next()
    }
    #[inline(always)]
    fn fall(&mut self, op: &Op) -> *const Op {
        self.jump_relative(op, 1, u64::from(op.off) + u64::from(op.len))
    }
    #[inline(always)]
    fn jump(&mut self, op: &Op) -> *const Op {
        self.jump_relative(op, 0, op.imm)
    }
    #[inline(always)]
    fn branch(&mut self, op: &Op, x: bool) -> *const Op {
        if x {
            self.jump_relative(op, 0, op.imm)
        } else {
            // The following instruction, in the width of the mode: its limit is checked when it is fetched.
            self.state.gpr[gpr::RIP] = self.ip_after(op);
            self.chain(1, u64::from(op.off) + u64::from(op.len))
        }
    }
    #[inline(always)]
    fn jump_to(&mut self, op: &Op, target: u64) -> Result<*const Op, Stop> {
        let _ = op;
        Exec::check_target(self, target)?;
        self.state.gpr[gpr::RIP] = target;
        Ok(self.go())
    }
    #[inline(always)]
    fn check_target(&mut self, target: u64) -> Result<(), Stop> {
        let ok = if self.state.is_long64() {
            self.is_canonical(target)
        } else {
            target <= u64::from(self.state.seg[seg::CS].limit)
        };
        if ok { Ok(()) } else { Err(self.gp(0)) }
    }
    #[inline(always)]
    fn check_relative(&mut self, op: &Op) -> Result<(), Stop> {
        if op.flags & crate::op::CHECKED == 0 {
            return Ok(());
        }
        let sum = self.state.gpr[gpr::RIP].wrapping_add(op.imm);
        Exec::check_target(self, sum & if op.width == 2 { 0xffff } else { 0xffff_ffff })
    }
    #[inline(always)]
    fn return_address(&mut self, op: &Op) -> u64 {
        self.ip_after(op)
    }
}

/// `aux` with another CF, and CF xor OF such that OF stays.
#[inline(always)]
fn keep_cf(aux: u64, cf: u64) -> u64 {
    let change = (aux ^ cf) & AUX_CF;
    aux ^ change ^ (change >> 1)
}
