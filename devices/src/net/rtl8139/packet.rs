//! IPv4, TCP and UDP headers of a frame: checksums made for what is sent, and looked at in what has come.
use super::regs::desc;
use mynah_net::checksum::checksum;
use mynah_net::{Gso, Offload, Partial};

const TCP: u8 = 6;
const UDP: u8 = 17;

/// Where headers are in a frame of IPv4.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ipv4 {
    ip: usize,
    /// Behind its header.
    transport: usize,
    /// Behind the datagram: padding follows.
    end: usize,
    /// Of an unfragmented datagram.
    protocol: Option<u8>,
}

fn word(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..at + 2).map(|w| u16::from_be_bytes([w[0], w[1]]))
}

fn put(bytes: &mut [u8], at: usize, value: u16) {
    if let Some(place) = bytes.get_mut(at..at + 2) {
        place.copy_from_slice(&value.to_be_bytes());
    }
}

/// Where the checksum is in a header of this protocol, and the least bytes of that.
fn place(protocol: u8) -> Option<(usize, usize)> {
    match protocol {
        TCP => Some((16, 20)),
        UDP => Some((6, 8)),
        _ => None,
    }
}

impl Ipv4 {
    pub(super) fn of(bytes: &[u8]) -> Option<Self> {
        let ip = if word(bytes, 12)? == 0x8100 { 18 } else { 14 };
        let first = *bytes.get(ip)?;
        let transport = ip + usize::from(first & 15) * 4;
        let end = ip + usize::from(word(bytes, ip + 2)?);
        if word(bytes, ip - 2)? != 0x0800 || first >> 4 != 4 || transport < ip + 20 || bytes.len() < transport
        {
            return None;
        }
        let whole = word(bytes, ip + 6)? & 0x3fff == 0;
        let protocol = whole.then_some(bytes[ip + 9]);
        // A length that cannot be: what there is.
        let end = if (transport..=bytes.len()).contains(&end) { end } else { bytes.len() };
        Some(Self { ip, transport, end, protocol })
    }

    /// The pseudo-header's sum (RFC 9293, 3.1), to which `checksum` adds.
    fn pseudo(&self, protocol: u8, len: usize) -> u64 {
        u64::from(protocol) + len as u64
    }

    fn addresses<'a>(&self, bytes: &'a [u8]) -> &'a [u8] {
        &bytes[self.ip + 12..self.ip + 20]
    }

    fn set_header_sum(&self, bytes: &mut [u8]) {
        put(bytes, self.ip + 10, 0);
        let sum = checksum(&[&bytes[self.ip..self.transport]], 0);
        put(bytes, self.ip + 10, sum);
    }

    /// Puts the pseudo-header's sum into the place of the transport's, for who fills it in.
    fn begin(&self, bytes: &mut [u8], protocol: u8, offset: usize) -> Partial {
        let start = self.pseudo(protocol, self.end - self.transport);
        let sum = !checksum(&[self.addresses(bytes)], start);
        put(bytes, self.transport + offset, sum);
        Partial { start: self.transport as u16, offset: offset as u16 }
    }

    /// Makes the checksums that a descriptor asks for.
    pub(super) fn fill(&self, bytes: &mut [u8], command: u32) -> Offload {
        if command & desc::IPCS != 0 {
            self.set_header_sum(bytes);
        }
        let asked = match self.protocol {
            Some(TCP) => command & desc::TCPCS != 0,
            Some(UDP) => command & desc::UDPCS != 0,
            _ => false,
        };
        let mut offload = Offload::default();
        if let Some(protocol) = self.protocol.filter(|_| asked)
            && let Some((offset, least)) = place(protocol)
            && self.transport + least <= self.end
        {
            if self.end == bytes.len() {
                offload.partial = Some(self.begin(bytes, protocol, offset));
            } else {
                // What is behind the datagram is none of the sum.
                put(bytes, self.transport + offset, 0);
                let sum = self.transport_sum(bytes, protocol);
                put(bytes, self.transport + offset, if sum == 0 { 0xffff } else { sum });
            }
        }
        offload
    }

    /// Makes a frame of TCP one that stands for segments of `mss` bytes: how many.
    pub(super) fn segment(&self, bytes: &mut [u8], mss: u16) -> Option<(Offload, usize)> {
        let len = bytes.len() - self.ip;
        let header = self.transport + 4 * usize::from(bytes.get(self.transport + 12)? >> 4);
        if self.protocol != Some(TCP) || mss == 0 || len > 0xffff || header < self.transport + 20 {
            return None;
        }
        let segments = bytes.len().checked_sub(header)?.div_ceil(mss.into()).max(1);
        put(bytes, self.ip + 2, len as u16);
        self.set_header_sum(bytes);
        let whole = Self { end: bytes.len(), ..*self };
        let partial = Some(whole.begin(bytes, TCP, 16));
        let gso = (segments > 1).then_some(Gso { v6: false, size: mss });
        Some((Offload { partial, gso, valid: false }, segments))
    }

    fn transport_sum(&self, bytes: &[u8], protocol: u8) -> u16 {
        let start = self.pseudo(protocol, self.end - self.transport);
        checksum(&[self.addresses(bytes), &bytes[self.transport..self.end]], start)
    }

    /// What a receive descriptor says of it. `valid`: the transport's checksum is known to be right.
    pub(super) fn checks(&self, bytes: &[u8], valid: bool) -> u32 {
        let (pid, fail) = match self.protocol {
            Some(TCP) => (desc::PID_TCP, desc::TCPF),
            Some(UDP) => (desc::PID_UDP, desc::UDPF),
            _ => (desc::PID_IP, 0),
        };
        let mut status = pid;
        if checksum(&[&bytes[self.ip..self.transport]], 0) != 0 {
            status |= desc::IPF;
        }
        if let Some(protocol) = self.protocol
            && let Some((offset, least)) = place(protocol)
            && !valid
        {
            // UDP may have none.
            let none = protocol == UDP && word(bytes, self.transport + offset) == Some(0);
            let whole = self.transport + least <= self.end;
            if !whole || (!none && self.transport_sum(bytes, protocol) != 0) {
                status |= fail;
            }
        }
        status
    }
}
