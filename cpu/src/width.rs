//! Operand widths as types, and accesses of guest memory by them.
//!
//! Such accesses keep x86's order: each is one of the host's, in the order of the program, but that a load may come
//! before an earlier store. x86 hosts do that by themselves. On arm64 a barrier behind each load keeps all that follows
//! behind it, and one before each store keeps the stores before it there; on other hosts the fences of Rust's atomics
//! do. docs/hosts.md says why this is enough.
use std::sync::atomic::{Ordering, fence};

/// Comes behind a load of guest memory.
#[inline(always)]
pub(crate) fn loaded() {
    #[cfg(target_arch = "aarch64")]
    // SAFETY: a barrier, to the compiler too.
    unsafe {
        std::arch::asm!("dmb ishld", options(nostack, preserves_flags));
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    fence(Ordering::Acquire);
}

/// Comes before a store to guest memory.
#[inline(always)]
pub(crate) fn before_store() {
    #[cfg(target_arch = "aarch64")]
    // SAFETY: as above.
    unsafe {
        std::arch::asm!("dmb ishst", options(nostack, preserves_flags));
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    fence(Ordering::Release);
}

/// Comes before and behind a locked access: on x86 it is a fence itself.
#[inline(always)]
fn locked() {
    if cfg!(not(target_arch = "x86_64")) {
        fence(Ordering::SeqCst);
    }
}

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
    /// Reads from host memory, unaligned, zero-extended: one access, in program order with other reads and writes.
    ///
    /// # Safety
    /// `p` must be valid for reads of `BYTES` bytes.
    unsafe fn read(p: *const u8) -> u64;
    /// Writes the low bytes to host memory, unaligned: one access, in program order with other reads and writes.
    ///
    /// # Safety
    /// `p` must be valid for writes of `BYTES` bytes.
    unsafe fn write(p: *mut u8, v: u64);
    /// Atomic compare-exchange on naturally aligned host memory: the value found, and whether it was replaced.
    ///
    /// # Safety
    /// `p` must be valid for reads and writes of `BYTES` bytes and aligned to `BYTES`.
    unsafe fn compare_exchange(p: *mut u8, old: u64, new: u64) -> Result<u64, u64>;
    /// As [`Width::compare_exchange`], at any address. Atomic with regard to all other accesses on x86 hosts; on
    /// others, where the address is not aligned, only if the caller keeps them out.
    ///
    /// # Safety
    /// `p` must be valid for reads and writes of `BYTES` bytes.
    unsafe fn compare_exchange_anywhere(p: *mut u8, old: u64, new: u64) -> Result<u64, u64>;
}

macro_rules! width {
    ($name:ident, $raw:ty, $atomic:ty, $bits:literal, $class:ident, $acc:tt, $load:literal, $store:literal, $cas:literal,
     $arm_load:literal, $arm_store:literal, $doc:literal) => {
        #[doc = $doc]
        pub struct $name;
        impl Width for $name {
            const BITS: u32 = $bits;
            #[inline(always)]
            unsafe fn read(p: *const u8) -> u64 {
                // Assembly, because nothing else is both unaligned and one access that the compiler neither repeats
                // nor moves.
                #[cfg(target_arch = "x86_64")]
                {
                    let v: u64;
                    // SAFETY: the caller vouches for `p`. Other vCPUs may write the same guest bytes at the same time:
                    // as on hardware the value is then either's, and nothing here depends on which.
                    unsafe {
                        std::arch::asm!($load, v = lateout(reg) v, p = in(reg) p, options(nostack, preserves_flags, readonly));
                    }
                    v
                }
                #[cfg(target_arch = "aarch64")]
                {
                    let v: u64;
                    // SAFETY: as above.
                    unsafe {
                        std::arch::asm!($arm_load, "dmb ishld", v = lateout(reg) v, p = in(reg) p, options(nostack, preserves_flags, readonly));
                    }
                    v
                }
                #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
                {
                    // SAFETY: as above.
                    let v = u64::from(unsafe { p.cast::<$raw>().read_unaligned() });
                    loaded();
                    v
                }
            }
            #[inline(always)]
            unsafe fn write(p: *mut u8, v: u64) {
                #[cfg(target_arch = "x86_64")]
                // SAFETY: as for `read`.
                unsafe {
                    std::arch::asm!($store, v = in($class) v as $raw, p = in(reg) p, options(nostack, preserves_flags));
                }
                #[cfg(target_arch = "aarch64")]
                // SAFETY: as for `read`.
                unsafe {
                    std::arch::asm!("dmb ishst", $arm_store, v = in(reg) v, p = in(reg) p, options(nostack, preserves_flags));
                }
                #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
                {
                    before_store();
                    // SAFETY: as for `read`.
                    unsafe { p.cast::<$raw>().write_unaligned(v as $raw) };
                }
            }
            #[inline(always)]
            unsafe fn compare_exchange(p: *mut u8, old: u64, new: u64) -> Result<u64, u64> {
                use std::sync::atomic::Ordering::SeqCst;
                // SAFETY: the caller vouches for validity and alignment.
                let cell = unsafe { <$atomic>::from_ptr(p.cast()) };
                locked();
                let found = cell.compare_exchange(old as $raw, new as $raw, SeqCst, SeqCst);
                locked();
                found.map(u64::from).map_err(u64::from)
            }
            #[inline(always)]
            unsafe fn compare_exchange_anywhere(p: *mut u8, old: u64, new: u64) -> Result<u64, u64> {
                #[cfg(target_arch = "x86_64")]
                let found = {
                    let found: $raw;
                    // SAFETY: the caller vouches for `p`; the instruction takes any alignment.
                    unsafe {
                        std::arch::asm!($cas, p = in(reg) p, n = in($class) new as $raw, inlateout($acc) old as $raw => found, options(nostack));
                    }
                    found
                };
                #[cfg(not(target_arch = "x86_64"))]
                if p.cast::<$raw>().is_aligned() {
                    // SAFETY: the caller vouches for `p`, which was just seen to be aligned.
                    return unsafe { Self::compare_exchange(p, old, new) };
                }
                #[cfg(not(target_arch = "x86_64"))]
                // SAFETY: the caller vouches for `p`.
                let found = unsafe {
                    let found = p.cast::<$raw>().read_unaligned();
                    if found == old as $raw {
                        p.cast::<$raw>().write_unaligned(new as $raw);
                    }
                    found
                };
                if found == old as $raw { Ok(u64::from(found)) } else { Err(u64::from(found)) }
            }
        }
    };
}
width!(
    W8,
    u8,
    std::sync::atomic::AtomicU8,
    8,
    reg_byte,
    "al",
    "movzx {v:e}, byte ptr [{p}]",
    "mov byte ptr [{p}], {v}",
    "lock cmpxchg byte ptr [{p}], {n}",
    "ldrb {v:w}, [{p}]",
    "strb {v:w}, [{p}]",
    "Byte."
);
width!(
    W16,
    u16,
    std::sync::atomic::AtomicU16,
    16,
    reg,
    "ax",
    "movzx {v:e}, word ptr [{p}]",
    "mov word ptr [{p}], {v:x}",
    "lock cmpxchg word ptr [{p}], {n:x}",
    "ldrh {v:w}, [{p}]",
    "strh {v:w}, [{p}]",
    "Word."
);
width!(
    W32,
    u32,
    std::sync::atomic::AtomicU32,
    32,
    reg,
    "eax",
    "mov {v:e}, dword ptr [{p}]",
    "mov dword ptr [{p}], {v:e}",
    "lock cmpxchg dword ptr [{p}], {n:e}",
    "ldr {v:w}, [{p}]",
    "str {v:w}, [{p}]",
    "Doubleword."
);
width!(
    W64,
    u64,
    std::sync::atomic::AtomicU64,
    64,
    reg,
    "rax",
    "mov {v}, qword ptr [{p}]",
    "mov qword ptr [{p}], {v}",
    "lock cmpxchg qword ptr [{p}], {n}",
    "ldr {v}, [{p}]",
    "str {v}, [{p}]",
    "Quadword."
);

/// Reads 16 bytes from host memory, unaligned: one access where the host's vector unit makes it one.
///
/// # Safety
/// `p` must be valid for reads of 16 bytes.
#[inline(always)]
pub unsafe fn read128(p: *const u8) -> u128 {
    #[cfg(target_arch = "x86_64")]
    {
        let v: std::arch::x86_64::__m128i;
        // SAFETY: as for `Width::read`; the two types have the same size and no invalid values.
        unsafe {
            std::arch::asm!("movdqu {v}, xmmword ptr [{p}]", v = lateout(xmm_reg) v, p = in(reg) p,
                options(nostack, preserves_flags, readonly));
            std::mem::transmute(v)
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        #[cfg(target_arch = "aarch64")]
        // SAFETY: the caller's promise; the two types have the same size and no invalid values.
        let v = unsafe {
            let v: std::arch::aarch64::uint8x16_t;
            std::arch::asm!("ldr {v:q}, [{p}]", v = lateout(vreg) v, p = in(reg) p,
                options(nostack, preserves_flags, readonly));
            std::mem::transmute(v)
        };
        #[cfg(not(target_arch = "aarch64"))]
        // SAFETY: the caller's promise.
        let v = unsafe { p.cast::<u128>().read_unaligned() };
        loaded();
        v
    }
}

/// Writes 16 bytes to host memory, unaligned: one access where the host's vector unit makes it one.
///
/// # Safety
/// `p` must be valid for writes of 16 bytes.
#[inline(always)]
pub unsafe fn write128(p: *mut u8, v: u128) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: as for `Width::write`; the two types have the same size and no invalid values.
    unsafe {
        let v: std::arch::x86_64::__m128i = std::mem::transmute(v);
        std::arch::asm!("movdqu xmmword ptr [{p}], {v}", v = in(xmm_reg) v, p = in(reg) p,
            options(nostack, preserves_flags));
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        before_store();
        #[cfg(target_arch = "aarch64")]
        // SAFETY: as for `read128`.
        unsafe {
            let v: std::arch::aarch64::uint8x16_t = std::mem::transmute(v);
            std::arch::asm!("str {v:q}, [{p}]", v = in(vreg) v, p = in(reg) p, options(nostack, preserves_flags));
        }
        #[cfg(not(target_arch = "aarch64"))]
        // SAFETY: the caller's promise.
        unsafe {
            p.cast::<u128>().write_unaligned(v);
        }
    }
}

/// The largest power of two, at most 8 and at most `left` (which is not 0), that the address is a multiple of.
#[inline]
fn aligned_piece(at: usize, left: usize) -> usize {
    let mut n = (at & 7 | 8) & (at & 7 | 8).wrapping_neg();
    while n > left {
        n /= 2;
    }
    n
}

/// Copies guest bytes out. 1, 2, 4, 8 and 16 bytes are one access; of more, every aligned 2, 4 or 8 are.
///
/// # Safety
/// `from` must be valid for reads of `to.len()` bytes.
pub unsafe fn copy_out(from: *const u8, to: &mut [u8]) {
    let one = |from: *const u8, to: &mut [u8]| {
        // SAFETY: the caller's promise; both calls below stay in the range.
        let v = unsafe {
            match to.len() {
                1 => W8::read(from),
                2 => W16::read(from),
                4 => W32::read(from),
                _ => W64::read(from),
            }
        };
        to.copy_from_slice(&v.to_le_bytes()[..to.len()]);
    };
    match to.len() {
        1 | 2 | 4 | 8 => one(from, to),
        // SAFETY: the caller's promise.
        16 => to.copy_from_slice(&unsafe { read128(from) }.to_le_bytes()),
        len => {
            let mut done = 0;
            while done < len {
                let at = from.wrapping_add(done);
                let n = aligned_piece(at.addr(), len - done);
                one(at, &mut to[done..done + n]);
                done += n;
            }
        }
    }
}

/// Copies bytes into guest memory. 1, 2, 4, 8 and 16 bytes are one access; of more, every aligned 2, 4 or 8 are.
///
/// # Safety
/// `to` must be valid for writes of `from.len()` bytes.
pub unsafe fn copy_in(to: *mut u8, from: &[u8]) {
    let one = |to: *mut u8, from: &[u8]| {
        let mut bytes = [0; 8];
        bytes[..from.len()].copy_from_slice(from);
        let v = u64::from_le_bytes(bytes);
        // SAFETY: the caller's promise; both calls below stay in the range.
        unsafe {
            match from.len() {
                1 => W8::write(to, v),
                2 => W16::write(to, v),
                4 => W32::write(to, v),
                _ => W64::write(to, v),
            }
        }
    };
    match from.len() {
        1 | 2 | 4 | 8 => one(to, from),
        16 => {
            let mut bytes = [0; 16];
            bytes.copy_from_slice(from);
            // SAFETY: the caller's promise.
            unsafe { write128(to, u128::from_le_bytes(bytes)) }
        }
        len => {
            let mut done = 0;
            while done < len {
                let at = to.wrapping_add(done);
                let n = aligned_piece(at.addr(), len - done);
                one(at, &from[done..done + n]);
                done += n;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_of_any_length_and_alignment_move_the_bytes_and_no_others() {
        let from: Vec<u8> = (1..=80).collect();
        for at in 0..16 {
            for len in 0..=40 {
                let mut to = [0u8; 64];
                // SAFETY: within the arrays.
                unsafe { copy_in(to.as_mut_ptr().wrapping_add(at), &from[..len]) };
                let mut want = [0u8; 64];
                want[at..at + len].copy_from_slice(&from[..len]);
                assert_eq!(to, want, "{len} bytes at {at}");
                let mut back = vec![0; len];
                // SAFETY: within the array.
                unsafe { copy_out(to.as_ptr().wrapping_add(at), &mut back) };
                assert_eq!(back, from[..len], "{len} bytes at {at}");
            }
        }
    }

    #[test]
    fn a_compare_exchange_takes_any_address() {
        let mut m = [0x11u8; 24];
        for at in 0..9 {
            let p = m.as_mut_ptr().wrapping_add(at);
            // SAFETY: within the array.
            unsafe {
                let was = W64::read(p);
                assert_eq!(W64::compare_exchange_anywhere(p, was ^ 1, 0), Err(was));
                assert_eq!(W64::compare_exchange_anywhere(p, was, was + 1), Ok(was));
                assert_eq!(W64::read(p), was + 1);
                let was = W16::read(p);
                assert_eq!(W16::compare_exchange_anywhere(p, was, 0x1234), Ok(was));
                let was = W8::read(p);
                assert_eq!((was, W8::compare_exchange_anywhere(p, 0x34, 0x56)), (0x34, Ok(0x34)));
                assert_eq!(W32::read(p) & 0xffff, 0x1256);
            }
        }
    }
}
