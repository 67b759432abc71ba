//! From bytes that were written to instructions that are executed.
//!
//! On x86 what is written is what is executed. On arm64 the caches of data and of instructions know nothing of each
//! other (Arm ARM, B2.4.4): who writes code has the lines written back and the old instructions forgotten, on all
//! processors, before it is published ([`flush`]); and who is to execute it forgets what he has fetched ahead, once he
//! has seen that it is there ([`synchronise`]).

/// Has the `len` bytes that were written at `write` be what is executed at `execute`, another address of the same
/// memory, or the same.
#[cfg(not(target_arch = "aarch64"))]
#[inline(always)]
pub(crate) fn flush(_write: *const u8, _execute: *const u8, _len: usize) {}

/// Comes between seeing that there is new code and executing it, on the thread that does both.
#[cfg(not(target_arch = "aarch64"))]
#[inline(always)]
pub(crate) fn synchronise() {}

/// See the same for other hosts.
#[cfg(all(target_arch = "aarch64", not(target_vendor = "apple")))]
pub(crate) fn flush(write: *const u8, execute: *const u8, len: usize) {
    if len == 0 {
        return;
    }
    let types: u64;
    // SAFETY: the register can be read at EL0 (Linux emulates that where the processor does not allow it).
    unsafe { std::arch::asm!("mrs {}, ctr_el0", out(reg) types, options(nomem, nostack, preserves_flags)) };
    // The smallest lines, in words: DminLine and IminLine.
    let line = |field: u32| 4usize << (types >> field & 15);
    let lines = |at: *const u8, size: usize| {
        (at.addr() & !(size - 1)..at.addr() + len).step_by(size).map(move |a| at.with_addr(a))
    };
    // SAFETY: cache maintenance changes no memory, and the addresses are mapped: each line has a byte of the stretch.
    unsafe {
        for at in lines(write, line(16)) {
            std::arch::asm!("dc cvau, {}", in(reg) at, options(nostack, preserves_flags));
        }
        std::arch::asm!("dsb ish", options(nostack, preserves_flags));
        for at in lines(execute, line(0)) {
            std::arch::asm!("ic ivau, {}", in(reg) at, options(nostack, preserves_flags));
        }
        std::arch::asm!("dsb ish", "isb", options(nostack, preserves_flags));
    }
}

/// See the same for other hosts.
#[cfg(all(target_arch = "aarch64", target_vendor = "apple"))]
pub(crate) fn flush(write: *const u8, execute: *const u8, len: usize) {
    unsafe extern "C" {
        /// `libkern/OSCacheControl.h`.
        fn sys_dcache_flush(start: *mut libc::c_void, len: usize);
        fn sys_icache_invalidate(start: *mut libc::c_void, len: usize);
    }
    // SAFETY: both are mapped, and caches change no memory.
    unsafe {
        sys_dcache_flush(write.cast_mut().cast(), len);
        sys_icache_invalidate(execute.cast_mut().cast(), len);
    }
}

/// See the same for other hosts.
#[cfg(target_arch = "aarch64")]
#[inline(always)]
pub(crate) fn synchronise() {
    // SAFETY: it changes nothing but what was fetched ahead.
    unsafe { std::arch::asm!("isb", options(nostack, preserves_flags)) };
}
