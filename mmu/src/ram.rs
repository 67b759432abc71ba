//! Guest RAM: one anonymous mapping, touched lazily, shared by vCPUs, devices and the host's hypervisor.
//!
//! It is mapped without swap reservation, so a guest may be given more RAM than the host has (pages cost
//! something once they are touched); not on Windows, which counts all of it at once. On Linux the host is asked for huge pages, which it has for anonymous
//! memory by default, but not for files in memory: the host's TLB then reaches 512 times as far, and a guest
//! that touches its memory for the first time makes the host fault once in 2 MiB. The mapping never moves and
//! is never resized while the `GuestRam` lives. All access goes through raw pointers: the bytes are shared
//! with vCPU threads at all times, so no Rust reference to them is ever made.

use crate::PAGE_MASK;
use memmap2::{MmapOptions, MmapRaw};
use std::io;

/// The most RAM a guest may have: 4 TiB, what 42 physical address bits hold.
pub const MAX_RAM: u64 = 1 << 42;

/// Bytes in a huge page of the host, or a multiple of them.
const HUGE: usize = 2 << 20;

/// All RAM of a guest as one host mapping; offset 0 is the first byte of RAM, whatever its guest address.
pub struct GuestRam {
    /// Keeps the mapping, in which the RAM begins at `base`.
    _map: MmapRaw,
    base: *mut u8,
    size: u64,
}

// SAFETY: `base` leads into `_map`, which is plain memory and goes along; all access is by raw pointers.
unsafe impl Send for GuestRam {}
// SAFETY: as above.
unsafe impl Sync for GuestRam {}

impl GuestRam {
    /// Maps `size` bytes (a multiple of the page size) of lazily touched, zeroed memory.
    pub fn new(size: u64) -> io::Result<Self> {
        let invalid = |why: String| io::Error::new(io::ErrorKind::InvalidInput, why);
        if size == 0 {
            return Err(invalid("a guest needs at least one page (4 KiB) of RAM".into()));
        }
        if size & PAGE_MASK != 0 {
            return Err(invalid(format!("guest RAM must be a multiple of 4 KiB: {size} bytes asked for")));
        }
        if size > MAX_RAM {
            return Err(invalid(format!(
                "{} of guest RAM is more than the {} that can be mapped",
                in_units(size),
                in_units(MAX_RAM)
            )));
        }
        let len = usize::try_from(size).map_err(|_| {
            invalid(format!("{} of guest RAM does not fit this host's address space", in_units(size)))
        })?;
        Self::map(size, len)
            .map_err(|e| io::Error::new(e.kind(), format!("cannot map {} of guest RAM: {e}", in_units(size))))
    }

    fn map(size: u64, len: usize) -> io::Result<Self> {
        let reserved = len.checked_add(HUGE).ok_or(io::ErrorKind::OutOfMemory)?;
        let map = MmapRaw::from(MmapOptions::new().len(reserved).no_reserve_swap().map_anon()?);
        #[cfg(target_os = "linux")]
        // A host without them has small ones.
        let _ = map.advise(memmap2::Advice::HugePage);
        let base = map.as_mut_ptr();
        let base = base.wrapping_add(base.addr().wrapping_neg() % HUGE);
        Ok(Self { _map: map, base, size })
    }

    /// Bytes of RAM.
    #[inline]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The host address of the first byte; valid for `size()` bytes as long as `self` lives.
    #[inline]
    pub fn base(&self) -> *mut u8 {
        self.base
    }

    /// Gives the host its memory of `len` bytes from `offset` on back: they read as zeros then. Whether it took it:
    /// both are multiples of the host's page size, within RAM, and the host is one that fills such memory with zeros.
    pub fn discard(&self, offset: u64, len: u64) -> bool {
        if offset.checked_add(len).is_none_or(|end| end > self.size) {
            return false;
        }
        #[cfg(target_os = "linux")]
        {
            let first = self.base.addr() - self._map.as_mut_ptr().addr() + offset as usize;
            // SAFETY: the range is in RAM, to which no reference is made; who reads it meanwhile finds what was there
            // or zeros, as with any write.
            unsafe {
                self._map
                    .unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, first, len as usize)
                    .is_ok()
            }
        }
        #[cfg(not(target_os = "linux"))]
        false
    }
}

/// `bytes` with the largest binary unit that leaves a whole number.
fn in_units(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["bytes", "KiB", "MiB", "GiB", "TiB"];
    let power = (bytes.trailing_zeros() as usize / 10).min(UNITS.len() - 1);
    format!("{} {}", bytes >> (10 * power), UNITS[power])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ram_is_zeroed_and_keeps_what_is_written() {
        let ram = GuestRam::new(1 << 20).unwrap();
        let last = ram.base().wrapping_add((1 << 20) - 1);
        // SAFETY: `last` is the last byte of the mapping.
        unsafe {
            assert_eq!(last.read(), 0);
            last.write(0xa5);
            assert_eq!(last.read(), 0xa5);
        }
        assert_eq!(ram.size(), 1 << 20);
    }

    #[test]
    fn more_ram_than_the_host_has_can_be_mapped() {
        if cfg!(windows) {
            eprintln!("passed over: Windows counts all of it at once");
            return;
        }
        let ram = GuestRam::new(1 << 40).unwrap();
        let far = ram.base().wrapping_add((1 << 40) - 8).cast::<u64>();
        // SAFETY: the last eight bytes of the mapping.
        unsafe {
            far.write(1);
            assert_eq!(far.read(), 1);
        }
    }

    #[test]
    fn absurd_sizes_are_errors_that_name_the_size() {
        let err = GuestRam::new(100 << 40).err().unwrap();
        assert_eq!(err.kind(), io::ErrorKind::InvalidInput);
        assert!(err.to_string().contains("100 TiB"), "{err}");
        assert!(GuestRam::new(0).is_err());
        assert!(GuestRam::new(4097).is_err());
        assert!(GuestRam::new(!0xfff).is_err());
    }

    #[test]
    fn ram_begins_where_a_huge_page_may() {
        for size in [4096, 1 << 21, 5 << 20] {
            let ram = GuestRam::new(size).unwrap();
            assert_eq!(ram.base().addr() % HUGE, 0);
            let last = ram.base().wrapping_add(size as usize - 1);
            // SAFETY: `last` is the last byte of the RAM.
            unsafe { last.write(1) };
        }
    }
}
