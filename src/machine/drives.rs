//! The machine's drives: images are opened as the user has said, each for one device; and what firmware has of them.
use super::board::Board;
use super::power::{Pause, Power};
use crate::config::{Config, DiskAio, Drive as Wanted};
use anyhow::Context;
use mynah_block::{
    Aio, Backing, Drive, DriveError, Image, OnError, OpenOptions, Options, Request, Stopper, ThrottleGroup,
    open,
};
use mynah_devices::kind::{Bus, Chosen, Values};
use mynah_devices::pci::DevFn;
use mynah_devices::storage::floppy::{DriveKind as DriveType, Format};
use mynah_firmware::bios::{Disk, DiskError, Drive as BiosDrive, DriveKind, DrivePath};
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, Weak};

/// All drives of a machine, by name.
#[derive(Default)]
pub struct Drives {
    all: Vec<Arc<Drive>>,
    /// Those that a device has taken.
    taken: Mutex<BTreeSet<String>>,
    /// Drives hold it weakly.
    _stopper: Option<Arc<dyn Stopper>>,
}

impl Drives {
    /// Opens the images that `cfg` names. What cannot be read or written stops the machine, if it is to.
    ///
    /// # Errors
    /// An image cannot be opened, or is not what it is said to be.
    pub fn open(cfg: &Config, power: &Arc<Power>) -> anyhow::Result<Self> {
        let stopper: Arc<dyn Stopper> =
            Arc::new(StopsMachine { power: Arc::downgrade(power), program: cfg.program.clone() });
        let mut all = Vec::new();
        let groups = groups(cfg);
        for wanted in &cfg.drives {
            let medium = wanted.file.as_deref().map(|file| open_image(wanted, file)).transpose()?;
            let group = wanted.group.as_ref().and_then(|name| groups.get(name.as_str()).cloned());
            let options = Options { group, aio: aio(cfg, wanted), ..options(wanted) };
            let drive = Drive::new(options, medium).with_context(|| wanted.shown())?;
            drive.on_stop(Arc::downgrade(&stopper));
            all.push(drive);
        }
        Ok(Self { all, taken: Mutex::default(), _stopper: Some(stopper) })
    }

    /// The drive of this name, for the first device that asks for it.
    pub fn take(&self, name: &str) -> Option<Arc<Drive>> {
        let drive = self.find(name)?;
        self.taken.lock().insert(name.into()).then(|| drive.clone())
    }

    /// The drive of this name.
    pub fn find(&self, name: &str) -> Option<&Arc<Drive>> {
        self.all.iter().find(|d| d.name() == name)
    }

    /// All of them.
    pub fn all(&self) -> &[Arc<Drive>] {
        &self.all
    }

    /// The machine goes on: requests that have stopped it are tried again.
    pub fn resume(&self) {
        self.all.iter().for_each(|d| d.resume());
    }
}

/// Opens the image of a drive.
///
/// # Errors
/// It cannot be read, or written if it is to be; the message names option, file and who else uses it.
pub fn open_image(wanted: &Wanted, file: &Path) -> anyhow::Result<Arc<dyn Image>> {
    let options = OpenOptions {
        path: file.into(),
        format: wanted.format.clone(),
        read_only: wanted.read_only || wanted.cdrom,
        cache: wanted.cache,
        backing: match &wanted.backing {
            Some(backing) => backing.clone(),
            None if wanted.any_backing => Backing::Anywhere,
            None => Backing::InFolder,
        },
        snapshot: wanted.snapshot == Some(true),
        ..OpenOptions::default()
    };
    // The file is named by the error.
    open(&options).with_context(|| wanted.option.clone())
}

/// The limits that drives share. Of several drives that give their group some the last one counts, as in QEMU.
fn groups(cfg: &Config) -> BTreeMap<&str, Arc<ThrottleGroup>> {
    let mut limits = BTreeMap::new();
    limits.extend(cfg.throttle_groups.iter().map(|(name, limits)| (name.as_str(), *limits)));
    for drive in cfg.drives.iter().filter(|d| d.limits.any()) {
        limits.extend(drive.group.as_deref().map(|name| (name, drive.limits)));
    }
    let limited = limits.into_iter().filter(|(_, limits)| limits.any());
    limited.map(|(name, limits)| (name, Arc::new(ThrottleGroup::new(limits)))).collect()
}

/// Who reads and writes a drive's file: what the user wants if the host has it. A guest has its disk in any case.
fn aio(cfg: &Config, wanted: &Wanted) -> Aio {
    if wanted.aio == DiskAio::Threads || wanted.file.is_none() {
        return Aio::Threads;
    }
    match Aio::IoUring.check() {
        Ok(()) => Aio::IoUring,
        Err(e) => {
            let (shown, aio) = (wanted.shown(), wanted.aio);
            crate::cli::say(
                &cfg.program,
                &format!(
                    "{shown}: aio={aio}: the host does not let it use io_uring ({e}); it uses threads instead"
                ),
            );
            Aio::Threads
        }
    }
}

fn options(wanted: &Wanted) -> Options {
    Options {
        name: wanted.id.clone(),
        serial: wanted.serial.clone(),
        werror: wanted.werror.unwrap_or(OnError::Enospc),
        rerror: wanted.rerror.unwrap_or(OnError::Report),
        read_only: wanted.read_only || wanted.cdrom,
        write_through: wanted.cache.write_through(),
        no_flush: wanted.cache.no_flush(),
        discard: wanted.discard,
        detect_zeroes: wanted.detect_zeroes,
        copy_on_read: wanted.copy_on_read,
        limits: wanted.limits,
        ..Options::default()
    }
}

/// Has the machine stop when a request is held.
struct StopsMachine {
    power: Weak<Power>,
    program: String,
}

impl Stopper for StopsMachine {
    fn stop(&self, name: &str, why: &str) {
        if let Some(power) = self.power.upgrade() {
            power.pause(Pause::IoError);
            let text = format!("drive '{name}': {why}; the guest is stopped, and 'cont' tries it again");
            crate::cli::say(&self.program, &text);
        }
    }
}

/// The drives that the built-in BIOS knows, of those that devices on this machine have: floppies, IDE, virtio, SCSI and
/// NVMe disks, CDs.
pub fn of_bios(cfg: &Config, board: &Board) -> Vec<BiosDrive> {
    let drives = &board.drives;
    const CHANNELS: [(u16, u16, u8); 2] = [(0x1f0, 0x3f6, 14), (0x170, 0x376, 15)];
    let (mut all, mut floppies) = (Vec::new(), Vec::new());
    for device in &cfg.devices {
        let Some(drive) = device.drives().next().and_then(|id| drives.find(id)) else { continue };
        let values = &device.values;
        if device.kind.bus == Bus::Floppy {
            floppies.push((values.number("unit").unwrap_or(floppies.len() as u64), floppy(drive, values)));
            continue;
        }
        let cd = matches!(device.kind.name, "ide-cd" | "scsi-cd");
        // Programs for INT 13h know sectors of 512 bytes.
        if values.number("logical_block_size").is_some_and(|n| n != 512) {
            continue;
        }
        let path = if device.kind.bus == Bus::Ide {
            let channel = usize::from(values.text("bus").is_some_and(|bus| bus.ends_with(".1")));
            let (command, control, irq) = CHANNELS[channel];
            let slave = values.number("unit") == Some(1);
            let number = values.text("bus").and_then(|bus| bus.strip_prefix("ide.")?.parse::<u8>().ok());
            match (cfg.machine.board.sata, number) {
                (false, None | Some(0 | 1)) => {
                    DrivePath::Ata { pci: Some((0, 1, 1)), ports: (command, control), irq, slave, packet: cd }
                }
                (true, Some(port @ 0..6)) => {
                    DrivePath::Pci { pci: (0, 0x1f, 2), interface: "SATA", unit: port.into() }
                }
                _ => DrivePath::Unknown,
            }
        } else {
            place_of(cfg, board, device).unwrap_or_default()
        };
        all.push(BiosDrive {
            kind: if cd { DriveKind::Cd } else { DriveKind::HardDisk },
            name: drive.name().into(),
            boot_index: values.number("bootindex").map(|n| n as u32),
            path,
            disk: Arc::new(BiosDisk { drive: drive.clone(), sector_size: if cd { 2048 } else { 512 } }),
        });
    }
    floppies.sort_by_key(|(unit, _)| *unit);
    all.extend(floppies.into_iter().map(|(_, floppy)| floppy));
    all
}

/// Where a drive is that is on no ATA channel: on a function of PCI bus 0. The others have no number before they boot.
fn place_of(cfg: &Config, board: &Board, device: &Chosen) -> Option<DrivePath> {
    let values = &device.values;
    let path = |pci, interface, unit| Some(DrivePath::Pci { pci, interface, unit });
    match device.kind.name {
        "virtio-blk-pci" | "virtio-blk" => {
            path(function_of(board, &name_of(cfg, board, device)?)?, "SCSI", 0)
        }
        "nvme" => path(function_of(board, &name_of(cfg, board, device)?)?, "NVME", 1),
        "scsi-hd" | "scsi-cd" => {
            // It is called scsi-hd@ADAPTER.TARGET.UNIT, unless the user has named it.
            let name = name_of(cfg, board, device)?;
            let own = name.split_once('@').and_then(|(_, place)| {
                let mut parts = place.rsplitn(3, '.');
                let (unit, target) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
                Some((parts.next()?.to_owned(), target, unit))
            });
            let (adapter, target, unit): (String, u64, u64) = own.or_else(|| {
                let bus = values.text("bus")?.trim_end_matches(".0");
                Some((bus.into(), values.number("scsi-id")?, values.number("lun").unwrap_or(0)))
            })?;
            // The adapter's name is the user's, or tells which of them it is.
            let pci = function_of(board, &adapter).or_else(|| {
                let number: usize = adapter.strip_prefix("scsi")?.parse().ok()?;
                let is = |d: &&Chosen| matches!(d.kind.name, "virtio-scsi-pci" | "virtio-scsi");
                let adapter = cfg.devices.iter().filter(is).nth(number)?;
                function_of(board, &name_of(cfg, board, adapter)?)
            })?;
            path(pci, "SCSI", target & 0xffff | unit << 16)
        }
        _ => None,
    }
}

/// The name by which a device is in the registry: its id, or one that was made for it. Devices of a kind are there in
/// the order in which they are configured.
fn name_of(cfg: &Config, board: &Board, device: &Chosen) -> Option<String> {
    if let Some(id) = &device.values.id {
        return Some(id.clone());
    }
    // Other names of a kind end in what it is on.
    let kind = |d: &Chosen| d.kind.name.trim_end_matches("-pci");
    let unnamed = |d: &&Chosen| kind(d) == kind(device) && d.values.id.is_none();
    let number = cfg.devices.iter().filter(unnamed).position(|d| std::ptr::eq(d, device))?;
    let prefixes = [format!("{}@", kind(device)), format!("{}-pci@", kind(device))];
    let listed = board.devices.list().into_iter().map(|(_, name, _)| name);
    listed.filter(|name| prefixes.iter().any(|p| name.starts_with(p))).nth(number)
}

/// Network cards with a boot index, as the built-in BIOS has them: bus, device and function, and the index.
pub fn cards_of_bios(cfg: &Config, board: &Board) -> Vec<(u16, u32)> {
    let of = |device: &Chosen| {
        let index = device.values.number("bootindex")? as u32;
        let (bus, device, function) = function_of(board, &name_of(cfg, board, device)?)?;
        Some((u16::from(bus) << 8 | u16::from(device) << 3 | u16::from(function), index))
    };
    cfg.devices.iter().filter(|d| d.is_card()).filter_map(of).collect()
}

/// Bus, device and function of the PCI device of this name, if it is on bus 0.
fn function_of(board: &Board, name: &str) -> Option<(u8, u8, u8)> {
    let (root, device) = (board.chips.pci.as_ref()?, board.devices.find(name)?);
    let device = Arc::as_ptr(&device).cast::<()>();
    let is = |f: &DevFn| root.device(*f).is_some_and(|d| std::ptr::eq(Arc::as_ptr(&d).cast(), device));
    let all = (0..32).flat_map(|device| (0..8).map(move |function| DevFn::new(device, function)));
    let mut found = all.filter(is);
    found.next().map(|f| (0, f.device(), f.function()))
}

fn floppy(drive: &Arc<Drive>, values: &Values) -> BiosDrive {
    let kind = values.text("drive-type").and_then(DriveType::from_name);
    let kind = kind.unwrap_or_else(|| DriveType::for_image(drive.size()));
    BiosDrive {
        kind: DriveKind::Floppy,
        name: drive.name().into(),
        boot_index: values.number("bootindex").map(|n| n as u32),
        path: DrivePath::Unknown,
        disk: Arc::new(Floppy { disk: BiosDisk { drive: drive.clone(), sector_size: 512 }, kind }),
    }
}

/// A floppy drive as the built-in BIOS has it: as large as its format, and what the image lacks of that reads as zeros,
/// as it does by the controller.
struct Floppy {
    disk: BiosDisk,
    kind: DriveType,
}

impl Floppy {
    fn format(&self) -> Option<Format> {
        self.disk.drive.medium().map(|m| Format::of(self.kind, m.size()))
    }
}

impl Disk for Floppy {
    fn writable(&self) -> bool {
        self.disk.writable()
    }

    fn medium(&self) -> u64 {
        self.disk.medium()
    }

    fn sectors(&self) -> u64 {
        self.format().map_or(0, |f| f.bytes() / 512)
    }

    fn geometry(&self) -> Option<(u16, u8, u8)> {
        let f = self.format().unwrap_or(Format::of(self.kind, 0));
        Some((f.tracks.into(), f.heads, f.sectors))
    }

    fn read(&self, lba: u64, buf: &mut [u8]) -> Result<(), DiskError> {
        let at = lba.checked_mul(512).ok_or(DiskError::Range)?;
        let there = self.disk.drive.size().saturating_sub(at).min(buf.len() as u64) as usize;
        let (there, beyond) = buf.split_at_mut(there);
        beyond.fill(0);
        if there.is_empty() {
            return Ok(());
        }
        let data = self.disk.drive.wait(Request::Read { at, len: there.len() }).map_err(failure)?;
        there.copy_from_slice(&data);
        Ok(())
    }

    fn write(&self, lba: u64, buf: &[u8]) -> Result<(), DiskError> {
        match self.disk.write(lba, buf) {
            // There is no room for it in the image.
            Err(DiskError::Range) => Err(DiskError::Failed),
            other => other,
        }
    }
}

/// A drive as the built-in BIOS has it. Its callers wait for it, as they do for a controller.
pub struct BiosDisk {
    /// The drive.
    pub drive: Arc<Drive>,
    /// Bytes of a sector.
    pub sector_size: u32,
}

impl Disk for BiosDisk {
    fn writable(&self) -> bool {
        !self.drive.read_only()
    }

    fn medium(&self) -> u64 {
        self.drive.media()
    }

    fn lock(&self, on: bool) {
        self.drive.lock(on);
    }

    fn eject(&self) -> Result<(), DiskError> {
        if self.drive.locked() {
            return Err(DiskError::Held);
        }
        self.drive.set_tray_open(true);
        Ok(())
    }

    fn sectors(&self) -> u64 {
        self.drive.size() / u64::from(self.sector_size)
    }

    fn sector_size(&self) -> u32 {
        self.sector_size
    }

    fn read(&self, lba: u64, buf: &mut [u8]) -> Result<(), DiskError> {
        let at = lba.checked_mul(self.sector_size.into()).ok_or(DiskError::Range)?;
        let data = self.drive.wait(Request::Read { at, len: buf.len() }).map_err(failure)?;
        buf.copy_from_slice(&data);
        Ok(())
    }

    fn write(&self, lba: u64, buf: &[u8]) -> Result<(), DiskError> {
        let at = lba.checked_mul(self.sector_size.into()).ok_or(DiskError::Range)?;
        self.drive.wait(Request::Write { at, data: buf.to_vec() }).map(drop).map_err(failure)
    }
}

fn failure(e: DriveError) -> DiskError {
    match e {
        DriveError::Range => DiskError::Range,
        DriveError::ReadOnly => DiskError::ReadOnly,
        DriveError::NoMedium => DiskError::NoMedium,
        DriveError::NoSpace | DriveError::Io => DiskError::Failed,
    }
}
