//! A command that a drive carries out, in pieces one after the other.
use super::command::Status;
use super::{Namespace, PIECE};
use crate::dma::Session;
use crate::pieces::{self, Piece};
use mynah_block::{DriveError, Reply, Request};
use serde::{Deserialize, Serialize};

/// What is moved or done: places and lengths in bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum What {
    Read {
        at: u64,
        len: u64,
    },
    Write {
        at: u64,
        len: u64,
    },
    Compare {
        at: u64,
        len: u64,
    },
    /// Read, and nothing done with it.
    Verify {
        at: u64,
        len: u64,
    },
    Zero {
        at: u64,
        len: u64,
        unmap: bool,
    },
    Discard(Vec<(u64, u64)>),
    /// Of these namespaces.
    Flush(Vec<u32>),
}

/// Whose end it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Origin {
    /// A command: its queue and its identifier.
    Command(u16, u16),
    /// The controller is shut down.
    Shutdown,
}

/// A command under way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Task {
    pub origin: Origin,
    /// The namespace of all but a flush.
    pub nsid: u32,
    pub what: What,
    /// Where its data are in guest memory.
    pub pieces: Vec<Piece>,
    /// Bytes that were moved, or ranges and namespaces that were seen to.
    moved: u64,
    /// What it writes is to be durable when it ends.
    durable: bool,
    /// That has been seen to.
    flushed: bool,
}

/// What follows for a task.
pub enum Next {
    /// This is asked of the drive of a namespace.
    Ask(u32, Request),
    /// It has ended.
    End(Status),
}

impl Task {
    pub fn new(origin: Origin, nsid: u32, what: What, pieces: Vec<Piece>, durable: bool) -> Self {
        Self { origin, nsid, what, pieces, moved: 0, durable, flushed: false }
    }

    /// All of it, of what is counted by `moved`.
    fn len(&self) -> u64 {
        match &self.what {
            What::Read { len, .. }
            | What::Write { len, .. }
            | What::Compare { len, .. }
            | What::Verify { len, .. }
            | What::Zero { len, .. } => *len,
            What::Discard(ranges) => ranges.len() as u64,
            What::Flush(of) => of.len() as u64,
        }
    }

    /// How much of it is done at once.
    fn step(&self) -> u64 {
        let left = self.len().saturating_sub(self.moved);
        match self.what {
            What::Zero { .. } => left,
            What::Discard(_) | What::Flush(_) => left.min(1),
            _ => left.min(PIECE),
        }
    }

    /// Bytes that it takes itself while a piece of it is under way.
    pub fn cost(&self) -> u64 {
        let own = match &self.what {
            What::Discard(ranges) => ranges.len() * size_of::<(u64, u64)>(),
            What::Flush(of) => of.len() * 4,
            What::Zero { .. } => 0,
            _ => self.step() as usize,
        };
        (own + self.pieces.len() * size_of::<Piece>()) as u64
    }

    /// What is asked next.
    pub fn next(&self, memory: &Session<'_>) -> Next {
        let n = self.step();
        if n == 0 {
            return if self.durable && !self.flushed {
                Next::Ask(self.nsid, Request::Flush)
            } else {
                Next::End(Status::SUCCESS)
            };
        }
        let request = match &self.what {
            What::Read { at, .. } | What::Compare { at, .. } | What::Verify { at, .. } => {
                Request::Read { at: at + self.moved, len: n as usize }
            }
            What::Write { at, .. } => {
                let mut data = vec![0; n as usize];
                if !pieces::read(memory, &self.pieces, self.moved, &mut data) {
                    return Next::End(Status::DATA_TRANSFER);
                }
                Request::Write { at: at + self.moved, data }
            }
            What::Zero { at, len, unmap } => Request::Zero { at: *at, len: *len, unmap: *unmap },
            What::Discard(ranges) => match ranges.get(self.moved as usize) {
                Some((at, len)) => Request::Discard { at: *at, len: *len },
                None => return Next::End(Status::SUCCESS),
            },
            What::Flush(of) => match of.get(self.moved as usize) {
                Some(nsid) => return Next::Ask(*nsid, Request::Flush),
                None => return Next::End(Status::SUCCESS),
            },
        };
        Next::Ask(self.nsid, request)
    }

    /// What was asked has ended. How the command ends, if that is to be told now.
    pub fn advance(&mut self, memory: &Session<'_>, reply: Reply) -> Result<(), Status> {
        let data = match reply {
            Ok(data) => data,
            Err(why) => return Err(self.failed(why)),
        };
        let n = self.step();
        if n == 0 {
            self.flushed = true;
            return Ok(());
        }
        match self.what {
            What::Read { .. } if !pieces::write(memory, &self.pieces, self.moved, &data) => {
                return Err(Status::DATA_TRANSFER);
            }
            What::Compare { .. } => {
                let mut host = vec![0; data.len()];
                if !pieces::read(memory, &self.pieces, self.moved, &mut host) {
                    return Err(Status::DATA_TRANSFER);
                }
                if host != data {
                    return Err(Status::COMPARE);
                }
            }
            _ => {}
        }
        self.moved += n;
        Ok(())
    }

    fn failed(&self, why: DriveError) -> Status {
        match (why, &self.what) {
            (DriveError::Range, _) => Status::LBA_RANGE,
            (DriveError::ReadOnly, _) => Status::WRITE_PROTECTED,
            (DriveError::NoMedium, _) => Status::NOT_READY,
            (DriveError::NoSpace, _) => Status::CAPACITY,
            (DriveError::Io, What::Read { .. } | What::Compare { .. } | What::Verify { .. }) => {
                Status::READ_ERROR
            }
            (DriveError::Io, What::Flush(_)) => Status::INTERNAL,
            (DriveError::Io, _) => Status::WRITE_FAULT,
        }
    }

    /// Whether it can be one that was saved of a controller with these namespaces.
    pub fn is_sound(&self, namespaces: &[Namespace]) -> bool {
        let there = |nsid: u32| namespaces.iter().any(|n| n.nsid == nsid);
        let within = |at: u64, len: u64| at.checked_add(len).is_some();
        let placed = match &self.what {
            What::Read { at, len }
            | What::Write { at, len }
            | What::Compare { at, len }
            | What::Verify { at, len }
            | What::Zero { at, len, .. } => within(*at, *len),
            What::Discard(ranges) => ranges.len() <= 256 && ranges.iter().all(|(at, len)| within(*at, *len)),
            What::Flush(of) => of.iter().all(|n| there(*n)),
        };
        placed && self.moved <= self.len() && (matches!(self.what, What::Flush(_)) || there(self.nsid))
    }
}
