//! AES-NI, PCLMULQDQ and SHA: by the host's own instructions where it has them, else in portable code.
//!
//! The AES state is the vector's bytes in column order (FIPS 197; SDM volume 1, 12.13). SHA words stand
//! highest first: the lane that the manual calls A is lane 3 (SDM volume 2, SHA1RNDS4).
use super::declare::{vec_ops, vec3_ops};
use super::exec::{VecExec, VecId, VecOp};
use super::forms::{Bin3, M128, Xmm, packed, source_in_memory};
use super::lanes::*;
use iced_x86::{Instruction, Mnemonic};

vec_ops! {
    Aesenc: "aes" = |a, b, i| portable::aesenc(a, b);
    Aesenclast: "aes" = |a, b, i| portable::aesenclast(a, b);
    Aesdec: "aes" = |a, b, i| portable::aesdec(a, b);
    Aesdeclast: "aes" = |a, b, i| portable::aesdeclast(a, b);
    Aesimc: "aes" = |a, b, i| portable::aesimc(b);
    Aeskeygenassist = |a, b, i| portable::aeskeygenassist(b, i);
    Sha1nexte: "sha" = |a, b, i| portable::sha1nexte(a, b);
    Sha1msg1: "sha" = |a, b, i| portable::sha1msg1(a, b);
    Sha1msg2: "sha" = |a, b, i| portable::sha1msg2(a, b);
    Sha256msg1: "sha" = |a, b, i| portable::sha256msg1(a, b);
    Sha256msg2: "sha" = |a, b, i| portable::sha256msg2(a, b);
}
vec3_ops! {
    // Two rounds; the third vector holds the sums of message and constants.
    Sha256rnds2: "sha" = |a, b, c| portable::sha256rnds2(a, b, c);
}

/// The host's instruction with a constant immediate, which the host must have: `host_imm!("name", a, b,
/// constant)`.
#[cfg(target_arch = "x86_64")]
macro_rules! host_imm {
    ($name:literal, $a:expr, $b:expr, $imm:literal) => {{
        let (mut v, w) = (super::host::vec($a), super::host::vec($b));
        // SAFETY: the caller has found the feature; the instruction reads and writes nothing but these
        // registers.
        unsafe {
            std::arch::asm!(
                concat!($name, " {v}, {w}, ", $imm), v = inout(xmm_reg) v, w = in(xmm_reg) w,
                options(pure, nomem, nostack, preserves_flags),
            )
        };
        super::host::bits(v)
    }};
}

/// `PCLMULQDQ`: the carry-less product of the halves that bits 0 and 4 of the immediate choose.
pub struct Pclmulqdq;
impl VecOp for Pclmulqdq {
    const ID: VecId = VecId::Pclmulqdq;
    #[inline(always)]
    fn portable(a: u128, b: u128, imm: u8) -> u128 {
        portable::clmul(u64s(a)[usize::from(imm & 1)], u64s(b)[usize::from((imm >> 4) & 1)])
    }
    #[cfg(target_arch = "x86_64")]
    const BY_HOST: bool = true;
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    fn eval(a: u128, b: u128, imm: u8) -> u128 {
        if !is_x86_feature_detected!("pclmulqdq") {
            return Self::portable(a, b, imm);
        }
        match imm & 0x11 {
            0x00 => host_imm!("pclmulqdq", a, b, 0x00),
            0x01 => host_imm!("pclmulqdq", a, b, 0x01),
            0x10 => host_imm!("pclmulqdq", a, b, 0x10),
            _ => host_imm!("pclmulqdq", a, b, 0x11),
        }
    }
}

/// `SHA1RNDS4`: four rounds with the function that the immediate chooses.
pub struct Sha1rnds4;
impl VecOp for Sha1rnds4 {
    const ID: VecId = VecId::Sha1rnds4;
    #[inline(always)]
    fn portable(a: u128, b: u128, imm: u8) -> u128 {
        portable::sha1rnds4(a, b, imm)
    }
    #[cfg(target_arch = "x86_64")]
    const BY_HOST: bool = true;
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    fn eval(a: u128, b: u128, imm: u8) -> u128 {
        if !is_x86_feature_detected!("sha") {
            return Self::portable(a, b, imm);
        }
        match imm & 3 {
            0 => host_imm!("sha1rnds4", a, b, 0),
            1 => host_imm!("sha1rnds4", a, b, 1),
            2 => host_imm!("sha1rnds4", a, b, 2),
            _ => host_imm!("sha1rnds4", a, b, 3),
        }
    }
}

/// The algorithms in portable code.
mod portable {
    use super::{of_u32s, u8s, u32s};

    /// Product in GF(2^8) modulo x^8 + x^4 + x^3 + x + 1.
    const fn gf_mul(mut a: u8, mut b: u8) -> u8 {
        let mut r = 0;
        while b != 0 {
            if b & 1 != 0 {
                r ^= a;
            }
            a = a << 1 ^ if a & 0x80 != 0 { 0x1b } else { 0 };
            b >>= 1;
        }
        r
    }
    /// The S-box (FIPS 197, 5.1.1): the inverse in GF(2^8), then an affine map.
    const SBOX: [u8; 256] = {
        let mut t = [0; 256];
        let mut x = 0;
        while x < 256 {
            // x^254 is the inverse, and 0 for 0.
            let mut inverse = 1;
            let mut n = 0;
            while n < 254 {
                inverse = gf_mul(inverse, x as u8);
                n += 1;
            }
            let b = inverse;
            t[x] = b ^ b.rotate_left(1) ^ b.rotate_left(2) ^ b.rotate_left(3) ^ b.rotate_left(4) ^ 0x63;
            x += 1;
        }
        t
    };
    const INVERSE_SBOX: [u8; 256] = {
        let mut t = [0; 256];
        let mut x = 0;
        while x < 256 {
            t[SBOX[x] as usize] = x as u8;
            x += 1;
        }
        t
    };

    fn sub_shift(a: u128) -> [u8; 16] {
        let a = u8s(a);
        std::array::from_fn(|k| SBOX[usize::from(a[(k + 4 * (k & 3)) & 15])])
    }
    fn inverse_sub_shift(a: u128) -> [u8; 16] {
        let a = u8s(a);
        std::array::from_fn(|k| INVERSE_SBOX[usize::from(a[k.wrapping_sub(4 * (k & 3)) & 15])])
    }
    /// Each column times the circulant matrix with first row `m`.
    fn mix(s: [u8; 16], m: [u8; 4]) -> u128 {
        u128::from_le_bytes(std::array::from_fn(|k| {
            (0..4).fold(0, |r, n| r ^ gf_mul(s[(k & 12) + ((k + n) & 3)], m[n]))
        }))
    }
    const MIX: [u8; 4] = [2, 3, 1, 1];
    const INVERSE_MIX: [u8; 4] = [14, 11, 13, 9];

    pub fn aesenc(a: u128, key: u128) -> u128 {
        mix(sub_shift(a), MIX) ^ key
    }
    pub fn aesenclast(a: u128, key: u128) -> u128 {
        u128::from_le_bytes(sub_shift(a)) ^ key
    }
    pub fn aesdec(a: u128, key: u128) -> u128 {
        mix(inverse_sub_shift(a), INVERSE_MIX) ^ key
    }
    pub fn aesdeclast(a: u128, key: u128) -> u128 {
        u128::from_le_bytes(inverse_sub_shift(a)) ^ key
    }
    pub fn aesimc(b: u128) -> u128 {
        mix(u8s(b), INVERSE_MIX)
    }
    pub fn aeskeygenassist(b: u128, imm: u8) -> u128 {
        let sub = |x: u32| u32::from_le_bytes(x.to_le_bytes().map(|n| SBOX[usize::from(n)]));
        let (x1, x3) = (sub(u32s(b)[1]), sub(u32s(b)[3]));
        let rcon = u32::from(imm);
        of_u32s([x1, x1.rotate_right(8) ^ rcon, x3, x3.rotate_right(8) ^ rcon])
    }

    /// Carry-less product.
    pub fn clmul(a: u64, b: u64) -> u128 {
        (0..64).filter(|n| (b >> n) & 1 != 0).fold(0, |r, n| r ^ (u128::from(a) << n))
    }

    pub fn sha1nexte(a: u128, b: u128) -> u128 {
        let [b0, b1, b2, b3] = u32s(b);
        of_u32s([b0, b1, b2, b3.wrapping_add(u32s(a)[3].rotate_left(30))])
    }
    pub fn sha1msg1(a: u128, b: u128) -> u128 {
        let [w3, w2, w1, w0] = u32s(a);
        let [_, _, w5, w4] = u32s(b);
        of_u32s([w5 ^ w3, w4 ^ w2, w3 ^ w1, w2 ^ w0])
    }
    pub fn sha1msg2(a: u128, b: u128) -> u128 {
        let a = u32s(a);
        let [w15, w14, w13, _] = u32s(b);
        let w16 = (a[3] ^ w13).rotate_left(1);
        let w17 = (a[2] ^ w14).rotate_left(1);
        let w18 = (a[1] ^ w15).rotate_left(1);
        let w19 = (a[0] ^ w16).rotate_left(1);
        of_u32s([w19, w18, w17, w16])
    }
    pub fn sha1rnds4(a: u128, b: u128, imm: u8) -> u128 {
        let [mut d, mut c, mut bb, mut aa] = u32s(a);
        let mut e = 0u32;
        let words = u32s(b);
        for n in 0..4 {
            let (f, k) = match imm & 3 {
                0 => (bb & c ^ !bb & d, 0x5a82_7999u32),
                1 => (bb ^ c ^ d, 0x6ed9_eba1),
                2 => (bb & c ^ bb & d ^ c & d, 0x8f1b_bcdc),
                _ => (bb ^ c ^ d, 0xca62_c1d6),
            };
            let next =
                aa.rotate_left(5).wrapping_add(f).wrapping_add(words[3 - n]).wrapping_add(k).wrapping_add(e);
            (e, d, c, bb, aa) = (d, c, bb.rotate_left(30), aa, next);
        }
        of_u32s([d, c, bb, aa])
    }

    fn small_sigma0(x: u32) -> u32 {
        x.rotate_right(7) ^ x.rotate_right(18) ^ x >> 3
    }
    fn small_sigma1(x: u32) -> u32 {
        x.rotate_right(17) ^ x.rotate_right(19) ^ x >> 10
    }
    pub fn sha256msg1(a: u128, b: u128) -> u128 {
        let (a, next) = (u32s(a), u32s(b)[0]);
        let after = [a[1], a[2], a[3], next];
        of_u32s(std::array::from_fn(|k| a[k].wrapping_add(small_sigma0(after[k]))))
    }
    pub fn sha256msg2(a: u128, b: u128) -> u128 {
        let (a, [_, _, w14, w15]) = (u32s(a), u32s(b));
        let w16 = a[0].wrapping_add(small_sigma1(w14));
        let w17 = a[1].wrapping_add(small_sigma1(w15));
        let w18 = a[2].wrapping_add(small_sigma1(w16));
        let w19 = a[3].wrapping_add(small_sigma1(w17));
        of_u32s([w16, w17, w18, w19])
    }
    pub fn sha256rnds2(cdgh: u128, abef: u128, wk: u128) -> u128 {
        let [mut h, mut g, mut d, mut c] = u32s(cdgh);
        let [mut f, mut e, mut b, mut a] = u32s(abef);
        let wk = u32s(wk);
        for k in &wk[..2] {
            let sum1 = e.rotate_right(6) ^ e.rotate_right(11) ^ e.rotate_right(25);
            let sum0 = a.rotate_right(2) ^ a.rotate_right(13) ^ a.rotate_right(22);
            let t1 = h.wrapping_add(sum1).wrapping_add(e & f ^ !e & g).wrapping_add(*k);
            let t2 = sum0.wrapping_add(a & b ^ a & c ^ b & c);
            (h, g, f, e, d, c, b, a) = (g, f, e, d.wrapping_add(t1), c, b, a, t1.wrapping_add(t2));
        }
        of_u32s([f, e, b, a])
    }
}

/// Handlers of this module's instructions.
pub(super) fn select<E: VecExec>(i: &Instruction) -> Option<E::Handler> {
    macro_rules! by_name {
        ($($name:ident)*) => {
            match i.mnemonic() {
                $(Mnemonic::$name => packed::<E, $name>(i),)*
                Mnemonic::Sha256rnds2 if source_in_memory(i) => E::handler::<Bin3<Sha256rnds2, M128>>(),
                Mnemonic::Sha256rnds2 => E::handler::<Bin3<Sha256rnds2, Xmm>>(),
                _ => return None,
            }
        };
    }
    Some(by_name! {
        Aesenc Aesenclast Aesdec Aesdeclast Aesimc Aeskeygenassist Pclmulqdq Sha1nexte Sha1msg1 Sha1msg2 Sha1rnds4
        Sha256msg1 Sha256msg2
    })
}
