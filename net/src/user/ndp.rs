//! Neighbour discovery and router advertisements (RFC 4861, RFC 4862, RFC 8106): guests make addresses of their own.
use super::core::Core;
use super::dhcp::names;
use super::ip::{self, Ip};
use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

const ROUTER_SOLICIT: u8 = 133;
const ROUTER_ADVERT: u8 = 134;
const SOLICIT: u8 = 135;
const ADVERT: u8 = 136;
/// Options (RFC 4861, 4.6; RFC 8106, 5).
const SOURCE: u8 = 1;
const TARGET: u8 = 2;
const PREFIX: u8 = 3;
const MTU: u8 = 5;
const NAME_SERVERS: u8 = 25;
const SEARCH: u8 = 31;
/// All nodes, and the Ethernet address of that (RFC 2464, 7).
const NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
/// How often routers say that they are there, and how long that holds.
pub(super) const EVERY: Duration = Duration::from_secs(300);
const LIFETIME: u16 = 1800;
const PREFIX_LIFETIME: u32 = 86_400;
const PREFERRED: u32 = 14_400;

/// Whether a message is neighbour discovery.
pub(super) fn is_ours(message: &[u8]) -> bool {
    matches!(message.first(), Some(133..=137))
}

fn multicast_mac(to: Ipv6Addr) -> [u8; 6] {
    let o = to.octets();
    [0x33, 0x33, o[12], o[13], o[14], o[15]]
}

/// A message from the guest.
pub(super) fn input(core: &mut Core, ip: &Ip, mac: [u8; 6], message: &[u8]) {
    let (IpAddr::V6(src), start) = (ip.src, ip::pseudo(ip.src, ip.dst, ip::ICMPV6, message.len())) else {
        return;
    };
    // What has come through a router is forged (RFC 4861, 6.1 and 7.1).
    if ip.ttl != 255 || message.len() < 8 || message[1] != 0 || ip::checksum(&[message], start) != 0 {
        return;
    }
    match message[0] {
        ROUTER_SOLICIT => {
            core.learn(ip.src, mac);
            advertise(core, Some(src).filter(|a| !a.is_unspecified()), mac);
        }
        SOLICIT | ADVERT if message.len() >= 24 => {
            let target = Ipv6Addr::from(*message[8..].first_chunk::<16>().unwrap_or(&[0; 16]));
            if message[0] == ADVERT {
                core.learn(target.into(), mac);
                return;
            }
            core.learn(ip.src, mac);
            if core.is_ours(target.into()) {
                // A guest that has no address yet looks whether the one it wants is free.
                let (to, at, solicited) =
                    if src.is_unspecified() { (NODES, multicast_mac(NODES), 0) } else { (src, mac, 0x40) };
                let mut m = vec![ADVERT, 0, 0, 0, 0x80 | solicited | 0x20, 0, 0, 0];
                m.extend_from_slice(&target.octets());
                m.extend_from_slice(&[TARGET, 1]);
                m.extend_from_slice(&core.mac());
                send(core, target, to, at, m);
            }
        }
        _ => {}
    }
}

fn send(core: &mut Core, from: Ipv6Addr, to: Ipv6Addr, mac: [u8; 6], mut message: Vec<u8>) {
    ip::fill(from.into(), to.into(), ip::ICMPV6, &mut message, 2, &[]);
    core.packet_to(Some(mac), from.into(), to.into(), ip::ICMPV6, 255, &message);
}

/// Says what network this is, to one guest or to all.
pub(super) fn advertise(core: &mut Core, to: Option<Ipv6Addr>, mac: [u8; 6]) {
    let config = &core.config;
    // With restrict=on there is no way out; O: more is known by DHCPv6.
    let lifetime = if config.restrict { 0 } else { LIFETIME };
    let mut m = vec![ROUTER_ADVERT, 0, 0, 0, 64, 0x40];
    m.extend_from_slice(&lifetime.to_be_bytes());
    m.extend_from_slice(&[0; 8]);
    m.extend_from_slice(&[SOURCE, 1]);
    m.extend_from_slice(&core.mac());
    m.extend_from_slice(&[MTU, 1, 0, 0]);
    m.extend_from_slice(&u32::from(config.mtu.max(1280)).to_be_bytes());
    // On link, and for addresses that a guest makes of it; which SLAAC does with 64 bits only.
    m.extend_from_slice(&[PREFIX, 4, config.net6.1, if config.net6.1 == 64 { 0xc0 } else { 0x80 }]);
    m.extend_from_slice(&PREFIX_LIFETIME.to_be_bytes());
    m.extend_from_slice(&PREFERRED.to_be_bytes());
    m.extend_from_slice(&[0; 4]);
    m.extend_from_slice(&config.net6.0.octets());
    if !config.restrict {
        m.extend_from_slice(&[NAME_SERVERS, 3, 0, 0]);
        m.extend_from_slice(&u32::from(LIFETIME).to_be_bytes());
        m.extend_from_slice(&config.dns6.octets());
    }
    let mut search = names(&config.search);
    if !search.is_empty() && search.len() <= 1000 {
        search.resize(search.len().next_multiple_of(8), 0);
        m.extend_from_slice(&[SEARCH, (search.len() / 8 + 1) as u8, 0, 0]);
        m.extend_from_slice(&u32::from(LIFETIME).to_be_bytes());
        m.extend_from_slice(&search);
    }
    let from = core.link_local();
    match to {
        Some(to) => send(core, from, to, mac, m),
        None => send(core, from, NODES, multicast_mac(NODES), m),
    }
}

/// Asks who has an address.
pub(super) fn solicit(core: &mut Core, who: Ipv6Addr) {
    let o = who.octets();
    // The solicited-node address (RFC 4291, 2.7.1).
    let to =
        Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00 | u16::from(o[13]), u16::from_be_bytes([o[14], o[15]]));
    let mut m = vec![SOLICIT, 0, 0, 0, 0, 0, 0, 0];
    m.extend_from_slice(&o);
    m.extend_from_slice(&[SOURCE, 1]);
    m.extend_from_slice(&core.mac());
    let from = core.link_local();
    send(core, from, to, multicast_mac(to), m);
}
