//! The macros that vector operations on bits are declared with.

/// Declares vector operations under the names of their mnemonics: each becomes a type that implements
/// [`super::exec::VecOp`]. After the name may stand the feature that an x86-64 host needs to execute the
/// instruction itself (`{a} = name({a}, {b})`): the compiler would take many of these apart into single
/// lanes. `mmx` gives the form on 64-bit registers where it is not the low half of the 128-bit one.
macro_rules! vec_ops {
    ($($name:ident $(: $feature:tt)? = |$a:ident, $b:ident, $i:ident| $body:expr $(, mmx $m:expr)?;)*) => {$(
        #[doc = concat!("The operation of `", stringify!($name), "`.")]
        pub struct $name;
        impl $crate::sse::exec::VecOp for $name {
            const ID: $crate::sse::exec::VecId = $crate::sse::exec::VecId::$name;
            #[allow(unused_variables)]
            #[inline(always)]
            fn portable($a: u128, $b: u128, $i: u8) -> u128 {
                $body
            }
            $(
                #[cfg(target_arch = "x86_64")]
                const BY_HOST: bool = !$feature.is_empty();
                #[cfg(target_arch = "x86_64")]
                #[inline(always)]
                fn eval(a: u128, b: u128, imm: u8) -> u128 {
                    if !is_x86_feature_detected!($feature) {
                        return Self::portable(a, b, imm);
                    }
                    let (mut v, w) = ($crate::sse::host::vec(a), $crate::sse::host::vec(b));
                    // SAFETY: the host has the instruction, which reads and writes nothing but these
                    // registers.
                    unsafe {
                        std::arch::asm!(
                            concat!(stringify!($name), " {v}, {w}"), v = inout(xmm_reg) v, w = in(xmm_reg) w,
                            options(pure, nomem, nostack, preserves_flags),
                        )
                    };
                    $crate::sse::host::bits(v)
                }
            )?
            $(
                #[allow(unused_variables)]
                #[inline(always)]
                fn portable64($a: u64, $b: u64, $i: u8) -> u64 {
                    $m
                }
                #[inline(always)]
                fn eval64(a: u64, b: u64, imm: u8) -> u64 {
                    Self::portable64(a, b, imm)
                }
            )?
        }
    )*};
}
pub(super) use vec_ops;

/// The same for operations whose third operand is XMM0: [`super::exec::VecOp3`].
macro_rules! vec3_ops {
    ($($name:ident: $feature:tt = |$a:ident, $b:ident, $c:ident| $body:expr;)*) => {$(
        #[doc = concat!("The operation of `", stringify!($name), "`.")]
        pub struct $name;
        impl $crate::sse::exec::VecOp3 for $name {
            const ID: $crate::sse::exec::VecId = $crate::sse::exec::VecId::$name;
            #[inline(always)]
            fn portable($a: u128, $b: u128, $c: u128) -> u128 {
                $body
            }
            #[cfg(target_arch = "x86_64")]
            #[inline(always)]
            fn eval(a: u128, b: u128, c: u128) -> u128 {
                if !is_x86_feature_detected!($feature) {
                    return Self::portable(a, b, c);
                }
                let (mut v, w) = ($crate::sse::host::vec(a), $crate::sse::host::vec(b));
                // SAFETY: as in `vec_ops`.
                unsafe {
                    std::arch::asm!(
                        concat!(stringify!($name), " {v}, {w}"), v = inout(xmm_reg) v, w = in(xmm_reg) w,
                        in("xmm0") $crate::sse::host::vec(c), options(pure, nomem, nostack, preserves_flags),
                    )
                };
                $crate::sse::host::bits(v)
            }
        }
    )*};
}
pub(super) use vec3_ops;
