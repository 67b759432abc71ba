//! Segmentation of TCP and UDP (317453, 3.5): the context of a packet, and how it is cut.
//!
//! TCP whose headers are where the context says goes on as one frame, which whoever needs to cuts. All else is cut
//! here, as the manual has it: the headers are copied, lengths, identification, sequence number and flags brought up to
//! date, and checksums made.
use super::tx::insert;
use mynah_net::checksum::checksum;
use mynah_net::{Gso, Offload, Partial};
use serde::{Deserialize, Serialize};

/// Bits of TUCMD (3.3.5.1).
const TCP: u32 = 1 << 24;
const IPV4: u32 = 1 << 25;

/// What a context descriptor says (3.3.5).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Context {
    pub(super) ip_start: u8,
    pub(super) ip_offset: u8,
    pub(super) ip_end: u16,
    pub(super) start: u8,
    pub(super) offset: u8,
    pub(super) end: u16,
    tcp: bool,
    v4: bool,
    header: u8,
    mss: u16,
}

impl Context {
    /// From a descriptor's four words.
    pub(super) fn of(ip: u32, transport: u32, command: u32, fields: u32) -> Self {
        Self {
            ip_start: ip as u8,
            ip_offset: (ip >> 8) as u8,
            ip_end: (ip >> 16) as u16,
            start: transport as u8,
            offset: (transport >> 8) as u8,
            end: (transport >> 16) as u16,
            tcp: command & TCP != 0,
            v4: command & IPV4 != 0,
            header: (fields >> 8) as u8,
            mss: (fields >> 16) as u16,
        }
    }

    /// Whether the headers are Ethernet, IP without extensions and TCP, all of them where this says.
    fn is_plain_tcp(&self, bytes: &[u8]) -> bool {
        let (ip, tcp) = (usize::from(self.ip_start), usize::from(self.start));
        let word = |at: usize| bytes.get(at..at + 2).map(|w| u16::from_be_bytes([w[0], w[1]]));
        let mut kind = 12;
        while matches!(word(kind), Some(0x8100 | 0x88a8)) {
            kind += 4;
        }
        let byte = |at: usize| usize::from(bytes.get(at).copied().unwrap_or(0));
        let network = if self.v4 {
            word(kind) == Some(0x0800) && tcp == ip + 4 * (byte(ip) & 15) && byte(ip + 9) == 6
        } else {
            word(kind) == Some(0x86dd) && tcp == ip + 40 && byte(ip + 6) == 6
        };
        let header = 4 * (byte(tcp + 12) >> 4);
        let places = ip == kind + 2 && usize::from(self.offset) == tcp + 16 && self.end == 0;
        self.tcp
            && network
            && places
            && tcp >= ip + 20
            && header >= 20
            && tcp + header == usize::from(self.header)
            && bytes.len() - ip <= 0xffff
    }
}

/// A frame to send: its bytes, what is left to its receiver, how many segments it stands for, and how much of it is
/// data.
pub(super) type Give<'a> = dyn FnMut(&[u8], Offload, usize, usize) + 'a;

/// Sends a long packet, whose IP and transport checksums are to be made or not.
pub(super) fn send(context: &Context, bytes: &mut [u8], sums: (bool, bool), give: &mut Give<'_>) {
    let (header, mss) = (usize::from(context.header), usize::from(context.mss));
    if header == 0 || mss == 0 || header > bytes.len() {
        return;
    }
    let data = bytes.len() - header;
    let segments = data.div_ceil(mss).max(1);
    if sums.1 && (sums.0 || !context.v4) && context.is_plain_tcp(bytes) {
        let (ip, tcp) = (usize::from(context.ip_start), usize::from(context.start));
        set_lengths(context, bytes);
        if context.v4 {
            put(bytes, ip + 10, 0);
            let sum = checksum(&[&bytes[ip..tcp]], 0);
            put(bytes, ip + 10, sum);
        }
        add(bytes, tcp + 16, bytes.len() - tcp);
        let partial = Some(Partial { start: tcp as u16, offset: 16 });
        let gso = (segments > 1).then_some(Gso { v6: !context.v4, size: context.mss });
        give(bytes, Offload { partial, gso, valid: false }, segments, data);
        return;
    }
    let mut buffer = Vec::with_capacity(header + mss.min(data));
    for n in 0..segments {
        let part = n * mss..data.min((n + 1) * mss);
        buffer.clear();
        buffer.extend_from_slice(&bytes[..header]);
        buffer.extend_from_slice(&bytes[header..][part.clone()]);
        cut(context, &mut buffer, n, n + 1 == segments, mss);
        let len = buffer.len();
        if sums.0 {
            insert(&mut buffer, context.ip_start.into(), context.ip_offset.into(), context.ip_end.into());
        }
        if sums.1 {
            // Software has left the length out of the pseudo-header's sum (3.5.8).
            add(&mut buffer, context.offset.into(), len.saturating_sub(context.start.into()));
            insert(&mut buffer, context.start.into(), context.offset.into(), context.end.into());
        }
        give(&buffer, Offload::default(), 1, part.len());
    }
}

/// Brings the headers of segment `n` up to date (3.5.9).
fn cut(context: &Context, bytes: &mut [u8], n: usize, last: bool, mss: usize) {
    let (ip, transport) = (usize::from(context.ip_start), usize::from(context.start));
    set_lengths(context, bytes);
    if context.v4 {
        add_wrapping(bytes, ip + 4, n as u16);
    }
    if context.tcp {
        if let Some(sequence) = bytes.get_mut(transport + 4..transport + 8) {
            let before = u32::from_be_bytes([sequence[0], sequence[1], sequence[2], sequence[3]]);
            sequence.copy_from_slice(&before.wrapping_add((n * mss) as u32).to_be_bytes());
        }
        if let Some(flags) = bytes.get_mut(transport + 13).filter(|_| !last) {
            // FIN and PSH are the last one's.
            *flags &= !0x09;
        }
    } else {
        put(bytes, transport + 4, bytes.len().saturating_sub(transport) as u16);
    }
}

fn set_lengths(context: &Context, bytes: &mut [u8]) {
    let ip = usize::from(context.ip_start);
    let len = bytes.len().saturating_sub(ip);
    match context.v4 {
        true => put(bytes, ip + 2, len as u16),
        false => put(bytes, ip + 4, len.saturating_sub(40) as u16),
    }
}

/// Puts a 16-bit number where there is room for it.
fn put(bytes: &mut [u8], at: usize, value: u16) {
    if let Some(place) = bytes.get_mut(at..at + 2) {
        place.copy_from_slice(&value.to_be_bytes());
    }
}

fn add_wrapping(bytes: &mut [u8], at: usize, by: u16) {
    if let Some(place) = bytes.get_mut(at..at + 2) {
        let value = u16::from_be_bytes([place[0], place[1]]).wrapping_add(by);
        place.copy_from_slice(&value.to_be_bytes());
    }
}

/// Adds to a sum of the Internet checksum.
fn add(bytes: &mut [u8], at: usize, by: usize) {
    if let Some(place) = bytes.get_mut(at..at + 2) {
        let mut sum = usize::from(u16::from_be_bytes([place[0], place[1]])) + by;
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        place.copy_from_slice(&(sum as u16).to_be_bytes());
    }
}
