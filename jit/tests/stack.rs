//! Windows on the stack in the baseline: what a block pushes, pops and has at known distances from RSP is asked for
//! once, and goes where each access by itself would.
mod common;

use common::*;
use iced_x86::code_asm::*;
use mynah_cpu::State;
use mynah_cpu::state::gpr;

type Make = fn(&mut CodeAssembler) -> Result<(), IcedError>;

/// Machines that execute `round` so many times, with 0 in RAX at first, and halt.
fn prepared(rounds: u32, set: impl Fn(&mut State), round: Make) -> Pair {
    let mut pair = Pair::baseline(64);
    pair.prepare_rounds(rounds, set, round);
    pair
}

/// Runs these to the end, where both are the same. Returns the state.
fn run(rounds: u32, set: impl Fn(&mut State), round: Make) -> State {
    let mut pair = prepared(rounds, set, round);
    pair.run(&String::new);
    pair.fast.state.clone()
}

/// Has a page of both machines' be at a physical address, and written to.
fn map(pair: &Pair, page: u64, at: u64) {
    pair.write(entry(page).into(), &(at | 3).to_le_bytes());
}

/// Where a fault's frame is found, given the state behind its handler: the address, CR2, and RSP before.
fn fault(pair: &Pair) -> (u64, u64, u64) {
    let s = &pair.fast.state;
    let frame = |n: u64| pair.fast.mem.read_u64(s.gpr[gpr::RSP] + 8 * n);
    (frame(1), s.cr2, frame(4))
}

/// Six words on the stack, with flags that are wanted behind, in 96 bytes; RAX becomes what it must.
fn use_stack(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.push(rbx)?;
    a.push(0x11)?;
    a.push(r13)?;
    a.sub(rsp, 0x30)?;
    a.mov(qword_ptr(rsp + 8), rbx)?;
    a.mov(qword_ptr(rsp + 0x1c), rcx)?;
    a.mov(byte_ptr(rsp + 0x28), bl)?;
    a.add(rax, qword_ptr(rsp + 8))?;
    // The carry is kept.
    a.cmp(rcx, rdx)?;
    a.mov(dword_ptr(rsp + 0x2c), 7)?;
    a.push(rcx)?;
    a.adc(rax, qword_ptr(rsp + 0x10))?;
    a.pop(rcx)?;
    a.lea(rsp, qword_ptr(rsp + 0x30))?;
    a.pop(r13)?;
    a.pop(rsi)?;
    a.add(rax, rsi)?;
    a.pop(rbx)
}

#[test]
fn a_stack_may_end_anywhere_in_a_page() {
    if lacks_baseline() {
        return;
    }
    for step in [-8, -1] {
        let rounds = 4096 / -step as u32 + 40;
        let s = run(
            rounds,
            |s| s.gpr[gpr::RSP] = STACK.1 - 0x400,
            if step == -8 {
                |a| {
                    use_stack(a)?;
                    a.lea(rsp, qword_ptr(rsp - 8))
                }
            } else {
                |a| {
                    use_stack(a)?;
                    a.lea(rsp, qword_ptr(rsp - 1))
                }
            },
        );
        assert_eq!(s.gpr[gpr::RSP], (STACK.1 - 0x400).wrapping_add_signed(i64::from(rounds) * step));
    }
}

#[test]
fn a_stack_on_two_pages_is_used_without_leaving_the_code() {
    if lacks_baseline() {
        return;
    }
    let mut pair = prepared(1000, |s| s.gpr[gpr::RSP] = STACK.0 + 0x1020, use_stack);
    pair.run(&String::new);
    let entered = pair.statistics().entered;
    assert!(entered < 50, "{entered} times");
}

#[test]
fn what_may_only_be_read_is_popped() {
    if lacks_baseline() {
        return;
    }
    let mut pair = prepared(
        50,
        |s| s.gpr[gpr::RSP] = READ_ONLY + 0x100,
        |a| {
            a.pop(rcx)?;
            a.pop(rdx)?;
            a.add(rax, rcx)?;
            a.add(rax, rdx)?;
            a.add(rax, qword_ptr(rsp + 8))
        },
    );
    for n in 0..0x200 {
        pair.write(READ_ONLY + 8 * n, &n.to_le_bytes());
    }
    pair.run(&String::new);
    let first = 0x100 / 8;
    let sum: u64 = (0..50).map(|n| first + 2 * n).map(|n| n + (n + 1) + (n + 3)).sum();
    assert_eq!(pair.fast.state.gpr[gpr::RAX], sum);
}

#[test]
fn a_store_that_faults_has_done_nothing() {
    if lacks_baseline() {
        return;
    }
    // Up from the last page that may be written into one that may not.
    let mut pair = prepared(
        100,
        |s| s.gpr[gpr::RSP] = READ_ONLY - 8 * 20,
        |a| {
            a.inc(eax)?;
            a.push(rcx)?;
            a.mov(qword_ptr(rsp + 8), rbx)?;
            a.lea(rsp, qword_ptr(rsp + 0x10))
        },
    );
    pair.run(&String::new);
    assert_eq!(pair.fast.state.gpr[gpr::RAX], 21);
    assert_eq!(fault(&pair), (CODE + 3, READ_ONLY, READ_ONLY - 8));
}

#[test]
fn a_pop_that_faults_has_done_nothing() {
    if lacks_baseline() {
        return;
    }
    // Up from the last page of data's into nothing; the handlers have a stack of their own.
    let mut pair = prepared(
        100,
        |s| s.gpr[gpr::RBP] = ABSENT - 3 * 8 * 20 - 8,
        |a| {
            a.xchg(rsp, rbp)?;
            a.jmp(CODE + 0x800)
        },
    );
    pair.write_code(CODE + 0x800, |a| {
        a.pop(rcx)?;
        a.pop(rdx)?;
        a.mov(rsi, qword_ptr(rsp))?;
        a.lea(rsp, qword_ptr(rsp + 8))?;
        a.inc(eax)?;
        a.jmp(CODE + 0x800)
    });
    // What the handler pushes goes to the page below, which may not be written.
    map(&pair, READ_ONLY, READ_ONLY);
    pair.run(&String::new);
    assert_eq!(pair.fast.state.gpr[gpr::RAX], 20);
    assert_eq!(fault(&pair), (CODE + 0x801, ABSENT, ABSENT));
}

#[test]
fn a_stack_pointer_that_is_no_address_faults() {
    if lacks_baseline() {
        return;
    }
    for stack in [1 << 63, (1 << 63) + 0x801, 1 << 47, 0x800, 0x801, 0xffff_8000_0000_0000 - 8] {
        // In the second round: nothing is known of the stack's page before the first, but where it was.
        let mut pair = prepared(
            3,
            |s| s.gpr[gpr::RDX] = stack,
            |a| {
                a.pop(rcx)?;
                a.pop(rsi)?;
                a.push(rsi)?;
                a.push(rcx)?;
                a.xchg(rsp, rdx)
            },
        );
        // The fault's frame has no place either.
        let ends = (pair.plain.run(), pair.fast.run());
        assert_eq!(ends.0, ends.1, "{stack:x}");
        assert_eq!(pair.plain.state.gpr, pair.fast.state.gpr, "{stack:x}");
    }
}

#[test]
fn a_stack_is_where_it_is_mapped() {
    if lacks_baseline() {
        return;
    }
    let by_cr3: Make = |a| {
        use_stack(a)?;
        a.push(rbx)?;
        a.add(rax, qword_ptr(rsp))?;
        a.pop(rbx)?;
        a.xor(qword_ptr(u64::from(entry(STACK.0))), 0x1000)?;
        reload_cr3(a)?;
        a.add(rax, qword_ptr(rsp - 8))?;
        a.add(rax, qword_ptr(rsp - 0x30))
    };
    let by_invlpg: Make = |a| {
        a.mov(rdx, qword_ptr(rsp - 8))?;
        a.add(rax, rdx)?;
        a.push(rbx)?;
        a.xor(qword_ptr(u64::from(entry(STACK.0))), 0x1000)?;
        a.invlpg(byte_ptr(rsp))?;
        a.add(rax, qword_ptr(rsp))?;
        a.lea(rsp, qword_ptr(rsp + 8))
    };
    for round in [by_cr3, by_invlpg] {
        run(100, |s| s.gpr[gpr::RSP] = STACK.0 + 0x800, round);
    }
}

#[test]
fn a_stack_on_the_first_page_is_no_other() {
    if lacks_baseline() {
        return;
    }
    // It has no fast accesses.
    let mut pair = prepared(
        100,
        |s| s.gpr[gpr::RBP] = 0x900,
        |a| {
            let mut next = a.create_label();
            a.push(rax)?;
            a.push(rax)?;
            a.lea(rsp, qword_ptr(rsp + 0x10))?;
            a.xchg(rsp, rbp)?;
            a.invlpg(byte_ptr(rsp))?;
            a.jmp(next)?;
            a.set_label(&mut next)?;
            a.push(rbx)?;
            a.push(rbx)?;
            a.lea(rsp, qword_ptr(rsp + 0x10))?;
            a.add(rax, qword_ptr(DATA + 0x8f8))?;
            a.xchg(rsp, rbp)
        },
    );
    map(&pair, 0, DATA);
    pair.run(&String::new);
    assert_eq!(pair.fast.state.gpr[gpr::RAX], (1..=100).sum::<u64>());
}

#[test]
fn what_is_pushed_onto_code_is_executed() {
    if lacks_baseline() {
        return;
    }
    // ADD EAX, EBX and a jump, twice, are pushed onto the page that does so, and the one pushed first is executed.
    let mut pair = prepared(
        100,
        |s| s.gpr[gpr::RSP] = STACK.1 - 0x800,
        |a| {
            let mut next = a.create_label();
            a.lea(r8, ptr(next))?;
            a.mov(rbp, rsp)?;
            a.mov(rdx, rbx)?;
            a.shl(rdx, 8)?;
            // ADD EAX, 0; JMP from 81Fh to 830h; NOP
            a.mov(rcx, u64::from_le_bytes([0x05, 0, 0, 0, 0, 0xeb, 0x11, 0x90]))?;
            a.or(rdx, rcx)?;
            a.lea(rsp, qword_ptr(CODE + 0x820))?;
            a.jmp(CODE + 0x900)?;
            a.set_label(&mut next)?;
            a.nop()
        },
    );
    pair.write_code(CODE + 0x900, |a| {
        a.push(rdx)?;
        a.push(rdx)?;
        a.jmp(CODE + 0x818)
    });
    pair.write_code(CODE + 0x830, |a| {
        a.mov(rsp, rbp)?;
        a.jmp(r8)
    });
    pair.run(&String::new);
    assert_eq!(pair.fast.state.gpr[gpr::RAX], (1..=100).sum::<u64>());
}
