//! The controller as a pure model: registers, commands, results. What it wants of a drive and of the guest's memory it
//! says by its [`Exec`]; who has it carries that out.
use super::format::{Format, SECTOR};
use crate::device::Invalid;
use mynah_block::Request;
use serde::{Deserialize, Serialize};

/// Drives that there may be; a controller has wires for four.
pub const DRIVES: usize = 2;

/// The main status register (82077AA, 2.1.4).
mod msr {
    pub const RQM: u8 = 1 << 7;
    pub const DIO: u8 = 1 << 6;
    pub const NON_DMA: u8 = 1 << 5;
    pub const BUSY: u8 = 1 << 4;
}

/// The digital output register (2.1.2).
mod dor {
    pub const NOT_RESET: u8 = 1 << 2;
    pub const DMA_GATE: u8 = 1 << 3;
}

/// Status registers 0 to 2 (4.0).
mod st {
    pub const ABNORMAL: u8 = 1 << 6;
    pub const INVALID: u8 = 1 << 7;
    pub const SEEK_END: u8 = 1 << 5;
    pub const EQUIPMENT: u8 = 1 << 4;
    pub const END_OF_CYLINDER: u8 = 1 << 7;
    pub const DATA_ERROR: u8 = 1 << 5;
    pub const NO_DATA: u8 = 1 << 2;
    pub const NOT_WRITABLE: u8 = 1 << 1;
    pub const MISSING_ADDRESS: u8 = 1 << 0;
    pub const CONTROL_MARK: u8 = 1 << 6;
    pub const DATA_ERROR_IN_DATA: u8 = 1 << 5;
}

/// A sector's size code for 512 bytes.
const N512: u8 = 2;
/// CONFIGURE's second byte: FIFO off, polling on (5.2.7), after a reset.
const CONFIG: u8 = 0x20;

/// What is in a drive.
#[derive(Clone, Copy, Debug)]
pub struct Media {
    pub format: Format,
    /// Bytes of the image, which may have fewer than the format.
    pub size: u64,
    pub protected: bool,
}

/// A place for a drive, as the controller sees it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Place {
    /// There is a drive.
    pub drive: bool,
    /// There is a medium in it.
    pub media: Option<Media>,
}

pub type Places = [Place; DRIVES];

/// What is done to sectors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Op {
    Read,
    Write,
    Verify,
    Format,
}

/// Whose turn it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Stage {
    /// The drive's.
    Drive,
    /// The guest's, by DMA or at the data port.
    Guest,
}

/// A transfer in progress: sectors of one track at a time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exec {
    pub op: Op,
    pub stage: Stage,
    /// By DMA.
    pub dma: bool,
    pub drive: u8,
    format: Format,
    size: u64,
    /// The first sector of this run, and how many it has.
    cylinder: u8,
    head: u8,
    sector: u8,
    run: u8,
    /// The last sector of a track.
    eot: u8,
    /// Both heads.
    multi: bool,
    /// Status 2 of a normal end.
    st2: u8,
    /// One sector, and no more.
    single: bool,
    /// The guest has said that this is the end.
    terminal: bool,
    /// What a format fills sectors with.
    filler: u8,
    #[serde(with = "serde_bytes")]
    pub buffer: Vec<u8>,
    /// Bytes of the buffer that the guest has given or taken.
    pub pos: usize,
}

impl Exec {
    /// Whether the guest takes data.
    pub fn reads(&self) -> bool {
        self.op == Op::Read
    }

    /// Begins a run at the present sector; false if there is no such sector.
    fn begin(&mut self) -> bool {
        if self.sector > self.eot || self.format.offset(self.cylinder, self.head, self.sector).is_none() {
            return false;
        }
        let last = self.eot.min(self.format.sectors);
        self.run = if self.single { 1 } else { last - self.sector + 1 };
        self.pos = 0;
        self.buffer.clear();
        self.stage = Stage::Drive;
        if self.op == Op::Write {
            self.buffer.resize(usize::from(self.run) * SECTOR, 0);
            self.stage = Stage::Guest;
        }
        true
    }

    /// Behind `done` sectors of the run, as the result phase tells it (82077AA, table 5-4); whether the transfer may go
    /// on there.
    fn advance(&mut self, done: u8) -> bool {
        self.sector = self.sector.saturating_add(done);
        // With both heads, a track's last sector leads on where EOT is beyond it, to the next cylinder too: no sector
        // would be found by a real controller, but QEMU goes on, and SeaBIOS' INT 13h relies on that.
        let beyond = self.multi && self.eot > self.format.sectors;
        let last = if beyond { self.format.sectors } else { self.eot };
        if self.sector <= last {
            return !self.single;
        }
        self.sector = 1;
        if self.multi && self.head == 0 && self.format.heads > 1 {
            self.head = 1;
            return !self.single;
        }
        if self.multi {
            self.head = 0;
        }
        self.cylinder = self.cylinder.wrapping_add(1);
        beyond && !self.single
    }

    /// What the drive is to do now; none if there is nothing of this in the image.
    fn request(&self) -> Option<Request> {
        let sector = if self.op == Op::Format { 1 } else { self.sector };
        let at = self.format.offset(self.cylinder, self.head, sector)?;
        match self.op {
            Op::Write => Some(Request::Write { at, data: self.buffer.clone() }),
            Op::Format => {
                let len = usize::from(self.format.sectors) * SECTOR;
                Some(Request::Write { at, data: vec![self.filler; len] })
            }
            Op::Read | Op::Verify => {
                let len = (u64::from(self.run) * SECTOR as u64).min(self.size.saturating_sub(at));
                (len > 0).then_some(Request::Read { at, len: len as usize })
            }
        }
    }

    fn check(&self) -> Result<(), Invalid> {
        let most = usize::from(self.format.sectors) * SECTOR;
        let bad = usize::from(self.drive) >= DRIVES
            || self.format.sectors == 0
            || self.buffer.len() > most.max(4 * 255)
            || self.pos > self.buffer.len()
            || self.sector == 0
            || self.cylinder >= self.format.tracks
            || self.head >= self.format.heads
            || usize::from(self.run) * SECTOR > most
            || (self.stage == Stage::Guest && self.pos == self.buffer.len())
            || (self.op == Op::Verify && self.stage == Stage::Guest);
        if bad { Err(Invalid("the floppy controller's transfer")) } else { Ok(()) }
    }
}

/// A drive's own registers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// Where the head is.
    pub track: u8,
    head: u8,
    /// The medium may be another one: until the head moves with one in the drive.
    pub changed: bool,
}

impl Default for Head {
    fn default() -> Self {
        Self { track: 0, head: 0, changed: true }
    }
}

/// The controller.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Controller {
    dor: u8,
    tape: u8,
    dsr: u8,
    config: u8,
    precomp: u8,
    locked: bool,
    non_dma: bool,
    timers: [u8; 2],
    perpendicular: u8,
    last_eot: u8,
    pub heads: [Head; DRIVES],
    /// The command's bytes that have come.
    command: Vec<u8>,
    /// The result's bytes that are left.
    result: Vec<u8>,
    pub exec: Option<Exec>,
    pub interrupt: bool,
    /// Status 0 of seeks that have ended and were not asked for.
    seeks: [Option<u8>; 4],
    /// How many drives are still to tell that they are ready after a reset.
    resets: u8,
}

impl Default for Controller {
    fn default() -> Self {
        Self {
            dor: dor::NOT_RESET | dor::DMA_GATE,
            tape: 0,
            dsr: 2,
            config: CONFIG,
            precomp: 0,
            locked: false,
            non_dma: false,
            timers: [0; 2],
            perpendicular: 0,
            last_eot: 0,
            heads: Default::default(),
            command: Vec::new(),
            result: Vec::new(),
            exec: None,
            interrupt: false,
            seeks: [None; 4],
            resets: 0,
        }
    }
}

/// Commands: the bits that tell it, their values, and how many bytes follow (82077AA, table 5-1; QEMU's for the rest).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Command {
    Read,
    ReadDeleted,
    ReadTrack,
    Write,
    Verify,
    Format,
    Scan,
    ReadId,
    Recalibrate,
    Seek,
    StepOut,
    StepIn,
    SenseInterrupt,
    SenseDrive,
    Specify,
    Configure,
    Perpendicular,
    DumpRegisters,
    Version,
    PartId,
    Lock,
    Ignored,
    Refused,
}

const COMMANDS: [(u8, u8, usize, Command); 29] = [
    (0x1f, 0x06, 8, Command::Read),
    (0x1f, 0x05, 8, Command::Write),
    (0x1f, 0x0c, 8, Command::ReadDeleted),
    (0x3f, 0x09, 8, Command::Write),
    (0x9f, 0x02, 8, Command::ReadTrack),
    (0x1f, 0x16, 8, Command::Verify),
    (0xbf, 0x0d, 5, Command::Format),
    (0x1f, 0x11, 8, Command::Scan),
    (0x1f, 0x19, 8, Command::Scan),
    (0x1f, 0x1d, 8, Command::Scan),
    (0xbf, 0x0a, 1, Command::ReadId),
    (0xff, 0x07, 1, Command::Recalibrate),
    (0xff, 0x0f, 2, Command::Seek),
    (0xff, 0x8f, 2, Command::StepOut),
    (0xff, 0xcf, 2, Command::StepIn),
    (0xff, 0x08, 0, Command::SenseInterrupt),
    (0xff, 0x04, 1, Command::SenseDrive),
    (0xff, 0x03, 2, Command::Specify),
    (0xff, 0x13, 3, Command::Configure),
    (0xff, 0x12, 1, Command::Perpendicular),
    (0xff, 0x0e, 0, Command::DumpRegisters),
    (0xff, 0x10, 0, Command::Version),
    (0xff, 0x18, 0, Command::PartId),
    (0x7f, 0x14, 0, Command::Lock),
    // OPTION, DRIVE SPECIFICATION, POWERDOWN MODE.
    (0xff, 0x33, 1, Command::Ignored),
    (0xff, 0x8e, 5, Command::Ignored),
    (0xff, 0x17, 2, Command::Ignored),
    (0xff, 0xcd, 5, Command::Refused),
    (0x00, 0x00, 0, Command::Refused),
];

fn decode(byte: u8) -> (usize, Command) {
    let found = COMMANDS.iter().find(|(mask, value, ..)| byte & mask == *value);
    found.map_or((0, Command::Refused), |c| (c.2, c.3))
}

impl Controller {
    /// The drive that is selected.
    fn selected(&self) -> usize {
        usize::from(self.dor & 3)
    }

    /// A reset by the DOR or the DSR: the drives' heads stay where they are.
    fn reset(&mut self) {
        let old = std::mem::take(self);
        (self.dor, self.tape, self.dsr, self.heads) = (old.dor, old.tape, old.dsr, old.heads);
        (self.timers, self.non_dma, self.perpendicular) = (old.timers, old.non_dma, old.perpendicular);
        if old.locked {
            (self.config, self.precomp, self.locked) = (old.config, old.precomp, true);
        }
    }

    /// The end of a reset: drives tell one after the other that they are ready.
    fn come_out_of_reset(&mut self) {
        self.raise();
        self.resets = 4;
    }

    fn raise(&mut self) {
        self.interrupt = true;
        self.resets = 0;
    }

    pub fn write_dor(&mut self, value: u8) {
        let before = std::mem::replace(&mut self.dor, value);
        match (before & dor::NOT_RESET != 0, value & dor::NOT_RESET != 0) {
            (true, false) => self.reset(),
            (false, true) => self.come_out_of_reset(),
            _ => {}
        }
    }

    pub fn write_dsr(&mut self, value: u8) {
        self.dsr = value & 0x7f;
        if value & 0x80 != 0 && self.dor & dor::NOT_RESET != 0 {
            self.reset();
            self.come_out_of_reset();
        }
    }

    pub fn write_rate(&mut self, value: u8) {
        self.dsr = self.dsr & !3 | value & 3;
    }

    pub fn write_tape(&mut self, value: u8) {
        self.tape = value & 3;
    }

    pub fn tape(&self) -> u8 {
        self.tape
    }

    pub fn dor(&self) -> u8 {
        self.dor
    }

    /// Status register B (PS/2): which motors turn.
    pub fn status_b(&self) -> u8 {
        0xc0 | (self.dor & 1) << 5 | self.dor >> 4 & 3
    }

    /// The digital input register: the selected drive's change line.
    pub fn digital_input(&self, places: &Places) -> u8 {
        let n = self.selected();
        let steady = places.get(n).is_some_and(|p| p.drive) && !self.heads[n].changed;
        if steady { 0 } else { 0x80 }
    }

    pub fn main_status(&self) -> u8 {
        if self.dor & dor::NOT_RESET == 0 {
            return 0;
        }
        if let Some(exec) = &self.exec {
            let turn = match (exec.dma, exec.stage, exec.reads()) {
                (true, ..) => 0,
                (false, Stage::Drive, _) => msr::NON_DMA,
                (false, Stage::Guest, true) => msr::NON_DMA | msr::RQM | msr::DIO,
                (false, Stage::Guest, false) => msr::NON_DMA | msr::RQM,
            };
            return msr::BUSY | turn;
        }
        if !self.result.is_empty() {
            return msr::RQM | msr::DIO | msr::BUSY;
        }
        msr::RQM | if self.command.is_empty() { 0 } else { msr::BUSY }
    }

    /// The data port is read.
    pub fn read_data(&mut self) -> u8 {
        if self.dor & dor::NOT_RESET == 0 {
            return 0;
        }
        if let Some(exec) = &mut self.exec {
            if exec.dma || !exec.reads() || exec.stage == Stage::Drive {
                return 0;
            }
            self.interrupt = false;
            let byte = exec.buffer.get(exec.pos).copied().unwrap_or(0);
            self.moved(1, false);
            return byte;
        }
        if self.result.is_empty() {
            return 0;
        }
        self.interrupt = self.seeks.iter().any(Option::is_some);
        self.result.remove(0)
    }

    /// The data port is written.
    pub fn write_data(&mut self, value: u8, places: &Places) {
        if self.dor & dor::NOT_RESET == 0 {
            return;
        }
        if let Some(exec) = &mut self.exec {
            if !exec.dma && !exec.reads() && exec.stage == Stage::Guest {
                self.interrupt = false;
                if let Some(byte) = exec.buffer.get_mut(exec.pos) {
                    *byte = value;
                }
                self.moved(1, false);
            }
            return;
        }
        if !self.result.is_empty() {
            return;
        }
        self.command.push(value);
        let (following, command) = decode(self.command[0]);
        if self.command.len() > following {
            let bytes = std::mem::take(&mut self.command);
            self.carry_out(command, &bytes, places);
        }
    }

    fn carry_out(&mut self, command: Command, bytes: &[u8], places: &Places) {
        let arg = |n: usize| bytes.get(n).copied().unwrap_or(0);
        let drive = usize::from(arg(1) & 3);
        match command {
            Command::Read | Command::ReadDeleted | Command::ReadTrack => {
                self.transfer(Op::Read, command, bytes, places);
            }
            Command::Write => self.transfer(Op::Write, command, bytes, places),
            Command::Verify => self.transfer(Op::Verify, command, bytes, places),
            Command::Format => self.format(bytes, places),
            Command::ReadId => self.read_id(bytes, places),
            Command::Recalibrate => self.seek(drive, 0, 0, places),
            Command::Seek => self.seek(drive, arg(1) >> 2 & 1, arg(2), places),
            Command::StepOut | Command::StepIn => {
                let now = self.heads.get(drive).map_or(0, |h| h.track);
                let by = arg(2);
                let to =
                    if command == Command::StepIn { now.saturating_add(by) } else { now.saturating_sub(by) };
                self.seek(drive, arg(1) >> 2 & 1, to, places);
            }
            Command::SenseInterrupt => self.sense_interrupt(),
            Command::SenseDrive => self.sense_drive(arg(1), places),
            Command::Specify => {
                self.timers = [arg(1), arg(2) >> 1];
                self.non_dma = arg(2) & 1 != 0;
            }
            Command::Configure => (self.config, self.precomp) = (arg(2), arg(3)),
            Command::Perpendicular => {
                // The drives' bits are taken if bit 7 (OW) says so.
                let kept = if arg(1) & 0x80 != 0 { arg(1) & 0x3c } else { self.perpendicular & 0x3c };
                self.perpendicular = kept | arg(1) & 3;
            }
            Command::DumpRegisters => {
                self.result = vec![
                    self.heads[0].track,
                    self.heads[1].track,
                    0,
                    0,
                    self.timers[0],
                    self.timers[1] << 1 | u8::from(self.non_dma),
                    self.last_eot,
                    u8::from(self.locked) << 7 | self.perpendicular,
                    self.config,
                    self.precomp,
                ];
            }
            Command::Version => self.result = vec![0x90],
            Command::PartId => self.result = vec![0x41],
            Command::Lock => {
                self.locked = arg(0) & 0x80 != 0;
                self.result = vec![u8::from(self.locked) << 4];
            }
            Command::Ignored => {}
            Command::Scan | Command::Refused => self.result = vec![st::INVALID],
        }
    }

    fn seek(&mut self, drive: usize, head: u8, track: u8, places: &Places) {
        let mut st0 = st::SEEK_END | head << 2 | drive as u8;
        match self.heads.get_mut(drive).filter(|_| places.get(drive).is_some_and(|p| p.drive)) {
            Some(unit) => {
                unit.head = head;
                // A drive has no more than some 84 tracks to step over; where the head is told to be it is thought to
                // be.
                if std::mem::replace(&mut unit.track, track) != track && places[drive].media.is_some() {
                    unit.changed = false;
                }
            }
            // Track 0 never comes.
            None => st0 |= st::ABNORMAL | st::EQUIPMENT,
        }
        self.seeks[drive & 3] = Some(st0);
        self.raise();
    }

    fn sense_interrupt(&mut self) {
        if self.resets > 0 {
            let drive = 4 - self.resets;
            self.resets -= 1;
            self.interrupt = false;
            let track = self.heads.get(usize::from(drive)).map_or(0, |h| h.track);
            self.result = vec![0xc0 | drive, track];
            return;
        }
        let Some(drive) = (0..4).find(|n| self.seeks[*n].is_some()) else {
            self.result = vec![st::INVALID];
            return;
        };
        let st0 = self.seeks[drive].take().unwrap_or(0);
        self.interrupt = self.seeks.iter().any(Option::is_some);
        self.result = vec![st0, self.heads.get(drive).map_or(0, |h| h.track)];
    }

    fn sense_drive(&mut self, which: u8, places: &Places) {
        let n = usize::from(which & 3);
        // Ready, two sides.
        let mut st3 = 0x28 | which & 7;
        match (places.get(n), self.heads.get(n)) {
            (Some(place), Some(head)) if place.drive => {
                st3 |= u8::from(head.track == 0) << 4;
                // Without a medium the sensor sees what it sees with one that is protected.
                st3 |= u8::from(place.media.is_none_or(|m| m.protected)) << 6;
            }
            _ => {}
        }
        self.result = vec![st3];
    }

    /// The medium of a drive, if the controller can read it as it is set; else status 1.
    fn readable(&self, drive: usize, places: &Places) -> Result<Media, u8> {
        let media = places.get(drive).and_then(|p| p.media).ok_or(st::MISSING_ADDRESS)?;
        if media.format.rate == self.dsr & 3 { Ok(media) } else { Err(st::MISSING_ADDRESS) }
    }

    fn transfer(&mut self, op: Op, command: Command, bytes: &[u8], places: &Places) {
        let (drive, cylinder, head, mut sector, eot) = (bytes[1] & 3, bytes[2], bytes[3], bytes[4], bytes[6]);
        self.last_eot = eot;
        let id = [cylinder, head, sector, bytes[5]];
        let media = match self.readable(drive.into(), places) {
            Ok(media) => media,
            Err(st1) => return self.end(bytes[1] & 7, st::ABNORMAL, st1, 0, id),
        };
        if op == Op::Write && media.protected {
            return self.end(bytes[1] & 7, st::ABNORMAL, st::NOT_WRITABLE, 0, id);
        }
        let track = command == Command::ReadTrack;
        if track {
            sector = 1;
        }
        // What is written as usual is no deleted data: one sector of it is read and told of, or all are skipped.
        let deleted = command == Command::ReadDeleted;
        let skipped = deleted && bytes[0] & 0x20 != 0;
        let mut exec = Exec {
            op,
            stage: Stage::Drive,
            dma: self.dor & dor::DMA_GATE != 0 && !self.non_dma,
            drive,
            format: media.format,
            size: media.size,
            cylinder,
            head,
            sector,
            run: 0,
            eot,
            multi: bytes[0] & 0x80 != 0 && !track,
            st2: if deleted { st::CONTROL_MARK } else { 0 },
            single: deleted,
            terminal: false,
            filler: 0,
            buffer: Vec::new(),
            pos: 0,
        };
        if bytes[5] != N512 || skipped || !exec.begin() {
            let st2 = if skipped { st::CONTROL_MARK } else { 0 };
            return self.end(bytes[1] & 7, st::ABNORMAL, st::NO_DATA, st2, id);
        }
        // The head goes there by itself, as QEMU's does whether or not implied seeks are on.
        let unit = &mut self.heads[usize::from(drive)];
        unit.head = head;
        if std::mem::replace(&mut unit.track, cylinder) != cylinder {
            unit.changed = false;
        }
        self.exec = Some(exec);
        self.turn();
    }

    fn format(&mut self, bytes: &[u8], places: &Places) {
        let (drive, head) = (bytes[1] & 3, bytes[1] >> 2 & 1);
        let track = self.heads.get(usize::from(drive)).map_or(0, |h| h.track);
        let id = [track, head, bytes[3], bytes[2]];
        let st1 = match self.readable(drive.into(), places) {
            Err(st1) => st1,
            Ok(media) if media.protected => st::NOT_WRITABLE,
            // An image has no room for another layout.
            Ok(media)
                if bytes[2] != N512
                    || bytes[3] != media.format.sectors
                    || media.format.offset(track, head, 1).is_none() =>
            {
                st::NO_DATA
            }
            Ok(media) => {
                self.exec = Some(Exec {
                    op: Op::Format,
                    stage: Stage::Guest,
                    dma: self.dor & dor::DMA_GATE != 0 && !self.non_dma,
                    drive,
                    format: media.format,
                    size: media.size,
                    cylinder: track,
                    head,
                    sector: 1,
                    run: 0,
                    eot: media.format.sectors,
                    multi: false,
                    st2: 0,
                    single: false,
                    terminal: false,
                    filler: bytes[5],
                    buffer: vec![0; 4 * usize::from(bytes[3])],
                    pos: 0,
                });
                return self.turn();
            }
        };
        self.end(bytes[1] & 7, st::ABNORMAL, st1, 0, id);
    }

    fn read_id(&mut self, bytes: &[u8], places: &Places) {
        let (n, head) = (usize::from(bytes[1] & 3), bytes[1] >> 2 & 1);
        let track = self.heads.get(n).map_or(0, |h| h.track);
        let (st0, st1) = match self.readable(n, places) {
            Ok(media) if media.format.offset(track, head, 1).is_some() => (0, 0),
            Ok(_) => (st::ABNORMAL, st::MISSING_ADDRESS),
            Err(st1) => (st::ABNORMAL, st1),
        };
        self.end(bytes[1] & 7, st0, st1, 0, [track, head, 1, N512]);
    }

    /// The result phase of a command that has transferred, or was to.
    fn end(&mut self, which: u8, st0: u8, st1: u8, st2: u8, id: [u8; 4]) {
        self.exec = None;
        self.result = vec![st0 | which, st1, st2];
        self.result.extend(id);
        self.raise();
    }

    /// It is the guest's turn at the data port: it is told so.
    fn turn(&mut self) {
        if self.exec.as_ref().is_some_and(|e| !e.dma && e.stage == Stage::Guest) {
            self.raise();
        }
    }

    /// What the drive is to do now, if it is its turn; none in it: the answer is that there is nothing.
    pub fn request(&self) -> Option<Option<Request>> {
        self.exec.as_ref().filter(|e| e.stage == Stage::Drive).map(Exec::request)
    }

    /// The drive has done what [`Controller::request`] asked for.
    pub fn answered(&mut self, reply: Result<Vec<u8>, ()>) {
        let Some(exec) = self.exec.as_mut().filter(|e| e.stage == Stage::Drive) else { return };
        let Ok(mut data) = reply else {
            let (which, id) = (exec.head << 2 | exec.drive, [exec.cylinder, exec.head, exec.sector, N512]);
            let st2 = if exec.op == Op::Read || exec.op == Op::Verify { st::DATA_ERROR_IN_DATA } else { 0 };
            return self.end(which, st::ABNORMAL, st::DATA_ERROR, st2, id);
        };
        match exec.op {
            Op::Read => {
                // Beyond the image's end there are zeros.
                data.resize(usize::from(exec.run) * SECTOR, 0);
                (exec.buffer, exec.pos, exec.stage) = (data, 0, Stage::Guest);
                self.turn();
            }
            Op::Write => {
                let done = (exec.buffer.len() / SECTOR) as u8;
                self.ran(done);
            }
            Op::Verify => {
                let done = exec.run;
                self.ran(done);
            }
            Op::Format => {
                let (which, id) = (exec.head << 2 | exec.drive, [exec.cylinder, exec.head, exec.eot, N512]);
                self.end(which, 0, 0, 0, id);
            }
        }
    }

    /// The guest has taken or given bytes, and `terminal`: those were all.
    pub fn moved(&mut self, bytes: usize, terminal: bool) {
        let Some(exec) = self.exec.as_mut().filter(|e| e.stage == Stage::Guest) else { return };
        exec.pos = (exec.pos + bytes).min(exec.buffer.len());
        exec.terminal |= terminal;
        let full = exec.pos == exec.buffer.len();
        if !full && !exec.terminal {
            return;
        }
        match exec.op {
            Op::Read | Op::Verify => {
                let done = exec.pos.div_ceil(SECTOR) as u8;
                self.ran(done);
            }
            Op::Write => {
                // What is left of a sector is zeros (82077AA, 5.1.3).
                let len = exec.pos.next_multiple_of(SECTOR).min(exec.buffer.len());
                exec.buffer.truncate(len);
                exec.stage = Stage::Drive;
            }
            Op::Format => {
                let (cylinder, head, sectors) = (exec.cylinder, exec.head, exec.format.sectors);
                let mut seen = [false; 256];
                let fits = exec.buffer.chunks_exact(4).all(|id| {
                    let fresh = !std::mem::replace(&mut seen[usize::from(id[2])], true);
                    fresh
                        && id[0] == cylinder
                        && id[1] == head
                        && id[3] == N512
                        && (1..=sectors).contains(&id[2])
                });
                if full && fits {
                    exec.stage = Stage::Drive;
                } else {
                    let (which, id) = (head << 2 | exec.drive, [cylinder, head, 1, N512]);
                    self.end(which, st::ABNORMAL, st::NO_DATA, 0, id);
                }
            }
        }
    }

    /// `done` sectors of the run were transferred: goes on, or ends.
    fn ran(&mut self, done: u8) {
        let Some(exec) = &mut self.exec else { return };
        let which = exec.head << 2 | exec.drive;
        let more = exec.advance(done);
        let id = [exec.cylinder, exec.head, exec.sector, N512];
        let st2 = exec.st2;
        if exec.terminal || (!more && (exec.single || exec.op == Op::Verify || !exec.dma)) {
            return self.end(which, 0, 0, st2, id);
        }
        if !more {
            // Without a terminal count a transfer goes beyond the last sector.
            return self.end(which, st::ABNORMAL, st::END_OF_CYLINDER, st2, id);
        }
        if exec.begin() {
            self.turn();
        } else {
            self.end(which, st::ABNORMAL, st::NO_DATA, st2, id);
        }
    }

    /// Whether this can be a controller's state, with these drives.
    pub fn check(&self, places: &Places) -> Result<(), Invalid> {
        if let Some(exec) = &self.exec {
            exec.check()?;
            if !places.get(usize::from(exec.drive)).is_some_and(|p| p.drive) {
                return Err(Invalid("the floppy controller's drive"));
            }
        }
        if self.command.len() > 8 || self.result.len() > 10 || self.resets > 4 {
            return Err(Invalid("the floppy controller's command"));
        }
        if self.command.first().is_some_and(|c| self.command.len() > decode(*c).0) {
            return Err(Invalid("the floppy controller's command"));
        }
        Ok(())
    }
}
