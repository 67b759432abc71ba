//! INT 13h from 41h on: disks by block, removable media, and where a disk is (Phoenix Enhanced Disk Drive 3.0).
use super::disk::{Place, Transfer, status, transfer};
use super::drive::{DriveKind, DrivePath, Seen, Target};
use super::{Bios, Platform, Regs, linear};
use crate::tables::EBDA;

/// EDD 3.0.
const VERSION: u8 = 0x30;
/// Fixed disk access, removable media, EDD, 64-bit addresses.
const SUBSETS: u16 = 0x0f;
/// Where the device parameter table extension is: behind the tables of INT 41h and 46h in the EBDA.
const DPTE: u16 = 0x80;
/// The key of the device path.
const PATH_KEY: u16 = 0xbedd;

impl Bios {
    /// AH 41h to 49h and 4Eh.
    pub(super) fn extended(&mut self, r: &mut Regs, pc: &mut dyn Platform, seen: &Seen) -> Result<(), u8> {
        // Of floppies too: that of a CD's image and real ones have none of it.
        if seen.kind == DriveKind::Floppy {
            return Err(status::BAD_PARAMETER);
        }
        match r.ah() {
            0x41 if r.bx() == 0x55aa => {
                r.set_bx(0xaa55);
                r.set_cx(SUBSETS);
                r.set_ah(VERSION);
                return Ok(());
            }
            0x42 => packet(r, pc, seen, Transfer::Read)?,
            0x43 if r.al() <= 2 => packet(r, pc, seen, Transfer::Write)?,
            0x44 => packet(r, pc, seen, Transfer::Verify)?,
            0x45 => self.lock(r, seen)?,
            0x46 => self.eject(seen)?,
            0x47 => seek(r, pc, seen)?,
            0x48 => self.parameters(r, pc, seen)?,
            0x49 if seen.kind != DriveKind::Cd => {}
            0x49 => {
                if self.changed(seen) {
                    return Err(status::CHANGED);
                }
                if seen.disk.sectors() == 0 {
                    return Err(status::NO_MEDIUM);
                }
            }
            // Hardware configuration: what is off may be asked to be off.
            0x4e if matches!(r.al(), 1 | 3 | 4 | 6) => r.set_al(0),
            _ => return Err(status::BAD_PARAMETER),
        }
        r.set_ah(0);
        Ok(())
    }

    /// AH 45h: AL 0 locks, 1 unlocks, 2 asks.
    fn lock(&mut self, r: &mut Regs, seen: &Seen) -> Result<(), u8> {
        let unit = match seen.target {
            Target::Unit(n) if seen.kind == DriveKind::Cd => self.drives.units.get_mut(n),
            _ => None,
        };
        let unit = unit.ok_or(status::NOT_REMOVABLE)?;
        match r.al() {
            0 => unit.locks = unit.locks.checked_add(1).ok_or(status::TOO_MANY_LOCKS)?,
            1 => unit.locks = unit.locks.checked_sub(1).ok_or(status::NOT_LOCKED)?,
            2 => {}
            _ => return Err(status::BAD_PARAMETER),
        }
        if r.al() < 2 {
            seen.disk.lock(unit.locks > 0);
        }
        r.set_al(u8::from(unit.locks > 0));
        Ok(())
    }

    /// AH 46h.
    fn eject(&mut self, seen: &Seen) -> Result<(), u8> {
        let Target::Unit(n) = seen.target else { return Err(status::NOT_REMOVABLE) };
        if seen.kind != DriveKind::Cd {
            return Err(status::NOT_REMOVABLE);
        }
        if self.drives.units.get(n).is_some_and(|u| u.locks > 0) {
            return Err(status::LOCKED);
        }
        if seen.disk.sectors() == 0 {
            return Err(status::NO_MEDIUM);
        }
        seen.disk.eject().map_err(|e| e.status(seen.kind))
    }

    /// AH 48h: the result buffer at DS:SI, as much of it as the caller has room for.
    fn parameters(&self, r: &Regs, pc: &mut dyn Platform, seen: &Seen) -> Result<(), u8> {
        let at = linear(r.ds, r.esi as u16);
        let room = pc.u16(at);
        if room < 26 {
            return Err(status::BAD_PARAMETER);
        }
        let cd = seen.kind == DriveKind::Cd;
        let g = seen.geometry;
        // DMA boundaries are not the caller's concern. A CD is removable, tells of changes, can be locked.
        let covered = !cd && seen.disk.sectors() <= 1024 * 255 * 63;
        let flags = 1u16 | u16::from(covered) << 1 | if cd { 0x34 } else { 0 };
        let mut b = Vec::new();
        b.extend([0; 2]);
        b.extend(flags.to_le_bytes());
        for n in [u32::from(g.cylinders), g.heads.into(), g.sectors.into()] {
            b.extend(if cd { 0 } else { n }.to_le_bytes());
        }
        b.extend(seen.disk.sectors().to_le_bytes());
        b.extend((seen.disk.sector_size() as u16).to_le_bytes());
        let path = match seen.target {
            Target::Unit(n) => self.drives.units.get(n).map_or(DrivePath::Unknown, |u| u.drive.path),
            Target::Emulated => DrivePath::Unknown,
        };
        if room >= 30 {
            let table = device_table(path, seen);
            if let Some(table) = &table {
                pc.write(EBDA as u32 + u32::from(DPTE), table);
            }
            let far = [DPTE, (EBDA >> 4) as u16];
            let far = if table.is_some() { far } else { [0xffff; 2] };
            b.extend(far.map(u16::to_le_bytes).as_flattened());
        }
        if room >= 66 {
            // EDD 3.0's path is 36 bytes long, T13's 44: its device has 16 bytes.
            b.extend(path_of(path, if room >= 74 { 16 } else { 8 }));
        }
        let length = b.len() as u16;
        b[..2].copy_from_slice(&length.to_le_bytes());
        pc.write(at, &b);
        Ok(())
    }
}

/// Makes the bytes' sum zero with the last one.
fn fix_sum(bytes: &mut [u8]) {
    if let Some((last, rest)) = bytes.split_last_mut() {
        *last = rest.iter().fold(0u8, |sum, b| sum.wrapping_sub(*b));
    }
}

/// The device parameter table extension of an ATA drive (EDD 3.0, table 10).
fn device_table(path: DrivePath, seen: &Seen) -> Option<[u8; 16]> {
    let DrivePath::Ata { ports, irq, slave, packet, .. } = path else { return None };
    let mut t = [0; 16];
    t[..2].copy_from_slice(&ports.0.to_le_bytes());
    t[2..4].copy_from_slice(&ports.1.to_le_bytes());
    t[4] = 0xe0 | u8::from(slave) << 4; // LBA
    t[5] = 0xcb; // a proprietary head register is not used
    t[6] = irq & 15;
    t[7] = 1; // sectors of a multiple transfer
    // CHS translation is LBA-assisted; LBA is there; removable and ATAPI for a CD.
    let cd = seen.kind == DriveKind::Cd;
    let translated = !cd;
    let options = u16::from(translated) << 3
        | 1 << 4
        | u16::from(cd) << 5
        | u16::from(packet) << 6
        | u16::from(translated) << 9;
    t[10..12].copy_from_slice(&options.to_le_bytes());
    t[14] = 0x11;
    fix_sum(&mut t);
    Some(t)
}

/// The device path (EDD 3.0, table 8; EDD-3, T13 1572D, 8.21): host bus, interface, and where on them, the device in so
/// many bytes.
fn path_of(path: DrivePath, device_bytes: u8) -> Vec<u8> {
    fn text<const N: usize>(s: &str) -> [u8; N] {
        let mut out = [b' '; N];
        out.iter_mut().zip(s.bytes()).for_each(|(o, c)| *o = c);
        out
    }
    let place =
        |(bus, device, function): (u8, u8, u8), channel: u8| [bus, device, function, channel, 0, 0, 0, 0];
    let (bus, interface, at, device) = match path {
        DrivePath::Unknown => return Vec::new(),
        DrivePath::Ata { pci, ports, slave, packet, .. } => {
            let name: [u8; 8] = text(if packet { "ATAPI" } else { "ATA" });
            let [low, high] = ports.0.to_le_bytes();
            let second = u8::from(ports.0 == 0x170);
            let (bus, at): ([u8; 4], _) = match pci {
                Some(pci) => (text("PCI"), place(pci, second)),
                None => (text("ISA"), [low, high, 0, 0, 0, 0, 0, 0]),
            };
            (bus, name, at, u64::from(slave))
        }
        DrivePath::Pci { pci, interface, unit } => (text("PCI"), text(interface), place(pci, 0), unit),
    };
    let mut p = Vec::new();
    p.extend(PATH_KEY.to_le_bytes());
    p.extend([28 + device_bytes, 0, 0, 0]);
    p.extend(bus);
    p.extend(interface);
    p.extend(at);
    p.extend(device.to_le_bytes());
    p.resize(20 + usize::from(device_bytes) + 6, 0);
    p.extend([0, 0]);
    fix_sum(&mut p);
    p
}

/// The address packet at DS:SI: its bytes, and the block.
fn address(r: &Regs, pc: &mut dyn Platform) -> Result<([u8; 24], u64), u8> {
    let at = linear(r.ds, r.esi as u16);
    let mut p = [0; 24];
    pc.read(at, &mut p[..16]);
    if p[0] < 16 {
        return Err(status::BAD_PARAMETER);
    }
    if p[0] >= 24 {
        pc.read(at.wrapping_add(16), &mut p[16..]);
    }
    Ok((p, u64::from_le_bytes([p[8], p[9], p[10], p[11], p[12], p[13], p[14], p[15]])))
}

/// AH 42h, 43h, 44h. The packet's count becomes what was done.
fn packet(r: &Regs, pc: &mut dyn Platform, seen: &Seen, what: Transfer) -> Result<(), u8> {
    let (p, lba) = address(r, pc)?;
    let word = |i: usize| u16::from_le_bytes([p[i], p[i + 1]]);
    let place = if (word(4), word(6)) == (0xffff, 0xffff) && p[0] >= 24 {
        Place::Physical(u64::from_le_bytes([p[16], p[17], p[18], p[19], p[20], p[21], p[22], p[23]]))
    } else {
        Place::Linear(linear(word(6), word(4)))
    };
    let (done, result) = transfer(&*seen.disk, pc, what, lba, word(2).into(), place);
    if result.is_err() {
        pc.set_u16(linear(r.ds, r.esi as u16).wrapping_add(2), done as u16);
    }
    result.map_err(|e| e.status(seen.kind))
}

/// AH 47h.
fn seek(r: &Regs, pc: &mut dyn Platform, seen: &Seen) -> Result<(), u8> {
    let (_, lba) = address(r, pc)?;
    if lba < seen.disk.sectors() { Ok(()) } else { Err(status::NOT_FOUND) }
}
