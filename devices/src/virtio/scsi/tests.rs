//! A driver of the host adapter, and what it is told by the units behind it.
use super::*;
use crate::storage::scsi::disk::Geometry;
use crate::storage::scsi::unit::{Identity, Kind as UnitKind};
use crate::virtio::testing::{Rig, WAYS, Way};
use mynah_block::{Drive, Memory, Options};

const HEAD: u64 = 0x8_0000;
const ANSWER: u64 = 0x8_1000;
const DATA: u64 = 0x9_0000;
const DISK: usize = 1 << 20;

struct Test {
    rig: Rig<Scsi>,
    disks: Vec<Arc<Memory>>,
}

/// What came back: response, status, sense key and code, residual, bytes written to the buffers.
#[derive(Debug, PartialEq, Eq)]
struct Answer {
    response: u8,
    status: u8,
    sense: Option<(u8, u8, u8)>,
    residual: u32,
    used: u32,
}

const GOOD: u8 = 0;
const CHECK: u8 = 2;

fn start(way: Way) -> Test {
    let bus = Arc::new(ScsiBus::default());
    let model = Scsi::new(bus.clone(), 2, 64, 65535, 128);
    let mut disks = Vec::new();
    let places = [(0, 0, false), (0, 5, false), (3, 0, true)];
    for (n, (target, lun, cd)) in places.into_iter().enumerate() {
        let image = Arc::new(Memory::new((0..DISK).map(|i| (i / 512 + n * 50) as u8).collect()));
        let options =
            Options { name: format!("d{n}"), read_only: cd, discard: true, threads: 1, ..Options::default() };
        let drive = Drive::new(options, Some(image.clone())).unwrap();
        let geometry = Geometry { block: 512, physical: 4096, removable: false, dpofua: false };
        let kind = if cd { UnitKind::Cd } else { UnitKind::Disk(geometry) };
        let identity = Identity {
            vendor: "QEMU".into(),
            product: "QEMU HARDDISK".into(),
            revision: "2.5+".into(),
            serial: format!("S{n}"),
            device_id: format!("S{n}"),
            wwn: Some(0x5000_c500_1234_5678),
            thin: true,
            ..Identity::default()
        };
        bus.add(Unit::new(&bus, (target, lun), drive, kind, identity));
        disks.push(image);
    }
    let mut rig = Rig::with(way, model, crate::virtio::testing::options(5));
    rig.start(!super::super::feature::RING_PACKED);
    Test { rig, disks }
}

impl Test {
    fn settle(&self) {
        self.rig.model().bus.units().iter().for_each(|u| u.drive.drain());
    }

    fn add(&mut self, queue: usize, unit: (u8, u16), tag: u64, cdb: &[u8], out: u32, room: u32) -> u16 {
        let mut head = vec![0; 51];
        head[..8].copy_from_slice(&request::lun(unit.0, unit.1));
        head[8..16].copy_from_slice(&tag.to_le_bytes());
        head[19..19 + cdb.len()].copy_from_slice(cdb);
        self.rig.pc.memory.write(HEAD, &head);
        let mut buffers = vec![(HEAD, 51, false)];
        if out > 0 {
            buffers.push((DATA, out, false));
        }
        buffers.push((ANSWER, 108, true));
        if room > 0 {
            buffers.push((DATA, room, true));
        }
        self.rig.add(queue, &buffers)
    }

    fn answer(&mut self, used: u32) -> Answer {
        let mut bytes = [0; 108];
        self.rig.pc.memory.read(ANSWER, &mut bytes);
        let len = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        Answer {
            response: bytes[11],
            status: bytes[10],
            sense: (len > 0).then(|| (bytes[14], bytes[24], bytes[25])),
            residual: u32::from_le_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]),
            used,
        }
    }

    /// Carries out a command with so many bytes to and from the device.
    fn full(&mut self, unit: (u8, u16), cdb: &[u8], out: u32, room: u32) -> Answer {
        let head = self.add(2, unit, 1, cdb, out, room);
        self.rig.notify(2);
        self.settle();
        let used = self.rig.used(2);
        assert_eq!(used.len(), 1, "{cdb:x?}");
        assert_eq!(used[0].0, head);
        self.answer(used[0].1)
    }

    /// Data that it answers with.
    fn data(&mut self, unit: (u8, u16), cdb: &[u8], room: u32) -> Vec<u8> {
        let answer = self.full(unit, cdb, 0, room);
        assert_eq!((answer.response, answer.status), (0, GOOD), "{cdb:x?}: {answer:?}");
        let mut bytes = vec![0; (room - answer.residual) as usize];
        self.rig.pc.memory.read(DATA, &mut bytes);
        bytes
    }

    fn sense(&mut self, unit: (u8, u16), cdb: &[u8]) -> (u8, u8, u8) {
        let answer = self.full(unit, cdb, 0, 4096);
        assert_eq!((answer.response, answer.status), (0, CHECK), "{cdb:x?}: {answer:?}");
        answer.sense.unwrap()
    }

    /// Units attend to their reset.
    fn attend(&mut self) {
        for unit in [(0, 0), (0, 5), (3, 0)] {
            assert_eq!(self.sense(unit, &[0; 6]), (6, 0x29, 0));
        }
    }

    fn disk(&self, n: usize, at: usize, len: usize) -> Vec<u8> {
        self.disks[n].contents()[at..at + len].to_vec()
    }

    fn fill(&self, byte: u8, len: usize) {
        self.rig.pc.memory.write(DATA, &vec![byte; len]);
    }
}

const D: (u8, u16) = (0, 0);

#[test]
fn units_are_found_and_tell_what_they_are() {
    for way in WAYS {
        let mut t = start(way);
        // Two units of target 0, one of target 3.
        let luns = t.data(D, &[0xa0, 0, 0, 0, 0, 0, 0, 0, 0, 64, 0, 0], 64);
        assert_eq!(luns[..4], [0, 0, 0, 16]);
        assert_eq!((luns[8..10].to_vec(), luns[16..18].to_vec()), (vec![0, 0], vec![0, 5]));
        let inquiry = t.data(D, &[0x12, 0, 0, 0, 36, 0], 36);
        assert_eq!(&inquiry[..8], [0, 0, 5, 0x12, 31, 0, 0, 0x12]);
        assert_eq!(&inquiry[8..36], b"QEMU    QEMU HARDDISK   2.5+");
        assert_eq!(t.data((3, 0), &[0x12, 0, 0, 0, 36, 0], 36)[..2], [5, 0x80]);
        assert_eq!(t.data(D, &[0x12, 1, 0, 0, 255, 0], 255), [0, 0, 0, 6, 0, 0x80, 0x83, 0xb0, 0xb1, 0xb2]);
        assert_eq!(t.data(D, &[0x12, 1, 0x80, 0, 255, 0], 255), [0, 0x80, 0, 2, b'S', b'0']);
        let named = t.data(D, &[0x12, 1, 0x83, 0, 255, 0], 255);
        assert_eq!(
            named,
            [
                &[0, 0x83, 0, 18, 2, 0, 0, 2, b'S', b'0', 1, 3, 0, 8][..],
                &[0x50, 0, 0xc5, 0, 0x12, 0x34, 0x56, 0x78]
            ]
            .concat()
        );
        let limits = t.data(D, &[0x12, 1, 0xb0, 0, 255, 0], 255);
        assert_eq!(
            (limits.len(), &limits[..4], &limits[20..32]),
            (64, &[0, 0xb0, 0, 60][..], &[0, 0x20, 0, 0, 0, 0, 0, 255, 0, 0, 0, 8][..])
        );
        assert_eq!(t.data(D, &[0x12, 1, 0xb2, 0, 255, 0], 255), [0, 0xb2, 0, 4, 0, 0xe0, 2, 0]);
        // A unit that the target has not, and a target that is not there.
        assert_eq!(t.data((0, 1), &[0x12, 0, 0, 0, 36, 0], 36)[0], 0x7f);
        assert_eq!(t.sense((0, 1), &[0; 6]), (5, 0x25, 0));
        assert_eq!(t.full((1, 0), &[0; 6], 0, 0).response, response::BAD_TARGET);
        t.attend();
        assert_eq!(t.full(D, &[0; 6], 0, 0).status, GOOD);
        assert_eq!(t.data(D, &[0x25], 8), [0, 0, 7, 255, 0, 0, 2, 0]);
        let capacity = t.data(D, &[0x9e, 0x10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 32], 32);
        assert_eq!(
            (capacity[6..12].to_vec(), capacity[13], capacity[14]),
            (vec![7, 255, 0, 0, 2, 0], 3, 0x80)
        );
        assert_eq!(t.data((3, 0), &[0x25], 8), [0, 0, 1, 255, 0, 0, 8, 0]);
    }
}

#[test]
fn blocks_are_moved_by_commands_of_all_lengths() {
    let mut t = start(Way::Modern);
    t.attend();
    let reads: [&[u8]; 4] = [
        &[0x08, 0, 0, 9, 2, 0],
        &[0x28, 0, 0, 0, 0, 9, 0, 0, 2, 0],
        &[0xa8, 0, 0, 0, 0, 9, 0, 0, 0, 2, 0, 0],
        &[0x88, 0, 0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 2, 0, 0],
    ];
    for cdb in reads {
        t.fill(0xee, 4096);
        let data = t.data(D, cdb, 2048);
        assert_eq!(data, t.disk(0, 9 * 512, 1024), "{cdb:x?}");
    }
    let writes: [&[u8]; 5] = [
        &[0x0a, 0, 0, 9, 2, 0],
        &[0x2a, 0, 0, 0, 0, 9, 0, 0, 2, 0],
        &[0xaa, 0, 0, 0, 0, 9, 0, 0, 0, 2, 0, 0],
        &[0x8a, 0, 0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 2, 0, 0],
        &[0x2e, 0, 0, 0, 0, 9, 0, 0, 2, 0],
    ];
    for (n, cdb) in writes.into_iter().enumerate() {
        t.fill(0x30 + n as u8, 1024);
        let answer = t.full((0, 5), cdb, 1024, 0);
        assert_eq!((answer.status, answer.residual, answer.used), (GOOD, 0, 108));
        assert_eq!(t.disk(1, 9 * 512, 1024), vec![0x30 + n as u8; 1024], "{cdb:x?}");
    }
    assert_eq!(t.disk(0, 9 * 512, 1), [9], "the other one is as it was");
    // VERIFY with data: the same, and not.
    assert_eq!(t.full((0, 5), &[0x2f, 2, 0, 0, 0, 9, 0, 0, 2, 0], 1024, 0).status, GOOD);
    t.fill(0, 1024);
    let answer = t.full((0, 5), &[0x2f, 2, 0, 0, 0, 9, 0, 0, 2, 0], 1024, 0);
    assert_eq!(answer.sense, Some((14, 0x1d, 0)));
    // Less room than is moved.
    assert_eq!(t.full(D, reads[1], 0, 1023).response, response::OVERRUN);
    assert_eq!(t.full(D, writes[1], 1023, 0).response, response::OVERRUN);
    // A CD: its sectors, and raw ones.
    assert_eq!(t.data((3, 0), &[0x28, 0, 0, 0, 0, 3, 0, 0, 1, 0], 2048), t.disk(2, 3 * 2048, 2048));
    let raw = t.data((3, 0), &[0xbe, 0, 0, 0, 0, 3, 0, 0, 1, 0xf8], 2352);
    assert_eq!((&raw[12..16], &raw[16..2064]), (&[0, 2, 3, 1][..], &t.disk(2, 3 * 2048, 2048)[..]));
}

#[test]
fn blocks_are_let_go_of_and_written_with_the_same() {
    let mut t = start(Way::Modern);
    t.attend();
    // UNMAP of two ranges.
    let mut list = vec![0, 38, 0, 32, 0, 0, 0, 0];
    for (first, count) in [(8_u64, 8_u32), (100, 1)] {
        list.extend(first.to_be_bytes());
        list.extend(count.to_be_bytes());
        list.extend([0; 4]);
    }
    t.rig.pc.memory.write(DATA, &list);
    assert_eq!(t.full(D, &[0x42, 0, 0, 0, 0, 0, 0, 0, 40, 0], 40, 0).status, GOOD);
    assert_eq!(t.disk(0, 8 * 512, 4096), vec![0; 4096]);
    assert_eq!((t.disk(0, 100 * 512, 1), t.disk(0, 101 * 512, 1)), (vec![0], vec![101]));
    t.rig.pc.memory.write(DATA + 8, &2047_u64.to_be_bytes());
    assert_eq!(t.full(D, &[0x42, 0, 0, 0, 0, 0, 0, 0, 40, 0], 40, 0).sense, Some((5, 0x21, 0)));
    // WRITE SAME: a block, zeros, zeros without data.
    t.fill(0x99, 512);
    assert_eq!(t.full(D, &[0x41, 0, 0, 0, 0, 20, 0, 0, 40, 0], 512, 0).status, GOOD);
    assert_eq!(t.disk(0, 20 * 512, 40 * 512), vec![0x99; 40 * 512]);
    t.fill(0, 512);
    let same16 = |flags| [0x93, flags, 0, 0, 0, 0, 0, 0, 0, 20, 0, 0, 0, 4, 0, 0];
    assert_eq!(t.full(D, &same16(8), 512, 0).status, GOOD);
    assert_eq!(t.disk(0, 20 * 512, 2048), vec![0; 2048]);
    assert_eq!(t.full(D, &[0x93, 1, 0, 0, 0, 0, 0, 0, 0, 30, 0, 0, 0, 4, 0, 0], 0, 0).status, GOOD);
    assert_eq!((t.disk(0, 30 * 512, 2048), t.disk(0, 34 * 512, 1)), (vec![0; 2048], vec![0x99]));
}

#[test]
fn what_cannot_be_is_told_by_its_sense() {
    let mut t = start(Way::Modern);
    t.attend();
    for (cdb, sense) in [
        (&[0xff][..], (5, 0x20, 0)),
        (&[0x28, 0, 0, 0, 8, 0, 0, 0, 1, 0], (5, 0x21, 0)),
        (&[0x88, 0, 255, 255, 255, 255, 255, 255, 255, 255, 0, 0, 0, 2, 0, 0], (5, 0x21, 0)),
        (&[0x28, 0x20, 0, 0, 0, 0, 0, 0, 1, 0], (5, 0x24, 0)),
        (&[0x12, 0, 1, 0, 36, 0], (5, 0x24, 0)),
        (&[0x12, 1, 0xc0, 0, 36, 0], (5, 0x24, 0)),
        (&[0x1a, 0, 0xc8, 0, 36, 0], (5, 0x39, 0)),
        (&[0x1a, 0, 0x3e, 0, 36, 0], (5, 0x24, 0)),
        (&[0x9e, 0x11, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 32], (5, 0x24, 0)),
    ] {
        assert_eq!(t.sense(D, cdb), sense, "{cdb:x?}");
    }
    // A CD is not written.
    assert_eq!(t.sense((3, 0), &[0x2a, 0, 0, 0, 0, 0, 0, 0, 1, 0]), (5, 0x20, 0));
    // Nothing moves for no blocks.
    assert_eq!(t.full(D, &[0x28, 0, 0, 0, 0, 0, 0, 0, 0, 0], 0, 0).status, GOOD);
}

#[test]
fn mode_pages_tell_of_the_cache_which_can_be_switched_off() {
    let mut t = start(Way::Modern);
    t.attend();
    let cache = |t: &mut Test| t.data(D, &[0x1a, 8, 8, 0, 64, 0], 64);
    assert_eq!(cache(&mut t)[..7], [23, 0, 0, 0, 8, 18, 4]);
    let all = t.data(D, &[0x5a, 0, 0x3f, 0, 0, 0, 0, 1, 0, 0], 256);
    assert_eq!((all[7], &all[12..16], all[16]), (8, &[0, 0, 2, 0][..], 1));
    let mut list = vec![0, 0, 0, 0, 8, 18];
    list.extend([0; 18]);
    t.rig.pc.memory.write(DATA, &list);
    assert_eq!(t.full(D, &[0x15, 0x10, 0, 0, 24, 0], 24, 0).status, GOOD);
    assert_eq!((cache(&mut t)[6], t.rig.model().bus.units()[0].drive.write_cache()), (0, false));
    // What cannot be changed.
    list[7] = 1;
    t.rig.pc.memory.write(DATA, &list);
    assert_eq!(t.full(D, &[0x15, 0x10, 0, 0, 24, 0], 24, 0).sense, Some((5, 0x26, 0)));
}

fn manage(t: &mut Test, function: u32, unit: (u8, u16), tag: u64) -> u8 {
    const AT: u64 = 0x8_2000;
    let bytes = [
        &0_u32.to_le_bytes()[..],
        &function.to_le_bytes(),
        &request::lun(unit.0, unit.1),
        &tag.to_le_bytes(),
    ]
    .concat();
    t.rig.pc.memory.write(AT, &bytes);
    t.rig.pc.memory.write(AT + 32, &[0xff]);
    t.rig.add(CONTROL, &[(AT, 24, false), (AT + 32, 1, true)]);
    t.rig.notify(CONTROL);
    t.settle();
    assert_eq!(t.rig.used(CONTROL).len(), 1);
    let mut byte = [0];
    t.rig.pc.memory.read(AT + 32, &mut byte);
    byte[0]
}

#[test]
fn units_are_reset_and_requests_aborted() {
    let mut t = start(Way::Modern);
    t.attend();
    assert_eq!(manage(&mut t, 0, D, 77), response::OK, "no such task is as good as aborted");
    assert_eq!(manage(&mut t, 6, D, 77), response::OK);
    assert_eq!(manage(&mut t, 5, (1, 0), 0), response::BAD_TARGET);
    assert_eq!(manage(&mut t, 5, (0, 1), 0), response::INCORRECT_LUN);
    assert_eq!(manage(&mut t, 2, D, 0), response::FUNCTION_REJECTED);
    assert_eq!(manage(&mut t, 5, (0, 5), 0), response::OK);
    assert_eq!(t.sense((0, 5), &[0; 6]), (6, 0x29, 0));
    assert_eq!(t.full(D, &[0; 6], 0, 0).status, GOOD, "the other one was not reset");
    // One that waits, as the machine is paused, is aborted when it goes on.
    t.rig.virtio().core.set_paused(false);
    let task = |t: &mut Test| {
        t.add(2, D, 5, &[0x28, 0, 0, 0, 0, 0, 0, 0, 1, 0], 0, 512);
        let model = t.rig.model();
        // It is held back: the queue has no room.
        model.queues[2].lock().held = IN_FLIGHT;
        t.rig.notify(2);
        assert!(t.rig.used(2).is_empty());
    };
    task(&mut t);
    assert_eq!(manage(&mut t, 6, D, 5), response::FUNCTION_SUCCEEDED);
    assert_eq!(manage(&mut t, 0, D, 5), response::OK);
    let used = t.rig.used(2);
    assert_eq!(used.len(), 1);
    assert_eq!(t.answer(used[0].1).response, response::ABORTED);
}

#[test]
fn a_change_of_the_medium_is_an_event() {
    let mut t = start(Way::Modern);
    t.attend();
    t.rig.add(EVENTS, &[(DATA, 16, true)]);
    t.rig.notify(EVENTS);
    let drive = t.rig.model().bus.units()[2].drive.clone();
    drive.change(Some(Arc::new(Memory::new(vec![1; 4096]))), false).unwrap();
    assert_eq!(t.rig.used(EVENTS).len(), 1);
    let mut event = [0; 16];
    t.rig.pc.memory.read(DATA, &mut event);
    assert_eq!(event, [3, 0, 0, 0, 1, 3, 0x40, 0, 0, 0, 0, 0, 0x28, 0, 0, 0]);
    assert_eq!(t.sense((3, 0), &[0; 6]), (6, 0x28, 0));
    // The guest ejects it: the tray is out, and in again.
    assert_eq!(t.full((3, 0), &[0x1b, 0, 0, 0, 2, 0], 0, 0).status, GOOD);
    assert!(drive.tray_open());
    assert_eq!(t.sense((3, 0), &[0; 6]), (2, 0x3a, 2));
    assert_eq!(t.full((3, 0), &[0x1b, 0, 0, 0, 3, 0], 0, 0).status, GOOD);
    assert_eq!(t.sense((3, 0), &[0; 6]), (6, 0x28, 0));
}

#[test]
fn a_driver_that_breaks_the_rules_needs_a_reset() {
    for (readable, writable) in [(50, 108), (51, 107)] {
        let mut t = start(Way::Modern);
        t.rig.add(2, &[(HEAD, readable, false), (ANSWER, writable, true)]);
        t.rig.notify(2);
        assert_eq!(t.rig.status() & 0x40, 0x40);
        t.rig.start(0);
        assert_eq!(t.sense(D, &[0; 6]), (6, 0x29, 0));
    }
}

#[test]
fn requests_under_way_go_on_in_a_restored_machine() {
    let (mut one, mut other) = (start(Way::Modern), start(Way::Modern));
    one.attend();
    one.rig.pause();
    one.fill(0x5c, 512);
    one.rig.virtio().core.set_paused(false);
    one.rig.model().queues[2].lock().held = IN_FLIGHT;
    one.add(2, D, 9, &[0x2a, 0, 0, 0, 0, 7, 0, 0, 1, 0], 512, 0);
    one.rig.notify(2);
    assert!(one.rig.used(2).is_empty(), "it waits");
    one.rig.pause();
    let state = one.rig.save();
    other.rig.pause();
    other.rig.restore(state, &one.rig).unwrap();
    assert!(other.disk(0, 7 * 512, 1) == [7]);
    other.rig.resume();
    other.settle();
    let used = other.rig.used(2);
    assert_eq!(used.len(), 1);
    assert_eq!(other.disk(0, 7 * 512, 512), [0x5c; 512]);
}
