use super::*;
use iced_x86::code_asm::*;

#[test]
fn an_interrupt_gate_clears_if_and_a_trap_gate_does_not() {
    for (attr, cleared) in [(0xee, true), (0xef, false)] {
        let mut r = Rig::protected();
        r.idt(0x40, gate(CODE0, handler(0x40), attr, 0));
        r.cpu.state.rflags |= fl::IF | fl::NT;
        r.cpu.sync_all();
        r.code(32, |a| a.int(0x40));
        assert_eq!(r.vector(), 0x40);
        assert_eq!(r.rsp(), STACK0 - 12);
        assert_eq!((r.stack32(0), r.stack32(1)), (CODE as u32 + 2, u32::from(CODE0)));
        assert_eq!(r.stack32(2), 0x4202);
        assert_eq!(r.cpu.state.rflags & fl::IF == 0, cleared);
        assert_eq!(r.cpu.state.rflags & fl::NT, 0);
    }
}

#[test]
fn an_interrupt_from_ring_3_takes_the_stack_of_the_tss_and_iret_goes_back() {
    let mut r = Rig::protected();
    r.ring(3);
    r.cpu.state.rflags |= fl::IF;
    r.code(32, |a| a.int(0x40));
    assert_eq!(r.vector(), 0x40);
    assert_eq!(r.cpu.state.cpl, 0);
    assert_eq!((r.sel(seg::CS), r.sel(seg::SS)), (CODE0, DATA0));
    assert_eq!(r.rsp(), STACK0 - 20);
    let frame = [0, 1, 2, 3, 4].map(|n| r.stack32(n));
    assert_eq!(frame, [CODE as u32 + 2, u32::from(CODE3), 0x202, STACK3 as u32, u32::from(DATA3)]);

    let mut r = Rig::protected();
    r.ring(3);
    r.write8(handler(0x40), 0xcf);
    r.code(32, |a| {
        a.int(0x40)?;
        a.mov(ebx, 7)?;
        a.ud2()
    });
    assert_eq!(r.vector(), 6);
    assert_eq!(r.cpu.state.gpr[gpr::RBX], 7);
    assert_eq!(r.stack32(1), u32::from(CODE3));
    assert_eq!(r.stack32(3), STACK3 as u32);
}

#[test]
fn a_16_bit_gate_pushes_words() {
    let mut r = Rig::protected();
    r.ring(3);
    // The handler must be within 64 KiB.
    r.write8(0x500, 0xf4);
    r.idt(0x40, gate(CODE0, 0x500, 0xe6, 0));
    r.code(32, |a| a.int(0x40));
    assert_eq!(r.run(), Exit::Halt);
    assert_eq!(r.rip(), 0x501);
    assert_eq!(r.rsp(), STACK0 - 10);
    assert_eq!(r.read16(STACK0 - 10), 2);
    assert_eq!(r.read16(STACK0 - 4), STACK3 as u16);
    assert_eq!(r.read16(STACK0 - 2), DATA3);
}

#[test]
fn int_needs_the_privilege_of_its_gate_and_external_interrupts_do_not() {
    let mut r = Rig::protected();
    r.ring(3);
    r.cpu.state.rflags |= fl::IF;
    r.cpu.sync_all();
    for v in 0..256 {
        r.idt(v, gate(CODE0, handler(v), 0x8e, 0));
    }
    r.code(32, |a| a.int(0x40));
    assert_eq!(r.vector(), 13);
    assert_eq!((r.stack32(0), r.stack32(1)), (0x40 * 8 + 2, CODE as u32));

    r.ring(3);
    r.cpu.state.gpr[gpr::RIP] = CODE;
    r.cpu.state.activity = crate::state::Activity::Running;
    r.cpu.state.rflags |= fl::IF;
    r.cpu.sync_all();
    r.cpu.events.raise(crate::board::EV_INTR);
    assert_eq!(r.vector(), 0x31);
}

#[test]
fn a_conforming_handler_runs_at_the_privilege_of_the_interrupted_code() {
    let mut r = Rig::protected();
    r.ring(3);
    r.idt(0x40, gate(CONFORMING, handler(0x40), 0xee, 0));
    r.write8(handler(0x40), 0x0f);
    r.write8(handler(0x40) + 1, 0x0b);
    r.code(32, |a| a.int(0x40));
    assert_eq!(r.vector(), 6);
    // #UD in the handler at CPL 3, on the user's stack.
    assert_eq!(r.stack32(0), handler(0x40) as u32);
    assert_eq!(r.stack32(1), u32::from(CONFORMING | 3));
    assert_eq!(r.stack32(3), STACK3 as u32 - 12);
}

#[test]
fn a_call_gate_copies_parameters_to_the_inner_stack_and_retf_goes_back() {
    let mut r = Rig::protected();
    r.ring(3);
    r.write64(GDT + u64::from(GATE_SEL), gate(CODE0, handler(0xf0), 0xec, 2));
    r.code(32, |a| {
        a.push(0x1111)?;
        a.push(0x2222)?;
        a.db(&[0x9a, 0, 0, 0, 0, GATE_SEL as u8 | 3, 0])?;
        a.ud2()
    });
    assert_eq!(r.vector(), 0xf0);
    assert_eq!(r.cpu.state.cpl, 0);
    let frame = [0, 1, 2, 3, 4, 5].map(|n| r.stack32(n));
    let ret = r.stack32(0);
    assert_eq!(frame, [ret, u32::from(CODE3), 0x2222, 0x1111, STACK3 as u32 - 8, u32::from(DATA3)]);

    // RETF 8 releases the parameters on both stacks; DS of ring 0 is made null.
    r.write8(handler(0xf0), 0xca);
    r.write16(handler(0xf0) + 1, 8);
    r.cpu.state.gpr[gpr::RIP] = handler(0xf0);
    r.cpu.state.activity = crate::state::Activity::Running;
    r.cpu.load_segment(seg::DS, DATA0).unwrap();
    assert_eq!(r.vector(), 6);
    assert_eq!(r.stack32(0), ret);
    assert_eq!(r.stack32(3), STACK3 as u32);
    assert_eq!(r.sel(seg::DS), 0);
    assert_eq!(r.sel(seg::ES), DATA3);
}

#[test]
fn a_jump_through_a_call_gate_may_not_change_privilege() {
    let mut r = Rig::protected();
    r.ring(3);
    r.bytes(&[0xea, 0, 0, 0, 0, GATE_SEL as u8 | 3, 0]);
    assert_eq!(r.vector(), 13);
    assert_eq!(r.stack32(0), u32::from(CODE0));
}

#[test]
fn interrupts_leave_virtual_8086_mode_with_all_segments_saved_and_iret_goes_back() {
    let mut r = Rig::v86(3);
    for (i, v) in [(seg::ES, 0x10u16), (seg::DS, 0x20), (seg::FS, 0x30), (seg::GS, 0x40)] {
        r.cpu.state.seg[i] = Segment::real(v, 3);
    }
    r.cpu.sync_all();
    r.write8(handler(0x40), 0xcf);
    r.code(16, |a| {
        a.int(0x40)?;
        a.mov(bx, 5)?;
        a.ud2()
    });
    assert_eq!(r.vector(), 6);
    assert_eq!(r.cpu.state.gpr[gpr::RBX], 5);
    assert_eq!(r.rsp(), STACK0 - 36);
    let frame = [0, 1, 2, 3, 4, 5, 6, 7, 8].map(|n| r.stack32(n));
    assert_eq!(frame, [5, 0x1000, 0x3_3202 | fl::RF as u32, STACK3 as u32, 0, 0x10, 0x20, 0x30, 0x40]);
    assert_eq!(r.cpu.state.rflags & fl::VM, 0);
    for i in [seg::ES, seg::DS, seg::FS, seg::GS] {
        assert!(!r.cpu.state.seg[i].usable());
    }
}

#[test]
fn int_in_virtual_8086_mode_needs_iopl_3_or_vme() {
    let mut r = Rig::v86(0);
    r.code(16, |a| a.int(0x40));
    assert_eq!(r.vector(), 13);
    assert_eq!(r.stack32(0), 0);

    // VME with the bit clear: the 8086 program's own handler, which sees VIF as IF.
    let mut r = Rig::v86(0);
    r.cpu.state.cr4 |= cr4::VME;
    r.cpu.state.rflags |= fl::VIF;
    r.write32(TSS + 0x64, 0x88 << 16);
    for i in 0x68..0x88 {
        r.write8(TSS + i, 0);
    }
    r.cpu.sync_all();
    r.code(16, |a| a.int(0x40));
    assert!(r.cpu.step().is_none());
    assert!(r.cpu.state.is_v86());
    assert_eq!((r.sel(seg::CS), r.rip()), (0x2000, 0x400));
    assert_eq!(r.read16(STACK3 - 2), 0x3202);
    assert_eq!(r.cpu.state.rflags & (fl::VIF | fl::IF), fl::IF);

    // The same with the bit set and IOPL 0: #GP(0).
    let mut r = Rig::v86(0);
    r.cpu.state.cr4 |= cr4::VME;
    r.write8(TSS + 0x68 + 8, 1);
    r.cpu.sync_all();
    r.code(16, |a| a.int(0x40));
    assert_eq!(r.vector(), 13);
}

#[test]
fn cli_and_sti_work_on_vif_with_vme_and_fault_without() {
    let mut r = Rig::v86(0);
    r.bytes(&[0xfb]);
    assert_eq!(r.vector(), 13);

    let mut r = Rig::v86(0);
    r.cpu.state.cr4 |= cr4::VME;
    r.cpu.sync_all();
    r.bytes(&[0xfb, 0x9c, 0x5b, 0xfa]);
    r.cpu.step();
    assert_ne!(r.cpu.state.rflags & fl::VIF, 0);
    r.cpu.step();
    r.cpu.step();
    assert_eq!(r.cpu.state.gpr[gpr::RBX] & 0x3200, 0x3200);
    r.cpu.step();
    assert_eq!(r.cpu.state.rflags & (fl::VIF | fl::IF), fl::IF);
}

#[test]
fn far_jumps_and_loads_check_privilege_and_presence() {
    // (instruction, error code, vector)
    let cases: &[(&[u8], u32, u64)] = &[
        (&[0xea, 0, 0, 0, 0, 0, 0], 0, 13),                            // null
        (&[0xea, 0, 0, 0, 0, DATA0 as u8, 0], DATA0 as u32, 13),       // data
        (&[0xea, 0, 0, 0, 0, 0x18, 0], 0x18, 13),                      // DPL 3 from CPL 0
        (&[0xea, 0, 0, 0, 0, 0xf8, 1], 0x1f8, 13),                     // beyond the limit
        (&[0xea, 0, 0, 0, 0, 0x0c, 0], 0x0c, 13),                      // no LDT
        (&[0x66, 0xb8, 0, 0, 0x8e, 0xd0], 0, 13),                      // null SS
        (&[0x66, 0xb8, CODE0 as u8, 0, 0x8e, 0xd0], CODE0 as u32, 13), // code in SS
        (&[0x66, 0xb8, 0x23, 0, 0x8e, 0xd0], 0x20, 13),                // DPL 3 in SS
        (&[0x66, 0xb8, ABSENT as u8, 0, 0x8e, 0xd8], ABSENT as u32, 11),
        (&[0x66, 0xb8, TSS_SEL as u8, 0, 0x8e, 0xd8], TSS_SEL as u32, 13),
        (&[0x66, 0xb8, TSS_SEL as u8, 0, 0x0f, 0, 0xd8], TSS_SEL as u32, 13), // LTR of a busy TSS
        (&[0x66, 0xb8, TSS_SEL as u8, 0, 0x0f, 0, 0xd0], TSS_SEL as u32, 13), // LLDT of a TSS
    ];
    for (code, error, vector) in cases {
        let mut r = Rig::protected();
        r.bytes(code);
        assert_eq!(r.vector(), *vector, "{code:x?}");
        assert_eq!(r.stack32(0), *error, "{code:x?}");
        assert_eq!(r.rsp(), STACK0 - 16);
    }
}

#[test]
fn the_ldt_serves_selectors_with_ti() {
    let mut r = Rig::protected();
    r.write64(LDT + 8, descriptor(DATA, 0xff, 0x92));
    r.write32(DATA + 4, 0x1234);
    r.code(32, |a| {
        a.mov(eax, u32::from(LDT_SEL))?;
        a.lldt(ax)?;
        a.mov(eax, 0x0c)?;
        a.mov(ds, ax)?;
        a.mov(ebx, dword_ptr(4))?;
        a.mov(ecx, dword_ptr(0xfd))?;
        a.hlt()
    });
    assert_eq!(r.vector(), 13);
    assert_eq!(r.cpu.state.gpr[gpr::RBX], 0x1234);
    // Loading set the accessed bit.
    assert_eq!(r.read32(LDT + 12) >> 8 & 0xff, 0x93);
}

#[test]
fn lar_lsl_verr_and_verw_tell_what_may_be_used() {
    let mut r = Rig::protected();
    r.ring(3);
    r.code(32, |a| {
        a.mov(ecx, u32::from(DATA3))?;
        a.lar(eax, ecx)?;
        a.lsl(ebx, ecx)?;
        a.verw(cx)?;
        a.sete(dl)?;
        a.mov(ecx, u32::from(DATA0))?;
        a.lar(esi, ecx)?;
        a.setne(dh)?;
        a.verr(cx)?;
        a.ud2()
    });
    r.cpu.state.gpr[gpr::RDX] = 0;
    assert_eq!(r.vector(), 6);
    let g = &r.cpu.state.gpr;
    // The limit's bits 16-19, which the manual leaves open, are those of the descriptor, as processors have them.
    assert_eq!(g[gpr::RAX], 0xcf_f300);
    assert_eq!(g[gpr::RBX], 0xffff_ffff);
    assert_eq!(g[gpr::RDX], 0x101);
    assert!(!r.cpu.state.zf());
}

#[test]
fn the_io_bitmap_opens_ports_to_ring_3() {
    let mut r = Rig::protected();
    r.ring(3);
    r.code(32, |a| {
        a.mov(al, 0x55)?;
        a.out(7, al)?;
        a.in_(eax, 4)?;
        a.in_(eax, 6)
    });
    // The last one takes ports 6-9, of which 8 and 9 are closed.
    assert_eq!(r.vector(), 13);
    assert_eq!(r.stack32(0), 0);
    assert_eq!(*r.board.writes.lock(), [(7, 1, 0x55)]);
    assert_eq!(r.cpu.state.gpr[gpr::RAX], 0x1234_5604);
}
