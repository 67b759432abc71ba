//! Guest RAM: one mapping of a memfd, touched lazily, shared by vCPUs, devices and the host's hypervisor.
//!
//! On Linux the RAM is a sealed memfd mapped shared and without swap reservation, so a guest may be given
//! more RAM than the host has (pages cost something once they are touched), and another process or a snapshot
//! can map the same pages. Elsewhere it is an anonymous mapping. The mapping never moves and is never resized
//! while the `GuestRam` lives. All access goes through raw pointers: the bytes are shared with vCPU threads
//! at all times, so no Rust reference to them is ever made.

use crate::PAGE_MASK;
use memmap2::{MmapOptions, MmapRaw};
use std::io;

/// The most RAM a guest may have: 4 TiB, what 42 physical address bits hold.
pub const MAX_RAM: u64 = 1 << 42;

/// All RAM of a guest as one host mapping; offset 0 is the first byte of RAM, whatever its guest address.
pub struct GuestRam {
    map: MmapRaw,
    size: u64,
    #[cfg(target_os = "linux")]
    fd: std::os::fd::OwnedFd,
}

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

    #[cfg(target_os = "linux")]
    fn map(size: u64, len: usize) -> io::Result<Self> {
        use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

        // SAFETY: the name is a NUL-terminated literal; the call has no other memory argument.
        let raw =
            unsafe { libc::memfd_create(c"mynah-ram".as_ptr(), libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING) };
        if raw < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: `raw` was just opened and nobody else owns it.
        let fd = unsafe { OwnedFd::from_raw_fd(raw) };
        let file = std::fs::File::from(fd);
        file.set_len(size)?;
        // A file that cannot shrink cannot turn an access into SIGBUS, whoever else holds the descriptor.
        // SAFETY: F_ADD_SEALS takes an integer argument; the descriptor is open.
        if unsafe {
            libc::fcntl(file.as_raw_fd(), libc::F_ADD_SEALS, libc::F_SEAL_SHRINK | libc::F_SEAL_GROW)
        } < 0
        {
            return Err(io::Error::last_os_error());
        }
        let map = MmapOptions::new().len(len).no_reserve_swap().map_raw(&file)?;
        Ok(Self { map, size, fd: file.into() })
    }

    #[cfg(not(target_os = "linux"))]
    fn map(size: u64, len: usize) -> io::Result<Self> {
        let map = MmapOptions::new().len(len).no_reserve_swap().map_anon()?;
        Ok(Self { map: map.into(), size })
    }

    /// Bytes of RAM.
    #[inline]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The host address of the first byte; valid for `size()` bytes as long as `self` lives.
    #[inline]
    pub fn base(&self) -> *mut u8 {
        self.map.as_mut_ptr()
    }

    /// The memfd behind the mapping (offset 0 is the first byte of RAM): for snapshots, and for processes
    /// that share the guest's RAM.
    #[cfg(target_os = "linux")]
    pub fn memfd(&self) -> std::os::fd::BorrowedFd<'_> {
        use std::os::fd::AsFd;
        self.fd.as_fd()
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

    #[cfg(target_os = "linux")]
    #[test]
    fn the_memfd_shows_the_same_bytes_and_cannot_shrink() {
        use std::os::unix::fs::FileExt;
        let ram = GuestRam::new(8192).unwrap();
        // SAFETY: within the mapping.
        unsafe { ram.base().add(4096).write(0x77) };
        let file = std::fs::File::from(ram.memfd().try_clone_to_owned().unwrap());
        let mut byte = [0];
        file.read_exact_at(&mut byte, 4096).unwrap();
        assert_eq!(byte, [0x77]);
        assert!(file.set_len(4096).is_err());
    }
}
