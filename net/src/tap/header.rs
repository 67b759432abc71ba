//! The header in front of each frame of a tap with IFF_VNET_HDR: virtio-net's (virtio 1.3, 5.1.6) of ten bytes, in the
//! host's byte order (Linux, Documentation/networking/tuntap.rst, 3.1; include/uapi/linux/virtio_net.h).
use crate::numbers::TCP_CWR as CWR;
use crate::numbers::vnet::{DATA_VALID, GSO_ECN, GSO_NONE, GSO_TCPV4, GSO_TCPV6, NEEDS_CSUM};
use crate::{Frame, Gso, Offload, Partial};

/// Its length in bytes.
pub const LEN: usize = 10;

/// What the host says of a frame; none if it is nothing that was asked for.
pub fn decode(header: &[u8; LEN]) -> Option<Offload> {
    let [flags, kind, _, _, s0, s1, c0, c1, o0, o1] = *header;
    let partial = (flags & NEEDS_CSUM != 0)
        .then(|| Partial { start: u16::from_ne_bytes([c0, c1]), offset: u16::from_ne_bytes([o0, o1]) });
    let size = u16::from_ne_bytes([s0, s1]);
    let gso = match kind & !GSO_ECN {
        GSO_NONE => None,
        GSO_TCPV4 if size > 0 => Some(Gso { v6: false, size }),
        GSO_TCPV6 if size > 0 => Some(Gso { v6: true, size }),
        _ => return None,
    };
    Some(Offload { partial, gso, valid: flags & DATA_VALID != 0 })
}

/// What the host is to do with a frame.
pub fn encode(frame: &Frame<'_>) -> [u8; LEN] {
    let Offload { partial, gso, valid } = frame.offload;
    let mut header = [0; LEN];
    let byte = |at: usize| frame.slices(at, 1).first().map_or(0, |b| b[0]);
    if let Some(partial) = partial {
        header[0] = NEEDS_CSUM;
        header[6..8].copy_from_slice(&partial.start.to_ne_bytes());
        header[8..10].copy_from_slice(&partial.offset.to_ne_bytes());
    } else if valid {
        header[0] = DATA_VALID;
    }
    if let (Some(gso), Some(partial)) = (gso, partial) {
        let tcp = usize::from(partial.start);
        let headers = tcp + usize::from(byte(tcp + 12) >> 4) * 4;
        header[1] = if gso.v6 { GSO_TCPV6 } else { GSO_TCPV4 };
        if byte(tcp + 13) & CWR != 0 {
            header[1] |= GSO_ECN;
        }
        header[2..4].copy_from_slice(&(headers.min(frame.len()) as u16).to_ne_bytes());
        header[4..6].copy_from_slice(&gso.size.to_ne_bytes());
    }
    header
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::IoSlice;

    #[test]
    fn what_is_left_to_the_receiver_passes_both_ways() {
        let mut bytes = vec![0; 200];
        // TCP at 34 with options of 12 bytes.
        bytes[34 + 12] = 0x80;
        let partial = Some(Partial { start: 34, offset: 16 });
        for offload in [
            Offload::default(),
            Offload { valid: true, ..Offload::default() },
            Offload { partial, ..Offload::default() },
            Offload { partial, gso: Some(Gso { v6: false, size: 1448 }), valid: false },
            Offload { partial, gso: Some(Gso { v6: true, size: 1428 }), valid: false },
        ] {
            let frame = Frame { offload, parts: &[IoSlice::new(&bytes[..40]), IoSlice::new(&bytes[40..])] };
            let header = encode(&frame);
            assert_eq!(decode(&header), Some(offload), "{header:?}");
            let length = u16::from_ne_bytes([header[2], header[3]]);
            assert_eq!(length, if offload.gso.is_some() { 34 + 32 } else { 0 });
        }
        // Congestion is told once: by the first segment alone.
        bytes[34 + 13] = CWR;
        let offload = Offload { partial, gso: Some(Gso { v6: false, size: 1000 }), valid: false };
        let header = encode(&Frame { offload, parts: &[IoSlice::new(&bytes)] });
        assert_eq!(header[1], GSO_TCPV4 | GSO_ECN);
        assert_eq!(decode(&header), Some(offload));
    }

    #[test]
    fn what_was_not_asked_for_is_no_frame() {
        // Segments of UDP, of no size, of no kind.
        for (kind, size) in [(3, 1000_u16), (5, 1000), (GSO_TCPV4, 0), (0x7f, 9)] {
            let mut header = [0; LEN];
            header[1] = kind;
            header[4..6].copy_from_slice(&size.to_ne_bytes());
            assert_eq!(decode(&header), None, "{kind}");
        }
        // A guest's frame may be anything.
        for len in 0..60 {
            let bytes = vec![0xff; len];
            let partial = Some(Partial { start: 34, offset: 16 });
            let offload = Offload { partial, gso: Some(Gso { v6: false, size: 1 }), valid: true };
            let header = encode(&Frame { offload, parts: &[IoSlice::new(&bytes)] });
            assert!(usize::from(u16::from_ne_bytes([header[2], header[3]])) <= len);
        }
    }
}
