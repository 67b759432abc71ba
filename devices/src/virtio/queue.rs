//! A split virtqueue (VIRTIO 1.2, 2.7) for hosts that the crate `virtio-queue` is not there for: what of its interface
//! `ring` uses, with the same results, which a test compares.
use crate::dma::Session;
use std::num::Wrapping;
use std::sync::atomic::{Ordering, fence};
use vm_memory::{Bytes, GuestAddress};

/// The most entries of a queue.
const MOST: u16 = 32_768;
/// Flags of descriptors (2.7.5).
const NEXT: u16 = 1 << 0;
const WRITE: u16 = 1 << 1;
const INDIRECT: u16 = 1 << 2;
/// Bytes of a descriptor.
const DESCRIPTOR: u64 = 16;
/// VIRTQ_USED_F_NO_NOTIFY (2.7.10).
const NO_NOTIFY: u16 = 1;

/// What a queue does not do; `ring` says what that means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused;

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("it cannot be")
    }
}

/// All of a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueState {
    pub max_size: u16,
    pub next_avail: u16,
    pub next_used: u16,
    pub event_idx_enabled: bool,
    pub size: u16,
    pub ready: bool,
    pub desc_table: u64,
    pub avail_ring: u64,
    pub used_ring: u64,
}

/// A split virtqueue.
#[derive(Debug)]
pub struct Queue(QueueState);

/// A descriptor of a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Descriptor {
    addr: u64,
    len: u32,
    flags: u16,
    next: u16,
}

impl Descriptor {
    pub fn addr(&self) -> GuestAddress {
        GuestAddress(self.addr)
    }
    pub fn len(&self) -> u32 {
        self.len
    }
    pub fn is_write_only(&self) -> bool {
        self.flags & WRITE != 0
    }
    pub fn has_next(&self) -> bool {
        self.flags & NEXT != 0
    }
}

/// The descriptors of a chain, as far as they are as they must be.
pub struct Descriptors<'s, 'm> {
    memory: &'s Session<'m>,
    head: u16,
    table: u64,
    entries: u16,
    next: u16,
    left: u16,
    bytes: u32,
    in_table: bool,
}

impl Descriptors<'_, '_> {
    pub fn head_index(&self) -> u16 {
        self.head
    }

    fn descriptor(&self) -> Option<Descriptor> {
        let at = self.table.checked_add(u64::from(self.next) * DESCRIPTOR)?;
        let mut bytes = [0; DESCRIPTOR as usize];
        self.memory.read_slice(&mut bytes, GuestAddress(at)).ok()?;
        Some(Descriptor {
            addr: u64::from_le_bytes(*bytes.first_chunk()?),
            len: u32::from_le_bytes(*bytes[8..].first_chunk()?),
            flags: u16::from_le_bytes([bytes[12], bytes[13]]),
            next: u16::from_le_bytes([bytes[14], bytes[15]]),
        })
    }
}

impl Iterator for Descriptors<'_, '_> {
    type Item = Descriptor;

    fn next(&mut self) -> Option<Descriptor> {
        loop {
            if self.left == 0 || self.next >= self.entries {
                return None;
            }
            let d = self.descriptor()?;
            if d.flags & INDIRECT == 0 {
                self.bytes = self.bytes.checked_add(d.len)?;
                self.left = if d.has_next() { self.left - 1 } else { 0 };
                self.next = d.next;
                return Some(d);
            }
            // A table of its own, which has none in it (2.7.5.3).
            if self.in_table || !u64::from(d.len).is_multiple_of(DESCRIPTOR) {
                return None;
            }
            self.entries = u16::try_from(u64::from(d.len) / DESCRIPTOR).ok()?;
            (self.table, self.next, self.left, self.in_table) = (d.addr, 0, self.entries, true);
        }
    }
}

fn is_size(size: u16, most: u16) -> bool {
    size.is_power_of_two() && size <= most
}

impl TryFrom<QueueState> for Queue {
    type Error = Refused;

    fn try_from(state: QueueState) -> Result<Self, Refused> {
        let mut queue = Self::new(state.max_size)?;
        queue.try_set_size(state.size)?;
        queue.try_set_desc_table_address(GuestAddress(state.desc_table))?;
        queue.try_set_avail_ring_address(GuestAddress(state.avail_ring))?;
        queue.try_set_used_ring_address(GuestAddress(state.used_ring))?;
        queue.0 = state;
        Ok(queue)
    }
}

impl Queue {
    pub fn new(most: u16) -> Result<Self, Refused> {
        if !is_size(most, MOST) {
            return Err(Refused);
        }
        let mut queue = Self(QueueState {
            max_size: most,
            next_avail: 0,
            next_used: 0,
            event_idx_enabled: false,
            size: most,
            ready: false,
            desc_table: 0,
            avail_ring: 0,
            used_ring: 0,
        });
        queue.reset();
        Ok(queue)
    }

    pub fn reset(&mut self) {
        let QueueState { max_size, .. } = self.0;
        self.0 = QueueState {
            max_size,
            next_avail: 0,
            next_used: 0,
            event_idx_enabled: false,
            size: max_size,
            ready: false,
            desc_table: 0,
            avail_ring: 0,
            used_ring: 0,
        };
    }

    pub fn state(&self) -> QueueState {
        self.0
    }

    pub fn max_size(&self) -> u16 {
        self.0.max_size
    }

    pub fn size(&self) -> u16 {
        self.0.size
    }

    pub fn try_set_size(&mut self, size: u16) -> Result<(), Refused> {
        if !is_size(size, self.0.max_size) {
            return Err(Refused);
        }
        self.0.size = size;
        Ok(())
    }

    pub fn ready(&self) -> bool {
        self.0.ready
    }

    pub fn set_ready(&mut self, ready: bool) {
        self.0.ready = ready;
    }

    pub fn event_idx_enabled(&self) -> bool {
        self.0.event_idx_enabled
    }

    pub fn set_event_idx(&mut self, on: bool) {
        self.0.event_idx_enabled = on;
    }

    pub fn desc_table(&self) -> u64 {
        self.0.desc_table
    }

    pub fn avail_ring(&self) -> u64 {
        self.0.avail_ring
    }

    pub fn used_ring(&self) -> u64 {
        self.0.used_ring
    }

    pub fn try_set_desc_table_address(&mut self, at: GuestAddress) -> Result<(), Refused> {
        place(&mut self.0.desc_table, at, 16)
    }

    pub fn try_set_avail_ring_address(&mut self, at: GuestAddress) -> Result<(), Refused> {
        place(&mut self.0.avail_ring, at, 2)
    }

    pub fn try_set_used_ring_address(&mut self, at: GuestAddress) -> Result<(), Refused> {
        place(&mut self.0.used_ring, at, 4)
    }

    pub fn next_avail(&self) -> u16 {
        self.0.next_avail
    }

    pub fn set_next_avail(&mut self, next: u16) {
        self.0.next_avail = next;
    }

    pub fn next_used(&self) -> u16 {
        self.0.next_used
    }

    pub fn set_next_used(&mut self, next: u16) {
        self.0.next_used = next;
    }

    /// How far the driver is with what it makes available.
    pub fn avail_idx(&self, memory: &Session<'_>, order: Ordering) -> Result<Wrapping<u16>, Refused> {
        let at = self.0.avail_ring.checked_add(2).ok_or(Refused)?;
        memory.load(GuestAddress(at), order).map(|n| Wrapping(u16::from_le(n))).map_err(|_| Refused)
    }

    /// The next chain; none if there is none, or it cannot be had.
    pub fn pop_descriptor_chain<'s, 'm>(&mut self, memory: &'s Session<'m>) -> Option<Descriptors<'s, 'm>> {
        let QueueState { size, next_avail, avail_ring, desc_table, .. } = self.0;
        if !self.0.ready || avail_ring == 0 {
            return None;
        }
        let waiting = self.avail_idx(memory, Ordering::Acquire).ok()?.0.wrapping_sub(next_avail);
        if waiting == 0 || waiting > size {
            return None;
        }
        let at = avail_ring.checked_add(4 + 2 * u64::from(next_avail % size))?;
        let head = u16::from_le(memory.load(GuestAddress(at), Ordering::Acquire).ok()?);
        self.0.next_avail = next_avail.wrapping_add(1);
        Some(Descriptors {
            memory,
            head,
            table: desc_table,
            entries: size,
            next: head,
            left: size,
            bytes: 0,
            in_table: false,
        })
    }

    /// Gives a chain back: the element first, then the index that the driver looks at.
    pub fn add_used(&mut self, memory: &Session<'_>, head: u16, len: u32) -> Result<(), Refused> {
        let QueueState { size, next_used, used_ring, .. } = self.0;
        if head >= size {
            return Err(Refused);
        }
        let at = used_ring.checked_add(4 + 8 * u64::from(next_used % size)).ok_or(Refused)?;
        let element = u64::from(head) | u64::from(len) << 32;
        memory.write_slice(&element.to_le_bytes(), GuestAddress(at)).map_err(|_| Refused)?;
        self.0.next_used = next_used.wrapping_add(1);
        let at = used_ring.checked_add(2).ok_or(Refused)?;
        self.set_word(memory, at, self.0.next_used, Ordering::Release)
    }

    /// Has the driver notify; whether there is something already.
    pub fn enable_notification(&mut self, memory: &Session<'_>) -> Result<bool, Refused> {
        if self.0.event_idx_enabled {
            let at = self.0.used_ring.checked_add(4 + 8 * u64::from(self.0.size)).ok_or(Refused)?;
            self.set_word(memory, at, self.0.next_avail, Ordering::Relaxed)?;
        } else {
            self.set_word(memory, self.0.used_ring, 0, Ordering::Relaxed)?;
        }
        // What it has made available before it could see this is seen by us.
        fence(Ordering::SeqCst);
        Ok(self.avail_idx(memory, Ordering::Relaxed)?.0 != self.0.next_avail)
    }

    /// The driver need not notify. With events it does so once anyway, and no more until it is asked to.
    pub fn disable_notification(&mut self, memory: &Session<'_>) -> Result<(), Refused> {
        if self.0.event_idx_enabled {
            return Ok(());
        }
        self.set_word(memory, self.0.used_ring, NO_NOTIFY, Ordering::Relaxed)
    }

    fn set_word(&self, memory: &Session<'_>, at: u64, value: u16, order: Ordering) -> Result<(), Refused> {
        memory.store(value.to_le(), GuestAddress(at), order).map_err(|_| Refused)
    }
}

fn place(part: &mut u64, at: GuestAddress, align: u64) -> Result<(), Refused> {
    if !at.0.is_multiple_of(align) {
        return Err(Refused);
    }
    *part = at.0;
    Ok(())
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;
    use crate::dma::Dma;
    use mynah_mmu::{GuestRam, PhysMemory};
    use virtio_queue::{Queue as Crates, QueueState as CratesState, QueueT};

    const RAM: u64 = 1 << 16;

    /// xorshift64*.
    struct Rng(u64);
    impl Rng {
        fn below(&mut self, n: u64) -> u64 {
            self.0 ^= self.0 >> 12;
            self.0 ^= self.0 << 25;
            self.0 ^= self.0 >> 27;
            (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 20) % n
        }
    }

    /// Two queues in memories of their own that hold the same.
    struct Both {
        ours: Queue,
        theirs: Crates,
        memory: [std::sync::Arc<PhysMemory>; 2],
    }

    impl Both {
        fn dma(&self, n: usize) -> Dma {
            Dma::always(self.memory[n].clone())
        }
        fn same_memory(&self) -> bool {
            let read = |n: usize| {
                let mut bytes = vec![0; RAM as usize];
                self.memory[n].read(0, &mut bytes);
                bytes
            };
            read(0) == read(1)
        }
    }

    fn state(rng: &mut Rng) -> QueueState {
        let at = |rng: &mut Rng, align: u64| match rng.below(24) {
            0 => (RAM - 8) & !(align - 1),
            1 => !(align - 1),
            2 => 0,
            _ => rng.below(0x2000) & !(align - 1),
        };
        QueueState {
            max_size: 16,
            next_avail: rng.below(1 << 16) as u16,
            next_used: rng.below(1 << 16) as u16,
            event_idx_enabled: rng.below(2) == 0,
            size: 1 << rng.below(5),
            ready: rng.below(8) != 0,
            desc_table: at(rng, 16),
            avail_ring: at(rng, 2),
            used_ring: at(rng, 4),
        }
    }

    #[test]
    fn it_does_what_the_crate_does() {
        let mut rng = Rng(17);
        let mut chains = 0;
        for _ in 0..4000 {
            let s = state(&mut rng);
            let theirs = CratesState {
                max_size: s.max_size,
                next_avail: s.next_avail,
                next_used: s.next_used,
                event_idx_enabled: s.event_idx_enabled,
                size: s.size,
                ready: s.ready,
                desc_table: s.desc_table,
                avail_ring: s.avail_ring,
                used_ring: s.used_ring,
            };
            let memory = [(); 2].map(|()| PhysMemory::new(GuestRam::new(RAM).unwrap(), RAM));
            let mut both =
                Both { ours: Queue::try_from(s).unwrap(), theirs: Crates::try_from(theirs).unwrap(), memory };
            // Descriptors, heads and an index that are mostly sound.
            let put = |at: u64, bytes: &[u8]| {
                if at.checked_add(bytes.len() as u64).is_some_and(|end| end <= RAM) {
                    both.memory.iter().for_each(|m| m.write(at, bytes));
                }
            };
            for n in 0..24 {
                let flags =
                    [0, NEXT, NEXT, WRITE, NEXT | WRITE, INDIRECT, NEXT | INDIRECT][rng.below(7) as usize];
                let len = match rng.below(6) {
                    0 => u32::MAX,
                    1 => rng.below(64) as u32,
                    _ => 16 * rng.below(5) as u32,
                };
                let mut d = (s.desc_table.wrapping_add(16 * rng.below(20))).to_le_bytes().to_vec();
                d.extend_from_slice(&len.to_le_bytes());
                d.extend_from_slice(&flags.to_le_bytes());
                d.extend_from_slice(&(rng.below(20) as u16).to_le_bytes());
                put(s.desc_table.wrapping_add(16 * n), &d);
            }
            for n in 0..16 {
                put(s.avail_ring.wrapping_add(4 + 2 * n), &(rng.below(18) as u16).to_le_bytes());
            }
            let index = s.next_avail.wrapping_add(rng.below(19) as u16);
            put(s.avail_ring.wrapping_add(2), &index.to_le_bytes());
            for _ in 0..12 {
                let dmas = [both.dma(0), both.dma(1)];
                let [a, b] = [dmas[0].open().unwrap(), dmas[1].open().unwrap()];
                match rng.below(5) {
                    0 => {
                        let ours = both.ours.enable_notification(&a).ok();
                        assert_eq!(ours, both.theirs.enable_notification(&b).ok());
                    }
                    1 => {
                        let ours = both.ours.disable_notification(&a).is_ok();
                        assert_eq!(ours, both.theirs.disable_notification(&b).is_ok());
                    }
                    2 => {
                        let (head, len) = (rng.below(18) as u16, rng.below(1 << 32) as u32);
                        let ours = both.ours.add_used(&a, head, len).is_ok();
                        assert_eq!(ours, both.theirs.add_used(&b, head, len).is_ok());
                    }
                    _ => {
                        let ours = both.ours.pop_descriptor_chain(&a).map(|chain| {
                            let all = chain.head_index();
                            (
                                all,
                                chain.map(|d| (d.addr(), d.len(), d.is_write_only(), d.has_next())).collect(),
                            )
                        });
                        let theirs: Option<(u16, Vec<_>)> =
                            both.theirs.pop_descriptor_chain(&b).map(|chain| {
                                let all = chain.head_index();
                                (
                                    all,
                                    chain
                                        .map(|d| (d.addr(), d.len(), d.is_write_only(), d.has_next()))
                                        .collect(),
                                )
                            });
                        chains += usize::from(theirs.as_ref().is_some_and(|t| t.1.len() > 1));
                        assert_eq!(ours, theirs, "{s:x?}");
                    }
                }
                let CratesState { next_avail, next_used, .. } = both.theirs.state();
                assert_eq!((both.ours.next_avail(), both.ours.next_used()), (next_avail, next_used));
            }
            assert!(both.same_memory(), "{s:x?}");
        }
        assert!(chains > 300, "{chains} chains of several descriptors: too few to tell");
    }

    #[test]
    fn what_no_queue_can_be_is_refused() {
        assert!(Queue::new(0).is_err() && Queue::new(3).is_err() && Queue::new(32_768).is_ok());
        let sound = Queue::new(16).unwrap().state();
        for bad in [
            QueueState { size: 3, ..sound },
            QueueState { size: 32, ..sound },
            QueueState { size: 0, ..sound },
            QueueState { desc_table: 8, ..sound },
            QueueState { avail_ring: 1, ..sound },
            QueueState { used_ring: 2, ..sound },
        ] {
            assert!(Queue::try_from(bad).is_err(), "{bad:?}");
        }
    }
}
