//! Memory for code as cranelift-jit wants it.
use super::dual_map::Written;
use cranelift_jit::{BranchProtection, JITMemoryKind, JITMemoryProvider};
use cranelift_module::ModuleResult;
use std::io;

/// Alignment of a function, if it wants no more.
const ALIGN: usize = 16;

/// The view of a memory to write code by, for a module that fills it. What it writes can be executed at the other
/// view's addresses all the time, and stays as long as that view.
pub(crate) struct Provider {
    write: Written,
    used: usize,
}

impl Provider {
    pub fn new(write: Written) -> Self {
        Self { write, used: 0 }
    }
}

impl JITMemoryProvider for Provider {
    fn allocate(&mut self, size: usize, align: u64, kind: JITMemoryKind) -> io::Result<*mut u8> {
        if !matches!(kind, JITMemoryKind::Executable) {
            return Err(io::Error::new(io::ErrorKind::Unsupported, "memory for code only"));
        }
        let at = self.used.next_multiple_of(ALIGN.max(align as usize));
        let end = at.checked_add(size).filter(|&end| size > 0 && end <= self.write.len());
        self.used = end.ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(self.write.at(at))
    }

    /// The pages go with the last of their views.
    unsafe fn free_memory(&mut self) {}

    /// Nothing is to be protected: who writes has an address of its own.
    fn finalize(&mut self, _: BranchProtection) -> ModuleResult<()> {
        self.write.written(0..self.used);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::code::dual_map::map;

    #[test]
    fn there_is_memory_for_code_only_and_no_more_than_there_is() {
        let (write, execute) = map(8192, true).unwrap();
        let mut p = Provider::new(write);
        let first = p.allocate(100, 1, JITMemoryKind::Executable).unwrap();
        let second = p.allocate(100, 64, JITMemoryKind::Executable).unwrap();
        assert_eq!(second.addr() - first.addr(), 128);
        // What is written there is executed elsewhere.
        let there = execute.of_written(second).unwrap();
        assert_eq!((there, there.addr() == second.addr()), (execute.address(128), false));
        assert!(execute.of_written(execute.address(0)).is_none());
        assert!(p.allocate(8192 - 228 + 1, 1, JITMemoryKind::Executable).is_err());
        for kind in [JITMemoryKind::Writable, JITMemoryKind::ReadOnly] {
            assert!(p.allocate(8, 8, kind).is_err());
        }
        // What was refused has taken nothing.
        assert_eq!(p.allocate(8, 1, JITMemoryKind::Executable).unwrap().addr() - first.addr(), 240);
    }
}
