//! Submission and completion queues (NVM Express 1.4, 4.1).
use super::command::Status;
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;

/// Bytes of a completion queue entry.
pub const COMPLETION_LEN: u64 = 16;

/// A queue of commands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Submission {
    /// The first entry's address.
    pub base: u64,
    /// Entries.
    pub size: u32,
    /// The next one that is taken.
    pub head: u32,
    /// The first one that the host has not filled.
    pub tail: u32,
    /// Where its commands' ends are told.
    pub completion: u16,
    /// Commands that were taken, and whose end is not told yet.
    pub outstanding: u32,
    /// The command that deletes it, which ends when nothing of it is under way.
    pub deleted_by: Option<u16>,
}

impl Submission {
    pub fn new(base: u64, size: u32, completion: u16) -> Self {
        Self { base, size, head: 0, tail: 0, completion, outstanding: 0, deleted_by: None }
    }

    /// Whether a command can be taken.
    pub fn has_more(&self) -> bool {
        self.head != self.tail && self.deleted_by.is_none() && self.outstanding < self.size
    }

    /// Whether it can be one that was saved.
    pub fn is_sound(&self, most: u32) -> bool {
        (2..=most).contains(&self.size)
            && self.head < self.size
            && self.tail < self.size
            && self.outstanding <= self.size
            && self.base.checked_add(u64::from(self.size) * 64).is_some()
    }
}

/// The end of a command, to be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct End {
    /// Command specific.
    pub result: u32,
    pub queue: u16,
    pub command: u16,
    pub status: Status,
}

/// A queue of ends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Completion {
    /// The first entry's address.
    pub base: u64,
    /// Entries.
    pub size: u32,
    /// The first one that the host has not seen.
    pub head: u32,
    /// The next one that is filled.
    pub tail: u32,
    /// What tells a new entry from an old one.
    pub phase: bool,
    /// Its interrupt, if it has one.
    pub vector: Option<u16>,
    /// Ends that the host has left no room for.
    pub waiting: VecDeque<End>,
}

impl Completion {
    pub fn new(base: u64, size: u32, vector: Option<u16>) -> Self {
        Self { base, size, head: 0, tail: 0, phase: true, vector, waiting: VecDeque::new() }
    }

    pub fn is_full(&self) -> bool {
        (self.tail + 1) % self.size == self.head
    }

    /// Whether there is something that the host has not seen.
    pub fn is_unseen(&self) -> bool {
        self.head != self.tail
    }

    /// The next entry's address; it is filled then.
    pub fn advance(&mut self) -> u64 {
        let at = self.base.wrapping_add(u64::from(self.tail) * COMPLETION_LEN);
        self.tail += 1;
        if self.tail == self.size {
            self.tail = 0;
            self.phase = !self.phase;
        }
        at
    }

    /// Whether it can be one that was saved.
    pub fn is_sound(&self, most: u32, vectors: u16) -> bool {
        (2..=most).contains(&self.size)
            && self.head < self.size
            && self.tail < self.size
            && self.vector.is_none_or(|v| v < vectors)
            && self.base.checked_add(u64::from(self.size) * COMPLETION_LEN).is_some()
    }
}
