//! Images that are made by us are read by QEMU's tools, and theirs by us, bit for bit; what was flushed before a kill
//! is there after it. Needs Debian's `qemu-utils`; says so where they are not there.
//!
//! `MYNAH_IMAGE_HISTORIES` is the number of random histories (12, in the ignored test 200), `MYNAH_IMAGE_KILLS` that
//! of kills (12, 300), `MYNAH_SEED` where the seeds begin.
#![cfg(target_os = "linux")]
mod kit;

use kit::*;
use mynah_block::qcow2::{Compression, CreateOptions, Qcow2};
use mynah_block::{Backing, HostFile, Image, OpenOptions, Storage, open};
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

fn create(path: &Path, options: &CreateOptions) {
    fs::File::create(path).unwrap();
    let storage: Arc<dyn Storage> = Arc::new(HostFile::open(path, true, false).unwrap());
    Qcow2::create(&storage, options).unwrap();
}

fn ours(path: &Path) -> Arc<dyn Image> {
    open(&OpenOptions { format: Some("qcow2".into()), ..OpenOptions::new(path) }).unwrap()
}

/// The disk's bytes as QEMU reads them.
fn as_qemu_reads(folder: &Folder, path: &Path) -> Vec<u8> {
    let raw = folder.path("qemu.raw");
    qemu_img(&["convert", "-O", "raw", path.to_str().unwrap(), raw.to_str().unwrap()]);
    fs::read(raw).unwrap()
}

/// One random change by us.
fn change(rng: &mut Rng, image: &dyn Image, model: &mut Vec<u8>) {
    let size = model.len() as u64;
    let at = rng.below(size);
    let len = 1 + rng.below((size - at).min(200_000));
    let range = at as usize..(at + len) as usize;
    match rng.below(10) {
        0..=4 => {
            let data = rng.pattern(len as usize);
            image.write(at, &data).unwrap();
            model[range].copy_from_slice(&data);
        }
        5 | 6 => {
            image.zero(at, len, rng.below(2) == 0).unwrap();
            model[range].fill(0);
        }
        7 => {
            let cluster = image.details().cluster_size.unwrap();
            let at = at & !(cluster - 1);
            let data = rng.pattern(cluster.min(size - at) as usize);
            image.write_compressed(at, &data).unwrap();
            model[at as usize..at as usize + data.len()].copy_from_slice(&data);
        }
        8 => {
            let size = (1 + rng.below(size * 5 / 4)) as usize & !511 | 512;
            // Version 2 images with snapshots keep their size.
            if image.resize(size as u64).is_ok() {
                model.resize(size, 0);
            }
        }
        _ => image.flush().unwrap(),
    }
}

/// Some changes by `qemu-io`, at multiples of 512 as it likes them.
fn change_by_qemu(rng: &mut Rng, path: &Path, model: &mut [u8]) {
    let mut commands = Vec::new();
    for _ in 0..8 {
        let sectors = model.len() as u64 / 512;
        let at = rng.below(sectors);
        let len = (1 + rng.below((sectors - at).min(300))) * 512;
        let at = at * 512;
        let range = at as usize..(at + len) as usize;
        let byte = rng.next() as u8;
        match rng.below(4) {
            0 => {
                commands.push(format!("write -z -u {at} {len}"));
                model[range].fill(0);
            }
            _ => {
                commands.push(format!("write -P {byte} {at} {len}"));
                model[range].fill(byte);
            }
        }
    }
    let mut args: Vec<&str> = Vec::new();
    for command in &commands {
        args.extend(["-c", command]);
    }
    let out = Command::new("qemu-io").args(["-f", "qcow2"]).args(args).arg(path).output().unwrap();
    let text = String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success() && !text.contains("failed"), "{text}");
}

#[test]
fn histories_by_us_and_by_qemu_are_read_bit_for_bit_by_the_other() {
    histories(number("MYNAH_IMAGE_HISTORIES", 12));
}

/// As above, for a night: MYNAH_IMAGE_HISTORIES of them (200).
#[test]
#[ignore = "takes minutes"]
fn many_histories_by_us_and_by_qemu() {
    histories(number("MYNAH_IMAGE_HISTORIES", 200));
}

/// Half of them qcow2's, which can more; the other formats take turns.
fn histories(many: u64) {
    if !qemu_there() {
        return;
    }
    let first = number("MYNAH_SEED", 1);
    for seed in first..first + many {
        let n = (seed / 2) as usize % OTHERS.len();
        if seed % 2 == 0 { qcow2_history(seed) } else { history_of_another(seed, OTHERS[n].0, OTHERS[n].1) }
    }
}

fn qcow2_history(seed: u64) {
    let rng = &mut Rng(seed);
    let folder = Folder::new("histories");
    let (path, base) = (folder.path("a.qcow2"), folder.path("base.raw"));
    let version = if rng.below(4) == 0 { 2 } else { 3 };
    let cluster_size = 512 << rng.below(9);
    let zstd = version == 3 && rng.below(2) == 0;
    let mut options = CreateOptions {
        size: (1 + rng.below(8000)) * 512,
        version,
        cluster_size,
        refcount_bits: if version == 2 { 16 } else { 8 << rng.below(4) },
        compression: if zstd { Compression::Zstd } else { Compression::Zlib },
        ..CreateOptions::default()
    };
    let mut model = Vec::new();
    if rng.below(2) == 0 {
        let len = 512 * (1 + rng.below(options.size / 512 + 10)) as usize;
        model = rng.pattern(len);
        fs::write(&base, &model).unwrap();
        options.backing.file = Some("base.raw".into());
        options.backing.format = Some("raw".into());
    }
    model.resize(options.size as usize, 0);
    create(&path, &options);
    let what = |round: u64| format!("seed {seed}, round {round}, {options:?}");
    let mut saved: Vec<(String, Vec<u8>)> = Vec::new();
    for round in 0..4 {
        let image = ours(&path);
        for _ in 0..12 {
            change(rng, &*image, &mut model);
        }
        if rng.below(2) == 0 {
            let name = format!("ours{round}");
            image.snapshot_create(&name).unwrap();
            saved.push((name, model.clone()));
            change(rng, &*image, &mut model);
        }
        drop(image);
        qemu_img(&["check", path.to_str().unwrap()]);
        let theirs = as_qemu_reads(&folder, &path);
        assert!(theirs[..model.len()] == model, "QEMU reads something else: {}", what(round));
        if model.len() % 512 == 0 {
            change_by_qemu(rng, &path, &mut model);
        }
        if rng.below(2) == 0 {
            let name = format!("theirs{round}");
            qemu_img(&["snapshot", "-c", &name, path.to_str().unwrap()]);
            saved.push((name, model.clone()));
        }
        if saved.len() > 1 && rng.below(2) == 0 {
            let (name, then) = saved[rng.below(saved.len() as u64) as usize].clone();
            assert!(version == 3 || then.len() == model.len());
            if rng.below(2) == 0 {
                ours(&path).snapshot_apply(&name).unwrap();
            } else {
                qemu_img(&["snapshot", "-a", &name, path.to_str().unwrap()]);
            }
            model = then;
        }
        if saved.len() > 2 {
            let (name, _) = saved.remove(rng.below(saved.len() as u64) as usize);
            if rng.below(2) == 0 {
                ours(&path).snapshot_delete(&name).unwrap();
            } else {
                qemu_img(&["snapshot", "-d", &name, path.to_str().unwrap()]);
            }
        }
        qemu_img(&["check", path.to_str().unwrap()]);
        let image = ours(&path);
        assert_eq!(image.size(), model.len() as u64, "{}", what(round));
        let mut now = vec![0xee; model.len()];
        image.read(0, &mut now).unwrap();
        assert!(now == model, "we read something else: {}", what(round));
        let report = image.check(false).unwrap();
        assert_eq!((report.corruptions, report.leaks), (0, 0), "{}: {report:?}", what(round));
    }
    let names: Vec<String> = ours(&path).snapshots().unwrap().into_iter().map(|s| s.name).collect();
    assert_eq!(names, saved.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>());
}

#[test]
fn images_that_qemu_has_compressed_are_read() {
    if !qemu_there() {
        return;
    }
    let folder = Folder::new("compressed");
    let (raw, path) = (folder.path("a.raw"), folder.path("a.qcow2"));
    let data = Rng(5).pattern(3_000_320);
    fs::write(&raw, &data).unwrap();
    for kind in ["zlib", "zstd"] {
        let option = format!("compression_type={kind}");
        qemu_img(&[
            "convert",
            "-f",
            "raw",
            "-O",
            "qcow2",
            "-c",
            "-o",
            &option,
            raw.to_str().unwrap(),
            path.to_str().unwrap(),
        ]);
        let image = ours(&path);
        let mut now = vec![0; data.len()];
        image.read(0, &mut now).unwrap();
        assert!(now == data, "{kind}");
        let report = image.check(false).unwrap();
        assert!(report.compressed_clusters > 0 && report.corruptions + report.leaks == 0, "{report:?}");
    }
}

#[test]
fn who_uses_an_image_is_named_and_keeps_others_out() {
    if !qemu_there() || Command::new("qemu-system-x86_64").arg("-version").output().is_err() {
        return;
    }
    let folder = Folder::new("locks");
    let path = folder.path("disk.qcow2");
    create(&path, &CreateOptions { size: 1 << 20, ..CreateOptions::default() });
    let image = ours(&path);
    let io = |args: &[&str]| {
        let out = Command::new("qemu-io").args(args).arg(&path).output().unwrap();
        String::from_utf8_lossy(&out.stderr).into_owned()
    };
    assert!(io(&["-c", "write 0 512"]).contains("lock"), "{}", io(&["-c", "write 0 512"]));
    drop(image);
    assert_eq!(io(&["-c", "write 0 512"]), "");
    let drive = format!("file={},format=qcow2,if=none", path.display());
    let mut child = Command::new("qemu-system-x86_64")
        .args(["-S", "-display", "none", "-M", "none", "-monitor", "stdio", "-drive", &drive])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    // It greets when it has opened its drives.
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let read_only = open(&OpenOptions::read_only(&path)).map(drop);
    let write = open(&OpenOptions::new(&path)).map(drop);
    let shared = open(&OpenOptions { force_share: true, ..OpenOptions::read_only(&path) }).map(drop);
    child.kill().unwrap();
    child.wait().unwrap();
    let wanted = format!("{}: in use by qemu-system-x86_64 (pid {})", path.display(), child.id());
    assert_eq!(write.unwrap_err().to_string(), wanted);
    assert_eq!(read_only.unwrap_err().to_string(), wanted);
    shared.unwrap();
}

#[test]
fn backing_files_are_followed_within_the_folder() {
    let folder = Folder::new("chain");
    let below = folder.path("below");
    fs::create_dir(&below).unwrap();
    fs::write(below.join("base.raw"), [7; 4096]).unwrap();
    let with = |name: &Path, backing: &str, format: Option<&str>| {
        let mut options = CreateOptions { size: 8192, ..CreateOptions::default() };
        options.backing.file = Some(backing.into());
        options.backing.format = format.map(Into::into);
        create(name, &options);
    };
    let (top, loop_) = (folder.path("top.qcow2"), folder.path("loop.qcow2"));
    with(&top, "below/base.raw", Some("raw"));
    let mut all = [1; 8192];
    ours(&top).read(0, &mut all).unwrap();
    assert_eq!((all[4095], all[4096]), (7, 0));
    let outside = below.join("up.qcow2");
    with(&outside, "../top.qcow2", None);
    let text = open(&OpenOptions::new(&outside)).map(drop).unwrap_err().to_string();
    assert!(text.contains("outside of its folder"), "{text}");
    let anywhere = OpenOptions { backing: Backing::Anywhere, ..OpenOptions::new(&outside) };
    open(&anywhere).unwrap().read(0, &mut all).unwrap();
    assert_eq!(all[0], 7);
    with(&loop_, "loop.qcow2", Some("qcow2"));
    let text = open(&OpenOptions::new(&loop_)).map(drop).unwrap_err().to_string();
    assert!(text.contains("stands on itself"), "{text}");
    with(&loop_, "nbd://host/x", None);
    let text = open(&OpenOptions::new(&loop_)).map(drop).unwrap_err().to_string();
    assert!(text.contains("'nbd:' is not supported"), "{text}");
    // What is written to a temporary overlay is not in the file.
    let image = open(&OpenOptions { snapshot: true, ..OpenOptions::new(&top) }).unwrap();
    image.write(0, &[9; 100]).unwrap();
    image.read(0, &mut all).unwrap();
    assert_eq!((all[99], all[100]), (9, 7));
    drop(image);
    ours(&top).read(0, &mut all).unwrap();
    assert_eq!(all[0], 7);
}

/// The child of the test below: writes numbered patterns, and says of each what it was when it is flushed.
#[test]
fn child_that_writes_until_it_is_killed() {
    let Ok(path) = std::env::var("MYNAH_KILL_IMAGE") else { return };
    let format = std::env::var("MYNAH_KILL_FORMAT").unwrap();
    let image = open(&in_format(Path::new(&path), &format)).unwrap();
    let rng = &mut Rng(number("MYNAH_KILL_SEED", 0));
    let mut n = number("MYNAH_KILL_FROM", 1);
    loop {
        let mut batch = Vec::new();
        for _ in 0..1 + rng.below(12) {
            let slot = rng.below(image.size() / SLOT);
            n += 1;
            image.write(slot * SLOT, &slot_of(n)).unwrap();
            batch.push((slot, n));
            if rng.below(6) == 0 {
                // Beside the slots' half there are zeros and garbage.
                let at = image.size() / 2 + rng.below(image.size() / 2 - 70_000);
                match rng.below(3) {
                    0 => image.discard(at, 70_000).unwrap(),
                    1 => image.zero(at, 70_000, true).unwrap(),
                    _ => {}
                }
            }
        }
        let text: Vec<String> = batch.iter().map(|(slot, n)| format!("{slot} {n}")).collect();
        println!("wrote {}", text.join(" "));
        image.flush().unwrap();
        println!("flushed");
    }
}

const SLOT: u64 = 8192;

fn slot_of(n: u64) -> Vec<u8> {
    n.to_le_bytes().iter().copied().cycle().take(SLOT as usize).collect()
}

#[test]
fn what_was_flushed_before_a_kill_is_there_and_the_image_is_sound() {
    kills(number("MYNAH_IMAGE_KILLS", 12));
}

/// As above, for a night: MYNAH_IMAGE_KILLS kills (300).
#[test]
#[ignore = "takes minutes"]
fn many_kills_lose_nothing() {
    kills(number("MYNAH_IMAGE_KILLS", 300));
}

/// Three kills of each image; the formats take turns.
fn kills(many: u64) {
    if !qemu_there() {
        return;
    }
    let first = number("MYNAH_SEED", 1);
    let folder = Folder::new("kill");
    for seed in first..first + many.div_ceil(3) {
        let rng = &mut Rng(seed + 1000);
        let format =
            ["qcow2", "vmdk", "vhdx", "raw", "qcow2", "vmdk", "vhdx", "vdi", "vpc"][seed as usize % 9];
        let path = folder.path(&format!("kill{seed}.img"));
        let size: u64 = 64 << 20;
        if format == "qcow2" {
            let (version, bits) = if seed % 4 == 3 { (2, 16) } else { (3, 8 << rng.below(4)) };
            let options = CreateOptions {
                size,
                version,
                cluster_size: 512 << rng.below(9),
                refcount_bits: bits,
                lazy_refcounts: version == 3 && seed % 2 == 0,
                ..CreateOptions::default()
            };
            create(&path, &options);
        } else {
            let block = ("block_size".to_string(), format!("{}M", 1 << rng.below(5)));
            let options = if format == "vhdx" { vec![block] } else { Vec::new() };
            mynah_block::create(&path, format, size, &options).unwrap();
        }
        // What a slot must hold: the last number flushed, or one that was written after it.
        let mut slots: Vec<Vec<u64>> = vec![vec![0]; (size / SLOT) as usize];
        let mut from = 1;
        for round in 0..3 {
            let mut child = Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "child_that_writes_until_it_is_killed", "--nocapture"])
                .env("MYNAH_KILL_IMAGE", &path)
                .env("MYNAH_KILL_FORMAT", format)
                .env("MYNAH_KILL_SEED", (seed * 8 + round).to_string())
                .env("MYNAH_KILL_FROM", from.to_string())
                .stdout(Stdio::piped())
                .spawn()
                .unwrap();
            let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
            let mut left = 5 + rng.below(60);
            let mut pending: Vec<(usize, u64)> = Vec::new();
            let mut killed = false;
            // What is still in the pipe after the kill counts too.
            while let Some(Ok(line)) = lines.next() {
                if let Some(at) = line.find("wrote ") {
                    let numbers: Vec<u64> = line[at + 6..].split(' ').map(|n| n.parse().unwrap()).collect();
                    for two in numbers.chunks(2) {
                        slots[two[0] as usize].push(two[1]);
                        pending.push((two[0] as usize, two[1]));
                        from = from.max(two[1]);
                    }
                } else if line.ends_with("flushed") {
                    for (slot, n) in pending.drain(..) {
                        slots[slot].retain(|m| *m >= n);
                    }
                }
                left = left.saturating_sub(1);
                if left == 0 && !killed {
                    std::thread::sleep(std::time::Duration::from_micros(rng.below(3000)));
                    child.kill().unwrap();
                    killed = true;
                }
            }
            child.wait().unwrap();
            from += 100;
            checked_by_us(&path, format);
            let mut disk = vec![1; size as usize];
            let image = open(&OpenOptions { read_only: true, ..in_format(&path, format) }).unwrap();
            image.read(0, &mut disk).unwrap();
            drop(image);
            // QEMU replays a VHDX's log only when it repairs: a copy, so that we replay ours.
            let copy = folder.path("copy.img");
            fs::copy(&path, &copy).unwrap();
            checked_by_qemu(&copy, format, format == "vhdx");
            let raw = folder.path("qemu.raw");
            let (from_path, to) = (copy.to_str().unwrap(), raw.to_str().unwrap());
            qemu_img(&["convert", "-f", format, "-O", "raw", from_path, to]);
            let theirs = fs::read(&raw).unwrap();
            assert!(theirs == disk, "{format}, seed {seed}, round {round}: QEMU reads something else");
            for (slot, allowed) in slots.iter_mut().enumerate().take(disk.len() / SLOT as usize / 2) {
                let now = &disk[slot * SLOT as usize..(slot + 1) * SLOT as usize];
                let mut there = Vec::new();
                for sector in now.chunks(512) {
                    let n = u64::from_le_bytes(sector[..8].try_into().unwrap());
                    // A write that was never told of may have begun, and have come to some of the slot's clusters.
                    assert!(
                        (allowed.contains(&n) || n > from - 100) && *sector == slot_of(n)[..512],
                        "{format}, seed {seed}, round {round}, slot {slot}: {n}, {allowed:?}"
                    );
                    there.push(n);
                }
                there.dedup();
                *allowed = there;
            }
        }
    }
}

/// Formats of others that are written: the format, `-o` for us and for `qemu-img`.
const OTHERS: &[(&str, &[(&str, &str)])] = &[
    ("vdi", &[]),
    ("vdi", &[("static", "on")]),
    ("vpc", &[("force_size", "on")]),
    ("vpc", &[("subformat", "fixed"), ("force_size", "on")]),
    ("vhdx", &[]),
    ("vhdx", &[("block_size", "1M"), ("log_size", "2M")]),
    ("vhdx", &[("subformat", "fixed"), ("block_state_zero", "off")]),
    ("vmdk", &[]),
    ("vmdk", &[("zeroed_grain", "on")]),
    ("vmdk", &[("subformat", "monolithicFlat")]),
    ("vmdk", &[("subformat", "twoGbMaxExtentSparse"), ("adapter_type", "lsilogic")]),
    ("vmdk", &[("subformat", "twoGbMaxExtentFlat"), ("compat6", "on")]),
];

#[test]
fn other_formats_are_written_and_read_bit_for_bit() {
    if !qemu_there() {
        return;
    }
    for (n, (format, options)) in OTHERS.iter().enumerate() {
        history_of_another(n as u64 + 40, format, options);
    }
}

fn in_format(path: &Path, format: &str) -> OpenOptions {
    OpenOptions { format: Some(format.to_string()), ..OpenOptions::new(path) }
}

/// `qemu-img check`, where there is something to check.
fn checked_by_qemu(path: &Path, format: &str, repair: bool) {
    if !matches!(format, "raw" | "vpc") {
        let mut args = vec!["check", "-q", "-f", format, path.to_str().unwrap()];
        if repair {
            args.extend(["-r", "all"]);
        }
        let out = Command::new("qemu-img").args(&args).output().unwrap();
        let text = String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr);
        assert!(matches!(out.status.code(), Some(0 | 3)), "{format}: {text}");
    }
}

fn checked_by_us(path: &Path, format: &str) {
    let options = OpenOptions { check: true, read_only: true, ..in_format(path, format) };
    match open(&options).unwrap().check(false) {
        Ok(report) => assert_eq!(report.corruptions, 0, "{format}: {:?}", report.messages),
        Err(e) => assert_eq!(e.kind(), std::io::ErrorKind::Unsupported, "{format}: {e}"),
    }
}

/// One random history of a format that has no snapshots, made by us and made by QEMU.
fn history_of_another(seed: u64, format: &str, options: &[(&str, &str)]) {
    let rng = &mut Rng(seed);
    let folder = Folder::new("others");
    let (path, raw) = (folder.path("a.img"), folder.path("a.raw"));
    let size = 512 * (1 + rng.below(20_000));
    let options: Vec<(String, String)> =
        options.iter().map(|(n, v)| (n.to_string(), v.to_string())).collect();
    let text = options.iter().map(|(n, v)| format!("{n}={v}")).collect::<Vec<_>>().join(",");
    for by_us in [true, false] {
        let what = format!("{format}, {text}, seed {seed}, made by us: {by_us}");
        let _ = fs::remove_file(&path);
        if by_us {
            mynah_block::create(&path, format, size, &options).unwrap();
        } else {
            let mut args = vec!["create", "-q", "-f", format];
            if !text.is_empty() {
                args.extend(["-o", &text]);
            }
            let size = size.to_string();
            args.extend([path.to_str().unwrap(), &size]);
            qemu_img(&args);
        }
        let mut model = vec![0; size as usize];
        for _ in 0..3 {
            let image = open(&in_format(&path, format)).unwrap_or_else(|e| panic!("{what}: {e}"));
            assert_eq!((image.format(), image.size()), (format, size), "{what}");
            for _ in 0..10 {
                let at = rng.below(size);
                let len = 1 + rng.below((size - at).min(300_000));
                let range = at as usize..(at + len) as usize;
                match rng.below(6) {
                    0 => {
                        image.zero(at, len, true).unwrap();
                        model[range].fill(0);
                    }
                    1 => {
                        image.discard(at, len).unwrap();
                        image.read(at, &mut model[range]).unwrap();
                    }
                    2 => image.flush().unwrap(),
                    _ => {
                        let data = rng.pattern(len as usize);
                        image.write(at, &data).unwrap();
                        model[range].copy_from_slice(&data);
                    }
                }
            }
            drop(image);
            checked_by_us(&path, format);
            checked_by_qemu(&path, format, false);
            let (from, to) = (path.to_str().unwrap(), raw.to_str().unwrap());
            qemu_img(&["convert", "-f", format, "-O", "raw", from, to]);
            assert!(fs::read(&raw).unwrap() == model, "QEMU reads something else: {what}");
            // And QEMU writes some.
            let at = rng.below(size / 512) * 512;
            let len = (size - at).min(70_144);
            let command = format!("write -P 77 {at} {len}");
            let io =
                Command::new("qemu-io").args(["-f", format, "-c", &command]).arg(&path).output().unwrap();
            assert!(io.status.success(), "{what}: {io:?}");
            model[at as usize..(at + len) as usize].fill(77);
            checked_by_us(&path, format);
            let image = open(&OpenOptions { read_only: true, ..in_format(&path, format) }).unwrap();
            let mut now = vec![1; size as usize];
            image.read(0, &mut now).unwrap();
            assert!(now == model, "we read something else: {what}");
        }
    }
}

#[test]
fn images_of_several_files_and_large_blocks_are_the_same_to_both() {
    if !qemu_there() {
        return;
    }
    let size: u64 = 5 << 30;
    let places = [0, (2 << 30) - 1024, (2 << 30) + 8192, 4 << 30, size - 4096];
    for (format, option) in [
        ("vmdk", "subformat=twoGbMaxExtentSparse"),
        ("vmdk", "subformat=twoGbMaxExtentFlat"),
        ("vmdk", "subformat=monolithicFlat"),
        ("vhdx", "block_size=256M"),
        ("vhdx", "block_size=16M"),
    ] {
        let folder = Folder::new("large");
        let path = folder.path("a.img");
        let (name, value) = option.split_once('=').unwrap();
        mynah_block::create(&path, format, size, &[(name.into(), value.into())]).unwrap();
        let image = open(&in_format(&path, format)).unwrap();
        for (n, at) in places.into_iter().enumerate() {
            image.write(at, &vec![n as u8 + 1; 4096]).unwrap();
        }
        drop(image);
        checked_by_qemu(&path, format, false);
        let mut io = Command::new("qemu-io");
        io.args(["-f", format]);
        io.args(["-c", "read -P 0 3G 64k"]);
        for (n, at) in places.into_iter().enumerate() {
            io.args(["-c", &format!("read -P {} {at} 4096", n + 1)]);
            io.args(["-c", &format!("write -P 9 {} 512", (3u64 << 30) + n as u64 * 512)]);
        }
        let out = io.arg(&path).output().unwrap();
        let text = String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr);
        assert!(out.status.success() && !text.contains("failed"), "{format}, {option}: {text}");
        let image = open(&OpenOptions { read_only: true, ..in_format(&path, format) }).unwrap();
        let mut now = [0; 3072];
        image.read(3 << 30, &mut now).unwrap();
        assert!(now[..2560] == [9; 2560] && now[2560..] == [0; 512], "{format}, {option}");
    }
}

#[test]
fn blocks_that_overlap_are_damage_to_both() {
    let folder = Folder::new("overlap");
    let path = folder.path("a.vdi");
    mynah_block::create(&path, "vdi", 16 << 20, &[]).unwrap();
    let image = open(&in_format(&path, "vdi")).unwrap();
    for n in [9, 4, 2] {
        image.write(n << 20, &[7; 512]).unwrap();
    }
    drop(image);
    checked_by_us(&path, "vdi");
    let (mut file, sound) = (fs::read(&path).unwrap(), fs::read(&path).unwrap());
    // Block 4 stands where block 9 does; and a count that is wrong.
    file.copy_within(512 + 9 * 4..512 + 10 * 4, 512 + 4 * 4);
    let mut counted = sound.clone();
    counted[388] = 5;
    for (bytes, damage) in [(&sound, false), (&file, true), (&counted, true)] {
        fs::write(&path, bytes).unwrap();
        let options = OpenOptions { check: true, ..OpenOptions::read_only(&path) };
        let report = open(&options).unwrap().check(false).unwrap();
        assert_eq!(report.corruptions > 0, damage, "{:?}", report.messages);
        if qemu_there() {
            let code =
                Command::new("qemu-img").args(["check", "-f", "vdi"]).arg(&path).output().unwrap().status;
            assert_eq!(code.code(), Some(if damage { 2 } else { 0 }));
        }
    }
}

#[test]
fn what_is_amended_is_to_qemu_what_its_own_tool_makes_of_it() {
    if !qemu_there() {
        return;
    }
    let folder = Folder::new("amend");
    let (base, path, theirs) = (folder.path("base.raw"), folder.path("a.qcow2"), folder.path("b.qcow2"));
    fs::write(&base, Rng(4).pattern(5 << 20)).unwrap();
    let options = |text: &str| -> Vec<(String, String)> {
        let pairs = text.split(',').map(|pair| pair.split_once('=').unwrap());
        pairs.map(|(name, value)| (name.to_string(), value.to_string())).collect()
    };
    let info = |path: &Path| {
        let text = qemu_img(&["info", "--output=json", path.to_str().unwrap()]);
        let keep = |line: &&str| !["filename", "actual-size"].iter().any(|word| line.contains(word));
        text.lines().filter(keep).collect::<Vec<_>>().join("\n")
    };
    for backed in [false, true] {
        for changes in [
            &["compat=0.10"][..],
            &["compat=0.10", "compat=1.1"],
            &["lazy_refcounts=on", "lazy_refcounts=off", "lazy_refcounts=on", "compat=v2"],
            &["size=20971520", "size=6291456"],
            &["compat=0.10", "compat=1.1,lazy_refcounts=on,size=9M"],
        ] {
            let mut chosen = CreateOptions { size: 8 << 20, ..CreateOptions::default() };
            if backed {
                chosen.backing.file = Some("base.raw".into());
                chosen.backing.format = Some("raw".into());
            }
            let _ = fs::remove_file(&path);
            create(&path, &chosen);
            let image = ours(&path);
            image.write(100_000, &[5; 300_000]).unwrap();
            // Zeros that stand before what the backing file has, with a cluster of their own and without.
            image.zero(131_072, 65_536, false).unwrap();
            image.zero(1 << 20, 1 << 20, true).unwrap();
            image.write((8 << 20) - 512, &[6; 512]).unwrap();
            drop(image);
            fs::copy(&path, &theirs).unwrap();
            for change in changes {
                ours(&path).amend(&options(change)).unwrap_or_else(|e| panic!("{change}: {e}"));
                qemu_img(&["amend", "-q", "-f", "qcow2", "-o", change, theirs.to_str().unwrap()]);
                assert_eq!(info(&path), info(&theirs), "{change}");
                qemu_img(&["check", "-q", path.to_str().unwrap()]);
                assert!(as_qemu_reads(&folder, &path) == as_qemu_reads(&folder, &theirs), "{change}");
                let report = ours(&path).check(false).unwrap();
                assert_eq!((report.corruptions, report.leaks), (0, 0), "{change}: {report:?}");
            }
        }
    }
    let refused = |text: &str| ours(&path).amend(&options(text)).unwrap_err().to_string();
    assert!(refused("cluster_size=4096").contains("cluster_size"));
    assert!(refused("refcount_bits=8").contains("refcount_bits"));
    assert!(refused("backing_file=x").contains("rebase"));
    assert!(refused("foo=1").contains("foo"));
    assert!(refused("compat=0.10,lazy_refcounts=on").contains("lazy_refcounts"));
    ours(&path).snapshot_create("s").unwrap();
    assert!(refused("compat=0.10").contains("snapshots"));
    let _ = fs::remove_file(&path);
    create(
        &path,
        &CreateOptions { size: 1 << 20, compression: Compression::Zstd, ..CreateOptions::default() },
    );
    assert!(refused("compat=0.10").contains("zstd"));
}

#[test]
fn a_stream_that_we_write_is_read_by_qemu() {
    if !qemu_there() {
        return;
    }
    let folder = Folder::new("stream");
    let (path, raw) = (folder.path("a.vmdk"), folder.path("a.raw"));
    let mut data = Rng(3).pattern(3_000_320);
    data[700_000..1_500_000].fill(0);
    let size = data.len() as u64;
    mynah_block::create(&path, "vmdk", size, &[("subformat".into(), "streamOptimized".into())]).unwrap();
    let image = open(&in_format(&path, "vmdk")).unwrap();
    for (n, grain) in data.chunks(65_536).enumerate() {
        image.write_compressed(n as u64 * 65_536, grain).unwrap();
    }
    drop(image);
    checked_by_qemu(&path, "vmdk", false);
    qemu_img(&["convert", "-f", "vmdk", "-O", "raw", path.to_str().unwrap(), raw.to_str().unwrap()]);
    assert!(fs::read(&raw).unwrap() == data);
}

#[test]
fn damaged_images_of_others_end_in_errors() {
    for (format, options) in OTHERS {
        let folder = Folder::new("damaged");
        let path = folder.path("a.img");
        let options: Vec<(String, String)> =
            options.iter().map(|(n, v)| (n.to_string(), v.to_string())).collect();
        mynah_block::create(&path, format, 9 << 20, &options).unwrap();
        open(&OpenOptions::new(&path)).unwrap().write(3 << 20, &[5; 100_000]).unwrap();
        let sound = fs::read(&path).unwrap();
        for seed in 0..60 {
            let rng = &mut Rng(seed);
            let mut bytes = sound.clone();
            for _ in 0..1 + rng.below(4) {
                let at = if rng.below(3) == 0 {
                    sound.len() as u64 - 1 - rng.below(300)
                } else {
                    rng.below(sound.len().min(2048) as u64)
                };
                bytes[at as usize] = if rng.below(2) == 0 { 0xff } else { rng.next() as u8 };
            }
            fs::write(&path, &bytes).unwrap();
            let options = OpenOptions { format: Some(format.to_string()), ..OpenOptions::read_only(&path) };
            let Ok(image) = open(&options) else { continue };
            let size = image.size().min(1 << 22);
            let _ = image.read(0, &mut vec![0; size as usize]);
            let _ = image.extent(size / 2);
        }
    }
}

#[test]
fn what_others_have_made_is_read() {
    if !qemu_there() {
        return;
    }
    let folder = Folder::new("foreign");
    let (raw, path) = (folder.path("a.raw"), folder.path("a.vmdk"));
    let mut data = Rng(9).pattern(9_000_448);
    data[1_000_000..3_000_000].fill(0);
    fs::write(&raw, &data).unwrap();
    for kind in [
        "monolithicSparse",
        "monolithicFlat",
        "twoGbMaxExtentSparse",
        "twoGbMaxExtentFlat",
        "streamOptimized",
    ] {
        let option = format!("subformat={kind}");
        let (from, to) = (raw.to_str().unwrap(), path.to_str().unwrap());
        qemu_img(&["convert", "-f", "raw", "-O", "vmdk", "-o", &option, from, to]);
        let image = open(&OpenOptions::read_only(&path)).unwrap();
        assert_eq!((image.format(), image.size()), ("vmdk", data.len() as u64), "{kind}");
        let mut now = vec![1; data.len()];
        image.read(0, &mut now).unwrap();
        assert!(now == data, "{kind}");
        drop(image);
        // Damage is an error, whatever it is.
        let sound = fs::read(&path).unwrap();
        for seed in 0..40 {
            let rng = &mut Rng(seed);
            let mut bytes = sound.clone();
            for _ in 0..1 + rng.below(4) {
                let at = rng.below(bytes.len().min(200_000) as u64) as usize;
                bytes[at] = if rng.below(2) == 0 { 0xff } else { rng.next() as u8 };
            }
            fs::write(&path, &bytes).unwrap();
            let Ok(image) =
                open(&OpenOptions { format: Some("vmdk".into()), ..OpenOptions::read_only(&path) })
            else {
                continue;
            };
            let _ = image.read(0, &mut vec![0; image.size().min(1 << 22) as usize]);
            let _ = image.extent(image.size() / 2);
        }
    }
}
