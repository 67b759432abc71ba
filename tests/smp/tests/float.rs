//! Control registers of the floating-point units, loaded from memory that another vCPU changes at that very moment:
//! what is checked is what is loaded. The host's own exceptions stay masked whatever the guest unmasks, so a failure
//! may well end the process (SIGFPE).
use iced_x86::code_asm::*;
use mynah_smp::{CODE, CODE_STEP, DATA, ENGINES, Rig, VARS, asm, assemble};

/// Offsets in VARS: vCPU 0 is done; rounds that found what nobody wrote; where #GP goes on; exceptions taken of the
/// vectors 13, 16 and 19.
const DONE: i32 = 0;
const WRONG: i32 = 64;
const AFTER: i32 = 128;
const FAULTS: i32 = 192;
/// A control word, as it was stored; MXCSR with everything masked; a place for constants.
const SEEN: i32 = 256;
const CALM_AT: i32 = 260;
/// The operand that is raced for.
const OPERAND: u64 = DATA;
const GDT: u64 = DATA + 0x10_0000;
const IDT: u64 = DATA + 0x10_1000;
const POINTERS: u64 = DATA + 0x10_2000;
const HANDLERS: u64 = CODE + 2 * CODE_STEP;

const ROUNDS: i32 = 150_000;

/// Control words with all exceptions masked, and with none.
const MASKED: i32 = 0x37f;
const UNMASKED: i32 = 0x340;
/// The same of MXCSR.
const CALM: i32 = 0x1f80;
const TRAPPING: i32 = 0;
/// A reserved bit of MXCSR: a load of it faults.
const RESERVED: i32 = 1 << 16;
/// Marks what was loaded, as 0 stands for a load that has faulted.
const LOADED: i32 = 1 << 30;

/// A GDT; an IDT with handlers of #MF and #XM, which mask everything again and have the instruction repeated, and of
/// #GP, which goes on where
/// [`AFTER`] says.
fn tables(rig: &Rig) {
    rig.memory.write_u64(GDT + 8, 0x00af_9b00_0000_ffff);
    rig.memory.write_u64(GDT + 16, 0x00cf_9300_0000_ffff);
    for (at, base, limit) in [(POINTERS, GDT, 23u16), (POINTERS + 16, IDT, 0x1ff)] {
        rig.memory.write(at, &limit.to_le_bytes());
        rig.memory.write(at + 2, &base.to_le_bytes());
    }
    rig.memory.write(VARS + CALM_AT as u64, &CALM.to_le_bytes());
    for vector in [13u64, 16, 19] {
        let at = HANDLERS + 0x100 * vector;
        let code = assemble(at, |a| {
            asm!(a; inc qword_ptr(rsi + FAULTS + 8 * vector as i32));
            match vector {
                13 => {
                    asm!(a; mov rax, qword_ptr(rsi + AFTER); mov qword_ptr(rsp + 8), rax; xor eax, eax; add rsp, 8)
                }
                16 => asm!(a; fninit),
                _ => asm!(a; ldmxcsr dword_ptr(rsi + CALM_AT)),
            }
            asm!(a; iretq);
        });
        rig.memory.write(at, &code);
        let gate = at & 0xffff | 8 << 16 | 0x8e << 40 | (at >> 16 & 0xffff) << 48;
        rig.memory.write_u64(IDT + 16 * vector, gate);
    }
}

/// vCPU 1 writes with `write` (its operand at RBX) again and again; vCPU 0 executes `load` (its operand at RBX, VARS at
/// RSI) `ROUNDS` times, after which EAX is one of `known` or 0 if the load has faulted. Returns how many rounds, and
/// which exceptions there were.
fn race(
    name: &str,
    known: [i32; 2],
    prepare: impl Fn(&mut CodeAssembler),
    write: impl Fn(&mut CodeAssembler),
    load: impl Fn(&mut CodeAssembler),
) {
    for engine in ENGINES {
        let rig = Rig::new();
        tables(&rig);
        rig.program(0, |a| {
            let mut l: [CodeLabel; 3] = std::array::from_fn(|_| a.create_label());
            asm!(a; mov rax, POINTERS; lgdt fword_ptr(rax); lidt fword_ptr(rax + 16));
            asm!(a; mov rsi, VARS; mov rbx, OPERAND; lea rax, qword_ptr(l[1]); mov qword_ptr(rsi + AFTER), rax);
            prepare(a);
            asm!(a; mov r12d, ROUNDS);
            a.set_label(&mut l[0]).unwrap();
            load(a);
            // The handler of #GP goes on here, with EAX = 0.
            a.set_label(&mut l[1]).unwrap();
            asm!(a; test eax, eax; je l[2]; cmp eax, known[0]; je l[2]; cmp eax, known[1]; je l[2];
                inc qword_ptr(rsi + WRONG));
            a.set_label(&mut l[2]).unwrap();
            asm!(a; dec r12d; jne l[0]; mov qword_ptr(rsi + DONE), 1; hlt);
        });
        rig.program(1, |a| {
            let mut again = a.create_label();
            asm!(a; mov rsi, VARS; mov rbx, OPERAND);
            a.set_label(&mut again).unwrap();
            write(a);
            asm!(a; cmp qword_ptr(rsi + DONE), 0; je again; hlt);
        });
        rig.run(engine, 2, 2);
        assert_eq!(
            rig.memory.read_u64(VARS + WRONG as u64),
            0,
            "{name}, {engine:?}: rounds with what nobody wrote"
        );
    }
}

/// Exceptions of the x87 unit, masked or not: a division by zero, and an instruction that waits.
fn divide_by_zero(a: &mut CodeAssembler) {
    asm!(a; fld1; fldz; fdivp st1, st0; fstp st0; wait; emms);
}

#[test]
fn a_control_word_is_loaded_as_it_was_checked() {
    let load = |a: &mut CodeAssembler| {
        asm!(a; fldcw word_ptr(rbx); fnstcw word_ptr(rsi + SEEN));
        divide_by_zero(a);
        asm!(a; movzx eax, word_ptr(rsi + SEEN));
    };
    let write = |a: &mut CodeAssembler| {
        for _ in 0..8 {
            asm!(a; mov word_ptr(rbx), MASKED; mov word_ptr(rbx), UNMASKED);
        }
    };
    race("FLDCW", [MASKED, UNMASKED], |a| asm!(a; fninit; fnstcw word_ptr(rbx)), write, load);
}

#[test]
fn an_environment_is_loaded_as_it_was_checked() {
    let prepare = |a: &mut CodeAssembler| asm!(a; fninit; fnsave ptr(rbx); fninit);
    let write = |a: &mut CodeAssembler| {
        for _ in 0..8 {
            asm!(a; mov word_ptr(rbx), MASKED; mov word_ptr(rbx), UNMASKED);
        }
    };
    for (name, whole) in [("FLDENV", false), ("FRSTOR", true)] {
        let load = |a: &mut CodeAssembler| {
            if whole {
                asm!(a; frstor ptr(rbx));
            } else {
                asm!(a; fldenv ptr(rbx));
            }
            asm!(a; fnstcw word_ptr(rsi + SEEN));
            divide_by_zero(a);
            asm!(a; movzx eax, word_ptr(rsi + SEEN));
        };
        race(name, [MASKED, UNMASKED], prepare, write, load);
    }
}

/// A division by zero in vector registers.
fn divide_vectors_by_zero(a: &mut CodeAssembler) {
    asm!(a; pcmpeqd xmm0, xmm0; psrld xmm0, 25; pslld xmm0, 23; xorps xmm1, xmm1; divps xmm0, xmm1);
}

#[test]
fn mxcsr_is_loaded_as_it_was_checked() {
    let load = |a: &mut CodeAssembler| {
        asm!(a; ldmxcsr dword_ptr(rbx); stmxcsr dword_ptr(rsi + SEEN));
        divide_vectors_by_zero(a);
        asm!(a; mov eax, dword_ptr(rsi + SEEN); or eax, LOADED);
    };
    let write = |a: &mut CodeAssembler| {
        for _ in 0..4 {
            asm!(a; mov dword_ptr(rbx), CALM; mov dword_ptr(rbx), TRAPPING; mov dword_ptr(rbx), RESERVED);
        }
    };
    let known = [CALM | LOADED, TRAPPING | LOADED];
    race("LDMXCSR", known, |a| asm!(a; stmxcsr dword_ptr(rbx)), write, load);
}

#[test]
fn a_saved_area_is_loaded_as_it_was_checked() {
    // XSAVE with x87, SSE and AVX in use; the header is at 512.
    let prepare = |a: &mut CodeAssembler| {
        asm!(a; mov rax, cr4; or eax, 1 << 18; mov cr4, rax; xor ecx, ecx; xor edx, edx; mov eax, 7; xsetbv; fninit);
        asm!(a; pcmpeqd xmm3, xmm3; fld1; xsave64 ptr(rbx); fninit);
    };
    let write = |a: &mut CodeAssembler| {
        for _ in 0..2 {
            asm!(a; mov word_ptr(rbx), MASKED; mov word_ptr(rbx), UNMASKED);
            asm!(a; mov dword_ptr(rbx + 24), CALM; mov dword_ptr(rbx + 24), TRAPPING);
            asm!(a; mov dword_ptr(rbx + 24), RESERVED);
            // The header: components that are there, components that are not, the other format, reserved bytes.
            asm!(a; mov dword_ptr(rbx + 512), 3; mov dword_ptr(rbx + 512), -1; mov dword_ptr(rbx + 512), 7);
            asm!(a; mov byte_ptr(rbx + 527), 0x80u32 as i32; mov byte_ptr(rbx + 527), 0);
            asm!(a; mov byte_ptr(rbx + 530), 1; mov byte_ptr(rbx + 530), 0);
        }
    };
    for name in ["FXRSTOR", "XRSTOR"] {
        let load = |a: &mut CodeAssembler| {
            if name == "FXRSTOR" {
                asm!(a; fxrstor64 ptr(rbx));
            } else {
                asm!(a; mov eax, 7; xor edx, edx; xrstor64 ptr(rbx));
            }
            asm!(a; stmxcsr dword_ptr(rsi + SEEN));
            divide_vectors_by_zero(a);
            asm!(a; ldmxcsr dword_ptr(rsi + CALM_AT); fnclex; emms);
            divide_by_zero(a);
            asm!(a; mov eax, dword_ptr(rsi + SEEN); and eax, 0xffff_ffc0u32 as i32; or eax, LOADED);
        };
        race(name, [CALM | LOADED, TRAPPING | LOADED], prepare, write, load);
    }
}
