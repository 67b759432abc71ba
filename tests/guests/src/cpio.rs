//! Writes and reads cpio archives of the `newc` kind, which Linux unpacks as its initial RAM disk.
//!
//! An entry is a header of the magic `070701` and thirteen fields of eight hexadecimal digits, the name with a closing
//! zero, padding to a multiple of four, the data, and padding again; an entry called `TRAILER!!!` ends the archive
//! (Linux, Documentation/driver-api/early-userspace/buffer-format.rst). Owners are root and times are zero, so the same
//! input always gives the same bytes.

/// An archive that grows entry by entry.
#[derive(Debug, Default)]
pub struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

/// Bytes of an entry's header.
const HEADER: usize = 110;
/// The name of the entry that ends an archive.
const TRAILER: &str = "TRAILER!!!";
/// `S_IFREG`, a regular file.
const REGULAR: u32 = 0o100_000;
/// `S_IFDIR`, a directory.
const DIRECTORY: u32 = 0o040_000;
/// `S_IFLNK`, a symbolic link.
const LINK: u32 = 0o120_000;
/// `S_IFCHR`, a character device.
const CHARACTER: u32 = 0o020_000;

impl Archive {
    /// An empty archive.
    pub fn new() -> Archive {
        Archive::default()
    }

    /// Adds a directory. Those on the way to an entry must be added before it.
    pub fn directory(&mut self, path: &str, permissions: u32) -> &mut Self {
        self.entry(path, DIRECTORY | permissions & 0o7777, 2, (0, 0), &[])
    }

    /// Adds a file.
    pub fn file(&mut self, path: &str, permissions: u32, data: &[u8]) -> &mut Self {
        self.entry(path, REGULAR | permissions & 0o7777, 1, (0, 0), data)
    }

    /// Adds a symbolic link to `target`.
    pub fn link(&mut self, path: &str, target: &str) -> &mut Self {
        self.entry(path, LINK | 0o777, 1, (0, 0), target.as_bytes())
    }

    /// Adds a character device.
    pub fn device(&mut self, path: &str, permissions: u32, major: u32, minor: u32) -> &mut Self {
        self.entry(path, CHARACTER | permissions & 0o7777, 1, (major, minor), &[])
    }

    /// The archive's bytes, padded to 512 as cpio itself does.
    pub fn finish(mut self) -> Vec<u8> {
        // The trailer has no inode.
        self.entries = u32::MAX;
        self.entry(TRAILER, 0, 1, (0, 0), &[]);
        self.bytes.resize(self.bytes.len().next_multiple_of(512), 0);
        self.bytes
    }

    /// # Panics
    /// If `data` is 4 GiB or more, which the format cannot say.
    fn entry(&mut self, path: &str, mode: u32, links: u32, device: (u32, u32), data: &[u8]) -> &mut Self {
        self.entries = self.entries.wrapping_add(1);
        let size = u32::try_from(data.len()).expect("a cpio entry holds less than 4 GiB");
        let name = path.trim_start_matches('/');
        let name_size = name.len() as u32 + 1;
        // ino, mode, uid, gid, nlink, mtime, filesize, devmajor, devminor, rdevmajor, rdevminor, namesize, check
        let fields = [self.entries, mode, 0, 0, links, 0, size, 0, 0, device.0, device.1, name_size, 0];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes.extend_from_slice(format!("{field:08X}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(data);
        self.pad();
        self
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

/// What an archive has under a name.
#[derive(Debug, PartialEq, Eq)]
pub struct Entry<'a> {
    /// Its path.
    pub path: &'a str,
    /// Its type and permissions.
    pub mode: u32,
    /// The major and minor number of a device.
    pub device: (u32, u32),
    /// A file's contents, or what a link leads to.
    pub data: &'a [u8],
}

impl Entry<'_> {
    /// Whether it is a regular file.
    pub fn is_file(&self) -> bool {
        self.mode & 0o170_000 == REGULAR
    }
}

/// The entries of an archive, without the one that ends it; `None` if it is none, or not whole.
pub fn entries(archive: &[u8]) -> Option<Vec<Entry<'_>>> {
    let mut entries = Vec::new();
    let mut rest = archive;
    loop {
        let header = rest.get(..HEADER).filter(|header| header.starts_with(b"070701"))?;
        let field = |n: usize| {
            let digits = header.get(6 + 8 * n..)?.get(..8)?;
            u32::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
        };
        let (size, name_size) = (field(6)? as usize, field(11)? as usize);
        let name = rest.get(HEADER..)?.get(..name_size)?.strip_suffix(b"\0")?;
        let data_at = (HEADER + name_size).next_multiple_of(4);
        let entry = Entry {
            path: std::str::from_utf8(name).ok()?,
            mode: field(1)?,
            device: (field(9)?, field(10)?),
            data: rest.get(data_at..)?.get(..size)?,
        };
        if entry.path == TRAILER {
            return Some(entries);
        }
        entries.push(entry);
        rest = rest.get((data_at + size).next_multiple_of(4)..)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_can_be_read_back() {
        let mut archive = Archive::new();
        archive
            .directory("dev", 0o755)
            .device("dev/console", 0o600, 5, 1)
            .file("/init", 0o755, b"#!/bin/sh\n")
            .link("bin/sh", "busybox");
        let bytes = archive.finish();
        assert_eq!(bytes.len() % 512, 0);
        let read: Vec<_> =
            entries(&bytes).unwrap().iter().map(|e| (e.path, e.mode, e.device, e.data)).collect();
        let none: &[u8] = b"";
        assert_eq!(
            read,
            [
                ("dev", 0o040_755, (0, 0), none),
                ("dev/console", 0o020_600, (5, 1), none),
                ("init", 0o100_755, (0, 0), b"#!/bin/sh\n"),
                ("bin/sh", 0o120_777, (0, 0), b"busybox"),
            ]
        );
        assert!(entries(&bytes).unwrap()[2].is_file() && !entries(&bytes).unwrap()[3].is_file());
    }

    #[test]
    fn what_is_no_whole_archive_has_no_entries() {
        let mut archive = Archive::new();
        archive.file("init", 0o755, b"#!/bin/sh\n");
        let bytes = archive.finish();
        let end = bytes.windows(TRAILER.len()).position(|w| w == TRAILER.as_bytes()).unwrap() + TRAILER.len();
        assert!((0..=end).all(|len| entries(&bytes[..len]).is_none()));
        assert!(entries(&bytes[..(end + 1).next_multiple_of(4)]).is_some());
        assert_eq!(entries(&[0; 200]), None);
    }

    #[test]
    fn a_header_is_byte_for_byte_what_the_format_says() {
        let mut archive = Archive::new();
        archive.file("a", 0o644, b"xyz");
        let bytes = archive.finish();
        let expected: &[u8] = b"07070100000001000081A40000000000000000000000010000000000000003\
                                00000000000000000000000000000000000000020000000\
                                0a\0xyz\x00070701";
        assert_eq!(&bytes[..expected.len()], expected);
    }

    #[test]
    fn inode_numbers_differ() {
        let mut archive = Archive::new();
        archive.file("a", 0, b"").file("b", 0, b"");
        let bytes = archive.finish();
        assert_ne!(bytes[6..14], bytes[112 + 6..112 + 14]);
    }
}
