//! Operand widths as types.

/// An operand width.
pub trait Width: 'static {
    /// Bits.
    const BITS: u32;
    /// Bytes.
    const BYTES: u64 = Self::BITS as u64 / 8;
    /// All ones in the width.
    const MASK: u64 = u64::MAX >> (64 - Self::BITS);
    /// The sign bit.
    const SIGN: u64 = 1 << (Self::BITS - 1);
    /// The half-open range of shift counts is masked with this (SDM: 5 bits, 6 for 64-bit operands).
    const COUNT_MASK: u64 = if Self::BITS == 64 { 63 } else { 31 };

    /// Sign-extends a value of this width.
    #[inline(always)]
    fn sext(v: u64) -> u64 {
        ((v << (64 - Self::BITS)) as i64 >> (64 - Self::BITS)) as u64
    }
    /// Reads from host memory, unaligned, zero-extended.
    ///
    /// # Safety
    /// `p` must be valid for reads of `BYTES` bytes.
    unsafe fn read(p: *const u8) -> u64;
    /// Writes the low bytes to host memory, unaligned.
    ///
    /// # Safety
    /// `p` must be valid for writes of `BYTES` bytes.
    unsafe fn write(p: *mut u8, v: u64);
    /// Atomic compare-exchange on naturally aligned host memory: the value found, and whether it was replaced.
    ///
    /// # Safety
    /// `p` must be valid for reads and writes of `BYTES` bytes and aligned to `BYTES`.
    unsafe fn compare_exchange(p: *mut u8, old: u64, new: u64) -> Result<u64, u64>;
}

macro_rules! width {
    ($name:ident, $raw:ty, $atomic:ty, $bits:literal, $doc:literal) => {
        #[doc = $doc]
        pub struct $name;
        impl Width for $name {
            const BITS: u32 = $bits;
            #[inline(always)]
            unsafe fn read(p: *const u8) -> u64 {
                // SAFETY: the caller vouches for `p`; the read is unaligned. Other vCPUs may write the same guest bytes at the same time: as on
                // hardware the value is then either's, and nothing here depends on which.
                u64::from(unsafe { p.cast::<$raw>().read_unaligned() })
            }
            #[inline(always)]
            unsafe fn write(p: *mut u8, v: u64) {
                // SAFETY: as for `read`.
                unsafe { p.cast::<$raw>().write_unaligned(v as $raw) }
            }
            #[inline(always)]
            unsafe fn compare_exchange(p: *mut u8, old: u64, new: u64) -> Result<u64, u64> {
                use std::sync::atomic::Ordering::SeqCst;
                // SAFETY: the caller vouches for validity and alignment.
                let cell = unsafe { <$atomic>::from_ptr(p.cast()) };
                cell.compare_exchange(old as $raw, new as $raw, SeqCst, SeqCst)
                    .map(u64::from)
                    .map_err(u64::from)
            }
        }
    };
}
width!(W8, u8, std::sync::atomic::AtomicU8, 8, "Byte.");
width!(W16, u16, std::sync::atomic::AtomicU16, 16, "Word.");
width!(W32, u32, std::sync::atomic::AtomicU32, 32, "Doubleword.");
width!(W64, u64, std::sync::atomic::AtomicU64, 64, "Quadword.");
