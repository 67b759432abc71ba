//! The adapter's memory in a saved machine: pages that are not zero.
use crate::device::Invalid;
use mynah_mmu::{DeviceRam, PAGE_SIZE};
use serde::{Deserialize, Serialize, Serializer};
use serde_bytes::ByteBuf;
use std::hash::{DefaultHasher, Hash, Hasher};

/// A memory's contents: its size, and the pages that are not zero, by number, in order.
#[derive(Deserialize)]
pub struct Memory {
    size: u64,
    pages: Vec<(u32, ByteBuf)>,
}

/// As it is encoded.
#[derive(Serialize)]
struct Encoded<'a> {
    size: u64,
    pages: &'a [(u32, ByteBuf)],
}

/// As people see it: what it is a hash of would fill books.
#[derive(Serialize)]
struct Shown {
    size: u64,
    pages: usize,
    hash: u64,
}

impl Serialize for Memory {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        if s.is_human_readable() {
            let mut hash = DefaultHasher::new();
            self.pages.hash(&mut hash);
            return Shown { size: self.size, pages: self.pages.len(), hash: hash.finish() }.serialize(s);
        }
        Encoded { size: self.size, pages: &self.pages }.serialize(s)
    }
}

impl Memory {
    /// What `ram` holds.
    pub fn save(ram: &DeviceRam) -> Self {
        let used = |page: &u64| !ram.is_zero(page * PAGE_SIZE, PAGE_SIZE as usize);
        let copy = |page: u64| {
            let mut bytes = vec![0; PAGE_SIZE as usize];
            ram.read(page * PAGE_SIZE, &mut bytes);
            (page as u32, ByteBuf::from(bytes))
        };
        Self { size: ram.size(), pages: (0..ram.size() / PAGE_SIZE).filter(used).map(copy).collect() }
    }

    /// Has `ram` hold it.
    ///
    /// # Errors
    /// It is of another size, or damaged.
    pub fn restore(self, ram: &DeviceRam) -> Result<(), Invalid> {
        let ordered = self.pages.is_sorted_by(|a, b| a.0 < b.0);
        let inside = self.pages.iter().all(|(page, bytes)| {
            u64::from(*page) < ram.size() / PAGE_SIZE && bytes.len() == PAGE_SIZE as usize
        });
        if self.size != ram.size() || !ordered || !inside {
            return Err(Invalid("the video memory"));
        }
        let mut next = 0;
        for (page, bytes) in &self.pages {
            let at = u64::from(*page) * PAGE_SIZE;
            ram.clear(next, at - next);
            ram.write(at, bytes);
            next = at + PAGE_SIZE;
        }
        ram.clear(next, ram.size() - next);
        Ok(())
    }
}
