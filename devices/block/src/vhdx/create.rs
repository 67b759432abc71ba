//! New VHDX images.
use super::format::*;
use super::{FULLY_PRESENT, ZERO};
use crate::blocks::uuid;
use crate::crc32c::without_itself;
use crate::storage::Storage;
use std::io;

/// What is chosen of a new image, by QEMU's names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Bytes of the disk.
    pub size: u64,
    /// 0 for what suits the size.
    pub block_size: u64,
    /// Bytes of the log.
    pub log_size: u64,
    /// All blocks are there from the start.
    pub fixed: bool,
    /// Blocks that are not there are said to be zeros, not to be missing.
    pub block_state_zero: bool,
}

impl Options {
    /// A dynamic image.
    pub fn new(size: u64) -> Self {
        Self { size, block_size: 0, log_size: MIB, fixed: false, block_state_zero: true }
    }

    /// The options as they will be: sizes rounded as QEMU does.
    ///
    /// # Errors
    /// What is chosen cannot be.
    pub fn validate(mut self) -> io::Result<Self> {
        let invalid = |text: &str| Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        if self.size > MAX_SIZE {
            return invalid("a VHDX image has at most 64 TiB");
        }
        if !(MIB..=256 * MIB).contains(&self.log_size) {
            return invalid("a VHDX image's log has from 1 to 256 MiB");
        }
        self.log_size = self.log_size.next_multiple_of(MIB);
        self.size = self.size.next_multiple_of(512);
        if self.block_size == 0 {
            self.block_size = match self.size {
                n if n > 32 << 40 => 64 * MIB,
                n if n > 100 << 30 => 32 * MIB,
                n if n > 1 << 30 => 16 * MIB,
                _ => 8 * MIB,
            };
        }
        if !self.block_size.is_power_of_two() || !(MIB..=256 * MIB).contains(&self.block_size) {
            return invalid("a VHDX image's blocks have from 1 to 256 MiB, a power of two");
        }
        Ok(self)
    }
}

/// Makes a new image in `storage`, which is empty.
///
/// # Errors
/// What is chosen cannot be; the host's.
pub fn create(storage: &dyn Storage, options: &Options) -> io::Result<()> {
    let options = options.validate()?;
    let found = Metadata { block_size: options.block_size, size: options.size, logical_sector: 512 };
    let log = Region { at: MIB, len: options.log_size };
    let bat = Region { at: log.end(), len: (found.entries() * 8).next_multiple_of(MIB).max(MIB) };
    let metadata = Region { at: bat.end(), len: MIB };
    let data = metadata.end();

    let mut start = vec![0; 1024];
    start[..8].copy_from_slice(SIGNATURE);
    for (room, unit) in start[8..520].chunks_exact_mut(2).zip("Mynah".encode_utf16()) {
        room.copy_from_slice(&unit.to_le_bytes());
    }
    storage.write_at(0, &start)?;
    let all = if options.fixed { found.blocks() * options.block_size } else { 0 };
    storage.set_len(data + all)?;

    let mut table = vec![0; REGION_TABLE_LEN];
    table[..4].copy_from_slice(b"regi");
    table[8] = 2;
    for (n, (id, region)) in [(BAT, bat), (METADATA, metadata)].into_iter().enumerate() {
        let entry = &mut table[16 + n * 32..][..32];
        entry[..16].copy_from_slice(&id);
        entry[16..24].copy_from_slice(&region.at.to_le_bytes());
        entry[24..28].copy_from_slice(&(region.len as u32).to_le_bytes());
        entry[28] = 1;
    }
    let sum = without_itself(&table, 4);
    table[4..8].copy_from_slice(&sum.to_le_bytes());
    for at in REGION_TABLES {
        storage.write_at(at, &table)?;
    }

    // The items' flags: bit 1 for what the disk is, bit 2 for what must be known.
    let parameters = options.block_size | u64::from(options.fixed) << 32;
    let items: [(Guid, Vec<u8>, u8); 5] = [
        (FILE_PARAMETERS, parameters.to_le_bytes().to_vec(), 4),
        (VIRTUAL_DISK_SIZE, options.size.to_le_bytes().to_vec(), 6),
        (VIRTUAL_DISK_ID, uuid().to_vec(), 6),
        (LOGICAL_SECTOR_SIZE, 512u32.to_le_bytes().to_vec(), 6),
        (PHYSICAL_SECTOR_SIZE, 512u32.to_le_bytes().to_vec(), 6),
    ];
    let mut table = vec![0; METADATA_TABLE_LEN];
    table[..8].copy_from_slice(b"metadata");
    table[10] = items.len() as u8;
    let mut offset = METADATA_TABLE_LEN as u32;
    for (n, (id, value, flags)) in items.iter().enumerate() {
        let entry = &mut table[32 + n * 32..][..32];
        entry[..16].copy_from_slice(id);
        entry[16..20].copy_from_slice(&offset.to_le_bytes());
        entry[20..24].copy_from_slice(&(value.len() as u32).to_le_bytes());
        entry[24] = *flags;
        storage.write_at(metadata.at + u64::from(offset), value)?;
        offset += value.len() as u32;
    }
    storage.write_at(metadata.at, &table)?;

    if options.fixed || options.block_state_zero {
        let mut entries = Vec::new();
        let mut next = 0;
        for block in 0..found.blocks() {
            let index = found.index(block);
            // A bitmap's entry before it is that of one that is not there.
            entries.resize((index - next) as usize * 8, 0);
            let entry =
                if options.fixed { (data + block * options.block_size) | FULLY_PRESENT } else { ZERO };
            entries.extend(entry.to_le_bytes());
            if entries.len() >= 1 << 20 || block + 1 == found.blocks() {
                storage.write_at(bat.at + next * 8, &entries)?;
                entries.clear();
                next = index + 1;
            }
        }
    }
    let mut header = Header {
        sequence: 0,
        file_write: uuid(),
        data_write: uuid(),
        log_guid: Guid::default(),
        log,
        slot: 1,
    };
    header.write(storage)
}
