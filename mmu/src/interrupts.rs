//! Interrupt controllers whose registers board and engine hand each other: the host's kernel may keep a vCPU's local
//! APIC, and the 8259A pair and the first I/O APIC with it, while vCPUs run (KVM's `kernel-irqchip=split` and `on`).
//!
//! It stands here as devices and engines know nothing of each other but what both know of memory.
use std::sync::Arc;

/// Number of registers of a local APIC.
pub const REGISTERS: usize = 64;
/// Pins of an I/O APIC.
pub const IOAPIC_PINS: usize = 24;

/// The registers of a local APIC as software sees them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApicImage {
    /// IA32_APIC_BASE.
    pub base: u64,
    /// Register n, which is at offset 16 * n of the xAPIC page; the ID as the mode has it.
    pub page: [u32; REGISTERS],
    /// IA32_TSC_DEADLINE.
    pub tsc_deadline: u64,
}

/// What has come for a vCPU by its local APIC and not been looked at yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ApicSignals {
    /// NMIs.
    pub nmis: u8,
    /// INIT.
    pub init: bool,
    /// A start-up IPI, behind INIT.
    pub sipi: Option<u8>,
}

/// Keeps a vCPU's local APIC in the board's place while it runs: the host's kernel.
pub trait ApicKeeper: Send + Sync {
    /// Makes the write that is a message between local APICs (address and data as of an MSI, with bits above 7 of the
    /// destination in the address' upper half); whether one of the machine's has accepted it.
    fn message(&self, address: u64, data: u32) -> bool;
    /// The registers. The vCPU does not run. None if that fails.
    fn get(&self) -> Option<ApicImage>;
    /// What has come for the vCPU, which does not run, and is given back with the registers.
    fn take_signals(&self) -> ApicSignals;
    /// Has these be the registers; `fresh` if nothing is left of before.
    fn put(&self, image: &ApicImage, fresh: bool);
    /// The level-triggered messages whose end is to be told to the board: number, address and data.
    fn levels(&self, routes: &[(u32, u64, u32)]);
    /// Who keeps the 8259A pair and the first I/O APIC, if these are to be kept as well.
    fn chips(&self) -> Option<Arc<dyn ChipKeeper>> {
        None
    }
}

/// The registers of one 8259A.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PicImage {
    /// The inputs as they are.
    pub lines: u8,
    /// IRR.
    pub irr: u8,
    /// IMR.
    pub imr: u8,
    /// ISR.
    pub isr: u8,
    /// The input with the highest priority.
    pub top: u8,
    /// The vector of input 0.
    pub vector: u8,
    /// The even port reads ISR, not IRR.
    pub read_isr: bool,
    /// The next read is a poll.
    pub poll: bool,
    /// Special mask mode.
    pub special_mask: bool,
    /// What the next write to the odd port is: 0, or the number of an ICW.
    pub expects: u8,
    /// Automatic EOI.
    pub auto_eoi: bool,
    /// Rotation in that mode.
    pub rotate_on_auto_eoi: bool,
    /// Special fully nested mode.
    pub special_fully_nested: bool,
    /// ICW4 is among the initialisation's words.
    pub has_icw4: bool,
    /// The edge/level control register.
    pub elcr: u8,
}

/// The registers of an I/O APIC.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IoapicImage {
    /// Its APIC ID.
    pub id: u8,
    /// IOREGSEL.
    pub index: u8,
    /// The redirection entries.
    pub redirection: [u64; IOAPIC_PINS],
    /// Pins that are up, of those that are level-triggered.
    pub levels: u32,
}

/// Keeps an 8259A pair and an I/O APIC in the board's place while vCPUs run: the host's kernel.
pub trait ChipKeeper: Send + Sync {
    /// An input of the 8259A pair changes.
    fn set_pic_line(&self, line: u32, level: bool);
    /// A pin of the I/O APIC changes.
    fn set_ioapic_pin(&self, pin: u32, level: bool);
    /// The registers of the pair, the master's first. None if that fails.
    fn pic(&self) -> Option<[PicImage; 2]>;
    /// Has these be the pair's.
    fn put_pic(&self, pair: &[PicImage; 2]);
    /// The registers of the I/O APIC. None if that fails.
    fn ioapic(&self) -> Option<IoapicImage>;
    /// Has these be its registers. Levels that are up are sent, as far as they are not being served.
    fn put_ioapic(&self, image: &IoapicImage);
}
