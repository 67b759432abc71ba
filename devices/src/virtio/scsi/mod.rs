//! virtio-scsi (5.6): a SCSI host adapter, whose units are disks and CD-ROM drives.
//!
//! ```text
//!   queue 0   control: tasks are aborted, units are reset       queue 1   events: media have changed
//!   queue 2+  requests --chain--> request.rs --command--> storage::scsi::unit --> what is moved
//!                                     +--> Task --Request--> Drive ..thread.. end --> response, used ring
//! ```
//!
//! A request of many bytes is carried out in pieces of up to 1 MiB, and the bytes of all requests under way take up to
//! 16 MiB, as with virtio-blk. A request that is aborted, or whose unit is reset, ends when its drive has done with it;
//! the command that aborts ends after it. On purpose absent: protection information, hot-plugging of units,
//! asynchronous notification.
//!
//! Saved is what was taken out of rings and has not ended, as with virtio-blk.
use super::chain::{self, Broken, Chain};
use super::mmio::{VirtioMmio, mmio_properties};
use super::pci::{PciOptions, VirtioPci, pci_properties};
use super::{Core, Model, Served, Then};
use crate::device::Invalid;
use crate::kind::{Bus, KINDS, Kind, PlugError, Property, Site, Type, Values};
use crate::storage::scsi::Sense;
use crate::storage::scsi::bus::{Found, HostAdapter, ScsiBus};
use crate::storage::scsi::unit::Unit;
use linkme::distributed_slice;
use mynah_block::{Reply, Request};
use parking_lot::Mutex;
use request::{Asked, Task};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, OnceLock, Weak};

mod request;
#[cfg(test)]
mod tests;

/// Features of the type (5.6.3).
mod feature {
    pub const HOTPLUG: u64 = 1 << 1;
    pub const CHANGE: u64 = 1 << 2;
}

/// The queues that are no request queues.
const CONTROL: usize = 0;
const EVENTS: usize = 1;
const REQUESTS: usize = 2;
/// Bytes of the configuration space (5.6.4), and the two fields in it that the driver writes.
const CONFIG_LEN: usize = 36;
const SENSE_SIZE: usize = 20;
const CDB_SIZE: usize = 24;
/// Bytes that requests under way may take in all, and that one moves at a time.
const IN_FLIGHT: usize = 16 << 20;
const PIECE: usize = 1 << 20;
/// Events that wait for the driver's buffers.
const WAITING_EVENTS: usize = 64;

/// How a request ends beside its status (5.6.6.1).
pub(super) mod response {
    pub const OK: u8 = 0;
    pub const OVERRUN: u8 = 1;
    pub const ABORTED: u8 = 2;
    pub const BAD_TARGET: u8 = 3;
    pub const RESET: u8 = 4;
    pub const FUNCTION_SUCCEEDED: u8 = 10;
    pub const FUNCTION_REJECTED: u8 = 11;
    pub const INCORRECT_LUN: u8 = 12;
}

/// What is under way of one queue.
#[derive(Default)]
struct Requests {
    /// The next one's number.
    next: u64,
    /// Handed to a drive, by number.
    under_way: BTreeMap<u64, Task>,
    /// Ends that nobody has looked at.
    ended: Vec<(u64, Reply)>,
    /// Not handed on yet.
    waiting: VecDeque<Task>,
    /// What those under way take.
    held: usize,
}

impl Requests {
    fn tasks(&mut self) -> impl Iterator<Item = &mut Task> {
        self.under_way.values_mut().chain(&mut self.waiting)
    }
}

/// A command of the control queue that waits for requests to end.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Aborting {
    number: u64,
    chain: Chain,
}

/// What the driver has chosen, and what is under way of the other queues.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct State {
    sense_size: u32,
    cdb_size: u32,
    aborting: Vec<Aborting>,
    next_abort: u64,
    /// Events: what, unit, why.
    events: VecDeque<(u32, [u8; 8], u32)>,
    missed: bool,
}

impl Default for State {
    fn default() -> Self {
        Self {
            sense_size: 96,
            cdb_size: 32,
            aborting: Vec::new(),
            next_abort: 0,
            events: VecDeque::new(),
            missed: false,
        }
    }
}

/// A host adapter.
pub struct Scsi {
    bus: Arc<ScsiBus>,
    queue_size: u16,
    max_sectors: u32,
    cmd_per_lun: u32,
    core: OnceLock<Weak<Core>>,
    /// After those of the queues.
    state: Mutex<State>,
    queues: Vec<Mutex<Requests>>,
    me: Weak<Self>,
}

macro_rules! own_properties {
    ($with:ident) => {
        $with![
            Property {
                name: "num_queues",
                kind: Type::Number(1, 256),
                default: None,
                help: "request queues (default: one for each vCPU)",
            },
            Property {
                name: "virtqueue_size",
                kind: Type::Number(4, 1024),
                default: Some(256),
                help: "entries of a queue, a power of two",
            },
            Property {
                name: "max_sectors",
                kind: Type::Number(1, u32::MAX as u64),
                default: Some(65535),
                help: "the most sectors of a request",
            },
            Property {
                name: "cmd_per_lun",
                kind: Type::Number(1, u32::MAX as u64),
                default: Some(128),
                help: "commands that a unit has at a time",
            },
        ]
    };
}

const PROPERTIES: &[Property] = own_properties!(pci_properties);

#[distributed_slice(KINDS)]
static KIND: Kind = Kind {
    name: "virtio-scsi-pci",
    bus: Bus::Pci,
    about: "a SCSI host adapter for scsi-hd and scsi-cd, virtio",
    properties: PROPERTIES,
    plug,
};

#[distributed_slice(KINDS)]
static ALIAS: Kind =
    Kind { name: "virtio-scsi", bus: Bus::Pci, about: "virtio-scsi-pci", properties: PROPERTIES, plug };

#[distributed_slice(KINDS)]
static MMIO: Kind = Kind {
    name: "virtio-scsi-device",
    bus: Bus::VirtioMmio,
    about: "a SCSI host adapter for scsi-hd and scsi-cd, virtio",
    properties: own_properties!(mmio_properties),
    plug: |site, values| {
        let scsi = Scsi::of(values, site.cpus)?;
        VirtioMmio::plug(site, values, scsi.clone())?;
        site.add_adapter(values, "scsi", &scsi.bus);
        Ok(())
    },
};

fn plug(site: &Site<'_>, values: &Values) -> Result<(), PlugError> {
    let scsi = Scsi::of(values, site.cpus)?;
    let pci = PciOptions::of(values, scsi.queues.len() as u16 + 1)?;
    VirtioPci::plug(site, values, scsi.clone(), 0x01_0000, pci)?;
    site.add_adapter(values, "scsi", &scsi.bus);
    Ok(())
}

impl Scsi {
    fn of(values: &Values, cpus: usize) -> Result<Arc<Self>, PlugError> {
        let number = |name: &str, usual: u32| values.number(name).map_or(usual, |n| n as u32);
        let queues = number("num_queues", cpus.clamp(1, 256) as u32) as u16;
        let size = number("virtqueue_size", 256);
        if !size.is_power_of_two() {
            return Err(PlugError::Value(format!("virtqueue_size={size}: it is a power of two")));
        }
        let bus = Arc::new(ScsiBus::default());
        let (max_sectors, cmd_per_lun) = (number("max_sectors", 65535), number("cmd_per_lun", 128));
        Ok(Self::new(bus, queues, size as u16, max_sectors, cmd_per_lun))
    }

    /// An adapter of this bus, with so many request queues of so many entries.
    pub fn new(
        bus: Arc<ScsiBus>,
        queues: u16,
        queue_size: u16,
        max_sectors: u32,
        cmd_per_lun: u32,
    ) -> Arc<Self> {
        let scsi = Arc::new_cyclic(|me: &Weak<Self>| Self {
            queues: (0..usize::from(queues) + REQUESTS).map(|_| Mutex::default()).collect(),
            core: OnceLock::new(),
            state: Mutex::default(),
            me: me.clone(),
            bus,
            queue_size,
            max_sectors,
            cmd_per_lun,
        });
        let adapter: Arc<dyn HostAdapter> = scsi.clone();
        scsi.bus.connect(Arc::downgrade(&adapter));
        scsi
    }

    /// What the requests of a queue may take.
    fn share(&self) -> usize {
        IN_FLIGHT / (self.queues.len() - REQUESTS).max(1)
    }

    /// Bytes that one request moves at a time.
    fn piece(&self) -> usize {
        self.share().min(PIECE)
    }

    fn unit(&self, at: (u8, u16)) -> Option<Arc<Unit>> {
        match self.bus.find(at.0, at.1) {
            Found::Unit(unit) => Some(unit),
            _ => None,
        }
    }

    /// Hands a task's next piece to its drive, or ends it; if there is no room for it, it waits.
    fn submit(&self, queue: usize, task: Task, served: &mut Served<'_, '_>) -> Result<(), Broken> {
        if let Some((response, _)) = task.aborted {
            // A command of the control queue waits for it.
            self.kick(CONTROL);
            return task.end(served, response);
        }
        let cost = task.cost(self.piece());
        {
            let mut requests = self.queues[queue].lock();
            if served.is_paused() || requests.held > 0 && requests.held + cost > self.share() {
                requests.waiting.push_back(task);
                return Ok(());
            }
        }
        let Some(unit) = self.unit(task.unit) else { return task.end(served, response::BAD_TARGET) };
        let request = match task.next(served.memory, self.piece(), &unit) {
            Ok(Some(request)) => request,
            Ok(None) => return task.end_good(served),
            Err(sense) => return task.end_check(served, sense),
        };
        let number = {
            let mut requests = self.queues[queue].lock();
            requests.held += cost;
            let number = requests.next;
            requests.next += 1;
            requests.under_way.insert(number, task);
            number
        };
        self.hand_on(queue, number, &unit, request);
        Ok(())
    }

    fn hand_on(&self, queue: usize, number: u64, unit: &Unit, request: Request) {
        let me = self.me.clone();
        unit.drive.submit(request, move |reply| {
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
        let advanced = match reply {
            Ok(data) => task.advance(served.memory, &data, self.piece()),
            Err(why) => {
                let sense = self.unit(task.unit).map_or(Sense::INTERNAL, |u| u.failed(why, task.writes()));
                Err(sense)
            }
        };
        match advanced {
            _ if task.aborted.is_some() => self.submit(queue, task, served),
            Ok(()) => self.submit(queue, task, served),
            Err(sense) => task.end_check(served, sense),
        }
    }

    fn take(&self, queue: usize, chain: Chain, served: &mut Served<'_, '_>) -> Result<(), Broken> {
        let (cdb_size, sense_size) = {
            let state = self.state.lock();
            (state.cdb_size as usize, state.sense_size as usize)
        };
        match request::parse(chain, served.memory, &self.bus, cdb_size, sense_size)? {
            Asked::Task(task) => self.submit(queue, task, served),
            Asked::Ended(task, end) => end.tell(task, served),
        }
    }

    fn serve_requests(&self, queue: usize, served: &mut Served<'_, '_>) -> Result<Then, Broken> {
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

    // The control queue (5.6.6.2).

    fn serve_control(&self, served: &mut Served<'_, '_>) -> Result<Then, Broken> {
        self.end_aborting(served)?;
        if served.is_paused() {
            return Ok(Then::Later);
        }
        while let Some(chain) = served.pop()? {
            self.control(chain, served)?;
        }
        Ok(Then::Empty)
    }

    /// Ends commands whose requests have all ended.
    fn end_aborting(&self, served: &mut Served<'_, '_>) -> Result<(), Broken> {
        let open: Vec<u64> = self
            .queues
            .iter()
            .flat_map(|q| q.lock().tasks().filter_map(|t| Some(t.aborted?.1)).collect::<Vec<_>>())
            .collect();
        let done: Vec<Aborting> = {
            let mut state = self.state.lock();
            let (open, done) = state.aborting.drain(..).partition(|a| open.contains(&a.number));
            state.aborting = open;
            done
        };
        for Aborting { chain, .. } in done {
            respond(served, &chain, 0, &[response::OK])?;
        }
        Ok(())
    }

    fn control(&self, chain: Chain, served: &mut Served<'_, '_>) -> Result<(), Broken> {
        /// Types.
        const TASK_MANAGEMENT: u32 = 0;
        const QUERY: u32 = 1;
        const SUBSCRIBE: u32 = 2;
        let mut kind = [0; 4];
        if !chain::read(served.memory, &chain.readable, 0, &mut kind) {
            return Err(Broken("a control command with no type"));
        }
        match u32::from_le_bytes(kind) {
            TASK_MANAGEMENT => self.manage(chain, served),
            QUERY | SUBSCRIBE => {
                if chain::total(&chain.readable) < 16 || chain::total(&chain.writable) < 5 {
                    return Err(Broken("a control command that is too short"));
                }
                // No event of those is told of.
                respond(served, &chain, 0, &[0, 0, 0, 0, response::OK])
            }
            _ => respond(served, &chain, 0, &[response::FUNCTION_REJECTED]),
        }
    }

    fn manage(&self, chain: Chain, served: &mut Served<'_, '_>) -> Result<(), Broken> {
        /// Functions.
        const ABORT_TASK: u32 = 0;
        const ABORT_TASK_SET: u32 = 1;
        const CLEAR_TASK_SET: u32 = 3;
        const NEXUS_RESET: u32 = 4;
        const UNIT_RESET: u32 = 5;
        const QUERY_TASK: u32 = 6;
        const QUERY_TASK_SET: u32 = 7;
        let mut bytes = [0; 24];
        if !chain::read(served.memory, &chain.readable, 0, &mut bytes) || chain::total(&chain.writable) == 0 {
            return Err(Broken("a control command that is too short"));
        }
        let function = u32::from_le_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]);
        let tag = bytes[16..].iter().rev().fold(0, |n, b| n << 8 | u64::from(*b));
        let found = request::address(&bytes[8..16]).map(|at| (at, self.bus.find(at.0, at.1)));
        let ((target, lun), unit) = match found {
            None | Some((_, Found::Nobody)) => return respond(served, &chain, 0, &[response::BAD_TARGET]),
            Some((at, Found::Unit(unit))) => (at, Some(unit)),
            Some((at, Found::Target(_))) => (at, None),
        };
        if unit.is_none() && function != NEXUS_RESET {
            return respond(served, &chain, 0, &[response::INCORRECT_LUN]);
        }
        let all = function == NEXUS_RESET;
        let one = matches!(function, ABORT_TASK | QUERY_TASK);
        let meant = |t: &Task| t.unit.0 == target && (all || t.unit.1 == lun) && (!one || t.tag == tag);
        let answer = match function {
            QUERY_TASK | QUERY_TASK_SET => {
                let any = self.queues.iter().any(|q| q.lock().tasks().any(|t| meant(t)));
                if any { response::FUNCTION_SUCCEEDED } else { response::OK }
            }
            ABORT_TASK | ABORT_TASK_SET | CLEAR_TASK_SET | NEXUS_RESET | UNIT_RESET => {
                let reset = matches!(function, NEXUS_RESET | UNIT_RESET);
                let how = if reset { response::RESET } else { response::ABORTED };
                let number = {
                    let mut state = self.state.lock();
                    state.next_abort += 1;
                    state.next_abort
                };
                let mut marked = Vec::new();
                for (n, queue) in self.queues.iter().enumerate() {
                    let mut requests = queue.lock();
                    let mut any = false;
                    for task in requests.tasks().filter(|t| meant(t)) {
                        any |= task.aborted.is_none();
                        task.aborted.get_or_insert((how, number));
                    }
                    if any {
                        marked.push(n);
                    }
                }
                if reset {
                    let units = self.bus.units().into_iter();
                    units.filter(|u| u.target == target && (all || u.lun == lun)).for_each(|u| u.reset());
                }
                if marked.is_empty() {
                    response::OK
                } else {
                    self.state.lock().aborting.push(Aborting { number, chain });
                    // Those that wait end at once.
                    marked.into_iter().for_each(|n| self.kick(n));
                    return self.end_aborting(served);
                }
            }
            _ => response::FUNCTION_REJECTED,
        };
        respond(served, &chain, 0, &[answer])
    }

    // The event queue (5.6.6.3).

    fn serve_events(&self, served: &mut Served<'_, '_>) -> Result<Then, Broken> {
        const MISSED: u32 = 1 << 31;
        loop {
            let event = {
                let state = self.state.lock();
                match state.events.front() {
                    Some(event) => *event,
                    None => return Ok(Then::Later),
                }
            };
            let Some(chain) = served.pop()? else { return Ok(Then::Empty) };
            if chain::total(&chain.writable) < 16 {
                return Err(Broken("a buffer that is too short for an event"));
            }
            let missed = {
                let mut state = self.state.lock();
                state.events.pop_front();
                std::mem::take(&mut state.missed)
            };
            let (what, unit, why) = event;
            let what = if missed { what | MISSED } else { what };
            let bytes = [&what.to_le_bytes()[..], &unit, &why.to_le_bytes()].concat();
            respond(served, &chain, 0, &bytes)?;
        }
    }
}

/// Writes bytes of a chain from `at` on, and gives it back.
fn respond(served: &mut Served<'_, '_>, chain: &Chain, at: u64, bytes: &[u8]) -> Result<(), Broken> {
    if !chain::write(served.memory, &chain.writable, at, bytes) {
        return Err(Broken("a response that is not in memory"));
    }
    served.done(chain.head, at as u32 + bytes.len() as u32)
}

impl HostAdapter for Scsi {
    fn changed(&self, unit: &Unit, why: Sense) {
        const PARAMETERS_CHANGED: u32 = 3;
        let core = self.core.get().and_then(Weak::upgrade);
        if core.is_none_or(|core| core.features() & feature::CHANGE == 0) {
            return;
        }
        {
            let mut state = self.state.lock();
            if state.events.len() == WAITING_EVENTS {
                state.missed = true;
                return;
            }
            let why = u32::from(why.asc) | u32::from(why.ascq) << 8;
            state.events.push_back((PARAMETERS_CHANGED, request::lun(unit.target, unit.lun), why));
        }
        self.kick(EVENTS);
    }
}

/// What is saved of an adapter.
#[derive(Serialize, Deserialize)]
pub struct ScsiV1 {
    state: State,
    /// For each queue what was taken out of it and has not ended.
    tasks: Vec<Vec<Task>>,
}

impl Model for Scsi {
    const ID: u16 = 8;
    const PCI: &'static str = "virtio-scsi-pci";
    const MMIO: &'static str = "virtio-scsi-device";
    type State = ScsiV1;

    fn features(&self) -> u64 {
        feature::HOTPLUG | feature::CHANGE
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![self.queue_size; self.queues.len()]
    }

    fn connect(&self, core: &Arc<Core>) {
        let _ = self.core.set(Arc::downgrade(core));
    }

    fn config(&self) -> Vec<u8> {
        let state = self.state.lock();
        let mut c = Vec::with_capacity(CONFIG_LEN);
        let queues = (self.queues.len() - REQUESTS) as u32;
        let dwords = [
            queues,
            u32::from(self.queue_size) - 2,
            self.max_sectors,
            self.cmd_per_lun,
            // Bytes of an event.
            16,
            state.sense_size,
            state.cdb_size,
        ];
        c.extend(dwords.into_iter().flat_map(u32::to_le_bytes));
        // The last channel, target and unit.
        c.extend(0_u16.to_le_bytes());
        c.extend(255_u16.to_le_bytes());
        c.extend(16383_u32.to_le_bytes());
        c
    }

    fn write_config(&self, at: usize, bytes: &[u8]) {
        let Ok(value) = bytes.try_into().map(u32::from_le_bytes) else { return };
        let mut state = self.state.lock();
        match at {
            SENSE_SIZE if value <= 256 => state.sense_size = value,
            CDB_SIZE if (1..=256).contains(&value) => state.cdb_size = value,
            _ => tracing::debug!("virtio-scsi: {value} at {at} of its configuration is ignored"),
        }
    }

    fn serve(&self, queue: usize, served: &mut Served<'_, '_>) -> Result<Then, Broken> {
        match queue {
            CONTROL => self.serve_control(served),
            EVENTS => self.serve_events(served),
            _ => self.serve_requests(queue, served),
        }
    }

    fn halt(&self, queue: usize) {
        self.bus.units().iter().for_each(|u| u.drive.drain());
        if queue == CONTROL {
            self.state.lock().aborting.clear();
        }
        let Some(requests) = self.queues.get(queue) else { return };
        let mut requests = requests.lock();
        // Numbers go on: a late end is of nobody.
        *requests = Requests { next: requests.next, ..Requests::default() };
        drop(requests);
        if queue >= REQUESTS {
            // Who waits for its requests waits no more.
            self.kick(CONTROL);
        }
    }

    fn reset(&self) {
        for unit in self.bus.units() {
            let on = unit.drive.write_cache();
            unit.drive.reset();
            unit.drive.set_write_cache(on);
            unit.reset();
        }
        *self.state.lock() = State::default();
    }

    fn drain(&self) {
        self.bus.units().iter().for_each(|u| u.drive.drain());
    }

    fn save(&self) -> ScsiV1 {
        let of = |requests: &Mutex<Requests>| {
            let requests = requests.lock();
            requests.under_way.values().chain(&requests.waiting).cloned().collect()
        };
        ScsiV1 { tasks: self.queues.iter().map(of).collect(), state: self.state.lock().clone() }
    }

    fn restore(&self, ScsiV1 { state, tasks }: ScsiV1) -> Result<(), Invalid> {
        if tasks.len() != self.queues.len() || tasks.iter().flatten().any(|task| !task.is_sound()) {
            return Err(Invalid("requests under way"));
        }
        let most = usize::from(self.queue_size);
        if tasks.iter().any(|t| t.len() > most)
            || state.aborting.len() > most
            || state.aborting.iter().any(|a| !a.chain.is_sound())
            || state.events.len() > WAITING_EVENTS
            || state.sense_size > 256
            || !(1..=256).contains(&state.cdb_size)
            || state.next_abort == u64::MAX
        {
            return Err(Invalid("virtio-scsi"));
        }
        for (requests, tasks) in self.queues.iter().zip(tasks) {
            let mut requests = requests.lock();
            *requests = Requests { next: requests.next, waiting: tasks.into(), ..Requests::default() };
        }
        *self.state.lock() = state;
        Ok(())
    }
}
