//! Mynah's CPU with RAM, a local APIC, the log port and isa-debug-exit: what a test's guest needs of a machine.
//!
//! It runs on a thread of its own, with a small stack: what recurses as a guest pleases is found by overflowing it.
use crate::layout::{ENOUGH, EXIT_PORT, LOG_PORT};
use mynah::machine::kernel::enter;
use mynah::machine::vcpu::{Pins, VcpuBoard};
use mynah_cpu::accel::{EngineError, Software};
use mynah_cpu::board::EV_KICK;
use mynah_cpu::state::State;
use mynah_cpu::tier::Tier;
use mynah_cpu::{Accelerator, Cpu, CpuModel, Events, Exit};
use mynah_devices::bus::{PortBus, PortIo, open_bus};
use mynah_devices::clock::ManualClock;
use mynah_devices::interrupts::lapic::{LocalApics, ReadTsc};
use mynah_devices::misc::entropy::{Asker, Entropy};
use mynah_firmware::{Config, LoadRequest, build_tables, load};
use mynah_jit::tier::{Optimize, Translating};
use mynah_mmu::{GuestRam, PhysMemory};
use std::cell::Cell;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex, mpsc};
use std::time::{Duration, Instant};

/// Instructions after which a guest counts as lost.
const LIMIT: u64 = 20_000_000;
/// So does one that has not ended by then: what only faults executes no instructions.
const LONGEST: Duration = Duration::from_secs(30);
/// And one that goes from engine to engine until that was often enough: a busy host takes its time.
const LONGEST_IN_TURNS: Duration = Duration::from_secs(180);
/// How often it is handed over before it is told that this is enough ([`ENOUGH`]).
pub const ENOUGH_TURNS: u64 = 1000;
/// A longer log is that of a lost guest, too.
const MAX_LOG: usize = 256 << 10;
const RAM: u64 = 32 << 20;
/// The stack of the vCPU's thread, a 32nd of what the emulator gives it. What is compiled on this thread, too (by tests
/// alone) needs more.
const STACK: usize = 256 << 10;
const STACK_WITH_COMPILER: usize = 512 << 10;
/// A vCPU that does not leave its run loop in this time after a kick never will.
const PATIENCE: Duration = Duration::from_secs(30);

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
    /// The translator, which compiles every block when it is first met: all that can be is compiled code, in regions of
    /// one block.
    Translator,
    /// The translator, which compiles a block when it is met for the third time, with those that it leads to.
    Regions,
    /// The translator's baseline, which compiles every block when it is first met.
    Baseline,
    /// The baseline, and regions of blocks that have run four times.
    Tiers,
    /// The host's KVM.
    Kvm,
    /// The translator and KVM, in turns: whenever the vCPU comes out of its run, which it is made to all the time, the
    /// other goes on.
    InTurns,
    /// KVM with interrupt controllers in the kernel.
    KvmKeeping(Kept),
    /// In turns with that.
    InTurnsKeeping(Kept),
}

/// What KVM's kernel keeps while it runs the vCPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kept {
    /// The local APIC (`kernel-irqchip=split`).
    LocalApic,
    /// All interrupt controllers (`kernel-irqchip=on`).
    All,
}

impl Engine {
    fn stack(self) -> usize {
        match self {
            Self::Blocks | Self::Steps => STACK,
            _ => STACK_WITH_COMPILER,
        }
    }

    /// Whether KVM takes part.
    fn is_kvm(self) -> bool {
        matches!(self, Self::Kvm | Self::InTurns | Self::KvmKeeping(_) | Self::InTurnsKeeping(_))
    }

    /// All that this host has; KVM if the environment's `MYNAH_BY_KVM` is set.
    pub fn all() -> Vec<(Self, &'static str)> {
        let mut all = vec![(Self::Blocks, "blocks"), (Self::Steps, "steps")];
        if cfg!(target_arch = "x86_64") {
            all.push((Self::Translator, "translated"));
            all.push((Self::Regions, "in regions"));
            all.push((Self::Baseline, "in the baseline"));
            all.push((Self::Tiers, "in tiers"));
        }
        // KVM of a host that is itself a virtual machine emulates what is here, and not all as the manual has it.
        if std::env::var_os("MYNAH_BY_KVM").is_some() && kvm_is_there() {
            all.push((Self::Kvm, "by KVM"));
        }
        all
    }
}

/// The two that run the vCPU in turns.
struct InTurns {
    kvm: Box<dyn Accelerator>,
    /// What KVM's kernel may have of the board.
    apics: Arc<LocalApics>,
    /// The translator, while KVM runs the vCPU.
    tier: Option<(Box<dyn Tier>, u32)>,
    changes: u64,
}

impl Accelerator for InTurns {
    fn name(&self) -> &'static str {
        "in turns"
    }
    fn run(&mut self, cpu: &mut Cpu) -> Result<Exit, EngineError> {
        self.changes += 1;
        if self.changes == ENOUGH_TURNS {
            cpu.mem.write_u32(ENOUGH.into(), 1);
        }
        CHANGES.with(|changes| changes.set(self.changes));
        match self.tier.take() {
            Some((tier, hot_after)) => {
                self.apics.take_back();
                cpu.set_tier(tier, hot_after);
                Software.run(cpu)
            }
            None => {
                self.tier = cpu.take_tier();
                self.kvm.run(cpu)
            }
        }
    }
}

thread_local! {
    /// How often the vCPU of this thread has been handed over.
    static CHANGES: Cell<u64> = const { Cell::new(0) };
}

/// What came of a run.
pub struct Outcome {
    /// How often the guest was handed to another engine.
    pub changes: u64,
    /// What the guest wrote, and a last line if it did not end by isa-debug-exit.
    pub log: String,
    /// Regions that the translator compiled.
    pub translated: u64,
}

/// What a guest is run on.
struct Machine {
    cpu: Box<Cpu>,
    by: Box<dyn Accelerator>,
    ports: Arc<Ports>,
    /// Regions compiled so far.
    translated: Box<dyn Fn() -> u64>,
    /// The bus of its APIC, which only holds it weakly.
    _apics: Arc<LocalApics>,
}

impl Machine {
    fn new(guest: &Image, engine: Engine, events: Arc<Events>) -> Self {
        let ram = GuestRam::new(RAM).expect("guest RAM");
        let memory = PhysMemory::new(ram, RAM);
        let tables = build_tables(&*memory, &Config::default()).expect("firmware tables");
        let entry =
            load(&*memory, &tables, &LoadRequest::new("guest", guest.bytes)).expect("a multiboot image");
        let in_turns = matches!(engine, Engine::InTurns | Engine::InTurnsKeeping(_));
        memory.write_u32(ENOUGH.into(), u32::from(!in_turns));
        for &page in guest.read_only {
            memory.map_ram_read_only(u64::from(page), 0x1000);
        }
        let ports =
            Arc::new(Ports { log: Mutex::default(), exited: AtomicBool::new(false), events: events.clone() });
        let bus = Arc::new(PortBus::new());
        bus.map(LOG_PORT as u16, 1, Arc::new(LogPort(ports.clone())));
        bus.map(EXIT_PORT as u16, 4, Arc::new(ExitPort(ports.clone())));
        let apics = LocalApics::new(Arc::new(ManualClock::new()), 1_000_000_000);
        let apic = apics.add(0, true, Arc::new(|| 0), Arc::new(Pins(events.clone())));
        let ticks = AtomicU64::new(0);
        let tsc: ReadTsc = Arc::new(move || ticks.fetch_add(1, Ordering::Relaxed));
        let board = Arc::new(VcpuBoard {
            ports: bus,
            apic,
            entropy: (Entropy::new(None, 1), Asker::Vcpu(0)),
            tsc,
            tsc_offset: Arc::default(),
            bios: None,
            ferr: None,
            handoffs: None,
        });
        let mut model = CpuModel::parse(guest.model).expect("the model");
        #[cfg(all(target_os = "linux", target_arch = "x86_64"))]
        if engine.is_kvm() {
            let missing = mynah_accel::kvm::Host::open().expect("KVM").missing(&model);
            model.without(&missing.into_iter().map(|(_, f)| f).collect::<Vec<_>>());
        }
        let model = Arc::new(model);
        let mut cpu = Cpu::new(0, memory, board, events.clone(), model);
        enter(&mut cpu, Some(&entry));
        let tier = match engine {
            Engine::Steps | Engine::Blocks | Engine::Kvm | Engine::KvmKeeping(_) => None,
            Engine::Baseline => Some(Translating::at_once_with(events, Optimize::Baseline)),
            Engine::Tiers | Engine::InTurns | Engine::InTurnsKeeping(_) => {
                Some(Translating::in_turn(events, 3))
            }
            Engine::Translator | Engine::Regions => Some(Translating::at_once(events)),
        };
        let mut translated: Box<dyn Fn() -> u64> = Box::new(|| 0);
        if let Some(tier) = tier {
            let tier = tier.expect("a translator for this host");
            let counters = tier.counters();
            translated = Box::new(move || counters.compiled.load(Ordering::Relaxed));
            cpu.set_tier(Box::new(tier), if engine == Engine::Regions { 3 } else { 1 });
        }
        let by = accelerator(&cpu, engine, &apics);
        Self { cpu, by, ports, translated, _apics: apics }
    }

    fn log(&self) -> String {
        String::from_utf8_lossy(&self.ports.log.lock().expect("the log")).into_owned()
    }
}

/// Whether this host's KVM works; if not, why is said once.
pub fn kvm_is_there() -> bool {
    static THERE: LazyLock<bool> = LazyLock::new(|| {
        #[cfg(all(target_os = "linux", target_arch = "x86_64"))]
        let there = mynah_accel::kvm::Host::open().map(|_| ()).map_err(|e| e.to_string());
        #[cfg(not(all(target_os = "linux", target_arch = "x86_64")))]
        let there: Result<(), String> = Err("this host has no KVM".into());
        there.inspect_err(|why| eprintln!("SKIPPED: guests by KVM: {why}")).is_ok()
    });
    *THERE
}

/// What it can keep in the kernel; what it cannot, and why, is said.
pub fn kvm_keeps() -> Vec<Kept> {
    #[cfg(all(target_os = "linux", target_arch = "x86_64"))]
    if kvm_is_there() {
        let host = mynah_accel::kvm::Host::open().expect("KVM");
        let mut all = vec![(Kept::LocalApic, host.lacks_split()), (Kept::All, host.lacks_irqchip())];
        all.retain(|(kept, lacks)| match lacks {
            None => true,
            Some(what) => {
                eprintln!(
                    "SKIPPED: guests by KVM with controllers in the kernel ({kept:?}): it lacks {what}"
                );
                false
            }
        });
        return all.into_iter().map(|(kept, _)| kept).collect();
    }
    Vec::new()
}

/// Whether SYSCALL enters the kernel by this host's KVM: with some that are emulated themselves it does not, which is
/// said.
pub fn kvm_does_system_calls() -> bool {
    #[cfg(all(target_os = "linux", target_arch = "x86_64"))]
    if kvm_is_there() {
        let faults = mynah_accel::kvm::probe::faults().expect("KVM's self-test");
        if faults.syscall {
            eprintln!("SKIPPED: system calls by KVM: SYSCALL stays in user mode by this host's");
        }
        return !faults.syscall;
    }
    false
}

/// The accelerator of an engine that is not the vCPU itself.
fn accelerator(cpu: &Cpu, engine: Engine, apics: &Arc<LocalApics>) -> Box<dyn Accelerator> {
    #[cfg(all(target_os = "linux", target_arch = "x86_64"))]
    if engine.is_kvm() {
        use mynah_accel::kvm::{Host, Irqchip, Vm};
        let irqchip = match engine {
            Engine::KvmKeeping(Kept::LocalApic) | Engine::InTurnsKeeping(Kept::LocalApic) => Irqchip::Split,
            Engine::KvmKeeping(Kept::All) | Engine::InTurnsKeeping(Kept::All) => Irqchip::On,
            _ => Irqchip::Off,
        };
        let vm = Vm::with(Host::open().expect("KVM"), &cpu.mem, irqchip).expect("a virtual machine");
        let kvm = Box::new(vm.vcpu(cpu, 0).expect("a vCPU"));
        return match engine {
            Engine::Kvm | Engine::KvmKeeping(_) => kvm,
            _ => Box::new(InTurns { kvm, apics: apics.clone(), tier: None, changes: 0 }),
        };
    }
    let _ = (cpu, engine, apics);
    Box::new(Software)
}

/// A guest as it is loaded.
#[derive(Clone, Copy)]
pub struct Image<'a> {
    /// The Multiboot image.
    pub bytes: &'a [u8],
    /// The CPU model.
    pub model: &'a str,
    /// Pages of RAM that cannot be written, as firmware shadows itself.
    pub read_only: &'a [u32],
}

/// Does `f` on a thread with the stack that this engine's vCPU has in tests.
fn on_small_stack<R: Send>(engine: Engine, f: impl FnOnce() -> R + Send) -> R {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().stack_size(engine.stack()).spawn_scoped(scope, f);
        thread.expect("a thread for the vCPU").join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Runs an image until it exits; the log, and a last line if it ended otherwise.
pub fn run(guest: &Image, engine: Engine) -> Outcome {
    on_small_stack(engine, || {
        let mut machine = Machine::new(guest, engine, Arc::default());
        let end = if engine == Engine::Steps {
            run_steps(&mut machine.cpu, &machine.ports).to_owned()
        } else {
            // What computes for long does so in compiled code.
            let long = matches!(engine, Engine::Tiers | Engine::InTurns | Engine::InTurnsKeeping(_));
            run_blocks(&mut machine, if long { u64::MAX } else { LIMIT })
        };
        let changes = CHANGES.with(Cell::get);
        Outcome { log: machine.log() + &end, translated: (machine.translated)(), changes }
    })
}

/// Runs a guest that never ends by itself, and kicks it until it has left the run loop so `times` times where it is to
/// stay: `there` says so of its state. Those states; an error if it has not left the run loop, or has for another
/// reason.
pub fn kick(
    guest: &Image,
    engine: Engine,
    times: usize,
    there: impl Fn(&State) -> bool + Send + 'static,
) -> Result<Vec<State>, String> {
    let events: Arc<Events> = Arc::default();
    let (sender, left) = mpsc::channel();
    let (bytes, read_only, theirs) = (guest.bytes.to_vec(), guest.read_only.to_vec(), events.clone());
    let model = guest.model.to_owned();
    // Not a scoped thread: if it hangs, the test fails without it.
    let thread = std::thread::Builder::new().stack_size(engine.stack()).spawn(move || {
        let mut machine = Machine::new(
            &Image { bytes: &bytes, model: &model, read_only: &read_only },
            engine,
            theirs.clone(),
        );
        for _ in 0..times {
            let exit = loop {
                let exit = match engine {
                    Engine::Steps => machine.cpu.step(),
                    _ => Some(machine.by.run(&mut machine.cpu).expect("an engine that goes on")),
                };
                match exit {
                    // A kick that came too early.
                    Some(Exit::Kick) if !there(&machine.cpu.state) => {}
                    None => {}
                    Some(exit) => break exit,
                }
            };
            let outcome = match exit {
                Exit::Kick => Ok(machine.cpu.state.clone()),
                other => Err(format!("{other:?} after {:?}", machine.log())),
            };
            if sender.send(outcome).is_err() {
                return;
            }
        }
    });
    drop(thread.expect("a thread for the vCPU"));
    let mut all = Vec::new();
    for n in 0..times {
        // Time to get there. A kick that is too early is followed by another.
        let kicked = (0..30).find_map(|_| {
            std::thread::sleep(Duration::from_millis(if n == 0 { 50 } else { 5 }));
            events.raise(EV_KICK);
            left.recv_timeout(PATIENCE / 30).ok()
        });
        all.push(kicked.ok_or_else(|| format!("kick {n}: the vCPU has not left its run loop there"))??);
    }
    Ok(all)
}

fn ended(exit: Exit, ports: &Ports, cpu: &Cpu, limit: u64) -> Option<&'static str> {
    match exit {
        _ if ports.exited.load(Ordering::Relaxed) => Some(""),
        Exit::Shutdown => Some("shutdown\n"),
        Exit::Halt if cpu.events.pending() & cpu.event_mask == 0 => Some("halted\n"),
        _ if cpu.icount > limit => Some("lost\n"),
        _ => None,
    }
}

fn run_steps(cpu: &mut Cpu, ports: &Ports) -> &'static str {
    let limit = LIMIT;
    for _ in 0..LIMIT {
        if let Some(exit) = cpu.step()
            && let Some(end) = ended(exit, ports, cpu, limit)
        {
            return end;
        }
    }
    "lost\n"
}

fn run_blocks(machine: &mut Machine, limit: u64) -> String {
    let Machine { cpu, by, ports, .. } = machine;
    let done = AtomicBool::new(false);
    let events = cpu.events.clone();
    let (pause, longest) = match by.name() {
        "in turns" => (Duration::from_micros(250), LONGEST_IN_TURNS),
        _ => (Duration::from_millis(50), LONGEST),
    };
    std::thread::scope(|scope| {
        // A guest in an endless loop is looked after by kicks.
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                std::thread::park_timeout(pause);
                events.raise(EV_KICK);
            }
        });
        let latest = Instant::now() + longest;
        let end = loop {
            let exit = match by.run(cpu) {
                Ok(exit) => exit,
                Err(e) => break format!("{e}\n"),
            };
            if let Some(end) = ended(exit, ports, cpu, limit) {
                break end.into();
            }
            if Instant::now() > latest {
                break "lost\n".into();
            }
        };
        done.store(true, Ordering::Relaxed);
        end
    })
}
