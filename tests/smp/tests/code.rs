//! Cross-modifying code: what one vCPU writes is what another executes, by the protocol of the SDM (volume 3A, 9.1.3),
//! through any mapping, on pages that hold code already and on pages that do not yet.
use iced_x86::code_asm::*;
use mynah_smp::{CODE, CODE_STEP, DATA, ENGINES, Rig, VARS, WINDOW, asm};

/// Offsets in VARS: the number of the code that is ready, the number that was executed, and what went wrong.
const READY: i32 = 0;
const EXECUTED: i32 = 64;
const WRONG: i32 = 128;

/// `mov eax, <number>; ret` with the number to be written.
const FUNCTION: [u8; 6] = [0xb8, 0, 0, 0, 0, 0xc3];

/// vCPU 1 writes `mov eax, n; ret` through `write_at` for n from 1 to `rounds`, each time when the last has been
/// executed; vCPU 0 executes it at `call_at`, `calls` times each. Each round both addresses move on by `step`.
fn cross_modify(write_at: u64, call_at: u64, rounds: u64, calls: u64, step: u64, prepare: impl Fn(&Rig)) {
    for engine in ENGINES {
        let rig = Rig::new();
        prepare(&rig);
        rig.memory.write(call_phys(write_at), &FUNCTION);
        rig.program(0, |a| {
            let mut l: [CodeLabel; 5] = std::array::from_fn(|_| a.create_label());
            asm!(a; mov rsi, VARS; mov rbp, call_at; mov r12, 1u64);
            a.set_label(&mut l[0]).unwrap();
            // Wait for the flag, serialise, execute.
            asm!(a; cmp qword_ptr(rsi + READY), r12; je l[1]; pause; jmp l[0]);
            a.set_label(&mut l[1]).unwrap();
            asm!(a; xor eax, eax; cpuid; mov r13, calls);
            a.set_label(&mut l[2]).unwrap();
            asm!(a; call rbp; cmp eax, r12d; je l[3]; inc qword_ptr(rsi + WRONG));
            a.set_label(&mut l[3]).unwrap();
            asm!(a; dec r13; jne l[2]; mov qword_ptr(rsi + EXECUTED), r12; add rbp, step as i32;
                inc r12; cmp r12, rounds as i32; jbe l[0]; hlt);
        });
        rig.program(1, |a| {
            let mut l: [CodeLabel; 3] = std::array::from_fn(|_| a.create_label());
            asm!(a; mov rsi, VARS; mov rbx, write_at; mov r12, 1u64);
            a.set_label(&mut l[0]).unwrap();
            if step == 0 {
                asm!(a; mov dword_ptr(rbx + 1), r12d);
            } else {
                asm!(a; mov byte_ptr(rbx), 0xb8u32 as i32; mov dword_ptr(rbx + 1), r12d;
                    mov byte_ptr(rbx + 5), 0xc3u32 as i32);
            }
            asm!(a; mov qword_ptr(rsi + READY), r12);
            a.set_label(&mut l[1]).unwrap();
            asm!(a; cmp qword_ptr(rsi + EXECUTED), r12; je l[2]; pause; jmp l[1]);
            a.set_label(&mut l[2]).unwrap();
            asm!(a; add rbx, step as i32; inc r12; cmp r12, rounds as i32; jbe l[0]; hlt);
        });
        rig.run(engine, 2, 2);
        let get = |at: i32| rig.memory.read_u64(VARS + at as u64);
        assert_eq!((get(EXECUTED), get(WRONG)), (rounds, 0), "{engine:?}: executed, wrong");
    }
}

/// Where an address of the window leads in these tests.
fn call_phys(lin: u64) -> u64 {
    if lin >= WINDOW { DATA + 0x20_0000 + (lin - WINDOW) } else { lin }
}

fn map_window(rig: &Rig) {
    for n in 0..512 {
        rig.map(n, DATA + 0x20_0000 + n * 0x1000);
    }
}

#[test]
fn a_function_that_another_vcpu_rewrites_is_always_the_new_one() {
    cross_modify(DATA, DATA, 5_000, 1, 0, |_| {});
}

#[test]
fn a_function_that_has_become_hot_is_rewritten_too() {
    cross_modify(DATA, DATA, 1_000, 60, 0, |_| {});
}

#[test]
fn the_page_of_the_loop_that_calls_it_may_be_the_same() {
    let at = CODE + 0xf00;
    cross_modify(at, at, 3_000, 20, 0, |_| {});
}

#[test]
fn the_page_of_the_loop_that_writes_it_may_be_the_same() {
    let at = CODE + CODE_STEP + 0xf00;
    cross_modify(at, at, 3_000, 20, 0, |_| {});
}

#[test]
fn it_may_be_written_through_another_mapping() {
    cross_modify(WINDOW, call_phys(WINDOW), 3_000, 20, 0, map_window);
    cross_modify(call_phys(WINDOW), WINDOW, 3_000, 20, 0, map_window);
}

#[test]
fn a_function_across_pages_is_rewritten_in_both_of_them() {
    for back in 1..5 {
        let at = DATA + 0x1000 - back;
        cross_modify(at, at, 500, 20, 0, |_| {});
    }
}

#[test]
fn code_is_written_to_one_page_after_another_while_these_are_executed() {
    // Each page is written by the one and then held by the other for the first time, many a time.
    cross_modify(WINDOW, WINDOW, 256, 3, 0x1000 + 16, map_window);
    cross_modify(DATA, DATA, 4_000, 2, 0x340, |_| {});
}

#[test]
fn two_that_write_and_execute_the_same_pages_hold_each_other_up_for_no_longer_than_needed() {
    // Both write a function of their own on each page, call it, and go on: each is asked to give up its writes by the
    // other, over and over.
    const PAGES: u64 = 2_000;
    for engine in ENGINES {
        let rig = Rig::new();
        for n in 0..2u64 {
            rig.program(n as usize, |a| {
                let (mut again, mut good) = (a.create_label(), a.create_label());
                asm!(a; mov rsi, VARS + 64 * n; mov rbx, DATA + 0x800 * n; mov r12, PAGES);
                a.set_label(&mut again).unwrap();
                asm!(a; mov byte_ptr(rbx), 0xb8u32 as i32; mov dword_ptr(rbx + 1), r12d;
                    mov byte_ptr(rbx + 5), 0xc3u32 as i32; call rbx; cmp eax, r12d; je good;
                    inc qword_ptr(rsi));
                a.set_label(&mut good).unwrap();
                asm!(a; add rbx, 0x1000; dec r12; jne again; hlt);
            });
        }
        rig.run(engine, 2, 2);
        assert_eq!((rig.memory.read_u64(VARS), rig.memory.read_u64(VARS + 64)), (0, 0), "{engine:?}");
    }
}

#[test]
fn what_a_device_writes_is_executed() {
    // The test's own thread is the device.
    for engine in ENGINES {
        const ROUNDS: u64 = 500;
        let rig = Rig::new();
        rig.memory.write(DATA, &FUNCTION);
        rig.program(0, |a| {
            let mut l: [CodeLabel; 4] = std::array::from_fn(|_| a.create_label());
            asm!(a; mov rsi, VARS; mov rbp, DATA; mov r12, 1u64);
            a.set_label(&mut l[0]).unwrap();
            asm!(a; cmp qword_ptr(rsi + READY), r12; je l[1]; pause; jmp l[0]);
            a.set_label(&mut l[1]).unwrap();
            asm!(a; xor eax, eax; cpuid; mov r13, 20u64);
            a.set_label(&mut l[2]).unwrap();
            asm!(a; call rbp; cmp eax, r12d; je l[3]; inc qword_ptr(rsi + WRONG));
            a.set_label(&mut l[3]).unwrap();
            asm!(a; dec r13; jne l[2]; mov qword_ptr(rsi + EXECUTED), r12; inc r12;
                cmp r12, ROUNDS as i32; jbe l[0]; hlt);
        });
        let memory = rig.memory.clone();
        let device = std::thread::spawn(move || {
            for n in 1..=ROUNDS {
                memory.write(DATA + 1, &(n as u32).to_le_bytes());
                memory.write_u64(VARS + READY as u64, n);
                while memory.read_u64(VARS + EXECUTED as u64) != n {
                    std::thread::yield_now();
                }
            }
        });
        rig.run(engine, 1, 1);
        device.join().unwrap();
        assert_eq!(rig.memory.read_u64(VARS + WRONG as u64), 0, "{engine:?}");
    }
}
