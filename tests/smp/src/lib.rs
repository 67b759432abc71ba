//! A kit for tests of several vCPUs: guests of a few instructions, each vCPU in a thread of its own.
//!
//! ```text
//!   test: Rig (RAM, identity page tables, code) --run--> vCPU threads, on the interpreter or the translator --all halted--> RAM is looked at
//! ```
//!
//! vCPUs start in 64-bit mode at CPL 0 with interrupts off, RDI holding the vCPU's number and a stack of its own, and
//! end with HLT; or, if they are given no program, they wait for a start-up IPI as after a reset. The first GiB is
//! mapped to itself, [`WINDOW`] as a test wants it. The translator compiles on the spot what has run a few times, so
//! that nearly everything runs compiled.
//!
//! A run that does not end in [`LIMIT`] fails with the places where the vCPUs are.
use iced_x86::code_asm::*;
use mynah::machine::vcpu::{Pins, VcpuBoard};
use mynah_cpu::board::{EV_INTR, EV_KICK, EV_NMI};
use mynah_cpu::state::{Activity, Segment, cr0, cr4, efer, fl, gpr, seg};
use mynah_cpu::world::MemoryChanges;
use mynah_cpu::{Cpu, CpuModel, Events, Exit, World};
use mynah_devices::bus::PortBus;
use mynah_devices::clock::ManualClock;
use mynah_devices::interrupts::lapic::{LocalApics, ReadTsc};
use mynah_devices::misc::entropy::{Asker, Entropy};
use mynah_jit::tier::Translating;
use mynah_mmu::{GuestRam, PhysMemory};
use parking_lot::{Condvar, Mutex};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// How long a guest may take.
pub const LIMIT: Duration = Duration::from_secs(300);
/// Bytes of RAM.
pub const RAM: u64 = 64 << 20;
/// Where vCPU `n`'s program lies: this and `n` times [`CODE_STEP`].
pub const CODE: u64 = 0x10_0000;
/// See [`CODE`].
pub const CODE_STEP: u64 = 0x1_0000;
/// The counter of [`barrier`].
pub const BARRIER: u64 = 0x8_0000;
/// Free for variables (zero at the start).
pub const VARS: u64 = 0x9_0000;
/// Free for data (zero at the start), to the end of RAM.
pub const DATA: u64 = 0x100_0000;
/// The second GiB: its first 2 MiB are mapped by [`Rig::map`].
pub const WINDOW: u64 = 0x4000_0000;

const PML4: u64 = 0x1000;
const PDPT: u64 = 0x2000;
const PD: u64 = 0x3000;
const PD_WINDOW: u64 = 0x4000;
const PT_WINDOW: u64 = 0x5000;
const STACKS: u64 = 0x60_0000;
/// Executions after which a block is compiled.
const HOT: u32 = 8;

/// What executes the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Engine {
    /// The interpreter.
    Interp,
    /// Regions by Cranelift.
    Jit,
    /// The baseline, and regions above it.
    Tiers,
}

/// All engines.
pub const ENGINES: [Engine; 3] = [Engine::Interp, Engine::Jit, Engine::Tiers];

/// Assembles 64-bit code for an address.
pub fn assemble(at: u64, f: impl FnOnce(&mut CodeAssembler)) -> Vec<u8> {
    assemble_bits(64, at, f)
}

/// Assembles 16-, 32- or 64-bit code for an address.
pub fn assemble_bits(bits: u32, at: u64, f: impl FnOnce(&mut CodeAssembler)) -> Vec<u8> {
    let mut a = CodeAssembler::new(bits).expect("bits");
    f(&mut a);
    a.assemble(at).expect("assembling")
}

/// What the assembler's methods return: a result, or for a prefix itself.
pub trait Emitted {
    /// Panics if `what` cannot be assembled.
    fn check(self, what: &str);
}

impl Emitted for Result<(), iced_x86::IcedError> {
    fn check(self, what: &str) {
        if let Err(e) = self {
            panic!("{what}: {e}");
        }
    }
}

impl Emitted for &mut CodeAssembler {
    fn check(self, _: &str) {}
}

/// Assembles instructions: `asm!(a; mov rax, 1; ret)`.
#[macro_export]
macro_rules! asm {
    ($a:expr; $($name:ident $($arg:expr),*);* $(;)?) => {{
        #[allow(unused_imports)]
        use iced_x86::code_asm::*;
        $( $crate::Emitted::check($a.$name($($arg),*), stringify!($name)); )*
    }};
}

/// Waits until all of `n` vCPUs have come here. R15 counts the arrivals: 0 at the start, and kept by the program. RAX
/// and RCX are used.
pub fn barrier(a: &mut CodeAssembler, n: usize) {
    // A while without PAUSE: it may give the host's CPU away, and tests want vCPUs that really run at the same time.
    let (mut again, mut rest, mut on) = (a.create_label(), a.create_label(), a.create_label());
    asm!(a; add r15, n as i32; mov rax, BARRIER; mov ecx, 3000; lock);
    asm!(a; inc qword_ptr(rax));
    a.set_label(&mut again).expect("label");
    asm!(a; cmp qword_ptr(rax), r15; jae on; dec ecx; jne again);
    a.set_label(&mut rest).expect("label");
    asm!(a; pause; cmp qword_ptr(rax), r15; jb rest);
    a.set_label(&mut on).expect("label");
    a.zero_bytes().expect("label");
}

#[derive(Default)]
struct Progress {
    /// vCPUs that are to halt and have not yet.
    left: Mutex<usize>,
    changed: Condvar,
    stop: AtomicBool,
}

/// A machine before it runs.
pub struct Rig {
    /// Its memory.
    pub memory: Arc<PhysMemory>,
}

impl Default for Rig {
    fn default() -> Self {
        Self::new()
    }
}

impl Rig {
    /// A machine with empty RAM but for page tables.
    pub fn new() -> Self {
        let memory = PhysMemory::new(GuestRam::new(RAM).expect("guest RAM"), RAM);
        const PRESENT: u64 = 7;
        const LARGE: u64 = 0x80;
        memory.write_u64(PML4, PDPT | PRESENT);
        memory.write_u64(PDPT, PD | PRESENT);
        memory.write_u64(PDPT + 8, PD_WINDOW | PRESENT);
        for n in 0..512 {
            memory.write_u64(PD + 8 * n, n << 21 | LARGE | PRESENT);
        }
        memory.write_u64(PD_WINDOW, PT_WINDOW | PRESENT);
        Self { memory }
    }

    /// Maps page `n` (up to 511) of [`WINDOW`].
    pub fn map(&self, n: u64, phys: u64) {
        self.memory.write_u64(PT_WINDOW + 8 * n, phys | 7);
    }

    /// Puts vCPU `n`'s program into place.
    pub fn program(&self, n: usize, f: impl FnOnce(&mut CodeAssembler)) {
        let at = CODE + n as u64 * CODE_STEP;
        self.memory.write(at, &assemble(at, f));
    }

    /// Runs programs on as many vCPUs, the first ones, until these have all halted; the others wait for a start-up IPI.
    pub fn run(&self, engine: Engine, programs: usize, vcpus: usize) {
        let model = Arc::new(CpuModel::parse("max").expect("the model"));
        let seats: Vec<(Arc<Events>, Arc<Mutex<MemoryChanges>>)> =
            (0..vcpus).map(|_| Default::default()).collect();
        let world = World::new(seats.iter().cloned());
        let apics = LocalApics::new(Arc::new(ManualClock::new()), 1_000_000_000);
        let ports = Arc::new(PortBus::new());
        let ticks = AtomicU64::new(0);
        let tsc: ReadTsc = Arc::new(move || ticks.fetch_add(1, Ordering::Relaxed));
        let entropy = Entropy::new(None, seats.len());
        let progress = Progress { left: Mutex::new(programs), ..Default::default() };
        let mut cpus: Vec<Box<Cpu>> = seats
            .iter()
            .enumerate()
            .map(|(n, (events, _))| {
                let pins = Arc::new(Pins(events.clone()));
                let apic = apics.add(n as u32, n == 0, Arc::new(|| 0), pins);
                let (ports, tsc) = (ports.clone(), tsc.clone());
                let entropy = (entropy.clone(), Asker::Vcpu(n));
                let board = Arc::new(VcpuBoard {
                    ports,
                    apic,
                    tsc,
                    tsc_offset: Arc::default(),
                    entropy,
                    bios: None,
                    ferr: None,
                    handoffs: None,
                });
                let mut cpu = Cpu::new(n as u32, self.memory.clone(), board, events.clone(), model.clone());
                cpu.join(&world, n);
                let tier = match engine {
                    Engine::Interp => None,
                    Engine::Jit => Some(Translating::at_once(events.clone())),
                    Engine::Tiers => Some(Translating::in_turn(events.clone(), 20_000)),
                };
                if let Some(tier) = tier {
                    cpu.set_tier(Box::new(tier.expect("a translator")), HOT);
                }
                if n < programs {
                    enter(&mut cpu, n);
                }
                cpu
            })
            .collect();
        let places: Vec<AtomicU64> = (0..vcpus).map(|_| AtomicU64::new(0)).collect();
        let end = Instant::now() + LIMIT;
        let in_time = std::thread::scope(|scope| {
            for (n, cpu) in cpus.iter_mut().enumerate() {
                let (progress, place) = (&progress, &places[n]);
                scope.spawn(move || {
                    stay_on_cpu(n);
                    drive(cpu, progress, place, n < programs);
                });
            }
            let mut left = progress.left.lock();
            while *left != 0 && !progress.changed.wait_until(&mut left, end).timed_out() {}
            let in_time = *left == 0;
            drop(left);
            progress.stop.store(true, Ordering::SeqCst);
            for (events, _) in &seats {
                events.raise(EV_KICK);
            }
            in_time
        });
        let places: Vec<String> = places.iter().map(|p| format!("{:#x}", p.load(Ordering::SeqCst))).collect();
        assert!(in_time, "{engine:?}: not all vCPUs have halted; they were at {}", places.join(", "));
    }
}

/// Keeps the thread on one CPU of the host, so that two vCPUs run on two, whatever else the host does.
fn stay_on_cpu(n: usize) {
    #[cfg(target_os = "linux")]
    // SAFETY: a zeroed set is an empty one; the calls read and write the set that they are given, and concern this
    // thread only.
    unsafe {
        let size = std::mem::size_of::<libc::cpu_set_t>();
        let mut allowed: libc::cpu_set_t = std::mem::zeroed();
        if libc::sched_getaffinity(0, size, &mut allowed) != 0 {
            return;
        }
        let cpus: Vec<usize> =
            (0..libc::CPU_SETSIZE as usize).filter(|&c| libc::CPU_ISSET(c, &allowed)).collect();
        if let Some(&cpu) = cpus.get(n % cpus.len().max(1)) {
            let mut one: libc::cpu_set_t = std::mem::zeroed();
            libc::CPU_SET(cpu, &mut one);
            libc::sched_setaffinity(0, size, &one);
        }
    }
    #[cfg(not(target_os = "linux"))]
    let _ = n;
}

fn drive(cpu: &mut Cpu, progress: &Progress, place: &AtomicU64, awaited: bool) {
    let mut halted = false;
    while !progress.stop.load(Ordering::SeqCst) {
        let exit = cpu.run();
        place.store(cpu.state.gpr[gpr::RIP], Ordering::SeqCst);
        match exit {
            Exit::Kick | Exit::Budget => {}
            Exit::Shutdown => {
                // Nobody waits for it until the time is up.
                *progress.left.lock() = 0;
                progress.changed.notify_all();
                let entries = [PML4, PDPT, PD].map(|at| format!("{:#x}", cpu.mem.read_u64(at))).join(", ");
                let state = mynah_cpu::trace::cpu_state(cpu);
                panic!("triple fault; the first entries of its page tables are {entries}:\n{state}")
            }
            Exit::Halt => {
                if awaited && !halted && cpu.state.rflags & fl::IF == 0 {
                    halted = true;
                    let mut left = progress.left.lock();
                    *left = left.saturating_sub(1);
                    drop(left);
                    progress.changed.notify_all();
                }
                let deaf = if cpu.state.activity == Activity::WaitSipi { EV_INTR | EV_NMI } else { 0 };
                cpu.events.wait(cpu.event_mask & !deaf, None);
            }
        }
    }
}

/// 64-bit mode, CPL 0.
fn enter(cpu: &mut Cpu, n: usize) {
    let s = &mut cpu.state;
    s.activity = Activity::Running;
    s.gpr[..16].fill(0);
    s.gpr[gpr::RDI] = n as u64;
    s.gpr[gpr::RSP] = STACKS + (n as u64 + 1) * 0x4000;
    s.gpr[gpr::RIP] = CODE + n as u64 * CODE_STEP;
    s.set_rflags(2);
    let flat = |attr: u32, sel: u16| Segment { base: 0, limit: u32::MAX, attr: attr | 1 << 15, sel };
    s.seg[seg::CS] = flat(0x9b | Segment::L, 8);
    for i in [seg::DS, seg::ES, seg::SS, seg::FS, seg::GS] {
        s.seg[i] = flat(0x93 | Segment::DB, 16);
    }
    s.cr0 = cr0::PE | cr0::MP | cr0::ET | cr0::NE | cr0::WP | cr0::PG;
    s.cr3 = PML4;
    s.cr4 = cr4::PAE | cr4::OSFXSR | cr4::OSXMMEXCPT;
    s.msr.efer = efer::LME | efer::LMA;
    s.cpl = 0;
    cpu.sync_all();
}
