//! Memory for code, to be written and to be executed.
//!
//! It is mapped twice: at one address it can be written, at another it can be executed, and no address allows both. So
//! who can have a wrong address written to does not write code. How a host is asked for that is told in a file for each
//! (`linux`, `macos`, `windows`).
//!
//! On request it is one mapping for both, where the host has such. Hosts that let no memory be both (some SELinux
//! policies, macOS on arm64) have it mapped twice all the same.
//!
//! Hosts whose caches of instructions do not follow what is written (arm64) are told of all that is: see [`flush`].
use super::flush::flush;
use super::host::{Mapping, dual, single};
use std::io;
use std::ops::Range;
use std::sync::Arc;

/// Pages of the host, mapped at two addresses or one for as long as one of the views is there.
pub(super) struct Pages {
    write: *mut u8,
    execute: *const u8,
    len: usize,
    /// Keeps them mapped.
    mapping: Mapping,
}

// SAFETY: plain memory, accessed through the views by raw pointers.
unsafe impl Send for Pages {}
// SAFETY: as above.
unsafe impl Sync for Pages {}

/// The view to write by. What is written is seen through the other view at once.
pub(crate) struct Written {
    pages: Arc<Pages>,
    /// Huge pages have been asked for up to here.
    asked: usize,
}

/// The view to execute from.
pub(crate) struct Executed(Arc<Pages>);

impl Pages {
    fn new(mapping: Mapping, len: usize) -> Arc<Self> {
        let (write, execute) = (mapping.write(), mapping.execute());
        Arc::new(Self { write, execute, len, mapping })
    }

    /// Where a byte of it is written.
    #[cfg(target_os = "linux")]
    pub fn write_at(&self, offset: usize) -> *mut u8 {
        debug_assert!(offset < self.len);
        self.write.wrapping_add(offset)
    }
}

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
        while self.pages.mapping.collapses() && self.asked <= at + HUGE && self.asked + HUGE <= self.pages.len
        {
            super::host::ask_huge(&self.pages, self.asked);
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
        if self.pages.mapping.collapses() && at + HUGE >= self.asked {
            self.ask(at);
            self.rest(0..at / HUGE * HUGE);
        }
        // SAFETY: within the mapping, as was just seen; `bytes` is no part of it, as nobody else has its bytes to be
        // written.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.pages.write.add(at), bytes.len()) };
        self.written(at..at + bytes.len());
    }

    /// A stretch was written by its address: what is executed there from now on is what stands there.
    pub fn written(&self, stretch: Range<usize>) {
        debug_assert!(stretch.end <= self.pages.len);
        let (write, execute) = (self.pages.write, self.pages.execute);
        flush(write.wrapping_add(stretch.start), execute.wrapping_add(stretch.start), stretch.len());
    }

    /// Hardly anything will be written there from now on: what is mapped to be written is not counted as resident a
    /// second time, where the host can do without.
    pub fn rest(&self, stretch: Range<usize>) {
        debug_assert!(stretch.end <= self.pages.len);
        if !std::ptr::eq(self.pages.write, self.pages.execute) && !stretch.is_empty() {
            self.pages.mapping.rest(stretch);
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
pub(super) const HUGE: usize = 2 << 20;

/// Maps `len` bytes, a multiple of the page size, which are zero. If they are `split` no address can be both written
/// and executed.
pub(crate) fn map(len: usize, split: bool) -> io::Result<(Written, Executed)> {
    let mapping = if split { dual(len)? } else { single(len).or_else(|_| dual(len))? };
    let pages = Pages::new(mapping, len);
    Ok((Written::new(pages.clone()), Executed(pages)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The host's code that returns a number, by the convention of C.
    fn code(n: u32) -> Vec<u8> {
        if cfg!(target_arch = "x86_64") {
            // MOV EAX, n; RET.
            [&[0xb8][..], &n.to_le_bytes(), &[0xc3]].concat()
        } else {
            // MOVZ W0, low; MOVK W0, high, LSL 16; RET.
            let words = [0x5280_0000 | (n & 0xffff) << 5, 0x72a0_0000 | n >> 16 << 5, 0xd65f_03c0];
            words.into_iter().flat_map(u32::to_le_bytes).collect()
        }
    }

    /// Runs it.
    fn run(at: *const u8) -> u32 {
        super::super::flush::synchronise();
        // SAFETY: `code` is there, which keeps to the calling convention.
        let f: extern "C" fn() -> u32 = unsafe { std::mem::transmute(at) };
        f()
    }

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

    /// What Linux says of the memory at an address; `None` on other hosts.
    fn line_of(at: usize) -> Option<String> {
        // Wine has the file too, of another process.
        if cfg!(not(target_os = "linux")) {
            return None;
        }
        let maps = std::fs::read_to_string("/proc/self/maps").ok()?;
        let number = |s: &str| usize::from_str_radix(s, 16).unwrap_or_default();
        let holds = |l: &&str| {
            let range = l.split(' ').next().unwrap_or_default().split_once('-');
            range.is_some_and(|(a, b)| (number(a)..number(b)).contains(&at))
        };
        Some(maps.lines().find(holds).unwrap_or_default().to_owned())
    }

    fn what_is_written_runs(mapping: Mapping, len: usize, rights: &str) {
        let pages = Pages::new(mapping, len);
        let (mut write, execute) = (Written::new(pages.clone()), Executed(pages));
        write.put(4096, &code(42));
        assert!(code(42).starts_with(write.bytes(4096, 4)));
        assert_eq!(run(execute.address(4096)), 42);
        drop(write);
        // The code is there as long as one of the views.
        assert_eq!(run(execute.address(4096)), 42);
        let Some(line) = line_of(execute.address(0).addr()) else { return };
        assert!(line.contains(rights), "{line}");
        assert!(
            !line.contains('/') || line.contains("/dev/zero") || cfg!(not(target_arch = "x86_64")),
            "perf does not know '{line}' as anonymous"
        );
    }

    #[test]
    fn memory_may_be_written_and_executed_at_one_address() {
        if cfg!(all(target_os = "macos", target_arch = "aarch64")) {
            eprintln!("this host has no such memory");
            return;
        }
        what_is_written_runs(single(8192).expect("memory"), 8192, "rwxp");
        let large = single(4 << 20).expect("memory");
        assert!(cfg!(not(target_os = "linux")) || large.write().addr().is_multiple_of(HUGE));
        what_is_written_runs(large, 4 << 20, "rwxp");
    }

    #[test]
    fn or_written_at_one_and_executed_at_another() {
        what_is_written_runs(dual(8192).expect("memory"), 8192, "r-xs");
        let large = dual(4 << 20).expect("memory");
        let aligned = |at: usize| at.is_multiple_of(HUGE);
        assert_ne!(large.write().addr(), large.execute().addr());
        assert!(
            cfg!(not(target_os = "linux"))
                || aligned(large.write().addr()) && aligned(large.execute().addr())
        );
        what_is_written_runs(large, 4 << 20, "r-xs");
    }

    #[test]
    fn no_address_of_split_memory_can_be_written_and_executed() {
        let (write, execute) = map(4 << 20, true).expect("memory");
        let rights = |at: usize| Some(line_of(at)?.split(' ').nth(1).unwrap_or_default().to_owned());
        let (Some(written), Some(executed)) = (rights(write.at(0).addr()), rights(execute.address(0).addr()))
        else {
            eprintln!("this host does not say what its memory allows");
            return;
        };
        assert_eq!((written.as_str(), executed.as_str()), ("rw-s", "r-xs"));
    }

    #[test]
    fn code_stays_as_it_is_while_it_is_moved_to_huge_pages() {
        let (mut write, execute) = map(16 << 20, true).expect("memory");
        for at in (0..16 << 20).step_by(64) {
            write.put(at, &code(at as u32));
            if at % 4096 == 0 {
                assert_eq!(run(execute.address(at)), at as u32);
            }
        }
        for at in (0..16 << 20).step_by(64) {
            assert!(code(at as u32).starts_with(write.bytes(at, 6)));
            assert_eq!(run(execute.address(at)), at as u32);
        }
    }
}
