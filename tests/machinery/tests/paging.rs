//! Paging in all four formats: rights, error codes, reserved bits, accessed and dirty flags, SMEP, SMAP, protection
//! keys, page sizes, invalidation.
//!
//! SDM volume 3A, chapter 4: 4.3-4.5 (formats and their reserved bits), 4.6 (access rights), 4.7 (page-fault
//! exceptions), 4.8 (accessed and dirty flags), 4.10 (caching of translations).
use iced_x86::code_asm::*;
use mynah_machinery::paging::pte::{A, ALL, D, G, NX, P, PS, U, W};
use mynah_machinery::{asm, *};

/// The page that is played with.
const PAGE: u32 = SCRATCH;

fn main_of(t: &PageTables) -> Main {
    match t.format {
        Format::Legacy | Format::Pae => Main::Paged(t.clone()),
        _ => Main::Long(t.clone()),
    }
}

/// Writes a paging-structure entry.
fn set_entry(p: &mut Prog, t: &PageTables, level: u32, lin: u32, value: u64) {
    let at = t.entry(level, lin);
    asm!(p; mov dword_ptr(at), value as u32);
    if t.entry_size() == 8 {
        asm!(p; mov dword_ptr(at + 4), (value >> 32) as u32);
    }
}

/// Writes the entry of [`PAGE`] and drops what the TLB holds of it.
fn set_page(p: &mut Prog, t: &PageTables, value: u64) {
    set_entry(p, t, 1, PAGE, value);
    asm!(p; invlpg byte_ptr(PAGE));
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Read,
    Write,
    Fetch,
}

fn access(p: &mut Prog, kind: Kind) {
    match kind {
        Kind::Read => asm!(p; mov ah, byte_ptr(PAGE + 8)),
        Kind::Write => asm!(p; mov byte_ptr(PAGE + 8), ah),
        Kind::Fetch => asm!(p; call u64::from(PAGE)),
    }
}

/// Makes accesses of all kinds at levels 0 and 3: the faults are in the log.
fn try_all(p: &mut Prog, what: &str) {
    for level in [0, 3] {
        for (kind, letter) in [(Kind::Read, 'r'), (Kind::Write, 'w'), (Kind::Fetch, 'x')] {
            let name = format!("{what} {letter}{level}");
            if level == 3 {
                p.user(|p| {
                    p.name(&name);
                    access(p, kind);
                });
            } else {
                p.guarded(|p| {
                    p.name(&name);
                    access(p, kind);
                });
            }
        }
    }
}

/// A RET at the page's start, for fetches.
fn prepare(p: &mut Prog) {
    asm!(p; mov byte_ptr(PAGE), 0xc3);
}

/// 4.6.1, 4.7: what the combinations of present, writable and user bits at the two lowest levels allow, without and
/// with CR0.WP. Allowed accesses leave no line.
fn rights(format: Format) -> Guest {
    let mut g = Guest::new();
    g.alias(PAGE, "page");
    g.alias(PAGE + 8, "page+8");
    let t = PageTables::new(format, true);
    let upper = t.get(2, PAGE);
    g.main(main_of(&t), |p| {
        prepare(p);
        for wp in [false, true] {
            p.say(if wp { "with WP" } else { "without WP" });
            if wp {
                if p.bits == 64 {
                    asm!(p; mov rax, cr0; or eax, 1 << 16; mov cr0, rax);
                } else {
                    asm!(p; mov eax, cr0; or eax, 1 << 16; mov cr0, eax);
                }
            }
            for (what, flags) in [("absent", 0), ("S-RO", P), ("S-RW", P | W), ("U-RO", P | U), ("U-RW", ALL)]
            {
                set_page(p, &t, u64::from(PAGE) | flags);
                try_all(p, &format!("{what} {}", u8::from(wp)));
            }
            set_page(p, &t, u64::from(PAGE) | ALL);
        }
        // The directory's bits restrict likewise. Its other pages are not used here, but for 32-bit paging, whose first
        // directory entry maps all.
        if format != Format::Legacy {
            for (what, flags) in [("dir absent", 0), ("dir S", W), ("dir RO", U)] {
                let kept = if what == "dir absent" { upper & !P } else { upper & !(W | U) | flags };
                set_entry(p, &t, 2, PAGE, kept);
                asm!(p; invlpg byte_ptr(PAGE));
                try_all(p, what);
            }
        }
    });
    g
}

#[test]
fn rights_in_32_bit_paging() {
    rights(Format::Legacy).check(
        "
        without WP
        #PF(0x0) at absent 0 r0 cr2=page+8
        #PF(0x2) at absent 0 w0 cr2=page+8
        #PF(0x0) at page cr2=page
        #PF(0x4) at absent 0 r3 cs=0x3b cr2=page+8
        #PF(0x6) at absent 0 w3 cs=0x3b cr2=page+8
        #PF(0x4) at page cs=0x3b cr2=page
        #PF(0x5) at S-RO 0 r3 cs=0x3b cr2=page+8
        #PF(0x7) at S-RO 0 w3 cs=0x3b cr2=page+8
        #PF(0x5) at page cs=0x3b cr2=page
        #PF(0x5) at S-RW 0 r3 cs=0x3b cr2=page+8
        #PF(0x7) at S-RW 0 w3 cs=0x3b cr2=page+8
        #PF(0x5) at page cs=0x3b cr2=page
        #PF(0x7) at U-RO 0 w3 cs=0x3b cr2=page+8
        with WP
        #PF(0x0) at absent 1 r0 cr2=page+8
        #PF(0x2) at absent 1 w0 cr2=page+8
        #PF(0x0) at page cr2=page
        #PF(0x4) at absent 1 r3 cs=0x3b cr2=page+8
        #PF(0x6) at absent 1 w3 cs=0x3b cr2=page+8
        #PF(0x4) at page cs=0x3b cr2=page
        #PF(0x3) at S-RO 1 w0 cr2=page+8
        #PF(0x5) at S-RO 1 r3 cs=0x3b cr2=page+8
        #PF(0x7) at S-RO 1 w3 cs=0x3b cr2=page+8
        #PF(0x5) at page cs=0x3b cr2=page
        #PF(0x5) at S-RW 1 r3 cs=0x3b cr2=page+8
        #PF(0x7) at S-RW 1 w3 cs=0x3b cr2=page+8
        #PF(0x5) at page cs=0x3b cr2=page
        #PF(0x3) at U-RO 1 w0 cr2=page+8
        #PF(0x7) at U-RO 1 w3 cs=0x3b cr2=page+8
        ",
    );
}

#[test]
fn rights_in_pae_paging() {
    rights(Format::Pae).check(
        "
        without WP
        #PF(0x0) at absent 0 r0 cr2=page+8
        #PF(0x2) at absent 0 w0 cr2=page+8
        #PF(0x10) at page cr2=page
        #PF(0x4) at absent 0 r3 cs=0x3b cr2=page+8
        #PF(0x6) at absent 0 w3 cs=0x3b cr2=page+8
        #PF(0x14) at page cs=0x3b cr2=page
        #PF(0x5) at S-RO 0 r3 cs=0x3b cr2=page+8
        #PF(0x7) at S-RO 0 w3 cs=0x3b cr2=page+8
        #PF(0x15) at page cs=0x3b cr2=page
        #PF(0x5) at S-RW 0 r3 cs=0x3b cr2=page+8
        #PF(0x7) at S-RW 0 w3 cs=0x3b cr2=page+8
        #PF(0x15) at page cs=0x3b cr2=page
        #PF(0x7) at U-RO 0 w3 cs=0x3b cr2=page+8
        with WP
        #PF(0x0) at absent 1 r0 cr2=page+8
        #PF(0x2) at absent 1 w0 cr2=page+8
        #PF(0x10) at page cr2=page
        #PF(0x4) at absent 1 r3 cs=0x3b cr2=page+8
        #PF(0x6) at absent 1 w3 cs=0x3b cr2=page+8
        #PF(0x14) at page cs=0x3b cr2=page
        #PF(0x3) at S-RO 1 w0 cr2=page+8
        #PF(0x5) at S-RO 1 r3 cs=0x3b cr2=page+8
        #PF(0x7) at S-RO 1 w3 cs=0x3b cr2=page+8
        #PF(0x15) at page cs=0x3b cr2=page
        #PF(0x5) at S-RW 1 r3 cs=0x3b cr2=page+8
        #PF(0x7) at S-RW 1 w3 cs=0x3b cr2=page+8
        #PF(0x15) at page cs=0x3b cr2=page
        #PF(0x3) at U-RO 1 w0 cr2=page+8
        #PF(0x7) at U-RO 1 w3 cs=0x3b cr2=page+8
        #PF(0x0) at dir absent r0 cr2=page+8
        #PF(0x2) at dir absent w0 cr2=page+8
        #PF(0x10) at page cr2=page
        #PF(0x4) at dir absent r3 cs=0x3b cr2=page+8
        #PF(0x6) at dir absent w3 cs=0x3b cr2=page+8
        #PF(0x14) at page cs=0x3b cr2=page
        #PF(0x5) at dir S r3 cs=0x3b cr2=page+8
        #PF(0x7) at dir S w3 cs=0x3b cr2=page+8
        #PF(0x15) at page cs=0x3b cr2=page
        #PF(0x3) at dir RO w0 cr2=page+8
        #PF(0x7) at dir RO w3 cs=0x3b cr2=page+8
        ",
    );
}

#[test]
fn rights_in_4_level_paging() {
    rights(Format::Level4).check(
        "
        without WP
        #PF(0x0) at absent 0 r0 cr2=page+8
        #PF(0x2) at absent 0 w0 cr2=page+8
        #PF(0x10) at page cr2=page
        #PF(0x4) at absent 0 r3 cs=0x53 cr2=page+8
        #PF(0x6) at absent 0 w3 cs=0x53 cr2=page+8
        #PF(0x14) at page cs=0x53 cr2=page
        #PF(0x5) at S-RO 0 r3 cs=0x53 cr2=page+8
        #PF(0x7) at S-RO 0 w3 cs=0x53 cr2=page+8
        #PF(0x15) at page cs=0x53 cr2=page
        #PF(0x5) at S-RW 0 r3 cs=0x53 cr2=page+8
        #PF(0x7) at S-RW 0 w3 cs=0x53 cr2=page+8
        #PF(0x15) at page cs=0x53 cr2=page
        #PF(0x7) at U-RO 0 w3 cs=0x53 cr2=page+8
        with WP
        #PF(0x0) at absent 1 r0 cr2=page+8
        #PF(0x2) at absent 1 w0 cr2=page+8
        #PF(0x10) at page cr2=page
        #PF(0x4) at absent 1 r3 cs=0x53 cr2=page+8
        #PF(0x6) at absent 1 w3 cs=0x53 cr2=page+8
        #PF(0x14) at page cs=0x53 cr2=page
        #PF(0x3) at S-RO 1 w0 cr2=page+8
        #PF(0x5) at S-RO 1 r3 cs=0x53 cr2=page+8
        #PF(0x7) at S-RO 1 w3 cs=0x53 cr2=page+8
        #PF(0x15) at page cs=0x53 cr2=page
        #PF(0x5) at S-RW 1 r3 cs=0x53 cr2=page+8
        #PF(0x7) at S-RW 1 w3 cs=0x53 cr2=page+8
        #PF(0x15) at page cs=0x53 cr2=page
        #PF(0x3) at U-RO 1 w0 cr2=page+8
        #PF(0x7) at U-RO 1 w3 cs=0x53 cr2=page+8
        #PF(0x0) at dir absent r0 cr2=page+8
        #PF(0x2) at dir absent w0 cr2=page+8
        #PF(0x10) at page cr2=page
        #PF(0x4) at dir absent r3 cs=0x53 cr2=page+8
        #PF(0x6) at dir absent w3 cs=0x53 cr2=page+8
        #PF(0x14) at page cs=0x53 cr2=page
        #PF(0x5) at dir S r3 cs=0x53 cr2=page+8
        #PF(0x7) at dir S w3 cs=0x53 cr2=page+8
        #PF(0x15) at page cs=0x53 cr2=page
        #PF(0x3) at dir RO w0 cr2=page+8
        #PF(0x7) at dir RO w3 cs=0x53 cr2=page+8
        ",
    );
}

#[test]
fn rights_in_5_level_paging() {
    rights(Format::Level5).check(
        "
        without WP
        #PF(0x0) at absent 0 r0 cr2=page+8
        #PF(0x2) at absent 0 w0 cr2=page+8
        #PF(0x10) at page cr2=page
        #PF(0x4) at absent 0 r3 cs=0x53 cr2=page+8
        #PF(0x6) at absent 0 w3 cs=0x53 cr2=page+8
        #PF(0x14) at page cs=0x53 cr2=page
        #PF(0x5) at S-RO 0 r3 cs=0x53 cr2=page+8
        #PF(0x7) at S-RO 0 w3 cs=0x53 cr2=page+8
        #PF(0x15) at page cs=0x53 cr2=page
        #PF(0x5) at S-RW 0 r3 cs=0x53 cr2=page+8
        #PF(0x7) at S-RW 0 w3 cs=0x53 cr2=page+8
        #PF(0x15) at page cs=0x53 cr2=page
        #PF(0x7) at U-RO 0 w3 cs=0x53 cr2=page+8
        with WP
        #PF(0x0) at absent 1 r0 cr2=page+8
        #PF(0x2) at absent 1 w0 cr2=page+8
        #PF(0x10) at page cr2=page
        #PF(0x4) at absent 1 r3 cs=0x53 cr2=page+8
        #PF(0x6) at absent 1 w3 cs=0x53 cr2=page+8
        #PF(0x14) at page cs=0x53 cr2=page
        #PF(0x3) at S-RO 1 w0 cr2=page+8
        #PF(0x5) at S-RO 1 r3 cs=0x53 cr2=page+8
        #PF(0x7) at S-RO 1 w3 cs=0x53 cr2=page+8
        #PF(0x15) at page cs=0x53 cr2=page
        #PF(0x5) at S-RW 1 r3 cs=0x53 cr2=page+8
        #PF(0x7) at S-RW 1 w3 cs=0x53 cr2=page+8
        #PF(0x15) at page cs=0x53 cr2=page
        #PF(0x3) at U-RO 1 w0 cr2=page+8
        #PF(0x7) at U-RO 1 w3 cs=0x53 cr2=page+8
        #PF(0x0) at dir absent r0 cr2=page+8
        #PF(0x2) at dir absent w0 cr2=page+8
        #PF(0x10) at page cr2=page
        #PF(0x4) at dir absent r3 cs=0x53 cr2=page+8
        #PF(0x6) at dir absent w3 cs=0x53 cr2=page+8
        #PF(0x14) at page cs=0x53 cr2=page
        #PF(0x5) at dir S r3 cs=0x53 cr2=page+8
        #PF(0x7) at dir S w3 cs=0x53 cr2=page+8
        #PF(0x15) at page cs=0x53 cr2=page
        #PF(0x3) at dir RO w0 cr2=page+8
        #PF(0x7) at dir RO w3 cs=0x53 cr2=page+8
        ",
    );
}

/// 4.8: a read sets A at each level, a write D in the lowest entry, too; a fault sets none of them in the lowest entry.
fn flags(format: Format) -> Guest {
    let mut g = Guest::new();
    let t = PageTables::new(format, true);
    g.main(main_of(&t), |p| {
        prepare(p);
        let show = |p: &mut Prog, name: &str| {
            asm!(p; mov ebx, dword_ptr(t.entry(1, PAGE)); and ebx, (A | D) as u32; mov ecx, dword_ptr(t.entry(2, PAGE)); and ecx, (A | D) as u32);
            p.show_all(name, &[ebx, ecx]);
        };
        if format != Format::Legacy {
            set_entry(p, &t, 2, PAGE, t.get(2, PAGE));
        }
        for (name, kind) in [("read", Kind::Read), ("write", Kind::Write), ("fetch", Kind::Fetch)] {
            set_page(p, &t, u64::from(PAGE) | ALL);
            access(p, kind);
            show(p, name);
        }
        set_page(p, &t, u64::from(PAGE) | ALL);
        access(p, Kind::Read);
        access(p, Kind::Write);
        show(p, "read, then write");
        set_page(p, &t, u64::from(PAGE) | P | U);
        p.user(|p| access(p, Kind::Write));
        show(p, "forbidden write");
        // A comparison that fails is a write all the same: volume 2, CMPXCHG.
        set_page(p, &t, u64::from(PAGE) | ALL);
        compare(p);
        show(p, "compare that fails");
        set_page(p, &t, u64::from(PAGE) | P | U);
        p.user(|p| {
            p.name("forbidden compare");
            compare(p);
        });
        // TEST and BT only read.
        p.user(|p| asm!(p; test byte_ptr(PAGE + 8), 1; bt dword_ptr(PAGE + 8), 1; cmp byte_ptr(PAGE + 8), 1));
        show(p, "test, bt, cmp");
    });
    g
}

fn compare(p: &mut Prog) {
    asm!(p; mov eax, 0x7777_7777; mov edx, 1);
    p.a.lock().cmpxchg(dword_ptr(PAGE + 8), edx).expect("assembling cmpxchg");
}

#[test]
fn accessed_and_dirty_flags_in_32_bit_paging() {
    flags(Format::Legacy).check(
        "
        read=0x20 0x20
        write=0x60 0x20
        fetch=0x20 0x20
        read, then write=0x60 0x20
        #PF(0x7) at 0x1201ec cs=0x3b cr2=0x200008
        forbidden write=0x0 0x20
        compare that fails=0x60 0x20
        #PF(0x7) at forbidden compare+10 cs=0x3b cr2=0x200008
        test, bt, cmp=0x20 0x20
        ",
    );
}

#[test]
fn accessed_and_dirty_flags_in_pae_paging() {
    flags(Format::Pae).check(
        "
        read=0x20 0x20
        write=0x60 0x20
        fetch=0x20 0x20
        read, then write=0x60 0x20
        #PF(0x7) at 0x120232 cs=0x3b cr2=0x200008
        forbidden write=0x0 0x20
        compare that fails=0x60 0x20
        #PF(0x7) at forbidden compare+10 cs=0x3b cr2=0x200008
        test, bt, cmp=0x20 0x20
        ",
    );
}

#[test]
fn accessed_and_dirty_flags_in_4_level_paging() {
    flags(Format::Level4).check(
        "
        read=0x20 0x20
        write=0x60 0x20
        fetch=0x20 0x20
        read, then write=0x60 0x20
        #PF(0x7) at 0x120252 cs=0x53 cr2=0x200008
        forbidden write=0x0 0x20
        compare that fails=0x60 0x20
        #PF(0x7) at forbidden compare+10 cs=0x53 cr2=0x200008
        test, bt, cmp=0x20 0x20
        ",
    );
}

/// 4.4-4.5, 4.7: bits that are reserved in each entry, for the physical address width that CPUID tells: #PF with RSVD
/// and P; XD without EFER.NXE; PS where it is reserved; the address bits of large pages.
fn reserved(format: Format) -> Guest {
    let mut g = Guest::new();
    g.alias(PAGE + 8, "page+8");
    let t = PageTables::new(format, true);
    let (page, dir) = (u64::from(PAGE) | ALL, t.get(2, PAGE));
    g.qemu_reserved_without_p();
    g.main(main_of(&t), |p| {
        prepare(p);
        let mut cases: Vec<(&str, u32, u64)> = Vec::new();
        match format {
            Format::Legacy => {}
            Format::Pae => cases.extend([
                ("bit 51 of a PTE", 1, page | 1 << 51),
                ("bit 52 of a PTE", 1, page | 1 << 52),
                ("bit 62 of a PTE", 1, page | 1 << 62),
                ("bit 62 of a PDE", 2, dir | 1 << 62),
                ("bit 13 of a 2 MiB page", 2, u64::from(PAGE) | ALL | PS | 1 << 13),
                ("bit 20 of a 2 MiB page", 2, u64::from(PAGE) | ALL | PS | 1 << 20),
                ("PAT of a 2 MiB page", 2, u64::from(PAGE) | ALL | PS | 1 << 12),
            ]),
            _ => cases.extend([
                ("bit 51 of a PTE", 1, page | 1 << 51),
                ("bits 58:52 of a PTE", 1, page | 0x7f << 52),
                ("bit 62 of a PTE", 1, page | 1 << 62),
                ("bit 51 of a PDE", 2, dir | 1 << 51),
                ("bit 62 of a PDE", 2, dir | 1 << 62),
                ("bit 13 of a 2 MiB page", 2, u64::from(PAGE) | ALL | PS | 1 << 13),
                ("PAT of a 2 MiB page", 2, u64::from(PAGE) | ALL | PS | 1 << 12),
            ]),
        }
        for (name, level, value) in cases {
            set_entry(p, &t, level, PAGE, value);
            asm!(p; invlpg byte_ptr(PAGE));
            p.attempt(name, |p| access(p, Kind::Read));
            p.attempt(&format!("{name}, absent"), |p| {
                // An absent entry has no reserved bits.
                asm!(p; and dword_ptr(t.entry(level, PAGE)), !1i32; invlpg byte_ptr(PAGE));
                p.name(&format!("{name}, absent, read"));
                access(p, Kind::Read);
            });
            p.user(|p| {
                asm!(p; nop);
            });
            set_entry(p, &t, 2, PAGE, dir);
            set_entry(p, &t, 1, PAGE, page);
            asm!(p; invlpg byte_ptr(PAGE));
        }
        // Writes and fetches of level 3.
        set_entry(p, &t, 1, PAGE, page | 1 << 51);
        asm!(p; invlpg byte_ptr(PAGE));
        p.attempt_at(3, "write at level 3", |p| access(p, Kind::Write));
        p.attempt_at(3, "fetch at level 3", |p| access(p, Kind::Fetch));
        set_page(p, &t, page);
        // XD is reserved without EFER.NXE, and then I/D is not reported, either.
        set_page(p, &t, page | NX);
        p.attempt("XD with NXE, read", |p| access(p, Kind::Read));
        p.attempt("XD with NXE, fetch", |p| access(p, Kind::Fetch));
        asm!(p; mov ecx, 0xc000_0080u32; rdmsr; and eax, !0x800; wrmsr; invlpg byte_ptr(PAGE));
        p.attempt("XD without NXE, read", |p| access(p, Kind::Read));
        p.attempt("XD without NXE, fetch", |p| access(p, Kind::Fetch));
        set_page(p, &t, u64::from(PAGE));
        p.attempt("absent without NXE, fetch", |p| access(p, Kind::Fetch));
    });
    g
}

#[test]
fn reserved_bits_in_pae_paging() {
    reserved(Format::Pae).check(
        "
        #PF(0x9) at bit 51 of a PTE cr2=page+8
        #PF(0x0) at bit 51 of a PTE, absent, read cr2=page+8
        #PF(0x9) at bit 52 of a PTE cr2=page+8
        #PF(0x0) at bit 52 of a PTE, absent, read cr2=page+8
        #PF(0x9) at bit 62 of a PTE cr2=page+8
        #PF(0x0) at bit 62 of a PTE, absent, read cr2=page+8
        #PF(0x9) at bit 62 of a PDE cr2=page+8
        #PF(0x0) at bit 62 of a PDE, absent, read cr2=page+8
        #PF(0x9) at bit 13 of a 2 MiB page cr2=page+8
        #PF(0x0) at bit 13 of a 2 MiB page, absent, read cr2=page+8
        #PF(0x9) at bit 20 of a 2 MiB page cr2=page+8
        #PF(0x0) at bit 20 of a 2 MiB page, absent, read cr2=page+8
        PAT of a 2 MiB page ok
        #PF(0x0) at PAT of a 2 MiB page, absent, read cr2=page+8
        #PF(0xf) at write at level 3 cs=0x3b cr2=page+8
        #PF(0x1d) at 0x200000 cs=0x3b cr2=0x200000
        XD with NXE, read ok
        #PF(0x11) at 0x200000 cr2=0x200000
        #PF(0x9) at XD without NXE, read cr2=page+8
        #PF(0x9) at 0x200000 cr2=0x200000
        #PF(0x0) at 0x200000 cr2=0x200000
        ",
    );
}

#[test]
fn reserved_bits_in_4_level_paging() {
    reserved(Format::Level4).check(
        "
        #PF(0x9) at bit 51 of a PTE cr2=page+8
        #PF(0x0) at bit 51 of a PTE, absent, read cr2=page+8
        bits 58:52 of a PTE ok
        #PF(0x0) at bits 58:52 of a PTE, absent, read cr2=page+8
        bit 62 of a PTE ok
        #PF(0x0) at bit 62 of a PTE, absent, read cr2=page+8
        #PF(0x9) at bit 51 of a PDE cr2=page+8
        #PF(0x0) at bit 51 of a PDE, absent, read cr2=page+8
        bit 62 of a PDE ok
        #PF(0x0) at bit 62 of a PDE, absent, read cr2=page+8
        #PF(0x9) at bit 13 of a 2 MiB page cr2=page+8
        #PF(0x0) at bit 13 of a 2 MiB page, absent, read cr2=page+8
        PAT of a 2 MiB page ok
        #PF(0x0) at PAT of a 2 MiB page, absent, read cr2=page+8
        #PF(0xf) at write at level 3 cs=0x53 cr2=page+8
        #PF(0x1d) at 0x200000 cs=0x53 cr2=0x200000
        XD with NXE, read ok
        #PF(0x11) at 0x200000 cr2=0x200000
        #PF(0x9) at XD without NXE, read cr2=page+8
        #PF(0x9) at 0x200000 cr2=0x200000
        #PF(0x0) at 0x200000 cr2=0x200000
        ",
    );
}

#[test]
fn reserved_bits_in_5_level_paging() {
    reserved(Format::Level5).check(
        "
        #PF(0x9) at bit 51 of a PTE cr2=page+8
        #PF(0x0) at bit 51 of a PTE, absent, read cr2=page+8
        bits 58:52 of a PTE ok
        #PF(0x0) at bits 58:52 of a PTE, absent, read cr2=page+8
        bit 62 of a PTE ok
        #PF(0x0) at bit 62 of a PTE, absent, read cr2=page+8
        #PF(0x9) at bit 51 of a PDE cr2=page+8
        #PF(0x0) at bit 51 of a PDE, absent, read cr2=page+8
        bit 62 of a PDE ok
        #PF(0x0) at bit 62 of a PDE, absent, read cr2=page+8
        #PF(0x9) at bit 13 of a 2 MiB page cr2=page+8
        #PF(0x0) at bit 13 of a 2 MiB page, absent, read cr2=page+8
        PAT of a 2 MiB page ok
        #PF(0x0) at PAT of a 2 MiB page, absent, read cr2=page+8
        #PF(0xf) at write at level 3 cs=0x53 cr2=page+8
        #PF(0x1d) at 0x200000 cs=0x53 cr2=0x200000
        XD with NXE, read ok
        #PF(0x11) at 0x200000 cr2=0x200000
        #PF(0x9) at XD without NXE, read cr2=page+8
        #PF(0x9) at 0x200000 cr2=0x200000
        #PF(0x0) at 0x200000 cr2=0x200000
        ",
    );
}

/// 4.3, tables 4-4 and 4-6: 4 MiB pages with CR4.PSE, their bits 20:13 as address bits 39:32, bit 21 reserved; without
/// PSE the bit is ignored.
#[test]
fn large_pages_in_32_bit_paging() {
    let mut g = Guest::new();
    let t = PageTables::new(Format::Legacy, true);
    const LIN: u32 = 0x40_0000;
    g.alias(LIN, "large");
    g.qemu_reserved_without_p();
    g.main(Main::Paged(t.clone()), |p| {
        asm!(p; mov dword_ptr(PAGE + 4), 0x1234_5678);
        let set = |p: &mut Prog, value: u32| {
            asm!(p; mov dword_ptr(TABLES + 4), value; mov eax, cr3; mov cr3, eax);
        };
        set(p, 0x83 | 4);
        asm!(p; mov eax, dword_ptr(LIN + PAGE + 4));
        p.show("4 MiB page at 0", eax);
        asm!(p; mov eax, dword_ptr(TABLES + 4); and eax, 0xfff);
        p.show("its entry", eax);
        asm!(p; mov dword_ptr(LIN + PAGE + 4), 1; mov eax, dword_ptr(TABLES + 4); and eax, 0xfff);
        p.show("after a write", eax);
        set(p, 0x83 | 1 << 21);
        p.attempt("bit 21", |p| asm!(p; mov eax, dword_ptr(LIN)));
        // PAT and the address bits above 4 GiB: nothing is there.
        set(p, 0x83 | 1 << 12);
        p.attempt("PAT", |p| asm!(p; mov eax, dword_ptr(LIN)));
        set(p, 0x83 | 0xff << 13);
        p.attempt("bits 39:32", |p| asm!(p; mov eax, dword_ptr(LIN)));
        // Without PSE it is a page table.
        p.clear_cr4(1 << 4);
        set(p, t.table(1) | 0x87);
        asm!(p; mov eax, dword_ptr(LIN + PAGE + 4));
        p.show("a table without PSE", eax);
    });
    g.check(
        "
        4 MiB page at 0=0x12345678
        its entry=0xa7
        after a write=0xe7
        #PF(0x9) at bit 21 cr2=large
        PAT ok
        bits 39:32 ok
        a table without PSE=0x1
        ",
    );
}

/// 4.5: 2 MiB and 1 GiB pages.
#[test]
fn large_pages_in_4_level_paging() {
    let mut g = Guest::new();
    let t = PageTables::new(Format::Level4, true);
    g.qemu_reserved_without_p();
    g.main(Main::Long(t.clone()), |p| {
        asm!(p; mov dword_ptr(PAGE + 4), 0x1234_5678);
        // The second gigabyte maps the first.
        asm!(p; mov dword_ptr(t.table(3) + 8), 0x87; mov eax, 0x4000_0000 + PAGE + 4; mov ebx, dword_ptr(rax));
        p.show("1 GiB page at 0", ebx);
        asm!(p; mov ebx, dword_ptr(t.table(3) + 8));
        p.show("its entry", ebx);
        asm!(p; mov dword_ptr(t.table(3) + 8), 0x87 | 1 << 13; invlpg byte_ptr(rax));
        p.attempt("bit 13", |p| asm!(p; mov ebx, dword_ptr(rax)));
        asm!(p; mov dword_ptr(t.table(3) + 8), 0x87 | 1 << 29; invlpg byte_ptr(rax));
        p.attempt("bit 29", |p| asm!(p; mov ebx, dword_ptr(rax)));
        asm!(p; mov dword_ptr(t.table(3) + 8), 0; invlpg byte_ptr(rax));
        // 6 MiB maps 2 MiB.
        asm!(p; mov dword_ptr(t.table(2) + 24), PAGE | 0x187; mov eax, 0x60_0004; mov ebx, dword_ptr(rax));
        p.show("2 MiB page", ebx);
        // PS is reserved in PML4 entries.
        asm!(p; mov dword_ptr(t.table(4) + 8), t.table(3) | 0x87; mov rax, 0x80_0000_0000u64);
        p.attempt("PS in a PML4E", |p| asm!(p; mov ebx, dword_ptr(rax)));
    });
    g.alias(PAGE + 4, "page+4");
    g.check(
        "
        1 GiB page at 0=0x12345678
        its entry=0xa7
        #PF(0x9) at bit 13 cr2=0x40200004
        #PF(0x9) at bit 29 cr2=0x40200004
        2 MiB page=0x12345678
        #PF(0x9) at PS in a PML4E cr2=0x8000000000
        ",
    );
}

/// 4.6.1, 4.7: SMEP forbids fetches from user pages at level 0 (and makes I/D reported), SMAP data accesses unless
/// EFLAGS.AC is set and the access is explicit; CLAC and STAC set it.
#[test]
fn smep_and_smap() {
    let mut g = Guest::new();
    g.alias(PAGE, "page");
    g.alias(PAGE + 8, "page+8");
    let mut t = PageTables::new(Format::Level4, false);
    t.user(PAGE, PAGE + 0x1000, true);
    let d = flat(access::DATA, size::P32);
    g.alias(PAGE + 0x108, "descriptor");
    let user_ldt = g.gdt16(segment(PAGE, 0x1ff, access::LDT, size::B16), 0);
    g.qemu_differs(
        &[
            ("#PF(0x1) at LDT on a user page fl=AC cr2=descriptor", "LDT on a user page ok"),
            ("#PF(0x1) at LAR of the same+8 fl=AC cr2=descriptor", "LAR of the same ok"),
        ],
        "AC counts for implicit accesses, too",
    );
    g.main(Main::Long(t.clone()), |p| {
        prepare(p);
        asm!(p; mov dword_ptr(PAGE + 0x108), d as u32; mov dword_ptr(PAGE + 0x10c), (d >> 32) as u32);
        p.attempt("fetch without SMEP", |p| access(p, Kind::Fetch));
        p.set_cr4(1 << 20);
        p.attempt("fetch with SMEP", |p| access(p, Kind::Fetch));
        p.attempt("read with SMEP", |p| access(p, Kind::Read));
        p.attempt("STAC at level 0 without SMAP", |p| asm!(p; stac; clac));
        p.set_cr4(1 << 21);
        p.attempt("read with SMAP", |p| access(p, Kind::Read));
        p.attempt("write with SMAP", |p| access(p, Kind::Write));
        asm!(p; stac);
        p.attempt("read with AC", |p| access(p, Kind::Read));
        p.attempt("write with AC", |p| access(p, Kind::Write));
        p.attempt("fetch with AC", |p| access(p, Kind::Fetch));
        asm!(p; stac);
        p.attempt("push with AC", |p| asm!(p; mov rbx, rsp; mov esp, PAGE + 0x800; push rax; mov rsp, rbx));
        asm!(p; clac);
        p.guarded(|p| {
            // The handler has a stack of its own by IST.
            asm!(p; mov byte_ptr(IDT64 + 16 * 14 + 4), 1; mov esp, PAGE + 0x808);
            p.name("push without AC");
            asm!(p; push rax);
        });
        // An LDT on the user page: reading its descriptors is an implicit access, AC does not help.
        asm!(p; mov eax, u32::from(user_ldt); lldt ax; stac; mov eax, 0x10c);
        p.attempt("LDT on a user page", |p| asm!(p; mov es, ax));
        asm!(p; clac);
        p.attempt_at(0, "LAR of the same", |p| asm!(p; stac; mov eax, 0x10c; lar ebx, eax));
        asm!(p; clac);
        // Without WP a supervisor's write to a read-only user page is allowed with AC alone.
        set_page(p, &t, u64::from(PAGE) | P | U);
        asm!(p; stac);
        p.attempt("write to a read-only page with AC", |p| access(p, Kind::Write));
        asm!(p; mov rax, cr0; or eax, 1 << 16; mov cr0, rax; stac);
        p.attempt("the same with WP", |p| access(p, Kind::Write));
        asm!(p; clac);
    });
    g.check(
        "
        fetch without SMEP ok
        #PF(0x11) at page cr2=page
        read with SMEP ok
        STAC at level 0 without SMAP ok
        #PF(0x1) at read with SMAP cr2=page+8
        #PF(0x3) at write with SMAP cr2=page+8
        read with AC ok
        write with AC ok
        #PF(0x11) at page fl=AC cr2=page
        push with AC ok
        #PF(0x3) at push without AC cr2=0x200800
        #PF(0x1) at LDT on a user page fl=AC cr2=descriptor
        #PF(0x1) at LAR of the same+8 fl=AC cr2=descriptor
        write to a read-only page with AC ok
        #PF(0x3) at the same with WP fl=AC cr2=page+8
        ",
    );
}

/// 4.6.2: protection keys of user pages: AD forbids reads and writes, WD writes (at level 0 only with CR0.WP), neither
/// fetches; supervisor pages have none.
#[test]
fn protection_keys() {
    let mut g = Guest::new();
    g.alias(PAGE + 8, "page+8");
    let t = PageTables::new(Format::Level4, true);
    g.main(Main::Long(t.clone()), |p| {
        prepare(p);
        p.attempt("RDPKRU without PKE", |p| asm!(p; xor ecx, ecx; db &[0x0f, 0x01, 0xee]));
        p.set_cr4(1 << 22);
        let pkru = |p: &mut Prog, v: u32| asm!(p; push rax; mov eax, v; xor ecx, ecx; xor edx, edx; db &[0x0f, 0x01, 0xef]; pop rax);
        pkru(p, 0x1234_5670);
        asm!(p; xor ecx, ecx; mov edx, 5; db &[0x0f, 0x01, 0xee]);
        p.show_all("eax edx", &[eax, edx]);
        p.attempt("RDPKRU with ECX", |p| asm!(p; mov ecx, 1; db &[0x0f, 0x01, 0xee]));
        p.attempt("WRPKRU with EDX", |p| asm!(p; xor ecx, ecx; mov edx, 1; xor eax, eax; db &[0x0f, 0x01, 0xef]));
        let key = 5u64;
        for wp in [0u32, 1] {
            if wp == 1 {
                asm!(p; mov rax, cr0; or eax, 1 << 16; mov cr0, rax);
            }
            for (what, bits) in [("none", 0u32), ("AD", 1), ("WD", 2), ("AD WD", 3)] {
                pkru(p, bits << (2 * key));
                set_page(p, &t, u64::from(PAGE) | ALL | key << 59);
                try_all(p, &format!("{what}, WP {wp}:"));
            }
            // A supervisor page, and a read-only page without rights by its key.
            pkru(p, 3 << (2 * key));
            set_page(p, &t, u64::from(PAGE) | P | W | key << 59);
            try_all(p, &format!("supervisor page, WP {wp}:"));
            set_page(p, &t, u64::from(PAGE) | P | U | key << 59);
            try_all(p, &format!("read-only, AD WD, WP {wp}:"));
            pkru(p, 0);
        }
    });
    g.check(
        "
        #UD at RDPKRU without PKE+2
        eax edx=0x12345670 0x0
        #GP(0x0) at RDPKRU with ECX+5
        #GP(0x0) at WRPKRU with EDX+9
        #PF(0x21) at AD, WP 0: r0 cr2=page+8
        #PF(0x23) at AD, WP 0: w0 cr2=page+8
        #PF(0x25) at AD, WP 0: r3 cs=0x53 cr2=page+8
        #PF(0x27) at AD, WP 0: w3 cs=0x53 cr2=page+8
        #PF(0x27) at WD, WP 0: w3 cs=0x53 cr2=page+8
        #PF(0x21) at AD WD, WP 0: r0 cr2=page+8
        #PF(0x23) at AD WD, WP 0: w0 cr2=page+8
        #PF(0x25) at AD WD, WP 0: r3 cs=0x53 cr2=page+8
        #PF(0x27) at AD WD, WP 0: w3 cs=0x53 cr2=page+8
        #PF(0x5) at supervisor page, WP 0: r3 cs=0x53 cr2=page+8
        #PF(0x7) at supervisor page, WP 0: w3 cs=0x53 cr2=page+8
        #PF(0x15) at 0x200000 cs=0x53 cr2=0x200000
        #PF(0x21) at read-only, AD WD, WP 0: r0 cr2=page+8
        #PF(0x23) at read-only, AD WD, WP 0: w0 cr2=page+8
        #PF(0x25) at read-only, AD WD, WP 0: r3 cs=0x53 cr2=page+8
        #PF(0x27) at read-only, AD WD, WP 0: w3 cs=0x53 cr2=page+8
        #PF(0x21) at AD, WP 1: r0 cr2=page+8
        #PF(0x23) at AD, WP 1: w0 cr2=page+8
        #PF(0x25) at AD, WP 1: r3 cs=0x53 cr2=page+8
        #PF(0x27) at AD, WP 1: w3 cs=0x53 cr2=page+8
        #PF(0x23) at WD, WP 1: w0 cr2=page+8
        #PF(0x27) at WD, WP 1: w3 cs=0x53 cr2=page+8
        #PF(0x21) at AD WD, WP 1: r0 cr2=page+8
        #PF(0x23) at AD WD, WP 1: w0 cr2=page+8
        #PF(0x25) at AD WD, WP 1: r3 cs=0x53 cr2=page+8
        #PF(0x27) at AD WD, WP 1: w3 cs=0x53 cr2=page+8
        #PF(0x5) at supervisor page, WP 1: r3 cs=0x53 cr2=page+8
        #PF(0x7) at supervisor page, WP 1: w3 cs=0x53 cr2=page+8
        #PF(0x15) at 0x200000 cs=0x53 cr2=0x200000
        #PF(0x21) at read-only, AD WD, WP 1: r0 cr2=page+8
        #PF(0x23) at read-only, AD WD, WP 1: w0 cr2=page+8
        #PF(0x25) at read-only, AD WD, WP 1: r3 cs=0x53 cr2=page+8
        #PF(0x27) at read-only, AD WD, WP 1: w3 cs=0x53 cr2=page+8
        ",
    );
}

/// 4.10.4: what must be seen anew after INVLPG, MOV CR3, toggling CR4.PGE, and each type of INVPCID. (What may be stale
/// is not tested: a processor may drop translations at any time.)
#[test]
fn invalidation() {
    let mut g = Guest::new();
    let t = PageTables::new(Format::Level4, true);
    g.main(Main::Long(t.clone()), |p| {
        p.set_cr4(1 << 7);
        asm!(p; mov dword_ptr(PAGE), 0x1111; mov dword_ptr(PAGE + 0x1000), 0x2222);
        let to = |p: &mut Prog, second: bool, global: u64| {
            set_entry(p, &t, 1, PAGE, u64::from(if second { PAGE + 0x1000 } else { PAGE }) | ALL | global);
        };
        let show = |p: &mut Prog, name: &str| {
            asm!(p; mov eax, dword_ptr(PAGE));
            p.show(name, eax);
        };
        show(p, "first");
        to(p, true, 0);
        asm!(p; invlpg byte_ptr(PAGE + 0x123));
        show(p, "INVLPG");
        to(p, false, 0);
        asm!(p; mov rax, cr3; mov cr3, rax);
        show(p, "MOV CR3");
        to(p, false, G);
        asm!(p; invlpg byte_ptr(PAGE));
        show(p, "global");
        to(p, true, G);
        asm!(p; invlpg byte_ptr(PAGE));
        show(p, "INVLPG of a global page");
        to(p, false, G);
        p.clear_cr4(1 << 7);
        p.set_cr4(1 << 7);
        show(p, "PGE off and on");
    });
    g.check(
        "
        first=0x1111
        INVLPG=0x2222
        MOV CR3=0x1111
        global=0x1111
        INVLPG of a global page=0x2222
        PGE off and on=0x1111
        ",
    );
}

/// 4.10.4.1 and volume 2, INVPCID: its types, and what is #GP(0).
#[test]
fn invalidation_by_invpcid() {
    let mut g = Guest::new();
    let t = PageTables::new(Format::Level4, true);
    g.main(Main::Long(t.clone()), |p| {
        p.set_cr4(1 << 7);
        asm!(p; mov dword_ptr(PAGE), 0x1111; mov dword_ptr(PAGE + 0x1000), 0x2222);
        let to = |p: &mut Prog, second: bool, global: u64| {
            set_entry(p, &t, 1, PAGE, u64::from(if second { PAGE + 0x1000 } else { PAGE }) | ALL | global);
        };
        let show = |p: &mut Prog, name: &str| {
            asm!(p; mov eax, dword_ptr(PAGE));
            p.show(name, eax);
        };
        to(p, false, G);
        show(p, "global");
        to(p, true, G);
        // INVPCID: type 2 drops all, type 0 an address, type 1 a PCID, type 3 all but global ones.
        let invpcid = |p: &mut Prog, kind: u32, pcid: u64, lin: u64| {
            asm!(p; mov eax, pcid as u32; mov qword_ptr(VARS), rax; mov eax, lin as u32; mov qword_ptr(VARS + 8), rax; mov eax, kind;
                invpcid rax, xmmword_ptr(VARS));
        };
        invpcid(p, 2, 0, 0);
        show(p, "INVPCID 2");
        to(p, false, 0);
        asm!(p; invlpg byte_ptr(PAGE));
        show(p, "not global");
        to(p, true, 0);
        invpcid(p, 0, 0, u64::from(PAGE));
        show(p, "INVPCID 0");
        to(p, false, 0);
        invpcid(p, 1, 0, 0);
        show(p, "INVPCID 1");
        to(p, true, 0);
        invpcid(p, 3, 0, 0);
        show(p, "INVPCID 3");
        p.attempt("INVPCID 4", |p| invpcid(p, 4, 0, 0));
        p.attempt("PCID without PCIDE", |p| invpcid(p, 0, 1, 0));
        p.attempt("reserved bits", |p| invpcid(p, 2, 0x1000, 0));
        p.attempt_at(3, "at level 3", |p| asm!(p; xor eax, eax; invpcid rax, xmmword_ptr(VARS)));
        asm!(p; mov eax, 0x8000; shl rax, 48; mov qword_ptr(VARS + 8), rax; mov qword_ptr(VARS), 0; xor eax, eax);
        p.attempt("not canonical", |p| asm!(p; invpcid rax, xmmword_ptr(VARS)));
    });
    g.check_manual(
        "
        global=0x1111
        INVPCID 2=0x2222
        not global=0x1111
        INVPCID 0=0x2222
        INVPCID 1=0x1111
        INVPCID 3=0x2222
        #GP(0x0) at INVPCID 4+35
        #GP(0x0) at PCID without PCIDE+35
        #GP(0x0) at reserved bits+35
        #GP(0x0) at at level 3+2 cs=0x53
        #GP(0x0) at not canonical
        ",
        "TCG has no INVPCID",
    );
}

/// 4.10.1: translations of one PCID are not used under another.
#[test]
fn address_spaces_by_pcid() {
    let mut g = Guest::new();
    let t = PageTables::new(Format::Level4, true);
    // A second root: the same tables but for the last level of 2-4 MiB.
    let other = TABLES + 0x1_0000;
    let entry = |g: &mut Guest, at: u32, v: u32| g.put32(at, v | 7);
    entry(&mut g, other, other + 0x1000);
    entry(&mut g, other + 0x1000, other + 0x2000);
    entry(&mut g, other + 0x2000, t.table(1));
    entry(&mut g, other + 0x2008, other + 0x3000);
    for n in 0..512 {
        entry(&mut g, other + 0x3000 + 8 * n, SCRATCH + 0x1000 * (n ^ 1));
    }
    g.main(Main::Long(t.clone()), |p| {
        asm!(p; mov dword_ptr(PAGE), 0x1111; mov dword_ptr(PAGE + 0x1000), 0x2222);
        p.set_cr4(1 << 17);
        let switch = |p: &mut Prog, root: u32, pcid: u32, keep: bool| {
            asm!(p; mov eax, root | pcid);
            if keep {
                asm!(p; bts rax, 63);
            }
            asm!(p; mov cr3, rax; mov eax, dword_ptr(PAGE));
            p.show(&format!("PCID {pcid}"), eax);
        };
        switch(p, TABLES, 1, false);
        switch(p, other, 2, false);
        for _ in 0..2 {
            switch(p, TABLES, 1, true);
            switch(p, other, 2, true);
        }
        asm!(p; mov dword_ptr(PAGE), 0x3333);
        switch(p, TABLES, 1, true);
        asm!(p; mov eax, dword_ptr(PAGE + 0x1000));
        p.show("the other's page", eax);
        // The other space's page is changed from here and dropped by INVPCID of type 0.
        asm!(p; mov dword_ptr(other + 0x3000), PAGE | 7; mov eax, 2; mov qword_ptr(VARS), rax; mov eax, PAGE; mov qword_ptr(VARS + 8), rax;
            xor eax, eax; invpcid rax, xmmword_ptr(VARS));
        switch(p, other, 2, true);
        asm!(p; mov dword_ptr(other + 0x3000), (PAGE + 0x1000) | 7; mov eax, 1; invpcid rax, xmmword_ptr(VARS));
        switch(p, other, 2, true);
        switch(p, TABLES, 2, false);
        // Clearing PCIDE drops everything.
        switch(p, TABLES, 0, false);
        set_entry(p, &t, 1, PAGE, u64::from(PAGE + 0x1000) | ALL);
        p.clear_cr4(1 << 17);
        asm!(p; mov eax, dword_ptr(PAGE));
        p.show("without PCIDE", eax);
    });
    g.check_manual(
        "
        PCID 1=0x1111
        PCID 2=0x2222
        PCID 1=0x1111
        PCID 2=0x2222
        PCID 1=0x1111
        PCID 2=0x2222
        PCID 1=0x1111
        the other's page=0x3333
        PCID 2=0x1111
        PCID 2=0x3333
        PCID 2=0x1111
        PCID 0=0x1111
        without PCIDE=0x3333
        ",
        "TCG has no PCIDs",
    );
}

/// 4.6.1.1 and 6.13: accesses to descriptor tables and to the TSS are supervisor's whatever CPL; they fault with U/S
/// clear. A write to a read-only GDT (the accessed bit) needs CR0.WP to fault.
#[test]
fn implicit_supervisor_accesses() {
    let mut g = Guest::new();
    let mut t = PageTables::new(Format::Legacy, true);
    t.user(0x10_0000, 0x10_b000, false); // image head, GDT, IDT, TSS: supervisor pages
    let fresh = g.gdt(flat(dpl(access::DATA, 3) & !1, size::P32));
    let fresh2 = g.gdt(flat(dpl(access::DATA, 3) & !1, size::P32));
    g.alias(GDT + u32::from(fresh) + 5, "access byte");
    g.alias(GDT + u32::from(fresh2) + 5, "access byte 2");
    g.alias(GDT + u32::from(fresh2) + 4, "access dword 2");
    g.qemu_differs(
        &[(
            "#PF(0x3) at accessed bit in a read-only GDT with WP+5 cs=0x3b cr2=access byte 2",
            "#PF(0x3) at accessed bit in a read-only GDT with WP+5 cs=0x3b cr2=access dword 2",
        )],
        "the accessed bit is set by writing a doubleword",
    );
    g.main(Main::Paged(t.clone()), |p| {
        p.attempt_at(3, "load a segment at level 3", |p| asm!(p; mov eax, u32::from(DATA3); mov es, ax));
        p.attempt_at(3, "read the GDT at level 3", |p| asm!(p; mov eax, dword_ptr(GDT + 8)));
        set_entry(p, &t, 1, GDT, u64::from(GDT) | P);
        asm!(p; invlpg byte_ptr(GDT));
        p.attempt_at(
            3,
            "accessed bit in a read-only GDT",
            |p| asm!(p; mov eax, u32::from(fresh | 3); mov es, ax),
        );
        asm!(p; mov eax, cr0; or eax, 1 << 16; mov cr0, eax);
        p.attempt_at(
            3,
            "accessed bit in a read-only GDT with WP",
            |p| asm!(p; mov eax, u32::from(fresh2 | 3); mov es, ax),
        );
        p.attempt_at(3, "accessed already", |p| asm!(p; mov eax, u32::from(fresh | 3); mov es, ax));
        // The I/O permission bitmap on an absent page.
        set_entry(p, &t, 1, TSS32 + 0x1000, 0);
        asm!(p; invlpg byte_ptr(TSS32 + 0x1000));
        p.attempt_at(3, "IN by an absent bitmap", |p| asm!(p; mov dx, 0x8000; in_ al, dx));
        p.attempt_at(3, "IN by the present part", |p| asm!(p; mov dx, 0x80; in_ al, dx));
    });
    g.alias(TSS32 + 0x88 + 0x1000, "bitmap byte");
    g.check(
        "
        load a segment at level 3 ok
        #PF(0x5) at read the GDT at level 3 cs=0x3b cr2=0x101008
        accessed bit in a read-only GDT ok
        #PF(0x3) at accessed bit in a read-only GDT with WP+5 cs=0x3b cr2=access byte 2
        accessed already ok
        #PF(0x0) at IN by an absent bitmap+4 cs=0x3b cr2=bitmap byte
        #GP(0x0) at IN by the present part+4 cs=0x3b
        ",
    );
}
