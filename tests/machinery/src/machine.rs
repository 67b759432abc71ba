//! Mynah's CPU with RAM, a local APIC, the log port and isa-debug-exit: what a test's guest needs of a machine.
use crate::layout::{EXIT_PORT, LOG_PORT};
use mynah::machine::kernel::enter;
use mynah::machine::vcpu::{Pins, VcpuBoard};
use mynah_cpu::board::EV_KICK;
use mynah_cpu::{Cpu, CpuModel, Events, Exit};
use mynah_devices::bus::{PortBus, PortIo, open_bus};
use mynah_devices::clock::ManualClock;
use mynah_devices::interrupts::lapic::{LocalApics, ReadTsc};
use mynah_firmware::{Config, LoadRequest, build_tables, load};
use mynah_jit::tier::{Optimize, Translating};
use mynah_mmu::{GuestRam, PhysMemory};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

/// Instructions after which a guest counts as lost.
const LIMIT: u64 = 20_000_000;
/// A longer log is that of a lost guest, too.
const MAX_LOG: usize = 256 << 10;
const RAM: u64 = 32 << 20;

/// The log port and isa-debug-exit; a guest that ends, or logs too much, has the vCPU leave its run loop.
struct Ports {
    log: Mutex<Vec<u8>>,
    exited: AtomicBool,
    events: Arc<Events>,
}

impl Ports {
    fn exit(&self) {
        self.exited.store(true, Ordering::Relaxed);
        self.events.raise(EV_KICK);
    }
}

struct LogPort(Arc<Ports>);

impl PortIo for LogPort {
    fn read(&self, _: u16, _: u8) -> u32 {
        LOG_PORT
    }
    fn write(&self, _: u16, _: u8, value: u32) {
        let mut log = self.0.log.lock().expect("the log");
        if log.len() < MAX_LOG {
            log.push(value as u8);
        } else {
            self.0.exit();
        }
    }
}

struct ExitPort(Arc<Ports>);

impl PortIo for ExitPort {
    fn read(&self, _: u16, size: u8) -> u32 {
        open_bus(size)
    }
    fn write(&self, _: u16, _: u8, _: u32) {
        self.0.exit();
    }
}

/// How Mynah executes the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Engine {
    /// The interpreter: [`Cpu::run`].
    Blocks,
    /// The interpreter, one instruction at a time: [`Cpu::step`].
    Steps,
    /// The translator, which compiles every block when it is first met: all that can be is compiled code, in regions of one block.
    Translator,
    /// The translator, which compiles a block when it is met for the third time, with those that it leads to.
    Regions,
    /// The translator's baseline, which compiles every block when it is first met.
    Baseline,
    /// The baseline, and regions of blocks that have run four times.
    Tiers,
}

impl Engine {
    /// All that this host has.
    pub fn all() -> Vec<(Self, &'static str)> {
        let mut all = vec![(Self::Blocks, "blocks"), (Self::Steps, "steps")];
        if cfg!(target_arch = "x86_64") {
            all.push((Self::Translator, "translated"));
            all.push((Self::Regions, "in regions"));
            all.push((Self::Baseline, "in the baseline"));
            all.push((Self::Tiers, "in tiers"));
        }
        all
    }
}

/// What came of a run.
pub struct Outcome {
    /// What the guest wrote, and a last line if it did not end by isa-debug-exit.
    pub log: String,
    /// Regions that the translator compiled.
    pub translated: u64,
}

/// Runs an image until it exits; the log, and a last line if it ended otherwise.
pub fn run(image: &[u8], engine: Engine) -> Outcome {
    let ram = GuestRam::new(RAM).expect("guest RAM");
    let memory = PhysMemory::new(ram, RAM);
    let tables = build_tables(&*memory, &Config::default()).expect("firmware tables");
    let entry = load(&*memory, &tables, &LoadRequest::new("guest", image)).expect("a multiboot image");
    let events = Arc::new(Events::default());
    let ports =
        Arc::new(Ports { log: Mutex::default(), exited: AtomicBool::new(false), events: events.clone() });
    let bus = Arc::new(PortBus::new());
    bus.map(LOG_PORT as u16, 1, Arc::new(LogPort(ports.clone())));
    bus.map(EXIT_PORT as u16, 4, Arc::new(ExitPort(ports.clone())));
    let apics = LocalApics::new(Arc::new(ManualClock::new()), 1_000_000_000);
    let apic = apics.add(0, true, Arc::new(|| 0), Arc::new(Pins(events.clone())));
    let ticks = AtomicU64::new(0);
    let tsc: ReadTsc = Arc::new(move || ticks.fetch_add(1, Ordering::Relaxed));
    let board = Arc::new(VcpuBoard { ports: bus, apic, tsc, bios: None, ferr: None });
    let model = Arc::new(CpuModel::parse("max").expect("the model"));
    let mut cpu = Cpu::new(0, memory, board, events.clone(), model);
    enter(&mut cpu, Some(&entry));
    let mut translated = 0;
    let end = match engine {
        Engine::Steps => run_steps(&mut cpu, &ports),
        Engine::Blocks => run_blocks(&mut cpu, &ports),
        Engine::Translator | Engine::Regions | Engine::Baseline | Engine::Tiers => {
            let tier = match engine {
                Engine::Baseline => Translating::at_once_with(events.clone(), Optimize::Baseline),
                Engine::Tiers => Translating::in_turn(events.clone(), 3),
                _ => Translating::at_once(events.clone()),
            };
            let tier = tier.expect("a translator for this host");
            let counters = tier.counters();
            cpu.set_tier(Box::new(tier), if engine == Engine::Regions { 3 } else { 1 });
            let end = run_blocks(&mut cpu, &ports);
            translated = counters.compiled.load(Ordering::Relaxed);
            end
        }
    };
    let mut log = String::from_utf8_lossy(&ports.log.lock().expect("the log")).into_owned();
    log += end;
    Outcome { log, translated }
}

fn ended(exit: Exit, ports: &Ports, cpu: &Cpu) -> Option<&'static str> {
    match exit {
        _ if ports.exited.load(Ordering::Relaxed) => Some(""),
        Exit::Shutdown => Some("shutdown\n"),
        Exit::Halt if cpu.events.pending() & cpu.event_mask == 0 => Some("halted\n"),
        _ if cpu.icount > LIMIT => Some("lost\n"),
        _ => None,
    }
}

fn run_steps(cpu: &mut Cpu, ports: &Ports) -> &'static str {
    for _ in 0..LIMIT {
        if let Some(exit) = cpu.step()
            && let Some(end) = ended(exit, ports, cpu)
        {
            return end;
        }
    }
    "lost\n"
}

fn run_blocks(cpu: &mut Cpu, ports: &Ports) -> &'static str {
    let done = AtomicBool::new(false);
    let events = cpu.events.clone();
    std::thread::scope(|scope| {
        // A guest in an endless loop is looked after by kicks.
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                std::thread::park_timeout(std::time::Duration::from_millis(50));
                events.raise(EV_KICK);
            }
        });
        let end = loop {
            let exit = cpu.run();
            if let Some(end) = ended(exit, ports, cpu) {
                break end;
            }
        };
        done.store(true, Ordering::Relaxed);
        end
    })
}
