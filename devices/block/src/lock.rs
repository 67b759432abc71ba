//! Who uses an image's file: locks on some of its bytes, as QEMU has them.
//!
//! A process that may do something with an image holds a shared lock on byte 100 + n, one that bears nobody else doing
//! it holds one on byte 200 + n; n is 0 to read, 1 to write, 3 to change the size (QEMU's `include/block/block.h`,
//! `BLK_PERM_*`; `block/file-posix.c` for the bytes). To come in is to lock first, and to look then whether somebody
//! holds what stands against it: of two that come at once none gets in, or one, but never both.
//!
//! The locks are those of the open file (`F_OFD_SETLK`), so that two users in one process are kept apart too. Other
//! Unix hosts have one lock on the whole file, which keeps our own processes apart. Windows' locks (`LockFileEx`) keep
//! others from reading what is locked, so one byte is, far beyond an image's end; it does not tell who has it.
use std::fs::File;
use std::io;

/// What a user of an image does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// It reads, and others may.
    Read,
    /// It writes, and nobody else may do more than nothing.
    Write,
}

/// Locks `file` until it is closed.
///
/// # Errors
/// Somebody else uses it ([`io::ErrorKind::WouldBlock`], with who that is).
pub fn lock(file: &File, usage: Use) -> io::Result<()> {
    platform::lock(file, usage)
}

/// Gives up all locks on `file`, which is about to be closed. To close it is not enough at once: a process that is
/// being started has for a moment all that is open in the one that starts it, and locks with it.
pub fn unlock(file: &File) {
    platform::unlock(file);
}

/// The error for the user.
fn in_use(by: Option<String>) -> io::Error {
    let by = by.unwrap_or_else(|| "another process".into());
    io::Error::new(io::ErrorKind::WouldBlock, format!("in use by {by}"))
}

#[cfg(target_os = "linux")]
mod platform {
    use super::{Use, in_use};
    use std::fs::{self, File};
    use std::io;
    use std::os::fd::AsRawFd;
    use std::os::unix::fs::MetadataExt;
    use std::path::Path;
    use std::time::Duration;

    /// A process that is being started has for a moment all that was open in the one that starts it, also what that
    /// one closes meanwhile: who holds a lock is asked again before it is believed.
    const TRIES: u32 = 10;
    const PAUSE: Duration = Duration::from_millis(20);

    const DOES: i64 = 100;
    const BARS: i64 = 200;
    const READ: i64 = 0;
    const WRITE: i64 = 1;
    const RESIZE: i64 = 3;

    pub fn lock(file: &File, usage: Use) -> io::Result<()> {
        let (does, bars): (&[i64], &[i64]) = match usage {
            Use::Read => (&[READ], &[WRITE]),
            Use::Write => (&[READ, WRITE, RESIZE], &[WRITE, RESIZE]),
        };
        for byte in does.iter().map(|n| DOES + n).chain(bars.iter().map(|n| BARS + n)) {
            match control(file, libc::F_OFD_SETLK, libc::F_RDLCK, byte) {
                Ok(_) => {}
                // Somebody has locked all of it in another way, as flock's relatives do.
                Err(e) if matches!(e.raw_os_error(), Some(libc::EAGAIN | libc::EACCES)) => {
                    return Err(in_use(holder(file)));
                }
                // A file system without locks; QEMU goes on as well.
                Err(_) => return Ok(()),
            }
        }
        for byte in does.iter().map(|n| BARS + n).chain(bars.iter().map(|n| DOES + n)) {
            let mut tries = 0;
            while control(file, libc::F_OFD_GETLK, libc::F_WRLCK, byte)? {
                if tries == TRIES {
                    return Err(in_use(holder(file)));
                }
                tries += 1;
                std::thread::sleep(PAUSE);
            }
        }
        Ok(())
    }

    pub fn unlock(file: &File) {
        for byte in [READ, WRITE, RESIZE].into_iter().flat_map(|n| [DOES + n, BARS + n]) {
            // Where there are no locks there is nothing to give up.
            let _ = control(file, libc::F_OFD_SETLK, libc::F_UNLCK, byte);
        }
    }

    /// `fcntl` on one byte: whether it is locked, for `F_OFD_GETLK`.
    fn control(file: &File, command: i32, kind: i32, byte: i64) -> io::Result<bool> {
        let mut lock = libc::flock {
            l_type: kind as _,
            l_whence: libc::SEEK_SET as _,
            l_start: byte as _,
            l_len: 1,
            l_pid: 0,
        };
        // SAFETY: the descriptor is open as long as `file` is borrowed, and the structure lives through the call.
        if unsafe { libc::fcntl(file.as_raw_fd(), command, &mut lock) } != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(i32::from(lock.l_type) != libc::F_UNLCK)
    }

    /// The process that holds a lock on this file: the kernel does not say whose an open file's lock is, so we look
    /// through what processes have open.
    fn holder(file: &File) -> Option<String> {
        let wanted = file.metadata().ok()?;
        let me = std::process::id();
        let processes = fs::read_dir("/proc").ok()?.flatten();
        let mut ids: Vec<u32> = processes.filter_map(|e| e.file_name().to_str()?.parse().ok()).collect();
        // Ourselves last: we have it open right now.
        ids.sort_by_key(|pid| (*pid == me, *pid));
        for pid in ids {
            let Ok(open) = fs::read_dir(format!("/proc/{pid}/fd")) else { continue };
            for fd in open.flatten() {
                let same =
                    fs::metadata(fd.path()).is_ok_and(|m| (m.dev(), m.ino()) == (wanted.dev(), wanted.ino()));
                if !same || pid == me && fd.file_name().to_str() == Some(&file.as_raw_fd().to_string()) {
                    continue;
                }
                let info = format!("/proc/{pid}/fdinfo/{}", fd.file_name().to_string_lossy());
                if fs::read_to_string(info).is_ok_and(|text| text.contains("lock:")) {
                    return Some(format!("{} (pid {pid})", name(pid)));
                }
            }
        }
        None
    }

    /// How the process was called.
    fn name(pid: u32) -> String {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let first = String::from_utf8_lossy(line.split(|b| *b == 0).next().unwrap_or_default()).into_owned();
        match Path::new(&first).file_name() {
            Some(name) => name.to_string_lossy().into_owned(),
            None => fs::read_to_string(format!("/proc/{pid}/comm"))
                .map_or("a process".into(), |c| c.trim_end().into()),
        }
    }
}

#[cfg(windows)]
mod platform {
    use super::{Use, in_use};
    use std::fs::File;
    use std::io;
    use std::os::windows::io::AsRawHandle;
    use windows_sys::Win32::Foundation::ERROR_LOCK_VIOLATION;
    use windows_sys::Win32::Storage::FileSystem as fs;
    use windows_sys::Win32::System::IO::OVERLAPPED;

    /// The byte that is locked: no image is as long.
    const BYTE: u64 = (1 << 62) + 200;

    fn place() -> OVERLAPPED {
        let mut place = OVERLAPPED::default();
        place.Anonymous.Anonymous.Offset = BYTE as u32;
        place.Anonymous.Anonymous.OffsetHigh = (BYTE >> 32) as u32;
        place
    }

    pub fn lock(file: &File, usage: Use) -> io::Result<()> {
        let mut flags = fs::LOCKFILE_FAIL_IMMEDIATELY;
        flags |= if usage == Use::Write { fs::LOCKFILE_EXCLUSIVE_LOCK } else { 0 };
        // SAFETY: the file is open as long as it is borrowed, and the structure lives through the call, which does not
        // wait.
        let done = unsafe { fs::LockFileEx(file.as_raw_handle(), flags, 0, 1, 0, &mut place()) };
        match done {
            0 if io::Error::last_os_error().raw_os_error() == Some(ERROR_LOCK_VIOLATION as i32) => {
                Err(in_use(None))
            }
            // A file system without locks is used without.
            _ => Ok(()),
        }
    }

    pub fn unlock(file: &File) {
        // SAFETY: as above. What was not locked is not unlocked, and that is an error that is none here.
        unsafe { fs::UnlockFileEx(file.as_raw_handle(), 0, 1, 0, &mut place()) };
    }
}

#[cfg(not(any(target_os = "linux", windows)))]
mod platform {
    use super::{Use, in_use};
    use std::fs::{File, TryLockError};
    use std::io;

    pub fn lock(file: &File, usage: Use) -> io::Result<()> {
        let locked = match usage {
            Use::Read => file.try_lock_shared(),
            Use::Write => file.try_lock(),
        };
        match locked {
            Err(TryLockError::WouldBlock) => Err(in_use(None)),
            // A file system without locks is used without.
            Err(TryLockError::Error(_)) | Ok(()) => Ok(()),
        }
    }

    pub fn unlock(file: &File) {
        let _ = file.unlock();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_writes_or_many_read() {
        let path = crate::testing::scratch("lock");
        std::fs::write(&path, [0; 512]).unwrap();
        let open = || std::fs::OpenOptions::new().read(true).write(true).open(&path).unwrap();
        let (a, b, c) = (open(), open(), open());
        lock(&a, Use::Read).unwrap();
        lock(&b, Use::Read).unwrap();
        let refused = lock(&c, Use::Write).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::WouldBlock);
        if cfg!(target_os = "linux") {
            let text = refused.to_string();
            assert!(text.ends_with(&format!("(pid {})", std::process::id())), "{text}");
        }
        drop((a, b, c));
        let (a, b, c) = (open(), open(), open());
        lock(&a, Use::Write).unwrap();
        assert!(lock(&b, Use::Write).is_err());
        assert!(lock(&c, Use::Read).is_err());
        drop((a, b));
        lock(&open(), Use::Write).expect_err("what was refused still holds its bytes until it is closed");
        drop(c);
        lock(&open(), Use::Write).unwrap();
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn what_is_locked_is_read_and_written_all_the_same() {
        let path = crate::testing::scratch("locked");
        std::fs::write(&path, [0; 512]).unwrap();
        let open = || std::fs::OpenOptions::new().read(true).write(true).open(&path).unwrap();
        let (a, b) = (open(), open());
        lock(&a, Use::Write).unwrap();
        std::io::Write::write_all(&mut &b, &[7; 512]).unwrap();
        drop((a, b));
        assert_eq!(std::fs::read(&path).unwrap(), [7; 512]);
        std::fs::remove_file(path).unwrap();
    }
}
