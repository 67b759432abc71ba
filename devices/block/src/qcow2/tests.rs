//! Tests that need no other program: random histories on a model of a disk that loses power, and damaged images.
use super::*;
use crate::memory::Memory;
use crate::testing::{Fragile, Rng, Sparse};

/// A small image with odd numbers, chosen by seed.
fn options(rng: &mut Rng) -> CreateOptions {
    let version = if rng.below(4) == 0 { 2 } else { 3 };
    let cluster_size = 512 << rng.below(5);
    CreateOptions {
        size: 1 + rng.below(300 * cluster_size),
        version,
        cluster_size,
        refcount_bits: if version == 2 { 16 } else { 1 << rng.below(7) },
        compression: if version == 3 && rng.below(2) == 0 { Compression::Zstd } else { Compression::Zlib },
        ..CreateOptions::default()
    }
}

fn create(options: &CreateOptions) -> Arc<Fragile> {
    let fragile = Arc::new(Fragile::new(Vec::new()));
    let storage: Arc<dyn Storage> = fragile.clone();
    Qcow2::create(&storage, options).unwrap();
    fragile
}

fn open(storage: &Arc<Fragile>, backing: Option<Arc<dyn Image>>) -> Qcow2 {
    Qcow2::open(storage.clone(), backing, OpenMode::default()).unwrap()
}

fn contents(image: &Qcow2) -> Vec<u8> {
    let mut all = vec![0xee; image.size() as usize];
    image.read(0, &mut all).unwrap();
    all
}

fn pattern(rng: &mut Rng, len: usize) -> Vec<u8> {
    let byte = rng.next() as u8;
    (0..len).map(|i| if i % 7 == 0 { byte } else { (i / 64) as u8 }).collect()
}

fn sound(image: &Qcow2, what: &str) {
    let report = image.check(false).unwrap();
    assert_eq!(report.corruptions, 0, "{what}: {:?}", report.messages);
    assert_eq!(report.leaks, 0, "{what}: {:?}", report.messages);
}

/// One random change; the model gets it too.
fn change(rng: &mut Rng, image: &Qcow2, model: &mut Vec<u8>, saved: &mut Vec<(String, Vec<u8>)>) {
    let size = model.len() as u64;
    let at = rng.below(size);
    let len = 1 + rng.below((size - at).min(20_000));
    let range = at as usize..(at + len) as usize;
    match rng.below(24) {
        0..=9 => {
            let data = pattern(rng, len as usize);
            image.write(at, &data).unwrap();
            model[range].copy_from_slice(&data);
        }
        10..=13 => {
            image.zero(at, len, rng.below(2) == 0).unwrap();
            model[range].fill(0);
        }
        14 | 15 => {
            image.discard(at, len).unwrap();
            let mut now = vec![0; len as usize];
            image.read(at, &mut now).unwrap();
            assert!(now.iter().zip(&model[range.clone()]).all(|(n, m)| n == m || *n == 0));
            model[range].copy_from_slice(&now);
        }
        16 | 17 => {
            let cluster = image.cluster_size();
            let at = at & !(cluster - 1);
            let len = cluster.min(size - at) as usize;
            let data = pattern(rng, len);
            image.write_compressed(at, &data).unwrap();
            model[at as usize..at as usize + len].copy_from_slice(&data);
        }
        18 => {
            let name = format!("s{}", rng.next());
            match image.snapshot_create(&name) {
                Ok(()) => saved.push((name, model.clone())),
                Err(e) => assert_eq!(e.kind(), io::ErrorKind::StorageFull, "{e}"),
            }
        }
        19 if !saved.is_empty() => {
            let (name, then) = &saved[rng.below(saved.len() as u64) as usize];
            match image.snapshot_apply(name) {
                Ok(()) => model.clone_from(then),
                Err(e) => assert_eq!(e.kind(), io::ErrorKind::StorageFull, "{e}"),
            }
        }
        20 if !saved.is_empty() => {
            let (name, _) = saved.remove(rng.below(saved.len() as u64) as usize);
            image.snapshot_delete(&name).unwrap();
        }
        21 => {
            let size = (1 + rng.below(size * 3 / 2)) as usize;
            match image.resize(size as u64) {
                Ok(()) => model.resize(size, 0),
                Err(e) => assert_eq!(e.kind(), io::ErrorKind::Unsupported, "{e}"),
            }
        }
        _ => image.flush().unwrap(),
    }
}

#[test]
fn random_histories_end_as_the_model_does_and_leave_sound_images() {
    for seed in 0..60 {
        let rng = &mut Rng(seed);
        let options = options(rng);
        let storage = create(&options);
        let backing = (rng.below(2) == 0).then(|| {
            let len = 1 + rng.below(options.size + 5000) as usize;
            pattern(rng, len)
        });
        let below = || backing.clone().map(|b| Arc::new(Memory::read_only(b)) as Arc<dyn Image>);
        let mut model = backing.clone().unwrap_or_default();
        model.resize(options.size as usize, 0);
        let mut saved = Vec::new();
        for round in 0..4 {
            let image = open(&storage, below());
            for step in 0..25 {
                change(rng, &image, &mut model, &mut saved);
                if step % 5 == 0 {
                    assert!(
                        contents(&image) == model,
                        "seed {seed}, round {round}, step {step}: {options:?}"
                    );
                }
            }
            assert!(contents(&image) == model, "seed {seed}, round {round}: {options:?}");
            image.flush().unwrap();
            sound(&image, &format!("seed {seed}, round {round}, {options:?}"));
        }
        for (name, then) in &saved {
            let image = open(&storage, below());
            if image.snapshot_apply(name).is_ok() {
                assert!(contents(&image) == *then, "seed {seed}, snapshot {name}");
            }
        }
    }
}

#[test]
fn what_was_flushed_outlives_a_power_failure_and_nothing_is_damaged() {
    for seed in 0..150 {
        let rng = &mut Rng(seed);
        let options = options(rng);
        let storage = create(&options);
        let image = open(&storage, None);
        let mut model = vec![0; options.size as usize];
        for _ in 0..rng.below(20) {
            let at = rng.below(options.size);
            let len = 1 + rng.below((options.size - at).min(9000));
            let data = pattern(rng, len as usize);
            image.write(at, &data).unwrap();
            model[at as usize..at as usize + data.len()].copy_from_slice(&data);
        }
        image.flush().unwrap();
        // What is not written any more stands as it was; the rest may be old or new.
        let mut touched = vec![false; model.len()];
        *storage.failure.lock() = (1 + rng.below(80), seed, None);
        for _ in 0..rng.below(40) {
            let at = rng.below(options.size);
            let len = 1 + rng.below((options.size - at).min(9000));
            touched[at as usize..(at + len) as usize].fill(true);
            match rng.below(4) {
                0 => image.zero(at, len, true).unwrap(),
                1 => image.discard(at, len).unwrap(),
                _ => image.write(at, &pattern(rng, len as usize)).unwrap(),
            }
            if rng.below(8) == 0 {
                image.flush().unwrap();
            }
        }
        image.flush().unwrap();
        let in_the_midst = storage.failure.lock().2.take();
        let after = Arc::new(Fragile::new(in_the_midst.unwrap_or_else(|| storage.after_failure(rng))));
        let mode = OpenMode { read_only: true, check: false };
        let image = Qcow2::open(after, None, mode).unwrap();
        let report = image.check(false).unwrap();
        assert_eq!(report.corruptions, 0, "seed {seed}: {:?}, {options:?}", report.messages);
        let now = contents(&image);
        let lost = (0..model.len()).find(|i| !touched[*i] && now[*i] != model[*i]);
        assert_eq!(lost, None, "seed {seed}: {options:?}");
    }
}

#[test]
fn a_dirty_image_is_repaired_when_it_is_opened() {
    let storage = create(&CreateOptions { size: 1 << 20, cluster_size: 4096, ..CreateOptions::default() });
    let image = open(&storage, None);
    image.write(0, &[1; 100_000]).unwrap();
    drop(image);
    {
        let mut state = storage.state.lock();
        state.0[79] |= 1;
        // The counters of the first clusters.
        let block = be64(&state.0, 4096) as usize;
        state.0[block + 20..block + 30].fill(0);
        state.0[block + 200..block + 204].fill(1);
    }
    let mode = OpenMode { read_only: true, check: false };
    let report = Qcow2::open(storage.clone(), None, mode).unwrap().check(false).unwrap();
    assert!(report.corruptions >= 5 && report.leaks == 2, "{report:?}");
    let image = open(&storage, None);
    sound(&image, "repaired");
    assert!(!image.details().dirty);
    assert_eq!(contents(&image)[..100_000], [1; 100_000]);
}

#[test]
fn a_table_that_stands_in_two_places_is_refused() {
    let storage = create(&CreateOptions { size: 8 << 20, cluster_size: 4096, ..CreateOptions::default() });
    let image = open(&storage, None);
    image.write(0, &[1; 4096]).unwrap();
    image.write(2 << 20, &[2; 4096]).unwrap();
    drop(image);
    let sound = storage.state.lock().0.clone();
    let twice = |table: u64| {
        let mut bytes = sound.clone();
        let at = be64(&bytes, table as usize) as usize;
        bytes.copy_within(at..at + 8, at + 8);
        storage.state.lock().0 = bytes;
    };
    // The header's fields: where the L1 table is, and that of refcounts.
    twice(40);
    let error = open(&storage, None).snapshot_create("one").unwrap_err().to_string();
    assert!(error.contains("stands twice in one L1 table"), "{error}");
    twice(48);
    let mode = OpenMode { read_only: false, check: false };
    let error = Qcow2::open(storage.clone(), None, mode).map(|_| ()).unwrap_err().to_string();
    assert!(error.contains("names a block twice"), "{error}");
}

#[test]
fn refcounts_that_were_lost_are_made_where_nobody_is() {
    // All at once, and range by range.
    for (cluster_size, most) in [(512, 1 << 20), (512, 40 * 36), (65_536, 1 << 20)] {
        let options = CreateOptions { size: 4 << 20, cluster_size, ..CreateOptions::default() };
        let storage = create(&options);
        let image = open(&storage, None);
        image.write(0, &[1; 700_000]).unwrap();
        let before = contents(&image);
        drop(image);
        let table = be64(&storage.state.lock().0, 48) as usize;
        // The table has no blocks; or they are in places that somebody else has, or that are outside of the file.
        for entry in [0, cluster_size, u64::MAX << 30] {
            storage.state.lock().0[table..table + 64].chunks_exact_mut(8).for_each(|e| {
                e.copy_from_slice(&entry.to_be_bytes());
            });
            let mode = OpenMode { read_only: false, check: true };
            let image = Qcow2::open(storage.clone(), None, mode).unwrap();
            let report = image.check_holding(true, most).unwrap();
            assert!(report.corruptions_fixed > 0 && report.corruptions == 0, "{report:?}");
            assert_eq!(report.leaks + report.leaks_fixed, 0, "{report:?}");
            drop(image);
            let image = open(&storage, None);
            sound(&image, "repaired");
            assert!(contents(&image) == before, "entry {entry:#x}, clusters of {cluster_size}");
            image.write(800_000, &[2; 300_000]).unwrap();
            assert!(contents(&image)[..700_000] == before[..700_000]);
            image.zero(800_000, 300_000, true).unwrap();
            sound(&image, "written");
        }
    }
}

/// An image in a file with holes that refers to one cluster in each of so many stretches that have a refcount block
/// each. These blocks are in holes, or there are none; the clusters are in holes, or have data.
fn scattered(blocks: u64, in_holes: bool, data: bool) -> Arc<Sparse> {
    let sparse = Arc::new(Sparse::default());
    let storage: Arc<dyn Storage> = sparse.clone();
    let options = CreateOptions { size: 512 << 20, ..CreateOptions::default() };
    Qcow2::create(&storage, &options).unwrap();
    let image = Qcow2::open(storage.clone(), None, OpenMode::default()).unwrap();
    image.write(0, &[1; 512]).unwrap();
    image.flush().unwrap();
    let table = image.meta.lock().header.refcount_offset;
    let l2 = image.tables.read().l1[0] & OFFSET;
    drop(image);
    let stretch = 32_768 * options.cluster_size;
    storage.set_len((blocks + 1) * stretch).unwrap();
    for n in 1..=blocks {
        let host = n * stretch + 5 * options.cluster_size;
        storage.write_at(l2 + n * 8, &(host | COPIED).to_be_bytes()).unwrap();
        if in_holes {
            storage.write_at(table + n * 8, &(n * stretch).to_be_bytes()).unwrap();
        }
        if data {
            storage.write_at(host, &vec![7; options.cluster_size as usize]).unwrap();
        }
    }
    sparse
}

#[test]
fn a_repair_that_fills_the_host_s_disk_with_refcounts_is_refused_before_it_writes() {
    // 64 MiB are 1,024 blocks.
    for (blocks, in_holes, data) in [
        (1100, true, false),
        (1100, false, false),
        (900, true, false),
        (900, false, false),
        (1100, false, true),
    ] {
        let what = format!("{blocks} blocks, in holes: {in_holes}, data: {data}");
        let storage = scattered(blocks, in_holes, data);
        let (before, had) = (storage.written.load(Relaxed), storage.disk_usage().unwrap());
        let mode = OpenMode { read_only: false, check: true };
        let image = Qcow2::open(storage.clone(), None, mode).unwrap();
        let report = image.check(true);
        let took = storage.written.load(Relaxed) - before;
        if blocks == 1100 && !data {
            let error = report.unwrap_err().to_string();
            assert!(error.contains("MiB of refcounts"), "{what}: {error}");
            assert_eq!(took, 0, "{what}");
        } else {
            let report = report.unwrap();
            assert!(report.corruptions_fixed >= blocks && report.corruptions == 0, "{what}: {report:?}");
            sound(&image, &what);
        }
        let grown = storage.disk_usage().unwrap() - had;
        assert!(grown <= had.max(64 << 20) + (1 << 20), "{what}: {grown} bytes");
    }
}

#[test]
fn a_dirty_image_whose_repair_is_refused_is_read_and_not_written() {
    let storage = scattered(1100, true, false);
    storage.write_at(79, &[1]).unwrap();
    let before = storage.written.load(Relaxed);
    let error = Qcow2::open(storage.clone(), None, OpenMode::default()).map(drop).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{error}");
    let mode = OpenMode { read_only: true, check: false };
    let image = Qcow2::open(storage.clone(), None, mode).unwrap();
    let mut read = [0; 512];
    image.read(0, &mut read).unwrap();
    assert_eq!(read, [1; 512]);
    assert!(image.check(false).unwrap().corruptions >= 1100);
    assert_eq!(storage.written.load(Relaxed), before);
}

#[test]
fn more_references_than_are_held_are_counted_range_by_range() {
    let most = 40 * 36;
    let mut counted = check::Counted::new(most);
    let mut model = std::collections::BTreeMap::new();
    let rng = &mut Rng(7);
    let all: Vec<(u64, u64, u32)> = (0..500)
        .map(|_| (rng.below(5000), 1 + rng.below(40), [1, 3, 200, 70_000][rng.below(4) as usize]))
        .collect();
    for (at, len, n) in &all {
        (*at..at + len).for_each(|c| *model.entry(c).or_insert(0) += n);
    }
    let mut seen = 0;
    loop {
        all.iter().for_each(|(at, len, n)| counted.add(*at..at + len, *n));
        let range = counted.range();
        for (cluster, n) in model.range(range.start..range.end.min(6000)) {
            assert_eq!(counted.get(*cluster), *n, "{cluster} in {range:?}");
            seen += 1;
        }
        if !counted.next() {
            break;
        }
    }
    assert_eq!(seen, model.len());
}

#[test]
fn what_is_not_there_is_refused_by_name() {
    let storage = create(&CreateOptions { size: 1 << 20, ..CreateOptions::default() });
    let refused = |at: usize, value: u8| {
        let bytes = storage.state.lock().0.clone();
        let changed = Fragile::new(bytes);
        changed.state.lock().0[at] = value;
        let mode = OpenMode { read_only: true, check: false };
        Qcow2::open(Arc::new(changed), None, mode).map(drop).unwrap_err().to_string()
    };
    assert!(refused(79, 4).contains("external data file"));
    assert!(refused(79, 16).contains("extended L2"));
    assert!(refused(35, 1).contains("encrypted (AES)"));
    assert!(refused(35, 2).contains("encrypted (LUKS)"));
    assert!(refused(72, 0x80).contains("unknown incompatible features"));
    assert!(refused(7, 1).contains("version 1"));
    assert!(refused(24, 0x80).contains("cannot be"));
    // The backing file's name ends beyond all addresses.
    storage.state.lock().0[8..16].fill(0xff);
    assert!(refused(19, 9).contains("backing file's name"));
}

#[test]
fn damaged_images_end_in_errors() {
    for seed in 0..400 {
        let rng = &mut Rng(seed);
        let options =
            CreateOptions { size: 1 << 20, cluster_size: 512 << rng.below(4), ..CreateOptions::default() };
        let storage = create(&options);
        let image = open(&storage, None);
        image.write(1000, &[7; 70_000]).unwrap();
        image.write_compressed(options.cluster_size * 200, &vec![3; options.cluster_size as usize]).unwrap();
        image.snapshot_create("a").unwrap();
        image.write(3000, &[8; 9000]).unwrap();
        drop(image);
        {
            let mut state = storage.state.lock();
            let len = state.0.len() as u64;
            for _ in 0..1 + rng.below(6) {
                let at = match rng.below(3) {
                    0 => rng.below(112),
                    1 => rng.below(len.min(options.cluster_size * 8)),
                    _ => rng.below(len),
                } as usize;
                state.0[at] = match rng.below(3) {
                    0 => 0xff,
                    1 => state.0[at] ^ 1 << rng.below(8),
                    _ => rng.next() as u8,
                };
            }
        }
        for read_only in [true, false] {
            for check in [true, false] {
                let mode = OpenMode { read_only, check };
                let Ok(image) = Qcow2::open(storage.clone(), None, mode) else { continue };
                let size = image.size().min(1 << 20);
                let _ = image.read(0, &mut vec![0; size as usize]);
                let _ = image.extent(size / 2);
                let _ = image.snapshots();
                let _ = image.check(!read_only);
                if !read_only {
                    let _ = image.write(size / 3, &vec![5; (size / 3) as usize]);
                    let _ = image.zero(0, size / 2, true);
                    let _ = image.snapshot_create("b");
                    let _ = image.snapshot_apply("a");
                    let _ = image.snapshot_delete("a");
                    let _ = image.flush();
                }
            }
        }
    }
}

#[test]
fn writers_and_readers_at_once_see_each_others_writes_whole() {
    let options = CreateOptions { size: 8 << 20, cluster_size: 4096, ..CreateOptions::default() };
    let storage = create(&options);
    let image = open(&storage, None);
    std::thread::scope(|scope| {
        for thread in 0..4u8 {
            let image = &image;
            scope.spawn(move || {
                let rng = &mut Rng(u64::from(thread));
                // Each has its sectors: every fourth one.
                let mut model = vec![0u8; 4096];
                for _ in 0..1500 {
                    let mine = rng.below(4096);
                    let at = (mine * 4 + u64::from(thread)) * 512;
                    let mut now = [0; 512];
                    image.read(at, &mut now).unwrap();
                    assert_eq!(now, [model[mine as usize]; 512]);
                    let byte = rng.next() as u8;
                    match rng.below(10) {
                        0 => image.flush().unwrap(),
                        1 => {
                            image.zero(at, 512, true).unwrap();
                            model[mine as usize] = 0;
                        }
                        _ => {
                            image.write(at, &[byte; 512]).unwrap();
                            model[mine as usize] = byte;
                        }
                    }
                }
            });
        }
    });
    image.flush().unwrap();
    sound(&image, "after all");
}

#[test]
fn a_large_disk_that_is_written_all_over_has_few_of_its_tables_in_memory() {
    let most = (L2_CACHE >> 16) as usize;
    let span = 512 << 20;
    let size = (most as u64 + 80) * span;
    let image = open(&create(&CreateOptions { size, ..CreateOptions::default() }), None);
    for table in 0..size / span {
        image.write(table * span + 4 * 65_536, &[1]).unwrap();
        let held = image.tables.read().l2.len();
        assert!(held <= most, "{held} tables are held");
    }
    sound(&image, "written all over");
    image.write(span, &[7; 512]).unwrap();
    image.flush().unwrap();
    let mut read = [0; 512];
    image.read(span, &mut read).unwrap();
    assert_eq!(read, [7; 512]);
}

#[test]
fn zeros_over_a_backing_file_that_has_none_but_zeros_there_take_no_tables() {
    let size = 4 << 40;
    let large = || CreateOptions { size, ..CreateOptions::default() };
    let below = open(&create(&large()), None);
    let data = 3 << 40;
    below.write(data, &[7; 512]).unwrap();
    below.flush().unwrap();
    let storage = create(&large());
    let image = open(&storage, Some(Arc::new(below)));
    for unmap in [false, true] {
        image.zero(0, size, unmap).unwrap();
        image.flush().unwrap();
        let mut read = [1; 512];
        image.read(data, &mut read).unwrap();
        assert_eq!(read, [0; 512]);
    }
    let len = Storage::len(&*storage).unwrap();
    // The table of tables has a place for 8,192.
    assert!(len < 3 << 20, "{len} bytes for one table");
    sound(&image, "all zeros");
}

#[test]
fn growing_over_a_backing_file_of_terabytes_is_refused_before_it_fills_the_host_s_disk() {
    for version in [2, 3] {
        let large = || create(&CreateOptions { size: 512 << 40, version, ..CreateOptions::default() });
        // What the lowest has is not looked at.
        let middle = open(&large(), Some(Arc::new(open(&large(), None))));
        let storage = large();
        let image = open(&storage, Some(Arc::new(middle)));
        image.resize(1 << 20).unwrap();
        let error = image.resize(512 << 40).unwrap_err().to_string();
        assert!(error.contains("rebase or convert"), "{error}");
        assert_eq!(image.size(), 1 << 20);
        image.resize(16 << 20).unwrap();
        let mut read = [1; 512];
        image.read(8 << 20, &mut read).unwrap();
        assert_eq!(read, [0; 512]);
        image.flush().unwrap();
        sound(&image, "grown");
    }
}
