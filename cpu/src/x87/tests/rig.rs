//! A vCPU on a bare board, random operands, and execution of single instructions by their helpers.
use crate::board::{Board, Events};
use crate::cpu::Cpu;
use crate::event::Stop;
use crate::mode::ModeKey;
use crate::model::{CpuModel, Vendor};
use crate::state::{F80, Segment, cr0, gpr, seg};
use mynah_mmu::{GuestRam, PhysMemory};
use parking_lot::Mutex;
use std::sync::Arc;

/// Where the operand in memory stands.
pub const OPERAND: u64 = 0x2000;

/// A board that remembers FERR# and has an IGNNE# switch.
#[derive(Default)]
pub struct Bare {
    pub ferr: Mutex<bool>,
    pub ignne: Mutex<bool>,
}

impl Board for Bare {
    fn ferr(&self, asserted: bool) {
        *self.ferr.lock() = asserted;
    }
    fn ignne(&self) -> bool {
        *self.ignne.lock()
    }
}

/// The vCPU, in flat 32-bit protected mode, with 64 KiB of RAM; ESI points to [`OPERAND`].
pub struct Rig {
    pub cpu: Box<Cpu>,
    pub board: Arc<Bare>,
}

/// Whether the host's CPU, the chip that the tests compare with, is Intel's.
pub fn on_intel() -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        std::arch::x86_64::__cpuid(0).ebx == u32::from_le_bytes(*b"Genu")
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        false
    }
}

impl Rig {
    pub fn new() -> Self {
        let mem = PhysMemory::new(GuestRam::new(0x10000).unwrap(), 0x10000);
        let board = Arc::new(Bare::default());
        let mut model = CpuModel::parse("max").unwrap();
        model.vendor = if on_intel() { Vendor::Intel } else { Vendor::Amd };
        let model = Arc::new(model);
        let mut cpu = Cpu::new(0, mem, board.clone(), Arc::new(Events::default()), model);
        cpu.state.cr0 = cr0::PE | cr0::ET | cr0::NE;
        for i in 0..6 {
            let attr = if i == seg::CS { 0xc09b } else { 0xc093 };
            cpu.state.seg[i] = Segment { base: 0, limit: !0, attr, sel: 8 * i as u16 + 8 };
        }
        cpu.state.gpr[gpr::RSI] = OPERAND;
        cpu.state.gpr[gpr::RIP] = 0x1234;
        cpu.state.fpu.init();
        cpu.sync_all();
        Self { cpu, board }
    }

    /// Executes one instruction by its helper. `None` if it has none (#UD).
    pub fn execute(&mut self, bytes: &[u8]) -> Option<Result<(), Stop>> {
        let bits = if self.cpu.mode_key & ModeKey::D32 != 0 { 32 } else { 16 };
        let i = iced_x86::Decoder::new(bits, bytes, iced_x86::DecoderOptions::AMD).decode();
        super::super::lookup(&i)?;
        let mut padded = bytes.to_vec();
        padded.resize(15, 0x90);
        let (op, _) = crate::decode::decode_op(&self.cpu.model, ModeKey(self.cpu.mode_key), &padded, 0)?;
        Some((op.helper)(&mut self.cpu, &op))
    }

    /// Executes what must not fault.
    pub fn run(&mut self, bytes: &[u8]) {
        assert_eq!(self.execute(bytes), Some(Ok(())), "{bytes:02x?}");
    }

    pub fn write(&mut self, b: &[u8]) {
        self.cpu.mem.write(OPERAND, b);
    }
    pub fn read(&self, n: usize) -> Vec<u8> {
        let mut b = vec![0; n];
        self.cpu.mem.read(OPERAND, &mut b);
        b
    }
}

/// xorshift64*.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }
    pub fn below(&mut self, n: u64) -> u64 {
        (self.next() >> 33) % n
    }
    pub fn chance(&mut self, one_in: u64) -> bool {
        self.below(one_in) == 0
    }

    /// A significand: random, sparse, or long runs of ones and zeros (what makes ties and carries).
    fn mantissa(&mut self) -> u64 {
        let m = self.next();
        match self.below(6) {
            0 => m & self.next() & self.next() & self.next(),
            1 => !0 << self.below(64),
            2 => !(!0 << self.below(64)),
            3 => (1 << self.below(64)) | (1 << self.below(64)),
            4 => m & (!0 << (11 + 29 * self.below(2))),
            _ => m,
        }
    }

    /// An extended number of any class.
    pub fn f80(&mut self) -> F80 {
        let m = self.mantissa();
        let j = 1u64 << 63;
        let (e, m) = match self.below(24) {
            0 => (0, 0),
            1 => (0, m & !j),
            2 => (0, m | j),
            3 => (0x7fff, j),
            4 => (0x7fff, m | j | 1 << 62),
            5 => (0x7fff, (m & !(1 << 62)) | j | 1),
            6 => (0x7fff, m & !j),
            7 => (1 + self.below(0x7ffe) as u16, m & !j),
            8 => (1 + self.below(70) as u16, m | j),
            9 => (0x7ffe - self.below(70) as u16, m | j),
            10 | 11 => (1 + self.below(0x7ffe) as u16, m | j),
            12 => (0x3fff, j),
            13 => (0x3f81 - 70 + self.below(140) as u16, m | j),
            14 => (0x3c01 - 70 + self.below(140) as u16, m | j),
            15 => (0x407e - 3 + self.below(6) as u16, m | j),
            16 => (0x43fe - 3 + self.below(6) as u16, m | j),
            17 => {
                let v = self.below(70_000) + 1;
                let n = v.leading_zeros();
                (0x3fff + 63 - n as u16, v << n)
            }
            18 => (0x3fff + self.below(66) as u16, m | j),
            _ => (0x3fff - 20 + self.below(40) as u16, m | j),
        };
        F80 { mant: m, exp: e | (self.next() as u16 & 0x8000) }
    }

    /// A single-precision number of any class.
    pub fn f32(&mut self) -> u32 {
        let f = (self.mantissa() >> 40) as u32 & 0x7f_ffff;
        let e = match self.below(8) {
            0 => 0,
            1 => 255,
            2 => 127,
            _ => self.below(256) as u32,
        };
        let f = if self.chance(8) { 0 } else { f };
        (self.next() as u32 & 1 << 31) | e << 23 | f
    }
    /// A double-precision number of any class.
    pub fn f64(&mut self) -> u64 {
        let f = self.mantissa() >> 12;
        let e = match self.below(8) {
            0 => 0,
            1 => 2047,
            2 => 1023,
            3 => 1023 - 30 + self.below(60),
            _ => self.below(2048),
        };
        let f = if self.chance(8) { 0 } else { f };
        (self.next() & 1 << 63) | e << 52 | f
    }
    /// A control word.
    pub fn control(&mut self) -> u16 {
        let masks = if self.chance(2) { 0x3f } else { self.below(64) as u16 };
        let pc = match self.below(8) {
            0 => 0,
            1 => 0x100,
            2 | 3 => 0x200,
            _ => 0x300,
        };
        0x40 | masks | pc | (self.below(4) as u16) << 10
    }
}
