//! Who has which Ethernet address: ARP (RFC 826). IPv6's neighbour discovery is in [`super::ndp`].
use super::core::Core;
use super::ip::{ETHERNET, TYPE_ARP};
use smoltcp::wire::{ArpOperation, ArpPacket, ArpRepr, EthernetAddress};
use std::net::{IpAddr, Ipv4Addr};

/// An ARP packet from the guest.
pub(super) fn arp(core: &mut Core, bytes: &[u8]) {
    let Ok(packet) = ArpPacket::new_checked(bytes) else { return };
    let Ok(ArpRepr::EthernetIpv4 {
        operation,
        source_hardware_addr: mac,
        source_protocol_addr: from,
        target_protocol_addr: wanted,
        ..
    }) = ArpRepr::parse(&packet)
    else {
        return;
    };
    // Gratuitous or not, it says who it is. A probe (RFC 5227) does not: its source is 0.
    core.learn(from.into(), mac.0);
    if operation == ArpOperation::Request && from != wanted && core.is_ours(wanted.into()) {
        send(core, ArpOperation::Reply, wanted, mac.0, from);
    }
}

fn send(core: &mut Core, operation: ArpOperation, from: Ipv4Addr, to: [u8; 6], target: Ipv4Addr) {
    let mac = core.mac();
    let reply = ArpRepr::EthernetIpv4 {
        operation,
        source_hardware_addr: EthernetAddress(mac),
        source_protocol_addr: from,
        target_hardware_addr: EthernetAddress(if to == [0xff; 6] { [0; 6] } else { to }),
        target_protocol_addr: target,
    };
    let mut frame = vec![0; ETHERNET + reply.buffer_len()];
    frame[..6].copy_from_slice(&to);
    frame[6..12].copy_from_slice(&mac);
    frame[12..14].copy_from_slice(&TYPE_ARP.to_be_bytes());
    reply.emit(&mut ArpPacket::new_unchecked(&mut frame[ETHERNET..]));
    core.frame(frame);
}

/// Asks who has an address.
pub(super) fn ask(core: &mut Core, who: IpAddr) {
    match who {
        IpAddr::V4(who) => send(core, ArpOperation::Request, core.config.host, [0xff; 6], who),
        IpAddr::V6(who) => super::ndp::solicit(core, who),
    }
}
