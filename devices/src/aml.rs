//! What a device says of itself in the ACPI name space, and the words for it: `acpi_tables` with what it lacks.
//!
//! A device that an operating system cannot find by itself gives a [`Fragment`] ([`crate::device::Device::aml`]); who
//! makes the DSDT puts all of them under their scopes.
//!
//! Source: ACPI 6.5, chapters 6 and 19.
use acpi_tables::aml::{Device, EISAName, IO, Name, Path, ResourceTemplate};
use acpi_tables::{Aml, AmlSink};

/// _STA: present, decoding, shown, working.
pub const STA_ON: u8 = 0x0f;
/// _STA of what works and is not shown to users.
pub const STA_HIDDEN: u8 = 0x0b;

/// Where in the name space a fragment goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Under {
    /// `\`.
    Root,
    /// `\_SB`.
    SystemBus,
    /// `\_SB.PCI0`.
    Pci,
    /// `\_SB.PCI0.ISA`.
    Isa,
}

/// Encoded AML, and where it goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fragment {
    /// The scope.
    pub under: Under,
    /// The terms.
    pub aml: Vec<u8>,
}

impl Fragment {
    /// Terms under a scope.
    pub fn new(under: Under, terms: &[&dyn Aml]) -> Self {
        Self { under, aml: encode(terms) }
    }

    /// `Device (path) {..}` under a scope.
    pub fn device(under: Under, path: &str, terms: Vec<&dyn Aml>) -> Self {
        Self::new(under, &[&Device::new(Path::new(path), terms)])
    }

    /// A device of the ISA bus that has resources and nothing else.
    pub fn isa(path: &str, id: &str, resources: Vec<&dyn Aml>) -> Self {
        Self::device(Under::Isa, path, vec![&hid(id), &crs(resources)])
    }
}

/// Terms, encoded one after the other.
pub fn encode(terms: &[&dyn Aml]) -> Vec<u8> {
    let mut bytes = Vec::new();
    terms.iter().for_each(|t| t.to_aml_bytes(&mut bytes));
    bytes
}

/// `Name (path, value)`.
pub fn name(path: &str, value: &dyn Aml) -> Name {
    Name::new(path.into(), value)
}

/// `Name (_HID, EisaId (id))`.
pub fn hid(id: &str) -> Name {
    name("_HID", &EISAName::new(id))
}

/// `Name (_CRS, ResourceTemplate () {..})`.
pub fn crs(resources: Vec<&dyn Aml>) -> Name {
    name("_CRS", &ResourceTemplate::new(resources))
}

/// `len` ports from `base` on.
pub fn io(base: u16, len: u8) -> IO {
    IO::new(base, base, 1, len)
}

/// An edge-triggered ISA interrupt, `IRQNoFlags` (6.4.2.1).
pub struct IrqNoFlags(pub u8);

impl Aml for IrqNoFlags {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        sink.byte(0x22);
        sink.word(1 << (self.0 & 15));
    }
}

/// A DMA channel of 8 bits that does not master the bus, in compatibility timing (6.4.2.2).
pub struct IsaDmaChannel(pub u8);

impl Aml for IsaDmaChannel {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        sink.byte(0x2a);
        sink.byte(1 << (self.0 & 7));
        sink.byte(0);
    }
}

/// AML as it is.
pub struct Encoded(pub Vec<u8>);

impl Aml for Encoded {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        sink.vec(&self.0);
    }
}
