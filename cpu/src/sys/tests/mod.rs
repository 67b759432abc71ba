//! Small guests against the system instructions and event delivery: descriptor tables in RAM, a handler with HLT for
//! each vector.
//!
//! Each test puts a few instructions at [`CODE`], runs until HLT or shutdown, and looks at where the CPU came out and
//! what it pushed.
use super::descriptor::kind;
use crate::board::{Board, EV_INTR, Events};
use crate::cpu::Cpu;
use crate::event::Exit;
use crate::model::CpuModel;
use crate::state::{Segment, Table, cr0, cr4, efer, fl, gpr, seg};
use iced_x86::code_asm::CodeAssembler;
use mynah_mmu::{GuestRam, PhysMemory};
use parking_lot::Mutex;
use std::sync::Arc;

mod faults;
mod gates;
mod long;
mod makers;
mod real;
mod registers;
mod tasks;
mod xstate;

pub const GDT: u64 = 0x1000;
pub const IDT: u64 = 0x2000;
pub const LDT: u64 = 0x3000;
pub const TSS: u64 = 0x3800;
pub const TSS2: u64 = 0x4000;
pub const TSS16: u64 = 0x4800;
pub const STACK0: u64 = 0x8000;
pub const STACK3: u64 = 0x9000;
pub const IST1: u64 = 0xa000;
pub const CODE: u64 = 0x1_0000;
pub const HANDLERS: u64 = 0x2_0000;
pub const TABLES: u64 = 0x4_0000;
pub const DATA: u64 = 0x6_0000;

pub const CODE0: u16 = 0x08;
pub const DATA0: u16 = 0x10;
pub const CODE3: u16 = 0x1b;
pub const DATA3: u16 = 0x23;
pub const TSS_SEL: u16 = 0x28;
pub const TSS2_SEL: u16 = 0x30;
pub const TSS16_SEL: u16 = 0x38;
pub const LDT_SEL: u16 = 0x40;
pub const GATE_SEL: u16 = 0x48;
pub const CONFORMING: u16 = 0x50;
pub const ABSENT: u16 = 0x58;
pub const TASK_GATE_SEL: u16 = 0x60;
pub const CODE64: u16 = 0x78;
pub const DATA3L: u16 = 0x83;
pub const CODE64_3: u16 = 0x8b;

/// A board that logs port writes.
#[derive(Default)]
pub struct TestBoard {
    pub writes: Mutex<Vec<(u16, u8, u32)>>,
    pub apic_base: Mutex<u64>,
    pub cr8: Mutex<u8>,
    /// How far the vCPU's time-stamp counter is ahead.
    pub tsc_ahead: Mutex<u64>,
    /// A late timer: the next reading of the time raises these events' interrupt.
    pub late: Mutex<Option<Arc<Events>>>,
}

impl Board for TestBoard {
    fn port_read(&self, port: u16, size: u8) -> u32 {
        (0x1234_5600 | u32::from(port & 0xff)) & (u32::MAX >> (32 - 8 * size))
    }
    fn port_write(&self, port: u16, size: u8, value: u32) {
        self.writes.lock().push((port, size, value));
    }
    fn acknowledge(&self) -> Option<u8> {
        Some(0x31)
    }
    fn cr8(&self) -> u8 {
        *self.cr8.lock()
    }
    fn set_cr8(&self, v: u8) {
        *self.cr8.lock() = v;
    }
    fn apic_msr_read(&self, index: u32) -> Result<u64, ()> {
        if index == 0x1b { Ok(*self.apic_base.lock()) } else { Err(()) }
    }
    fn apic_msr_write(&self, index: u32, value: u64) -> Result<(), ()> {
        if index == 0x1b {
            *self.apic_base.lock() = value;
            return Ok(());
        }
        Err(())
    }
    fn tsc(&self) -> u64 {
        if let Some(events) = self.late.lock().take() {
            events.raise(EV_INTR);
        }
        1000
    }
    fn tsc_moved(&self, offset: u64) {
        *self.tsc_ahead.lock() = offset;
    }
}

/// A vCPU with its memory.
pub struct Rig {
    pub cpu: Box<Cpu>,
    pub board: Arc<TestBoard>,
}

/// A segment descriptor; `attr` as in [`Segment::attr`], the limit counted in the granularity that it says.
pub fn descriptor(base: u64, limit: u64, attr: u64) -> u64 {
    limit & 0xffff
        | (base & 0xff_ffff) << 16
        | attr << 40
        | (limit >> 16 & 15) << 48
        | (base >> 24 & 0xff) << 56
}

/// A gate of 8 bytes: `attr` is the access byte.
pub fn gate(sel: u16, off: u64, attr: u64, count: u64) -> u64 {
    off & 0xffff | u64::from(sel) << 16 | count << 32 | attr << 40 | (off >> 16 & 0xffff) << 48
}

/// Where the handler of `vector` stands; each is HLT.
pub fn handler(vector: u64) -> u64 {
    HANDLERS + vector * 16
}

impl Rig {
    /// Real mode, with `-cpu max`, CS:IP = 1000h:0, SS:SP = 0:8000h.
    pub fn real() -> Self {
        Self::with_model("max")
    }

    pub fn with_model(model: &str) -> Self {
        let mem = PhysMemory::new(GuestRam::new(2 << 20).unwrap(), 2 << 20);
        let board = Arc::new(TestBoard::default());
        *board.apic_base.lock() = 0xfee0_0900;
        let model = Arc::new(CpuModel::parse(model).unwrap());
        let mut cpu = Cpu::new(0, mem, board.clone(), Arc::new(Events::default()), model);
        let s = &mut cpu.state;
        s.seg[seg::CS] = Segment { base: CODE, limit: 0xffff, attr: 0x9b, sel: 0x1000 };
        s.gpr[gpr::RIP] = 0;
        s.gpr[gpr::RSP] = STACK0;
        s.idtr = Table { base: 0, limit: 0x3ff };
        cpu.sync_all();
        let mut r = Self { cpu, board };
        for v in 0..256 {
            r.write8(handler(v), 0xf4);
            // Real-mode vectors: 2000h:(vector * 16).
            r.write32(v * 4, 0x2000_0000 | (v * 16) as u32);
        }
        r
    }

    /// Flat 32-bit protected mode at CPL 0.
    pub fn protected() -> Self {
        let mut r = Self::real();
        for (sel, d) in [
            (CODE0, descriptor(0, 0xf_ffff, 0xc09b)),
            (DATA0, descriptor(0, 0xf_ffff, 0xc093)),
            (CODE3, descriptor(0, 0xf_ffff, 0xc0fb)),
            (DATA3, descriptor(0, 0xf_ffff, 0xc0f3)),
            (TSS_SEL, descriptor(TSS, 0x3ff, 0x8b)),
            (TSS2_SEL, descriptor(TSS2, 0x67, 0x89)),
            (TSS16_SEL, descriptor(TSS16, 0x2b, 0x81)),
            (LDT_SEL, descriptor(LDT, 0xff, 0x82)),
            (GATE_SEL, gate(CODE0, handler(0xf0), 0xec, 0)),
            (CONFORMING, descriptor(0, 0xf_ffff, 0xc09f)),
            (ABSENT, descriptor(0, 0xf_ffff, 0xc073)),
            (TASK_GATE_SEL, gate(TSS2_SEL, 0, 0xe5, 0)),
            (CODE64, descriptor(0, 0xf_ffff, 0xa09b)),
            (DATA3L, descriptor(0, 0xf_ffff, 0xc0f3)),
            (CODE64_3, descriptor(0, 0xf_ffff, 0xa0fb)),
        ] {
            r.write64(GDT + u64::from(sel & !7), d);
        }
        for v in 0..256 {
            r.idt(v, gate(CODE0, handler(v), 0xee, 0));
        }
        // The stacks of the inner levels, and an I/O map that denies all but ports 0-7.
        r.write32(TSS + 4, STACK0 as u32);
        r.write32(TSS + 8, u32::from(DATA0));
        r.write32(TSS + 0x64, 0x88 << 16);
        for i in 0..0x300 {
            r.write8(TSS + 0x88 + i, if i == 0 { 0 } else { 0xff });
        }
        let s = &mut r.cpu.state;
        s.cr0 |= cr0::PE;
        s.gdtr = Table { base: GDT, limit: 0xff };
        s.idtr = Table { base: IDT, limit: 0x7ff };
        s.tr = Segment { base: TSS, limit: 0x3ff, attr: 0x8b, sel: TSS_SEL };
        s.ldtr = Segment { attr: Segment::UNUSABLE, ..Segment::default() };
        s.gpr[gpr::RIP] = CODE;
        r.ring(0);
        r
    }

    /// Loads the flat segments of a privilege level.
    pub fn ring(&mut self, cpl: u8) {
        let (cs, ss, ca, da) =
            if cpl == 0 { (CODE0, DATA0, 0xc09b, 0xc093) } else { (CODE3, DATA3, 0xc0fb, 0xc0f3) };
        let s = &mut self.cpu.state;
        for (i, r) in s.seg.iter_mut().enumerate() {
            let (sel, attr) = if i == seg::CS { (cs, ca) } else { (ss, da) };
            *r = Segment { base: 0, limit: 0xffff_ffff, attr, sel };
        }
        s.cpl = cpl;
        s.gpr[gpr::RSP] = if cpl == 0 { STACK0 } else { STACK3 };
        self.cpu.sync_all();
    }

    /// 64-bit mode at CPL 0: the first 4 MiB mapped to themselves with 2 MiB user pages, IDT of 64-bit gates.
    pub fn long() -> Self {
        let mut r = Self::protected();
        r.write64(TABLES, (TABLES + 0x1000) | 7);
        r.write64(TABLES + 0x1000, (TABLES + 0x2000) | 7);
        r.write64(TABLES + 0x2000, 0x87);
        for v in 0..256 {
            r.write64(IDT + v * 16, gate(CODE64, handler(v), 0xee, 0));
            r.write64(IDT + v * 16 + 8, 0);
        }
        r.write64(TSS + 4, STACK0);
        r.write64(TSS + 0x24, IST1);
        let s = &mut r.cpu.state;
        s.idtr.limit = 0xfff;
        s.cr0 |= cr0::PG;
        s.cr4 |= cr4::PAE | cr4::OSFXSR;
        s.cr3 = TABLES;
        s.msr.efer = efer::LME | efer::LMA | efer::SCE | efer::NXE;
        s.seg[seg::CS] = Segment { base: 0, limit: 0xffff_ffff, attr: 0xa09b, sel: CODE64 };
        r.cpu.sync_all();
        r
    }

    /// CPL 3 of 64-bit mode.
    pub fn long_user() -> Self {
        let mut r = Self::long();
        let s = &mut r.cpu.state;
        s.seg[seg::CS] = Segment { base: 0, limit: 0xffff_ffff, attr: 0xa0fb, sel: CODE64_3 };
        s.seg[seg::SS] = Segment { base: 0, limit: 0xffff_ffff, attr: 0xc0f3, sel: DATA3L };
        s.cpl = 3;
        s.gpr[gpr::RSP] = STACK3;
        r.cpu.sync_all();
        r
    }

    /// Virtual-8086 mode with this IOPL: code at 1000h:0, stack at 0:9000h.
    pub fn v86(iopl: u64) -> Self {
        let mut r = Self::protected();
        let s = &mut r.cpu.state;
        s.rflags |= fl::VM | fl::IF | iopl << 12;
        s.cpl = 3;
        for x in &mut s.seg {
            *x = Segment::real(0, 3);
        }
        s.seg[seg::CS] = Segment::real(0x1000, 3);
        s.gpr[gpr::RIP] = 0;
        s.gpr[gpr::RSP] = STACK3;
        r.cpu.sync_all();
        r
    }

    pub fn idt(&mut self, v: u64, g: u64) {
        self.write64(IDT + v * 8, g);
    }

    /// Writes as another bus master does: decoded code there dies.
    pub fn put(&mut self, at: u64, b: &[u8]) {
        self.cpu.mem.write(at, b);
        self.cpu.invalidate_code(at, b.len() as u64);
    }
    pub fn write8(&mut self, at: u64, v: u8) {
        self.put(at, &v.to_le_bytes());
    }
    pub fn write16(&mut self, at: u64, v: u16) {
        self.put(at, &v.to_le_bytes());
    }
    pub fn write32(&mut self, at: u64, v: u32) {
        self.put(at, &v.to_le_bytes());
    }
    pub fn write64(&mut self, at: u64, v: u64) {
        self.put(at, &v.to_le_bytes());
    }
    pub fn read16(&self, at: u64) -> u16 {
        self.cpu.mem.read_u16(at)
    }
    pub fn read32(&self, at: u64) -> u32 {
        self.cpu.mem.read_u32(at)
    }
    pub fn read64(&self, at: u64) -> u64 {
        self.cpu.mem.read_u64(at)
    }

    /// Puts instructions at [`CODE`].
    pub fn code(&mut self, bits: u32, f: impl FnOnce(&mut CodeAssembler) -> Result<(), iced_x86::IcedError>) {
        let mut a = CodeAssembler::new(bits).unwrap();
        f(&mut a).unwrap();
        let bytes = a.assemble(if bits == 16 { 0 } else { CODE }).unwrap();
        self.bytes(&bytes);
    }

    /// Puts bytes at [`CODE`].
    pub fn bytes(&mut self, b: &[u8]) {
        self.put(CODE, b);
    }

    /// Runs until HLT or shutdown.
    pub fn run(&mut self) -> Exit {
        for _ in 0..1000 {
            if let Some(exit) = self.cpu.step() {
                return exit;
            }
        }
        panic!("no HLT in 1000 instructions; RIP = {:#x}", self.rip());
    }

    /// Runs; the vector whose handler was entered.
    pub fn vector(&mut self) -> u64 {
        assert_eq!(self.run(), Exit::Halt);
        let base = if self.cpu.state.is_protected() { 0 } else { self.cpu.state.seg[seg::CS].base };
        let at = (base + self.rip()).wrapping_sub(HANDLERS + 1);
        assert!(at.is_multiple_of(16) && at < 0x1000, "HLT at {:#x}", base + self.rip() - 1);
        at / 16
    }

    pub fn rip(&self) -> u64 {
        self.cpu.state.gpr[gpr::RIP]
    }
    pub fn rsp(&self) -> u64 {
        self.cpu.state.gpr[gpr::RSP]
    }
    pub fn sel(&self, i: usize) -> u16 {
        self.cpu.state.seg[i].sel
    }
    /// The `n`-th doubleword from the top of the stack.
    pub fn stack32(&self, n: u64) -> u32 {
        self.read32(self.rsp() + 4 * n)
    }
    /// The `n`-th quadword from the top of the stack.
    pub fn stack64(&self, n: u64) -> u64 {
        self.read64(self.rsp() + 8 * n)
    }
    /// The access byte of a descriptor's type field in the GDT.
    pub fn gdt_type(&self, sel: u16) -> u32 {
        self.read32(GDT + u64::from(sel & !7) + 4) >> 8 & 15
    }
}

#[test]
fn the_rig_reaches_a_handler_in_every_mode() {
    for mut r in [Rig::real(), Rig::protected(), Rig::long(), Rig::long_user()] {
        r.bytes(&[0x0f, 0x0b]);
        assert_eq!(r.vector(), 6);
    }
    assert_eq!(kind::TSS32_BUSY, 11);
}
