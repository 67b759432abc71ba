//! The CPU's state as text, for a triple fault and for the monitor.
use mynah_cpu::Cpu;
use mynah_cpu::state::{gpr, seg};
use std::fmt::Write;

const NAMES: [&str; 16] = [
    "RAX", "RCX", "RDX", "RBX", "RSP", "RBP", "RSI", "RDI", "R8 ", "R9 ", "R10", "R11", "R12", "R13", "R14",
    "R15",
];

/// Registers, segments and control registers, in the order in which `info registers` shows them.
pub fn cpu_state(cpu: &Cpu) -> String {
    let s = &cpu.state;
    let mut t = String::new();
    for row in [[0, 3, 1, 2], [6, 7, 5, 4], [8, 9, 10, 11], [12, 13, 14, 15]] {
        for r in row {
            let _ = write!(t, "{}={:016x} ", NAMES[r], s.gpr[r]);
        }
        t.push('\n');
    }
    let f = s.rflags();
    let _ = writeln!(
        t,
        "RIP={:016x} RFL={:08x} CPL={} {:?}{}",
        s.gpr[gpr::RIP],
        f,
        s.cpl,
        s.activity,
        if s.nmi_blocked { " NMI-blocked" } else { "" }
    );
    for (name, i) in
        [("ES", seg::ES), ("CS", seg::CS), ("SS", seg::SS), ("DS", seg::DS), ("FS", seg::FS), ("GS", seg::GS)]
    {
        let d = &s.seg[i];
        let _ = writeln!(t, "{name} ={:04x} {:016x} {:08x} {:05x}", d.sel, d.base, d.limit, d.attr);
    }
    for (name, d) in [("LDT", &s.ldtr), ("TR ", &s.tr)] {
        let _ = writeln!(t, "{name}={:04x} {:016x} {:08x} {:05x}", d.sel, d.base, d.limit, d.attr);
    }
    let _ = writeln!(t, "GDT=     {:016x} {:08x}", s.gdtr.base, s.gdtr.limit);
    let _ = writeln!(t, "IDT=     {:016x} {:08x}", s.idtr.base, s.idtr.limit);
    let _ = writeln!(t, "CR0={:08x} CR2={:016x} CR3={:016x} CR4={:08x}", s.cr0, s.cr2, s.cr3, s.cr4);
    let _ = writeln!(t, "EFER={:016x} DR6={:016x} DR7={:016x}", s.msr.efer, s.dr[6], s.dr[7]);
    t
}
