//! The TFTP server (RFC 1350) with the options of RFC 2347 to 2349 and 7440, for reading only. Nothing outside of its folder is
//! seen, neither by `..` nor by a symbolic link.
//!
//! Files are read ahead by a thread of its own, which is there from the first read on: a disk or a server that takes its
//! time has nobody else wait. What it has read it gives to the network (`Done`).
use super::core::{Core, kind};
use crate::reactor::Token;
use std::collections::HashMap;
use std::fs::File;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::time::{Duration, Instant};

/// Where the server listens; answers come from there as well, as QEMU's do.
pub(super) const SERVER: u16 = 69;
const RRQ: u16 = 1;
const WRQ: u16 = 2;
const DATA: u16 = 3;
const ACK: u16 = 4;
const ERROR: u16 = 5;
const OACK: u16 = 6;
/// Error codes (RFC 1350, 5).
const UNDEFINED: u16 = 0;
const NOT_FOUND: u16 = 1;
const FORBIDDEN: u16 = 2;
const ILLEGAL: u16 = 4;
/// Transfers at a time.
const TRANSFERS: usize = 32;
const TRIES: u32 = 6;
/// The largest block that fits into a packet of the link; more would be sent in fragments.
const BLOCK: u64 = 1468;
/// The most blocks that are sent before they are acknowledged: what a card's queue takes at once.
const WINDOW: u64 = 64;

/// What is read at once.
const AHEAD: u64 = 256 << 10;

struct Transfer {
    token: Token,
    server: SocketAddr,
    file: Arc<File>,
    /// Bytes of the file that have been read, and where they begin in it.
    ahead: (u64, Vec<u8>),
    /// The thread is at it.
    reading: bool,
    size: u64,
    block_size: u64,
    /// Blocks that are sent before they are acknowledged (RFC 7440).
    window: u64,
    /// The last block that was acknowledged, and the last that was sent, not wrapped; 0 is the answer to options. None
    /// while that has not been acknowledged.
    acknowledged: Option<u64>,
    sent: u64,
    options: Vec<u8>,
    timeout: Duration,
    tries: u32,
    resend: Instant,
    queued: Option<Instant>,
}

/// A piece of a file that is wanted.
struct Job {
    token: Token,
    file: Arc<File>,
    at: u64,
    len: usize,
}

/// A piece of a file, or none if it cannot be read.
pub(super) struct Piece {
    token: Token,
    at: u64,
    bytes: Option<Vec<u8>>,
}

impl Job {
    fn run(&self) -> Piece {
        let mut bytes = vec![0; self.len];
        let read = read_exact_at(&self.file, &mut bytes, self.at);
        Piece { token: self.token, at: self.at, bytes: read.is_ok().then_some(bytes) }
    }
}

/// Whom a piece is given to.
pub(super) type Done = Arc<dyn Fn(Piece) + Send + Sync>;

/// The transfers.
pub(super) struct Tftp {
    transfers: HashMap<SocketAddr, Transfer>,
    done: Done,
    /// What the thread is told.
    reader: Option<SyncSender<Job>>,
}

impl Tftp {
    /// What is read is given to `done`, by a thread that holds no lock.
    pub fn new(done: Done) -> Self {
        Self { transfers: HashMap::new(), done, reader: None }
    }

    /// A datagram from `guest`.
    pub fn input(&mut self, core: &mut Core, guest: SocketAddr, server: SocketAddr, data: &[u8]) {
        let Some((code, rest)) = data.split_first_chunk::<2>() else { return };
        match u16::from_be_bytes(*code) {
            RRQ => self.begin(core, guest, server, rest),
            WRQ => error(core, server, guest, FORBIDDEN, "nothing is written here"),
            ACK => {
                let Some(block) = rest.first_chunk::<2>().map(|b| u16::from_be_bytes(*b)) else { return };
                let Some(t) = self.transfers.get_mut(&guest) else { return };
                let first = t.acknowledged.map_or(0, |a| a + 1);
                // One that comes twice is not answered twice (RFC 1123, 4.2.3.1). In a window, one that is not the last
                // block's says that the next one is missing (RFC 7440, 4).
                let new = u64::from(block.wrapping_sub(first as u16));
                if new > t.sent - first {
                    return;
                }
                let block = first + new;
                t.acknowledged = Some(block);
                if block > 0 && block * t.block_size > t.size {
                    self.end(core, guest);
                } else {
                    t.tries = 0;
                    self.send(core, guest);
                }
            }
            ERROR => self.end(core, guest),
            _ => error(core, server, guest, ILLEGAL, "not a request"),
        }
    }

    fn begin(&mut self, core: &mut Core, guest: SocketAddr, server: SocketAddr, request: &[u8]) {
        let mut words = request.split(|b| *b == 0).map(String::from_utf8_lossy);
        let (Some(name), Some(mode)) = (words.next(), words.next()) else {
            return error(core, server, guest, ILLEGAL, "no file is named");
        };
        // Text is sent as it is, which is what loaders that ask for netascii want.
        if !["octet", "netascii"].iter().any(|m| mode.eq_ignore_ascii_case(m)) {
            return error(core, server, guest, ILLEGAL, "the mode is not known");
        }
        let Some(folder) = core.config.tftp.as_deref() else {
            // A loader goes on to its next file or device at once, where it would ask again for silence.
            return error(core, server, guest, FORBIDDEN, "no folder is served (tftp=FOLDER)");
        };
        let opened = open(folder, &name);
        let (file, size) = match opened {
            Ok(found) => found,
            Err(FORBIDDEN) => return error(core, server, guest, FORBIDDEN, "it is outside of the folder"),
            Err(_) => return error(core, server, guest, NOT_FOUND, "there is no such file"),
        };
        let (mut block_size, mut timeout, mut options) = (512, Duration::from_secs(1), Vec::new());
        let mut window = 1;
        let mut accept = |name: &str, value: u64| {
            options.extend_from_slice(name.as_bytes());
            options.push(0);
            options.extend_from_slice(value.to_string().as_bytes());
            options.push(0);
        };
        while let (Some(option), Some(value)) = (words.next(), words.next()) {
            let Ok(value) = value.parse::<u64>() else { continue };
            match option.to_ascii_lowercase().as_str() {
                "blksize" if (8..=65_464).contains(&value) => {
                    block_size = value.min(BLOCK);
                    accept("blksize", block_size);
                }
                "tsize" => accept("tsize", size),
                "timeout" if (1..=255).contains(&value) => {
                    timeout = Duration::from_secs(value);
                    accept("timeout", value);
                }
                "windowsize" if (1..=65_535).contains(&value) => {
                    window = value.min(WINDOW);
                    accept("windowsize", window);
                }
                _ => {}
            }
        }
        self.end(core, guest);
        if self.transfers.len() >= TRANSFERS {
            let oldest = self.transfers.iter().min_by_key(|(_, t)| t.resend).map(|(g, _)| *g);
            if let Some(g) = oldest {
                self.end(core, g);
            }
        }
        let token = core.token(kind::TFTP);
        // Without options the first block is the answer.
        let acknowledged = options.is_empty().then_some(0);
        let (tries, resend, queued) = (0, core.now, None);
        self.transfers.insert(
            guest,
            Transfer {
                token,
                server,
                file: Arc::new(file),
                ahead: (0, Vec::new()),
                reading: false,
                size,
                block_size,
                window,
                acknowledged,
                sent: 0,
                options,
                timeout,
                tries,
                resend,
                queued,
            },
        );
        self.send(core, guest);
    }

    /// Sends the blocks that are due, or the answer to options.
    fn send(&mut self, core: &mut Core, guest: SocketAddr) {
        let Some(t) = self.transfers.get_mut(&guest) else { return };
        t.resend = core.now + t.timeout;
        core.arm(t.token, &mut t.queued, Some(t.resend));
        let Some(acknowledged) = t.acknowledged else {
            let message = [&OACK.to_be_bytes()[..], &t.options].concat();
            return core.datagram(t.server, guest, &message);
        };
        t.sent = acknowledged;
        self.go_on(core, guest);
    }

    /// Sends the blocks that there are, and has what is missing read.
    fn go_on(&mut self, core: &mut Core, guest: SocketAddr) {
        let Some(t) = self.transfers.get_mut(&guest) else { return };
        let Some(acknowledged) = t.acknowledged else { return };
        // The last block is the one that is not full.
        let last = (t.size / t.block_size + 1).min(acknowledged + t.window);
        for block in t.sent + 1..=last {
            let at = (block - 1) * t.block_size;
            let len = t.size.saturating_sub(at).min(t.block_size) as usize;
            let (from, bytes) = &t.ahead;
            let skip = at.wrapping_sub(*from) as usize;
            let Some(data) = bytes.get(skip..).and_then(|b| b.get(..len)) else {
                if !std::mem::replace(&mut t.reading, true) {
                    let len = (t.size - at).min(AHEAD) as usize;
                    let job = Job { token: t.token, file: t.file.clone(), at, len };
                    return self.read(core, job);
                }
                return;
            };
            let mut message = Vec::with_capacity(4 + len);
            message.extend_from_slice(&DATA.to_be_bytes());
            message.extend_from_slice(&(block as u16).to_be_bytes());
            message.extend_from_slice(data);
            core.datagram(t.server, guest, &message);
            t.sent = block;
        }
    }

    /// Has the thread read something; without one it is done here.
    fn read(&mut self, core: &mut Core, job: Job) {
        let reader = self.reader.get_or_insert_with(|| {
            let (tell, told) = sync_channel::<Job>(TRANSFERS);
            let done = self.done.clone();
            let work = move || told.iter().for_each(|job| done(job.run()));
            if let Err(e) = std::thread::Builder::new().name("mynah-tftp".into()).spawn(work) {
                core.once("tftp", format_args!("no thread to read files: {e}"));
            }
            tell
        });
        match reader.try_send(job) {
            Ok(()) => {}
            // Whoever begins ever new transfers waits for the old ones: it is tried again when this one's time comes.
            Err(TrySendError::Full(job)) => {
                let waiting = self.transfers.values_mut().find(|t| t.token == job.token);
                waiting.into_iter().for_each(|t| t.reading = false);
            }
            Err(TrySendError::Disconnected(job)) => self.has_read(core, job.run()),
        }
    }

    /// A piece of a file was read.
    pub fn has_read(&mut self, core: &mut Core, piece: Piece) {
        let found = self.transfers.iter_mut().find(|(_, t)| t.token == piece.token);
        let Some((&guest, t)) = found else { return };
        t.reading = false;
        match piece.bytes {
            Some(bytes) => {
                t.ahead = (piece.at, bytes);
                t.resend = core.now + t.timeout;
                self.go_on(core, guest);
            }
            None => {
                error(core, t.server, guest, UNDEFINED, "the file cannot be read");
                self.end(core, guest);
            }
        }
    }

    fn end(&mut self, core: &mut Core, guest: SocketAddr) {
        if let Some(t) = self.transfers.remove(&guest) {
            core.disarm(t.token, t.queued);
        }
    }

    /// A transfer's time has come.
    pub fn due(&mut self, core: &mut Core, token: Token) {
        let Some((&guest, t)) = self.transfers.iter_mut().find(|(_, t)| t.token == token) else { return };
        t.queued = None;
        if t.reading {
            // It waits for the file, not for the guest.
            t.resend = core.now + t.timeout;
        }
        if t.resend > core.now {
            core.arm(token, &mut t.queued, Some(t.resend));
            return;
        }
        t.tries += 1;
        if t.tries > TRIES { self.end(core, guest) } else { self.send(core, guest) }
    }
}

#[cfg(unix)]
fn read_exact_at(file: &File, buf: &mut [u8], at: u64) -> std::io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, buf, at)
}

#[cfg(windows)]
fn read_exact_at(file: &File, buf: &mut [u8], at: u64) -> std::io::Result<()> {
    use std::io::{Read, Seek, SeekFrom};
    let mut file = file;
    // The file is this transfer's own, and so is its position.
    file.seek(SeekFrom::Start(at))?;
    file.read_exact(buf)
}

/// Opens what the guest calls `name`, if it is a file in `folder`. The guest cannot change the folder, so that what was
/// looked at is what is opened.
fn open(folder: &Path, name: &str) -> Result<(File, u64), u16> {
    let name = name.trim_start_matches('/');
    if name.is_empty()
        || Path::new(name)
            .components()
            .any(|c| !matches!(c, std::path::Component::Normal(_) | std::path::Component::CurDir))
    {
        return Err(FORBIDDEN);
    }
    let root = folder.canonicalize().map_err(|_| NOT_FOUND)?;
    let path = root.join(name).canonicalize().map_err(|_| NOT_FOUND)?;
    if !path.starts_with(&root) {
        return Err(FORBIDDEN);
    }
    if !path.is_file() {
        return Err(NOT_FOUND);
    }
    let file = File::open(&path).map_err(|_| NOT_FOUND)?;
    let size = file.metadata().map_err(|_| NOT_FOUND)?.len();
    Ok((file, size))
}

fn error(core: &mut Core, server: SocketAddr, guest: SocketAddr, code: u16, why: &str) {
    let mut message = ERROR.to_be_bytes().to_vec();
    message.extend_from_slice(&code.to_be_bytes());
    message.extend_from_slice(why.as_bytes());
    message.push(0);
    core.datagram(server, guest, &message);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_outside_of_the_folder_is_opened() {
        let top = std::env::temp_dir().join(format!("mynah-tftp-{}", std::process::id()));
        let folder = top.join("folder");
        std::fs::create_dir_all(folder.join("sub")).unwrap();
        std::fs::write(top.join("secret"), "x").unwrap();
        std::fs::write(folder.join("sub/file"), "four").unwrap();
        #[cfg(unix)]
        for (to, name) in [("../secret", "out"), ("sub/file", "in")] {
            std::os::unix::fs::symlink(to, folder.join(name)).unwrap();
        }
        let try_open = |name: &str| open(&folder, name).map(|(_, size)| size);
        assert_eq!(try_open("sub/file"), Ok(4));
        assert_eq!(try_open("/sub/./file"), Ok(4));
        if cfg!(unix) {
            assert_eq!(try_open("in"), Ok(4), "a link within it is followed");
            assert_eq!(try_open("out"), Err(FORBIDDEN));
        }
        assert_eq!(try_open("../secret"), Err(FORBIDDEN));
        assert_eq!(try_open("sub/../../secret"), Err(FORBIDDEN));
        assert_eq!(try_open("sub"), Err(NOT_FOUND), "it is a folder");
        assert_eq!(try_open("none"), Err(NOT_FOUND));
        assert_eq!(try_open(""), Err(FORBIDDEN));
        std::fs::remove_dir_all(&top).unwrap();
    }
}
