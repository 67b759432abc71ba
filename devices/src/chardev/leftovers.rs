//! Files that must not outlive the process, such as a server's socket: each is removed when its [`Leftover`] is
//! dropped, and [`remove_all`] removes those that are left when the process ends in another way.
//!
//! A list without locks, so that a signal handler may walk it: entries are leaked and linked in front, and who
//! removes a file takes its path by an exchange, so that only one does.
use std::ffi::{CStr, CString, c_char};
use std::mem::MaybeUninit;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::ptr;
use std::sync::atomic::{AtomicPtr, Ordering};

struct Entry {
    /// The path (a leaked `CString`), null when it has been removed.
    path: AtomicPtr<c_char>,
    /// Device and inode of the file: one that has taken its place stays.
    file: (u64, u64),
    next: *const Entry,
}

static FIRST: AtomicPtr<Entry> = AtomicPtr::new(ptr::null_mut());

/// A file that is removed when this is dropped, or by [`remove_all`].
pub struct Leftover {
    /// None if there is no such file.
    entry: Option<&'static Entry>,
}

// SAFETY: an entry's `next` is written before it is shared and never after; the rest is atomic.
unsafe impl Sync for Entry {}

/// Device and inode of a file, links not followed. Async-signal-safe: `lstat` (signal-safety(7)).
fn identity(path: &CStr) -> Option<(u64, u64)> {
    let mut found = MaybeUninit::<libc::stat>::uninit();
    // SAFETY: the path is terminated, and `found` is writable and of the type that lstat fills.
    if unsafe { libc::lstat(path.as_ptr(), found.as_mut_ptr()) } != 0 {
        return None;
    }
    // SAFETY: lstat has succeeded and so filled it.
    let found = unsafe { found.assume_init() };
    #[allow(clippy::unnecessary_cast, reason = "their types differ between systems")]
    Some((found.st_dev as u64, found.st_ino as u64))
}

impl Leftover {
    /// Notes the file at `path`, which exists.
    pub fn new(path: &Path) -> Self {
        // Relative paths are as good: the process never changes its folder.
        let Ok(path) = CString::new(path.as_os_str().as_bytes()) else { return Self { entry: None } };
        let Some(file) = identity(&path) else { return Self { entry: None } };
        let entry = Box::leak(Box::new(Entry {
            path: AtomicPtr::new(path.into_raw()),
            file,
            next: FIRST.load(Ordering::SeqCst),
        }));
        loop {
            let next = entry.next.cast_mut();
            match FIRST.compare_exchange(next, entry, Ordering::SeqCst, Ordering::SeqCst) {
                Ok(_) => return Self { entry: Some(entry) },
                Err(first) => entry.next = first,
            }
        }
    }
}

impl Drop for Leftover {
    fn drop(&mut self) {
        if let Some(entry) = self.entry {
            entry.remove();
        }
    }
}

impl Entry {
    /// Async-signal-safe: an exchange, `lstat` and `unlink`.
    fn remove(&self) {
        let path = self.path.swap(ptr::null_mut(), Ordering::SeqCst);
        if path.is_null() {
            return;
        }
        // SAFETY: it came from `CString::into_raw`, and is never freed.
        let path = unsafe { CStr::from_ptr(path) };
        if identity(path) == Some(self.file) {
            // SAFETY: the path is terminated.
            unsafe { libc::unlink(path.as_ptr()) };
        }
    }
}

/// Removes all files that are noted, for a process that ends without dropping what it has. May be called from a
/// signal handler.
pub fn remove_all() {
    let mut next: *const Entry = FIRST.load(Ordering::SeqCst);
    // SAFETY: entries are leaked, so each stays valid for ever, and the list ends with null.
    while let Some(entry) = unsafe { next.as_ref() } {
        entry.remove();
        next = entry.next;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn path(name: &str) -> std::path::PathBuf {
        std::env::temp_dir().join(format!("mynah-leftover-{}-{name}", std::process::id()))
    }

    #[test]
    fn a_file_goes_with_its_entry_and_one_in_its_place_stays() {
        let (gone, replaced) = (path("gone"), path("replaced"));
        fs::write(&gone, "").unwrap();
        drop(Leftover::new(&gone));
        assert!(!gone.exists());

        fs::write(&replaced, "").unwrap();
        let entry = Leftover::new(&replaced);
        // A new file first, so that it cannot get the inode of the old one.
        let other = path("other");
        fs::write(&other, "another's").unwrap();
        fs::rename(&other, &replaced).unwrap();
        drop(entry);
        assert_eq!(fs::read_to_string(&replaced).unwrap(), "another's");
        fs::remove_file(&replaced).unwrap();
        drop(Leftover::new(&gone));
    }

    // One process for itself, as it takes everything.
    #[test]
    fn all_go_at_once_from_a_signal_handler() {
        if std::env::var_os("MYNAH_TEST_LEFTOVERS").is_some() {
            extern "C" fn handler(_: libc::c_int) {
                remove_all();
                // SAFETY: `_exit` is async-signal-safe.
                unsafe { libc::_exit(9) };
            }
            let files = [path("a"), path("b"), path("c")];
            let mut entries: Vec<Leftover> = files
                .iter()
                .map(|f| {
                    fs::write(f, "").unwrap();
                    Leftover::new(f)
                })
                .collect();
            drop(entries.remove(1));
            // SAFETY: the handler calls only what is async-signal-safe.
            unsafe {
                libc::signal(libc::SIGABRT, handler as *const () as usize);
                libc::abort();
            }
        }
        let child = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["chardev::leftovers::tests::all_go_at_once_from_a_signal_handler", "--exact"])
            .env("MYNAH_TEST_LEFTOVERS", "1")
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        let id = child.id();
        assert_eq!(child.wait_with_output().unwrap().status.code(), Some(9));
        for name in ["a", "b", "c"] {
            let left = std::env::temp_dir().join(format!("mynah-leftover-{id}-{name}"));
            assert!(!left.exists(), "{}", left.display());
        }
    }
}
