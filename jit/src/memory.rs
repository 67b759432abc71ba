//! Accesses of guest memory: the inlined TLB look-up, and the stub behind it.
//!
//! A look-up that misses calls the stub, which keeps all registers, fills the TLB and leaves the host address; if there is none, the interpreter
//! executes the instruction. The look-up is four loads and a compare: table, mask, tag, addend.
use crate::runtime::{Context, WRITE};
use crate::translate::Translator;
use cranelift_codegen::ir::{InstBuilder, MemFlagsData, Type, Value, condcodes::IntCC, types};
use mynah_cpu::op::{CHECKED, Op};
use mynah_cpu::{Cpu, cpu::SegView, state::gpr, state::seg};
use mynah_mmu::{PAGE_MASK, Tlb, TlbEntry, TlbView};
use std::mem::{offset_of, size_of};

const VIEW: usize = offset_of!(Cpu, tlb) + offset_of!(Tlb, view);
const ENTRY_SHIFT: u32 = size_of::<TlbEntry>().trailing_zeros();
const _: () = assert!(size_of::<TlbEntry>().is_power_of_two());

impl Translator<'_> {
    /// The effective address of the memory operand, `extra` bytes further if given.
    pub(crate) fn address(&mut self, op: &Op, extra: Option<Value>) -> Value {
        let zero = gpr::ZERO as u8;
        let mut sum = match usize::from(op.base) {
            gpr::ZERO => None,
            gpr::RIP => {
                let base = self.base();
                Some(self.rip_at(base))
            }
            n => Some(self.var(n & 15)),
        };
        let add = |t: &mut Self, sum: Option<Value>, v: Value| match sum {
            Some(s) => t.b.ins().iadd(s, v),
            None => v,
        };
        if op.index != zero {
            let i = self.var(usize::from(op.index) & 15);
            let i = if op.scale & 3 != 0 { self.b.ins().ishl_imm_u(i, i64::from(op.scale & 3)) } else { i };
            sum = Some(add(self, sum, i));
        }
        let sum = match sum {
            Some(s) => self.add_const(s, op.disp as i64),
            None => self.b.ins().iconst(types::I64, op.disp as i64),
        };
        let sum = self.wrap_offset(op, sum);
        match extra {
            Some(x) => {
                let sum = self.b.ins().iadd(sum, x);
                self.wrap_offset(op, sum)
            }
            None => sum,
        }
    }

    fn wrap_offset(&mut self, op: &Op, v: Value) -> Value {
        match op.ashift & 63 {
            0 => v,
            n => self.b.ins().band_imm_u(v, (u64::MAX >> n) as i64),
        }
    }

    /// The linear address of `len` bytes at an offset in the operand's segment.
    pub(crate) fn linear(&mut self, op: &Op, offset: Value, len: u64, write: bool) -> Value {
        let s = usize::from(op.seg & 7);
        if op.flags & CHECKED == 0 {
            if s < seg::FS {
                return offset; // 64-bit, or flat: the base is 0
            }
            let base = self.segment(s, offset_of!(SegView, base));
            return self.b.ins().iadd(base, offset);
        }
        let (lo, hi) = if write {
            (offset_of!(SegView, write_lo), offset_of!(SegView, write_hi))
        } else {
            (offset_of!(SegView, read_lo), offset_of!(SegView, read_hi))
        };
        let lo = self.segment(s, lo);
        let hi = self.segment(s, hi);
        let below = self.b.ins().icmp(IntCC::UnsignedLessThan, offset, lo);
        let last = self.add_const(offset, len as i64 - 1);
        let beyond = self.b.ins().icmp(IntCC::UnsignedGreaterThan, last, hi);
        let bad = self.b.ins().bor(below, beyond);
        self.bail_if(bad);
        let base = self.segment(s, offset_of!(SegView, base));
        let lin = self.b.ins().iadd(base, offset);
        self.b.ins().band_imm_u(lin, 0xffff_ffff)
    }

    /// The linear address of `len` bytes at an offset in the stack segment, which is flat or 64-bit; the offset is within the stack's width.
    pub(crate) fn stack_linear(&mut self, offset: Value, len: u64) -> Value {
        if !self.is_long() {
            // An access that wraps is beyond the limit.
            let bad =
                self.b.ins().icmp_imm_u(IntCC::UnsignedGreaterThan, offset, (0xffff_ffff - (len - 1)) as i64);
            self.bail_if(bad);
        }
        offset
    }

    fn segment(&mut self, s: usize, field: usize) -> Value {
        let at = (offset_of!(Cpu, view) + s * size_of::<SegView>() + field) as i32;
        self.b.ins().load(types::I64, self.access.state, self.cpu, at)
    }

    /// The host address of `len` bytes at a linear address, translated; leaves the region if the access is not a plain one.
    pub(crate) fn host(&mut self, lin: Value, len: u64, write: bool) -> Value {
        let t = types::I64;
        let a = self.access;
        let table = self.b.ins().load(t, a.state, self.cpu, (VIEW + offset_of!(TlbView, table)) as i32);
        let mask = self.b.ins().load(t, a.state, self.cpu, (VIEW + offset_of!(TlbView, mask)) as i32);
        let page = self.b.ins().ushr_imm_u(lin, 12);
        let index = self.b.ins().band(page, mask);
        let index = self.b.ins().ishl_imm_u(index, i64::from(ENTRY_SHIFT));
        let entry = self.b.ins().iadd(table, index);
        let tag = if write { offset_of!(TlbEntry, write) } else { offset_of!(TlbEntry, read) };
        let tag = self.b.ins().load(t, a.tlb, entry, tag as i32);
        let last = self.add_const(lin, len as i64 - 1);
        let want = self.b.ins().band_imm_s(last, !PAGE_MASK as i64);
        let hit = self.b.ins().icmp(IntCC::Equal, tag, want);

        let found = self.b.create_block();
        let missed = self.b.create_block();
        let on = self.b.create_block();
        let host = self.b.append_block_param(on, t);
        let out = self.interpret_here();
        self.b.set_cold_block(missed);
        self.b.ins().brif(hit, found, &[], missed, &[]);

        self.b.switch_to_block(missed);
        self.b.seal_block(missed);
        let stub = self.b.ins().load(t, a.fixed, self.context, offset_of!(Context, refill_stub) as i32);
        let kind = self.b.ins().iconst(t, (len | if write { WRITE } else { 0 }) as i64);
        self.b.ins().call_indirect(self.stub_sig, stub, &[self.cpu, self.context, lin, kind]);
        let answer = self.b.ins().load(t, a.context, self.context, offset_of!(Context, host) as i32);
        self.b.ins().brif(answer, on, &[answer.into()], out, &[]);

        self.b.switch_to_block(found);
        self.b.seal_block(found);
        let addend = self.b.ins().load(t, a.tlb, entry, offset_of!(TlbEntry, addend) as i32);
        let address = self.b.ins().iadd(lin, addend);
        self.b.ins().jump(on, &[address.into()]);

        self.b.switch_to_block(on);
        self.b.seal_block(on);
        host
    }

    pub(crate) fn load_host(&mut self, ty: Type, host: Value) -> Value {
        self.b.ins().load(ty, self.access.guest, host, 0)
    }

    pub(crate) fn store_host(&mut self, v: Value, host: Value) {
        self.b.ins().store(self.access.guest, v, host, 0);
    }

    /// Reads, modifies and writes at a linear address; atomically if `lock`. Returns old and new.
    pub(crate) fn modify_at_linear(
        &mut self,
        ty: Type,
        lin: Value,
        lock: bool,
        mut f: impl FnMut(&mut Self, Value) -> Value,
    ) -> (Value, Value) {
        let len = u64::from(ty.bytes());
        if lock && len > 1 {
            // A locked access across its natural boundary is the interpreter's.
            let low = self.b.ins().band_imm_u(lin, len as i64 - 1);
            self.bail_if(low);
        }
        let host = self.host(lin, len, true);
        let first = self.load_host(ty, host);
        if !lock {
            let new = f(self, first);
            self.store_host(new, host);
            return (first, new);
        }
        let again = self.b.create_block();
        let on = self.b.create_block();
        let old = self.b.append_block_param(again, ty);
        self.b.ins().jump(again, &[first.into()]);
        self.b.switch_to_block(again);
        let new = f(self, old);
        let found = self.b.ins().atomic_cas(MemFlagsData::trusted(), host, old, new);
        let same = self.b.ins().icmp(IntCC::Equal, found, old);
        self.b.ins().brif(same, on, &[], again, &[found.into()]);
        self.b.seal_block(again);
        self.b.switch_to_block(on);
        self.b.seal_block(on);
        (old, new)
    }
}
