//! Linux: shared anonymous memory, whose second mapping is a copy of the first one by `mremap`. It is without a file:
//! `perf` takes names from its map file for such code only. Where that cannot be copied it is a file in memory.
//!
//! Tens of megabytes of code that jump to and fro want more than the few megabytes that a TLB reaches with small
//! pages. Hosts have huge pages for shared memory by default only if they are asked for a stretch at a time
//! (`MADV_COLLAPSE`, Linux 6.1): a thread of its own does that for each stretch before code is put there.
use super::dual_map::{HUGE, Pages};
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, OnceLock};

/// What is mapped at two addresses, or at one for both.
pub(super) struct Mapping {
    write: *mut u8,
    execute: *const u8,
    /// Huge pages are to be asked for, a stretch at a time.
    collapses: bool,
    /// What to unmap, and how much of it.
    mapped: [(*mut u8, usize); 2],
}

impl Drop for Mapping {
    fn drop(&mut self) {
        for (at, len) in self.mapped.into_iter().filter(|m| m.1 != 0) {
            // SAFETY: mapped with this length by `single` or `dual`, and no view is left.
            unsafe { libc::munmap(at.cast(), len) };
        }
    }
}

impl Mapping {
    pub fn write(&self) -> *mut u8 {
        self.write
    }

    pub fn execute(&self) -> *const u8 {
        self.execute
    }

    /// Whether huge pages are to be asked for.
    pub fn collapses(&self) -> bool {
        self.collapses
    }

    /// See [`super::dual_map::Written::rest`]; there are two addresses.
    pub fn rest(&self, stretch: Range<usize>) {
        // SAFETY: within the mapping, which is shared: its pages stay what they are, and are found again when they
        // are written to.
        unsafe {
            let at = self.write.add(stretch.start);
            libc::madvise(at.cast(), stretch.len(), libc::MADV_DONTNEED);
        }
    }
}

/// `madvise`'s request for huge pages at once (Linux 6.1, `include/uapi/asm-generic/mman-common.h`).
const MADV_COLLAPSE: libc::c_int = 25;

/// A stretch that is to lie on a huge page, by its offset.
type Stretch = (Arc<Pages>, usize);

/// Asks for a huge page for the stretch at an offset.
pub(super) fn ask_huge(pages: &Arc<Pages>, at: usize) {
    if let Some(to) = helper() {
        // If it has ended there are small pages.
        let _ = to.send((pages.clone(), at));
    }
}

/// Who asks the host for huge pages, for all code of the process.
fn helper() -> Option<&'static Sender<Stretch>> {
    static HELPER: OnceLock<Option<Sender<Stretch>>> = OnceLock::new();
    let start = || {
        let (send, receive) = channel::<Stretch>();
        let work = move || {
            for (pages, at) in receive {
                collapse(&pages, at);
            }
        };
        std::thread::Builder::new().name("mynah-huge".into()).spawn(work).ok().map(|_| send)
    };
    HELPER.get_or_init(start).as_ref()
}

/// Has a stretch lie on a huge page, if the host has one. Code in it may run meanwhile.
fn collapse(pages: &Pages, at: usize) {
    let stretch = pages.write_at(at);
    // SAFETY: the stretch is mapped and can be written as long as `pages` is there. Reading populates its first
    // page, as there must be one; what is in it stays as it is.
    unsafe {
        stretch.read_volatile();
        libc::madvise(stretch.cast(), HUGE, MADV_COLLAPSE);
    }
}

fn failed(p: *mut libc::c_void) -> bool {
    p == libc::MAP_FAILED
}

/// One mapping to be written and executed.
pub(super) fn single(len: usize) -> io::Result<Mapping> {
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
    Ok(Mapping { write: at, execute: at, collapses: false, mapped: [(start, mapped), (start, 0)] })
}

/// Addresses for `len` bytes that nothing else is mapped to, the first one a multiple of `align`; and what is to be
/// unmapped in the end.
fn reserve(len: usize, align: usize) -> io::Result<(*mut u8, (*mut u8, usize))> {
    let mapped = len + align - 1;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    // SAFETY: a new mapping at an address of the kernel's choice, which nobody can access.
    let p = unsafe { libc::mmap(std::ptr::null_mut(), mapped, libc::PROT_NONE, flags, -1, 0) };
    if failed(p) {
        return Err(io::Error::last_os_error());
    }
    let start: *mut u8 = p.cast();
    Ok((start.map_addr(|a| a.next_multiple_of(align)), (start, mapped)))
}

/// Two mappings of the same memory: one to be written, one to be executed.
pub(super) fn dual(len: usize) -> io::Result<Mapping> {
    dual_by(len, anonymous).or_else(|_| dual_by(len, file))
}

/// Two mappings that `fill` has put to two addresses.
fn dual_by(len: usize, fill: unsafe fn(*mut u8, *mut u8, usize) -> io::Result<()>) -> io::Result<Mapping> {
    let collapses = len >= HUGE;
    let align = if collapses { HUGE } else { 1 };
    let (write, first) = reserve(len, align)?;
    let mut mapping = Mapping { write, execute: write, collapses, mapped: [first, (write, 0)] };
    let (execute, second) = reserve(len, align)?;
    (mapping.execute, mapping.mapped[1]) = (execute, second);
    // SAFETY: both have been reserved for this, with this length.
    unsafe { fill(write, execute, len)? };
    if collapses {
        for at in [write, execute] {
            // For hosts that have huge pages of shared memory for who asks so.
            // SAFETY: what was just mapped.
            unsafe { libc::madvise(at.cast(), len, libc::MADV_HUGEPAGE) };
        }
    }
    Ok(mapping)
}

/// What is mapped takes the place of what was there.
const SHARED: libc::c_int = libc::MAP_SHARED | libc::MAP_NORESERVE | libc::MAP_FIXED;

/// Shared memory without a file, whose second mapping is a copy of the first one.
///
/// # Safety
/// `len` bytes at both addresses are reserved, and the caller's.
unsafe fn anonymous(write: *mut u8, execute: *mut u8, len: usize) -> io::Result<()> {
    let to: *mut libc::c_void = execute.cast();
    // SAFETY: the mappings take the places of what was reserved for them; the second names the pages of the first.
    unsafe {
        let flags = SHARED | libc::MAP_ANONYMOUS;
        let written = libc::mmap(write.cast(), len, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0);
        if failed(written) {
            return Err(io::Error::last_os_error());
        }
        let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
        if failed(libc::mremap(written, 0, len, flags, to))
            || libc::mprotect(to, len, libc::PROT_READ | libc::PROT_EXEC) != 0
        {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// A file in memory, mapped twice: for hosts that copy no mapping (qemu-user).
///
/// # Safety
/// As of [`anonymous`].
unsafe fn file(write: *mut u8, execute: *mut u8, len: usize) -> io::Result<()> {
    let file = rustix::fs::memfd_create("mynah-code", rustix::fs::MemfdFlags::CLOEXEC)?;
    rustix::fs::ftruncate(&file, len as u64)?;
    for (at, protection) in
        [(write, libc::PROT_READ | libc::PROT_WRITE), (execute, libc::PROT_READ | libc::PROT_EXEC)]
    {
        // SAFETY: it takes the place of what was reserved for it; the file is as long as that.
        if failed(unsafe { libc::mmap(at.cast(), len, protection, SHARED, file.as_raw_fd(), 0) }) {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_in_memory_is_as_good() {
        for len in [8192, 2 * HUGE] {
            let mapping = dual_by(len, file).expect("memory");
            assert_ne!(mapping.write().addr(), mapping.execute().addr());
            for at in [0, len - 1] {
                // SAFETY: within the mappings, which are there until the end of the test.
                unsafe {
                    mapping.write().add(at).write_volatile(0xc3);
                    assert_eq!(mapping.execute().add(at).read_volatile(), 0xc3);
                }
            }
            mapping.rest(0..len);
            // SAFETY: as above.
            assert_eq!(unsafe { mapping.execute().read_volatile() }, 0xc3);
        }
    }
}
