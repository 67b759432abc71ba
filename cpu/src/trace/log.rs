//! The log of `-d`: what is in it, and where it goes.
use parking_lot::Mutex;
use std::io;
use std::sync::atomic::AtomicU64;

/// Guest code when it is decoded.
pub const IN_ASM: u32 = 1 << 0;
/// Blocks as they are entered.
pub const EXEC: u32 = 1 << 1;
/// Registers before each of these.
pub const CPU: u32 = 1 << 2;
/// x87 and SSE registers too, where `CPU` shows registers.
pub const FPU: u32 = 1 << 3;
/// Interrupts and exceptions.
pub const INT: u32 = 1 << 4;
/// The state before a reset.
pub const RESET: u32 = 1 << 5;
/// None of the blocks is to be missed.
pub const EVERY_BLOCK: u32 = 1 << 7;
/// What a translator has to say, which it says by [`Trace::put_at`].
pub const TRANSLATOR: u32 = 1 << 6;

/// Gives the name of what stands at a linear address, if it has one.
pub type Names = Box<dyn Fn(u64) -> Option<String> + Send + Sync>;

/// Where the log goes and what is in it.
pub struct Trace {
    items: u32,
    names: Option<Names>,
    /// Events logged.
    pub(super) events: AtomicU64,
    /// First and last address, inclusive, of what is logged; empty for everything.
    filter: Vec<(u64, u64)>,
    out: Mutex<Box<dyn io::Write + Send>>,
}

impl Trace {
    /// A log of `items` to `out`.
    pub fn new(items: u32, filter: Vec<(u64, u64)>, out: Box<dyn io::Write + Send>) -> Self {
        Self { items, names: None, events: AtomicU64::new(0), filter, out: Mutex::new(out) }
    }

    /// Has addresses of code named.
    pub fn set_names(&mut self, names: Names) {
        self.names = Some(names);
    }

    /// A name for a linear address, behind a blank, or nothing.
    pub(super) fn name(&self, lin: u64) -> String {
        self.names.as_ref().and_then(|f| f(lin)).map_or(String::new(), |n| format!(" {n}"))
    }

    /// Whether any of these is logged.
    pub(super) fn has(&self, items: u32) -> bool {
        self.items & items != 0
    }

    /// Whether what is at this address is logged.
    pub(super) fn wants(&self, ip: u64) -> bool {
        self.filter.is_empty() || self.filter.iter().any(|&(a, b)| (a..=b).contains(&ip))
    }

    /// Adds a text to the log.
    pub fn put(&self, text: &str) {
        // A log that cannot be written must not stop the guest.
        let _ = self.out.lock().write_all(text.as_bytes());
    }

    /// Adds a text about the code at a linear address, if that is to be logged.
    pub fn put_at(&self, lin: u64, text: &str) {
        if self.wants(lin) {
            self.put(text);
        }
    }

    /// Writes out what is buffered, and waits for who is writing.
    pub fn flush(&self) {
        let _ = self.out.lock().flush();
    }

    /// Writes out what is buffered, unless somebody is writing.
    pub fn try_flush(&self) {
        if let Some(mut out) = self.out.try_lock() {
            let _ = out.flush();
        }
    }
}
