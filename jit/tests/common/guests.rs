//! Guests made of any bytes, run by both engines: for random tests and for the fuzzer.
//!
//! The bytes choose the mode, when blocks are compiled and how well, what handlers of exceptions do, which pages can
//! be written or are there, the registers, and three pages of code, which the guest may write to. Page tables
//! themselves are out of the guest's reach, since how long an old translation is used is nobody's right to know;
//! INVLPG and MOV to CR3 are not.
use crate::common::*;
use mynah_cpu::board::EV_KICK;
use mynah_cpu::state::{Vector, cr4, fl, gpr};
use mynah_cpu::{Cpu, Exit};
use mynah_jit::tier::{Optimize, Translating};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Steps after which a guest is given up: it may never end. (Fewer where all that is met is compiled, which may be a
/// region for each step.)
const STEPS: u64 = 8_000;
const STEPS_AT_ONCE: u64 = 300;
/// Code's pages.
const CODE_LEN: usize = 0x3000;

/// Why a guest's run says nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It does not end soon.
    Endless,
    /// It ended, in both engines alike.
    Same {
        /// Regions that were compiled.
        compiled: u64,
    },
}

struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }
    fn word(&mut self) -> u64 {
        u64::from_le_bytes(std::array::from_fn(|_| self.byte()))
    }
}

/// A vCPU made from the input; the same each time.
fn guest(data: &[u8]) -> (Box<Cpu>, Optimize, u32) {
    let mut i = Input(data);
    let choice = i.byte();
    let bits = if choice & 1 != 0 { 64 } else { 32 };
    let optimize = if choice & 2 != 0 { Optimize::Speed } else { Optimize::None };
    let hot_after = 1 + u32::from(choice >> 2 & 3);
    let mut cpu = machine(bits);
    // What gives another value each time is not there.
    let model = mynah_cpu::CpuModel::parse("max,-rdrand,-rdseed").expect("a model");
    cpu.model = Arc::new(model);
    if choice & 16 != 0 {
        skipping_handlers(&cpu, bits);
    }
    if bits == 64 {
        for page in [DATA, DATA + 0x1000, DATA + 0x2000, CODE + 0x1000, CODE + 0x2000] {
            let flags = u64::from(i.byte()) & 0x67 | 1 | u64::from(i.byte() > 240) << 63;
            cpu.mem.write_u64(0x4000 + (page >> 12) * 8, page | flags);
        }
        // The tables.
        for page in 1..5 {
            cpu.mem.write_u64(0x4000 + page * 8, 0);
        }
    }
    let s = &mut cpu.state;
    for n in 0..16 {
        let place = match i.byte() % 8 {
            0..4 => DATA + (i.word() & 0x3fff),
            4 => CODE + (i.word() & 0x2fff),
            5 => u64::from(i.byte()),
            _ => i.word(),
        };
        s.gpr[n] = if bits == 64 { place } else { place & 0xffff_ffff };
    }
    s.gpr[gpr::RSP] = STACK.1 - 0x800;
    s.set_rflags(2 | i.word() & fl::ARITH);
    for x in &mut s.xmm[..16] {
        *x = Vector(std::array::from_fn(|n| if n < 2 { i.word() } else { 0 }));
    }
    if i.byte() & 1 != 0 {
        s.cr4 |= cr4::OSXSAVE;
    }
    let mut code = vec![0xf4; CODE_LEN];
    for (to, from) in code.iter_mut().zip(i.0) {
        *to = *from;
    }
    cpu.mem.write(CODE, &code);
    cpu.sync_all();
    (cpu, optimize, hot_after)
}

/// Handlers of exceptions that go on one byte further.
fn skipping_handlers(cpu: &Cpu, bits: Bits) {
    let (plain, error): (&[u8], &[u8]) = if bits == 64 {
        (
            &[0x48, 0x83, 0x04, 0x24, 0x01, 0x48, 0xcf],
            &[0x48, 0x83, 0xc4, 0x08, 0x48, 0x83, 0x04, 0x24, 0x01, 0x48, 0xcf],
        )
    } else {
        (&[0x83, 0x04, 0x24, 0x01, 0xcf], &[0x83, 0xc4, 0x04, 0x83, 0x04, 0x24, 0x01, 0xcf])
    };
    cpu.mem.write(0x7800, plain);
    cpu.mem.write(0x7840, error);
    for v in [0u64, 6, 7, 11, 12, 13, 14, 16, 17, 19] {
        let at = if matches!(v, 11..=14 | 17) { 0x7840 } else { 0x7800 };
        let gate = at | 8 << 16 | 0x8e00 << 32;
        cpu.mem.write_u64(0x6000 + v * if bits == 64 { 16 } else { 8 }, gate);
    }
}

fn memory(cpu: &Cpu) -> Vec<u8> {
    let mut m = vec![0; RAM as usize];
    cpu.mem.read(0, &mut m);
    m
}

/// Runs the guest that `data` describes step by step, and compiled; panics if they come out differently.
pub fn compare(data: &[u8]) -> Outcome {
    let (mut plain, optimize, hot_after) = guest(data);
    let mut end = None;
    for _ in 0..if hot_after == 1 { STEPS_AT_ONCE } else { STEPS } {
        end = plain.step();
        if end.is_some() {
            break;
        }
    }
    let Some(end) = end else { return Outcome::Endless };
    let (mut blocks, ..) = guest(data);
    run(&mut blocks, end, "by blocks");
    same(&plain, &blocks, "by blocks");
    let (mut fast, ..) = guest(data);
    let tier = Translating::at_once_with(fast.events.clone(), optimize).expect("a tier");
    let counters = tier.counters();
    fast.set_tier(Box::new(tier), hot_after);
    if std::env::var_os("MYNAH_CHECK").is_some() {
        // To find the place of a difference.
        fast.check_translator(true, Box::new(|text| println!("{text}")));
    }
    run(&mut fast, end, "translated");
    same(&plain, &fast, "translated");
    survives_baseline(guest(data));
    Outcome::Same { compiled: counters.compiled.load(Ordering::Relaxed) }
}

/// Runs a guest in the baseline and, where that finds a loop, in regions. Flags that are undefined are the host's
/// there, and what comes of them is not compared: it is the process that must live through it. The guest's code is
/// looked at by the oracle, beside the host.
fn survives_baseline((mut cpu, _, hot_after): (Box<Cpu>, Optimize, u32)) {
    let tier = Translating::in_turn(cpu.events.clone(), 4 * hot_after).expect("a tier");
    cpu.set_tier(Box::new(tier), hot_after);
    let events = cpu.events.clone();
    let (ended, wait) = std::sync::mpsc::channel::<()>();
    // It may never end.
    let guard = std::thread::spawn(move || {
        let _ = wait.recv_timeout(Duration::from_millis(50));
        events.raise(EV_KICK);
    });
    cpu.run();
    drop(ended);
    let _ = guard.join();
}

/// Runs a guest to its end, which is to be `end`.
fn run(cpu: &mut Cpu, end: Exit, how: &str) {
    let done = Arc::new(AtomicBool::new(false));
    let (events, stop) = (cpu.events.clone(), done.clone());
    let guard = std::thread::spawn(move || {
        while !stop.load(Ordering::Relaxed) {
            std::thread::park_timeout(Duration::from_secs(60));
            events.raise(EV_KICK);
        }
    });
    let mut got = cpu.run();
    done.store(true, Ordering::Relaxed);
    guard.thread().unpark();
    let _ = guard.join();
    if got == Exit::Kick {
        let s = &cpu.state;
        println!("it does not end {how}: rip {:x}, gpr {:x?}", s.gpr[gpr::RIP], &s.gpr[..16]);
        got = Exit::Kick;
    }
    assert_eq!(got, end, "{how}");
}

/// Panics if the states or memories of two guests differ.
fn same(plain: &Cpu, fast: &Cpu, how: &str) {
    if plain.state != fast.state {
        for n in 0..32 {
            let (p, f) = (plain.state.gpr[n], fast.state.gpr[n]);
            if p != f {
                println!("gpr {n}: step by step {p:x}, {how} {f:x}");
            }
        }
        let (p, f) = (&plain.state, &fast.state);
        println!(
            "flags {:x} {:x}, lazily {:x} {:x}, {:x} {:x}",
            p.rflags(),
            f.rflags(),
            p.res,
            f.res,
            p.aux,
            f.aux
        );
        println!(
            "cr2 {:x} {:x}, mxcsr {:x} {:x}, x87 {:x?} {:x?}",
            p.cr2, f.cr2, p.mxcsr, f.mxcsr, p.fpu, f.fpu
        );
        panic!("states differ: step by step, and {how}");
    }
    let (p, f) = (memory(plain), memory(fast));
    if let Some(n) = (0..p.len()).find(|&n| p[n] != f[n]) {
        panic!("memory differs at {n:#x}: step by step {:x}, {how} {:x}", p[n], f[n]);
    }
}
