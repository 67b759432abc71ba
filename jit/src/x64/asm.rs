//! The few host instructions that surround the guest's own, as bytes.
//!
//! Encodings are those of the SDM, volume 2: an optional REX, the opcode, ModRM, SIB and a displacement. Registers are
//! their numbers. docs/translator.md says why Cranelift's assembler is not taken for them.

use crate::abi::tlb;

/// Host registers by number.
pub(super) mod host {
    #![allow(missing_docs)]
    pub const RAX: u8 = 0;
    pub const RCX: u8 = 1;
    pub const RDX: u8 = 2;
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

    /// `mov to, from`, 64 bits or 32
    pub fn mov_width(&mut self, wide: bool, to: u8, from: u8) {
        self.regs(wide, 0x89, from, to);
    }

    /// `mov to16, from16`
    pub fn mov16(&mut self, to: u8, from: u8) {
        self.bytes(&[0x66]);
        self.mov_width(false, to, from);
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

    /// `mov to, [base + disp]`, of 1, 2, 4 or 8 bytes
    pub fn load_part(&mut self, len: usize, to: u8, base: u8, disp: i32) {
        self.part(len, 0x8a, to, base, disp);
    }

    /// `mov [base + disp], from`, of 1, 2, 4 or 8 bytes; of one byte not from RSP, RBP, RSI, RDI
    pub fn store_part(&mut self, len: usize, from: u8, base: u8, disp: i32) {
        self.part(len, 0x88, from, base, disp);
    }

    fn part(&mut self, len: usize, opcode: u8, reg: u8, base: u8, disp: i32) {
        if len == 2 {
            self.bytes(&[0x66]);
        }
        self.mem(len == 8, &[opcode | u8::from(len > 1)], reg, base, None, disp);
    }

    /// `movzx to32, word [base + disp]`
    pub fn load16(&mut self, to: u8, base: u8, disp: i32) {
        self.mem(false, &[0x0f, 0xb7], to, base, None, disp);
    }

    /// `mov word [base + disp], imm`
    pub fn store_imm16(&mut self, imm: u16, base: u8, disp: i32) {
        self.bytes(&[0x66]);
        self.mem(false, &[0xc7], 0, base, None, disp);
        self.bytes(&imm.to_le_bytes());
    }

    /// The x87 instruction with this first byte and `reg` in its ModRM, on `[CPU + disp]`
    pub fn x87_mem(&mut self, first: u8, reg: u8, disp: i32) {
        self.mem(false, &[first], reg, CPU, None, disp);
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

    /// `lea to, [rip + what follows]`; returns where its displacement is, for [`Self::patch`]
    pub fn lea_rip(&mut self, to: u8) -> usize {
        self.bytes(&[0x48 | to >> 3 << 2, 0x8d, (to & 7) << 3 | 5, 0, 0, 0, 0]);
        self.at() - 4
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

    /// `shl to, n`
    pub fn shl(&mut self, to: u8, n: u8) {
        self.regs(true, 0xc1, 4, to);
        self.bytes(&[n]);
    }

    /// `sar to, n`, 64 bits or 32
    pub fn sar(&mut self, wide: bool, to: u8, n: u8) {
        self.regs(wide, 0xc1, 7, to);
        self.bytes(&[n]);
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

    /// `add to, imm`, sign-extended
    pub fn add_imm(&mut self, to: u8, v: i8) {
        self.regs(true, 0x83, 0, to);
        self.bytes(&[v as u8]);
    }

    /// `cmp left, right`, 64 bits or 32
    pub fn cmp(&mut self, wide: bool, left: u8, right: u8) {
        self.regs(wide, 0x39, right, left);
    }

    /// `cmp left, imm`, sign-extended, 64 bits or 32
    pub fn cmp_imm(&mut self, wide: bool, left: u8, v: i8) {
        self.regs(wide, 0x83, 7, left);
        self.bytes(&[v as u8]);
    }

    /// `cmp left, imm`, sign-extended, 64 bits or 32
    pub fn cmp_imm32(&mut self, wide: bool, left: u8, v: i32) {
        self.regs(wide, 0x81, 7, left);
        self.imm32(v);
    }

    /// `test al, imm`
    pub fn test_al(&mut self, v: u8) {
        self.bytes(&[0xa8, v]);
    }

    /// `not to32`
    pub fn not32(&mut self, to: u8) {
        self.regs(false, 0xf7, 2, to);
    }

    /// `div by` or `idiv by`: RAX and RDX, 64 bits or 32
    pub fn divide(&mut self, wide: bool, signed: bool, by: u8) {
        self.regs(wide, 0xf7, if signed { 7 } else { 6 }, by);
    }

    /// `add to, [base + disp]`
    pub fn add_mem(&mut self, to: u8, base: u8, disp: i32) {
        self.mem(true, &[0x03], to, base, None, disp);
    }

    /// `and to, [base + disp]`
    pub fn and_mem(&mut self, to: u8, base: u8, disp: i32) {
        self.mem(true, &[0x23], to, base, None, disp);
    }

    /// `or to, [base + disp]`
    pub fn or_mem(&mut self, to: u8, base: u8, disp: i32) {
        self.mem(true, &[0x0b], to, base, None, disp);
    }

    /// `and dword [base + disp], imm`
    pub fn and_mem32(&mut self, base: u8, disp: i32, v: i32) {
        self.mem(false, &[0x81], 4, base, None, disp);
        self.imm32(v);
    }

    /// `or dword [base + disp], imm`
    pub fn or_mem32(&mut self, base: u8, disp: i32, v: i32) {
        self.mem(false, &[0x81], 1, base, None, disp);
        self.imm32(v);
    }

    /// `cmp reg, [base + disp]`
    pub fn cmp_mem(&mut self, reg: u8, base: u8, disp: i32) {
        self.mem(true, &[0x3b], reg, base, None, disp);
    }

    /// `sub to, [base + disp]`
    pub fn sub_mem(&mut self, to: u8, base: u8, disp: i32) {
        self.mem(true, &[0x2b], to, base, None, disp);
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

    /// `add low byte of reg (R8 to R15), v`
    pub fn add8(&mut self, reg: u8, v: u8) {
        self.bytes(&[0x41, 0x80, 0xc0 | reg & 7, v]);
    }

    /// `movzx to32, byte [base + disp]`
    pub fn load8(&mut self, to: u8, base: u8, disp: i32) {
        self.mem(false, &[0x0f, 0xb6], to, base, None, disp);
    }

    /// `mov to, [base + index * 2^scale + disp]`
    pub fn load_indexed(&mut self, to: u8, base: u8, index: (u8, u8), disp: i32) {
        self.mem(true, &[0x8b], to, base, Some(index), disp);
    }

    /// `mov [base + index * 2^scale + disp], from`
    pub fn store_indexed(&mut self, from: u8, base: u8, index: (u8, u8), disp: i32) {
        self.mem(true, &[0x89], from, base, Some(index), disp);
    }

    /// `mov qword [base + index * 2^scale + disp], imm`, sign-extended
    pub fn store_imm_indexed(&mut self, imm: i32, base: u8, index: (u8, u8), disp: i32) {
        self.mem(true, &[0xc7], 0, base, Some(index), disp);
        self.imm32(imm);
    }

    /// `jmp to`
    pub fn jmp_to(&mut self, to: u8) {
        self.regs(false, 0xff, 4, to);
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

    /// `xorps xmm0, xmm0`
    pub fn zero_xmm0(&mut self) {
        self.bytes(&[0x0f, 0x57, 0xc0]);
    }

    /// `vmovups ymm, [CPU + disp]`, or to memory
    pub fn vmovups(&mut self, ymm: u8, disp: i32, store: bool) {
        self.bytes(&[0xc5, (!ymm >> 3 & 1) << 7 | 0x7c, if store { 0x11 } else { 0x10 }]);
        self.bytes(&[0x80 | (ymm & 7) << 3 | CPU]);
        self.imm32(disp);
    }

    /// `vzeroupper`
    pub fn vzeroupper(&mut self) {
        self.bytes(&[0xc5, 0xf8, 0x77]);
    }

    /// `lahf; seto al`: SF, ZF, AF, PF and CF in AH, OF in AL
    pub fn flags_to_ax(&mut self) {
        self.bytes(&[0x9f, 0x0f, 0x90, 0xc0]);
    }

    /// `add al, 7fh; sahf`: the reverse
    pub fn flags_from_ax(&mut self) {
        self.bytes(&[0x04, 0x7f, 0x9e]);
    }

    /// `test low byte of reg (R8 to R15), imm`
    pub fn test_low(&mut self, reg: u8, v: u8) {
        self.bytes(&[0x41, 0xf6, 0xc0 | reg & 7, v]);
    }

    /// `test reg, reg`
    pub fn test(&mut self, reg: u8) {
        self.test_width(true, reg);
    }

    /// `test reg, reg`, 64 bits or 32
    pub fn test_width(&mut self, wide: bool, reg: u8) {
        self.regs(wide, 0x85, reg, reg);
    }

    /// `rep movs` or `rep stos`, of 1, 2, 4 or 8 bytes each time
    pub fn repeat(&mut self, copies: bool, len: usize) {
        if len == 2 {
            self.bytes(&[0x66]);
        }
        self.bytes(&[0xf3]);
        if len == 8 {
            self.bytes(&[0x48]);
        }
        self.bytes(&[if copies { 0xa4 } else { 0xaa } | u8::from(len > 1)]);
    }

    /// `cmpxchg16b [base]`, or locked
    pub fn exchange_pair(&mut self, locked: bool, base: u8) {
        if locked {
            self.bytes(&[0xf0]);
        }
        self.mem(true, &[0x0f, 0xc7], 1, base, None, 0);
    }

    /// The look-up in the TLB, as [`crate::abi`] has it, up to the comparison: R11 = the entry for the linear address
    /// in R10, RAX = the page of the last of `len` bytes; equal if it is a hit.
    pub fn look_up(&mut self, len: u64, write: bool) {
        self.lea(true, host::RAX, host::R10, None, len as i32 - 1);
        self.look_up_to(write);
    }

    /// As [`Self::look_up`], with the address of the last byte in RAX, on the same page or the next one.
    pub fn look_up_to(&mut self, write: bool) {
        use host::{R10, R11, RAX};
        self.mov(R11, R10);
        self.shr(R11, tlb::HASH_SHIFT as u8);
        self.xor(R11, R10);
        self.shr(R11, tlb::ENTRY_SHIFT as u8);
        self.and_mem(R11, CPU, tlb::MASK);
        self.add_mem(R11, CPU, tlb::TABLE);
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
    pub const B: u8 = 2;
    pub const AE: u8 = 3;
    pub const NE: u8 = 5;
    pub const BE: u8 = 6;
    pub const A: u8 = 7;
    pub const E: u8 = 4;
    pub const S: u8 = 8;
}

#[cfg(test)]
mod tests {
    use super::*;
    use iced_x86::{Decoder, DecoderOptions, Formatter, NasmFormatter};

    /// What a disassembler makes of the bytes.
    fn text(emit: impl FnOnce(&mut Asm)) -> String {
        let mut asm = Asm::default();
        emit(&mut asm);
        let mut formatter = NasmFormatter::new();
        let mut all = Vec::new();
        for instruction in Decoder::with_ip(64, &asm.code, 0, DecoderOptions::NONE).iter() {
            let mut one = String::new();
            formatter.format(&instruction, &mut one);
            all.push(one);
        }
        all.join("; ")
    }

    #[test]
    fn each_is_the_instruction_that_it_is_named_after() {
        use host::*;
        const BX: u8 = 3;
        const SP: u8 = 4;
        const BP: u8 = 5;
        for (said, meant) in [
            (text(|a| a.mov(R10, RAX)), "mov r10,rax"),
            (text(|a| a.xor(SP, R13)), "xor rsp,r13"),
            (text(|a| a.load(R11, R13, 0)), "mov r11,[r13]"),
            (text(|a| a.load(RAX, 12, 127)), "mov rax,[r12+7Fh]"),
            (text(|a| a.load32(R10, SP, 128)), "mov r10d,[rsp+80h]"),
            (text(|a| a.load32(BX, BP, -129)), "mov ebx,[rbp-81h]"),
            (text(|a| a.store(true, R14, RDI, -128)), "mov [rdi-80h],r14"),
            (text(|a| a.store(false, RAX, R10, 0x1234_5678)), "mov [r10+12345678h],eax"),
            (text(|a| a.store_imm(true, -2, RDI, 8)), "mov qword [rdi+8],0FFFFFFFFFFFFFFFEh"),
            (text(|a| a.store_imm(false, -2, R11, 8)), "mov dword [r11+8],0FFFFFFFEh"),
            (text(|a| a.load_part(1, R13, R10, 0)), "mov r13b,[r10]"),
            (text(|a| a.load_part(2, RAX, R10, 0)), "mov ax,[r10]"),
            (text(|a| a.store_part(1, RAX, R10, 4)), "mov [r10+4],al"),
            (text(|a| a.store_part(2, R13, R10, 0)), "mov [r10],r13w"),
            (text(|a| a.store_part(4, R13, R10, 0)), "mov [r10],r13d"),
            (text(|a| a.store_part(8, RAX, R10, 0)), "mov [r10],rax"),
            (text(|a| a.load16(R13, RDI, 6)), "movzx r13d,word [rdi+6]"),
            (text(|a| a.store_part(2, R13, RDI, 6)), "mov [rdi+6],r13w"),
            (text(|a| a.store_imm16(0xd9c0, RDI, 300)), "mov word [rdi+12Ch],0D9C0h"),
            (text(|a| a.mov16(R13, RAX)), "mov r13w,ax"),
            (text(|a| a.x87_mem(0xd9, 5, 300)), "fldcw [rdi+12Ch]"),
            (text(|a| a.lea(true, R10, R11, None, 0)), "mov r10,r11"),
            (text(|a| a.lea(true, R10, R10, None, 0)), ""),
            (text(|a| a.lea(false, R10, R10, None, 0)), "lea r10d,[r10]"),
            (text(|a| a.lea(true, RAX, R13, Some((12, 3)), 0)), "lea rax,[r13+r12*8]"),
            (text(|a| a.lea(false, R13, SP, Some((BP, 1)), -1)), "lea r13d,[rsp+rbp*2-1]"),
            (text(|a| a.lea_scaled(true, R14, (R11, 2), 5)), "lea r14,[r11*4+5]"),
            (text(|a| a.lea_scaled(false, BX, (BP, 0), -1)), "lea ebx,[rbp*1-1]"),
            (text(|a| a.imm(R10, 0xffff_ffff)), "mov r10d,0FFFFFFFFh"),
            (text(|a| a.imm(RAX, 1 << 32)), "mov rax,100000000h"),
            (text(|a| a.shr(R11, 12)), "shr r11,0Ch"),
            (text(|a| a.shl(RAX, 11)), "shl rax,0Bh"),
            (text(|a| a.cmp_imm32(true, 1, 512)), "cmp rcx,200h"),
            (text(|a| a.cmp_imm32(false, R10, -1)), "cmp r10d,0FFFFFFFFh"),
            (text(|a| a.or_mem(R11, RDI, 300)), "or r11,[rdi+12Ch]"),
            (text(|a| a.and_mem32(RDI, 300, !512)), "and dword [rdi+12Ch],0FFFFFDFFh"),
            (text(|a| a.or_mem32(RDI, 8, 512)), "or dword [rdi+8],200h"),
            (text(|a| a.test_width(false, 1)), "test ecx,ecx"),
            (text(|a| a.repeat(true, 1)), "rep movsb"),
            (text(|a| a.repeat(true, 8)), "rep movsq"),
            (text(|a| a.repeat(false, 2)), "rep stosw"),
            (text(|a| a.repeat(false, 4)), "rep stosd"),
            (text(|a| a.exchange_pair(true, R10)), "lock cmpxchg16b [r10]"),
            (text(|a| a.exchange_pair(false, R13)), "cmpxchg16b [r13]"),
            (text(|a| a.sar(true, R11, 47)), "sar r11,2Fh"),
            (text(|a| a.sar(false, RAX, 31)), "sar eax,1Fh"),
            (text(|a| a.and_imm(RAX, -4096)), "and rax,0FFFFFFFFFFFFF000h"),
            (text(|a| a.and_imm(R10, 0xff0)), "and r10,0FF0h"),
            (text(|a| a.add_imm(R11, 1)), "add r11,1"),
            (text(|a| a.test_al(0x3f)), "test al,3Fh"),
            (text(|a| a.not32(RAX)), "not eax"),
            (text(|a| a.mov_width(false, RAX, R13)), "mov eax,r13d"),
            (text(|a| a.cmp(true, RDX, R11)), "cmp rdx,r11"),
            (text(|a| a.cmp(false, RAX, RDX)), "cmp eax,edx"),
            (text(|a| a.cmp_imm(true, R11, 1)), "cmp r11,1"),
            (text(|a| a.cmp_imm(false, RAX, -1)), "cmp eax,0FFFFFFFFh"),
            (text(|a| a.divide(true, false, R11)), "div r11"),
            (text(|a| a.divide(false, true, R11)), "idiv r11d"),
            (text(|a| a.add_mem(R11, RDI, 8)), "add r11,[rdi+8]"),
            (text(|a| a.and_mem(R11, RDI, 8)), "and r11,[rdi+8]"),
            (text(|a| a.cmp_mem(RAX, R11, 0)), "cmp rax,[r11]"),
            (text(|a| a.test_mem32(RAX, RDI, 8)), "test [rdi+8],eax"),
            (text(|a| a.add_mem_imm(RDI, 8, -3)), "add qword [rdi+8],0FFFFFFFFFFFFFFFDh"),
            (text(|a| a.count_down(RAX, 4)), "sub dword [rax+4],1"),
            (text(|a| a.add8(R11, 16)), "add r11b,10h"),
            (text(|a| a.store_part(1, R10, RDI, 8)), "mov [rdi+8],r10b"),
            (text(|a| a.load8(R11, RDI, 300)), "movzx r11d,byte [rdi+12Ch]"),
            (text(|a| a.load_indexed(R10, RDI, (R10, 3), 300)), "mov r10,[rdi+r10*8+12Ch]"),
            (text(|a| a.sub_mem(RAX, RDI, 8)), "sub rax,[rdi+8]"),
            (text(|a| a.store_indexed(R13, R10, (R14, 0), -8)), "mov [r10+r14-8],r13"),
            (text(|a| a.store_imm_indexed(-2, R10, (R14, 0), 0)), "mov qword [r10+r14],0FFFFFFFFFFFFFFFEh"),
            (text(|a| a.jmp_to(R11)), "jmp r11"),
            (text(|a| a.test_mem8(RDI, 8, 0x80)), "test byte [rdi+8],80h"),
            (text(|a| a.is_zero8(RDI, 8)), "cmp byte [rdi+8],0"),
            (text(|a| a.is_zero32(RAX, 0)), "cmp dword [rax],0"),
            (text(|a| a.rotate8(BP, true)), "ror rbp,8"),
            (text(|a| a.rotate8(R14, false)), "rol r14,8"),
            (text(|a| a.mov8(BP, R10)), "mov bpl,r10b"),
            (text(|a| a.mov8(SP, BX)), "mov spl,bl"),
            (text(|a| a.movups(9, RDI, 16, true)), "movups [rdi+10h],xmm9"),
            (text(|a| a.movups(1, RDI, 16, false)), "movups xmm1,[rdi+10h]"),
            (text(Asm::zero_xmm0), "xorps xmm0,xmm0"),
            (text(|a| a.vmovups(9, 16, true)), "vmovups [rdi+10h],ymm9"),
            (text(|a| a.vmovups(1, 16, false)), "vmovups ymm1,[rdi+10h]"),
            (text(Asm::vzeroupper), "vzeroupper"),
            (text(Asm::flags_to_ax), "lahf; seto al"),
            (text(Asm::flags_from_ax), "add al,7Fh; sahf"),
            (text(|a| a.test_low(R10, 7)), "test r10b,7"),
            (text(|a| a.test(R11)), "test r11,r11"),
        ] {
            assert_eq!(said, meant);
        }
    }

    #[test]
    fn jumps_go_where_they_are_patched_to() {
        let there = |emit: fn(&mut Asm) -> usize| {
            text(|a| {
                let site = emit(a);
                a.patch(site, 0x100);
            })
        };
        assert_eq!(there(|a| a.jcc(cc::NE)), "jne near 0000000000000100h");
        assert_eq!(there(Asm::jmp), "jmp 0000000000000100h");
        assert_eq!(there(Asm::call), "call 0000000000000100h");
        assert_eq!(there(|a| a.lea_rip(host::R11)), "lea r11,[rel 100h]");
    }
}
