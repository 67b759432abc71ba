//! A driver by the data sheets: what it reads, what comes into memory, when there are interrupts.
use super::*;
use crate::bus::{Irq, IrqSink};
use crate::device::{Device, Reset};
use crate::pci::config::{command, reg};
use crate::pci::testing::Pc;
use crate::storage::ata::{Geometry, Setup};
use mynah_block::{Drive, Memory, OnError, Options, Stopper};
use parking_lot::Mutex;
use std::io::ErrorKind;
use std::sync::Arc;

const BM: u16 = 0xc000;
const HD: u16 = 0x1f0;
const CD: u16 = 0x170;
const BSY: u8 = 0x80;
const DRQ: u8 = 0x08;

#[derive(Default)]
struct Pins(Mutex<Vec<(u32, bool)>>);
impl IrqSink for Pins {
    fn set(&self, line: u32, level: bool) {
        self.0.lock().push((line, level));
    }
}

struct Machine(Mutex<usize>);
impl Stopper for Machine {
    fn stop(&self, _: &str, _: &str) {
        *self.0.lock() += 1;
    }
}

struct Test {
    pc: Pc,
    ide: Arc<Piix3Ide>,
    pins: Arc<Pins>,
    hd: Arc<IdeDrive<false>>,
    cd: Arc<IdeDrive<true>>,
    disk: Arc<Memory>,
    drives: [Arc<Drive>; 2],
    machine: Arc<Machine>,
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 7 + i / 512 * 13 + i / 65_536) as u8).collect()
}

const DISK: usize = 4 << 20;
const DISC: usize = 1 << 20;

fn setup_with(options: Options) -> Test {
    let (pc, pins) = (Pc::new(), Arc::new(Pins::default()));
    let pin = |n| Irq::new(pins.clone(), n);
    let ide = Piix3Ide::new(&pc.bus, &pc.ports, [pin(14), pin(15)]);
    let disk = Arc::new(Memory::new(pattern(DISK)));
    let drives = [
        Drive::new(options, Some(disk.clone())).unwrap(),
        Drive::new(Options::default(), Some(Arc::new(Memory::read_only(pattern(DISC))))).unwrap(),
    ];
    let machine = Arc::new(Machine(Mutex::default()));
    let stopper: Arc<dyn Stopper> = machine.clone();
    drives[0].on_stop(Arc::downgrade(&stopper));
    let what = |packet| Setup {
        model: if packet { "QEMU DVD-ROM" } else { "QEMU HARDDISK" }.into(),
        serial: "QM00001".into(),
        version: "2.5+".into(),
        wwn: None,
        geometry: Geometry::of_size(DISK as u64 / 512),
        physical_block: 512,
        packet,
        unit: 0,
        queue: 0,
    };
    let [a, b] = ide.channels().clone().map(|c| c as Arc<dyn Cable>);
    let hd = IdeDrive::new(&a, 0, what(false), drives[0].clone()).unwrap();
    let cd = IdeDrive::new(&b, 0, what(true), drives[1].clone()).unwrap();
    pc.write(DEVFN, reg::BAR0 + 16, 4, BM.into());
    pc.write(DEVFN, reg::COMMAND, 2, (command::IO | command::MASTER).into());
    Test { pc, ide, pins, hd, cd, disk, drives, machine }
}

fn setup() -> Test {
    setup_with(Options::default())
}

impl Test {
    fn r(&self, port: u16) -> u8 {
        self.pc.ports.read(port, 1) as u8
    }
    fn w(&self, port: u16, value: u8) {
        self.pc.ports.write(port, 1, value.into());
    }
    /// Interrupts since the last call.
    fn edges(&self) -> Vec<u32> {
        std::mem::take(&mut *self.pins.0.lock()).into_iter().filter(|(_, up)| *up).map(|(n, _)| n).collect()
    }
    fn drain(&self) {
        self.drives.iter().for_each(|d| d.drain());
    }
    /// Alternate status when the drive has done what it was asked.
    fn status(&self, base: u16) -> u8 {
        self.drain();
        self.r(base + 0x206)
    }
    /// A command with 28 bits of address; its status.
    fn command(&self, code: u8, features: u8, count: u8, lba: u32) -> u8 {
        let [a, b, c, d] = lba.to_le_bytes();
        for (i, v) in [0xe0 | d, features, count, a, b, c].into_iter().enumerate() {
            self.w(HD + [6, 1, 2, 3, 4, 5][i], v);
        }
        self.w(HD + 7, code);
        self.status(HD)
    }
    /// One with 48 bits.
    fn wide(&self, code: u8, count: u16, lba: u64) -> u8 {
        let (l, n) = (lba.to_le_bytes(), count.to_le_bytes());
        self.w(HD + 6, 0xe0);
        for (port, high, low) in [(2, n[1], n[0]), (3, l[3], l[0]), (4, l[4], l[1]), (5, l[5], l[2])] {
            self.w(HD + port, high);
            self.w(HD + port, low);
        }
        self.w(HD + 7, code);
        self.status(HD)
    }
    fn registers(&self, base: u16) -> [u8; 6] {
        std::array::from_fn(|i| self.r(base + 1 + i as u16))
    }
    fn take(&self, base: u16, bytes: usize) -> Vec<u8> {
        (0..bytes.div_ceil(2))
            .flat_map(|_| (self.pc.ports.read(base, 2) as u16).to_le_bytes())
            .take(bytes)
            .collect()
    }
    fn give(&self, base: u16, bytes: &[u8]) {
        bytes.chunks(2).for_each(|c| self.pc.ports.write(base, 2, u32::from(c[0]) | u32::from(c[1]) << 8));
    }
    /// Lets the bus master go along a table of regions, towards memory or from it.
    fn start(&self, channel: u16, regions: &[(u32, u16, bool)], to_memory: bool) {
        for (i, (at, len, last)) in regions.iter().enumerate() {
            let entry = u64::from(*at) | u64::from(*len) << 32 | u64::from(*last) << 63;
            self.pc.memory.write(0x1000 + 8 * i as u64, &entry.to_le_bytes());
        }
        let bm = BM + 8 * channel;
        self.w(bm, 0);
        self.pc.ports.write(bm + 4, 4, 0x1000);
        self.w(bm + 2, 0x06);
        self.w(bm, u8::from(to_memory) << 3 | 1);
        self.drain();
    }
    fn memory(&self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.pc.memory.read(at, &mut bytes);
        bytes
    }
    fn bm_status(&self, channel: u16) -> u8 {
        self.r(BM + 8 * channel + 2)
    }
    /// A packet without DMA: blocks of data with their interrupt reasons, and the status at the end.
    fn packet(&self, cdb: &[u8], limit: u16) -> (Vec<(usize, u8)>, Vec<u8>, u8) {
        self.send_packet(cdb, limit, 0);
        let (mut blocks, mut data) = (vec![], vec![]);
        while self.status(CD) & DRQ != 0 {
            assert_eq!(self.edges(), [15], "an interrupt for each block");
            self.r(CD + 7);
            let len = usize::from(self.r(CD + 4)) | usize::from(self.r(CD + 5)) << 8;
            blocks.push((len, self.r(CD + 2) & 7));
            data.extend(self.take(CD, len));
        }
        assert_eq!((self.edges(), self.r(CD + 2) & 7), (vec![15], 3));
        (blocks, data, self.r(CD + 7))
    }
    fn send_packet(&self, cdb: &[u8], limit: u16, features: u8) {
        let [low, high] = limit.to_le_bytes();
        for (port, value) in [(6, 0xa0), (1, features), (4, low), (5, high), (7, 0xa0)] {
            self.w(CD + port, value);
        }
        assert_eq!((self.r(CD + 0x206), self.r(CD + 2) & 7, self.edges()), (0x58, 1, vec![]));
        let mut packet = [0; 12];
        packet[..cdb.len()].copy_from_slice(cdb);
        self.give(CD, &packet);
    }
    /// Key and code of the last error.
    fn sense(&self) -> (u8, u8, u8) {
        let (_, data, status) = self.packet(&[3, 0, 0, 0, 18], 0xfffe);
        assert_eq!((data.len(), status), (18, 0x50));
        (data[2], data[12], data[13])
    }
    /// A packet that is done after the unit attention of a reset.
    fn ready(&self) {
        assert_eq!(self.packet(&[0], 0xfffe).2, 0x41);
        assert_eq!(self.sense(), (6, 0x29, 0));
        assert_eq!(self.packet(&[0], 0xfffe).2, 0x50);
    }
}

#[test]
fn the_function_is_a_piix3s_in_compatibility_mode() {
    let t = setup();
    assert_eq!((t.pc.read(DEVFN, 0, 4), t.pc.read(DEVFN, 8, 4)), (0x7010_8086, 0x0101_8000));
    assert_eq!((t.pc.read(DEVFN, 0x2c, 4), t.pc.read(DEVFN, 0x3c, 4)), (0x1100_1af4, 0));
    assert_eq!(t.pc.read(DEVFN, 6, 2), 0x0280);
    t.pc.write(DEVFN, 0x20, 4, u32::MAX);
    t.pc.write(DEVFN, 0x10, 4, u32::MAX);
    assert_eq!((t.pc.read(DEVFN, 0x20, 4), t.pc.read(DEVFN, 0x10, 4)), (0xffff_fff1, 0));
    assert_eq!(t.pc.read(DEVFN, 0x40, 4), 0);
    t.ide.like_firmware();
    assert_eq!(t.pc.read(DEVFN, 0x40, 4), 0x8000_8000);
}

#[test]
fn signatures_tell_disks_from_packet_devices_and_from_nothing() {
    let t = setup();
    assert_eq!((t.registers(HD), t.r(HD + 7)), ([1, 1, 1, 0, 0, 0xa0], 0x50));
    assert_eq!((t.registers(CD), t.r(CD + 7)), ([1, 1, 1, 0x14, 0xeb, 0xa0], 0));
    for base in [HD, CD] {
        t.w(base + 6, 0xb0);
        assert_eq!((t.registers(base), t.r(base + 7)), ([0, 1, 1, 0xff, 0xff, 0xb0], 0));
        t.w(base + 7, 0xec);
        assert_eq!((t.r(base + 7), t.edges()), (0, vec![]));
    }
    let empty = Pc::new();
    Piix3Ide::new(&empty.bus, &empty.ports, [Irq::unconnected(), Irq::unconnected()]);
    assert_eq!((0..8).map(|i| empty.ports.read(HD + i, 1)).collect::<Vec<_>>(), [0xff, 0, 0, 0, 0, 0, 0, 0]);
}

#[test]
fn a_software_reset_takes_both_back_to_their_signatures() {
    let t = setup();
    t.command(0xc6, 0, 8, 0x123);
    t.w(0x3f6, 4);
    assert_eq!(t.r(0x3f6), BSY);
    t.w(HD + 7, 0xec);
    t.w(0x3f6, 0);
    assert_eq!((t.registers(HD), t.status(HD)), ([1, 1, 1, 0, 0, 0xa0], 0x50));
    t.w(HD + 6, 0xb0);
    t.w(HD + 7, 0x90);
    assert_eq!((t.registers(HD), t.status(HD), t.edges()), ([1, 1, 1, 0, 0, 0xa0], 0x50, vec![14, 14]));
}

#[test]
fn a_disk_says_what_qemus_says() {
    let t = setup();
    assert_eq!((t.command(0xec, 0, 0, 0), t.edges()), (0x58, vec![14]));
    let data = t.take(HD, 512);
    let word = |n: usize| u16::from_le_bytes([data[2 * n], data[2 * n + 1]]);
    let found: Vec<u16> = [0, 1, 3, 6, 47, 49, 53, 54, 57, 58, 59, 60, 61, 63].map(word).to_vec();
    let sectors = (DISK / 512) as u16;
    assert_eq!(found, [0x40, 8, 16, 63, 0x8010, 0xb00, 7, 8, 8064, 0, 0x110, sectors, 0, 7]);
    let found: Vec<u16> = [80, 81, 82, 83, 84, 85, 86, 87, 88, 93, 100, 106, 169].map(word).to_vec();
    let qemus =
        [0xf0, 0x16, 0x4021, 0x7400, 0x4000, 0x4021, 0x3400, 0x4000, 0x203f, 0x6001, sectors, 0x6000, 1];
    assert_eq!(found, qemus);
    assert_eq!((&data[20..28], &data[54..68]), (&b"MQ0000 1"[..], &b"EQUMH RADDSI K"[..]));
    assert_eq!((t.r(HD + 7), t.edges()), (0x50, vec![]));
}

#[test]
fn sectors_are_read_at_the_data_port_with_an_interrupt_for_each_block() {
    let t = setup();
    assert_eq!(t.command(0x20, 0, 3, 5), 0x58);
    for n in 0..3 {
        assert_eq!((t.edges(), t.r(HD + 7)), (vec![14], 0x58));
        assert_eq!(t.take(HD, 512), pattern(DISK)[(5 + n) * 512..][..512]);
    }
    assert_eq!((t.edges(), t.r(HD + 7), t.registers(HD)), (vec![], 0x50, [0, 0, 8, 0, 0, 0xe0]));
    // Blocks of 8 sectors, the last one shorter; all of 256 sectors.
    assert_eq!((t.command(0xc6, 0, 8, 0), t.edges(), t.command(0xc4, 0, 0, 1)), (0x50, vec![14], 0x58));
    let mut data = vec![];
    for _ in 0..32 {
        t.drain();
        assert_eq!((t.edges(), t.r(HD + 7)), (vec![14], 0x58));
        data.extend(t.take(HD, 8 * 512));
    }
    assert_eq!((t.r(HD + 7), t.edges()), (0x50, vec![]));
    assert!(data == pattern(DISK)[512..257 * 512]);
    assert_eq!(t.command(0xc6, 0, 3, 0) & 1, 1, "no power of two");
}

#[test]
fn sectors_are_written_at_the_data_port_and_are_there_before_the_end_is_told() {
    let t = setup();
    assert_eq!((t.command(0x30, 0, 2, 7), t.edges()), (0x58, vec![]));
    t.give(HD, &[0xaa; 512]);
    assert_eq!((t.status(HD), t.edges(), t.r(HD + 7)), (0x58, vec![14], 0x58));
    assert_eq!(t.disk.contents()[7 * 512..8 * 512], [0xaa; 512]);
    t.give(HD, &[0xbb; 512]);
    assert_eq!((t.status(HD), t.edges(), t.r(HD + 7)), (0x50, vec![14], 0x50));
    assert_eq!(t.disk.contents()[8 * 512..9 * 512], [0xbb; 512]);
    assert_ne!(t.disk.durable()[8 * 512], 0xbb);
    assert_eq!((t.command(0xe7, 0, 0, 0), t.edges()), (0x50, vec![14]));
    assert_eq!(t.disk.durable()[8 * 512], 0xbb);
    // Without a write cache each write is durable.
    assert_eq!(t.command(0xef, 0x82, 0, 0), 0x50);
    t.command(0x30, 0, 1, 9);
    t.give(HD, &[0xcc; 512]);
    assert_eq!((t.status(HD), t.disk.durable()[9 * 512]), (0x50, 0xcc));
    t.command(0xec, 0, 0, 0);
    assert_eq!(t.take(HD, 512)[170], 1, "the write cache is off");
}

#[test]
fn dma_goes_by_the_table_in_pieces_of_any_size() {
    let t = setup();
    // 48 bits; the device waits until the bus master is started.
    assert_eq!((t.wide(0x25, 16, 100), t.edges()), (0x58, vec![]));
    t.start(0, &[(0x2_0000, 510, false), (0x2_01fe, 2, false), (0x3_0000, 7680, true)], true);
    assert_eq!((t.status(HD), t.bm_status(0), t.edges()), (0x50, 4, vec![14]));
    let all = pattern(DISK)[100 * 512..116 * 512].to_vec();
    assert!(t.memory(0x2_0000, 512) == all[..512] && t.memory(0x3_0000, 7680) == all[512..]);
    t.w(BM + 2, 4);
    assert_eq!(t.bm_status(0), 0);
    // Started first; counts of 0 are 64 KiB; more than is asked of the drive at once.
    t.r(HD + 7);
    let regions: Vec<_> = (0..10).map(|i| (0x2_0000 + 0x1_0000 * (i % 8), 0, i == 9)).collect();
    t.pc.memory.write(0x2_0000, &[0x11; 0x8_0000]);
    t.start(0, &regions, false);
    t.wide(0x35, 1280, 1000);
    assert_eq!((t.status(HD), t.bm_status(0), t.edges()), (0x50, 4, vec![14]));
    let written = t.disk.contents();
    assert!(written[1000 * 512..2280 * 512].iter().all(|b| *b == 0x11));
    assert_eq!(
        (written[1000 * 512 - 1], written[2280 * 512]),
        (pattern(DISK)[1000 * 512 - 1], pattern(DISK)[2280 * 512])
    );
}

#[test]
fn a_table_that_does_not_fit_is_told_by_the_bus_masters_status() {
    let t = setup();
    // Longer than the transfer: it stays active.
    t.start(0, &[(0x2_0000, 4096, true)], true);
    t.command(0xc8, 0, 1, 0);
    assert_eq!((t.status(HD), t.bm_status(0), t.edges()), (0x50, 5, vec![14]));
    // Shorter: no interrupt, not active.
    t.r(HD + 7);
    t.start(0, &[(0x2_0000, 512, true)], true);
    t.command(0xc8, 0, 2, 0);
    assert_eq!((t.status(HD), t.bm_status(0), t.edges()), (0x50, 0, vec![]));
    // Where there is no memory; a table that is not in memory; none of it, as the function may not master the bus.
    for (at, table) in [(0x1000_0000, 0x1000), (0x2_0000, 0xfff0_0000)] {
        t.command(0xc8, 0, 1, 0);
        t.start(0, &[(at, 512, true)], true);
        if table != 0x1000 {
            t.w(BM, 0);
            t.pc.ports.write(BM + 4, 4, table);
            t.command(0xca, 0, 1, 0);
            t.w(BM, 1);
        }
        assert_eq!((t.bm_status(0) & 3, t.edges().len() & !1), (2, 0), "{at:#x} {table:#x}");
        t.w(0x3f6, 4);
        t.w(0x3f6, 0);
    }
    t.pc.write(DEVFN, reg::COMMAND, 2, command::IO.into());
    t.command(0xc8, 0, 1, 0);
    t.start(0, &[(0x2_0000, 512, true)], true);
    assert_eq!(t.bm_status(0) & 7, 2);
    t.pc.write(DEVFN, reg::COMMAND, 2, (command::IO | command::MASTER).into());
    // A table without an end: 4 KiB of it.
    t.pc.memory.write(0, &[0; 0x1_0000]);
    for i in 0..1024_u64 {
        t.pc.memory.write(0x1000 + 8 * i, &(0x2_0000_u64 | 2 << 32).to_le_bytes());
    }
    t.w(BM, 0);
    t.w(BM + 2, 6);
    t.w(BM, 9);
    t.command(0xc8, 0, 3, 0);
    assert_eq!((t.status(HD), t.bm_status(0), t.edges()), (0x50, 0, vec![]));
}

#[test]
fn cylinders_heads_and_sectors_are_translated() {
    let t = setup();
    // 8 cylinders of 16 heads of 63 sectors at first.
    let chs = |c: u8, h: u8, s: u8| {
        for (port, value) in [(6, 0xa0 | h), (2, 1), (3, s), (4, c), (5, 0), (7, 0x20)] {
            t.w(HD + port, value);
        }
        (t.status(HD), t.take(HD, 512))
    };
    assert!(chs(1, 2, 3) == (0x58, pattern(DISK)[((16 + 2) * 63 + 2) * 512..][..512].to_vec()));
    assert_eq!(t.registers(HD)[2..], [4, 1, 0, 0xa2]);
    assert_eq!((chs(0, 0, 0).0, t.r(HD + 1)), (0x41, 0x10));
    assert_eq!(chs(0, 0, 64).0, 0x41);
    // Another translation: 4 heads of 32 sectors.
    t.w(HD + 6, 0xa3);
    t.w(HD + 2, 32);
    t.w(HD + 7, 0x91);
    assert!(chs(1, 2, 3) == (0x58, pattern(DISK)[((4 + 2) * 32 + 2) * 512..][..512].to_vec()));
    assert_eq!(chs(0, 4, 1).0, 0x41);
    t.command(0xec, 0, 0, 0);
    let data = t.take(HD, 512);
    assert_eq!((data[108], data[110], data[112], data[2]), (64, 4, 32, 8));
}

#[test]
fn what_is_beyond_the_end_and_what_the_host_cannot_read_is_an_error() {
    let t = setup();
    let end = (DISK / 512) as u32;
    assert_eq!((t.command(0x20, 0, 1, end - 1), t.take(HD, 512).len()), (0x58, 512));
    assert_eq!((t.command(0x20, 0, 2, end - 1), t.r(HD + 1)), (0x41, 4));
    assert_eq!((t.command(0xc8, 0, 1, end), t.r(HD + 1)), (0x41, 4));
    assert_eq!((t.wide(0x25, 0, 0), t.r(HD + 1)), (0x41, 4));
    assert_eq!(
        (t.wide(0x24, 1, (1 << 48) - 1), t.wide(0x42, 8, 0), t.wide(0x42, 2, end as u64 - 1)),
        (0x41, 0x50, 0x41)
    );
    t.edges();
    t.disk.fail(Some(ErrorKind::Other));
    assert_eq!((t.command(0x20, 0, 1, 9), t.registers(HD)), (0x41, [0x40, 1, 9, 0, 0, 0xe0]));
    assert_eq!((t.edges(), t.r(HD + 7)), (vec![14], 0x41));
    assert_eq!((t.command(0xe7, 0, 0, 0), t.r(HD + 1)), (0x41, 4));
    assert_eq!((t.command(0x00, 0, 0, 0), t.r(HD + 1), t.command(0xff, 0, 0, 0)), (0x41, 4, 0x41));
}

#[test]
fn the_rest_of_a_disks_commands() {
    let t = setup();
    let end = DISK as u64 / 512;
    // Native maximum, with its high half behind HOB.
    assert_eq!(t.wide(0x27, 0, 0), 0x50);
    assert_eq!(t.registers(HD)[2..5], [(end - 1) as u8, ((end - 1) >> 8) as u8, 0]);
    t.w(0x3f6, 0x80);
    assert_eq!(t.registers(HD)[2..5], [0, 0, 0]);
    t.wide(0x24, 0x0102, 0x03_0405);
    t.w(0x3f6, 0x80);
    assert_eq!(t.registers(HD)[1..5], [1, 0, 0, 0]);
    t.w(HD + 2, 0);
    assert_eq!(t.registers(HD)[3], 4, "a write turns the low half to the front");
    // Power.
    for (code, status, mode) in [(0xe5, 0x50, 0xff), (0xe0, 0x40, 0), (0xe1, 0x40, 0x80), (0x70, 0x50, 0x80)]
    {
        assert_eq!(t.command(code, 0, 0, 0), status, "{code:#x}");
        t.command(0xe5, 0, 1, 0);
        assert_eq!(t.r(HD + 2), mode, "{code:#x}");
    }
    // SMART: status with the key as it was, data and thresholds that are 0 in sum, off and on.
    let smart = |feature, low: u32| t.command(0xb0, feature, 0, 0xc2_4f00 | low);
    assert_eq!((smart(0xda, 0), t.registers(HD)[3..5].to_vec()), (0x50, vec![0x4f, 0xc2]));
    for (feature, low) in [(0xd0, 0_u32), (0xd1, 0), (0xd5, 0), (0xd5, 6)] {
        assert_eq!(smart(feature, low), 0x58);
        assert_eq!(t.take(HD, 512).iter().fold(0_u8, |a, b| a.wrapping_add(*b)), 0);
    }
    assert_eq!((smart(0xd9, 0), smart(0xda, 0), smart(0xd8, 0), smart(0xda, 0)), (0x50, 0x41, 0x50, 0x50));
    assert_eq!(t.command(0xb0, 0xda, 0, 0), 0x41);
    // Transfer modes.
    let modes = |mode| {
        let status = t.command(0xef, 3, mode, 0);
        t.command(0xec, 0, 0, 0);
        let data = t.take(HD, 512);
        (status, data[127], data[177])
    };
    assert_eq!([modes(0x22), modes(0x45), modes(0x0c)], [(0x50, 4, 0), (0x50, 0, 0x20), (0x50, 0, 0x20)]);
    assert_eq!((modes(0x47).0, t.command(0xef, 0x99, 0, 0)), (0x41, 0x41));
}

#[test]
fn trim_gives_ranges_back() {
    let options = Options { discard: true, ..Options::default() };
    let t = setup_with(options);
    let mut list = [0; 512];
    for (i, (lba, count)) in [(8_u64, 8_u64), (0, 0), (100, 1)].into_iter().enumerate() {
        list[8 * i..8 * i + 8].copy_from_slice(&(lba | count << 48).to_le_bytes());
    }
    t.pc.memory.write(0x2_0000, &list);
    let trim = || {
        t.start(0, &[(0x2_0000, 512, true)], false);
        t.w(HD + 1, 1);
        let status = t.wide(0x06, 1, 0);
        t.w(HD + 1, 0);
        (status, t.edges())
    };
    t.w(HD + 1, 1);
    assert_eq!(trim(), (0x50, vec![14]));
    let (now, was) = (t.disk.contents(), pattern(DISK));
    assert!(now[8 * 512..16 * 512].iter().all(|b| *b == 0) && now[100 * 512..101 * 512] == [0; 512]);
    assert!(now[16 * 512..100 * 512] == was[16 * 512..100 * 512]);
    list[0..8].copy_from_slice(&(0xffff_ffff_ffff_u64 | 1 << 48).to_le_bytes());
    t.pc.memory.write(0x2_0000, &list);
    assert_eq!(trim().0, 0x41);
}

#[test]
fn interrupts_follow_status_reads_selection_and_the_hosts_wish() {
    let t = setup();
    t.w(0x3f6, 2);
    assert_eq!((t.command(0xec, 0, 0, 0), t.edges()), (0x58, vec![]));
    t.w(0x3f6, 0);
    assert_eq!((t.edges(), t.bm_status(0)), (vec![14], 4));
    t.w(HD + 6, 0xb0);
    t.w(HD + 6, 0xa0);
    assert_eq!(t.edges(), [14], "a device that is not selected does not drive the wire");
    t.r(0x3f6);
    t.r(HD + 7);
    t.w(0x3f6, 2);
    t.w(0x3f6, 0);
    assert!(t.edges().is_empty());
}

#[test]
fn a_packet_device_is_found_and_says_what_it_is() {
    let t = setup();
    t.w(CD + 7, 0xec);
    assert_eq!((t.r(CD + 0x206), t.registers(CD)[..5].to_vec()), (0x41, vec![4, 1, 1, 0x14, 0xeb]));
    t.w(CD + 7, 0xa1);
    assert_eq!(t.r(CD + 7), 0x58);
    let data = t.take(CD, 512);
    let word = |n: usize| u16::from_le_bytes([data[2 * n], data[2 * n + 1]]);
    assert_eq!([0, 49, 53, 63, 64, 80, 88].map(word), [0x85c0, 0x300, 7, 7, 3, 0x1e, 0x203f]);
    assert_eq!(&data[54..66], b"EQUMD DVR-MO");
    t.edges();
    t.w(CD + 7, 0x08);
    assert_eq!((t.r(CD + 7), t.registers(CD), t.edges()), (0, [1, 1, 1, 0x14, 0xeb, 0xa0], vec![]));
}

#[test]
fn packets_move_data_in_blocks_of_the_hosts_limit() {
    let t = setup();
    t.ready();
    let read = [0x28, 0, 0, 0, 0, 3, 0, 0, 40];
    let all = pattern(DISC)[3 * 2048..43 * 2048].to_vec();
    for (limit, blocks) in
        [(0xffff, vec![65_534, 16_386]), (2048, vec![2048; 40]), (40_001, vec![40_000, 40_000, 1920])]
    {
        let (found, data, status) = t.packet(&read, limit);
        assert_eq!((found, status), (blocks.into_iter().map(|n| (n, 2)).collect(), 0x50), "{limit}");
        assert!(data == all, "{limit}");
    }
    // An odd number of bytes: the last one is padded.
    assert_eq!(t.packet(&[0x12, 0, 0, 0, 5], 0xfffe).0, [(5, 2)]);
    assert_eq!(t.packet(&[0x12, 0, 0, 0, 5], 3).0, [(2, 2), (3, 2)]);
    // A limit of 0 with data is refused; without it is of no interest.
    let (blocks, _, status) = t.packet(&read, 0);
    assert_eq!((blocks, status, t.r(CD + 1)), (vec![], 0x41, 4));
    assert_eq!(t.packet(&[0], 0).2, 0x50);
}

#[test]
fn packets_move_data_by_dma() {
    let t = setup();
    t.ready();
    t.start(1, &[(0x2_0000, 0, false), (0x3_0000, 0x4000, true)], true);
    t.send_packet(&[0xa8, 0, 0, 0, 0, 1, 0, 0, 0, 40], 0, 1);
    assert_eq!((t.status(CD), t.bm_status(1), t.edges(), t.r(CD + 2) & 7), (0x50, 4, vec![15], 3));
    assert!(t.memory(0x2_0000, 40 * 2048) == pattern(DISC)[2048..41 * 2048]);
    // Beyond the end, and what the host cannot read.
    t.r(CD + 7);
    t.send_packet(&[0x28, 0, 0, 0, 2, 0, 0, 0, 1], 0, 1);
    assert_eq!((t.status(CD), t.r(CD + 1), t.edges(), t.sense()), (0x41, 0x50, vec![15], (5, 0x21, 0)));
}

#[test]
fn parameters_come_from_the_host() {
    let t = setup();
    t.ready();
    let page = |t: &Test| t.packet(&[0x5a, 0, 1, 0, 0, 0, 0, 0, 64], 64).1;
    let mut list = page(&t);
    assert_eq!(list, [0, 14, 1, 0, 0, 0, 0, 0, 1, 6, 0, 5, 0, 0, 0, 0]);
    list[11] = 9;
    t.send_packet(&[0x55, 0x10, 0, 0, 0, 0, 0, 0, 16], 10, 0);
    for (at, len) in [(0, 10), (10, 6)] {
        assert_eq!((t.edges(), t.r(CD + 7), t.r(CD + 4), t.r(CD + 2) & 7), (vec![15], 0x58, len as u8, 0));
        t.give(CD, &list[at..at + len]);
    }
    assert_eq!((t.edges(), t.r(CD + 7)), (vec![15], 0x50));
    assert_eq!(page(&t), list);
}

#[test]
fn media_change_and_trays_open() {
    let t = setup();
    t.ready();
    let (drive, events) = (&t.drives[1], [0x4a, 1, 0, 0, 0x10, 0, 0, 0, 8]);
    t.packet(&[0x1e, 0, 0, 0, 1], 0);
    assert_eq!(t.packet(&[0x1b, 0, 0, 0, 2], 0).2, 0x41);
    assert_eq!((t.sense(), drive.tray_open()), ((5, 0x53, 2), false));
    assert!(drive.change(None, false).is_err());
    assert_eq!(t.packet(&events, 8).1, [0, 4, 4, 0x10, 1, 2, 0, 0], "somebody wishes it out");
    assert_eq!(t.packet(&events, 8).1, [0, 4, 4, 0x10, 0, 2, 0, 0]);
    t.packet(&[0x1e, 0, 0, 0, 0], 0);
    assert_eq!((t.packet(&[0x1b, 0, 0, 0, 2], 0).2, drive.tray_open()), (0x50, true));
    assert_eq!((t.packet(&[0], 0).2, t.sense()), (0x41, (2, 0x3a, 2)));
    assert_eq!(t.packet(&events, 8).1[4..6], [3, 1]);
    assert_eq!((t.packet(&[0x1b, 0, 0, 0, 3], 0).2, drive.tray_open()), (0x50, false));
    assert_eq!((t.packet(&[0], 0).2, t.sense(), t.packet(&[0], 0).2), (0x41, (6, 0x28, 0), 0x50));
    // The user puts another one in.
    drive.change(Some(Arc::new(Memory::read_only(vec![7; 8192]))), false).unwrap();
    assert_eq!(t.packet(&events, 8).1[4..6], [2, 2]);
    assert_eq!((t.packet(&[0x25], 8).2, t.sense()), (0x41, (6, 0x28, 0)));
    assert_eq!(t.packet(&[0x25], 8).1, [0, 0, 0, 3, 0, 0, 8, 0]);
    drive.change(None, false).unwrap();
    assert_eq!((t.packet(&[0], 0).2, t.sense()), (0x41, (2, 0x3a, 2)));
}

/// A state, encoded and decoded, is taken on by another board.
fn moved(from: &Test, to: &Test) {
    from.hd.pause();
    from.cd.pause();
    to.ide.restore(from.ide.save()).unwrap();
    to.pc.bus.follow();
    to.hd.restore(from.hd.save()).unwrap();
    to.cd.restore(from.cd.save()).unwrap();
    to.pc.memory.write(0, &from.memory(0, 1 << 20));
    assert!(to.edges().is_empty(), "no pin moves");
    to.hd.resume();
    to.cd.resume();
}

#[test]
fn a_machine_goes_on_in_the_middle_of_a_transfer() {
    let (t, other) = (setup(), setup());
    t.ready();
    t.command(0xc4, 0, 40, 2);
    let mut data = t.take(HD, 1000);
    t.start(1, &[(0x2_0000, 0, true)], true);
    t.w(BM + 8, 0);
    t.drain();
    t.edges();
    t.send_packet(&[0x28, 0, 0, 0, 0, 0, 0, 0, 32], 0, 1);
    t.drain();
    moved(&t, &other);
    for _ in 0..39 * 512 / 1000 + 1 {
        data.extend(other.take(HD, 1000));
        other.drain();
    }
    assert!(data[..40 * 512] == pattern(DISK)[2 * 512..42 * 512]);
    assert_eq!((other.status(HD), other.status(CD)), (0x50, 0x58));
    other.w(BM + 8, 9);
    assert_eq!((other.status(CD), other.bm_status(1)), (0x50, 4));
    assert!(other.memory(0x2_0000, 0x1_0000) == pattern(DISC)[..0x1_0000]);
}

#[test]
fn what_a_drive_holds_is_saved_and_done_when_the_machine_goes_on() {
    let options = || Options { werror: OnError::Stop, ..Options::default() };
    let (t, other) = (setup_with(options()), setup_with(options()));
    t.disk.fail(Some(ErrorKind::StorageFull));
    t.pc.memory.write(0x2_0000, &[0x77; 512]);
    t.start(0, &[(0x2_0000, 512, true)], false);
    t.command(0xca, 0, 1, 50);
    assert_eq!((t.status(HD) & BSY, *t.machine.0.lock(), t.edges()), (BSY, 1, vec![]));
    moved(&t, &other);
    assert_eq!((other.status(HD), other.edges(), other.bm_status(0)), (0x50, vec![14], 4));
    assert_eq!(other.disk.contents()[50 * 512..51 * 512], [0x77; 512]);
    // A software reset takes until what is held has ended: what is written then comes after it.
    t.w(0x3f6, 4);
    t.w(0x3f6, 0);
    assert_eq!(t.status(HD), BSY);
    t.disk.fail(None);
    t.hd.resume();
    assert_eq!((t.status(HD), t.registers(HD)[3..5].to_vec(), t.edges()), (0x50, vec![0, 0], vec![]));
    assert_eq!(t.disk.contents()[50 * 512], 0x77);
}

#[test]
fn a_reset_takes_all_back_and_hears_of_nothing_older() {
    let t = setup_with(Options { werror: OnError::Stop, ..Options::default() });
    t.disk.fail(Some(ErrorKind::StorageFull));
    t.command(0x30, 0, 1, 50);
    t.give(HD, &[1; 512]);
    t.drain();
    t.hd.reset(Reset::Board);
    t.cd.reset(Reset::Board);
    t.ide.reset(Reset::Board);
    t.pc.bus.follow();
    t.disk.fail(None);
    t.hd.resume();
    assert_eq!((t.status(HD), t.registers(HD), t.edges()), (0x50, [1, 1, 1, 0, 0, 0xa0], vec![]));
    assert_eq!((t.disk.contents()[50 * 512], t.r(BM + 2)), (pattern(DISK)[50 * 512], 0xff));
}

#[test]
fn no_access_of_any_width_panics() {
    let t = setup();
    crate::events::testing::hammer(&*t.ide, 16);
    for channel in t.ide.channels() {
        crate::events::testing::hammer(&**channel, 8);
    }
    t.drain();
}
