//! Memory for generated code, and what is kept of a planned block.
//!
//! Code lies in segments of memory that can be written while other threads execute what is there already, at another address (see [`twice`]). Code is
//! put into a segment one piece after the other. When as many segments are full as the budget allows, the oldest one is
//! given up with all the code in it: it is unmapped as soon as nobody keeps a piece of it.
use crate::twice::{self, Executed, Written};
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
    /// Memory for `len` bytes of code, `split` or not as in [`twice::map`].
    pub fn new(len: usize, split: bool) -> io::Result<Arc<Self>> {
        let (write, execute) = twice::map(len, split)?;
        Ok(Arc::new(Self { write: Mutex::new(write), execute, given_up: AtomicBool::new(false) }))
    }

    /// Puts code at an offset where none has been.
    pub fn put(self: &Arc<Self>, at: usize, code: &[u8]) -> Code {
        self.write.lock().put(at, code);
        Code { segment: self.clone(), at, len: code.len() }
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
    /// The oldest first; the last one is being filled.
    segments: VecDeque<Arc<Segment>>,
    used: usize,
    limit: usize,
    split: bool,
}

/// Where a piece of code was put.
pub(crate) struct Placed {
    pub code: Code,
    /// The segment that was given up for it.
    pub given_up: Option<Arc<Segment>>,
}

impl CodeMemory {
    /// Memory for up to `limit` bytes (at least one segment), `split` or not.
    pub fn new(limit: usize, split: bool) -> io::Result<Self> {
        let first = Segment::new(SEGMENT, split)?;
        Ok(Self { segments: VecDeque::from([first]), used: 0, limit: (limit / SEGMENT).max(1), split })
    }

    /// Puts a piece of code; `None` if it is larger than a segment or the host has no memory.
    pub fn place(&mut self, code: &[u8]) -> Option<Placed> {
        if code.len() > SEGMENT {
            return None;
        }
        let mut given_up = None;
        if self.used + code.len() > SEGMENT {
            let fresh = Segment::new(SEGMENT, self.split).ok()?;
            if self.segments.len() >= self.limit {
                given_up = self.segments.pop_front();
            }
            if let Some(s) = &given_up {
                s.given_up.store(true, Ordering::Release);
            }
            self.segments.push_back(fresh);
            self.used = 0;
        }
        let code = self.segments.back()?.put(self.used, code);
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
        let first = m.place(&[0xc3; SEGMENT / 2]).unwrap();
        for _ in 0..3 {
            assert!(m.place(&half).unwrap().given_up.is_none());
        }
        assert!(!first.code.segment.is_given_up());
        let fifth = m.place(&half).unwrap();
        assert!(Arc::ptr_eq(&fifth.given_up.unwrap(), &first.code.segment));
        assert!(first.code.segment.is_given_up() && !fifth.code.segment.is_given_up());
        assert_eq!(first.code.bytes(), [0xc3; SEGMENT / 2]);
        assert_eq!(m.bytes(), 2 * SEGMENT);
        assert!(m.place(&vec![0; SEGMENT + 1]).is_none());
    }
}
