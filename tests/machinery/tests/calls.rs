//! SYSCALL, SYSRET, SYSENTER and SYSEXIT in each mode.
//!
//! SDM volume 2, SYSCALL, SYSRET, SYSENTER, SYSEXIT; volume 3A, 5.8.7, 5.8.8. The CPU model here is of AMD's family
//! (QEMU's `max` without acceleration is): AMD APM volume 3 says what differs, SYSCALL in compatibility mode and
//! SYSENTER in long mode.
use iced_x86::code_asm::*;
use mynah_machinery::{asm, *};

const STAR: u32 = 0xc000_0081;
const LSTAR: u32 = 0xc000_0082;
const CSTAR: u32 = 0xc000_0083;
const FMASK: u32 = 0xc000_0084;
const EFER: u32 = 0xc000_0080;

/// Descriptors in the order SYSRET wants: 32-bit code, data, 64-bit code, of level 3. The selector of the first.
fn user_segments(g: &mut Guest) -> u16 {
    let first = g.gdt(flat(dpl(access::CODE, 3), size::P32));
    g.gdt(flat(dpl(access::DATA, 3), size::P32));
    g.gdt(flat(dpl(access::CODE, 3), size::P64));
    first
}

/// The flags that are shown: all but the arithmetic ones.
const SHOWN: i32 = 0x3f_7700;

/// Volume 2, SYSCALL and SYSRET: RCX and R11 take RIP and RFLAGS; CS and SS come from STAR, their descriptors are
/// fixed; RF is cleared.
#[test]
fn syscall_and_sysret_in_64_bit_mode() {
    let mut g = Guest::new();
    let user = user_segments(&mut g);
    let kernel = g.gdt(flat(access::CODE, size::P64));
    g.gdt(flat(access::DATA, size::P32));
    let entry = g.code64(|p| {
        p.name("entry");
        p.show_segments();
        p.show64("rcx", rcx);
        asm!(p; mov rbx, r11; and ebx, SHOWN);
        p.show("r11", ebx);
        asm!(p; mov rbx, rsp);
        p.show64("rsp", rbx);
        asm!(p; mov rbx, rcx; mov rdx, r11; lea rsp, ptr(rsp - 0x100); pushfq; pop rax; and eax, SHOWN);
        p.show("flags", eax);
        asm!(p; lea rsp, ptr(rsp + 0x100); mov rcx, rbx; mov r11, rdx; sysretq);
    });
    g.qemu_differs(
        &[("#UD at flags by R11 cs=0xa3 fl=IF|NT|IOPL3", "#UD at flags by R11 cs=0xa3 fl=IF|NT|VM|IOPL3")],
        "SYSRET sets VM",
    );
    g.main(Main::Long(PageTables::new(Format::Level4, true)), |p| {
        p.attempt("SYSCALL without SCE", |p| asm!(p; syscall));
        p.attempt("SYSRET without SCE", |p| asm!(p; sysretq));
        p.wrmsr(EFER, 1 << 11 | 1 << 8 | 1);
        p.wrmsr(STAR, u64::from(user | 3) << 48 | u64::from(kernel) << 32);
        p.wrmsr(LSTAR, u64::from(entry));
        p.wrmsr(FMASK, 0x4_0600);
        asm!(p; pushfq; or dword_ptr(rsp), 0x24_3600; popfq);
        p.user(|p| {
            asm!(p; syscall);
            p.name("back");
            p.show_segments();
            asm!(p; pushfq; pop rax; and eax, SHOWN);
            p.show("flags", eax);
            p.name("sysret");
            asm!(p; sysretq);
        });
        // SYSRET with a 32-bit operand size goes to compatibility mode.
        p.guarded(|p| {
            let mut l = p.a.create_label();
            let at = p.address(l);
            asm!(p; mov ecx, at; mov r11d, 2; mov esp, STACKS[3]; sysret);
            p.place(&mut l);
            // This is 32-bit code: MOV EAX, CS; SHL EAX, 16; MOV EAX, SS; UD2.
            p.name("compatibility");
            asm!(p; db &[0x8c, 0xc8, 0xc1, 0xe0, 0x10, 0x8c, 0xd0]);
            p.name("compatibility, end");
            asm!(p; db &[0x0f, 0x0b]);
        });
        p.show("ss", eax);
        // RF and VM are not taken from R11.
        p.guarded(|p| {
            let mut l = p.a.create_label();
            let at = p.address(l);
            asm!(p; mov ecx, at; mov r11d, 0x3_7202; mov esp, STACKS[3]; sysretq);
            p.place(&mut l);
            p.name("flags by R11");
            asm!(p; ud2);
        });
    });
    g.check(
        "
        #UD at SYSCALL without SCE
        #UD at SYSRET without SCE
        cs ss ds es fs gs=0xa8 0xb0 0x0 0x0 0x0 0x0
        rcx=back
        r11=0x243600
        rsp=0x119000
        flags=0x203000
        cs ss ds es fs gs=0xa3 0x9b 0x0 0x0 0x0 0x0
        flags=0x243600
        #GP(0x0) at sysret cs=0xa3 fl=IF|DF|AC|ID|IOPL3
        #UD at compatibility, end cs=0x93
        ss=0x9b
        #UD at flags by R11 cs=0xa3 fl=IF|NT|IOPL3
        ",
    );
}

/// AMD APM volume 3, SYSCALL: in compatibility mode it goes to CSTAR; SYSENTER and SYSEXIT are #UD in long mode.
#[test]
fn syscall_in_compatibility_mode() {
    let mut g = Guest::new();
    let user = user_segments(&mut g);
    let entry = g.code64(|p| {
        p.name("entry");
        p.show_segments();
        p.show64("rcx", rcx);
        asm!(p; sysret);
    });
    let compat = g.code32(|p| {
        p.name("call");
        asm!(p; syscall);
        p.name("back");
        p.show_segments();
        p.name("sysenter");
        asm!(p; sysenter);
    });
    g.qemu_deviates(
        "cs ss ds es fs gs=0x48 0x50 0x0 0x0 0x0 0x0
        rcx=back
        cs ss ds es fs gs=0x93 0x9b 0x0 0x0 0x0 0x0
        shutdown",
        "SYSENTER exists in compatibility mode",
    );
    g.main(Main::Long(PageTables::new(Format::Level4, true)), |p| {
        p.wrmsr(EFER, 1 << 11 | 1 << 8 | 1);
        p.wrmsr(STAR, u64::from(user | 3) << 48 | u64::from(CODE64) << 32);
        p.wrmsr(CSTAR, u64::from(entry));
        p.wrmsr(LSTAR, 0x1234);
        p.wrmsr(0x174, u64::from(CODE0));
        p.guarded(|p| asm!(p; push i32::from(DATA3); push STACKS[3] as i32; pushfq; push i32::from(CODE3); push compat as i32; iretq));
        p.attempt("sysenter in 64-bit mode", |p| asm!(p; sysenter));
        p.attempt("sysexit in 64-bit mode", |p| asm!(p; sysexit));
    });
    g.check(
        "
        cs ss ds es fs gs=0x48 0x50 0x0 0x0 0x0 0x0
        rcx=back
        cs ss ds es fs gs=0x93 0x9b 0x0 0x0 0x0 0x0
        #UD at sysenter cs=0x93
        #UD at sysenter in 64-bit mode
        #UD at sysexit in 64-bit mode
        ",
    );
}

/// Volume 2, SYSENTER, SYSEXIT in protected mode: segments by fixed distances from SYSENTER_CS, flat; IF and RF cleared
/// on entry.
#[test]
fn sysenter_and_sysexit_in_protected_mode() {
    let mut g = Guest::new();
    let kernel = g.gdt(flat(access::CODE, size::P32));
    g.gdt(flat(access::DATA, size::P32));
    g.gdt(flat(dpl(access::CODE, 3), size::P32));
    g.gdt(flat(dpl(access::DATA, 3), size::P32));
    let entry = g.code32(|p| {
        p.name("entry");
        p.show_segments();
        p.show_all("esp edx ecx", &[esp, edx, ecx]);
        asm!(p; pushfd; pop eax; and eax, SHOWN);
        p.show("flags", eax);
        asm!(p; sysexit);
    });
    g.main(Main::Protected, |p| {
        p.attempt("SYSENTER with CS 0", |p| asm!(p; sysenter));
        p.attempt("SYSEXIT with CS 0", |p| asm!(p; sysexit));
        p.wrmsr(0x174, u64::from(kernel | 3));
        p.wrmsr(0x175, u64::from(STACKS[1]));
        p.wrmsr(0x176, u64::from(entry));
        p.set_flags(0x3600);
        p.user(|p| {
            let mut l = p.a.create_label();
            let at = p.address(l);
            asm!(p; mov edx, at; mov ecx, esp; sysenter);
            p.place(&mut l);
            p.name("back");
            p.show_segments();
            p.show("esp", esp);
            p.name("sysexit at level 3");
            asm!(p; sysexit);
        });
        p.attempt("SYSCALL without SCE", |p| asm!(p; syscall));
    });
    g.check(
        "
        #GP(0x0) at SYSENTER with CS 0
        #GP(0x0) at SYSEXIT with CS 0
        cs ss ds es fs gs=0x90 0x98 0x43 0x43 0x0 0x0
        esp edx ecx=0x115000 back 0x119000
        flags=0x3400
        cs ss ds es fs gs=0xa3 0xab 0x43 0x43 0x0 0x0
        esp=0x119000
        #GP(0x0) at sysexit at level 3 cs=0xa3 fl=DF|IOPL3
        #UD at SYSCALL without SCE fl=IOPL3
        ",
    );
}

/// AMD APM volume 3, SYSCALL in legacy mode: EIP from STAR, CS and SS flat, IF and RF cleared; SYSRET sets IF.
#[test]
fn syscall_in_protected_mode() {
    let mut g = Guest::new();
    let user = user_segments(&mut g);
    let entry = g.code32(|p| {
        p.name("entry");
        p.show_segments();
        p.show_all("ecx", &[ecx]);
        asm!(p; mov ebx, esp; mov esp, STACKS[1]; pushfd; pop eax; and eax, SHOWN; mov esp, ebx);
        p.show("flags", eax);
        asm!(p; sysret);
    });
    g.main(Main::Protected, |p| {
        p.wrmsr(EFER, 1);
        p.wrmsr(STAR, u64::from(user | 3) << 48 | u64::from(CODE0) << 32 | u64::from(entry));
        p.set_flags(0x3600);
        p.user(|p| {
            asm!(p; syscall);
            p.name("back");
            p.show_segments();
            p.show("esp", esp);
            asm!(p; pushfd; pop eax; and eax, SHOWN);
            p.show("flags", eax);
        });
    });
    g.check(
        "
        cs ss ds es fs gs=0x8 0x10 0x43 0x43 0x0 0x0
        ecx=back
        flags=0x3400
        cs ss ds es fs gs=0x93 0x9b 0x43 0x43 0x0 0x0
        esp=0x119000
        flags=0x3600
        ",
    );
}
