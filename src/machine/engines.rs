//! Which engine runs the vCPUs: chosen at the start, and changed while the guest runs.
//!
//! All vCPUs are run by the same one. It is changed while they all stand still, so nothing that one engine keeps of
//! memory (decoded code, translations) is looked at while another writes there. A vCPU's state is in its
//! [`Cpu`] whenever it stands still, so to hand a guest over is no more than to have another
//! [`Accelerator`] called.
use super::handoff::Handoffs;
use super::inside::{self, Translators};
use super::lockstep::MakeFollower;
use crate::config::{AccelKind, Check, Config, FeatureDelta};
use anyhow::{Context, bail};
use mynah_cpu::accel::Software;
use mynah_cpu::tier::Tier;
use mynah_cpu::trace::Trace;
use mynah_cpu::{Accelerator, Cpu, CpuModel, EngineError, Exit};
use mynah_jit::perf::Symbols;
use mynah_jit::tier::{Engine, Image, Translating};
use mynah_mmu::PhysMemory;
use parking_lot::Mutex;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, OnceLock};

// What the host has of hardware acceleration: one, or none.
#[cfg(all(target_os = "macos", target_arch = "x86_64"))]
#[path = "engines/hvf.rs"]
mod hardware;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
#[path = "engines/kvm.rs"]
mod hardware;
#[cfg(not(all(any(target_os = "linux", target_os = "macos"), target_arch = "x86_64")))]
#[path = "engines/none.rs"]
mod hardware;

/// Why hardware acceleration of another host cannot be had on this one.
fn elsewhere(kind: AccelKind) -> &'static str {
    match kind {
        AccelKind::Hvf => "Hypervisor.framework is that of Intel Macs: this host has none",
        _ => "KVM is Linux's, on x86-64: this host has none",
    }
}

/// The rate of vCPUs' time-stamp counters where nothing asks for another: guest nanoseconds.
pub const TSC_HZ: u64 = 1_000_000_000;

/// What is chosen for a machine before it is built.
pub struct Choice {
    /// The engine that it starts with.
    pub kind: AccelKind,
    /// Why it is not another one, for the user.
    pub why: Option<String>,
    /// The rate of vCPUs' time-stamp counters.
    pub tsc_hz: u64,
    hardware: Option<hardware::Host>,
}

/// The engine that is asked for first; [`AccelKind::Auto`] if none is.
pub fn asked(cfg: &Config) -> AccelKind {
    match cfg.accel.first() {
        Some(accel) => accel.kind,
        // What only the translator has.
        None if cfg.check != Check::Off || cfg.perf_map || cfg.jitdump => AccelKind::Jit,
        None => AccelKind::Auto,
    }
}

/// Whether there may be translated code.
pub fn translates(cfg: &Config) -> bool {
    asked(cfg) != AccelKind::Interp
}

/// Chooses an engine: the first of those asked for that this host has, and that can go on with a guest that began
/// elsewhere, if there is one, with processors of the model `begun`.
///
/// # Errors
/// There is none; why each cannot be, and what to do.
pub fn choose(cfg: &Config, begun: Option<&CpuModel>) -> anyhow::Result<Choice> {
    let plain = |kind, why| Choice { kind, why, tsc_hz: TSC_HZ, hardware: None };
    let list: Vec<AccelKind> = match cfg.accel.as_slice() {
        [] => vec![asked(cfg)],
        all => all.iter().map(|a| a.kind).collect(),
    };
    let mut refused = Vec::new();
    for kind in &list {
        match kind {
            AccelKind::Interp | AccelKind::Jit => {
                let why = (!refused.is_empty()).then(|| format!("-accel {kind}: {}", refused.join("; ")));
                return Ok(plain(*kind, why));
            }
            AccelKind::Kvm | AccelKind::Hvf => match hardware_for(*kind, cfg, begun) {
                Ok(host) => {
                    return Ok(Choice {
                        kind: *kind,
                        why: host.warning(),
                        tsc_hz: host.tsc_hz(),
                        hardware: Some(host),
                    });
                }
                Err(e) => refused.push(format!("-accel {kind}: {e:#}")),
            },
            AccelKind::Auto => return Ok(auto(cfg, begun)),
        }
    }
    bail!("{}", refused.join("; "))
}

/// How far vCPUs' counters of this rate are ahead of guest time from the start, for KVM to go on with them.
pub fn counter(cfg: &Config, hz: u64, choice: &Choice) -> u64 {
    let counter = match &choice.hardware {
        Some(host) => host.counter(hz),
        // Only who has heard of KVM's rate will hand a guest over to it.
        None if hz != TSC_HZ => {
            hardware::Host::open(hardware::KIND, cfg).ok().and_then(|host| host.counter(hz))
        }
        None => None,
    };
    counter.unwrap_or(0)
}

/// KVM or Hypervisor.framework, if it can run this guest.
fn hardware_for(kind: AccelKind, cfg: &Config, begun: Option<&CpuModel>) -> anyhow::Result<hardware::Host> {
    let host = hardware::Host::open(kind, cfg)?;
    let tsc_hz = host.tsc_hz();
    if let Some(model) = begun {
        host.goes_on_with(model, cfg.tsc_hz.unwrap_or(tsc_hz))?;
    }
    if let Some(hz) = cfg.tsc_hz.filter(|hz| !host.has_rate(*hz)) {
        bail!("this host's KVM has time-stamp counters run at {tsc_hz} Hz, not at tsc-frequency={hz}");
    }
    Ok(host)
}

/// Hardware acceleration where it is there and fast, else the translator.
fn auto(cfg: &Config, begun: Option<&CpuModel>) -> Choice {
    let kind = hardware::KIND;
    let found = hardware_for(kind, cfg, begun).map_err(|e| format!("{e:#}"));
    match found.and_then(|host| host.is_worth_it().map(|()| host)) {
        Err(why) => Choice {
            kind: AccelKind::Jit,
            why: Some(format!("runs by the translator (-accel jit): {why}")),
            tsc_hz: TSC_HZ,
            hardware: None,
        },
        Ok(host) => {
            let by = if kind == AccelKind::Kvm { "KVM" } else { "Hypervisor.framework" };
            Choice {
                kind,
                why: Some(match host.warning() {
                    Some(warning) => format!("runs by {by} (-accel {kind}); {warning}"),
                    None => format!("runs by {by} (-accel {kind})"),
                }),
                tsc_hz: host.tsc_hz(),
                hardware: Some(host),
            }
        }
    }
}

impl Choice {
    /// Has the vCPUs' model be what the engine can do; what it cannot, by name.
    pub fn fit(&self, model: &mut CpuModel, cfg: &Config) -> Vec<&'static str> {
        self.hardware.as_ref().map_or(Vec::new(), |host| host.fit(model, cfg))
    }
}

/// What makes the engine that follows another one instruction by instruction: the interpreter has none. The model in
/// `cfg` loses the features that the engine has not.
///
/// # Errors
/// It is not there, or cannot follow.
pub fn follower(kind: AccelKind, cfg: &mut Config) -> anyhow::Result<Option<MakeFollower>> {
    match kind {
        AccelKind::Interp => Ok(None),
        AccelKind::Kvm => {
            let host = hardware::Host::open(kind, cfg)?;
            host.steps().context("-accel kvm: it cannot follow another engine")?;
            let mut model = super::cpu_model(cfg)?;
            for name in host.fit(&mut model, cfg) {
                cfg.cpu.features.push(FeatureDelta { name: name.into(), on: false });
            }
            Ok(Some(Box::new(move |cpu: &Cpu| hardware::Machine::stepping(host, &cpu.mem)?.vcpu(cpu, 0))))
        }
        kind => bail!("{kind}: it stops where it likes, and can lead only"),
    }
}

/// What the translator of a machine is made of.
pub struct Recipe {
    /// The configuration.
    pub cfg: Config,
    /// The log of `-d`.
    pub log: Option<Arc<Trace>>,
    /// Names of the guest's functions.
    pub symbols: Arc<Symbols>,
    /// What the guest is booted from. Looked at once.
    pub image: Mutex<Option<Image>>,
}

/// A machine's engines.
pub struct Engines {
    /// What vCPUs are run by, as a number.
    current: AtomicU8,
    model: Arc<CpuModel>,
    memory: Arc<PhysMemory>,
    tsc_hz: u64,
    recipe: Recipe,
    translators: Mutex<Translators>,
    translator: Mutex<Option<Arc<Engine>>>,
    hardware: Mutex<Option<hardware::Machine>>,
    /// Hand-overs that are to come.
    plans: OnceLock<Arc<Handoffs>>,
}

const KINDS: [AccelKind; 4] = [AccelKind::Interp, AccelKind::Jit, AccelKind::Kvm, AccelKind::Hvf];

impl Engines {
    /// The engines of a machine with this memory, which starts with the one that was chosen.
    ///
    /// # Errors
    /// That one cannot be had.
    pub fn new(
        choice: Choice,
        model: &Arc<CpuModel>,
        memory: &Arc<PhysMemory>,
        recipe: Recipe,
    ) -> anyhow::Result<Arc<Self>> {
        let engines = Self {
            current: AtomicU8::new(0),
            model: model.clone(),
            memory: memory.clone(),
            tsc_hz: recipe.cfg.tsc_hz.unwrap_or(TSC_HZ),
            recipe,
            translators: Mutex::default(),
            translator: Mutex::new(None),
            hardware: Mutex::new(None),
            plans: OnceLock::new(),
        };
        let kind = match (choice.kind, choice.hardware) {
            (kind, Some(host)) => {
                *engines.hardware.lock() = Some(hardware::Machine::new(host, memory)?);
                kind
            }
            (AccelKind::Jit, _) => match engines.translator() {
                Ok(_) => AccelKind::Jit,
                // Without a wish the interpreter will do.
                Err(e) if engines.recipe.cfg.accel.is_empty() => {
                    tracing::info!("no translator: {e:#}; interpreting");
                    AccelKind::Interp
                }
                Err(e) => bail!("-accel jit: {e:#}; use '-accel interp'"),
            },
            (kind, _) => kind,
        };
        engines.set(kind);
        Ok(Arc::new(engines))
    }

    /// Who is told of translators that come to be.
    pub fn shown_by(&self, translators: Translators) {
        if let Some(engine) = &*self.translator.lock() {
            translators.set_engine(engine);
        }
        *self.translators.lock() = translators;
    }

    /// What vCPUs are run by.
    pub fn current(&self) -> AccelKind {
        KINDS[usize::from(self.current.load(Ordering::SeqCst)) % KINDS.len()]
    }

    fn set(&self, kind: AccelKind) {
        let n = KINDS.iter().position(|k| *k == kind).unwrap_or(0);
        self.current.store(n as u8, Ordering::SeqCst);
    }

    fn translator(&self) -> anyhow::Result<Arc<Engine>> {
        let mut at = self.translator.lock();
        if let Some(engine) = &*at {
            return Ok(engine.clone());
        }
        let r = &self.recipe;
        let image = r.image.lock().take().context("it could not be had before")?;
        let options = inside::options(&r.cfg, r.log.as_ref(), r.symbols.clone(), image)?;
        let engine = Arc::new(Engine::new(&self.model, options).map_err(|e| anyhow::anyhow!("{e}"))?);
        self.translators.lock().set_engine(&engine);
        *at = Some(engine.clone());
        Ok(engine)
    }

    /// Has an engine ready for the vCPUs to be handed to.
    ///
    /// # Errors
    /// It is not there, or cannot go on with this guest.
    pub fn prepare(&self, kind: AccelKind) -> anyhow::Result<()> {
        match kind {
            AccelKind::Interp => Ok(()),
            AccelKind::Jit => self.translator().map(|_| ()),
            AccelKind::Kvm | AccelKind::Hvf => {
                let mut at = self.hardware.lock();
                if at.is_none() || kind != hardware::KIND {
                    let host = hardware::Host::open(kind, &self.recipe.cfg)?;
                    host.goes_on_with(&self.model, self.tsc_hz)?;
                    if let Some(warning) = host.warning() {
                        tracing::warn!("{warning}");
                    }
                    *at = Some(hardware::Machine::new(host, &self.memory)?);
                }
                Ok(())
            }
            AccelKind::Auto => bail!("name the engine: interp, jit, kvm or hvf"),
        }
    }

    /// Hand-overs are planned. Once.
    pub fn plan(&self, plans: Arc<Handoffs>) {
        let _ = self.plans.set(plans);
    }

    /// vCPUs are run by this engine, which is prepared, from now on. They stand still.
    pub fn hand_over(&self, kind: AccelKind) {
        self.set(kind);
    }

    /// A vCPU's share of them.
    pub fn seat(self: &Arc<Self>) -> Seat {
        Seat { engines: self.clone(), kind: AccelKind::Interp, tier: None, hardware: None }
    }

    /// For the end of the machine: what was translated is kept.
    pub fn close(&self) {
        if let Some(engine) = &*self.translator.lock() {
            engine.close();
        }
    }
}

/// What a vCPU has of the engines. It begins with the interpreter.
pub struct Seat {
    engines: Arc<Engines>,
    /// By which it was run last.
    kind: AccelKind,
    /// The translator's part, while another engine runs the vCPU.
    tier: Option<(Box<dyn Tier>, u32)>,
    hardware: Option<Box<dyn Accelerator>>,
}

impl Seat {
    /// Has the engine of the moment be the one that runs `cpu`.
    ///
    /// # Errors
    /// It cannot be had.
    pub fn take_place(&mut self, cpu: &mut Cpu) -> anyhow::Result<()> {
        let kind = self.engines.current();
        if kind == self.kind {
            return Ok(());
        }
        // Away from the old one.
        if self.kind == AccelKind::Jit {
            self.tier = cpu.take_tier();
        }
        match kind {
            AccelKind::Jit => {
                let (tier, hot_after) = match self.tier.take() {
                    Some(tier) => tier,
                    None => {
                        let engine = self.engines.translator()?;
                        let tier = Translating::new(&engine, cpu.events.clone())
                            .map_err(|e| anyhow::anyhow!("{e}"))?;
                        self.engines.translators.lock().add(tier.counters());
                        let hot_after = tier.hot_after();
                        (Box::new(tier) as Box<dyn Tier>, hot_after)
                    }
                };
                cpu.set_tier(tier, hot_after);
            }
            AccelKind::Kvm | AccelKind::Hvf if self.hardware.is_none() => {
                let machine = self.engines.hardware.lock();
                let machine = machine.as_ref().context("it is not prepared")?;
                self.hardware = Some(machine.vcpu(cpu, self.engines.tsc_hz)?);
            }
            _ => {}
        }
        self.kind = kind;
        Ok(())
    }
}

impl Accelerator for Seat {
    fn name(&self) -> &'static str {
        "seat"
    }

    fn run(&mut self, cpu: &mut Cpu) -> Result<Exit, EngineError> {
        if self.kind != self.engines.current() {
            self.take_place(cpu)
                .map_err(|e| EngineError(format!("-accel {}: {e:#}", self.engines.current())))?;
        }
        let by_hardware = self.kind == hardware::KIND;
        if cpu.seat() == 0
            && !by_hardware
            && let Some(plans) = self.engines.plans.get()
            && plans.count(cpu)
        {
            return Ok(Exit::Kick);
        }
        match &mut self.hardware {
            Some(hardware) if by_hardware => hardware.run(cpu),
            _ => Software.run(cpu),
        }
    }

    fn exits(&self) -> u64 {
        self.hardware.as_ref().map_or(0, |hardware| hardware.exits())
    }
}
