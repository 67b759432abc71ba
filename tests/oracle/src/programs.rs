//! Random programs: 2 to 40 instructions in a row, with forward branches, calls or a loop around them, for what single
//! instructions cannot show: values that stay in registers from one instruction to the next, flags that are computed
//! late or never, faults in the middle.
//!
//! A few registers hold pointers into data memory and are seldom written to, so that most accesses succeed; one counts
//! a loop's rounds. All else is left to chance. Flags that an instruction leaves undefined are not read by later ones,
//! and are not compared where the program may have ended with them. Programs run at privilege level 3 in 64-bit mode
//! and in flat 32-bit mode, where the translator is at work; they end in INT3.

use crate::assemble::assemble;
use crate::compare::{Difference, Verdict, iced_flags, judge, turns_whole};
use crate::forms;
use crate::generate::Generator;
use crate::habits::{Ctx, Habits};
use crate::layout::*;
use crate::report;
use crate::rng::Rng;
use iced_x86::{
    Code, Decoder, Encoder, FlowControl, Instruction, InstructionInfoFactory, Mnemonic, OpAccess, OpKind,
    Register,
};
use mynah_cpu::CpuModel;

/// Programs in a batch.
pub const PROGRAMS: usize = CODE_PAGES * 4096 / SPACE as usize;
/// Bytes of code address space for each.
const SPACE: u64 = 1024;
/// Bytes of a program at most.
const LONGEST: usize = 440;

/// A program and the state that it starts from.
#[derive(Clone)]
pub struct Program {
    /// The state before; the code is elsewhere.
    pub case: Case,
    /// The code.
    pub bytes: Vec<u8>,
    /// Where instructions begin in it, each with the flags that are undefined before it.
    items: Vec<(usize, u64)>,
    /// Flags that are undefined at the end.
    undefined: u64,
    /// How the model decodes.
    options: u32,
}

/// Makes programs.
pub struct Programs<'a> {
    generator: &'a Generator,
    model: &'a CpuModel,
    /// By mode (32, 64): groups of forms with their weights.
    pools: [Vec<(u64, Vec<Code>)>; 2],
    bits: Vec<u32>,
}

/// Flags that an instruction leaves undefined, with OF of the habit `rotate-whole-turn`: what a program does with it
/// later would not be known for it.
fn undefined_flags(i: &Instruction) -> u64 {
    u64::from(iced_flags(i.rflags_undefined())) | if turns_whole(i) { 1 << 11 } else { 0 }
}

/// Not to be in a program: what its outcome depends on is not the program's alone, or is not defined, or it leads away.
fn is_excluded(code: Code) -> bool {
    use Mnemonic::*;
    let op = code.op_code();
    let far_pointer = matches!(code.mnemonic(), Lds | Les | Lss | Lfs | Lgs | Verr | Verw | Lar | Lsl | Arpl);
    let order = matches!(code.mnemonic(), Enter | Popa | Popad | Maskmovq | Maskmovdqu | Bound);
    let approximate = matches!(code.mnemonic(), Rcpps | Rcpss | Rsqrtps | Rsqrtss);
    let environment = matches!(code.mnemonic(), Fnstenv | Fnsave | Fldenv | Frstor);
    let system = matches!(code.mnemonic(), Popf | Popfd | Popfq | Wrfsbase | Wrgsbase | Ud0 | Ud1 | Ud2);
    // The process that runs them would lose its own memory.
    let keys = matches!(code.mnemonic(), Rdpkru | Wrpkru);
    let selects = op.op_kinds().first() == Some(&iced_x86::OpCodeOperandKind::seg_reg)
        || op.op_kinds().iter().any(|k| format!("{k:?}").starts_with("seg_r") && code.mnemonic() == Pop);
    let flow = code.flow_control() != FlowControl::Next;
    far_pointer
        || order
        || approximate
        || environment
        || system
        || keys
        || selects
        || flow
        || matches!(forms::group(code), "save" | "privileged")
        || matches!(code, Code::Popw_DS | Code::Popd_DS | Code::Popw_ES | Code::Popd_ES)
        || matches!(code, Code::Popw_SS | Code::Popd_SS | Code::Popw_FS | Code::Popd_FS | Code::Popq_FS)
        || matches!(code, Code::Popw_GS | Code::Popd_GS | Code::Popq_GS)
}

impl<'a> Programs<'a> {
    /// Programs of forms that `generator` and `model` have and `wanted` likes, for modes of `bits`.
    pub fn new(
        generator: &'a Generator,
        model: &'a CpuModel,
        wanted: impl Fn(Code) -> bool,
        bits: &[u32],
    ) -> Self {
        let pool = |bits: u32| -> Vec<(u64, Vec<Code>)> {
            let weights = [
                (40, &["integer"][..]),
                (8, &["bmi"]),
                (8, &["stack"]),
                (4, &["string"]),
                (5, &["x87"]),
                (4, &["mmx"]),
                (28, &["sse", "sse2", "sse3", "sse4"]),
                (3, &["crypto"]),
            ];
            let all: Vec<Code> =
                generator.forms(bits).iter().copied().filter(|&c| !is_excluded(c) && wanted(c)).collect();
            weights
                .iter()
                .map(|(w, groups)| {
                    let list = all.iter().copied().filter(|&c| groups.contains(&forms::group(c)));
                    (*w, list.collect::<Vec<_>>())
                })
                .filter(|(_, list)| !list.is_empty())
                .collect()
        };
        let pools = [pool(32), pool(64)];
        let bits = bits
            .iter()
            .copied()
            .filter(|&b| b != 16 && !pools[b as usize / 64].is_empty())
            .flat_map(|b| std::iter::repeat_n(b, if b == 64 { 3 } else { 1 }))
            .collect();
        Self { generator, model, pools, bits }
    }

    /// Nothing to make programs of.
    pub fn is_empty(&self) -> bool {
        self.bits.is_empty()
    }

    /// Program `index` of run `seed`.
    pub fn program(&self, seed: u64, index: u64) -> Program {
        let mut rng = Rng::new(seed ^ 0x9e37_79b9, index);
        loop {
            let bits = rng.pick(&self.bits);
            let mut b = Builder::new(self, &mut rng, bits, (index % PROGRAMS as u64) as usize);
            if let Some(p) = b.build() {
                return p;
            }
        }
    }

    fn pick(&self, rng: &mut Rng, bits: u32) -> Code {
        let pool = &self.pools[bits as usize / 64];
        let mut n = rng.below(pool.iter().map(|p| p.0).sum());
        for (w, list) in pool {
            if n < *w {
                return rng.pick(list);
            }
            n -= w;
        }
        pool[0].1[0]
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Shape {
    Straight,
    Forward,
    Loop,
}

/// A place in the code that is filled when its target is known: offset, size, the item that it leads to; absolute, or
/// relative to the field's end.
struct Fixup {
    field: usize,
    size: usize,
    item: usize,
    absolute: bool,
}

struct Builder<'a, 'b> {
    all: &'b Programs<'a>,
    rng: &'b mut Rng,
    bits: u32,
    at: u64,
    shape: Shape,
    pointers: Vec<(usize, u64)>,
    counter: usize,
    code: Vec<u8>,
    items: Vec<(usize, u64)>,
    fixups: Vec<Fixup>,
    /// Undefined now; undefined at some time; read at some time.
    tainted: u64,
    ever: u64,
    read: u64,
    info: InstructionInfoFactory,
    vectors: bool,
}

const RCX: usize = 1;
const RSP: usize = 4;

impl<'a, 'b> Builder<'a, 'b> {
    fn new(all: &'b Programs<'a>, rng: &'b mut Rng, bits: u32, slot: usize) -> Self {
        let per_page = 4096 / SPACE as usize;
        let (page, n) = (code_page(slot / per_page), (slot % per_page) as u64);
        // The first place of a page is kept short: a program may have begun on the page before.
        let first = page + n * SPACE + if n == 0 { 512 } else { 0 };
        let mut at = first + rng.below(64);
        if n as usize == per_page - 1 && rng.chance(25) {
            at = page + 4096 - 1 - rng.below(120);
        }
        let shape = match rng.below(10) {
            0..4 => Shape::Straight,
            4..7 => Shape::Forward,
            _ => Shape::Loop,
        };
        let (numbers, counter): (&[usize], _) =
            if bits == 64 { (&[6, 7, 3, 5, 12, RSP], 15) } else { (&[6, 7, 3, RSP], 5) };
        let mut pointers = Vec::new();
        for &n in numbers {
            let place = match rng.below(40) {
                _ if n == RSP => LOW + 0x1000 + rng.below(0x200) * 8,
                0 => LOW + LOW_LEN - rng.below(0x10) * 16,
                1 => READ_ONLY + rng.below(0xe0) * 16,
                2..6 if bits == 64 => HIGH + rng.below(0x180) * 16,
                6..9 => LOW + 0x1000 * (1 + rng.below(3)) - rng.below(5) * 16,
                9 => LOW + 0x1000 * (1 + rng.below(3)) - rng.below(64),
                _ => LOW + 0x200 + rng.below(0x340) * 16,
            };
            pointers.push((n, place));
        }
        Self {
            all,
            rng,
            bits,
            at,
            shape,
            pointers,
            counter,
            code: Vec::new(),
            items: Vec::new(),
            fixups: Vec::new(),
            tainted: 0,
            ever: 0,
            read: 0,
            info: InstructionInfoFactory::new(),
            vectors: false,
        }
    }

    fn ip(&self) -> u64 {
        self.at + self.code.len() as u64
    }

    fn build(&mut self) -> Option<Program> {
        let count = 2 + self.rng.below(39) as usize;
        let first = self.all.pick(self.rng, self.bits);
        let mut regs = self.all.generator.registers(self.rng, first, self.bits);
        let mut starts = Vec::new();
        let mut subroutines: Vec<(usize, usize)> = Vec::new();
        let mut head = 0;
        if self.shape == Shape::Loop {
            for _ in 0..self.rng.below(3) {
                self.instruction();
            }
            let n = 1 + self.rng.below(5) as u8;
            // mov counter, n
            if self.bits == 64 {
                self.emit(&[0x41, 0xbf, n, 0, 0, 0]);
            } else {
                self.emit(&[0xbd, n, 0, 0, 0]);
            }
            head = self.code.len();
        }
        for _ in 0..count {
            if self.code.len() > LONGEST - 80 {
                break;
            }
            starts.push(self.code.len());
            if self.shape != Shape::Straight && self.rng.chance(18) {
                self.branch(starts.len(), &mut subroutines);
            } else {
                self.instruction();
            }
        }
        starts.push(self.code.len());
        if self.shape == Shape::Loop {
            if self.bits == 64 {
                self.emit(&[0x41, 0xff, 0xcf]);
            } else {
                self.emit(&[0x4d]);
            }
            let back = head as i64 - (self.code.len() as i64 + 6);
            let mut jump = vec![0x0f, 0x85];
            jump.extend((back as i32).to_le_bytes());
            self.emit(&jump);
        }
        self.emit(&[0xcc]);
        for (field, site) in subroutines {
            let to = self.code.len();
            self.code[field..field + 4].copy_from_slice(&((to - site) as u32).to_le_bytes());
            for _ in 0..1 + self.rng.below(3) {
                self.instruction();
            }
            self.emit(&[0xc3]);
        }
        for f in &self.fixups {
            let to = *starts.get(f.item).or(starts.last())?;
            let v =
                if f.absolute { self.at + to as u64 } else { (to as i64 - (f.field + f.size) as i64) as u64 };
            if f.size == 1 && v as i8 as u64 != v {
                return None;
            }
            self.code[f.field..f.field + f.size].copy_from_slice(&v.to_le_bytes()[..f.size]);
        }
        if self.code.len() > LONGEST {
            return None;
        }
        for &(n, place) in &self.pointers {
            regs.gpr[n] = place;
        }
        regs.rip = self.at;
        // Alignment checks mean different things to vectors on different processors.
        if self.vectors {
            regs.rflags &= !(1 << 18);
        }
        let data = sel::DATA;
        let code = if self.bits == 64 { sel::CODE64 } else { sel::CODE32 };
        regs.sel = [data, code, data, data, regs.sel[4], regs.sel[5]];
        let case = Case {
            regs,
            code: [0; 15],
            code_len: 0,
            end: End::Breakpoint,
            patches: 0,
            patch: [Patch::NONE; PATCHES],
        };
        let undefined = if self.shape == Shape::Straight { self.tainted } else { self.ever };
        if self.shape != Shape::Straight {
            for i in &mut self.items {
                i.1 = self.ever;
            }
        }
        Some(Program {
            case,
            bytes: std::mem::take(&mut self.code),
            items: std::mem::take(&mut self.items),
            undefined,
            options: self.all.generator.options,
        })
    }

    /// Adds bytes of one instruction that the builder itself wants.
    fn emit(&mut self, bytes: &[u8]) {
        let i = Decoder::with_ip(self.bits, bytes, self.ip(), self.all.generator.options).decode();
        self.note(&i);
        self.code.extend(bytes);
    }

    /// Keeps account of flags; called before the instruction's bytes are added.
    fn note(&mut self, i: &Instruction) {
        use Mnemonic::*;
        self.items.push((self.code.len(), self.tainted));
        let undefined = undefined_flags(i);
        let defined = u64::from(iced_flags(i.rflags_written() | i.rflags_cleared() | i.rflags_set()));
        let shift = matches!(i.mnemonic(), Shl | Shr | Sar | Sal | Rol | Ror | Rcl | Rcr | Shld | Shrd);
        let repeated = i.has_rep_prefix() || i.has_repne_prefix();
        let certain = !shift && !repeated;
        self.tainted = self.tainted & !if certain { defined } else { 0 } | undefined;
        self.ever |= undefined;
        self.read |= u64::from(iced_flags(i.rflags_read()));
    }

    /// Whether the flags that an instruction reads are defined, and those that it spoils not wanted.
    fn flags_fit(&self, i: &Instruction) -> bool {
        let read = u64::from(iced_flags(i.rflags_read()));
        let undefined = undefined_flags(i);
        match self.shape {
            Shape::Straight => read & self.tainted == 0,
            _ => read & (self.ever | undefined) == 0 && undefined & self.read == 0,
        }
    }

    fn instruction(&mut self) {
        for _ in 0..300 {
            let code = self.all.pick(self.rng, self.bits);
            let bytes = assemble(self.rng, code, self.bits);
            let mut d = Decoder::with_ip(self.bits, &bytes, self.ip(), self.all.generator.options);
            let i = d.decode();
            if i.is_invalid() || i.len() != bytes.len() || self.try_add(i, bytes).is_none() {
                continue;
            }
            return;
        }
    }

    fn try_add(&mut self, mut i: Instruction, mut bytes: Vec<u8>) -> Option<()> {
        use Mnemonic::*;
        if is_excluded(i.code()) || !forms::claimed(self.all.model, i.code()) || !self.flags_fit(&i) {
            return None;
        }
        if i.op0_kind() == OpKind::Register && i.op0_register().is_segment_register() {
            return None;
        }
        let group = forms::group(i.code());
        let memory = (0..i.op_count()).any(|n| i.op_kind(n) == OpKind::Memory);
        match i.mnemonic() {
            Div | Idiv if self.rng.chance(60) => return None,
            Shld | Shrd if i.op1_register().is_gpr16() => {
                if i.op2_kind() == OpKind::Register || i.immediate8() & 31 > 16 {
                    return None;
                }
            }
            Movsxd if i.op0_register().is_gpr16() && memory => return None,
            Sha1msg1 | Sha1msg2 | Sha1nexte | Sha1rnds4 | Sha256msg1 | Sha256msg2 | Sha256rnds2 if memory => {
                return None;
            }
            Bt | Bts | Btr | Btc if memory && i.op1_kind() == OpKind::Register && self.rng.chance(85) => {
                return None;
            }
            Ldmxcsr | Xlatb | Fldcw if self.rng.chance(80) => return None,
            _ => {}
        }
        // What is needed stays.
        let mut spoils = false;
        for r in self.info.info(&i).used_registers() {
            let n = r.register().full_register();
            let writes = !matches!(
                r.access(),
                OpAccess::Read | OpAccess::CondRead | OpAccess::None | OpAccess::NoMemAccess
            );
            if !n.is_gpr() || !writes {
                continue;
            }
            if n.number() == self.counter && self.shape == Shape::Loop {
                return None;
            }
            let moves =
                n.number() == RSP && group == "stack" || matches!(n.number(), 6 | 7) && group == "string";
            spoils |= !moves && self.pointers.iter().any(|p| p.0 == n.number());
        }
        if spoils && self.rng.chance(97) || i.mnemonic() == Leave && self.rng.chance(90) {
            return None;
        }
        if group == "string" && (i.has_rep_prefix() || i.has_repne_prefix()) && self.rng.chance(85) {
            // mov ecx, n
            let n = self.rng.below(24) as u8;
            self.emit(&[0xb9, n, 0, 0, 0]);
            i.set_ip(self.ip());
        }
        if memory {
            self.point(&mut i);
            let mut e = Encoder::new(self.bits);
            e.encode(&i, self.ip()).ok()?;
            bytes = e.take_buffer();
        }
        let mut d = Decoder::with_ip(self.bits, &bytes, self.ip(), self.all.generator.options);
        let again = d.decode();
        if again.len() != bytes.len() || again.code() != i.code() && again.mnemonic() != i.mnemonic() {
            return None;
        }
        self.vectors |= !matches!(group, "integer" | "bmi" | "stack" | "string");
        self.note(&again);
        self.code.extend(bytes);
        Some(())
    }

    /// Has the memory operand lead to data memory, mostly.
    fn point(&mut self, i: &mut Instruction) {
        let direct = i.code().op_code().op_kinds().contains(&iced_x86::OpCodeOperandKind::mem_offs);
        let size = i.memory_size().size() as u64;
        let place = LOW + 0x100 + self.rng.below(0x380) * 16;
        let override_base = matches!(i.memory_segment(), Register::FS | Register::GS);
        if override_base || direct || self.rng.chance(12) {
            let place = if override_base { self.rng.below(0xc0) * 16 } else { place };
            let (displacement, size) = if direct {
                let size = i.memory_displ_size();
                (if size == 2 { place & 0xffff } else { place }, size)
            } else {
                (place, if self.bits == 64 { 8 } else { 4 })
            };
            if !direct {
                let relative = self.bits == 64 && !override_base && self.rng.chance(60);
                i.set_memory_base(if relative { Register::RIP } else { Register::None });
                i.set_memory_index(Register::None);
                i.set_memory_index_scale(1);
            }
            i.set_memory_displacement64(displacement);
            i.set_memory_displ_size(size);
            return;
        }
        let wide = self.bits == 64 && self.rng.chance(85);
        let list: &[Register] = if wide { &R64 } else { &R32 };
        let n = self.rng.below(self.pointers.len() as u64) as usize;
        // The stack pointer, which comes last, is not aligned for vectors.
        let (base, at) = self.pointers[if size >= 16 && self.pointers[n].0 == RSP { 0 } else { n }];
        let list = if at >> 32 != 0 { &R64[..] } else { list };
        let step = if size >= 16 && self.rng.chance(92) { 16 } else { 1 };
        let displacement = (self.rng.below(0x180) as i64 - 0x80) / step * step;
        let mut index = Register::None;
        if self.rng.chance(20) {
            let r = if self.bits == 64 {
                self.rng.pick(&[0, 1, 2, 8, 13, 14])
            } else {
                self.rng.pick(&[0usize, 1, 2])
            };
            // and index, 70h: a small number; flags are defined but for AF.
            let rex: &[u8] = if r >= 8 { &[0x41] } else { &[] };
            let bytes = [rex, &[0x83, 0xe0 | (r as u8 & 7), 0x70]].concat();
            let and = Decoder::with_ip(self.bits, &bytes, self.ip(), self.all.generator.options).decode();
            let used = self
                .info
                .info(i)
                .used_registers()
                .iter()
                .any(|u| u.register().is_gpr() && u.register().full_register().number() == r);
            if self.flags_fit(&and) && !used && i.rflags_read() == 0 {
                self.emit(&bytes);
                index = list[r];
            }
        }
        i.set_memory_base(list[base]);
        i.set_memory_index(index);
        i.set_memory_index_scale(if index == Register::None { 1 } else { 1 << self.rng.below(4) });
        i.set_memory_displacement64(displacement as u64);
        i.set_memory_displ_size(if displacement == 0 && base & 7 != 5 { 0 } else { 1 });
    }

    /// A branch to a later item, or a call.
    fn branch(&mut self, next: usize, subroutines: &mut Vec<(usize, usize)>) {
        let item = next + self.rng.below(6) as usize;
        match self.rng.below(12) {
            0..6 => {
                for _ in 0..20 {
                    let cc = self.rng.below(16) as u8;
                    let near = self.rng.chance(50);
                    let bytes = if near { vec![0x70 | cc, 0] } else { vec![0x0f, 0x80 | cc, 0, 0, 0, 0] };
                    let i =
                        Decoder::with_ip(self.bits, &bytes, self.ip(), self.all.generator.options).decode();
                    if self.flags_fit(&i) {
                        self.jump(&bytes, if near { 1 } else { 4 }, item);
                        return;
                    }
                }
            }
            6 => self.jump(&[0xeb, 0], 1, item),
            7 => self.jump(&[0xe9, 0, 0, 0, 0], 4, item),
            8 => self.jump(&[0xe3, 0], 1, item),
            9 => {
                self.emit(&[0xe8, 0, 0, 0, 0]);
                subroutines.push((self.code.len() - 4, self.code.len()));
            }
            n => {
                if self.bits == 64 {
                    self.jump(&[0x48, 0x8d, 0x05, 0, 0, 0, 0], 4, item); // lea rax, [rip + there]
                } else {
                    self.emit(&[0xb8, 0, 0, 0, 0]); // mov eax, there
                    let field = self.code.len() - 4;
                    self.fixups.push(Fixup { field, size: 4, item, absolute: true });
                }
                if n == 10 {
                    self.emit(&[0xff, 0xe0]); // jmp rax
                } else {
                    self.emit(&[0x50]); // push rax; ret
                    self.emit(&[0xc3]);
                }
            }
        }
    }

    fn jump(&mut self, bytes: &[u8], size: usize, item: usize) {
        self.emit(bytes);
        self.fixups.push(Fixup { field: self.code.len() - size, size, item, absolute: false });
    }
}

const R64: [Register; 16] = {
    use Register::*;
    [RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8, R9, R10, R11, R12, R13, R14, R15]
};
const R32: [Register; 16] = {
    use Register::*;
    [EAX, ECX, EDX, EBX, ESP, EBP, ESI, EDI, R8D, R9D, R10D, R11D, R12D, R13D, R14D, R15D]
};
const _: () = assert!(RCX == 1);

impl Program {
    /// Writes the code to its place in `image`, an array of all code bytes.
    pub fn place(&self, image: &mut [u8]) {
        for (n, b) in self.bytes.iter().enumerate() {
            if let Some(p) = code_offset(self.case.regs.rip + n as u64).and_then(|o| image.get_mut(o)) {
                *p = *b;
            }
        }
    }

    /// Instructions.
    pub fn len(&self) -> usize {
        self.items.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    fn instruction(&self, n: usize) -> Instruction {
        let at = self.items[n].0;
        let ip = self.case.regs.rip + at as u64;
        Decoder::with_ip(self.case.regs.bitness(), &self.bytes[at..], ip, self.options).decode()
    }

    /// The program with instruction `n` replaced by NOPs.
    pub fn without(&self, n: usize) -> Self {
        let mut p = self.clone();
        let at = p.items[n].0;
        let end = p.items.get(n + 1).map_or(p.bytes.len(), |i| i.0);
        p.bytes[at..end].fill(0x90);
        p
    }

    /// The item at an address.
    fn item_at(&self, rip: u64) -> Option<usize> {
        let at = rip.wrapping_sub(self.case.regs.rip);
        self.items.iter().position(|i| i.0 as u64 == at)
    }

    /// What differs between the host's outcome and Mynah's.
    pub fn compare(&self, background: &[u8], want: &Outcome, got: &Outcome, habits: &Habits) -> Verdict {
        let ended = matches!(want.vector, 1 | 3);
        let item = if ended { None } else { self.item_at(want.regs.rip) };
        let undefined = item.map_or(self.undefined, |n| self.items[n].1);
        let mut i = Instruction::default();
        i.set_code(Code::Nopd);
        let mut case = self.case;
        if let Some(n) = item {
            i = self.instruction(n);
            case.regs = want.regs;
            // What the instruction began with.
            case.regs.put_fx(2, &[0, 0]);
            let at = self.items[n].0;
            let bytes = &self.bytes[at..(at + i.len()).min(self.bytes.len())];
            case.code[..bytes.len()].copy_from_slice(bytes);
            case.code_len = bytes.len() as u8;
        }
        // The x87 pointers do not outlive what the kernel may do between two instructions.
        let ctx = Ctx { undefined, pointers: false, ..Ctx::new(&case, &i, want, got) };
        judge(&ctx, background, habits)
    }

    /// The program in words.
    pub fn report(&self, differences: &[Difference], name: &str) -> String {
        use std::fmt::Write;
        let mut s = format!("DIFFERENCE  {name}\n  {}-bit\n", self.case.regs.bitness());
        for n in 0..self.items.len() {
            let i = self.instruction(n);
            if i.mnemonic() == Mnemonic::Nop && self.bytes[self.items[n].0] == 0x90 {
                continue;
            }
            let bytes = &self.bytes[self.items[n].0..][..i.len().min(self.bytes.len() - self.items[n].0)];
            let _ = writeln!(s, "    {:x}  {:30} {}", i.ip(), report::hex(bytes), report::disassemble(&i));
        }
        for d in differences {
            let _ = writeln!(s, "    {d}");
        }
        let r = &self.case.regs;
        let _ = writeln!(s, "  before: gpr {:x?} rflags {:x} mxcsr {:x}", r.gpr, r.rflags, r.mxcsr());
        s
    }
}
