//! NVM Express 1.4: a controller on PCI, and its namespaces, each a drive.
//!
//! ```text
//!   registers.rs   BAR 0: capabilities, configuration, doorbells; the MSI-X table behind them
//!   controller.rs  who serves the queues: commands in, requests to drives, ends out, interrupts
//!   admin.rs       admin commands      identify.rs, log.rs   what they tell      features.rs   what is chosen
//!   io.rs          commands of the NVM command set        task.rs   one that a drive carries out
//!   command.rs     entries, PRPs and SGLs, statuses       queue.rs  rings in guest memory
//! ```
//!
//! `nvme` is the controller, with a namespace of its own if it has a `drive=`; `nvme-ns` are further ones. As QEMU's it
//! has 64 pairs of I/O queues, MDTS 7 (512 KiB) and a vector for each queue.
//!
//! There: identify, queues, features, log pages, asynchronous events, abort, format; read, write, flush, compare,
//! write zeroes, verify, dataset management; PRPs and SGLs; shutdown, subsystem reset. On purpose absent, and refused
//! by their statuses: metadata and protection information, zones, copy, fused commands, namespace management,
//! reservations, firmware download, memory buffers in the controller, shadow doorbells, virtualization.
//!
//! A doorbell leaves a note, and who finds the queues not being served serves them; a request's end does the same.
//! Commands are taken out of queues as long as what is under way has room (16 MiB), what is beyond waits there.
//!
//! Saved is what has not ended: commands that a drive holds (`werror=stop`) or that were not handed on are submitted
//! again when the restored machine goes on.
//!
//! Locks: `control` (a reset, which may wait for requests), then `inner` (queues and commands), then `regs`, then the
//! function's. Who ends a request waits for none of the first two.
//!
//! Source: NVM Express Base Specification 1.4, cited by its chapters and figures.
use crate::device::{Device, Invalid, Reset};
use crate::kind::{Bus, KINDS, Kind, PlugError, Property, Site, Type, Values};
use crate::pci::config::reg;
use crate::pci::{BarKind, BarTarget, ConfigSpace, Function, FunctionV1, PciDevice};
use controller::{Inner, InnerV1};
use linkme::distributed_slice;
use mynah_block::Drive;
use parking_lot::Mutex;
use registers::{Bar, RegistersV1};
use serde::{Deserialize, Serialize};
use std::sync::{Arc, Weak};

mod admin;
mod command;
mod controller;
mod features;
mod identify;
mod io;
mod log;
mod queue;
mod registers;
mod task;
#[cfg(test)]
mod tests;

pub use controller::Nvme;

/// Bytes that are moved at a time.
const PIECE: u64 = 1 << 20;
/// Bytes that commands under way may take in all.
const IN_FLIGHT: u64 = 16 << 20;
/// Numbers that namespaces may have (NN).
const NAMESPACES: u32 = 256;

/// What was chosen of a controller.
#[derive(Clone, Debug)]
pub struct Options {
    /// Up to 20 bytes.
    pub serial: String,
    /// Pairs of I/O queues.
    pub pairs: u16,
    /// Vectors of MSI-X.
    pub vectors: u16,
    /// The most bytes of a transfer are 4 KiB shifted left by this; 0 for no limit.
    pub mdts: u8,
    /// Asynchronous event requests beside one.
    pub aerl: u8,
    /// Intel's vendor and device id, as older drivers know them.
    pub intel: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { serial: String::new(), pairs: 64, vectors: 65, mdts: 7, aerl: 3, intel: false }
    }
}

/// What a namespace is.
#[derive(Clone)]
pub struct Namespace {
    /// Its number, from 1 on.
    pub nsid: u32,
    /// What is in it.
    pub drive: Arc<Drive>,
    /// Bytes of a block, as a power of two.
    pub shift: u8,
    /// IEEE's extended unique identifier, or 0.
    pub eui64: u64,
    /// Its UUID, or zeros.
    pub uuid: [u8; 16],
}

impl Namespace {
    /// Its blocks.
    fn blocks(&self) -> u64 {
        self.drive.size() >> self.shift
    }
}

const DRIVE: Property =
    Property { name: "drive", kind: Type::Drive, default: None, help: "what is in the namespace" };
const LOGICAL: Property = Property {
    name: "logical_block_size",
    kind: Type::Number(512, 4096),
    default: Some(512),
    help: "bytes of a block, a power of two",
};
const BOOTINDEX: Property = Property {
    name: "bootindex",
    kind: Type::Number(0, i32::MAX as u64),
    default: None,
    help: "its place in the order in which firmware boots",
};

#[distributed_slice(KINDS)]
static KIND: Kind = Kind {
    name: "nvme",
    bus: Bus::Pci,
    about: "an NVMe controller, with a namespace if it has a drive",
    properties: &[
        DRIVE,
        Property {
            name: "serial",
            kind: Type::Text,
            default: None,
            help: "its serial number, up to 20 characters (default: of the drive)",
        },
        Property {
            name: "max_ioqpairs",
            kind: Type::Number(1, 2047),
            default: Some(64),
            help: "pairs of I/O queues",
        },
        Property {
            name: "msix_qsize",
            kind: Type::Number(1, 2048),
            default: Some(65),
            help: "messages of MSI-X",
        },
        Property {
            name: "mdts",
            kind: Type::Number(0, 16),
            default: Some(7),
            help: "the most bytes of a transfer: 4096 << mdts; 0 for no limit",
        },
        Property {
            name: "aerl",
            kind: Type::Number(0, 255),
            default: Some(3),
            help: "asynchronous event requests beside one",
        },
        Property {
            name: "use-intel-id",
            kind: Type::Switch,
            default: Some(0),
            help: "Intel's ids, as QEMU had them before 6.0",
        },
        LOGICAL,
        BOOTINDEX,
    ],
    plug,
};

#[distributed_slice(KINDS)]
static NAMESPACE: Kind = Kind {
    name: "nvme-ns",
    bus: Bus::Nvme,
    about: "a namespace on an nvme",
    properties: &[
        DRIVE,
        Property {
            name: "bus",
            kind: Type::Text,
            default: None,
            help: "the id of its nvme (default: the first one)",
        },
        Property {
            name: "nsid",
            kind: Type::Number(1, NAMESPACES as u64),
            default: None,
            help: "its number (default: the first free one)",
        },
        Property {
            name: "eui64",
            kind: Type::Number(0, u64::MAX),
            default: None,
            help: "its extended unique identifier (default: 5254000000000000h and its number)",
        },
        Property { name: "uuid", kind: Type::Text, default: None, help: "its UUID" },
        LOGICAL,
        BOOTINDEX,
    ],
    plug: plug_namespace,
};

fn refuse(why: impl Into<String>) -> PlugError {
    PlugError::Value(why.into())
}

fn plug(site: &Site<'_>, values: &Values) -> Result<(), PlugError> {
    let number = |name: &str, usual: u64| values.number(name).unwrap_or(usual);
    let drive = site.drive(values, "drive")?;
    // QEMU wants one to be given.
    let of_drive = drive.as_ref().map(|d| d.options().serial.clone().unwrap_or_else(|| d.name().into()));
    let mut serial = values.text("serial").map(str::to_owned).or(of_drive).unwrap_or_default();
    if values.text("serial").is_none() {
        serial.retain(|c| c.is_ascii());
        serial.truncate(20);
    }
    let options = Options {
        serial,
        pairs: number("max_ioqpairs", 64) as u16,
        vectors: number("msix_qsize", 65) as u16,
        mdts: number("mdts", 7) as u8,
        aerl: number("aerl", 3) as u8,
        intel: values.switch("use-intel-id"),
    };
    if options.serial.len() > 20 || !options.serial.is_ascii() {
        return Err(refuse(format!("serial={}: it has at most 20 characters of ASCII", options.serial)));
    }
    let config = config_space(&options);
    let first = drive.map(|drive| namespace(values, drive, 1)).transpose()?;
    let device =
        site.plug_pci(values, config, |function| Nvme::new(function, options, site.clock.clone()))?;
    if let Some(first) = first {
        device.add(first).map_err(PlugError::Value)?;
    }
    site.add_adapter(values, "nvme-bus.", &device);
    Ok(())
}

fn plug_namespace(site: &Site<'_>, values: &Values) -> Result<(), PlugError> {
    let (bus, controller) = site.adapter::<Nvme>(values).ok_or_else(|| {
        refuse(match values.text("bus") {
            Some(bus) => format!("bus={bus}: there is no such nvme before it"),
            None => "it goes on an nvme, and there is none before it".into(),
        })
    })?;
    let drive = site.drive(values, "drive")?.ok_or_else(|| refuse("a drive=ID is missing"))?;
    let nsid = values.number("nsid").map_or_else(|| controller.free_nsid(), |n| Some(n as u32));
    let nsid = nsid.ok_or_else(|| refuse("no number is left for it"))?;
    let namespace = namespace(values, drive, nsid)?;
    controller.add(namespace).map_err(PlugError::Value)?;
    let name = values.id.clone().unwrap_or_else(|| format!("nvme-ns@{bus}.{nsid}"));
    site.registry.plug("nvme", name, Arc::new(NvmeNs));
    Ok(())
}

/// A namespace of these values.
fn namespace(values: &Values, drive: Arc<Drive>, nsid: u32) -> Result<Namespace, PlugError> {
    let block = values.number("logical_block_size").unwrap_or(512);
    if !block.is_power_of_two() {
        return Err(refuse(format!("logical_block_size={block}: it is a power of two")));
    }
    if drive.size() < block {
        return Err(refuse(format!("drive={}: it is smaller than a block", drive.name())));
    }
    let eui64 = values.number("eui64").unwrap_or(0x5254_0000_0000_0000 + u64::from(nsid));
    let uuid = match values.text("uuid") {
        None => [0; 16],
        Some(text) => {
            parse_uuid(text).ok_or_else(|| refuse(format!("uuid={text}: it is no UUID of 32 digits")))?
        }
    };
    Ok(Namespace { nsid, drive, shift: block.trailing_zeros() as u8, eui64, uuid })
}

fn parse_uuid(text: &str) -> Option<[u8; 16]> {
    let digits: Vec<u32> =
        text.chars().filter(|c| *c != '-').map(|c| c.to_digit(16)).collect::<Option<_>>()?;
    let bytes: Vec<u8> = digits.chunks_exact(2).map(|d| (d[0] << 4 | d[1]) as u8).collect();
    if digits.len() == 32 { bytes.try_into().ok() } else { None }
}

/// Bytes of BAR 0 before the MSI-X table, and before its pending bits.
fn layout(options: &Options) -> (u64, u64) {
    let doorbells = registers::DOORBELLS + 8 * (u64::from(options.pairs) + 1);
    let table = doorbells.next_multiple_of(4096);
    (table, (table + 16 * u64::from(options.vectors)).next_multiple_of(4096))
}

fn config_space(options: &Options) -> ConfigSpace {
    let (vendor, device) = if options.intel { (0x8086, 0x5845) } else { (0x1b36, 0x0010) };
    let mut c = ConfigSpace::new(vendor, device, 0x01_0802, 2);
    c.set16(reg::SUBSYSTEM_VENDOR_ID, 0x1af4);
    c.set16(reg::SUBSYSTEM_ID, 0x1100);
    c.set8(reg::INTERRUPT_PIN, 1);
    let (table, pending) = layout(options);
    let size = (pending + 4096).next_power_of_two();
    c.add_bar(0, BarKind::Memory64 { prefetchable: false }, size);
    c.add_msix(options.vectors, 0, table as u32, pending as u32);
    c
}

impl PciDevice for Nvme {
    fn config(&self) -> &Mutex<ConfigSpace> {
        self.function.config()
    }

    fn function(&self) -> Option<&Function> {
        Some(&self.function)
    }

    fn config_write(&self, offset: u8, size: u8, value: u32) {
        self.config().lock().write(offset, size, value);
        let before = self.function.dma().is_enabled();
        self.function.follow();
        if !before && self.function.dma().is_enabled() {
            self.kick();
        }
    }

    fn bar(&self, index: usize) -> BarTarget {
        match (index, self.me.upgrade()) {
            (0, Some(me)) => BarTarget::Memory(Arc::new(Bar(me))),
            _ => BarTarget::Own,
        }
    }
}

/// What is saved of a controller.
#[derive(Serialize, Deserialize)]
pub struct NvmeV1 {
    function: FunctionV1,
    registers: RegistersV1,
    inner: InnerV1,
    /// Writes of the namespaces' drives may end before they are durable.
    write_cache: Vec<bool>,
}

impl Device for Nvme {
    type State = NvmeV1;
    const KIND: &'static str = "nvme";

    fn reset(&self, _: Reset) {
        // Transfers under way end first.
        self.function.reset();
        self.power_on();
    }

    fn pause(&self) {
        self.set_paused(true);
        self.namespaces().iter().for_each(|n| n.drive.drain());
    }

    fn resume(&self) {
        self.set_paused(false);
        self.kick();
    }

    fn save(&self) -> NvmeV1 {
        let inner = self.inner.lock();
        NvmeV1 {
            function: self.function.save(),
            registers: self.regs.lock().save(),
            inner: inner.save(),
            write_cache: self.namespaces().iter().map(|n| n.drive.write_cache()).collect(),
        }
    }

    fn restore(&self, saved: NvmeV1) -> Result<(), Invalid> {
        let namespaces = self.namespaces();
        if saved.write_cache.len() != namespaces.len() {
            return Err(Invalid("the number of namespaces"));
        }
        namespaces.iter().for_each(|n| n.drive.reset());
        let mut inner = self.inner.lock();
        let paused = inner.paused;
        let next = inner.next;
        *inner = Inner::restored(saved.inner, &self.options, &namespaces)?;
        (inner.paused, inner.next) = (paused, next);
        self.regs.lock().restore(saved.registers, &self.options)?;
        for (namespace, on) in namespaces.iter().zip(saved.write_cache) {
            namespace.drive.set_write_cache(on);
        }
        drop(inner);
        self.function.restore(saved.function)
    }
}

/// A namespace as a device: all that is saved of it is the controller's.
pub struct NvmeNs;

impl Device for NvmeNs {
    type State = ();
    const KIND: &'static str = "nvme-ns";

    fn reset(&self, _: Reset) {}

    fn save(&self) {}

    fn restore(&self, (): ()) -> Result<(), Invalid> {
        Ok(())
    }
}

/// What a controller holds of itself.
type Me = Weak<Nvme>;
