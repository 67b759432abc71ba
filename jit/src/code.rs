//! Memory for generated code, and what is kept of a compiled region.
//!
//! Code lies in segments of memory that is mapped twice, once to be written and once to be executed, so that no page is ever
//! both and no protection changes while other threads may execute. Code is put into a segment one piece after the other; when as many segments are full as the
//! budget allows, the oldest one is taken with all the regions in it.
use crate::twice::{self, Executed, Written};
use mynah_cpu::Cpu;
use std::io;

/// Bytes in a segment.
pub(crate) const SEGMENT: usize = 1 << 20;
/// Alignment of a piece of code.
const ALIGN: usize = 16;

/// A block that went into a region, for telling whether it is still the guest's code.
pub(crate) struct Part {
    /// Guest physical address of the first byte.
    pub phys: u64,
    /// The guest's bytes.
    pub bytes: Box<[u8]>,
}

impl Part {
    /// Whether the guest's bytes and the decoded block are still those that the region was made of.
    pub(crate) fn holds(&self, cpu: &Cpu, key: u32) -> bool {
        // Only a live block has its bytes watched.
        let known = cpu.known_block(self.phys, key).is_some_and(|b| b.len as usize == self.bytes.len());
        let mut now = [0; mynah_mmu::PAGE_SIZE as usize];
        let now = &mut now[..self.bytes.len()];
        known && {
            cpu.mem.read(self.phys, now);
            *now == *self.bytes
        }
    }
}

struct Segment {
    write: Written,
    execute: Executed,
    used: usize,
}

impl Segment {
    fn new() -> io::Result<Self> {
        let (write, execute) = twice::map(SEGMENT)?;
        Ok(Self { write, execute, used: 0 })
    }
}

/// All code of an engine.
pub(crate) struct CodeMemory {
    segments: Vec<Segment>,
    current: usize,
    limit: usize,
}

/// Where a piece of code was put.
pub(crate) struct Placed {
    pub address: *const u8,
    pub segment: usize,
    /// The segment that was emptied for it: whatever had code there is gone.
    pub evicted: Option<usize>,
}

impl CodeMemory {
    /// Memory for up to `limit` bytes (at least two segments).
    pub fn new(limit: usize) -> io::Result<Self> {
        Ok(Self { segments: vec![Segment::new()?], current: 0, limit: (limit / SEGMENT).max(2) })
    }

    /// Puts a piece of code; `None` if it is larger than a segment or the host has no memory.
    pub fn place(&mut self, code: &[u8]) -> Option<Placed> {
        if code.len() > SEGMENT {
            return None;
        }
        let mut evicted = None;
        if self.segments[self.current].used + code.len() > SEGMENT {
            if self.segments.len() < self.limit {
                self.segments.push(Segment::new().ok()?);
                self.current = self.segments.len() - 1;
            } else {
                // Segments fill in turn, so the next one is the oldest. Segment 0 begins with what must stay.
                self.current = if self.current + 1 < self.segments.len() { self.current + 1 } else { 1 };
                self.segments[self.current].used = 0;
                evicted = Some(self.current);
            }
        }
        let segment = self.current;
        let s = &mut self.segments[segment];
        let at = s.used;
        s.write[at..at + code.len()].copy_from_slice(code);
        s.used = (at + code.len()).next_multiple_of(ALIGN);
        Some(Placed { address: s.execute.address(at), segment, evicted })
    }
}
