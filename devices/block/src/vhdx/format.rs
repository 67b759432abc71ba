//! The structures at a VHDX's start: headers, the region table, metadata (MS-VHDX 2.2, 2.6). All little-endian.
use crate::crc32c::without_itself;
use crate::storage::{Storage, damaged, le32, le64, unsupported};
use std::io;

pub const MIB: u64 = 1 << 20;
pub const SIGNATURE: &[u8] = b"vhdxfile";
/// Where the two headers are, and the two region tables.
pub const HEADERS: [u64; 2] = [64 << 10, 128 << 10];
pub const REGION_TABLES: [u64; 2] = [192 << 10, 256 << 10];
pub const REGION_TABLE_LEN: usize = 64 << 10;
pub const METADATA_TABLE_LEN: usize = 64 << 10;
const HEADER_LEN: usize = 4096;
/// 64 TiB (MS-VHDX 2.6.2.2).
pub const MAX_SIZE: u64 = 64 << 40;
/// No file of the host is so large; sums of two such numbers do not overflow.
pub const MAX_OFFSET: u64 = 1 << 56;

/// As it stands in the file.
pub type Guid = [u8; 16];

/// A GUID by its text's numbers.
pub const fn guid(a: u32, b: u16, c: u16, d: [u8; 8]) -> Guid {
    let (a, b, c) = (a.to_le_bytes(), b.to_le_bytes(), c.to_le_bytes());
    [a[0], a[1], a[2], a[3], b[0], b[1], c[0], c[1], d[0], d[1], d[2], d[3], d[4], d[5], d[6], d[7]]
}

pub const BAT: Guid = guid(0x2dc2_7766, 0xf623, 0x4200, [0x9d, 0x64, 0x11, 0x5e, 0x9b, 0xfd, 0x4a, 0x08]);
pub const METADATA: Guid =
    guid(0x8b7c_a206, 0x4790, 0x4b9a, [0xb8, 0xfe, 0x57, 0x5f, 0x05, 0x0f, 0x88, 0x6e]);
pub const FILE_PARAMETERS: Guid =
    guid(0xcaa1_6737, 0xfa36, 0x4d43, [0xb3, 0xb6, 0x33, 0xf0, 0xaa, 0x44, 0xe7, 0x6b]);
pub const VIRTUAL_DISK_SIZE: Guid =
    guid(0x2fa5_4224, 0xcd1b, 0x4876, [0xb2, 0x11, 0x5d, 0xbe, 0xd8, 0x3b, 0xf4, 0xb8]);
pub const VIRTUAL_DISK_ID: Guid =
    guid(0xbeca_12ab, 0xb2e6, 0x4523, [0x93, 0xef, 0xc3, 0x09, 0xe0, 0x00, 0xc7, 0x46]);
pub const LOGICAL_SECTOR_SIZE: Guid =
    guid(0x8141_bf1d, 0xa96f, 0x4709, [0xba, 0x47, 0xf2, 0x33, 0xa8, 0xfa, 0xab, 0x5f]);
pub const PHYSICAL_SECTOR_SIZE: Guid =
    guid(0xcda3_48c7, 0x445d, 0x4471, [0x9c, 0xc9, 0xe9, 0x88, 0x52, 0x51, 0xc5, 0x56]);
pub const PARENT_LOCATOR: Guid =
    guid(0xa8d3_5f2d, 0xb30b, 0x454d, [0xab, 0xf7, 0xd3, 0xd8, 0x48, 0x34, 0xab, 0x0c]);

fn read_guid(bytes: &[u8], at: usize) -> Guid {
    bytes[at..at + 16].try_into().expect("sixteen bytes")
}

/// The header that counts: the valid one with the larger sequence number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    pub sequence: u64,
    pub file_write: Guid,
    pub data_write: Guid,
    /// Of the log's entries that may have to be replayed; zeros if there are none.
    pub log_guid: Guid,
    pub log: Region,
    /// Which of the two it is.
    pub slot: usize,
}

/// A part of the file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Region {
    pub at: u64,
    pub len: u64,
}

impl Region {
    pub fn end(&self) -> u64 {
        self.at + self.len
    }

    pub fn overlaps(&self, at: u64, len: u64) -> bool {
        at < self.end() && self.at < at.saturating_add(len)
    }

    /// Of whole MiB, after the first one.
    fn check(self, what: &str) -> io::Result<Self> {
        let Self { at, len } = self;
        if at < MIB || !at.is_multiple_of(MIB) || !len.is_multiple_of(MIB) || at > MAX_OFFSET {
            return Err(damaged(format!("{what} cannot be {len:#x} bytes at {at:#x}")));
        }
        Ok(self)
    }
}

impl Header {
    /// Reads both headers.
    pub fn read(storage: &dyn Storage) -> io::Result<Self> {
        let mut best: Option<Self> = None;
        for (slot, at) in HEADERS.into_iter().enumerate() {
            let mut bytes = vec![0; HEADER_LEN];
            storage.read_at(at, &mut bytes)?;
            let Some(header) = Self::parse(&bytes, slot) else { continue };
            if best.as_ref().is_none_or(|b| b.sequence < header.sequence) {
                best = Some(header);
            }
        }
        let header = best.ok_or_else(|| damaged("neither of its two headers is whole"))?;
        if header.log.len > 0 || header.log_guid != Guid::default() {
            header.log.check("the log")?;
        }
        Ok(header)
    }

    fn parse(bytes: &[u8], slot: usize) -> Option<Self> {
        let whole = bytes.starts_with(b"head") && le32(bytes, 4) == without_itself(bytes, 4);
        let (log_version, version) = (le32(bytes, 64) & 0xffff, le32(bytes, 64) >> 16);
        (whole && version == 1 && log_version == 0).then(|| Self {
            sequence: le64(bytes, 8),
            file_write: read_guid(bytes, 16),
            data_write: read_guid(bytes, 32),
            log_guid: read_guid(bytes, 48),
            log: Region { at: le64(bytes, 72), len: u64::from(le32(bytes, 68)) },
            slot,
        })
    }

    fn bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0; HEADER_LEN];
        bytes[..4].copy_from_slice(b"head");
        bytes[8..16].copy_from_slice(&self.sequence.to_le_bytes());
        bytes[16..32].copy_from_slice(&self.file_write);
        bytes[32..48].copy_from_slice(&self.data_write);
        bytes[48..64].copy_from_slice(&self.log_guid);
        bytes[66] = 1;
        bytes[68..72].copy_from_slice(&(self.log.len as u32).to_le_bytes());
        bytes[72..80].copy_from_slice(&self.log.at.to_le_bytes());
        let sum = without_itself(&bytes, 4);
        bytes[4..8].copy_from_slice(&sum.to_le_bytes());
        bytes
    }

    /// Writes it to both places, one after the other, so that one of them is whole at all times (MS-VHDX 2.2.2.1).
    pub fn write(&mut self, storage: &dyn Storage) -> io::Result<()> {
        for _ in 0..2 {
            self.slot ^= 1;
            self.sequence = self.sequence.wrapping_add(1);
            storage.write_at(HEADERS[self.slot], &self.bytes())?;
            storage.flush()?;
        }
        Ok(())
    }
}

/// Where the two regions are that there must be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Regions {
    pub bat: Region,
    pub metadata: Region,
}

impl Regions {
    /// Reads the first of the two tables that is whole.
    pub fn read(storage: &dyn Storage, log: Region) -> io::Result<Self> {
        let mut bytes = vec![0; REGION_TABLE_LEN];
        for at in REGION_TABLES {
            storage.read_at(at, &mut bytes)?;
            if bytes.starts_with(b"regi") && le32(&bytes, 4) == without_itself(&bytes, 4) {
                return Self::parse(&bytes, log);
            }
        }
        Err(damaged("neither of its two region tables is whole"))
    }

    fn parse(bytes: &[u8], log: Region) -> io::Result<Self> {
        let count = le32(bytes, 8) as usize;
        if count > 2047 {
            return Err(damaged(format!("a region table of {count} entries cannot be")));
        }
        let (mut bat, mut metadata, mut all) = (None, None, vec![log]);
        for entry in bytes[16..].chunks_exact(32).take(count) {
            let region = Region { at: le64(entry, 16), len: u64::from(le32(entry, 24)) };
            let region = region.check("a region")?;
            if all.iter().any(|other| other.overlaps(region.at, region.len)) {
                return Err(damaged("two of its regions overlap"));
            }
            all.push(region);
            let taken = match read_guid(entry, 0) {
                BAT => bat.replace(region),
                METADATA => metadata.replace(region),
                _ if le32(entry, 28) & 1 != 0 => {
                    return Err(unsupported("it has a region that must be known, and is not"));
                }
                _ => None,
            };
            if taken.is_some() {
                return Err(damaged("a region is there twice"));
            }
        }
        match (bat, metadata) {
            (Some(bat), Some(metadata)) => Ok(Self { bat, metadata }),
            _ => Err(damaged("the block allocation table or the metadata are missing")),
        }
    }
}

/// What the metadata say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Metadata {
    pub block_size: u64,
    pub size: u64,
    pub logical_sector: u64,
}

impl Metadata {
    /// Reads them.
    pub fn read(storage: &dyn Storage, region: Region) -> io::Result<Self> {
        let mut table = vec![0; METADATA_TABLE_LEN];
        storage.read_at(region.at, &mut table)?;
        if !table.starts_with(b"metadata") {
            return Err(damaged("the metadata's table is none"));
        }
        let count = (le32(&table, 8) >> 16) as usize;
        if count > 2047 {
            return Err(damaged(format!("metadata of {count} items cannot be")));
        }
        let (mut block, mut size, mut logical, mut physical) = (None, None, None, None);
        let mut found = Self::default();
        for entry in table[32..].chunks_exact(32).take(count) {
            let (offset, len) = (u64::from(le32(entry, 16)), u64::from(le32(entry, 20)));
            let flags = le32(entry, 24);
            let mut value = [0; 8];
            let mut read = |wanted: u64| -> io::Result<u64> {
                if len < wanted || offset < METADATA_TABLE_LEN as u64 || offset + len > region.len {
                    return Err(damaged("an item of the metadata cannot be there"));
                }
                storage.read_at(region.at + offset, &mut value[..wanted as usize])?;
                Ok(u64::from_le_bytes(value))
            };
            let taken = match read_guid(entry, 0) {
                FILE_PARAMETERS => block.replace(read(8)?),
                VIRTUAL_DISK_SIZE => size.replace(read(8)?),
                LOGICAL_SECTOR_SIZE => logical.replace(read(4)?),
                PHYSICAL_SECTOR_SIZE => physical.replace(read(4)?),
                PARENT_LOCATOR => {
                    return Err(unsupported(
                        "it stands on another image (differencing), which is not supported",
                    ));
                }
                VIRTUAL_DISK_ID => None,
                // Bit 2: who does not know it must not open the image. Bit 0: it is a user's.
                _ if flags & 4 != 0 => {
                    return Err(unsupported("it has an item of metadata that must be known, and is not"));
                }
                _ => None,
            };
            if taken.is_some() {
                return Err(damaged("an item of the metadata is there twice"));
            }
        }
        let missing = || damaged("an item of the metadata is missing");
        let parameters = block.ok_or_else(missing)?;
        found.block_size = parameters & 0xffff_ffff;
        if parameters >> 32 & 2 != 0 {
            return Err(unsupported("it stands on another image (differencing), which is not supported"));
        }
        found.size = size.ok_or_else(missing)?;
        found.logical_sector = logical.ok_or_else(missing)?;
        if !found.block_size.is_power_of_two() || !(MIB..=256 * MIB).contains(&found.block_size) {
            return Err(damaged(format!("blocks of {} bytes cannot be", found.block_size)));
        }
        if !matches!(found.logical_sector, 512 | 4096) || !matches!(physical, Some(512 | 4096)) {
            return Err(damaged("its sectors are neither of 512 nor of 4096 bytes"));
        }
        if found.size > MAX_SIZE || !found.size.is_multiple_of(found.logical_sector) {
            return Err(damaged(format!("a disk of {} bytes cannot be", found.size)));
        }
        Ok(found)
    }

    /// Payload blocks between two entries for bitmaps (MS-VHDX 2.5).
    pub fn chunk_ratio(&self) -> u64 {
        (self.logical_sector << 23) / self.block_size
    }

    /// Blocks of the disk.
    pub fn blocks(&self) -> u64 {
        self.size.div_ceil(self.block_size)
    }

    /// The table's entry for a block: bitmaps' entries are among them.
    pub fn index(&self, block: u64) -> u64 {
        block + block / self.chunk_ratio()
    }

    /// Entries of the table of an image that stands on nothing.
    pub fn entries(&self) -> u64 {
        self.blocks().checked_sub(1).map_or(0, |last| self.index(last) + 1)
    }
}
