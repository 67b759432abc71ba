//! Files of this user's own at places that others can foresee, and may be able to write to (`/tmp`).
//!
//! Whoever plants a link, a pipe or a file of his own there must neither have another file overwritten, nor be able to read what is written, nor have
//! the process wait.
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags};
use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Makes a file for this user alone, open for reading and writing. A plain file of this user's that has the name gives it up, and stays as it is under
/// others that it may have; anything else there is an error.
pub fn create(path: &Path) -> io::Result<File> {
    if let Ok(old) = rustix::fs::statat(CWD, path, AtFlags::SYMLINK_NOFOLLOW) {
        let plain = FileType::from_raw_mode(old.st_mode) == FileType::RegularFile;
        if !plain || old.st_uid != rustix::process::geteuid().as_raw() {
            let what = "there is something else of this name, which is not a plain file of yours";
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, what));
        }
        std::fs::remove_file(path)?;
    }
    // What is put there from now on is not opened, whatever it is.
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(File::from(rustix::fs::openat(CWD, path, flags, Mode::RUSR | Mode::WUSR)?))
}

/// Opens a file that stays where it is from one process to the next (a lock), and makes it if there is none. What it holds is not touched.
pub fn keep(path: &Path) -> io::Result<File> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = File::from(rustix::fs::openat(CWD, path, flags, Mode::RUSR | Mode::WUSR)?);
    let m = file.metadata()?;
    if !m.is_file() || m.uid() != rustix::process::geteuid().as_raw() {
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, "it is not a plain file of yours"));
    }
    Ok(file)
}

/// Writes a file whole: who reads it meanwhile sees the old one or the new one. What has the name is replaced, and if it is a link not what it leads to.
pub fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.new", std::process::id()));
    let new = path.with_file_name(name);
    let written = create(&new).and_then(|mut file| io::Write::write_all(&mut file, bytes));
    let result = written.and_then(|()| std::fs::rename(&new, path));
    if result.is_err() {
        let _ = std::fs::remove_file(&new);
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::unix::fs::symlink;
    use std::path::PathBuf;

    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("mynah-private-{}-{name}", std::process::id()));
            let _ = std::fs::remove_dir_all(&path);
            std::fs::create_dir(&path).unwrap();
            Self(path)
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    fn pipe(path: &Path) {
        rustix::fs::mknodat(CWD, path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
    }

    #[test]
    fn a_link_that_was_planted_is_not_followed() {
        let dir = Folder::new("link");
        let (precious, planted) = (dir.0.join("precious"), dir.0.join("planted"));
        std::fs::write(&precious, "precious").unwrap();
        for target in [&precious, &dir.0.join("nothing"), &dir.0] {
            symlink(target, &planted).unwrap();
            assert!(create(&planted).is_err() && keep(&planted).is_err());
            std::fs::remove_file(&planted).unwrap();
        }
        assert_eq!(std::fs::read_to_string(&precious).unwrap(), "precious");
        assert!(!dir.0.join("nothing").exists());
        // Where a file is replaced the link goes, and what it leads to stays.
        symlink(&precious, &planted).unwrap();
        symlink(&precious, dir.0.join(format!("planted.{}.new", std::process::id()))).unwrap();
        assert!(write(&planted, b"new").is_err());
        assert_eq!(std::fs::read_to_string(&precious).unwrap(), "precious");
        write(&planted, b"new").unwrap();
        assert_eq!(std::fs::read_to_string(&precious).unwrap(), "precious");
        assert_eq!(std::fs::read_to_string(&planted).unwrap(), "new");
        assert!(!planted.is_symlink());
    }

    #[test]
    fn another_name_of_a_file_is_given_up_and_the_file_stays() {
        let dir = Folder::new("hard");
        let (precious, planted) = (dir.0.join("precious"), dir.0.join("planted"));
        std::fs::write(&precious, "precious").unwrap();
        std::fs::hard_link(&precious, &planted).unwrap();
        create(&planted).unwrap().write_all(b"new").unwrap();
        assert_eq!(std::fs::read_to_string(&precious).unwrap(), "precious");
        assert_eq!(std::fs::read_to_string(&planted).unwrap(), "new");
    }

    #[test]
    fn nobody_waits_for_a_pipe() {
        let dir = Folder::new("pipe");
        let planted = dir.0.join("planted");
        pipe(&planted);
        assert!(create(&planted).is_err() && keep(&planted).is_err());
        std::fs::remove_file(&planted).unwrap();
        std::fs::create_dir(&planted).unwrap();
        assert!(create(&planted).is_err() && keep(&planted).is_err());
    }

    #[test]
    fn what_is_made_is_for_this_user_alone_and_empty() {
        let dir = Folder::new("own");
        let path = dir.0.join("file");
        std::fs::write(&path, "of an earlier process with this number").unwrap();
        let file = create(&path).unwrap();
        let m = file.metadata().unwrap();
        assert_eq!((m.mode() & 0o777, m.len()), (0o600, 0));
        drop(file);
        std::fs::write(&path, "kept").unwrap();
        assert_eq!(keep(&path).unwrap().metadata().unwrap().len(), 4);
        assert_eq!(keep(&dir.0.join("new")).unwrap().metadata().unwrap().mode() & 0o777, 0o600);
    }
}
