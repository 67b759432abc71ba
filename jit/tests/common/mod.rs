//! Two machines with the same memory and state: one is interpreted, the other runs through the translator.
#![allow(dead_code)]
use iced_x86::code_asm::{CodeAssembler, IcedError, cr3, ebx, rdx};
use mynah_cpu::state::{F80, Segment, Vector, cr0, cr4, efer, fl, gpr, seg};
use mynah_cpu::{Board, Cpu, CpuModel, Events, Exit, State};
use mynah_jit::tier::{Counters, Optimize, Translating};
use mynah_mmu::{GuestRam, PhysMemory};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// RAM of each machine.
pub const RAM: u64 = 1 << 20;
/// Where vector n's handler, a HLT, stands: this and 4 n.
pub const HANDLERS: u64 = 0x7000;
/// The stack's first byte and its top.
pub const STACK: (u64, u64) = (0x8000, 0xa000);
/// Data: eight pages; then a read-only page, then one that is not present (with paging).
pub const DATA: u64 = 0x10000;
pub const READ_ONLY: u64 = 0x18000;
pub const ABSENT: u64 = 0x19000;
/// Code.
pub const CODE: u64 = 0x20000;
/// Where FS points to.
pub const FS_BASE: u64 = 0x12000;

struct Echo;
impl Board for Echo {
    fn port_read(&self, port: u16, size: u8) -> u32 {
        (u32::from(port) * 0x101) & (u64::MAX >> (64 - 8 * u32::from(size))) as u32
    }
    fn acknowledge(&self) -> Option<u8> {
        Some(0x30)
    }
}

/// A small generator of pseudo-random numbers (xorshift64*).
pub struct Random(pub u64);
impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }
    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
    /// A number as they matter to arithmetic: often small, or near a boundary.
    pub fn value(&mut self) -> u64 {
        let r = self.next();
        match r % 8 {
            0 => r >> 60,
            1 => (r >> 60).wrapping_neg(),
            2 => 1 << (r >> 58),
            3 => (1u64 << (r >> 58)).wrapping_sub(1),
            4 => u64::from((r >> 32) as u32),
            5 => (r >> 32) as i32 as u64,
            _ => self.next(),
        }
    }
}

/// Two floats or a double, as they matter: ordinary numbers, zeros, infinities, NaNs of both kinds, denormals, the
/// largest and smallest.
pub fn float(r: &mut Random) -> u64 {
    let single = |r: &mut Random| -> u32 {
        let x = r.next();
        let sign = (x as u32) & 0x8000_0000;
        sign | match x % 12 {
            0 => 0,
            1 => 0x7f80_0000,
            2 => 0x7f80_0000 | (x >> 40) as u32 & 0x7f_ffff,
            3 => (x >> 40) as u32 & 0x7f_ffff,
            4 => 0x7f7f_ffff,
            5 => 0x0080_0000 | (x >> 62) as u32,
            6 => (x >> 33) as u32,
            7 => ((x >> 56) as f32).to_bits(),
            _ => 0x3f00_0000 + ((x >> 38) as u32 & 0x1ff_ffff),
        }
    };
    let x = r.next();
    let sign = x & 1 << 63;
    match x % 16 {
        0..7 => u64::from(single(r)) | u64::from(single(r)) << 32,
        7 => sign,
        8 => sign | 0x7ff0_0000_0000_0000,
        9 => sign | 0x7ff0_0000_0000_0000 | r.next() >> 12,
        10 => sign | r.next() >> 12,
        11 => sign | 0x7fef_ffff_ffff_ffff,
        12 => r.next(),
        13 => sign | ((r.next() >> 50) as f64 / 4.0).to_bits(),
        _ => sign | (0x3fe0_0000_0000_0000 + (r.next() >> 10)),
    }
}

/// An extended number as they matter.
pub fn extended(r: &mut Random) -> F80 {
    let (m, x) = (r.next(), r.next());
    let sign = (x as u16) & 0x8000;
    match x % 12 {
        0 => F80 { mant: 0, exp: sign },
        1 => F80 { mant: 1 << 63, exp: sign | 0x7fff },
        2 => F80 { mant: m | 1 << 63, exp: sign | 0x7fff },
        3 => F80 { mant: m >> 1, exp: sign },
        4 => F80 { mant: m, exp: (x >> 32) as u16 }, // of any kind, unsupported ones included
        5 => F80 { mant: m | 1 << 63, exp: sign | 0x7ffe },
        6 => F80 { mant: (m >> 60 | 1).rotate_right(4) | 1 << 63, exp: sign | (0x3fff + (x >> 60) as u16) },
        _ => F80 { mant: m | 1 << 63, exp: sign | (0x3ff0 + ((x >> 40) as u16 & 0x3f)) },
    }
}

/// Gives the floating-point units a random state. All exceptions are masked, but for one state in eight.
pub fn random_float_state(s: &mut State, r: &mut Random) {
    for x in &mut s.xmm[..16] {
        for lane in &mut x.0[..2] {
            if r.below(4) != 0 {
                *lane = float(r);
            }
        }
    }
    let x = r.next();
    s.mxcsr = (x as u32 & 0xe07f) | 0x1f80;
    let f = &mut s.fpu;
    for v in &mut f.r {
        *v = extended(r);
    }
    f.cw = 0x7f | (x >> 16) as u16 & 0xf00;
    f.sw = (x >> 32) as u16 & 0x477f;
    f.top = (x >> 48) as u8 & 7;
    f.empty = (x >> 56) as u8 & (r.next() >> 56) as u8;
    if r.below(8) == 0 {
        s.mxcsr &= !(r.next() as u32 & 0x1f80);
        f.set_control(f.cw & !(r.next() as u16 & 0x3f));
    }
}

/// Bits of the code that a machine runs: 32 or 64.
pub type Bits = u32;

/// A vCPU with 1 MiB of RAM in flat protected mode (32, without paging) or 64-bit mode (64, identity-mapped), at CPL
/// 0. Every vector has a handler that halts.
pub fn machine(bits: Bits) -> Box<Cpu> {
    let mem = PhysMemory::new(GuestRam::new(RAM).expect("RAM"), RAM);
    let long = bits == 64;
    let model = CpuModel::parse("max").expect("a model");
    let mut cpu = Cpu::new(0, mem.clone(), Arc::new(Echo), Arc::new(Events::default()), Arc::new(model));
    // GDT: null, code, data, FS.
    let code: u64 = if long { 0x00af_9b00_0000_ffff } else { 0x00cf_9b00_0000_ffff };
    let fs: u64 = 0x0040_9301_2000_0fff;
    for (n, d) in [0, code, 0x00cf_9300_0000_ffff, fs].into_iter().enumerate() {
        mem.write_u64(0x5000 + 8 * n as u64, d);
    }
    for n in 0..256u64 {
        mem.write_u8(HANDLERS + 4 * n, 0xf4);
        let at = HANDLERS + 4 * n;
        let gate = (at & 0xffff) | 8 << 16 | 0x8e00 << 32 | (at >> 16 & 0xffff) << 48;
        if long {
            mem.write_u64(0x6000 + 16 * n, gate);
            mem.write_u64(0x6008 + 16 * n, 0);
        } else {
            mem.write_u64(0x6000 + 8 * n, gate);
        }
    }
    let s = &mut cpu.state;
    s.gdtr.base = 0x5000;
    s.gdtr.limit = 31;
    s.idtr.base = 0x6000;
    s.idtr.limit = 0xfff;
    s.cr0 = cr0::PE | cr0::MP | cr0::ET | cr0::NE | cr0::WP;
    s.cr4 = cr4::OSFXSR | cr4::OSXMMEXCPT | cr4::PAE | cr4::OSXSAVE;
    s.xcr0 = 7;
    for i in 0..6 {
        s.seg[i] = Segment { base: 0, limit: 0xffff_ffff, attr: 0xc093, sel: 16 };
    }
    s.seg[seg::CS] =
        Segment { base: 0, limit: 0xffff_ffff, attr: if long { 0xa09b } else { 0xc09b }, sel: 8 };
    s.seg[seg::FS] = Segment { base: FS_BASE, limit: 0xfff, attr: 0x4093, sel: 24 };
    if long {
        mem.write_u64(0x1000, 0x2003);
        mem.write_u64(0x2000, 0x3003);
        mem.write_u64(0x3000, 0x4003);
        for n in 0..512u64 {
            let page = n << 12;
            let entry = match page {
                READ_ONLY => page | 1,
                ABSENT => 0,
                p if p >= RAM => 0,
                p => p | 3,
            };
            mem.write_u64(0x4000 + 8 * n, entry);
        }
        s.cr3 = 0x1000;
        s.cr0 |= cr0::PG;
        s.msr.efer = efer::LME | efer::LMA | efer::SCE;
    }
    s.rflags = 2;
    s.gpr[gpr::RSP] = STACK.1 - 0x800;
    s.gpr[gpr::RIP] = CODE;
    cpu.sync_all();
    cpu
}

/// Where a page of a 64-bit machine has its page-table entry.
pub fn entry(page: u64) -> u32 {
    0x4000 + (page >> 12) as u32 * 8
}

/// Flushes what is not global; by way of RDX.
pub fn reload_cr3(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.mov(rdx, cr3)?;
    a.mov(cr3, rdx)
}

/// The pair.
pub struct Pair {
    pub bits: Bits,
    pub plain: Box<Cpu>,
    pub fast: Box<Cpu>,
    counters: Arc<Counters>,
    setting: (Optimize, u32),
    next_code: u64,
}

/// What the translator has done for a pair.
#[derive(Clone, Copy, Debug)]
pub struct Statistics {
    /// Regions compiled.
    pub compiled: u64,
    /// Regions put into place: compiled for it, or before, for the same code elsewhere.
    pub installed: u64,
    /// Blocks that could not be.
    pub refused: u64,
    /// Times that compiled code was entered.
    pub entered: u64,
}

impl Pair {
    /// Blocks are compiled when they are first met, for speed.
    pub fn new(bits: Bits) -> Self {
        Self::with(bits, Optimize::Speed, 1)
    }

    /// The same by the baseline.
    pub fn baseline(bits: Bits) -> Self {
        Self::with(bits, Optimize::Baseline, 1)
    }

    /// Blocks are compiled when they are met for the `hot_after`th time.
    pub fn with(bits: Bits, optimize: Optimize, hot_after: u32) -> Self {
        let (plain, mut fast) = (machine(bits), machine(bits));
        let tier = Translating::at_once_with(fast.events.clone(), optimize);
        let tier = tier.expect("a translator for this host");
        let counters = tier.counters();
        fast.set_tier(Box::new(tier), hot_after);
        Self { bits, plain, fast, counters, setting: (optimize, hot_after), next_code: CODE }
    }

    pub fn statistics(&self) -> Statistics {
        let n = |v: &AtomicU64| v.load(Ordering::Relaxed);
        Statistics {
            compiled: n(&self.counters.compiled),
            installed: n(&self.counters.installed),
            refused: n(&self.counters.refused),
            entered: self.fast.left.iter().sum(),
        }
    }

    /// How many instructions with this code the baseline calls the interpreter for.
    pub fn calls_in_baseline(&self, code: iced_x86::Code) -> u64 {
        self.counters.block_called.lock().get(&(code as u16)).copied().unwrap_or_default()
    }

    /// Puts code where none has been, within a page if it fits one; returns its address.
    pub fn put_code(&mut self, code: &[u8]) -> u64 {
        let mut at = self.next_code.next_multiple_of(16);
        if at & 0xfff != 0 && (at & 0xfff) + code.len() as u64 > 0x1000 {
            at = at.next_multiple_of(0x1000);
        }
        if at + code.len() as u64 > RAM {
            *self = Self::with(self.bits, self.setting.0, self.setting.1);
            return self.put_code(code);
        }
        self.next_code = at + code.len() as u64;
        self.write(at, code);
        at
    }

    /// Writes to the memory of both.
    pub fn write(&self, at: u64, bytes: &[u8]) {
        for cpu in [&self.plain, &self.fast] {
            cpu.mem.write(at, bytes);
        }
    }

    /// Writes what `make` assembles to the memory of both.
    pub fn write_code(&self, at: u64, make: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) {
        let mut a = CodeAssembler::new(self.bits).unwrap();
        make(&mut a).unwrap();
        self.write(at, &a.assemble(at).unwrap());
    }

    /// Prepares both to execute `round` so many times, counted by EBX, with 0 in EAX at first, and then to halt.
    pub fn prepare_rounds(
        &mut self,
        rounds: u32,
        set: impl Fn(&mut State),
        round: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>,
    ) {
        let mut a = CodeAssembler::new(self.bits).unwrap();
        let mut again = a.create_label();
        a.set_label(&mut again).unwrap();
        round(&mut a).unwrap();
        a.dec(ebx).unwrap();
        a.jne(again).unwrap();
        a.hlt().unwrap();
        let at = self.put_code(&a.assemble(CODE).unwrap());
        self.prepare(at, 5, |s, _| {
            s.gpr[gpr::RAX] = 0;
            s.gpr[gpr::RBX] = rounds.into();
            set(s);
        });
    }

    /// Gives both machines this state (all but what the machine itself is made of), and fills data and stack from
    /// `seed`.
    pub fn prepare(&mut self, at: u64, seed: u64, set: impl Fn(&mut State, &mut Random)) {
        for cpu in [&mut self.plain, &mut self.fast] {
            let mut r = Random(seed | 1);
            let fresh = machine_state(self.bits);
            cpu.state = fresh;
            let s = &mut cpu.state;
            s.gpr[gpr::RIP] = at;
            for n in 0..16 {
                s.gpr[n] = r.value() & if self.bits == 64 { u64::MAX } else { 0xffff_ffff };
            }
            s.gpr[gpr::RSP] = STACK.1 - 0x800 + 8 * r.below(16);
            s.set_rflags(2 | r.next() & fl::ARITH);
            for x in &mut s.xmm[..16] {
                *x = Vector(std::array::from_fn(|_| r.value()));
            }
            random_float_state(s, &mut r);
            set(s, &mut r);
            let mut bytes = vec![0u8; (READ_ONLY + 0x1000 - DATA) as usize];
            for b in bytes.chunks_exact_mut(8) {
                let v = if r.below(2) == 0 { r.value() } else { float(&mut r) };
                b.copy_from_slice(&v.to_le_bytes());
            }
            cpu.mem.write(DATA, &bytes);
            cpu.mem.write(STACK.0, &bytes[..(STACK.1 - STACK.0) as usize]);
            cpu.sync_all();
        }
    }

    /// Runs both until they halt, and compares.
    pub fn run(&mut self, what: &dyn Fn() -> String) {
        let a = self.plain.run();
        let b = self.fast.run();
        assert_eq!(a, Exit::Halt, "{}", what());
        assert_eq!(b, Exit::Halt, "{}", what());
        if self.setting.0 == Optimize::Baseline {
            // It has other words for the same flags.
            for cpu in [&mut self.plain, &mut self.fast] {
                let flags = cpu.state.rflags();
                cpu.state.set_rflags(flags);
            }
        }
        if self.plain.state != self.fast.state {
            let (p, f) = (&self.plain.state, &self.fast.state);
            for n in 0..32 {
                if p.gpr[n] != f.gpr[n] {
                    println!("gpr {n}: interpreted {:x}, translated {:x}", p.gpr[n], f.gpr[n]);
                }
            }
            println!("res {:x} {:x}  aux {:x} {:x}", p.res, f.res, p.aux, f.aux);
            println!("flags {:x} {:x}  cr2 {:x} {:x}", p.rflags(), f.rflags(), p.cr2, f.cr2);
            println!("mxcsr {:x} {:x}", p.mxcsr, f.mxcsr);
            if p.fpu != f.fpu {
                println!("interpreted {:x?}", p.fpu);
                println!("translated  {:x?}", f.fpu);
            }
            for n in 0..16 {
                if p.xmm[n] != f.xmm[n] {
                    println!("xmm {n}: {:x?} {:x?}", p.xmm[n], f.xmm[n]);
                }
            }
            panic!("states differ after {}", what());
        }
        let (mut x, mut y) = (vec![0; CODE as usize], vec![0; CODE as usize]);
        self.plain.mem.read(0, &mut x);
        self.fast.mem.read(0, &mut y);
        if let Some(n) = (0..x.len()).find(|&n| x[n] != y[n]) {
            panic!("memory differs at {n:#x}: {:x} {:x} after {}", x[n], y[n], what());
        }
    }
}

/// Whether the host has no baseline; says that a test which needs one is passed over.
pub fn lacks_baseline() -> bool {
    if !mynah_jit::tier::HAS_BASELINE {
        eprintln!("passed over: the baseline is for x86-64 hosts");
    }
    !mynah_jit::tier::HAS_BASELINE
}

fn machine_state(bits: Bits) -> State {
    use std::sync::OnceLock;
    static STATES: OnceLock<[State; 2]> = OnceLock::new();
    let states = STATES.get_or_init(|| [machine(32).state.clone(), machine(64).state.clone()]);
    states[usize::from(bits == 64)].clone()
}
