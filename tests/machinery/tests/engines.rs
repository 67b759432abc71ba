//! The same guests on every engine: interpreter, translator, KVM, and handed from one to the other all the time.
//!
//! Where KVM's host is itself a virtual machine, KVM may emulate kernel-mode code, and not all of it as the manual has
//! it. So these guests do what every KVM does: no far calls, no task switches, software interrupts from level 0 only.
use iced_x86::code_asm::*;
use mynah_machinery::paging::pte;
use mynah_machinery::{asm, *};

/// Whether this host has KVM; if not, it was said.
fn has_kvm() -> bool {
    machine::kvm_is_there()
}

/// What a guest writes by KVM; nothing if this host has none.
fn by_kvm(g: &Guest) -> Option<String> {
    has_kvm().then(|| g.log_by(machine::Engine::Kvm))
}

/// A guest that does no more than to switch paging on.
fn paged(format: Format) -> Guest {
    let mut g = Guest::new();
    g.main(Main::Paged(PageTables::new(format, false)), |p| p.say("paged"));
    g
}

const APIC: u32 = 0xfee0_0000;
/// Where its page is mapped: what the tables have room for.
const AT: u32 = 0x3f_f000;

/// How many interrupts and NMIs were taken.
const TAKEN: u32 = VARS + 0x50;

/// An interrupt or NMI that this processor sends to itself. When it arrives is the APIC's business: it is waited for.
fn send(p: &mut Prog, command: u32) {
    let mut l = p.a.create_label();
    asm!(p; mov dword_ptr(TAKEN), 0; mov dword_ptr(AT + 0x310), 0; mov dword_ptr(AT + 0x300), command);
    p.place(&mut l);
    asm!(p; pause; cmp dword_ptr(TAKEN), 0; je l);
}

/// What the main programs of all formats do.
fn program(p: &mut Prog, bits: u32) {
    p.set_cr4(0x600);
    p.say("hello");
    p.attempt("ud", |p| asm!(p; ud2));
    p.attempt("divide", |p| asm!(p; xor edx, edx; xor ecx, ecx; mov eax, 1; div ecx));
    // Port strings.
    let text = DATA;
    if bits == 64 {
        asm!(p; mov rsi, u64::from(text); mov ecx, 7);
    } else {
        asm!(p; mov esi, text; mov ecx, 7);
    }
    asm!(p; mov dx, LOG_PORT; cld);
    p.rep();
    asm!(p; outsb);
    // SSE and x87.
    asm!(p; mov eax, 3; cvtsi2sd xmm1, eax; sqrtsd xmm1, xmm1; movd eax, xmm1);
    p.show("sqrt(3), low", eax);
    asm!(p; fninit; fld1; fldpi; faddp st1, st0; fstp qword_ptr(VARS + 0x40); mov eax, dword_ptr(VARS + 0x44));
    p.show("pi+1, high", eax);
    // Level 3: computes, and is stopped by a fault.
    p.user(|p| {
        asm!(p; mov eax, 7; imul_3 eax, eax, 6; mov dword_ptr(VARS + 0x20), eax);
        p.name("cli");
        asm!(p; cli);
    });
    p.show_mem("user", VARS + 0x20);
    p.user(|p| {
        p.name("far");
        asm!(p; mov byte_ptr(0x50_0000), al);
    });
    // The local APIC: software-enable, an NMI, an interrupt.
    asm!(p; mov dword_ptr(AT + 0xf0), 0x1ff);
    send(p, 0x4400);
    p.say("sent");
    asm!(p; sti; nop);
    send(p, 0x4031);
    asm!(p; cli);
    p.say("done");
}

/// A guest whose handlers of NMI (2) and of interrupt 31h tell that they were called.
fn guest(format: Option<Format>) -> Guest {
    let mut g = Guest::new();
    g.put(DATA, b"string\n");
    let handlers = |bits: u32| {
        move |p: &mut Prog, what: &str, eoi: bool| {
            p.say(what);
            asm!(p; inc dword_ptr(TAKEN));
            if eoi {
                asm!(p; mov dword_ptr(AT + 0xb0), 0);
            }
            if bits == 64 { asm!(p; iretq) } else { asm!(p; iretd) }
        }
    };
    if matches!(format, Some(Format::Level4 | Format::Level5)) {
        let write = handlers(64);
        let nmi = g.code64(|p| write(p, "NMI", false));
        let interrupt = g.code64(|p| write(p, "interrupt", true));
        g.idt64(2, gate(CODE64, nmi, access::INT32, 0), 0);
        g.idt64(0x31, gate(CODE64, interrupt, access::INT32, 0), 0);
    } else {
        let write = handlers(32);
        let nmi = g.code32(|p| write(p, "NMI", false));
        let interrupt = g.code32(|p| write(p, "interrupt", true));
        g.idt(2, gate(CODE0, nmi, access::INT32, 0));
        g.idt(0x31, gate(CODE0, interrupt, access::INT32, 0));
    }
    g
}

/// Page tables in which the local APIC's page is mapped.
fn tables(format: Format) -> PageTables {
    let mut t = PageTables::new(format, true);
    t.set(1, AT, u64::from(APIC) | pte::ALL);
    t
}

const LOG: &str = "
    hello
    #UD at ud
    #DE at divide+9
    string
    sqrt(3), low=0xe8584caa
    pi+1, high=0x401090fd
    #GP(0x0) at cli cs=LEVEL3
    user=0x2a
    #PF(0x6) at far cs=LEVEL3 cr2=0x500000
    NMI
    sent
    interrupt
    done
";

#[test]
fn protected_mode_with_paging_in_all_formats() {
    for format in [Format::Legacy, Format::Pae] {
        let mut g = guest(Some(format));
        g.main(Main::Paged(tables(format)), |p| program(p, 32));
        let expected = LOG.replace("LEVEL3", "0x3b");
        if by_kvm(&paged(format)) == Some("paged\n".into()) {
            g.check_everywhere(&expected);
        } else {
            eprintln!("{format:?}: no KVM here that has this paging: the other engines only");
            g.check_manual(&expected, "QEMU's TCG says the same in other tests");
        }
    }
}

#[test]
fn protected_mode_without_paging() {
    let mut g = Guest::new();
    g.main(Main::Protected, |p| {
        p.say("hello");
        p.attempt("ud", |p| asm!(p; ud2));
        p.attempt(
            "limit",
            |p| asm!(p; mov eax, u32::from(DATA16); mov fs, ax; mov al, byte_ptr(0x1_0000).fs()),
        );
        asm!(p; mov eax, 0x1234_5678; bswap eax; mov dword_ptr(VARS + 0x20), eax);
        p.show_mem("swapped", VARS + 0x20);
    });
    g.check_everywhere("hello\n#UD at ud\n#GP(0x0) at limit+8\nswapped=0x78563412");
}

#[test]
fn long_mode() {
    let mut g = guest(Some(Format::Level4));
    g.main(Main::Long(tables(Format::Level4)), |p| program(p, 64));
    g.check_everywhere(&LOG.replace("LEVEL3", "0x53"));
}

/// A computation at level 3, again and again until it was handed over a thousand times: integers, SSE and x87 in one sum,
/// which is to be right each time.
#[test]
fn a_computation_that_is_handed_over_a_thousand_times_has_the_same_result() {
    const ROUNDS: u32 = 25_000_000;
    // What the host's own processor computes.
    let (mut x, mut sum) = (0x9e37_79b9_7f4a_7c15u64, 0u64);
    for _ in 0..ROUNDS {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        sum = sum.wrapping_add(x);
    }
    let (three, one) = ((3.0 * f64::from(ROUNDS)).to_bits(), f64::from(ROUNDS).to_bits());
    let mut g = Guest::new();
    g.main(Main::Long(tables(Format::Level4)), |p| {
        p.set_cr4(0x600);
        p.user(|p| {
            let mut again = p.a.create_label();
            let mut round = p.a.create_label();
            asm!(p; xor r9d, r9d; mov r8d, 3; cvtsi2sd xmm0, r8d);
            p.place(&mut again);
            asm!(p; mov ecx, ROUNDS; mov rax, 0x9e37_79b9_7f4a_7c15u64; xor edx, edx; xor ebx, ebx;
                xorpd xmm1, xmm1; fninit; fld1; fldz);
            p.place(&mut round);
            asm!(p; mov rdx, rax; shl rdx, 13; xor rax, rdx; mov rdx, rax; shr rdx, 7; xor rax, rdx; mov rdx, rax;
                shl rdx, 17; xor rax, rdx; add rbx, rax; addsd xmm1, xmm0; fadd_2 st0, st1; dec ecx; jnz round);
            asm!(p; movsd_2 qword_ptr(VARS + 0x28), xmm1; fstp qword_ptr(VARS + 0x30); fstp st0);
            // What is not as it should be.
            asm!(p; mov rdx, sum; xor rdx, rbx; or r9, rdx; mov rdx, three; xor rdx, qword_ptr(VARS + 0x28);
                or r9, rdx; mov rdx, one; xor rdx, qword_ptr(VARS + 0x30); or r9, rdx);
            asm!(p; cmp dword_ptr(ENOUGH), 0; je again; mov qword_ptr(VARS + 0x20), r9);
            p.name("end");
            asm!(p; cli);
        });
        p.show_mem("wrong", VARS + 0x20);
        p.show_mem("its high half", VARS + 0x24);
    });
    let expected = "#GP(0x0) at end cs=0x53\nwrong=0x0\nits high half=0x0";
    let changes = g.check_in_turns(expected);
    if has_kvm() {
        assert!(changes >= machine::ENOUGH_TURNS, "{changes} hand-overs");
    }
    for changes in g.check_in_turns_keeping(expected) {
        assert!(changes >= machine::ENOUGH_TURNS, "{changes} hand-overs with the local APIC");
    }
}

/// A periodic timer of the local APIC interrupts a computation at level 3, which is handed over a thousand times. Where
/// the kernel has the local APIC its ticks come in the host's time; the other engines' clock stands still in these tests.
#[test]
fn a_timer_that_is_handed_over_interrupts_on_and_on() {
    const ROUNDS: u32 = 20_000_000;
    const TICKS: u32 = VARS + 0x38;
    let (mut x, mut sum) = (1u64, 0u64);
    for _ in 0..ROUNDS {
        x = x.wrapping_mul(0x343fd).wrapping_add(7);
        sum = sum.wrapping_add(x);
    }
    let mut g = Guest::new();
    let tick = g.code64(|p| {
        asm!(p; inc dword_ptr(TICKS); mov dword_ptr(AT + 0xb0), 0; iretq);
    });
    g.idt64(0x35, gate(CODE64, tick, access::INT32, 0), 0);
    g.main(Main::Long(tables(Format::Level4)), |p| {
        asm!(p; mov dword_ptr(TICKS), 0; mov dword_ptr(AT + 0xf0), 0x1ff; mov dword_ptr(AT + 0x3e0), 0xb;
            mov dword_ptr(AT + 0x320), 0x2_0035; mov dword_ptr(AT + 0x380), 400_000;
            sti; nop);
        p.user(|p| {
            let mut again = p.a.create_label();
            let mut round = p.a.create_label();
            asm!(p; xor r9d, r9d);
            p.place(&mut again);
            asm!(p; mov ecx, ROUNDS; mov eax, 1; xor ebx, ebx);
            p.place(&mut round);
            asm!(p; imul_3 rax, rax, 0x343fd; add rax, 7; add rbx, rax; dec ecx; jnz round);
            asm!(p; mov rdx, sum; xor rdx, rbx; or r9, rdx);
            // Without a tick there would be no end.
            asm!(p; cmp dword_ptr(ENOUGH), 0; je again; cmp dword_ptr(TICKS), 16; jb again;
                mov qword_ptr(VARS + 0x20), r9);
            p.name("end");
            asm!(p; cli);
        });
        // The timer stops, and what was about to come does.
        asm!(p; cli; mov dword_ptr(AT + 0x320), 0x3_0035);
        p.show_mem("wrong", VARS + 0x20);
        p.show_mem("its high half", VARS + 0x24);
    });
    for changes in g.check_in_turns_keeping("#GP(0x0) at end cs=0x53 fl=IF\nwrong=0x0\nits high half=0x0") {
        assert!(changes >= machine::ENOUGH_TURNS, "{changes} hand-overs");
    }
}

/// A user program of Linux' kind: it enters the kernel by SYSCALL, which counts and returns by SYSRET. Half of the calls
/// in each loop are behind a stretch of computation, in which hand-overs happen.
#[test]
fn system_calls_that_are_handed_over_are_all_made() {
    const EFER: u32 = 0xc000_0080;
    const STAR: u32 = 0xc000_0081;
    const LSTAR: u32 = 0xc000_0082;
    const FMASK: u32 = 0xc000_0084;
    let by_kvm = machine::kvm_does_system_calls();
    // The other engines step by step, too, which takes its time.
    let calls: u32 = if by_kvm { 200_000 } else { 1000 };
    let mut g = Guest::new();
    // The order that SYSCALL and SYSRET want: kernel code and data; user code of 32 bits, data, code of 64 bits.
    let kernel = g.gdt(flat(access::CODE, size::P64));
    g.gdt(flat(access::DATA, size::P32));
    let user = g.gdt(flat(dpl(access::CODE, 3), size::P32));
    g.gdt(flat(dpl(access::DATA, 3), size::P32));
    g.gdt(flat(dpl(access::CODE, 3), size::P64));
    let entry = g.code64(|p| {
        asm!(p; add qword_ptr(VARS + 0x20), rdi; xor rax, rdi; sysretq);
    });
    g.main(Main::Long(tables(Format::Level4)), |p| {
        p.wrmsr(EFER, 1 << 11 | 1 << 8 | 1);
        p.wrmsr(STAR, u64::from(user | 3) << 48 | u64::from(kernel) << 32);
        p.wrmsr(LSTAR, u64::from(entry));
        p.wrmsr(FMASK, 0x4_0700);
        p.user(|p| {
            let mut round = p.a.create_label();
            let mut work = p.a.create_label();
            asm!(p; mov r15d, calls; xor eax, eax);
            p.place(&mut round);
            asm!(p; mov edi, r15d; syscall; mov r14d, 3000);
            p.place(&mut work);
            asm!(p; imul_3 rax, rax, 0x343fd; add rax, 7; dec r14d; jnz work; dec r15d; jnz round);
            asm!(p; mov qword_ptr(VARS + 0x28), rax);
            p.name("end");
            asm!(p; cli);
        });
        p.show_mem("sum, low", VARS + 0x20);
        p.show_mem("sum, high", VARS + 0x24);
        p.show_mem("value", VARS + 0x28);
    });
    let (mut x, mut sum) = (0u64, 0u64);
    for call in (1..=u64::from(calls)).rev() {
        sum += call;
        x ^= call;
        for _ in 0..3000 {
            x = x.wrapping_mul(0x343fd).wrapping_add(7);
        }
    }
    let expected = format!(
        "#GP(0x0) at end cs={:#x}\nsum, low={:#x}\nsum, high={:#x}\nvalue={:#x}",
        (user + 16) | 3,
        sum as u32,
        sum >> 32,
        x as u32
    );
    if by_kvm {
        g.check_in_turns(&expected);
    } else {
        g.check_manual(&expected, "it is a matter of engines");
    }
}
