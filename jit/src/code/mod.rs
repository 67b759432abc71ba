//! Memory for generated code, and what is kept of a planned block.
//!
//! Code lies in segments of memory that can be written while other threads execute what is there already, at another
//! address (see [`dual_map`]). Code is put into a segment one piece after the other. When segments, and what their
//! owner keeps beside the code in them, take as much as the budget allows, the oldest one is given up with all the
//! code in it: it is unmapped as soon as nobody keeps a piece of it.
pub(crate) mod dual_map;
pub(crate) mod flush;
#[cfg(any(target_os = "macos", windows))]
mod mapping;
pub(crate) mod provider;

#[cfg(target_os = "linux")]
#[path = "linux.rs"]
mod host;
#[cfg(target_os = "macos")]
#[path = "macos.rs"]
mod host;
#[cfg(windows)]
#[path = "windows.rs"]
mod host;
#[cfg(not(any(target_os = "linux", target_os = "macos", windows)))]
#[path = "none.rs"]
mod host;

use dual_map::{Executed, Written};
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Bytes in a segment.
pub(crate) const SEGMENT: usize = 1 << 20;
/// Alignment of a piece of code.
const ALIGN: usize = 16;

/// A block that went into a region.
pub(crate) struct Part {
    /// Guest physical address of the first byte.
    pub phys: u64,
    /// The guest's bytes.
    pub bytes: Box<[u8]>,
}

/// A piece of memory that holds code.
pub(crate) struct Segment {
    write: Mutex<Written>,
    execute: Executed,
    given_up: AtomicBool,
}

impl Segment {
    /// Memory for `len` bytes of code, `split` or not as in [`dual_map::map`].
    pub fn new(len: usize, split: bool) -> io::Result<Arc<Self>> {
        let (write, execute) = dual_map::map(len, split)?;
        Ok(Arc::new(Self { write: Mutex::new(write), execute, given_up: AtomicBool::new(false) }))
    }

    /// Puts code at an offset where none has been.
    pub fn put(self: &Arc<Self>, at: usize, code: &[u8]) -> Code {
        self.write.lock().put(at, code);
        Code { segment: self.clone(), at, len: code.len() }
    }

    /// Nothing more is put here.
    fn finish(&self) {
        self.write.lock().rest(0..SEGMENT);
    }

    /// Whether its place is wanted for other code: who keeps code of it is to let go of it.
    pub fn is_given_up(&self) -> bool {
        self.given_up.load(Ordering::Acquire)
    }
}

/// Code in a segment, which stays while this is kept.
#[derive(Clone)]
pub(crate) struct Code {
    /// Where it lies.
    pub segment: Arc<Segment>,
    at: usize,
    /// Its length in bytes.
    pub len: usize,
}

impl Code {
    /// Its first byte.
    pub fn address(&self) -> *const u8 {
        self.segment.execute.address(self.at)
    }

    /// Its bytes.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: `put` has checked that the piece is in the mapping, which lives as long as `segment`; the
        // piece is written once, before this exists.
        unsafe { std::slice::from_raw_parts(self.address(), self.len) }
    }
}

/// All code of a machine.
pub(crate) struct CodeMemory {
    /// The oldest first, with the bytes that are kept beside each one's code; the last one is being filled.
    segments: VecDeque<(Arc<Segment>, usize)>,
    used: usize,
    /// Bytes kept beside code in all segments.
    beside: usize,
    limit: usize,
    split: bool,
}

/// Where a piece of code was put.
pub(crate) struct Placed {
    pub code: Code,
    /// The segments that were given up for it.
    pub given_up: Vec<Arc<Segment>>,
}

impl CodeMemory {
    /// Memory for up to `limit` bytes (at least one segment), `split` or not.
    pub fn new(limit: usize, split: bool) -> io::Result<Self> {
        let segments = VecDeque::from([(Segment::new(SEGMENT, split)?, 0)]);
        Ok(Self { segments, used: 0, beside: 0, limit, split })
    }

    /// Puts a piece of code, beside which `beside` bytes are kept; `None` if it is larger than a segment or the host
    /// has no memory.
    pub fn place(&mut self, code: &[u8], beside: usize) -> Option<Placed> {
        if code.len() > SEGMENT {
            return None;
        }
        if self.used + code.len() > SEGMENT {
            let fresh = Segment::new(SEGMENT, self.split).ok()?;
            if let Some((full, _)) = self.segments.back() {
                full.finish();
            }
            self.segments.push_back((fresh, 0));
            self.used = 0;
        }
        let mut given_up = Vec::new();
        while self.segments.len() > 1 && self.bytes() + self.beside + beside > self.limit {
            let Some((oldest, had)) = self.segments.pop_front() else { break };
            oldest.given_up.store(true, Ordering::Release);
            self.beside -= had;
            given_up.push(oldest);
        }
        let (segment, had) = self.segments.back_mut()?;
        let code = segment.put(self.used, code);
        *had += beside;
        self.beside += beside;
        self.used = (self.used + code.len).next_multiple_of(ALIGN);
        Some(Placed { code, given_up })
    }

    /// Bytes that the segments take.
    pub fn bytes(&self) -> usize {
        self.segments.len() * SEGMENT
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_memory_gives_up_its_oldest_segment_which_stays_while_it_is_used() {
        let mut m = CodeMemory::new(2 * SEGMENT, true).unwrap();
        let half = vec![0x90; SEGMENT / 2];
        let first = m.place(&[0xc3; SEGMENT / 2], 0).unwrap();
        for _ in 0..3 {
            assert!(m.place(&half, 0).unwrap().given_up.is_empty());
        }
        assert!(!first.code.segment.is_given_up());
        let fifth = m.place(&half, 0).unwrap();
        assert!(Arc::ptr_eq(&fifth.given_up[0], &first.code.segment));
        assert!(first.code.segment.is_given_up() && !fifth.code.segment.is_given_up());
        assert_eq!(first.code.bytes(), [0xc3; SEGMENT / 2]);
        assert_eq!(m.bytes(), 2 * SEGMENT);
        assert!(m.place(&vec![0; SEGMENT + 1], 0).is_none());
    }
    #[test]
    fn what_is_kept_beside_the_code_counts() {
        let mut m = CodeMemory::new(8 * SEGMENT, true).unwrap();
        for n in 0..100 {
            // Much more than the code itself.
            m.place(&[0xc3; SEGMENT / 4], SEGMENT).unwrap();
            assert!(m.bytes() + m.beside <= 8 * SEGMENT || m.segments.len() == 1, "{n}");
        }
        assert_eq!(m.beside, m.segments.iter().map(|s| s.1).sum::<usize>());
    }
}
