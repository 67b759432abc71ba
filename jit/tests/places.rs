//! Accesses that look into places, each the translation that it used last: those must not outlive what the TLB would
//! allow.
//!
//! Where blocks are compiled at once every other one has places, so each program runs behind no, one, two and three
//! blocks more.
mod common;

use common::*;
use iced_x86::code_asm::*;
use mynah_cpu::State;
use mynah_cpu::state::{cr4, gpr};

/// Runs a program, which begins with RAX = 0 and ends with HLT or at a fault, on both machines, and compares; returns
/// the state.
fn run(set: impl Fn(&mut State), f: impl Fn(&mut CodeAssembler) -> Result<(), IcedError>) -> State {
    let program = |before: usize| {
        let mut pair = Pair::baseline(64);
        let mut a = CodeAssembler::new(64).unwrap();
        for _ in 0..before {
            let mut next = a.create_label();
            a.jmp(next).unwrap();
            a.set_label(&mut next).unwrap();
        }
        f(&mut a).unwrap();
        let at = pair.put_code(&a.assemble(CODE).unwrap());
        assert_eq!(at, CODE);
        pair.prepare(at, 5, |s, _| {
            s.gpr[gpr::RAX] = 0;
            set(s);
        });
        for n in 0..8 {
            for cpu in [&pair.plain, &pair.fast] {
                cpu.mem.write_u64(DATA + n * 0x1000, 1 << (8 * n));
            }
        }
        pair.run(&|| format!("behind {before} blocks"));
        pair.fast.state.clone()
    };
    let ends = [0, 1, 2, 3].map(program);
    assert!(ends.iter().all(|end| end.gpr[gpr::RAX] == ends[0].gpr[gpr::RAX]));
    ends[0].clone()
}

/// Adds up what is at RSI, 20 times, by one instruction of one block.
fn read_often(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut top = a.create_label();
    a.mov(ecx, 20)?;
    a.jmp(top)?;
    a.set_label(&mut top)?;
    a.add(rax, qword_ptr(rsi))?;
    a.dec(ecx)?;
    a.jne(top)
}

/// Counts at RSI, 20 times, likewise.
fn write_often(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut top = a.create_label();
    a.mov(ecx, 20)?;
    a.jmp(top)?;
    a.set_label(&mut top)?;
    a.inc(dword_ptr(rsi))?;
    a.inc(eax)?;
    a.dec(ecx)?;
    a.jne(top)
}

type Program = fn(&mut CodeAssembler) -> Result<(), IcedError>;

/// Does something before and after a change, with the same instructions, and halts.
fn twice(
    a: &mut CodeAssembler,
    what: Program,
    change: impl Fn(&mut CodeAssembler) -> Result<(), IcedError>,
) -> Result<(), IcedError> {
    let (mut again, mut end) = (a.create_label(), a.create_label());
    a.xor(r9d, r9d)?;
    // What misses the TLB fills that first, and its place the next time.
    a.mov(ebx, 3)?;
    a.set_label(&mut again)?;
    what(a)?;
    a.dec(ebx)?;
    a.jne(again)?;
    a.test(r9d, r9d)?;
    a.jne(end)?;
    change(a)?;
    a.inc(r9d)?;
    a.mov(ebx, 3)?;
    a.jmp(again)?;
    a.set_label(&mut end)?;
    a.hlt()
}

/// 100 rounds of reading from a page that is another one each time.
fn remap(flush: impl Fn(&mut CodeAssembler) -> Result<(), IcedError>) {
    let s = run(
        |_| (),
        |a| {
            let mut round = a.create_label();
            a.mov(esi, DATA as u32)?;
            a.mov(ebx, 100)?;
            a.set_label(&mut round)?;
            read_often(a)?;
            a.xor(qword_ptr(u64::from(entry(DATA))), 0x1000)?;
            flush(a)?;
            a.dec(ebx)?;
            a.jne(round)?;
            a.hlt()
        },
    );
    assert_eq!(s.gpr[gpr::RAX], 50 * 20 + 50 * 20 * 0x100);
}

#[test]
fn a_page_that_is_mapped_elsewhere_is_read_there_after_invlpg() {
    if lacks_baseline() {
        return;
    }
    remap(|a| a.invlpg(byte_ptr(rsi)));
}

#[test]
fn a_page_that_is_mapped_elsewhere_is_read_there_after_mov_to_cr3() {
    if lacks_baseline() {
        return;
    }
    remap(reload_cr3);
}

#[test]
fn a_page_that_is_made_read_only_is_not_written_to() {
    if lacks_baseline() {
        return;
    }
    let s = run(
        |_| (),
        |a| {
            a.mov(esi, DATA as u32)?;
            twice(a, write_often, |a| {
                a.mov(rdx, qword_ptr(u64::from(entry(DATA))))?;
                a.lea(rdx, ptr(rdx - 2))?;
                a.mov(qword_ptr(u64::from(entry(DATA))), rdx)?;
                a.invlpg(byte_ptr(rsi))
            })
        },
    );
    assert_eq!((s.gpr[gpr::RAX], s.cr2), (60, DATA));
}

#[test]
fn user_pages_are_refused_again_after_clac() {
    if lacks_baseline() {
        return;
    }
    let s = run(
        |s| s.cr4 |= cr4::SMAP,
        |a| {
            a.mov(esi, DATA as u32)?;
            for at in [0x1000, 0x2000, 0x3000] {
                a.or(qword_ptr(at), 4)?;
            }
            a.or(qword_ptr(u64::from(entry(DATA))), 4)?;
            reload_cr3(a)?;
            a.stac()?;
            twice(a, read_often, |a| a.clac())
        },
    );
    assert_eq!((s.gpr[gpr::RAX], s.cr2), (60, DATA));
}

#[test]
fn what_becomes_code_is_seen_to_be_written_to() {
    if lacks_baseline() {
        return;
    }
    // MOV EDX, imm32; RET, with an immediate that is counted up before each call.
    let s = run(
        |_| (),
        |a| {
            let mut round = a.create_label();
            a.mov(esi, DATA as u32 + 0x1008)?;
            a.mov(dword_ptr(rsi - 4), 0xba00_0000_u32 as i32)?;
            a.mov(dword_ptr(rsi), 0)?;
            a.mov(byte_ptr(rsi + 4), 0xc3)?;
            a.lea(r8, ptr(rsi - 1))?;
            a.mov(ebx, 30)?;
            a.set_label(&mut round)?;
            write_often(a)?;
            a.call(r8)?;
            a.dec(ebx)?;
            a.jne(round)?;
            a.hlt()
        },
    );
    assert_eq!(s.gpr[gpr::RDX], 600);
}

#[test]
fn an_access_across_pages_is_not_found_in_the_second_page_s_place() {
    if lacks_baseline() {
        return;
    }
    // The pages follow each other by address, not in memory.
    let s = run(
        |_| (),
        |a| {
            let mut round = a.create_label();
            a.mov(qword_ptr(u64::from(entry(DATA))), DATA as i32 + 0x5003)?;
            reload_cr3(a)?;
            a.mov(esi, DATA as u32 + 0xffc)?;
            a.mov(dword_ptr(rsi), 3)?;
            a.mov(ebx, 50)?;
            a.set_label(&mut round)?;
            a.add(rax, qword_ptr(rsi))?;
            a.xor(esi, 0x1000 ^ 0xffc)?;
            a.dec(ebx)?;
            a.jne(round)?;
            a.hlt()
        },
    );
    // At 0xffc: 3, and above it the low half of the next page's 0x100; at 0x1000 that alone.
    assert_eq!(s.gpr[gpr::RAX], 25 * (3 | 0x100 << 32) + 25 * 0x100);
}

#[test]
fn places_of_reads_are_not_those_of_writes() {
    if lacks_baseline() {
        return;
    }
    // More accesses than there are places.
    let s = run(
        |_| (),
        |a| {
            let (mut round, mut write) = (a.create_label(), a.create_label());
            a.mov(esi, READ_ONLY as u32)?;
            a.mov(r8d, DATA as u32)?;
            a.mov(ebx, 6)?;
            a.set_label(&mut round)?;
            for n in 0..120 {
                let mut next = a.create_label();
                for _ in 0..20 {
                    a.mov(rdx, qword_ptr(rsi))?;
                }
                a.mov(qword_ptr(r8), rdx)?;
                a.inc(eax)?;
                a.test(eax, eax)?;
                a.jne(next)?;
                a.mov(ecx, n)?;
                a.set_label(&mut next)?;
            }
            a.dec(ebx)?;
            a.cmp(ebx, 1)?;
            a.je(write)?;
            a.jmp(round)?;
            a.set_label(&mut write)?;
            a.mov(r8d, READ_ONLY as u32)?;
            a.jmp(round)
        },
    );
    assert_eq!((s.gpr[gpr::RAX], s.cr2), (600, READ_ONLY));
}
