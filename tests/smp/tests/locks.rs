//! Locked instructions count exactly, wherever the operand lies.
use iced_x86::code_asm::*;
use mynah_smp::{DATA, ENGINES, Rig, VARS, WINDOW, asm, barrier};

const VCPUS: usize = 4;

/// Each vCPU does `body` `rounds` times, with RBX at `at`; returns the rig.
fn contend(
    at: u64,
    rounds: u64,
    mut check: impl FnMut(&Rig, &str),
    body: impl Fn(&mut CodeAssembler, usize),
) {
    for engine in ENGINES {
        let rig = Rig::new();
        // Neighbours in the window that are none in RAM.
        rig.map(0, DATA + 0x10_0000);
        rig.map(1, DATA + 0x5000);
        for n in 0..VCPUS {
            rig.program(n, |a| {
                let mut again = a.create_label();
                asm!(a; mov rbx, at; xor r15d, r15d; mov r12, rounds; mov rsi, VARS);
                barrier(a, VCPUS);
                a.set_label(&mut again).unwrap();
                a.zero_bytes().unwrap();
                body(a, n);
                asm!(a; dec r12; jne again; hlt);
            });
        }
        rig.run(engine, VCPUS, VCPUS);
        check(&rig, &format!("{engine:?}"));
    }
}

/// The 8 bytes at an address, through the window's mapping.
fn at(rig: &Rig, lin: u64) -> u64 {
    let byte = |lin: u64| {
        let phys = match lin.checked_sub(WINDOW) {
            None => lin,
            Some(o) if o < 0x1000 => DATA + 0x10_0000 + o,
            Some(o) => DATA + 0x5000 + (o - 0x1000),
        };
        u64::from(rig.memory.read_u8(phys))
    };
    (0..8).map(|n| byte(lin + n) << (8 * n)).sum()
}

/// Where operands lie: aligned, unaligned in a line, across lines, across pages that are not neighbours.
fn places(bytes: u64) -> [(u64, u64); 4] {
    [
        (DATA + 0x100, 100_000),
        (DATA + 0x103, 50_000),
        (DATA + 0x140 - bytes / 2, 20_000),
        (WINDOW + 0x1000 - bytes / 2, 3_000),
    ]
}

#[test]
fn inc_counts_exactly_wherever_the_operand_lies() {
    for (place, rounds) in places(4) {
        let check = |rig: &Rig, engine: &str| {
            assert_eq!(at(rig, place) & 0xffff_ffff, VCPUS as u64 * rounds, "{engine}: at {place:#x}");
        };
        contend(place, rounds, check, |a, _| {
            asm!(a; lock);
            asm!(a; inc dword_ptr(rbx));
        });
    }
}

#[test]
fn xadd_gives_each_its_own_number() {
    for (place, rounds) in places(8) {
        let total = VCPUS as u64 * rounds;
        let check = |rig: &Rig, engine: &str| {
            assert_eq!(at(rig, place), total, "{engine}: at {place:#x}");
            // The sum of all the numbers drawn.
            assert_eq!(rig.memory.read_u64(VARS), total * (total - 1) / 2, "{engine}: at {place:#x}");
        };
        contend(place, rounds, check, |a, _| {
            asm!(a; mov eax, 1; lock);
            asm!(a; xadd qword_ptr(rbx), rax; lock);
            asm!(a; add qword_ptr(rsi), rax);
        });
    }
}

#[test]
fn cmpxchg_loops_count_exactly() {
    for (place, rounds) in places(2) {
        let check = |rig: &Rig, engine: &str| {
            let want = (VCPUS as u64 * rounds) & 0xffff;
            assert_eq!(at(rig, place) & 0xffff, want, "{engine}: at {place:#x}");
        };
        contend(place, rounds, check, |a, _| {
            let mut retry = a.create_label();
            asm!(a; mov ax, word_ptr(rbx));
            a.set_label(&mut retry).unwrap();
            asm!(a; lea ecx, dword_ptr(rax + 1); lock);
            asm!(a; cmpxchg word_ptr(rbx), cx; jne retry);
        });
    }
}

#[test]
fn cmpxchg8b_and_16b_loops_count_exactly() {
    for (place, rounds) in places(8) {
        let check = |rig: &Rig, engine: &str| {
            assert_eq!(at(rig, place), VCPUS as u64 * rounds, "{engine}: at {place:#x}");
        };
        contend(place, rounds, check, |a, _| {
            let mut retry = a.create_label();
            asm!(a; mov r8, rbx; mov eax, dword_ptr(r8); mov edx, dword_ptr(r8 + 4));
            a.set_label(&mut retry).unwrap();
            asm!(a; mov ebx, eax; mov ecx, edx; add ebx, 1; adc ecx, 0; lock);
            asm!(a; cmpxchg8b qword_ptr(r8); jne retry; mov rbx, r8);
        });
    }
    let check = |rig: &Rig, engine: &str| {
        let total = VCPUS as u64 * 50_000;
        assert_eq!((at(rig, DATA + 0x20), at(rig, DATA + 0x28)), (total, !total + 1), "{engine}");
    };
    contend(DATA + 0x20, 50_000, check, |a, _| {
        // The low half counts up, the high half down.
        let mut retry = a.create_label();
        asm!(a; mov r8, rbx; mov rax, qword_ptr(r8); mov rdx, qword_ptr(r8 + 8));
        a.set_label(&mut retry).unwrap();
        asm!(a; lea rbx, qword_ptr(rax + 1); lea rcx, qword_ptr(rdx - 1); lock);
        asm!(a; cmpxchg16b xmmword_ptr(r8); jne retry; mov rbx, r8);
    });
}

/// A spin lock's ways in and out around a plain increment.
fn spin_lock(
    rounds: u64,
    place: u64,
    enter: impl Fn(&mut CodeAssembler),
    leave: impl Fn(&mut CodeAssembler),
) {
    let check = |rig: &Rig, engine: &str| {
        assert_eq!(rig.memory.read_u64(VARS), VCPUS as u64 * rounds, "{engine}: lock at {place:#x}");
    };
    contend(place, rounds, check, |a, _| {
        enter(a);
        asm!(a; inc qword_ptr(rsi));
        leave(a);
    });
}

#[test]
fn a_spin_lock_of_bts_and_btr_excludes() {
    for (place, rounds) in places(4) {
        spin_lock(
            rounds / 4,
            place,
            |a| {
                let (mut again, mut wait, mut on) = (a.create_label(), a.create_label(), a.create_label());
                a.set_label(&mut again).unwrap();
                asm!(a; lock);
                asm!(a; bts dword_ptr(rbx), 31; jnc on);
                a.set_label(&mut wait).unwrap();
                asm!(a; pause; test dword_ptr(rbx), 0x8000_0000u32; jne wait; jmp again);
                a.set_label(&mut on).unwrap();
                a.zero_bytes().unwrap();
            },
            |a| {
                asm!(a; lock);
                asm!(a; btr dword_ptr(rbx), 31);
            },
        );
    }
}

#[test]
fn a_spin_lock_of_xchg_without_prefix_excludes() {
    for (place, rounds) in places(8) {
        spin_lock(
            rounds / 4,
            place,
            |a| {
                let (mut again, mut on) = (a.create_label(), a.create_label());
                a.set_label(&mut again).unwrap();
                asm!(a; mov eax, 1; xchg qword_ptr(rbx), rax; test rax, rax; je on; pause; jmp again);
                a.set_label(&mut on).unwrap();
                a.zero_bytes().unwrap();
            },
            |a| asm!(a; xor eax, eax; xchg qword_ptr(rbx), rax),
        );
    }
}

#[test]
fn a_spin_lock_that_is_freed_by_a_plain_store_excludes() {
    spin_lock(
        25_000,
        DATA + 0x100,
        |a| {
            let (mut again, mut wait, mut on) = (a.create_label(), a.create_label(), a.create_label());
            a.set_label(&mut again).unwrap();
            asm!(a; xor eax, eax; mov ecx, 1; lock);
            asm!(a; cmpxchg dword_ptr(rbx), ecx; je on);
            a.set_label(&mut wait).unwrap();
            asm!(a; pause; cmp dword_ptr(rbx), 0; jne wait; jmp again);
            a.set_label(&mut on).unwrap();
            a.zero_bytes().unwrap();
        },
        |a| asm!(a; mov dword_ptr(rbx), 0),
    );
}

#[test]
fn locked_accesses_across_pages_and_within_one_of_them_exclude_each_other() {
    const ROUNDS: u64 = 3_000;
    let place = WINDOW + 0xffe;
    let check = |rig: &Rig, engine: &str| {
        // Two count in the low half, whose sum has no carry, two in the high half alone.
        let v = at(rig, place) & 0xffff_ffff;
        assert_eq!((v & 0xffff, v >> 16), (2 * ROUNDS, 2 * ROUNDS), "{engine}");
    };
    contend(place, ROUNDS, check, |a, n| {
        asm!(a; lock);
        if n < 2 {
            asm!(a; inc dword_ptr(rbx));
        } else {
            asm!(a; inc word_ptr(rbx + 2));
        }
    });
}

#[test]
fn locked_accesses_to_pages_with_code_count_exactly() {
    const ROUNDS: u64 = 20_000;
    let page = DATA + 0x3000;
    let check = |rig: &Rig, engine: &str| {
        assert_eq!(rig.memory.read_u64(page + 0x800), VCPUS as u64 * ROUNDS, "{engine}");
        assert_eq!(rig.memory.read_u64(page + 0x810), VCPUS as u64 * ROUNDS, "{engine}");
    };
    contend(page, ROUNDS, check, |a, _| {
        // RET stands at the page's start: all vCPUs hold code of it.
        asm!(a; mov byte_ptr(rbx + 0x7ff), 0xc3u32 as i32; lea rax, qword_ptr(rbx + 0x7ff); call rax; lock);
        asm!(a; inc qword_ptr(rbx + 0x800); mov ecx, 1; lock);
        asm!(a; xadd qword_ptr(rbx + 0x810), rcx);
    });
}
