//! Transmission: the four descriptors in registers, and the two rings of C+ mode.
//!
//! Who writes a descriptor's register, or TPPoll, sends. A frame is copied into the transmitter's own buffer first, so
//! that what is looked at is what is sent. A turn on a ring is bounded by [`TURN`]; the rest is sent a moment later, by
//! a timer.
use super::Adapter;
use super::packet::Ipv4;
use super::regs::{DESCRIPTOR, cpcr, desc, isr, next, tcr, tsd};
use crate::clock::Nanos;
use mynah_net::{Frame, MAX_FRAME, Offload, Takes, offload};
use serde::{Deserialize, Serialize};
use std::io::IoSlice;
use std::sync::atomic::{Ordering, fence};

/// What is done in a turn: a descriptor or a segment counts 1.
const TURN: usize = 4096;
/// How long the rest waits.
const MOMENT: Nanos = 1_000;
/// A frame's least length without its checksum: shorter ones are padded.
const LEAST: usize = 60;
/// The longest frame of a guest, without a tag.
const MOST: usize = MAX_FRAME - 4;

/// A ring of C+ mode: its place, and the frame that is being put together from it.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Ring {
    /// The next descriptor.
    index: u32,
    /// The first two words of the frame's first descriptor.
    begun: Option<(u32, u32)>,
    /// It cannot be sent: it is too long, or a part of it is not in memory.
    bad: bool,
    #[serde(with = "serde_bytes")]
    bytes: Vec<u8>,
}

/// The transmitter, as it is saved.
#[derive(Clone, Serialize, Deserialize)]
pub(super) struct Tx {
    /// CR.TE.
    pub(super) enabled: bool,
    pub(super) cpcr: u16,
    pub(super) tcr: u32,
    pub(super) tsd: [u32; 4],
    /// In C+ mode TNPDS and THPDS.
    pub(super) tsad: [u32; 4],
    /// The next of the four descriptors.
    current: usize,
    /// Of normal and of high priority.
    pub(super) rings: [Ring; 2],
    /// Rings that are being sent, for a turn that has not done all.
    polled: [bool; 2],
    again: Option<Nanos>,
    /// Frames that were sent, and that could not be (DTCCR).
    pub(super) sent: u64,
    pub(super) errors: u64,
    /// Where a frame of the four descriptors is.
    #[serde(skip)]
    buffer: Vec<u8>,
}

impl Tx {
    pub(super) fn new() -> Self {
        Self {
            enabled: false,
            cpcr: 0,
            tcr: 0,
            tsd: [tsd::OWN; 4],
            tsad: [0; 4],
            current: 0,
            rings: Default::default(),
            polled: [false; 2],
            again: None,
            sent: 0,
            errors: 0,
            buffer: Vec::new(),
        }
    }

    /// A reset by software: statistics go on.
    pub(super) fn reset(&mut self) {
        let buffer = std::mem::take(&mut self.buffer);
        *self = Self { sent: self.sent, errors: self.errors, buffer, ..Self::new() };
    }

    pub(super) fn is_valid(&self) -> bool {
        let ring = |r: &Ring| r.bytes.len() <= MOST && r.index < super::regs::DESCRIPTORS;
        self.current < 4 && self.rings.iter().all(ring)
    }

    pub(super) fn again(&self) -> Option<Nanos> {
        self.again
    }

    /// The rings begin anew.
    pub(super) fn restart(&mut self, ring: usize) {
        let Ring { index, begun, bad, bytes } = &mut self.rings[ring];
        (*index, *begun, *bad) = (0, None, false);
        bytes.clear();
    }

    /// CR.TE is written: all begins with the first descriptor.
    pub(super) fn enable(&mut self, on: bool) {
        if on && !self.enabled {
            self.current = 0;
            (0..2).for_each(|ring| self.restart(ring));
        }
        self.enabled = on;
    }

    /// What is sent comes back.
    pub(super) fn loops(&self) -> bool {
        self.tcr & tcr::LBK == tcr::LBK
    }

    /// A descriptor's register is written, which clears its status.
    pub(super) fn set_status(&mut self, n: usize, value: u32) {
        self.tsd[n] = value & (tsd::SIZE | tsd::OWN | tsd::ERTXTH);
    }

    /// The status of all four: OWN, TABT, TUN and TOK, four bits of each.
    pub(super) fn summary(&self) -> u16 {
        let mut value = 0;
        for (n, status) in self.tsd.iter().enumerate() {
            for (i, bit) in [tsd::OWN, tsd::TABT, tsd::TUN, tsd::TOK].into_iter().enumerate() {
                value |= u16::from(status & bit != 0) << (4 * i + n);
            }
        }
        value
    }
}

impl Adapter {
    /// Sends what the four descriptors have, in their order.
    pub(super) fn transmit(&self, tx: &mut Tx) {
        let mut causes = 0;
        for _ in 0..4 {
            let n = tx.current;
            if !tx.enabled || tx.cpcr & cpcr::TE != 0 || tx.tsd[n] & tsd::OWN != 0 {
                break;
            }
            let mut buffer = std::mem::take(&mut tx.buffer);
            buffer.clear();
            buffer.resize((tx.tsd[n] & tsd::SIZE) as usize, 0);
            let read = self.function.dma().read(tx.tsad[n].into(), &mut buffer);
            tx.tsd[n] |= tsd::OWN;
            if read.is_ok() {
                self.pad_and_send(tx, &mut buffer, Offload::default(), None);
                tx.sent += 1;
                tx.tsd[n] |= tsd::TOK;
                causes |= isr::TOK;
            } else {
                tx.errors += 1;
                tx.tsd[n] |= tsd::TABT;
                causes |= isr::TER;
            }
            tx.buffer = buffer;
            tx.current = (n + 1) % 4;
        }
        self.raise(causes);
    }

    /// TPPoll: sends what a ring has.
    pub(super) fn poll(&self, tx: &mut Tx, ring: usize) {
        tx.polled[ring] = true;
        self.transmit_rings(tx);
    }

    /// The time has come for what a turn has left.
    pub(super) fn tx_expired(&self) {
        let mut tx = self.tx.lock();
        if tx.again.is_some_and(|at| at <= self.clock.now()) {
            self.transmit_rings(&mut tx);
        }
    }

    /// A turn on the rings that were polled, the one of high priority first.
    fn transmit_rings(&self, tx: &mut Tx) {
        let (mut left, mut causes) = (TURN, 0);
        for ring in [1, 0] {
            while tx.polled[ring] && left > 0 {
                let spent = if tx.enabled && tx.cpcr & cpcr::TE != 0 {
                    self.descriptor(tx, ring, &mut causes)
                } else {
                    None
                };
                match spent {
                    Some(n) => left = left.saturating_sub(n),
                    None => tx.polled[ring] = false,
                }
            }
        }
        tx.again = tx.polled.contains(&true).then(|| self.clock.now().saturating_add(MOMENT));
        if let Some(at) = tx.again {
            self.tx_timer.arm(at);
        }
        self.raise(causes);
    }

    /// Takes the ring's next descriptor; what that was worth, if there was one.
    fn descriptor(&self, tx: &mut Tx, n: usize, causes: &mut u16) -> Option<usize> {
        let base = u64::from(tx.tsad[2 * n] & !0xff) | u64::from(tx.tsad[2 * n + 1]) << 32;
        let ring = &mut tx.rings[n];
        let at = base.wrapping_add(u64::from(ring.index) * DESCRIPTOR);
        let mut bytes = [0; DESCRIPTOR as usize];
        self.function.dma().read(at, &mut bytes).ok()?;
        let [first, second, low, high] = words(&bytes);
        if first & desc::OWN == 0 {
            *causes |= isr::TDU;
            return None;
        }
        if first & desc::FS != 0 {
            ring.begun = Some((first, second));
            ring.bad = false;
            ring.bytes.clear();
        }
        self.fetch(ring, u64::from(low) | u64::from(high) << 32, (first & 0xffff) as usize);
        ring.index = next(ring.index, first);
        let mut spent = 1;
        if first & desc::LS != 0 {
            let begun = ring.begun.take();
            let mut buffer = std::mem::take(&mut ring.bytes);
            match begun.filter(|_| !ring.bad) {
                Some(begun) => {
                    spent += self.complete(tx, &mut buffer, begun);
                    *causes |= isr::TOK;
                }
                None => {
                    tx.errors += 1;
                    *causes |= isr::TER;
                }
            }
            buffer.clear();
            tx.rings[n].bytes = buffer;
            tx.rings[n].bad = false;
        }
        fence(Ordering::Release);
        let back = first & !(desc::OWN | desc::TX_STATUS);
        self.function.dma().write(at, &back.to_le_bytes()).ok()?;
        Some(spent)
    }

    /// Copies a descriptor's data behind what there is of the frame.
    fn fetch(&self, ring: &mut Ring, address: u64, len: usize) {
        let before = ring.bytes.len();
        if ring.begun.is_none() || ring.bad || len == 0 {
            return;
        }
        if before + len > MOST {
            ring.bad = true;
            return;
        }
        ring.bytes.resize(before + len, 0);
        ring.bad = self.function.dma().read(address, &mut ring.bytes[before..]).is_err();
    }

    /// Sends a frame whose last descriptor has come; how many frames that were.
    fn complete(&self, tx: &mut Tx, bytes: &mut Vec<u8>, (command, second): (u32, u32)) -> usize {
        let tag = (second & desc::TAGC != 0).then_some((second as u16).swap_bytes());
        let headers = Ipv4::of(bytes);
        if command & desc::LGSEN != 0
            && let Some((offload, segments)) =
                headers.and_then(|h| h.segment(bytes, (command >> 16 & 0x7ff) as u16))
        {
            self.pad_and_send(tx, bytes, offload, tag);
            tx.sent += segments as u64;
            return segments;
        }
        // With LGSEN the bits of checksums are the segments' size.
        let sums = if command & desc::LGSEN != 0 { 0 } else { command };
        let offload = headers.map(|h| h.fill(bytes, sums)).unwrap_or_default();
        self.pad_and_send(tx, bytes, offload, tag);
        tx.sent += 1;
        1
    }

    /// A frame goes out, or comes back.
    fn pad_and_send(&self, tx: &Tx, bytes: &mut Vec<u8>, mut offload: Offload, tag: Option<u16>) {
        if bytes.len() < LEAST {
            bytes.resize(LEAST, 0);
        }
        let Some(tag) = tag else {
            return self.give(tx, &Frame { offload, parts: &[IoSlice::new(bytes)] });
        };
        if let Some(partial) = &mut offload.partial {
            partial.start += 4;
        }
        let [a, b] = tag.to_be_bytes();
        let (addresses, rest) = bytes.split_at(12);
        let tag = [0x81, 0, a, b];
        let parts = [IoSlice::new(addresses), IoSlice::new(&tag), IoSlice::new(rest)];
        self.give(tx, &Frame { offload, parts: &parts });
    }

    fn give(&self, tx: &Tx, frame: &Frame<'_>) {
        if tx.loops() {
            offload::deliver(frame, Takes::default(), &mut |f| _ = self.take(f, true));
        } else {
            self.link.send(frame);
        }
    }
}

/// The words of a descriptor.
pub(super) fn words(bytes: &[u8; 16]) -> [u32; 4] {
    let chunks = bytes.as_chunks::<4>().0;
    [0, 1, 2, 3].map(|n| u32::from_le_bytes(chunks[n]))
}
