//! The terminal of a Windows host: a console, whose virtual-terminal sequences are those of Unix' terminals.
//!
//! ```text
//!   console, pipe, file --ReadConsoleW, ReadFile--> thread --> socket --> event loop
//! ```
//!
//! What a console is reading cannot be waited for beside sockets: a thread reads, and passes on what comes through a
//! connection of this process with itself. That holds so much, and no more is read than it takes.
//!
//! `SAVED` holds the console's modes while they are changed; whoever takes them out puts them back.
mod guards;

use crate::descriptor::Plain;
use crate::event_loop::Descriptor;
use parking_lot::Mutex;
use socket2::Socket;
use std::ffi::c_void;
use std::io::{self, Write};
use std::net::Shutdown;
use std::ptr;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use windows_sys::Win32::Foundation::{HANDLE, INVALID_HANDLE_VALUE};
use windows_sys::Win32::Storage::FileSystem::{ReadFile, WriteFile};
use windows_sys::Win32::System::Console as console;

/// UTF-8 (CP_UTF8), which is what guests speak.
const UTF8: u32 = 65_001;
/// ERROR_BROKEN_PIPE: the other end of a pipe has been closed, which is an end as of a file.
const BROKEN_PIPE: i32 = 109;
/// Bytes that are read at once.
const CHUNK: usize = 1024;
/// Pieces of what was typed that wait for the screen's thread.
const PIECES: usize = 64;

/// A standard stream, if there is one.
fn standard(which: console::STD_HANDLE) -> io::Result<HANDLE> {
    // SAFETY: it takes a number.
    let handle = unsafe { console::GetStdHandle(which) };
    if handle == INVALID_HANDLE_VALUE {
        return Err(io::Error::last_os_error());
    }
    if handle.is_null() {
        return Err(io::Error::new(io::ErrorKind::NotFound, "the process has no such standard stream"));
    }
    Ok(handle)
}

/// The modes of a console; None if it is none.
fn mode(handle: HANDLE) -> Option<u32> {
    let mut mode = 0;
    // SAFETY: `mode` is writable; a handle that is no console's is an error.
    (unsafe { console::GetConsoleMode(handle, &raw mut mode) } != 0).then_some(mode)
}

/// Writes to standard output, as bytes: the runtime's own stream takes whole characters only.
fn write_out(bytes: &[u8]) -> io::Result<usize> {
    let out = standard(console::STD_OUTPUT_HANDLE)?;
    let (len, mut written) = (u32::try_from(bytes.len()).unwrap_or(u32::MAX), 0);
    // SAFETY: `bytes` is readable for that length, and the process's own handle stays open.
    let done = unsafe { WriteFile(out, bytes.as_ptr(), len, &raw mut written, ptr::null_mut()) };
    if done == 0 { Err(io::Error::last_os_error()) } else { Ok(written as usize) }
}

/// Standard input as UTF-8, whatever it is.
struct Input {
    handle: HANDLE,
    console: bool,
    /// The first half of a character of two (UTF-16).
    half: Option<u16>,
}

// SAFETY: a standard handle is the process's, for all its threads.
unsafe impl Send for Input {}

impl Input {
    fn open() -> io::Result<Self> {
        let handle = standard(console::STD_INPUT_HANDLE)?;
        Ok(Self { handle, console: mode(handle).is_some(), half: None })
    }

    /// Waits for what comes next; nothing is the end.
    fn read(&mut self) -> io::Result<Vec<u8>> {
        if self.console { self.read_console() } else { self.read_file() }
    }

    fn read_file(&mut self) -> io::Result<Vec<u8>> {
        let (mut bytes, mut n) = (vec![0; CHUNK], 0);
        // SAFETY: `bytes` is writable for its length.
        let done =
            unsafe { ReadFile(self.handle, bytes.as_mut_ptr(), CHUNK as u32, &raw mut n, ptr::null_mut()) };
        if done == 0 {
            let why = io::Error::last_os_error();
            return if why.raw_os_error() == Some(BROKEN_PIPE) { Ok(Vec::new()) } else { Err(why) };
        }
        bytes.truncate(n as usize);
        Ok(bytes)
    }

    fn read_console(&mut self) -> io::Result<Vec<u8>> {
        loop {
            let (mut units, mut n) = ([0_u16; CHUNK], 0);
            // SAFETY: `units` is writable for its length, and there is no control structure.
            let done = unsafe {
                console::ReadConsoleW(
                    self.handle,
                    units.as_mut_ptr().cast::<c_void>(),
                    CHUNK as u32,
                    &raw mut n,
                    ptr::null(),
                )
            };
            if done == 0 {
                return Err(io::Error::last_os_error());
            }
            if n == 0 {
                return Ok(Vec::new());
            }
            let mut all: Vec<u16> = self.half.take().into_iter().collect();
            all.extend_from_slice(&units[..n as usize]);
            if all.last().is_some_and(|u| (0xd800..0xdc00).contains(u)) {
                self.half = all.pop();
            }
            let text = String::from_utf16_lossy(&all);
            if !text.is_empty() {
                return Ok(text.into_bytes());
            }
        }
    }
}

/// Standard input, as far as somebody has it: the thread that reads lives as long as the process, and passes on to who
/// was there last.
static READS_FOR: Mutex<Option<Socket>> = Mutex::new(None);

/// Standard input and output.
pub(super) fn streams() -> io::Result<(Descriptor, Descriptor)> {
    let mut input = Input::open()?;
    let (ours, theirs) = mynah_net::sockets::pair()?;
    ours.set_nonblocking(true)?;
    static STARTED: OnceLock<()> = OnceLock::new();
    *READS_FOR.lock() = Some(theirs);
    if STARTED.set(()).is_ok() {
        std::thread::Builder::new().name("mynah-stdin".into()).spawn(move || {
            loop {
                let read = input.read();
                let to = READS_FOR.lock().as_ref().and_then(|s| s.try_clone().ok());
                let Some(mut to) = to else { continue };
                match read {
                    Ok(bytes) if !bytes.is_empty() => {
                        // Nobody may want it any more.
                        let _ = to.write_all(&bytes);
                    }
                    _ => {
                        let _ = to.shutdown(Shutdown::Write);
                        return;
                    }
                }
            }
        })?;
    }
    Ok((Arc::new(ours), Arc::new(Plain(write_out))))
}

/// Input comes through a socket, whatever it is.
pub(super) fn is_plain_file(_: &Descriptor) -> bool {
    false
}

/// Whether the terminal has gone.
pub(super) fn has_gone(_: &io::Error) -> bool {
    false
}

/// Columns and rows of the console that is standard output.
pub fn window_size() -> Option<(usize, usize)> {
    let out = standard(console::STD_OUTPUT_HANDLE).ok()?;
    let mut info = console::CONSOLE_SCREEN_BUFFER_INFO::default();
    // SAFETY: the structure is writable.
    let done = unsafe { console::GetConsoleScreenBufferInfo(out, &raw mut info) };
    let window = info.srWindow;
    let size = |from: i16, to: i16| usize::try_from(i32::from(to) - i32::from(from) + 1).ok();
    (done != 0).then(|| Some((size(window.Left, window.Right)?, size(window.Top, window.Bottom)?)))?
}

/// What has come of [`typed`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Typed {
    /// Nothing in this time.
    Nothing,
    /// So many bytes.
    Bytes(usize),
    /// The terminal has gone.
    Ended,
    /// Somebody else has the terminal now.
    Elsewhere,
}

/// What a thread has read for [`typed`], and what of it there was no room for.
struct Keys {
    from: Receiver<Vec<u8>>,
    rest: Vec<u8>,
}

/// Waits so long for what is typed at the console that is standard input.
pub fn typed(wait: Duration, bytes: &mut [u8]) -> Typed {
    static KEYS: Mutex<Option<Keys>> = Mutex::new(None);
    let mut keys = KEYS.lock();
    let keys = keys.get_or_insert_with(|| Keys { from: read_keys(), rest: Vec::new() });
    if keys.rest.is_empty() {
        match keys.from.recv_timeout(wait) {
            Ok(bytes) => keys.rest = bytes,
            Err(RecvTimeoutError::Timeout) => return Typed::Nothing,
            Err(RecvTimeoutError::Disconnected) => return Typed::Ended,
        }
    }
    let n = bytes.len().min(keys.rest.len());
    bytes[..n].copy_from_slice(&keys.rest[..n]);
    keys.rest.drain(..n);
    Typed::Bytes(n)
}

/// Starts the thread that reads for [`typed`].
fn read_keys() -> Receiver<Vec<u8>> {
    let (to, from): (SyncSender<Vec<u8>>, _) = sync_channel(PIECES);
    // Without a thread there is no sender, which is an end.
    let _ = std::thread::Builder::new().name("mynah-keys".into()).spawn(move || {
        let Ok(mut input) = Input::open() else { return };
        while let Ok(bytes) = input.read() {
            if bytes.is_empty() || to.send(bytes).is_err() {
                return;
            }
        }
    });
    from
}

/// A console is not taken away and given back.
pub fn has_continued() -> bool {
    false
}

/// The modes that a console had, and what is written when they are put back.
struct Settings {
    input: u32,
    output: Option<u32>,
    pages: (u32, u32),
    leave: &'static [u8],
}

/// What to restore; None while nothing is changed.
static SAVED: Mutex<Option<Settings>> = Mutex::new(None);

/// Raw mode, until it is dropped.
pub(super) struct RawMode;

impl RawMode {
    /// Puts the console that is standard input into raw mode, with `signal` except for the keys that are signals;
    /// `leave` is written to standard output when that is over.
    pub(super) fn enter(signal: bool, leave: &'static [u8]) -> io::Result<Self> {
        let handle = standard(console::STD_INPUT_HANDLE)?;
        let Some(input) = mode(handle) else { return Err(io::Error::other("it is no console")) };
        let out = standard(console::STD_OUTPUT_HANDLE).ok();
        let output = out.and_then(mode);
        // SAFETY: they take nothing.
        let pages = unsafe { (console::GetConsoleCP(), console::GetConsoleOutputCP()) };
        guards::install(at_exit, || {});
        *SAVED.lock() = Some(Settings { input, output, pages, leave });
        let made = Self;
        let mut raw = input & !(console::ENABLE_LINE_INPUT | console::ENABLE_ECHO_INPUT);
        raw &=
            !(console::ENABLE_PROCESSED_INPUT | console::ENABLE_MOUSE_INPUT | console::ENABLE_WINDOW_INPUT);
        raw |= if signal { console::ENABLE_PROCESSED_INPUT } else { 0 };
        // SAFETY: they take numbers and the process's own handles.
        unsafe {
            // A console of before Windows 10 has no such sequences: its keys are characters only.
            let with_keys = raw | console::ENABLE_VIRTUAL_TERMINAL_INPUT;
            if console::SetConsoleMode(handle, with_keys) == 0 && console::SetConsoleMode(handle, raw) == 0 {
                return Err(io::Error::last_os_error());
            }
            if let (Some(out), Some(mode)) = (out, output) {
                let wanted = console::ENABLE_PROCESSED_OUTPUT | console::ENABLE_VIRTUAL_TERMINAL_PROCESSING;
                if console::SetConsoleMode(out, mode | wanted) == 0 && !leave.is_empty() {
                    return Err(io::Error::new(
                        io::ErrorKind::Unsupported,
                        "this console draws no virtual-terminal sequences, as those since Windows 10 do: say \
                         -nographic or -vnc :0",
                    ));
                }
            }
            console::SetConsoleCP(UTF8);
            console::SetConsoleOutputCP(UTF8);
        }
        Ok(made)
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        restore();
    }
}

/// Puts the console's modes back, if they are changed, for a process that ends without dropping what it has.
pub fn restore() {
    // Whoever has the lock is doing so.
    let Some(Settings { input, output, pages, leave }) = SAVED.try_lock().and_then(|mut s| s.take()) else {
        return;
    };
    if !leave.is_empty() {
        let _ = write_out(leave);
    }
    // SAFETY: they take numbers and the process's own handles.
    unsafe {
        if let Ok(handle) = standard(console::STD_INPUT_HANDLE) {
            console::SetConsoleMode(handle, input);
        }
        if let (Ok(handle), Some(mode)) = (standard(console::STD_OUTPUT_HANDLE), output) {
            console::SetConsoleMode(handle, mode);
        }
        console::SetConsoleCP(pages.0);
        console::SetConsoleOutputCP(pages.1);
    }
}

extern "C" fn at_exit() {
    restore();
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    #[test]
    fn both_ends_of_a_pair_are_ours() {
        let (mut ours, mut theirs) = pair().unwrap();
        theirs.write_all(b"typed").unwrap();
        theirs.shutdown(Shutdown::Write).unwrap();
        ours.set_nonblocking(false).unwrap();
        let mut got = String::new();
        ours.read_to_string(&mut got).unwrap();
        assert_eq!(got, "typed");
    }
}
