//! Raw images: the file's bytes are the disk's.
use crate::host::HostFile;
use crate::image::{Extent, Image, within};
use crate::probe;
use crate::storage::{Storage, cut};
use parking_lot::Mutex;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// What is looked at to tell a format.
const HEADER: u64 = 512;

/// A raw image.
pub struct Raw {
    storage: Arc<dyn Storage>,
    size: AtomicU64,
    read_only: bool,
    /// Nobody has said that it is raw, only nothing else was found: it must not become something else.
    probed: Option<Mutex<()>>,
}

impl Raw {
    /// The image in `storage`. It is `probed` if its user has not said that it is raw: writes that would make
    /// another format's header of its first sector are refused then.
    ///
    /// # Errors
    /// The host's.
    pub fn open(storage: Arc<dyn Storage>, read_only: bool, probed: bool) -> io::Result<Self> {
        // Whole sectors, as QEMU has it: what is missing of the last reads as zeros until it is written.
        let size = AtomicU64::new(storage.len()?.saturating_add(511) & !511);
        Ok(Self { storage, size, read_only, probed: probed.then(Mutex::default) })
    }

    fn may_write(&self, at: u64, len: u64) -> io::Result<()> {
        within(self.size(), at, len)?;
        if self.read_only {
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, "the image is read-only"));
        }
        Ok(())
    }

    /// A write to the first sector of an image that nobody has called raw.
    fn write_probed(&self, at: u64, data: &[u8]) -> io::Result<()> {
        let mut sector = vec![0; HEADER.min(self.size()) as usize];
        self.storage.read_at(0, &mut sector)?;
        let room = &mut sector[at as usize..];
        let n = room.len().min(data.len());
        room[..n].copy_from_slice(&data[..n]);
        match probe::by_header(&sector) {
            None => self.storage.write_at(at, data),
            Some(format) => Err(io::Error::new(
                io::ErrorKind::PermissionDenied,
                format!(
                    "the guest writes the header of a '{format}' image to the first sector, and the image would \
                     be taken for one the next time: say format=raw to allow it"
                ),
            )),
        }
    }
}

impl Image for Raw {
    fn format(&self) -> &'static str {
        "raw"
    }

    fn size(&self) -> u64 {
        self.size.load(Relaxed)
    }

    fn read_only(&self) -> bool {
        self.read_only
    }

    fn read(&self, at: u64, buf: &mut [u8]) -> io::Result<()> {
        within(self.size(), at, buf.len() as u64)?;
        self.storage.read_at(at, buf)?;
        // Somebody has cut the file: what is not there any more is no zeros.
        let end = self.storage.len()?;
        if at + buf.len() as u64 > end.saturating_add(511) & !511 { Err(cut(end)) } else { Ok(()) }
    }

    fn plain(&self, at: u64, write: bool) -> Option<&HostFile> {
        if write && (self.read_only || self.probed.is_some() && at < HEADER) {
            return None;
        }
        self.storage.host()
    }

    fn write(&self, at: u64, data: &[u8]) -> io::Result<()> {
        self.may_write(at, data.len() as u64)?;
        match &self.probed {
            Some(one_by_one) if at < HEADER && !data.is_empty() => {
                let _alone = one_by_one.lock();
                self.write_probed(at, data)
            }
            _ => self.storage.write_at(at, data),
        }
    }

    fn flush(&self) -> io::Result<()> {
        if self.read_only { Ok(()) } else { self.storage.flush() }
    }

    fn zero(&self, at: u64, len: u64, unmap: bool) -> io::Result<()> {
        self.may_write(at, len)?;
        self.storage.zero_at(at, len, unmap)
    }

    fn discard(&self, at: u64, len: u64) -> io::Result<()> {
        self.may_write(at, len)?;
        self.storage.zero_at(at, len, true)
    }

    fn extent(&self, at: u64) -> io::Result<Extent> {
        let (len, data) = self.storage.extent_at(at)?;
        let left = self.size().saturating_sub(at);
        Ok(Extent { len: len.min(left), data, allocated: true, host_offset: Some(at) })
    }

    fn resize(&self, size: u64) -> io::Result<()> {
        self.may_write(0, 0)?;
        self.storage.set_len(size)?;
        self.size.store(size, Relaxed);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_somebody_has_cut_off_is_an_error() {
        let path = crate::testing::scratch("cut");
        std::fs::write(&path, [1; 10_000]).unwrap();
        let file: Arc<dyn Storage> = Arc::new(HostFile::open(&path, true, false).unwrap());
        let raw = Raw::open(file, false, false).unwrap();
        let mut bytes = [9; 512];
        // The last sector was never whole.
        raw.read(19 * 512, &mut bytes).unwrap();
        assert_eq!(bytes[..], [[1; 272].as_slice(), &[0; 240]].concat());
        std::fs::File::options().write(true).open(&path).unwrap().set_len(4096).unwrap();
        assert!(raw.read(8 * 512, &mut bytes).unwrap_err().to_string().contains("shorter"));
        raw.read(7 * 512, &mut bytes).unwrap();
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn a_guest_cannot_make_another_format_of_an_image_that_was_only_probed() {
        let path = crate::testing::scratch("probed");
        std::fs::write(&path, [0; 4096]).unwrap();
        let open = |probed| {
            let file: Arc<dyn Storage> = Arc::new(HostFile::open(&path, true, false).unwrap());
            Raw::open(file, false, probed).unwrap()
        };
        let raw = open(true);
        let refused = raw.write(0, b"QFI\xfb\0\0\0\x03").unwrap_err();
        assert!(refused.to_string().contains("format=raw"), "{refused}");
        // Nor in two steps.
        raw.write(0, b"QFI").unwrap();
        raw.write(4, &[0, 0, 0, 3]).unwrap();
        assert!(raw.write(3, b"\xfb").is_err());
        raw.write(512, b"QFI\xfb\0\0\0\x03").unwrap();
        assert_eq!(std::fs::read(&path).unwrap()[..8], *b"QFI\0\0\0\0\x03");
        open(false).write(0, b"QFI\xfb\0\0\0\x03").unwrap();
        std::fs::remove_file(path).unwrap();
    }
}
