//! A vCPU's state as KVM's structures have it, and back: plain functions of data, with nothing lost on the way.
//!
//! Source: Linux' Documentation/virt/kvm/api.rst. The XSAVE area's bytes: [`crate::xsave`].
use crate::xsave;
use kvm_bindings::{
    KVM_SREGS2_FLAGS_PDPTRS_VALID, KVM_VCPUEVENT_VALID_NMI_PENDING, KVM_VCPUEVENT_VALID_SHADOW,
    KVM_X86_SHADOW_INT_MOV_SS, KVM_X86_SHADOW_INT_STI, kvm_debugregs, kvm_dtable, kvm_regs, kvm_segment,
    kvm_sregs, kvm_sregs2, kvm_vcpu_events, kvm_xcrs, kvm_xsave,
};
use mynah_cpu::event::{Event, EventKind};
use mynah_cpu::state::{Segment, Shadow, State, Table, cr0, cr4, efer, gpr, seg};

/// The general registers.
pub fn regs(s: &State) -> kvm_regs {
    let g = &s.gpr;
    kvm_regs {
        rax: g[0],
        rcx: g[1],
        rdx: g[2],
        rbx: g[3],
        rsp: g[4],
        rbp: g[5],
        rsi: g[6],
        rdi: g[7],
        r8: g[8],
        r9: g[9],
        r10: g[10],
        r11: g[11],
        r12: g[12],
        r13: g[13],
        r14: g[14],
        r15: g[15],
        rip: g[gpr::RIP],
        rflags: s.rflags(),
    }
}

/// Takes them back.
pub fn set_regs(s: &mut State, r: &kvm_regs) {
    let all = [
        r.rax, r.rcx, r.rdx, r.rbx, r.rsp, r.rbp, r.rsi, r.rdi, r.r8, r.r9, r.r10, r.r11, r.r12, r.r13,
        r.r14, r.r15,
    ];
    s.gpr[..16].copy_from_slice(&all);
    s.gpr[gpr::RIP] = r.rip;
    s.set_rflags(r.rflags);
}

fn segment(s: &Segment) -> kvm_segment {
    let a = s.attr;
    let bit = |n: u32| (a >> n & 1) as u8;
    kvm_segment {
        base: s.base,
        limit: s.limit,
        selector: s.sel,
        type_: (a & 15) as u8,
        s: bit(4),
        dpl: (a >> 5 & 3) as u8,
        present: bit(7),
        avl: bit(12),
        l: bit(13),
        db: bit(14),
        g: bit(15),
        unusable: bit(16),
        ..Default::default()
    }
}

fn set_segment(to: &mut Segment, k: &kvm_segment) {
    let bit = |v: u8, n: u32| u32::from(v & 1) << n;
    to.base = k.base;
    to.limit = k.limit;
    to.sel = k.selector;
    to.attr = u32::from(k.type_ & 15)
        | bit(k.s, 4)
        | u32::from(k.dpl & 3) << 5
        | bit(k.present, 7)
        | bit(k.avl, 12)
        | bit(k.l, 13)
        | bit(k.db, 14)
        | bit(k.g, 15)
        | bit(k.unusable, 16);
}

fn table(t: &Table) -> kvm_dtable {
    kvm_dtable { base: t.base, limit: t.limit, ..Default::default() }
}

/// Segment and control registers. CR8 and IA32_APIC_BASE are the board's.
pub fn sregs(s: &State, cr8: u8, apic_base: u64) -> kvm_sregs {
    kvm_sregs {
        es: segment(&s.seg[seg::ES]),
        cs: segment(&s.seg[seg::CS]),
        ss: segment(&s.seg[seg::SS]),
        ds: segment(&s.seg[seg::DS]),
        fs: segment(&s.seg[seg::FS]),
        gs: segment(&s.seg[seg::GS]),
        tr: segment(&s.tr),
        ldt: segment(&s.ldtr),
        gdt: table(&s.gdtr),
        idt: table(&s.idtr),
        cr0: s.cr0,
        cr2: s.cr2,
        cr3: s.cr3,
        cr4: s.cr4,
        cr8: cr8.into(),
        efer: s.msr.efer,
        apic_base,
        ..Default::default()
    }
}

/// PAE paging, whose PDPTEs are registers (SDM volume 3A, 4.4.1).
pub fn has_pdptes(s: &State) -> bool {
    s.cr0 & cr0::PG != 0 && s.cr4 & cr4::PAE != 0 && s.msr.efer & efer::LMA == 0
}

/// `k` with the PDPTEs.
pub fn with_pdptes(k: &kvm_sregs, s: &State) -> kvm_sregs2 {
    kvm_sregs2 {
        cs: k.cs,
        ds: k.ds,
        es: k.es,
        fs: k.fs,
        gs: k.gs,
        ss: k.ss,
        tr: k.tr,
        ldt: k.ldt,
        gdt: k.gdt,
        idt: k.idt,
        cr0: k.cr0,
        cr2: k.cr2,
        cr3: k.cr3,
        cr4: k.cr4,
        cr8: k.cr8,
        efer: k.efer,
        apic_base: k.apic_base,
        flags: KVM_SREGS2_FLAGS_PDPTRS_VALID.into(),
        pdptrs: s.pdpte,
    }
}

/// Takes the PDPTEs back, if they are there.
pub fn set_pdptes(s: &mut State, k: &kvm_sregs2) {
    if k.flags & u64::from(KVM_SREGS2_FLAGS_PDPTRS_VALID) != 0 {
        s.pdpte = k.pdptrs;
    }
}

/// Takes them back, but for what is the board's.
pub fn set_sregs(s: &mut State, k: &kvm_sregs) {
    let segments = [
        (seg::ES, &k.es),
        (seg::CS, &k.cs),
        (seg::SS, &k.ss),
        (seg::DS, &k.ds),
        (seg::FS, &k.fs),
        (seg::GS, &k.gs),
    ];
    for (i, from) in segments {
        set_segment(&mut s.seg[i], from);
    }
    set_segment(&mut s.tr, &k.tr);
    set_segment(&mut s.ldtr, &k.ldt);
    s.gdtr = Table { base: k.gdt.base, limit: k.gdt.limit };
    s.idtr = Table { base: k.idt.base, limit: k.idt.limit };
    (s.cr0, s.cr2, s.cr3, s.cr4, s.msr.efer) = (k.cr0, k.cr2, k.cr3, k.cr4, k.efer);
    s.cpl = s.seg[seg::SS].dpl();
}

/// The x87 unit, the vector registers and PKRU, as far as the model has them (`mask`: what XCR0 may have, or none).
pub fn xsave(s: &State, mask: u64) -> kvm_xsave {
    let mut k = kvm_xsave::default();
    for (word, from) in k.region.iter_mut().zip(xsave::area(s, mask).chunks_exact(4)) {
        *word = u32::from_le_bytes([from[0], from[1], from[2], from[3]]);
    }
    k
}

/// Takes them back.
pub fn set_xsave(s: &mut State, k: &kvm_xsave, mask: u64) {
    let mut bytes = [0; xsave::SIZE];
    for (to, word) in bytes.chunks_exact_mut(4).zip(k.region) {
        to.copy_from_slice(&word.to_le_bytes());
    }
    xsave::set_area(s, &bytes, mask);
}

/// XCR0.
pub fn xcrs(s: &State) -> kvm_xcrs {
    let mut k = kvm_xcrs { nr_xcrs: 1, ..Default::default() };
    k.xcrs[0].xcr = 0;
    k.xcrs[0].value = s.xcr0;
    k
}

/// Takes it back.
pub fn set_xcrs(s: &mut State, k: &kvm_xcrs) {
    let there = &k.xcrs[..(k.nr_xcrs as usize).min(k.xcrs.len())];
    if let Some(x) = there.iter().find(|x| x.xcr == 0) {
        s.xcr0 = x.value;
    }
}

/// The debug registers.
pub fn debug_regs(s: &State) -> kvm_debugregs {
    kvm_debugregs {
        db: [s.dr[0], s.dr[1], s.dr[2], s.dr[3]],
        dr6: s.dr[6],
        dr7: s.dr[7],
        ..Default::default()
    }
}

/// Takes them back.
pub fn set_debug_regs(s: &mut State, k: &kvm_debugregs) {
    s.dr[..4].copy_from_slice(&k.db);
    (s.dr[6], s.dr[7]) = (k.dr6, k.dr7);
}

/// What is delivered before the next instruction, and what is held off.
pub fn events(s: &State) -> kvm_vcpu_events {
    let mut k = kvm_vcpu_events {
        flags: KVM_VCPUEVENT_VALID_NMI_PENDING | KVM_VCPUEVENT_VALID_SHADOW,
        ..Default::default()
    };
    k.nmi.masked = s.nmi_blocked.into();
    k.interrupt.shadow = match s.shadow {
        Shadow::Sti => KVM_X86_SHADOW_INT_STI as u8,
        Shadow::MovSs => KVM_X86_SHADOW_INT_MOV_SS as u8,
        Shadow::None | Shadow::Event => 0,
    };
    if let Some(event) = s.pending {
        match event.kind {
            EventKind::External => (k.interrupt.injected, k.interrupt.nr) = (1, event.vector),
            EventKind::Nmi => k.nmi.injected = 1,
            _ => {
                (k.exception.injected, k.exception.nr) = (1, event.vector);
                k.exception.has_error_code = event.error.is_some().into();
                k.exception.error_code = event.error.unwrap_or(0);
            }
        }
    }
    k
}

/// Takes them back; the number of NMIs that wait. Software interrupts are executed again.
pub fn set_events(s: &mut State, k: &kvm_vcpu_events) -> u8 {
    s.nmi_blocked = k.nmi.masked != 0;
    s.shadow = if u32::from(k.interrupt.shadow) & KVM_X86_SHADOW_INT_MOV_SS != 0 {
        Shadow::MovSs
    } else if u32::from(k.interrupt.shadow) & KVM_X86_SHADOW_INT_STI != 0 {
        Shadow::Sti
    } else {
        Shadow::None
    };
    let event = |vector, kind, error| Some(Event { vector, kind, error });
    s.pending = if k.exception.injected != 0 || k.exception.pending != 0 {
        let error = (k.exception.has_error_code != 0).then_some(k.exception.error_code);
        event(k.exception.nr, EventKind::Exception, error)
    } else if k.nmi.injected != 0 {
        event(2, EventKind::Nmi, None)
    } else if k.interrupt.injected != 0 && k.interrupt.soft == 0 {
        event(k.interrupt.nr, EventKind::External, None)
    } else {
        None
    };
    if s.pending.is_some() {
        s.shadow = Shadow::Event;
    }
    k.nmi.pending
}

/// The MSRs that KVM may keep, and where they are in the state. IA32_TSC is a matter of its own, and so are the local
/// APIC's.
pub fn msr(m: &mut mynah_cpu::state::Msrs, index: u32) -> Option<&mut u64> {
    use mynah_cpu::sys::msr::index as i;
    Some(match index {
        i::STAR => &mut m.star,
        i::LSTAR => &mut m.lstar,
        i::CSTAR => &mut m.cstar,
        i::FMASK => &mut m.fmask,
        i::KERNEL_GS_BASE => &mut m.kernel_gs_base,
        i::TSC_AUX => &mut m.tsc_aux,
        i::SYSENTER_CS => &mut m.sysenter_cs,
        i::SYSENTER_ESP => &mut m.sysenter_esp,
        i::SYSENTER_EIP => &mut m.sysenter_eip,
        i::PAT => &mut m.pat,
        i::MISC_ENABLE => &mut m.misc_enable,
        i::TSC_ADJUST => &mut m.tsc_adjust,
        i::SPEC_CTRL => &mut m.spec_ctrl,
        i::XSS => &mut m.xss,
        i::MTRR_DEF_TYPE => &mut m.mtrr_def_type,
        i::MTRR_FIX64K => &mut m.mtrr_fixed[0],
        i::MTRR_FIX16K_80000 => &mut m.mtrr_fixed[1],
        i::MTRR_FIX16K_A0000 => &mut m.mtrr_fixed[2],
        i::MTRR_FIX4K_C0000..=i::MTRR_FIX4K_F8000 => {
            &mut m.mtrr_fixed[3 + (index - i::MTRR_FIX4K_C0000) as usize]
        }
        i::MTRR_PHYSBASE0..=i::MTRR_PHYSMASK7 => &mut m.mtrr_var[(index - i::MTRR_PHYSBASE0) as usize],
        i::MCG_STATUS => &mut m.mcg_status,
        i::MCG_CTL => &mut m.mcg_ctl,
        i::MC0_CTL..=i::MC9_MISC => {
            let n = (index - i::MC0_CTL) as usize;
            &mut m.mc[n / 4][n % 4]
        }
        i::DEBUGCTL => &mut m.debugctl,
        i::FEATURE_CONTROL => &mut m.feature_control,
        i::SYSCFG => &mut m.syscfg,
        i::HWCR => &mut m.hwcr,
        i::NB_CFG => &mut m.nb_cfg,
        i::DE_CFG => &mut m.de_cfg,
        i::VIRT_SPEC_CTRL => &mut m.virt_spec_ctrl,
        _ => return None,
    })
}

/// The numbers of all that [`msr`] knows.
pub fn msrs() -> Vec<u32> {
    let mut m = mynah_cpu::state::Msrs::default();
    let ranges = [0..0x1000, 0xc000_0000..0xc000_0200, 0xc001_0000..0xc001_2000];
    ranges.into_iter().flatten().filter(|&index| msr(&mut m, index).is_some()).collect()
}
