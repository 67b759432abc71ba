//! Disk images that mean harm: images of each format, with their tables changed, cut, or put on themselves. Each is
//! opened, looked at, read, written, checked and repaired: it may be refused or end in errors, no more.
use crate::machine::cpu_time;
use crate::saved::folder_of;
use anyhow::ensure;
use mynah_block::{Backing, Image, OpenOptions, open};
use mynah_oracle::rng::Rng;
use std::fs::{self, File};
use std::io::{self, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// CPU time that one image may take: a host whose disks are busy has it wait for minutes. One that hangs is the
/// parent's to find.
const PATIENCE: Duration = Duration::from_secs(30);

/// Formats and what is chosen of them.
const KINDS: &[(&str, &[(&str, &str)])] = &[
    ("qcow2", &[]),
    ("qcow2", &[("cluster_size", "512")]),
    ("qcow2", &[("compat", "0.10"), ("cluster_size", "4k")]),
    ("qcow2", &[("compression_type", "zstd"), ("cluster_size", "2M")]),
    ("qcow2", &[("refcount_bits", "1"), ("cluster_size", "4k")]),
    ("vdi", &[]),
    ("vpc", &[]),
    ("vpc", &[("subformat", "fixed")]),
    ("vhdx", &[("block_size", "1M")]),
    ("vhdx", &[("subformat", "fixed")]),
    ("vmdk", &[]),
    ("vmdk", &[("subformat", "streamOptimized")]),
    ("vmdk", &[("subformat", "twoGbMaxExtentSparse")]),
    ("vmdk", &[("subformat", "monolithicFlat")]),
    ("raw", &[]),
];

/// Runs a case.
///
/// # Errors
/// An image that was not refused has done what none may.
pub fn run(seed: u64, case: u64) -> anyhow::Result<()> {
    let mut rng = Rng::new(seed ^ 0x1ca6e, case);
    let folder = folder_of(std::process::id()).join(format!("image{case}"));
    fs::create_dir_all(&folder)?;
    let began = cpu_time();
    let done = attack(&mut rng, &folder);
    let _ = fs::remove_dir_all(&folder);
    done?;
    let took = cpu_time().saturating_sub(began);
    ensure!(took < PATIENCE, "an image took {took:?} of CPU time");
    Ok(())
}

fn attack(rng: &mut Rng, folder: &Path) -> anyhow::Result<()> {
    let (format, options) = KINDS[rng.below(KINDS.len() as u64) as usize];
    let size = [1 << 20, 3 << 20, 9_000_448, 70 << 20, 1 << 40][rng.below(5) as usize];
    let size = if format == "vpc" || options.iter().any(|(_, v)| *v == "fixed") {
        size.min(9_000_448)
    } else {
        size
    };
    let options: Vec<(String, String)> =
        options.iter().map(|(n, v)| (n.to_string(), v.to_string())).collect();
    let path = folder.join("disk.img");
    if format == "qcow2" && rng.chance(30) {
        forge(rng, &path)?;
        return try_it(rng, &path, format);
    }
    if mynah_block::create(&path, format, size, &options).is_err() {
        // Some sizes are too large for small clusters.
        return Ok(());
    }
    fill(rng, &path, format)?;
    let mut files = vec![path.clone()];
    files.extend(fs::read_dir(folder)?.flatten().map(|e| e.path()).filter(|p| *p != path));
    if format == "qcow2" && rng.chance(25) {
        files.extend(chain(rng, folder, &path)?);
    }
    for _ in 0..1 + rng.below(3) {
        let at = if rng.chance(70) { 0 } else { rng.below(files.len() as u64) as usize };
        damage(rng, &files[at])?;
    }
    if rng.chance(70) {
        for file in &files {
            right_sums(file)?;
        }
    }
    try_it(rng, &path, format)
}

/// Opens the image in some ways, for reading and for writing, and uses it.
fn try_it(rng: &mut Rng, path: &Path, format: &str) -> anyhow::Result<()> {
    for read_only in [true, false] {
        let options = OpenOptions {
            format: rng.chance(70).then(|| format.to_string()),
            read_only,
            check: rng.chance(30),
            backing: if rng.chance(80) { Backing::InFolder } else { Backing::Ignore },
            snapshot: rng.chance(10),
            at_snapshot: (read_only && rng.chance(10)).then(|| "one".to_string()),
            ..OpenOptions::new(path)
        };
        if let Ok(image) = open(&options) {
            use_it(rng, &*image);
        }
    }
    Ok(())
}

/// Writes some, so that there are tables with something in them; a VHDX may be left as a kill leaves it.
fn fill(rng: &mut Rng, path: &Path, format: &str) -> anyhow::Result<()> {
    let options = OpenOptions { format: Some(format.into()), ..OpenOptions::new(path) };
    let image = open(&options)?;
    let size = image.size();
    let cluster = image.details().cluster_size.unwrap_or(65_536);
    for _ in 0..1 + rng.below(6) {
        let at = rng.below(size.saturating_sub(1).min(4 << 20)) / cluster * cluster;
        let len = cluster.min(size - at).min(2 << 20) as usize;
        let bytes: Vec<u8> = (0..len).map(|i| (i / 97) as u8 | 1).collect();
        if format == "qcow2" && rng.chance(30) || image.compressed_only() {
            let _ = image.write_compressed(at, &bytes);
        } else {
            image.write(at, &bytes)?;
        }
    }
    if format == "qcow2" && rng.chance(50) {
        // There is none with counters of one bit.
        let _ = image.snapshot_create("one");
        image.write(0, &[1; 5000])?;
    }
    image.flush()?;
    if format == "vhdx" && rng.chance(50) {
        let left = fs::read(path)?;
        drop(image);
        fs::write(path, left)?;
    }
    Ok(())
}

/// A qcow2 image made to be costly: a large file that is mostly holes, tables as large as they may be, and references
/// all over the file, many of them or each to the same place.
fn forge(rng: &mut Rng, path: &Path) -> anyhow::Result<()> {
    let bits = 9 + rng.below(13) as u32;
    let cluster = 1u64 << bits;
    let clusters = (1 << (20 + rng.below(23))) / cluster + 64;
    let file = File::create_new(path)?;
    file.set_len(clusters << bits)?;
    // All tables and what is in them are in the first MiBs; what they refer to is anywhere, mostly.
    let mut next = 1;
    let mut place = |bytes: u64| {
        let at = next << bits;
        next += bytes.div_ceil(cluster).max(1);
        at
    };
    let most = |rng: &mut Rng, n: u64| if rng.chance(40) { n } else { 1 + rng.below(n.min(200)) };
    let l1_size = most(rng, 1 << 20);
    let refcount_bytes = most(rng, (8 << 20) / cluster).max(1) * cluster;
    let snapshots = if rng.chance(40) { most(rng, 65_536) } else { 0 };
    let (l1, refcounts, list) = (place(l1_size * 8), place(refcount_bytes), place(snapshots * 40));
    let order = rng.below(7);
    let mut head = Vec::new();
    head.extend(*b"QFI\xfb\0\0\0\x03");
    head.extend([0; 12]);
    head.extend(bits.to_be_bytes());
    head.extend((l1_size * (cluster / 8) * cluster).min(i64::MAX as u64).to_be_bytes());
    head.extend([0; 4]);
    head.extend((l1_size as u32).to_be_bytes());
    head.extend(l1.to_be_bytes());
    head.extend(refcounts.to_be_bytes());
    head.extend(((refcount_bytes / cluster) as u32).to_be_bytes());
    head.extend((snapshots as u32).to_be_bytes());
    head.extend(list.to_be_bytes());
    // It was not closed properly: who opens it for writing repairs it.
    head.extend(u64::from(rng.chance(30)).to_be_bytes());
    head.extend([0; 16]);
    head.extend((order as u32).to_be_bytes());
    head.extend(104u32.to_be_bytes());
    write_at(&file, &head, 0)?;
    let spread = rng.below(4);
    let any = |rng: &mut Rng| match spread {
        0 => rng.below(clusters) << bits,
        1 => (rng.below(clusters) & !63) << bits,
        2 => rng.below(clusters.min(4096)) << bits,
        _ => (clusters - 1) << bits,
    };
    // Some tables are there, and more are said to be. With 8 MiB of them a check takes seconds, and there are many.
    let mut tables = Vec::new();
    for _ in 0..(rng.below(2 << 20) / cluster).clamp(1, 4096) {
        let at = place(cluster);
        let table: Vec<u8> = (0..cluster / 8)
            .flat_map(|_| {
                match rng.below(100) {
                    0 => (1 << 62) | rng.u64(),
                    1 => rng.u64(),
                    2..=5 => 1,
                    6..=9 => 0,
                    _ => any(rng) | (u64::from(rng.chance(50)) << 63),
                }
                .to_be_bytes()
            })
            .collect();
        write_at(&file, &table, at)?;
        tables.push(at);
    }
    let claimed = if rng.chance(50) { l1_size } else { tables.len() as u64 };
    // In pieces: what this process has held counts.
    let mut out = BufWriter::new(&file);
    out.seek(SeekFrom::Start(l1))?;
    for n in 0..claimed.min(l1_size) {
        let entry = tables.get(n as usize).map_or_else(|| any(rng), |at| at | 1 << 63);
        out.write_all(&entry.to_be_bytes())?;
    }
    if rng.chance(70) {
        out.seek(SeekFrom::Start(refcounts))?;
        for n in 0..(refcount_bytes / 8).min(1 << rng.below(21)) {
            let sound = (n * ((cluster * 8) >> order)).max(1);
            let block = if n > 0 && rng.chance(30) { any(rng) } else { sound << bits };
            out.write_all(&block.to_be_bytes())?;
        }
    }
    if rng.chance(80) {
        out.seek(SeekFrom::Start(list))?;
        for _ in 0..snapshots {
            let mut entry = [0; 40];
            entry[..8].copy_from_slice(&(if rng.chance(50) { l1 } else { any(rng) }).to_be_bytes());
            entry[8..12].copy_from_slice(&(most(rng, 1 << 20) as u32).to_be_bytes());
            out.write_all(&entry)?;
        }
    }
    out.flush()?;
    Ok(())
}

/// Images that the one at `path` stands on: in a row, or in a ring.
fn chain(rng: &mut Rng, folder: &Path, path: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let most = if rng.chance(10) { 140 } else { 4 };
    let many = 1 + rng.below(most);
    let mut files = Vec::new();
    for n in 0..many {
        let next = match () {
            () if n + 1 < many => format!("below{}.img", n + 1),
            () if rng.chance(50) => "disk.img".into(),
            () if rng.chance(30) => "nbd://nowhere/".into(),
            () => format!("below{n}.img"),
        };
        let options = vec![("backing_file".into(), next), ("backing_fmt".into(), "qcow2".into())];
        let file = folder.join(format!("below{n}.img"));
        mynah_block::create(&file, "qcow2", 1 << 20, &options)?;
        files.push(file);
    }
    let image = open(&OpenOptions { backing: Backing::Ignore, ..OpenOptions::new(path) })?;
    let format = rng.chance(80).then_some("qcow2");
    image.set_backing_name(Some("below0.img"), format)?;
    image.flush()?;
    Ok(files)
}

/// A number that somebody who means harm would write.
fn number(rng: &mut Rng, len: u64) -> u64 {
    match rng.below(14) {
        0 => 0,
        1 => 1,
        2 => u64::MAX,
        3 => 1 << 63,
        4 => (1 << 62) | 0x10000,
        5 => i64::MAX as u64,
        6 => len,
        7 => len.saturating_sub(1),
        8 => len.next_multiple_of(65_536),
        9 => 1 << rng.below(64),
        10 => u64::from(u32::MAX),
        11 => rng.below(len.max(1)) & !511,
        12 => rng.below(len.max(1)) & !65_535,
        _ => rng.u64(),
    }
}

// Positioned accesses have no name that all hosts know.

fn read_at(mut file: &File, bytes: &mut [u8], at: u64) -> io::Result<usize> {
    file.seek(SeekFrom::Start(at))?;
    file.read(bytes)
}

fn read_exact_at(mut file: &File, bytes: &mut [u8], at: u64) -> io::Result<()> {
    file.seek(SeekFrom::Start(at))?;
    file.read_exact(bytes)
}

fn write_at(mut file: &File, bytes: &[u8], at: u64) -> io::Result<()> {
    file.seek(SeekFrom::Start(at))?;
    file.write_all(bytes)
}

/// Changes a file's tables.
fn damage(rng: &mut Rng, path: &Path) -> anyhow::Result<()> {
    let file = fs::OpenOptions::new().read(true).write(true).open(path)?;
    let len = file.metadata()?.len();
    for _ in 0..1 + rng.below(6) {
        // Headers and tables are mostly at the start; VHDX's are beyond the first MiB, VHD's footer is at the end.
        let near = match rng.below(8) {
            0..=2 => 512,
            3 | 4 => 70_000,
            5 => 300_000,
            6 => 4 << 20,
            _ => len,
        };
        let mut at = rng.below(near.min(len).max(1));
        if rng.chance(10) {
            at = len.saturating_sub(1 + rng.below(512));
        }
        match rng.below(10) {
            0..=3 => {
                let at = at & !7;
                let n = number(rng, len);
                let bytes = if rng.chance(50) { n.to_be_bytes() } else { n.to_le_bytes() };
                let _ = write_at(&file, &bytes[..if rng.chance(50) { 8 } else { 4 }], at);
            }
            4 | 5 => {
                let n = number(rng, len) as u32;
                let bytes = if rng.chance(50) { n.to_be_bytes() } else { n.to_le_bytes() };
                let _ = write_at(&file, &bytes, at & !3);
            }
            6 | 7 => {
                let _ = write_at(&file, &[rng.u64() as u8], at);
            }
            8 => {
                // A piece of the file somewhere else: tables in two places, and in themselves.
                let mut piece = vec![0; 1 << rng.below(13)];
                let _ = read_at(&file, &mut piece, rng.below(len.max(1)) & !511);
                let _ = write_at(&file, &piece, at & !511);
            }
            _ if rng.chance(30) => file.set_len(rng.below(len.max(1)))?,
            _ if rng.chance(20) => file.set_len(1 << (30 + rng.below(12)))?,
            _ => {
                let _ = write_at(&file, &vec![0xff; 1 << rng.below(12)], at);
            }
        }
    }
    Ok(())
}

/// Makes the checksums right again that would have the damage refused at once.
fn right_sums(path: &Path) -> anyhow::Result<()> {
    let file = fs::OpenOptions::new().read(true).write(true).open(path)?;
    let len = file.metadata()?.len();
    let mut magic = [0; 8];
    let _ = read_at(&file, &mut magic, 0);
    if magic == *b"vhdxfile" {
        for (at, size) in [(64, 4), (128, 4), (192, 64), (256, 64)].map(|(at, size)| (at << 10, size << 10)) {
            let mut bytes = vec![0; size];
            if read_exact_at(&file, &mut bytes, at).is_ok() {
                bytes[4..8].fill(0);
                write_at(&file, &crc32c(&bytes).to_le_bytes(), at + 4)?;
            }
        }
        // Entries of the log: those at its beginning.
        for at in (0..16).map(|n| (1 << 20) + n * 4096) {
            let mut head = [0; 16];
            let _ = read_at(&file, &mut head, at);
            let size = u32::from_le_bytes([head[8], head[9], head[10], head[11]]) as usize;
            let mut bytes = vec![0; size.min(1 << 20)];
            if head.starts_with(b"loge") && read_exact_at(&file, &mut bytes, at).is_ok() && size >= 64 {
                bytes[4..8].fill(0);
                write_at(&file, &crc32c(&bytes).to_le_bytes(), at + 4)?;
            }
        }
    }
    for at in [0, 512, len.saturating_sub(512)] {
        let (mut bytes, sum_at) =
            (vec![0; if at == 512 { 1024 } else { 512 }], if at == 512 { 36 } else { 64 });
        if read_exact_at(&file, &mut bytes, at).is_ok()
            && (bytes.starts_with(b"conectix") || bytes.starts_with(b"cxsparse"))
        {
            bytes[sum_at..sum_at + 4].fill(0);
            let sum = !bytes.iter().fold(0u32, |sum, b| sum.wrapping_add(u32::from(*b)));
            write_at(&file, &sum.to_be_bytes(), at + sum_at as u64)?;
        }
    }
    Ok(())
}

/// CRC-32C, bit by bit.
fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0u32, |sum, b| {
        (0..8).fold(sum ^ u32::from(*b), |n, _| if n & 1 != 0 { n >> 1 ^ 0x82f6_3b78 } else { n >> 1 })
    })
}

/// All that can be asked of an image.
fn use_it(rng: &mut Rng, image: &dyn Image) {
    let size = image.size();
    let _ = image.details();
    let _ = image.snapshots();
    let mut buf = vec![0; 1 << 20];
    for _ in 0..12 {
        let at = number(rng, size.max(1)).min(size.saturating_sub(1));
        let at = if rng.chance(50) { at } else { rng.below(size.clamp(1, 8 << 20)) };
        let len = (1 + rng.below(buf.len() as u64)).min(size.saturating_sub(at));
        let part = &mut buf[..len as usize];
        match rng.below(if image.read_only() { 4 } else { 16 }) {
            0 | 1 => _ = image.read(at, part),
            2 => {
                let mut at = at;
                for _ in 0..100 {
                    match image.extent(at) {
                        Ok(extent) if extent.len > 0 && at + extent.len < size => at += extent.len,
                        _ => break,
                    }
                }
            }
            3 => _ = image.check(false),
            4..=8 => _ = image.write(at, part),
            9 => _ = image.zero(at, len, rng.chance(50)),
            10 => _ = image.discard(at, len),
            11 => _ = image.flush(),
            12 => _ = image.snapshot_create("two"),
            13 => _ = image.snapshot_apply("one"),
            14 => _ = image.check(true),
            _ if rng.chance(50) => _ = image.snapshot_delete("one"),
            _ => _ = image.resize(number(rng, size.max(1)) & !511),
        }
    }
    // Beyond the end and of no length.
    let _ = image.read(size, &mut [0; 1]);
    let _ = image.read(u64::MAX, &mut [0; 1]);
    let _ = image.extent(size);
    let _ = image.read(0, &mut []);
    let _ = image.flush();
}
