//! A machine's board: what all boards have, and around it the chips of one of them ([`super::boards`]).
//!
//! ```text
//!   vCPU --ports--> PortBus -----> 8259A pair, 8254, MC146818, serial ports, fw_cfg, ...
//!        --MMIO---> PhysMemory --> I/O APIC, HPET, BARs (and RAM)
//!        --APIC---> LocalApic <--- messages --- I/O APIC <--- GsiRouter <--- interrupt pins of all devices
//! ```
use super::bios::{BiosCalls, BiosDevice};
use super::boards::{Chips, Description, Wiring};
use super::drives::Drives;
use super::engines::TSC_HZ;
use super::handoff::Handoffs;
use super::nets::Nets;
use super::power::Power;
use super::vcpu::{Pins, VcpuBoard, VcpuHandle};
use crate::config::Config;
use anyhow::Context;
use mynah_cpu::Events;
use mynah_devices::bus::{Irq, PortBus};
use mynah_devices::clock::{Clock, HostClock, SECOND};
use mynah_devices::device::{Registry, Reset, RestoreError, Saved};
use mynah_devices::events::WakeCause;
use mynah_devices::interrupts::ioapic::Ioapic;
use mynah_devices::interrupts::lapic::{LocalApic, LocalApics, ReadTsc};
use mynah_devices::interrupts::{EoiSink, GsiRouter};
use mynah_devices::misc::entropy::{Asker, Entropy};
use mynah_devices::misc::vmgenid::VmGenId;
use mynah_devices::storage::pflash::Pflash;
use mynah_devices::virtio::balloon::Balloon;
use mynah_devices::virtio::mmio::MmioSlot;
use mynah_firmware::bios::Bios;
use mynah_mmu::PhysMemory;
use parking_lot::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

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

/// A board, but for its processors.
pub struct Board {
    /// What it is.
    pub what: &'static Description,
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
    /// The bus between them.
    pub apic_bus: Arc<LocalApics>,
    /// What the interrupt wires lead to.
    pub router: Arc<GsiRouter>,
    /// What this board has that others ask for.
    pub chips: Chips,
    /// What devices have their disks from.
    pub drives: Drives,
    /// What is behind its network cards.
    pub nets: Nets,
    /// Hand-overs to other engines that are to come.
    pub handoffs: Option<Arc<Handoffs>>,
    /// Where random numbers come from.
    pub entropy: Arc<Entropy>,
    /// What has a `bootindex=`, in that order, by the paths that firmware knows.
    pub boot_paths: Vec<String>,
    /// Flash chips: what a guest has programmed is to be in their images when the machine ends.
    pub flash: Vec<Arc<Pflash>>,
    /// Interrupt lines: every device takes its pin from here.
    lines: Mutex<Vec<Irq>>,
    /// What the monitor's `balloon` is for, if there is one.
    pub balloon: OnceLock<Arc<Balloon>>,
    /// The generation id, if there is one: firmware places it.
    pub vmgenid: OnceLock<Arc<VmGenId>>,
    tsc: ReadTsc,
    /// How far each vCPU's counter is ahead.
    tsc_offsets: Vec<Arc<AtomicU64>>,
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
        let tsc_hz = cfg.tsc_hz.unwrap_or(TSC_HZ);
        let what = cfg.machine.board;
        let clock = Arc::new(HostClock::new().context("cannot start the timer thread")?);
        let dyn_clock: Arc<dyn Clock> = clock.clone();
        let ports = Arc::new(PortBus::new());
        let tsc: ReadTsc = {
            let clock = clock.clone();
            match tsc_hz {
                SECOND => Arc::new(move || clock.now()),
                hz => {
                    Arc::new(move || (u128::from(clock.now()) * u128::from(hz) / u128::from(SECOND)) as u64)
                }
            }
        };

        let tsc_offsets: Vec<Arc<AtomicU64>> = vcpus.iter().map(|_| Arc::default()).collect();
        let apic_bus = LocalApics::new(dyn_clock.clone(), tsc_hz);
        let apics: Vec<_> = vcpus
            .iter()
            .enumerate()
            .map(|(n, v)| {
                let (tsc, offset) = (tsc.clone(), tsc_offsets[n].clone());
                let read: ReadTsc = Arc::new(move || tsc().wrapping_add(offset.load(Ordering::SeqCst)));
                apic_bus.add(v.apic_id, n == 0, read, Arc::new(Pins(v.events.clone())))
            })
            .collect();
        let ioapic = Ioapic::new(apic_bus.clone());
        apic_bus.connect_ioapic(&ioapic);
        memory.map_mmio(IOAPIC_BASE, 0x1000, ioapic.clone());

        let mut wiring = Wiring {
            cfg,
            firmware: &firmware,
            power,
            clock: dyn_clock,
            ports: &ports,
            memory: &memory,
            apic_bus: &apic_bus,
            ioapic: &ioapic,
            ioapic2: (what.has_second_ioapic)(&cfg.machine).then(|| Ioapic::second(apic_bus.clone())),
            router: None,
            lines: Vec::new(),
            plugged: Vec::new(),
        };
        let chips = (what.chips)(&mut wiring);
        let Wiring { router, lines, plugged, .. } = wiring;
        let router = router.context("the board has no interrupt lines")?;
        let eoi: Arc<dyn EoiSink> = router.clone();
        apic_bus.connect_eoi(Arc::downgrade(&eoi));

        // What is reset last comes first.
        let devices = Registry::default();
        for (n, apic) in apics.iter().enumerate() {
            devices.plug("cpu", format!("apic{n}"), apic.clone());
        }
        for (bus, name, device) in plugged {
            devices.plug(bus, name, device);
        }
        devices.plug("main-system-bus", "bios", Arc::new(BiosDevice::of(&firmware)));
        let entropy = Entropy::new(cfg.seed, vcpus.len());
        devices.plug("main-system-bus", "entropy", entropy.clone());

        let board = Self {
            what,
            clock,
            devices,
            ports,
            memory,
            apics,
            apic_bus,
            router,
            chips,
            drives: Drives::default(),
            nets: Nets::default(),
            handoffs: None,
            entropy,
            boot_paths: Vec::new(),
            flash: Vec::new(),
            lines: Mutex::new(lines),
            balloon: OnceLock::new(),
            vmgenid: OnceLock::new(),
            tsc,
            tsc_offsets,
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
            tsc_offset: self.tsc_offsets[n].clone(),
            entropy: (self.entropy.clone(), Asker::Vcpu(n)),
            bios,
            // Only the boot processor's error wires are connected.
            ferr: self.chips.ferr.clone().filter(|_| n == 0),
            handoffs: self.handoffs.clone(),
        }
    }

    /// A pin on interrupt line `n`: ISA's 0 to 15, and the I/O APIC's others.
    pub fn pin(&self, n: usize) -> Irq {
        self.lines.lock()[n].share()
    }

    /// The slots for virtio devices without PCI.
    pub fn mmio_slots(&self, cfg: &Config) -> Vec<MmioSlot> {
        let slot = |(number, at, gsi)| {
            let irq = self.pin(gsi as usize);
            MmioSlot { number, at, gsi, irq, memory: self.memory.clone() }
        };
        (self.what.mmio_slots)(&cfg.machine).into_iter().map(slot).collect()
    }

    /// Whether the firmware is the built-in one.
    pub fn built_in(&self) -> bool {
        matches!(self.firmware, Firmware::BuiltIn(_))
    }

    /// What firmware leaves behind, where none will run: chipset set up, the boot processor's APIC in virtual-wire
    /// mode.
    pub fn like_firmware(&self) {
        if self.built_in() {
            self.chips.chipset.like_firmware(self);
            self.apics[0].enter_virtual_wire();
        }
    }

    /// RESET: every chip as after power-on, then as firmware leaves it.
    pub fn reset(&self) {
        self.reset_devices(Reset::Board);
        self.like_firmware();
    }

    /// The machine wakes from S3 (ACPI 6.5, 16.3.2): every chip as after power-on, then as firmware leaves it, but
    /// RAM and the host bridge, which has kept it and shows it below 1 MiB as before (SeaBIOS finds itself there, and
    /// that it has run).
    pub fn wake(&self, cause: WakeCause) {
        let acpi_mode = self.chips.chipset.acpi_mode();
        self.reset_devices(Reset::Wake);
        self.chips.chipset.woken(self, cause, acpi_mode);
    }

    fn reset_devices(&self, why: Reset) {
        self.devices.reset(why);
        self.chips.chipset.follow();
    }

    /// Takes on what was saved of a board of the same make. The clock stands still at the time of then.
    ///
    /// # Errors
    /// It is of another board, or damaged. This one is then to be dropped.
    pub fn restore(&self, saved: &[Saved]) -> Result<(), RestoreError> {
        self.devices.restore(saved)?;
        self.chips.chipset.follow();
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
            power.connect_button(&board.chips.button);
            let (clock, memory) = (Arc::downgrade(&board.clock), Arc::downgrade(&board.memory));
            let view = board.view(0);
            drop((board, power));
            drop(view);
            assert_eq!((clock.strong_count(), memory.strong_count()), (0, 0));
        }
    }
}
