//! The machine's drives: images are opened as the user has said, each for one device; and what firmware has of them.
use super::power::{Pause, Power};
use crate::config::{Config, Drive as Wanted};
use anyhow::Context;
use mynah_block::{Backing, Drive, DriveError, Image, OnError, OpenOptions, Options, Request, Stopper, open};
use mynah_devices::kind::{Bus, Values};
use mynah_devices::storage::floppy::{DriveKind as DriveType, Format};
use mynah_firmware::bios::{Disk, DiskError, Drive as BiosDrive, DriveKind, DrivePath};
use parking_lot::Mutex;
use std::collections::BTreeSet;
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
        for wanted in &cfg.drives {
            let medium = wanted.file.as_deref().map(|file| open_image(wanted, file)).transpose()?;
            let drive = Drive::new(options(wanted), medium).with_context(|| wanted.shown())?;
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
pub fn of_bios(cfg: &Config, drives: &Drives) -> Vec<BiosDrive> {
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
            DrivePath::Unknown
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
