//! What a rule asks of a frame: type, addresses, protocol, ports. And which address a station says is its own.
use crate::Mac;
use crate::numbers::ether::{ARP, IPV4, IPV6};
use crate::numbers::extension::{AH, DESTINATION, FRAGMENT, HOP_BY_HOP, ROUTING};
use crate::numbers::ip::{ICMPV6, TCP, has_ports};
use std::net::{IpAddr, Ipv4Addr};

/// Extension headers of IPv6 that are walked over.
const MOST_HEADERS: usize = 8;

/// What a packet of IP says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ip {
    /// Where it comes from.
    pub from: IpAddr,
    /// Where it goes.
    pub to: IpAddr,
    /// The transport's protocol.
    pub protocol: u8,
    /// The transport's ports, if it has such: a fragment that is not the first has none.
    pub ports: Option<(u16, u16)>,
}

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packet {
    /// Of this type, and none of IP's.
    Other(u16),
    /// IP.
    Ip(Ip),
    /// It says that it is IP of this type, and is not as it should be: nobody can say what a receiver makes of it.
    Broken(u16),
}

impl Packet {
    /// Reads a frame without tags, from its type on.
    pub fn read(rest: &[u8]) -> Self {
        let Some((kind, payload)) = rest.split_first_chunk::<2>() else { return Self::Other(0) };
        let kind = u16::from_be_bytes(*kind);
        match kind {
            IPV4 => ipv4(payload).map_or(Self::Broken(kind), Self::Ip),
            IPV6 => ipv6(payload).map_or(Self::Broken(kind), Self::Ip),
            _ => Self::Other(kind),
        }
    }
}

/// RFC 791, 3.1.
fn ipv4(bytes: &[u8]) -> Option<Ip> {
    let fixed = bytes.first_chunk::<20>()?;
    let header = usize::from(fixed[0] & 15) * 4;
    if fixed[0] >> 4 != 4 || header < 20 {
        return None;
    }
    let offset = u16::from_be_bytes([fixed[6], fixed[7]]) & 0x1fff;
    let address =
        |at: usize| IpAddr::V4(Ipv4Addr::new(fixed[at], fixed[at + 1], fixed[at + 2], fixed[at + 3]));
    let protocol = fixed[9];
    // A later fragment that begins in the transport's header could write over what a rule has looked at (RFC 1858).
    if offset == 1 && protocol == TCP {
        return None;
    }
    let ports = if offset == 0 { ports(protocol, bytes.get(header..)?)? } else { None };
    Some(Ip { from: address(12), to: address(16), protocol, ports })
}

/// RFC 8200, 3 and 4.
fn ipv6(bytes: &[u8]) -> Option<Ip> {
    let fixed = bytes.first_chunk::<40>()?;
    if fixed[0] >> 4 != 6 {
        return None;
    }
    let address =
        |at: usize| bytes.get(at..at + 16).and_then(|b| b.try_into().ok()).map(|b: [u8; 16]| b.into());
    let (from, to) = (IpAddr::V6(address(8)?), IpAddr::V6(address(24)?));
    let (mut next, mut at) = (fixed[6], 40);
    for _ in 0..MOST_HEADERS {
        let head = |n: usize| bytes.get(at + n).copied();
        match next {
            HOP_BY_HOP | ROUTING | DESTINATION => {
                (next, at) = (head(0)?, at + 8 + usize::from(head(1)?) * 8);
            }
            AH => (next, at) = (head(0)?, at + 8 + usize::from(head(1)?) * 4),
            FRAGMENT => {
                let offset = u16::from_be_bytes([head(2)?, head(3)?]) >> 3;
                let protocol = head(0)?;
                head(7)?;
                if offset > 0 {
                    return Some(Ip { from, to, protocol, ports: None });
                }
                (next, at) = (protocol, at + 8);
            }
            protocol => {
                let ports = ports(protocol, bytes.get(at..)?)?;
                return Some(Ip { from, to, protocol, ports });
            }
        }
    }
    None
}

/// A transport's ports; none in it if it has no such, none at all if they are missing.
fn ports(protocol: u8, bytes: &[u8]) -> Option<Option<(u16, u16)>> {
    if !has_ports(protocol) {
        return Some(None);
    }
    let [a, b, c, d] = *bytes.first_chunk::<4>()?;
    Some(Some((u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]))))
}

/// Which address a station says it has: in ARP (RFC 826), or in neighbour discovery (RFC 4861, 7.1; RFC 4862, 5.4).
pub fn claimed(source: Mac, rest: &[u8]) -> Option<IpAddr> {
    let (kind, payload) = rest.split_first_chunk::<2>()?;
    match u16::from_be_bytes(*kind) {
        ARP => {
            let arp = payload.first_chunk::<28>()?;
            let sender = Ipv4Addr::new(arp[14], arp[15], arp[16], arp[17]);
            let sound = arp[..6] == [0, 1, 8, 0, 6, 4] && arp[8..14] == source.0;
            (sound && !sender.is_unspecified() && !sender.is_broadcast()).then_some(sender.into())
        }
        IPV6 => {
            let Ip { from, protocol: ICMPV6, .. } = ipv6(payload)? else { return None };
            // On the link only, and without headers between.
            let message = payload.get(40..64).filter(|_| payload[6] == ICMPV6 && payload[7] == 255)?;
            let target: [u8; 16] = message[8..24].try_into().ok()?;
            let address = match (message[0], from) {
                // A question whether anybody has it: he is about to.
                (135, IpAddr::V6(from)) if from.is_unspecified() => target.into(),
                (135, IpAddr::V6(from)) => from,
                (136, _) => target.into(),
                _ => return None,
            };
            (!address.is_multicast() && !address.is_unspecified()).then_some(address.into())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::numbers::ip::{ICMP, UDP};

    fn v4(protocol: u8, fragment: u16, payload: &[u8]) -> Vec<u8> {
        let mut bytes = vec![8, 0, 0x45, 0, 0, 0, 0, 0];
        bytes.extend(fragment.to_be_bytes());
        bytes.extend([64, protocol, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
        bytes.extend(payload);
        bytes
    }

    fn v6(next: u8, payload: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0x86, 0xdd, 0x60, 0, 0, 0, 0, 0, next, 255];
        bytes.extend([0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
        bytes.extend([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
        bytes.extend(payload);
        bytes
    }

    fn ports_of(bytes: &[u8]) -> Option<(u8, Option<(u16, u16)>)> {
        match Packet::read(bytes) {
            Packet::Ip(ip) => Some((ip.protocol, ip.ports)),
            Packet::Broken(_) => None,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn ports_are_found_or_known_to_be_missing() {
        let udp = [0, 53, 0x30, 0x39, 0, 8, 0, 0];
        assert_eq!(ports_of(&v4(UDP, 0, &udp)), Some((UDP, Some((53, 12345)))));
        assert_eq!(
            ports_of(&v4(UDP, 0x2000, &udp)),
            Some((UDP, Some((53, 12345)))),
            "a first fragment has them"
        );
        assert_eq!(ports_of(&v4(UDP, 100, &udp)), Some((UDP, None)));
        assert_eq!(ports_of(&v4(ICMP, 0, &[8, 0])), Some((ICMP, None)));
        // Too short to have ports, and a fragment that would write over what was looked at.
        assert_eq!(ports_of(&v4(UDP, 0, &udp[..3])), None);
        assert_eq!(ports_of(&v4(TCP, 1, &udp)), None);
        assert_eq!(ports_of(&v4(UDP, 0, &udp)[..18]), None);
        assert_eq!(ports_of(&v6(UDP, &udp)), Some((UDP, Some((53, 12345)))));
        let behind = [[DESTINATION, 0, 0, 0, 0, 0, 0, 0], [UDP, 0, 0, 0, 0, 0, 0, 0], udp].concat();
        assert_eq!(ports_of(&v6(HOP_BY_HOP, &behind)), Some((UDP, Some((53, 12345)))));
        let fragment = |offset: u8| [&[UDP, 0, 0, offset, 0, 0, 0, 0], &udp[..]].concat();
        assert_eq!(ports_of(&v6(FRAGMENT, &fragment(1))), Some((UDP, Some((53, 12345)))));
        assert_eq!(ports_of(&v6(FRAGMENT, &fragment(8))), Some((UDP, None)));
        // More headers than anybody has use for.
        let many = |n: usize| {
            let mut all = [DESTINATION, 0, 0, 0, 0, 0, 0, 0].repeat(n);
            all[8 * n - 8] = UDP;
            all.extend(udp);
            all
        };
        assert_eq!(ports_of(&v6(DESTINATION, &many(7))), Some((UDP, Some((53, 12345)))));
        let endless = many(8);
        assert_eq!(ports_of(&v6(DESTINATION, &endless)), None);
        assert_eq!(Packet::read(&[0x88, 0xcc, 1]), Packet::Other(0x88cc));
        assert_eq!(Packet::read(&[8]), Packet::Other(0));
    }

    #[test]
    fn stations_say_which_address_is_theirs() {
        let mac = Mac([2, 0, 0, 0, 0, 9]);
        let mut arp = vec![8, 6, 0, 1, 8, 0, 6, 4, 0, 1];
        arp.extend(mac.0);
        arp.extend([10, 0, 2, 15, 0, 0, 0, 0, 0, 0, 10, 0, 2, 2]);
        assert_eq!(claimed(mac, &arp), Some("10.0.2.15".parse().unwrap()));
        assert_eq!(claimed(Mac([2, 0, 0, 0, 0, 8]), &arp), None, "one who speaks for another");
        assert_eq!(claimed(mac, &arp[..20]), None);
        let mut target = vec![136, 0, 0, 0, 0, 0, 0, 0];
        target.extend([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7]);
        assert_eq!(claimed(mac, &v6(ICMPV6, &target)), Some("fd00::7".parse().unwrap()));
        target[0] = 135;
        assert_eq!(claimed(mac, &v6(ICMPV6, &target)), Some("fe80::1".parse().unwrap()));
        let mut asking = v6(ICMPV6, &target);
        asking[10..26].fill(0);
        assert_eq!(claimed(mac, &asking), Some("fd00::7".parse().unwrap()));
        asking[9] = 64;
        assert_eq!(claimed(mac, &asking), None, "it came through a router");
    }
}
