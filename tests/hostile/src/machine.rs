//! A whole machine around a random guest.
use crate::guest::Guest;
use crate::{Engine, Profile};
use anyhow::{Context, bail};
use mynah::config::{Config, RebootAction};
use mynah::machine::board::{Board, Firmware};
use mynah::machine::power::Power;
use mynah::machine::vcpu::{self, VcpuHandle};
use mynah_cpu::{Cpu, CpuModel, World};
use mynah_jit::tier::Optimize;
use mynah_jit::tier::{Engine as Translator, Options, Translating};
use mynah_mmu::{GuestRam, PhysMemory};
use mynah_oracle::rng::Rng;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Bytes of guest RAM.
pub const RAM: u64 = 16 << 20;
/// Bytes of the vCPU threads' stacks: less than the machine's, so that what recurses by the guest's will is found.
const STACK: usize = 512 << 10;
/// How long a vCPU may take to come back when it is kicked. The host may be busy with other things.
pub const PATIENCE: Duration = Duration::from_secs(15);

/// How a case is run.
#[derive(Clone, Copy, Debug)]
pub struct Setup {
    /// What the guest is made of.
    pub profile: Profile,
    /// What executes it.
    pub engine: Engine,
    /// vCPUs.
    pub vcpus: usize,
    /// How long the guest runs.
    pub time: Duration,
}

/// Runs case `case` of run `seed`; the instructions that it executed. An error is a finding; what kills the process is
/// one, too.
pub fn run(setup: Setup, seed: u64, case: u64) -> anyhow::Result<u64> {
    let mut rng = Rng::new(seed, case);
    let guest = Guest::new(&mut rng, setup.profile, setup.vcpus);
    let model = Arc::new(
        CpuModel::parse(rng.pick(&["max", "max", "qemu64", "Haswell", "EPYC"]))
            .or_else(|_| CpuModel::parse("max"))?,
    );
    let memory = PhysMemory::new(GuestRam::new(RAM).context("guest RAM")?, RAM);
    let mut config = Config::default();
    config.smp.cpus = setup.vcpus as u32;
    config.on_reboot = if rng.chance(30) { RebootAction::Shutdown } else { RebootAction::Reset };
    let power = Arc::new(Power::new(config.on_reboot, config.on_shutdown, config.on_panic, false));
    let handles: Vec<VcpuHandle> = (0..setup.vcpus)
        .map(|n| VcpuHandle { apic_id: model.apic_id(n as u32), ..Default::default() })
        .collect();
    let world = World::new(handles.iter().map(|h| (h.events.clone(), h.inbox.clone())));
    power.connect(handles.clone());
    let rom = Arc::new(guest.rom());
    let board = Arc::new(Board::new(&config, memory.clone(), Firmware::Image(rom), &power, &handles)?);
    let translator = match setup.engine {
        Engine::Interp => None,
        Engine::Jit => {
            // On the vCPU's thread half of the time: then a case is the same each time.
            let options = Options {
                optimize: if rng.chance(50) { Optimize::None } else { Optimize::Speed },
                baseline: rng.chance(80).then_some(1 << rng.below(10)),
                at_once: rng.chance(50),
                region_bytes: 8 << 20,
                baseline_bytes: 8 << 20,
                ..Options::default()
            };
            Some(Arc::new(Translator::new(&model, options).map_err(anyhow::Error::msg)?))
        }
    };
    guest.place(&memory);
    let executed = Arc::new(AtomicU64::new(0));
    let mut threads = Vec::new();
    for (n, handle) in handles.iter().enumerate() {
        let view = Arc::new(board.view(n));
        let mut cpu = Cpu::new(n as u32, memory.clone(), view, handle.events.clone(), model.clone());
        cpu.join(&world, n);
        cpu.bound_blocks(8 << 20);
        if let Some(engine) = &translator {
            let tier = Translating::new(engine, handle.events.clone()).map_err(anyhow::Error::msg)?;
            let hot_after = tier.hot_after();
            cpu.set_tier(Box::new(tier), hot_after);
        }
        guest.enter(&mut cpu, n);
        let (power, board, world, executed) = (power.clone(), board.clone(), world.clone(), executed.clone());
        let again = guest.clone();
        let run = move || {
            vcpu::run(&mut cpu, &mut mynah_cpu::accel::Software, &world, n, &power, None, |cpu, _| {
                if n == 0 {
                    board.reset();
                    again.place(&board.memory);
                }
                cpu.reset();
                again.enter(cpu, n);
                Ok(())
            });
            executed.fetch_add(cpu.icount, Ordering::SeqCst);
        };
        threads.push(std::thread::Builder::new().name(format!("vcpu{n}")).stack_size(STACK).spawn(run)?);
    }
    std::thread::sleep(setup.time);
    power.end(0, None);
    let told = Instant::now();
    while threads.iter().any(|t| !t.is_finished()) {
        if told.elapsed() > PATIENCE {
            let stuck: Vec<usize> = (0..threads.len()).filter(|&n| !threads[n].is_finished()).collect();
            bail!("hang: vCPUs {stuck:?} do not come back");
        }
        std::thread::sleep(Duration::from_micros(200));
    }
    for t in threads {
        if t.join().is_err() {
            bail!("a vCPU's thread has panicked");
        }
    }
    let end = power.wait_end();
    if let Some(message) = end.message.filter(|m| m.contains("internal error")) {
        bail!("{message}");
    }
    if let Some(engine) = &translator {
        engine.close();
    }
    Ok(executed.load(Ordering::SeqCst))
}

/// The CPU time that this process has used, in user mode and in the kernel's for it, to 10 ms; zero where there is no
/// /proc.
pub fn cpu_time() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // Behind the name, which may have spaces: the state is field 3, the times are fields 14 and 15 (proc(5)).
    let fields = stat.rsplit(')').next().unwrap_or_default().split_ascii_whitespace();
    let ticks: u64 = fields.skip(11).take(2).filter_map(|n| n.parse::<u64>().ok()).sum();
    Duration::from_millis(ticks * 10)
}

/// The most memory that this process has had resident, in MiB.
pub fn peak_mib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let kib = status.lines().find_map(|l| l.strip_prefix("VmHWM:")).and_then(|l| l.split_whitespace().next());
    kib.and_then(|k| k.parse::<u64>().ok()).unwrap_or(0) / 1024
}
