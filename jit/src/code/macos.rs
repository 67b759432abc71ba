//! macOS: anonymous memory, whose second mapping is a copy of the first one by `mach_vm_remap`. So there are no times at
//! which a thread may write code and others at which it may execute it, as `MAP_JIT` has them on arm64.
use std::io;
use std::ptr::null_mut;

pub(super) use super::mapping::Mapping;

/// Takes a mapping away.
///
/// # Safety
/// It is one of this module's with this length, and nobody has an address in it any more.
pub(super) unsafe fn unmap(at: *mut u8, len: usize) {
    // SAFETY: as the caller has promised.
    unsafe { libc::munmap(at.cast(), len) };
}

/// Mach's types and constants (`mach/vm_statistics.h`, `mach/vm_inherit.h`, `mach/mach_vm.h`).
const VM_FLAGS_ANYWHERE: i32 = 1;
const VM_INHERIT_NONE: u32 = 2;
unsafe extern "C" {
    static mach_task_self_: u32;
    fn mach_vm_remap(
        to_task: u32,
        to: *mut u64,
        len: u64,
        mask: u64,
        flags: i32,
        from_task: u32,
        from: u64,
        copy: i32,
        now: *mut i32,
        most: *mut i32,
        inheritance: u32,
    ) -> i32;
}

fn anonymous(len: usize, flags: i32, protection: i32) -> io::Result<Mapping> {
    // SAFETY: a new mapping at an address of the kernel's choice.
    let p = unsafe { libc::mmap(null_mut(), len, protection, flags | libc::MAP_ANON, -1, 0) };
    if p == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the mapping just made.
    Ok(unsafe { Mapping::new(p.cast(), len) })
}

/// One mapping to be written and executed; on arm64 there is none.
pub(super) fn single(len: usize) -> io::Result<Mapping> {
    if cfg!(target_arch = "aarch64") {
        return Err(io::ErrorKind::Unsupported.into());
    }
    anonymous(len, libc::MAP_PRIVATE, libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC)
}

/// Two mappings of the same memory: one to be written, one to be executed.
pub(super) fn dual(len: usize) -> io::Result<Mapping> {
    anonymous(len, libc::MAP_SHARED, libc::PROT_READ | libc::PROT_WRITE)?.twice(|write, len| {
        let (mut at, mut now, mut most) = (0, 0, 0);
        // SAFETY: the task is this one; the pages are those just mapped, and are shared with a mapping at a new address.
        let refused = unsafe {
            let (task, from) = (mach_task_self_, write.expose_provenance() as u64);
            let (flags, inherit) = (VM_FLAGS_ANYWHERE, VM_INHERIT_NONE);
            mach_vm_remap(task, &mut at, len as u64, 0, flags, task, from, 0, &mut now, &mut most, inherit)
        };
        if refused != 0 {
            return Err(io::Error::other(format!("mach_vm_remap: error {refused}")));
        }
        let execute: *mut u8 = std::ptr::with_exposed_provenance_mut(at as usize);
        // SAFETY: the mapping just made.
        if unsafe { libc::mprotect(execute.cast(), len, libc::PROT_READ | libc::PROT_EXEC) } != 0 {
            let refused = io::Error::last_os_error();
            // SAFETY: as above, and nobody has it.
            unsafe { unmap(execute, len) };
            return Err(refused);
        }
        Ok(execute)
    })
}
