//! Pending exceptions, #NM, FERR#, pointers, environments: what a program sees of the unit beyond results.
use super::rig::{OPERAND, Rig};
use crate::decode::decode_op;
use crate::event::{Stop, vector};
use crate::mode::ModeKey;
use crate::state::{F80, Segment, cr0, fl, gpr, seg};
use crate::x87::word::*;

const FLD1: &[u8] = &[0xd9, 0xe8];
const FLDZ: &[u8] = &[0xd9, 0xee];
const FDIVRP: &[u8] = &[0xde, 0xf1];
const FDIV_M32: &[u8] = &[0xd8, 0x36];
const FNSTSW_AX: &[u8] = &[0xdf, 0xe0];
const FNCLEX: &[u8] = &[0xdb, 0xe2];
const WAIT: &[u8] = &[0x9b];

/// A unit with ZE unmasked and 1/0 just tried.
fn divided_by_zero() -> Rig {
    let mut rig = Rig::new();
    rig.cpu.state.fpu.set_control(0x37f & !ZE);
    rig.run(FLD1);
    rig.write(&[0; 4]);
    rig.run(FDIV_M32);
    rig
}

#[test]
fn an_unmasked_exception_is_raised_by_the_next_waiting_instruction() {
    let mut rig = divided_by_zero();
    assert_eq!(rig.cpu.state.fpu.st(0), F80 { mant: 1 << 63, exp: 0x3fff }, "the divisor stays");
    for waiting in [FLD1, WAIT, &[0xd9, 0xd0]] {
        assert_eq!(rig.execute(waiting), Some(Err(Stop::Fault)));
        assert_eq!(rig.cpu.fault.vector, vector::MF);
    }
    rig.run(FNSTSW_AX);
    assert_eq!(rig.cpu.state.gpr[gpr::RAX] as u16 & (ES | B | ZE), ES | B | ZE);
    rig.run(FNCLEX);
    rig.run(WAIT);
    rig.run(FLD1);
}

#[test]
fn without_ne_ferr_goes_to_the_board_and_the_instruction_waits_for_ignne() {
    let mut rig = divided_by_zero();
    rig.cpu.state.cr0 &= !cr0::NE;
    rig.cpu.sync_mode();
    assert!(!*rig.board.ferr.lock());
    assert_eq!(rig.execute(FLD1), Some(Err(Stop::Again)));
    assert!(*rig.board.ferr.lock() && rig.cpu.ferr);
    *rig.board.ignne.lock() = true;
    rig.run(FLD1);
    rig.run(FNCLEX);
    assert!(!*rig.board.ferr.lock() && !rig.cpu.ferr);
}

#[test]
fn ferr_goes_away_with_the_exception_however_it_goes() {
    let pending = || {
        let mut rig = divided_by_zero();
        rig.cpu.state.cr0 &= !cr0::NE;
        rig.cpu.sync_mode();
        assert_eq!(rig.execute(FLD1), Some(Err(Stop::Again)));
        assert!(*rig.board.ferr.lock());
        rig
    };
    // FXRSTOR of an image without one.
    let mut rig = pending();
    rig.cpu.state.cr4 |= crate::state::cr4::OSFXSR;
    let mut image = [0; 512];
    image[0..2].copy_from_slice(&0x37fu16.to_le_bytes());
    image[24..28].copy_from_slice(&0x1f80u32.to_le_bytes());
    rig.write(&image);
    let mut fxrstor = vec![0x0f, 0xae, 0x0e];
    fxrstor.resize(15, 0x90);
    let (op, _) = decode_op(&rig.cpu.model, ModeKey(rig.cpu.mode_key), &fxrstor, 0).unwrap();
    assert_eq!((op.helper)(&mut rig.cpu, &op), Ok(()));
    assert!(!*rig.board.ferr.lock() && !rig.cpu.ferr);
    // RESET.
    let mut rig = pending();
    rig.cpu.reset();
    assert!(!*rig.board.ferr.lock() && !rig.cpu.ferr);
}

#[test]
fn ts_and_em_stop_every_instruction_but_wait_needs_mp_and_ts() {
    let mut rig = Rig::new();
    for (bits, blocked, wait_blocked) in [
        (cr0::TS, true, false),
        (cr0::EM, true, false),
        (cr0::TS | cr0::MP, true, true),
        (cr0::MP, false, false),
    ] {
        rig.cpu.state.cr0 = cr0::PE | cr0::NE | bits;
        rig.cpu.sync_mode();
        for i in [FLDZ, FNCLEX, FNSTSW_AX, &[0xdb, 0xe3], &[0xd9, 0x3e], &[0xd9, 0xf7]] {
            let r = rig.execute(i);
            assert_eq!(r, Some(if blocked { Err(Stop::Fault) } else { Ok(()) }), "{i:02x?}");
            assert!(!blocked || rig.cpu.fault.vector == vector::NM);
        }
        assert_eq!(rig.execute(WAIT).unwrap().is_err(), wait_blocked);
    }
}

#[test]
fn a_fault_in_memory_changes_nothing() {
    let mut rig = Rig::new();
    rig.run(FLD1);
    let s = &mut rig.cpu.state;
    s.seg[seg::DS].limit = 0x1fff;
    let before = s.fpu;
    rig.cpu.mode_key &= !crate::mode::ModeKey::FLAT;
    rig.cpu.sync_segment(seg::DS);
    rig.cpu.sync_mode();
    let memory: [&[u8]; 7] = [
        &[0xd9, 0x06],
        &[0xdd, 0x1e],
        &[0xdb, 0x3e],
        &[0xd8, 0x06],
        &[0xdd, 0x36],
        &[0xdf, 0x36],
        &[0xd9, 0x36],
    ];
    for i in memory {
        assert_eq!(rig.execute(i), Some(Err(Stop::Fault)), "{i:02x?}");
        assert_eq!(rig.cpu.fault.vector, vector::GP);
        assert_eq!(rig.cpu.state.fpu, before, "{i:02x?}");
    }
}

#[test]
fn pointers_and_opcode_name_the_last_instruction_that_is_not_a_control_one() {
    let mut rig = Rig::new();
    rig.run(&[0xd9, 0x06]); // FLD dword [esi]
    let f = rig.cpu.state.fpu;
    assert_eq!((f.fip, f.fcs, f.fop), (0x1234, 0x10, 0x106));
    assert_eq!((f.fdp, f.fds), (OPERAND, 0x20));
    rig.cpu.state.gpr[gpr::RIP] = 0x5678;
    rig.run(&[0xd9, 0x3e]); // FNSTCW
    rig.run(&[0xd9, 0xf7]); // FINCSTP
    assert_eq!(rig.cpu.state.fpu.fip, 0x1234);
    rig.cpu.state.fpu.top = 7;
    rig.run(&[0x64, 0xdc, 0x4e, 0x10]); // FMUL qword [fs:esi+16]
    let f = rig.cpu.state.fpu;
    assert_eq!((f.fip, f.fop, f.fdp, f.fds), (0x5678, 0x44e, OPERAND + 16, 0x28));
    rig.run(&[0xd9, 0xe0]); // FCHS: no operand in memory
    let f = rig.cpu.state.fpu;
    assert_eq!((f.fop, f.fdp), (0x1e0, OPERAND + 16));
    rig.run(&[0xdb, 0xe3]);
    let f = rig.cpu.state.fpu;
    assert_eq!((f.fip, f.fop, f.fdp, f.fcs, f.fds), (0, 0, 0, 0, 0));
}

/// The four environment formats: bytes of the prefix, mode, expected words after the tag word.
#[test]
fn environments_have_the_format_of_the_mode_and_operand_size() {
    let fpu_of = |rig: &mut Rig| {
        let f = &mut rig.cpu.state.fpu;
        (f.fip, f.fcs, f.fdp, f.fds, f.fop) = (0x8765_4321, 0x1111, 0x7654_3210, 0x2222, 0x5a5);
    };
    let words = |b: &[u8]| b.chunks(2).map(|c| u16::from_le_bytes([c[0], c[1]])).collect::<Vec<_>>();
    // Protected, 32 bits.
    let mut rig = Rig::new();
    fpu_of(&mut rig);
    rig.run(&[0xd9, 0x36]);
    let w = words(&rig.read(28));
    assert_eq!(
        w,
        [
            0x37f, 0xffff, 0, 0xffff, 0xffff, 0xffff, 0x4321, 0x8765, 0x1111, 0x5a5, 0x3210, 0x7654, 0x2222,
            0xffff
        ]
    );
    rig.run(&[0xdb, 0xe3]);
    rig.run(&[0xd9, 0x26]);
    let f = rig.cpu.state.fpu;
    assert_eq!((f.fip, f.fcs, f.fdp, f.fds, f.fop), (0x8765_4321, 0x1111, 0x7654_3210, 0x2222, 0x5a5));
    // Protected, 16 bits: no opcode.
    fpu_of(&mut rig);
    rig.run(&[0x66, 0xd9, 0x36]);
    assert_eq!(words(&rig.read(14)), [0x37f, 0, 0xffff, 0x4321, 0x1111, 0x3210, 0x2222]);
    // Real mode: linear addresses.
    rig.cpu.state.cr0 &= !cr0::PE;
    for i in 0..6 {
        rig.cpu.state.seg[i] = Segment::real(0, 0);
    }
    rig.cpu.sync_all();
    fpu_of(&mut rig);
    let f = &mut rig.cpu.state.fpu;
    (f.fip, f.fcs, f.fdp, f.fds) = (0x4321, 0xf000, 0x3210, 0x2222);
    rig.run(&[0xd9, 0x34]); // 16 bits: [si]
    assert_eq!(words(&rig.read(14)), [0x37f, 0, 0xffff, 0x4321, 0xf5a5, 0x5430, 0x2000]);
    rig.run(&[0x66, 0xd9, 0x34]);
    assert_eq!(
        words(&rig.read(28)),
        [0x37f, 0xffff, 0, 0xffff, 0xffff, 0xffff, 0x4321, 0xffff, 0xf5a5, 0, 0x5430, 0xffff, 0x2000, 0]
    );
    rig.run(&[0x66, 0xd9, 0x24]);
    let f = rig.cpu.state.fpu;
    assert_eq!((f.fip, f.fop, f.fdp), (0xf4321, 0x5a5, 0x25430));
}

#[test]
fn fsave_and_frstor_carry_the_whole_unit_in_both_sizes() {
    for prefix in [&[][..], &[0x66]] {
        let mut rig = Rig::new();
        let f = &mut rig.cpu.state.fpu;
        f.set_control(0x27f);
        f.set_status(5 << 11 | C3 | PE);
        f.empty = 0b0010_1000;
        for (p, r) in f.r.iter_mut().enumerate() {
            *r = F80 { mant: 1 << 63 | p as u64, exp: 0x3fff + p as u16 };
        }
        let before = *f;
        rig.run(&[prefix, &[0xdd, 0x36]].concat());
        assert_eq!(rig.cpu.state.fpu.empty, 0xff);
        assert_eq!(rig.cpu.state.fpu.cw, 0x37f);
        rig.run(&[prefix, &[0xdd, 0x26]].concat());
        assert_eq!(rig.cpu.state.fpu, before);
    }
}

#[test]
fn a_control_word_that_unmasks_a_sticky_exception_makes_it_pending() {
    let mut rig = Rig::new();
    rig.run(FLDZ);
    rig.run(FLD1);
    rig.run(FDIVRP); // 1/0, masked
    assert_eq!(rig.cpu.state.fpu.sw & (ZE | ES), ZE);
    rig.write(&(0x37f & !ZE).to_le_bytes());
    rig.run(&[0xd9, 0x2e]);
    assert_eq!(rig.execute(WAIT), Some(Err(Stop::Fault)));
    rig.write(&0x37fu16.to_le_bytes());
    rig.run(FNCLEX);
    rig.run(WAIT);
}

#[test]
fn fcmov_and_fcomi_use_the_lazy_flags() {
    let mut rig = Rig::new();
    rig.run(FLD1);
    rig.run(FLDZ);
    rig.cpu.state.set_arith_flags(fl::OF | fl::SF | fl::AF);
    rig.run(&[0xdb, 0xf1]); // FCOMI: 0 < 1
    assert_eq!(rig.cpu.state.arith_flags(), fl::CF);
    rig.run(&[0xda, 0xc1]); // FCMOVB
    assert_eq!(rig.cpu.state.fpu.st(0).exp, 0x3fff);
    rig.run(&[0xdf, 0xf1]); // FCOMIP: 1 = 1
    assert_eq!(rig.cpu.state.arith_flags(), fl::ZF);
}
