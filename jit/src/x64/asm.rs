//! The few host instructions that surround the guest's own, as bytes.
//!
//! Encodings are those of the SDM, volume 2: an optional REX, the opcode, ModRM, SIB and a displacement. Registers are
//! their numbers.

use crate::abi::tlb;

/// Host registers by number.
pub(super) mod host {
    #![allow(missing_docs)]
    pub const RAX: u8 = 0;
    pub const RSP: u8 = 4;
    pub const RDI: u8 = 7;
    pub const R10: u8 = 10;
    pub const R11: u8 = 11;
    pub const R13: u8 = 13;
    pub const R14: u8 = 14;
}

/// Where the vCPU's address is.
pub(super) const CPU: u8 = host::RDI;

/// Bytes of code.
#[derive(Default)]
pub(super) struct Asm {
    pub code: Vec<u8>,
}

impl Asm {
    /// Where the next byte will be.
    pub fn at(&self) -> usize {
        self.code.len()
    }

    pub fn bytes(&mut self, bytes: &[u8]) {
        self.code.extend_from_slice(bytes);
    }

    fn imm32(&mut self, v: i32) {
        self.bytes(&v.to_le_bytes());
    }

    /// An instruction with a register (or an extension of the opcode) and a memory operand.
    fn mem(&mut self, wide: bool, opcode: &[u8], reg: u8, base: u8, index: Option<(u8, u8)>, disp: i32) {
        let x = index.map_or(0, |i| i.0);
        let rex = 0x40 | u8::from(wide) << 3 | (reg >> 3) << 2 | (x >> 3) << 1 | base >> 3;
        if rex != 0x40 {
            self.bytes(&[rex]);
        }
        self.bytes(opcode);
        let short = i8::try_from(disp);
        // RBP and R13 as a base have a displacement always.
        let form = match short {
            Ok(0) if base & 7 != 5 => 0,
            Ok(_) => 1,
            Err(_) => 2,
        };
        let sib = index.is_some() || base & 7 == host::RSP;
        self.bytes(&[form << 6 | (reg & 7) << 3 | if sib { 4 } else { base & 7 }]);
        if sib {
            let (x, scale) = index.unwrap_or((host::RSP, 0));
            self.bytes(&[scale << 6 | (x & 7) << 3 | base & 7]);
        }
        match (form, short) {
            (0, _) => {}
            (1, Ok(d)) => self.bytes(&[d as u8]),
            _ => self.imm32(disp),
        }
    }

    /// An instruction on two registers: `rm` is its first operand where the opcode's direction is so.
    fn regs(&mut self, wide: bool, opcode: u8, reg: u8, rm: u8) {
        let rex = 0x40 | u8::from(wide) << 3 | (reg >> 3) << 2 | rm >> 3;
        if rex != 0x40 {
            self.bytes(&[rex]);
        }
        self.bytes(&[opcode, 0xc0 | (reg & 7) << 3 | rm & 7]);
    }

    /// `mov to, from`
    pub fn mov(&mut self, to: u8, from: u8) {
        self.regs(true, 0x89, from, to);
    }

    /// `xor to, from`
    pub fn xor(&mut self, to: u8, from: u8) {
        self.regs(true, 0x31, from, to);
    }

    /// `mov to, [base + disp]`
    pub fn load(&mut self, to: u8, base: u8, disp: i32) {
        self.mem(true, &[0x8b], to, base, None, disp);
    }

    /// `mov to32, [base + disp]`
    pub fn load32(&mut self, to: u8, base: u8, disp: i32) {
        self.mem(false, &[0x8b], to, base, None, disp);
    }

    /// `mov [base + disp], from`, 8 bytes or 4
    pub fn store(&mut self, wide: bool, from: u8, base: u8, disp: i32) {
        self.mem(wide, &[0x89], from, base, None, disp);
    }

    /// `mov [base + disp], imm`, sign-extended, 8 bytes or 4
    pub fn store_imm(&mut self, wide: bool, imm: i32, base: u8, disp: i32) {
        self.mem(wide, &[0xc7], 0, base, None, disp);
        self.imm32(imm);
    }

    /// `movzx to32, word [base + disp]`
    pub fn load16(&mut self, to: u8, base: u8, disp: i32) {
        self.mem(false, &[0x0f, 0xb7], to, base, None, disp);
    }

    /// `mov word [base + disp], from`
    pub fn store16(&mut self, from: u8, base: u8, disp: i32) {
        self.bytes(&[0x66]);
        self.mem(false, &[0x89], from, base, None, disp);
    }

    /// `mov word [base + disp], imm`
    pub fn store_imm16(&mut self, imm: u16, base: u8, disp: i32) {
        self.bytes(&[0x66]);
        self.mem(false, &[0xc7], 0, base, None, disp);
        self.bytes(&imm.to_le_bytes());
    }

    /// The x87 instruction with this first byte and `reg` in its ModRM, on memory
    pub fn x87_mem(&mut self, first: u8, reg: u8, base: u8, disp: i32) {
        self.mem(false, &[first], reg, base, None, disp);
    }

    /// `lea to, [base + index << scale + disp]`, in 64 bits or cut to 32
    pub fn lea(&mut self, wide: bool, to: u8, base: u8, index: Option<(u8, u8)>, disp: i32) {
        if wide && index.is_none() && disp == 0 {
            if to != base {
                self.mov(to, base);
            }
            return;
        }
        self.mem(wide, &[0x8d], to, base, index, disp);
    }

    /// `lea to, [index << scale + disp]`, in 64 bits or cut to 32
    pub fn lea_scaled(&mut self, wide: bool, to: u8, (index, scale): (u8, u8), disp: i32) {
        let rex = 0x40 | u8::from(wide) << 3 | (to >> 3) << 2 | (index >> 3) << 1;
        if rex != 0x40 {
            self.bytes(&[rex]);
        }
        self.bytes(&[0x8d, (to & 7) << 3 | 4, scale << 6 | (index & 7) << 3 | 5]);
        self.imm32(disp);
    }

    /// `mov to, imm`
    pub fn imm(&mut self, to: u8, v: u64) {
        if let Ok(v) = u32::try_from(v) {
            if to >= 8 {
                self.bytes(&[0x41]);
            }
            self.bytes(&[0xb8 | to & 7]);
            self.bytes(&v.to_le_bytes());
        } else {
            self.bytes(&[0x48 | to >> 3, 0xb8 | to & 7]);
            self.bytes(&v.to_le_bytes());
        }
    }

    /// `shr to, n`
    pub fn shr(&mut self, to: u8, n: u8) {
        self.bytes(&[0x48 | to >> 3, 0xc1, 0xe8 | to & 7, n]);
    }

    /// `and to, imm`, sign-extended
    pub fn and_imm(&mut self, to: u8, v: i32) {
        if to == host::RAX {
            self.bytes(&[0x48, 0x25]);
        } else {
            self.bytes(&[0x48 | to >> 3, 0x81, 0xe0 | to & 7]);
        }
        self.imm32(v);
    }

    /// `add to, [base + disp]`
    pub fn add_mem(&mut self, to: u8, base: u8, disp: i32) {
        self.mem(true, &[0x03], to, base, None, disp);
    }

    /// `and to, [base + disp]`
    pub fn and_mem(&mut self, to: u8, base: u8, disp: i32) {
        self.mem(true, &[0x23], to, base, None, disp);
    }

    /// `cmp reg, [base + disp]`
    pub fn cmp_mem(&mut self, reg: u8, base: u8, disp: i32) {
        self.mem(true, &[0x3b], reg, base, None, disp);
    }

    /// `test reg32, [base + disp]`
    pub fn test_mem32(&mut self, reg: u8, base: u8, disp: i32) {
        self.mem(false, &[0x85], reg, base, None, disp);
    }

    /// `add qword [base + disp], imm`
    pub fn add_mem_imm(&mut self, base: u8, disp: i32, v: i8) {
        self.mem(true, &[0x83], 0, base, None, disp);
        self.bytes(&[v as u8]);
    }

    /// `sub dword [base + disp], 1`
    pub fn count_down(&mut self, base: u8, disp: i32) {
        self.mem(false, &[0x83], 5, base, None, disp);
        self.bytes(&[1]);
    }

    /// `test byte [base + disp], v`
    pub fn test_mem8(&mut self, base: u8, disp: i32, v: u8) {
        self.mem(false, &[0xf6], 0, base, None, disp);
        self.bytes(&[v]);
    }

    /// `cmp byte [base + disp], 0`
    pub fn is_zero8(&mut self, base: u8, disp: i32) {
        self.mem(false, &[0x80], 7, base, None, disp);
        self.bytes(&[0]);
    }

    /// `cmp dword [base + disp], 0`
    pub fn is_zero32(&mut self, base: u8, disp: i32) {
        self.mem(false, &[0x83], 7, base, None, disp);
        self.bytes(&[0]);
    }

    /// `ror reg, 8` or `rol reg, 8`, 64 bits
    pub fn rotate8(&mut self, reg: u8, right: bool) {
        self.bytes(&[0x48 | reg >> 3, 0xc1, if right { 0xc8 } else { 0xc0 } | reg & 7, 8]);
    }

    /// `mov low byte of to, low byte of from`
    pub fn mov8(&mut self, to: u8, from: u8) {
        self.bytes(&[0x40 | (from >> 3) << 2 | to >> 3, 0x88, 0xc0 | (from & 7) << 3 | to & 7]);
    }

    /// `movups xmm, [base + disp]`, or to memory
    pub fn movups(&mut self, xmm: u8, base: u8, disp: i32, store: bool) {
        self.mem(false, &[0x0f, if store { 0x11 } else { 0x10 }], xmm, base, None, disp);
    }

    /// `vmovups ymm, [CPU + disp]`, or to memory
    pub fn vmovups(&mut self, ymm: u8, disp: i32, store: bool) {
        self.bytes(&[0xc5, (!ymm >> 3 & 1) << 7 | 0x7c, if store { 0x11 } else { 0x10 }]);
        self.bytes(&[0x80 | (ymm & 7) << 3 | CPU]);
        self.imm32(disp);
    }

    /// `test low byte of reg (R8 to R15), imm`
    pub fn test_low(&mut self, reg: u8, v: u8) {
        self.bytes(&[0x41, 0xf6, 0xc0 | reg & 7, v]);
    }

    /// `test reg, reg`
    pub fn test(&mut self, reg: u8) {
        self.regs(true, 0x85, reg, reg);
    }

    /// The look-up in the TLB, as [`crate::abi`] has it, up to the comparison: R11 = the entry for the linear address
    /// in R10, RAX = the page of the last of `len` bytes; equal if it is a hit.
    pub fn look_up(&mut self, len: u64, write: bool) {
        use host::{R10, R11, RAX};
        self.mov(R11, R10);
        self.shr(R11, tlb::HASH_SHIFT as u8);
        self.xor(R11, R10);
        self.shr(R11, tlb::ENTRY_SHIFT as u8);
        self.and_mem(R11, CPU, tlb::MASK);
        self.add_mem(R11, CPU, tlb::TABLE);
        self.lea(true, RAX, R10, None, len as i32 - 1);
        self.and_imm(RAX, tlb::PAGE as i32);
        self.cmp_mem(RAX, R11, tlb::tag(write));
    }

    /// A conditional jump (`cc` as in its opcode); returns where its displacement is.
    pub fn jcc(&mut self, cc: u8) -> usize {
        self.bytes(&[0x0f, 0x80 | cc, 0, 0, 0, 0]);
        self.at() - 4
    }

    /// A jump; returns where its displacement is.
    pub fn jmp(&mut self) -> usize {
        self.bytes(&[0xe9, 0, 0, 0, 0]);
        self.at() - 4
    }

    /// A call; returns where its displacement is.
    pub fn call(&mut self) -> usize {
        self.bytes(&[0xe8, 0, 0, 0, 0]);
        self.at() - 4
    }

    /// Patches the jump whose displacement is at `site` to go to `to`.
    pub fn patch(&mut self, site: usize, to: i64) {
        let distance = (to - (site as i64 + 4)) as i32;
        self.code[site..site + 4].copy_from_slice(&distance.to_le_bytes());
    }
}

/// Conditions, as in the opcodes of Jcc.
pub(super) mod cc {
    #![allow(missing_docs)]
    pub const AE: u8 = 3;
    pub const NE: u8 = 5;
    pub const BE: u8 = 6;
    pub const A: u8 = 7;
    pub const E: u8 = 4;
    pub const S: u8 = 8;
}
