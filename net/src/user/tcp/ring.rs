//! A queue of bytes in one piece of memory, which grows on demand and is given back when it is empty.
use smallvec::SmallVec;
use std::io::{IoSlice, IoSliceMut};

/// What a ring begins with, in bytes.
const FIRST: usize = 16 << 10;

#[derive(Default)]
pub(super) struct Ring {
    bytes: Vec<u8>,
    head: usize,
    len: usize,
}

impl Ring {
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes of memory it holds.
    pub fn capacity(&self) -> usize {
        self.bytes.len()
    }

    /// Makes room for `more` bytes beside what is in it.
    pub fn reserve(&mut self, more: usize) {
        let need = self.len + more;
        if need <= self.bytes.len() {
            return;
        }
        let mut bytes = vec![0; need.next_power_of_two().max(FIRST)];
        let (a, b) = self.data(0, self.len);
        bytes[..a.len()].copy_from_slice(a);
        bytes[a.len()..a.len() + b.len()].copy_from_slice(b);
        (self.bytes, self.head) = (bytes, 0);
    }

    /// Gives its memory back if nothing is in it.
    pub fn release(&mut self) {
        if self.len == 0 {
            *self = Self::default();
        }
    }

    /// `len` bytes from the `from`th on; both must be in it.
    pub fn data(&self, from: usize, len: usize) -> (&[u8], &[u8]) {
        debug_assert!(from + len <= self.len);
        if len == 0 {
            return (&[], &[]);
        }
        let cap = self.bytes.len();
        let start = (self.head + from) % cap;
        let first = len.min(cap - start);
        (&self.bytes[start..start + first], &self.bytes[..len - first])
    }

    /// All of it, to be written.
    pub fn slices(&self) -> SmallVec<[IoSlice<'_>; 2]> {
        let (a, b) = self.data(0, self.len);
        [a, b].into_iter().filter(|s| !s.is_empty()).map(IoSlice::new).collect()
    }

    /// Room for at most `most` bytes behind what is in it, to be read into; then [`Ring::filled`].
    pub fn room(&mut self, most: usize) -> SmallVec<[IoSliceMut<'_>; 2]> {
        let cap = self.bytes.len();
        let len = most.min(cap - self.len);
        if len == 0 {
            return SmallVec::new();
        }
        if self.len == 0 {
            self.head = 0;
        }
        let start = (self.head + self.len) % cap;
        let first = len.min(cap - start);
        let (low, high) = self.bytes.split_at_mut(start);
        [&mut high[..first], &mut low[..len - first]]
            .into_iter()
            .filter(|s| !s.is_empty())
            .map(IoSliceMut::new)
            .collect()
    }

    /// `n` bytes have been read into its room.
    pub fn filled(&mut self, n: usize) {
        self.len = (self.len + n).min(self.bytes.len());
    }

    /// Puts bytes at the end.
    pub fn push(&mut self, mut bytes: &[u8]) {
        self.reserve(bytes.len());
        let n = bytes.len();
        for mut slice in self.room(n) {
            let (now, later) = bytes.split_at(slice.len());
            slice.copy_from_slice(now);
            bytes = later;
        }
        self.filled(n);
    }

    /// Takes `n` bytes from the front, or all.
    pub fn consume(&mut self, n: usize) {
        let n = n.min(self.len);
        if n > 0 {
            self.head = (self.head + n) % self.bytes.len();
            self.len -= n;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_come_out_as_they_went_in_round_the_end_and_while_it_grows() {
        let mut ring = Ring::default();
        let (mut put, mut got) = (0u32, 0u32);
        let mut lengths = (1usize..).map(|i| i * 7919 % 5000);
        while got < 300_000 {
            let bytes: Vec<u8> = (0..lengths.next().unwrap()).map(|i| (put as usize + i) as u8).collect();
            ring.push(&bytes);
            put += bytes.len() as u32;
            let n = if put > 100_000 { ring.len() } else { ring.len() / 2 };
            let (a, b) = ring.data(0, n);
            for byte in a.iter().chain(b) {
                assert_eq!(*byte, got as u8);
                got += 1;
            }
            ring.consume(n);
        }
        assert!(ring.capacity() <= 128 << 10);
        assert!(ring.is_empty());
        ring.release();
        assert_eq!(ring.capacity(), 0);
    }
}
