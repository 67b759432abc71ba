//! virtio-net (5.1): a network card.
//!
//! ```text
//!   tx queue --Served--> tx.rs: one copy --Frame--> Link --> what is behind the card
//!   rx queue <--Core::with_queue-- rx.rs <--Frame-- Link <---+
//!   control queue --> ctrl.rs: which frames (filter.rs), offloads, pairs of queues and frames of each (rss.rs)
//! ```
//!
//! There are `queues` pairs, receiver and transmitter in turn, and behind them the control queue, which is queue 2 for
//! a driver without VIRTIO_NET_F_MQ. Who notifies sends; a frame for the guest is written to its buffers by whoever
//! brings it. Checksums and segmentation may be left to the other side in both directions: what is behind the card
//! and does not do them has them done (`Link`).
//!
//! A frame from the guest whose header cannot be true is dropped, and its buffer given back.
//!
//! On purpose absent: hash reports, coalescing of notifications, VIRTIO_NET_F_GSO (of before version 1), the standby card.
//!
//! Locks: a transmitter's queue and buffer, then what is behind the card, then a receiver's queue; `settings` is last
//! of all. [`Link::wake`] is called with none of a queue's but the control queue's.
//!
//! Saved are the driver's settings, who waits for buffers, and the cable. Where flows come from is found out again.
use super::chain::Broken;
use super::{Core, Model, Served, Then};
use crate::device::Invalid;
use crate::net::{Card, Link};
use filter::Filter;
use parking_lot::Mutex;
use rss::Rss;
use serde::{Deserialize, Serialize};
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};

mod ctrl;
mod filter;
mod header;
mod options;
mod rss;
mod rx;
#[cfg(test)]
mod tests;
mod tx;

pub use options::NetOptions;

/// Features of the type (5.1.3).
mod feature {
    pub const CSUM: u64 = 1 << 0;
    pub const GUEST_CSUM: u64 = 1 << 1;
    pub const CTRL_GUEST_OFFLOADS: u64 = 1 << 2;
    pub const MTU: u64 = 1 << 3;
    pub const MAC: u64 = 1 << 5;
    pub const GUEST_TSO4: u64 = 1 << 7;
    pub const GUEST_TSO6: u64 = 1 << 8;
    pub const GUEST_ECN: u64 = 1 << 9;
    pub const HOST_TSO4: u64 = 1 << 11;
    pub const HOST_TSO6: u64 = 1 << 12;
    pub const HOST_ECN: u64 = 1 << 13;
    pub const MRG_RXBUF: u64 = 1 << 15;
    pub const STATUS: u64 = 1 << 16;
    pub const CTRL_VQ: u64 = 1 << 17;
    pub const CTRL_RX: u64 = 1 << 18;
    pub const CTRL_VLAN: u64 = 1 << 19;
    pub const CTRL_RX_EXTRA: u64 = 1 << 20;
    pub const GUEST_ANNOUNCE: u64 = 1 << 21;
    pub const MQ: u64 = 1 << 22;
    pub const CTRL_MAC_ADDR: u64 = 1 << 23;
    pub const GUEST_USO4: u64 = 1 << 54;
    pub const GUEST_USO6: u64 = 1 << 55;
    pub const HOST_USO: u64 = 1 << 56;
    pub const RSS: u64 = 1 << 60;
    pub const SPEED_DUPLEX: u64 = 1 << 63;
    /// What the driver takes, which it may change while it runs.
    pub const GUEST_OFFLOADS: u64 =
        GUEST_CSUM | GUEST_TSO4 | GUEST_TSO6 | GUEST_ECN | GUEST_USO4 | GUEST_USO6;
}

/// Entries of the control queue, as in QEMU.
const CONTROL_SIZE: u16 = 64;
/// Fields of the configuration space (5.1.4): the feature that each comes with, and its end.
const FIELDS: [(u64, usize); 6] = [
    (feature::MAC, 6),
    (feature::STATUS, 8),
    (feature::MQ, 10),
    (feature::MTU, 12),
    (feature::SPEED_DUPLEX, 17),
    (feature::RSS, 24),
];
const CONFIG_LEN: usize = 24;
/// Bits of the status in the configuration space.
const LINK_UP: u16 = 1;
const ANNOUNCE: u16 = 2;

/// What the driver has set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Settings {
    mac: [u8; 6],
    filter: Filter,
    /// Pairs of queues in use.
    pairs: u16,
    /// Where frames go; without, to where the driver has sent of their flow.
    rss: Option<Rss>,
    /// What it takes: features of the type.
    offloads: u64,
    /// It is asked to tell where it is (VIRTIO_NET_S_ANNOUNCE).
    announce: bool,
}

impl Settings {
    /// So many of the first pairs may get frames.
    fn listening(&self) -> usize {
        let last = self.rss.iter().flat_map(|rss| rss.table.iter().chain([&rss.others])).max();
        usize::from(last.map_or(self.pairs, |last| last.saturating_add(1)))
    }
}

/// A pair of queues.
struct Pair {
    /// What is behind the card has a frame, for which there was no buffer, or nobody has said so yet.
    starved: AtomicBool,
    /// The frame that is being sent.
    buffer: Mutex<Vec<u8>>,
}

/// What a queue is for.
enum Role {
    Receive(usize),
    Transmit(usize),
    Control,
    Nothing,
}

/// A network card.
pub struct Net {
    link: Arc<Link>,
    options: NetOptions,
    settings: Mutex<Settings>,
    /// Those of the driver that is at work.
    features: AtomicU64,
    pairs: Vec<Pair>,
    /// The pairs on which flows are sent.
    flows: [AtomicU16; 256],
    /// The cable's end as it was saved, until the restored machine goes on.
    restored: Mutex<Option<bool>>,
    core: OnceLock<Weak<Core>>,
}

impl Net {
    /// A card on this link, which is to be connected to it ([`Link::connect`]).
    pub fn new(link: Arc<Link>, mut options: NetOptions) -> Arc<Self> {
        options.queues = options.queues.clamp(1, 256);
        let pair = |_| Pair { starved: AtomicBool::new(true), buffer: Mutex::default() };
        Arc::new(Self {
            settings: Mutex::new(Self::defaults(&link)),
            features: AtomicU64::new(0),
            pairs: (0..options.queues).map(pair).collect(),
            flows: std::array::from_fn(|_| AtomicU16::new(0)),
            restored: Mutex::default(),
            core: OnceLock::new(),
            link,
            options,
        })
    }

    fn defaults(link: &Link) -> Settings {
        let mac = link.mac().0;
        Settings { mac, filter: Filter::default(), pairs: 1, rss: None, offloads: 0, announce: false }
    }

    fn core(&self) -> Option<Arc<Core>> {
        self.core.get().and_then(Weak::upgrade)
    }

    fn features(&self) -> u64 {
        self.features.load(Ordering::Relaxed)
    }

    fn role(&self, queue: usize) -> Role {
        let pairs = if self.features() & (feature::MQ | feature::RSS) != 0 { self.pairs.len() } else { 1 };
        match queue {
            n if n == 2 * pairs => Role::Control,
            n if n > 2 * pairs => Role::Nothing,
            n if n % 2 == 0 => Role::Receive(n / 2),
            n => Role::Transmit(n / 2),
        }
    }
}

impl Card for Net {
    fn link_changed(&self) {
        if self.options.features & feature::STATUS != 0
            && let Some(core) = self.core()
        {
            core.config_changed();
        }
    }
}

/// What is saved of a card.
#[derive(Serialize, Deserialize)]
pub struct NetV1 {
    /// Those of the driver that is at work.
    features: u64,
    settings: Settings,
    /// Of each pair: who has a frame for it is told of buffers.
    starved: Vec<bool>,
    /// The cable is in.
    up: bool,
}

impl Model for Net {
    const ID: u16 = 1;
    const PCI: &'static str = "virtio-net-pci";
    const MMIO: &'static str = "virtio-net-device";
    type State = NetV1;

    fn features(&self) -> u64 {
        self.options.features
    }

    fn queue_sizes(&self) -> Vec<u16> {
        let pair = [self.options.rx_queue_size, self.options.tx_queue_size];
        let mut sizes = pair.repeat(self.pairs.len());
        sizes.push(CONTROL_SIZE);
        sizes
    }

    fn connect(&self, core: &Arc<Core>) {
        let _ = self.core.set(Arc::downgrade(core));
    }

    fn config(&self) -> Vec<u8> {
        let o = &self.options;
        let mut c = vec![0; CONFIG_LEN];
        let mut put = |at: usize, bytes: &[u8]| c[at..at + bytes.len()].copy_from_slice(bytes);
        let (mac, announce) = {
            let settings = self.settings.lock();
            (settings.mac, settings.announce)
        };
        let status = if self.link.is_up() { LINK_UP } else { 0 } | if announce { ANNOUNCE } else { 0 };
        put(0, &mac);
        put(6, &status.to_le_bytes());
        put(8, &o.queues.to_le_bytes());
        put(10, &o.mtu.to_le_bytes());
        put(12, &o.speed.to_le_bytes());
        put(16, &[o.duplex, rss::KEY as u8]);
        put(18, &rss::TABLE.to_le_bytes());
        put(20, &rss::KINDS.to_le_bytes());
        // As long as what is offered has it.
        let offered = FIELDS.iter().filter(|(bit, _)| o.features & bit != 0);
        c.truncate(offered.map(|(_, end)| *end).max().unwrap_or(0));
        c
    }

    /// A driver of before version 1 sets the address there if there is no command for that.
    fn write_config(&self, at: usize, bytes: &[u8]) {
        let newer = super::feature::VERSION_1 | feature::CTRL_MAC_ADDR;
        if self.core().is_none_or(|core| core.features() & newer != 0) {
            return;
        }
        let mut settings = self.settings.lock();
        settings.mac.iter_mut().skip(at).zip(bytes).for_each(|(to, byte)| *to = *byte);
    }

    fn started(&self, features: u64) {
        self.features.store(features, Ordering::Relaxed);
        let mut settings = self.settings.lock();
        settings.offloads = features & feature::GUEST_OFFLOADS;
        if features & feature::CTRL_VLAN != 0 {
            settings.filter.filter_vlans();
        }
    }

    fn serve(&self, queue: usize, served: &mut Served<'_, '_>) -> Result<Then, Broken> {
        match self.role(queue) {
            Role::Transmit(pair) => self.transmit(pair, served),
            Role::Control => {
                while let Some(chain) = served.pop()? {
                    let written = self.command(&chain, served.memory)?;
                    served.done(chain.head, written)?;
                }
                Ok(Then::Empty)
            }
            Role::Receive(_) | Role::Nothing => Ok(Then::Later),
        }
    }

    fn available(&self, queue: usize) -> bool {
        let Role::Receive(pair) = self.role(queue) else { return false };
        self.replenished(pair);
        true
    }

    fn reset(&self) {
        *self.settings.lock() = Self::defaults(&self.link);
        self.features.store(0, Ordering::Relaxed);
        // Who has a frame is told when a driver begins.
        self.pairs.iter().for_each(|p| p.starved.store(true, Ordering::SeqCst));
    }

    fn drain(&self) {
        self.link.pause();
    }

    fn resume(&self) {
        if let Some(up) = self.restored.lock().take() {
            self.link.set_up(up);
            let announces = feature::GUEST_ANNOUNCE | feature::CTRL_VQ | feature::STATUS;
            if self.features() & announces == announces
                && let Some(core) = self.core()
            {
                self.settings.lock().announce = true;
                core.config_changed();
            }
        }
        self.link.resume();
    }

    fn save(&self) -> NetV1 {
        let starved = self.pairs.iter().map(|p| p.starved.load(Ordering::SeqCst)).collect();
        let up = self.restored.lock().unwrap_or_else(|| self.link.is_up());
        NetV1 { features: self.features(), settings: self.settings.lock().clone(), starved, up }
    }

    fn restore(&self, NetV1 { features, settings, starved, up }: NetV1) -> Result<(), Invalid> {
        if starved.len() != self.pairs.len() || !settings.filter.is_sound() {
            return Err(Invalid("queues or addresses of a network card"));
        }
        if self.core().is_some_and(|core| features & !core.offered() != 0)
            || settings.offloads & !(features & feature::GUEST_OFFLOADS) != 0
            || !(1..=self.options.queues).contains(&settings.pairs)
            || settings.rss.as_ref().is_some_and(|rss| !rss.is_sound(self.options.queues))
        {
            return Err(Invalid("settings of a network card"));
        }
        self.features.store(features, Ordering::Relaxed);
        self.pairs.iter().zip(starved).for_each(|(p, starved)| p.starved.store(starved, Ordering::SeqCst));
        *self.settings.lock() = settings;
        *self.restored.lock() = Some(up);
        Ok(())
    }
}
