//! SCSI: sense data, and the command sets of devices.
//!
//! A command set knows no transport: it is given a command descriptor block and says what is to be moved
//! ([`Outcome`]). ATAPI, AHCI and SCSI host adapters carry that out.
//!
//! Source: SPC-3 (T10/1416-D), MMC-5 (T10/1675-D).
use serde::{Deserialize, Serialize};

pub mod cd;
mod sector;

/// Why a command has failed: sense key, additional sense code and its qualifier (SPC-3, 4.5).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sense {
    /// Sense key.
    pub key: u8,
    /// Additional sense code.
    pub asc: u8,
    /// Its qualifier.
    pub ascq: u8,
}

impl Sense {
    const fn new(key: u8, asc: u8, ascq: u8) -> Self {
        Self { key, asc, ascq }
    }

    /// Nothing is wrong.
    pub const NONE: Self = Self::new(0, 0, 0);
    /// There is no medium, and the tray is in.
    pub const NO_MEDIUM: Self = Self::new(2, 0x3a, 0x01);
    /// There is no medium, as the tray is out.
    pub const TRAY_OPEN: Self = Self::new(2, 0x3a, 0x02);
    /// The medium could not be read.
    pub const READ_ERROR: Self = Self::new(3, 0x11, 0);
    /// There is no such command.
    pub const OPERATION_CODE: Self = Self::new(5, 0x20, 0);
    /// An address is beyond the medium's end.
    pub const OUT_OF_RANGE: Self = Self::new(5, 0x21, 0);
    /// A field of the command has a value that it cannot have.
    pub const FIELD_IN_CDB: Self = Self::new(5, 0x24, 0);
    /// A parameter has a value that it cannot have.
    pub const FIELD_IN_PARAMETERS: Self = Self::new(5, 0x26, 0);
    /// The parameters are shorter than they say.
    pub const PARAMETER_LENGTH: Self = Self::new(5, 0x1a, 0);
    /// This medium does not do that.
    pub const INCOMPATIBLE_MEDIUM: Self = Self::new(5, 0x30, 0);
    /// Parameters are not saved.
    pub const NO_SAVING: Self = Self::new(5, 0x39, 0);
    /// The medium is locked in.
    pub const REMOVAL_PREVENTED: Self = Self::new(5, 0x53, 0x02);
    /// The track has sectors of another kind.
    pub const TRACK_MODE: Self = Self::new(5, 0x64, 0);
    /// There may be another medium.
    pub const MEDIUM_CHANGED: Self = Self::new(6, 0x28, 0);
    /// The device was reset.
    pub const RESET: Self = Self::new(6, 0x29, 0);

    /// Fixed-format sense data (SPC-3, 4.5.3).
    pub fn fixed(self) -> Vec<u8> {
        let mut data = vec![0; 18];
        data[0] = 0xf0;
        data[2] = self.key;
        data[7] = 10;
        data[12] = self.asc;
        data[13] = self.ascq;
        data
    }
}

/// What a command leads to.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is done; nothing is moved.
    Done,
    /// These bytes go to the initiator, no more than it allows; then it is done.
    Data(Vec<u8>),
    /// Sectors of the medium go to the initiator.
    Read {
        /// The first one.
        lba: u32,
        /// How many, at least one.
        sectors: u32,
        /// What of each.
        parts: cd::Parts,
    },
    /// So many bytes come from the initiator, at least one; they are handed in then.
    Parameters(usize),
    /// CHECK CONDITION, with this sense.
    Check(Sense),
}

/// The field of `N` bytes at `at`, big-endian, 0 where there is none.
fn field<const N: usize>(bytes: &[u8], at: usize) -> u32 {
    bytes.iter().skip(at).take(N).fold(0, |n, b| n << 8 | u32::from(*b))
}
