//! What all devices have, shown by one that gives back what it reads.
use super::testing::{AT, Rig, SIZE, WAYS, Way, options};
use super::*;
use crate::pci::config::{command, reg};
use parking_lot::Mutex;
use std::sync::OnceLock;

/// Copies what a chain has to read into what it has to write. Queue 1 keeps what it gets.
#[derive(Default)]
struct Echo {
    core: OnceLock<std::sync::Weak<Core>>,
    byte: Mutex<u8>,
    started: Mutex<Vec<u64>>,
}

impl Model for Echo {
    const ID: u16 = 4;
    const PCI: &'static str = "echo-pci";
    const MMIO: &'static str = "echo";
    type State = u8;

    fn features(&self) -> u64 {
        1 << 3
    }
    fn queue_sizes(&self) -> Vec<u16> {
        vec![SIZE; 2]
    }
    fn connect(&self, core: &Arc<Core>) {
        let _ = self.core.set(Arc::downgrade(core));
    }
    fn config(&self) -> Vec<u8> {
        vec![1, 2, 3, 4, *self.byte.lock()]
    }
    fn write_config(&self, at: usize, bytes: &[u8]) {
        if at <= 4 && at + bytes.len() > 4 {
            *self.byte.lock() = bytes[4 - at];
        }
    }
    fn started(&self, features: u64) {
        self.started.lock().push(features);
    }
    fn serve(&self, queue: usize, served: &mut Served<'_, '_>) -> Result<Then, Broken> {
        if queue != 0 {
            return Ok(Then::Later);
        }
        loop {
            let Some(chain) = served.pop()? else { return Ok(Then::Empty) };
            let n = chain::total(&chain.readable).min(chain::total(&chain.writable)).min(1 << 16);
            let mut bytes = vec![0; n as usize];
            if !chain::read(served.memory, &chain.readable, 0, &mut bytes)
                || !chain::write(served.memory, &chain.writable, 0, &bytes)
            {
                return Err(Broken("bytes that are not in memory"));
            }
            served.done(chain.head, n as u32)?;
        }
    }
    fn save(&self) -> u8 {
        *self.byte.lock()
    }
    fn restore(&self, state: u8) -> Result<(), Invalid> {
        *self.byte.lock() = state;
        Ok(())
    }
}

fn rig(way: Way) -> Rig<Echo> {
    Rig::new(way, Arc::new(Echo::default()))
}

const FROM: u64 = 0x8_0000;
const TO: u64 = 0x9_0000;

fn echo(rig: &mut Rig<Echo>, text: &[u8]) -> Vec<u8> {
    rig.pc.memory.write(FROM, text);
    rig.pc.memory.write(TO, &vec![0; text.len()]);
    let head = rig.add(0, &[(FROM, text.len() as u32, false), (TO, text.len() as u32, true)]);
    rig.notify(0);
    assert_eq!(rig.used(0), [(head, text.len() as u32)], "{:?}", rig.way);
    let mut back = vec![0; text.len()];
    rig.pc.memory.read(TO, &mut back);
    back
}

#[test]
fn every_transport_finds_negotiates_and_exchanges() {
    for way in WAYS {
        let mut rig = rig(way);
        let common = feature::INDIRECT_DESC | feature::EVENT_IDX;
        let more = match way {
            Way::Legacy => feature::ANY_LAYOUT,
            _ => feature::VERSION_1 | feature::RING_RESET,
        };
        assert_eq!(rig.offered(), common | more | 1 << 3, "{way:?}");
        assert_eq!((rig.config(0, 4), rig.config(3, 1), rig.config(4, 4)), (0x0403_0201, 4, 0), "{way:?}");
        rig.set_config(4, 1, 0x77);
        assert_eq!(rig.config(4, 1), 0x77, "{way:?}");
        rig.start(1 << 3);
        let agreed = if way == Way::Legacy { 1 << 3 } else { 1 << 3 | feature::VERSION_1 };
        assert_eq!(*rig.model().started.lock(), [agreed], "{way:?}");
        assert_eq!(echo(&mut rig, b"the first"), b"the first", "{way:?}");
        assert_eq!((rig.took(), rig.isr()), (vec![(0, 1)], 1), "{way:?}");
        assert_eq!((rig.took(), rig.isr()), (vec![(0, 0)], 0), "{way:?}");
        for n in 0..200_u8 {
            assert_eq!(echo(&mut rig, &[n; 3]), [n; 3], "{way:?}: round the ring");
        }
        rig.set_status(0);
        assert_eq!((rig.status(), rig.isr()), (0, 0), "{way:?}");
        rig.add(0, &[(FROM, 1, false), (TO, 1, true)]);
        rig.notify(0);
        assert_eq!(rig.used(0), [], "{way:?}: it is reset");
        rig.start(0);
        assert_eq!(echo(&mut rig, b"again"), b"again", "{way:?}");
        rig.reset();
        assert_eq!(rig.status(), 0, "{way:?}");
        rig.start(0);
        assert_eq!(echo(&mut rig, b"and again"), b"and again", "{way:?}");
    }
}

#[test]
fn chains_by_tables_of_their_own() {
    for way in WAYS {
        let mut rig = rig(way);
        rig.start(feature::INDIRECT_DESC);
        rig.pc.memory.write(FROM, b"one two");
        let buffers = [(FROM, 4, false), (FROM + 4, 3, false), (TO, 1, true), (TO + 1, 6, true)];
        let head = rig.add_indirect(0, 0xa_0000, &buffers);
        rig.notify(0);
        assert_eq!(rig.used(0), [(head, 7)], "{way:?}");
        let mut back = [0; 7];
        rig.pc.memory.read(TO, &mut back);
        assert_eq!(&back, b"one two", "{way:?}");
    }
}

#[test]
fn all_of_a_notification_is_one_interrupt_and_none_if_the_driver_wishes_so() {
    for way in WAYS {
        let mut rig = rig(way);
        rig.start(0);
        (0..8).for_each(|_| _ = rig.add(0, &[(FROM, 4, false), (TO, 4, true)]));
        rig.took();
        rig.notify(0);
        assert_eq!((rig.used(0).len(), rig.took(), rig.isr()), (8, vec![(0, 1)], 1), "{way:?}");
        rig.took();
        rig.set_quiet(0, true);
        echo(&mut rig, b"quiet");
        assert_eq!((rig.took(), rig.isr()), (vec![], 0), "{way:?}");
        rig.set_quiet(0, false);
        echo(&mut rig, b"loud");
        assert_eq!(rig.isr(), 1, "{way:?}");
    }
}

#[test]
fn with_event_indexes_both_sides_hear_when_they_have_asked_for() {
    for way in WAYS {
        let mut rig = rig(way);
        rig.start(feature::EVENT_IDX);
        rig.set_used_event(0, 2);
        for (n, interrupts) in [(1, 0), (2, 0), (3, 1), (4, 0)] {
            echo(&mut rig, b"x");
            assert_eq!((rig.isr(), rig.available_event(0)), (interrupts, n), "{way:?}");
        }
        // Several at once pass over what was asked for.
        rig.set_used_event(0, 5);
        (0..4).for_each(|_| _ = rig.add(0, &[(FROM, 4, false), (TO, 4, true)]));
        rig.notify(0);
        assert_eq!((rig.isr(), rig.available_event(0)), (1, 8), "{way:?}");
    }
}

#[test]
fn each_queue_has_the_message_of_its_vector() {
    for way in [Way::Legacy, Way::Modern] {
        let mut rig = rig(way);
        rig.start(0);
        rig.set_messages(&[0x50, 0x51, 0x52]);
        rig.took();
        echo(&mut rig, b"x");
        assert_eq!(rig.took(), [(0xfee0_0000, 0x51)], "{way:?}");
        rig.model().core.get().unwrap().upgrade().unwrap().config_changed();
        assert_eq!(rig.took(), [(0xfee0_0000, 0x50)], "{way:?}");
        if way == Way::Modern {
            assert_eq!(rig.read(21, 1), 1, "another generation");
            rig.write(26, 2, 3);
            assert_eq!(rig.read(26, 2), 0xffff, "there is no such vector");
        }
    }
}

#[test]
fn what_a_driver_does_against_the_rules_stops_the_device_until_a_reset() {
    type Breaks = fn(&mut Rig<Echo>);
    const NEXT: u16 = 1;
    const WRITE: u16 = 2;
    const INDIRECT: u16 = 4;
    let breaks: [(&str, Breaks); 12] = [
        ("a loop", |r| r.descriptor(r.parts(0).0, 0, FROM, 1, NEXT, 0)),
        ("a descriptor beyond the table", |r| r.descriptor(r.parts(0).0, 0, FROM, 1, NEXT, r.entries(0))),
        ("no bytes", |r| r.descriptor(r.parts(0).0, 0, FROM, 0, 0, 0)),
        ("a chain of 4 GiB", |r| {
            r.descriptor(r.parts(0).0, 0, FROM, u32::MAX, NEXT | WRITE, 1);
            r.descriptor(r.parts(0).0, 1, FROM, u32::MAX, WRITE, 0);
        }),
        ("readable behind writable", |r| {
            r.descriptor(r.parts(0).0, 0, FROM, 1, NEXT | WRITE, 1);
            r.descriptor(r.parts(0).0, 1, FROM, 1, 0, 0);
        }),
        ("a table in a table", |r| {
            r.descriptor(r.parts(0).0, 0, 0xa_0000, 16, INDIRECT, 0);
            r.descriptor(0xa_0000, 0, 0xa_0000, 16, INDIRECT, 0);
        }),
        ("a table of part of a descriptor", |r| r.descriptor(r.parts(0).0, 0, 0xa_0000, 17, INDIRECT, 0)),
        ("a table of nothing", |r| r.descriptor(r.parts(0).0, 0, 0xa_0000, 0, INDIRECT, 0)),
        ("a table beyond memory", |r| r.descriptor(r.parts(0).0, 0, 1 << 40, 32, INDIRECT, 0)),
        ("a table that is too long", |r| {
            r.descriptor(r.parts(0).0, 0, 0x2_0000, 2000 * 16, INDIRECT, 0);
            (0..2000).for_each(|n| r.descriptor(0x2_0000, n, FROM, 1, NEXT, n + 1));
        }),
        ("a buffer beyond memory", |r| {
            r.descriptor(r.parts(0).0, 0, u64::MAX - 1, 8, NEXT, 1);
            r.descriptor(r.parts(0).0, 1, TO, 8, WRITE, 0);
        }),
        ("a head that is none", |r| {
            let at = r.parts(0).1 + 4;
            r.pc.memory.write_u16(at, u16::MAX);
        }),
    ];
    for way in WAYS {
        for (what, breaks) in breaks {
            let mut rig = rig(way);
            rig.start(feature::INDIRECT_DESC);
            rig.make_available(0, 0);
            breaks(&mut rig);
            rig.notify(0);
            assert_eq!(rig.status() & status::NEEDS_RESET, status::NEEDS_RESET, "{way:?}: {what}");
            assert_eq!(rig.isr() & 2, if way == Way::Legacy { 0 } else { 2 }, "{way:?}: {what}");
            rig.notify(1);
            assert_eq!(rig.used(0), [], "{way:?}: {what}");
            rig.start(0);
            assert_eq!(echo(&mut rig, b"well"), b"well", "{way:?}: {what}");
        }
        // More than the ring has, and rings that are not there.
        let mut rig = rig(way);
        rig.start(0);
        let at = rig.parts(0).1 + 2;
        rig.pc.memory.write_u16(at, 1000);
        rig.notify(0);
        assert_eq!(rig.status() & status::NEEDS_RESET, status::NEEDS_RESET, "{way:?}");
    }
    for register in [32, 40, 48] {
        let mut rig = rig(Way::Modern);
        rig.start(0);
        rig.set_status(0);
        rig.set_status(3);
        rig.accept(feature::VERSION_1);
        rig.set_status(11);
        rig.set_up(1);
        rig.write(22, 2, 0);
        for part in [32, 40, 48] {
            rig.write(
                part,
                8,
                if part == register { 0xffff_ffff_ffff_fff0 } else { 0x1_0000 + 0x100 * part },
            );
        }
        rig.write(28, 2, 1);
        rig.set_status(15);
        rig.make_available(0, 0);
        rig.pc.memory.write_u16(0x1_2802, 1);
        rig.notify(0);
        assert_eq!(rig.status(), 0x4f, "{register}");
    }
}

#[test]
fn features_that_are_not_offered_are_not_accepted() {
    for way in [Way::Modern, Way::Mmio] {
        let rig = rig(way);
        rig.set_status(3);
        rig.accept(feature::VERSION_1 | 1 << 5);
        rig.set_status(11);
        assert_eq!(rig.status(), 3, "{way:?}");
        rig.accept(feature::VERSION_1);
        rig.set_status(11);
        assert_eq!(rig.status(), 11, "{way:?}");
        rig.accept(1 << 3);
        rig.set_status(15);
        assert_eq!(*rig.model().started.lock(), [feature::VERSION_1], "{way:?}: it was too late for others");
    }
}

#[test]
fn nothing_moves_without_bus_mastering_and_what_waits_goes_on_with_it() {
    let mut rig = rig(Way::Modern);
    rig.start(0);
    rig.pc.write(AT, reg::COMMAND, 2, command::MEMORY.into());
    rig.add(0, &[(FROM, 1, false), (TO, 1, true)]);
    rig.notify(0);
    assert_eq!(rig.used(0), []);
    rig.pc.write(AT, reg::COMMAND, 2, (command::MEMORY | command::MASTER).into());
    assert_eq!(rig.used(0), [(0, 1)]);
    // An old driver forgets it.
    let mut old = self::rig(Way::Legacy);
    old.pc.write(AT, reg::COMMAND, 2, command::IO.into());
    old.start(0);
    assert_eq!(echo(&mut old, b"old"), b"old");
}

#[test]
fn one_queue_is_reset_alone() {
    for way in [Way::Modern, Way::Mmio] {
        let mut rig = rig(way);
        rig.start(feature::RING_RESET);
        assert_eq!(echo(&mut rig, b"x"), b"x");
        match way {
            Way::Modern => {
                rig.write(22, 2, 0);
                rig.write(58, 2, 1);
                assert_eq!((rig.read(58, 2), rig.read(28, 2)), (0, 0));
            }
            _ => {
                rig.write(0x30, 4, 0);
                rig.write(0xc0, 4, 1);
                assert_eq!((rig.read(0xc0, 4), rig.read(0x44, 4)), (0, 0));
            }
        }
        rig.set_up(0);
        assert_eq!(echo(&mut rig, b"y"), b"y", "{way:?}");
    }
}

#[test]
fn registers_are_reached_by_configuration_accesses_alone() {
    let rig = rig(Way::Modern);
    let mut at = rig.pc.read(AT, reg::CAPABILITIES, 1) as u8;
    let mut kinds = Vec::new();
    loop {
        let (id, kind) = (rig.pc.read(AT, at, 1), rig.pc.read(AT, at + 3, 1));
        if id == 9 {
            kinds.push(kind);
        }
        if (id, kind) == (9, 5) {
            break;
        }
        at = rig.pc.read(AT, at + 1, 1) as u8;
        assert_ne!(at, 0);
    }
    let at = at;
    rig.pc.write(AT, at + 4, 1, 4);
    rig.pc.write(AT, at + 8, 4, 0x2000);
    rig.pc.write(AT, at + 12, 4, 4);
    assert_eq!(rig.pc.read(AT, at + 16, 4), 0x0403_0201);
    rig.pc.write(AT, at + 8, 4, 0x2004);
    rig.pc.write(AT, at + 12, 4, 1);
    rig.pc.write(AT, at + 16, 1, 0x99);
    assert_eq!((rig.config(4, 1), rig.pc.read(AT, at + 16, 1)), (0x99, 0x99));
    for (bar, offset, len) in [(0, 0, 4), (4, 0x4000, 4), (4, 1, 4), (4, 0, 3), (4, u32::MAX, 1)] {
        rig.pc.write(AT, at + 4, 1, bar);
        rig.pc.write(AT, at + 8, 4, offset);
        rig.pc.write(AT, at + 12, 4, len);
        rig.pc.write(AT, at + 16, 4, 0x5a);
        assert_eq!(rig.pc.read(AT, at + 16, 4), 0x5a, "no register is there");
    }
}

#[test]
fn ids_and_bars_are_qemus() {
    let id = |legacy, modern, vectors| {
        let pc = crate::pci::testing::Pc::new();
        let o = pci::PciOptions { legacy, modern, ..options(vectors) };
        let _device = pci::VirtioPci::on(&pc.bus, AT, Arc::new(Echo::default()), o);
        let size = |bar: u8| {
            pc.write(AT, 0x10 + 4 * bar, 4, u32::MAX);
            pc.read(AT, 0x10 + 4 * bar, 4)
        };
        ([pc.read(AT, 0, 4), pc.read(AT, 0x2c, 4), pc.read(AT, 8, 1)], [size(0), size(1), size(4)])
    };
    // QEMU 7.2's virtio-rng-pci: 32 ports, 4 KiB, 16 KiB (its configuration space is empty).
    assert_eq!(id(true, true, 2), ([0x1005_1af4, 0x0004_1af4, 0], [0xffff_ffe1, 0xffff_f000, 0xffff_c00c]));
    assert_eq!(id(false, true, 0), ([0x1044_1af4, 0x1100_1af4, 1], [0, 0, 0xffff_c00c]));
    assert_eq!(id(true, false, 0), ([0x1005_1af4, 0x0004_1af4, 0], [0xffff_ffe1, 0, 0]));
}

#[test]
fn a_saved_device_goes_on_with_its_rings() {
    for way in WAYS {
        let mut one = rig(way);
        one.start(feature::EVENT_IDX);
        echo(&mut one, b"before");
        one.set_config(4, 1, 0x42);
        one.pause();
        let head = one.add(0, &[(FROM, 4, false), (TO, 4, true)]);
        one.notify(0);
        assert_eq!(one.used(0), [], "{way:?}: a pause");
        let mut other = rig(way);
        other.pause();
        let state = one.save();
        other.took();
        other.restore(state.clone(), &one).unwrap();
        assert_eq!((other.save(), other.took()), (state.clone(), vec![]), "{way:?}: no edge");
        other.resume();
        assert_eq!((other.used(0), other.config(4, 1)), (vec![(head, 4)], 0x42), "{way:?}");
        assert_eq!(echo(&mut other, b"after"), b"after", "{way:?}");
        for n in (way as usize..state.len()).step_by(7) {
            let mut damaged = state.clone();
            damaged[n] = 0xff;
            let mut third = rig(way);
            if third.restore(damaged, &one).is_ok() {
                third.resume();
                third.notify(0);
                third.save();
                third.reset();
            }
        }
    }
}

#[test]
fn no_access_to_any_register_panics() {
    let mut x = 1_u64;
    let mut next = move || {
        x = x.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        x >> 33
    };
    for way in WAYS {
        let rig = rig(way);
        for _ in 0..20_000 {
            let size = 1 << (next() % 4);
            let at = next() % if next() % 2 == 0 { 0x40 } else { 0x4010 } / size * size;
            let value = if next() % 2 == 0 { next() } else { next() % 16 };
            match way {
                Way::Legacy => {
                    rig.port((at % 32) as u16, (size as u8).min(4));
                    rig.set_port((at % 32) as u16, (size as u8).min(4), value as u32);
                }
                _ => {
                    rig.read(at, size as u8);
                    rig.write(at, size as u8, value);
                }
            }
        }
        rig.reset();
        assert_eq!(rig.status(), 0);
    }
}
