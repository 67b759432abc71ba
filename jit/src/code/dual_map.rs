//! Memory for code, to be written and to be executed.
//!
//! It is mapped twice: at one address it can be written, at another it can be executed, and no address allows both. So
//! who can have a wrong address written to does not write code. It is shared anonymous memory, whose second mapping is
//! a copy of the first one by `mremap`. It is without a file: `perf` takes names from its map file for such code only.
//!
//! Tens of megabytes of code that jump to and fro want more than the few megabytes that a TLB reaches with small
//! pages. Hosts have huge pages for shared memory by default only if they are asked for a stretch at a time
//! (`MADV_COLLAPSE`, Linux 6.1): a thread of its own does that for each stretch before code is put there.
//!
//! On request it is one anonymous mapping for both. Hosts that let no memory be both (some SELinux policies) have it
//! mapped twice all the same.
use std::io;
use std::ops::Range;
use std::sync::Arc;
#[cfg(target_os = "linux")]
use std::sync::OnceLock;
#[cfg(target_os = "linux")]
use std::sync::mpsc::{Sender, channel};

/// Pages of the host, mapped at two addresses or one for as long as one of the views is there.
struct Pages {
    write: *mut u8,
    execute: *const u8,
    len: usize,
    /// Huge pages are to be asked for, a stretch at a time.
    collapses: bool,
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
pub(crate) struct Written {
    pages: Arc<Pages>,
    /// Huge pages have been asked for up to here.
    asked: usize,
}

/// The view to execute from.
pub(crate) struct Executed(Arc<Pages>);

impl Written {
    fn new(pages: Arc<Pages>) -> Self {
        let mut w = Self { pages, asked: 0 };
        w.ask(0);
        w
    }

    /// Bytes of memory.
    pub fn len(&self) -> usize {
        self.pages.len
    }

    /// Asks for huge pages where `at` lies, and for the stretch behind that.
    #[cfg(target_os = "linux")]
    fn ask(&mut self, at: usize) {
        while self.pages.collapses && self.asked <= at + HUGE && self.asked + HUGE <= self.pages.len {
            if let Some(to) = helper() {
                // If it has ended there are small pages.
                let _ = to.send((self.pages.clone(), self.asked));
            }
            self.asked += HUGE;
        }
    }
    #[cfg(not(target_os = "linux"))]
    fn ask(&mut self, _: usize) {}

    /// Writes bytes at an offset.
    ///
    /// # Panics
    /// If they reach beyond the memory.
    pub fn put(&mut self, at: usize, bytes: &[u8]) {
        assert!(at <= self.pages.len && bytes.len() <= self.pages.len - at);
        if self.pages.collapses && at + HUGE >= self.asked {
            self.ask(at);
            self.rest(0..at / HUGE * HUGE);
        }
        // SAFETY: within the mapping, as was just seen; `bytes` is no part of it, as nobody else has its bytes to be
        // written.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.pages.write.add(at), bytes.len()) };
    }

    /// Hardly anything will be written there from now on: what is mapped to be written is not counted as resident a
    /// second time.
    pub fn rest(&self, stretch: Range<usize>) {
        debug_assert!(stretch.end <= self.pages.len);
        #[cfg(target_os = "linux")]
        if !std::ptr::eq(self.pages.write, self.pages.execute) && !stretch.is_empty() {
            // SAFETY: within the mapping, which is shared: its pages stay what they are, and are found again when they
            // are written to.
            unsafe {
                let at = self.pages.write.add(stretch.start);
                libc::madvise(at.cast(), stretch.len(), libc::MADV_DONTNEED);
            }
        }
    }

    /// Where an offset can be written.
    pub fn at(&self, offset: usize) -> *mut u8 {
        debug_assert!(offset < self.pages.len);
        self.pages.write.wrapping_add(offset)
    }

    /// Bytes that were written.
    ///
    /// # Panics
    /// If they reach beyond the memory.
    pub fn bytes(&self, at: usize, len: usize) -> &[u8] {
        assert!(at <= self.pages.len && len <= self.pages.len - at);
        // SAFETY: within the mapping; who writes has `self` exclusively.
        unsafe { std::slice::from_raw_parts(self.pages.write.add(at), len) }
    }
}

impl Executed {
    /// Where that is executed which is written at an address of the other view.
    pub fn of_written(&self, written: *const u8) -> Option<*const u8> {
        let offset = written.addr().checked_sub(self.0.write.addr())?;
        (offset < self.0.len).then(|| self.address(offset))
    }

    /// The address of a byte.
    pub fn address(&self, offset: usize) -> *const u8 {
        debug_assert!(offset <= self.0.len);
        self.0.execute.wrapping_add(offset)
    }
}

/// Bytes in a huge page of the host.
const HUGE: usize = 2 << 20;

/// `madvise`'s request for huge pages at once (Linux 6.1, `include/uapi/asm-generic/mman-common.h`).
#[cfg(target_os = "linux")]
const MADV_COLLAPSE: libc::c_int = 25;

/// Maps `len` bytes, a multiple of the page size, which are zero. If they are `split` no address can be both written
/// and executed.
#[cfg(target_os = "linux")]
pub(crate) fn map(len: usize, split: bool) -> io::Result<(Written, Executed)> {
    let pages = Arc::new(if split { dual(len)? } else { single(len).or_else(|_| dual(len))? });
    Ok((Written::new(pages.clone()), Executed(pages)))
}

/// A stretch that is to lie on a huge page, by its offset.
#[cfg(target_os = "linux")]
type Stretch = (Arc<Pages>, usize);

/// Who asks the host for huge pages, for all code of the process.
#[cfg(target_os = "linux")]
fn helper() -> Option<&'static Sender<Stretch>> {
    static HELPER: OnceLock<Option<Sender<Stretch>>> = OnceLock::new();
    let start = || {
        let (send, receive) = channel::<Stretch>();
        let work = move || {
            for (pages, at) in receive {
                pages.collapse(at);
            }
        };
        std::thread::Builder::new().name("mynah-huge".into()).spawn(work).ok().map(|_| send)
    };
    HELPER.get_or_init(start).as_ref()
}

#[cfg(target_os = "linux")]
impl Pages {
    /// Has a stretch lie on a huge page, if the host has one. Code in it may run meanwhile.
    fn collapse(&self, at: usize) {
        let stretch = self.write.wrapping_add(at);
        // SAFETY: the stretch is mapped and can be written as long as `self` is there. Reading populates its first
        // page, as there must be one; what is in it stays as it is.
        unsafe {
            stretch.read_volatile();
            libc::madvise(stretch.cast(), HUGE, MADV_COLLAPSE);
        }
    }
}

#[cfg(target_os = "linux")]
fn failed(p: *mut libc::c_void) -> bool {
    p == libc::MAP_FAILED
}

#[cfg(target_os = "linux")]
fn single(len: usize) -> io::Result<Pages> {
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
    Ok(Pages { write: at, execute: at, len, collapses: false, mapped: [(start, mapped), (start, 0)] })
}

/// Addresses for `len` bytes that nothing else is mapped to, the first one a multiple of `align`; and what is to be
/// unmapped in the end.
#[cfg(target_os = "linux")]
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

#[cfg(target_os = "linux")]
fn dual(len: usize) -> io::Result<Pages> {
    let collapses = len >= HUGE;
    let align = if collapses { HUGE } else { 1 };
    let (write, first) = reserve(len, align)?;
    let mut pages = Pages { write, execute: write, len, collapses, mapped: [first, (write, 0)] };
    let (execute, second) = reserve(len, align)?;
    (pages.execute, pages.mapped[1]) = (execute, second);
    // SAFETY: the mappings take the places of what was reserved for them; the second names the pages of the first.
    unsafe {
        let shared = libc::MAP_SHARED | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_FIXED;
        let written = libc::mmap(write.cast(), len, libc::PROT_READ | libc::PROT_WRITE, shared, -1, 0);
        if failed(written) {
            return Err(io::Error::last_os_error());
        }
        let to: *mut libc::c_void = execute.cast();
        let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
        if failed(libc::mremap(written, 0, len, flags, to))
            || libc::mprotect(to, len, libc::PROT_READ | libc::PROT_EXEC) != 0
        {
            return Err(io::Error::last_os_error());
        }
        if collapses {
            // For hosts that have huge pages of shared memory for who asks so.
            libc::madvise(written, len, libc::MADV_HUGEPAGE);
            libc::madvise(to, len, libc::MADV_HUGEPAGE);
        }
    }
    Ok(pages)
}

/// There is none yet on other hosts.
#[cfg(not(target_os = "linux"))]
pub(crate) fn map(_: usize, _: bool) -> io::Result<(Written, Executed)> {
    Err(io::Error::new(io::ErrorKind::Unsupported, "no executable memory on this host"))
}

#[cfg(test)]
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod tests {
    use super::*;

    #[test]
    fn what_rests_stays_and_can_be_written() {
        let (mut write, execute) = map(2 * HUGE, true).unwrap();
        write.put(100, b"code");
        write.rest(0..HUGE);
        assert_eq!(write.bytes(100, 4), b"code");
        write.put(102, b"ol");
        // SAFETY: mapped, and as long as the view is there.
        assert_eq!(unsafe { std::slice::from_raw_parts(execute.address(100), 4) }, b"cool");
    }

    fn what_is_written_runs(pages: Pages, rights: &str) {
        let pages = Arc::new(pages);
        let (mut write, execute) = (Written::new(pages.clone()), Executed(pages));
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
        what_is_written_runs(single(8192).expect("memory"), "rwxp");
        let large = single(4 << 20).expect("memory");
        assert_eq!(large.write.addr() % HUGE, 0);
        what_is_written_runs(large, "rwxp");
    }

    #[test]
    fn or_written_at_one_and_executed_at_another() {
        what_is_written_runs(dual(8192).expect("memory"), "r-xs");
        let large = dual(4 << 20).expect("memory");
        assert_eq!((large.write.addr() % HUGE, large.execute.addr() % HUGE), (0, 0));
        what_is_written_runs(large, "r-xs");
    }

    #[test]
    fn no_address_of_split_memory_can_be_written_and_executed() {
        let (write, execute) = map(4 << 20, true).expect("memory");
        let maps = std::fs::read_to_string("/proc/self/maps").expect("maps");
        let rights = |at: usize| {
            let line = maps.lines().find(|l| {
                let range = l.split(' ').next().unwrap_or_default().split_once('-');
                let number = |s| usize::from_str_radix(s, 16).unwrap_or_default();
                range.is_some_and(|(a, b)| (number(a)..number(b)).contains(&at))
            });
            line.and_then(|l| l.split(' ').nth(1)).unwrap_or_default().to_owned()
        };
        assert_eq!(rights(write.at(0).addr()), "rw-s");
        assert_eq!(rights(execute.address(0).addr()), "r-xs");
    }

    #[test]
    fn code_stays_as_it_is_while_it_is_moved_to_huge_pages() {
        let (mut write, execute) = map(16 << 20, true).expect("memory");
        let code = |n: usize| [0xb8, n as u8, (n >> 8) as u8, (n >> 16) as u8, 0, 0xc3];
        for at in (0..16 << 20).step_by(64) {
            write.put(at, &code(at));
            if at % 4096 == 0 {
                // SAFETY: the code is `mov eax, at; ret`, which keeps to the calling convention.
                let f: extern "C" fn() -> u32 = unsafe { std::mem::transmute(execute.address(at)) };
                assert_eq!(f(), at as u32);
            }
        }
        for at in (0..16 << 20).step_by(64) {
            assert_eq!(write.bytes(at, 6), code(at));
            // SAFETY: as above.
            let f: extern "C" fn() -> u32 = unsafe { std::mem::transmute(execute.address(at)) };
            assert_eq!(f(), at as u32);
        }
    }
}
