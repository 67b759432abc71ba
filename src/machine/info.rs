//! What the monitor's `info` says of the board, in the words of QEMU's.
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

/// `info pic`, from the states of all devices.
pub fn pic(devices: &[(String, Value)]) -> String {
    let state = |wanted: &str| devices.iter().find(|(name, _)| name == wanted).map(|(_, state)| state);
    let mut text = String::new();
    if let Some(state) = state("ioapic") {
        let number = |field: &str| state[field].as_u64().unwrap_or_default();
        let _ = writeln!(text, "ioapic0: id={:#04x} sel={:#04x}", number("id"), number("index"));
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
        let text = super::pic(&[("pic".into(), pic.inspect()), ("ioapic".into(), ioapic.inspect())]);
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
