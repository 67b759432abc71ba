//! What a kernel executes again and again, in the baseline: CLI, STI, PUSHFQ and CMPXCHG16B.
mod common;

use common::*;
use iced_x86::Code;
use iced_x86::code_asm::*;
use mynah_cpu::board::EV_INTR;
use mynah_cpu::state::{Activity, fl, gpr};

/// Where the vector stands that is acknowledged: its handler is a HLT.
const HANDLER: u64 = HANDLERS + 4 * 0x30;

#[test]
fn flags_are_pushed_as_they_are() {
    if lacks_baseline() {
        return;
    }
    for seed in 0..200 {
        let mut pair = Pair::baseline(64);
        pair.prepare_rounds(
            20,
            |s| {
                let mut r = Random(2 * seed + 1);
                s.gpr[gpr::RCX] = r.value();
                s.gpr[gpr::RDX] = r.value();
                s.set_rflags(2 | r.next() & (fl::ARITH | fl::DF | fl::NT | fl::AC | fl::ID));
            },
            |a| {
                a.pushfq()?;
                a.add(rcx, rdx)?;
                a.pushfq()?;
                a.cli()?;
                a.pushfq()?;
                a.pop(rsi)?;
                a.sti()?;
                a.pushfq()?;
                a.adc(rax, rsi)?;
                a.pop(rsi)?;
                a.add(rax, rsi)?;
                a.pop(rsi)?;
                a.ror(rax, 7)?;
                a.add(rax, rsi)?;
                a.pop(rsi)?;
                a.ror(rax, 7)?;
                a.add(rax, rsi)?;
                a.imul_2(rdx, rcx)?;
                a.xor(rdx, rax)
            },
        );
        pair.run(&|| format!("seed {seed}"));
        for code in [Code::Pushfq, Code::Cli, Code::Sti] {
            assert_eq!(pair.calls_in_baseline(code), 0, "{code:?}");
        }
    }
}

#[test]
fn no_interrupt_comes_when_they_have_been_turned_off() {
    if lacks_baseline() {
        return;
    }
    let mut pair = Pair::baseline(64);
    pair.prepare_rounds(
        50,
        |s| s.set_rflags(2 | fl::IF),
        |a| {
            a.cli()?;
            a.inc(eax)
        },
    );
    let cpu = &mut pair.fast;
    let at = cpu.state.gpr[gpr::RIP];
    cpu.run();
    // What the vCPU knows of IF is left as the code has it.
    cpu.state.activity = Activity::Running;
    cpu.state.gpr[gpr::RIP] = at;
    cpu.state.gpr[gpr::RBX] = 50;
    cpu.events.raise(EV_INTR);
    cpu.run();
    assert_eq!(cpu.state.gpr[gpr::RAX], 100);
    assert_ne!(cpu.state.gpr[gpr::RIP], HANDLER + 1);
}

/// Runs a loop that has interrupts on for an instruction, with one pending. Returns how many rounds it takes.
fn on_for_a_moment(mut pair: Pair) -> u64 {
    pair.prepare_rounds(
        1000,
        |_| {},
        |a| {
            a.inc(eax)?;
            a.sti()?;
            a.nop()?;
            a.cli()
        },
    );
    let cpu = &mut pair.fast;
    // The first rounds without.
    let at = cpu.state.gpr[gpr::RIP];
    cpu.state.gpr[gpr::RBX] = 20;
    cpu.run();
    cpu.state.activity = Activity::Running;
    cpu.state.gpr[gpr::RIP] = at;
    cpu.state.gpr[gpr::RAX] = 0;
    cpu.state.gpr[gpr::RBX] = 1000;
    cpu.state.set_rflags(2);
    cpu.sync_all();
    cpu.events.raise(EV_INTR);
    cpu.run();
    assert_eq!(cpu.state.gpr[gpr::RIP], HANDLER + 1);
    cpu.state.gpr[gpr::RAX]
}

#[test]
fn an_interrupt_comes_where_they_are_on_for_a_moment() {
    if lacks_baseline() {
        return;
    }
    assert_eq!(on_for_a_moment(Pair::baseline(64)), 1);
}

#[test]
fn an_interrupt_comes_where_they_are_on_for_a_moment_in_a_region() {
    assert_eq!(on_for_a_moment(Pair::new(64)), 1);
}

#[test]
fn pairs_are_exchanged() {
    if lacks_baseline() {
        return;
    }
    for locked in [false, true] {
        let mut pair = Pair::baseline(64);
        pair.prepare_rounds(
            200,
            |s| {
                s.gpr[gpr::RDI] = DATA + 0x40;
                s.gpr[gpr::RCX] = 5;
            },
            |a| {
                // Every third time it is what it is taken for.
                a.lea(rsi, qword_ptr(rax + rcx))?;
                a.mov(rax, qword_ptr(rdi))?;
                a.mov(rdx, qword_ptr(rdi + 8))?;
                a.test(esi, 3)?;
                let mut same = a.create_label();
                a.je(same)?;
                a.inc(rdx)?;
                a.set_label(&mut same)?;
                a.cmp(rsi, rdx)?;
                if locked {
                    a.lock().cmpxchg16b(xmmword_ptr(rdi))?;
                } else {
                    a.cmpxchg16b(xmmword_ptr(rdi))?;
                }
                a.pushfq()?;
                a.pop(rbp)?;
                a.lea(rcx, qword_ptr(rcx + rbp))?;
                a.lea(rax, qword_ptr(rax + rdx))?;
                a.neg(rsi)
            },
        );
        pair.run(&|| format!("locked: {locked}"));
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("cmpxchg16b") {
            assert_eq!(pair.calls_in_baseline(Code::Cmpxchg16b_m128), 0);
        }
    }
}

#[test]
fn a_pair_that_is_not_aligned_faults() {
    if lacks_baseline() {
        return;
    }
    let mut pair = Pair::baseline(64);
    pair.prepare_rounds(
        20,
        |s| s.gpr[gpr::RDI] = DATA,
        |a| {
            a.inc(eax)?;
            a.cmpxchg16b(xmmword_ptr(rdi))?;
            a.cmp(ebx, 10)?;
            let mut other = a.create_label();
            a.jne(other)?;
            a.add(rdi, 8)?;
            a.set_label(&mut other)?;
            a.nop()
        },
    );
    pair.run(&String::new);
    assert_eq!(pair.fast.state.gpr[gpr::RIP], HANDLERS + 4 * 13 + 1);
}
