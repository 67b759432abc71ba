use super::*;
use iced_x86::code_asm::*;

#[test]
fn interrupts_align_the_stack_and_always_push_ss_and_rsp() {
    let mut r = Rig::long();
    r.cpu.state.gpr[gpr::RSP] = STACK0 - 3;
    r.code(64, |a| a.int(0x40));
    assert_eq!(r.vector(), 0x40);
    assert_eq!(r.rsp(), STACK0 - 16 - 40);
    let frame = [0, 1, 2, 3, 4].map(|n| r.stack64(n));
    assert_eq!(frame, [CODE + 2, u64::from(CODE64), 2, STACK0 - 3, u64::from(DATA0)]);
    assert_eq!(r.sel(seg::SS), DATA0);
}

#[test]
fn from_ring_3_ss_is_null_and_iretq_goes_back() {
    let mut r = Rig::long_user();
    r.code(64, |a| a.int(0x40));
    assert_eq!(r.vector(), 0x40);
    assert_eq!((r.cpu.state.cpl, r.sel(seg::SS)), (0, 0));
    assert_eq!(r.rsp(), STACK0 - 40);

    let mut r = Rig::long_user();
    r.write8(handler(0x40), 0x48);
    r.write8(handler(0x40) + 1, 0xcf);
    r.code(64, |a| {
        a.int(0x40)?;
        a.ud2()
    });
    assert_eq!(r.vector(), 6);
    assert_eq!(r.stack64(0), CODE + 2);
    assert_eq!((r.stack64(1), r.stack64(3), r.stack64(4)), (u64::from(CODE64_3), STACK3, u64::from(DATA3L)));
}

#[test]
fn an_ist_stack_is_taken_at_any_privilege() {
    let mut r = Rig::long();
    r.write64(IDT + 0x40 * 16, gate(CODE64, handler(0x40), 0xee, 1));
    r.code(64, |a| a.int(0x40));
    assert_eq!(r.vector(), 0x40);
    assert_eq!(r.rsp(), IST1 - 40);
    assert_eq!(r.stack64(3), STACK0);
}

#[test]
fn gates_to_code_that_is_not_64_bit_or_not_canonical_fault() {
    let mut r = Rig::long();
    r.write64(IDT + 0x40 * 16, gate(CODE0, handler(0x40), 0xee, 0));
    r.code(64, |a| a.int(0x40));
    assert_eq!(r.vector(), 13);
    assert_eq!(r.stack64(0), u64::from(CODE0));

    let mut r = Rig::long();
    r.write64(IDT + 0x40 * 16 + 8, 0x8000);
    r.code(64, |a| a.int(0x40));
    assert_eq!(r.vector(), 13);
    assert_eq!(r.stack64(0), 0);
}

#[test]
fn syscall_and_sysret_swap_rings() {
    let mut r = Rig::long_user();
    let m = &mut r.cpu.state.msr;
    m.star = u64::from(CODE64) << 32 | 0x78 << 48;
    m.lstar = handler(0x50);
    m.fmask = fl::IF | fl::DF;
    r.cpu.state.set_rflags(fl::IF | fl::DF | fl::CF);
    r.cpu.sync_all();
    r.code(64, |a| a.syscall());
    assert_eq!(r.vector(), 0x50);
    let s = &r.cpu.state;
    assert_eq!((s.cpl, r.sel(seg::CS), r.sel(seg::SS)), (0, CODE64, CODE64 + 8));
    assert_eq!((s.gpr[gpr::RCX], s.gpr[gpr::R11]), (CODE + 2, fl::IF | fl::DF | fl::CF | 2));
    assert_eq!(s.rflags(), fl::CF | 2);

    r.write8(handler(0x50) + 1, 0x48);
    r.write16(handler(0x50) + 2, 0x070f);
    r.write16(CODE + 2, 0x0b0f);
    r.cpu.state.activity = crate::state::Activity::Running;
    assert_eq!(r.vector(), 6);
    assert_eq!(r.stack64(1), 0x8b);
    assert_eq!(r.stack64(4), 0x83);
    assert_eq!(r.stack64(2) & (fl::IF | fl::DF | fl::CF), fl::IF | fl::DF | fl::CF);
    assert_eq!(r.stack64(3), STACK3);
}

#[test]
fn syscall_without_sce_and_sysenter_on_amd_are_undefined() {
    let mut r = Rig::long_user();
    r.cpu.state.msr.efer &= !efer::SCE;
    r.code(64, |a| a.syscall());
    assert_eq!(r.vector(), 6);
    let mut r = Rig::long();
    r.cpu.state.msr.sysenter_cs = 8;
    r.code(64, |a| a.sysenter());
    assert_eq!(r.vector(), 6);
}

#[test]
fn sysenter_and_sysexit_work_in_protected_mode() {
    let mut r = Rig::protected();
    r.ring(3);
    let m = &mut r.cpu.state.msr;
    (m.sysenter_cs, m.sysenter_esp, m.sysenter_eip) = (u64::from(CODE0), 0x7000, handler(0x50));
    r.code(32, |a| a.sysenter());
    assert_eq!(r.vector(), 0x50);
    assert_eq!((r.sel(seg::CS), r.sel(seg::SS), r.rsp(), r.cpu.state.cpl), (CODE0, DATA0, 0x7000, 0));

    r.write16(handler(0x50) + 1, 0x350f);
    r.write16(CODE, 0x0b0f);
    r.cpu.state.gpr[gpr::RDX] = CODE;
    r.cpu.state.gpr[gpr::RCX] = STACK3 - 64;
    r.cpu.state.activity = crate::state::Activity::Running;
    assert_eq!(r.vector(), 6);
    assert_eq!((r.stack32(1), r.stack32(3), r.stack32(4)), (0x1b, STACK3 as u32 - 64, 0x23));
}

#[test]
fn a_64_bit_call_gate_changes_to_the_stack_of_the_tss() {
    let mut r = Rig::long_user();
    r.write64(GDT + u64::from(GATE_SEL), gate(CODE64, handler(0xf0), 0xec, 0));
    r.write64(GDT + u64::from(GATE_SEL) + 8, 0);
    r.write64(DATA, u64::from(GATE_SEL | 3) << 32);
    r.bytes(&[0xff, 0x1c, 0x25, 0, 0, 6, 0]); // CALL FAR [DATA]
    assert_eq!(r.vector(), 0xf0);
    assert_eq!(r.rsp(), STACK0 - 32);
    let frame = [0, 1, 2, 3].map(|n| r.stack64(n));
    assert_eq!(frame, [CODE + 7, u64::from(CODE64_3), STACK3, u64::from(DATA3L)]);
    assert_eq!(r.sel(seg::SS), 0);
}

#[test]
fn long_mode_is_entered_by_paging_and_left_from_compatibility_mode() {
    let mut r = Rig::protected();
    r.write64(TABLES, (TABLES + 0x1000) | 7);
    r.write64(TABLES + 0x1000, (TABLES + 0x2000) | 7);
    r.write64(TABLES + 0x2000, 0x87);
    r.code(32, |a| {
        a.mov(eax, cr4)?;
        a.or(eax, 0x20)?;
        a.mov(cr4, eax)?;
        a.mov(eax, TABLES as u32)?;
        a.mov(cr3, eax)?;
        a.mov(ecx, 0xc000_0080u32)?;
        a.mov(eax, 0x100)?;
        a.xor(edx, edx)?;
        a.wrmsr()?;
        a.mov(eax, cr0)?;
        a.or(eax, 0x8000_0000u32 as i32)?;
        a.mov(cr0, eax)?;
        a.rdmsr()?;
        a.hlt()
    });
    assert_eq!(r.run(), Exit::Halt);
    assert_eq!(r.cpu.state.gpr[gpr::RAX], 0x500);
    assert!(r.cpu.state.is_long() && !r.cpu.state.is_long64());
    // 64-bit code by a far jump.
    let at = r.rip();
    r.put(at, &[0xea, 0, 0, 2, 0, CODE64 as u8, 0]);
    r.put(handler(0), &[0x48, 0xff, 0xc0, 0xf4]);
    r.cpu.state.activity = crate::state::Activity::Running;
    assert_eq!(r.run(), Exit::Halt);
    assert!(r.cpu.state.is_long64());
    assert_eq!(r.cpu.state.gpr[gpr::RAX], 0x501);
    assert!(r.cpu.write_cr0(cr0::PE).is_err());
}

#[test]
fn fs_and_gs_bases_are_reached_by_instructions_and_swapgs() {
    let mut r = Rig::long();
    r.cpu.state.cr4 |= cr4::FSGSBASE;
    r.cpu.state.msr.kernel_gs_base = DATA;
    r.write64(DATA + 8, 0x1122_3344_5566_7788);
    r.cpu.sync_all();
    r.code(64, |a| {
        a.swapgs()?;
        a.mov(rax, qword_ptr(8).gs())?;
        a.rdgsbase(rbx)?;
        a.mov(rcx, 0x8000_0000_0000u64)?;
        a.wrfsbase(rcx)
    });
    assert_eq!(r.vector(), 13);
    assert_eq!(r.cpu.state.gpr[gpr::RAX], 0x1122_3344_5566_7788);
    assert_eq!(r.cpu.state.gpr[gpr::RBX], DATA);
}
