//! What can be chosen of a card: QEMU's properties and defaults.
use super::super::mmio::{VirtioMmio, mmio_properties};
use super::super::pci::{PciOptions, VirtioPci, pci_properties};
use super::{Net, feature};
use crate::kind::{Bus, KINDS, Kind, PlugError, Property, Site, Type, Values};
use crate::net::Link;
use linkme::distributed_slice;
use std::sync::Arc;

/// What was chosen of a card.
#[derive(Clone, Debug)]
pub struct NetOptions {
    /// Features of the type that are offered.
    pub features: u64,
    /// Pairs of queues, from 1 to 256; of use with VIRTIO_NET_F_MQ or VIRTIO_NET_F_RSS.
    pub queues: u16,
    /// Entries of the queues for frames to and from the guest: powers of two from 256 to 1024.
    pub rx_queue_size: u16,
    /// See `rx_queue_size`.
    pub tx_queue_size: u16,
    /// The longest packet that the guest is to send, with VIRTIO_NET_F_MTU.
    pub mtu: u16,
    /// Mbit/s, all ones if unknown, with VIRTIO_NET_F_SPEED_DUPLEX.
    pub speed: u32,
    /// 0 half, 1 full, ffh unknown.
    pub duplex: u8,
}

impl Default for NetOptions {
    fn default() -> Self {
        Self {
            features: SWITCHES.iter().fold(feature::MAC, |all, (_, bits)| all | bits),
            queues: 1,
            rx_queue_size: 256,
            tx_queue_size: 256,
            mtu: 0,
            speed: u32::MAX,
            duplex: 0xff,
        }
    }
}

/// Switches that are on by default, and their features.
const SWITCHES: [(&str, u64); 17] = [
    ("csum", feature::CSUM),
    ("guest_csum", feature::GUEST_CSUM),
    ("guest_tso4", feature::GUEST_TSO4),
    ("guest_tso6", feature::GUEST_TSO6),
    ("guest_ecn", feature::GUEST_ECN),
    ("host_tso4", feature::HOST_TSO4),
    ("host_tso6", feature::HOST_TSO6),
    ("host_ecn", feature::HOST_ECN),
    ("mrg_rxbuf", feature::MRG_RXBUF),
    ("status", feature::STATUS),
    ("ctrl_vq", feature::CTRL_VQ),
    ("ctrl_rx", feature::CTRL_RX),
    ("ctrl_rx_extra", feature::CTRL_RX_EXTRA),
    ("ctrl_vlan", feature::CTRL_VLAN),
    ("ctrl_mac_addr", feature::CTRL_MAC_ADDR),
    ("ctrl_guest_offloads", feature::CTRL_GUEST_OFFLOADS),
    ("guest_announce", feature::GUEST_ANNOUNCE),
];

/// Features that are of no use without others (5.1.3.1).
const NEEDS: [(u64, u64); 18] = [
    (feature::GUEST_TSO4, feature::GUEST_CSUM),
    (feature::GUEST_TSO6, feature::GUEST_CSUM),
    (feature::GUEST_USO4, feature::GUEST_CSUM),
    (feature::GUEST_USO6, feature::GUEST_CSUM),
    (feature::HOST_TSO4, feature::CSUM),
    (feature::HOST_TSO6, feature::CSUM),
    (feature::HOST_USO, feature::CSUM),
    (feature::CTRL_RX, feature::CTRL_VQ),
    (feature::CTRL_RX_EXTRA, feature::CTRL_RX),
    (feature::CTRL_VLAN, feature::CTRL_VQ),
    (feature::CTRL_MAC_ADDR, feature::CTRL_VQ),
    (feature::CTRL_GUEST_OFFLOADS, feature::CTRL_VQ),
    (feature::MQ, feature::CTRL_VQ),
    (feature::RSS, feature::CTRL_VQ),
    (feature::GUEST_ANNOUNCE, feature::CTRL_VQ),
    (feature::GUEST_ANNOUNCE, feature::STATUS),
    (feature::GUEST_ECN, feature::GUEST_CSUM),
    (feature::HOST_ECN, feature::CSUM),
];

const fn switch(name: &'static str, on: bool, help: &'static str) -> Property {
    Property { name, kind: Type::Switch, default: Some(on as u64), help }
}

const fn size(name: &'static str, help: &'static str) -> Property {
    Property { name, kind: Type::Number(256, 1024), default: Some(256), help }
}

macro_rules! own_properties {
    ($with:ident) => {
        $with![
            crate::net::NETDEV,
            crate::net::MAC,
            crate::net::BOOTINDEX,
            crate::net::ROMFILE,
            switch("csum", true, "the guest may leave checksums to the card"),
            switch("guest_csum", true, "the guest may take frames with checksums left to it"),
            switch(
                "gso",
                true,
                "the guest may leave segmentation to the card; off: none of host_tso4, host_tso6, host_uso"
            ),
            switch("guest_tso4", true, "the guest may take long TCP segments over IPv4"),
            switch("guest_tso6", true, "the guest may take long TCP segments over IPv6"),
            switch("guest_ecn", true, "and such that tell of congestion"),
            switch("host_tso4", true, "the guest may send long TCP segments over IPv4"),
            switch("host_tso6", true, "the guest may send long TCP segments over IPv6"),
            switch("host_ecn", true, "and such that tell of congestion"),
            switch("mrg_rxbuf", true, "a frame may lie in several of the guest's buffers"),
            switch("status", true, "the guest sees whether the cable is in"),
            switch("ctrl_vq", true, "there is a queue for commands"),
            switch("ctrl_rx", true, "the guest chooses which frames it sees"),
            switch("ctrl_rx_extra", true, "and in more ways"),
            switch("ctrl_vlan", true, "the guest chooses the VLANs that it sees"),
            switch("ctrl_mac_addr", true, "the guest sets the address by a command"),
            switch("ctrl_guest_offloads", true, "the guest changes what it takes while it runs"),
            switch("guest_announce", true, "a restored guest is asked to tell where it is"),
            switch("host_uso", false, "the guest may send long UDP datagrams, to be cut into short ones"),
            switch("guest_uso4", false, "the guest may take long UDP datagrams over IPv4"),
            switch("guest_uso6", false, "the guest may take long UDP datagrams over IPv6"),
            switch("mq", false, "the guest may use several pairs of queues"),
            switch("rss", false, "and choose the pair of a frame by a hash"),
            Property {
                name: "queues",
                kind: Type::Number(1, 256),
                default: Some(1),
                help: "pairs of queues, with mq=on or rss=on",
            },
            size("rx_queue_size", "entries of a queue for frames to the guest, a power of two"),
            size("tx_queue_size", "entries of a queue for frames from the guest, a power of two"),
            Property {
                name: "host_mtu",
                kind: Type::Number(0, 65535),
                default: Some(0),
                help: "the longest packet that the guest is to send; 0: it is told none",
            },
            Property {
                name: "speed",
                kind: Type::Number(0, i32::MAX as u64),
                default: None,
                help: "Mbit/s that the guest is told (default: none)",
            },
            Property {
                name: "duplex",
                kind: Type::Text,
                default: None,
                help: "half or full, as the guest is told (default: neither)",
            },
        ]
    };
}

const PROPERTIES: &[Property] = own_properties!(pci_properties);

#[distributed_slice(KINDS)]
static KIND: Kind = Kind {
    name: "virtio-net-pci",
    bus: Bus::Pci,
    about: "a network card, virtio",
    properties: PROPERTIES,
    plug,
};

#[distributed_slice(KINDS)]
static ALIAS: Kind =
    Kind { name: "virtio-net", bus: Bus::Pci, about: "virtio-net-pci", properties: PROPERTIES, plug };

#[distributed_slice(KINDS)]
static MMIO: Kind = Kind {
    name: "virtio-net-device",
    bus: Bus::VirtioMmio,
    about: "a network card, virtio",
    properties: own_properties!(mmio_properties),
    plug: |site, values| {
        let net = net(site, values, "virtio-net-device")?;
        VirtioMmio::plug(site, values, net.clone())?;
        net.link.connect(&net);
        Ok(())
    },
};

fn plug(site: &Site<'_>, values: &Values) -> Result<(), PlugError> {
    let net = net(site, values, "virtio-net-pci")?;
    let pci = PciOptions::of(values, 2 * net.options.queues + 2)?;
    VirtioPci::plug(site, values, net.clone(), 0x02_0000, pci)?;
    net.link.connect(&net);
    Ok(())
}

fn net(site: &Site<'_>, values: &Values, model: &'static str) -> Result<Arc<Net>, PlugError> {
    let options = NetOptions::of(values)?;
    Ok(Net::new(Link::plug(site, values, model)?, options))
}

impl NetOptions {
    /// What was chosen.
    ///
    /// # Errors
    /// A value is none.
    pub fn of(values: &Values) -> Result<Self, PlugError> {
        let mut o = Self::default();
        let number = |name: &str, usual: u16| values.number(name).map_or(usual, |n| n as u16);
        let is_off = |name: &str| values.values.contains_key(name) && !values.switch(name);
        let power = |name: &str| match number(name, 256) {
            n if n.is_power_of_two() => Ok(n),
            n => Err(PlugError::Value(format!("{name}={n}: it is a power of two"))),
        };
        o.rx_queue_size = power("rx_queue_size")?;
        o.tx_queue_size = power("tx_queue_size")?;
        for (name, bits) in SWITCHES {
            if is_off(name) {
                o.features &= !bits;
            }
        }
        let datagrams = [
            ("host_uso", feature::HOST_USO),
            ("guest_uso4", feature::GUEST_USO4),
            ("guest_uso6", feature::GUEST_USO6),
        ];
        for (_, bit) in datagrams.into_iter().filter(|(name, _)| values.switch(name)) {
            o.features |= bit;
        }
        if is_off("gso") {
            o.features &= !(feature::HOST_TSO4 | feature::HOST_TSO6 | feature::HOST_USO);
        }
        let several = [("mq", feature::MQ), ("rss", feature::RSS)];
        let several = several.into_iter().filter(|(name, _)| values.switch(name));
        let several = several.fold(0, |all, (_, bit)| all | bit);
        if several != 0 {
            o.features |= several;
            o.queues = number("queues", 1).clamp(1, 256);
        }
        o.mtu = number("host_mtu", 0);
        if o.mtu > 0 {
            if o.mtu < 68 {
                let why = format!("host_mtu={}: IPv4 has no packets as short (RFC 791: 68 bytes)", o.mtu);
                return Err(PlugError::Value(why));
            }
            o.features |= feature::MTU;
        }
        if let Some(speed) = values.number("speed") {
            o.speed = speed as u32;
            o.features |= feature::SPEED_DUPLEX;
        }
        if let Some(duplex) = values.text("duplex") {
            o.duplex = match duplex {
                "half" => 0,
                "full" => 1,
                other => return Err(PlugError::Value(format!("duplex={other}: it is half or full"))),
            };
            o.features |= feature::SPEED_DUPLEX;
        }
        // Twice, for what needs what needs another.
        for (bits, other) in [NEEDS, NEEDS].concat() {
            if o.features & other == 0 {
                o.features &= !bits;
            }
        }
        Ok(o)
    }
}
