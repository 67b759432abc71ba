//! The guests: tables that mostly hold together, and pieces of random code between which faults lead on.
//!
//! ```text
//!   1000h IDT   2000h GDT   3000h LDT, TSSs   4000h the piece that is next, by vCPU   5000h addresses of the pieces
//!   6000h fault handler   8000h page tables   10000h data   20000h stacks   100000h pieces of code
//! ```
//!
//! All of it is the guest's to write, and it does.
use crate::Profile;
use crate::emit::{Emit, reg};
use mynah_cpu::Cpu;
use mynah_cpu::state::{Activity, Segment, cr0, cr4, efer, gpr, seg};
use mynah_mmu::PhysMemory;
use mynah_oracle::rng::Rng;

const IDT: u64 = 0x1000;
const GDT: u64 = 0x2000;
const TSS: u64 = 0x3000;
const NEXT: u64 = 0x4000;
const TABLE: u64 = 0x5000;
const HANDLER: u64 = 0x6000;
const PAGES: u64 = 0x8000;
const DATA: u64 = 0x1_0000;
const STACKS: u64 = 0x2_0000;
const CODE: u64 = 0x10_0000;
/// Bytes between pieces.
const PIECE: u64 = 0x400;
/// Pieces; a power of two.
const PIECES: u64 = 64;
/// 16-bit code reaches the first 64 KiB of its segment, which begins here.
const CODE16: u64 = 0x4_0000;

/// Where things happen: chips, ROM, holes, the video window, the end of RAM, and the guest's own tables.
const PLACES: [u64; 22] = [
    0xfee0_0000,
    0xfee0_0300,
    0xfee0_0310,
    0xfee0_00b0,
    0xfee0_0320,
    0xfee0_0380,
    0xfec0_0000,
    0xfec0_0010,
    0xfed0_0000,
    0xfed0_0100,
    0xa_0000,
    0xb_8000,
    0xc_0000,
    0xe_0000,
    0xf_fff0,
    0xffff_fff0,
    0xc000_0000,
    0xff_fff8,
    IDT,
    GDT,
    PAGES,
    DATA,
];

/// Ports of the chips that a PC has, and some without any. Not those that end the machine by design.
const PORTS: [u16; 40] = [
    0x20, 0x21, 0xa0, 0xa1, 0x40, 0x41, 0x42, 0x43, 0x60, 0x61, 0x64, 0x70, 0x71, 0x80, 0x92, 0xb2, 0xf0,
    0xf1, 0x3f8, 0x3fb, 0x4d0, 0x4d1, 0x510, 0x511, 0x514, 0x518, 0x600, 0x602, 0x604, 0x608, 0xcf8, 0xcfb,
    0xcfc, 0xcfe, 0x0, 0x87, 0x1f0, 0x3c0, 0x3d4, 0xffff,
];

/// Model-specific registers: those of the SDM (volume 4) and the APM (volume 2, appendix A) that an emulator may have,
/// and the local APIC's.
const MSRS: [u32; 44] = [
    0x10,
    0x1b,
    0x3a,
    0x3b,
    0x79,
    0x8b,
    0xc1,
    0xe7,
    0xfe,
    0x122,
    0x174,
    0x175,
    0x176,
    0x179,
    0x17a,
    0x186,
    0x199,
    0x1a0,
    0x1d9,
    0x200,
    0x201,
    0x250,
    0x26f,
    0x277,
    0x2ff,
    0x345,
    0x400,
    0x480,
    0x6e0,
    0x802,
    0x80b,
    0x830,
    0x832,
    0x83f,
    0xda0,
    0xc000_0080,
    0xc000_0081,
    0xc000_0082,
    0xc000_0084,
    0xc000_0100,
    0xc000_0101,
    0xc000_0102,
    0xc000_0103,
    0xc001_0015,
];

/// How a guest begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Real,
    Protected,
    Paged,
    Long,
}

/// A guest: all that is in its memory, and where its vCPUs begin.
#[derive(Clone)]
pub struct Guest {
    mode: Mode,
    writes: Vec<(u64, Vec<u8>)>,
    seed: u64,
    pieces: u64,
    vcpus: usize,
}

fn interesting(rng: &mut Rng) -> u64 {
    match rng.below(6) {
        0 => rng.below(16),
        1 => rng.pick(&PLACES),
        2 => 1 << rng.below(64),
        3 => !(1u64 << rng.below(64)),
        4 => u64::MAX - rng.below(16),
        _ => rng.u64(),
    }
}

impl Guest {
    /// The guest that `rng` leads to.
    pub fn new(rng: &mut Rng, profile: Profile, vcpus: usize) -> Self {
        let mode = match rng.below(10) {
            0 => Mode::Real,
            1..=2 => Mode::Protected,
            3..=4 => Mode::Paged,
            _ => Mode::Long,
        };
        let mut guest = Self { mode, writes: Vec::new(), seed: rng.u64(), pieces: 1 << rng.below(7), vcpus };
        guest.tables(rng);
        let mut pieces = Vec::new();
        for n in 0..PIECES {
            let mut e = Emit::new(guest.bits());
            while e.bytes.len() < 0x180 {
                let start = e.bytes.len();
                let before = e.bytes.len();
                for _ in 0..1 + rng.below(8) {
                    match profile {
                        Profile::Hostile
                        | Profile::Saved
                        | Profile::Images
                        | Profile::Devices
                        | Profile::Network => guest.act(&mut e, rng),
                        // The first half of the pieces reads, the other writes.
                        Profile::Race if n < PIECES / 2 => guest.read(&mut e, rng),
                        Profile::Race => guest.spoil(&mut e, rng),
                    }
                }
                let often = profile == Profile::Race;
                if e.bytes.len() - before < 0x100 && rng.chance(if often { 90 } else { 40 }) {
                    let rounds = if often { 10 + rng.below(3000) } else { 1 << rng.below(16) };
                    e.repeat(start, rounds as u32);
                }
            }
            guest.on(&mut e);
            e.bytes.truncate(PIECE as usize);
            pieces.push(e.bytes);
        }
        for (n, bytes) in pieces.into_iter().enumerate() {
            guest.writes.push((guest.code() + n as u64 * PIECE, bytes));
        }
        guest
    }

    fn bits(&self) -> u32 {
        match self.mode {
            Mode::Real => 16,
            Mode::Protected | Mode::Paged => 32,
            Mode::Long => 64,
        }
    }

    fn code(&self) -> u64 {
        if self.mode == Mode::Real { CODE16 } else { CODE }
    }

    /// The address of a piece as the guest's code says it.
    fn piece(&self, n: u64) -> u64 {
        n * PIECE + if self.mode == Mode::Real { 0 } else { CODE }
    }

    /// Goes on at the next piece: what ends a piece, and what every handler does.
    fn on(&self, e: &mut Emit) {
        match self.mode {
            // mov sp, 8000h; inc byte [4000h]; movzx bx, byte [4000h]; and bx, 3fh; shl bx, 10; sti; jmp bx - with DS =
            // 0.
            Mode::Real => e
                .raw(&[0x31, 0xdb, 0x8e, 0xdb, 0xbc, 0, 0x80, 0xfe, 0x06, 0, 0x40, 0x8a, 0x1e, 0, 0x40])
                .raw(&[
                    0x83,
                    0xe3,
                    PIECES as u8 - 1,
                    0xc1,
                    0xe3,
                    10,
                    0x68,
                    0,
                    (CODE16 >> 12) as u8,
                    0x53,
                    0xcb,
                ]),
            Mode::Protected | Mode::Paged => {
                // mov eax, 10h; mov ds, es, ss; mov esp; inc dword [NEXT]; mov eax, [NEXT]; and eax, 63; jmp [TABLE +
                // eax * 8]
                e.raw(&[0xb8, 0x10, 0, 0, 0, 0x8e, 0xd8, 0x8e, 0xc0, 0x8e, 0xd0, 0xbc]);
                e.raw(&(STACKS as u32 + 0x8000).to_le_bytes())
                    .raw(&[0xff, 0x05])
                    .raw(&(NEXT as u32).to_le_bytes());
                e.raw(&[0xa1]).raw(&(NEXT as u32).to_le_bytes()).raw(&[0x83, 0xe0, PIECES as u8 - 1]);
                e.raw(&[0xff, 0x24, 0xc5]).raw(&(TABLE as u32).to_le_bytes())
            }
            Mode::Long => {
                // The number of the vCPU is the low byte of the local APIC's id: its own stack and its own count.
                // mov esp; mov eax, 1; lock xadd [NEXT], eax; and eax, 63; jmp [TABLE + rax * 8]
                e.raw(&[0xbc]).raw(&(STACKS as u32 + 0x8000).to_le_bytes());
                e.raw(&[0xb8, 1, 0, 0, 0, 0xf0, 0x0f, 0xc1, 0x04, 0x25]).raw(&(NEXT as u32).to_le_bytes());
                e.raw(&[0x83, 0xe0, PIECES as u8 - 1, 0xff, 0x24, 0xc5]).raw(&(TABLE as u32).to_le_bytes())
            }
        };
    }

    /// Something that a guest may do to a machine.
    fn act(&self, e: &mut Emit, rng: &mut Rng) {
        match rng.below(32) {
            0..=6 => {
                e.any(rng);
            }
            7 | 8 => {
                let value = if rng.chance(60) { interesting(rng) } else { 1 << rng.below(32) };
                e.set(reg::CX, rng.pick(&MSRS).wrapping_add(rng.below(3) as u32).into());
                e.set(reg::AX, value & 0xffff_ffff)
                    .set(reg::DX, if rng.chance(70) { 0 } else { value >> 32 });
                e.raw(&[0x0f, if rng.chance(70) { 0x30 } else { 0x32 }]);
            }
            9 | 10 => {
                e.set(reg::DX, (rng.pick(&PORTS).wrapping_add(rng.below(4) as u16)).into());
                e.set(reg::AX, interesting(rng) & 0xffff_ffff);
                let op = rng.pick(&[0xecu8, 0xed, 0xee, 0xef]);
                e.raw(&[op]);
            }
            11 => self.string(e, rng),
            12 => {
                let n = rng.pick(&[0u8, 2, 3, 4, 8]);
                e.control(n, false);
                // xor eax, a bit
                e.raw(&[0x0f, 0xba, 0xf8, rng.below(32) as u8]).control(n, true);
            }
            13 => {
                let op = rng.pick(&[
                    (0x00u8, 2u8),
                    (0x00, 3),
                    (0x00, 4),
                    (0x00, 5),
                    (0x01, 2),
                    (0x01, 3),
                    (0x01, 6),
                    (0x01, 7),
                ]);
                let at = rng.pick(&PLACES) + rng.below(64);
                e.at(&[0x0f, op.0], op.1, at);
            }
            14 => {
                // A selector.
                e.set(reg::AX, rng.below(0x90)).raw(&[0x8e, 0xc0 | (rng.below(6) as u8) << 3]);
            }
            15 => {
                e.raw(rng.pick(&[
                    &[0xf4u8][..],
                    &[0xfb, 0xf4],
                    &[0xfa],
                    &[0xfb],
                    &[0x0f, 0x09],
                    &[0xf1],
                    &[0xcc],
                    &[0xcf],
                    &[0x9d],
                    &[0x0f, 0x05],
                    &[0x0f, 0x07],
                    &[0x0f, 0x34],
                    &[0x0f, 0x35],
                    &[0x0f, 0x01, 0xf8],
                    &[0x0f, 0xaa],
                    &[0xcb],
                    &[0x48, 0xcf],
                    &[0x48, 0x0f, 0x07],
                    &[0x0f, 0x06],
                    &[0xc9],
                    &[0x0f, 0x0b],
                    &[0xce],
                ]));
            }
            16 => {
                e.raw(&[0xcd, if rng.chance(50) { rng.below(33) as u8 } else { rng.u32() as u8 }]);
            }
            // A store to a chip, a table, code.
            17..=20 => {
                let at = self.target(rng);
                e.set(reg::AX, interesting(rng)).at(
                    rng.pick(&[&[0x88u8][..], &[0x89], &[0x66, 0x89], &[0x87], &[0xf0, 0x01]]),
                    reg::AX,
                    at,
                );
            }
            21 => {
                let at = self.target(rng);
                e.at(
                    rng.pick(&[&[0x8au8][..], &[0x8b], &[0x0f, 0xb6], &[0x0f, 0x10], &[0xdd], &[0x0f, 0xc7]]),
                    1,
                    at,
                );
            }
            // An interrupt for somebody, through the local APIC.
            22 => {
                let mode = rng.pick(&[0u64, 0, 4, 4, 5, 6, 2, 1]);
                let to = rng.pick(&[0u64, 1, 2, 3]) << 18;
                let icr = to | mode << 8 | 1 << 14 | rng.below(256);
                e.set(reg::AX, rng.below(2) << 24).at(&[0x89], 0, 0xfee0_0310);
                e.set(reg::AX, icr).at(&[0x89], 0, 0xfee0_0300);
            }
            23 => self.image(e, rng),
            24 => {
                // A far transfer through memory.
                e.set(reg::AX, self.piece(rng.below(PIECES))).at(&[0x89], 0, DATA + 0x100);
                e.set(reg::AX, rng.below(0x90)).at(&[0x89], 0, DATA + 0x104);
                e.at(&[0xff], rng.pick(&[3, 5]), DATA + 0x100);
            }
            25 => {
                // Debug registers.
                e.set(
                    reg::AX,
                    if rng.chance(50) { self.target(rng) } else { interesting(rng) & 0xffff_ffff },
                );
                e.raw(&[0x0f, 0x23, 0xc0 | (rng.below(8) as u8) << 3]);
            }
            26 => {
                // Flags: the trap flag, alignment checks, nested task, virtual-8086 mode.
                e.set(reg::AX, 2 | 1 << rng.below(22)).raw(&[0x50, 0x9d]);
            }
            27 => {
                // PCI configuration.
                let at = 0x8000_0000 | rng.below(4) << 11 | rng.below(3) << 8 | rng.below(0x100) & 0xfc;
                let wide_out: &[u8] = if e.bits == 16 { &[0x66, 0xef] } else { &[0xef] };
                e.set(reg::DX, 0xcf8).set(reg::AX, at).raw(wide_out);
                e.set(reg::DX, 0xcfc + rng.below(4)).set(reg::AX, interesting(rng) & 0xffff_ffff);
                e.raw(&[rng.pick(&[0xeeu8, 0xef, 0xed])]);
            }
            28 => {
                e.at(&[0x0f, 0x01], 7, self.target(rng));
            }
            29 => {
                // The stack somewhere else.
                e.set(reg::SP, self.target(rng) + rng.below(9)).raw(&[0x50, 0x58]);
            }
            _ => self.string(e, rng),
        }
    }

    /// Somewhere that matters.
    fn target(&self, rng: &mut Rng) -> u64 {
        match rng.below(8) {
            0 => self.code() + rng.below(PIECES) * PIECE + rng.below(PIECE),
            1 => IDT + rng.below(0x800),
            2 => GDT + rng.below(0x90),
            3 => TSS + rng.below(0x300),
            4 | 5 => PAGES + rng.below(0x5000),
            _ => rng.pick(&PLACES) + rng.below(32) * rng.below(32),
        }
    }

    /// A string instruction, much of it.
    fn string(&self, e: &mut Emit, rng: &mut Rng) {
        let counts = [0u64, 1, 2, 7, 100, 0x1_0000, 0xffff_ffff, u64::MAX, 1 << 31];
        e.set(reg::SI, self.target(rng))
            .set(reg::DI, if rng.chance(50) { rng.pick(&PLACES) } else { self.target(rng) });
        e.set(reg::CX, rng.pick(&counts)).set(reg::DX, rng.pick(&PORTS).into());
        if rng.chance(20) {
            e.raw(&[0xfd]);
        }
        if rng.chance(30) {
            e.raw(&[rng.pick(&[0x67u8, 0x66, 0x64, 0x65])]);
        }
        e.raw(&[rng.pick(&[0xf3u8, 0xf2])]);
        if e.bits == 64 && rng.chance(30) {
            e.raw(&[0x48]);
        }
        e.raw(&[rng.pick(&[0xa4u8, 0xa5, 0xaa, 0xab, 0xac, 0xa6, 0xa7, 0xae, 0xaf, 0x6c, 0x6d, 0x6e, 0x6f])])
            .raw(&[0xfc]);
    }

    /// A state image of any content, saved or loaded; control words.
    fn image(&self, e: &mut Emit, rng: &mut Rng) {
        let at = DATA + rng.below(4) * 0x400 + if rng.chance(10) { rng.below(64) } else { 0 };
        let forms: [(&[u8], u8); 14] = [
            (&[0xd9], 5),
            (&[0xd9], 5),
            (&[0xd9], 4),
            (&[0xdd], 4),
            (&[0x0f, 0xae], 2),
            (&[0x0f, 0xae], 2),
            (&[0x0f, 0xae], 1),
            (&[0x0f, 0xae], 5),
            (&[0x0f, 0xae], 0),
            (&[0x0f, 0xae], 4),
            (&[0x0f, 0xae], 6),
            (&[0x0f, 0xc7], 3),
            (&[0x0f, 0xc7], 4),
            (&[0xdd], 6),
        ];
        let (op, extension) = rng.pick(&forms);
        e.set(reg::AX, u64::from(rng.u32()))
            .set(reg::DX, if rng.chance(80) { 0 } else { interesting(rng) & 0xffff_ffff });
        e.at(op, extension, at);
        // What the unit does then.
        e.raw(rng.pick(&[
            &[0xd9u8, 0xe8][..],
            &[0xde, 0xf9],
            &[0x0f, 0x5e, 0xc1],
            &[0x9b],
            &[0x0f, 0x51, 0xc0],
            &[0xd9, 0xfe],
        ]));
    }

    /// What a vCPU reads that another one changes.
    fn read(&self, e: &mut Emit, rng: &mut Rng) {
        match rng.below(16) {
            0..=6 => self.image(e, rng),
            7 => {
                e.set(reg::AX, 8 * rng.below(12)).raw(&[0x8e, 0xc0 | rng.pick(&[0u8, 3, 4, 5]) << 3]);
            }
            8 => {
                e.at(
                    rng.pick(&[&[0x0f, 0x01][..], &[0x0f, 0x00]]),
                    rng.pick(&[2, 3]),
                    rng.pick(&[GDT, IDT, DATA]),
                );
            }
            9 => {
                // Far and near transfers through memory.
                e.at(&[0xff], rng.pick(&[2, 3, 4, 5]), DATA + 0x100);
            }
            10 => {
                e.set(reg::AX, PAGES).raw(&[0x0f, 0x22, 0xd8]);
            }
            11 => {
                // Reads and writes through pages whose tables change.
                let at = 0x20_0000 * rng.below(7) + rng.below(0x20_0000);
                e.at(rng.pick(&[&[0x8bu8][..], &[0x89], &[0x0f, 0x10], &[0x87]]), 0, at);
            }
            12 => self.string(e, rng),
            13 => {
                // Division by what is read.
                e.set(reg::DX, 0).at(&[0xf7], 6, DATA + rng.below(0x1000));
            }
            14 => {
                // A gather, a masked move.
                e.at(
                    rng.pick(&[
                        &[0xc4, 0xe2, 0x69, 0x90][..],
                        &[0xc4, 0xe2, 0x69, 0x2c],
                        &[0xc4, 0xe2, 0x6d, 0x8c],
                    ]),
                    0,
                    DATA,
                );
            }
            _ => {
                e.raw(&[0xcd, rng.below(33) as u8]);
            }
        }
    }

    /// What the other one does meanwhile.
    fn spoil(&self, e: &mut Emit, rng: &mut Rng) {
        let at = match rng.below(8) {
            0..=4 => DATA + rng.below(4) * 0x400 + rng.pick(&[0, 0, 0, 0, 2, 4, 24, 28, 512, 520]),
            5 => GDT + rng.below(0x90),
            6 => {
                let entries = [0, 8, 0x1000, 0x1008, 0x2000 + 8 * rng.below(8), 0x3000 + 8 * rng.below(512)];
                PAGES + rng.pick(&entries)
            }
            _ => self.code() + rng.below(PIECES / 2) * PIECE + rng.below(PIECE),
        };
        let value = match rng.below(5) {
            0 => 0x037f,
            1 => 0x1f80,
            2 => 0,
            _ => u64::from(rng.u32()),
        };
        e.set(reg::AX, value).at(
            rng.pick(&[&[0x89u8][..], &[0x89], &[0x66, 0x89], &[0x88], &[0x31], &[0xf0, 0x31]]),
            0,
            at,
        );
        if rng.chance(50) {
            // And back.
            e.set(reg::AX, rng.pick(&[0x037f, 0x1f80, value ^ 1])).through_bx(&[0x89], 0);
        }
    }

    /// Descriptors, gates, page tables, data.
    fn tables(&mut self, rng: &mut Rng) {
        let write = |w: &mut Vec<(u64, Vec<u8>)>, at: u64, v: u64| w.push((at, v.to_le_bytes().to_vec()));
        let mut w = Vec::new();
        let flat = |kind: u64, wide: u64| 0x000f_0000_0000_ffff | kind << 40 | (0x80 | wide) << 48;
        let code = if self.mode == Mode::Long { flat(0x9b, 0x20) } else { flat(0x9b, 0x40) };
        let tss = |at: u64, kind: u64| 0x2000 | (at & 0xff_ffff) << 16 | kind << 40;
        let any = |rng: &mut Rng| rng.u64() & 0x00ff_ffff_ffff_ffff | (0x80 | rng.below(32)) << 40;
        let gdt = [
            0,
            code,
            flat(0x93, 0x40),
            tss(TSS, 0x89),
            0,
            flat(0xfb, 0x40),
            flat(0xf3, 0x40),
            flat(0x9b, 0),
            flat(0x93, 0),
            // A call gate, a task gate, a 286 TSS, an LDT, and what comes.
            0x0000_ec00_0008_0000 | CODE & 0xffff | (CODE & 0xffff_0000) << 32,
            0x0000_e500_0060_0000,
            tss(TSS + 0x80, 0x81),
            tss(TSS + 0x100, 0x89),
            tss(TSS + 0x180, 0x82),
            any(rng),
            any(rng),
            any(rng),
            any(rng),
        ];
        for (n, d) in gdt.into_iter().enumerate() {
            write(&mut w, GDT + 8 * n as u64, d);
        }
        for v in 0..256u64 {
            match self.mode {
                Mode::Real => w.push((4 * v, (HANDLER as u32).to_le_bytes().to_vec())),
                _ => {
                    let kind = if v < 32 || rng.chance(80) {
                        0x8e00
                    } else {
                        rng.pick(&[0xee00u64, 0x8f00, 0x8500, 0x8600, 0xef00])
                    };
                    let selector = if kind & 0x1f00 == 0x500 { 0x60 } else { 8 };
                    let low = HANDLER & 0xffff | selector << 16 | kind << 32 | (HANDLER & 0xffff_0000) << 32;
                    let size = if self.mode == Mode::Long { 16 } else { 8 };
                    write(&mut w, IDT + size * v, low);
                    if size == 16 {
                        write(&mut w, IDT + size * v + 8, 0);
                    }
                }
            }
        }
        // Task states: stacks and entries that lead to the handler; the T bit sometimes.
        for n in 0..4 {
            let at = TSS + 0x80 * n;
            let mut image = [0u8; 0x68];
            let put = |image: &mut [u8; 0x68], at: usize, v: u64| {
                image[at..at + 4].copy_from_slice(&(v as u32).to_le_bytes())
            };
            put(&mut image, 4, STACKS + 0x4000);
            put(&mut image, 8, 0x10);
            put(&mut image, 0x1c, PAGES);
            put(&mut image, 0x20, HANDLER);
            put(&mut image, 0x24, 2);
            put(&mut image, 0x38, STACKS + 0x4000);
            for (i, sel) in [0x10u64, 8, 0x10, 0x10, 0x10, 0x10].into_iter().enumerate() {
                put(&mut image, 0x48 + 4 * i, sel);
            }
            put(&mut image, 0x64, rng.below(2) | 0x68 << 16);
            w.push((at, image.to_vec()));
        }
        for n in 0..PIECES {
            write(&mut w, TABLE + 8 * n, self.piece(n & (self.pieces - 1)));
        }
        self.page_tables(&mut w, rng);
        let mut data = vec![0u8; 0x1000];
        rng.fill(&mut data);
        // Images that load, to begin with: an x87 control word, an MXCSR, no extended header.
        for n in 0..4 {
            let at = n * 0x400;
            data[at..at + 2].copy_from_slice(&0x037fu16.to_le_bytes());
            data[at + 24..at + 28].copy_from_slice(&0x1f80u32.to_le_bytes());
            data[at + 512..at + 576].fill(0);
        }
        w.push((DATA, data));
        let mut handler = Emit::new(self.bits());
        if rng.chance(30) {
            // Accesses of its own: what faults is looked at, and an interrupt is acknowledged.
            handler.set(reg::AX, 0).at(&[0x89], 0, 0xfee0_00b0);
            handler.raw(&[0xb0, 0x20, 0xe6, 0x20, 0xe6, 0xa0]);
        }
        self.on(&mut handler);
        w.push((HANDLER, handler.bytes));
        self.writes = w;
    }

    /// Identity, in the format of the mode, with the chips in it; some of it at random.
    fn page_tables(&self, w: &mut Vec<(u64, Vec<u8>)>, rng: &mut Rng) {
        let mut write = |at: u64, v: u64, size: usize| w.push((at, v.to_le_bytes()[..size].to_vec()));
        match self.mode {
            Mode::Real | Mode::Protected => {}
            Mode::Paged => {
                for n in 0..1024u64 {
                    let flags = if rng.chance(95) { 0x87 } else { rng.below(0x1000) };
                    write(PAGES + 4 * n, n << 22 | flags, 4);
                }
            }
            Mode::Long => {
                write(PAGES, (PAGES + 0x1000) | 7, 8);
                for n in 0..4 {
                    write(PAGES + 0x1000 + 8 * n, (PAGES + 0x2000 + n * 0x1000) | 7, 8);
                    for i in 0..512u64 {
                        let flags =
                            if rng.chance(97) { 0x87 } else { rng.below(0x1000) | rng.below(2) << 63 };
                        write(PAGES + 0x2000 + 0x1000 * n + 8 * i, (n * 512 + i) << 21 | flags, 8);
                    }
                }
                // The first 2 MiB always.
                write(PAGES + 0x2000, 0x87, 8);
            }
        }
    }

    /// Puts it into memory.
    pub fn place(&self, memory: &PhysMemory) {
        for (at, bytes) in &self.writes {
            memory.write(*at, bytes);
        }
    }

    /// A ROM that goes on to the first piece: what runs if the guest resets the machine by itself is the same again, as
    /// `enter` is called then.
    pub fn rom(&self) -> Vec<u8> {
        let mut rom = vec![0xf4; 128 << 10];
        Rng::new(self.seed, 1).fill(&mut rom[..0x1000]);
        rom
    }

    /// Has a vCPU begin.
    pub fn enter(&self, cpu: &mut Cpu, n: usize) {
        let mut rng = Rng::new(self.seed, n as u64 + 2);
        let s = &mut cpu.state;
        s.activity = Activity::Running;
        for r in &mut s.gpr[..16] {
            *r = interesting(&mut rng);
        }
        s.gpr[gpr::RSP] = STACKS + 0x8000;
        // Each begins in its own half, so that in a race one reads and the other writes.
        s.gpr[gpr::RIP] = self.piece(n as u64 * PIECES / self.vcpus as u64);
        s.set_rflags(2 | rng.below(2) << 9);
        s.cpl = 0;
        if self.mode == Mode::Real {
            s.gpr[gpr::RSP] = 0x8000;
            let real = |at: u64| Segment { base: at, limit: 0xffff, attr: 0x93, sel: (at >> 4) as u16 };
            for i in 0..6 {
                s.seg[i] = real(0);
            }
            s.seg[seg::CS] = Segment { attr: 0x9b, ..real(CODE16) };
            cpu.sync_all();
            return;
        }
        let long = self.mode == Mode::Long;
        let flat = |attr: u32, sel: u16| Segment { base: 0, limit: u32::MAX, attr: attr | 1 << 15, sel };
        s.seg[seg::CS] = flat(0x9b | if long { Segment::L } else { Segment::DB }, 8);
        for i in [seg::DS, seg::ES, seg::SS, seg::FS, seg::GS] {
            s.seg[i] = flat(0x93 | Segment::DB, 16);
        }
        s.gdtr.base = GDT;
        s.gdtr.limit = 0x8f;
        s.idtr.base = IDT;
        s.idtr.limit = 0xfff;
        s.tr = Segment { base: TSS, limit: 0x2067, attr: 0x8b, sel: 0x18 };
        s.cr0 = cr0::PE | cr0::MP | cr0::ET | cr0::NE;
        s.cr4 = cr4::OSFXSR | cr4::OSXMMEXCPT;
        if rng.chance(50) {
            s.cr0 |= cr0::WP;
        }
        if self.mode == Mode::Paged {
            s.cr4 |= cr4::PSE;
        }
        if long {
            s.cr4 |= cr4::PAE | cr4::OSXSAVE;
            s.msr.efer = efer::LME | efer::LMA | efer::NXE | efer::SCE;
            s.xcr0 = 7;
        }
        if matches!(self.mode, Mode::Paged | Mode::Long) {
            s.cr0 |= cr0::PG;
            s.cr3 = PAGES;
        }
        cpu.sync_all();
    }
}
