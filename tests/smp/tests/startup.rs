//! INIT, start-up IPIs and interrupts from one vCPU to others: every kind of destination, through x2APIC MSRs and the
//! xAPIC's page.
//!
//! The others start in real mode, switch their APICs to x2APIC mode and sleep; interrupt handlers of real mode count
//! what comes.
use iced_x86::code_asm::*;
use mynah_smp::{ENGINES, Engine, Rig, VARS, WINDOW, asm, assemble_bits};

const VCPUS: usize = 4;
/// Pages of the others' start-up code, as start-up IPIs name them.
const FIRST: u64 = 0x20;
const SECOND: u64 = 0x21;
/// Their interrupt handlers.
const HANDLERS: u64 = 0x2_2000;
const VECTOR: u32 = 0x40;

/// Counters in VARS.
const STARTED: i32 = 0;
const INTERRUPTS: i32 = 4;
const NMIS: i32 = 8;
const RESTARTED: i32 = 12;
const PENDING: i32 = 16;

/// Interrupt command register: delivery modes (with "assert"), logical destinations, shorthands.
const FIXED: u32 = 0x4000;
const LOWEST: u32 = 0x4100;
const NMI: u32 = 0x4400;
const INIT: u32 = 0x4500;
const START_UP: u32 = 0x4600;
const LOGICAL: u32 = 1 << 11;
const ALL: u32 = 2 << 18;
const OTHERS: u32 = 3 << 18;

/// What all that are started do first: data segment, own stack, x2APIC mode.
fn come_up(a: &mut CodeAssembler) {
    asm!(a; cli; mov ax, 0x9000; mov ds, ax;
        mov ecx, 0x1b; rdmsr; or eax, 0xc00; wrmsr;
        mov ecx, 0x80f; mov eax, 0x1ff; xor edx, edx; wrmsr;
        mov ecx, 0x802; rdmsr; shl ax, 9; xor dx, dx; mov ss, dx; mov sp, 0x8000; sub sp, ax);
}

fn sleep(a: &mut CodeAssembler) {
    let mut again = a.create_label();
    asm!(a; sti);
    a.set_label(&mut again).unwrap();
    asm!(a; hlt; jmp again);
}

fn rig() -> Rig {
    let rig = Rig::new();
    let put = |at: u64, f: &dyn Fn(&mut CodeAssembler)| {
        rig.memory.write(at, &assemble_bits(16, 0, |a| f(a)));
    };
    put(FIRST << 12, &|a| {
        come_up(a);
        asm!(a; lock);
        asm!(a; inc dword_ptr(STARTED));
        sleep(a);
    });
    put(SECOND << 12, &|a| {
        come_up(a);
        asm!(a; lock);
        asm!(a; inc dword_ptr(RESTARTED));
        sleep(a);
    });
    put(HANDLERS, &|a| {
        asm!(a; lock);
        asm!(a; inc dword_ptr(INTERRUPTS); mov ecx, 0x80b; xor eax, eax; xor edx, edx; wrmsr; iret);
    });
    put(HANDLERS + 0x100, &|a| {
        asm!(a; lock);
        asm!(a; inc dword_ptr(NMIS); iret);
    });
    // Real-mode vectors: offset, segment.
    rig.memory.write_u32(u64::from(VECTOR) * 4, (HANDLERS as u32 >> 4) << 16);
    rig.memory.write_u32(2 * 4, (HANDLERS as u32 >> 4) << 16 | 0x100);
    // The local APIC's page.
    rig.map(5, 0xfee0_0000);
    rig
}

fn send(a: &mut CodeAssembler, x2apic: bool, destination: u32, command: u32) {
    if x2apic {
        asm!(a; mov ecx, 0x830; mov eax, command; mov edx, destination; wrmsr);
    } else {
        asm!(a; mov rbx, WINDOW + 0x5000; mov dword_ptr(rbx + 0x310), (destination << 24) as i32;
            mov dword_ptr(rbx + 0x300), command as i32);
    }
}

/// Waits until a counter has come to `n`.
fn wait(a: &mut CodeAssembler, counter: i32, n: u32) {
    let mut again = a.create_label();
    asm!(a; mov rsi, VARS);
    a.set_label(&mut again).unwrap();
    asm!(a; pause; cmp dword_ptr(rsi + counter), n as i32; jne again);
}

fn all_kinds(engine: Engine, x2apic: bool) {
    let rig = rig();
    let others = VCPUS as u32 - 1;
    rig.program(0, |a| {
        if x2apic {
            asm!(a; mov ecx, 0x1b; rdmsr; or eax, 0xc00; wrmsr; mov ecx, 0x80f; mov eax, 0x1ff; xor edx, edx;
                wrmsr);
        } else {
            asm!(a; mov rbx, WINDOW + 0x5000; mov dword_ptr(rbx + 0xf0), 0x1ff);
        }
        let mut seen = 0;
        send(a, x2apic, 0, INIT | OTHERS);
        send(a, x2apic, 0, START_UP | OTHERS | FIRST as u32);
        // A second one changes nothing.
        send(a, x2apic, 0, START_UP | OTHERS | SECOND as u32);
        let mut again = a.create_label();
        asm!(a; mov rsi, VARS);
        a.set_label(&mut again).unwrap();
        // Whoever has not looked at the first one when the second comes takes that.
        asm!(a; pause; mov eax, dword_ptr(rsi + STARTED); add eax, dword_ptr(rsi + RESTARTED); cmp eax, others as i32;
            jne again; mov dword_ptr(rsi + RESTARTED), 0);
        for (destination, command, count) in [
            (0, FIXED | OTHERS, others),
            (1, FIXED, 1),
            (3, FIXED, 1),
            (0, FIXED | ALL, others),
            (if x2apic { u32::MAX } else { 0xff }, FIXED, others),
        ] {
            send(a, x2apic, destination, command | VECTOR);
            seen += count;
            wait(a, INTERRUPTS, seen);
        }
        if x2apic {
            // The logical ids of cluster 0 are one bit for each.
            send(a, x2apic, 0b1110, FIXED | LOGICAL | VECTOR);
            seen += 3;
            wait(a, INTERRUPTS, seen);
            for _ in 0..10 {
                send(a, x2apic, 0b1110, LOWEST | LOGICAL | VECTOR);
                seen += 1;
                wait(a, INTERRUPTS, seen);
            }
        }
        send(a, x2apic, 0, NMI | OTHERS);
        wait(a, NMIS, others);
        send(a, x2apic, 2, NMI);
        wait(a, NMIS, others + 1);
        // One alone starts afresh, elsewhere.
        send(a, x2apic, 2, INIT);
        send(a, x2apic, 2, START_UP | SECOND as u32);
        wait(a, RESTARTED, 1);
        send(a, x2apic, 2, FIXED | VECTOR);
        seen += 1;
        wait(a, INTERRUPTS, seen);
        // The broadcasts have reached the sender too, whose interrupts are off.
        if x2apic {
            asm!(a; mov ecx, 0x822; rdmsr);
        } else {
            asm!(a; mov rbx, WINDOW + 0x5000; mov eax, dword_ptr(rbx + 0x220));
        }
        asm!(a; mov rsi, VARS; mov dword_ptr(rsi + PENDING), eax; hlt);
    });
    rig.run(engine, 1, VCPUS);
    let get = |at: i32| rig.memory.read_u32(VARS + at as u64);
    assert_eq!((get(NMIS), get(RESTARTED), get(PENDING)), (others + 1, 1, 1), "{engine:?}, x2APIC: {x2apic}");
}

#[test]
fn ipis_of_all_kinds_reach_whom_they_name() {
    for engine in ENGINES {
        for x2apic in [true, false] {
            for _ in 0..20 {
                all_kinds(engine, x2apic);
            }
        }
    }
}

#[test]
fn an_interrupt_reaches_a_vcpu_that_runs_as_one_that_sleeps() {
    // Two vCPUs interrupt a third, which is now asleep, now in a loop, many times; none is lost as each waits for its
    // own.
    const ROUNDS: u32 = 5_000;
    for engine in ENGINES {
        let rig = rig();
        rig.program(0, |a| {
            asm!(a; mov ecx, 0x1b; rdmsr; or eax, 0xc00; wrmsr; mov ecx, 0x80f; mov eax, 0x1ff; xor edx, edx;
                wrmsr);
            send(a, true, 0, INIT | OTHERS);
            send(a, true, 0, START_UP | OTHERS | FIRST as u32);
            wait(a, STARTED, 1);
            let (mut again, mut arrived) = (a.create_label(), a.create_label());
            asm!(a; xor r12d, r12d);
            a.set_label(&mut again).unwrap();
            send(a, true, 1, FIXED | VECTOR);
            asm!(a; inc r12d; mov rsi, VARS);
            a.set_label(&mut arrived).unwrap();
            asm!(a; pause; cmp dword_ptr(rsi + INTERRUPTS), r12d; jne arrived; cmp r12d, ROUNDS as i32; jne again;
                hlt);
        });
        rig.run(engine, 1, 2);
        assert_eq!(rig.memory.read_u32(VARS + INTERRUPTS as u64), ROUNDS);
    }
}
