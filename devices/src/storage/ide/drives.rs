//! What is plugged into the cables: `ide-hd` and `ide-cd`.
use super::Cable;
use super::channel::UNITS;
use crate::device::{Device, Invalid, Reset};
use crate::kind::{Bus, KINDS, Kind, PlugError, Property, Site, Type, Values};
use crate::storage::ata::{self, DeviceV1, Geometry, SECTOR, Setup};
use linkme::distributed_slice;
use mynah_block::{Drive, MediumWatcher, Options, Request};
use std::sync::{Arc, Weak};

/// What QEMU's devices of this kind call their firmware.
const VERSION: &str = "2.5+";

const DRIVE: Property =
    Property { name: "drive", kind: Type::Drive, default: None, help: "what is in it or behind it" };
const BUS: Property = Property {
    name: "bus",
    kind: Type::Text,
    default: None,
    help: "ide.0 and so on (default: the first with room)",
};
const UNIT: Property = Property {
    name: "unit",
    kind: Type::Number(0, UNITS as u64 - 1),
    default: None,
    help: "0 for the master, 1 for the slave (default: the first free one)",
};
const SERIAL: Property =
    Property { name: "serial", kind: Type::Text, default: None, help: "serial number, up to 20 characters" };
const MODEL: Property =
    Property { name: "model", kind: Type::Text, default: None, help: "model number, up to 40 characters" };
const VER: Property =
    Property { name: "ver", kind: Type::Text, default: None, help: "firmware revision, up to 8 characters" };
const WWN: Property =
    Property { name: "wwn", kind: Type::Number(0, u64::MAX), default: None, help: "world wide name" };
const BOOTINDEX: Property = Property {
    name: "bootindex",
    kind: Type::Number(0, i32::MAX as u64),
    default: None,
    help: "its place in the boot order",
};
const LOGICAL: Property = Property {
    name: "logical_block_size",
    kind: Type::Number(512, 512),
    default: None,
    help: "bytes of a sector as the guest counts them",
};
const PHYSICAL: Property = Property {
    name: "physical_block_size",
    kind: Type::Number(512, 2 << 20),
    default: None,
    help: "bytes of a sector on the medium, a power of two",
};
const CYLS: Property = Property {
    name: "cyls",
    kind: Type::Number(1, 65_535),
    default: None,
    help: "cylinders, with heads and secs",
};
const HEADS: Property = Property { name: "heads", kind: Type::Number(1, 16), default: None, help: "heads" };
const SECS: Property =
    Property { name: "secs", kind: Type::Number(1, 255), default: None, help: "sectors of a track" };

#[distributed_slice(KINDS)]
static HD: Kind = Kind {
    name: "ide-hd",
    bus: Bus::Ide,
    about: "a disk",
    properties: &[DRIVE, BUS, UNIT, SERIAL, MODEL, VER, WWN, BOOTINDEX, LOGICAL, PHYSICAL, CYLS, HEADS, SECS],
    plug: plug_hd,
};

#[distributed_slice(KINDS)]
static CD: Kind = Kind {
    name: "ide-cd",
    bus: Bus::Ide,
    about: "a CD/DVD-ROM drive",
    properties: &[DRIVE, BUS, UNIT, SERIAL, MODEL, VER, WWN, BOOTINDEX, LOGICAL, PHYSICAL],
    plug: plug_cd,
};

fn refuse(why: impl Into<String>) -> PlugError {
    PlugError::Value(why.into())
}

/// The place that was asked for, or the first free one.
fn place(site: &Site<'_>, values: &Values) -> Result<(Arc<dyn Cable>, usize), PlugError> {
    let cables = site.ide.borrow();
    if cables.is_empty() {
        return Err(refuse("this board has no IDE bus"));
    }
    let wanted = values.text("bus");
    let unit = values.number("unit").map(|n| n as usize);
    if let Some(bus) = wanted.filter(|bus| cables.iter().all(|c| c.name() != *bus)) {
        let names: Vec<_> = cables.iter().map(|c| c.name()).collect();
        return Err(refuse(format!("bus={bus}: there is no such bus; there are {}", names.join(", "))));
    }
    let places = cables.iter().filter(|c| wanted.is_none_or(|bus| c.name() == bus));
    let mut free = places.flat_map(|c| (0..c.units()).filter(|n| c.is_free(*n)).map(move |n| (c.clone(), n)));
    let at = |what: &str| wanted.map_or(String::new(), |bus| format!("bus={bus}{what}"));
    free.find(|(_, n)| unit.is_none_or(|wanted| wanted == *n)).ok_or_else(|| match unit {
        Some(n) => refuse(format!("{}unit={n}: there is another device, or no such place", at(","))),
        None => {
            refuse(format!("{}: no place is left for it on the IDE buses", at("")).trim_start_matches(": "))
        }
    })
}

fn plug_hd(site: &Site<'_>, values: &Values) -> Result<(), PlugError> {
    let (channel, unit) = place(site, values)?;
    let drive = site.drive(values, "drive")?.ok_or_else(|| refuse("a disk needs a drive=ID"))?;
    if drive.medium().is_none() {
        return Err(refuse(format!("drive={}: a disk needs a medium", drive.name())));
    }
    if drive.read_only() {
        return Err(refuse(format!("drive={}: it is read-only, and an IDE disk is not", drive.name())));
    }
    let sectors = drive.size() / SECTOR;
    if sectors == 0 {
        return Err(refuse(format!("drive={}: it is smaller than a sector", drive.name())));
    }
    let given = [values.number("cyls"), values.number("heads"), values.number("secs")];
    let geometry = match given {
        [Some(cylinders), Some(heads), Some(secs)] => {
            Geometry { cylinders: cylinders as u32, heads: heads as u32, sectors: secs as u32 }
        }
        [None, None, None] => {
            let first = drive.wait(Request::Read { at: 0, len: SECTOR as usize }).unwrap_or_default();
            Geometry::guess(sectors, &first)
        }
        _ => return Err(refuse("cyls=, heads= and secs= go together")),
    };
    plug::<false>(site, values, channel, unit, drive, geometry)
}

fn plug_cd(site: &Site<'_>, values: &Values) -> Result<(), PlugError> {
    let (channel, unit) = place(site, values)?;
    let drive = match site.drive(values, "drive")? {
        Some(drive) => drive,
        None => {
            let name = format!("ide{}-cd{unit}", channel.number());
            let options = Options { name, read_only: true, ..Options::default() };
            Drive::new(options, None).map_err(|e| refuse(format!("the drive has no thread: {e}")))?
        }
    };
    plug::<true>(site, values, channel, unit, drive, Geometry::of_size(0))
}

fn plug<const IS_CD: bool>(
    site: &Site<'_>,
    values: &Values,
    channel: Arc<dyn Cable>,
    unit: usize,
    drive: Arc<Drive>,
    geometry: Geometry,
) -> Result<(), PlugError> {
    let physical = values.number("physical_block_size").unwrap_or(512);
    if !physical.is_power_of_two() {
        return Err(refuse(format!("physical_block_size={physical}: it is no power of two")));
    }
    let text = |name: &str, usual: String, most: usize| match values.text(name) {
        Some(text) if text.len() > most => {
            Err(refuse(format!("{name}={text}: it is longer than {most} characters")))
        }
        Some(text) => Ok(text.to_owned()),
        None => Ok(usual),
    };
    let number = 1 + UNITS * usize::from(channel.number()) + unit;
    let serial = drive.options().serial.clone().unwrap_or_else(|| format!("QM{number:05}"));
    let setup = Setup {
        model: text("model", if IS_CD { "QEMU DVD-ROM" } else { "QEMU HARDDISK" }.into(), 40)?,
        serial: text("serial", serial, 20)?,
        version: text("ver", VERSION.into(), 8)?,
        wwn: values.number("wwn"),
        geometry,
        physical_block: physical as u32,
        packet: IS_CD,
        unit: unit as u8,
        queue: channel.queue(),
    };
    let device = IdeDrive::<IS_CD>::new(&channel, unit, setup, drive)
        .ok_or_else(|| refuse(format!("unit={unit}: there is another device")))?;
    let bus = channel.name();
    let name = values.id.clone().unwrap_or_else(|| format!("{}@{bus}.{unit}", IdeDrive::<IS_CD>::KIND));
    site.registry.plug(bus, name, device);
    site.boot_path(values, || format!("/pci@i0cf8/ide@1,1/drive@{}/disk@{unit}", channel.number()))
}

/// A drive on a cable, a CD-ROM drive or a disk.
pub struct IdeDrive<const IS_CD: bool> {
    channel: Arc<dyn Cable>,
    unit: usize,
    drive: Arc<Drive>,
}

impl<const IS_CD: bool> IdeDrive<IS_CD> {
    /// Plugs a device into a cable; none if there is one at its place.
    pub fn new(channel: &Arc<dyn Cable>, unit: usize, setup: Setup, drive: Arc<Drive>) -> Option<Arc<Self>> {
        if !channel.plug(unit, ata::Device::new(setup, drive.clone())) {
            return None;
        }
        let this = Arc::new(Self { channel: channel.clone(), unit, drive });
        let watcher: Arc<dyn MediumWatcher> = this.clone();
        let watcher: Weak<dyn MediumWatcher> = Arc::downgrade(&watcher);
        this.drive.watch(watcher);
        Some(this)
    }
}

impl<const IS_CD: bool> MediumWatcher for IdeDrive<IS_CD> {
    fn medium_changed(&self) {
        self.channel.with(self.unit, &mut ata::Device::medium_changed);
    }

    fn eject_requested(&self) {
        self.channel.with(self.unit, &mut ata::Device::eject_requested);
    }
}

impl<const IS_CD: bool> Device for IdeDrive<IS_CD> {
    type State = DeviceV1;
    const KIND: &'static str = if IS_CD { "ide-cd" } else { "ide-hd" };

    fn reset(&self, _: Reset) {
        // What ends meanwhile is not heard, and the channel is not locked while that is waited for.
        self.channel.forget_requests(self.unit);
        self.drive.reset();
        self.drive.set_tray_open(false);
        self.channel.with(self.unit, &mut ata::Device::power_on);
    }

    fn pause(&self) {
        self.drive.drain();
    }

    fn resume(&self) {
        self.drive.resume();
        // What a restored device was waiting for is asked again.
        self.channel.with(self.unit, &mut |_| {});
    }

    fn save(&self) -> DeviceV1 {
        self.channel.save_device(self.unit)
    }

    fn restore(&self, state: DeviceV1) -> Result<(), Invalid> {
        self.channel.restore_device(self.unit, state)
    }
}
