use super::*;
use crate::state::Activity;

#[test]
fn int_pushes_flags_cs_ip_and_clears_if_and_tf() {
    let mut r = Rig::real();
    r.cpu.state.rflags |= fl::IF;
    r.cpu.sync_all();
    r.code(16, |a| a.int(0x42));
    assert_eq!(r.vector(), 0x42);
    assert_eq!(r.rsp(), STACK0 - 6);
    assert_eq!(r.read16(STACK0 - 6), 2);
    assert_eq!(r.read16(STACK0 - 4), 0x1000);
    assert_eq!(r.read16(STACK0 - 2), 0x202);
    assert_eq!(r.cpu.state.rflags & fl::IF, 0);
}

#[test]
fn iret_undoes_int() {
    let mut r = Rig::real();
    r.write8(handler(0x42), 0xcf);
    r.cpu.state.set_rflags(fl::IF | fl::CF | fl::DF);
    r.cpu.sync_all();
    r.code(16, |a| {
        a.int(0x42)?;
        a.hlt()
    });
    assert_eq!(r.run(), Exit::Halt);
    assert_eq!((r.rip(), r.rsp()), (3, STACK0));
    assert_eq!(r.cpu.state.rflags(), fl::IF | fl::CF | fl::DF | 2);
}

#[test]
fn a_fault_pushes_the_address_of_its_instruction_and_no_error_code() {
    let mut r = Rig::real();
    // MOV AX, [FFFFh] crosses the segment limit: #GP.
    r.bytes(&[0x90, 0xa1, 0xff, 0xff]);
    assert_eq!(r.vector(), 13);
    assert_eq!(r.rsp(), STACK0 - 6);
    assert_eq!(r.read16(STACK0 - 6), 1);
}

#[test]
fn an_interrupt_table_that_is_too_short_ends_in_shutdown() {
    let mut r = Rig::real();
    r.cpu.state.idtr.limit = 0;
    r.bytes(&[0xcc]);
    assert_eq!(r.run(), Exit::Shutdown);
    assert_eq!(r.rip(), 0);
}

#[test]
fn far_call_and_return_go_through_segments() {
    let mut r = Rig::real();
    // CALL 2000h:0010h, where RETF stands.
    r.write8(handler(1), 0xcb);
    r.bytes(&[0x9a, 0x10, 0x00, 0x00, 0x20, 0xf4]);
    assert_eq!(r.run(), Exit::Halt);
    assert_eq!((r.rip(), r.sel(seg::CS), r.rsp()), (6, 0x1000, STACK0));
}

#[test]
fn limits_loaded_in_protected_mode_stay_in_real_mode() {
    let mut r = Rig::real();
    r.write64(GDT + 0x10, descriptor(0, 0xf_ffff, 0xc093));
    r.cpu.state.gdtr = Table { base: GDT, limit: 0x1f };
    r.write32(0x12_3456, 0xcafe_babe);
    r.code(16, |a| {
        use iced_x86::code_asm::*;
        a.mov(eax, cr0)?;
        a.or(al, 1)?;
        a.mov(cr0, eax)?;
        a.mov(bx, 0x10)?;
        a.mov(ds, bx)?;
        a.and(al, 0xfeu32 as i32)?;
        a.mov(cr0, eax)?;
        a.mov(bx, 0)?;
        a.mov(ds, bx)?;
        a.mov(esi, 0x12_3456)?;
        a.mov(ecx, dword_ptr(esi))?;
        a.hlt()
    });
    assert_eq!(r.run(), Exit::Halt);
    assert!(r.cpu.state.is_real());
    assert_eq!(r.cpu.state.gpr[gpr::RCX], 0xcafe_babe);
}

#[test]
fn mov_ss_holds_off_interrupts_for_one_instruction_and_sti_too() {
    let mut r = Rig::real();
    r.cpu.state.rflags |= fl::IF;
    r.cpu.sync_all();
    r.code(16, |a| {
        use iced_x86::code_asm::*;
        a.mov(ss, ax)?;
        a.mov(sp, 0x7000)?;
        a.hlt()
    });
    r.cpu.step();
    r.cpu.events.raise(crate::board::EV_INTR);
    r.cpu.step();
    assert_eq!(r.rsp(), 0x7000);
    r.cpu.events.take(crate::board::EV_INTR);
    r.cpu.events.raise(crate::board::EV_INTR);
    r.cpu.step();
    assert_eq!(r.read16(0x7000 - 6), 5);

    let mut r = Rig::real();
    r.bytes(&[0xfb, 0x90, 0x90, 0xf4]);
    r.cpu.events.raise(crate::board::EV_INTR);
    r.cpu.step();
    r.cpu.step();
    assert_eq!(r.rip(), 2);
}

#[test]
fn an_interrupt_that_a_late_timer_raises_comes_before_the_time_is_seen() {
    // nop; rdtsc; hlt
    let code = [0x90, 0x0f, 0x31, 0xf4];
    let mut r = Rig::real();
    r.cpu.state.rflags |= fl::IF;
    r.cpu.state.gpr[gpr::RAX] = 7;
    r.cpu.sync_all();
    r.bytes(&code);
    *r.board.late.lock() = Some(r.cpu.events.clone());
    assert_eq!(r.run(), Exit::Halt);
    assert_eq!((r.cpu.state.gpr[gpr::RAX], r.read16(r.rsp())), (7, 1), "it returns to RDTSC");
    // Without IF the time is read, and the interrupt waits.
    let mut r = Rig::real();
    r.bytes(&code);
    *r.board.late.lock() = Some(r.cpu.events.clone());
    assert_eq!(r.run(), Exit::Halt);
    assert_eq!((r.cpu.state.gpr[gpr::RAX], r.rip()), (1000, 4));
}

#[test]
fn nmi_is_blocked_until_iret() {
    let mut r = Rig::real();
    r.write8(handler(2), 0x90);
    r.write8(handler(2) + 1, 0xcf);
    r.bytes(&[0x90, 0x90, 0xf4]);
    r.cpu.events.raise(crate::board::EV_NMI);
    r.cpu.step();
    assert!(r.cpu.state.nmi_blocked);
    r.cpu.events.raise(crate::board::EV_NMI);
    assert_eq!(r.cpu.event_mask & crate::board::EV_NMI, 0);
    while r.cpu.state.nmi_blocked {
        r.cpu.step();
    }
    assert_ne!(r.cpu.event_mask & crate::board::EV_NMI, 0);
    r.cpu.step();
    assert!(r.cpu.state.nmi_blocked);
}

#[test]
fn iret_unblocks_nmi_even_if_it_faults() {
    let mut r = Rig::v86(0);
    r.cpu.state.nmi_blocked = true;
    r.cpu.sync_all();
    r.bytes(&[0xcf]);
    assert_eq!(r.vector(), 13);
    assert!(!r.cpu.state.nmi_blocked);
}

#[test]
fn a_model_without_bmi1_takes_tzcnt_for_bsf() {
    for (model, rcx) in [("qemu64", 7), ("max", 16)] {
        let mut r = Rig::with_model(model);
        r.cpu.state.gpr[gpr::RCX] = 7;
        // TZCNT CX, AX with AX = 0: BSF leaves the destination.
        r.bytes(&[0x31, 0xc0, 0xf3, 0x0f, 0xbc, 0xc8, 0xf4]);
        assert_eq!(r.run(), Exit::Halt);
        assert_eq!(r.cpu.state.gpr[gpr::RCX], rcx, "{model}");
    }
}

#[test]
fn code_that_is_stored_to_dies_only_if_it_changes() {
    let mut r = Rig::real();
    // A boot loader's call of the BIOS: the vector is written into the INT that follows.
    let loader = |r: &mut Rig, vector: u32| {
        r.cpu.state.gpr[gpr::RAX] = vector.into();
        r.cpu.state.gpr[gpr::RIP] = 0;
        r.cpu.state.gpr[gpr::RSP] = STACK0;
        r.cpu.state.seg[seg::CS] = Segment::real(0x1000, 0);
        r.cpu.state.activity = Activity::Running;
        r.cpu.sync_all();
        assert_eq!(r.vector(), u64::from(vector));
        r.cpu.blocks.invalidated
    };
    // MOV CS:[5], AL; INT 0.
    r.bytes(&[0x2e, 0xa2, 0x05, 0x00, 0xcd, 0x00]);
    loader(&mut r, 0x42);
    let before = loader(&mut r, 0x43);
    // The same vector again: nothing has changed.
    assert_eq!(loader(&mut r, 0x43), before);
    assert!(loader(&mut r, 0x44) > before);
}
