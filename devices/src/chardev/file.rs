//! `file:PATH`: output goes to a file, which is emptied first (or appended to); there is no input.
use super::pump::{Ends, Line, Output, Pump, chardev_by_pump};
use super::{ChardevError, Host};
#[cfg(windows)]
use crate::descriptor::Plain;
use crate::event_loop::Descriptor;
use std::fs::OpenOptions;
use std::io;
#[cfg(unix)]
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// An output file.
pub struct FileSink {
    pump: Pump,
    path: PathBuf,
}

struct FileLine {
    file: Option<Descriptor>,
    path: String,
}

impl FileSink {
    /// Opens `path` for writing.
    pub fn open(path: &Path, append: bool, host: &Host) -> Result<Self, ChardevError> {
        let mut options = OpenOptions::new();
        options.write(true).create(true).append(append).truncate(!append);
        // Our own description of the file: a FIFO or terminal that takes nothing need not make a write wait.
        #[cfg(unix)]
        options.custom_flags(libc::O_NONBLOCK);
        #[cfg(windows)]
        let opened = options.open(path);
        #[cfg(unix)]
        let opened = match options.open(path) {
            // A FIFO that nobody reads yet is opened when somebody does: the user is told what is waited for.
            Err(e) if e.raw_os_error() == Some(libc::ENXIO) => {
                (host.announce)(&format!("waiting for a reader of '{}'", path.display()));
                options.custom_flags(0).open(path)
            }
            opened => opened,
        };
        let file = opened.map_err(|cause| ChardevError::Open { path: path.to_owned(), cause })?;
        let target = format!("'{}'", path.display());
        // What is no FIFO and no terminal cannot be waited for, and a write to it waits for a disk.
        let plain = file.metadata().is_ok_and(|m| m.is_file());
        #[cfg(windows)]
        let file = Plain(move |bytes: &[u8]| io::Write::write(&mut &file, bytes));
        let file: Descriptor = Arc::new(file);
        let output = if !plain && host.events.can_wait_for(&file) {
            Output::Polled
        } else {
            Output::Waits(file.clone(), host.files.clone())
        };
        let line = FileLine { file: Some(file), path: target.clone() };
        let pump = Pump::start(target, Box::new(line), true, output, host)?;
        Ok(Self { pump, path: path.to_owned() })
    }
}

impl FileSink {
    fn filename(&self) -> String {
        format!("file:{}", self.path.display())
    }
}

impl Line for FileLine {
    fn ends(&mut self) -> Ends {
        Ends { output: self.file.clone(), ..Ends::default() }
    }
    fn input_ended(&mut self, _: Option<io::Error>) -> Option<ChardevError> {
        None
    }
    fn output_failed(&mut self, cause: io::Error) -> Option<ChardevError> {
        self.file = None;
        Some(ChardevError::Write { target: self.path.clone(), cause })
    }
}

chardev_by_pump!(FileSink);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chardev::testing::Sink;
    use crate::chardev::{Chardev, PATIENCE};
    use parking_lot::Mutex;
    use std::time::Instant;

    fn path(name: &str) -> std::path::PathBuf {
        std::env::temp_dir().join(format!("mynah-file-{}-{name}", std::process::id()))
    }

    #[test]
    fn all_that_is_written_is_in_the_file_in_order() {
        let path = path("order");
        std::fs::write(&path, "old").unwrap();
        let sink = FileSink::open(&path, false, &Host::default()).unwrap();
        let mut want = Vec::new();
        for i in 0..300_000_u32 {
            sink.write_all(&[i as u8], 60 * PATIENCE);
            want.push(i as u8);
        }
        sink.flush(Instant::now() + 60 * PATIENCE);
        assert!(std::fs::read(&path).unwrap() == want);
        drop(sink);
        let sink = FileSink::open(&path, true, &Host::default()).unwrap();
        sink.write_all(b"more", PATIENCE);
        drop(sink);
        want.extend_from_slice(b"more");
        assert!(std::fs::read(&path).unwrap() == want);
        std::fs::remove_file(&path).unwrap();
    }

    #[test]
    fn a_path_that_cannot_be_opened_is_named() {
        let e = FileSink::open(Path::new("/nonexistent/dir/log"), false, &Host::default()).err().unwrap();
        assert!(e.to_string().contains("/nonexistent/dir/log"), "{e}");
        let folder = std::env::temp_dir();
        let e = FileSink::open(&folder, false, &Host::default()).err().unwrap();
        assert!(e.to_string().contains(&format!("'{}'", folder.display())), "{e}");
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_full_disk_is_reported_once_and_output_goes_on_to_nowhere() {
        let errors = Arc::new(Mutex::new(Vec::new()));
        let theirs = errors.clone();
        let host = Host { on_error: Arc::new(move |e| theirs.lock().push(e.to_string())), ..Host::default() };
        let sink = FileSink::open(Path::new("/dev/full"), false, &host).unwrap();
        sink.set_receiver(Sink::new(0));
        for _ in 0..100_000 {
            sink.write_all(b"lost ", PATIENCE);
        }
        sink.flush(Instant::now() + 60 * PATIENCE);
        drop(sink);
        let errors = errors.lock();
        assert_eq!(errors.len(), 1, "{errors:?}");
        assert!(errors[0].contains("'/dev/full'"), "{errors:?}");
    }
}
