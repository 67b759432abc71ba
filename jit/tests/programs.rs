//! Random programs of many blocks with loops, merges, flags that live across blocks, memory accesses that fault, calls
//! of helpers: what the sets of a region (dirty, live) must be right for.
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

/// Floating point of all kinds: SSE under any rounding mode, x87 with stack faults, MMX, and what reads their flags.
fn float_instruction(a: &mut CodeAssembler, r: &mut Random) -> Result<(), IcedError> {
    let xmm = [xmm0, xmm1, xmm2, xmm3, xmm6, xmm7, xmm9, xmm14];
    let regs = [rax, rdx, rbx, rbp, rdi, r8, r9, r14];
    let small = [eax, edx, ebx, ebp, edi, r8d, r9d, r14d];
    let st = [st0, st1, st2, st3, st4, st5, st6, st7];
    let mmx = [mm0, mm1, mm2, mm3, mm4, mm5, mm6, mm7];
    let mut pick = || r.below(8) as usize;
    let (x, y, z) = (pick(), pick(), pick());
    let (v, w) = (xmm[x], xmm[y]);
    let at = rsi + 8 * z as i32;
    let even = rsi + 16 * (z as i32 & 3);
    let ymm = [ymm0, ymm1, ymm2, ymm3, ymm6, ymm7, ymm9, ymm14];
    let (yv, yw, yx) = (ymm[x], ymm[y], ymm[z]);
    if r.below(4) == 0 {
        return match r.below(20) {
            0 => a.vaddpd(yv, yw, yx),
            1 => a.vpaddd(yv, yw, ymmword_ptr(at)),
            2 => a.vmovdqu(yv, ymmword_ptr(at)),
            3 => a.vmovdqu(ymmword_ptr(at), yv),
            4 => a.vzeroupper(),
            5 => a.vfmadd231sd(v, w, xmm[z]),
            6 => a.vfmsub213ps(yv, yw, yx),
            7 => a.vpermd(yv, yw, yx),
            8 => a.vextracti128(v, yw, z as i32),
            9 => a.vinserti128(yv, yw, xmm[z], y as i32),
            10 => a.vpshufb(yv, yw, yx),
            11 => a.vptest(yv, yw).and_then(|()| a.setbe(dl)),
            12 => a.vpbroadcastd(yv, w),
            13 => a.vcmppd(yv, yw, yx, (x * 4 + z) as i32),
            14 => a.vaddss(v, w, xmm[z]),
            15 => a.vpmovmskb(small[x], yw),
            16 => a.vcvtps2pd(yv, w),
            17 => a.vpslld(yv, yw, z as i32),
            18 => a.vperm2i128(yv, yw, yx, (x * 8 + y) as i32),
            _ => a.vmovaps(v, w),
        };
    }
    match r.below(64) {
        0 => a.addsd(v, w),
        1 => a.subps(v, w),
        2 => a.mulpd(v, w),
        3 => a.divss(v, w),
        4 => a.sqrtsd(v, w),
        5 => a.minps(v, w),
        6 => a.maxsd(v, w),
        7 => a.cmpps(v, w, z as i32),
        8 => a.addsd(v, qword_ptr(at)),
        9 => a.mulss(v, dword_ptr(at)),
        10 => a.divps(v, xmmword_ptr(even)),
        11 => a.movaps(v, w),
        12 => a.movapd(v, xmmword_ptr(even)),
        13 => a.movups(xmmword_ptr(at), v),
        14 => a.movsd_2(qword_ptr(at), v),
        15 => a.movsd_2(v, qword_ptr(at)),
        16 => a.cvtsi2sd(v, regs[y]),
        17 => a.cvttsd2si(regs[x], w),
        18 => a.cvtss2si(small[x], w),
        19 => a.cvtsd2ss(v, w),
        20 => a.cvtps2pd(v, w),
        21 => a.cvtdq2ps(v, w),
        22 => a.cvttps2dq(v, w),
        23 => a.comisd(v, w).and_then(|()| a.setb(dl)),
        24 => a.ucomiss(v, w).and_then(|()| a.cmovp(regs[x], regs[y])),
        25 => a.roundsd(v, w, z as i32),
        26 => a.haddps(v, w),
        27 => a.dpps(v, w, 0x73),
        28 => a.ldmxcsr(dword_ptr(rsi + 0x200 + 4 * z as i32)),
        29 => a.stmxcsr(dword_ptr(at)),
        30 => a.pshufd(v, w, 0x1b + z as i32),
        31 => a.punpcklbw(v, w),
        32 => a.pmaddwd(v, w),
        33 => a.psadbw(v, w),
        34 => a.psllq(v, z as i32),
        35 => a.psrlw(v, w),
        36 => a.packuswb(v, w),
        37 => a.ptest(v, w).and_then(|()| a.adc(regs[x], regs[y])),
        38 => a.movmskpd(small[x], w),
        39 => a.movq(regs[x], w),
        40 => a.fld(qword_ptr(at)),
        41 => a.fld(dword_ptr(at)),
        42 => a.fld(tword_ptr(at)),
        43 => a.fild(qword_ptr(at)),
        44 => a.fstp(qword_ptr(at)),
        45 => a.fst(dword_ptr(at)),
        46 => a.fistp(dword_ptr(at)),
        47 => a.fadd_2(st0, st[x]),
        48 => a.fmulp(st[x], st0),
        49 => a.fdiv_2(st[x], st0),
        50 => a.fxch(st0, st[x]),
        51 => a.fld(st[x]),
        52 => a.fsqrt(),
        53 => a.fcomi(st0, st[x]).and_then(|()| a.setbe(dl)),
        54 => a.fucompp().and_then(|()| a.fnstsw(ax)),
        55 => a.fldcw(word_ptr(rsi + 0x280 + 2 * z as i32)),
        56 => a.fnstcw(word_ptr(at)),
        57 => a.fcmovb(st0, st[x]),
        58 => a.fchs(),
        59 => a.paddw(mmx[x], mmx[y]),
        60 => a.pshufb(mmx[x], qword_ptr(at)),
        61 => a.movd(small[x], mmx[y]),
        62 => a.fnclex(),
        _ => a.fnstenv(tword_ptr(rsi + 0x300)).or_else(|_| a.emms()),
    }
}

fn float_program(r: &mut Random, blocks: usize) -> Vec<u8> {
    let mut a = CodeAssembler::new(64).unwrap();
    let mut labels: Vec<_> = (0..blocks).map(|_| a.create_label()).collect();
    let mut end = a.create_label();
    for n in 0..blocks {
        a.set_label(&mut labels[n]).unwrap();
        for _ in 0..1 + r.below(10) {
            float_instruction(&mut a, r).unwrap();
        }
        a.lea(rcx, ptr(rcx - 1)).unwrap();
        a.jrcxz(end).unwrap();
        let to = labels[r.below(blocks as u64) as usize];
        match r.below(5) {
            0 => a.comisd(xmm0, xmm1).and_then(|()| a.ja(to)),
            1 => a.ucomiss(xmm2, xmm3).and_then(|()| a.jp(to)),
            2 => a.jb(to),
            3 => a.je(to),
            _ => a.jmp(to),
        }
        .unwrap();
    }
    a.set_label(&mut end).unwrap();
    a.hlt().unwrap();
    a.assemble(CODE).unwrap()
}

fn check_float_programs(optimize: Optimize, seed: u64) {
    let mut r = Random(seed);
    let mut pair = Pair::with(64, optimize, 2);
    let (mut compiled, mut entered) = (0, 0);
    let baseline = optimize == Optimize::Baseline;
    for n in 0..300 {
        let code = float_program(&mut r, 1 + n % 9);
        let at = pair.put_code(&code);
        for run in 0..4 {
            let seed = r.next();
            pair.prepare(at, seed, |s, r| {
                s.gpr[gpr::RCX] = 20 + r.below(60);
                s.gpr[gpr::RSI] = DATA + 16 * r.below(64);
            });
            // Words for MXCSR and the x87 control word, mostly with everything masked.
            let data = pair.plain.state.gpr[gpr::RSI];
            for k in 0..8 {
                let v = r.next();
                let masks = if r.below(6) == 0 { v >> 32 } else { !0 };
                for cpu in [&pair.plain, &pair.fast] {
                    cpu.mem.write_u32(data + 0x200 + 4 * k, v as u32 & 0xe07f | masks as u32 & 0x1f80);
                    cpu.mem.write_u16(data + 0x280 + 2 * k, v as u16 & 0xff00 | masks as u16 & 0x7f);
                }
            }
            pair.run(&|| format!("program {n}, run {run}: {code:02x?}"));
        }
        let s = pair.statistics();
        assert_eq!(s.refused, 0, "a block was not translated");
        (compiled, entered) = (compiled.max(s.compiled), entered.max(s.entered));
    }
    assert!((baseline || compiled > 200) && entered > 500, "{compiled} {entered}");
}

#[test]
fn random_floating_point_programs_do_the_same_in_the_baseline() {
    if lacks_baseline() {
        return;
    }
    check_float_programs(Optimize::Baseline, 0xf10a_75ed);
}

#[test]
fn random_floating_point_programs_do_the_same_translated() {
    check_float_programs(Optimize::Speed, 0xf10a_75ee);
}

#[test]
fn random_floating_point_programs_do_the_same_translated_without_optimisation() {
    check_float_programs(Optimize::None, 0xf10a_75ef);
}
