//! F16C: between half and single precision (SDM volume 2, VCVTPH2PS and VCVTPS2PH).
//!
//! Half-precision denormals are numbers whatever MXCSR.DAZ says and raise no denormal exception, and results are not
//! flushed by MXCSR.FTZ. Narrowing rounds as the immediate says, or by MXCSR if its bit 2 is set.
use super::exec::{FloatOp, VecId};
use super::lanes::{of_u32s, u16s, u32s};
use super::soft::{self, Env, Format, Kind, Single, open, signed};

/// binary16.
pub struct Half;
impl Format for Half {
    const FRACTION: u32 = 10;
    const EXPONENT: u32 = 5;
    fn lane(v: u128, n: usize) -> u64 {
        u64::from(u16s(v)[n & 7])
    }
    fn fill(mut f: impl FnMut(usize) -> u64) -> u128 {
        super::lanes::of_u16s(std::array::from_fn(|k| f(k) as u16))
    }
    fn with_low(v: u128, x: u64) -> u128 {
        v & !0xffff | u128::from(x as u16)
    }
}

/// Exact but for signalling NaNs.
fn widen(x: u64, env: &mut Env) -> u64 {
    if let Some(n) = soft::nan1::<Half>(x, env) {
        let fraction = n & ((1 << Half::FRACTION) - 1);
        return signed::<Single>(
            n & Half::SIGN != 0,
            Single::INF | fraction << (Single::FRACTION - Half::FRACTION),
        );
    }
    let n = open::<Half>(x);
    match n.kind {
        Kind::Zero => signed::<Single>(n.negative, 0),
        Kind::Infinite => signed::<Single>(n.negative, Single::INF),
        Kind::Finite { sig, exp } => soft::round::<Single>(n.negative, sig.into(), exp, env),
    }
}

/// `b`'s four singles as halves in the low 64 bits.
fn narrow(b: u128, imm: u8, env: &mut Env) -> u128 {
    let (rc, ftz) = (env.rc, env.ftz);
    if imm & 4 == 0 {
        env.rc = imm & 3;
    }
    env.ftz = false;
    let r = Half::fill(|k| if k < 4 { soft::convert::<Single, Half>(u32s(b)[k & 3].into(), env) } else { 0 });
    (env.rc, env.ftz) = (rc, ftz);
    r
}

/// `VCVTPH2PS`: four halves in the low 64 bits to four singles.
pub struct Vcvtph2ps;
impl FloatOp for Vcvtph2ps {
    const ID: VecId = VecId::Vcvtph2ps;
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    fn on_host() -> bool {
        is_x86_feature_detected!("f16c")
    }
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn host<const FAST: bool>(a: u128, b: u128, _: u8, c: *mut super::mxcsr::Csr) -> u128 {
        super::host::frame_vec!(FAST, c, "vcvtph2ps {a}, {b}", a, b)
    }
    fn soft(_: u128, b: u128, _: u8, env: &mut Env) -> u128 {
        of_u32s(std::array::from_fn(|k| widen(Half::lane(b, k), env) as u32))
    }
}

/// `VCVTPS2PH`: four singles to four halves in the low 64 bits.
pub struct Vcvtps2ph;
impl FloatOp for Vcvtps2ph {
    const ID: VecId = VecId::Vcvtps2ph;
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    fn on_host() -> bool {
        is_x86_feature_detected!("f16c")
    }
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn host<const FAST: bool>(a: u128, b: u128, imm: u8, c: *mut super::mxcsr::Csr) -> u128 {
        super::host::by_immediate!(FAST, c, "vcvtps2ph {a}, {b}", a, b, imm & 7; 0 1 2 3, 4)
    }
    fn soft(_: u128, b: u128, imm: u8, env: &mut Env) -> u128 {
        narrow(b, imm, env)
    }
}
