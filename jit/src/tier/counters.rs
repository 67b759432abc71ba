//! What the translator of a vCPU counts.
use mynah_cpu::Cpu;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};

/// What has been done.
#[derive(Default)]
pub struct Counters {
    /// Blocks compiled by the baseline.
    pub blocks: AtomicU64,
    /// Guest instructions in them.
    pub block_instructions: AtomicU64,
    /// Bytes of their host code.
    pub block_bytes: AtomicU64,
    /// Nanoseconds spent on compiling them.
    pub block_nanos: AtomicU64,
    /// By instruction code: how many of them they call the interpreter for.
    pub block_called: Mutex<HashMap<u16, u64>>,
    /// Blocks that were compiled again, for their accesses to look into places.
    pub placed: AtomicU64,
    /// Accesses that were found too seldom there, and look into the TLB again.
    pub unplaced: AtomicU64,
    /// Misses of places, in groups of those between two looks.
    pub missed: AtomicU64,
    /// Regions compiled.
    pub compiled: AtomicU64,
    /// Regions installed.
    pub installed: AtomicU64,
    /// Regions that came too late: their blocks had changed.
    pub late: AtomicU64,
    /// Blocks that could not be compiled.
    pub refused: AtomicU64,
    /// Regions installed that had been compiled before: for another vCPU, another place or another run.
    pub known: AtomicU64,
    /// Plans dropped because the queue was full.
    pub full: AtomicU64,
    /// Times that a hot block was left to the interpreter because it had been compiled a short while before.
    pub put_off: AtomicU64,
    /// Guest instructions in compiled regions.
    pub instructions: AtomicU64,
    /// Bytes of host code.
    pub bytes: AtomicU64,
    /// By instruction code: how many of them the code calls the interpreter for.
    pub called: Mutex<HashMap<u16, u64>>,
    /// What the vCPU last told: instructions executed, and how often compiled code was left, by reason.
    pub running: Mutex<(u64, [u64; 8])>,
    /// And how many of those instructions were executed in compiled code.
    pub in_code: AtomicU64,
    /// Nanoseconds spent compiling.
    pub nanos: AtomicU64,
}

impl Counters {
    /// Notes how far the vCPU has come.
    pub(super) fn tell(&self, cpu: &Cpu) {
        *self.running.lock() = (cpu.icount, cpu.left);
        self.in_code.store(cpu.in_code, Ordering::Relaxed);
    }
}
