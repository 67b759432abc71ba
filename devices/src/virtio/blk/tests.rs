use super::super::chain::Piece;
use super::super::testing::{Buffer, Rig, WAYS, Way};
use super::super::{feature as common, status};
use super::*;
use mynah_block::{Extent, Image, Memory, OnError, Options, Stopper};
use parking_lot::Condvar;
use std::io;
use std::time::Duration;

const HEAD: u64 = 0x8_0000;
const STATUS: u64 = 0x8_0800;
const DATA: u64 = 0x9_0000;
const DISK: usize = 4 << 20;

struct Disk {
    rig: Rig<Blk>,
    drive: Arc<Drive>,
    memory: Arc<Memory>,
}

fn on(way: Way, options: Options, blk: BlkOptions) -> Disk {
    let bytes: Vec<u8> = (0..DISK).map(|n| (n / 512) as u8).collect();
    let memory = Arc::new(Memory::new(bytes));
    let drive = Drive::new(options, Some(memory.clone())).unwrap();
    Disk { rig: Rig::new(way, Blk::new(drive.clone(), blk)), drive, memory }
}

fn disk(way: Way) -> Disk {
    on(way, Options::default(), BlkOptions { serial: "MYNAH-1".into(), ..BlkOptions::default() })
}

impl Disk {
    /// A header at `HEAD + 32 * n`, and the status at `STATUS + n`.
    fn buffers(&self, n: u64, kind: u32, sector: u64, data: &[Buffer]) -> Vec<Buffer> {
        let at = HEAD + 32 * n;
        self.rig.pc.memory.write_u32(at, kind);
        self.rig.pc.memory.write_u32(at + 4, 0);
        self.rig.pc.memory.write_u64(at + 8, sector);
        self.rig.pc.memory.write_u8(STATUS + n, 0xee);
        let mut all = vec![(at, 16, false)];
        all.extend(data);
        all.push((STATUS + n, 1, true));
        all
    }

    /// Makes a request, and waits for its end: status, and bytes written.
    fn ask(&mut self, kind: u32, sector: u64, data: &[Buffer]) -> (u8, u32) {
        let buffers = self.buffers(0, kind, sector, data);
        let head = self.rig.add(0, &buffers);
        self.rig.notify(0);
        self.drive.drain();
        let used = self.rig.used(0);
        assert_eq!(used.len(), 1, "one end");
        assert_eq!(used[0].0, head);
        (self.rig.pc.memory.read_u8(STATUS), used[0].1)
    }

    fn bytes(&self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.rig.pc.memory.read(at, &mut bytes);
        bytes
    }

    fn segment(&self, sector: u64, sectors: u32, flags: u32) -> Vec<Buffer> {
        self.rig.pc.memory.write_u64(DATA, sector);
        self.rig.pc.memory.write_u32(DATA + 8, sectors);
        self.rig.pc.memory.write_u32(DATA + 12, flags);
        vec![(DATA, 16, false)]
    }
}

#[test]
fn sectors_are_written_and_read_by_every_transport() {
    for way in WAYS {
        let mut d = disk(way);
        d.rig.start(common::EVENT_IDX | common::INDIRECT_DESC | feature::FLUSH);
        assert_eq!((d.rig.config(0, 4), d.rig.config(20, 4)), (DISK as u64 / 512, 512), "{way:?}");
        assert_eq!((d.rig.config(12, 4), d.rig.config(34, 2)), (254, 1), "{way:?}");
        d.rig.pc.memory.write(DATA, &[0x5a; 1024]);
        assert_eq!(d.ask(1, 7, &[(DATA, 100, false), (DATA, 924, false)]), (0, 1), "{way:?}");
        assert_eq!(d.rig.isr(), 1, "{way:?}");
        assert_eq!(
            d.memory.contents()[7 * 512 - 1..9 * 512 + 1],
            [vec![6], vec![0x5a; 1024], vec![9]].concat()
        );
        assert_ne!(d.memory.durable()[7 * 512], 0x5a, "{way:?}");
        assert_eq!(d.ask(4, 0, &[]), (0, 1), "{way:?}: a flush");
        assert_eq!(d.memory.durable()[7 * 512], 0x5a, "{way:?}");
        let to = DATA + 0x1000;
        assert_eq!(d.ask(0, 8, &[(to, 512, true), (to + 512, 512, true)]), (0, 1025), "{way:?}");
        assert_eq!(d.bytes(to, 1024), [[0x5a; 512], [9; 512]].concat(), "{way:?}");
        assert_eq!(d.ask(8, 0, &[(to, 20, true)]), (0, 21), "{way:?}: its number");
        assert_eq!(&d.bytes(to, 20), b"MYNAH-1\0\0\0\0\0\0\0\0\0\0\0\0\0", "{way:?}");
        let buffers = d.buffers(0, 0, 3, &[(to, 512, true)]);
        d.rig.add_indirect(0, 0xc_0000, &buffers);
        d.rig.notify(0);
        d.drive.drain();
        assert_eq!((d.rig.used(0)[0].1, d.bytes(to, 512)), (513, vec![3; 512]), "{way:?}");
    }
}

#[test]
fn a_request_in_any_pieces_and_of_many_bytes() {
    let mut d = disk(Way::Modern);
    d.rig.start(0);
    // Header, data and status in one buffer each way, and a status beside data.
    d.rig.pc.memory.write(HEAD, &[0, 0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0]);
    d.rig.add(0, &[(HEAD, 3, false), (HEAD + 3, 13, false), (DATA, 513, true)]);
    d.rig.notify(0);
    d.drive.drain();
    assert_eq!((d.rig.used(0)[0].1, d.bytes(DATA, 513)), (513, [vec![5; 512], vec![0]].concat()));
    // 3 MiB, which all go to the same places.
    let many = [(DATA, 0x4_0000, true); 12];
    assert_eq!(d.ask(0, 100, &many), (0, (3 << 20) + 1));
    assert_eq!(d.bytes(DATA + 0x3_fe00, 512), vec![((3 << 11) + 99) as u8; 512]);
    let many = [(DATA, 0x4_0000, false); 12];
    d.rig.pc.memory.write(DATA, &[0x77; 0x4_0000]);
    assert_eq!(d.ask(1, 100, &many), (0, 1));
    assert_eq!(d.memory.contents()[100 * 512..100 * 512 + (3 << 20)], vec![0x77; 3 << 20]);
}

#[test]
fn what_cannot_be_done_ends_with_an_error_and_what_is_unknown_is_not_supported() {
    let mut d = disk(Way::Modern);
    d.rig.start(0);
    let last = DISK as u64 / 512 - 1;
    let r = |len| vec![(DATA, len, true)];
    for (kind, sector, data, status) in [
        (0, last, r(512), 0),
        (0, last, r(1024), 1),
        (0, last + 1, r(512), 1),
        (0, u64::MAX, r(512), 1),
        (0, 1 << 55, r(512), 1),
        (0, 0, r(511), 1),
        (1, last + 1, vec![(DATA, 512, false)], 1),
        (1, 0, vec![(DATA, 100, false)], 1),
        // Beyond memory, and in a device.
        (0, 0, vec![(1 << 40, 512, true)], 1),
        (0, 0, vec![(DATA, 512, true), (0xffff_ffff_ffff_f000, 4096, true)], 1),
        (1, 0, vec![(0x10_0000 - 100, 512, false)], 1),
        (1, 0, vec![(0xfeb0_0000, 512, false)], 1),
        (2, 0, r(512), 2),
        (99, 0, r(512), 2),
        (14, 0, r(512), 2),
        // A write whose data are to be written, and a read whose data are to be read: there are none.
        (1, 0, r(512), 0),
        (0, 0, vec![(DATA, 512, false)], 0),
    ] {
        assert_eq!(d.ask(kind, sector, &data).0, status, "{kind} at {sector:#x}: {data:x?}");
        assert_eq!(d.rig.status() & status::NEEDS_RESET, 0);
    }
    assert_eq!(d.memory.contents()[0], 0, "nothing was written");
    d.memory.fail(Some(io::ErrorKind::Other));
    assert_eq!(d.ask(0, 0, &r(512)), (1, 0));
    assert_eq!(d.ask(4, 0, &[]), (1, 1));
    for buffers in
        [vec![(HEAD, 16, false)], vec![(HEAD, 15, false), (STATUS, 1, true)], vec![(STATUS, 1, true)]]
    {
        let mut d = disk(Way::Modern);
        d.rig.start(0);
        d.rig.add(0, &buffers);
        d.rig.notify(0);
        assert_eq!(d.rig.status() & status::NEEDS_RESET, status::NEEDS_RESET, "{buffers:?}");
        d.rig.start(0);
        assert_eq!(d.ask(0, 0, &r(512)).0, 0);
    }
    let mut d = disk(Way::Modern);
    d.rig.start(0);
    let buffers = [(HEAD, 16, false), (DATA, 512, true), (1 << 40, 1, true)];
    d.rig.add(0, &buffers);
    d.rig.notify(0);
    d.drive.drain();
    assert_eq!(d.rig.status() & status::NEEDS_RESET, status::NEEDS_RESET, "no place for a status");
}

#[test]
fn discards_and_writes_of_zeros() {
    let mut d = on(Way::Modern, Options { discard: true, ..Options::default() }, BlkOptions::default());
    d.rig.start(feature::DISCARD | feature::WRITE_ZEROES);
    let segment = d.segment(10, 4, 0);
    assert_eq!(d.ask(13, 0, &segment), (0, 1));
    assert_eq!(d.memory.contents()[10 * 512 - 1..14 * 512 + 1], [vec![9], vec![0; 2048], vec![14]].concat());
    let segment = d.segment(20, 1, 1);
    assert_eq!(d.ask(13, 0, &segment), (0, 1));
    let segment = d.segment(30, 2, 0);
    assert_eq!(d.ask(11, 0, &segment), (0, 1));
    assert_eq!((d.memory.contents()[20 * 512], d.memory.contents()[30 * 512]), (0, 0));
    for (kind, sector, sectors, flags, status) in [
        (11, 0, 1, 1, 2),
        (11, 0, 1, 2, 2),
        (13, 0, 1, 2, 2),
        (13, 0, 0x40_0000, 0, 1),
        (13, DISK as u64 / 512, 1, 0, 1),
        (11, u64::MAX, 1, 0, 1),
    ] {
        let segment = d.segment(sector, sectors, flags);
        assert_eq!(d.ask(kind, 0, &segment).0, status, "{kind} {sector:#x} {sectors:#x} {flags}");
    }
    assert_eq!(d.ask(11, 0, &[(DATA, 32, false)]).0, 2, "two segments");
    assert_eq!(d.ask(11, 0, &[(DATA, 15, false)]).0, 1);
    assert_eq!(d.ask(11, 0, &[]).0, 1);
}

#[test]
fn writes_are_durable_when_they_end_unless_the_driver_can_flush() {
    let durable = |features: u64, mode: Option<u8>| {
        let mut d = disk(Way::Modern);
        d.rig.start(features);
        if let Some(mode) = mode {
            d.rig.set_config(32, 1, mode.into());
            assert_eq!(d.rig.config(32, 1), u64::from(mode));
        }
        d.rig.pc.memory.write(DATA, &[0x5a; 512]);
        assert_eq!(d.ask(1, 0, &[(DATA, 512, false)]), (0, 1));
        d.memory.durable()[0] == 0x5a
    };
    assert!(durable(0, None));
    assert!(!durable(feature::FLUSH, None));
    assert!(!durable(feature::FLUSH | feature::CONFIG_WCE, None));
    assert!(durable(feature::FLUSH | feature::CONFIG_WCE, Some(0)));
    assert!(!durable(feature::FLUSH | feature::CONFIG_WCE, Some(1)));
}

#[test]
fn a_disk_that_is_read_only_says_so_and_takes_no_write() {
    let mut d = on(Way::Modern, Options { read_only: true, ..Options::default() }, BlkOptions::default());
    assert_ne!(d.rig.offered() & feature::RO, 0);
    d.rig.start(feature::RO);
    assert_eq!(d.ask(1, 0, &[(DATA, 512, false)]).0, 1);
    assert_eq!(d.ask(0, 0, &[(DATA, 512, true)]).0, 0);
}

#[test]
fn another_size_is_told_to_the_driver() {
    let mut d = disk(Way::Modern);
    d.rig.start(0);
    d.drive.change(Some(Arc::new(Memory::new(vec![0; 8 << 20]))), false).unwrap();
    assert_eq!((d.rig.isr(), d.rig.config(0, 4), d.rig.read(21, 1)), (2, 16384, 1));
}

/// An image whose reads and writes wait.
struct Gate {
    memory: Memory,
    open: Mutex<bool>,
    changed: Condvar,
}

impl Gate {
    fn wait(&self) {
        let mut open = self.open.lock();
        while !*open {
            self.changed.wait(&mut open);
        }
    }
    fn open(&self) {
        *self.open.lock() = true;
        self.changed.notify_all();
    }
}

impl Image for Gate {
    fn format(&self) -> &'static str {
        "gate"
    }
    fn size(&self) -> u64 {
        self.memory.size()
    }
    fn read_only(&self) -> bool {
        false
    }
    fn read(&self, at: u64, buf: &mut [u8]) -> io::Result<()> {
        self.wait();
        self.memory.read(at, buf)
    }
    fn write(&self, at: u64, data: &[u8]) -> io::Result<()> {
        self.wait();
        self.memory.write(at, data)
    }
    fn flush(&self) -> io::Result<()> {
        Ok(())
    }
    fn zero(&self, _: u64, _: u64, _: bool) -> io::Result<()> {
        Ok(())
    }
    fn discard(&self, _: u64, _: u64) -> io::Result<()> {
        Ok(())
    }
    fn extent(&self, at: u64) -> io::Result<Extent> {
        self.memory.extent(at)
    }
    fn resize(&self, _: u64) -> io::Result<()> {
        Ok(())
    }
}

fn gated() -> (Arc<Gate>, Disk) {
    let memory = Arc::new(Memory::new(vec![1; DISK]));
    let gate = Arc::new(Gate {
        memory: Memory::new(vec![1; DISK]),
        open: Mutex::new(false),
        changed: Condvar::new(),
    });
    let drive = Drive::new(Options::default(), Some(gate.clone())).unwrap();
    let rig = Rig::new(Way::Modern, Blk::new(drive.clone(), BlkOptions::default()));
    (gate, Disk { rig, drive, memory })
}

#[test]
fn requests_under_way_take_bounded_memory_and_all_end() {
    let (gate, mut d) = gated();
    d.rig.start(0);
    // 20 writes of 1.5 MiB each.
    let data = [(DATA, 0x4_0000, false); 6];
    for n in 0..20 {
        let table = 0xe_0000 + 0x100 * n;
        let buffers = d.buffers(n, 1, 0, &data);
        d.rig.add_indirect(0, table, &buffers);
    }
    d.rig.notify(0);
    let held = d.rig.model().queues[0].lock().held;
    assert!(held > IN_FLIGHT / 2 && held <= IN_FLIGHT, "{held:#x}");
    assert!(d.rig.model().queues[0].lock().under_way.len() < 17);
    assert_eq!(d.rig.used(0), []);
    gate.open();
    d.drive.drain();
    assert_eq!(d.rig.used(0).len(), 20);
    assert_eq!(d.bytes(STATUS, 20), [0; 20]);
    let model = d.rig.model();
    let left = model.queues[0].lock();
    assert_eq!((left.held, left.under_way.len(), left.waiting.len(), left.ended.len()), (0, 0, 0, 0));
}

#[test]
fn a_reset_waits_for_requests_under_way_and_nothing_of_them_arrives_later() {
    for whole in [true, false] {
        let (gate, mut d) = gated();
        d.rig.start(common::RING_RESET);
        d.rig.pc.memory.write(DATA, &[0xdd; 512]);
        let buffers = d.buffers(0, 0, 0, &[(DATA, 512, true)]);
        d.rig.add(0, &buffers);
        d.rig.notify(0);
        std::thread::scope(|scope| {
            let rig = &d.rig;
            let reset = scope.spawn(move || {
                if whole {
                    rig.set_status(0);
                } else {
                    rig.write(22, 2, 0);
                    rig.write(58, 2, 1);
                }
            });
            std::thread::sleep(Duration::from_millis(20));
            gate.open();
            reset.join().unwrap();
        });
        d.drive.drain();
        assert_eq!((d.rig.used(0), d.bytes(DATA, 2)), (vec![], vec![0xdd; 2]));
        assert_eq!(d.rig.status(), if whole { 0 } else { 15 });
        if whole {
            d.rig.start(0);
        } else {
            d.rig.set_up(0);
        }
        assert_eq!(d.ask(0, 0, &[(DATA, 512, true)]), (0, 513));
    }
}

struct Machine(Mutex<usize>);
impl Stopper for Machine {
    fn stop(&self, _: &str, _: &str) {
        *self.0.lock() += 1;
    }
}

#[test]
fn what_the_drive_holds_is_saved_and_submitted_again_by_the_restored_machine() {
    let stop = Options { werror: OnError::Stop, rerror: OnError::Stop, ..Options::default() };
    let mut one = on(Way::Modern, stop.clone(), BlkOptions::default());
    let machine = Arc::new(Machine(Mutex::new(0)));
    let stopper: Arc<dyn Stopper> = machine.clone();
    one.drive.on_stop(Arc::downgrade(&stopper));
    one.rig.start(0);
    one.memory.fail(Some(io::ErrorKind::StorageFull));
    one.rig.pc.memory.write(DATA, &[0x5a; 512]);
    let write = one.buffers(0, 1, 9, &[(DATA, 512, false)]);
    let read = one.buffers(1, 0, 3, &[(DATA + 512, 512, true)]);
    let heads = [one.rig.add(0, &write), one.rig.add(0, &read)];
    one.rig.notify(0);
    one.rig.pause();
    assert_eq!((*machine.0.lock(), one.rig.used(0)), (2, vec![]));
    let state = one.rig.save();
    let mut other = on(Way::Modern, stop, BlkOptions::default());
    other.rig.pause();
    other.rig.restore(state.clone(), &one.rig).unwrap();
    assert_eq!(other.rig.save(), state, "nothing has begun");
    other.rig.resume();
    other.drive.drain();
    let mut used = other.rig.used(0);
    used.sort();
    assert_eq!(used, [(heads[0], 1), (heads[1], 513)]);
    assert_eq!((other.memory.contents()[9 * 512], other.bytes(DATA + 512, 1)), (0x5a, vec![3]));
    // The first machine goes on as well.
    one.memory.fail(None);
    one.rig.resume();
    one.drive.resume();
    one.drive.drain();
    assert_eq!((one.rig.used(0).len(), one.memory.contents()[9 * 512]), (2, 0x5a));
}

#[test]
fn states_that_no_disk_has_are_refused() {
    let d = disk(Way::Modern);
    let blk = d.rig.model();
    let task = |what: &str| {
        let piece = |at, len| Piece { at, len };
        let chain =
            Chain { head: 0, readable: [piece(0, 16)][..].into(), writable: [piece(0, 513)][..].into() };
        let text = serde_json::json!({ "chain": chain, "what": serde_json::from_str::<serde_json::Value>(what)
            .unwrap(), "moved": 0 });
        serde_json::from_value::<Task>(text).unwrap()
    };
    let state = |tasks: Vec<Vec<Task>>| BlkV1 { write_cache: true, tasks };
    let good = || task(r#"{ "Read": { "at": 0, "len": 512 } }"#);
    blk.restore(state(vec![vec![good()]])).unwrap();
    assert!(blk.restore(state(vec![])).is_err());
    assert!(blk.restore(state(vec![vec![good(); 257]])).is_err());
    for what in [
        r#"{ "Read": { "at": 0, "len": 1024 } }"#,
        r#"{ "Read": { "at": 18446744073709551615, "len": 512 } }"#,
        r#"{ "Write": { "at": 0, "len": 512 } }"#,
        r#"{ "Discard": { "at": 1, "len": 18446744073709551615 } }"#,
    ] {
        assert!(blk.restore(state(vec![vec![task(what)]])).is_err(), "{what}");
    }
}
