//! The DSDT: the devices of an i440FX + PIIX3 board that an operating system cannot find by itself.
//!
//! Missing on purpose: hot plug of PCI devices and CPUs (no GPE has a method), floppy and parallel ports (the
//! board has none), thermal and battery objects.
//!
//! Source: ACPI 6.5 chapters 5-7; PIIX3 data sheet (290550-002) 2.2 for the PIRQRC registers.
use super::aml::{Aml, Resources, Space, Term, Window};
use super::{Config, PVPANIC_PORT, SCI_IRQ};
use Term::{Arg, Int, Name};

/// The PIRQ registers' "no interrupt" bit (PIIX3, PIRQRC bit 7).
const PIRQ_DISABLED: u64 = 0x80;
/// ISA interrupts that PCI may be routed to.
const PCI_IRQS: [u32; 3] = [5, 10, 11];
/// _STA: present, decoding, shown, working.
const STA_ON: u64 = 0x0f;
/// _STA of an interrupt link that is routed.
const STA_LINK: u64 = 0x0b;
/// _STA of an interrupt link that is off.
const STA_LINK_OFF: u64 = 0x09;

const LINKS: [(&str, &str); 4] = [("LNKA", "PRQ0"), ("LNKB", "PRQ1"), ("LNKC", "PRQ2"), ("LNKD", "PRQ3")];

/// The AML of the DSDT, without the table header.
pub(super) fn definition_block(cfg: &Config, below_4g: u64) -> Vec<u8> {
    let mut a = Aml::default();
    a.scope("\\_SB", |a| {
        a.device("PCI0", |a| {
            host_bridge(a, cfg, below_4g);
            isa_bridge(a, cfg);
        });
        interrupt_links(a);
        if cfg.hpet {
            a.device("HPET", |a| {
                a.hid("PNP0103").name_int("_UID", 0);
                a.resources("_CRS", &Resources::default().memory_fixed(super::HPET_BASE, 0x400));
            });
        }
        processors(a, cfg);
    });
    // SLP_TYP values of PM1a_CNT (PIIX4 data sheet, 7.1.3): 0 soft off, 1 suspend to RAM, 2 suspend to disk.
    let mut sleep = |name: &str, slp_typ| {
        a.name(name, |a| {
            a.elements(4, |a| {
                a.int(slp_typ).int(slp_typ).int(0).int(0);
            });
        });
    };
    if cfg.s3 {
        sleep("\\_S3", 1);
    }
    if cfg.s4 {
        sleep("\\_S4", 2);
    }
    sleep("\\_S5", 0);
    a.code
}

fn host_bridge(a: &mut Aml, cfg: &Config, below_4g: u64) {
    a.hid("PNP0A03").name_int("_UID", 0);
    let hole = (below_4g.min(0xfeb0_0000) as u32, super::IOAPIC_BASE - 1);
    let mut r = Resources::default()
        .window(Window::Bus(0, 255))
        .io(0x0cf8, 8)
        .window(Window::Io(0, 0x0cf7))
        .window(Window::Io(0x0d00, 0xffff))
        .window(Window::Memory(0xa_0000, 0xb_ffff, true))
        .window(Window::Memory(hole.0, hole.1, false));
    if let Some((first, last)) = cfg.pci_window_64.filter(|(first, last)| first < last) {
        r = r.window(Window::Memory64(first, last));
    }
    a.resources("_CRS", &r);
    // Pin p of slot s is wired to PIRQ (s + p - 1) mod 4; the PM function in slot 1 signals on the SCI
    // instead.
    a.name("_PRT", |a| {
        a.elements(4 * 32, |a| {
            for (slot, pin) in (0..32u64).flat_map(|slot| (0..4u64).map(move |pin| (slot, pin))) {
                let link = if (slot, pin) == (1, 0) { "LNKS" } else { LINKS[pirq(slot as u8, pin as u8)].0 };
                a.elements(4, |a| {
                    a.int(slot << 16 | 0xffff).int(pin).path(&format!("\\_SB.{link}")).int(0);
                });
            }
        });
    });
}

/// Which PIRQ the pin (0: INTA#) of a slot on bus 0 is wired to.
pub(super) fn pirq(slot: u8, pin: u8) -> usize {
    usize::from(slot.wrapping_add(pin).wrapping_sub(1) & 3)
}

fn isa_bridge(a: &mut Aml, cfg: &Config) {
    let device = |a: &mut Aml, name: &str, id: &str, r: Resources| {
        a.device(name, |a| {
            a.hid(id).resources("_CRS", &r);
        });
    };
    let io = |base, len| Resources::default().io(base, len);
    a.device("ISA", |a| {
        a.name_int("_ADR", 0x0001_0000);
        a.region("P40C", Space::PciConfig, 0x60, 4);
        device(a, "PIC", "PNP0000", io(0x20, 2).io(0xa0, 2).io(0x4d0, 2).irq(2));
        device(a, "PIT", "PNP0100", io(0x40, 4).irq(0));
        device(a, "RTC", "PNP0B00", io(0x70, 2).irq(8));
        device(a, "SPKR", "PNP0800", io(0x61, 1));
        device(a, "FPU", "PNP0C04", io(0xf0, 16).irq(13));
        if cfg.isa_dma {
            device(a, "DMAC", "PNP0200", io(0, 16).io(0x81, 15).io(0xc0, 32).dma(4));
        }
        if cfg.i8042 {
            device(a, "KBD", "PNP0303", io(0x60, 1).io(0x64, 1).irq(1));
            device(a, "MOU", "PNP0F13", Resources::default().irq(12));
        }
        let ports = super::COM_PORTS.iter().zip(cfg.com_ports).enumerate();
        for (n, (&(port, irq), _)) in ports.filter(|(_, (_, present))| *present) {
            a.device(&format!("COM{}", n + 1), |a| {
                a.hid("PNP0501").name_int("_UID", n as u64 + 1).resources("_CRS", &io(port, 8).irq(irq));
            });
        }
        if cfg.pvpanic {
            a.device("PEVT", |a| {
                a.hid_string("QEMU0001").name_int("_STA", STA_ON).resources("_CRS", &io(PVPANIC_PORT, 1));
                a.region("PEOR", Space::SystemIo, PVPANIC_PORT.into(), 1).byte_field("PEOR", &["PEPT"]);
                a.method("RDPT", 0, false, |a| {
                    a.ret(Name("PEPT"));
                });
                a.method("WRPT", 1, false, |a| {
                    a.store(Arg(0), Name("PEPT"));
                });
            });
        }
    });
    if cfg.fw_cfg {
        a.device("FWCF", |a| {
            a.hid_string("QEMU0002")
                .name_int("_STA", STA_LINK)
                .resources("_CRS", &io(super::FW_CFG_PORT, 12));
        });
    }
}

/// LNKA-LNKD: what PIRQRCA-D in the ISA bridge's configuration space say. LNKS: the SCI.
fn interrupt_links(a: &mut Aml) {
    a.byte_field("\\_SB.PCI0.ISA.P40C", &LINKS.map(|(_, register)| register));
    a.method("IQST", 1, false, |a| {
        a.if_and(Arg(0), Int(PIRQ_DISABLED), |a| {
            a.ret(Int(STA_LINK_OFF));
        });
        a.ret(Int(STA_LINK));
    });
    a.resources("PRR0", &Resources::default().shared_interrupts(&[0]));
    a.create_dword_field(Name("PRR0"), 5, "PRRI");
    a.method("IQCR", 1, true, |a| {
        a.store(Int(0), Name("PRRI"));
        a.if_less(Arg(0), Int(PIRQ_DISABLED), |a| {
            a.store(Arg(0), Name("PRRI"));
        });
        a.ret(Name("PRR0"));
    });
    for (n, (link, register)) in LINKS.into_iter().enumerate() {
        a.device(link, |a| {
            a.hid("PNP0C0F").name_int("_UID", n as u64);
            a.resources("_PRS", &Resources::default().shared_interrupts(&PCI_IRQS));
            a.method("_STA", 0, false, |a| {
                a.ret(Name("IQST")).path(register);
            });
            a.method("_DIS", 0, false, |a| {
                a.or(Name(register), Int(PIRQ_DISABLED), Name(register));
            });
            a.method("_CRS", 0, false, |a| {
                a.ret(Name("IQCR")).path(register);
            });
            a.method("_SRS", 1, true, |a| {
                a.create_dword_field(Arg(0), 5, "IRQN").store(Name("IRQN"), Name(register));
            });
        });
    }
    a.device("LNKS", |a| {
        let sci = Resources::default().shared_interrupts(&[SCI_IRQ.into()]);
        a.hid("PNP0C0F").name_int("_UID", 4).resources("_PRS", &sci).resources("_CRS", &sci);
        a.name_int("_STA", STA_LINK);
        a.method("_DIS", 0, false, |_| {});
        a.method("_SRS", 1, false, |_| {});
    });
}

/// One processor device per vCPU, tied to the MADT by its _UID.
fn processors(a: &mut Aml, cfg: &Config) {
    a.device("CPUS", |a| {
        a.hid_string("ACPI0010").name("_CID", |a| {
            a.eisa_id("PNP0A05");
        });
        for uid in 0..cfg.apic_ids.len() {
            a.device(&format!("C{uid:03X}"), |a| {
                a.hid_string("ACPI0007").name_int("_UID", uid as u64).name_int("_STA", STA_ON);
            });
        }
    });
}
