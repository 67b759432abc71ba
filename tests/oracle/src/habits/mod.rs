//! What is not architecture but a processor model's habit (or the host kernel's), and so is passed over where two
//! outcomes differ.
//!
//! Each habit is a line of [`TABLE`] with a name, what it covers, and why it is no fault. What a line passes over is
//! narrow: a function is asked for each place that differs which of its bits may, given the case and both outcomes
//! ([`passes`]). There are three kinds:
//!
//! * *probed*: the deciding instructions run once at the start, on the host and in Mynah ([`probes`]). Where they come
//!   out the same the line passes over nothing, so that on a host that has Mynah's own habits nothing is lost;
//! * *passed over* on all hosts, where the answer depends on more than a few instructions can show;
//! * *passed over elsewhere*, where the outcome is not this host's: in recorded rows, and where portable code is looked
//!   at.
//!
//! A run counts the cases in which something was passed over, by line (`passed over` in its last lines). [`untried`]
//! lists what is not even generated.

mod passes;
pub mod probes;
pub mod untried;

use crate::compare::{Raw, completed};
use crate::layout::*;
use iced_x86::Instruction;

/// What is known of a case and its two outcomes.
pub struct Ctx<'a> {
    /// The case.
    pub case: &'a Case,
    /// Its instruction.
    pub i: &'a Instruction,
    /// What the oracle made of it.
    pub want: &'a Outcome,
    /// What Mynah did.
    pub got: &'a Outcome,
    /// The oracle has completed the instruction.
    pub done: bool,
    /// Flags that the manuals leave undefined here.
    pub undefined: u64,
    /// The x87 unit's pointers are worth looking at.
    pub pointers: bool,
}

impl<'a> Ctx<'a> {
    /// A case of one instruction.
    pub fn new(case: &'a Case, i: &'a Instruction, want: &'a Outcome, got: &'a Outcome) -> Self {
        // FLDENV and FRSTOR load what they like.
        let x87 = crate::forms::group(i.code()) == "x87" && i.memory_size().size() < 14;
        Self {
            case,
            i,
            want,
            got,
            done: completed(case, want),
            undefined: crate::compare::flags_ignored(case, i, want),
            // Without a pending exception they are not the program's any more when the kernel has switched to another
            // process and back.
            pointers: x87 && want.regs.fx16(2) & 0x80 != 0 && case.regs.fx16(2) & 0x80 == 0,
        }
    }
}

/// How a line's answer is come by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// Asked of the host when a run starts.
    Probed,
    /// Passed over on all hosts.
    PassedOver,
    /// Passed over where the outcome is not this host's: in recorded rows, and where portable code stands for the
    /// host's instructions.
    Elsewhere,
}

/// One habit.
pub struct Habit {
    /// Its name.
    pub name: &'static str,
    /// Instructions and outcomes.
    pub covers: &'static str,
    /// The manual's section, or what is known of processors.
    pub why: &'static str,
    /// How it is known whether the host has it.
    pub how: How,
    /// Whether a case is one of those that the line is about.
    applies: fn(&Ctx) -> bool,
    /// The bits of a place that may differ.
    passes: fn(&Ctx, &Raw) -> u128,
}

/// A set of habits, by their index in [`TABLE`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Passed(pub u64);

impl Passed {
    /// None.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }
    /// The union.
    pub fn add(&mut self, o: Self) {
        self.0 |= o.0;
    }
    /// The names of those in the set.
    pub fn names(self) -> impl Iterator<Item = &'static str> {
        TABLE.iter().enumerate().filter(move |(n, _)| self.0 >> n & 1 != 0).map(|(_, h)| h.name)
    }
}

/// Which lines hold in a run.
#[derive(Clone, Debug)]
pub struct Habits {
    on: u64,
}

impl Habits {
    /// What holds for outcomes that were recorded on another processor than this one: of the probed lines the one in
    /// which Mynah has this host's outcome, as it executes the host's instruction.
    pub fn recorded() -> Self {
        Self::with(|h| h.how != How::Probed || h.name == "dot-nan")
    }

    /// What holds for the host's own outcomes, of the probed lines those that `host_has` names.
    pub fn of_host(host_has: impl Fn(&Habit) -> bool) -> Self {
        Self::with(|h| h.how == How::PassedOver || h.how == How::Probed && host_has(h))
    }

    /// The same where Mynah's side is portable code.
    pub fn portable(mut self) -> Self {
        for (n, h) in TABLE.iter().enumerate() {
            if h.how == How::Elsewhere {
                self.on |= 1 << n;
            }
        }
        self
    }

    fn with(f: impl Fn(&Habit) -> bool) -> Self {
        let on = TABLE.iter().enumerate().filter(|(_, h)| f(h)).fold(0, |on, (n, _)| on | 1 << n);
        Self { on }
    }

    /// Whether the line of this name holds.
    pub fn has(&self, name: &str) -> bool {
        TABLE.iter().enumerate().any(|(n, h)| self.on >> n & 1 != 0 && h.name == name)
    }

    /// Takes away what may differ: what is left, and the lines that something was taken away for.
    pub fn pass_over(&self, ctx: &Ctx, mut all: Vec<Raw>) -> (Vec<Raw>, Passed) {
        let mut passed = Passed::default();
        for (n, h) in TABLE.iter().enumerate() {
            if self.on >> n & 1 == 0 || all.is_empty() || !(h.applies)(ctx) {
                continue;
            }
            all.retain_mut(|r| {
                let may = (h.passes)(ctx, r);
                if (r.want ^ r.got) & may == 0 {
                    return true;
                }
                passed.0 |= 1 << n;
                r.got = r.got & !may | r.want & may;
                r.want != r.got
            });
        }
        (all, passed)
    }

    /// The table in words.
    pub fn list(&self) -> String {
        use std::fmt::Write;
        let mut s = String::new();
        for (n, h) in TABLE.iter().enumerate() {
            let how = match (h.how, self.on >> n & 1 != 0) {
                (How::Probed, true) => "probed: the host differs from Mynah",
                (How::Probed, false) => "probed: the host does as Mynah does, nothing is passed over",
                (How::PassedOver, _) => "passed over",
                (How::Elsewhere, _) => {
                    "passed over where the outcome is not this host's (recorded rows, --soft)"
                }
            };
            let _ = writeln!(s, "{} ({how})\n    what: {}\n    why:  {}", h.name, h.covers, h.why);
        }
        s += "\nnot generated:\n";
        for u in untried::TABLE {
            let _ = writeln!(s, "{}\n    what: {}\n    why:  {}", u.name, u.covers, u.why);
        }
        s
    }
}

macro_rules! table {
    ($($name:literal $how:ident $applies:ident $passes:ident, $covers:literal, $why:literal;)*) => {
        /// All habits.
        pub const TABLE: &[Habit] = &[$(Habit {
            name: $name,
            covers: $covers,
            why: $why,
            how: How::$how,
            applies: passes::$applies,
            passes: passes::$passes,
        }),*];
    };
}

// SDM: Intel 64 and IA-32 Architectures Software Developer's Manual. APM: AMD64 Architecture Programmer's Manual.
table! {
    "undefined-flags" PassedOver any undefined_flags,
        "flags that iced-x86 lists as undefined, where the instruction completes (`--flags` shows them)",
        "SDM volume 2 and APM volume 3 under each instruction: undefined";
    "kernel-hides-present" PassedOver page_fault present_bit,
        "bit 0 (present) of a page fault's error code, at addresses that are not the program's",
        "Linux sets it always there, so that its own mappings cannot be told";
    "null-rpl" PassedOver any null_rpl,
        "the RPL of null selectors in ES, DS, FS and GS",
        "the kernel's IRET to the program clears them (SDM volume 2, IRET: null selectors are made 0)";
    "lsl-cpu-number" PassedOver lsl lsl_cpu_number,
        "LSL: limits below 4096 of the segment in whose limit Linux keeps the CPU's number",
        "the kernel's own value";
    "mxcsr-mm" PassedOver mxcsr_mm everything,
        "all, once MXCSR bit 17 (MM) is set",
        "APM volume 1, 4.2.2 (misaligned exception mask): AMD's processors have the bit, Intel's and Mynah's raise #GP when it is set";
    "mxcsr-mask" PassedOver saves mxcsr_mask,
        "MXCSR_MASK as FXSAVE and XSAVE store it",
        "SDM volume 1, 11.6.6: the processor's own";
    "x87-pointers" PassedOver pointers x87_pointers,
        "FOP, FIP and FDP: in memory that FXSAVE, XSAVE, FNSTENV and FNSAVE write; in registers where the host has 0 and Mynah the old value",
        "APM volume 2, 11.4.4: AMD's processors store them only while an exception is pending, and the kernel's switches lose them; Intel's \
         FDP and FOP change only at unmasked exceptions, FCS and FDS read as 0 (SDM volume 1, 8.1.8 to 8.1.10)";
    "mmx-transition" PassedOver mmx_fault x87_registers,
        "TOP, tags and x87 registers after an MMX, SSE or SSE2 instruction that faults",
        "SDM volume 1, 9.5.1 leaves open when the unit goes over to MMX: some processors have done so before the fault";
    "far-fault-order" PassedOver transfers_fault_otherwise everything,
        "CALL, RETF and IRET that could raise several of #TS, #NP, #SS, #GP, #PF and #AC: which comes",
        "SDM volume 3A, 7.9 (table 7-2): the order within a class is the processor's";
    "far-cr2" PassedOver transfers cr2,
        "CR2 of CALL, RETF and IRET that fault",
        "the order of their accesses is not defined";
    "call-has-pushed" PassedOver call_fault below_stack,
        "16 bytes below the stack pointer after a CALL that faults",
        "some processors have written the return address before the target is checked";
    "popa-fault" PassedOver popa_fault general_but_rsp,
        "general registers after a POPA that faults",
        "some processors have written some of them";
    "pusha-fault" PassedOver pusha_fault memory,
        "memory after a PUSHA that faults",
        "some processors have written some of it";
    "wide-cr2" PassedOver wide near_cr2,
        "CR2 within 4096 bytes, for operands of more than 16 bytes, those without a size, and MASKMOVQ and its kin",
        "processors start at different ends";
    "gather-step" PassedOver gather_steps everything,
        "gathers that fault with TF set",
        "AMD's processors deliver the trap of the elements that are there first (SDM volume 2, VGATHERDPS: both may come)";
    "approximation" PassedOver approximates near_lanes,
        "RCPPS, RSQRTPS and their kin: relative error 1.5 * 2^-12, tiny results zero or not",
        "SDM volume 2, RCPPS: only the error is bounded, the values are each processor's";
    "split-lock" PassedOver locked_faults everything,
        "#AC of locked accesses across a cache line while EFLAGS.AC is clear",
        "SDM volume 3A, 10.1.2.3: Intel's processors raise it where the kernel has asked for it (split_lock_detect)";
    "undefined-across-page" PassedOver undefined_or_fetch fault,
        "#UD or #PF for undefined opcodes whose bytes are not all there",
        "processors raise #UD before they have fetched what comes behind the opcode, or after";
    "masked-off" PassedOver masked_store everything,
        "MASKMOVQ, VMASKMOVPS and their kin that fault, or not, on elements that the mask leaves out",
        "SDM volume 2, MASKMOVQ, and APM volume 4, VMASKMOVPS: implementation dependent";
    "masked-wrap" PassedOver masked_wraps everything,
        "VMASKMOVPS and its kin whose operand crosses the end of a 16- or 32-bit address size",
        "elements beyond it are behind the others or at the address size's beginning: AMD family 25 has the latter";
    "wrap-4g" PassedOver wraps everything,
        "operands across the end of the 4 GiB outside 64-bit mode",
        "SDM volume 3A, 6.3: wrapping or faulting is implementation specific";
    "xrstor-order" PassedOver restores_fault fault,
        "FXRSTOR and XRSTOR that could raise #GP and #PF",
        "whether the header is checked before the rest is read is the processor's";
    "undefined-16-bits" PassedOver bswap16 low_word,
        "the result of BSWAP of 16 bits",
        "SDM volume 2, BSWAP: undefined";
    "rex2" PassedOver rex2 everything,
        "opcode D5h in 64-bit mode",
        "APX processors have the REX2 prefix there; Mynah has none";
    "cmps-both-fault" Probed cmps_faults fault,
        "CMPS whose two operands both fault: exception, error code and CR2 of the one or the other",
        "not in the manuals; ES:rDI comes first on AMD family 25, DS:rSI on family 23 model 1";
    "movs-both-fault" Probed movs_faults fault,
        "MOVS whose two operands both fault, likewise",
        "not in the manuals";
    "lock-verw" Probed lock_verw everything,
        "LOCK VERR and LOCK VERW: no #UD",
        "the manuals want #UD (SDM volume 2, LOCK; APM volume 3, LOCK); AMD family 25 model 17 was seen without";
    "x87-conditions" Probed x87 undefined_conditions,
        "C0, C2 and C3 after instructions that define none of them",
        "SDM volume 1, 8.1.3.1 (table 8-1): undefined; AMD's processors leave or clear them as Mynah does";
    "cvtpi2ps-memory" Probed cvtpi2ps_memory x87_transition,
        "CVTPI2PS and CVTPI2PD from memory: whether the x87 unit goes over to MMX, and #MF is raised",
        "SDM volume 2, CVTPI2PS, has it do so, AMD's processors do not";
    "fldcw-reserved" Probed x87 reserved_control,
        "bits 6, 7 and 13 to 15 of the x87 control word",
        "SDM volume 1, 8.1.5: reserved";
    "fbld-digits" Probed fbld stack_top,
        "FBLD of digits above 9",
        "SDM volume 2, FBLD: the result is undefined";
    "non-canonical-target" Probed branches_away rip_and_stack,
        "branches to addresses that are not canonical: #GP at the branch, or at its target",
        "SDM volume 2, JMP, CALL and RET have #GP at the branch; so has the APM, but processors differ";
    "move-from-nowhere" Probed control_moves fault,
        "MOV of control and debug registers that do not exist, at CPL 3: #UD or #GP",
        "SDM volume 2, MOV CR: both apply; their order is the processor's";
    "int-error-code" Probed software_interrupt error_code,
        "the error code of #GP of INT n",
        "with FRED no descriptor is looked at, and the kernel makes the error code";
    "resume-flag" Probed any resume_flag,
        "RF in the flags that an exception saves",
        "SDM volume 3B, 19.3.1.1: set for faults; for traps inside repeated string instructions processors differ";
    "push-selector" Probed pushes_selector memory_of_slot,
        "bytes above the selector that PUSH of a segment register stores",
        "SDM volume 2, PUSH: zero, or left as they were";
    "null-base" Probed any null_base,
        "the bases of FS and GS after a null selector was loaded",
        "APM volume 2, 4.5.3: AMD's processors without NullSelectorClearsBase (CPUID 8000_0021h) leave them";
    "bit-scan-of-zero" Probed scans_zero first_register,
        "the destination of BSF and BSR of zero",
        "SDM volume 2, BSF: undefined; AMD's and newer processors of Intel's leave it, of 32 bits some clear the upper half";
    "enter-fault" Probed enter_faults enter_places,
        "ENTER that faults: exception, CR2 and what it has pushed before",
        "SDM volume 2, ENTER: whether the new stack's end is touched, and when, is the processor's";
    "alignment-or-page" Probed misaligned fault,
        "#AC, or #PF, #GP or #SS, of an access that is misaligned and not there",
        "SDM volume 3A, table 7-2: one class";
    "general-or-page" Probed unaligned_vector fault,
        "#GP, or #PF, of a 16- or 32-byte operand that must be aligned, is not, and is not there",
        "SDM volume 3A, table 7-2: one class";
    "xsave-in-use" Probed saves_in_use initial_components,
        "whether XSAVE, XSAVEC and XSAVEOPT have a component as used that is in its initial state",
        "SDM volume 1, 13.6: a processor may say it is used";
    "gather-beyond-fault" Probed gather_faults gathered,
        "elements of a gather above the one that faults",
        "SDM volume 2, VGATHERDPS: they may be gathered or not";
    "rotate-whole-turn" Probed turns_whole overflow,
        "OF after RCL and RCR by 9, 18, 27 (8 bits) and 17 (16 bits), by an immediate",
        "SDM volume 2, RCL: undefined but for one bit, left alone for none, which a whole turn may count as or not";
    "dot-nan" Probed dot_products nan_lanes,
        "which of several NaNs DPPS and DPPD give, by lane",
        "SDM volume 2, DPPS, has one sum for all lanes; Intel's processors add each lane's products in an order of its own";
    "masked-cr2" Probed masked_faults near_cr2,
        "CR2 of VMASKMOVPS and its kin that fault, within 4096 bytes",
        "SDM volume 2, VMASKMOVPS: with any of the elements that are chosen";
    "masked-non-canonical" Probed masked_edge fault,
        "#GP, or #PF, of masked moves across the end of canonical addresses",
        "SDM volume 2, MASKMOVDQU: whether bytes that the mask leaves out fault is implementation dependent";
    "bound-second" Probed bound_faults fault,
        "BOUND whose lower bound decides and whose upper one is not there: #BR or #PF",
        "not in the manuals";
    "store-before-fault" Probed stores_ten in_ten_bytes,
        "what FSTP and FBSTP of ten bytes have written when they fault",
        "not in the manuals: Intel's processors write the significand and then the exponent";
    "x87-store-nothing" Probed stores_nothing everything,
        "stores of the x87 unit that an unmasked exception keeps from storing, to where nothing can be: done, or a fault",
        "SDM volume 3A, table 7-2, has the fault first; Intel's processors do not look at the memory";
    "locked-alignment" Probed locked_misaligned fault,
        "#AC, or #PF, #GP or #SS, of a locked access that is misaligned and not there",
        "SDM volume 3A, table 7-2: one class";
    "remainder-by-infinity" Probed remainders_by_infinity underflow,
        "FPREM and FPREM1 of a denormal by an infinity, with UE unmasked: UE and the other exponent, or neither",
        "SDM volume 1, 8.5.5, wants UE of any tiny result; Intel's processors take it for the operand, unchanged";
    "far-fault-error" Probed transfers_fault_alike error_code,
        "the error code of RETF and IRET that could raise #GP for CS, for SS and for RIP",
        "SDM volume 2, IRET: the order of the checks is the processor's";
    "last-place" Elsewhere elementary last_place,
        "FSIN, FPATAN, FYL2X, F2XM1 and their kin: the last place, C1 and PE",
        "SDM volume 1, 8.3.10: an error below one unit in the last place; processors differ in it, and in whether an exact result raises PE";
    "elementary-domain" Elsewhere beyond_domain x87_registers,
        "F2XM1 and FYL2XP1 of operands that they are not defined for",
        "SDM volume 2, F2XM1 and FYL2XP1: the result is undefined";
}
const _: () = assert!(TABLE.len() <= 64);

/// How many cases were passed over for each line.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// Cases in which anything was.
    pub cases: u64,
    /// By line.
    pub by: std::collections::BTreeMap<&'static str, u64>,
}

impl Tally {
    /// One more case.
    pub fn note(&mut self, passed: Passed) {
        self.cases += u64::from(!passed.is_empty());
        for name in passed.names() {
            *self.by.entry(name).or_default() += 1;
        }
    }
    /// Adds another run's.
    pub fn merge(&mut self, o: &Self) {
        self.cases += o.cases;
        for (name, n) in &o.by {
            *self.by.entry(name).or_default() += n;
        }
    }
    /// The last line of a run: `passed over: 14 of 1000 cases: cmps-both-fault 12, ...`.
    pub fn line(&self, cases: u64) -> String {
        let list: Vec<String> = self.by.iter().map(|(name, n)| format!("{name} {n}")).collect();
        let colon = if list.is_empty() { "" } else { ": " };
        format!("passed over: {} of {cases} cases{colon}{}", self.cases, list.join(", "))
    }
}
