//! x86's memory order in regions for arm64, as their code has it: which instructions acquire, which release, and where
//! barriers stand (docs/hosts.md says why that is enough).
//!
//! It reads the host's instructions, so it is for arm64 hosts, or such as qemu-user makes of others.
mod common;

#[cfg(not(target_arch = "aarch64"))]
#[test]
fn code_for_arm64_is_read_on_arm64_alone() {
    eprintln!(
        "SKIPPED: this host keeps x86's order by itself ('.ci/hosts run' has these tests run by qemu-user)"
    );
}

#[cfg(target_arch = "aarch64")]
mod arm64 {
    use crate::common::*;
    use iced_x86::code_asm::*;
    use iced_x86::{BlockEncoderOptions, IcedError};
    use mynah_cpu::Exit;
    use mynah_cpu::state::gpr;
    use mynah_jit::tier::{Engine, Inside, Options, Translating};
    use std::collections::BTreeMap;
    use std::sync::{Arc, Mutex};

    /// One instruction of a guest.
    type Body = fn(&mut CodeAssembler) -> Result<(), IcedError>;

    /// `DMB ISH` (Arm's Architecture Reference Manual, C6.2).
    const DMB_ISH: u32 = 0xd503_3bbf;

    /// What a word of code does to memory.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    enum Does {
        /// LDAR of so many bytes.
        Acquire(u32),
        /// STLR.
        Release(u32),
        /// CASAL, or STLXR of a loop.
        Exchange(u32),
        Barrier,
        /// LDR, LDUR and their like, of a general register.
        Load(u32),
        Store(u32),
        /// The same of a vector.
        LoadVector,
        StoreVector,
        Nothing,
    }

    fn does(word: u32) -> Does {
        let bytes = 1 << (word >> 30);
        // Load and store of one register, by all forms of address (C4.1.66): size, 111, V, 0x, opc.
        let single = word >> 27 & 7 == 7 && word >> 25 & 1 == 0;
        let (vector, opc) = (word >> 26 & 1 == 1, word >> 22 & 3);
        match word {
            DMB_ISH => Does::Barrier,
            w if w & 0x3fff_fc00 == 0x08df_fc00 => Does::Acquire(bytes),
            w if w & 0x3fff_fc00 == 0x089f_fc00 => Does::Release(bytes),
            w if w & 0x3fe0_fc00 == 0x08e0_fc00 || w & 0x3fe0_fc00 == 0x0800_fc00 => Does::Exchange(bytes),
            _ if single && vector && opc & 1 == 1 => Does::LoadVector,
            _ if single && vector => Does::StoreVector,
            _ if single && opc == 0 => Does::Store(bytes),
            _ if single && opc != 0 => Does::Load(bytes),
            _ => Does::Nothing,
        }
    }

    /// Has a loop with this in it be compiled; what the code made of it does, piece by piece.
    fn code_of(body: Body) -> Vec<Vec<Does>> {
        let mut a = CodeAssembler::new(64).unwrap();
        a.mov(rsi, DATA).unwrap();
        a.mov(ecx, 40).unwrap();
        let mut top = a.create_label();
        a.set_label(&mut top).unwrap();
        let before = a.instructions().len();
        body(&mut a).unwrap();
        a.dec(ecx).unwrap();
        a.jne(top).unwrap();
        a.hlt().unwrap();
        let result =
            a.assemble_options(CODE, BlockEncoderOptions::RETURN_NEW_INSTRUCTION_OFFSETS).unwrap().inner;
        let looked_at = CODE + u64::from(result.new_instruction_offsets[before]);
        let code = result.code_buffer;
        let mut cpu = machine(64);
        cpu.mem.write(CODE, &code);
        let text = Arc::new(Mutex::new(String::new()));
        let to = text.clone();
        let asm = Some(Arc::new(move |_: u64, t: &str| to.lock().unwrap().push_str(t)) as _);
        let inside = Inside { asm, ..Inside::default() };
        let engine =
            Engine::new(&cpu.model, Options { inside, at_once: true, ..Options::default() }).unwrap();
        cpu.set_tier(Box::new(Translating::new(&engine, cpu.events.clone()).unwrap()), 3);
        cpu.state.gpr[gpr::RIP] = CODE;
        assert_eq!(cpu.run(), Exit::Halt);
        let text = text.lock().unwrap();
        let mut pieces: BTreeMap<usize, Vec<Does>> = BTreeMap::new();
        let (mut piece, mut ours) = (0, false);
        for line in text.lines() {
            if line.starts_with("OUT:") || line.trim_start().starts_with("--") {
                ours = line.contains(&format!("-- guest {looked_at:#x}:"));
                piece += 1;
            } else if let Some((_, word)) = line.split_once(".word 0x")
                && ours
            {
                pieces.entry(piece).or_default().push(does(u32::from_str_radix(word, 16).unwrap()));
            }
        }
        assert!(!pieces.is_empty(), "nothing was made of it:\n{text}");
        pieces.into_values().collect()
    }

    fn count(code: &[Vec<Does>], what: Does) -> usize {
        code.iter().flatten().filter(|d| **d == what).count()
    }

    /// How often `first` stands somewhere with `second` as the next that accesses memory or keeps order.
    fn in_turn(code: &[Vec<Does>], first: Does, second: Does) -> usize {
        let all: Vec<_> = code.iter().flatten().filter(|d| **d != Does::Nothing).collect();
        all.windows(2).filter(|w| *w[0] == first && *w[1] == second).count()
    }

    #[test]
    fn what_does_not_access_memory_keeps_no_order() {
        let code = code_of(|a| a.add(eax, ebx));
        assert_eq!(count(&code, Does::Barrier), 0, "{code:?}");
    }

    #[test]
    fn an_aligned_load_acquires_and_another_has_a_barrier_behind_it() {
        // Of four bytes there is another in the loop, which looks whether something is pending.
        let bodies: [(u32, Body); 3] =
            [(2, |a| a.mov(ax, word_ptr(rsi))), (8, |a| a.mov(rax, qword_ptr(rsi))), (8, |a| a.pop(rax))];
        for (bytes, body) in bodies {
            let code = code_of(body);
            assert_eq!(count(&code, Does::Acquire(bytes)), 1, "{bytes} bytes: {code:?}");
            assert_eq!(count(&code, Does::Barrier), 1, "{bytes} bytes: {code:?}");
            assert_eq!(in_turn(&code, Does::Load(bytes), Does::Barrier), 1, "{bytes} bytes: {code:?}");
        }
        // A byte is aligned.
        let code = code_of(|a| a.mov(al, byte_ptr(rsi)));
        assert_eq!((count(&code, Does::Acquire(1)), count(&code, Does::Barrier)), (1, 0), "{code:?}");
    }

    #[test]
    fn an_aligned_store_releases_and_another_has_a_barrier_before_it() {
        let bodies: [(u32, Body); 4] = [
            (2, |a| a.mov(word_ptr(rsi), ax)),
            (4, |a| a.mov(dword_ptr(rsi), eax)),
            (8, |a| a.mov(qword_ptr(rsi), rax)),
            (8, |a| a.push(rax)),
        ];
        for (bytes, body) in bodies {
            let code = code_of(body);
            assert_eq!(count(&code, Does::Release(bytes)), 1, "{bytes} bytes: {code:?}");
            assert_eq!(count(&code, Does::Barrier), 1, "{bytes} bytes: {code:?}");
            assert_eq!(in_turn(&code, Does::Barrier, Does::Store(bytes)), 1, "{bytes} bytes: {code:?}");
        }
        let code = code_of(|a| a.mov(byte_ptr(rsi), al));
        assert_eq!((count(&code, Does::Release(1)), count(&code, Does::Barrier)), (1, 0), "{code:?}");
    }

    #[test]
    fn a_read_and_a_write_of_one_instruction_have_both() {
        let code = code_of(|a| a.add(qword_ptr(rsi), rax));
        assert_eq!((count(&code, Does::Acquire(8)), count(&code, Does::Release(8))), (1, 1), "{code:?}");
        assert_eq!(count(&code, Does::Barrier), 2, "{code:?}");
    }

    #[test]
    fn vectors_have_barriers_however_they_are_aligned() {
        // The registers stay in registers, so all that is loaded and stored is the guest's.
        let code = code_of(|a| a.movdqu(xmm0, xmmword_ptr(rsi)));
        let loads = count(&code, Does::LoadVector);
        assert!(loads > 0, "{code:?}");
        assert_eq!(in_turn(&code, Does::LoadVector, Does::Barrier), loads, "{code:?}");
        let code = code_of(|a| a.movdqu(xmmword_ptr(rsi), xmm0));
        let stores = count(&code, Does::StoreVector);
        assert!(stores > 0, "{code:?}");
        assert_eq!(in_turn(&code, Does::Barrier, Does::StoreVector), stores, "{code:?}");
        // A part of one is a whole number to memory.
        let code = code_of(|a| a.movss(dword_ptr(rsi), xmm0));
        assert_eq!(count(&code, Does::Release(4)), 1, "{code:?}");
        let code = code_of(|a| a.movsd_2(xmm0, qword_ptr(rsi)));
        assert_eq!(count(&code, Does::Acquire(8)), 1, "{code:?}");
    }

    /// A store before it is seen before a load behind it is made: a barrier on each side.
    #[test]
    fn a_locked_instruction_stands_between_full_barriers() {
        let bodies: [Body; 4] = [
            |a| a.lock().add(dword_ptr(rsi), eax),
            |a| a.xchg(dword_ptr(rsi), eax),
            |a| a.lock().xadd(dword_ptr(rsi), eax),
            |a| a.lock().cmpxchg(dword_ptr(rsi), ebx),
        ];
        for (n, body) in bodies.into_iter().enumerate() {
            let all: Vec<Does> = code_of(body).concat();
            let at = |what: &dyn Fn(&Does) -> bool| -> Vec<usize> {
                all.iter().enumerate().filter(|(_, d)| what(d)).map(|(n, _)| n).collect()
            };
            let exchanges = at(&|d| *d == Does::Exchange(4));
            let barriers = at(&|d| *d == Does::Barrier);
            assert!(!exchanges.is_empty(), "number {n}: {all:?}");
            for exchange in exchanges {
                assert!(barriers.iter().any(|b| *b < exchange), "number {n}, before it: {all:?}");
                assert!(barriers.iter().any(|b| *b > exchange), "number {n}, behind it: {all:?}");
            }
        }
    }
}
