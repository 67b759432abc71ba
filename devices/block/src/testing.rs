//! What the tests of this crate share.
use crate::storage::Storage;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

/// A file's name that nobody else has.
pub(crate) fn scratch(name: &str) -> PathBuf {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let n = NEXT.fetch_add(1, Relaxed);
    std::env::temp_dir().join(format!("mynah-block-{}-{n}-{name}", std::process::id()))
}

/// Numbers by seed (splitmix64).
pub(crate) struct Rng(pub u64);

impl Rng {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    pub(crate) fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
}

/// A disk that may lose what was not flushed, in any part.
pub(crate) struct Fragile {
    pub(crate) state: Mutex<(Vec<u8>, Vec<Loss>)>,
    /// Before how many more writes the power fails, the seed of what is lost then, and what is left after it.
    pub(crate) failure: Mutex<(u64, u64, Option<Vec<u8>>)>,
}

/// A write that was not flushed: where, and what stood there.
pub(crate) struct Loss {
    at: usize,
    before: Vec<u8>,
}

impl Fragile {
    pub(crate) fn new(bytes: Vec<u8>) -> Self {
        Self { state: Mutex::new((bytes, Vec::new())), failure: Mutex::new((u64::MAX, 0, None)) }
    }

    /// The bytes after a power failure: each sector that was written since the last flush may be old or new.
    pub(crate) fn after_failure(&self, rng: &mut Rng) -> Vec<u8> {
        let state = self.state.lock();
        let mut bytes = state.0.clone();
        let keep = rng.below(101);
        // Backwards, so that a sector that is lost has what stood there before all that was lost.
        for loss in state.1.iter().rev() {
            for (i, sector) in loss.before.chunks(512).enumerate() {
                if rng.below(100) >= keep {
                    let at = loss.at + i * 512;
                    bytes[at..at + sector.len()].copy_from_slice(sector);
                }
            }
        }
        bytes
    }
}

impl Fragile {
    /// What is in it.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        self.state.lock().0.clone()
    }

    /// Changes what is in it, behind the image's back.
    pub(crate) fn edit(&self, change: impl FnOnce(&mut Vec<u8>)) {
        change(&mut self.state.lock().0);
    }
}

impl Storage for Fragile {
    fn read_at(&self, at: u64, buf: &mut [u8]) -> io::Result<()> {
        let state = self.state.lock();
        buf.fill(0);
        let at = (at as usize).min(state.0.len());
        let n = buf.len().min(state.0.len() - at);
        buf[..n].copy_from_slice(&state.0[at..at + n]);
        Ok(())
    }

    fn write_at(&self, at: u64, data: &[u8]) -> io::Result<()> {
        if at > 1 << 28 {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        let fails = {
            let mut failure = self.failure.lock();
            failure.0 = failure.0.saturating_sub(1);
            (failure.0 == 0 && failure.2.is_none()).then_some(failure.1)
        };
        if let Some(seed) = fails {
            let left = self.after_failure(&mut Rng(seed));
            self.failure.lock().2 = Some(left);
        }
        let mut state = self.state.lock();
        let at = at as usize;
        let end = at + data.len();
        if state.0.len() < end {
            state.0.resize(end, 0);
        }
        // Sectors come whole, wherever a write begins.
        let (from, to) = (at & !511, end.next_multiple_of(512).min(state.0.len()));
        let before = state.0[from..to].to_vec();
        state.1.push(Loss { at: from, before });
        state.0[at..end].copy_from_slice(data);
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        self.state.lock().1.clear();
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.state.lock().0.len() as u64)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        if len > 1 << 28 {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.state.lock().0.resize(len as usize, 0);
        Ok(())
    }

    fn zero_at(&self, at: u64, len: u64, _unmap: bool) -> io::Result<()> {
        if len > 1 << 28 {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.write_at(at, &vec![0; len as usize])
    }

    fn extent_at(&self, at: u64) -> io::Result<(u64, bool)> {
        Ok((self.len()?.saturating_sub(at), true))
    }

    fn allocate(&self, _at: u64, _len: u64) -> io::Result<()> {
        Ok(())
    }
}

/// Bytes of a [`Sparse`] file that are there or not together.
const PAGE: u64 = 4096;

/// A file with holes, of any size: what was written is kept, in pages.
#[derive(Default)]
pub(crate) struct Sparse {
    pages: Mutex<BTreeMap<u64, Vec<u8>>>,
    len: AtomicU64,
    /// Bytes that were written.
    pub(crate) written: AtomicU64,
}

impl Sparse {
    /// Calls `then` with each page from `at` on, what of it is meant, and which of the `len` bytes that is.
    fn each(at: u64, len: usize, mut then: impl FnMut(u64, Range<usize>, Range<usize>)) {
        let mut done = 0;
        while done < len {
            let from = (at + done as u64) % PAGE;
            let n = ((PAGE - from) as usize).min(len - done);
            then((at + done as u64) / PAGE, from as usize..from as usize + n, done..done + n);
            done += n;
        }
    }
}

impl Storage for Sparse {
    fn read_at(&self, at: u64, buf: &mut [u8]) -> io::Result<()> {
        let pages = self.pages.lock();
        Self::each(at, buf.len(), |page, part, range| match pages.get(&page) {
            Some(bytes) => buf[range].copy_from_slice(&bytes[part]),
            None => buf[range].fill(0),
        });
        Ok(())
    }

    fn write_at(&self, at: u64, data: &[u8]) -> io::Result<()> {
        let mut pages = self.pages.lock();
        Self::each(at, data.len(), |page, part, range| {
            pages.entry(page).or_insert_with(|| vec![0; PAGE as usize])[part].copy_from_slice(&data[range]);
        });
        self.written.fetch_add(data.len() as u64, Relaxed);
        self.len.fetch_max(at + data.len() as u64, Relaxed);
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.len.load(Relaxed))
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.pages.lock().split_off(&len.div_ceil(PAGE));
        self.len.store(len, Relaxed);
        Ok(())
    }

    fn zero_at(&self, at: u64, len: u64, _unmap: bool) -> io::Result<()> {
        self.write_at(at, &vec![0; len as usize])
    }

    fn extent_at(&self, at: u64) -> io::Result<(u64, bool)> {
        let left = self.len()?.saturating_sub(at);
        let next = self.pages.lock().range(at / PAGE..).next().map_or(u64::MAX, |(page, _)| page * PAGE);
        let data = next <= at;
        let end = if data { (at / PAGE + 1) * PAGE } else { next };
        Ok((left.min(end - at), data))
    }

    fn disk_usage(&self) -> io::Result<u64> {
        Ok(self.pages.lock().len() as u64 * PAGE)
    }

    fn allocate(&self, _at: u64, _len: u64) -> io::Result<()> {
        Ok(())
    }
}
