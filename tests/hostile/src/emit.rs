//! Machine code by the byte: what an assembler would refuse is wanted here as well.
use mynah_oracle::rng::Rng;

/// A piece of code that is being written.
pub struct Emit {
    /// The bytes.
    pub bytes: Vec<u8>,
    /// 16, 32 or 64.
    pub bits: u32,
}

/// General registers by number.
pub mod reg {
    /// AX, EAX, RAX.
    pub const AX: u8 = 0;
    /// The count of string instructions.
    pub const CX: u8 = 1;
    /// The port of IN and OUT.
    pub const DX: u8 = 2;
    /// A pointer.
    pub const BX: u8 = 3;
    /// The stack pointer.
    pub const SP: u8 = 4;
    /// The count of the loop around a piece.
    pub const BP: u8 = 5;
    /// The source of string instructions.
    pub const SI: u8 = 6;
    /// Their destination.
    pub const DI: u8 = 7;
}

impl Emit {
    /// Nothing yet.
    pub fn new(bits: u32) -> Self {
        Self { bytes: Vec::new(), bits }
    }

    /// Bytes as they are.
    pub fn raw(&mut self, bytes: &[u8]) -> &mut Self {
        self.bytes.extend_from_slice(bytes);
        self
    }

    /// `mov r, value` with all 32 (in 64-bit mode, where the value needs it, 64) bits; 16-bit code uses the
    /// operand-size prefix.
    pub fn set(&mut self, r: u8, value: u64) -> &mut Self {
        if self.bits == 64 && value > u64::from(u32::MAX) {
            return self.raw(&[0x48, 0xb8 + r]).raw(&value.to_le_bytes());
        }
        if self.bits == 16 {
            self.raw(&[0x66]);
        }
        self.raw(&[0xb8 + r]).raw(&(value as u32).to_le_bytes())
    }

    /// An opcode with a memory operand at an absolute address, through BX (EBX, RBX).
    pub fn at(&mut self, opcode: &[u8], extension: u8, address: u64) -> &mut Self {
        self.set(reg::BX, address);
        self.through_bx(opcode, extension)
    }

    /// An opcode with the memory operand that BX (EBX, RBX) points to.
    pub fn through_bx(&mut self, opcode: &[u8], extension: u8) -> &mut Self {
        if self.bits == 16 {
            // [ebx]
            self.raw(&[0x67]);
        }
        // A prefix that is part of the opcode comes before REX, of which there is none here.
        self.raw(opcode).raw(&[(extension & 7) << 3 | 3])
    }

    /// `mov crN, eax` or back.
    pub fn control(&mut self, n: u8, load: bool) -> &mut Self {
        self.raw(&[0x0f, if load { 0x22 } else { 0x20 }, 0xc0 | n << 3])
    }

    /// Surrounds what was written from `start` on with a loop of `count` rounds, if it is short enough. BP counts, and
    /// is changed by the code at its own risk.
    pub fn repeat(&mut self, start: usize, count: u32) {
        let body = self.bytes.len() - start;
        let mut head = Emit::new(self.bits);
        head.set(reg::BP, count.into());
        // dec ebp; jnz rel32 (rel16)
        let dec: &[u8] = if self.bits == 16 { &[0x66, 0xff, 0xcd] } else { &[0xff, 0xcd] };
        self.raw(dec);
        let jump = if self.bits == 16 { 4 } else { 6 };
        let back = -((body + dec.len() + jump) as i32);
        self.raw(&[0x0f, 0x85]);
        if self.bits == 16 {
            self.raw(&(back as i16).to_le_bytes());
        } else {
            self.raw(&back.to_le_bytes());
        }
        self.bytes.splice(start..start, head.bytes);
    }

    /// A random instruction: prefixes, an opcode of any map, a ModRM byte and what may be its displacement and
    /// immediate.
    pub fn any(&mut self, rng: &mut Rng) -> &mut Self {
        const PREFIXES: [u8; 12] = [0x66, 0x67, 0xf2, 0xf3, 0xf0, 0x26, 0x2e, 0x36, 0x3e, 0x64, 0x65, 0x66];
        while rng.chance(20) {
            self.raw(&[rng.pick(&PREFIXES)]);
        }
        if self.bits == 64 && rng.chance(40) {
            self.raw(&[0x40 | rng.below(16) as u8]);
        }
        match rng.below(10) {
            0..=3 => self.raw(&[rng.u32() as u8]),
            4..=6 => self.raw(&[0x0f, rng.u32() as u8]),
            // The opcodes of system instructions, and of state images.
            7 => {
                let op =
                    rng.pick(&[0x00u8, 0x01, 0xae, 0xc7, 0x20, 0x22, 0x21, 0x23, 0x30, 0x32, 0x05, 0x07]);
                self.raw(&[0x0f, op])
            }
            8 => self.raw(&[0x0f, rng.pick(&[0x38u8, 0x3a]), rng.u32() as u8]),
            // x87, or VEX.
            _ if rng.chance(60) => self.raw(&[0xd8 + rng.below(8) as u8]),
            _ => {
                let map = 1 + rng.below(3) as u8;
                self.raw(&[0xc4, 0xe0 | map, 0x78 | rng.u32() as u8 & 0x87, rng.u32() as u8])
            }
        };
        // A memory operand behind a register half of the time.
        let modrm = rng.u32() as u8;
        let modrm = if rng.chance(50) {
            modrm & 0x38 | rng.pick(&[0x03, 0x06, 0x07, 0x43, 0x46, 0x47])
        } else {
            modrm
        };
        self.raw(&[modrm]);
        for _ in 0..rng.below(6) {
            self.raw(&[rng.u32() as u8]);
        }
        self
    }
}
