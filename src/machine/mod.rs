//! The machine: a board with processors, memory and a kernel, from a [`Config`] to an exit code.

pub mod bios;
pub mod board;
pub mod boards;
pub mod budget;
pub mod console;
pub mod drives;
pub mod ending;
pub mod engines;
pub mod flash;
mod guestfwd;
pub mod handle;
pub mod handoff;
mod info;
pub mod inside;
pub mod kernel;
mod keys;
pub mod lockstep;
pub mod monitor;
pub mod nets;
pub mod power;
pub mod saved;
pub mod shadow;
pub mod stats;
pub mod vcpu;

pub use handle::{Handle, Refused, Status};

use crate::config::{AccelKind, Check, Config, LogItem, NetKind, Netdev, exit_code};
use anyhow::{Context, bail};
use bios::BiosCalls;
use board::Board;
use ending::{Ending, GRACE};
use engines::{Engines, Recipe, Seat};
use handoff::Handoffs;
use lockstep::Lockstep;
use lockstep::verdict::Verdict;
use mynah_cpu::Accelerator;
use mynah_cpu::trace::{self, Trace};
use mynah_cpu::{Cpu, CpuModel, World};
use mynah_devices::clock::{Clock, SECOND};
use mynah_devices::event_loop::EventLoop;
use mynah_jit::perf::Symbols;
use mynah_mmu::{GuestRam, PhysMemory};
use parking_lot::Mutex;
use power::Power;
use saved::{Fitted, Incoming};
use stats::{Stats, VcpuStats};
use std::sync::Arc;
use vcpu::VcpuHandle;

/// Builds the machine of the command line and runs it to its end; the exit code. Signals that end processes end the
/// machine, and nothing it does keeps the process from ending.
pub fn run(cfg: Config) -> anyhow::Result<i32> {
    refuse_unbuilt(&cfg)?;
    let handle = Handle::new(&cfg);
    // Before anything that could wait, and gone after all else.
    let _ending = Ending::watch(handle.power()).context("cannot watch over the machine's end")?;
    let program = cfg.program.clone();
    let mut told = Vec::new();
    let machine = Machine::build(cfg, handle, &mut told)?;
    told.iter().for_each(|line| crate::cli::say(&program, line));
    machine.run()
}

/// A machine: board, processors and what is to be booted, from a [`Config`] to its end.
///
/// ```
/// use mynah::config::Config;
/// use mynah::machine::{Machine, Status};
/// use std::time::Duration;
///
/// # let folder = std::env::temp_dir().join(format!("mynah-doc-{}", std::process::id()));
/// # std::fs::create_dir_all(&folder)?;
/// let kernel = folder.join("kernel");
/// std::fs::write(&kernel, mynah_guests::embedded::image()?)?;
///
/// let mut config = Config { kernel: Some(kernel), start_stopped: true, ..Config::default() };
/// config.memory.size = 64 << 20;
/// let machine = Machine::new(config.clone())?;
/// let handle = machine.handle();
/// let run = std::thread::spawn(move || machine.run());
///
/// handle.resume()?;
/// assert_eq!(handle.status(), Status::Running);
/// assert!(handle.inspect().iter().any(|(name, registers)| name == "pit" && registers["timer"].is_u64()));
///
/// // It is saved where it is, and goes on from there in another machine.
/// let saved = format!("file:{}", folder.join("saved").display());
/// handle.save(&saved)?;
/// handle.end();
/// assert!(handle.wait_end(Duration::from_secs(10)));
/// assert_eq!(run.join().unwrap()?, 0);
///
/// let machine = Machine::new(Config { incoming: Some(saved), start_stopped: false, ..config })?;
/// let handle = machine.handle();
/// let run = std::thread::spawn(move || machine.run());
/// # while handle.status() != Status::Running {}
/// assert_eq!(handle.status(), Status::Running);
/// handle.end();
/// assert_eq!(run.join().unwrap()?, 0);
/// # std::fs::remove_dir_all(&folder)?;
/// # Ok::<(), anyhow::Error>(())
/// ```
pub struct Machine {
    cfg: Config,
    handle: Handle,
    board: Arc<Board>,
    consoles: console::Consoles,
    /// The vCPUs, each with what runs it and its calls of the BIOS.
    cpus: Vec<(Box<Cpu>, Seat, Option<Arc<BiosCalls>>)>,
    world: Arc<World>,
    boot: kernel::Boot,
    engines: Arc<Engines>,
    log: Option<Arc<Trace>>,
    incoming: Option<Incoming>,
    lockstep: Option<Lockstep>,
}

impl Machine {
    /// Builds a machine; nothing of it runs yet.
    ///
    /// # Errors
    /// A file cannot be read or is not what it is to be, an option asks for what is not there, the host has not enough
    /// of something.
    pub fn new(cfg: Config) -> anyhow::Result<Self> {
        refuse_unbuilt(&cfg)?;
        let handle = Handle::new(&cfg);
        let mut told = Vec::new();
        let machine = Self::build(cfg, handle, &mut told)?;
        told.iter().for_each(|line| tracing::info!("{line}"));
        Ok(machine)
    }

    /// A handle on it, for any thread.
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// Adds to `told` what the user should know of it.
    fn build(mut cfg: Config, handle: Handle, told: &mut Vec<String>) -> anyhow::Result<Self> {
        let power = handle.power();
        cfg.tsc_hz = tsc_frequency(&cfg)?;
        let mut incoming = cfg.incoming.as_deref().map(|uri| Incoming::read(&cfg, uri)).transpose()?;
        let mut model = cpu_model(&cfg)?;
        let saved = incoming.as_ref().map(|saved| saved.fit(&mut model, &mut cfg)).transpose()?;
        let choice = engines::choose(&cfg, saved.is_some().then_some(&model))?;
        let tsc_hz = *cfg.tsc_hz.get_or_insert(choice.tsc_hz);
        if let Some(why) = &choice.why {
            told.push(why.clone());
        }
        let counter = engines::counter(&cfg, tsc_hz, &choice);
        let fitted = match saved {
            Some(fitted) => fitted,
            None => {
                let missing = choice.fit(&mut model, &cfg);
                if !missing.is_empty() {
                    let without = missing.join(", ");
                    told.push(format!(
                        "-cpu {}: this host's KVM has no {without}: the guest goes without",
                        cfg.cpu.model
                    ));
                }
                Fitted::new(&model, &missing, tsc_hz)
            }
        };
        let model = Arc::new(model);
        let symbols = inside::symbols(&cfg)?;
        let log = trace(&cfg, &symbols)?;
        if let (Some(log), Some(path)) = (&log, &cfg.log.file)
            && path.is_file()
        {
            ending::keep_log(log);
        }
        let boot = kernel::Boot::read(&cfg, &model)?;
        let size = cfg.memory.size;
        let ram = match incoming.as_mut().and_then(Incoming::take_ram) {
            Some(ram) => ram,
            None => {
                GuestRam::new(size).with_context(|| format!("-m: cannot map {size} bytes of guest RAM"))?
            }
        };
        let memory = PhysMemory::new(ram, (cfg.machine.board.below_4g)(size));
        // Early, so that what is on disk can be read while the machine is built.
        let recipe =
            Recipe { cfg: cfg.clone(), log: log.clone(), symbols, image: Mutex::new(Some(boot.image())) };
        let engines = Engines::new(choice, &model, &memory, recipe)?;
        let handles: Vec<VcpuHandle> = (0..cfg.smp.cpus)
            .map(|n| VcpuHandle { apic_id: model.apic_id(n), ..Default::default() })
            .collect();
        let world = World::new(handles.iter().map(|h| (h.events.clone(), h.inbox.clone())));
        power.connect(handles.clone());
        let mut board = Board::new(&cfg, memory.clone(), boot.firmware(), power, &handles)?;
        board.drives = drives::Drives::open(&cfg, power)?;
        flash::plug(&cfg, &mut board)?;
        power.connect_clock(board.clock.clone());
        power.connect_apics(&board.apic_bus);
        power.connect_button(&board.chips.button);
        let events = Arc::new(EventLoop::new().context("cannot start the event loop")?);
        board.nets = nets::Nets::open(&cfg, &events)?;
        board.nets.plug(&board.devices);
        board.handoffs = Handoffs::new(&cfg.program, &cfg.handoffs, &handle, &board.clock);
        if let Some(plans) = &board.handoffs {
            engines.plan(plans.clone());
        }
        let mut consoles = console::Consoles::open(&cfg, &mut board, &handle, &events)?;
        board.nets.lead_to(|id| consoles.device(id), &events)?;
        let fw_cfg = console::attach_extra(&cfg, &mut board, &handle, &mut consoles)?;
        boot.fill(&cfg, &fw_cfg, &board)?;
        boot.plug_drives(&cfg, &board);
        let board = Arc::new(board);
        let entry = match &incoming {
            // The first load shows whether the kernel fits, before anything runs.
            None => boot.load(&board)?,
            Some(saved) => {
                // What is typed from now on is for the guest that was.
                board.devices.pause();
                boot.describe(&board)?;
                saved.restore_board(&board)?;
                None
            }
        };
        if incoming.as_ref().is_some_and(|saved| saved.ran() && !cfg.start_stopped) {
            handle.power().starts_by_itself();
        }
        handle.built(&cfg, fitted, &board, &engines);
        consoles.start(&cfg, &handle)?;

        engines.shown_by(consoles.translators());
        let budget = budget::Budget::of(&cfg);
        let mut cpus = Vec::new();
        for (n, events) in handles.iter().map(|h| &h.events).enumerate() {
            let view = Arc::new(board.view(n));
            let bios = view.bios.clone();
            let mut cpu = Cpu::new(n as u32, memory.clone(), view, events.clone(), model.clone());
            cpu.join(&world, n);
            cpu.set_tsc_offset(counter);
            cpu.bound_blocks(budget.blocks);
            if let Some(log) = &log {
                cpu.set_trace(log.clone());
            }
            let mut seat = engines.seat();
            seat.take_place(&mut cpu).with_context(|| format!("-accel {}", engines.current()))?;
            inside::check(&cfg, &mut cpu, power);
            match &incoming {
                Some(saved) => saved.restore_cpu(n, &mut cpu)?,
                None if n == 0 => kernel::enter(&mut cpu, entry.as_ref()),
                None => kernel::park(&mut cpu),
            }
            cpus.push((cpu, seat, bios));
        }
        let lockstep = None;
        Ok(Self { cfg, handle, board, consoles, cpus, world, boot, engines, log, incoming, lockstep })
    }

    /// Has another engine run beside the one that the machine has; the machine ends where they part. The verdict is
    /// there when it has ended.
    ///
    /// # Errors
    /// The machine has several vCPUs, or is to be handed over.
    pub fn in_lockstep(&mut self, options: lockstep::Options) -> anyhow::Result<Arc<Mutex<Option<Verdict>>>> {
        if self.cpus.len() != 1 {
            bail!("-smp {}: --lockstep takes one vCPU (-smp 1)", self.cpus.len());
        }
        if !self.cfg.handoffs.is_empty() {
            bail!("-handoff: the engines of --lockstep stay what they are");
        }
        let verdict = Arc::new(Mutex::new(None));
        let (told, power) = (verdict.clone(), self.handle.power().clone());
        let end = move |verdict: &Verdict| {
            let code = if matches!(verdict, Verdict::Parted(_)) { exit_code::ERROR } else { 0 };
            *told.lock() = Some(verdict.clone());
            power.end(code, None);
        };
        self.lockstep = Some(Lockstep::new(options, Box::new(end)));
        Ok(verdict)
    }

    /// Runs the machine to its end; the exit code.
    ///
    /// # Errors
    /// The host gives no thread.
    pub fn run(self) -> anyhow::Result<i32> {
        let Self { cfg, handle, board, consoles, cpus, world, boot, engines, log, incoming, mut lockstep } =
            self;
        let power = handle.power();
        let stats = Arc::new(Mutex::new(vec![VcpuStats::default(); cpus.len()]));
        let mut threads = Vec::new();
        for (n, (cpu, seat, bios)) in cpus.into_iter().enumerate() {
            let vcpu = Vcpu {
                cpu,
                seat,
                bios,
                n,
                world: world.clone(),
                power: power.clone(),
                board: board.clone(),
                boot: boot.clone(),
                report: (cfg.check != Check::Off).then(|| cfg.program.clone()),
                stats: stats.clone(),
                lockstep: lockstep.take(),
            };
            let thread = std::thread::Builder::new()
                .name(format!("mynah-vcpu{n}"))
                .stack_size(8 << 20)
                .spawn(move || vcpu.run())
                .context("cannot start a vCPU thread")?;
            threads.push(thread);
        }
        if let Some(saved) = &incoming {
            tracing::info!(took = ?saved.took(), "restored");
            if saved.asleep() {
                power.go_to_sleep();
            }
            board.devices.resume();
            if saved.ran() && !cfg.start_stopped {
                handle.start();
            }
        }
        let end = power.wait_end();
        let until = end.told + GRACE;
        consoles.hurry();
        consoles.leave_terminal();
        if power.wait_gone(threads.len(), until) {
            for t in threads {
                // A vCPU thread that panicked has printed why.
                let _ = t.join();
            }
        } else {
            tracing::debug!("a vCPU does not come out of an instruction; it is not waited for");
        }
        consoles.close(until, &cfg.program);
        board.flash.iter().for_each(|chip| chip.finish());
        if let Some(message) = &end.message {
            // Standard error may be closed, which is no reason to panic.
            crate::cli::say(&cfg.program, message);
        }
        // Before what may take longer than there is time.
        if let Some(log) = &log {
            log.flush();
        }
        if let Some(path) = &cfg.stats {
            let guest_seconds = board.clock.now() as f64 / SECOND as f64;
            let stats =
                Stats { engine: engines.current().to_string(), guest_seconds, vcpus: stats.lock().clone() };
            let written = serde_json::to_vec(&stats).map_err(anyhow::Error::from);
            if let Err(e) = written.and_then(|bytes| Ok(std::fs::write(path, bytes)?)) {
                crate::cli::say(&cfg.program, &format!("-stats {}: {e}", path.display()));
            }
        }
        engines.close();
        if let Some(log) = log {
            log.flush();
        }
        Ok(end.code)
    }
}

/// A vCPU, and what its thread does.
struct Vcpu {
    cpu: Box<Cpu>,
    seat: Seat,
    bios: Option<Arc<BiosCalls>>,
    n: usize,
    world: Arc<World>,
    power: Arc<Power>,
    board: Arc<Board>,
    boot: kernel::Boot,
    /// At its end it says, as this program, what of it was checked.
    report: Option<String>,
    /// What it has counted at its end.
    stats: Arc<Mutex<Vec<VcpuStats>>>,
    /// It is run by two engines.
    lockstep: Option<Lockstep>,
}

impl Vcpu {
    fn run(self) {
        let Self { mut cpu, mut seat, bios, n, world, power, board, boot, report, stats, mut lockstep } =
            self;
        let _gone = Gone(power.clone());
        let engine: &mut dyn Accelerator = match &mut lockstep {
            Some(two) => two,
            None => &mut seat,
        };
        vcpu::run(&mut cpu, engine, &world, n, &power, bios.as_deref(), |cpu, waking| {
            cpu.trace_reset();
            if n != 0 {
                kernel::park(cpu);
                return Ok(());
            }
            match waking {
                Some(cause) => board.wake(cause),
                None => {
                    board.reset();
                    boot.not_the_first(&board);
                }
            }
            cpu.reset();
            let entry = if waking.is_some() { boot.resume(&board) } else { boot.load(&board)? };
            kernel::enter(cpu, entry.as_ref());
            Ok(())
        });
        if let Some(two) = &mut lockstep {
            two.finish();
        }
        stats.lock()[n] =
            VcpuStats { instructions: cpu.icount, in_compiled_code: cpu.in_code, exits: seat.exits() };
        if let Some(program) = report {
            eprintln!("{program}: {}", inside::checked(&cpu));
        }
    }
}

/// Tells that a vCPU's thread has come to its end, even by a panic.
struct Gone(Arc<Power>);

impl Drop for Gone {
    fn drop(&mut self) {
        self.0.vcpu_gone();
    }
}

/// The log of `-d`, if anything is to be in it.
fn trace(cfg: &Config, symbols: &Arc<Symbols>) -> anyhow::Result<Option<Arc<Trace>>> {
    let mut items = 0;
    for item in &cfg.log.items {
        items |= match item {
            LogItem::InAsm => trace::IN_ASM,
            LogItem::Exec => trace::EXEC,
            LogItem::Cpu => trace::CPU,
            LogItem::Fpu => trace::FPU,
            LogItem::Int => trace::INT,
            LogItem::CpuReset => trace::RESET,
            LogItem::NoChain => trace::EVERY_BLOCK,
            // They go through MYNAH_LOG's log.
            LogItem::GuestErrors | LogItem::Unimp => 0,
            // The networks write it themselves.
            LogItem::Net => 0,
            LogItem::OutAsm | LogItem::Ir => trace::TRANSLATOR,
            LogItem::Mmu | LogItem::Pcall => {
                bail!(
                    "-d {item:?}: not supported yet; there are in_asm, ir (or op), out_asm, exec, cpu, fpu, int, cpu_reset, nochain, net"
                );
            }
        };
    }
    if items & !trace::EVERY_BLOCK == 0 {
        return Ok(None);
    }
    let mut out = log_out(cfg)?;
    if cfg.log.file.is_some() {
        out = Box::new(std::io::BufWriter::new(out));
    }
    let mut log = Trace::new(items, cfg.log.filter.clone(), out);
    let symbols = symbols.clone();
    log.set_names(Box::new(move |lin| symbols.name(lin)));
    Ok(Some(Arc::new(log)))
}

/// Where `-d` writes: the end of the file of `-D`, which is empty before the machine starts, so that several may write.
fn log_out(cfg: &Config) -> anyhow::Result<Box<dyn std::io::Write + Send>> {
    let Some(path) = &cfg.log.file else { return Ok(Box::new(std::io::stderr())) };
    let shown = || format!("-D {}", path.display());
    std::fs::File::create(path).with_context(shown)?;
    Ok(Box::new(std::fs::File::options().append(true).open(path).with_context(shown)?))
}

/// What the command line knows but the machine does not have yet is refused, never ignored.
fn refuse_unbuilt(cfg: &Config) -> anyhow::Result<()> {
    if let Some(g) = &cfg.gdb {
        bail!("-gdb {g}: the debugger's stub is not supported yet");
    }
    if let Some(q) = cfg.qmp.first() {
        bail!("-qmp {q}: the management protocol is not supported yet");
    }
    if cfg.escape != 1 {
        bail!(
            "-echr {}: the console's escape character is Ctrl-A (1); another is not supported yet",
            cfg.escape
        );
    }
    if cfg.check != Check::Off && engines::asked(cfg) != AccelKind::Jit {
        bail!("-check: it is the translator that is checked; use -accel jit");
    }
    if let Some(path) = &cfg.symbols
        && !(cfg.perf_map || cfg.jitdump || !cfg.log.items.is_empty())
    {
        bail!("-symbols {}: these are names for -perfmap, -jitdump and -d", path.display());
    }
    if (cfg.perf_map || cfg.jitdump) && engines::asked(cfg) != AccelKind::Jit {
        bail!("-perfmap, -jitdump: it is translated code that they name; use -accel jit");
    }
    if let Some(c) = cfg.chardevs.iter().find(|c| c.log_file.is_some()) {
        bail!("-chardev id={}: logfile= is not supported yet", c.id);
    }
    if let Some(icount) = &cfg.icount {
        bail!("-icount {icount}: counting instructions for time is not supported yet");
    }
    let no_medium = cfg.kernel.is_none() && cfg.bios.is_none() && cfg.drives.iter().all(|d| d.file.is_none());
    if no_medium && !boots_from_network(cfg) {
        bail!(
            "there is nothing to boot: give a disk image, a CD image with -cdrom, a kernel with -kernel, or try 'mynah demo'"
        );
    }
    Ok(())
}

/// Whether the user means to boot from the network: says so, gives a card a place in the order, or serves a file.
fn boots_from_network(cfg: &Config) -> bool {
    let in_order = |order: &str| order.chars().any(|c| ('n'..='p').contains(&c));
    let serves = |n: &Netdev| matches!(&n.kind, NetKind::User(user) if user.bootfile.is_some());
    in_order(&cfg.boot.order)
        || in_order(&cfg.boot.once)
        || cfg.devices.iter().any(|d| d.is_card() && d.values.number("bootindex").is_some())
        || cfg.netdevs.iter().any(serves)
}

/// The rate of vCPUs' time-stamp counters, if the user gives one.
fn tsc_frequency(cfg: &Config) -> anyhow::Result<Option<u64>> {
    let Some((_, value)) = cfg.cpu.properties.iter().find(|(name, _)| name == "tsc-frequency") else {
        return Ok(None);
    };
    let hz = value.parse().ok().filter(|hz| (1_000_000..=100_000_000_000).contains(hz));
    Ok(Some(hz.with_context(|| {
        format!("-cpu {},tsc-frequency={value}: expected Hz, from a million up", cfg.cpu.model)
    })?))
}

pub(crate) fn cpu_model(cfg: &Config) -> anyhow::Result<CpuModel> {
    let mut text = cfg.cpu.model.clone();
    for f in &cfg.cpu.features {
        text.push_str(if f.on { ",+" } else { ",-" });
        text.push_str(&f.name);
    }
    for (name, value) in cfg.cpu.properties.iter().filter(|(name, _)| name != "tsc-frequency") {
        text.push_str(&format!(",{name}={value}"));
    }
    let mut model = CpuModel::parse(&text).with_context(|| format!("-cpu {text}"))?;
    model.set_topology(cfg.smp.dies, cfg.smp.cores, cfg.smp.threads);
    Ok(model)
}
