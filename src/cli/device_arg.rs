//! `-device`: what can be added to the machine.

use super::Error;
use super::props::Props;
use super::suggest::did_you_mean;
use crate::config::{CharBackend, CharTarget, Debugcon, Device};

/// The devices that can be added, with their properties.
const DEVICES: &[(&str, &str)] = &[
    ("isa-debug-exit", "iobase=PORT (0x501), iosize=N (2): a write of V ends Mynah with code (V<<1)|1"),
    ("isa-debugcon", "iobase=PORT (0xe9), readback=BYTE (0xe9), chardev=ID: a port to print through"),
    ("isa-serial", "chardev=ID, index=0..3, iobase=PORT, irq=N: a 16550A"),
    ("pvpanic", "ioport=PORT (0x505), events=N (3): the guest tells of its panic"),
];

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
    "e1000",
    "e1000-82540em",
    "e1000e",
    "igb",
    "i82559er",
    "i82557b",
    "ne2k_pci",
    "ne2k_isa",
    "pcnet",
    "rtl8139",
    "vmxnet3",
    "tulip",
    "virtio-net-pci",
    "virtio-net",
    "virtio-blk-pci",
    "virtio-blk",
    "virtio-scsi-pci",
    "virtio-serial-pci",
    "virtio-serial",
    "virtconsole",
    "virtserialport",
    "virtio-rng-pci",
    "virtio-balloon-pci",
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
    "ide-hd",
    "ide-cd",
    "scsi-hd",
    "scsi-cd",
    "scsi-block",
    "scsi-generic",
    "floppy",
    "nvme",
    "nvme-ns",
    "ahci",
    "ich9-ahci",
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
    "pci-bridge",
    "pcie-root-port",
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
    "edu",
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

/// What `-device` adds: a device, or a debug console, which is kept with those of `-debugcon`.
#[derive(Debug, PartialEq)]
pub enum Added {
    /// A device.
    Device(Device),
    /// A debug console.
    Debugcon(Debugcon),
}

/// Parses `-device`.
pub fn device(text: &str) -> Result<Added, Error> {
    let mut props = Props::parse("-device", text, Some("driver"));
    let name = props.text("driver")?.unwrap_or_default();
    let wants_help = props.wants_help();
    if name == "help" || name == "?" || (wants_help && DEVICES.iter().any(|d| d.0 == name)) {
        let mut help = String::new();
        for (device, what) in DEVICES.iter().filter(|d| d.0 == name || !DEVICES.iter().any(|d| d.0 == name)) {
            help += &format!("  {device:15} {what}\n");
        }
        return Err(Error::info(help));
    }
    props.rename(format!("-device {name}"));
    // Any device may have a name; which ISA bus it is on is no question.
    props.ignore(&["id", "bus"]);
    let port = u64::from(u16::MAX);
    let added = match name.as_str() {
        "isa-debug-exit" => {
            let iobase = props.number("iobase", 0, port)?.unwrap_or(0x501);
            let iosize = props.number("iosize", 1, 0x100)?.unwrap_or(2);
            if iobase + iosize > port + 1 {
                return Err(
                    props.error(format!("ports {iobase:#x} to {:#x} end past 0xffff", iobase + iosize - 1))
                );
            }
            Added::Device(Device::IsaDebugExit { iobase: iobase as u16, iosize: iosize as u16 })
        }
        "pvpanic" => Added::Device(Device::Pvpanic {
            ioport: props.number("ioport", 0, port)?.unwrap_or(0x505) as u16,
            events: props.number("events", 0, 0xFF)?.unwrap_or(3) as u8,
        }),
        "isa-debugcon" => {
            let iobase = props.number("iobase", 0, port)?.unwrap_or(0xE9) as u16;
            let readback = props.number("readback", 0, 0xFF)?.unwrap_or(0xE9) as u8;
            let id = chardev_id(&mut props)?;
            let target = CharTarget::new(&format!("chardev:{id}"), CharBackend::Chardev(id));
            Added::Debugcon(Debugcon { iobase, readback, target })
        }
        "isa-serial" => {
            let index = props.number("index", 0, 3)?.map(|n| n as u8);
            let iobase = props.number("iobase", 0, port - 7)?.map(|p| p as u16);
            let irq = props.number("irq", 0, 15)?.map(|n| n as u8);
            let chardev = chardev_id(&mut props)?;
            Added::Device(Device::IsaSerial { index, iobase, irq, chardev })
        }
        "" => return Err(Error::new("-device: the device's name is missing ('-device help' lists them)")),
        _ if LATER.contains(&name.as_str()) || is_cpu(&name) => {
            return Err(Error::new(format!(
                "-device {name}: not supported yet ('-device help' lists what there is)"
            )));
        }
        _ => {
            let known = DEVICES.iter().map(|d| d.0);
            let hint = did_you_mean("", &name, known.chain(LATER.iter().copied()));
            let accepted = " ('-device help' lists them)".to_string();
            return Err(Error::new(format!(
                "-device {name}: unknown device{}",
                if hint.is_empty() { accepted } else { hint }
            )));
        }
    };
    props.finish()?;
    Ok(added)
}

/// `max-x86_64-cpu` and such: processors added one by one.
fn is_cpu(name: &str) -> bool {
    name.ends_with("-x86_64-cpu") || name.ends_with("-i386-cpu")
}

fn chardev_id(props: &mut Props) -> Result<String, Error> {
    props.text("chardev")?.filter(|id| !id.is_empty()).ok_or_else(|| props.error("a chardev=ID is missing"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_exit_takes_its_ports() {
        let exit = |iobase, iosize| Added::Device(Device::IsaDebugExit { iobase, iosize });
        assert_eq!(device("isa-debug-exit").unwrap(), exit(0x501, 2));
        assert_eq!(device("isa-debug-exit,iobase=0xf4,iosize=0x04").unwrap(), exit(0xF4, 4));
        assert!(
            device("isa-debug-exit,iobase=0xfffe,iosize=4").unwrap_err().to_string().contains("past 0xffff")
        );
        assert!(device("isa-debug-exit,iosize=0").unwrap_err().to_string().contains("from 1 to 256"));
        assert_eq!(
            device("isa-debug-exit,iobsae=1").unwrap_err().to_string(),
            "-device isa-debug-exit: unknown property 'iobsae'; did you mean 'iobase'?"
        );
    }

    #[test]
    fn the_other_devices() {
        assert_eq!(device("pvpanic").unwrap(), Added::Device(Device::Pvpanic { ioport: 0x505, events: 3 }));
        let Added::Debugcon(console) = device("isa-debugcon,iobase=0x402,chardev=c").unwrap() else {
            panic!()
        };
        assert_eq!((console.iobase, console.target.spec.as_str()), (0x402, "chardev:c"));
        assert!(matches!(
            device("isa-serial,chardev=c,index=1").unwrap(),
            Added::Device(Device::IsaSerial { index: Some(1), .. })
        ));
        assert_eq!(
            device("isa-debugcon").unwrap_err().to_string(),
            "-device isa-debugcon: a chardev=ID is missing"
        );
    }

    #[test]
    fn unknown_devices_and_those_of_qemu() {
        assert_eq!(
            device("isa-debug-exti").unwrap_err().to_string(),
            "-device isa-debug-exti: unknown device; did you mean 'isa-debug-exit'?"
        );
        assert!(device("virtio-net-pci,netdev=n0").unwrap_err().to_string().contains("not supported yet"));
        assert!(device("flux-capacitor").unwrap_err().to_string().contains("unknown device ("));
        assert!(device("").unwrap_err().to_string().contains("name is missing"));
        assert!(device("help").unwrap_err().is_info());
        assert!(device("pvpanic,help").unwrap_err().is_info());
    }
}
