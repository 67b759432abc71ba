//! Resource descriptors that `acpi_tables` does not have (ACPI 6.5, chapter 6.4), to stand in its `ResourceTemplate`.
use acpi_tables::{Aml, AmlSink};

/// A choice of level-triggered, active-high, shared interrupts (6.4.3.6); the library's `Interrupt` is a single one.
/// The first one's number is at offset 5.
pub(super) struct SharedInterrupts<'a>(pub &'a [u32]);

impl Aml for SharedInterrupts<'_> {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        sink.byte(0x89);
        sink.word(2 + 4 * self.0.len() as u16);
        sink.vec(&[0x09, self.0.len() as u8]);
        self.0.iter().for_each(|gsi| sink.dword(*gsi));
    }
}
