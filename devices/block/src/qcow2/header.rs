//! The header: what an image says of itself in its first cluster.
//!
//! Layout after QEMU's `docs/interop/qcow2.txt`. Whatever is read is checked here, so that the rest of the code may
//! count with it: tables have the sizes of tables, and offsets stay far below 2^63.
use crate::storage::{Storage, be32, be64, damaged, unsupported};
use std::io;

/// `QFI\xfb`.
pub const MAGIC: u32 = 0x5146_49fb;
/// Most bytes of an L1 table, a quarter of what QEMU takes: 512 TiB with clusters of 64 KiB. Snapshots hold several.
pub const MAX_L1_BYTES: u64 = 8 << 20;
/// Most bytes of a refcount table, as QEMU has it.
pub const MAX_REFCOUNT_TABLE_BYTES: u64 = 8 << 20;
/// Most internal snapshots, as QEMU has it.
pub const MAX_SNAPSHOTS: u32 = 65_536;
/// No file of the host is larger.
pub const MAX_OFFSET: u64 = 1 << 56;

/// Incompatible feature: refcounts may be wrong.
pub const DIRTY: u64 = 1;
/// Incompatible feature: structures are damaged, the image is not to be written.
pub const CORRUPT: u64 = 2;
/// Incompatible feature: the data are in another file.
const EXTERNAL_DATA: u64 = 4;
/// Incompatible feature: the compression is not zlib's.
pub const COMPRESSION: u64 = 8;
/// Incompatible feature: L2 entries with subclusters.
const EXTENDED_L2: u64 = 16;
/// Compatible feature: refcounts may be written late.
pub const LAZY_REFCOUNTS: u64 = 1;
/// Autoclear feature: the bitmaps extension is right.
pub const BITMAPS: u64 = 1;

const EXT_BACKING_FORMAT: u32 = 0xe279_2aca;
const EXT_FEATURE_NAMES: u32 = 0x6803_f857;
/// The bitmaps extension.
pub const EXT_BITMAPS: u32 = 0x2385_2875;

/// How clusters are compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// Deflate with a window of 4 KiB, without zlib's header.
    Zlib,
    /// A frame of Zstandard.
    Zstd,
}

/// An image's header.
#[derive(Clone, Debug)]
pub struct Header {
    /// 2 or 3.
    pub version: u32,
    /// As the image names it.
    pub backing_file: Option<String>,
    /// As the image names it.
    pub backing_format: Option<String>,
    /// A cluster has 1 << this bytes.
    pub cluster_bits: u32,
    /// The virtual disk's bytes.
    pub size: u64,
    /// Entries of the L1 table.
    pub l1_size: u32,
    /// Where that table is.
    pub l1_offset: u64,
    /// Where the table of refcount blocks is.
    pub refcount_offset: u64,
    /// How many clusters that has.
    pub refcount_clusters: u32,
    /// Internal snapshots.
    pub snapshots: u32,
    /// Where their table is.
    pub snapshots_offset: u64,
    /// Features without whose knowledge an image must not be opened.
    pub incompatible: u64,
    /// Features that may be unknown.
    pub compatible: u64,
    /// Features that who writes without knowing them switches off.
    pub autoclear: u64,
    /// A refcount has 1 << this bits.
    pub refcount_order: u32,
    /// Of compressed clusters.
    pub compression: Compression,
    /// Extensions that are kept as they are: type and bytes.
    pub extensions: Vec<(u32, Vec<u8>)>,
}

impl Header {
    /// Bytes of a cluster.
    pub fn cluster_size(&self) -> u64 {
        1 << self.cluster_bits
    }

    /// Bits of a refcount.
    pub fn refcount_bits(&self) -> u32 {
        1 << self.refcount_order
    }

    /// Entries of an L2 table.
    pub fn l2_entries(&self) -> u64 {
        self.cluster_size() / 8
    }

    /// L1 entries for a disk of `size` bytes.
    pub fn l1_entries_for(&self, size: u64) -> u64 {
        size.div_ceil(self.cluster_size() * self.l2_entries())
    }

    /// Reads and checks the header.
    ///
    /// # Errors
    /// It is none, is damaged, or asks for what is not there; the host's.
    pub fn read(storage: &dyn Storage) -> io::Result<Self> {
        let mut bytes = vec![0; 112];
        storage.read_at(0, &mut bytes)?;
        if be32(&bytes, 0) != MAGIC {
            return Err(damaged("not a qcow2 image"));
        }
        let version = be32(&bytes, 4);
        if !matches!(version, 2 | 3) {
            return Err(unsupported(format!("qcow2 version {version}: only 2 and 3 are known")));
        }
        let cluster_bits = be32(&bytes, 20);
        if !(9..=21).contains(&cluster_bits) {
            return Err(damaged(format!("cluster_bits is {cluster_bits}, and must be from 9 to 21")));
        }
        let cluster = 1u64 << cluster_bits;
        let v3 = version == 3;
        let length = if v3 { u64::from(be32(&bytes, 100)) } else { 72 };
        if length < if v3 { 104 } else { 72 } || length > cluster || length % 8 != 0 {
            return Err(damaged(format!("the header's length of {length} bytes cannot be")));
        }
        let incompatible = if v3 { be64(&bytes, 72) } else { 0 };
        let compression_type = if v3 && length >= 112 { bytes[104] } else { 0 };
        let mut header = Self {
            version,
            backing_file: None,
            backing_format: None,
            cluster_bits,
            size: be64(&bytes, 24),
            l1_size: be32(&bytes, 36),
            l1_offset: be64(&bytes, 40),
            refcount_offset: be64(&bytes, 48),
            refcount_clusters: be32(&bytes, 56),
            snapshots: be32(&bytes, 60),
            snapshots_offset: be64(&bytes, 64),
            incompatible,
            compatible: if v3 { be64(&bytes, 80) } else { 0 },
            autoclear: if v3 { be64(&bytes, 88) } else { 0 },
            refcount_order: if v3 { be32(&bytes, 96) } else { 4 },
            compression: if compression_type == 1 { Compression::Zstd } else { Compression::Zlib },
            extensions: Vec::new(),
        };
        header.refuse(be32(&bytes, 32), compression_type)?;
        header.check_tables(cluster)?;
        let (name_at, name_len) = (be64(&bytes, 8), be32(&bytes, 16));
        header.read_extensions(storage, length, name_at)?;
        if name_at != 0 {
            let within = length..=cluster.saturating_sub(u64::from(name_len));
            if name_len > 1023 || !within.contains(&name_at) {
                return Err(damaged("the backing file's name is not in the header's cluster"));
            }
            let mut name = vec![0; name_len as usize];
            storage.read_at(name_at, &mut name)?;
            let name =
                String::from_utf8(name).map_err(|_| damaged("the backing file's name is not UTF-8"))?;
            header.backing_file = Some(name).filter(|n| !n.is_empty());
        }
        Ok(header)
    }

    /// Refuses what is not there, by name.
    fn refuse(&self, crypt_method: u32, compression_type: u8) -> io::Result<()> {
        match crypt_method {
            0 => {}
            1 => return Err(unsupported("it is encrypted (AES), which is not supported")),
            2 => return Err(unsupported("it is encrypted (LUKS), which is not supported")),
            n => return Err(damaged(format!("encryption method {n} is unknown"))),
        }
        if self.incompatible & EXTERNAL_DATA != 0 {
            return Err(unsupported("its data are in an external data file, which is not supported"));
        }
        if self.incompatible & EXTENDED_L2 != 0 {
            return Err(unsupported("it has extended L2 entries (subclusters), which is not supported"));
        }
        let unknown = self.incompatible & !(DIRTY | CORRUPT | COMPRESSION);
        if unknown != 0 {
            return Err(unsupported(format!("it has the unknown incompatible features {unknown:#x}")));
        }
        let other = self.incompatible & COMPRESSION != 0;
        if other != (compression_type != 0) || compression_type > 1 {
            return Err(unsupported(format!("compression type {compression_type} is unknown")));
        }
        Ok(())
    }

    fn check_tables(&self, cluster: u64) -> io::Result<()> {
        if self.refcount_order > 6 {
            return Err(damaged(format!("refcount_order is {}, and must be at most 6", self.refcount_order)));
        }
        if self.size > i64::MAX as u64 {
            return Err(damaged(format!("a disk of {} bytes cannot be", self.size)));
        }
        let aligned = |at: u64| at.is_multiple_of(cluster) && at < MAX_OFFSET;
        if u64::from(self.l1_size) * 8 > MAX_L1_BYTES {
            return Err(damaged(format!("an L1 table of {} entries is too large", self.l1_size)));
        }
        if u64::from(self.l1_size) < self.l1_entries_for(self.size) {
            return Err(damaged("the L1 table is too small for the disk"));
        }
        if !aligned(self.l1_offset) || (self.l1_offset == 0 && self.l1_size > 0) {
            return Err(damaged(format!("the L1 table cannot be at {:#x}", self.l1_offset)));
        }
        if u64::from(self.refcount_clusters) * cluster > MAX_REFCOUNT_TABLE_BYTES.max(cluster) {
            return Err(damaged(format!(
                "a refcount table of {} clusters is too large",
                self.refcount_clusters
            )));
        }
        if !aligned(self.refcount_offset) || self.refcount_offset == 0 || self.refcount_clusters == 0 {
            return Err(damaged(format!(
                "the refcount table cannot be {} clusters at {:#x}",
                self.refcount_clusters, self.refcount_offset
            )));
        }
        if self.snapshots > MAX_SNAPSHOTS {
            return Err(damaged(format!("{} internal snapshots are too many", self.snapshots)));
        }
        if !aligned(self.snapshots_offset) {
            return Err(damaged(format!("the snapshots' table cannot be at {:#x}", self.snapshots_offset)));
        }
        Ok(())
    }

    fn read_extensions(&mut self, storage: &dyn Storage, mut at: u64, name_at: u64) -> io::Result<()> {
        let end = if name_at == 0 { self.cluster_size() } else { name_at.min(self.cluster_size()) };
        let mut head = [0; 8];
        while at + 8 <= end {
            storage.read_at(at, &mut head)?;
            let (kind, len) = (be32(&head, 0), u64::from(be32(&head, 4)));
            if kind == 0 {
                break;
            }
            if at + 8 + len > end {
                return Err(damaged("a header extension runs out of the header's cluster"));
            }
            let mut data = vec![0; len as usize];
            storage.read_at(at + 8, &mut data)?;
            match kind {
                EXT_BACKING_FORMAT => {
                    self.backing_format =
                        Some(String::from_utf8_lossy(&data).into_owned()).filter(|f| !f.is_empty());
                }
                EXT_FEATURE_NAMES => {}
                _ => self.extensions.push((kind, data)),
            }
            at += 8 + len.next_multiple_of(8);
        }
        Ok(())
    }

    /// The header as it stands in the file: up to one cluster.
    ///
    /// # Errors
    /// The names do not fit into a cluster.
    pub fn to_bytes(&self) -> io::Result<Vec<u8>> {
        let mut out = Vec::new();
        let be32 = |out: &mut Vec<u8>, n: u32| out.extend(n.to_be_bytes());
        let be64 = |out: &mut Vec<u8>, n: u64| out.extend(n.to_be_bytes());
        be32(&mut out, MAGIC);
        be32(&mut out, self.version);
        out.extend([0; 12]);
        be32(&mut out, self.cluster_bits);
        be64(&mut out, self.size);
        be32(&mut out, 0);
        be32(&mut out, self.l1_size);
        be64(&mut out, self.l1_offset);
        be64(&mut out, self.refcount_offset);
        be32(&mut out, self.refcount_clusters);
        be32(&mut out, self.snapshots);
        be64(&mut out, self.snapshots_offset);
        if self.version == 3 {
            be64(&mut out, self.incompatible);
            be64(&mut out, self.compatible);
            be64(&mut out, self.autoclear);
            be32(&mut out, self.refcount_order);
            be32(&mut out, 112);
            out.push(u8::from(self.compression == Compression::Zstd));
            out.extend([0; 7]);
        }
        let mut extension = |kind: u32, data: &[u8]| {
            be32(&mut out, kind);
            be32(&mut out, data.len() as u32);
            out.extend(data);
            out.resize(out.len().next_multiple_of(8), 0);
        };
        if let Some(format) = &self.backing_format {
            extension(EXT_BACKING_FORMAT, format.as_bytes());
        }
        for (kind, data) in &self.extensions {
            extension(*kind, data);
        }
        if self.version == 3 && self.cluster_bits > 10 {
            extension(EXT_FEATURE_NAMES, &feature_names());
        }
        extension(0, &[]);
        if let Some(name) = &self.backing_file {
            let at = out.len() as u64;
            out.extend(name.as_bytes());
            out[8..16].copy_from_slice(&at.to_be_bytes());
            out[16..20].copy_from_slice(&(name.len() as u32).to_be_bytes());
        }
        let fits = out.len() as u64 <= self.cluster_size();
        if !fits || self.backing_file.as_ref().is_some_and(|n| n.len() > 1023) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "the backing file's name is too long"));
        }
        Ok(out)
    }
}

/// What bits mean, for programs that do not know them.
fn feature_names() -> Vec<u8> {
    let names = [
        (0u8, 0u8, "dirty bit"),
        (0, 1, "corrupt bit"),
        (0, 2, "external data file"),
        (0, 3, "compression type"),
        (0, 4, "extended L2 entries"),
        (1, 0, "lazy refcounts"),
        (2, 0, "bitmaps"),
        (2, 1, "raw external data"),
    ];
    let mut out = Vec::new();
    for (kind, bit, name) in names {
        out.extend([kind, bit]);
        out.extend(name.as_bytes());
        out.resize(out.len().next_multiple_of(48), 0);
    }
    out
}
