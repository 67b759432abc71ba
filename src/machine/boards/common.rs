//! The chips that several boards have: interrupt controllers and timers of the AT, CMOS cells.
use super::Wiring;
use crate::config::{Config, RtcBase};
use crate::machine::board::Firmware;
use crate::machine::shadow::{Rom, Shadows};
use mynah_devices::bus::{Irq, PortBus};
use mynah_devices::chipset::{Ferr, IsaDma, Port92};
use mynah_devices::clock::host_unix_nanos;
use mynah_devices::dma::Dma;
use mynah_devices::events::A20Gate;
use mynah_devices::input::i8042::I8042;
use mynah_devices::interrupts::GsiRouter;
use mynah_devices::interrupts::ioapic::SECOND_BASE;
use mynah_devices::interrupts::pic::Pic;
use mynah_devices::storage::floppy::{self, DriveKind, Fdc};
use mynah_devices::timers::hpet::{HPET_BASE, Hpet, HpetWires};
use mynah_devices::timers::pit::Pit;
use mynah_devices::timers::rtc::Rtc;
use mynah_mmu::PhysMemory;
use std::sync::Arc;

/// Wires of an I/O APIC.
const LINES: u32 = 24;

/// The 8259 pair, unless `pic=off`; and the wires that lead to it and to the I/O APIC, of which each may have several
/// holders: the device's own pin, and PCI interrupts that are routed there.
pub fn interrupts(w: &mut Wiring<'_>) {
    let pic = w.on("pic").then(|| Pic::new(Irq::new(w.apic_bus.clone(), 0)));
    if let Some(pic) = &pic {
        w.apic_bus.connect_pic(pic);
        w.ports.map(0x20, 2, pic.master_ports());
        w.ports.map(0xa0, 2, pic.slave_ports());
        w.ports.map(0x4d0, 2, pic.elcr_ports());
    }
    let router = GsiRouter::with_second(pic.clone(), w.ioapic.clone(), w.ioapic2.clone());
    let lines = if w.ioapic2.is_some() { 2 * LINES } else { LINES };
    w.lines = (0..lines).map(|n| Irq::new(router.clone(), n)).collect();
    w.router = Some(router);
    w.plug("main-system-bus", "apic-bus", w.apic_bus.clone());
    w.plug("main-system-bus", "ioapic", w.ioapic.clone());
    if let Some(second) = w.ioapic2.clone() {
        w.memory.map_mmio(SECOND_BASE, 0x1000, second.clone());
        w.plug("main-system-bus", "ioapic2", second);
    }
    if let Some(pic) = pic {
        w.plug("isa.0", "pic", pic);
    }
}

/// What the first MiB shows: RAM, or the end of a firmware image, which is put into the memory below 4 GiB too.
pub fn shadows(memory: &Arc<PhysMemory>, firmware: &Firmware) -> Arc<Shadows> {
    let rom = match firmware {
        Firmware::BuiltIn(_) => None,
        Firmware::Image(image) => Some(Rom::map(memory, image.clone())),
    };
    Shadows::new(memory.clone(), rom)
}

/// The 8254 with the port that gates its channel 2, unless `pit=off`.
pub fn pit(w: &mut Wiring<'_>) -> Option<Arc<Pit>> {
    if !w.on("pit") {
        return None;
    }
    let pit = Pit::new(w.clock.clone(), w.pin(0));
    w.ports.map(0x40, 4, pit.ports());
    w.ports.map(0x61, 1, pit.port61());
    w.apic_bus.tell_taken(&pit);
    w.plug("isa.0", "pit", pit.clone());
    Some(pit)
}

/// The real-time clock, and in its CMOS what firmware looks for there.
pub fn rtc(w: &mut Wiring<'_>) -> Arc<Rtc> {
    let rtc = Rtc::new(w.clock.clone(), w.pin(8), rtc_base(w.cfg));
    w.ports.map(0x70, 2, rtc.ports());
    set_cmos_memory(&rtc, w.memory);
    set_cmos_machine(&rtc, w.cfg);
    w.plug("isa.0", "rtc", rtc.clone());
    rtc
}

/// The HPET, at its usual place.
pub fn hpet(w: &mut Wiring<'_>, pit: Option<Arc<Pit>>, rtc: &Arc<Rtc>) -> Arc<Hpet> {
    let quiet_rtc = rtc.clone();
    let hpet = Hpet::new(
        w.clock.clone(),
        HpetWires {
            pins: w.ioapic.clone(),
            irq0: w.pin(0),
            irq8: w.pin(8),
            legacy_route: Box::new(move |on| {
                if let Some(pit) = &pit {
                    pit.set_irq_enabled(!on);
                }
                quiet_rtc.set_irq_enabled(!on);
            }),
        },
    );
    w.apic_bus.tell_taken(&hpet);
    w.memory.map_mmio(HPET_BASE, 0x400, hpet.clone());
    hpet
}

/// What of the AT is at the keyboard's side.
pub struct Legacy {
    /// Keyboard and mouse.
    pub i8042: Arc<I8042>,
    /// What the boot processor's error wires lead to.
    pub ferr: Arc<Ferr>,
}

/// The keyboard controller, port 92h with the A20 gate of both, and the wires of the x87.
pub fn legacy(w: &mut Wiring<'_>) -> Legacy {
    let a20 = A20Gate::new(true, w.power.clone());
    let port92 = Port92::new(a20.clone(), w.power.clone());
    port92.attach(w.ports);
    let i8042 = I8042::new(true, w.pin(1), w.pin(12), a20.clone(), w.power.clone());
    i8042.attach(w.ports);
    i8042.follow(&w.clock);
    let ferr = Ferr::new(w.pin(13));
    ferr.attach(w.ports);
    w.plug("isa.0", "a20", a20);
    w.plug("isa.0", "port92", port92);
    w.plug("isa.0", "i8042", i8042.clone());
    w.plug("isa.0", "ferr", ferr.clone());
    Legacy { i8042, ferr }
}

/// What firmware does to the 8259s: PCI interrupts and the SCI are level-triggered.
pub fn level_triggered(ports: &PortBus) {
    for irq in [9, 10, 11] {
        let (port, bit) = (0x4d0 + irq / 8, irq % 8);
        let old = ports.read(port, 1);
        ports.write(port, 1, old | 1 << bit);
    }
}

/// Tells a firmware image, in CMOS, that the machine wakes from S3.
pub fn tell_of_wake(rtc: &Rtc) {
    const SHUTDOWN_STATUS: u8 = 0x0f;
    const RESUME: u8 = 0xfe;
    rtc.set_cmos(SHUTDOWN_STATUS, RESUME);
}

/// The 8237A pair, and the floppy controller, whose drives are plugged in later.
pub fn floppies(w: &mut Wiring<'_>) -> (Arc<IsaDma>, Arc<Fdc>) {
    let dma = IsaDma::new(Dma::always(w.memory.clone()));
    dma.attach(w.ports);
    let fdc = Fdc::new(dma.clone(), w.pin(floppy::IRQ));
    fdc.attach(w.ports);
    (dma, fdc)
}

/// What firmware finds in CMOS of the floppy drives (10h: a type for each; 14h: whether there are any, and how many).
pub fn set_cmos_floppies(ports: &PortBus, fdc: &Fdc) {
    let kinds = fdc.kinds();
    let kind = |n: usize| kinds[n].map_or(0, DriveKind::cmos);
    let count = kinds.iter().flatten().count() as u8;
    let set = |at: u32, keep: u32, value: u8| {
        ports.write(0x70, 1, at);
        let old = ports.read(0x71, 1);
        ports.write(0x71, 1, old & keep | u32::from(value));
    };
    set(0x10, 0, kind(0) << 4 | kind(1));
    set(0x14, !0xc1, u8::from(count > 0) | count.saturating_sub(1) << 6);
}

/// The CMOS cells with the boot order, by `-boot`'s letters: three nibbles, floppy 1, disk 2, CD-ROM 3, network 4; and
/// that floppies are booted without a look at their signature.
pub fn boot_order_cells(letters: &str) -> [(u8, u8); 2] {
    let letters = if letters.is_empty() { "cad" } else { letters };
    let mut nibbles = letters.chars().map(|c| match c {
        'a' | 'b' => 1,
        'c' => 2,
        'd' => 3,
        'n'..='p' => 4,
        _ => 0,
    });
    let mut next = || nibbles.next().unwrap_or(0u8);
    let (first, second, third) = (next(), next(), next());
    [(0x3d, first | second << 4), (0x38, third << 4 | 1)]
}

/// A diagnostic port that programs write to for a short delay.
pub struct Delay;

impl mynah_devices::bus::PortIo for Delay {
    fn name(&self) -> &'static str {
        "delay"
    }
    fn read(&self, _: u16, _: u8) -> u32 {
        0xff
    }
    fn write(&self, _: u16, _: u8, _: u32) {}
}

fn rtc_base(cfg: &Config) -> u64 {
    let now = host_unix_nanos();
    match cfg.rtc.base {
        RtcBase::Utc => now,
        RtcBase::LocalTime => now.wrapping_add_signed(local_offset() * 1_000_000_000),
        RtcBase::At(seconds) => u64::try_from(seconds).unwrap_or(0) * 1_000_000_000,
    }
}

/// Seconds that local time is ahead of UTC.
#[cfg(windows)]
fn local_offset() -> i64 {
    use windows_sys::Win32::System::Time as time;
    const DAYLIGHT: u32 = 2;
    let mut zone = time::TIME_ZONE_INFORMATION::default();
    // SAFETY: the structure is writable.
    let season = unsafe { time::GetTimeZoneInformation(&raw mut zone) };
    let more = if season == DAYLIGHT { zone.DaylightBias } else { zone.StandardBias };
    // Windows counts the minutes that UTC is ahead.
    -60 * (i64::from(zone.Bias) + i64::from(more))
}

/// Seconds that local time is ahead of UTC.
#[cfg(unix)]
fn local_offset() -> i64 {
    // SAFETY: `time` with a null pointer only returns the time; `localtime_r` fills the zeroed structure that it is
    // given.
    unsafe {
        let now = libc::time(std::ptr::null_mut());
        let mut tm: libc::tm = std::mem::zeroed();
        if libc::localtime_r(&now, &mut tm).is_null() { 0 } else { tm.tm_gmtoff }
    }
}

/// The CMOS cells by which a board tells its firmware what it has: no drives, an x87, a mouse port, processors, boot
/// order.
fn set_cmos_machine(rtc: &Rtc, cfg: &Config) {
    const X87_AND_MOUSE: u8 = 0x06;
    rtc.set_cmos(0x14, X87_AND_MOUSE);
    rtc.set_cmos(0x5f, (cfg.smp.cpus - 1) as u8);
    let first = if cfg.boot.once.is_empty() { &cfg.boot.order } else { &cfg.boot.once };
    boot_order_cells(first).into_iter().for_each(|(cell, value)| rtc.set_cmos(cell, value));
}

/// The CMOS cells in which firmware leaves the size of RAM.
fn set_cmos_memory(rtc: &Rtc, memory: &PhysMemory) {
    let set16 = |at: u8, v: u64| {
        rtc.set_cmos(at, v as u8);
        rtc.set_cmos(at + 1, (v >> 8) as u8);
    };
    let below = memory.below_4g();
    set16(0x15, 640);
    let extended = (below.saturating_sub(1 << 20) / 1024).min(0xffff);
    set16(0x17, extended);
    set16(0x30, extended);
    set16(0x34, (below.saturating_sub(16 << 20) / 65536).min(0xffff));
    let above = memory.above_4g() / 65536;
    rtc.set_cmos(0x5b, above as u8);
    rtc.set_cmos(0x5c, (above >> 8) as u8);
    rtc.set_cmos(0x5d, (above >> 16) as u8);
}
