//! INT 13h: disks by cylinder, head and sector, and what floppies have; `edd` has the functions from 41h on.
//!
//! Floppies are reached through INT 40h as well: where a program has hooked that vector, INT 13h for a floppy goes on
//! there. Transfers go on linearly at the end of a segment, but a floppy's end at 64 KiB of memory, as the DMA
//! controller's do. Where a program has hooked INT 15h, it is told by 90h that a drive is waited for; IRQ 0 then calls
//! 91h, or the call itself does once 90h has returned.
//!
//! Source: IBM BIOS Interface Technical Reference, INT 13h; Ralf Brown's Interrupt List.
use super::drive::{DriveKind, SECTOR, Seen, Target};
use super::{Bios, Disk, DiskError, Outcome, Platform, Regs, Service, bda, linear, rom};

/// Status codes of INT 13h.
pub(super) mod status {
    pub const BAD_PARAMETER: u8 = 0x01;
    pub const WRITE_PROTECTED: u8 = 0x03;
    pub const NOT_FOUND: u8 = 0x04;
    pub const CHANGED: u8 = 0x06;
    pub const DMA_BOUNDARY: u8 = 0x09;
    pub const BAD_MEDIA_TYPE: u8 = 0x0c;
    pub const CONTROLLER: u8 = 0x20;
    pub const NO_MEDIUM: u8 = 0x31;
    pub const NOT_READY: u8 = 0x80;
    pub const NOT_LOCKED: u8 = 0xb0;
    pub const LOCKED: u8 = 0xb1;
    pub const NOT_REMOVABLE: u8 = 0xb2;
    pub const TOO_MANY_LOCKS: u8 = 0xb4;
    pub const EJECT_FAILED: u8 = 0xb5;
}

/// Most sectors of one call by cylinder, head and sector: what a segment holds.
const MOST: u8 = 128;
/// Bytes that are in memory at once, whatever a call asks for.
const CHUNK: usize = 64 << 10;

/// What is done to sectors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Transfer {
    Read,
    Write,
    Verify,
}

/// Where a transfer's memory is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// At a linear address of the caller's.
    Linear(u32),
    /// At a physical address.
    Physical(u64),
}

impl Bios {
    /// INT 13h, and INT 40h for floppies.
    pub(super) fn disk(&mut self, r: &mut Regs, pc: &mut dyn Platform, service: Service) -> Outcome {
        let drive = r.dl();
        let low = drive < 0x80;
        if low && service == Service::Disk {
            // A program that has taken INT 40h is the floppies' BIOS; its IRET goes to our caller.
            let (offset, segment) = (pc.u16(4 * 0x40), pc.u16(4 * 0x40 + 2));
            if (segment, offset) != (super::SEGMENT, self.rom.vectors[0x40]) && (segment, offset) != (0, 0) {
                (r.cs, r.ip) = (segment, offset);
                return Outcome::Jump;
            }
        }
        let moves = matches!(r.ah(), 0x02..=0x05 | 0x42..=0x44);
        if service != Service::DriveReady && moves && self.system_hooked(pc) {
            self.waiting = Some(u8::from(!low));
            r.ip = self.rom.drive_wait[usize::from(!low)];
            return Outcome::Jump;
        }
        let at = if low { bda::FLOPPY_STATUS } else { bda::DISK_STATUS };
        if r.ah() == 0x01 {
            // The status of the last operation.
            let last = pc.u8(at);
            return if last == 0 { r.ok() } else { r.fail(last) };
        }
        if r.ax() == 0x4c00 {
            return match self.emulate_and_boot(r, pc) {
                Ok(()) => Outcome::Jump,
                Err(code) => {
                    pc.set_u8(at, code);
                    r.fail(code)
                }
            };
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

    /// INT 15h 90h has returned: where it was not, 91h is called.
    pub(super) fn drive_waited(&mut self, r: &mut Regs) -> Outcome {
        if self.waiting.take().is_some() {
            return Outcome::Return;
        }
        r.ip = self.rom.drive_posted;
        Outcome::Jump
    }

    fn disk_function(&mut self, r: &mut Regs, pc: &mut dyn Platform) -> Result<(), u8> {
        let function = r.ah();
        // The CD's functions have a drive number that need not be there (7Fh: any).
        if matches!(function, 0x4a..=0x4d) {
            return self.cd_function(r, pc);
        }
        let Some(seen) = self.seen(r.dl()) else {
            if function == 0x15 {
                // "No such drive" is an answer, and not an error.
                r.set_ah(0);
                return Ok(());
            }
            return Err(status::BAD_PARAMETER);
        };
        let floppy = seen.kind == DriveKind::Floppy;
        match function {
            0x41..=0x4e => return self.extended(r, pc, &seen),
            // A CD is reached by blocks only.
            0x02..=0x05 | 0x08 | 0x15 if seen.kind == DriveKind::Cd => return Err(status::BAD_PARAMETER),
            // Reset, recalibrate, seek and the like: nothing moves.
            0x00 | 0x0d => r.set_ah(0),
            0x09 | 0x0c | 0x10 | 0x11 | 0x14 if !floppy => r.set_ah(0),
            0x02..=0x04 => {
                self.see_change(&seen)?;
                start_motor(pc, &seen, r.dl());
                let what = [Transfer::Read, Transfer::Write, Transfer::Verify][usize::from(function - 2)];
                let count = r.al();
                if count == 0 || count > MOST {
                    return Err(status::BAD_PARAMETER);
                }
                let cylinder = u16::from(r.ch()) | u16::from(r.cl() & 0xc0) << 2;
                let cylinder = if floppy { r.ch().into() } else { cylinder };
                let lba = seen.geometry.lba(cylinder, r.dh(), r.cl() & 0x3f);
                let lba = lba.ok_or(status::BAD_PARAMETER)?;
                let at = linear(r.es, r.bx());
                if what != Transfer::Verify && seen.by_dma() && crosses(at, usize::from(count) * SECTOR) {
                    r.set_al(0);
                    return Err(status::DMA_BOUNDARY);
                }
                let to = Place::Linear(at);
                let (done, result) = transfer(&*seen.disk, pc, what, lba, count.into(), to);
                r.set_al(done as u8);
                result.map_err(|e| e.status(seen.kind))?;
                r.set_ah(0);
            }
            0x05 if floppy => {
                self.see_change(&seen)?;
                start_motor(pc, &seen, r.dl());
                format_track(r, pc, &seen)?;
                r.set_ah(0);
            }
            0x08 => {
                let kind = if floppy { self.floppy_drive(pc, &seen) } else { None };
                let g = kind.map_or(seen.geometry, |kind| seen.geometry.in_drive(kind));
                // A hard disk's last cylinder is kept back for diagnostics, as BIOSes since the AT's do; it can be
                // read.
                let last = g.cylinders.saturating_sub(if floppy { 1 } else { 2 });
                r.set_ax(0);
                r.set_ch(last as u8);
                r.set_cl(g.sectors & 0x3f | (last >> 2) as u8 & 0xc0);
                r.set_dh(g.heads.saturating_sub(1));
                r.set_dl(self.count(seen.kind) as u8);
                if floppy {
                    let kind = kind.unwrap_or_else(|| g.diskette());
                    r.set_bx(kind.into());
                    (r.es, r.edi) = (super::SEGMENT, rom::floppy_table(kind).into());
                }
            }
            // With a change line.
            0x15 if floppy => r.set_ah(2),
            0x15 => {
                let g = seen.geometry;
                let cylinders = u32::from(g.cylinders.saturating_sub(1).max(1));
                let sectors = cylinders * u32::from(g.heads) * u32::from(g.sectors);
                r.set_cx((sectors >> 16) as u16);
                r.set_dx(sectors as u16);
                r.set_ah(3);
            }
            // Only an access takes the change away. A drive without a diskette has it.
            0x16 if floppy => {
                if seen.disk.sectors() == 0 || self.is_changed(&seen) {
                    return Err(status::CHANGED);
                }
                r.set_ah(0);
            }
            // The type of a diskette, by number: 360 KiB in its own drive or another, 1.2 MB, 720 KiB.
            0x17 if floppy => {
                let fits = match r.al() {
                    1 | 2 => seen.geometry.cylinders <= 42,
                    3 => true,
                    4 => seen.geometry.sectors == 9,
                    _ => return Err(status::BAD_PARAMETER),
                };
                if !fits {
                    return Err(status::BAD_MEDIA_TYPE);
                }
                r.set_ah(0);
            }
            // The type of a diskette, by its tracks: the table for it.
            0x18 if floppy => {
                if seen.disk.sectors() == 0 {
                    return Err(status::NOT_READY);
                }
                let (cylinders, sectors) = (u16::from(r.ch()) | u16::from(r.cl() & 0xc0) << 2, r.cl() & 0x3f);
                if (cylinders.wrapping_add(1), sectors) != (seen.geometry.cylinders, seen.geometry.sectors) {
                    return Err(status::BAD_MEDIA_TYPE);
                }
                let table = rom::floppy_table(seen.geometry.diskette());
                (r.es, r.edi) = (super::SEGMENT, table.into());
                r.set_ah(0);
            }
            _ => return Err(status::BAD_PARAMETER),
        }
        Ok(())
    }

    /// Tells once that the medium of a floppy drive is another one.
    pub(super) fn see_change(&mut self, seen: &Seen) -> Result<(), u8> {
        if seen.kind == DriveKind::Floppy && seen.disk.sectors() == 0 {
            return Err(status::NOT_READY);
        }
        if seen.kind == DriveKind::Floppy && self.changed(seen) { Err(status::CHANGED) } else { Ok(()) }
    }

    /// The type of a floppy drive, as AH 08h has it, if CMOS 10h tells.
    fn floppy_drive(&self, pc: &mut dyn Platform, seen: &Seen) -> Option<u8> {
        let Target::Unit(unit) = seen.target else { return None };
        let types = pc.cmos(0x10);
        let kind = match self.drives.of(DriveKind::Floppy).iter().position(|n| *n == unit)? {
            0 => types >> 4,
            _ => types & 0x0f,
        };
        (1..=5).contains(&kind).then_some(kind)
    }

    /// Whether the medium is another one than it was at the last access.
    fn is_changed(&self, seen: &Seen) -> bool {
        let Target::Unit(n) = seen.target else { return false };
        self.drives.units.get(n).is_some_and(|unit| unit.medium != seen.disk.medium())
    }

    /// Whether the medium is another one than it was when this was last asked.
    pub(super) fn changed(&mut self, seen: &Seen) -> bool {
        let Target::Unit(n) = seen.target else { return false };
        let now = seen.disk.medium();
        self.drives.units.get_mut(n).is_some_and(|unit| std::mem::replace(&mut unit.medium, now) != now)
    }
}

impl Seen {
    /// Its data goes through the DMA controller: a floppy's that is no image on a CD.
    fn by_dma(&self) -> bool {
        self.kind == DriveKind::Floppy && self.target != Target::Emulated
    }
}

/// Whether memory from `at` on is more than a DMA controller reaches: not all in the same 64 KiB.
fn crosses(at: u32, len: usize) -> bool {
    (at & 0xffff) as usize + len > 0x1_0000
}

/// A byte of the parameter table that INT 1Eh points to.
fn floppy_parameter(pc: &mut dyn Platform, index: u32) -> u8 {
    let (offset, segment) = (pc.u16(4 * 0x1e), pc.u16(4 * 0x1e + 2));
    pc.u8(linear(segment, offset) + index)
}

/// A floppy's motor runs, and for how many ticks.
fn start_motor(pc: &mut dyn Platform, seen: &Seen, drive: u8) {
    const OFF_DELAY: u32 = 2;
    if !seen.by_dma() {
        return;
    }
    let motors = pc.u8(bda::MOTORS);
    pc.set_u8(bda::MOTORS, motors | 1 << (drive & 3));
    let ticks = floppy_parameter(pc, OFF_DELAY);
    pc.set_u8(bda::MOTOR_COUNT, ticks);
}

/// AH 05h: the sectors that the address fields at ES:BX name (cylinder, head, sector, size), filled as the
/// parameter table says.
fn format_track(r: &Regs, pc: &mut dyn Platform, seen: &Seen) -> Result<(), u8> {
    const FILL: u32 = 8;
    if !seen.disk.writable() {
        return Err(status::WRITE_PROTECTED);
    }
    let mut fields = vec![0; 4 * usize::from(r.al().min(seen.geometry.sectors))];
    if fields.is_empty() {
        return Err(status::BAD_PARAMETER);
    }
    let at = linear(r.es, r.bx());
    if seen.by_dma() && crosses(at, fields.len()) {
        return Err(status::DMA_BOUNDARY);
    }
    pc.read(at, &mut fields);
    let fill = vec![floppy_parameter(pc, FILL); seen.disk.sector_size() as usize];
    for field in fields.chunks_exact(4) {
        let here = field[0] == r.ch() && field[1] == r.dh() && field[3] == 2;
        let lba = seen.geometry.lba(field[0].into(), field[1], field[2]).filter(|_| here);
        let lba = lba.ok_or(status::BAD_PARAMETER)?;
        seen.disk.write(lba, &fill).map_err(|e| e.status(seen.kind))?;
    }
    Ok(())
}

/// Moves `count` sectors from `lba` on: as many as were done, and how it ended.
pub(super) fn transfer(
    disk: &dyn Disk,
    pc: &mut dyn Platform,
    what: Transfer,
    lba: u64,
    count: u32,
    place: Place,
) -> (u32, Result<(), DiskError>) {
    let size = disk.sector_size() as usize;
    if disk.sectors() == 0 {
        return (0, Err(DiskError::NoMedium));
    }
    if lba.checked_add(count.into()).is_none_or(|end| end > disk.sectors()) {
        return (0, Err(DiskError::Range));
    }
    if what == Transfer::Write && !disk.writable() {
        return (0, Err(DiskError::ReadOnly));
    }
    let at_once = (CHUNK / size).max(1) as u32;
    let mut data = vec![0; count.min(at_once) as usize * size];
    let mut done = 0;
    while done < count {
        let n = (count - done).min(at_once);
        let data = &mut data[..n as usize * size];
        let offset = u64::from(done) * size as u64;
        let at = lba + u64::from(done);
        let result = match what {
            Transfer::Write => {
                match place {
                    Place::Linear(a) => pc.read(a.wrapping_add(offset as u32), data),
                    Place::Physical(a) => pc.read_physical(a.wrapping_add(offset), data),
                }
                disk.write(at, data)
            }
            Transfer::Read | Transfer::Verify => disk.read(at, data),
        };
        if result.is_err() {
            return (done, result);
        }
        if what == Transfer::Read {
            match place {
                Place::Linear(a) => pc.write(a.wrapping_add(offset as u32), data),
                Place::Physical(a) => pc.write_physical(a.wrapping_add(offset), data),
            }
        }
        done += n;
    }
    (done, Ok(()))
}
