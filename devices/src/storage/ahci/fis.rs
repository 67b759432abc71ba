//! Frames between host and device (Serial ATA 2.6, 10.3), as far as memory shows them.
use crate::storage::ata::{Device, Register, Registers};

/// Types.
pub const HOST_TO_DEVICE: u8 = 0x27;
const DEVICE_TO_HOST: u8 = 0x34;
const SET_DEVICE_BITS: u8 = 0xa1;
const PIO_SETUP: u8 = 0x5f;
/// Where each is in the received FISes (AHCI 1.3.1, 4.2.1).
pub const AT_PIO_SETUP: u64 = 0x20;
pub const AT_DEVICE_TO_HOST: u64 = 0x40;
pub const AT_SET_DEVICE_BITS: u64 = 0x58;
/// Bytes of the received FISes.
pub const RECEIVED: u64 = 0x100;

const TO_HOST: u8 = 1 << 5;
const INTERRUPT: u8 = 1 << 6;
const COMMAND: u8 = 1 << 7;

/// A frame from the host, as a command table has it.
pub struct Frame(pub [u8; 64]);

impl Frame {
    /// Whether it is one for a device that is not behind a port multiplier.
    pub fn is_valid(&self) -> bool {
        self.0[0] == HOST_TO_DEVICE && self.0[1] & 0x0f == 0
    }

    /// Whether it is a command, not the control register.
    pub fn is_command(&self) -> bool {
        self.0[1] & COMMAND != 0
    }

    /// The command.
    pub fn code(&self) -> u8 {
        self.0[2]
    }

    /// The control register.
    pub fn control(&self) -> u8 {
        self.0[15]
    }

    /// The features register, or the number of sectors of a queued command.
    pub fn features(&self) -> u16 {
        u16::from_le_bytes([self.0[3], self.0[11]])
    }

    /// The number of sectors; of a queued command the upper bits of the low byte are its tag.
    pub fn count(&self) -> u16 {
        u16::from_le_bytes([self.0[12], self.0[13]])
    }

    /// An address of 48 bits.
    pub fn lba(&self) -> u64 {
        let f = &self.0;
        u64::from_le_bytes([f[4], f[5], f[6], f[8], f[9], f[10], 0, 0])
    }

    /// The device register.
    pub fn device(&self) -> u8 {
        self.0[7]
    }

    /// Writes the registers of a device, all but the command.
    pub fn registers_to(&self, device: &mut Device) {
        let f = &self.0;
        for (register, high, low) in [
            (Register::Features, f[11], f[3]),
            (Register::Count, f[13], f[12]),
            (Register::Low, f[8], f[4]),
            (Register::Mid, f[9], f[5]),
            (Register::High, f[10], f[6]),
        ] {
            device.write(register, high);
            device.write(register, low);
        }
        device.write(Register::Device, f[7]);
    }
}

/// Registers, from the device.
pub fn device_to_host(r: &Registers, interrupt: bool) -> [u8; 20] {
    let mut f = [0; 20];
    f[0] = DEVICE_TO_HOST;
    f[1] = if interrupt { INTERRUPT } else { 0 };
    registers(&mut f, r, r.status);
    f
}

/// A block of data at what was the data port: its direction, the status before and after it, its length.
pub fn pio_setup(r: &Registers, before: u8, to_host: bool, interrupt: bool, bytes: usize) -> [u8; 20] {
    let mut f = [0; 20];
    f[0] = PIO_SETUP;
    f[1] = if interrupt { INTERRUPT } else { 0 } | if to_host { TO_HOST } else { 0 };
    registers(&mut f, r, before);
    f[15] = r.status;
    f[16..18].copy_from_slice(&(bytes as u16).to_le_bytes());
    f
}

fn registers(f: &mut [u8; 20], r: &Registers, status: u8) {
    (f[2], f[3]) = (status, r.error);
    for (n, pair) in [r.low, r.mid, r.high].into_iter().enumerate() {
        (f[4 + n], f[8 + n]) = (pair[0], pair[1]);
    }
    f[7] = r.device;
    (f[12], f[13]) = (r.count[0], r.count[1]);
}

/// Commands of a queue that have ended, and the status of the device.
pub fn set_device_bits(status: u8, error: u8, done: u32) -> [u8; 8] {
    let mut f = [SET_DEVICE_BITS, INTERRUPT, status & 0x77, error, 0, 0, 0, 0];
    f[4..].copy_from_slice(&done.to_le_bytes());
    f
}
