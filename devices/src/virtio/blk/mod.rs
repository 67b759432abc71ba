//! virtio-blk (5.2): a disk, whose requests a `Drive` carries out.
//!
//! ```text
//!   ring --chain--> request.rs: what it asks --+--> at once: errors, identification
//!                                              +--> Task --Request--> Drive ..thread.. end --> status, used ring
//! ```
//!
//! A request of many bytes is carried out in pieces of up to 1 MiB, one after the other; the bytes of all requests
//! under way, with their descriptors, take up to 16 MiB, and what is beyond waits in the ring. Whoever serves the
//! queue copies, and only hands on.
//!
//! Discards and writes of zeros have one segment each, as in QEMU. On purpose absent: SCSI commands, secure erase,
//! lifetime information, zones.
//!
//! Saved is what was taken out of the ring and has not ended: what the drive holds for the machine to go on
//! (`werror=stop`), and what was not handed on. When the restored machine goes on it is submitted again.
use super::chain::{Broken, Chain};
use super::mmio::{VirtioMmio, mmio_properties};
use super::pci::{PciOptions, VirtioPci, pci_properties};
use super::{Core, Model, Served, Then};
use crate::device::Invalid;
use crate::kind::{Bus, KINDS, Kind, PlugError, Property, Site, Type, Values};
use linkme::distributed_slice;
use mynah_block::{Drive, MediumWatcher, Reply, Request};
use parking_lot::Mutex;
use request::{Asked, Status, Task};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, OnceLock, Weak};

mod request;
#[cfg(test)]
mod tests;

/// Features of the type (5.2.3).
mod feature {
    pub const SEG_MAX: u64 = 1 << 2;
    pub const GEOMETRY: u64 = 1 << 4;
    pub const RO: u64 = 1 << 5;
    pub const BLK_SIZE: u64 = 1 << 6;
    pub const FLUSH: u64 = 1 << 9;
    pub const TOPOLOGY: u64 = 1 << 10;
    pub const CONFIG_WCE: u64 = 1 << 11;
    pub const MQ: u64 = 1 << 12;
    pub const DISCARD: u64 = 1 << 13;
    pub const WRITE_ZEROES: u64 = 1 << 14;
}

/// The unit of places and lengths, whatever the block size.
const SECTOR: u64 = 512;
/// Bytes of the configuration space (5.2.4), and where the driver chooses the cache's mode.
const CONFIG_LEN: usize = 60;
const WRITEBACK: usize = 32;
/// Bytes that requests under way may take in all, and that one moves at a time.
const IN_FLIGHT: usize = 16 << 20;
const PIECE: usize = 1 << 20;
/// The most sectors of a discard or a write of zeros, as in QEMU.
const MOST_ZEROED: u32 = 0x3f_ffff;

/// What was chosen of a disk.
#[derive(Clone, Debug)]
pub struct BlkOptions {
    /// Queues, from 1 to 256.
    pub queues: u16,
    /// Entries of each: a power of two from 4 to 1024.
    pub queue_size: u16,
    /// What GET_ID gives: its first 20 bytes.
    pub serial: String,
    /// A power of two from 512.
    pub logical_block: u32,
    /// A power of two, no less than `logical_block`.
    pub physical_block: u32,
    /// Whether writes may end before they are durable, if not as the drive says.
    pub write_cache: Option<bool>,
    /// The driver may change that.
    pub config_wce: bool,
    /// Discards are offered.
    pub discard: bool,
    /// Writes of zeros are offered.
    pub write_zeroes: bool,
    /// The most segments of a request follow the queue's size.
    pub seg_max_adjust: bool,
}

impl Default for BlkOptions {
    fn default() -> Self {
        Self {
            queues: 1,
            queue_size: 256,
            serial: String::new(),
            logical_block: 512,
            physical_block: 512,
            write_cache: None,
            config_wce: true,
            discard: true,
            write_zeroes: true,
            seg_max_adjust: true,
        }
    }
}

/// What is under way of one queue.
#[derive(Default)]
struct Requests {
    /// The next one's number.
    next: u64,
    /// Handed to the drive, by number.
    under_way: BTreeMap<u64, Task>,
    /// Ends that nobody has looked at.
    ended: Vec<(u64, Reply)>,
    /// Not handed on yet.
    waiting: VecDeque<Task>,
    /// What those under way take.
    held: usize,
}

/// A disk.
pub struct Blk {
    drive: Arc<Drive>,
    options: BlkOptions,
    /// The cache's mode after a reset.
    write_cache: bool,
    core: OnceLock<Weak<Core>>,
    queues: Vec<Mutex<Requests>>,
    me: Weak<Self>,
}

macro_rules! own_properties {
    ($with:ident) => {
        $with![
    Property { name: "drive", kind: Type::Drive, default: None, help: "the disk" },
    Property {
        name: "num-queues",
        kind: Type::Number(1, 256),
        default: None,
        help: "queues (default: one for each vCPU)",
    },
    Property {
        name: "queue-size",
        kind: Type::Number(4, 1024),
        default: Some(256),
        help: "entries of a queue, a power of two",
    },
    Property {
        name: "serial",
        kind: Type::Text,
        default: None,
        help: "its serial number, up to 20 characters"
    },
    Property {
        name: "logical_block_size",
        kind: Type::Number(512, 2 << 20),
        default: Some(512),
        help: "bytes of a block, a power of two",
    },
    Property {
        name: "physical_block_size",
        kind: Type::Number(512, 2 << 20),
        default: None,
        help: "bytes that are best written at once, a power of two (default: a block)",
    },
    Property {
        name: "write-cache",
        kind: Type::Text,
        default: None,
        help: "on, off or auto: whether writes may end before they are durable (auto: as the drive has it)",
    },
    Property { name: "config-wce", kind: Type::Switch, default: Some(1), help: "the guest may change that" },
    Property { name: "discard", kind: Type::Switch, default: Some(1), help: "it takes discards" },
    Property { name: "write-zeroes", kind: Type::Switch, default: Some(1), help: "it takes writes of zeros" },
    Property {
        name: "seg-max-adjust",
        kind: Type::Switch,
        default: Some(1),
        help: "a request has as many segments as a queue has room for, not 126",
    },
    Property {
        name: "bootindex",
        kind: Type::Number(0, i32::MAX as u64),
        default: None,
        help: "its place in the order in which firmware boots",
    },
        ]
    };
}

const PROPERTIES: &[Property] = own_properties!(pci_properties);

#[distributed_slice(KINDS)]
static KIND: Kind =
    Kind { name: "virtio-blk-pci", bus: Bus::Pci, about: "a disk, virtio", properties: PROPERTIES, plug };

#[distributed_slice(KINDS)]
static ALIAS: Kind =
    Kind { name: "virtio-blk", bus: Bus::Pci, about: "virtio-blk-pci", properties: PROPERTIES, plug };

#[distributed_slice(KINDS)]
static MMIO: Kind = Kind {
    name: "virtio-blk-device",
    bus: Bus::VirtioMmio,
    about: "a disk, virtio",
    properties: own_properties!(mmio_properties),
    plug: |site, values| VirtioMmio::plug(site, values, blk(site, values)?).map(drop),
};

fn plug(site: &Site<'_>, values: &Values) -> Result<(), PlugError> {
    let blk = blk(site, values)?;
    let pci = PciOptions::of(values, blk.options.queues + 1)?;
    VirtioPci::plug(site, values, blk, 0x01_0000, pci).map(drop)
}

/// The disk of these values.
fn blk(site: &Site<'_>, values: &Values) -> Result<Arc<Blk>, PlugError> {
    let options = BlkOptions::of(values, site.cpus)?;
    let drive = site.drive(values, "drive")?;
    let drive = drive.ok_or_else(|| PlugError::Value("a drive=ID is missing".into()))?;
    Ok(Blk::new(drive, options))
}

impl BlkOptions {
    /// What was chosen, on a machine with so many vCPUs.
    ///
    /// # Errors
    /// A value is none.
    pub fn of(values: &Values, cpus: usize) -> Result<Self, PlugError> {
        let mut options = Self::default();
        let number = |name: &str, usual: u32| values.number(name).map_or(usual, |n| n as u32);
        let switch = |name: &str| values.switch(name) || !values.values.contains_key(name);
        let power = |name: &str, usual: u32| match number(name, usual) {
            n if n.is_power_of_two() => Ok(n),
            n => Err(PlugError::Value(format!("{name}={n}: it is a power of two"))),
        };
        options.queues = number("num-queues", cpus.clamp(1, 256) as u32) as u16;
        options.queue_size = power("queue-size", 256)? as u16;
        options.serial = values.text("serial").unwrap_or_default().to_owned();
        if options.serial.len() > request::ID_LEN {
            let why = format!("serial={}: it has at most {} bytes", options.serial, request::ID_LEN);
            return Err(PlugError::Value(why));
        }
        options.logical_block = power("logical_block_size", 512)?;
        options.physical_block = power("physical_block_size", options.logical_block)?;
        if options.physical_block < options.logical_block {
            let why = "physical_block_size: it is no less than logical_block_size";
            return Err(PlugError::Value(why.into()));
        }
        options.write_cache = match values.text("write-cache") {
            None | Some("auto") => None,
            Some("on") => Some(true),
            Some("off") => Some(false),
            Some(other) => {
                return Err(PlugError::Value(format!("write-cache={other}: it is on, off or auto")));
            }
        };
        options.config_wce = switch("config-wce");
        options.discard = switch("discard");
        options.write_zeroes = switch("write-zeroes");
        options.seg_max_adjust = switch("seg-max-adjust");
        Ok(options)
    }
}

impl Blk {
    /// A disk on this drive.
    pub fn new(drive: Arc<Drive>, mut options: BlkOptions) -> Arc<Self> {
        options.queues = options.queues.clamp(1, 256);
        if options.serial.is_empty() {
            options.serial = drive.options().serial.clone().unwrap_or_default();
        }
        let write_cache = options.write_cache.unwrap_or_else(|| drive.write_cache());
        drive.set_write_cache(write_cache);
        let blk = Arc::new_cyclic(|me: &Weak<Self>| Self {
            queues: (0..options.queues).map(|_| Mutex::default()).collect(),
            core: OnceLock::new(),
            me: me.clone(),
            write_cache,
            drive,
            options,
        });
        let watcher: Arc<dyn MediumWatcher> = blk.clone();
        blk.drive.watch(Arc::downgrade(&watcher));
        blk
    }

    /// Its sectors.
    fn sectors(&self) -> u64 {
        self.drive.size() / SECTOR
    }

    /// What the requests of a queue may take.
    fn share(&self) -> usize {
        IN_FLIGHT / self.queues.len().max(1)
    }

    /// Bytes that one request moves at a time.
    fn piece(&self) -> usize {
        self.share().min(PIECE)
    }

    /// Hands a task's next piece to the drive, or ends it if that cannot be read; if there is no room for it, it waits.
    fn submit(&self, queue: usize, task: Task, served: &mut Served<'_, '_>) -> Result<(), Broken> {
        let cost = task.cost(self.piece());
        {
            let mut requests = self.queues[queue].lock();
            if served.is_paused() || requests.held > 0 && requests.held + cost > self.share() {
                requests.waiting.push_back(task);
                return Ok(());
            }
            requests.held += cost;
        }
        let Some(request) = task.request(served.memory, self.piece()) else {
            self.queues[queue].lock().held -= cost;
            return task.end(served, Status::IoError);
        };
        let number = {
            let mut requests = self.queues[queue].lock();
            let number = requests.next;
            requests.next += 1;
            requests.under_way.insert(number, task);
            number
        };
        self.hand_on(queue, number, request);
        Ok(())
    }

    fn hand_on(&self, queue: usize, number: u64, request: Request) {
        let me = self.me.clone();
        self.drive.submit(request, move |reply| {
            let Some(me) = me.upgrade() else { return };
            me.queues[queue].lock().ended.push((number, reply));
            me.kick(queue);
        });
    }

    fn kick(&self, queue: usize) {
        if let Some(core) = self.core.get().and_then(Weak::upgrade) {
            core.kick(queue);
        }
    }

    /// A piece of a task has ended.
    fn ended(
        &self,
        queue: usize,
        mut task: Task,
        reply: Reply,
        served: &mut Served<'_, '_>,
    ) -> Result<(), Broken> {
        let Ok(data) = reply else { return task.end(served, Status::IoError) };
        if !task.advance(served.memory, &data, self.piece()) {
            return task.end(served, Status::IoError);
        }
        drop(data);
        if task.is_done() { task.end(served, Status::Ok) } else { self.submit(queue, task, served) }
    }

    fn take(&self, queue: usize, chain: Chain, served: &mut Served<'_, '_>) -> Result<(), Broken> {
        match request::parse(chain, served.memory, self)? {
            Asked::Done(task, status) => task.end(served, status),
            Asked::Task(task) => self.submit(queue, task, served),
        }
    }
}

impl MediumWatcher for Blk {
    fn medium_changed(&self) {
        if let Some(core) = self.core.get().and_then(Weak::upgrade) {
            core.config_changed();
        }
    }

    fn resized(&self) {
        self.medium_changed();
    }
}

/// What is saved of a disk.
#[derive(Serialize, Deserialize)]
pub struct BlkV1 {
    write_cache: bool,
    /// For each queue what was taken out of it and has not ended.
    tasks: Vec<Vec<Task>>,
}

impl Model for Blk {
    const ID: u16 = 2;
    const PCI: &'static str = "virtio-blk-pci";
    const MMIO: &'static str = "virtio-blk-device";
    type State = BlkV1;

    fn features(&self) -> u64 {
        let o = &self.options;
        let some = [
            (self.drive.read_only(), feature::RO),
            (self.write_cache || o.config_wce, feature::FLUSH),
            (o.config_wce, feature::CONFIG_WCE),
            (o.queues > 1, feature::MQ),
            (o.discard, feature::DISCARD),
            (o.write_zeroes, feature::WRITE_ZEROES),
        ];
        let always = feature::SEG_MAX | feature::GEOMETRY | feature::BLK_SIZE | feature::TOPOLOGY;
        some.into_iter().filter(|(on, _)| *on).fold(always, |all, (_, bit)| all | bit)
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![self.options.queue_size; self.options.queues.into()]
    }

    fn connect(&self, core: &Arc<Core>) {
        let _ = self.core.set(Arc::downgrade(core));
    }

    fn config(&self) -> Vec<u8> {
        let o = &self.options;
        let mut c = vec![0; CONFIG_LEN];
        let mut put = |at: usize, bytes: &[u8]| c[at..at + bytes.len()].copy_from_slice(bytes);
        let sectors = self.sectors();
        put(0, &sectors.to_le_bytes());
        let segments = if o.seg_max_adjust { o.queue_size - 2 } else { 126 };
        put(12, &u32::from(segments).to_le_bytes());
        // Cylinders, heads, sectors: as large disks have them.
        put(16, &(sectors / (16 * 63)).clamp(2, 16383).to_le_bytes()[..2]);
        put(18, &[16, 63]);
        put(20, &o.logical_block.to_le_bytes());
        put(24, &[(o.physical_block / o.logical_block).trailing_zeros() as u8]);
        put(WRITEBACK, &[self.drive.write_cache().into()]);
        put(34, &o.queues.to_le_bytes());
        put(36, &MOST_ZEROED.to_le_bytes());
        put(40, &1_u32.to_le_bytes());
        put(44, &(o.logical_block / SECTOR as u32).to_le_bytes());
        put(48, &MOST_ZEROED.to_le_bytes());
        put(52, &1_u32.to_le_bytes());
        put(56, &[1]);
        c
    }

    fn write_config(&self, at: usize, bytes: &[u8]) {
        let Some(mode) = WRITEBACK.checked_sub(at).and_then(|n| bytes.get(n)) else { return };
        let core = self.core.get().and_then(Weak::upgrade);
        if core.is_some_and(|core| core.features() & feature::CONFIG_WCE != 0) {
            self.drive.set_write_cache(*mode != 0);
            if *mode == 0 {
                // What was written so far is to be durable as well.
                self.drive.submit(Request::Flush, drop);
            }
        }
    }

    /// A driver that cannot flush has each write durable when it ends.
    fn started(&self, features: u64) {
        if features & feature::CONFIG_WCE == 0 {
            self.drive.set_write_cache(self.write_cache && features & feature::FLUSH != 0);
        }
    }

    fn serve(&self, queue: usize, served: &mut Served<'_, '_>) -> Result<Then, Broken> {
        let ended = std::mem::take(&mut self.queues[queue].lock().ended);
        for (number, reply) in ended {
            let task = {
                let mut requests = self.queues[queue].lock();
                let Some(task) = requests.under_way.remove(&number) else { continue };
                requests.held = requests.held.saturating_sub(task.cost(self.piece()));
                task
            };
            self.ended(queue, task, reply, served)?;
        }
        if served.is_paused() {
            return Ok(Then::Later);
        }
        let mut waiting = self.queues[queue].lock().waiting.len();
        while waiting > 0 {
            let Some(task) = self.queues[queue].lock().waiting.pop_front() else { break };
            waiting -= 1;
            self.submit(queue, task, served)?;
        }
        while self.queues[queue].lock().waiting.is_empty() {
            match served.pop()? {
                Some(chain) => self.take(queue, chain, served)?,
                None => return Ok(Then::Empty),
            }
        }
        Ok(Then::Later)
    }

    fn halt(&self, queue: usize) {
        self.drive.drain();
        let Some(requests) = self.queues.get(queue) else { return };
        let mut requests = requests.lock();
        // Numbers go on: a late end is of nobody.
        *requests = Requests { next: requests.next, ..Requests::default() };
    }

    fn reset(&self) {
        self.drive.reset();
        self.drive.set_write_cache(self.write_cache);
    }

    fn drain(&self) {
        self.drive.drain();
    }

    fn save(&self) -> BlkV1 {
        let of = |requests: &Mutex<Requests>| {
            let requests = requests.lock();
            requests.under_way.values().chain(&requests.waiting).cloned().collect()
        };
        BlkV1 { write_cache: self.drive.write_cache(), tasks: self.queues.iter().map(of).collect() }
    }

    fn restore(&self, BlkV1 { write_cache, tasks }: BlkV1) -> Result<(), Invalid> {
        if tasks.len() != self.queues.len() || tasks.iter().flatten().any(|task| !task.is_sound()) {
            return Err(Invalid("requests under way"));
        }
        if tasks.iter().any(|t| t.len() > usize::from(self.options.queue_size)) {
            return Err(Invalid("the number of requests under way"));
        }
        self.drive.set_write_cache(write_cache);
        for (requests, tasks) in self.queues.iter().zip(tasks) {
            let mut requests = requests.lock();
            *requests = Requests { next: requests.next, waiting: tasks.into(), ..Requests::default() };
        }
        Ok(())
    }
}
