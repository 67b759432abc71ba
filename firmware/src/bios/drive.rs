//! Drives: what is behind INT 13h, which number each has, and the geometry that programs see.
//!
//! Floppies are 0 and 1, hard disks 80h and up, CDs E0h and up. Hard disks are numbered by boot index, then as they
//! were plugged in; the one that is booted is 80h, as boot loaders expect. A CD that emulates a floppy or a hard disk
//! is drive 0 or 80h, and the others of its kind are one further.
//!
//! Geometry: a floppy's by its size. A hard disk's is that of its partition table, if the table has one, since
//! programs on it rely on that; else the LBA-assisted translation (Phoenix EDD 3.0, appendix on translation).
use super::{Bios, BiosConfig, Platform, bda, status};
use crate::tables::EBDA;
use std::cell::Cell;
use std::sync::Arc;

/// First number of CDs.
pub(super) const FIRST_CD: u8 = 0xe0;
/// First number of hard disks.
pub(super) const FIRST_DISK: u8 = 0x80;
/// Numbers of floppies, hard disks and CDs that there may be.
const MOST: [usize; 3] = [2, 16, 16];
/// Bytes of a hard disk's and a floppy's sector.
pub(super) const SECTOR: usize = 512;

/// Why a disk did not do what it was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DiskError {
    /// Beyond the end.
    #[error("beyond the end of the disk")]
    Range,
    /// It cannot be written.
    #[error("write-protected")]
    ReadOnly,
    /// There is no medium in the drive.
    #[error("no medium in the drive")]
    NoMedium,
    /// It cannot be ejected.
    #[error("the medium cannot be ejected")]
    Held,
    /// The medium, or what is behind it, failed.
    #[error("read or write error")]
    Failed,
}

impl DiskError {
    /// The status of INT 13h.
    pub(super) fn status(self, kind: DriveKind) -> u8 {
        match self {
            DiskError::Range => status::NOT_FOUND,
            DiskError::ReadOnly => status::WRITE_PROTECTED,
            DiskError::NoMedium if kind == DriveKind::Floppy => status::NOT_READY,
            DiskError::NoMedium => status::NO_MEDIUM,
            DiskError::Held => status::EJECT_FAILED,
            DiskError::Failed => status::CONTROLLER,
        }
    }
}

/// A disk behind INT 13h. Calls come from a vCPU's thread while the guest waits.
pub trait Disk: Send + Sync {
    /// Sectors; 0 without a medium.
    fn sectors(&self) -> u64;
    /// Bytes of a sector: 512, or 2048 for a CD.
    fn sector_size(&self) -> u32 {
        512
    }
    /// Cylinders, heads and sectors per track, if the user has given them.
    fn geometry(&self) -> Option<(u16, u8, u8)> {
        None
    }
    /// Whether it can be written.
    fn writable(&self) -> bool {
        true
    }
    /// A number that is another one once the medium has been changed.
    fn medium(&self) -> u64 {
        0
    }
    /// Reads sectors from `lba` on, as many as fill `buf` (a multiple of the sector size).
    fn read(&self, lba: u64, buf: &mut [u8]) -> Result<(), DiskError>;
    /// Writes sectors from `lba` on.
    fn write(&self, lba: u64, buf: &[u8]) -> Result<(), DiskError>;
    /// Holds the medium, or lets go of it.
    fn lock(&self, on: bool) {
        let _ = on;
    }
    /// Ejects the medium.
    fn eject(&self) -> Result<(), DiskError> {
        Err(DiskError::Held)
    }
}

/// What a drive is to programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum DriveKind {
    /// 0 and 1.
    Floppy,
    /// From 80h on.
    HardDisk,
    /// From E0h on.
    Cd,
}

/// Where a drive is, as EDD tells it to a system that looks for the same drive (INT 13h AH 48h).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DrivePath {
    /// It is not told.
    #[default]
    Unknown,
    /// On an ATA channel.
    Ata {
        /// Bus, device and function of the controller; none if it is on the ISA bus.
        pci: Option<(u8, u8, u8)>,
        /// Command and control ports (1F0h and 3F6h).
        ports: (u16, u16),
        /// The channel's interrupt.
        irq: u8,
        /// It is the second device of its channel.
        slave: bool,
        /// It is an ATAPI device.
        packet: bool,
    },
    /// On a PCI function that is no ATA controller.
    Pci {
        /// Bus, device and function.
        pci: (u8, u8, u8),
        /// The interface: "SATA", "SCSI" (which virtio's disks are as well: EDD has no name for them); "NVME", for
        /// which it has none either.
        interface: &'static str,
        /// Which of the controller's devices, as EDD's device path has it: of SATA the port, of NVMe the namespace, of
        /// SCSI the target in 16 bits, then the logical unit.
        unit: u64,
    },
}

/// A drive to be plugged in.
pub struct Drive {
    /// What it is to programs.
    pub kind: DriveKind,
    /// What the boot menu calls it: the model, or what the user named it.
    pub name: String,
    /// Its place in the boot order (`bootindex`): drives with one come first, lowest number first.
    pub boot_index: Option<u32>,
    /// Where it is.
    pub path: DrivePath,
    /// What it does.
    pub disk: Arc<dyn Disk>,
}

/// A drive that is plugged in.
pub(super) struct Unit {
    pub drive: Drive,
    /// The medium that was last told of.
    pub medium: u64,
    /// How often it was locked.
    pub locks: u8,
    /// The geometry of this medium with so many sectors: as of the start, whatever is written to it later.
    known: Cell<Option<(u64, u64, Geometry)>>,
}

/// A disk's geometry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(super) struct Geometry {
    pub cylinders: u16,
    pub heads: u8,
    pub sectors: u8,
}

/// Floppies by their sectors: cylinders, heads, sectors per track.
const FLOPPIES: [(u64, u16, u8, u8); 14] = [
    (320, 40, 1, 8),
    (360, 40, 1, 9),
    (640, 40, 2, 8),
    (720, 40, 2, 9),
    (1280, 80, 2, 8),
    (1440, 80, 2, 9),
    (2400, 80, 2, 15),
    (2880, 80, 2, 18),
    (3200, 80, 2, 20),
    (3360, 80, 2, 21),
    (3444, 82, 2, 21),
    (3486, 83, 2, 21),
    (3840, 80, 2, 24),
    (5760, 80, 2, 36),
];

impl Geometry {
    fn new((cylinders, heads, sectors): (u16, u8, u8)) -> Geometry {
        Geometry { cylinders: cylinders.clamp(1, 1024), heads: heads.max(1), sectors: sectors.clamp(1, 63) }
    }

    /// Of a floppy with so many sectors; the next larger format if it is none of them.
    pub fn of_floppy(sectors: u64) -> Geometry {
        let fit = FLOPPIES.into_iter().find(|k| sectors <= k.0);
        let (_, c, h, s) = fit.unwrap_or(FLOPPIES[FLOPPIES.len() - 1]);
        Geometry::new((c, h, s))
    }

    /// The LBA-assisted translation: 63 sectors, and heads enough for 1,024 cylinders.
    pub fn translated(sectors: u64) -> Geometry {
        let heads = match sectors / 63 / 1024 {
            0..=16 => 16,
            17..=32 => 32,
            33..=64 => 64,
            65..=128 => 128,
            _ => 255u64,
        };
        Geometry::new(((sectors / (63 * heads)).min(1024) as u16, heads as u8, 63))
    }

    /// That by which a partition table was written: heads and sectors of a partition's last sector.
    pub fn of_partition_table(sector: &[u8], sectors: u64) -> Option<Geometry> {
        if sector.get(510..512)? != [0x55, 0xaa] {
            return None;
        }
        let mut found = None;
        for entry in sector.get(0x1be..0x1fe)?.chunks_exact(16) {
            let word = |i: usize| u32::from_le_bytes([entry[i], entry[i + 1], entry[i + 2], entry[i + 3]]);
            let (start, count) = (u64::from(word(8)), u64::from(word(12)));
            // A protective partition (EEh) says nothing.
            if entry[4] == 0 || entry[4] == 0xee || count == 0 {
                continue;
            }
            let (head, sector) = (entry[5], entry[6] & 0x3f);
            let cylinder = u64::from(entry[7]) | u64::from(entry[6] & 0xc0) << 2;
            if sector == 0 || head == 0xff || head == 0 {
                return None;
            }
            let (heads, per_track) = (head + 1, sector);
            // Where the last sector can be told, it must be where the table says.
            let last = (cylinder * u64::from(heads) + u64::from(head)) * u64::from(per_track)
                + u64::from(sector)
                - 1;
            if cylinder < 1023 && last != start + count - 1 {
                return None;
            }
            if found.is_some_and(|f| f != (heads, per_track)) {
                return None;
            }
            found = Some((heads, per_track));
        }
        let (heads, per_track) = found?;
        let cylinders = sectors / (u64::from(heads) * u64::from(per_track));
        (cylinders > 0).then(|| Geometry::new((cylinders.min(1024) as u16, heads, per_track)))
    }

    /// The block of a cylinder, head and sector, if they are the disk's.
    pub fn lba(self, cylinder: u16, head: u8, sector: u8) -> Option<u64> {
        if cylinder >= self.cylinders || head >= self.heads || sector == 0 || sector > self.sectors {
            return None;
        }
        let track = u64::from(cylinder) * u64::from(self.heads) + u64::from(head);
        Some(track * u64::from(self.sectors) + u64::from(sector) - 1)
    }

    /// The type of a diskette with this format, as INT 13h AH 08h numbers them.
    pub fn diskette(self) -> u8 {
        match (self.cylinders, self.sectors) {
            (..=42, _) => 1,
            (_, 15) => 2,
            (_, 8 | 9) => 3,
            (_, 36) => 5,
            _ => 4,
        }
    }

    /// A floppy drive's of a type (1 to 5); a diskette may have more than that.
    pub fn in_drive(self, kind: u8) -> Geometry {
        let (cylinders, sectors) = match kind {
            1 => (40, 9),
            2 => (80, 15),
            3 => (80, 9),
            5 => (80, 36),
            _ => (80, 18),
        };
        let more = self.cylinders > cylinders || self.sectors > sectors;
        if more { self } else { Geometry { cylinders, heads: 2, sectors } }
    }

    /// Sectors that can be reached by it.
    pub fn reach(self) -> u64 {
        u64::from(self.cylinders) * u64::from(self.heads) * u64::from(self.sectors)
    }
}

/// Which drive a number is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Target {
    /// That of a CD's image.
    Emulated,
    /// The unit of this index.
    Unit(usize),
}

/// A drive as a function of INT 13h uses it.
pub(super) struct Seen {
    pub target: Target,
    pub kind: DriveKind,
    pub disk: Arc<dyn Disk>,
    pub geometry: Geometry,
}

impl Unit {
    fn new(drive: Drive) -> Unit {
        let medium = drive.disk.medium();
        Unit { drive, medium, locks: 0, known: Cell::new(None) }
    }

    /// As after power-on.
    pub fn start(&mut self) {
        (self.medium, self.locks) = (self.drive.disk.medium(), 0);
        self.known.set(None);
    }

    pub fn geometry(&self) -> Geometry {
        let now = (self.drive.disk.medium(), self.drive.disk.sectors());
        if let Some((medium, sectors, geometry)) = self.known.get()
            && (medium, sectors) == now
        {
            return geometry;
        }
        let geometry = self.find_geometry();
        self.known.set(Some((now.0, now.1, geometry)));
        geometry
    }

    fn find_geometry(&self) -> Geometry {
        let disk = &*self.drive.disk;
        if let Some(g) = disk.geometry() {
            return Geometry::new(g);
        }
        let sectors = disk.sectors();
        match self.drive.kind {
            DriveKind::Floppy => Geometry::of_floppy(sectors),
            DriveKind::Cd => Geometry::translated(sectors.saturating_mul(4)),
            DriveKind::HardDisk => {
                let mut first = vec![0; disk.sector_size() as usize];
                let read = disk.read(0, &mut first).is_ok();
                let own = if read { Geometry::of_partition_table(&first, sectors) } else { None };
                own.unwrap_or_else(|| Geometry::translated(sectors))
            }
        }
    }
}

/// Units of each kind in the order in which they are numbered.
pub(super) struct Drives {
    pub units: Vec<Unit>,
    /// Hard disks, first that of 80h: which of `units`.
    pub hard_disks: Vec<usize>,
}

impl Drives {
    pub fn new() -> Drives {
        Drives { units: Vec::new(), hard_disks: Vec::new() }
    }

    /// Units of one kind, by number.
    pub fn of(&self, kind: DriveKind) -> Vec<usize> {
        if kind == DriveKind::HardDisk {
            return self.hard_disks.clone();
        }
        let is = |n: &usize| self.units[*n].drive.kind == kind;
        (0..self.units.len()).filter(is).collect()
    }

    /// Numbers the hard disks by boot index, then as they were plugged in.
    pub fn number(&mut self) {
        let is = |n: &usize| self.units[*n].drive.kind == DriveKind::HardDisk;
        let mut disks: Vec<usize> = (0..self.units.len()).filter(is).collect();
        disks.sort_by_key(|n| self.units[*n].drive.boot_index.unwrap_or(u32::MAX));
        self.hard_disks = disks;
    }

    /// Makes the hard disk `unit` drive 80h; the others keep their order.
    pub fn promote(&mut self, unit: usize) {
        if let Some(at) = self.hard_disks.iter().position(|n| *n == unit) {
            self.hard_disks[..=at].rotate_right(1);
        }
    }
}

impl Bios {
    /// Plugs in a drive. Numbers are given by [`Bios::install`], so drives are plugged in before it. A third floppy, a
    /// seventeenth hard disk or CD cannot be reached: false says so.
    pub fn add_drive(&mut self, drive: Drive) -> bool {
        let kind = drive.kind;
        let there = self.drives.units.iter().filter(|u| u.drive.kind == kind).count();
        if there >= MOST[kind as usize] {
            tracing::warn!(
                ?kind,
                name = drive.name,
                "the BIOS has no number for one more drive of this kind"
            );
            return false;
        }
        self.drives.units.push(Unit::new(drive));
        self.drives.number();
        true
    }

    /// Plugs in a disk without a name: a floppy if `number` is below 80h, a hard disk if it is below E0h, else a CD.
    pub fn add_disk(&mut self, number: u8, disk: Arc<dyn Disk>) {
        let (kind, name) = match number {
            0..FIRST_DISK => (DriveKind::Floppy, "Floppy"),
            FIRST_DISK..FIRST_CD => (DriveKind::HardDisk, "Hard Disk"),
            FIRST_CD.. => (DriveKind::Cd, "DVD/CD"),
        };
        let path = DrivePath::Unknown;
        self.add_drive(Drive { kind, name: name.into(), boot_index: None, path, disk });
    }

    /// Which drive `number` is now.
    pub(super) fn target(&self, number: u8) -> Option<Target> {
        let emulated = self.cd.as_ref().filter(|cd| cd.active).map(|cd| cd.drive);
        if emulated == Some(number) {
            return Some(Target::Emulated);
        }
        let (kind, first) = match number {
            0..FIRST_DISK => (DriveKind::Floppy, 0),
            FIRST_DISK..FIRST_CD => (DriveKind::HardDisk, FIRST_DISK),
            FIRST_CD.. => (DriveKind::Cd, FIRST_CD),
        };
        // The image has taken the first number of its kind.
        let shifted = emulated.is_some_and(|e| e == first && kind != DriveKind::Cd);
        let index = usize::from(number - first).checked_sub(usize::from(shifted))?;
        self.drives.of(kind).get(index).map(|n| Target::Unit(*n))
    }

    /// Drives of a kind, with that of a CD's image.
    pub(super) fn count(&self, kind: DriveKind) -> usize {
        let of_cd = self.cd.as_ref().is_some_and(|cd| cd.active && cd.kind() == kind);
        self.drives.of(kind).len() + usize::from(of_cd)
    }

    /// The drive `number` and what is known of it.
    pub(super) fn seen(&self, number: u8) -> Option<Seen> {
        let target = self.target(number)?;
        match target {
            Target::Unit(n) => {
                let unit = self.drives.units.get(n)?;
                let (kind, disk) = (unit.drive.kind, unit.drive.disk.clone());
                Some(Seen { target, kind, disk, geometry: unit.geometry() })
            }
            Target::Emulated => {
                let cd = self.cd.as_ref()?;
                let disk = self.emulated_disk(cd)?;
                Some(Seen { target, kind: cd.kind(), disk, geometry: cd.geometry })
            }
        }
    }
}

/// Tables of drives 80h and 81h in the EBDA, where INT 41h and 46h point.
const TABLES: [(u32, u32); 2] = [(0x41, 0x3d), (0x46, 0x4d)];

impl Bios {
    /// What programs find in memory of the drives: BDA, vectors of parameter tables and the tables; the equipment
    /// word was `equipment`.
    pub(super) fn drive_data(&self, equipment: u16) -> Vec<(u32, Vec<u8>)> {
        let floppies = self.count(DriveKind::Floppy).min(4) as u16;
        let equipment = equipment & !0xc1 | u16::from(floppies > 0) | floppies.saturating_sub(1) << 6;
        let mut data = vec![
            (bda::EQUIPMENT, equipment.to_le_bytes().to_vec()),
            (bda::DISK_COUNT, vec![self.count(DriveKind::HardDisk) as u8]),
        ];
        // The state of a drive: what its medium is has been found out.
        let states = (0..2).map(|n| if n < floppies { 0x17 } else { 0 });
        data.push((bda::FLOPPY_STATES, states.collect()));
        for (i, (vector, at)) in TABLES.into_iter().enumerate() {
            let table = self.seen(FIRST_DISK + i as u8).map(|seen| parameter_table(&seen));
            let far = if table.is_some() { [at as u16, (EBDA >> 4) as u16] } else { [0; 2] };
            data.push((4 * vector, far.map(u16::to_le_bytes).as_flattened().to_vec()));
            if let Some(table) = table {
                data.push((EBDA as u32 + at, table.to_vec()));
            }
        }
        data
    }

    /// Tells programs of drives that have come, gone or been renumbered.
    pub(super) fn count_drives(&self, pc: &mut dyn Platform) {
        let equipment = pc.u16(bda::EQUIPMENT);
        for (at, bytes) in self.drive_data(equipment) {
            pc.write(at, &bytes);
        }
    }
}

/// A fixed disk parameter table: the geometry of programs and, marked by A0h, that of the drive.
fn parameter_table(seen: &Seen) -> [u8; 16] {
    let g = seen.geometry;
    let physical = (seen.disk.sectors() / (16 * 63)).min(16383) as u16;
    let mut t = [0; 16];
    t[..2].copy_from_slice(&g.cylinders.to_le_bytes());
    (t[2], t[3], t[4]) = (g.heads, 0xa0, 63);
    t[5..7].copy_from_slice(&[0xff; 2]);
    t[8] = 0xc0 | u8::from(g.heads > 8) << 3;
    t[9..11].copy_from_slice(&physical.to_le_bytes());
    t[11] = 16;
    t[14] = g.sectors;
    t[15] = t.iter().fold(0u8, |sum, b| sum.wrapping_sub(*b));
    t
}

/// What the machine is booted from, by `-boot order`'s letters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BootClass {
    /// `a` and `b`.
    Floppy,
    /// `c`.
    HardDisk,
    /// `d`.
    Cd,
    /// `n`: option ROMs that boot.
    Network,
}

/// The boot order and menu (`-boot`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BootConfig {
    /// Classes in order (`order`, or `once` for the first boot); empty for hard disks, floppies, CDs, network.
    pub order: Vec<BootClass>,
    /// Nothing is tried that has no boot index, or, where nothing has one, is not in `order` (`strict`).
    pub strict: bool,
    /// Offer a menu.
    pub menu: bool,
    /// Milliseconds that the menu's prompt waits; 2,500 by default (`splash-time`).
    pub menu_time: Option<u32>,
    /// Milliseconds before a failed boot is tried again; never by default (`reboot-timeout`).
    pub reboot_timeout: Option<u32>,
    /// Network cards with a boot index: bus, device and function as INT 1Ah has them, and the index.
    pub network: Vec<(u16, u32)>,
}

impl BootConfig {
    /// Reads `-boot`'s drive letters; others than a to d and n to p mean nothing to a PC and are left out.
    pub fn classes(letters: &str) -> Vec<BootClass> {
        let mut classes = Vec::new();
        for letter in letters.chars() {
            let class = match letter {
                'a' | 'b' => BootClass::Floppy,
                'c' => BootClass::HardDisk,
                'd' => BootClass::Cd,
                'n'..='p' => BootClass::Network,
                _ => continue,
            };
            if !classes.contains(&class) {
                classes.push(class);
            }
        }
        classes
    }
}

impl BiosConfig {
    /// Every class, those of the order first.
    pub(super) fn classes(&self) -> Vec<BootClass> {
        let mut classes = self.boot.order.clone();
        if classes.is_empty() || !self.boot.strict {
            for class in [BootClass::HardDisk, BootClass::Floppy, BootClass::Cd, BootClass::Network] {
                if !classes.contains(&class) {
                    classes.push(class);
                }
            }
        }
        classes
    }
}
