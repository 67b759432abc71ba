//! The boards that there are: each a description in a file of its own.
//!
//! A description says what a board is called, what the user can choose of it (`-M NAME,property=value`), how RAM lies
//! in its address space, and which chips it has, wired how. `-M`, `-M help` and `-M NAME,help`, the tables that the
//! guest finds and [`super::board::Board`] come from that; a new board is a file here and a line in [`ALL`].
pub mod common;
mod microvm;
mod pc;
mod q35;

use super::board::{Board, Firmware};
use super::power::Power;
use crate::config::{Config, Machine};
use mynah_devices::bus::{Irq, PortBus};
use mynah_devices::chipset::{Ferr, PowerButton};
use mynah_devices::clock::Clock;
use mynah_devices::device::Plugged;
use mynah_devices::events::WakeCause;
use mynah_devices::input::i8042::I8042;
use mynah_devices::interrupts::GsiRouter;
use mynah_devices::interrupts::ioapic::Ioapic;
use mynah_devices::interrupts::lapic::LocalApics;
use mynah_devices::kind::{Property, Type};
use mynah_devices::pci::PciBus;
use mynah_devices::storage::floppy::Fdc;
use mynah_devices::storage::ide::Cable;
use mynah_firmware::tables::Chipset as Tables;
use mynah_mmu::PhysMemory;
use std::fmt;
use std::sync::Arc;

/// All boards; the first is the default.
pub const ALL: &[&Description] = &[&pc::PC, &q35::Q35, &microvm::MICROVM];

/// What a board is.
pub struct Description {
    /// QEMU's name of it.
    pub name: &'static str,
    /// Other names, which a version may follow (`pc-i440fx-7.2`): it changes nothing.
    pub versioned: &'static [&'static str],
    /// What it is, in a few words.
    pub about: &'static str,
    /// What SMBIOS calls it.
    pub product: &'static str,
    /// What can be chosen of it, beside what all boards have.
    pub properties: &'static [Property],
    /// How much of so many bytes of RAM lies below 4 GiB.
    pub below_4g: fn(u64) -> u64,
    /// Most serial ports.
    pub serials: usize,
    /// It has a PCI bus.
    pub pci: bool,
    /// `-hda` and its like are on SATA ports, with a drive each, not on IDE channels with two.
    pub sata: bool,
    /// It has a floppy drive, if the user says nothing of any.
    pub floppies: bool,
    /// The network card that it has if the user says nothing of any; none if this is empty.
    pub nic: &'static str,
    /// It can sleep (S3, S4).
    pub sleeps: bool,
    /// What a Linux kernel has to be told of it (`auto-kernel-cmdline=`).
    pub command_line: fn(&Config) -> String,
    /// Its slots for virtio devices without PCI: addresses and interrupts, in the order in which they are taken.
    pub mmio_slots: fn(&Machine) -> Vec<(usize, u64, u32)>,
    /// Whether it has a second I/O APIC, for the wires behind the first one's.
    pub has_second_ioapic: fn(&Machine) -> bool,
    /// What its tables say of it.
    pub tables: Tables,
    /// Makes its chips. Local APICs and I/O APIC are there already.
    pub chips: fn(&mut Wiring<'_>) -> Chips,
}

impl PartialEq for Description {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

impl fmt::Debug for Description {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

/// A property that is a switch.
const fn switch(name: &'static str, default: bool, help: &'static str) -> Property {
    Property { name, kind: Type::Switch, default: Some(default as u64), help }
}

/// The board of this name.
pub fn find(name: &str) -> Option<&'static Description> {
    let digits = |c: char| c.is_ascii_digit() || c == '.';
    let named = |board: &&&Description| {
        let versioned = |stem: &&str| {
            let rest = name.strip_prefix(*stem);
            rest.is_some_and(|v| v.is_empty() || v.strip_prefix('-').is_some_and(|v| v.chars().all(digits)))
        };
        board.name == name || board.versioned.iter().any(versioned)
    };
    ALL.iter().find(named).copied()
}

/// What the makers of chips have of the board.
pub struct Wiring<'a> {
    /// The machine's configuration.
    pub cfg: &'a Config,
    /// What runs first.
    pub firmware: &'a Firmware,
    /// What devices ask of the machine.
    pub power: &'a Arc<Power>,
    /// Guest time.
    pub clock: Arc<dyn Clock>,
    /// I/O ports.
    pub ports: &'a Arc<PortBus>,
    /// Physical memory.
    pub memory: &'a Arc<PhysMemory>,
    /// The local APICs.
    pub apic_bus: &'a Arc<LocalApics>,
    /// The I/O APIC.
    pub ioapic: &'a Arc<Ioapic>,
    /// The second one of a board that has it ([`Description::has_second_ioapic`]).
    pub ioapic2: Option<Arc<Ioapic>>,
    /// What interrupt wires lead to, once the chips are chosen.
    pub router: Option<Arc<GsiRouter>>,
    /// The interrupt lines that have been made, for those who share them: ISA's 0 to 15, and the I/O APIC's others.
    pub lines: Vec<Irq>,
    /// What is plugged in, first what is reset last.
    pub plugged: Vec<(&'static str, &'static str, Arc<dyn Plugged>)>,
}

impl Wiring<'_> {
    /// Whether a switch of the board's is on.
    pub fn on(&self, name: &str) -> bool {
        self.cfg.machine.chosen.switch(name)
    }

    /// A pin on interrupt line `n`. The router is there.
    pub fn pin(&mut self, n: usize) -> Irq {
        self.lines[n].share()
    }

    /// Enters a device.
    pub fn plug(&mut self, bus: &'static str, name: &'static str, device: Arc<dyn Plugged>) {
        self.plugged.push((bus, name, device));
    }
}

/// What of a board's chips others ask for.
pub struct Chips {
    /// PCI bus 0.
    pub pci: Option<Arc<PciBus>>,
    /// Where `ide-hd` and `ide-cd` are plugged in.
    pub cables: Vec<Arc<dyn Cable>>,
    /// The floppy controller.
    pub fdc: Option<Arc<Fdc>>,
    /// Keyboard and mouse.
    pub i8042: Option<Arc<I8042>>,
    /// What the power button is wired to.
    pub button: Arc<dyn PowerButton>,
    /// What the boot processor's error wires lead to.
    pub ferr: Option<Arc<Ferr>>,
    /// What only this board's chipset can do.
    pub chipset: Arc<dyn Chipset>,
}

/// What boards do each in their own way.
pub trait Chipset: Send + Sync {
    /// Sets registers as firmware leaves them, where none will run.
    fn like_firmware(&self, board: &Board) {
        let _ = board;
    }

    /// A kernel is about to start under the built-in firmware.
    fn before_kernel(&self, board: &Board) {
        let _ = board;
    }

    /// Registers have changed that decide what is mapped where: by a reset or a restore.
    fn follow(&self) {}

    /// Whether an operating system has taken power management over.
    fn acpi_mode(&self) -> bool {
        false
    }

    /// The machine wakes from S3: all chips are reset, and those that tell why are told. `acpi_mode` is what was
    /// before the reset; firmware of its own finds out by itself.
    fn woken(&self, board: &Board, cause: WakeCause, acpi_mode: bool) {
        let _ = (board, cause, acpi_mode);
    }

    /// General-purpose event `bit` of ACPI has happened.
    fn general_event(&self, bit: u8) {
        let _ = bit;
    }

    /// Where firmware has put the power management registers.
    fn pm_base(&self) -> Option<u16> {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn boards_have_names_of_their_own_and_versions_that_change_nothing() {
        for board in ALL {
            assert_eq!(find(board.name), Some(*board));
            for stem in board.versioned {
                assert_eq!(find(stem), Some(*board));
                assert_eq!(find(&format!("{stem}-7.2")), Some(*board));
                assert_eq!(find(&format!("{stem}-x")), None);
            }
        }
        assert_eq!(ALL[0].name, "pc");
        assert_eq!((find(""), find("pc-7.2"), find("pc-")), (None, None, None));
    }
}
