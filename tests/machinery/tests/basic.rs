//! The kit itself: logs, levels and both sets of stubs work in Mynah and in QEMU.

use mynah_machinery::{asm, *};

#[test]
fn the_kit_works_in_protected_mode() {
    let mut g = Guest::new();
    g.main(Main::Protected, |p| {
        p.say("hello");
        asm!(p; mov ebx, 0x1234);
        p.show("ebx", iced_x86::code_asm::ebx);
        p.attempt("ud", |p| asm!(p; ud2));
        p.attempt("fine", |p| asm!(p; nop));
        p.user(|p| {
            p.say("user");
            p.name("cli");
            asm!(p; cli);
        });
        p.user(|p| p.say("user 2"));
        p.say("done");
    });
    g.check("hello\nebx=0x1234\n#UD at ud\nfine ok\nuser\n#GP(0x0) at cli cs=0x3b\nuser 2\ndone");
    // The translator is really at work: at least the loop that prints digits is compiled.
    assert_ne!(g.translated(), Some(0));
}

#[test]
fn the_kit_works_in_long_mode() {
    for format in [Format::Level4, Format::Level5] {
        let mut g = Guest::new();
        g.main(Main::Long(PageTables::new(format, true)), |p| {
            p.say("hello");
            asm!(p; mov rbx, 0x1234_5678_9abcu64);
            p.show("ebx", iced_x86::code_asm::ebx);
            p.show64("rbx", iced_x86::code_asm::rbx);
            p.attempt("ud", |p| asm!(p; ud2));
            p.user(|p| {
                p.name("cli");
                asm!(p; cli);
            });
            p.user(|p| p.say("user 2"));
            p.attempt("wild", |p| asm!(p; mov al, byte_ptr(0x500000)));
        });
        g.check("hello\nebx=0x56789abc\nrbx=0x123456789abc\n#UD at ud\n#GP(0x0) at cli cs=0x53\nuser 2\n#PF(0x0) at wild cr2=0x500000");
    }
}
