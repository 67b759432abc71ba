//! A device on an ATA cable as a pure model: its task file, a disk's commands, and the frame of the packet protocol.
//!
//! ```text
//!   host --Device::write, command, data port--> Device --take_request--> whoever submits it to the drive
//!        <--read, data port, interrupt----------       <--answered------ how it ended
//!   bus master --dma_out, dma_in, dma_moved--> its buffer
//! ```
//!
//! A device has no lock, thread or pin. It does one thing at a time ([`Phase`]): it waits for its drive, for the host
//! at the data port, or for the bus master. At most [`CHUNK`] bytes are asked of the drive, or kept for it, at once. A
//! reset while the drive is at work takes until that has ended (BSY), so that no write of before follows one of after.
//!
//! On purpose absent, as on QEMU's disks: queued commands (TCQ, NCQ), security, HPA (the native maximum is told, not
//! set), CompactFlash's and streaming commands. A disk stands by at once and knows no time-outs.
//!
//! Source: ATA/ATAPI-6 (T13/1410D r3b), ATA/ATAPI-7 (T13/1532D), ATA8-ACS (T13/1699D).
mod device;
mod disk;
pub mod geometry;
mod identify;
mod registers;
#[cfg(test)]
mod tests;

pub(in crate::storage) use device::{Asked, Op, PIO_CHUNK, ResetKind};
pub use device::{CHUNK, Device, DeviceV1, Direction, Phase, Setup};
pub use geometry::Geometry;
pub use registers::{Register, Registers};

/// Bytes of a sector.
pub const SECTOR: u64 = 512;

/// Bits of the status register (ATA/ATAPI-6, 7.15).
pub mod status {
    /// Busy.
    pub const BSY: u8 = 1 << 7;
    /// Device ready.
    pub const DRDY: u8 = 1 << 6;
    /// Seek complete (service).
    pub const DSC: u8 = 1 << 4;
    /// Data request.
    pub const DRQ: u8 = 1 << 3;
    /// Error (check).
    pub const ERR: u8 = 1 << 0;
}

/// Bits of the error register (ATA/ATAPI-6, 7.9).
pub mod error {
    /// Command aborted.
    pub const ABRT: u8 = 1 << 2;
    /// Address not found.
    pub const IDNF: u8 = 1 << 4;
    /// Data that cannot be corrected.
    pub const UNC: u8 = 1 << 6;
}

/// Bits of the device register (7.7).
pub mod device_bits {
    /// Bits that are obsolete, and read as set.
    pub const OBSOLETE: u8 = 0xa0;
    /// LBA, not CHS.
    pub const LBA: u8 = 1 << 6;
    /// Device 1.
    pub const DEV: u8 = 1 << 4;
}

/// Command codes (ATA/ATAPI-6, table 13).
pub mod command {
    #![allow(missing_docs, reason = "they are called as the standard calls them")]
    pub const NOP: u8 = 0x00;
    pub const DATA_SET_MANAGEMENT: u8 = 0x06;
    pub const DEVICE_RESET: u8 = 0x08;
    pub const RECALIBRATE: u8 = 0x10;
    pub const READ_SECTORS: u8 = 0x20;
    pub const READ_SECTORS_ONCE: u8 = 0x21;
    pub const READ_SECTORS_EXT: u8 = 0x24;
    pub const READ_DMA_EXT: u8 = 0x25;
    pub const READ_NATIVE_MAX_EXT: u8 = 0x27;
    pub const READ_MULTIPLE_EXT: u8 = 0x29;
    pub const WRITE_SECTORS: u8 = 0x30;
    pub const WRITE_SECTORS_ONCE: u8 = 0x31;
    pub const WRITE_SECTORS_EXT: u8 = 0x34;
    pub const WRITE_DMA_EXT: u8 = 0x35;
    pub const WRITE_MULTIPLE_EXT: u8 = 0x39;
    pub const WRITE_VERIFY: u8 = 0x3c;
    pub const WRITE_DMA_FUA_EXT: u8 = 0x3d;
    pub const READ_VERIFY: u8 = 0x40;
    pub const READ_VERIFY_ONCE: u8 = 0x41;
    pub const READ_VERIFY_EXT: u8 = 0x42;
    pub const SEEK: u8 = 0x70;
    pub const EXECUTE_DEVICE_DIAGNOSTIC: u8 = 0x90;
    pub const INITIALIZE_DEVICE_PARAMETERS: u8 = 0x91;
    pub const PACKET: u8 = 0xa0;
    pub const IDENTIFY_PACKET_DEVICE: u8 = 0xa1;
    pub const SMART: u8 = 0xb0;
    pub const READ_MULTIPLE: u8 = 0xc4;
    pub const WRITE_MULTIPLE: u8 = 0xc5;
    pub const SET_MULTIPLE_MODE: u8 = 0xc6;
    pub const READ_DMA: u8 = 0xc8;
    pub const READ_DMA_ONCE: u8 = 0xc9;
    pub const WRITE_DMA: u8 = 0xca;
    pub const WRITE_DMA_ONCE: u8 = 0xcb;
    pub const WRITE_MULTIPLE_FUA_EXT: u8 = 0xce;
    pub const STANDBY_IMMEDIATE: u8 = 0xe0;
    pub const IDLE_IMMEDIATE: u8 = 0xe1;
    pub const STANDBY: u8 = 0xe2;
    pub const IDLE: u8 = 0xe3;
    pub const CHECK_POWER_MODE: u8 = 0xe5;
    pub const SLEEP: u8 = 0xe6;
    pub const FLUSH_CACHE: u8 = 0xe7;
    pub const FLUSH_CACHE_EXT: u8 = 0xea;
    pub const IDENTIFY_DEVICE: u8 = 0xec;
    pub const SET_FEATURES: u8 = 0xef;
    pub const READ_NATIVE_MAX: u8 = 0xf8;
}
