//! A learning switch: who is behind which port, and where a frame goes (IEEE 802.1Q-2022, 8). No sockets, no clock: who
//! has these calls [`Switch::input`] with what comes, and [`Switch::next`] for what is to go.
//!
//! ```text
//!   input --> rate --> mirror --> VLAN --> source lock --> rules --> table --> rules --> queue --> rate --> next
//!             (in)              (tag off)                  (in)     (learn)    (out)   (tag on)   (out)
//! ```
//!
//! What a guest can take up is bounded: octets that wait at each port, places in the table, for each port and in all.
//! A port that does not read loses what is for it; no other port notices.
//!
//! Not there: spanning tree (frames of it go nowhere, so a loop of two ports of one switch is the user's to avoid),
//! multicast snooping (groups are flooded), tags in tags.
mod acl;
mod bucket;
pub(crate) mod packet;
mod queue;
mod stats;
mod table;
mod vlan;

pub use acl::{Acl, MOST_RULES, Way};
pub use bucket::{Bucket, Passed};
pub use queue::Shared;
pub use stats::{Cause, Count, Counters};
pub use vlan::{Plain, Vlans, vlan_number};

use crate::{MAX_FRAME, Mac};
use queue::Queue;
use std::net::IpAddr;
use std::time::Duration;
use table::Table;

/// The most ports.
pub const MOST_PORTS: usize = 256;
/// Octets that wait at a port, if nobody says how many.
pub const USUAL_QUEUE: usize = 1 << 20;
/// The least of them: one frame of any length.
pub const LEAST_QUEUE: usize = 2 * MAX_FRAME;
/// Stations behind a guest's port, if nobody says how many.
pub const USUAL_STATIONS: usize = 64;
/// The one lane of a mirror port: whoever looks at it wants to know what came first.
const IN_ORDER: usize = usize::MAX;
/// Addresses that are kept of a port's stations.
const MOST_ADDRESSES: usize = 64;

/// Which frames a mirror port is given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mirror {
    /// All that come in at any port, as they come in, also those that go no further.
    All,
    /// Those that come in and go out at the port of this name.
    Port(String),
}

/// What a port is.
#[derive(Clone, Debug, PartialEq)]
pub struct PortConfig {
    /// Its name.
    pub name: String,
    /// Its VLANs.
    pub vlans: Vlans,
    /// Bits in a second, for each direction by itself.
    pub rate: Option<u64>,
    /// Octets that pass at once; [`Bucket::usual_burst`] if none.
    pub burst: Option<u64>,
    /// Octets that wait for it to read.
    pub queue: usize,
    /// The only sources that it may send from, if any are named.
    pub macs: Vec<Mac>,
    /// Its rules.
    pub acl: Acl,
    /// It only listens.
    pub mirror: Option<Mirror>,
    /// How many stations may be behind it.
    pub stations: usize,
    /// It leads to other networks: addresses behind it are nobody's to know.
    pub uplink: bool,
}

impl PortConfig {
    /// A guest's port, on VLAN 1 without tags.
    pub fn named(name: &str) -> Self {
        Self {
            name: name.into(),
            vlans: Vlans::default(),
            rate: None,
            burst: None,
            queue: USUAL_QUEUE,
            macs: Vec::new(),
            acl: Acl::default(),
            mirror: None,
            stations: USUAL_STATIONS,
            uplink: false,
        }
    }
}

/// An address that a station says is its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address {
    /// The station.
    pub mac: Mac,
    /// Its address.
    pub ip: IpAddr,
    /// When it has said so last.
    pub seen: Duration,
}

/// A station in the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Station {
    /// Its address.
    pub mac: Mac,
    /// Its VLAN.
    pub vlan: u16,
    /// The port that it is behind.
    pub port: usize,
    /// When it has sent last.
    pub seen: Duration,
}

/// A port.
pub struct Port {
    /// What it is.
    pub config: PortConfig,
    /// What has passed.
    pub counters: Counters,
    /// Whether somebody is there.
    pub connected: bool,
    queue: Queue,
    /// It is among those that are to be told that they have something to send.
    woken: bool,
    limits: Option<[Bucket; 2]>,
    addresses: Vec<Address>,
}

impl Port {
    /// Octets that wait, and the most of them.
    pub fn queued(&self) -> (usize, usize) {
        (self.queue.octets(), self.queue.limit())
    }

    /// The limits of what comes in and what goes out.
    pub fn limits(&self) -> Option<&[Bucket; 2]> {
        self.limits.as_ref()
    }

    /// Addresses that its stations say are theirs.
    pub fn addresses(&self) -> &[Address] {
        &self.addresses
    }

    fn learn_address(&mut self, mac: Mac, ip: IpAddr, now: Duration) {
        let found = self.addresses.iter_mut().find(|a| (a.mac, a.ip) == (mac, ip));
        match found {
            Some(address) => address.seen = now,
            None => {
                if self.addresses.len() >= MOST_ADDRESSES
                    && let Some(oldest) = (0..self.addresses.len()).min_by_key(|n| self.addresses[*n].seen)
                {
                    self.addresses.swap_remove(oldest);
                }
                self.addresses.push(Address { mac, ip, seen: now });
            }
        }
    }
}

/// What a port has to send.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    /// This frame.
    Frame(Shared),
    /// Something, but not before this time.
    Wait(Duration),
    /// Nothing.
    Nothing,
}

/// The switch. Times are since its start.
pub struct Switch {
    ports: Vec<Port>,
    table: Table,
    /// Ports that have been given something since somebody asked.
    woken: Vec<usize>,
}

impl Switch {
    /// One with room for `stations`, which are forgotten after `ageing` of silence.
    pub fn new(stations: usize, ageing: Duration) -> Self {
        Self { ports: Vec::new(), table: Table::new(stations, ageing), woken: Vec::new() }
    }

    /// Adds a port that nobody is at yet; its number.
    ///
    /// # Errors
    /// There are too many, or one of this name.
    pub fn add(&mut self, config: PortConfig) -> Result<usize, String> {
        if self.ports.len() >= MOST_PORTS {
            return Err(format!("a switch has at most {MOST_PORTS} ports"));
        }
        if self.ports.iter().any(|p| p.config.name == config.name) {
            return Err(format!("there are two ports with the name '{}'", config.name));
        }
        let limits = config.rate.map(|rate| {
            let burst = config.burst.unwrap_or(Bucket::usual_burst(rate));
            [Bucket::new(rate, burst), Bucket::new(rate, burst)]
        });
        let queue = Queue::new(config.queue.max(LEAST_QUEUE));
        let counters = Counters::default();
        let (connected, woken, addresses) = (false, false, Vec::new());
        self.ports.push(Port { config, counters, connected, queue, woken, limits, addresses });
        Ok(self.ports.len() - 1)
    }

    /// Somebody has come to a port, or has left it: what waited is gone then, and who was behind it is forgotten.
    pub fn connect(&mut self, port: usize, connected: bool) {
        let Some(at) = self.ports.get_mut(port) else { return };
        at.connected = connected;
        while at.queue.pop().is_some() {
            at.counters.drop(Cause::Gone, 1);
        }
        at.queue.clear();
        at.addresses.clear();
        self.table.forget(port);
    }

    /// Takes a frame that comes in at a port.
    ///
    /// # Errors
    /// The port's rate is used up: the time when the same frame can be offered again.
    pub fn input(&mut self, from: usize, frame: &[u8], now: Duration) -> Result<(), Duration> {
        let Some(port) = self.ports.get_mut(from) else { return Ok(()) };
        if let Some([limit, _]) = &mut port.limits {
            limit.take(frame.len(), now)?;
        }
        port.counters.input.add(frame.len());
        if port.config.mirror.is_none() && frame.len() <= MAX_FRAME {
            self.mirror(from, from, frame);
        }
        if let Err(cause) = self.forward(from, frame, now)
            && let Some(port) = self.ports.get_mut(from)
        {
            port.counters.drop(cause, 1);
        }
        Ok(())
    }

    fn forward(&mut self, from: usize, frame: &[u8], now: Duration) -> Result<(), Cause> {
        let port = self.ports.get_mut(from).ok_or(Cause::Gone)?;
        if port.config.mirror.is_some() {
            return Err(Cause::FromMirror);
        }
        if frame.len() > MAX_FRAME {
            return Err(Cause::Malformed);
        }
        let plain = port.config.vlans.admit(frame).map_err(|why| match why {
            vlan::Refused::Short => Cause::Malformed,
            vlan::Refused::Double => Cause::DoubleTag,
            vlan::Refused::Vlan => Cause::Vlan,
        })?;
        let (to, source) = addresses(plain.addresses).ok_or(Cause::Malformed)?;
        if source.is_multicast() || source == Mac::default() {
            return Err(Cause::Malformed);
        }
        if matches!(to.0, [0x01, 0x80, 0xc2, 0, 0, last] if last < 0x10) {
            return Err(Cause::Reserved);
        }
        if !port.config.acl.allows(Way::In, plain.rest) {
            // Whose source is wrong is told first, below.
            return Err(if self.may_send(from, source) { Cause::AclIn } else { Cause::SourceLock });
        }
        if !self.may_send(from, source) {
            return Err(Cause::SourceLock);
        }
        let port = &mut self.ports[from];
        if !self.table.learn(plain.vlan, source, from, port.config.stations, now) {
            port.counters.unlearned += 1;
        }
        if !port.config.uplink
            && let Some(ip) = packet::claimed(source, plain.rest)
        {
            port.learn_address(source, ip, now);
        }
        let known = if to.is_multicast() { None } else { self.table.find(plain.vlan, to, now) };
        // Each form of the frame is made once, for whoever needs it.
        let mut made = [None, None];
        match known {
            Some(one) => self.give(from, one, plain, &mut made),
            None => {
                self.ports[from].counters.flooded += 1;
                (0..self.ports.len()).for_each(|to| self.give(from, to, plain, &mut made));
            }
        }
        Ok(())
    }

    /// Whether a port may send from this address: one of its own, if it has such, and none of another's.
    fn may_send(&self, from: usize, source: Mac) -> bool {
        let own = self.ports.get(from).map_or(&[][..], |p| &p.config.macs);
        own.contains(&source)
            || (own.is_empty() && self.ports.iter().all(|p| !p.config.macs.contains(&source)))
    }

    /// Queues a frame at a port, in the form that it has there.
    fn give(&mut self, from: usize, to: usize, plain: Plain<'_>, made: &mut [Option<Shared>; 2]) {
        let Some(port) = self.ports.get_mut(to).filter(|p| to != from && p.connected) else { return };
        if port.config.mirror.is_some() {
            return;
        }
        let Some(tagged) = port.config.vlans.leaves(plain.vlan) else { return };
        if !port.config.acl.allows(Way::Out, plain.rest) {
            port.counters.drop(Cause::AclOut, 1);
            return;
        }
        let frame = made[usize::from(tagged)].get_or_insert_with(|| plain.to_vec(tagged).into()).clone();
        self.enqueue(from, to, frame.clone());
        self.mirror(from, to, &frame);
    }

    fn enqueue(&mut self, from: usize, to: usize, frame: Shared) {
        let Some(port) = self.ports.get_mut(to) else { return };
        let was_empty = port.queue.octets() == 0;
        let lost = port.queue.push(from, frame);
        port.counters.drop(Cause::QueueFull, lost);
        if was_empty && !std::mem::replace(&mut port.woken, true) {
            self.woken.push(to);
        }
    }

    /// Gives mirrors what passes port `at`, coming in there if that is where it is from.
    fn mirror(&mut self, from: usize, at: usize, frame: &[u8]) {
        let mut copy: Option<Shared> = None;
        for to in 0..self.ports.len() {
            let port = &self.ports[to];
            let wanted = match &port.config.mirror {
                None => continue,
                Some(Mirror::All) => at == from,
                Some(Mirror::Port(name)) => self.ports.get(at).is_some_and(|p| p.config.name == *name),
            };
            if wanted && port.connected {
                self.enqueue(IN_ORDER, to, copy.get_or_insert_with(|| frame.into()).clone());
            }
        }
    }

    /// What a port is to send now.
    pub fn next(&mut self, port: usize, now: Duration) -> Next {
        let Some(port) = self.ports.get_mut(port) else { return Next::Nothing };
        let Some(len) = port.queue.next_len() else { return Next::Nothing };
        if let Some([_, limit]) = &mut port.limits
            && let Err(at) = limit.take(len, now)
        {
            return Next::Wait(at);
        }
        match port.queue.pop() {
            Some(frame) => {
                port.counters.output.add(frame.len());
                Next::Frame(frame)
            }
            None => Next::Nothing,
        }
    }

    /// Ports that had nothing to send, and have now. Each is told once.
    pub fn take_woken(&mut self) -> Vec<usize> {
        for port in &self.woken {
            self.ports[*port].woken = false;
        }
        std::mem::take(&mut self.woken)
    }

    /// Whether there are such ports.
    pub fn has_woken(&self) -> bool {
        !self.woken.is_empty()
    }

    /// The ports, by number.
    pub fn ports(&self) -> &[Port] {
        &self.ports
    }

    /// The stations that are known.
    pub fn stations(&self) -> Vec<Station> {
        let all = self.table.all();
        all.map(|(vlan, mac, e)| Station { mac, vlan, port: e.port, seen: e.seen }).collect()
    }

    /// How many stations there may be.
    pub fn most_stations(&self) -> usize {
        self.table.limit()
    }

    /// Forgets stations that have been silent; to be called now and then.
    pub fn age(&mut self, now: Duration) {
        self.table.age(now);
    }
}

/// Destination and source.
fn addresses(bytes: &[u8]) -> Option<(Mac, Mac)> {
    let (to, from) = bytes.split_first_chunk::<6>()?;
    Some((Mac(*to), Mac(*from.first_chunk::<6>()?)))
}

#[cfg(test)]
mod tests;
