//! Writes cpio archives of the `newc` kind, which Linux unpacks as its initial RAM disk.
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
        self.entry("TRAILER!!!", 0, 1, (0, 0), &[]);
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads one entry at `at`: name, mode, device, data, and where the next begins.
    fn read(bytes: &[u8], at: usize) -> (String, u32, (u32, u32), Vec<u8>, usize) {
        assert_eq!(&bytes[at..at + 6], b"070701");
        let field = |n: usize| {
            let start = at + 6 + n * 8;
            u32::from_str_radix(std::str::from_utf8(&bytes[start..start + 8]).unwrap(), 16).unwrap()
        };
        let (size, name_size) = (field(6) as usize, field(11) as usize);
        let name_at = at + 110;
        assert_eq!(bytes[name_at + name_size - 1], 0);
        let name = String::from_utf8(bytes[name_at..name_at + name_size - 1].to_vec()).unwrap();
        let data_at = (name_at + name_size).next_multiple_of(4);
        let data = bytes[data_at..data_at + size].to_vec();
        (name, field(1), (field(9), field(10)), data, (data_at + size).next_multiple_of(4))
    }

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
        let (name, mode, _, data, next) = read(&bytes, 0);
        assert_eq!((name.as_str(), mode, data.len()), ("dev", 0o040_755, 0));
        let (name, mode, device, _, next) = read(&bytes, next);
        assert_eq!((name.as_str(), mode, device), ("dev/console", 0o020_600, (5, 1)));
        let (name, mode, _, data, next) = read(&bytes, next);
        assert_eq!((name.as_str(), mode, data.as_slice()), ("init", 0o100_755, b"#!/bin/sh\n".as_slice()));
        let (name, mode, _, data, next) = read(&bytes, next);
        assert_eq!((name.as_str(), mode, data.as_slice()), ("bin/sh", 0o120_777, b"busybox".as_slice()));
        let (name, _, _, _, next) = read(&bytes, next);
        assert_eq!(name, "TRAILER!!!");
        assert!(bytes[next..].iter().all(|b| *b == 0));
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
