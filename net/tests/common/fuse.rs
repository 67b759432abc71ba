//! A file system with one file, of which nothing is read before it is said: a disk that takes its time. It speaks the
//! kernel's FUSE protocol (include/uapi/linux/fuse.h, 7.31), as much of it as is asked for.
use std::ffi::CString;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

const LOOKUP: u32 = 1;
const FORGET: u32 = 2;
const GETATTR: u32 = 3;
const OPEN: u32 = 14;
const READ: u32 = 15;
const RELEASE: u32 = 18;
const FLUSH: u32 = 25;
const INIT: u32 = 26;
/// Bytes of a request's header.
const HEADER: usize = 40;
/// The folder, and its only file.
const ROOT: u64 = 1;
const FILE: u64 = 2;
/// Bytes of a request that writes nothing, with room to spare.
const LONGEST: usize = 64 << 10;

/// Whether reads come back.
#[derive(Default)]
struct Gate {
    open: Mutex<bool>,
    opened: Condvar,
    /// Reads that have waited.
    waited: Mutex<u32>,
}

/// The mounted file system. Its mount ends with the namespace that it is in.
pub struct Slow(Arc<Gate>);

impl Slow {
    /// Mounts it at `folder`, which has to be in a namespace of its own; its file is `name`. Reads that nobody lets
    /// pass do so after `patience`, so that a test fails and does not hang.
    pub fn mount(folder: &Path, name: &str, content: Vec<u8>, patience: Duration) -> std::io::Result<Self> {
        let device = File::options().read(true).write(true).open("/dev/fuse")?;
        let options = format!("fd={},rootmode=40000,user_id=0,group_id=0", device.as_raw_fd());
        let [at, kind, options] =
            [folder.to_str().unwrap(), "fuse", &options].map(|text| CString::new(text).unwrap());
        // SAFETY: the call reads the strings that it is given, which end with a zero.
        let done = unsafe {
            libc::mount(kind.as_ptr(), at.as_ptr(), kind.as_ptr(), 0, options.as_ptr().cast::<libc::c_void>())
        };
        if done != 0 {
            return Err(std::io::Error::last_os_error());
        }
        let gate = Arc::new(Gate::default());
        let (theirs, name) = (gate.clone(), name.to_owned());
        thread::spawn(move || serve(&device, &theirs, &name, &content, patience));
        Ok(Self(gate))
    }

    /// How many reads have begun, and whether they were let pass.
    pub fn reads(&self) -> (u32, bool) {
        (*self.0.waited.lock().unwrap(), *self.0.open.lock().unwrap())
    }

    /// Reads come back from now on.
    pub fn open(&self) {
        *self.0.open.lock().unwrap() = true;
        self.0.opened.notify_all();
    }
}

fn serve(device: &File, gate: &Gate, name: &str, content: &[u8], patience: Duration) {
    let mut request = vec![0; LONGEST];
    // It fails when the file system is gone.
    while let Ok(n) = (&mut &*device).read(&mut request) {
        let word = |at: usize| u32::from_le_bytes(*request[at..].first_chunk().unwrap());
        let long = |at: usize| u64::from_le_bytes(*request[at..].first_chunk().unwrap());
        let (kind, id, node) = (word(4), long(8), long(16));
        let mut answer = Vec::new();
        let mut error = 0;
        match kind {
            FORGET => continue,
            INIT => {
                answer.extend([7, 31, word(HEADER + 8), 0].map(u32::to_le_bytes).concat());
                answer.resize(64, 0);
            }
            LOOKUP if request[HEADER..n].strip_suffix(&[0]) == Some(name.as_bytes()) => {
                answer.extend([FILE, 0, 3600, 3600, 0].map(u64::to_le_bytes).concat());
                answer.extend(attributes(FILE, content.len()));
            }
            LOOKUP => error = -libc::ENOENT,
            GETATTR => {
                answer.extend([3600, 0].map(u64::to_le_bytes).concat());
                answer.extend(attributes(node, content.len()));
            }
            // Without the page cache, which would read what nobody has asked for.
            OPEN => answer.extend([0, 1].map(u64::to_le_bytes).concat()),
            READ => {
                *gate.waited.lock().unwrap() += 1;
                let end = Instant::now() + patience;
                let mut open = gate.open.lock().unwrap();
                while !*open {
                    let left = end.saturating_duration_since(Instant::now());
                    open = gate.opened.wait_timeout(open, left).unwrap().0;
                    *open |= Instant::now() >= end;
                }
                let from = (long(HEADER + 8) as usize).min(content.len());
                let to = (from + word(HEADER + 16) as usize).min(content.len());
                answer.extend_from_slice(&content[from..to]);
            }
            RELEASE | FLUSH => {}
            _ => error = -libc::ENOSYS,
        }
        let mut head = Vec::new();
        head.extend((16 + answer.len() as u32).to_le_bytes());
        head.extend(error.to_le_bytes());
        head.extend(id.to_le_bytes());
        head.append(&mut answer);
        // Whoever has asked may be gone.
        let _ = (&mut &*device).write(&head);
    }
}

/// What is said of the folder or of the file (struct fuse_attr).
fn attributes(node: u64, len: usize) -> Vec<u8> {
    let mode = if node == ROOT { libc::S_IFDIR | 0o755 } else { libc::S_IFREG | 0o444 };
    let mut all = [node, len as u64, 0, 0, 0, 0].map(u64::to_le_bytes).concat();
    all.extend([0, 0, 0, mode, 1, 0, 0, 0, 4096, 0].map(u32::to_le_bytes).concat());
    all
}
