//! What every disk image is, whatever its format.
use crate::host::HostFile;
use crate::storage::unsupported;
use std::io;
use std::sync::Arc;

/// What stands at some place of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// So many bytes from there are alike, at least one unless the place is the image's end.
    pub len: u64,
    /// There may be other bytes than zeros.
    pub data: bool,
    /// The image itself holds them, and not one that it is backed by.
    pub allocated: bool,
    /// Where they are in the image's own file, if they stand there as they are.
    pub host_offset: Option<u64>,
}

/// A disk image: a row of bytes. Calls come from several threads at once, and wait for the host.
///
/// Ranges are within the image ([`Image::size`]): callers see to it, images refuse others with
/// [`io::ErrorKind::InvalidInput`]. What a format does not say of writing is that of one that is only read.
pub trait Image: Send + Sync {
    /// The format's name as `-drive format=` has it.
    fn format(&self) -> &'static str;

    /// Bytes; any number, be it no multiple of a sector.
    fn size(&self) -> u64;

    /// Whether writes are refused.
    fn read_only(&self) -> bool;

    /// Fills `buf` with what stands from `at` on.
    ///
    /// # Errors
    /// The host's, or the image's file is damaged there ([`io::ErrorKind::InvalidData`]).
    fn read(&self, at: u64, buf: &mut [u8]) -> io::Result<()>;

    /// Writes `data` from `at` on. It need not be durable before [`Image::flush`].
    ///
    /// # Errors
    /// As [`Image::read`]; [`io::ErrorKind::StorageFull`] if the host has no room.
    fn write(&self, _at: u64, _data: &[u8]) -> io::Result<()> {
        Err(only_read(self.format()))
    }

    /// Returns when all that was written before the call outlives a power failure of the host.
    ///
    /// # Errors
    /// The host's. What was written since the last flush may be lost then.
    fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    /// Has zeros stand from `at` on; their room may be given back if `unmap`.
    ///
    /// # Errors
    /// As [`Image::write`].
    fn zero(&self, _at: u64, _len: u64, _unmap: bool) -> io::Result<()> {
        Err(only_read(self.format()))
    }

    /// What stands from `at` on is of no use any more: its room may be given back. It reads as what was there or as
    /// zeros.
    ///
    /// # Errors
    /// As [`Image::write`].
    fn discard(&self, at: u64, len: u64) -> io::Result<()> {
        self.zero(at, len, true)
    }

    /// What stands at `at`.
    ///
    /// # Errors
    /// As [`Image::read`].
    fn extent(&self, at: u64) -> io::Result<Extent>;

    /// Has another size; what is new reads as zeros.
    ///
    /// # Errors
    /// As [`Image::write`]; [`io::ErrorKind::Unsupported`] if the format cannot.
    fn resize(&self, _size: u64) -> io::Result<()> {
        Err(unsupported(format!("{} images keep their size: convert it to another one", self.format())))
    }

    /// What the format has to say of itself.
    fn details(&self) -> Details {
        Details::default()
    }

    /// The image that has what this one has not.
    fn backing(&self) -> Option<Arc<dyn Image>> {
        None
    }

    /// Names another backing file in the image, or none. It takes effect when the image is opened again.
    ///
    /// # Errors
    /// [`io::ErrorKind::Unsupported`] if the format has none; as [`Image::write`].
    fn set_backing_name(&self, _file: Option<&str>, _format: Option<&str>) -> io::Result<()> {
        Err(unsupported(format!("the format '{}' has no backing files", self.format())))
    }

    /// Has nothing of its own any more: what it stands on shows everywhere.
    ///
    /// # Errors
    /// [`io::ErrorKind::Unsupported`] if the format stands on nothing; as [`Image::write`].
    fn make_empty(&self) -> io::Result<()> {
        Err(unsupported(format!("the format '{}' has no backing files", self.format())))
    }

    /// Whether it is written compressed, cluster by cluster, or not at all.
    fn compressed_only(&self) -> bool {
        false
    }

    /// Writes compressed what makes up one cluster, or what is left of the last one.
    ///
    /// # Errors
    /// [`io::ErrorKind::Unsupported`] if the format cannot; as [`Image::write`].
    fn write_compressed(&self, _at: u64, _data: &[u8]) -> io::Result<()> {
        Err(unsupported(format!("the format '{}' has no compressed clusters", self.format())))
    }

    /// The number by which an image that stands on this one knows it, if the format has one.
    fn identity(&self) -> Option<[u8; 16]> {
        None
    }

    /// The file whose bytes are the disk's, if a read or a write from `at` on may go to it past the image: it has
    /// nothing of its own to do for that. So it is with flushes if it is so at 0. Takes no lock.
    fn plain(&self, _at: u64, _write: bool) -> Option<&HostFile> {
        None
    }

    /// The internal snapshots.
    ///
    /// # Errors
    /// [`io::ErrorKind::Unsupported`] if the format has none.
    fn snapshots(&self) -> io::Result<Vec<Snapshot>> {
        Err(unsupported(format!("the format '{}' has no internal snapshots", self.format())))
    }

    /// Keeps what the disk holds now as `name`.
    ///
    /// # Errors
    /// As [`Image::snapshots`] and [`Image::write`]; [`io::ErrorKind::AlreadyExists`].
    fn snapshot_create(&self, _name: &str) -> io::Result<()> {
        self.snapshots().map(drop)
    }

    /// Has the disk hold what it held when `name` (or the snapshot with that identifier) was made.
    ///
    /// # Errors
    /// As [`Image::snapshots`] and [`Image::write`]; [`io::ErrorKind::NotFound`].
    fn snapshot_apply(&self, _name: &str) -> io::Result<()> {
        self.snapshots().map(drop)
    }

    /// Forgets `name` (or the snapshot with that identifier).
    ///
    /// # Errors
    /// As [`Image::snapshot_apply`].
    fn snapshot_delete(&self, _name: &str) -> io::Result<()> {
        self.snapshots().map(drop)
    }

    /// Changes what was chosen when the image was made: options by name, as `qemu-img amend -o` has them. Nothing else
    /// is done with the image before it is opened again.
    ///
    /// # Errors
    /// [`io::ErrorKind::Unsupported`] if the format has nothing to change; an option that there is not, or that stays
    /// as it is; the host's.
    fn amend(&self, _options: &[(String, String)]) -> io::Result<()> {
        Err(unsupported(format!("the format '{}' has nothing that can be amended", self.format())))
    }

    /// Looks for damage, and repairs it if asked to.
    ///
    /// # Errors
    /// [`io::ErrorKind::Unsupported`] if the format has nothing to check; the host's.
    fn check(&self, _repair: bool) -> io::Result<CheckReport> {
        Err(unsupported(format!("the format '{}' has nothing to check", self.format())))
    }
}

/// What a format has to say of an image.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Details {
    /// What is allocated at once, in bytes.
    pub cluster_size: Option<u64>,
    /// As the image names it.
    pub backing_file: Option<String>,
    /// As the image names it.
    pub backing_format: Option<String>,
    /// It was not closed properly.
    pub dirty: bool,
    /// What else there is, by the name that QEMU shows.
    pub specific: Vec<(&'static str, Detail)>,
}

/// A value in [`Details::specific`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Detail {
    /// Yes or no.
    Switch(bool),
    /// A number.
    Number(u64),
    /// A word.
    Text(String),
    /// Parts that each have something to say.
    List(Vec<Vec<(&'static str, Detail)>>),
}

/// An internal snapshot.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// The identifier: a number, mostly.
    pub id: String,
    /// The name.
    pub name: String,
    /// When it was made: seconds since 1970.
    pub date_sec: u32,
    /// And nanoseconds.
    pub date_nsec: u32,
    /// Bytes of the machine's state that are in it.
    pub vm_state_size: u64,
    /// The machine's clock then, in nanoseconds.
    pub vm_clock_nsec: u64,
    /// Instructions executed then, if that was counted.
    pub icount: Option<u64>,
    /// The disk's bytes then.
    pub disk_size: u64,
}

/// What a check has found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CheckReport {
    /// Damage that is still there.
    pub corruptions: u64,
    /// Clusters that are still taken and not referred to.
    pub leaks: u64,
    /// Damage that was repaired.
    pub corruptions_fixed: u64,
    /// Leaked clusters that were freed.
    pub leaks_fixed: u64,
    /// What was found, one line each; the first hundred.
    pub messages: Vec<String>,
    /// Bytes of the file that are in use.
    pub image_end_offset: u64,
    /// Clusters of the disk.
    pub total_clusters: u64,
    /// Those that have data of their own.
    pub allocated_clusters: u64,
    /// Those that do not stand after the one before.
    pub fragmented_clusters: u64,
    /// Those that are compressed.
    pub compressed_clusters: u64,
}

impl CheckReport {
    /// Notes a finding for people.
    pub(crate) fn note(&mut self, text: impl FnOnce() -> String) {
        if self.messages.len() < 100 {
            self.messages.push(text());
        }
    }
}

/// The error for a change of what is only read.
fn only_read(format: &str) -> io::Error {
    io::Error::new(io::ErrorKind::PermissionDenied, format!("{format} images are only read"))
}

/// Whether `len` bytes from `at` on are within `size`.
///
/// # Errors
/// They are not.
pub(crate) fn within(size: u64, at: u64, len: u64) -> io::Result<()> {
    match at.checked_add(len) {
        Some(end) if end <= size => Ok(()),
        _ => Err(io::Error::new(io::ErrorKind::InvalidInput, "beyond the end of the image")),
    }
}
