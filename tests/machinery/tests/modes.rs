//! Real-address mode, unreal mode, virtual-8086 mode with and without VME, protected-mode virtual interrupts,
//! compatibility mode, and the switches between modes.
//!
//! SDM volume 3B, chapter 20 (8086 emulation: 20.1 real mode, 20.2 virtual-8086 mode, 20.3 interrupts, 20.4 PVI);
//! volume 3A, 9.9 (mode switching), 9.8.5 (IA-32e mode), 2.5 (control registers); volume 2, CLI, STI, PUSHF, POPF, INT
//! n, IRET.
use iced_x86::code_asm::*;
use mynah_machinery::{asm, *};

/// 16-bit code that ends with UD2, so that the log tells where it got; its address.
fn snippet(g: &mut Guest, name: &str, f: impl FnOnce(&mut Prog)) -> u32 {
    g.code16(|p| {
        p.name(name);
        f(p);
        p.name(&format!("{name}, end"));
        asm!(p; ud2);
    })
}

/// Runs 16-bit programs in virtual-8086 mode.
fn run_v86(p: &mut Prog, programs: &[(&str, u32)], flags: u32) {
    for (_, at) in programs {
        p.v86(0, *at, flags, 0, (0x1000, 0x7000));
    }
}

/// The sensitive instructions: CLI, STI, PUSHF, POPF, INT n, IRET; and some that are not.
fn sensitive(g: &mut Guest) -> Vec<(&'static str, u32)> {
    let mut list = Vec::new();
    let mut add = |g: &mut Guest, name: &'static str, f: &dyn Fn(&mut Prog)| {
        let at = snippet(g, name, f);
        list.push((name, at));
    };
    add(g, "cli", &|p| asm!(p; cli));
    add(g, "sti", &|p| asm!(p; sti));
    add(g, "pushf", &|p| {
        asm!(p; pushf; xor eax, eax; pop ax; and ax, 0x7700);
        p.show("ax", eax);
    });
    add(g, "popf", &|p| asm!(p; push 0x3602; popf; pushf; pop ax));
    add(g, "popf TF", &|p| asm!(p; push 0x0102; popf));
    add(g, "pushfd", &|p| {
        asm!(p; pushfd; pop eax; and eax, 0x3f_7700);
        p.show("eax", eax);
    });
    add(g, "popfd", &|p| asm!(p; push 0; push 0x3602; popfd));
    add(g, "int 21", &|p| asm!(p; int 0x21));
    add(g, "int 22", &|p| asm!(p; int 0x22));
    add(g, "int3", &|p| asm!(p; int3));
    add(g, "into", &|p| asm!(p; mov al, 0x7f; inc al; db &[0xce]));
    add(g, "iret", &|p| {
        let mut l = p.a.create_label();
        let at = p.address(l);
        asm!(p; mov eax, at; push 0x3202; push 0; push ax; iret);
        p.place(&mut l);
    });
    add(g, "iretd", &|p| {
        let mut l = p.a.create_label();
        let at = p.address(l);
        asm!(p; mov eax, at; mov ebx, 0x3202; push ebx; xor ebx, ebx; push ebx; push eax; iretd);
        p.place(&mut l);
    });
    list
}

/// Volume 3B, 20.2.7 and table 20-2 (methods 4-6 and 1): with IOPL 3 everything runs, with IOPL below 3 the sensitive
/// instructions are #GP(0).
#[test]
fn sensitive_instructions_of_virtual_8086_mode() {
    let mut g = Guest::new();
    let programs = sensitive(&mut g);
    g.idt(0x22, gate(CODE0, stubs::stub32(0x22), access::INT32, 0));
    g.main(Main::Protected, |p| {
        for iopl in [3, 2, 0] {
            p.say(&format!("IOPL {iopl}"));
            run_v86(p, &programs, iopl << 12 | 0x200);
        }
    });
    g.check(
        "
        IOPL 3
        #UD at cli, end cs=0x0 fl=VM|IOPL3
        #UD at sti, end cs=0x0 fl=IF|VM|IOPL3
        ax=0x3200
        #UD at pushf, end cs=0x0 fl=IF|VM|IOPL3
        #UD at popf, end cs=0x0 fl=IF|DF|VM|IOPL3
        #UD at popf TF, end cs=0x0 fl=TF|VM|IOPL3
        eax=0x3200
        #UD at pushfd, end cs=0x0 fl=IF|VM|IOPL3
        #UD at popfd, end cs=0x0 fl=IF|DF|VM|IOPL3
        int 0x21 at int 21, end cs=0x0 fl=IF|VM|IOPL3
        #UD at int 21, end cs=0x0 fl=IF|VM|IOPL3
        #GP(0x112) at int 22 cs=0x0 fl=IF|VM|IOPL3
        #BP at int3, end cs=0x0 fl=IF|VM|IOPL3
        #UD at int3, end cs=0x0 fl=IF|VM|IOPL3
        #OF at into, end cs=0x0 fl=IF|VM|IOPL3
        #UD at into, end cs=0x0 fl=IF|VM|IOPL3
        #UD at iret, end cs=0x0 fl=IF|VM|IOPL3
        #UD at iretd, end cs=0x0 fl=IF|VM|IOPL3
        IOPL 2
        #GP(0x0) at cli cs=0x0 fl=IF|VM|IOPL2
        #GP(0x0) at sti cs=0x0 fl=IF|VM|IOPL2
        #GP(0x0) at pushf cs=0x0 fl=IF|VM|IOPL2
        #GP(0x0) at popf+3 cs=0x0 fl=IF|VM|IOPL2
        #GP(0x0) at popf TF+3 cs=0x0 fl=IF|VM|IOPL2
        #GP(0x0) at pushfd cs=0x0 fl=IF|VM|IOPL2
        #GP(0x0) at popfd+5 cs=0x0 fl=IF|VM|IOPL2
        #GP(0x0) at int 21 cs=0x0 fl=IF|VM|IOPL2
        #GP(0x0) at int 22 cs=0x0 fl=IF|VM|IOPL2
        #BP at int3, end cs=0x0 fl=IF|VM|IOPL2
        #UD at int3, end cs=0x0 fl=IF|VM|IOPL2
        #OF at into, end cs=0x0 fl=IF|VM|IOPL2
        #UD at into, end cs=0x0 fl=IF|VM|IOPL2
        #GP(0x0) at iret+12 cs=0x0 fl=IF|VM|IOPL2
        #GP(0x0) at iretd+21 cs=0x0 fl=IF|VM|IOPL2
        IOPL 0
        #GP(0x0) at cli cs=0x0 fl=IF|VM
        #GP(0x0) at sti cs=0x0 fl=IF|VM
        #GP(0x0) at pushf cs=0x0 fl=IF|VM
        #GP(0x0) at popf+3 cs=0x0 fl=IF|VM
        #GP(0x0) at popf TF+3 cs=0x0 fl=IF|VM
        #GP(0x0) at pushfd cs=0x0 fl=IF|VM
        #GP(0x0) at popfd+5 cs=0x0 fl=IF|VM
        #GP(0x0) at int 21 cs=0x0 fl=IF|VM
        #GP(0x0) at int 22 cs=0x0 fl=IF|VM
        #BP at int3, end cs=0x0 fl=IF|VM
        #UD at int3, end cs=0x0 fl=IF|VM
        #OF at into, end cs=0x0 fl=IF|VM
        #UD at into, end cs=0x0 fl=IF|VM
        #GP(0x0) at iret+12 cs=0x0 fl=IF|VM
        #GP(0x0) at iretd+21 cs=0x0 fl=IF|VM
        ",
    );
}

/// Volume 3B, 20.2.8.2 (ports go by the bitmap whatever IOPL), 20.2.2, 20.3.1.1 (frame), 20.2.1 (64-KByte segments);
/// instructions that do not exist there.
#[test]
fn other_rules_of_virtual_8086_mode() {
    let mut g = Guest::new();
    let list = [
        snippet(&mut g, "in 80", |p| asm!(p; in_ al, 0x80)),
        snippet(&mut g, "in e9", |p| asm!(p; in_ al, 0xe9)),
        snippet(&mut g, "in ax, e9", |p| asm!(p; in_ ax, 0xe9)),
        snippet(&mut g, "hlt", |p| asm!(p; hlt)),
        snippet(&mut g, "mov cr0", |p| asm!(p; mov eax, cr0)),
        snippet(&mut g, "smsw", |p| asm!(p; smsw ax)),
        snippet(&mut g, "lmsw", |p| asm!(p; lmsw ax)),
        snippet(&mut g, "lgdt", |p| asm!(p; lgdt fword_ptr(0x7000))),
        snippet(&mut g, "sgdt", |p| asm!(p; sgdt fword_ptr(0x7000))),
        snippet(&mut g, "lar", |p| asm!(p; lar ax, bx)),
        snippet(&mut g, "verr", |p| asm!(p; verr ax)),
        snippet(&mut g, "arpl", |p| asm!(p; arpl ax, bx)),
        snippet(&mut g, "ltr", |p| asm!(p; ltr ax)),
        snippet(&mut g, "sldt", |p| asm!(p; sldt ax)),
        snippet(&mut g, "sysenter", |p| asm!(p; sysenter)),
        snippet(&mut g, "segments", |p| {
            asm!(p; mov ax, 0x1234; mov ds, ax; mov es, ax; mov fs, ax; mov gs, ax);
            p.show_segments();
            // A far call and return within the mode.
            asm!(p; push cs);
        }),
        snippet(&mut g, "int e", |p| asm!(p; int 0xe)),
    ];
    let limits = [
        snippet(&mut g, "last word", |p| asm!(p; mov ax, word_ptr(0xfffe))),
        snippet(&mut g, "beyond", |p| asm!(p; mov bx, 0xffff; mov ax, word_ptr(bx))),
        snippet(&mut g, "32-bit offset", |p| asm!(p; mov ebx, 0x1_0000; mov al, byte_ptr(ebx))),
        snippet(&mut g, "stack", |p| asm!(p; mov sp, 1; push ax)),
    ];
    g.show_stacks();
    g.qemu_differs(
        &[
            (
                "#GP(0x0) at beyond+3 cs=0x0 fl=VM|IOPL3 sp=1000:7000 stack=10:112fd8",
                "#UD at beyond, end cs=0x0 fl=VM|IOPL3 sp=1000:7000 stack=10:112fd8",
            ),
            (
                "#GP(0x0) at 32-bit offset+6 cs=0x0 fl=VM|IOPL3 sp=1000:7000 stack=10:112fd8",
                "#UD at 32-bit offset, end cs=0x0 fl=VM|IOPL3 sp=1000:7000 stack=10:112fd8",
            ),
            (
                "#SS(0x0) at stack+3 cs=0x0 fl=VM|IOPL3 sp=1000:1 stack=10:112fd8",
                "#UD at stack, end cs=0x0 fl=VM|IOPL3 sp=1000:ffff stack=10:112fd8",
            ),
        ],
        "no limit checks",
    );
    g.main(Main::Protected, |p| {
        for at in list {
            p.v86(0, at, 0x3000, 0x20, (0x1000, 0x7000));
        }
        for at in limits {
            p.v86(0, at, 0x3000, 0, (0x1000, 0x7000));
        }
        // The handler finds null data segments and the 8086 program's in the frame.
        asm!(p; mov dword_ptr(IDT32 + 8 * 6), (CODE0 as u32) << 16 | (IMAGE & 0xffff));
    });
    g.check(
        "
        #GP(0x0) at in 80 cs=0x0 fl=VM|IOPL3 sp=1000:7000 stack=10:112fd8
        #UD at in e9, end cs=0x0 fl=VM|IOPL3 sp=1000:7000 stack=10:112fd8
        #GP(0x0) at in ax, e9 cs=0x0 fl=VM|IOPL3 sp=1000:7000 stack=10:112fd8
        #GP(0x0) at hlt cs=0x0 fl=VM|IOPL3 sp=1000:7000 stack=10:112fd8
        #GP(0x0) at mov cr0 cs=0x0 fl=VM|IOPL3 sp=1000:7000 stack=10:112fd8
        #UD at smsw, end cs=0x0 fl=VM|IOPL3 sp=1000:7000 stack=10:112fd8
        #GP(0x0) at lmsw cs=0x0 fl=VM|IOPL3 sp=1000:7000 stack=10:112fd8
        #GP(0x0) at lgdt cs=0x0 fl=VM|IOPL3 sp=1000:7000 stack=10:112fd8
        #UD at sgdt, end cs=0x0 fl=VM|IOPL3 sp=1000:7000 stack=10:112fd8
        #UD at lar cs=0x0 fl=VM|IOPL3 sp=1000:7000 stack=10:112fd8
        #UD at verr cs=0x0 fl=VM|IOPL3 sp=1000:7000 stack=10:112fd8
        #UD at arpl cs=0x0 fl=VM|IOPL3 sp=1000:7000 stack=10:112fd8
        #UD at ltr cs=0x0 fl=VM|IOPL3 sp=1000:7000 stack=10:112fd8
        #UD at sldt cs=0x0 fl=VM|IOPL3 sp=1000:7000 stack=10:112fd8
        #GP(0x0) at sysenter cs=0x0 fl=VM|IOPL3 sp=1000:7000 stack=10:112fd8
        cs ss ds es fs gs=0x0 0x1000 0x1234 0x1234 0x1234 0x1234
        #UD at segments, end cs=0x0 fl=VM|IOPL3 sp=1000:6ffe stack=10:112fd8
        #GP(0x72) at int e cs=0x0 fl=VM|IOPL3 sp=1000:7000 stack=10:112fd8
        #UD at last word, end cs=0x0 fl=VM|IOPL3 sp=1000:7000 stack=10:112fd8
        #GP(0x0) at beyond+3 cs=0x0 fl=VM|IOPL3 sp=1000:7000 stack=10:112fd8
        #GP(0x0) at 32-bit offset+6 cs=0x0 fl=VM|IOPL3 sp=1000:7000 stack=10:112fd8
        #SS(0x0) at stack+3 cs=0x0 fl=VM|IOPL3 sp=1000:1 stack=10:112fd8
        ",
    );
}

/// Volume 3B, 20.3.1.1: on an interrupt from virtual-8086 mode GS, FS, DS, ES are pushed and made null; the handler
/// must be of level 0.
#[test]
fn interrupts_from_virtual_8086_mode() {
    let mut g = Guest::new();
    let handler = g.code32(|p| {
        p.show_segments();
        p.show("esp", esp);
        p.show_stack("eip cs eflags esp ss es ds fs gs", 9);
        asm!(p; iretd);
    });
    let conforming = g.gdt(flat(access::CONFORMING, size::P32));
    g.idt(0x25, gate(CODE0, handler, dpl(access::INT32, 3), 0));
    g.idt(0x26, gate(conforming, handler, dpl(access::INT32, 3), 0));
    g.idt(0x27, gate(CODE1, handler, dpl(access::INT32, 3), 0));
    let run = snippet(&mut g, "run", |p| {
        asm!(p; mov ax, 0x11; mov ds, ax; mov ax, 0x22; mov es, ax; mov ax, 0x33; mov fs, ax; mov ax, 0x44; mov gs, ax);
        p.name("int25");
        asm!(p; int 0x25);
        p.name("back");
        p.show_segments();
    });
    let conform = snippet(&mut g, "conforming", |p| asm!(p; int 0x26));
    let level1 = snippet(&mut g, "level 1", |p| asm!(p; int 0x27));
    g.qemu_differs(
        &[(
            "#GP(0x18) at level 1 cs=0x0 fl=VM|IOPL3",
            "cs ss ds es fs gs=0x19 0x21 0x0 0x0 0x0 0x0
            esp=0x114fdc
            eip cs eflags esp ss es ds fs gs=level 1, end 0x0 0x23002 0x7000 0x1000 0x0 0x0 0x0 0x0
            #UD at level 1, end cs=0x0 fl=VM|IOPL3",
        )],
        "a handler may be of level 1",
    );
    g.main(Main::Protected, |p| {
        p.v86(0, run, 0x3000, 0, (0x1000, 0x7000));
        p.v86(0, conform, 0x3000, 0, (0x1000, 0x7000));
        p.v86(0, level1, 0x3000, 0, (0x1000, 0x7000));
    });
    g.check(
        "
        cs ss ds es fs gs=0x8 0x10 0x0 0x0 0x0 0x0
        esp=0x112fdc
        eip cs eflags esp ss es ds fs gs=back 0x0 0x23002 0x7000 0x1000 0x22 0x11 0x33 0x44
        cs ss ds es fs gs=0x0 0x1000 0x11 0x22 0x33 0x44
        #UD at run, end cs=0x0 fl=VM|IOPL3
        #GP(0x90) at conforming cs=0x0 fl=VM|IOPL3
        #GP(0x18) at level 1 cs=0x0 fl=VM|IOPL3
        ",
    );
}

/// Volume 3B, 20.3 and table 20-2 with CR4.VME: with IOPL below 3 CLI, STI, PUSHF, POPF and IRET work on VIF; INT n
/// goes by the redirection bitmap; STI and POPF with VIP set are #GP(0).
#[test]
fn virtual_mode_extensions() {
    let mut g = Guest::new();
    let programs = sensitive(&mut g);
    // The 8086 program's own handler.
    let own = g.code16(|p| {
        p.say("own handler");
        asm!(p; pushf; xor eax, eax; pop ax; and ax, 0x7700);
        p.show("flags", eax);
        asm!(p; mov bp, sp; xor eax, eax; mov ax, word_ptr(bp + 4); and ax, 0x7700);
        p.show("pushed flags", eax);
        asm!(p; iret);
    });
    g.put32(4 * 0x22, own);
    g.put32(4 * 0x21, own);
    // Bit clear: to the 8086 program.
    g.put(TSS32 + 0x68 + 0x22 / 8, &[!(1 << (0x22 % 8))]);
    g.main(Main::Protected, |p| {
        p.set_cr4(1);
        for (name, flags) in
            [("IOPL 0", 0u32), ("IOPL 0, VIF", 1 << 19), ("IOPL 0, VIP", 1 << 20 | 0x200), ("IOPL 3", 0x3200)]
        {
            p.say(name);
            run_v86(p, &programs, flags);
        }
        // The bitmap lies below the I/O bitmap's base; beyond the TSS's limit the instruction is #GP.
        asm!(p; mov word_ptr(TSS32 + 0x66), 0xffff);
        p.say("no bitmap");
        run_v86(p, &programs[7..8], 0x3000);
    });
    g.check_manual(
        "
        IOPL 0
        #UD at cli, end cs=0x0 fl=VM
        #UD at sti, end cs=0x0 fl=VM|VIF
        ax=0x3000
        #UD at pushf, end cs=0x0 fl=VM
        #UD at popf, end cs=0x0 fl=DF|VM|VIF
        #GP(0x0) at popf TF+3 cs=0x0 fl=VM
        #GP(0x0) at pushfd cs=0x0 fl=VM
        #GP(0x0) at popfd+5 cs=0x0 fl=VM
        #GP(0x0) at int 21 cs=0x0 fl=VM
        own handler
        flags=0x3000
        pushed flags=0x3000
        #UD at int 22, end cs=0x0 fl=VM
        #BP at int3, end cs=0x0 fl=VM
        #UD at int3, end cs=0x0 fl=VM
        #OF at into, end cs=0x0 fl=VM
        #UD at into, end cs=0x0 fl=VM
        #UD at iret, end cs=0x0 fl=VM|VIF
        #GP(0x0) at iretd+21 cs=0x0 fl=VM
        IOPL 0, VIF
        #UD at cli, end cs=0x0 fl=VM
        #UD at sti, end cs=0x0 fl=VM|VIF
        ax=0x3200
        #UD at pushf, end cs=0x0 fl=VM|VIF
        #UD at popf, end cs=0x0 fl=DF|VM|VIF
        #GP(0x0) at popf TF+3 cs=0x0 fl=VM|VIF
        #GP(0x0) at pushfd cs=0x0 fl=VM|VIF
        #GP(0x0) at popfd+5 cs=0x0 fl=VM|VIF
        #GP(0x0) at int 21 cs=0x0 fl=VM|VIF
        own handler
        flags=0x3000
        pushed flags=0x3200
        #UD at int 22, end cs=0x0 fl=VM|VIF
        #BP at int3, end cs=0x0 fl=VM|VIF
        #UD at int3, end cs=0x0 fl=VM|VIF
        #OF at into, end cs=0x0 fl=VM|VIF
        #UD at into, end cs=0x0 fl=VM|VIF
        #UD at iret, end cs=0x0 fl=VM|VIF
        #GP(0x0) at iretd+21 cs=0x0 fl=VM|VIF
        IOPL 0, VIP
        #UD at cli, end cs=0x0 fl=IF|VM|VIP
        #GP(0x0) at sti cs=0x0 fl=IF|VM|VIP
        ax=0x3000
        #UD at pushf, end cs=0x0 fl=IF|VM|VIP
        #GP(0x0) at popf+3 cs=0x0 fl=IF|VM|VIP
        #GP(0x0) at popf TF+3 cs=0x0 fl=IF|VM|VIP
        #GP(0x0) at pushfd cs=0x0 fl=IF|VM|VIP
        #GP(0x0) at popfd+5 cs=0x0 fl=IF|VM|VIP
        #GP(0x0) at int 21 cs=0x0 fl=IF|VM|VIP
        own handler
        flags=0x3000
        pushed flags=0x3000
        #UD at int 22, end cs=0x0 fl=IF|VM|VIP
        #BP at int3, end cs=0x0 fl=IF|VM|VIP
        #UD at int3, end cs=0x0 fl=IF|VM|VIP
        #OF at into, end cs=0x0 fl=IF|VM|VIP
        #UD at into, end cs=0x0 fl=IF|VM|VIP
        #GP(0x0) at iret+12 cs=0x0 fl=IF|VM|VIP
        #GP(0x0) at iretd+21 cs=0x0 fl=IF|VM|VIP
        IOPL 3
        #UD at cli, end cs=0x0 fl=VM|IOPL3
        #UD at sti, end cs=0x0 fl=IF|VM|IOPL3
        ax=0x3200
        #UD at pushf, end cs=0x0 fl=IF|VM|IOPL3
        #UD at popf, end cs=0x0 fl=IF|DF|VM|IOPL3
        #UD at popf TF, end cs=0x0 fl=TF|VM|IOPL3
        eax=0x3200
        #UD at pushfd, end cs=0x0 fl=IF|VM|IOPL3
        #UD at popfd, end cs=0x0 fl=IF|DF|VM|IOPL3
        int 0x21 at int 21, end cs=0x0 fl=IF|VM|IOPL3
        #UD at int 21, end cs=0x0 fl=IF|VM|IOPL3
        own handler
        flags=0x3000
        pushed flags=0x3200
        #UD at int 22, end cs=0x0 fl=IF|VM|IOPL3
        #BP at int3, end cs=0x0 fl=IF|VM|IOPL3
        #UD at int3, end cs=0x0 fl=IF|VM|IOPL3
        #OF at into, end cs=0x0 fl=IF|VM|IOPL3
        #UD at into, end cs=0x0 fl=IF|VM|IOPL3
        #UD at iret, end cs=0x0 fl=IF|VM|IOPL3
        #UD at iretd, end cs=0x0 fl=IF|VM|IOPL3
        no bitmap
        #GP(0x0) at int 21 cs=0x0 fl=VM|IOPL3
        ",
        "TCG has no VME",
    );
}

/// Volume 3B, 20.4: with CR4.PVI, CLI and STI at level 3 with IOPL below 3 work on VIF; STI with VIP set is #GP(0);
/// PUSHF and POPF are not virtualised.
#[test]
fn protected_mode_virtual_interrupts() {
    let mut g = Guest::new();
    g.main(Main::Protected, |p| {
        let flags = |p: &mut Prog| {
            asm!(p; pushfd; pop eax; and eax, 0x1a_7200);
            p.show("flags", eax);
        };
        p.attempt_at(3, "CLI without PVI", |p| asm!(p; cli));
        p.attempt_at(3, "STI without PVI", |p| asm!(p; sti));
        p.set_cr4(2);
        p.user(|p| {
            asm!(p; sti);
            flags(p);
            asm!(p; cli);
            flags(p);
            asm!(p; sti; push 0x202; popfd);
            flags(p);
        });
        p.attempt_at(1, "CLI at level 1", |p| asm!(p; cli));
        // VIP by IRET from level 0.
        p.guarded(|p| {
            let mut l = p.a.create_label();
            let at = p.address(l);
            asm!(p; push i32::from(DATA3); push STACKS[3] as i32; push 0x10_0002; push i32::from(CODE3); push at; iretd);
            p.place(&mut l);
            asm!(p; cli);
            p.name("STI with VIP");
            asm!(p; sti);
            p.say("STI with VIP ok");
        });
        p.set_flags(0x3000);
        p.user(|p| {
            asm!(p; sti);
            flags(p);
        });
    });
    g.check_manual(
        "
        #GP(0x0) at CLI without PVI cs=0x3b
        #GP(0x0) at STI without PVI cs=0x3b
        flags=0x80000
        flags=0x0
        flags=0x80000
        #GP(0x0) at CLI at level 1 cs=0x19 fl=VIF
        #GP(0x0) at STI with VIP cs=0x3b fl=VIP
        flags=0x103200
        ",
        "TCG has no PVI",
    );
}

/// Where real-mode programs go on after an exception, and where they come back to protected mode.
struct Real {
    leave: u32,
}

const REAL_RECOVER: u32 = 0x7e00;
const REAL_SP: u32 = 0x7e04;

/// Real mode's vector table: each stub tells vector, IP, CS and FLAGS, and goes where [`REAL_RECOVER`] says.
fn real_mode(g: &mut Guest) -> Real {
    let common = g.code16(|p| {
        asm!(p; mov bp, sp; xor eax, eax; mov ax, word_ptr(bp); xor ebx, ebx; mov bx, word_ptr(bp + 2); xor ecx, ecx; mov cx, word_ptr(bp + 4);
            xor edx, edx; mov dx, word_ptr(bp + 6); and dx, 0x7700);
        p.show_all("interrupt vector ip cs flags", &[eax, ebx, ecx, edx]);
        asm!(p; xor ax, ax; mov ds, ax; mov es, ax; mov ss, ax; mov esp, dword_ptr(REAL_SP); jmp word_ptr(REAL_RECOVER));
    });
    for v in 0..0x40u32 {
        let at = g.code16(|p| asm!(p; push v as i32; mov ax, common; jmp ax));
        g.put32(4 * v, at);
    }
    let quit = g.code32(|p| {
        asm!(p; mov eax, u32::from(DATA0); mov ds, ax; mov es, ax; mov fs, ax; mov gs, ax; mov ss, ax; mov esp, STACK_MAIN - 0x800);
        p.quit();
    });
    // Back: protected mode, and a far jump to 32-bit code.
    let leave = g.code16(|p| {
        asm!(p; cli; xor ax, ax; mov ds, ax; lgdt fword_ptr(0x7e10); lidt fword_ptr(0x7e18); mov eax, cr0; or al, 1; mov cr0, eax);
        let mut far = vec![0x66, 0xea];
        far.extend(quit.to_le_bytes());
        far.extend(CODE0.to_le_bytes());
        asm!(p; db &far);
    });
    g.put(0x7e10, &[0xff, 0x0f]);
    g.put32(0x7e12, GDT);
    g.put(0x7e18, &[0xff, 0x07]);
    g.put32(0x7e1a, IDT32);
    g.put(0x7e20, &[0xff, 0x03, 0, 0, 0, 0]);
    Real { leave }
}

impl Real {
    /// A program for real mode, with the way there (to be jumped to with CS = [`CODE16`]) and back. Its segments are 0.
    fn program(&self, g: &mut Guest, segments: u16, f: impl FnOnce(&mut Prog)) -> u32 {
        g.code16(|p| {
            let mut real = p.a.create_label();
            asm!(p; mov ax, u32::from(segments); mov ds, ax; mov es, ax; mov fs, ax; mov gs, ax; mov ax, u32::from(DATA16); mov ss, ax;
                lidt fword_ptr(Guest::IVT_LOW).cs(); mov eax, cr0; and al, 0xfe; mov cr0, eax);
            // CS becomes 0 by a far return to the next instruction.
            let at = p.address(real);
            asm!(p; mov sp, 0x7000; mov eax, at; push 0; push ax; retf);
            p.place(&mut real);
            asm!(p; mov ax, cs; mov ss, ax; mov sp, LOW_STACK as i32 & 0xffff);
            f(p);
            asm!(p; mov ax, self.leave; jmp ax);
        })
    }
}

/// A piece of a real-mode program that may fault.
fn real_attempt(p: &mut Prog, name: &str, f: impl FnOnce(&mut Prog)) {
    let mut after = p.a.create_label();
    let at = p.address(after);
    asm!(p; mov dword_ptr(REAL_RECOVER).cs(), at; mov dword_ptr(REAL_SP).cs(), esp);
    p.name(name);
    f(p);
    p.say(&format!("{name} ok"));
    p.place(&mut after);
}

/// Volume 3B, 20.1: segments of 64 KBytes (#GP and #SS, vectors 13 and 12, push no error code), INT n through the
/// vector table, the table's limit.
#[test]
fn real_mode_rules() {
    let mut g = Guest::new();
    let real = real_mode(&mut g);
    let handler = g.code16(|p| {
        asm!(p; pushf; xor eax, eax; pop ax; and ax, 0x7700);
        p.show("in the handler: flags", eax);
        asm!(p; iret);
    });
    g.put32(4 * 0x25, handler);
    let program = real.program(&mut g, DATA16, |p| {
        p.show_segments();
        asm!(p; mov ax, 0xffff; mov es, ax);
        asm!(p; pushf; pop ax; or ax, 0x200; push ax; popf);
        p.name("int25");
        asm!(p; int 0x25; pushf; xor eax, eax; pop ax; and ax, 0x7700; cli);
        p.show("flags", eax);
        real_attempt(p, "ud", |p| asm!(p; ud2));
        real_attempt(p, "div", |p| asm!(p; xor cx, cx; div cx));
        real_attempt(p, "int3", |p| asm!(p; int3));
        real_attempt(p, "ltr", |p| asm!(p; ltr ax));
        real_attempt(p, "sldt", |p| asm!(p; sldt ax));
        real_attempt(p, "lar", |p| asm!(p; lar ax, bx));
        real_attempt(p, "arpl", |p| asm!(p; arpl ax, bx));
        real_attempt(p, "sysenter", |p| asm!(p; sysenter));
        real_attempt(p, "lidt", |p| asm!(p; mov word_ptr(0x7e20), 4 * 0x25 + 2; lidt fword_ptr(0x7e20)));
        real_attempt(p, "int at the table's limit", |p| asm!(p; int 0x25));
        asm!(p; mov word_ptr(0x7e20), 0x3ff; lidt fword_ptr(0x7e20));
        // Far calls and returns.
        let mut there = p.a.create_label();
        let mut over = p.a.create_label();
        asm!(p; mov bx, sp; push cs; call there; jmp over);
        p.place(&mut there);
        asm!(p; retf);
        p.place(&mut over);
        asm!(p; sub bx, sp; movzx ebx, bx);
        p.show("stack balance", ebx);
        // 16-bit stack pointers leave the upper half of ESP alone.
        asm!(p; mov ebx, esp; mov esp, 0x1234_0002; push ax; push ax; mov eax, esp; mov esp, ebx);
        p.show("esp", eax);
    });
    g.main(Main::Protected, |p| {
        p.guarded(|p| asm!(p; jmp_far CODE16, program));
        p.say("back");
    });
    g.check(
        "
        cs ss ds es fs gs=0x0 0x0 0x60 0x60 0x60 0x60
        in the handler: flags=0x0
        flags=0x200
        interrupt vector ip cs flags=0x6 ud 0x0 0x0
        interrupt vector ip cs flags=0x0 0x94f2 0x0 0x0
        interrupt vector ip cs flags=0x3 0x9525 0x0 0x0
        interrupt vector ip cs flags=0x6 ltr 0x0 0x0
        interrupt vector ip cs flags=0x6 sldt 0x0 0x0
        interrupt vector ip cs flags=0x6 lar 0x0 0x0
        interrupt vector ip cs flags=0x6 arpl 0x0 0x0
        interrupt vector ip cs flags=0xd sysenter 0x0 0x0
        lidt ok
        interrupt vector ip cs flags=0xd int at the table's limit 0x0 0x0
        stack balance=0x0
        esp=0x1234fffe
        back
        ",
    );
}

/// Limits in real mode, and "unreal" mode: a limit loaded in protected mode stays in the descriptor cache when PE is
/// cleared, and real-mode loads of the selector change the base alone.
#[test]
fn limits_in_real_and_unreal_mode() {
    let mut g = Guest::new();
    let real = real_mode(&mut g);
    let plain = real.program(&mut g, DATA16, |p| {
        real_attempt(p, "last word", |p| asm!(p; mov ax, word_ptr(0xfffe)));
        real_attempt(p, "beyond", |p| asm!(p; mov bx, 0xffff; mov ax, word_ptr(bx)));
        real_attempt(p, "32-bit offset", |p| asm!(p; mov ebx, SCRATCH; mov eax, dword_ptr(ebx)));
        real_attempt(p, "stack", |p| asm!(p; mov bp, 0xffff; mov ax, word_ptr(bp)));
        real_attempt(p, "PG without PE", |p| asm!(p; mov eax, cr0; or eax, 0x8000_0000u32; mov cr0, eax));
        real_attempt(p, "jump beyond", |p| asm!(p; mov ebx, 0x1_0000; db &[0x66, 0xff, 0xe3]));
    });
    let unreal = real.program(&mut g, DATA0, |p| {
        real_attempt(p, "unreal", |p| {
            asm!(p; mov ebx, SCRATCH; mov dword_ptr(ebx), 0x1234_5678; mov ax, 0x100; mov ds, ax; mov eax, dword_ptr(ebx - 0x1000));
            p.show("eax", eax);
        });
        real_attempt(p, "unreal by GS", |p| asm!(p; mov ebx, SCRATCH; mov eax, dword_ptr(ebx).gs()));
    });
    g.main(Main::Protected, |p| {
        p.guarded(|p| asm!(p; jmp_far CODE16, plain));
        p.guarded(|p| asm!(p; jmp_far CODE16, unreal));
        p.say("back");
    });
    g.check_manual(
        "
        last word ok
        interrupt vector ip cs flags=0xd 0x9250 0x0 0x0
        interrupt vector ip cs flags=0xd 0x9294 0x0 0x0
        interrupt vector ip cs flags=0xc 0x92f3 0x0 0x0
        interrupt vector ip cs flags=0xd 0x9337 0x0 0x0
        interrupt vector ip cs flags=0xd 0x9398 0x0 0x0
        eax=0x12345678
        unreal ok
        unreal by GS ok
        back
        ",
        "TCG does not check limits",
    );
}

/// Volume 3A, 2.5 and volume 2, MOV CRn, WRMSR: what is #GP(0), #UD, or ignored.
#[test]
fn control_registers() {
    let mut g = Guest::new();
    g.main(Main::Paged(PageTables::new(Format::Pae, false)), |p| {
        p.attempt("CD", |p| asm!(p; mov eax, cr0; or eax, 1 << 30; mov cr0, eax));
        p.attempt("not CD", |p| asm!(p; mov eax, cr0; and eax, !(1u32 << 30); mov cr0, eax));
        asm!(p; mov eax, cr4);
        p.show("cr4", eax);
        p.attempt("EFER.SCE", |p| p.wrmsr(0xc000_0080, 1 << 11 | 1));
        p.attempt("MOV CR1", |p| asm!(p; db &[0x0f, 0x20, 0xc8]));
        p.attempt("MOV CR5", |p| asm!(p; db &[0x0f, 0x22, 0xe8]));
        // LMSW sets PE and cannot clear it.
        asm!(p; smsw eax; and eax, 0xffff_fff0u32; lmsw ax; smsw eax; and eax, 0xf);
        p.show("msw", eax);
    });
    g.check(
        "
        CD ok
        not CD ok
        cr4=0x30
        EFER.SCE ok
        #UD at MOV CR1
        #UD at MOV CR5
        msw=0x1
        ",
    );
}

/// Volume 3A, 2.5, 2.2.1, 4.4.1: combinations that are #GP(0), reserved bits of CR0 (ignored), PDPTEs that are checked
/// when CR3 is loaded.
#[test]
fn combinations_of_control_bits() {
    let mut g = Guest::new();
    g.main(Main::Paged(PageTables::new(Format::Pae, false)), |p| {
        let cr0_try = |p: &mut Prog, name: &str, set: u32, clear: u32| {
            p.attempt(name, |p| asm!(p; mov eax, cr0; or eax, set; and eax, !clear; mov cr0, eax));
        };
        cr0_try(p, "PG without PE", 0, 1);
        cr0_try(p, "NW without CD", 1 << 29, 1 << 30);
        cr0_try(p, "reserved bits of CR0", 1 << 7 | 1 << 17 | 1 << 28, 0);
        asm!(p; mov eax, cr0);
        p.show("cr0", eax);
        for (name, bit) in [
            ("CR4 bit 14", 14),
            ("CR4 bit 15", 15),
            ("CR4 bit 19", 19),
            ("CR4 bit 26", 26),
            ("CR4 bit 31", 31),
        ] {
            p.attempt(name, |p| asm!(p; mov eax, cr4; or eax, 1u32 << bit; mov cr4, eax));
        }
        p.attempt("PCIDE outside long mode", |p| asm!(p; mov eax, cr4; or eax, 1 << 17; mov cr4, eax));
        p.attempt("EFER reserved", |p| p.wrmsr(0xc000_0080, 1 << 1));
        p.attempt("EFER upper half", |p| p.wrmsr(0xc000_0080, 1 << 40));
        p.attempt("EFER.LME while paging", |p| p.wrmsr(0xc000_0080, 1 << 8));
        p.attempt("unknown MSR", |p| asm!(p; mov ecx, 0x4000_1234; rdmsr));
        p.attempt("write of an unknown MSR", |p| p.wrmsr(0x4000_1234, 0));
        p.attempt("LSTAR not canonical", |p| p.wrmsr(0xc000_0082, 1 << 56));
        p.attempt(
            "PWT and PCD of CR3",
            |p| asm!(p; mov eax, cr3; or eax, 0x18; mov cr3, eax; and eax, !0x18; mov cr3, eax),
        );
        asm!(p; mov dword_ptr(eax + 8), 1 | 1 << 1);
        p.attempt("reserved bit in a PDPTE", |p| asm!(p; mov cr3, eax));
        asm!(p; mov dword_ptr(eax + 8), 1 << 1);
        p.attempt("reserved bit in an absent PDPTE", |p| asm!(p; mov cr3, eax));
        // Loaded PDPTEs stay until CR3 (or paging bits) are written.
        asm!(p; mov ebx, dword_ptr(eax); mov dword_ptr(eax), 0; invlpg byte_ptr(SCRATCH));
        p.attempt("PDPTE in memory cleared", |p| asm!(p; mov ecx, dword_ptr(SCRATCH)));
        asm!(p; mov dword_ptr(eax), ebx);
    });
    g.check_manual(
        "
        #GP(0x0) at PG without PE+13
        #GP(0x0) at NW without CD+13
        reserved bits of CR0 ok
        cr0=0x80000031
        #GP(0x0) at CR4 bit 14+8
        #GP(0x0) at CR4 bit 15+8
        #GP(0x0) at CR4 bit 19+8
        #GP(0x0) at CR4 bit 26+8
        #GP(0x0) at CR4 bit 31+8
        #GP(0x0) at PCIDE outside long mode+8
        #GP(0x0) at EFER reserved+15
        #GP(0x0) at EFER upper half+15
        #GP(0x0) at EFER.LME while paging+15
        #GP(0x0) at unknown MSR+5
        #GP(0x0) at write of an unknown MSR+15
        #GP(0x0) at LSTAR not canonical+15
        PWT and PCD of CR3 ok
        #GP(0x0) at reserved bit in a PDPTE
        reserved bit in an absent PDPTE ok
        PDPTE in memory cleared ok
        ",
        "TCG makes hardly any of these checks",
    );
}

/// Volume 3A, 2.5, 4.10.1, 9.8.5: in long mode PAE, LME and LA57 cannot change; PCIDE needs CR3[11:0] = 0; upper halves
/// are reserved.
#[test]
fn control_registers_in_long_mode() {
    let mut g = Guest::new();
    g.main(Main::Long(PageTables::new(Format::Level4, false)), |p| {
        let cr4_try = |p: &mut Prog, name: &str, flip: i32| {
            p.attempt(name, |p| asm!(p; mov rax, cr4; xor rax, flip; mov cr4, rax));
        };
        cr4_try(p, "clear PAE", 1 << 5);
        cr4_try(p, "set LA57", 1 << 12);
        asm!(p; mov rax, cr3; or rax, 8; mov cr3, rax);
        cr4_try(p, "PCIDE with CR3[11:0]", 1 << 17);
        asm!(p; mov rax, cr3; and rax, -4096; mov cr3, rax);
        cr4_try(p, "PCIDE", 1 << 17);
        p.attempt("CR3 with PCID", |p| asm!(p; mov rax, cr3; or rax, 0x123; mov cr3, rax));
        p.attempt("CR3 bit 63", |p| asm!(p; mov rax, cr3; bts rax, 63; mov cr3, rax));
        asm!(p; mov rax, cr3);
        p.show64("cr3", rax);
        p.attempt("CR3 bit 62", |p| asm!(p; mov rax, cr3; bts rax, 62; mov cr3, rax));
        // Clearing PG with PCIDE set is #GP, too (volume 2, MOV CRn).
        p.attempt("clear PG in 64-bit mode", |p| asm!(p; mov rax, cr0; btr rax, 31; mov cr0, rax));
        p.attempt("CR0 upper half", |p| asm!(p; mov rax, cr0; bts rax, 32; mov cr0, rax));
        p.attempt("CR4 upper half", |p| asm!(p; mov rax, cr4; bts rax, 40; mov cr4, rax));
        p.attempt("clear LME", |p| p.wrmsr(0xc000_0080, 1 << 11));
        asm!(p; mov ecx, 0xc000_0080u32; rdmsr);
        p.show("efer", eax);
        p.attempt("CR8 reserved", |p| asm!(p; mov eax, 0x10; mov cr8, rax));
        p.attempt("FS base not canonical", |p| p.wrmsr(0xc000_0100, 1 << 56));
        // The model is AMD's, which has 32 bits of it.
        p.attempt("SYSENTER_EIP not canonical", |p| p.wrmsr(0x176, 1 << 56));
        p.attempt("LGDT not canonical", |p| {
            asm!(p; mov rax, 1u64 << 56; mov qword_ptr(VARS + 2), rax; mov word_ptr(VARS), 0xfff; lgdt fword_ptr(VARS))
        });
    });
    g.check_manual(
        "
        #GP(0x0) at clear PAE+9
        #GP(0x0) at set LA57+9
        #GP(0x0) at PCIDE with CR3[11:0]+9
        PCIDE ok
        CR3 with PCID ok
        CR3 bit 63 ok
        cr3=0x150123
        #GP(0x0) at CR3 bit 62+8
        #GP(0x0) at clear PG in 64-bit mode+8
        #GP(0x0) at CR0 upper half+8
        #GP(0x0) at CR4 upper half+8
        #GP(0x0) at clear LME+15
        efer=0xd00
        #GP(0x0) at CR8 reserved+5
        #GP(0x0) at FS base not canonical+15
        SYSENTER_EIP not canonical ok
        #GP(0x0) at LGDT not canonical+30
        ",
        "TCG makes hardly any of these checks",
    );
}

/// Volume 1, 3.3.7.1: a non-canonical address is #GP(0), through the stack #SS(0); with 5-level paging 57 bits count.
/// (A DS prefix is ignored in 64-bit mode: RBP still means the stack.)
fn canonical_addresses(format: Format, bad: u64) -> Guest {
    let mut g = Guest::new();
    g.main(Main::Long(PageTables::new(format, true)), |p| {
        p.attempt("CR8", |p| asm!(p; mov eax, 5; mov cr8, rax; mov rbx, cr8));
        p.show("cr8", ebx);
        asm!(p; xor eax, eax; mov cr8, rax; mov rbx, bad; mov rcx, bad - 3; mov rdx, bad + 0x1000; mov rbp, bad);
        p.attempt("read", |p| asm!(p; mov al, byte_ptr(rbx)));
        p.attempt("read across the end", |p| asm!(p; mov eax, dword_ptr(rcx)));
        p.attempt("last dword", |p| asm!(p; mov eax, dword_ptr(rcx - 1)));
        p.attempt("RBP", |p| asm!(p; mov al, byte_ptr(rbp)));
        p.attempt("RBP with DS", |p| asm!(p; mov al, byte_ptr(rbp).ds()));
        p.attempt("RBP with GS", |p| asm!(p; mov al, byte_ptr(rbp).gs()));
        p.attempt("LEA", |p| asm!(p; lea rax, byte_ptr(rbp)));
        p.attempt("jump", |p| asm!(p; jmp rbx));
        p.attempt("call", |p| asm!(p; call rbx));
        for (name, instruction) in [("push", 0x50u8), ("pop", 0x58), ("ret", 0xc3), ("leave", 0xc9), ("pushfq", 0x9c)] {
            p.user(|p| {
                asm!(p; mov rsp, rdx);
                p.name(name);
                asm!(p; db &[instruction]);
            });
        }
        p.user(|p| {
            asm!(p; push rbx);
            p.name("ret to it");
            asm!(p; ret);
        });
    });
    g
}

#[test]
fn canonical_addresses_with_48_bits() {
    let mut g = canonical_addresses(Format::Level4, 0x8000_0000_0000);
    deviations(&mut g, "0x800000000000", "0x7ffffffffffd");
    g.check(
        "
        CR8 ok
        cr8=0x5
        #GP(0x0) at read
        #GP(0x0) at read across the end
        #PF(0x0) at last dword cr2=0x7ffffffffffc
        #SS(0x0) at RBP
        #SS(0x0) at RBP with DS
        #GP(0x0) at RBP with GS
        LEA ok
        #GP(0x0) at jump
        #GP(0x0) at call
        #SS(0x0) at push cs=0x53
        #SS(0x0) at pop cs=0x53
        #SS(0x0) at ret cs=0x53
        #SS(0x0) at leave cs=0x53
        #SS(0x0) at pushfq cs=0x53
        #GP(0x0) at ret to it cs=0x53
        ",
    );
}

#[test]
fn canonical_addresses_with_57_bits() {
    let mut g = canonical_addresses(Format::Level5, 0x100_0000_0000_0000);
    deviations(&mut g, "0x100000000000000", "0xfffffffffffffd");
    g.check(
        "
        CR8 ok
        cr8=0x5
        #GP(0x0) at read
        #GP(0x0) at read across the end
        #PF(0x0) at last dword cr2=0xfffffffffffffc
        #SS(0x0) at RBP
        #SS(0x0) at RBP with DS
        #GP(0x0) at RBP with GS
        LEA ok
        #GP(0x0) at jump
        #GP(0x0) at call
        #SS(0x0) at push cs=0x53
        #SS(0x0) at pop cs=0x53
        #SS(0x0) at ret cs=0x53
        #SS(0x0) at leave cs=0x53
        #SS(0x0) at pushfq cs=0x53
        #GP(0x0) at ret to it cs=0x53
        ",
    );
}

fn deviations(g: &mut Guest, bad: &str, across: &str) {
    let at = format!("#GP(0x0) at {bad}");
    let at3 = format!("{at} cs=0x53");
    let across = format!("#PF(0x0) at read across the end cr2={across}");
    g.qemu_differs(
        &[("#GP(0x0) at jump", &at), ("#GP(0x0) at call", &at), ("#GP(0x0) at ret to it cs=0x53", &at3)],
        "a non-canonical target faults when it is fetched",
    );
    g.qemu_differs(
        &[("#GP(0x0) at read across the end", &across)],
        "only the first byte's address is checked",
    );
    g.qemu_differs(
        &[
            ("#SS(0x0) at RBP", "#GP(0x0) at RBP"),
            ("#SS(0x0) at RBP with DS", "#GP(0x0) at RBP with DS"),
            ("#SS(0x0) at push cs=0x53", "#GP(0x0) at push cs=0x53"),
            ("#SS(0x0) at pop cs=0x53", "#GP(0x0) at pop cs=0x53"),
            ("#SS(0x0) at ret cs=0x53", "#GP(0x0) at ret cs=0x53"),
            ("#SS(0x0) at leave cs=0x53", "#GP(0x0) at leave cs=0x53"),
            ("#SS(0x0) at pushfq cs=0x53", "#GP(0x0) at pushfq cs=0x53"),
        ],
        "#GP for the stack, too",
    );
}

/// Volume 2: instructions that do not exist in 64-bit mode.
#[test]
fn instructions_that_64_bit_mode_has_not() {
    let mut g = Guest::new();
    g.main(Main::Long(PageTables::new(Format::Level4, true)), |p| {
        for (name, byte) in [
            ("PUSH ES", 0x06u8),
            ("PUSH CS", 0x0e),
            ("POP DS", 0x1f),
            ("DAA", 0x27),
            ("DAS", 0x2f),
            ("AAA", 0x37),
            ("AAS", 0x3f),
            ("PUSHA", 0x60),
            ("POPA", 0x61),
            ("82 group", 0x82),
            ("far CALL", 0x9a),
            ("AAM", 0xd4),
            ("AAD", 0xd5),
            ("SALC", 0xd6),
            ("INTO", 0xce),
            ("far JMP", 0xea),
        ] {
            p.attempt(name, |p| asm!(p; db &[byte, 0, 0, 0, 0, 0, 0, 0]));
        }
    });
    g.check(
        "
        #UD at PUSH ES
        #UD at PUSH CS
        #UD at POP DS
        #UD at DAA
        #UD at DAS
        #UD at AAA
        #UD at AAS
        #UD at PUSHA
        #UD at POPA
        #UD at 82 group
        #UD at far CALL
        #UD at AAM
        #UD at AAD
        #UD at SALC
        #UD at INTO
        #UD at far JMP
        ",
    );
}

/// Volume 3A, 9.8.5.3 and 9.8.5.4: leaving long mode through compatibility mode, running without paging, and coming
/// back; EFER.LMA follows CR0.PG.
#[test]
fn leaving_and_entering_long_mode() {
    let mut g = Guest::new();
    let tables = PageTables::new(Format::Level4, true);
    let efer = |p: &mut Prog, name: &str| {
        asm!(p; mov ecx, 0xc000_0080u32; rdmsr);
        p.show(name, eax);
    };
    let back = g.code64(|p| {
        p.say("64-bit again");
        efer(p, "efer");
        p.exit();
    });
    let compat = g.code32(|p| {
        p.say("compatibility mode");
        p.show_segments();
        // Addresses are 32 bits wide there, whatever the registers held.
        asm!(p; mov ebx, 0xffff_fff0u32; lea ecx, dword_ptr(ebx + 0x20));
        p.show("wrapped", ecx);
        asm!(p; mov eax, cr0; and eax, 0x7fff_ffff; mov cr0, eax);
        p.say("no paging");
        efer(p, "efer");
        asm!(p; lidt fword_ptr(Guest::IDT32_OPERAND); mov eax, u32::from(TR32); ltr ax);
        p.attempt("ud", |p| asm!(p; ud2));
        asm!(p; mov ecx, 0xc000_0080u32; rdmsr; and eax, !0x100; wrmsr);
        p.say("PAE paging is not possible with these tables; LME off");
        efer(p, "efer");
        asm!(p; mov ecx, 0xc000_0080u32; rdmsr; or eax, 0x100; wrmsr; mov eax, cr0; or eax, 0x8000_0000u32; mov cr0, eax);
        p.say("compatibility mode again");
        asm!(p; lidt fword_ptr(Guest::IDT64_OPERAND); mov dword_ptr(RECOVER), 0);
        asm!(p; and byte_ptr(GDT + u32::from(TR64) + 5), !2i32; mov eax, u32::from(TR64); ltr ax; jmp_far CODE64, back);
    });
    g.main(Main::Long(tables), |p| {
        asm!(p; push i32::from(CODE0); push compat as i32; retf);
    });
    g.check(
        "
        compatibility mode
        cs ss ds es fs gs=0x8 0x10 0x10 0x10 0x10 0x10
        wrapped=0x10
        no paging
        efer=0x900
        #UD at ud
        PAE paging is not possible with these tables; LME off
        efer=0x800
        compatibility mode again
        64-bit again
        efer=0xd00
        ",
    );
}

/// Volume 3A, 9.8.5: activating long mode with a 64-bit CS (L = 1), or without PAE, or with a 16-bit TSS in TR is
/// #GP(0).
#[test]
fn activating_long_mode_is_checked() {
    let mut g = Guest::new();
    let tss16 = g.gdt(segment(TSS32, 0x67, access::TSS16, size::B16));
    let tables = PageTables::new(Format::Level4, true);
    g.put(TABLES, tables.bytes());
    g.main(Main::Protected, |p| {
        p.wrmsr(0xc000_0080, 1 << 8);
        asm!(p; mov eax, TABLES; mov cr3, eax);
        p.attempt("without PAE", |p| asm!(p; mov eax, cr0; or eax, 0x8000_0000u32; mov cr0, eax));
        p.set_cr4(1 << 5);
        asm!(p; mov eax, u32::from(tss16); ltr ax);
        p.attempt("with a 16-bit TSS", |p| asm!(p; mov eax, cr0; or eax, 0x8000_0000u32; mov cr0, eax));
        asm!(p; mov ecx, 0xc000_0080u32; rdmsr);
        p.show("efer", eax);
    });
    g.check_manual(
        "
        #GP(0x0) at without PAE+8
        #GP(0x0) at with a 16-bit TSS+8
        efer=0x100
        ",
        "TCG does not make these checks",
    );
}
