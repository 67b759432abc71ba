use super::*;
use crate::device::Plugged;
use mynah_block::{Image, Memory, Options};
use mynah_mmu::GuestRam;

const SIZE: u64 = 64 << 10;
const BASE: u64 = (1 << 32) - SIZE;

struct Bench {
    memory: Arc<PhysMemory>,
    image: Arc<Memory>,
    drive: Arc<Drive>,
    flash: Arc<Pflash>,
}

impl Bench {
    fn of(image: Memory) -> Self {
        let memory = PhysMemory::new(GuestRam::new(1 << 20).unwrap(), 1 << 20);
        let image = Arc::new(image);
        let medium: Arc<dyn Image> = image.clone();
        let drive =
            Drive::new(Options { name: "pflash0".into(), ..Options::default() }, Some(medium)).unwrap();
        let flash = Pflash::new(drive.clone(), memory.clone(), 1 << 32).unwrap();
        Self { memory, image, drive, flash }
    }

    fn new() -> Self {
        Self::of(Memory::new((0..SIZE).map(|n| if n < 0x2000 { n as u8 | 0x81 } else { 0xff }).collect()))
    }

    fn write(&self, at: u64, bytes: &[u8]) {
        bytes.iter().for_each(|b| self.memory.phys_write(BASE + at, 1, (*b).into()));
    }

    fn read(&self, at: u64) -> u8 {
        self.memory.phys_read(BASE + at, 1) as u8
    }

    /// The status when all is on the disk.
    fn settled(&self) -> u8 {
        self.drive.drain();
        self.write(0, &[0x70]);
        let status = self.read(0);
        self.write(0, &[0xff]);
        status
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.memory.unmap_devices();
    }
}

#[test]
fn the_array_is_a_rom_until_a_command_says_otherwise() {
    let b = Bench::new();
    assert_eq!((b.flash.base(), b.flash.size()), (BASE, SIZE));
    assert!(b.memory.page_is_plain(BASE).is_some_and(|(_, writable)| !writable));
    assert_eq!(b.memory.phys_read(BASE, 8), 0x8787_8585_8383_8181);
    b.write(5, &[0x98]);
    assert!(b.memory.page_is_plain(BASE).is_none());
    assert_eq!(b.memory.phys_read(BASE + 0x10, 4), 0x0159_5251, "QRY, Intel's command set");
    assert_eq!((b.read(0x27), b.read(0x2d), b.read(0x2f)), (16, 15, 0x10));
    b.write(5, &[0x90]);
    assert_eq!((b.read(0), b.read(1), b.read(2)), (0, 0, 0));
    b.write(0, &[0xff]);
    assert_eq!(b.read(0x1000), 0x81);
    assert!(b.memory.page_is_plain(BASE).is_some());
}

#[test]
fn ovmf_knows_it_by_a_status_of_zero_once_that_is_cleared() {
    let b = Bench::new();
    b.write(0, &[0x40, 0x00]);
    assert_eq!(b.settled(), 0x80);
    b.write(0, &[0x50]);
    assert_eq!(b.read(0), 0, "as it was programmed: the array is read");
    assert_eq!(b.settled(), 0);
}

#[test]
fn programming_clears_bits_and_an_erase_sets_them() {
    let b = Bench::new();
    b.write(3, &[0x10, 0x0f]);
    b.write(3, &[0x40, 0xf3]);
    assert_eq!(b.settled(), 0x80);
    assert_eq!(b.read(3), 0x83 & 0x03);
    b.write(0x1234, &[0x20, 0xd0]);
    assert_eq!(b.settled(), 0x80);
    let contents = b.image.durable();
    assert_eq!(contents[3], 0x03);
    assert!(contents[0x1000..0x2000].iter().all(|b| *b == 0xff) && contents[0xff0] == 0xf1);
    assert_eq!(contents, b.image.contents());
    // An erase that is not confirmed, and a command that is none.
    b.write(0, &[0x20, 0x12]);
    assert_eq!((b.settled(), b.read(0)), (0xb0, 0x81));
}

#[test]
fn a_buffer_is_programmed_at_once_when_it_is_confirmed() {
    let b = Bench::new();
    b.write(0x3000, &[0xe8]);
    assert_eq!(b.read(0x3000) & 0x80, 0x80, "there is room");
    b.write(0x3000, &[3]);
    (0..4).for_each(|n| b.write(0x3010 + n, &[0x20 + n as u8]));
    b.write(0x3000, &[0xd0]);
    assert_eq!(b.settled(), 0x80);
    assert_eq!(b.memory.phys_read(BASE + 0x3010, 4), 0x2322_2120);
    // One that is broken off, and one that reaches into two blocks.
    b.write(0x3000, &[0xe8, 0, 0x55, 0xff]);
    assert_eq!((b.settled(), b.read(0x3000)), (0xb0, 0xff));
    b.write(0, &[0x50, 0xe8, 1]);
    b.write(0x3fff, &[0]);
    b.write(0x4000, &[0, 0xd0]);
    assert_eq!((b.settled() & 0x30, b.read(0x3fff)), (0x30, 0xff));
}

#[test]
fn what_is_read_only_or_locked_says_so_and_stays() {
    let b = Bench::of(Memory::read_only(vec![0xff; SIZE as usize]));
    b.write(0, &[0x40, 0x00]);
    assert_eq!((b.settled(), b.read(0)), (0x92, 0xff));
    b.write(0, &[0x50, 0x20, 0xd0]);
    assert_eq!(b.settled(), 0xa2);

    let b = Bench::new();
    b.write(0x4000, &[0x60, 0x01, 0x90]);
    assert_eq!((b.read(0x4002), b.read(0x5002)), (1, 0));
    b.write(0x4000, &[0xff, 0x40, 0]);
    assert_eq!((b.settled(), b.read(0x4000)), (0x92, 0xff));
    b.write(0x4000, &[0x50, 0x60, 0xd0, 0x40, 0]);
    assert_eq!((b.settled(), b.read(0x4000)), (0x80, 0));
}

#[test]
fn it_is_not_ready_before_all_is_durable_and_an_error_of_the_disk_is_told() {
    let b = Bench::new();
    b.image.fail(Some(std::io::ErrorKind::Other));
    b.write(0, &[0x40, 0]);
    assert_eq!(b.settled(), 0x90);
    b.image.fail(None);
    b.write(0, &[0x50]);
    // Many bytes, one by one: they are all there in the end.
    for n in 0..0x4000_u64 {
        b.write(0x8000 + n, &[0x40, n as u8]);
    }
    assert_eq!(b.settled(), 0x80);
    let durable = b.image.durable();
    assert!((0..0x4000).all(|n| durable[0x8000 + n] == n as u8));
}

#[test]
fn a_guest_that_does_not_wait_takes_no_more_memory_than_there_is_flash() {
    let array = DeviceRam::new(SIZE).unwrap();
    let mut journal = Journal { busy: true, ..Journal::default() };
    for n in 0..200_000_u64 {
        // No two follow each other.
        let at = n * 7919 % SIZE;
        array.write(at, &[n as u8]);
        journal.add(at, &[n as u8], &array);
        let bytes: usize = journal.waiting.iter().map(|(_, bytes)| bytes.len() + ENTRY).sum();
        assert!(bytes <= WAITING + SIZE as usize + 2 * ENTRY);
    }
    // What is written in this order is what stands there.
    let mut image = vec![0; SIZE as usize];
    for (at, bytes) in &journal.waiting {
        image[*at as usize..][..bytes.len()].copy_from_slice(bytes);
    }
    let mut now = vec![0; SIZE as usize];
    array.read(0, &mut now);
    assert!(image == now);
}

#[test]
fn it_is_restored_in_the_middle_of_a_command_with_what_it_holds() {
    let one = Bench::new();
    one.write(0x2000, &[0x40, 0x12, 0xe8, 1, 0x34]);
    one.drive.drain();
    let saved = Plugged::save(&*one.flash, "pflash0");
    let other = Bench::new();
    other.write(0, &[0x98]);
    Plugged::restore(&*other.flash, &saved).unwrap();
    for b in [&one, &other] {
        b.write(0x2001, &[0x55, 0xd0]);
        assert_eq!(b.settled(), 0x80);
    }
    assert_eq!(one.image.durable(), other.image.durable());
    assert_eq!(other.image.durable()[0x2000..0x2003], [0x12 & 0x34, 0x55, 0xff]);
    Plugged::reset(&*other.flash, Reset::Board);
    assert_eq!(other.read(0x2001), 0x55, "what it holds stays");

    let small = Bench::of(Memory::new(vec![0xff; 0x1000]));
    assert!(Plugged::restore(&*small.flash, &saved).is_err());
}

#[test]
fn an_image_of_another_size_than_a_chip_is_refused() {
    let memory = PhysMemory::new(GuestRam::new(1 << 20).unwrap(), 1 << 20);
    for size in [0, 4095, 5000] {
        let medium: Arc<dyn Image> = Arc::new(Memory::new(vec![0; size as usize]));
        let drive = Drive::new(Options::default(), Some(medium)).unwrap();
        assert_eq!(Pflash::new(drive, memory.clone(), 1 << 32).err(), Some(PflashError::Size(size)));
    }
}
