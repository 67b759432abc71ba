//! The chip as registers: commands, status, what is read. It has neither array nor drive.
use crate::device::Invalid;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// Bytes of a block, which is erased and locked as a whole.
pub const BLOCK: u64 = 4096;
/// Bytes of the write buffer, as the CFI table tells it.
const BUFFER: u64 = 1 << BUFFER_LOG;
const BUFFER_LOG: u8 = 8;

/// The status register (28F640J3, table 16).
pub(super) mod status {
    pub const READY: u8 = 1 << 7;
    pub const ERASE_ERROR: u8 = 1 << 5;
    pub const PROGRAM_ERROR: u8 = 1 << 4;
    pub const PROTECTED: u8 = 1 << 1;
}

/// Commands (28F640J3, table 4).
mod command {
    pub const LOCK: u8 = 0x01;
    pub const PROGRAM: [u8; 2] = [0x10, 0x40];
    pub const ERASE: [u8; 2] = [0x20, 0x28];
    pub const CLEAR_STATUS: u8 = 0x50;
    pub const LOCKS: u8 = 0x60;
    pub const READ_STATUS: u8 = 0x70;
    pub const READ_ID: u8 = 0x90;
    pub const CFI_QUERY: u8 = 0x98;
    pub const SUSPEND: u8 = 0xb0;
    pub const CONFIRM: u8 = 0xd0;
    pub const BUFFER: u8 = 0xe8;
    pub const READ_ARRAY: u8 = 0xff;
}

/// What is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Shows {
    Array,
    Status,
    Id,
    Cfi,
}

/// What the next write is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Expects {
    Command,
    /// The byte to program.
    Data,
    /// The second cycle of an erase.
    Erase,
    /// The second cycle of a change of locks.
    Locks,
    /// How many bytes the buffer is to take, less one.
    Count,
    /// So many bytes for the buffer.
    Fill(u16),
    /// The second cycle of a buffered program.
    Commit,
}

/// What a write does to the array.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Effect {
    None,
    /// These bytes are programmed.
    Program(Vec<(u64, u8)>),
    /// The block that begins here is erased.
    Erase(u64),
}

/// What is saved of a chip's registers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChipV1 {
    shows: Shows,
    expects: Expects,
    status: u8,
    /// The write buffer: where each byte goes.
    buffer: Vec<(u64, u8)>,
    /// The blocks that are locked, by number.
    locked: BTreeSet<u32>,
}

impl Default for ChipV1 {
    fn default() -> Self {
        let (shows, expects) = (Shows::Array, Expects::Command);
        Self { shows, expects, status: 0, buffer: Vec::new(), locked: BTreeSet::new() }
    }
}

pub(super) struct Chip {
    size: u64,
    read_only: bool,
    now: ChipV1,
}

impl Chip {
    pub fn new(size: u64, read_only: bool) -> Self {
        Self { size, read_only, now: ChipV1::default() }
    }

    pub fn read_only(&self) -> bool {
        self.read_only
    }

    pub fn shows_array(&self) -> bool {
        self.now.shows == Shows::Array
    }

    pub fn reset(&mut self) {
        self.now = ChipV1::default();
    }

    /// What was programmed did not get to where it is kept.
    pub fn failed(&mut self) {
        self.now.status |= status::PROGRAM_ERROR;
    }

    pub fn save(&self) -> ChipV1 {
        self.now.clone()
    }

    pub fn restore(&mut self, saved: ChipV1) -> Result<(), Invalid> {
        let inside =
            saved.buffer.iter().all(|(at, _)| *at < self.size) && saved.buffer.len() as u64 <= BUFFER;
        let left = if let Expects::Fill(left) = saved.expects { left.into() } else { 0 };
        if !inside || left + saved.buffer.len() as u64 > BUFFER {
            return Err(Invalid("the flash's buffer"));
        }
        if saved.locked.last().is_some_and(|block| u64::from(*block) >= self.size / BLOCK) {
            return Err(Invalid("a locked block of the flash"));
        }
        self.now = saved;
        Ok(())
    }

    /// What is read at `at`; none if that is the array. `ready`: all that was done is where it is kept.
    pub fn read(&self, at: u64, ready: bool) -> Option<u8> {
        Some(match self.now.shows {
            Shows::Array => return None,
            Shows::Status if ready => self.now.status,
            Shows::Status => self.now.status & !status::READY,
            // Manufacturer and device are 0; behind them, for each block, whether it is locked.
            Shows::Id if at % BLOCK == 2 => u8::from(self.is_locked(at)),
            Shows::Id => 0,
            Shows::Cfi => self.cfi((at & 0xff) as u8),
        })
    }

    fn is_locked(&self, at: u64) -> bool {
        self.now.locked.contains(&((at / BLOCK) as u32))
    }

    /// A byte of the CFI table (JESD68.01, 2.4), with Intel's extended table at 31h.
    fn cfi(&self, at: u8) -> u8 {
        let blocks = (self.size / BLOCK - 1) as u16;
        let units = (BLOCK / 256) as u16;
        match at {
            0x10..=0x12 => b"QRY"[usize::from(at - 0x10)],
            // Intel's command set; its table.
            0x13 => 0x01,
            0x15 => 0x31,
            // 4.5 to 5.5 V.
            0x1b => 0x45,
            0x1c => 0x55,
            // Typical and longest times, as powers of two: 128 us a byte and a buffer, 1 s a block; 16 times that.
            0x1f | 0x20 => 0x07,
            0x21 => 0x0a,
            0x23..=0x25 => 0x04,
            0x27 => self.size.next_power_of_two().trailing_zeros() as u8,
            // x8 and x16.
            0x28 => 0x02,
            0x2a => BUFFER_LOG,
            // One region of blocks.
            0x2c => 1,
            0x2d => blocks as u8,
            0x2e => (blocks >> 8) as u8,
            0x2f => units as u8,
            0x30 => (units >> 8) as u8,
            0x31..=0x35 => b"PRI10"[usize::from(at - 0x31)],
            0x3f => 0x01,
            _ => 0,
        }
    }

    /// The read array command.
    fn array(&mut self) -> Effect {
        (self.now.shows, self.now.expects) = (Shows::Array, Expects::Command);
        self.now.buffer.clear();
        Effect::None
    }

    /// A sequence that is none.
    fn sequence_error(&mut self) -> Effect {
        self.now.status |= status::PROGRAM_ERROR | status::ERASE_ERROR;
        self.array()
    }

    /// A program or erase has ended, with this error if it could not be; whether it could.
    fn done(&mut self, at: u64, error: u8) -> bool {
        self.now.expects = Expects::Command;
        self.now.status |= status::READY;
        let protected = self.read_only || self.is_locked(at);
        if protected {
            self.now.status |= error | status::PROTECTED;
        }
        !protected
    }

    /// A write cycle.
    pub fn write(&mut self, at: u64, value: u8) -> Effect {
        match self.now.expects.clone() {
            Expects::Command => self.command(value),
            Expects::Data => {
                if self.done(at, status::PROGRAM_ERROR) {
                    Effect::Program(vec![(at, value)])
                } else {
                    Effect::None
                }
            }
            Expects::Erase => match value {
                command::CONFIRM if self.done(at, status::ERASE_ERROR) => Effect::Erase(at & !(BLOCK - 1)),
                command::CONFIRM => Effect::None,
                command::READ_ARRAY => self.array(),
                _ => self.sequence_error(),
            },
            Expects::Locks => {
                match value {
                    command::LOCK => _ = self.now.locked.insert((at / BLOCK) as u32),
                    command::CONFIRM => _ = self.now.locked.remove(&((at / BLOCK) as u32)),
                    command::READ_ARRAY => return self.array(),
                    _ => return self.sequence_error(),
                }
                self.now.expects = Expects::Command;
                self.now.status |= status::READY;
                Effect::None
            }
            Expects::Count => {
                if u64::from(value) >= BUFFER {
                    return self.sequence_error();
                }
                self.now.buffer.clear();
                self.now.expects = Expects::Fill(u16::from(value) + 1);
                Effect::None
            }
            Expects::Fill(left) => {
                // All of it is in the part of the array that one buffer is for.
                let first = self.now.buffer.first().map_or(at, |(first, _)| *first);
                if first / BLOCK != at / BLOCK {
                    return self.sequence_error();
                }
                self.now.buffer.push((at, value));
                self.now.expects = if left > 1 { Expects::Fill(left - 1) } else { Expects::Commit };
                Effect::None
            }
            Expects::Commit if value == command::CONFIRM => {
                let bytes = std::mem::take(&mut self.now.buffer);
                let at = bytes.first().map_or(at, |(at, _)| *at);
                if self.done(at, status::PROGRAM_ERROR) { Effect::Program(bytes) } else { Effect::None }
            }
            Expects::Commit => self.sequence_error(),
        }
    }

    fn command(&mut self, value: u8) -> Effect {
        self.now.shows = Shows::Status;
        match value {
            v if command::PROGRAM.contains(&v) => self.now.expects = Expects::Data,
            v if command::ERASE.contains(&v) => self.now.expects = Expects::Erase,
            command::LOCKS => self.now.expects = Expects::Locks,
            command::BUFFER => {
                self.now.status |= status::READY;
                self.now.expects = Expects::Count;
            }
            command::CLEAR_STATUS => {
                self.now.status = 0;
                return self.array();
            }
            // There is nothing to suspend or to resume.
            command::READ_STATUS | command::SUSPEND | command::CONFIRM => {}
            command::READ_ID => self.now.shows = Shows::Id,
            command::CFI_QUERY => self.now.shows = Shows::Cfi,
            // FFh, and what other command sets have for it.
            _ => return self.array(),
        }
        Effect::None
    }
}
