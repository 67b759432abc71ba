//! Segment and gate descriptors, and finding them in the GDT and LDT (SDM volume 3A, 3.4.5, 3.5, 5.8.3).
use crate::cpu::Cpu;
use crate::event::{Stop, vector};
use crate::state::Segment;
use crate::width::W64;

/// System descriptor types (SDM volume 3A, table 3-2). In long mode 9 and 11 are the 64-bit TSS, 12 the 64-bit call
/// gate, 14 and 15 the 64-bit gates, and the 16-bit ones do not exist.
#[allow(missing_docs)]
pub mod kind {
    pub const TSS16: u32 = 1;
    pub const LDT: u32 = 2;
    pub const TSS16_BUSY: u32 = 3;
    pub const CALL_GATE16: u32 = 4;
    pub const TASK_GATE: u32 = 5;
    pub const INT_GATE16: u32 = 6;
    pub const TRAP_GATE16: u32 = 7;
    pub const TSS32: u32 = 9;
    pub const TSS32_BUSY: u32 = 11;
    pub const CALL_GATE32: u32 = 12;
    pub const INT_GATE32: u32 = 14;
    pub const TRAP_GATE32: u32 = 15;
}

/// The error code that names a selector: its RPL bits are for EXT and IDT.
pub fn code_of(sel: u16) -> u32 {
    u32::from(sel & !3)
}

/// Whether a selector is null.
pub fn is_null(sel: u16) -> bool {
    sel & !3 == 0
}

/// The RPL of a selector.
pub fn rpl(sel: u16) -> u8 {
    (sel & 3) as u8
}

/// An 8-byte descriptor as it stands in memory (the first half, for the 16-byte ones of long mode).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Descriptor(pub u64);

impl Descriptor {
    /// Attributes as in [`Segment::attr`].
    pub fn attr(self) -> u32 {
        (self.0 >> 40) as u32 & 0xf0ff
    }
    /// The four type bits.
    pub fn kind(self) -> u32 {
        self.attr() & 15
    }
    /// Code or data (not system).
    pub fn is_segment(self) -> bool {
        self.attr() & Segment::S != 0
    }
    /// A system descriptor of this type.
    pub fn is_system(self, kind: u32) -> bool {
        !self.is_segment() && self.kind() == kind
    }
    /// A code segment.
    pub fn is_code(self) -> bool {
        self.attr() & 0x18 == 0x18
    }
    /// A conforming code segment.
    pub fn is_conforming(self) -> bool {
        self.attr() & 0x1c == 0x1c
    }
    /// A writable data segment.
    pub fn is_writable(self) -> bool {
        self.attr() & 0x1a == 0x12
    }
    /// A segment that can be read: data, or readable code.
    pub fn is_readable(self) -> bool {
        self.is_segment() && self.attr() & 0xa != 8
    }
    /// Descriptor privilege level.
    pub fn dpl(self) -> u8 {
        (self.0 >> 45) as u8 & 3
    }
    /// Present.
    pub fn present(self) -> bool {
        self.attr() & Segment::P != 0
    }
    /// 64-bit code.
    pub fn is_long(self) -> bool {
        self.attr() & Segment::L != 0
    }
    /// Default size / big.
    pub fn is_big(self) -> bool {
        self.attr() & Segment::DB != 0
    }
    /// Base, bits 0-31.
    pub fn base(self) -> u64 {
        self.0 >> 16 & 0xff_ffff | self.0 >> 32 & 0xff00_0000
    }
    /// Limit in bytes.
    pub fn limit(self) -> u32 {
        let l = (self.0 & 0xffff | self.0 >> 32 & 0xf_0000) as u32;
        if self.0 >> 55 & 1 != 0 { l << 12 | 0xfff } else { l }
    }
    /// The segment register that holds this descriptor.
    pub fn segment(self, sel: u16) -> Segment {
        Segment { base: self.base(), limit: self.limit(), attr: self.attr(), sel }
    }
    /// Offset in a gate: 16 bits, or 32 of the wider gates.
    pub fn gate_offset(self, wide: bool) -> u64 {
        let low = self.0 & 0xffff;
        if wide { low | self.0 >> 32 & 0xffff_0000 } else { low }
    }
    /// Selector in a gate.
    pub fn gate_selector(self) -> u16 {
        (self.0 >> 16) as u16
    }
    /// Parameter count in a call gate.
    pub fn gate_count(self) -> u32 {
        (self.0 >> 32) as u32 & 31
    }
    /// IST index in a 64-bit interrupt gate.
    pub fn gate_ist(self) -> u64 {
        self.0 >> 32 & 7
    }
}

impl Cpu {
    /// The linear address of the descriptor that `sel` names, if `len` bytes there are within its table.
    pub(crate) fn descriptor_address(&self, sel: u16, len: u64) -> Option<u64> {
        let s = &self.state;
        let (base, limit) = if sel & 4 != 0 {
            if !s.ldtr.usable() {
                return None;
            }
            (s.ldtr.base, u64::from(s.ldtr.limit))
        } else {
            (s.gdtr.base, u64::from(s.gdtr.limit))
        };
        let at = u64::from(sel & !7);
        (at + len - 1 <= limit).then(|| base.wrapping_add(at))
    }

    /// Reads the descriptor that `sel` names; beyond the table's limit `vector` with the selector as error code.
    pub(crate) fn descriptor(&mut self, sel: u16, vector: u8) -> Result<Descriptor, Stop> {
        match self.descriptor_address(sel, 8) {
            Some(at) => Ok(Descriptor(self.load_sys::<W64>(at)?)),
            None => Err(self.raise_ec(vector, code_of(sel))),
        }
    }

    /// Reads a 16-byte system descriptor of long mode (LDT, TSS, call gate); returns it and its second half.
    pub(crate) fn descriptor16(&mut self, sel: u16, vector: u8) -> Result<(Descriptor, u64), Stop> {
        match self.descriptor_address(sel, 16) {
            Some(at) => {
                let low = self.load_sys::<W64>(at)?;
                Ok((Descriptor(low), self.load_sys::<W64>(at.wrapping_add(8))?))
            }
            None => Err(self.raise_ec(vector, code_of(sel))),
        }
    }

    /// Reads the second half of a 16-byte system descriptor whose first half has been read already.
    pub(crate) fn descriptor_high(&mut self, sel: u16, vector: u8) -> Result<u64, Stop> {
        match self.descriptor_address(sel, 16) {
            Some(at) => self.load_sys::<W64>(at.wrapping_add(8)),
            None => Err(self.raise_ec(vector, code_of(sel))),
        }
    }

    /// Sets the accessed bit of a code or data descriptor, in memory and in the copy.
    pub(crate) fn set_accessed(&mut self, sel: u16, d: &mut Descriptor) -> Result<(), Stop> {
        if d.attr() & 1 == 0 {
            d.0 |= 1 << 40;
            self.patch_type(sel, 1, 0)?;
        }
        Ok(())
    }

    /// Sets and clears bits of the access byte of a descriptor in memory.
    pub(crate) fn patch_type(&mut self, sel: u16, set: u8, clear: u8) -> Result<(), Stop> {
        if let Some(at) = self.descriptor_address(sel, 8) {
            self.modify_sys_byte(at.wrapping_add(5), |b| b & !u64::from(clear) | u64::from(set))?;
        }
        Ok(())
    }

    /// Checks a stack segment for a given privilege: a writable present data segment whose RPL and DPL are `cpl`.
    /// `vector` is what is raised for all but an absent segment (#SS).
    pub(crate) fn stack_descriptor(&mut self, sel: u16, cpl: u8, vector: u8) -> Result<Descriptor, Stop> {
        let d = self.descriptor(sel, vector)?;
        if rpl(sel) != cpl || d.dpl() != cpl || !d.is_writable() {
            return Err(self.raise_ec(vector, code_of(sel)));
        }
        if !d.present() {
            return Err(self.raise_ec(vector::SS, code_of(sel)));
        }
        Ok(d)
    }
}

/// Whether `len` bytes at `offset` are within a data segment (expand-up or expand-down).
pub(crate) fn contains(s: &Segment, offset: u64, len: u64) -> bool {
    let last = offset.wrapping_add(len - 1);
    if last < offset {
        return false;
    }
    if s.attr & 0xc == 4 {
        let top = if s.attr & Segment::DB != 0 { 0xffff_ffff } else { 0xffff };
        offset > u64::from(s.limit) && last <= top
    } else {
        last <= u64::from(s.limit)
    }
}
