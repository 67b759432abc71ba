//! QEMU's teaching device, driven by a guest: registers, interrupts by pin and by message, DMA both ways and refused.
//!
//! What the guest finds it says in letters on COM1, the same as under QEMU if that is there.
#![cfg(unix)]
mod kit;

use iced_x86::code_asm::*;
use kit::*;
use std::fs;
use std::process::{Command, Stdio};

/// Slot 4, as `-device edu,addr=4` has it.
const EDU: u32 = 0x8000_2000;
/// PIIX3, for the routes of interrupts.
const PIIX3: u32 = 0x8000_0800;
/// Where the guest puts the registers.
const REGISTERS: u32 = 0xfea0_0000;
/// The device's own address of its buffer.
const BUFFER: u32 = 0x4_0000;
const START: i32 = 1;
const TO_RAM: i32 = 2;
/// Interrupts taken, by pin and by message.
const PINS: u32 = DATA + 0x10;
const MESSAGES: u32 = DATA + 0x14;
const MSI_VECTOR: u32 = 0x50;

type Asm = CodeAssembler;
type Done = Result<(), IcedError>;

fn config(a: &mut Asm, device: u32, at: u32, value: u32) -> Done {
    a.mov(dx, 0xcf8)?;
    a.mov(eax, device | at)?;
    a.out(dx, eax)?;
    a.mov(dx, 0xcfc)?;
    a.mov(eax, value)?;
    a.out(dx, eax)
}

fn register(at: u32) -> AsmMemoryOperand {
    dword_ptr(REGISTERS + at)
}

/// Says `good` if the flags are those of equality.
fn tell(a: &mut Asm, good: u8) -> Done {
    let (mut bad, mut done) = (a.create_label(), a.create_label());
    a.jne(bad)?;
    send(a, good)?;
    a.jmp(done)?;
    a.set_label(&mut bad)?;
    send(a, b'!')?;
    a.set_label(&mut done)?;
    a.nop()
}

/// A transfer, waited for.
fn transfer(a: &mut Asm, source: u32, destination: u32, count: u32, command: i32) -> Done {
    let mut wait = a.create_label();
    for (at, value) in [(0x80, source), (0x88, destination), (0x90, count)] {
        a.mov(register(at), value)?;
    }
    a.mov(register(0x98), command | START)?;
    a.set_label(&mut wait)?;
    a.pause()?;
    a.test(register(0x98), START)?;
    a.jnz(wait)
}

/// Waits until a count is this, with interrupts on.
fn wait_for(a: &mut Asm, count: u32, value: i32) -> Done {
    let mut wait = a.create_label();
    a.sti()?;
    a.set_label(&mut wait)?;
    a.pause()?;
    a.cmp(dword_ptr(count), value)?;
    a.jb(wait)?;
    a.cli()?;
    a.cmp(dword_ptr(count), value)
}

fn set_up(a: &mut Asm) -> Done {
    // Interrupts by pin: both PICs from vector 20h, nothing masked but the timer; routes as firmware has them,
    // level-triggered.
    for (port, base, cascade) in [(0x20, 0x20, 4), (0xa0, 0x28, 2)] {
        for (offset, value) in [(0, 0x11), (1, base), (1, cascade), (1, 1), (1, i32::from(port == 0x20))] {
            a.mov(al, value)?;
            a.out(port + offset, al)?;
        }
    }
    config(a, PIIX3, 0x60, 0x0b0b_0b0b)?;
    a.mov(dx, 0x4d1)?;
    a.mov(al, 1 << 3)?;
    a.out(dx, al)?;
    handler(a, 0x20..0x30, &|a| {
        a.push(eax)?;
        a.inc(dword_ptr(PINS))?;
        a.mov(eax, register(0x24))?;
        a.mov(register(0x64), eax)?;
        a.mov(al, 0x20)?;
        a.out(0xa0, al)?;
        a.out(0x20, al)?;
        a.pop(eax)?;
        a.iretd()
    })?;
    handler(a, MSI_VECTOR..MSI_VECTOR + 1, &|a| {
        a.push(eax)?;
        a.inc(dword_ptr(MESSAGES))?;
        a.mov(eax, register(0x24))?;
        a.mov(register(0x64), eax)?;
        a.mov(dword_ptr(0xfee0_00b0_u32), 0)?;
        a.pop(eax)?;
        a.iretd()
    })?;
    config(a, EDU, 0x10, REGISTERS)?;
    config(a, EDU, 0x04, 2)
}

/// What it says, letter for letter.
const SAID: &str = "ilfpPdtrmM2121.";

fn guest(a: &mut Asm) -> Done {
    set_up(a)?;
    a.cmp(register(0), 0x0100_00ed)?;
    tell(a, b'i')?;
    a.mov(register(4), 0x1234_5678)?;
    a.cmp(register(4), !0x1234_5678)?;
    tell(a, b'l')?;
    // A factorial, with an interrupt at its end; then one that is raised by hand.
    a.mov(register(0x20), 0x80)?;
    a.mov(register(8), 10)?;
    wait_for(a, PINS, 1)?;
    a.cmp(register(8), 3_628_800)?;
    tell(a, b'f')?;
    a.cmp(dword_ptr(PINS), 1)?;
    tell(a, b'p')?;
    a.mov(register(0x60), 0x40)?;
    wait_for(a, PINS, 2)?;
    tell(a, b'P')?;
    // Without bus mastering nothing comes in.
    a.mov(dword_ptr(FREE), 0x1111_1111)?;
    a.mov(dword_ptr(FREE + 0x100), 0x2222_2222)?;
    transfer(a, FREE, BUFFER, 4, 0)?;
    config(a, EDU, 0x04, 6)?;
    transfer(a, BUFFER, FREE + 0x100, 4, TO_RAM)?;
    a.cmp(dword_ptr(FREE + 0x100), 0)?;
    tell(a, b'd')?;
    // With it it does, and goes out again; and without it no more.
    transfer(a, FREE, BUFFER, 4, 0)?;
    transfer(a, BUFFER, FREE + 0x100, 4, TO_RAM)?;
    a.cmp(dword_ptr(FREE + 0x100), 0x1111_1111)?;
    tell(a, b't')?;
    config(a, EDU, 0x04, 2)?;
    transfer(a, BUFFER, FREE + 0x200, 4, TO_RAM)?;
    a.cmp(dword_ptr(FREE + 0x200), 0)?;
    tell(a, b'r')?;
    // Messages: the capability is at 40h on both.
    config(a, EDU, 0x04, 6)?;
    config(a, EDU, 0x44, 0xfee0_0000)?;
    config(a, EDU, 0x4c, MSI_VECTOR)?;
    config(a, EDU, 0x40, 0x0001_0000)?;
    a.mov(dword_ptr(0xfee0_00f0_u32), 0x1ff)?;
    a.mov(register(0x60), 1)?;
    wait_for(a, MESSAGES, 1)?;
    tell(a, b'm')?;
    transfer(a, BUFFER, FREE + 0x200, 4, TO_RAM | 4)?;
    wait_for(a, MESSAGES, 2)?;
    tell(a, b'M')?;
    // Code that is hot, and written over by the device: mov al, '1'; ret, and with '2'.
    a.mov(dword_ptr(FREE + 0x1000), 0x00c3_31b0)?;
    a.mov(dword_ptr(FREE + 0x2000), 0x00c3_31b0)?;
    a.mov(dword_ptr(FREE + 0x3000), 0x00c3_32b0)?;
    for digit in [b'2', b'1', b'2', b'1'] {
        let mut hot = a.create_label();
        a.mov(ecx, 200_000)?;
        a.mov(ebx, FREE + 0x1000)?;
        a.set_label(&mut hot)?;
        a.call(ebx)?;
        a.dec(ecx)?;
        a.jnz(hot)?;
        transfer(a, FREE + 0x1000 * u32::from(digit - b'0' + 1), BUFFER, 4, 0)?;
        transfer(a, BUFFER, FREE + 0x1000, 4, TO_RAM)?;
        a.call(ebx)?;
        a.cmp(al, i32::from(digit))?;
        tell(a, digit)?;
    }
    send(a, b'.')?;
    power_off(a)
}

fn said(accel: &str) -> String {
    let folder = Folder::new("edu");
    let kernel = folder.file("kernel", &Guest::new(&guest).image());
    let serial = format!("file:{}", folder.path("com1"));
    let args = ["run", "-display", "none", "-m", "16", "-accel", accel, "-kernel", &kernel];
    let more = ["-serial", &serial, "-device", "edu,addr=4"];
    let status = command(&args).args(more).stdout(Stdio::null()).status().expect("mynah starts");
    assert_eq!(status.code(), Some(0), "{accel}");
    fs::read_to_string(folder.path("com1")).unwrap()
}

#[test]
fn a_guest_drives_it_on_either_engine() {
    for accel in ["interp", "jit,cache=off"] {
        assert_eq!(said(accel), SAID, "{accel}");
    }
}

#[test]
fn it_is_as_under_qemu() {
    if Command::new("qemu-system-x86_64").arg("--version").stdout(Stdio::null()).status().is_err() {
        eprintln!("SKIPPED: there is no qemu-system-x86_64 to compare with");
        return;
    }
    let folder = Folder::new("edu-qemu");
    let kernel = folder.file("kernel", &Guest::new(&guest).image());
    let serial = format!("file:{}", folder.path("com1"));
    let args = ["-display", "none", "-m", "16", "-accel", "tcg", "-kernel", &kernel, "-nodefaults"];
    let more = ["-serial", &serial, "-device", "edu,addr=4", "-no-reboot"];
    let status = Command::new("qemu-system-x86_64").args(args).args(more).status().expect("QEMU starts");
    assert!(status.success());
    assert_eq!(fs::read_to_string(folder.path("com1")).unwrap(), SAID);
}
