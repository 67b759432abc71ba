//! Loops and calls: what a region is made for. The results are those of the interpreter, and nearly all of the work is
//! done in regions.
mod common;

use common::*;
use iced_x86::code_asm::*;
use mynah_cpu::board::{EV_INTR, EV_KICK};
use mynah_cpu::state::{fl, gpr};
use mynah_cpu::tier::LEFT_HOT;
use mynah_cpu::{Exit, State};
use mynah_jit::tier::{Engine, Optimize, Options, Translating};
use std::sync::atomic::Ordering;

fn assemble(bits: u32, at: u64, f: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) -> Vec<u8> {
    let mut a = CodeAssembler::new(bits).unwrap();
    f(&mut a).unwrap();
    a.assemble(at).unwrap()
}

/// Runs code (which ends with HLT) on both machines and compares; returns the translated machine's state and the pair.
fn both(
    bits: u32,
    set: impl Fn(&mut State),
    f: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>,
) -> (State, Pair) {
    both_in(Pair::with(bits, Optimize::Speed, 10), set, f)
}

fn both_in(
    mut pair: Pair,
    set: impl Fn(&mut State),
    f: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>,
) -> (State, Pair) {
    let bits = pair.bits;
    let at = pair.put_code(&assemble(bits, CODE, f));
    assert_eq!(at, CODE);
    pair.prepare(at, 99, |s, _| set(s));
    pair.run(&|| "the program".into());
    (pair.fast.state.clone(), pair)
}

fn sum(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut top = a.create_label();
    a.xor(eax, eax)?;
    a.mov(ecx, 10_000)?;
    a.set_label(&mut top)?;
    a.add(eax, ecx)?;
    a.dec(ecx)?;
    a.jne(top)?;
    a.hlt()
}

#[test]
fn a_sum_over_a_counted_loop_is_right_in_both_modes() {
    for bits in [32, 64] {
        let (s, pair) = both(bits, |_| (), sum);
        assert_eq!(s.gpr[gpr::RAX], 50_005_000);
        let st = pair.statistics();
        assert!(st.compiled >= 1 && st.entered < 5, "{st:?}");
    }
}

#[test]
fn instructions_are_counted_one_by_one() {
    let (_, pair) = both(64, |_| (), sum);
    // Two, three for each time round, and the HLT.
    assert_eq!(pair.fast.icount, 2 + 3 * 10_000 + 1);
}

#[test]
fn a_sieve_with_nested_loops_finds_the_primes() {
    let (s, pair) = both(
        64,
        |_| (),
        |a| {
            let (mut outer, mut inner, mut skip, mut clear, mut count, mut no) = (
                a.create_label(),
                a.create_label(),
                a.create_label(),
                a.create_label(),
                a.create_label(),
                a.create_label(),
            );
            a.mov(rsi, DATA)?;
            a.xor(ecx, ecx)?;
            a.set_label(&mut clear)?;
            a.mov(byte_ptr(rsi + rcx), 1)?;
            a.inc(ecx)?;
            a.cmp(ecx, 4096)?;
            a.jb(clear)?;
            a.mov(ebx, 2)?;
            a.set_label(&mut outer)?;
            a.cmp(byte_ptr(rsi + rbx), 0)?;
            a.je(skip)?;
            a.lea(edi, ptr(rbx + rbx))?;
            a.cmp(edi, 4096)?;
            a.jae(skip)?;
            a.set_label(&mut inner)?;
            a.mov(byte_ptr(rsi + rdi), 0)?;
            a.add(edi, ebx)?;
            a.cmp(edi, 4096)?;
            a.jb(inner)?;
            a.set_label(&mut skip)?;
            a.inc(ebx)?;
            a.cmp(ebx, 4096)?;
            a.jne(outer)?;
            a.xor(eax, eax)?;
            a.mov(ebx, 2)?;
            a.set_label(&mut count)?;
            a.cmp(byte_ptr(rsi + rbx), 0)?;
            a.je(no)?;
            a.inc(eax)?;
            a.set_label(&mut no)?;
            a.inc(ebx)?;
            a.cmp(ebx, 4096)?;
            a.jne(count)?;
            a.hlt()
        },
    );
    assert_eq!(s.gpr[gpr::RAX], 564);
    // Thousands of rounds, and few entries.
    let st = pair.statistics();
    assert!(st.compiled >= 3 && st.entered < 500, "{st:?}");
}

#[test]
fn a_table_driven_crc32_of_memory_is_right_in_both_modes() {
    let mut results = Vec::new();
    for bits in [32, 64] {
        let (s, _) = both(
            bits,
            |s| s.gpr[gpr::RAX] = 0xffff_ffff,
            |a| {
                // The table at DATA, computed by the guest; then the CRC of what follows it.
                let (mut each, mut bit, mut even, mut next) =
                    (a.create_label(), a.create_label(), a.create_label(), a.create_label());
                a.xor(ebx, ebx)?;
                a.set_label(&mut each)?;
                a.mov(edx, ebx)?;
                a.mov(ecx, 8)?;
                a.set_label(&mut bit)?;
                a.shr(edx, 1)?;
                a.jnc(even)?;
                a.xor(edx, 0xedb8_8320u32 as i32)?;
                a.set_label(&mut even)?;
                a.dec(ecx)?;
                a.jne(bit)?;
                if bits == 64 {
                    a.mov(dword_ptr(rbx * 4 + DATA as i32), edx)?;
                } else {
                    a.mov(dword_ptr(ebx * 4 + DATA as i32), edx)?;
                }
                a.inc(bl)?;
                a.jne(each)?;
                a.mov(esi, DATA as u32)?;
                a.mov(eax, 0xffff_ffffu32)?;
                a.set_label(&mut next)?;
                if bits == 64 {
                    a.movzx(edx, byte_ptr(rsi))?;
                } else {
                    a.movzx(edx, byte_ptr(esi))?;
                }
                a.xor(dl, al)?;
                a.shr(eax, 8)?;
                if bits == 64 {
                    a.xor(eax, dword_ptr(rdx * 4 + DATA as i32))?;
                } else {
                    a.xor(eax, dword_ptr(edx * 4 + DATA as i32))?;
                }
                a.inc(esi)?;
                a.cmp(esi, DATA as i32 + 1024)?;
                a.jne(next)?;
                a.not(eax)?;
                a.hlt()
            },
        );
        results.push(s.gpr[gpr::RAX]);
    }
    // The CRC-32 of the 1024 bytes of the table itself.
    let mut table = [0u32; 256];
    for (n, t) in table.iter_mut().enumerate() {
        *t = (0..8).fold(n as u32, |c, _| c >> 1 ^ if c & 1 != 0 { 0xedb8_8320 } else { 0 });
    }
    let crc = table
        .iter()
        .flat_map(|t| t.to_le_bytes())
        .fold(!0u32, |c, b| c >> 8 ^ table[usize::from(c as u8 ^ b)]);
    assert_eq!(results, [u64::from(!crc), u64::from(!crc)]);
}

#[test]
fn what_lies_across_pages_that_do_not_follow_each_other_is_found_through_a_pointer() {
    // The linear page DATA is the sixth of memory from there on. Nodes have the next one's address, and 8 or 12 bytes
    // behind it a number.
    for field in [8, 12] {
        for last in [0xff0, 0xff5, 0xff8, 0xffc] {
            let nodes = [DATA + 0xfc0, DATA + last, DATA + 0x1010];
            let (s, pair) = both(
                64,
                |_| (),
                |a| {
                    let mut top = a.create_label();
                    a.mov(qword_ptr(entry(DATA)), DATA as i32 + 0x5003)?;
                    reload_cr3(a)?;
                    for (n, &node) in nodes.iter().enumerate() {
                        a.mov(qword_ptr(node), nodes[(n + 1) % nodes.len()] as i32)?;
                    }
                    a.xor(eax, eax)?;
                    a.mov(esi, nodes[0] as u32)?;
                    a.mov(ecx, 10_000)?;
                    a.set_label(&mut top)?;
                    a.add(rax, qword_ptr(rsi + field))?;
                    a.mov(rsi, qword_ptr(rsi))?;
                    a.dec(ecx)?;
                    a.jne(top)?;
                    a.hlt()
                },
            );
            assert_eq!(s.gpr[gpr::RSI], nodes[10_000 % nodes.len()], "{last:x}");
            assert!(pair.statistics().compiled >= 1);
        }
    }
}

#[test]
fn arrays_are_walked_along_from_page_to_page() {
    // Numbers are copied from the first four pages of data's to the next four, in steps of 8 bytes up and of 24 down,
    // and added up where they came to; each of these pages is another than its address says.
    let (s, pair) = both(
        64,
        |_| (),
        |a| {
            let (mut up, mut down, mut add) = (a.create_label(), a.create_label(), a.create_label());
            for n in 0..8 {
                let page = DATA + 0x1000 * n;
                a.mov(qword_ptr(u64::from(entry(page))), (DATA + 0x1000 * (n ^ 5) + 3) as i32)?;
            }
            reload_cr3(a)?;
            a.mov(esi, DATA as u32)?;
            a.mov(edi, DATA as u32 + 0x4000)?;
            a.xor(ecx, ecx)?;
            a.set_label(&mut up)?;
            a.mov(rax, qword_ptr(rsi + rcx * 8))?;
            a.mov(qword_ptr(rdi + rcx * 8), rax)?;
            a.inc(ecx)?;
            a.cmp(ecx, 0x800)?;
            a.jne(up)?;
            a.mov(ecx, 0x3ff0)?;
            a.set_label(&mut down)?;
            a.mov(rax, qword_ptr(rsi + rcx))?;
            a.add(qword_ptr(rdi + rcx), rax)?;
            // Across two pages now and then.
            a.mov(rdx, qword_ptr(rdi + rcx + 5))?;
            a.add(r9, rdx)?;
            a.sub(ecx, 24)?;
            a.jns(down)?;
            a.xor(eax, eax)?;
            a.mov(ecx, 0x800)?;
            a.set_label(&mut add)?;
            a.dec(ecx)?;
            a.add(rax, qword_ptr(rdi + rcx * 8))?;
            a.test(ecx, ecx)?;
            a.jne(add)?;
            a.hlt()
        },
    );
    assert_ne!(s.gpr[gpr::RAX], 0);
    let st = pair.statistics();
    assert!(st.compiled >= 3 && st.entered < 50, "{st:?}");
}

#[test]
fn a_walk_goes_on_where_its_page_is_mapped() {
    // The page is two in turns.
    let (s, pair) = both(
        64,
        |_| (),
        |a| {
            let (mut round, mut walk) = (a.create_label(), a.create_label());
            a.mov(esi, DATA as u32)?;
            a.mov(ebx, 100)?;
            a.xor(edx, edx)?;
            a.set_label(&mut round)?;
            a.mov(ecx, 500)?;
            a.set_label(&mut walk)?;
            a.add(rdx, qword_ptr(rsi + rcx * 8))?;
            a.dec(ecx)?;
            a.jne(walk)?;
            a.xor(qword_ptr(u64::from(entry(DATA))), 0x1000)?;
            a.invlpg(byte_ptr(rsi))?;
            a.dec(ebx)?;
            a.jne(round)?;
            a.hlt()
        },
    );
    let page = |at| (1..=500).fold(0u64, |sum, n| sum.wrapping_add(pair.fast.mem.read_u64(at + 8 * n)));
    let both_pages = page(DATA).wrapping_add(page(DATA + 0x1000));
    assert_eq!(s.gpr[gpr::RDX], both_pages.wrapping_mul(50));
}

#[test]
fn calls_and_returns_stay_in_the_region() {
    let (s, pair) = both(
        64,
        |_| (),
        |a| {
            let (mut top, mut f, mut end) = (a.create_label(), a.create_label(), a.create_label());
            a.xor(eax, eax)?;
            a.mov(ecx, 5000)?;
            a.set_label(&mut top)?;
            a.call(f)?;
            a.dec(ecx)?;
            a.jne(top)?;
            a.jmp(end)?;
            a.set_label(&mut f)?;
            a.push(rcx)?;
            a.add(rax, rcx)?;
            a.pop(rdx)?;
            a.ret()?;
            a.set_label(&mut end)?;
            a.hlt()
        },
    );
    assert_eq!(s.gpr[gpr::RAX], 5000 * 5001 / 2);
    assert!(pair.statistics().entered < 100, "{:?}", pair.statistics());
}

#[test]
fn helpers_in_a_loop_see_and_change_the_state() {
    let (s, _) = both(
        64,
        |_| (),
        |a| {
            let mut top = a.create_label();
            a.mov(ebx, 7)?;
            a.xor(esi, esi)?;
            a.mov(ecx, 1000)?;
            a.set_label(&mut top)?;
            a.mov(eax, ecx)?;
            a.xor(edx, edx)?;
            a.div(ebx)?;
            a.add(esi, edx)?;
            a.rcl(esi, 1)?;
            a.rcr(esi, 1)?;
            a.dec(ecx)?;
            a.jne(top)?;
            a.hlt()
        },
    );
    assert_eq!(s.gpr[gpr::RSI], (1..=1000u64).map(|n| n % 7).sum::<u64>());
}

#[test]
fn a_fault_in_a_hot_loop_is_delivered_with_the_state_of_its_instruction() {
    // Stores upward until the page that is not there: #PF, whose handler halts; its frame is compared with the rest of
    // memory.
    let (s, _) = both(
        64,
        |_| (),
        |a| {
            let mut top = a.create_label();
            a.mov(rdi, DATA)?;
            a.set_label(&mut top)?;
            a.add(rdi, 4)?;
            a.add(dword_ptr(rdi), edi)?;
            a.inc(rbx)?;
            a.jmp(top)
        },
    );
    // The read-only page comes first.
    assert_eq!(s.cr2, READ_ONLY);
    assert_eq!(s.gpr[gpr::RDI], READ_ONLY);
    assert_eq!(s.gpr[gpr::RIP], HANDLERS + 4 * 14 + 1);
}

#[test]
fn a_kick_leaves_an_endless_loop() {
    let mut pair = Pair::new(64);
    let at = pair.put_code(&assemble(64, CODE, |a| {
        let mut top = a.create_label();
        a.set_label(&mut top)?;
        a.inc(rax)?;
        a.jmp(top)
    }));
    pair.prepare(at, 1, |_, _| ());
    let events = pair.fast.events.clone();
    let kicker = std::thread::spawn(move || {
        std::thread::sleep(std::time::Duration::from_millis(30));
        events.raise(EV_KICK);
    });
    assert_eq!(pair.fast.run(), Exit::Kick);
    kicker.join().unwrap();
    assert_eq!(pair.fast.state.gpr[gpr::RIP], at);
    assert!(pair.statistics().entered < 5);
}

#[test]
fn an_interrupt_is_taken_between_iterations() {
    let mut pair = Pair::new(64);
    let at = pair.put_code(&assemble(64, CODE, |a| {
        let mut top = a.create_label();
        a.set_label(&mut top)?;
        a.inc(rax)?;
        a.cmp(rax, rbx)?;
        a.jne(top)?;
        a.hlt()
    }));
    pair.prepare(at, 1, |s, _| {
        s.rflags |= fl::IF;
        s.gpr[gpr::RAX] = 0;
        s.gpr[gpr::RBX] = u64::MAX;
    });
    let events = pair.fast.events.clone();
    let thread = std::thread::spawn(move || {
        std::thread::sleep(std::time::Duration::from_millis(20));
        events.raise(EV_INTR);
    });
    assert_eq!(pair.fast.run(), Exit::Halt);
    thread.join().unwrap();
    assert_eq!(pair.fast.state.gpr[gpr::RIP], HANDLERS + 4 * 0x30 + 1);
    // The frame's RIP is the head of the loop.
    let frame = pair.fast.state.gpr[gpr::RSP];
    assert_eq!(pair.fast.mem.read_u64(frame), at);
}

#[test]
fn code_that_changes_itself_takes_effect_at_once() {
    // The loop increments the immediate of its own ADD.
    let (_, pair) = both_in(
        Pair::new(64),
        |_| (),
        |a| {
            let mut top = a.create_label();
            let mut site = a.create_label();
            a.xor(eax, eax)?;
            a.mov(ecx, 100)?;
            a.lea(rsi, ptr(site))?;
            a.set_label(&mut top)?;
            a.inc(byte_ptr(rsi + 2))?;
            a.set_label(&mut site)?;
            a.add(ebx, 0)?;
            a.mov(ebx, ebx)?;
            a.dec(ecx)?;
            a.jne(top)?;
            a.hlt()
        },
    );
    // Compiled, but not each of the hundred times that it has changed.
    let compiled = pair.statistics().compiled;
    assert!((1..50).contains(&compiled), "{compiled}");
}

#[test]
fn a_region_is_dropped_when_its_code_is_written_and_made_anew() {
    let mut pair = Pair::new(64);
    let code = |step: i32| {
        assemble(64, CODE, |a| {
            let mut top = a.create_label();
            a.mov(ecx, 1000)?;
            a.set_label(&mut top)?;
            a.add(eax, step)?;
            a.dec(ecx)?;
            a.jne(top)?;
            a.hlt()
        })
    };
    let at = pair.put_code(&code(1));
    for (step, want) in [(1, 1000), (3, 3000), (1, 1000)] {
        for cpu in [&mut pair.plain, &mut pair.fast] {
            cpu.mem.write(at, &code(step));
            cpu.invalidate_code(at, 64);
        }
        pair.prepare(at, 5, |s, _| s.gpr[gpr::RAX] = 0);
        pair.run(&|| format!("steps of {step}"));
        assert_eq!(pair.fast.state.gpr[gpr::RAX], want);
    }
    // Each time anew.
    assert!(pair.statistics().compiled >= 3, "{:?}", pair.statistics());
}

/// A loop of `rounds`, a multiple of 4096, that calls `callee` every 4096th time round.
fn caller(at: u64, rounds: i32, callee: u64) -> Vec<u8> {
    assemble(64, at, |a| {
        let mut top = a.create_label();
        a.mov(ecx, rounds)?;
        a.set_label(&mut top)?;
        a.dec(ecx)?;
        a.test(ecx, 0xfff)?;
        a.jne(top)?;
        a.call(callee)?;
        a.test(ecx, ecx)?;
        a.jne(top)?;
        a.hlt()
    })
}

#[test]
fn a_region_that_has_lost_a_block_is_made_anew() {
    let mut pair = Pair::with(64, Optimize::Speed, 6000);
    let function = CODE + 0x100;
    let add = |n: i32| {
        assemble(64, function, |a| {
            a.add(eax, n)?;
            a.ret()
        })
    };
    // Long enough for the code not to count as one that is written and run in turn; the function does not get hot.
    let rounds = 76 << 12;
    for cpu in [&mut pair.plain, &mut pair.fast] {
        cpu.mem.write(CODE, &caller(CODE, rounds, function));
    }
    for n in 1..8 {
        for cpu in [&mut pair.plain, &mut pair.fast] {
            cpu.mem.write(function, &add(n));
            cpu.invalidate_code(function, 8);
        }
        pair.prepare(CODE, 5, |s, _| s.gpr[gpr::RAX] = 0);
        let before = pair.statistics();
        pair.run(&|| format!("a function that adds {n}"));
        assert_eq!(pair.fast.state.gpr[gpr::RAX], 76 * n as u64);
        let now = pair.statistics();
        let entered = now.entered - before.entered;
        assert!(now.compiled > before.compiled && entered < 500, "{now:?} after {n} of them");
    }
}

#[test]
fn code_that_was_written_again_and_again_is_compiled_when_it_stays() {
    let mut pair = Pair::with(64, Optimize::Speed, 10);
    let code = |rounds: i32, step: i32| {
        assemble(64, CODE, |a| {
            let mut top = a.create_label();
            a.mov(ecx, rounds)?;
            a.set_label(&mut top)?;
            a.add(eax, step)?;
            a.dec(ecx)?;
            a.jne(top)?;
            a.hlt()
        })
    };
    for n in 0..7 {
        let rounds = if n == 6 { 100_000 } else { 100 };
        for cpu in [&mut pair.plain, &mut pair.fast] {
            cpu.mem.write(CODE, &code(rounds, n));
            cpu.invalidate_code(CODE, 64);
        }
        pair.prepare(CODE, 5, |s, _| s.gpr[gpr::RAX] = 0);
        let before = pair.statistics().compiled;
        pair.run(&|| format!("steps of {n}"));
        assert!(n < 6 || pair.statistics().compiled > before, "{:?}", pair.statistics());
    }
}

#[test]
fn single_steps_are_not_translated() {
    let mut pair = Pair::new(64);
    let at = pair.put_code(&assemble(64, CODE, |a| {
        a.inc(rax)?;
        a.inc(rax)?;
        a.hlt()
    }));
    pair.prepare(at, 3, |s, _| s.rflags |= fl::TF);
    pair.run(&|| "a step".into());
    assert_eq!(pair.fast.state.gpr[gpr::RIP], HANDLERS + 4 + 1);
    // The handler's HLT is a region of its own; the stepped instruction is not.
    assert_eq!(pair.fast.state.dr[6] & 0x4000, 0x4000);
}

#[test]
fn a_loop_is_counted_on_when_blocks_die_whose_code_was_given_up_before() {
    if cfg!(not(target_arch = "x86_64")) {
        eprintln!("SKIPPED: this host has no baseline, whose code it is about");
        return;
    }
    // More blocks than the baseline has room for, each run until it is compiled; then a loop gets code where theirs
    // was, and their bytes change.
    let (blocks, number) = (0x40000u64, 20_000);
    let mut cpu = machine(64);
    let mut chunk = [0x41, 0xff, 0xc0, 0xeb, 0x00].repeat(number); // inc r8d; jmp to the next
    chunk.push(0xc3);
    cpu.mem.write(blocks, &chunk);
    let code = assemble(64, CODE, |a| {
        let (mut pass, mut spin) = (a.create_label(), a.create_label());
        a.mov(r9d, 3)?;
        a.set_label(&mut pass)?;
        a.mov(eax, blocks as i32)?;
        a.call(rax)?;
        a.dec(r9d)?;
        a.jne(pass)?;
        a.mov(ecx, 20)?;
        a.call(spin)?;
        a.mov(edi, blocks as i32)?;
        a.mov(ecx, chunk.len() as i32)?;
        a.rep().stosb()?;
        a.mov(ecx, 20_000)?;
        a.call(spin)?;
        a.hlt()?;
        a.set_label(&mut spin)?;
        a.dec(ecx)?;
        a.jne(spin)?;
        a.ret()
    });
    cpu.mem.write(CODE, &code);
    let options = Options { baseline: Some(1000), baseline_bytes: 2 << 20, ..Options::default() };
    let engine = Engine::new(&cpu.model, options).unwrap();
    let tier = Translating::new(&engine, cpu.events.clone()).unwrap();
    let (counters, hot) = (tier.counters(), tier.hot_after());
    cpu.set_tier(Box::new(tier), hot);
    assert_eq!(cpu.run(), Exit::Halt);
    assert_eq!(cpu.state.gpr[gpr::R8], 3 * number as u64);
    assert!(counters.block_bytes.load(Ordering::Relaxed) > 1 << 20, "nothing was given up");
    let told = cpu.left[LEFT_HOT as usize];
    assert!((1..=25).contains(&told), "the tier was told {told} times in 20,000 rounds");
}
