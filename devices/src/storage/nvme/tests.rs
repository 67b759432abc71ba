//! A small driver: queues in the first MiB, commands by the specification's figures.
use super::*;
use crate::clock::ManualClock;
use crate::device::{Plugged, Saved};
use crate::pci::config::command;
use crate::pci::testing::{Pc, Wires};
use crate::pci::{DevFn, PciBus};
use mynah_block::{DriveError, Image, Memory};
use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};

const AT: DevFn = DevFn::new(4, 0);
const BAR: u64 = 0xfe00_0000;
const TABLE: u64 = BAR + 0x2000;
/// Queue `n`'s commands and ends.
const SQ: u64 = 0x1_0000;
const CQ: u64 = 0x2_0000;
const QUEUE: u64 = 0x1000;
const SIZE: u32 = 16;
/// Data, and lists of their places.
const DATA: u64 = 0x8_0000;
const LIST: u64 = 0x4_0000;
const DISK: usize = 2 << 20;

/// A disk that fails while it is told to.
struct Faulty(Memory, AtomicBool);

impl Faulty {
    fn check(&self) -> io::Result<()> {
        if self.1.load(Ordering::SeqCst) { Err(io::ErrorKind::Other.into()) } else { Ok(()) }
    }
}

impl Image for Faulty {
    fn format(&self) -> &'static str {
        self.0.format()
    }
    fn size(&self) -> u64 {
        self.0.size()
    }
    fn read_only(&self) -> bool {
        false
    }
    fn read(&self, at: u64, buf: &mut [u8]) -> io::Result<()> {
        self.check()?;
        self.0.read(at, buf)
    }
    fn write(&self, at: u64, data: &[u8]) -> io::Result<()> {
        self.check()?;
        self.0.write(at, data)
    }
    fn zero(&self, at: u64, len: u64, unmap: bool) -> io::Result<()> {
        self.0.zero(at, len, unmap)
    }
    fn discard(&self, at: u64, len: u64) -> io::Result<()> {
        self.0.discard(at, len)
    }
    fn extent(&self, at: u64) -> io::Result<mynah_block::Extent> {
        self.0.extent(at)
    }
    fn flush(&self) -> io::Result<()> {
        self.check()
    }
    fn resize(&self, _: u64) -> io::Result<()> {
        self.check()
    }
}

struct Rig {
    pc: Pc,
    wires: Arc<Wires>,
    nvme: Arc<Nvme>,
    disks: Vec<Arc<Faulty>>,
    clock: ManualClock,
    tails: [u32; 4],
    heads: [u32; 4],
    phases: [bool; 4],
    next: u16,
}

/// What an end says: the command, its status, dword 0.
type Seen = (u16, u16, u32);

fn attach(bus: &PciBus, options: &Options, clock: &ManualClock) -> Arc<Nvme> {
    let function = bus.function(AT, config_space(options));
    let nvme = Nvme::new(function, options.clone(), Arc::new(clock.clone()));
    bus.attach(AT, nvme.clone());
    nvme
}

impl Rig {
    fn new(shifts: &[u8]) -> Self {
        let (pc, clock) = (Pc::new(), ManualClock::new());
        let wires = Wires::on(&pc.bus);
        let options = Options { serial: "S-1".into(), ..Options::default() };
        let nvme = attach(&pc.bus, &options, &clock);
        let mut disks = Vec::new();
        for (n, shift) in shifts.iter().enumerate() {
            let bytes = (0..DISK).map(|i| (i / 512 * 7 + n) as u8).collect();
            let disk = Arc::new(Faulty(Memory::new(bytes), AtomicBool::new(false)));
            let options = mynah_block::Options {
                name: format!("d{n}"),
                discard: true,
                werror: mynah_block::OnError::Report,
                ..Default::default()
            };
            let drive = Drive::new(options, Some(disk.clone())).unwrap();
            let nsid = n as u32 + 1;
            nvme.add(Namespace { nsid, drive, shift: *shift, eui64: 7, uuid: [0; 16] }).unwrap();
            disks.push(disk);
        }
        let rig =
            Self { pc, wires, nvme, disks, clock, tails: [0; 4], heads: [0; 4], phases: [true; 4], next: 1 };
        rig.power_on();
        rig
    }

    fn power_on(&self) {
        self.pc.write(AT, reg::BAR0, 4, BAR as u32);
        self.pc.write(AT, reg::BAR0 + 4, 4, 0);
        self.pc.write(AT, reg::COMMAND, 2, (command::MEMORY | command::MASTER).into());
    }

    fn read(&self, at: u64, size: u8) -> u64 {
        self.pc.memory.phys_read(BAR + at, size)
    }

    fn write(&self, at: u64, size: u8, value: u64) {
        self.pc.memory.phys_write(BAR + at, size, value);
    }

    fn messages(&self) {
        for n in 0..4 {
            self.pc.memory.phys_write(TABLE + 16 * n, 8, 0xfee0_0000);
            self.pc.memory.phys_write(TABLE + 16 * n + 8, 8, 0x40 + n);
        }
        let mut at = self.pc.read(AT, reg::CAPABILITIES, 1) as u8;
        while self.pc.read(AT, at, 1) != 0x11 {
            at = self.pc.read(AT, at + 1, 1) as u8;
        }
        self.pc.write(AT, at + 2, 2, 0x8000);
    }

    /// Enables the controller, as a driver does.
    fn enable(&mut self) {
        self.write(0x24, 4, u64::from(SIZE - 1) << 16 | u64::from(SIZE - 1));
        self.write(0x28, 8, SQ);
        self.write(0x30, 8, CQ);
        self.pc.memory.write(CQ, &[0; 4 * QUEUE as usize]);
        (self.tails, self.heads, self.phases) = ([0; 4], [0; 4], [true; 4]);
        self.write(0x14, 4, 0x0046_0001);
        assert_eq!(self.read(0x1c, 4), 1, "it is ready");
    }

    /// I/O queues 1 to `n`, with the vectors of their numbers.
    fn queues(&mut self, n: u16) {
        for id in 1..=n {
            let size = (SIZE - 1) << 16;
            let vector = if self.nvme.function.has_messages() { id } else { 0 };
            let at = u64::from(id) * QUEUE;
            let ends = self.admin(5, 0, [CQ + at, 0], [size | u32::from(id), u32::from(vector) << 16 | 3]);
            assert_eq!(ends.1, 0);
            let commands = self.admin(1, 0, [SQ + at, 0], [size | u32::from(id), u32::from(id) << 16 | 1]);
            assert_eq!(commands.1, 0);
        }
    }

    /// Puts a command into a queue and tells nobody; its identifier.
    fn add(&mut self, queue: u16, opcode: u8, nsid: u32, data: [u64; 2], cdw: &[u32]) -> u16 {
        let id = self.next;
        self.next += 1;
        let mut bytes = [0; 64];
        bytes[0] = opcode;
        bytes[2..4].copy_from_slice(&id.to_le_bytes());
        bytes[4..8].copy_from_slice(&nsid.to_le_bytes());
        bytes[24..32].copy_from_slice(&data[0].to_le_bytes());
        bytes[32..40].copy_from_slice(&data[1].to_le_bytes());
        for (n, dword) in cdw.iter().enumerate() {
            bytes[40 + 4 * n..44 + 4 * n].copy_from_slice(&dword.to_le_bytes());
        }
        self.put(queue, &bytes);
        id
    }

    fn put(&mut self, queue: u16, bytes: &[u8; 64]) {
        let tail = &mut self.tails[usize::from(queue)];
        self.pc.memory.write(SQ + u64::from(queue) * QUEUE + 64 * u64::from(*tail), bytes);
        *tail = (*tail + 1) % SIZE;
    }

    fn ring(&self, queue: u16) {
        self.write(0x1000 + 8 * u64::from(queue), 4, self.tails[usize::from(queue)].into());
    }

    fn settle(&self) {
        self.nvme.namespaces().iter().for_each(|n| n.drive.drain());
    }

    /// Ends that were told since the last call.
    fn ends(&mut self, queue: u16) -> Vec<Seen> {
        self.settle();
        let n = usize::from(queue);
        let mut all = Vec::new();
        loop {
            let at = CQ + u64::from(queue) * QUEUE + 16 * u64::from(self.heads[n]);
            let status = self.pc.memory.read_u16(at + 14);
            if (status & 1 != 0) != self.phases[n] {
                break;
            }
            all.push((self.pc.memory.read_u16(at + 12), status >> 1, self.pc.memory.read_u32(at)));
            self.heads[n] = (self.heads[n] + 1) % SIZE;
            if self.heads[n] == 0 {
                self.phases[n] = !self.phases[n];
            }
        }
        if !all.is_empty() {
            self.write(0x1004 + 8 * u64::from(queue), 4, self.heads[n].into());
            self.settle();
        }
        all
    }

    /// Carries out one command.
    fn ask(&mut self, queue: u16, opcode: u8, nsid: u32, data: [u64; 2], cdw: &[u32]) -> Seen {
        let id = self.add(queue, opcode, nsid, data, cdw);
        self.ring(queue);
        let ends = self.ends(queue);
        assert_eq!(ends.len(), 1, "one end: {ends:x?}");
        assert_eq!(ends[0].0, id);
        ends[0]
    }

    fn admin(&mut self, opcode: u8, nsid: u32, data: [u64; 2], cdw: [u32; 2]) -> Seen {
        self.ask(0, opcode, nsid, data, &cdw)
    }

    fn bytes(&self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.pc.memory.read(at, &mut bytes);
        bytes
    }

    fn disk(&self, n: usize, at: usize, len: usize) -> Vec<u8> {
        self.disks[n].0.contents()[at..at + len].to_vec()
    }
}

fn started() -> Rig {
    let mut rig = Rig::new(&[9, 12]);
    rig.messages();
    rig.enable();
    rig.queues(2);
    rig.wires.take();
    rig
}

/// Status codes with "do not retry".
const fn wrong(code: u16) -> u16 {
    0x4000 | code
}

#[test]
fn registers_are_as_the_specification_has_them() {
    let mut rig = Rig::new(&[9]);
    assert_eq!(rig.pc.read(AT, 0, 4), 0x0010_1b36);
    assert_eq!(rig.pc.read(AT, 8, 4) >> 8, 0x01_0802);
    let cap = rig.read(0, 8);
    assert_eq!((cap & 0xffff, cap >> 16 & 1, cap >> 32 & 0xf, cap >> 37 & 1), (2047, 1, 0, 1));
    assert_eq!((rig.read(0, 4), rig.read(4, 4)), (cap & 0xffff_ffff, cap >> 32));
    assert_eq!(rig.read(8, 4), 0x1_0400);
    // Queues that are none: it says that it has failed, and is not ready.
    rig.write(0x14, 4, 0x0046_0001);
    assert_eq!(rig.read(0x1c, 4), 2);
    rig.write(0x14, 4, 0);
    assert_eq!(rig.read(0x1c, 4), 0);
    rig.enable();
    assert_eq!(rig.read(0x28, 8), SQ);
    // A reset keeps where the admin queues are.
    rig.write(0x14, 4, 0x0046_0000);
    assert_eq!((rig.read(0x1c, 4), rig.read(0x30, 8)), (0, CQ));
    rig.enable();
    // "NVMe" resets the subsystem, and that is told until it is written back.
    rig.write(0x20, 4, 0x4e56_4d65);
    assert_eq!((rig.read(0x1c, 4), rig.read(0x14, 4), rig.read(0x28, 8)), (0x10, 0, 0));
    rig.write(0x1c, 4, 0x10);
    assert_eq!(rig.read(0x1c, 4), 0);
}

#[test]
fn a_driver_that_shuts_it_down_is_told_when_all_is_durable() {
    let mut rig = started();
    let flushes = || rig.nvme.namespaces()[1].drive.counts().flushes.load(Ordering::Relaxed);
    let before = flushes();
    rig.write(0x14, 4, 0x0046_4001);
    rig.settle();
    assert_eq!((rig.read(0x1c, 4), flushes()), (0b1001, before + 1));
    rig.write(0x14, 4, 0);
    assert_eq!(rig.read(0x1c, 4), 0);
    rig.enable();
}

#[test]
fn identify_tells_of_the_controller_and_its_namespaces() {
    let mut rig = started();
    assert_eq!(rig.admin(6, 0, [DATA, 0], [1, 0]).1, 0);
    let page = rig.bytes(DATA, 4096);
    assert_eq!(&page[..4], [0x36, 0x1b, 0xf4, 0x1a]);
    assert_eq!(&page[4..24], b"S-1                 ");
    assert_eq!(&page[24..38], b"QEMU NVMe Ctrl");
    assert_eq!((page[77], page[512], page[513], page[111]), (7, 0x66, 0x44, 1));
    assert_eq!(&page[768..792], b"nqn.2019-08.org.qemu:S-1");
    // One of 512 bytes a block, one of 4,096; a page that is told by two PRPs.
    assert_eq!(rig.admin(6, 2, [DATA + 0x800, DATA + 0x2000], [0, 0]).1, 0);
    let first = rig.bytes(DATA + 0x800, 0x800);
    assert_eq!(&first[..8], ((DISK >> 12) as u64).to_le_bytes());
    assert_eq!((first[26] & 0xf, first[25], first[130]), (0, 0, 12));
    // The list behind a number; descriptors.
    assert_eq!(rig.admin(6, 1, [DATA, 0], [2, 0]).1, 0);
    assert_eq!(&rig.bytes(DATA, 8), &[2, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(rig.admin(6, 1, [DATA, 0], [3, 0]).1, 0);
    assert_eq!(&rig.bytes(DATA, 13), &[1, 8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7, 0]);
    // None there; no such number; no such structure.
    assert_eq!(rig.admin(6, 3, [DATA, 0], [0, 0]).1, 0);
    assert_eq!(rig.bytes(DATA, 4096), [0; 4096]);
    assert_eq!(rig.admin(6, 0, [DATA, 0], [0, 0]).1, wrong(0x0b));
    assert_eq!(rig.admin(6, 0, [DATA, 0], [0x77, 0]).1, wrong(0x02));
}

#[test]
fn blocks_are_read_and_written_by_all_forms_of_prps() {
    let mut rig = started();
    // Two blocks in one page, in the middle of it.
    assert_eq!(rig.ask(1, 2, 1, [DATA + 0x200, 0], &[4, 0, 1]).1, 0);
    assert_eq!(rig.bytes(DATA + 0x200, 1024), rig.disk(0, 2048, 1024));
    // From one page into another that is elsewhere.
    assert_eq!(rig.ask(1, 2, 1, [DATA + 0xe00, DATA + 0x5000], &[0, 0, 7]).1, 0);
    let both = [rig.bytes(DATA + 0xe00, 0x200), rig.bytes(DATA + 0x5000, 0xe00)].concat();
    assert_eq!(both, rig.disk(0, 0, 4096));
    // A list that does not begin with its page, and goes on in another: 10 pages.
    let page = |n: u64| DATA + 0x1000 * (2 * n % 20 + n / 10);
    rig.pc.memory.write_u64(LIST + 0xff0, page(1));
    rig.pc.memory.write_u64(LIST + 0xff8, LIST + 0x1000);
    for n in 2..10 {
        rig.pc.memory.write_u64(LIST + 0x1000 + 8 * (n - 2), page(n));
    }
    for n in 0..10 {
        rig.pc.memory.write(page(n), &vec![0xa0 + n as u8; 4096]);
    }
    assert_eq!(rig.ask(2, 1, 2, [page(0), LIST + 0xff0], &[100, 0, 9]).1, 0);
    let expected: Vec<u8> = (0..10).flat_map(|n| vec![0xa0 + n; 4096]).collect();
    assert!(rig.disk(1, 100 << 12, 40_960) == expected);
    assert_eq!(rig.disk(0, 100 << 12, 16), vec![(100 * 8 * 7) as u8; 16], "the other one is as it was");
    // Compare: the same, then not.
    assert_eq!(rig.ask(2, 5, 2, [page(0), LIST + 0xff0], &[100, 0, 9]).1, 0);
    rig.pc.memory.write(page(9) + 4095, &[0]);
    assert_eq!(rig.ask(2, 5, 2, [page(0), LIST + 0xff0], &[100, 0, 9]).1, wrong(0x285));
}

#[test]
fn scatter_gather_lists_lead_to_the_data() {
    let mut rig = started();
    let sgl = |rig: &mut Rig, opcode: u8, low: u64, high: u64| {
        let id = rig.next;
        rig.next += 1;
        let mut bytes = [0; 64];
        (bytes[0], bytes[1], bytes[4]) = (opcode, 0x40, 1);
        bytes[2..4].copy_from_slice(&id.to_le_bytes());
        bytes[24..32].copy_from_slice(&low.to_le_bytes());
        bytes[32..40].copy_from_slice(&high.to_le_bytes());
        // Four blocks.
        bytes[48] = 3;
        rig.put(1, &bytes);
        rig.ring(1);
        rig.ends(1)[0].1
    };
    let describe = |rig: &Rig, at: u64, low: u64, len: u64, kind: u64| {
        rig.pc.memory.write_u64(at, low);
        rig.pc.memory.write_u64(at + 8, len | kind << 60);
    };
    assert_eq!(sgl(&mut rig, 2, DATA + 3, 2048), 0);
    assert_eq!(rig.bytes(DATA + 3, 2048), rig.disk(0, 0, 2048));
    // A segment, and a last one.
    describe(&rig, LIST, DATA + 0x1000, 1000, 0);
    describe(&rig, LIST + 16, LIST + 0x100, 32, 3);
    describe(&rig, LIST + 0x100, DATA + 0x3000, 24, 0);
    describe(&rig, LIST + 0x110, DATA + 0x4001, 1024, 0);
    assert_eq!(sgl(&mut rig, 2, LIST, 32 | 2 << 60), 0);
    let parts = [(DATA + 0x1000, 1000), (DATA + 0x3000, 24), (DATA + 0x4001, 1024)];
    let all: Vec<u8> = parts.into_iter().flat_map(|(at, len)| rig.bytes(at, len)).collect();
    assert_eq!(all, rig.disk(0, 0, 2048));
    // Too short; too long; no whole descriptors; another type; one that leads to itself; not in memory.
    assert_eq!(sgl(&mut rig, 2, DATA, 2047), wrong(0x0f));
    assert_eq!(sgl(&mut rig, 2, DATA, 2049), wrong(0x0f));
    assert_eq!(sgl(&mut rig, 2, LIST, 33 | 2 << 60), wrong(0x0d));
    assert_eq!(sgl(&mut rig, 2, LIST, 32 | 5 << 60), wrong(0x11));
    describe(&rig, LIST, LIST, 16, 2);
    assert_eq!(sgl(&mut rig, 2, LIST, 16 | 2 << 60), wrong(0x0e));
    assert_eq!(sgl(&mut rig, 2, 1 << 40, 2048), 4);
}

#[test]
fn what_is_no_data_ends_as_it_must() {
    let mut rig = started();
    // Flush, write zeroes with deallocation, verify.
    assert_eq!(rig.ask(1, 0, 1, [0, 0], &[]).1, 0);
    assert_eq!(rig.ask(1, 0, u32::MAX, [0, 0], &[]).1, 0);
    assert_eq!(rig.ask(1, 8, 1, [0, 0], &[8, 0, 7 | 1 << 25]).1, 0);
    assert_eq!((rig.disk(0, 4096, 4096), rig.disk(0, 8192, 1)), (vec![0; 4096], vec![112]));
    assert_eq!(rig.ask(1, 0xc, 1, [0, 0], &[0, 0, 0xfff]).1, 0);
    // Deallocation of two ranges, and one that is beyond the end.
    let range = |rig: &Rig, n: u64, first: u64, blocks: u32| {
        rig.pc.memory.write_u64(DATA + 16 * n, u64::from(blocks) << 32);
        rig.pc.memory.write_u64(DATA + 16 * n + 8, first);
    };
    range(&rig, 0, 100, 8);
    range(&rig, 1, 200, 8);
    assert_eq!(rig.ask(1, 9, 1, [DATA, 0], &[1, 4]).1, 0);
    assert_eq!((rig.disk(0, 100 * 512, 512), rig.disk(0, 207 * 512, 512)), (vec![0; 512], vec![0; 512]));
    range(&rig, 1, 4095, 2);
    assert_eq!(rig.ask(1, 9, 1, [DATA, 0], &[1, 4]).1, wrong(0x80));
    // A format leaves zeros.
    assert_eq!(rig.ask(0, 0x80, 2, [0, 0], &[1 << 9]).1, 0);
    assert!(rig.disk(1, 0, DISK) == vec![0; DISK]);
    assert_eq!(rig.ask(0, 0x80, 2, [0, 0], &[1]).1, wrong(0x10a));
}

#[test]
fn a_faulty_driver_gets_the_status_of_its_fault() {
    let mut rig = started();
    let mut io = |opcode, nsid, data, cdw: &[u32]| rig.ask(1, opcode, nsid, data, cdw).1;
    assert_eq!(io(2, 1, [DATA, 0], &[4096, 0, 0]), wrong(0x80), "beyond the end");
    assert_eq!(io(2, 1, [DATA, 0], &[u32::MAX, u32::MAX, 0]), wrong(0x80));
    assert_eq!(io(2, 1, [DATA, DATA], &[0, 0, 1024]), wrong(0x02), "more than MDTS");
    assert_eq!(io(2, 0, [DATA, 0], &[0, 0, 0]), wrong(0x0b));
    assert_eq!(io(2, 9, [DATA, 0], &[0, 0, 0]), wrong(0x02), "not active");
    assert_eq!(io(0x7f, 1, [DATA, 0], &[0, 0, 0]), wrong(0x01));
    assert_eq!(io(2, 1, [DATA + 1, 0], &[0, 0, 0]), wrong(0x13));
    assert_eq!(io(2, 1, [DATA + 8, DATA + 8], &[0, 0, 7]), wrong(0x13));
    assert_eq!(io(2, 1, [DATA, DATA + 4], &[0, 0, 23]), wrong(0x13), "a list at no multiple of 8");
    assert_eq!(io(2, 1, [1 << 40, 0], &[0, 0, 0]), 0x04, "no memory");
    assert_eq!(io(1, 1, [1 << 40, 0], &[0, 0, 0]), 0x04);
    assert_eq!(io(2, 1, [DATA, 1 << 40], &[0, 0, 23]), 0x04);
    // A list whose pages lead to themselves moves what the pages say, and ends.
    rig.pc.memory.write_u64(LIST + 0xff8, LIST);
    for n in 0..511 {
        rig.pc.memory.write_u64(LIST + 8 * n, DATA);
    }
    assert_eq!(rig.ask(1, 2, 1, [DATA, LIST + 0xff8], &[0, 0, 1023]).1, 0);
    let status = |rig: &mut Rig, opcode, data, cdw| rig.admin(opcode, 0, data, cdw).1;
    let rig = &mut rig;
    assert_eq!(status(rig, 5, [CQ, 0], [0xf_0001, 1]), wrong(0x101), "the queue is there");
    assert_eq!(status(rig, 5, [CQ, 0], [0xf_0041, 1]), wrong(0x101));
    assert_eq!(status(rig, 5, [CQ, 0], [3, 1]), wrong(0x102));
    assert_eq!(status(rig, 5, [CQ, 0], [0xffff_0003, 1]), wrong(0x102));
    assert_eq!(status(rig, 5, [CQ, 0], [0xf_0003, 0]), wrong(0x02), "not contiguous");
    assert_eq!(status(rig, 5, [CQ + 64, 0], [0xf_0003, 1]), wrong(0x13));
    assert_eq!(status(rig, 5, [CQ, 0], [0xf_0003, 65 << 16 | 1]), wrong(0x108));
    assert_eq!(status(rig, 1, [SQ, 0], [0xf_0003, 3 << 16 | 1]), wrong(0x100));
    assert_eq!(status(rig, 4, [0, 0], [1, 0]), wrong(0x10c), "a queue is on it");
    assert_eq!(status(rig, 0, [0, 0], [7, 0]), wrong(0x101));
    assert_eq!(status(rig, 0, [0, 0], [0, 0]), wrong(0x101));
    assert_eq!(status(rig, 2, [DATA, 0], [0x70, 0]), wrong(0x109));
    assert_eq!(status(rig, 9, [0, 0], [1 << 31 | 6, 1]), wrong(0x10d));
    assert_eq!(status(rig, 0x99, [0, 0], [0, 0]), wrong(0x01));
    assert_eq!(status(rig, 8, [0, 0], [0x55_0001, 0]), 0);
    // A disk that fails: the status of the medium, an entry in the error log, a count in the health log.
    rig.disks[0].1.store(true, Ordering::SeqCst);
    assert_eq!(rig.ask(1, 2, 1, [DATA, 0], &[0, 0, 0]).1, 0x281);
    assert_eq!(rig.ask(1, 1, 1, [DATA, 0], &[0, 0, 0]).1, 0x280);
    assert_eq!(rig.ask(0, 2, u32::MAX, [DATA, 0], &[0x7f << 16 | 2]).1, 0);
    assert_eq!((rig.bytes(DATA + 160, 1), rig.bytes(DATA + 1, 2)), (vec![2], vec![0x43, 1]));
    assert_eq!(rig.ask(0, 2, 0, [DATA, 0], &[0x1f << 16 | 1]).1, 0);
    let log = rig.bytes(DATA, 128);
    assert_eq!((log[0], &log[8..10], &log[12..14]), (2, &[1, 0][..], &[0x00, 0x05][..]));
    assert_eq!((log[64], &log[76..78]), (1, &[0x02, 0x05][..]));
}

#[test]
fn queues_that_are_not_in_memory_are_fatal_until_a_reset() {
    let mut rig = Rig::new(&[9]);
    rig.enable();
    rig.write(0x14, 4, 0);
    rig.write(0x28, 8, 1 << 40);
    rig.write(0x14, 4, 0x0046_0001);
    rig.ring(0);
    assert_eq!(rig.read(0x1c, 4), 1, "nothing is in the queue yet");
    rig.write(0x1000, 4, 1);
    assert_eq!(rig.read(0x1c, 4), 3);
    rig.write(0x14, 4, 0);
    rig.enable();
    assert_eq!(rig.admin(6, 0, [DATA, 0], [1, 0]).1, 0);
}

#[test]
fn each_queue_interrupts_by_its_own_message_or_by_the_pin() {
    let mut rig = started();
    rig.ask(2, 0, 1, [0, 0], &[]);
    assert_eq!(
        rig.wires.take().into_iter().filter(|(at, _)| *at != 0).collect::<Vec<_>>(),
        [(0xfee0_0000, 0x42)]
    );
    let mut rig = Rig::new(&[9]);
    rig.enable();
    rig.queues(1);
    rig.wires.take();
    let level = |rig: &Rig| rig.pc.read(AT, 6, 2) >> 3 & 1;
    rig.add(1, 0, 1, [0, 0], &[]);
    rig.ring(1);
    rig.settle();
    assert_eq!(level(&rig), 1);
    rig.write(0x0c, 4, 1);
    assert_eq!((level(&rig), rig.read(0x10, 4)), (0, 1));
    rig.write(0x10, 4, 1);
    assert_eq!(level(&rig), 1);
    assert_eq!(rig.ends(1).len(), 1);
    assert_eq!(level(&rig), 0, "the host has seen all");
}

#[test]
fn ends_wait_until_there_is_room_for_them_and_queues_wrap() {
    let mut rig = started();
    // More than the completion queue has room for, in two steps, as the other one is as long.
    let first: Vec<u16> = (0..10).map(|_| rig.add(1, 0, 1, [0, 0], &[])).collect();
    rig.ring(1);
    rig.settle();
    let second: Vec<u16> = (0..10).map(|_| rig.add(1, 0, 1, [0, 0], &[])).collect();
    rig.ring(1);
    rig.settle();
    let mut seen = VecDeque::new();
    for _ in 0..3 {
        seen.extend(rig.ends(1).into_iter().map(|(id, status, _)| (id, status)));
    }
    let mut ids: Vec<u16> = seen.iter().map(|(id, _)| *id).collect();
    ids.sort_unstable();
    assert_eq!(ids, [first, second].concat());
    assert!(seen.iter().all(|(_, status)| *status == 0));
}

#[test]
fn a_queue_is_deleted_when_its_commands_have_ended() {
    let mut rig = started();
    assert_eq!(rig.ask(0, 0, 0, [0, 0], &[2]).1, 0);
    assert_eq!(rig.ask(0, 4, 0, [0, 0], &[2]).1, 0);
    rig.ring(2);
    assert!(rig.ends(2).is_empty());
    (rig.tails[2], rig.heads[2], rig.phases[2]) = (0, 0, true);
    rig.pc.memory.write(CQ + 2 * QUEUE, &[0; 256]);
    let size = (SIZE - 1) << 16;
    assert_eq!(rig.admin(5, 0, [CQ + 2 * QUEUE, 0], [size | 2, 3]).1, 0);
    assert_eq!(rig.admin(1, 0, [SQ + 2 * QUEUE, 0], [size | 2, 2 << 16 | 1]).1, 0);
    assert_eq!(rig.ask(2, 0, 1, [0, 0], &[]).1, 0);
}

#[test]
fn events_are_told_to_who_has_asked_for_them() {
    let mut rig = started();
    let request = rig.add(0, 0x0c, 0, [0, 0], &[]);
    rig.ring(0);
    assert!(rig.ends(0).is_empty());
    // A doorbell beyond its queue's end.
    rig.write(0x1000 + 8, 4, 77);
    assert_eq!(rig.ends(0), [(request, 0, 0x01_01_00)]);
    // The next one waits until the log was read, as all of its type.
    let next = rig.add(0, 0x0c, 0, [0, 0], &[]);
    rig.ring(0);
    rig.write(0x1000 + 8 * 50, 4, 1);
    assert!(rig.ends(0).is_empty());
    let read = rig.add(0, 2, 0, [DATA, 0], &[0xf << 16 | 1]);
    rig.ring(0);
    let mut ends = rig.ends(0);
    ends.sort_unstable();
    assert_eq!(ends, [(next, 0, 0x01_00_00), (read, 0, 0)]);
    // No more than AERL and one; one of them is taken back.
    let ids: Vec<u16> = (0..5).map(|_| rig.add(0, 0x0c, 0, [0, 0], &[])).collect();
    rig.ring(0);
    assert_eq!(rig.ends(0), [(ids[4], wrong(0x105), 0)]);
    let abort = rig.add(0, 8, 0, [0, 0], &[u32::from(ids[1]) << 16]);
    rig.ring(0);
    assert_eq!(rig.ends(0), [(ids[1], 0x07, 0), (abort, 0, 0)]);
    // A threshold that is passed, once that is asked for.
    assert_eq!(rig.ask(0, 9, 0, [0, 0], &[0x0b, 2]).1, 0);
    let set = rig.add(0, 9, 0, [0, 0], &[0x04, 0x100]);
    rig.ring(0);
    assert_eq!(rig.ends(0), [(set, 0, 0), (ids[0], 0, 0x02_01_01)]);
}

#[test]
fn features_are_kept_until_a_reset() {
    let mut rig = started();
    let get = |rig: &mut Rig, id: u32, dword: u32| {
        let (_, status, value) = rig.ask(0, 0x0a, 1, [DATA, 0], &[id, dword]);
        (status, value)
    };
    assert_eq!(get(&mut rig, 7, 0), (0, 63 << 16 | 63));
    assert_eq!(get(&mut rig, 6, 0), (0, 1));
    assert_eq!(rig.ask(0, 9, 0, [0, 0], &[6, 0]).1, 0);
    assert_eq!((get(&mut rig, 6, 0), rig.nvme.namespaces()[0].drive.write_cache()), ((0, 0), false));
    assert_eq!(rig.ask(0, 9, 0, [0, 0], &[8, 0x1234]).1, 0);
    assert_eq!((get(&mut rig, 8, 0), get(&mut rig, 0x108, 0)), ((0, 0x1234), (0, 0)));
    assert_eq!(rig.ask(0, 9, 0, [0, 0], &[7, 0]).1, wrong(0x0c), "there are queues");
    assert_eq!(get(&mut rig, 9, 70), (wrong(2), 0));
    rig.pc.memory.write_u64(DATA, 1000);
    assert_eq!(rig.ask(0, 9, 0, [DATA, 0], &[0x0e]).1, 0);
    rig.clock.advance(5_000_000_000);
    assert_eq!(get(&mut rig, 0x0e, 0), (0, 0));
    assert_eq!(rig.pc.memory.read_u64(DATA), 6000 | 1 << 49);
    rig.write(0x14, 4, 0);
    rig.enable();
    assert_eq!((get(&mut rig, 6, 0), get(&mut rig, 8, 0)), ((0, 1), (0, 0)));
}

#[test]
fn a_write_with_forced_access_is_flushed_before_it_ends() {
    let mut rig = started();
    let flushes = |rig: &Rig| rig.nvme.namespaces()[0].drive.counts().flushes.load(Ordering::Relaxed);
    let before = flushes(&rig);
    assert_eq!(rig.ask(1, 1, 1, [DATA, 0], &[0, 0, 0]).1, 0);
    assert_eq!(flushes(&rig), before);
    assert_eq!(rig.ask(1, 1, 1, [DATA, 0], &[0, 0, 1 << 30]).1, 0);
    assert_eq!(flushes(&rig), before + 1);
}

#[test]
fn what_is_under_way_when_it_is_saved_goes_on_in_another_one() {
    let mut one = started();
    Device::pause(&*one.nvme);
    one.pc.memory.write(DATA, &[0x77; 512]);
    let write = one.add(1, 1, 1, [DATA, 0], &[3, 0, 0]);
    let flush = one.add(2, 0, 1, [0, 0], &[]);
    one.ring(1);
    one.ring(2);
    let saved = Plugged::save(&*one.nvme, "it");
    let mut other = Rig::new(&[9, 12]);
    other.enable();
    let mut ram = vec![0; 1 << 20];
    one.pc.memory.read(0, &mut ram);
    other.pc.memory.write(0, &ram);
    Device::pause(&*other.nvme);
    Plugged::restore(&*other.nvme, &saved).unwrap();
    other.pc.bus.follow();
    (other.tails, other.heads, other.phases) = (one.tails, one.heads, one.phases);
    assert!(other.ends(1).is_empty() && other.disk(0, 1536, 1) != [0x77]);
    Device::resume(&*other.nvme);
    assert_eq!((other.ends(1), other.ends(2)), (vec![(write, 0, 0)], vec![(flush, 0, 0)]));
    assert_eq!(other.disk(0, 1536, 512), [0x77; 512]);
    assert_eq!(other.admin(6, 0, [DATA, 0], [1, 0]).1, 0, "the queues go on");
    // One with other namespaces is another.
    let third = Rig::new(&[9]);
    let saved = Saved { name: "it".into(), ..saved };
    assert!(Plugged::restore(&*third.nvme, &saved).is_err());
}

#[test]
fn a_request_that_a_drive_holds_is_saved_and_done_again() {
    struct Stops(AtomicBool);
    impl mynah_block::Stopper for Stops {
        fn stop(&self, _: &str, _: &str) {
            self.0.store(true, Ordering::SeqCst);
        }
    }
    let disk = Arc::new(Faulty(Memory::new(vec![0; DISK]), AtomicBool::new(true)));
    let options = mynah_block::Options { werror: mynah_block::OnError::Stop, ..Default::default() };
    let drive = Drive::new(options, Some(disk.clone())).unwrap();
    let stops: Arc<dyn mynah_block::Stopper> = Arc::new(Stops(AtomicBool::new(false)));
    drive.on_stop(Arc::downgrade(&stops));
    let mut one = Rig::new(&[]);
    one.nvme.add(Namespace { nsid: 1, drive, shift: 9, eui64: 0, uuid: [0; 16] }).unwrap();
    one.enable();
    one.queues(1);
    one.pc.memory.write(DATA, &[0x55; 512]);
    let write = one.add(1, 1, 1, [DATA, 0], &[1, 0, 0]);
    one.ring(1);
    assert!(one.ends(1).is_empty(), "it is held");
    let saved = Plugged::save(&*one.nvme, "it");
    let mut other = Rig::new(&[9]);
    let mut ram = vec![0; 1 << 20];
    one.pc.memory.read(0, &mut ram);
    other.pc.memory.write(0, &ram);
    Plugged::restore(&*other.nvme, &saved).unwrap();
    other.pc.bus.follow();
    (other.tails, other.heads, other.phases) = (one.tails, one.heads, one.phases);
    Device::resume(&*other.nvme);
    assert_eq!(other.ends(1), [(write, 0, 0)]);
    assert_eq!(other.disk(0, 512, 512), [0x55; 512]);
    let _ = DriveError::Io;
}
