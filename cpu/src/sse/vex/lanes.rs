//! Operations that only VEX prefixes encode: broadcasts, shifts by counts of their own, permutations, tests of signs.
use super::super::declare::vec_ops;
use super::super::exec::{PairOp, VecFlags, VecId};
use super::super::lanes::*;
use crate::state::fl;

vec_ops! {
    // The low element of the source, everywhere. VBROADCASTSS and VBROADCASTSD are Vpbroadcastd and Vpbroadcastq.
    Vpbroadcastb = |a, b, i| of_u8s([b as u8; 16]);
    Vpbroadcastw = |a, b, i| of_u16s([b as u16; 8]);
    Vpbroadcastd = |a, b, i| of_u32s([b as u32; 4]);
    Vpbroadcastq = |a, b, i| of_u64s([b as u64; 2]);

    // Elements of `a`, chosen by `b`.
    Vpermilps = |a, b, i| { let a = u32s(a); each_u32(b, |n| a[(n & 3) as usize]) };
    Vpermilpd = |a, b, i| { let a = u64s(a); each_u64(b, |n| a[(n >> 1 & 1) as usize]) };

    Vpsllvd = |a, b, i| map_u32(a, b, |x, n| if n > 31 { 0 } else { x << n });
    Vpsllvq = |a, b, i| map_u64(a, b, |x, n| if n > 63 { 0 } else { x << n });
    Vpsrlvd = |a, b, i| map_u32(a, b, |x, n| if n > 31 { 0 } else { x >> n });
    Vpsrlvq = |a, b, i| map_u64(a, b, |x, n| if n > 63 { 0 } else { x >> n });
    Vpsravd = |a, b, i| map_u32(a, b, |x, n| (x as i32 >> n.min(31)) as u32);
}

/// `VPERMD`: elements of the third operand, chosen by those of the second.
pub struct Vpermd;
impl PairOp for Vpermd {
    const ID: VecId = VecId::Vpermd;
    #[inline(always)]
    fn eval(a: [u128; 2], b: [u128; 2]) -> [u128; 2] {
        let [low, high] = b.map(u32s);
        let element = |n: u32| if n & 4 == 0 { low[(n & 3) as usize] } else { high[(n & 3) as usize] };
        a.map(|v| each_u32(v, element))
    }
}

/// ZF and CF as PTEST has them, of sign bits alone.
macro_rules! sign_test {
    ($name:ident, $signs:expr) => {
        #[doc = concat!("`", stringify!($name), "`: PTEST of sign bits.")]
        pub struct $name;
        impl VecFlags for $name {
            const ID: VecId = VecId::$name;
            #[inline(always)]
            fn eval(a: u128, b: u128) -> u64 {
                (if a & b & $signs == 0 { fl::ZF } else { 0 })
                    | (if !a & b & $signs == 0 { fl::CF } else { 0 })
            }
        }
    };
}
sign_test!(Vtestps, 0x8000_0000_8000_0000_8000_0000_8000_0000);
sign_test!(Vtestpd, 0x8000_0000_0000_0000_8000_0000_0000_0000);
