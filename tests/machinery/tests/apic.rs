//! The local APIC's page: where IA32_APIC_BASE puts it.
//!
//! SDM volume 3A, 11.4.4 (relocating), 11.4.3 (enabling and disabling), 11.12.5 (x2APIC transitions).
use iced_x86::code_asm::*;
use mynah_machinery::{asm, *};

const APIC: u32 = 0xfee0_0000;
const BASE_MSR: u32 = 0x1b;
/// BSP and EN.
const ON: u64 = 0x900;
const X2: u64 = 0xd00;
/// The version register: what tells an APIC from memory.
const VERSION: u32 = 0x30;
const NEW: u32 = SCRATCH + 0x3000;

fn show(p: &mut Prog, name: &str, at: u32) {
    if p.bits == 64 {
        asm!(p; mov eax, at; mov eax, dword_ptr(rax));
    } else {
        asm!(p; mov eax, dword_ptr(at));
    }
    p.show(name, eax);
}

const QEMU: &str = "TCG leaves the page where it is";

/// The page leaves where it was, hides the RAM where it goes, and gives it back unchanged.
#[test]
fn the_page_moves_over_ram_and_back() {
    let mut g = Guest::new();
    g.main(Main::Protected, |p| {
        asm!(p; mov dword_ptr(NEW + VERSION), 0x1234_5678);
        show(p, "RAM", NEW + VERSION);
        show(p, "at reset", APIC + VERSION);
        p.wrmsr(BASE_MSR, u64::from(NEW) | ON);
        asm!(p; mov ecx, BASE_MSR; rdmsr);
        p.show("base", eax);
        show(p, "old place", APIC + VERSION);
        show(p, "new place", NEW + VERSION);
        // Registers are there, and keep what they hold.
        asm!(p; mov dword_ptr(NEW + 0x80), 0x50);
        p.wrmsr(BASE_MSR, u64::from(NEW + 0x1000) | ON);
        show(p, "RAM", NEW + VERSION);
        show(p, "TPR", NEW + 0x1080);
        p.wrmsr(BASE_MSR, u64::from(APIC) | ON);
        show(p, "RAM", NEW + VERSION);
        show(p, "TPR", APIC + 0x80);
        // An IPI by way of the moved page.
        p.wrmsr(BASE_MSR, u64::from(NEW) | ON);
        asm!(p; mov dword_ptr(NEW + 0x80), 0; mov dword_ptr(NEW + 0xf0), 0x1ff; mov dword_ptr(NEW + 0x300), 0x4_0031; sti; nop);
        p.name("taken");
        asm!(p; nop; cli; mov dword_ptr(NEW + 0xb0), 0);
        // Disabled it is nowhere.
        p.wrmsr(BASE_MSR, u64::from(NEW) | 0x100);
        show(p, "RAM", NEW + VERSION);
        show(p, "old place", APIC + VERSION);
    });
    g.check_manual(
        "
        RAM=0x12345678
        at reset=0x1050014
        base=0x203900
        old place=0xffffffff
        new place=0x1050014
        RAM=0x12345678
        TPR=0x50
        RAM=0x12345678
        TPR=0x50
        int 0x31 at taken fl=IF
        RAM=0x12345678
        old place=0xffffffff
        ",
        QEMU,
    );
}

/// By paging, with a translation already in the TLB; above 4 GiB as well.
#[test]
fn translations_follow_the_page() {
    let mut t = PageTables::new(Format::Level4, true);
    let (window, high) = (RAM_END - 0x1000, RAM_END - 0x2000);
    t.set(1, window, u64::from(NEW) | 3);
    t.set(1, high, 0x12_3456_7000 | 3);
    let mut g = Guest::new();
    g.main(Main::Long(t), |p| {
        asm!(p; mov dword_ptr(window + VERSION), 0x77);
        show(p, "window", window + VERSION);
        show(p, "high", high + VERSION);
        p.wrmsr(BASE_MSR, u64::from(NEW) | ON);
        show(p, "window", window + VERSION);
        p.wrmsr(BASE_MSR, 0x12_3456_7000 | ON);
        show(p, "window", window + VERSION);
        show(p, "high", high + VERSION);
        // x2APIC mode has no page.
        p.wrmsr(BASE_MSR, 0x12_3456_7000 | X2);
        show(p, "high", high + VERSION);
        asm!(p; mov ecx, 0x803; rdmsr);
        p.show("by MSR", eax);
        p.attempt("x2APIC to xAPIC", |p| p.wrmsr(BASE_MSR, u64::from(APIC) | ON));
        p.wrmsr(BASE_MSR, u64::from(NEW) | 0x100);
        p.attempt("disabled to x2APIC", |p| p.wrmsr(BASE_MSR, u64::from(APIC) | X2));
        p.attempt("EXTD alone", |p| p.wrmsr(BASE_MSR, u64::from(APIC) | 0x400));
        p.attempt("bit 9", |p| p.wrmsr(BASE_MSR, u64::from(APIC) | ON | 0x200));
        p.attempt("bit 0", |p| p.wrmsr(BASE_MSR, u64::from(APIC) | ON | 1));
        p.attempt("bit 62", |p| p.wrmsr(BASE_MSR, 1 << 62 | u64::from(APIC) | ON));
        p.wrmsr(BASE_MSR, u64::from(NEW) | ON);
        show(p, "window", window + VERSION);
        p.attempt("x2APIC by MSR without it", |p| asm!(p; mov ecx, 0x803; rdmsr));
    });
    g.check_manual(
        "
        window=0x77
        high=0xffffffff
        window=0x1050014
        window=0x77
        high=0x1050014
        high=0xffffffff
        by MSR=0x1050014
        #GP(0x0) at x2APIC to xAPIC+15
        #GP(0x0) at disabled to x2APIC+15
        #GP(0x0) at EXTD alone+15
        #GP(0x0) at bit 9+15
        #GP(0x0) at bit 0+15
        #GP(0x0) at bit 62+15
        window=0x1050014
        #GP(0x0) at x2APIC by MSR without it+5
        ",
        QEMU,
    );
}
