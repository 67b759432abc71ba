//! Files that must not outlive the process, such as a pid file: each is removed when its [`Leftover`] is dropped, and
//! [`remove_all`] removes those that are left when the process ends in another way.
use parking_lot::Mutex;
use std::os::windows::fs::MetadataExt;
use std::path::{Path, PathBuf};

struct Entry {
    number: u64,
    path: PathBuf,
    /// When the file was made: one that has taken its place stays.
    made: u64,
}

static ALL: Mutex<(u64, Vec<Entry>)> = Mutex::new((0, Vec::new()));

/// A file that is removed when this is dropped, or by [`remove_all`].
pub struct Leftover {
    /// None if there is no such file.
    number: Option<u64>,
}

fn made(path: &Path) -> Option<u64> {
    Some(std::fs::symlink_metadata(path).ok()?.creation_time())
}

impl Leftover {
    /// Notes the file at `path`, which exists.
    pub fn new(path: &Path) -> Self {
        let Some(made) = made(path) else { return Self { number: None } };
        let mut all = ALL.lock();
        all.0 += 1;
        let number = all.0;
        all.1.push(Entry { number, path: path.to_owned(), made });
        Self { number: Some(number) }
    }
}

impl Drop for Leftover {
    fn drop(&mut self) {
        let mut all = ALL.lock();
        let at = all.1.iter().position(|e| Some(e.number) == self.number);
        let entry = at.map(|at| all.1.remove(at));
        drop(all);
        if let Some(entry) = entry {
            entry.remove();
        }
    }
}

impl Entry {
    fn remove(&self) {
        if made(&self.path) == Some(self.made) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Removes all files that are noted, for a process that ends without dropping what it has.
pub fn remove_all() {
    // Whoever has the lock may be the thread that is at its end.
    let Some(mut all) = ALL.try_lock() else { return };
    let left = std::mem::take(&mut all.1);
    drop(all);
    left.iter().for_each(Entry::remove);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_goes_with_its_entry() {
        let path = std::env::temp_dir().join(format!("mynah-leftover-{}", std::process::id()));
        std::fs::write(&path, "").unwrap();
        let entry = Leftover::new(&path);
        assert!(path.exists());
        drop(entry);
        assert!(!path.exists());
    }
}
