//! Recorded outcomes: text that needs no host of a kind, one line for a case.
//!
//! ```text
//! 64 by int3 | 480fc8 | rip=10000010 rax=1122 m20000100=0011 | vec=3 rip=10000014 rax=2211000000000000 | 0
//! ```
//!
//! The fields: mode and how the case ends (`int3` behind the instruction, or `step`: TF); the instruction's bytes; the
//! state before, as far as it differs from the default (registers zero, flat segments, RFLAGS 202h, MXCSR 1F80h, x87
//! control word 37Fh, all x87 registers empty); what is different after; the flags that are not compared. `m` is
//! memory: an address and the bytes there. Memory that is not named holds
//! [`background::pattern`]. Numbers are hexadecimal, registers of the x87 stack `exponent:significand`, `ymmh` bits
//! 128-255 of YMM registers.

use crate::background;
use crate::compare::{Difference, compare};
use crate::engines::{Engines, no_run};
use crate::generate::decode;
use crate::habits::Habits;
use crate::layout::*;
use crate::report::hex;
use iced_x86::{Instruction, InstructionInfoFactory};

/// A recorded case.
pub struct Row {
    /// The case.
    pub case: Case,
    /// What the oracle made of it.
    pub want: Box<Outcome>,
}

const GPR: [&str; 16] = [
    "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14",
    "r15",
];
const SEG: [&str; 6] = ["es", "cs", "ss", "ds", "fs", "gs"];

/// The state that a row's state is written as a difference to.
fn default_regs(bitness: u32) -> Regs {
    let ([fs, gs], base) = fs_gs(true);
    let (code, data) = match bitness {
        64 => (sel::CODE64, sel::DATA),
        32 => (sel::CODE32, sel::DATA),
        _ => (sel::CODE16, sel::DATA16),
    };
    Regs { sel: [data, code, data, data, fs, gs], base, ..Regs::default() }
}

/// `now` as far as it differs from `before`.
fn state(before: &Regs, now: &Regs) -> Vec<String> {
    let mut v = Vec::new();
    let mut put = |k: &str, a: u64, b: u64| {
        if a != b {
            v.push(format!("{k}={b:x}"));
        }
    };
    put("rip", before.rip, now.rip);
    for n in 0..16 {
        put(GPR[n], before.gpr[n], now.gpr[n]);
    }
    put("fl", before.rflags, now.rflags);
    for n in 0..6 {
        put(SEG[n], before.sel[n].into(), now.sel[n].into());
    }
    put("fsbase", before.base[0], now.base[0]);
    put("gsbase", before.base[1], now.base[1]);
    put("mxcsr", before.mxcsr().into(), now.mxcsr().into());
    put("fcw", before.fx16(0).into(), now.fx16(0).into());
    put("fsw", before.fx16(2).into(), now.fx16(2).into());
    put("ftw", before.fx[4].into(), now.fx[4].into());
    put("fop", before.fx16(6).into(), now.fx16(6).into());
    put("fip", before.fx64(8), now.fx64(8));
    put("fdp", before.fx64(16), now.fx64(16));
    for n in 0..8 {
        if before.st(n) != now.st(n) {
            let (e, m) = now.st(n);
            v.push(format!("st{n}={e:x}:{m:x}"));
        }
    }
    for n in 0..16 {
        if before.xmm(n) != now.xmm(n) {
            v.push(format!("xmm{n}={:x}", now.xmm(n)));
        }
    }
    for n in 0..16 {
        if before.ymm_high(n) != now.ymm_high(n) {
            v.push(format!("ymmh{n}={:x}", now.ymm_high(n)));
        }
    }
    v
}

fn number(s: &str) -> Result<u64, String> {
    u64::from_str_radix(s, 16).map_err(|_| format!("'{s}' is not a hexadecimal number"))
}

fn bytes(s: &str) -> Result<Vec<u8>, String> {
    if !s.is_ascii() || !s.len().is_multiple_of(2) {
        return Err(format!("'{s}' is no row of bytes"));
    }
    (0..s.len() / 2).map(|n| number(&s[2 * n..2 * n + 2]).map(|v| v as u8)).collect()
}

/// What `apply` does not know.
enum Other {
    Memory(u64, Vec<u8>),
    Vector(u32),
    Error(u32),
    Cr2(u64),
    None,
}

fn apply(r: &mut Regs, word: &str) -> Result<Other, String> {
    let (k, v) = word.split_once('=').ok_or(format!("'{word}' is not of the form name=value"))?;
    if let Some(n) = GPR.iter().position(|g| *g == k) {
        r.gpr[n] = number(v)?;
        return Ok(Other::None);
    }
    if let Some(n) = SEG.iter().position(|g| *g == k) {
        r.sel[n] = number(v)? as u16;
        return Ok(Other::None);
    }
    let index = |rest: &str, below: usize| {
        rest.parse().ok().filter(|n| *n < below).ok_or(format!("'{k}' is no register"))
    };
    match k {
        "rip" => r.rip = number(v)?,
        "fl" => r.rflags = number(v)?,
        "fsbase" => r.base[0] = number(v)?,
        "gsbase" => r.base[1] = number(v)?,
        "mxcsr" => r.put_fx(24, &(number(v)? as u32).to_le_bytes()),
        "fcw" => r.put_fx(0, &(number(v)? as u16).to_le_bytes()),
        "fsw" => r.put_fx(2, &(number(v)? as u16).to_le_bytes()),
        "ftw" => r.fx[4] = number(v)? as u8,
        "fop" => r.put_fx(6, &(number(v)? as u16).to_le_bytes()),
        "fip" => r.put_fx(8, &number(v)?.to_le_bytes()),
        "fdp" => r.put_fx(16, &number(v)?.to_le_bytes()),
        "vec" => return Ok(Other::Vector(number(v)? as u32)),
        "err" => return Ok(Other::Error(number(v)? as u32)),
        "cr2" => return Ok(Other::Cr2(number(v)?)),
        _ => {
            let wide = |v| u128::from_str_radix(v, 16).map_err(|_| format!("'{v}' is no number"));
            if let Some(rest) = k.strip_prefix("xmm") {
                r.put_fx(160 + 16 * index(rest, 16)?, &wide(v)?.to_le_bytes());
            } else if let Some(rest) = k.strip_prefix("ymmh") {
                r.put_ymm_high(index(rest, 16)?, wide(v)?);
            } else if let Some(rest) = k.strip_prefix("st") {
                let n: usize = index(rest, 8)?;
                let (e, m) = v.split_once(':').ok_or(format!("'{v}' is no x87 register"))?;
                r.put_fx(32 + 16 * n, &number(m)?.to_le_bytes());
                r.put_fx(40 + 16 * n, &(number(e)? as u16).to_le_bytes());
            } else if let Some(rest) = k.strip_prefix('m') {
                return Ok(Other::Memory(number(rest)?, bytes(v)?));
            } else {
                return Err(format!("unknown name '{k}'"));
            }
        }
    }
    Ok(Other::None)
}

/// A case with all that the instruction does not use taken away, so that its row is short.
pub fn sparse(case: &Case, i: &Instruction) -> Case {
    let mut c = *case;
    let mut factory = InstructionInfoFactory::new();
    let used = factory.info(i).used_registers();
    let keeps = |n: usize| {
        n == 4 || used.iter().any(|u| u.register().is_gpr() && u.register().full_register().number() == n)
    };
    let vector =
        |n: usize| used.iter().any(|u| u.register().is_vector_register() && u.register().number() == n);
    let blank = default_regs(case.regs.bitness());
    for n in (0..16).filter(|&n| !keeps(n)) {
        c.regs.gpr[n] = 0;
    }
    let save = crate::forms::group(i.code()) == "save";
    for n in (0..16).filter(|&n| !vector(n) && !save) {
        c.regs.put_fx(160 + 16 * n, &[0; 16]);
    }
    for n in (0..16).filter(|&n| !vector(n)) {
        c.regs.put_ymm_high(n, 0);
    }
    // The pointers do not outlive what the kernel may do between two instructions.
    c.regs.put_fx(6, &[0; 18]);
    let group = crate::forms::group(i.code());
    if !matches!(group, "x87" | "mmx" | "save") {
        c.regs.put_fx(0, &blank.fx[0..6]);
        c.regs.put_fx(32, &[0; 128]);
    }
    if matches!(group, "integer" | "flow" | "stack" | "string" | "bmi" | "privileged" | "x87") {
        c.regs.put_fx(24, &0x1f80u32.to_le_bytes());
    }
    c
}

impl Row {
    /// The row's line.
    pub fn line(&self) -> String {
        let c = &self.case;
        let bg = background::pattern();
        let bitness = c.regs.bitness();
        let mut before = state(&default_regs(bitness), &c.regs);
        before
            .extend(c.patches().iter().map(|p| format!("m{:x}={}", p.addr, hex(&p.data[..p.len as usize]))));
        let mut after = vec![format!("vec={:x}", self.want.vector)];
        if self.want.error != 0 {
            after.push(format!("err={:x}", self.want.error));
        }
        if self.want.cr2 != 0 {
            after.push(format!("cr2={:x}", self.want.cr2));
        }
        after.extend(state(&c.regs, &self.want.regs));
        let (old, new) = (c.memory(&bg), self.want.memory(&bg));
        let mut n = 0;
        while n < WRITABLE_LEN {
            let start = n;
            while n < WRITABLE_LEN && old[n] != new[n] {
                n += 1;
            }
            if n > start {
                // Runs stop where addresses do.
                let mut at = start;
                while at < n {
                    let end = n.min((at | 0xfff) + 1);
                    after.push(format!("m{:x}={}", data_address(at), hex(&new[at..end])));
                    at = end;
                }
            }
            n += 1;
        }
        let i = decode(c, bitness).0;
        let flags = crate::compare::flags_ignored(c, &i, &self.want);
        let end = if c.end == End::Step { "step" } else { "int3" };
        format!(
            "{bitness} by {end} | {} | {} | {} | {flags:x}",
            hex(c.bytes()),
            before.join(" "),
            after.join(" ")
        )
    }

    /// Reads a line; `None` for a comment or an empty one.
    pub fn parse(line: &str) -> Result<Option<Self>, String> {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            return Ok(None);
        }
        let fields: Vec<&str> = line.split('|').map(str::trim).collect();
        let [how, code, before, after, _flags] = fields[..] else {
            return Err("a row has five fields".into());
        };
        let (bitness, end) = how.split_once(" by ").ok_or("the first field is 'BITS by END'")?;
        let bitness: u32 = bitness.parse().map_err(|_| format!("'{bitness}' is no mode"))?;
        let end = match end {
            "int3" => End::Breakpoint,
            "step" => End::Step,
            _ => return Err(format!("'{end}' is no end")),
        };
        let code = bytes(code)?;
        if code.len() > 15 {
            return Err("an instruction has at most 15 bytes".into());
        }
        let mut case = Case {
            regs: default_regs(bitness),
            code: [0; 15],
            code_len: code.len() as u8,
            end,
            patches: 0,
            patch: [Patch::NONE; PATCHES],
        };
        case.code[..code.len()].copy_from_slice(&code);
        for w in before.split_whitespace() {
            match apply(&mut case.regs, w)? {
                Other::None => {}
                Other::Memory(at, b) => case.patch(at, &b),
                _ => return Err(format!("'{w}' does not belong to the state before")),
            }
        }
        let mut want = Outcome::new();
        want.regs = case.regs;
        let bg = background::pattern();
        let mut memory = case.memory(&bg);
        for w in after.split_whitespace() {
            match apply(&mut want.regs, w)? {
                Other::None => {}
                Other::Vector(v) => want.vector = v,
                Other::Error(v) => want.error = v,
                Other::Cr2(v) => want.cr2 = v,
                Other::Memory(at, b) => {
                    for (n, b) in b.iter().enumerate() {
                        let o = data_offset(at + n as u64).ok_or(format!("'{w}' is not in data memory"))?;
                        memory[o] = *b;
                    }
                }
            }
        }
        // SAFETY: both are vectors of DATA_LEN bytes of this function.
        unsafe { want.collect(memory.as_mut_ptr(), bg.as_ptr()) };
        Ok(Some(Self { case, want }))
    }

    /// Runs the row with each of `engines`, whose background is [`background::pattern`], and compares.
    pub fn check(&self, engines: &mut Engines) -> Vec<Difference> {
        let mut got = Outcome::new();
        engines.new_batch();
        let i = decode(&self.case, self.case.regs.bitness()).0;
        let (bg, habits) = (background::pattern(), Habits::recorded());
        engines.run(&self.case, &mut got, |ran, got| match ran {
            Err(e) => no_run(&self.want, e),
            Ok(()) => compare(&self.case, &i, &bg, &self.want, got, &habits).differences,
        })
    }
}
