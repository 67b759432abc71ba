//! A request of virtio-scsi (5.6.6.1): what it asks for, and how far it is.
//!
//! ```text
//!   device reads:   unit 64 | tag 64 | attribute 8, priority 8, CRN 8 | command (cdb_size) | data out
//!   device writes:  sense length 32 | residual 32 | qualifier 16 | status 8 | response 8 | sense (sense_size) | data in
//! ```
use super::response;
use crate::dma::Session;
use crate::storage::scsi::bus::{Found, ScsiBus};
use crate::storage::scsi::cd::{self, Parts};
use crate::storage::scsi::unit::{Unit, padded};
use crate::storage::scsi::{Access, Outcome, Sense};
use crate::virtio::chain::{self, Broken, Chain};
use crate::virtio::core::Served;
use mynah_block::Request;
use serde::{Deserialize, Serialize};

/// Bytes before the command, and before the sense.
const HEAD: u64 = 19;
const RESPONSE: u64 = 12;
/// Statuses (SAM-3, 5.3).
const GOOD: u8 = 0;
const CHECK_CONDITION: u8 = 2;
/// Most bytes of parameters.
const PARAMETERS: u64 = 0x1_0000;

/// Target and unit of a LUN field, if it is one (5.6.6.1, single level).
pub fn address(lun: &[u8]) -> Option<(u8, u16)> {
    let number = u16::from_be_bytes([lun[2], lun[3]]);
    // Flat space, or peripheral addressing of bus 0.
    let number = match number >> 14 {
        1 => number & 0x3fff,
        0 if number < 256 => number,
        _ => return None,
    };
    (lun[0] == 1 && lun[4..8] == [0; 4]).then_some((lun[1], number))
}

/// The LUN field of a unit.
pub fn lun(target: u8, lun: u16) -> [u8; 8] {
    let [high, low] = (lun | 0x4000).to_be_bytes();
    [1, target, high, low, 0, 0, 0, 0]
}

/// What is moved or done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum What {
    Blocks(Access),
    /// Sectors of a CD, of which not the user's data alone.
    Sectors {
        lba: u32,
        count: u32,
        parts: Parts,
    },
}

/// A request that was taken out of the ring.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Task {
    chain: Chain,
    /// Its unit's target and number.
    pub unit: (u8, u16),
    pub tag: u64,
    cdb_size: u32,
    sense_size: u32,
    what: What,
    /// Bytes, sectors or ranges that are done.
    moved: u64,
    /// Bytes that were put into the initiator's buffers.
    given: u64,
    /// What was written was flushed.
    flushed: bool,
    /// It ends with this response, for a command of the control queue.
    pub aborted: Option<(u8, u64)>,
}

/// How a request ends that needs no drive.
pub enum End {
    Good,
    Check(Sense),
    Response(u8),
}

/// A request, and how it goes on.
pub enum Asked {
    Ended(Task, End),
    Task(Task),
}

impl End {
    /// # Errors
    /// There is no memory for it.
    pub fn tell(self, task: Task, served: &mut Served<'_, '_>) -> Result<(), Broken> {
        match self {
            End::Good => task.end_good(served),
            End::Check(sense) => task.end_check(served, sense),
            End::Response(response) => task.end(served, response),
        }
    }
}

/// What a chain asks for.
///
/// # Errors
/// It has no room for the parts that each request has.
pub fn parse(
    chain: Chain,
    memory: &Session<'_>,
    bus: &ScsiBus,
    cdb_size: usize,
    sense_size: usize,
) -> Result<Asked, Broken> {
    let mut head = vec![0; HEAD as usize + cdb_size];
    if !chain::read(memory, &chain.readable, 0, &mut head) {
        return Err(Broken("a request that is too short"));
    }
    if chain::total(&chain.writable) < RESPONSE + sense_size as u64 {
        return Err(Broken("a request with no room for its response"));
    }
    let tag = head[8..16].iter().rev().fold(0, |n, b| n << 8 | u64::from(*b));
    let mut task = Task {
        chain,
        unit: (0, 0),
        tag,
        cdb_size: cdb_size as u32,
        sense_size: sense_size as u32,
        what: What::Blocks(Access::Flush),
        moved: 0,
        given: 0,
        flushed: false,
        aborted: None,
    };
    let found = address(&head[..8]).map(|at| (at, bus.find(at.0, at.1)));
    let ((target, lun), unit, there) = match found {
        Some((at, Found::Unit(unit))) => (at, unit, true),
        Some((at, Found::Target(unit))) => (at, unit, false),
        _ => return Ok(Asked::Ended(task, End::Response(response::BAD_TARGET))),
    };
    task.unit = (target, lun);
    let cdb = padded(&head[HEAD as usize..]);
    let mut outcome = bus.command(&unit, there, &cdb);
    if let Outcome::Parameters(len) = outcome {
        let len = len as u64;
        if len > task.out_room() || len > PARAMETERS {
            return Ok(Asked::Ended(task, End::Response(response::OVERRUN)));
        }
        let mut data = vec![0; len as usize];
        if !chain::read(memory, &task.chain.readable, task.out_at(), &mut data) {
            return Ok(Asked::Ended(task, End::Check(Sense::INTERNAL)));
        }
        outcome = unit.parameters(&cdb, &data);
    }
    Ok(task.follow(outcome, memory))
}

impl Task {
    /// Where data to the device begin, and how many there are.
    fn out_at(&self) -> u64 {
        HEAD + u64::from(self.cdb_size)
    }

    fn out_room(&self) -> u64 {
        chain::total(&self.chain.readable).saturating_sub(self.out_at())
    }

    /// The same of data from the device.
    fn in_at(&self) -> u64 {
        RESPONSE + u64::from(self.sense_size)
    }

    fn in_room(&self) -> u64 {
        chain::total(&self.chain.writable).saturating_sub(self.in_at())
    }

    fn follow(mut self, outcome: Outcome, memory: &Session<'_>) -> Asked {
        self.what = match outcome {
            Outcome::Done | Outcome::Parameters(_) => return Asked::Ended(self, End::Good),
            Outcome::Check(sense) => return Asked::Ended(self, End::Check(sense)),
            Outcome::Data(data) => {
                let end = if data.len() as u64 > self.in_room() {
                    End::Response(response::OVERRUN)
                } else if chain::write(memory, &self.chain.writable, self.in_at(), &data) {
                    self.given = data.len() as u64;
                    End::Good
                } else {
                    End::Check(Sense::INTERNAL)
                };
                return Asked::Ended(self, end);
            }
            Outcome::Read { lba, sectors, parts } if parts == Parts::USER => What::Blocks(Access::Read {
                at: u64::from(lba) * cd::SECTOR,
                len: u64::from(sectors) * cd::SECTOR,
            }),
            Outcome::Read { lba, sectors, parts } => What::Sectors { lba, count: sectors, parts },
            Outcome::Blocks(access) => What::Blocks(access),
        };
        let fits = match &self.what {
            What::Blocks(Access::Read { len, .. }) => *len <= self.in_room(),
            What::Blocks(Access::Write { len, .. } | Access::Compare { len, .. }) => *len <= self.out_room(),
            What::Sectors { count, parts, .. } => u64::from(*count) * parts.len() as u64 <= self.in_room(),
            What::Blocks(_) => true,
        };
        if fits { Asked::Task(self) } else { Asked::Ended(self, End::Response(response::OVERRUN)) }
    }

    /// All of it, of what is counted by `moved`.
    fn len(&self) -> u64 {
        match &self.what {
            What::Blocks(access) => match access {
                Access::Read { len, .. }
                | Access::Write { len, .. }
                | Access::Compare { len, .. }
                | Access::Verify { len, .. }
                | Access::Zero { len, .. }
                | Access::Same { len, .. } => *len,
                Access::Discard(ranges) => ranges.len() as u64,
                Access::Flush => 1,
            },
            What::Sectors { count, .. } => (*count).into(),
        }
    }

    /// How much of it is done at once, with `most` bytes.
    fn step(&self, most: usize) -> u64 {
        let left = self.len().saturating_sub(self.moved);
        match &self.what {
            What::Blocks(Access::Zero { .. }) => left,
            What::Blocks(Access::Discard(_) | Access::Flush) => left.min(1),
            What::Blocks(Access::Same { block, .. }) => {
                left.min((most / block.len().max(1)).max(1) as u64 * block.len() as u64)
            }
            What::Blocks(_) => left.min(most as u64),
            What::Sectors { .. } => left.min(most as u64 / cd::SECTOR),
        }
    }

    /// Bytes that it takes while a piece of it is under way.
    pub fn cost(&self, most: usize) -> usize {
        let own = match &self.what {
            What::Blocks(Access::Zero { .. } | Access::Flush) => 0,
            What::Blocks(Access::Discard(ranges)) => ranges.len() * 16,
            What::Blocks(_) => self.step(most) as usize,
            What::Sectors { .. } => self.step(most) as usize * cd::SECTOR as usize,
        };
        own + self.chain.cost()
    }

    /// Whether it changes the medium.
    pub fn writes(&self) -> bool {
        use Access::*;
        matches!(self.what, What::Blocks(Write { .. } | Zero { .. } | Same { .. } | Discard(_) | Flush))
    }

    /// What is asked of the drive next; none if all is done.
    pub fn next(&self, memory: &Session<'_>, most: usize, unit: &Unit) -> Result<Option<Request>, Sense> {
        let n = self.step(most);
        if n == 0 {
            let durable = matches!(self.what, What::Blocks(Access::Write { durable: true, .. }));
            return Ok((durable && !self.flushed && unit.drive.write_cache()).then_some(Request::Flush));
        }
        let from = self.moved;
        Ok(Some(match &self.what {
            What::Sectors { lba, .. } => Request::Read {
                at: (u64::from(*lba) + from) * cd::SECTOR,
                len: n as usize * cd::SECTOR as usize,
            },
            What::Blocks(access) => match access {
                Access::Read { at, .. } | Access::Compare { at, .. } | Access::Verify { at, .. } => {
                    Request::Read { at: at + from, len: n as usize }
                }
                Access::Write { at, .. } => {
                    let mut data = vec![0; n as usize];
                    if !chain::read(memory, &self.chain.readable, self.out_at() + from, &mut data) {
                        return Err(Sense::INTERNAL);
                    }
                    Request::Write { at: at + from, data }
                }
                Access::Same { at, block, .. } => {
                    let times = n as usize / block.len().max(1);
                    Request::Write { at: at + from, data: block.repeat(times) }
                }
                Access::Zero { at, len, unmap } => Request::Zero { at: *at, len: *len, unmap: *unmap },
                Access::Discard(ranges) => match ranges.get(from as usize) {
                    Some((at, len)) => Request::Discard { at: *at, len: *len },
                    None => return Ok(None),
                },
                Access::Flush => Request::Flush,
            },
        }))
    }

    /// A piece has ended well.
    ///
    /// # Errors
    /// What was read does not fit, or is not the same.
    pub fn advance(&mut self, memory: &Session<'_>, data: &[u8], most: usize) -> Result<(), Sense> {
        let n = self.step(most);
        if n == 0 {
            self.flushed = true;
            return Ok(());
        }
        match &self.what {
            What::Blocks(Access::Read { .. }) => {
                if !chain::write(memory, &self.chain.writable, self.in_at() + self.given, data) {
                    return Err(Sense::INTERNAL);
                }
                self.given += data.len() as u64;
            }
            What::Blocks(Access::Compare { .. }) => {
                let mut host = vec![0; data.len()];
                if !chain::read(memory, &self.chain.readable, self.out_at() + self.moved, &mut host) {
                    return Err(Sense::INTERNAL);
                }
                if host != data {
                    return Err(Sense::MISCOMPARE);
                }
            }
            What::Sectors { lba, parts, .. } => {
                let first = lba.wrapping_add(self.moved as u32);
                let sectors = data.chunks_exact(cd::SECTOR as usize).zip(first..);
                let raw: Vec<u8> =
                    sectors.flat_map(|(user, lba)| cd::sector_parts(*parts, lba, user)).collect();
                if !chain::write(memory, &self.chain.writable, self.in_at() + self.given, &raw) {
                    return Err(Sense::INTERNAL);
                }
                self.given += raw.len() as u64;
            }
            What::Blocks(_) => {}
        }
        self.moved += n;
        Ok(())
    }

    /// Gives the chain back: all went well.
    ///
    /// # Errors
    /// There is no memory for it.
    pub fn end_good(self, served: &mut Served<'_, '_>) -> Result<(), Broken> {
        let out = match &self.what {
            What::Blocks(Access::Write { .. } | Access::Compare { .. }) => self.moved,
            // Parameters were taken whole.
            _ => self.out_room(),
        };
        let residual =
            (self.in_room() - self.given.min(self.in_room())) + (self.out_room() - out.min(self.out_room()));
        let given = self.given;
        self.respond(served, residual, GOOD, response::OK, &[], given)
    }

    /// The same with CHECK CONDITION.
    ///
    /// # Errors
    /// There is no memory for it.
    pub fn end_check(self, served: &mut Served<'_, '_>, sense: Sense) -> Result<(), Broken> {
        let residual = self.in_room() + self.out_room();
        self.respond(served, residual, CHECK_CONDITION, response::OK, &sense.fixed(), 0)
    }

    /// The same with a response of the adapter's own.
    ///
    /// # Errors
    /// There is no memory for it.
    pub fn end(self, served: &mut Served<'_, '_>, response: u8) -> Result<(), Broken> {
        self.respond(served, 0, GOOD, response, &[], 0)
    }

    fn respond(
        self,
        served: &mut Served<'_, '_>,
        residual: u64,
        status: u8,
        response: u8,
        sense: &[u8],
        data: u64,
    ) -> Result<(), Broken> {
        let sense = &sense[..sense.len().min(self.sense_size as usize)];
        let mut bytes = Vec::with_capacity(self.in_at() as usize);
        bytes.extend((sense.len() as u32).to_le_bytes());
        bytes.extend(u32::try_from(residual).unwrap_or(u32::MAX).to_le_bytes());
        bytes.extend([0, 0, status, response]);
        bytes.extend(sense);
        bytes.resize(self.in_at() as usize, 0);
        if !chain::write(served.memory, &self.chain.writable, 0, &bytes) {
            return Err(Broken("a response that is not in memory"));
        }
        served.done(self.chain.head, u32::try_from(self.in_at() + data).unwrap_or(u32::MAX))
    }

    /// Whether it can be one that was saved.
    pub fn is_sound(&self) -> bool {
        let within = |at: u64, len: u64| at.checked_add(len).is_some();
        let placed = match &self.what {
            What::Blocks(access) => match access {
                Access::Read { at, len } | Access::Compare { at, len } | Access::Verify { at, len } => {
                    within(*at, *len)
                }
                Access::Write { at, len, .. } | Access::Zero { at, len, .. } => within(*at, *len),
                Access::Same { at, len, block } => {
                    within(*at, *len) && (1..=4096).contains(&block.len()) && *len % block.len() as u64 == 0
                }
                Access::Discard(ranges) => ranges.iter().all(|(at, len)| within(*at, *len)),
                Access::Flush => true,
            },
            What::Sectors { parts, .. } => !parts.is_empty(),
        };
        placed
            && self.chain.is_sound()
            && self.moved <= self.len()
            && self.given <= chain::total(&self.chain.writable)
            && (1..=256).contains(&self.cdb_size)
            && self.sense_size <= 256
            && chain::total(&self.chain.writable) >= self.in_at()
    }
}
