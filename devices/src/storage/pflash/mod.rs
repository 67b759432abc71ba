//! A parallel flash chip in the address space, with Intel's command set: what a firmware image and its variables are
//! in.
//!
//! ```text
//!   array mode   reads and fetches --> the array, as a ROM          writes --> a command
//!   other modes  reads  --> status, identifier, CFI table           writes --> commands and their data
//!   programmed bytes --> array --> journal --> the drive's image, then a flush
//! ```
//!
//! Chips are one byte wide, as QEMU's on a PC are; wider accesses are several cycles. A program or erase changes the
//! array at once and is written to the image behind the guest's back: in the order in which it was done, so that a
//! process that is killed leaves a state that there has been, and flushed when there is no more. Bit 7 of the status
//! (ready) is not shown before that, so that who polls it, as the data sheet says, has what is durable; who does not,
//! as OVMF, waits for nothing.
//!
//! As under QEMU, where data sheets differ: bit 7 is set by a program or erase alone, and cleared with the others by
//! the command for that (OVMF knows a flash by a status of 0); the identifiers are 0; a sequence that is none ends in
//! array mode. As on a chip, where QEMU differs: programming clears bits and sets none, an erase begins with its second
//! cycle, blocks can be locked. Missing on purpose: one-time programmable bits, protection by a pin.
//!
//! Locks: the chip's before the map's and the drive's. Ends of requests come on the drive's threads.
//!
//! Sources: Intel 28F640J3 data sheet (290667), tables 4 and 15 to 18; JEDEC JESD68.01 (CFI); QEMU's pflash_cfi01 as
//! it behaves.
mod chip;
#[cfg(test)]
mod tests;

use crate::device::{Device, Invalid, Reset};
pub use chip::{BLOCK, ChipV1};
use chip::{Chip, Effect};
use mynah_block::{Drive, Reply, Request};
use mynah_mmu::{DeviceRam, Mmio, PhysMemory};
use parking_lot::{Mutex, MutexGuard};
use serde::{Deserialize, Serialize, Serializer};
use std::collections::VecDeque;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Weak};

/// Bytes of a write to the image that programmed bytes one behind the other become.
const RUN: usize = 64 << 10;
/// Bytes that wait for the drive one by one; with more they are written as one range.
const WAITING: usize = 1 << 20;
/// What an entry of the journal counts beside its bytes.
const ENTRY: usize = 64;

/// Why there is no chip.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PflashError {
    /// It has another size than a chip.
    #[error("a flash image has a multiple of 4096 bytes, and some; this one has {0}")]
    Size(u64),
    /// It cannot be read.
    #[error("it cannot be read: {0}")]
    Read(mynah_block::DriveError),
    /// The host has no memory for it.
    #[error("no memory for its {0} bytes")]
    Memory(u64),
}

/// What is on its way to the image.
#[derive(Default)]
struct Journal {
    waiting: VecDeque<(u64, Vec<u8>)>,
    /// Bytes of it, and [`ENTRY`] for each entry.
    size: usize,
    /// A request is with the drive.
    busy: bool,
    /// Something was written and not flushed.
    unflushed: bool,
}

impl Journal {
    fn is_empty(&self) -> bool {
        self.waiting.is_empty() && !self.busy && !self.unflushed
    }

    fn add(&mut self, at: u64, bytes: &[u8], array: &DeviceRam) {
        if let Some((first, last)) = self.waiting.back_mut()
            && *first + last.len() as u64 == at
            && last.len() + bytes.len() <= RUN
        {
            last.extend_from_slice(bytes);
            self.size += bytes.len();
        } else {
            self.waiting.push_back((at, bytes.to_vec()));
            self.size += bytes.len() + ENTRY;
        }
        if self.size <= WAITING {
            return;
        }
        // A guest that does not wait is faster than the disk: what stands there now.
        let first = self.waiting.iter().map(|(at, _)| *at).min().unwrap_or(at);
        let end = self.waiting.iter().map(|(at, bytes)| at + bytes.len() as u64).max().unwrap_or(at);
        let mut all = vec![0; (end - first) as usize];
        array.read(first, &mut all);
        // It counts as little, lest the next byte do the same again.
        self.size = ENTRY;
        self.waiting = VecDeque::from([(first, all)]);
    }
}

struct State {
    chip: Chip,
    journal: Journal,
    /// What hides the array while something else is read.
    hiding: Option<u64>,
    /// Ends of requests of before a restore are of no interest.
    generation: u64,
}

/// A chip.
pub struct Pflash {
    array: Arc<DeviceRam>,
    drive: Arc<Drive>,
    memory: Arc<PhysMemory>,
    base: u64,
    state: Mutex<State>,
    me: Weak<Pflash>,
}

impl Pflash {
    /// A chip with the contents and the size of `drive`, in the address space up to `end`.
    ///
    /// # Errors
    /// The image is no flash image, or cannot be read.
    pub fn new(drive: Arc<Drive>, memory: Arc<PhysMemory>, end: u64) -> Result<Arc<Self>, PflashError> {
        let size = drive.size();
        if size == 0 || !size.is_multiple_of(BLOCK) || size > end {
            return Err(PflashError::Size(size));
        }
        let array = DeviceRam::new(size).map_err(|_| PflashError::Memory(size))?;
        let bytes = drive.wait(Request::Read { at: 0, len: size as usize }).map_err(PflashError::Read)?;
        array.write(0, &bytes);
        // It is soldered in: no user takes it out.
        drive.lock(true);
        let base = end - size;
        let chip = Chip::new(size, drive.read_only());
        let state = State { chip, journal: Journal::default(), hiding: None, generation: 0 };
        let this = Arc::new_cyclic(|me| Self {
            array,
            drive,
            memory,
            base,
            state: Mutex::new(state),
            me: me.clone(),
        });
        this.memory.map_rom_device(base, size, &this.array, 0, this.clone());
        Ok(this)
    }

    /// Where it begins.
    pub fn base(&self) -> u64 {
        self.base
    }

    /// Bytes.
    pub fn size(&self) -> u64 {
        self.array.size()
    }

    /// Waits until all that was programmed is in the image, or cannot be.
    pub fn finish(&self) {
        // The end of a request hands over the next before it counts as ended.
        self.drive.drain();
    }

    /// Has the address space show what is to be read now.
    fn show(&self, state: &mut State) {
        match (state.chip.shows_array(), state.hiding) {
            (true, Some(id)) => {
                state.hiding = None;
                self.memory.unmap(id);
            }
            (false, None) => {
                // While the board is taken apart there is nobody left.
                let Some(me) = self.me.upgrade() else { return };
                state.hiding = Some(self.memory.map_mmio(self.base, self.size(), me));
            }
            _ => {}
        }
    }

    /// Hands the drive what comes next.
    fn push(&self, state: &mut MutexGuard<'_, State>) {
        if state.journal.busy {
            return;
        }
        let request = if let Some((at, data)) = state.journal.waiting.pop_front() {
            state.journal.size = state.journal.size.saturating_sub(data.len() + ENTRY);
            state.journal.unflushed = true;
            Request::Write { at, data }
        } else if state.journal.unflushed {
            Request::Flush
        } else {
            return;
        };
        state.journal.busy = true;
        let (me, generation) = (self.me.clone(), state.generation);
        let flushes = request == Request::Flush;
        self.drive.submit(request, move |reply| {
            if let Some(chip) = me.upgrade() {
                chip.answered(generation, flushes, &reply);
            }
        });
    }

    fn answered(&self, generation: u64, flushed: bool, reply: &Reply) {
        let mut state = self.state.lock();
        if state.generation != generation {
            return;
        }
        state.journal.busy = false;
        if flushed {
            state.journal.unflushed = false;
        }
        if let Err(e) = reply {
            tracing::warn!(
                "flash '{}': what the guest has programmed is not in its image: {e}",
                self.drive.name()
            );
            state.chip.failed();
        }
        self.push(&mut state);
    }

    fn write_byte(&self, state: &mut MutexGuard<'_, State>, at: u64, value: u8) {
        let s = &mut **state;
        match s.chip.write(at, value) {
            Effect::None => {}
            Effect::Program(bytes) => {
                let first = bytes.first().map_or(at, |(at, _)| *at);
                let mut run = Vec::new();
                let mut begun = first;
                for (at, value) in bytes {
                    let mut old = [0];
                    self.array.read(at, &mut old);
                    let new = old[0] & value;
                    self.array.write(at, &[new]);
                    if begun + run.len() as u64 != at {
                        s.journal.add(begun, &std::mem::take(&mut run), &self.array);
                        begun = at;
                    }
                    run.push(new);
                }
                if !run.is_empty() {
                    s.journal.add(begun, &run, &self.array);
                }
            }
            Effect::Erase(at) => {
                let blank = [0xff; BLOCK as usize];
                self.array.write(at, &blank);
                s.journal.add(at, &blank, &self.array);
            }
        }
        self.push(state);
    }
}

impl Mmio for Pflash {
    fn name(&self) -> &'static str {
        "pflash"
    }

    fn read(&self, offset: u64, size: u8) -> u64 {
        let state = self.state.lock();
        let ready = state.journal.is_empty();
        (0..u64::from(size.min(8))).fold(0, |value, i| {
            let at = offset.wrapping_add(i) % self.size();
            let byte = state.chip.read(at, ready).unwrap_or_else(|| {
                let mut byte = [0];
                self.array.read(at, &mut byte);
                byte[0]
            });
            value | u64::from(byte) << (8 * i)
        })
    }

    fn write(&self, offset: u64, size: u8, value: u64) {
        let mut state = self.state.lock();
        for i in 0..u64::from(size.min(8)) {
            let at = offset.wrapping_add(i) % self.size();
            self.write_byte(&mut state, at, (value >> (8 * i)) as u8);
            // Each byte: the array is hidden before it changes.
            self.show(&mut state);
        }
    }
}

/// The contents of a chip that may be written.
#[derive(Deserialize)]
pub struct Contents {
    #[serde(with = "serde_bytes")]
    bytes: Vec<u8>,
}

/// As it is encoded.
#[derive(Serialize)]
struct Encoded<'a> {
    #[serde(with = "serde_bytes")]
    bytes: &'a [u8],
}

/// As people see it.
#[derive(Serialize)]
struct Shown {
    size: usize,
    hash: u64,
}

impl Serialize for Contents {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        if s.is_human_readable() {
            let mut hash = DefaultHasher::new();
            self.bytes.hash(&mut hash);
            return Shown { size: self.bytes.len(), hash: hash.finish() }.serialize(s);
        }
        Encoded { bytes: &self.bytes }.serialize(s)
    }
}

/// What is saved of a chip: what it does, and what it holds if that is not as it was for ever. What is on its way to
/// the image is not: a restored chip writes what its image has not.
#[derive(Serialize, Deserialize)]
pub struct PflashV1 {
    chip: ChipV1,
    contents: Option<Contents>,
}

impl Device for Pflash {
    type State = PflashV1;
    const KIND: &'static str = "cfi.pflash01";

    /// The chip's own reset: what it holds stays.
    fn reset(&self, _: Reset) {
        let mut state = self.state.lock();
        state.chip.reset();
        self.show(&mut state);
    }

    fn pause(&self) {
        self.finish();
    }

    fn resume(&self) {
        self.drive.resume();
    }

    fn save(&self) -> PflashV1 {
        let state = self.state.lock();
        let contents = (!state.chip.read_only()).then(|| {
            let mut bytes = vec![0; self.size() as usize];
            self.array.read(0, &mut bytes);
            Contents { bytes }
        });
        PflashV1 { chip: state.chip.save(), contents }
    }

    fn restore(&self, saved: PflashV1) -> Result<(), Invalid> {
        let mut state = self.state.lock();
        let fits = |c: &Contents| c.bytes.len() as u64 == self.size();
        if saved.contents.is_some() == state.chip.read_only() || !saved.contents.as_ref().is_none_or(fits) {
            return Err(Invalid("the flash's contents"));
        }
        state.chip.restore(saved.chip)?;
        if let Some(Contents { bytes }) = saved.contents {
            let mut now = vec![0; bytes.len()];
            self.array.read(0, &mut now);
            let differ = |n: &usize| now[*n] != bytes[*n];
            let first = (0..bytes.len()).find(differ);
            let last = (0..bytes.len()).rev().find(differ);
            if let (Some(first), Some(last)) = (first, last) {
                // The array is hidden while it changes, which tells who has decoded it.
                let hidden = state.hiding.take();
                let over = self.memory.map_hole(self.base, self.size());
                self.array.write(0, &bytes);
                self.memory.unmap(over);
                state.hiding = hidden;
                let s = &mut *state;
                s.journal.add(first as u64, &bytes[first..=last], &self.array);
            }
        }
        self.show(&mut state);
        self.push(&mut state);
        Ok(())
    }
}
