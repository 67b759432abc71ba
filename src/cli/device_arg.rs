//! `-device`: what can be added to the machine.

use super::Error;
use super::props::Props;
use super::suggest::did_you_mean;
use mynah_devices::kind::{self, Bus, Chosen, Kind, Property, Type, Value, Values};
use mynah_devices::pci::DevFn;
use mynah_net::Mac;
use std::fmt::Write;

/// Devices that QEMU has and users are likely to ask for: refused by name, not as a slip of the fingers.
const LATER: &[&str] = &[
    "VGA",
    "cirrus-vga",
    "vmware-svga",
    "qxl",
    "qxl-vga",
    "bochs-display",
    "ramfb",
    "virtio-vga",
    "virtio-gpu-pci",
    "isa-vga",
    "igb",
    "i82559er",
    "i82557b",
    "ne2k_pci",
    "ne2k_isa",
    "pcnet",
    "vmxnet3",
    "tulip",
    "virtio-9p-pci",
    "virtio-keyboard-pci",
    "virtio-mouse-pci",
    "virtio-tablet-pci",
    "virtio-input-host-pci",
    "vhost-user-fs-pci",
    "vhost-vsock-pci",
    "virtio-iommu-pci",
    "virtio-crypto-pci",
    "virtio-pmem-pci",
    "virtio-mem-pci",
    "scsi-block",
    "scsi-generic",
    "piix3-ide",
    "piix4-ide",
    "isa-ide",
    "lsi53c895a",
    "lsi",
    "megasas",
    "mptsas1068",
    "pvscsi",
    "sdhci-pci",
    "sd-card",
    "usb-ehci",
    "usb-storage",
    "usb-tablet",
    "usb-kbd",
    "usb-mouse",
    "usb-host",
    "usb-hub",
    "usb-serial",
    "usb-net",
    "qemu-xhci",
    "nec-usb-xhci",
    "piix3-usb-uhci",
    "piix4-usb-uhci",
    "ich9-usb-ehci1",
    "pci-ohci",
    "AC97",
    "ES1370",
    "sb16",
    "adlib",
    "gus",
    "intel-hda",
    "ich9-intel-hda",
    "hda-duplex",
    "hda-output",
    "hda-micro",
    "cs4231a",
    "pci-serial",
    "pci-serial-2x",
    "pci-serial-4x",
    "isa-parallel",
    "ioh3420",
    "pxb",
    "pxb-pcie",
    "i6300esb",
    "ib700",
    "tpm-tis",
    "tpm-crb",
    "pvpanic-pci",
    "vmcoreinfo",
    "vmgenid",
    "pci-testdev",
    "ivshmem-plain",
    "ivshmem-doorbell",
    "intel-iommu",
    "amd-iommu",
    "isa-applesmc",
    "hpet",
    "i8042",
    "ipmi-bmc-sim",
    "isa-ipmi-kcs",
    "smbus-eeprom",
    "loader",
    "guest-loader",
    "pc-dimm",
    "nvdimm",
    "vfio-pci",
    "xen-platform",
    "kvaser_pci",
    "sga",
    "testdev",
    "pc-testdev",
    "hyperv-testdev",
    "cfi.pflash01",
    "port92",
];

/// Parses `-device`.
pub fn device(text: &str) -> Result<Chosen, Error> {
    let mut props = Props::parse("-device", text, Some("driver"));
    let name = props.text("driver")?.unwrap_or_default();
    if name == "help" || name == "?" {
        return Err(Error::info(list()));
    }
    let Some(kind) = kind::find(&name) else { return Err(unknown(&name)) };
    if props.wants_help() {
        return Err(Error::info(describe(kind)));
    }
    props.rename(format!("-device {name}"));
    // There may be several PCI buses: which there are is seen when it is plugged in.
    let bus = if kind.bus == Bus::Pci { props.text("bus")? } else { None };
    let address = address(&mut props, kind.bus)?;
    let mut values = Values { id: props.text("id")?, address, bus, ..Values::default() };
    for property in kind.properties {
        if let Some(value) = value(&mut props, property)? {
            values.values.insert(property.name, value);
        }
    }
    props.finish()?;
    Ok(Chosen { kind, values })
}

/// The value of a property: the one given, or the default.
fn value(props: &mut Props, property: &Property) -> Result<Option<Value>, Error> {
    let name = property.name;
    let given = match property.kind {
        Type::Number(least, most) => props.number(name, least, most)?.map(Value::Number),
        Type::Switch => props.switch(name)?.map(Value::Switch),
        Type::Chardev => {
            let id = props.text(name)?.filter(|id| !id.is_empty());
            Some(Value::Text(id.ok_or_else(|| props.error(format!("a {name}=ID is missing")))?))
        }
        Type::Mac => {
            let text = props.text(name)?;
            if let Some(Err(why)) = text.as_ref().map(|t| t.parse::<Mac>()) {
                return Err(props.error(format!("{name}={why}")));
            }
            text.map(Value::Text)
        }
        Type::Drive | Type::Netdev | Type::Text => props.text(name)?.map(Value::Text),
    };
    Ok(given.or_else(|| property.default_value()))
}

/// `bus=` on ISA, of which there is one, and `addr=` on PCI: a slot, or a slot and a function, in hexadecimal.
fn address(props: &mut Props, bus: Bus) -> Result<Option<DevFn>, Error> {
    match bus {
        Bus::Pci => {}
        Bus::Isa => {
            let other = props.text("bus")?.filter(|name| !["isa.0", "isa"].contains(&name.as_str()));
            let why = |other| format!("bus={other}: there is no such bus; it goes on 'isa.0'");
            return other.map_or(Ok(None), |other| Err(props.error(why(other))));
        }
        Bus::Floppy | Bus::System => return Ok(None),
        // There may be several: it is a property.
        Bus::Ide | Bus::VirtioSerial | Bus::VirtioMmio | Bus::Nvme | Bus::Scsi => return Ok(None),
    }
    let Some(text) = props.text("addr")? else { return Ok(None) };
    let (slot, function) = text.split_once('.').unwrap_or((&text, "0"));
    let hex =
        |part: &str, most| u8::from_str_radix(part.trim_start_matches("0x"), 16).ok().filter(|n| *n <= most);
    match (hex(slot, 31), hex(function, 7)) {
        (Some(slot), Some(function)) => Ok(Some(DevFn::new(slot, function))),
        _ => Err(props.error(format!(
            "addr={text}: it is a slot from 0 to 1f, perhaps with a function from 0 to 7 (addr=4, addr=4.1)"
        ))),
    }
}

/// `-device help`.
fn list() -> String {
    let mut text = String::new();
    let mut bus = None;
    for kind in kind::all() {
        if bus.replace(kind.bus) != Some(kind.bus) {
            let _ = writeln!(text, "{} devices:", kind.bus);
        }
        let _ = writeln!(text, "  {:16} {}", kind.name, kind.about);
    }
    text + "'-device NAME,help' tells what can be chosen of one.\n"
}

/// `-device NAME,help`.
fn describe(kind: &Kind) -> String {
    let mut text = format!("{}: {} ({})\n", kind.name, kind.about, kind.bus);
    let mut line = |name: &str, values: &str, help: &str| {
        let _ = writeln!(text, "  {name:10} {values:22} {help}");
    };
    for p in kind.properties {
        let default = p.default_value().map(|d| format!(" (default: {d})")).unwrap_or_default();
        line(p.name, &p.kind.to_string(), &format!("{}{default}", p.help));
    }
    if kind.bus == Bus::Pci {
        line("addr", "SLOT[.FUNCTION]", "its place on the bus (default: the next free slot)");
    }
    line("id", "NAME", "its name in 'info qtree' and in a saved machine");
    text
}

fn unknown(name: &str) -> Error {
    if name.is_empty() {
        return Error::new("-device: the device's name is missing ('-device help' lists them)");
    }
    if LATER.contains(&name) || is_cpu(name) {
        return Error::new(format!("-device {name}: not supported yet ('-device help' lists what there is)"));
    }
    let known = kind::all().into_iter().map(|k| k.name);
    let hint = did_you_mean("", name, known.chain(LATER.iter().copied()));
    let hint = if hint.is_empty() { " ('-device help' lists them)".to_string() } else { hint };
    Error::new(format!("-device {name}: unknown device{hint}"))
}

/// `max-x86_64-cpu` and such: processors added one by one.
fn is_cpu(name: &str) -> bool {
    name.ends_with("-x86_64-cpu") || name.ends_with("-i386-cpu")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(text: &str) -> Values {
        device(text).unwrap().values
    }

    fn refused(text: &str) -> String {
        device(text).unwrap_err().to_string()
    }

    #[test]
    fn a_device_has_its_defaults_and_what_was_chosen() {
        let exit = chosen("isa-debug-exit");
        assert_eq!((exit.number("iobase"), exit.number("iosize")), (Some(0x501), Some(2)));
        let exit = chosen("isa-debug-exit,iobase=0xf4,iosize=0x04,id=end");
        assert_eq!((exit.number("iobase"), exit.id.as_deref()), (Some(0xf4), Some("end")));
        let serial = device("isa-serial,chardev=c,index=1").unwrap();
        assert_eq!((serial.values.number("index"), serial.values.number("irq")), (Some(1), None));
        assert_eq!(serial.chardevs().collect::<Vec<_>>(), ["c"]);
        assert_eq!(chosen("edu,addr=0x1e.3").address, Some(DevFn::new(0x1e, 3)));
        assert_eq!(chosen("edu,bus=pci.0,addr=10").address, Some(DevFn::new(0x10, 0)));
    }

    #[test]
    fn what_a_device_cannot_have_is_refused_by_name() {
        assert!(refused("isa-debug-exit,iosize=0").contains("from 1 to 256"));
        assert_eq!(
            refused("isa-debug-exit,iobsae=1"),
            "-device isa-debug-exit: unknown property 'iobsae'; did you mean 'iobase'?"
        );
        assert_eq!(refused("isa-debugcon"), "-device isa-debugcon: a chardev=ID is missing");
        assert!(refused("edu,addr=20").contains("addr=20: it is a slot from 0 to 1f"));
        assert!(refused("edu,addr=1.8").contains("a function from 0 to 7"));
        assert_eq!(chosen("edu,bus=rp1").bus.as_deref(), Some("rp1"));
        assert!(refused("pvpanic,addr=1").contains("unknown property 'addr'"));
    }

    #[test]
    fn help_comes_from_the_devices_themselves() {
        let all = refused("help");
        for kind in kind::all() {
            assert!(all.contains(kind.name) && all.contains(kind.about), "{}", kind.name);
            let one = refused(&format!("{},help", kind.name));
            assert!(kind.properties.iter().all(|p| one.contains(p.name) && one.contains(p.help)), "{one}");
        }
        assert!(all.find("ISA devices:").unwrap() < all.find("PCI devices:").unwrap());
        assert!(refused("edu,help").contains("(default: 0xfffffff)"));
    }

    #[test]
    fn unknown_devices_and_those_of_qemu() {
        assert_eq!(
            device("isa-debug-exti").unwrap_err().to_string(),
            "-device isa-debug-exti: unknown device; did you mean 'isa-debug-exit'?"
        );
        assert!(device("pcnet,netdev=n0").unwrap_err().to_string().contains("not supported yet"));
        assert!(device("flux-capacitor").unwrap_err().to_string().contains("unknown device ("));
        assert!(device("").unwrap_err().to_string().contains("name is missing"));
        assert!(device("help").unwrap_err().is_info());
        assert!(device("pvpanic,help").unwrap_err().is_info() && device("edu,?").unwrap_err().is_info());
    }
}
