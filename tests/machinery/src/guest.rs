//! Building a guest: its tables, programs and data, as one Multiboot 1 image.
use crate::asm;
use crate::layout::*;
use crate::log;
use crate::machine;
use crate::paging::{Format, PageTables};
use crate::prog::Prog;
use crate::qemu;
use crate::stubs;
use mynah_cpu::state::State;
use std::collections::BTreeMap;

const KEEPING_IN_TURNS: &str = "by translator and KVM with interrupt controllers in turns";

/// What the start-up code does before the main program.
#[derive(Clone, Debug)]
pub enum Main {
    /// Flat protected mode, no paging.
    Protected,
    /// Protected mode with 32-bit or PAE paging.
    Paged(PageTables),
    /// 64-bit mode with 4- or 5-level paging.
    Long(PageTables),
}

/// A guest under construction.
pub struct Guest {
    image: Vec<u8>,
    names: BTreeMap<u32, String>,
    next_code: u32,
    next_low: u32,
    next_sel: u16,
    qemu_expected: Option<(String, &'static str)>,
    qemu_lines: Vec<(String, String, &'static str)>,
    qemu_ext: bool,
    qemu_rsvd: bool,
    stacks: bool,
    model: &'static str,
    read_only: Vec<u32>,
}

impl Default for Guest {
    fn default() -> Self {
        Self::new()
    }
}

/// Operands of LGDT and LIDT.
const DESCRIPTORS: u32 = 0x10_0f00;

impl Guest {
    /// A guest with the default tables.
    pub fn new() -> Self {
        let mut g = Self {
            image: vec![0; (IMAGE_END - IMAGE) as usize],
            names: BTreeMap::new(),
            next_code: CODE,
            next_low: LOW_CODE,
            next_sel: FREE,
            qemu_expected: None,
            qemu_lines: Vec::new(),
            qemu_ext: false,
            qemu_rsvd: false,
            stacks: false,
            model: "max",
            read_only: Vec::new(),
        };
        let gdt = [
            (CODE0, flat(access::CODE, size::P32)),
            (DATA0, flat(access::DATA, size::P32)),
            (CODE1, flat(dpl(access::CODE, 1), size::P32)),
            (DATA1, flat(dpl(access::DATA, 1), size::P32)),
            (CODE2, flat(dpl(access::CODE, 2), size::P32)),
            (DATA2, flat(dpl(access::DATA, 2), size::P32)),
            (CODE3, flat(dpl(access::CODE, 3), size::P32)),
            (DATA3, flat(dpl(access::DATA, 3), size::P32)),
            (CODE64, flat(access::CODE, size::P64)),
            (CODE64_3, flat(dpl(access::CODE, 3), size::P64)),
            (CODE16, segment(0, 0xffff, access::CODE, size::B16)),
            (DATA16, segment(0, 0xffff, access::DATA, size::B16)),
            (TR32, segment(TSS32, 0x2088, access::TSS32, size::B16)),
            (TR64, segment(TSS64, 0x2068, access::TSS32, size::B16)),
            (LDTR, segment(LDT, 0xff, access::LDT, size::B16)),
        ];
        for (sel, d) in gdt {
            g.put64(GDT + u32::from(sel & !7), d);
        }
        for v in 0..stubs::VECTORS {
            let level = if matches!(v, 3 | 4 | 0x20..=0x30) { 3 } else { 0 };
            let a = dpl(access::INT32, level);
            g.idt(v, gate(CODE0, stubs::stub32(v), a, 0));
            g.idt64(v, gate(CODE64, stubs::stub64(v), a, 0), 0);
        }
        // TSSs, and bitmaps that permit the kit's two ports.
        for (level, top) in STACKS.iter().enumerate().take(3) {
            g.put32(TSS32 + 4 + 8 * level as u32, *top);
            g.put32(TSS32 + 8 + 8 * level as u32, u32::from(FLAT[level].1));
            g.put64(TSS64 + 4 + 8 * level as u32, u64::from(*top));
        }
        for n in 0..7 {
            g.put64(TSS64 + 0x24 + 8 * n, u64::from(IST1 + 0x1000 * n));
        }
        g.put32(TSS32 + 0x64, 0x88 << 16);
        g.put32(TSS64 + 0x64, 0x68 << 16);
        g.put(TSS32 + 0x68, &[0xff; 32]);
        for bitmap in [TSS32 + 0x88, TSS64 + 0x68] {
            g.put(bitmap, &[0xff; 0x2001]);
            g.put(bitmap + LOG_PORT / 8, &[!(1 << (LOG_PORT % 8))]);
            g.put(bitmap + EXIT_PORT / 8, &[0x0f]);
        }
        g.put32(RECOVER + 12, u32::from(CODE0));
        g.put32(RESUME, 1 << 1 | 1 << 3 | 1 << 4);
        for (at, limit, base) in [(0, 0xfff, GDT), (16, 0x7ff, IDT32), (32, 0xfff, IDT64)] {
            g.put(DESCRIPTORS + at, &(limit as u16).to_le_bytes());
            g.put32(DESCRIPTORS + at + 2, base);
        }
        for at in [STUBS32, STUBS64] {
            g.put(at, &stubs::stubs());
        }
        for p in [stubs::protected(), stubs::long(), stubs::hex(32), stubs::hex(64)] {
            g.add(p);
        }
        g
    }

    /// Linear address of the operand of LGDT for the GDT.
    pub const GDT_OPERAND: u32 = DESCRIPTORS;
    /// Linear address of the operand of LIDT for [`IDT32`].
    pub const IDT32_OPERAND: u32 = DESCRIPTORS + 16;
    /// Linear address of the operand of LIDT for [`IDT64`].
    pub const IDT64_OPERAND: u32 = DESCRIPTORS + 32;
    /// Where 16-bit code finds the operand of LIDT for real mode's vector table (tests put it there).
    pub const IVT_LOW: u32 = 0x7e20;

    // ---- memory
    // --------------------------------------------------------------------------------------------------------

    fn offset(at: u32) -> usize {
        let at = if at < LOW_SIZE { LOW_COPY + at } else { at };
        assert!((IMAGE..IMAGE_END).contains(&at), "{at:#x} is not in the image");
        (at - IMAGE) as usize
    }

    /// Preloads bytes.
    pub fn put(&mut self, at: u32, bytes: &[u8]) {
        let o = Self::offset(at);
        self.image[o..o + bytes.len()].copy_from_slice(bytes);
    }

    /// Preloads a doubleword.
    pub fn put32(&mut self, at: u32, v: u32) {
        self.put(at, &v.to_le_bytes());
    }

    /// Preloads a quadword.
    pub fn put64(&mut self, at: u32, v: u64) {
        self.put(at, &v.to_le_bytes());
    }

    /// Preloads an IDT entry of protected mode.
    pub fn idt(&mut self, vector: u8, gate: u64) {
        self.put64(IDT32 + 8 * u32::from(vector), gate);
    }

    /// Preloads an IDT entry of 64-bit mode.
    pub fn idt64(&mut self, vector: u8, low: u64, high: u64) {
        self.put64(IDT64 + 16 * u32::from(vector), low);
        self.put64(IDT64 + 16 * u32::from(vector) + 8, high);
    }

    /// Adds a descriptor to the GDT; its selector (RPL 0).
    pub fn gdt(&mut self, d: u64) -> u16 {
        let sel = self.next_sel;
        self.next_sel += 8;
        self.put64(GDT + u32::from(sel), d);
        sel
    }

    /// Adds a 16-byte descriptor to the GDT.
    pub fn gdt16(&mut self, low: u64, high: u64) -> u16 {
        let sel = self.gdt(low);
        self.gdt(high);
        sel
    }

    /// Puts a descriptor into the LDT; its selector (RPL 0).
    pub fn ldt(&mut self, index: u16, d: u64) -> u16 {
        self.put64(LDT + 8 * u32::from(index), d);
        index * 8 + 4
    }

    /// Has vectors 0-31 in `mask` return from the handler with IRET.
    pub fn resume(&mut self, mask: u32) {
        self.put32(RESUME, mask);
    }

    // ---- programs
    // ------------------------------------------------------------------------------------------------------

    fn add(&mut self, p: Prog) -> u32 {
        let a = p.assemble();
        assert!(a.bytes.len() < 0xf000);
        for (name, at) in &a.names {
            let clash = self.names.insert(*at, name.clone());
            assert!(
                clash.is_none() || clash.as_deref() == Some(name),
                "two names at {at:#x}: {clash:?}, {name}"
            );
        }
        self.put(a.base, &a.bytes);
        let end = (a.base + a.bytes.len() as u32).next_multiple_of(64);
        if a.base >= CODE {
            self.next_code = self.next_code.max(end);
        } else if a.base < LOW_SIZE {
            self.next_low = self.next_low.max(end);
        }
        a.base
    }

    /// Adds a 32-bit program; its address.
    pub fn code32(&mut self, f: impl FnOnce(&mut Prog)) -> u32 {
        let mut p = Prog::new(32, self.next_code);
        f(&mut p);
        self.add(p)
    }

    /// Adds a 64-bit program; its address.
    pub fn code64(&mut self, f: impl FnOnce(&mut Prog)) -> u32 {
        let mut p = Prog::new(64, self.next_code);
        f(&mut p);
        self.add(p)
    }

    /// Adds a 16-bit program in low memory, IP being the linear address; its address.
    pub fn code16(&mut self, f: impl FnOnce(&mut Prog)) -> u32 {
        let mut p = Prog::new(16, self.next_low);
        f(&mut p);
        self.add(p)
    }

    /// Adds a 32-bit program in low memory (whose offsets fit 16 bits); its address.
    pub fn low32(&mut self, f: impl FnOnce(&mut Prog)) -> u32 {
        let mut p = Prog::new(32, self.next_low);
        f(&mut p);
        self.add(p)
    }

    /// Where a name stands.
    pub fn addr(&self, name: &str) -> u32 {
        let found = self.names.iter().find(|(_, n)| *n == name);
        *found.unwrap_or_else(|| panic!("no {name}")).0
    }

    /// Gives an address a name, for the log.
    pub fn alias(&mut self, at: u32, name: &str) {
        self.names.insert(at, name.to_owned());
    }

    /// Adds the main program and the start-up code that leads to it. The guest ends where the program does.
    pub fn main(&mut self, main: Main, f: impl FnOnce(&mut Prog)) {
        let bits = if matches!(main, Main::Long(_)) { 64 } else { 32 };
        let mut p = Prog::new(bits, self.next_code);
        f(&mut p);
        p.exit();
        let at = self.add(p);
        self.start(&main, at);
        if let Main::Paged(t) | Main::Long(t) = &main {
            self.put(TABLES, t.bytes());
        }
    }

    /// Multiboot header and start-up code.
    fn start(&mut self, main: &Main, entry: u32) {
        const FLAGS: u32 = 1 << 16;
        const MAGIC: u32 = 0x1bad_b002;
        let header = [
            MAGIC,
            FLAGS,
            0u32.wrapping_sub(MAGIC).wrapping_sub(FLAGS),
            IMAGE,
            IMAGE,
            IMAGE_END,
            RAM_END,
            IMAGE + 0x40,
        ];
        for (i, w) in header.iter().enumerate() {
            self.put32(IMAGE + 4 * i as u32, *w);
        }
        let mut program = Prog::new(32, IMAGE + 0x40);
        let p = &mut program;
        asm!(p; cli; cld; lgdt fword_ptr(Self::GDT_OPERAND); lidt fword_ptr(Self::IDT32_OPERAND); mov eax, u32::from(DATA0);
            mov ds, ax; mov es, ax; mov ss, ax; mov fs, ax; mov gs, ax; mov esp, STACK_MAIN;
            mov esi, LOW_COPY; xor edi, edi; mov ecx, LOW_SIZE / 4);
        p.rep();
        asm!(p; movsd; mov al, 0xff; out 0x21, al; out 0xa1, al);
        let (tables, long) = match main {
            Main::Protected => (None, false),
            Main::Paged(t) => (Some(t), false),
            Main::Long(t) => (Some(t), true),
        };
        if let Some(t) = tables {
            let mut bits = 1 << 4;
            if t.format != Format::Legacy {
                bits |= 1 << 5;
            }
            if t.format == Format::Level5 {
                bits |= 1 << 12;
            }
            p.set_cr4(bits);
            asm!(p; mov eax, t.root(); mov cr3, eax);
            if t.format != Format::Legacy {
                let efer = 1 << 11 | if long { 1 << 8 } else { 0 };
                p.wrmsr(0xc000_0080, efer);
            }
        }
        // CR0: PE, ET, NE, and PG.
        let cr0_bits = 0x31 | if tables.is_some() { 1 << 31 } else { 0 };
        asm!(p; mov eax, cr0_bits; mov cr0, eax);
        if long {
            asm!(p; mov eax, u32::from(TR64); ltr ax; lidt fword_ptr(Self::IDT64_OPERAND); xor eax, eax; xor ebx, ebx;
                xor ecx, ecx; xor edx, edx; xor esi, esi; xor ebp, ebp; jmp_far CODE64, entry);
        } else {
            asm!(p; mov eax, u32::from(TR32); ltr ax; xor eax, eax; xor ebx, ebx; xor ecx, ecx; xor edx, edx;
                xor esi, esi; xor ebp, ebp; jmp_far CODE0, entry);
        }
        let a = program.assemble();
        assert!(a.bytes.len() < 0xe00);
        self.put(a.base, &a.bytes);
    }

    // ---- running
    // -------------------------------------------------------------------------------------------------------

    /// QEMU writes another log, and why that is not what the manual says.
    pub fn qemu_deviates(&mut self, log: &str, reason: &'static str) {
        self.qemu_expected = Some((log.to_owned(), reason));
    }

    /// QEMU writes what is expected but for lines: each pair is a line of the manual's log and QEMU's line instead (or
    /// several, or none).
    pub fn qemu_differs(&mut self, lines: &[(&str, &str)], reason: &'static str) {
        let own = lines.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned(), reason));
        self.qemu_lines.extend(own);
    }

    /// QEMU (TCG) never sets the EXT bit of an error code: the manual's log is compared without it.
    pub fn qemu_clears_ext(&mut self) {
        self.qemu_ext = true;
    }

    /// QEMU (TCG) leaves P of a page fault's error code clear when it sets RSVD: the manual's log is compared without
    /// it.
    pub fn qemu_reserved_without_p(&mut self) {
        self.qemu_rsvd = true;
    }

    /// Runs the guest on another CPU model than `max`, as `-cpu` names it.
    pub fn model(&mut self, model: &'static str) {
        self.model = model;
    }

    /// Has each exception's line tell the handler's stack.
    pub fn show_stacks(&mut self) {
        self.stacks = true;
    }

    /// Runs the guest in Mynah and in QEMU; panics if a log differs from what is expected. With `MYNAH_LOGS=directory`
    /// in the environment the logs are written there, too.
    pub fn check(&self, expected: &str) {
        self.compare(expected, true);
    }

    /// Runs the guest in Mynah alone, because QEMU (TCG) does not do this at all.
    pub fn check_manual(&self, expected: &str, reason: &str) {
        eprintln!("{}: compared with the manual only: {reason}", test_name());
        self.compare(expected, false);
    }

    /// Runs the guest with each engine, KVM and hand-overs among them, where the host has KVM: what is here is what KVM
    /// does right even where it is emulated itself. How often it was handed over.
    pub fn check_everywhere(&self, expected: &str) -> u64 {
        let expected = tidy(expected);
        let mut engines = machine::Engine::all();
        engines.retain(|(engine, _)| *engine != machine::Engine::Kvm);
        if machine::kvm_is_there() {
            engines.push((machine::Engine::Kvm, "by KVM"));
            engines.push((machine::Engine::InTurns, "by translator and KVM in turns"));
        }
        for kept in machine::kvm_keeps() {
            engines.push((machine::Engine::KvmKeeping(kept), "by KVM with interrupt controllers"));
            engines.push((machine::Engine::InTurnsKeeping(kept), KEEPING_IN_TURNS));
        }
        self.check_by(&engines, &expected)
    }

    /// Runs the guest by the translator, and by translator and KVM in turns; how often it was handed over.
    pub fn check_in_turns(&self, expected: &str) -> u64 {
        let mut engines = machine::Engine::all();
        engines.retain(|(engine, _)| *engine == machine::Engine::Tiers);
        if machine::kvm_is_there() {
            engines.push((machine::Engine::InTurns, "by translator and KVM in turns"));
        }
        self.check_by(&engines, &tidy(expected))
    }

    /// The same with interrupt controllers in KVM's kernel: how often it was handed over with each that this host's KVM can
    /// keep there.
    pub fn check_in_turns_keeping(&self, expected: &str) -> Vec<u64> {
        let by = |kept| (machine::Engine::InTurnsKeeping(kept), KEEPING_IN_TURNS);
        machine::kvm_keeps().into_iter().map(|kept| self.check_by(&[by(kept)], &tidy(expected))).collect()
    }

    /// What the guest writes by this engine.
    pub fn log_by(&self, engine: machine::Engine) -> String {
        self.decode(&machine::run(&self.loaded(), engine).log, true)
    }

    fn check_by(&self, engines: &[(machine::Engine, &'static str)], expected: &str) -> u64 {
        let mut changes = 0;
        for &(engine, name) in engines {
            let outcome = machine::run(&self.loaded(), engine);
            let got = self.decode(&outcome.log, true);
            keep(name, &got);
            let who = format!("Mynah ({name}, {engine:?})");
            assert!(got == expected, "{}", log::difference(&who, expected, &got));
            changes += outcome.changes;
        }
        changes
    }

    /// How many regions the translator compiles for this guest; `None` if this host has no translator.
    pub fn translated(&self) -> Option<u64> {
        let translator =
            machine::Engine::all().into_iter().find(|(e, _)| *e == machine::Engine::Translator)?;
        Some(machine::run(&self.loaded(), translator.0).translated)
    }

    fn loaded(&self) -> machine::Image<'_> {
        machine::Image { bytes: &self.image, model: self.model, read_only: &self.read_only }
    }

    /// Has the page at `at` be RAM that cannot be written, once it is loaded, as the chipset makes firmware's shadow.
    /// In Mynah only.
    pub fn write_protect(&mut self, at: u32) {
        self.read_only.push(at & !0xfff);
    }

    /// Runs a guest that does not end by itself, with each engine, and kicks it: the vCPU must leave its run loop in a
    /// few seconds, and again when it is run on, where `there` says it is to be. `look` judges the states in which that
    /// was, in order.
    pub fn check_kicks(
        &self,
        there: impl Fn(&State) -> bool + Clone + Send + 'static,
        look: impl Fn(&str, &[State]),
    ) {
        for (engine, name) in machine::Engine::all() {
            match machine::kick(&self.loaded(), engine, 3, there.clone()) {
                Ok(states) => look(name, &states),
                Err(e) => panic!("{name}: {e}"),
            }
        }
    }

    fn compare(&self, expected: &str, in_qemu: bool) {
        let expected = tidy(expected);
        let mut wrong = Vec::new();
        for (engine, name) in machine::Engine::all() {
            let got = self.decode(&machine::run(&self.loaded(), engine).log, true);
            keep(name, &got);
            if got != expected {
                wrong.push(log::difference(&format!("Mynah ({name})"), &expected, &got));
                if engine == machine::Engine::Kvm {
                    wrong.push(self.beside_qemu_by_kvm(&got));
                }
            }
        }
        let raw = if in_qemu { qemu::run(&test_name(), self.model, &self.image) } else { None };
        if let Some(raw) = raw {
            let got = self.decode(&raw, false);
            keep("qemu", &got);
            let (want, why) = match &self.qemu_expected {
                Some((log, why)) => (tidy(log), format!("QEMU (deviates: {why})")),
                None => self.qemu_lines(&expected),
            };
            if got != want {
                wrong.push(log::difference(&why, &want, &got));
            }
        } else if in_qemu {
            eprintln!("{}: {}: compared with the manual only", test_name(), qemu::why_not());
        }
        if !wrong.is_empty() {
            panic!("{}", wrong.join("\n"));
        }
    }

    /// Whether a log of Mynah's by KVM that is wrong is QEMU's by this host's KVM, too: then it is that KVM.
    fn beside_qemu_by_kvm(&self, ours: &str) -> String {
        let Some(raw) = qemu::run_by("kvm", &test_name(), self.model, &self.image) else {
            return qemu::why_not().to_owned();
        };
        let got = self.decode(&raw, false);
        keep("qemu by KVM", &got);
        match got == ours {
            true => "--- QEMU by this host's KVM writes the same\n".to_owned(),
            false => log::difference("QEMU by this host's KVM, beside Mynah by KVM", ours, &got),
        }
    }

    /// The log expected of QEMU, and the reasons for what differs.
    fn qemu_lines(&self, expected: &str) -> (String, String) {
        let mut why: Vec<&str> = self.qemu_lines.iter().map(|(_, _, r)| *r).collect();
        why.dedup();
        if self.qemu_rsvd {
            why.insert(0, "no P with RSVD");
        }
        for (line, _, _) in &self.qemu_lines {
            assert!(expected.lines().any(|l| l == line), "no line {line:?} to differ from");
        }
        if self.qemu_ext {
            why.insert(0, "no EXT in error codes");
        }
        let why =
            if why.is_empty() { "QEMU".to_owned() } else { format!("QEMU (deviates: {})", why.join("; ")) };
        let line = |l: &str| match self.qemu_lines.iter().find(|(m, _, _)| m == l) {
            Some((_, q, _)) => tidy(q),
            None if self.qemu_rsvd => format!("{}\n", log::reserved_without_p(l)),
            None if self.qemu_ext => format!("{}\n", log::without_ext(l)),
            None => format!("{l}\n"),
        };
        (expected.lines().map(line).collect(), why)
    }

    fn decode(&self, raw: &str, rf: bool) -> String {
        log::decode(raw, &self.names, log::Style { stacks: self.stacks, rf })
    }
}

fn test_name() -> String {
    std::thread::current().name().unwrap_or("guest").replace("::", "-")
}

/// Writes a log to the directory that `MYNAH_LOGS` names.
fn keep(kind: &str, log: &str) {
    if let Some(dir) = std::env::var_os("MYNAH_LOGS") {
        let file = std::path::Path::new(&dir).join(format!("{}.{kind}", test_name()));
        std::fs::write(file, log).expect("writing a log to MYNAH_LOGS");
    }
}

/// Lines without indentation and empty lines.
fn tidy(text: &str) -> String {
    text.lines().map(str::trim).filter(|l| !l.is_empty()).map(|l| format!("{l}\n")).collect()
}
