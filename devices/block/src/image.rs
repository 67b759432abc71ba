//! What every disk image is, whatever its format.
use std::io;

/// What stands at some place of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// So many bytes from there are alike, at least one unless the place is the image's end.
    pub len: u64,
    /// There may be other bytes than zeros.
    pub data: bool,
    /// The image itself holds them, and not one that it is backed by.
    pub allocated: bool,
    /// Where they are in the image's own file, if they stand there as they are.
    pub host_offset: Option<u64>,
}

/// A disk image: a row of bytes. Calls come from several threads at once, and wait for the host.
///
/// Ranges are within the image ([`Image::size`]): callers see to it, images refuse others with
/// [`io::ErrorKind::InvalidInput`].
pub trait Image: Send + Sync {
    /// The format's name as `-drive format=` has it.
    fn format(&self) -> &'static str;

    /// Bytes; any number, be it no multiple of a sector.
    fn size(&self) -> u64;

    /// Whether writes are refused.
    fn read_only(&self) -> bool;

    /// Fills `buf` with what stands from `at` on.
    ///
    /// # Errors
    /// The host's, or the image's file is damaged there ([`io::ErrorKind::InvalidData`]).
    fn read(&self, at: u64, buf: &mut [u8]) -> io::Result<()>;

    /// Writes `data` from `at` on. It need not be durable before [`Image::flush`].
    ///
    /// # Errors
    /// As [`Image::read`]; [`io::ErrorKind::StorageFull`] if the host has no room.
    fn write(&self, at: u64, data: &[u8]) -> io::Result<()>;

    /// Returns when all that was written before the call outlives a power failure of the host.
    ///
    /// # Errors
    /// The host's. What was written since the last flush may be lost then.
    fn flush(&self) -> io::Result<()>;

    /// Has zeros stand from `at` on; their room may be given back if `unmap`.
    ///
    /// # Errors
    /// As [`Image::write`].
    fn zero(&self, at: u64, len: u64, unmap: bool) -> io::Result<()>;

    /// What stands from `at` on is of no use any more: its room may be given back. It reads as what was there or as
    /// zeros.
    ///
    /// # Errors
    /// As [`Image::write`].
    fn discard(&self, at: u64, len: u64) -> io::Result<()>;

    /// What stands at `at`.
    ///
    /// # Errors
    /// As [`Image::read`].
    fn extent(&self, at: u64) -> io::Result<Extent>;

    /// Has another size; what is new reads as zeros.
    ///
    /// # Errors
    /// As [`Image::write`]; [`io::ErrorKind::Unsupported`] if the format cannot.
    fn resize(&self, size: u64) -> io::Result<()>;
}

/// Whether `len` bytes from `at` on are within `size`.
///
/// # Errors
/// They are not.
pub(crate) fn within(size: u64, at: u64, len: u64) -> io::Result<()> {
    match at.checked_add(len) {
        Some(end) if end <= size => Ok(()),
        _ => Err(io::Error::new(io::ErrorKind::InvalidInput, "beyond the end of the image")),
    }
}
