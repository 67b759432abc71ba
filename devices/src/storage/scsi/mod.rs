//! SCSI: sense data, and the command sets of devices.
//!
//! A command set knows no transport: it is given a command descriptor block and says what is to be moved
//! ([`Outcome`]). ATAPI, AHCI and SCSI host adapters carry that out. A host adapter's units are on a [`bus::ScsiBus`].
//!
//! Source: SPC-3 (T10/1416-D), SBC-3 (T10/BSR INCITS 514), MMC-5 (T10/1675-D).
use serde::{Deserialize, Serialize};

pub mod bus;
pub mod cd;
pub mod disk;
mod inquiry;
mod sector;
pub mod unit;

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
    /// The medium could not be written.
    pub const WRITE_ERROR: Self = Self::new(3, 0x0c, 0);
    /// What is behind the device has failed.
    pub const INTERNAL: Self = Self::new(4, 0x44, 0);
    /// There is no such logical unit.
    pub const NO_UNIT: Self = Self::new(5, 0x25, 0);
    /// Parameters have changed, by another initiator or a user.
    pub const CAPACITY_CHANGED: Self = Self::new(6, 0x2a, 0x09);
    /// The medium is not written.
    pub const WRITE_PROTECTED: Self = Self::new(7, 0x27, 0);
    /// There is no room for what is to be written.
    pub const NO_SPACE: Self = Self::new(7, 0x27, 0x07);
    /// What was compared is not the same.
    pub const MISCOMPARE: Self = Self::new(14, 0x1d, 0);
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
    /// Blocks of a disk are moved, or something is done with them.
    Blocks(Access),
    /// So many bytes come from the initiator, at least one; they are handed in then.
    Parameters(usize),
    /// CHECK CONDITION, with this sense.
    Check(Sense),
}

/// What is done with a disk's blocks: places and lengths in bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Access {
    /// They go to the initiator.
    Read {
        /// The first byte's offset.
        at: u64,
        /// How many, at least one.
        len: u64,
    },
    /// They come from the initiator.
    Write {
        /// The first byte's offset.
        at: u64,
        /// How many, at least one.
        len: u64,
        /// They are to be durable at the end.
        durable: bool,
    },
    /// They are compared with what comes from the initiator.
    Compare {
        /// The first byte's offset.
        at: u64,
        /// How many, at least one.
        len: u64,
    },
    /// They are read, and nothing done with them.
    Verify {
        /// The first byte's offset.
        at: u64,
        /// How many, at least one.
        len: u64,
    },
    /// They are zeros.
    Zero {
        /// The first byte's offset.
        at: u64,
        /// How many.
        len: u64,
        /// Whether their room may be given back.
        unmap: bool,
    },
    /// They are each the same.
    Same {
        /// The first byte's offset.
        at: u64,
        /// How many, a multiple of the block's.
        len: u64,
        /// The block.
        block: Vec<u8>,
    },
    /// They are not used any more: offsets and lengths.
    Discard(Vec<(u64, u64)>),
    /// What was written is to be durable.
    Flush,
}

/// The field of `N` bytes at `at`, big-endian, 0 where there is none.
fn field<const N: usize>(bytes: &[u8], at: usize) -> u32 {
    bytes.iter().skip(at).take(N).fold(0, |n, b| n << 8 | u32::from(*b))
}

/// The same of 8 bytes.
fn field64(bytes: &[u8], at: usize) -> u64 {
    bytes.iter().skip(at).take(8).fold(0, |n, b| n << 8 | u64::from(*b))
}

/// No more than `most` bytes go to the initiator.
fn cut(mut data: Vec<u8>, most: u32) -> Outcome {
    data.truncate(most as usize);
    if data.is_empty() { Outcome::Done } else { Outcome::Data(data) }
}
