//! Code that changes while it is hot, in every way that a processor notices: programs made to catch a translator out.
//!
//! SDM volume 3A, 8.1.3 (self- and cross-modifying code), 4.10.4 (invalidation), 2.5 (control registers); volume 3B,
//! 17.2, 17.3 (debug). Each hot piece runs often enough to be compiled before it is changed; what it computes tells
//! whether an old version was executed.
use iced_x86::code_asm::*;
use mynah_machinery::paging::pte::{ALL, NX, P, U, W};
use mynah_machinery::{asm, *};

/// Where the pieces of code stand.
const F: u32 = SCRATCH;

/// Writes bytes (and NOPs up to a multiple of four).
fn poke(p: &mut Prog, at: u32, bytes: &[u8]) {
    for (n, c) in bytes.chunks(4).enumerate() {
        let mut w = [0x90; 4];
        w[..c.len()].copy_from_slice(c);
        asm!(p; mov dword_ptr(at + 4 * n as u32), u32::from_le_bytes(w));
    }
}

/// Calls a piece `n` times; ESI counts.
fn call(p: &mut Prog, at: u32, n: u32) {
    let mut top = p.a.create_label();
    asm!(p; mov esi, n);
    p.place(&mut top);
    asm!(p; call u64::from(at); dec esi; jnz top);
}

/// What `f` assembles, `n` times; EBP counts.
fn rounds(p: &mut Prog, n: u32, f: impl FnOnce(&mut Prog)) {
    let mut top = p.a.create_label();
    asm!(p; mov ebp, n);
    p.place(&mut top);
    f(p);
    asm!(p; dec ebp; jnz top);
}

/// Sets the lowest page-table entry of a page and drops what the TLB holds of it.
fn map(p: &mut Prog, t: &PageTables, page: u32, value: u64) {
    let at = t.entry(1, page);
    asm!(p; mov dword_ptr(at), value as u32);
    if t.entry_size() == 8 {
        asm!(p; mov dword_ptr(at + 4), (value >> 32) as u32);
    }
    asm!(p; invlpg byte_ptr(page));
}

fn both(f: impl Fn(&mut Guest, Main)) {
    for main in [Main::Protected, Main::Long(PageTables::new(Format::Level4, true))] {
        f(&mut Guest::new(), main);
    }
}

/// INC byte [EDI], which is the immediate of an ADD EBX that follows after `between`.
fn modifying(between: &[u8]) -> (Vec<u8>, u32) {
    let mut code = vec![0xfe, 0x07];
    code.extend(between);
    let immediate = code.len() as u32 + 2;
    code.extend([0x83, 0xc3, 0, 0xc3]);
    (code, immediate)
}

#[test]
fn an_instruction_that_changes_the_next_one() {
    both(|g, main| {
        let (code, immediate) = modifying(&[]);
        g.main(main, |p| {
            poke(p, F, &code);
            asm!(p; xor ebx, ebx; mov edi, F + immediate);
            call(p, F, 100);
            p.show("sum", ebx);
        });
        g.check("sum=0x13ba");
    });
}

#[test]
fn an_instruction_that_changes_a_later_one_of_its_block() {
    both(|g, main| {
        let (code, immediate) = modifying(&[0x89, 0xc8, 0x31, 0xd2, 0x8d, 0x40, 0x01]);
        g.main(main, |p| {
            poke(p, F, &code);
            asm!(p; xor ebx, ebx; mov edi, F + immediate);
            call(p, F, 100);
            p.show("sum", ebx);
        });
        g.check("sum=0x13ba");
    });
}

#[test]
fn a_loop_that_changes_itself_now_and_then() {
    // 16 rounds with each immediate: the change comes when the loop is hot.
    both(|g, main| {
        let code = [
            0xb9, 16, 0, 0, 0, // mov ecx, 16
            0x83, 0xc3, 0, // add ebx, 0
            0xff, 0xc9, // dec ecx
            0x75, 0xf9, // jnz
            0xfe, 0x07, // inc byte [edi]
            0xc3,
        ];
        g.main(main, |p| {
            poke(p, F, &code);
            asm!(p; xor ebx, ebx; mov edi, F + 7);
            call(p, F, 100);
            p.show("sum", ebx);
        });
        g.check("sum=0x13560");
    });
}

#[test]
fn a_variable_between_code_that_becomes_code() {
    both(|g, main| {
        // add ebx, imm8; ret
        let code = |immediate| [0x83, 0xc3, immediate, 0xc3];
        let variable = F + 16;
        g.main(main, |p| {
            poke(p, F, &code(1));
            asm!(p; xor ebx, ebx);
            rounds(p, 50, |p| {
                call(p, F, 3);
                asm!(p; inc dword_ptr(variable); inc byte_ptr(variable + 2));
            });
            poke(p, variable, &code(0));
            call(p, variable, 3);
            rounds(p, 50, |p| {
                asm!(p; inc byte_ptr(variable + 2));
                call(p, variable, 2);
            });
            p.show("sum", ebx);
        });
        g.check("sum=0xa8c");
    });
}

#[test]
fn an_instruction_across_two_pages_whose_second_half_changes() {
    both(|g, main| {
        let at = F + 0xffe;
        g.main(main, |p| {
            // mov eax, imm32 with three bytes of it on the second page; add ebx, eax; ret
            asm!(p; mov word_ptr(at), 0xb8);
            poke(p, F + 0x1000, &[0, 0, 0, 0x01, 0xc3, 0xc3]);
            asm!(p; xor ebx, ebx);
            rounds(p, 200, |p| {
                call(p, at, 3);
                asm!(p; inc byte_ptr(F + 0x1000));
            });
            p.show("sum", ebx);
            asm!(p; xor ebx, ebx);
            rounds(p, 200, |p| {
                call(p, at, 3);
                // The first half.
                asm!(p; inc byte_ptr(F + 0xfff));
            });
            p.show("sum", ebx);
        });
        g.check("sum=0xe93400\nsum=0x1d5a934");
    });
}

#[test]
fn code_written_through_another_address_of_its_page() {
    for format in [Format::Legacy, Format::Pae, Format::Level4, Format::Level5] {
        let mut g = Guest::new();
        let mut t = PageTables::new(format, true);
        let alias = F + 0x5000;
        t.set(1, alias, u64::from(F) | ALL);
        let main =
            if matches!(format, Format::Legacy | Format::Pae) { Main::Paged(t) } else { Main::Long(t) };
        let (code, immediate) = modifying(&[]);
        g.main(main, |p| {
            poke(p, F, &code);
            asm!(p; xor ebx, ebx; mov edi, alias + immediate);
            call(p, F, 100);
            p.show("sum", ebx);
            // And the other way round.
            poke(p, F, &code);
            asm!(p; xor ebx, ebx; mov edi, F + immediate);
            call(p, alias, 100);
            p.show("sum", ebx);
            // Both ways in, one way to write.
            poke(p, F, &code);
            asm!(p; xor ebx, ebx; mov edi, alias + immediate);
            rounds(p, 25, |p| {
                call(p, alias, 2);
                call(p, F, 2);
            });
            p.show("sum", ebx);
        });
        g.check("sum=0x13ba\nsum=0x13ba\nsum=0x13ba");
    }
}

/// 4.10.4.1: INVLPG, and MOV to CR3.
#[test]
fn an_address_that_leads_to_other_code_in_turn() {
    for by_cr3 in [false, true] {
        let mut g = Guest::new();
        let t = PageTables::new(Format::Level4, true);
        let (a, b, v) = (F + 0x1000, F + 0x2000, F + 0x3000);
        g.main(Main::Long(t.clone()), |p| {
            poke(p, a, &[0xff, 0xc3, 0xc3]); // inc ebx
            poke(p, b, &[0x81, 0xc3, 0, 1, 0, 0, 0xc3]); // add ebx, 100h
            asm!(p; xor ebx, ebx);
            rounds(p, 50, |p| {
                for page in [a, b] {
                    if by_cr3 {
                        asm!(p; mov dword_ptr(t.entry(1, v)), page | ALL as u32; mov rax, cr3; mov cr3, rax);
                    } else {
                        map(p, &t, v, u64::from(page) | ALL);
                    }
                    call(p, v, 20);
                }
            });
            p.show("sum", ebx);
        });
        g.check("sum=0x3ebe8");
    }
}

#[test]
fn pages_of_code_that_are_filled_anew_and_mapped_elsewhere() {
    let mut g = Guest::new();
    let t = PageTables::new(Format::Level4, true);
    let (a, b, v) = (F + 0x1000, F + 0x2000, F + 0x3000);
    g.main(Main::Long(t.clone()), |p| {
        asm!(p; xor ebx, ebx);
        rounds(p, 30, |p| {
            // The page that is not mapped gets the new code: add ebx, EBP's low byte.
            for (page, other) in [(a, b), (b, a)] {
                poke(p, page, &[0x83, 0xc3, 0, 0xc3]);
                asm!(p; mov eax, ebp; mov byte_ptr(page + 2), al);
                map(p, &t, v, u64::from(page) | ALL);
                call(p, v, 10);
                poke(p, other, &[0x0f, 0x0b]);
            }
        });
        p.show("sum", ebx);
    });
    g.check("sum=0x2454");
}

#[test]
fn a_fault_in_a_hot_loop_leaves_the_registers_of_its_instruction() {
    let mut g = Guest::new();
    let mut t = PageTables::new(Format::Level4, true);
    let absent = F + 0x9000;
    t.set(1, absent, 0);
    g.alias(absent, "absent");
    let (mut b, mut c) = (0u32, 0u32);
    let mut d = 0;
    for _ in 0..=0x1000 / 4 {
        c += 1;
        d = c.wrapping_mul(3);
        b = (b ^ d).rotate_left(5);
    }
    g.main(Main::Long(t), |p| {
        asm!(p; xor ebx, ebx; xor ecx, ecx; mov edi, absent - 0x1000);
        p.guarded(|p| {
            let mut top = p.a.create_label();
            p.place(&mut top);
            asm!(p; inc ecx; imul_3 edx, ecx, 3; xor ebx, edx; rol ebx, 5);
            p.name("access");
            asm!(p; add ebx, dword_ptr(rdi); add edi, 4; xor ecx, 0; jmp top);
        });
        asm!(p; sub edi, absent);
        p.show_all("regs", &[ebx, ecx, edx, edi]);
    });
    g.check(&format!("#PF(0x0) at access cr2=absent\nregs={b:#x} {c:#x} {d:#x} 0x0"));
}

/// mov ecx, 2; inc ebx; dec ecx; jnz; ret
const TWICE: [u8; 10] = [0xb9, 2, 0, 0, 0, 0x43, 0x49, 0x75, 0xfc, 0xc3];

#[test]
fn single_steps_through_a_hot_loop() {
    let mut g = Guest::new();
    g.alias(F, "f");
    g.main(Main::Protected, |p| {
        poke(p, F, &TWICE);
        asm!(p; xor ebx, ebx);
        call(p, F, 100);
        asm!(p; pushfd; or dword_ptr(esp), 0x100; popfd; call u64::from(F));
        p.name("back");
        asm!(p; pushfd; and dword_ptr(esp), !0x100i32; popfd; nop);
        call(p, F, 100);
        p.show("ebx", ebx);
    });
    g.check(
        "
        #DB at f fl=TF dr6=4000
        #DB at f+5 fl=TF dr6=4000
        #DB at f+6 fl=TF dr6=4000
        #DB at f+7 fl=TF dr6=4000
        #DB at f+5 fl=TF dr6=4000
        #DB at f+6 fl=TF dr6=4000
        #DB at f+7 fl=TF dr6=4000
        #DB at f+9 fl=TF dr6=4000
        #DB at back fl=TF dr6=4000
        #DB at back+1 fl=TF dr6=4000
        #DB at back+8 fl=TF dr6=4000
        #DB at back+9 dr6=4000
        ebx=0x192
        ",
    );
}

#[test]
fn breakpoints_set_in_hot_code() {
    let mut g = Guest::new();
    g.alias(F, "f");
    g.main(Main::Protected, |p| {
        // The loop, and a store behind it.
        let mut code = TWICE[..9].to_vec();
        code.extend([0x89, 0x1f, 0xc3]); // mov [edi], ebx; ret
        poke(p, F, &code);
        asm!(p; xor ebx, ebx; mov edi, VARS);
        call(p, F, 100);
        p.say("execution");
        asm!(p; mov eax, F + 6; mov dr0, eax; mov eax, 0x402; mov dr7, eax);
        call(p, F, 1);
        p.say("writes");
        asm!(p; mov eax, VARS; mov dr0, eax; mov eax, 0xd_0402; mov dr7, eax);
        call(p, F, 2);
        p.say("none");
        asm!(p; mov eax, 0x400; mov dr7, eax);
        call(p, F, 100);
        p.show("ebx", ebx);
    });
    g.check(
        "
        execution
        #DB at f+6 dr6=1
        #DB at f+6 dr6=1
        writes
        #DB at f+11 dr6=1
        #DB at f+11 dr6=1
        none
        ebx=0x196
        ",
    );
}

/// The same bytes as 32-bit and as 16-bit code: INC EAX and INC AX.
#[test]
fn bytes_that_are_code_of_two_sizes() {
    let mut g = Guest::new();
    let at = 0x9800;
    g.main(Main::Protected, |p| {
        poke(p, at, &[0x40, 0xcd, QUIT]);
        asm!(p; xor ebx, ebx);
        rounds(p, 60, |p| {
            for sel in [CODE0, CODE16] {
                p.guarded(|p| asm!(p; mov eax, 0xffff; jmp_far sel, at));
                asm!(p; add ebx, eax);
            }
        });
        p.show("sum", ebx);
    });
    g.check("sum=0x3c0000");
}

#[test]
fn hot_code_under_changed_control_registers() {
    let mut g = Guest::new();
    let mut t = PageTables::new(Format::Level4, true);
    let page = F + 0x1000;
    t.set(1, page, u64::from(page) | P | U);
    g.alias(page, "page");
    g.alias(F, "store");
    g.alias(F + 0x40, "move");
    let set_cr0 = |p: &mut Prog, bit: u32, on: bool| {
        asm!(p; mov rax, cr0);
        if on {
            asm!(p; bts eax, bit);
        } else {
            asm!(p; btr eax, bit);
        }
        asm!(p; mov cr0, rax);
    };
    g.main(Main::Long(t.clone()), |p| {
        poke(p, F, &[0x89, 0x1f, 0xc3]); // mov [rdi], ebx; ret
        poke(p, F + 0x40, &[0x0f, 0x28, 0xc1, 0xc3]); // movaps xmm0, xmm1; ret
        p.set_cr4(1 << 9);
        asm!(p; mov edi, page);
        for _ in 0..2 {
            p.say("writable");
            call(p, F, 50);
            p.say("write-protected");
            set_cr0(p, 16, true);
            p.guarded(|p| call(p, F, 5));
            set_cr0(p, 16, false);
            p.say("vectors");
            call(p, F + 0x40, 50);
            p.say("TS");
            set_cr0(p, 3, true);
            p.guarded(|p| call(p, F + 0x40, 5));
            set_cr0(p, 3, false);
            call(p, F + 0x40, 5);
            p.say("EM");
            set_cr0(p, 2, true);
            p.guarded(|p| call(p, F + 0x40, 5));
            set_cr0(p, 2, false);
            call(p, F + 0x40, 5);
            p.say("no OSFXSR");
            p.clear_cr4(1 << 9);
            p.guarded(|p| call(p, F + 0x40, 5));
            p.set_cr4(1 << 9);
            call(p, F + 0x40, 5);
        }
    });
    let once = "
        writable
        write-protected
        #PF(0x3) at store cr2=page
        vectors
        TS
        #NM at move
        EM
        #UD at move
        no OSFXSR
        #UD at move
        ";
    g.check(&format!("{once}{once}"));
}

#[test]
fn hot_code_whose_page_loses_its_rights() {
    let mut g = Guest::new();
    let t = PageTables::new(Format::Level4, true);
    g.alias(F, "f");
    g.main(Main::Long(t.clone()), |p| {
        poke(p, F, &[0xff, 0xc3, 0xc3]);
        asm!(p; xor ebx, ebx);
        for _ in 0..2 {
            call(p, F, 50);
            p.user(|p| call(p, F, 50));
            p.say("not executable");
            map(p, &t, F, u64::from(F) | ALL | NX);
            p.guarded(|p| call(p, F, 5));
            p.user(|p| call(p, F, 5));
            p.say("not present");
            map(p, &t, F, 0);
            p.guarded(|p| call(p, F, 5));
            p.say("not the user's");
            map(p, &t, F, u64::from(F) | P | W);
            call(p, F, 50);
            p.user(|p| call(p, F, 5));
            map(p, &t, F, u64::from(F) | ALL);
        }
        p.show("ebx", ebx);
    });
    let once = "
        not executable
        #PF(0x11) at f cr2=f
        #PF(0x15) at f cs=0x53 cr2=f
        not present
        #PF(0x10) at f cr2=f
        not the user's
        #PF(0x15) at f cs=0x53 cr2=f
        ";
    g.check(&format!("{once}{once}ebx=0x12c"));
}

#[test]
fn code_that_is_written_and_run_in_turn_is_not_compiled_for_ever() {
    let mut g = Guest::new();
    g.main(Main::Protected, |p| {
        // add ebx, 0; ret
        poke(p, F, &[0x83, 0xc3, 0, 0xc3]);
        asm!(p; xor ebx, ebx);
        rounds(p, 5000, |p| {
            asm!(p; inc byte_ptr(F + 2));
            call(p, F, 4);
        });
        p.show("ebx", ebx);
    });
    g.check("ebx=0x4790");
    if let Some(n) = g.translated() {
        assert!(n < 200, "{n} regions");
    }
}
