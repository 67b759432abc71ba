//! Details that makers of processors settle differently, or that are easily missed: what a return to an outer level
//! leaves in data segments, stacks whose pointer wraps, how wide addresses are in registers that hold them, and
//! decoding by the model's vendor.
//!
//! SDM volume 2, IRET, RET, ENTER, PUSHA, CALL, JMP, LSS, PINSRD; volume 1, 3.3.7.1; AMD APM volumes 3 and 4 of the
//! same.
use iced_x86::code_asm::*;
use mynah_machinery::{asm, *};

const FS_BASE: u32 = 0xc000_0100;
const GS_BASE: u32 = 0xc000_0101;
const INTEL: &str = "max,vendor=GenuineIntel";

/// IRET and RET to an outer level: a null selector becomes 0, as does that of a segment that the level may not use. FS
/// and GS keep their base.
#[test]
fn data_segments_after_a_return_to_an_outer_level() {
    let mut g = Guest::new();
    let inner = g.gdt(flat(access::DATA, size::P32));
    let outer = g.gdt(flat(dpl(access::DATA, 3), size::P32)) | 3;
    let conforming = g.gdt(flat(access::CONFORMING, size::P32));
    let sets = [
        ("null", [0u16, 0, 0, 0]),
        ("null with RPL", [1, 2, 3, 1]),
        ("of level 0", [inner; 4]),
        ("of level 3", [outer; 4]),
        ("conforming", [conforming; 4]),
    ];
    g.main(Main::Long(PageTables::new(Format::Level4, true)), |p| {
        p.set_cr4(1 << 16);
        for (name, [e, d, f, gs_sel]) in sets {
            for far in [false, true] {
                asm!(p; mov eax, u32::from(e); mov es, ax; mov eax, u32::from(d); mov ds, ax;
                    mov eax, u32::from(f); mov fs, ax; mov eax, u32::from(gs_sel); mov gs, ax);
                p.wrmsr(FS_BASE, 0x1234_5678_9abc);
                p.wrmsr(GS_BASE, 0xffff_8765_4321_0000);
                p.say(&format!("{name}, {}", if far { "RETF" } else { "IRET" }));
                let shown = |p: &mut Prog| {
                    p.show_segments();
                    asm!(p; rdfsbase rax; rdgsbase rcx);
                    p.show64("fs", rax);
                    p.show64("gs", rcx);
                };
                if far {
                    p.guarded(|p| {
                        let mut start = p.a.create_label();
                        let at = p.address(start);
                        asm!(p; push i32::from(DATA3); push STACKS[3] as i32; push i32::from(CODE64_3); push at; db &[0x48, 0xcb]);
                        p.place(&mut start);
                        shown(p);
                        p.quit();
                    });
                } else {
                    p.user(shown);
                }
            }
        }
    });
    // What is left of null selectors in FS and GS.
    let log = |rpl: u16| {
        let mut log = String::new();
        for (name, [e, d, f, gs_sel]) in sets {
            for how in ["IRET", "RETF"] {
                let kept = |sel: u16| if sel == outer || sel == conforming { sel } else { 0 };
                let based = |sel: u16| kept(sel) | if sel < 4 { sel & rpl } else { 0 };
                log += &format!("{name}, {how}\ncs ss ds es fs gs=0x53 0x43 {:#x} ", kept(d));
                log += &format!("{:#x} {:#x} {:#x}\n", kept(e), based(f), based(gs_sel));
                log += "fs=0x123456789abc\ngs=0xffff876543210000\n";
            }
        }
        log
    };
    g.qemu_deviates(&log(3), "null selectors of FS and GS keep their RPL");
    g.check(&log(0));
}

/// 16-bit stacks whose pointer wraps, with operands of 16 and of 32 bits: the upper half of ESP stays, and is part of
/// what ENTER makes EBP.
#[test]
fn stacks_that_wrap() {
    let mut g = Guest::new();
    let stack = g.gdt(segment(SCRATCH, 0xffff, access::DATA, size::B16));
    // Bytes of an instruction, and the stack pointer before it.
    let cases: [(&str, &[u8], u32); 12] = [
        ("enter 10h, 0", &[0xc8, 0x10, 0, 0], 0x1234_0000),
        ("enter 10h, 0, upper half 0", &[0xc8, 0x10, 0, 0], 0),
        ("enter 10h, 1", &[0xc8, 0x10, 0, 1], 0x1234_0004),
        ("enter 10h, 3", &[0xc8, 0x10, 0, 3], 0x1234_0008),
        ("enter 10h, 3 within", &[0xc8, 0x10, 0, 3], 0x1234_0010),
        ("o16 enter 10h, 0", &[0x66, 0xc8, 0x10, 0, 0], 0x1234_0000),
        ("o16 enter 10h, 2", &[0x66, 0xc8, 0x10, 0, 2], 0x1234_0002),
        ("pusha, leave", &[0x60, 0xc9], 0x1234_0008),
        ("o16 pusha, o16 leave", &[0x66, 0x60, 0x66, 0xc9], 0x1234_0008),
        ("push, pop", &[0x50, 0x50, 0x58], 0x1234_0004),
        ("call", &[0xe8, 0, 0, 0, 0], 0x1234_0000),
        ("popa behind pusha", &[0x60, 0x61], 0x1234_0010),
    ];
    g.main(Main::Protected, |p| {
        for (name, bytes, top) in cases {
            asm!(p; mov esi, esp; mov edi, 0xd1d1_d1d1u32; mov ebp, 0x5678_0100; mov eax, u32::from(stack);
                mov ss, ax; mov esp, top; db bytes; mov ecx, esp; mov edx, ebp; mov eax, u32::from(DATA0); mov ss, ax;
                mov esp, esi);
            p.show_all(name, &[ecx, edx]);
        }
    });
    g.qemu_differs(
        &[
            ("enter 10h, 0=0x1234ffec 0x1234fffc", "enter 10h, 0=0x1234ffec 0x1233fffc"),
            ("enter 10h, 0, upper half 0=0xffec 0xfffc", "enter 10h, 0, upper half 0=0xffec 0xfffffffc"),
        ],
        "the borrow of the stack pointer reaches EBP",
    );
    g.check(
        "
        enter 10h, 0=0x1234ffec 0x1234fffc
        enter 10h, 0, upper half 0=0xffec 0xfffc
        enter 10h, 1=0x1234ffec 0x12340000
        enter 10h, 3=0x1234ffe8 0x12340004
        enter 10h, 3 within=0x1234fff0 0x1234000c
        o16 enter 10h, 0=0x1234ffee 0x5678fffe
        o16 enter 10h, 2=0x1234ffec 0x56780000
        pusha, leave=0x12340104 0x0
        o16 pusha, o16 leave=0x12340102 0x56780000
        push, pop=0x12340000 0x56780100
        call=0x1234fffc 0x56780100
        popa behind pusha=0x12340010 0x56780100
        ",
    );
}

/// PUSHA one of whose elements lies across the limit writes nothing.
#[test]
fn pusha_across_the_limit() {
    let mut g = Guest::new();
    let stack = g.gdt(segment(SCRATCH, 0xffff, dpl(access::DATA, 3), size::B16)) | 3;
    g.main(Main::Protected, |p| {
        for (name, bytes, top) in [("pushad", &[0x60u8][..], 6), ("pusha", &[0x66, 0x60], 5)] {
            asm!(p; mov dword_ptr(SCRATCH), 0x5a5a_5a5a; mov dword_ptr(SCRATCH + 4), 0x5a5a_5a5a);
            p.attempt_at(3, name, |p| {
                asm!(p; mov eax, u32::from(stack); mov ss, ax; mov esp, top; db bytes);
            });
            p.show_mem("there", SCRATCH);
            p.show_mem("there", SCRATCH + 4);
        }
    });
    g.check_manual(
        "
        #SS(0x0) at pushad+13 cs=0x3b
        there=0x5a5a5a5a
        there=0x5a5a5a5a
        #SS(0x0) at pusha+13 cs=0x3b
        there=0x5a5a5a5a
        there=0x5a5a5a5a
        ",
        "limits of stacks are not checked",
    );
}

/// SDM volume 1, 3.3.7.1: registers that hold linear addresses take those of 57 bits where the processor has them, also
/// with 4-level paging.
fn wide_bases(p: &mut Prog, tables: (u16, u16), tss: (u16, u16), pcid: bool) {
    const WIDE: u64 = 1 << 55;
    const BEYOND: u64 = 1 << 56;
    for (name, base) in [("57 bits", WIDE), ("beyond", BEYOND)] {
        asm!(p; mov rax, base; mov word_ptr(VARS), 0xfff; mov qword_ptr(VARS + 2), rax);
        p.attempt(&format!("lgdt {name}"), |p| {
            asm!(p; lgdt fword_ptr(VARS); sgdt fword_ptr(VARS + 16); lgdt fword_ptr(Guest::GDT_OPERAND));
            asm!(p; mov rax, qword_ptr(VARS + 18));
            p.show64("gdt", rax);
        });
        p.attempt(&format!("lidt {name}"), |p| {
            asm!(p; lidt fword_ptr(VARS); lidt fword_ptr(Guest::IDT64_OPERAND));
        });
        p.attempt(&format!("wrfsbase {name}"), |p| asm!(p; mov rax, base; wrfsbase rax));
        p.attempt(&format!("wrmsr {name}"), |p| p.wrmsr(GS_BASE, base));
        let (ldt, tr) = if base == WIDE { (tables.0, tss.0) } else { (tables.1, tss.1) };
        p.attempt(&format!("lldt {name}"), |p| asm!(p; mov eax, u32::from(ldt); lldt ax));
        p.attempt(&format!("ltr {name}"), |p| asm!(p; mov eax, u32::from(tr); ltr ax));
        if pcid {
            asm!(p; mov rax, base; mov qword_ptr(VARS + 8), rax; mov qword_ptr(VARS), 0; xor eax, eax);
            p.attempt(&format!("invpcid {name}"), |p| asm!(p; invpcid rax, xmmword_ptr(VARS)));
        }
    }
    // What is beyond the paging mode's addresses is held, and not accessed.
    p.attempt("an access", |p| {
        asm!(p; mov rax, WIDE; wrfsbase rax; db &[0x64, 0x48, 0x8b, 0x04, 0x25, 0, 0, 0, 0]);
    });
}

fn wide_tables(g: &mut Guest) -> ((u16, u16), (u16, u16)) {
    let at = |g: &mut Guest, a: u8, high: u64| g.gdt16(segment(0x1000, 0xff, a, size::B16), high);
    let ldt = (at(g, access::LDT, 1 << 23), at(g, access::LDT, 1 << 24));
    let tss = (at(g, access::TSS32, 1 << 23), at(g, access::TSS32, 1 << 24));
    (ldt, tss)
}

#[test]
fn bases_of_57_bits_with_4_level_paging() {
    let mut g = Guest::new();
    let (ldt, tss) = wide_tables(&mut g);
    let (bad_ldt, bad_tss) = (ldt.1, tss.1);
    g.main(Main::Long(PageTables::new(Format::Level4, false)), |p| {
        p.set_cr4(1 << 16);
        wide_bases(p, ldt, tss, true);
    });
    g.check_manual(
        &format!(
            "
            gdt=0x80000000000000
            lgdt 57 bits ok
            lidt 57 bits ok
            wrfsbase 57 bits ok
            wrmsr 57 bits ok
            lldt 57 bits ok
            ltr 57 bits ok
            invpcid 57 bits ok
            #GP(0x0) at lgdt beyond
            #GP(0x0) at lidt beyond
            #GP(0x0) at wrfsbase beyond+10
            #GP(0x0) at wrmsr beyond+15
            #GP({bad_ldt:#x}) at lldt beyond+5
            #GP({bad_tss:#x}) at ltr beyond+5
            #GP(0x0) at invpcid beyond
            #GP(0x0) at an access+15
            "
        ),
        "no addresses are checked where they are loaded",
    );
}

#[test]
fn bases_of_48_bits_without_la57() {
    let mut g = Guest::new();
    g.model("max,la57=off");
    let (ldt, tss) = wide_tables(&mut g);
    let (wide_ldt, wide_tss, bad_ldt, bad_tss) = (ldt.0, tss.0, ldt.1, tss.1);
    g.main(Main::Long(PageTables::new(Format::Level4, false)), |p| {
        p.set_cr4(1 << 16);
        wide_bases(p, ldt, tss, true);
    });
    g.check_manual(
        &format!(
            "
            #GP(0x0) at lgdt 57 bits
            #GP(0x0) at lidt 57 bits
            #GP(0x0) at wrfsbase 57 bits+10
            #GP(0x0) at wrmsr 57 bits+15
            #GP({wide_ldt:#x}) at lldt 57 bits+5
            #GP({wide_tss:#x}) at ltr 57 bits+5
            #GP(0x0) at invpcid 57 bits
            #GP(0x0) at lgdt beyond
            #GP(0x0) at lidt beyond
            #GP(0x0) at wrfsbase beyond+10
            #GP(0x0) at wrmsr beyond+15
            #GP({bad_ldt:#x}) at lldt beyond+5
            #GP({bad_tss:#x}) at ltr beyond+5
            #GP(0x0) at invpcid beyond
            #GP(0x0) at an access+10
            "
        ),
        "no addresses are checked where they are loaded",
    );
}

const FORMS: &str = "it has Intel's form of jumps and calls, and AMD's of loads, whatever the vendor";

/// REX.W with far pointers in memory: an offset of 64 bits with Intel, one of 32 with AMD. The operand at VARS has a
/// selector in both places.
fn far_pointers(g: &mut Guest) {
    g.main(Main::Long(PageTables::new(Format::Level4, false)), |p| {
        let mut here = p.a.create_label();
        for (name, modrm) in [("jmp", 0x2c), ("call", 0x1c)] {
            let mut target = p.a.create_label();
            let at = p.address(target);
            // A selector to who reads 32 bits of the offset; else part of an address that is not canonical.
            asm!(p; mov dword_ptr(VARS), at; mov dword_ptr(VARS + 4), 0x1234_0000 | u32::from(CODE64); mov dword_ptr(VARS + 8), u32::from(CODE64));
            p.attempt(&format!("{name} with a selector behind 32 bits"), |p| {
                asm!(p; db &[0x48, 0xff, modrm, 0x25]; dd &[VARS]);
                p.place(&mut target);
            });
            let mut target = p.a.create_label();
            let at = p.address(target);
            asm!(p; mov dword_ptr(VARS), at; mov dword_ptr(VARS + 4), 0);
            p.attempt(&format!("{name} with one behind 64 bits"), |p| {
                asm!(p; db &[0x48, 0xff, modrm, 0x25]; dd &[VARS]);
                p.place(&mut target);
            });
        }
        asm!(p; mov dword_ptr(VARS), 0x1111_1111; mov dword_ptr(VARS + 4), u32::from(DATA0); mov dword_ptr(VARS + 8), u32::from(DATA3));
        for (name, code) in [("lss", 0xb2u8), ("lfs", 0xb4), ("lgs", 0xb5)] {
            let sel = if name == "lss" { u32::from(DATA0) } else { u32::from(DATA3) };
            asm!(p; mov dword_ptr(VARS + 8), sel);
            asm!(p; db &[0x48, 0x0f, code, 0x04, 0x25]; dd &[VARS]; mov ecx, ss);
            if name == "lfs" {
                asm!(p; mov ecx, fs);
            } else if name == "lgs" {
                asm!(p; mov ecx, gs);
            }
            p.show64(name, rax);
            p.show("selector", ecx);
        }
        p.place(&mut here);
    });
}

#[test]
fn far_pointers_of_intel_have_64_bits() {
    let mut g = Guest::new();
    g.model(INTEL);
    far_pointers(&mut g);
    g.check_manual(
        "
        #GP(0x0) at jmp with a selector behind 32 bits
        jmp with one behind 64 bits ok
        #GP(0x0) at call with a selector behind 32 bits
        call with one behind 64 bits ok
        lss=0x1011111111
        selector=0x10
        lfs=0x1011111111
        selector=0x43
        lgs=0x1011111111
        selector=0x43
        ",
        FORMS,
    );
}

#[test]
fn far_pointers_of_amd_have_32_bits() {
    let mut g = Guest::new();
    far_pointers(&mut g);
    g.check_manual(
        "
        jmp with a selector behind 32 bits ok
        #GP(0x0) at jmp with one behind 64 bits
        call with a selector behind 32 bits ok
        #GP(0x0) at call with one behind 64 bits
        lss=0x11111111
        selector=0x10
        lfs=0x11111111
        selector=0x10
        lgs=0x11111111
        selector=0x10
        ",
        FORMS,
    );
}

/// An operand-size prefix in front of a near branch of 64-bit mode means nothing to Intel's processors.
#[test]
fn near_branches_of_intel_ignore_an_operand_size_prefix() {
    let mut g = Guest::new();
    g.model(INTEL);
    g.main(Main::Long(PageTables::new(Format::Level4, false)), |p| {
        p.attempt("jmp", |p| asm!(p; db &[0x66, 0xe9, 2, 0, 0, 0, 0x0f, 0x0b]));
        p.attempt("jcc", |p| asm!(p; cmp eax, eax; db &[0x66, 0x0f, 0x84, 2, 0, 0, 0, 0x0f, 0x0b]));
        p.attempt("call and ret", |p| asm!(p; db &[0x66, 0xe8, 2, 0, 0, 0, 0xeb, 2, 0x66, 0xc3]));
    });
    g.check_manual(
        "
        jmp ok
        jcc ok
        call and ret ok
        ",
        "the prefix makes near branches short ones of 16 bits with every vendor",
    );
}

/// VPINSRQ, VPEXTRQ and others with VEX.W outside 64-bit mode.
fn wide_moves(g: &mut Guest) {
    g.main(Main::Protected, |p| {
        p.set_cr4(1 << 9 | 1 << 18);
        asm!(p; xor ecx, ecx; mov eax, 7; xor edx, edx; xsetbv);
        asm!(p; mov dword_ptr(VARS), 0x2222_2222);
        for (name, bytes) in [
            ("vpinsrq xmm0, xmm0, eax, 2", &[0xc4u8, 0xe3, 0xf9, 0x22, 0xc0, 2][..]),
            ("vpextrq ecx, xmm0, 2", &[0xc4, 0xe3, 0xf9, 0x16, 0xc1, 2]),
            ("vpextrq ecx, xmm0, 2 with a segment", &[0x3e, 0xc4, 0xe3, 0xf9, 0x16, 0xc1, 2]),
            ("vpinsrd xmm0, xmm0, eax, 2", &[0xc4, 0xe3, 0x79, 0x22, 0xc0, 2]),
            ("vpextrd ecx, xmm0, 2", &[0xc4, 0xe3, 0x79, 0x16, 0xc1, 2]),
            ("vmovq xmm0, eax", &[0xc4, 0xe1, 0xf9, 0x6e, 0xc0]),
            ("vmovq ecx, xmm0", &[0xc4, 0xe1, 0xf9, 0x7e, 0xc1]),
            ("vcvtsi2sd xmm0, xmm0, eax", &[0xc4, 0xe1, 0xfb, 0x2a, 0xc0]),
            ("vcvttsd2si ecx, xmm0", &[0xc4, 0xe1, 0xfb, 0x2c, 0xc8]),
        ] {
            asm!(p; mov eax, 0x8765_4321u32; mov ecx, 0x7777_7777);
            p.attempt(name, |p| asm!(p; db bytes));
            p.show("ecx", ecx);
        }
    });
}

#[test]
fn wide_moves_of_amd_outside_64_bit_mode() {
    let mut g = Guest::new();
    wide_moves(&mut g);
    let log = "
        #UD at vpinsrq xmm0, xmm0, eax, 2
        ecx=0x77777777
        #UD at vpextrq ecx, xmm0, 2
        ecx=0x77777777
        #UD at vpextrq ecx, xmm0, 2 with a segment
        ecx=0x77777777
        vpinsrd xmm0, xmm0, eax, 2 ok
        ecx=0x77777777
        vpextrd ecx, xmm0, 2 ok
        ecx=0x87654321
        vmovq xmm0, eax ok
        ecx=0x77777777
        vmovq ecx, xmm0 ok
        ecx=0x87654321
        vcvtsi2sd xmm0, xmm0, eax ok
        ecx=0x77777777
        vcvttsd2si ecx, xmm0 ok
        ecx=0x87654321
        ";
    g.check_manual(log, "VEX.W is ignored as on Intel's processors");
}

#[test]
fn wide_moves_of_intel_outside_64_bit_mode() {
    let mut g = Guest::new();
    g.model(INTEL);
    wide_moves(&mut g);
    g.check(
        "
        vpinsrq xmm0, xmm0, eax, 2 ok
        ecx=0x77777777
        vpextrq ecx, xmm0, 2 ok
        ecx=0x87654321
        vpextrq ecx, xmm0, 2 with a segment ok
        ecx=0x87654321
        vpinsrd xmm0, xmm0, eax, 2 ok
        ecx=0x77777777
        vpextrd ecx, xmm0, 2 ok
        ecx=0x87654321
        vmovq xmm0, eax ok
        ecx=0x77777777
        vmovq ecx, xmm0 ok
        ecx=0x87654321
        vcvtsi2sd xmm0, xmm0, eax ok
        ecx=0x77777777
        vcvttsd2si ecx, xmm0 ok
        ecx=0x87654321
        ",
    );
}

/// A repeated move with 32-bit addresses goes on at offset 0 behind the highest one (and the other way round), also
/// where the segment's base has that happen in the middle of a page.
#[test]
fn repeated_moves_whose_offset_wraps() {
    const HIGH: u64 = 0xffff_ffff_0000_0000;
    const BACK: u32 = SCRATCH + 0x2_0000;
    const TO: u32 = SCRATCH + 0x2_2000;
    let mut g = Guest::new();
    g.main(Main::Long(PageTables::new(Format::Level4, false)), |p| {
        // A page is at BACK; the one 4 GiB above it, in the low memory, is not page 0, which is never accessed fast.
        for (at, to) in [
            (TABLES + 511 * 8, SCRATCH + 0x1_0000),
            (SCRATCH + 0x1_0000 + 508 * 8, SCRATCH + 0x1_1000),
            (SCRATCH + 0x1_1000, SCRATCH + 0x1_2000),
            (SCRATCH + 0x1_2000 + 5 * 8, BACK),
        ] {
            asm!(p; mov eax, to | 3; mov qword_ptr(at), rax);
        }
        for n in (0..0x40).step_by(4) {
            asm!(p; mov dword_ptr(0x57e4 + n), 0x1000_07e4 + n; mov dword_ptr(BACK + 0x7f4 + n), 0x4000_07f4 + n);
        }
        p.wrmsr(FS_BASE, HIGH + 0x5804);
        for (name, from, to, bytes) in [
            ("up", 0xffff_fff0u32, TO, &[0xfcu8, 0x67, 0x64, 0xf3, 0xa5][..]),
            ("down", 0xc, TO + 28, &[0xfd, 0x67, 0x64, 0xf3, 0xa5, 0xfc]),
            ("across", 0xffff_fff2, TO, &[0xfc, 0x67, 0x64, 0xf3, 0xa5]),
        ] {
            asm!(p; mov esi, from; mov edi, to; mov ecx, 8; db bytes; mov ebx, esi);
            p.show(name, ebx);
            for n in 0..8 {
                p.show_mem(&format!("{n}"), TO + 4 * n);
            }
        }
    });
    let mut log = String::new();
    let both = "0=0x100007f4 1=0x100007f8 2=0x100007fc 3=0x10000800 4=0x40000804 5=0x40000808 6=0x4000080c 7=0x40000810";
    // The fourth element lies on both sides; a linear address is what does not wrap.
    let across =
        "0=0x7f81000 1=0x7fc1000 2=0x8001000 3=0x8041000 4=0x8084000 5=0x80c4000 6=0x8104000 7=0x8144000";
    for (first, rest) in [("up=0x10", both), ("down=0xffffffec", both), ("across=0x12", across)] {
        log += &format!("{first}\n{}\n", rest.replace(' ', "\n"));
    }
    g.check(&log);
}
