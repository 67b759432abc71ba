//! CDs that boot: the boot catalog, drives that an image on the CD emulates, INT 13h 4Ah, 4Bh, 4Dh (not 4Ch, which
//! boots).
//!
//! The catalog's default entry is taken if it is for a PC, else the first entry for a PC in its sections. An image
//! without emulation is loaded and started with the CD as drive; one of a floppy or a hard disk is drive 0 or 80h from
//! then on, read-only, until a program ends that.
//!
//! Source: "El Torito" Bootable CD-ROM Format Specification 1.0.
use super::disk::status;
use super::drive::{DriveKind, FIRST_CD, FIRST_DISK, Geometry, SECTOR};
use super::{Bios, Disk, DiskError, Platform, Regs, linear};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// Bytes of a CD's sector.
const BLOCK: usize = 2048;
/// Where volume descriptors begin, and how many are looked at.
const DESCRIPTORS: std::ops::Range<u64> = 16..48;
/// Most blocks of a catalog that are looked at.
const MOST_CATALOG: u64 = 16;
/// Bytes of a specification packet.
const PACKET: usize = 0x13;
/// Platform of a PC with a BIOS.
const X86: u8 = 0;
const BOOTABLE: u8 = 0x88;
/// Section headers: more follow, and the last.
const HEADER: u8 = 0x90;
const LAST_HEADER: u8 = 0x91;
/// The end of conventional memory.
const CONVENTIONAL: u32 = 0x9_fc00;

/// An image that was booted from a CD.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Emulation {
    /// It answers as a drive.
    pub active: bool,
    /// 0 none, 1 to 3 a floppy of 1.2, 1.44 or 2.88 MB, 4 a hard disk.
    pub media: u8,
    /// The drive that it is to programs: that of the CD without emulation.
    pub drive: u8,
    /// Which of the CDs it is on.
    pub index: u8,
    /// First block of the image.
    pub lba: u32,
    /// Where it is loaded; 0 for 7C0h.
    pub segment: u16,
    /// Sectors of 512 bytes that are loaded.
    pub sectors: u16,
    /// Sectors of 512 bytes of the emulated drive.
    pub len: u64,
    pub geometry: Geometry,
}

impl Emulation {
    pub fn kind(&self) -> DriveKind {
        match self.media {
            0 => DriveKind::Cd,
            1..=3 => DriveKind::Floppy,
            _ => DriveKind::HardDisk,
        }
    }

    /// A saved one: whether it can be.
    pub fn is_possible(&self) -> bool {
        let g = self.geometry;
        let drive = self.drive == drive_of(self.media, self.index);
        self.media <= 4 && drive && g.cylinders > 0 && g.heads > 0 && g.sectors > 0
    }

    /// The specification packet (table 5).
    fn packet(&self) -> [u8; PACKET] {
        let mut p = [0; PACKET];
        (p[0], p[1], p[2], p[3]) = (PACKET as u8, self.media, self.drive, self.index);
        p[4..8].copy_from_slice(&self.lba.to_le_bytes());
        // The device: IDE's second device of a channel.
        p[8] = self.index & 1;
        p[12..14].copy_from_slice(&self.segment.to_le_bytes());
        p[14..16].copy_from_slice(&self.sectors.to_le_bytes());
        if self.media != 0 {
            let last = self.geometry.cylinders - 1;
            p[16] = last as u8;
            p[17] = self.geometry.sectors & 0x3f | (last >> 2) as u8 & 0xc0;
            p[18] = self.geometry.heads - 1;
        }
        p
    }
}

fn drive_of(media: u8, index: u8) -> u8 {
    match media {
        0 => FIRST_CD.saturating_add(index),
        1..=3 => 0,
        _ => FIRST_DISK,
    }
}

/// A CD's image as a disk of 512-byte sectors.
struct Image {
    disk: Arc<dyn Disk>,
    first: u64,
    sectors: u64,
}

impl Disk for Image {
    fn sectors(&self) -> u64 {
        self.sectors
    }
    fn writable(&self) -> bool {
        false
    }
    fn read(&self, lba: u64, buf: &mut [u8]) -> Result<(), DiskError> {
        let skip = (lba % 4) as usize * SECTOR;
        let mut blocks = vec![0; (skip + buf.len()).next_multiple_of(BLOCK)];
        self.disk.read(self.first.saturating_add(lba / 4), &mut blocks)?;
        buf.copy_from_slice(&blocks[skip..skip + buf.len()]);
        Ok(())
    }
    fn write(&self, _: u64, _: &[u8]) -> Result<(), DiskError> {
        Err(DiskError::ReadOnly)
    }
}

fn block(disk: &dyn Disk, lba: u64) -> Result<Vec<u8>, String> {
    let mut b = vec![0; BLOCK];
    disk.read(lba, &mut b).map_err(|e| e.to_string())?;
    Ok(b)
}

fn u16_at(b: &[u8], i: usize) -> u16 {
    u16::from_le_bytes([b[i], b[i + 1]])
}

fn u32_at(b: &[u8], i: usize) -> u32 {
    u32::from_le_bytes([b[i], b[i + 1], b[i + 2], b[i + 3]])
}

/// The block of the boot catalog, by the boot record among the volume descriptors.
fn catalog_of(disk: &dyn Disk) -> Result<u64, String> {
    for lba in DESCRIPTORS {
        let Ok(b) = block(disk, lba) else { break };
        if &b[1..6] != b"CD001" || b[0] == 0xff {
            break;
        }
        if b[0] == 0 && b[7..].starts_with(b"EL TORITO SPECIFICATION") {
            return Ok(u32_at(&b, 0x47).into());
        }
    }
    Err("it is not a bootable CD".into())
}

/// The catalog's entry for a PC: its 32 bytes.
fn entry_of(disk: &dyn Disk, catalog: u64) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    for i in 0..MOST_CATALOG {
        match block(disk, catalog.saturating_add(i)) {
            Ok(b) => bytes.extend(b),
            Err(e) if i == 0 => return Err(e),
            Err(_) => break,
        }
        // It goes on only if it is full.
        if bytes[bytes.len() - 32..].iter().all(|b| *b == 0) {
            break;
        }
    }
    let mut entries = bytes.chunks_exact(32);
    let validation = entries.next().ok_or("its boot catalog is empty")?;
    let sum = (0..16).fold(0u16, |sum, i| sum.wrapping_add(u16_at(validation, 2 * i)));
    if validation[0] != 1 || validation[30..] != [0x55, 0xaa] || sum != 0 {
        return Err("its boot catalog is damaged".into());
    }
    let mut platform = validation[1];
    let mut found = entries.next().filter(|e| platform == X86 && e[0] == BOOTABLE).map(<[u8]>::to_vec);
    let (mut left, mut last) = (0, false);
    while found.is_none() {
        let Some(e) = entries.next() else { break };
        match e[0] {
            HEADER | LAST_HEADER if left == 0 && !last => {
                (platform, left, last) = (e[1], u16_at(e, 2), e[0] == LAST_HEADER);
            }
            // Extensions of an entry are not counted.
            0x44 => {}
            indicator if left > 0 => {
                left -= 1;
                found = (platform == X86 && indicator == BOOTABLE).then(|| e.to_vec());
            }
            _ => break,
        }
    }
    found.ok_or_else(|| "it has no boot image for a PC with a BIOS (it may have one for UEFI)".into())
}

/// What is to be booted from the CD of index `index`.
pub(super) fn find(disk: &dyn Disk, index: u8) -> Result<Emulation, String> {
    if disk.sectors() == 0 {
        return Err(DiskError::NoMedium.to_string());
    }
    if disk.sector_size() as usize != BLOCK {
        return Err("its sectors are not those of a CD".into());
    }
    let entry = entry_of(disk, catalog_of(disk)?)?;
    let media = entry[1] & 0x0f;
    let (segment, sectors, lba) = (u16_at(&entry, 2), u16_at(&entry, 6), u32_at(&entry, 8));
    let (len, geometry) = match media {
        0 => (0, Geometry::of_floppy(0)),
        1..=3 => {
            let len = [2400, 2880, 5760][usize::from(media - 1)];
            (len, Geometry::of_floppy(len))
        }
        4 => {
            let mbr = block(disk, lba.into())?;
            // One partition, which says where the image ends.
            let end = |e: &[u8]| u64::from(u32_at(e, 8)) + u64::from(u32_at(e, 12));
            let len = mbr[0x1be..0x1fe].chunks_exact(16).map(end).max().unwrap_or(0);
            let own = Geometry::of_partition_table(&mbr[..SECTOR], len);
            (len, own.unwrap_or_else(|| Geometry::translated(len)))
        }
        _ => return Err(format!("its boot image is of an unknown kind ({media})")),
    };
    // The image ends where the CD does.
    let room = disk.sectors().saturating_sub(lba.into()).saturating_mul(4);
    if room == 0 || media == 4 && len == 0 {
        return Err("its boot image is not on it".into());
    }
    let drive = drive_of(media, index);
    let len = len.min(room);
    Ok(Emulation { active: media != 0, media, drive, index, lba, segment, sectors, len, geometry })
}

/// Loads what is to be started: where it is.
pub(super) fn load(pc: &mut dyn Platform, disk: &dyn Disk, cd: &Emulation) -> Result<u16, String> {
    let segment = if cd.segment == 0 { 0x7c0 } else { cd.segment };
    let at = u32::from(segment) << 4;
    // Of an emulated drive, its boot sector; of an image that says nothing, a block. Whole blocks are loaded.
    let sectors = match (cd.media, cd.sectors) {
        (0, 0) => 4,
        (_, 0) => 1,
        (_, n) => n,
    };
    let mut bytes = u32::from(sectors) * SECTOR as u32;
    if cd.media == 0 {
        bytes = bytes.next_multiple_of(BLOCK as u32);
    }
    if at < 0x500 || at.saturating_add(bytes) > CONVENTIONAL {
        let room = CONVENTIONAL.saturating_sub(at);
        if at < 0x500 || room < SECTOR as u32 {
            return Err(format!("its boot image cannot be loaded at {segment:04X}:0000"));
        }
        tracing::warn!(
            segment,
            bytes,
            "a CD's boot image is larger than memory; the beginning of it is loaded"
        );
        bytes = room / SECTOR as u32 * SECTOR as u32;
    }
    // What an image has less than it says is zeros.
    let there = disk.sectors().saturating_sub(cd.lba.into()).saturating_mul(BLOCK as u64);
    let there = (bytes as usize).next_multiple_of(BLOCK).min(usize::try_from(there).unwrap_or(usize::MAX));
    let mut data = vec![0; (bytes as usize).next_multiple_of(BLOCK)];
    disk.read(cd.lba.into(), &mut data[..there]).map_err(|e| e.to_string())?;
    pc.write(at, &data[..bytes as usize]);
    Ok(segment)
}

impl Bios {
    /// The disk that is emulated.
    pub(super) fn emulated_disk(&self, cd: &Emulation) -> Option<Arc<dyn Disk>> {
        let unit = *self.drives.of(DriveKind::Cd).get(usize::from(cd.index))?;
        let disk = self.drives.units.get(unit)?.drive.disk.clone();
        Some(Arc::new(Image { disk, first: cd.lba.into(), sectors: cd.len }))
    }

    /// AH 4Ah to 4Dh.
    pub(super) fn cd_function(&mut self, r: &mut Regs, pc: &mut dyn Platform) -> Result<(), u8> {
        let packet = linear(r.ds, r.esi as u16);
        match (r.ah(), r.al()) {
            (0x4a, _) => self.emulate(pc, packet)?,
            (0x4b, what @ (0 | 1)) => {
                let drive = r.dl();
                let cd = self.cd.as_mut().filter(|cd| drive == 0x7f || drive == cd.drive);
                let cd = cd.ok_or(status::BAD_PARAMETER)?;
                let shown = cd.packet();
                if what == 0 {
                    cd.active = false;
                }
                pc.write(packet, &shown);
                self.count_drives(pc);
            }
            (0x4d, 0) => self.read_catalog(r, pc, packet)?,
            _ => return Err(status::BAD_PARAMETER),
        }
        r.set_ah(0);
        Ok(())
    }

    /// AH 4Ch: the image that the specification packet names answers as a drive, and is booted.
    pub(super) fn emulate_and_boot(&mut self, r: &mut Regs, pc: &mut dyn Platform) -> Result<(), u8> {
        self.emulate(pc, linear(r.ds, r.esi as u16))?;
        let cd = self.cd.clone().ok_or(status::BAD_PARAMETER)?;
        let cds = self.drives.of(DriveKind::Cd);
        let unit = cds.get(usize::from(cd.index)).and_then(|n| self.drives.units.get(*n));
        let disk = unit.map(|u| u.drive.disk.clone()).ok_or(status::BAD_PARAMETER)?;
        let segment = load(pc, &*disk, &cd).map_err(|_| status::CONTROLLER)?;
        let len = u32::from(cd.sectors.max(4)) * SECTOR as u32;
        self.enter(r, pc, segment & 0xf000, (segment & 0xfff) << 4, cd.drive, len);
        Ok(())
    }

    /// AH 4Ah: the image that the specification packet names answers as a drive.
    fn emulate(&mut self, pc: &mut dyn Platform, packet: u32) -> Result<(), u8> {
        let mut p = [0; PACKET];
        pc.read(packet, &mut p);
        let (media, index) = (p[1] & 0x0f, p[3]);
        let cds = self.drives.of(DriveKind::Cd);
        let unit = cds.get(usize::from(index)).and_then(|n| self.drives.units.get(*n));
        let disk = unit.map(|u| u.drive.disk.clone()).ok_or(status::BAD_PARAMETER)?;
        if usize::from(p[0]) < PACKET || media > 4 || disk.sector_size() as usize != BLOCK {
            return Err(status::BAD_PARAMETER);
        }
        let lba = u32_at(&p, 4);
        let last = u16::from(p[16]) | u16::from(p[17] & 0xc0) << 2;
        let (heads, sectors) = (p[18].wrapping_add(1), p[17] & 0x3f);
        if media == 4 && (heads == 0 || sectors == 0) {
            return Err(status::BAD_PARAMETER);
        }
        let geometry = match media {
            4 => Geometry { cylinders: last + 1, heads, sectors },
            _ => Geometry::of_floppy([0, 2400, 2880, 5760][usize::from(media)]),
        };
        let room = disk.sectors().saturating_sub(lba.into()).saturating_mul(4);
        let len = geometry.reach().min(room);
        let (segment, sectors, drive) = (u16_at(&p, 12), u16_at(&p, 14), drive_of(media, index));
        let active = media != 0;
        self.cd = Some(Emulation { active, media, drive, index, lba, segment, sectors, len, geometry });
        self.count_drives(pc);
        Ok(())
    }

    /// AH 4Dh: sectors of the boot catalog, as the command packet at DS:SI says.
    fn read_catalog(&self, r: &Regs, pc: &mut dyn Platform, packet: u32) -> Result<(), u8> {
        let mut p = [0; 8];
        pc.read(packet, &mut p);
        let cd = self.cd.as_ref().filter(|cd| r.dl() == 0x7f || r.dl() == cd.drive);
        let cds = self.drives.of(DriveKind::Cd);
        let index = match cd {
            Some(cd) => usize::from(cd.index),
            None => usize::from(r.dl().checked_sub(FIRST_CD).ok_or(status::BAD_PARAMETER)?),
        };
        let unit = cds.get(index).and_then(|n| self.drives.units.get(*n)).ok_or(status::BAD_PARAMETER)?;
        let disk = &*unit.drive.disk;
        let catalog = catalog_of(disk).map_err(|_| status::BAD_PARAMETER)?;
        let (count, first) = (u64::from(p[1]), u64::from(u16_at(&p, 6)));
        let to = linear(u16_at(&p, 4), u16_at(&p, 2));
        for i in 0..count {
            let lba = catalog.saturating_add(first + i);
            let data = block(disk, lba).map_err(|_| status::NOT_FOUND)?;
            pc.write(to.wrapping_add(i as u32 * BLOCK as u32), &data);
        }
        Ok(())
    }
}
