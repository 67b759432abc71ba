//! What the tests of whole boards share.
use mynah_devices::interrupts::lapic::VcpuPins;

/// A processor that nothing is wired to.
pub struct NoPins;

impl VcpuPins for NoPins {
    fn set_intr(&self, _: bool) {}
    fn nmi(&self) {}
    fn smi(&self) {}
    fn init(&self) {}
    fn sipi(&self, _: u8) {}
}
