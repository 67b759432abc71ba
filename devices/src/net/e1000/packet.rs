//! What a received frame is: where its headers are, and whether their checksums are right (317453, 3.2.9).
use super::Model;
use super::regs::rxcsum;
use super::rx::bits;
use mynah_net::checksum::checksum;

const ETHERNET: usize = 14;
const TAG: usize = 4;
const TCP: u8 = 6;
const UDP: u8 = 17;

/// Headers of a frame, as far as they are understood.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Summary {
    /// Where IP begins, if it is that.
    ip: Option<usize>,
    v6: bool,
    /// Where TCP or UDP begins, and which.
    transport: Option<(usize, u8)>,
    /// Behind the datagram: padding follows.
    end: usize,
    /// IPv4's identification.
    pub(super) ip_id: u16,
}

fn word(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..at + 2).map(|w| u16::from_be_bytes([w[0], w[1]]))
}

impl Summary {
    pub(super) fn of(bytes: &[u8]) -> Self {
        Self::parse(bytes).unwrap_or_default()
    }

    /// Bytes of headers, if there are any that are understood (316080, 7.1.10).
    pub(super) fn header(&self, bytes: &[u8]) -> Option<usize> {
        let end = match (self.transport, self.ip?) {
            (Some((at, TCP)), _) => at + 4 * usize::from(bytes.get(at + 12)? >> 4),
            (Some((at, _)), _) => at + 8,
            (None, ip) if self.v6 => ip + 40,
            (None, ip) => ip + 4 * usize::from(bytes.get(ip)? & 15),
        };
        (end <= self.end).then_some(end)
    }

    /// Source and destination, and whether these are IPv6's.
    pub(super) fn addresses<'a>(&self, bytes: &'a [u8]) -> Option<(&'a [u8], bool)> {
        let ip = self.ip?;
        let range = if self.v6 { ip + 8..ip + 40 } else { ip + 12..ip + 20 };
        Some((bytes.get(range)?, self.v6))
    }

    /// The ports of a TCP segment that is whole.
    pub(super) fn tcp_ports<'a>(&self, bytes: &'a [u8]) -> Option<&'a [u8]> {
        let (at, _) = self.transport.filter(|(at, protocol)| *protocol == TCP && at + 4 <= self.end)?;
        bytes.get(at..at + 4)
    }

    fn parse(bytes: &[u8]) -> Option<Self> {
        let mut ip = ETHERNET;
        if word(bytes, ip - 2)? == 0x8100 {
            ip += TAG;
        }
        match word(bytes, ip - 2)? {
            0x0800 => {
                let header = usize::from(bytes.get(ip)? & 15) * 4;
                let end = ip + usize::from(word(bytes, ip + 2)?);
                if bytes[ip] >> 4 != 4 || header < 20 || end < ip + header || end > bytes.len() {
                    return None;
                }
                let whole = word(bytes, ip + 6)? & 0x3fff == 0;
                let protocol = *bytes.get(ip + 9)?;
                let transport = (whole && matches!(protocol, TCP | UDP)).then_some((ip + header, protocol));
                Some(Self { ip: Some(ip), v6: false, transport, end, ip_id: word(bytes, ip + 4)? })
            }
            0x86dd => {
                let end = ip + 40 + usize::from(word(bytes, ip + 4)?);
                if bytes.get(ip)? >> 4 != 6 || end > bytes.len() {
                    return None;
                }
                let protocol = *bytes.get(ip + 6)?;
                let transport = matches!(protocol, TCP | UDP).then_some((ip + 40, protocol));
                Some(Self { ip: Some(ip), v6: true, transport, end, ip_id: 0 })
            }
            _ => None,
        }
    }

    /// Bits for the checksums that RXCSUM has looked at. `valid`: the transport's is known to be right.
    pub(super) fn checks(&self, bytes: &[u8], control: u32, valid: bool, model: Model) -> u32 {
        let mut status = 0;
        let Some(ip) = self.ip else { return bits::IXSM };
        if !self.v6 && control & rxcsum::IPOFL != 0 {
            status |= bits::IPCS;
            let header = usize::from(bytes[ip] & 15) * 4;
            if checksum(&[&bytes[ip..ip + header]], 0) != 0 {
                return status | bits::IPE;
            }
        }
        let looks = control & rxcsum::TUOFL != 0 && (!self.v6 || control & rxcsum::IPV6OFL != 0);
        if let Some((at, protocol)) = self.transport.filter(|_| looks)
            && self.has_sum(bytes, at, protocol)
        {
            // The 82574 tells UDP from TCP.
            let udp = protocol == UDP && model == Model::I82574l;
            status |= bits::TCPCS | if udp { bits::UDPCS } else { 0 };
            if !valid && self.transport_sum(bytes, ip, at, protocol) != 0 {
                status |= bits::TCPE;
            }
        }
        if status == 0 { bits::IXSM } else { status }
    }

    /// Whether there is a checksum: UDP over IPv4 may have none.
    fn has_sum(&self, bytes: &[u8], at: usize, protocol: u8) -> bool {
        let (len, place) = if protocol == UDP { (8, 6) } else { (20, 16) };
        at + len <= self.end && (protocol == TCP || word(bytes, at + place) != Some(0))
    }

    fn transport_sum(&self, bytes: &[u8], ip: usize, at: usize, protocol: u8) -> u16 {
        let addresses = if self.v6 { ip + 8..ip + 40 } else { ip + 12..ip + 20 };
        let start = (self.end - at) as u64 + u64::from(protocol);
        checksum(&[&bytes[addresses], &bytes[at..self.end]], start)
    }
}
