//! Drives whose requests go by the kernel's ring (`aio=io_uring`): the same bytes, ends and errors as by threads.
#![cfg(target_os = "linux")]
mod kit;

use kit::*;
use mynah_block::{
    Aio, Cache, Drive, DriveError, OnError, OpenOptions, Options, Reply, Request, Stopper, ThrottleGroup,
    open,
};
use std::fs::{self, File};
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::sync::{Arc, mpsc};
use std::time::Duration;

const SIZE: u64 = 8 << 20;

/// Whether the host has rings; says what is skipped if not.
fn ring_there() -> bool {
    let there = Aio::IoUring.check();
    if let Err(e) = &there {
        eprintln!("skipped: the host has no io_uring: {e}");
    }
    there.is_ok()
}

fn drive(path: &Path, cache: Cache, options: Options) -> Arc<Drive> {
    let image = open(&OpenOptions { format: Some("raw".into()), cache, ..OpenOptions::new(path) }).unwrap();
    let options = Options { aio: Aio::IoUring, write_through: cache.write_through(), ..options };
    Drive::new(options, Some(image)).unwrap()
}

fn ask(drive: &Drive, request: Request) -> Reply {
    let (tx, rx) = mpsc::channel();
    drive.submit(request, move |reply| tx.send(reply).unwrap());
    rx.recv_timeout(Duration::from_secs(60)).expect("an end")
}

/// Many requests at a time, each to a place of its own; then all is read, by the drive and from the file.
#[test]
fn many_requests_at_a_time_end_as_the_model_has_it() {
    if !ring_there() {
        return;
    }
    for (seed, cache) in
        [(1, Cache::Writeback), (2, Cache::None), (3, Cache::Directsync), (4, Cache::Writethrough)]
    {
        let (folder, rng) = (Folder::new("ring"), &mut Rng(seed));
        let path = folder.path("a.raw");
        let mut model = rng.pattern(SIZE as usize);
        fs::write(&path, &model).unwrap();
        let drive = drive(&path, cache, Options { discard: true, ..Options::default() });
        let (tx, rx) = mpsc::channel();
        for _ in 0..if cache.write_through() { 3 } else { 20 } {
            let mut sent = 0;
            // Strips of the disk, so that none is asked for twice at the same time.
            for strip in 0..300 {
                let width = SIZE / 300;
                let mut at = strip * width + rng.below(width / 2);
                let mut len = 1 + rng.below(width / 2);
                if rng.below(2) == 0 {
                    (at, len) = ((at + 511) & !511, (len & !511).max(512));
                }
                if rng.below(3) == 0 {
                    (at, len) = ((at + 4095) & !4095, 4096);
                }
                let range = at as usize..(at + len) as usize;
                let tx = tx.clone();
                sent += 1;
                match rng.below(8) {
                    0..=3 => {
                        let data = rng.pattern(len as usize);
                        model[range].copy_from_slice(&data);
                        drive.submit(Request::Write { at, data }, move |reply| {
                            tx.send(reply == Ok(Vec::new())).unwrap();
                        });
                    }
                    4 => {
                        model[range].fill(0);
                        drive.submit(Request::Zero { at, len, unmap: true }, move |reply| {
                            tx.send(reply.is_ok()).unwrap();
                        });
                    }
                    5 => drive.submit(Request::Flush, move |reply| tx.send(reply.is_ok()).unwrap()),
                    _ => {
                        let wanted = model[range].to_vec();
                        drive.submit(Request::Read { at, len: len as usize }, move |reply| {
                            tx.send(reply == Ok(wanted)).unwrap();
                        });
                    }
                }
            }
            for _ in 0..sent {
                assert!(rx.recv_timeout(Duration::from_secs(60)).expect("an end"), "{cache:?}");
            }
        }
        assert!(ask(&drive, Request::Read { at: 0, len: SIZE as usize }) == Ok(model.clone()), "{cache:?}");
        drop(drive);
        assert!(fs::read(&path).unwrap() == model, "{cache:?}");
    }
}

#[test]
fn an_end_may_submit_more_and_a_drive_that_goes_has_done_all() {
    if !ring_there() {
        return;
    }
    let folder = Folder::new("ring");
    let path = folder.path("a.raw");
    fs::write(&path, vec![0; SIZE as usize]).unwrap();
    let drive = drive(&path, Cache::Writeback, Options::default());
    let write = |at: u64| Request::Write { at, data: vec![7; 512] };
    let again = Arc::downgrade(&drive);
    drive.submit(write(0), move |_| again.upgrade().unwrap().submit(write(512), drop));
    drive.drain();
    assert_eq!(fs::read(&path).unwrap()[..1024], [7; 1024]);
    // More than fit into the ring at once.
    for n in 0..1000 {
        drive.submit(write(4096 + n * 512), drop);
    }
    drop(drive);
    assert!(fs::read(&path).unwrap()[4096..][..512_000].iter().all(|b| *b == 7));
}

struct Stops(AtomicU32);

impl Stopper for Stops {
    fn stop(&self, name: &str, why: &str) {
        assert!(name == "hd" && why.contains("shorter"), "{name}: {why}");
        self.0.fetch_add(1, Relaxed);
    }
}

#[test]
fn errors_are_reported_or_held_as_by_threads() {
    if !ring_there() {
        return;
    }
    let folder = Folder::new("ring");
    let path = folder.path("a.raw");
    fs::write(&path, vec![3; SIZE as usize]).unwrap();
    let cut = |len: u64| File::options().write(true).open(&path).unwrap().set_len(len).unwrap();
    let read = |at: u64| Request::Read { at, len: 1024 };
    let drive_a = drive(&path, Cache::Writeback, Options::default());
    assert_eq!(ask(&drive_a, read(SIZE - 1000)), Err(DriveError::Range));
    cut(SIZE / 2 + 512);
    assert_eq!(ask(&drive_a, read(SIZE / 2)), Err(DriveError::Io));
    assert_eq!(ask(&drive_a, Request::Read { at: SIZE / 2, len: 512 }), Ok(vec![3; 512]));
    drop(drive_a);
    cut(SIZE);
    let options = Options { name: "hd".into(), rerror: OnError::Stop, ..Options::default() };
    let drive_b = drive(&path, Cache::None, options);
    let stops = Arc::new(Stops(AtomicU32::new(0)));
    let stopper: Arc<dyn Stopper> = stops.clone();
    drive_b.on_stop(Arc::downgrade(&stopper));
    cut(SIZE / 2);
    let (tx, rx) = mpsc::channel();
    drive_b.submit(read(SIZE / 2 + 4096), move |reply| tx.send(reply).unwrap());
    drive_b.drain();
    assert!(rx.try_recv().is_err() && stops.0.load(Relaxed) == 1);
    cut(SIZE);
    drive_b.resume();
    assert_eq!(rx.recv_timeout(Duration::from_secs(60)).expect("an end"), Ok(vec![0; 1024]));
    drive_b.change(None, true).unwrap();
    assert_eq!(ask(&drive_b, read(0)), Err(DriveError::NoMedium));
}

#[test]
fn drives_of_a_group_wait_for_each_other() {
    let folder = Folder::new("group");
    let mut limits = mynah_block::Limits::default();
    limits.requests[0].per_second = 1;
    let group = Arc::new(ThrottleGroup::new(limits));
    let drives = ["a", "b"].map(|name| {
        let path = folder.path(name);
        fs::write(&path, [1; 4096]).unwrap();
        let options = Options { group: Some(group.clone()), ..Options::default() };
        Drive::new(options, Some(open(&OpenOptions::new(&path)).unwrap())).unwrap()
    });
    let read = || Request::Read { at: 0, len: 512 };
    assert_eq!(ask(&drives[0], read()), Ok(vec![1; 512]));
    // What the one has done is what the other must not do.
    let (tx, rx) = mpsc::channel();
    drives[1].submit(read(), move |reply| tx.send(reply).unwrap());
    assert!(rx.recv_timeout(Duration::from_millis(100)).is_err());
    drives[1].drain();
    assert_eq!(rx.try_recv(), Ok(Ok(vec![1; 512])));
}
