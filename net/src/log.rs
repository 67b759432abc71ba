//! A line of text for each frame that passes (`-d net`).
//!
//! ```text
//!   n0 +0.183204 out 74 52:54:00:12:34:56 > 52:55:0a:00:02:02 10.0.2.15:41952 > 10.0.2.2:80 tcp S seq 1843 win 64240
//! ```
//!
//! Network, seconds since the start, direction as the guest sees it, length, addresses, and what is in the frame. What a
//! long segment is to be cut to follows it as `gso 1460`.
use crate::numbers::ether::ARP;
use crate::numbers::ip::{ICMP, ICMPV6, TCP, UDP};
use crate::switch::packet::{Ip, Packet};
use crate::watch::Record;
use crate::{Frame, Mac};
use std::fmt::{self, Write as _};
use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Instant;

/// What of a frame is looked at: headers, with options and extensions.
const LOOKED_AT: usize = 256;

/// Writes lines.
pub struct Log<W> {
    name: String,
    out: W,
    start: Instant,
}

impl<W: Write + Send> Log<W> {
    /// A log of the network of this name.
    pub fn new(name: &str, out: W) -> Self {
        Self { name: name.into(), out, start: Instant::now() }
    }
}

impl<W: Write + Send> Record for Log<W> {
    fn record(&mut self, from_guest: bool, frame: &Frame<'_>) {
        let head = frame.slices(0, LOOKED_AT).concat();
        let direction = if from_guest { "out" } else { "in" };
        let time = self.start.elapsed();
        let (seconds, micros) = (time.as_secs(), time.subsec_micros());
        let mut line = format!("{} +{seconds}.{micros:06} {direction} {}", self.name, frame.len());
        if describe(&mut line, &head).is_ok()
            && let Some(gso) = frame.offload.gso
        {
            let _ = write!(line, " gso {}", gso.size);
        }
        line.push('\n');
        // One write, so that lines of several networks do not mix. A full disk ends the log, not the network.
        let _ = self.out.write_all(line.as_bytes());
    }
}

/// Says what is in a frame.
fn describe(line: &mut String, head: &[u8]) -> fmt::Result {
    let Some((to, rest)) = head.split_first_chunk::<6>() else { return write!(line, " cut") };
    let Some((from, mut rest)) = rest.split_first_chunk::<6>() else { return write!(line, " cut") };
    write!(line, " {} > {}", Mac(*from), Mac(*to))?;
    while let [0x81, 0, high, low, behind @ ..] = rest {
        write!(line, " vlan {}", u16::from_be_bytes([*high, *low]) & 0xfff)?;
        rest = behind;
    }
    match Packet::read(rest) {
        Packet::Ip(ip) => internet(line, ip, &rest[2..]),
        Packet::Broken(kind) => write!(line, " type {kind:04x} broken"),
        Packet::Other(ARP) => arp(line, &rest[2..]),
        Packet::Other(kind) => write!(line, " type {kind:04x}"),
    }
}

fn internet(line: &mut String, ip: Ip, packet: &[u8]) -> fmt::Result {
    match ip.ports {
        Some((from, to)) => {
            write!(line, " {} > {}", SocketAddr::new(ip.from, from), SocketAddr::new(ip.to, to))?;
        }
        None => write!(line, " {} > {}", ip.from, ip.to)?,
    }
    // Extension headers of IPv6 are not followed again: what is behind them is named only.
    let header = match packet.first().map(|b| b >> 4) {
        Some(4) => usize::from(packet[0] & 15) * 4,
        Some(6) if packet.get(6) == Some(&ip.protocol) => 40,
        _ => packet.len(),
    };
    let payload = packet.get(header..).unwrap_or_default();
    let fragment = match packet {
        [0x40..=0x4f, _, _, _, _, _, high, low, ..] => u16::from_be_bytes([*high & 0x3f, *low]),
        _ => 0,
    };
    let number = |at: usize| {
        payload.get(at..at + 4).and_then(|b| b.first_chunk()).map_or(0, |b| u32::from_be_bytes(*b))
    };
    match ip.protocol {
        _ if fragment & 0x1fff != 0 => {
            write!(line, " proto {} fragment at {}", ip.protocol, (fragment & 0x1fff) * 8)
        }
        TCP if payload.len() >= 20 => {
            let flags = payload[13];
            let names: String =
                "FSRPAUEW".chars().enumerate().filter(|(n, _)| flags >> n & 1 != 0).map(|f| f.1).collect();
            write!(line, " tcp {names} seq {}", number(4))?;
            if flags & 0x10 != 0 {
                write!(line, " ack {}", number(8))?;
            }
            write!(line, " win {}", u16::from_be_bytes([payload[14], payload[15]]))
        }
        TCP => write!(line, " tcp"),
        UDP => write!(line, " udp {}", number(4) >> 16),
        ICMP | ICMPV6 => match payload {
            [kind, code, ..] => write!(line, " icmp type {kind} code {code}"),
            _ => write!(line, " icmp"),
        },
        protocol => write!(line, " proto {protocol}"),
    }?;
    if fragment & 0x2000 != 0 { write!(line, " more fragments") } else { Ok(()) }
}

/// RFC 826.
fn arp(line: &mut String, packet: &[u8]) -> fmt::Result {
    let address = |at: usize| packet.get(at..at + 4).map(|b| Ipv4Addr::new(b[0], b[1], b[2], b[3]));
    match (packet.get(7), address(14), address(24)) {
        (Some(1), Some(from), Some(to)) => write!(line, " arp who has {to}, asks {from}"),
        (Some(2), Some(from), _) => write!(line, " arp {from} is here"),
        _ => write!(line, " arp"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(rest: &[u8]) -> String {
        let mut line = String::new();
        let head = [&[0xff; 6][..], &[2, 0, 0, 0, 0, 9], rest].concat();
        describe(&mut line, &head).unwrap();
        line.strip_prefix(" 02:00:00:00:00:09 > ff:ff:ff:ff:ff:ff ").unwrap_or(&line).to_owned()
    }

    fn v4(protocol: u8, fragment: [u8; 2], payload: &[u8]) -> Vec<u8> {
        let head = [8, 0, 0x45, 0, 0, 0, 0, 0, fragment[0], fragment[1], 64, protocol, 0, 0];
        [&head[..], &[10, 0, 2, 15, 10, 0, 2, 2], payload].concat()
    }

    #[test]
    fn frames_are_described() {
        let tcp = [0x9c, 0x40, 0, 80, 0, 0, 0, 5, 0, 0, 0, 7, 0x50, 0x12, 0xfa, 0xf0, 0, 0, 0, 0];
        assert_eq!(
            said(&v4(TCP, [0, 0], &tcp)),
            "10.0.2.15:40000 > 10.0.2.2:80 tcp SA seq 5 ack 7 win 64240"
        );
        assert_eq!(
            said(&v4(UDP, [0x20, 0], &[0, 53, 0, 54, 0, 12, 0, 0])),
            "10.0.2.15:53 > 10.0.2.2:54 udp 12 more fragments"
        );
        assert_eq!(said(&v4(UDP, [0, 3], b"")), "10.0.2.15 > 10.0.2.2 proto 17 fragment at 24");
        assert_eq!(said(&v4(ICMP, [0, 0], &[8, 0])), "10.0.2.15 > 10.0.2.2 icmp type 8 code 0");
        let tagged = [&[0x81, 0, 0x20, 5][..], &v4(99, [0, 0], b"")].concat();
        assert_eq!(said(&tagged), "vlan 5 10.0.2.15 > 10.0.2.2 proto 99");
        let mut arp =
            vec![8, 6, 0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0, 0, 0, 9, 10, 0, 2, 15, 0, 0, 0, 0, 0, 0, 10, 0, 2, 2];
        assert_eq!(said(&arp), "arp who has 10.0.2.2, asks 10.0.2.15");
        arp[9] = 2;
        assert_eq!(said(&arp), "arp 10.0.2.15 is here");
        assert_eq!(said(&[0x88, 0xcc]), "type 88cc");
        // What is cut anywhere is described as far as it goes.
        let six = [&[0x86, 0xdd, 0x60, 0, 0, 0, 0, 20, TCP, 64][..], &[0xfd; 32], &tcp].concat();
        assert!(said(&six).ends_with("tcp SA seq 5 ack 7 win 64240"), "{}", said(&six));
        for whole in [&six[..], &tagged, &arp, &v4(TCP, [0, 0], &tcp)] {
            let head = [&[2; 12][..], whole].concat();
            (0..=head.len()).for_each(|n| describe(&mut String::new(), &head[..n]).unwrap());
        }
    }
}
