//! The chips that several boards have: interrupt controllers and timers of the AT, CMOS cells.
use super::Wiring;
use crate::config::{Config, RtcBase};
use mynah_devices::bus::Irq;
use mynah_devices::clock::host_unix_nanos;
use mynah_devices::interrupts::GsiRouter;
use mynah_devices::interrupts::pic::Pic;
use mynah_devices::timers::pit::Pit;
use mynah_devices::timers::rtc::Rtc;
use mynah_mmu::PhysMemory;
use std::sync::Arc;

/// Wires of the I/O APIC.
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
    let router = GsiRouter::new(pic.clone(), w.ioapic.clone());
    w.lines = (0..LINES).map(|n| Irq::new(router.clone(), n)).collect();
    w.router = Some(router);
    w.plug("main-system-bus", "apic-bus", w.apic_bus.clone());
    w.plug("main-system-bus", "ioapic", w.ioapic.clone());
    if let Some(pic) = pic {
        w.plug("isa.0", "pic", pic);
    }
}

/// The 8254 with the port that gates its channel 2, unless `pit=off`.
pub fn pit(w: &mut Wiring<'_>) -> Option<Arc<Pit>> {
    if !w.on("pit") {
        return None;
    }
    let pit = Pit::new(w.clock.clone(), w.pin(0));
    w.ports.map(0x40, 4, pit.ports());
    w.ports.map(0x61, 1, pit.port61());
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
fn local_offset() -> i64 {
    // SAFETY: `time` with a null pointer only returns the time; `localtime_r` fills the zeroed structure that it is given.
    unsafe {
        let now = libc::time(std::ptr::null_mut());
        let mut tm: libc::tm = std::mem::zeroed();
        if libc::localtime_r(&now, &mut tm).is_null() { 0 } else { tm.tm_gmtoff }
    }
}

/// The CMOS cells by which a board tells its firmware what it has: no drives, an x87, a mouse port, processors, boot order.
fn set_cmos_machine(rtc: &Rtc, cfg: &Config) {
    const X87_AND_MOUSE: u8 = 0x06;
    rtc.set_cmos(0x14, X87_AND_MOUSE);
    rtc.set_cmos(0x5f, (cfg.smp.cpus - 1) as u8);
    // Three nibbles: floppy 1, disk 2, CD-ROM 3, network 4.
    let order = if cfg.boot.once.is_empty() { &cfg.boot.order } else { &cfg.boot.once };
    let order = if order.is_empty() { "cad" } else { order };
    let mut nibbles = order.chars().map(|c| match c {
        'a' | 'b' => 1,
        'c' => 2,
        'd' => 3,
        'n'..='p' => 4,
        _ => 0,
    });
    let mut next = || nibbles.next().unwrap_or(0u8);
    let (first, second, third) = (next(), next(), next());
    rtc.set_cmos(0x3d, first | second << 4);
    // Bit 0: floppies are booted without a look at their signature.
    rtc.set_cmos(0x38, third << 4 | 1);
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
