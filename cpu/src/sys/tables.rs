//! Descriptor-table registers and looks at descriptors: LGDT, LIDT, SGDT, SIDT, LLDT, LTR, SLDT, STR, LAR, LSL, VERR,
//! VERW, ARPL.
use super::descriptor::{Descriptor, code_of, is_null, kind, rpl};
use super::privilege::{ring0, umip};
use crate::cpu::Cpu;
use crate::event::{Stop, vector};
use crate::exec::Exec;
use crate::op::{Helper, Op};
use crate::state::{Segment, Table, fl};
use crate::width::{W16, W32, W64};
use iced_x86::{Code, Instruction};

fn protected(cpu: &mut Cpu) -> Result<(), Stop> {
    if !cpu.state.is_protected() {
        return Err(cpu.ud());
    }
    Ok(())
}

/// Loads a pseudo-descriptor; `N` is the operand size: 2 takes 24 bits of the base.
fn load_table<const N: u64>(cpu: &mut Cpu, op: &Op) -> Result<Table, Stop> {
    ring0(cpu)?;
    let lin = cpu.operand(op, if N == 8 { 10 } else { 6 }, false)?;
    let limit = cpu.load::<W16>(lin, op.seg)? as u16;
    let at = cpu.operand_at(op, 2, if N == 8 { 8 } else { 4 }, false)?;
    let base = match N {
        8 => cpu.load::<W64>(at, op.seg)?,
        4 => cpu.load::<W32>(at, op.seg)?,
        _ => cpu.load::<W32>(at, op.seg)? & 0xff_ffff,
    };
    if N == 8 && !cpu.is_canonical_base(base) {
        return Err(cpu.gp(0));
    }
    Ok(Table { base, limit })
}

fn lgdt<const N: u64>(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    super::cache::serialise();
    cpu.state.gdtr = load_table::<N>(cpu, op)?;
    Ok(())
}

fn lidt<const N: u64>(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    super::cache::serialise();
    cpu.state.idtr = load_table::<N>(cpu, op)?;
    Ok(())
}

/// Stores a pseudo-descriptor; with a 16-bit operand all 32 bits of the base too, as processors since the 386 do.
fn store_table<const N: u64>(cpu: &mut Cpu, op: &Op, t: Table) -> Result<(), Stop> {
    umip(cpu)?;
    let mut b = [0; 10];
    b[..2].copy_from_slice(&t.limit.to_le_bytes());
    b[2..].copy_from_slice(&t.base.to_le_bytes());
    let n = if N == 8 { 10 } else { 6 };
    let lin = cpu.operand(op, n as u64, true)?;
    cpu.store_bytes(lin, &b[..n], op.seg)
}

fn sgdt<const N: u64>(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    store_table::<N>(cpu, op, cpu.state.gdtr)
}

fn sidt<const N: u64>(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    store_table::<N>(cpu, op, cpu.state.idtr)
}

/// The selector operand of the instructions whose first operand it is.
fn selector_dst(cpu: &mut Cpu, op: &Op) -> Result<u16, Stop> {
    if op.is_mem() {
        Ok(cpu.load_op::<W16>(op)? as u16)
    } else {
        Ok(cpu.state.gpr[usize::from(op.dst & 31)] as u16)
    }
}

fn selector_src(cpu: &mut Cpu, op: &Op) -> Result<u16, Stop> {
    if op.is_mem() {
        Ok(cpu.load_op::<W16>(op)? as u16)
    } else {
        Ok(cpu.state.gpr[usize::from(op.src & 31)] as u16)
    }
}

fn store_selector(cpu: &mut Cpu, op: &Op, sel: u16) -> Result<(), Stop> {
    if op.is_mem() {
        return cpu.store_op::<W16>(op, u64::from(sel));
    }
    match op.width {
        2 => cpu.set_reg::<W16>(op.dst, u64::from(sel)),
        _ => cpu.set_reg::<W64>(op.dst, u64::from(sel)),
    }
    Ok(())
}

impl Cpu {
    /// Reads a system descriptor for LLDT, LTR or a task: 16 bytes in long mode, with a canonical base.
    pub(crate) fn system_segment(&mut self, sel: u16, v: u8) -> Result<(Descriptor, Segment), Stop> {
        if sel & 4 != 0 {
            return Err(self.raise_ec(v, code_of(sel)));
        }
        if !self.state.is_long() {
            let d = self.descriptor(sel, v)?;
            return Ok((d, d.segment(sel)));
        }
        let (d, high) = self.descriptor16(sel, v)?;
        let mut s = d.segment(sel);
        s.base |= high << 32;
        // The type field of the second half must be zero, so that it cannot be taken for a descriptor of its own.
        if high >> 40 & 0x1f != 0 || !self.is_canonical_base(s.base) {
            return Err(self.raise_ec(v, code_of(sel)));
        }
        Ok((d, s))
    }

    /// LDTR with `sel`, as LLDT checks it.
    pub(crate) fn check_ldt(&mut self, sel: u16, v: u8, absent: u8) -> Result<Segment, Stop> {
        if is_null(sel) {
            // A null selector in LDTR: no LDT; LDTR's null check ignores TI.
            return Ok(Segment { base: 0, limit: 0, attr: Segment::UNUSABLE, sel });
        }
        let (d, s) = self.system_segment(sel, v)?;
        if !d.is_system(kind::LDT) {
            return Err(self.raise_ec(v, code_of(sel)));
        }
        if !d.present() {
            return Err(self.raise_ec(absent, code_of(sel)));
        }
        Ok(s)
    }
}

fn lldt(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    super::cache::serialise();
    protected(cpu)?;
    ring0(cpu)?;
    let sel = selector_dst(cpu, op)?;
    if is_null(sel) && sel & 4 == 0 {
        cpu.state.ldtr = Segment { base: 0, limit: 0, attr: Segment::UNUSABLE, sel };
        return Ok(());
    }
    cpu.state.ldtr = cpu.check_ldt(sel, vector::GP, vector::NP)?;
    Ok(())
}

fn ltr(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    super::cache::serialise();
    protected(cpu)?;
    ring0(cpu)?;
    let sel = selector_dst(cpu, op)?;
    if is_null(sel) {
        return Err(cpu.gp(0));
    }
    let (d, mut s) = cpu.system_segment(sel, vector::GP)?;
    let long = cpu.state.is_long();
    if !d.is_system(kind::TSS32) && (long || !d.is_system(kind::TSS16)) {
        return Err(cpu.gp(code_of(sel)));
    }
    if !d.present() {
        return Err(cpu.raise_ec(vector::NP, code_of(sel)));
    }
    cpu.patch_type(sel, 2, 0)?;
    s.attr |= 2;
    cpu.state.tr = s;
    Ok(())
}

fn sldt(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    protected(cpu)?;
    umip(cpu)?;
    store_selector(cpu, op, cpu.state.ldtr.sel)
}

fn str_(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    protected(cpu)?;
    umip(cpu)?;
    store_selector(cpu, op, cpu.state.tr.sel)
}

fn set_zf(cpu: &mut Cpu, zf: bool) {
    let f = cpu.state.arith_flags() & !fl::ZF;
    cpu.state.set_arith_flags(if zf { f | fl::ZF } else { f });
}

/// The descriptor that `sel` names, if it is within its table; page faults of the table are raised.
fn peek(cpu: &mut Cpu, sel: u16) -> Result<Option<Descriptor>, Stop> {
    if is_null(sel) {
        return Ok(None);
    }
    match cpu.descriptor_address(sel, 8) {
        Some(at) => Ok(Some(Descriptor(cpu.load_sys::<W64>(at)?))),
        None => Ok(None),
    }
}

/// Whether LAR and LSL may look: not against privilege, unless it is conforming code.
fn visible(cpu: &Cpu, d: Descriptor, sel: u16) -> bool {
    d.is_conforming() || d.dpl() >= cpu.state.cpl.max(rpl(sel))
}

fn set_result(cpu: &mut Cpu, op: &Op, v: u64) {
    match op.width {
        2 => cpu.set_reg::<W16>(op.dst, v & 0xffff),
        _ => cpu.set_reg::<W64>(op.dst, v),
    }
}

fn lar(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    protected(cpu)?;
    let sel = selector_src(cpu, op)?;
    let long = cpu.state.is_long();
    let found = peek(cpu, sel)?.filter(|d| {
        let known = d.is_segment()
            || match d.kind() {
                kind::LDT | kind::TSS32 | kind::TSS32_BUSY | kind::CALL_GATE32 => true,
                kind::TSS16 | kind::TSS16_BUSY | kind::CALL_GATE16 | kind::TASK_GATE => !long,
                _ => false,
            };
        known && visible(cpu, *d, sel)
    });
    if let Some(d) = found {
        set_result(cpu, op, d.0 >> 32 & 0x00ff_ff00);
    }
    set_zf(cpu, found.is_some());
    Ok(())
}

fn lsl(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    protected(cpu)?;
    let sel = selector_src(cpu, op)?;
    let long = cpu.state.is_long();
    let found = peek(cpu, sel)?.filter(|d| {
        let known = d.is_segment()
            || match d.kind() {
                kind::LDT | kind::TSS32 | kind::TSS32_BUSY => true,
                kind::TSS16 | kind::TSS16_BUSY => !long,
                _ => false,
            };
        known && visible(cpu, *d, sel)
    });
    if let Some(d) = found {
        set_result(cpu, op, u64::from(d.limit()));
    }
    set_zf(cpu, found.is_some());
    Ok(())
}

fn verr(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    protected(cpu)?;
    let sel = selector_dst(cpu, op)?;
    let ok = peek(cpu, sel)?.is_some_and(|d| d.is_readable() && visible(cpu, d, sel));
    set_zf(cpu, ok);
    Ok(())
}

fn verw(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    protected(cpu)?;
    let sel = selector_dst(cpu, op)?;
    let ok = peek(cpu, sel)?.is_some_and(|d| d.is_writable() && visible(cpu, d, sel));
    set_zf(cpu, ok);
    Ok(())
}

fn arpl(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    protected(cpu)?;
    let want = cpu.state.gpr[usize::from(op.src & 31)] & 3;
    if op.is_mem() {
        // Written only if it changes.
        let old = cpu.load_op::<W16>(op)?;
        let raised = old & 3 < want;
        if raised {
            cpu.store_op::<W16>(op, old & !3 | want)?;
        }
        set_zf(cpu, raised);
        return Ok(());
    }
    let old = cpu.state.gpr[usize::from(op.dst & 31)];
    let raised = old & 3 < want;
    if raised {
        cpu.set_reg::<W16>(op.dst, old & 0xfffc | want);
    }
    set_zf(cpu, raised);
    Ok(())
}

/// The helper for an instruction of this group.
pub(super) fn lookup(i: &Instruction) -> Option<Helper> {
    match i.code() {
        Code::Lgdt_m1632_16 => Helper::ends(lgdt::<2>),
        Code::Lgdt_m1632 => Helper::ends(lgdt::<4>),
        Code::Lgdt_m1664 => Helper::ends(lgdt::<8>),
        Code::Lidt_m1632_16 => Helper::ends(lidt::<2>),
        Code::Lidt_m1632 => Helper::ends(lidt::<4>),
        Code::Lidt_m1664 => Helper::ends(lidt::<8>),
        Code::Sgdt_m1632_16 => Helper::straight(sgdt::<2>),
        Code::Sgdt_m1632 => Helper::straight(sgdt::<4>),
        Code::Sgdt_m1664 => Helper::straight(sgdt::<8>),
        Code::Sidt_m1632_16 => Helper::straight(sidt::<2>),
        Code::Sidt_m1632 => Helper::straight(sidt::<4>),
        Code::Sidt_m1664 => Helper::straight(sidt::<8>),
        Code::Lldt_rm16 | Code::Lldt_r32m16 | Code::Lldt_r64m16 => Helper::ends(lldt),
        Code::Ltr_rm16 | Code::Ltr_r32m16 | Code::Ltr_r64m16 => Helper::ends(ltr),
        Code::Sldt_rm16 | Code::Sldt_r32m16 | Code::Sldt_r64m16 => Helper::straight(sldt),
        Code::Str_rm16 | Code::Str_r32m16 | Code::Str_r64m16 => Helper::straight(str_),
        Code::Lar_r16_rm16 | Code::Lar_r32_r32m16 | Code::Lar_r64_r64m16 => Helper::straight(lar),
        Code::Lsl_r16_rm16 | Code::Lsl_r32_r32m16 | Code::Lsl_r64_r64m16 => Helper::straight(lsl),
        Code::Verr_rm16 | Code::Verr_r32m16 | Code::Verr_r64m16 => Helper::straight(verr),
        Code::Verw_rm16 | Code::Verw_r32m16 | Code::Verw_r64m16 => Helper::straight(verw),
        Code::Arpl_rm16_r16 | Code::Arpl_r32m16_r32 => Helper::straight(arpl),
        _ => None,
    }
}
