//! Operations on bits against the host's instructions.
use super::super::exec::{VecFlags, VecOp, VecOp3, VecToInt};
use super::super::int_lanes::*;
use super::super::shuffle::*;
use super::super::string_sse42::{Outcome, explicit, implicit};
use super::super::{crypto, host, moves};
use super::Random;
use crate::state::fl;
use std::arch::asm;

const ROUNDS: u32 = 400;

/// Compares `$op::eval` with the host's instruction on xmm operands.
macro_rules! xmm {
    ($($feature:tt: $($op:path = $text:literal),*;)*) => {$(
        if is_x86_feature_detected!($feature) {$({
            let mut r = Random::new();
            for n in 0..ROUNDS {
                let (a, b) = (r.vector(), if n & 1 == 0 { r.vector() } else { r.count() });
                let mut v = host::vec(a);
                // SAFETY: the host has the instruction, which changes nothing but its destination.
                unsafe { asm!(concat!($text, " {v}, {w}"), v = inout(xmm_reg) v, w = in(xmm_reg) host::vec(b)) };
                let want = host::bits(v);
                assert_eq!(<$op>::eval(a, b, 0), want, "{} of {a:032x} and {b:032x}", $text);
                assert_eq!(<$op>::portable(a, b, 0), want, "{} of {a:032x} and {b:032x} (want {want:032x})", $text);
            }
        })*}
    )*};
}

/// The same with immediates.
macro_rules! xmm_imm {
    ($($feature:tt: $($op:path = $text:literal),*;)*) => {$(
        if is_x86_feature_detected!($feature) {$({
            fn oracle<const I: u8>(a: u128, b: u128) -> u128 {
                let mut v = host::vec(a);
                // SAFETY: as above.
                unsafe {
                    asm!(concat!($text, " {v}, {w}, {i}"), v = inout(xmm_reg) v, w = in(xmm_reg) host::vec(b), i = const I)
                };
                host::bits(v)
            }
            let mut r = Random::new();
            for (imm, f) in with_immediates!(oracle) {
                for _ in 0..40 {
                    let (a, b) = (r.vector(), r.vector());
                    let want = f(a, b);
                    let got = <$op>::portable(a, b, imm);
                    assert_eq!(<$op>::eval(a, b, imm), got, "{} of {a:032x}, {b:032x}, {imm}", $text);
                    assert_eq!(got, want, "{} of {a:032x}, {b:032x}, {imm} (want {want:032x})", $text);
                }
            }
        })*}
    )*};
}
macro_rules! with_immediates {
    ($f:ident) => { with_immediates!(@ $f 0 1 2 3 4 5 7 8 9 15 16 17 21 24 27 31 32 49 64 78 85 113 128 147 170 204 228 240 254 255) };
    (@ $f:ident $($n:literal)*) => { [$(($n as u8, $f::<$n> as fn(u128, u128) -> u128)),*] };
}

/// Compares `$op::eval64` with the host's instruction on mm operands.
macro_rules! mmx {
    ($($op:path = $text:literal),* $(,)?) => {$({
        let mut r = Random::new();
        for n in 0..ROUNDS {
            let (a, b) = (r.vector() as u64, if n & 1 == 0 { r.vector() as u64 } else { r.count() as u64 });
            let want: u64;
            // SAFETY: the x87 state is given back empty, and all of it is declared as clobbered.
            unsafe {
                asm!(
                    "movq mm0, {a}", "movq mm1, {b}", $text, "movq {r}, mm0", "emms",
                    a = in(reg) a, b = in(reg) b, r = out(reg) want,
                    out("mm0") _, out("mm1") _, out("mm2") _, out("mm3") _, out("mm4") _, out("mm5") _, out("mm6") _, out("mm7") _,
                    out("st(0)") _, out("st(1)") _, out("st(2)") _, out("st(3)") _, out("st(4)") _, out("st(5)") _, out("st(6)") _,
                    out("st(7)") _,
                )
            };
            let imm = $text.rsplit(", ").next().and_then(|s| s.parse().ok()).unwrap_or(0u8);
            assert_eq!(<$op>::eval64(a, b, imm), want, "{} of {a:016x} and {b:016x} (want {want:016x})", $text);
        }
    })*};
}

#[test]
fn packed_integers_agree_with_the_host() {
    xmm! {
        "sse2": Paddb = "paddb", Paddw = "paddw", Paddd = "paddd", Paddq = "paddq", Psubb = "psubb", Psubw = "psubw", Psubd = "psubd",
            Psubq = "psubq", Paddsb = "paddsb", Paddsw = "paddsw", Paddusb = "paddusb", Paddusw = "paddusw", Psubsb = "psubsb",
            Psubsw = "psubsw", Psubusb = "psubusb", Psubusw = "psubusw", Pmullw = "pmullw", Pmulhw = "pmulhw", Pmulhuw = "pmulhuw",
            Pmuludq = "pmuludq", Pmaddwd = "pmaddwd", Psadbw = "psadbw", Pavgb = "pavgb", Pavgw = "pavgw", Pminsw = "pminsw",
            Pminub = "pminub", Pmaxsw = "pmaxsw", Pmaxub = "pmaxub", Pcmpeqb = "pcmpeqb", Pcmpeqw = "pcmpeqw", Pcmpeqd = "pcmpeqd",
            Pcmpgtb = "pcmpgtb", Pcmpgtw = "pcmpgtw", Pcmpgtd = "pcmpgtd", Pand = "pand", Pandn = "pandn", Por = "por", Pxor = "pxor",
            Andps = "andps", Andpd = "andpd", Andnps = "andnps", Andnpd = "andnpd", Orps = "orps", Orpd = "orpd", Xorps = "xorps",
            Xorpd = "xorpd", Psllw = "psllw", Pslld = "pslld", Psllq = "psllq", Psrlw = "psrlw", Psrld = "psrld", Psrlq = "psrlq",
            Psraw = "psraw", Psrad = "psrad";
        "ssse3": Pabsb = "pabsb", Pabsw = "pabsw", Pabsd = "pabsd", Psignb = "psignb", Psignw = "psignw", Psignd = "psignd",
            Phaddw = "phaddw", Phaddsw = "phaddsw", Phsubw = "phsubw", Phsubsw = "phsubsw", Phaddd = "phaddd", Phsubd = "phsubd",
            Pmulhrsw = "pmulhrsw", Pmaddubsw = "pmaddubsw";
        "sse4.1": Pmulld = "pmulld", Pmuldq = "pmuldq", Pminsb = "pminsb", Pminsd = "pminsd", Pminuw = "pminuw", Pminud = "pminud",
            Pmaxsb = "pmaxsb", Pmaxsd = "pmaxsd", Pmaxuw = "pmaxuw", Pmaxud = "pmaxud", Pcmpeqq = "pcmpeqq", Phminposuw = "phminposuw";
        "sse4.2": Pcmpgtq = "pcmpgtq";
    }
    xmm_imm! {
        "sse4.1": Mpsadbw = "mpsadbw";
    }
}

#[test]
fn shuffles_agree_with_the_host() {
    xmm! {
        "sse2": Punpcklbw = "punpcklbw", Punpcklwd = "punpcklwd", Punpckldq = "punpckldq", Punpcklqdq = "punpcklqdq",
            Punpckhbw = "punpckhbw", Punpckhwd = "punpckhwd", Punpckhdq = "punpckhdq", Punpckhqdq = "punpckhqdq",
            Unpcklps = "unpcklps", Unpckhps = "unpckhps", Unpcklpd = "unpcklpd", Unpckhpd = "unpckhpd", Packsswb = "packsswb",
            Packuswb = "packuswb", Packssdw = "packssdw", moves::Movss = "movss", moves::Movsd = "movsd", moves::Movhlps = "movhlps",
            moves::Movlhps = "movlhps", moves::Movq = "movq";
        "sse3": Movddup = "movddup", Movshdup = "movshdup", Movsldup = "movsldup";
        "ssse3": Pshufb = "pshufb";
        "sse4.1": Packusdw = "packusdw", Pmovsxbw = "pmovsxbw", Pmovsxbd = "pmovsxbd", Pmovsxbq = "pmovsxbq", Pmovsxwd = "pmovsxwd",
            Pmovsxwq = "pmovsxwq", Pmovsxdq = "pmovsxdq", Pmovzxbw = "pmovzxbw", Pmovzxbd = "pmovzxbd", Pmovzxbq = "pmovzxbq",
            Pmovzxwd = "pmovzxwd", Pmovzxwq = "pmovzxwq", Pmovzxdq = "pmovzxdq";
    }
    xmm_imm! {
        "sse2": Pshufd = "pshufd", Pshuflw = "pshuflw", Pshufhw = "pshufhw", Shufps = "shufps", Shufpd = "shufpd";
        "ssse3": Palignr = "palignr";
        "sse4.1": Blendps = "blendps", Blendpd = "blendpd", Pblendw = "pblendw", Insertps = "insertps";
    }
    let mut r = Random::new();
    for _ in 0..ROUNDS {
        let (a, b, c) = (r.vector(), r.vector(), r.vector());
        macro_rules! blend {
            ($($op:ident = $text:literal),*) => {$(
                let mut v = host::vec(a);
                // SAFETY: the host has SSE4.1.
                unsafe {
                    asm!(concat!($text, " {v}, {w}"), v = inout(xmm_reg) v, w = in(xmm_reg) host::vec(b), in("xmm0") host::vec(c))
                };
                assert_eq!($op::portable(a, b, c), host::bits(v), "{} of {a:032x}, {b:032x}, {c:032x}", $text);
                assert_eq!($op::eval(a, b, c), host::bits(v));
            )*};
        }
        if is_x86_feature_detected!("sse4.1") {
            blend!(Pblendvb = "pblendvb", Blendvps = "blendvps", Blendvpd = "blendvpd");
        }
    }
}

#[test]
fn byte_shifts_agree_with_the_host() {
    macro_rules! shifts {
        ($($n:literal)*) => {$({
            let mut r = Random::new();
            let a = r.vector();
            let (mut left, mut right) = (host::vec(a), host::vec(a));
            // SAFETY: SSE2.
            unsafe {
                asm!(concat!("pslldq {v}, ", $n), v = inout(xmm_reg) left);
                asm!(concat!("psrldq {v}, ", $n), v = inout(xmm_reg) right);
            }
            assert_eq!(Pslldq::eval(a, $n, 0), host::bits(left));
            assert_eq!(Psrldq::eval(a, $n, 0), host::bits(right));
        })*};
    }
    shifts!(0 1 7 8 9 15 16 17 255);
}

#[test]
fn mmx_forms_agree_with_the_host() {
    mmx! {
        Paddb = "paddb mm0, mm1", Paddw = "paddw mm0, mm1", Paddd = "paddd mm0, mm1", Paddq = "paddq mm0, mm1", Psubb = "psubb mm0, mm1",
        Psubw = "psubw mm0, mm1", Psubd = "psubd mm0, mm1", Psubq = "psubq mm0, mm1", Paddsb = "paddsb mm0, mm1",
        Paddsw = "paddsw mm0, mm1", Paddusb = "paddusb mm0, mm1", Paddusw = "paddusw mm0, mm1", Psubsb = "psubsb mm0, mm1",
        Psubsw = "psubsw mm0, mm1", Psubusb = "psubusb mm0, mm1", Psubusw = "psubusw mm0, mm1", Pmullw = "pmullw mm0, mm1",
        Pmulhw = "pmulhw mm0, mm1", Pmulhuw = "pmulhuw mm0, mm1", Pmuludq = "pmuludq mm0, mm1", Pmaddwd = "pmaddwd mm0, mm1",
        Psadbw = "psadbw mm0, mm1", Pavgb = "pavgb mm0, mm1", Pavgw = "pavgw mm0, mm1", Pminsw = "pminsw mm0, mm1",
        Pminub = "pminub mm0, mm1", Pmaxsw = "pmaxsw mm0, mm1", Pmaxub = "pmaxub mm0, mm1", Pcmpeqb = "pcmpeqb mm0, mm1",
        Pcmpeqw = "pcmpeqw mm0, mm1", Pcmpeqd = "pcmpeqd mm0, mm1", Pcmpgtb = "pcmpgtb mm0, mm1", Pcmpgtw = "pcmpgtw mm0, mm1",
        Pcmpgtd = "pcmpgtd mm0, mm1", Pand = "pand mm0, mm1", Pandn = "pandn mm0, mm1", Por = "por mm0, mm1", Pxor = "pxor mm0, mm1",
        Psllw = "psllw mm0, mm1", Pslld = "pslld mm0, mm1", Psllq = "psllq mm0, mm1", Psrlw = "psrlw mm0, mm1",
        Psrld = "psrld mm0, mm1", Psrlq = "psrlq mm0, mm1", Psraw = "psraw mm0, mm1", Psrad = "psrad mm0, mm1",
        Punpcklbw = "punpcklbw mm0, mm1", Punpcklwd = "punpcklwd mm0, mm1", Punpckldq = "punpckldq mm0, mm1",
        Punpckhbw = "punpckhbw mm0, mm1", Punpckhwd = "punpckhwd mm0, mm1", Punpckhdq = "punpckhdq mm0, mm1",
        Packsswb = "packsswb mm0, mm1", Packuswb = "packuswb mm0, mm1", Packssdw = "packssdw mm0, mm1",
        Pshufw = "pshufw mm0, mm1, 0", Pshufw = "pshufw mm0, mm1, 27", Pshufw = "pshufw mm0, mm1, 147",
    }
    if is_x86_feature_detected!("ssse3") {
        mmx! {
            Pabsb = "pabsb mm0, mm1", Pabsw = "pabsw mm0, mm1", Pabsd = "pabsd mm0, mm1", Psignb = "psignb mm0, mm1",
            Psignw = "psignw mm0, mm1", Psignd = "psignd mm0, mm1", Phaddw = "phaddw mm0, mm1", Phaddsw = "phaddsw mm0, mm1",
            Phsubw = "phsubw mm0, mm1", Phsubsw = "phsubsw mm0, mm1", Phaddd = "phaddd mm0, mm1", Phsubd = "phsubd mm0, mm1",
            Pmulhrsw = "pmulhrsw mm0, mm1", Pmaddubsw = "pmaddubsw mm0, mm1", Pshufb = "pshufb mm0, mm1",
            Palignr = "palignr mm0, mm1, 0", Palignr = "palignr mm0, mm1, 3", Palignr = "palignr mm0, mm1, 8",
            Palignr = "palignr mm0, mm1, 13", Palignr = "palignr mm0, mm1, 16", Palignr = "palignr mm0, mm1, 200",
        }
    }
}

#[test]
fn sign_masks_and_ptest_agree_with_the_host() {
    let mut r = Random::new();
    for n in 0..ROUNDS {
        let a = r.vector();
        let b = if n % 3 == 0 { a & r.vector() } else { r.vector() & if n % 3 == 1 { !a } else { !0 } };
        macro_rules! mask {
            ($($op:ident = $text:literal),*) => {$(
                let want: u64;
                // SAFETY: SSE2.
                unsafe { asm!(concat!($text, " {r:e}, {v}"), r = out(reg) want, v = in(xmm_reg) host::vec(a)) };
                assert_eq!($op::eval(a), want, "{} of {a:032x}", $text);
            )*};
        }
        mask!(Pmovmskb = "pmovmskb", Movmskps = "movmskps", Movmskpd = "movmskpd");
        if is_x86_feature_detected!("sse4.1") {
            let flags: u64;
            // SAFETY: the host has SSE4.1; what is pushed is popped.
            unsafe {
                asm!("ptest {v}, {w}", "pushfq", "pop {f}", v = in(xmm_reg) host::vec(a), w = in(xmm_reg) host::vec(b), f = out(reg) flags)
            };
            assert_eq!(Ptest::eval(a, b), flags & fl::ARITH, "ptest of {a:032x} and {b:032x}");
        }
    }
}

#[test]
fn crypto_agrees_with_the_host() {
    xmm! {
        "aes": crypto::Aesenc = "aesenc", crypto::Aesenclast = "aesenclast", crypto::Aesdec = "aesdec", crypto::Aesdeclast = "aesdeclast",
            crypto::Aesimc = "aesimc";
        "sha": crypto::Sha1nexte = "sha1nexte", crypto::Sha1msg1 = "sha1msg1", crypto::Sha1msg2 = "sha1msg2",
            crypto::Sha256msg1 = "sha256msg1", crypto::Sha256msg2 = "sha256msg2";
    }
    xmm_imm! {
        "aes": crypto::Aeskeygenassist = "aeskeygenassist";
        "pclmulqdq": crypto::Pclmulqdq = "pclmulqdq";
    }
    if is_x86_feature_detected!("sha") {
        let mut r = Random::new();
        for _ in 0..ROUNDS {
            let (a, b, c) = (r.vector(), r.vector(), r.vector());
            for imm in 0..4 {
                assert_eq!(crypto::Sha1rnds4::portable(a, b, imm), crypto::Sha1rnds4::eval(a, b, imm));
            }
            assert_eq!(crypto::Sha256rnds2::portable(a, b, c), crypto::Sha256rnds2::eval(a, b, c));
        }
    }
}

/// What the host makes of a string comparison: index, mask, flags.
fn string_oracle<const I: u8, const EXPLICIT: bool>(a: u128, la: i32, b: u128, lb: i32) -> (u32, u128, u64) {
    let (va, vb) = (host::vec(a), host::vec(b));
    let (mask, flags, index): (_, u64, u64);
    // SAFETY: the host has SSE4.2; what is pushed is popped.
    unsafe {
        if EXPLICIT {
            asm!("pcmpestri {a}, {b}, {i}", "pushfq", "pop {f}", a = in(xmm_reg) va, b = in(xmm_reg) vb, i = const I, f = out(reg) flags,
                in("eax") la, in("edx") lb, out("rcx") index);
            asm!("pcmpestrm {a}, {b}, {i}", a = in(xmm_reg) va, b = in(xmm_reg) vb, i = const I, in("eax") la, in("edx") lb,
                out("xmm0") mask);
        } else {
            asm!("pcmpistri {a}, {b}, {i}", "pushfq", "pop {f}", a = in(xmm_reg) va, b = in(xmm_reg) vb, i = const I, f = out(reg) flags,
                out("rcx") index);
            asm!("pcmpistrm {a}, {b}, {i}", a = in(xmm_reg) va, b = in(xmm_reg) vb, i = const I, out("xmm0") mask);
        }
    }
    (index as u32, host::bits(mask), flags & fl::ARITH)
}

#[test]
fn string_comparisons_agree_with_the_host_for_every_immediate() {
    if !is_x86_feature_detected!("sse4.2") {
        return;
    }
    type Oracle = fn(u128, i32, u128, i32) -> (u32, u128, u64);
    macro_rules! table {
        ($($h:literal)*) => { [$(table!(@ $h 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15)),*] };
        (@ $h:literal $($l:literal)*) => {
            [$((
                string_oracle::<{ $h * 16 + $l }, false> as Oracle,
                string_oracle::<{ $h * 16 + $l }, true> as Oracle,
            )),*]
        };
    }
    let table = table!(0 1 2 3 4 5 6 7);
    let mut r = Random::new();
    // Few distinct elements, so that matches, ranges and ends are frequent.
    let text = |r: &mut Random| {
        u128::from_le_bytes(std::array::from_fn(|k| match r.below(40) {
            0 => 0,
            1..4 => 0x80,
            // Zeros at odd places make small words.
            n if k & 1 != 0 && n & 1 != 0 => 0,
            _ => 1 + r.below(10) as u8,
        }))
    };
    for (imm, (by_zero, by_length)) in table.iter().flatten().enumerate() {
        let imm = imm as u8;
        for n in 0..200 {
            let a = text(&mut r);
            let b = if n % 4 == 0 { a >> (8 * r.below(4)) } else { text(&mut r) };
            let (la, lb) = (r.below(40) as i32 - 20, r.below(40) as i32 - 20);
            let all = |o: Outcome| (o.index(imm), o.mask(imm), o.flags);
            assert_eq!(
                all(implicit(a, b, imm)),
                by_zero(a, 0, b, 0),
                "implicit, {imm:#x}: {a:032x} {b:032x}"
            );
            let got = all(explicit(a, la.into(), b, lb.into(), imm));
            assert_eq!(got, by_length(a, la, b, lb), "explicit, {imm:#x}: {a:032x}[{la}] {b:032x}[{lb}]");
        }
    }
}
