//! Which format an image has, by its first sector: the magic numbers of the formats that there are.

/// The format's name as `-drive format=` has it; `None` if it is none that has a header.
pub fn by_header(sector: &[u8]) -> Option<&'static str> {
    let at = |from: usize, magic: &[u8]| sector.get(from..from + magic.len()) == Some(magic);
    match () {
        () if at(0, b"QFI\xfb\0\0\0\x01") => Some("qcow"),
        () if at(0, b"QFI\xfb") => Some("qcow2"),
        () if at(64, &0xbeda_107f_u32.to_le_bytes()) => Some("vdi"),
        () if at(0, b"conectix") => Some("vpc"),
        () if at(0, b"vhdxfile") => Some("vhdx"),
        () if at(0, b"KDMV") || at(0, b"COWD") || vmdk_text(sector) => Some("vmdk"),
        () if at(0, b"QED\0") => Some("qed"),
        () if at(0, b"LUKS\xba\xbe") => Some("luks"),
        () if at(0, b"WithoutFreeSpace") || at(0, b"WithouFreSpacExt") => Some("parallels"),
        () if at(0, b"#!/bin/sh\n#V2.0 Format\n") => Some("cloop"),
        () if at(0, b"Bochs Virtual HD Image") => Some("bochs"),
        () => None,
    }
}

/// A descriptor of a VMDK: comments and empty lines, then `version=`.
fn vmdk_text(sector: &[u8]) -> bool {
    for line in sector.split(|b| *b == b'\n') {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        match line.first() {
            None | Some(b'#') => {}
            _ if line.iter().all(|b| *b == b' ') => {}
            _ => {
                return [b"version=1", b"version=2", b"version=3"].iter().any(|v| line == v.as_slice());
            }
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_are_known_by_their_magic() {
        assert_eq!(by_header(b"QFI\xfb\0\0\0\x03"), Some("qcow2"));
        assert_eq!(by_header(b"conectix"), Some("vpc"));
        assert_eq!(by_header(b"# Disk DescriptorFile\nversion=1\nCID=1\n"), Some("vmdk"));
        assert_eq!(by_header(b"#!/bin/bash\nversion\n"), None);
        assert_eq!(by_header(&[0; 512]), None);
        assert_eq!(by_header(b""), None);
    }
}
