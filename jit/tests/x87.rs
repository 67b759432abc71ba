//! The x87 unit in the baseline: the host's own executes the guest's instructions as long as the guest has all
//! exceptions masked.
mod common;

use common::*;
use iced_x86::Code;
use iced_x86::code_asm::*;
use mynah_cpu::state::{Fpu, State, gpr};
use mynah_cpu::tier::LEFT_INTERPRET;

type Program = fn(&mut CodeAssembler) -> Result<(), IcedError>;

/// Runs a program, which ends with HLT or at a fault, `times` times on both machines, and compares.
fn run(bits: u32, times: u64, set: impl Fn(&mut State), f: Program) -> Pair {
    let mut pair = Pair::baseline(bits);
    let mut a = CodeAssembler::new(bits).unwrap();
    f(&mut a).unwrap();
    a.hlt().unwrap();
    let at = pair.put_code(&a.assemble(CODE).unwrap());
    for n in 0..times {
        pair.prepare(at, 0x87 + n, |s, _| {
            s.fpu = Fpu::default();
            s.gpr[gpr::RSI] = DATA;
            s.gpr[gpr::RDI] = DATA + 0x100;
            s.gpr[gpr::RBX] = DATA + 0x200;
            s.gpr[gpr::RCX] = 1000;
            set(s);
        });
        for cpu in [&pair.plain, &pair.fast] {
            cpu.mem.write_u16(DATA, 0x37f);
            cpu.mem.write_u16(DATA + 2, 0x340);
            for k in 1..64 {
                cpu.mem.write_u64(DATA + 8 * k, (k as f64 * 1.375).to_bits());
            }
        }
        pair.run(&|| format!("round {n}"));
    }
    pair
}

/// What a C library's functions on extended numbers are made of.
fn arithmetic(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut top = a.create_label();
    a.sub(rsp, 64)?;
    a.fld(qword_ptr(rsi + 8))?;
    a.fstp(tword_ptr(rsp))?;
    a.set_label(&mut top)?;
    a.fld(tword_ptr(rsp))?;
    a.fld1()?;
    a.fld(dword_ptr(rsi + 20))?;
    a.fmul_2(st0, st2)?;
    a.faddp(st1, st0)?;
    a.fxch(st0, st1)?;
    a.fabs()?;
    a.fadd(qword_ptr(rsi + 16))?;
    a.fucomi(st0, st1)?;
    a.fcmovb(st0, st1)?;
    a.fdivrp(st1, st0)?;
    a.fxam()?;
    a.fnstsw(ax)?;
    a.and(eax, 0x4500)?;
    a.fnstcw(word_ptr(rsp + 32))?;
    a.fldcw(word_ptr(rsi))?;
    a.frndint()?;
    a.fldcw(word_ptr(rsp + 32))?;
    a.fist(dword_ptr(rsp + 40))?;
    a.fchs()?;
    a.fild(dword_ptr(rsp + 40))?;
    a.fsubp(st1, st0)?;
    a.wait()?;
    a.fstp(tword_ptr(rsp))?;
    a.dec(ecx)?;
    a.jne(top)?;
    a.fld(tword_ptr(rsp))?;
    a.fstp(qword_ptr(rdi))?;
    a.add(rsp, 64)
}

#[test]
fn no_instruction_of_extended_arithmetic_is_called() {
    if lacks_baseline() {
        return;
    }
    let pair = run(64, 2, |_| (), arithmetic);
    let called: Vec<_> = Code::values().filter(|&c| pair.calls_in_baseline(c) != 0).collect();
    assert_eq!(called, [Code::Hlt], "the baseline calls these");
    // Once per round for the misses of the TLB, not for each instruction.
    let left = pair.fast.left[LEFT_INTERPRET as usize];
    assert!(left < 20, "{left} instructions have left their block");
}

#[test]
fn with_an_exception_unmasked_instructions_are_called_and_do_not_leave_their_blocks() {
    if lacks_baseline() {
        return;
    }
    let pair = run(64, 2, |s| s.fpu.set_control(0x37e), arithmetic);
    assert!(pair.calls_in_baseline(Code::Fxam) > 0);
    let left = pair.fast.left[LEFT_INTERPRET as usize];
    assert!(left < 100, "{left} instructions have left their block");
}

/// Where the pointers to the last instruction and its operand matter: in front of what faults, is called, or reads
/// them.
#[test]
fn pointers_are_right_wherever_a_block_is_left() {
    if lacks_baseline() {
        return;
    }
    let programs: [Program; 8] = [
        // The operand of an x87 instruction faults: the one before has been the last.
        |a| {
            a.fld(qword_ptr(rsi + 8))?;
            a.fadd(qword_ptr(rsi + 16))?;
            a.fstp(qword_ptr(rbp))
        },
        |a| {
            a.fld(tword_ptr(rsi + 16))?;
            a.fld(dword_ptr(rsi + 20))?;
            a.fchs()?;
            a.fadd(qword_ptr(rbp))
        },
        // So does another's.
        |a| {
            a.fld(qword_ptr(rsi + 8))?;
            a.fsqrt()?;
            a.mov(rax, qword_ptr(rbp))
        },
        |a| {
            a.fild(qword_ptr(rsi + 8))?;
            a.push(rbp)?;
            a.div(ebp)
        },
        // Control instructions do not count.
        |a| {
            a.fld(qword_ptr(rsi + 8))?;
            a.fldcw(word_ptr(rsi))?;
            a.fnstsw(word_ptr(rdi))?;
            a.fincstp()
        },
        // FLDCW is left to the interpreter, which unmasks; then the block is another.
        |a| {
            a.fld(qword_ptr(rsi + 8))?;
            a.fldcw(word_ptr(rsi + 2))?;
            a.fadd(qword_ptr(rsi + 16))
        },
        // Read by what is called, in the middle of a block and behind a jump.
        |a| {
            a.fld(qword_ptr(rsi + 8))?;
            a.fnstenv(tword_ptr(rdi))?;
            a.fmul(qword_ptr(rsi + 24))?;
            a.fxsave(ptr(rbx))
        },
        |a| {
            let mut next = a.create_label();
            a.fld(qword_ptr(rsi + 8))?;
            a.fld1()?;
            a.jmp(next)?;
            a.set_label(&mut next)?;
            a.fxch(st0, st1)?;
            a.fnstenv(tword_ptr(rdi))
        },
    ];
    for (n, f) in programs.into_iter().enumerate() {
        for place in [ABSENT + 8, READ_ONLY, READ_ONLY - 4, 0] {
            println!("program {n}, RBP {place:#x}");
            run(64, 3, |s| s.gpr[gpr::RBP] = place, f);
        }
    }
}
