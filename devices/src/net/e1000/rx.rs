//! Reception: filters, checksums, and frames to descriptors (317453, 3.2 and 13.4.22 to 13.5; 316080, 7.1).
//!
//! A frame for which there are no descriptors is not taken: the back end keeps it until the guest has moved the tail.
use super::packet::Summary;
use super::regs::{cause, mrqc, rctl, rfctl, rxcsum};
use super::ring::{DESCRIPTOR, Ring};
use super::rss::{Choice, Rss};
use super::tx::size_class;
use super::{Adapter, Model, VME};
use mynah_net::checksum::checksum;
use mynah_net::{Frame, MAX_FRAME};
use serde::{Deserialize, Serialize};
use std::sync::atomic::{Ordering, fence};

/// The least and the most bytes of a frame without its checksum: behind a tag, and with long packets allowed.
const LEAST: usize = 60;
const MOST: usize = 1518;
const MOST_TAGGED: usize = 1522;
const MOST_LONG: usize = 16_380;
/// Bytes of the checksum (FCS).
const FCS: usize = 4;

/// Bits of a descriptor's status (3.2.3.1), and of its errors, as they are behind the status in an extended one.
pub(super) mod bits {
    pub const DD: u32 = 1 << 0;
    pub const EOP: u32 = 1 << 1;
    pub const IXSM: u32 = 1 << 2;
    pub const VP: u32 = 1 << 3;
    /// The 82574's.
    pub const UDPCS: u32 = 1 << 4;
    pub const TCPCS: u32 = 1 << 5;
    pub const IPCS: u32 = 1 << 6;
    /// Passed an inexact filter.
    pub const PIF: u32 = 1 << 7;
    pub const TCPE: u32 = 1 << 29;
    pub const IPE: u32 = 1 << 30;
}

/// Statistics of what has come (13.7).
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Received {
    pub(super) frames: u32,
    pub(super) octets: u64,
    pub(super) total_octets: u64,
    pub(super) total: u32,
    pub(super) by_size: [u32; 6],
    pub(super) multicast: u32,
    pub(super) broadcast: u32,
    pub(super) missed: u32,
    pub(super) no_buffers: u32,
    pub(super) oversize: u32,
}

/// The receiver, as it is saved.
#[derive(Clone, Serialize, Deserialize)]
pub(super) struct Rx {
    pub(super) control: u32,
    pub(super) rdtr: u32,
    pub(super) radv: u32,
    pub(super) rxcsum: u32,
    pub(super) rfctl: u32,
    pub(super) psrctl: u32,
    pub(super) mrqc: u32,
    pub(super) rings: [Ring; 2],
    /// RAL and RAH, one after the other.
    pub(super) addresses: [u32; 32],
    pub(super) multicast: Vec<u32>,
    pub(super) vlans: Vec<u32>,
    /// A frame was not taken.
    pub(super) starved: bool,
    pub(super) stats: Received,
    /// What RETA and RSSRK say, which are saved with the other registers.
    #[serde(skip)]
    pub(super) rss: Rss,
    /// Where a frame in parts is put together.
    #[serde(skip)]
    buffer: Vec<u8>,
}

impl Rx {
    pub(super) fn new() -> Self {
        Self {
            control: 0,
            rdtr: 0,
            radv: 0,
            rxcsum: rxcsum::IPOFL | rxcsum::TUOFL,
            rfctl: 0,
            psrctl: 0x0004_0402,
            mrqc: 0,
            rings: Default::default(),
            addresses: [0; 32],
            multicast: vec![0; 128],
            vlans: vec![0; 128],
            starved: false,
            stats: Received::default(),
            rss: Rss::default(),
            buffer: Vec::new(),
        }
    }

    pub(super) fn is_valid(&self) -> bool {
        self.multicast.len() == 128 && self.vlans.len() == 128 && self.rings.iter().all(Ring::is_valid)
    }

    /// The first of its own addresses, from the EEPROM.
    pub(super) fn set_address(&mut self, mac: [u8; 6]) {
        self.addresses[0] = u32::from_le_bytes([mac[0], mac[1], mac[2], mac[3]]);
        self.addresses[1] = u32::from(u16::from_le_bytes([mac[4], mac[5]])) | ADDRESS_VALID;
    }

    /// RCTL.LBM: what is sent comes back.
    pub(super) fn loops(&self) -> bool {
        self.control >> 6 & 3 == 1
    }

    /// Bytes of a buffer (13.4.22, BSIZE and BSEX).
    fn buffer_size(&self, model: Model) -> usize {
        let flexible = (self.control >> 27 & 0xf) as usize;
        match (self.control >> 16 & 3, self.control & rctl::BSEX != 0) {
            _ if model == Model::I82574l && flexible != 0 => flexible << 10,
            (n @ 1.., true) => 32_768 >> n,
            (n, _) => 2048 >> n,
        }
    }

    fn is_extended(&self, model: Model) -> bool {
        model == Model::I82574l && self.rfctl & rfctl::EXSTEN != 0
    }

    fn is_split(&self, model: Model) -> bool {
        self.is_extended(model) && self.control & rctl::DTYP == rctl::DTYP_SPLIT
    }

    fn descriptor_size(&self, model: Model) -> u64 {
        if self.is_split(model) { 2 * DESCRIPTOR } else { DESCRIPTOR }
    }

    /// Sizes of the up to four buffers of a descriptor (316080, 10.2.5.4): with packet split the header's, then others.
    fn buffers(&self, model: Model) -> [usize; 4] {
        if self.is_split(model) {
            let kib = |shift: u32| ((self.psrctl >> shift & 0x3f) as usize) << 10;
            [((self.psrctl & 0x7f) as usize) << 7, kib(8), kib(16), kib(24)]
        } else {
            [self.buffer_size(model), 0, 0, 0]
        }
    }

    /// Whether a descriptor is there.
    pub(super) fn has_room(&self, model: Model) -> bool {
        let has = |ring: &Ring| ring.available(self.descriptor_size(model)) > 0;
        self.control & rctl::EN != 0 && self.rings[..self.used(model)].iter().all(has)
    }

    /// How many rings what comes goes to: one that the guest has not set up has no say.
    fn used(&self, model: Model) -> usize {
        let two =
            self.mrqc & mrqc::QUEUES == mrqc::RSS && self.rings[1].is_sound(self.descriptor_size(model));
        if two { 2 } else { 1 }
    }

    /// Whether a frame for this address, with this tag, is the guest's; and whether only a filter says so that lets
    /// others pass.
    fn accepts(&self, to: [u8; 6], from: [u8; 6], tag: Option<u16>) -> Option<bool> {
        if let Some(tag) = tag
            && self.control & rctl::VFE != 0
            && self.vlans[usize::from(tag >> 5 & 0x7f)] >> (tag & 0x1f) & 1 == 0
        {
            return None;
        }
        if self.has_address(to, from) {
            return Some(false);
        }
        match () {
            () if to == [0xff; 6] => (self.control & (rctl::BAM | rctl::MPE) != 0).then_some(false),
            () if to[0] & 1 == 0 => (self.control & rctl::UPE != 0).then_some(true),
            () if self.control & rctl::MPE != 0 => Some(true),
            () => {
                // Which twelve bits of the address choose (13.4.22, MO).
                let shift = [4, 3, 2, 0][(self.control >> 12 & 3) as usize];
                let hash = u16::from_le_bytes([to[4], to[5]]) >> shift & 0xfff;
                (self.multicast[usize::from(hash >> 5)] >> (hash & 0x1f) & 1 != 0).then_some(true)
            }
        }
    }

    /// Whether one of the sixteen addresses is that of the frame (13.5.2 and 13.5.3).
    fn has_address(&self, to: [u8; 6], from: [u8; 6]) -> bool {
        self.addresses.as_chunks::<2>().0.iter().any(|[low, high]| {
            let [a, b, c, d] = low.to_le_bytes();
            let [e, f, ..] = high.to_le_bytes();
            let looked_at = match high >> 16 & 3 {
                0 => to,
                1 => from,
                _ => return false,
            };
            high & ADDRESS_VALID != 0 && [a, b, c, d, e, f] == looked_at
        })
    }

    fn count(&mut self, to: [u8; 6], len: usize) {
        let stats = &mut self.stats;
        let octets = (len + FCS) as u64;
        stats.frames = stats.frames.saturating_add(1);
        stats.octets = stats.octets.saturating_add(octets);
        let class = &mut stats.by_size[size_class(len + FCS)];
        *class = class.saturating_add(1);
        if to == [0xff; 6] {
            stats.broadcast = stats.broadcast.saturating_add(1);
        } else if to[0] & 1 != 0 {
            stats.multicast = stats.multicast.saturating_add(1);
        }
    }
}

/// The header has the first buffer for itself (HDRSP, 316080, 7.1.10.3).
const HEADER_SPLIT: u16 = 1 << 15;
/// RAH.AV.
const ADDRESS_VALID: u32 = 1 << 31;

/// A frame as it goes into buffers, and what is said of it in descriptors.
struct Inward<'a> {
    /// What is before the tag that was taken out, and what is behind it.
    parts: [&'a [u8]; 2],
    /// Bytes of zeros behind that: padding, and the checksum.
    zeros: usize,
    status: u32,
    tag: u16,
    sum: u16,
    /// Bytes that go into the first descriptor's first buffer alone, if it is split.
    header: usize,
    summary: Summary,
    choice: Choice,
}

impl Inward<'_> {
    fn len(&self) -> usize {
        self.parts[0].len() + self.parts[1].len() + self.zeros
    }
}

impl Adapter {
    /// A frame comes in, from the wire or from the card itself; whether it was taken.
    pub(super) fn take(&self, frame: &Frame<'_>, looped: bool) -> bool {
        if !looped && self.loopback.load(Ordering::Relaxed) != 0 {
            return true;
        }
        let mut guard = self.rx.lock();
        let rx = &mut *guard;
        // Under the lock: who has brought the link up looks for those that were refused after this.
        let up = looped || self.up.load(Ordering::Relaxed);
        if !up || rx.control & rctl::EN == 0 {
            rx.starved = true;
            return looped;
        }
        let mut buffer = std::mem::take(&mut rx.buffer);
        let whole = match frame.parts {
            [one] => &**one,
            parts => {
                buffer.clear();
                if frame.len() <= MAX_FRAME {
                    parts.iter().for_each(|p| buffer.extend_from_slice(p));
                }
                &buffer
            }
        };
        let taken = self.receive_bytes(rx, whole, frame.offload.valid, looped);
        rx.buffer = buffer;
        taken
    }

    fn receive_bytes(&self, rx: &mut Rx, bytes: &[u8], valid: bool, looped: bool) -> bool {
        let (Some(to), Some(from)) = (bytes.first_chunk::<6>(), bytes.get(6..).and_then(|b| b.first_chunk()))
        else {
            return true;
        };
        let vlan = self.vlan.load(Ordering::Relaxed);
        let tag = match bytes.get(12..16) {
            Some([a, b, c, d]) if u16::from_be_bytes([*a, *b]) == vlan as u16 => {
                Some(u16::from_be_bytes([*c, *d]))
            }
            _ => None,
        };
        // A frame that is refused comes again, and is counted then.
        let Some(inexact) = rx.accepts(*to, *from, tag) else {
            rx.stats.total = rx.stats.total.saturating_add(1);
            rx.stats.total_octets = rx.stats.total_octets.saturating_add((bytes.len() + FCS) as u64);
            return true;
        };
        let most = match (rx.control & rctl::LPE != 0, tag.is_some()) {
            (true, _) => MOST_LONG,
            (false, true) => MOST_TAGGED - FCS,
            (false, false) => MOST - FCS,
        };
        if bytes.len() > most {
            rx.stats.oversize = rx.stats.oversize.saturating_add(1);
            return true;
        }
        let stripped = tag.filter(|_| vlan & VME != 0);
        let rest = if stripped.is_some() { 16 } else { 12 };
        let padding = LEAST.saturating_sub(bytes.len());
        let zeros = padding + if rx.control & rctl::SECRC == 0 { FCS } else { 0 };
        let first = if stripped.is_some() { 12 } else { bytes.len() };
        let parts = [&bytes[..first], bytes.get(rest.max(first)..).unwrap_or_default()];
        let summary = Summary::of(bytes);
        let choice = rx.choose(bytes, &summary, rx.is_extended(self.model));
        let mut inward = Inward { parts, zeros, status: 0, tag: 0, sum: 0, header: 0, summary, choice };
        let sizes = rx.buffers(self.model);
        let each = sizes.iter().sum::<usize>().max(1);
        let mut first = each;
        if rx.is_split(self.model) {
            let header = inward.summary.header(bytes).map_or(0, |h| h - (rest - 12));
            if (1..=sizes[0]).contains(&header) {
                inward.header = header;
                first = header + sizes[1..].iter().sum::<usize>();
            }
        }
        let needed = 1 + inward.len().saturating_sub(first).div_ceil(each) as u32;
        let size = rx.descriptor_size(self.model);
        let ring = &rx.rings[choice.ring];
        let count = ring.count(size);
        if ring.available(size) < needed {
            // What is never to have room is not waited for, nor is a second ring that is none.
            let sound = ring.is_sound(size);
            let never = if sound { needed >= count } else { choice.ring > 0 };
            if looped || never {
                rx.stats.missed = rx.stats.missed.saturating_add(1);
                self.raise(cause::RXO);
                return true;
            }
            if !std::mem::replace(&mut rx.starved, true) {
                rx.stats.no_buffers = rx.stats.no_buffers.saturating_add(1);
            }
            return false;
        }
        if let Some(tag) = stripped {
            (inward.status, inward.tag) = (bits::VP, tag);
        }
        if inexact {
            inward.status |= bits::PIF;
        }
        inward.status |= inward.summary.checks(bytes, rx.rxcsum, valid, self.model);
        if rx.rxcsum & rxcsum::PCSD == 0 {
            // From where on RXCSUM's PCSS says (13.4.36), of what goes into the buffers.
            let skip = (rx.rxcsum & 0xff) as usize;
            let first = inward.parts[0].get(skip..).unwrap_or_default();
            let second =
                inward.parts[1].get(skip.saturating_sub(inward.parts[0].len())..).unwrap_or_default();
            inward.sum = checksum(&[first, second], 0);
        }
        if !self.fill(rx, choice.ring, &inward) {
            rx.starved = true;
            return false;
        }
        rx.stats.total = rx.stats.total.saturating_add(1);
        rx.stats.total_octets = rx.stats.total_octets.saturating_add((bytes.len().max(LEAST) + FCS) as u64);
        rx.count(*to, bytes.len().max(LEAST));
        let ring = &rx.rings[choice.ring];
        let mut causes = cause::RXT0 | cause::RXQ0 << choice.ring;
        // RDMTS: a half, a quarter or an eighth of the ring (13.4.22).
        let threshold = ring.count(size) >> (1 + (rx.control >> 8 & 3).min(2));
        if ring.available(size) <= threshold {
            causes |= cause::RXDMT0;
        }
        let delay = rx.rdtr & 0xffff;
        if delay == 0 || causes & cause::RXDMT0 != 0 {
            self.raise_received(causes, None);
        } else {
            self.raise_received(causes, Some((delay, rx.radv & 0xffff)));
        }
        true
    }

    /// Writes a frame to the ring's buffers and descriptors, of which there are enough; whether there was a ring.
    fn fill(&self, rx: &mut Rx, queue: usize, inward: &Inward<'_>) -> bool {
        let size = rx.descriptor_size(self.model);
        let (sizes, split, extended) =
            (rx.buffers(self.model), rx.is_split(self.model), rx.is_extended(self.model));
        let dma = self.function.dma();
        let (mut done, total) = (0, inward.len());
        let mut ring = rx.rings[queue];
        for n in 0..ring.available(size) {
            let at = ring.at(ring.head, size);
            let mut descriptor = [0; 2 * DESCRIPTOR as usize];
            if dma.read(at, &mut descriptor[..size as usize]).is_err() {
                if n == 0 {
                    return false;
                }
                break;
            }
            let header = if n == 0 { inward.header } else { 0 };
            let mut lens = [0; 4];
            let buffers = descriptor.as_chunks::<8>().0.iter().map(|b| u64::from_le_bytes(*b));
            for (i, address) in buffers.enumerate().take(if split { 4 } else { 1 }) {
                // Drivers leave buffers out by an address of ones.
                let room = match i {
                    0 if header != 0 => header,
                    1.. if address == u64::MAX => 0,
                    i => sizes[i],
                };
                lens[i] = room.min(total - done);
                self.put(inward, done, lens[i], address);
                done += lens[i];
            }
            let mut status = bits::DD | inward.status & bits::VP;
            if done == total {
                status |= bits::EOP | inward.status;
            }
            let [sum_0, sum_1] = inward.sum.to_le_bytes();
            let [tag_0, tag_1] = inward.tag.to_le_bytes();
            let len = (lens[0] as u16).to_le_bytes();
            // What was written is seen before the descriptor is.
            fence(Ordering::Release);
            let _ = if extended {
                let [id_0, id_1] = inward.summary.ip_id.to_le_bytes();
                let mut back = [0; 2 * DESCRIPTOR as usize];
                if rx.rxcsum & rxcsum::PCSD != 0 {
                    // MRQ: the kind of the hash, and the ring; then the hash.
                    let Choice { ring, hash, kind } = inward.choice;
                    back[..4].copy_from_slice(&(kind | (ring as u32) << 8).to_le_bytes());
                    back[4..8].copy_from_slice(&hash.to_le_bytes());
                } else {
                    back[4..8].copy_from_slice(&[id_0, id_1, sum_0, sum_1]);
                }
                back[8..12].copy_from_slice(&status.to_le_bytes());
                back[12..16].copy_from_slice(&[len[0], len[1], tag_0, tag_1]);
                for (place, len) in back[18..24].as_chunks_mut::<2>().0.iter_mut().zip(&lens[1..]) {
                    *place = (*len as u16).to_le_bytes();
                }
                if header != 0 {
                    back[16..18].copy_from_slice(&(HEADER_SPLIT | header as u16).to_le_bytes());
                }
                if split {
                    let _ = dma.write(at + 16, &back[16..]);
                    fence(Ordering::Release);
                }
                dma.write(at, &back[..16])
            } else {
                let [low, .., high] = status.to_le_bytes();
                dma.write(at + 8, &[len[0], len[1], sum_0, sum_1, low, high, tag_0, tag_1])
            };
            ring.advance(size);
            if done == total {
                break;
            }
        }
        rx.rings[queue] = ring;
        true
    }

    /// Writes a piece of a frame to a buffer. What is not memory is lost, as on the bus.
    fn put(&self, inward: &Inward<'_>, from: usize, len: usize, address: u64) {
        let (mut at, mut skip, mut left) = (address, from, len);
        let zeros = [0; LEAST + FCS];
        for part in [inward.parts[0], inward.parts[1], &zeros[..inward.zeros]] {
            let here = part.len().saturating_sub(skip).min(left);
            if here > 0 {
                let _ = self.function.dma().write(at, &part[skip..skip + here]);
                at = at.wrapping_add(here as u64);
                left -= here;
            }
            skip = skip.saturating_sub(part.len());
        }
    }
}
