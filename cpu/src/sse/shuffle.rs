//! Operations that move lanes about: interleave, pack, shuffle, align, blend, insert, widen (SDM volume 2).
use super::declare::{vec_ops, vec3_ops};
use super::exec::{VecExec, VecId, VecOp, VecOp3};
use super::forms::{
    Bin, Bin3, M128, Mem, Xmm, narrow16, narrow32, narrow64, packed, packed_or_mmx, packed_or_mmx32,
    source_in_memory,
};
use super::lanes::*;
use crate::width::W32;
use iced_x86::{Instruction, Mnemonic};

/// Interleaves the lanes of `a` and `b` from lane `from` on.
macro_rules! interleave {
    ($get:ident, $put:ident, $a:expr, $b:expr, $from:expr) => {{
        let (a, b) = ($get($a), $get($b));
        $put(std::array::from_fn(|k| if k & 1 == 0 { a[$from + k / 2] } else { b[$from + k / 2] }))
    }};
}
/// Lanes of `a`, then lanes of `b`, each narrowed by `f`.
macro_rules! pack {
    ($get:ident, $put:ident, $a:expr, $b:expr, $f:expr) => {{
        let (a, b) = ($get($a), $get($b));
        let n = a.len();
        $put(std::array::from_fn(|k| $f(if k < n { a[k] } else { b[k - n] })))
    }};
}
/// The same for MMX: the pair of operands is one vector, the result its low half.
macro_rules! pack_mmx {
    ($get:ident, $put:ident, $a:expr, $b:expr, $f:expr) => {
        pack!($get, $put, u128::from($a) | u128::from($b) << 64, 0, $f) as u64
    };
}

/// Lane k of `b` if bit k of the immediate is set, else of `a`.
macro_rules! blend_by_bits {
    ($get:ident, $put:ident, $a:expr, $b:expr, $imm:expr) => {{
        let (a, b) = ($get($a), $get($b));
        $put(std::array::from_fn(|k| if ($imm >> k) & 1 != 0 { b[k] } else { a[k] }))
    }};
}

fn to_i8(x: i16) -> i8 {
    x.clamp(-128, 127) as i8
}
fn to_u8(x: i16) -> u8 {
    x.clamp(0, 255) as u8
}
fn to_i16(x: i32) -> i16 {
    x.clamp(-32768, 32767) as i16
}
fn to_u16(x: i32) -> u16 {
    x.clamp(0, 65535) as u16
}
/// The two-bit field `k` of an immediate.
#[inline(always)]
fn field(imm: u8, k: usize) -> usize {
    usize::from(imm >> (2 * k) & 3)
}
/// High half of an MMX interleave, whose operands were interleaved from lane 0 as vectors.
fn high(v: u128) -> u64 {
    (v >> 64) as u64
}

vec_ops! {
    Punpcklbw: "sse2" = |a, b, i| interleave!(u8s, of_u8s, a, b, 0);
    Punpcklwd: "sse2" = |a, b, i| interleave!(u16s, of_u16s, a, b, 0);
    Punpckldq: "sse2" = |a, b, i| interleave!(u32s, of_u32s, a, b, 0);
    Punpcklqdq = |a, b, i| interleave!(u64s, of_u64s, a, b, 0);
    Punpckhbw: "sse2" = |a, b, i| interleave!(u8s, of_u8s, a, b, 8), mmx high(Punpcklbw::eval(a.into(), b.into(), 0));
    Punpckhwd: "sse2" = |a, b, i| interleave!(u16s, of_u16s, a, b, 4), mmx high(Punpcklwd::eval(a.into(), b.into(), 0));
    Punpckhdq: "sse2" = |a, b, i| interleave!(u32s, of_u32s, a, b, 2), mmx high(Punpckldq::eval(a.into(), b.into(), 0));
    Punpckhqdq = |a, b, i| interleave!(u64s, of_u64s, a, b, 1);
    Unpcklps: "sse2" = |a, b, i| interleave!(u32s, of_u32s, a, b, 0);
    Unpckhps: "sse2" = |a, b, i| interleave!(u32s, of_u32s, a, b, 2);
    Unpcklpd = |a, b, i| interleave!(u64s, of_u64s, a, b, 0);
    Unpckhpd = |a, b, i| interleave!(u64s, of_u64s, a, b, 1);

    Packsswb: "sse2" = |a, b, i| pack!(i16s, of_i8s, a, b, to_i8), mmx pack_mmx!(i16s, of_i8s, a, b, to_i8);
    Packuswb: "sse2" = |a, b, i| pack!(i16s, of_u8s, a, b, to_u8), mmx pack_mmx!(i16s, of_u8s, a, b, to_u8);
    Packssdw: "sse2" = |a, b, i| pack!(i32s, of_i16s, a, b, to_i16), mmx pack_mmx!(i32s, of_i16s, a, b, to_i16);
    Packusdw: "sse4.1" = |a, b, i| pack!(i32s, of_u16s, a, b, to_u16);

    Pshufb: "ssse3" = |a, b, i| {
        let a = u8s(a);
        each_u8(b, |n| if n & 0x80 != 0 { 0 } else { a[usize::from(n & 15)] })
    }, mmx {
        let a = a.to_le_bytes();
        u64::from_le_bytes(b.to_le_bytes().map(|n| if n & 0x80 != 0 { 0 } else { a[usize::from(n & 7)] }))
    };
    Pshufd = |a, b, i| { let b = u32s(b); of_u32s(std::array::from_fn(|k| b[field(i, k)])) };
    Pshuflw = |a, b, i| {
        let b = u16s(b);
        of_u16s(std::array::from_fn(|k| if k < 4 { b[field(i, k)] } else { b[k] }))
    };
    Pshufhw = |a, b, i| {
        let b = u16s(b);
        of_u16s(std::array::from_fn(|k| if k < 4 { b[k] } else { b[4 + field(i, k - 4)] }))
    };
    // On MMX registers only.
    Pshufw = |a, b, i| Pshuflw::eval(a, b, i);
    Shufps = |a, b, i| {
        let (a, b) = (u32s(a), u32s(b));
        of_u32s([a[field(i, 0)], a[field(i, 1)], b[field(i, 2)], b[field(i, 3)]])
    };
    Shufpd = |a, b, i| of_u64s([u64s(a)[usize::from(i & 1)], u64s(b)[usize::from(i >> 1 & 1)]]);
    Palignr = |a, b, i| {
        let n = 8 * u32::from(i);
        match n {
            0 => b,
            1..128 => b >> n | a << (128 - n),
            128..256 => a >> (n - 128),
            _ => 0,
        }
    }, mmx {
        let both = u128::from(b) | u128::from(a) << 64;
        if i > 15 { 0 } else { (both >> (8 * i)) as u64 }
    };

    Movddup = |a, b, i| { let x = b as u64; of_u64s([x, x]) };
    Movshdup: "sse3" = |a, b, i| { let b = u32s(b); of_u32s([b[1], b[1], b[3], b[3]]) };
    Movsldup: "sse3" = |a, b, i| { let b = u32s(b); of_u32s([b[0], b[0], b[2], b[2]]) };

    Blendps = |a, b, i| blend_by_bits!(u32s, of_u32s, a, b, i);
    Blendpd = |a, b, i| blend_by_bits!(u64s, of_u64s, a, b, i);
    Pblendw = |a, b, i| blend_by_bits!(u16s, of_u16s, a, b, i);
    Insertps = |a, b, i| inserted(a, u32s(b)[usize::from(i >> 6)], i);

    Pmovsxbw: "sse4.1" = |a, b, i| of_i16s(std::array::from_fn(|k| i8s(b)[k].into()));
    Pmovsxbd: "sse4.1" = |a, b, i| of_i32s(std::array::from_fn(|k| i8s(b)[k].into()));
    Pmovsxbq: "sse4.1" = |a, b, i| of_i64s(std::array::from_fn(|k| i8s(b)[k].into()));
    Pmovsxwd: "sse4.1" = |a, b, i| of_i32s(std::array::from_fn(|k| i16s(b)[k].into()));
    Pmovsxwq: "sse4.1" = |a, b, i| of_i64s(std::array::from_fn(|k| i16s(b)[k].into()));
    Pmovsxdq: "sse4.1" = |a, b, i| of_i64s(std::array::from_fn(|k| i32s(b)[k].into()));
    Pmovzxbw: "sse4.1" = |a, b, i| of_u16s(std::array::from_fn(|k| u8s(b)[k].into()));
    Pmovzxbd: "sse4.1" = |a, b, i| of_u32s(std::array::from_fn(|k| u8s(b)[k].into()));
    Pmovzxbq: "sse4.1" = |a, b, i| of_u64s(std::array::from_fn(|k| u8s(b)[k].into()));
    Pmovzxwd: "sse4.1" = |a, b, i| of_u32s(std::array::from_fn(|k| u16s(b)[k].into()));
    Pmovzxwq: "sse4.1" = |a, b, i| of_u64s(std::array::from_fn(|k| u16s(b)[k].into()));
    Pmovzxdq: "sse4.1" = |a, b, i| of_u64s(std::array::from_fn(|k| u32s(b)[k].into()));
}

/// `a` with `x` put where bits 4-5 of the immediate say, and zeros where bits 0-3 say.
#[inline(always)]
fn inserted(a: u128, x: u32, imm: u8) -> u128 {
    let mut a = u32s(a);
    a[usize::from(imm >> 4 & 3)] = x;
    of_u32s(std::array::from_fn(|k| if imm >> k & 1 != 0 { 0 } else { a[k] }))
}

/// `INSERTPS` from memory: the source is one element, whatever bits 6-7 of the immediate say.
pub struct InsertpsMem;
impl VecOp for InsertpsMem {
    const ID: VecId = VecId::Insertps;
    #[inline(always)]
    fn portable(a: u128, b: u128, imm: u8) -> u128 {
        inserted(a, b as u32, imm)
    }
}

/// `b` where the selector's lane of the given type has its top bit set, else `a`.
macro_rules! blend {
    ($get:ident, $put:ident, $shift:literal, $a:expr, $b:expr, $c:expr) => {{
        let chosen = $put($get($c).map(|x| x >> $shift));
        ($a & !chosen) | ($b & chosen)
    }};
}
vec3_ops! {
    Pblendvb: "sse4.1" = |a, b, c| blend!(i8s, of_i8s, 7, a, b, c);
    Blendvps: "sse4.1" = |a, b, c| blend!(i32s, of_i32s, 31, a, b, c);
    Blendvpd: "sse4.1" = |a, b, c| blend!(i64s, of_i64s, 63, a, b, c);
}

/// Handlers of this module's instructions.
pub(super) fn select<E: VecExec>(i: &Instruction) -> Option<E::Handler> {
    fn blend<E: VecExec, O: VecOp3>(i: &Instruction) -> E::Handler {
        if source_in_memory(i) { E::handler::<Bin3<O, M128>>() } else { E::handler::<Bin3<O, Xmm>>() }
    }
    macro_rules! by_name {
        ($($form:ident: $($name:ident)*;)*) => {
            match i.mnemonic() {
                $($(Mnemonic::$name => $form::<E, $name>(i),)*)*
                Mnemonic::Insertps if source_in_memory(i) => E::handler::<Bin<InsertpsMem, Mem<W32>>>(),
                Mnemonic::Insertps => E::handler::<Bin<Insertps, Xmm>>(),
                _ => return None,
            }
        };
    }
    Some(by_name! {
        packed_or_mmx32: Punpcklbw Punpcklwd Punpckldq;
        packed_or_mmx: Punpckhbw Punpckhwd Punpckhdq Packsswb Packuswb Packssdw Pshufb Palignr Pshufw;
        packed: Punpcklqdq Punpckhqdq Unpcklps Unpckhps Unpcklpd Unpckhpd Packusdw Pshufd Pshuflw Pshufhw Shufps
            Shufpd Movshdup Movsldup Blendps Blendpd Pblendw;
        narrow64: Movddup Pmovsxbw Pmovsxwd Pmovsxdq Pmovzxbw Pmovzxwd Pmovzxdq;
        narrow32: Pmovsxbd Pmovsxwq Pmovzxbd Pmovzxwq;
        narrow16: Pmovsxbq Pmovzxbq;
        blend: Pblendvb Blendvps Blendvpd;
    })
}
