//! Floating point: the portable arithmetic against the host's instructions, under every rounding mode with
//! DAZ and FTZ.
use super::super::convert::*;
use super::super::exec::{FloatOp, FusedOp, VecId};
use super::super::f16c::{Vcvtph2ps, Vcvtps2ph};
use super::super::float_arith::*;
use super::super::float_cmp::*;
use super::super::fused::*;
use super::super::mxcsr::{DAZ, DEFAULT, FLAGS, FTZ, RC_SHIFT};
use super::super::{host, soft};
use super::Random;

/// A number with a good chance of being special: zeros, infinities, NaNs, denormals, the least and greatest,
/// near powers of two.
fn number(r: &mut Random, fraction: u32, exponent: u32) -> u64 {
    let sign = r.below(2) << (fraction + exponent);
    let top = (1u64 << exponent) - 1;
    let any = r.next() & ((1 << fraction) - 1);
    let few = match r.below(6) {
        0 => 0,
        1 => 1,
        2 => (1 << fraction) - 1,
        3 => 1 << (fraction - 1),
        4 => any & !((1 << (fraction / 2)) - 1),
        _ => any,
    };
    let field = match r.below(10) {
        0 | 1 => 0,
        2 => top,
        3 => 1,
        4 => top - 1,
        5 => r.below(top + 1),
        6 => top / 2 + r.below(70),
        7 => (top / 2).saturating_sub(r.below(30)),
        8 => (top / 4 + r.below(6)).min(top), // products of two of these underflow or nearly so
        _ => top / 2 + r.below(3),
    };
    sign | field << fraction | few
}
fn singles(r: &mut Random) -> u128 {
    (0..4).fold(0, |v, k| v | u128::from(number(r, 23, 8)) << (32 * k))
}
fn doubles(r: &mut Random) -> u128 {
    u128::from(number(r, 52, 11)) | u128::from(number(r, 52, 11)) << 64
}
fn integers(r: &mut Random) -> u128 {
    let mut part = || r.next() >> r.below(64);
    let v = u128::from(part()) | u128::from(part()) << 64;
    if r.below(2) == 0 { v } else { !v }
}

fn agree<O: FloatOp>(source: impl Fn(&mut Random) -> u128, imms: std::ops::Range<u8>, lanes: u32) {
    if !O::on_host() {
        return;
    }
    let intel = std::arch::x86_64::__cpuid(0).ebx == u32::from_le_bytes(*b"Genu");
    let mut r = Random::new();
    for mode in 0..16 {
        let mxcsr = DEFAULT
            | (mode & 3) << RC_SHIFT
            | if mode & 4 != 0 { DAZ } else { 0 }
            | if mode & 8 != 0 { FTZ } else { 0 };
        for imm in imms.clone() {
            for _ in 0..(4000 / imms.len()).max(20) {
                let (mut a, mut b) = (source(&mut r), source(&mut r));
                if r.below(8) == 0 {
                    b = a; // cancellation
                }
                if r.below(8) == 0 {
                    a &= u128::MAX >> (128 - lanes);
                }
                let (want, flags) = host::full::<O>(a, b, imm, mxcsr);
                let mut env = soft::Env::new(mxcsr);
                let mut got = O::soft(a, b, imm, &mut env);
                // Intel's processors add each lane's products in an order of its own: which NaN comes is theirs.
                for (id, bits, infinity) in [(VecId::Dpps, 32, 0xff << 23), (VecId::Dppd, 64, 0x7ff << 52)] {
                    let lane = u128::MAX >> (128 - bits);
                    for n in (0..128 / bits).filter(|_| intel && O::ID == id) {
                        let nan = |v: u128| v >> (n * bits) & (lane >> 1) > infinity;
                        if nan(got) && nan(want) {
                            got = got & !(lane << (n * bits)) | want & lane << (n * bits);
                        }
                    }
                }
                assert_eq!(
                    (got, env.flags | env.earlier),
                    (want, flags),
                    "{:?} of {a:032x}, {b:032x}, {imm} under {mxcsr:x}: portable {got:032x} {:02x}, host {want:032x} {flags:02x}",
                    O::ID,
                    env.flags | env.earlier
                );
            }
        }
    }
}

macro_rules! agree {
    ($source:ident, $imms:expr, $lanes:literal: $($op:ident)*) => { $(agree::<$op>($source, $imms, $lanes);)* };
}

#[test]
fn portable_arithmetic_agrees_with_the_host() {
    agree!(singles, 0..1, 64: Addps Addss Subps Subss Mulps Mulss Divps Divss Sqrtps Sqrtss);
    agree!(doubles, 0..1, 64: Addpd Addsd Subpd Subsd Mulpd Mulsd Divpd Divsd Sqrtpd Sqrtsd);
}

#[test]
fn portable_minimum_maximum_and_comparison_agree_with_the_host() {
    agree!(singles, 0..1, 32: Minps Minss Maxps Maxss Comiss Ucomiss);
    agree!(doubles, 0..1, 32: Minpd Minsd Maxpd Maxsd Comisd Ucomisd);
    agree!(singles, 0..8, 32: Cmpps Cmpss);
    agree!(doubles, 0..8, 32: Cmppd Cmpsd);
}

#[test]
fn portable_horizontal_operations_agree_with_the_host() {
    agree!(singles, 0..1, 64: Addsubps Haddps Hsubps);
    agree!(doubles, 0..1, 64: Addsubpd Haddpd Hsubpd);
    agree!(singles, 0..255, 64: Dpps);
    agree!(doubles, 0..255, 64: Dppd);
}

#[test]
fn portable_conversions_agree_with_the_host() {
    agree!(singles, 0..1, 64: Cvtps2dq Cvttps2dq Cvtps2pd Cvtss2sd Cvtps2pi Cvttps2pi Cvtss2si32 Cvtss2si64 Cvttss2si32 Cvttss2si64);
    agree!(doubles, 0..1, 64: Cvtpd2dq Cvttpd2dq Cvtpd2ps Cvtsd2ss Cvtpd2pi Cvttpd2pi Cvtsd2si32 Cvtsd2si64 Cvttsd2si32 Cvttsd2si64);
    agree!(integers, 0..1, 64: Cvtdq2ps Cvtdq2pd Cvtpi2ps Cvtpi2pd Cvtsi2ss32 Cvtsi2ss64 Cvtsi2sd32 Cvtsi2sd64);
}

#[test]
fn portable_comparison_by_all_predicates_agrees_with_the_host() {
    agree!(singles, 0..32, 32: Vcmpps Vcmpss);
    agree!(doubles, 0..32, 32: Vcmppd Vcmpsd);
}

/// Singles about the range of halves, or anything.
fn small_singles(r: &mut Random) -> u128 {
    if r.below(4) == 0 {
        return singles(r);
    }
    (0..4).fold(0, |v, k| {
        let fraction = (r.next() & 0x7f_ffff) << r.below(14) & 0x7f_ffff;
        let x = r.below(2) << 31 | (127 - 27 + r.below(46)) << 23 | fraction;
        v | u128::from(x) << (32 * k)
    })
}

#[test]
fn portable_conversions_of_half_precision_agree_with_the_host() {
    agree!(integers, 0..1, 64: Vcvtph2ps);
    agree!(small_singles, 0..8, 64: Vcvtps2ph);
}

/// As `agree`, with an addend that is often the product's negative or near it.
fn fused_agrees<O: FusedOp>(source: impl Fn(&mut Random) -> u128, product: impl Fn(u128, u128) -> u128) {
    if !is_x86_feature_detected!("fma") {
        return;
    }
    let mut r = Random::new();
    for mode in 0..16 {
        let mxcsr = DEFAULT
            | (mode & 3) << RC_SHIFT
            | if mode & 4 != 0 { DAZ } else { 0 }
            | if mode & 8 != 0 { FTZ } else { 0 };
        for _ in 0..2000 {
            let mut v = [source(&mut r), source(&mut r), source(&mut r)];
            if r.below(2) == 0 {
                let n = r.below(3) as usize;
                v[n] = product(v[(n + 1) % 3], v[(n + 2) % 3]) ^ u128::from(r.below(4));
            }
            let [a, b, c] = v;
            let (want, flags) = host::full_fused::<O>(a, b, c, mxcsr);
            let mut env = soft::Env::new(mxcsr);
            let got = O::soft(a, b, c, &mut env);
            assert_eq!(
                (got, env.flags),
                (want, flags),
                "{:?} of {a:032x}, {b:032x}, {c:032x} under {mxcsr:x}: portable {got:032x}, host {want:032x}",
                O::ID
            );
        }
    }
}

#[test]
fn portable_fused_operations_agree_with_the_host() {
    let single = |a: u128, b: u128| host::full::<Mulps>(a, b, 0, DEFAULT).0 ^ 0x8000_0000;
    let double = |a: u128, b: u128| host::full::<Mulpd>(a, b, 0, DEFAULT).0 ^ 1 << 63;
    macro_rules! all {
        ($source:ident, $product:ident: $($op:ident)*) => { $(fused_agrees::<$op>($source, $product);)* };
    }
    all!(singles, single: Vfmadd132ps Vfmadd213ps Vfmadd231ps Vfmsub213ps Vfnmadd231ps Vfnmsub132ps Vfmaddsub213ps
        Vfmsubadd231ps Vfmadd213ss Vfnmsub231ss);
    all!(doubles, double: Vfmadd132pd Vfmadd213pd Vfmadd231pd Vfmsub213pd Vfnmadd231pd Vfnmsub132pd Vfmaddsub213pd
        Vfmsubadd231pd Vfmadd213sd Vfnmsub231sd);
}

#[test]
fn portable_rounding_to_integral_values_agrees_with_the_host() {
    agree!(singles, 0..16, 64: Roundps Roundss);
    agree!(doubles, 0..16, 64: Roundpd Roundsd);
}

#[test]
fn the_quick_frame_gives_what_the_full_one_gives_and_refuses_foreign_flags() {
    let mut r = Random::new();
    for _ in 0..2000 {
        let (a, b) = (singles(&mut r), singles(&mut r));
        let (want, flags) = host::full::<Mulps>(a, b, 0, DEFAULT);
        // The full frame has left the host's flags clear: any guest flags contain them.
        assert_eq!(host::quick::<Mulps>(a, b, 0, DEFAULT), Some((want, flags)));
        // Now the host's flags are this operation's: a guest without them must not be given them.
        assert_eq!(host::quick::<Addps>(0, 0, 0, DEFAULT), (flags == 0).then_some((0, 0)));
        assert_eq!(host::quick::<Addps>(0, 0, 0, DEFAULT | FLAGS), Some((0, flags)));
        host::full::<Addps>(0, 0, 0, DEFAULT);
    }
}
