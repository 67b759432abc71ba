//! Mynah's side: one vCPU whose page tables, descriptor tables and registers give it the address space and the
//! environment that a program has under 64-bit Linux. A case ends in an interrupt gate whose handler is HLT; the
//! outcome is read from the interrupt's stack frame.

use crate::layout::*;
use mynah_cpu::board::NoBoard;
use mynah_cpu::mode::ModeKey;
use mynah_cpu::state::{F80, Segment, State, cr0, cr4, efer, gpr, seg};
use mynah_cpu::{Cpu, CpuModel, Events, Exit};
use mynah_jit::tier::{Counters, Optimize, Translating};
use mynah_mmu::{GuestRam, PhysMemory};
use std::sync::Arc;

/// Where supervisor pages stand: this plus the physical address.
const KERNEL: u64 = 0xffff_8000_0000_0000;
const GDT: u64 = 0x1000;
const IDT: u64 = 0x2000;
const TSS: u64 = 0x3000;
const STACK: u64 = 0x4000;
const STACK_TOP: u64 = 0x6000;
const HANDLERS: u64 = 0x6000;
const LDT_AT: u64 = 0x7000;
const TABLES: u64 = 0x1_0000;
const CODE_AT: u64 = 0x10_0000;
const DATA_AT: u64 = 0x20_0000;
const RAM: u64 = 0x40_0000;

/// Descriptors of the GDT as 64-bit Linux has them; the task's and the LDT's are added.
const GDT_ENTRIES: [u64; 7] = [
    0,
    0x00cf_9b00_0000_ffff,
    0x00af_9b00_0000_ffff,
    0x00cf_9300_0000_ffff,
    0x00cf_fb00_0000_ffff,
    0x00cf_f300_0000_ffff,
    0x00af_fb00_0000_ffff,
];

/// A vCPU that runs cases.
pub struct Guest {
    cpu: Box<Cpu>,
    mem: Arc<PhysMemory>,
    events: Arc<Events>,
    next_table: u64,
    background: Vec<u8>,
    counters: Option<Arc<Counters>>,
    /// The blocks of the last case may be compiled; how many such cases there were.
    translatable: bool,
    translated_cases: u64,
}

impl Guest {
    /// A vCPU of model `model` (`host`, `max`, ...) that is interpreted.
    pub fn new(model: &str) -> Result<Self, String> {
        let model = CpuModel::parse(model).map_err(|e| e.to_string())?;
        let ram = GuestRam::new(RAM).map_err(|e| e.to_string())?;
        let mem = PhysMemory::new(ram, RAM);
        let events = Arc::new(Events::default());
        let cpu = Cpu::new(0, mem.clone(), Arc::new(NoBoard), events.clone(), Arc::new(model));
        let mut g = Self {
            cpu,
            mem,
            events,
            next_table: TABLES + 0x1000,
            background: vec![0; DATA_LEN],
            counters: None,
            translatable: false,
            translated_cases: 0,
        };
        g.build();
        Ok(g)
    }

    /// A vCPU whose blocks are compiled when they have run `hot_after` times; before that they are interpreted. An
    /// error also says why this host has no translator.
    pub fn translated(model: &str, optimize: Optimize, hot_after: u32) -> Result<Self, String> {
        let mut g = Self::new(model)?;
        let tier = Translating::at_once_with(g.events.clone(), optimize)?;
        g.counters = Some(tier.counters());
        g.cpu.set_tier(Box::new(tier), hot_after);
        Ok(g)
    }

    /// What the translator has done, if there is one.
    pub fn counters(&self) -> Option<&Counters> {
        self.counters.as_deref()
    }

    /// The state that the last case has left.
    pub fn state(&self) -> &State {
        &self.cpu.state
    }

    /// Whether the last case is one for compiled code: in 64-bit mode or flat 32-bit mode, and not stepped through.
    pub fn is_translatable(&self) -> bool {
        self.translatable
    }

    /// How many runs were of such cases.
    pub fn translated_cases(&self) -> u64 {
        self.translated_cases
    }

    /// The model, to be kept.
    pub fn shared_model(&self) -> Arc<CpuModel> {
        self.cpu.model.clone()
    }

    /// The signals of the vCPU: raising `EV_KICK` ends a run that hangs.
    pub fn events(&self) -> Arc<Events> {
        self.events.clone()
    }

    /// The model.
    pub fn model(&self) -> &CpuModel {
        &self.cpu.model
    }

    fn ram(&self, at: u64) -> *mut u8 {
        assert!(at < RAM, "inside RAM");
        self.mem.ram().base().wrapping_add(at as usize)
    }

    fn map(&mut self, linear: u64, phys: u64, flags: u64) {
        let mut table = TABLES;
        for level in [39, 30, 21] {
            let at = table + (linear >> level & 511) * 8;
            let e = self.mem.read_u64(at);
            table = if e & 1 != 0 {
                e & !0xfff
            } else {
                let t = self.next_table;
                self.next_table += 0x1000;
                self.mem.write_u64(at, t | 7);
                t
            };
        }
        self.mem.write_u64(table + (linear >> 12 & 511) * 8, phys | flags);
    }

    fn build(&mut self) {
        const NX: u64 = 1 << 63;
        for page in (0x1000..TABLES).step_by(0x1000) {
            self.map(KERNEL + page, page, if page == HANDLERS { 0x61 } else { 0x63 | NX });
        }
        for i in 0..CODE_PAGES {
            self.map(code_page(i), CODE_AT + i as u64 * 4096, 0x65);
        }
        for o in (0..DATA_LEN).step_by(4096) {
            let write = if o < WRITABLE_LEN { 2 } else { 0 };
            self.map(data_address(o), DATA_AT + o as u64, 0x65 | write | NX);
        }
        for (i, d) in GDT_ENTRIES.iter().enumerate() {
            self.mem.write_u64(GDT + i as u64 * 8, *d);
        }
        let system = |kind: u64, at: u64, limit: u64| {
            let base = KERNEL + at;
            let low = limit | (base & 0xff_ffff) << 16 | kind << 40 | 1 << 47 | (base >> 24 & 0xff) << 56;
            (low, base >> 32)
        };
        for (slot, (low, high)) in
            [(8, system(0xb, TSS, 0x67)), (10, system(2, LDT_AT, LDT.len() as u64 * 8 - 1))]
        {
            self.mem.write_u64(GDT + slot * 8, low);
            self.mem.write_u64(GDT + slot * 8 + 8, high);
        }
        // The segment in whose limit Linux keeps the CPU's number.
        self.mem.write_u64(GDT + 15 * 8, 0x0040_f500_0000_0000);
        for (i, s) in LDT.iter().enumerate() {
            self.mem.write_u64(LDT_AT + i as u64 * 8, s.descriptor());
        }
        self.mem.write_u64(TSS + 4, KERNEL + STACK_TOP);
        self.mem.write_u16(TSS + 102, 0x68);
        for v in 0..256u64 {
            let to = KERNEL + HANDLERS + v * 16;
            let dpl = if v == 3 || v == 4 { 3 } else { 0 };
            let low = to & 0xffff | 0x10 << 16 | 0xe << 40 | dpl << 45 | 1 << 47 | (to >> 16 & 0xffff) << 48;
            self.mem.write_u64(IDT + v * 16, low);
            self.mem.write_u64(IDT + v * 16 + 8, to >> 32);
            self.mem.write_u8(HANDLERS + v * 16, 0xf4);
        }
        let xcr0 = self.cpu.model.xcr0_mask() & 7;
        let s = &mut self.cpu.state;
        s.cr0 = cr0::PE | cr0::MP | cr0::ET | cr0::NE | cr0::WP | cr0::AM | cr0::PG;
        s.cr3 = TABLES;
        s.cr4 = cr4::PAE
            | cr4::DE
            | cr4::PSE
            | cr4::MCE
            | cr4::PGE
            | cr4::OSFXSR
            | cr4::OSXMMEXCPT
            | cr4::OSXSAVE
            | cr4::SMEP
            | cr4::SMAP
            | cr4::UMIP
            | cr4::FSGSBASE;
        s.xcr0 = xcr0;
        s.msr.efer = efer::SCE | efer::LME | efer::LMA | efer::NXE;
        s.gdtr = mynah_cpu::state::Table { base: KERNEL + GDT, limit: 127 };
        s.idtr = mynah_cpu::state::Table { base: KERNEL + IDT, limit: 0xfff };
        s.tr = Segment { base: KERNEL + TSS, limit: 0x67, attr: 0x8b, sel: 0x40 };
        s.ldtr = Segment { base: KERNEL + LDT_AT, limit: LDT.len() as u32 * 8 - 1, attr: 0x82, sel: 0x50 };
        s.cpl = 3;
        for i in 0..6 {
            s.seg[i] = descriptor_of(sel::DATA, &self.mem);
        }
        s.seg[seg::CS] = descriptor_of(sel::CODE64, &self.mem);
        self.cpu.sync_all();
    }

    /// Has floating point and vectors computed by the code of hosts other than x86-64.
    pub fn use_portable_code(&mut self) {
        self.cpu.use_portable_code();
    }

    /// Has the guest page with five levels, as the host does: what is canonical depends on it. The address space stays
    /// what it was.
    pub fn use_five_levels(&mut self) {
        let [top, user, kernel] = [0, 1, 2].map(|n| self.next_table + n * 0x1000);
        self.next_table += 0x3000;
        for n in 0..512 {
            let e = self.mem.read_u64(TABLES + n * 8);
            self.mem.write_u64(if n < 256 { user } else { kernel } + n * 8, e);
        }
        self.mem.write_u64(top, user | 7);
        self.mem.write_u64(top + 511 * 8, kernel | 7);
        self.cpu.state.cr3 = top;
        self.cpu.state.cr4 |= cr4::LA57;
        self.cpu.sync_all();
    }

    /// Has the guest protect pages by keys, as the host does: RDPKRU and WRPKRU are there. All pages have key 0, to which
    /// each case has all rights when it begins.
    pub fn use_protection_keys(&mut self) {
        self.cpu.state.cr4 |= cr4::PKE;
        self.cpu.sync_all();
    }

    /// Replaces the background.
    pub fn set_background(&mut self, background: &[u8]) {
        self.background.copy_from_slice(background);
        // SAFETY: data memory lies in RAM, and this vCPU, which is not running, is the only user of it.
        unsafe { self.ram(DATA_AT).copy_from_nonoverlapping(background.as_ptr(), DATA_LEN) };
    }

    /// Replaces all code, for cases that have none of their own; forgets what stood there.
    pub fn set_code(&mut self, code: &[u8]) {
        assert_eq!(code.len(), CODE_PAGES * 4096, "all pages");
        // SAFETY: code memory lies in RAM, and this vCPU, which is not running, is the only user of it.
        unsafe { self.ram(CODE_AT).copy_from_nonoverlapping(code.as_ptr(), code.len()) };
        self.cpu.forget_code();
    }

    /// Forgets the cases before: their code slots may be used again.
    pub fn new_batch(&mut self) {
        self.cpu.forget_code();
    }

    /// Runs a case.
    pub fn run(&mut self, case: &Case, out: &mut Outcome) -> Result<(), NoException> {
        // SAFETY: code and data memory lie in RAM, of which this vCPU, which is not running, is the only user.
        unsafe {
            case.place(std::slice::from_raw_parts_mut(self.ram(CODE_AT), CODE_PAGES * 4096));
            apply_patches(case, self.ram(DATA_AT), self.background.as_ptr(), false);
        }
        self.load(&case.regs);
        let key = ModeKey(self.cpu.mode_key);
        let flat = key.has(ModeKey::FLAT) && key.has(ModeKey::D32) && key.has(ModeKey::STACK32);
        self.translatable = (key.has(ModeKey::LONG) || flat) && case.regs.rflags & TF == 0;
        self.translated_cases += u64::from(self.translatable);
        let mut exit = self.cpu.run();
        while exit == Exit::Budget {
            exit = self.cpu.run();
        }
        let result = self.save(exit, out);
        // SAFETY: as above.
        unsafe {
            out.collect(self.ram(DATA_AT), self.background.as_ptr());
            apply_patches(case, self.ram(DATA_AT), self.background.as_ptr(), true);
        }
        result
    }

    fn load(&mut self, r: &Regs) {
        self.cpu.set_pkru(0);
        let s = &mut self.cpu.state;
        s.gpr[..16].copy_from_slice(&r.gpr);
        s.gpr[gpr::RIP] = r.rip;
        s.set_rflags(r.rflags);
        s.cr2 = 0;
        s.cpl = 3;
        s.activity = mynah_cpu::state::Activity::Running;
        s.shadow = mynah_cpu::state::Shadow::None;
        s.dr[6] = 0xffff_0ff0;
        let fpu = &mut s.fpu;
        fpu.cw = r.fx16(0);
        let sw = r.fx16(2);
        fpu.top = (sw >> 11 & 7) as u8;
        fpu.sw = sw & !0x3800;
        fpu.empty = !r.fx[4];
        fpu.fop = r.fx16(6);
        fpu.fip = r.fx64(8);
        fpu.fdp = r.fx64(16);
        (fpu.fcs, fpu.fds) = (0, 0);
        for n in 0..8u8 {
            let (exp, mant) = r.st(usize::from(n));
            fpu.r[usize::from((fpu.top + n) & 7)] = F80 { mant, exp };
        }
        s.mxcsr = r.mxcsr();
        for n in 0..16 {
            s.xmm[n].set_x(r.xmm(n));
            s.xmm[n].set_y_high(r.ymm_high(n));
        }
        for i in 0..6 {
            s.seg[i] = descriptor_of(r.sel[i], &self.mem);
        }
        for i in [seg::FS, seg::GS] {
            if r.base[i - seg::FS] != 0 {
                self.cpu.state.seg[i].base = r.base[i - seg::FS];
            }
        }
        self.cpu.sync_mode();
        for i in 0..6 {
            self.cpu.sync_segment(i);
        }
        self.cpu.sync_mode();
    }

    fn save(&mut self, exit: Exit, out: &mut Outcome) -> Result<(), NoException> {
        let s = &self.cpu.state;
        let r = &mut out.regs;
        r.gpr.copy_from_slice(&s.gpr[..16]);
        r.rip = s.gpr[gpr::RIP];
        r.rflags = s.rflags();
        for i in 0..6 {
            r.sel[i] = s.seg[i].sel;
        }
        r.base = [s.seg[seg::FS].base, s.seg[seg::GS].base];
        r.fx = [0; 512];
        let fpu = &s.fpu;
        r.put_fx(0, &fpu.cw.to_le_bytes());
        r.put_fx(2, &(fpu.sw & !0x3800 | u16::from(fpu.top & 7) << 11).to_le_bytes());
        r.put_fx(4, &[!fpu.empty, 0]);
        r.put_fx(6, &fpu.fop.to_le_bytes());
        r.put_fx(8, &fpu.fip.to_le_bytes());
        r.put_fx(16, &fpu.fdp.to_le_bytes());
        for n in 0..8u8 {
            let v = fpu.r[usize::from((fpu.top + n) & 7)];
            r.put_fx(32 + 16 * usize::from(n), &v.mant.to_le_bytes());
            r.put_fx(40 + 16 * usize::from(n), &v.exp.to_le_bytes());
        }
        r.put_fx(24, &s.mxcsr.to_le_bytes());
        for n in 0..16 {
            r.put_fx(160 + 16 * n, &s.xmm[n].x().to_le_bytes());
            r.put_ymm_high(n, s.xmm[n].y_high());
        }
        (out.vector, out.error, out.cr2) = (0xfe, 0, 0);
        match exit {
            Exit::Halt => (),
            Exit::Kick => return Err(NoException::Endless),
            _ => return Err(NoException::Stopped(exit)),
        }
        let at = r.rip.wrapping_sub(1).wrapping_sub(KERNEL + HANDLERS);
        if s.cpl != 0 || at >= 4096 || at & 15 != 0 {
            return Err(NoException::OtherHalt);
        }
        out.vector = (at >> 4) as u32;
        let mut frame = r.gpr[gpr::RSP].wrapping_sub(KERNEL);
        if !(STACK..=STACK_TOP - 40).contains(&frame) {
            return Err(NoException::Frame);
        }
        if matches!(out.vector, 8 | 10..=14 | 17 | 21) {
            out.error = self.mem.read_u64(frame) as u32;
            frame += 8;
        }
        let word = |n: u64| self.mem.read_u64(frame + n * 8);
        r.rip = word(0);
        r.sel[seg::CS] = word(1) as u16;
        r.rflags = word(2);
        r.gpr[gpr::RSP] = word(3);
        r.sel[seg::SS] = word(4) as u16;
        if out.vector == 14 {
            out.cr2 = s.cr2;
        }
        Ok(())
    }
}

/// Why a case has no outcome in Mynah.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoException {
    /// It was stopped by [`Engines::kicker`](crate::engines::Engines::kicker).
    #[error("Mynah did not come to an exception in time")]
    Endless,
    /// The vCPU stopped by itself.
    #[error("Mynah stopped with {0:?} instead of coming to an exception")]
    Stopped(Exit),
    /// It ran a HLT that is no handler's.
    #[error("Mynah halted outside the exception handlers")]
    OtherHalt,
    /// The exception's frame is elsewhere.
    #[error("Mynah's exception frame is not on the supervisor's stack")]
    Frame,
}

/// The segment that loading `selector` gives.
fn descriptor_of(selector: u16, mem: &PhysMemory) -> Segment {
    if selector & !3 == 0 {
        return Segment { base: 0, limit: 0, attr: Segment::UNUSABLE, sel: selector };
    }
    let table = if selector & 4 != 0 { LDT_AT } else { GDT };
    let d = mem.read_u64(table + u64::from(selector & !7));
    let raw = (d & 0xffff) as u32 | (d >> 32 & 0xf_0000) as u32;
    let attr = (d >> 40 & 0xf0ff) as u32;
    let limit = if attr & 1 << 15 != 0 { raw << 12 | 0xfff } else { raw };
    Segment { base: d >> 16 & 0xff_ffff | d >> 32 & 0xff00_0000, limit, attr, sel: selector }
}
