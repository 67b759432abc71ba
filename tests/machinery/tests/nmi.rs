//! NMIs: blocked from the handler's entry to IRET, in all its forms, one latched meanwhile; NMIs in a row.
//!
//! SDM volume 3A, 6.7.1 (an execution of IRET unblocks NMIs even if it causes a fault), 6.7; volume 2, IRET.
use mynah_machinery::{asm, *};

const APIC: u32 = 0xfee0_0000;
const TSS2: u32 = DATA;
const STACK2: u32 = DATA + 0x4000;

/// Sends an NMI to this processor. When it arrives is the APIC's business: a jump gives it an opportunity.
fn send(p: &mut Prog) {
    let mut l = p.a.create_label();
    asm!(p; mov dword_ptr(APIC + 0x310), 0; mov dword_ptr(APIC + 0x300), 0x4400; jmp l);
    p.place(&mut l);
}

/// Software-enables the local APIC; unblocks NMIs, which what ran before may have left blocked.
fn prepare(p: &mut Prog) {
    let mut l = p.a.create_label();
    let at = p.address(l);
    asm!(p; mov dword_ptr(APIC + 0xf0), 0x1ff; pushfd; push i32::from(CODE0); push at; iretd);
    p.place(&mut l);
}

/// What the handler of the first NMI does, with the processor's frame on the stack: another NMI is sent, which is
/// latched, and `form` ends it. The second NMI tells where it came.
fn handler(p: &mut Prog, form: impl FnOnce(&mut Prog)) {
    let mut second = p.a.create_label();
    // By SS: there is nothing in DS after virtual-8086 mode.
    asm!(p; inc dword_ptr(VARS).ss(); cmp dword_ptr(VARS).ss(), 1; jne second);
    p.say("NMI");
    send(p);
    send(p);
    p.say("blocked");
    form(p);
    p.place(&mut second);
    p.show_stack("again: ip cs", 2);
    asm!(p; iretd);
}

/// The main program: an NMI, and what comes behind it, if the handler returns there.
fn nmi(p: &mut Prog) {
    prepare(p);
    p.guarded(|p| {
        let mut l = p.a.create_label();
        asm!(p; mov dword_ptr(APIC + 0x310), 0; mov dword_ptr(APIC + 0x300), 0x4400; jmp l);
        p.place(&mut l);
        p.name("back");
        p.say("back");
        // Unblocks NMIs if they are still blocked.
        let mut l = p.a.create_label();
        let at = p.address(l);
        asm!(p; pushfd; push i32::from(CODE0); push at; iretd);
        p.place(&mut l);
        p.name("behind IRET");
        asm!(p; nop);
    });
    p.say("end");
}

fn protected(form: impl FnOnce(&mut Prog)) -> Guest {
    let mut g = Guest::new();
    let entry = g.code32(|p| handler(p, form));
    g.idt(2, gate(CODE0, entry, access::INT32, 0));
    g.main(Main::Protected, nmi);
    g
}

#[test]
fn iret_to_the_same_level() {
    let g = protected(|p| {
        let mut target = p.a.create_label();
        let at = p.address(target);
        asm!(p; mov dword_ptr(esp), at; iretd);
        p.place(&mut target);
        p.name("target");
        p.say("target");
        p.quit();
    });
    g.check(
        "
        NMI
        blocked
        again: ip cs=target 0x8
        target
        end
        ",
    );
}

#[test]
fn iret_to_level_3() {
    let g = protected(|p| {
        let mut outer = p.a.create_label();
        let at = p.address(outer);
        asm!(p; push i32::from(DATA3); push STACKS[3] as i32; push 2; push i32::from(CODE3); push at; iretd);
        p.place(&mut outer);
        p.name("level 3");
        p.say("level 3");
        p.quit();
    });
    g.check(
        "
        NMI
        blocked
        again: ip cs=level 3 0x3b
        level 3
        end
        ",
    );
}

#[test]
fn iret_to_virtual_8086_mode() {
    let mut g = Guest::new();
    let v86 = g.code16(|p| {
        p.name("8086 program");
        asm!(p; int i32::from(QUIT));
    });
    let entry = g.code32(|p| {
        handler(p, |p| {
            for v in [0, 0, 0, 0, 0x1000, 0x7000, 0x2_3002, 0, v86] {
                asm!(p; push v as i32);
            }
            asm!(p; iretd);
        });
    });
    g.idt(2, gate(CODE0, entry, access::INT32, 0));
    g.main(Main::Protected, nmi);
    g.check(
        "
        NMI
        blocked
        again: ip cs=8086 program 0x0
        end
        ",
    );
}

/// The manual's own case is IRET in virtual-8086 mode with an IOPL below 3; any other fault of IRET unblocks as well.
#[test]
fn an_iret_that_faults() {
    let mut g = protected(|p| {
        asm!(p; mov dword_ptr(esp + 4), u32::from(DATA0));
        p.name("IRET to data");
        asm!(p; iretd);
    });
    g.alias(stubs::stub32(13), "handler of #GP");
    g.qemu_differs(&[("again: ip cs=handler of #GP 0x8", "")], "only an IRET that succeeds unblocks NMIs");
    g.check(
        "
        NMI
        blocked
        again: ip cs=handler of #GP 0x8
        #GP(0x10) at IRET to data
        end
        ",
    );
}

#[test]
fn an_iret_that_faults_in_virtual_8086_mode() {
    let mut g = Guest::new();
    let v86 = g.code16(|p| {
        p.name("IRET with IOPL 0");
        asm!(p; iret);
    });
    let entry = g.code32(|p| {
        handler(p, |p| {
            // To virtual-8086 mode without IRET: by a task, as IRET would unblock NMIs.
            asm!(p; jmp_far FREE, 0);
        });
    });
    let task = g.gdt(segment(TSS2, 0x67, access::TSS32, size::B16));
    assert_eq!(task, FREE);
    let fields =
        [(0x20, v86), (0x24, 0x2_0002), (0x38, 0x7000), (0x4c, 0), (0x50, 0x1000), (0x64, 0x68 << 16)];
    for (offset, value) in fields {
        g.put32(TSS2 + offset, value);
    }
    g.put32(TSS2 + 4, STACK2);
    g.put32(TSS2 + 8, u32::from(DATA0));
    g.idt(2, gate(CODE0, entry, access::INT32, 0));
    g.alias(stubs::stub32(13), "handler of #GP");
    g.qemu_differs(&[("again: ip cs=handler of #GP 0x8", "")], "only an IRET that succeeds unblocks NMIs");
    g.main(Main::Protected, nmi);
    g.check(
        "
        NMI
        blocked
        again: ip cs=handler of #GP 0x8
        #GP(0x0) at IRET with IOPL 0 cs=0x0 fl=VM
        end
        ",
    );
}

/// Nothing but IRET unblocks.
#[test]
fn a_far_return_does_not_unblock() {
    protected(|p| asm!(p; retf_1 4)).check(
        "
        NMI
        blocked
        back
        again: ip cs=behind IRET 0x8
        end
        ",
    );
}

#[test]
fn iret_to_another_task() {
    let mut g = Guest::new();
    let task = g.gdt(segment(TSS2, 0x67, access::TSS32, size::B16));
    let entry = g.code32(|p| {
        p.say("NMI");
        send(p);
        send(p);
        p.say("blocked");
        asm!(p; iretd);
        // The task goes on where it left off.
        p.say("again");
        asm!(p; iretd);
    });
    let fields = [(0x20, entry), (0x24, 2), (0x38, STACK2), (0x4c, u32::from(CODE0)), (0x64, 0x68 << 16)];
    for (offset, value) in fields {
        g.put32(TSS2 + offset, value);
    }
    for offset in [0x48, 0x50, 0x54, 0x58, 0x5c] {
        g.put32(TSS2 + offset, u32::from(DATA0));
    }
    g.idt(2, gate(task, 0, access::TASK, 0));
    g.main(Main::Protected, nmi);
    g.check(
        "
        NMI
        blocked
        again
        back
        end
        ",
    );
}

#[test]
fn iret_in_64_bit_mode() {
    let mut t = PageTables::new(Format::Level4, true);
    // The APIC's page, in place of a page that nobody uses.
    t.set(1, RAM_END - 0x1000, u64::from(APIC) | 3);
    let mut g = Guest::new();
    let apic = RAM_END - 0x1000;
    let entry = g.code64(|p| {
        let mut second = p.a.create_label();
        let mut l = p.a.create_label();
        asm!(p; inc dword_ptr(VARS); cmp dword_ptr(VARS), 1; jne second);
        p.say("NMI");
        asm!(p; mov dword_ptr(apic + 0x300), 0x4400; jmp l);
        p.place(&mut l);
        p.say("blocked");
        let mut target = p.a.create_label();
        let at = p.address(target);
        asm!(p; mov qword_ptr(rsp), at; iretq);
        p.place(&mut target);
        p.name("target");
        p.say("target");
        p.exit();
        p.place(&mut second);
        p.show_stack("again: ip cs", 2);
        asm!(p; iretq);
    });
    g.idt64(2, gate(CODE64, entry, access::INT32, 2), 0);
    g.main(Main::Long(t), |p| {
        let mut l = p.a.create_label();
        let at = p.address(l);
        asm!(p; mov dword_ptr(apic + 0xf0), 0x1ff; mov rax, rsp; push i32::from(DATA0); push rax; pushfq;
            push i32::from(CODE64); push at; iretq);
        p.place(&mut l);
        let mut l = p.a.create_label();
        asm!(p; mov dword_ptr(apic + 0x310), 0; mov dword_ptr(apic + 0x300), 0x4400; jmp l);
        p.place(&mut l);
        p.say("not here");
    });
    g.check(
        "
        NMI
        blocked
        again: ip cs=target 0x48
        target
        ",
    );
}

/// One NMI is taken and one is kept: of two in a row none is lost.
#[test]
fn nmis_in_a_row() {
    let mut g = Guest::new();
    let entry = g.code32(|p| {
        p.say("NMI");
        asm!(p; iretd);
    });
    g.idt(2, gate(CODE0, entry, access::INT32, 0));
    g.qemu_deviates("NMI\nend", "no NMI is kept while another is pending");
    g.main(Main::Protected, |p| {
        prepare(p);
        let mut l = p.a.create_label();
        asm!(p; mov dword_ptr(APIC + 0x310), 0; mov eax, 0x4400; mov dword_ptr(APIC + 0x300), eax;
            mov dword_ptr(APIC + 0x300), eax; jmp l);
        p.place(&mut l);
        p.say("end");
    });
    g.check(
        "
        NMI
        NMI
        end
        ",
    );
}
