use super::*;
use crate::clock::{ManualClock, SECOND};
use crate::interrupts::GsiRouter;
use crate::interrupts::ioapic::Ioapic;
use mynah_mmu::interrupts::{ApicImage, ApicSignals, ChipKeeper, IoapicImage, PicImage};
use std::sync::atomic::{AtomicBool, AtomicU64};

const TSC_HZ: u64 = 2_500_000_000;

/// Register offsets in the xAPIC page.
const ID: u64 = 0x20;
const VERSION: u64 = 0x30;
const TPR: u64 = 0x80;
const PPR: u64 = 0xA0;
const EOI: u64 = 0xB0;
const LDR: u64 = 0xD0;
const DFR: u64 = 0xE0;
const SVR: u64 = 0xF0;
const ISR: u64 = 0x100;
const TMR: u64 = 0x180;
const IRR: u64 = 0x200;
const ESR: u64 = 0x280;
const ICR: u64 = 0x300;
const ICR_HIGH: u64 = 0x310;
const LVT_TIMER: u64 = 0x320;
const LVT_PERF: u64 = 0x340;
const LVT_LINT0: u64 = 0x350;
const LVT_LINT1: u64 = 0x360;
const LVT_ERROR: u64 = 0x370;
const INITIAL: u64 = 0x380;
const CURRENT: u64 = 0x390;
const DIVIDE: u64 = 0x3E0;

#[derive(Default)]
struct Pins {
    intr: AtomicBool,
    log: Mutex<Vec<String>>,
}

impl Pins {
    fn intr(&self) -> bool {
        self.intr.load(Ordering::SeqCst)
    }

    fn took(&self) -> Vec<String> {
        std::mem::take(&mut self.log.lock())
    }
}

impl VcpuPins for Pins {
    fn set_intr(&self, pending: bool) {
        assert_ne!(self.intr.swap(pending, Ordering::SeqCst), pending, "only changes are told");
    }
    fn nmi(&self) {
        self.log.lock().push("nmi".into());
    }
    fn smi(&self) {
        self.log.lock().push("smi".into());
    }
    fn init(&self) {
        self.log.lock().push("init".into());
    }
    fn sipi(&self, vector: u8) {
        self.log.lock().push(format!("sipi {vector:x}"));
    }
}

struct Board {
    clock: ManualClock,
    apics: Arc<LocalApics>,
    cpu: Vec<(Arc<LocalApic>, Arc<Pins>)>,
    /// Added to what the clock says of the TSC.
    tsc_offset: Arc<AtomicU64>,
}

impl Board {
    /// Software-enabled APICs with these IDs.
    fn new(ids: &[u32]) -> Self {
        let clock = ManualClock::new();
        let apics = LocalApics::new(Arc::new(clock.clone()), TSC_HZ);
        let tsc_offset = Arc::new(AtomicU64::new(0));
        let add = |(i, &id): (usize, &u32)| {
            let pins = Arc::new(Pins::default());
            let (c, offset) = (clock.clone(), tsc_offset.clone());
            let tsc: ReadTsc = Arc::new(move || {
                let t = u128::from(c.now()) * u128::from(TSC_HZ) / u128::from(SECOND);
                (t as u64).wrapping_add(offset.load(Ordering::SeqCst))
            });
            let apic = apics.add(id, i == 0, tsc, pins.clone());
            apic.mmio_write(SVR, 4, 0x1FF);
            (apic, pins)
        };
        let cpu = ids.iter().enumerate().map(add).collect();
        Self { clock, apics, cpu, tsc_offset }
    }

    fn apic(&self) -> &LocalApic {
        &self.cpu[0].0
    }

    fn pins(&self) -> &Pins {
        &self.cpu[0].1
    }

    fn fixed(&self, destination: u32, vector: u8) -> bool {
        self.apics.deliver(message(destination, DeliveryMode::Fixed, vector))
    }

    /// Which CPUs have `vector` in their IRR, as bits.
    fn have(&self, vector: u8) -> u32 {
        let at = IRR + 0x10 * u64::from(vector >> 5);
        let has = |a: &LocalApic| {
            let word = if a.mmio_page().is_some() {
                a.mmio_read(at, 4)
            } else {
                a.msr_read(0x800 + (at >> 4) as u32).unwrap() as u32
            };
            word >> (vector & 31) & 1
        };
        self.cpu.iter().enumerate().fold(0, |bits, (i, (a, _))| bits | has(a) << i)
    }
}

fn message(destination: u32, mode: DeliveryMode, vector: u8) -> ApicMessage {
    ApicMessage { destination, logical: false, mode, vector, level: false, assert: true }
}

fn x2apic(apic: &LocalApic) {
    apic.set_apic_base(apic.apic_base() | 0xC00).unwrap();
}

#[test]
fn reset_state_is_the_manuals() {
    let b = Board::new(&[5, 6]);
    let apic = b.apic();
    apic.reset(Reset::Board);
    assert_eq!(apic.apic_base(), 0xFEE0_0900);
    assert_eq!(b.cpu[1].0.apic_base(), 0xFEE0_0800);
    assert_eq!(apic.mmio_page(), Some(LAPIC_BASE));
    assert_eq!(apic.mmio_read(ID, 4), 5 << 24);
    assert_eq!(apic.mmio_read(VERSION, 4), 0x0105_0014);
    assert_eq!(apic.mmio_read(SVR, 4), 0xFF);
    assert_eq!(apic.mmio_read(DFR, 4), 0xFFFF_FFFF);
    assert!((0x320..=0x370).step_by(16).all(|lvt| apic.mmio_read(lvt, 4) == 0x1_0000));
    apic.mmio_write(LVT_LINT0, 4, 0x700);
    assert_eq!(apic.mmio_read(LVT_LINT0, 4), 0x1_0700, "masked while software-disabled");
}

#[test]
fn the_highest_vector_goes_first_and_eoi_lets_the_next_in() {
    let b = Board::new(&[0]);
    let (apic, pins) = &b.cpu[0];
    b.fixed(0, 0x41);
    b.fixed(0, 0x61);
    b.fixed(0, 0x62);
    assert!(pins.intr());
    assert_eq!(apic.acknowledge(), Some(0x62));
    assert_eq!(apic.mmio_read(PPR, 4), 0x60);
    assert!(!pins.intr(), "61h is of the class in service");
    assert_eq!(apic.acknowledge(), None);
    assert_eq!(apic.mmio_read(ISR + 0x30, 4), 1 << 2);
    apic.mmio_write(EOI, 4, 0);
    assert!(pins.intr());
    assert_eq!(apic.acknowledge(), Some(0x61));
    b.fixed(0, 0x71);
    assert_eq!(apic.acknowledge(), Some(0x71));
    apic.mmio_write(EOI, 4, 0);
    apic.mmio_write(EOI, 4, 0);
    assert_eq!(apic.acknowledge(), Some(0x41));
    apic.mmio_write(EOI, 4, 0);
    assert!(!pins.intr());
    assert_eq!(apic.mmio_read(PPR, 4), 0);
}

#[test]
fn tpr_and_cr8_hold_back_their_class_and_below() {
    let b = Board::new(&[0]);
    let (apic, pins) = &b.cpu[0];
    apic.set_cr8(5);
    assert_eq!((apic.mmio_read(TPR, 4), apic.cr8()), (0x50, 5));
    b.fixed(0, 0x5F);
    assert!(!pins.intr());
    apic.mmio_write(TPR, 4, 0x4F);
    assert!(pins.intr());
    apic.mmio_write(TPR, 4, 0xFF);
    assert!(!pins.intr());
    assert_eq!(apic.acknowledge(), None);
    apic.set_cr8(0);
    assert_eq!(apic.acknowledge(), Some(0x5F));
}

#[test]
fn a_software_disabled_apic_takes_no_vectors_but_nmi_init_and_sipi() {
    let b = Board::new(&[0]);
    let (apic, pins) = &b.cpu[0];
    apic.mmio_write(LVT_LINT1, 4, 0x400);
    apic.mmio_write(SVR, 4, 0xFF);
    assert_eq!(apic.mmio_read(LVT_LINT1, 4), 0x1_0400);
    assert!(!b.fixed(0, 0x40));
    b.apics.deliver(message(0, DeliveryMode::Nmi, 0));
    b.apics.deliver(message(0, DeliveryMode::Smi, 0));
    b.apics.deliver(message(0, DeliveryMode::StartUp, 0x9A));
    assert_eq!(pins.took(), ["nmi", "smi", "sipi 9a"]);
    assert!(!pins.intr());
}

#[test]
fn init_resets_the_apic_but_keeps_id_base_and_mode() {
    let b = Board::new(&[3]);
    let (apic, pins) = &b.cpu[0];
    x2apic(apic);
    b.fixed(3, 0x40);
    assert!(pins.intr());
    b.apics.deliver(message(3, DeliveryMode::Init, 0));
    assert_eq!(pins.took(), ["init"]);
    assert!(!pins.intr());
    assert_eq!(apic.apic_base(), 0xFEE0_0D00);
    assert_eq!(apic.msr_read(0x802), Ok(3));
    assert_eq!(apic.msr_read(0x80F), Ok(0xFF));
}

#[test]
fn startup_sequence_by_icr_reaches_the_other_processor_only() {
    let b = Board::new(&[0, 1]);
    let apic = b.apic();
    apic.mmio_write(ICR_HIGH, 4, 1 << 24);
    apic.mmio_write(ICR, 4, 0xC500);
    apic.mmio_write(ICR, 4, 0x8500);
    apic.mmio_write(ICR, 4, 0x0600 | 0x9F);
    assert_eq!(b.cpu[1].1.took(), ["init", "sipi 9f"], "the level de-assert does nothing");
    assert!(b.cpu[0].1.took().is_empty());
}

#[test]
fn icr_shorthands() {
    let b = Board::new(&[0, 1, 2]);
    let apic = &b.cpu[1].0;
    apic.mmio_write(ICR, 4, 0x4_4041);
    apic.mmio_write(ICR, 4, 0x8_4042);
    apic.mmio_write(ICR, 4, 0xC_4043);
    assert_eq!((b.have(0x41), b.have(0x42), b.have(0x43)), (0b010, 0b111, 0b101));
}

#[test]
fn physical_broadcast_and_nobody() {
    let b = Board::new(&[0, 1, 2]);
    b.apic().mmio_write(ICR_HIGH, 4, 0xFF00_0000);
    b.apic().mmio_write(ICR, 4, 0x41);
    assert_eq!(b.have(0x41), 0b111);
    assert!(!b.fixed(9, 0x42));
    assert_eq!(b.have(0x42), 0);
}

#[test]
fn logical_flat_and_cluster_destinations() {
    let b = Board::new(&[0, 1, 2]);
    for (i, (apic, _)) in b.cpu.iter().enumerate() {
        apic.mmio_write(LDR, 4, 1 << (24 + i));
    }
    let logical =
        |destination| ApicMessage { logical: true, ..message(destination, DeliveryMode::Fixed, 0x50) };
    let reached = |destination| {
        b.apics.deliver(logical(destination));
        let have = b.have(0x50);
        for (apic, _) in &b.cpu {
            if apic.acknowledge().is_some() {
                apic.mmio_write(EOI, 4, 0);
            }
        }
        have
    };
    assert_eq!([5, 2, 8, 0xFF].map(reached), [0b101, 0b010, 0, 0b111]);
    for ((apic, _), ldr) in b.cpu.iter().zip([0x11, 0x12, 0x21]) {
        apic.mmio_write(DFR, 4, 0);
        apic.mmio_write(LDR, 4, ldr << 24);
    }
    assert_eq!([0x13, 0x21, 0xF1, 0xFF, 0x23].map(reached), [0b011, 0b100, 0b101, 0b111, 0b100]);
}

#[test]
fn lowest_priority_goes_to_one_processor_with_the_lowest_ppr() {
    let b = Board::new(&[0, 1, 2]);
    b.cpu[0].0.mmio_write(TPR, 4, 0x20);
    b.cpu[1].0.mmio_write(TPR, 4, 0x10);
    b.cpu[2].0.mmio_write(TPR, 4, 0x30);
    for _ in 0..3 {
        b.apics.deliver(message(u32::MAX, DeliveryMode::LowestPriority, 0x51));
    }
    assert_eq!(b.have(0x51), 0b010);
    for (apic, _) in &b.cpu {
        apic.mmio_write(TPR, 4, 0);
    }
    for vector in 0x60..0x63 {
        b.apics.deliver(message(u32::MAX, DeliveryMode::LowestPriority, vector));
    }
    assert_eq!(b.have(0x60) | b.have(0x61) | b.have(0x62), 0b111, "equals take turns");
    let none = LocalApics::new(Arc::new(ManualClock::new()), 1);
    assert!(!none.deliver(message(0, DeliveryMode::LowestPriority, 0x40)));
}

#[test]
fn apic_base_follows_the_state_machine() {
    let b = Board::new(&[0]);
    let apic = b.apic();
    assert!(apic.set_apic_base(0xFEE0_0500).is_err(), "x2APIC without enable");
    assert!(apic.set_apic_base(0xFEE0_0901).is_err(), "reserved bit");
    assert!(apic.set_apic_base(1 << 52 | 0xFEE0_0900).is_err());
    assert!(apic.msr_read(0x802).is_err(), "no x2APIC MSRs in xAPIC mode");
    apic.set_apic_base(0xFEC1_0900).unwrap();
    assert_eq!(apic.mmio_page(), Some(0xFEC1_0000));
    apic.set_apic_base(0xFEE0_0D00).unwrap();
    assert_eq!(apic.mmio_page(), None);
    assert!(apic.set_apic_base(0xFEE0_0900).is_err(), "x2APIC to xAPIC");
    apic.set_apic_base(0xFEE0_0100).unwrap();
    assert!(apic.set_apic_base(0xFEE0_0D00).is_err(), "disabled to x2APIC");
    assert!(!b.fixed(0, 0x40));
    apic.msr_write(IA32_APIC_BASE, 0xFEE0_0900).unwrap();
    assert_eq!(apic.msr_read(IA32_APIC_BASE), Ok(0xFEE0_0900));
    assert_eq!(apic.mmio_read(SVR, 4), 0xFF, "disabling has reset it");
}

#[test]
fn x2apic_msrs_fault_where_the_manual_says() {
    let b = Board::new(&[0x123]);
    let apic = b.apic();
    x2apic(apic);
    assert_eq!(apic.msr_read(0x802), Ok(0x123));
    assert_eq!(apic.msr_read(0x80D), Ok(0x12_0008));
    for index in [0x800, 0x801, 0x809, 0x80B, 0x80C, 0x80E, 0x82F, 0x831, 0x83A, 0x83F, 0x840, 0x8FF] {
        assert!(apic.msr_read(index).is_err(), "read {index:x}");
    }
    for (index, value) in [
        (0x802, 0),
        (0x803, 0),
        (0x80A, 0),
        (0x80D, 0),
        (0x80E, 0),
        (0x810, 0),
        (0x831, 0),
        (0x839, 0),
        (0x80B, 1),
        (0x828, 1),
        (0x808, 0x100),
        (0x80F, 0x400),
        (0x832, 1 << 19),
        (0x838, 1 << 32),
        (0x83E, 4),
        (0x830, 1 << 20),
        (0x83F, 0x100),
    ] {
        assert!(apic.msr_write(index, value).is_err(), "write {index:x} {value:x}");
    }
    for (index, value) in
        [(0x80B, 0), (0x828, 0), (0x808, 0xFF), (0x80F, 0x11FF), (0x832, 0x5_00FF), (0x83E, 0xB)]
    {
        assert!(apic.msr_write(index, value).is_ok(), "write {index:x} {value:x}");
    }
}

#[test]
fn x2apic_ipis_by_wide_id_logical_cluster_and_to_self() {
    let b = Board::new(&[0, 1, 0x11, 0x123]);
    for (apic, _) in &b.cpu {
        x2apic(apic);
    }
    let apic = b.apic();
    apic.msr_write(0x830, 0x123 << 32 | 0x41).unwrap();
    apic.msr_write(0x830, 0x0001_0003 << 32 | 0x842).unwrap();
    apic.msr_write(0x830, 0x0000_0003 << 32 | 0x843).unwrap();
    apic.msr_write(0x830, 0xFFFF_FFFF << 32 | 0x44).unwrap();
    apic.msr_write(0x83F, 0x45).unwrap();
    let have = [0x41, 0x42, 0x43, 0x44, 0x45].map(|v| b.have(v));
    assert_eq!(have, [0b1000, 0b0100, 0b0011, 0b1111, 0b0001]);
    assert_eq!(apic.msr_read(0x830), Ok(0xFFFF_FFFF_0000_0044));
}

#[test]
fn a_one_shot_timer_counts_down_by_its_divider_and_fires_once() {
    let b = Board::new(&[0]);
    let (apic, pins) = &b.cpu[0];
    apic.mmio_write(DIVIDE, 4, 3);
    apic.mmio_write(LVT_TIMER, 4, 0xEC);
    apic.mmio_write(INITIAL, 4, 1000);
    b.clock.advance(4000);
    assert_eq!(apic.mmio_read(CURRENT, 4), 750, "divided by 16");
    b.clock.advance(11_999);
    assert!(!pins.intr());
    b.clock.advance(1);
    assert_eq!(apic.acknowledge(), Some(0xEC));
    apic.mmio_write(EOI, 4, 0);
    assert_eq!(apic.mmio_read(CURRENT, 4), 0);
    b.clock.advance(SECOND);
    assert!(!pins.intr());
    assert_eq!(b.clock.next_deadline(), None);
}

#[test]
fn every_divider_divides_by_its_power_of_two() {
    let b = Board::new(&[0]);
    for (bits, by) in [(0, 2), (1, 4), (2, 8), (3, 16), (8, 32), (9, 64), (10, 128), (11, 1)] {
        b.apic().mmio_write(DIVIDE, 4, bits);
        b.apic().mmio_write(INITIAL, 4, 1_000_000);
        b.clock.advance(128_000);
        assert_eq!(b.apic().mmio_read(CURRENT, 4), 1_000_000 - 128_000 / by);
    }
}

#[test]
fn changing_the_divider_changes_the_pace_and_not_the_count() {
    let b = Board::new(&[0]);
    b.apic().mmio_write(DIVIDE, 4, 11);
    b.apic().mmio_write(INITIAL, 4, 1000);
    b.clock.advance(400);
    b.apic().mmio_write(DIVIDE, 4, 0);
    assert_eq!(b.apic().mmio_read(CURRENT, 4), 600);
    b.clock.advance(400);
    assert_eq!(b.apic().mmio_read(CURRENT, 4), 400);
}

#[test]
fn a_periodic_timer_keeps_its_rhythm_and_makes_up_for_what_was_missed() {
    let b = Board::new(&[0]);
    let (apic, pins) = &b.cpu[0];
    apic.mmio_write(DIVIDE, 4, 11);
    apic.mmio_write(LVT_TIMER, 4, 0x2_00EC);
    apic.mmio_write(INITIAL, 4, 1_000_000);
    for n in 1..=50u64 {
        b.clock.advance(n * 1_000_000 - 1 - b.clock.now());
        assert!(!pins.intr());
        b.clock.advance(1);
        assert_eq!(apic.acknowledge(), Some(0xEC));
        apic.mmio_write(EOI, 4, 0);
    }
    b.clock.advance(3_500_000);
    for _ in 0..3 {
        assert_eq!(apic.acknowledge(), Some(0xEC));
        apic.mmio_write(EOI, 4, 0);
    }
    assert!(!pins.intr());
    assert_eq!(apic.mmio_read(CURRENT, 4), 500_000);
    apic.mmio_write(INITIAL, 4, 0);
    b.clock.advance(SECOND);
    assert!(!pins.intr());
}

#[test]
fn a_masked_timer_counts_in_silence() {
    let b = Board::new(&[0]);
    let (apic, pins) = &b.cpu[0];
    apic.mmio_write(DIVIDE, 4, 11);
    apic.mmio_write(LVT_TIMER, 4, 0x3_00EC);
    apic.mmio_write(INITIAL, 4, 1000);
    assert_eq!(b.clock.next_deadline(), None);
    b.clock.advance(10_300);
    assert_eq!(apic.mmio_read(CURRENT, 4), 700);
    apic.mmio_write(LVT_TIMER, 4, 0x2_00EC);
    assert!(!pins.intr(), "what came due while masked is gone");
    b.clock.advance(700);
    assert!(pins.intr());
}

#[test]
fn the_tsc_deadline_fires_when_the_tsc_reaches_it_and_never_before() {
    let b = Board::new(&[0]);
    let (apic, pins) = &b.cpu[0];
    apic.set_tsc_deadline(1000);
    assert_eq!(apic.tsc_deadline(), 0, "ignored in other modes");
    apic.mmio_write(LVT_TIMER, 4, 0x4_00EF);
    b.clock.advance(3);
    apic.msr_write(IA32_TSC_DEADLINE, 1007).unwrap();
    assert_eq!(apic.msr_read(IA32_TSC_DEADLINE), Ok(1007));
    // 1007 cycles at 2.5 GHz are 402.8 ns.
    b.clock.advance(399);
    assert!(!pins.intr());
    b.clock.advance(1);
    assert_eq!(apic.acknowledge(), Some(0xEF));
    assert_eq!(apic.tsc_deadline(), 0);
    apic.mmio_write(EOI, 4, 0);
    apic.set_tsc_deadline(1);
    assert!(pins.intr(), "a deadline in the past fires at once");
}

#[test]
fn a_written_tsc_moves_the_deadline() {
    let b = Board::new(&[0]);
    let (apic, pins) = &b.cpu[0];
    apic.mmio_write(LVT_TIMER, 4, 0x4_00EF);
    apic.set_tsc_deadline(10_000);
    b.tsc_offset.store(7_500, Ordering::SeqCst);
    apic.tsc_changed();
    b.clock.advance(1000);
    assert_eq!(apic.acknowledge(), Some(0xEF));
    apic.mmio_write(EOI, 4, 0);
    apic.set_tsc_deadline(20_000);
    apic.mmio_write(LVT_TIMER, 4, 0xEF);
    assert_eq!(apic.tsc_deadline(), 0, "leaving the mode disarms");
    b.clock.advance(SECOND);
    assert!(!pins.intr());
}

#[test]
fn errors_are_latched_shown_after_a_write_and_interrupt() {
    let b = Board::new(&[0]);
    let apic = b.apic();
    apic.mmio_write(LVT_ERROR, 4, 0xFE);
    apic.mmio_write(ICR, 4, 0x4_4005);
    assert_eq!(apic.mmio_read(ESR, 4), 0);
    apic.mmio_write(ESR, 4, 0);
    assert_eq!(apic.mmio_read(ESR, 4), 1 << 5);
    assert_eq!(apic.acknowledge(), Some(0xFE));
    assert!(!b.fixed(0, 0x0F));
    apic.mmio_read(0x3F0, 4);
    apic.mmio_write(ESR, 4, 0);
    assert_eq!(apic.mmio_read(ESR, 4), 1 << 6 | 1 << 7);
    apic.mmio_write(ESR, 4, 0);
    assert_eq!(apic.mmio_read(ESR, 4), 0);
}

#[test]
fn lint_pins_as_nmi_fixed_edge_and_fixed_level() {
    let b = Board::new(&[0]);
    let (apic, pins) = &b.cpu[0];
    apic.mmio_write(LVT_LINT1, 4, 0x400);
    b.apics.set(1, true);
    b.apics.set(1, true);
    assert_eq!(pins.took(), ["nmi"]);
    apic.mmio_write(LVT_LINT0, 4, 0x55);
    b.apics.set(0, true);
    assert_eq!(apic.acknowledge(), Some(0x55));
    apic.mmio_write(EOI, 4, 0);
    assert!(!pins.intr());
    apic.mmio_write(LVT_LINT0, 4, 0x8056);
    assert_eq!(apic.acknowledge(), Some(0x56), "the level is up when it is unmasked");
    assert_eq!(apic.mmio_read(LVT_LINT0, 4), 0xC056);
    assert_eq!(apic.mmio_read(TMR + 0x20, 4), 1 << 22);
    apic.mmio_write(EOI, 4, 0);
    assert_eq!(apic.acknowledge(), Some(0x56), "and still is after EOI");
    b.apics.set(0, false);
    apic.mmio_write(EOI, 4, 0);
    assert!(!pins.intr());
    assert_eq!(apic.mmio_read(LVT_LINT0, 4), 0x8056);
}

#[test]
fn a_counter_overflow_masks_its_entry() {
    let b = Board::new(&[0]);
    b.apic().mmio_write(LVT_PERF, 4, 0x400);
    b.apic().performance_event();
    b.apic().performance_event();
    assert_eq!(b.cpu[0].1.took(), ["nmi"]);
    assert_eq!(b.apic().mmio_read(LVT_PERF, 4), 0x1_0400);
}

fn with_pic(b: &Board) -> Arc<Pic> {
    let pic = Pic::new(crate::bus::Irq::new(b.apics.clone(), 0));
    b.apics.connect_pic(&pic);
    for (ports, icw2, icw3) in [(pic.master_ports(), 0x30, 4), (pic.slave_ports(), 0x38, 2)] {
        for (port, value) in [(0, 0x11), (1, icw2), (1, icw3), (1, 1)] {
            ports.write(port, 1, value);
        }
    }
    pic
}

#[test]
fn the_virtual_wire_passes_the_8259_through() {
    let b = Board::new(&[0, 1]);
    let pic = with_pic(&b);
    let (apic, pins) = &b.cpu[0];
    pic.set(4, true);
    assert!(!pins.intr(), "LINT0 is masked after reset");
    apic.enter_virtual_wire();
    assert!(pins.intr());
    apic.set_cr8(15);
    assert!(pins.intr(), "priorities do not hold ExtINT back");
    assert!(!b.cpu[1].1.intr());
    assert_eq!(apic.acknowledge(), Some(0x34));
    assert!(!pins.intr());
    assert_eq!(apic.mmio_read(ISR + 0x10, 4), 0, "no APIC bit is in service");
    pic.master_ports().write(0, 1, 0x20);
    pic.set(1, true);
    assert_eq!(apic.acknowledge(), Some(0x31));
}

#[test]
fn a_disabled_apic_is_transparent_to_the_8259_and_nmi() {
    let b = Board::new(&[0]);
    let pic = with_pic(&b);
    let (apic, pins) = &b.cpu[0];
    apic.set_apic_base(0xFEE0_0100).unwrap();
    pic.set(0, true);
    assert!(pins.intr());
    assert_eq!(apic.acknowledge(), Some(0x30));
    b.apics.set(1, true);
    assert_eq!(pins.took(), ["nmi"]);
}

#[test]
fn lint0_as_a_fixed_edge_gets_each_request_of_an_auto_eoi_8259() {
    // What Linux tries when the timer does not come through the I/O APIC.
    let b = Board::new(&[0]);
    let pic = with_pic(&b);
    let (apic, _) = &b.cpu[0];
    apic.mmio_write(LVT_LINT0, 4, 0x41);
    pic.set(0, true);
    assert_eq!(apic.acknowledge(), Some(0x41));
    apic.mmio_write(EOI, 4, 0);
    pic.acknowledge();
    pic.master_ports().write(0, 1, 0x20);
    pic.set(0, false);
    pic.set(0, true);
    assert_eq!(apic.acknowledge(), Some(0x41));
}

#[test]
fn an_ext_int_message_is_acknowledged_from_the_8259() {
    let b = Board::new(&[0]);
    let pic = with_pic(&b);
    let (apic, pins) = &b.cpu[0];
    pic.set(4, true);
    b.apics.deliver(message(0, DeliveryMode::ExtInt, 0));
    assert_eq!(apic.acknowledge(), Some(0x34));
    assert!(!pins.intr());
    b.apics.deliver(message(0, DeliveryMode::ExtInt, 0));
    assert_eq!(apic.acknowledge(), Some(0x37), "nothing there any more: the spurious vector");
}

#[test]
fn level_interrupts_of_the_ioapic_end_by_eoi_broadcast() {
    let b = Board::new(&[0]);
    let ioapic = Ioapic::new(b.apics.clone());
    b.apics.connect_eoi(Arc::downgrade(&ioapic) as Weak<dyn EoiSink>);
    let (apic, pins) = &b.cpu[0];
    crate::bus::Mmio::write(&*ioapic, 0, 4, 0x10 + 2 * 11);
    crate::bus::Mmio::write(&*ioapic, 0x10, 4, 0x8059);
    ioapic.set(11, true);
    assert_eq!(apic.acknowledge(), Some(0x59));
    assert!(!pins.intr());
    apic.mmio_write(EOI, 4, 0);
    assert_eq!(apic.acknowledge(), Some(0x59), "still asserted");
    ioapic.set(11, false);
    apic.mmio_write(EOI, 4, 0);
    assert!(!pins.intr());
    // With the broadcast suppressed the I/O APIC waits for its own EOI register.
    apic.mmio_write(SVR, 4, 0x11FF);
    ioapic.set(11, true);
    assert_eq!(apic.acknowledge(), Some(0x59));
    apic.mmio_write(EOI, 4, 0);
    assert!(!pins.intr());
    crate::bus::Mmio::write(&*ioapic, 0x40, 4, 0x59);
    assert!(pins.intr());
}

#[test]
fn msi_writes_are_messages() {
    let b = Board::new(&[0, 1]);
    b.apics.msi(0xFEE0_1000, 0x0041);
    b.apics.msi(0xFEEF_F000, 0x0042);
    b.apics.msi(0xFEE0_0000, 0x0400);
    assert_eq!((b.have(0x41), b.have(0x42)), (0b10, 0b11));
    assert_eq!(b.cpu[0].1.took(), ["nmi"]);
    b.cpu[0].0.mmio_write(LDR, 4, 1 << 24);
    b.cpu[1].0.mmio_write(LDR, 4, 2 << 24);
    b.apics.msi(0xFEE0_300C, 0x0043);
    assert_eq!(b.have(0x43).count_ones(), 1, "the redirection hint asks for one processor");
    b.apics.msi(0xFEE0_3004, 0x0044);
    assert_eq!(b.have(0x44), 0b11);
}

#[test]
fn interrupts_between_threads_are_neither_lost_nor_deadlocked() {
    let b = Board::new(&[0, 1]);
    let ioapic = Ioapic::new(b.apics.clone());
    b.apics.connect_eoi(Arc::downgrade(&ioapic) as Weak<dyn EoiSink>);
    let pic = with_pic(&b);
    b.apic().enter_virtual_wire();
    for pin in 1..16u64 {
        crate::bus::Mmio::write(&*ioapic, 0, 4, 0x11 + 2 * pin);
        crate::bus::Mmio::write(&*ioapic, 0x10, 4, (pin & 1) << 24);
        crate::bus::Mmio::write(&*ioapic, 0, 4, 0x10 + 2 * pin);
        crate::bus::Mmio::write(&*ioapic, 0x10, 4, 0x8050 + pin);
    }
    let serve = |apic: &LocalApic| match apic.acknowledge() {
        Some(v) if v < 0x40 => {
            pic.slave_ports().write(0, 1, 0x20);
            pic.master_ports().write(0, 1, 0x20);
        }
        Some(v) => {
            apic.mmio_write(EOI, 4, 0);
            if v != 0x91 {
                apic.mmio_write(ICR, 4, 0xC_4091);
            }
        }
        None => std::thread::yield_now(),
    };
    let done = AtomicBool::new(false);
    std::thread::scope(|s| {
        for (apic, _) in &b.cpu {
            let (done, serve) = (&done, &serve);
            s.spawn(move || {
                while !done.load(Ordering::SeqCst) {
                    serve(apic);
                }
            });
        }
        let devices: Vec<_> = (0..2u32)
            .map(|d| {
                let (ioapic, pic) = (&ioapic, &pic);
                s.spawn(move || {
                    for i in 0..3000u32 {
                        let line = 1 + (i * 2 + d) % 15;
                        ioapic.set(line, true);
                        pic.set(line, true);
                        ioapic.set(line, false);
                        pic.set(line, false);
                    }
                })
            })
            .collect();
        for device in devices {
            device.join().unwrap();
        }
        done.store(true, Ordering::SeqCst);
    });
    // What is left is served; then each level still gets through, so none was left as being served.
    let drain = || {
        while b.cpu.iter().any(|(_, pins)| pins.intr()) {
            b.cpu.iter().for_each(|(apic, _)| serve(apic));
        }
    };
    drain();
    for pin in 1..16u32 {
        ioapic.set(pin, true);
        assert!(b.cpu[(pin & 1) as usize].1.intr(), "pin {pin}");
        ioapic.set(pin, false);
        drain();
    }
}

#[test]
fn any_register_at_any_width_with_any_value_is_harmless() {
    let b = Board::new(&[0, 1]);
    let mut x = 5u64;
    for round in 0..40_000 {
        x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let (apic, _) = &b.cpu[(x >> 63) as usize];
        let size = [0u8, 1, 2, 4, 4, 4, 8, 255][(x >> 40) as usize & 7];
        let offset = [x >> 33 & 0xFF0, x >> 33 & 0xFFF, x][(x >> 60) as usize % 3];
        apic.mmio_write(offset, size, (x >> 13) as u32);
        apic.mmio_read(offset, size);
        let index =
            [0x800 + (offset as u32 >> 4 & 0xFF), IA32_TSC_DEADLINE, x as u32][(x >> 55) as usize % 3];
        let _ = apic.msr_write(index, x >> (x & 63));
        let _ = apic.msr_read(index);
        let _ = apic.acknowledge();
        b.apics.msi(x >> 7, (x >> 17) as u32);
        b.apics.set((x >> 21) as u32 & 3, x & 1 != 0);
        apic.set_cr8((x >> 50) as u8);
        if round % 64 == 0 {
            let _ = apic.set_apic_base([0xFEE0_0900, 0xFEE0_0D00, 0xFEE0_0100][(x >> 58) as usize % 3]);
        }
        b.clock.advance(x >> 48);
    }
}

/// One who keeps local APICs, and knows nothing of what they mean.
#[derive(Default)]
struct Shelf {
    images: Vec<Mutex<Option<ApicImage>>>,
    sent: Mutex<Vec<(u64, u32)>>,
    levels: Mutex<Vec<(u32, u64, u32)>>,
    chips: Option<Arc<Chips>>,
}

/// One who keeps the other chips.
#[derive(Default)]
struct Chips {
    pic: Mutex<Option<[PicImage; 2]>>,
    ioapic: Mutex<Option<IoapicImage>>,
    lines: Mutex<Vec<(&'static str, u32, bool)>>,
}

impl ChipKeeper for Chips {
    fn set_pic_line(&self, line: u32, level: bool) {
        self.lines.lock().push(("pic", line, level));
    }
    fn set_ioapic_pin(&self, pin: u32, level: bool) {
        self.lines.lock().push(("ioapic", pin, level));
    }
    fn pic(&self) -> Option<[PicImage; 2]> {
        *self.pic.lock()
    }
    fn put_pic(&self, pair: &[PicImage; 2]) {
        *self.pic.lock() = Some(*pair);
    }
    fn ioapic(&self) -> Option<IoapicImage> {
        *self.ioapic.lock()
    }
    fn put_ioapic(&self, image: &IoapicImage) {
        *self.ioapic.lock() = Some(*image);
    }
}

struct Place(Arc<Shelf>, usize);

impl ApicKeeper for Place {
    fn message(&self, address: u64, data: u32) -> bool {
        self.0.sent.lock().push((address, data));
        true
    }
    fn get(&self) -> Option<ApicImage> {
        self.0.images[self.1].lock().clone()
    }
    fn take_signals(&self) -> ApicSignals {
        ApicSignals { nmis: 1, init: false, sipi: (self.1 == 1).then_some(0x12) }
    }
    fn put(&self, image: &ApicImage, _: bool) {
        *self.0.images[self.1].lock() = Some(image.clone());
    }
    fn levels(&self, routes: &[(u32, u64, u32)]) {
        *self.0.levels.lock() = routes.to_vec();
    }
    fn chips(&self) -> Option<Arc<dyn ChipKeeper>> {
        let chips: Arc<dyn ChipKeeper> = self.0.chips.clone()?;
        Some(chips)
    }
}

fn place(shelf: &Arc<Shelf>, n: usize) -> Arc<dyn ApicKeeper> {
    Arc::new(Place(shelf.clone(), n))
}

/// Lends all local APICs of a board.
fn lend(b: &Board) -> Arc<Shelf> {
    let shelf =
        Arc::new(Shelf { images: b.cpu.iter().map(|_| Mutex::default()).collect(), ..Default::default() });
    for (n, (apic, _)) in b.cpu.iter().enumerate() {
        let all = apic.lend(&place(&shelf, n));
        assert_eq!(all, n + 1 == b.cpu.len(), "none runs before all are lent");
    }
    shelf
}

#[test]
fn what_is_lent_comes_back_as_it_was() {
    for x2apic in [false, true] {
        let b = Board::new(&[0, 1]);
        let apic = b.apic();
        apic.enter_virtual_wire();
        for (offset, value) in [
            (SVR, 0x1ff),
            (LDR, 0x0500_0000),
            (DFR, 0x0fff_ffff),
            (TPR, 0x20),
            (LVT_ERROR, 0xfe),
            (DIVIDE, 2),
        ] {
            apic.mmio_write(offset, 4, value);
        }
        b.apics.msi(0xfee0_0000, 0x0041);
        b.apics.msi(0xfee0_0000, 0xc052);
        assert_eq!(apic.acknowledge(), Some(0x52));
        apic.mmio_write(LVT_TIMER, 4, 0x2_0070);
        apic.mmio_write(INITIAL, 4, 1000);
        b.clock.advance(1000);
        if x2apic {
            apic.set_apic_base(apic.apic_base() | 1 << 10).unwrap();
        }
        let registers = || (0..64).map(|n| apic.with(|regs, time| regs.peek(n, time))).collect::<Vec<_>>();
        let (before, base) = (registers(), apic.apic_base());
        assert_eq!(before[0x39], 875, "a tick each eight of the clock's");
        let shelf = lend(&b);
        let there = shelf.images[0].lock().clone().unwrap();
        assert_eq!((&there.page[..], there.base), (&before[..], base));
        b.apics.take_back();
        assert_eq!((registers(), apic.apic_base()), (before, base), "x2APIC: {x2apic}");
        // Its timer goes on where it was.
        b.clock.advance(8 * 875 - 1);
        assert_eq!(b.have(0x70), 0);
        b.clock.advance(1);
        assert_eq!(b.have(0x70), 1);
    }
}

#[test]
fn timers_that_are_lent_do_not_run_here_and_deadlines_come_back() {
    let b = Board::new(&[0]);
    let apic = b.apic();
    apic.mmio_write(SVR, 4, 0x1ff);
    apic.mmio_write(LVT_TIMER, 4, 0x71);
    apic.mmio_write(DIVIDE, 4, 0xb);
    apic.mmio_write(INITIAL, 4, 500);
    let shelf = lend(&b);
    b.clock.advance(SECOND);
    assert!(!b.pins().intr());
    // It has run out there, and its interrupt waits.
    let change = |f: &dyn Fn(&mut ApicImage)| f(shelf.images[0].lock().as_mut().unwrap());
    change(&|image| (image.page[0x39], image.page[0x23]) = (0, 1 << 17));
    b.apics.take_back();
    assert!(b.pins().intr());
    assert_eq!(apic.acknowledge(), Some(0x71));
    assert_eq!((apic.mmio_read(INITIAL, 4), apic.mmio_read(CURRENT, 4)), (500, 0));
    b.clock.advance(SECOND);
    assert!(!b.pins().intr(), "one interrupt for one shot");

    // One that has run out is not started there.
    let shelf = lend(&b);
    assert_eq!(shelf.images[0].lock().as_ref().unwrap().page[0x38], 0);
    b.apics.take_back();
    assert_eq!(apic.mmio_read(INITIAL, 4), 500);

    apic.mmio_write(EOI, 4, 0);
    apic.mmio_write(LVT_TIMER, 4, 0x4_0072);
    apic.set_tsc_deadline(u64::MAX / 2);
    let shelf = lend(&b);
    assert_eq!(shelf.images[0].lock().as_ref().unwrap().tsc_deadline, u64::MAX / 2);
    shelf.images[0].lock().as_mut().unwrap().tsc_deadline = 5;
    b.apics.take_back();
    assert!(b.pins().intr(), "the guest's new deadline is over");
    assert_eq!(apic.acknowledge(), Some(0x72));
}

#[test]
fn a_timer_that_is_over_when_it_is_lent_has_its_interrupt_go_along() {
    let b = Board::new(&[0]);
    b.apic().mmio_write(LVT_TIMER, 4, 0x4_0072);
    b.apic().set_tsc_deadline(TSC_HZ);
    // Nobody has been told yet that it is over.
    b.tsc_offset.store(2 * TSC_HZ, Ordering::SeqCst);
    let shelf = lend(&b);
    let image = shelf.images[0].lock().clone().unwrap();
    assert_eq!((image.tsc_deadline, image.page[0x20 + 3]), (0, 1 << 0x12));
    b.apics.take_back();
    assert_eq!((b.apic().acknowledge(), b.apic().acknowledge()), (Some(0x72), None));

    b.apic().mmio_write(EOI, 4, 0);
    b.apic().mmio_write(LVT_TIMER, 4, 0x73);
    b.apic().mmio_write(INITIAL, 4, 500);
    b.clock.jump(SECOND);
    let shelf = lend(&b);
    let image = shelf.images[0].lock().clone().unwrap();
    assert_eq!((image.page[0x38], image.page[0x39], image.page[0x20 + 3]), (0, 0, 1 << 0x13));
    b.apics.take_back();
    assert_eq!((b.apic().acknowledge(), b.apic().acknowledge()), (Some(0x73), None));
}

#[test]
fn messages_and_wires_find_local_apics_where_they_are() {
    let b = Board::new(&[0, 1]);
    let ioapic = Ioapic::new(b.apics.clone());
    b.apics.connect_eoi(Arc::downgrade(&ioapic) as Weak<dyn EoiSink>);
    let pic = with_pic(&b);
    let entry = |pin: u64, value: u64| {
        for (n, half) in [(1, value >> 32), (0, value & 0xffff_ffff)] {
            crate::bus::Mmio::write(&*ioapic, 0, 4, 0x10 + 2 * pin + n);
            crate::bus::Mmio::write(&*ioapic, 0x10, 4, half);
        }
    };
    entry(10, 0x0100_0000_0000_8059);
    entry(11, 0x0000_0000_0000_005a);
    b.apic().enter_virtual_wire();
    let shelf = lend(&b);
    // Messages, as writes: level-triggered, to one processor.
    let level = |vector: u32, destination: u64| (0xfee0_0000 | destination << 12, 0xc000 | vector);
    assert_eq!(*shelf.levels.lock(), [(10, 0xfee0_1000, 0xc059)], "the end of a level is to be told");
    ioapic.set(10, true);
    assert_eq!(shelf.sent.lock().pop(), Some(level(0x59, 1)));
    // Its end is told by the keeper, and it is still up.
    b.cpu[1].0.ended(0x59);
    assert_eq!(shelf.sent.lock().pop(), Some(level(0x59, 1)));
    // Masked, its end still has to be told; elsewhere, that of the other.
    entry(10, 0x0100_0000_0001_8059);
    assert_eq!(shelf.levels.lock().len(), 1);
    entry(10, 0x8060);
    assert_eq!(*shelf.levels.lock(), [(10, 0xfee0_0000, 0xc060)]);
    ioapic.reset(Reset::Board);
    assert!(shelf.levels.lock().is_empty());
    b.apics.msi(0xfee0_100c, 0x0061);
    // Lowest priority, to a logical destination.
    assert_eq!(shelf.sent.lock().pop(), Some((0xfee0_100c, 0x4161)));
    assert!(!b.cpu.iter().any(|(_, pins)| pins.intr()));

    // The 8259A's go to the boot processor, as long as its registers there let them in.
    pic.master_ports().write(1, 1, 0);
    pic.set(4, true);
    assert!(b.pins().intr() && !b.cpu[1].1.intr());
    shelf.images[0].lock().as_mut().unwrap().page[0x35] = 0x1_0700;
    assert_eq!(b.apic().acknowledge(), None);
    shelf.images[0].lock().as_mut().unwrap().page[0x35] = 0x700;
    assert!(b.apic().acknowledge().is_some());
    assert!(!b.pins().intr());

    // What waits for the processors comes back with the registers.
    b.apics.take_back();
    assert_eq!(b.pins().took(), ["nmi"]);
    assert_eq!(b.cpu[1].1.took(), ["sipi 12", "nmi"]);
    b.apics.msi(0xfee0_1000, 0x0041);
    assert_eq!(b.have(0x41), 2);
}

#[test]
fn registers_that_are_lent_are_read_and_written_there() {
    let b = Board::new(&[0, 1]);
    b.apic().mmio_write(SVR, 4, 0x1ff);
    let shelf = lend(&b);
    let there = |n: usize| shelf.images[0].lock().as_ref().unwrap().page[n];
    b.apic().mmio_write(TPR, 4, 0x40);
    assert_eq!(there(8), 0x40);
    b.apic().set_cr8(3);
    assert_eq!((there(8), b.apic().cr8()), (0x30, 3));
    b.apic().mmio_write(ICR_HIGH, 4, 1 << 24);
    b.apic().mmio_write(ICR, 4, 0x4044);
    assert_eq!(shelf.sent.lock().pop(), Some((0xfee0_1000, 0x4044)), "fixed, an edge, to number 1");
    // In service, of level: its end is ours to tell here.
    shelf.images[0].lock().as_mut().unwrap().page[0x12] = 1;
    assert_eq!(b.apic().mmio_read(ISR + 0x20, 4), 1);
    b.apic().mmio_write(EOI, 4, 0);
    assert_eq!(there(0x12), 0);
    // What is saved or reset is here again.
    b.apic().save();
    assert_eq!(b.apic().mmio_read(TPR, 4), 0x30);
    b.apic().mmio_write(TPR, 4, 0);
    assert_eq!(there(8), 0x30, "the keeper has it no more");
    lend(&b);
    b.apic().reset(Reset::Board);
    assert_eq!((b.apic().mmio_read(SVR, 4), b.apic().cr8()), (0xff, 0));
}

#[test]
fn who_is_shown_local_apics_that_are_lent_leaves_them_where_they_are() {
    let b = Board::new(&[0, 1]);
    let shelf = lend(&b);
    let shown = |n: usize| crate::device::Plugged::inspect(&*b.cpu[n].0)["regs"]["tpr"].as_u64();
    let set = |n: usize, tpr: u32| shelf.images[n].lock().as_mut().unwrap().page[8] = tpr;
    set(1, 0x40);
    // Its vCPU may run: the keeper is not asked, and would not answer.
    {
        let _busy = shelf.images[1].lock();
        assert_eq!(shown(1), Some(0));
    }
    let before = shelf.images[1].lock().clone();
    b.apics.look(1);
    assert_eq!((shown(0), shown(1)), (Some(0), Some(0x40)));
    // One shot of the timer, which has begun there, is not begun here, nor anew there.
    shelf.images[1].lock().as_mut().unwrap().page[0x32] = 0x71;
    shelf.images[1].lock().as_mut().unwrap().page[0x38] = 500;
    shelf.images[1].lock().as_mut().unwrap().page[0x39] = 1;
    b.apics.look(1);
    b.clock.advance(10);
    b.apics.look(1);
    b.apics.look(7);
    assert!(b.apics.are_lent() && !b.cpu[1].1.intr());
    let mut after = shelf.images[1].lock().clone().unwrap();
    assert_eq!((after.page[0x38], after.page[0x39]), (500, 1));
    (after.page[0x32], after.page[0x38], after.page[0x39]) = (0x1_0000, 0, 0);
    assert_eq!(Some(after), before);
    assert!(b.fixed(1, 0x41));
    assert_eq!(shelf.sent.lock().len(), 1, "messages go there");
    b.apics.take_back();
    assert!(!b.apics.are_lent());
    set(1, 0x50);
    b.apics.look(1);
    assert_eq!(shown(1), Some(0x40), "the keeper has it no more");
}

#[test]
fn the_other_chips_are_lent_behind_the_last_local_apic_and_come_back_as_they_are_then() {
    let b = Board::new(&[0, 1]);
    let ioapic = Ioapic::new(b.apics.clone());
    b.apics.connect_ioapic(&ioapic);
    let pic = with_pic(&b);
    let router = GsiRouter::new(Some(pic.clone()), ioapic.clone());
    b.apics.connect_eoi(Arc::downgrade(&router) as Weak<dyn EoiSink>);
    b.apic().enter_virtual_wire();
    let entry = |pin: u64, value: u64| {
        for (n, half) in [(1, value >> 32), (0, value & 0xffff_ffff)] {
            crate::bus::Mmio::write(&*ioapic, 0, 4, 0x10 + 2 * pin + n);
            crate::bus::Mmio::write(&*ioapic, 0x10, 4, half);
        }
    };
    entry(10, 0x805a);
    entry(11, 0x005b);
    router.set(10, true);
    router.set(4, true);
    assert!(b.pins().intr());
    let (master, slave) = (pic.master_ports(), pic.slave_ports());
    master.write(1, 1, 0x80);
    slave.write(1, 1, 0xf0);

    let chips: Arc<Chips> = Arc::default();
    let shelf = Arc::new(Shelf {
        images: b.cpu.iter().map(|_| Mutex::default()).collect(),
        chips: Some(chips.clone()),
        ..Default::default()
    });
    assert!(!b.apic().lend(&place(&shelf, 0)));
    assert_eq!(*chips.pic.lock(), None, "no vCPU runs there yet");
    assert!(b.cpu[1].0.lend(&place(&shelf, 1)));
    let [m, s] = chips.pic.lock().unwrap();
    assert_eq!((m.irr, m.lines, m.imr, m.vector), (0x14, 0x10, 0x80, 0x30), "the slave asks, too");
    assert_eq!((s.irr, s.lines, s.imr), (4, 4, 0xf0));
    let there = chips.ioapic.lock().unwrap();
    assert_eq!((there.redirection[10], there.redirection[11], there.levels), (0xc05a, 0x5b, 1 << 10));
    assert!(!b.pins().intr(), "the keeper asks for it from now on");

    // What devices do goes there, and nowhere else.
    shelf.sent.lock().clear();
    router.set(5, true);
    router.set(0, true);
    router.set(10, false);
    let told = std::mem::take(&mut *chips.lines.lock());
    let expected = [
        ("pic", 5, true),
        ("ioapic", 5, true),
        ("pic", 0, true),
        ("ioapic", 2, true),
        ("pic", 10, false),
        ("ioapic", 10, false),
    ];
    assert_eq!(told, expected);
    assert!(shelf.sent.lock().is_empty() && !b.pins().intr());
    assert_eq!((router.edge(0), router.edge(11)), (Edge::Uncounted, Edge::Uncounted));

    // What we are asked for, too.
    chips.pic.lock().as_mut().unwrap()[0].imr = 0xa5;
    assert_eq!(master.read(1, 1), 0xa5);
    slave.write(1, 1, 0x77);
    assert_eq!(chips.pic.lock().unwrap().map(|chip| chip.imr), [0xa5, 0x77]);
    chips.ioapic.lock().as_mut().unwrap().redirection[3] = 0x1_0033;
    crate::bus::Mmio::write(&*ioapic, 0, 4, 0x16);
    assert_eq!(crate::bus::Mmio::read(&*ioapic, 0x10, 4), 0x1_0033);
    assert_eq!(chips.ioapic.lock().unwrap().index, 0x16);
    entry(3, 0x34);
    assert_eq!(chips.ioapic.lock().unwrap().redirection[3], 0x34);
    let shown = crate::device::Plugged::inspect(&*pic);
    assert_eq!(shown["pair"]["master"]["imr"], 0xa5, "{shown}");
    assert!(!shelf.sent.lock().iter().any(|(_, data)| data & 0xff != 0x5a), "the keeper sends");

    // It has served and ended one, and has another up; the 8259A asks again.
    router.set(10, true);
    chips.lines.lock().clear();
    {
        let mut all = chips.ioapic.lock();
        let image = all.as_mut().unwrap();
        (image.redirection[10], image.levels) = (0x805a, 1 << 10);
        let mut pair = chips.pic.lock();
        let pair = pair.as_mut().unwrap();
        (pair[0].isr, pair[0].irr, pair[0].imr) = (0, 0x31, 0xef);
        (pair[1].isr, pair[1].irr, pair[1].imr) = (0x10, 0, 0);
    }
    shelf.sent.lock().clear();
    b.apics.take_back();
    assert_eq!(shelf.sent.lock().iter().map(|(_, data)| data & 0xff).collect::<Vec<_>>(), [0x5a]);
    assert!(b.pins().intr());
    assert_eq!(b.apic().acknowledge(), Some(0x34));
    slave.write(0, 1, 0x0b);
    assert_eq!(slave.read(0, 1), 0x10);
    let saved = Device::save(&*ioapic);
    let again = serde_json::to_value(&saved).unwrap();
    assert_eq!(again["redirection"][10], 0xc05a, "it is being served");
    assert_eq!(again["redirection"][3], 0x34);
    // The inputs are as the devices left them.
    assert_eq!(again["lines"], 1 << 10 | 1 << 5 | 1 << 4 | 1 << 2);
    router.set(5, false);
    assert!(chips.lines.lock().is_empty(), "it has them no more");

    // Each line and each register on the way there and back, without anybody at work there.
    for n in 0..200_u32 {
        for (port, value) in [(1, n * 7), (0, 0x20 | (n % 8)), (0, 0x08 | (n * 3 % 0x80))] {
            [&master, &slave][n as usize % 2].write(port, 1, value & 0xff);
        }
        router.set(n * 5 % 24, n % 3 == 0);
        let before = (crate::device::Plugged::inspect(&*pic), crate::device::Plugged::inspect(&*ioapic));
        for (n, (apic, _)) in b.cpu.iter().enumerate() {
            apic.lend(&place(&shelf, n));
        }
        let lent = (crate::device::Plugged::inspect(&*pic), crate::device::Plugged::inspect(&*ioapic));
        assert_eq!(lent, before, "{n}: as it is seen there");
        b.apics.take_back();
        let after = (crate::device::Plugged::inspect(&*pic), crate::device::Plugged::inspect(&*ioapic));
        assert_eq!(after, before, "{n}");
    }
}
