//! Memory for code, to be written and to be executed.
//!
//! Where the host allows it, it is one anonymous mapping for both, of huge pages if there are any: tens of megabytes of code that jump to and fro
//! want more than the few megabytes that a TLB reaches with small ones. Hosts that let no memory be both (some SELinux policies) have it mapped
//! twice: then it is shared anonymous memory, whose second mapping is a copy of the first one by `mremap`. Both are without a file: `perf` takes
//! names from its map file for such code only.
use std::io;
use std::sync::Arc;

/// Pages of the host, mapped at two addresses or one for as long as one of the views is there.
struct Pages {
    write: *mut u8,
    execute: *const u8,
    len: usize,
    /// What to unmap, and how much of it.
    mapped: [(*mut u8, usize); 2],
}

// SAFETY: plain memory, accessed through the views by raw pointers.
unsafe impl Send for Pages {}
// SAFETY: as above.
unsafe impl Sync for Pages {}

impl Drop for Pages {
    fn drop(&mut self) {
        #[cfg(target_os = "linux")]
        for (at, len) in self.mapped.into_iter().filter(|m| m.1 != 0) {
            // SAFETY: mapped with this length by `map`, and no view is left.
            unsafe { libc::munmap(at.cast(), len) };
        }
    }
}

/// The view to write by. What is written is seen through the other view at once.
pub(crate) struct Written(Arc<Pages>);

/// The view to execute from.
pub(crate) struct Executed(Arc<Pages>);

impl Written {
    /// Bytes of memory.
    pub fn len(&self) -> usize {
        self.0.len
    }

    /// Writes bytes at an offset.
    ///
    /// # Panics
    /// If they reach beyond the memory.
    pub fn put(&mut self, at: usize, bytes: &[u8]) {
        assert!(at <= self.0.len && bytes.len() <= self.0.len - at);
        // SAFETY: within the mapping, as was just seen; `bytes` is no part of it, as nobody else has its bytes to be written.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.0.write.add(at), bytes.len()) };
    }

    /// Where an offset can be written.
    pub fn at(&self, offset: usize) -> *mut u8 {
        debug_assert!(offset < self.0.len);
        self.0.write.wrapping_add(offset)
    }

    /// Bytes that were written.
    ///
    /// # Panics
    /// If they reach beyond the memory.
    pub fn bytes(&self, at: usize, len: usize) -> &[u8] {
        assert!(at <= self.0.len && len <= self.0.len - at);
        // SAFETY: within the mapping; who writes has `self` exclusively.
        unsafe { std::slice::from_raw_parts(self.0.write.add(at), len) }
    }
}

impl Executed {
    /// The address of a byte.
    pub fn address(&self, offset: usize) -> *const u8 {
        debug_assert!(offset <= self.0.len);
        self.0.execute.wrapping_add(offset)
    }
}

/// Bytes in a huge page of the host.
#[cfg(target_os = "linux")]
const HUGE: usize = 2 << 20;

/// Maps `len` bytes, a multiple of the page size, which are zero.
#[cfg(target_os = "linux")]
pub(crate) fn map(len: usize) -> io::Result<(Written, Executed)> {
    let pages = Arc::new(once(len).or_else(|_| twice(len))?);
    Ok((Written(pages.clone()), Executed(pages)))
}

#[cfg(target_os = "linux")]
fn failed(p: *mut libc::c_void) -> bool {
    p == libc::MAP_FAILED
}

#[cfg(target_os = "linux")]
fn once(len: usize) -> io::Result<Pages> {
    let align = if len < HUGE { 1 } else { HUGE };
    let mapped = len + align - 1;
    let protection = libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    // SAFETY: a new mapping at an address of the kernel's choice.
    let p = unsafe { libc::mmap(std::ptr::null_mut(), mapped, protection, flags, -1, 0) };
    if failed(p) {
        return Err(io::Error::last_os_error());
    }
    let start: *mut u8 = p.cast();
    let at = start.map_addr(|a| a.next_multiple_of(align));
    if align != 1 {
        // SAFETY: the memory that was just mapped. A host without huge pages has small ones.
        unsafe { libc::madvise(p, mapped, libc::MADV_HUGEPAGE) };
    }
    Ok(Pages { write: at, execute: at, len, mapped: [(start, mapped), (start, 0)] })
}

#[cfg(target_os = "linux")]
fn twice(len: usize) -> io::Result<Pages> {
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
        let mapped = [(write.cast(), len), (execute.cast(), len)];
        let pages = Pages { write: write.cast(), execute: execute.cast(), len, mapped };
        if libc::mprotect(execute, len, libc::PROT_READ | libc::PROT_EXEC) != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(pages)
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

    fn what_is_written_runs(pages: Pages, rights: &str) {
        let pages = Arc::new(pages);
        let (mut write, execute) = (Written(pages.clone()), Executed(pages));
        write.put(4096, &[0xb8, 42, 0, 0, 0, 0xc3]);
        assert_eq!(write.bytes(4096, 2), [0xb8, 42]);
        // SAFETY: the code is `mov eax, 42; ret`, which keeps to the calling convention.
        let f: extern "C" fn() -> u32 = unsafe { std::mem::transmute(execute.address(4096)) };
        assert_eq!(f(), 42);
        drop(write);
        // The code is there as long as one of the views.
        assert_eq!(f(), 42);
        let maps = std::fs::read_to_string("/proc/self/maps").expect("maps");
        let holds = |l: &&str| {
            let range = l.split(' ').next().unwrap_or_default().split_once('-');
            let number = |s| usize::from_str_radix(s, 16).unwrap_or_default();
            range.is_some_and(|(a, b)| (number(a)..number(b)).contains(&execute.address(0).addr()))
        };
        let line = maps.lines().find(holds).unwrap_or_default();
        assert!(line.contains(rights), "{line}");
        assert!(
            !line.contains('/') || line.contains("/dev/zero"),
            "perf does not know '{line}' as anonymous"
        );
    }

    #[test]
    fn memory_may_be_written_and_executed_at_one_address() {
        what_is_written_runs(once(8192).expect("memory"), "rwxp");
        let large = once(4 << 20).expect("memory");
        assert_eq!(large.write.addr() % HUGE, 0);
        what_is_written_runs(large, "rwxp");
    }

    #[test]
    fn or_written_at_one_and_executed_at_another() {
        what_is_written_runs(twice(8192).expect("memory"), "r-xs");
    }
}
