//! What a sender has left to its receiver, done in software where the receiver does not: checksums, segmentation.
use crate::checksum::{checksum, fold, sum};
use crate::frame::UDP_CHECKSUM;
use crate::numbers::ip::{TCP, UDP};
use crate::numbers::{TCP_CWR as CWR, ether};
use crate::{Frame, Offload, Partial, Takes};
use std::io::IoSlice;

/// Bytes of an Ethernet header, and of a tag of 802.1Q in it.
const ETHERNET: usize = 14;
const TAG: usize = 4;
const TPIDS: [u16; 2] = [0x8100, 0x88a8];
const FIN_PSH: u8 = 0x09;

/// Gives `frame` to a receiver that takes `takes`: as it is, or as the frames that it stands for. One that says of
/// itself what cannot be is dropped.
pub fn deliver(frame: &Frame<'_>, takes: Takes, give: &mut dyn FnMut(&Frame<'_>)) {
    let Offload { partial, gso, valid } = frame.offload;
    if let Some(gso) = gso
        && !takes.includes(&frame.offload)
    {
        let udp = partial.is_some_and(|p| p.offset == UDP_CHECKSUM);
        segments(frame, if udp { UDP } else { TCP }, gso.size.into(), takes.partial, give);
        return;
    }
    match partial {
        Some(partial) if !takes.partial => {
            let mut bytes = frame.to_vec();
            if complete(&mut bytes, partial) {
                let offload = Offload { valid, ..Offload::default() };
                give(&Frame { offload, parts: &[IoSlice::new(&bytes)] });
            }
        }
        _ => give(frame),
    }
}

/// Fills a checksum in; whether its place is in the frame.
pub fn complete(bytes: &mut [u8], partial: Partial) -> bool {
    let (start, at) = (usize::from(partial.start), usize::from(partial.start) + usize::from(partial.offset));
    if at + 2 > bytes.len() {
        return false;
    }
    let value = match checksum(&[&bytes[start..]], 0) {
        // Zero would be "none" in UDP (RFC 768), and is the same number for all others.
        0 => 0xffff,
        value => value,
    };
    bytes[at..at + 2].copy_from_slice(&value.to_be_bytes());
    true
}

/// Where headers are in a frame that is one TCP segment or UDP datagram.
struct Headers {
    ip: usize,
    v6: bool,
    proto: u8,
    transport: usize,
    data: usize,
}

impl Headers {
    fn of(bytes: &[u8], proto: u8) -> Option<Self> {
        let word = |at: usize| Some(u16::from_be_bytes([*bytes.get(at)?, *bytes.get(at + 1)?]));
        let mut ip = ETHERNET;
        while TPIDS.contains(&word(ip - 2)?) {
            ip += TAG;
        }
        let (transport, v6) = match word(ip - 2)? {
            ether::IPV4 => {
                let header = usize::from(bytes.get(ip)? & 15) * 4;
                (header >= 20 && *bytes.get(ip + 9)? == proto).then_some((ip + header, false))?
            }
            // Behind extension headers nobody leaves segments to others.
            ether::IPV6 => (*bytes.get(ip + 6)? == proto).then_some((ip + 40, true))?,
            _ => return None,
        };
        let header = if proto == TCP { usize::from(bytes.get(transport + 12)? >> 4) * 4 } else { 8 };
        let (least, data) = (if proto == TCP { 20 } else { 8 }, transport + header);
        (header >= least && data <= bytes.len()).then_some(Self { ip, v6, proto, transport, data })
    }

    /// The pseudo-header's sum but for the length (RFC 9293, 3.1).
    fn pseudo(&self, bytes: &[u8]) -> u64 {
        let addresses = if self.v6 { self.ip + 8..self.ip + 40 } else { self.ip + 12..self.ip + 20 };
        u64::from(sum(&[&bytes[addresses]], 0)) + u64::from(self.proto)
    }
}

/// Cuts a long TCP segment or UDP datagram into those of `size` bytes of data.
fn segments(frame: &Frame<'_>, proto: u8, size: usize, partial: bool, give: &mut dyn FnMut(&Frame<'_>)) {
    let whole = frame.to_vec();
    let Some(at) = Headers::of(&whole, proto).filter(|_| size > 0) else { return };
    let (mut header, data) = (whole[..at.data].to_vec(), &whole[at.data..]);
    let ident = u16::from_be_bytes([header[at.ip + 4], header[at.ip + 5]]);
    let pseudo = at.pseudo(&header);
    let tcp = (proto == TCP).then(|| {
        let n = [
            header[at.transport + 4],
            header[at.transport + 5],
            header[at.transport + 6],
            header[at.transport + 7],
        ];
        (u32::from_be_bytes(n), header[at.transport + 13])
    });
    let sum_at = at.transport + if proto == TCP { 16 } else { usize::from(UDP_CHECKSUM) };
    let count = data.len().div_ceil(size).max(1);
    for n in 0..count {
        let part = &data[n * size..data.len().min((n + 1) * size)];
        let transport = at.data - at.transport + part.len();
        if at.v6 {
            let len = (at.transport - at.ip - 40 + transport) as u16;
            header[at.ip + 4..at.ip + 6].copy_from_slice(&len.to_be_bytes());
        } else {
            let len = (at.transport - at.ip + transport) as u16;
            header[at.ip + 2..at.ip + 4].copy_from_slice(&len.to_be_bytes());
            header[at.ip + 4..at.ip + 6].copy_from_slice(&ident.wrapping_add(n as u16).to_be_bytes());
            header[at.ip + 10..at.ip + 12].fill(0);
            let value = checksum(&[&header[at.ip..at.transport]], 0);
            header[at.ip + 10..at.ip + 12].copy_from_slice(&value.to_be_bytes());
        }
        match tcp {
            Some((sequence, flags)) => {
                let here = sequence.wrapping_add((n * size) as u32);
                header[at.transport + 4..at.transport + 8].copy_from_slice(&here.to_be_bytes());
                // The last one ends the stream, the first one tells of congestion (RFC 3168, 6.1.2).
                let keep = if n + 1 == count { !0 } else { !FIN_PSH } & if n == 0 { !0 } else { !CWR };
                header[at.transport + 13] = flags & keep;
            }
            None => {
                header[at.transport + 4..at.transport + 6].copy_from_slice(&(transport as u16).to_be_bytes());
            }
        }
        let start = pseudo + transport as u64;
        header[sum_at..sum_at + 2].copy_from_slice(&fold(start).to_be_bytes());
        let offload = if partial {
            let offset = (sum_at - at.transport) as u16;
            let partial = Some(Partial { start: at.transport as u16, offset });
            Offload { partial, ..Offload::default() }
        } else {
            let value = match checksum(&[&header[at.transport..], part], 0) {
                // Zero would be "none" in UDP (RFC 768).
                0 => 0xffff,
                value => value,
            };
            header[sum_at..sum_at + 2].copy_from_slice(&value.to_be_bytes());
            Offload { valid: frame.offload.valid, ..Offload::default() }
        };
        give(&Frame { offload, parts: &[IoSlice::new(&header), IoSlice::new(part)] });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Gso;
    use smoltcp::wire::{IpAddress, Ipv4Packet, Ipv6Packet, TcpPacket, UdpPacket};

    /// A frame with TCP of `data`, its checksum begun only.
    fn segment(v6: bool, tagged: bool, data: &[u8]) -> (Vec<u8>, Offload) {
        let mut bytes = vec![0; 12];
        if tagged {
            bytes.extend([0x81, 0, 0, 7]);
        }
        let ip = bytes.len() + 2;
        if v6 {
            bytes.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, 0, TCP, 64]);
            bytes.extend((0..32).map(|n| n as u8));
        } else {
            bytes
                .extend([8, 0, 0x45, 0, 0, 0, 0xff, 0xff, 0x40, 0, 64, TCP, 0, 0, 10, 0, 2, 15, 10, 0, 2, 2]);
        }
        let tcp = bytes.len();
        bytes
            .extend([0x12, 0x34, 0, 80, 0xff, 0xff, 0xff, 0xf0, 0, 0, 0, 1, 0x80, 0x99, 0x10, 0, 0, 0, 0, 0]);
        bytes.extend([1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0]);
        bytes.extend(data);
        let at = Headers { ip, v6, proto: TCP, transport: tcp, data: tcp + 32 };
        let begun = fold(at.pseudo(&bytes) + (bytes.len() - tcp) as u64);
        bytes[tcp + 16..tcp + 18].copy_from_slice(&begun.to_be_bytes());
        let partial = Some(Partial { start: tcp as u16, offset: 16 });
        (bytes, Offload { partial, gso: Some(Gso { v6, size: 1000 }), valid: false })
    }

    /// Sequence number, flags, data of a frame whose checksums are right.
    fn read(frame: &[u8], v6: bool, tagged: bool) -> (u32, u8, Vec<u8>) {
        let bytes = &frame[if tagged { 18 } else { 14 }..];
        let (src, dst, payload): (IpAddress, IpAddress, &[u8]) = if v6 {
            let ip = Ipv6Packet::new_checked(bytes).unwrap();
            assert_eq!(usize::from(ip.payload_len()) + 40, bytes.len());
            (ip.src_addr().into(), ip.dst_addr().into(), &bytes[40..])
        } else {
            let ip = Ipv4Packet::new_checked(bytes).unwrap();
            assert!(ip.verify_checksum());
            assert_eq!(usize::from(ip.total_len()), bytes.len());
            (ip.src_addr().into(), ip.dst_addr().into(), &bytes[20..])
        };
        let tcp = TcpPacket::new_checked(payload).unwrap();
        assert!(tcp.verify_checksum(&src, &dst));
        let data = tcp.payload().to_vec();
        (tcp.seq_number().0 as u32, payload[13], data)
    }

    #[test]
    fn a_long_segment_is_cut_into_right_ones() {
        let data: Vec<u8> = (0..2500_u32).map(|n| (n * 7) as u8).collect();
        for (v6, tagged) in [(false, false), (true, false), (false, true), (true, true)] {
            let (bytes, offload) = segment(v6, tagged, &data);
            let frame = Frame { offload, parts: &[IoSlice::new(&bytes[..20]), IoSlice::new(&bytes[20..])] };
            let mut got = Vec::new();
            deliver(&frame, Takes::default(), &mut |f| {
                assert_eq!(f.offload, Offload::default());
                got.push(read(&f.to_vec(), v6, tagged));
            });
            let seq = |n: u32| 0xffff_fff0_u32.wrapping_add(n);
            assert_eq!(
                got.iter().map(|g| (g.0, g.1)).collect::<Vec<_>>(),
                [(seq(0), 0x90), (seq(1000), 0x10), (seq(2000), 0x19)]
            );
            assert_eq!(got.iter().flat_map(|g| g.2.clone()).collect::<Vec<_>>(), data);
        }
    }

    #[test]
    fn a_long_datagram_is_cut_into_right_ones() {
        let data: Vec<u8> = (0..3001_u32).map(|n| (n * 11) as u8).collect();
        for v6 in [false, true] {
            let mut bytes = vec![0; 12];
            if v6 {
                bytes.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, 0, UDP, 64]);
                bytes.extend((0..32).map(|n| n as u8));
            } else {
                bytes.extend([8, 0, 0x45, 0, 0, 0, 0, 9, 0x40, 0, 64, UDP, 0, 0, 10, 0, 2, 15, 10, 0, 2, 2]);
            }
            let udp = bytes.len();
            bytes.extend([0x12, 0x34, 0x56, 0x78, 0, 0, 0, 0]);
            bytes.extend(&data);
            let partial = Some(Partial { start: udp as u16, offset: 6 });
            let offload = Offload { partial, gso: Some(Gso { v6, size: 1000 }), valid: false };
            // Who takes long segments of TCP, or of the other IP, takes these not.
            let other = Takes { uso4: v6, uso6: !v6, ..Takes::default() };
            for takes in [Takes::default(), Takes { partial: true, tso4: true, tso6: true, ..other }] {
                let mut got = Vec::new();
                deliver(&Frame { offload, parts: &[IoSlice::new(&bytes)] }, takes, &mut |f| {
                    let mut bytes = f.to_vec();
                    assert_eq!((f.offload.gso, f.offload.partial), (None, partial.filter(|_| takes.partial)));
                    if let Some(partial) = f.offload.partial {
                        assert!(complete(&mut bytes, partial));
                    }
                    let (src, dst): (IpAddress, IpAddress) = if v6 {
                        let ip = Ipv6Packet::new_checked(&bytes[14..]).unwrap();
                        (ip.src_addr().into(), ip.dst_addr().into())
                    } else {
                        let ip = Ipv4Packet::new_checked(&bytes[14..]).unwrap();
                        assert!(ip.verify_checksum() && usize::from(ip.total_len()) == bytes.len() - 14);
                        (ip.src_addr().into(), ip.dst_addr().into())
                    };
                    let udp = UdpPacket::new_checked(&bytes[udp..]).unwrap();
                    assert!(udp.checksum() != 0 && udp.verify_checksum(&src, &dst));
                    assert_eq!(usize::from(udp.len()), bytes.len() - if v6 { 54 } else { 34 });
                    got.push(udp.payload().to_vec());
                });
                assert_eq!(got.iter().map(Vec::len).collect::<Vec<_>>(), [1000, 1000, 1000, 1]);
                assert_eq!(got.concat(), data);
            }
            let takes = Takes { partial: true, uso4: !v6, uso6: v6, ..Takes::default() };
            let mut got = Vec::new();
            let frame = Frame { offload, parts: &[IoSlice::new(&bytes)] };
            deliver(&frame, takes, &mut |f| got.push((f.offload, f.to_vec())));
            assert_eq!(got, [(offload, bytes)], "it is whole");
        }
    }

    #[test]
    fn what_a_receiver_takes_is_left_to_it() {
        let (bytes, offload) = segment(false, false, &[7; 1001]);
        let frame = Frame { offload, parts: &[IoSlice::new(&bytes)] };
        let with = |takes| {
            let mut got = Vec::new();
            deliver(&frame, takes, &mut |f| got.push((f.offload, f.to_vec())));
            got
        };
        let all = Takes { partial: true, tso4: true, ..Takes::default() };
        assert_eq!(with(all), [(offload, bytes.clone())]);
        let cut = with(Takes { partial: true, ..Takes::default() });
        assert_eq!(cut.len(), 2);
        for (offload, mut bytes) in cut {
            assert!(complete(&mut bytes, offload.partial.unwrap()));
            read(&bytes, false, false);
        }
    }

    #[test]
    fn what_cannot_be_is_dropped() {
        let (bytes, offload) = segment(false, false, &[7; 100]);
        let mut count = 0;
        for len in 0..66 {
            let frame = Frame { offload, parts: &[IoSlice::new(&bytes[..len])] };
            deliver(&frame, Takes::default(), &mut |_| count += 1);
        }
        let offload = Offload { partial: Some(Partial { start: 160, offset: 16 }), ..Offload::default() };
        deliver(&Frame { offload, parts: &[IoSlice::new(&bytes)] }, Takes::default(), &mut |_| count += 1);
        assert_eq!(count, 0);
    }
}
