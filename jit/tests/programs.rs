//! Random programs of many blocks with loops, merges, flags that live across blocks, memory accesses that fault, calls of helpers: what the sets of a
//! region (dirty, live) must be right for.
mod common;

use common::*;
use iced_x86::code_asm::*;
use mynah_cpu::state::gpr;
use mynah_jit::tier::Optimize;

const BLOCKS: usize = 12;

fn instruction(a: &mut CodeAssembler, r: &mut Random) -> Result<(), IcedError> {
    // RCX counts, RSI points to data, RSP stays.
    let regs64 = [rax, rdx, rbx, rbp, rdi, r8, r9, r14];
    let regs32 = [eax, edx, ebx, ebp, edi, r8d, r9d, r14d];
    let regs16 = [ax, dx, bx, bp, di, r8w, r9w, r14w];
    let regs8 = [al, dl, bl, ah, dh, bh, dil, r9b];
    let mut pick = || r.below(8) as usize;
    let (x, y, z) = (pick(), pick(), pick());
    let low = [0, 1, 2, 6, 7][x % 5]; // a byte register that goes with REX
    let displacement = 8 * z as i32;
    match r.below(30) {
        0 => a.add(regs64[x], regs64[y]),
        1 => a.sub(regs32[x], regs32[y]),
        2 => a.adc(regs32[x], regs32[y]),
        3 => a.sbb(regs64[x], regs64[y]),
        4 => a.xor(regs16[x], regs16[y]),
        5 => a.and(regs8[x % 6], regs8[y % 6]),
        6 => a.cmp(regs64[x], regs64[y]),
        7 => a.test(regs32[x], regs32[y]),
        8 => a.inc(regs32[x]),
        9 => a.dec(regs8[low]),
        10 => a.mov(regs64[x], qword_ptr(rsi + displacement)),
        11 => a.mov(dword_ptr(rsi + displacement), regs32[x]),
        12 => a.add(word_ptr(rsi + displacement), regs16[x]),
        13 => a.lock().xadd(qword_ptr(rsi + displacement), regs64[x]),
        14 => a.shl(regs32[x], (z as u32) + 1),
        15 => a.sar(regs64[x], cl),
        16 => a.rol(regs16[x], cl),
        17 => a.cmovl(regs64[x], regs64[y]),
        18 => a.setbe(regs8[low]),
        19 => a.imul_2(regs32[x], regs32[y]),
        20 => a.mul(regs64[x]),
        21 => a.bt(regs64[x], regs64[y]),
        22 => a.bsf(regs64[x], regs64[y]),
        23 => a.rcl(regs32[x], 3u32),             // a helper
        24 => a.shld(regs64[x], regs64[y], 5u32), // a helper
        25 => a.push(regs64[x]).and_then(|()| a.pop(regs64[y])),
        26 => a.lea(regs64[x], ptr(regs64[y] + regs64[z] * 4 + 9)),
        27 => a.pxor(xmm1, xmm2).and_then(|()| a.paddd(xmm2, xmmword_ptr(rsi))),
        28 => a.movzx(regs32[x], byte_ptr(rsi + displacement)),
        _ => a.xchg(regs32[x], regs32[y]),
    }
}

fn program(r: &mut Random) -> Vec<u8> {
    let mut a = CodeAssembler::new(64).unwrap();
    let mut labels: Vec<_> = (0..BLOCKS).map(|_| a.create_label()).collect();
    let mut end = a.create_label();
    for n in 0..BLOCKS {
        a.set_label(&mut labels[n]).unwrap();
        for _ in 0..1 + r.below(6) {
            instruction(&mut a, r).unwrap();
        }
        a.lea(rcx, ptr(rcx - 1)).unwrap();
        a.jrcxz(end).unwrap();
        let to = labels[r.below(BLOCKS as u64) as usize];
        match r.below(9) {
            0 => a.jb(to),
            1 => a.jne(to),
            2 => a.jl(to),
            3 => a.jbe(to),
            4 => a.jp(to),
            5 => a.jo(to),
            6 => a.jg(to),
            7 => a.js(to),
            _ => a.jmp(to),
        }
        .unwrap();
    }
    a.set_label(&mut end).unwrap();
    a.hlt().unwrap();
    a.assemble(CODE).unwrap()
}

fn check_programs(optimize: Optimize, seed: u64) {
    let mut r = Random(seed);
    let mut pair = Pair::with(64, optimize, 3);
    let (mut compiled, mut entered) = (0, 0);
    for n in 0..150 {
        let code = program(&mut r);
        let at = pair.put_code(&code);
        for run in 0..4 {
            let seed = r.next();
            pair.prepare(at, seed, |s, r| {
                s.gpr[gpr::RCX] = 200 + r.below(100);
                s.gpr[gpr::RSI] = if run == 3 { READ_ONLY - 0x20 } else { DATA + 16 * r.below(64) };
            });
            pair.run(&|| format!("program {n}, run {run}: {code:02x?}"));
        }
        let s = pair.statistics();
        assert_eq!(s.refused, 0, "a block was not translated");
        (compiled, entered) = (compiled.max(s.compiled), entered.max(s.entered));
    }
    assert!(compiled > 100 && entered > 500, "{compiled} {entered}");
}

#[test]
fn random_programs_do_the_same_translated() {
    check_programs(Optimize::Speed, 0x0dd0_5eed);
}

#[test]
fn random_programs_do_the_same_translated_without_optimisation() {
    check_programs(Optimize::None, 0x0dd1_5eed);
}
