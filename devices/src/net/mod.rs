//! Network cards, and what they have in common.
//!
//! ```text
//!   guest --registers, rings--> card --Link::send-----> Backend (mynah-net: user, hub, tap, ...)
//!                               card <--Nic::receive--- Link <--- Backend
//! ```
//!
//! A card's [`Link`] stands between it and its back end: it has the card's address, the cable that the user can pull
//! out (`set_link`), and counters. It stops what comes in while the machine is being saved, and does for the back end
//! what that leaves to the sender (checksums, segmentation), so that a card offers its guest the same whatever is
//! behind it.
//!
//! Locks: a back end may hold its own while it gives a frame, and a card may hold its transmitter's while it sends one.
//! So a card receives under a lock that it does not hold when it calls [`Link::send`] or [`Link::wake`].
use crate::kind::{PlugError, Property, Site, Type, Values};
use mynah_net::{Backend, Frame, Mac, Nic, Takes, offload};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};

pub mod e1000;
pub mod microwire;
pub mod rtl8139;
pub(crate) mod toeplitz;

/// The properties that all cards have, in front of a card's own.
#[macro_export]
macro_rules! card_properties {
    ($($own:expr),* $(,)?) => {
        &[
            $crate::net::NETDEV,
            $crate::net::MAC,
            $crate::net::BOOTINDEX,
            $crate::net::ROMFILE,
            $($own),*
        ]
    };
}

/// `netdev=`.
pub const NETDEV: Property =
    Property { name: "netdev", kind: Type::Netdev, default: None, help: "what is behind it" };
/// `mac=`.
pub const MAC: Property =
    Property { name: "mac", kind: Type::Mac, default: None, help: "its Ethernet address" };
/// `bootindex=`.
pub const BOOTINDEX: Property = Property {
    name: "bootindex",
    kind: Type::Number(0, i32::MAX as u64),
    default: None,
    help: "its place in the boot order",
};

/// The class code of network controllers (PCI Code and ID Assignment, 1.3).
pub const CLASS: u8 = 2;

/// `romfile=`.
pub const ROMFILE: Property = Property {
    name: "romfile",
    kind: Type::Text,
    default: None,
    help: "its boot ROM (default: iPXE's, if there is one); empty for none",
};

/// The boot ROM that QEMU has for a card of this vendor and device, for BIOS and UEFI both.
pub fn usual_rom(vendor: u16, device: u16) -> Option<&'static str> {
    Some(match (vendor, device) {
        (0x8086, 0x100e) => "efi-e1000.rom",
        (0x8086, 0x10d3) => "efi-e1000e.rom",
        (0x10ec, 0x8139) => "efi-rtl8139.rom",
        (0x1af4, 0x1000 | 0x1041) => "efi-virtio.rom",
        _ => return None,
    })
}

/// A card as its [`Link`] sees it.
pub trait Card: Nic {
    /// The cable was put in or pulled out: [`Link::is_up`].
    fn link_changed(&self);
}

/// What has passed, in frames and bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Frames from the guest.
    pub sent: u64,
    /// Bytes in them.
    pub sent_bytes: u64,
    /// Frames to the guest.
    pub received: u64,
    /// Bytes in them.
    pub received_bytes: u64,
    /// Frames that went nowhere, as the cable was out or nothing is behind the card.
    pub dropped: u64,
}

#[derive(Default)]
struct Counters {
    sent: AtomicU64,
    sent_bytes: AtomicU64,
    received: AtomicU64,
    received_bytes: AtomicU64,
    dropped: AtomicU64,
}

/// A card's connection to what is behind it.
pub struct Link {
    name: String,
    model: &'static str,
    mac: Mac,
    netdev: Option<String>,
    backend: Option<Arc<dyn Backend>>,
    up: AtomicBool,
    /// The machine is being saved: nothing comes in.
    paused: AtomicBool,
    counters: Counters,
    card: OnceLock<Weak<dyn Card>>,
}

impl Link {
    /// The link of a card of this model with these values; it is one of those that the monitor lists.
    ///
    /// # Errors
    /// There is no such `netdev`, or another card has it.
    pub fn plug(site: &Site<'_>, values: &Values, model: &'static str) -> Result<Arc<Self>, PlugError> {
        let netdev = values.text("netdev").map(str::to_owned);
        let backend = match &netdev {
            None => None,
            Some(id) => {
                let why = || format!("netdev={id}: no -netdev has this id, or another card uses it");
                Some((site.netdev)(id).ok_or_else(|| PlugError::Value(why()))?)
            }
        };
        let mut links = site.links.borrow_mut();
        let mac = match values.text("mac") {
            Some(text) => text.parse().map_err(PlugError::Value)?,
            None => default_mac(&links),
        };
        if mac.is_multicast() {
            return Err(PlugError::Value(format!("mac={mac}: this is a group's address")));
        }
        let number = links.iter().filter(|l| l.model == model).count();
        let name = values.id.clone().unwrap_or_else(|| format!("{model}.{number}"));
        let link = Arc::new(Self::new(name, model, mac, netdev, backend));
        links.push(link.clone());
        Ok(link)
    }

    /// A link by itself.
    pub fn new(
        name: String,
        model: &'static str,
        mac: Mac,
        netdev: Option<String>,
        backend: Option<Arc<dyn Backend>>,
    ) -> Self {
        Self {
            name,
            model,
            mac,
            netdev,
            backend,
            up: AtomicBool::new(true),
            paused: AtomicBool::new(false),
            counters: Counters::default(),
            card: OnceLock::new(),
        }
    }

    /// Connects the card; once, when it is plugged in.
    pub fn connect<C: Card + 'static>(self: &Arc<Self>, card: &Arc<C>) {
        let card: Arc<dyn Card> = card.clone();
        let _ = self.card.set(Arc::downgrade(&card));
        if let Some(backend) = &self.backend {
            backend.connect(Arc::new(Inward(Arc::downgrade(self))));
        }
    }

    /// The card's id, or its model and a number.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The card's model.
    pub fn model(&self) -> &'static str {
        self.model
    }

    /// The address in the card's EEPROM.
    pub fn mac(&self) -> Mac {
        self.mac
    }

    /// The id of what is behind it, if anything is.
    pub fn netdev(&self) -> Option<&str> {
        self.netdev.as_deref()
    }

    /// Whether the cable is in.
    pub fn is_up(&self) -> bool {
        self.up.load(Ordering::SeqCst)
    }

    /// Puts the cable in, or pulls it out.
    pub fn set_up(&self, up: bool) {
        if self.up.swap(up, Ordering::SeqCst) != up {
            if let Some(card) = self.card() {
                card.link_changed();
            }
            if up {
                self.wake();
            }
        }
    }

    /// What has passed.
    pub fn counts(&self) -> Counts {
        let Counters { sent, sent_bytes, received, received_bytes, dropped } = &self.counters;
        let get = |n: &AtomicU64| n.load(Ordering::Relaxed);
        Counts {
            sent: get(sent),
            sent_bytes: get(sent_bytes),
            received: get(received),
            received_bytes: get(received_bytes),
            dropped: get(dropped),
        }
    }

    /// A frame from the guest, which may leave checksums and segmentation to its receiver.
    pub fn send(&self, frame: &Frame<'_>) {
        let Some(backend) = self.backend.as_ref().filter(|_| self.is_up()) else {
            self.counters.dropped.fetch_add(1, Ordering::Relaxed);
            return;
        };
        self.counters.sent.fetch_add(1, Ordering::Relaxed);
        self.counters.sent_bytes.fetch_add(frame.len() as u64, Ordering::Relaxed);
        offload::deliver(frame, backend.takes(), &mut |frame| backend.send(frame));
    }

    /// The card has room again for what comes in.
    pub fn wake(&self) {
        if let Some(backend) = self.backend.as_ref().filter(|_| !self.paused.load(Ordering::SeqCst)) {
            backend.wake();
        }
    }

    /// Nothing comes in from now on: the machine is being saved.
    pub fn pause(&self) {
        self.paused.store(true, Ordering::SeqCst);
    }

    /// The end of a pause.
    pub fn resume(&self) {
        self.paused.store(false, Ordering::SeqCst);
        self.wake();
    }

    fn card(&self) -> Option<Arc<dyn Card>> {
        self.card.get().and_then(Weak::upgrade)
    }
}

/// The next default address: QEMU's, counted up by cards that have none of their own.
fn default_mac(links: &[Arc<Link>]) -> Mac {
    let of = |n: u8| Mac([0x52, 0x54, 0, 0x12, 0x34, n]);
    (0x56..=0xff).chain(0..0x56).map(of).find(|mac| links.iter().all(|l| l.mac != *mac)).unwrap_or(of(0x56))
}

/// The card as the back end sees it.
struct Inward(Weak<Link>);

impl Inward {
    fn card(&self) -> Option<(Arc<Link>, Arc<dyn Card>)> {
        let link = self.0.upgrade().filter(|l| !l.paused.load(Ordering::SeqCst))?;
        let card = link.card()?;
        Some((link, card))
    }
}

impl Nic for Inward {
    fn can_receive(&self) -> bool {
        self.card().is_some_and(|(link, card)| !link.is_up() || card.can_receive())
    }

    fn receive(&self, frame: &Frame<'_>) -> bool {
        let Some((link, card)) = self.card() else { return false };
        if !link.is_up() {
            link.counters.dropped.fetch_add(1, Ordering::Relaxed);
            return true;
        }
        let taken = card.receive(frame);
        if taken {
            link.counters.received.fetch_add(1, Ordering::Relaxed);
            link.counters.received_bytes.fetch_add(frame.len() as u64, Ordering::Relaxed);
        }
        taken
    }

    fn takes(&self) -> Takes {
        self.card().map(|(_, card)| card.takes()).unwrap_or_default()
    }

    fn paces(&self) -> bool {
        self.card().is_some_and(|(_, card)| card.paces())
    }
}

#[cfg(test)]
pub(crate) mod testing {
    //! A back end that keeps what it gets, for tests of cards.
    use super::*;
    use mynah_net::Offload;
    use parking_lot::Mutex;

    /// What was sent, and the card.
    #[derive(Default)]
    pub(crate) struct Recorder {
        pub(crate) sent: Mutex<Vec<(Vec<u8>, Offload)>>,
        pub(crate) woken: AtomicU64,
        pub(crate) takes: Mutex<Takes>,
        nic: OnceLock<Arc<dyn Nic>>,
    }

    impl Recorder {
        /// One behind a link with address 52:54:00:12:34:56.
        pub(crate) fn linked(model: &'static str) -> (Arc<Self>, Arc<Link>) {
            let recorder = Arc::new(Self::default());
            let mac = Mac([0x52, 0x54, 0, 0x12, 0x34, 0x56]);
            (
                recorder.clone(),
                Arc::new(Link::new("n0".into(), model, mac, Some("net0".into()), Some(recorder))),
            )
        }

        /// Gives the card a frame; whether it took it.
        pub(crate) fn give(&self, frame: &Frame<'_>) -> bool {
            self.nic.get().is_some_and(|n| n.receive(frame))
        }

        pub(crate) fn card(&self) -> &dyn Nic {
            &**self.nic.get().expect("a card is connected")
        }

        /// The frames that came, without what was said of them.
        pub(crate) fn frames(&self) -> Vec<Vec<u8>> {
            self.sent.lock().drain(..).map(|(bytes, _)| bytes).collect()
        }
    }

    impl Backend for Recorder {
        fn connect(&self, nic: Arc<dyn Nic>) {
            let _ = self.nic.set(nic);
        }
        fn send(&self, frame: &Frame<'_>) {
            self.sent.lock().push((frame.to_vec(), frame.offload));
        }
        fn wake(&self) {
            self.woken.fetch_add(1, Ordering::SeqCst);
        }
        fn takes(&self) -> Takes {
            *self.takes.lock()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::testing::Recorder;
    use super::*;
    use parking_lot::Mutex;
    use std::io::IoSlice;

    #[derive(Default)]
    struct Dummy {
        got: Mutex<Vec<Vec<u8>>>,
        changes: AtomicU64,
    }
    impl Nic for Dummy {
        fn can_receive(&self) -> bool {
            true
        }
        fn receive(&self, frame: &Frame<'_>) -> bool {
            self.got.lock().push(frame.to_vec());
            true
        }
    }
    impl Card for Dummy {
        fn link_changed(&self) {
            self.changes.fetch_add(1, Ordering::SeqCst);
        }
    }

    #[test]
    fn nothing_passes_a_link_that_is_down_or_paused() {
        let (wire, link) = Recorder::linked("dummy");
        let card = Arc::new(Dummy::default());
        link.connect(&card);
        let frame = &[IoSlice::new(b"frame")];
        let frame = Frame::new(frame);
        assert!(wire.give(&frame));
        link.send(&frame);
        link.set_up(false);
        link.set_up(false);
        assert!(wire.card().can_receive() && wire.give(&frame), "a frame for a cable that is out is gone");
        link.send(&frame);
        link.set_up(true);
        assert_eq!((card.changes.load(Ordering::SeqCst), wire.woken.load(Ordering::SeqCst)), (2, 1));
        link.pause();
        assert!(!wire.card().can_receive() && !wire.give(&frame), "a frame for a paused machine waits");
        link.resume();
        assert_eq!((card.got.lock().len(), wire.frames().len()), (1, 1));
        assert_eq!(wire.woken.load(Ordering::SeqCst), 2);
        let counts = Counts { sent: 1, sent_bytes: 5, received: 1, received_bytes: 5, dropped: 2 };
        assert_eq!(link.counts(), counts);
    }

    #[test]
    fn cards_have_qemu_s_addresses_one_after_the_other() {
        let mut links = Vec::new();
        for n in [0x56, 0x57, 0x58] {
            let mac = default_mac(&links);
            assert_eq!(mac, Mac([0x52, 0x54, 0, 0x12, 0x34, n]));
            links.push(Arc::new(Link::new("n".into(), "dummy", mac, None, None)));
        }
    }
}
