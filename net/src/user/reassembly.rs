//! Fragments become packets (RFC 791, 3.2; RFC 8200, 4.5). What overlaps is thrown away as a whole (RFC 5722), as are
//! packets that do not become complete in time; there is room for a few only.
use super::ip::Ip;
use std::net::IpAddr;
use std::time::{Duration, Instant};

const PACKETS: usize = 16;
const PIECES: usize = 128;
/// RFC 8200, 4.5; RFC 1122, 3.3.2 allows 60 to 120, and a guest's own network is faster.
const TIMEOUT: Duration = Duration::from_secs(30);
/// The most data of a packet.
const LONGEST: usize = 65_535;

struct Packet {
    key: (IpAddr, IpAddr, u8, u32),
    since: Instant,
    /// Offset and bytes, sorted.
    pieces: Vec<(usize, Vec<u8>)>,
    total: Option<usize>,
}

/// The packets that are not complete.
#[derive(Default)]
pub(super) struct Reassembly {
    packets: Vec<Packet>,
}

impl Reassembly {
    /// Adds a fragment: the packet's data if it is complete now.
    pub fn add(&mut self, ip: &Ip, data: Vec<u8>, now: Instant) -> Option<Vec<u8>> {
        let fragment = ip.fragment?;
        self.packets.retain(|p| now.saturating_duration_since(p.since) < TIMEOUT);
        let end = fragment.offset + data.len();
        if data.is_empty() || end > LONGEST || (fragment.more && !data.len().is_multiple_of(8)) {
            return None;
        }
        let key = (ip.src, ip.dst, ip.proto, fragment.ident);
        let at = match self.packets.iter().position(|p| p.key == key) {
            Some(at) => at,
            None => {
                if self.packets.len() >= PACKETS {
                    self.packets.remove(0);
                }
                self.packets.push(Packet { key, since: now, pieces: Vec::new(), total: None });
                self.packets.len() - 1
            }
        };
        let p = &mut self.packets[at];
        let place = p.pieces.partition_point(|(o, _)| *o < fragment.offset);
        if p.pieces.get(place).is_some_and(|(o, b)| *o == fragment.offset && *b == data) {
            // The same again.
            return None;
        }
        let overlaps = place > 0 && p.pieces[place - 1].0 + p.pieces[place - 1].1.len() > fragment.offset
            || p.pieces.get(place).is_some_and(|(o, _)| *o < end);
        let wrong_end = match p.total {
            Some(total) => end > total || (!fragment.more && end != total),
            None => !fragment.more && p.pieces.last().is_some_and(|(o, b)| o + b.len() > end),
        };
        if overlaps || wrong_end || p.pieces.len() >= PIECES {
            self.packets.remove(at);
            return None;
        }
        if !fragment.more {
            p.total = Some(end);
        }
        p.pieces.insert(place, (fragment.offset, data));
        let have: usize = p.pieces.iter().map(|(_, b)| b.len()).sum();
        if p.total != Some(have) {
            return None;
        }
        let p = self.packets.remove(at);
        Some(p.pieces.into_iter().flat_map(|(_, b)| b).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::user::ip::{Fragment, UDP};

    fn piece(ident: u32, offset: usize, more: bool) -> Ip {
        let fragment = Some(Fragment { ident, offset, more });
        let (src, dst) = ([10, 0, 2, 15].into(), [10, 0, 2, 2].into());
        Ip { src, dst, proto: UDP, ttl: 64, fragment, at: 14, payload: 34, len: 0 }
    }

    #[test]
    fn pieces_fit_in_any_order() {
        let (mut r, now) = (Reassembly::default(), Instant::now());
        assert_eq!(r.add(&piece(1, 16, false), vec![3; 5], now), None);
        assert_eq!(r.add(&piece(1, 0, true), vec![1; 8], now), None);
        assert_eq!(r.add(&piece(1, 0, true), vec![1; 8], now), None, "twice the same");
        let all = r.add(&piece(1, 8, true), vec![2; 8], now).unwrap();
        assert_eq!(all, [&[1u8; 8][..], &[2; 8], &[3; 5]].concat());
        assert!(r.packets.is_empty());
    }

    #[test]
    fn what_overlaps_is_lost_and_room_is_bounded() {
        let (mut r, now) = (Reassembly::default(), Instant::now());
        assert_eq!(r.add(&piece(1, 0, true), vec![1; 16], now), None);
        assert_eq!(r.add(&piece(1, 8, true), vec![2; 16], now), None);
        assert!(r.packets.is_empty());
        for ident in 0..100 {
            assert_eq!(r.add(&piece(ident, 0, true), vec![1; 1480], now), None);
        }
        assert_eq!(r.packets.len(), PACKETS);
        assert_eq!(r.add(&piece(7, 65_528, true), vec![1; 16], now), None, "longer than a packet is");
        assert_eq!(r.add(&piece(200, 0, true), vec![1; 8], now + TIMEOUT), None);
        assert_eq!(r.packets.len(), 1, "the others are too old");
    }
}
