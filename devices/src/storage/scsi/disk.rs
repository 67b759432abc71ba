//! A disk's command set, SBC, as a pure model.
//!
//! Blocks are of 512 to 4,096 bytes. Deallocation is by UNMAP and WRITE SAME. On purpose absent: protection
//! information, reservations (which are granted to the one initiator there is), ATOMIC and COMPARE AND WRITE, XOR.
//!
//! Source: SBC-3, chapter 5 (commands) and 6 (parameters); SPC-3, 7.4 (mode pages).
use super::{Access, Outcome, Sense, cut, field, field64};
use mynah_block::{Drive, DriveError};
use serde::{Deserialize, Serialize};

/// Most descriptors of an UNMAP.
pub(super) const UNMAP_DESCRIPTORS: u32 = 255;
/// Most bytes of one, and of a WRITE SAME.
pub(super) const UNMAP_BYTES: u64 = 1 << 30;

/// Operation codes.
mod op {
    pub const TEST_UNIT_READY: u8 = 0x00;
    pub const REQUEST_SENSE: u8 = 0x03;
    pub const READ_6: u8 = 0x08;
    pub const WRITE_6: u8 = 0x0a;
    pub const INQUIRY: u8 = 0x12;
    pub const MODE_SELECT_6: u8 = 0x15;
    pub const RESERVE_6: u8 = 0x16;
    pub const RELEASE_6: u8 = 0x17;
    pub const MODE_SENSE_6: u8 = 0x1a;
    pub const START_STOP_UNIT: u8 = 0x1b;
    pub const PREVENT_ALLOW: u8 = 0x1e;
    pub const READ_CAPACITY_10: u8 = 0x25;
    pub const READ_10: u8 = 0x28;
    pub const WRITE_10: u8 = 0x2a;
    pub const SEEK_10: u8 = 0x2b;
    pub const WRITE_VERIFY_10: u8 = 0x2e;
    pub const VERIFY_10: u8 = 0x2f;
    pub const SYNCHRONIZE_10: u8 = 0x35;
    pub const WRITE_SAME_10: u8 = 0x41;
    pub const UNMAP: u8 = 0x42;
    pub const MODE_SELECT_10: u8 = 0x55;
    pub const MODE_SENSE_10: u8 = 0x5a;
    pub const READ_16: u8 = 0x88;
    pub const WRITE_16: u8 = 0x8a;
    pub const WRITE_VERIFY_16: u8 = 0x8e;
    pub const VERIFY_16: u8 = 0x8f;
    pub const SYNCHRONIZE_16: u8 = 0x91;
    pub const WRITE_SAME_16: u8 = 0x93;
    pub const SERVICE_ACTION_IN: u8 = 0x9e;
    pub const READ_12: u8 = 0xa8;
    pub const WRITE_12: u8 = 0xaa;
    pub const WRITE_VERIFY_12: u8 = 0xae;
    pub const VERIFY_12: u8 = 0xaf;
}

/// What does not change of a disk.
#[derive(Clone, Debug)]
pub struct Geometry {
    /// Bytes of a block, a power of two.
    pub block: u32,
    /// Bytes that are best written at once, a power of two.
    pub physical: u32,
    /// It can be taken out.
    pub removable: bool,
    /// Reads and writes may bypass the cache, and that is told.
    pub dpofua: bool,
}

/// A disk's registers.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Disk {
    sense: Sense,
    attention: Option<Sense>,
    /// It was started, or not stopped.
    started: bool,
}

impl Default for Disk {
    /// As after a reset.
    fn default() -> Self {
        Self { sense: Sense::NONE, attention: Some(Sense::RESET), started: true }
    }
}

/// A disk for the time of a command.
struct Command<'a> {
    drive: &'a Drive,
    geometry: &'a Geometry,
    cdb: [u8; 16],
}

impl Disk {
    /// There is another medium, or none.
    pub fn medium_changed(&mut self, removable: bool) {
        self.attention = Some(if removable { Sense::MEDIUM_CHANGED } else { Sense::CAPACITY_CHANGED });
    }

    /// The drive could not do what was asked of it for a command.
    pub fn failed(&mut self, why: DriveError, write: bool) -> Sense {
        self.sense = match why {
            DriveError::NoMedium => Sense::NO_MEDIUM,
            DriveError::Range => Sense::OUT_OF_RANGE,
            DriveError::ReadOnly => Sense::WRITE_PROTECTED,
            DriveError::NoSpace => Sense::NO_SPACE,
            DriveError::Io if write => Sense::WRITE_ERROR,
            DriveError::Io => Sense::READ_ERROR,
        };
        self.sense
    }

    /// A command, but INQUIRY and REPORT LUNS.
    pub fn command(&mut self, cdb: &[u8; 16], drive: &Drive, geometry: &Geometry) -> Outcome {
        let outcome = self.carry_out(&Command { drive, geometry, cdb: *cdb });
        self.note(outcome)
    }

    /// The parameters that a command has asked for.
    pub fn parameters(&mut self, cdb: &[u8; 16], data: &[u8], drive: &Drive, geometry: &Geometry) -> Outcome {
        let command = Command { drive, geometry, cdb: *cdb };
        let outcome = match cdb[0] {
            op::MODE_SELECT_6 => command.mode_select(data, 4, field::<1>(data, 3)),
            op::MODE_SELECT_10 => command.mode_select(data, 8, field::<2>(data, 6)),
            op::UNMAP => command.unmap(data),
            op::WRITE_SAME_10 | op::WRITE_SAME_16 => command.write_same(data),
            _ => Outcome::Done,
        };
        self.note(outcome)
    }

    fn note(&mut self, outcome: Outcome) -> Outcome {
        self.sense = if let Outcome::Check(sense) = &outcome { *sense } else { Sense::NONE };
        outcome
    }

    fn carry_out(&mut self, c: &Command<'_>) -> Outcome {
        let cdb = &c.cdb;
        let code = cdb[0];
        if !matches!(code, op::INQUIRY | op::REQUEST_SENSE)
            && let Some(attention) = self.attention.take()
        {
            return Outcome::Check(attention);
        }
        match code {
            op::REQUEST_SENSE => {
                let waits = self.sense == Sense::NONE;
                let sense = if waits { self.attention.take().unwrap_or_default() } else { self.sense };
                return cut(sense.fixed(), cdb[4].into());
            }
            op::MODE_SENSE_6 | op::MODE_SENSE_10 => return c.mode_sense(),
            op::MODE_SELECT_6 | op::MODE_SELECT_10 => {
                let len = if code == op::MODE_SELECT_6 { cdb[4].into() } else { field::<2>(cdb, 7) };
                // Pages in the format of the vendor, or to be saved.
                return match len as usize {
                    _ if cdb[1] & 0x11 != 0x10 => Outcome::Check(Sense::FIELD_IN_CDB),
                    0 => Outcome::Done,
                    len => Outcome::Parameters(len),
                };
            }
            op::RESERVE_6 | op::RELEASE_6 => return Outcome::Done,
            op::START_STOP_UNIT => return self.start_stop(c),
            op::PREVENT_ALLOW => {
                c.drive.lock(c.geometry.removable && cdb[4] & 1 != 0);
                return Outcome::Done;
            }
            _ => {}
        }
        if !needs_medium(code) {
            return Outcome::Check(Sense::OPERATION_CODE);
        }
        if c.drive.medium().is_none() || !self.started {
            return Outcome::Check(if c.drive.tray_open() { Sense::TRAY_OPEN } else { Sense::NO_MEDIUM });
        }
        c.with_medium()
    }

    fn start_stop(&mut self, c: &Command<'_>) -> Outcome {
        const START: u8 = 1 << 0;
        const LOAD_EJECT: u8 = 1 << 1;
        // A power condition, which changes nothing.
        if c.cdb[4] & 0xf0 != 0 || !c.geometry.removable {
            return Outcome::Done;
        }
        let start = c.cdb[4] & START != 0;
        if c.cdb[4] & LOAD_EJECT == 0 {
            self.started = start;
        } else if !start && c.drive.locked() {
            return Outcome::Check(Sense::REMOVAL_PREVENTED);
        } else {
            c.drive.set_tray_open(!start);
            self.started |= start;
        }
        Outcome::Done
    }
}

fn needs_medium(code: u8) -> bool {
    use op::*;
    matches!(
        code,
        TEST_UNIT_READY
            | READ_6
            | WRITE_6
            | READ_CAPACITY_10
            | READ_10
            | WRITE_10
            | SEEK_10
            | WRITE_VERIFY_10
            | VERIFY_10
            | SYNCHRONIZE_10
            | WRITE_SAME_10
            | UNMAP
            | READ_16
            | WRITE_16
            | WRITE_VERIFY_16
            | VERIFY_16
            | SYNCHRONIZE_16
            | WRITE_SAME_16
            | SERVICE_ACTION_IN
            | READ_12
            | WRITE_12
            | WRITE_VERIFY_12
            | VERIFY_12
    )
}

impl Command<'_> {
    fn block(&self) -> u64 {
        self.geometry.block.into()
    }

    fn blocks(&self) -> u64 {
        self.drive.size() / self.block()
    }

    /// The first block and how many, as the command's length has them.
    fn range(&self) -> (u64, u64) {
        let cdb = &self.cdb;
        match cdb[0] >> 5 {
            0 => {
                let n = if cdb[4] == 0 { 256 } else { u64::from(cdb[4]) };
                (u64::from(field::<3>(cdb, 1) & 0x1f_ffff), n)
            }
            1 | 2 => (field::<4>(cdb, 2).into(), field::<2>(cdb, 7).into()),
            4 => (field64(cdb, 2), field::<4>(cdb, 10).into()),
            _ => (field::<4>(cdb, 2).into(), field::<4>(cdb, 6).into()),
        }
    }

    /// The same in bytes, if the disk has them.
    fn place(&self) -> Option<(u64, u64)> {
        let (first, count) = self.range();
        first.checked_add(count).filter(|end| *end <= self.blocks())?;
        Some((first * self.block(), count * self.block()))
    }

    fn with_medium(&self) -> Outcome {
        use op::*;
        const FUA: u8 = 1 << 3;
        let cdb = &self.cdb;
        let last = self.blocks().saturating_sub(1);
        let check = Outcome::Check;
        match cdb[0] {
            READ_6 | READ_10 | READ_12 | READ_16 => self.moved(|at, len| Access::Read { at, len }),
            WRITE_6 | WRITE_10 | WRITE_12 | WRITE_16 | WRITE_VERIFY_10 | WRITE_VERIFY_12
            | WRITE_VERIFY_16 => {
                let plain = matches!(cdb[0], WRITE_10 | WRITE_12 | WRITE_16);
                let durable = if plain { cdb[1] & FUA != 0 } else { cdb[0] != WRITE_6 };
                self.change(|at, len| Access::Write { at, len, durable })
            }
            VERIFY_10 | VERIFY_12 | VERIFY_16 => match cdb[1] >> 1 & 3 {
                0 => self.moved(|at, len| Access::Verify { at, len }),
                1 => self.moved(|at, len| Access::Compare { at, len }),
                _ => check(Sense::FIELD_IN_CDB),
            },
            SYNCHRONIZE_10 | SYNCHRONIZE_16 => match self.place() {
                Some(_) => Outcome::Blocks(Access::Flush),
                None => check(Sense::OUT_OF_RANGE),
            },
            SEEK_10 if u64::from(field::<4>(cdb, 2)) > last => check(Sense::OUT_OF_RANGE),
            READ_CAPACITY_10 => {
                // A partial medium is told of by none.
                if cdb[8] & 1 == 0 && field::<4>(cdb, 2) != 0 {
                    return check(Sense::FIELD_IN_CDB);
                }
                let last = u32::try_from(last).unwrap_or(u32::MAX);
                Outcome::Data([last.to_be_bytes(), self.geometry.block.to_be_bytes()].concat())
            }
            SERVICE_ACTION_IN => self.service_action(last),
            UNMAP => match field::<2>(cdb, 7) as usize {
                _ if cdb[1] & 1 != 0 => check(Sense::FIELD_IN_CDB),
                _ if self.drive.read_only() => check(Sense::WRITE_PROTECTED),
                0 => Outcome::Done,
                len => Outcome::Parameters(len),
            },
            WRITE_SAME_10 | WRITE_SAME_16 => self.ask_same(),
            // The medium is there, and nothing is to be waited for.
            _ => Outcome::Done,
        }
    }

    /// Blocks are moved, or compared.
    fn moved(&self, access: impl Fn(u64, u64) -> Access) -> Outcome {
        match self.place() {
            None => Outcome::Check(Sense::OUT_OF_RANGE),
            // No protection information.
            _ if self.cdb[0] >> 5 != 0 && self.cdb[1] & 0xe0 != 0 => Outcome::Check(Sense::FIELD_IN_CDB),
            Some((_, 0)) => Outcome::Done,
            Some((at, len)) => Outcome::Blocks(access(at, len)),
        }
    }

    fn change(&self, access: impl Fn(u64, u64) -> Access) -> Outcome {
        if self.drive.read_only() { Outcome::Check(Sense::WRITE_PROTECTED) } else { self.moved(access) }
    }

    fn service_action(&self, last: u64) -> Outcome {
        const READ_CAPACITY_16: u8 = 0x10;
        if self.cdb[1] & 0x1f != READ_CAPACITY_16 {
            return Outcome::Check(Sense::FIELD_IN_CDB);
        }
        let mut data = vec![0; 32];
        data[..8].copy_from_slice(&last.to_be_bytes());
        data[8..12].copy_from_slice(&self.geometry.block.to_be_bytes());
        data[13] = (self.geometry.physical / self.geometry.block).trailing_zeros() as u8;
        // Blocks can be deallocated.
        data[14] = 0x80;
        cut(data, field::<4>(&self.cdb, 10))
    }

    /// The range of a WRITE SAME; no number of blocks means up to the end, which no such disk does.
    fn same_range(&self) -> Result<(u64, u64), Sense> {
        match self.place() {
            None => Err(Sense::OUT_OF_RANGE),
            Some((_, len)) if len == 0 || len > UNMAP_BYTES => Err(Sense::FIELD_IN_CDB),
            Some(range) => Ok(range),
        }
    }

    fn ask_same(&self) -> Outcome {
        const NO_DATA: u8 = 1 << 0;
        const UNMAP: u8 = 1 << 3;
        let cdb = &self.cdb;
        if self.drive.read_only() {
            return Outcome::Check(Sense::WRITE_PROTECTED);
        }
        match self.same_range() {
            Err(sense) => Outcome::Check(sense),
            // Anchored, physical or logical data, protection information.
            Ok(_) if cdb[1] & 0xf6 != 0 => Outcome::Check(Sense::FIELD_IN_CDB),
            Ok((at, len)) if cdb[1] & NO_DATA != 0 => {
                Outcome::Blocks(Access::Zero { at, len, unmap: cdb[1] & UNMAP != 0 })
            }
            Ok(_) => Outcome::Parameters(self.geometry.block as usize),
        }
    }

    fn write_same(&self, data: &[u8]) -> Outcome {
        const UNMAP: u8 = 1 << 3;
        match self.same_range() {
            Err(sense) => Outcome::Check(sense),
            Ok((at, len)) if data.iter().all(|b| *b == 0) => {
                Outcome::Blocks(Access::Zero { at, len, unmap: self.cdb[1] & UNMAP != 0 })
            }
            Ok((at, len)) => Outcome::Blocks(Access::Same { at, len, block: data.to_vec() }),
        }
    }

    /// UNMAP's parameter list (SBC-3, 5.28).
    fn unmap(&self, data: &[u8]) -> Outcome {
        const HEADER: usize = 8;
        const DESCRIPTOR: usize = 16;
        let len = field::<2>(data, 2) as usize;
        if data.len() < HEADER || data.len() < HEADER + len {
            return Outcome::Check(Sense::PARAMETER_LENGTH);
        }
        let descriptors = data[HEADER..HEADER + len].chunks_exact(DESCRIPTOR);
        if descriptors.len() > UNMAP_DESCRIPTORS as usize {
            return Outcome::Check(Sense::FIELD_IN_PARAMETERS);
        }
        let mut ranges = Vec::new();
        for d in descriptors {
            let (first, count) = (field64(d, 0), u64::from(field::<4>(d, 8)));
            if first.checked_add(count).is_none_or(|end| end > self.blocks()) {
                return Outcome::Check(Sense::OUT_OF_RANGE);
            }
            if count > 0 {
                ranges.push((first * self.block(), count * self.block()));
            }
        }
        if ranges.is_empty() { Outcome::Done } else { Outcome::Blocks(Access::Discard(ranges)) }
    }

    /// A mode page's parameters; `control` 1 asks what can be changed.
    fn page(&self, code: u8, control: u8) -> Option<Vec<u8>> {
        const CHANGEABLE: u8 = 1;
        const WRITE_CACHE: u8 = 1 << 2;
        let body = match (code, control) {
            (0x01, CHANGEABLE) => vec![0; 10],
            // Automatic reallocation on writes.
            (0x01, _) => [&[0x80][..], &[0; 9]].concat(),
            (0x04, CHANGEABLE) => vec![0; 22],
            (0x04, _) => {
                let cylinders = (self.drive.size() / 512 / (16 * 63)).clamp(2, 0xff_ffff) as u32;
                let mut body = vec![0; 22];
                body[..3].copy_from_slice(&cylinders.to_be_bytes()[1..]);
                body[3] = 16;
                for at in [4, 7] {
                    body[at..at + 3].copy_from_slice(&cylinders.to_be_bytes()[1..]);
                }
                // Turns in a minute.
                body[18..20].copy_from_slice(&5400_u16.to_be_bytes());
                body
            }
            (0x08, CHANGEABLE) => [&[WRITE_CACHE][..], &[0; 17]].concat(),
            (0x08, _) => {
                let on = if self.drive.write_cache() { WRITE_CACHE } else { 0 };
                [&[on][..], &[0; 17]].concat()
            }
            _ => return None,
        };
        Some([vec![code, body.len() as u8], body].concat())
    }

    fn mode_sense(&self) -> Outcome {
        let cdb = &self.cdb;
        let (code, control, short) = (cdb[2] & 0x3f, cdb[2] >> 6, cdb[0] == op::MODE_SENSE_6);
        if control == 3 {
            return Outcome::Check(Sense::NO_SAVING);
        }
        let pages: Vec<u8> = [0x01, 0x04, 0x08]
            .into_iter()
            .filter(|p| code == 0x3f || code == *p)
            .filter_map(|p| self.page(p, control))
            .flatten()
            .collect();
        if pages.is_empty() {
            return Outcome::Check(Sense::FIELD_IN_CDB);
        }
        let protected = if self.drive.read_only() { 0x80 } else { 0 };
        let specific = protected | if self.geometry.dpofua { 0x10 } else { 0 };
        // A block descriptor, unless none is wanted.
        let mut descriptor = Vec::new();
        if cdb[1] & 8 == 0 {
            let blocks = u32::try_from(self.blocks()).ok().filter(|n| *n < 1 << 24).unwrap_or(0);
            descriptor.extend(blocks.to_be_bytes());
            descriptor.extend(self.geometry.block.to_be_bytes());
            descriptor[0] = 0;
        }
        let body = [&descriptor[..], &pages].concat();
        if short {
            let head = [(body.len() + 3) as u8, 0, specific, descriptor.len() as u8];
            return cut([&head[..], &body].concat(), cdb[4].into());
        }
        let len = ((body.len() + 6) as u16).to_be_bytes();
        let head = [len[0], len[1], 0, specific, 0, 0, 0, descriptor.len() as u8];
        cut([&head[..], &body].concat(), field::<2>(cdb, 7))
    }

    /// Pages begin behind a header of so many bytes and block descriptors of so many.
    fn mode_select(&self, data: &[u8], header: usize, descriptors: u32) -> Outcome {
        let wrong = Outcome::Check(Sense::FIELD_IN_PARAMETERS);
        let Some(mut rest) = data.get(header + descriptors as usize..) else {
            return Outcome::Check(Sense::PARAMETER_LENGTH);
        };
        let mut cache = None;
        while let [code, len, body @ ..] = rest {
            let Some(body) = body.get(..usize::from(*len)) else {
                return Outcome::Check(Sense::PARAMETER_LENGTH);
            };
            let code = code & 0x3f;
            let (Some(now), Some(mask)) = (self.page(code, 0), self.page(code, 1)) else { return wrong };
            // What cannot be changed is as it is.
            let kept = |((new, now), mask): ((&u8, &u8), &u8)| (new ^ now) & !mask == 0;
            if now.len() != body.len() + 2 || !body.iter().zip(&now[2..]).zip(&mask[2..]).all(kept) {
                return wrong;
            }
            if code == 0x08 {
                cache = Some(body[0] & 4 != 0);
            }
            rest = &rest[2 + body.len()..];
        }
        match cache {
            Some(false) if self.drive.write_cache() => {
                self.drive.set_write_cache(false);
                // What was written so far is to be durable as well.
                Outcome::Blocks(Access::Flush)
            }
            Some(on) => {
                self.drive.set_write_cache(on);
                Outcome::Done
            }
            None => Outcome::Done,
        }
    }
}
