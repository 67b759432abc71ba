//! The interpreter: [`Exec`] for [`Cpu`] with plain integers, and the run loop.
//!
//! A handler executes one op and returns the next: the following one, the first of a linked block, or null to come back to the dispatcher. The
//! dispatcher looks at events, delivers faults and interrupts, and finds or decodes blocks.
use crate::block::{Block, ModeKey};
use crate::board::{EV_INIT, EV_INTR, EV_KICK, EV_MEMORY, EV_NMI, EV_SIPI, EV_SIPI_VECTOR, EV_SYNC, EV_TIER};
use crate::cpu::{Cpu, Exit, Stop, vector};
use crate::exec::{Exec, Sem, cc};
use crate::flags::{AUX_CF, AUX_PO, add_carries, aux_of_carries, sub_borrows};
use crate::op::{Flow, Handler, Helper, LOCK, Op};
use crate::state::{Activity, Shadow, fl, gpr, seg};
use crate::sys::{Event, EventKind};
use crate::width::{W64, Width};
pub use crate::world::MemoryChanges;

// ---- handlers -----------------------------------------------------------------------------------------------------------

fn run_sem<S: Sem<Cpu>>(cpu: &mut Cpu, op: &Op) -> *const Op {
    match S::exec(cpu, op) {
        Ok(next) => next,
        Err(stop) => cpu.stopped(op, stop),
    }
}

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

/// Raises #UD.
pub fn undefined(cpu: &mut Cpu, _: &Op) -> Result<(), Stop> {
    Err(cpu.ud())
}

/// Raises #GP(0) for an instruction of more than 15 bytes.
pub fn too_long(cpu: &mut Cpu, _: &Op) -> Result<(), Stop> {
    Err(cpu.gp(0))
}

/// An op that ends a block of `len` bytes before the next instruction.
pub(crate) fn leave_op(len: usize) -> Op {
    Op { off: len as u16, ..gate(leave_before) }
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
        std::ptr::null()
    }

    /// Goes to the block at the current RIP, through link `slot` of the current one if it is known.
    #[inline(always)]
    fn chain(&mut self, slot: usize, relative: u64) -> *const Op {
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
    fn go(&mut self) -> *const Op {
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
    fn jump_relative(&mut self, op: &Op, slot: usize, imm: u64) -> *const Op {
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

// ---- the run loop -------------------------------------------------------------------------------------------------------

impl Cpu {
    /// Runs until something has to be done outside. The other vCPUs may count on this one to come to instruction boundaries until then.
    pub fn run(&mut self) -> Exit {
        self.world.enter(self.seat);
        let exit = self.run_inside();
        self.world.leave(self.seat);
        exit
    }

    fn run_inside(&mut self) -> Exit {
        loop {
            self.tidy_blocks();
            if self.events.pending() & self.event_mask != 0
                && let Some(exit) = self.handle_events()
            {
                return exit;
            }
            match self.state.activity {
                Activity::Running => {}
                Activity::Halted | Activity::WaitSipi => return Exit::Halt,
                Activity::Shutdown => return Exit::Shutdown,
            }
            if self.single_wanted() {
                self.step_once();
                continue;
            }
            let block = match self.find_block(self.mode_key) {
                Ok(b) => b,
                Err(_) => {
                    self.deliver_fault();
                    continue;
                }
            };
            self.link(block);
            self.execute(block);
            if self.faulted {
                self.deliver_fault();
            } else if std::mem::take(&mut self.interpret_next) {
                self.interpret_one();
            }
        }
    }

    /// Interprets the instruction at RIP: what compiled code would not do itself.
    pub(crate) fn interpret_one(&mut self) {
        self.from = (std::ptr::null(), 0);
        match self.find_block(self.mode_key | ModeKey::SINGLE) {
            Ok(block) => {
                self.single = true;
                self.execute(block);
                self.single = false;
                self.from = (std::ptr::null(), 0);
                if self.faulted {
                    self.deliver_fault();
                }
            }
            Err(_) => self.deliver_fault(),
        }
    }

    /// Executes one instruction (or one iteration of a repeated one), with the interrupt, trap or fault that follows from it. Events are looked at
    /// first, as `run` does.
    pub fn step(&mut self) -> Option<Exit> {
        self.tidy_blocks();
        if self.events.pending() & self.event_mask != 0
            && let Some(exit) = self.handle_events()
        {
            return Some(exit);
        }
        match self.state.activity {
            Activity::Running => {}
            Activity::Halted | Activity::WaitSipi => return Some(Exit::Halt),
            Activity::Shutdown => return Some(Exit::Shutdown),
        }
        self.step_once();
        None
    }

    pub(crate) fn single_wanted(&self) -> bool {
        self.state.rflags & (fl::TF | fl::RF) != 0 || self.state.shadow != Shadow::None || self.debug_armed()
    }

    pub(crate) fn execute(&mut self, block: *const Block) {
        if self.trace.is_some() {
            // SAFETY: callers pass a live block.
            self.trace_block(unsafe { &*block });
        }
        self.enter(block);
        self.faulted = false;
        // SAFETY: `find_block` gives a live block, and blocks stay allocated until `free_dead`. A handler returns null, the op after `op` in its block
        // (there is one: the last op of a block never falls through), or the first op of a live block.
        let mut op = unsafe { (*block).first() };
        while !op.is_null() {
            // SAFETY: as above.
            let o = unsafe { &*op };
            op = (o.run)(self, o);
        }
    }

    fn link(&mut self, to: *const Block) {
        let (from, slot) = std::mem::replace(&mut self.from, (std::ptr::null(), 0));
        if from.is_null() || self.unchained {
            return;
        }
        // SAFETY: `from` was the current block when the dispatcher was entered; if it died since, it is marked so, and it is freed only by
        // `free_dead` at the head of the loop, which clears `from`.
        let (f, t) = unsafe { (&*from, &*to) };
        // A link must hold wherever the page is mapped: both blocks on one page, at the distance that the branch has.
        let same_page = f.phys >> 12 == t.phys >> 12 && f.phys.wrapping_add(self.from_relative) == t.phys;
        let whole = f.second_page().is_none() && t.second_page().is_none();
        if same_page && whole && f.key == t.key && !f.is_dead() {
            f.link[slot].set(to);
        }
    }

    pub(crate) fn step_once(&mut self) {
        self.from = (std::ptr::null(), 0);
        let trap = self.state.rflags & fl::TF != 0;
        let resumed = self.state.rflags & fl::RF != 0;
        let shadow = std::mem::replace(&mut self.state.shadow, Shadow::None);
        if let Some(ev) = self.state.pending.take() {
            self.deliver(ev);
            return;
        }
        let armed = self.debug_armed();
        // Data breakpoints that MOV SS met are reported behind the instruction that follows it.
        self.debug_hits = if shadow == Shadow::MovSs { self.debug_hits } else { 0 };
        if armed && self.state.rflags & fl::RF == 0 && shadow != Shadow::MovSs {
            let lin = self.state.gpr[gpr::RIP].wrapping_add(if self.state.is_long64() {
                0
            } else {
                self.state.seg[seg::CS].base
            });
            let hit = self.instruction_breakpoint(lin);
            if hit != 0 {
                self.debug_exception(hit);
                return;
            }
        }
        let block = match self.find_block(self.mode_key | ModeKey::SINGLE) {
            Ok(b) => b,
            Err(_) => {
                self.deliver_fault();
                return;
            }
        };
        let from = self.state.gpr[gpr::RIP];
        self.single = true;
        self.watch = armed;
        self.untraced = false;
        self.execute(block);
        self.watch = false;
        self.single = false;
        self.from = (std::ptr::null(), 0);
        if self.faulted {
            self.deliver_fault();
            return;
        }
        if resumed {
            self.state.rflags &= !fl::RF;
        }
        let mut hits = self.debug_hits;
        // SAFETY: blocks stay allocated until `free_dead`, dead or not, and a block has an op.
        if trap && !self.untraced && self.step_traps(unsafe { &*(*block).first() }, from) {
            hits |= 1 << 14;
        }
        if hits != 0 && self.state.shadow != Shadow::MovSs {
            if self.state.pending.is_some() {
                // The trap of a task switch, which reports the instruction's as well.
                self.note_debug_hits(hits);
            } else {
                self.debug_exception(hits);
            }
        }
        self.sync_events();
    }

    /// Delivers #DB at RIP, with `hits` added to DR6.
    fn debug_exception(&mut self, hits: u64) {
        self.note_debug_hits(hits);
        self.deliver(Event { vector: vector::DB, kind: EventKind::Exception, error: None });
    }

    pub(crate) fn deliver_fault(&mut self) {
        self.faulted = false;
        let e = self.fault;
        self.deliver(Event { vector: e.vector, kind: EventKind::Exception, error: e.error });
    }

    #[inline(never)]
    pub(crate) fn handle_events(&mut self) -> Option<Exit> {
        self.from = (std::ptr::null(), 0);
        let mut pending = self.events.pending() & self.event_mask;
        if pending & EV_KICK != 0 {
            self.events.take(EV_KICK);
            return Some(Exit::Kick);
        }
        if pending & EV_SYNC != 0 {
            self.events.take(EV_SYNC);
            self.world.leave(self.seat);
            self.world.enter(self.seat);
            pending = self.events.pending() & self.event_mask;
        }
        if pending & EV_MEMORY != 0 {
            self.events.take(EV_MEMORY);
            self.memory_changed();
        }
        if pending & EV_TIER != 0 {
            self.events.take(EV_TIER);
            if let Some(mut t) = self.tier.take() {
                t.ready(self);
                self.tier = Some(t);
            }
        }
        if pending & EV_INIT != 0 {
            self.events.take(EV_INIT);
            self.init();
            return None;
        }
        if pending & EV_SIPI != 0 {
            let bits = self.events.take(EV_SIPI | EV_SIPI_VECTOR);
            if self.state.activity == Activity::WaitSipi {
                self.sipi((bits >> 24) as u8);
            }
            return None;
        }
        if matches!(self.state.activity, Activity::WaitSipi | Activity::Shutdown) {
            return None;
        }
        if pending & EV_NMI != 0 {
            self.events.take_nmi();
            self.state.activity = Activity::Running;
            self.deliver(Event { vector: vector::NMI, kind: EventKind::Nmi, error: None });
            return None;
        }
        if pending & EV_INTR != 0
            && let Some(v) = self.board.acknowledge()
        {
            self.state.activity = Activity::Running;
            self.deliver(Event { vector: v, kind: EventKind::External, error: None });
        }
        None
    }

    /// The physical map, A20 or bytes of code changed.
    fn memory_changed(&mut self) {
        self.serve_protect();
        let changes = self.inbox.lock().take();
        if let Some(open) = changes.a20 {
            self.a20_mask = if open { !0 } else { !(1 << 20) };
            self.sync_paging();
        }
        if changes.flush {
            self.tlb.flush_all();
            self.sync_mode();
        }
        for (first, last) in changes.map {
            self.invalidate_range(first, last);
        }
        if changes.all_code {
            self.flush_blocks();
        }
        for (gpa, len) in changes.code {
            self.invalidate_code(gpa, len);
        }
    }

    /// Gives up fast writes to the pages that other vCPUs are about to decode. To be done whenever the vCPU has waited for others, before it
    /// uses its TLB again.
    pub(crate) fn serve_protect(&mut self) {
        let (pages, all, asked) = {
            let mut inbox = self.inbox.lock();
            let all = std::mem::take(&mut inbox.protect_all);
            (std::mem::take(&mut inbox.protect), all, inbox.asked)
        };
        if all {
            self.tlb.flush_all();
        } else if pages.is_empty() {
            return;
        }
        for gpa in pages {
            self.protect_own(gpa);
        }
        self.world.protected(self.seat, asked);
    }

    /// Gives up this vCPU's fast writes to a page.
    pub(crate) fn protect_own(&mut self, gpa: u64) {
        if let Some(host) = self.mem.ram_page(gpa) {
            self.tlb.protect_host_page(host);
        }
        // With more vCPUs than bits the bit may be another's, too.
        if self.world.len() <= 64 {
            self.mem.forget_writer(gpa, self.writer_bit);
        }
    }

    /// INIT: as RESET, but the FPU, MSRs, caches and CR0's cache bits stay (SDM volume 3A, table 10-1); then waits for a start-up IPI unless this is the
    /// bootstrap processor.
    fn init(&mut self) {
        let old = self.state.clone();
        // FERR# stands with the exception behind it.
        let ferr = std::mem::take(&mut self.ferr);
        self.reset();
        self.ferr = ferr;
        let s = &mut self.state;
        s.msr = old.msr;
        s.msr.efer = 0;
        s.fpu = old.fpu;
        s.xmm = old.xmm;
        s.mxcsr = old.mxcsr;
        s.xcr0 = old.xcr0;
        s.cr0 |= old.cr0 & (crate::state::cr0::CD | crate::state::cr0::NW);
        s.activity = if self.index == 0 { Activity::Running } else { Activity::WaitSipi };
        self.sync_all();
    }

    fn sipi(&mut self, page: u8) {
        self.state.activity = Activity::Running;
        let cs = &mut self.state.seg[seg::CS];
        cs.sel = u16::from(page) << 8;
        cs.base = u64::from(page) << 12;
        self.state.gpr[gpr::RIP] = 0;
        self.sync_all();
    }
}

const _: () = assert!(W64::BITS == 64);
