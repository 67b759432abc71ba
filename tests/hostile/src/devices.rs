//! Drivers that know where a device's registers are and mean harm: in a whole machine with some devices, two of them at
//! once program what there is, as vCPUs would, with values that are nearly right.
//!
//! ```text
//!   10'0000h  rings of virtio queues, command lists, tables of regions: 16-byte entries of address, length, flags, next
//!   40'0000h  buffers
//! ```
//!
//! A device that is not known by name is written to all the same: registers of most are addresses, lengths, bits. What
//! is wanted of all is that nothing panics, that each access comes back, that the machine stops and ends when it is
//! told to, and that memory stays bounded.
use crate::machine::{PATIENCE, Setup};
use crate::saved::Folder;
use crate::{Engine, Profile};
use anyhow::{Context, ensure};
use mynah::cli::build;
use mynah::machine::{Handle, Machine};
use mynah_devices::kind::{self, Bus, Kind, Type};
use mynah_devices::net::Link;
use mynah_devices::pci::{BarKind, DevFn, PciBus};
use mynah_mmu::PhysMemory;
use mynah_oracle::rng::Rng;
use std::sync::Arc;
use std::sync::Once;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

const RAM: u64 = 16 << 20;
pub(crate) const RINGS: u64 = 0x10_0000;
pub(crate) const BUFFERS: u64 = 0x40_0000;
/// Where BARs are put.
const MEMORY: u64 = 0xe000_0000;
const PORTS: u64 = 0xc000;
/// Where `microvm` has its slots.
const SLOTS: u64 = 0xfeb0_0000;
/// Threads that have panicked.
static PANICS: AtomicU64 = AtomicU64::new(0);

/// Ports of an AT's devices, and how many there are.
const AT_PORTS: [(u64, u64); 14] = [
    (0x1f0, 8),
    (0x3f6, 1),
    (0x170, 8),
    (0x376, 1),
    (0x3c0, 32),
    (0x1ce, 4),
    (0x3f0, 8),
    (0x00, 16),
    (0x80, 16),
    (0xc0, 32),
    (0x60, 5),
    (0x510, 12),
    (0x3f8, 8),
    (0x40, 4),
];

/// Registers of something.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Window {
    /// Vendor, and device; 0 of what is not PCI's.
    pub(crate) id: u32,
    /// The function, and where BAR 0's register is for what is behind another one.
    at: Option<(DevFn, u16)>,
    pub(crate) io: bool,
    base: u64,
    pub(crate) len: u64,
}

/// What a case has done.
#[derive(Debug, Default)]
pub struct Did {
    /// Accesses.
    pub made: u64,
    /// Frames that network cards have sent and received: by model.
    pub frames: Vec<(&'static str, u64, u64)>,
}

/// Runs case `case`; what it has done. An error is a finding.
pub fn run(setup: Setup, seed: u64, case: u64) -> anyhow::Result<Did> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            PANICS.fetch_add(1, Ordering::SeqCst);
            usual(info);
        }));
    });
    let mut rng = Rng::new(seed ^ 0xde5c, case);
    // Not all can be plugged in as they are, nor all together.
    let Some(machine) = (0..4).find_map(|_| machine(setup, &mut rng).transpose()).transpose()? else {
        return Ok(Did::default());
    };
    let handle = machine.handle();
    let run = std::thread::spawn(move || machine.run());
    let memory = handle.memory().context("the machine is built")?;
    let windows = Arc::new(place(&handle, &memory, &mut rng));
    handle.resume()?;
    let stop = Arc::new(AtomicBool::new(false));
    let drivers: Vec<JoinHandle<u64>> = (0..2)
        .map(|n| {
            let mut driver = Driver {
                rng: Rng::new(rng.u64(), n),
                handle: handle.clone(),
                memory: memory.clone(),
                windows: windows.clone(),
                made: 0,
            };
            let stop = stop.clone();
            std::thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    driver.act();
                }
                driver.made
            })
        })
        .collect();
    std::thread::sleep(setup.time);
    stop.store(true, Ordering::Relaxed);
    wait("an access", || drivers.iter().all(JoinHandle::is_finished))?;
    let mut made = 0;
    for driver in drivers {
        made += driver.join().map_err(|_| anyhow::anyhow!("an access has panicked"))?;
    }
    let counted = |link: &Arc<Link>| (link.model(), link.counts().sent, link.counts().received);
    let frames = handle.links().iter().map(counted).collect();
    if rng.chance(20) {
        let _ = handle.inspect();
        let _ = handle.save("exec:cat > /dev/null");
        handle.reset();
        let _ = handle.resume();
    }
    handle.pause();
    handle.end();
    wait("the machine's end", || run.is_finished())?;
    ensure!(run.join().is_ok(), "the machine's thread has panicked");
    ensure!(PANICS.load(Ordering::SeqCst) == 0, "a thread has panicked");
    Ok(Did { made, frames })
}

fn wait(what: &str, done: impl Fn() -> bool) -> anyhow::Result<()> {
    let told = Instant::now();
    while !done() {
        ensure!(told.elapsed() < PATIENCE, "hang: {what} does not come");
        std::thread::sleep(Duration::from_micros(500));
    }
    Ok(())
}

/// A machine with some devices; none if these cannot be.
fn machine(setup: Setup, rng: &mut Rng) -> anyhow::Result<Option<Machine>> {
    let folder = Folder::get();
    let kernel = folder.file("kernel", &mynah_guests::embedded::image()?)?;
    let board = rng.pick(&["pc", "pc", "q35", "microvm"]);
    let accel = if setup.engine == Engine::Jit { "jit,cache=off" } else { "interp" };
    let vcpus = setup.vcpus.to_string();
    let mut words: Vec<String> =
        ["-M", board, "-m", "16", "-smp", &vcpus, "-accel", accel, "-kernel", &kernel]
            .into_iter()
            .chain(["-S", "-display", "none", "-serial", "null", "-chardev", "null,id=c,mux=on"])
            // Nothing leads out of it.
            .chain(["-netdev", "user,id=nat,restrict=on", "-netdev", "hubport,id=hub,hubid=1,netdev=nat"])
            .map(Into::into)
            .collect();
    let fits = |k: &&&Kind| match k.bus {
        // It ends the process by design.
        _ if k.name == "isa-debug-exit" => false,
        _ if setup.profile == Profile::Network && !is_card(k) => false,
        Bus::VirtioMmio => board == "microvm",
        Bus::Isa => true,
        _ => board != "microvm",
    };
    let all = kind::all();
    let kinds: Vec<&Kind> = all.iter().filter(fits).copied().collect();
    for n in 0..1 + rng.below(8) {
        let chosen = rng.pick(&kinds);
        let mut device = format!("{},id=d{n}", chosen.name);
        for property in chosen.properties {
            match property.kind {
                Type::Netdev => {
                    words.extend(["-netdev".into(), format!("hubport,id=n{n},hubid=1")]);
                    device += &format!(",{}=n{n}", property.name);
                }
                Type::Chardev => device += &format!(",{}=c", property.name),
                Type::Drive => {
                    let disk = folder.file(&format!("disk{n}"), &[0x5a; 1 << 20])?;
                    let drive = format!("if=none,format=raw,id=f{n},file={disk}");
                    words.extend(["-drive".into(), drive]);
                    device += &format!(",{}=f{n}", property.name);
                }
                _ => {}
            }
        }
        words.extend(["-device".into(), device]);
    }
    let words: Vec<_> = words.into_iter().map(Into::into).collect();
    Ok(build::config("mynah run", &words).ok().and_then(|config| Machine::new(config).ok()))
}

fn is_card(kind: &Kind) -> bool {
    kind.properties.iter().any(|p| matches!(p.kind, Type::Netdev))
}

/// Gives all BARs a place, and lists what can be accessed.
fn place(handle: &Handle, memory: &PhysMemory, rng: &mut Rng) -> Vec<Window> {
    let mut windows: Vec<Window> =
        AT_PORTS.map(|(base, len)| Window { id: 0, at: None, io: true, base, len }).into();
    let Some(bus) = handle.pci() else {
        for n in 0..24 {
            let slot = Window { id: 0, at: None, io: false, base: SLOTS + 0x200 * n, len: 0x200 };
            // What has a device comes more often than all the rest.
            let times = if memory.phys_read(slot.base + 8, 4) == 0 { 1 } else { 12 };
            windows.extend(vec![slot; times]);
        }
        return windows;
    };
    let mut bars = Vec::new();
    bus.visit(0, &mut |number, at, config| {
        if number == 0 {
            bars.extend((0..6).filter_map(|n| Some((at, config.get32(0), n as u16, config.bar(n)?))));
        }
    });
    let (mut memory, mut port) = (MEMORY, PORTS);
    for (at, id, n, (kind, size)) in bars {
        let io = kind == BarKind::Io;
        let next = if io { &mut port } else { &mut memory };
        *next = next.next_multiple_of(size);
        let window = Window { id, at: Some((at, 0x10 + 4 * n)), io, base: *next, len: size };
        *next += size;
        // Those of storage, which has most to lose, come more often.
        let times = if rng.chance(50) { 3 } else { 1 };
        windows.extend(vec![window; times]);
        decode(&bus, &window);
    }
    windows
}

/// Has the function answer there, and master the bus.
fn decode(bus: &PciBus, window: &Window) {
    if let Some((at, register)) = window.at {
        bus.config_write(0, at, register, 4, window.base as u32);
        if !window.io && bus.config_read(0, at, register, 4) & 6 == 4 {
            bus.config_write(0, at, register + 4, 4, 0);
        }
        bus.config_write(0, at, 4, 2, 7);
    }
}

/// One that makes accesses.
pub(crate) struct Driver {
    pub(crate) rng: Rng,
    handle: Handle,
    pub(crate) memory: Arc<PhysMemory>,
    windows: Arc<Vec<Window>>,
    made: u64,
}

impl Driver {
    fn act(&mut self) {
        let window = self.rng.pick(&self.windows);
        match self.rng.below(16) {
            0 => self.configure(&window),
            1 | 2 => self.fill(),
            3..=8 if self.card(&window) => {}
            3..=6 if window.id & 0xffff == 0x1af4 && window.len >= 0x4000 => self.virtio_pci(&window),
            3..=6 if window.at.is_none() && !window.io => self.virtio_mmio(&window),
            3..=6 if window.id == 0x0010_1b36 => self.nvme(&window),
            3..=6 if window.base == 0x1f0 || window.base == 0x170 => self.ata(window.base),
            _ => {
                for _ in 0..1 + self.rng.below(32) {
                    self.any(&window);
                }
            }
        }
    }

    /// Somewhere in RAM that matters, or not there.
    pub(crate) fn address(&mut self) -> u64 {
        match self.rng.below(16) {
            0 => self.rng.u64(),
            1 => RAM - self.rng.below(0x2000),
            2 => self.rng.pick(&[0xfee0_0000, MEMORY, 0xffff_f000, 0xa_0000, u64::MAX - 0xfff]),
            3 => BUFFERS + self.rng.below(0x10_0000),
            4..=9 => RINGS + 0x1000 * self.rng.below(64),
            _ => BUFFERS + 0x1000 * self.rng.below(256),
        }
    }

    /// What a register may be given.
    pub(crate) fn value(&mut self) -> u64 {
        match self.rng.below(8) {
            0 => self.rng.u64(),
            1 => 1 << self.rng.below(32),
            2 => !(1u64 << self.rng.below(32)),
            3 | 4 => self.rng.below(32),
            5 => self.rng.below(0x1_0000),
            _ => self.address(),
        }
    }

    pub(crate) fn write(&mut self, window: &Window, at: u64, size: u8, value: u64) {
        self.made += 1;
        match window.io {
            true => self.handle.port_write((window.base + at) as u16, size.min(4), value as u32),
            false => self.memory.phys_write(window.base + at, size, value),
        }
    }

    pub(crate) fn read(&mut self, window: &Window, at: u64, size: u8) -> u64 {
        self.made += 1;
        match window.io {
            true => self.handle.port_read((window.base + at) as u16, size.min(4)).into(),
            false => self.memory.phys_read(window.base + at, size),
        }
    }

    /// An access to registers, most of which are at the front of a window.
    fn any(&mut self, window: &Window) {
        let size = self.rng.pick(&[1, 2, 4, 4, 4, 8]);
        let reach = if self.rng.chance(80) { window.len.min(0x200) } else { window.len };
        let at = self.rng.below(reach) & if self.rng.chance(90) { !(u64::from(size) - 1) } else { !0 };
        if self.rng.chance(30) {
            self.read(window, at, size);
        } else {
            let value = self.value();
            self.write(window, at, size, value);
        }
    }

    /// The function's configuration space; then it answers again.
    fn configure(&mut self, window: &Window) {
        let (Some((at, _)), Some(bus)) = (window.at, self.handle.pci()) else { return };
        for _ in 0..self.rng.below(8) {
            let (register, size) = (self.rng.below(0x100) as u16 & !3, self.rng.pick(&[1, 2, 4]));
            let value = self.value() as u32;
            bus.config_write(0, at, register, size, value);
            self.made += 1;
        }
        decode(&bus, window);
    }

    /// Entries of address, length, flags and next, which is what most rings and tables are made of.
    fn fill(&mut self) {
        let base = RINGS + 0x1000 * self.rng.below(64);
        for n in 0..self.rng.below(256) {
            let address = self.address();
            let len = if self.rng.chance(80) { 512 * (1 + self.rng.below(16)) } else { self.value() };
            let flags = if self.rng.chance(80) { self.rng.below(8) } else { self.rng.u64() };
            let next = if self.rng.chance(80) { (n + 1) % 256 } else { self.rng.below(0x1_0000) };
            self.memory.write(base + 16 * n, &address.to_le_bytes());
            let rest = len & 0xffff_ffff | (flags & 0xffff) << 32 | next << 48;
            self.memory.write(base + 16 * n + 8, &rest.to_le_bytes());
        }
    }

    /// A chain of a queue that lies at `ring`, with heads of a block device's request.
    fn offer(&mut self, ring: u64) {
        let kind = self.rng.pick(&[0u32, 1, 4, 8, 11, 13, 99]);
        self.memory.write(BUFFERS, &kind.to_le_bytes());
        let sector = self.rng.below(0x900);
        self.memory.write(BUFFERS + 8, &sector.to_le_bytes());
        let count = 1 + self.rng.below(6);
        for n in 0..count {
            let odd = self.rng.chance(10);
            let address = if odd { self.address() } else { BUFFERS + 0x2000 * n };
            let len = if odd { self.value() } else { [16, 512 << self.rng.below(6)][usize::from(n > 0)] };
            let flags = if odd { self.rng.below(8) } else { u64::from(n + 1 < count) | (n & 2) };
            let next = if self.rng.chance(5) { self.rng.below(40) } else { n + 1 };
            self.memory.write(ring + 16 * n, &address.to_le_bytes());
            let rest = len & 0xffff_ffff | flags << 32 | next << 48;
            self.memory.write(ring + 16 * n + 8, &rest.to_le_bytes());
        }
        let index = self.memory.read_u16(ring + 0x402);
        self.memory.write_u16(ring + 0x404 + 2 * u64::from(index % 16), self.rng.below(4) as u16);
        let more = if self.rng.chance(10) { self.rng.below(0x1_0000) as u16 } else { 1 };
        self.memory.write_u16(ring + 0x402, index.wrapping_add(more));
    }

    /// A virtio device: the common configuration is at the front of its BAR, notifications at 3000h.
    fn virtio_pci(&mut self, w: &Window) {
        if self.rng.chance(20) || self.read(w, 20, 1) & 0x44 != 4 {
            self.set_up_virtio(w);
        }
        let queue = self.rng.below(4);
        self.offer(RINGS + 0x1000 * queue);
        self.write(w, 0x3000 + 4 * queue, 2, queue);
    }

    /// Up to five queues, each with its rings in a page.
    pub(crate) fn set_up_virtio(&mut self, w: &Window) {
        let steps: [(u64, u8, u64); 9] = [
            (20, 1, 0),
            (20, 1, 3),
            (8, 4, 0),
            (12, 4, u64::from(self.rng.u32())),
            (8, 4, 1),
            (12, 4, 1 | self.rng.below(8)),
            (20, 1, 11),
            (16, 2, self.rng.below(4)),
            (24, 2, 16),
        ];
        steps.into_iter().for_each(|(at, size, value)| self.write(w, at, size, value));
        for queue in 0..1 + self.rng.below(5) {
            let ring = RINGS + 0x1000 * queue;
            self.write(w, 22, 2, queue);
            let entries = self.rng.pick(&[16, 16, 16, 0, 3, 256, 0xffff]);
            self.write(w, 24, 2, entries);
            for part in 0..3 {
                let at = if self.rng.chance(5) { self.address() } else { ring + 0x400 * part };
                self.write(w, 32 + 8 * part, 8, at);
            }
            self.write(w, 28, 2, 1);
        }
        self.write(w, 20, 1, 15);
    }

    /// The same behind memory-mapped registers.
    fn virtio_mmio(&mut self, w: &Window) {
        let queue = self.rng.below(4);
        // A network card, which is set up when it has to be, or it passes nothing.
        let net = self.read(w, 8, 4) == 1;
        let again = match net {
            true if self.read(w, 0x70, 4) & 0x44 == 4 => 5,
            true => 60,
            false => 30,
        };
        if self.rng.chance(again) {
            let low = if net { self.rng.u64() & 0xffff_ffff } else { 0 };
            let steps = [(0x70, 0), (0x70, 3), (0x24, 0), (0x20, low), (0x24, 1), (0x20, 1), (0x70, 11)];
            steps.into_iter().for_each(|(at, value)| self.write(w, at, 4, value));
            // One of a network card's alone does nothing.
            for queue in if net { 0..3 } else { queue..queue + 1 } {
                let ring = RINGS + 0x1000 * queue;
                self.write(w, 0x30, 4, queue);
                self.write(w, 0x38, 4, 16);
                for (at, part) in [(0x80, 0), (0x90, 1), (0xa0, 2)] {
                    self.write(w, at, 4, ring + 0x400 * part);
                    self.write(w, at + 4, 4, 0);
                }
                self.write(w, 0x44, 4, 1);
            }
            self.write(w, 0x70, 4, 15);
        }
        let queue = if net {
            self.frames();
            self.net_chains()
        } else {
            self.offer(RINGS + 0x1000 * queue);
            queue
        };
        self.write(w, 0x50, 4, queue);
    }

    /// An NVMe controller: administration, and one queue for commands.
    fn nvme(&mut self, w: &Window) {
        if self.rng.chance(20) {
            for (at, size, value) in [
                (0x14, 4, 0),
                (0x24, 4, 0xf_000f),
                (0x28, 8, RINGS),
                (0x30, 8, RINGS + 0x8000),
                (0x14, 4, 0x46_0001),
            ] {
                self.write(w, at, size, value);
            }
        }
        for slot in 0..16 {
            let (mut entry, queue) = ([0u32; 16], self.rng.below(2));
            entry[0] = self.rng.pick(&[0u32, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 0x80, 0x84]) | slot << 16;
            entry[1] = self.rng.pick(&[1, 1, 0, 2, u32::MAX]);
            for at in [6, 8] {
                let address = self.address();
                (entry[at], entry[at + 1]) = (address as u32, (address >> 32) as u32);
            }
            (10..16).for_each(|n| entry[n] = self.value() as u32);
            let bytes = entry.map(u32::to_le_bytes);
            self.memory.write(RINGS + 0x1000 * queue + 64 * u64::from(slot), bytes.as_flattened());
        }
        for _ in 0..8 {
            let (bell, tail) = (self.rng.below(4), self.rng.below(16));
            self.write(w, 0x1000 + 4 * bell, 4, tail);
        }
    }

    /// A disk or CD-ROM drive on a cable: a command, or a packet, and some of its data.
    fn ata(&mut self, base: u64) {
        let w = Window { id: 0, at: None, io: true, base, len: 8 };
        let unit = 0xa0 | self.rng.below(2) << 4 | self.rng.below(2) << 6;
        self.write(&w, 6, 1, unit);
        for at in [1, 2, 3, 4, 5, 2, 3, 4, 5] {
            let value = if self.rng.chance(60) { self.rng.below(4) } else { self.rng.below(256) };
            self.write(&w, at, 1, value);
        }
        let commands = [
            0x20, 0x30, 0x24, 0x34, 0x25, 0x35, 0xc8, 0xca, 0xec, 0xa1, 0xa0, 0xc4, 0xc5, 0xc6, 0xe7, 0x06,
            0xb0, 8,
        ];
        let command = if self.rng.chance(90) { self.rng.pick(&commands) } else { self.rng.below(256) };
        self.write(&w, 7, 1, command);
        for n in 0..self.rng.below(600) {
            let word =
                if n == 0 { self.rng.pick(&[0x28, 0xa8, 0x12, 0x43, 0x5a, 0xbe]) } else { self.value() };
            match self.rng.chance(50) || n < 6 {
                true => self.write(&w, 0, 2, word),
                false => _ = self.read(&w, 0, 2),
            }
        }
        self.read(&w, 7, 1);
    }
}
