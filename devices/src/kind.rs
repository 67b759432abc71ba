//! The kinds of devices that a user can add: their names, properties and how they are plugged in.
//!
//! A kind is registered where its device is written:
//!
//! ```ignore
//! #[distributed_slice(KINDS)]
//! static KIND: Kind = Kind { name: "edu", bus: Bus::Pci, about: "...", properties: &[...], plug };
//! ```
//!
//! Command line (`-device NAME,property=value`), `-device help`, `-device NAME,help` and the machine's builder look
//! in [`KINDS`] and know no device by name.
use crate::bus::{Irq, PortBus};
use crate::chardev::Chardev;
use crate::clock::Clock;
use crate::device::{Device, Registry};
use crate::events::MachineEvents;
use crate::misc::entropy::Entropy;
use crate::misc::vmgenid::VmGenId;
use crate::net::{self, Link};
use crate::pci::config::{ROM_BAR, reg};
use crate::pci::{BarKind, ConfigSpace, DevFn, Function, OptionRom, PciBus, PciDevice};
use crate::serial::Serial;
use crate::storage::floppy::Fdc;
use crate::storage::ide::Cable;
use crate::virtio::balloon::Balloon;
use crate::virtio::console::Console;
use crate::virtio::mmio::MmioSlot;
use linkme::distributed_slice;
use mynah_block::Drive;
use mynah_net::Backend;
use std::any::Any;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

/// All kinds, in no order.
#[distributed_slice]
pub static KINDS: [Kind];

/// The kind of this name.
pub fn find(name: &str) -> Option<&'static Kind> {
    KINDS.iter().find(|k| k.name == name)
}

/// All kinds by bus, then by name.
pub fn all() -> Vec<&'static Kind> {
    let mut all: Vec<_> = KINDS.iter().collect();
    all.sort_by_key(|k| (k.bus, k.name));
    all
}

/// What a device is plugged into.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Bus {
    /// I/O ports and interrupts at places that the user gives.
    Isa,
    /// A slot; firmware or the guest gives the rest.
    Pci,
    /// One of the board's slots for virtio devices without PCI.
    VirtioMmio,
    /// A cable's end: master or slave on one of the board's two IDE buses.
    Ide,
    /// One of the floppy controller's drives.
    Floppy,
    /// A number on a virtio-serial-pci.
    VirtioSerial,
    /// A namespace's number on an NVMe controller.
    Nvme,
    /// Target and logical unit on a SCSI host adapter.
    Scsi,
    /// Nothing: the board's own memory and events.
    System,
}

impl fmt::Display for Bus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Isa => "ISA",
            Self::Pci => "PCI",
            Self::Ide => "IDE",
            Self::Floppy => "floppy",
            Self::VirtioSerial => "virtio-serial",
            Self::VirtioMmio => "virtio-mmio",
            Self::Nvme => "NVMe",
            Self::Scsi => "SCSI",
            Self::System => "system",
        })
    }
}

/// A kind of device.
pub struct Kind {
    /// QEMU's name where that has one.
    pub name: &'static str,
    /// What it is plugged into.
    pub bus: Bus,
    /// What it is, in a few words.
    pub about: &'static str,
    /// What the user can choose.
    pub properties: &'static [Property],
    /// Makes a device with these values and plugs it in.
    pub plug: fn(&Site<'_>, &Values) -> Result<(), PlugError>,
}

/// Something that the user can choose of a device.
pub struct Property {
    /// Its name.
    pub name: &'static str,
    /// What values it has.
    pub kind: Type,
    /// The value if none is given, of a switch 1 for on; none: it has to be given, or the device finds one.
    pub default: Option<u64>,
    /// What it is, in a few words.
    pub help: &'static str,
}

/// What values a property has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Type {
    /// A number between these.
    Number(u64, u64),
    /// On or off.
    Switch,
    /// The id of a `-chardev`. It has to be given.
    Chardev,
    /// The id of a `-drive` or `-blockdev`, whose medium may be changed. A device that needs one says so when it is
    /// plugged in.
    Drive,
    /// The id of a `-netdev`.
    Netdev,
    /// An Ethernet address.
    Mac,
    /// Any text.
    Text,
}

impl Property {
    /// The value if none is given.
    pub fn default_value(&self) -> Option<Value> {
        match self.kind {
            Type::Number(..) => self.default.map(Value::Number),
            Type::Switch => self.default.map(|n| Value::Switch(n != 0)),
            Type::Chardev | Type::Drive | Type::Netdev | Type::Mac | Type::Text => None,
        }
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(n) if *n > 9 => write!(f, "{n:#x}"),
            Self::Number(n) => write!(f, "{n}"),
            Self::Switch(on) => f.write_str(if *on { "on" } else { "off" }),
            Self::Text(text) => f.write_str(text),
        }
    }
}

impl fmt::Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(least, most) if *most > 0xff => write!(f, "{least:#x} to {most:#x}"),
            Self::Number(least, most) => write!(f, "{least} to {most}"),
            Self::Switch => f.write_str("on or off"),
            Self::Chardev => f.write_str("id of a -chardev"),
            Self::Drive => f.write_str("id of a -drive"),
            Self::Netdev => f.write_str("id of a -netdev"),
            Self::Mac => f.write_str("52:54:00:12:34:56"),
            Self::Text => f.write_str("text"),
        }
    }
}

/// A checked value of a property.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// Of [`Type::Number`].
    Number(u64),
    /// Of [`Type::Switch`].
    Switch(bool),
    /// Of all other types.
    Text(String),
}

/// What the user has chosen of a device: values of its kind's properties, each of the property's type, defaults
/// among them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Values {
    /// `id=`.
    pub id: Option<String>,
    /// `addr=`: its place on the PCI bus.
    pub address: Option<DevFn>,
    /// `bus=` of a PCI device: the name of the bus.
    pub bus: Option<String>,
    /// By the property's name.
    pub values: BTreeMap<&'static str, Value>,
}

impl Values {
    /// The defaults of these properties.
    pub fn defaults(properties: &'static [Property]) -> Self {
        let default = |p: &Property| Some((p.name, p.default_value()?));
        Self { values: properties.iter().filter_map(default).collect(), ..Self::default() }
    }

    /// A number, if it was given or has a default.
    pub fn number(&self, name: &str) -> Option<u64> {
        match self.values.get(name) {
            Some(Value::Number(n)) => Some(*n),
            _ => None,
        }
    }

    /// Whether a switch is on.
    pub fn switch(&self, name: &str) -> bool {
        self.values.get(name) == Some(&Value::Switch(true))
    }

    /// A text, if it was given.
    pub fn text(&self, name: &str) -> Option<&str> {
        match self.values.get(name) {
            Some(Value::Text(text)) => Some(text),
            _ => None,
        }
    }

    /// A port, or the usual one.
    pub fn port(&self, name: &str, usual: u16) -> u16 {
        self.number(name).map_or(usual, |n| n as u16)
    }
}

/// A device as the user asks for it: its kind, and what was chosen of it.
#[derive(Clone)]
pub struct Chosen {
    /// What it is.
    pub kind: &'static Kind,
    /// What was chosen.
    pub values: Values,
}

impl Chosen {
    /// A device of this kind, as it is by default.
    pub fn of(kind: &'static Kind) -> Self {
        Self { kind, values: Values::defaults(kind.properties) }
    }

    /// The ids of the chardevs that it uses.
    pub fn chardevs(&self) -> impl Iterator<Item = &str> {
        let is_chardev = |p: &&Property| p.kind == Type::Chardev;
        self.kind.properties.iter().filter(is_chardev).filter_map(|p| self.values.text(p.name))
    }
}

impl Chosen {
    /// The ids of the drives that it uses.
    pub fn drives(&self) -> impl Iterator<Item = &str> {
        let is_drive = |p: &&Property| p.kind == Type::Drive;
        self.kind.properties.iter().filter(is_drive).filter_map(|p| self.values.text(p.name))
    }
}

impl Chosen {
    /// The ids of the network's back ends that it uses.
    pub fn netdevs(&self) -> impl Iterator<Item = &str> {
        let is_netdev = |p: &&Property| p.kind == Type::Netdev;
        self.kind.properties.iter().filter(is_netdev).filter_map(|p| self.values.text(p.name))
    }

    /// Whether it is a network card.
    pub fn is_card(&self) -> bool {
        self.kind.properties.iter().any(|p| p.kind == Type::Netdev)
    }
}

impl PartialEq for Chosen {
    fn eq(&self, other: &Self) -> bool {
        self.kind.name == other.kind.name && self.values == other.values
    }
}

impl fmt::Debug for Chosen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:?}", self.kind.name, self.values)
    }
}

/// Why a device cannot be plugged in.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlugError {
    /// The place is another device's.
    #[error("addr={0}: there is another device")]
    Taken(DevFn),
    /// There is no such bus.
    #[error("this board has no PCI bus")]
    NoPci,
    /// No place is left.
    #[error("the PCI bus has no free slot")]
    Full,
    /// There is no bus of this name.
    #[error("bus={0}: there is no such PCI bus")]
    NoBus(String),
    /// Behind a port there is device 0 alone.
    #[error("addr={0}: behind a port of PCI Express there is device 0 alone")]
    BehindPort(DevFn),
    /// A value that this device cannot have, beside what its type says.
    #[error("{0}")]
    Value(String),
}

/// Adapters by the name of their bus.
pub type Adapters = Vec<(String, Arc<dyn Any + Send + Sync>)>;

/// The board as a device sees it that is plugged in.
pub struct Site<'a> {
    /// I/O ports.
    pub ports: &'a PortBus,
    /// PCI bus 0, if the board has one.
    pub pci: Option<&'a PciBus>,
    /// Guest time.
    pub clock: Arc<dyn Clock>,
    /// What devices ask of the machine.
    pub events: Arc<dyn MachineEvents>,
    /// All that is plugged in.
    pub registry: &'a Registry,
    /// A pin on an ISA interrupt.
    pub isa_pin: RefCell<&'a mut dyn FnMut(usize) -> Irq>,
    /// The character device with this id, which there is.
    pub chardev: &'a dyn Fn(&str) -> Option<Arc<dyn Chardev>>,
    /// The drive with this id, once: it is one device's.
    pub drive: &'a dyn Fn(&str) -> Option<Arc<Drive>>,
    /// The network's back end with this id, once: it is one card's.
    pub netdev: &'a dyn Fn(&str) -> Option<Arc<dyn Backend>>,
    /// The cards' links, which the monitor lists.
    pub links: &'a RefCell<Vec<Arc<Link>>>,
    /// The file that such a name of a ROM means, if there is one.
    pub rom: &'a dyn Fn(&str) -> Option<PathBuf>,
    /// vCPUs: as many queues a device has that is not told how many.
    pub cpus: usize,
    /// Random numbers.
    pub entropy: Arc<Entropy>,
    /// The balloon that the monitor's commands are for, when there is one.
    pub balloon: &'a OnceLock<Arc<Balloon>>,
    /// The generation id, when there is one: firmware places it.
    pub vmgenid: &'a OnceLock<Arc<VmGenId>>,
    /// Where `ide-hd` and `ide-cd` are plugged in: IDE channels, and ports of SATA controllers.
    pub ide: &'a RefCell<Vec<Arc<dyn Cable>>>,
    /// The floppy controller.
    pub fdc: Option<&'a Fdc>,
    /// What firmware boots first: `bootindex=`, and the path by which it knows the device.
    pub boot: &'a RefCell<BTreeMap<u64, String>>,
    /// Devices with ports for virtconsole and virtserialport, by the name of their bus without its `.0`.
    pub consoles: &'a RefCell<Vec<(String, Arc<Console>)>>,
    /// The board's next slot for a virtio device without PCI.
    pub mmio_slot: RefCell<&'a mut dyn FnMut() -> Option<MmioSlot>>,
    /// Adapters that others are plugged into: the name of their bus, and the adapter.
    pub adapters: &'a RefCell<Adapters>,
    /// The serial ports: what they have sent is to leave the process before that ends.
    pub serials: RefCell<&'a mut Vec<Arc<Serial>>>,
}

impl Site<'_> {
    /// A pin on ISA interrupt `n`.
    pub fn isa_pin(&self, n: usize) -> Irq {
        (self.isa_pin.borrow_mut())(n)
    }

    /// The character device of a property that names one.
    ///
    /// # Errors
    /// There is none.
    pub fn chardev(&self, values: &Values, name: &str) -> Result<Arc<dyn Chardev>, PlugError> {
        let id = values.text(name).unwrap_or_default();
        (self.chardev)(id).ok_or_else(|| PlugError::Value(format!("there is no -chardev with id={id}")))
    }

    /// The drive of a property that names one, if it was given.
    ///
    /// # Errors
    /// There is none with this id, or another device has it.
    pub fn drive(&self, values: &Values, name: &str) -> Result<Option<Arc<Drive>>, PlugError> {
        let Some(id) = values.text(name) else { return Ok(None) };
        let drive = (self.drive)(id);
        let why =
            || PlugError::Value(format!("{name}={id}: no -drive has this id, or another device uses it"));
        drive.map(Some).ok_or_else(why)
    }

    /// Others can be plugged into `adapter`. Its bus is called by its id, or by `stem` and a number.
    pub fn add_adapter<T: Send + Sync + 'static>(&self, values: &Values, stem: &str, adapter: &Arc<T>) {
        let mut adapters = self.adapters.borrow_mut();
        let number = adapters.iter().filter(|(_, a)| a.is::<T>()).count();
        let name = values.id.clone().unwrap_or_else(|| format!("{stem}{number}"));
        adapters.push((name, adapter.clone()));
    }

    /// The adapter whose bus `bus=` names (`NAME` or `NAME.0`), or the first one there is; and its name.
    pub fn adapter<T: Send + Sync + 'static>(&self, values: &Values) -> Option<(String, Arc<T>)> {
        let wanted = values.text("bus").map(|w| w.strip_suffix(".0").unwrap_or(w));
        let adapters = self.adapters.borrow();
        let named = adapters.iter().filter(|(name, _)| wanted.is_none_or(|w| w == name));
        named.filter_map(|(name, a)| Some((name.clone(), a.clone().downcast().ok()?))).next()
    }

    /// Enters a device with a `bootindex=` into the boot order, under the path by which firmware knows it.
    ///
    /// # Errors
    /// Another device has this index.
    pub fn boot_path(&self, values: &Values, path: impl FnOnce() -> String) -> Result<(), PlugError> {
        let Some(index) = values.number("bootindex") else { return Ok(()) };
        match self.boot.borrow_mut().insert(index, path()) {
            None => Ok(()),
            Some(other) => Err(PlugError::Value(format!("bootindex={index}: {other} has it"))),
        }
    }

    /// Enters an ISA device under its id, or under `name`.
    pub fn plug_isa<D: Device>(&self, values: &Values, name: String, device: Arc<D>) {
        self.registry.plug("isa.0", values.id.clone().unwrap_or(name), device);
    }

    /// The PCI bus that a device goes on: bus 0 unless the user has named another one.
    ///
    /// # Errors
    /// There is none, or none of this name.
    pub fn pci_bus(&self, values: &Values) -> Result<Arc<PciBus>, PlugError> {
        let root = self.pci.ok_or(PlugError::NoPci)?;
        let name = match values.bus.as_deref() {
            None | Some("pci") => root.name(),
            Some(name) => name,
        };
        root.find(name).ok_or_else(|| PlugError::NoBus(name.into()))
    }

    /// The place of a device on this bus: the one that the user gave, or the next free one.
    ///
    /// # Errors
    /// The address is taken, or all are.
    pub fn pci_address(&self, values: &Values, bus: &PciBus) -> Result<DevFn, PlugError> {
        match values.address {
            Some(devfn) if bus.device(devfn).is_some() => Err(PlugError::Taken(devfn)),
            Some(devfn) if bus.is_port() && devfn.device() != 0 => Err(PlugError::BehindPort(devfn)),
            Some(devfn) => Ok(devfn),
            None => Ok(DevFn::new(bus.free_device(1).ok_or(PlugError::Full)?, 0)),
        }
    }

    /// A name that no bus has: "pci.1" and so on.
    ///
    /// # Errors
    /// There is no PCI.
    pub fn free_bus_name(&self, stem: &str) -> Result<String, PlugError> {
        let root = self.pci.ok_or(PlugError::NoPci)?;
        let mut names = (1_u32..).map(|n| format!("{stem}.{n}"));
        names.find(|name| root.find(name).is_none()).ok_or(PlugError::Full)
    }

    /// The option ROM of a network card: the one that the user has named, or the usual one if it is to be found.
    fn option_rom(&self, values: &Values, config: &ConfigSpace) -> Result<Option<Arc<OptionRom>>, PlugError> {
        let usual = net::usual_rom(config.get16(reg::VENDOR_ID), config.get16(reg::DEVICE_ID));
        let Some(usual) = usual.filter(|_| config.get8(reg::CLASS + 2) == net::CLASS) else {
            return Ok(None);
        };
        let given = values.text("romfile");
        let Some(path) = (self.rom)(given.unwrap_or(usual)).filter(|_| given != Some("")) else {
            return match given {
                None | Some("") => Ok(None),
                Some(name) => Err(PlugError::Value(format!("romfile={name}: there is no such file"))),
            };
        };
        let why = |e: &dyn fmt::Display| PlugError::Value(format!("romfile={}: {e}", path.display()));
        let bytes = std::fs::read(&path).map_err(|e| why(&e))?;
        OptionRom::new(&bytes).map(Some).map_err(|e| why(&e))
    }

    /// Makes a PCI function with this configuration space on the bus and at the address that the user gave, or the
    /// next free one, and plugs it in.
    ///
    /// # Errors
    /// There is no such bus, the address is taken, or all are.
    pub fn plug_pci<D: Device + PciDevice>(
        &self,
        values: &Values,
        mut config: ConfigSpace,
        make: impl FnOnce(Function) -> Arc<D>,
    ) -> Result<Arc<D>, PlugError> {
        let bus = self.pci_bus(values)?;
        let devfn = self.pci_address(values, &bus)?;
        let what = (config.get8(0x0a), config.get8(0x0b));
        let rom = self.option_rom(values, &config)?;
        if let Some(rom) = &rom {
            config.add_bar(ROM_BAR, BarKind::Memory32 { prefetchable: false }, rom.size());
        }
        let mut function = bus.function(devfn, config);
        function.set_rom(rom);
        let device = make(function);
        bus.attach(devfn, device.clone());
        self.boot_path(values, || firmware_path(devfn, what))?;
        let name = values.id.clone().unwrap_or_else(|| match bus.is_root() {
            true => format!("{}@{devfn}", D::KIND),
            false => format!("{}@{}/{devfn}", D::KIND, bus.name()),
        });
        self.registry.plug(bus.name().to_owned(), name, device.clone());
        Ok(device)
    }
}

/// The path by which firmware knows what is behind a PCI function of this subclass and class (Open Firmware's, as QEMU
/// writes it).
fn firmware_path(devfn: DevFn, (subclass, class): (u8, u8)) -> String {
    let (name, behind) = match (class, subclass) {
        (1, 0) => ("scsi", "/disk@0,0"),
        (1, 8) => ("nvme", "/namespace@1,0"),
        (2, 0) => ("ethernet", "/ethernet-phy@0"),
        _ => ("device", ""),
    };
    let function = match devfn.function() {
        0 => String::new(),
        n => format!(",{n:x}"),
    };
    format!("/pci@i0cf8/{name}@{:x}{function}{behind}", devfn.device())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_have_names_and_defaults_of_their_own_types() {
        assert!(KINDS.len() >= 5);
        for kind in all() {
            assert!(std::ptr::eq(find(kind.name).unwrap(), kind), "{} is there twice", kind.name);
            assert!(!kind.about.is_empty() && !kind.about.ends_with('.'));
            for p in kind.properties {
                assert!(!p.help.is_empty(), "{} {}", kind.name, p.name);
                match (p.kind, p.default) {
                    (Type::Number(least, most), Some(n)) => {
                        assert!((least..=most).contains(&n), "{}", p.name)
                    }
                    (Type::Switch, on) => assert!(on.is_none_or(|n| n < 2), "{}", p.name),
                    (_, default) => assert_eq!(default, None, "{} {}", kind.name, p.name),
                }
            }
        }
    }
}
