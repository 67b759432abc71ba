//! An assembler for AML, the byte code of DSDTs (ACPI 6.5, chapter 20), and for resource templates (chapter
//! 6.4).
//!
//! Containers take a closure that assembles their body, so that nesting in Rust is nesting in AML and package
//! lengths are right by construction. Covers what the DSDT here uses and no more.

/// An operand.
#[derive(Clone, Copy, Debug)]
pub enum Term<'a> {
    /// An integer, in its shortest form.
    Int(u64),
    /// A named object.
    Name(&'a str),
    /// An argument of the method.
    Arg(u8),
}

/// How a field is accessed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Space {
    /// Port I/O.
    SystemIo = 1,
    /// PCI configuration space.
    PciConfig = 2,
}

/// AML in the making.
#[derive(Debug, Default)]
pub struct Aml {
    /// The code so far.
    pub code: Vec<u8>,
}

impl Aml {
    /// PkgLength (20.2.4): it counts itself; the first byte holds the number of further bytes in its top
    /// bits.
    fn package(&mut self, op: &[u8], body: impl FnOnce(&mut Aml)) {
        let mut inner = Aml::default();
        body(&mut inner);
        self.code.extend_from_slice(op);
        let len = inner.code.len();
        match len {
            0..=0x3e => self.code.push(len as u8 + 1),
            _ => {
                // 12, 20 or 28 bits: 4 in the first byte and 8 in each further one.
                let more = (1..=3).find(|n| len + 1 + n < 1 << (4 + 8 * n)).unwrap_or(3);
                let total = len + 1 + more;
                self.code.push((more << 6) as u8 | (total & 0xf) as u8);
                self.code.extend((0..more).map(|i| (total >> (4 + 8 * i)) as u8));
            }
        }
        self.code.extend_from_slice(&inner.code);
    }

    /// A NameString: segments are padded to four characters with underscores.
    pub fn path(&mut self, path: &str) -> &mut Self {
        let bare = path.trim_start_matches(['\\', '^']);
        self.code.extend_from_slice(&path.as_bytes()[..path.len() - bare.len()]);
        let segments: Vec<&str> = bare.split('.').filter(|s| !s.is_empty()).collect();
        match segments.len() {
            0 => self.code.push(0),
            1 => {}
            2 => self.code.push(0x2e),
            n => self.code.extend([0x2f, n as u8]),
        }
        for s in segments {
            debug_assert!(s.len() <= 4, "{s} is no name segment");
            let padded = s.bytes().chain(std::iter::repeat(b'_')).take(4);
            self.code.extend(padded);
        }
        self
    }

    /// An integer constant.
    pub fn int(&mut self, n: u64) -> &mut Self {
        match n {
            0 | 1 => self.code.push(n as u8),
            2..=0xff => self.code.extend([0x0a, n as u8]),
            0x100..=0xffff => {
                self.code.push(0x0b);
                self.code.extend((n as u16).to_le_bytes());
            }
            0x1_0000..=0xffff_ffff => {
                self.code.push(0x0c);
                self.code.extend((n as u32).to_le_bytes());
            }
            _ => {
                self.code.push(0x0e);
                self.code.extend(n.to_le_bytes());
            }
        }
        self
    }

    /// An operand.
    pub fn term(&mut self, t: Term<'_>) -> &mut Self {
        match t {
            Term::Int(n) => self.int(n),
            Term::Name(p) => self.path(p),
            Term::Arg(n) => self.byte(0x68 + n),
        }
    }

    fn byte(&mut self, b: u8) -> &mut Self {
        self.code.push(b);
        self
    }

    /// A string constant.
    pub fn string(&mut self, s: &str) -> &mut Self {
        self.byte(0x0d).code.extend_from_slice(s.as_bytes());
        self.byte(0)
    }

    /// An EISA id such as `PNP0A03`, compressed into an integer.
    pub fn eisa_id(&mut self, id: &str) -> &mut Self {
        let b = id.as_bytes();
        debug_assert_eq!(b.len(), 7, "{id} is no EISA id");
        let letters = b.iter().take(3).fold(0u32, |n, c| n << 5 | u32::from(c & 0x1f));
        let product = u32::from_str_radix(&id[3..], 16).unwrap_or(0);
        self.int((letters << 16 | product).swap_bytes().into())
    }

    /// `Name (name, value)`.
    pub fn name(&mut self, name: &str, value: impl FnOnce(&mut Aml)) -> &mut Self {
        self.byte(0x08).path(name);
        value(self);
        self
    }

    /// `Name (name, n)`.
    pub fn name_int(&mut self, name: &str, n: u64) -> &mut Self {
        self.name(name, |a| {
            a.int(n);
        })
    }

    /// `Name (_HID, EisaId (id))`.
    pub fn hid(&mut self, id: &str) -> &mut Self {
        self.name("_HID", |a| {
            a.eisa_id(id);
        })
    }

    /// `Name (_HID, "id")`.
    pub fn hid_string(&mut self, id: &str) -> &mut Self {
        self.name("_HID", |a| {
            a.string(id);
        })
    }

    /// `Name (name, ResourceTemplate () {..})`.
    pub fn resources(&mut self, name: &str, r: &Resources) -> &mut Self {
        self.name(name, |a| {
            a.buffer(&r.finish());
        })
    }

    /// A buffer constant.
    pub fn buffer(&mut self, data: &[u8]) -> &mut Self {
        self.package(&[0x11], |a| {
            a.int(data.len() as u64).code.extend_from_slice(data);
        });
        self
    }

    /// `Package (count) {..}`, with at most 255 elements.
    pub fn elements(&mut self, count: u8, body: impl FnOnce(&mut Aml)) -> &mut Self {
        self.package(&[0x12], |a| {
            a.byte(count);
            body(a);
        });
        self
    }

    /// `Scope (path) {..}`.
    pub fn scope(&mut self, path: &str, body: impl FnOnce(&mut Aml)) -> &mut Self {
        self.package(&[0x10], |a| body(a.path(path)));
        self
    }

    /// `Device (name) {..}`.
    pub fn device(&mut self, name: &str, body: impl FnOnce(&mut Aml)) -> &mut Self {
        self.package(&[0x5b, 0x82], |a| body(a.path(name)));
        self
    }

    /// `Method (name, args, ..) {..}`. A serialized method runs in one thread at a time; those that create
    /// named objects must be.
    pub fn method(
        &mut self,
        name: &str,
        args: u8,
        serialized: bool,
        body: impl FnOnce(&mut Aml),
    ) -> &mut Self {
        self.package(&[0x14], |a| body(a.path(name).byte(args | u8::from(serialized) << 3)));
        self
    }

    /// `OperationRegion (name, space, offset, len)`.
    pub fn region(&mut self, name: &str, space: Space, offset: u64, len: u64) -> &mut Self {
        self.code.extend([0x5b, 0x80]);
        self.path(name).byte(space as u8).int(offset).int(len)
    }

    /// `Field (region, ByteAcc, NoLock, Preserve) {..}` of bytes.
    pub fn byte_field(&mut self, region: &str, names: &[&str]) -> &mut Self {
        self.package(&[0x5b, 0x81], |a| {
            a.path(region).byte(0x01);
            for n in names {
                a.path(n).byte(8);
            }
        });
        self
    }

    /// `CreateDWordField (buffer, offset, name)`.
    pub fn create_dword_field(&mut self, buffer: Term<'_>, offset: u64, name: &str) -> &mut Self {
        self.byte(0x8a).term(buffer).int(offset).path(name)
    }

    /// `destination = source`.
    pub fn store(&mut self, source: Term<'_>, destination: Term<'_>) -> &mut Self {
        self.byte(0x70).term(source).term(destination)
    }

    /// `destination = a | b`.
    pub fn or(&mut self, a: Term<'_>, b: Term<'_>, destination: Term<'_>) -> &mut Self {
        self.byte(0x7d).term(a).term(b).term(destination)
    }

    /// `If (a & b) {..}`.
    pub fn if_and(&mut self, a: Term<'_>, b: Term<'_>, body: impl FnOnce(&mut Aml)) -> &mut Self {
        self.package(&[0xa0], |c| {
            c.byte(0x7b).term(a).term(b).byte(0); // no target
            body(c);
        });
        self
    }

    /// `If (a < b) {..}`.
    pub fn if_less(&mut self, a: Term<'_>, b: Term<'_>, body: impl FnOnce(&mut Aml)) -> &mut Self {
        self.package(&[0xa0], |c| body(c.byte(0x95).term(a).term(b)));
        self
    }

    /// `Return (value)`.
    pub fn ret(&mut self, value: Term<'_>) -> &mut Self {
        self.byte(0xa4).term(value)
    }
}

/// An address window of a host bridge (6.4.3.5).
#[derive(Clone, Copy, Debug)]
pub enum Window {
    /// Bus numbers, first and last.
    Bus(u16, u16),
    /// I/O ports, first and last.
    Io(u16, u16),
    /// Memory below 4 GiB, first and last byte; cacheable or not.
    Memory(u32, u32, bool),
    /// Memory anywhere, first and last byte.
    Memory64(u64, u64),
}

/// A resource template.
#[derive(Clone, Debug, Default)]
pub struct Resources {
    bytes: Vec<u8>,
}

impl Resources {
    /// `len` ports from `base` on, decoding 16 bits (6.4.2.5).
    pub fn io(mut self, base: u16, len: u8) -> Self {
        self.bytes.extend([0x47, 1]);
        self.bytes.extend(base.to_le_bytes());
        self.bytes.extend(base.to_le_bytes());
        self.bytes.extend([1, len]);
        self
    }

    /// An edge-triggered ISA interrupt, `IRQNoFlags` (6.4.2.1).
    pub fn irq(mut self, irq: u8) -> Self {
        self.bytes.push(0x22);
        self.bytes.extend((1u16 << (irq & 15)).to_le_bytes());
        self
    }

    /// An 8-bit DMA channel, no bus master (6.4.2.2).
    pub fn dma(mut self, channel: u8) -> Self {
        self.bytes.extend([0x2a, 1 << (channel & 7), 0]);
        self
    }

    /// A choice of level-triggered, active-high, shared interrupts (6.4.3.6); the first one's number is at
    /// offset 5.
    pub fn shared_interrupts(mut self, gsis: &[u32]) -> Self {
        self.bytes.push(0x89);
        self.bytes.extend((2 + 4 * gsis.len() as u16).to_le_bytes());
        self.bytes.extend([0x09, gsis.len() as u8]);
        self.bytes.extend(gsis.iter().flat_map(|g| g.to_le_bytes()));
        self
    }

    /// `Memory32Fixed (ReadOnly, ..)` (6.4.3.4).
    pub fn memory_fixed(mut self, base: u32, len: u32) -> Self {
        self.bytes.extend([0x86, 9, 0, 0]);
        self.bytes.extend(base.to_le_bytes());
        self.bytes.extend(len.to_le_bytes());
        self
    }

    /// A window that the device produces for those behind it.
    pub fn window(mut self, w: Window) -> Self {
        // General flags: minimum and maximum are fixed, positive decode.
        const FIXED: u8 = 0x0c;
        let b = &mut self.bytes;
        match w {
            Window::Bus(min, max) => {
                b.extend([0x88, 13, 0, 2, FIXED, 0]);
                b.extend([0, min, max, 0, (max - min).wrapping_add(1)].map(u16::to_le_bytes).as_flattened());
            }
            Window::Io(min, max) => {
                b.extend([0x88, 13, 0, 1, FIXED, 3]); // ISA and non-ISA ranges
                b.extend([0, min, max, 0, (max - min).wrapping_add(1)].map(u16::to_le_bytes).as_flattened());
            }
            Window::Memory(min, max, cacheable) => {
                b.extend([0x87, 23, 0, 0, FIXED, 1 | u8::from(cacheable) << 1]); // read-write
                b.extend([0, min, max, 0, (max - min).wrapping_add(1)].map(u32::to_le_bytes).as_flattened());
            }
            Window::Memory64(min, max) => {
                b.extend([0x8a, 43, 0, 0, FIXED, 3]); // read-write, cacheable
                b.extend([0, min, max, 0, (max - min).wrapping_add(1)].map(u64::to_le_bytes).as_flattened());
            }
        }
        self
    }

    /// The template with its end tag, whose checksum of zero means that none is computed.
    fn finish(&self) -> Vec<u8> {
        let mut all = self.bytes.clone();
        all.extend([0x79, 0]);
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(f: impl FnOnce(&mut Aml)) -> Vec<u8> {
        let mut a = Aml::default();
        f(&mut a);
        a.code
    }

    #[test]
    fn package_lengths_count_themselves_at_every_size() {
        for (body, want) in [
            (0usize, vec![1]),
            (62, vec![63]),
            (63, vec![0x40 | 1, 4]),
            (4093, vec![0x40 | 15, 0xff]),
            (4094, vec![0x80 | 1, 0, 1]),
            (0xf_ffff - 3, vec![0x80 | 15, 0xff, 0xff]),
            (0xf_ffff - 2, vec![0xc0 | 1, 0, 0, 1]),
        ] {
            let got = code(|a| a.package(&[], |b| b.code.resize(body, 0xa3)));
            assert_eq!(got[..want.len()], want, "body of {body} bytes");
            assert_eq!(got.len(), body + want.len());
        }
    }

    #[test]
    fn names_have_their_prefixes() {
        assert_eq!(code(|a| _ = a.path("\\_SB")), b"\\_SB_");
        assert_eq!(code(|a| _ = a.path("_SB.PCI0")), b"\x2e_SB_PCI0");
        assert_eq!(code(|a| _ = a.path("\\_SB.PCI0.ISA")), b"\\\x2f\x03_SB_PCI0ISA_");
        assert_eq!(code(|a| _ = a.path("\\")), b"\\\0");
    }

    #[test]
    fn eisa_ids_are_compressed_as_the_specification_shows() {
        assert_eq!(code(|a| _ = a.eisa_id("PNP0A03")), [0x0c, 0x41, 0xd0, 0x0a, 0x03]);
    }

    #[test]
    fn integers_take_their_shortest_form() {
        assert_eq!(code(|a| _ = a.int(1).int(2).int(0x100)), [1, 0x0a, 2, 0x0b, 0, 1]);
        assert_eq!(code(|a| _ = a.int(0x1_0000)), [0x0c, 0, 0, 1, 0]);
        assert_eq!(code(|a| _ = a.int(1 << 32)), [0x0e, 0, 0, 0, 0, 1, 0, 0, 0]);
    }
}
