//! The physical address map: what answers where, and who is told of writes.

use mynah_mmu::{CodeWatcher, GuestRam, Mmio, PhysMemory, Target};
use parking_lot::Mutex;
use std::sync::Arc;

const FOUR_GIB: u64 = 1 << 32;

/// 2 MiB of RAM below the hole, 1 MiB above 4 GiB.
fn memory() -> Arc<PhysMemory> {
    PhysMemory::new(GuestRam::new(3 << 20).unwrap(), 2 << 20)
}

/// Reads as a fixed byte pattern and writes down every access.
struct Dev {
    value: u64,
    log: Mutex<Vec<(char, u64, u8, u64)>>,
}

impl Dev {
    fn new(value: u64) -> Arc<Self> {
        Arc::new(Self { value, log: Mutex::default() })
    }

    fn take(&self) -> Vec<(char, u64, u8, u64)> {
        std::mem::take(&mut *self.log.lock())
    }
}

impl Mmio for Dev {
    fn read(&self, offset: u64, size: u8) -> u64 {
        self.log.lock().push(('r', offset, size, 0));
        self.value & (u64::MAX >> (64 - 8 * u32::from(size)))
    }

    fn write(&self, offset: u64, size: u8, value: u64) {
        self.log.lock().push(('w', offset, size, value));
    }
}

fn kind(mem: &PhysMemory, gpa: u64) -> &'static str {
    match mem.lookup(gpa) {
        Target::Ram(_) => "ram",
        Target::Rom(_) => "rom",
        Target::Mmio(..) => "mmio",
        Target::DeviceRam(_) => "device ram",
        Target::None => "none",
    }
}

#[test]
fn ram_lies_below_the_hole_and_goes_on_at_4g() {
    let mem = memory();
    assert_eq!((mem.below_4g(), mem.above_4g()), (2 << 20, 1 << 20));
    for (gpa, what) in [
        (0, "ram"),
        ((2 << 20) - 1, "ram"),
        (2 << 20, "none"),
        (FOUR_GIB - 1, "none"),
        (FOUR_GIB, "ram"),
        (FOUR_GIB + (1 << 20) - 1, "ram"),
        (FOUR_GIB + (1 << 20), "none"),
        (u64::MAX, "none"),
    ] {
        assert_eq!(kind(&mem, gpa), what, "{gpa:#x}");
    }
    let Target::Ram(high) = mem.lookup(FOUR_GIB + 5) else { panic!() };
    assert_eq!(high, mem.ram().base().wrapping_add((2 << 20) + 5));
}

#[test]
fn holes_read_as_ones_and_writes_to_them_vanish() {
    let mem = memory();
    mem.write_u64(3 << 20, 0);
    assert_eq!(mem.read_u64(3 << 20), u64::MAX);
    assert_eq!(mem.read_u8(u64::MAX), 0xff);
    assert_eq!(mem.read_u64(u64::MAX - 3), 0xffff_ffff, "an access that wraps goes on at address 0");
    // Out of RAM's end into the hole.
    mem.write(mem.below_4g() - 2, &[1, 2, 3, 4]);
    let mut buf = [0; 4];
    mem.read(mem.below_4g() - 2, &mut buf);
    assert_eq!(buf, [1, 2, 0xff, 0xff]);
    assert_eq!(mem.read_u32(mem.below_4g() - 2), 0xffff_0201);
}

#[test]
fn later_mappings_hide_earlier_ones_until_they_go() {
    let mem = memory();
    let (a, b) = (Dev::new(0xaaaa), Dev::new(0xbbbb));
    mem.write_u16(0xa_1000, 0x1111);
    let wide = mem.map_mmio(0xa_0000, 0x3000, a.clone());
    let rom = mem.map_rom(0xa_1000, &[0x22; 4096]);
    let inner = mem.map_mmio(0xa_1800, 0x10, b.clone());
    assert_eq!(mem.read_u16(0xa_0ffe), 0xaaaa);
    assert_eq!(mem.read_u16(0xa_1000), 0x2222);
    assert_eq!(mem.read_u16(0xa_1808), 0xbbbb);
    assert_eq!(mem.read_u16(0xa_1810), 0x2222);
    assert_eq!(mem.read_u16(0xa_2000), 0xaaaa);
    assert_eq!(
        a.take().last(),
        Some(&('r', 0x2000, 2, 0)),
        "offsets count from the start of the whole range"
    );
    assert_eq!(b.take(), [('r', 8, 2, 0)]);
    let regions: Vec<_> = mem.regions().iter().map(|(gpa, len, _)| (*gpa, *len)).collect();
    let under =
        [(0xa_0000, 0x1000), (0xa_1000, 0x800), (0xa_1800, 0x10), (0xa_1810, 0x7f0), (0xa_2000, 0x1000)];
    assert_eq!(regions[1..6], under);
    mem.unmap(rom);
    assert_eq!(mem.read_u16(0xa_1000), 0xaaaa);
    mem.unmap(wide);
    assert_eq!(mem.read_u16(0xa_1000), 0x1111, "RAM is there again with its bytes");
    assert_eq!(mem.read_u16(0xa_1808), 0xbbbb);
    mem.unmap(inner);
    mem.unmap(inner);
    assert_eq!(mem.regions().len(), 2);
    assert!(mem.page_is_plain(0xa_1808).is_some());
}

#[test]
fn a_page_that_mixes_ram_and_a_device_resolves_each_byte() {
    let mem = memory();
    let dev = Dev::new(0x7766_5544_3322_1100);
    mem.map_mmio(0x5100, 6, dev.clone());
    assert_eq!([0x50ff, 0x5100, 0x5105, 0x5106].map(|gpa| kind(&mem, gpa)), ["ram", "mmio", "mmio", "ram"]);
    assert_eq!(mem.page_is_plain(0x5000), None);
    assert!(mem.page_is_plain(0x4000).is_some() && mem.page_is_plain(0x6000).is_some());
    mem.write_u64(0x50fe, 0x8877_6655_4433_2211);
    // Two bytes of RAM, six of the device: as a doubleword and a word.
    assert_eq!(dev.take(), [('w', 0, 4, 0x6655_4433), ('w', 4, 2, 0x8877)]);
    assert_eq!(mem.read_u16(0x50fe), 0x2211);
    assert_eq!(mem.read_u64(0x50fe), 0x1100_3322_1100_2211);
    assert_eq!(dev.take(), [('r', 0, 4, 0), ('r', 4, 2, 0)]);
    // DMA sees no device.
    let mut buf = [0; 8];
    mem.read(0x50fe, &mut buf);
    assert_eq!(buf, [0x11, 0x22, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]);
    mem.write(0x50fe, &[9; 16]);
    assert_eq!(mem.read_u16(0x5106), 0x0909);
    assert!(dev.take().is_empty());
}

#[test]
fn odd_and_page_crossing_device_accesses_are_split() {
    let mem = memory();
    let dev = Dev::new(0);
    mem.map_mmio(0xfeb0_0000, 0x2000, dev.clone());
    mem.phys_write(0xfeb0_0ffd, 8, 0x8877_6655_4433_2211);
    assert_eq!(
        dev.take(),
        [
            ('w', 0xffd, 2, 0x2211),
            ('w', 0xfff, 1, 0x33),
            ('w', 0x1000, 4, 0x7766_5544),
            ('w', 0x1004, 1, 0x88)
        ]
    );
    mem.phys_write(0xfeb0_0001, 4, 0x4433_2211);
    assert_eq!(dev.take(), [('w', 1, 4, 0x4433_2211)], "unaligned is the device's business");
    mem.phys_write(0xfeb0_1ffe, 4, 0x4433_2211);
    assert_eq!(dev.take(), [('w', 0x1ffe, 2, 0x2211)], "the rest falls off the end");
}

#[test]
fn roms_ignore_writes_and_pad_to_a_page() {
    let mem = memory();
    mem.map_rom(0xffff_f000, &[1, 2, 3]);
    for write in [
        |m: &PhysMemory| m.write(0xffff_f000, &[9; 4]),
        |m: &PhysMemory| m.write_u32(0xffff_f000, 0x0909_0909),
    ] {
        write(&mem);
        assert_eq!(mem.read_u32(0xffff_f000), 0xff03_0201);
    }
    let (host, writable) = mem.page_is_plain(0xffff_f123).unwrap();
    assert!(!writable && (host as usize).is_multiple_of(4096));
    mem.hold_code(0xffff_f000);
    mem.hold_code(0xfff0_0000);
    assert!(!mem.is_code(0xffff_f000) && !mem.is_code(0xfff0_0000), "code in ROM needs no watching");
    assert_eq!(mem.map_rom(0xffff_0000, &[]), 2, "an empty image is a mapping of nothing");
    mem.unmap(2);
}

#[test]
fn rom_over_ram_can_be_taken_away_and_put_back_without_new_memory() {
    let mem = memory();
    mem.write_u32(0xf_0000, 0x1234_5678);
    let image = vec![0x55; 0x1_0000];
    let mut id = mem.map_rom(0xf_0000, &image);
    let (host, _) = mem.page_is_plain(0xf_0000).unwrap();
    for _ in 0..100 {
        mem.unmap(id);
        assert_eq!(mem.read_u32(0xf_0000), 0x1234_5678);
        id = mem.map_rom(0xf_0000, &image);
        assert_eq!(mem.read_u32(0xf_0000), 0x5555_5555);
        assert_eq!(mem.page_is_plain(0xf_0000), Some((host, false)));
    }
}

#[test]
fn a_mapping_that_ends_at_the_top_of_the_address_space_is_cut_off() {
    let mem = memory();
    let dev = Dev::new(0x42);
    let id = mem.map_mmio(u64::MAX - 0xff, u64::MAX, dev.clone());
    assert_eq!(mem.read_u8(u64::MAX), 0x42);
    mem.unmap(id);
    let all = mem.map_mmio(0, u64::MAX, dev);
    assert_eq!((kind(&mem, 0x1000), kind(&mem, FOUR_GIB)), ("mmio", "mmio"));
    mem.unmap(all);
    assert_eq!((kind(&mem, 0x1000), kind(&mem, FOUR_GIB), kind(&mem, u64::MAX)), ("ram", "ram", "none"));
}

#[test]
fn each_change_of_the_map_makes_a_new_generation() {
    let mem = memory();
    let before = (mem.generation(), mem.map_generation());
    let id = mem.map_mmio(0xfec0_0000, 0x1000, Dev::new(0));
    let mapped = (mem.generation(), mem.map_generation());
    assert!(mapped.0 != before.0 && mapped.1 != before.1);
    mem.unmap(id);
    assert!(mem.generation() != mapped.0 && mem.map_generation() != mapped.1);
    let now = (mem.generation(), mem.map_generation());
    mem.set_dirty_log(true);
    assert!(mem.generation() != now.0, "entries that allow fast writes must go");
    assert_eq!(mem.map_generation(), now.1);
}

#[derive(Default)]
struct Watcher(Mutex<Vec<(u64, u64)>>);

impl CodeWatcher for Watcher {
    fn code_written(&self, gpa: u64, len: u64) {
        self.0.lock().push((gpa, len));
    }
}

#[test]
fn watchers_hear_of_writes_to_code_pages_and_of_no_others() {
    let mem = memory();
    let watcher = Arc::new(Watcher::default());
    assert_eq!(mem.watch_code(watcher.clone()), 0);
    let heard = || std::mem::take(&mut *watcher.0.lock());
    mem.hold_code(0x5123);
    mem.hold_code(0x5fff);
    assert!(mem.is_code(0x5000) && !mem.is_code(0x6000) && !mem.is_code(0x4fff));

    mem.write_u32(0x5010, 1);
    assert_eq!(heard(), [(0x5010, 4)]);
    mem.write_u32(0x4000, 1);
    assert_eq!(heard(), []);
    mem.write_u64(0x4ffc, 1);
    assert_eq!(heard(), [(0x5000, 4)], "only the part on the code page");
    mem.write(0x4800, &[0; 0x2000]);
    assert_eq!(heard(), [(0x5000, 0x1000)]);
    mem.hold_code(FOUR_GIB);
    mem.write(FOUR_GIB + 8, &[0; 2]);
    assert_eq!(heard(), [(FOUR_GIB + 8, 2)]);
    assert_eq!(mem.compare_exchange_u64(0x5008, 1, 2), Err(0));
    assert_eq!(heard(), []);
    assert_eq!(mem.compare_exchange_u64(0x5008, 0, 2), Ok(0));
    assert_eq!(heard(), [(0x5008, 8)]);
    mem.release_code(0x5000);
    mem.write_u32(0x5010, 1);
    assert_eq!(heard(), [(0x5010, 4)], "one of two has let go");
    mem.release_code(0x5000);
    mem.write_u32(0x5010, 1);
    assert_eq!(heard(), []);
}

#[test]
fn those_who_may_write_a_page_fast_are_known_by_their_bits() {
    let mem = memory();
    mem.note_writer(0x5123, 1);
    mem.note_writer(0x5fff, 4);
    mem.note_writer(FOUR_GIB, 2);
    assert_eq!((mem.writers(0x5000), mem.writers(0x6000), mem.writers(FOUR_GIB + 1)), (5, 0, 2));
    mem.forget_writer(0x5800, 1);
    assert_eq!(mem.writers(0x5000), 4);
    mem.note_writer(0xfff0_0000, 1);
    assert_eq!(mem.writers(0xfff0_0000), 0, "there is no RAM");
}

#[test]
fn watchers_hear_of_what_is_mapped_and_unmapped() {
    #[derive(Default)]
    struct Ranges(Mutex<Vec<(u64, u64)>>);
    impl CodeWatcher for Ranges {
        fn code_written(&self, _: u64, _: u64) {}
        fn map_changed(&self, first: u64, last: u64) {
            self.0.lock().push((first, last));
        }
    }
    let mem = memory();
    let ranges = Arc::new(Ranges::default());
    mem.watch_code(ranges.clone());
    let id = mem.map_mmio(0xfec0_0010, 0x20, Dev::new(0));
    mem.unmap(id);
    assert_eq!(*ranges.0.lock(), [(0xfec0_0000, 0xfec0_0fff); 2]);
}

#[test]
fn a_notification_spares_the_watcher_it_came_from_and_goes_page_by_page() {
    let mem = memory();
    let watchers = [0, 1, 2].map(|_| Arc::new(Watcher::default()));
    for (i, w) in watchers.iter().enumerate() {
        assert_eq!(mem.watch_code(w.clone()), i);
    }
    mem.notify_code_written(0x1ff0, 0x20, Some(1));
    let heard = watchers.map(|w| w.0.lock().clone());
    assert_eq!(heard, [vec![(0x1ff0, 0x10), (0x2000, 0x10)], vec![], vec![(0x1ff0, 0x10), (0x2000, 0x10)]]);
}

#[test]
fn a_watcher_may_use_the_memory_it_is_told_of() {
    struct Clears(std::sync::Weak<PhysMemory>);
    impl CodeWatcher for Clears {
        fn code_written(&self, gpa: u64, _: u64) {
            let mem = self.0.upgrade().unwrap();
            mem.release_code(gpa);
            mem.map_mmio(0xfee0_0000, 0x1000, Dev::new(0));
            mem.watch_code(Arc::new(Watcher::default()));
        }
    }
    let mem = memory();
    mem.watch_code(Arc::new(Clears(Arc::downgrade(&mem))));
    mem.hold_code(0x1000);
    mem.write_u8(0x1000, 1);
    assert!(!mem.is_code(0x1000));
    assert_eq!(kind(&mem, 0xfee0_0000), "mmio");
}

#[test]
fn writes_leave_dirty_marks_that_are_taken_once() {
    let mem = memory();
    mem.set_dirty_log(true);
    assert!(mem.dirty_log());
    mem.write(0x1ffe, &[1; 4]);
    mem.write_u8(FOUR_GIB + 0x3000, 1);
    mem.mark_dirty(0x8000);
    mem.mark_dirty(3 << 20);
    assert_eq!(mem.dirty_pages(), [0x1000, 0x2000, 0x8000, FOUR_GIB + 0x3000]);
    let generation = mem.generation();
    assert!(mem.take_dirty(0x1000) && !mem.take_dirty(0x1000) && !mem.is_dirty(0x1000));
    assert_ne!(mem.generation(), generation, "fast writes to the page must be forbidden again");
    mem.set_dirty_log(false);
    mem.set_dirty_log(true);
    assert_eq!(mem.dirty_pages(), [], "a new log starts with clean pages");
}

#[test]
fn compare_exchange_stores_only_into_ram() {
    let mem = memory();
    mem.write_u32(0x1000, 7);
    assert_eq!(mem.compare_exchange_u32(0x1000, 6, 8), Err(7));
    assert_eq!(mem.compare_exchange_u32(0x1000, 7, 8), Ok(7));
    assert_eq!(mem.read_u32(0x1000), 8);
    mem.map_rom(0x2000, &[0; 4096]);
    assert_eq!(mem.compare_exchange_u32(0x2000, 0, 8), Ok(0));
    assert_eq!(mem.read_u32(0x2000), 0);
    let dev = Dev::new(0);
    mem.map_mmio(0x3004, 4, dev.clone());
    assert_eq!(mem.compare_exchange_u64(0x3000, 0, 8), Ok(0));
    assert_eq!(mem.compare_exchange_u64(0x8000_0000, 0, 8), Ok(0));
    assert!(dev.take().is_empty());
}

#[test]
fn sizes_of_ram_around_the_hole_work() {
    for (size, below, expected) in
        [(1 << 20, FOUR_GIB, (1 << 20, 0)), (1 << 20, 0, (0, 1 << 20)), (8192, 4097, (4096, 4096))]
    {
        let mem = PhysMemory::new(GuestRam::new(size).unwrap(), below);
        assert_eq!((mem.below_4g(), mem.above_4g()), expected);
        mem.map_mmio(0, u64::MAX, Dev::new(0));
        assert_eq!(kind(&mem, 0), "mmio");
    }
}

#[test]
fn reads_while_the_map_changes_see_one_thing_or_the_other() {
    let mem = memory();
    mem.write(0x4000, &[0x11; 4096]);
    std::thread::scope(|s| {
        let reader = s.spawn(|| {
            for _ in 0..20_000 {
                let v = mem.read_u64(0x4008);
                assert!(v == 0x1111_1111_1111_1111 || v == 0x2222_2222_2222_2222, "{v:#x}");
            }
        });
        while !reader.is_finished() {
            let id = mem.map_rom(0x4000, &[0x22; 4096]);
            mem.unmap(id);
        }
    });
}

/// Bytes that tell where they were read from.
fn rom() -> Vec<u8> {
    vec![0xbb; 0x2000]
}

#[test]
fn shadow_ram_is_written_under_the_rom_and_read_in_its_place() {
    let mem = memory();
    let changes = Arc::new(Changes::default());
    mem.watch_code(changes.clone());
    // As firmware copies itself: reads show the ROM, writes go to RAM.
    let over = mem.map_rom_over_ram(0x4000, &rom());
    assert_eq!(mem.read_u32(0x4100), 0xbbbb_bbbb);
    mem.write_u32(0x4100, 0x1234_5678);
    mem.write(0x5000, &[9; 4]);
    assert_eq!((mem.read_u32(0x4100), mem.read_u32(0x5000)), (0xbbbb_bbbb, 0xbbbb_bbbb));
    assert!(mem.page_is_plain(0x4000).is_some_and(|(_, writable)| !writable));
    // Then RAM that is read and not written.
    let locked = mem.map_ram_read_only(0x4000, 0x2000);
    mem.unmap(over);
    mem.write_u32(0x4100, 0);
    mem.write(0x5000, &[0; 4]);
    assert_eq!((mem.read_u32(0x4100), mem.read_u32(0x5000)), (0x1234_5678, 0x0909_0909));
    assert!(mem.page_is_plain(0x5000).is_some_and(|(_, writable)| !writable));
    // Then RAM.
    mem.unmap(locked);
    mem.write_u32(0x4100, 1);
    assert_eq!(mem.read_u32(0x4100), 1);
    assert!(mem.page_is_plain(0x4000).is_some_and(|(_, writable)| writable));
    assert_eq!(*changes.0.lock(), [(0x4000, 0x5fff); 4], "each change is told of");
}

#[test]
fn a_hole_hides_ram_and_keeps_it() {
    let mem = memory();
    mem.write_u32(0x8000, 5);
    let hole = mem.map_hole(0x8000, 0x1000);
    mem.write_u32(0x8000, 6);
    assert_eq!(mem.read_u32(0x8000), u32::MAX);
    assert!(mem.page_is_plain(0x8000).is_none());
    assert_eq!(kind(&mem, 0x8000), "none");
    mem.unmap(hole);
    assert_eq!(mem.read_u32(0x8000), 5);
    // Where there is no RAM there is none to be shown.
    mem.map_ram_read_only(0xf000_0000, 0x1000);
    assert_eq!(mem.read_u32(0xf000_0000), u32::MAX);
}

#[derive(Default)]
struct Changes(Mutex<Vec<(u64, u64)>>);

impl CodeWatcher for Changes {
    fn code_written(&self, _: u64, _: u64) {}
    fn map_changed(&self, first: u64, last: u64) {
        self.0.lock().push((first, last));
    }
}

#[test]
fn whole_pages_of_ram_that_are_discarded_read_as_zeros_and_are_told_of() {
    if cfg!(not(target_os = "linux")) {
        eprintln!("SKIPPED: this host takes no RAM back (docs/hosts.md)");
        return;
    }
    #[derive(Default)]
    struct Watcher(Mutex<Vec<(u64, u64)>>);
    impl CodeWatcher for Watcher {
        fn code_written(&self, gpa: u64, len: u64) {
            self.0.lock().push((gpa, len));
        }
    }
    let (memory, watcher) = (memory(), Arc::new(Watcher::default()));
    memory.write(0, &vec![0xee; 2 << 20]);
    memory.write(FOUR_GIB, &vec![0xee; 1 << 20]);
    memory.map_mmio(0x8_0000, 0x1000, Dev::new(0));
    memory.watch_code(watcher.clone());
    memory.hold_code(0x3000);
    memory.take_dirty(0x3000);
    assert_eq!(memory.discard(0x2001, 0x2fff), 0x2000);
    assert_eq!([0x2fff, 0x3000, 0x4fff, 0x5000].map(|at| memory.read_u8(at)), [0xee, 0, 0, 0xee]);
    assert_eq!((watcher.0.lock().clone(), memory.is_dirty(0x3000)), (vec![(0x3000, 0x1000)], true));
    assert_eq!(memory.discard(0x7_f000, 0x3000), 0x2000, "not the device in the middle");
    // What is under it is there again when it goes.
    assert_eq!([0x7_f000, 0x8_1000, 0x8_2000].map(|at| memory.read_u8(at)), [0, 0, 0xee]);
    assert_eq!(memory.discard(0x1f_f000, 1 << 33), 0x1000 + (1 << 20));
    assert_eq!((memory.read_u8(FOUR_GIB), memory.read_u8(0x1f_efff)), (0, 0xee));
    assert_eq!((memory.discard(u64::MAX - 5, 100), memory.discard(0x1001, 0xfff)), (0, 0));
}
