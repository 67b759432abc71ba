//! Portable code against known answers.
use super::super::crypto::{Aesdec, Aesdeclast, Aesenc, Aesenclast, Aesimc, Aeskeygenassist};
use super::super::engine::evaluate;
use super::super::exec::VecOp;
use super::super::float_arith::{Addss, Divss, Dpps, Mulss};
use super::super::mxcsr::{DE, DEFAULT, FTZ, OE, OM, PE, UE, UM, ZE};
use super::super::soft::{rcp, rsqrt};
use super::Random;

#[test]
fn aes_128_encrypts_and_decrypts_the_example_of_fips_197() {
    // FIPS 197, appendix B.
    let key = u128::from_be_bytes(0x2b7e151628aed2a6abf7158809cf4f3cu128.to_le_bytes());
    let plain = u128::from_be_bytes(0x3243f6a8885a308d313198a2e0370734u128.to_le_bytes());
    let cipher = u128::from_be_bytes(0x3925841d02dc09fbdc118597196a0b32u128.to_le_bytes());
    let mut keys = vec![key];
    for rcon in [1, 2, 4, 8, 0x10, 0x20, 0x40, 0x80, 0x1b, 0x36] {
        let last = *keys.last().unwrap();
        let word = Aeskeygenassist::portable(0, last, rcon) >> 96;
        let spread = word | word << 32 | word << 64 | word << 96;
        keys.push(last ^ last << 32 ^ last << 64 ^ last << 96 ^ spread);
    }
    let middle = keys[1..10].iter().fold(plain ^ keys[0], |s, &k| Aesenc::portable(s, k, 0));
    assert_eq!(Aesenclast::portable(middle, keys[10], 0), cipher);
    let middle = keys[1..10]
        .iter()
        .rev()
        .fold(cipher ^ keys[10], |s, &k| Aesdec::portable(s, Aesimc::portable(0, k, 0), 0));
    assert_eq!(Aesdeclast::portable(middle, keys[0], 0), plain);
}

#[test]
fn approximations_stay_within_the_error_that_the_manual_allows() {
    let mut r = Random::new();
    let allowed = 1.5 / 4096.0;
    for _ in 0..100_000 {
        let x = f32::from_bits((r.next() as u32 & 0x7fff_ffff).clamp(0x0080_0000, 0x7eff_ffff));
        let got = f64::from(f32::from_bits(rcp(x.to_bits())));
        let want = 1.0 / f64::from(x);
        if want >= f64::from(f32::MIN_POSITIVE) {
            assert!((got / want - 1.0).abs() <= allowed, "rcp of {x:e}: {got:e}");
        }
        let got = f64::from(f32::from_bits(rsqrt(x.to_bits())));
        let want = 1.0 / f64::from(x).sqrt();
        assert!((got / want - 1.0).abs() <= allowed, "rsqrt of {x:e}: {got:e}");
    }
}

#[test]
fn approximations_of_special_values_are_those_of_the_manual() {
    for (x, reciprocal, root) in [
        (0x0000_0000u32, 0x7f80_0000u32, 0x7f80_0000u32), // +0
        (0x8000_0000, 0xff80_0000, 0xff80_0000),          // -0
        (0x0000_0001, 0x7f80_0000, 0x7f80_0000),          // a denormal counts as zero
        (0x8000_0001, 0xff80_0000, 0xff80_0000),
        (0x7f80_0000, 0x0000_0000, 0x0000_0000), // +infinity
        (0xff80_0000, 0x8000_0000, 0xffc0_0000), // -infinity
        (0xbf80_0000, 0xbf80_0000, 0xffc0_0000), // -1
        (0x7f80_0001, 0x7fc0_0001, 0x7fc0_0001), // a signalling NaN becomes quiet
    ] {
        assert_eq!(rcp(x), reciprocal, "rcp of {x:08x}");
        assert_eq!(rsqrt(x), root, "rsqrt of {x:08x}");
    }
    assert_eq!(rcp(0xff00_0001), 0x8000_0000, "a tiny reciprocal is a zero");
}

#[test]
fn an_exact_tiny_result_is_an_underflow_only_if_that_is_unmasked() {
    let least = 0x0080_0000u128; // the least normal binary32
    let half = 0x3f00_0000u128;
    assert_eq!(evaluate::<Mulss>(least, half, 0, DEFAULT), (0x40_0000, 0));
    assert_eq!(evaluate::<Mulss>(least, half, 0, DEFAULT & !UM), (0x40_0000, UE));
    // Flush-to-zero works on exact results too, and only while underflow is masked.
    assert_eq!(evaluate::<Mulss>(least, half, 0, DEFAULT | FTZ), (0, UE | PE));
    assert_eq!(evaluate::<Mulss>(least, half, 0, DEFAULT & !UM | FTZ), (0x40_0000, UE));
    // A denormal operand is noted besides; a sum of denormals that is normal is none.
    assert_eq!(evaluate::<Addss>(0x40_0000, 1, 0, DEFAULT & !UM), (0x40_0001, UE | DE));
    assert_eq!(evaluate::<Addss>(0x40_0000, 0x40_0000, 0, DEFAULT & !UM), (least, DE));
}

#[test]
fn unmasked_underflow_and_overflow_are_inexact_only_if_precision_is_lost_beside_range() {
    // The product needs 24 bits: as a denormal it loses one, with an exponent of any size none.
    let (odd, half) = (0x0080_0001u128, 0x3f00_0000u128);
    assert_eq!(evaluate::<Mulss>(odd, half, 0, DEFAULT).1, UE | PE);
    assert_eq!(evaluate::<Mulss>(odd, half, 0, DEFAULT & !UM).1, UE);
    assert_eq!(evaluate::<Mulss>(odd, odd, 0, DEFAULT & !UM).1, UE | PE);
    let (power, greatest) = (0x7180_0000u128, 0x7f7f_ffffu128); // 2^100, and the greatest binary32
    assert_eq!(evaluate::<Mulss>(power, power, 0, DEFAULT), (0x7f80_0000, OE | PE));
    assert_eq!(evaluate::<Mulss>(power, power, 0, DEFAULT & !OM).1, OE);
    assert_eq!(evaluate::<Mulss>(greatest, greatest, 0, DEFAULT & !OM).1, OE | PE);
}

#[test]
fn division_of_a_denormal_by_zero_notes_no_denormal() {
    assert_eq!(evaluate::<Divss>(1, 0, 0, DEFAULT), (0x7f80_0000, ZE));
}

#[test]
fn lanes_left_out_of_a_dot_product_raise_nothing() {
    // 1 * 2 in lane 0; a signalling NaN and infinity * 0 in lanes that take no part; the sum goes to lane 3.
    let a = 0x0000_0000_7f80_0000_7f80_0001_3f80_0000u128;
    let b = 0x0000_0000_0000_0000_3f80_0000_4000_0000u128;
    assert_eq!(evaluate::<Dpps>(a, b, 0x18, DEFAULT), (0x4000_0000 << 96, 0));
}
