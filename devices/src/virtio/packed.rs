//! Packed rings (2.8): one ring of descriptors, which the driver makes available and the device uses in their places.
//!
//! ```text
//!   descriptor   address 64 | bytes 32 | id 16 | flags 16      an area of 32 bits for each side says when it is to hear
//! ```
//!
//! A descriptor is available when its AVAIL bit is the wrap counter's and its USED bit is not. A chain takes as many
//! places as it has descriptors (one if they are in a table of their own), and is used by one descriptor in the first
//! of the places that come next; its id says which it was.
use super::chain::{Broken, Chain, MOST_PIECES, Piece, Pieces};
use super::ring::Ring;
use crate::device::Invalid;
use crate::dma::Session;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::atomic::{Ordering, fence};
use vm_memory::{Bytes, GuestAddress};

/// Flags of descriptors (2.8.1).
mod flag {
    pub const NEXT: u16 = 1 << 0;
    pub const WRITE: u16 = 1 << 1;
    pub const INDIRECT: u16 = 1 << 2;
    pub const AVAILABLE: u16 = 1 << 7;
    pub const USED: u16 = 1 << 15;
}
/// Flags of event suppression (2.8.10).
mod events {
    pub const ENABLE: u16 = 0;
    pub const DISABLE: u16 = 1;
    pub const AT_DESCRIPTOR: u16 = 2;
}
/// Bytes of a descriptor.
const DESCRIPTOR: u64 = 16;
const NO_MEMORY: Broken = Broken("a ring that is not in memory");

/// A place in the ring, and the wrap counter there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Place {
    at: u16,
    wrap: bool,
}

impl Place {
    const FIRST: Self = Self { at: 0, wrap: true };

    fn advance(&mut self, by: u16, size: u16) {
        let at = u32::from(self.at) + u32::from(by);
        if at >= u32::from(size) {
            self.at = (at - u32::from(size)) as u16;
            self.wrap = !self.wrap;
        } else {
            self.at = at as u16;
        }
    }

    fn retreat(&mut self, by: u16, size: u16) {
        match self.at.checked_sub(by) {
            Some(at) => self.at = at,
            None => {
                self.at = (u32::from(self.at) + u32::from(size)).saturating_sub(by.into()) as u16;
                self.wrap = !self.wrap;
            }
        }
    }
}

/// A packed ring. What is in it is also what is saved.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Packed {
    size: u16,
    descriptors: u64,
    driver: u64,
    device: u64,
    event_idx: bool,
    next: Place,
    used: Place,
    /// Places of chains that were taken and not given back, by id.
    taken: BTreeMap<u16, u16>,
    /// Places used since the driver was last thought of.
    since: u16,
}

/// A descriptor.
struct Descriptor {
    piece: Piece,
    id: u16,
    flags: u16,
}

impl Packed {
    /// A ring of `size` entries with its descriptors and the driver's and the device's area at these addresses.
    pub fn new(size: u16, descriptors: u64, driver: u64, device: u64, event_idx: bool) -> Self {
        Self {
            size,
            descriptors,
            driver,
            device,
            event_idx,
            next: Place::FIRST,
            used: Place::FIRST,
            taken: BTreeMap::new(),
            since: 0,
        }
    }

    /// Whether it can be one that was saved.
    pub fn check(&self, most: u16) -> Result<(), Invalid> {
        let places: u64 = self.taken.values().map(|n| u64::from(*n)).sum();
        let sound = (1..=most).contains(&self.size)
            && self.next.at < self.size
            && self.used.at < self.size
            && self.since <= self.size
            && places <= u64::from(self.size);
        if sound { Ok(()) } else { Err(Invalid("a packed virtqueue")) }
    }

    fn word(memory: &Session<'_>, at: u64, order: Ordering) -> Result<u16, Broken> {
        memory.load(GuestAddress(at), order).map(u16::from_le).map_err(|_| NO_MEMORY)
    }

    fn set_word(memory: &Session<'_>, at: u64, value: u16, order: Ordering) -> Result<(), Broken> {
        memory.store(value.to_le(), GuestAddress(at), order).map_err(|_| NO_MEMORY)
    }

    fn place(&self, at: u16) -> u64 {
        // Whoever has a ring at the end of all addresses has none.
        self.descriptors.wrapping_add(u64::from(at) * DESCRIPTOR)
    }

    fn descriptor(memory: &Session<'_>, at: u64) -> Result<Descriptor, Broken> {
        let mut b = [0; DESCRIPTOR as usize];
        memory.read_slice(&mut b, GuestAddress(at)).map_err(|_| NO_MEMORY)?;
        let [a0, a1, a2, a3, a4, a5, a6, a7, l0, l1, l2, l3, i0, i1, f0, f1] = b;
        Ok(Descriptor {
            piece: Piece {
                at: u64::from_le_bytes([a0, a1, a2, a3, a4, a5, a6, a7]),
                len: u32::from_le_bytes([l0, l1, l2, l3]),
            },
            id: u16::from_le_bytes([i0, i1]),
            flags: u16::from_le_bytes([f0, f1]),
        })
    }

    fn is_available(&self, memory: &Session<'_>) -> Result<bool, Broken> {
        let flags = Self::word(memory, self.place(self.next.at).wrapping_add(14), Ordering::Acquire)?;
        let (available, used) = (flags & flag::AVAILABLE != 0, flags & flag::USED != 0);
        Ok(available == self.next.wrap && used != self.next.wrap)
    }

    fn add(chain: &mut Chain, piece: Piece, writable: bool) -> Result<(), Broken> {
        if piece.len == 0 {
            return Err(Broken("a descriptor of no bytes"));
        }
        match (writable, chain.writable.is_empty()) {
            (true, _) => chain.writable.push(piece),
            (false, true) => chain.readable.push(piece),
            (false, false) => return Err(Broken("a readable descriptor behind a writable one")),
        }
        if chain.readable.len() + chain.writable.len() > MOST_PIECES {
            return Err(Broken("a chain of too many descriptors"));
        }
        Ok(())
    }

    /// Adds the descriptors of a table.
    fn table(chain: &mut Chain, memory: &Session<'_>, table: Piece) -> Result<(), Broken> {
        if table.len == 0 || !u64::from(table.len).is_multiple_of(DESCRIPTOR) {
            return Err(Broken("a table of no whole descriptors"));
        }
        for n in 0..u64::from(table.len) / DESCRIPTOR {
            let at = table.at.checked_add(n * DESCRIPTOR).ok_or(NO_MEMORY)?;
            let d = Self::descriptor(memory, at)?;
            if d.flags & flag::INDIRECT != 0 {
                return Err(Broken("a table in a table"));
            }
            Self::add(chain, d.piece, d.flags & flag::WRITE != 0)?;
        }
        Ok(())
    }
}

impl Ring for Packed {
    fn pop(&mut self, memory: &Session<'_>) -> Result<Option<Chain>, Broken> {
        if !self.is_available(memory)? {
            return Ok(None);
        }
        let mut chain = Chain { head: 0, readable: Pieces::new(), writable: Pieces::new() };
        let (mut next, mut places) = (self.next, 0);
        loop {
            let d = Self::descriptor(memory, self.place(next.at))?;
            next.advance(1, self.size);
            places += 1;
            if d.flags & flag::INDIRECT == 0 {
                Self::add(&mut chain, d.piece, d.flags & flag::WRITE != 0)?;
            } else if places == 1 && d.flags & flag::NEXT == 0 {
                Self::table(&mut chain, memory, d.piece)?;
            } else {
                return Err(Broken("a table in a chain"));
            }
            if d.flags & flag::NEXT == 0 {
                chain.head = d.id;
                break;
            }
            if places >= self.size {
                return Err(Broken("a chain of descriptors with no end"));
            }
        }
        if super::chain::total(&chain.readable) + super::chain::total(&chain.writable) > u64::from(u32::MAX) {
            return Err(Broken("a chain of too many bytes"));
        }
        let places_taken: u64 = self.taken.values().map(|n| u64::from(*n)).sum();
        if places_taken + u64::from(places) > u64::from(self.size) {
            return Err(Broken("more available than there are entries"));
        }
        if self.taken.insert(chain.head, places).is_some() {
            return Err(Broken("an id that is in use"));
        }
        self.next = next;
        Ok(Some(chain))
    }

    fn unpop(&mut self, heads: &[u16]) {
        let places = heads.iter().filter_map(|head| self.taken.remove(head)).sum();
        self.next.retreat(places, self.size);
    }

    fn push_all(&mut self, memory: &Session<'_>, used: &[(u16, u32)]) -> Result<(), Broken> {
        let mut first = None;
        for (head, len) in used {
            // What was not taken was restored from a state that is none.
            let places = self.taken.remove(head).ok_or(Broken("a chain that was not taken"))?;
            let at = self.place(self.used.at);
            memory
                .write_slice(&len.to_le_bytes(), GuestAddress(at.wrapping_add(8)))
                .map_err(|_| NO_MEMORY)?;
            Self::set_word(memory, at.wrapping_add(12), *head, Ordering::Relaxed)?;
            let wrap = if self.used.wrap { flag::AVAILABLE | flag::USED } else { 0 };
            let flags = wrap | if *len > 0 { flag::WRITE } else { 0 };
            // The driver looks at the flags, and at those of the first one first: they come last.
            if first.is_none() {
                first = Some((at.wrapping_add(14), flags));
            } else {
                Self::set_word(memory, at.wrapping_add(14), flags, Ordering::Release)?;
            }
            self.used.advance(places, self.size);
            self.since = self.since.saturating_add(places).min(self.size);
        }
        let Some((at, flags)) = first else { return Ok(()) };
        Self::set_word(memory, at, flags, Ordering::Release)
    }

    fn wants_interrupt(&mut self, memory: &Session<'_>) -> Result<bool, Broken> {
        fence(Ordering::SeqCst);
        let since = std::mem::take(&mut self.since);
        let flags = Self::word(memory, self.driver.wrapping_add(2), Ordering::Relaxed)?;
        match flags & 3 {
            events::DISABLE => Ok(false),
            events::AT_DESCRIPTOR if self.event_idx => {
                let place = Self::word(memory, self.driver, Ordering::Relaxed)?;
                let same_round = (place >> 15 != 0) == self.used.wrap;
                let round = if same_round { 0 } else { i32::from(self.size) };
                // How far back that descriptor is.
                let back = i32::from(self.used.at) + round - i32::from(place & 0x7fff);
                Ok((1..=i32::from(since)).contains(&back))
            }
            _ => Ok(true),
        }
    }

    fn disable_notifications(&mut self, memory: &Session<'_>) -> Result<(), Broken> {
        Self::set_word(memory, self.device.wrapping_add(2), events::DISABLE, Ordering::Relaxed)
    }

    fn enable_notifications(&mut self, memory: &Session<'_>) -> Result<bool, Broken> {
        let mut flags = events::ENABLE;
        if self.event_idx {
            let place = self.next.at | u16::from(self.next.wrap) << 15;
            Self::set_word(memory, self.device, place, Ordering::Relaxed)?;
            flags = events::AT_DESCRIPTOR;
        }
        Self::set_word(memory, self.device.wrapping_add(2), flags, Ordering::Release)?;
        fence(Ordering::SeqCst);
        self.is_available(memory)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dma::Dma;
    use mynah_mmu::{GuestRam, PhysMemory};
    use std::sync::Arc;

    const RING: u64 = 0x1000;
    const DRIVER: u64 = 0x2000;
    const DEVICE: u64 = 0x2010;
    const TABLE: u64 = 0x3000;
    /// No power of two.
    const SIZE: u16 = 5;

    struct Test {
        memory: Arc<PhysMemory>,
        dma: Dma,
        ring: Packed,
        /// Where the driver adds, and where it looks.
        next: Place,
        seen: Place,
    }

    fn test(event_idx: bool) -> Test {
        let memory = PhysMemory::new(GuestRam::new(1 << 20).unwrap(), 1 << 20);
        Test {
            dma: Dma::always(memory.clone()),
            ring: Packed::new(SIZE, RING, DRIVER, DEVICE, event_idx),
            next: Place::FIRST,
            seen: Place::FIRST,
            memory,
        }
    }

    impl Test {
        fn descriptor(&self, at: u64, address: u64, len: u32, id: u16, flags: u16) {
            self.memory.write_u64(at, address);
            self.memory.write_u32(at + 8, len);
            self.memory.write_u16(at + 12, id);
            self.memory.write_u16(at + 14, flags);
        }

        /// Adds a chain: bytes of each descriptor, and whether the device writes it.
        fn add(&mut self, id: u16, pieces: &[(u32, bool)]) {
            for (n, (len, write)) in pieces.iter().enumerate() {
                let more = if n + 1 < pieces.len() { flag::NEXT } else { 0 };
                self.one(0x8000 + u64::from(*len), *len, id, more | if *write { flag::WRITE } else { 0 });
            }
        }

        fn one(&mut self, address: u64, len: u32, id: u16, flags: u16) {
            let wrap = if self.next.wrap { flag::AVAILABLE } else { flag::USED };
            self.descriptor(RING + 16 * u64::from(self.next.at), address, len, id, flags | wrap);
            self.next.advance(1, SIZE);
        }

        fn pop(&mut self) -> Result<Option<Chain>, Broken> {
            self.ring.pop(&self.dma.open().unwrap())
        }

        fn push(&mut self, id: u16, len: u32) {
            self.ring.push(&self.dma.open().unwrap(), id, len).unwrap();
        }

        /// What the driver finds used next, of a chain of so many places: id and bytes.
        fn used(&mut self, places: u16) -> Option<(u16, u32)> {
            let at = RING + 16 * u64::from(self.seen.at);
            let flags = self.memory.read_u16(at + 14);
            let both = if self.seen.wrap { flag::AVAILABLE | flag::USED } else { 0 };
            if flags & (flag::AVAILABLE | flag::USED) != both {
                return None;
            }
            self.seen.advance(places, SIZE);
            Some((self.memory.read_u16(at + 12), self.memory.read_u32(at + 8)))
        }

        fn wants(&mut self) -> bool {
            self.ring.wants_interrupt(&self.dma.open().unwrap()).unwrap()
        }
    }

    #[test]
    fn chains_are_taken_and_used_round_after_round() {
        let mut t = test(false);
        assert_eq!(t.pop(), Ok(None));
        for round in 0..20_u16 {
            t.add(7, &[(16, false), (round.into(), true), (1, true)][..if round == 0 { 1 } else { 3 }]);
            t.add(9, &[(4, false), (8, true)]);
            let first = t.pop().unwrap().unwrap();
            assert_eq!((first.head, first.readable.len()), (7, 1));
            let places = if round == 0 { 1 } else { 3 };
            assert_eq!(first.writable.len(), places - 1);
            let second = t.pop().unwrap().unwrap();
            assert_eq!((second.head, second.writable[0].len), (9, 8));
            assert_eq!(t.pop(), Ok(None), "round {round}");
            // Used in another order.
            t.push(9, 8);
            assert_eq!(t.used(2), Some((9, 8)));
            assert_eq!(t.used(1), None);
            t.push(7, 0);
            assert_eq!(t.used(places as u16), Some((7, 0)));
            assert_eq!(t.seen, t.next);
        }
    }

    #[test]
    fn several_chains_are_put_back_or_used_at_once() {
        let mut t = test(true);
        for round in 0..20_u16 {
            t.add(7, &[(1 + u32::from(round), true), (1, true)][usize::from(round % 2)..]);
            t.add(9, &[(8, true), (9, true)]);
            let heads: Vec<_> = std::iter::from_fn(|| t.pop().unwrap().map(|c| c.head)).collect();
            assert_eq!(heads, [7, 9]);
            // What the driver adds behind them is what it is to tell of.
            let session = t.dma.clone();
            let session = session.open().unwrap();
            assert_eq!(t.ring.enable_notifications(&session), Ok(false));
            let next = t.next.at | u16::from(t.next.wrap) << 15;
            assert_eq!(t.memory.read_u16(DEVICE), next, "round {round}");
            t.ring.unpop(&heads);
            let again: Vec<_> = std::iter::from_fn(|| t.pop().unwrap().map(|c| c.head)).collect();
            assert_eq!(again, heads, "round {round}");
            t.memory.write_u16(DRIVER + 2, events::AT_DESCRIPTOR);
            t.memory.write_u16(DRIVER, t.seen.at | u16::from(t.seen.wrap) << 15);
            t.ring.push_all(&session, &[(9, 8), (7, 0)]).unwrap();
            assert!(t.wants());
            assert_eq!((t.used(2), t.used(2 - round % 2)), (Some((9, 8)), Some((7, 0))), "round {round}");
            assert_eq!(t.seen, t.next);
        }
    }

    #[test]
    fn a_table_takes_one_place() {
        let mut t = test(false);
        for n in 0..4_u64 {
            let write = if n > 1 { flag::WRITE } else { 0 };
            t.descriptor(TABLE + 16 * n, 0x8000 + n, 10, 0, write);
        }
        t.one(TABLE, 64, 3, flag::INDIRECT);
        let chain = t.pop().unwrap().unwrap();
        assert_eq!((chain.head, chain.readable.len(), chain.writable.len()), (3, 2, 2));
        t.push(3, 20);
        assert_eq!(t.used(1), Some((3, 20)));
    }

    #[test]
    fn what_breaks_the_rules_is_found() {
        let wrong = |make: &dyn Fn(&mut Test)| {
            let mut t = test(false);
            make(&mut t);
            t.pop().unwrap_err().0
        };
        assert_eq!(wrong(&|t| t.add(1, &[(0, false)])), "a descriptor of no bytes");
        assert_eq!(
            wrong(&|t| t.add(1, &[(1, true), (1, false)])),
            "a readable descriptor behind a writable one"
        );
        assert_eq!(
            wrong(&|t| (0..SIZE).for_each(|_| t.one(0x8000, 1, 1, flag::NEXT))),
            "a chain of descriptors with no end"
        );
        assert_eq!(wrong(&|t| t.one(TABLE, 20, 1, flag::INDIRECT)), "a table of no whole descriptors");
        assert_eq!(wrong(&|t| t.one(TABLE, 16, 1, flag::INDIRECT | flag::NEXT)), "a table in a chain");
        assert_eq!(
            wrong(&|t| {
                t.descriptor(TABLE, TABLE, 16, 0, flag::INDIRECT);
                t.one(TABLE, 16, 1, flag::INDIRECT);
            }),
            "a table in a table"
        );
        assert_eq!(wrong(&|t| t.one(1 << 40, 16, 1, flag::INDIRECT)), "a ring that is not in memory");
        assert_eq!(wrong(&|t| t.ring.descriptors = 1 << 40), "a ring that is not in memory");
        let mut t = test(false);
        t.add(1, &[(1, true)]);
        t.add(1, &[(1, true)]);
        t.pop().unwrap();
        assert_eq!(t.pop().unwrap_err().0, "an id that is in use");
        // More than a round, of which nothing was given back.
        let mut t = test(false);
        (0..SIZE).for_each(|id| t.add(id, &[(1, true)]));
        (0..SIZE).for_each(|_| _ = t.pop().unwrap().unwrap());
        t.add(SIZE, &[(1, true)]);
        assert_eq!(t.pop().unwrap_err().0, "more available than there are entries");
    }

    #[test]
    fn the_driver_hears_when_it_has_asked_to() {
        let mut t = test(true);
        let ask = |t: &Test, place: u16, wrap: bool, flags: u16| {
            t.memory.write_u16(DRIVER, place | u16::from(wrap) << 15);
            t.memory.write_u16(DRIVER + 2, flags);
        };
        let use_one = |t: &mut Test| {
            t.add(1, &[(1, true)]);
            t.pop().unwrap().unwrap();
            t.push(1, 1);
            t.wants()
        };
        ask(&t, 0, true, events::ENABLE);
        assert!(use_one(&mut t));
        ask(&t, 0, true, events::DISABLE);
        assert!(!use_one(&mut t));
        // At descriptor 3, then at the first of the next round.
        ask(&t, 3, true, events::AT_DESCRIPTOR);
        assert_eq!([use_one(&mut t), use_one(&mut t)], [false, true]);
        ask(&t, 0, false, events::AT_DESCRIPTOR);
        assert_eq!([use_one(&mut t), use_one(&mut t), use_one(&mut t)], [false, true, false]);
        // One that was passed in the last round while two were used.
        ask(&t, 4, false, events::AT_DESCRIPTOR);
        let mut heard = Vec::new();
        for _ in 0..3 {
            for _ in 0..2 {
                t.add(1, &[(1, true)]);
                t.pop().unwrap().unwrap();
                t.push(1, 1);
            }
            heard.push(t.wants());
        }
        assert_eq!(heard, [false, true, false]);
    }

    #[test]
    fn the_device_says_when_it_is_to_be_notified() {
        let mut t = test(true);
        let dma = t.dma.clone();
        let memory = dma.open().unwrap();
        t.ring.disable_notifications(&memory).unwrap();
        assert_eq!(t.memory.read_u16(DEVICE + 2), events::DISABLE);
        t.add(1, &[(1, true), (1, true)]);
        assert!(t.ring.enable_notifications(&memory).unwrap(), "there is something already");
        t.pop().unwrap().unwrap();
        assert!(!t.ring.enable_notifications(&memory).unwrap());
        assert_eq!((t.memory.read_u16(DEVICE), t.memory.read_u16(DEVICE + 2)), (0x8002, 2));
        t.ring.event_idx = false;
        t.ring.enable_notifications(&memory).unwrap();
        assert_eq!(t.memory.read_u16(DEVICE + 2), events::ENABLE);
    }

    #[test]
    fn a_saved_one_goes_on_where_it_was() {
        let mut t = test(false);
        (0..3).for_each(|id| t.add(id, &[(1, true)]));
        let (a, b) = (t.pop().unwrap().unwrap(), t.pop().unwrap().unwrap());
        t.push(b.head, 1);
        let saved = postcard::to_stdvec(&t.ring).unwrap();
        t.ring = postcard::from_bytes(&saved).unwrap();
        assert!(t.ring.check(SIZE).is_ok() && t.ring.check(SIZE - 1).is_err());
        t.push(a.head, 1);
        assert_eq!(t.pop().unwrap().unwrap().head, 2);
        assert_eq!((t.used(1), t.used(1), t.used(1)), (Some((1, 1)), Some((0, 1)), None));
    }
}
