//! What the monitor's `info` says of the board, in the words of QEMU's.
use mynah_devices::pci::config::{BarKind, reg};
use mynah_devices::pci::{ConfigSpace, PciBus};
use serde_json::Value;
use std::fmt::Write;

/// `info mtree`: what is seen at each address, as `-f` shows it in QEMU.
pub fn mtree(memory: &[(u64, u64, &str, &str)], ports: &[(u16, u16, &str)]) -> String {
    let mut text = String::from("address-space: memory\n");
    for (first, last, kind, name) in memory {
        let _ = writeln!(text, "  {first:016x}-{last:016x} ({kind}): {name}");
    }
    text += "\naddress-space: I/O\n";
    for (first, last, name) in ports {
        let _ = writeln!(text, "  {first:016x}-{last:016x} (i/o): {name}");
    }
    text
}

/// `info irq`.
pub fn irq(raised: &[u64]) -> String {
    let mut text = String::from("IRQ statistics:\n");
    for (n, count) in raised.iter().enumerate().filter(|(_, count)| **count != 0) {
        let _ = writeln!(text, "{n:2}: {count}");
    }
    text
}

/// `info roms`: what is in ROM.
pub fn roms(memory: &[(u64, u64, &str, &str)]) -> String {
    let roms = memory.iter().filter(|(_, _, kind, _)| *kind == "rom");
    roms.map(|(first, last, _, name)| {
        format!("addr={first:016x} size={:#08x} mem=rom name=\"{name}\"\n", last - first + 1)
    })
    .collect()
}

/// `info pci`.
pub fn pci(root: &PciBus) -> String {
    let mut text = String::new();
    root.visit(0, &mut |bus, at, config| {
        let (device, function) = (at.device(), at.function());
        let _ = writeln!(text, "  Bus {bus:2}, device {device:3}, function {function}:");
        text += &pci_function(config);
    });
    text
}

fn pci_function(config: &ConfigSpace) -> String {
    let class = config.get16(reg::CLASS + 1);
    let (vendor, device) = (config.get16(reg::VENDOR_ID), config.get16(reg::DEVICE_ID));
    let mut text = format!("    {}: PCI device {vendor:04x}:{device:04x}\n", class_name(class));
    let bridge = config.get8(reg::HEADER_TYPE) & 0x7f == 1;
    let subsystem = (config.get16(reg::SUBSYSTEM_VENDOR_ID), config.get16(reg::SUBSYSTEM_ID));
    if !bridge && subsystem != (0, 0) {
        let _ = writeln!(text, "      PCI subsystem {:04x}:{:04x}", subsystem.0, subsystem.1);
    }
    let pin = config.get8(reg::INTERRUPT_PIN);
    if pin != 0 {
        let letter = char::from(b'@'.wrapping_add(pin & 7));
        let _ = writeln!(text, "      IRQ {}, pin {letter}", config.get8(reg::INTERRUPT_LINE));
    }
    if bridge {
        let [secondary, subordinate] =
            [reg::SECONDARY_BUS, reg::SUBORDINATE_BUS].map(|offset| config.get8(offset));
        let _ = writeln!(text, "      secondary bus {secondary}.");
        let _ = writeln!(text, "      subordinate bus {subordinate}.");
    }
    for (n, kind, size) in (0..7).filter_map(|n| config.bar(n).map(|(kind, size)| (n, kind, size))) {
        let at = config.bar_address(n).unwrap_or(u64::MAX);
        let last = at.wrapping_add(size - 1);
        let what = match kind {
            BarKind::Io => format!("I/O at {:#06x} [{:#06x}]", at as u16, last as u16),
            BarKind::Memory32 { prefetchable } => memory_bar(32, prefetchable, at, last),
            BarKind::Memory64 { prefetchable } => memory_bar(64, prefetchable, at, last),
        };
        let _ = writeln!(text, "      BAR{n}: {what}.");
    }
    text + "      id \"\"\n"
}

fn memory_bar(bits: u32, prefetchable: bool, at: u64, last: u64) -> String {
    let prefetchable = if prefetchable { " prefetchable" } else { "" };
    format!("{bits} bit{prefetchable} memory at {at:#010x} [{last:#010x}]")
}

/// What a class and subclass are called (PCI Code and ID Assignment Specification 1.11).
fn class_name(class: u16) -> String {
    let name = match class {
        0x0100 => "SCSI controller",
        0x0101 => "IDE controller",
        0x0106 => "SATA controller",
        0x0108 => "NVM controller",
        0x0200 => "Ethernet controller",
        0x0300 => "VGA controller",
        0x0403 => "Audio controller",
        0x0500 => "RAM controller",
        0x0600 => "Host bridge",
        0x0601 => "ISA bridge",
        0x0604 => "PCI bridge",
        0x0680 => "Bridge",
        0x0700 => "Serial port",
        0x0780 => "Communication controller",
        0x0880 => "System peripheral",
        0x0c03 => "USB controller",
        0x0c05 => "SMBus",
        _ => return format!("Class {class:04x}"),
    };
    name.into()
}

/// `info pic`; `state` gives a device's by its name.
pub fn pic(state: &dyn Fn(&str) -> Option<Value>) -> String {
    let mut text = String::new();
    for (n, name) in ["ioapic", "ioapic2"].into_iter().enumerate() {
        let Some(state) = state(name) else { continue };
        let number = |field: &str| state[field].as_u64().unwrap_or_default();
        let _ = writeln!(text, "ioapic{n}: id={:#04x} sel={:#04x}", number("id"), number("index"));
        let entries = state["redirection"].as_array().map_or(&[][..], Vec::as_slice);
        for (pin, entry) in entries.iter().filter_map(Value::as_u64).enumerate() {
            let _ = writeln!(text, "  pin {pin:<2} {}", redirection(entry));
        }
    }
    if let Some(state) = state("pic") {
        for (n, chip) in [&state["pair"]["master"], &state["pair"]["slave"]].into_iter().enumerate().rev() {
            let number = |field: &str| chip[field].as_u64().unwrap_or_default();
            let flag = |field: &str| u8::from(chip[field].as_bool().unwrap_or_default());
            let _ = writeln!(
                text,
                "pic{n}: irr={:02x} imr={:02x} isr={:02x} hprio={} irq_base={:02x} rr_sel={} elcr={:02x} fnm={}",
                number("irr"),
                number("imr"),
                number("isr"),
                number("top"),
                number("vector"),
                flag("read_isr"),
                number("elcr"),
                number("icw4") >> 4 & 1,
            );
        }
    }
    text
}

/// An entry of the I/O APIC (82093AA data sheet, 3.2.4).
fn redirection(entry: u64) -> String {
    const MODES: [&str; 8] = ["fixed", "lowest", "SMI", "-", "NMI", "INIT", "-", "ExtINT"];
    let of = |bit: u32, clear, set| if entry >> bit & 1 == 0 { clear } else { set };
    format!(
        "{entry:#018x} dest={:x} vec={:<3} {} {:5} {:6} {:6} {}",
        entry >> 56,
        entry & 0xff,
        of(13, "active-hi", "active-lo"),
        of(15, "edge", "level"),
        of(16, "", "masked"),
        MODES[(entry >> 8 & 7) as usize],
        of(11, "physical", "logical"),
    )
}

#[cfg(test)]
mod tests {
    use mynah_devices::bus::{Irq, IrqSink};
    use mynah_devices::clock::ManualClock;
    use mynah_devices::device::Plugged;
    use mynah_devices::interrupts::{ioapic::Ioapic, lapic::LocalApics, pic::Pic};
    use std::sync::Arc;

    #[test]
    fn interrupt_controllers_are_shown_as_they_are() {
        let (pic, apics) = (Pic::new(Irq::unconnected()), LocalApics::new(Arc::new(ManualClock::new()), 1));
        for (offset, value) in [(0, 0x11), (1, 0x30), (1, 4), (1, 0x11), (1, 0xfb)] {
            pic.master_ports().write(offset, 1, value);
        }
        pic.set(3, true);
        let ioapic = Ioapic::new(apics);
        for (at, value) in [(0, 0x14), (0x10, 0xa931), (0, 0x15), (0x10, 3 << 24)] {
            mynah_mmu::Mmio::write(&*ioapic, at, 4, value);
        }
        let text = super::pic(&|name| match name {
            "pic" => Some(pic.inspect()),
            "ioapic" => Some(ioapic.inspect()),
            _ => None,
        });
        assert!(
            text.contains("pic0: irr=08 imr=fb isr=00 hprio=0 irq_base=30 rr_sel=0 elcr=00 fnm=1\n"),
            "{text}"
        );
        assert!(text.contains("pic1: "), "{text}");
        assert!(
            text.contains("  pin 2  0x030000000000a931 dest=3 vec=49  active-lo level        lowest logical"),
            "{text}"
        );
        assert!(
            text.contains(
                "  pin 0  0x0000000000010000 dest=0 vec=0   active-hi edge  masked fixed  physical"
            ),
            "{text}"
        );
    }
}
