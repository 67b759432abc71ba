//! Random accesses to every chip of the board, of every width and to every port and register that it has, while
//! time goes on in steps and leaps: none may panic (tests have overflow checks, and so has the released program),
//! and none may hang. A board that is restored from what was saved of another in the middle of that goes on as that
//! one does; one that is reset is as a new one.
//!
//! MYNAH_HAMMER=N makes N accesses for each seed (100,000), MYNAH_HAMMER_SEED=N takes one seed. What fails names
//! its seed.
mod common;

use common::NoPins;
use mynah_block::{Drive, Image, Memory, Options};
use mynah_devices::bus::{Irq, PortBus};
use mynah_devices::chardev::Null;
use mynah_devices::chipset::{
    Ferr, I440fx, Ich9Lpc, Ich9Smbus, IsaDma, Piix3, Piix4Pm, Port92, Q35Mch, i440fx, piix3, piix4_pm,
};
use mynah_devices::clock::{Clock, ManualClock, SECOND};
use mynah_devices::device::{Plugged, Registry, Reset};
use mynah_devices::display::Screen;
use mynah_devices::dma::Dma;
use mynah_devices::events::{A20Gate, MachineEvents, NoEvents};
use mynah_devices::input::i8042::I8042;
use mynah_devices::input::ps2::{Key, MouseButtons};
use mynah_devices::interrupts::GsiRouter;
use mynah_devices::interrupts::ioapic::{IOAPIC_BASE, Ioapic};
use mynah_devices::interrupts::lapic::{LocalApic, LocalApics, Redeliver};
use mynah_devices::interrupts::pic::Pic;
use mynah_devices::kind::{self, Site, Value, Values};
use mynah_devices::misc::entropy::Entropy;
use mynah_devices::misc::fw_cfg::FwCfg;
use mynah_devices::pci::{BarKind, ConfigPorts, DevFn, MsiSink, PciBus};
use mynah_devices::serial::{COM, Serial};
use mynah_devices::storage::floppy::{self, Fdc};
use mynah_devices::storage::ide::{self, Cable, Piix3Ide};
use mynah_devices::storage::pflash::Pflash;
use mynah_devices::timers::hpet::{HPET_BASE, Hpet, HpetWires};
use mynah_devices::timers::pit::Pit;
use mynah_devices::timers::pm_timer::pm_timer_value;
use mynah_devices::timers::rtc::Rtc;
use mynah_devices::virtio::mmio::MmioSlot;
use mynah_mmu::{GuestRam, PhysMemory};
use mynah_net::{Backend, Frame, Nic, offload};
use std::cell::{Cell, RefCell};
use std::io::IoSlice;
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }
    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
    /// As often below a small power of two as below a large one.
    fn below_power(&mut self, most: u64) -> u64 {
        let bits = self.below(most);
        self.below(1 << bits)
    }
    /// Numbers at the edges more often than others.
    fn value(&mut self) -> u64 {
        let v = self.next();
        match self.below(8) {
            0 => 0,
            1 => u64::MAX,
            2 => 1 << (v & 63),
            3 => (1u64 << (v & 63)).wrapping_sub(1),
            4 => v & 0xff,
            _ => v,
        }
    }
}

/// Ports at which something is, with how many there are.
const PORTS: &[(u16, u64)] = &[
    (0x3e8, 8),
    (0x20, 2),
    (0xa0, 2),
    (0x4d0, 2),
    (0x40, 4),
    (0x61, 1),
    (0x70, 2),
    (0x60, 5),
    (0x92, 1),
    (0xf0, 2),
    (0xcf8, 8),
    (0x510, 12),
    (0x501, 2),
    (0x505, 1),
    (0xe9, 1),
    (0x3f8, 8),
    (0x2f8, 8),
    (0x600, 64),
    (0x700, 32),
    (0xb2, 2),
    (0x00, 16),
    (0x80, 16),
    (0xc0, 32),
    (0x3f1, 5),
    (0x3f7, 1),
    (0x1f0, 8),
    (0x170, 8),
    (0x3f6, 1),
    (0x376, 1),
    (IDE_MASTERS, 16),
    (ICH9_PM, 128),
    (0x3b4, 2),
    (0x3ba, 1),
    (0x3c0, 16),
    (0x3d4, 2),
    (0x3da, 1),
    (0x1ce, 4),
];

/// Bytes of the flash chip, below 4 GiB.
const FLASH: u64 = 64 << 10;
/// Where the IDE function's bus masters are.
const IDE_MASTERS: u16 = 0xb000;

/// A PCI device, and where its registers are.
type PciAt = (DevFn, u64);

struct Board {
    clock: ManualClock,
    devices: Registry,
    pci: Arc<PciBus>,
    ports: Arc<PortBus>,
    memory: Arc<PhysMemory>,
    apics: Vec<Arc<LocalApic>>,
    bus: Arc<LocalApics>,
    pit: Arc<Pit>,
    hpet: Arc<Hpet>,
    i8042: Arc<I8042>,
    drives: Vec<(Arc<Drive>, Arc<Memory>)>,
    /// A SATA controller, and its registers.
    ahci: PciAt,
    /// Registers of virtio devices.
    virtio: Vec<PciAt>,
    /// Those of the NVMe controller.
    nvme: PciAt,
    /// Drivers of virtio devices make what no driver does, so that what comes of it depends on the host's threads.
    hostile: Cell<bool>,
}

/// Gives each frame back, and another one.
#[derive(Default)]
struct Echo(OnceLock<Arc<dyn Nic>>);

impl Backend for Echo {
    fn connect(&self, nic: Arc<dyn Nic>) {
        let _ = self.0.set(nic);
    }
    fn send(&self, frame: &Frame<'_>) {
        let Some(nic) = self.0.get() else { return };
        offload::deliver(frame, nic.takes(), &mut |f| _ = nic.receive(f));
        nic.receive(&Frame::new(&[IoSlice::new(&[0xff; 60])]));
    }
}

fn board() -> Board {
    let clock = ManualClock::new();
    let dyn_clock: Arc<dyn Clock> = Arc::new(clock.clone());
    let ports = Arc::new(PortBus::new());
    let memory = PhysMemory::new(GuestRam::new(16 << 20).unwrap(), 16 << 20);
    let events: Arc<dyn MachineEvents> = Arc::new(NoEvents);
    let bus = LocalApics::new(dyn_clock.clone(), SECOND);
    let apics: Vec<_> = (0..3)
        .map(|n| {
            let tsc = clock.clone();
            bus.add(n, n == 0, Arc::new(move || tsc.now()), Arc::new(NoPins))
        })
        .collect();
    let pic = Pic::new(Irq::new(bus.clone(), 0));
    bus.connect_pic(&pic);
    let ioapic = Ioapic::new(bus.clone());
    bus.connect_eoi(Arc::downgrade(&ioapic) as _);
    let router = GsiRouter::new(Some(pic.clone()), ioapic.clone());
    ports.map(0x20, 2, pic.master_ports());
    ports.map(0xa0, 2, pic.slave_ports());
    ports.map(0x4d0, 2, pic.elcr_ports());
    memory.map_mmio(IOAPIC_BASE, 0x1000, ioapic.clone());
    let mut isa: Vec<Irq> = (0..24).map(|n| Irq::new(router.clone(), n)).collect();
    let ioapic_lines: Vec<_> = (16..24).map(|n| (n, Irq::new(router.clone(), n))).collect();
    let mut pin = |n: usize| isa[n].share();
    let pit = Pit::new(dyn_clock.clone(), pin(0));
    ports.map(0x40, 4, pit.ports());
    ports.map(0x61, 1, pit.port61());
    let rtc = Rtc::new(dyn_clock.clone(), pin(8), 1_700_000_000 * SECOND);
    ports.map(0x70, 2, rtc.ports());
    let (quiet_pit, quiet_rtc) = (pit.clone(), rtc.clone());
    let wires = HpetWires {
        pins: ioapic.clone(),
        irq0: pin(0),
        irq8: pin(8),
        legacy_route: Box::new(move |on| {
            quiet_pit.set_irq_enabled(!on);
            quiet_rtc.set_irq_enabled(!on);
        }),
    };
    let hpet = Hpet::new(dyn_clock.clone(), wires);
    memory.map_mmio(HPET_BASE, 0x400, hpet.clone());
    let pci = PciBus::root("pcie.0", true, ports.clone(), memory.clone());
    let piix3 = Piix3::new(std::array::from_fn(&mut pin), events.clone());
    let wires = piix3.clone();
    pci.connect(bus.clone(), Box::new(move |devfn, pin| wires.intx(devfn, pin)));
    let pm_clock = clock.clone();
    let pm = Piix4Pm::new(pin(9), move || pm_timer_value(pm_clock.now()), ports.clone(), events.clone());
    pm.follow(&dyn_clock);
    let bridge = Arc::new(I440fx::new(|_| {}));
    pci.attach(i440fx::DEVFN, bridge.clone());
    pci.attach(piix3::DEVFN, piix3.clone());
    pci.attach(piix4_pm::DEVFN, pm.clone());
    pm.enable_at(piix4_pm::PM_BASE);
    // Another board's chips, where they are in nobody's way.
    let lpc_lines = std::array::from_fn(&mut pin);
    let lpc = Ich9Lpc::new(lpc_lines, ports.clone(), memory.clone(), dyn_clock.clone(), events.clone());
    let mch = Q35Mch::new(&pci, |_| {});
    pci.attach(DevFn::new(0x1d, 0), mch.clone());
    pci.attach(DevFn::new(0x1e, 0), lpc.clone());
    pci.config_write(0, DevFn::new(0x1e, 0), 0x40, 4, ICH9_PM.into());
    pci.config_write(0, DevFn::new(0x1e, 0), 0x44, 1, 0x80);
    pci.config_write(0, DevFn::new(0x1e, 0), 0xf0, 4, RCBA as u32 | 1);
    let smbus = Ich9Smbus::new(&pci);
    let ide = Piix3Ide::new(&pci, &ports, [pin(14), pin(15)]);
    ide.like_firmware();
    pci.config_write(0, ide::DEVFN, 0x20, 4, IDE_MASTERS.into());
    pci.config_write(0, ide::DEVFN, 4, 2, 5);
    let config = ConfigPorts::new(pci.clone(), piix3.clone());
    config.attach(&ports);
    let a20 = A20Gate::new(true, events.clone());
    let port92 = Port92::new(a20.clone(), events.clone());
    port92.attach(&ports);
    let i8042 = I8042::new(true, pin(1), pin(12), a20.clone(), events.clone());
    i8042.attach(&ports);
    i8042.follow(&dyn_clock);
    let ferr = Ferr::new(pin(13));
    ferr.attach(&ports);
    let dma = IsaDma::new(Dma::always(memory.clone()));
    dma.attach(&ports);
    let fdc = Fdc::new(dma.clone(), pin(floppy::IRQ));
    fdc.attach(&ports);
    let flash_image = Arc::new(Memory::new(vec![0x5a; FLASH as usize]));
    let flash_drive =
        Drive::new(Options { threads: 1, ..Options::default() }, Some(flash_image.clone())).unwrap();
    let flash = Pflash::new(flash_drive.clone(), memory.clone(), 1 << 32).unwrap();
    let mut serials: Vec<_> = COM[..2]
        .iter()
        .map(|(base, irq)| {
            let serial = Serial::new(Arc::new(Null), pin(*irq as usize), dyn_clock.clone());
            serial.attach(&ports, *base);
            serial
        })
        .collect();
    let fw_cfg = FwCfg::new(Dma::always(memory.clone()));
    fw_cfg.add_file("opt/hammer", vec![7; 100]).unwrap();
    fw_cfg.attach(&ports);
    apics[0].enter_virtual_wire();
    let devices = Registry::default();
    let mut all: Vec<Arc<dyn Plugged>> = apics.iter().map(|a| a.clone() as _).collect();
    all.extend([bus.clone() as Arc<dyn Plugged>, ioapic, pic, pit.clone(), rtc, hpet.clone(), config, a20]);
    all.extend([port92 as Arc<dyn Plugged>, i8042.clone(), ferr, bridge, piix3, pm, fw_cfg, ide.clone()]);
    all.extend([lpc as Arc<dyn Plugged>, mch, smbus]);
    all.extend([dma as Arc<dyn Plugged>, fdc.clone(), flash]);
    all.extend(serials.iter().map(|s| s.clone() as Arc<dyn Plugged>));
    for device in all {
        devices.plug("board", device.kind(), device);
    }
    let (mut slots, mmio_memory, mmio_irqs) = (0, memory.clone(), ioapic_lines);
    let mut mmio_irqs = mmio_irqs.into_iter();
    let mut mmio_slot = || {
        slots += 1;
        let at = MMIO_SLOTS + 0x200 * (slots as u64 - 1);
        let (gsi, irq) = mmio_irqs.next()?;
        Some(MmioSlot { number: slots, at, gsi, irq, memory: mmio_memory.clone() })
    };
    let drives = RefCell::new(vec![(flash_drive, flash_image)]);
    let site = Site {
        ports: &ports,
        pci: Some(&pci),
        clock: dyn_clock,
        events,
        registry: &devices,
        isa_pin: RefCell::new(&mut pin),
        chardev: &|_| Some(Arc::new(Null)),
        drive: &|id| {
            // One thread: requests end in their order.
            let options = Options { name: id.into(), threads: 1, discard: true, ..Options::default() };
            let size = if id == "floppy" { 1440 << 10 } else { 4 << 20 };
            let disk = Arc::new(Memory::new(vec![0x5a; size]));
            let drive = Drive::new(options, Some(disk.clone())).ok()?;
            drives.borrow_mut().push((drive.clone(), disk));
            Some(drive)
        },
        // A frame comes back as often as there is room for it.
        netdev: &|_| Some(Arc::new(Echo::default())),
        links: &RefCell::default(),
        rom: &|_| None,
        cpus: 2,
        entropy: Entropy::new(Some(1), 2),
        balloon: &OnceLock::new(),
        vmgenid: &OnceLock::new(),
        ide: &RefCell::new(ide.channels().iter().map(|c| c.clone() as Arc<dyn Cable>).collect()),
        fdc: Some(&fdc),
        boot: &RefCell::default(),
        consoles: &RefCell::default(),
        mmio_slot: RefCell::new(&mut mmio_slot),
        adapters: &RefCell::default(),
        serials: RefCell::new(&mut serials),
    };
    let (virtio, ahci, nvme) = plug_all(&site);
    drop(site);
    let (drives, hostile) = (drives.into_inner(), Cell::new(false));
    Board {
        clock,
        devices,
        pci,
        ports,
        memory,
        apics,
        bus,
        pit,
        hpet,
        i8042,
        drives,
        ahci,
        virtio,
        nvme,
        hostile,
    }
}

/// All that a user can add, as it is by itself; PCI devices are set up as firmware does it. Where those of virtio have
/// their registers, and the SATA and the NVMe controller.
fn plug_all(site: &Site<'_>) -> (Vec<PciAt>, PciAt, PciAt) {
    let (mut window, mut port, mut virtio) = (PCI_BASE, 0xc000, Vec::new());
    let (mut ahci, mut nvme) = (None, None);
    for kind in kind::all() {
        let mut values = Values::default();
        values.values.insert("chardev", Value::Text("null".into()));
        values.values.insert("drive", Value::Text(kind.name.into()));
        values.values.insert("netdev", Value::Text("net0".into()));
        values.values.insert("vgamem_mb", Value::Number(1));
        (kind.plug)(site, &values).unwrap();
    }
    // Drives on SATA ports, and devices behind bridges.
    for (name, bus) in
        [("ide-hd", "ide.2"), ("ide-cd", "ide.3"), ("edu", "pci.1"), ("virtio-rng-pci", "pcie.1")]
    {
        let mut values = Values { bus: Some(bus.into()), ..Values::default() };
        values.values.insert("drive", Value::Text(bus.into()));
        values.values.insert("bus", Value::Text(bus.into()));
        (kind::find(name).unwrap().plug)(site, &values).unwrap();
    }
    let pci = site.pci.unwrap();
    let mut devices: Vec<_> =
        (2..32).map(|n| DevFn::new(n, 0)).filter_map(|at| Some((at, pci.device(at)?))).collect();
    // Those that `drive` knows come first.
    devices.sort_by_key(|(_, d)| match d.config().lock().get32(0) {
        EDU => 0,
        VGA => 1,
        _ => 2,
    });
    for (at, device) in devices {
        for bar in 0..6 {
            let Some((bar_kind, size)) = device.config().lock().bar(bar) else { continue };
            let next = if bar_kind == BarKind::Io { &mut port } else { &mut window };
            *next = next.next_multiple_of(size);
            site.pci.unwrap().config_write(0, at, 0x10 + 4 * bar as u16, 4, *next as u32);
            if bar == 5 && ahci.is_none() {
                ahci = Some((at, *next));
            }
            if bar == 4 && site.pci.unwrap().config_read(0, at, 0, 2) == 0x1af4 {
                virtio.push((at, *next));
            }
            if bar == 0 && site.pci.unwrap().config_read(0, at, 0, 4) == NVME {
                nvme = Some((at, *next));
            }
            *next += size;
        }
        site.pci.unwrap().config_write(0, at, 4, 2, 7);
    }
    assert!(window <= PCI_BASE + PCI_LEN && port < 0x1_0000);
    (virtio, ahci.expect("a SATA controller"), nvme.expect("an NVMe controller"))
}

/// Where the ICH9's power management and its chip configuration registers are.
const ICH9_PM: u16 = 0x1000;
const RCBA: u64 = 0xfed1_c000;
/// Where virtio devices without PCI have theirs.
const MMIO_SLOTS: u64 = 0xfeb0_0000;
/// Where PCI devices have their registers.
const PCI_BASE: u64 = 0xe000_0000;
const PCI_LEN: u64 = 4 << 20;
/// Ids of devices that come first there, each with its memory.
const EDU: u32 = 0x11e8_1234;
const NVME: u32 = 0x0010_1b36;
const VGA: u32 = 0x1111_1234;
const VGA_MEMORY: u64 = PCI_BASE + (1 << 20);
const VGA_REGISTERS: u64 = PCI_BASE + (2 << 20);

impl Drop for Board {
    fn drop(&mut self) {
        self.ports.clear();
        self.memory.unmap_devices();
    }
}

impl Board {
    fn port(&self, r: &mut Random, port: u16, size: u8) -> u64 {
        if r.below(3) == 0 {
            return self.ports.read(port, size).into();
        }
        self.ports.write(port, size, r.value() as u32);
        0
    }

    fn mmio(&self, r: &mut Random, base: u64, len: u64) -> u64 {
        let size = [1, 2, 4, 8][r.below(4) as usize];
        let at = r.below(len);
        // Mostly where a register begins: some chips ignore all else.
        let at = base + if r.below(8) == 0 { at } else { at / u64::from(size) * u64::from(size) };
        let value = r.value();
        if r.below(2) == 0 {
            return self.memory.phys_read(at, size);
        }
        self.memory.phys_write(at, size, value);
        0
    }

    /// Does to one chip what a driver does, so that it interrupts: random values alone seldom have it do anything.
    fn drive(&self, r: &mut Random) {
        let out =
            |port: u16, values: &[u8]| values.iter().for_each(|v| self.ports.write(port, 1, (*v).into()));
        let vector = 0x20 + r.below(0xd0);
        match r.below(21) {
            18.. => self.drive_ahci(r),
            16 | 17 => self.drive_flash(r),
            14 | 15 => self.drive_floppy(r),
            12 | 13 => self.drive_vga(r),
            9..=11 => self.drive_ide(r),
            8 => {
                // edu: a transfer, with an interrupt at its end.
                let (ram, buffer) = (r.below(16 << 20), 0x4_0000 + r.below(4096));
                let to_ram = r.below(2);
                let (source, destination) = if to_ram != 0 { (buffer, ram) } else { (ram, buffer) };
                let words = [source, destination, r.below(256), 5 | to_ram << 1];
                for (n, word) in words.into_iter().enumerate() {
                    self.memory.phys_write(PCI_BASE + 0x80 + 8 * n as u64, 8, word);
                }
            }
            0 => {
                for (port, base) in [(0x20, 0x20), (0xa0, 0x28)] {
                    out(port, &[0x11]);
                    out(port + 1, &[base, if port == 0x20 { 4 } else { 2 }, 1, 0]);
                }
            }
            1 => {
                let pin = r.below(24) as u32;
                let trigger = (r.below(2) as u32) << 15;
                for (index, value) in [(0x11 + 2 * pin, 0), (0x10 + 2 * pin, vector as u32 | trigger)] {
                    self.memory.phys_write(IOAPIC_BASE, 4, index.into());
                    self.memory.phys_write(IOAPIC_BASE + 0x10, 4, value.into());
                }
            }
            2 => {
                let apic = &self.apics[r.below(3) as usize];
                let mode = r.below(3) as u32;
                let values =
                    [(0xf0, 0x1ff), (0x350, 0x700), (0x320, mode << 17 | vector as u32), (0x3e0, 0xb)];
                values.into_iter().for_each(|(at, value)| apic.mmio_write(at, 4, value));
                apic.mmio_write(0x380, 4, r.below_power(20) as u32);
                _ = apic.msr_write(0x6e0, self.clock.now() + r.below_power(20));
            }
            3 => {
                out(0x43, &[0x30 | (r.below(6) as u8) << 1]);
                out(0x40, &[r.next() as u8, r.below(64) as u8]);
            }
            4 => {
                for (index, value) in [(0x0a, 0x20 | r.below(16) as u8), (0x0b, 0x02 | 0x70)] {
                    out(0x70, &[index]);
                    out(0x71, &[value]);
                }
            }
            5 => {
                let timer = HPET_BASE + 0x100 + 0x20 * r.below(3);
                let now = self.memory.phys_read(HPET_BASE + 0xf0, 8);
                let kind = [0x04, 0x06, 0x4c, 0x4e][r.below(4) as usize] | r.below(24) << 9;
                self.memory.phys_write(timer, 8, kind);
                self.memory.phys_write(timer + 8, 8, now.wrapping_add(r.below_power(16)));
                self.memory.phys_write(HPET_BASE + 0x10, 8, 1 + 2 * r.below(2));
            }
            6 => {
                out(0x64, &[0xae, 0xa8, 0x60]);
                out(0x60, &[0x47]);
                out(0x64, &[0xd4]);
                out(0x60, &[0xf4]);
                let by = |r: &mut Random| r.below(40) as i32 - 20;
                self.i8042.mouse(by(r), by(r), 0, MouseButtons::default());
                self.i8042.key(Key::new(1 + r.below(0x50) as u8), r.below(2) == 0);
            }
            _ => {
                out(0x3f9, &[0x0f]);
                out(0x3fc, &[0x08]);
                self.ports.write(0x604, 2, 1);
                self.ports.write(0x602, 2, 0x0121);
            }
        }
    }

    /// A virtio driver: sets a device up, or hands over a chain of buffers, which are a disk's request.
    fn drive_virtio(&self, r: &mut Random) {
        let n = r.below(self.virtio.len() as u64);
        let (at, base) = self.virtio[n as usize];
        // Random accesses may have moved its registers.
        for (register, value) in [(0x20, base as u32), (0x24, 0), (4, 7)] {
            self.pci.config_write(0, at, register, if register == 4 { 2 } else { 4 }, value);
        }
        let write = |at: u64, size: u8, value: u64| self.memory.phys_write(base + at, size, value);
        let queues = self.memory.phys_read(base + 18, 2).clamp(1, 16);
        // Each device has 64 KiB for its rings from 1 MiB on, and as much for its buffers behind all rings.
        let (rings, buffers) = (0x10_0000 + n * 0x1_0000, 0x80_0000 + n * 0x1_0000);
        let parts = |queue: u64| [0, 0x400, 0x800].map(|part| rings + queue * 0x1000 + part);
        if self.memory.phys_read(base + 20, 1) & 0x44 != 4 || r.below(40) == 0 {
            for value in [0, 1, 3] {
                write(20, 1, value);
            }
            let wanted = r.next();
            for half in 0..2 {
                write(0, 4, half);
                write(8, 4, half);
                write(12, 4, self.memory.phys_read(base + 4, 4) & wanted >> (32 * half) | half);
            }
            write(20, 1, 11);
            self.memory.write(rings, &[0; 0x1_0000]);
            for queue in 0..queues {
                write(22, 2, queue);
                write(24, 2, 16);
                for (part, at) in parts(queue).into_iter().enumerate() {
                    write(32 + 8 * part as u64, 8, at);
                }
                write(26, 2, r.below(3));
                write(28, 2, 1);
            }
            write(20, 1, 15);
            return;
        }
        let queue = r.below(queues);
        let net = self.pci.config_read(0, at, 0, 4) >> 16 == 0x1000;
        let scsi = queue > 1 && self.pci.config_read(0, at, 0, 4) >> 16 == 0x1004;
        let [table, available, _] = parts(queue);
        let hostile = self.hostile.get() && r.below(4) == 0;
        let first = r.below(12);
        let count = 2 + r.below(3);
        // What the device reads comes first, and the last byte is a status.
        let written = 1 + r.below(count - 1);
        for i in 0..count {
            let at = table + 16 * (first + i);
            let last = u64::from(i + 1 == count);
            let (mut address, mut len) = (buffers + 0x2000 * i, 512 * (1 + r.below(8)) + last);
            let mut flags = (1 - last) | u64::from(i >= written) << 1;
            if i == 0 {
                (len, flags) = (if scsi { 51 } else { 16 }, 1);
            }
            let mut next = first + i + 1;
            if hostile {
                match r.below(6) {
                    0 => address = r.value(),
                    1 => len = r.value(),
                    2 => flags = r.below(8),
                    3 => next = r.below(20),
                    4 => (address, flags) = (rings + r.below(0x1000), r.below(8)),
                    _ => {}
                }
            }
            self.memory.write_u64(at, address);
            self.memory.write_u32(at + 8, len as u32);
            self.memory.write_u32(at + 12, (flags | next << 16) as u32);
        }
        let kind = [0, 1, 0, 1, 4, 8, 11, 13, 2][r.below(9) as usize];
        self.memory.write_u32(buffers, kind);
        self.memory.write_u64(buffers + 8, r.below(0x2100));
        if net {
            // A frame's header, or a command.
            let mut head = [0; 16].map(|_: u8| if r.below(3) == 0 { r.below_power(8) as u8 } else { 0 });
            head[..2].copy_from_slice(&[r.below(6) as u8, r.below(3) as u8]);
            self.memory.write(buffers, &head);
        }
        if scsi {
            const CODES: [u8; 20] = [
                0x28, 0x2a, 0x08, 0x0a, 0x88, 0x8a, 0xa8, 0x00, 0x03, 0x12, 0x1a, 0x5a, 0x15, 0x41, 0x93,
                0x42, 0x35, 0x9e, 0xa0, 0x2f,
            ];
            let mut head = [0; 51].map(|_: u8| if r.below(6) == 0 { r.below_power(9) as u8 } else { 0 });
            head[..8].copy_from_slice(&[1, r.below(3) as u8, 0, 0, 0, 0, 0, 0]);
            head[19] = CODES[r.below(20) as usize];
            self.memory.write(buffers, &head);
        }
        let index = self.memory.read_u16(available + 2);
        self.memory.write_u16(available + 4 + 2 * u64::from(index % 16), first as u16);
        let more = if hostile { r.below(20) as u16 } else { 1 };
        self.memory.write_u16(available + 2, index.wrapping_add(more));
        write(0x3000 + 4 * queue, 2, queue);
        self.settle();
    }

    /// An NVMe driver: sets the controller up, or hands over a command. What it knows is in RAM, so that a board which
    /// is restored has it as well.
    fn drive_nvme(&self, r: &mut Random) {
        const OWN: u64 = 0xd0_0000;
        const COMMANDS: u64 = OWN + 0x1000;
        const ENDS: u64 = OWN + 0x8000;
        const DATA: u64 = OWN + 0x2_0000;
        const LIST: u64 = OWN + 0x1_0000;
        let (at, base) = self.nvme;
        for (register, size, value) in [(0x10, 4, base as u32), (0x14, 4, 0), (4, 2, 7)] {
            self.pci.config_write(0, at, register, size, value);
        }
        let write = |at: u64, size: u8, value: u64| self.memory.phys_write(base + at, size, value);
        let put = |queue: u64, opcode: u8, nsid: u32, data: [u64; 2], cdw: [u32; 3], flags: u8| {
            let tail = self.memory.read_u16(OWN + 4 * queue) % 16;
            let entry = COMMANDS + queue * 0x1000 + 64 * u64::from(tail);
            self.memory.write(entry, &[0; 64]);
            self.memory.write(entry, &[opcode, flags, tail as u8, queue as u8]);
            self.memory.write_u32(entry + 4, nsid);
            self.memory.write_u64(entry + 24, data[0]);
            self.memory.write_u64(entry + 32, data[1]);
            (0..3).for_each(|n| self.memory.write_u32(entry + 40 + 4 * n, cdw[n as usize]));
            self.memory.write_u16(OWN + 4 * queue, (tail + 1) % 16);
            write(0x1000 + 8 * queue, 4, ((tail + 1) % 16).into());
            self.settle();
        };
        if self.memory.phys_read(base + 0x1c, 4) != 1 || r.below(40) == 0 {
            write(0x14, 4, 0);
            self.memory.write(OWN, &[0; 0x1_0000]);
            write(0x24, 4, 0x000f_000f);
            write(0x28, 8, COMMANDS);
            write(0x30, 8, ENDS);
            write(0x14, 4, 0x0046_0001 | r.below(2) << 7);
            put(0, 5, 0, [ENDS + 0x1000, 0], [0xf_0001, 1, 0], 0);
            put(0, 1, 0, [COMMANDS + 0x1000, 0], [0xf_0001, 1 << 16 | 1, 0], 0);
            return;
        }
        let hostile = self.hostile.get() && r.below(3) == 0;
        let queue = u64::from(r.below(4) != 0);
        let opcode = if queue == 0 {
            [0, 1, 2, 4, 5, 6, 8, 9, 0xa, 0xc, 0x80, 0xff][r.below(12) as usize]
        } else {
            [0, 1, 1, 2, 2, 2, 5, 8, 9, 0xc, 0xff][r.below(11) as usize]
        };
        for n in 0..64 {
            let page = DATA + 0x1000 * r.below(32);
            let page = if hostile && r.below(16) == 0 { r.value() } else { page };
            self.memory.write_u64(LIST + 0x1000 - 8 * 32 + 8 * n, page);
        }
        let nsid = [1, 1, 1, 1, 2, 0, u32::MAX][r.below(7) as usize];
        let second = if r.below(2) == 0 { DATA + 0x1_0000 } else { LIST + 0x1000 - 8 * (1 + r.below(32)) };
        let mut data = [DATA + 4 * r.below(0x1000), second];
        let few = if queue == 0 { r.below_power(9) as u32 } else { r.below(0x1f00) as u32 };
        let mut cdw = [few | (r.below(32) as u32) << (16 * (1 - queue)), 0, r.below(256) as u32];
        let mut flags = 0;
        if hostile {
            data[r.below(2) as usize] = r.value();
            cdw[r.below(3) as usize] = r.value() as u32;
            flags = (r.next() as u8) & r.next() as u8 & 0xc3;
        }
        put(queue, opcode, nsid, data, cdw, flags);
        if hostile && r.below(4) == 0 {
            write(0x1000 + 4 * r.below(140), 4, r.below_power(20));
        }
        // Ends are looked at, by their phase, which is kept with the head.
        for queue in 0..2 {
            let (mut head, mut phase) =
                (self.memory.read_u16(OWN + 0x40 + 4 * queue), self.memory.read_u16(OWN + 0x80 + 4 * queue));
            while self.memory.read_u16(ENDS + queue * 0x1000 + 16 * u64::from(head % 16) + 14) & 1
                != phase & 1
            {
                head += 1;
                if head >= 16 {
                    (head, phase) = (0, phase ^ 1);
                }
            }
            self.memory.write_u16(OWN + 0x40 + 4 * queue, head);
            self.memory.write_u16(OWN + 0x80 + 4 * queue, phase);
            write(0x1004 + 8 * queue, 4, head.into());
        }
        self.settle();
    }

    /// A command to a disk or a CD-ROM drive, and some of what follows of it.
    fn drive_ide(&self, r: &mut Random) {
        const COMMANDS: [u8; 24] = [
            0x20, 0x24, 0x25, 0x29, 0x30, 0x34, 0x35, 0x39, 0x3d, 0x42, 0x06, 0xc4, 0xc5, 0xc8, 0xca, 0xec,
            0xe7, 0xb0, 0xef, 0x91, 0xc6, 0x08, 0x90, 0x10,
        ];
        const PACKETS: [u8; 16] =
            [0x28, 0xa8, 0xbe, 0x03, 0x12, 0x1b, 0x43, 0x46, 0x4a, 0x52, 0x55, 0x5a, 0xad, 0x00, 0x1e, 0x25];
        let out = |port: u16, value: u8| self.ports.write(port, 1, value.into());
        let base = if r.below(8) != 0 { 0x1f0 } else { 0x170 };
        let unit = 0x10 * r.below(2) as u8;
        let master = IDE_MASTERS + if base == 0x170 { 8 } else { 0 };
        // A table of regions, some of them nowhere, with an end or without.
        let table = 0x8000 + 8 * r.below(64);
        for i in 0..1 + r.below(8) {
            let at = if r.below(8) == 0 { r.value() as u32 } else { 0x10_0000 + r.below(8 << 20) as u32 };
            let entry = u64::from(at) | r.below_power(17) << 32 | r.below(4) << 62;
            self.memory.write(table + 8 * i, &entry.to_le_bytes());
        }
        out(master, 0);
        self.ports.write(master + 4, 4, if r.below(16) == 0 { r.value() as u32 } else { table as u32 });
        if r.below(2) == 0 {
            out(master, 9);
        }
        let packet = r.below(2) == 0;
        out(base + 6, if packet { 0xa0 } else { 0xa0 | ((r.below(8) != 0) as u8) << 6 } | unit);
        for port in [1, 2, 3, 4, 5, 2, 3, 4, 5] {
            out(base + port, if r.below(2) == 0 { r.below_power(9) as u8 } else { r.below(4) as u8 });
        }
        if packet {
            out(base + 1, r.below(2) as u8);
            out(base + 7, 0xa0);
            let mut cdb = [0; 12].map(|_: u8| if r.below(4) == 0 { r.below_power(9) as u8 } else { 0 });
            cdb[0] = PACKETS[r.below(PACKETS.len() as u64) as usize];
            for word in cdb.chunks(2) {
                self.ports.write(base, 2, u32::from(word[0]) | u32::from(word[1]) << 8);
            }
        } else {
            out(base + 7, COMMANDS[r.below(COMMANDS.len() as u64) as usize]);
        }
        self.settle();
        if r.below(2) == 0 {
            out(master, 1 | (r.below(2) as u8) << 3);
        }
        for _ in 0..r.below_power(12) {
            self.settle();
            if r.below(2) == 0 {
                _ = self.ports.read(base, 4)
            } else {
                self.ports.write(base, 4, r.next() as u32)
            }
        }
    }

    /// Commands, or some of a queue, to a disk or a CD-ROM drive on a SATA port.
    fn drive_ahci(&self, r: &mut Random) {
        const COMMANDS: [u8; 16] =
            [0x25, 0x35, 0xec, 0x24, 0x34, 0x2f, 0xc8, 0xca, 0x3d, 0x42, 0x06, 0xea, 0xef, 0xa1, 0x08, 0x90];
        const PACKETS: [u8; 8] = [0x28, 0xa8, 0xbe, 0x03, 0x12, 0x43, 0x4a, 0x5a];
        const LISTS: u64 = 0xc0_0000;
        let (at, base) = self.ahci;
        // Random accesses may have moved its registers.
        self.pci.config_write(0, at, 0x24, 4, base as u32);
        self.pci.config_write(0, at, 4, 2, 7);
        let n = r.below(2);
        let port = base + 0x100 + 0x80 * n;
        let list = LISTS + 0x1_0000 * n;
        let write = |at: u64, value: u64| self.memory.phys_write(port + at, 4, value);
        let packets = n == 1 && r.below(2) == 0;
        if self.memory.phys_read(port + 0x18, 4) & 0x8010 != 0x8010 || r.below(6) == 0 {
            write(0x18, 0x10);
            if r.below(4) == 0 {
                write(0x2c, 1);
                write(0x2c, 0);
                self.settle();
            }
            for (at, value) in [(0, list), (4, 0), (8, list + 0x8000), (12, 0), (0x14, !0), (0x10, !0)] {
                write(at, value & 0xffff_ffff);
            }
            write(0x18, 0x11);
            self.memory.phys_write(base + 4, 4, 2);
        }
        let queued = n == 0 && r.below(2) == 0;
        let mut slots = 0;
        for _ in 0..1 + r.below(if queued { 8 } else { 2 }) {
            let slot = r.below(32);
            if slots >> slot & 1 != 0 {
                continue;
            }
            slots |= 1 << slot;
            let table = list + 0x400 + 0x380 * slot;
            let count = r.below(9);
            let lba = if r.below(16) == 0 { r.below_power(48) } else { r.below(0x2000) };
            let (l, mut f) = (lba.to_le_bytes(), [0u8; 20]);
            let code = COMMANDS[r.below(COMMANDS.len() as u64) as usize];
            f[..8].copy_from_slice(&[0x27, 0x80, code, r.below(4) as u8, l[0], l[1], l[2], 0x40]);
            f[8..11].copy_from_slice(&l[3..6]);
            f[12] = count as u8;
            if packets {
                (f[2], f[3], f[6]) = (0xa0, r.below(2) as u8, 8);
            } else if queued {
                (f[2], f[3], f[11]) = (0x60 | r.below(2) as u8, r.below_power(9) as u8, r.below(2) as u8);
                (f[7], f[12]) = (0x40 | u8::from(r.below(4) == 0) << 7, (slot as u8) << 3);
            }
            if r.below(12) == 0 {
                let n = r.below(20) as usize;
                f[n] = r.next() as u8;
            }
            self.memory.write(table, &f);
            let mut cdb = [0; 16].map(|_: u8| if r.below(4) == 0 { r.below_power(9) as u8 } else { 0 });
            cdb[0] = PACKETS[r.below(PACKETS.len() as u64) as usize];
            if r.below(2) == 0 {
                // A sector near the beginning.
                cdb[2..5].fill(0);
                cdb[8] = 1;
            }
            self.memory.write(table + 0x40, &cdb);
            let entries = r.below(12);
            for i in 0..entries {
                let to = if r.below(24) == 0 { r.value() } else { 0x10_0000 + r.below(10 << 20) };
                self.memory.write_u64(table + 0x80 + 16 * i, to);
                let len = if r.below(2) == 0 { 511 } else { r.below_power(18) };
                self.memory.write_u64(table + 0x88 + 16 * i, len << 32 | r.below(2) << 63);
            }
            let words = if r.below(24) == 0 { r.below(32) } else { 5 };
            self.memory.write_u64(list + 32 * slot, words | entries << 16);
            self.memory.write_u64(list + 32 * slot + 8, table);
        }
        if queued {
            write(0x34, slots);
        }
        write(0x38, slots);
        self.settle();
        if r.below(2) == 0 {
            write(0x10, r.value() & 0xffff_ffff);
            self.memory.phys_write(base + 8, 4, 3);
        }
    }

    /// A command to the floppy controller, with its DMA channel set up, and its result.
    fn drive_floppy(&self, r: &mut Random) {
        let out = |port: u16, value: u8| self.ports.write(port, 1, value.into());
        if r.below(4) == 0 {
            out(0x3f2, 0);
        }
        out(0x3f2, 0x1c);
        out(0x3f7, if r.below(8) == 0 { r.below(4) as u8 } else { 0 });
        out(0x08, 0);
        out(0x0c, 0);
        out(0x0b, [0x46, 0x4a, 0x42, 0x56][r.below(4) as usize]);
        out(0x81, r.below(256) as u8);
        for port in [4, 4, 5, 5] {
            out(port, if port == 5 { r.below_power(9) as u8 } else { r.next() as u8 });
        }
        out(0x0a, if r.below(8) == 0 { 6 } else { 2 });
        let (head, sector) = (r.below(2) as u8, 1 + r.below(19) as u8);
        let command = [0xe6, 0xc5, 0x4d, 0x66, 0xcc, 0xd6, 0x42, 0x4a, 0x0f, 0x07, 0x08, 0x03, 0x0e, 0x8f]
            [r.below(14) as usize];
        let track = r.below(82) as u8;
        let filler = r.next() as u8;
        let bytes: &[u8] = match command {
            0x4d => &[head << 2, 2, 18, 0x54, filler],
            0x4a | 0x07 => &[head << 2],
            0x0f | 0x8f => &[head << 2, track],
            0x03 => &[0xdf, 2 | u8::from(r.below(4) == 0)],
            0x08 | 0x0e => &[],
            _ => &[head << 2, track, head, sector, 2, 18, 0x1b, 0xff],
        };
        out(0x3f5, command);
        bytes.iter().for_each(|b| out(0x3f5, *b));
        for _ in 0..r.below_power(11) {
            self.settle();
            if self.ports.read(0x3f4, 1) & 0x40 == 0 {
                out(0x3f5, r.next() as u8);
            } else {
                self.ports.read(0x3f5, 1);
            }
        }
        self.settle();
        out(0x0a, 2);
    }

    /// A command to the flash chip, and bytes behind it.
    fn drive_flash(&self, r: &mut Random) {
        const COMMANDS: [u8; 10] = [0x40, 0x10, 0x20, 0x50, 0x60, 0x70, 0x90, 0x98, 0xe8, 0xff];
        let at = (1 << 32) - FLASH + r.below(FLASH);
        self.memory.phys_write(at, 1, COMMANDS[r.below(10) as usize].into());
        for _ in 0..r.below(12) {
            let value = if r.below(2) == 0 { 0xd0 } else { r.below_power(9) };
            self.memory.phys_write((at + r.below(8)).min(u64::from(u32::MAX)), 1, value);
            self.memory.phys_read(at, 4);
        }
        self.settle();
    }

    /// Chooses a mode, writes to the video memory in all ways, and looks at the screen.
    fn drive_vga(&self, r: &mut Random) {
        let set = |port: u16, index: u8, value: u8| {
            self.ports.write(port, 2, u32::from(value) << 8 | u32::from(index));
        };
        match r.below(6) {
            0 => {
                let chained = [0x02, 0x06, 0x0e][r.below(3) as usize];
                [(2, 0x0f), (4, chained)].into_iter().for_each(|(n, v)| set(0x3c4, n, v));
                for (n, v) in
                    [(0, 0), (1, 0), (3, 0), (5, r.below(4) as u8 * 0x20), (6, r.below(16) as u8), (8, 0xff)]
                {
                    set(0x3ce, n, v);
                }
                self.ports.write(0x3c2, 1, 0x63 | r.below(256) as u32);
                [(0x17, 0xa3), (0x12, r.next() as u8)].into_iter().for_each(|(n, v)| set(0x3d4, n, v));
                self.ports.read(0x3da, 1);
                self.ports.write(0x3c0, 1, 0x20);
            }
            1 => {
                let bits = [4, 8, 15, 16, 24, 32][r.below(6) as usize];
                for (n, v) in
                    [(4, 0), (1, r.below(1200)), (2, r.below(1200)), (3, bits), (4, 0x41 | r.below(2) << 7)]
                {
                    self.ports.write(0x1ce, 2, n);
                    self.ports.write(0x1cf, 2, v as u32);
                }
            }
            2 if r.below(4) == 0 => {
                for (_, adapter) in self.devices.displays() {
                    let display = adapter.display().unwrap();
                    let mut screen = Screen::default();
                    display.refresh(&mut screen);
                    assert!(display.refresh(&mut screen).is_empty());
                    display.text();
                }
            }
            _ => {
                let (base, len) = [(0xa_0000, 0x2_0000), (VGA_MEMORY, 1 << 20), (VGA_REGISTERS, 0x1000)]
                    [r.below(3) as usize];
                (0..r.below(40)).for_each(|_| _ = self.mmio(r, base, len));
            }
        }
    }

    /// Drives have done what was asked of them: when they do it is no guest's.
    fn settle(&self) {
        self.drives.iter().for_each(|(drive, _)| drive.drain());
    }

    /// What the guest sees of it, when what was begun has ended.
    fn step(&self, r: &mut Random) -> u64 {
        let seen = self.access(r);
        self.settle();
        seen
    }

    fn access(&self, r: &mut Random) -> u64 {
        match r.below(16) {
            0..=6 => {
                let (base, len) = PORTS[r.below(PORTS.len() as u64) as usize];
                let (port, size) = (base + r.below(len) as u16, [1, 2, 4][r.below(3) as usize]);
                self.port(r, port, size)
            }
            7 if r.below(2) == 0 => {
                let which = r.below(4);
                if which == 0 {
                    self.drive_virtio(r)
                } else if which == 1 {
                    self.drive_nvme(r)
                } else {
                    self.drive(r)
                }
                0
            }
            7 => {
                let (port, size) = (r.next() as u16, [1, 2, 4][r.below(3) as usize]);
                self.port(r, port, size)
            }
            8 if r.below(4) == 0 => {
                let (base, len) = [(RCBA + 0x3100, 0x400), (self.ahci.1, 0x200)][r.below(2) as usize];
                self.mmio(r, base, len)
            }
            8 => self.mmio(r, IOAPIC_BASE, 0x60),
            9 if r.below(4) == 0 && !self.virtio.is_empty() => {
                let (_, base) = self.virtio[r.below(self.virtio.len() as u64) as usize];
                let base = base + 0x1000 * r.below(4);
                self.mmio(r, base, 0x40)
            }
            9 if r.below(6) == 0 => self.mmio(r, self.nvme.1, 0x1100),
            9 if r.below(6) == 0 => {
                let slot = MMIO_SLOTS + 0x200 * r.below(8);
                self.mmio(r, slot, 0x120)
            }
            9 if r.below(2) == 0 => self.mmio(r, PCI_BASE, 0xa0),
            9 => self.mmio(r, HPET_BASE, 0x180),
            10 | 11 => {
                let apic = &self.apics[r.below(3) as usize];
                let (offset, size) =
                    (r.below(0x40) * 16 + r.below(8) / 7 * r.below(16), [1, 2, 4, 8][r.below(4) as usize]);
                match r.below(6) {
                    0 => return apic.mmio_read(offset, size).into(),
                    1 => return apic.msr_read(0x800 + r.below(0x40) as u32).unwrap_or(1 << 63),
                    2 => _ = apic.msr_write(0x800 + r.below(0x40) as u32, r.value()),
                    3 if r.below(8) == 0 => _ = apic.msr_write(0x1b, 0xfee0_0000 | r.value() & 0xfff),
                    3 => _ = apic.msr_write(0x6e0, self.clock.now().wrapping_add(r.value() >> r.below(64))),
                    _ => apic.mmio_write(offset, size, r.value() as u32),
                }
                apic.has_interrupt().into()
            }
            12 => {
                let apic = &self.apics[r.below(3) as usize];
                let vector = apic.acknowledge();
                apic.set_cr8(r.below(16) as u8 * (r.below(4) / 3) as u8);
                self.pit.redeliver();
                self.hpet.redeliver();
                apic.mmio_write(0xb0, 4, 0);
                self.ports.write(0x20, 1, 0x20);
                vector.map_or(1 << 63, u64::from)
            }
            13 => {
                self.bus.msi(0xfee0_0000 | r.value() & 0xf_ffff, r.value() as u32);
                0
            }
            // Small steps call each timer at its time; a leap is a host that was late.
            14 => {
                self.clock.advance(r.below_power(18));
                0
            }
            _ => {
                self.clock.jump(r.below_power(50));
                self.clock.catch_up();
                0
            }
        }
    }

    /// What is in RAM.
    fn ram(&self) -> Vec<u8> {
        let mut bytes = vec![0; 16 << 20];
        self.memory.read(0, &mut bytes);
        bytes
    }

    fn reset(&self) {
        self.devices.reset(Reset::Board);
        self.pci.follow();
    }
}

#[test]
fn no_access_to_any_chip_panics_or_hangs() {
    let number = |name: &str| std::env::var(name).ok().and_then(|v| v.parse::<u64>().ok());
    let steps = number("MYNAH_HAMMER").unwrap_or(100_000);
    let seeds = number("MYNAH_HAMMER_SEED").map_or(1..9, |s| s..s + 1);
    for seed in seeds {
        let board = board();
        board.hostile.set(true);
        let mut random = Random(seed);
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            for _ in 0..steps {
                board.step(&mut random);
            }
        }));
        assert!(result.is_ok(), "MYNAH_HAMMER_SEED={seed}");
        let sata = board.drives.iter().find(|(drive, _)| drive.name() == "ide.2").map(|(drive, _)| drive);
        let reads = sata.map_or(0, |drive| drive.counts().reads.load(Ordering::Relaxed));
        assert!(steps < 10_000 || reads > 0, "seed {seed}: nothing was read of the disk on SATA");
        let ended = |(drive, _): &(Arc<Drive>, _)| drive.counts().reads.load(Ordering::Relaxed);
        let ended: u64 = board.drives.iter().map(ended).sum();
        assert!(
            steps < 10_000 || ended > steps / 10_000,
            "seed {seed}: {ended} reads of disks in {steps} steps"
        );
    }
}

#[test]
fn a_board_that_is_restored_goes_on_as_the_one_that_was_saved() {
    for seed in 1..40 {
        let (one, mut random) = (board(), Random(seed << 32));
        let steps = random.below(3000);
        (0..steps).for_each(|_| _ = one.step(&mut random));
        // What a guest has seen of the time is settled.
        one.clock.catch_up();
        let saved = one.devices.save();
        assert_eq!(one.devices.save(), saved, "seed {seed}: saving changes something");

        let other = board();
        // It has had a life of its own before.
        let mut own = Random(!seed);
        (0..own.below(200)).for_each(|_| _ = other.step(&mut own));
        if other.clock.now() > one.clock.now() {
            continue;
        }
        other.clock.jump(one.clock.now() - other.clock.now());
        other.devices.restore(&saved).unwrap_or_else(|e| panic!("seed {seed}: {e}"));
        other.pci.follow();
        other.memory.write(0, &one.ram());
        for ((_, from), (_, to)) in one.drives.iter().zip(&other.drives) {
            to.write(0, &from.contents()).unwrap();
        }
        let differ = |one: &Board, other: &Board| {
            let pairs = one.devices.inspect().into_iter().zip(other.devices.inspect());
            pairs.filter(|(a, b)| a != b).map(|(a, b)| format!("{a:?}\n{b:?}\n")).collect::<String>()
        };
        assert_eq!(differ(&one, &other), "", "seed {seed}");
        assert_eq!(other.devices.save(), saved, "seed {seed}");
        let mut same = Random(random.0);
        for n in 0..2000 {
            let (a, b) = (one.step(&mut random), other.step(&mut same));
            assert_eq!(a, b, "seed {seed}, step {n} after {steps}:\n{}", differ(&one, &other));
        }
        assert_eq!(differ(&one, &other), "", "seed {seed}");
    }
}

#[test]
fn a_board_that_is_reset_is_as_a_new_one() {
    for seed in 1..20 {
        let (one, mut random) = (board(), Random(seed << 16));
        one.hostile.set(true);
        (0..2000).for_each(|_| _ = one.step(&mut random));
        one.reset();
        let new = board();
        new.clock.jump(one.clock.now());
        new.reset();
        for ((name, a), (_, b)) in one.devices.inspect().into_iter().zip(new.devices.inspect()) {
            // The clock and its RAM have a battery, and flash needs none; a watchdog knows that it has bitten.
            if !["mc146818rtc", "cfi.pflash01"].contains(&&*name) && !name.starts_with("i6300esb") {
                assert_eq!(a, b, "seed {seed}: {name}");
            }
        }
    }
}

#[test]
fn a_state_that_is_none_is_refused_or_does_no_harm() {
    let number = |name: &str| std::env::var(name).ok().and_then(|v| v.parse::<u64>().ok());
    let seeds = number("MYNAH_HAMMER_SEED").map_or(1..number("MYNAH_MUTATIONS").unwrap_or(600), |s| s..s + 1);
    let mut refused = 0;
    for seed in seeds.clone() {
        let (one, mut random) = (board(), Random(seed << 24));
        (0..random.below(600)).for_each(|_| _ = one.step(&mut random));
        let mut saved = one.devices.save();
        for _ in 0..1 + random.below(3) {
            let n = random.below(saved.len() as u64) as usize;
            let bytes = &mut saved[n].state;
            let at = random.below(bytes.len().max(1) as u64) as usize;
            match random.below(4) {
                _ if bytes.is_empty() => bytes.push(random.next() as u8),
                0 => bytes.truncate(at),
                1 => bytes.insert(at, random.next() as u8),
                2 => bytes[at] ^= 1 << random.below(8),
                // The longest numbers there are.
                _ => (at..(at + 9).min(bytes.len())).for_each(|i| bytes[i] = 0xff),
            }
        }
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let other = board();
            other.clock.jump(one.clock.now());
            if other.devices.restore(&saved).is_err() {
                return true;
            }
            other.pci.follow();
            (0..300).for_each(|_| _ = other.step(&mut random));
            other.devices.save();
            other.reset();
            false
        }));
        refused += u64::from(result.unwrap_or_else(|_| panic!("MYNAH_HAMMER_SEED={seed}")));
    }
    let all = seeds.end - seeds.start;
    assert!(all < 100 || (refused > all / 4 && refused < all), "{refused} of {all} were refused");
}
