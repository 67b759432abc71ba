use super::*;

/// Fills the 32-bit TSS at TSS2 with a task at `HANDLERS + 0xf00`, on a stack at 7000h.
fn second_task(r: &mut Rig, cs: u16, ss: u16) {
    r.write32(TSS2 + 0x20, handler(0xf0) as u32);
    r.write32(TSS2 + 0x24, 0x2);
    r.write32(TSS2 + 0x28, 0xaaaa_0001);
    r.write32(TSS2 + 0x38, 0x7000);
    for (i, s) in [ss, cs, ss, ss, 0, 0].into_iter().enumerate() {
        r.write32(TSS2 + 0x48 + 4 * i as u64, u32::from(s));
    }
}

#[test]
fn a_call_nests_a_task_and_iret_returns() {
    let mut r = Rig::protected();
    second_task(&mut r, CODE0, DATA0);
    r.cpu.state.gpr[gpr::RBX] = 0xb0b0;
    r.bytes(&[0x9a, 0, 0, 0, 0, TSS2_SEL as u8, 0, 0x0f, 0x0b]);
    assert_eq!(r.vector(), 0xf0);
    let s = &r.cpu.state;
    assert_eq!(s.tr.sel, TSS2_SEL);
    assert_eq!((s.gpr[gpr::RAX], s.gpr[gpr::RSP]), (0xaaaa_0001, 0x7000));
    assert_ne!(s.rflags & fl::NT, 0);
    assert_ne!(s.cr0 & cr0::TS, 0);
    assert_eq!(r.read16(TSS2), TSS_SEL);
    assert_eq!((r.gdt_type(TSS_SEL), r.gdt_type(TSS2_SEL)), (11, 11));
    assert_eq!(r.read32(TSS + 0x20), CODE as u32 + 7);
    assert_eq!(r.read32(TSS + 0x34), 0xb0b0);

    // IRET: back behind the CALL, the nested task no longer busy, its EIP that after the IRET.
    r.write8(handler(0xf0) + 1, 0xcf);
    r.cpu.state.activity = crate::state::Activity::Running;
    assert_eq!(r.vector(), 6);
    assert_eq!(r.cpu.state.tr.sel, TSS_SEL);
    assert_eq!(r.cpu.state.gpr[gpr::RBX], 0xb0b0);
    assert_eq!(r.stack32(0), CODE as u32 + 7);
    assert_eq!((r.gdt_type(TSS_SEL), r.gdt_type(TSS2_SEL)), (11, 9));
    assert_eq!(r.read32(TSS2 + 0x20), handler(0xf0) as u32 + 2);
    assert_eq!(r.read32(TSS2 + 0x24) & fl::NT as u32, 0);
}

#[test]
fn a_jump_leaves_the_old_task_available_and_goes_through_task_gates_too() {
    for sel in [TSS2_SEL, TASK_GATE_SEL] {
        let mut r = Rig::protected();
        second_task(&mut r, CODE0, DATA0);
        r.bytes(&[0xea, 0, 0, 0, 0, sel as u8, 0]);
        assert_eq!(r.vector(), 0xf0);
        assert_eq!((r.gdt_type(TSS_SEL), r.gdt_type(TSS2_SEL)), (9, 11));
        assert_eq!(r.cpu.state.rflags & fl::NT, 0);
    }
}

#[test]
fn an_exception_through_a_task_gate_pushes_its_error_code_on_the_new_stack() {
    let mut r = Rig::protected();
    second_task(&mut r, CODE0, DATA0);
    r.idt(13, gate(TSS2_SEL, 0, 0x85, 0));
    // MOV DS of a selector beyond the table.
    r.bytes(&[0x66, 0xb8, 0xf8, 0x01, 0x8e, 0xd8]);
    assert_eq!(r.vector(), 0xf0);
    assert_eq!(r.rsp(), 0x7000 - 4);
    assert_eq!(r.stack32(0), 0x1f8);
    assert_eq!(r.read32(TSS + 0x20), CODE as u32 + 4);
    assert_ne!(r.read32(TSS + 0x24) & fl::RF as u32, 0);
}

#[test]
fn a_task_whose_segments_are_bad_faults_in_its_own_context() {
    let mut r = Rig::protected();
    second_task(&mut r, CODE0, DATA0);
    r.write32(TSS2 + 0x48, u32::from(TSS_SEL)); // ES
    r.bytes(&[0xea, 0, 0, 0, 0, TSS2_SEL as u8, 0]);
    assert_eq!(r.vector(), 10);
    assert_eq!(r.cpu.state.tr.sel, TSS2_SEL);
    assert_eq!(r.rsp(), 0x7000 - 16);
    assert_eq!((r.stack32(0), r.stack32(1)), (u32::from(TSS_SEL), handler(0xf0) as u32));
}

#[test]
fn a_tss_that_is_too_short_or_busy_faults_before_the_switch() {
    let mut r = Rig::protected();
    r.write64(GDT + u64::from(TSS2_SEL), descriptor(TSS2, 0x66, 0x89));
    r.bytes(&[0xea, 0, 0, 0, 0, TSS2_SEL as u8, 0]);
    assert_eq!(r.vector(), 10);
    assert_eq!((r.stack32(0), r.stack32(1)), (u32::from(TSS2_SEL), CODE as u32));
    assert_eq!(r.cpu.state.tr.sel, TSS_SEL);

    let mut r = Rig::protected();
    r.bytes(&[0xea, 0, 0, 0, 0, TSS_SEL as u8, 0]);
    assert_eq!(r.vector(), 13);
    assert_eq!(r.stack32(0), u32::from(TSS_SEL));
}

#[test]
fn the_t_flag_traps_before_the_first_instruction_of_the_task() {
    let mut r = Rig::protected();
    second_task(&mut r, CODE0, DATA0);
    r.write16(TSS2 + 0x64, 1);
    r.bytes(&[0xea, 0, 0, 0, 0, TSS2_SEL as u8, 0]);
    assert_eq!(r.vector(), 1);
    assert_eq!(r.stack32(0), handler(0xf0) as u32);
    assert_ne!(r.cpu.state.dr[6] & 1 << 15, 0);
}

#[test]
fn a_16_bit_task_saves_and_loads_words() {
    let mut r = Rig::protected();
    r.write8(0x500, 0xf4);
    r.write16(TSS16 + 0x0e, 0x500);
    r.write16(TSS16 + 0x10, 2);
    r.write16(TSS16 + 0x12, 0x4321);
    r.write16(TSS16 + 0x1a, 0x7000);
    for (i, s) in [DATA0, CODE0, DATA0, DATA0].into_iter().enumerate() {
        r.write16(TSS16 + 0x22 + 2 * i as u64, s);
    }
    r.bytes(&[0x9a, 0, 0, 0, 0, TSS16_SEL as u8, 0]);
    assert_eq!(r.run(), Exit::Halt);
    assert_eq!(r.rip(), 0x501);
    assert_eq!(r.cpu.state.gpr[gpr::RAX] & 0xffff, 0x4321);
    assert_eq!(r.read16(TSS16), TSS_SEL);
    assert_eq!((r.sel(seg::FS), r.cpu.state.seg[seg::FS].usable()), (0, false));
}

#[test]
fn a_task_may_run_in_virtual_8086_mode() {
    let mut r = Rig::protected();
    second_task(&mut r, 0x2000, 0);
    r.write32(TSS2 + 0x20, 0xf00);
    r.write32(TSS2 + 0x24, (fl::VM | 2) as u32);
    r.write8(handler(0xf0), 0x0f);
    r.write8(handler(0xf0) + 1, 0x0b);
    // #UD in the virtual-8086 task goes to ring 0 on the stack that its TSS names.
    r.write32(TSS2 + 4, STACK0 as u32);
    r.write32(TSS2 + 8, u32::from(DATA0));
    r.bytes(&[0xea, 0, 0, 0, 0, TSS2_SEL as u8, 0]);
    assert_eq!(r.vector(), 6);
    assert_eq!((r.stack32(0), r.stack32(1)), (0xf00, 0x2000));
    assert_ne!(r.stack32(2) & fl::VM as u32, 0);
    assert_eq!(r.rsp(), STACK0 - 36);
}
