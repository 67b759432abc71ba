//! Memory that is mapped twice, once to be written and once to be executed.
//!
//! On Linux it is shared anonymous memory, whose second mapping is a copy of the first one by `mremap`: `perf` takes names from its map file for code in
//! memory without a file only, and a memory file counts as a file.
use std::io;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;

/// Pages of the host, mapped at two addresses for as long as one of the views is there.
struct Pages {
    write: *mut u8,
    execute: *const u8,
    len: usize,
}

// SAFETY: plain memory, accessed through the views, which follow the rules of references.
unsafe impl Send for Pages {}
// SAFETY: as above.
unsafe impl Sync for Pages {}

impl Drop for Pages {
    fn drop(&mut self) {
        #[cfg(target_os = "linux")]
        // SAFETY: both were mapped with this length by `map`, and no view is left.
        unsafe {
            libc::munmap(self.write.cast(), self.len);
            libc::munmap(self.execute.cast_mut().cast(), self.len);
        }
    }
}

/// The view to write by. What is written is seen through the other view at once.
pub(crate) struct Written(Arc<Pages>);

/// The view to execute from.
pub(crate) struct Executed(Arc<Pages>);

impl Deref for Written {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        // SAFETY: so many bytes are mapped; there is one such view, and writing needs it exclusively.
        unsafe { std::slice::from_raw_parts(self.0.write, self.0.len) }
    }
}

impl DerefMut for Written {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above.
        unsafe { std::slice::from_raw_parts_mut(self.0.write, self.0.len) }
    }
}

impl Executed {
    /// The address of a byte.
    pub fn address(&self, offset: usize) -> *const u8 {
        debug_assert!(offset <= self.0.len);
        self.0.execute.wrapping_add(offset)
    }
}

/// Maps `len` bytes, a multiple of the page size, which are zero.
#[cfg(target_os = "linux")]
pub(crate) fn map(len: usize) -> io::Result<(Written, Executed)> {
    let failed = |p: *mut libc::c_void| p == libc::MAP_FAILED;
    // SAFETY: new mappings at addresses of the kernel's choice; the second names the pages of the first.
    unsafe {
        let shared = libc::MAP_SHARED | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        let write = libc::mmap(std::ptr::null_mut(), len, libc::PROT_READ | libc::PROT_WRITE, shared, -1, 0);
        if failed(write) {
            return Err(io::Error::last_os_error());
        }
        let execute = libc::mremap(write, 0, len, libc::MREMAP_MAYMOVE);
        if failed(execute) {
            let e = io::Error::last_os_error();
            libc::munmap(write, len);
            return Err(e);
        }
        let pages = Arc::new(Pages { write: write.cast(), execute: execute.cast(), len });
        if libc::mprotect(execute, len, libc::PROT_READ | libc::PROT_EXEC) != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok((Written(pages.clone()), Executed(pages)))
    }
}

/// There is none yet on other hosts.
#[cfg(not(target_os = "linux"))]
pub(crate) fn map(_: usize) -> io::Result<(Written, Executed)> {
    Err(io::Error::new(io::ErrorKind::Unsupported, "no executable memory on this host"))
}

#[cfg(test)]
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_by_one_view_runs_from_the_other() {
        let (mut write, execute) = map(8192).expect("memory");
        write[4096..4102].copy_from_slice(&[0xb8, 42, 0, 0, 0, 0xc3]);
        // SAFETY: the code is `mov eax, 42; ret`, which keeps to the calling convention.
        let f: extern "C" fn() -> u32 = unsafe { std::mem::transmute(execute.address(4096)) };
        assert_eq!(f(), 42);
        drop(write);
        // The code is there as long as one of the views.
        assert_eq!(f(), 42);
        let maps = std::fs::read_to_string("/proc/self/maps").expect("maps");
        let at = format!("{:x}-", execute.address(0).addr());
        let line = maps.lines().find(|l| l.starts_with(&at)).unwrap_or_default();
        assert!(
            line.contains("r-xs") && line.contains("/dev/zero"),
            "perf does not know '{line}' as anonymous"
        );
    }
}
