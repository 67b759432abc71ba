//! A driver by the specification: what it issues, what comes into memory, when there are interrupts.
use super::*;
use crate::device::{Device, Reset};
use crate::pci::config::{command, reg};
use crate::pci::testing::{Pc, Wires};
use crate::pci::{DevFn, PciDevice};
use crate::storage::ata::{Geometry, Setup};
use crate::storage::ide::IdeDrive;
use mynah_block::{Drive, Memory, OnError, Options, Stopper};
use std::io::ErrorKind;
use std::sync::Arc;

const AT: DevFn = DevFn::new(0x1f, 2);
const ABAR: u64 = 0xfebf_0000;
/// Of the port in use: 0 for the disk, 1 for the CD.
const LIST: u64 = 0x1000;
const RECEIVED: u64 = 0x2000;
const TABLES: u64 = 0x4000;
const DATA: u64 = 0x2_0000;

const IS: u64 = 0x10;
const IE: u64 = 0x14;
const CMD: u64 = 0x18;
const TFD: u64 = 0x20;
const SIG: u64 = 0x24;
const SSTS: u64 = 0x28;
const SCTL: u64 = 0x2c;
const SERR: u64 = 0x30;
const SACT: u64 = 0x34;
const CI: u64 = 0x38;

const DHRS: u32 = 1;
const PSS: u32 = 2;
const SDBS: u32 = 8;
const OFS: u32 = 1 << 24;
const IFS: u32 = 1 << 27;
const HBFS: u32 = 1 << 29;
const TFES: u32 = 1 << 30;

const DISK: usize = 4 << 20;
const DISC: usize = 1 << 20;

struct Quiet;
impl Stopper for Quiet {
    fn stop(&self, _: &str, _: &str) {}
}

struct Test {
    pc: Pc,
    ahci: Arc<Ahci>,
    wires: Arc<Wires>,
    hd: Arc<IdeDrive<false>>,
    disk: Arc<Memory>,
    drives: [Arc<Drive>; 2],
    _stopper: Arc<dyn Stopper>,
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 7 + i / 512 * 13 + i / 65_536) as u8).collect()
}

fn setup_with(options: Options) -> Test {
    let pc = Pc::new();
    let wires = Wires::on(&pc.bus);
    let ahci = Ahci::at(&pc.bus, AT, "ide");
    let disk = Arc::new(Memory::new(pattern(DISK)));
    let drives = [
        Drive::new(options, Some(disk.clone())).unwrap(),
        Drive::new(Options::default(), Some(Arc::new(Memory::read_only(pattern(DISC))))).unwrap(),
    ];
    let stopper: Arc<dyn Stopper> = Arc::new(Quiet);
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
        queue: 32,
    };
    let cables = ahci.cables();
    let hd = IdeDrive::new(&cables[0], 0, what(false), drives[0].clone()).unwrap();
    IdeDrive::<true>::new(&cables[1], 0, what(true), drives[1].clone()).unwrap();
    assert!(IdeDrive::<true>::new(&cables[1], 0, what(true), drives[1].clone()).is_none());
    pc.write(AT, reg::BAR0 + 20, 4, ABAR as u32);
    pc.write(AT, reg::BAR0 + 16, 4, 0xc000);
    pc.write(AT, reg::COMMAND, 2, (command::IO | command::MEMORY | command::MASTER).into());
    let t = Test { pc, ahci, wires, hd, disk, drives, _stopper: stopper };
    for port in 0..2 {
        t.start(port);
    }
    t.w(4, 2);
    t.wires.take();
    t
}

fn setup() -> Test {
    setup_with(Options::default())
}

impl Test {
    fn r(&self, at: u64) -> u32 {
        self.pc.memory.phys_read(ABAR + at, 4) as u32
    }
    fn w(&self, at: u64, value: u32) {
        self.pc.memory.phys_write(ABAR + at, 4, value.into());
    }
    fn p(&self, port: u64, at: u64) -> u32 {
        self.r(0x100 + 0x80 * port + at)
    }
    fn set(&self, port: u64, at: u64, value: u32) {
        self.w(0x100 + 0x80 * port + at, value);
    }
    fn drain(&self) {
        self.drives.iter().for_each(|d| d.drain());
    }
    /// Has a port receive and run.
    fn start(&self, port: u64) {
        self.set(port, 0, LIST as u32);
        self.set(port, 8, RECEIVED as u32);
        self.set(port, IS, u32::MAX);
        self.set(port, IE, u32::MAX);
        self.set(port, CMD, 0x10);
        self.set(port, CMD, 0x11);
    }
    /// After an error: ST is cleared and set.
    fn recover(&self, port: u64) {
        self.set(port, CMD, 0x10);
        assert_eq!(self.p(port, CMD) & 0xc011, 0x4010);
        self.start(port);
    }
    /// A command into a slot: frame, packet, and regions of memory.
    fn build(&self, slot: u64, frame: &[u8], packet: &[u8], regions: &[(u64, u32)]) {
        let table = TABLES + 0x400 * slot;
        let (words, has_packet) = (frame.len() as u32 / 4, u32::from(!packet.is_empty()));
        let header = [words | has_packet << 5 | (regions.len() as u32) << 16, 0, table as u32, 0];
        self.pc.memory.write(LIST + 32 * slot, header.map(u32::to_le_bytes).as_flattened());
        self.pc.memory.write(table, &[0; 0x80]);
        self.pc.memory.write(table, frame);
        self.pc.memory.write(table + 0x40, packet);
        for (n, (at, len)) in regions.iter().enumerate() {
            let entry = [*at as u32, (*at >> 32) as u32, 0, *len - 1];
            let entry = entry.map(u32::to_le_bytes);
            self.pc.memory.write(table + 0x80 + 16 * n as u64, entry.as_flattened());
        }
    }
    fn issue(&self, port: u64, slots: u32) -> u32 {
        self.set(port, CI, slots);
        self.drain();
        let is = self.p(port, IS);
        self.set(port, IS, is);
        is
    }
    fn command(&self, port: u64, frame: &[u8], packet: &[u8], regions: &[(u64, u32)]) -> u32 {
        self.build(0, frame, packet, regions);
        self.issue(port, 1)
    }
    fn memory(&self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.pc.memory.read(at, &mut bytes);
        bytes
    }
    fn moved(&self, slot: u64) -> u32 {
        u32::from_le_bytes(self.memory(LIST + 32 * slot + 4, 4).try_into().unwrap())
    }
    /// Queues commands: each with slot, code, address, sectors and where its data are.
    fn queue(&self, commands: &[(u64, u8, u64, u16, u64)]) -> u32 {
        let mut slots = 0;
        for (slot, code, lba, sectors, at) in commands {
            let mut f = frame(*code, *lba, (*slot as u16) << 3);
            (f[3], f[11]) = (*sectors as u8, (*sectors >> 8) as u8);
            self.build(*slot, &f, &[], &[(*at, u32::from(*sectors) * 512)]);
            slots |= 1 << slot;
        }
        self.set(0, SACT, slots);
        self.issue(0, slots)
    }
}

/// A frame of a command with 48 bits of address.
fn frame(code: u8, lba: u64, count: u16) -> [u8; 20] {
    let (l, n) = (lba.to_le_bytes(), count.to_le_bytes());
    let mut f = [0; 20];
    f[..8].copy_from_slice(&[0x27, 0x80, code, 0, l[0], l[1], l[2], 0x40]);
    f[8..14].copy_from_slice(&[l[3], l[4], l[5], 0, n[0], n[1]]);
    f
}

const READ_DMA_EXT: u8 = 0x25;
const WRITE_DMA_EXT: u8 = 0x35;
const IDENTIFY: u8 = 0xec;
const READ_QUEUED: u8 = 0x60;
const WRITE_QUEUED: u8 = 0x61;

#[test]
fn it_is_the_ich9s_controller() {
    let t = setup();
    assert_eq!((t.pc.read(AT, 0, 4), t.pc.read(AT, 8, 4)), (0x2922_8086, 0x0106_0102));
    assert_eq!([t.r(0), t.r(4), t.r(0xc), t.r(0x10)], [0xc014_1f05, 0x8000_0002, 0x3f, 0x1_0000]);
    let signatures = [0, 1, 2].map(|port| (t.p(port, SSTS), t.p(port, SIG), t.p(port, TFD)));
    assert_eq!(
        signatures,
        [(0x113, 0x101, 0x150), (0x113, 0xeb14_0101, 0x100), (0, 0xffff_ffff, 0x7f)],
        "a disk, a CD-ROM drive, nothing"
    );
    assert_eq!(t.memory(RECEIVED + 0x40, 1), [0x34], "the first FIS is the signature");
    // The same by index and data.
    t.pc.ports.write(0xc010, 4, 0x124);
    assert_eq!(t.pc.ports.read(0xc014, 4), 0x101);
}

#[test]
fn reads_and_writes_go_between_regions_and_the_disk() {
    let t = setup();
    let regions = [(DATA, 512), (DATA + 0x1000, 1024), (DATA + 0x2000, 512 * 6)];
    assert_eq!(t.command(0, &frame(READ_DMA_EXT, 100, 5), &[], &regions), DHRS);
    let expected = &pattern(DISK)[51_200..51_200 + 2560];
    assert_eq!(
        [t.memory(DATA, 512), t.memory(DATA + 0x1000, 1024), t.memory(DATA + 0x2000, 1024)].concat(),
        expected
    );
    assert_eq!((t.p(0, CI), t.moved(0), t.p(0, TFD)), (0, 2560, 0x50));
    assert_eq!(t.memory(RECEIVED + 0x40, 3), [0x34, 0x40, 0x50]);
    t.pc.memory.write(DATA, &[0xa5; 1024]);
    assert_eq!(t.command(0, &frame(WRITE_DMA_EXT, 7, 2), &[], &[(DATA, 1024)]), DHRS);
    let mut all = pattern(DISK);
    all[7 * 512..9 * 512].fill(0xa5);
    assert!(t.disk.contents() == all);
    // More than is asked of a drive at once: 1.5 MiB come in three pieces, to the same place.
    let regions = vec![(DATA, 0x8_0000); 3];
    assert_eq!(t.command(0, &frame(READ_DMA_EXT, 0, 3072), &[], &regions), DHRS);
    assert!(t.memory(DATA, 0x8_0000) == all[0x10_0000..0x18_0000]);
}

#[test]
fn blocks_of_the_data_port_are_told_by_pio_setup() {
    let t = setup();
    assert_eq!(t.command(0, &frame(IDENTIFY, 0, 0), &[], &[(DATA, 512)]), PSS);
    let words: Vec<u16> = t.memory(DATA, 512).chunks(2).map(|w| u16::from_le_bytes([w[0], w[1]])).collect();
    assert_eq!((words[75], words[76], words[83] & 0x400), (31, 0x100, 0x400));
    // Direction and interrupt, the status before and behind, how many bytes.
    let f = t.memory(RECEIVED + 0x20, 20);
    assert_eq!((f[0], f[1], f[2], f[15], f[16], f[17]), (0x5f, 0x60, 0x58, 0x50, 0, 2));
    assert_eq!(t.moved(0), 512);
    // Two sectors to the disk: the first block comes without an interrupt, the end with one of its own.
    t.pc.memory.write(DATA, &[9; 1024]);
    assert_eq!(t.command(0, &frame(0x34, 50, 2), &[], &[(DATA, 1024)]), PSS | DHRS);
    assert_eq!(t.disk.contents()[50 * 512..52 * 512], [9; 1024]);
}

#[test]
fn packets_and_what_they_move() {
    let t = setup();
    let mut f = frame(0xa0, 0, 0);
    let mut read10 = [0u8; 16];
    (read10[0], read10[5], read10[8]) = (0x28, 3, 2);
    // The first command after power-on finds a unit attention, and leaves its sense for the next one.
    for expected in [TFES | DHRS | PSS, DHRS] {
        f[3] = u8::from(expected & TFES == 0);
        let packet = if expected & TFES != 0 { [0; 16] } else { read10 };
        let is = t.command(1, &f, &packet, &[(DATA, 4096)]);
        if expected & TFES != 0 {
            assert_eq!((is & TFES, t.p(1, CI), t.p(1, TFD)), (TFES, 1, 0x6041));
            t.recover(1);
        } else {
            assert_eq!((is, t.p(1, TFD)), (expected, 0x50));
        }
    }
    assert!(t.memory(DATA, 4096) == pattern(DISC)[3 * 2048..5 * 2048]);
    // The same at what was the data port, in blocks of 2 KiB.
    t.pc.memory.write(DATA, &[0; 4096]);
    (f[3], f[5], f[6]) = (0, 0, 8);
    assert_eq!(t.command(1, &f, &read10, &[(DATA, 4096)]), DHRS | PSS);
    assert!(t.memory(DATA, 4096) == pattern(DISC)[3 * 2048..5 * 2048]);
    assert_eq!(t.command(1, &frame(0xa1, 0, 0), &[], &[(DATA, 512)]) & PSS, PSS);
    assert_eq!(t.memory(DATA, 2), [0xc0, 0x85]);
}

#[test]
fn a_queue_is_carried_out_in_any_order() {
    let t = setup();
    for n in 0..8 {
        t.pc.memory.write(DATA + n * 0x1000, &[0xc0 + n as u8; 0x1000]);
    }
    let writes: Vec<_> = (0..8).map(|n| (n * 3, WRITE_QUEUED, 1000 + n * 8, 8, DATA + n * 0x1000)).collect();
    assert_eq!(t.queue(&writes) & !DHRS, SDBS);
    assert_eq!((t.p(0, SACT), t.p(0, CI), t.p(0, TFD)), (0, 0, 0x50));
    for n in 0..8u8 {
        let at = (1000 + 8 * usize::from(n)) * 512;
        assert!(t.disk.contents()[at..at + 4096].iter().all(|b| *b == 0xc0 + n), "{n}");
    }
    // A long one goes piece by piece.
    assert_eq!(t.queue(&[(31, READ_QUEUED, 64, 1024, DATA), (5, READ_QUEUED, 2000, 1, DATA - 512)]), SDBS);
    assert!(t.memory(DATA, 1024 * 512) == t.disk.contents()[64 * 512..1088 * 512]);
    assert!(t.memory(DATA - 512, 512) == t.disk.contents()[2000 * 512..2001 * 512]);
    assert_eq!(t.memory(RECEIVED + 0x58, 1), [0xa1]);
}

#[test]
fn a_durable_write_of_a_queue_ends_when_it_is() {
    let t = setup();
    t.pc.memory.write(DATA, &[1; 512]);
    t.queue(&[(0, WRITE_QUEUED, 3, 1, DATA)]);
    assert_ne!(t.disk.durable()[3 * 512], 1);
    let mut f = frame(WRITE_QUEUED, 4, 0);
    (f[3], f[7]) = (1, 0xc0);
    t.build(0, &f, &[], &[(DATA, 512)]);
    t.set(0, SACT, 1);
    assert_eq!(t.issue(0, 1), SDBS);
    assert_eq!((t.disk.durable()[3 * 512], t.disk.durable()[4 * 512]), (1, 1));
}

#[test]
fn what_has_failed_of_a_queue_is_told_by_sact_and_log_10h() {
    let t = setup();
    let beyond = DISK as u64 / 512 - 1;
    let is = t.queue(&[(2, READ_QUEUED, beyond, 2, DATA)]);
    assert_eq!(is, TFES | SDBS);
    assert_eq!((t.p(0, SACT), t.p(0, CI), t.p(0, TFD)), (4, 0, 0x1041));
    // Nothing is taken until ST has been cleared.
    assert_eq!(t.command(0, &frame(IDENTIFY, 0, 0), &[], &[(DATA, 512)]), 0);
    t.recover(0);
    assert_eq!((t.p(0, SACT), t.p(0, CI)), (0, 0));
    assert_eq!(t.command(0, &frame(0x2f, 0x10, 1), &[], &[(DATA, 512)]), PSS);
    let log = t.memory(DATA, 512);
    assert_eq!((log[0], log[2], log[3], &log[4..7]), (2, 0x41, 0x10, &beyond.to_le_bytes()[..3]));
    assert_eq!(log.iter().fold(0u8, |sum, b| sum.wrapping_add(*b)), 0);
    // The drive's own errors come the same way.
    t.disk.fail(Some(ErrorKind::Other));
    assert_eq!(t.queue(&[(7, READ_QUEUED, 0, 1, DATA)]), TFES | SDBS);
    t.disk.fail(None);
    assert_eq!((t.p(0, SACT), t.p(0, TFD)), (0x80, 0x4041));
    t.recover(0);
    assert_eq!(t.queue(&[(7, READ_QUEUED, 0, 1, DATA)]), SDBS);
}

#[test]
fn errors_of_commands_stop_the_port_with_the_slot_in_ci() {
    let t = setup();
    t.build(3, &frame(READ_DMA_EXT, 1 << 40, 1), &[], &[(DATA, 512)]);
    t.build(9, &frame(READ_DMA_EXT, 0, 1), &[], &[(DATA, 512)]);
    assert_eq!(t.issue(0, 1 << 3 | 1 << 9), TFES | DHRS);
    assert_eq!((t.p(0, CI), t.p(0, CMD) >> 8 & 0x1f, t.p(0, TFD)), (1 << 3 | 1 << 9, 3, 0x0441));
    t.recover(0);
    assert_eq!(t.issue(0, 1 << 9), DHRS);
}

#[test]
fn regions_that_are_too_short_or_nowhere_stop_the_port() {
    let t = setup();
    assert_eq!(t.command(0, &frame(READ_DMA_EXT, 0, 2), &[], &[(DATA, 512)]), OFS);
    t.recover(0);
    assert_eq!(t.command(0, &frame(READ_DMA_EXT, 0, 2), &[], &[(1 << 40, 1024)]), HBFS);
    t.recover(0);
    assert_eq!(t.command(0, &frame(WRITE_DMA_EXT, 0, 2), &[], &[(DATA, 512), (ABAR, 512)]), HBFS);
    assert!(t.disk.contents() == pattern(DISK), "nothing is written of a command whose data are not there");
    t.recover(0);
    let mut wrong = frame(IDENTIFY, 0, 0);
    wrong[0] = 0x34;
    assert_eq!(t.command(0, &wrong, &[], &[(DATA, 512)]), IFS);
    t.recover(0);
    // A queue's.
    assert_eq!(t.queue(&[(0, WRITE_QUEUED, 0, 2, 0xff_0000)]), HBFS);
    t.recover(0);
    assert_eq!(t.command(0, &frame(READ_DMA_EXT, 0, 1), &[], &[(DATA, 1024)]), DHRS, "more room is no error");
    assert_eq!(t.moved(0), 512);
}

#[test]
fn resets_give_the_signature_anew() {
    let t = setup();
    // COMRESET.
    t.set(0, CMD, 0x10);
    t.set(0, SCTL, 1);
    assert_eq!(t.p(0, SSTS), 0);
    t.pc.memory.write(RECEIVED, &[0; 256]);
    t.set(0, SCTL, 0);
    assert_eq!((t.p(0, SSTS), t.p(0, SIG), t.p(0, TFD)), (0x113, 0x101, 0x150));
    assert_eq!((t.p(0, SERR), t.p(0, IS) & 0x40_0040), (0x0401_0000, 0x40_0040));
    t.set(0, SERR, u32::MAX);
    assert_eq!((t.p(0, IS), t.memory(RECEIVED + 0x40, 1)), (0, vec![0x34]));
    // SRST, set and cleared by two frames.
    t.start(0);
    let mut f = [0u8; 20];
    (f[0], f[15]) = (0x27, 4);
    t.build(0, &f, &[], &[]);
    t.issue(0, 1);
    assert_eq!((t.p(0, TFD) & 0x80, t.p(0, CI)), (0x80, 0));
    f[15] = 0;
    t.build(1, &f, &[], &[]);
    t.issue(0, 2);
    assert_eq!((t.p(0, TFD), t.p(0, CI)), (0x150, 0));
    assert_eq!(t.command(0, &frame(IDENTIFY, 0, 0), &[], &[(DATA, 512)]), PSS);
    // The controller's.
    t.w(4, 1);
    assert_eq!((t.r(4), t.p(0, CMD), t.p(0, SIG), t.p(1, SIG)), (0x8000_0000, 0x1f06, 0x101, 0xeb14_0101));
}

#[test]
fn nothing_of_before_a_reset_comes_behind_it() {
    let t = setup_with(Options { werror: OnError::Stop, ..Options::default() });
    t.disk.fail(Some(ErrorKind::Other));
    t.pc.memory.write(DATA, &[7; 1024]);
    t.queue(&[(0, WRITE_QUEUED, 10, 2, DATA)]);
    assert_eq!((t.p(0, SACT), t.p(0, CI)), (1, 0), "the drive holds it");
    t.set(0, CMD, 0x10);
    t.set(0, SCTL, 1);
    t.set(0, SCTL, 0);
    assert_eq!((t.p(0, TFD), t.p(0, SIG)), (0x80, 0xffff_ffff), "busy until the drive has ended it");
    t.disk.fail(None);
    t.drives[0].resume();
    t.drain();
    assert_eq!((t.p(0, TFD), t.p(0, SIG), t.p(0, SACT)), (0x150, 0x101, 0));
    assert_eq!(t.disk.contents()[10 * 512], 7);
}

#[test]
fn interrupts_are_the_pin_or_messages() {
    let t = setup();
    assert_eq!(t.command(0, &frame(READ_DMA_EXT, 0, 1), &[], &[(DATA, 512)]), DHRS);
    assert_eq!(t.r(8), 1);
    t.w(8, 1);
    assert_eq!(t.r(8), 0);
    let levels = t.wires.take();
    assert_eq!((levels.contains(&(0, 1)), levels.last()), (true, Some(&(0, 0))));
    // Software that clears the controller's bit first finds it again.
    t.build(0, &frame(READ_DMA_EXT, 0, 1), &[], &[(DATA, 512)]);
    t.set(0, CI, 1);
    t.drain();
    t.w(8, 1);
    assert_eq!(t.r(8), 1);
    t.set(0, IS, DHRS);
    t.w(8, 1);
    assert_eq!(t.r(8), 0);
    // Masked, nothing comes of it.
    t.set(0, IE, 0);
    t.command(0, &frame(READ_DMA_EXT, 0, 1), &[], &[(DATA, 512)]);
    assert_eq!(t.r(8), 0);
    t.set(0, IE, DHRS);
    let msi = t.ahci.config().lock().capability(5).unwrap();
    t.pc.write(AT, msi + 4, 4, 0xfee0_0000);
    t.pc.write(AT, msi + 12, 2, 0x41);
    t.pc.write(AT, msi + 2, 2, 1);
    t.wires.take();
    t.command(0, &frame(READ_DMA_EXT, 0, 1), &[], &[(DATA, 512)]);
    let messages = t.wires.take();
    assert_eq!(messages.iter().filter(|m| **m == (0xfee0_0000, 0x41)).count(), 1, "{messages:?}");
}

#[test]
fn a_machine_that_is_saved_in_the_middle_goes_on() {
    for queued in [false, true] {
        let t = setup_with(Options { werror: OnError::Stop, rerror: OnError::Stop, ..Options::default() });
        t.disk.fail(Some(ErrorKind::Other));
        t.pc.memory.write(DATA, &[0x3c; 4096]);
        if queued {
            t.queue(&[(4, WRITE_QUEUED, 20, 8, DATA), (9, READ_QUEUED, 0, 8, DATA + 0x2000)]);
        } else {
            t.command(0, &frame(WRITE_DMA_EXT, 20, 8), &[], &[(DATA, 4096)]);
        }
        let other = setup();
        for at in [LIST, RECEIVED, TABLES, TABLES + 4 * 0x400, TABLES + 9 * 0x400, DATA] {
            other.pc.memory.write(at, &t.memory(at, if at == DATA { 0x1000 } else { 0x400 }));
        }
        Device::restore(&*other.ahci, Device::save(&*t.ahci)).unwrap();
        Device::restore(&*other.hd, Device::save(&*t.hd)).unwrap();
        other.pc.bus.follow();
        Device::resume(&*other.ahci);
        Device::resume(&*other.hd);
        other.drain();
        assert_eq!((other.p(0, CI), other.p(0, SACT)), (0, 0), "queued: {queued}");
        assert_eq!(other.p(0, IS) & !DHRS, if queued { SDBS } else { 0 });
        assert!(other.disk.contents()[20 * 512..28 * 512].iter().all(|b| *b == 0x3c));
        if queued {
            assert!(other.memory(DATA + 0x2000, 4096) == pattern(DISK)[..4096]);
        }
        t.disk.fail(None);
    }
}

#[test]
fn a_new_board_and_one_that_was_reset_are_the_same() {
    let t = setup();
    t.command(0, &frame(READ_DMA_EXT, 0, 8), &[], &[(DATA, 4096)]);
    t.set(0, SCTL, 1);
    for device in [&*t.ahci as &dyn crate::device::Plugged, &*t.hd] {
        device.reset(Reset::Board);
    }
    let state = |t: &Test| serde_json::to_value(Device::save(&*t.ahci)).unwrap()["ports"].clone();
    let new = setup_with(Options::default());
    Device::reset(&*new.ahci, Reset::Board);
    assert_eq!(state(&t), state(&new));
    t.pc.bus.follow();
    assert_eq!(t.pc.read(AT, reg::COMMAND, 2), 0);
}

#[test]
fn no_access_of_any_width_panics() {
    let t = setup();
    let mut n = 1u64;
    for _ in 0..200_000 {
        n = n.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        let (at, size) = (n >> 20 & 0x3ff, [1, 2, 4, 8][(n >> 40 & 3) as usize]);
        if n >> 63 != 0 {
            t.pc.memory.phys_write(ABAR + at, size, n >> 8);
        } else {
            t.pc.memory.phys_read(ABAR + at, size);
        }
    }
    t.drain();
}
