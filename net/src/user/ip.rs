//! IP packets: where their parts are, checksums, and headers of our own.
use crate::Frame;
pub(super) use crate::checksum::checksum;
use crate::checksum::{fold, sum};
pub(super) use crate::numbers::ether::{ARP as TYPE_ARP, IPV4 as TYPE_IPV4, IPV6 as TYPE_IPV6};
use crate::numbers::extension::{DESTINATION, FRAGMENT, HOP_BY_HOP, ROUTING};
pub(super) use crate::numbers::ip::{ICMP, ICMPV6, TCP, UDP};
use smoltcp::wire::{Ipv4Packet, Ipv6Packet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Bytes of an Ethernet header without a tag.
pub(super) const ETHERNET: usize = 14;
/// How much of a frame is looked at as headers: Ethernet, IPv6 with some extensions or IPv4 with options, TCP's 60.
pub(super) const HEADERS: usize = 256;

/// A fragment's place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Fragment {
    pub ident: u32,
    /// In bytes.
    pub offset: usize,
    pub more: bool,
}

/// What an IP header says.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ip {
    pub src: IpAddr,
    pub dst: IpAddr,
    pub proto: u8,
    pub ttl: u8,
    pub fragment: Option<Fragment>,
    /// Where the IP header begins in the frame.
    pub at: usize,
    /// Where the transport's header begins in the frame.
    pub payload: usize,
    /// Bytes from there to the packet's end; what follows in the frame is padding.
    pub len: usize,
}

impl Ip {
    /// Reads the header of a frame of `total` bytes, whose first ones are `head`. None if it is not one, or is longer
    /// than [`HEADERS`] allows.
    pub fn parse(head: &[u8], total: usize, v6: bool) -> Option<Self> {
        let bytes = head.get(ETHERNET..)?;
        if v6 { Self::parse_v6(bytes, total - ETHERNET) } else { Self::parse_v4(bytes, total - ETHERNET) }
    }

    fn parse_v4(bytes: &[u8], total: usize) -> Option<Self> {
        if bytes.len() < 20 {
            return None;
        }
        let packet = Ipv4Packet::new_unchecked(bytes);
        let (header, len) = (usize::from(packet.header_len()), usize::from(packet.total_len()));
        if packet.version() != 4 || header < 20 || header > bytes.len() || len < header || len > total {
            return None;
        }
        if checksum(&[&bytes[..header]], 0) != 0 {
            return None;
        }
        let (offset, more) = (usize::from(packet.frag_offset()), packet.more_frags());
        let fragment = (offset != 0 || more).then(|| Fragment { ident: packet.ident().into(), offset, more });
        Some(Self {
            src: packet.src_addr().into(),
            dst: packet.dst_addr().into(),
            proto: packet.next_header().into(),
            ttl: packet.hop_limit(),
            fragment,
            at: ETHERNET,
            payload: ETHERNET + header,
            len: len - header,
        })
    }

    fn parse_v6(bytes: &[u8], total: usize) -> Option<Self> {
        if bytes.len() < 40 {
            return None;
        }
        let packet = Ipv6Packet::new_unchecked(bytes);
        let end = 40 + usize::from(packet.payload_len());
        if packet.version() != 6 || end > total {
            return None;
        }
        let (mut proto, mut at, mut fragment) = (u8::from(packet.next_header()), 40, None);
        // Extension headers (RFC 8200, 4): skipped, but for the fragment's. Each is at least 8 bytes, so this ends.
        loop {
            match proto {
                HOP_BY_HOP | ROUTING | DESTINATION => {
                    let header = bytes.get(at..at + 2)?;
                    proto = header[0];
                    at += 8 * (usize::from(header[1]) + 1);
                }
                FRAGMENT if fragment.is_none() => {
                    let header = bytes.get(at..at + 8)?;
                    proto = header[0];
                    let place = u16::from_be_bytes([header[2], header[3]]);
                    let ident = u32::from_be_bytes([header[4], header[5], header[6], header[7]]);
                    at += 8;
                    let (offset, more) = (usize::from(place & !7), place & 1 != 0);
                    // An "atomic" fragment is a whole packet (RFC 6946).
                    if offset != 0 || more {
                        fragment = Some(Fragment { ident, offset, more });
                        break;
                    }
                }
                _ => break,
            }
        }
        let len = end.checked_sub(at)?;
        Some(Self {
            src: packet.src_addr().into(),
            dst: packet.dst_addr().into(),
            proto,
            ttl: packet.hop_limit(),
            fragment,
            at: ETHERNET,
            payload: ETHERNET + at,
            len,
        })
    }
}

/// A frame's first bytes in one piece.
pub(super) fn head<'a>(frame: &Frame<'a>, buffer: &'a mut [u8; HEADERS]) -> &'a [u8] {
    if let Some(first) = frame.parts.first()
        && (frame.parts.len() == 1 || first.len() >= HEADERS)
    {
        return first;
    }
    let mut filled = 0;
    for part in frame.parts {
        let n = part.len().min(HEADERS - filled);
        buffer[filled..filled + n].copy_from_slice(&part[..n]);
        filled += n;
    }
    &buffer[..filled]
}

/// The sum of a pseudo-header (RFC 9293, 3.1; RFC 8200, 8.1).
pub(super) fn pseudo(src: IpAddr, dst: IpAddr, proto: u8, len: usize) -> u64 {
    let addresses = match (src, dst) {
        (IpAddr::V4(s), IpAddr::V4(d)) => sum(&[&s.octets(), &d.octets()], 0),
        (IpAddr::V6(s), IpAddr::V6(d)) => sum(&[&s.octets(), &d.octets()], 0),
        _ => 0,
    };
    u64::from(addresses) + u64::from(proto) + len as u64
}

/// The folded pseudo-header as a guest that computes the rest wants it.
pub(super) fn partial(src: IpAddr, dst: IpAddr, proto: u8, len: usize) -> u16 {
    fold(pseudo(src, dst, proto, len))
}

/// Fills in `transport`'s checksum, at `offset` in its header, over it and `data`.
pub(super) fn fill(src: IpAddr, dst: IpAddr, proto: u8, transport: &mut [u8], offset: usize, data: &[&[u8]]) {
    transport[offset..offset + 2].fill(0);
    let len = transport.len() + data.iter().map(|d| d.len()).sum::<usize>();
    let start = if proto == ICMP { 0 } else { pseudo(src, dst, proto, len) };
    let mut value = {
        let mut parts = smallvec::SmallVec::<[&[u8]; 8]>::new();
        parts.push(transport);
        parts.extend_from_slice(data);
        checksum(&parts, start)
    };
    if value == 0 && proto == UDP {
        // Zero means none (RFC 768).
        value = 0xffff;
    }
    transport[offset..offset + 2].copy_from_slice(&value.to_be_bytes());
}

/// Bytes of the IP header we send to `dst`.
pub(super) fn header_len(dst: IpAddr) -> usize {
    if dst.is_ipv4() { 20 } else { 40 }
}

/// Writes Ethernet and IP headers to `out` in front of `len` bytes; how many bytes they are.
pub(super) fn headers(
    out: &mut [u8],
    macs: ([u8; 6], [u8; 6]),
    (src, dst): (IpAddr, IpAddr),
    proto: u8,
    ttl: u8,
    len: usize,
    ident: Option<Fragment>,
) -> usize {
    out[..6].copy_from_slice(&macs.1);
    out[6..12].copy_from_slice(&macs.0);
    match (src, dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            out[12..14].copy_from_slice(&TYPE_IPV4.to_be_bytes());
            v4(&mut out[ETHERNET..], src, dst, proto, ttl, len, ident);
            ETHERNET + 20
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            out[12..14].copy_from_slice(&TYPE_IPV6.to_be_bytes());
            v6(&mut out[ETHERNET..], src, dst, proto, ttl, len, ident)
        }
        // A flow has two addresses of one family.
        _ => 0,
    }
}

fn v4(out: &mut [u8], src: Ipv4Addr, dst: Ipv4Addr, proto: u8, ttl: u8, len: usize, ident: Option<Fragment>) {
    let mut packet = Ipv4Packet::new_unchecked(&mut out[..20]);
    packet.set_version(4);
    packet.set_header_len(20);
    packet.set_dscp(0);
    packet.set_ecn(0);
    packet.set_total_len((20 + len).min(0xffff) as u16);
    packet.clear_flags();
    match ident {
        Some(f) => {
            packet.set_ident(f.ident as u16);
            packet.set_more_frags(f.more);
            packet.set_frag_offset(f.offset as u16);
        }
        None => {
            packet.set_ident(0);
            packet.set_dont_frag(true);
            packet.set_frag_offset(0);
        }
    }
    packet.set_hop_limit(ttl);
    packet.set_next_header(proto.into());
    packet.set_src_addr(src);
    packet.set_dst_addr(dst);
    packet.set_checksum(0);
    let value = checksum(&[&out[..20]], 0);
    out[10..12].copy_from_slice(&value.to_be_bytes());
}

fn v6(
    out: &mut [u8],
    src: Ipv6Addr,
    dst: Ipv6Addr,
    proto: u8,
    ttl: u8,
    len: usize,
    ident: Option<Fragment>,
) -> usize {
    let extra = if ident.is_some() { 8 } else { 0 };
    let mut packet = Ipv6Packet::new_unchecked(&mut out[..40]);
    packet.set_version(6);
    packet.set_traffic_class(0);
    packet.set_flow_label(0);
    packet.set_payload_len((len + extra).min(0xffff) as u16);
    packet.set_next_header(if ident.is_some() { FRAGMENT } else { proto }.into());
    packet.set_hop_limit(ttl);
    packet.set_src_addr(src);
    packet.set_dst_addr(dst);
    if let Some(f) = ident {
        out[40] = proto;
        out[41] = 0;
        out[42..44].copy_from_slice(&(f.offset as u16 | u16::from(f.more)).to_be_bytes());
        out[44..48].copy_from_slice(&f.ident.to_be_bytes());
    }
    ETHERNET + 40 + extra
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_read_back() {
        for (src, dst) in [("10.0.2.2", "10.0.2.15"), ("fec0::2", "fec0::15")] {
            let (src, dst): (IpAddr, IpAddr) = (src.parse().unwrap(), dst.parse().unwrap());
            for place in [None, Some(Fragment { ident: 7, offset: 1480, more: true })] {
                let mut frame = vec![0; 200];
                let n = headers(&mut frame, ([1; 6], [2; 6]), (src, dst), UDP, 64, 100, place);
                frame.truncate(n + 100);
                let ip = Ip::parse(&frame, frame.len(), src.is_ipv6()).unwrap();
                assert_eq!((ip.src, ip.dst, ip.proto, ip.payload, ip.len), (src, dst, UDP, n, 100));
                assert_eq!(ip.fragment, place);
                assert!(Ip::parse(&frame, frame.len() - 1, src.is_ipv6()).is_none(), "it is cut off");
            }
        }
    }
}
