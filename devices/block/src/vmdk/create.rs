//! New VMDK images.
use super::sparse::{FLAG_COMPRESSED, FLAG_MARKERS, FLAG_NEWLINES, FLAG_REDUNDANT, FLAG_ZERO_GRAINS, SECTOR};
use crate::storage::Storage;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::sync::Arc;

/// Sectors of a grain, entries of a table, and sectors that an embedded descriptor has: as QEMU and VMware have them.
const GRAIN: u64 = 128;
const PER_TABLE: u64 = 512;
const DESCRIPTOR: u64 = 20;
/// Bytes of a part of an image that has parts.
const PART: u64 = 2 << 30;
/// 2 TiB of file are what 32-bit sector numbers can say.
const MAX_EXTENT: u64 = 2 << 40;
/// The disk is at most so large: sums do not overflow, and a descriptor has a line for each 2 GiB.
const MAX_SIZE: u64 = 4096 * PART;

/// `subformat=`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Kind {
    /// One file with a descriptor and grains.
    #[default]
    MonolithicSparse,
    /// A descriptor, and one file that is the disk.
    MonolithicFlat,
    /// A descriptor, and files for 2 GiB each, with grains.
    TwoGbMaxExtentSparse,
    /// A descriptor, and files for 2 GiB each.
    TwoGbMaxExtentFlat,
    /// One file with compressed grains, written once.
    StreamOptimized,
}

impl Kind {
    const ALL: [Self; 5] = [
        Self::MonolithicSparse,
        Self::MonolithicFlat,
        Self::TwoGbMaxExtentSparse,
        Self::TwoGbMaxExtentFlat,
        Self::StreamOptimized,
    ];

    /// The name, which is the descriptor's `createType` too.
    pub fn name(self) -> &'static str {
        match self {
            Self::MonolithicSparse => "monolithicSparse",
            Self::MonolithicFlat => "monolithicFlat",
            Self::TwoGbMaxExtentSparse => "twoGbMaxExtentSparse",
            Self::TwoGbMaxExtentFlat => "twoGbMaxExtentFlat",
            Self::StreamOptimized => "streamOptimized",
        }
    }

    /// The one of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }

    fn flat(self) -> bool {
        matches!(self, Self::MonolithicFlat | Self::TwoGbMaxExtentFlat)
    }

    fn parted(self) -> bool {
        matches!(self, Self::TwoGbMaxExtentSparse | Self::TwoGbMaxExtentFlat)
    }

    /// Descriptor and grains are in one file.
    fn single(self) -> bool {
        matches!(self, Self::MonolithicSparse | Self::StreamOptimized)
    }
}

/// What is chosen of a new image, by QEMU's names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Bytes of the disk.
    pub size: u64,
    /// `subformat=`.
    pub kind: Kind,
    /// `adapter_type=`: ide, buslogic, lsilogic, legacyESX.
    pub adapter: String,
    /// `hwversion=`.
    pub hardware: String,
    /// `toolsversion=`.
    pub tools: String,
    /// `zeroed_grain=`: grains may be said to be zeros.
    pub zeroed_grain: bool,
}

impl Options {
    /// As QEMU has them if nothing is said.
    pub fn new(size: u64) -> Self {
        Self {
            size,
            kind: Kind::default(),
            adapter: "ide".into(),
            hardware: "4".into(),
            tools: "2147483647".into(),
            zeroed_grain: false,
        }
    }

    /// Whether such an image can be.
    ///
    /// # Errors
    /// What cannot be.
    pub fn validate(&self) -> io::Result<()> {
        let most = if self.kind.parted() { MAX_SIZE } else { MAX_EXTENT - (64 << 30) };
        if self.size > most && self.kind != Kind::MonolithicFlat || self.size > 1 << 60 {
            let text = format!("a {} vmdk has at most {most} bytes", self.kind.name());
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
        Ok(())
    }
}

/// Makes the file of an extent, by its name in the image's folder.
pub type NewFile<'a> = &'a mut dyn FnMut(&str) -> io::Result<Arc<dyn Storage>>;

/// Makes a new image in `storage`, which is empty and has this name; further files are made by `new_file`.
///
/// # Errors
/// What is chosen cannot be; the host's.
pub fn create(storage: &dyn Storage, name: &str, options: &Options, new_file: NewFile) -> io::Result<()> {
    options.validate()?;
    let size = options.size.next_multiple_of(SECTOR);
    let (stem, end) = match name.rfind('.') {
        Some(dot) if dot > 0 => name.split_at(dot),
        _ => (name, ""),
    };
    let part = if options.kind.parted() { PART } else { size.max(1) };
    let flat = options.kind.flat();
    let mut lines = String::new();
    for n in 0..size.div_ceil(part).max(1) {
        let len = (size - n * part).min(part);
        let file = match options.kind {
            Kind::MonolithicSparse | Kind::StreamOptimized => name.to_string(),
            Kind::MonolithicFlat => format!("{stem}-flat{end}"),
            Kind::TwoGbMaxExtentSparse => format!("{stem}-s{:03}{end}", n + 1),
            Kind::TwoGbMaxExtentFlat => format!("{stem}-f{:03}{end}", n + 1),
        };
        let kind = if flat { "FLAT" } else { "SPARSE" };
        lines += &format!("RW {} {kind} \"{file}\"{}\n", len / SECTOR, if flat { " 0" } else { "" });
        if options.kind.single() {
            sparse(storage, len, options)?;
        } else {
            let extent = new_file(&file)?;
            if flat { extent.set_len(len)? } else { sparse(&*extent, len, options)? }
        }
    }
    let text = descriptor(size, &lines, options);
    let (at, room) = if options.kind.single() { (SECTOR, DESCRIPTOR * SECTOR) } else { (0, u64::MAX) };
    if text.len() as u64 > room {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "the file's name is too long"));
    }
    storage.write_at(at, text.as_bytes())
}

/// A number for `CID=`.
pub fn new_id() -> u32 {
    // Two values stand for something else.
    (RandomState::new().hash_one(3) as u32).clamp(1, u32::MAX - 2)
}

fn descriptor(size: u64, extents: &str, options: &Options) -> String {
    let ide = options.adapter == "ide";
    let (heads, sectors) = if ide { (16, 63) } else { (255, 63) };
    let cylinders = size.div_ceil(SECTOR) / (heads * sectors);
    format!(
        "# Disk DescriptorFile\nversion=1\nCID={:08x}\nparentCID=ffffffff\ncreateType=\"{}\"\n\n\
         # Extent description\n{extents}\n# The Disk Data Base\n#DDB\n\n\
         ddb.virtualHWVersion = \"{}\"\nddb.geometry.cylinders = \"{cylinders}\"\n\
         ddb.geometry.heads = \"{heads}\"\nddb.geometry.sectors = \"{sectors}\"\n\
         ddb.adapterType = \"{}\"\nddb.toolsVersion = \"{}\"\n",
        new_id(),
        options.kind.name(),
        options.hardware,
        options.adapter,
        options.tools
    )
}

/// A sparse extent with all of its tables, and no grain.
fn sparse(storage: &dyn Storage, len: u64, options: &Options) -> io::Result<()> {
    let stream = options.kind == Kind::StreamOptimized;
    let mut flags = FLAG_NEWLINES | FLAG_REDUNDANT;
    if stream {
        flags |= FLAG_COMPRESSED | FLAG_MARKERS;
    }
    if options.zeroed_grain {
        flags |= FLAG_ZERO_GRAINS;
    }
    let version: u32 = match () {
        () if stream => 3,
        () if options.zeroed_grain => 2,
        () => 1,
    };
    let capacity = len / SECTOR;
    let tables = capacity.div_ceil(GRAIN * PER_TABLE);
    let table_sectors = PER_TABLE * 4 / SECTOR;
    let directory_sectors = (tables * 4).div_ceil(SECTOR);
    // The copy first: directory and tables, then those that count.
    let copy = 1 + DESCRIPTOR;
    let directory = copy + directory_sectors + tables * table_sectors;
    let overhead = (directory + directory_sectors + tables * table_sectors).next_multiple_of(GRAIN);
    let mut head = vec![0; 512];
    head[..4].copy_from_slice(b"KDMV");
    head[4..8].copy_from_slice(&version.to_le_bytes());
    head[8..12].copy_from_slice(&flags.to_le_bytes());
    for (at, n) in
        [(12, capacity), (20, GRAIN), (28, 1), (36, DESCRIPTOR), (48, copy), (56, directory), (64, overhead)]
    {
        head[at..at + 8].copy_from_slice(&n.to_le_bytes());
    }
    head[44..48].copy_from_slice(&(PER_TABLE as u32).to_le_bytes());
    head[73..77].copy_from_slice(b"\n \r\n");
    head[77] = u8::from(stream);
    storage.set_len(overhead * SECTOR)?;
    storage.write_at(0, &head)?;
    for at in [copy, directory] {
        let first = at + directory_sectors;
        let entries: Vec<u8> =
            (0..tables).flat_map(|n| ((first + n * table_sectors) as u32).to_le_bytes()).collect();
        storage.write_at(at * SECTOR, &entries)?;
    }
    Ok(())
}
