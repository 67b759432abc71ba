//! What comes from outside while compiled code runs: interrupts in tight loops and in repeated instructions, devices
//! that write code, the A20 gate.
mod common;

use common::*;
use iced_x86::code_asm::*;
use mynah_cpu::board::{EV_INTR, EV_KICK, EV_MEMORY};
use mynah_cpu::state::{fl, gpr};
use mynah_cpu::world::MemoryChanges;
use mynah_cpu::{Cpu, Events, Exit};
use mynah_jit::tier::Translating;
use mynah_mmu::CodeWatcher;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

fn translated(bits: u32, hot_after: u32) -> Box<Cpu> {
    let mut cpu = machine(bits);
    let tier = Translating::at_once(cpu.events.clone()).expect("a translator");
    cpu.set_tier(Box::new(tier), hot_after);
    cpu
}

fn put(cpu: &Cpu, at: u64, f: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) {
    let mut a = CodeAssembler::new(64).unwrap();
    f(&mut a).unwrap();
    cpu.mem.write(at, &a.assemble(at).unwrap());
}

/// Tells the vCPU of code that others have written, as the machine does.
struct Watcher {
    inbox: Arc<parking_lot::Mutex<MemoryChanges>>,
    events: Arc<Events>,
}

impl CodeWatcher for Watcher {
    fn code_written(&self, gpa: u64, len: u64) {
        self.inbox.lock().code_written(gpa, len);
        self.events.raise(EV_MEMORY);
    }
}

/// Runs `cpu` to its HLT while another thread raises interrupts as fast as they are taken; their number.
fn run_interrupted(cpu: &mut Cpu) -> u64 {
    // The handler counts, and returns.
    let counter = DATA + 0x7000;
    put(cpu, 0x7800, |a| {
        a.inc(dword_ptr(counter))?;
        a.iretq()
    });
    let gate = 0x7800u64 | 8 << 16 | 0x8e00 << 32;
    cpu.mem.write_u64(0x6000 + 16 * 0x30, gate);
    cpu.state.rflags |= fl::IF;
    cpu.sync_mode();
    let done = Arc::new(AtomicBool::new(false));
    let (events, stop) = (cpu.events.clone(), done.clone());
    let started = Arc::new(AtomicBool::new(false));
    let begun = started.clone();
    let wait = || (0..2000).for_each(|_| std::hint::spin_loop());
    let thread = std::thread::spawn(move || {
        while !stop.load(Ordering::Relaxed) {
            events.raise(EV_INTR);
            wait();
            events.take(EV_INTR);
            begun.store(true, Ordering::Relaxed);
            wait();
        }
    });
    while !started.load(Ordering::Relaxed) {
        std::thread::yield_now();
    }
    let exit = cpu.run();
    done.store(true, Ordering::Relaxed);
    thread.join().unwrap();
    assert_eq!(exit, Exit::Halt);
    u64::from(cpu.mem.read_u32(counter))
}

#[test]
fn interrupts_in_a_tight_loop_leave_its_result_alone() {
    let mut taken = 0;
    for _ in 0..20 {
        let mut cpu = translated(64, 3);
        put(&cpu, CODE, |a| {
            let mut top = a.create_label();
            a.mov(ecx, 2_000_000)?;
            a.xor(eax, eax)?;
            a.xor(edx, edx)?;
            a.set_label(&mut top)?;
            a.add(eax, ecx)?;
            a.adc(edx, 0)?;
            a.dec(ecx)?;
            a.jne(top)?;
            a.cli()?;
            a.hlt()
        });
        taken += run_interrupted(&mut cpu);
        let sum = 2_000_000u64 * 2_000_001 / 2;
        assert_eq!(cpu.state.gpr[gpr::RAX], sum & 0xffff_ffff);
        assert_eq!(cpu.state.gpr[gpr::RDX], sum >> 32);
        if taken > 20 {
            return;
        }
    }
    assert!(taken > 0, "no interrupt was taken");
}

#[test]
fn repeated_instructions_go_on_after_interrupts() {
    let mut taken = 0;
    for _ in 0..20 {
        let mut cpu = translated(64, 2);
        let pattern: Vec<u8> = (0..0x2000u32).map(|n| (n * 7 + (n >> 8)) as u8).collect();
        cpu.mem.write(DATA, &pattern);
        put(&cpu, CODE, |a| {
            let mut top = a.create_label();
            a.mov(ebp, 3000)?;
            a.set_label(&mut top)?;
            a.mov(rsi, DATA)?;
            a.mov(rdi, DATA + 0x2000)?;
            a.mov(ecx, 0x2000 / 8)?;
            a.rep().movsq()?;
            // Backwards, byte by byte: the slow way.
            a.std()?;
            a.mov(rsi, DATA + 0x2000 + 0x1ff)?;
            a.mov(rdi, DATA + 0x4000 + 0x1ff)?;
            a.mov(ecx, 0x200)?;
            a.rep().movsb()?;
            a.cld()?;
            a.dec(ebp)?;
            a.jne(top)?;
            a.cli()?;
            a.hlt()
        });
        taken += run_interrupted(&mut cpu);
        let (mut a, mut b) = (vec![0; 0x2000], vec![0; 0x200]);
        cpu.mem.read(DATA + 0x2000, &mut a);
        cpu.mem.read(DATA + 0x4000, &mut b);
        assert!(a == pattern && b == pattern[..0x200]);
        assert_eq!(cpu.state.gpr[gpr::RDI], DATA + 0x4000 - 1);
        if taken > 20 {
            return;
        }
    }
    assert!(taken > 0, "no interrupt was taken");
}

#[test]
fn code_that_a_device_writes_is_not_run_in_its_old_form() {
    for _ in 0..10 {
        let mut cpu = translated(64, 3);
        // A loop that ends only when a device has replaced the JMP's displacement: 16 bytes further stands the end.
        put(&cpu, CODE, |a| {
            let mut top = a.create_label();
            a.set_label(&mut top)?;
            a.inc(rax)?;
            a.jmp(top)
        });
        let jump = CODE + 3;
        put(&cpu, CODE + 0x20, |a| {
            a.mov(ebx, 0x1234)?;
            a.hlt()
        });
        let (mem, events) = (cpu.mem.clone(), cpu.events.clone());
        mem.watch_code(Arc::new(Watcher { inbox: cpu.inbox.clone(), events: events.clone() }));
        let thread = std::thread::spawn(move || {
            std::thread::sleep(std::time::Duration::from_millis(10));
            mem.write(jump + 1, &[0x1b]);
            mem.notify_code_written(jump + 1, 1, None);
            // Should it not be heard.
            std::thread::sleep(std::time::Duration::from_secs(5));
            events.raise(EV_KICK);
        });
        assert_eq!(cpu.run(), Exit::Halt);
        assert_eq!(cpu.state.gpr[gpr::RBX], 0x1234);
        drop(thread);
    }
}

#[test]
fn the_a20_gate_moves_what_hot_code_reads() {
    // RAM is 1 MiB: with the gate closed an address above it leads to its beginning.
    let mut cpu = translated(32, 2);
    cpu.mem.write_u32(DATA, 5);
    let code = {
        let mut a = CodeAssembler::new(32).unwrap();
        let mut top = a.create_label();
        a.mov(ecx, 100).unwrap();
        a.xor(eax, eax).unwrap();
        a.set_label(&mut top).unwrap();
        a.add(eax, dword_ptr(DATA + (1 << 20))).unwrap();
        a.dec(ecx).unwrap();
        a.jne(top).unwrap();
        a.hlt().unwrap();
        a.assemble(CODE).unwrap()
    };
    cpu.mem.write(CODE, &code);
    let open_value = 0xffff_ffffu32;
    for (open, each) in [(true, open_value), (false, 5), (true, open_value), (false, 5)] {
        cpu.inbox.lock().a20 = Some(open);
        cpu.inbox.lock().flush = true;
        cpu.events.raise(EV_MEMORY);
        cpu.state.gpr[gpr::RIP] = CODE;
        cpu.state.activity = mynah_cpu::state::Activity::Running;
        assert_eq!(cpu.run(), Exit::Halt);
        assert_eq!(cpu.state.gpr[gpr::RAX], u64::from(each.wrapping_mul(100)), "open: {open}");
    }
}
