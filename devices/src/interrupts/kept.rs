//! The 8259A pair and the first I/O APIC where somebody else keeps them while vCPUs run: the host's kernel (KVM's
//! `kernel-irqchip=on`).
//!
//! They are lent and taken back with the local APICs ([`crate::interrupts::lapic::LocalApic::lend`]), when no vCPU runs.
//! Meanwhile their inputs go to the keeper one by one, and what software does to their registers it does there. An access
//! that comes to us all the same, as from an instruction that is interpreted, is made on a copy, which is put back.
use super::ioapic;

/// The registers of one 8259A, as the keeper knows them.
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

/// The registers of an I/O APIC, as the keeper knows them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IoapicImage {
    /// Its APIC ID.
    pub id: u8,
    /// IOREGSEL.
    pub index: u8,
    /// The redirection entries.
    pub redirection: [u64; ioapic::PINS],
    /// Pins that are up, of those that are level-triggered.
    pub levels: u32,
}

/// Keeps an 8259A pair and an I/O APIC.
pub trait Keeper: Send + Sync {
    /// An input of the 8259A pair changes.
    fn set_pic_line(&self, line: u32, level: bool);
    /// A pin of the I/O APIC changes.
    fn set_ioapic_pin(&self, pin: u32, level: bool);
    /// The registers of the pair, the master's first. None if the keeper fails.
    fn pic(&self) -> Option<[PicImage; 2]>;
    /// Has these be the pair's.
    fn put_pic(&self, pair: &[PicImage; 2]);
    /// The registers of the I/O APIC. None if the keeper fails.
    fn ioapic(&self) -> Option<IoapicImage>;
    /// Has these be its registers. Levels that are up are sent, as far as they are not being served.
    fn put_ioapic(&self, image: &IoapicImage);
}
