//! Transmission: rings of descriptors to frames (317453, 3.3 and 3.5; 316080, 7.2).
//!
//! Who writes a tail sends what is before it. A frame is copied into the queue's own buffer first, so that what is
//! looked at is what is sent. A turn is bounded by [`TURN`]; the rest is sent a moment later, by a timer.
use super::Adapter;
use super::regs::{cause, tctl};
use super::ring::{DESCRIPTOR, Ring};
use super::segment::{self, Context};
use crate::clock::Nanos;
use mynah_net::checksum::checksum;
use mynah_net::{Frame, MAX_FRAME, Offload, Partial, Takes, offload};
use serde::{Deserialize, Serialize};
use std::io::IoSlice;
use std::sync::atomic::Ordering;

/// Descriptors that are read at a time.
const BATCH: usize = 32;
/// What is done in a turn: a descriptor counts 1, as do 16 KiB of data or a segment that is cut.
const TURN: usize = 4096;
/// How long the rest waits.
const MOMENT: Nanos = 1_000;
/// A frame's least length without its checksum.
const LEAST: usize = 60;

/// Bits of a descriptor's command (3.3.3.1, 3.3.7.1), in its third word.
mod cmd {
    pub const EOP: u32 = 1 << 24;
    /// Of a legacy descriptor.
    pub const IC: u32 = 1 << 26;
    /// Of the others.
    pub const TSE: u32 = 1 << 26;
    pub const RS: u32 = 1 << 27;
    pub const RPS: u32 = 1 << 28;
    pub const DEXT: u32 = 1 << 29;
    pub const VLE: u32 = 1 << 30;
    pub const IDE: u32 = 1 << 31;
}
/// The descriptor is done, in its status.
const DD: u32 = 1;
/// Options of a packet, POPTS.
const IXSM: u8 = 1;
const TXSM: u8 = 2;

/// What has been said of a frame that is being put together.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Packet {
    /// Its first descriptor has been seen.
    begun: bool,
    /// It cannot be sent: it is too long, or a part of it is not in memory.
    bad: bool,
    /// Bytes of it that there are.
    len: usize,
    options: u8,
    segmented: bool,
    /// A checksum by a legacy descriptor: from where on, and where it goes.
    inserted: Option<(u8, u8)>,
    tag: Option<u16>,
}

#[derive(Default)]
pub(super) struct Queue {
    pub(super) ring: Ring,
    /// For segmentation, and for checksums.
    contexts: [Context; 2],
    packet: Packet,
    buffer: Vec<u8>,
}

/// Statistics of what was sent (13.7).
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Sent {
    pub(super) frames: u32,
    pub(super) octets: u64,
    pub(super) total_octets: u64,
    pub(super) total: u32,
    pub(super) by_size: [u32; 6],
    pub(super) multicast: u32,
    pub(super) broadcast: u32,
    pub(super) segmented: u32,
}

/// Which of the six counters a frame of this length with its checksum is counted in.
pub(super) fn size_class(len: usize) -> usize {
    match len {
        ..=64 => 0,
        65..=127 => 1,
        128..=255 => 2,
        256..=511 => 3,
        512..=1023 => 4,
        _ => 5,
    }
}

#[derive(Default)]
pub(super) struct Tx {
    pub(super) control: u32,
    pub(super) tidv: u32,
    pub(super) tadv: u32,
    pub(super) queues: [Queue; 2],
    pub(super) stats: Sent,
    /// When what a turn has left is sent.
    again: Option<Nanos>,
    /// The rings of which that is, a bit for each.
    waiting: u8,
}

/// What is saved of the transmitter.
#[derive(Serialize, Deserialize)]
pub(super) struct TxV1 {
    control: u32,
    tidv: u32,
    tadv: u32,
    rings: [Ring; 2],
    contexts: [[Context; 2]; 2],
    packets: [Packet; 2],
    /// The frames that are being put together.
    begun: [serde_bytes::ByteBuf; 2],
    stats: Sent,
    again: Option<Nanos>,
    waiting: u8,
}

impl Tx {
    pub(super) fn save(&self) -> TxV1 {
        let of = |q: &Queue| serde_bytes::ByteBuf::from(q.buffer.get(..q.packet.len).unwrap_or_default());
        let [a, b] = &self.queues;
        TxV1 {
            control: self.control,
            tidv: self.tidv,
            tadv: self.tadv,
            rings: [a.ring, b.ring],
            contexts: [a.contexts, b.contexts],
            packets: [a.packet.clone(), b.packet.clone()],
            begun: [of(a), of(b)],
            stats: self.stats.clone(),
            again: self.again,
            waiting: self.waiting,
        }
    }

    /// A transmitter of this state, if it is one.
    pub(super) fn restored(saved: TxV1) -> Option<Self> {
        let TxV1 { control, tidv, tadv, rings, contexts, packets, begun, stats, again, waiting } = saved;
        let mut tx = Self { control, tidv, tadv, stats, again, waiting, ..Self::default() };
        let parts = rings.into_iter().zip(contexts).zip(packets).zip(begun);
        for (queue, (((ring, contexts), packet), begun)) in tx.queues.iter_mut().zip(parts) {
            if begun.len() != packet.len || packet.len > MOST || !ring.is_valid() {
                return None;
            }
            let mut buffer = begun.into_vec();
            if packet.begun {
                buffer.resize(MAX_FRAME, 0);
            }
            *queue = Queue { ring, contexts, packet, buffer };
        }
        Some(tx)
    }

    /// A reset of the card. Buffers are kept.
    pub(super) fn reset(&mut self) {
        let [a, b] = std::mem::take(&mut self.queues).map(|q| Queue { buffer: q.buffer, ..Queue::default() });
        *self = Self { queues: [a, b], ..Self::default() };
    }

    pub(super) fn again(&self) -> Option<Nanos> {
        self.again
    }
}

/// What comes of a turn.
#[derive(Default)]
struct Turn {
    causes: u32,
    /// Those that wait for TIDV.
    delayed: u32,
    left: usize,
}

impl Turn {
    fn spend(&mut self, n: usize) {
        self.left = self.left.saturating_sub(n);
    }
}

impl Adapter {
    /// Sends what is before the tail.
    pub(super) fn transmit(&self, tx: &mut Tx, queue: usize) {
        let mut turn = Turn { left: TURN, ..Turn::default() };
        let enabled = tx.control & tctl::EN != 0;
        let mut done = 0;
        while enabled && turn.left > 0 {
            let ring = &tx.queues[queue].ring;
            let (count, head, tail) = (ring.count(DESCRIPTOR), ring.head, ring.tail);
            if head >= count || tail >= count || head == tail {
                break;
            }
            let run = if tail > head { tail - head } else { count - head };
            let run = (run as usize).min(BATCH);
            let at = ring.at(head, DESCRIPTOR);
            let mut batch = [0; BATCH * DESCRIPTOR as usize];
            let batch = &mut batch[..run * DESCRIPTOR as usize];
            if self.function.dma().read(at, batch).is_err() {
                break;
            }
            let mut at = at;
            for descriptor in batch.as_chunks::<{ DESCRIPTOR as usize }>().0 {
                self.descriptor(tx, queue, at, descriptor, &mut turn);
                at += DESCRIPTOR;
                tx.queues[queue].ring.advance(DESCRIPTOR);
                done += 1;
                if turn.left == 0 {
                    break;
                }
            }
        }
        tx.waiting &= !(1 << queue);
        let ring = &tx.queues[queue].ring;
        let empty = ring.head == ring.tail;
        if done > 0 && empty {
            turn.causes |= cause::TXQE;
            // LWTHRESH: fewer than so many times eight are left (13.4.44).
            if ring.control >> 25 != 0 {
                turn.causes |= cause::TXD_LOW;
            }
        } else if done > 0 && turn.left == 0 {
            tx.waiting |= 1 << queue;
        }
        tx.again = (tx.waiting != 0).then(|| self.clock.now().saturating_add(MOMENT));
        self.tx_waits.store(tx.again.is_some(), Ordering::Release);
        if let Some(at) = tx.again {
            self.tx_timer.arm(at);
        }
        if turn.causes | turn.delayed != 0 {
            self.raise_sent(turn.causes, turn.delayed, tx.tidv, tx.tadv);
        }
    }

    /// The time has come for what a turn has left.
    pub(super) fn tx_expired(&self) {
        // Who sends may be at it for a while: other timers do not wait for that.
        if !self.tx_waits.load(Ordering::Acquire) {
            return;
        }
        let mut tx = self.tx.lock();
        if tx.again.is_some_and(|at| at <= self.clock.now()) {
            let waiting = tx.waiting;
            for queue in (0..self.model.queues()).filter(|queue| waiting >> queue & 1 != 0) {
                self.transmit(&mut tx, queue);
            }
        }
    }

    fn descriptor(&self, tx: &mut Tx, queue: usize, at: u64, bytes: &[u8; 16], turn: &mut Turn) {
        let word = |n: usize| u32::from_le_bytes([bytes[n], bytes[n + 1], bytes[n + 2], bytes[n + 3]]);
        let (address, command, fields) = (u64::from(word(0)) | u64::from(word(4)) << 32, word(8), word(12));
        turn.spend(1);
        let extended = command & cmd::DEXT != 0;
        match command >> 20 & 0xf {
            0 if extended => {
                let context = Context::of(word(0), word(4), command, fields);
                tx.queues[queue].contexts[usize::from(command & cmd::TSE == 0)] = context;
            }
            kind if !extended || kind == 1 => {
                let q = &mut tx.queues[queue];
                if !q.packet.begun {
                    q.packet = Packet { begun: true, ..Packet::default() };
                    if extended {
                        q.packet.options = (fields >> 8) as u8;
                        q.packet.segmented = command & cmd::TSE != 0;
                    }
                }
                if !extended && command & cmd::IC != 0 {
                    q.packet.inserted = Some(((fields >> 8) as u8, (command >> 16) as u8));
                }
                if command & cmd::VLE != 0 && self.vlan.load(Ordering::Relaxed) & super::VME != 0 {
                    q.packet.tag = Some((fields >> 16) as u16);
                }
                let len = if extended { command & 0xf_ffff } else { command & 0xffff };
                self.fetch(q, address, len as usize);
                turn.spend(len as usize / 16_384);
                if command & cmd::EOP != 0 {
                    if !q.packet.bad {
                        self.complete(tx, queue, turn);
                    }
                    tx.queues[queue].packet = Packet::default();
                }
            }
            // A type that there is not.
            _ => {}
        }
        let reports = if extended { cmd::RS } else { cmd::RS | cmd::RPS };
        if command & reports != 0 {
            let _ = self.function.dma().write(at + 12, &(fields | DD).to_le_bytes());
            let causes = cause::TXDW | cause::TXQ0 << queue;
            if command & cmd::IDE != 0 && tx.tidv != 0 {
                turn.delayed |= causes;
            } else {
                turn.causes |= causes;
            }
        }
    }

    /// Copies a descriptor's data behind what there is of the frame.
    fn fetch(&self, q: &mut Queue, address: u64, len: usize) {
        if q.buffer.len() < MAX_FRAME {
            q.buffer.resize(MAX_FRAME, 0);
        }
        let packet = &mut q.packet;
        let end = packet.len + len;
        if packet.bad || len == 0 {
            return;
        }
        if end > MOST || self.function.dma().read(address, &mut q.buffer[packet.len..end]).is_err() {
            packet.bad = true;
        } else {
            packet.len = end;
        }
    }

    /// The last descriptor of a frame has come.
    fn complete(&self, tx: &mut Tx, queue: usize, turn: &mut Turn) {
        let Tx { control, queues, stats, .. } = tx;
        let q = &mut queues[queue];
        let packet = &q.packet;
        let tag = packet.tag;
        if packet.segmented {
            let context = &q.contexts[0];
            let bytes = &mut q.buffer[..packet.len];
            let both = (packet.options & IXSM != 0, packet.options & TXSM != 0);
            stats.segmented = stats.segmented.saturating_add(1);
            let give = &mut |frame: &[u8], offload, segments: usize, data: usize| {
                turn.spend(segments);
                // Each has the headers, and its share of the data.
                let octets = segments * (frame.len() - data) + data;
                self.count(stats, frame, segments, octets);
                self.send(frame, offload, tag);
            };
            segment::send(context, bytes, both, give);
            return;
        }
        let context = q.contexts[1];
        let bytes = &mut q.buffer[..packet.len];
        let mut offload = Offload::default();
        if packet.options & IXSM != 0 {
            insert(bytes, context.ip_start.into(), context.ip_offset.into(), context.ip_end.into());
        }
        let sum = match packet.inserted {
            Some((start, offset)) => Some((start, offset, 0)),
            None if packet.options & TXSM != 0 => Some((context.start, context.offset, context.end)),
            None => None,
        };
        if let Some((start, offset, end)) = sum {
            if end == 0 && offset >= start && usize::from(offset) + 2 <= bytes.len() {
                let partial = Partial { start: start.into(), offset: (offset - start).into() };
                offload.partial = Some(partial);
            } else {
                insert(bytes, start.into(), offset.into(), end.into());
            }
        }
        let mut len = packet.len;
        if *control & tctl::PSP != 0 && len < LEAST {
            q.buffer[len..LEAST].fill(0);
            len = LEAST;
        }
        let frame = &q.buffer[..len];
        if !frame.is_empty() {
            self.count(stats, frame, 1, len);
            self.send(frame, offload, tag);
        }
    }

    /// Counts a frame that stands for so many, with so many bytes in all.
    fn count(&self, stats: &mut Sent, frame: &[u8], frames: usize, octets: usize) {
        let n = frames as u32;
        // Each has a checksum behind it.
        let octets = (octets + 4 * frames) as u64;
        stats.frames = stats.frames.saturating_add(n);
        stats.total = stats.total.saturating_add(n);
        stats.octets = stats.octets.saturating_add(octets);
        stats.total_octets = stats.total_octets.saturating_add(octets);
        let class = &mut stats.by_size[size_class(octets as usize / frames.max(1))];
        *class = class.saturating_add(n);
        match frame.first_chunk::<6>() {
            Some([0xff, 0xff, 0xff, 0xff, 0xff, 0xff]) => stats.broadcast = stats.broadcast.saturating_add(n),
            Some([first, ..]) if first & 1 != 0 => stats.multicast = stats.multicast.saturating_add(n),
            _ => {}
        }
    }

    /// A frame goes out, or comes back.
    fn send(&self, bytes: &[u8], offload: Offload, tag: Option<u16>) {
        match tag.filter(|_| bytes.len() >= 12) {
            None => self.give(&Frame { offload, parts: &[IoSlice::new(bytes)] }),
            Some(tag) => {
                let [a, b] = (self.vlan.load(Ordering::Relaxed) as u16).to_be_bytes();
                let [c, d] = tag.to_be_bytes();
                let (addresses, rest) = bytes.split_at(12);
                let mut offload = offload;
                if let Some(partial) = &mut offload.partial {
                    partial.start += 4;
                }
                let tag = [a, b, c, d];
                let parts = [IoSlice::new(addresses), IoSlice::new(&tag), IoSlice::new(rest)];
                self.give(&Frame { offload, parts: &parts });
            }
        }
    }

    fn give(&self, frame: &Frame<'_>) {
        if self.loopback.load(Ordering::Relaxed) != 0 {
            offload::deliver(frame, Takes::default(), &mut |f| _ = self.take(f, true));
        } else {
            self.link.send(frame);
        }
    }
}

/// The longest frame of a guest, without a tag.
const MOST: usize = MAX_FRAME - 4;

/// Puts a checksum into a frame: over what is from `start` to `end` (0: its end), at `offset` (3.5.2). What does not
/// lie within the frame is left out.
pub(super) fn insert(bytes: &mut [u8], start: usize, offset: usize, end: usize) {
    let end = if end == 0 { bytes.len() } else { end + 1 };
    let Some(covered) = bytes.get(start..end.min(bytes.len())) else { return };
    let value = checksum(&[covered], 0);
    if let Some(place) = bytes.get_mut(offset..offset + 2) {
        place.copy_from_slice(&value.to_be_bytes());
    }
}
