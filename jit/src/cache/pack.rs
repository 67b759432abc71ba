//! The format of compiled regions on disk: entries, and packs of them with an index.
//!
//! ```text
//!   pack:  magic, number of records, bytes of data, checksum of all this and of the index | index: records |
//!   data: entries at multiples of 16 entry: checksum of the rest | mode, instructions, ops, parts, bytes of
//!   code | parts: distance, length | the parts' bytes | code
//! ```
//!
//! Numbers are little-endian. Checksums are BLAKE3 with the cache key as theirs: see [`crate::cache`] for what
//! is trusted and why.
#![cfg_attr(
    not(unix),
    expect(dead_code, reason = "nothing is kept there; what is shared in memory is of the same form")
)]
#[cfg(unix)]
pub(crate) use file::Pack;
use std::hash::Hasher;

/// What a file begins with: the format's name and version.
const MAGIC: [u8; 16] = *b"Mynah code   001";
/// Bytes of a pack's header: magic, number of records, length of the data, checksum of header and index.
pub(crate) const HEADER: usize = 64;
/// Bytes of a record: hash of the head, name of the region, place, length, time of the last use.
pub(crate) const RECORD: usize = 40;
/// Bytes of a checksum.
pub(crate) const SUM: usize = 32;
/// Alignment of a region.
pub(crate) const ALIGN: u64 = 16;
/// Bytes before a region's parts: mode, instructions, ops, parts, length of the code.
const FIXED: usize = 20;
/// Most parts of a region, and most bytes: more is not looked at.
pub(crate) const MAX_PARTS: usize = 4096;
pub(crate) const MAX_REGION: u64 = 4 << 20;
/// Most bytes of a pack, and most records: of a file that says more nothing is read, so that what a start costs does
/// not hang on what is written there. An index of so many records takes 40 MiB.
pub(crate) const MAX_PACK: u64 = 4 << 30;
pub(crate) const MAX_RECORDS: u64 = 1 << 20;
/// The hash of everything that code depends on but the guest's bytes and mode.
pub(crate) type Key = [u8; 32];

/// A hash of a region's mode and parts, by which it is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Id(pub u128);

/// A hash of a region's mode and first block, by which it is looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Head(pub u64);

impl Head {
    /// Of a block's bytes.
    pub fn of(mode: u32, bytes: &[u8]) -> Self {
        // What is found by it is compared with the guest's bytes: it need not be more than fast.
        let mut h = rustc_hash::FxHasher::default();
        h.write_u32(mode);
        h.write(bytes);
        Self(h.finish())
    }
}

/// A block of a region: distance from the region's first byte, and the guest's bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    pub delta: i64,
    pub bytes: Box<[u8]>,
}

/// A region as it is kept; the first piece is where it is entered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry<Code> {
    /// Mode key of its blocks.
    pub mode: u32,
    /// Instructions of the guest.
    pub instructions: u32,
    /// Decoded ops of all pieces, ends of cut blocks included.
    pub ops: u32,
    pub pieces: Box<[Piece]>,
    pub code: Code,
}

impl<Code: AsRef<[u8]>> Entry<Code> {
    /// What it is looked for by.
    pub fn head(&self) -> Head {
        Head::of(self.mode, self.pieces.first().map_or(&[], |p| &p.bytes))
    }

    /// What it is known by.
    pub fn id(&self) -> Id {
        let mut h = blake3::Hasher::new();
        h.update(&self.mode.to_le_bytes());
        for p in &self.pieces {
            h.update(&p.delta.to_le_bytes());
            h.update(&(p.bytes.len() as u64).to_le_bytes());
            h.update(&p.bytes);
        }
        let mut out = [0; 16];
        out.copy_from_slice(&h.finalize().as_bytes()[..16]);
        Id(u128::from_le_bytes(out))
    }

    /// As bytes, with the checksum before them.
    pub fn seal(&self, key: &Key) -> Vec<u8> {
        let code = self.code.as_ref();
        let mut out = vec![0; SUM];
        for n in [self.mode, self.instructions, self.ops, self.pieces.len() as u32, code.len() as u32] {
            out.extend_from_slice(&n.to_le_bytes());
        }
        for p in &self.pieces {
            out.extend_from_slice(&p.delta.to_le_bytes());
            out.extend_from_slice(&(p.bytes.len() as u32).to_le_bytes());
        }
        for p in &self.pieces {
            out.extend_from_slice(&p.bytes);
        }
        out.extend_from_slice(code);
        let sum = blake3::keyed_hash(key, &out[SUM..]);
        out[..SUM].copy_from_slice(sum.as_bytes());
        out
    }
}

/// A region where it lies in a file, read without trust.
pub(crate) struct View<'a> {
    pub mode: u32,
    pub instructions: u32,
    ops: u32,
    pieces: Vec<(i64, &'a [u8])>,
    code: &'a [u8],
}

impl<'a> View<'a> {
    /// Of bytes behind a checksum; `None` if they do not make sense.
    pub fn parse(bytes: &'a [u8]) -> Option<Self> {
        let (fixed, rest) = bytes.split_at_checked(FIXED)?;
        let n = |at: usize| u32::from_le_bytes([fixed[at], fixed[at + 1], fixed[at + 2], fixed[at + 3]]);
        let (parts, code_len) = (n(12) as usize, n(16) as usize);
        if parts == 0 || parts > MAX_PARTS {
            return None;
        }
        let (list, mut rest) = rest.split_at_checked(parts * 12)?;
        let mut pieces = Vec::with_capacity(parts);
        for p in list.chunks_exact(12) {
            let (delta, len) = p.split_at(8);
            let delta = i64::from_le_bytes(delta.try_into().ok()?);
            let len = u32::from_le_bytes(len.try_into().ok()?) as usize;
            let bytes;
            (bytes, rest) = rest.split_at_checked(len)?;
            pieces.push((delta, bytes));
        }
        let sound = pieces[0].0 == 0 && pieces.iter().all(|p| !p.1.is_empty()) && !rest.is_empty();
        let view = Self { mode: n(0), instructions: n(4), ops: n(8), pieces, code: rest };
        (sound && rest.len() == code_len).then_some(view)
    }

    /// The blocks it was made of: distance from the first, and bytes.
    pub fn pieces(&self) -> impl Iterator<Item = (i64, &'a [u8])> + '_ {
        self.pieces.iter().copied()
    }

    pub fn entry(&self) -> Entry<Vec<u8>> {
        let pieces = self.pieces.iter().map(|&(delta, bytes)| Piece { delta, bytes: bytes.into() });
        Entry {
            mode: self.mode,
            instructions: self.instructions,
            ops: self.ops,
            pieces: pieces.collect(),
            code: self.code.to_vec(),
        }
    }
}

/// What a pack's index says of a region, or (without a length) that a region of another pack was used.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Record {
    pub head: Head,
    pub id: Id,
    pub offset: u64,
    pub len: u32,
    pub used: u32,
}

impl Record {
    fn put(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.head.0.to_le_bytes());
        out.extend_from_slice(&self.id.0.to_le_bytes());
        out.extend_from_slice(&self.offset.to_le_bytes());
        out.extend_from_slice(&self.len.to_le_bytes());
        out.extend_from_slice(&self.used.to_le_bytes());
    }

    fn get(b: &[u8; RECORD]) -> Self {
        fn part<const N: usize>(b: &[u8; RECORD], at: usize) -> [u8; N] {
            std::array::from_fn(|n| b[at + n])
        }
        Self {
            head: Head(u64::from_le_bytes(part(b, 0))),
            id: Id(u128::from_le_bytes(part(b, 8))),
            offset: u64::from_le_bytes(part(b, 24)),
            len: u32::from_le_bytes(part(b, 32)),
            used: u32::from_le_bytes(part(b, 36)),
        }
    }
}

/// Header and index of a pack of which `data` bytes follow.
pub(crate) fn front(records: &[Record], data: u64, key: &Key) -> Vec<u8> {
    let mut out = Vec::with_capacity(HEADER + records.len() * RECORD);
    out.extend_from_slice(&MAGIC);
    out.extend_from_slice(&(records.len() as u64).to_le_bytes());
    out.extend_from_slice(&data.to_le_bytes());
    out.extend_from_slice(&[0; SUM]);
    for r in records {
        r.put(&mut out);
    }
    let sum = blake3::keyed_hash(key, &out);
    out[HEADER - SUM..HEADER].copy_from_slice(sum.as_bytes());
    out
}

/// Packs as files.
#[cfg(unix)]
mod file {
    use super::{HEADER, Key, MAGIC, MAX_PACK, MAX_RECORDS, MAX_REGION, RECORD, Record, SUM};
    use memmap2::Mmap;
    use rustix::fs::{Mode, OFlags};
    use std::fs::File;
    use std::io;
    use std::os::unix::fs::{FileExt, MetadataExt};
    use std::sync::atomic::AtomicBool;

    /// An open pack.
    pub(crate) struct Pack {
        pub name: String,
        pub file: File,
        map: Mmap,
        pub records: Vec<Record>,
        /// A region of it was used by this process.
        pub used: AtomicBool,
        /// One was damaged.
        pub damaged: AtomicBool,
    }

    impl Pack {
        /// Opens and checks a pack; an error says what is wrong with it.
        pub fn open(dir: &File, name: &str, key: &Key) -> io::Result<Self> {
            let bad = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_owned());
            let file = open_own(dir, name)?;
            let len = file.metadata()?.len();
            if len > MAX_PACK {
                return Err(bad("it is longer than a pack can be"));
            }
            let mut front = vec![0; HEADER];
            file.read_exact_at(&mut front, 0)?;
            if front[..16] != MAGIC {
                return Err(bad("it is of another format"));
            }
            let word = |at: usize| u64::from_le_bytes(std::array::from_fn(|n| front[at + n]));
            let (count, data) = (word(16), word(24));
            if count > MAX_RECORDS {
                return Err(bad("it has more records than a pack can have"));
            }
            let index = Some(count * RECORD as u64).filter(|&n| n <= len);
            let Some(total) = index.and_then(|n| n.checked_add(data)?.checked_add(HEADER as u64)) else {
                return Err(bad("its lengths do not fit"));
            };
            if total != len {
                return Err(bad("it is cut short, or too long"));
            }
            front.resize(HEADER + count as usize * RECORD, 0);
            file.read_exact_at(&mut front[HEADER..], HEADER as u64)?;
            let mut sum = [0; SUM];
            sum.copy_from_slice(&front[HEADER - SUM..HEADER]);
            front[HEADER - SUM..HEADER].fill(0);
            if blake3::keyed_hash(key, &front) != sum {
                return Err(bad("its index is damaged, or of another build, host or CPU model"));
            }
            let (records, _) = front[HEADER..].as_chunks::<RECORD>();
            let records = records.iter().map(Record::get).collect();
            // SAFETY: see the module's text: packs are replaced, never changed, and belong to this user alone;
            // what is read is copied and then checked.
            let map = unsafe { Mmap::map(&file)? };
            let name = name.to_owned();
            Ok(Self {
                name,
                file,
                map,
                records,
                used: AtomicBool::new(false),
                damaged: AtomicBool::new(false),
            })
        }

        /// A region's bytes, checksum first.
        pub fn bytes(&self, r: &Record) -> Option<&[u8]> {
            let start = usize::try_from(r.offset).ok()?;
            let bytes = self.map.get(start..start.checked_add(r.len as usize)?)?;
            // What is no longer there must not be touched.
            let len = self.file.metadata().ok()?.len();
            (u64::from(r.len) <= MAX_REGION && r.len as usize > SUM && len >= self.map.len() as u64)
                .then_some(bytes)
        }

        /// A private copy of a region's bytes, if they are what was written.
        pub fn checked(&self, r: &Record, key: &Key) -> Option<Vec<u8>> {
            let copy = self.bytes(r)?.to_vec();
            let (sum, payload) = copy.split_first_chunk::<SUM>()?;
            (blake3::keyed_hash(key, payload) == *sum).then_some(copy)
        }
    }

    /// Opens a file of the folder that is this user's own and nobody else's.
    fn open_own(dir: &File, name: &str) -> io::Result<File> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let file = File::from(rustix::fs::openat(dir, name, flags, Mode::empty())?);
        let m = file.metadata()?;
        let denied = |what: &str| Err(io::Error::new(io::ErrorKind::PermissionDenied, what.to_owned()));
        if !m.is_file() {
            return denied("it is not a plain file");
        }
        if m.uid() != rustix::process::geteuid().as_raw() {
            return denied("it belongs to another user");
        }
        if m.mode() & 0o077 != 0 {
            return denied("others may read or write it");
        }
        match m.nlink() {
            1 => Ok(file),
            // It has been replaced just now.
            0 => Err(io::ErrorKind::NotFound.into()),
            _ => denied("it has several names"),
        }
    }
}
