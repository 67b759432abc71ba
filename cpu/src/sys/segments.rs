//! Segment registers: MOV, PUSH, POP, LDS/LES/LFS/LGS/LSS, SWAPGS, RDFSBASE and its kin; and their loading by far
//! transfers.
//!
//! SDM volume 3A, 5.4-5.6 (checks), 3.4.4 (64-bit mode); volume 2, MOV, POP, LDS.
use super::descriptor::{Descriptor, code_of, is_null, rpl};
use super::stack::Stack;
use crate::cpu::Cpu;
use crate::event::{Stop, vector};
use crate::exec::Exec;
use crate::model::Vendor;
use crate::op::{Helper, Op};
use crate::state::{Segment, Shadow, cr4, seg};
use crate::width::{W16, W32, W64};
use iced_x86::{Code, Instruction, Register};

impl Cpu {
    /// What loading `sel` into a segment register gives in real-address or virtual-8086 mode. Real mode changes
    /// selector and base alone, so that limits and attributes from protected mode stay ("unreal mode").
    pub(crate) fn real_segment(&self, i: usize, sel: u16) -> Segment {
        if self.state.is_v86() {
            return Segment::real(sel, 3);
        }
        let old = self.state.seg[i];
        let attr = if old.usable() { old.attr } else { 0x93 };
        Segment { base: u64::from(sel) << 4, limit: old.limit, attr, sel }
    }

    /// A segment register that holds a null selector. FS and GS lose their base; the limit means nothing until real
    /// mode is entered.
    pub(crate) fn null_segment(&self, i: usize, sel: u16, dpl: u8) -> Segment {
        let limit = self.state.seg[i].limit;
        Segment { base: 0, limit, attr: Segment::UNUSABLE | u32::from(dpl) << 5, sel }
    }

    /// Checks `sel` for segment register `i` (not CS) and returns what the register would hold. Sets the descriptor's
    /// accessed bit.
    pub(crate) fn check_segment(&mut self, i: usize, sel: u16) -> Result<Segment, Stop> {
        if !self.state.is_protected() {
            return Ok(self.real_segment(i, sel));
        }
        let cpl = self.state.cpl;
        if i == seg::SS {
            if is_null(sel) {
                if self.state.is_long64() && cpl != 3 && rpl(sel) == cpl {
                    return Ok(self.null_segment(i, sel, cpl));
                }
                return Err(self.gp(0));
            }
            let mut d = self.stack_descriptor(sel, cpl, vector::GP)?;
            self.set_accessed(sel, &mut d)?;
            return Ok(d.segment(sel));
        }
        if is_null(sel) {
            return Ok(self.null_segment(i, sel, 0));
        }
        let mut d = self.descriptor(sel, vector::GP)?;
        if !data_loadable(d, sel, cpl) {
            return Err(self.gp(code_of(sel)));
        }
        if !d.present() {
            return Err(self.raise_ec(vector::NP, code_of(sel)));
        }
        self.set_accessed(sel, &mut d)?;
        Ok(d.segment(sel))
    }

    /// Makes a checked segment current.
    pub(crate) fn set_segment(&mut self, i: usize, s: Segment) {
        self.state.seg[i] = s;
        self.sync_segment(i);
    }

    /// Loads a segment register as MOV does.
    pub(crate) fn load_segment(&mut self, i: usize, sel: u16) -> Result<(), Stop> {
        let s = self.check_segment(i, sel)?;
        self.set_segment(i, s);
        if !self.state.is_long64() {
            self.sync_mode();
        }
        Ok(())
    }

    /// On a return to an outer level: null selectors, and those of data segments that the new level may not use,
    /// become 0. Nothing else of the register changes but that it is unusable, so FS and GS keep their base (SDM
    /// volume 2, IRET and RET; AMD's processors do so as well).
    pub(crate) fn drop_inner_segments(&mut self, cpl: u8) {
        for i in [seg::ES, seg::DS, seg::FS, seg::GS] {
            let s = self.state.seg[i];
            let conforming = s.attr & 0x1c == 0x1c;
            if is_null(s.sel) || s.usable() && s.dpl() < cpl && !conforming {
                self.set_segment(i, Segment { sel: 0, attr: s.attr | Segment::UNUSABLE, ..s });
            }
        }
    }
}

/// Whether a descriptor may be loaded into ES, DS, FS or GS: readable, and DPL >= max(CPL, RPL) unless it is
/// conforming code.
pub(crate) fn data_loadable(d: Descriptor, sel: u16, cpl: u8) -> bool {
    d.is_readable() && (d.is_conforming() || d.dpl() >= cpl.max(rpl(sel)))
}

/// Number of the segment register in `op.dst`, always in bounds.
fn sreg(n: u8) -> usize {
    usize::from(n).min(5)
}

fn selector_source(cpu: &mut Cpu, op: &Op) -> Result<u16, Stop> {
    if op.is_mem() {
        return Ok(cpu.load_op::<W16>(op)? as u16);
    }
    Ok(cpu.state.gpr[usize::from(op.src & 31)] as u16)
}

fn mov_to_sreg(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    let sel = selector_source(cpu, op)?;
    cpu.load_segment(sreg(op.dst), sel)
}

fn mov_to_ss(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    let sel = selector_source(cpu, op)?;
    cpu.load_segment(seg::SS, sel)?;
    cpu.state.shadow = Shadow::MovSs;
    cpu.sync_mode();
    Ok(())
}

fn mov_from_sreg(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    let v = u64::from(cpu.state.seg[sreg(op.src)].sel);
    if op.is_mem() {
        return cpu.store_op::<W16>(op, v);
    }
    match op.width {
        2 => cpu.set_reg::<W16>(op.dst, v),
        _ => cpu.set_reg::<W64>(op.dst, v),
    }
    Ok(())
}

fn push_sreg<const N: u64>(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    let v = u64::from(cpu.state.seg[sreg(op.dst)].sel);
    cpu.push_value(N, v)
}

fn pop_sreg<const N: u64>(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    let mut st = Stack::current(cpu);
    let sel = st.pop(cpu, N)? as u16;
    cpu.load_segment(sreg(op.dst), sel)?;
    st.commit(cpu);
    Ok(())
}

fn pop_ss<const N: u64>(cpu: &mut Cpu, _: &Op) -> Result<(), Stop> {
    let mut st = Stack::current(cpu);
    let sel = st.pop(cpu, N)? as u16;
    cpu.load_segment(seg::SS, sel)?;
    st.commit(cpu);
    cpu.state.shadow = Shadow::MovSs;
    cpu.sync_mode();
    Ok(())
}

/// LDS, LES, LFS, LGS, LSS with an `N`-byte offset into segment register `S`.
fn load_far<const N: u64, const S: usize>(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    let lin = cpu.operand(op, N, false)?;
    let off = match N {
        2 => cpu.load::<W16>(lin, op.seg)?,
        4 => cpu.load::<W32>(lin, op.seg)?,
        _ => cpu.load::<W64>(lin, op.seg)?,
    };
    let lin = cpu.operand_at(op, N, 2, false)?;
    let sel = cpu.load::<W16>(lin, op.seg)? as u16;
    cpu.load_segment(S, sel)?;
    match N {
        2 => cpu.set_reg::<W16>(op.dst, off),
        _ => cpu.set_reg::<W64>(op.dst, off),
    }
    Ok(())
}

fn swapgs(cpu: &mut Cpu, _: &Op) -> Result<(), Stop> {
    if cpu.state.cpl != 0 {
        return Err(cpu.gp(0));
    }
    let s = &mut cpu.state;
    std::mem::swap(&mut s.seg[seg::GS].base, &mut s.msr.kernel_gs_base);
    cpu.sync_segment(seg::GS);
    Ok(())
}

fn fsgsbase_enabled(cpu: &mut Cpu) -> Result<(), Stop> {
    if cpu.state.cr4 & cr4::FSGSBASE == 0 {
        return Err(cpu.ud());
    }
    Ok(())
}

fn read_base<const S: usize>(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    fsgsbase_enabled(cpu)?;
    let v = cpu.state.seg[S].base;
    if op.width == 8 {
        cpu.set_reg::<W64>(op.dst, v);
    } else {
        cpu.set_reg::<W32>(op.dst, v & 0xffff_ffff);
    }
    Ok(())
}

/// WRFSBASE, WRGSBASE. With Intel the base has to be canonical under the paging mode, unlike one that WRMSR writes: seen
/// on family 6 model 207, which has 57 bits, with four levels.
fn write_base<const S: usize>(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    fsgsbase_enabled(cpu)?;
    let v = cpu.state.gpr[usize::from(op.dst & 31)];
    let v = if op.width == 8 { v } else { v & 0xffff_ffff };
    let intel = cpu.model.vendor == Vendor::Intel;
    if !(if intel { cpu.is_canonical(v) } else { cpu.is_canonical_base(v) }) {
        return Err(cpu.gp(0));
    }
    cpu.state.seg[S].base = v;
    cpu.sync_segment(S);
    Ok(())
}

/// The helper for an instruction of this group.
pub(super) fn lookup(i: &Instruction) -> Option<Helper> {
    use seg::{DS, ES, FS, GS, SS};
    let long = i.code_size() == iced_x86::CodeSize::Code64;
    match i.code() {
        Code::Mov_Sreg_rm16 | Code::Mov_Sreg_r32m16 | Code::Mov_Sreg_r64m16 => match i.op0_register() {
            Register::CS => None,
            Register::SS => Helper::ends(mov_to_ss),
            // In 64-bit mode nothing that blocks depend on changes.
            _ if long => Helper::straight(mov_to_sreg),
            _ => Helper::ends(mov_to_sreg),
        },
        Code::Mov_rm16_Sreg | Code::Mov_r32m16_Sreg | Code::Mov_r64m16_Sreg => {
            Helper::straight(mov_from_sreg)
        }
        Code::Pushw_ES
        | Code::Pushw_CS
        | Code::Pushw_SS
        | Code::Pushw_DS
        | Code::Pushw_FS
        | Code::Pushw_GS => Helper::straight(push_sreg::<2>),
        Code::Pushd_ES
        | Code::Pushd_CS
        | Code::Pushd_SS
        | Code::Pushd_DS
        | Code::Pushd_FS
        | Code::Pushd_GS => Helper::straight(push_sreg::<4>),
        Code::Pushq_FS | Code::Pushq_GS => Helper::straight(push_sreg::<8>),
        Code::Popw_SS => Helper::ends(pop_ss::<2>),
        Code::Popd_SS => Helper::ends(pop_ss::<4>),
        Code::Popw_ES | Code::Popw_DS | Code::Popw_FS | Code::Popw_GS => Helper::ends(pop_sreg::<2>),
        Code::Popd_ES | Code::Popd_DS | Code::Popd_FS | Code::Popd_GS => Helper::ends(pop_sreg::<4>),
        Code::Popq_FS | Code::Popq_GS => Helper::straight(pop_sreg::<8>),
        Code::Lds_r16_m1616 => Helper::ends(load_far::<2, DS>),
        Code::Lds_r32_m1632 => Helper::ends(load_far::<4, DS>),
        Code::Les_r16_m1616 => Helper::ends(load_far::<2, ES>),
        Code::Les_r32_m1632 => Helper::ends(load_far::<4, ES>),
        Code::Lfs_r16_m1616 => Helper::ends(load_far::<2, FS>),
        Code::Lfs_r32_m1632 => Helper::ends(load_far::<4, FS>),
        Code::Lfs_r64_m1664 => Helper::ends(load_far::<8, FS>),
        Code::Lgs_r16_m1616 => Helper::ends(load_far::<2, GS>),
        Code::Lgs_r32_m1632 => Helper::ends(load_far::<4, GS>),
        Code::Lgs_r64_m1664 => Helper::ends(load_far::<8, GS>),
        Code::Lss_r16_m1616 => Helper::ends(load_far::<2, SS>),
        Code::Lss_r32_m1632 => Helper::ends(load_far::<4, SS>),
        Code::Lss_r64_m1664 => Helper::ends(load_far::<8, SS>),
        Code::Swapgs => Helper::straight(swapgs),
        Code::Rdfsbase_r32 | Code::Rdfsbase_r64 => Helper::straight(read_base::<FS>),
        Code::Rdgsbase_r32 | Code::Rdgsbase_r64 => Helper::straight(read_base::<GS>),
        Code::Wrfsbase_r32 | Code::Wrfsbase_r64 => Helper::straight(write_base::<FS>),
        Code::Wrgsbase_r32 | Code::Wrgsbase_r64 => Helper::straight(write_base::<GS>),
        _ => None,
    }
}
