//! Double faults, shutdown, IST, and the gates and returns of 64-bit mode.
//!
//! SDM volume 3A, 6.15 "Interrupt 8" with tables 6-4 and 6-5 (classes, double fault conditions), 6.14 (64-bit mode),
//! 5.8.3.1 (64-bit call gates); volume 2, IRET, CALL, RET.
use iced_x86::code_asm::*;
use mynah_machinery::{asm, *};

/// Makes the gate of `vector` absent, or present again.
fn set_present(p: &mut Prog, vector: u32, present: bool) {
    let at = IDT32 + 8 * vector + 5;
    if present {
        asm!(p; or byte_ptr(at), 0x80);
    } else {
        asm!(p; and byte_ptr(at), 0x7f);
    }
}

/// Table 6-5: a contributory exception during a contributory one, or any of page fault and contributory during a page
/// fault, is a double fault; everything else is handled one after the other. Here each vector's gate is absent, so that
/// its delivery raises #NP.
#[test]
fn contributory_exceptions_become_double_faults() {
    let mut g = Guest::new();
    let absent_data = g.gdt(flat(absent(access::DATA), size::P32));
    g.qemu_clears_ext();
    g.qemu_differs(
        &[("#NP(0x8b) at #AC cs=0x3b fl=AC", "no #AC ok"), ("#NP(0x9b) at #XM+21", "#XM ok")],
        "neither alignment check nor SIMD floating-point exceptions",
    );
    g.main(Main::Paged(PageTables::new(Format::Legacy, true)), |p| {
        // Table 6-4: contributory, then page faults, then benign.
        set_present(p, 0, false);
        p.attempt("#DE", |p| asm!(p; xor ecx, ecx; div ecx));
        set_present(p, 0, true);
        set_present(p, 10, false);
        p.guarded(|p| {
            p.set_flags(0x4000);
            p.name("#TS");
            asm!(p; iretd);
        });
        set_present(p, 10, true);
        set_present(p, 12, false);
        p.attempt("#SS", |p| asm!(p; mov eax, u32::from(absent_data); mov ss, ax));
        set_present(p, 12, true);
        set_present(p, 13, false);
        p.attempt("#GP", |p| asm!(p; mov eax, u32::from(CODE3); mov ss, ax));
        p.attempt_at(3, "#GP at level 3", |p| asm!(p; hlt));
        set_present(p, 13, true);
        set_present(p, 11, false);
        p.attempt("#NP", |p| asm!(p; mov eax, u32::from(absent_data); mov ds, ax));
        set_present(p, 11, true);
        set_present(p, 14, false);
        p.attempt("#PF", |p| asm!(p; mov eax, dword_ptr(0x50_0000)));
        set_present(p, 14, true);
        for v in [1, 3, 4, 5, 6, 7, 16, 17, 19] {
            set_present(p, v, false);
        }
        p.attempt("#UD", |p| asm!(p; ud2));
        p.attempt("#BR", |p| asm!(p; xor ecx, ecx; mov dword_ptr(VARS), 1; mov dword_ptr(VARS + 4), 2; bound ecx, qword_ptr(VARS)));
        p.attempt("#BP", |p| asm!(p; int3));
        p.attempt("#OF", |p| asm!(p; mov eax, 0x7fff_ffff; inc eax; db &[0xce]));
        p.attempt("#NM", |p| asm!(p; mov eax, cr0; or al, 8; mov cr0, eax; fnop));
        asm!(p; clts);
        p.attempt("#MF", |p| asm!(p; fninit; push 0x37b; fldcw word_ptr(esp); fld1; fldz; db &[0xde, 0xf9, 0x9b]; pop eax));
        asm!(p; fninit; pop eax);
        p.set_cr4(3 << 9);
        p.attempt("#XM", |p| asm!(p; push 0x1d80; ldmxcsr dword_ptr(esp); xorps xmm0, xmm0; mov eax, 1; cvtsi2ss xmm1, eax; divss xmm1, xmm0));
        asm!(p; mov eax, cr0; or eax, 1 << 18; mov cr0, eax);
        p.set_flags(1 << 18);
        p.user(|p| {
            p.name("#AC");
            asm!(p; mov eax, dword_ptr(SCRATCH + 1));
            p.say("no #AC ok");
        });
        p.clear_flags(1 << 18);
        p.attempt("#DB", |p| {
            p.set_flags(0x100);
            asm!(p; nop);
        });
    });
    g.check(
        "
        #DF(0x0) at #DE+2
        #DF(0x0) at #TS fl=NT
        #DF(0x0) at #SS+5
        #DF(0x0) at #GP+5
        #DF(0x0) at #GP at level 3 cs=0x3b
        #DF(0x0) at #NP+5
        #DF(0x0) at #PF
        #NP(0x33) at #UD
        #NP(0x2b) at #BR+22
        #NP(0x1a) at #BP
        #NP(0x22) at #OF+6
        #NP(0x3b) at #NM+8
        #NP(0x83) at #MF+16
        #NP(0x9b) at #XM+21
        #NP(0x8b) at #AC cs=0x3b fl=AC
        #NP(0xb) at #DB+10 fl=TF
        ",
    );
}

/// Table 6-5: a page fault while a contributory exception or a benign one is delivered is just a page fault; its access
/// is a supervisor's.
#[test]
fn a_page_fault_while_reading_the_idt() {
    let mut g = Guest::new();
    // Entries 0 to 13 at the end of one page, 14 and up on the next.
    let idt = DATA + 0x1000 - 14 * 8;
    for v in 0..stubs::VECTORS {
        let level = if v == QUIT { 3 } else { 0 };
        g.put64(idt + 8 * u32::from(v), gate(CODE0, stubs::stub32(v), dpl(access::INT32, level), 0));
    }
    for v in 8..14 {
        g.alias(idt + 8 * v, &format!("entry {v}"));
    }
    let mut tables = PageTables::new(Format::Legacy, true);
    tables.set(1, DATA, 0);
    g.put(VARS, &[0xff, 1]);
    g.put32(VARS + 2, idt);
    g.main(Main::Paged(tables), |p| {
        asm!(p; lidt fword_ptr(VARS));
        p.attempt("#UD", |p| asm!(p; ud2));
        p.attempt("#GP", |p| asm!(p; mov eax, u32::from(CODE3); mov ss, ax));
        p.attempt_at(3, "#GP at level 3", |p| asm!(p; hlt));
        p.attempt_at(3, "INT", |p| asm!(p; int 0x8));
        // While a page fault is delivered it is a double fault, whose entry is on the absent page too.
        p.say("now #PF with an absent entry");
        asm!(p; mov dword_ptr(VARS + 2), idt - 8; lidt fword_ptr(VARS); mov eax, dword_ptr(0x50_0000));
        p.say("not reached");
    });
    g.check(
        "
        #PF(0x0) at #UD cr2=0x180fc0
        #PF(0x0) at #GP+5 cr2=entry 13
        #PF(0x0) at #GP at level 3 cs=0x3b cr2=entry 13
        #PF(0x0) at INT cs=0x3b cr2=entry 8
        now #PF with an absent entry
        shutdown
        ",
    );
}

/// 6.15, interrupt 8: a fault while #DF is delivered is shutdown; so is no IDT at all.
#[test]
fn triple_faults_shut_down() {
    let mut g = Guest::new();
    g.main(Main::Protected, |p| {
        set_present(p, 13, false);
        set_present(p, 8, false);
        p.say("last words");
        asm!(p; mov eax, u32::from(CODE3); mov ss, ax);
        p.say("not reached");
    });
    g.check(
        "
        last words
        shutdown
        ",
    );
    let mut g = Guest::new();
    g.main(Main::Protected, |p| {
        p.say("last words");
        asm!(p; sub esp, 8; mov dword_ptr(esp), 0; mov dword_ptr(esp + 4), 0; lidt fword_ptr(esp); ud2);
        p.say("not reached");
    });
    g.check(
        "last words
        shutdown",
    );
}

fn long_tables() -> PageTables {
    PageTables::new(Format::Level4, true)
}

/// 6.14.2, 6.14.4, 6.14.5: the frame of 64-bit mode always has SS:RSP and begins at a multiple of 16; with IST the
/// stack changes without a change of level; on a change of level SS becomes null with RPL = CPL.
#[test]
fn stacks_of_64_bit_handlers() {
    let mut g = Guest::new();
    g.show_stacks();
    g.idt64(0x21, gate(CODE64, stubs::stub64(0x21), dpl(access::INT32, 3), 3), 0);
    g.idt64(0x22, gate(CODE64, stubs::stub64(0x22), dpl(access::TRAP32, 3), 0), 0);
    g.qemu_differs(
        &[("int 0x21 at int22 fl=IF stack=10:11bfd0", "int 0x21 at int22 fl=IF stack=0:11bfd0")],
        "SS becomes null by IST without a change of level",
    );
    g.main(Main::Long(long_tables()), |p| {
        asm!(p; pushfq; or dword_ptr(rsp), 0x200; popfq);
        asm!(p; sub rsp, 3);
        p.name("int20");
        asm!(p; int 0x20);
        p.name("int21");
        asm!(p; int 0x21);
        p.name("int22");
        asm!(p; int 0x22; add rsp, 3);
        p.attempt("#GP with an error code", |p| asm!(p; mov eax, u32::from(CODE3); mov ss, ax));
        p.user(|p| {
            asm!(p; sub rsp, 5);
            p.name("user20");
            asm!(p; int 0x20);
            p.name("user21");
            asm!(p; int 0x21);
            p.show_segments();
        });
        p.attempt("null SS at level 0", |p| asm!(p; xor eax, eax; mov ss, ax; push rax; pop rax; int 0x20));
    });
    g.check(
        "
        int 0x20 at int21 fl=IF stack=10:110fc0
        int 0x21 at int22 fl=IF stack=10:11bfd0
        int 0x22 at int22+2 fl=IF h=IF stack=10:110fc0
        #GP(0x38) at #GP with an error code+5 fl=IF stack=10:110fd0
        int 0x20 at user21 cs=0x53 sp=43:118ffb stack=0:112fd0
        int 0x21 at user21+2 cs=0x53 sp=43:118ffb stack=0:11bfd0
        cs ss ds es fs gs=0x53 0x43 0x0 0x0 0x0 0x0
        int 0x20 at null SS at level 0+9 stack=0:110fd0
        null SS at level 0 ok
        ",
    );
}

/// 6.14.1, 6.14.2 and volume 2, INT n: what is not a 64-bit interrupt or trap gate to 64-bit code; non-canonical
/// handlers and stacks.
#[test]
fn checks_of_64_bit_gates() {
    let mut g = Guest::new();
    let i = dpl(access::INT32, 3);
    let at = stubs::stub64(0x31);
    let absent_code = g.gdt(flat(absent(access::CODE), size::P64));
    let both = g.gdt(flat(access::CODE, 0xe));
    let cases: [(&str, u64, u64); 12] = [
        ("16-bit gate", gate(CODE64, at, dpl(access::INT16, 3), 0), 0),
        ("task gate", gate(TR64, at, dpl(access::TASK, 3), 0), 0),
        ("call gate", gate(CODE64, at, dpl(access::CALL32, 3), 0), 0),
        ("absent", gate(CODE64, at, absent(i), 0), 0),
        ("DPL 0", gate(CODE64, at, access::INT32, 0), 0),
        ("32-bit code", gate(CODE0, at, i, 0), 0),
        ("L and D", gate(both, at, i, 0), 0),
        ("absent code", gate(absent_code, at, i, 0), 0),
        ("null code", gate(0, at, i, 0), 0),
        ("data", gate(DATA0, at, i, 0), 0),
        ("not canonical", gate(CODE64, at, i, 0), 0x8000),
        ("fine", gate(CODE64, at, i, 0), 0),
    ];
    for (n, (_, low, high)) in cases.iter().enumerate() {
        g.idt64(0x31 + n as u8, *low, *high);
    }
    g.idt64(12, gate(CODE64, stubs::stub64(12), access::INT32, 2), 0);
    g.qemu_clears_ext();
    g.qemu_differs(
        &[
            ("#GP(0x18a) at 16-bit gate cs=0x53", "#GP(0x312) at 16-bit gate cs=0x53"),
            ("#GP(0x192) at task gate cs=0x53", "#GP(0x322) at task gate cs=0x53"),
            ("#GP(0x19a) at call gate cs=0x53", "#GP(0x332) at call gate cs=0x53"),
            ("#NP(0x1a2) at absent cs=0x53", "#NP(0x342) at absent cs=0x53"),
            ("#GP(0x1aa) at DPL 0 cs=0x53", "#GP(0x352) at DPL 0 cs=0x53"),
            ("#GP(0x7fa) at beyond the IDT cs=0x53", "#GP(0xff2) at beyond the IDT cs=0x53"),
        ],
        "the error code has the vector times 16",
    );
    g.qemu_differs(
        &[("#GP(0x0) at not canonical cs=0x53", "#GP(0x0) at 0x80000010e310")],
        "a non-canonical handler faults when it is fetched",
    );
    g.main(Main::Long(long_tables()), |p| {
        for (n, (name, ..)) in cases.iter().enumerate() {
            p.attempt_at(3, name, |p| asm!(p; int 0x31 + n as i32));
        }
        p.attempt_at(3, "beyond the IDT", |p| asm!(p; int 0xff));
        // A stack that is not canonical: #SS(0), which has a stack of its own.
        asm!(p; mov rax, 0x8000_0000_1000u64; mov qword_ptr(TSS64 + 4), rax);
        p.attempt_at(3, "stack is not canonical", |p| asm!(p; int 0x3c));
        p.attempt_at(3, "stack is not canonical, #UD", |p| asm!(p; ud2));
        asm!(p; mov dword_ptr(TSS64 + 4), STACKS[0]; mov dword_ptr(TSS64 + 8), 0);
        // A page fault with IST on a bad stack is a double fault.
        asm!(p; mov byte_ptr(IDT64 + 16 * 14 + 4), 3; mov byte_ptr(IDT64 + 16 * 8 + 4), 1; mov dword_ptr(TSS64 + 0x34), 0x50_0000);
        p.attempt("#PF on an absent stack", |p| asm!(p; mov eax, dword_ptr(0x60_0000)));
    });
    g.check(
        "
        #GP(0x18a) at 16-bit gate cs=0x53
        #GP(0x192) at task gate cs=0x53
        #GP(0x19a) at call gate cs=0x53
        #NP(0x1a2) at absent cs=0x53
        #GP(0x1aa) at DPL 0 cs=0x53
        #GP(0x8) at 32-bit code cs=0x53
        #GP(0x98) at L and D cs=0x53
        #NP(0x90) at absent code cs=0x53
        #GP(0x0) at null code cs=0x53
        #GP(0x10) at data cs=0x53
        #GP(0x0) at not canonical cs=0x53
        int 0x31 at fine+2 cs=0x53
        fine ok
        #GP(0x7fa) at beyond the IDT cs=0x53
        #SS(0x0) at stack is not canonical cs=0x53
        #SS(0x1) at stack is not canonical, #UD cs=0x53
        #DF(0x0) at #PF on an absent stack
        ",
    );
}

/// 5.8.3.1 and volume 2, CALL: 64-bit call gates are 16 bytes, have no parameters, lead to 64-bit code alone, and load
/// SS with a null selector.
#[test]
fn call_gates_of_64_bit_mode() {
    let mut g = Guest::new();
    let target = g.code64(|p| {
        p.show_segments();
        p.show("esp", esp);
        p.show_stack("frame", 4);
        asm!(p; retf);
    });
    g.alias(target, "target");
    let c3 = dpl(access::CALL32, 3);
    let call = |p: &mut Prog, sel: u16| {
        asm!(p; mov dword_ptr(VARS), 0; mov word_ptr(VARS + 4), u32::from(sel); call fword_ptr(VARS));
    };
    let fine = g.gdt16(gate(CODE64, target, c3, 0), 0);
    let cases = [
        ("16-bit gate", g.gdt16(gate(CODE64, target, dpl(access::CALL16, 3), 0), 0)),
        ("to 32-bit code", g.gdt16(gate(CODE0, target, c3, 0), 0)),
        ("upper type", g.gdt16(gate(CODE64, target, c3, 0), 0x0c00_0000_0000)),
        ("not canonical", g.gdt16(gate(CODE64, target, c3, 0), 0x8000_0000)),
        ("absent", g.gdt16(gate(CODE64, target, absent(c3), 0), 0)),
        ("DPL 0", g.gdt16(gate(CODE64, target, access::CALL32, 0), 0)),
        ("null", g.gdt16(gate(0, target, c3, 0), 0)),
        ("task gate", g.gdt16(gate(TR32, 0, dpl(access::TASK, 3), 0), 0)),
        ("TSS", TR32),
        ("cut by the GDT", 0xff8),
    ];
    g.put64(GDT + 0xff8, gate(CODE64, target, c3, 0));
    g.qemu_differs(
        &[("#GP(0x0) at not canonical cs=0x53", "#GP(0x0) at 0x8000000000120000")],
        "a non-canonical target faults when it is fetched",
    );
    g.main(Main::Long(long_tables()), |p| {
        p.say("same level");
        call(p, fine);
        p.name("back0");
        p.show("esp", esp);
        p.say("from level 3");
        p.user(|p| {
            call(p, fine);
            p.name("back3");
            p.show_segments();
            p.show("esp", esp);
        });
        for (name, sel) in cases {
            asm!(p; mov word_ptr(VARS + 4), u32::from(sel));
            p.attempt_at(3, name, |p| asm!(p; call fword_ptr(VARS)));
        }
    });
    g.check(
        "
        same level
        cs ss ds es fs gs=0x48 0x10 0x10 0x10 0x10 0x10
        esp=0x110ff0
        frame=back0 0x48 0x0 0x0
        esp=0x111000
        from level 3
        cs ss ds es fs gs=0x48 0x0 0x0 0x0 0x0 0x0
        esp=0x112fe0
        frame=back3 0x53 0x119000 0x43
        cs ss ds es fs gs=0x53 0x43 0x0 0x0 0x0 0x0
        esp=0x119000
        #GP(0xa0) at 16-bit gate cs=0x53
        #GP(0x8) at to 32-bit code cs=0x53
        #GP(0xc0) at upper type cs=0x53
        #GP(0x0) at not canonical cs=0x53
        #NP(0xe0) at absent cs=0x53
        #GP(0xf0) at DPL 0 cs=0x53
        #GP(0x0) at null cs=0x53
        #GP(0x110) at task gate cs=0x53
        #GP(0x68) at TSS cs=0x53
        #GP(0xff8) at cut by the GDT cs=0x53
        ",
    );
}

/// Volume 2, IRET, in 64-bit mode: SS:RSP is popped always; SS may be null at levels 0-2 alone; NT is #GP;
/// non-canonical RIP is #GP(0).
#[test]
fn iret_in_64_bit_mode() {
    let mut g = Guest::new();
    let out = g.code64(|p| {
        p.show_segments();
        p.show64("rsp", rsp);
        p.quit();
    });
    let out32 = g.code32(|p| {
        p.show_segments();
        p.show("esp", esp);
        p.quit();
    });
    let code64_1 = g.gdt(flat(dpl(access::CODE, 1), size::P64));
    g.qemu_differs(
        &[
            (
                "#GP(0x0) at level 0, null SS with RPL 3",
                "cs ss ds es fs gs=0x48 0x3 0x10 0x10 0x10 0x10\nrsp=0x114ff8",
            ),
            (
                "#GP(0x0) at level 1, null SS with RPL 3",
                "cs ss ds es fs gs=0x91 0x3 0x0 0x0 0x0 0x0\nrsp=0x114ff8",
            ),
            (
                "#GP(0x0) at compatibility mode, null SS",
                "cs ss ds es fs gs=0x8 0x0 0x10 0x10 0x0 0x0\nesp=0x115000",
            ),
        ],
        "a null SS is not checked",
    );
    g.qemu_differs(
        &[
            ("#GP(0x0) at RIP", "#GP(0x0) at 0x800000000000"),
            ("#GP(0x0) at RIP at level 3", "#GP(0x0) at 0xffff7fffffffffff cs=0x53"),
        ],
        "a non-canonical target faults when it is fetched",
    );
    g.main(Main::Long(long_tables()), |p| {
        for (name, ss_, code, ip) in [
            ("level 0", DATA0, CODE64, out),
            ("level 0, null SS", 0, CODE64, out),
            ("level 0, null SS with RPL 3", 3, CODE64, out),
            ("level 3", DATA3, CODE64_3, out),
            ("level 3, null SS", 3, CODE64_3, out),
            ("level 3, null SS with RPL 0", 0, CODE64_3, out),
            ("level 1, null SS", 1, code64_1 | 1, out),
            ("level 1, null SS with RPL 3", 3, code64_1 | 1, out),
            ("compatibility mode", DATA3, CODE3, out32),
            ("compatibility mode, level 0", DATA0, CODE0, out32),
            ("compatibility mode, null SS", 0, CODE0, out32),
            ("SS of another level", DATA3, CODE64, out),
            ("null CS", DATA3, 3, out),
        ] {
            p.guarded(|p| {
                asm!(p; push i32::from(ss_); mov rax, 0x1234_0000_0000u64 + u64::from(STACKS[3]));
                // Levels other than 3 need a stack that exists.
                if code & 3 != 3 || code == CODE3 {
                    asm!(p; mov eax, STACKS[1]);
                }
                if code & 3 == 3 && ip == out {
                    asm!(p; mov eax, STACKS[3]);
                }
                asm!(p; push rax; pushfq; push i32::from(code); push ip as i32);
                p.name(name);
                asm!(p; iretq);
            });
        }
        p.guarded(|p| {
            asm!(p; push i32::from(DATA0); push rsp; pushfq; or dword_ptr(rsp), 0x4000; popfq; pushfq; push i32::from(CODE64); push out as i32);
            p.name("NT");
            asm!(p; iretq);
        });
        asm!(p; pushfq; and dword_ptr(rsp), !0x4000; popfq);
        p.guarded(|p| {
            asm!(p; push i32::from(DATA0); push rsp; pushfq; push i32::from(CODE64); mov rax, 0x8000_0000_0000u64; push rax);
            p.name("RIP");
            asm!(p; iretq);
        });
        p.guarded(|p| {
            asm!(p; push i32::from(DATA3); push STACKS[3] as i32; pushfq; push i32::from(CODE64_3); mov rax, 0xffff_7fff_ffff_ffffu64; push rax);
            p.name("RIP at level 3");
            asm!(p; iretq);
        });
        // VM in the image means nothing in long mode.
        p.guarded(|p| {
            asm!(p; push i32::from(DATA3); push STACKS[3] as i32; push 0x20002; push i32::from(CODE64_3); push out as i32);
            p.name("VM");
            asm!(p; iretq);
        });
        // IRETD from 64-bit mode pops doublewords.
        p.guarded(|p| {
            asm!(p; sub rsp, 20; mov dword_ptr(rsp), out; mov dword_ptr(rsp + 4), u32::from(CODE64_3); mov dword_ptr(rsp + 8), 2;
                mov dword_ptr(rsp + 12), STACKS[3]; mov dword_ptr(rsp + 16), u32::from(DATA3); iretd);
        });
    });
    g.check(
        "
        cs ss ds es fs gs=0x48 0x10 0x10 0x10 0x10 0x10
        rsp=0x114ff8
        cs ss ds es fs gs=0x48 0x0 0x10 0x10 0x10 0x10
        rsp=0x114ff8
        #GP(0x0) at level 0, null SS with RPL 3
        cs ss ds es fs gs=0x53 0x43 0x0 0x0 0x0 0x0
        rsp=0x118ff8
        #GP(0x0) at level 3, null SS
        #GP(0x0) at level 3, null SS with RPL 0
        cs ss ds es fs gs=0x91 0x1 0x0 0x0 0x0 0x0
        rsp=0x114ff8
        #GP(0x0) at level 1, null SS with RPL 3
        cs ss ds es fs gs=0x3b 0x43 0x0 0x0 0x0 0x0
        esp=0x115000
        cs ss ds es fs gs=0x8 0x10 0x10 0x10 0x0 0x0
        esp=0x115000
        #GP(0x0) at compatibility mode, null SS
        #GP(0x40) at SS of another level
        #GP(0x0) at null CS
        #GP(0x0) at NT fl=NT
        #GP(0x0) at RIP
        #GP(0x0) at RIP at level 3
        cs ss ds es fs gs=0x53 0x43 0x0 0x0 0x0 0x0
        rsp=0x118ff8
        cs ss ds es fs gs=0x53 0x43 0x0 0x0 0x0 0x0
        rsp=0x118ff8
        ",
    );
}

/// Volume 2, IRET, "return to outer privilege level": which flags each level may change; the data segments.
#[test]
fn iret_changes_the_flags_it_may() {
    let mut g = Guest::new();
    let out = g.code32(|p| {
        asm!(p; pushfd; pop eax; and eax, 0x3f_7700);
        p.show("flags", eax);
        p.show_segments();
        p.quit();
    });
    const ALL: i32 = 0x3f_7700 & !0x1a_4100 | 2; // all but VM, VIF, VIP, NT, TF
    g.main(Main::Protected, |p| {
        for (from, to, iopl) in [(0, 0, 0), (0, 3, 0), (1, 1, 0), (1, 3, 1), (3, 3, 0), (3, 3, 3)] {
            p.say(&format!("{from} to {to}, IOPL {iopl}"));
            p.clear_flags(0x3f_7f00);
            p.set_flags(iopl << 12);
            p.ring(from, |p| {
                let (code, data) = FLAT[to];
                asm!(p; push i32::from(data); push STACKS[to] as i32 - 0x100; push ALL; push i32::from(code); push out as i32; iretd);
            });
        }
        p.attempt_at(3, "to level 0", |p| asm!(p; push 2; push i32::from(CODE0); push out as i32; iretd));
    });
    g.check(
        "
        0 to 0, IOPL 0
        flags=0x243600
        cs ss ds es fs gs=0x8 0x10 0x10 0x10 0x10 0x10
        0 to 3, IOPL 0
        flags=0x243600
        cs ss ds es fs gs=0x3b 0x43 0x0 0x0 0x0 0x0
        1 to 1, IOPL 0
        flags=0x240400
        cs ss ds es fs gs=0x19 0x21 0x21 0x21 0x0 0x0
        1 to 3, IOPL 1
        flags=0x241600
        cs ss ds es fs gs=0x3b 0x43 0x0 0x0 0x0 0x0
        3 to 3, IOPL 0
        flags=0x240400
        cs ss ds es fs gs=0x3b 0x43 0x43 0x43 0x0 0x0
        3 to 3, IOPL 3
        flags=0x243600
        cs ss ds es fs gs=0x3b 0x43 0x43 0x43 0x0 0x0
        #GP(0x8) at to level 0+9 cs=0x3b fl=AC|ID|IOPL3
        ",
    );
}

/// Volume 2, IRET: the VM bit of the image counts at level 0 alone; VIF and VIP are taken at level 0 alone.
#[test]
fn iret_ignores_vm_and_the_virtual_flags_at_level_3() {
    let mut g = Guest::new();
    let out = g.code32(|p| {
        asm!(p; pushfd; pop eax; and eax, 0x3f_7700);
        p.show("flags", eax);
        p.quit();
    });
    g.main(Main::Protected, |p| {
        p.ring(3, |p| asm!(p; push 0x1a_0002; push i32::from(CODE3); push out as i32; iretd));
        p.ring(0, |p| asm!(p; push 0x18_0002; push i32::from(CODE0); push out as i32; iretd));
        // POPF leaves VIF and VIP alone.
        asm!(p; push 2; popfd; pushfd; pop eax);
        p.show("flags", eax);
    });
    g.check_manual(
        "
        flags=0x0
        flags=0x180000
        flags=0x180002
        ",
        "TCG enters virtual-8086 mode from level 3, and knows no VIF and VIP outside it",
    );
}
