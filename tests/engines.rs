//! Which engine runs a guest: how it is chosen, what is said when it cannot be had, and guests that are handed from one
//! to another, or saved under one and restored under another.
//!
//! With KVM where /dev/kvm is there and may be opened. Debian's kernel, handed over 200 times as it boots, and GRUB
//! under KVM take longer: `cargo test --workspace --test engines -- --ignored`.
#![cfg(all(target_os = "linux", target_arch = "x86_64"))]
#[allow(dead_code, reason = "it drives guests by their console")]
mod common;
mod kit;

use common::{guest, ramdisk};
use iced_x86::IcedError;
use iced_x86::code_asm::*;
use kit::linux::{LONG, TROUBLE, WORK, linux};
use kit::spells::{LETTERS, Machine, spells, spells_and_waits};
use kit::*;
use mynah_accel::kvm::Host;
use mynah_cpu::CpuModel;
use mynah_oracle::rng::Rng;
use std::fs;
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// `-cpu` of guests that can go on under KVM too; none without KVM.
fn cpu_for_kvm() -> Option<String> {
    let host = match Host::open() {
        Ok(host) => host,
        Err(e) => {
            eprintln!("SKIPPED with KVM: {e}");
            return None;
        }
    };
    let mut cpu = "qemu64".to_owned();
    for (name, _) in host.missing(&CpuModel::parse(&cpu).unwrap()) {
        cpu.push_str(&format!(",-{name}"));
    }
    if let Some(hz) = host.fixed_tsc_hz() {
        cpu.push_str(&format!(",tsc-frequency={hz}"));
    }
    Some(cpu)
}

/// The engines that are here, and the `-cpu` with which each can take a guest over.
fn engines() -> (Vec<&'static str>, String) {
    match cpu_for_kvm() {
        Some(cpu) => (vec!["interp", "jit", "kvm"], cpu),
        None => (vec!["interp", "jit"], "qemu64".into()),
    }
}

/// Interrupt controllers that are the board's, and such that KVM's kernel keeps while vCPUs run there: local APICs, and
/// all.
const IRQCHIPS: [&str; 3] = ["kernel-irqchip=off", "kernel-irqchip=split", "kernel-irqchip=on"];

/// Where to go from 0, so that one comes from each of `all` to each other exactly once, and back to 0.
fn each_pair_once(all: usize) -> Vec<usize> {
    // To each of those that were not looked at yet and back, and then on to the next of them.
    let mut way = Vec::new();
    for from in 0..all {
        way.extend((from + 2..all).flat_map(|to| [to, from]));
        way.extend((from + 1 < all).then_some(from + 1));
    }
    // The way back is left, of those that follow each other.
    way.extend((0..all.saturating_sub(1)).rev());
    way
}

#[test]
fn the_walk_takes_each_pair_once() {
    for all in 1..6 {
        let mut pairs = std::collections::BTreeSet::new();
        let mut at = 0;
        for to in each_pair_once(all) {
            assert!(at != to && pairs.insert((at, to)), "{at} to {to} again, of {all}");
            at = to;
        }
        assert_eq!((at, pairs.len()), (0, all * (all - 1)), "of {all}");
    }
}

#[test]
fn a_guest_is_handed_from_each_engine_to_each_by_the_monitor() {
    let (engines, cpu) = engines();
    for (guest, irqchip) in [
        (Guest::new(&spells_and_waits), IRQCHIPS[0]),
        (Guest { vcpus: 2, others: &spin, ..Guest::new(&spells_and_waits) }, IRQCHIPS[0]),
        (Guest { vcpus: 2, others: &spin, ..Guest::new(&spells_and_waits) }, IRQCHIPS[1]),
        (Guest { vcpus: 2, others: &spin, ..Guest::new(&spells_and_waits) }, IRQCHIPS[2]),
    ] {
        let machine = Machine::new("engines", &guest);
        let mut running = machine.start(0, engines[0], &["-cpu", &cpu, "-machine", irqchip]);
        let mut monitor = machine.monitor(0);
        let mut at = 0;
        for (hops, to) in (1..).zip(each_pair_once(engines.len())) {
            at = to;
            wait_for_text(&machine.path("com0"), &LETTERS[..3 * hops]);
            assert_eq!(monitor.ask(&format!("handoff {}", engines[at])), "");
            let enabled = engines[at] == "kvm";
            let told = monitor.ask("info kvm");
            assert_eq!(told, format!("kvm support: {}\n", if enabled { "enabled" } else { "disabled" }));
        }
        assert_eq!(at, 0, "the round is over where it began");
        // It may be off before the monitor has answered.
        monitor.send("sendkey a");
        assert!(running.ended(PATIENCE).is_some_and(|s| s.success()), "{}", machine.console(0));
        assert_eq!(machine.console(0), format!("{LETTERS}."));
    }
}

/// Counters of ticks, and of interrupts and NMIs that other vCPUs got.
const TICKS: u32 = DATA + 0x400;
const PINGS: u32 = DATA + 0x440;
const NMIS: u32 = DATA + 0x480;
/// Whether the others may be interrupted.
const READY: u32 = DATA + 0x4c0;
const EOI: u32 = 0xfee0_00b0;
/// vCPUs of [`ticks`].
const SMP: u32 = 3;

fn counts(a: &mut CodeAssembler, at: u32, eoi: bool) -> Result<(), IcedError> {
    a.lock().inc(dword_ptr(at))?;
    if eoi {
        a.mov(dword_ptr(EOI), 0)?;
    }
    a.iretd()
}

/// Says the alphabet on COM1, a letter each five ticks of the local APIC's timer, for which it halts. Before each it
/// sends all other vCPUs, which halt, an interrupt and then an NMI, and waits until they have taken these, once each.
/// Then it halts, and ticks.
fn ticks(a: &mut CodeAssembler) -> Result<(), IcedError> {
    handler(a, 0x20..0x100, &|a| a.iretd())?;
    handler(a, 2..3, &|a| counts(a, NMIS, false))?;
    handler(a, 0x40..0x41, &|a| counts(a, TICKS, true))?;
    handler(a, 0x41..0x42, &|a| counts(a, PINGS, true))?;
    a.xor(ebx, ebx)?;
    for (register, value) in [(0xf0, 0x1ff), (0x3e0, 0xb), (0x320, 0x2_0040), (0x380, 2_000_000)] {
        a.mov(dword_ptr(0xfee0_0000_u32 + register), value)?;
    }
    // The 8259A's are not for now.
    a.mov(al, 0xff)?;
    a.out(0x21, al)?;
    a.out(0xa1, al)?;
    // The others can be interrupted from now on.
    a.mov(dword_ptr(READY), 1)?;
    a.sti()?;
    for byte in LETTERS.bytes() {
        let (mut halts, mut pinged, mut struck) = (a.create_label(), a.create_label(), a.create_label());
        a.mov(edi, dword_ptr(TICKS))?;
        a.add(edi, 5)?;
        a.set_label(&mut halts)?;
        a.hlt()?;
        a.cmp(dword_ptr(TICKS), edi)?;
        a.js(halts)?;
        a.add(ebx, SMP as i32 - 1)?;
        a.mov(dword_ptr(ICR), 0x000c_4041)?;
        a.set_label(&mut pinged)?;
        a.pause()?;
        a.cmp(dword_ptr(PINGS), ebx)?;
        a.jne(pinged)?;
        a.mov(dword_ptr(ICR), 0x000c_4400)?;
        a.set_label(&mut struck)?;
        a.pause()?;
        a.cmp(dword_ptr(NMIS), ebx)?;
        a.jne(struck)?;
        send(a, byte)?;
    }
    send(a, b'.')?;
    let mut ticks_on = a.create_label();
    a.set_label(&mut ticks_on)?;
    a.hlt()?;
    a.jmp(ticks_on)
}

/// Says the alphabet on COM1 again and again, each letter behind one run of the local APIC's timer, for which it halts,
/// and one interrupt that all other vCPUs have taken. One that is lost has it wait for ever.
fn one_shots(a: &mut CodeAssembler) -> Result<(), IcedError> {
    handler(a, 0x20..0x100, &|a| a.iretd())?;
    handler(a, 0x40..0x41, &|a| counts(a, TICKS, true))?;
    handler(a, 0x41..0x42, &|a| counts(a, PINGS, true))?;
    a.xor(ebx, ebx)?;
    for (register, value) in [(0xf0, 0x1ff), (0x3e0, 0xb), (0x320, 0x40)] {
        a.mov(dword_ptr(0xfee0_0000_u32 + register), value)?;
    }
    a.mov(al, 0xff)?;
    a.out(0x21, al)?;
    a.out(0xa1, al)?;
    a.mov(dword_ptr(READY), 1)?;
    let mut again = a.create_label();
    a.set_label(&mut again)?;
    for byte in LETTERS.bytes() {
        let (mut halts, mut ticked, mut pinged) = (a.create_label(), a.create_label(), a.create_label());
        a.cli()?;
        a.mov(edi, dword_ptr(TICKS))?;
        a.mov(dword_ptr(0xfee0_0380_u32), 200_000)?;
        a.set_label(&mut halts)?;
        a.cmp(dword_ptr(TICKS), edi)?;
        a.jne(ticked)?;
        a.sti()?;
        a.hlt()?;
        a.cli()?;
        a.jmp(halts)?;
        a.set_label(&mut ticked)?;
        a.add(ebx, SMP as i32 - 1)?;
        a.mov(dword_ptr(ICR), 0x000c_4041)?;
        a.set_label(&mut pinged)?;
        a.pause()?;
        a.cmp(dword_ptr(PINGS), ebx)?;
        a.jne(pinged)?;
        send(a, byte)?;
    }
    a.jmp(again)
}

/// Halts until it is interrupted, again and again.
fn interrupted(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let (mut ready, mut again) = (a.create_label(), a.create_label());
    a.mov(dword_ptr(0xfee0_00f0_u32), 0x1ff)?;
    a.set_label(&mut ready)?;
    a.pause()?;
    a.cmp(dword_ptr(READY), 1)?;
    a.jne(ready)?;
    a.sti()?;
    a.set_label(&mut again)?;
    a.hlt()?;
    a.jmp(again)
}

#[test]
fn timers_ipis_and_nmis_of_several_vcpus_survive_hand_overs() {
    let (engines, cpu) = engines();
    let guest = Guest { vcpus: SMP, others: &interrupted, ..Guest::new(&ticks) };
    let machine = Machine::new("engines", &guest);
    let mut n = 0;
    for irqchip in IRQCHIPS {
        for first in &engines {
            let mut running = machine.start(n, first, &["-cpu", &cpu, "-machine", irqchip]);
            let mut monitor = machine.monitor(n);
            wait_for_text(&machine.path(&format!("com{n}")), "b");
            // Without a hand-over, too.
            if irqchip != IRQCHIPS[0] || first == &engines[0] {
                let mut hops = 0;
                while !machine.console(n).contains('z') {
                    hops += 1;
                    let to = engines[hops % engines.len()];
                    assert_eq!(monitor.ask(&format!("handoff {to}")), "", "{first} {irqchip}");
                }
                assert!(hops > 20, "{hops} hand-overs");
            }
            wait_for_text(&machine.path(&format!("com{n}")), ".");
            assert_eq!(machine.console(n), format!("{LETTERS}."), "{first} {irqchip}");
            monitor.send("quit");
            assert!(running.ended(PATIENCE).is_some_and(|s| s.success()), "{first} {irqchip}");
            n += 1;
        }
    }
}

/// What the 8254 and the clock have interrupted, and whether a letter is out.
const PIT_TICKS: u32 = DATA + 0x500;
const RTC_TICKS: u32 = DATA + 0x540;
const LETTER: u32 = DATA + 0x580;
const COM1: u32 = 0x3f8;
const IOAPIC: u32 = 0xfec0_0000;

fn out(a: &mut CodeAssembler, port: u8, value: u32) -> Result<(), IcedError> {
    a.mov(al, value)?;
    a.out(i32::from(port), al)
}

/// Handlers, from this vector on, of 8254, clock and COM1; `end` is what ends an interrupt of the slave, or not.
fn devices(
    a: &mut CodeAssembler,
    vectors: [u32; 3],
    end: &(dyn Fn(&mut CodeAssembler, bool) -> Result<(), IcedError> + Sync),
) -> Result<(), IcedError> {
    let [pit, clock, com1] = vectors;
    handler(a, pit..pit + 1, &|a| {
        a.push(eax)?;
        a.inc(dword_ptr(PIT_TICKS))?;
        end(a, false)?;
        a.pop(eax)?;
        a.iretd()
    })?;
    handler(a, clock..clock + 1, &|a| {
        a.push(eax)?;
        a.inc(dword_ptr(RTC_TICKS))?;
        // Register C ends it.
        out(a, 0x70, 0x0c)?;
        a.in_(al, 0x71)?;
        end(a, true)?;
        a.pop(eax)?;
        a.iretd()
    })?;
    handler(a, com1..com1 + 1, &|a| {
        a.push(eax)?;
        a.push(edx)?;
        // An emulated KVM may send a level once more: nothing is pending then.
        let mut done = a.create_label();
        a.mov(dx, COM1 + 2)?;
        a.in_(al, dx)?;
        a.test(al, 1)?;
        a.jnz(done)?;
        a.mov(dx, COM1 + 1)?;
        a.xor(eax, eax)?;
        a.out(dx, al)?;
        a.mov(dx, COM1)?;
        a.mov(al, byte_ptr(LETTER))?;
        a.out(dx, al)?;
        a.mov(dword_ptr(LETTER), 0)?;
        a.set_label(&mut done)?;
        end(a, false)?;
        a.pop(edx)?;
        a.pop(eax)?;
        a.iretd()
    })
}

/// Says the alphabet on COM1, each letter by an interrupt of its own, behind three ticks of the 8254 and one of the
/// clock, for which it halts: half of it by way of the 8259A pair, half by the I/O APIC, where COM1's is a level.
fn wired(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut start = a.create_label();
    wired_once(a, &mut start)?;
    send(a, b'.')?;
    halt(a)
}

/// The same, again and again.
fn wired_on_and_on(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut start = a.create_label();
    wired_once(a, &mut start)?;
    a.jmp(start)
}

/// The same once, from `start` on, with no interrupts let in behind it.
fn wired_once(a: &mut CodeAssembler, start: &mut CodeLabel) -> Result<(), IcedError> {
    handler(a, 0x20..0x100, &|a| a.iretd())?;
    devices(a, [0x20, 0x28, 0x24], &|a, slave| {
        if slave {
            out(a, 0xa0, 0x20)?;
        }
        out(a, 0x20, 0x20)
    })?;
    // A request of the slave's that has vanished.
    handler(a, 0x2f..0x30, &|a| {
        a.push(eax)?;
        out(a, 0x20, 0x20)?;
        a.pop(eax)?;
        a.iretd()
    })?;
    devices(a, [0x50, 0x51, 0x52], &|a, _| a.mov(dword_ptr(EOI), 0))?;
    a.set_label(start)?;
    for pin in [2, 8, 4] {
        a.mov(dword_ptr(IOAPIC), 0x10 + 2 * pin)?;
        a.mov(dword_ptr(IOAPIC + 0x10), 0x1_0000)?;
    }
    for (port, value) in [
        // Both controllers, with all but the three masked.
        (0x20, 0x11),
        (0x21, 0x20),
        (0x21, 4),
        (0x21, 1),
        (0xa0, 0x11),
        (0xa1, 0x28),
        (0xa1, 2),
        (0xa1, 1),
        (0x21, 0xea),
        (0xa1, 0xfe),
        // Channel 0: a rate of 200 Hz.
        (0x43, 0x34),
        (0x40, 0x4e),
        (0x40, 0x17),
        // The clock: 256 Hz, with the periodic interrupt.
        (0x70, 0x0a),
        (0x71, 0x28),
        (0x70, 0x0b),
        (0x71, 0x42),
    ] {
        out(a, port, value)?;
    }
    // OUT2 lets COM1's interrupt out.
    a.mov(dx, COM1 + 4)?;
    a.mov(al, 0x0b)?;
    a.out(dx, al)?;
    // The clock's line is up if an interrupt of before was not taken.
    out(a, 0x70, 0x0c)?;
    a.in_(al, 0x71)?;
    a.sti()?;
    for (n, byte) in LETTERS.bytes().enumerate() {
        if n == LETTERS.len() / 2 {
            a.cli()?;
            out(a, 0x21, 0xff)?;
            out(a, 0xa1, 0xff)?;
            a.mov(dword_ptr(0xfee0_00f0_u32), 0x1ff)?;
            for (pin, entry) in [(2, 0x50), (8, 0x51), (4, 0x8052)] {
                for (register, value) in [(0x11 + 2 * pin, 0), (0x10 + 2 * pin, entry)] {
                    a.mov(dword_ptr(IOAPIC), register)?;
                    a.mov(dword_ptr(IOAPIC + 0x10), value)?;
                }
            }
            // One that has come meanwhile is not to be waited for.
            out(a, 0x70, 0x0c)?;
            a.in_(al, 0x71)?;
            a.sti()?;
        }
        let (mut ticks, mut clock, mut sent) = (a.create_label(), a.create_label(), a.create_label());
        a.mov(esi, dword_ptr(PIT_TICKS))?;
        a.add(esi, 3)?;
        a.mov(edi, dword_ptr(RTC_TICKS))?;
        a.inc(edi)?;
        a.set_label(&mut ticks)?;
        a.hlt()?;
        a.cmp(dword_ptr(PIT_TICKS), esi)?;
        a.js(ticks)?;
        a.set_label(&mut clock)?;
        a.pause()?;
        a.cmp(dword_ptr(RTC_TICKS), edi)?;
        a.js(clock)?;
        a.mov(dword_ptr(LETTER), u32::from(byte))?;
        a.mov(dx, COM1 + 1)?;
        a.mov(al, 2)?;
        a.out(dx, al)?;
        a.set_label(&mut sent)?;
        a.pause()?;
        a.cmp(dword_ptr(LETTER), 0)?;
        a.jne(sent)?;
    }
    a.cli()
}

#[test]
fn interrupts_of_all_controllers_survive_hand_overs() {
    let (engines, cpu) = engines();
    for vcpus in [1, 2] {
        let guest = Guest { vcpus, others: &spin, ..Guest::new(&wired) };
        let machine = Machine::new("engines", &guest);
        let mut n = 0;
        for irqchip in IRQCHIPS {
            for first in &engines {
                let mut running = machine.start(n, first, &["-S", "-cpu", &cpu, "-machine", irqchip]);
                let mut monitor = machine.monitor(n);
                // Each engine once, so that none is tried first while the guest has begun.
                for to in engines.iter().chain([first]) {
                    assert_eq!(monitor.ask(&format!("handoff {to}")), "", "{first} {irqchip}");
                }
                assert_eq!(monitor.ask("cont"), "");
                let what = format!("{first} {irqchip}, {vcpus} vCPUs");
                if irqchip != IRQCHIPS[0] || first == &engines[0] {
                    let mut hops = 0;
                    while !machine.console(n).contains('z') {
                        hops += 1;
                        let to = engines[hops % engines.len()];
                        assert_eq!(monitor.ask(&format!("handoff {to}")), "", "{what}");
                        // As they are, wherever they are.
                        let begun = machine.console(n).contains('a');
                        let shown = monitor.ask("info pic");
                        assert!(shown.contains("irq_base=20") || !begun, "{what}: {shown}");
                        assert!(hops < 10_000, "{what}: {} {shown}", machine.console(n));
                    }
                    assert!(hops > 5, "{hops} hand-overs, {what}");
                }
                wait_for_text(&machine.path(&format!("com{n}")), ".");
                assert_eq!(machine.console(n), format!("{LETTERS}."), "{what}");
                monitor.send("quit");
                assert!(running.ended(PATIENCE).is_some_and(|s| s.success()), "{what}");
                n += 1;
            }
        }
    }
}

#[test]
fn controllers_that_the_kernel_keeps_are_saved_and_reset_with_the_machine() {
    let (engines, cpu) = engines();
    if !engines.contains(&"kvm") {
        return;
    }
    let by_local_apic = Guest { vcpus: SMP, others: &interrupted, ..Guest::new(&ticks) };
    let by_all = Guest { vcpus: 2, others: &spin, ..Guest::new(&wired) };
    for (guest, irqchip) in
        [(&by_local_apic, IRQCHIPS[1]), (&by_local_apic, IRQCHIPS[2]), (&by_all, IRQCHIPS[2])]
    {
        let machine = Machine::new("engines", guest);
        let options = ["-cpu", &cpu, "-machine", irqchip];
        let mut running = machine.start(0, "kvm", &options);
        let mut monitor = machine.monitor(0);
        wait_for_text(&machine.path("com0"), "f");
        monitor.ask("system_reset");
        wait_for("a second f", || (machine.console(0).matches('f').count() == 2).then_some(()));
        // Its time stands still while it is stopped, and its timer with it.
        assert_eq!(monitor.ask("stop"), "");
        let stopped = machine.console(0);
        std::thread::sleep(Duration::from_millis(50));
        assert_eq!(machine.console(0), stopped);
        assert_eq!(monitor.ask("cont"), "");
        let begun = || machine.console(0).rfind('a').map(|at| machine.console(0)[at..].to_owned()).unwrap();
        wait_for("a second k", || begun().contains('k').then_some(()));
        let saved = format!("file:{}", machine.path("saved"));
        assert_eq!(monitor.ask(&format!("migrate {saved}")), "");
        monitor.send("quit");
        assert!(running.ended(PATIENCE).is_some_and(|s| s.success()));
        for (n, engine) in engines.iter().enumerate() {
            let more = [&options[..], &["-incoming", &saved]].concat();
            let _running = machine.start(n + 1, engine, &more);
            wait_for_text(&machine.path(&format!("com{}", n + 1)), ".");
            let all = begun() + &machine.console(n + 1);
            assert_eq!(all, format!("{LETTERS}."), "{engine}, {irqchip}");
        }
    }
}

#[test]
fn two_hundred_hand_overs_lose_no_interrupt() {
    const TIMES: usize = 200;
    let (engines, cpu) = engines();
    let by_local_apic = Guest { vcpus: SMP, others: &interrupted, ..Guest::new(&one_shots) };
    let by_all = Guest { vcpus: 2, others: &spin, ..Guest::new(&wired_on_and_on) };
    let mut random = Rng::new(17, 1);
    for guest in [&by_local_apic, &by_all] {
        let machine = Machine::new("engines", guest);
        for (n, irqchip) in IRQCHIPS.into_iter().enumerate() {
            let mut running = machine.start(n, engines[0], &["-cpu", &cpu, "-machine", irqchip]);
            let mut monitor = machine.monitor(n);
            let said = || machine.console(n).len();
            wait_for("the first letter", || (said() > 0).then_some(()));
            for time in 0..TIMES {
                let to = engines[(time + 1) % engines.len()];
                assert_eq!(monitor.ask(&format!("handoff {to}")), "", "{irqchip}");
                std::thread::sleep(Duration::from_micros(random.below(10_000)));
            }
            let then = said();
            assert!(then > LETTERS.len(), "{irqchip}: {then} letters");
            let start = Instant::now();
            while said() <= then + LETTERS.len() {
                if start.elapsed() > PATIENCE {
                    let asked = ["info registers -a", "info device apic0", "info device apic1", "info pic"];
                    panic!(
                        "{irqchip}, {} vCPUs: {}",
                        machine.vcpus,
                        asked.map(|what| monitor.ask(what)).concat()
                    );
                }
                std::thread::sleep(Duration::from_millis(10));
            }
            let all = machine.console(n);
            assert!(all.bytes().zip(LETTERS.bytes().cycle()).all(|(a, b)| a == b), "{irqchip}: {all}");
            monitor.send("quit");
            assert!(running.ended(PATIENCE).is_some_and(|s| s.success()), "{irqchip}");
        }
    }
}

#[test]
fn who_looks_at_controllers_that_the_kernel_keeps_disturbs_nobody() {
    let (engines, cpu) = engines();
    if !engines.contains(&"kvm") {
        return;
    }
    let machine =
        Machine::new("engines", &Guest { vcpus: SMP, others: &interrupted, ..Guest::new(&one_shots) });
    for (n, irqchip) in IRQCHIPS.into_iter().enumerate() {
        let mut running = machine.start(n, "kvm", &["-cpu", &cpu, "-machine", irqchip]);
        let mut monitor = machine.monitor(n);
        // How often it has been through the alphabet.
        let rounds = || machine.console(n).matches('z').count();
        wait_for("the first z", || (rounds() > 0).then_some(()));
        for time in 0..1000 {
            // What the guest has written, and nobody but the kernel knew.
            let of = time % SMP;
            let shown = monitor.ask(&format!("info device apic{of}"));
            let state: serde_json::Value = serde_json::from_str(&shown).unwrap();
            assert_eq!(state["regs"]["svr"], 0x1ff, "{irqchip}: {shown}");
            match time % 7 {
                0 => {
                    let shown = monitor.ask("info pic");
                    assert!(shown.contains("pic0: irr=") && shown.contains(" imr=ff "), "{irqchip}: {shown}");
                }
                1 => drop(monitor.ask("info registers -a")),
                2 => drop(monitor.ask("info irq")),
                3 => drop(monitor.ask("info device apic-bus")),
                _ => {}
            }
            // While it stands still they are here, and go there again.
            if time % 250 == 100 {
                assert_eq!(monitor.ask("stop"), "");
                assert!(monitor.ask("info device apic1").contains("\"svr\": 511"), "{irqchip}");
                assert_eq!(monitor.ask("cont"), "");
            }
        }
        let then = rounds();
        wait_for("two more rounds", || (rounds() > then + 1).then_some(()));
        let all = machine.console(n);
        assert!(all.bytes().zip(LETTERS.bytes().cycle()).all(|(a, b)| a == b), "{irqchip}: {all}");
        monitor.send("quit");
        assert!(running.ended(PATIENCE).is_some_and(|s| s.success()), "{irqchip}");
    }
}

#[test]
fn local_apics_are_the_kernels_only_where_that_was_seen_to_work() {
    if cpu_for_kvm().is_none() {
        return;
    }
    let machine = Machine::new("engines", &Guest::new(&power_off));
    let works = mynah_accel::kvm::selftest::split();
    let Some((ran, said)) = with("true", &machine, &["-accel", "kvm"]) else { return };
    assert!(ran, "{said}");
    let told =
        "local APICs are Mynah's (kernel-irqchip=off): KVM cannot be relied on with interrupt controllers";
    assert_eq!(said.contains(told), works.is_err(), "{works:?}: {said}");
    // Who asks for it gets it, and is told; who asks for the other is told nothing.
    for (option, works) in [("split", works), ("on", mynah_accel::kvm::selftest::on())] {
        let (ran, said) =
            with("true", &machine, &["-accel", &format!("kvm,kernel-irqchip={option}")]).unwrap();
        assert!(ran, "{said}");
        let told = format!("kernel-irqchip={option}: KVM cannot be relied on");
        assert_eq!(said.contains(&told), works.is_err(), "{said}");
    }
    let (ran, said) = with("true", &machine, &["-accel", "kvm", "-machine", "kernel_irqchip=off"]).unwrap();
    assert!(ran && !said.contains("irqchip"), "{said}");
    let two = ["-accel", "kvm,kernel-irqchip=on", "-M", "microvm"];
    let (ran, said) = with("true", &machine, &two).unwrap();
    assert!(!ran && said.contains("-M microvm,ioapic2=off has one"), "{said}");
}

#[test]
fn a_saved_guest_goes_on_under_each_engine() {
    let (engines, cpu) = engines();
    let machine = Machine::new("engines", &Guest::new(&spells));
    let mut n = 0;
    // What KVM has made of the processors stays under the others as well.
    let plain = engines.contains(&"kvm").then_some(("kvm", "qemu64"));
    for (first, cpu) in engines.iter().map(|engine| (*engine, &cpu[..])).chain(plain) {
        let mut running = machine.start(n, first, &["-cpu", cpu]);
        let mut monitor = machine.monitor(n);
        wait_for_text(&machine.path(&format!("com{n}")), "k");
        let saved = format!("file:{}", machine.path("saved"));
        assert_eq!(monitor.ask(&format!("migrate {saved}")), "", "{first}");
        monitor.send("quit");
        assert!(running.ended(PATIENCE).is_some_and(|s| s.success()));
        let begun = machine.console(n);
        for second in &engines {
            n += 1;
            let mut running = machine.start(n, second, &["-cpu", cpu, "-incoming", &saved]);
            assert!(running.ended(PATIENCE).is_some_and(|s| s.success()), "{first} to {second}");
            assert_eq!(begun.clone() + &machine.console(n), format!("{LETTERS}."), "{first} to {second}");
        }
        n += 1;
    }
}

#[test]
fn a_hand_over_comes_when_it_is_asked_for() {
    let (engines, cpu) = engines();
    let machine = Machine::new("engines", &Guest::new(&spells));
    let last = engines[engines.len() - 1];
    for (n, (at, first)) in
        [("text:gh", "jit"), ("port:0x3f8=0x6b", "interp"), ("0.1s", "jit"), ("insn:3000", "interp")]
            .into_iter()
            .enumerate()
    {
        let to = if last == first { "interp" } else { last };
        let plan = format!("{to}@{at}");
        let mut command = machine.command(n, first, &["-cpu", &cpu, "-handoff", &plan]);
        let mut running = Running::start(command.env("MYNAH_LOG", "info").stderr(Stdio::piped()));
        assert!(running.ended(PATIENCE).is_some_and(|s| s.success()), "{plan}");
        let said = lines(running.0.stderr.take().unwrap()).join("\n");
        assert!(said.contains(&format!("handed over from {first} to {to}")), "{plan}: {said}");
        assert_eq!(machine.console(n), format!("{LETTERS}."), "{plan}");
    }
}

/// What Mynah says of a guest that it does not start, or starts and switches off, with a shell's preparations in a
/// file system view of its own. `None` if that cannot be had.
fn with(preparations: &str, machine: &Machine, accel: &[&str]) -> Option<(bool, String)> {
    let inner = machine.command_of(&[&["-serial", "null", "-monitor", "none"], accel].concat());
    let args: Vec<String> = inner.get_args().map(|a| a.to_str().unwrap().to_owned()).collect();
    let mut outer = Command::new("unshare");
    // Whoever it becomes on the way has to be let at the program.
    let script = format!(
        "{preparations}\nexec $BECOME sh -c 'test -x \"$0\" && echo PREPARED >&2 && exec \"$0\" \"$@\"' \"$@\""
    );
    outer.args(["--mount", "--propagation", "private", "sh", "-ec", &script, "sh"]);
    outer.arg(inner.get_program()).args(args).env_remove("HOME").env_remove("XDG_CACHE_HOME");
    outer.env_remove("MYNAH_ACCEL").env("MYNAH_LOG", "info");
    let out = outer.stdin(Stdio::null()).output().unwrap();
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    if !said.contains("PREPARED") {
        eprintln!("SKIPPED: {preparations}: {}", said.trim());
        return None;
    }
    Some((out.status.success(), said))
}

/// A KVM that says something else of itself, for a program that is started with it.
const SHIM: &str = r#"
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdarg.h>
#include <stdlib.h>
int ioctl(int fd, unsigned long request, ...) {
    va_list list;
    va_start(list, request);
    void *argument = va_arg(list, void *);
    va_end(list);
    const char *as = getenv("KVM_IS");
    if (request == 0xae00 && as[0] == 'o') return 11;
    if (request == 0xae01 && as[0] == 'b') { errno = EBUSY; return -1; }
    if (request == 0xae03 && as[0] == 'l' && argument == (void *)81) return 0;
    static int (*real)(int, unsigned long, void *);
    if (!real) real = dlsym(RTLD_NEXT, "ioctl");
    return real(fd, request, argument);
}
"#;

#[test]
fn what_is_wrong_with_kvm_is_said_with_the_remedy() {
    let machine = Machine::new("engines", &Guest::new(&power_off));
    let folder = &machine.folder;
    let file = folder.file("file", b"");
    let shim = folder.path("shim.so");
    let source = folder.file("shim.c", SHIM.as_bytes());
    let compiled = Command::new("cc").args(["-shared", "-fPIC", "-o", &shim, &source, "-ldl"]).status();
    let has_shim = compiled.is_ok_and(|s| s.success());
    let open = format!("chmod 755 {}", folder.0.display());
    let cases = [
        (
            "mount -t tmpfs none /dev".to_owned(),
            vec!["/dev/kvm does not exist", "modprobe kvm_intel or kvm_amd", "nested virtualization"],
        ),
        (format!("mount --bind {file} /dev/kvm"), vec!["/dev/kvm is not KVM's device"]),
        (
            format!(
                "{open}; mount -t tmpfs none /mnt; mknod /mnt/kvm c 10 232; chmod 660 /mnt/kvm; chgrp daemon /mnt/kvm; \
                 mount --bind /mnt/kvm /dev/kvm; BECOME=\"setpriv --reuid 65534 --regid 65534 --clear-groups\""
            ),
            vec!["/dev/kvm: permission denied", "sudo usermod -aG daemon $USER"],
        ),
        (
            format!(
                "{open}; mount -t tmpfs none /mnt; mknod /mnt/kvm c 10 232; chmod 600 /mnt/kvm; \
                 mount --bind /mnt/kvm /dev/kvm; BECOME=\"setpriv --reuid 65534 --regid 65534 --clear-groups\""
            ),
            vec!["/dev/kvm: permission denied", "mode 0600", "chmod 660 /dev/kvm"],
        ),
        (format!("export LD_PRELOAD={shim} KVM_IS=old"), vec!["its API has version 11, not 12", "too old"]),
        (format!("export LD_PRELOAD={shim} KVM_IS=busy"), vec!["/dev/kvm is busy", "VirtualBox"]),
        (format!("export LD_PRELOAD={shim} KVM_IS=less"), vec!["has no support for read-only memory slots"]),
    ];
    let has_kvm = cpu_for_kvm().is_some();
    for (preparations, texts) in cases {
        // A mount needs something to cover.
        if (preparations.contains("/dev/kvm") || preparations.contains("LD_PRELOAD")) && !has_kvm {
            continue;
        }
        if preparations.contains("LD_PRELOAD") && !has_shim {
            eprintln!("SKIPPED: no C compiler: KVM of another age, busy KVM");
            continue;
        }
        // It is asked for, and cannot be: no guest runs.
        let Some((ran, said)) = with(&preparations, &machine, &["-accel", "kvm"]) else { continue };
        assert!(!ran, "{preparations}: {said}");
        for text in &texts {
            assert!(
                said.contains(text) && said.contains("-accel kvm"),
                "{preparations}: no '{text}' in {said}"
            );
        }
        // It was asked for first, or nothing was asked for: another one runs it, and says why.
        for accel in [&["-accel", "kvm", "-accel", "jit"][..], &["-accel", "auto"], &[]] {
            let (ran, said) = with(&preparations, &machine, accel).unwrap();
            assert!(ran, "{preparations}, {accel:?}: {said}");
            for text in &texts {
                assert!(said.contains(text), "{preparations}, {accel:?}: no '{text}' in {said}");
            }
        }
    }
}

#[test]
fn a_kvm_that_emulates_the_kernel_is_not_taken_by_itself() {
    if cpu_for_kvm().is_none() {
        return;
    }
    let speed = mynah_accel::kvm::probe::speed().unwrap();
    let machine = Machine::new("engines", &Guest::new(&power_off));
    let Some((ran, said)) = with("true", &machine, &[]) else { return };
    assert!(ran, "{said}");
    if speed.is_slow() {
        assert!(said.contains("runs by the translator (-accel jit): KVM is here, but executes"), "{said}");
    } else {
        assert!(said.contains("runs by KVM (-accel kvm)"), "{said}");
    }
}

#[test]
#[ignore = "boots a kernel from Debian's packages"]
fn linux_does_not_notice_two_hundred_hand_overs() {
    const TIMES: usize = 200;
    let (Some(kernel), Some(initrd)) =
        (guest("cloud"), ramdisk("engines", "busybox", &format!("{TROUBLE}{WORK}")))
    else {
        return;
    };
    let files = [kernel.to_str().unwrap(), initrd.to_str().unwrap()];
    let keys = |console: &str| -> Vec<String> {
        common::key_lines(console, &["KEY "]).into_iter().map(str::to_owned).collect()
    };
    for vcpus in ["1", "4"] {
        let folder = Folder::new("engines");
        let console = |name: &str| fs::read_to_string(folder.path(name)).unwrap_or_default();
        let mut whole = linux(&folder, &files, "whole", "jit,cache=off", vcpus, &[]);
        assert!(whole.ended(LONG).is_some_and(|s| s.success()), "{}", console("com-whole"));
        let expected = keys(&console("com-whole"));
        assert!(expected.ends_with(&["KEY TROUBLE 0".into(), "KEY DONE".into()]), "{expected:?}");

        let mut running = linux(&folder, &files, "moved", "interp", vcpus, &[]);
        let mut monitor = Client::at(&folder.path("monitor-moved"));
        let mut random = Rng::new(17, 0);
        for n in 0..TIMES {
            std::thread::sleep(Duration::from_micros(random.below(25_000)));
            // Now and then in no time at all.
            if n % 16 == 0 {
                assert_eq!(monitor.ask("handoff jit"), "");
                assert_eq!(monitor.ask("handoff interp"), "");
            }
            let engine = ["jit", "interp"][n % 2];
            assert_eq!(monitor.ask(&format!("handoff {engine}")), "", "number {n}: {}", console("com-moved"));
        }
        assert_eq!(monitor.ask("handoff jit"), "");
        let text = console("com-moved");
        assert!(!text.contains("KEY DONE"), "it was done before it was handed over {TIMES} times");
        assert!(running.ended(LONG).is_some_and(|s| s.success()), "{}", console("com-moved"));
        assert_eq!(keys(&console("com-moved")), expected, "-smp {vcpus}: {}", console("com-moved"));
    }
    fs::remove_file(&initrd).unwrap();
}

/// Waits until the machine's text screen has this on it, for a host whose KVM is slow.
fn screen_has(monitor: &mut Client<UnixStream>, text: &str) {
    let start = Instant::now();
    loop {
        let screen = monitor.ask("screentext");
        if screen.contains(text) {
            return;
        }
        assert!(start.elapsed() < LONG, "no '{text}' on the screen: {screen}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

const SEABIOS: &str = "/usr/share/seabios/bios-256k.bin";

/// GRUB comes to its menu and its prompt from a floppy and a CD, by the built-in BIOS and SeaBIOS, under KVM with these
/// interrupt controllers.
fn a_floppy_and_a_cd_come_to_their_prompt(irqchip: &str) {
    if cpu_for_kvm().is_none() {
        return;
    }
    let (Some(floppy), Some(cd)) = (guest("grub-floppy"), guest("grub-cd")) else { return };
    for firmware in ["built-in", SEABIOS] {
        if firmware == SEABIOS && !std::path::Path::new(firmware).exists() {
            eprintln!("SKIPPED: SeaBIOS is not installed (Debian's package 'seabios')");
            continue;
        }
        for (option, image) in [("-fda", &floppy), ("-cdrom", &cd)] {
            // SeaBIOS lets interrupts in for one instruction at a time as it waits for the floppy's, which a KVM that
            // is emulated itself may not notice. Where the controllers are its own, nobody else does.
            if (firmware, option, irqchip) == (SEABIOS, "-fda", IRQCHIPS[2])
                && let Err(e) = mynah_accel::kvm::selftest::on()
            {
                eprintln!("SKIPPED: a floppy by SeaBIOS, {irqchip}: {e}");
                continue;
            }
            let folder = Folder::new("engines");
            let socket = folder.path("monitor");
            let monitor = format!("unix:{socket},server=on,wait=off");
            let accel = format!("kvm,{irqchip}");
            let mut args = vec!["run", "-m", "128", "-accel", &accel, "-display", "none", "-serial", "null"];
            args.extend(["-nic", "none", "-snapshot", "-monitor", &monitor, option, image.to_str().unwrap()]);
            if firmware == SEABIOS {
                args.extend(["-bios", firmware]);
            }
            let began = Instant::now();
            let mut running = Running::start(&mut command(&args));
            let mut monitor = Client::at(&socket);
            screen_has(&mut monitor, "Press enter to boot");
            let menu = began.elapsed();
            // Where KVM is slow, the menu is there long before GRUB takes keys.
            std::thread::sleep(Duration::from_secs(8));
            monitor.ask("sendkey c");
            screen_has(&mut monitor, "grub>");
            eprintln!("{firmware} {option} {irqchip}: its menu after {menu:.0?}");
            monitor.send("quit");
            assert!(running.ended(PATIENCE).is_some_and(|s| s.success()), "{firmware} {option} {irqchip}");
        }
    }
}

#[test]
#[ignore = "boots images from Debian's packages, which takes minutes where KVM is emulated itself"]
fn a_floppy_and_a_cd_come_to_their_prompt_under_kvm() {
    a_floppy_and_a_cd_come_to_their_prompt(IRQCHIPS[0]);
}

#[test]
#[ignore = "boots images from Debian's packages, which takes minutes where KVM is emulated itself"]
fn a_floppy_and_a_cd_come_to_their_prompt_with_local_apics_in_the_kernel() {
    a_floppy_and_a_cd_come_to_their_prompt(IRQCHIPS[1]);
}

#[test]
#[ignore = "boots images from Debian's packages, which takes minutes where KVM is emulated itself"]
fn a_floppy_and_a_cd_come_to_their_prompt_with_all_controllers_in_the_kernel() {
    a_floppy_and_a_cd_come_to_their_prompt(IRQCHIPS[2]);
}
