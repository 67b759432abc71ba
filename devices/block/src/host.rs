//! A file or a block device of the host.
//!
//! With `direct` it is open twice: past the host's page cache for what is aligned, through it for what is not. The
//! kernel keeps the two views of a file alike as long as they do not touch one page at the same time, which `mixed`
//! sees to. A file system that has nothing past its page cache is an error, as in QEMU. The buffer of a direct transfer
//! is aligned too: the caller's if it happens to be, a bounce buffer otherwise.
use crate::lock::unlock;
use crate::storage::{Storage, write_zeros};
use parking_lot::{Condvar, Mutex};
use std::fs::{File, OpenOptions};
use std::io;
use std::path::Path;

/// Offsets, lengths and addresses of direct transfers are multiples of it: of every block size that disks have.
pub(crate) const ALIGN: usize = 4096;
/// Most bytes of a bounce buffer.
const BOUNCE: usize = 1 << 20;

/// An open file.
pub struct HostFile {
    file: File,
    direct: Option<File>,
    mixed: Mixed,
    /// Its size cannot be changed.
    device: bool,
}

/// Who has a file that is open twice: any number past the page cache, or one through it. Unlike a guard's the right to
/// it may be given back by another thread.
#[derive(Default)]
struct Mixed {
    users: Mutex<Users>,
    free: Condvar,
}

#[derive(Default)]
struct Users {
    shared: usize,
    alone: bool,
    /// Those that wish to have it alone; others wait for them.
    waiting: usize,
}

impl Mixed {
    #[cfg(target_os = "linux")]
    fn try_share(&self) -> bool {
        let mut users = self.users.lock();
        let free = !users.alone && users.waiting == 0;
        users.shared += usize::from(free);
        free
    }

    fn share(&self) -> Shared<'_> {
        let mut users = self.users.lock();
        while users.alone || users.waiting > 0 {
            self.free.wait(&mut users);
        }
        users.shared += 1;
        Shared(self)
    }

    fn unshare(&self) {
        let mut users = self.users.lock();
        users.shared -= 1;
        if users.shared == 0 {
            self.free.notify_all();
        }
    }

    fn alone(&self) -> Alone<'_> {
        let mut users = self.users.lock();
        users.waiting += 1;
        while users.alone || users.shared > 0 {
            self.free.wait(&mut users);
        }
        users.waiting -= 1;
        users.alone = true;
        Alone(self)
    }
}

struct Shared<'a>(&'a Mixed);

impl Drop for Shared<'_> {
    fn drop(&mut self) {
        self.0.unshare();
    }
}

struct Alone<'a>(&'a Mixed);

impl Drop for Alone<'_> {
    fn drop(&mut self) {
        self.0.users.lock().alone = false;
        self.0.free.notify_all();
    }
}

impl HostFile {
    /// Opens the file at `path`; with `direct`, past the host's page cache.
    ///
    /// # Errors
    /// The host's; it is a folder or another thing that has no bytes; its file system has nothing past the page cache.
    pub fn open(path: &Path, write: bool, direct: bool) -> io::Result<Self> {
        let file = open_file(path, write, false)?;
        let kind = file.metadata()?.file_type();
        let device = is_block_device(&kind);
        if !device && !kind.is_file() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "it is neither a file nor a block device",
            ));
        }
        let direct = direct.then(|| open_file(path, write, true).map_err(not_direct)).transpose()?;
        Ok(Self { file, direct, mixed: Mixed::default(), device })
    }

    /// One that is open already.
    pub fn new(file: File) -> Self {
        Self { file, direct: None, mixed: Mixed::default(), device: false }
    }

    /// The file for a transfer that somebody else carries out, and whether its buffer has to be aligned to [`ALIGN`]:
    /// until [`HostFile::end_transfer`] is told so. `None` if it cannot be one now.
    #[cfg(target_os = "linux")]
    pub(crate) fn begin_transfer(&self, at: u64, len: usize) -> Option<(&File, bool)> {
        if self.direct.is_none() {
            return Some((&self.file, false));
        }
        let direct = self.direct_for(at, len)?;
        self.mixed.try_share().then_some((direct, true))
    }

    /// The transfer of [`HostFile::begin_transfer`] has ended.
    #[cfg(target_os = "linux")]
    pub(crate) fn end_transfer(&self, aligned: bool) {
        if aligned {
            self.mixed.unshare();
        }
    }

    /// The file itself.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Whether what is aligned goes past the host's page cache.
    pub fn is_direct(&self) -> bool {
        self.direct.is_some()
    }

    /// Whether it is a block device.
    pub fn is_device(&self) -> bool {
        self.device
    }

    /// The file for a transfer past the page cache, if it can be one.
    fn direct_for(&self, at: u64, len: usize) -> Option<&File> {
        let aligned = at.is_multiple_of(ALIGN as u64) && len.is_multiple_of(ALIGN) && len > 0;
        self.direct.as_ref().filter(|_| aligned)
    }

    fn buffered_write(&self, at: u64, data: &[u8]) -> io::Result<()> {
        let _alone = self.direct.as_ref().map(|_| self.mixed.alone());
        write_all_at(&self.file, at, data)
    }
}

impl Drop for HostFile {
    fn drop(&mut self) {
        unlock(&self.file);
    }
}

/// A part of `room` that starts at a multiple of [`ALIGN`].
fn aligned(room: &mut Vec<u8>, len: usize) -> &mut [u8] {
    room.resize(len + ALIGN, 0);
    let skip = room.as_ptr().align_offset(ALIGN);
    &mut room[skip..skip + len]
}

/// What the host calls to go past its page cache.
const DIRECT: &str = if cfg!(windows) { "FILE_FLAG_NO_BUFFERING" } else { "O_DIRECT" };

/// What is said where the host refuses to go past its page cache.
fn not_direct(e: io::Error) -> io::Error {
    match e.kind() {
        io::ErrorKind::InvalidInput | io::ErrorKind::Unsupported => io::Error::new(
            e.kind(),
            format!(
                "its file system does not support {DIRECT}, which cache=none, cache=directsync and cache.direct=on \
                 ask for: say cache=writeback ({e})"
            ),
        ),
        _ => e,
    }
}

impl Storage for HostFile {
    fn host(&self) -> Option<&HostFile> {
        Some(self)
    }

    fn read_at(&self, at: u64, buf: &mut [u8]) -> io::Result<()> {
        let Some(direct) = self.direct_for(at, buf.len()) else {
            let _alone = self.direct.as_ref().map(|_| self.mixed.alone());
            return read_or_zeros(&self.file, at, buf);
        };
        let _shared = self.mixed.share();
        if (buf.as_ptr() as usize).is_multiple_of(ALIGN) {
            return read_or_zeros(direct, at, buf);
        }
        let mut room = Vec::new();
        let bounce = aligned(&mut room, buf.len().min(BOUNCE));
        for (part, at) in buf.chunks_mut(BOUNCE).zip((at..).step_by(BOUNCE)) {
            let bounce = &mut bounce[..part.len()];
            read_or_zeros(direct, at, bounce)?;
            part.copy_from_slice(bounce);
        }
        Ok(())
    }

    fn write_at(&self, at: u64, data: &[u8]) -> io::Result<()> {
        let Some(direct) = self.direct_for(at, data.len()) else { return self.buffered_write(at, data) };
        let _shared = self.mixed.share();
        if (data.as_ptr() as usize).is_multiple_of(ALIGN) {
            return write_all_at(direct, at, data);
        }
        let mut room = Vec::new();
        let bounce = aligned(&mut room, data.len().min(BOUNCE));
        for (part, at) in data.chunks(BOUNCE).zip((at..).step_by(BOUNCE)) {
            let bounce = &mut bounce[..part.len()];
            bounce.copy_from_slice(part);
            write_all_at(direct, at, bounce)?;
        }
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn len(&self) -> io::Result<u64> {
        if self.device {
            use std::io::{Seek, SeekFrom};
            return (&self.file).seek(SeekFrom::End(0));
        }
        Ok(self.file.metadata()?.len())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        if self.device {
            return Err(io::Error::new(io::ErrorKind::Unsupported, "a block device has the size it has"));
        }
        self.file.set_len(len)
    }

    fn zero_at(&self, at: u64, len: u64, unmap: bool) -> io::Result<()> {
        if len == 0 {
            return Ok(());
        }
        let done = {
            let _alone = self.direct.as_ref().map(|_| self.mixed.alone());
            zero_range(&self.file, at, len, unmap)?
        };
        if done { Ok(()) } else { write_zeros(self, at, len) }
    }

    fn extent_at(&self, at: u64) -> io::Result<(u64, bool)> {
        let len = self.len()?;
        if at >= len {
            return Ok((0, false));
        }
        data_or_hole(&self.file, at, len)
    }

    fn disk_usage(&self) -> io::Result<u64> {
        #[cfg(unix)]
        {
            use std::os::unix::fs::MetadataExt;
            Ok(self.file.metadata()?.blocks() * 512)
        }
        #[cfg(windows)]
        return allocated(&self.file).or_else(|_| self.len());
    }

    fn allocate(&self, at: u64, len: u64) -> io::Result<()> {
        #[cfg(target_os = "linux")]
        match rustix::fs::fallocate(&self.file, rustix::fs::FallocateFlags::empty(), at, len) {
            Err(rustix::io::Errno::OPNOTSUPP) => {}
            other => return Ok(other?),
        }
        write_zeros(self, at, len)
    }
}

/// Bytes that a file takes on its disk.
#[cfg(windows)]
fn allocated(file: &File) -> io::Result<u64> {
    use std::os::windows::io::AsRawHandle;
    use windows_sys::Win32::Storage::FileSystem as fs;
    let mut info = fs::FILE_STANDARD_INFO::default();
    // SAFETY: the file is open, and the structure is the one of this class, with its length.
    let done = unsafe {
        fs::GetFileInformationByHandleEx(
            file.as_raw_handle(),
            fs::FileStandardInfo,
            (&raw mut info).cast(),
            size_of::<fs::FILE_STANDARD_INFO>() as u32,
        )
    };
    if done == 0 { Err(io::Error::last_os_error()) } else { Ok(info.AllocationSize.max(0) as u64) }
}

/// Fills `buf`; beyond the end there are zeros.
fn read_or_zeros(file: &File, mut at: u64, mut buf: &mut [u8]) -> io::Result<()> {
    while !buf.is_empty() {
        let n = match read_some(file, at, buf) {
            Ok(n) => n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(e),
        };
        if n == 0 {
            buf.fill(0);
            return Ok(());
        }
        at += n as u64;
        buf = &mut buf[n..];
        // A direct read that the file's end has cut short is over: what follows is not aligned.
        if !buf.is_empty() && !at.is_multiple_of(512) {
            buf.fill(0);
            return Ok(());
        }
    }
    Ok(())
}

#[cfg(unix)]
fn read_some(file: &File, at: u64, buf: &mut [u8]) -> io::Result<usize> {
    std::os::unix::fs::FileExt::read_at(file, buf, at)
}

#[cfg(unix)]
fn write_all_at(file: &File, at: u64, data: &[u8]) -> io::Result<()> {
    std::os::unix::fs::FileExt::write_all_at(file, data, at)
}

#[cfg(windows)]
fn read_some(file: &File, at: u64, buf: &mut [u8]) -> io::Result<usize> {
    std::os::windows::fs::FileExt::seek_read(file, buf, at)
}

#[cfg(windows)]
fn write_all_at(file: &File, mut at: u64, mut data: &[u8]) -> io::Result<()> {
    while !data.is_empty() {
        let n = std::os::windows::fs::FileExt::seek_write(file, data, at)?;
        if n == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        at += n as u64;
        data = &data[n..];
    }
    Ok(())
}

fn open_file(path: &Path, write: bool, direct: bool) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(write);
    #[cfg(target_os = "linux")]
    {
        use std::os::unix::fs::OpenOptionsExt;
        // A pipe that nobody writes to must not hold us up.
        options.custom_flags(libc::O_NONBLOCK | if direct { libc::O_DIRECT } else { 0 });
    }
    #[cfg(windows)]
    if direct {
        use std::os::windows::fs::OpenOptionsExt;
        options.custom_flags(windows_sys::Win32::Storage::FileSystem::FILE_FLAG_NO_BUFFERING);
    }
    #[cfg(not(any(target_os = "linux", windows)))]
    if direct {
        return Err(io::ErrorKind::Unsupported.into());
    }
    let file = options.open(path)?;
    #[cfg(windows)]
    if write {
        make_sparse(&file);
    }
    Ok(file)
}

/// Calls the file system of Windows about a file: what it writes to `out`, if it does.
#[cfg(windows)]
fn control(file: &File, code: u32, input: &[u64], out: &mut [u64]) -> io::Result<usize> {
    use std::os::windows::io::AsRawHandle;
    let mut written = 0;
    // SAFETY: the file is open, and the buffers are as long as they are said to be.
    let done = unsafe {
        windows_sys::Win32::System::IO::DeviceIoControl(
            file.as_raw_handle(),
            code,
            input.as_ptr().cast(),
            size_of_val(input) as u32,
            out.as_mut_ptr().cast(),
            size_of_val(out) as u32,
            &raw mut written,
            std::ptr::null_mut(),
        )
    };
    let more = windows_sys::Win32::Foundation::ERROR_MORE_DATA as i32;
    match done {
        0 if io::Error::last_os_error().raw_os_error() != Some(more) => Err(io::Error::last_os_error()),
        _ => Ok(written as usize),
    }
}

/// What is not written of the file takes no place, where the file system has such files: a hint.
#[cfg(windows)]
pub(crate) fn make_sparse(file: &File) {
    let _ = control(file, windows_sys::Win32::System::Ioctl::FSCTL_SET_SPARSE, &[], &mut []);
}

#[cfg(unix)]
fn is_block_device(kind: &std::fs::FileType) -> bool {
    std::os::unix::fs::FileTypeExt::is_block_device(kind)
}

#[cfg(not(unix))]
fn is_block_device(_: &std::fs::FileType) -> bool {
    false
}

/// Has zeros stand there without writing them: `false` if the host cannot.
#[cfg(target_os = "linux")]
fn zero_range(file: &File, at: u64, len: u64, unmap: bool) -> io::Result<bool> {
    use rustix::fs::FallocateFlags as Flags;
    use rustix::io::Errno;
    let punch = Flags::PUNCH_HOLE | Flags::KEEP_SIZE;
    let flags = if unmap { punch } else { Flags::ZERO_RANGE | Flags::KEEP_SIZE };
    match rustix::fs::fallocate(file, flags, at, len) {
        Ok(()) => Ok(true),
        Err(Errno::OPNOTSUPP | Errno::INVAL | Errno::NODEV | Errno::NOTTY) => Ok(false),
        Err(e) => Err(e.into()),
    }
}

/// Has zeros stand there without writing them, in a file that is sparse; it takes no place there then.
#[cfg(windows)]
fn zero_range(file: &File, at: u64, len: u64, unmap: bool) -> io::Result<bool> {
    let end = at.saturating_add(len).min(file.metadata()?.len());
    if !unmap || at >= end {
        return Ok(at >= end && unmap);
    }
    let set_zero = windows_sys::Win32::System::Ioctl::FSCTL_SET_ZERO_DATA;
    // What is not sparse, or on a file system without holes, is written.
    Ok(control(file, set_zero, &[at, end], &mut []).is_ok())
}

#[cfg(not(any(target_os = "linux", windows)))]
fn zero_range(_: &File, _: u64, _: u64, _: bool) -> io::Result<bool> {
    Ok(false)
}

/// The extent at `at`, which is before the end `len`.
#[cfg(target_os = "linux")]
fn data_or_hole(file: &File, at: u64, len: u64) -> io::Result<(u64, bool)> {
    use rustix::fs::{SeekFrom, seek};
    use rustix::io::Errno;
    let all = (len - at, true);
    match seek(file, SeekFrom::Data(at)) {
        // Some hole runs to the end.
        Err(Errno::NXIO) => Ok((len - at, false)),
        Err(_) => Ok(all),
        Ok(data) if data > at => Ok((data.min(len) - at, false)),
        Ok(_) => match seek(file, SeekFrom::Hole(at)) {
            Ok(hole) if hole > at => Ok((hole.min(len) - at, true)),
            _ => Ok(all),
        },
    }
}

/// The extent at `at`, which is before the end `len`.
#[cfg(windows)]
fn data_or_hole(file: &File, at: u64, len: u64) -> io::Result<(u64, bool)> {
    let query = windows_sys::Win32::System::Ioctl::FSCTL_QUERY_ALLOCATED_RANGES;
    // The first range that has a place, as offset and length.
    let mut range = [0; 2];
    match control(file, query, &[at, len - at], &mut range) {
        Ok(0) => Ok((len - at, false)),
        Ok(16) if range[0] > at => Ok((range[0].min(len) - at, false)),
        Ok(16) => Ok((range[0].saturating_add(range[1]).clamp(at + 1, len) - at, true)),
        _ => Ok((len - at, true)),
    }
}

#[cfg(not(any(target_os = "linux", windows)))]
fn data_or_hole(_: &File, at: u64, len: u64) -> io::Result<(u64, bool)> {
    Ok((len - at, true))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn past_the_page_cache_or_through_it_the_bytes_are_the_same() {
        let path = crate::testing::scratch("direct");
        std::fs::write(&path, vec![7; 10_000]).unwrap();
        let file = HostFile::open(&path, true, true).unwrap();
        let mut rng = crate::testing::Rng(3);
        let mut model = vec![7u8; 40_000];
        model[10_000..].fill(0);
        for round in 0..200u64 {
            let (mut at, mut len) = (rng.below(30_000), 1 + rng.below(9_000));
            if round % 2 == 0 {
                (at, len) = (at & !4095, ((len | 4095) + 1) & !4095);
            }
            let range = at as usize..(at + len) as usize;
            model[range.clone()].fill(round as u8);
            file.write_at(at, &model[range]).unwrap();
            let mut back = vec![1; model.len()];
            file.read_at(0, &mut back).unwrap();
            assert!(back == model, "after {len} bytes at {at}");
        }
        assert_eq!(file.len().unwrap(), std::fs::metadata(&path).unwrap().len());
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn holes_are_seen_and_made() {
        let path = crate::testing::scratch("holes");
        std::fs::write(&path, vec![1; 1 << 20]).unwrap();
        let file = HostFile::open(&path, true, false).unwrap();
        file.zero_at(256 << 10, 512 << 10, true).unwrap();
        let mut back = vec![9; 1 << 20];
        file.read_at(0, &mut back).unwrap();
        assert!(back[256 << 10..768 << 10].iter().all(|b| *b == 0) && back[768 << 10] == 1);
        if cfg!(target_os = "linux") {
            assert_eq!(file.extent_at(0).unwrap(), (256 << 10, true));
            assert_eq!(file.extent_at(300 << 10).unwrap(), (468 << 10, false));
            assert!(file.disk_usage().unwrap() < 600 << 10);
        }
        assert_eq!(file.extent_at(1 << 20).unwrap().0, 0);
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn a_file_system_without_direct_transfers_is_an_error_with_a_remedy() {
        // The kernel's own files have none on any version.
        let path = Path::new("/proc/version");
        if cfg!(target_os = "linux") && path.exists() {
            assert!(HostFile::open(path, false, false).is_ok());
            let error = HostFile::open(path, false, true).map(drop).unwrap_err().to_string();
            assert!(error.contains("O_DIRECT") && error.contains("say cache=writeback"), "{error}");
        }
    }

    #[test]
    fn who_wants_the_file_alone_gets_it() {
        let mixed = Mixed::default();
        assert!(mixed.try_share() && mixed.try_share());
        std::thread::scope(|scope| {
            scope.spawn(|| drop(mixed.alone()));
            while mixed.users.lock().waiting == 0 {
                std::thread::yield_now();
            }
            // Those that come now wait for it, so that it is not kept waiting for ever.
            assert!(!mixed.try_share());
            mixed.unshare();
            mixed.unshare();
            drop(mixed.share());
        });
        assert!(mixed.try_share());
    }

    #[test]
    fn what_has_no_bytes_is_refused() {
        assert!(HostFile::open(&std::env::temp_dir(), false, false).is_err());
        if cfg!(unix) {
            assert!(HostFile::open(Path::new("/dev/null"), false, false).is_err());
        }
    }
}
