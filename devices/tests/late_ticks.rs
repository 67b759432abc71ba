//! A host that is late: however many periods of a timer pass while neither its thread nor the vCPU runs, the guest
//! takes as many interrupts as hardware would have made, one after the other.
mod common;

use common::NoPins;
use mynah_devices::bus::{Irq, Mmio, PortIo};
use mynah_devices::clock::{Clock, ManualClock, Nanos, SECOND};
use mynah_devices::interrupts::GsiRouter;
use mynah_devices::interrupts::ioapic::Ioapic;
use mynah_devices::interrupts::lapic::{LocalApic, LocalApics, Redeliver};
use mynah_devices::interrupts::pic::Pic;
use mynah_devices::timers::hpet::{Hpet, HpetWires};
use mynah_devices::timers::pit::Pit;
use mynah_devices::timers::rtc::Rtc;
use std::sync::Arc;

const MS: Nanos = 1_000_000;

struct Board {
    clock: ManualClock,
    apic: Arc<LocalApic>,
    pic: Arc<dyn PortIo>,
    slave: Arc<dyn PortIo>,
    ioapic: Arc<Ioapic>,
    pit: Arc<Pit>,
    hpet: Arc<Hpet>,
    rtc: Arc<Rtc>,
}

impl Board {
    fn new() -> Self {
        let clock = ManualClock::new();
        let dyn_clock: Arc<dyn Clock> = Arc::new(clock.clone());
        let apics = LocalApics::new(dyn_clock.clone(), SECOND);
        let tsc = clock.clone();
        let apic = apics.add(0, true, Arc::new(move || tsc.now()), Arc::new(NoPins));
        let pic = Pic::new(Irq::new(apics.clone(), 0));
        apics.connect_pic(&pic);
        let ioapic = Ioapic::new(apics.clone());
        let router = GsiRouter::new(Some(pic.clone()), ioapic.clone());
        let mut irq: Vec<Irq> = (0..16).map(|n| Irq::new(router.clone(), n)).collect();
        let pit = Pit::new(dyn_clock.clone(), irq[0].share());
        let rtc = Rtc::new(dyn_clock.clone(), irq[8].share(), 0);
        let (quiet_pit, quiet_rtc) = (pit.clone(), rtc.clone());
        let wires = HpetWires {
            pins: ioapic.clone(),
            irq0: irq[0].share(),
            irq8: irq[8].share(),
            legacy_route: Box::new(move |on| {
                quiet_pit.set_irq_enabled(!on);
                quiet_rtc.set_irq_enabled(!on);
            }),
        };
        let hpet = Hpet::new(dyn_clock, wires);
        apics.tell_taken(&pit);
        apics.tell_taken(&hpet);
        apic.enter_virtual_wire();
        let board =
            Board { clock, apic, pic: pic.master_ports(), slave: pic.slave_ports(), ioapic, pit, hpet, rtc };
        for (ports, base, cascade) in [(&board.pic, 0x20, 4), (&board.slave, 0x28, 2)] {
            ports.write(0, 1, 0x11);
            for byte in [base, cascade, 0x01, 0x00] {
                ports.write(1, 1, byte);
            }
        }
        board
    }

    /// As Linux does for APIC mode: the 8259A masked, interrupt `gsi` of the I/O APIC as `vector`.
    fn apic_mode(&self, pin: u64, vector: u64) {
        self.pic.write(1, 1, 0xFF);
        for (index, value) in [(0x11 + 2 * pin, 0), (0x10 + 2 * pin, vector)] {
            self.ioapic.write(0, 4, index);
            self.ioapic.write(0x10, 4, value);
        }
    }

    fn pit_at(&self, hz: u32) {
        let count = 1_193_182 / hz;
        let ports = self.pit.ports();
        ports.write(3, 1, 0x34);
        ports.write(0, 1, count & 0xFF);
        ports.write(0, 1, count >> 8);
        // OUT has risen with the control word.
        while self.apic.has_interrupt() && self.apic.acknowledge().is_some() {
            self.apic.mmio_write(0xB0, 4, 0);
            self.pic.write(0, 1, 0x20);
        }
    }

    /// What a vCPU does as soon as it may: takes interrupts until there are none. `eoi` ends one.
    fn take_all(&self, eoi: impl Fn(u8)) -> Vec<u8> {
        let mut taken = Vec::new();
        self.clock.catch_up();
        while self.apic.has_interrupt() {
            let Some(vector) = self.apic.acknowledge() else { break };
            taken.push(vector);
            eoi(vector);
            assert!(taken.len() < 10_000, "there is no end to it");
        }
        taken
    }

    fn eoi_pic(&self) -> impl Fn(u8) + '_ {
        |_| self.pic.write(0, 1, 0x20)
    }

    fn eoi_apic(&self) -> impl Fn(u8) + '_ {
        |_| self.apic.mmio_write(0xB0, 4, 0)
    }
}

/// What Linux asks of the 8254 before it trusts it (`check_timer`): some ticks by the time that some have passed. The
/// host runs neither the timers' thread nor the vCPU meanwhile.
#[test]
fn the_8254_makes_all_its_ticks_through_the_8259() {
    let b = Board::new();
    b.pit_at(250);
    b.clock.jump(160 * MS);
    assert_eq!(b.take_all(b.eoi_pic()), [0x20; 40]);
    // And goes on in its rhythm.
    for _ in 0..10 {
        b.clock.advance(4 * MS);
        assert_eq!(b.take_all(b.eoi_pic()), [0x20]);
    }
}

#[test]
fn the_8254_makes_all_its_ticks_through_the_io_apic() {
    let b = Board::new();
    b.apic_mode(2, 0x30);
    b.pit_at(250);
    b.clock.jump(160 * MS);
    assert_eq!(b.take_all(b.eoi_apic()), [0x30; 40]);
}

/// The timers' thread is on time, and it is the vCPU that the host does not run.
#[test]
fn ticks_wait_for_a_vcpu_that_does_not_run() {
    let b = Board::new();
    b.apic_mode(2, 0x30);
    b.pit_at(250);
    for _ in 0..40 {
        b.clock.advance(4 * MS);
    }
    assert_eq!(b.take_all(b.eoi_apic()), [0x30; 40]);
    assert_eq!(b.take_all(b.eoi_apic()), [0; 0]);
}

#[test]
fn no_more_ticks_are_owed_than_come_in_a_second() {
    let b = Board::new();
    b.pit_at(250);
    b.clock.jump(3600 * SECOND);
    let taken = b.take_all(b.eoi_pic()).len();
    assert!((250..=251).contains(&taken), "{taken}");
}

/// As on hardware: who masks a timer is not told of it.
#[test]
fn ticks_that_nobody_listens_to_are_gone() {
    let b = Board::new();
    b.pit_at(250);
    b.pic.write(1, 1, 0x01);
    for _ in 0..40 {
        b.clock.advance(4 * MS);
    }
    b.pic.write(1, 1, 0x00);
    assert_eq!(b.take_all(b.eoi_pic()), [0x20], "the 8259A keeps one edge");
    let b = Board::new();
    b.apic_mode(2, 0x1_0030);
    b.pit_at(250);
    b.clock.jump(160 * MS);
    b.clock.catch_up();
    b.apic_mode(2, 0x30);
    assert_eq!(b.take_all(b.eoi_apic()).len(), 0, "the I/O APIC keeps none");
}

#[test]
fn what_is_owed_is_void_when_the_8254_is_set_anew() {
    let b = Board::new();
    b.pit_at(250);
    b.clock.jump(160 * MS);
    b.clock.catch_up();
    b.pit_at(250);
    b.pit.redeliver();
    assert_eq!(b.take_all(b.eoi_pic()), [0; 0]);
}

/// An 8259A whose INTR leads nowhere, as Linux leaves it, does not hold up the I/O APIC's ticks.
#[test]
fn a_controller_that_is_not_listened_to_holds_nothing_up() {
    let b = Board::new();
    b.apic_mode(2, 0x30);
    b.pic.write(1, 1, 0);
    const LVT_LINT0: u64 = 0x350;
    b.apic.mmio_write(LVT_LINT0, 4, 0x1_0700);
    b.pit_at(250);
    b.clock.jump(160 * MS);
    assert_eq!(b.take_all(b.eoi_apic()), [0x30; 40]);
}

#[test]
fn the_hpet_makes_all_its_ticks_in_the_8254s_place_and_on_its_own_pin() {
    const LEGACY_AND_ENABLE: u64 = 3;
    const ENABLE: u64 = 1;
    const PERIODIC_SET_INT: u64 = 1 << 6 | 1 << 3 | 1 << 2;
    for (route, general, pin) in [(0u64, LEGACY_AND_ENABLE, 2), (20, ENABLE, 20)] {
        let b = Board::new();
        b.apic_mode(pin, 0x41);
        b.hpet.write(0x100, 8, PERIODIC_SET_INT | route << 9);
        // 4 ms of 10 ns.
        b.hpet.write(0x108, 8, 400_000);
        b.hpet.write(0x108, 8, 400_000);
        b.hpet.write(0x10, 8, general);
        b.clock.jump(160 * MS);
        assert_eq!(b.take_all(b.eoi_apic()), [0x41; 40], "pin {pin}");
        b.clock.advance(4 * MS);
        assert_eq!(b.take_all(b.eoi_apic()), [0x41]);
    }
}

#[test]
fn the_local_apics_timer_makes_all_its_ticks() {
    const LVT_TIMER: u64 = 0x320;
    const INITIAL: u64 = 0x380;
    const DIVIDE: u64 = 0x3E0;
    let b = Board::new();
    b.apic.mmio_write(DIVIDE, 4, 11);
    b.apic.mmio_write(LVT_TIMER, 4, 0x2_00EC);
    b.apic.mmio_write(INITIAL, 4, 4_000_000);
    b.clock.jump(160 * MS);
    assert_eq!(b.take_all(b.eoi_apic()), [0xEC; 40]);
    b.clock.jump(160 * MS);
    b.clock.catch_up();
    b.apic.mmio_write(INITIAL, 4, 0);
    assert_eq!(b.take_all(b.eoi_apic()), [0xEC], "a stopped timer owes nothing");
}

#[test]
fn the_rtc_makes_all_its_ticks_as_register_c_is_read() {
    let b = Board::new();
    let cmos = |index, value| {
        b.rtc.ports().write(0, 1, index);
        b.rtc.ports().write(1, 1, value);
    };
    // 64 Hz, periodic.
    cmos(0x0A, 0x2A);
    cmos(0x0B, 0x42);
    b.clock.jump(SECOND / 2 + 1);
    let ticks = b.take_all(|vector| {
        assert_eq!(vector, 0x28);
        b.rtc.ports().write(0, 1, 0x0C);
        assert_ne!(b.rtc.ports().read(1, 1) & 0x40, 0);
        b.slave.write(0, 1, 0x20);
        b.pic.write(0, 1, 0x20);
    });
    assert_eq!(ticks.len(), 32);
    b.rtc.ports().write(0, 1, 0x0C);
    assert_eq!(b.rtc.ports().read(1, 1), 0, "and no more");
}
