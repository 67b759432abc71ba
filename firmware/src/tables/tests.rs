use super::*;
use crate::mem::SparseMemory;
use crate::testing::{read_u32, read_u64, read_vec};
use mynah_devices::bus::{Irq, PortBus};
use mynah_devices::chardev::Null;
use mynah_devices::chipset::Ferr;
use mynah_devices::clock::ManualClock;
use mynah_devices::device::Plugged;
use mynah_devices::dma::Dma;
use mynah_devices::events::{A20Gate, NoEvents};
use mynah_devices::input::i8042::I8042;
use mynah_devices::interrupts::ioapic::Ioapic;
use mynah_devices::interrupts::lapic::LocalApics;
use mynah_devices::interrupts::pic::Pic;
use mynah_devices::misc::fw_cfg::FwCfg;
use mynah_devices::misc::pvpanic::Pvpanic;
use mynah_devices::serial::{COM, Serial};
use mynah_devices::timers::hpet::{Hpet, HpetWires};
use mynah_devices::timers::pit::Pit;
use mynah_devices::timers::rtc::Rtc;
use mynah_mmu::{GuestRam, PhysMemory};
use std::process::Command;
use std::sync::Arc;

const RAM: u64 = 128 << 20;

fn everything() -> Config {
    Config {
        apic_ids: (0..4).collect(),
        com_ports: [true; 4],
        devices: devices(),
        s3: true,
        s4: true,
        pci_window_64: Some((1 << 36, (1 << 37) - 1)),
        ..Config::default()
    }
}

/// What all devices that have something to say of themselves do say.
fn devices() -> Vec<Fragment> {
    let (clock, ports, events) = (Arc::new(ManualClock::new()), PortBus::new(), Arc::new(NoEvents));
    let pin = Irq::unconnected;
    let apics = LocalApics::new(clock.clone(), 1);
    let wires =
        HpetWires { pins: Ioapic::new(apics), irq0: pin(), irq8: pin(), legacy_route: Box::new(|_| {}) };
    let pvpanic = Pvpanic::new(events.clone());
    pvpanic.attach(&ports, 0x505);
    let memory = PhysMemory::new(GuestRam::new(1 << 20).unwrap(), 1 << 20);
    let mut all: Vec<Arc<dyn Plugged>> = vec![
        Pic::new(pin()),
        Pit::new(clock.clone(), pin()),
        Rtc::new(clock.clone(), pin(), 0),
        Ferr::new(pin()),
        I8042::new(true, pin(), pin(), A20Gate::new(true, events.clone()), events),
        pvpanic,
        FwCfg::new(Dma::always(memory)),
        Hpet::new(clock.clone(), wires),
    ];
    for (base, _) in COM {
        let serial = Serial::new(Arc::new(Null), pin(), clock.clone());
        serial.attach(&ports, base);
        all.push(serial);
    }
    let all: Vec<_> = all.iter().filter_map(|d| d.aml()).collect();
    assert_eq!(all.len(), 12);
    all
}

fn bare() -> Config {
    Config { com_ports: [false; 4], hpet: false, i8042: false, vga: true, ..Config::default() }
}

fn sum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |s, b| s.wrapping_add(*b))
}

/// Every table reachable from the RSDP: (signature, bytes).
fn acpi_tables(mem: &SparseMemory, t: &Tables) -> Vec<(String, Vec<u8>)> {
    let rsdp = t.rsdp.unwrap();
    let read = |gpa: u64| {
        let all = read_vec(mem, gpa, read_u32(mem, gpa + 4) as usize);
        (String::from_utf8(all[..4].to_vec()).unwrap(), all)
    };
    let xsdt = read(read_u64(mem, rsdp + 24));
    let rsdt = read(read_u32(mem, rsdp + 16).into());
    let mut list = vec![];
    for p in xsdt.1[36..].chunks(8) {
        list.push(read(u64::from_le_bytes(p.try_into().unwrap())));
    }
    let fadt = list.iter().find(|t| t.0 == "FACP").unwrap().1.clone();
    let pointer = |at: usize| u64::from(u32::from_le_bytes(fadt[at..at + 4].try_into().unwrap()));
    // Hardware-reduced ACPI has no FACS.
    list.extend((pointer(36) != 0).then(|| read(pointer(36))));
    list.extend([read(pointer(40)), rsdt, xsdt]);
    list
}

fn find<'a>(list: &'a [(String, Vec<u8>)], signature: &str) -> &'a [u8] {
    &list.iter().find(|t| t.0 == signature).unwrap_or_else(|| panic!("no {signature}")).1
}

#[test]
fn all_acpi_tables_are_reachable_and_sum_to_zero() {
    for cfg in [everything(), bare()] {
        let mem = SparseMemory::new(RAM, 0);
        let t = build_tables(&mem, &cfg).unwrap();
        let rsdp = read_vec(&mem, t.rsdp.unwrap(), 36);
        assert_eq!(t.rsdp.unwrap() % 16, 0);
        assert_eq!((sum(&rsdp[..20]), sum(&rsdp)), (0, 0));
        let list = acpi_tables(&mem, &t);
        for (signature, bytes) in list.iter().filter(|t| t.0 != "FACS") {
            assert_eq!(sum(bytes), 0, "{signature}");
        }
        assert_eq!(list.iter().any(|t| t.0 == "HPET"), cfg.hpet);
        for s in ["FACP", "APIC", "WAET", "DSDT", "FACS", "RSDT", "XSDT"] {
            find(&list, s);
        }
    }
}

#[test]
fn rsdt_and_xsdt_name_the_same_tables() {
    let mem = SparseMemory::new(RAM, 0);
    let list = acpi_tables(&mem, &build_tables(&mem, &everything()).unwrap());
    let narrow: Vec<u64> = find(&list, "RSDT")[36..]
        .chunks(4)
        .map(|p| u32::from_le_bytes(p.try_into().unwrap()).into())
        .collect();
    let wide: Vec<u64> =
        find(&list, "XSDT")[36..].chunks(8).map(|p| u64::from_le_bytes(p.try_into().unwrap())).collect();
    assert_eq!(narrow, wide);
}

#[test]
fn tables_lie_where_the_map_says_that_they_do() {
    let mem = SparseMemory::new(RAM, 1 << 30);
    let t = build_tables(&mem, &everything()).unwrap();
    let kind =
        |gpa: u64| t.e820.entries().iter().find(|e| (e.base..e.base + e.len).contains(&gpa)).map(|e| e.kind);
    let rsdp = t.rsdp.unwrap();
    assert_eq!(kind(rsdp), Some(E820Kind::Reserved));
    assert_eq!(kind(read_u64(&mem, rsdp + 24)), Some(E820Kind::Acpi));
    let list = acpi_tables(&mem, &t);
    let facs = u32::from_le_bytes(find(&list, "FACP")[36..40].try_into().unwrap());
    assert_eq!(kind(facs.into()), Some(E820Kind::Nvs));
    assert_eq!(facs % 64, 0);
    assert_eq!(kind(0x9_fc00), Some(E820Kind::Reserved));
    assert_eq!(kind(0xa_0000), None);
    assert_eq!(kind(0x10_0000), Some(E820Kind::Usable));
    assert_eq!(kind(FOUR_GIB), Some(E820Kind::Usable));
    assert_eq!(kind(FOUR_GIB + (1 << 30)), None);
}

#[test]
fn fadt_describes_the_piix4_registers() {
    let mem = SparseMemory::new(RAM, 0);
    let list = acpi_tables(&mem, &build_tables(&mem, &Config::default()).unwrap());
    let f = find(&list, "FACP");
    let u32_at = |at: usize| u32::from_le_bytes(f[at..at + 4].try_into().unwrap());
    assert_eq!(f.len(), 244);
    assert_eq!([u32_at(56), u32_at(64), u32_at(76), u32_at(80)], [0x600, 0x604, 0x608, 0xafe0]);
    assert_eq!((u32_at(48), f[52], f[53], f[46]), (0xb2, 0xf1, 0xf0, 9));
    assert_eq!((f[116], u32_at(120), f[128]), (1, 0xcf9, 6));
    assert_ne!(u32_at(112) & 1 << 10, 0, "RESET_REG_SUP");
    assert_eq!(u32_at(112) & 1 << 8, 0, "24-bit timer");
    // Linux complains where a wide field and its narrow one differ.
    for (narrow, wide) in [(56, 148), (64, 172), (76, 208), (80, 220), (40, 136)] {
        assert_eq!(u32_at(narrow), u32_at(wide + 4), "fields {narrow} and {wide}");
    }
    assert_eq!([f[149], f[173], f[209], f[221]].map(|bits| bits / 8), [f[88], f[89], f[91], f[92]]);
}

#[test]
fn madt_lists_processors_by_the_apic_they_have() {
    let mem = SparseMemory::new(RAM, 0);
    let cfg = Config { apic_ids: vec![0, 1, 254, 255, 300], ..Config::default() };
    let list = acpi_tables(&mem, &build_tables(&mem, &cfg).unwrap());
    let mut rest = &find(&list, "APIC")[44..];
    let (mut xapic, mut x2apic, mut overrides, mut nmis) = (vec![], vec![], vec![], vec![]);
    while let [kind, len, ..] = *rest {
        let (e, tail) = rest.split_at(len.into());
        match kind {
            0 => xapic.push(e[3]),
            9 => x2apic.push(u16::from_le_bytes([e[4], e[5]])),
            2 => overrides.push((e[3], e[4], e[8])),
            k => nmis.push(k),
        }
        rest = tail;
    }
    assert_eq!(xapic, [0, 1, 254]);
    assert_eq!(x2apic, [255, 300]);
    assert_eq!(overrides, [(0, 2, 0), (5, 5, 13), (9, 9, 13), (10, 10, 13), (11, 11, 13)]);
    assert_eq!(nmis, [1, 4, 10], "IOAPIC, local NMI, x2APIC NMI");
}

/// A board without PCI.
fn reduced() -> Config {
    let chipset = Chipset::Reduced { ged: 0xfea0_0000, irq: 9 };
    Config { chipset, product: "microvm", hpet: false, pic: false, i8042: false, ..Config::default() }
}

#[test]
fn hardware_reduced_acpi_has_its_registers_and_neither_fixed_events_nor_pci() {
    let mem = SparseMemory::new(RAM, 0);
    let t = build_tables(&mem, &reduced()).unwrap();
    let list = acpi_tables(&mem, &t);
    let fadt = find(&list, "FACP");
    let u32_at = |at: usize| u32::from_le_bytes(fadt[at..at + 4].try_into().unwrap());
    let gas = |at: usize| (fadt[at], fadt[at + 1], u32_at(at + 4));
    assert_eq!((u32_at(112) >> 20 & 1, u32_at(36)), (1, 0), "the flag; no FACS");
    assert_eq!((gas(244), gas(256)), ((0, 8, 0xfea0_0200), (0, 8, 0xfea0_0201)), "sleep control, status");
    assert_eq!((gas(116), fadt[128]), ((0, 8, 0xfea0_0202), 0x42), "reset");
    assert_eq!((u32_at(56), u32_at(64), u32_at(80)), (0, 0, 0), "PM1a and GPE0");
    assert_eq!(u32_at(76), 0x608, "PM timer");
    let madt = find(&list, "APIC");
    assert_eq!(madt[40] & 1, 0, "no 8259s");
    let dsdt = find(&list, "DSDT");
    assert!(!dsdt.windows(4).any(|w| w == b"PCI0"));
}

/// A board with PCI Express.
fn q35() -> Config {
    Config { chipset: Chipset::Q35, product: "Standard PC (Q35 + ICH9, 2009)", ..everything() }
}

#[test]
fn a_board_with_pci_express_has_its_registers_and_configuration_space_in_memory() {
    let mem = SparseMemory::new(RAM, 0);
    let t = build_tables(&mem, &q35()).unwrap();
    let list = acpi_tables(&mem, &t);
    let f = find(&list, "FACP");
    let u32_at = |at: usize| u32::from_le_bytes(f[at..at + 4].try_into().unwrap());
    assert_eq!([u32_at(56), u32_at(64), u32_at(76), u32_at(80)], [0x600, 0x604, 0x608, 0x620]);
    assert_eq!((u32_at(48), f[52], f[53], f[92], f[221]), (0xb2, 2, 3, 16, 128));
    let mcfg = find(&list, "MCFG");
    assert_eq!((mcfg.len(), &mcfg[44..52]), (60, &0xb000_0000_u64.to_le_bytes()[..]));
    assert_eq!(mcfg[52..56], [0, 0, 0, 255], "segment 0, all buses");
    let of_space = t.e820.entries().iter().find(|e| e.base == 0xb000_0000).unwrap();
    assert_eq!((of_space.len, of_space.kind), (256 << 20, E820Kind::Reserved));
    let madt = find(&list, "APIC");
    assert_eq!(madt[40] & 1, 1);
    let dsdt = find(&list, "DSDT");
    for name in [b"_OSC", b"PRTP", b"PRTA", b"GSIH", b"LNKH", b"DRAC", b"PICF"] {
        assert!(dsdt.windows(4).any(|w| w == name), "{}", String::from_utf8_lossy(name));
    }
    let routes = |slot, pin| (Chipset::Q35.pirq(slot, pin), Chipset::Q35.pirq_route(slot, pin));
    assert_eq!([routes(1, 0), routes(2, 3), routes(0x1f, 1)], [(5, 10), (5, 10), (1, 10)]);
}

/// Disassembles, compiles again and compares: what ACPICA reads is what was meant, to the byte.
#[test]
fn iasl_disassembles_the_dsdt_and_compiles_it_to_the_same_bytes() {
    if Command::new("iasl").arg("-v").output().is_err() {
        eprintln!("SKIPPED: no iasl (Debian: acpica-tools) on this host");
        return;
    }
    let reduced = Config { devices: everything().devices, ..reduced() };
    for (n, cfg) in [everything(), bare(), Config::default(), reduced, q35()].into_iter().enumerate() {
        let mem = SparseMemory::new(RAM, 0);
        let list = acpi_tables(&mem, &build_tables(&mem, &cfg).unwrap());
        let dir = std::env::temp_dir().join(format!("mynah-iasl-{}-{n}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let iasl = |args: &[&str]| {
            let out = Command::new("iasl").args(args).current_dir(&dir).output().unwrap();
            let text =
                String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr);
            assert!(out.status.success(), "iasl {args:?}: {text}");
            text
        };
        for (signature, bytes) in list.iter().filter(|t| !["RSDT", "XSDT"].contains(&t.0.as_str())) {
            let name = format!("{signature}.dat");
            std::fs::write(dir.join(&name), bytes).unwrap();
            let text = iasl(&["-d", &name]);
            assert!(!text.contains("Error") && !text.contains("Warning"), "{signature}: {text}");
        }
        let text = iasl(&["-oa", "-p", "again", "DSDT.dsl"]);
        assert!(text.contains("0 Errors, 0 Warnings"), "{text}");
        let again = std::fs::read(dir.join("again.aml")).unwrap();
        // The header has the compiler's name and revision from byte 28 on, and its checksum at 9.
        let ours = find(&list, "DSDT");
        assert_eq!(again.len(), ours.len());
        assert!(again[36..] == ours[36..], "recompiled AML differs");
        std::fs::remove_dir_all(&dir).unwrap();
    }
}

#[test]
fn mp_table_agrees_with_the_madt() {
    let mem = SparseMemory::new(RAM, 0);
    let cfg = Config { apic_ids: vec![0, 2, 300], ..Config::default() };
    let t = build_tables(&mem, &cfg).unwrap();
    let pointer = read_vec(&mem, t.mp.unwrap(), 16);
    assert_eq!((&pointer[..4], sum(&pointer), t.mp.unwrap() % 16), (&b"_MP_"[..], 0, 0));
    let at = u64::from(u32::from_le_bytes(pointer[4..8].try_into().unwrap()));
    let len = read_u32(&mem, at + 4) as u16;
    let table = read_vec(&mem, at, len.into());
    assert_eq!((&table[..4], sum(&table)), (&b"PCMP"[..], 0));
    let mut rest = &table[44..];
    let (mut cpus, mut isa, mut entries) = (vec![], vec![], 0u16);
    while let Some(&kind) = rest.first() {
        let (e, tail) = rest.split_at(if kind == 0 { 20 } else { 8 });
        match (kind, e[4]) {
            (0, _) => cpus.push((e[1], e[3])),
            (3, 1) => isa.push((e[5], e[7], e[2])),
            _ => {}
        }
        (rest, entries) = (tail, entries + 1);
    }
    assert_eq!(cpus, [(0, 3), (2, 1)], "ids and flags; 300 has no place in the format");
    assert!(isa.contains(&(0, 2, 0)), "the timer arrives at pin 2");
    assert!(isa.contains(&(9, 9, 13)) && isa.contains(&(4, 4, 0)));
    assert_eq!(entries, u16::from_le_bytes([table[34], table[35]]));
}

#[test]
fn smbios_structures_parse_and_end() {
    let mem = SparseMemory::new(3 << 30, 61 << 30);
    let cfg =
        Config { uuid: *b"\x00\x11\x22\x33\x44\x55\x66\x77\x88\x99\xaa\xbb\xcc\xdd\xee\xff", ..everything() };
    let t = build_tables(&mem, &cfg).unwrap();
    let e = read_vec(&mem, t.smbios.unwrap(), 31);
    assert_eq!((sum(&e), sum(&e[16..]), t.smbios.unwrap() % 16), (0, 0, 0));
    let len = u16::from_le_bytes([e[22], e[23]]);
    let table = read_vec(&mem, u32::from_le_bytes(e[24..28].try_into().unwrap()).into(), len.into());
    let (mut at, mut kinds, mut strings) = (0, vec![], vec![]);
    while at < table.len() {
        kinds.push(table[at]);
        if table[at] == 1 {
            assert_eq!(table[at + 8..at + 16], [0x33, 0x22, 0x11, 0, 0x55, 0x44, 0x77, 0x66]);
        }
        at += usize::from(table[at + 1]);
        let end = at + table[at..].windows(2).position(|w| w == [0, 0]).unwrap();
        strings.extend(table[at..end].split(|b| *b == 0).map(|s| String::from_utf8_lossy(s).into_owned()));
        at = end + 2;
    }
    assert_eq!(kinds, [0, 1, 3, 4, 16, 17, 17, 17, 17, 19, 19, 32, 127], "64 GiB are four modules");
    assert_eq!(kinds.len(), usize::from(u16::from_le_bytes([e[28], e[29]])));
    for s in ["Mynah", "Standard PC (i440FX + PIIX, 1996)", "DIMM 3"] {
        assert!(strings.iter().any(|x| x == s), "{s}");
    }
}

#[test]
fn many_processors_fit_and_too_many_are_refused() {
    let mem = SparseMemory::new(RAM, 0);
    let with = |n| build_tables(&mem, &Config { apic_ids: (0..n).collect(), ..everything() });
    assert!(with(1024).is_ok());
    assert_eq!(with(5000).unwrap_err(), TablesError::TooManyProcessors(5000));
}

#[test]
fn any_amount_of_ram_builds_or_is_refused() {
    for below in [0, 1, 0xfff, 1 << 20, (1 << 20) + 1, (2 << 20) - 1] {
        let r = build_tables(&SparseMemory::new(below, 0), &Config::default());
        assert_eq!(r.unwrap_err(), TablesError::TooLittleRam(below));
    }
    for (below, above) in [(2 << 20, 0), (3 << 30, 100 << 40), (0xfe00_0000, 0)] {
        let mem = SparseMemory::new(below, above);
        let list = acpi_tables(&mem, &build_tables(&mem, &everything()).unwrap());
        assert_eq!(list.len(), 8);
    }
}

#[test]
fn bios_data_area_names_the_serial_ports_and_the_ebda() {
    let mem = SparseMemory::new(RAM, 0);
    build_tables(&mem, &Config { com_ports: [true, false, true, false], ..Config::default() }).unwrap();
    let bda = read_vec(&mem, 0x400, 0x20);
    assert_eq!(bda[..8], [0xf8, 0x03, 0xe8, 0x03, 0, 0, 0, 0]);
    assert_eq!(bda[0x0e..0x10], [0xc0, 0x9f]);
    assert_eq!(bda[0x13..0x15], [0x7f, 0x02]);
    assert_eq!(bda[0x11] >> 1 & 7, 2);
}
