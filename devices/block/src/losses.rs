//! Tests: each format on a model of a disk that loses any part of what was not flushed.
use crate::image::Image;
use crate::storage::Storage;
use crate::testing::{Fragile, Rng};
use crate::{raw, vdi, vhd, vhdx, vmdk};
use std::io;
use std::sync::Arc;

const FORMATS: [&str; 7] = ["raw", "vdi", "vpc", "vpc fixed", "vhdx", "vmdk", "vmdk without tables"];

fn create(format: &str, size: u64) -> Arc<Fragile> {
    let storage = Arc::new(Fragile::new(Vec::new()));
    match format {
        "raw" => storage.set_len(size).unwrap(),
        "vdi" => vdi::create(&*storage, size, false).unwrap(),
        "vpc" => vhd::create(&*storage, size, false).unwrap(),
        "vpc fixed" => vhd::create(&*storage, size, true).unwrap(),
        "vhdx" => {
            let options = vhdx::Options { block_size: 1 << 20, ..vhdx::Options::new(size) };
            vhdx::create(&*storage, &options).unwrap();
        }
        _ => {
            let none = &mut |_: &str| -> io::Result<Arc<dyn Storage>> { Err(io::ErrorKind::NotFound.into()) };
            vmdk::create(&*storage, "a.vmdk", &vmdk::Options::new(size), none).unwrap();
            if format != "vmdk" {
                // The directories' entries: tables are made when they are wanted.
                storage.edit(|bytes| {
                    for at in [48, 56] {
                        let sector = crate::storage::le64(bytes, at) as usize;
                        bytes[sector * 512..sector * 512 + 4].fill(0);
                    }
                });
            }
        }
    }
    storage
}

fn open(format: &str, storage: Arc<Fragile>, read_only: bool) -> io::Result<Arc<dyn Image>> {
    let none = &|_: &str, _: bool| -> io::Result<Arc<dyn Storage>> { Err(io::ErrorKind::NotFound.into()) };
    Ok(match format {
        "raw" => Arc::new(raw::Raw::open(storage, read_only, false)?),
        "vdi" => vdi::open(storage, read_only, None)?,
        "vpc" | "vpc fixed" => vhd::open(storage, read_only, None)?,
        "vhdx" => Arc::new(vhdx::open(storage, read_only)?),
        _ => Arc::new(vmdk::open(storage, read_only, none)?),
    })
}

#[test]
fn what_was_flushed_outlives_a_power_failure_in_every_format() {
    const SIZE: u64 = 4 << 20;
    let seeds = std::env::var("MYNAH_LOSSES").ok().and_then(|n| n.parse().ok()).unwrap_or(6);
    for (format, seed) in FORMATS.into_iter().flat_map(|f| (0..seeds).map(move |s| (f, s))) {
        let rng = &mut Rng(seed);
        let what = format!("{format}, seed {seed}");
        let storage = create(format, SIZE);
        storage.flush().unwrap();
        let mut model = vec![0; SIZE as usize];
        // What was written since the last flush that has ended: it may be old or new.
        let mut touched = vec![false; model.len()];
        // Several times: what one failure leaves is what the next one meets.
        let mut storage = storage;
        for _ in 0..3 {
            let image = open(format, storage.clone(), false).unwrap_or_else(|e| panic!("{what}: {e}"));
            *storage.failure.lock() = (1 + rng.below(60), seed, None);
            for _ in 0..rng.below(40) {
                let at = rng.below(SIZE);
                let len = 1 + rng.below((SIZE - at).min(90_000));
                let range = at as usize..(at + len) as usize;
                match rng.below(8) {
                    0 => {
                        image.zero(at, len, true).unwrap();
                        model[range.clone()].fill(0);
                    }
                    1 | 2 => {
                        image.flush().unwrap();
                        if storage.failure.lock().2.is_none() {
                            touched.fill(false);
                        }
                        continue;
                    }
                    _ => {
                        let data: Vec<u8> = (0..len).map(|i| (i / 512 + rng.0) as u8 | 1).collect();
                        image.write(at, &data).unwrap();
                        model[range.clone()].copy_from_slice(&data);
                    }
                }
                touched[range].fill(true);
            }
            let in_the_midst = storage.failure.lock().2.take();
            let left = in_the_midst.unwrap_or_else(|| storage.after_failure(rng));
            drop(image);
            for read_only in [true, false] {
                let after = Arc::new(Fragile::new(left.clone()));
                let image = open(format, after.clone(), read_only).unwrap_or_else(|e| panic!("{what}: {e}"));
                let mut now = vec![0xee; model.len()];
                image.read(0, &mut now).unwrap();
                let lost = (0..model.len()).find(|i| !touched[*i] && now[*i] != model[*i]);
                assert_eq!(lost, None, "{what}");
                if let Ok(report) = image.check(false) {
                    assert_eq!(report.corruptions, 0, "{what}: {:?}", report.messages);
                }
                if !read_only {
                    image.flush().unwrap();
                    drop(image);
                    model = now;
                    touched.fill(false);
                    storage = Arc::new(Fragile::new(after.bytes()));
                }
            }
        }
    }
}
