//! S3: a guest sleeps, is woken by the clock's alarm or from the monitor, and finds its memory as it was. On both
//! engines with the built-in BIOS, in Mynah with SeaBIOS, and in QEMU, where these are installed.
mod common;
#[path = "common/real_mode.rs"]
mod real_mode;

use common::{has_qemu, run, run_qemu};
use iced_x86::code_asm::*;
use real_mode::{CONTENT, Guest, Result, zimage};
use std::path::Path;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(60);

/// Addresses in the guest's data segment, which is at 90000h.
const DS_BASE: u32 = 0x9_0000;
const MOVE_TABLE: u32 = 0x7000;
const RSDT: u32 = 0x8000;
const FADT: u32 = 0x8100;
const FACS: u32 = 0x8200;
const AWAKE: u32 = 0x8300;
const STACK: i32 = 0x6ff0;
/// The setup code's segment.
const CODE_SEGMENT: i32 = 0x9020;
/// 64 KiB of pattern, and where copies of it are.
const PATTERN: u32 = 0x3_0000;
const HIGH_COPY: u32 = 0x20_0000;
const COPIED_BACK: u32 = 0x4_0000;

/// A call of INT 15h 87h: ECX words from ESI to EDI, both physical addresses.
fn block_move(a: &mut CodeAssembler) -> Result {
    for (at, base) in [(MOVE_TABLE + 0x10, esi), (MOVE_TABLE + 0x18, edi)] {
        a.mov(word_ptr(at), 0xffffu32)?;
        a.mov(eax, base)?;
        a.and(eax, 0x00ff_ffffu32)?;
        a.or(eax, 0x9300_0000u32)?;
        a.mov(dword_ptr(at + 2), eax)?;
        a.mov(eax, base)?;
        a.shr(eax, 24)?;
        a.shl(eax, 8)?;
        a.mov(word_ptr(at + 6), ax)?;
    }
    a.mov(ax, ds)?;
    a.mov(es, ax)?;
    a.mov(si, MOVE_TABLE as i32)?;
    a.mov(ax, 0x8700)?;
    a.int(0x15)?;
    a.ret()
}

fn cmos(a: &mut CodeAssembler, index: i32, value: i32) -> Result {
    a.mov(al, index)?;
    a.out(0x70, al)?;
    a.mov(al, value)?;
    a.out(0x71, al)
}

fn read_cmos(a: &mut CodeAssembler, index: i32) -> Result {
    a.mov(al, index)?;
    a.out(0x70, al)?;
    a.in_(al, 0x71)
}

/// Sleeps until the alarm, or until somebody wakes it.
fn sleeper(a: &mut CodeAssembler, alarm: bool) -> Result {
    let (mut start, mut copy) = (a.create_label(), a.create_label());
    a.jmp(start)?;
    a.set_label(&mut copy)?;
    block_move(a)?;
    a.set_label(&mut start)?;
    a.cli()?;
    a.cld()?;
    let mut g = Guest { a, check: 0 };
    let fetch = |g: &mut Guest<'_>, to: u32, words: i32| {
        g.a.mov(edi, DS_BASE + to)?;
        g.a.mov(cx, words)?;
        g.a.call(copy)
    };
    // The root pointer, in the BIOS' segment.
    let mut next = g.a.create_label();
    g.a.mov(ax, 0xf000)?;
    g.a.mov(es, ax)?;
    g.a.mov(di, -16)?;
    g.a.set_label(&mut next)?;
    g.a.add(di, 16)?;
    g.a.cmp(dword_ptr(di).es(), u32::from_le_bytes(*b"RSD "))?;
    g.a.jnz(next)?;
    g.a.cmp(dword_ptr(di + 4).es(), u32::from_le_bytes(*b"PTR "))?;
    g.a.jnz(next)?;
    // 1, 2: RSDT, FADT (its first entry) and FACS.
    g.a.mov(esi, dword_ptr(di + 16).es())?;
    fetch(&mut g, RSDT, 64)?;
    g.a.mov(esi, dword_ptr(RSDT + 36))?;
    fetch(&mut g, FADT, 64)?;
    g.a.cmp(dword_ptr(FADT), u32::from_le_bytes(*b"FACP"))?;
    g.equal()?;
    g.a.mov(esi, dword_ptr(FADT + 36))?;
    fetch(&mut g, FACS, 32)?;
    g.a.cmp(dword_ptr(FACS), u32::from_le_bytes(*b"FACS"))?;
    g.equal()?;
    // Where to wake: at the first of these, which goes on at the second in this segment.
    let (mut behind, mut asleep) = (g.a.create_label(), g.a.create_label());
    g.a.call(behind)?;
    g.a.cli()?;
    g.a.mov(ax, (DS_BASE >> 4) as i32)?;
    g.a.mov(ds, ax)?;
    g.a.mov(ss, ax)?;
    g.a.mov(sp, STACK)?;
    g.a.push(CODE_SEGMENT)?;
    g.a.push(word_ptr(AWAKE))?;
    g.a.retf()?;
    g.a.set_label(&mut behind)?;
    g.a.pop(ax)?;
    g.a.movzx(eax, ax)?;
    g.a.add(eax, CODE_SEGMENT << 4)?;
    g.a.mov(dword_ptr(FACS + 12), eax)?;
    g.a.mov(esi, DS_BASE + FACS)?;
    g.a.mov(edi, dword_ptr(FADT + 36))?;
    g.a.mov(cx, 32)?;
    g.a.call(copy)?;
    // Memory to be kept.
    let mut fill = g.a.create_label();
    g.a.mov(ax, (PATTERN >> 4) as i32)?;
    g.a.mov(es, ax)?;
    g.a.xor(di, di)?;
    g.a.mov(cx, 0x4000)?;
    g.a.mov(eax, 0x1234_5678)?;
    g.a.set_label(&mut fill)?;
    g.a.stosd()?;
    g.a.add(eax, 0x9e37_79b9u32)?;
    g.a.loop_(fill)?;
    g.a.mov(esi, PATTERN)?;
    g.a.mov(edi, HIGH_COPY)?;
    g.a.mov(cx, 0x8000u32)?;
    g.a.call(copy)?;
    // PM1_STS is cleared; PM1_EN has RTC_EN, or nothing.
    g.a.mov(dx, word_ptr(FADT + 56))?;
    g.a.mov(ax, 0xffffu32)?;
    g.a.out(dx, ax)?;
    g.a.add(dx, 2)?;
    g.a.mov(ax, if alarm { 1 << 10 } else { 0 })?;
    g.a.out(dx, ax)?;
    if alarm {
        // At any hour, minute and second.
        for index in [1, 3, 5] {
            cmos(g.a, index, 0xc0)?;
        }
        cmos(g.a, 0x0b, 0x22)?;
        read_cmos(g.a, 0x0c)?;
    } else {
        // SeaBIOS sends what it has on a tick of the timer.
        g.print("KEY?\r\n")?;
        g.a.sti()?;
        for _ in 0..3 {
            g.a.hlt()?;
        }
        g.a.cli()?;
    }
    g.a.call(asleep)?;
    // 3: awake. The pattern is there,
    let (mut look, mut differs, mut same) = (g.a.create_label(), g.a.create_label(), g.a.create_label());
    g.a.mov(ax, (PATTERN >> 4) as i32)?;
    g.a.mov(es, ax)?;
    g.a.xor(di, di)?;
    g.a.mov(cx, 0x4000)?;
    g.a.mov(eax, 0x1234_5678)?;
    g.a.set_label(&mut look)?;
    g.a.scasd()?;
    g.a.jnz(differs)?;
    g.a.add(eax, 0x9e37_79b9u32)?;
    g.a.loop_(look)?;
    g.a.cmp(ax, ax)?;
    g.a.set_label(&mut differs)?;
    g.equal()?;
    // 4: and its copy above 1 MiB; the BIOS is at work again,
    g.a.mov(esi, HIGH_COPY)?;
    g.a.mov(edi, COPIED_BACK)?;
    g.a.mov(cx, 0x8000u32)?;
    g.a.call(copy)?;
    g.a.mov(ax, (COPIED_BACK >> 4) as i32)?;
    g.a.mov(es, ax)?;
    g.a.xor(di, di)?;
    g.a.mov(cx, 0x4000)?;
    g.a.mov(eax, 0x1234_5678)?;
    let mut look = g.a.create_label();
    g.a.set_label(&mut look)?;
    g.a.scasd()?;
    g.a.jnz(same)?;
    g.a.add(eax, 0x9e37_79b9u32)?;
    g.a.loop_(look)?;
    g.a.cmp(ax, ax)?;
    g.a.set_label(&mut same)?;
    g.equal()?;
    // 5: WAK_STS is set, with what it was,
    g.a.mov(dx, word_ptr(FADT + 56))?;
    g.a.in_(ax, dx)?;
    g.a.and(ax, 0x8500u32)?;
    g.a.cmp(ax, if alarm { 0x8400u32 } else { 0x8100 })?;
    g.equal()?;
    // 6, 7: and chips are as after a reset: PM1_EN, and the clock's interrupts.
    g.a.add(dx, 2)?;
    g.a.in_(ax, dx)?;
    g.a.test(ax, ax)?;
    g.equal()?;
    read_cmos(g.a, 0x0b)?;
    g.a.test(al, 0x70)?;
    g.equal()?;
    // 8: this is real mode.
    g.a.mov(eax, cr0)?;
    g.a.test(al, 1)?;
    g.equal()?;
    g.print("AWAKE\r\n")?;
    g.exit(CONTENT)?;
    // SLP_TYP 1 and SLP_EN; the return address is where it goes on.
    g.a.set_label(&mut asleep)?;
    g.a.pop(word_ptr(AWAKE))?;
    g.a.mov(dx, word_ptr(FADT + 64))?;
    g.a.mov(ax, 1 << 10 | 1 << 13)?;
    g.a.out(dx, ax)?;
    let mut here = g.a.create_label();
    g.a.set_label(&mut here)?;
    g.a.jmp(here)
}

/// Has the guest woken from the monitor, once it sleeps.
fn wake(line: &str) -> Option<&'static str> {
    if line.contains("KEY?") {
        return Some("\x01cinfo status\n");
    }
    match line.trim() {
        "VM status: running" => Some("info status\n"),
        "VM status: paused (suspended)" => Some("system_wakeup\n"),
        _ => None,
    }
}

fn sleeps_and_wakes(name: &str, alarm: bool) {
    let file = std::env::temp_dir().join(format!("mynah-sleep-{}-{name}", std::process::id()));
    std::fs::write(&file, zimage(|a| sleeper(a, alarm))).unwrap();
    let exit = "isa-debug-exit,iobase=0xf4,iosize=1";
    let args = ["-m", "32", "-nographic", "-no-reboot", "-device", exit, "-kernel", file.to_str().unwrap()];
    let content = Some((CONTENT << 1 | 1) as i32);
    for accel in ["interp", "jit"] {
        let boot = run(&[&["-accel", accel], &args[..]].concat(), LIMIT, wake);
        assert_eq!(boot.code, content, "{accel}: {}", boot.console);
        assert!(boot.console.contains("AWAKE"), "{}", boot.console);
        if Path::new("/usr/share/seabios/bios-256k.bin").exists() {
            let boot = run(&[&["-accel", accel, "-bios", "bios-256k.bin"], &args[..]].concat(), LIMIT, wake);
            assert_eq!(boot.code, content, "{accel}, SeaBIOS: {}", boot.console);
        }
    }
    if has_qemu() {
        let boot = run_qemu(&args, LIMIT, wake);
        assert_eq!(boot.code, content, "QEMU: {}", boot.console);
    }
    std::fs::remove_file(file).unwrap();
}

#[test]
fn the_clocks_alarm_wakes_a_guest_whose_memory_is_as_it_was() {
    sleeps_and_wakes("alarm", true);
}

#[test]
fn the_monitor_wakes_a_guest() {
    sleeps_and_wakes("monitor", false);
}
