//! Where an image's bytes are kept: a file of the host, or a test's model of one.
use crate::host::HostFile;
use std::io;

/// A row of bytes that grows as it is written to. Calls come from several threads at once.
pub trait Storage: Send + Sync {
    /// Fills `buf` with what stands from `at` on; beyond the end there are zeros.
    ///
    /// # Errors
    /// The host's.
    fn read_at(&self, at: u64, buf: &mut [u8]) -> io::Result<()>;

    /// Writes all of `data` from `at` on.
    ///
    /// # Errors
    /// The host's.
    fn write_at(&self, at: u64, data: &[u8]) -> io::Result<()>;

    /// Returns when all that was written before the call is durable.
    ///
    /// # Errors
    /// The host's.
    fn flush(&self) -> io::Result<()>;

    /// Bytes.
    ///
    /// # Errors
    /// The host's.
    fn len(&self) -> io::Result<u64>;

    /// Whether there is nothing in it.
    ///
    /// # Errors
    /// The host's.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }

    /// Has another size; what is new reads as zeros.
    ///
    /// # Errors
    /// The host's.
    fn set_len(&self, len: u64) -> io::Result<()>;

    /// Has zeros stand from `at` on, within its size; their room may be given back if `unmap`.
    ///
    /// # Errors
    /// The host's.
    fn zero_at(&self, at: u64, len: u64, unmap: bool) -> io::Result<()>;

    /// How many bytes from `at` on are alike, and whether there may be other bytes than zeros. The first is 0 at the
    /// end only.
    ///
    /// # Errors
    /// The host's.
    fn extent_at(&self, at: u64) -> io::Result<(u64, bool)>;

    /// Bytes that the host keeps for it.
    ///
    /// # Errors
    /// The host's.
    fn disk_usage(&self) -> io::Result<u64> {
        self.len()
    }

    /// The host's file that it is, if it is one.
    fn host(&self) -> Option<&HostFile> {
        None
    }

    /// Has room for `len` bytes from `at` on set aside.
    ///
    /// # Errors
    /// The host's: no room.
    fn allocate(&self, at: u64, len: u64) -> io::Result<()>;
}

/// Writes zeros from `at` on, as bytes.
///
/// # Errors
/// The storage's.
pub(crate) fn write_zeros(storage: &dyn Storage, mut at: u64, mut len: u64) -> io::Result<()> {
    let zeros = vec![0; len.min(1 << 20) as usize];
    while len > 0 {
        let n = len.min(zeros.len() as u64);
        storage.write_at(at, &zeros[..n as usize])?;
        at += n;
        len -= n;
    }
    Ok(())
}

/// An error that says that the image's file is damaged.
pub(crate) fn damaged(what: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.into())
}

/// An error that says what is not there.
pub(crate) fn unsupported(what: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::Unsupported, what.into())
}

/// An error that says that there is less of a file than there was when it was opened.
pub(crate) fn cut(end: u64) -> io::Error {
    io::Error::new(
        io::ErrorKind::UnexpectedEof,
        format!("the file has become shorter than the disk: it ends at {end:#x}"),
    )
}

/// Big-endian numbers of a header. The caller has made sure of the buffer's size.
pub(crate) fn be32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

/// See [`be32`].
pub(crate) fn be64(bytes: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

/// Little-endian numbers of a header. The caller has made sure of the buffer's size.
pub(crate) fn le32(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

/// See [`le32`].
pub(crate) fn le64(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}
