//! Returns in the baseline: each goes where the guest's stack says, to what is mapped and stands there then, however
//! the call that it belongs to was made.
mod common;

use common::*;
use iced_x86::code_asm::*;
use mynah_cpu::board::EV_INTR;
use mynah_cpu::state::{fl, gpr};
use std::time::Duration;

const ROUNDS: u32 = 100;

type Make = fn(&mut CodeAssembler) -> Result<(), IcedError>;

/// A program that executes `round` some times, with 0 in EAX at first, and then halts.
fn rounds_of(bits: u32, round: Make) -> Pair {
    let mut pair = Pair::baseline(bits);
    pair.prepare_rounds(ROUNDS, |_| (), round);
    assert_eq!(pair.fast.state.gpr[gpr::RIP], CODE);
    pair
}

/// What is in RAX in the end.
fn sum(pair: &mut Pair) -> u64 {
    pair.run(&String::new);
    pair.fast.state.gpr[gpr::RAX]
}

/// In 64-bit mode, two pages that begin with the same call of what is at `f`; the first adds 1 to EAX behind the call,
/// the second 100h, and both return.
fn put_callers(pair: &Pair, f: u64) {
    let mut a = CodeAssembler::new(64).unwrap();
    for (page, adds) in [(DATA, 1), (DATA + 0x1000, 0x100)] {
        a.reset();
        a.call(f).unwrap();
        a.add(eax, adds).unwrap();
        a.ret().unwrap();
        // Both are executed at the first's address.
        let code = a.assemble(DATA).unwrap();
        pair.write(page, &code);
    }
}

const FUNCTION: u64 = CODE + 0x800;

#[test]
fn calls_are_returned_from_at_any_depth() {
    if lacks_baseline() {
        return;
    }
    for bits in [32, 64] {
        let mut pair = rounds_of(bits, |a| {
            // Deeper than what is remembered, and less deep.
            a.mov(ecx, ebx)?;
            a.and(ecx, 63)?;
            a.call(FUNCTION)
        });
        pair.write_code(FUNCTION, |a| {
            let mut end = a.create_label();
            a.inc(eax)?;
            a.sub(ecx, 1)?;
            a.jb(end)?;
            a.call(FUNCTION)?;
            a.add(eax, 0x1000)?;
            a.set_label(&mut end)?;
            a.ret()
        });
        let depths: u64 = (1..=u64::from(ROUNDS)).map(|n| n & 63).sum();
        assert_eq!(sum(&mut pair), u64::from(ROUNDS) + depths * 0x1001, "{bits} bits");
        // A slot that a return was found in is good no more.
        let found =
            pair.fast.returns.slots.iter().filter(|slot| slot.tag == 0 && !slot.code.is_null()).count();
        assert!(found > 10, "returns are no longer foreseen");
    }
}

#[test]
fn what_was_written_behind_a_call_is_returned_to() {
    if lacks_baseline() {
        return;
    }
    for bits in [32, 64] {
        let mut pair = rounds_of(bits, |a| {
            a.call(FUNCTION)?;
            // What it adds is at byte 6.
            a.add(eax, 0x100)
        });
        pair.write_code(FUNCTION, |a| {
            a.mov(ecx, CODE as u32)?;
            if a.bitness() == 64 {
                a.inc(dword_ptr(rcx + 6))?
            } else {
                a.inc(dword_ptr(ecx + 6))?
            }
            a.ret()
        });
        let rounds = u64::from(ROUNDS);
        assert_eq!(sum(&mut pair), rounds * 0x100 + rounds * (rounds + 1) / 2, "{bits} bits");
    }
}

#[test]
fn a_return_leads_to_what_is_mapped_there_by_then() {
    if lacks_baseline() {
        return;
    }
    let by_cr3: Make = |a| {
        a.xor(qword_ptr(u64::from(entry(DATA))), 0x1000)?;
        reload_cr3(a)?;
        a.ret()
    };
    let by_invlpg: Make = |a| {
        a.xor(qword_ptr(u64::from(entry(DATA))), 0x1000)?;
        a.mov(rcx, DATA)?;
        a.invlpg(byte_ptr(rcx))?;
        a.ret()
    };
    for flush in [by_cr3, by_invlpg] {
        let mut pair = rounds_of(64, |a| a.call(DATA));
        put_callers(&pair, FUNCTION);
        pair.write_code(FUNCTION, flush);
        assert_eq!(sum(&mut pair), u64::from(ROUNDS) / 2 * 0x101);
    }
}

#[test]
fn a_return_leads_where_the_stack_says() {
    if lacks_baseline() {
        return;
    }
    for bits in [32, 64] {
        let mut pair = rounds_of(bits, |a| {
            a.call(FUNCTION)?;
            // Passed over each other time.
            a.add(eax, 0x100)?;
            a.inc(eax)
        });
        pair.write_code(FUNCTION, |a| {
            let mut end = a.create_label();
            a.test(ebx, 1)?;
            a.jne(end)?;
            if a.bitness() == 64 {
                a.add(qword_ptr(rsp), 5)?
            } else {
                a.add(dword_ptr(esp), 5)?
            }
            a.set_label(&mut end)?;
            a.ret()
        });
        assert_eq!(sum(&mut pair), u64::from(ROUNDS) / 2 * 0x102, "{bits} bits");
    }
}

#[test]
fn a_return_to_no_address_faults_with_the_stack_as_it_was() {
    if lacks_baseline() {
        return;
    }
    let mut pair = rounds_of(64, |a| a.call(FUNCTION));
    pair.write_code(FUNCTION, |a| {
        let mut end = a.create_label();
        a.inc(eax)?;
        // In the last round but one.
        a.cmp(ebx, 2)?;
        a.jne(end)?;
        a.btc(qword_ptr(rsp), 63)?;
        a.set_label(&mut end)?;
        a.ret()
    });
    assert_eq!(sum(&mut pair), u64::from(ROUNDS) - 1, "halted by the handler of #GP");
    // RIP, CS, RFLAGS, RSP, SS and an error code below the address.
    let s = &pair.fast.state;
    assert_eq!(s.gpr[gpr::RIP], HANDLERS + 4 * 13 + 1);
    assert_eq!(pair.fast.mem.read_u64(s.gpr[gpr::RSP] + 8), FUNCTION + 13);
}

#[test]
fn returns_that_go_back_for_ever_are_interrupted() {
    if lacks_baseline() {
        return;
    }
    // Many calls expect a return to FUNCTION; then there is one after the other, with nothing else that goes back.
    let (word, end) = (DATA + 0x800, FUNCTION + 0x100);
    let mut pair = Pair::baseline(64);
    let code = |at: u64| {
        let mut a = CodeAssembler::new(64).unwrap();
        let (mut attack, mut fill) = (a.create_label(), a.create_label());
        a.set_label(&mut fill).unwrap();
        a.call(FUNCTION).unwrap();
        assert_eq!(a.assemble(at).unwrap().len() as u64, FUNCTION - at);
        a.sub(ecx, 1).unwrap();
        a.js(attack).unwrap();
        a.jmp(fill).unwrap();
        a.set_label(&mut attack).unwrap();
        a.mov(rsp, word).unwrap();
        a.xor(ecx, ecx).unwrap();
        a.ret().unwrap();
        a.assemble(at).unwrap()
    };
    pair.write(FUNCTION - 5, &code(FUNCTION - 5));
    pair.write_code(end, |a| a.hlt());
    pair.prepare(FUNCTION - 5, 7, |s, _| {
        s.gpr[gpr::RCX] = 60;
        s.rflags |= fl::IF;
    });
    pair.write(word, &FUNCTION.to_le_bytes());
    let cpu = &mut pair.fast;
    let (events, mem) = (cpu.events.clone(), cpu.mem.clone());
    let (done, seen) = std::sync::mpsc::channel();
    let other = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(100));
        events.raise(EV_INTR);
        if seen.recv_timeout(Duration::from_secs(10)).is_err() {
            // That it ends in any case, elsewhere.
            events.take(EV_INTR);
            mem.write(word, &end.to_le_bytes());
        }
    });
    cpu.run();
    let rip = cpu.state.gpr[gpr::RIP];
    done.send(()).ok();
    other.join().unwrap();
    assert_eq!(rip, HANDLERS + 4 * 0x30 + 1);
}
