//! Compiled code that is found again after flushes of the TLB by where its bytes are: only what is mapped now is
//! executed, and as it is mapped.
mod common;

use common::*;
use iced_x86::code_asm::*;
use mynah_cpu::State;
use mynah_cpu::state::{efer, gpr};

/// Functions on each of two pages.
const FUNCTIONS: u64 = 16;
const ROUNDS: u32 = 100;

type Change = fn(&mut CodeAssembler) -> Result<(), IcedError>;

/// Calls the functions of the page at `DATA` in each of the rounds, and then does something; returns how it ends. The
/// functions there add 1 each, those of the page behind 100h.
fn run(set: impl Fn(&mut State), change: Change) -> Pair {
    let mut pair = Pair::baseline(64);
    pair.prepare_rounds(ROUNDS, set, |a| {
        for n in 0..FUNCTIONS {
            a.call(DATA + 16 * n)?;
        }
        change(a)
    });
    for (page, adds) in [(DATA, 1), (DATA + 0x1000, 0x100)] {
        for n in 0..FUNCTIONS {
            // ADD EAX, imm32; RET
            let [a, b, c, d] = u32::to_le_bytes(adds);
            pair.write(page + 16 * n, &[0x05, a, b, c, d, 0xc3]);
        }
    }
    pair.run(&String::new);
    pair
}

/// Maps the other page at `DATA`.
fn exchange(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.xor(qword_ptr(u64::from(entry(DATA))), 0x1000)
}

#[test]
fn the_vcpu_need_not_leave_code_after_a_flush() {
    if lacks_baseline() {
        return;
    }
    let pair = run(|_| (), reload_cr3);
    assert_eq!(pair.fast.state.gpr[gpr::RAX], FUNCTIONS * u64::from(ROUNDS));
    let entered = pair.statistics().entered;
    // Each round looks anew for two pages of code, and for nothing on them.
    assert!(entered < 2 * u64::from(ROUNDS) + 40, "entered {entered} times");
}

#[test]
fn another_page_has_other_code_after_invlpg() {
    if lacks_baseline() {
        return;
    }
    let pair = run(
        |s| s.gpr[gpr::RSI] = DATA,
        |a| {
            exchange(a)?;
            a.invlpg(byte_ptr(rsi))
        },
    );
    assert_eq!(pair.fast.state.gpr[gpr::RAX], FUNCTIONS * u64::from(ROUNDS) / 2 * 0x101);
}

#[test]
fn another_page_has_other_code_after_mov_to_cr3() {
    if lacks_baseline() {
        return;
    }
    let pair = run(
        |_| (),
        |a| {
            exchange(a)?;
            reload_cr3(a)
        },
    );
    assert_eq!(pair.fast.state.gpr[gpr::RAX], FUNCTIONS * u64::from(ROUNDS) / 2 * 0x101);
}

#[test]
fn code_that_must_not_be_executed_any_more_faults() {
    if lacks_baseline() {
        return;
    }
    let pair = run(
        |s| {
            s.msr.efer |= efer::NXE;
            s.gpr[gpr::RSI] = 1 << 63;
        },
        |a| {
            // In the last round but one.
            let mut not_yet = a.create_label();
            a.cmp(ebx, 2)?;
            a.jne(not_yet)?;
            a.or(qword_ptr(u64::from(entry(DATA))), rsi)?;
            a.set_label(&mut not_yet)?;
            reload_cr3(a)?;
            // The TLB knows the page again, but not as code.
            a.mov(rcx, qword_ptr(DATA))
        },
    );
    let s = &pair.fast.state;
    assert_eq!((s.gpr[gpr::RAX], s.cr2), (FUNCTIONS * u64::from(ROUNDS - 1), DATA));
}

#[test]
fn code_that_was_written_to_is_decoded_anew() {
    if lacks_baseline() {
        return;
    }
    let pair = run(
        |_| (),
        |a| {
            // The last function adds one more each time.
            a.inc(dword_ptr(DATA + 16 * (FUNCTIONS - 1) + 1))?;
            reload_cr3(a)
        },
    );
    let rounds = u64::from(ROUNDS);
    let last = rounds * (rounds + 1) / 2;
    assert_eq!(pair.fast.state.gpr[gpr::RAX], (FUNCTIONS - 1) * rounds + last);
}
