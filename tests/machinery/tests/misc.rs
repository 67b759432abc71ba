//! Interrupts and what holds them off, restart of string instructions, stacks of other widths, ENTER, alignment check.
//!
//! SDM volume 3A, 6.8 (enabling and disabling interrupts), 6.8.3, 10.6.1 (self IPI), 6.7 (NMI), 6.15 interrupt 17;
//! volume 2, STI, HLT, REP, ENTER, LEAVE, POP; volume 1, 6.2.3 (stack width).
use iced_x86::code_asm::*;
use mynah_machinery::{asm, *};

const APIC: u32 = 0xfee0_0000;

/// Software-enables the local APIC.
fn enable_apic(p: &mut Prog) {
    asm!(p; mov dword_ptr(APIC + 0xf0), 0x1ff; mov dword_ptr(APIC + 0x80), 0);
}

/// An IPI to this processor.
fn ipi(p: &mut Prog, vector: u32) {
    asm!(p; mov dword_ptr(APIC + 0x300), 0x4_0000 | vector);
}

fn eoi(p: &mut Prog) {
    asm!(p; mov dword_ptr(APIC + 0xb0), 0);
}

/// 6.8.1, 6.8.3 and volume 2, STI, MOV, POP, HLT: where a pending interrupt is taken.
#[test]
fn interrupt_shadows() {
    let mut g = Guest::new();
    g.show_stacks();
    g.main(Main::Protected, |p| {
        enable_apic(p);
        asm!(p; mov eax, ss);
        // STI with IF clear: one instruction more.
        ipi(p, 0x31);
        p.say("not yet");
        asm!(p; sti);
        p.name("behind sti");
        asm!(p; nop);
        p.name("taken");
        asm!(p; nop; cli);
        eoi(p);
        // STI, CLI: never.
        ipi(p, 0x32);
        asm!(p; nop; nop; sti; cli; nop);
        p.say("STI, CLI: not taken");
        asm!(p; sti);
        p.name("sti with IF set has no shadow");
        asm!(p; sti);
        p.name("taken 2");
        asm!(p; nop; cli);
        eoi(p);
        // POPF has no shadow.
        ipi(p, 0x33);
        asm!(p; push 0x202; nop; nop; nop; nop; popfd);
        p.name("behind popf");
        asm!(p; nop; cli);
        eoi(p);
        // STI, HLT wakes.
        ipi(p, 0x34);
        asm!(p; sti);
        p.name("hlt");
        asm!(p; hlt);
        p.name("behind hlt");
        asm!(p; cli);
        eoi(p);
        // IRET has no shadow.
        ipi(p, 0x35);
        let mut l = p.a.create_label();
        let at = p.address(l);
        asm!(p; push 0x202; push i32::from(CODE0); push at; iretd);
        p.place(&mut l);
        p.name("iret target");
        asm!(p; nop; cli);
        eoi(p);
        // At level 3 with IOPL 0, IF is what IRET gave; the interrupt switches stacks.
        ipi(p, 0x36);
        p.guarded(|p| {
            let mut l = p.a.create_label();
            let at = p.address(l);
            asm!(p; push i32::from(DATA3); push STACKS[3] as i32; push 0x202; push i32::from(CODE3); push at; iretd);
            p.place(&mut l);
            p.name("level 3");
            p.quit();
        });
        eoi(p);
        // The higher class is taken first, the other after its EOI.
        ipi(p, 0x21);
        ipi(p, 0x37);
        asm!(p; sti; nop);
        p.name("first");
        asm!(p; nop; nop);
        p.say("EOI");
        asm!(p; cli);
        eoi(p);
        asm!(p; sti; nop);
        p.name("second");
        asm!(p; nop; nop; cli);
        eoi(p);
    });
    g.check(
        "
        not yet
        int 0x31 at taken fl=IF stack=10:110ff0
        STI, CLI: not taken
        int 0x32 at taken 2 fl=IF stack=10:110ff0
        int 0x33 at behind popf fl=IF stack=10:110ff0
        int 0x34 at behind hlt fl=IF stack=10:110ff0
        int 0x35 at iret target fl=IF stack=10:110ff0
        int 0x36 at level 3 cs=0x3b fl=IF sp=43:119000 stack=10:112fe8
        int 0x37 at first fl=IF stack=10:110ff0
        EOI
        int 0x21 at second fl=IF stack=10:110ff0
        ",
    );
}

/// 6.8.3: MOV SS and POP SS hold a pending interrupt off for one instruction: here with the task priority holding it
/// before.
#[test]
fn mov_ss_holds_interrupts_off() {
    let mut g = Guest::new();
    g.main(Main::Protected, |p| {
        enable_apic(p);
        asm!(p; mov eax, ss; mov ebx, APIC + 0x300);
        // The IPI is sent by the instruction in the shadow of MOV SS: it is taken behind it.
        asm!(p; sti; nop; mov ecx, 0x4_0031);
        asm!(p; mov ss, ax; mov dword_ptr(ebx), ecx);
        p.name("behind the shadow");
        asm!(p; nop; cli);
        eoi(p);
    });
    g.check(
        "
        int 0x31 at behind the shadow fl=IF
        ",
    );
}

/// 6.7: NMI is taken whatever IF, and blocks further NMIs until IRET.
#[test]
fn nmi_blocks_nmi_until_iret() {
    let mut g = Guest::new();
    let handler = g.code32(|p| {
        p.say("NMI");
        // Another one: pending until IRET.
        asm!(p; cmp dword_ptr(VARS), 0);
        let mut done = p.a.create_label();
        let mut l = p.a.create_label();
        asm!(p; jne done; inc dword_ptr(VARS); mov dword_ptr(APIC + 0x310), 0; mov dword_ptr(APIC + 0x300), 0x4400; jmp l);
        p.place(&mut l);
        p.say("not nested");
        p.place(&mut done);
        asm!(p; iretd);
    });
    g.idt(2, gate(CODE0, handler, access::INT32, 0));
    g.main(Main::Protected, |p| {
        enable_apic(p);
        asm!(p; mov dword_ptr(APIC + 0x310), 0);
        // What ran before may have left NMIs blocked.
        let mut l = p.a.create_label();
        let at = p.address(l);
        asm!(p; pushfd; push i32::from(CODE0); push at; iretd);
        p.place(&mut l);
        // When an IPI arrives is the APIC's business; a jump gives it an opportunity.
        let mut l = p.a.create_label();
        asm!(p; mov dword_ptr(APIC + 0x300), 0x4400; jmp l);
        p.place(&mut l);
        p.say("end");
    });
    g.check(
        "
        NMI
        not nested
        NMI
        end
        ",
    );
}

/// Volume 2, REP: a fault in the middle leaves ECX, ESI and EDI at the iteration that faulted, so that it restarts;
/// what was done stays done.
#[test]
fn string_instructions_restart_after_a_fault() {
    let mut g = Guest::new();
    let mut t = PageTables::new(Format::Legacy, true);
    t.set(1, SCRATCH + 0x2000, 0);
    t.set(1, SCRATCH + 0x5000, u64::from(SCRATCH + 0x5000) | 5); // read-only for level 3
    let end = SCRATCH + 0x2000;
    g.alias(end, "absent page");
    g.alias(end + 0xfff, "absent page's end");
    g.alias(SCRATCH + 0x5000, "read-only page");
    g.qemu_differs(
        &[(
            "#PF(0x6) at xchg across+5 cs=0x3b sp=43:119000 stack=10:112fe8 cr2=absent page",
            "#PF(0x4) at xchg across+5 cs=0x3b sp=43:119000 stack=10:112fe8 cr2=absent page",
        )],
        "XCHG across pages faults as a read",
    );
    g.main(Main::Paged(t.clone()), |p| {
        let regs = |p: &mut Prog| p.show_all("ecx esi edi eax", &[ecx, esi, edi, eax]);
        p.attempt("rep stosd", |p| {
            asm!(p; mov edi, end - 10; mov ecx, 5; mov eax, 0x5555_5555);
            p.rep();
            asm!(p; stosd);
        });
        regs(p);
        p.show_mem("before the last", end - 6);
        p.show_mem("the last word", end - 4);
        p.attempt("rep movsb", |p| {
            asm!(p; mov esi, end - 3; mov edi, SCRATCH; mov ecx, 10);
            p.rep();
            asm!(p; movsb);
        });
        regs(p);
        p.attempt("rep movsw to it", |p| {
            asm!(p; mov esi, SCRATCH; mov edi, end - 3; mov ecx, 10);
            p.rep();
            asm!(p; movsw);
        });
        regs(p);
        p.attempt("downwards", |p| {
            asm!(p; std; mov esi, end + 0x1001; mov edi, SCRATCH + 0x100; mov ecx, 10; xor eax, eax);
            p.rep();
            asm!(p; movsb);
        });
        asm!(p; cld);
        regs(p);
        p.attempt("repe cmpsb", |p| {
            asm!(p; mov esi, SCRATCH + 0x1ff0; mov edi, SCRATCH + 0x1ff0; mov ecx, 100);
            p.rep();
            asm!(p; cmpsb);
        });
        regs(p);
        p.attempt("repne scasd", |p| {
            asm!(p; mov edi, end - 8; mov ecx, 100; mov eax, 0x1234);
            p.a.repne().scasd().expect("assembling scasd");
        });
        regs(p);
        p.attempt("rep lodsd", |p| {
            asm!(p; mov esi, end - 8; mov ecx, 100);
            p.rep();
            asm!(p; lodsd);
        });
        regs(p);
        p.attempt_at(3, "rep stosb at level 3", |p| {
            asm!(p; mov edi, SCRATCH + 0x4ffe; mov ecx, 100; mov al, 1);
            p.rep();
            asm!(p; stosb);
        });
        regs(p);
        // A count of zero touches nothing.
        p.attempt("nothing", |p| {
            asm!(p; mov edi, end; xor ecx, ecx);
            p.rep();
            asm!(p; stosd);
        });
        // The access of PUSHA, ENTER, CALL that crosses into the absent page: nothing of the registers changes.
        p.attempt_at(3, "pushad", |p| asm!(p; mov esp, end + 0x1010; mov eax, 7; pushad));
        regs(p);
        p.attempt_at(3, "push", |p| asm!(p; mov esp, end + 0x1000; push eax));
        p.attempt_at(3, "pop to memory", |p| asm!(p; mov ebx, esp; push 0x77; pop dword_ptr(end)));
        p.attempt_at(3, "xchg across", |p| asm!(p; mov eax, 0x1111; xchg dword_ptr(end - 2), eax));
        regs(p);
        p.show_mem("in front of it", end - 4);
    });
    g.show_stacks();
    g.check(
        "
        #PF(0x2) at rep stosd+15 stack=10:110ff0 cr2=absent page
        ecx esi edi eax=0x3 0x0 0x201ffe 0x55555555
        before the last=0x55555555
        the last word=0x5555
        #PF(0x0) at rep movsb+15 stack=10:110ff0 cr2=absent page
        ecx esi edi eax=0x7 absent page 0x200003 0x55555555
        #PF(0x2) at rep movsw to it+15 stack=10:110ff0 cr2=absent page
        ecx esi edi eax=0x9 0x200002 0x201fff 0x55555555
        #PF(0x0) at downwards+18 fl=DF stack=10:110ff0 cr2=absent page's end
        ecx esi edi eax=0x8 absent page's end 0x2000fe 0x0
        #PF(0x0) at repe cmpsb+15 stack=10:110ff0 cr2=absent page
        ecx esi edi eax=0x54 absent page absent page 0x0
        #PF(0x0) at repne scasd+15 stack=10:110ff0 cr2=absent page
        ecx esi edi eax=0x62 absent page absent page 0x1234
        #PF(0x0) at rep lodsd+10 stack=10:110ff0 cr2=absent page
        ecx esi edi eax=0x62 absent page absent page 0x5555
        #PF(0x7) at rep stosb at level 3+12 cs=0x3b sp=43:119000 stack=10:112fe8 cr2=read-only page
        ecx esi edi eax=0x62 absent page read-only page 0x1
        nothing ok
        #PF(0x6) at pushad+10 cs=0x3b sp=43:203010 stack=10:112fe8 cr2=0x202ff0
        ecx esi edi eax=0x0 absent page absent page 0x7
        #PF(0x6) at push+5 cs=0x3b sp=43:203000 stack=10:112fe8 cr2=0x202ffc
        #PF(0x6) at pop to memory+4 cs=0x3b sp=43:118ffc stack=10:112fe8 cr2=absent page
        #PF(0x6) at xchg across+5 cs=0x3b sp=43:119000 stack=10:112fe8 cr2=absent page
        ecx esi edi eax=0x0 absent page absent page 0x1111
        in front of it=0x5555
        ",
    );
}

/// Volume 1, 6.2.3: with SS.B = 0 stack instructions use SP, 32-bit code or not, and leave the upper half of ESP alone;
/// ESP as an address register counts whole.
#[test]
fn a_16_bit_stack_in_32_bit_code() {
    let mut g = Guest::new();
    let stack16 = g.gdt(segment(SCRATCH, 0xffff, access::DATA, size::B16));
    g.main(Main::Protected, |p| {
        asm!(p; mov ebx, esp; mov eax, u32::from(stack16); mov ss, ax; mov esp, 0x1234_0008; mov eax, 0x1111_2222);
        asm!(p; push eax; mov ecx, esp; push eax; push eax; mov edx, esp; pop esi; pop edi; pop edi; mov esi, esp);
        asm!(p; mov eax, u32::from(DATA0); mov ss, ax; mov esp, ebx);
        p.show_all("after a push, three, three pops", &[ecx, edx, esi]);
        p.show_mem("wrapped", SCRATCH + 0xfffc);
        asm!(p; mov ebx, esp; mov eax, u32::from(stack16); mov ss, ax; mov esp, 0x1234_0100);
        let (mut l, mut over) = (p.a.create_label(), p.a.create_label());
        asm!(p; call l; jmp over);
        p.place(&mut l);
        asm!(p; mov ecx, esp; ret_1 4);
        p.place(&mut over);
        asm!(p; mov edx, esp; mov ebp, 0x5678_0200; enter 0x10, 0; mov esi, esp; mov edi, ebp; leave; mov eax, esp);
        asm!(p; push ebp; pop ebp; mov esp, 0x1234_0100; pushad; popad; mov eax, u32::from(DATA0); mov ss, ax; mov esp, ebx);
        p.show_all("in the call, behind it", &[ecx, edx]);
        p.show_all("ENTER: esp ebp", &[esi, edi]);
        p.show("ebp after LEAVE", ebp);
        // An interrupt at the same level pushes on the 16-bit stack.
        asm!(p; mov ebx, esp; mov eax, u32::from(stack16); mov ss, ax; mov esp, 0xabcd_0100u32);
        p.name("int");
        asm!(p; int 0x20; mov ecx, esp; mov eax, u32::from(DATA0); mov ss, ax; mov esp, ebx);
        p.show("esp after IRET", ecx);
    });
    g.show_stacks();
    g.check(
        "
        after a push, three, three pops=0x12340004 0x1234fffc 0x12340008
        wrapped=0x11112222
        in the call, behind it=0x123400fc 0x12340104
        ENTER: esp ebp=0x123400f0 0x12340100
        ebp after LEAVE=0x56780200
        int 0x20 at int+2 stack=90:f0
        esp after IRET=0xabcd0100
        ",
    );
}

/// Volume 2, ENTER: nesting levels copy frame pointers; the level is taken modulo 32; operand sizes.
#[test]
fn enter_copies_frame_pointers() {
    let mut g = Guest::new();
    g.main(Main::Protected, |p| {
        for level in [0u32, 1, 2, 3, 33] {
            asm!(p; mov ebx, esp; sub esp, 0x40; mov ebp, esp; mov dword_ptr(ebp), 0x100; mov dword_ptr(ebp - 4), 0x101; mov dword_ptr(ebp - 8), 0x102;
                mov dword_ptr(ebp - 12), 0x103; mov ecx, ebp; sub esp, 0x10; mov edx, esp; enter 8, level as i32);
            asm!(p; mov esi, edx; sub esi, esp; mov edi, edx; sub edi, ebp; mov ecx, dword_ptr(ebp - 4); mov edx, dword_ptr(ebp - 8));
            p.show_all(&format!("level {level}: taken, frame"), &[esi, edi]);
            if level == 3 {
                p.show_all("copied", &[ecx, edx]);
            }
            asm!(p; leave; mov esp, ebx);
        }
        asm!(p; mov ebx, esp; mov ebp, 0x1234_5678; db &[0x66, 0xc8, 4, 0, 0]; mov ecx, ebx; sub ecx, esp; mov esp, ebx; movzx edx, bp; sub dx, bx);
        p.show_all("16-bit: taken, frame", &[ecx, edx]);
    });
    g.check(
        "
        level 0: taken, frame=0xc 0x4
        level 1: taken, frame=0x10 0x4
        level 2: taken, frame=0x14 0x4
        level 3: taken, frame=0x18 0x4
        copied=0x101 0x102
        level 33: taken, frame=0x10 0x4
        16-bit: taken, frame=0x6 0xfffe
        ",
    );
}

/// 6.15, interrupt 17: with CR0.AM and EFLAGS.AC, misaligned accesses of level 3 are #AC(0): words, doublewords, stack,
/// not string of bytes, not level 0.
#[test]
fn alignment_check() {
    let mut g = Guest::new();
    g.main(Main::Protected, |p| {
        asm!(p; mov eax, cr0; or eax, 1 << 18; mov cr0, eax);
        let with_ac = |p: &mut Prog, name: &str, f: &dyn Fn(&mut Prog)| {
            p.set_flags(1 << 18);
            p.user(|p| {
                asm!(p; mov ebx, SCRATCH);
                p.name(name);
                f(p);
                p.say(&format!("{name} ok"));
            });
            p.clear_flags(1 << 18);
        };
        with_ac(p, "byte", &|p| asm!(p; mov al, byte_ptr(ebx + 1)));
        with_ac(p, "word at 2", &|p| asm!(p; mov ax, word_ptr(ebx + 2)));
        with_ac(p, "word at 1", &|p| asm!(p; mov ax, word_ptr(ebx + 1)));
        with_ac(p, "dword at 2", &|p| asm!(p; mov eax, dword_ptr(ebx + 2)));
        with_ac(p, "write at 1", &|p| asm!(p; mov dword_ptr(ebx + 1), eax));
        with_ac(p, "modify at 1", &|p| asm!(p; inc dword_ptr(ebx + 1)));
        with_ac(p, "qword at 4", &|p| asm!(p; fld qword_ptr(ebx + 4)));
        with_ac(p, "push", &|p| asm!(p; inc esp; push eax));
        with_ac(p, "across pages", &|p| asm!(p; mov eax, dword_ptr(ebx + 0xffe)));
        with_ac(p, "movsb", &|p| asm!(p; lea esi, dword_ptr(ebx + 1); lea edi, dword_ptr(ebx + 5); movsb));
        with_ac(p, "movsd", &|p| asm!(p; lea esi, dword_ptr(ebx + 1); lea edi, dword_ptr(ebx + 4); movsd));
        // Aligned first, so that a translation is there.
        with_ac(
            p,
            "after an aligned access",
            &|p| asm!(p; mov eax, dword_ptr(ebx); mov eax, dword_ptr(ebx + 2)),
        );
        p.set_flags(1 << 18);
        p.attempt("level 0", |p| asm!(p; mov eax, dword_ptr(SCRATCH + 1)));
        p.clear_flags(1 << 18);
        p.attempt_at(3, "without AC", |p| asm!(p; mov eax, dword_ptr(SCRATCH + 1)));
        // AC set by the program itself.
        p.user(|p| {
            asm!(p; mov eax, dword_ptr(SCRATCH + 1); pushfd; or dword_ptr(esp), 1 << 18; popfd);
            p.name("by POPF");
            asm!(p; mov eax, dword_ptr(SCRATCH + 1));
            p.say("by POPF ok");
        });
        asm!(p; mov eax, cr0; and eax, !(1u32 << 18); mov cr0, eax);
        p.set_flags(1 << 18);
        p.attempt_at(3, "without AM", |p| asm!(p; mov eax, dword_ptr(SCRATCH + 1)));
    });
    g.check_manual(
        "
        byte ok
        word at 2 ok
        #AC(0x0) at word at 1 cs=0x3b fl=AC
        #AC(0x0) at dword at 2 cs=0x3b fl=AC
        #AC(0x0) at write at 1 cs=0x3b fl=AC
        #AC(0x0) at modify at 1 cs=0x3b fl=AC
        #AC(0x0) at qword at 4 cs=0x3b fl=AC
        #AC(0x0) at push+1 cs=0x3b fl=AC
        #AC(0x0) at across pages cs=0x3b fl=AC
        movsb ok
        #AC(0x0) at movsd+6 cs=0x3b fl=AC
        #AC(0x0) at after an aligned access+2 cs=0x3b fl=AC
        level 0 ok
        without AC ok
        #AC(0x0) at by POPF cs=0x3b fl=AC
        without AM ok
        ",
        "TCG has no alignment check",
    );
}
