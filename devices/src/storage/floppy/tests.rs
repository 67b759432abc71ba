use super::*;
use crate::device::Plugged;
use crate::dma::Dma;
use mynah_block::{Image, Memory};
use mynah_mmu::{GuestRam, PhysMemory};

struct Bench {
    memory: Arc<PhysMemory>,
    ports: PortBus,
    fdc: Arc<Fdc>,
    image: Arc<Memory>,
    drive: Arc<Drive>,
}

/// Byte 0 of a sector is its number.
fn diskette(sectors: usize) -> Memory {
    Memory::new((0..sectors).flat_map(|n| [(n % 251) as u8; SECTOR]).collect())
}

impl Bench {
    fn of(image: Memory) -> Self {
        let memory = PhysMemory::new(GuestRam::new(1 << 20).unwrap(), 1 << 20);
        let dma = IsaDma::new(Dma::always(memory.clone()));
        let fdc = Fdc::new(dma.clone(), Irq::unconnected());
        let ports = PortBus::new();
        dma.attach(&ports);
        fdc.attach(&ports);
        let image = Arc::new(image);
        let medium: Arc<dyn Image> = image.clone();
        let drive =
            Drive::new(Options { name: "floppy0".into(), ..Options::default() }, Some(medium)).unwrap();
        assert!(fdc.add(0, drive.clone(), None) && !fdc.add(0, drive.clone(), None));
        let b = Self { memory, ports, fdc, image, drive };
        b.out(0x3f7, b.rate());
        b
    }

    fn new() -> Self {
        Self::of(diskette(2880))
    }

    fn rate(&self) -> u8 {
        Format::of(self.fdc.kinds()[0].unwrap(), self.drive.size()).rate
    }

    fn out(&self, port: u16, value: u8) {
        self.ports.write(port, 1, value.into());
    }

    fn inb(&self, port: u16) -> u8 {
        self.ports.read(port, 1) as u8
    }

    fn irq(&self) -> bool {
        self.fdc.pin.level()
    }

    /// Sends a command, waits for the drive.
    fn send(&self, bytes: &[u8]) {
        for byte in bytes {
            assert_eq!(self.inb(0x3f4) & 0xc0, 0x80, "it takes a byte");
            self.out(0x3f5, *byte);
        }
        self.wait();
    }

    fn wait(&self) {
        // What a request's end leads to is submitted before the drive is quiet.
        self.drive.drain();
    }

    fn result(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        while self.inb(0x3f4) & 0xc0 == 0xc0 {
            bytes.push(self.inb(0x3f5));
        }
        assert_eq!(self.inb(0x3f4), 0x80);
        bytes
    }

    fn does(&self, bytes: &[u8]) -> Vec<u8> {
        self.send(bytes);
        self.result()
    }

    /// Channel 2: `mode` 46h to memory, 4Ah from it.
    fn dma(&self, mode: u8, at: u32, len: usize) {
        let count = (len - 1) as u16;
        self.out(0x0a, 6);
        self.out(0x0c, 0);
        self.out(0x0b, mode);
        for (port, value) in [
            (4, at as u8),
            (4, (at >> 8) as u8),
            (0x81, (at >> 16) as u8),
            (5, count as u8),
            (5, (count >> 8) as u8),
        ] {
            self.out(port, value);
        }
        self.out(0x0a, 2);
    }

    fn ram(&self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory.read(at, &mut bytes);
        bytes
    }
}

const BUFFER: u32 = 0x2_0000;

#[test]
fn a_reset_interrupts_and_four_drives_tell_that_they_are_ready() {
    let b = Bench::new();
    b.out(0x3f2, 0x08);
    assert_eq!((b.inb(0x3f4), b.irq()), (0, false));
    b.out(0x3f2, 0x0c);
    assert_eq!((b.inb(0x3f4), b.irq(), b.inb(0x3f2)), (0x80, true, 0x0c));
    for n in 0..4 {
        assert_eq!(b.does(&[8]), [0xc0 | n, 0]);
        assert!(!b.irq());
    }
    assert_eq!(b.does(&[8]), [0x80], "nothing has happened since");
    b.out(0x3f4, 0x80);
    assert!(b.irq());
    assert_eq!(b.does(&[8]), [0xc0, 0]);
}

#[test]
fn seeks_end_with_an_interrupt_and_tell_where_the_head_is() {
    let b = Bench::new();
    b.send(&[0x0f, 0x04, 17]);
    assert!(b.irq());
    assert_eq!(b.does(&[8]), [0x24, 17]);
    assert!(!b.irq());
    b.send(&[0xcf, 0, 3]);
    assert_eq!(b.does(&[8]), [0x20, 20]);
    b.send(&[0x8f, 0, 25]);
    assert_eq!(b.does(&[8]), [0x20, 0]);
    b.send(&[0x0f, 0, 5]);
    b.send(&[7, 0]);
    assert_eq!(b.does(&[8]), [0x20, 0]);
    assert_eq!(b.does(&[4, 0]), [0x38], "ready, at track 0, two sides");
    // There is no drive B: its track 0 never comes.
    b.send(&[7, 1]);
    assert_eq!(b.does(&[8]), [0x71, 0]);
}

#[test]
fn the_change_line_is_up_until_the_head_moves_with_a_diskette_in() {
    let b = Bench::new();
    let line = || b.inb(0x3f7) & 0x80 != 0;
    assert!(line());
    b.send(&[7, 0]);
    assert!(line(), "it was there already");
    b.send(&[0x0f, 0, 1]);
    assert!(!line());
    b.drive.change(None, false).unwrap();
    assert!(line());
    b.send(&[0x0f, 0, 2]);
    assert!(line(), "there is none in");
    assert_eq!(b.does(&[0xe6, 0, 2, 0, 1, 2, 18, 0x1b, 0xff])[..3], [0x40, 0x01, 0]);
    b.drive.change(Some(Arc::new(diskette(1440))), false).unwrap();
    b.send(&[0x0f, 0, 3]);
    assert!(!line());
    assert_eq!(b.does(&[0x4a, 0])[..3], [0x40, 0x01, 0], "another data rate");
    b.out(0x3f7, 2);
    assert_eq!(b.does(&[0x4a, 4]), [4, 0, 0, 3, 1, 1, 2]);
    b.out(0x3f2, 0x0d);
    assert!(line(), "drive B is not there");
}

#[test]
fn what_is_read_by_dma_ends_with_the_count() {
    let b = Bench::new();
    b.dma(0x46, BUFFER, 3 * SECTOR);
    b.send(&[0xe6, 0, 1, 0, 17, 2, 18, 0x1b, 0xff]);
    assert!(b.irq());
    // Two sectors of head 0, one of head 1: the next is the second there.
    assert_eq!(b.result(), [4, 0, 0, 1, 1, 2, 2]);
    assert!(!b.irq());
    let ram = b.ram(BUFFER.into(), 3 * SECTOR);
    let first = 36 + 16;
    assert_eq!([ram[0], ram[512], ram[1024], ram[1535]], [first, first + 1, first + 2, first + 2]);
    // At the end of the track with its last sector.
    b.dma(0x46, BUFFER, SECTOR);
    assert_eq!(b.does(&[0x66, 4, 1, 1, 18, 2, 18, 0x1b, 0xff]), [4, 0, 0, 2, 1, 1, 2]);
    // In the middle of a sector.
    b.dma(0x46, BUFFER, 10);
    assert_eq!(b.does(&[0xe6, 0, 0, 0, 1, 2, 18, 0x1b, 0xff]), [0, 0, 0, 0, 0, 2, 2]);
}

#[test]
fn a_transfer_that_goes_beyond_the_last_sector_says_so() {
    let b = Bench::new();
    b.dma(0x46, BUFFER, 8 * SECTOR);
    assert_eq!(b.does(&[0x66, 0, 0, 0, 16, 2, 18, 0x1b, 0xff]), [0x40, 0x80, 0, 1, 0, 1, 2]);
    assert_eq!(b.ram(u64::from(BUFFER) + 1024, 513)[..], [[17; 512].as_slice(), &[0]].concat());
    // With both heads a track's last sector leads on to the other one, and to the next cylinder.
    b.dma(0x46, BUFFER, 4 * SECTOR);
    assert_eq!(b.does(&[0xe6, 0, 0, 0, 17, 2, 20, 0x1b, 0xff]), [4, 0, 0, 0, 1, 3, 2]);
    assert_eq!(b.ram(u64::from(BUFFER) + 1024, 513)[..], [[18; 512].as_slice(), &[19]].concat());
    b.dma(0x46, BUFFER, 2 * SECTOR);
    assert_eq!(b.does(&[0xe6, 4, 0, 1, 18, 2, 19, 0x1b, 0xff]), [0, 0, 0, 1, 0, 2, 2]);
    assert_eq!(b.ram(u64::from(BUFFER) + 512, 2)[..], [36, 36]);
    // Sectors that a track has not, and tracks that the diskette has not.
    b.dma(0x46, BUFFER, 8 * SECTOR);
    assert_eq!(b.does(&[0x66, 0, 0, 0, 18, 2, 20, 0x1b, 0xff]), [0x40, 4, 0, 0, 0, 19, 2]);
    for id in [[80, 0, 1, 2], [0, 0, 0, 2], [0, 0, 19, 2], [0, 0, 1, 3]] {
        let [c, h, r, n] = id;
        let result = b.does(&[0x66, 0, c, h, r, n, 18, 0x1b, 0xff]);
        assert_eq!((&result[..3], &result[3..]), (&[0x40, 4, 0][..], &id[..]));
    }
}

#[test]
fn the_guest_may_open_the_channel_later_and_close_it_in_between() {
    let b = Bench::new();
    b.dma(0x46, BUFFER, 2 * SECTOR);
    b.out(0x0a, 6);
    b.send(&[0xe6, 0, 0, 0, 5, 2, 18, 0x1b, 0xff]);
    assert_eq!((b.inb(0x3f4), b.irq(), b.inb(8) & 0x40), (0x10, false, 0x40));
    b.out(0x0a, 2);
    assert_eq!((b.result(), b.inb(8) & 0x44), (vec![0, 0, 0, 0, 0, 7, 2], 4));
    assert_eq!(b.ram(BUFFER.into(), 2)[..], [4, 4]);
}

#[test]
fn what_is_written_by_dma_is_on_the_diskette() {
    let b = Bench::new();
    let data: Vec<u8> = (0..600).map(|n| n as u8).collect();
    b.memory.write(BUFFER.into(), &data);
    b.dma(0x4a, BUFFER, 600);
    assert_eq!(b.does(&[0xc5, 0, 2, 0, 18, 2, 18, 0x1b, 0xff]), [4, 0, 0, 2, 1, 2, 2]);
    let at = (2 * 36 + 17) * SECTOR;
    let now = b.image.contents();
    assert_eq!(now[at..at + 600], data);
    assert!(now[at + 600..at + 1024].iter().all(|b| *b == 0), "the rest of the sector is zeros");
    assert_eq!(now[at + 1024], (2 * 36 + 19) as u8);

    let b = Bench::of(Memory::read_only(vec![7; 1440 << 10]));
    b.dma(0x4a, BUFFER, 512);
    assert_eq!(b.does(&[0xc5, 0, 0, 0, 1, 2, 18, 0x1b, 0xff])[..3], [0x40, 0x02, 0]);
    assert_eq!(b.does(&[4, 0]), [0x78]);
    assert_eq!(b.does(&[0x4d, 0, 2, 18, 0x54, 0xf6])[..3], [0x40, 0x02, 0]);
}

#[test]
fn at_the_data_port_a_byte_is_asked_for_by_an_interrupt_each_track() {
    let b = Bench::new();
    b.send(&[3, 0xdf, 3]);
    b.send(&[0xe6, 0, 0, 0, 18, 2, 18, 0x1b, 0xff]);
    assert_eq!((b.inb(0x3f4), b.irq()), (0xf0, true));
    for n in 0..19 * 512 {
        if n == 512 {
            b.wait();
            assert!(b.irq(), "the other side");
        }
        assert_eq!(b.inb(0x3f4), 0xf0);
        assert_eq!(b.inb(0x3f5), (17 + n / 512) as u8);
    }
    assert_eq!(b.result(), [4, 0, 0, 1, 0, 1, 2]);
    b.send(&[0x45, 4, 3, 1, 18, 2, 18, 0x1b, 0xff]);
    assert_eq!((b.inb(0x3f4), b.irq()), (0xb0, true));
    (0..512).for_each(|n| b.out(0x3f5, n as u8));
    b.wait();
    assert_eq!(b.result(), [4, 0, 0, 4, 1, 1, 2]);
    let at = (3 * 36 + 35) * SECTOR;
    assert!(b.image.contents()[at..at + 512].iter().enumerate().all(|(n, byte)| *byte == n as u8));
}

#[test]
fn a_track_is_formatted_by_the_addresses_that_the_guest_gives() {
    let b = Bench::new();
    b.send(&[0x0f, 4, 7]);
    b.does(&[8]);
    // Two apart.
    let ids: Vec<u8> = (0..18).flat_map(|n| [7, 1, (n * 11) % 18 + 1, 2]).collect();
    b.memory.write(BUFFER.into(), &ids);
    b.dma(0x4a, BUFFER, ids.len());
    assert_eq!(b.does(&[0x4d, 4, 2, 18, 0x54, 0xf6])[..3], [4, 0, 0]);
    let at = (7 * 36 + 18) * SECTOR;
    let now = b.image.contents();
    assert!(now[at..at + 18 * SECTOR].iter().all(|b| *b == 0xf6) && now[at - 1] != 0xf6);
    // A sector twice.
    b.memory.write(BUFFER.into(), &[7, 1, 2, 2]);
    b.dma(0x4a, BUFFER, ids.len());
    assert_eq!(b.does(&[0x4d, 4, 2, 18, 0x54, 0x11])[..3], [0x44, 4, 0]);
    assert_eq!(b.does(&[0x4d, 4, 2, 9, 0x54, 0x11])[..3], [0x44, 4, 0], "no room for another layout");
    assert_eq!(b.image.contents()[at], 0xf6);
}

#[test]
fn tracks_marks_and_verifying() {
    let b = Bench::new();
    b.dma(0x46, BUFFER, 18 * SECTOR);
    // A whole track, from its first sector on whatever is asked for.
    assert_eq!(b.does(&[0x42, 0, 0, 0, 9, 2, 18, 0x1b, 0xff]), [0, 0, 0, 1, 0, 1, 2]);
    assert_eq!(b.ram(BUFFER.into(), 1), [0]);
    assert_eq!(b.does(&[0xd6, 0, 0, 0, 1, 2, 18, 0x1b, 0xff]), [4, 0, 0, 1, 0, 1, 2]);
    // Of deleted data there is none: one sector is read and told of, or none.
    b.dma(0x46, BUFFER, 2 * SECTOR);
    assert_eq!(b.does(&[0x4c, 0, 0, 0, 3, 2, 18, 0x1b, 0xff]), [0, 0, 0x40, 0, 0, 4, 2]);
    assert_eq!(b.does(&[0x6c, 0, 0, 0, 3, 2, 18, 0x1b, 0xff])[..3], [0x40, 4, 0x40]);
}

#[test]
fn registers_of_its_own() {
    let b = Bench::new();
    assert_eq!((b.does(&[0x10]), b.does(&[0x18])), (vec![0x90], vec![0x41]));
    b.send(&[3, 0xaf, 0x1e]);
    b.send(&[0x13, 0, 0x57, 3]);
    b.send(&[0x12, 0x84]);
    assert_eq!(b.does(&[0x94]), [0x10]);
    assert_eq!(b.does(&[0x0e]), [0, 0, 0, 0, 0xaf, 0x1e, 0, 0x84, 0x57, 3]);
    b.out(0x3f4, 0x80);
    assert_eq!(b.does(&[0x0e])[7..], [0x84, 0x57, 3], "locked");
    assert_eq!(b.does(&[0x14]), [0]);
    b.out(0x3f4, 0x80);
    assert_eq!(b.does(&[0x0e])[7..], [0x04, 0x20, 0]);
    for code in [0x00, 0x01, 0x1f, 0xff] {
        assert_eq!(b.does(&[code]), [0x80], "{code:x}");
    }
    assert_eq!(b.does(&[0x11, 0, 0, 0, 1, 2, 18, 0x1b, 1]), [0x80], "scans are refused");
    b.out(0x3f3, 2);
    assert_eq!(b.inb(0x3f3), 2);
}

#[test]
fn an_image_that_is_shorter_than_its_format_goes_on_with_zeros() {
    let b = Bench::of(Memory::new(vec![9; 700]));
    b.dma(0x46, BUFFER, 3 * SECTOR);
    assert_eq!(b.does(&[0xe6, 0, 0, 0, 1, 2, 18, 0x1b, 0xff])[..3], [0, 0, 0]);
    let ram = b.ram(BUFFER.into(), 3 * SECTOR);
    assert!(ram[..700].iter().all(|b| *b == 9) && ram[700..].iter().all(|b| *b == 0));
    b.dma(0x46, BUFFER, SECTOR);
    assert_eq!(b.does(&[0xe6, 0, 79, 1, 18, 2, 18, 0x1b, 0xff])[..3], [4, 0, 0]);
    b.dma(0x4a, BUFFER, SECTOR);
    assert_eq!(b.does(&[0xc5, 0, 79, 1, 18, 2, 18, 0x1b, 0xff])[..3], [0x44, 0x20, 0]);
}

#[test]
fn an_error_of_the_host_is_one_of_the_data() {
    let b = Bench::new();
    b.image.fail(Some(std::io::ErrorKind::Other));
    b.dma(0x46, BUFFER, SECTOR);
    assert_eq!(b.does(&[0xe6, 0, 1, 1, 4, 2, 18, 0x1b, 0xff]), [0x44, 0x20, 0x20, 1, 1, 4, 2]);
}

#[test]
fn a_reset_in_the_middle_is_the_end_of_a_transfer() {
    let b = Bench::new();
    b.out(0x0a, 6);
    b.send(&[0xe6, 0, 0, 0, 1, 2, 18, 0x1b, 0xff]);
    assert_eq!(b.inb(0x3f4), 0x10);
    b.out(0x3f2, 0x08);
    b.out(0x3f2, 0x0c);
    assert_eq!((b.does(&[8]), b.inb(8) & 0x40), (vec![0xc0, 0], 0));
    b.dma(0x46, BUFFER, SECTOR);
    assert_eq!(b.does(&[0xe6, 0, 0, 0, 2, 2, 18, 0x1b, 0xff])[..3], [0, 0, 0]);
}

#[test]
fn it_is_restored_in_the_middle_of_a_command_and_of_a_transfer() {
    for given in 1..=9 {
        let command = [0xe6, 0, 0, 0, 5, 2, 18, 0x1b, 0xff];
        let b = Bench::new();
        b.out(0x0a, 6);
        b.send(&command[..given]);
        let saved = Plugged::save(&*b.fdc, "fdc");
        let other = Bench::new();
        Plugged::restore(&*other.fdc, &saved).unwrap();
        Plugged::resume(&*other.fdc);
        other.dma(0x46, BUFFER, SECTOR);
        other.send(&command[given..]);
        assert_eq!(other.result(), [0, 0, 0, 0, 0, 6, 2], "{given} bytes were given");
        assert_eq!(other.ram(BUFFER.into(), 1), [4]);
        Plugged::reset(&*other.fdc, Reset::Board);
        let (left, fresh) = (Plugged::save(&*other.fdc, "fdc"), Bench::new());
        Plugged::reset(&*fresh.fdc, Reset::Board);
        assert_eq!(left, Plugged::save(&*fresh.fdc, "fdc"));
    }
    let small = Bench::of(diskette(5760));
    let saved = Plugged::save(&*Bench::new().fdc, "fdc");
    assert!(Plugged::restore(&*small.fdc, &saved).is_err(), "another kind of drive");
}
