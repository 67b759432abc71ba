//! Vectors as lanes: a `u128` taken apart into integers of one size and put together again, lane 0 lowest.
//! Every function is pure and meant to be inlined: the compiler turns the arrays into host vector operations.

macro_rules! lanes {
    ($get:ident, $put:ident, $map:ident, $map1:ident, $t:ty, $count:literal, $bytes:literal) => {
        #[doc = concat!("The ", stringify!($t), " lanes of `v`.")]
        #[inline(always)]
        pub fn $get(v: u128) -> [$t; $count] {
            let bytes = v.to_le_bytes();
            let (chunks, _) = bytes.as_chunks::<$bytes>();
            std::array::from_fn(|i| <$t>::from_le_bytes(chunks[i]))
        }
        #[doc = concat!("The vector of these ", stringify!($t), " lanes.")]
        #[inline(always)]
        pub fn $put(lanes: [$t; $count]) -> u128 {
            let mut bytes = [0; 16];
            let (chunks, _) = bytes.as_chunks_mut::<$bytes>();
            for (chunk, lane) in chunks.iter_mut().zip(lanes) {
                *chunk = lane.to_le_bytes();
            }
            u128::from_le_bytes(bytes)
        }
        #[doc = concat!("`f` of each pair of ", stringify!($t), " lanes.")]
        #[inline(always)]
        pub fn $map(a: u128, b: u128, f: impl Fn($t, $t) -> $t) -> u128 {
            let (a, b) = ($get(a), $get(b));
            $put(std::array::from_fn(|i| f(a[i], b[i])))
        }
        #[doc = concat!("`f` of each ", stringify!($t), " lane.")]
        #[allow(dead_code)] // a full set, whether or not each lane size needs it
        #[inline(always)]
        pub fn $map1(a: u128, f: impl Fn($t) -> $t) -> u128 {
            $put($get(a).map(f))
        }
    };
}
lanes!(u8s, of_u8s, map_u8, each_u8, u8, 16, 1);
lanes!(i8s, of_i8s, map_i8, each_i8, i8, 16, 1);
lanes!(u16s, of_u16s, map_u16, each_u16, u16, 8, 2);
lanes!(i16s, of_i16s, map_i16, each_i16, i16, 8, 2);
lanes!(u32s, of_u32s, map_u32, each_u32, u32, 4, 4);
lanes!(i32s, of_i32s, map_i32, each_i32, i32, 4, 4);
lanes!(u64s, of_u64s, map_u64, each_u64, u64, 2, 8);
lanes!(i64s, of_i64s, map_i64, each_i64, i64, 2, 8);

/// A vector's low 64 bits.
pub const LOW64: u128 = u64::MAX as u128;
/// A vector's low 32 bits.
pub const LOW32: u128 = u32::MAX as u128;
