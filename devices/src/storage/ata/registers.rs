//! The command block: what the host writes a command into, and finds its result in.
use super::{device_bits, status};
use serde::{Deserialize, Serialize};

/// A register of the command block that is a byte wide, by its offset from the first port (ATA/ATAPI-6, table 20).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Register {
    /// Error, and features when written.
    Features,
    /// Sector count; interrupt reason of packet devices.
    Count,
    /// LBA low, sector number.
    Low,
    /// LBA mid, cylinder low, byte count low.
    Mid,
    /// LBA high, cylinder high, byte count high.
    High,
    /// Device/head.
    Device,
}

impl Register {
    /// The register at this offset, if there is one there beside data, status and command.
    pub fn at(offset: u16) -> Option<Self> {
        Some(match offset {
            1 => Self::Features,
            2 => Self::Count,
            3 => Self::Low,
            4 => Self::Mid,
            5 => Self::High,
            6 => Self::Device,
            _ => return None,
        })
    }
}

/// The registers. Those that are two bytes deep have what was written last first, and before that what was there then
/// (the 48-bit commands' high half; 6.20).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Registers {
    features: [u8; 2],
    /// Sector count.
    pub count: [u8; 2],
    /// LBA low.
    pub low: [u8; 2],
    /// LBA mid.
    pub mid: [u8; 2],
    /// LBA high.
    pub high: [u8; 2],
    /// Device.
    pub device: u8,
    /// Error.
    pub error: u8,
    /// Status.
    pub status: u8,
    /// INTRQ is asserted, if the device is selected and the host has not disabled it.
    pub interrupt: bool,
}

impl Registers {
    /// As a reset leaves them: the signature of a device of this kind, and no error (ATA/ATAPI-6, 9.12).
    pub fn signature(packet: bool, device: u8) -> Self {
        let (mid, high) = if packet { (0x14, 0xeb) } else { (0, 0) };
        Self {
            count: [1, 0],
            low: [1, 0],
            mid: [mid, 0],
            high: [high, 0],
            device: device_bits::OBSOLETE | device & device_bits::DEV,
            error: 1,
            status: if packet { 0 } else { status::DRDY | status::DSC },
            ..Self::default()
        }
    }

    /// The host writes one of them.
    pub fn write(&mut self, register: Register, value: u8) {
        let pair = match register {
            Register::Features => &mut self.features,
            Register::Count => &mut self.count,
            Register::Low => &mut self.low,
            Register::Mid => &mut self.mid,
            Register::High => &mut self.high,
            Register::Device => return self.device = value | device_bits::OBSOLETE,
        };
        *pair = [value, pair[0]];
    }

    /// The host reads one, or with `high_order` (HOB) what was in it before.
    pub fn read(&self, register: Register, high_order: bool) -> u8 {
        let n = usize::from(high_order);
        match register {
            Register::Features => self.error,
            Register::Count => self.count[n],
            Register::Low => self.low[n],
            Register::Mid => self.mid[n],
            Register::High => self.high[n],
            Register::Device => self.device,
        }
    }

    /// Features.
    pub fn features(&self) -> u8 {
        self.features[0]
    }

    /// Sectors of a command: 0 stands for the most.
    pub fn sectors(&self, wide: bool) -> u32 {
        match (wide, u16::from_le_bytes(self.count)) {
            (true, 0) => 0x1_0000,
            (true, n) => n.into(),
            (false, n) if n & 0xff == 0 => 0x100,
            (false, n) => u32::from(n & 0xff),
        }
    }

    /// The address of a 48-bit command, or a 28-bit one in LBA.
    pub fn lba(&self, wide: bool) -> u64 {
        let bytes =
            |n: usize| u64::from(self.low[n]) | u64::from(self.mid[n]) << 8 | u64::from(self.high[n]) << 16;
        if wide { bytes(0) | bytes(1) << 24 } else { bytes(0) | u64::from(self.device & 0x0f) << 24 }
    }

    /// Shows an address as [`Registers::lba`] reads it.
    pub fn set_lba(&mut self, wide: bool, lba: u64) {
        let bytes = lba.to_le_bytes();
        (self.low[0], self.mid[0], self.high[0]) = (bytes[0], bytes[1], bytes[2]);
        if wide {
            (self.low[1], self.mid[1], self.high[1]) = (bytes[3], bytes[4], bytes[5]);
        } else {
            self.device = self.device & 0xf0 | bytes[3] & 0x0f;
        }
    }

    /// Cylinder, head and sector.
    pub fn chs(&self) -> (u32, u32, u32) {
        (
            u16::from_le_bytes([self.mid[0], self.high[0]]).into(),
            u32::from(self.device & 0x0f),
            self.low[0].into(),
        )
    }

    /// Shows cylinder, head and sector.
    pub fn set_chs(&mut self, cylinder: u32, head: u32, sector: u32) {
        self.low[0] = sector as u8;
        (self.mid[0], self.high[0]) = (cylinder as u8, (cylinder >> 8) as u8);
        self.device = self.device & 0xf0 | head as u8 & 0x0f;
    }
}
