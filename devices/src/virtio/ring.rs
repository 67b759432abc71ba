//! A queue's ring in guest memory.
//!
//! [`Ring`] is what the rest sees of one, whatever its format, and [`AnyRing`] is one that a driver sets up: it becomes
//! a packed one (`packed.rs`) when that was agreed on. [`Split`] is the format of always (2.7), on the crate
//! `virtio-queue` (on Windows, where that is not to be had, on `queue.rs`), whose iterators end where a descriptor is
//! not as it must be: that is told apart from a chain's end here, as is the driver's wish for no interrupts, which the
//! crate leaves out.
use super::chain::{Broken, Chain, MOST_PIECES, Piece, Pieces};
use super::packed::Packed;
#[cfg(windows)]
use super::queue::{Queue, QueueState};
use crate::device::Invalid;
use crate::dma::Session;
use serde::{Deserialize, Serialize};
use std::sync::atomic::{Ordering, fence};
#[cfg(unix)]
use virtio_queue::{Queue, QueueState, QueueT};
use vm_memory::{Bytes, GuestAddress};

/// VIRTQ_AVAIL_F_NO_INTERRUPT (2.7.6).
const NO_INTERRUPT: u16 = 1;

/// What a device sees of a ring.
pub trait Ring: Send {
    /// The next chain that the driver has made available.
    fn pop(&mut self, memory: &Session<'_>) -> Result<Option<Chain>, Broken>;
    /// Makes the last chains that were taken, none of which was given back, available again.
    fn unpop(&mut self, heads: &[u16]);
    /// Gives chains back, by head, of which so many bytes were written: the driver sees all of them at once.
    fn push_all(&mut self, memory: &Session<'_>, used: &[(u16, u32)]) -> Result<(), Broken>;
    /// Gives a chain back, of which `len` bytes were written.
    fn push(&mut self, memory: &Session<'_>, head: u16, len: u32) -> Result<(), Broken> {
        self.push_all(memory, &[(head, len)])
    }
    /// Whether the driver wishes to hear of what was given back since the last call.
    fn wants_interrupt(&mut self, memory: &Session<'_>) -> Result<bool, Broken>;
    /// The driver need not notify: the ring is looked at anyway.
    fn disable_notifications(&mut self, memory: &Session<'_>) -> Result<(), Broken>;
    /// The driver is to notify of what it makes available from now on; whether there is something already.
    fn enable_notifications(&mut self, memory: &Session<'_>) -> Result<bool, Broken>;
}

/// A split ring, and what a driver sets of it.
pub struct Split {
    queue: Queue,
    /// Chains given back since the driver was last thought of.
    added: u16,
}

/// What is saved of a ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RingV1 {
    size: u16,
    ready: bool,
    event_idx: bool,
    descriptors: u64,
    available: u64,
    used: u64,
    next_available: u16,
    next_used: u16,
}

/// What is saved of a ring of either format.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AnyRingV1 {
    split: RingV1,
    size: u16,
    packed: Option<Packed>,
}

/// Where the parts of a ring are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The table of descriptors.
    Descriptors,
    /// What the driver writes.
    Driver,
    /// What the device writes.
    Device,
}

impl Split {
    /// A ring of up to `most` entries, a power of two up to 32768; others are a mistake of the device.
    pub fn new(most: u16) -> Self {
        let queue = Queue::new(most).unwrap_or_else(|e| panic!("a queue of {most}: {e}"));
        let mut ring = Self { queue, added: 0 };
        ring.reset();
        ring
    }

    /// As after a reset: not ready, of the most entries.
    pub fn reset(&mut self) {
        self.queue.reset();
        self.added = 0;
        // The crate has addresses of its own that mean nothing here.
        [Part::Descriptors, Part::Driver, Part::Device].into_iter().for_each(|p| self.place(p, 0));
    }

    /// Entries.
    pub fn size(&self) -> u16 {
        self.queue.size()
    }

    /// The most entries.
    pub fn most(&self) -> u16 {
        self.queue.max_size()
    }

    /// Has so many entries, if a ring can.
    pub fn set_size(&mut self, size: u16) {
        let _ = self.queue.try_set_size(size);
    }

    /// Whether the driver has set it up.
    pub fn is_ready(&self) -> bool {
        self.queue.ready()
    }

    /// The driver has set it up, or has not.
    pub fn set_ready(&mut self, ready: bool) {
        self.queue.set_ready(ready);
    }

    /// Both sides say when they wish to hear.
    pub fn set_event_idx(&mut self, on: bool) {
        self.queue.set_event_idx(on);
    }

    /// Where a part is.
    pub fn part(&self, part: Part) -> u64 {
        match part {
            Part::Descriptors => self.queue.desc_table(),
            Part::Driver => self.queue.avail_ring(),
            Part::Device => self.queue.used_ring(),
        }
    }

    /// Says where a part is. One that is not aligned as it must be (2.7) is put where it would be with the bits
    /// beyond taken off.
    pub fn place(&mut self, part: Part, at: u64) {
        let at = |align: u64| GuestAddress(at & !(align - 1));
        let _ = match part {
            Part::Descriptors => self.queue.try_set_desc_table_address(at(16)),
            Part::Driver => self.queue.try_set_avail_ring_address(at(2)),
            Part::Device => self.queue.try_set_used_ring_address(at(4)),
        };
    }

    /// What is saved of it.
    pub fn save(&self) -> RingV1 {
        let QueueState { size, ready, event_idx_enabled, next_avail, next_used, .. } = self.queue.state();
        RingV1 {
            size,
            ready,
            event_idx: event_idx_enabled,
            descriptors: self.queue.desc_table(),
            available: self.queue.avail_ring(),
            used: self.queue.used_ring(),
            next_available: next_avail,
            next_used,
        }
    }

    /// Takes on what was saved.
    pub fn restore(&mut self, saved: RingV1) -> Result<(), Invalid> {
        let state = QueueState {
            max_size: self.most(),
            next_avail: saved.next_available,
            next_used: saved.next_used,
            event_idx_enabled: saved.event_idx,
            size: saved.size,
            ready: saved.ready,
            desc_table: saved.descriptors,
            avail_ring: saved.available,
            used_ring: saved.used,
        };
        self.queue = Queue::try_from(state).map_err(|_| Invalid("a virtqueue"))?;
        self.added = 0;
        Ok(())
    }

    fn chain(&mut self, memory: &Session<'_>) -> Result<Option<Chain>, Broken> {
        // No ring lies at 0, where the crate takes it for none.
        let Some(descriptors) = self.queue.pop_descriptor_chain(memory) else { return Ok(None) };
        let mut chain =
            Chain { head: descriptors.head_index(), readable: Pieces::new(), writable: Pieces::new() };
        let mut more = true;
        for d in descriptors {
            let piece = Piece { at: d.addr().0, len: d.len() };
            if piece.len == 0 {
                return Err(Broken("a descriptor of no bytes"));
            }
            match (d.is_write_only(), chain.writable.is_empty()) {
                (true, _) => chain.writable.push(piece),
                (false, true) => chain.readable.push(piece),
                (false, false) => return Err(Broken("a readable descriptor behind a writable one")),
            }
            if chain.readable.len() + chain.writable.len() > MOST_PIECES {
                return Err(Broken("a chain of too many descriptors"));
            }
            more = d.has_next();
        }
        // It ends where no end is: a loop, a descriptor that is not there, too many bytes.
        if more { Err(Broken("a chain of descriptors with no end")) } else { Ok(Some(chain)) }
    }
}

/// A ring, of which the driver says where and how large it is, whatever its format.
pub struct AnyRing {
    /// It also has what was set up of a packed one, but for its size.
    split: Split,
    /// Entries of a packed one, which need be no power of two.
    size: u16,
    /// Rings are packed: so it was agreed on.
    wants_packed: bool,
    event_idx: bool,
    packed: Option<Packed>,
}

impl AnyRing {
    /// See [`Split::new`].
    pub fn new(most: u16) -> Self {
        Self { split: Split::new(most), size: most, wants_packed: false, event_idx: false, packed: None }
    }

    /// As after a reset: not ready, of the most entries.
    pub fn reset(&mut self) {
        *self = Self::new(self.most());
    }

    /// Rings are packed, or not.
    pub fn set_packed(&mut self, packed: bool) {
        self.wants_packed = packed;
    }

    /// Entries.
    pub fn size(&self) -> u16 {
        if self.wants_packed { self.size } else { self.split.size() }
    }

    /// The most entries.
    pub fn most(&self) -> u16 {
        self.split.most()
    }

    /// Has so many entries, if a ring can.
    pub fn set_size(&mut self, size: u16) {
        self.split.set_size(size);
        if (1..=self.most()).contains(&size) {
            self.size = size;
        }
    }

    /// Whether the driver has set it up.
    pub fn is_ready(&self) -> bool {
        self.split.is_ready()
    }

    /// The driver has set it up, or has not.
    pub fn set_ready(&mut self, ready: bool) {
        self.split.set_ready(ready);
        self.pack();
    }

    /// Both sides say when they wish to hear.
    pub fn set_event_idx(&mut self, on: bool) {
        self.event_idx = on;
        self.split.set_event_idx(on);
        self.pack();
    }

    /// Makes the packed ring that was set up.
    fn pack(&mut self) {
        let made = self.wants_packed && self.is_ready();
        self.packed = made.then(|| {
            let [descriptors, driver, device] =
                [Part::Descriptors, Part::Driver, Part::Device].map(|part| self.part(part));
            Packed::new(self.size, descriptors, driver, device, self.event_idx)
        });
    }

    /// Where a part is.
    pub fn part(&self, part: Part) -> u64 {
        self.split.part(part)
    }

    /// See [`Split::place`].
    pub fn place(&mut self, part: Part, at: u64) {
        self.split.place(part, at);
    }

    /// What is saved of it.
    pub fn save(&self) -> AnyRingV1 {
        AnyRingV1 { split: self.split.save(), size: self.size, packed: self.packed.clone() }
    }

    /// Takes on what was saved; `packed` was agreed on.
    pub fn restore(&mut self, saved: AnyRingV1, packed: bool) -> Result<(), Invalid> {
        let AnyRingV1 { split, size, packed: ring } = saved;
        if !(1..=self.most()).contains(&size) || ring.is_some() && !packed {
            return Err(Invalid("a virtqueue"));
        }
        if let Some(ring) = &ring {
            ring.check(self.most())?;
        }
        self.event_idx = split.event_idx;
        self.split.restore(split)?;
        (self.size, self.wants_packed, self.packed) = (size, packed, ring);
        Ok(())
    }

    fn format(&mut self) -> &mut dyn Ring {
        match &mut self.packed {
            Some(packed) => packed,
            None => &mut self.split,
        }
    }
}

impl Ring for AnyRing {
    fn pop(&mut self, memory: &Session<'_>) -> Result<Option<Chain>, Broken> {
        self.format().pop(memory)
    }

    fn unpop(&mut self, heads: &[u16]) {
        self.format().unpop(heads);
    }

    fn push_all(&mut self, memory: &Session<'_>, used: &[(u16, u32)]) -> Result<(), Broken> {
        self.format().push_all(memory, used)
    }

    fn wants_interrupt(&mut self, memory: &Session<'_>) -> Result<bool, Broken> {
        self.format().wants_interrupt(memory)
    }

    fn disable_notifications(&mut self, memory: &Session<'_>) -> Result<(), Broken> {
        self.format().disable_notifications(memory)
    }

    fn enable_notifications(&mut self, memory: &Session<'_>) -> Result<bool, Broken> {
        self.format().enable_notifications(memory)
    }
}

impl Ring for Split {
    fn pop(&mut self, memory: &Session<'_>) -> Result<Option<Chain>, Broken> {
        let index = self.queue.avail_idx(memory, Ordering::Acquire);
        let index = index.map_err(|_| Broken("a ring that is not in memory"))?.0;
        let waiting = index.wrapping_sub(self.queue.next_avail());
        if waiting == 0 {
            return Ok(None);
        }
        if waiting > self.size() {
            return Err(Broken("more available than there are entries"));
        }
        let before = self.queue.next_avail();
        match self.chain(memory)? {
            None if self.queue.next_avail() == before => Err(Broken("a ring that is not in memory")),
            chain => Ok(chain),
        }
    }

    fn unpop(&mut self, heads: &[u16]) {
        self.queue.set_next_avail(self.queue.next_avail().wrapping_sub(heads.len() as u16));
    }

    fn push_all(&mut self, memory: &Session<'_>, used: &[(u16, u32)]) -> Result<(), Broken> {
        let wrong = || Broken("a used ring that is not in memory");
        let Some(((head, len), before)) = used.split_last() else { return Ok(()) };
        let (ring, mut index) = (self.queue.used_ring(), self.queue.next_used());
        for (head, len) in before {
            if *head >= self.size() {
                return Err(Broken("a chain that was not taken"));
            }
            let at = ring.wrapping_add(4 + 8 * u64::from(index % self.size()));
            let element = u64::from(*head) | u64::from(*len) << 32;
            memory.write_slice(&element.to_le_bytes(), GuestAddress(at)).map_err(|_| wrong())?;
            index = index.wrapping_add(1);
        }
        // The last one brings the index that the driver looks at.
        self.queue.set_next_used(index);
        self.added = self.added.saturating_add(used.len() as u16);
        self.queue.add_used(memory, *head, *len).map_err(|_| wrong())
    }

    fn wants_interrupt(&mut self, memory: &Session<'_>) -> Result<bool, Broken> {
        let word = |at: u64| {
            let word: Result<u16, _> = memory.load(GuestAddress(at), Ordering::Relaxed);
            word.map(u16::from_le).map_err(|_| Broken("a ring that is not in memory"))
        };
        // What was given back is seen before what the driver wishes is read.
        fence(Ordering::SeqCst);
        let available = self.queue.avail_ring();
        let added = std::mem::take(&mut self.added);
        if self.queue.event_idx_enabled() {
            let event = word(available.wrapping_add(4 + 2 * u64::from(self.size())))?;
            return Ok(self.queue.next_used().wrapping_sub(event).wrapping_sub(1) < added);
        }
        Ok(word(available)? & NO_INTERRUPT == 0)
    }

    fn disable_notifications(&mut self, memory: &Session<'_>) -> Result<(), Broken> {
        self.queue.disable_notification(memory).map_err(|_| Broken("a used ring that is not in memory"))
    }

    fn enable_notifications(&mut self, memory: &Session<'_>) -> Result<bool, Broken> {
        self.queue.enable_notification(memory).map_err(|_| Broken("a used ring that is not in memory"))
    }
}
