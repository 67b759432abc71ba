use super::*;
use crate::state::{F80, Fpu};
use iced_x86::code_asm::*;

fn filled() -> Rig {
    let mut r = Rig::long();
    r.cpu.state.cr4 |= cr4::OSXSAVE | cr4::OSFXSR | cr4::PKE;
    r.cpu.state.xcr0 = 0x203;
    r.cpu.state.fpu = Fpu::default();
    let f = &mut r.cpu.state.fpu;
    f.top = 3;
    f.empty = !(1 << 3);
    f.r[3] = F80 { mant: 0x8000_0000_0000_0001, exp: 0x3fff };
    f.fip = 0x1122_3344_5566;
    r.cpu.state.xmm[9].set_x(0x99);
    r.cpu.state.mxcsr = 0x1fc0;
    r.cpu.sync_all();
    r
}

fn run(r: &mut Rig, mask: u64, f: impl FnOnce(&mut CodeAssembler) -> Result<(), iced_x86::IcedError>) {
    r.cpu.state.gpr[gpr::RAX] = mask;
    r.cpu.state.gpr[gpr::RDX] = 0;
    r.cpu.state.gpr[gpr::RIP] = CODE;
    r.cpu.state.activity = crate::state::Activity::Running;
    r.code(64, |a| {
        f(a)?;
        a.hlt()
    });
    assert_eq!(r.run(), Exit::Halt);
}

#[test]
fn fxsave_lays_out_the_stack_from_st0_and_fxrstor_takes_it_back() {
    let mut r = filled();
    run(&mut r, 0, |a| a.fxsave64(ptr(DATA)));
    assert_eq!(r.read16(DATA), 0x37f);
    assert_eq!(r.read16(DATA + 2), 3 << 11);
    assert_eq!(r.read16(DATA + 4), 1 << 3);
    assert_eq!(r.read64(DATA + 8), 0x1122_3344_5566);
    assert_eq!((r.read32(DATA + 24), r.read32(DATA + 28)), (0x1fc0, 0xffff));
    assert_eq!((r.read64(DATA + 32), r.read64(DATA + 40)), (0x8000_0000_0000_0001, 0x3fff));
    assert_eq!(r.read64(DATA + 160 + 9 * 16), 0x99);
    let (fpu, xmm) = (r.cpu.state.fpu, r.cpu.state.xmm);
    r.cpu.state.fpu = Fpu::default();
    r.cpu.state.xmm[9].set_x(0);
    r.cpu.state.mxcsr = 0x1f80;
    run(&mut r, 0, |a| a.fxrstor64(ptr(DATA)));
    assert_eq!((r.cpu.state.fpu, r.cpu.state.mxcsr), (fpu, 0x1fc0));
    assert_eq!(r.cpu.state.xmm[9], xmm[9]);
}

#[test]
fn fxrstor_refuses_reserved_mxcsr_bits_and_misaligned_areas() {
    let mut r = filled();
    r.write32(DATA + 24, 0x1_0000);
    r.code(64, |a| a.fxrstor(ptr(DATA)));
    assert_eq!(r.vector(), 13);
    assert_eq!(r.cpu.state.mxcsr, 0x1fc0);
    let mut r = filled();
    r.code(64, |a| a.fxsave(ptr(DATA + 8)));
    assert_eq!(r.vector(), 13);
    let mut r = filled();
    r.cpu.write_cr0(r.cpu.state.cr0 | cr0::TS).unwrap();
    r.code(64, |a| a.fxsave(ptr(DATA + 8)));
    assert_eq!(r.vector(), 7, "#NM goes before #GP");
}

#[test]
fn xsave_keeps_header_bits_that_were_not_asked_for() {
    let mut r = filled();
    r.cpu.set_pkru(0x54);
    r.write64(DATA + 512, 0x205);
    run(&mut r, 2, |a| a.xsave(ptr(DATA)));
    assert_eq!(r.read64(DATA + 512), 0x207);
    assert_eq!(r.read16(DATA), 0, "x87 was not asked for");
    assert_eq!(r.read32(DATA + 24), 0x1fc0);
    assert_eq!(r.read64(DATA + 160 + 9 * 16), 0x99);
    run(&mut r, !0, |a| a.xsave64(ptr(DATA)));
    assert_eq!(r.read64(DATA + 512), 0x207);
    assert_eq!(r.read32(DATA + 0xa80), 0x54);
}

#[test]
fn xsavec_packs_components_and_skips_initial_ones() {
    let mut r = filled();
    r.cpu.state.fpu = Fpu::default();
    r.cpu.set_pkru(0x54);
    for i in 0..0x300 {
        r.write8(DATA + i, 0xee);
    }
    run(&mut r, !0, |a| a.xsavec(ptr(DATA)));
    assert_eq!(r.read64(DATA + 512), 0x202);
    assert_eq!(r.read64(DATA + 520), 1 << 63 | 0x203);
    assert_eq!(r.read16(DATA), 0xeeee, "the x87 state is initial");
    assert_eq!(r.read32(DATA + 576), 0x54);
    assert_eq!(r.read64(DATA + 528), 0xeeee_eeee_eeee_eeee);

    // XRSTOR wants the rest of the header zero.
    r.code(64, |a| a.xrstor(ptr(DATA)));
    r.cpu.state.gpr[gpr::RIP] = CODE;
    r.cpu.state.activity = crate::state::Activity::Running;
    assert_eq!(r.vector(), 13);
    for i in 528..576 {
        r.write8(DATA + i, 0);
    }
    r.cpu.set_pkru(0);
    r.cpu.state.mxcsr = 0x1f80;
    r.cpu.state.xmm[9].set_x(0);
    r.cpu.state.fpu.top = 5;
    run(&mut r, !0, |a| a.xrstor64(ptr(DATA)));
    assert_eq!(r.cpu.state.pkru, 0x54);
    assert_eq!(r.cpu.state.mxcsr, 0x1fc0);
    assert_eq!(r.cpu.state.xmm[9].x(), 0x99);
    assert_eq!(r.cpu.state.fpu, Fpu::default(), "initialised, since its bit in XSTATE_BV is clear");
}

#[test]
fn xrstor_refuses_components_that_are_not_enabled() {
    let mut r = filled();
    r.write64(DATA + 512, 4);
    r.cpu.state.gpr[gpr::RAX] = 3; // XCR0 has no AVX here
    r.code(64, |a| a.xrstor(ptr(DATA)));
    assert_eq!(r.vector(), 13);
    // XRSTORS takes the compacted format alone.
    let mut r = filled();
    r.write64(DATA + 512, 1);
    r.code(64, |a| a.xrstors(ptr(DATA)));
    assert_eq!(r.vector(), 13);
}

#[test]
fn xsetbv_takes_what_cpuid_shows_and_xgetbv_1_what_is_in_use() {
    let mut r = filled();
    r.cpu.state.gpr[gpr::RCX] = 0;
    run(&mut r, 3, |a| a.xsetbv());
    assert_eq!(r.cpu.state.xcr0, 3);
    r.cpu.state.gpr[gpr::RCX] = 1;
    r.cpu.state.fpu = Fpu::default();
    run(&mut r, 0, |a| a.xgetbv());
    assert_eq!(r.cpu.state.gpr[gpr::RAX], 2);
    for bad in [0, 2, 5, 0x23] {
        let mut r = filled();
        r.cpu.state.gpr[gpr::RCX] = 0;
        r.cpu.state.gpr[gpr::RAX] = bad;
        r.cpu.state.gpr[gpr::RDX] = 0;
        r.code(64, |a| a.xsetbv());
        assert_eq!(r.vector(), 13, "{bad}");
    }
}

/// With AVX enabled, and YMM9 and YMM2 in use.
fn with_avx() -> Rig {
    let mut r = filled();
    r.cpu.state.xcr0 = 0x207;
    r.cpu.state.xmm[9].set_y_high(0x9999);
    r.cpu.state.xmm[2].set_y_high(0x2222 << 64);
    r.cpu.sync_all();
    r
}

#[test]
fn the_avx_component_stands_behind_the_header_and_before_pkru() {
    let mut r = with_avx();
    r.cpu.set_pkru(0x54);
    run(&mut r, !0, |a| a.xsave64(ptr(DATA)));
    assert_eq!(r.read64(DATA + 512), 0x207);
    assert_eq!((r.read64(DATA + 576 + 9 * 16), r.read64(DATA + 576 + 2 * 16 + 8)), (0x9999, 0x2222));
    assert_eq!(r.read32(DATA + 0xa80), 0x54);
    for i in 0..0x400 {
        r.write8(DATA + i, 0);
    }
    run(&mut r, !0, |a| a.xsavec64(ptr(DATA)));
    assert_eq!((r.read64(DATA + 512), r.read64(DATA + 520)), (0x207, 1 << 63 | 0x207));
    assert_eq!(r.read64(DATA + 576 + 9 * 16), 0x9999);
    assert_eq!(r.read32(DATA + 576 + 256), 0x54);
    // Without AVX among what is asked for, PKRU stands where AVX was.
    run(&mut r, 0x203, |a| a.xsavec64(ptr(DATA)));
    assert_eq!((r.read64(DATA + 520), r.read32(DATA + 576)), (1 << 63 | 0x203, 0x54));
}

#[test]
fn restoring_the_avx_component_keeps_the_lower_halves_and_its_initial_state_is_zero() {
    let mut r = with_avx();
    run(&mut r, 4, |a| a.xsave64(ptr(DATA)));
    assert_eq!(r.read64(DATA + 512), 4);
    assert_eq!(r.read32(DATA + 24), 0x1fc0, "MXCSR is saved with AVX too");
    for x in &mut r.cpu.state.xmm[..16] {
        x.set_y_high(7);
    }
    run(&mut r, 4, |a| a.xrstor64(ptr(DATA)));
    let high = |r: &Rig, n: usize| r.cpu.state.xmm[n].y_high();
    assert_eq!((high(&r, 9), high(&r, 2), high(&r, 3)), (0x9999, 0x2222 << 64, 0));
    assert_eq!(r.cpu.state.xmm[9].x(), 0x99);
    // The header says that it was in its initial state.
    r.write64(DATA + 512, 0);
    run(&mut r, 4, |a| a.xrstor64(ptr(DATA)));
    assert_eq!((high(&r, 9), high(&r, 2)), (0, 0));
    assert_eq!(r.cpu.state.xmm[9].x(), 0x99);
    // Not in use any more: XSAVEOPT leaves its memory alone, and XGETBV tells.
    r.write64(DATA + 576, 0x1234);
    run(&mut r, 4, |a| a.xsaveopt64(ptr(DATA)));
    assert_eq!((r.read64(DATA + 512), r.read64(DATA + 576)), (0, 0x1234));
    r.cpu.state.gpr[gpr::RCX] = 1;
    run(&mut r, 0, |a| a.xgetbv());
    assert_eq!(r.cpu.state.gpr[gpr::RAX] & 4, 0);
}

#[test]
fn avx_is_enabled_only_together_with_sse_and_stops_with_xcr0() {
    let mut r = filled();
    r.cpu.state.gpr[gpr::RCX] = 0;
    run(&mut r, 7, |a| {
        a.xsetbv()?;
        a.vzeroall()
    });
    assert_eq!((r.cpu.state.xcr0, r.cpu.state.xmm[9].x()), (7, 0));
    let mut r = with_avx();
    r.cpu.state.gpr[gpr::RCX] = 0;
    r.cpu.state.gpr[gpr::RAX] = 3;
    r.cpu.state.gpr[gpr::RDX] = 0;
    r.code(64, |a| {
        a.xsetbv()?;
        a.vzeroall()
    });
    assert_eq!(r.vector(), 6);
    assert_eq!(r.cpu.state.xmm[9].y_high(), 0x9999, "the upper halves are kept while AVX is off");
}
