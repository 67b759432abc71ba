//! Guests that ask for what takes ever so long, or never ends, in one go: a kick makes the vCPU leave its run loop all
//! the same, with a state from which it goes on. On a small stack, so that nothing recurses meanwhile.
//!
//! SDM volume 2, REP (a repeated instruction can be interrupted after each iteration, with RCX, RSI, RDI and RIP to go
//! on from); volume 3A, 6.15, table 6-5 (benign exceptions are handled one after the other: CVE-2015-5307 and
//! CVE-2015-8104 are guests for which that has no end), 7.3 (T flag of a TSS).
use iced_x86::code_asm::*;
use mynah_cpu::event::{Event, EventKind};
use mynah_cpu::state::{State, gpr};
use mynah_machinery::{asm, *};

const APIC: u32 = 0xfee0_0000;
/// Where there is nothing.
const HOLE: u32 = 0x4000_0000;
/// A page that cannot be written.
const ROM: u32 = DATA + 0x8000;
/// A page table.
const WIDE: u32 = DATA + 0x1000;
/// Linear addresses from here on all lead to one page.
const FIRST: u32 = 0x40_0000;
const COUNT: u32 = 0x3000_0000;

const PENDING_DB: Option<Event> = Some(Event { vector: 1, kind: EventKind::Exception, error: None });

fn at(ip: u32) -> impl Fn(&State) -> bool + Clone + Send {
    move |s| s.gpr[gpr::RIP] == u64::from(ip)
}

/// A guest with all linear addresses from 4 MiB up on the page at `page`.
fn one_page(page: u32) -> (Guest, PageTables) {
    let mut g = Guest::new();
    for n in 0..1024 {
        g.put32(WIDE + 4 * n, page | 7);
    }
    let mut t = PageTables::new(Format::Legacy, true);
    for lin in (FIRST..=0xffc0_0000).step_by(0x40_0000) {
        t.set(2, lin, u64::from(WIDE | 7));
    }
    (g, t)
}

/// One long instruction: its name, whether it counts ESI and EDI up, by how much, and itself.
type Long = (&'static str, [u64; 3], fn(&mut Prog));

fn rep(p: &mut Prog) -> &mut CodeAssembler {
    p.rep();
    &mut p.a
}

/// Each of `list` with all its operands on `page`.
fn long_instructions(page: u32, write_protected: bool, list: &[Long]) {
    for (name, [source, dest, step], f) in list {
        let (mut g, tables) = one_page(page);
        if write_protected {
            g.write_protect(page);
        }
        g.main(Main::Paged(tables), |p| {
            asm!(p; mov esi, FIRST; mov edi, FIRST + 0x4000_0000; mov ecx, COUNT; mov eax, 0x99; mov edx, 0x80; cld);
            p.name("long");
            f(p);
        });
        let here = g.addr("long");
        let under_way = move |s: &State| at(here)(s) && (1..u64::from(COUNT)).contains(&s.gpr[gpr::RCX]);
        g.check_kicks(under_way, |engine, states| {
            let mut left = u64::from(COUNT);
            for s in states {
                let now = s.gpr[gpr::RCX];
                assert!(now <= left, "{name}, {engine}: {now:#x} elements left, {left:#x} before");
                left = now;
                let done = (u64::from(COUNT) - left) * step;
                let moved = |first: u32, counts: u64| u64::from(first) + done * counts;
                assert_eq!(s.gpr[gpr::RSI], moved(FIRST, *source), "{name}, {engine}");
                assert_eq!(s.gpr[gpr::RDI], moved(FIRST + 0x4000_0000, *dest), "{name}, {engine}");
            }
        });
    }
}

const STORES: &[Long] = &[
    ("rep stosb", [0, 1, 1], |p| rep(p).stosb().unwrap()),
    ("rep stosd", [0, 1, 4], |p| rep(p).stosd().unwrap()),
    ("rep movsb", [1, 1, 1], |p| rep(p).movsb().unwrap()),
    ("rep movsw", [1, 1, 2], |p| rep(p).movsw().unwrap()),
];

const LOADS: &[Long] = &[
    ("rep lodsb", [1, 0, 1], |p| rep(p).lodsb().unwrap()),
    ("repe cmpsb", [1, 1, 1], |p| rep(p).cmpsb().unwrap()),
    ("repne scasb", [0, 1, 1], |p| p.a.repne().scasb().unwrap()),
];

const PORTS: &[Long] = &[
    ("rep insb", [0, 1, 1], |p| rep(p).insb().unwrap()),
    ("rep outsb", [1, 0, 1], |p| rep(p).outsb().unwrap()),
];

#[test]
fn string_instructions_where_there_is_nothing() {
    for list in [STORES, LOADS, PORTS] {
        long_instructions(HOLE, false, list);
    }
}

#[test]
fn string_instructions_on_a_device() {
    for list in [STORES, LOADS, PORTS] {
        long_instructions(APIC, false, list);
    }
}

#[test]
fn string_instructions_on_memory_that_cannot_be_written() {
    for list in [STORES, LOADS, PORTS] {
        long_instructions(ROM, true, list);
    }
}

/// CVE-2015-5307: #AC's handler runs at level 3, on a misaligned stack, so that its delivery raises #AC.
#[test]
fn alignment_checks_whose_delivery_raises_another() {
    let mut g = Guest::new();
    let handler = g.code32(|p| p.quit());
    g.idt(17, gate(CODE3, handler, dpl(access::INT32, 3), 0));
    g.main(Main::Protected, |p| {
        asm!(p; mov eax, cr0; or eax, 1 << 18; mov cr0, eax);
        p.set_flags(1 << 18);
        p.user(|p| {
            asm!(p; mov esp, STACKS[3] - 1);
            p.name("misaligned");
            asm!(p; mov eax, dword_ptr(SCRATCH + 1));
        });
    });
    let pending = Event { vector: 17, kind: EventKind::Exception, error: Some(0) };
    g.check_kicks(at(g.addr("misaligned")), |engine, states| {
        for s in states {
            assert_eq!((s.cpl, s.gpr[gpr::RSP]), (3, u64::from(STACKS[3] - 1)), "{engine}");
            assert_eq!(s.pending, Some(pending), "{engine}: it is delivered when the vCPU runs on");
        }
    });
}

/// Deliveries that lead to others and come to an end: #NP, #NP again for that, #DF.
#[test]
fn exceptions_one_in_another() {
    let mut g = Guest::new();
    g.main(Main::Protected, |p| asm!(p; int 0x3f));
    g.idt(0x3f, gate(CODE0, 0, absent(access::INT32), 0));
    g.idt(11, gate(CODE0, 0, absent(access::INT32), 0));
    let handler = g.code32(|p| {
        p.say("double fault");
        p.exit();
    });
    g.idt(8, gate(CODE0, handler, access::INT32, 0));
    g.check("double fault");
}

const TSS2: u32 = DATA;
const STACK2: u32 = DATA + 0x4000;

/// A 32-bit TSS with the T flag (figure 7-2).
fn trapping_task(g: &mut Guest, eip: u32) -> u16 {
    let task = g.gdt(segment(TSS2, 0x67, access::TSS32, size::B16));
    let fields = [(0x20, eip), (0x24, 2), (0x38, STACK2), (0x4c, u32::from(CODE0)), (0x64, 0x68 << 16 | 1)];
    for (offset, value) in fields {
        g.put32(TSS2 + offset, value);
    }
    for offset in [0x48, 0x50, 0x54, 0x58, 0x5c] {
        g.put32(TSS2 + offset, u32::from(DATA0));
    }
    task
}

/// #DB goes through a task gate to a TSS whose T flag raises #DB. The task is never busy, as the GDT cannot be written: firmware may have it in its shadow.
#[test]
fn debug_traps_of_tasks_that_lead_to_the_same_task() {
    let starts: [fn(&mut Prog, u16); 3] =
        [|p, _| asm!(p; db &[0xf1]), |p, task| asm!(p; jmp_far task, 0), |p, task| asm!(p; call_far task, 0)];
    for start in starts {
        let mut g = Guest::new();
        let handler = g.code32(|p| {
            p.name("task");
            asm!(p; hlt);
        });
        let task = trapping_task(&mut g, handler);
        g.idt(1, gate(task, 0, access::TASK, 0));
        g.write_protect(GDT);
        g.main(Main::Protected, |p| start(p, task));
        g.check_kicks(at(g.addr("task")), |engine, states| {
            for s in states {
                assert_eq!(s.pending, PENDING_DB, "{engine}");
                assert_eq!(s.dr[6] & 0xf00f, 1 << 15, "{engine}");
                assert_eq!(s.tr.sel, task, "{engine}");
            }
        });
    }
}

/// CVE-2015-8104: a breakpoint on the stack of #DB's handler, to which each delivery comes back (IST).
#[test]
fn a_breakpoint_on_what_the_delivery_of_its_trap_writes() {
    let mut g = Guest::new();
    let handler = g.code64(|p| {
        p.name("handler");
        asm!(p; hlt);
    });
    g.idt64(1, gate(CODE64, handler, access::INT32, 1), 0);
    g.main(Main::Long(PageTables::new(Format::Level4, true)), |p| {
        asm!(p; mov eax, IST1 - 8; mov dr0, rax; mov eax, 0x402 | 1 << 16 | 2 << 18; mov dr7, rax; db &[0xf1]);
    });
    g.check_kicks(at(g.addr("handler")), |engine, states| {
        for s in states {
            assert_eq!(s.pending, PENDING_DB, "{engine}");
            assert_eq!((s.dr[6] & 0xf00f, s.gpr[gpr::RSP]), (1, u64::from(IST1 - 40)), "{engine}");
        }
    });
}

/// Handlers whose first instruction raises the exception again, or that are not there: on a 16-bit stack, which never
/// ends.
#[test]
fn handlers_that_raise_what_they_handle() {
    let raises: [(u8, u32); 2] = [(6, 0), (14, HOLE)];
    for (vector, handler) in raises {
        let mut g = Guest::new();
        let stack16 = g.gdt(segment(SCRATCH, 0xffff, access::DATA, size::B16));
        let invalid = g.code32(|p| {
            p.name("invalid");
            asm!(p; ud2);
        });
        let handler = if handler == 0 { invalid } else { handler };
        g.idt(vector, gate(CODE0, handler, access::INT32, 0));
        g.main(Main::Paged(PageTables::new(Format::Legacy, true)), |p| {
            asm!(p; mov eax, u32::from(stack16); mov ss, ax; mov esp, 0xfff0; mov ebx, handler; jmp ebx);
        });
        g.check_kicks(at(handler), |_, _| {});
    }
}

/// Loops without an end of their own, for comparison.
#[test]
fn loops() {
    let mut g = Guest::new();
    g.main(Main::Protected, |p| {
        let mut here = p.a.create_label();
        p.place(&mut here);
        p.name("loop");
        asm!(p; jmp here);
    });
    g.check_kicks(at(g.addr("loop")), |_, _| {});
}
