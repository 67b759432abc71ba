//! What a vCPU does, as text: the log of `-d`, and the state for a triple fault and for the monitor.
//!
//! A vCPU without a [`Trace`] pays one test of a pointer per dispatcher turn and per delivered event. With `exec` or `cpu`, blocks are not linked, so
//! that the dispatcher sees every one.
use crate::block::Block;
use crate::cpu::Cpu;
use crate::state::{gpr, seg};
use crate::sys::Event;
use iced_x86::{Decoder, DecoderOptions, Formatter, NasmFormatter};
use parking_lot::Mutex;
use std::fmt::Write;
use std::io;

/// Guest code when it is decoded.
pub const IN_ASM: u32 = 1 << 0;
/// Each block as it is run.
pub const EXEC: u32 = 1 << 1;
/// Registers before each block.
pub const CPU: u32 = 1 << 2;
/// x87 and SSE registers too, where `CPU` shows registers.
pub const FPU: u32 = 1 << 3;
/// Interrupts and exceptions.
pub const INT: u32 = 1 << 4;
/// The state before a reset.
pub const RESET: u32 = 1 << 5;
/// What a translator has to say, which it says by [`Trace::put`].
pub const TRANSLATOR: u32 = 1 << 6;

/// Where the log goes and what is in it.
pub struct Trace {
    items: u32,
    /// First and last address, inclusive, of what is logged; empty for everything.
    filter: Vec<(u64, u64)>,
    out: Mutex<Box<dyn io::Write + Send>>,
}

impl Trace {
    /// A log of `items` to `out`.
    pub fn new(items: u32, filter: Vec<(u64, u64)>, out: Box<dyn io::Write + Send>) -> Self {
        Self { items, filter, out: Mutex::new(out) }
    }

    fn has(&self, items: u32) -> bool {
        self.items & items != 0
    }

    fn wants(&self, ip: u64) -> bool {
        self.filter.is_empty() || self.filter.iter().any(|&(a, b)| (a..=b).contains(&ip))
    }

    /// Adds a text to the log.
    pub fn put(&self, text: &str) {
        // A log that cannot be written must not stop the guest.
        let _ = self.out.lock().write_all(text.as_bytes());
    }

    /// Writes out what is buffered.
    pub fn flush(&self) {
        let _ = self.out.lock().flush();
    }
}

impl Cpu {
    /// Logs what this vCPU does from now on.
    pub fn set_trace(&mut self, trace: std::sync::Arc<Trace>) {
        self.unchained = trace.has(EXEC | CPU);
        self.trace = Some(trace);
    }

    /// The block is about to run.
    #[cold]
    pub(crate) fn trace_block(&self, block: &Block) {
        let Some(t) = &self.trace else { return };
        let ip = self.state.gpr[gpr::RIP];
        if !t.has(EXEC | CPU) || !t.wants(ip) {
            return;
        }
        let mut text = String::new();
        if t.has(EXEC) {
            let _ =
                writeln!(text, "Trace {}: [{:016x}/{:016x}/{:08x}]", self.index, block.phys, ip, block.key);
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
        let bits = crate::decode::bitness(crate::block::ModeKey(self.mode_key));
        let mut text = String::from("----------------\nIN:\n");
        let mut formatter = NasmFormatter::new();
        for i in &mut Decoder::with_ip(bits, bytes, lin, DecoderOptions::AMD) {
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
        let s = &self.state;
        if !t.has(INT) || !t.wants(s.gpr[gpr::RIP]) {
            return;
        }
        let mut text = format!(
            "v={:02x} e={:04x} {:?} cpl={} IP={:04x}:{:016x} SP={:04x}:{:016x} CR2={:016x}\n",
            ev.vector,
            ev.error.unwrap_or(0),
            ev.kind,
            s.cpl,
            s.seg[seg::CS].sel,
            s.gpr[gpr::RIP],
            s.seg[seg::SS].sel,
            s.gpr[gpr::RSP],
            s.cr2
        );
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
