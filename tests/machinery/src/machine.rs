//! Mynah's CPU with RAM, a local APIC, the log port and isa-debug-exit: what a test's guest needs of a machine.
use crate::layout::{EXIT_PORT, LOG_PORT};
use mynah_cpu::board::{EV_INIT, EV_INTR, EV_KICK, EV_NMI, EV_SIPI};
use mynah_cpu::state::{Segment as CpuSegment, Table, gpr, seg};
use mynah_cpu::{Board, Cpu, CpuModel, Events, Exit};
use mynah_devices::clock::ManualClock;
use mynah_devices::interrupts::lapic::{LocalApic, LocalApics, VcpuPins};
use mynah_firmware::{Config, Entry, LoadRequest, Segment, build_tables, load};
use mynah_jit::tier::Translating;
use mynah_mmu::{GuestRam, PhysMemory};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

/// Instructions after which a guest counts as lost.
const LIMIT: u64 = 20_000_000;
/// A longer log is that of a lost guest, too.
const MAX_LOG: usize = 256 << 10;
const RAM: u64 = 32 << 20;

struct Pins(Arc<Events>);

impl VcpuPins for Pins {
    fn set_intr(&self, pending: bool) {
        if pending {
            self.0.raise(EV_INTR);
        } else {
            self.0.take(EV_INTR);
        }
    }
    fn nmi(&self) {
        self.0.raise(EV_NMI);
    }
    fn smi(&self) {}
    fn init(&self) {
        self.0.raise(EV_INIT);
    }
    fn sipi(&self, vector: u8) {
        self.0.raise(EV_SIPI | u32::from(vector) << 24);
    }
}

struct TestBoard {
    log: Mutex<Vec<u8>>,
    exited: AtomicBool,
    events: Arc<Events>,
    apic: Arc<LocalApic>,
    tsc: AtomicU64,
}

impl Board for TestBoard {
    fn port_read(&self, port: u16, size: u8) -> u32 {
        if u32::from(port) == LOG_PORT { LOG_PORT } else { u32::MAX >> (32 - 8 * u32::from(size)) }
    }
    fn port_write(&self, port: u16, _: u8, value: u32) {
        match u32::from(port) {
            LOG_PORT => {
                let mut log = self.log.lock().expect("the log");
                if log.len() < MAX_LOG {
                    log.push(value as u8);
                } else {
                    self.exited.store(true, Ordering::Relaxed);
                    self.events.raise(EV_KICK);
                }
            }
            EXIT_PORT => {
                self.exited.store(true, Ordering::Relaxed);
                self.events.raise(EV_KICK);
            }
            _ => {}
        }
    }
    fn acknowledge(&self) -> Option<u8> {
        self.apic.acknowledge()
    }
    fn cr8(&self) -> u8 {
        self.apic.cr8()
    }
    fn set_cr8(&self, v: u8) {
        self.apic.set_cr8(v);
    }
    fn apic_msr_read(&self, index: u32) -> Result<u64, ()> {
        self.apic.msr_read(index)
    }
    fn apic_msr_write(&self, index: u32, value: u64) -> Result<(), ()> {
        self.apic.msr_write(index, value)
    }
    fn apic_page(&self) -> Option<u64> {
        self.apic.mmio_page()
    }
    fn apic_read(&self, offset: u32, size: u8) -> u64 {
        u64::from(self.apic.mmio_read(u64::from(offset), size))
    }
    fn apic_write(&self, offset: u32, size: u8, value: u64) {
        self.apic.mmio_write(u64::from(offset), size, value as u32);
    }
    fn tsc(&self) -> u64 {
        self.tsc.fetch_add(1, Ordering::Relaxed)
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
}

impl Engine {
    /// All that this host has.
    pub fn all() -> Vec<(Self, &'static str)> {
        let mut all = vec![(Self::Blocks, "blocks"), (Self::Steps, "steps")];
        if cfg!(target_arch = "x86_64") {
            all.push((Self::Translator, "translated"));
            all.push((Self::Regions, "in regions"));
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
    let apics = LocalApics::new(Arc::new(ManualClock::new()), 1_000_000_000);
    let apic = apics.add(0, true, Arc::new(|| 0), Arc::new(Pins(events.clone())));
    let board = Arc::new(TestBoard {
        log: Mutex::default(),
        exited: AtomicBool::new(false),
        events: events.clone(),
        apic,
        tsc: AtomicU64::new(0),
    });
    let model = Arc::new(CpuModel::parse("max").expect("the model"));
    let mut cpu = Cpu::new(0, memory, board.clone(), events.clone(), model);
    enter(&mut cpu, &entry);
    let mut translated = 0;
    let end = match engine {
        Engine::Steps => run_steps(&mut cpu, &board),
        Engine::Blocks => run_blocks(&mut cpu, &board),
        Engine::Translator | Engine::Regions => {
            let tier = Translating::at_once(events.clone()).expect("a translator for this host");
            let counters = tier.counters();
            cpu.set_tier(Box::new(tier), if engine == Engine::Regions { 3 } else { 1 });
            let end = run_blocks(&mut cpu, &board);
            translated = counters.compiled.load(Ordering::Relaxed);
            end
        }
    };
    let mut log = String::from_utf8_lossy(&board.log.lock().expect("the log")).into_owned();
    log += end;
    Outcome { log, translated }
}

fn ended(exit: Exit, board: &TestBoard, cpu: &Cpu) -> Option<&'static str> {
    match exit {
        _ if board.exited.load(Ordering::Relaxed) => Some(""),
        Exit::Shutdown => Some("shutdown\n"),
        Exit::Halt if cpu.events.pending() & cpu.event_mask == 0 => Some("halted\n"),
        _ if cpu.icount > LIMIT => Some("lost\n"),
        _ => None,
    }
}

fn run_steps(cpu: &mut Cpu, board: &TestBoard) -> &'static str {
    for _ in 0..LIMIT {
        if let Some(exit) = cpu.step()
            && let Some(end) = ended(exit, board, cpu)
        {
            return end;
        }
    }
    "lost\n"
}

fn run_blocks(cpu: &mut Cpu, board: &TestBoard) -> &'static str {
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
            if let Some(end) = ended(exit, board, cpu) {
                break end;
            }
        };
        done.store(true, Ordering::Relaxed);
        end
    })
}

/// Puts the CPU into the state that the boot protocol asks for.
fn enter(cpu: &mut Cpu, e: &Entry) {
    let convert = |s: &Segment| CpuSegment {
        base: s.base,
        limit: s.limit,
        attr: u32::from(s.attributes),
        sel: s.selector,
    };
    let s = &mut cpu.state;
    s.gpr[..16].copy_from_slice(&e.gpr);
    s.gpr[gpr::RIP] = e.rip;
    s.set_rflags(e.rflags);
    s.seg[seg::CS] = convert(&e.cs);
    s.seg[seg::SS] = convert(&e.ss);
    for i in [seg::DS, seg::ES, seg::FS, seg::GS] {
        s.seg[i] = convert(&e.ds_es_fs_gs);
    }
    s.tr = convert(&e.tr);
    s.ldtr = convert(&e.ldtr);
    s.gdtr = Table { base: e.gdt.base, limit: e.gdt.limit };
    s.idtr = Table { base: e.idt.base, limit: e.idt.limit };
    s.cr0 = e.cr0;
    s.cr3 = e.cr3;
    s.cr4 = e.cr4;
    s.msr.efer = e.efer;
    s.cpl = 0;
    cpu.sync_all();
}
