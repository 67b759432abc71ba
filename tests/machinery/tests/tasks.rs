//! Hardware task switches: TSS descriptors, task gates, links, busy bits, faults in the new task.
//!
//! SDM volume 3A, chapter 7 (7.2 structures, 7.3 task switching with table 7-1 exception conditions and table 7-2
//! effects, 7.4 task linking, 7.6 16-bit TSS); volume 2, CALL, JMP, IRET, INT n.
use iced_x86::code_asm::*;
use mynah_machinery::{asm, *};

/// Where the second task's TSS lies.
const TSS2: u32 = DATA;
/// Where the handler task's TSS lies.
const TSS_H: u32 = DATA + 0x200;
/// Where a 16-bit TSS lies.
const TSS_16: u32 = DATA + 0x400;
const STACK2: u32 = DATA + 0x2000;
const STACK_H: u32 = DATA + 0x4000;

/// Offsets in the 32-bit TSS, figure 7-2.
mod t32 {
    pub const CR3: u32 = 0x1c;
    pub const EIP: u32 = 0x20;
    pub const EFLAGS: u32 = 0x24;
    pub const EAX: u32 = 0x28;
    pub const ESP: u32 = 0x38;
    pub const ES: u32 = 0x48;
    pub const CS: u32 = 0x4c;
    pub const SS: u32 = 0x50;
    pub const DS: u32 = 0x54;
    pub const LDT: u32 = 0x60;
    pub const TRAP: u32 = 0x64;
}

fn fill_tss32(g: &mut Guest, at: u32, eip: u32, esp_: u32) {
    g.put32(at + t32::EIP, eip);
    g.put32(at + t32::EFLAGS, 2);
    g.put32(at + t32::ESP, esp_);
    for off in [t32::ES, t32::SS, t32::DS, t32::DS + 4, t32::DS + 8] {
        g.put32(at + off, u32::from(DATA0));
    }
    g.put32(at + t32::CS, u32::from(CODE0));
    for (n, off) in [0u32, 1, 2, 3, 5, 6, 7].iter().zip([0u32, 4, 8, 12, 20, 24, 28]) {
        g.put32(at + t32::EAX + off, 0x1111_1111 * (n + 1));
    }
    g.put32(at + 4, STACKS[0]);
    g.put32(at + 8, u32::from(DATA0));
    g.put32(at + t32::TRAP, 0x68 << 16);
}

/// Shows the access bytes of TSS descriptors: 89h available, 8Bh busy.
fn show_access(p: &mut Prog, name: &str, sels: &[u16]) {
    p.print(&format!("={name} "));
    for sel in sels {
        asm!(p; push eax; movzx eax, byte_ptr(GDT + u32::from(*sel) + 5); call u64::from(stubs::HEX32); pop eax);
    }
    p.print("\n");
}

/// Shows TR, NT, CR0.TS (which it clears) and the link field of the TSS at `tss`.
fn show_task(p: &mut Prog, name: &str, tss: u32) {
    p.print(&format!("={name} "));
    asm!(p; pushad; xor eax, eax; str ax; call u64::from(stubs::HEX32);
        pushfd; pop eax; and eax, 0x4000; call u64::from(stubs::HEX32);
        mov eax, cr0; and eax, 8; call u64::from(stubs::HEX32); clts;
        movzx eax, word_ptr(tss); call u64::from(stubs::HEX32); popad);
    p.print("\n");
}

/// Table 7-2: busy flags, NT and the link field after JMP, CALL, IRET and an interrupt; CR0.TS is set each time. The
/// registers come from the TSS and go there.
#[test]
fn switches_by_jmp_call_iret_and_interrupt() {
    let mut g = Guest::new();
    let task2 = g.gdt(segment(TSS2, 0x67, access::TSS32, size::B16));
    let task_gate = g.gdt(gate(task2, 0, dpl(access::TASK, 3), 0));
    g.idt(0x25, gate(task2, 0, dpl(access::TASK, 3), 0));
    let task = g.code32(|p| {
        p.say("by JMP");
        p.show_all("eax ecx edx ebx esp ebp esi edi", &[eax, ecx, edx, ebx, esp, ebp, esi, edi]);
        show_task(p, "tr NT TS link", TSS2);
        show_access(p, "main task2", &[TR32, task2]);
        p.show_segments();
        asm!(p; mov eax, 0xabcd_0001u32; jmp_far TR32, 0xdead_beef);
        p.name("after_jmp");
        p.say("by CALL");
        p.show("eax", eax);
        show_task(p, "tr NT TS link", TSS2);
        show_access(p, "main task2", &[TR32, task2]);
        asm!(p; iretd);
        p.name("after_iret");
        p.say("by CALL of a gate");
        show_task(p, "tr NT TS link", TSS2);
        asm!(p; iretd);
        p.say("by JMP of a gate");
        show_task(p, "tr NT TS link", TSS2);
        asm!(p; jmp_far TR32, 0);
        p.say("by INT");
        show_task(p, "tr NT TS link", TSS2);
        show_access(p, "main task2", &[TR32, task2]);
        asm!(p; iretd);
        p.say("by INT from level 3");
        show_task(p, "tr NT TS link", TSS2);
        asm!(p; mov eax, dword_ptr(TSS32 + t32::EIP); mov ebx, dword_ptr(TSS32 + t32::CS); mov ecx, dword_ptr(TSS32 + t32::ESP));
        p.show_all("saved eip cs esp", &[eax, ebx, ecx]);
        asm!(p; iretd);
    });
    fill_tss32(&mut g, TSS2, task, STACK2);
    g.main(Main::Protected, |p| {
        asm!(p; mov eax, 1; mov ecx, 2; mov edx, 3; mov ebx, 4; mov ebp, 6; mov esi, 7; mov edi, 8);
        asm!(p; jmp_far task2, 0);
        p.name("main1");
        p.show_all("eax ecx edx ebx esp ebp esi edi", &[eax, ecx, edx, ebx, esp, ebp, esi, edi]);
        show_task(p, "tr NT TS link", TSS32);
        show_access(p, "main task2", &[TR32, task2]);
        p.show_mem("eip of task 2", TSS2 + t32::EIP);
        p.show_mem("eax of task 2", TSS2 + t32::EAX);
        p.show_mem("eip of main", TSS32 + t32::EIP);
        p.show_mem("eflags of main", TSS32 + t32::EFLAGS);
        p.show_mem("cs of main", TSS32 + t32::CS);
        asm!(p; call_far task2, 0);
        p.name("main2");
        show_task(p, "tr NT TS link", TSS32);
        show_access(p, "main task2", &[TR32, task2]);
        p.show_mem("eip of task 2", TSS2 + t32::EIP);
        p.show_mem("eflags of task 2", TSS2 + t32::EFLAGS);
        asm!(p; call_far task_gate, 0; jmp_far task_gate, 0);
        show_task(p, "tr NT TS link", TSS32);
        asm!(p; int 0x25);
        p.name("main3");
        show_task(p, "tr NT TS link", TSS32);
        p.user(|p| {
            asm!(p; int 0x25);
            p.name("user_back");
            p.say("back at level 3");
        });
    });
    g.check(
        "
        by JMP
        eax ecx edx ebx esp ebp esi edi=0x11111111 0x22222222 0x33333333 0x44444444 0x182000 0x66666666 0x77777777 0x88888888
        tr NT TS link=0x90 0x0 0x8 0x0
        main task2=0x89 0x8b
        cs ss ds es fs gs=0x8 0x10 0x10 0x10 0x10 0x10
        eax ecx edx ebx esp ebp esi edi=0x1 0x2 0x3 0x4 0x111000 0x6 0x7 0x8
        tr NT TS link=0x68 0x0 0x8 0x0
        main task2=0x8b 0x89
        eip of task 2=after_jmp
        eax of task 2=0xabcd0001
        eip of main=main1
        eflags of main=0x46
        cs of main=0x8
        by CALL
        eax=0xabcd0001
        tr NT TS link=0x90 0x4000 0x8 0x68
        main task2=0x8b 0x8b
        tr NT TS link=0x68 0x0 0x8 0x0
        main task2=0x8b 0x89
        eip of task 2=after_iret
        eflags of task 2=0x2
        by CALL of a gate
        tr NT TS link=0x90 0x4000 0x8 0x68
        by JMP of a gate
        tr NT TS link=0x90 0x0 0x8 0x68
        tr NT TS link=0x68 0x0 0x8 0x0
        by INT
        tr NT TS link=0x90 0x4000 0x8 0x68
        main task2=0x8b 0x8b
        tr NT TS link=0x68 0x0 0x8 0x0
        by INT from level 3
        tr NT TS link=0x90 0x4000 0x8 0x68
        saved eip cs esp=user_back 0x3b 0x119000
        back at level 3
        ",
    );
}

/// Volume 2, JMP/CALL/IRET: descriptors that are not available TSSs, and the checks of task gates; before the switch,
/// so in the old task.
#[test]
fn checks_before_the_switch() {
    let mut g = Guest::new();
    let busy = g.gdt(segment(TSS2, 0x67, access::TSS32 | 2, size::B16));
    let away = g.gdt(segment(TSS2, 0x67, absent(access::TSS32), size::B16));
    let small = g.gdt(segment(TSS2, 0x66, access::TSS32, size::B16));
    let small16 = g.gdt(segment(TSS2, 0x2a, access::TSS16, size::B16));
    let fine = g.gdt(segment(TSS2, 0x67, access::TSS32, size::B16));
    let mut task_gate = |sel: u16, a: u8| g.gdt(gate(sel, 0, a, 0));
    let t3 = dpl(access::TASK, 3);
    let gates = [
        ("gate to busy", task_gate(busy, t3)),
        ("gate to absent", task_gate(away, t3)),
        ("gate to small", task_gate(small, t3)),
        ("gate to LDT", task_gate(4, t3)),
        ("gate to null", task_gate(0, t3)),
        ("gate to code", task_gate(CODE0, t3)),
        ("gate beyond", task_gate(0xfff8, t3)),
        ("absent gate", task_gate(fine, absent(t3))),
    ];
    let gate0 = task_gate(fine, access::TASK);
    for (v, target) in (0x31u8..).zip([busy, away, small, 4, 0, CODE0, 0xfff8]) {
        g.idt(v, gate(target, 0, t3, 0));
    }
    g.idt(0x38, gate(fine, 0, absent(t3), 0));
    fill_tss32(&mut g, TSS2, 0, STACK2);
    g.qemu_differs(
        &[
            ("#GP(0x4) at JMP gate to LDT", "#TS(0x4) at JMP gate to LDT"),
            ("#GP(0x4) at INT gate to LDT", "#TS(0x4) at INT gate to LDT"),
        ],
        "#TS, not #GP, for a task gate that names the LDT",
    );
    g.main(Main::Protected, |p| {
        for (name, sel) in [("busy", busy), ("absent", away), ("small", small), ("small 16-bit", small16)] {
            p.attempt(&format!("JMP {name}"), |p| asm!(p; jmp_far sel, 0));
            p.attempt(&format!("CALL {name}"), |p| asm!(p; call_far sel, 0));
        }
        p.attempt("JMP self", |p| asm!(p; jmp_far TR32, 0));
        p.attempt_at(3, "TSS of DPL 0 from 3", |p| asm!(p; jmp_far fine, 0));
        p.attempt_at(0, "TSS with RPL 3", |p| asm!(p; jmp_far fine | 3, 0));
        p.attempt_at(3, "gate of DPL 0 from 3", |p| asm!(p; jmp_far gate0, 0));
        for (name, sel) in gates {
            p.attempt(&format!("JMP {name}"), |p| asm!(p; jmp_far sel, 0));
        }
        for (v, (name, _)) in (0x31..).zip(gates) {
            p.attempt(&format!("INT {name}"), |p| asm!(p; int v));
        }
        // IRET with NT: the link must name a busy TSS.
        for (name, link) in [("fine", fine), ("null", 0), ("LDT", 4), ("code", CODE0), ("beyond", 0xfff8)] {
            p.guarded(|p| {
                asm!(p; mov dword_ptr(TSS32), u32::from(link));
                p.set_flags(0x4000);
                p.name(&format!("IRET {name}"));
                asm!(p; iretd);
            });
        }
        // Absent but busy.
        p.guarded(|p| {
            asm!(p; or byte_ptr(GDT + u32::from(away) + 5), 2; mov dword_ptr(TSS32), u32::from(away));
            p.set_flags(0x4000);
            p.name("IRET absent");
            asm!(p; iretd);
        });
        show_access(p, "busy absent small fine", &[busy, away, small, fine]);
    });
    g.check(
        "
        #GP(0x90) at JMP busy
        #GP(0x90) at CALL busy
        #NP(0x98) at JMP absent
        #NP(0x98) at CALL absent
        #TS(0xa0) at JMP small
        #TS(0xa0) at CALL small
        #TS(0xa8) at JMP small 16-bit
        #TS(0xa8) at CALL small 16-bit
        #GP(0x68) at JMP self
        #GP(0xb0) at TSS of DPL 0 from 3 cs=0x3b
        #GP(0xb0) at TSS with RPL 3
        #GP(0xf8) at gate of DPL 0 from 3 cs=0x3b
        #GP(0x90) at JMP gate to busy
        #NP(0x98) at JMP gate to absent
        #TS(0xa0) at JMP gate to small
        #GP(0x4) at JMP gate to LDT
        #GP(0x0) at JMP gate to null
        #GP(0x8) at JMP gate to code
        #GP(0xfff8) at JMP gate beyond
        #NP(0xf0) at JMP absent gate
        #GP(0x90) at INT gate to busy
        #NP(0x98) at INT gate to absent
        #TS(0xa0) at INT gate to small
        #GP(0x4) at INT gate to LDT
        #GP(0x0) at INT gate to null
        #GP(0x8) at INT gate to code
        #GP(0xfff8) at INT gate beyond
        #NP(0x1c2) at INT absent gate
        #TS(0xb0) at IRET fine fl=NT
        #TS(0x0) at IRET null fl=NT
        #TS(0x4) at IRET LDT fl=NT
        #TS(0x8) at IRET code fl=NT
        #TS(0xfff8) at IRET beyond fl=NT
        #NP(0x98) at IRET absent fl=NT
        busy absent small fine=0x8b 0xb 0x89 0x89
        ",
    );
}

/// Table 7-1: faults that are found while the new task's segments are loaded belong to the new task: its TSS is in TR,
/// and the handler (a task here) finds the new task's state in the TSS that its link names.
#[test]
fn faults_in_the_new_task() {
    let mut g = Guest::new();
    let task2 = g.gdt(segment(TSS2, 0x67, access::TSS32, size::B16));
    let absent_code = g.gdt(flat(absent(access::CODE), size::P32));
    let absent_data = g.gdt(flat(absent(access::DATA), size::P32));
    let read_only = g.gdt(flat(access::READ_ONLY, size::P32));
    let execute = g.gdt(flat(access::EXECUTE, size::P32));
    let ldt = g.gdt(segment(LDT, 0xff, access::LDT, size::B16));
    let absent_ldt = g.gdt(segment(LDT, 0xff, absent(access::LDT), size::B16));
    let in_ldt = g.ldt(2, flat(access::DATA, size::P32));
    // A handler task for each vector: EDI holds the vector, ESI the TSS, EBP the stack's top.
    let handler = g.code32(|p| {
        let mut again = p.a.create_label();
        p.place(&mut again);
        asm!(p; pop eax);
        p.show_all("vector error", &[edi, eax]);
        asm!(p; movzx eax, word_ptr(esi); pushfd; pop ebx; and ebx, 0x4000);
        p.show_all("link NT", &[eax, ebx]);
        show_access(p, "main task2", &[TR32, task2]);
        asm!(p; mov ebx, dword_ptr(TSS2 + t32::CS); mov ecx, dword_ptr(TSS2 + t32::SS); mov edx, dword_ptr(TSS2 + t32::DS));
        p.show_all("task2 cs ss ds", &[ebx, ecx, edx]);
        asm!(p; xor eax, eax; mov ebx, dword_ptr(RECOVER); cmp ebx, dword_ptr(TSS2 + t32::EIP); sete al);
        p.show("at its first instruction", eax);
        asm!(p; and byte_ptr(GDT + u32::from(TR32) + 5), !2i32; and byte_ptr(GDT + u32::from(task2) + 5), !2i32; mov esp, ebp);
        p.clear_flags(0x4000);
        asm!(p; jmp_far TR32, 0; jmp again);
    });
    for v in 10..14u8 {
        let at = TSS_H + 0x100 * u32::from(v);
        let stack = STACK_H + 0x200 * u32::from(v);
        fill_tss32(&mut g, at, handler, stack);
        g.put32(at + t32::ESP + 4, stack);
        g.put32(at + t32::ESP + 8, at);
        g.put32(at + t32::ESP + 12, u32::from(v));
        let sel = g.gdt(segment(at, 0x67, access::TSS32, size::B16));
        g.idt(v, gate(sel, 0, access::TASK, 0));
    }
    let task = g.code32(|p| {
        p.say("runs");
        asm!(p; jmp_far TR32, 0);
    });
    g.alias(task, "task2");
    fill_tss32(&mut g, TSS2, task, STACK2);
    g.qemu_differs(
        &[("at its first instruction=0x1", "at its first instruction=0x0")],
        "the new task's EIP is that of the switching instruction",
    );
    g.qemu_differs(
        &[("vector error=0xc 0xa0", "vector error=0xb 0xa0")],
        "#NP, not #SS, for an absent stack",
    );
    g.main(Main::Protected, |p| {
        for (name, field, value, usual) in [
            ("null LDT", t32::LDT, 0u16, 0u16),
            ("LDT", t32::LDT, ldt, 0),
            ("LDT is code", t32::LDT, CODE0, 0),
            ("absent LDT", t32::LDT, absent_ldt, 0),
            ("LDT in the LDT", t32::LDT, 4, 0),
            ("null CS", t32::CS, 0, CODE0),
            ("CS is data", t32::CS, DATA0, CODE0),
            ("absent CS", t32::CS, absent_code, CODE0),
            ("CS beyond", t32::CS, 0xfff8, CODE0),
            ("CS of level 3 with RPL 0", t32::CS, CODE3 & !3, CODE0),
            ("null SS", t32::SS, 0, DATA0),
            ("SS read-only", t32::SS, read_only, DATA0),
            ("absent SS", t32::SS, absent_data, DATA0),
            ("SS of level 3", t32::SS, DATA3, DATA0),
            ("null DS", t32::DS, 0, DATA0),
            ("absent DS", t32::DS, absent_data, DATA0),
            ("DS is execute-only", t32::DS, execute, DATA0),
            ("DS is a TSS", t32::DS, task2, DATA0),
            ("DS in no LDT", t32::DS, in_ldt, DATA0),
        ] {
            p.say(name);
            asm!(p; mov dword_ptr(RECOVER), task; mov dword_ptr(TSS2 + field), u32::from(value); mov dword_ptr(TSS2 + t32::EIP), task);
            asm!(p; jmp_far task2, 0; mov dword_ptr(TSS2 + field), u32::from(usual); mov dword_ptr(TSS2 + t32::ESP), STACK2);
            asm!(p; mov dword_ptr(TSS2 + t32::CS), u32::from(CODE0); mov dword_ptr(TSS2 + t32::SS), u32::from(DATA0);
                mov dword_ptr(TSS2 + t32::DS), u32::from(DATA0); mov dword_ptr(TSS2 + t32::ES), u32::from(DATA0);
                mov dword_ptr(TSS2 + t32::DS + 4), u32::from(DATA0); mov dword_ptr(TSS2 + t32::DS + 8), u32::from(DATA0));
        }
        // By CALL: the old task stays busy, the new one's link names it.
        p.say("CALL with null SS");
        asm!(p; mov dword_ptr(TSS2 + t32::SS), 0; mov dword_ptr(TSS2 + t32::EIP), task; call_far task2, 0);
        p.say("done");
    });
    g.check(
        "
        null LDT
        runs
        LDT
        runs
        LDT is code
        vector error=0xa 0x8
        link NT=0x90 0x4000
        main task2=0x89 0x8b
        task2 cs ss ds=0x8 0x10 0x10
        at its first instruction=0x1
        absent LDT
        vector error=0xa 0xc0
        link NT=0x90 0x4000
        main task2=0x89 0x8b
        task2 cs ss ds=0x8 0x10 0x10
        at its first instruction=0x1
        LDT in the LDT
        vector error=0xa 0x4
        link NT=0x90 0x4000
        main task2=0x89 0x8b
        task2 cs ss ds=0x8 0x10 0x10
        at its first instruction=0x1
        null CS
        vector error=0xa 0x0
        link NT=0x90 0x4000
        main task2=0x89 0x8b
        task2 cs ss ds=0x0 0x10 0x10
        at its first instruction=0x1
        CS is data
        vector error=0xa 0x10
        link NT=0x90 0x4000
        main task2=0x89 0x8b
        task2 cs ss ds=0x10 0x10 0x10
        at its first instruction=0x1
        absent CS
        vector error=0xb 0x98
        link NT=0x90 0x4000
        main task2=0x89 0x8b
        task2 cs ss ds=0x98 0x10 0x10
        at its first instruction=0x1
        CS beyond
        vector error=0xa 0xfff8
        link NT=0x90 0x4000
        main task2=0x89 0x8b
        task2 cs ss ds=0xfff8 0x10 0x10
        at its first instruction=0x1
        CS of level 3 with RPL 0
        vector error=0xa 0x38
        link NT=0x90 0x4000
        main task2=0x89 0x8b
        task2 cs ss ds=0x38 0x10 0x10
        at its first instruction=0x1
        null SS
        vector error=0xa 0x0
        link NT=0x90 0x4000
        main task2=0x89 0x8b
        task2 cs ss ds=0x8 0x0 0x10
        at its first instruction=0x1
        SS read-only
        vector error=0xa 0xa8
        link NT=0x90 0x4000
        main task2=0x89 0x8b
        task2 cs ss ds=0x8 0xa8 0x10
        at its first instruction=0x1
        absent SS
        vector error=0xc 0xa0
        link NT=0x90 0x4000
        main task2=0x89 0x8b
        task2 cs ss ds=0x8 0xa0 0x10
        at its first instruction=0x1
        SS of level 3
        vector error=0xa 0x40
        link NT=0x90 0x4000
        main task2=0x89 0x8b
        task2 cs ss ds=0x8 0x43 0x10
        at its first instruction=0x1
        null DS
        runs
        absent DS
        vector error=0xb 0xa0
        link NT=0x90 0x4000
        main task2=0x89 0x8b
        task2 cs ss ds=0x8 0x10 0xa0
        at its first instruction=0x1
        DS is execute-only
        vector error=0xa 0xb0
        link NT=0x90 0x4000
        main task2=0x89 0x8b
        task2 cs ss ds=0x8 0x10 0xb0
        at its first instruction=0x1
        DS is a TSS
        vector error=0xa 0x90
        link NT=0x90 0x4000
        main task2=0x89 0x8b
        task2 cs ss ds=0x8 0x10 0x90
        at its first instruction=0x1
        DS in no LDT
        vector error=0xa 0x14
        link NT=0x90 0x4000
        main task2=0x89 0x8b
        task2 cs ss ds=0x8 0x10 0x14
        at its first instruction=0x1
        CALL with null SS
        vector error=0xa 0x0
        link NT=0x90 0x4000
        main task2=0x8b 0x8b
        task2 cs ss ds=0x8 0x0 0x10
        at its first instruction=0x1
        done
        ",
    );
}

/// 7.2.1 and volume 3B, 17.2.3: with T set in its TSS, the new task's first instruction is preceded by #DB with DR6.BT.
#[test]
fn the_debug_trap_flag_of_a_tss() {
    let mut g = Guest::new();
    let task2 = g.gdt(segment(TSS2, 0x67, access::TSS32, size::B16));
    let task = g.code32(|p| {
        p.name("first");
        p.say("runs");
        asm!(p; mov eax, dr7);
        p.show("dr7", eax);
        asm!(p; jmp_far TR32, 0);
    });
    fill_tss32(&mut g, TSS2, task, STACK2);
    g.put(TSS2 + t32::TRAP, &[1]);
    g.qemu_differs(
        &[("#DB at first dr6=8000", ""), ("dr7=0x408", "dr7=0x508")],
        "there is no T flag, and LE stays set",
    );
    g.main(Main::Protected, |p| {
        // Volume 3B, 17.2.4: the local enable bits are cleared on every switch, the global ones are not.
        asm!(p; mov eax, SCRATCH; mov dr0, eax; mov dr1, eax; mov eax, 0x55d; mov dr7, eax);
        asm!(p; jmp_far task2, 0);
        asm!(p; mov eax, dr7);
        p.show("dr7", eax);
    });
    g.check(
        "
        #DB at first dr6=8000
        runs
        dr7=0x408
        dr7=0x408
        ",
    );
}

/// 7.6: 16-bit TSSs hold 16-bit registers, no CR3, FS or GS; the switch from and to 32-bit tasks.
#[test]
fn a_16_bit_task() {
    let mut g = Guest::new();
    let tr16 = g.gdt(segment(TSS_16, 0x2b, access::TSS16, size::B16));
    let task = g.low32(|p| {
        asm!(p; movzx eax, ax; movzx ecx, cx; movzx esi, si; movzx esp, sp);
        p.show_all("eax ecx esp esi", &[eax, ecx, esp, esi]);
        p.show_segments();
        show_task(p, "tr NT TS link", TSS_16);
        show_access(p, "main 16", &[TR32, tr16]);
        asm!(p; mov eax, 0x1234_5678; iretd);
        p.name("again");
        asm!(p; movzx eax, ax);
        p.show("eax", eax);
        asm!(p; jmp_far TR32, 0);
    });
    let words: [u16; 22] = [
        0,
        0x3000,
        DATA0,
        0,
        0,
        0,
        0,
        task as u16,
        2,
        0xaaaa,
        0xcccc,
        0xdddd,
        0xbbbb,
        0x7f00,
        0x5555,
        0x5151,
        0xd1d1,
        DATA0,
        CODE0,
        DATA16,
        DATA0,
        0,
    ];
    for (i, w) in words.iter().enumerate() {
        g.put(TSS_16 + 2 * i as u32, &w.to_le_bytes());
    }
    g.main(Main::Protected, |p| {
        asm!(p; call_far tr16, 0);
        show_task(p, "tr NT TS link", TSS32);
        p.show_mem("ip flags", TSS_16 + 0xe);
        p.show_mem("flags ax", TSS_16 + 0x10);
        asm!(p; mov eax, dword_ptr(TSS_16 + 0x24));
        p.show("cs ss", eax);
        asm!(p; jmp_far tr16, 0);
        show_task(p, "tr NT TS link", TSS32);
        show_access(p, "main 16", &[TR32, tr16]);
    });
    g.check(
        "
        eax ecx esp esi=0xaaaa 0xcccc 0x7f00 0x5151
        cs ss ds es fs gs=0x8 0x60 0x10 0x10 0x0 0x0
        tr NT TS link=0x90 0x4000 0x8 0x68
        main 16=0x8b 0x83
        tr NT TS link=0x68 0x0 0x8 0x0
        ip flags=0x281cf
        flags ax=0x56780002
        cs ss=0x600008
        eax=0x5678
        tr NT TS link=0x68 0x0 0x8 0x0
        main 16=0x8b 0x81
        ",
    );
}

/// 7.3: with paging the new task's CR3 is loaded; an exception with an error code pushes it on the new task's stack.
#[test]
fn a_task_with_page_tables_of_its_own() {
    let mut g = Guest::new();
    let tables = PageTables::new(Format::Legacy, false);
    let task2 = g.gdt(segment(TSS2, 0x67, access::TSS32, size::B16));
    // The other directory: the same tables but for the last page, which leads to another.
    let other = TABLES + 0x1_0000;
    let mut second = tables.clone();
    second.set(1, RAM_END - 0x1000, u64::from(SCRATCH) | 3);
    let (dir, table) = (second.get(2, 0), other + 0x1000);
    g.put(other, &(dir as u32 & 0xfff | table).to_le_bytes());
    g.put(table, &second.bytes()[0x1000..0x2000]);
    g.idt(14, gate(task2, 0, access::TASK, 0));
    let task = g.code32(|p| {
        let mut again = p.a.create_label();
        p.place(&mut again);
        asm!(p; pop eax);
        p.show("error", eax);
        asm!(p; mov eax, cr2);
        p.show("cr2", eax);
        asm!(p; mov eax, cr3);
        p.show("cr3", eax);
        p.show_mem("last page", RAM_END - 0x1000);
        p.show_mem("eip of main", TSS32 + t32::EIP);
        show_task(p, "tr NT TS link", TSS2);
        asm!(p; mov eax, dword_ptr(RECOVER); mov dword_ptr(TSS32 + t32::EIP), eax; iretd; jmp again);
    });
    fill_tss32(&mut g, TSS2, task, STACK2);
    g.put32(TSS2 + t32::CR3, other);
    g.put32(TSS32 + t32::CR3, tables.root());
    g.qemu_differs(&[("flags of main=0x10046", "flags of main=0x46")], "faults do not push RF");
    g.main(Main::Paged(tables), |p| {
        asm!(p; mov dword_ptr(SCRATCH), 0x2222; mov dword_ptr(RAM_END - 0x1000), 0x1111);
        p.attempt("read", |p| asm!(p; mov eax, dword_ptr(0x50_0000)));
        p.show_mem("last page", RAM_END - 0x1000);
        p.attempt("write", |p| asm!(p; mov dword_ptr(0x50_0008), eax));
        asm!(p; mov eax, cr3);
        p.show("cr3", eax);
        p.show_mem("flags of main", TSS32 + t32::EFLAGS);
    });
    g.check(
        "
        error=0x0
        cr2=0x500000
        cr3=0x160000
        last page=0x2222
        eip of main=read
        tr NT TS link=0x90 0x4000 0x8 0x68
        last page=0x1111
        error=0x2
        cr2=0x500008
        cr3=0x160000
        last page=0x2222
        eip of main=write
        tr NT TS link=0x90 0x4000 0x8 0x68
        cr3=0x150000
        flags of main=0x10046
        ",
    );
}
