//! A difference in words that somebody can act on: the instruction, the state before, both states after.

use crate::compare::{Difference, operand_address};
use crate::layout::*;
use iced_x86::{Formatter, Instruction, NasmFormatter};

/// The instruction in NASM's syntax.
pub fn disassemble(i: &Instruction) -> String {
    if i.is_invalid() {
        return "(no instruction)".into();
    }
    let mut s = String::new();
    let mut f = NasmFormatter::new();
    f.options_mut().set_rip_relative_addresses(true);
    f.format(i, &mut s);
    s
}

/// Bytes as hexadecimal digits.
pub fn hex(b: &[u8]) -> String {
    b.iter().map(|b| format!("{b:02x}")).collect()
}

fn registers(out: &mut String, r: &Regs) {
    use std::fmt::Write;
    const NAMES: [&str; 16] = [
        "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8 ", "r9 ", "r10", "r11", "r12", "r13",
        "r14", "r15",
    ];
    for (n, v) in r.gpr.iter().enumerate() {
        let end = if n & 3 == 3 { "\n" } else { "  " };
        let _ = write!(out, "    {} {v:016x}{end}", NAMES[n]);
    }
    let _ = writeln!(
        out,
        "    rip {:x}  rflags {:x}  es,cs,ss,ds,fs,gs {:x?}  mxcsr {:04x}",
        r.rip,
        r.rflags,
        r.sel,
        r.mxcsr()
    );
    let _ = writeln!(
        out,
        "    fcw {:04x}  fsw {:04x}  tags {:02x}  fop {:03x}  fip {:x}  fdp {:x}",
        r.fx16(0),
        r.fx16(2),
        r.fx[4],
        r.fx16(6),
        r.fx64(8),
        r.fx64(16)
    );
}

/// The report of a case that came out differently.
pub fn reproducer(
    case: &Case,
    i: &Instruction,
    background: &[u8],
    want: &Outcome,
    got: &Outcome,
    differences: &[Difference],
    verbose: bool,
) -> String {
    use std::fmt::Write;
    let mut s = String::new();
    let _ = writeln!(
        s,
        "  {}-bit  {}  {}  [{:?}]  ends by {:?}",
        case.regs.bitness(),
        hex(case.bytes()),
        disassemble(i),
        i.code(),
        case.end
    );
    for d in differences {
        let _ = writeln!(s, "    {d}");
    }
    if !verbose {
        return s;
    }
    let _ = writeln!(s, "  before:");
    registers(&mut s, &case.regs);
    let used = |n: usize| {
        (0..i.op_count()).any(|o| {
            i.op_kind(o) == iced_x86::OpKind::Register
                && i.op_register(o).is_vector_register()
                && i.op_register(o).number() == n
        })
    };
    for n in (0..16).filter(|&n| used(n)) {
        let _ = writeln!(s, "    ymm{n} {:032x} {:032x}", case.regs.ymm_high(n), case.regs.xmm(n));
    }
    let f = crate::forms::group(i.code());
    if f == "x87" || f == "mmx" {
        for n in 0..8 {
            let (e, m) = case.regs.st(n);
            let _ = writeln!(s, "    st{n} {e:04x}:{m:016x}");
        }
    }
    if let Some(at) = operand_address(case, i) {
        let before = case.memory(background);
        let bytes: Vec<String> = (0..i.memory_size().size().clamp(16, 64) as u64)
            .map(|n| data_offset(at.wrapping_add(n)).map_or("--".into(), |o| format!("{:02x}", before[o])))
            .collect();
        let _ = writeln!(s, "    operand at {at:#x}: {}", bytes.join(""));
    }
    for (who, o) in [("oracle", want), ("mynah", got)] {
        let _ = writeln!(s, "  after, {who}: exception {} error {:#x} cr2 {:#x}", o.vector, o.error, o.cr2);
        registers(&mut s, &o.regs);
        if f == "x87" || f == "mmx" {
            for n in 0..8 {
                let (e, m) = o.regs.st(n);
                let _ = writeln!(s, "    st{n} {e:04x}:{m:016x}");
            }
        }
    }
    s
}
