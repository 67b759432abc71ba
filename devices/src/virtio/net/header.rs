//! What stands in front of each frame (5.1.6): what is left to the receiver.
//!
//! ```text
//!   0 flags   1 kind of segments   2 bytes of headers   4 data of a segment   6 sum from   8 sum to   10 buffers
//! ```
use super::feature;
use mynah_net::numbers::TCP_CWR;
use mynah_net::numbers::vnet::{DATA_VALID, GSO_ECN, GSO_NONE, GSO_TCPV4, GSO_TCPV6, GSO_UDP, NEEDS_CSUM};
use mynah_net::{Frame, Gso, Offload, Partial};

/// Bytes, without and with the number of buffers.
pub(super) const SHORT: usize = 10;
pub(super) const LONG: usize = 12;
/// Where the number of buffers is.
const BUFFERS: usize = 10;

/// Where TCP's flags and the length of its header are.
const TCP_FLAGS: usize = 13;
const TCP_LENGTH: usize = 12;
const TCP_CHECKSUM: u16 = 16;
const UDP_CHECKSUM: u16 = 6;
/// The shortest headers of TCP and of UDP.
const TCP: usize = 20;
const UDP: usize = 8;
/// Bytes of Ethernet's header and IPv6's.
const UDP_OVER_IPV6: u16 = 54;
/// The longest headers that are looked at.
const HEADERS: usize = 256;

/// Bytes of the header with these features.
pub(super) fn len(features: u64) -> usize {
    let long = features & (super::super::feature::VERSION_1 | feature::MRG_RXBUF) != 0;
    if long { LONG } else { SHORT }
}

/// What a header says of a frame of `len` bytes from a driver with these features. None if it cannot be so.
pub(super) fn parse(header: &[u8], len: usize, features: u64) -> Option<Offload> {
    let word = |at: usize| Some(u16::from_le_bytes([*header.get(at)?, *header.get(at + 1)?]));
    let (flags, kind) = (*header.first()?, *header.get(1)?);
    let (headers, size, start, offset) = (word(2)?, word(4)?, word(6)?, word(8)?);
    let mut offload = Offload::default();
    if flags & NEEDS_CSUM != 0 {
        let end = usize::from(start) + usize::from(offset) + 2;
        if features & feature::CSUM == 0 || end > len {
            return None;
        }
        offload.partial = Some(Partial { start, offset });
    }
    let (v6, offset, least) = match kind & !GSO_ECN {
        GSO_NONE => return Some(offload),
        GSO_TCPV4 if features & feature::HOST_TSO4 != 0 => (false, TCP_CHECKSUM, TCP),
        GSO_TCPV6 if features & feature::HOST_TSO6 != 0 => (true, TCP_CHECKSUM, TCP),
        // Which IP it is over the frame tells whoever cuts it.
        GSO_UDP if features & feature::HOST_USO != 0 => (start >= UDP_OVER_IPV6, UDP_CHECKSUM, UDP),
        _ => return None,
    };
    // The segments' checksums are the receiver's matter (5.1.6.2), and they are TCP's or UDP's.
    let partial = offload.partial.filter(|p| p.offset == offset)?;
    if size == 0 || usize::from(headers) > len || usize::from(partial.start) + least > len {
        return None;
    }
    offload.gso = Some(Gso { v6, size });
    Some(offload)
}

/// The header of a frame for the driver, which takes `offloads` (features of the type), in `buffers` buffers.
pub(super) fn build(frame: &Frame<'_>, offloads: u64, buffers: u16) -> [u8; LONG] {
    let mut header = [0; LONG];
    let mut put = |at: usize, value: u16| header[at..at + 2].copy_from_slice(&value.to_le_bytes());
    let Offload { partial, gso, valid } = frame.offload;
    put(BUFFERS, buffers);
    if let Some(Partial { start, offset }) = partial {
        put(6, start);
        put(8, offset);
        if let Some(Gso { size, .. }) = gso
            && offset == UDP_CHECKSUM
        {
            put(2, start.saturating_add(UDP as u16));
            put(4, size);
            header[1] = GSO_UDP;
        } else if let Some(Gso { v6, size }) = gso {
            let mut bytes = [0; HEADERS];
            let n = copy(frame, &mut bytes);
            let tcp = bytes[..n].get(usize::from(start)..).unwrap_or_default();
            let data = tcp.get(TCP_LENGTH).map_or(0, |b| u16::from(b >> 4) * 4);
            put(2, start.saturating_add(data));
            put(4, size);
            let reduced = tcp.get(TCP_FLAGS).is_some_and(|f| f & TCP_CWR != 0);
            let ecn = reduced && offloads & feature::GUEST_ECN != 0;
            header[1] = if v6 { GSO_TCPV6 } else { GSO_TCPV4 } | if ecn { GSO_ECN } else { 0 };
        }
        header[0] = NEEDS_CSUM;
    } else if valid && offloads & feature::GUEST_CSUM != 0 {
        header[0] = DATA_VALID;
    }
    header
}

/// Copies the beginning of a frame; how many bytes there are of it.
pub(super) fn copy(frame: &Frame<'_>, into: &mut [u8]) -> usize {
    let mut n = 0;
    for part in frame.parts {
        let len = part.len().min(into.len() - n);
        into[n..n + len].copy_from_slice(&part[..len]);
        n += len;
        if n == into.len() {
            break;
        }
    }
    n
}
