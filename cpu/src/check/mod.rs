//! The translator checked against the interpreter while a guest runs: compiled code is run, taken back, and its
//! instructions are interpreted; then registers, flags, vectors, the x87 unit and all memory that either has written
//! must be the same.
//!
//! ```text
//!   state, TLB empty --code--> state A, pages written (old contents kept) --back--> state --interpreter, as many instructions--> state B = A?
//! ```
//!
//! * Memory is taken back by pages: with an empty TLB the first write to a page comes through [`Cpu`]'s slow path,
//!   which keeps a copy of it.
//! * What cannot be done twice is not done in checked code: ports, devices, time, and all that changes modes
//!   ([`is_repeatable`]) leaves the code before the instruction, and the interpreter executes it as ever. A device
//!   that is met inside an instruction ends it unfinished; then what has been done is kept unchecked.
//! * Code is checked the first times that it is entered and then now and then, since a check costs some ten thousand
//!   host instructions. Regions do not lead to one another meanwhile: each is entered from here.
//!
//! Others write to memory, too. The other vCPUs stand still meanwhile ([`crate::world::World::exclusive`]). Devices do
//! not: a difference is believed only if it shows each time that the same stretch is checked again ([`ATTEMPTS`]); if
//! it does not, the stretch is void, and what was written meanwhile is put back where neither code nor interpreter has
//! written. Of a page that they have written to only the bytes that have changed are taken back.
//!
//! Flags that the architecture leaves undefined are the host's in code of the baseline. They are not compared where
//! the stretch ends; a stretch that differs and looks at them before (PUSHF does) is not judged.
pub(crate) mod kept;

use crate::block::Block;
use crate::cpu::Cpu;
use crate::event::Exception;
use crate::mode::ModeKey;
use crate::op::{REP, REPNE};
use crate::state::{Shadow, State, fl, gpr, seg};
use crate::tier::{Compiled, LEFT_INTERPRET};
use iced_x86::{
    Code, Decoder, FlowControl, Formatter, Instruction, Mnemonic, NasmFormatter, OpKind, RflagsBits,
};
use mynah_mmu::PAGE_SIZE;
use std::collections::{HashMap, VecDeque};
use std::fmt::Write;
use std::sync::OnceLock;

use kept::{Check, Kept};
pub use kept::{Checked, Report};

/// Times that code is checked when it is new.
const FIRST: u64 = 16;
/// Then one time in so many.
const EVERY: u64 = 1024;
/// Instructions shown before a difference.
const SHOWN: usize = 40;
/// Last instructions of a stretch that are remembered.
const TRAIL: usize = 512;
/// Times that a stretch must show a difference.
const ATTEMPTS: usize = 3;

/// An instruction that was interpreted.
struct Interpreted {
    lin: u64,
    key: u32,
    /// RCX before it.
    rcx: u64,
}

/// A byte of memory that compiled code and interpreter have left differently.
struct Stray {
    at: *mut u8,
    old: u8,
    new: u8,
}

/// How a stretch was left that was executed twice.
struct Twice {
    left: u32,
    /// None if what was done is kept unchecked.
    checked: Option<Comparison>,
}

struct Comparison {
    executed: u64,
    faulted: bool,
    fault: Exception,
    /// What differs, in words.
    differences: Vec<String>,
    /// It differed, and undefined flags were looked at.
    undefined: bool,
    trail: VecDeque<Interpreted>,
    /// Pages that were written to, with what they held.
    written: Vec<Kept>,
    strays: Vec<Stray>,
}

impl Cpu {
    /// Has compiled code checked: all of it (`all`), or what is new and a sample of the rest.
    pub fn check_translator(&mut self, all: bool, report: Report) {
        let every = if all { 1 } else { EVERY };
        let (entered, done) = (HashMap::new(), Checked::default());
        self.check = Some(Box::new(Check { report, every, entered, done, failed: false }));
        self.flush_blocks();
    }

    /// What has been checked so far.
    pub fn checked(&self) -> Checked {
        self.check.as_ref().map(|c| c.done).unwrap_or_default()
    }

    /// Whether what is done now may have to be taken back.
    #[inline(always)]
    pub fn is_tentative(&self) -> bool {
        self.kept.is_some()
    }

    /// A page is about to be written to, or made ready for that.
    pub(crate) fn keep_page(&mut self, host: *mut u8) {
        let Some(kept) = &mut self.kept else { return };
        let page = (host as usize & !(PAGE_SIZE as usize - 1)) as *mut u8;
        if kept.iter().any(|k| k.0 == page) {
            return;
        }
        let mut copy = Box::new([0; PAGE_SIZE as usize]);
        // SAFETY: the slow path of memory accesses gives addresses in pages of RAM, which is mapped as long as `mem`
        // lives.
        unsafe { copy.as_mut_ptr().copy_from_nonoverlapping(page, PAGE_SIZE as usize) };
        kept.push((page, copy));
    }

    /// Whether this entry of the code of `block` is to be checked.
    pub(crate) fn wants_check(&mut self, block: &Block) -> bool {
        let Some(c) = &mut self.check else { return false };
        if c.failed {
            return false;
        }
        let n = c.entered.entry((block.phys, block.key)).or_insert(0);
        *n += 1;
        *n <= FIRST || *n % c.every == 0
    }

    /// Enters code and checks it. Returns why it was left, as the code does. No other vCPU runs.
    pub(crate) fn enter_checked(&mut self, code: &Compiled) -> u32 {
        self.leave_host_float();
        let before = self.state.clone();
        let (current, count) = (self.blocks.current, self.icount);
        let mut strays = Vec::new();
        for attempt in 1.. {
            self.icount = count;
            let Twice { left, checked } = self.execute_twice(code, &before);
            let Some(mut c) = checked else {
                if let Some(check) = &mut self.check {
                    check.done.unchecked += 1;
                }
                put_back(&strays);
                return left;
            };
            self.blocks.current = current;
            if !c.differences.is_empty() && attempt < ATTEMPTS {
                let now: Vec<Kept> = c.written.iter().map(|k| (k.0, copy_of(k.0))).collect();
                take_back(&c.written, &now);
                self.state = before.clone();
                self.sync_events();
                strays.append(&mut c.strays);
                continue;
            }
            let text = (!c.differences.is_empty()).then(|| self.describe(&before, left, &c));
            if let Some(check) = &mut self.check {
                if c.undefined {
                    check.done.unchecked += 1;
                } else {
                    check.done.entries += 1;
                    check.done.instructions += c.executed;
                }
                if let Some(text) = text {
                    check.failed = true;
                    (check.report)(text);
                } else if attempt > 1 {
                    check.done.void += 1;
                    put_back(&strays);
                }
            }
            self.icount = count.wrapping_add(c.executed);
            (self.faulted, self.fault) = (c.faulted, c.fault);
            self.from = (std::ptr::null(), 0);
            return left;
        }
        LEFT_INTERPRET
    }

    /// Executes code, takes back what it has done, and interprets its instructions; what that has done stays.
    fn execute_twice(&mut self, code: &Compiled, before: &State) -> Twice {
        let count = self.icount;
        self.faulted = false;
        self.start_keeping();
        // SAFETY: as in `run_code`: installed code, with this vCPU.
        let left = unsafe { (code.enter)(self, code.ops, before.gpr[gpr::RIP], code.code) };
        self.leave_host_float();
        let (faulted, fault) = (self.faulted, self.fault);
        let after = self.state.clone();
        let first = self.kept.take().unwrap_or_default();
        let executed = self.icount.wrapping_sub(count);
        let stopped = left != LEFT_INTERPRET && left >= 4 && !faulted;
        if std::mem::take(&mut self.device_met) || stopped && left == 4 {
            // Unfinished: what was done is kept, and the interpreter goes on from there.
            self.tlb.flush_all();
            self.faulted = faulted;
            return Twice { left: if faulted { left } else { LEFT_INTERPRET }, checked: None };
        }
        let results: Vec<Kept> = first.iter().map(|k| (k.0, copy_of(k.0))).collect();
        take_back(&first, &results);
        self.state = before.clone();
        // The code may have changed IF.
        self.sync_events();
        self.start_keeping();
        let mut trail = VecDeque::new();
        let mut differences = self.repeat(executed, faulted.then_some(fault), &mut trail);
        let mut written = self.kept.take().unwrap_or_default();
        self.tlb.flush_all();
        // Code that is left behind a STI has the next instruction interpreted before events are looked at.
        self.end_shadow();
        let interpreted = self.state.clone();
        differences.extend(compare_states(&interpreted, &after, || self.undefined_flags(&trail, faulted).0));
        // What the code has not written to was in its time as the interpreter found it.
        let translated = written.iter().map(|w| results.iter().find(|r| r.0 == w.0).unwrap_or(w).1.clone());
        let mut pairs: Vec<Kept> = written.iter().map(|w| w.0).zip(translated).collect();
        for (old, result) in first.into_iter().zip(results) {
            if pairs.iter().all(|p| p.0 != result.0) {
                pairs.push(result);
                written.push(old);
            }
        }
        let strays = self.compare_pages(&pairs, &written, &mut differences);
        let undefined = !differences.is_empty() && self.undefined_flags(&trail, faulted).1;
        if undefined {
            differences.clear();
        }
        let comparison =
            Comparison { executed, faulted, fault, differences, undefined, trail, written, strays };
        Twice { left, checked: Some(comparison) }
    }

    fn start_keeping(&mut self) {
        self.tlb.flush_all();
        self.kept = Some(Vec::new());
        self.device_met = false;
    }

    /// Interprets `count` instructions, the last of which raises `fault` if given. Returns what went otherwise.
    fn repeat(
        &mut self,
        count: u64,
        fault: Option<Exception>,
        trail: &mut VecDeque<Interpreted>,
    ) -> Vec<String> {
        let mut done = 0;
        let mut repeating = false;
        while done < count {
            let ip = self.state.gpr[gpr::RIP];
            // A repeated instruction is one, however many iterations it has.
            if !repeating {
                if trail.len() == TRAIL {
                    trail.pop_front();
                }
                let rcx = self.state.gpr[gpr::RCX];
                trail.push_back(Interpreted { lin: self.code_address(), key: self.mode_key, rcx });
            }
            let last = done + 1 == count;
            let (faulted, repeated) = self.interpret_alone();
            if self.device_met {
                return vec![format!("instruction {done} of {count} meets a device when it is interpreted")];
            }
            if faulted {
                let exception = format!("{:x?}", self.fault);
                return match fault {
                    Some(f) if last && f == self.fault => Vec::new(),
                    f => {
                        vec![format!("instruction {done} of {count} raises {exception}; translated: {f:x?}")]
                    }
                };
            }
            // A repeated instruction stops after each iteration.
            repeating = repeated && self.state.gpr[gpr::RIP] == ip;
            if !repeating {
                done += 1;
            }
        }
        match fault {
            Some(f) => vec![format!("the last instruction raises no exception; translated: {f:x?}")],
            None => Vec::new(),
        }
    }

    /// Interprets the instruction at RIP; whether it faulted, and whether it is a repeated one.
    fn interpret_alone(&mut self) -> (bool, bool) {
        self.from = (std::ptr::null(), 0);
        self.faulted = false;
        // STI's is this instruction.
        self.end_shadow();
        let Ok(block) = self.find_block(self.mode_key | ModeKey::SINGLE) else { return (true, false) };
        // SAFETY: `find_block` gives a live block.
        let repeated = unsafe { &*(*block).first() }.flags & (REP | REPNE) != 0;
        self.single = true;
        self.execute(block);
        self.single = false;
        self.from = (std::ptr::null(), 0);
        (self.faulted, repeated)
    }

    fn end_shadow(&mut self) {
        if std::mem::take(&mut self.state.shadow) != Shadow::None {
            self.sync_events();
        }
    }

    fn code_address(&self) -> u64 {
        let base = if self.state.is_long64() { 0 } else { self.state.seg[seg::CS].base };
        self.state.gpr[gpr::RIP].wrapping_add(base)
    }

    /// Adds what differs between pages as the code has left them and as they are now; which bytes that are. `olds`
    /// holds what was in the same pages before.
    fn compare_pages(&self, translated: &[Kept], olds: &[Kept], all: &mut Vec<String>) -> Vec<Stray> {
        let ram = self.mem.ram().base() as u64;
        let mut strays = Vec::new();
        let first = all.len();
        for ((page, translated), (_, old)) in translated.iter().zip(olds) {
            let interpreted = copy_of(*page);
            for n in
                (0..PAGE_SIZE as usize).step_by(8).filter(|&n| interpreted[n..n + 8] != translated[n..n + 8])
            {
                let word = |b: &[u8]| b.iter().rev().fold(0u64, |v, &b| v << 8 | u64::from(b));
                if all.len() < first + 16 {
                    let at = (*page as u64).wrapping_sub(ram) + n as u64;
                    all.push(format!(
                        "RAM at {at:#x}: interpreted {:016x}, translated {:016x}",
                        word(&interpreted[n..n + 8]),
                        word(&translated[n..n + 8])
                    ));
                }
                for n in (n..n + 8).filter(|&n| interpreted[n] != translated[n]) {
                    let new = if interpreted[n] == old[n] { translated[n] } else { interpreted[n] };
                    strays.push(Stray { at: page.wrapping_add(n), old: old[n], new });
                }
            }
        }
        strays
    }

    fn describe(&mut self, before: &State, left: u32, c: &Comparison) -> String {
        let mut s = format!(
            "the translator and the interpreter differ: code at {:#x}, {} instructions, left for reason {left}\n",
            before.gpr[gpr::RIP],
            c.executed
        );
        for d in &c.differences {
            let _ = writeln!(s, "  {d}");
        }
        let _ = writeln!(s, "the last of these instructions:");
        let mut formatter = NasmFormatter::new();
        for done in c.trail.iter().skip(c.trail.len().saturating_sub(SHOWN)) {
            let Some((phys, bytes, i)) = self.decode_again(done) else { continue };
            let mut text = String::new();
            formatter.format(&i, &mut text);
            let hex: String = bytes[..i.len()].iter().map(|b| format!("{b:02x}")).collect();
            let _ = writeln!(s, "  {:016x} [{phys:x}]  {hex:30} {text}", done.lin);
        }
        let _ = writeln!(s, "before: gpr {:x?} rflags {:x}", &before.gpr[..16], before.rflags());
        s
    }

    /// The instruction, with its physical address and bytes from there.
    fn decode_again(&mut self, done: &Interpreted) -> Option<(u64, [u8; 15], Instruction)> {
        let mut bytes = [0; 15];
        let phys = self.peek_code(done.lin, &mut bytes).ok()?;
        let bits = ModeKey(done.key).bitness();
        let options = self.model.decoder_options();
        Some((phys, bytes, Decoder::with_ip(bits, &bytes, done.lin, options).decode()))
    }

    /// The arithmetic flags that are undefined behind these instructions, of which the last has no effect if it
    /// `faulted`; and whether one of them looks at what is undefined before it.
    fn undefined_flags(&mut self, trail: &VecDeque<Interpreted>, faulted: bool) -> (u64, bool) {
        let completed = trail.len() - usize::from(faulted && !trail.is_empty());
        let (mut undefined, mut looks) = (0, false);
        for done in trail.iter().take(completed) {
            if let Some((_, _, i)) = self.decode_again(done) {
                looks |= undefined & flags_of(i.rflags_read()) != 0;
                let (defines, leaves) = effect_on_flags(&i, done.rcx);
                undefined = undefined & !defines | leaves;
            }
        }
        (undefined & fl::ARITH, looks)
    }

    /// Reads code as a fetch would, without leaving a trace of a fault.
    pub(crate) fn peek_code(&mut self, lin: u64, bytes: &mut [u8; 15]) -> Result<u64, ()> {
        let (cr2, fault) = (self.state.cr2, self.fault);
        let mut first = Err(());
        for (n, b) in bytes.iter_mut().enumerate() {
            match self.fetch_page(lin.wrapping_add(n as u64)) {
                Ok((phys, Some(_))) => {
                    *b = self.mem.read_u8(phys);
                    first = first.or(Ok(phys));
                }
                _ => break,
            }
        }
        (self.state.cr2, self.fault) = (cr2, fault);
        first
    }
}

fn copy_of(page: *mut u8) -> Box<[u8; PAGE_SIZE as usize]> {
    let mut copy = Box::new([0; PAGE_SIZE as usize]);
    // SAFETY: see `Cpu::keep_page`, from which the address comes.
    unsafe { copy.as_mut_ptr().copy_from_nonoverlapping(page, PAGE_SIZE as usize) };
    copy
}

/// Restores what `old` holds of pages that hold `new`, byte by byte: what others write meanwhile is to stay where it
/// can.
fn take_back(old: &[Kept], new: &[Kept]) {
    for ((page, old), (_, new)) in old.iter().zip(new) {
        for n in (0..PAGE_SIZE as usize).step_by(8).filter(|&n| old[n..n + 8] != new[n..n + 8]) {
            for n in (n..n + 8).filter(|&n| old[n] != new[n]) {
                // SAFETY: see `Cpu::keep_page`.
                unsafe { page.add(n).write(old[n]) };
            }
        }
    }
}

/// Writes again what others have written and was taken back.
fn put_back(strays: &[Stray]) {
    for s in strays {
        // SAFETY: the address is one in a page from `Cpu::keep_page`.
        unsafe {
            if s.at.read() == s.old {
                s.at.write(s.new);
            }
        }
    }
}

/// The arithmetic flags of RFLAGS among iced's bits for flags.
pub fn flags_of(bits: u32) -> u64 {
    let pairs = [
        (RflagsBits::OF, fl::OF),
        (RflagsBits::SF, fl::SF),
        (RflagsBits::ZF, fl::ZF),
        (RflagsBits::AF, fl::AF),
        (RflagsBits::CF, fl::CF),
        (RflagsBits::PF, fl::PF),
    ];
    pairs.iter().filter(|p| bits & p.0 != 0).fold(0, |all, p| all | p.1)
}

/// The arithmetic flags that an instruction defines, and those that it leaves undefined, with this value of RCX.
pub(crate) fn effect_on_flags(i: &Instruction, rcx: u64) -> (u64, u64) {
    use Mnemonic::{Rcl, Rcr, Rol, Ror, Sal, Sar, Shl, Shld, Shr, Shrd};
    let m = i.mnemonic();
    if !matches!(m, Rcl | Rcr | Rol | Ror | Sal | Sar | Shl | Shld | Shr | Shrd) {
        if (i.has_rep_prefix() || i.has_repne_prefix()) && i.is_string_instruction() && rcx == 0 {
            return (0, 0);
        }
        let defines = i.rflags_written() | i.rflags_cleared() | i.rflags_set();
        return (flags_of(defines), flags_of(i.rflags_undefined()));
    }
    let bits = match i.op0_kind() {
        OpKind::Register => i.op0_register().size(),
        _ => i.memory_size().size(),
    } as u64
        * 8;
    let last = i.op_count().saturating_sub(1);
    let count = if i.op_kind(last) == OpKind::Register { rcx } else { i.immediate(last) };
    let count = count & if bits == 64 { 63 } else { 31 };
    let all = match m {
        Rcl | Rcr | Rol | Ror => fl::CF | fl::OF,
        _ => fl::ARITH,
    };
    // SDM volume 2: SAL/SAR/SHL/SHR, SHLD, SHRD, RCL/RCR/ROL/ROR.
    let undefined = match (m, count) {
        (_, 0) => return (0, 0),
        (Rcl | Rcr | Rol | Ror, 1) => 0,
        (Rcl | Rcr | Rol | Ror, _) => fl::OF,
        (Shld | Shrd, n) if n > bits => all,
        (_, 1) => fl::AF,
        (Sal | Shl | Shr, n) if n >= bits => fl::AF | fl::OF | fl::CF,
        _ => fl::AF | fl::OF,
    };
    (all & !undefined, undefined)
}

/// What differs between two states but for flags that are undefined.
fn compare_states(interpreted: &State, translated: &State, undefined: impl FnOnce() -> u64) -> Vec<String> {
    if interpreted == translated {
        return Vec::new();
    }
    let (i, mut t) = (interpreted.with_packed_flags(), translated.with_packed_flags());
    let flags = i.arith_flags() ^ t.arith_flags();
    if flags != 0 {
        t.set_arith_flags(t.arith_flags() ^ flags & undefined());
    }
    if i == t {
        return Vec::new();
    }
    let mut all = Vec::new();
    macro_rules! field {
        ($($name:expr, $i:expr, $t:expr;)*) => {
            $( if $i != $t { all.push(format!("{}: interpreted {:x?}, translated {:x?}", $name, $i, $t)); } )*
        };
    }
    for (n, name) in [
        "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13",
        "r14", "r15", "zero", "rip",
    ]
    .into_iter()
    .enumerate()
    {
        field! { name, i.gpr[n], t.gpr[n]; }
    }
    for n in 0..i.xmm.len() {
        field! { format!("xmm{n}"), i.xmm[n], t.xmm[n]; }
    }
    field! {
        "rflags", i.rflags(), t.rflags();
        "mxcsr", i.mxcsr, t.mxcsr;
        "x87", i.fpu, t.fpu;
        "segments", i.seg, t.seg;
        "cr2", i.cr2, t.cr2;
    }
    if all.is_empty() {
        all.push("another part of the state".into());
    }
    all
}

/// Whether executing an instruction, taking all it did back and executing it again does the same, and touches nothing
/// but registers, flags and memory; for instructions that compiled code calls the interpreter for.
pub fn is_repeatable(code: Code) -> bool {
    static ALL: OnceLock<Vec<bool>> = OnceLock::new();
    let all = ALL.get_or_init(|| Code::values().map(repeatable).collect());
    all.get(code as usize).copied().unwrap_or(false)
}

fn repeatable(code: Code) -> bool {
    use Mnemonic::*;
    let op = code.op_code();
    let far = matches!(code.mnemonic(), Retf | Iret | Iretd | Iretq | Syscall | Sysret | Sysenter | Sysexit)
        || op.op_kinds().iter().any(|k| {
            use iced_x86::OpCodeOperandKind as K;
            matches!(k, K::farbr2_2 | K::farbr4_2 | K::seg_reg | K::cr_reg | K::dr_reg)
        })
        || code.is_jmp_far()
        || code.is_call_far()
        || code.is_jmp_far_indirect()
        || code.is_call_far_indirect();
    let plain_flow = !matches!(
        code.flow_control(),
        FlowControl::Interrupt | FlowControl::XbeginXabortXend | FlowControl::Exception
    );
    let special = matches!(
        code.mnemonic(),
        In | Out
            | Insb
            | Insw
            | Insd
            | Outsb
            | Outsw
            | Outsd
            | Rdtsc
            | Rdtscp
            | Rdrand
            | Rdseed
            | Rdpmc
            | Rdpid
            | Cli
            | Sti
            | Clac
            | Stac
            | Popf
            | Popfd
            | Popfq
            | Lds
            | Les
            | Lss
            | Lfs
            | Lgs
            | Wrfsbase
            | Wrgsbase
            | Swapgs
            | Xrstor
            | Xrstor64
            | Wrpkru
            | Smsw
            | Sgdt
            | Sidt
            | Sldt
            | Str
            | Monitor
            | Mwait
            | Pause
            | Int1
    );
    let pops_segment = matches!(code.mnemonic(), Pop | Mov)
        && (op.op_kinds().iter().any(|k| format!("{k:?}").starts_with("seg")) || is_segment_pop(code));
    !op.must_be_cpl0() && !far && plain_flow && !special && !pops_segment
}

/// POP of a segment register has it in the opcode, as operand of the instruction.
fn is_segment_pop(code: Code) -> bool {
    if code.mnemonic() != Mnemonic::Pop {
        return false;
    }
    let name = format!("{code:?}");
    ["_ES", "_SS", "_DS", "_FS", "_GS"].iter().any(|s| name.ends_with(s))
}
