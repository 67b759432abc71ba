//! Files of this user's own at places that others can foresee, and may be able to write to (`/tmp`).
//!
//! Whoever plants a link, a pipe or a file of his own there must neither have another file overwritten, nor be able to
//! read what is written, nor have the process wait.
//!
//! Windows keeps the folders of each user from the others, and its file systems give no sign of a planted file that
//! could be looked at here: there a name that is taken by a plain file is given up, and what is no plain file is an
//! error.
#[cfg(unix)]
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags};
use std::fs::File;
use std::io;
#[cfg(unix)]
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Makes a file for this user alone, open for reading and writing. A plain file of this user's that has the name gives
/// it up, and stays as it is under others that it may have; anything else there is an error.
#[cfg(unix)]
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

/// Makes a file, open for reading and writing. A plain file that has the name gives it up; anything else there is an
/// error.
#[cfg(not(unix))]
pub fn create(path: &Path) -> io::Result<File> {
    match std::fs::symlink_metadata(path) {
        Ok(old) if old.is_file() => std::fs::remove_file(path)?,
        Ok(_) => {
            let what = "there is something else of this name, which is not a plain file";
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, what));
        }
        Err(_) => {}
    }
    File::options().read(true).write(true).create_new(true).open(path)
}

/// Opens a file that stays where it is from one process to the next (a lock), and makes it if there is none. What it
/// holds is not touched.
pub fn keep(path: &Path) -> io::Result<File> {
    #[cfg(unix)]
    let file = {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        File::from(rustix::fs::openat(CWD, path, flags, Mode::RUSR | Mode::WUSR)?)
    };
    #[cfg(not(unix))]
    let file = File::options().read(true).write(true).create(true).truncate(false).open(path)?;
    let m = file.metadata()?;
    #[cfg(unix)]
    let own = m.uid() == rustix::process::geteuid().as_raw();
    #[cfg(not(unix))]
    let own = true;
    if !m.is_file() || !own {
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, "it is not a plain file of yours"));
    }
    Ok(file)
}

/// Whether a file that was replaced outlasts a crash of the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durable {
    /// It is on the disk when the call returns, under its name.
    Yes,
    /// It can be made again.
    No,
}

/// Writes a file whole: who reads it meanwhile sees the old one or the new one. What has the name is replaced, and if
/// it is a link not what it leads to.
pub fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    replace(path, Durable::No, |file| io::Write::write_all(file, bytes))
}

/// The same for what is written piece by piece. If that fails, what has the name stays as it is.
pub fn replace<E: From<io::Error>>(
    path: &Path,
    durable: Durable,
    write: impl FnOnce(&mut File) -> Result<(), E>,
) -> Result<(), E> {
    let Some(name) = path.file_name() else {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it names no file").into());
    };
    let mut name = name.to_owned();
    name.push(format!(".{}.new", std::process::id()));
    let new = path.with_file_name(name);
    let mut file = create(&new).map_err(|e| io::Error::new(e.kind(), format!("{}: {e}", new.display())))?;
    let rest = |file: &mut File| {
        write(file)?;
        if durable == Durable::Yes {
            file.sync_all()?;
        }
        Ok(std::fs::rename(&new, path)?)
    };
    let result = rest(&mut file);
    if result.is_err() {
        let _ = std::fs::remove_file(&new);
    } else if durable == Durable::Yes {
        // The name as well; not all file systems can promise that.
        let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let _ = File::open(folder).and_then(|f| f.sync_all());
    }
    result
}

#[cfg(all(test, unix))]
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
        let part = dir.0.join(format!("planted.{}.new", std::process::id()));
        symlink(&precious, &part).unwrap();
        assert!(write(&planted, b"new").unwrap_err().to_string().contains(".new: there is something else"));
        std::fs::remove_file(&part).unwrap();
        assert_eq!(std::fs::read_to_string(&precious).unwrap(), "precious");
        write(&planted, b"new").unwrap();
        assert_eq!(std::fs::read_to_string(&precious).unwrap(), "precious");
        assert_eq!(std::fs::read_to_string(&planted).unwrap(), "new");
        assert!(!planted.is_symlink());
    }

    #[test]
    fn a_file_that_cannot_be_written_whole_leaves_the_old_one_and_no_part() {
        let dir = Folder::new("whole");
        let path = dir.0.join("file");
        std::fs::write(&path, "old").unwrap();
        // A leftover of an earlier process with this number is no obstacle.
        let part = dir.0.join(format!("file.{}.new", std::process::id()));
        std::fs::write(&part, "leftover").unwrap();
        let fail = |file: &mut File| file.write_all(b"ne").and(Err(io::Error::other("no more room")));
        assert!(replace(&path, Durable::Yes, fail).is_err());
        assert_eq!((std::fs::read_to_string(&path).unwrap().as_str(), part.exists()), ("old", false));
        replace(&path, Durable::Yes, |file| file.write_all(b"new")).unwrap();
        assert_eq!((std::fs::read_to_string(&path).unwrap().as_str(), part.exists()), ("new", false));
        assert!(replace(Path::new("/"), Durable::No, |_| Ok::<(), io::Error>(())).is_err());
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
