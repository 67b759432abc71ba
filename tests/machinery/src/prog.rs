//! A program of a guest: an assembler with names, log output, and ways to other privilege levels and back.
use crate::asm;
use crate::layout::*;
use crate::stubs::{HEX32, HEX64, put};
use iced_x86::BlockEncoderOptions;
use iced_x86::code_asm::*;

/// The first of the immediates that stand for labels: a number that no test has for its own.
const FIXUP: i32 = 0x7e5a_b000;

/// Instructions at a fixed address.
pub struct Prog {
    /// The assembler.
    pub a: CodeAssembler,
    /// 16, 32 or 64.
    pub bits: u32,
    base: u32,
    names: Vec<(String, CodeLabel)>,
    /// Immediates that stand for labels until all is assembled.
    fixups: Vec<CodeLabel>,
    /// Labels as they were before they were placed (a copy of one does not learn its place), and after.
    placed: Vec<(CodeLabel, CodeLabel)>,
}

/// An assembled program.
pub struct Assembled {
    /// Where it lies.
    pub base: u32,
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// Names and what RIP is there.
    pub names: Vec<(String, u32)>,
}

impl Prog {
    /// An empty program for `base`, in 16-, 32- or 64-bit code.
    pub fn new(bits: u32, base: u32) -> Self {
        let a = CodeAssembler::new(bits).expect("bits");
        Self { a, bits, base, names: Vec::new(), fixups: Vec::new(), placed: Vec::new() }
    }

    /// Sets a label here. More than one may stand at a place.
    pub fn place(&mut self, label: &mut CodeLabel) {
        let unplaced = *label;
        self.a.set_label(label).expect("label");
        self.placed.push((unplaced, *label));
        self.a.zero_bytes().expect("label");
    }

    /// Names the next instruction, for the log and for [`crate::Guest::addr`].
    pub fn name(&mut self, name: &str) {
        let mut l = self.a.create_label();
        self.place(&mut l);
        self.names.push((name.to_owned(), l));
    }

    /// Fills up with NOPs to linear address `at`; what is there must have no labels yet.
    pub fn pad_with_nops_to(&mut self, at: u32) {
        let now = self.a.assemble(u64::from(self.base)).map_or(0, |b| b.len());
        let n = (at - self.base) as usize - now;
        asm!(self; db &vec![0x90; n]);
    }

    /// A label's address as a 32-bit immediate operand.
    pub fn address(&mut self, label: CodeLabel) -> i32 {
        self.fixups.push(label);
        FIXUP + self.fixups.len() as i32 - 1
    }

    /// Prints text (registers and flags stay).
    pub fn print(&mut self, text: &str) {
        match self.bits {
            64 => asm!(self; push rax),
            32 => asm!(self; push eax),
            _ => asm!(self; push ax),
        }
        for c in text.bytes() {
            put(self, c);
        }
        match self.bits {
            64 => asm!(self; pop rax),
            32 => asm!(self; pop eax),
            _ => asm!(self; pop ax),
        }
    }

    /// Prints a line.
    pub fn say(&mut self, text: &str) {
        self.print(text);
        self.print("\n");
    }

    /// Prints `name=` and a register, in hexadecimal (registers and flags stay).
    pub fn show(&mut self, name: &str, reg: AsmRegister32) {
        self.show_all(name, &[reg]);
    }

    /// Prints `name=` and registers, in hexadecimal (registers and flags stay; a stack pointer is shown as it is
    /// before).
    pub fn show_all(&mut self, name: &str, regs: &[AsmRegister32]) {
        self.print(&format!("={name} "));
        for reg in regs.iter().copied() {
            match self.bits {
                64 => {
                    let full = gpr64::get_gpr64(iced_x86::Register::from(reg).full_register());
                    let full = full.expect("a general register");
                    asm!(self; push rax; mov rax, full);
                    if reg == esp {
                        asm!(self; add rax, 8);
                    }
                    asm!(self; call u64::from(HEX64); pop rax);
                }
                32 => {
                    asm!(self; push eax; mov eax, reg);
                    if reg == esp {
                        asm!(self; lea eax, dword_ptr(eax + 4));
                    }
                    asm!(self; call u64::from(HEX32); pop eax);
                }
                _ => self.show16(reg),
            }
        }
        self.print("\n");
    }

    /// As `show`, all 64 bits (64-bit code).
    pub fn show64(&mut self, name: &str, reg: AsmRegister64) {
        self.print(&format!("%{name} "));
        asm!(self; push rax; push reg; mov eax, dword_ptr(rsp + 4); call u64::from(HEX64); mov eax, dword_ptr(rsp);
            call u64::from(HEX64); pop rax; pop rax);
        self.print("\n");
    }

    /// Prints CS, SS, DS, ES, FS and GS.
    pub fn show_segments(&mut self) {
        self.print("=cs ss ds es fs gs ");
        for s in [cs, ss, ds, es, fs, gs] {
            match self.bits {
                64 => asm!(self; push rax; mov eax, s; call u64::from(HEX64); pop rax),
                32 => asm!(self; push eax; mov eax, s; call u64::from(HEX32); pop eax),
                _ => {
                    asm!(self; push eax; xor eax, eax; mov ax, s);
                    self.show16(eax);
                    asm!(self; pop eax);
                }
            }
        }
        self.print("\n");
    }

    /// Prints `count` doublewords from the top of the stack upwards.
    pub fn show_stack(&mut self, name: &str, count: i32) {
        self.print(&format!("={name} "));
        for n in 0..count {
            match self.bits {
                64 => {
                    asm!(self; push rax; mov rax, qword_ptr(rsp + 8 + 8 * n); call u64::from(HEX64); pop rax)
                }
                _ => {
                    asm!(self; push eax; mov eax, dword_ptr(esp + 4 + 4 * n); call u64::from(HEX32); pop eax)
                }
            }
        }
        self.print("\n");
    }

    fn show16(&mut self, reg: AsmRegister32) {
        let mut next = self.a.create_label();
        let mut digit = self.a.create_label();
        asm!(self; pushf; push eax; push ecx; push edx; mov edx, reg; mov al, 0x20; out LOG_PORT, al; mov cx, 8);
        self.place(&mut next);
        asm!(self; rol edx, 4; mov al, dl; and al, 15; add al, 0x30; cmp al, 0x3a; jb digit; add al, 7);
        self.place(&mut digit);
        asm!(self; out LOG_PORT, al; dec cx; jnz next; pop edx; pop ecx; pop eax; popf);
    }

    /// Prints `name=` and a doubleword of memory (flags change).
    pub fn show_mem(&mut self, name: &str, at: u32) {
        match self.bits {
            64 => asm!(self; push rax; mov eax, dword_ptr(at)),
            _ => asm!(self; push eax; mov eax, dword_ptr(at)),
        }
        self.show(name, eax);
        match self.bits {
            64 => asm!(self; pop rax),
            _ => asm!(self; pop eax),
        }
    }

    /// Ends the guest.
    pub fn exit(&mut self) {
        asm!(self; xor eax, eax; out EXIT_PORT, eax; hlt);
    }

    /// Has the handler go on at `after` with the stack as it is now (32- and 64-bit code; registers and flags stay).
    pub fn recover_at(&mut self, after: CodeLabel) {
        let after = self.address(after);
        if self.bits == 64 {
            asm!(self; mov qword_ptr(RECOVER), after; mov qword_ptr(RECOVER_SP), rsp);
        } else {
            asm!(self; mov dword_ptr(RECOVER), after; mov dword_ptr(RECOVER_SP), esp);
        }
    }

    /// Runs what `f` assembles; a fault ends it (the handler logs it), else `name ok` is logged. The first instruction
    /// has the name.
    pub fn attempt(&mut self, name: &str, f: impl FnOnce(&mut Prog)) {
        let mut after = self.a.create_label();
        self.recover_at(after);
        self.name(name);
        f(self);
        self.say(&format!("{name} ok"));
        self.place(&mut after);
    }

    /// Runs what `f` assembles; whatever happens goes on behind it, at level 0 with flat segments. Nothing is logged by
    /// itself.
    pub fn guarded(&mut self, f: impl FnOnce(&mut Prog)) {
        let mut after = self.a.create_label();
        self.recover_at(after);
        f(self);
        self.place(&mut after);
    }

    /// Runs what `f` assembles at privilege level `level` with flat segments, and comes back by interrupt [`QUIT`] or
    /// by any exception.
    pub fn ring(&mut self, level: usize, f: impl FnOnce(&mut Prog)) {
        let mut start = self.a.create_label();
        let (code, data) = FLAT[level];
        let stack = STACKS[level] as i32;
        let bits = self.bits;
        self.guarded(|p| {
            let at = p.address(start);
            if bits == 64 {
                let code = if level == 0 { CODE64 } else { CODE64_3 };
                asm!(p; push i32::from(data); push stack; pushfq; push i32::from(code); push at; iretq);
            } else {
                asm!(p; push i32::from(data); push stack; pushfd; push i32::from(code); push at;
                    mov eax, u32::from(data); mov ds, ax; mov es, ax; iretd);
            }
            p.place(&mut start);
            f(p);
            p.quit();
        });
    }

    /// Runs what `f` assembles at level 3.
    pub fn user(&mut self, f: impl FnOnce(&mut Prog)) {
        self.ring(3, f);
    }

    /// Names the next instruction and runs what `f` assembles at `level`: what `attempt` is at level 0.
    pub fn attempt_at(&mut self, level: usize, name: &str, f: impl FnOnce(&mut Prog)) {
        self.ring(level, |p| {
            p.name(name);
            f(p);
            p.say(&format!("{name} ok"));
        });
    }

    /// Ends a program at any level.
    pub fn quit(&mut self) {
        asm!(self; int i32::from(QUIT));
    }

    /// Enters virtual-8086 mode at segment `code`, offset `at`, with `flags` (VM is added), all data segments `data`,
    /// and stack `stack.0:stack.1`.
    pub fn v86(&mut self, code: u32, at: u32, flags: u32, data: u32, stack: (u32, u32)) {
        self.guarded(|p| {
            for v in [data, data, data, data, stack.0, stack.1, flags | 1 << 17 | 2, code, at] {
                asm!(p; push v as i32);
            }
            asm!(p; iretd);
        });
    }

    /// A REP prefix for the next instruction.
    pub fn rep(&mut self) {
        let _ = self.a.rep();
    }

    /// Adds `bits` to the flags register (32-bit code).
    pub fn set_flags(&mut self, bits: u32) {
        asm!(self; pushfd; or dword_ptr(esp), bits; popfd);
    }

    /// Takes `bits` from the flags register (32-bit code).
    pub fn clear_flags(&mut self, bits: u32) {
        asm!(self; pushfd; and dword_ptr(esp), !bits; popfd);
    }

    /// Sets bits of CR4.
    pub fn set_cr4(&mut self, bits: u32) {
        if self.bits == 64 {
            asm!(self; mov rax, cr4; or eax, bits; mov cr4, rax);
        } else {
            asm!(self; mov eax, cr4; or eax, bits; mov cr4, eax);
        }
    }

    /// Clears bits of CR4.
    pub fn clear_cr4(&mut self, bits: u32) {
        if self.bits == 64 {
            asm!(self; mov rax, cr4; and eax, !bits; mov cr4, rax);
        } else {
            asm!(self; mov eax, cr4; and eax, !bits; mov cr4, eax);
        }
    }

    /// Writes an MSR.
    pub fn wrmsr(&mut self, index: u32, value: u64) {
        asm!(self; mov ecx, index; mov eax, value as u32; mov edx, (value >> 32) as u32; wrmsr);
    }

    /// Encodes it.
    pub fn assemble(mut self) -> Assembled {
        asm!(self; nop);
        let options = BlockEncoderOptions::RETURN_NEW_INSTRUCTION_OFFSETS;
        let r = self.a.assemble_options(u64::from(self.base), options).expect("assembling a program");
        let mut bytes = r.inner.code_buffer.clone();
        for (n, label) in self.fixups.iter().enumerate() {
            let mark = (FIXUP + n as i32).to_le_bytes();
            let at = bytes.windows(4).position(|w| w == mark).expect("an immediate");
            let label = self.placed.iter().find(|(before, _)| before == label).map_or(label, |(_, l)| l);
            let ip = r.label_ip(label).expect("a label") as u32;
            bytes[at..at + 4].copy_from_slice(&ip.to_le_bytes());
        }
        let names = self.names.iter().map(|(n, l)| {
            let ip = r.label_ip(l).expect("a label") as u32;
            (n.clone(), ip)
        });
        Assembled { base: self.base, names: names.collect(), bytes }
    }
}
