//! What a vCPU does, as text: the log of `-d`, and the state for a triple fault and for the monitor. Lines have the
//! form of QEMU's, for who has tools that read them.
//!
//! A vCPU without a [`Trace`] pays one test of a pointer per dispatcher turn and per delivered event. `exec` and `cpu`
//! log the blocks that the dispatcher enters. For those that follow one another without it there is `nochain`: then
//! blocks are not linked, and a translator is to compile each by itself ([`Cpu::sees_every_block`]), so that none is
//! missed.
pub mod log;

use crate::block::Block;
use crate::cpu::Cpu;
use crate::event::{Event, EventKind, vector};
use crate::state::{Activity, Segment, Shadow, cr0, fl, gpr, seg};
use iced_x86::{Decoder, Formatter, NasmFormatter};
use std::fmt::Write;
use std::sync::atomic::Ordering;

pub use log::{CPU, EVERY_BLOCK, EXEC, FPU, IN_ASM, INT, Names, RESET, TRANSLATOR, Trace};

impl Cpu {
    /// Logs what this vCPU does from now on.
    pub fn set_trace(&mut self, trace: std::sync::Arc<Trace>) {
        self.unchained = trace.has(EXEC | CPU) && trace.has(EVERY_BLOCK);
        self.trace = Some(trace);
    }

    /// Whether the log is to have each block that is run: a translator should not put several into one piece of code
    /// then.
    pub fn sees_every_block(&self) -> bool {
        self.unchained
    }

    /// The linear address of the next instruction.
    pub fn code_linear(&self) -> u64 {
        let base = if self.state.is_long64() { 0 } else { self.state.seg[seg::CS].base };
        self.state.gpr[gpr::RIP].wrapping_add(base)
    }

    /// The block is about to run.
    #[cold]
    pub(crate) fn trace_block(&self, block: &Block) {
        let Some(t) = &self.trace else { return };
        let lin = self.code_linear();
        if !t.has(EXEC | CPU) || !t.wants(lin) {
            return;
        }
        let mut text = String::new();
        if t.has(EXEC) {
            // Where its host code is, if it is compiled; code segment, address, mode, physical address.
            let _ = writeln!(
                text,
                "Trace {}: {:#x} [{:016x}/{lin:016x}/{:08x}/{:08x}]{}",
                self.index,
                block.tier.compiled().map_or(0, |c| c.code.addr()),
                self.view[seg::CS].base,
                block.key,
                block.phys,
                t.name(lin)
            );
        }
        if t.has(CPU) {
            text += &cpu_state(self);
            if t.has(FPU) {
                text += &fpu_state(self);
            }
        }
        t.put(&text);
    }

    /// The block at the linear address has been decoded from `bytes`.
    #[cold]
    pub(crate) fn trace_decoded(&self, lin: u64, bytes: &[u8]) {
        let Some(t) = &self.trace else { return };
        if !t.has(IN_ASM) || !t.wants(lin) {
            return;
        }
        let bits = crate::mode::ModeKey(self.mode_key).bitness();
        let mut text = format!("----------------\nIN:{}\n", t.name(lin));
        let mut formatter = NasmFormatter::new();
        for i in &mut Decoder::with_ip(bits, bytes, lin, self.model.decoder_options()) {
            let at = (i.ip() - lin) as usize;
            let hex: String = bytes[at..at + i.len()].iter().map(|b| format!("{b:02x} ")).collect();
            let mut line = String::new();
            formatter.format(&i, &mut line);
            let _ = writeln!(text, "0x{:08x}:  {hex:<32} {line}", i.ip());
        }
        text.push('\n');
        t.put(&text);
    }

    /// An event is being delivered.
    #[cold]
    pub(crate) fn trace_event(&self, ev: &Event) {
        let Some(t) = &self.trace else { return };
        let (s, lin) = (&self.state, self.code_linear());
        if !t.has(INT) || !t.wants(lin) {
            return;
        }
        let software = matches!(ev.kind, EventKind::SoftInt | EventKind::SoftInt3 | EventKind::IntO);
        let mut text = format!(
            "{:6}: v={:02x} e={:04x} i={} cpl={} IP={:04x}:{:016x} pc={lin:016x} SP={:04x}:{:016x} ",
            t.events.fetch_add(1, Ordering::Relaxed),
            ev.vector,
            ev.error.unwrap_or(0),
            u8::from(software),
            s.cpl,
            s.seg[seg::CS].sel,
            s.gpr[gpr::RIP],
            s.seg[seg::SS].sel,
            s.gpr[gpr::RSP],
        );
        let _ = if ev.vector == vector::PF && ev.kind == EventKind::Exception {
            write!(text, "CR2={:016x}", s.cr2)
        } else {
            write!(text, "env->regs[R_EAX]={:016x}", s.gpr[gpr::RAX])
        };
        let _ = writeln!(text, " {:?}{}", ev.kind, t.name(lin));
        text += &cpu_state(self);
        t.put(&text);
    }

    /// The machine is about to be reset.
    pub fn trace_reset(&self) {
        if let Some(t) = &self.trace
            && t.has(RESET)
        {
            t.put(&format!("CPU Reset (CPU {})\n{}", self.index, cpu_state(self)));
        }
    }
}

/// The x87 and SSE registers.
pub fn fpu_state(cpu: &Cpu) -> String {
    let f = &cpu.state.fpu;
    let mut t = String::new();
    let _ = writeln!(
        t,
        "FCW={:04x} FSW={:04x} [ST={}] FTW={:02x} MXCSR={:08x}",
        f.cw,
        f.sw | u16::from(f.top) << 11,
        f.top,
        !f.empty,
        cpu.state.mxcsr
    );
    for (n, r) in f.r.iter().enumerate() {
        let _ = write!(t, "FPR{n}={:016x} {:04x}{}", r.mant, r.exp, if n % 2 == 1 { "\n" } else { " " });
    }
    for (n, x) in cpu.state.xmm[..16].iter().enumerate() {
        let _ = write!(t, "XMM{n:02}={:032x}{}", x.x(), if n % 2 == 1 { "\n" } else { " " });
    }
    t
}

const NAMES: [&str; 16] = [
    "RAX", "RCX", "RDX", "RBX", "RSP", "RBP", "RSI", "RDI", "R8 ", "R9 ", "R10", "R11", "R12", "R13", "R14",
    "R15",
];

/// Registers, segments and control registers, as `info registers` shows them.
pub fn cpu_state(cpu: &Cpu) -> String {
    let s = &cpu.state;
    let mut t = String::new();
    for row in [[0, 3, 1, 2], [6, 7, 5, 4], [8, 9, 10, 11], [12, 13, 14, 15]] {
        let row: Vec<String> = row.iter().map(|&r| format!("{}={:016x}", NAMES[r], s.gpr[r])).collect();
        t += &row.join(" ");
        t.push('\n');
    }
    let f = s.rflags();
    let flags: String = [
        (fl::DF, 'D'),
        (fl::OF, 'O'),
        (fl::SF, 'S'),
        (fl::ZF, 'Z'),
        (fl::AF, 'A'),
        (fl::PF, 'P'),
        (fl::CF, 'C'),
    ]
    .map(|(bit, c)| if f & bit != 0 { c } else { '-' })
    .iter()
    .collect();
    let _ = writeln!(
        t,
        "RIP={:016x} RFL={f:08x} [{flags}] CPL={} II={} A20={} SMM=0 HLT={}{}{}",
        s.gpr[gpr::RIP],
        s.cpl,
        u8::from(s.shadow != Shadow::None),
        cpu.a20_mask >> 20 & 1,
        u8::from(s.activity == Activity::Halted),
        match s.activity {
            Activity::Running | Activity::Halted => String::new(),
            other => format!(" {other:?}"),
        },
        if s.nmi_blocked { " NMI-blocked" } else { "" }
    );
    for (name, i) in
        [("ES", seg::ES), ("CS", seg::CS), ("SS", seg::SS), ("DS", seg::DS), ("FS", seg::FS), ("GS", seg::GS)]
    {
        segment(&mut t, cpu, name, &s.seg[i]);
    }
    segment(&mut t, cpu, "LDT", &s.ldtr);
    segment(&mut t, cpu, "TR", &s.tr);
    let _ = writeln!(t, "GDT=     {:016x} {:08x}", s.gdtr.base, s.gdtr.limit);
    let _ = writeln!(t, "IDT=     {:016x} {:08x}", s.idtr.base, s.idtr.limit);
    let _ = writeln!(t, "CR0={:08x} CR2={:016x} CR3={:016x} CR4={:08x}", s.cr0, s.cr2, s.cr3, s.cr4);
    let debug: Vec<String> = (0..4).map(|n| format!("DR{n}={:016x}", s.dr[n])).collect();
    let _ = writeln!(t, "{}", debug.join(" "));
    let _ = writeln!(t, "DR6={:016x} DR7={:016x}", s.dr[6], s.dr[7]);
    let _ = writeln!(t, "EFER={:016x}", s.msr.efer);
    t
}

/// A segment register: selector, base, limit, the descriptor's upper word without base and limit, and what that says.
fn segment(t: &mut String, cpu: &Cpu, name: &str, d: &Segment) {
    const SYSTEM: [&str; 16] = [
        "Reserved",
        "TSS16-avl",
        "LDT",
        "TSS16-busy",
        "CallGate16",
        "TaskGate",
        "IntGate16",
        "TrapGate16",
        "Reserved",
        "TSS32-avl",
        "Reserved",
        "TSS32-busy",
        "CallGate32",
        "Reserved",
        "IntGate32",
        "TrapGate32",
    ];
    const SYSTEM_LONG: [&str; 16] = [
        "<hiword>",
        "Reserved",
        "LDT",
        "Reserved",
        "Reserved",
        "Reserved",
        "Reserved",
        "Reserved",
        "Reserved",
        "TSS64-avl",
        "Reserved",
        "TSS64-busy",
        "CallGate64",
        "Reserved",
        "IntGate64",
        "TrapGate64",
    ];
    let attr = if d.usable() { d.attr } else { 0 };
    let _ = write!(t, "{name:<3}={:04x} {:016x} {:08x} {:08x}", d.sel, d.base, d.limit, (attr & 0xf0ff) << 8);
    if cpu.state.cr0 & cr0::PE != 0 && attr & Segment::P != 0 {
        let kind = d.kind();
        let flag = |bit: u32, c: char| if kind & bit != 0 { c } else { '-' };
        let big = attr & Segment::DB != 0;
        let _ = write!(t, " DPL={} ", d.dpl());
        let _ = if attr & Segment::S == 0 {
            let names = if cpu.state.is_long() { SYSTEM_LONG } else { SYSTEM };
            write!(t, "{}", names[kind as usize & 15])
        } else if kind & 8 != 0 {
            let size = match (attr & Segment::L != 0, big) {
                (true, _) => "CS64",
                (_, true) => "CS32",
                _ => "CS16",
            };
            write!(t, "{size} [{}{}{}]", flag(4, 'C'), flag(2, 'R'), flag(1, 'A'))
        } else {
            let size = if big || cpu.state.is_long() { "DS  " } else { "DS16" };
            write!(t, "{size} [{}{}{}]", flag(4, 'E'), flag(2, 'W'), flag(1, 'A'))
        };
    }
    t.push('\n');
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::board::NoBoard;
    use crate::model::CpuModel;
    use mynah_mmu::{GuestRam, PhysMemory};
    use std::sync::Arc;

    fn cpu() -> Box<Cpu> {
        let mem = PhysMemory::new(GuestRam::new(0x10000).expect("RAM"), 0x10000);
        let model = Arc::new(CpuModel::parse("max").expect("a model"));
        Cpu::new(0, mem, Arc::new(NoBoard), Arc::default(), model)
    }

    #[test]
    fn the_state_reads_as_qemus() {
        let mut cpu = cpu();
        let s = &mut cpu.state;
        s.cr0 |= cr0::PE;
        s.gpr[gpr::RAX] = 0x1234;
        s.gpr[gpr::RIP] = 0x100;
        s.set_rflags(2 | fl::ZF | fl::PF | fl::IF);
        s.seg[seg::CS] = Segment { base: 0, limit: !0, attr: 0xc09b, sel: 8 };
        s.seg[seg::SS] = Segment { base: 0, limit: !0, attr: 0xc093, sel: 0x10 };
        s.tr = Segment { base: 0, limit: 0xffff, attr: 0x8b, sel: 0 };
        s.ldtr = Segment { base: 0, limit: 0xffff, attr: Segment::UNUSABLE, sel: 0 };
        let text = cpu_state(&cpu);
        let line = |start: &str| text.lines().find(|l| l.starts_with(start)).unwrap_or_default().to_owned();
        assert_eq!(
            line("RAX"),
            "RAX=0000000000001234 RBX=0000000000000000 RCX=0000000000000000 RDX=0000000000060fb1"
        );
        assert_eq!(line("RIP"), "RIP=0000000000000100 RFL=00000246 [---Z-P-] CPL=0 II=0 A20=1 SMM=0 HLT=0");
        assert_eq!(line("CS"), "CS =0008 0000000000000000 ffffffff 00c09b00 DPL=0 CS32 [-RA]");
        assert_eq!(line("SS"), "SS =0010 0000000000000000 ffffffff 00c09300 DPL=0 DS   [-WA]");
        assert_eq!(line("TR"), "TR =0000 0000000000000000 0000ffff 00008b00 DPL=0 TSS32-busy");
        assert_eq!(line("LDT"), "LDT=0000 0000000000000000 0000ffff 00000000");
        assert!(text.ends_with("EFER=0000000000000000\n"));
    }
}
