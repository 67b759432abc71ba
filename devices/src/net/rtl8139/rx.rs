//! Reception: filters, the receive buffer, and the ring of C+ mode.
//!
//! A frame for which there is no room is not taken: the back end keeps it until the guest has made some. In C+ mode no
//! register tells of that: the card looks when the guest acknowledges or unmasks interrupts, and by a timer.
use super::Adapter;
use super::packet::Ipv4;
use super::regs::{DESCRIPTOR, DESCRIPTORS, cpcr, desc, header, isr, next, rcr};
use super::tx::words;
use crate::clock::Nanos;
use mynah_net::Frame;
use serde::{Deserialize, Serialize};
use smallvec::SmallVec;
use std::sync::atomic::{Ordering, fence};

/// The least and the most bytes of a frame without its checksum.
const LEAST: usize = 60;
const MOST: usize = 4092;
/// Bytes of the checksum (FCS), which is zeros.
const FCS: usize = 4;
/// After what time the card looks at a ring again, the first and the longest.
const RETRY: Nanos = 100_000;
const LONGEST_RETRY: Nanos = 6_400_000;

/// Statistics of what has come (DTCCR).
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Received {
    pub(super) frames: u64,
    pub(super) missed: u16,
    pub(super) own: u64,
    pub(super) broadcast: u64,
    pub(super) multicast: u32,
}

/// The receiver, as it is saved.
#[derive(Clone, Serialize, Deserialize)]
pub(super) struct Rx {
    /// CR.RE.
    pub(super) enabled: bool,
    pub(super) cpcr: u16,
    pub(super) rcr: u32,
    pub(super) idr: [u8; 6],
    pub(super) mar: [u8; 8],
    pub(super) rbstart: u32,
    pub(super) capr: u16,
    pub(super) cbr: u16,
    pub(super) mpc: u32,
    pub(super) rdsar: u64,
    /// The ring's next descriptor.
    index: u32,
    /// What is sent comes back, and nothing else comes in.
    pub(super) looped: bool,
    /// A frame was not taken.
    pub(super) starved: bool,
    /// When the card looks again, and how long that was.
    retry: Option<Nanos>,
    wait: Nanos,
    pub(super) stats: Received,
    /// Where a frame is put together.
    #[serde(skip)]
    buffer: Vec<u8>,
}

/// A frame as it goes into memory: all of it, with padding and checksum, and what is said of it.
struct Inward<'a> {
    bytes: &'a [u8],
    status: u32,
    tag: Option<u16>,
}

/// What becomes of a frame.
#[derive(PartialEq)]
enum Fate {
    Taken,
    /// There never is room for it.
    Lost,
    /// There is no room now.
    Waits,
}

impl Rx {
    /// As after power-on, with this address.
    pub(super) fn new(idr: [u8; 6]) -> Self {
        Self {
            enabled: false,
            cpcr: 0,
            rcr: 0,
            idr,
            mar: [0; 8],
            rbstart: 0,
            capr: 0xfff0,
            cbr: 0,
            mpc: 0,
            rdsar: 0,
            index: 0,
            looped: false,
            starved: false,
            retry: None,
            wait: RETRY,
            stats: Received::default(),
            buffer: Vec::new(),
        }
    }

    /// A reset by software: addresses and statistics go on.
    pub(super) fn reset(&mut self) {
        let (buffer, stats) = (std::mem::take(&mut self.buffer), std::mem::take(&mut self.stats));
        let Self { idr, mar, starved, retry, .. } = *self;
        *self = Self { mar, starved, retry, buffer, stats, ..Self::new(idr) };
    }

    pub(super) fn is_valid(&self) -> bool {
        self.index < DESCRIPTORS && usize::from(self.cbr) < self.size() && self.cbr & 3 == 0
    }

    pub(super) fn retry(&self) -> Option<Nanos> {
        self.retry
    }

    /// The receive buffer is empty from its begin on.
    pub(super) fn restart_buffer(&mut self) {
        (self.capr, self.cbr) = (0xfff0, 0);
    }

    /// The ring begins anew.
    pub(super) fn restart_ring(&mut self) {
        self.index = 0;
    }

    /// CR.RE is written.
    pub(super) fn enable(&mut self, on: bool) {
        if on && !self.enabled {
            self.restart_buffer();
            self.restart_ring();
        }
        self.enabled = on;
    }

    /// RCR is written. A buffer of another size is a new one.
    pub(super) fn set_rcr(&mut self, value: u32) {
        let before = self.size();
        self.rcr = value & rcr::WRITABLE;
        if self.size() != before {
            self.restart_buffer();
        }
    }

    /// Bytes of the receive buffer.
    fn size(&self) -> usize {
        8192 << (self.rcr >> 11 & 3)
    }

    /// Bytes of it that software has still to read.
    fn used(&self) -> usize {
        // CAPR is 16 bytes behind where software reads.
        let read = usize::from(self.capr.wrapping_add(16));
        usize::from(self.cbr).wrapping_sub(read) & (self.size() - 1)
    }

    /// CR.BUFE.
    pub(super) fn is_empty(&self) -> bool {
        self.used() == 0
    }

    fn is_cplus(&self) -> bool {
        self.cpcr & cpcr::RE != 0
    }

    /// Whether a frame for this address is the guest's, and what it is.
    fn accepts(&self, to: [u8; 6]) -> Option<u16> {
        let on = |bit: u32, what: u16| (self.rcr & bit != 0).then_some(what);
        if to == [0xff; 6] {
            return on(rcr::AB, header::BAR);
        }
        if to[0] & 1 != 0 {
            // The six highest bits of the address's CRC choose a bit of MAR.
            let bit = crc(&to) >> 26;
            let passes = self.mar[(bit >> 3) as usize] >> (bit & 7) & 1 != 0;
            return on(rcr::AM, header::MAR).filter(|_| passes);
        }
        let own = (to == self.idr).then(|| on(rcr::APM, header::PAM)).flatten();
        own.or(on(rcr::AAP, 0))
    }

    fn count(&mut self, what: u16) {
        self.stats.frames += 1;
        match what {
            header::BAR => self.stats.broadcast += 1,
            header::MAR => self.stats.multicast = self.stats.multicast.wrapping_add(1),
            header::PAM => self.stats.own += 1,
            _ => {}
        }
    }

    fn miss(&mut self) {
        self.mpc = (self.mpc + 1) & 0xff_ffff;
        self.stats.missed = self.stats.missed.wrapping_add(1);
    }
}

/// The Ethernet CRC of an address (802.3, 3.2.9), with its first bit highest.
fn crc(bytes: &[u8]) -> u32 {
    bytes.iter().flat_map(|b| (0..8).map(move |n| b >> n & 1)).fold(u32::MAX, |crc, bit| {
        let carry = crc >> 31 ^ u32::from(bit);
        crc << 1 ^ if carry != 0 { 0x04c1_1db7 } else { 0 }
    })
}

impl Adapter {
    /// A frame comes in, from the wire or from the card itself; whether it was taken.
    pub(super) fn take(&self, frame: &Frame<'_>, looped: bool) -> bool {
        let mut guard = self.rx.lock();
        let rx = &mut *guard;
        if rx.looped && !looped {
            return true;
        }
        if !rx.enabled || !self.function.dma().is_enabled() {
            rx.starved |= !looped;
            return looped;
        }
        if frame.len() < 14 || frame.len() > MOST {
            return true;
        }
        let mut bytes = std::mem::take(&mut rx.buffer);
        bytes.clear();
        frame.parts.iter().for_each(|p| bytes.extend_from_slice(p));
        bytes.resize(bytes.len().max(LEAST), 0);
        let taken = self.take_bytes(rx, &mut bytes, frame.offload.valid, looped);
        rx.buffer = bytes;
        taken
    }

    fn take_bytes(&self, rx: &mut Rx, bytes: &mut Vec<u8>, valid: bool, looped: bool) -> bool {
        let to = bytes.first_chunk::<6>().copied().unwrap_or_default();
        let Some(what) = rx.accepts(to) else { return true };
        let fate = if rx.is_cplus() {
            let mut status = match what {
                header::MAR => desc::MAR,
                header::PAM => desc::PAM,
                header::BAR => desc::BAR,
                _ => 0,
            };
            if rx.cpcr & cpcr::RX_CHK_SUM != 0 {
                status |= Ipv4::of(bytes).map_or(0, |h| h.checks(bytes, valid));
            }
            let mut tag = None;
            if rx.cpcr & cpcr::RX_VLAN != 0 && bytes[12..14] == [0x81, 0] {
                tag = Some(u16::from_be_bytes([bytes[14], bytes[15]]));
                bytes.drain(12..16);
            }
            bytes.extend([0; FCS]);
            self.fill_ring(rx, &Inward { bytes, status, tag })
        } else {
            bytes.extend([0; FCS]);
            self.fill_buffer(rx, bytes, what)
        };
        match fate {
            Fate::Taken => {
                rx.count(what);
                self.raise(isr::ROK);
            }
            Fate::Waits if !looped => {
                if !std::mem::replace(&mut rx.starved, true) {
                    rx.miss();
                    self.raise(isr::RXOVW);
                }
                if rx.is_cplus() && rx.retry.is_none() {
                    let at = self.clock.now().saturating_add(rx.wait);
                    rx.retry = Some(at);
                    self.rx_timer.arm(at);
                }
                return false;
            }
            _ => {
                rx.miss();
                self.raise(isr::RXOVW);
            }
        }
        true
    }

    /// Puts a frame into the receive buffer, behind a header of status and length.
    fn fill_buffer(&self, rx: &mut Rx, bytes: &mut Vec<u8>, what: u16) -> Fate {
        let (size, len) = (rx.size(), bytes.len());
        let all = (4 + len).next_multiple_of(4);
        if all >= size - rx.used() {
            return Fate::Waits;
        }
        let [a, b] = (header::ROK | what).to_le_bytes();
        let [c, d] = (len as u16).to_le_bytes();
        bytes.splice(0..0, [a, b, c, d]);
        let (start, at) = (u64::from(rx.rbstart), usize::from(rx.cbr));
        // With WRAP what is beyond the end goes there; a buffer of 64 KiB has nothing behind it.
        let there = if rx.rcr & rcr::WRAP != 0 && size < 65_536 { bytes.len() } else { size - at };
        let (head, tail) = bytes.split_at(there.min(bytes.len()));
        // What is not memory is lost, as on the bus.
        let _ = self.function.dma().write(start + at as u64, head);
        if !tail.is_empty() {
            let _ = self.function.dma().write(start, tail);
        }
        rx.cbr = ((at + all) & (size - 1)) as u16;
        Fate::Taken
    }

    /// Puts a frame into the buffers of the ring's next descriptors.
    fn fill_ring(&self, rx: &mut Rx, inward: &Inward<'_>) -> Fate {
        let dma = self.function.dma();
        let len = inward.bytes.len();
        let mut found: SmallVec<[(u64, [u32; 4]); 4]> = SmallVec::new();
        let (mut index, mut room) = (rx.index, 0);
        while room < len {
            let at = rx.rdsar.wrapping_add(u64::from(index) * DESCRIPTOR);
            let mut bytes = [0; DESCRIPTOR as usize];
            if dma.read(at, &mut bytes).is_err() {
                return Fate::Waits;
            }
            let words = words(&bytes);
            if words[0] & desc::OWN == 0 {
                return Fate::Waits;
            }
            room += (words[0] & desc::LEN) as usize;
            found.push((at, words));
            index = next(index, words[0]);
            if room < len && (index == rx.index || found.len() >= DESCRIPTORS as usize) {
                return Fate::Lost;
            }
        }
        let (mut done, last) = (0, found.len() - 1);
        for (n, (at, [first, _, low, high])) in found.into_iter().enumerate() {
            let here = ((first & desc::LEN) as usize).min(len - done);
            let _ = dma.write(u64::from(low) | u64::from(high) << 32, &inward.bytes[done..done + here]);
            done += here;
            let mut status = first & desc::EOR;
            if n == 0 {
                status |= desc::FS;
            }
            if n == last {
                status |= desc::LS | inward.status | len as u32;
            }
            let second = inward.tag.map_or(0, |tag| desc::TAVA | u32::from(tag.swap_bytes()));
            let _ = dma.write(at + 4, &second.to_le_bytes());
            // What was written is seen before the descriptor is.
            fence(Ordering::Release);
            let _ = dma.write(at, &status.to_le_bytes());
        }
        rx.index = index;
        rx.wait = RETRY;
        Fate::Taken
    }

    /// Whether there is room for a frame.
    pub(super) fn has_room(&self, rx: &Rx) -> bool {
        if !rx.enabled || !self.function.dma().is_enabled() {
            return false;
        }
        if !rx.is_cplus() {
            // A whole frame of the usual length.
            return rx.size() - rx.used() > 1536;
        }
        let mut first = [0; 4];
        let at = rx.rdsar.wrapping_add(u64::from(rx.index) * DESCRIPTOR);
        self.function.dma().read(at, &mut first).is_ok() && u32::from_le_bytes(first) & desc::OWN != 0
    }

    /// There may be room again: whoever has been refused is told. No lock is held.
    pub(super) fn wake(&self) {
        let room = {
            let mut rx = self.rx.lock();
            rx.starved && self.has_room(&rx) && std::mem::take(&mut rx.starved)
        };
        if room {
            self.link.wake();
        }
    }

    /// The time has come to look at the ring again.
    pub(super) fn rx_expired(&self) {
        {
            let mut rx = self.rx.lock();
            let now = self.clock.now();
            if rx.retry.is_none_or(|at| at > now) {
                return;
            }
            rx.retry = None;
            if rx.starved && rx.enabled && rx.is_cplus() && !self.has_room(&rx) {
                rx.wait = (rx.wait.saturating_mul(2)).min(LONGEST_RETRY);
                let at = now.saturating_add(rx.wait);
                rx.retry = Some(at);
                self.rx_timer.arm(at);
            }
        }
        self.wake();
    }
}
