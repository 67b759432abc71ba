//! A CD/DVD-ROM drive's command set, MMC, as a pure model.
//!
//! A medium is one session with one data track of mode 1, a DVD if it is too large for a CD. Media are not written,
//! and there is no audio. A command that the drive does not know ends with INVALID COMMAND OPERATION CODE.
//!
//! A unit attention waits after a reset and a change of the medium, for the first command but INQUIRY, REQUEST SENSE,
//! GET CONFIGURATION and GET EVENT STATUS NOTIFICATION (SPC-3, 4.5.3; MMC-5, 4.1.6.1).
//!
//! Source: MMC-5 (T10/1675-D), chapter 6 (commands) and 7 (mode pages); INF-8090i.
pub use super::sector::{msf, parts as sector_parts};
use super::{Outcome, Sense, cut, field, sector};
use mynah_block::{Drive, DriveError};
use serde::{Deserialize, Serialize};

/// A sector's user data, in bytes.
pub const SECTOR: u64 = sector::USER as u64;
/// More sectors make it a DVD: 80 minutes.
const CD_SECTORS: u64 = 80 * 60 * 75;
/// Most bytes of a parameter list.
const PARAMETERS: usize = 0xffff;

/// Operation codes.
mod op {
    pub const TEST_UNIT_READY: u8 = 0x00;
    pub const REQUEST_SENSE: u8 = 0x03;
    pub const INQUIRY: u8 = 0x12;
    pub const MODE_SELECT_6: u8 = 0x15;
    pub const MODE_SENSE_6: u8 = 0x1a;
    pub const START_STOP_UNIT: u8 = 0x1b;
    pub const PREVENT_ALLOW: u8 = 0x1e;
    pub const READ_CAPACITY: u8 = 0x25;
    pub const READ_10: u8 = 0x28;
    pub const SEEK_10: u8 = 0x2b;
    pub const VERIFY_10: u8 = 0x2f;
    pub const SYNCHRONIZE_CACHE: u8 = 0x35;
    pub const READ_SUB_CHANNEL: u8 = 0x42;
    pub const READ_TOC: u8 = 0x43;
    pub const GET_CONFIGURATION: u8 = 0x46;
    pub const GET_EVENT_STATUS: u8 = 0x4a;
    pub const STOP_PLAY: u8 = 0x4e;
    pub const READ_DISC_INFORMATION: u8 = 0x51;
    pub const READ_TRACK_INFORMATION: u8 = 0x52;
    pub const MODE_SELECT_10: u8 = 0x55;
    pub const MODE_SENSE_10: u8 = 0x5a;
    pub const READ_12: u8 = 0xa8;
    pub const READ_DVD_STRUCTURE: u8 = 0xad;
    pub const SET_CD_SPEED: u8 = 0xbb;
    pub const MECHANISM_STATUS: u8 = 0xbd;
    pub const READ_CD: u8 = 0xbe;
}

/// What of a sector goes to the initiator.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Parts {
    /// 12 bytes.
    pub sync: bool,
    /// 4 bytes.
    pub header: bool,
    /// 2,048 bytes.
    pub user: bool,
    /// 288 bytes: error detection and correction.
    pub correction: bool,
}

impl Parts {
    /// User data alone.
    pub const USER: Self = Self { sync: false, header: false, user: true, correction: false };

    /// Bytes of a sector.
    pub fn len(self) -> usize {
        12 * usize::from(self.sync)
            + 4 * usize::from(self.header)
            + sector::USER * usize::from(self.user)
            + 288 * usize::from(self.correction)
    }

    /// Whether it is nothing at all.
    pub fn is_empty(self) -> bool {
        self == Self::default()
    }
}

/// What a drive says it is.
#[derive(Clone, Debug)]
pub struct Identity {
    /// Product identification, up to 16 characters.
    pub product: String,
    /// Revision, up to 4.
    pub revision: String,
    /// Serial number.
    pub serial: String,
}

/// What has happened to the medium, for GET EVENT STATUS NOTIFICATION (MMC-5, table 303).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum MediaEvent {
    EjectRequest,
    NewMedia,
    Removal,
}

/// A drive's registers.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Cd {
    sense: Sense,
    attention: Option<Sense>,
    event: Option<MediaEvent>,
    /// Read retry count of the error recovery page.
    error_recovery: [u8; 6],
    /// The CD audio control page.
    audio: [u8; 14],
}

impl Default for Cd {
    /// As after a reset.
    fn default() -> Self {
        let mut audio = [0; 14];
        audio[0] = 0x04;
        // Each channel at one output, full volume.
        audio[6..10].copy_from_slice(&[1, 0xff, 2, 0xff]);
        Self {
            sense: Sense::NONE,
            attention: Some(Sense::RESET),
            event: None,
            error_recovery: [0, 5, 0, 0, 0, 0],
            audio,
        }
    }
}

/// The sectors of the medium, if there is one.
fn sectors(drive: &Drive) -> Option<u64> {
    drive.medium().map(|m| m.size() / SECTOR)
}

fn absent(drive: &Drive) -> Sense {
    if drive.tray_open() { Sense::TRAY_OPEN } else { Sense::NO_MEDIUM }
}

fn padded(text: &str, len: usize) -> impl Iterator<Item = u8> {
    text.bytes().chain(std::iter::repeat(b' ')).take(len)
}

impl Cd {
    /// There is another medium, or none.
    pub fn medium_changed(&mut self, drive: &Drive) {
        if drive.medium().is_some() {
            self.attention = Some(Sense::MEDIUM_CHANGED);
            self.event = Some(MediaEvent::NewMedia);
        } else {
            self.event = Some(MediaEvent::Removal);
        }
    }

    /// Somebody wishes the medium out that is locked in.
    pub fn eject_requested(&mut self) {
        self.event = Some(MediaEvent::EjectRequest);
    }

    /// The sense of the last command.
    pub fn sense(&self) -> Sense {
        self.sense
    }

    /// The drive could not do what was asked of it for a command.
    pub fn failed(&mut self, why: DriveError, drive: &Drive) -> Sense {
        self.sense = match why {
            DriveError::NoMedium => absent(drive),
            DriveError::Range => Sense::OUT_OF_RANGE,
            DriveError::ReadOnly | DriveError::NoSpace | DriveError::Io => Sense::READ_ERROR,
        };
        self.sense
    }

    /// A command, of up to 16 bytes.
    pub fn command(&mut self, cdb: &[u8], drive: &Drive, identity: &Identity) -> Outcome {
        let mut padded = [0; 16];
        for (to, from) in padded.iter_mut().zip(cdb) {
            *to = *from;
        }
        let outcome = self.carry_out(&padded, drive, identity);
        match &outcome {
            Outcome::Check(sense) => self.sense = *sense,
            _ => self.sense = Sense::NONE,
        }
        outcome
    }

    /// The parameters that a command has asked for.
    pub fn parameters(&mut self, cdb: &[u8], data: &[u8]) -> Outcome {
        let outcome = match cdb.first() {
            Some(&op::MODE_SELECT_10) => self.mode_select(data, 8 + field::<2>(data, 6) as usize),
            Some(&op::MODE_SELECT_6) => self.mode_select(data, 4 + field::<1>(data, 3) as usize),
            _ => Outcome::Done,
        };
        if let Outcome::Check(sense) = outcome {
            self.sense = sense;
        }
        outcome
    }

    fn carry_out(&mut self, cdb: &[u8; 16], drive: &Drive, identity: &Identity) -> Outcome {
        let code = cdb[0];
        let passes =
            matches!(code, op::INQUIRY | op::REQUEST_SENSE | op::GET_CONFIGURATION | op::GET_EVENT_STATUS);
        if !passes && let Some(attention) = self.attention.take() {
            return Outcome::Check(attention);
        }
        match code {
            op::REQUEST_SENSE => self.request_sense(cdb),
            op::INQUIRY => inquiry(cdb, identity),
            op::START_STOP_UNIT => self.start_stop(cdb, drive),
            op::PREVENT_ALLOW => {
                drive.lock(cdb[4] & 1 != 0);
                Outcome::Done
            }
            op::GET_CONFIGURATION => get_configuration(cdb, drive),
            op::GET_EVENT_STATUS => self.event_status(cdb, drive),
            op::MODE_SENSE_10 | op::MODE_SENSE_6 => self.mode_sense(cdb, drive),
            op::MODE_SELECT_10 | op::MODE_SELECT_6 => match parameters_len(cdb) {
                // Pages in the format of the vendor, or to be saved.
                _ if cdb[1] & 0x11 != 0x10 => Outcome::Check(Sense::FIELD_IN_CDB),
                0 => Outcome::Done,
                len => Outcome::Parameters(len.min(PARAMETERS)),
            },
            op::MECHANISM_STATUS => cut(vec![0, 0, 0, 0, 0, 1, 0, 0], field::<2>(cdb, 8)),
            op::SET_CD_SPEED => Outcome::Done,
            _ if !needs_medium(code) => Outcome::Check(Sense::OPERATION_CODE),
            _ => match sectors(drive) {
                Some(sectors) => with_medium(cdb, sectors),
                None => Outcome::Check(absent(drive)),
            },
        }
    }

    fn request_sense(&mut self, cdb: &[u8; 16]) -> Outcome {
        // Of what has failed, or what waits to be told.
        let sense =
            if self.sense == Sense::NONE { self.attention.take().unwrap_or_default() } else { self.sense };
        cut(sense.fixed(), cdb[4].into())
    }

    fn start_stop(&mut self, cdb: &[u8; 16], drive: &Drive) -> Outcome {
        const START: u8 = 1 << 0;
        const LOAD_EJECT: u8 = 1 << 1;
        let (open, move_to) = (drive.tray_open(), cdb[4] & (START | LOAD_EJECT));
        // A power condition, which changes nothing.
        if cdb[4] & 0xf0 != 0 || move_to & LOAD_EJECT == 0 {
            return Outcome::Done;
        }
        match move_to & START != 0 {
            false if open => {}
            false if drive.locked() => return Outcome::Check(Sense::REMOVAL_PREVENTED),
            false => {
                drive.set_tray_open(true);
                self.event = Some(MediaEvent::Removal);
            }
            true if open => {
                drive.set_tray_open(false);
                if drive.medium().is_some() {
                    self.medium_changed(drive);
                }
            }
            true => {}
        }
        Outcome::Done
    }

    fn event_status(&mut self, cdb: &[u8; 16], drive: &Drive) -> Outcome {
        const POLLED: u8 = 1 << 0;
        const MEDIA: u8 = 1 << 4;
        if cdb[1] & POLLED == 0 {
            return Outcome::Check(Sense::FIELD_IN_CDB);
        }
        let most = field::<2>(cdb, 7);
        if cdb[4] & MEDIA == 0 {
            // No event of the classes asked for.
            return cut(vec![0, 0, 0x80, MEDIA], most);
        }
        let code = match self.event {
            None => 0,
            Some(MediaEvent::EjectRequest) => 1,
            Some(MediaEvent::NewMedia) => 2,
            Some(MediaEvent::Removal) => 3,
        };
        // One that was told has ended.
        if most > 4 {
            self.event = None;
        }
        let status = u8::from(drive.tray_open()) | u8::from(drive.medium().is_some()) << 1;
        cut(vec![0, 4, 4, MEDIA, code, status, 0, 0], most)
    }

    fn page(&self, code: u8, control: u8, drive: &Drive) -> Option<Vec<u8>> {
        const CHANGEABLE: u8 = 1;
        const DEFAULT: u8 = 2;
        let initial = Self::default();
        let body = match (code, control) {
            (0x01, CHANGEABLE) => vec![0, 0xff, 0, 0, 0, 0],
            (0x01, DEFAULT) => initial.error_recovery.to_vec(),
            (0x01, _) => self.error_recovery.to_vec(),
            (0x0e, CHANGEABLE) => vec![0, 0, 0, 0, 0, 0, 0x0f, 0xff, 0x0f, 0xff, 0, 0, 0, 0],
            (0x0e, DEFAULT) => initial.audio.to_vec(),
            (0x0e, _) => self.audio.to_vec(),
            (0x2a, CHANGEABLE) => vec![0; 20],
            (0x2a, _) => {
                let locked = u8::from(drive.locked()) << 1;
                // Reads CD-R, CD-RW, DVD; a tray that ejects and locks; 4x of 176 kB/s; 512 KiB of buffer.
                let mut body =
                    vec![0x3b, 0, 0x71, 0x60, 0x29 | locked, 0, 0x02, 0xc0, 0, 2, 2, 0, 0x02, 0xc0];
                body.resize(20, 0);
                body
            }
            _ => return None,
        };
        Some([vec![code, body.len() as u8], body].concat())
    }

    fn mode_sense(&self, cdb: &[u8; 16], drive: &Drive) -> Outcome {
        let (code, control) = (cdb[2] & 0x3f, cdb[2] >> 6);
        if control == 3 {
            return Outcome::Check(Sense::NO_SAVING);
        }
        let pages: Vec<u8> = [0x01, 0x0e, 0x2a]
            .into_iter()
            .filter(|p| code == 0x3f || code == *p)
            .filter_map(|p| self.page(p, control, drive))
            .flatten()
            .collect();
        if pages.is_empty() {
            return Outcome::Check(Sense::FIELD_IN_CDB);
        }
        // The type of the medium: data on 120 mm, none, the tray is out.
        let medium = match (drive.tray_open(), drive.medium().is_some()) {
            (true, _) => 0x71,
            (false, true) => 0x01,
            (false, false) => 0x70,
        };
        if cdb[0] == op::MODE_SENSE_6 {
            let head = [(pages.len() + 3) as u8, medium, 0, 0];
            return cut([&head[..], &pages].concat(), cdb[4].into());
        }
        let len = (pages.len() + 6) as u16;
        let head = [(len >> 8) as u8, len as u8, medium, 0, 0, 0, 0, 0];
        cut([&head[..], &pages].concat(), field::<2>(cdb, 7))
    }

    /// Pages begin at `first`, behind the header and block descriptors, of which there are none.
    fn mode_select(&mut self, data: &[u8], first: usize) -> Outcome {
        let Some(mut rest) = data.get(first..) else {
            return Outcome::Check(Sense::PARAMETER_LENGTH);
        };
        let mut new = self.clone();
        while let [code, len, body @ ..] = rest {
            let Some(body) = body.get(..usize::from(*len)) else {
                return Outcome::Check(Sense::PARAMETER_LENGTH);
            };
            match (code & 0x3f, body) {
                (0x01, [_, retries, _, _, _, _, ..]) if matches!(*len, 6 | 10) => {
                    new.error_recovery[1] = *retries
                }
                (0x0e, body) if body.len() == 14 => {
                    for i in [6, 8] {
                        new.audio[i] = body[i] & 0x0f;
                        new.audio[i + 1] = body[i + 1];
                    }
                }
                (0x2a, _) => {}
                _ => return Outcome::Check(Sense::FIELD_IN_PARAMETERS),
            }
            rest = &rest[2 + usize::from(*len)..];
        }
        *self = new;
        Outcome::Done
    }
}

/// Bytes of a mode select's parameters.
fn parameters_len(cdb: &[u8; 16]) -> usize {
    if cdb[0] == op::MODE_SELECT_6 { cdb[4].into() } else { field::<2>(cdb, 7) as usize }
}

fn inquiry(cdb: &[u8; 16], identity: &Identity) -> Outcome {
    let most = field::<2>(cdb, 3);
    if cdb[1] & 1 == 0 {
        if cdb[2] != 0 {
            return Outcome::Check(Sense::FIELD_IN_CDB);
        }
        // A removable CD-ROM drive, data in the format of SPC, MMC by ATAPI.
        let head = [0x05, 0x80, 0x00, 0x21, 31, 0, 0, 0];
        let names =
            padded("QEMU", 8).chain(padded(&identity.product, 16)).chain(padded(&identity.revision, 4));
        return cut(head.into_iter().chain(names).collect(), most);
    }
    let page: Vec<u8> = match cdb[2] {
        0x00 => vec![0x00, 0x80, 0x83],
        0x80 => identity.serial.bytes().take(20).collect(),
        0x83 => {
            // The serial number in ASCII, and vendor, model and serial number.
            let serial = padded(&identity.serial, 20);
            let long =
                padded("ATA", 8).chain(padded(&identity.product, 40)).chain(padded(&identity.serial, 20));
            [2, 0, 0, 20].into_iter().chain(serial).chain([2, 1, 0, 68]).chain(long).collect()
        }
        _ => return Outcome::Check(Sense::FIELD_IN_CDB),
    };
    cut([&[0x05, cdb[2], 0, page.len() as u8][..], &page].concat(), most)
}

fn get_configuration(cdb: &[u8; 16], drive: &Drive) -> Outcome {
    const CD_ROM: u16 = 0x0008;
    const DVD_ROM: u16 = 0x0010;
    let sectors = sectors(drive);
    let dvd = sectors.is_some_and(|n| n > CD_SECTORS);
    let (cd, there) = (sectors.is_some() && !dvd, sectors.is_some());
    let (which, first) = (cdb[1] & 3, field::<2>(cdb, 2) as u16);
    if which == 3 {
        return Outcome::Check(Sense::FIELD_IN_CDB);
    }
    let profile = |p: u16, now: bool| [(p >> 8) as u8, p as u8, u8::from(now), 0];
    let profiles = [profile(DVD_ROM, dvd), profile(CD_ROM, cd)].concat();
    // Number, version, whether it is always current, whether it is now, what it says (MMC-5, chapter 5).
    let features: [(u16, u8, bool, bool, &[u8]); 6] = [
        (0x0000, 0, true, true, &profiles),
        // The core: ATAPI, device busy events.
        (0x0001, 2, true, true, &[0, 0, 0, 2, 1, 0, 0, 0]),
        // Removable: a tray that ejects and locks.
        (0x0003, 0, true, true, &[0x29, 0, 0, 0]),
        // Random reads of 2,048 bytes.
        (0x0010, 0, false, there, &[0, 0, 8, 0, 0, 1, 0, 0]),
        (0x001e, 2, false, cd, &[0, 0, 0, 0]),
        (0x001f, 1, false, dvd, &[0, 0, 0, 0]),
    ];
    let wanted = features.into_iter().filter(|(number, _, _, now, _)| match which {
        0 => *number >= first,
        1 => *number >= first && *now,
        _ => *number == first,
    });
    let list: Vec<u8> = wanted
        .flat_map(|(number, version, always, now, says)| {
            let flags = version << 2 | u8::from(always) << 1 | u8::from(now);
            [&[(number >> 8) as u8, number as u8, flags, says.len() as u8][..], says].concat()
        })
        .collect();
    let current = if dvd {
        DVD_ROM
    } else if cd {
        CD_ROM
    } else {
        0
    };
    let len = (list.len() as u32 + 4).to_be_bytes();
    let head = [&len[..], &[0, 0, (current >> 8) as u8, current as u8]].concat();
    cut([head, list].concat(), field::<2>(cdb, 7))
}

fn needs_medium(code: u8) -> bool {
    matches!(
        code,
        op::TEST_UNIT_READY
            | op::READ_CAPACITY
            | op::READ_10
            | op::READ_12
            | op::READ_CD
            | op::SEEK_10
            | op::VERIFY_10
            | op::SYNCHRONIZE_CACHE
            | op::READ_SUB_CHANNEL
            | op::READ_TOC
            | op::STOP_PLAY
            | op::READ_DISC_INFORMATION
            | op::READ_TRACK_INFORMATION
            | op::READ_DVD_STRUCTURE
    )
}

/// Commands about a medium of so many sectors.
fn with_medium(cdb: &[u8; 16], sectors: u64) -> Outcome {
    let last = u32::try_from(sectors.saturating_sub(1)).unwrap_or(u32::MAX);
    let lba = field::<4>(cdb, 2);
    match cdb[0] {
        op::READ_CAPACITY => Outcome::Data([last.to_be_bytes(), (SECTOR as u32).to_be_bytes()].concat()),
        op::READ_10 => read(lba, field::<2>(cdb, 7), sectors, Parts::USER),
        op::READ_12 => read(lba, field::<4>(cdb, 6), sectors, Parts::USER),
        op::READ_CD => read_cd(cdb, sectors),
        op::SEEK_10 if u64::from(lba) >= sectors => Outcome::Check(Sense::OUT_OF_RANGE),
        op::READ_TOC => read_toc(cdb, sectors),
        op::READ_SUB_CHANNEL => read_sub_channel(cdb),
        op::READ_DISC_INFORMATION => {
            // Complete, one session, its first and last track are the first; no restrictions on use.
            let mut data = vec![0, 32, 0x0e, 1, 1, 1, 1, 0x20];
            data.resize(34, 0);
            if cdb[1] & 7 != 0 { Outcome::Check(Sense::FIELD_IN_CDB) } else { cut(data, field::<2>(cdb, 7)) }
        }
        op::READ_TRACK_INFORMATION => read_track_information(cdb, sectors),
        op::READ_DVD_STRUCTURE => read_dvd_structure(cdb, sectors),
        // The medium is there, and nothing is to be waited for.
        _ => Outcome::Done,
    }
}

fn read(lba: u32, count: u32, sectors: u64, parts: Parts) -> Outcome {
    if u64::from(lba) + u64::from(count) > sectors {
        return Outcome::Check(Sense::OUT_OF_RANGE);
    }
    if count == 0 || parts.is_empty() { Outcome::Done } else { Outcome::Read { lba, sectors: count, parts } }
}

fn read_cd(cdb: &[u8; 16], sectors: u64) -> Outcome {
    // Expected are sectors of any kind or of mode 1.
    if !matches!(cdb[1] >> 2 & 7, 0 | 2) {
        return Outcome::Check(Sense::TRACK_MODE);
    }
    let flags = cdb[9];
    // No subheaders, no error flags, no sub-channels.
    if flags & 0x40 != 0 && flags & 0x20 == 0 || flags & 0x06 != 0 || cdb[10] & 7 != 0 {
        return Outcome::Check(Sense::FIELD_IN_CDB);
    }
    let parts = Parts {
        sync: flags & 0x80 != 0,
        header: flags & 0x20 != 0,
        user: flags & 0x10 != 0,
        correction: flags & 0x08 != 0,
    };
    // Parts that do not follow each other on the medium.
    if parts.sync && parts.user && !parts.header || parts.correction && !parts.user {
        return Outcome::Check(Sense::FIELD_IN_CDB);
    }
    read(field::<4>(cdb, 2), field::<3>(cdb, 6), sectors, parts)
}

/// An address in the four bytes of a descriptor.
fn address(lba: u32, in_msf: bool) -> [u8; 4] {
    let [m, s, f] = msf(lba);
    if in_msf { [0, m, s, f] } else { lba.to_be_bytes() }
}

fn read_toc(cdb: &[u8; 16], sectors: u64) -> Outcome {
    /// A data track, from which copies may not be made; position data in Q.
    const DATA_TRACK: u8 = 0x14;
    const LEAD_OUT: u8 = 0xaa;
    let in_msf = cdb[1] & 2 != 0;
    let end = u32::try_from(sectors).unwrap_or(u32::MAX);
    let most = field::<2>(cdb, 7);
    // Where older drives had it.
    let format = if cdb[2] & 0x0f != 0 { cdb[2] & 0x0f } else { cdb[9] >> 6 };
    let with_head = |body: Vec<u8>| {
        let len = body.len() as u16 + 2;
        cut([&[(len >> 8) as u8, len as u8, 1, 1][..], &body].concat(), most)
    };
    let track = |number, at| [&[0, DATA_TRACK, number, 0][..], &address(at, in_msf)].concat();
    match format {
        0 => match cdb[6] {
            0 | 1 => with_head([track(1, 0), track(LEAD_OUT, end)].concat()),
            LEAD_OUT => with_head(track(LEAD_OUT, end)),
            _ => Outcome::Check(Sense::FIELD_IN_CDB),
        },
        // The first track of the last session.
        1 => with_head(track(1, 0)),
        2 => {
            let point = |point, [m, s, f]: [u8; 3]| vec![1, DATA_TRACK, 0, point, 0, 0, 0, 0, m, s, f];
            let points = [(0xa0, [1, 0, 0]), (0xa1, [1, 0, 0]), (0xa2, msf(end)), (1, msf(0))];
            with_head(points.into_iter().flat_map(|(p, at)| point(p, at)).collect())
        }
        _ => Outcome::Check(Sense::FIELD_IN_CDB),
    }
}

fn read_sub_channel(cdb: &[u8; 16]) -> Outcome {
    /// Nothing is played, nor was.
    const NO_AUDIO: u8 = 0x15;
    const DATA_IN_Q: u8 = 1 << 6;
    let body: Vec<u8> = match (cdb[2] & DATA_IN_Q != 0, cdb[3]) {
        (false, _) => vec![],
        (true, 1) => [&[1, 0x14, 1, 1][..], &address(0, cdb[1] & 2 != 0), &[0; 4]].concat(),
        // No catalogue number, no recording code.
        (true, format @ 2..=3) => [&[format][..], &[0; 19]].concat(),
        _ => return Outcome::Check(Sense::FIELD_IN_CDB),
    };
    cut([&[0, NO_AUDIO, 0, body.len() as u8][..], &body].concat(), field::<2>(cdb, 7))
}

fn read_track_information(cdb: &[u8; 16], sectors: u64) -> Outcome {
    let number = field::<4>(cdb, 2);
    let end = u32::try_from(sectors).unwrap_or(u32::MAX);
    // By an address on it, by its number, by its session's number.
    let found = match cdb[1] & 3 {
        0 => number < end,
        1 | 2 => number == 1,
        _ => false,
    };
    if !found {
        return Outcome::Check(Sense::FIELD_IN_CDB);
    }
    let mut data = vec![0; 36];
    // Track 1 of session 1: data, not to be copied; mode 1.
    data[..7].copy_from_slice(&[0, 34, 1, 1, 0, 4, 1]);
    data[24..28].copy_from_slice(&end.to_be_bytes());
    cut(data, field::<2>(cdb, 7))
}

fn read_dvd_structure(cdb: &[u8; 16], sectors: u64) -> Outcome {
    if sectors <= CD_SECTORS && cdb[7] != 0xff {
        return Outcome::Check(Sense::INCOMPATIBLE_MEDIUM);
    }
    let body: Vec<u8> = match cdb[7] {
        0x00 => {
            if cdb[6] != 0 {
                return Outcome::Check(Sense::FIELD_IN_CDB);
            }
            // DVD-ROM, part version 1; 120 mm, no maximum rate; one layer, parallel, embossed; densities of a
            // read-only disc; data from 30000h on.
            let mut body = vec![0x01, 0x0f, 0x01, 0x00, 0x00, 0x03, 0x00, 0x00];
            body.extend((0x3_0000 + sectors.min(1 << 31) as u32 - 1).to_be_bytes());
            body.resize(2048, 0);
            body
        }
        // No protection, all regions.
        0x01 => vec![0; 4],
        // No burst cutting area.
        0x03 => return Outcome::Check(Sense::FIELD_IN_CDB),
        // The lead-in's manufacturer's data.
        0x04 => vec![0; 2048],
        0xff => [(0x00, 2052), (0x01, 8), (0x04, 2052), (0xff, 20)]
            .into_iter()
            .flat_map(|(format, len): (u8, u16)| [format, 0x40, (len >> 8) as u8, len as u8])
            .collect(),
        _ => return Outcome::Check(Sense::FIELD_IN_CDB),
    };
    let len = body.len() as u16 + 2;
    cut([&[(len >> 8) as u8, len as u8, 0, 0][..], &body].concat(), field::<2>(cdb, 8))
}

#[cfg(test)]
mod tests;
