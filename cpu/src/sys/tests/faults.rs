use super::*;
use iced_x86::code_asm::*;

#[test]
fn two_contributory_faults_make_a_double_fault() {
    let mut r = Rig::protected();
    // #GP's gate is absent: #GP, then #NP.
    r.idt(13, gate(CODE0, handler(13), 0x0e, 0));
    r.bytes(&[0x66, 0xb8, 0xf8, 0x01, 0x8e, 0xd8]);
    assert_eq!(r.vector(), 8);
    assert_eq!((r.stack32(0), r.stack32(1)), (0, CODE as u32 + 4));
}

#[test]
fn a_benign_exception_gives_way_to_the_fault_of_its_delivery() {
    let mut r = Rig::protected();
    r.idt(6, gate(CODE0, handler(6), 0x0e, 0));
    r.bytes(&[0x0f, 0x0b]);
    assert_eq!(r.vector(), 11);
    // EXT, since #UD is not asked for.
    assert_eq!(r.stack32(0), 6 * 8 + 2 + 1);

    let mut r = Rig::protected();
    r.idt(0x40, gate(CODE0, handler(0x40), 0x6e, 0));
    r.code(32, |a| a.int(0x40));
    assert_eq!(r.vector(), 11);
    assert_eq!((r.stack32(0), r.stack32(1)), (0x40 * 8 + 2, CODE as u32));
}

#[test]
fn a_fault_in_delivering_a_double_fault_shuts_down_and_leaves_the_state() {
    let mut r = Rig::protected();
    r.cpu.state.idtr.limit = 0;
    r.cpu.state.gpr[gpr::RBX] = 77;
    r.bytes(&[0x0f, 0x0b]);
    assert_eq!(r.run(), Exit::Shutdown);
    assert_eq!((r.rip(), r.rsp(), r.cpu.state.gpr[gpr::RBX]), (CODE, STACK0, 77));
}

#[test]
fn a_page_fault_has_cr2_and_an_error_code_and_a_second_one_doubles() {
    let mut r = Rig::long_user();
    r.code(64, |a| {
        a.mov(rax, 0x1234_5678_0000u64)?;
        a.mov(qword_ptr(rax), rax)
    });
    assert_eq!(r.vector(), 14);
    assert_eq!(r.cpu.state.cr2, 0x1234_5678_0000);
    assert_eq!((r.stack64(0), r.stack64(1)), (6, CODE + 10));
    assert_ne!(r.stack64(3) & fl::RF, 0);

    // The stack of the handler is not mapped: #PF in delivering #PF.
    let mut r = Rig::long_user();
    r.write64(TSS + 4, 0x7000_0000_0000);
    r.write64(IDT + 8 * 16, gate(CODE64, handler(8), 0x8e, 1));
    r.code(64, |a| a.mov(rax, qword_ptr(0x4000_0000)));
    assert_eq!(r.vector(), 8);
    assert_eq!(r.rsp(), IST1 - 48);
    assert_eq!(r.stack64(1), CODE);
    assert_eq!(r.cpu.state.cr2, 0x7000_0000_0000 - 8);
}

#[test]
fn a_stack_fault_of_an_inner_stack_names_its_selector() {
    let mut r = Rig::protected();
    r.ring(3);
    // SS of ring 0 with room for 8 bytes only.
    r.write64(GDT + u64::from(DATA0), descriptor(0, 7, 0x4093));
    r.write32(TSS + 4, 8);
    r.idt(12, gate(TSS2_SEL, 0, 0x85, 0));
    r.write32(TSS2 + 0x20, handler(12) as u32);
    r.write32(TSS2 + 0x38, 0x7000);
    r.write64(GDT + 0x90, descriptor(0, 0xf_ffff, 0xc093));
    for (i, s) in [0x90, CODE0, 0x90, 0x90, 0, 0].into_iter().enumerate() {
        r.write32(TSS2 + 0x48 + 4 * i as u64, u32::from(s));
    }
    r.code(32, |a| a.int(0x40));
    assert_eq!(r.vector(), 12);
    assert_eq!(r.stack32(0), u32::from(DATA0));
}

#[test]
fn a_tss_with_a_bad_stack_raises_ts() {
    let mut r = Rig::protected();
    r.ring(3);
    r.write32(TSS + 8, u32::from(DATA3));
    for v in [8, 10] {
        r.idt(v, gate(TSS2_SEL, 0, 0x85, 0));
    }
    r.write32(TSS2 + 0x20, handler(10) as u32);
    r.write32(TSS2 + 0x38, 0x7000);
    for (i, s) in [DATA0, CODE0, DATA0, DATA0, 0, 0].into_iter().enumerate() {
        r.write32(TSS2 + 0x48 + 4 * i as u64, u32::from(s));
    }
    r.code(32, |a| a.int(0x40));
    assert_eq!(r.vector(), 10);
    assert_eq!(r.stack32(0), u32::from(DATA3 & !3));
}

#[test]
fn single_step_traps_after_each_instruction_and_breakpoints_before_theirs() {
    let mut r = Rig::protected();
    r.cpu.state.rflags |= fl::TF;
    r.cpu.sync_all();
    r.bytes(&[0x90, 0x90]);
    assert_eq!(r.vector(), 1);
    assert_eq!(r.stack32(0), CODE as u32 + 1);
    assert_ne!(r.cpu.state.dr[6] & super::super::debug::DR6_BS, 0);
    assert_eq!(r.cpu.state.rflags & fl::TF, 0);

    let mut r = Rig::protected();
    r.code(32, |a| {
        a.mov(eax, CODE as u32 + 16)?;
        a.mov(dr1, eax)?;
        a.mov(eax, 4)?;
        a.mov(dr7, eax)?;
        a.nops_with_size(16)?;
        a.hlt()
    });
    assert_eq!(r.vector(), 1);
    assert_eq!(r.stack32(0), CODE as u32 + 16);
    assert_eq!(r.cpu.state.dr[6] & 15, 2);
}

#[test]
fn a_data_breakpoint_traps_after_the_access() {
    let mut r = Rig::protected();
    r.cpu.state.dr[0] = DATA + 4;
    r.cpu.state.dr[7] = 0x400 | 2 | 0xd << 16;
    r.cpu.sync_all();
    r.code(32, |a| {
        a.mov(eax, dword_ptr(DATA as u32 + 4))?;
        a.mov(dword_ptr(DATA as u32), eax)?;
        a.mov(byte_ptr(DATA as u32 + 7), al)?;
        a.hlt()
    });
    assert_eq!(r.vector(), 1);
    assert_eq!(r.cpu.state.dr[6] & 15, 1);
    assert_eq!(r.stack32(0), CODE as u32 + 15);
}

#[test]
fn general_detect_faults_on_mov_dr_and_clears_itself() {
    let mut r = Rig::protected();
    r.cpu.state.dr[7] = 0x2400;
    r.code(32, |a| a.mov(eax, dr0));
    assert_eq!(r.vector(), 1);
    assert_eq!(r.stack32(0), CODE as u32);
    assert_ne!(r.cpu.state.dr[6] & super::super::debug::DR6_BD, 0);
    assert_eq!(r.cpu.state.dr[7], 0x400);
}

#[test]
fn dr4_is_dr6_unless_debugging_extensions_are_on() {
    let mut r = Rig::protected();
    r.bytes(&[0x0f, 0x21, 0xe0, 0xf4]);
    assert_eq!(r.run(), Exit::Halt);
    assert_eq!(r.cpu.state.gpr[gpr::RAX], 0xffff_0ff0);
    let mut r = Rig::protected();
    r.cpu.state.cr4 |= cr4::DE;
    r.bytes(&[0x0f, 0x21, 0xe0, 0xf4]);
    assert_eq!(r.vector(), 6);
}

#[test]
fn an_io_breakpoint_traps_after_the_access() {
    let mut r = Rig::protected();
    r.cpu.state.cr4 |= cr4::DE;
    r.cpu.state.dr[2] = 0x80;
    r.cpu.state.dr[7] = 0x400 | 0x20 | 2 << 24;
    r.cpu.sync_all();
    r.code(32, |a| {
        a.out(0x7f, al)?;
        a.out(0x80, al)?;
        a.hlt()
    });
    assert_eq!(r.vector(), 1);
    assert_eq!(r.cpu.state.dr[6] & 15, 4);
    assert_eq!(r.stack32(0), CODE as u32 + 4);
    assert_eq!(r.board.writes.lock().len(), 2);
}
