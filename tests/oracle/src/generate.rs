//! Cases: an instruction's bytes, then a state in which they mean something. Addresses mostly lead to data memory,
//! sometimes across an edge of it; registers that an instruction uses in a special way (counts, stack frames,
//! selectors, save areas) get values that make sense most of the time.

use crate::assemble::assemble;
use crate::forms;
use crate::habits::untried::{self, Counts};
use crate::layout::*;
use crate::rng::Rng;
use crate::values::{self, Kind};
use iced_x86::{
    Code, ConstantOffsets, Decoder, DecoderOptions, EncodingKind, FlowControl, Instruction, MemorySize,
    Mnemonic, OpKind, Register,
};
use mynah_cpu::CpuModel;

/// Makes cases.
pub struct Generator {
    forms: [Vec<Code>; 3],
    claimed: Vec<bool>,
    lanes: Vec<Kind>,
    ldt: bool,
    fsgsbase: bool,
    modes: Vec<u32>,
    /// How the model decodes.
    pub(crate) options: u32,
    untried: Counts,
    /// Control words of floating point are rarely those after reset.
    any_control: bool,
}

const RSP: usize = 4;
const RBP: usize = 5;
const RSI: usize = 6;
const RDI: usize = 7;

impl Generator {
    /// A generator of the forms that `model` has and `wanted` likes, for code of `bits` (64, 32, 16) bits. `ldt` and
    /// `fsgsbase`: the host lets programs use them.
    pub fn new(
        model: &CpuModel,
        wanted: impl Fn(Code) -> bool,
        bits: &[u32],
        ldt: bool,
        fsgsbase: bool,
    ) -> Self {
        let mut claimed = vec![false; Code::values().len()];
        let mut lanes = vec![Kind::Int; claimed.len()];
        for c in Code::values() {
            claimed[c as usize] = forms::claimed(model, c);
            let name = format!("{:?}", c.mnemonic()).to_lowercase();
            let vex = c.op_code().encoding() == EncodingKind::VEX;
            let name = name.strip_prefix('v').filter(|_| vex).unwrap_or(&name);
            lanes[c as usize] = if name == "cvtph2ps" {
                Kind::F16
            } else if name == "cvtps2ph" {
                Kind::NearF16
            } else if name.starts_with('p') && !name.starts_with("perm") {
                Kind::Int
            } else if name.ends_with("ps") || name.ends_with("ss") {
                Kind::F32
            } else if name.ends_with("pd")
                || name.ends_with("sd")
                || name.starts_with("cvtpd")
                || name.starts_with("cvttpd")
                || name.starts_with("cvtsd")
                || name.starts_with("cvttsd")
            {
                Kind::F64
            } else if name.starts_with("cvtps")
                || name.starts_with("cvttps")
                || name.starts_with("cvtss")
                || name.starts_with("cvttss")
            {
                Kind::F32
            } else {
                Kind::Int
            };
        }
        let list =
            |b: u32| -> Vec<Code> { forms::forms(model, b).into_iter().filter(|&c| wanted(c)).collect() };
        let forms = [list(16), list(32), list(64)];
        let mut modes = Vec::new();
        for (b, weight) in [(64, 70), (32, 22), (16, 8)] {
            if bits.contains(&b) && (b != 16 || ldt) && !forms[b as usize / 32].is_empty() {
                modes.extend(std::iter::repeat_n(b, weight));
            }
        }
        let options = model.decoder_options();
        Self {
            forms,
            claimed,
            lanes,
            ldt,
            fsgsbase,
            modes,
            options,
            untried: Counts::default(),
            any_control: false,
        }
    }

    /// No form passes the filter.
    pub fn is_empty(&self) -> bool {
        self.modes.is_empty()
    }

    /// Has cases begin with any rounding, precision and masks: for floating point alone.
    pub fn with_any_control(mut self) -> Self {
        self.any_control = true;
        self
    }

    /// What has been made and thrown away.
    pub fn untried(&self) -> &Counts {
        &self.untried
    }

    /// The forms tried in a mode.
    pub fn forms(&self, bitness: u32) -> &[Code] {
        &self.forms[bitness as usize / 32]
    }

    /// Case `index` of run `seed`.
    pub fn case(&self, seed: u64, index: u64) -> (Case, Instruction) {
        let mut rng = Rng::new(seed, index);
        loop {
            let mut bitness = rng.pick(&self.modes);
            let slot = (index % BATCH as u64) as usize;
            if bitness == 16 && slot >= BATCH / 2 {
                if self.modes.iter().all(|&m| m == 16) {
                    // 16-bit code reaches the first half of the slots only.
                    return self.idle(slot);
                }
                bitness = self.modes[0];
            }
            let code = rng.pick(self.forms(bitness));
            if let Some(c) = self.attempt(&mut rng, code, bitness, slot) {
                return c;
            }
        }
    }

    /// A case of the form `code`, if one can be made.
    pub fn case_of(&self, seed: u64, index: u64, code: Code, bitness: u32) -> Option<(Case, Instruction)> {
        let mut rng = Rng::new(seed, index);
        let slots = if bitness == 16 { BATCH / 2 } else { BATCH };
        (0..100).find_map(|_| self.attempt(&mut rng, code, bitness, index as usize % slots))
    }

    fn idle(&self, slot: usize) -> (Case, Instruction) {
        let ([fs, gs], base) = fs_gs(self.ldt);
        let mut regs =
            Regs { sel: [sel::DATA, sel::CODE64, sel::DATA, sel::DATA, fs, gs], base, ..Regs::default() };
        regs.rip = code_page(slot / 64) + (slot % 64) as u64 * SLOT + 16;
        let case = blank(regs, &[0x90]);
        let i = decode_as(&case, 64, self.options).0;
        (case, i)
    }

    fn attempt(&self, rng: &mut Rng, code: Code, bitness: u32, slot: usize) -> Option<(Case, Instruction)> {
        let bytes = assemble(rng, code, bitness);
        if bytes.len() > 15 {
            return None;
        }
        // To Intel's an operand-size prefix makes it no instruction, AMD's processors pass over it.
        let keys = matches!(code, Code::Rdpkru | Code::Wrpkru);
        if keys && bytes.iter().take_while(|b| **b != 0x0f).any(|b| *b == 0x66) {
            return None;
        }
        let mut regs = self.registers(rng, code, bitness);
        regs.rip = place_code(rng, slot, bytes.len());
        if bitness == 16 {
            regs.rip -= CODE;
        }
        let mut case = blank(regs, &bytes);
        let (i, offsets) = decode_as(&case, bitness, self.options);
        if i.is_invalid() {
            // Too short: another form has come out, whose other bytes stand behind.
            let mut longer = case;
            longer.code_len = 15;
            if decode_as(&longer, bitness, self.options).0.len() > bytes.len() {
                return None;
            }
            if (case.regs.rip_linear() & 0xfff) + 15 > 0x1000 {
                return None;
            }
            return (i.len() <= bytes.len() && !bytes.is_empty() && rng.chance(25)).then_some((case, i));
        }
        if i.len() != bytes.len()
            || !self.claimed[i.code() as usize]
            || !self.fsgsbase && uses_fsgsbase(i.mnemonic())
        {
            return None;
        }
        if i.mnemonic() == Mnemonic::Int && i.immediate8() == 0x80 {
            return None;
        }
        let mut setup = Setup { rng, case: &mut case, i, offsets, bitness, ldt: self.ldt };
        setup.implicit();
        setup.memory(self.lanes[i.code() as usize]);
        setup.stack();
        setup.end();
        if !matches!(forms::group(i.code()), "integer" | "string" | "flow" | "stack" | "bmi") {
            case.regs.rflags &= !(1 << 18);
        }
        let i = decode_as(&case, bitness, self.options).0;
        if let Some(why) = untried::reason(&case, &i) {
            self.untried.note(why);
            return None;
        }
        Some((case, i))
    }

    pub(crate) fn registers(&self, rng: &mut Rng, code: Code, bitness: u32) -> Regs {
        let mut r = Regs::default();
        for v in &mut r.gpr {
            *v = values::int(rng);
        }
        if bitness != 64 {
            for v in &mut r.gpr[..8] {
                *v &= 0xffff_ffff;
            }
        }
        r.rflags = 0x202 | rng.u64() & 0x8d5;
        if rng.chance(15) {
            r.rflags |= 0x400;
        }
        if rng.chance(4) {
            r.rflags |= 1 << 18;
        }
        let data = [sel::DATA; 8];
        let ([fs, gs], base) = fs_gs(self.ldt);
        r.base = base;
        r.sel = match bitness {
            64 => [sel::DATA, sel::CODE64, sel::DATA, sel::DATA, fs, gs],
            32 => [sel::DATA, sel::CODE32, sel::DATA, sel::DATA, fs, gs],
            _ => [sel::DATA16, sel::CODE16, sel::DATA16, sel::DATA16, fs, gs],
        };
        if bitness != 64 && self.ldt && rng.chance(20) {
            for n in [0, 3] {
                let odd = [
                    sel::ldt(1),
                    sel::ldt(2),
                    sel::ldt(3),
                    sel::ldt(6),
                    sel::ldt(6),
                    sel::CODE32,
                    0,
                    sel::DATA,
                ];
                let list = if rng.chance(70) { &odd } else { &data };
                r.sel[n] = rng.pick(list);
            }
        }
        self.floating_point(rng, &mut r, code);
        r
    }

    fn floating_point(&self, rng: &mut Rng, r: &mut Regs, code: Code) {
        let x87 = forms::group(code) == "x87";
        let usual = match (self.any_control, x87) {
            (true, _) => 8,
            (false, true) => 40,
            (false, false) => 80,
        };
        let cw: u16 = if rng.chance(usual) {
            0x37f
        } else {
            (rng.u64() as u16 & 0xf3f | 0x40) | if rng.chance(70) { 0x3f } else { 0 }
        };
        let mut sw = rng.u64() as u16 & 0x7f00;
        if rng.chance(25) {
            sw |= rng.u64() as u16 & 0x7f;
            if rng.chance(90) {
                sw &= !0x3f | cw;
            }
        }
        if sw & !cw & 0x3f != 0 {
            sw |= 0x8080;
        }
        r.put_fx(0, &cw.to_le_bytes());
        r.put_fx(2, &sw.to_le_bytes());
        r.fx[4] = match rng.below(10) {
            0..7 => 0xff,
            7 => 0,
            _ => rng.u64() as u8,
        };
        r.put_fx(6, &(rng.u64() as u16 & 0x7ff).to_le_bytes());
        r.put_fx(8, &(LOW + rng.below(0x1000)).to_le_bytes());
        r.put_fx(16, &(LOW + rng.below(0x1000)).to_le_bytes());
        for n in 0..8 {
            let (exp, mant) = if x87 || rng.chance(20) {
                values::f80(rng)
            } else {
                (if rng.chance(80) { 0xffff } else { rng.u64() as u16 }, values::int(rng))
            };
            r.put_fx(32 + 16 * n, &mant.to_le_bytes());
            r.put_fx(40 + 16 * n, &exp.to_le_bytes());
        }
        if x87 && rng.chance(30) {
            // Two operands whose exponents are near each other.
            let (exp, _) = r.st(0);
            let near =
                exp.wrapping_add(rng.below(130) as u16).wrapping_sub(65) & 0x7fff | rng.u64() as u16 & 0x8000;
            let mant = 1 << 63 | rng.u64();
            let n = rng.below(8) as usize;
            r.put_fx(32 + 16 * n, &mant.to_le_bytes());
            r.put_fx(40 + 16 * n, &near.to_le_bytes());
        }
        let lane = self.lanes[code as usize];
        let mxcsr: u32 = if rng.chance(if self.any_control { 8 } else { 45 }) {
            0x1f80
        } else {
            let mut v = rng.u32() & 0xffff;
            if rng.chance(60) {
                v |= 0x1f80;
            }
            if rng.chance(60) {
                v &= !0x8040;
            }
            v
        };
        r.put_fx(24, &mxcsr.to_le_bytes());
        for n in 0..16 {
            let kind = match rng.below(10) {
                0 => Kind::Int,
                1 => Kind::F32,
                2 => Kind::F64,
                _ => lane,
            };
            let mut v = [0; 16];
            values::fill(rng, kind, &mut v);
            r.put_fx(160 + 16 * n, &v);
        }
        // Upper halves of YMM registers: now and then all in their initial state.
        if !rng.chance(10) {
            for n in 0..16 {
                let mut v = [0; 16];
                let kind = if rng.chance(90) { lane } else { Kind::Int };
                values::fill(rng, kind, &mut v);
                r.put_ymm_high(n, u128::from_le_bytes(v));
            }
        }
    }
}

fn uses_fsgsbase(m: Mnemonic) -> bool {
    matches!(m, Mnemonic::Rdfsbase | Mnemonic::Rdgsbase | Mnemonic::Wrfsbase | Mnemonic::Wrgsbase)
}

/// Bytes of an XSAVE area with the components that are tried: x87, SSE and AVX.
pub(crate) const SAVE_LEN: u64 = 832;

fn blank(regs: Regs, bytes: &[u8]) -> Case {
    let mut code = [0; 15];
    code[..bytes.len()].copy_from_slice(bytes);
    Case {
        regs,
        code,
        code_len: bytes.len() as u8,
        end: End::Breakpoint,
        patches: 0,
        patch: [Patch::NONE; PATCHES],
    }
}

/// The instruction of a case as AMD's processors decode it, whose outcomes recorded rows are, and where its constants
/// stand.
pub fn decode(case: &Case, bitness: u32) -> (Instruction, ConstantOffsets) {
    decode_as(case, bitness, DecoderOptions::AMD)
}

/// The same as another model decodes it: `options` are [`CpuModel::decoder_options`].
pub fn decode_as(case: &Case, bitness: u32, options: u32) -> (Instruction, ConstantOffsets) {
    let mut d = Decoder::with_ip(bitness, case.bytes(), case.regs.rip, options);
    let i = d.decode();
    let o = d.get_constant_offsets(&i);
    (i, o)
}

/// Where the code of a case stands: anywhere in its slot; at the end of a page sometimes so that it crosses into the
/// next one, which may not be there.
fn place_code(rng: &mut Rng, slot: usize, len: usize) -> u64 {
    let page = code_page(slot / 64);
    match slot % 64 {
        0 => page + 16 + rng.below(17),
        63 if rng.chance(60) => page + 4096 - 1 - rng.below(len as u64),
        n => page + n as u64 * SLOT + rng.below(32),
    }
}

/// Completes a case. Alignment is checked (EFLAGS.AC) only for instructions on general registers: what it means for
/// others depends on the processor.
struct Setup<'a> {
    rng: &'a mut Rng,
    case: &'a mut Case,
    i: Instruction,
    offsets: ConstantOffsets,
    bitness: u32,
    ldt: bool,
}

impl Setup<'_> {
    /// An address in data memory for `size` bytes.
    fn target(&mut self, size: u64, high: bool) -> u64 {
        let r = &mut *self.rng;
        let size = size.max(1);
        let align = size.next_power_of_two().min(64);
        let any = LOW + r.below(LOW_LEN - size - 64);
        match r.below(100) {
            0..62 => any & !(align - 1),
            62..80 => any,
            80..87 => LOW + 0x1000 * (1 + r.below(3)) - r.below(size + 1),
            87..90 => LOW + LOW_LEN - r.below(size + 1),
            90..92 => LOW.wrapping_sub(r.below(size + 1)),
            92..94 => READ_ONLY + r.below(0x1000 - size.min(0xf00)),
            94..98 if high => HIGH + r.below(HIGH_LEN - size),
            98 if high => r.pick(&[
                0,
                0x8000_0000_0000 - r.clone().below(20),
                0xffff_7fff_ffff_fff8,
                0xffff_8000_0000_1000,
                !0,
                !7,
                8,
            ]),
            _ => any & !15,
        }
    }

    fn reg(&mut self, n: usize, v: u64) {
        self.case.regs.gpr[n] = if self.bitness == 64 { v } else { v & 0xffff_ffff };
    }

    /// The base of a segment register in this case.
    fn base(&self, r: Register) -> u64 {
        let n = match r {
            Register::ES => 0,
            Register::CS => 1,
            Register::SS => 2,
            Register::DS => 3,
            Register::FS => return self.case.regs.base[0],
            Register::GS => return self.case.regs.base[1],
            _ => return 0,
        };
        if self.bitness == 64 {
            return 0;
        }
        let s = self.case.regs.sel[n];
        if s & 4 != 0 { LDT.get(usize::from(s >> 3)).map_or(0, |d| u64::from(d.base)) } else { 0 }
    }

    /// A selector worth loading.
    fn selector(&mut self) -> u16 {
        let r = &mut *self.rng;
        let known =
            [0, 1, 3, sel::DATA, sel::DATA, sel::CODE32, sel::CODE64, 0x63, 0x28, 0x29, 8, 0x10, 0x18, 0x1b];
        match r.below(20) {
            0 => 0x70 | r.below(4) as u16,
            1 => 0x80 + (r.below(64) as u16) * 8,
            2..7 if self.ldt => sel::ldt(r.below(11) as u16),
            7 if self.ldt => (r.below(16) as u16) << 3 | 4 | r.below(4) as u16,
            _ => match r.pick(&known) {
                sel::CODE64 if self.bitness == 16 => sel::CODE32,
                s => s,
            },
        }
    }

    /// A selector for code.
    fn code_selector(&mut self) -> u16 {
        match self.rng.below(10) {
            // With a 16-bit stack the kernel does not get back to 64-bit code.
            0..3 if self.bitness != 16 => sel::CODE64,
            0..6 => sel::CODE32,
            6 if self.ldt => sel::CODE16,
            7 if self.ldt => sel::ldt(5),
            _ => self.selector(),
        }
    }

    /// Where code may go on.
    fn code_target(&mut self) -> u64 {
        match self.rng.below(12) {
            0 => values::int(self.rng),
            1 => 0x8000_0000_0000 - self.rng.below(3),
            2 => self.rng.below(0x1_0000),
            _ => CODE + self.rng.below(0x7000),
        }
    }

    /// Values for registers with a special use, and for memory operands' contents that must fit them.
    fn implicit(&mut self) {
        use Mnemonic::*;
        let string = (0..self.i.op_count())
            .any(|n| (OpKind::MemorySegSI..=OpKind::MemoryESRDI).contains(&self.i.op_kind(n)));
        if string {
            let size = self.i.memory_size().size() as u64;
            for (n, s) in [(RSI, self.i.memory_segment()), (RDI, Register::ES)] {
                let s = if matches!(self.i.mnemonic(), Maskmovq | Maskmovdqu | Vmaskmovdqu) {
                    self.i.memory_segment()
                } else {
                    s
                };
                let high = self.address_size() == 64;
                let t = self.target(size, high).wrapping_sub(self.base(s));
                let junk = if self.address_size() < 64 && self.rng.chance(30) { self.rng.u64() } else { 0 };
                let mask = self.address_mask();
                self.reg(n, t & mask | junk & !mask);
            }
            if self.i.has_rep_prefix() || self.i.has_repne_prefix() {
                let n = if self.rng.chance(5) { self.rng.below(400) } else { self.rng.below(20) };
                self.reg(1, n);
            }
            if self.rng.chance(30) {
                self.case.regs.rflags |= 0x400;
            }
            if self.rng.chance(50) && matches!(self.i.mnemonic(), Scasb | Scasw | Scasd | Scasq) {
                let t = self.case.regs.gpr[RDI];
                let v = self.case.regs.gpr[0].to_le_bytes();
                self.case.patch(t.wrapping_add(self.base(Register::ES)), &v);
            }
        }
        match self.i.mnemonic() {
            Div | Idiv if self.rng.chance(70) => {
                let small = self.rng.pick(&[0, 0, 1, 2, u64::MAX, 0xff, 0x7f]);
                if self.i.memory_size().size() == 1 || self.i.op0_register().is_gpr8() {
                    let v = self.rng.u64() >> self.rng.below(16);
                    self.reg(0, v);
                } else {
                    self.reg(2, small);
                }
                if self.rng.chance(50) {
                    let v = (self.case.regs.gpr[0] as i64 >> 63) as u64;
                    self.reg(2, v);
                }
            }
            Bt | Bts | Btr | Btc if self.i.op1_kind() == OpKind::Register && self.rng.chance(90) => {
                let n = self.i.op1_register().full_register().number();
                let v = self.rng.below(0x2000).wrapping_sub(0x1000);
                self.reg(n, v);
            }
            Loop | Loope | Loopne | Jcxz | Jecxz | Jrcxz if self.rng.chance(60) => {
                let v = self.rng.pick(&[0, 1, 2, 0x1_0000, 0x1_0001, 1 << 32, 1 << 32 | 1]);
                self.reg(1, v);
            }
            Pcmpestri | Pcmpestrm | Pcmpistri | Pcmpistrm | Vpcmpestri | Vpcmpestrm | Vpcmpistri
            | Vpcmpistrm | Vpcmpestri64 | Vpcmpestrm64 => {
                for n in [0, 2] {
                    let v = self.rng.below(40).wrapping_sub(20);
                    self.reg(n, v);
                }
                let few = self.rng.below(8) as u8 + 1;
                for n in 0..16 {
                    if self.rng.chance(60) {
                        let mut v = [0; 16];
                        self.rng.fill(&mut v);
                        let zero = self.rng.below(20) as usize;
                        for (at, b) in v.iter_mut().enumerate() {
                            *b = if at == zero { 0 } else { b'a' + *b % few };
                        }
                        self.case.regs.put_fx(160 + 16 * n, &v);
                    }
                }
            }
            Xsave | Xsave64 | Xsaveopt | Xsaveopt64 | Xsavec | Xsavec64 | Xrstor | Xrstor64 | Xsaves
            | Xsaves64 | Xrstors | Xrstors64 => {
                let v = self.rng.below(8) | (self.rng.u64() & !0xffff_ffff);
                self.reg(0, v);
                self.reg(2, 0);
            }
            Rdpkru | Wrpkru => {
                // Key 0 keeps its rights: the process that runs the case has its own memory by it.
                let rights = self.rng.u64() & !3;
                self.reg(0, rights);
                for n in [1, 2] {
                    let v = self.rng.u64() & !0xffff_ffff | u64::from(self.rng.chance(20));
                    self.reg(n, v);
                }
            }
            Verr | Verw | Lar | Lsl if self.rng.chance(80) => {
                let s = u64::from(self.selector());
                for n in 0..self.i.op_count() {
                    if self.i.op_kind(n) == OpKind::Register {
                        let r = self.i.op_register(n).full_register().number();
                        self.reg(r, s);
                    }
                }
            }
            Mov if self.i.op0_kind() == OpKind::Register && self.i.op0_register().is_segment_register() => {
                let s = u64::from(self.selector());
                if self.i.op1_kind() == OpKind::Register {
                    let junk = if self.rng.chance(50) { 0 } else { self.rng.u64() << 16 };
                    let r = self.i.op1_register().full_register().number();
                    self.reg(r, s | junk);
                }
            }
            Jmp | Call if self.i.op0_kind() == OpKind::Register => {
                let t = self.code_target();
                let r = self.i.op0_register().full_register().number();
                self.reg(r, t);
            }
            Vmaskmovps | Vmaskmovpd | Vpmaskmovd | Vpmaskmovq => {
                let mask = self.i.op1_register().number();
                self.mask(mask);
            }
            m if forms::is_fused(m) && self.rng.chance(40) => self.cancel(),
            Xlatb => {
                let high = self.address_size() == 64;
                let al = self.case.regs.gpr[0] & 0xff;
                let t =
                    self.target(1, high).wrapping_sub(al).wrapping_sub(self.base(self.i.memory_segment()));
                self.reg(3, t);
            }
            _ => {}
        }
        if matches!(self.i.op0_kind(), OpKind::FarBranch16 | OpKind::FarBranch32) && self.rng.chance(85) {
            let at = self.i.len();
            let s = self.code_selector().to_le_bytes();
            self.case.code[at - 2..at].copy_from_slice(&s);
            let t = self.code_target().to_le_bytes();
            let n = if self.i.op0_kind() == OpKind::FarBranch16 { 2 } else { 4 };
            self.case.code[at - 2 - n..at - 2].copy_from_slice(&t[..n]);
        }
    }

    /// Address size in bits.
    fn address_size(&self) -> u32 {
        for n in 0..self.i.op_count() {
            match self.i.op_kind(n) {
                OpKind::MemorySegSI | OpKind::MemorySegDI | OpKind::MemoryESDI => return 16,
                OpKind::MemorySegESI | OpKind::MemorySegEDI | OpKind::MemoryESEDI => return 32,
                OpKind::MemorySegRSI | OpKind::MemorySegRDI | OpKind::MemoryESRDI => return 64,
                OpKind::Memory => {
                    let b = self.i.memory_base();
                    let r = if b != Register::None { b } else { self.i.memory_index() };
                    let by_register = r.size() as u32 * 8;
                    return if by_register != 0 {
                        by_register
                    } else {
                        match self.i.memory_displ_size() {
                            n @ (2 | 4 | 8) => n * 8,
                            _ => self.bitness,
                        }
                    };
                }
                _ => {}
            }
        }
        self.bitness
    }

    fn address_mask(&self) -> u64 {
        match self.address_size() {
            16 => 0xffff,
            32 => 0xffff_ffff,
            _ => u64::MAX,
        }
    }

    /// Makes the memory operand, if there is one, point to data memory, and puts a value there.
    fn memory(&mut self, lane: Kind) {
        use Mnemonic::*;
        if !(0..self.i.op_count()).any(|n| self.i.op_kind(n) == OpKind::Memory) || self.i.mnemonic() == Xlatb
        {
            return;
        }
        let m = self.i.mnemonic();
        let save = matches!(
            m,
            Xsave
                | Xsave64
                | Xsaveopt
                | Xsaveopt64
                | Xsavec
                | Xsavec64
                | Xrstor
                | Xrstor64
                | Fxsave
                | Fxsave64
                | Fxrstor
                | Fxrstor64
        );
        if self.i.is_vsib() {
            self.gather();
            return;
        }
        let size = if save { SAVE_LEN } else { self.i.memory_size().size() as u64 };
        let mut high = self.address_size() == 64;
        if self.i.memory_base() == Register::RIP || self.i.memory_base() == Register::None {
            high = false;
        }
        let mut t = self.target(size.max(1), high);
        if save && self.rng.chance(90) {
            t = LOW + self.rng.below(50) * 64;
        }
        let t = self.lead_to(t);
        let far = self.i.is_jmp_far_indirect() || self.i.is_call_far_indirect();
        if self.rng.chance(15) && !save && !far {
            return;
        }
        let gpr = self.case.regs.gpr;
        let mut v = [0u8; 64];
        let n = (size as usize).min(64);
        let kind = match self.i.memory_size() {
            MemorySize::Float80 => Kind::F80,
            s => match s.element_type() {
                MemorySize::Float16 => Kind::F16,
                MemorySize::Float32 => Kind::F32,
                MemorySize::Float64 => Kind::F64,
                _ if n == 16 => lane,
                _ => Kind::Int,
            },
        };
        values::fill(self.rng, kind, &mut v[..n]);
        match m {
            Cmpxchg if self.rng.chance(50) => v[..8].copy_from_slice(&gpr[0].to_le_bytes()),
            Cmpxchg8b if self.rng.chance(50) => {
                v[..4].copy_from_slice(&gpr[0].to_le_bytes()[..4]);
                v[4..8].copy_from_slice(&gpr[2].to_le_bytes()[..4]);
            }
            Cmpxchg16b if self.rng.chance(50) => {
                v[..8].copy_from_slice(&gpr[0].to_le_bytes());
                v[8..16].copy_from_slice(&gpr[2].to_le_bytes());
            }
            Ldmxcsr => {
                if self.rng.chance(90) {
                    v[2] = 0;
                    v[3] = 0;
                }
            }
            Jmp | Call => {
                let to = self.code_target().to_le_bytes();
                v[..8].copy_from_slice(&to);
                if far {
                    let s = self.code_selector().to_le_bytes();
                    let at = n.saturating_sub(2);
                    v[at..at + 2].copy_from_slice(&s);
                }
            }
            Lds | Les | Lss | Lfs | Lgs => {
                let s = self.selector().to_le_bytes();
                let at = n.saturating_sub(2);
                v[at..at + 2].copy_from_slice(&s);
            }
            Mov if self.i.op0_kind() == OpKind::Register && self.i.op0_register().is_segment_register() => {
                v[..2].copy_from_slice(&self.selector().to_le_bytes());
            }
            Verr | Verw | Lar | Lsl => v[..2].copy_from_slice(&self.selector().to_le_bytes()),
            Bound => {
                let low = self.rng.u64().to_le_bytes();
                let half = n / 2;
                v[..half].copy_from_slice(&low[..half]);
            }
            _ => {}
        }
        if save {
            self.save_area(t);
            return;
        }
        self.case.patch(t, &v[..n]);
    }

    /// Gives a mask register signs of its own for each element: some, all or none of them.
    fn mask(&mut self, r: usize) {
        let how = self.rng.below(10);
        let mut v = [0u8; 32];
        for (n, c) in v.chunks_mut(4).enumerate() {
            let on = match how {
                0 => true,
                1 => false,
                2 => n < 4,
                3 => n >= 4,
                4 => n == 0,
                _ => self.rng.chance(50),
            };
            let bits = values::int(self.rng) as u32 & !(1 << 31) | u32::from(on) << 31;
            c.copy_from_slice(&bits.to_le_bytes());
        }
        self.put_ymm(r, &v);
    }

    fn put_ymm(&mut self, r: usize, v: &[u8; 32]) {
        self.case.regs.put_fx(160 + 16 * r, &v[..16]);
        self.case.regs.ymm[16 * r..16 * r + 16].copy_from_slice(&v[16..]);
    }

    fn ymm(&self, r: usize) -> [u8; 32] {
        let mut v = [0; 32];
        v[..16].copy_from_slice(&self.case.regs.fx[160 + 16 * r..][..16]);
        v[16..].copy_from_slice(&self.case.regs.ymm[16 * r..16 * r + 16]);
        v
    }

    /// Gives a fused operation on registers an addend that nearly or wholly cancels the product.
    fn cancel(&mut self) {
        if self.i.op2_kind() != OpKind::Register {
            return;
        }
        let r = |n| self.i.op_register(n).number();
        let name = format!("{:?}", self.i.mnemonic());
        let [x, y, z] = if name.contains("132") {
            [r(0), r(2), r(1)]
        } else if name.contains("213") {
            [r(1), r(0), r(2)]
        } else {
            [r(1), r(2), r(0)]
        };
        let (a, b) = (self.ymm(x), self.ymm(y));
        let mut v = [0u8; 32];
        if name.to_lowercase().ends_with('s') {
            for n in (0..32).step_by(4) {
                let f = |v: &[u8; 32]| f32::from_le_bytes([v[n], v[n + 1], v[n + 2], v[n + 3]]);
                let p = (f(&a) * f(&b)).to_bits().wrapping_add(self.rng.below(3) as u32).wrapping_sub(1);
                v[n..n + 4].copy_from_slice(&(p ^ (self.rng.below(2) as u32) << 31).to_le_bytes());
            }
        } else {
            for n in (0..32).step_by(8) {
                let f = |v: &[u8; 32]| f64::from_le_bytes(std::array::from_fn(|k| v[n + k]));
                let p = (f(&a) * f(&b)).to_bits().wrapping_add(self.rng.below(3)).wrapping_sub(1);
                v[n..n + 8].copy_from_slice(&(p ^ self.rng.below(2) << 63).to_le_bytes());
            }
        }
        self.put_ymm(z, &v);
    }

    /// Makes the elements of a gather stand in data memory, each where chance wants it.
    fn gather(&mut self) {
        use Mnemonic::*;
        let (wide_index, size) = match self.i.mnemonic() {
            Vpgatherdd | Vgatherdps => (false, 4),
            Vpgatherdq | Vgatherdpd => (false, 8),
            Vpgatherqd | Vgatherqps => (true, 4),
            _ => (true, 8),
        };
        let mask = self.i.op2_register().number();
        self.mask(mask);
        if self.rng.chance(3) {
            return;
        }
        let scale = u64::from(self.i.memory_index_scale());
        let address = self.address_mask();
        let seg_base = self.base(self.i.memory_segment());
        let mut base = self.i.memory_displacement64();
        let high = self.address_size() == 64 && self.i.memory_base() != Register::None && self.rng.chance(15);
        let centre = if high { HIGH + 0x1000 } else { LOW + 0x2000 };
        if self.i.memory_base() == Register::None {
            let (at, size) = (self.offsets.displacement_offset(), self.offsets.displacement_size());
            base = centre.wrapping_sub(seg_base);
            if size == 4 {
                self.case.code[at..at + 4].copy_from_slice(&(base as u32).to_le_bytes());
                base = base as u32 as i32 as u64;
            }
        } else {
            let n = self.i.memory_base().full_register().number();
            let v = centre.wrapping_sub(seg_base).wrapping_sub(base);
            self.set_address(n, v, address);
            base = base.wrapping_add(self.case.regs.gpr[n]) & address;
        }
        // Faults are to be rare enough that several elements are often gathered.
        let calm = self.rng.chance(70);
        let mut v = [0u8; 32];
        let step = if wide_index { 8 } else { 4 };
        for c in v.chunks_mut(step) {
            let t = if high {
                HIGH.wrapping_add(self.rng.below(HIGH_LEN - 8))
            } else if calm {
                LOW + self.rng.below(LOW_LEN - 8)
            } else {
                self.target(size, false)
            };
            let distance = t.wrapping_sub(seg_base).wrapping_sub(base);
            let index = ((distance as i64) / scale as i64) as u64;
            let junk = if self.rng.chance(3) { self.rng.u64() } else { 0 };
            c.copy_from_slice(&(index ^ junk).to_le_bytes()[..step]);
        }
        let r = self.i.memory_index().number();
        self.put_ymm(r, &v);
    }

    /// What FXRSTOR and XRSTOR read.
    fn save_area(&mut self, t: u64) {
        let mut head = [0u8; 64];
        values::fill(self.rng, Kind::Int, &mut head);
        if self.rng.chance(92) {
            head[26] = 0;
            head[27] = 0;
        }
        if self.rng.chance(50) {
            head[0..2].copy_from_slice(&[0x7f, 3]);
        }
        self.case.patch(t, &head);
        for n in 1..3 {
            let mut v = [0u8; 64];
            values::fill(self.rng, Kind::Int, &mut v);
            for half in [0, 16, 32, 48] {
                let (e, m) = values::f80(self.rng);
                v[half..half + 8].copy_from_slice(&m.to_le_bytes());
                v[half + 8..half + 10].copy_from_slice(&e.to_le_bytes());
            }
            self.case.patch(t.wrapping_add(n * 64), &v);
        }
        let mut v = [0u8; 64];
        values::fill(self.rng, Kind::Int, &mut v);
        self.case.patch(t.wrapping_add(576), &v);
        let mut header = [0u8; 64];
        header[0] = self.rng.below(8) as u8;
        if self.rng.chance(8) {
            header[3 + self.rng.below(20) as usize] = self.rng.u64() as u8;
        }
        if self.rng.chance(20) {
            // The compacted format.
            header[8] = self.rng.below(8) as u8;
            header[15] = 0x80;
        }
        self.case.patch(t.wrapping_add(512), &header);
    }

    /// Sets base, index and displacement so that the operand stands at `t`, or near it; returns where it stands.
    fn lead_to(&mut self, t: u64) -> u64 {
        let (base, index) = (self.i.memory_base(), self.i.memory_index());
        let scale = u64::from(self.i.memory_index_scale());
        let disp = self.i.memory_displacement64();
        let (at, size) = (self.offsets.displacement_offset(), self.offsets.displacement_size());
        let mask = self.address_mask();
        let seg_base = self.base(self.i.memory_segment());
        let want = t.wrapping_sub(seg_base) & mask;
        let put =
            |case: &mut Case, v: u64| case.code[at..at + size].copy_from_slice(&v.to_le_bytes()[..size]);
        let number = |r: Register| r.full_register().number();
        let mut final_ea = want;
        if matches!(base, Register::RIP | Register::EIP) {
            let next = self.case.regs.rip.wrapping_add(self.i.len() as u64);
            put(self.case, want.wrapping_sub(next));
        } else if base == Register::None && index == Register::None {
            if size == 8 || self.bitness != 64 || want as i32 as u64 & mask == want {
                put(self.case, want);
            }
        } else if index == Register::None {
            let v = want.wrapping_sub(disp);
            self.set_address(number(base), v, mask);
        } else if base == Register::None {
            let v = if self.rng.chance(60) { self.rng.below(0x1000) } else { values::int(self.rng) & mask };
            let rest = want.wrapping_sub(v.wrapping_mul(scale)) & mask;
            if size >= 4 && (rest as i32 as u64 & mask) == rest {
                put(self.case, rest);
                self.set_address(number(index), v, mask);
            } else {
                let v = want.wrapping_sub(disp) / scale;
                final_ea = v.wrapping_mul(scale).wrapping_add(disp) & mask;
                self.set_address(number(index), v, mask);
            }
        } else if number(base) == number(index) {
            let v = want.wrapping_sub(disp) / (scale + 1);
            final_ea = v.wrapping_mul(scale + 1).wrapping_add(disp) & mask;
            self.set_address(number(base), v, mask);
        } else {
            let v = match self.rng.below(4) {
                0 | 1 => self.rng.below(0x100),
                2 => self.rng.below(0x100).wrapping_neg(),
                _ => self.rng.u64(),
            } & mask;
            self.set_address(number(index), v, mask);
            let v = want.wrapping_sub(disp).wrapping_sub(v.wrapping_mul(scale));
            self.set_address(number(base), v, mask);
        }
        final_ea.wrapping_add(seg_base)
    }

    fn set_address(&mut self, n: usize, v: u64, mask: u64) {
        let junk = if mask != u64::MAX && self.rng.chance(30) { self.rng.u64() } else { 0 };
        self.reg(n, v & mask | junk & !mask);
    }

    /// The stack pointer and what stands on the stack.
    fn stack(&mut self) {
        use Mnemonic::*;
        let base = if self.case.regs.sel[2] == sel::DATA16 { LOW } else { 0 };
        let m = self.i.mnemonic();
        let t = match self.rng.below(20) {
            0 => self.target(8, self.bitness == 64),
            1 => LOW + self.rng.below(0x3000),
            _ => LOW + 0x400 + self.rng.below(0x600) * 8,
        };
        let uses_rsp = self.i.memory_base() == Register::RSP || self.i.memory_base() == Register::ESP;
        if uses_rsp {
            return;
        }
        let sp = t.wrapping_sub(base);
        self.reg(RSP, sp);
        if matches!(m, Enter | Leave) {
            let size = self.rng.pick(&[8u64, 16, 24, 0x100]);
            let v = LOW + 0x800 + self.rng.below(0x400) * 8 + if self.rng.chance(5) { size } else { 0 };
            self.reg(RBP, v.wrapping_sub(base));
            if m == Leave && self.rng.chance(10) {
                let t = self.target(8, self.bitness == 64);
                self.reg(RBP, t);
            }
        }
        let slot = match self.i.stack_pointer_increment().unsigned_abs() as usize {
            _ if matches!(m, Ret | Retf | Iret | Iretd | Iretq) => match self.i.code() {
                Code::Retnw | Code::Retnw_imm16 | Code::Retfw | Code::Retfw_imm16 | Code::Iretw => 2,
                Code::Retnd | Code::Retnd_imm16 | Code::Retfd | Code::Retfd_imm16 | Code::Iretd => 4,
                _ => 8,
            },
            2 => 2,
            4 => 4,
            _ => 8,
        };
        let mut frame: Vec<u64> = Vec::new();
        match m {
            Ret => frame.push(self.code_target()),
            Retf => {
                frame.extend([self.code_target(), u64::from(self.code_selector())]);
            }
            Iret | Iretd | Iretq => {
                let flags = self.rng.u64() & 0x24_4cd5 | 0x302;
                let ss = if self.rng.chance(80) { sel::DATA } else { self.selector() };
                let sp = LOW + self.rng.below(0x1000) * 8;
                frame.extend([self.code_target(), u64::from(self.code_selector()), flags, sp, u64::from(ss)]);
            }
            Popf | Popfd | Popfq => frame
                .push(self.rng.u64() & 0x3f_7fd5 | 2 | if self.rng.chance(10) { self.rng.u64() } else { 0 }),
            Pop if self.i.op0_kind() == OpKind::Register && self.i.op0_register().is_segment_register() => {
                let junk = if self.rng.chance(50) { 0 } else { self.rng.u64() << 16 };
                frame.push(u64::from(self.selector()) | junk);
            }
            _ => {}
        }
        if !frame.is_empty() {
            let bytes: Vec<u8> = frame.iter().flat_map(|v| v.to_le_bytes()[..slot].to_vec()).collect();
            self.case.patch(t, &bytes);
        }
    }

    /// Chooses how the case ends.
    fn end(&mut self) {
        use Mnemonic::*;
        let m = self.i.mnemonic();
        let flow = self.i.flow_control() != FlowControl::Next;
        let step = flow
            || matches!(m, Popf | Popfd | Popfq)
            || self.rng.chance(if self.i.has_rep_prefix() || self.i.has_repne_prefix() { 20 } else { 10 });
        if step {
            self.case.end = End::Step;
            self.case.regs.rflags |= TF;
        }
    }
}
