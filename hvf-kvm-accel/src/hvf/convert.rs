//! A vCPU's state as the framework's registers and VMCS fields, and back, with nothing lost on the way.
use super::vmcs::{self, blocking, event, guest, shadow};
use super::{Framework, HvError, Reg};
use crate::xsave;
use mynah_cpu::event::{Event, EventKind};
use mynah_cpu::state::{Msrs, Segment, Shadow, State, Table, cr0, cr4, efer, gpr, seg};
use mynah_cpu::sys::msr::index;

/// The general registers by their number.
const GENERAL: [Reg; 16] = [
    Reg::Rax,
    Reg::Rcx,
    Reg::Rdx,
    Reg::Rbx,
    Reg::Rsp,
    Reg::Rbp,
    Reg::Rsi,
    Reg::Rdi,
    Reg::R8,
    Reg::R9,
    Reg::R10,
    Reg::R11,
    Reg::R12,
    Reg::R13,
    Reg::R14,
    Reg::R15,
];

/// CR0 has it while the guest runs, whatever the guest has written (SDM volume 3C, 24.8).
const CR0_ALWAYS: u64 = cr0::NE;
/// So has CR4: VMX is on.
const CR4_ALWAYS: u64 = 1 << 13;
/// The processor would ignore the guest's wish for no caches; the guest still reads it.
const CR0_CACHES: u64 = cr0::CD | cr0::NW;

/// MSRs that the processor has while the guest runs.
pub const NATIVE: [u32; 6] =
    [index::STAR, index::LSTAR, index::CSTAR, index::FMASK, index::KERNEL_GS_BASE, index::TSC_AUX];

fn native(m: &mut Msrs, n: u32) -> &mut u64 {
    match n {
        index::STAR => &mut m.star,
        index::LSTAR => &mut m.lstar,
        index::CSTAR => &mut m.cstar,
        index::FMASK => &mut m.fmask,
        index::KERNEL_GS_BASE => &mut m.kernel_gs_base,
        _ => &mut m.tsc_aux,
    }
}

fn put_segment(f: &mut dyn Framework, n: u32, s: &Segment) -> Result<(), HvError> {
    let (selector, base, limit, rights) = vmcs::segment(n);
    f.set_field(selector, s.sel.into())?;
    f.set_field(base, s.base)?;
    f.set_field(limit, s.limit.into())?;
    // Ours are as the VMCS': "unusable" is bit 16.
    f.set_field(rights, s.attr.into())
}

fn get_segment(f: &dyn Framework, n: u32) -> Result<Segment, HvError> {
    let (selector, base, limit, rights) = vmcs::segment(n);
    Ok(Segment {
        sel: f.field(selector)? as u16,
        base: f.field(base)?,
        limit: f.field(limit)? as u32,
        attr: f.field(rights)? as u32 & 0x1_f0ff,
    })
}

fn put_table(f: &mut dyn Framework, (base, limit): (u32, u32), t: &Table) -> Result<(), HvError> {
    f.set_field(base, t.base)?;
    f.set_field(limit, t.limit.into())
}

fn get_table(f: &dyn Framework, (base, limit): (u32, u32)) -> Result<Table, HvError> {
    Ok(Table { base: f.field(base)?, limit: f.field(limit)? as u16 })
}

/// PAE paging, whose PDPTEs are registers.
fn has_pdptes(s: &State) -> bool {
    s.cr0 & cr0::PG != 0 && s.cr4 & cr4::PAE != 0 && s.msr.efer & efer::LMA == 0
}

/// Has the framework take over the state; `mask` is what XCR0 may have, or none.
///
/// # Errors
/// The framework refuses.
pub fn load(f: &mut dyn Framework, s: &State, mask: u64) -> Result<(), HvError> {
    for (n, reg) in GENERAL.into_iter().enumerate() {
        f.set_reg(reg, s.gpr[n])?;
    }
    f.set_reg(Reg::Rip, s.gpr[gpr::RIP])?;
    f.set_reg(Reg::Rflags, s.rflags())?;
    for n in [seg::ES, seg::CS, seg::SS, seg::DS, seg::FS, seg::GS] {
        put_segment(f, n as u32, &s.seg[n])?;
    }
    put_segment(f, vmcs::LDTR, &s.ldtr)?;
    // A task register is busy, or no entry is possible (SDM volume 3C, 27.3.1.2).
    let busy = if s.tr.attr & 0x1f == 9 || s.tr.attr & 0x1f == 1 { 2 } else { 0 };
    put_segment(f, vmcs::TR, &Segment { attr: s.tr.attr | busy, ..s.tr })?;
    put_table(f, vmcs::GDTR, &s.gdtr)?;
    put_table(f, vmcs::IDTR, &s.idtr)?;
    f.set_field(shadow::CR0_MASK, CR0_ALWAYS | CR0_CACHES)?;
    f.set_field(shadow::CR0, s.cr0)?;
    f.set_field(guest::CR0, s.cr0 & !CR0_CACHES | CR0_ALWAYS)?;
    f.set_field(shadow::CR4_MASK, CR4_ALWAYS)?;
    f.set_field(shadow::CR4, s.cr4)?;
    f.set_field(guest::CR4, s.cr4 | CR4_ALWAYS)?;
    f.set_field(guest::CR3, s.cr3)?;
    f.set_reg(Reg::Cr2, s.cr2)?;
    if has_pdptes(s) {
        for (n, entry) in (0..).zip(s.pdpte) {
            f.set_field(guest::PDPTE0 + 2 * n, entry)?;
        }
    }
    f.set_field(guest::EFER, s.msr.efer)?;
    f.set_field(guest::PAT, s.msr.pat)?;
    f.set_field(guest::DEBUGCTL, s.msr.debugctl)?;
    f.set_field(guest::SYSENTER_CS, s.msr.sysenter_cs)?;
    f.set_field(guest::SYSENTER_ESP, s.msr.sysenter_esp)?;
    f.set_field(guest::SYSENTER_EIP, s.msr.sysenter_eip)?;
    let mut msrs = s.msr;
    for n in NATIVE {
        f.set_msr(n, *native(&mut msrs, n))?;
    }
    for (reg, n) in [(Reg::Dr0, 0), (Reg::Dr1, 1), (Reg::Dr2, 2), (Reg::Dr3, 3), (Reg::Dr6, 6)] {
        f.set_reg(reg, s.dr[n])?;
    }
    f.set_field(guest::DR7, s.dr[7])?;
    if mask != 0 {
        f.set_reg(Reg::Xcr0, s.xcr0)?;
    }
    f.set_xsave(&xsave::area(s, mask))?;
    f.set_field(guest::ACTIVITY, 0)?;
    f.set_field(guest::PENDING_DEBUG, 0)?;
    load_events(f, s)?;
    f.forget_translations()
}

/// What is delivered at entry, and what is held off.
fn load_events(f: &mut dyn Framework, s: &State) -> Result<(), HvError> {
    let mut held = if s.nmi_blocked { blocking::NMI } else { 0 };
    held |= match s.shadow {
        Shadow::Sti => blocking::STI,
        Shadow::MovSs => blocking::MOV_SS,
        Shadow::None | Shadow::Event => 0,
    };
    f.set_field(guest::INTERRUPTIBILITY, held)?;
    let Some(Event { vector, kind, error }) = s.pending else { return f.set_field(event::ENTRY, 0) };
    let kind = match kind {
        EventKind::External => event::EXTERNAL,
        EventKind::Nmi => event::NMI,
        _ => event::EXCEPTION,
    };
    let has_error = if error.is_some() { event::HAS_ERROR } else { 0 };
    f.set_field(event::ENTRY_ERROR, error.unwrap_or(0).into())?;
    f.set_field(event::ENTRY, u64::from(vector) | kind << 8 | has_error | event::VALID)
}

/// Gives it back.
///
/// # Errors
/// The framework refuses.
pub fn save(f: &dyn Framework, s: &mut State, mask: u64) -> Result<(), HvError> {
    for (n, reg) in GENERAL.into_iter().enumerate() {
        s.gpr[n] = f.reg(reg)?;
    }
    s.gpr[gpr::RIP] = f.reg(Reg::Rip)?;
    s.set_rflags(f.reg(Reg::Rflags)?);
    for n in [seg::ES, seg::CS, seg::SS, seg::DS, seg::FS, seg::GS] {
        s.seg[n] = get_segment(f, n as u32)?;
    }
    s.ldtr = get_segment(f, vmcs::LDTR)?;
    s.tr = get_segment(f, vmcs::TR)?;
    s.gdtr = get_table(f, vmcs::GDTR)?;
    s.idtr = get_table(f, vmcs::IDTR)?;
    // The bits in the masks are as the guest has written them last, which it cannot do without an exit.
    let masked = |real: u64, seen: u64, mask: u64| real & !mask | seen & mask;
    s.cr0 = masked(f.field(guest::CR0)?, f.field(shadow::CR0)?, CR0_ALWAYS | CR0_CACHES);
    s.cr4 = masked(f.field(guest::CR4)?, f.field(shadow::CR4)?, CR4_ALWAYS);
    s.cr3 = f.field(guest::CR3)?;
    s.cr2 = f.reg(Reg::Cr2)?;
    let msr = &mut s.msr;
    msr.efer = f.field(guest::EFER)?;
    msr.pat = f.field(guest::PAT)?;
    msr.debugctl = f.field(guest::DEBUGCTL)?;
    msr.sysenter_cs = f.field(guest::SYSENTER_CS)?;
    msr.sysenter_esp = f.field(guest::SYSENTER_ESP)?;
    msr.sysenter_eip = f.field(guest::SYSENTER_EIP)?;
    for n in NATIVE {
        *native(msr, n) = f.msr(n)?;
    }
    if has_pdptes(s) {
        for (n, entry) in (0..).zip(&mut s.pdpte) {
            *entry = f.field(guest::PDPTE0 + 2 * n)?;
        }
    }
    for (reg, n) in [(Reg::Dr0, 0), (Reg::Dr1, 1), (Reg::Dr2, 2), (Reg::Dr3, 3), (Reg::Dr6, 6)] {
        s.dr[n] = f.reg(reg)?;
    }
    s.dr[7] = f.field(guest::DR7)?;
    if mask != 0 {
        s.xcr0 = f.reg(Reg::Xcr0)?;
    }
    let mut area = [0; xsave::SIZE];
    f.xsave(&mut area)?;
    xsave::set_area(s, &area, mask);
    save_events(f, s)
}

/// What was being delivered when it exited is delivered again; software interrupts are executed again.
fn save_events(f: &dyn Framework, s: &mut State) -> Result<(), HvError> {
    let held = f.field(guest::INTERRUPTIBILITY)?;
    s.nmi_blocked = held & blocking::NMI != 0;
    s.shadow = match held {
        h if h & blocking::MOV_SS != 0 => Shadow::MovSs,
        h if h & blocking::STI != 0 => Shadow::Sti,
        _ => Shadow::None,
    };
    // An entry that did not come to pass has its event still.
    let (mut info, mut error) = (f.field(event::ENTRY)?, event::ENTRY_ERROR);
    if info & event::VALID == 0 {
        (info, error) = (f.field(event::VECTORING)?, event::VECTORING_ERROR);
    }
    let error = match info & event::HAS_ERROR {
        0 => None,
        _ => Some(f.field(error)? as u32),
    };
    let kind = match info >> 8 & 7 {
        _ if info & event::VALID == 0 => None,
        event::EXTERNAL => Some(EventKind::External),
        event::NMI => Some(EventKind::Nmi),
        event::EXCEPTION => Some(EventKind::Exception),
        _ => None,
    };
    s.pending = kind.map(|kind| Event { vector: info as u8, kind, error });
    if s.pending.is_some() {
        // An NMI that is delivered again is not blocked by itself.
        s.nmi_blocked &= kind != Some(EventKind::Nmi);
        s.shadow = Shadow::Event;
    }
    Ok(())
}
