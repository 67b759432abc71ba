//! virtio-balloon (5.5): the guest gives memory back that it can do without, and says how it is with its memory.
//!
//! ```text
//!   user --set_target--> num_pages --guest--> inflate queue: numbers of pages --> given back to the host
//!                                             deflate queue: the guest has them again; they read as zeros
//!   statistics queue: one buffer, kept until the next ones are wanted
//!   reporting queue:  free pages, which the host may have until the guest uses them again
//!   hinting queue:    free pages, once, when they are asked for (request_hints)
//! ```
//!
//! Pages are 4 KiB, whatever the guest's. What is no RAM, or is covered by a device, stays as it is.
use super::chain::{self, Broken, Chain, Piece};
use super::mmio::{VirtioMmio, mmio_properties};
use super::pci::{PciOptions, VirtioPci, pci_properties};
use super::{Core, Model, Served, Then};
use crate::clock::{Clock, Nanos, SECOND, Timer, TimerOwner};
use crate::device::Invalid;
use crate::dma::Session;
use crate::kind::{Bus, KINDS, Kind, PlugError, Property, Site, Type, Values};
use linkme::distributed_slice;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::sync::{Arc, OnceLock, Weak};

/// Features of the type (5.5.3).
mod feature {
    pub const STATS: u64 = 1 << 1;
    pub const DEFLATE_ON_OOM: u64 = 1 << 2;
    pub const FREE_PAGE_HINT: u64 = 1 << 3;
    pub const PAGE_POISON: u64 = 1 << 4;
    pub const PAGE_REPORTING: u64 = 1 << 5;
}

/// Bytes of a page, and their logarithm.
const PAGE: u64 = 4096;
/// Pages that one buffer of the inflate queue may name; what is beyond is passed over. Linux sends 256.
const MOST_PAGES: usize = 4096;
/// Bytes of a statistic: tag 16, value 64; and how many there may be.
const STATISTIC: usize = 10;
const MOST_STATISTICS: usize = 64;
/// Configuration space (5.5.4).
const NUM_PAGES: usize = 0;
const ACTUAL: usize = 4;
const HINT_COMMAND: usize = 8;
const POISON: usize = 12;
const CONFIG_LEN: usize = 16;
/// Commands of hinting: the pages may be used again; others are numbers of requests.
const HINT_STOP: u32 = 0;
const HINT_DONE: u32 = 1;
const FIRST_HINT: u32 = 0x8000_0000;

/// What a queue is for: which there are depends on what is offered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    Inflate,
    Deflate,
    Statistics,
    Hints,
    Reports,
}

/// What was chosen of a balloon.
#[derive(Clone, Copy, Debug, Default)]
pub struct BalloonOptions {
    /// The guest may take pages back without being told to, before it kills programs.
    pub deflate_on_oom: bool,
    /// Free pages are reported as they become free.
    pub reporting: bool,
    /// Free pages are named when they are asked for.
    pub hinting: bool,
    /// Seconds between statistics, 0 for none.
    pub polling: u64,
}

#[derive(Clone, Default, Serialize, Deserialize)]
struct BalloonRegisters {
    /// Pages that the guest is to give back.
    wanted: u32,
    /// Those that it has given back, as it says.
    actual: u32,
    hint_command: u32,
    poison: u32,
    /// The buffer of statistics that is kept, if there is one.
    kept: Option<u16>,
    /// They are wanted again, with nothing kept.
    due: bool,
    /// By tag.
    statistics: Vec<(u16, u64)>,
    /// When statistics are asked for next.
    next: Option<Nanos>,
}

/// A balloon.
pub struct Balloon {
    options: BalloonOptions,
    roles: Vec<Role>,
    clock: Arc<dyn Clock>,
    timer: Arc<dyn Timer>,
    state: Mutex<BalloonRegisters>,
    core: OnceLock<Weak<Core>>,
}

macro_rules! own_properties {
    ($with:ident) => {
        $with![
            Property {
                name: "deflate-on-oom",
                kind: Type::Switch,
                default: Some(0),
                help: "the guest takes pages back before it kills programs",
            },
            Property {
                name: "free-page-reporting",
                kind: Type::Switch,
                default: Some(0),
                help: "the guest reports pages that are free, whose memory the host then has",
            },
            Property {
                name: "free-page-hint",
                kind: Type::Switch,
                default: Some(0),
                help: "the guest names its free pages when it is asked",
            },
            Property {
                name: "guest-stats-polling-interval",
                kind: Type::Number(0, 1 << 32),
                default: Some(0),
                help: "seconds between the guest's statistics, 0 for none",
            },
        ]
    };
}

const PROPERTIES: &[Property] = own_properties!(pci_properties);

#[distributed_slice(KINDS)]
static KIND: Kind = Kind {
    name: "virtio-balloon-pci",
    bus: Bus::Pci,
    about: "memory that the guest gives back, virtio",
    properties: PROPERTIES,
    plug,
};

#[distributed_slice(KINDS)]
static ALIAS: Kind =
    Kind { name: "virtio-balloon", bus: Bus::Pci, about: "virtio-balloon-pci", properties: PROPERTIES, plug };

#[distributed_slice(KINDS)]
static MMIO: Kind = Kind {
    name: "virtio-balloon-device",
    bus: Bus::VirtioMmio,
    about: "memory that the guest gives back, virtio",
    properties: own_properties!(mmio_properties),
    plug: |site, values| {
        let device = VirtioMmio::plug(site, values, balloon(site, values))?;
        let _ = site.balloon.set(device.model().clone());
        Ok(())
    },
};

fn plug(site: &Site<'_>, values: &Values) -> Result<(), PlugError> {
    let pci = PciOptions::of(values, 0)?;
    let device = VirtioPci::plug(site, values, balloon(site, values), 0x00_ff00, pci)?;
    // The monitor's commands are for the first one.
    let _ = site.balloon.set(device.model().clone());
    Ok(())
}

fn balloon(site: &Site<'_>, values: &Values) -> Arc<Balloon> {
    let options = BalloonOptions {
        deflate_on_oom: values.switch("deflate-on-oom"),
        reporting: values.switch("free-page-reporting"),
        hinting: values.switch("free-page-hint"),
        polling: values.number("guest-stats-polling-interval").unwrap_or(0),
    };
    Balloon::new(options, site.clock.clone())
}

impl Balloon {
    /// A balloon that nothing is wanted of yet.
    pub fn new(options: BalloonOptions, clock: Arc<dyn Clock>) -> Arc<Self> {
        let mut roles = vec![Role::Inflate, Role::Deflate, Role::Statistics];
        roles.extend(options.hinting.then_some(Role::Hints));
        roles.extend(options.reporting.then_some(Role::Reports));
        Arc::new_cyclic(|me: &Weak<Self>| Self {
            options,
            roles,
            timer: clock.timer(me.clone()),
            clock,
            state: Mutex::default(),
            core: OnceLock::new(),
        })
    }

    fn core(&self) -> Option<Arc<Core>> {
        self.core.get().and_then(Weak::upgrade)
    }

    /// Bytes of RAM that the machine has.
    fn ram(&self) -> u64 {
        self.core().map_or(0, |core| core.dma().ram_size())
    }

    /// Has the guest keep so many bytes of RAM, and give the rest back: the monitor's `balloon`.
    pub fn set_target(&self, bytes: u64) {
        let pages = self.ram().saturating_sub(bytes) / PAGE;
        self.state.lock().wanted = u32::try_from(pages).unwrap_or(u32::MAX);
        self.changed();
    }

    /// Bytes of RAM that the guest has kept, as it says: `actual` of the monitor's `info balloon`.
    pub fn actual(&self) -> u64 {
        self.ram().saturating_sub(u64::from(self.state.lock().actual) * PAGE)
    }

    /// Whether a driver is at work.
    pub fn is_driven(&self) -> bool {
        self.core().is_some_and(|core| core.is_running())
    }

    /// The guest's last statistics by their tags (5.5.6.3): swap in and out, faults, free and total memory, and so on.
    pub fn statistics(&self) -> Vec<(u16, u64)> {
        self.state.lock().statistics.clone()
    }

    /// Asks for statistics; they come when the guest gets to it.
    pub fn poll_statistics(&self) {
        self.state.lock().due = true;
        self.kick(Role::Statistics);
    }

    /// Asks the guest once for its free pages, whose memory the host then has. Whether it knows how to.
    pub fn request_hints(&self) -> bool {
        let agreed = self.core().is_some_and(|core| core.features() & feature::FREE_PAGE_HINT != 0);
        if agreed {
            let mut state = self.state.lock();
            state.hint_command = state.hint_command.wrapping_add(1).max(FIRST_HINT);
            drop(state);
            self.changed();
        }
        agreed
    }

    fn changed(&self) {
        if let Some(core) = self.core() {
            core.config_changed();
        }
    }

    fn kick(&self, role: Role) {
        if let (Some(core), Some(queue)) = (self.core(), self.roles.iter().position(|r| *r == role)) {
            core.kick(queue);
        }
    }

    /// When statistics are asked for next.
    fn schedule(&self, state: &mut BalloonRegisters) {
        let polls = self.options.polling > 0;
        state.next = polls.then(|| self.clock.now().saturating_add(self.options.polling * SECOND));
        self.timer.set(state.next);
    }

    fn inflate(&self, memory: &Session<'_>, chain: &Chain) {
        let mut from = 0;
        let mut bytes = [0; 1024];
        let end = chain::total(&chain.readable).min(4 * MOST_PAGES as u64) & !3;
        while from < end {
            let n = (end - from).min(bytes.len() as u64) as usize;
            if !chain::read(memory, &chain.readable, from, &mut bytes[..n]) {
                return;
            }
            for number in bytes[..n].chunks_exact(4) {
                let number = u32::from_le_bytes([number[0], number[1], number[2], number[3]]);
                memory.discard(u64::from(number) * PAGE, PAGE);
            }
            from += n as u64;
        }
    }

    fn keep_statistics(&self, chain: &Chain, served: &mut Served<'_, '_>) -> Result<(), Broken> {
        let mut bytes = [0; STATISTIC * MOST_STATISTICS];
        let n = chain::total(&chain.readable).min(bytes.len() as u64) as usize / STATISTIC * STATISTIC;
        if !chain::read(served.memory, &chain.readable, 0, &mut bytes[..n]) {
            return Err(Broken("statistics that are not in memory"));
        }
        let mut state = self.state.lock();
        // A new driver has statistics of its own.
        if state.statistics.len() > MOST_STATISTICS {
            state.statistics.clear();
        }
        for one in bytes[..n].chunks_exact(STATISTIC) {
            let (tag, value) = one.split_at(2);
            let value = value.iter().rev().fold(0, |v, byte| v << 8 | u64::from(*byte));
            let tag = u16::from_le_bytes([tag[0], tag[1]]);
            match state.statistics.binary_search_by_key(&tag, |(tag, _)| *tag) {
                Ok(n) => state.statistics[n].1 = value,
                Err(n) => state.statistics.insert(n, (tag, value)),
            }
        }
        // There is one buffer: another takes its place.
        match state.kept.replace(chain.head) {
            Some(old) => served.done(old, 0),
            None => Ok(()),
        }
    }

    fn discard(&self, memory: &Session<'_>, pieces: &[Piece]) {
        let core = self.core();
        let poisoned = core.is_some_and(|core| core.features() & feature::PAGE_POISON != 0)
            && self.state.lock().poison != 0;
        // What the guest looks for in free pages is not zeros.
        if !poisoned {
            pieces.iter().for_each(|p| _ = memory.discard(p.at, p.len.into()));
        }
    }

    /// Hinting: numbers of requests come readable, pages writable.
    fn hint(&self, memory: &Session<'_>, chain: &Chain) {
        let mut number = [0; 4];
        if chain::read(memory, &chain.readable, 0, &mut number) {
            let mut state = self.state.lock();
            if u32::from_le_bytes(number) == HINT_STOP && state.hint_command >= FIRST_HINT {
                state.hint_command = HINT_DONE;
                drop(state);
                self.changed();
            }
        }
        if self.state.lock().hint_command >= FIRST_HINT {
            self.discard(memory, &chain.writable);
        }
    }
}

impl TimerOwner for Balloon {
    fn expired(&self) {
        {
            let mut state = self.state.lock();
            if state.next.is_none_or(|at| at > self.clock.now()) {
                return;
            }
            self.schedule(&mut state);
        }
        self.poll_statistics();
    }
}

/// What is saved of a balloon.
#[derive(Serialize, Deserialize)]
pub struct BalloonV1 {
    registers: BalloonRegisters,
}

impl Model for Balloon {
    const ID: u16 = 5;
    const PCI: &'static str = "virtio-balloon-pci";
    const MMIO: &'static str = "virtio-balloon-device";
    type State = BalloonV1;

    fn features(&self) -> u64 {
        let o = self.options;
        let some = [
            (o.deflate_on_oom, feature::DEFLATE_ON_OOM),
            (o.hinting, feature::FREE_PAGE_HINT),
            (o.reporting, feature::PAGE_REPORTING),
        ];
        let always = feature::STATS | feature::PAGE_POISON;
        some.into_iter().filter(|(on, _)| *on).fold(always, |all, (_, bit)| all | bit)
    }

    fn queue_sizes(&self) -> Vec<u16> {
        self.roles.iter().map(|role| if *role == Role::Reports { 32 } else { 128 }).collect()
    }

    fn connect(&self, core: &Arc<Core>) {
        let _ = self.core.set(Arc::downgrade(core));
    }

    fn config(&self) -> Vec<u8> {
        let state = self.state.lock();
        [state.wanted, state.actual, state.hint_command, state.poison].map(u32::to_le_bytes).concat()
    }

    fn write_config(&self, at: usize, bytes: &[u8]) {
        let mut state = self.state.lock();
        let BalloonRegisters { actual, poison, .. } = &mut *state;
        for (register, place) in [(actual, ACTUAL), (poison, POISON)] {
            let mut now = register.to_le_bytes();
            for (i, byte) in now.iter_mut().enumerate() {
                if let Some(new) = (place + i).checked_sub(at).and_then(|n| bytes.get(n)) {
                    *byte = *new;
                }
            }
            *register = u32::from_le_bytes(now);
        }
    }

    fn started(&self, _: u64) {
        self.schedule(&mut self.state.lock());
    }

    fn serve(&self, queue: usize, served: &mut Served<'_, '_>) -> Result<Then, Broken> {
        let Some(role) = self.roles.get(queue) else { return Ok(Then::Later) };
        while let Some(chain) = served.pop()? {
            match role {
                Role::Inflate => self.inflate(served.memory, &chain),
                Role::Deflate => {}
                Role::Statistics => {
                    self.keep_statistics(&chain, served)?;
                    continue;
                }
                Role::Hints => self.hint(served.memory, &chain),
                Role::Reports => self.discard(served.memory, &chain.writable),
            }
            served.done(chain.head, 0)?;
        }
        if *role == Role::Statistics && !served.is_paused() {
            let mut state = self.state.lock();
            if state.due
                && let Some(head) = state.kept.take()
            {
                state.due = false;
                drop(state);
                served.done(head, 0)?;
            }
        }
        Ok(Then::Empty)
    }

    fn halt(&self, queue: usize) {
        if self.roles.get(queue) == Some(&Role::Statistics) {
            let mut state = self.state.lock();
            (state.kept, state.due) = (None, false);
        }
    }

    /// What is wanted of the guest stays, as with QEMU: the next driver is told.
    fn reset(&self) {
        let mut state = self.state.lock();
        *state = BalloonRegisters { wanted: state.wanted, ..BalloonRegisters::default() };
        self.timer.set(None);
    }

    fn save(&self) -> BalloonV1 {
        BalloonV1 { registers: self.state.lock().clone() }
    }

    fn restore(&self, BalloonV1 { registers }: BalloonV1) -> Result<(), Invalid> {
        let commands = [HINT_STOP, HINT_DONE];
        if registers.statistics.len() > 2 * MOST_STATISTICS
            || !registers.statistics.is_sorted_by_key(|(tag, _)| *tag)
            || registers.hint_command < FIRST_HINT && !commands.contains(&registers.hint_command)
            || registers.kept.is_some_and(|head| head >= 128)
        {
            return Err(Invalid("a balloon's register"));
        }
        self.timer.set(registers.next);
        *self.state.lock() = registers;
        Ok(())
    }
}

const _: () = assert!(NUM_PAGES == 0 && HINT_COMMAND == 8 && CONFIG_LEN == POISON + 4);

#[cfg(test)]
mod tests {
    use super::super::testing::{Rig, WAYS, Way};
    use super::*;
    use crate::clock::ManualClock;

    fn rig(way: Way, options: BalloonOptions) -> (Rig<Balloon>, ManualClock) {
        let clock = ManualClock::new();
        (Rig::new(way, Balloon::new(options, Arc::new(clock.clone()))), clock)
    }

    fn fill(rig: &Rig<Balloon>, at: u64, len: usize) {
        rig.pc.memory.write(at, &vec![0xee; len]);
    }

    const LIST: u64 = 0x8_0000;

    #[test]
    fn pages_of_the_inflate_queue_are_given_back_and_read_as_zeros() {
        for way in WAYS {
            let (mut rig, _) = rig(way, BalloonOptions::default());
            let balloon = rig.model();
            balloon.set_target(1 << 19);
            rig.start(0);
            assert_eq!((rig.config(0, 4), balloon.actual()), (128, 1 << 20), "{way:?}");
            fill(&rig, 0xa_0000, 0x3000);
            // The second one is no RAM, the third not there at all.
            for (n, page) in [0xa1, 0xfeb00, 0xffff_ffff].into_iter().enumerate() {
                rig.pc.memory.write_u32(LIST + 4 * n as u64, page);
            }
            let head = rig.add(0, &[(LIST, 12, false)]);
            rig.notify(0);
            assert_eq!(rig.used(0), [(head, 0)], "{way:?}");
            let bytes = [0xa_0fff, 0xa_1000, 0xa_1fff, 0xa_2000].map(|at| rig.pc.memory.read_u8(at));
            assert_eq!(bytes, [0xee, 0, 0, 0xee], "{way:?}");
            rig.set_config(4, 4, 1);
            assert_eq!(balloon.actual(), (1 << 20) - 4096, "{way:?}");
            rig.isr();
            balloon.set_target(u64::MAX);
            assert_eq!((rig.isr(), rig.config(0, 4)), (2, 0), "{way:?}");
        }
    }

    #[test]
    fn statistics_come_when_they_are_asked_for() {
        let (mut rig, clock) = rig(Way::Modern, BalloonOptions { polling: 2, ..BalloonOptions::default() });
        rig.start(1 << 1);
        let put = |rig: &mut Rig<Balloon>, free: u64| {
            rig.pc.memory.write_u16(LIST, 4);
            rig.pc.memory.write_u64(LIST + 2, free);
            rig.add(2, &[(LIST, 10, false)]);
            rig.notify(2);
        };
        put(&mut rig, 1000);
        let balloon = rig.model();
        assert_eq!((balloon.statistics(), rig.used(2)), (vec![(4, 1000)], vec![]));
        let (mut other, later) = self::rig(Way::Modern, BalloonOptions { polling: 2, ..Default::default() });
        other.restore(rig.save(), &rig).unwrap();
        clock.advance(2 * SECOND);
        assert_eq!(rig.used(2), [(0, 0)]);
        put(&mut rig, 900);
        assert_eq!((balloon.statistics(), rig.used(2)), (vec![(4, 900)], vec![]));
        balloon.poll_statistics();
        assert_eq!(rig.used(2), [(1, 0)]);
        later.advance(2 * SECOND);
        assert_eq!((other.model().statistics(), other.used(2)), (vec![(4, 1000)], vec![(0, 0)]));
    }

    #[test]
    fn free_pages_are_given_back_when_they_are_reported_or_hinted_unless_they_are_poisoned() {
        let options = BalloonOptions { reporting: true, hinting: true, ..BalloonOptions::default() };
        let (mut rig, _) = rig(Way::Modern, options);
        rig.start(0xff);
        fill(&rig, 0xa_0000, 0x4000);
        let report = [(0xa_0800, 0x1800, true), (0xa_3000, 0x1000, true)];
        rig.add(4, &report);
        rig.notify(4);
        assert_eq!(rig.used(4).len(), 1);
        let shown =
            |rig: &Rig<Balloon>| [0xa_0fff, 0xa_1000, 0xa_2000, 0xa_3000].map(|at| rig.pc.memory.read_u8(at));
        assert_eq!(shown(&rig), [0xee, 0, 0xee, 0], "whole pages");
        rig.set_config(12, 4, 0xaaaa_aaaa);
        fill(&rig, 0xa_0000, 0x4000);
        rig.add(4, &report);
        rig.notify(4);
        assert_eq!(shown(&rig), [0xee; 4]);
        rig.set_config(12, 4, 0);
        assert!(rig.model().request_hints());
        assert_eq!(rig.config(8, 4), 0x8000_0000);
        rig.add(3, &[(0xa_1000, 0x1000, true)]);
        rig.notify(3);
        assert_eq!(shown(&rig), [0xee, 0, 0xee, 0xee]);
        rig.pc.memory.write_u32(LIST, 0);
        rig.add(3, &[(LIST, 4, false)]);
        rig.notify(3);
        assert_eq!((rig.config(8, 4), rig.used(3).len()), (1, 2));
    }
}
