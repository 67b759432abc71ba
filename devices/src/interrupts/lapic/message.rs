//! What travels between interrupt sources and local APICs: the messages of the APIC bus, and MSI writes, which are the
//! same.
//! Source: Intel SDM vol. 3A, 11.6.1 (ICR) and 11.11 (message signalled interrupts).

use crate::bus::Edge;

/// How a message wants to be taken (bits 10-8 of the ICR, an LVT or redirection entry, MSI data).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeliveryMode {
    /// The vector, to all processors addressed.
    Fixed,
    /// The vector, to that of the processors addressed which runs at the lowest priority.
    LowestPriority,
    /// System management interrupt.
    Smi,
    /// Remote read in old APICs; reserved.
    Reserved,
    /// Non-maskable interrupt.
    Nmi,
    /// INIT.
    Init,
    /// Start-up IPI.
    StartUp,
    /// An interrupt whose vector the 8259A gives.
    ExtInt,
}

impl DeliveryMode {
    /// The mode in bits 2-0.
    pub fn from_bits(bits: u32) -> Self {
        match bits & 7 {
            0 => Self::Fixed,
            1 => Self::LowestPriority,
            2 => Self::Smi,
            3 => Self::Reserved,
            4 => Self::Nmi,
            5 => Self::Init,
            6 => Self::StartUp,
            _ => Self::ExtInt,
        }
    }
}

/// A message on the APIC bus.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ApicMessage {
    /// An APIC ID (`u32::MAX`: everybody) or, if `logical`, what each APIC compares with its logical destination.
    pub destination: u32,
    /// Whether the destination is logical.
    pub logical: bool,
    /// How the message wants to be taken.
    pub mode: DeliveryMode,
    /// The interrupt vector, or the page number of a start-up IPI.
    pub vector: u8,
    /// Whether the source is level triggered and so waits for an EOI.
    pub level: bool,
    /// False for the de-assertion of a level, which only old APICs heeded.
    pub assert: bool,
}

impl ApicMessage {
    /// Widens an 8-bit destination as xAPIC ICRs, MSIs and I/O APICs have it: physical FFh is everybody.
    pub fn wide_destination(destination: u8, logical: bool) -> u32 {
        if destination == 0xFF && !logical { u32::MAX } else { u32::from(destination) }
    }

    /// The write (address and data) that is this message; the destination's bits above 7, which an MSI has not, are in
    /// the address' upper half, as KVM takes them.
    pub fn to_msi(&self) -> (u64, u32) {
        let (low, high) = match self.destination {
            u32::MAX if !self.logical => (0xFF, 0),
            id => (id & 0xFF, id & !0xFF),
        };
        let hint = self.mode == DeliveryMode::LowestPriority;
        let address = 0xFEE0_0000 | low << 12 | u32::from(hint) << 3 | u32::from(self.logical) << 2;
        let mode = match self.mode {
            DeliveryMode::Fixed => 0,
            DeliveryMode::LowestPriority => 1,
            DeliveryMode::Smi => 2,
            DeliveryMode::Reserved => 3,
            DeliveryMode::Nmi => 4,
            DeliveryMode::Init => 5,
            DeliveryMode::StartUp => 6,
            DeliveryMode::ExtInt => 7,
        };
        let data =
            u32::from(self.vector) | mode << 8 | u32::from(self.assert) << 14 | u32::from(self.level) << 15;
        (u64::from(high) << 32 | u64::from(address), data)
    }

    /// The message of a write of `data` to `address`, which is FEExxxxxh (SDM vol. 3A, 11.11).
    pub fn from_msi(address: u64, data: u32) -> Self {
        let logical = address & 1 << 2 != 0;
        let redirection_hint = address & 1 << 3 != 0;
        let mode = match DeliveryMode::from_bits(data >> 8) {
            DeliveryMode::Fixed if redirection_hint && logical => DeliveryMode::LowestPriority,
            mode => mode,
        };
        let level = data & 1 << 15 != 0;
        Self {
            destination: Self::wide_destination((address >> 12) as u8, logical),
            logical,
            mode,
            vector: data as u8,
            level,
            assert: !level || data & 1 << 14 != 0,
        }
    }
}

/// Takes messages to the local APICs.
pub trait ApicBus: Send + Sync {
    /// Delivers a message; returns whether any local APIC has accepted it.
    fn deliver(&self, message: ApicMessage) -> bool;

    /// A pin of an I/O APIC, counted through all of them, sends this from now on; what it is masked from sending is as
    /// before, for the end of what it has sent. None after a reset.
    fn pin_sends(&self, pin: u32, message: Option<ApicMessage>) {
        let _ = (pin, message);
    }

    /// What would become of an edge that is delivered as this message now.
    fn edge(&self, message: &ApicMessage) -> Edge {
        let _ = message;
        Edge::Uncounted
    }
}

/// To whom an IPI goes: the ICR's destination shorthand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shorthand {
    None,
    Myself,
    All,
    Others,
}

impl Shorthand {
    pub(super) fn from_bits(bits: u32) -> Self {
        match bits & 3 {
            0 => Self::None,
            1 => Self::Myself,
            2 => Self::All,
            _ => Self::Others,
        }
    }
}
