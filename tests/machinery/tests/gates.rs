//! Call gates, far transfers between privilege levels, and the gates of the IDT.
//!
//! SDM volume 3A, 5.8 (privilege checking when transferring program control), 6.11-6.13 (IDT, exception and interrupt
//! handling, error code); volume 2, CALL, JMP, RET, INT n.
use iced_x86::code_asm::*;
use mynah_machinery::{asm, *};

/// RETF with 16-bit operands.
fn retfw(p: &mut Prog, release: Option<u16>) {
    match release {
        None => asm!(p; db &[0x66, 0xcb]),
        Some(n) => asm!(p; db &[0x66, 0xca, n as u8, (n >> 8) as u8]),
    }
}

/// 5.8.4 and figure 5-13: through a gate of the same level CALL pushes CS and EIP; to an inner level it takes the stack
/// from the TSS and pushes SS, ESP, the parameters, CS and EIP there. RET n releases the parameters on both stacks.
#[test]
fn a_32_bit_call_gate_copies_parameters_to_the_inner_stack() {
    let mut g = Guest::new();
    let target = g.code32(|p| {
        p.show_segments();
        p.show("esp", esp);
        p.show_stack("frame", 6);
        asm!(p; retf_1 8);
    });
    g.alias(target, "target");
    let gate3 = g.gdt(gate(CODE0, target, dpl(access::CALL32, 3), 2));
    g.main(Main::Protected, |p| {
        p.say("same level");
        asm!(p; push 0x3333; push 0x4444; call_far gate3, 0);
        p.name("back0");
        p.show("esp", esp);
        p.say("from level 3");
        p.user(|p| {
            asm!(p; push 0x1111; push 0x2222; call_far gate3 | 3, 0xdead_beef);
            p.name("back3");
            p.show_segments();
            p.show("esp", esp);
        });
        p.say("from level 1");
        p.ring(1, |p| {
            asm!(p; push 0x1111; push 0x2222; call_far gate3, 0);
            p.name("back1");
            p.show("esp", esp);
        });
    });
    g.check(
        "
        same level
        cs ss ds es fs gs=0x8 0x10 0x10 0x10 0x10 0x10
        esp=0x110ff0
        frame=back0 0x8 0x4444 0x3333 0x0 0x0
        esp=0x111000
        from level 3
        cs ss ds es fs gs=0x8 0x10 0x43 0x43 0x0 0x0
        esp=0x112fe8
        frame=back3 0x3b 0x2222 0x1111 0x118ff8 0x43
        cs ss ds es fs gs=0x3b 0x43 0x43 0x43 0x0 0x0
        esp=0x119000
        from level 1
        cs ss ds es fs gs=0x8 0x10 0x21 0x21 0x0 0x0
        esp=0x112fe8
        frame=back1 0x19 0x2222 0x1111 0x114ff8 0x21
        esp=0x115000
        ",
    );
}

/// A 16-bit gate pushes words (volume 2, CALL: "ELSE \* OperandSize = 16"), its offset has 16 bits, and its parameters
/// are words.
#[test]
fn a_16_bit_call_gate_pushes_words() {
    let mut g = Guest::new();
    let target = g.low32(|p| {
        p.show("esp", esp);
        p.show_stack("frame", 3);
        retfw(p, Some(4));
    });
    g.alias(target, "target");
    let gate16 = g.gdt(gate(CODE0, target, dpl(access::CALL16, 3), 2));
    let caller = g.low32(|p| {
        asm!(p; push 0x1111_2222; call_far gate16, 0);
        p.show_segments();
        p.show("esp", esp);
        p.quit();
    });
    g.main(Main::Protected, |p| {
        p.guarded(|p| asm!(p; jmp u64::from(caller)));
        // The upper half of ESP is lost on the 16-bit frame: the caller's stack must be below 64 KiB.
        p.user(|p| asm!(p; mov esp, 0x1_0000 - 0x100; jmp u64::from(caller)));
    });
    g.check(
        "
        esp=0x110ff8
        frame=0x8808c 0x11112222 0x0
        cs ss ds es fs gs=0x8 0x10 0x10 0x10 0x10 0x10
        esp=0x111000
        esp=0x112ff4
        frame=0x3b808c 0x11112222 0x43fefc
        cs ss ds es fs gs=0x3b 0x43 0x43 0x43 0x0 0x0
        esp=0xff00
        ",
    );
}

/// 5.8.2: conforming code runs at the caller's level, on its stack.
#[test]
fn conforming_code_keeps_the_level() {
    let mut g = Guest::new();
    let conforming = g.gdt(flat(access::CONFORMING, size::P32));
    let target = g.code32(|p| {
        p.show_segments();
        p.show("esp", esp);
        asm!(p; retf);
    });
    let shown = g.code32(|p| {
        asm!(p; mov eax, cs);
        p.show("cs by gate", eax);
        p.show("esp", esp);
        asm!(p; retf);
    });
    let by_gate = g.gdt(gate(conforming, shown, dpl(access::CALL32, 3), 3));
    let conforming2 = g.gdt(flat(dpl(access::CONFORMING, 2), size::P32));
    g.qemu_differs(
        &[("cs by gate=0x91", "cs by gate=0x90"), ("cs by gate=0x93", "cs by gate=0x90")],
        "a gate to conforming code leaves the RPL of CS at that of the gate's selector",
    );
    g.main(Main::Protected, |p| {
        for level in [0, 1, 3] {
            p.ring(level, |p| {
                asm!(p; call_far by_gate, 0; call_far conforming, target);
                p.show("esp", esp);
            });
        }
        // Conforming code may be called from levels not more privileged than its DPL only.
        p.attempt_at(1, "too_privileged", |p| asm!(p; call_far conforming2, target));
        p.attempt_at(2, "equal", |p| asm!(p; call_far conforming2, target));
    });
    g.check(
        "
        cs by gate=0x90
        esp=0x110ff0
        cs ss ds es fs gs=0x90 0x10 0x10 0x10 0x10 0x10
        esp=0x110ff0
        esp=0x110ff8
        cs by gate=0x91
        esp=0x114ff8
        cs ss ds es fs gs=0x91 0x21 0x21 0x21 0x0 0x0
        esp=0x114ff8
        esp=0x115000
        cs by gate=0x93
        esp=0x118ff8
        cs ss ds es fs gs=0x93 0x43 0x43 0x43 0x0 0x0
        esp=0x118ff8
        esp=0x119000
        #GP(0xa0) at too_privileged cs=0x19
        cs ss ds es fs gs=0xa2 0x32 0x32 0x32 0x0 0x0
        esp=0x116ff8
        equal ok
        ",
    );
}

/// Volume 2, CALL, "Protected Mode Exceptions": which check fails with which error code.
#[test]
fn call_gate_checks() {
    let mut g = Guest::new();
    let target = g.code32(|p| {
        p.say("called");
        asm!(p; retf);
    });
    let c = |level| dpl(access::CALL32, level);
    let not_present = g.gdt(gate(CODE0, target, absent(c(3)), 0));
    let level2 = g.gdt(gate(CODE0, target, c(2), 0));
    let absent_low = g.gdt(gate(CODE0, target, absent(c(2)), 0));
    let open = g.gdt(gate(CODE0, target, c(3), 0));
    let null = g.gdt(gate(3, target, c(3), 0));
    let data = g.gdt(gate(DATA0, target, c(3), 0));
    let absent_code = g.gdt(flat(absent(access::CODE), size::P32));
    let to_absent = g.gdt(gate(absent_code, target, c(3), 0));
    let outer = g.gdt(gate(CODE3, target, c(3), 0));
    let beyond = g.gdt(gate(0xfff8, target, c(3), 0));
    let int_gate = g.gdt(gate(CODE0, target, dpl(access::INT32, 3), 0));
    let ldt_desc = g.gdt(segment(LDT, 0xff, dpl(access::LDT, 3), size::B16));
    g.main(Main::Protected, |p| {
        for (name, level, sel) in [
            ("absent gate", 3, not_present),
            ("DPL 2 from 3", 3, level2),
            ("DPL 2 from 2", 2, level2),
            ("DPL 2 with RPL 3", 2, level2 | 3),
            // Privilege is checked before presence.
            ("absent gate of DPL 2 from 3", 3, absent_low),
            ("null code", 3, null),
            ("data as code", 3, data),
            ("absent code", 3, to_absent),
            ("outer code from 0", 0, outer),
            ("code beyond the GDT", 3, beyond),
            ("interrupt gate", 3, int_gate),
            ("LDT descriptor", 3, ldt_desc),
            ("null", 3, 0),
            ("null 3", 3, 3),
            ("beyond the GDT", 3, 0xfff8),
            ("no LDT", 3, 4),
        ] {
            p.attempt_at(level, name, |p| asm!(p; call_far sel, 0));
        }
        for (name, level, sel) in [
            ("JMP inner", 3, open),
            ("JMP same level", 0, null),
            ("JMP outer", 0, outer),
            ("JMP data", 0, data),
        ] {
            p.attempt_at(level, name, |p| asm!(p; jmp_far sel, 0));
        }
    });
    g.check(
        "
        #NP(0x90) at absent gate cs=0x3b
        #GP(0x98) at DPL 2 from 3 cs=0x3b
        called
        DPL 2 from 2 ok
        #GP(0x98) at DPL 2 with RPL 3 cs=0x2a
        #GP(0xa0) at absent gate of DPL 2 from 3 cs=0x3b
        #GP(0x0) at null code cs=0x3b
        #GP(0x10) at data as code cs=0x3b
        #NP(0xc0) at absent code cs=0x3b
        #GP(0x38) at outer code from 0
        #GP(0xfff8) at code beyond the GDT cs=0x3b
        #GP(0xe0) at interrupt gate cs=0x3b
        #GP(0xe8) at LDT descriptor cs=0x3b
        #GP(0x0) at null cs=0x3b
        #GP(0x0) at null 3 cs=0x3b
        #GP(0xfff8) at beyond the GDT cs=0x3b
        #GP(0x4) at no LDT cs=0x3b
        #GP(0x8) at JMP inner cs=0x3b
        #GP(0x0) at JMP same level
        #GP(0x38) at JMP outer
        #GP(0x10) at JMP data
        ",
    );
}

/// Volume 2, CALL, "more-privilege": the new stack. #TS names the stack selector, or the TSS if its limit is too low;
/// #SS for an absent segment or no room.
#[test]
fn call_gate_stack_checks() {
    let mut g = Guest::new();
    let target = g.code32(|p| {
        asm!(p; mov ebx, esp; mov eax, u32::from(DATA0); mov ss, ax; mov esp, STACKS[0]);
        p.show("called", ebx);
        p.quit();
    });
    let call = g.gdt(gate(CODE0, target, dpl(access::CALL32, 3), 4));
    let to_level1 = g.gdt(gate(CODE1, target, dpl(access::CALL32, 3), 0));
    let read_only = g.gdt(flat(access::READ_ONLY, size::P32));
    let absent_data = g.gdt(flat(absent(access::DATA), size::P32));
    let tiny = g.gdt(segment(STACKS[0] - 0x100, 0x2f, access::DATA, size::B32));
    // Handlers of #TS and #SS at level 0 need a stack too: they run as tasks of level 3 code that needs none.
    let (ts, ss_) = {
        let mut handler = |name: &'static str| {
            g.code32(|p| {
                asm!(p; pop eax);
                p.show(name, eax);
                asm!(p; pop eax);
                p.show(&format!("{name} at"), eax);
                asm!(p; mov dword_ptr(TSS32 + 4), STACKS[0]; mov dword_ptr(TSS32 + 8), u32::from(DATA0));
                p.quit();
            })
        };
        (handler("TS"), handler("SS"))
    };
    g.idt(10, gate(CODE3, ts, access::INT32, 0));
    g.idt(12, gate(CODE3, ss_, access::INT32, 0));
    let small_tss = g.gdt(segment(TSS32, 0xb, access::TSS32, size::B16));
    g.qemu_differs(
        &[("SS=0xa8", "TS=0xa8"), ("SS at=absent", "TS at=absent")],
        "#TS, not #SS, for an absent inner stack",
    );
    g.main(Main::Protected, |p| {
        for (name, sel, sp_) in [
            ("null stack", 0, STACKS[0]),
            ("null with RPL", 3, STACKS[0]),
            ("RPL 3", DATA0 | 3, STACKS[0]),
            ("DPL 3", DATA3, STACKS[0]),
            ("code", CODE0, STACKS[0]),
            ("read-only", read_only, STACKS[0]),
            ("absent", absent_data, STACKS[0]),
            ("beyond", 0xfff8, STACKS[0]),
            ("room", tiny, 0x30),
        ] {
            asm!(p; mov dword_ptr(TSS32 + 4), sp_; mov dword_ptr(TSS32 + 8), u32::from(sel));
            p.attempt_at(3, name, |p| asm!(p; call_far call, 0));
        }
        asm!(p; mov eax, u32::from(small_tss); ltr ax);
        p.guarded(|p| {
            let mut l = p.a.create_label();
            let at = p.address(l);
            p.set_flags(0x3000);
            asm!(p; mov eax, u32::from(DATA3); mov ds, ax; push eax; push STACKS[3] as i32; pushfd; push i32::from(CODE3); push at; iretd);
            p.place(&mut l);
            p.name("TSS limit");
            asm!(p; call_far to_level1, 0);
        });
    });
    g.check(
        "
        TS=0x0
        TS at=null stack
        TS=0x0
        TS at=null with RPL
        TS=0x10
        TS at=RPL 3
        TS=0x40
        TS at=DPL 3
        TS=0x8
        TS at=code
        TS=0xa0
        TS at=read-only
        SS=0xa8
        SS at=absent
        TS=0xfff8
        TS at=beyond
        called=0x10
        TS=0xb8
        TS at=TSS limit
        ",
    );
}

/// Volume 2, JMP and CALL to code segments without gates; RET to outer levels: which segments survive, what is checked.
#[test]
fn far_returns_to_outer_levels() {
    let mut g = Guest::new();
    let conforming = g.gdt(flat(access::CONFORMING, size::P32));
    let absent_code = g.gdt(flat(absent(dpl(access::CODE, 3)), size::P32));
    let absent_data = g.gdt(flat(absent(dpl(access::DATA, 3)), size::P32));
    let read_only = g.gdt(flat(dpl(access::READ_ONLY, 3), size::P32));
    let outer = g.code32(|p| {
        p.show_segments();
        p.show("esp", esp);
        p.quit();
    });
    let target = g.code32(|p| asm!(p; retf));
    g.qemu_differs(
        &[("#SS(0xa0) at absent stack", "#NP(0xa0) at absent stack")],
        "#NP, not #SS, for an absent stack",
    );
    g.main(Main::Protected, |p| {
        // Data segments of inner levels become null, but for conforming code.
        p.guarded(|p| {
            asm!(p; mov eax, u32::from(DATA3); mov es, ax; mov eax, u32::from(conforming); mov fs, ax; mov eax, u32::from(DATA1); mov gs, ax;
                push i32::from(DATA3); push STACKS[3] as i32 - 0x10; push 0x5555; push i32::from(CODE3); push outer as i32);
            p.name("retf");
            asm!(p; db &[0x58]); // the offset is taken to put the parameter between
            asm!(p; pop ecx; pop edx; push ecx; push eax; retf);
        });
        asm!(p; xor eax, eax; mov fs, ax; mov gs, ax);
        p.guarded(|p| {
            asm!(p; push i32::from(DATA3); push STACKS[3] as i32 - 0x10; push 0x5555; push 0x6666; push i32::from(CODE3); push outer as i32; retf_1 8);
        });
        for (name, code, stack) in [
            ("code of level 0 with RPL 3", CODE0 | 3, DATA3),
            ("data", DATA3, DATA3),
            ("absent code", absent_code | 3, DATA3),
            ("null", 0, DATA3),
            ("null with RPL 3", 3, DATA3),
            ("beyond", 0xfffb, DATA3),
            ("null stack", CODE3, 0),
            ("null stack RPL 3", CODE3, 3),
            ("stack RPL 0", CODE3, DATA3 & !3),
            ("stack of level 0", CODE3, DATA0 | 3),
            ("absent stack", CODE3, absent_data | 3),
            ("read-only stack", CODE3, read_only | 3),
            ("code stack", CODE3, CODE3),
            ("conforming at level 3", conforming | 3, DATA3),
        ] {
            p.guarded(|p| {
                asm!(p; push i32::from(stack); push STACKS[3] as i32; push i32::from(code); push outer as i32);
                p.name(name);
                asm!(p; retf);
            });
        }
        p.attempt_at(3, "to an inner level", |p| asm!(p; push i32::from(CODE0); push outer as i32; retf));
        p.attempt_at(3, "call inner", |p| asm!(p; call_far CODE0, target));
        p.attempt_at(3, "call inner RPL 3", |p| asm!(p; call_far CODE0 | 3, target));
        p.attempt_at(0, "call outer", |p| asm!(p; call_far CODE3, target));
        p.attempt_at(3, "call own with RPL 0", |p| asm!(p; call_far CODE3 & !3, target));
        p.attempt_at(0, "call own with RPL 3", |p| asm!(p; call_far CODE0 | 3, target));
        p.attempt_at(3, "call data", |p| asm!(p; call_far DATA3, target));
        p.attempt_at(3, "call absent", |p| asm!(p; call_far absent_code | 3, target));
        p.attempt_at(3, "call null", |p| asm!(p; call_far 0, target));
    });
    g.check(
        "
        cs ss ds es fs gs=0x3b 0x43 0x0 0x43 0x90 0x0
        esp=0x118ff0
        cs ss ds es fs gs=0x3b 0x43 0x0 0x0 0x0 0x0
        esp=0x118ff8
        #GP(0x8) at code of level 0 with RPL 3
        #GP(0x40) at data
        #NP(0x98) at absent code
        #GP(0x0) at null
        #GP(0x0) at null with RPL 3
        #GP(0xfff8) at beyond
        #GP(0x0) at null stack
        #GP(0x0) at null stack RPL 3
        #GP(0x40) at stack RPL 0
        #GP(0x10) at stack of level 0
        #SS(0xa0) at absent stack
        #GP(0xa8) at read-only stack
        #GP(0x38) at code stack
        cs ss ds es fs gs=0x93 0x43 0x0 0x0 0x0 0x0
        esp=0x119000
        #GP(0x8) at to an inner level+7 cs=0x3b
        #GP(0x8) at call inner cs=0x3b
        #GP(0x8) at call inner RPL 3 cs=0x3b
        #GP(0x38) at call outer
        call own with RPL 0 ok
        #GP(0x8) at call own with RPL 3
        #GP(0x40) at call data cs=0x3b
        #NP(0x98) at call absent cs=0x3b
        #GP(0x0) at call null cs=0x3b
        ",
    );
}

/// 6.12.1.2: an interrupt gate clears IF, a trap gate leaves it; both clear TF, NT, VM, RF. 16-bit gates push words.
#[test]
fn gates_of_the_idt() {
    let mut g = Guest::new();
    let words = g.low32(|p| {
        p.show("esp", esp);
        p.show_stack("frame", 4);
        asm!(p; pushfd; pop eax; and eax, 0x4300);
        p.show("flags", eax);
        asm!(p; db &[0x66, 0xcf]);
    });
    g.idt(0x21, gate(CODE0, stub(0x21), dpl(access::TRAP32, 3), 0));
    g.idt(0x22, gate(CODE0, words, dpl(access::INT16, 3), 0));
    g.idt(0x23, gate(CODE0, words, dpl(access::TRAP16, 3), 0));
    let low = g.low32(|p| {
        asm!(p; int 0x22);
        p.show("esp", esp);
        asm!(p; int 0x23);
        p.show("esp", esp);
        p.quit();
    });
    g.show_stacks();
    g.main(Main::Protected, |p| {
        p.set_flags(0x4200 | 0x24_0000);
        p.name("int20");
        asm!(p; int 0x20);
        p.name("int21");
        asm!(p; int 0x21);
        asm!(p; pushfd; pop eax; and eax, 0x247700);
        p.show("flags", eax);
        p.clear_flags(0x4200 | 0x24_0000);
        p.user(|p| {
            p.name("user20");
            asm!(p; int 0x20);
            p.name("user21");
            asm!(p; int 0x21);
        });
        p.set_flags(0x3200);
        p.guarded(|p| asm!(p; jmp u64::from(low)));
        p.user(|p| asm!(p; mov esp, 0x1_0000 - 0x100; jmp u64::from(low)));
    });
    g.check(
        "
        int 0x20 at int21 fl=IF|NT|AC|ID stack=10:110ff0
        int 0x21 at int21+2 fl=IF|NT|AC|ID h=IF stack=10:110ff0
        flags=0x244200
        int 0x20 at user21 cs=0x3b sp=43:119000 stack=10:112fe8
        int 0x21 at user21+2 cs=0x3b sp=43:119000 stack=10:112fe8
        esp=0x110ffa
        frame=0x880c2 0x3206 0x0 0x0
        flags=0x0
        esp=0x111000
        esp=0x110ffa
        frame=0x880ec 0x3206 0x0 0x0
        flags=0x200
        esp=0x111000
        esp=0x112ff6
        frame=0x3b80c2 0xff003006 0x43 0x0
        flags=0x0
        esp=0xff00
        esp=0x112ff6
        frame=0x3b80ec 0xff003006 0x43 0x0
        flags=0x0
        esp=0xff00
        ",
    );
}

fn stub(v: u8) -> u32 {
    stubs::stub32(v)
}

/// 6.12.1.1 and volume 2, INT n: privilege, presence and type of the gate and of the handler's code segment; bit 1
/// (IDT) and bit 0 (EXT) of the error code.
#[test]
fn checks_of_idt_gates() {
    let mut g = Guest::new();
    let i = dpl(access::INT32, 3);
    let absent_code = g.gdt(flat(absent(access::CODE), size::P32));
    let cases = |v: u8| {
        let at = stub(v);
        [
            ("DPL 0", gate(CODE0, at, access::INT32, 0)),
            ("absent", gate(CODE0, at, absent(i), 0)),
            ("absent DPL 0", gate(CODE0, at, absent(access::INT32), 0)),
            ("empty", 0),
            ("call gate", gate(CODE0, at, dpl(access::CALL32, 3), 0)),
            ("code descriptor", flat(dpl(access::CODE, 3), size::P32)),
            ("null code", gate(0, at, i, 0)),
            ("data as code", gate(DATA0, at, i, 0)),
            ("absent code", gate(absent_code, at, i, 0)),
            ("beyond the GDT", gate(0xfff8, at, i, 0)),
            ("in no LDT", gate(0x0c, at, i, 0)),
            ("RPL is ignored", gate(CODE0 | 3, at, i, 0)),
        ]
    };
    let outer = gate(CODE3, stub(5), i, 0);
    // The same entries for #BR, an exception of which the error codes have EXT set (but for privilege, which is not
    // checked).
    g.qemu_clears_ext();
    g.qemu_differs(&[("#DB at int1+1 cs=0x3b dr6=0", "#UD at int1 cs=0x3b"), ("int1 ok", "")], "INT1 is #UD");
    g.main(Main::Protected, |p| {
        let set = |p: &mut Prog, v: u32, d: u64| {
            asm!(p; mov dword_ptr(IDT32 + 8 * v), d as u32; mov dword_ptr(IDT32 + 8 * v + 4), (d >> 32) as u32);
        };
        for (name, d) in cases(0x25) {
            set(p, 0x25, d);
            p.attempt_at(3, name, |p| asm!(p; int 0x25));
        }
        set(p, 0x25, outer);
        p.attempt("outer code", |p| asm!(p; int 0x25));
        asm!(p; mov dword_ptr(VARS), 5; mov dword_ptr(VARS + 4), 6);
        for (name, d) in cases(5) {
            set(p, 5, d);
            p.attempt_at(3, &format!("#BR {name}"), |p| asm!(p; mov ecx, 1; bound ecx, qword_ptr(VARS)));
        }
        set(p, 5, outer);
        p.attempt("#BR outer code", |p| asm!(p; mov ecx, 1; bound ecx, qword_ptr(VARS)));
        // INT3, INTO and INT1 of level 3 through gates of DPL 0: INT1 is not checked.
        for v in [1, 3, 4] {
            set(p, v, gate(CODE0, stub(v as u8), access::INT32, 0));
        }
        p.attempt_at(3, "int3", |p| asm!(p; int3));
        p.attempt_at(3, "into", |p| asm!(p; mov eax, 0x7fff_ffff; inc eax; db &[0xce]));
        p.attempt_at(3, "int1", |p| asm!(p; int1));
        p.attempt_at(3, "int 3", |p| asm!(p; db &[0xcd, 3]));
        // Beyond the IDT.
        p.attempt_at(3, "int ff", |p| {
            asm!(p; int 0xff);
        });
        asm!(p; sub esp, 8; mov word_ptr(esp), 0x27; mov dword_ptr(esp + 2), IDT32; push eax; pop eax);
        asm!(p; mov word_ptr(esp), 0x25 * 8 + 6; lidt fword_ptr(esp));
        p.attempt_at(3, "limit cuts the entry", |p| asm!(p; int 0x25));
    });
    g.check(
        "
        #GP(0x12a) at DPL 0 cs=0x3b
        #NP(0x12a) at absent cs=0x3b
        #GP(0x12a) at absent DPL 0 cs=0x3b
        #GP(0x12a) at empty cs=0x3b
        #GP(0x12a) at call gate cs=0x3b
        #GP(0x12a) at code descriptor cs=0x3b
        #GP(0x0) at null code cs=0x3b
        #GP(0x10) at data as code cs=0x3b
        #NP(0x90) at absent code cs=0x3b
        #GP(0xfff8) at beyond the GDT cs=0x3b
        #GP(0xc) at in no LDT cs=0x3b
        int 0x25 at RPL is ignored+2 cs=0x3b
        RPL is ignored ok
        #GP(0x38) at outer code
        #BR at #BR DPL 0+5 cs=0x3b
        #NP(0x2b) at #BR absent+5 cs=0x3b
        #NP(0x2b) at #BR absent DPL 0+5 cs=0x3b
        #GP(0x2b) at #BR empty+5 cs=0x3b
        #GP(0x2b) at #BR call gate+5 cs=0x3b
        #GP(0x2b) at #BR code descriptor+5 cs=0x3b
        #GP(0x1) at #BR null code+5 cs=0x3b
        #GP(0x11) at #BR data as code+5 cs=0x3b
        #NP(0x91) at #BR absent code+5 cs=0x3b
        #GP(0xfff9) at #BR beyond the GDT+5 cs=0x3b
        #GP(0xd) at #BR in no LDT+5 cs=0x3b
        #BR at #BR RPL is ignored+5 cs=0x3b
        #GP(0x39) at #BR outer code+5
        #GP(0x1a) at int3 cs=0x3b
        #GP(0x22) at into+6 cs=0x3b
        #DB at int1+1 cs=0x3b dr6=0
        int1 ok
        #GP(0x1a) at int 3 cs=0x3b
        #GP(0x7fa) at int ff cs=0x3b
        #GP(0x12a) at limit cuts the entry cs=0x3b
        ",
    );
}

/// 6.12.1: a handler in conforming code runs at the interrupted level; one of level 1 is entered on the stack of level
/// 1.
#[test]
fn handlers_of_other_levels() {
    let mut g = Guest::new();
    let conforming = g.gdt(flat(access::CONFORMING, size::P32));
    let handler = g.code32(|p| {
        p.show_segments();
        p.show("esp", esp);
        p.show_stack("frame", 3);
        asm!(p; iretd);
    });
    g.idt(0x25, gate(conforming, handler, dpl(access::INT32, 3), 0));
    g.idt(0x26, gate(CODE1, handler, dpl(access::INT32, 3), 0));
    g.main(Main::Protected, |p| {
        p.user(|p| {
            p.name("u");
            asm!(p; int 0x25);
            p.name("v");
            asm!(p; int 0x26);
            p.name("w");
            p.show_segments();
            p.show("esp", esp);
        });
        p.attempt("level 0 to 1", |p| asm!(p; int 0x26));
        p.ring(1, |p| {
            p.name("x");
            asm!(p; int 0x26);
            p.name("y");
            p.show("esp", esp);
        });
    });
    g.check(
        "
        cs ss ds es fs gs=0x93 0x43 0x43 0x43 0x0 0x0
        esp=0x118ff4
        frame=v 0x3b 0x46
        cs ss ds es fs gs=0x19 0x21 0x43 0x43 0x0 0x0
        esp=0x114fec
        frame=w 0x3b 0x46
        cs ss ds es fs gs=0x3b 0x43 0x43 0x43 0x0 0x0
        esp=0x119000
        #GP(0x18) at level 0 to 1
        cs ss ds es fs gs=0x19 0x21 0x21 0x21 0x0 0x0
        esp=0x114ff4
        frame=y 0x19 0x6
        esp=0x115000
        ",
    );
}

/// An offset beyond the limit of the code segment is #GP(0), found before anything is pushed (volume 2, CALL, RET, INT
/// n; a task's handler sees EXT).
#[test]
fn offsets_past_the_code_limit() {
    let mut g = Guest::new();
    let small0 = g.gdt(segment(0, 0xfff, access::CODE, size::B32));
    let small3 = g.gdt(segment(0, 0xfff, dpl(access::CODE, 3), size::B32));
    let past_limit = g.gdt(gate(small0, 0x1000, dpl(access::CALL32, 3), 0));
    g.idt(0x25, gate(small0, 0x1000, dpl(access::INT32, 3), 0));
    g.idt(5, gate(small0, 0x1000, access::INT32, 0));
    g.show_stacks();
    g.main(Main::Protected, |p| {
        p.attempt("call gate", |p| asm!(p; call_far past_limit, 0));
        p.attempt_at(3, "inner call gate", |p| asm!(p; call_far past_limit, 0));
        p.attempt("jmp", |p| asm!(p; jmp_far small0, 0x1000));
        p.attempt("call", |p| asm!(p; call_far small0, 0xffff_ffff));
        p.attempt_at(3, "outer call", |p| asm!(p; call_far small3 | 3, 0x1000));
        p.guarded(|p| {
            asm!(p; push i32::from(DATA3); push STACKS[3] as i32; push i32::from(small3 | 3); push 0x1000);
            p.name("retf");
            asm!(p; retf);
        });
        p.guarded(|p| {
            asm!(p; push i32::from(DATA3); push STACKS[3] as i32; pushfd; push i32::from(small3 | 3); push 0x1000);
            p.name("iret");
            asm!(p; iretd);
        });
        p.attempt("int", |p| asm!(p; int 0x25));
        p.attempt_at(3, "inner int", |p| asm!(p; int 0x25));
        asm!(p; mov dword_ptr(VARS), 5; mov dword_ptr(VARS + 4), 6);
        p.attempt_at(3, "exception", |p| asm!(p; mov ecx, 1; bound ecx, qword_ptr(VARS)));
    });
    g.check_manual(
        "
        #GP(0x0) at call gate stack=10:110ff0
        #GP(0x0) at inner call gate cs=0x3b sp=43:119000 stack=10:112fe8
        #GP(0x0) at jmp stack=10:110ff0
        #GP(0x0) at call stack=10:110ff0
        #GP(0x0) at outer call cs=0x3b sp=43:119000 stack=10:112fe8
        #GP(0x0) at retf stack=10:110fe0
        #GP(0x0) at iret stack=10:110fdc
        #GP(0x0) at int stack=10:110ff0
        #GP(0x0) at inner int cs=0x3b sp=43:119000 stack=10:112fe8
        #GP(0x1) at exception+5 cs=0x3b sp=43:119000 stack=10:112fe8
        ",
        "TCG does not check these limits",
    );
}

/// Volume 2, CALL, "#SS(new SS selector)": the inner stack must have room for the whole frame. The handler of #SS is of
/// level 3 and needs no stack.
#[test]
fn an_inner_stack_without_room() {
    let mut g = Guest::new();
    let handler = g.code32(|p| {
        asm!(p; pop eax);
        p.show("SS", eax);
        asm!(p; pop eax);
        p.show("at", eax);
        asm!(p; mov dword_ptr(TSS32 + 4), STACKS[0]; mov dword_ptr(TSS32 + 8), u32::from(DATA0));
        p.quit();
    });
    let target = g.code32(|p| {
        asm!(p; mov ebx, esp; mov eax, u32::from(DATA0); mov ss, ax; mov esp, STACKS[0]);
        p.show("called", ebx);
        p.quit();
    });
    g.idt(12, gate(CODE3, handler, access::INT32, 0));
    let call = g.gdt(gate(CODE0, target, dpl(access::CALL32, 3), 2));
    let tiny = g.gdt(segment(STACKS[0] - 0x100, 0x1f, access::DATA, size::B32));
    let down = g.gdt(segment(STACKS[0] - 0x10000, 0xff, access::DOWN, size::B32));
    let word = g.gdt(segment(STACKS[0] - 0x10000, 0xffff, access::DATA, size::B16));
    g.idt(0x25, gate(CODE0, target, dpl(access::INT32, 3), 0));
    g.main(Main::Protected, |p| {
        for (name, sel, top) in [
            ("room", tiny, 0x20),
            ("24 bytes", tiny, 0x18),
            ("one too few", tiny, 0x17),
            ("above", tiny, 0x21),
            ("wraps", tiny, 0x10),
            ("down", down, 0x118),
            ("down too far", down, 0x117),
            // A 16-bit stack uses SP alone.
            ("word", word, 0xabcd_0100u32),
        ] {
            asm!(p; mov dword_ptr(TSS32 + 4), top; mov dword_ptr(TSS32 + 8), u32::from(sel));
            p.attempt_at(3, &format!("call {name}"), |p| asm!(p; call_far call, 0));
            asm!(p; mov dword_ptr(TSS32 + 4), top; mov dword_ptr(TSS32 + 8), u32::from(sel));
            p.attempt_at(3, &format!("int {name}"), |p| asm!(p; int 0x25));
        }
    });
    g.check_manual(
        "
        called=0x8
        called=0xc
        called=0x0
        called=0x4
        SS=0x98
        at=call one too few
        called=0x3
        SS=0x98
        at=call above
        SS=0x98
        at=int above
        SS=0x98
        at=call wraps
        SS=0x98
        at=int wraps
        called=0x100
        called=0x104
        SS=0xa0
        at=call down too far
        called=0x103
        called=0xe8
        called=0xec
        ",
        "TCG does not check these limits",
    );
}
