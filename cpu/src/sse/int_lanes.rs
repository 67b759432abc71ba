//! Packed integer arithmetic, logic, comparison and shifts (SDM volume 2; MMX, SSE, SSE2, SSSE3, SSE4.1,
//! SSE4.2), and the bitwise operations that carry floating-point names.
use super::declare::vec_ops;
use super::exec::{VecExec, VecFlags, VecId, VecToInt};
use super::forms::{BinImm, Flags, M128, ToInt, Xmm, packed, packed_or_mmx, shift, source_in_memory};
use super::lanes::*;
use crate::state::fl;
use iced_x86::{Instruction, Mnemonic};

/// All ones if `x`, in the lane's own type.
macro_rules! ones {
    ($x:expr, $t:ty) => {
        if $x { !0 as $t } else { 0 }
    };
}

vec_ops! {
    Paddb: "sse2" = |a, b, i| map_u8(a, b, u8::wrapping_add);
    Paddw: "sse2" = |a, b, i| map_u16(a, b, u16::wrapping_add);
    Paddd: "sse2" = |a, b, i| map_u32(a, b, u32::wrapping_add);
    Paddq = |a, b, i| map_u64(a, b, u64::wrapping_add);
    Psubb: "sse2" = |a, b, i| map_u8(a, b, u8::wrapping_sub);
    Psubw: "sse2" = |a, b, i| map_u16(a, b, u16::wrapping_sub);
    Psubd: "sse2" = |a, b, i| map_u32(a, b, u32::wrapping_sub);
    Psubq = |a, b, i| map_u64(a, b, u64::wrapping_sub);
    Paddsb: "sse2" = |a, b, i| map_i8(a, b, i8::saturating_add);
    Paddsw: "sse2" = |a, b, i| map_i16(a, b, i16::saturating_add);
    Paddusb: "sse2" = |a, b, i| map_u8(a, b, u8::saturating_add);
    Paddusw: "sse2" = |a, b, i| map_u16(a, b, u16::saturating_add);
    Psubsb: "sse2" = |a, b, i| map_i8(a, b, i8::saturating_sub);
    Psubsw: "sse2" = |a, b, i| map_i16(a, b, i16::saturating_sub);
    Psubusb: "sse2" = |a, b, i| map_u8(a, b, u8::saturating_sub);
    Psubusw: "sse2" = |a, b, i| map_u16(a, b, u16::saturating_sub);

    Pmullw: "sse2" = |a, b, i| map_u16(a, b, u16::wrapping_mul);
    Pmulhw: "sse2" = |a, b, i| map_i16(a, b, |x, y| ((i32::from(x) * i32::from(y)) >> 16) as i16);
    Pmulhuw: "sse2" = |a, b, i| map_u16(a, b, |x, y| ((u32::from(x) * u32::from(y)) >> 16) as u16);
    Pmulhrsw: "ssse3" = |a, b, i| map_i16(a, b, |x, y| ((((i32::from(x) * i32::from(y)) >> 14) + 1) >> 1) as i16);
    Pmulld: "sse4.1" = |a, b, i| map_u32(a, b, u32::wrapping_mul);
    Pmuludq: "sse2" = |a, b, i| map_u64(a, b, |x, y| u64::from(x as u32) * u64::from(y as u32));
    Pmuldq: "sse4.1" = |a, b, i| map_i64(a, b, |x, y| i64::from(x as i32) * i64::from(y as i32));
    Pmaddwd: "sse2" = |a, b, i| {
        let (a, b) = (i16s(a), i16s(b));
        let product = |k: usize| i32::from(a[k]) * i32::from(b[k]);
        of_i32s(std::array::from_fn(|k| product(2 * k).wrapping_add(product(2 * k + 1))))
    };
    Pmaddubsw: "ssse3" = |a, b, i| {
        let (a, b) = (u8s(a), i8s(b));
        let product = |k: usize| i16::from(b[k]).wrapping_mul(i16::from(a[k]));
        of_i16s(std::array::from_fn(|k| product(2 * k).saturating_add(product(2 * k + 1))))
    };
    Psadbw: "sse2" = |a, b, i| {
        let (a, b) = (u8s(a), u8s(b));
        let sum = |k: usize| (k..k + 8).map(|n| u64::from(a[n].abs_diff(b[n]))).sum();
        of_u64s([sum(0), sum(8)])
    };
    Pavgb: "sse2" = |a, b, i| map_u8(a, b, |x, y| ((u16::from(x) + u16::from(y) + 1) >> 1) as u8);
    Pavgw: "sse2" = |a, b, i| map_u16(a, b, |x, y| ((u32::from(x) + u32::from(y) + 1) >> 1) as u16);

    Pminsb: "sse4.1" = |a, b, i| map_i8(a, b, i8::min);
    Pminsw: "sse2" = |a, b, i| map_i16(a, b, i16::min);
    Pminsd: "sse4.1" = |a, b, i| map_i32(a, b, i32::min);
    Pminub: "sse2" = |a, b, i| map_u8(a, b, u8::min);
    Pminuw: "sse4.1" = |a, b, i| map_u16(a, b, u16::min);
    Pminud: "sse4.1" = |a, b, i| map_u32(a, b, u32::min);
    Pmaxsb: "sse4.1" = |a, b, i| map_i8(a, b, i8::max);
    Pmaxsw: "sse2" = |a, b, i| map_i16(a, b, i16::max);
    Pmaxsd: "sse4.1" = |a, b, i| map_i32(a, b, i32::max);
    Pmaxub: "sse2" = |a, b, i| map_u8(a, b, u8::max);
    Pmaxuw: "sse4.1" = |a, b, i| map_u16(a, b, u16::max);
    Pmaxud: "sse4.1" = |a, b, i| map_u32(a, b, u32::max);

    Pcmpeqb: "sse2" = |a, b, i| map_u8(a, b, |x, y| ones!(x == y, u8));
    Pcmpeqw: "sse2" = |a, b, i| map_u16(a, b, |x, y| ones!(x == y, u16));
    Pcmpeqd: "sse2" = |a, b, i| map_u32(a, b, |x, y| ones!(x == y, u32));
    Pcmpeqq: "sse4.1" = |a, b, i| map_u64(a, b, |x, y| ones!(x == y, u64));
    Pcmpgtb: "sse2" = |a, b, i| map_i8(a, b, |x, y| ones!(x > y, i8));
    Pcmpgtw: "sse2" = |a, b, i| map_i16(a, b, |x, y| ones!(x > y, i16));
    Pcmpgtd: "sse2" = |a, b, i| map_i32(a, b, |x, y| ones!(x > y, i32));
    Pcmpgtq: "sse4.2" = |a, b, i| map_i64(a, b, |x, y| ones!(x > y, i64));

    Pand = |a, b, i| a & b;
    Pandn = |a, b, i| !a & b;
    Por = |a, b, i| a | b;
    Pxor = |a, b, i| a ^ b;
    Andps = |a, b, i| a & b;
    Andpd = |a, b, i| a & b;
    Andnps = |a, b, i| !a & b;
    Andnpd = |a, b, i| !a & b;
    Orps = |a, b, i| a | b;
    Orpd = |a, b, i| a | b;
    Xorps = |a, b, i| a ^ b;
    Xorpd = |a, b, i| a ^ b;

    Psllw: "sse2" = |a, b, i| { let n = b as u64; if n > 15 { 0 } else { each_u16(a, |x| x << n) } };
    Pslld: "sse2" = |a, b, i| { let n = b as u64; if n > 31 { 0 } else { each_u32(a, |x| x << n) } };
    Psllq: "sse2" = |a, b, i| { let n = b as u64; if n > 63 { 0 } else { each_u64(a, |x| x << n) } };
    Psrlw: "sse2" = |a, b, i| { let n = b as u64; if n > 15 { 0 } else { each_u16(a, |x| x >> n) } };
    Psrld: "sse2" = |a, b, i| { let n = b as u64; if n > 31 { 0 } else { each_u32(a, |x| x >> n) } };
    Psrlq: "sse2" = |a, b, i| { let n = b as u64; if n > 63 { 0 } else { each_u64(a, |x| x >> n) } };
    Psraw: "sse2" = |a, b, i| { let n = (b as u64).min(15); each_i16(a, |x| x >> n) };
    Psrad: "sse2" = |a, b, i| { let n = (b as u64).min(31); each_i32(a, |x| x >> n) };
    // Counts in bytes; the count comes as the second vector.
    Pslldq = |a, b, i| { let n = b as u64; if n > 15 { 0 } else { a << (8 * n) } };
    Psrldq = |a, b, i| { let n = b as u64; if n > 15 { 0 } else { a >> (8 * n) } };

    Pabsb: "ssse3" = |a, b, i| each_i8(b, i8::wrapping_abs);
    Pabsw: "ssse3" = |a, b, i| each_i16(b, i16::wrapping_abs);
    Pabsd: "ssse3" = |a, b, i| each_i32(b, i32::wrapping_abs);
    Psignb: "ssse3" = |a, b, i| map_i8(a, b, |x, y| x.wrapping_mul(y.signum()));
    Psignw: "ssse3" = |a, b, i| map_i16(a, b, |x, y| x.wrapping_mul(y.signum()));
    Psignd: "ssse3" = |a, b, i| map_i32(a, b, |x, y| x.wrapping_mul(y.signum()));

    Phaddw: "ssse3" = |a, b, i| pairs16(a, b, i16::wrapping_add), mmx pairs16_mmx(a, b, i16::wrapping_add);
    Phaddsw: "ssse3" = |a, b, i| pairs16(a, b, i16::saturating_add), mmx pairs16_mmx(a, b, i16::saturating_add);
    Phsubw: "ssse3" = |a, b, i| pairs16(a, b, i16::wrapping_sub), mmx pairs16_mmx(a, b, i16::wrapping_sub);
    Phsubsw: "ssse3" = |a, b, i| pairs16(a, b, i16::saturating_sub), mmx pairs16_mmx(a, b, i16::saturating_sub);
    Phaddd: "ssse3" = |a, b, i| pairs32(a, b, i32::wrapping_add), mmx pairs32_mmx(a, b, i32::wrapping_add);
    Phsubd: "ssse3" = |a, b, i| pairs32(a, b, i32::wrapping_sub), mmx pairs32_mmx(a, b, i32::wrapping_sub);

    Phminposuw: "sse4.1" = |a, b, i| {
        // The lowest index wins a tie: the index is below the value in the key.
        let least = u16s(b).iter().enumerate().map(|(k, &x)| u32::from(x) << 3 | k as u32).min().unwrap_or(0);
        u128::from(least >> 3) | u128::from(least & 7) << 16
    };
    Mpsadbw = |a, b, i| {
        let (a, b) = (u8s(a), u8s(b));
        let (from, block) = (usize::from(i >> 2 & 1) * 4, usize::from(i & 3) * 4);
        of_u16s(std::array::from_fn(|k| {
            (0..4).map(|n| u16::from(a[from + k + n].abs_diff(b[block + n]))).sum()
        }))
    };
}

/// Neighbours of `a`, then neighbours of `b`.
#[inline(always)]
fn pairs16(a: u128, b: u128, f: impl Fn(i16, i16) -> i16) -> u128 {
    let (a, b) = (i16s(a), i16s(b));
    of_i16s(std::array::from_fn(|k| {
        if k < 4 { f(a[2 * k], a[2 * k + 1]) } else { f(b[2 * k - 8], b[2 * k - 7]) }
    }))
}
#[inline(always)]
fn pairs32(a: u128, b: u128, f: impl Fn(i32, i32) -> i32) -> u128 {
    let (a, b) = (i32s(a), i32s(b));
    of_i32s(std::array::from_fn(|k| {
        if k < 2 { f(a[2 * k], a[2 * k + 1]) } else { f(b[2 * k - 4], b[2 * k - 3]) }
    }))
}
/// An MMX operand pair as one vector: its neighbours are those of `a`, then those of `b`.
#[inline(always)]
fn joined(a: u64, b: u64) -> u128 {
    u128::from(a) | u128::from(b) << 64
}
#[inline(always)]
fn pairs16_mmx(a: u64, b: u64, f: impl Fn(i16, i16) -> i16) -> u64 {
    pairs16(joined(a, b), 0, f) as u64
}
#[inline(always)]
fn pairs32_mmx(a: u64, b: u64, f: impl Fn(i32, i32) -> i32) -> u64 {
    pairs32(joined(a, b), 0, f) as u64
}

/// The top bits of a 64-bit word's bytes, gathered into a byte.
#[inline(always)]
fn byte_signs(x: u64) -> u64 {
    // Each sign bit is multiplied to its place in the top byte; no two products meet.
    (x & 0x8080_8080_8080_8080).wrapping_mul(0x0002_0408_1020_4081) >> 56
}

/// `PMOVMSKB`.
pub struct Pmovmskb;
impl VecToInt for Pmovmskb {
    const ID: VecId = VecId::Pmovmskb;
    #[inline(always)]
    fn eval(b: u128) -> u64 {
        byte_signs(b as u64) | byte_signs((b >> 64) as u64) << 8
    }
}
/// `MOVMSKPS`.
pub struct Movmskps;
impl VecToInt for Movmskps {
    const ID: VecId = VecId::Movmskps;
    #[inline(always)]
    fn eval(b: u128) -> u64 {
        u32s(b).iter().enumerate().map(|(k, x)| u64::from(x >> 31) << k).sum()
    }
}
/// `MOVMSKPD`.
pub struct Movmskpd;
impl VecToInt for Movmskpd {
    const ID: VecId = VecId::Movmskpd;
    #[inline(always)]
    fn eval(b: u128) -> u64 {
        (b as u64 >> 63) | ((b >> 127) as u64) << 1
    }
}
/// `PTEST`: ZF if no bit of `b` is set in `a`, CF if all are; the other flags are cleared.
pub struct Ptest;
impl VecFlags for Ptest {
    const ID: VecId = VecId::Ptest;
    #[inline(always)]
    fn eval(a: u128, b: u128) -> u64 {
        (if a & b == 0 { fl::ZF } else { 0 }) | (if !a & b == 0 { fl::CF } else { 0 })
    }
}

/// Handlers of this module's instructions.
pub(super) fn select<E: VecExec>(i: &Instruction) -> Option<E::Handler> {
    macro_rules! by_name {
        ($($form:ident: $($name:ident)*;)*) => {
            match i.mnemonic() {
                $($(Mnemonic::$name => $form::<E, $name>(i),)*)*
                Mnemonic::Pslldq => E::handler::<BinImm<Pslldq>>(),
                Mnemonic::Psrldq => E::handler::<BinImm<Psrldq>>(),
                Mnemonic::Pmovmskb if !i.op1_register().is_mm() => E::handler::<ToInt<Pmovmskb>>(),
                Mnemonic::Movmskps => E::handler::<ToInt<Movmskps>>(),
                Mnemonic::Movmskpd => E::handler::<ToInt<Movmskpd>>(),
                Mnemonic::Ptest if source_in_memory(i) => E::handler::<Flags<Ptest, M128>>(),
                Mnemonic::Ptest => E::handler::<Flags<Ptest, Xmm>>(),
                _ => return None,
            }
        };
    }
    Some(by_name! {
        packed_or_mmx: Paddb Paddw Paddd Paddq Psubb Psubw Psubd Psubq Paddsb Paddsw Paddusb Paddusw Psubsb Psubsw
            Psubusb Psubusw Pmullw Pmulhw Pmulhuw Pmulhrsw Pmuludq Pmaddwd Pmaddubsw Psadbw Pavgb Pavgw Pminsw Pminub
            Pmaxsw Pmaxub Pcmpeqb Pcmpeqw Pcmpeqd Pcmpgtb Pcmpgtw Pcmpgtd Pand Pandn Por Pxor Pabsb Pabsw Pabsd
            Psignb Psignw Psignd Phaddw Phaddsw Phsubw Phsubsw Phaddd Phsubd;
        packed: Pmulld Pmuldq Pminsb Pminsd Pminuw Pminud Pmaxsb Pmaxsd Pmaxuw Pmaxud Pcmpeqq Pcmpgtq Andps Andpd
            Andnps Andnpd Orps Orpd Xorps Xorpd Phminposuw Mpsadbw;
        shift: Psllw Pslld Psllq Psrlw Psrld Psrlq Psraw Psrad;
    })
}
