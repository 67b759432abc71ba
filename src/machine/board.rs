//! The PC's board: which chips there are, where they are mapped, how they are wired.
//!
//! ```text
//!   vCPU --ports--> PortBus -----> 8259A pair, 8254, MC146818, 8042, 16550A, PM registers, CF8/CFC, fw_cfg, ...
//!        --MMIO---> PhysMemory --> I/O APIC, HPET (and RAM)
//!        --APIC---> LocalApic <--- messages --- I/O APIC <--- GsiRouter <--- interrupt pins of all devices
//! ```
use super::bios::{BiosCalls, BiosDevice};
use super::power::Power;
use super::shadow::{Rom, Shadows};
use super::vcpu::{Pins, VcpuBoard, VcpuHandle};
use crate::config::{Config, RtcBase};
use anyhow::Context;
use mynah_cpu::Events;
use mynah_devices::bus::{Irq, PortBus};
use mynah_devices::chipset::i440fx::PAM0;
use mynah_devices::chipset::{Ferr, I440fx, Piix3, Piix4Pm, Port92, i440fx, piix3, piix4_pm};
use mynah_devices::clock::{Clock, HostClock, host_unix_nanos};
use mynah_devices::device::{Plugged, Registry, Reset, RestoreError, Saved};
use mynah_devices::events::{A20Gate, WakeCause};
use mynah_devices::input::i8042::I8042;
use mynah_devices::interrupts::GsiRouter;
use mynah_devices::interrupts::ioapic::Ioapic;
use mynah_devices::interrupts::lapic::{LocalApic, LocalApics, ReadTsc};
use mynah_devices::interrupts::pic::Pic;
use mynah_devices::pci::{ConfigPorts, PciBus};
use mynah_devices::timers::hpet::{HPET_BASE, Hpet, HpetWires};
use mynah_devices::timers::pit::Pit;
use mynah_devices::timers::pm_timer::pm_timer_value;
use mynah_devices::timers::rtc::Rtc;
use mynah_firmware::bios::Bios;
use mynah_mmu::PhysMemory;
use parking_lot::Mutex;
use std::sync::Arc;

/// The rate of the vCPUs' time-stamp counters: guest nanoseconds.
pub const TSC_HZ: u64 = 1_000_000_000;
/// What runs first.
#[derive(Clone)]
pub enum Firmware {
    /// The built-in BIOS: the board starts as firmware leaves it.
    BuiltIn(Arc<Mutex<Bios>>),
    /// An image, at the reset vector: the board starts as after power-on.
    Image(Arc<Vec<u8>>),
}

/// Where the I/O APIC stands.
const IOAPIC_BASE: u64 = 0xfec0_0000;

/// The chips of a PC, but for its processors.
pub struct Board {
    /// Guest time.
    pub clock: Arc<HostClock>,
    /// All that is plugged in.
    pub devices: Registry,
    /// I/O ports.
    pub ports: Arc<PortBus>,
    /// Physical memory.
    pub memory: Arc<PhysMemory>,
    /// The local APICs, one for each vCPU.
    pub apics: Vec<Arc<LocalApic>>,
    /// What sends messages to them.
    pub apic_bus: Arc<LocalApics>,
    /// ISA interrupts 0-15: every device takes its pin from here.
    pub isa: Vec<Irq>,
    /// What the interrupt wires lead to.
    pub router: Arc<GsiRouter>,
    /// PCI bus 0.
    pub pci: Arc<PciBus>,
    /// The ISA bridge, with PCI interrupt routing.
    pub piix3: Arc<Piix3>,
    /// ACPI power management.
    pub pm: Arc<Piix4Pm>,
    /// The keyboard controller.
    pub i8042: Arc<I8042>,
    /// The real-time clock.
    pub rtc: Arc<Rtc>,
    ferr: Arc<Ferr>,
    tsc: ReadTsc,
    firmware: Firmware,
    events: Vec<Arc<Events>>,
}

impl Board {
    /// Builds the board of `cfg` around its memory and firmware, and plugs in a local APIC for each of `vcpus`.
    pub fn new(
        cfg: &Config,
        memory: Arc<PhysMemory>,
        firmware: Firmware,
        power: &Arc<Power>,
        vcpus: &[VcpuHandle],
    ) -> anyhow::Result<Self> {
        let clock = Arc::new(HostClock::new().context("cannot start the timer thread")?);
        let dyn_clock: Arc<dyn Clock> = clock.clone();
        let ports = Arc::new(PortBus::new());
        let tsc: ReadTsc = {
            let clock = clock.clone();
            Arc::new(move || clock.now())
        };

        // Interrupt controllers.
        let apic_bus = LocalApics::new(dyn_clock.clone(), TSC_HZ);
        let apics: Vec<_> = vcpus
            .iter()
            .enumerate()
            .map(|(n, v)| apic_bus.add(v.apic_id, n == 0, tsc.clone(), Arc::new(Pins(v.events.clone()))))
            .collect();
        let pic = Pic::new(Irq::new(apic_bus.clone(), 0));
        apic_bus.connect_pic(&pic);
        let ioapic = Ioapic::new(apic_bus.clone());
        let eoi: Arc<dyn mynah_devices::interrupts::EoiSink> = ioapic.clone();
        apic_bus.connect_eoi(Arc::downgrade(&eoi));
        let router = GsiRouter::new(pic.clone(), ioapic.clone());
        ports.map(0x20, 2, pic.master_ports());
        ports.map(0xa0, 2, pic.slave_ports());
        ports.map(0x4d0, 2, pic.elcr_ports());
        memory.map_mmio(IOAPIC_BASE, 0x1000, ioapic.clone());
        // Every ISA line may have several holders: the device's own pin, and PCI interrupts routed there.
        let mut isa: Vec<Irq> = (0..16).map(|n| Irq::new(router.clone(), n)).collect();
        let mut pin = |n: usize| isa[n].share();

        // Timers.
        let pit = Pit::new(dyn_clock.clone(), pin(0));
        ports.map(0x40, 4, pit.ports());
        ports.map(0x61, 1, pit.port61());
        let rtc = Rtc::new(dyn_clock.clone(), pin(8), rtc_base(cfg));
        ports.map(0x70, 2, rtc.ports());
        set_cmos_memory(&rtc, &memory);
        set_cmos_machine(&rtc, cfg);
        let hpet = cfg.machine.hpet.then(|| {
            let (quiet_pit, quiet_rtc) = (pit.clone(), rtc.clone());
            Hpet::new(
                dyn_clock.clone(),
                HpetWires {
                    pins: ioapic.clone(),
                    irq0: pin(0),
                    irq8: pin(8),
                    legacy_route: Box::new(move |on| {
                        quiet_pit.set_irq_enabled(!on);
                        quiet_rtc.set_irq_enabled(!on);
                    }),
                },
            )
        });
        if let Some(h) = &hpet {
            memory.map_mmio(HPET_BASE, 0x400, h.clone());
        }

        // Chipset.
        let pci = PciBus::new(ports.clone(), memory.clone());
        let piix3 = Piix3::new(std::array::from_fn(&mut pin), power.clone());
        let pm_clock = clock.clone();
        let pm = Piix4Pm::new(pin(9), move || pm_timer_value(pm_clock.now()), ports.clone(), power.clone());
        pm.follow(&dyn_clock);
        let alarm = pm.clone();
        rtc.on_alarm(move || alarm.rtc_alarm());
        let wires = piix3.clone();
        pci.connect(apic_bus.clone(), Box::new(move |devfn, pin| wires.intx(devfn, pin)));
        let bridge = host_bridge(&memory, &firmware);
        pci.attach(i440fx::DEVFN, bridge.clone());
        pci.attach(piix3::DEVFN, piix3.clone());
        pci.attach(piix4_pm::DEVFN, pm.clone());
        let config_ports = ConfigPorts::new(pci.clone(), piix3.clone());
        config_ports.attach(&ports);
        let a20 = A20Gate::new(true, power.clone());
        let port92 = Port92::new(a20.clone(), power.clone());
        port92.attach(&ports);
        let i8042 = I8042::new(true, pin(1), pin(12), a20.clone(), power.clone());
        i8042.attach(&ports);
        let ferr = Ferr::new(pin(13));
        ferr.attach(&ports);
        // A diagnostic port that programs write to for a short delay.
        ports.map(0x80, 1, Arc::new(Delay));

        // What is reset last comes first.
        let devices = Registry::default();
        for (n, apic) in apics.iter().enumerate() {
            devices.plug("cpu", format!("apic{n}"), apic.clone());
        }
        let on_board: [(&str, &str, Arc<dyn Plugged>); 14] = [
            ("main-system-bus", "apic-bus", apic_bus.clone()),
            ("main-system-bus", "ioapic", ioapic),
            ("isa.0", "pic", pic),
            ("isa.0", "pit", pit),
            ("isa.0", "rtc", rtc.clone()),
            ("main-system-bus", "pcihost", config_ports),
            ("isa.0", "a20", a20),
            ("isa.0", "port92", port92),
            ("isa.0", "i8042", i8042.clone()),
            ("isa.0", "ferr", ferr.clone()),
            ("pci.0", "i440fx", bridge),
            ("pci.0", "piix3", piix3.clone()),
            ("pci.0", "piix4-pm", pm.clone()),
            ("main-system-bus", "bios", Arc::new(BiosDevice::of(&firmware))),
        ];
        for (bus, name, device) in on_board {
            devices.plug(bus, name, device);
        }
        if let Some(hpet) = hpet {
            devices.plug("main-system-bus", "hpet", hpet);
        }

        let board = Self {
            clock,
            devices,
            ports,
            memory,
            apics,
            apic_bus,
            isa,
            router,
            pci,
            piix3,
            pm,
            i8042,
            rtc,
            ferr,
            tsc,
            firmware,
            events: vcpus.iter().map(|v| v.events.clone()).collect(),
        };
        board.like_firmware();
        Ok(board)
    }

    /// The board as vCPU `n` sees it.
    pub fn view(&self, n: usize) -> VcpuBoard {
        let bios = match &self.firmware {
            Firmware::BuiltIn(bios) => {
                let events = self.events[n].clone();
                let calls = BiosCalls::new(bios.clone(), events, self.ports.clone(), self.clock.clone());
                Some(Arc::new(calls))
            }
            Firmware::Image(_) => None,
        };
        VcpuBoard {
            ports: self.ports.clone(),
            apic: self.apics[n].clone(),
            tsc: self.tsc.clone(),
            bios,
            // Only the boot processor's error wires are connected.
            ferr: (n == 0).then(|| self.ferr.clone()),
        }
    }

    /// A pin on ISA interrupt `n`.
    pub fn isa_pin(&mut self, n: usize) -> Irq {
        self.isa[n].share()
    }

    /// What firmware leaves behind, where none will run: all of the first MiB RAM, power management enabled, PCI interrupts routed, the boot
    /// processor's APIC in virtual-wire mode.
    fn like_firmware(&self) {
        use mynah_devices::pci::PciDevice;
        if matches!(self.firmware, Firmware::Image(_)) {
            return;
        }
        for i in 0..7 {
            self.pci.config_write(0, i440fx::DEVFN, PAM0 + i, 1, 0x33);
        }
        self.pm.enable_at(piix4_pm::PM_BASE);
        for (n, irq) in mynah_firmware::tables::PIRQ_ROUTES.into_iter().enumerate() {
            self.piix3.config_write(0x60 + n as u8, 1, u32::from(irq));
        }
        // PCI interrupts and the SCI are level-triggered.
        for irq in [9, 10, 11] {
            let (port, bit) = (0x4d0 + irq / 8, irq % 8);
            let old = self.ports.read(port, 1);
            self.ports.write(port, 1, old | 1 << bit);
        }
        self.apics[0].enter_virtual_wire();
    }

    /// RESET: every chip as after power-on, then as firmware leaves it.
    pub fn reset(&self) {
        self.reset_devices(Reset::Board);
        self.like_firmware();
    }

    /// The machine wakes from S3 (ACPI 6.5, 16.3.2): every chip as after power-on, then as firmware leaves it, but RAM and the host bridge, which has
    /// kept it and shows it below 1 MiB as before (SeaBIOS finds itself there, and that it has run). A firmware image is told by CMOS 0Fh, which
    /// the board sets; the built-in one goes back to ACPI mode if that was on.
    pub fn wake(&self, cause: WakeCause) {
        const SHUTDOWN_STATUS: u8 = 0x0f;
        const RESUME: u8 = 0xfe;
        let acpi_mode = self.pm.acpi_mode();
        self.reset_devices(Reset::Wake);
        self.pm.wake(cause);
        self.like_firmware();
        match self.firmware {
            Firmware::Image(_) => self.rtc.set_cmos(SHUTDOWN_STATUS, RESUME),
            Firmware::BuiltIn(_) if acpi_mode => {
                self.ports.write(piix4_pm::SMI_COMMAND, 1, piix4_pm::ACPI_ENABLE.into());
            }
            Firmware::BuiltIn(_) => {}
        }
    }

    fn reset_devices(&self, why: Reset) {
        self.devices.reset(why);
        self.pci.follow();
    }

    /// Takes on what was saved of a board of the same make. The clock stands still at the time of then.
    ///
    /// # Errors
    /// It is of another board, or damaged. This one is then to be dropped.
    pub fn restore(&self, saved: &[Saved]) -> Result<(), RestoreError> {
        self.devices.restore(saved)?;
        self.pci.follow();
        Ok(())
    }
}

impl Drop for Board {
    /// Buses hold devices, some of which hold the bus: nobody would let go first.
    fn drop(&mut self) {
        self.ports.clear();
        self.memory.unmap_devices();
    }
}

/// The i440FX, and what its PAM registers change.
fn host_bridge(memory: &Arc<PhysMemory>, firmware: &Firmware) -> Arc<I440fx> {
    let rom = match firmware {
        Firmware::BuiltIn(_) => None,
        Firmware::Image(image) => Some(Rom::map(memory, image.clone())),
    };
    let shadows = Shadows::new(memory.clone(), rom, I440fx::new(|_| {}).shadows());
    Arc::new(I440fx::new(move |region| shadows.show(region)))
}

struct Delay;
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

#[cfg(test)]
mod tests {
    use super::*;
    use mynah_mmu::GuestRam;

    #[test]
    fn a_machine_that_is_dropped_leaves_nothing_behind() {
        for firmware in [
            Firmware::BuiltIn(Arc::new(Mutex::new(Bios::new(Default::default())))),
            Firmware::Image(Arc::new(vec![0; 0x1_0000])),
        ] {
            let memory = PhysMemory::new(GuestRam::new(1 << 20).unwrap(), 1 << 20);
            let cfg = Config::default();
            let power = Arc::new(Power::new(cfg.on_reboot, cfg.on_shutdown, cfg.on_panic, false));
            let board = Board::new(&cfg, memory, firmware, &power, &[VcpuHandle::default()]).unwrap();
            power.connect_clock(board.clock.clone());
            power.connect_button(&board.pm);
            let (clock, memory) = (Arc::downgrade(&board.clock), Arc::downgrade(&board.memory));
            let view = board.view(0);
            drop((board, power));
            drop(view);
            assert_eq!((clock.strong_count(), memory.strong_count()), (0, 0));
        }
    }
}
