//! A ring of descriptors, as its five registers have it (317453, 3.2.6 and 3.4).
use super::regs::ring as at;
use serde::{Deserialize, Serialize};

/// Bytes of a descriptor; those of packet split have twice as many.
pub(super) const DESCRIPTOR: u64 = 16;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Ring {
    pub(super) base: u64,
    /// Its length in bytes, a multiple of 128.
    pub(super) len: u32,
    /// The next descriptor that the card takes.
    pub(super) head: u32,
    /// Behind the last one that is the card's.
    pub(super) tail: u32,
    /// RXDCTL or TXDCTL: kept.
    pub(super) control: u32,
}

impl Ring {
    /// How many descriptors of this size it has.
    pub(super) fn count(&self, size: u64) -> u32 {
        self.len / size as u32
    }

    /// Where a descriptor is.
    pub(super) fn at(&self, index: u32, size: u64) -> u64 {
        self.base.wrapping_add(u64::from(index) * size)
    }

    /// Whether its registers are those of a ring: not of one without length, or with the card's place beyond its end.
    pub(super) fn is_sound(&self, size: u64) -> bool {
        self.head < self.count(size)
    }

    /// Descriptors that are the card's. A tail beyond the end is never come to: all of them are.
    pub(super) fn available(&self, size: u64) -> u32 {
        let count = self.count(size);
        match () {
            () if !self.is_sound(size) || self.head == self.tail => 0,
            () if self.tail >= count => count,
            () if self.tail > self.head => self.tail - self.head,
            () => count - self.head + self.tail,
        }
    }

    /// The head moves on by one.
    pub(super) fn advance(&mut self, size: u64) {
        self.head += 1;
        if self.head >= self.count(size) {
            self.head = 0;
        }
    }

    pub(super) fn read(&self, register: u32) -> u32 {
        match register {
            at::BASE_LOW => self.base as u32,
            at::BASE_HIGH => (self.base >> 32) as u32,
            at::LEN => self.len,
            at::HEAD => self.head,
            at::TAIL => self.tail,
            at::CONTROL => self.control,
            _ => 0,
        }
    }

    pub(super) fn write(&mut self, register: u32, value: u32) {
        match register {
            at::BASE_LOW => self.base = self.base >> 32 << 32 | u64::from(value & !0xf),
            at::BASE_HIGH => self.base = self.base & 0xffff_ffff | u64::from(value) << 32,
            at::LEN => self.len = value & 0xf_ff80,
            at::HEAD => self.head = value & 0xffff,
            at::TAIL => self.tail = value & 0xffff,
            at::CONTROL => self.control = value,
            _ => {}
        }
    }

    /// Whether a guest could have written these registers.
    pub(super) fn is_valid(&self) -> bool {
        self.base & 0xf == 0 && self.len & !0xf_ff80 == 0 && (self.head | self.tail) >> 16 == 0
    }
}
