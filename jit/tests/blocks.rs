//! Decoded blocks that are cold keep no ops, and those that have code do not: what is decoded again is what it was.
mod common;

use common::*;
use iced_x86::BlockEncoderOptions;
use iced_x86::code_asm::*;
use mynah_cpu::state::gpr;
use mynah_cpu::tier::Tier;
use mynah_cpu::{Cpu, Exit};
use mynah_jit::tier::{Optimize, Translating};

/// Blocks of the program, more than are decoded before cold ones are looked for.
const BLOCKS: usize = 20_000;
/// Bytes that each has with its ops: 8 or 9 of 48 bytes, and 200 of its own.
const WITH_OPS: usize = 550;

/// A tier that never compiles anything.
struct Never;
impl Tier for Never {
    fn attach(&mut self, _: &mut Cpu) {}
    fn hot(&mut self, _: &mut Cpu, _: u64, _: u32) {}
    fn ready(&mut self, _: &mut Cpu) {}
}

/// Blocks of random instructions that lead to one another, executed `rounds` times.
fn program(rounds: u32) -> Vec<u8> {
    let mut r = Random(0x1234_5678_9abc_def1);
    let mut a = CodeAssembler::new(64).unwrap();
    let mut top = a.create_label();
    let mut emit = || -> Result<(), IcedError> {
        a.fninit()?;
        a.mov(r15d, rounds)?;
        a.mov(rsi, DATA)?;
        a.set_label(&mut top)?;
        for _ in 0..BLOCKS {
            let mut next = a.create_label();
            for _ in 0..6 {
                match r.below(9) {
                    0 => a.add(r8, r.next() as i32)?,
                    1 => a.xor(r9, r8)?,
                    2 => a.rol(r10, (r.next() & 63) as u32)?,
                    3 => a.imul_3(r11, r9, r.next() as i32)?,
                    4 => a.add(qword_ptr(rsi + 8 * r.below(64)), r11)?,
                    5 => a.lea(r10, qword_ptr(r10 + r9 * 4 + 17))?,
                    // The block goes on behind it for one instruction.
                    6 => a.sti()?,
                    7 => a.paddq(xmm3, xmmword_ptr(rsi))?,
                    _ => a.fld1().and_then(|()| a.fstp(dword_ptr(rsi + 0x300)))?,
                }
            }
            a.jmp(next)?;
            a.set_label(&mut next)?;
            a.inc(r12)?;
        }
        let mut end = a.create_label();
        a.dec(r15d)?;
        a.je(end)?;
        a.jmp(top)?;
        a.set_label(&mut end)?;
        a.hlt()
    };
    emit().unwrap();
    a.assemble_options(CODE, BlockEncoderOptions::NONE).unwrap().inner.code_buffer
}

/// Runs the program: registers, the count of instructions, and bytes of decoded blocks.
fn run(code: &[u8], tier: Option<(Box<dyn Tier>, u32)>) -> (Cpu64, usize) {
    let mut cpu = machine(64);
    assert!(code.len() < (RAM - CODE) as usize);
    cpu.mem.write(CODE, code);
    if let Some((tier, hot)) = tier {
        cpu.set_tier(tier, hot);
    }
    assert_eq!(cpu.run(), Exit::Halt);
    assert_eq!(cpu.state.gpr[12] % BLOCKS as u64, 0, "it ends where it should");
    let vectors = (cpu.state.xmm[3].0, cpu.mem.read_u64(DATA + 64));
    ((cpu.state.gpr[..gpr::RIP].to_vec(), cpu.icount, format!("{vectors:x?}")), cpu.block_bytes())
}

type Cpu64 = (Vec<u64>, u64, String);

#[test]
fn what_is_decoded_again_does_what_it_did() {
    for rounds in [1, 4] {
        let code = program(rounds);
        let (interpreted, kept) = run(&code, None);
        assert!(kept > BLOCKS * WITH_OPS, "{kept}");
        let (counted, bytes) = run(&code, Some((Box::new(Never), 1000)));
        assert_eq!(counted, interpreted, "{rounds} rounds");
        if rounds == 1 {
            assert!(bytes < kept * 9 / 10, "cold blocks: {bytes} bytes; with all ops {kept}");
        }
    }
}

#[test]
fn blocks_that_are_compiled_keep_no_ops() {
    if lacks_baseline() {
        return;
    }
    let code = program(6);
    let (interpreted, kept) = run(&code, None);
    let mut cpu = machine(64);
    let tier = Translating::at_once_with(cpu.events.clone(), Optimize::Baseline).unwrap();
    cpu.mem.write(CODE, &code);
    cpu.set_tier(Box::new(tier), 1);
    assert_eq!(cpu.run(), Exit::Halt);
    assert_eq!(cpu.state.gpr[..gpr::RIP], interpreted.0);
    let bytes = cpu.block_bytes();
    assert!(bytes <= kept * 3 / 5, "{bytes} bytes; with all ops {kept}");
}

#[test]
fn a_vcpu_that_is_gone_has_no_code() {
    let mut cpu = machine(64);
    // Over a page's end: both pages have bytes of the instruction.
    let at = CODE + 0xffa;
    let mut a = CodeAssembler::new(64).unwrap();
    a.mov(rax, 0x1122_3344_5566_7788u64).and_then(|()| a.hlt()).unwrap();
    cpu.mem.write(at, &a.assemble(at).unwrap());
    cpu.state.gpr[gpr::RIP] = at;
    assert_eq!(cpu.run(), Exit::Halt);
    let mem = cpu.mem.clone();
    assert!(mem.is_code(CODE) && mem.is_code(CODE + 0x1000));
    drop(cpu);
    assert!(!mem.is_code(CODE) && !mem.is_code(CODE + 0x1000));
}
