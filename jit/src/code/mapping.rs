//! What is mapped at two addresses, or at one for both, on hosts where it is the system that sees to the size of pages
//! and to what is counted: macOS and Windows.
use super::host;
use std::io;
use std::ops::Range;
use std::ptr::null_mut;

/// A mapping, or two of the same memory.
pub(in crate::code) struct Mapping {
    write: *mut u8,
    execute: *mut u8,
    len: usize,
}

impl Drop for Mapping {
    fn drop(&mut self) {
        let second = if self.execute == self.write { null_mut() } else { self.execute };
        for at in [self.write, second].into_iter().filter(|v| !v.is_null()) {
            // SAFETY: mapped with this length, as the makers of this have promised, and no view is left.
            unsafe { host::unmap(at, self.len) };
        }
    }
}

impl Mapping {
    /// What is mapped at `at`, to be written and executed.
    ///
    /// # Safety
    /// It is a mapping of `len` bytes which [`host::unmap`] can take away, and nobody else's.
    pub unsafe fn new(at: *mut u8, len: usize) -> Self {
        Self { write: at, execute: at, len }
    }

    /// Has it be executed where `map` maps the same memory once more, given the address and the length. It is for
    /// [`host::unmap`] from then on.
    pub fn twice(mut self, map: impl FnOnce(*mut u8, usize) -> io::Result<*mut u8>) -> io::Result<Self> {
        self.execute = map(self.write, self.len)?;
        Ok(self)
    }

    pub fn write(&self) -> *mut u8 {
        self.write
    }

    pub fn execute(&self) -> *const u8 {
        self.execute
    }

    /// Huge pages are not for the asking.
    pub fn collapses(&self) -> bool {
        false
    }

    /// What is mapped twice is counted once.
    pub fn rest(&self, _: Range<usize>) {}
}
