//! Far transfers: JMP, CALL and RET between segments, through call gates, to tasks.
//!
//! SDM volume 2, CALL, JMP, RET; volume 3A, 5.8. On a transfer everything is checked and all of the new stack's frame
//! is written before the first register changes.
use super::descriptor::{Descriptor, code_of, is_null, kind, rpl};
use super::stack::Stack;
use super::task::Switch;
use crate::cpu::Cpu;
use crate::event::{Stop, vector};
use crate::model::Vendor;
use crate::op::{Helper, Op};
use crate::state::{Segment, gpr, seg};
use crate::width::{W16, W32, W64};
use iced_x86::{Code, Instruction};

/// How a far transfer gets to its target.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Jump,
    Call,
}

/// A checked code segment and offset.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Target {
    /// What CS will hold.
    pub segment: Segment,
    /// What RIP will be.
    pub ip: u64,
    /// The new privilege level.
    pub cpl: u8,
}

impl Cpu {
    /// Checks `ip` against a code segment: canonical in 64-bit code, else within the limit; #GP(0).
    pub(crate) fn check_target(&mut self, d: Descriptor, sel: u16, ip: u64, cpl: u8) -> Result<Target, Stop> {
        let sel = sel & !3 | u16::from(cpl);
        let segment = d.segment(sel);
        let ok = if self.state.is_long() && d.is_long() {
            self.is_canonical(ip)
        } else {
            ip <= u64::from(segment.limit)
        };
        if !ok {
            return Err(self.gp(0));
        }
        Ok(Target { segment, ip, cpl })
    }

    /// Makes a target current: CS, CPL and what is derived from them. The caller sets RIP (`next_ip`).
    pub(crate) fn enter_code(&mut self, t: &Target) {
        self.state.seg[seg::CS] = t.segment;
        self.state.cpl = t.cpl;
        self.next_ip = t.ip;
    }

    /// After CS, SS, CPL or flags have changed.
    pub(crate) fn mode_changed(&mut self) {
        self.sync_segment(seg::CS);
        self.sync_segment(seg::SS);
        self.sync_mode();
        self.track_alignment();
    }

    /// The stack pointer and stack selector for privilege level `cpl` (0-2) from the TSS; #TS if they are beyond its
    /// limit (SDM volume 3A, 7.2).
    pub(crate) fn inner_stack(&mut self, cpl: u8) -> Result<(u16, u64), Stop> {
        let tr = self.state.tr;
        let n = u64::from(cpl);
        let wide = tr.attr & 8 != 0;
        let (at, len) = if self.state.is_long() {
            (4 + n * 8, 8)
        } else if wide {
            (4 + n * 8, 6)
        } else {
            (2 + n * 4, 4)
        };
        if at + len - 1 > u64::from(tr.limit) {
            return Err(self.raise_ec(vector::TS, code_of(tr.sel)));
        }
        let at = tr.base.wrapping_add(at);
        if self.state.is_long() {
            return Ok((u16::from(cpl), self.load_sys::<W64>(at)?));
        }
        if wide {
            let sp = self.load_sys::<W32>(at)?;
            Ok((self.load_sys::<W16>(at.wrapping_add(4))? as u16, sp))
        } else {
            let sp = self.load_sys::<W16>(at)?;
            Ok((self.load_sys::<W16>(at.wrapping_add(2))? as u16, sp))
        }
    }

    /// The stack of privilege level `cpl` from the TSS, ready for pushes, and what SS will hold.
    pub(crate) fn enter_inner_stack(&mut self, cpl: u8) -> Result<(Stack, Segment), Stop> {
        let (sel, sp) = self.inner_stack(cpl)?;
        if self.state.is_long() {
            let ss = self.null_segment(seg::SS, u16::from(cpl), cpl);
            return Ok((Stack::long(self, sp, cpl), ss));
        }
        if is_null(sel) {
            return Err(self.raise_ec(vector::TS, 0));
        }
        let mut d = self.stack_descriptor(sel, cpl, vector::TS)?;
        self.set_accessed(sel, &mut d)?;
        let ss = d.segment(sel);
        Ok((Stack::new(self, ss, sp, cpl), ss))
    }

    /// Checks the code segment that a return goes to.
    pub(crate) fn return_code(&mut self, sel: u16) -> Result<Descriptor, Stop> {
        if is_null(sel) {
            return Err(self.gp(0));
        }
        let d = self.descriptor(sel, vector::GP)?;
        let r = rpl(sel);
        let level = if d.is_conforming() { d.dpl() <= r } else { d.dpl() == r };
        let both = self.state.is_long() && d.is_long() && d.is_big();
        if r < self.state.cpl || !d.is_code() || !level || both {
            return Err(self.gp(code_of(sel)));
        }
        if !d.present() {
            return Err(self.raise_ec(vector::NP, code_of(sel)));
        }
        Ok(d)
    }

    /// The offset in the code segment `d` that RETF and IRET return to, of what they have popped. Where the code is not
    /// 64-bit, the upper half is left out with Intel, and beyond the limit with AMD.
    pub(crate) fn return_offset(&self, d: Descriptor, popped: u64) -> u64 {
        let long = self.state.is_long() && d.is_long();
        if self.model.vendor == Vendor::Intel && !long { popped & 0xffff_ffff } else { popped }
    }

    /// Checks the stack segment that a return to `cpl` loads; `long` if the code it returns to is 64-bit.
    pub(crate) fn return_stack(&mut self, sel: u16, cpl: u8, long: bool) -> Result<Segment, Stop> {
        if is_null(sel) {
            if long && cpl != 3 && rpl(sel) == cpl {
                return Ok(self.null_segment(seg::SS, sel, cpl));
            }
            return Err(self.gp(0));
        }
        let mut d = self.stack_descriptor(sel, cpl, vector::GP)?;
        self.set_accessed(sel, &mut d)?;
        Ok(d.segment(sel))
    }
}

/// JMP or CALL to `sel:off` with operand size `width`.
fn transfer(cpu: &mut Cpu, kind: Kind, sel: u16, off: u64, width: u64) -> Result<(), Stop> {
    if !cpu.state.is_protected() {
        return transfer_real(cpu, kind, sel, off, width);
    }
    if is_null(sel) {
        return Err(cpu.gp(0));
    }
    let mut d = cpu.descriptor(sel, vector::GP)?;
    if !d.is_segment() {
        return transfer_system(cpu, kind, sel, d);
    }
    let cpl = cpu.state.cpl;
    let level = if d.is_conforming() { d.dpl() <= cpl } else { rpl(sel) <= cpl && d.dpl() == cpl };
    let both = cpu.state.is_long() && d.is_long() && d.is_big();
    if !d.is_code() || !level || both {
        return Err(cpu.gp(code_of(sel)));
    }
    if !d.present() {
        return Err(cpu.raise_ec(vector::NP, code_of(sel)));
    }
    let t = cpu.check_target(d, sel, off, cpl)?;
    let stack = if kind == Kind::Call { Some(push_return(cpu, width)?) } else { None };
    finish(cpu, &mut d, t, stack)
}

/// Pushes CS and the return address on the current stack (not committed).
fn push_return(cpu: &mut Cpu, width: u64) -> Result<Stack, Stop> {
    let mut st = Stack::current(cpu);
    let (cs, ip) = (u64::from(cpu.state.seg[seg::CS].sel), cpu.next_ip);
    st.room(cpu, 2 * width)?;
    st.push(cpu, width, cs)?;
    st.push(cpu, width, ip)?;
    Ok(st)
}

fn finish(cpu: &mut Cpu, d: &mut Descriptor, mut t: Target, stack: Option<Stack>) -> Result<(), Stop> {
    cpu.set_accessed(t.segment.sel, d)?;
    t.segment.attr |= 1;
    if let Some(st) = stack {
        st.commit(cpu);
    }
    cpu.enter_code(&t);
    cpu.mode_changed();
    Ok(())
}

fn transfer_real(cpu: &mut Cpu, kind: Kind, sel: u16, off: u64, width: u64) -> Result<(), Stop> {
    let segment = cpu.real_segment(seg::CS, sel);
    if off > u64::from(segment.limit) {
        return Err(cpu.gp(0));
    }
    if kind == Kind::Call {
        push_return(cpu, width)?.commit(cpu);
    }
    let t = Target { segment, ip: off, cpl: cpu.state.cpl };
    cpu.enter_code(&t);
    cpu.mode_changed();
    Ok(())
}

fn transfer_system(cpu: &mut Cpu, how: Kind, sel: u16, d: Descriptor) -> Result<(), Stop> {
    let long = cpu.state.is_long();
    let known = match d.kind() {
        kind::CALL_GATE32 => true,
        kind::CALL_GATE16 | kind::TASK_GATE | kind::TSS16 | kind::TSS32 => !long,
        _ => false,
    };
    if !known || d.dpl() < cpu.state.cpl.max(rpl(sel)) {
        return Err(cpu.gp(code_of(sel)));
    }
    if !d.present() {
        return Err(cpu.raise_ec(vector::NP, code_of(sel)));
    }
    let switch = if how == Kind::Call { Switch::Call } else { Switch::Jump };
    match d.kind() {
        kind::TASK_GATE => {
            let ip = cpu.next_ip;
            cpu.switch_through_gate(d, switch, ip)
        }
        kind::TSS16 | kind::TSS32 => {
            let ip = cpu.next_ip;
            cpu.switch_task(sel, d, switch, ip)
        }
        _ => through_call_gate(cpu, how, sel, d),
    }
}

fn through_call_gate(cpu: &mut Cpu, how: Kind, gate_sel: u16, gate: Descriptor) -> Result<(), Stop> {
    let long = cpu.state.is_long();
    let cpl = cpu.state.cpl;
    let wide = gate.kind() == kind::CALL_GATE32;
    let mut off = gate.gate_offset(wide);
    if long {
        let high = cpu.descriptor_high(gate_sel, vector::GP)?;
        if high >> 40 & 0x1f != 0 {
            return Err(cpu.gp(code_of(gate_sel)));
        }
        off |= high << 32;
    }
    let sel = gate.gate_selector();
    if is_null(sel) {
        return Err(cpu.gp(0));
    }
    let mut d = cpu.descriptor(sel, vector::GP)?;
    let level = if how == Kind::Jump && !d.is_conforming() { d.dpl() == cpl } else { d.dpl() <= cpl };
    if !d.is_code() || !level || long && (!d.is_long() || d.is_big()) {
        return Err(cpu.gp(code_of(sel)));
    }
    if !d.present() {
        return Err(cpu.raise_ec(vector::NP, code_of(sel)));
    }
    let width = if long {
        8
    } else if wide {
        4
    } else {
        2
    };
    let inner = how == Kind::Call && !d.is_conforming() && d.dpl() < cpl;
    if !inner {
        let t = cpu.check_target(d, sel, off, cpl)?;
        let stack = if how == Kind::Call { Some(push_return(cpu, width)?) } else { None };
        return finish(cpu, &mut d, t, stack);
    }
    let new_cpl = d.dpl();
    let (mut st, ss) = cpu.enter_inner_stack(new_cpl)?;
    let t = cpu.check_target(d, sel, off, new_cpl)?;
    // Parameters, read upwards from the old stack and pushed downwards.
    let count = if long { 0 } else { gate.gate_count() as usize };
    let mut params = [0u64; 31];
    let mut old = Stack::current(cpu);
    let (old_ss, old_sp) = (u64::from(cpu.state.seg[seg::SS].sel), cpu.state.gpr[gpr::RSP]);
    for p in params.iter_mut().take(count) {
        *p = old.pop(cpu, width)?;
    }
    let (cs, ip) = (u64::from(cpu.state.seg[seg::CS].sel), cpu.next_ip);
    st.room(cpu, width * (4 + count as u64))?;
    st.push(cpu, width, old_ss)?;
    st.push(cpu, width, old_sp)?;
    for p in params[..count].iter().rev() {
        st.push(cpu, width, *p)?;
    }
    st.push(cpu, width, cs)?;
    st.push(cpu, width, ip)?;
    cpu.set_accessed(sel, &mut d)?;
    // The stack pointer's upper half does not survive a change of stack.
    cpu.state.gpr[gpr::RSP] = st.sp;
    cpu.state.seg[seg::SS] = ss;
    let mut t = t;
    t.segment.attr |= 1;
    cpu.enter_code(&t);
    cpu.mode_changed();
    Ok(())
}

/// RET far: operand size `width`, releasing `extra` bytes of parameters.
fn ret(cpu: &mut Cpu, width: u64, extra: u64) -> Result<(), Stop> {
    let mut st = Stack::current(cpu);
    let ip = st.pop(cpu, width)?;
    let sel = st.pop(cpu, width)? as u16;
    if !cpu.state.is_protected() {
        let segment = cpu.real_segment(seg::CS, sel);
        if ip > u64::from(segment.limit) {
            return Err(cpu.gp(0));
        }
        st.release(extra);
        st.commit(cpu);
        let t = Target { segment, ip, cpl: cpu.state.cpl };
        cpu.enter_code(&t);
        cpu.mode_changed();
        return Ok(());
    }
    let mut d = cpu.return_code(sel)?;
    let new_cpl = rpl(sel);
    let t = cpu.check_target(d, sel, cpu.return_offset(d, ip), new_cpl)?;
    st.release(extra);
    if new_cpl == cpu.state.cpl {
        return finish(cpu, &mut d, t, Some(st));
    }
    let sp = st.pop(cpu, width)?;
    let ss_sel = st.pop(cpu, width)? as u16;
    let long = cpu.state.is_long() && d.is_long();
    let ss = cpu.return_stack(ss_sel, new_cpl, long)?;
    cpu.set_accessed(sel, &mut d)?;
    let mut t = t;
    t.segment.attr |= 1;
    set_outer_stack(cpu, ss, sp, long, extra);
    cpu.enter_code(&t);
    cpu.mode_changed();
    cpu.drop_inner_segments(new_cpl);
    cpu.sync_mode();
    Ok(())
}

/// Loads SS and the stack pointer of an outer level, releasing `extra` bytes there.
pub(crate) fn set_outer_stack(cpu: &mut Cpu, ss: Segment, sp: u64, long: bool, extra: u64) {
    let rsp = &mut cpu.state.gpr[gpr::RSP];
    *rsp = if long {
        sp.wrapping_add(extra)
    } else if ss.attr & Segment::DB != 0 {
        sp.wrapping_add(extra) & 0xffff_ffff
    } else {
        *rsp & !0xffff | sp.wrapping_add(extra) & 0xffff
    };
    cpu.state.seg[seg::SS] = ss;
}

fn pointer_operand(op: &Op) -> (u16, u64) {
    ((op.imm >> 32) as u16, op.imm & 0xffff_ffff)
}

fn memory_operand<const N: u64>(cpu: &mut Cpu, op: &Op) -> Result<(u16, u64), Stop> {
    let lin = cpu.operand(op, N + 2, false)?;
    let off = match N {
        2 => cpu.load::<W16>(lin, op.seg)?,
        4 => cpu.load::<W32>(lin, op.seg)?,
        _ => cpu.load::<W64>(lin, op.seg)?,
    };
    let lin = cpu.operand_at(op, N, 2, false)?;
    Ok((cpu.load::<W16>(lin, op.seg)? as u16, off))
}

fn jump_ptr<const N: u64>(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    let (sel, off) = pointer_operand(op);
    transfer(cpu, Kind::Jump, sel, off, N)
}
fn call_ptr<const N: u64>(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    let (sel, off) = pointer_operand(op);
    transfer(cpu, Kind::Call, sel, off, N)
}
fn jump_mem<const N: u64>(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    let (sel, off) = memory_operand::<N>(cpu, op)?;
    transfer(cpu, Kind::Jump, sel, off, N)
}
fn call_mem<const N: u64>(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    let (sel, off) = memory_operand::<N>(cpu, op)?;
    transfer(cpu, Kind::Call, sel, off, N)
}
fn ret_plain<const N: u64>(cpu: &mut Cpu, _: &Op) -> Result<(), Stop> {
    ret(cpu, N, 0)
}
fn ret_imm<const N: u64>(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    ret(cpu, N, op.imm & 0xffff)
}

/// The helper for an instruction of this group.
pub(super) fn lookup(i: &Instruction) -> Option<Helper> {
    match i.code() {
        Code::Jmp_ptr1616 => Helper::ends(jump_ptr::<2>),
        Code::Jmp_ptr1632 => Helper::ends(jump_ptr::<4>),
        Code::Jmp_m1616 => Helper::ends(jump_mem::<2>),
        Code::Jmp_m1632 => Helper::ends(jump_mem::<4>),
        Code::Jmp_m1664 => Helper::ends(jump_mem::<8>),
        Code::Call_ptr1616 => Helper::ends(call_ptr::<2>),
        Code::Call_ptr1632 => Helper::ends(call_ptr::<4>),
        Code::Call_m1616 => Helper::ends(call_mem::<2>),
        Code::Call_m1632 => Helper::ends(call_mem::<4>),
        Code::Call_m1664 => Helper::ends(call_mem::<8>),
        Code::Retfw => Helper::ends(ret_plain::<2>),
        Code::Retfd => Helper::ends(ret_plain::<4>),
        Code::Retfq => Helper::ends(ret_plain::<8>),
        Code::Retfw_imm16 => Helper::ends(ret_imm::<2>),
        Code::Retfd_imm16 => Helper::ends(ret_imm::<4>),
        Code::Retfq_imm16 => Helper::ends(ret_imm::<8>),
        _ => None,
    }
}
