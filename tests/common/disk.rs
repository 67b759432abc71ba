//! Partition tables of disks that tests make.

/// Bytes of a disk's sector.
pub const SECTOR: usize = 512;
/// Where the first partition begins, in sectors: at the first MiB, as every partitioner has it.
pub const FIRST: u64 = 2048;
/// Sectors that a GPT keeps at the disk's end.
const AT_END: u64 = 33;

/// A partition of a GPT.
pub struct Partition {
    /// What it is for, as the bytes of its GUID.
    pub kind: [u8; 16],
    /// Its first sector.
    pub first: u64,
    /// How many it has.
    pub sectors: u64,
}

/// An EFI system partition.
pub const ESP: [u8; 16] =
    [0x28, 0x73, 0x2a, 0xc1, 0x1f, 0xf8, 0xd2, 0x11, 0xba, 0x4b, 0, 0xa0, 0xc9, 0x3e, 0xc9, 0x3b];
/// A file system of Linux'.
pub const LINUX: [u8; 16] =
    [0xaf, 0x3d, 0xc6, 0x0f, 0x83, 0x84, 0x72, 0x47, 0x8e, 0x79, 0x3d, 0x69, 0xd8, 0x47, 0x7d, 0xe4];

/// CRC-32 as GPTs have it.
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0_u32, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |c, _| c >> 1 ^ (0xedb8_8320 & (c & 1).wrapping_neg()))
    })
}

/// The GPT of a disk with so many sectors (UEFI specification 2.10, section 5.3): what is at its begin, with the
/// protective MBR, and what is at its end.
pub fn gpt(sectors: u64, partitions: &[Partition]) -> [Vec<u8>; 2] {
    let last = sectors - 1;
    let mut entries = vec![0; 128 * 128];
    for (n, (p, entry)) in (1_u8..).zip(partitions.iter().zip(entries.chunks_exact_mut(128))) {
        entry[..16].copy_from_slice(&p.kind);
        entry[16..32].copy_from_slice(&[0x11 * n; 16]);
        entry[32..40].copy_from_slice(&p.first.to_le_bytes());
        entry[40..48].copy_from_slice(&(p.first + p.sectors - 1).to_le_bytes());
    }
    let header = |at: u64, other: u64, table: u64| {
        let mut h = vec![0; SECTOR];
        h[..16].copy_from_slice(b"EFI PART\0\0\x01\0\x5c\0\0\0");
        for (n, value) in [(24, at), (32, other), (40, 34), (48, last - AT_END), (72, table)] {
            h[n..n + 8].copy_from_slice(&value.to_le_bytes());
        }
        h[56..72].copy_from_slice(&[0x22; 16]);
        h[80] = 128;
        h[84] = 128;
        h[88..92].copy_from_slice(&crc32(&entries).to_le_bytes());
        let crc = crc32(&h[..92]);
        h[16..20].copy_from_slice(&crc.to_le_bytes());
        h
    };
    let mut mbr = vec![0; SECTOR];
    mbr[0x1be..0x1ce]
        .copy_from_slice(&[0, 0, 2, 0, 0xee, 0xff, 0xff, 0xff, 1, 0, 0, 0, 0xff, 0xff, 0xff, 0x7f]);
    mbr[510..].copy_from_slice(&[0x55, 0xaa]);
    let begin = [mbr, header(1, last, 2), entries.clone()].concat();
    [begin, [entries.clone(), header(last, 1, last - 32)].concat()]
}
