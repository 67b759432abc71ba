//! INT 13h: disks, by cylinders and by blocks (EDD).
//!
//! A disk is anything that implements [`Disk`]; drives that are not there answer as an AT does, with error 01h. Floppies
//! and disks without a geometry of their own get one that programs expect.
//!
//! Source: Phoenix Enhanced Disk Drive Specification 3.0; IBM BIOS Interface Technical Reference, INT 13h.
use super::{Bios, Outcome, Platform, Regs, bda, linear, rom};

/// Status codes of INT 13h.
mod status {
    pub const BAD_PARAMETER: u8 = 0x01;
    pub const WRITE_PROTECTED: u8 = 0x03;
    pub const NOT_FOUND: u8 = 0x04;
    pub const CONTROLLER: u8 = 0x20;
}

/// Most sectors of one call: what EDD promises to take, and a segment holds.
const MOST: u16 = 127;

/// Why a disk did not do what it was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DiskError {
    /// Beyond the end.
    #[error("beyond the end of the disk")]
    Range,
    /// It cannot be written.
    #[error("write-protected")]
    ReadOnly,
    /// The medium, or what is behind it, failed.
    #[error("read or write error")]
    Failed,
}

impl DiskError {
    fn status(self) -> u8 {
        match self {
            DiskError::Range => status::NOT_FOUND,
            DiskError::ReadOnly => status::WRITE_PROTECTED,
            DiskError::Failed => status::CONTROLLER,
        }
    }
}

/// A disk behind INT 13h.
pub trait Disk: Send + Sync {
    /// Sectors.
    fn sectors(&self) -> u64;
    /// Bytes of a sector.
    fn sector_size(&self) -> u32 {
        512
    }
    /// Cylinders, heads and sectors per track, if they are the disk's own.
    fn geometry(&self) -> Option<(u16, u8, u8)> {
        None
    }
    /// Reads sectors from `lba` on, as many as fill `buf` (a multiple of the sector size).
    fn read(&self, lba: u64, buf: &mut [u8]) -> Result<(), DiskError>;
    /// Writes sectors from `lba` on.
    fn write(&self, lba: u64, buf: &[u8]) -> Result<(), DiskError>;
}

/// The geometry that programs see: a floppy's by its size, else the one by which BIOSes reach 8 GB.
fn geometry(disk: &dyn Disk, floppy: bool) -> (u16, u8, u8) {
    if let Some(g) = disk.geometry() {
        return g;
    }
    let sectors = disk.sectors();
    if floppy {
        let known =
            [(720, 40, 2, 9), (1440, 80, 2, 9), (2400, 80, 2, 15), (2880, 80, 2, 18), (5760, 80, 2, 36)];
        let fit = known.into_iter().find(|k| sectors <= k.0).unwrap_or((5760, 80, 2, 36));
        return (fit.1, fit.2, fit.3);
    }
    let heads = match sectors / 63 {
        0..=0x3fff => 16,
        0x4000..=0x7fff => 32,
        0x8000..=0xffff => 64,
        0x1_0000..=0x1_ffff => 128,
        _ => 255u64,
    };
    ((sectors / (63 * heads)).clamp(1, 1024) as u16, heads as u8, 63)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Transfer {
    Read,
    Write,
    Verify,
}

impl Bios {
    /// INT 13h.
    pub(super) fn disk(&mut self, r: &mut Regs, pc: &mut dyn Platform) -> Outcome {
        let drive = r.dl();
        let at = if drive < 0x80 { bda::FLOPPY_STATUS } else { bda::DISK_STATUS };
        if r.ah() == 0x01 {
            // The status of the last operation.
            let last = pc.u8(at);
            return if last == 0 { r.ok() } else { r.fail(last) };
        }
        let result = self.disk_function(r, pc);
        let code = result.err().unwrap_or(0);
        pc.set_u8(at, code);
        match code {
            // What AH says, some functions have decided themselves.
            0 => {
                r.carry(false);
                Outcome::Return
            }
            code => r.fail(code),
        }
    }

    fn disk_function(&mut self, r: &mut Regs, pc: &mut dyn Platform) -> Result<(), u8> {
        let drive = r.dl();
        let floppy = drive < 0x80;
        let function = r.ah();
        let Some(disk) = self.disks.get(&drive).cloned() else {
            if function == 0x15 {
                // "No such drive" is an answer, and not an error.
                r.set_ah(0);
                return Ok(());
            }
            return Err(status::BAD_PARAMETER);
        };
        let disk = &*disk;
        match function {
            // Reset, recalibrate, seek and the like: nothing moves.
            0x00 | 0x09 | 0x0c | 0x0d | 0x10 | 0x11 | 0x14 => r.set_ah(0),
            0x02..=0x04 => {
                let what = [Transfer::Read, Transfer::Write, Transfer::Verify][usize::from(function - 2)];
                let (cylinders, heads, per_track) = geometry(disk, floppy);
                let cylinder = u16::from(r.ch()) | u16::from(r.cl() & 0xc0) << 2;
                let (head, sector) = (r.dh(), r.cl() & 0x3f);
                let bad = cylinder >= cylinders || head >= heads || sector == 0 || sector > per_track;
                if bad || r.al() == 0 || u16::from(r.al()) > 128 {
                    return Err(status::BAD_PARAMETER);
                }
                let track = u64::from(cylinder) * u64::from(heads) + u64::from(head);
                let lba = track * u64::from(per_track) + u64::from(sector) - 1;
                let to = linear(r.es, r.bx());
                transfer(disk, pc, what, lba, r.al().into(), to)?;
                r.set_ah(0);
            }
            0x08 => {
                let (cylinders, heads, per_track) = geometry(disk, floppy);
                let last = cylinders.saturating_sub(1);
                r.set_ax(0);
                r.set_ch(last as u8);
                r.set_cl(per_track & 0x3f | (last >> 2) as u8 & 0xc0);
                r.set_dh(heads.saturating_sub(1));
                let count = self.disks.keys().filter(|n| (**n < 0x80) == floppy).count();
                r.set_dl(count as u8);
                if floppy {
                    r.set_bx(match per_track {
                        9 if cylinders == 40 => 1,
                        15 => 2,
                        9 => 3,
                        36 => 5,
                        _ => 4,
                    });
                    (r.es, r.edi) = (super::SEGMENT, rom_floppy_table());
                }
            }
            0x15 if floppy => r.set_ah(1),
            0x15 => {
                let sectors = disk.sectors().min(u32::MAX.into()) as u32;
                r.set_cx((sectors >> 16) as u16);
                r.set_dx(sectors as u16);
                r.set_ah(3);
            }
            0x41 if r.bx() == 0x55aa && !floppy => {
                r.set_bx(0xaa55);
                r.set_ah(0x30); // EDD 3.0
                r.set_cx(0x05); // fixed disk access, EDD
            }
            0x42..=0x44 | 0x47 if !floppy => extended(r, pc, disk, function)?,
            0x48 if !floppy => parameters(r, pc, disk)?,
            _ => return Err(status::BAD_PARAMETER),
        }
        Ok(())
    }
}

fn rom_floppy_table() -> u32 {
    u32::from(rom::FLOPPY_TABLE)
}

fn transfer(
    disk: &dyn Disk,
    pc: &mut dyn Platform,
    what: Transfer,
    lba: u64,
    count: u16,
    address: u32,
) -> Result<(), u8> {
    if lba.checked_add(count.into()).is_none_or(|end| end > disk.sectors()) {
        return Err(DiskError::Range.status());
    }
    let mut data = vec![0; usize::from(count) * disk.sector_size() as usize];
    match what {
        Transfer::Write => {
            pc.read(address, &mut data);
            disk.write(lba, &data).map_err(DiskError::status)
        }
        _ => {
            disk.read(lba, &mut data).map_err(DiskError::status)?;
            if what == Transfer::Read {
                pc.write(address, &data);
            }
            Ok(())
        }
    }
}

/// AH 42h read, 43h write, 44h verify, 47h seek: the address packet at DS:SI.
fn extended(r: &mut Regs, pc: &mut dyn Platform, disk: &dyn Disk, function: u8) -> Result<(), u8> {
    let packet = linear(r.ds, r.esi as u16);
    let mut p = [0; 16];
    pc.read(packet, &mut p);
    if p[0] < 16 {
        return Err(status::BAD_PARAMETER);
    }
    let word = |i: usize| u16::from_le_bytes([p[i], p[i + 1]]);
    let lba = u64::from_le_bytes([p[8], p[9], p[10], p[11], p[12], p[13], p[14], p[15]]);
    let count = word(2);
    let what = match function {
        0x42 => Transfer::Read,
        0x43 => Transfer::Write,
        0x44 => Transfer::Verify,
        _ => {
            if lba >= disk.sectors() {
                return Err(status::NOT_FOUND);
            }
            r.set_ah(0);
            return Ok(());
        }
    };
    let done = if count > MOST {
        Err(status::BAD_PARAMETER)
    } else {
        transfer(disk, pc, what, lba, count, linear(word(6), word(4)))
    };
    if done.is_err() {
        // None were transferred.
        pc.set_u16(packet + 2, 0);
    }
    r.set_ah(0);
    done
}

/// AH 48h: the result buffer at DS:SI.
fn parameters(r: &mut Regs, pc: &mut dyn Platform, disk: &dyn Disk) -> Result<(), u8> {
    let at = linear(r.ds, r.esi as u16);
    if pc.u16(at) < 26 {
        return Err(status::BAD_PARAMETER);
    }
    let (cylinders, heads, per_track) = geometry(disk, false);
    // The geometry is valid where it covers the disk.
    let valid = disk.sectors() <= 1024 * 255 * 63;
    let mut b = Vec::new();
    b.extend(26u16.to_le_bytes());
    b.extend((1u16 | u16::from(valid) << 1).to_le_bytes()); // DMA boundaries are not the caller's concern
    for n in [cylinders.into(), u32::from(heads), per_track.into()] {
        b.extend(n.to_le_bytes());
    }
    b.extend(disk.sectors().to_le_bytes());
    b.extend((disk.sector_size() as u16).to_le_bytes());
    pc.write(at, &b);
    r.set_ah(0);
    Ok(())
}
