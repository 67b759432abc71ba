//! REP MOVS and REP STOS in compiled code: what lies on one page is the host's own, the rest is called, and both do
//! what the interpreter does, whatever lies where.
mod common;

use common::*;
use iced_x86::Code;
use iced_x86::code_asm::*;
use mynah_cpu::State;
use mynah_cpu::state::{fl, gpr};

type Make = fn(&mut CodeAssembler) -> Result<(), IcedError>;

/// Each, with the bytes that it moves each time.
const ALL: [(u64, Make); 8] = [
    (1, |a| a.rep().movsb()),
    (2, |a| a.rep().movsw()),
    (4, |a| a.rep().movsd()),
    (8, |a| a.rep().movsq()),
    (1, |a| a.rep().stosb()),
    (2, |a| a.rep().stosw()),
    (4, |a| a.rep().stosd()),
    (8, |a| a.rep().stosq()),
];

/// An address in the data, often beside a page's end or another one's, and a count that often ends there.
fn places(s: &mut State, r: &mut Random, len: u64) {
    let near = |r: &mut Random| {
        let page = DATA + 0x1000 * r.below(9);
        let back = [0, 1, 2, 7, 8, 64, 0x123, 0x1000][r.below(8) as usize] * r.below(3);
        (page + r.below(3) * 8).saturating_sub(back).max(DATA)
    };
    s.gpr[gpr::RDI] = near(r);
    s.gpr[gpr::RSI] = match r.below(3) {
        0 => s.gpr[gpr::RDI].wrapping_add(r.below(20)).wrapping_sub(10).max(DATA),
        _ => near(r),
    };
    let left = 0x1000 - (s.gpr[gpr::RDI] & 0xfff);
    s.gpr[gpr::RCX] = match r.below(6) {
        0 => 0,
        1 => r.below(4),
        2 => left / len,
        3 => left / len + 1,
        4 => 0x1000 / len + r.below(3),
        _ => r.below(40),
    };
    // How far to go before the next time, and how often then.
    s.gpr[gpr::RDX] = r.below(600).wrapping_sub(300) & if len == 8 { u64::MAX } else { 0xffff_ffff };
    s.gpr[gpr::RBP] = r.below(30);
    if r.below(6) == 0 {
        s.rflags |= fl::DF;
    }
}

fn try_all(bits: u32, seeds: u64) {
    for (n, &(len, make)) in ALL.iter().enumerate().filter(|(_, a)| bits == 64 || a.0 < 8) {
        let mut pair = Pair::baseline(bits);
        let mut a = CodeAssembler::new(bits).expect("an assembler");
        let mut again = a.create_label();
        a.set_label(&mut again).expect("a label");
        // Flags from before are wanted behind.
        let assembled = (|| {
            a.cmp(eax, ebp)?;
            make(&mut a)?;
            a.adc(eax, 0)?;
            if bits == 64 {
                a.lea(rdi, qword_ptr(rdi + rdx))?;
                a.mov(rcx, rbp)?;
            } else {
                a.lea(edi, dword_ptr(edi + edx))?;
                a.mov(ecx, ebp)?;
            }
            a.dec(ebx)?;
            a.jne(again)?;
            a.hlt()?;
            a.assemble(CODE)
        })();
        let at = pair.put_code(&assembled.expect("code"));
        for seed in 0..seeds {
            pair.prepare(at, seed * 8 + n as u64, |s, r| {
                s.gpr[gpr::RBX] = 3;
                places(s, r, len);
                s.gpr[gpr::RDX] &= if bits == 64 { u64::MAX } else { 0xffff_ffff };
            });
            pair.run(&|| format!("{bits} bits, kind {n}, seed {seed}"));
        }
    }
}

#[test]
fn whatever_lies_where_64_bits() {
    if !lacks_baseline() {
        try_all(64, 400);
    }
}

#[test]
fn whatever_lies_where_32_bits() {
    if !lacks_baseline() {
        try_all(32, 400);
    }
}

#[test]
fn moves_between_pages_that_are_mapped_elsewhere() {
    if lacks_baseline() {
        return;
    }
    let mut pair = Pair::baseline(64);
    pair.prepare_rounds(
        100,
        |s| s.gpr[gpr::RBP] = 0,
        |a| {
            a.mov(rsi, DATA + 0x10)?;
            a.mov(rdi, DATA + 0x2010)?;
            a.mov(ecx, 20)?;
            a.rep().movsq()?;
            a.mov(ecx, 5)?;
            a.rep().stosq()?;
            a.add(rax, qword_ptr(DATA + 0x2018))?;
            a.add(rax, qword_ptr(DATA + 0x3018))?;
            a.xor(qword_ptr(u64::from(entry(DATA + 0x2000))), 0x1000)?;
            a.invlpg(byte_ptr(DATA + 0x2000))
        },
    );
    pair.run(&String::new);
}

#[test]
fn what_is_copied_over_code_is_executed() {
    if lacks_baseline() {
        return;
    }
    // ADD EAX, imm32; RET is copied to where it has been executed before, with another number each time.
    let mut pair = Pair::baseline(64);
    pair.prepare_rounds(
        100,
        |_| {},
        |a| {
            a.mov(dword_ptr(DATA + 1), ebx)?;
            a.mov(byte_ptr(DATA), 5)?;
            a.mov(byte_ptr(DATA + 5), 0xc3)?;
            a.mov(rsi, DATA)?;
            a.mov(rdi, CODE + 0x800)?;
            a.mov(ecx, 6)?;
            a.rep().movsb()?;
            a.call(CODE + 0x800)
        },
    );
    pair.write(CODE + 0x800, &[0x05, 0, 0, 0, 0, 0xc3]);
    pair.run(&String::new);
    assert_eq!(pair.fast.state.gpr[gpr::RAX], (1..=100).sum::<u64>());
}

#[test]
fn what_is_counted_in_rcx_keeps_the_flags() {
    if lacks_baseline() {
        return;
    }
    for bits in [32, 64] {
        let mut pair = Pair::baseline(bits);
        pair.prepare_rounds(
            200,
            |_| {},
            |a| {
                let (mut top, mut none, mut some) = (a.create_label(), a.create_label(), a.create_label());
                a.mov(ecx, ebx)?;
                a.and(ecx, 15)?;
                if bits == 64 {
                    a.jrcxz(none)?;
                } else {
                    a.jecxz(none)?;
                }
                a.inc(edx)?;
                a.set_label(&mut top)?;
                a.add(eax, ecx)?;
                a.rol(eax, 3)?;
                a.cmp(eax, edx)?;
                a.loop_(top)?;
                a.adc(eax, 5)?;
                if bits == 64 {
                    a.jrcxz(some)?;
                } else {
                    a.jecxz(some)?;
                }
                a.set_label(&mut none)?;
                a.add(eax, 0x100)?;
                a.set_label(&mut some)?;
                a.nop()
            },
        );
        pair.run(&|| format!("{bits} bits"));
        for code in [Code::Loop_rel8_64_RCX, Code::Loop_rel8_32_ECX, Code::Jrcxz_rel8_64, Code::Jecxz_rel8_32]
        {
            assert_eq!(pair.calls_in_baseline(code), 0, "{code:?}");
        }
    }
}
