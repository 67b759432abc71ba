//! Interrupt controllers: the 8259A pair, the 82093AA I/O APIC, the local APICs, and the wires between them.
//!
//! ```text
//!   ISA/PCI devices --Irq--> GsiRouter --+--> Pic (lines 0-15) --Irq "INTR"--> LINT0 of every LocalApic --+
//!                                        +--> Ioapic (pins 0-23) --ApicMessage--> LocalApics --> LocalApic --+--> VcpuPins
//!   MSI writes, IPIs ----------------------------------------------ApicMessage--> LocalApics
//!   vCPU: LocalApic::acknowledge() --INTA--> Pic         LocalApic EOI --vector--> Ioapic
//! ```
//!
//! Lock order, outermost first: a device's own lock, the `Irq` pin's, its shared line's, [`pic::Pic`] or
//! [`ioapic::Ioapic`], the INTR pin's, the list of local APICs, one [`lapic::LocalApic`], whatever `VcpuPins` takes.
//! Everything that goes down this list (a wire changes, a message is sent) is done with the upper locks held, so that
//! changes arrive in the order in which they happened. What goes up (INTA to the PIC, the EOI to the I/O APIC, an IPI
//! to the others) is called with no local APIC locked.
pub mod ioapic;
pub mod lapic;
pub mod pic;

use crate::bus::{Edge, IrqSink};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Is told of the end of a level-triggered interrupt by the local APIC that serviced it.
pub trait EoiSink: Send + Sync {
    /// A processor has written EOI for `vector`.
    fn eoi(&self, vector: u8);
}

/// The PC's interrupt wiring: global system interrupt n reaches PIC input n (n < 16) and I/O APIC pin n, but for the
/// timer: GSI 0 stands for ISA IRQ 0, which is on pin 2 of the I/O APIC (the MADT must say so in an interrupt source
/// override).
pub struct GsiRouter {
    pic: Option<Arc<pic::Pic>>,
    ioapic: Arc<ioapic::Ioapic>,
    /// For the interrupts behind the first one's.
    ioapic2: Option<Arc<ioapic::Ioapic>>,
    /// Rising edges of each wire since the machine was built.
    raised: [AtomicU64; GSIS],
}

/// Wires that the router has, with two I/O APICs.
const GSIS: usize = 2 * ioapic::PINS;

impl GsiRouter {
    /// Wires inputs to both controllers, or to the I/O APIC alone.
    pub fn new(pic: Option<Arc<pic::Pic>>, ioapic: Arc<ioapic::Ioapic>) -> Arc<Self> {
        Self::with_second(pic, ioapic, None)
    }

    /// The same with a second I/O APIC, to whose pins the interrupts from 24 on lead.
    pub fn with_second(
        pic: Option<Arc<pic::Pic>>,
        ioapic: Arc<ioapic::Ioapic>,
        ioapic2: Option<Arc<ioapic::Ioapic>>,
    ) -> Arc<Self> {
        Arc::new(Self { pic, ioapic, ioapic2, raised: std::array::from_fn(|_| AtomicU64::new(0)) })
    }

    /// The I/O APIC that a wire leads to, and the pin there.
    fn place(&self, line: u32) -> Option<(&ioapic::Ioapic, u32)> {
        const PINS: u32 = ioapic::PINS as u32;
        match line {
            0 => Some((&self.ioapic, 2)),
            1..PINS => Some((&self.ioapic, line)),
            _ => self.ioapic2.as_deref().map(|second| (second, line - PINS)),
        }
    }

    /// How many times each wire has risen, for people.
    pub fn raised(&self) -> Vec<u64> {
        self.raised.iter().map(|n| n.load(Ordering::Relaxed)).collect()
    }
}

impl IrqSink for GsiRouter {
    fn set(&self, line: u32, level: bool) {
        if let Some(n) = self.raised.get(line as usize).filter(|_| level) {
            n.fetch_add(1, Ordering::Relaxed);
        }
        // IRQ 2 is the cascade.
        if line == 2 {
            return;
        }
        if let Some(pic) = self.pic.as_ref().filter(|_| line < 16) {
            pic.set(line, level);
        }
        if let Some((ioapic, pin)) = self.place(line) {
            ioapic.set(pin, level);
        }
    }

    fn edge(&self, line: u32) -> Edge {
        if line == 2 {
            return Edge::Uncounted;
        }
        let seen = self.place(line).map_or(Edge::Uncounted, |(ioapic, pin)| ioapic.edge(pin));
        self.pic.as_ref().filter(|_| line < 16).map_or(seen, |pic| pic.edge(line).max(seen))
    }
}

impl EoiSink for GsiRouter {
    fn eoi(&self, vector: u8) {
        self.ioapic.eoi(vector);
        if let Some(second) = &self.ioapic2 {
            second.eoi(vector);
        }
    }
}

#[cfg(test)]
mod tests;
