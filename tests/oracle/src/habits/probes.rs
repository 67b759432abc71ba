//! The instructions that decide which habits of the table the host has: each runs on the host and in Mynah from the
//! same state, and where the two outcomes differ in more than is passed over anyway, the habit is the host's.

use super::{Ctx, Habit, Habits, How, TABLE};
use crate::background;
use crate::compare::raw;
use crate::generate::decode_as;
use crate::guest::Guest;
use crate::layout::*;

/// An address where nothing is mapped, and another one.
const HOLE: u64 = LOW + LOW_LEN + 0x10;
const OTHER_HOLE: u64 = READ_ONLY + 0x1010;
/// Not canonical.
const NOWHERE: u64 = 0x8000_0000_0010;
/// Where operands stand.
const OPERAND: u64 = LOW + 0x1000;
/// EFLAGS.AC and OF.
const AC: u64 = 1 << 18;
const OF: u64 = 1 << 11;

/// The state that probes start from: 64-bit mode, RAX, RSI and RDI at the operand, RCX 2, all else zero or as after
/// reset.
fn probe(code: &[u8]) -> Case {
    let mut regs = Regs { sel: [sel::DATA, sel::CODE64, sel::DATA, sel::DATA, 0, 0], ..Regs::default() };
    regs.gpr = [OPERAND, 2, 0, 0, LOW + 0x800, LOW + 0x900, OPERAND, OPERAND, 0, 0, 0, 0, 0, 0, 0, 0];
    let mut bytes = [0; 15];
    bytes[..code.len()].copy_from_slice(code);
    Case {
        regs,
        code: bytes,
        code_len: code.len() as u8,
        end: End::Breakpoint,
        patches: 0,
        patch: [Patch::NONE; PATCHES],
    }
}

/// A probe whose general registers are as given: number and value.
fn with(code: &[u8], registers: &[(usize, u64)]) -> Case {
    let mut c = probe(code);
    registers.iter().for_each(|&(n, v)| c.regs.gpr[n] = v);
    c
}

fn holding(mut c: Case, at: u64, bytes: &[u8]) -> Case {
    c.patch(at, bytes);
    c
}
fn flags(mut c: Case, on: u64) -> Case {
    c.regs.rflags |= on;
    c
}
fn step(mut c: Case) -> Case {
    c.end = End::Step;
    flags(c, TF)
}
fn in_32_bits(mut c: Case) -> Case {
    c.regs.sel[1] = sel::CODE32;
    c
}
fn vector(mut c: Case, n: usize, v: u128) -> Case {
    c.regs.put_fx(160 + 16 * n, &v.to_le_bytes());
    c
}
/// A full x87 stack of ones, with C0, C2 and C3 set.
fn ones(code: &[u8]) -> Case {
    let mut c = probe(code);
    c.regs.put_fx(2, &0x4500u16.to_le_bytes());
    c.regs.fx[4] = 0xff;
    for n in 0..8 {
        c.regs.put_fx(32 + 16 * n, &(1u64 << 63).to_le_bytes());
        c.regs.put_fx(40 + 16 * n, &0x3fffu16.to_le_bytes());
    }
    c
}

/// Both operands of a string instruction of each size that cannot be reached, in all ways.
fn strings(opcode: u8) -> Vec<Case> {
    let mut all = Vec::new();
    for code in [&[opcode - 1][..], &[opcode], &[0x66, opcode], &[0x48, opcode]] {
        for (from, to) in
            [(HOLE, OTHER_HOLE), (OTHER_HOLE, HOLE), (HOLE, NOWHERE), (NOWHERE, HOLE), (HOLE, READ_ONLY)]
        {
            let c = with(code, &[(6, from), (7, to)]);
            all.extend([c, with(&[&[0xf3], code].concat(), &[(6, from), (7, to)])]);
            if code[0] & 1 != 0 || code.len() > 1 {
                all.push(flags(with(code, &[(6, OPERAND + 1), (7, to)]), AC));
                all.push(flags(with(code, &[(6, from), (7, OPERAND + 1)]), AC));
            }
        }
    }
    all
}

/// The cases that decide the line of this name.
pub fn cases(name: &str) -> Vec<Case> {
    match name {
        "cmps-both-fault" => strings(0xa7),
        "movs-both-fault" => strings(0xa5),
        "lock-verw" => {
            let forms =
                [[0xf0, 0x0f, 0, 0x28], [0xf0, 0x0f, 0, 0xe8], [0xf0, 0x0f, 0, 0x20], [0xf0, 0x0f, 0, 0xe0]];
            forms.iter().map(|f| probe(f)).collect()
        }
        "x87-conditions" => {
            // FADD, FABS, FXCH, FST, FFREE, FINCSTP, FLD1 (which overflows the stack), FSQRT, FSIN, FIST, FNOP, FNCLEX.
            let forms: [&[u8]; 12] = [
                &[0xd8, 0xc1],
                &[0xd9, 0xe1],
                &[0xd9, 0xc9],
                &[0xdd, 0xd1],
                &[0xdd, 0xc1],
                &[0xd9, 0xf7],
                &[0xd9, 0xe8],
                &[0xd9, 0xfa],
                &[0xd9, 0xfe],
                &[0xdb, 0x10],
                &[0xd9, 0xd0],
                &[0xdb, 0xe2],
            ];
            forms.iter().map(|f| ones(f)).collect()
        }
        "cvtpi2ps-memory" => {
            let used = |code: &[u8]| {
                let mut c = probe(code);
                c.regs.put_fx(2, &0x1800u16.to_le_bytes());
                c
            };
            vec![used(&[0x0f, 0x2a, 0]), used(&[0x66, 0x0f, 0x2a, 0])]
        }
        "fldcw-reserved" => [0xffffu16, 0xe0ff, 0xa07f, 0x20bf]
            .iter()
            .map(|v| holding(probe(&[0xd9, 0x28]), OPERAND, &v.to_le_bytes()))
            .collect(),
        "fbld-digits" => {
            let digits = [
                [0xff; 10],
                [0x0a, 0, 0, 0, 0, 0, 0, 0, 0, 0],
                [0xb7, 0x1c, 0xde, 9, 0xfa, 0, 0x99, 0xaf, 0x55, 0x80],
            ];
            digits.iter().map(|d| holding(probe(&[0xdf, 0x20]), OPERAND, d)).collect()
        }
        "non-canonical-target" => {
            let away = |code: &[u8]| {
                let c = with(code, &[(0, NOWHERE)]);
                let sp = c.regs.gpr[4];
                let c = holding(c, sp, &NOWHERE.to_le_bytes());
                [c, step(c)]
            };
            [away(&[0xff, 0xe0]), away(&[0xff, 0xd0]), away(&[0xc3]), away(&[0xc2, 8, 0])].concat()
        }
        "move-from-nowhere" => [
            [0x0f, 0x20, 0xc8],
            [0x0f, 0x22, 0xc8],
            [0x0f, 0x20, 0xe8],
            [0x0f, 0x22, 0xf8],
            [0x0f, 0x21, 0xe0],
            [0x0f, 0x23, 0xe8],
        ]
        .iter()
        .map(|f| probe(f))
        .collect(),
        "int-error-code" => vec![probe(&[0xcd, 0x40]), probe(&[0xcd, 0x81])],
        "resume-flag" => vec![
            with(&[0x8b, 0], &[(0, HOLE)]),
            probe(&[0x0f, 0x0b]),
            step(probe(&[0xf3, 0xaa])),
            step(probe(&[0xf3, 0xa4])),
            with(&[0xf3, 0xaa], &[(7, LOW + LOW_LEN - 1)]),
            probe(&[0xcd, 0x40]),
        ],
        "push-selector" => vec![
            probe(&[0x0f, 0xa0]),
            probe(&[0x66, 0x0f, 0xa8]),
            in_32_bits(probe(&[0x06])),
            in_32_bits(probe(&[0x1e])),
            in_32_bits(probe(&[0x0f, 0xa0])),
            in_32_bits(probe(&[0x66, 0x16])),
        ],
        "null-base" => {
            let mut based = with(&[0x8e, 0xe1], &[(1, 0)]);
            ([based.regs.sel[4], based.regs.sel[5]], based.regs.base) = fs_gs(true);
            vec![based]
        }
        "bit-scan-of-zero" => {
            let forms: [&[u8]; 6] = [
                &[0x0f, 0xbc, 0xc2],
                &[0x66, 0x0f, 0xbc, 0xc2],
                &[0x48, 0x0f, 0xbc, 0xc2],
                &[0x0f, 0xbd, 0xc2],
                &[0x66, 0x0f, 0xbd, 0xc2],
                &[0x48, 0x0f, 0xbd, 0xc2],
            ];
            forms.iter().map(|f| with(f, &[(0, 0x1122_3344_5566_7788), (2, 0)])).collect()
        }
        "enter-fault" => vec![
            probe(&[0xc8, 0, 0x20, 0]),
            with(&[0xc8, 0, 0, 3], &[(5, HOLE)]),
            with(&[0xc8, 0, 0, 0], &[(4, HOLE)]),
            with(&[0xc8, 0, 0, 3], &[(4, LOW + 8)]),
        ],
        "alignment-or-page" => {
            let off = |code: &[u8], at: u64| flags(with(code, &[(0, at), (4, at)]), AC);
            [HOLE + 1, NOWHERE + 1, LOW + LOW_LEN - 1, READ_ONLY + 1]
                .iter()
                .flat_map(|&at| {
                    [off(&[0x8b, 0], at), off(&[0x89, 8], at), off(&[0x50], at), off(&[0x58], at)]
                })
                .collect()
        }
        "general-or-page" => {
            let forms: [&[u8]; 4] =
                [&[0x0f, 0x28, 0], &[0x0f, 0x29, 0], &[0x48, 0x0f, 0xc7, 8], &[0xc5, 0xfc, 0x28, 0]];
            forms.iter().map(|f| with(f, &[(0, HOLE + 1)])).collect()
        }
        "xsave-in-use" => [[0x0f, 0xc7, 0x21], [0x0f, 0xae, 0x31], [0x0f, 0xae, 0x21]]
            .iter()
            .map(|f| with(f, &[(0, 7), (1, OPERAND)]))
            .collect(),
        "gather-beyond-fault" => {
            // VGATHERDPS XMM0, [RAX + XMM2], XMM1 with one element that is not there.
            let at = |n: usize| {
                let index = [0u128, 4, 8, 12].iter().enumerate().fold(0, |v, (k, &d)| {
                    v | (if k == n { u128::from((HOLE - OPERAND) as u32) } else { d }) << (32 * k)
                });
                vector(vector(probe(&[0xc4, 0xe2, 0x71, 0x92, 0x04, 0x10]), 1, !0), 2, index)
            };
            (0..4).map(at).collect()
        }
        "rotate-whole-turn" => {
            let forms: [&[u8]; 8] = [
                &[0xc0, 0xd0, 9],
                &[0xc0, 0xd0, 18],
                &[0xc0, 0xd8, 9],
                &[0xc0, 0xd8, 18],
                &[0xc0, 0xd8, 27],
                &[0x66, 0xc1, 0xd0, 17],
                &[0x66, 0xc1, 0xd8, 17],
                &[0xc0, 0xd0, 27],
            ];
            let mut all = Vec::new();
            for (form, value) in forms.iter().flat_map(|f| [0u64, 0x4040, 0x8080, 0xc0c0].map(|v| (f, v))) {
                all.extend([0, 1, OF, OF | 1].map(|on| flags(with(form, &[(0, value)]), on)));
            }
            all
        }
        "dot-nan" => {
            // All exceptions unmasked: quiet NaNs raise none.
            let all = |code: &[u8], a: u128, b: u128| {
                let mut c = vector(vector(probe(code), 1, a), 2, b);
                c.regs.put_fx(24, &[0; 4]);
                c
            };
            let one = 0x3f80_0000_3f80_0000_3f80_0000_3f80_0000;
            let singles = 0x7fc0_0001_7fc0_0002_7fc0_0003_7fc0_0004;
            let doubles = 0x7ff8_0000_0000_0001_7ff8_0000_0000_0002;
            let (dpps, dppd) = ([0x66, 0x0f, 0x3a, 0x40, 0xca, 0xff], [0x66, 0x0f, 0x3a, 0x41, 0xca, 0xff]);
            vec![
                all(&dpps, singles, one),
                all(&dpps, one, singles),
                all(&dppd, doubles, 0x3ff0_0000_0000_0000_3ff0_0000_0000_0000),
                all(&dppd, 0x3ff0_0000_0000_0000_3ff0_0000_0000_0000, doubles),
            ]
        }
        "masked-cr2" => {
            // VPMASKMOVD and VPMASKMOVQ [RSI], XMM3, XMM4 and XMM4, XMM3, [RSI].
            let forms: [&[u8]; 4] = [
                &[0xc4, 0xe2, 0x61, 0x8e, 0x26],
                &[0xc4, 0xe2, 0xe1, 0x8e, 0x26],
                &[0xc4, 0xe2, 0x61, 0x8c, 0x26],
                &[0xc4, 0xe2, 0xe1, 0x8c, 0x26],
            ];
            let mut all = Vec::new();
            for at in [LOW + LOW_LEN - 12, LOW + LOW_LEN - 8, LOW + LOW_LEN - 6, LOW + LOW_LEN - 2, HOLE] {
                for mask in [u128::MAX, !0 << 64, !0 << 96, u128::from(u64::MAX)] {
                    all.extend(forms.iter().map(|f| vector(with(f, &[(6, at)]), 3, mask)));
                }
            }
            all
        }
        "masked-non-canonical" => {
            // MASKMOVDQU XMM2, XMM7 at the beginning and the end of what is not canonical.
            let mut all = Vec::new();
            for at in [0x7fff_ffff_fff8, 0xffff_7fff_ffff_fff8u64] {
                for mask in [u128::MAX, !0 << 64, u128::from(u64::MAX)] {
                    all.push(vector(with(&[0x66, 0x0f, 0xf7, 0xd7], &[(7, at)]), 7, mask));
                    let store = with(&[0xc4, 0xe2, 0x61, 0x8e, 0x26], &[(6, at)]);
                    all.push(vector(store, 3, mask));
                }
            }
            all
        }
        "bound-second" => {
            let (end, most) = (LOW + LOW_LEN, [0xff, 0xff, 0xff, 0x7f]);
            vec![
                in_32_bits(holding(with(&[0x62, 0], &[(0, end - 4)]), end - 4, &most)),
                in_32_bits(holding(with(&[0x66, 0x62, 0], &[(0, end - 2)]), end - 2, &most[2..])),
            ]
        }
        "store-before-fault" => {
            let at = |mut c: Case, at: u64| {
                c.regs.gpr[0] = at;
                c
            };
            let ends = [LOW + LOW_LEN - 8, LOW + LOW_LEN - 9, LOW + LOW_LEN - 4, LOW + LOW_LEN - 2];
            ends.iter().flat_map(|&e| [at(ones(&[0xdb, 0x38]), e), at(ones(&[0xdf, 0x30]), e)]).collect()
        }
        "x87-store-nothing" => {
            // FIST, FISTP, FISTTP, FST, FSTP and FBSTP of an empty register, with #IA unmasked.
            let forms: [&[u8]; 6] =
                [&[0xdb, 0x10], &[0xdf, 0x38], &[0xdb, 0x08], &[0xdd, 0x10], &[0xdb, 0x38], &[0xdf, 0x30]];
            let mut all = Vec::new();
            for (form, at) in forms.iter().flat_map(|f| [HOLE, NOWHERE, READ_ONLY].map(|a| (f, a))) {
                let mut c = with(form, &[(0, at)]);
                c.regs.put_fx(0, &0x37eu16.to_le_bytes());
                all.push(c);
            }
            all
        }
        "locked-alignment" => {
            let mut all = Vec::new();
            for at in [HOLE + 1, NOWHERE + 1, 0x7fff_ffff_fffd, LOW + LOW_LEN - 1, READ_ONLY + 1] {
                for form in [&[0xf0, 0x48, 0xff, 0][..], &[0xf0, 0x0f, 0xb1, 0x08], &[0x48, 0x87, 0x08]] {
                    all.push(flags(with(form, &[(0, at)]), AC));
                }
            }
            all
        }
        "remainder-by-infinity" => {
            let forms = [[0xd9, 0xf8], [0xd9, 0xf5]];
            let mut all = forms.map(|f| ones(&f)).to_vec();
            for c in &mut all {
                c.regs.put_fx(0, &0x36fu16.to_le_bytes());
                c.regs.put_fx(32, &0x1edb_3e19_5881_5387u64.to_le_bytes());
                c.regs.put_fx(40, &[0; 2]);
                c.regs.put_fx(56, &0x7fffu16.to_le_bytes());
            }
            all
        }
        "far-fault-error" => {
            // IRETQ and RETFQ to an address beyond CS, with an SS that is none.
            let mut all = Vec::new();
            for (ip, cs, ss) in [
                (NOWHERE, sel::CODE64, 0x278u16),
                (NOWHERE, 0x270, 0x278),
                (0x10_0000, sel::CODE16, 0x278),
                (NOWHERE, sel::CODE64, 0),
            ] {
                let frame = [ip, cs.into(), 0x202, OPERAND, ss.into()].map(u64::to_le_bytes).concat();
                for code in [[0x48, 0xcf], [0x48, 0xcb]] {
                    all.push(holding(probe(&code), LOW + 0x800, &frame));
                }
            }
            all
        }
        _ => Vec::new(),
    }
}

/// All probes with the index of their habit, each in a place of its own.
pub fn all() -> Vec<(usize, Case)> {
    let mut all = Vec::new();
    for (n, h) in TABLE.iter().enumerate().filter(|(_, h)| h.how == How::Probed) {
        all.extend(cases(h.name).into_iter().map(|c| (n, c)));
    }
    for (slot, (_, c)) in all.iter_mut().enumerate() {
        c.regs.rip = code_page(slot / 64) + (slot % 64) as u64 * SLOT + 16;
    }
    all
}

/// Which habits the host has, by asking it and Mynah's `model`.
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
pub fn ask(native: &mut crate::native::Native, model: &str) -> Result<Habits, String> {
    let mut guest = Guest::new(model)?;
    native.set_modes(&mut guest);
    let bg = background::pattern();
    guest.set_background(&bg);
    let options = guest.model().decoder_options();
    let certain = Habits::of_host(|_| false);
    let (probes, mut found) = (all(), 0u64);
    let ldt = native.has_ldt();
    let cases: Vec<Case> = probes
        .iter()
        .map(|p| p.1)
        .map(|mut c| {
            if !ldt {
                ([c.regs.sel[4], c.regs.sel[5]], c.regs.base) = fs_gs(false);
            }
            c
        })
        .collect();
    let mut got = Outcome::new();
    for (first, some) in cases.chunks(BATCH).enumerate().map(|(n, c)| (n * BATCH, c)) {
        native
            .run(&bg, some, |n, want| {
                let case = &some[n];
                let i = decode_as(case, case.regs.bitness(), options).0;
                let same = match (want, guest.run(case, &mut got)) {
                    (Ok(want), Ok(())) => {
                        let ctx = Ctx::new(case, &i, want, &got);
                        certain.pass_over(&ctx, raw(&ctx, &bg)).0.is_empty()
                    }
                    _ => false,
                };
                if !same {
                    found |= 1 << probes[first + n].0;
                }
            })
            .map_err(|e| e.to_string())?;
    }
    let index = |h: &Habit| TABLE.iter().position(|t| t.name == h.name).unwrap_or(0);
    Ok(Habits::of_host(|h| found >> index(h) & 1 != 0))
}
