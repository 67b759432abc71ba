//! New images.
use super::header::{self, Compression, Header};
use super::{BackingName, COPIED, OpenMode, Qcow2};
use crate::image::Image;
use crate::storage::Storage;
use std::io;
use std::sync::Arc;

/// What of an image is set aside when it is made: `preallocation=`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Preallocation {
    /// Nothing.
    #[default]
    Off,
    /// Its tables.
    Metadata,
    /// Its room in the host's file system too.
    Falloc,
    /// All is written.
    Full,
}

/// What is chosen of a new image.
#[derive(Clone, Debug)]
pub struct CreateOptions {
    /// The disk's bytes.
    pub size: u64,
    /// `compat=`: 2 (0.10) or 3 (1.1).
    pub version: u32,
    /// `cluster_size=`: a power of two from 512 to 2 MiB.
    pub cluster_size: u64,
    /// `refcount_bits=`: a power of two up to 64.
    pub refcount_bits: u32,
    /// `lazy_refcounts=`.
    pub lazy_refcounts: bool,
    /// `compression_type=`.
    pub compression: Compression,
    /// `preallocation=`.
    pub preallocation: Preallocation,
    /// `backing_file=`, `backing_fmt=`.
    pub backing: BackingName,
}

impl Default for CreateOptions {
    fn default() -> Self {
        Self {
            size: 0,
            version: 3,
            cluster_size: 65_536,
            refcount_bits: 16,
            lazy_refcounts: false,
            compression: Compression::Zlib,
            preallocation: Preallocation::Off,
            backing: BackingName::default(),
        }
    }
}

impl CreateOptions {
    /// Whether such an image can be.
    ///
    /// # Errors
    /// Why not.
    pub fn validate(&self) -> io::Result<()> {
        plan(self)?.to_bytes().map(drop)
    }
}

fn invalid(text: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, text.into())
}

impl Qcow2 {
    /// Makes a new image in `storage`, which is empty.
    ///
    /// # Errors
    /// What is chosen cannot be; the host's.
    pub fn create(storage: &Arc<dyn Storage>, options: &CreateOptions) -> io::Result<()> {
        let header = plan(options)?;
        let cluster = header.cluster_size();
        let clusters = |bytes: u64| bytes.div_ceil(cluster);
        let l1 = clusters(u64::from(header.l1_size) * 8).max(1);
        let per_block = (cluster * 8) >> header.refcount_order;
        // The blocks count themselves and the table that names them.
        let (mut blocks, mut table) = (1, 1);
        loop {
            let need = (1 + table + blocks + l1).div_ceil(per_block);
            let more = clusters(need * 8);
            if (need, more) == (blocks, table) {
                break;
            }
            (blocks, table) = (need, more);
        }
        let l1_offset = (1 + table + blocks) * cluster;
        let header =
            Header { refcount_offset: cluster, refcount_clusters: table as u32, l1_offset, ..header };
        let mut bytes = header.to_bytes()?;
        bytes.resize(cluster as usize, 0);
        let entries: Vec<u8> = (0..blocks).flat_map(|i| ((1 + table + i) * cluster).to_be_bytes()).collect();
        storage.set_len(l1_offset + l1 * cluster)?;
        storage.write_at(0, &bytes)?;
        storage.write_at(cluster, &entries)?;
        let image = {
            // The counters are those of an image that is there: only they are missing.
            let mode = OpenMode { read_only: false, check: true };
            let image = Self::open(storage.clone(), None, mode)?;
            let mut meta = image.meta.lock();
            for n in 0..1 + table + blocks + l1 {
                meta.refs.set(&**storage, n, 1)?;
            }
            image.flush_meta(&mut meta)?;
            drop(meta);
            image
        };
        if options.preallocation != Preallocation::Off {
            image.preallocate(options.preallocation)?;
        }
        image.flush()
    }

    /// Gives every cluster of the disk its place.
    fn preallocate(&self, how: Preallocation) -> io::Result<()> {
        let clusters = self.size().div_ceil(self.cluster_size());
        let mut at = 0;
        while at < clusters {
            let n = (clusters - at).min(self.l2_entries() - (at & (self.l2_entries() - 1)));
            let mut meta = self.meta.lock();
            self.own_l2(&mut meta, self.place(at).0)?;
            let host = self.allocate(&mut meta, n)?;
            let bytes = n << self.cluster_bits;
            match how {
                Preallocation::Falloc => self.storage.allocate(host, bytes)?,
                Preallocation::Full => crate::storage::write_zeros(&*self.storage, host, bytes)?,
                Preallocation::Off | Preallocation::Metadata => {}
            }
            self.link(&mut meta, at..at + n, |i| (host + (i << self.cluster_bits)) | COPIED)?;
            if self.storage.len()? < host + bytes {
                self.storage.set_len(host + bytes)?;
            }
            self.flush_meta(&mut meta)?;
            at += n;
        }
        Ok(())
    }
}

/// The header, but for where things are.
fn plan(options: &CreateOptions) -> io::Result<Header> {
    let CreateOptions { size, version, cluster_size, refcount_bits, .. } = *options;
    if !cluster_size.is_power_of_two() || !(512..=2 << 20).contains(&cluster_size) {
        return Err(invalid(format!("cluster_size={cluster_size}: a power of two from 512 to 2M")));
    }
    if !refcount_bits.is_power_of_two() || refcount_bits > 64 {
        return Err(invalid(format!("refcount_bits={refcount_bits}: a power of two from 1 to 64")));
    }
    let v3 = version == 3;
    if !v3 && refcount_bits != 16 {
        return Err(invalid("refcount_bits= other than 16 needs compat=1.1"));
    }
    if !v3 && (options.lazy_refcounts || options.compression == Compression::Zstd) {
        return Err(invalid("lazy_refcounts=on and compression_type=zstd need compat=1.1"));
    }
    let backed = options.backing.file.is_some();
    if backed && !matches!(options.preallocation, Preallocation::Off) {
        return Err(invalid("preallocation= and a backing file exclude each other"));
    }
    let zstd = options.compression == Compression::Zstd;
    let mut header = Header {
        version,
        backing_file: options.backing.file.clone(),
        backing_format: options.backing.format.clone().filter(|_| backed),
        cluster_bits: cluster_size.trailing_zeros(),
        size,
        l1_size: 0,
        l1_offset: 0,
        refcount_offset: 0,
        refcount_clusters: 0,
        snapshots: 0,
        snapshots_offset: 0,
        incompatible: if zstd { header::COMPRESSION } else { 0 },
        compatible: if options.lazy_refcounts { header::LAZY_REFCOUNTS } else { 0 },
        autoclear: 0,
        refcount_order: refcount_bits.trailing_zeros(),
        compression: options.compression,
        extensions: Vec::new(),
    };
    let entries = header.l1_entries_for(size);
    if size > i64::MAX as u64 || entries * 8 > header::MAX_L1_BYTES {
        return Err(invalid("a disk of that size needs larger clusters (cluster_size=)"));
    }
    header.l1_size = entries as u32;
    Ok(header)
}
