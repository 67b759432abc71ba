//! Firmware, as guests meet it: the built-in BIOS under small 16-bit guests that are assembled here, on both engines
//! and (where it is installed) in QEMU with its own BIOS; and SeaBIOS, unmodified, from Debian's package.
use iced_x86::code_asm::*;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

#[path = "common/real_mode.rs"]
mod real_mode;
use real_mode::{CONTENT, Guest, HEADER, Result, zimage};

/// Asks each service something that has one right answer on any PC without disks.
fn services(a: &mut CodeAssembler) -> Result {
    const SMAP: i32 = 0x534d_4150;
    let mut g = Guest { a, check: 0 };
    g.a.sti()?;
    g.print("SIXTEEN BITS\r\n")?;
    // 1: conventional memory.
    g.a.int(0x12)?;
    g.a.cmp(ax, 639)?;
    g.equal()?;
    // 2 to 4: the memory map starts with usable RAM at 0.
    g.a.mov(eax, 0x3000)?;
    g.a.mov(es, ax)?;
    g.a.xor(di, di)?;
    g.a.xor(ebx, ebx)?;
    g.a.mov(eax, 0xe820)?;
    g.a.mov(ecx, 20)?;
    g.a.mov(edx, SMAP)?;
    g.a.int(0x15)?;
    g.a.cmp(eax, SMAP)?;
    g.equal()?;
    g.a.cmp(dword_ptr(di).es(), 0)?;
    g.equal()?;
    g.a.cmp(dword_ptr(di + 16).es(), 1)?;
    g.equal()?;
    // 5: a delay of 20 ms comes back without an error (the carry is inverted for the check).
    g.a.mov(eax, 0x8600)?;
    g.a.xor(cx, cx)?;
    g.a.mov(dx, 20_000)?;
    g.a.int(0x15)?;
    g.a.cmc()?;
    g.carry()?;
    // Two ticks of the timer, by its interrupt.
    for _ in 0..2 {
        let mut same = g.a.create_label();
        g.a.mov(ax, 0)?;
        g.a.int(0x1a)?;
        g.a.mov(si, dx)?;
        g.a.set_label(&mut same)?;
        g.a.hlt()?;
        g.a.mov(ax, 0)?;
        g.a.int(0x1a)?;
        g.a.cmp(si, dx)?;
        g.a.jz(same)?;
    }
    // 6, 7: a disk that is not there.
    g.a.mov(ax, 0x0201)?;
    g.a.mov(cx, 1)?;
    g.a.mov(dx, 0x0081)?;
    g.a.int(0x13)?;
    g.a.mov(bp, ax)?;
    g.carry()?;
    g.a.and(bp, 0xff00u32)?;
    g.a.cmp(bp, 0x0100)?;
    g.equal()?;
    // 8: the PCI BIOS.
    g.a.mov(eax, 0xb101)?;
    g.a.int(0x1a)?;
    g.a.cmp(edx, 0x2049_4350)?;
    g.equal()?;
    // 9: the host bridge, found by its class.
    g.a.mov(eax, 0xb103)?;
    g.a.mov(ecx, 0x06_0000)?;
    g.a.xor(si, si)?;
    g.a.int(0x1a)?;
    g.a.cmp(bx, 0)?;
    g.equal()?;
    // 10: 16 bytes to 2 MiB and back again.
    g.a.mov(ax, ds)?;
    g.a.mov(es, ax)?;
    for (from, to) in [(0x9_0200u32, 0x20_0000u32), (0x20_0000, 0x9_8000)] {
        // A table of six descriptors at DS:7000h, of which two matter.
        for (at, base) in [(0x7010, from), (0x7018, to)] {
            g.a.mov(word_ptr(at), 0xffffu32)?;
            g.a.mov(dword_ptr(at + 2), base | 0x9300_0000)?;
            g.a.mov(word_ptr(at + 6), 0)?;
        }
        g.a.mov(si, 0x7000)?;
        g.a.mov(cx, 8)?;
        g.a.mov(ax, 0x8700)?;
        g.a.int(0x15)?;
    }
    g.a.mov(eax, dword_ptr(0x200))?;
    g.a.cmp(eax, dword_ptr(0x8000))?;
    g.equal()?;
    // A key from the terminal, and the command line as protocols before 2.02 have it.
    g.print("KEY?\r\n")?;
    g.a.mov(ax, 0)?;
    g.a.int(0x16)?;
    g.a.mov(ah, 0x0e)?;
    g.a.mov(bx, 7)?;
    g.a.int(0x10)?;
    g.print("=KEY\r\n")?;
    // 11
    g.a.cmp(word_ptr(0x20), 0xa33fu32)?;
    g.equal()?;
    g.a.mov(si, word_ptr(0x22))?;
    let (mut next, mut end) = (g.a.create_label(), g.a.create_label());
    g.a.set_label(&mut next)?;
    g.a.lodsb()?;
    g.a.test(al, al)?;
    g.a.jz(end)?;
    g.a.mov(ah, 0x0e)?;
    g.a.mov(bx, 7)?;
    g.a.int(0x10)?;
    g.a.jmp(next)?;
    g.a.set_label(&mut end)?;
    g.print("\r\n")?;
    g.exit(CONTENT)
}

/// Divides by zero with CR0.NE clear, twice: each time IRQ 13 comes, whose BIOS handler ends in INT 2, and the waiting
/// instruction goes on.
fn coprocessor_errors(a: &mut CodeAssembler) -> Result {
    const COUNT: i32 = 0x7000;
    let mut g = Guest { a, check: 0 };
    let mut start = g.a.create_label();
    g.a.jmp(start)?;
    g.a.inc(word_ptr(COUNT))?;
    g.a.iret()?;
    g.a.set_label(&mut start)?;
    g.a.mov(word_ptr(COUNT), 0)?;
    // INT 2 is ours. The handler stands behind the jump of two bytes.
    g.a.xor(ax, ax)?;
    g.a.mov(es, ax)?;
    g.a.mov(ax, HEADER as i32 + 2)?;
    g.a.mov(word_ptr(8).es(), ax)?;
    g.a.mov(word_ptr(10).es(), cs)?;
    g.a.in_(al, 0xa1)?;
    g.a.and(al, !0x20i32)?;
    g.a.out(0xa1, al)?;
    // NE, EM and TS off, MP on.
    g.a.mov(eax, cr0)?;
    g.a.and(eax, !0x2ci32)?;
    g.a.or(eax, 2)?;
    g.a.mov(cr0, eax)?;
    g.a.fninit()?;
    g.a.sti()?;
    for n in 1..=2 {
        g.a.mov(word_ptr(COUNT + 2), 0x037b)?;
        g.a.fldcw(word_ptr(COUNT + 2))?;
        g.a.fld1()?;
        g.a.fldz()?;
        g.a.fdivp(st1, st0)?;
        g.a.wait()?;
        g.a.nop()?;
        g.a.cmp(word_ptr(COUNT), n)?;
        g.equal()?;
        // The error is still there, ignored; then it is not.
        g.a.fnstsw(ax)?;
        g.a.and(ax, 0x0084)?;
        g.a.cmp(ax, 0x0084)?;
        g.equal()?;
        g.a.fninit()?;
    }
    g.exit(CONTENT)
}

/// How a run ended: what was on standard output, and the exit code.
struct Run {
    text: String,
    code: Option<i32>,
}

/// Runs a program, and types `typed` on its terminal when it asks "KEY?"; kills it after `limit`.
fn run(program: &str, args: &[&str], typed: &str, limit: Duration) -> Run {
    let mut child = Command::new(program)
        .args(args)
        // Nothing of the user's own is taken or left behind.
        .env_remove("HOME")
        .env_remove("XDG_CACHE_HOME")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .unwrap();
    let mut input = child.stdin.take().unwrap();
    let mut out = child.stdout.take().unwrap();
    let said = Arc::new(Mutex::new(Vec::new()));
    let theirs = said.clone();
    let reader = std::thread::spawn(move || {
        let mut some = [0; 4096];
        while let Ok(n @ 1..) = out.read(&mut some) {
            theirs.lock().unwrap().extend_from_slice(&some[..n]);
        }
    });
    let mut typed = typed.as_bytes();
    let start = Instant::now();
    let code = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status.code();
        }
        if start.elapsed() > limit {
            child.kill().unwrap();
            child.wait().unwrap();
            break None;
        }
        if !typed.is_empty() && said.lock().unwrap().windows(4).any(|w| w == b"KEY?") {
            // A guest that has ended takes no input.
            let _ = input.write_all(std::mem::take(&mut typed)).and_then(|()| input.flush());
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    reader.join().unwrap();
    let text = String::from_utf8_lossy(&said.lock().unwrap()).replace('\r', "");
    Run { text, code }
}

const MYNAH: &str = env!("CARGO_BIN_EXE_mynah");
const LIMIT: Duration = Duration::from_secs(60);

fn temporary(name: &str, bytes: &[u8]) -> PathBuf {
    let path = std::env::temp_dir().join(format!("mynah-firmware-{}-{name}", std::process::id()));
    std::fs::write(&path, bytes).unwrap();
    path
}

fn has_qemu() -> bool {
    let found = Command::new("qemu-system-x86_64").arg("--version").stdout(Stdio::null()).status().is_ok();
    if !found {
        eprintln!("SKIPPED in QEMU: qemu-system-x86_64 is not installed");
    }
    found
}

/// Runs a 16-bit guest on both engines, and in QEMU if it is a `second` opinion; all must be content.
fn check(name: &str, image: &[u8], second: bool, see: impl Fn(&str)) {
    let file = temporary(name, image);
    let common =
        ["-m", "32", "-nographic", "-no-reboot", "-append", "one two", "-kernel", file.to_str().unwrap()];
    let exit = ["-device", "isa-debug-exit,iobase=0xf4,iosize=1"];
    for accel in ["interp", "jit"] {
        let args = [&["run", "-accel", accel][..], &common, &exit].concat();
        let r = run(MYNAH, &args, "k", LIMIT);
        assert_eq!(r.code, Some((CONTENT << 1 | 1) as i32), "{accel}: {}", r.text);
        see(&r.text);
    }
    if second && has_qemu() {
        let args = [&common[..], &exit, &["-accel", "tcg", "-nic", "none"]].concat();
        let r = run("qemu-system-x86_64", &args, "k", LIMIT);
        assert_eq!(r.code, Some((CONTENT << 1 | 1) as i32), "QEMU: {}", r.text);
    }
    std::fs::remove_file(file).unwrap();
}

#[test]
fn a_kernel_that_has_only_its_16_bit_entry_is_served_by_the_built_in_bios() {
    check("services", &zimage(services), true, |text| {
        for line in ["SIXTEEN BITS\n", "KEY?\nk=KEY\n", "one two\n"] {
            assert!(text.contains(line), "no '{line}' in {text}");
        }
    });
}

#[test]
fn a_coprocessor_error_is_interrupt_13_while_ne_is_clear() {
    // QEMU 7.2 ends with a failed assertion when TCG raises FERR#.
    check("ferr", &zimage(coprocessor_errors), false, |_| {});
}

/// A Multiboot 1 kernel: `code` is entered at its start, in 32-bit mode.
fn multiboot(code: impl FnOnce(&mut CodeAssembler) -> Result) -> Vec<u8> {
    const LOAD: u32 = 0x10_0000;
    const CODE: u32 = 0x20;
    let mut a = CodeAssembler::new(32).unwrap();
    code(&mut a).unwrap();
    let code = a.assemble(u64::from(LOAD + CODE)).unwrap();
    let (magic, flags) = (0x1bad_b002u32, 1 << 16);
    let header =
        [magic, flags, 0u32.wrapping_sub(magic + flags), LOAD, LOAD, 0, LOAD + 0x1_0000, LOAD + CODE];
    let mut image = header.map(u32::to_le_bytes).as_flattened().to_vec();
    image.extend(code);
    image
}

/// Goes by what a loader of Multiboot kernels need not do, but QEMU's does: selectors 8 and 10h, and what a BIOS has
/// set up before.
fn like_any_other_loader(a: &mut CodeAssembler) -> Result {
    const IDT: u32 = 0x10_8000;
    const STACK: u32 = 0x10_c000;
    let mut check = 0;
    let mut equal = |a: &mut CodeAssembler| {
        check += 1;
        let mut good = a.create_label();
        a.jz(good)?;
        a.mov(al, check)?;
        a.out(real_mode::EXIT_PORT, al)?;
        a.set_label(&mut good)?;
        a.nop()
    };
    // 1 to 6: selectors.
    a.mov(ebx, cs)?;
    a.cmp(bx, 0x08)?;
    equal(a)?;
    for segment in [ds, es, ss, fs, gs] {
        a.mov(ebx, segment)?;
        a.cmp(bx, 0x10)?;
        equal(a)?;
    }
    // Loading them again (and returning to CS 8) takes them from the loader's GDT.
    let mut again = a.create_label();
    a.mov(esp, STACK)?;
    a.mov(ebx, 0x10)?;
    a.mov(ss, bx)?;
    a.mov(ds, bx)?;
    a.pushfd()?;
    a.push(8)?;
    let mut to_there = a.create_label();
    a.call(to_there)?;
    a.jmp(again)?;
    a.set_label(&mut to_there)?;
    a.iretd()?;
    a.set_label(&mut again)?;
    // 7: counter 0 of the 8254 counts 65,536 down in mode 2 or 3 (the read-back command, for its status).
    a.mov(al, 0xe2)?;
    a.out(0x43, al)?;
    a.in_(al, 0x40)?;
    a.and(al, 0x7c)?;
    a.cmp(al, 0x34)?;
    equal(a)?;
    // 8, 9: the interrupts of a PC's own devices are let through.
    for (port, mask) in [(0x21, 0xb8), (0xa1, 0x8e)] {
        a.in_(al, port)?;
        a.cmp(al, mask)?;
        equal(a)?;
    }
    // The timer's comes as vector 8.
    let (mut behind, mut wait) = (a.create_label(), a.create_label());
    a.call(behind)?;
    a.mov(al, CONTENT)?;
    a.out(real_mode::EXIT_PORT, al)?;
    a.set_label(&mut behind)?;
    a.pop(eax)?;
    a.mov(ebx, 0x0008_0000)?;
    a.mov(bx, ax)?;
    a.mov(ax, 0x8e00)?;
    a.mov(dword_ptr(IDT + 64), ebx)?;
    a.mov(dword_ptr(IDT + 68), eax)?;
    a.mov(word_ptr(IDT - 8), 0x7f)?;
    a.mov(dword_ptr(IDT - 6), IDT)?;
    a.lidt(fword_ptr(IDT - 8))?;
    a.sti()?;
    a.set_label(&mut wait)?;
    a.hlt()?;
    a.jmp(wait)
}

#[test]
fn a_multiboot_kernel_finds_what_qemu_and_a_bios_leave() {
    check("multiboot", &multiboot(like_any_other_loader), true, |_| {});
}

/// SeaBIOS of Debian's package `seabios`.
fn seabios() -> Option<&'static str> {
    let found = Path::new("/usr/share/seabios/bios-256k.bin").exists();
    if !found {
        eprintln!("SKIPPED: SeaBIOS is not installed (Debian's package 'seabios')");
    }
    found.then_some("bios-256k.bin")
}

#[test]
fn seabios_comes_to_its_end_when_there_is_nothing_to_boot() {
    let Some(bios) = seabios() else { return };
    for accel in ["interp", "jit"] {
        let log = temporary(&format!("log-{accel}"), b"");
        let backend = format!("file,id=log,path={}", log.display());
        let device = "isa-debugcon,iobase=0x402,chardev=log";
        let args = [
            "run",
            "-accel",
            accel,
            "-m",
            "64",
            "-display",
            "none",
            "-serial",
            "null",
            "-monitor",
            "none",
            "-bios",
            bios,
            "-boot",
            "reboot-timeout=100",
            "-no-reboot",
            "-chardev",
            &backend,
            "-device",
            device,
        ];
        let r = run(MYNAH, &args, "", LIMIT);
        let text = std::fs::read_to_string(&log).unwrap();
        // It gives up after a tenth of a second, and resets: the end, with -no-reboot.
        assert_eq!(r.code, Some(0), "{text}");
        for line in [
            "Found QEMU fw_cfg",
            "qemu/e820: addr 0x0000000000000000 len 0x0000000004000000 [RAM]",
            "Moving pm_base to 0x600",
            "PIIX3/PIIX4 init: elcr=00 0c",
            "Using pmtimer, ioport 0x608",
            "Found 1 cpu(s) max supported 1 cpu(s)",
            "Copying SMBIOS from",
            "PS2 keyboard initialized",
            "All threads complete.",
            "No bootable device.",
        ] {
            assert!(text.contains(line), "no '{line}' in the debug log:\n{text}");
        }
        std::fs::remove_file(log).unwrap();
    }
}

#[test]
fn seabios_starts_a_16_bit_kernel_through_the_option_rom() {
    let Some(bios) = seabios() else { return };
    let file = temporary("rom", &zimage(services));
    for accel in ["interp", "jit"] {
        let args = [
            "run",
            "-accel",
            accel,
            "-m",
            "32",
            "-nographic",
            "-no-reboot",
            "-append",
            "one two",
            "-bios",
            bios,
            "-kernel",
            file.to_str().unwrap(),
            "-device",
            "isa-debug-exit,iobase=0xf4,iosize=1",
        ];
        let r = run(MYNAH, &args, "k", LIMIT);
        assert_eq!(r.code, Some((CONTENT << 1 | 1) as i32), "{accel}: {}", r.text);
        // (SeaBIOS keeps the last characters until its next tick, which does not come.)
        for line in ["Booting from ROM", "SIXTEEN BITS", "k=KEY"] {
            assert!(r.text.contains(line), "no '{line}' in {}", r.text);
        }
    }
    std::fs::remove_file(file).unwrap();
}

#[test]
fn what_is_no_firmware_image_is_refused() {
    let odd = temporary("odd", &[0; 1000]);
    let args = ["run", "-bios", odd.to_str().unwrap(), "-display", "none"];
    let out =
        Command::new(MYNAH).args(args).env_remove("HOME").env_remove("XDG_CACHE_HOME").output().unwrap();
    let said = String::from_utf8_lossy(&out.stderr);
    assert_eq!(out.status.code(), Some(1));
    assert!(said.contains("a multiple of 64 KiB") && said.contains("1000 bytes"), "{said}");
    std::fs::remove_file(odd).unwrap();
}
