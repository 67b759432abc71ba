//! Segment registers: what may be loaded, what may be accessed, and the instructions that look at descriptors.
//!
//! SDM volume 3A, 3.4.5 (descriptors), 5.3-5.6 (limit, type and privilege checking), 5.10 (pointer validation), 2.4.2;
//! volume 2, MOV, LAR, LSL, VERR, VERW, ARPL, LLDT, LTR, SLDT.
use iced_x86::code_asm::*;
use mynah_machinery::{asm, *};

/// 5.4, 5.5, 5.6 and volume 2, MOV: loads of DS and SS at each level.
#[test]
fn loads_of_segment_registers() {
    let mut g = Guest::new();
    let d = |g: &mut Guest, a: u8| g.gdt(flat(a, size::P32));
    let a3 = |a: u8| dpl(a, 3);
    let sels = [
        ("null", 0),
        ("null with RPL 3", 3),
        ("data 0", DATA0),
        ("data 0 with RPL 3", DATA0 | 3),
        ("data 1", DATA1),
        ("data 3", DATA3),
        ("data 3 with RPL 0", DATA3 & !3),
        ("read-only", d(&mut g, a3(access::READ_ONLY)) | 3),
        ("code", d(&mut g, a3(access::CODE)) | 3),
        ("execute-only", d(&mut g, a3(access::EXECUTE)) | 3),
        ("conforming 0", d(&mut g, access::CONFORMING) | 3),
        ("conforming execute-only", d(&mut g, 0x9d) | 3),
        ("absent", d(&mut g, a3(absent(access::DATA))) | 3),
        ("absent of level 0", d(&mut g, absent(access::DATA))),
        ("absent code", d(&mut g, a3(absent(access::CODE))) | 3),
        ("TSS", TR32),
        ("beyond", 0xfffb),
        ("LDT entry", g.ldt(1, flat(dpl(access::DATA, 3), size::P32)) | 3),
        ("beyond the LDT", 0x104 | 3),
    ];
    let fresh = g.gdt(flat(a3(access::DATA), size::P32));
    g.main(Main::Protected, |p| {
        p.attempt_at(3, "no LDT yet", |p| asm!(p; mov eax, 0xf; mov ds, ax));
        asm!(p; mov eax, u32::from(LDTR); lldt ax);
        for level in [0, 3] {
            for (name, sel) in sels {
                p.attempt_at(level, &format!("DS {level} {name}"), |p| asm!(p; mov eax, u32::from(sel); mov ds, ax));
            }
            for (name, sel) in sels {
                p.attempt_at(level, &format!("SS {level} {name}"), |p| asm!(p; mov eax, u32::from(sel); mov ss, ax));
            }
        }
        // POP, LSS and MOV from memory do as MOV.
        p.attempt("pop ds", |p| asm!(p; push i32::from(DATA0 | 3); pop ds));
        p.attempt("pop ss", |p| asm!(p; push i32::from(DATA3); pop ss));
        asm!(p; mov dword_ptr(VARS), 0x1234_5678; mov word_ptr(VARS + 4), u32::from(DATA3));
        p.attempt("lss", |p| asm!(p; lss eax, fword_ptr(VARS)));
        asm!(p; mov eax, 0);
        p.attempt("lfs", |p| asm!(p; lfs eax, fword_ptr(VARS)));
        p.show("eax", eax);
        // A load sets the accessed bit, a failed one does not.
        asm!(p; mov byte_ptr(GDT + u32::from(fresh) + 5), 0xf2; mov eax, u32::from(fresh); mov es, ax; mov al, byte_ptr(GDT + u32::from(fresh) + 5));
        asm!(p; movzx eax, al);
        p.show("access byte", eax);
        asm!(p; mov byte_ptr(GDT + u32::from(fresh) + 5), 0x72);
        p.attempt("absent is not accessed", |p| asm!(p; mov eax, u32::from(fresh); mov es, ax));
        asm!(p; movzx eax, byte_ptr(GDT + u32::from(fresh) + 5));
        p.show("access byte", eax);
    });
    g.check(
        "
        #GP(0xc) at no LDT yet+5 cs=0x3b
        DS 0 null ok
        DS 0 null with RPL 3 ok
        DS 0 data 0 ok
        #GP(0x10) at DS 0 data 0 with RPL 3+5
        DS 0 data 1 ok
        DS 0 data 3 ok
        DS 0 data 3 with RPL 0 ok
        DS 0 read-only ok
        DS 0 code ok
        #GP(0xa0) at DS 0 execute-only+5
        DS 0 conforming 0 ok
        #GP(0xb0) at DS 0 conforming execute-only+5
        #NP(0xb8) at DS 0 absent+5
        #NP(0xc0) at DS 0 absent of level 0+5
        #NP(0xc8) at DS 0 absent code+5
        #GP(0x68) at DS 0 TSS+5
        #GP(0xfff8) at DS 0 beyond+5
        DS 0 LDT entry ok
        #GP(0x104) at DS 0 beyond the LDT+5
        #GP(0x0) at SS 0 null+5
        #GP(0x0) at SS 0 null with RPL 3+5
        SS 0 data 0 ok
        #GP(0x10) at SS 0 data 0 with RPL 3+5
        #GP(0x20) at SS 0 data 1+5
        #GP(0x40) at SS 0 data 3+5
        #GP(0x40) at SS 0 data 3 with RPL 0+5
        #GP(0x90) at SS 0 read-only+5
        #GP(0x98) at SS 0 code+5
        #GP(0xa0) at SS 0 execute-only+5
        #GP(0xa8) at SS 0 conforming 0+5
        #GP(0xb0) at SS 0 conforming execute-only+5
        #GP(0xb8) at SS 0 absent+5
        #SS(0xc0) at SS 0 absent of level 0+5
        #GP(0xc8) at SS 0 absent code+5
        #GP(0x68) at SS 0 TSS+5
        #GP(0xfff8) at SS 0 beyond+5
        #GP(0xc) at SS 0 LDT entry+5
        #GP(0x104) at SS 0 beyond the LDT+5
        DS 3 null ok
        DS 3 null with RPL 3 ok
        #GP(0x10) at DS 3 data 0+5 cs=0x3b
        #GP(0x10) at DS 3 data 0 with RPL 3+5 cs=0x3b
        #GP(0x20) at DS 3 data 1+5 cs=0x3b
        DS 3 data 3 ok
        DS 3 data 3 with RPL 0 ok
        DS 3 read-only ok
        DS 3 code ok
        #GP(0xa0) at DS 3 execute-only+5 cs=0x3b
        DS 3 conforming 0 ok
        #GP(0xb0) at DS 3 conforming execute-only+5 cs=0x3b
        #NP(0xb8) at DS 3 absent+5 cs=0x3b
        #GP(0xc0) at DS 3 absent of level 0+5 cs=0x3b
        #NP(0xc8) at DS 3 absent code+5 cs=0x3b
        #GP(0x68) at DS 3 TSS+5 cs=0x3b
        #GP(0xfff8) at DS 3 beyond+5 cs=0x3b
        DS 3 LDT entry ok
        #GP(0x104) at DS 3 beyond the LDT+5 cs=0x3b
        #GP(0x0) at SS 3 null+5 cs=0x3b
        #GP(0x0) at SS 3 null with RPL 3+5 cs=0x3b
        #GP(0x10) at SS 3 data 0+5 cs=0x3b
        #GP(0x10) at SS 3 data 0 with RPL 3+5 cs=0x3b
        #GP(0x20) at SS 3 data 1+5 cs=0x3b
        SS 3 data 3 ok
        #GP(0x40) at SS 3 data 3 with RPL 0+5 cs=0x3b
        #GP(0x90) at SS 3 read-only+5 cs=0x3b
        #GP(0x98) at SS 3 code+5 cs=0x3b
        #GP(0xa0) at SS 3 execute-only+5 cs=0x3b
        #GP(0xa8) at SS 3 conforming 0+5 cs=0x3b
        #GP(0xb0) at SS 3 conforming execute-only+5 cs=0x3b
        #SS(0xb8) at SS 3 absent+5 cs=0x3b
        #GP(0xc0) at SS 3 absent of level 0+5 cs=0x3b
        #GP(0xc8) at SS 3 absent code+5 cs=0x3b
        #GP(0x68) at SS 3 TSS+5 cs=0x3b
        #GP(0xfff8) at SS 3 beyond+5 cs=0x3b
        SS 3 LDT entry ok
        #GP(0x104) at SS 3 beyond the LDT+5 cs=0x3b
        #GP(0x10) at pop ds+2
        #GP(0x40) at pop ss+2
        #GP(0x40) at lss
        lfs ok
        eax=0x12345678
        access byte=0xf3
        #NP(0xd0) at absent is not accessed+5
        access byte=0x72
        ",
    );
}

/// Volume 2, LLDT, LTR, SLDT, STR, LGDT: types, presence, privilege, #UD outside protected mode (see `modes.rs`).
#[test]
fn loads_of_system_segments() {
    let mut g = Guest::new();
    let absent_ldt = g.gdt(segment(LDT, 0xff, absent(access::LDT), size::B16));
    let absent_tss = g.gdt(segment(TSS32, 0x67, absent(access::TSS32), size::B16));
    let busy = g.gdt(segment(TSS32, 0x67, access::TSS32 | 2, size::B16));
    let tss16 = g.gdt(segment(TSS32, 0x2b, access::TSS16, size::B16));
    let tiny = g.gdt(segment(TSS32, 1, access::TSS32, size::B16));
    let in_ldt = g.ldt(3, segment(TSS32, 0x67, access::TSS32, size::B16));
    g.qemu_differs(
        &[
            ("#GP(0x0) at LTR null+2", "LTR null ok"),
            ("#GP(0x0) at LTR null with RPL+5", "LTR null with RPL ok"),
        ],
        "LTR takes a null selector",
    );
    g.main(Main::Protected, |p| {
        for (name, sel) in [
            ("null", 0u16),
            ("null with RPL", 3),
            ("LDT", LDTR),
            ("absent", absent_ldt),
            ("data", DATA0),
            ("TSS", TR32),
            ("beyond", 0xfff8),
            ("in the LDT", 0xc),
        ] {
            p.attempt(&format!("LLDT {name}"), |p| asm!(p; mov eax, u32::from(sel); lldt ax));
            asm!(p; xor eax, eax; sldt ax);
            p.show("ldt", eax);
        }
        asm!(p; mov eax, u32::from(LDTR); lldt ax);
        for (name, sel) in [
            ("busy", busy),
            ("absent", absent_tss),
            ("LDT", LDTR),
            ("code", CODE0),
            ("beyond", 0xfff8),
            ("in the LDT", in_ldt),
            ("16-bit", tss16),
            ("limit 1", tiny),
        ] {
            p.attempt(&format!("LTR {name}"), |p| asm!(p; mov eax, u32::from(sel); ltr ax));
            asm!(p; xor eax, eax; str ax);
            p.show("tr", eax);
        }
        asm!(p; movzx eax, byte_ptr(GDT + u32::from(tss16) + 5));
        p.show("access of 16-bit", eax);
        p.attempt("LTR null", |p| asm!(p; xor eax, eax; ltr ax));
        p.attempt("LTR null with RPL", |p| asm!(p; mov eax, 2; ltr ax));
        asm!(p; and byte_ptr(GDT + u32::from(TR32) + 5), !2i32; mov eax, u32::from(TR32); ltr ax);
        p.attempt_at(3, "LLDT at 3", |p| asm!(p; xor eax, eax; lldt ax));
        p.attempt_at(3, "LTR at 3", |p| asm!(p; xor eax, eax; ltr ax));
        p.attempt_at(3, "LGDT at 3", |p| asm!(p; lgdt fword_ptr(Guest::GDT_OPERAND)));
        p.attempt_at(3, "LIDT at 3", |p| asm!(p; lidt fword_ptr(Guest::IDT32_OPERAND)));
        p.attempt_at(3, "SGDT at 3", |p| asm!(p; mov eax, u32::from(DATA3); sub esp, 8; sgdt fword_ptr(esp)));
        p.attempt_at(3, "LMSW at 3", |p| asm!(p; mov ax, 1; lmsw ax));
        p.attempt_at(3, "CLTS at 3", |p| asm!(p; clts));
        p.attempt_at(3, "HLT at 3", |p| asm!(p; hlt));
        p.attempt_at(3, "INVLPG at 3", |p| asm!(p; invlpg byte_ptr(0)));
        p.attempt_at(3, "WBINVD at 3", |p| asm!(p; wbinvd));
        p.attempt_at(3, "MOV CR0 at 3", |p| asm!(p; mov eax, cr0));
        p.attempt_at(3, "MOV DR7 at 3", |p| asm!(p; mov eax, dr7));
        p.attempt_at(3, "RDMSR at 3", |p| asm!(p; mov ecx, 0x1b; rdmsr));
        // CR4.UMIP: volume 2, SGDT, SIDT, SLDT, SMSW, STR at CPL > 0.
        p.set_cr4(1 << 11);
        p.attempt_at(3, "UMIP SGDT", |p| asm!(p; sub esp, 8; sgdt fword_ptr(esp)));
        p.attempt_at(3, "UMIP SIDT", |p| asm!(p; sub esp, 8; sidt fword_ptr(esp)));
        p.attempt_at(3, "UMIP SLDT", |p| asm!(p; sldt ax));
        p.attempt_at(3, "UMIP SMSW", |p| asm!(p; smsw ax));
        p.attempt_at(3, "UMIP STR", |p| asm!(p; str ax));
        p.attempt("UMIP at level 0", |p| asm!(p; sldt ax; smsw ax; str ax));
    });
    g.check(
        "
        LLDT null ok
        ldt=0x0
        LLDT null with RPL ok
        ldt=0x3
        LLDT LDT ok
        ldt=0x80
        #NP(0x90) at LLDT absent+5
        ldt=0x80
        #GP(0x10) at LLDT data+5
        ldt=0x80
        #GP(0x68) at LLDT TSS+5
        ldt=0x80
        #GP(0xfff8) at LLDT beyond+5
        ldt=0x80
        #GP(0xc) at LLDT in the LDT+5
        ldt=0x80
        #GP(0xa0) at LTR busy+5
        tr=0x68
        #NP(0x98) at LTR absent+5
        tr=0x68
        #GP(0x80) at LTR LDT+5
        tr=0x68
        #GP(0x8) at LTR code+5
        tr=0x68
        #GP(0xfff8) at LTR beyond+5
        tr=0x68
        #GP(0x1c) at LTR in the LDT+5
        tr=0x68
        LTR 16-bit ok
        tr=0xa8
        LTR limit 1 ok
        tr=0xb0
        access of 16-bit=0x83
        #GP(0x0) at LTR null+2
        #GP(0x0) at LTR null with RPL+5
        #GP(0x0) at LLDT at 3+2 cs=0x3b
        #GP(0x0) at LTR at 3+2 cs=0x3b
        #GP(0x0) at LGDT at 3 cs=0x3b
        #GP(0x0) at LIDT at 3 cs=0x3b
        SGDT at 3 ok
        #GP(0x0) at LMSW at 3+4 cs=0x3b
        #GP(0x0) at CLTS at 3 cs=0x3b
        #GP(0x0) at HLT at 3 cs=0x3b
        #GP(0x0) at INVLPG at 3 cs=0x3b
        #GP(0x0) at WBINVD at 3 cs=0x3b
        #GP(0x0) at MOV CR0 at 3 cs=0x3b
        #GP(0x0) at MOV DR7 at 3 cs=0x3b
        #GP(0x0) at RDMSR at 3+5 cs=0x3b
        #GP(0x0) at UMIP SGDT+3 cs=0x3b
        #GP(0x0) at UMIP SIDT+3 cs=0x3b
        #GP(0x0) at UMIP SLDT cs=0x3b
        #GP(0x0) at UMIP SMSW cs=0x3b
        #GP(0x0) at UMIP STR cs=0x3b
        UMIP at level 0 ok
        ",
    );
}

/// Volume 2, LAR, LSL, VERR, VERW: which types are valid, privilege by CPL and RPL but for conforming code; ZF tells,
/// the destination stays otherwise. (LAR gives the bits of mask 00F0FF00; bits 19:16 are not defined.)
#[test]
fn pointer_validation() {
    let mut g = Guest::new();
    let mut sels = vec![("null", 0u16), ("beyond", 0xfff8), ("LDT 1", 0xc), ("LDT beyond", 0x7fc)];
    for (name, a) in [
        ("data 0", access::DATA),
        ("data 3", dpl(access::DATA, 3)),
        ("read-only 3", dpl(access::READ_ONLY, 3)),
        ("down 3", dpl(access::DOWN, 3)),
        ("execute-only 3", dpl(access::EXECUTE, 3)),
        ("code 3", dpl(access::CODE, 3)),
        ("code 1", dpl(access::CODE, 1)),
        ("conforming 0", access::CONFORMING),
        ("absent 3", dpl(absent(access::DATA), 3)),
    ] {
        let sel =
            g.gdt(segment(0x1234_5678, 0x9_abcd, a, if a == access::DATA { size::B32 } else { size::P32 }));
        sels.push((name, sel));
    }
    let names: [&'static str; 16] = [
        "type 0", "type 1", "type 2", "type 3", "type 4", "type 5", "type 6", "type 7", "type 8", "type 9",
        "type a", "type b", "type c", "type d", "type e", "type f",
    ];
    for (n, name) in names.into_iter().enumerate() {
        sels.push((name, g.gdt(segment(0x100, 0x2_3456, 0xe0 | n as u8, size::P32))));
    }
    g.ldt(1, flat(dpl(access::DATA, 3), size::B16));
    let code = |p: &mut Prog, rpl: u16| {
        for (name, sel) in &sels {
            let sel = u32::from(sel | rpl);
            asm!(p; mov ecx, sel; mov ebx, 0x7777_7777; lar ebx, ecx; setz dl; and ebx, 0xf0_ff00);
            asm!(p; mov esi, 0x7777_7777; lsl esi, ecx; setz dh; verr cx; setz al; verw cx; setz ah; movzx edx, dx; movzx eax, ax);
            p.show_all(&format!("{name}: LAR LSL"), &[ebx, esi, edx, eax]);
        }
    };
    g.main(Main::Protected, |p| {
        asm!(p; mov eax, u32::from(LDTR); lldt ax);
        p.say("level 0");
        code(p, 0);
        p.say("level 0, RPL 3");
        code(p, 3);
        p.say("level 3");
        p.user(|p| code(p, 0));
        // 16-bit operands give the low words.
        asm!(p; mov ecx, u32::from(DATA0); mov ebx, 0x7777_7777; lar bx, cx; mov esi, 0x7777_7777; lsl si, cx);
        p.show_all("16-bit LAR LSL", &[ebx, esi]);
        asm!(p; mov eax, 0x10; mov ecx, 0x13; arpl ax, cx; setz dl; movzx edx, dl);
        p.show_all("ARPL up", &[eax, edx]);
        asm!(p; mov eax, 0x13; mov ecx, 0x10; arpl ax, cx; setz dl; movzx edx, dl);
        p.show_all("ARPL stays", &[eax, edx]);
    });
    g.check(
        "
        level 0
        null: LAR LSL=0x707700 0x77777777 0x0 0x0
        beyond: LAR LSL=0x707700 0x77777777 0x0 0x0
        LDT 1: LAR LSL=0xf300 0xfffff 0x101 0x101
        LDT beyond: LAR LSL=0x707700 0x77777777 0x0 0x0
        data 0: LAR LSL=0x409300 0x9abcd 0x101 0x101
        data 3: LAR LSL=0xc0f300 0x9abcdfff 0x101 0x101
        read-only 3: LAR LSL=0xc0f100 0x9abcdfff 0x101 0x1
        down 3: LAR LSL=0xc0f700 0x9abcdfff 0x101 0x101
        execute-only 3: LAR LSL=0xc0f900 0x9abcdfff 0x101 0x0
        code 3: LAR LSL=0xc0fb00 0x9abcdfff 0x101 0x1
        code 1: LAR LSL=0xc0bb00 0x9abcdfff 0x101 0x1
        conforming 0: LAR LSL=0xc09f00 0x9abcdfff 0x101 0x1
        absent 3: LAR LSL=0xc07300 0x9abcdfff 0x101 0x101
        type 0: LAR LSL=0x707700 0x77777777 0x0 0x0
        type 1: LAR LSL=0xc0e100 0x23456fff 0x101 0x0
        type 2: LAR LSL=0xc0e200 0x23456fff 0x101 0x0
        type 3: LAR LSL=0xc0e300 0x23456fff 0x101 0x0
        type 4: LAR LSL=0xc0e400 0x77777777 0x1 0x0
        type 5: LAR LSL=0xc0e500 0x77777777 0x1 0x0
        type 6: LAR LSL=0x707700 0x77777777 0x0 0x0
        type 7: LAR LSL=0x707700 0x77777777 0x0 0x0
        type 8: LAR LSL=0x707700 0x77777777 0x0 0x0
        type 9: LAR LSL=0xc0e900 0x23456fff 0x101 0x0
        type a: LAR LSL=0x707700 0x77777777 0x0 0x0
        type b: LAR LSL=0xc0eb00 0x23456fff 0x101 0x0
        type c: LAR LSL=0xc0ec00 0x77777777 0x1 0x0
        type d: LAR LSL=0x707700 0x77777777 0x0 0x0
        type e: LAR LSL=0x707700 0x77777777 0x0 0x0
        type f: LAR LSL=0x707700 0x77777777 0x0 0x0
        level 0, RPL 3
        null: LAR LSL=0x707700 0x77777777 0x0 0x0
        beyond: LAR LSL=0x707700 0x77777777 0x0 0x0
        LDT 1: LAR LSL=0xf300 0xfffff 0x101 0x101
        LDT beyond: LAR LSL=0x707700 0x77777777 0x0 0x0
        data 0: LAR LSL=0x707700 0x77777777 0x0 0x0
        data 3: LAR LSL=0xc0f300 0x9abcdfff 0x101 0x101
        read-only 3: LAR LSL=0xc0f100 0x9abcdfff 0x101 0x1
        down 3: LAR LSL=0xc0f700 0x9abcdfff 0x101 0x101
        execute-only 3: LAR LSL=0xc0f900 0x9abcdfff 0x101 0x0
        code 3: LAR LSL=0xc0fb00 0x9abcdfff 0x101 0x1
        code 1: LAR LSL=0x707700 0x77777777 0x0 0x0
        conforming 0: LAR LSL=0xc09f00 0x9abcdfff 0x101 0x1
        absent 3: LAR LSL=0xc07300 0x9abcdfff 0x101 0x101
        type 0: LAR LSL=0x707700 0x77777777 0x0 0x0
        type 1: LAR LSL=0xc0e100 0x23456fff 0x101 0x0
        type 2: LAR LSL=0xc0e200 0x23456fff 0x101 0x0
        type 3: LAR LSL=0xc0e300 0x23456fff 0x101 0x0
        type 4: LAR LSL=0xc0e400 0x77777777 0x1 0x0
        type 5: LAR LSL=0xc0e500 0x77777777 0x1 0x0
        type 6: LAR LSL=0x707700 0x77777777 0x0 0x0
        type 7: LAR LSL=0x707700 0x77777777 0x0 0x0
        type 8: LAR LSL=0x707700 0x77777777 0x0 0x0
        type 9: LAR LSL=0xc0e900 0x23456fff 0x101 0x0
        type a: LAR LSL=0x707700 0x77777777 0x0 0x0
        type b: LAR LSL=0xc0eb00 0x23456fff 0x101 0x0
        type c: LAR LSL=0xc0ec00 0x77777777 0x1 0x0
        type d: LAR LSL=0x707700 0x77777777 0x0 0x0
        type e: LAR LSL=0x707700 0x77777777 0x0 0x0
        type f: LAR LSL=0x707700 0x77777777 0x0 0x0
        level 3
        null: LAR LSL=0x707700 0x77777777 0x0 0x0
        beyond: LAR LSL=0x707700 0x77777777 0x0 0x0
        LDT 1: LAR LSL=0xf300 0xfffff 0x101 0x101
        LDT beyond: LAR LSL=0x707700 0x77777777 0x0 0x0
        data 0: LAR LSL=0x707700 0x77777777 0x0 0x0
        data 3: LAR LSL=0xc0f300 0x9abcdfff 0x101 0x101
        read-only 3: LAR LSL=0xc0f100 0x9abcdfff 0x101 0x1
        down 3: LAR LSL=0xc0f700 0x9abcdfff 0x101 0x101
        execute-only 3: LAR LSL=0xc0f900 0x9abcdfff 0x101 0x0
        code 3: LAR LSL=0xc0fb00 0x9abcdfff 0x101 0x1
        code 1: LAR LSL=0x707700 0x77777777 0x0 0x0
        conforming 0: LAR LSL=0xc09f00 0x9abcdfff 0x101 0x1
        absent 3: LAR LSL=0xc07300 0x9abcdfff 0x101 0x101
        type 0: LAR LSL=0x707700 0x77777777 0x0 0x0
        type 1: LAR LSL=0xc0e100 0x23456fff 0x101 0x0
        type 2: LAR LSL=0xc0e200 0x23456fff 0x101 0x0
        type 3: LAR LSL=0xc0e300 0x23456fff 0x101 0x0
        type 4: LAR LSL=0xc0e400 0x77777777 0x1 0x0
        type 5: LAR LSL=0xc0e500 0x77777777 0x1 0x0
        type 6: LAR LSL=0x707700 0x77777777 0x0 0x0
        type 7: LAR LSL=0x707700 0x77777777 0x0 0x0
        type 8: LAR LSL=0x707700 0x77777777 0x0 0x0
        type 9: LAR LSL=0xc0e900 0x23456fff 0x101 0x0
        type a: LAR LSL=0x707700 0x77777777 0x0 0x0
        type b: LAR LSL=0xc0eb00 0x23456fff 0x101 0x0
        type c: LAR LSL=0xc0ec00 0x77777777 0x1 0x0
        type d: LAR LSL=0x707700 0x77777777 0x0 0x0
        type e: LAR LSL=0x707700 0x77777777 0x0 0x0
        type f: LAR LSL=0x707700 0x77777777 0x0 0x0
        16-bit LAR LSL=0x77779300 0x7777ffff
        ARPL up=0x13 0x1
        ARPL stays=0x13 0x0
        ",
    );
}

/// 5.3, 5.5: accesses beyond the limit are #GP(0), through SS #SS(0); expand-down segments have their valid offsets
/// above the limit, up to FFFFH or FFFFFFFFH by the B bit; writes to read-only data and to code, reads of execute-only
/// code, any access through a null selector are #GP(0).
#[test]
fn limits_and_rights_of_accesses() {
    let mut g = Guest::new();
    let base = SCRATCH;
    let up = g.gdt(segment(base, 0xfff, access::DATA, size::B32));
    let pages = g.gdt(segment(base, 1, access::DATA, size::P32));
    let down = g.gdt(segment(base, 0xfff, access::DOWN, size::B32));
    let down16 = g.gdt(segment(base, 0xfff, access::DOWN, size::B16));
    let down_ro = g.gdt(segment(base, 0xfff, 0x95, size::B32));
    let read_only = g.gdt(segment(base, 0xfff, access::READ_ONLY, size::B32));
    let code = g.gdt(segment(base, 0xfff, access::CODE, size::B32));
    let execute = g.gdt(segment(base, 0xfff, access::EXECUTE, size::B32));
    let up3 = g.gdt(segment(base, 0xfff, dpl(access::DATA, 3), size::B32)) | 3;
    let down3 = g.gdt(segment(base, 0xfff, dpl(access::DOWN, 3), size::B32)) | 3;
    let tiny_code = g.gdt(segment(0, 0x8fff, access::CODE, size::B32));
    g.low32(|p| {
        p.pad_with_nops_to(0x9000 - 6);
        p.name("last");
        asm!(p; nop; nop; mov eax, 0x1234_5678);
    });
    g.main(Main::Protected, |p| {
        let load = |p: &mut Prog, sel: u16| asm!(p; mov eax, u32::from(sel); mov fs, ax);
        for (name, sel, first, end) in [("up", up, 0u32, 0x1000u32), ("pages", pages, 0, 0x2000), ("down 16", down16, 0x1000, 0x1_0000)] {
            load(p, sel);
            p.attempt(&format!("{name}: last byte"), |p| asm!(p; mov al, byte_ptr(end - 1).fs()));
            p.attempt(&format!("{name}: byte behind"), |p| asm!(p; mov al, byte_ptr(end).fs()));
            p.attempt(&format!("{name}: last word"), |p| asm!(p; mov ax, word_ptr(end - 2).fs()));
            p.attempt(&format!("{name}: word at the end"), |p| asm!(p; mov ax, word_ptr(end - 1).fs()));
            p.attempt(&format!("{name}: dword at the end"), |p| asm!(p; mov dword_ptr(end - 3).fs(), eax));
            p.attempt(&format!("{name}: first"), |p| asm!(p; mov byte_ptr(first).fs(), al));
            p.attempt(&format!("{name}: before the first"), |p| asm!(p; mov al, byte_ptr(first.wrapping_sub(1)).fs()));
            p.attempt(&format!("{name}: far"), |p| asm!(p; mov al, byte_ptr(0x7fff_ffff).fs()));
        }
        load(p, down);
        p.attempt("down: at the limit", |p| asm!(p; mov al, byte_ptr(0xfff).fs()));
        p.attempt("down: word across the limit", |p| asm!(p; mov ax, word_ptr(0xfff).fs()));
        p.attempt("down: above", |p| asm!(p; mov al, byte_ptr(0x1000).fs()));
        p.attempt("down: top", |p| asm!(p; mov ecx, -(SCRATCH as i32) + 0x1000; mov al, byte_ptr(ecx).fs()));
        load(p, down_ro);
        p.attempt("down read-only: read", |p| asm!(p; mov al, byte_ptr(0x1000).fs()));
        p.attempt("down read-only: write", |p| asm!(p; mov byte_ptr(0x1000).fs(), al));
        for (name, sel) in [("read-only", read_only), ("code", code)] {
            load(p, sel);
            p.attempt(&format!("{name}: read"), |p| asm!(p; mov al, byte_ptr(0).fs()));
            p.attempt(&format!("{name}: write"), |p| asm!(p; mov byte_ptr(0).fs(), al));
            p.attempt(&format!("{name}: modify"), |p| asm!(p; inc byte_ptr(0).fs()));
            p.attempt(&format!("{name}: bit test"), |p| asm!(p; bt dword_ptr(0).fs(), 1));
        }
        load(p, 0);
        p.attempt("null: read", |p| asm!(p; mov al, byte_ptr(0x1000).fs()));
        p.attempt("null: LEA", |p| asm!(p; lea eax, dword_ptr(0x1000).fs()));
        // A bit string's offset counts, too.
        load(p, up);
        p.attempt("bit offset", |p| asm!(p; mov ecx, 0x1000 * 8; bt dword_ptr(0).fs(), ecx));
        p.attempt("negative bit offset", |p| asm!(p; mov ecx, -1; bt dword_ptr(0).fs(), ecx));
        // SS, at level 3 so that the handler has a good stack.
        let stack = |p: &mut Prog, sel: u16, top: u32| asm!(p; mov eax, u32::from(sel); mov ss, ax; mov esp, top);
        for (name, sel, first, end) in [("stack", up3, 0u32, 0x1000u32), ("stack down", down3, 0x1000, 0x2000)] {
            p.user(|p| {
                stack(p, sel, end - 4);
                asm!(p; pop eax; mov esp, first + 4; push eax);
                p.name(&format!("{name}: push beyond"));
                asm!(p; push eax);
            });
            p.user(|p| {
                stack(p, sel, first);
                p.name(&format!("{name}: call beyond"));
                asm!(p; call u64::from(IMAGE));
            });
            p.user(|p| {
                stack(p, sel, first + 31);
                p.name(&format!("{name}: PUSHAD beyond"));
                asm!(p; pushad);
            });
            p.user(|p| {
                stack(p, sel, first + 8);
                asm!(p; mov ebp, 0x7000);
                p.name(&format!("{name}: ENTER beyond"));
                asm!(p; enter 8, 1);
            });
        }
        p.user(|p| {
            stack(p, up3, 0xffe);
            p.name("pop beyond");
            asm!(p; pop eax);
        });
        p.user(|p| {
            stack(p, up3, 0xffe);
            asm!(p; mov ebp, 0xffd);
            p.name("EBP beyond");
            asm!(p; mov eax, dword_ptr(ebp));
        });
        p.user(|p| {
            stack(p, up3, 0x100);
            p.name("ESP with DS");
            asm!(p; mov eax, dword_ptr(esp + 0x5000).ds());
            p.name("ESP beyond");
            asm!(p; mov eax, dword_ptr(esp + 0x5000));
        });
        p.user(|p| {
            stack(p, up3, 0xffc);
            p.name("RET beyond");
            asm!(p; pop eax; ret);
        });
        // Execute-only code can run and cannot be read: by CS override.
        p.attempt("execute-only", |p| {
            asm!(p; mov byte_ptr(SCRATCH), 0x2e; mov byte_ptr(SCRATCH + 1), 0xa0; mov dword_ptr(SCRATCH + 2), 0; jmp_far execute, 0);
        });
        p.attempt("fetch at the limit", |p| asm!(p; jmp_far tiny_code, 0x9000 - 6));
    });
    g.alias(0, "scratch");
    g.check_manual(
        "
        up: last byte ok
        #GP(0x0) at up: byte behind
        up: last word ok
        #GP(0x0) at up: word at the end
        #GP(0x0) at up: dword at the end
        up: first ok
        #GP(0x0) at up: before the first
        #GP(0x0) at up: far
        pages: last byte ok
        #GP(0x0) at pages: byte behind
        pages: last word ok
        #GP(0x0) at pages: word at the end
        #GP(0x0) at pages: dword at the end
        pages: first ok
        #GP(0x0) at pages: before the first
        #GP(0x0) at pages: far
        down 16: last byte ok
        #GP(0x0) at down 16: byte behind
        down 16: last word ok
        #GP(0x0) at down 16: word at the end
        #GP(0x0) at down 16: dword at the end
        down 16: first ok
        #GP(0x0) at down 16: before the first
        #GP(0x0) at down 16: far
        #GP(0x0) at down: at the limit
        #GP(0x0) at down: word across the limit
        down: above ok
        down: top ok
        down read-only: read ok
        #GP(0x0) at down read-only: write
        read-only: read ok
        #GP(0x0) at read-only: write
        #GP(0x0) at read-only: modify
        read-only: bit test ok
        code: read ok
        #GP(0x0) at code: write
        #GP(0x0) at code: modify
        code: bit test ok
        #GP(0x0) at null: read
        null: LEA ok
        #GP(0x0) at bit offset+5
        #GP(0x0) at negative bit offset+5
        #SS(0x0) at stack: push beyond cs=0x3b
        #SS(0x0) at stack: call beyond cs=0x3b
        #SS(0x0) at stack: PUSHAD beyond cs=0x3b
        #SS(0x0) at stack: ENTER beyond cs=0x3b
        #SS(0x0) at stack down: push beyond cs=0x3b
        #SS(0x0) at stack down: call beyond cs=0x3b
        #SS(0x0) at stack down: PUSHAD beyond cs=0x3b
        #SS(0x0) at stack down: ENTER beyond cs=0x3b
        #SS(0x0) at pop beyond cs=0x3b
        #SS(0x0) at EBP beyond cs=0x3b
        #SS(0x0) at ESP beyond cs=0x3b
        #SS(0x0) at RET beyond+1 cs=0x3b
        #GP(0x0) at scratch cs=0xc8
        #GP(0x0) at last+2 cs=0xe0
        ",
        "TCG checks neither limits nor rights of accesses",
    );
}
