//! A logical unit on a SCSI bus: a disk or a CD-ROM drive, with what is plugged in as `scsi-hd` and `scsi-cd`.
use super::bus::ScsiBus;
use super::cd::{self, Cd};
use super::disk::{Disk, Geometry};
use super::{Outcome, Sense, inquiry};
use crate::device::{Device, Invalid, Reset};
use crate::kind::{self, Bus, KINDS, PlugError, Property, Site, Type, Values};
use linkme::distributed_slice;
use mynah_block::{Drive, DriveError, MediumWatcher, Options};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::sync::{Arc, Weak};

/// What a unit says it is.
#[derive(Clone, Debug, Default)]
pub struct Identity {
    /// Up to 8 characters.
    pub vendor: String,
    /// Up to 16.
    pub product: String,
    /// Up to 4.
    pub revision: String,
    /// Up to 36; none if it is empty.
    pub serial: String,
    /// What it is identified by.
    pub device_id: String,
    /// Its world wide name.
    pub wwn: Option<u64>,
    /// Rotations in a minute; 1 for none, 0 if that is not told.
    pub rotation_rate: u16,
    /// What is deallocated goes back to the host.
    pub thin: bool,
}

/// What a unit is.
#[derive(Clone, Debug)]
pub enum Kind {
    /// A CD-ROM drive.
    Cd,
    /// A disk.
    Disk(Geometry),
}

/// A unit's registers.
#[derive(Clone, Debug, Serialize, Deserialize)]
enum Model {
    Cd(Cd),
    Disk(Disk),
}

/// A logical unit.
pub struct Unit {
    /// Its target's number.
    pub target: u8,
    /// Its own.
    pub lun: u16,
    /// What is in it.
    pub drive: Arc<Drive>,
    kind: Kind,
    identity: Identity,
    model: Mutex<Model>,
    bus: Weak<ScsiBus>,
}

/// A command descriptor block, zeros behind its end.
pub fn padded(cdb: &[u8]) -> [u8; 16] {
    let mut all = [0; 16];
    all.iter_mut().zip(cdb).for_each(|(to, from)| *to = *from);
    all
}

const INQUIRY: u8 = 0x12;

impl Unit {
    fn fresh(kind: &Kind) -> Model {
        match kind {
            Kind::Cd => Model::Cd(Cd::default()),
            Kind::Disk(_) => Model::Disk(Disk::default()),
        }
    }

    /// A unit of `bus`, which it is not plugged into yet.
    pub fn new(
        bus: &Arc<ScsiBus>,
        (target, lun): (u8, u16),
        drive: Arc<Drive>,
        kind: Kind,
        identity: Identity,
    ) -> Arc<Self> {
        let model = Mutex::new(Self::fresh(&kind));
        let unit = Arc::new(Self { target, lun, drive, kind, identity, model, bus: Arc::downgrade(bus) });
        let watcher: Arc<dyn MediumWatcher> = unit.clone();
        unit.drive.watch(Arc::downgrade(&watcher));
        unit
    }

    /// Bytes of a block.
    pub fn block(&self) -> u64 {
        match &self.kind {
            Kind::Cd => cd::SECTOR,
            Kind::Disk(geometry) => geometry.block.into(),
        }
    }

    /// What it says it is.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// A command but REPORT LUNS.
    pub fn command(&self, cdb: &[u8; 16]) -> Outcome {
        if cdb[0] == INQUIRY {
            return inquiry::inquiry(cdb, &self.kind, &self.identity);
        }
        match (&mut *self.model.lock(), &self.kind) {
            (Model::Disk(disk), Kind::Disk(geometry)) => disk.command(cdb, &self.drive, geometry),
            (Model::Cd(cd), _) => {
                let Identity { product, revision, serial, .. } = self.identity.clone();
                cd.command(cdb, &self.drive, &cd::Identity { product, revision, serial })
            }
            _ => Outcome::Check(Sense::OPERATION_CODE),
        }
    }

    /// The parameters that a command has asked for.
    pub fn parameters(&self, cdb: &[u8; 16], data: &[u8]) -> Outcome {
        match (&mut *self.model.lock(), &self.kind) {
            (Model::Disk(disk), Kind::Disk(geometry)) => disk.parameters(cdb, data, &self.drive, geometry),
            (Model::Cd(cd), _) => cd.parameters(cdb, data),
            _ => Outcome::Check(Sense::OPERATION_CODE),
        }
    }

    /// The drive could not do what was asked of it.
    pub fn failed(&self, why: DriveError, write: bool) -> Sense {
        match &mut *self.model.lock() {
            Model::Disk(disk) => disk.failed(why, write),
            Model::Cd(cd) => cd.failed(why, &self.drive),
        }
    }

    /// LOGICAL UNIT RESET: its registers are as after power-on.
    pub fn reset(&self) {
        *self.model.lock() = Self::fresh(&self.kind);
        self.drive.lock(false);
    }
}

impl MediumWatcher for Unit {
    fn medium_changed(&self) {
        match (&mut *self.model.lock(), &self.kind) {
            (Model::Disk(disk), Kind::Disk(geometry)) => disk.medium_changed(geometry.removable),
            (Model::Cd(cd), _) => cd.medium_changed(&self.drive),
            _ => {}
        }
        self.tell(Sense::MEDIUM_CHANGED);
    }

    fn eject_requested(&self) {
        if let Model::Cd(cd) = &mut *self.model.lock() {
            cd.eject_requested();
        }
        // Operator request, medium removal.
        self.tell(Sense { key: 6, asc: 0x5a, ascq: 0x01 });
    }
}

impl Unit {
    fn tell(&self, why: Sense) {
        if let Some(bus) = self.bus.upgrade() {
            bus.changed(self, why);
        }
    }
}

/// A unit as a device.
pub struct ScsiUnit<const IS_CD: bool>(Arc<Unit>);

/// What is saved of a unit; what it has under way is its host adapter's.
#[derive(Serialize, Deserialize)]
pub struct UnitV1 {
    model: Model,
    write_cache: bool,
    tray_open: bool,
    locked: bool,
}

impl<const IS_CD: bool> Device for ScsiUnit<IS_CD> {
    type State = UnitV1;
    const KIND: &'static str = if IS_CD { "scsi-cd" } else { "scsi-hd" };

    fn reset(&self, _: Reset) {
        self.0.drive.reset();
        self.0.drive.set_tray_open(false);
        self.0.reset();
    }

    fn pause(&self) {
        self.0.drive.drain();
    }

    fn save(&self) -> UnitV1 {
        let drive = &self.0.drive;
        UnitV1 {
            model: self.0.model.lock().clone(),
            write_cache: drive.write_cache(),
            tray_open: drive.tray_open(),
            locked: drive.locked(),
        }
    }

    fn restore(&self, UnitV1 { model, write_cache, tray_open, locked }: UnitV1) -> Result<(), Invalid> {
        if matches!(model, Model::Cd(_)) != IS_CD {
            return Err(Invalid("a SCSI unit's registers"));
        }
        *self.0.model.lock() = model;
        self.0.drive.set_write_cache(write_cache);
        self.0.drive.set_tray_open(tray_open);
        self.0.drive.lock(locked);
        Ok(())
    }
}

const fn text(name: &'static str, help: &'static str) -> Property {
    Property { name, kind: Type::Text, default: None, help }
}

const fn number(name: &'static str, least: u64, most: u64, help: &'static str) -> Property {
    Property { name, kind: Type::Number(least, most), default: None, help }
}

const DRIVE: Property =
    Property { name: "drive", kind: Type::Drive, default: None, help: "what is in it or behind it" };
const BUS: Property = text("bus", "its bus (default: the first host adapter's)");
const CHANNEL: Property = number("channel", 0, 0, "the channel");
const TARGET: Property = number("scsi-id", 0, 255, "its target (default: the first free one)");
const LUN: Property = number("lun", 0, 16383, "its logical unit (default: the first free one)");
const SERIAL: Property = text("serial", "serial number, up to 36 characters");
const VENDOR: Property = text("vendor", "vendor, up to 8 characters");
const PRODUCT: Property = text("product", "product, up to 16 characters");
const VER: Property = text("ver", "revision, up to 4 characters");
const DEVICE_ID: Property = text("device_id", "what it is identified by (default: the serial number)");
const WWN: Property = number("wwn", 0, u64::MAX, "world wide name");
const BOOTINDEX: Property =
    number("bootindex", 0, i32::MAX as u64, "its place in the order in which firmware boots");

#[distributed_slice(KINDS)]
static HD: kind::Kind = kind::Kind {
    name: "scsi-hd",
    bus: Bus::Scsi,
    about: "a disk on a SCSI bus",
    properties: &[
        DRIVE,
        BUS,
        CHANNEL,
        TARGET,
        LUN,
        SERIAL,
        VENDOR,
        PRODUCT,
        VER,
        DEVICE_ID,
        WWN,
        BOOTINDEX,
        number("logical_block_size", 512, 4096, "bytes of a block, a power of two"),
        number("physical_block_size", 512, 2 << 20, "bytes that are best written at once, a power of two"),
        number("rotation_rate", 0, 65535, "rotations in a minute, 1 for a disk that does not rotate"),
        Property { name: "removable", kind: Type::Switch, default: Some(0), help: "it can be taken out" },
        Property { name: "dpofua", kind: Type::Switch, default: Some(0), help: "it tells that it knows FUA" },
    ],
    plug: plug_hd,
};

#[distributed_slice(KINDS)]
static CD: kind::Kind = kind::Kind {
    name: "scsi-cd",
    bus: Bus::Scsi,
    about: "a CD/DVD-ROM drive on a SCSI bus",
    properties: &[DRIVE, BUS, CHANNEL, TARGET, LUN, SERIAL, VENDOR, PRODUCT, VER, DEVICE_ID, WWN, BOOTINDEX],
    plug: plug_cd,
};

fn refuse(why: impl Into<String>) -> PlugError {
    PlugError::Value(why.into())
}

fn plug_hd(site: &Site<'_>, values: &Values) -> Result<(), PlugError> {
    let drive = site.drive(values, "drive")?.ok_or_else(|| refuse("a disk needs a drive=ID"))?;
    let removable = values.switch("removable");
    let power = |name: &str, usual: u64| match values.number(name).unwrap_or(usual) {
        n if n.is_power_of_two() => Ok(n as u32),
        n => Err(refuse(format!("{name}={n}: it is a power of two"))),
    };
    let block = power("logical_block_size", 512)?;
    let physical = power("physical_block_size", block.into())?;
    if physical < block {
        return Err(refuse("physical_block_size: it is no less than logical_block_size"));
    }
    if drive.medium().is_none() && !removable {
        return Err(refuse(format!("drive={}: a disk needs a medium", drive.name())));
    }
    let kind = Kind::Disk(Geometry { block, physical, removable, dpofua: values.switch("dpofua") });
    plug::<false>(site, values, |_| Ok(drive), kind)
}

fn plug_cd(site: &Site<'_>, values: &Values) -> Result<(), PlugError> {
    let drive = site.drive(values, "drive")?;
    let make = |name: String| match drive {
        Some(drive) => Ok(drive),
        None => {
            let options = Options { name, read_only: true, ..Options::default() };
            Drive::new(options, None).map_err(|e| refuse(format!("the drive has no thread: {e}")))
        }
    };
    plug::<true>(site, values, make, Kind::Cd)
}

fn plug<const IS_CD: bool>(
    site: &Site<'_>,
    values: &Values,
    drive: impl FnOnce(String) -> Result<Arc<Drive>, PlugError>,
    kind: Kind,
) -> Result<(), PlugError> {
    let (name, bus) = site.adapter::<ScsiBus>(values).ok_or_else(|| {
        refuse(match values.text("bus") {
            Some(bus) => format!("bus={bus}: there is no such SCSI bus before it"),
            None => "it goes on a SCSI host adapter, and there is none before it".into(),
        })
    })?;
    let (target, lun) = (values.number("scsi-id").map(|n| n as u8), values.number("lun").map(|n| n as u16));
    let (target, lun) = bus.place(target, lun).map_err(PlugError::Value)?;
    let drive = drive(format!("{name}-cd{target}"))?;
    let text = |name: &str, usual: &str, most: usize| match values.text(name) {
        Some(text) if text.len() > most || !text.is_ascii() => {
            Err(refuse(format!("{name}={text}: it has at most {most} characters of ASCII")))
        }
        Some(text) => Ok(text.to_owned()),
        None => Ok(usual.to_owned()),
    };
    let serial = text("serial", drive.options().serial.as_deref().unwrap_or_default(), 36)?;
    let own = if serial.is_empty() { drive.name().to_owned() } else { serial.clone() };
    let identity = Identity {
        vendor: text("vendor", "QEMU", 8)?,
        product: text("product", if IS_CD { "QEMU CD-ROM" } else { "QEMU HARDDISK" }, 16)?,
        revision: text("ver", "2.5+", 4)?,
        device_id: text("device_id", &own, 247)?,
        serial,
        wwn: values.number("wwn").filter(|n| *n != 0),
        rotation_rate: values.number("rotation_rate").unwrap_or(0) as u16,
        thin: drive.options().discard,
    };
    let unit = Unit::new(&bus, (target, lun), drive, kind, identity);
    bus.add(unit.clone());
    let device = Arc::new(ScsiUnit::<IS_CD>(unit));
    let own =
        values.id.clone().unwrap_or_else(|| format!("{}@{name}.{target}.{lun}", ScsiUnit::<IS_CD>::KIND));
    site.registry.plug("scsi", own, device);
    Ok(())
}
