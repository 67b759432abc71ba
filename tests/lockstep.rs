//! Two engines in step find a fault that was put into one of them on purpose, and name the instruction.
//!
//! The guest is flat 32-bit code without paging: a warm-up loop, so that there is compiled code, and then some
//! instructions one after the other. Each fault is one of the leader's (the translator, or the interpreter beside KVM),
//! and one of the follower's.
use iced_x86::code_asm::*;
use mynah::machine::lockstep::fault::{Fault, What};
use mynah::machine::lockstep::verdict::{Parting, Verdict};
use mynah::machine::lockstep::{Lockstep, Options};
use mynah_cpu::board::EV_INTR;
use mynah_cpu::state::{Segment, cr0, gpr, seg};
use mynah_cpu::{Accelerator, Board, Cpu, CpuModel, Events, Exit};
use mynah_jit::tier::Translating;
use mynah_mmu::{GuestRam, Mmio, PhysMemory};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

const RAM: u64 = 4 << 20;
const CODE: u64 = 0x10_0000;
const HANDLER: u64 = 0x11_0000;
const IDT: u64 = 0x12_0000;
const GDT: u64 = 0x12_1000;
const VARIABLE: u64 = 0x13_0004;
const STACK: u64 = 0x14_0000;
const DEVICE: u64 = 0xd000_0000;
/// A read counts, a write to it asks for an interrupt.
const PORT: u16 = 0x80;

/// Answers that are different each time, and an interrupt on demand.
struct Chips {
    count: AtomicU64,
    events: Arc<Events>,
}

impl Board for Chips {
    fn port_read(&self, _: u16, _: u8) -> u32 {
        self.count.fetch_add(1, Ordering::SeqCst) as u32
    }
    fn port_write(&self, _: u16, _: u8, _: u32) {
        self.events.raise(EV_INTR);
    }
    fn acknowledge(&self) -> Option<u8> {
        (self.events.take(EV_INTR) != 0).then_some(0x30)
    }
    fn tsc(&self) -> u64 {
        self.count.fetch_add(1000, Ordering::SeqCst)
    }
    fn random(&self) -> Option<u64> {
        Some(self.count.fetch_add(7, Ordering::SeqCst))
    }
}

struct Device(AtomicU64);

impl Mmio for Device {
    fn read(&self, _: u64, _: u8) -> u64 {
        self.0.fetch_add(3, Ordering::SeqCst)
    }
    fn write(&self, _: u64, _: u8, _: u64) {}
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pair {
    JitInterp,
    JitKvm,
    InterpKvm,
}

/// What is tested on this host; what is not is said.
fn pairs() -> Vec<Pair> {
    let mut all = Vec::new();
    if cfg!(target_arch = "x86_64") {
        all.push(Pair::JitInterp);
    } else {
        eprintln!("SKIPPED: the translator has no part for this host");
    }
    match kvm_steps() {
        Ok(()) => all.extend([Pair::JitKvm, Pair::InterpKvm]),
        Err(why) => eprintln!("SKIPPED: KVM in step: {why}"),
    }
    all
}

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
fn kvm_steps() -> Result<(), String> {
    mynah_accel::kvm::probe::steps().map_err(|e| e.to_string())
}

#[cfg(not(all(target_os = "linux", target_arch = "x86_64")))]
fn kvm_steps() -> Result<(), String> {
    Err("this host has none".into())
}

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
fn kvm(cpu: &Cpu) -> Result<Box<dyn Accelerator>, mynah_accel::AccelError> {
    use mynah_accel::kvm::{Host, Vm};
    let vm = Vm::new(Host::open()?, &cpu.mem)?;
    Ok(Box::new(vm.vcpu(cpu, 0)?))
}

fn code(with: impl FnOnce(&mut CodeAssembler) -> Result<(), iced_x86::IcedError>) -> Vec<u8> {
    let mut a = CodeAssembler::new(32).unwrap();
    with(&mut a).unwrap();
    a.assemble(CODE).unwrap()
}

/// A vCPU in flat 32-bit mode before this code, with a handler for its interrupt.
fn machine(code: &[u8]) -> Box<Cpu> {
    let memory = PhysMemory::new(GuestRam::new(RAM).unwrap(), RAM);
    memory.write(CODE, code);
    let mut a = CodeAssembler::new(32).unwrap();
    a.add(dword_ptr(VARIABLE + 8), 1).unwrap();
    a.iretd().unwrap();
    memory.write(HANDLER, &a.assemble(HANDLER).unwrap());
    memory.write_u64(GDT + 8, 0x00cf_9b00_0000_ffff);
    memory.write_u64(GDT + 16, 0x00cf_9300_0000_ffff);
    memory.write_u64(IDT + 0x30 * 8, HANDLER & 0xffff | 8 << 16 | 0x8e00 << 32 | (HANDLER >> 16) << 48);
    memory.map_mmio(DEVICE, 0x1000, Arc::new(Device(AtomicU64::new(0))));
    let events: Arc<Events> = Arc::default();
    let board = Arc::new(Chips { count: AtomicU64::new(1), events: events.clone() });
    let mut model = CpuModel::parse("qemu64").unwrap();
    #[cfg(all(target_os = "linux", target_arch = "x86_64"))]
    if let Ok(host) = mynah_accel::kvm::Host::open() {
        model.without(&host.missing(&model).into_iter().map(|(_, f)| f).collect::<Vec<_>>());
    }
    model.set_topology(1, 1, 1);
    let mut cpu = Cpu::new(0, memory, board, events, Arc::new(model));
    let s = &mut cpu.state;
    s.cr0 = cr0::PE | cr0::ET | cr0::NE;
    for n in 0..6 {
        s.seg[n] = Segment { base: 0, limit: !0, attr: 0xc093, sel: 16 };
    }
    s.seg[seg::CS] = Segment { base: 0, limit: !0, attr: 0xc09b, sel: 8 };
    (s.gdtr.base, s.gdtr.limit) = (GDT, 23);
    (s.idtr.base, s.idtr.limit) = (IDT, 0x7ff);
    s.gpr = [0; 32];
    s.gpr[gpr::RSP] = STACK;
    s.gpr[gpr::RIP] = CODE;
    cpu.sync_all();
    cpu
}

/// Runs code in step to its HLT; where the two have parted, if they have.
fn run(pair: Pair, code: &[u8], fault: Option<Fault>) -> (Option<Parting>, u64) {
    let mut cpu = machine(code);
    let world = mynah_cpu::World::new([(cpu.events.clone(), cpu.inbox.clone())]);
    cpu.join(&world, 0);
    if pair != Pair::InterpKvm {
        let tier = Translating::in_turn(cpu.events.clone(), 3).expect("a translator");
        cpu.set_tier(Box::new(tier), 1);
    }
    let names = match pair {
        Pair::JitInterp => ["jit", "interp"],
        Pair::JitKvm => ["jit", "kvm"],
        Pair::InterpKvm => ["interp", "kvm"],
    };
    let mut options = Options {
        names: names.map(String::from),
        follower: None,
        instructions: None,
        time: Some(Duration::from_secs(60)),
        fault,
    };
    #[cfg(all(target_os = "linux", target_arch = "x86_64"))]
    if pair != Pair::JitInterp {
        options.follower = Some(Box::new(|cpu: &Cpu| Ok(kvm(cpu)?)));
    }
    let verdict = Arc::new(Mutex::new(None));
    let told = verdict.clone();
    let mut two =
        Lockstep::new(options, Box::new(move |v: &Verdict| *told.lock().unwrap() = Some(v.clone())));
    loop {
        match two.run(&mut cpu).expect("two engines") {
            // The end is HLT with interrupts off.
            Exit::Halt => two.finish(),
            Exit::Kick => {}
            exit => panic!("{exit:?} at {:x}", cpu.state.gpr[gpr::RIP]),
        }
        if let Some(verdict) = verdict.lock().unwrap().take() {
            return match verdict {
                Verdict::Parted(parting) => (Some(*parting), two.counts().instructions),
                Verdict::Same(counts) => (None, counts.instructions),
            };
        }
    }
}

/// A loop of 200 turns, which has 601 instructions with the one before it, and 7 bytes less than `WARM_BYTES`.
fn warm_up(a: &mut CodeAssembler) -> Result<(), iced_x86::IcedError> {
    a.mov(ecx, 200)?;
    let mut again = a.create_label();
    a.set_label(&mut again)?;
    a.add(esi, ecx)?;
    a.dec(ecx)?;
    a.jnz(again)
}
const WARM: u64 = 601;
const WARM_BYTES: u64 = 5 + 2 + 1 + 2;

/// Asserts that the fault is found, and named by the text at the address.
fn finds(pair: Pair, code: &[u8], fault: Fault, address: Option<u64>, what: &str, differs: &str) {
    let (parting, _) = run(pair, code, Some(fault));
    let Some(parting) = parting else { panic!("{pair:?} {fault:?}: not found") };
    let text = parting.text();
    assert_eq!(parting.address, address, "{pair:?} {fault:?}: {text}");
    assert!(parting.what.starts_with(what), "{pair:?} {fault:?}: {text}");
    assert!(
        parting.differences.iter().any(|(name, a, b)| name == differs && a != b),
        "{pair:?} {fault:?}: {text}"
    );
    assert!(address.is_none() || parting.history.last().is_some_and(|l| l.contains(what)), "{text}");
}

#[test]
fn a_wrong_flag_is_found_and_its_instruction_named() {
    let code = code(|a| {
        warm_up(a)?;
        a.mov(eax, 1)?;
        a.add(eax, 2)?;
        a.mov(edx, eax)?;
        a.lea(ebx, ptr(edx + 4))?;
        a.hlt()
    });
    for pair in pairs() {
        for by_leader in [true, false] {
            let fault = Fault { by_leader, at: WARM + 2, what: What::Carry };
            finds(pair, &code, fault, Some(CODE + WARM_BYTES + 5), "add eax,2", "flags");
        }
    }
}

#[test]
fn a_wrong_register_is_found_where_it_was_written_and_not_where_it_shows() {
    let code = code(|a| {
        warm_up(a)?;
        a.mov(eax, 1)?;
        a.mov(ebx, 2)?;
        a.hlt()
    });
    for pair in pairs() {
        let fault = Fault { by_leader: true, at: WARM + 2, what: What::Register(gpr::RBX) };
        finds(pair, &code, fault, Some(CODE + WARM_BYTES + 5), "mov ebx,2", "rbx");
        let fault = Fault { by_leader: false, at: WARM + 1, what: What::Register(gpr::RAX) };
        finds(pair, &code, fault, Some(CODE + WARM_BYTES), "mov eax,1", "rax");
    }
}

#[test]
fn a_wrong_byte_of_memory_is_found_and_its_store_named() {
    let code = code(|a| {
        warm_up(a)?;
        a.mov(eax, 0x55)?;
        a.mov(dword_ptr(VARIABLE), eax)?;
        a.mov(dword_ptr(VARIABLE + 0x2000), eax)?;
        a.inc(eax)?;
        a.hlt()
    });
    for pair in pairs() {
        for by_leader in [true, false] {
            let fault = Fault { by_leader, at: WARM + 2, what: What::Memory(VARIABLE) };
            let differs = format!("RAM at {:#x}", VARIABLE & !7);
            finds(pair, &code, fault, Some(CODE + WARM_BYTES + 5), "mov [130004h],eax", &differs);
        }
    }
}

#[test]
fn a_lost_interrupt_is_found_where_it_was_due() {
    let code = code(|a| {
        warm_up(a)?;
        a.sti()?;
        a.nop()?;
        for _ in 0..3 {
            a.out(i32::from(PORT), al)?;
            a.nop()?;
            a.add(edi, 1)?;
        }
        a.cli()?;
        a.hlt()
    });
    for pair in pairs() {
        let (parting, _) = run(pair, &code, None);
        assert!(parting.is_none(), "{pair:?}: {}", parting.unwrap().text());
        for by_leader in [true, false] {
            let fault = Fault { by_leader, at: WARM, what: What::Interrupt };
            finds(pair, &code, fault, None, "interrupt 0x30", "rip");
        }
    }
}

#[test]
fn what_the_board_and_devices_answer_is_the_same_for_both() {
    let code = |turns: u32| {
        code(|a| {
            a.mov(ebp, turns)?;
            let mut again = a.create_label();
            a.set_label(&mut again)?;
            warm_up(a)?;
            a.in_(al, i32::from(PORT))?;
            a.add(edi, eax)?;
            a.rdtsc()?;
            a.add(edi, eax)?;
            a.add(edi, dword_ptr(DEVICE))?;
            a.mov(dword_ptr(DEVICE + 4), edi)?;
            a.mov(dword_ptr(VARIABLE), edi)?;
            a.dec(ebp)?;
            a.jnz(again)?;
            a.hlt()
        })
    };
    for pair in pairs() {
        // KVM's single steps are slow.
        let turns = if pair == Pair::JitInterp { 100 } else { 5 };
        let (parting, instructions) = run(pair, &code(turns), None);
        assert!(parting.is_none(), "{pair:?}: {}", parting.unwrap().text());
        assert!(instructions > u64::from(turns) * WARM, "{instructions}");
    }
}
