//! What both sides agree on: addresses, segments, and the shapes of a case and its outcome.
//!
//! A case is one instruction with everything it can read: registers, vectors, the x87 unit, some patched bytes of
//! memory. All cases run in the same small address space:
//!
//! ```text
//! CODE      8 pages, readable and executable; a hole; 8 pages; a hole     (each case of a batch has its own 64 bytes here)
//! LOW       4 pages, writable; a hole; 1 page, read only; a hole
//! HIGH      2 pages, writable, above 4 GiB
//! ```
//!
//! Data pages hold the *background*, the same for all cases of a batch, with the case's patches over it.

/// First address of the code.
pub const CODE: u64 = 0x1000_0000;
/// Pages of code.
pub const CODE_PAGES: usize = 16;
/// Bytes of code address space for each case.
pub const SLOT: u64 = 64;
/// Cases in a batch: one for each slot.
pub const BATCH: usize = CODE_PAGES * 4096 / SLOT as usize;
/// The writable pages below 4 GiB.
pub const LOW: u64 = 0x2000_0000;
/// How many bytes they have.
pub const LOW_LEN: u64 = 0x4000;
/// The read-only page.
pub const READ_ONLY: u64 = 0x2000_5000;
/// The writable pages above 4 GiB.
pub const HIGH: u64 = 0x1234_5678_9000;
/// How many bytes they have.
pub const HIGH_LEN: u64 = 0x2000;
/// Bytes of data memory: LOW, then HIGH, then READ_ONLY.
pub const DATA_LEN: usize = (LOW_LEN + HIGH_LEN + 0x1000) as usize;
/// Of these the ones that can be written to.
pub const WRITABLE_LEN: usize = (LOW_LEN + HIGH_LEN) as usize;

/// Where in data memory (as an array of `DATA_LEN` bytes) an address stands.
pub fn data_offset(addr: u64) -> Option<usize> {
    let within = |base: u64, len: u64| (addr.wrapping_sub(base) < len).then(|| addr - base);
    if let Some(o) = within(LOW, LOW_LEN) {
        Some(o as usize)
    } else if let Some(o) = within(HIGH, HIGH_LEN) {
        Some((LOW_LEN + o) as usize)
    } else {
        within(READ_ONLY, 0x1000).map(|o| WRITABLE_LEN + o as usize)
    }
}

/// The address of a byte of data memory.
pub fn data_address(offset: usize) -> u64 {
    let o = offset as u64;
    if o < LOW_LEN {
        LOW + o
    } else if offset < WRITABLE_LEN {
        HIGH + (o - LOW_LEN)
    } else {
        READ_ONLY + (o - WRITABLE_LEN as u64)
    }
}

/// Where in the code's bytes (as an array) an address stands.
pub fn code_offset(addr: u64) -> Option<usize> {
    let page = addr.wrapping_sub(CODE) >> 12;
    let half = CODE_PAGES as u64 / 2;
    let index = match page {
        p if p < half => p,
        p if p > half && p <= CODE_PAGES as u64 => p - 1,
        _ => return None,
    };
    Some((index << 12 | addr & 0xfff) as usize)
}

/// The address of a page of code.
pub fn code_page(index: usize) -> u64 {
    CODE + ((index + usize::from(index >= CODE_PAGES / 2)) as u64) * 4096
}

/// Selectors as 64-bit Linux has them, and those of the descriptors that both sides make.
pub mod sel {
    /// 32-bit code.
    pub const CODE32: u16 = 0x23;
    /// Data.
    pub const DATA: u16 = 0x2b;
    /// 64-bit code.
    pub const CODE64: u16 = 0x33;
    /// Selector of an entry of the LDT.
    pub const fn ldt(n: u16) -> u16 {
        n << 3 | 7
    }
    /// FS.
    pub const FS: u16 = ldt(9);
    /// GS.
    pub const GS: u16 = ldt(10);
    /// The LDT's 16-bit code segment.
    pub const CODE16: u16 = ldt(0);
    /// The LDT's 16-bit data segment (stack pointer SP).
    pub const DATA16: u16 = ldt(1);
}

/// A segment that both sides make by hand: fields as in Linux's `user_desc`.
#[derive(Clone, Copy, Debug)]
pub struct UserSegment {
    /// Base address.
    pub base: u32,
    /// Limit, in bytes, or in pages if `pages`.
    pub limit: u32,
    /// Limit counts pages.
    pub pages: bool,
    /// 32-bit.
    pub big: bool,
    /// 0 data, 1 expand-down data, 2 code (conforming if `conforming`).
    pub contents: u8,
    /// Data not writable, or code not readable.
    pub restricted: bool,
    /// Marked present.
    pub present: bool,
}

const fn segment(
    base: u64,
    limit: u32,
    pages: bool,
    big: bool,
    contents: u8,
    restricted: bool,
) -> UserSegment {
    UserSegment { base: base as u32, limit, pages, big, contents, restricted, present: true }
}

/// The LDT.
pub const LDT: [UserSegment; 11] = [
    segment(CODE, 0x7fff, false, false, 2, false),
    segment(LOW, 0xffff, false, false, 0, false),
    segment(LOW, 0x0fff, false, true, 1, false),
    segment(LOW, 0x1fff, false, true, 0, true),
    segment(LOW, 0x2fff, false, true, 2, true),
    segment(CODE, 0x8fff, false, true, 2, false),
    segment(LOW + 0x1000, 0x7f, false, true, 0, false),
    UserSegment { present: false, ..segment(LOW, 0xffff, false, true, 0, false) },
    UserSegment { present: false, ..segment(0, 0xf_ffff, true, true, 3, false) },
    segment(LOW + 0x800, 0xf_ffff, true, true, 0, false),
    segment(LOW + 0x1800, 0x17ff, false, true, 0, false),
];

/// FS and GS of a case, and their bases; null selectors where no LDT can be made.
pub fn fs_gs(ldt: bool) -> ([u16; 2], [u64; 2]) {
    let base = |s: u16| u64::from(LDT[usize::from(s >> 3)].base);
    if ldt { ([sel::FS, sel::GS], [base(sel::FS), base(sel::GS)]) } else { ([0; 2], [0; 2]) }
}

impl UserSegment {
    /// The descriptor as Linux writes it into the GDT or LDT.
    pub const fn descriptor(&self) -> u64 {
        let kind = 1 | (self.restricted as u64 ^ 1) << 1 | (self.contents as u64) << 2;
        let access = kind | 1 << 4 | 3 << 5 | (self.present as u64) << 7;
        let (base, limit) = (self.base as u64, self.limit as u64);
        limit & 0xffff
            | (base & 0xff_ffff) << 16
            | access << 40
            | (limit >> 16 & 15) << 48
            | (self.big as u64) << 54
            | (self.pages as u64) << 55
            | (base >> 24) << 56
    }
}

/// Where the flags stand that a case sets.
pub const TF: u64 = 1 << 8;

/// Everything a program sees of the CPU.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Regs {
    /// RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8-R15.
    pub gpr: [u64; 16],
    /// RIP.
    pub rip: u64,
    /// RFLAGS.
    pub rflags: u64,
    /// ES, CS, SS, DS, FS, GS.
    pub sel: [u16; 6],
    /// Not used.
    pub pad: u32,
    /// FS base, GS base. On the native side it follows from the selectors before the case.
    pub base: [u64; 2],
    /// x87, MXCSR and XMM0-15 as FXSAVE64 writes them.
    pub fx: [u8; 512],
    /// Bits 128-255 of YMM0-15 as XSAVE writes them.
    pub ymm: [u8; 256],
}

impl Default for Regs {
    fn default() -> Self {
        let mut fx = [0; 512];
        fx[0] = 0x7f;
        fx[1] = 3;
        fx[24] = 0x80;
        fx[25] = 0x1f;
        Self { gpr: [0; 16], rip: 0, rflags: 0x202, sel: [0; 6], pad: 0, base: [0; 2], fx, ymm: [0; 256] }
    }
}

impl Regs {
    /// A little-endian word of `fx`.
    pub fn fx16(&self, at: usize) -> u16 {
        u16::from_le_bytes([self.fx[at], self.fx[at + 1]])
    }
    /// A doubleword of `fx`.
    pub fn fx32(&self, at: usize) -> u32 {
        u32::from(self.fx16(at)) | u32::from(self.fx16(at + 2)) << 16
    }
    /// A quadword of `fx`.
    pub fn fx64(&self, at: usize) -> u64 {
        u64::from(self.fx32(at)) | u64::from(self.fx32(at + 4)) << 32
    }
    /// MXCSR.
    pub fn mxcsr(&self) -> u32 {
        self.fx32(24)
    }
    /// XMM register `n`.
    pub fn xmm(&self, n: usize) -> u128 {
        u128::from(self.fx64(160 + 16 * n)) | u128::from(self.fx64(168 + 16 * n)) << 64
    }
    /// Bits 128-255 of YMM register `n`.
    pub fn ymm_high(&self, n: usize) -> u128 {
        let mut b = [0; 16];
        b.copy_from_slice(&self.ymm[16 * n..16 * n + 16]);
        u128::from_le_bytes(b)
    }
    /// Replaces bits 128-255 of YMM register `n`.
    pub fn put_ymm_high(&mut self, n: usize, v: u128) {
        self.ymm[16 * n..16 * n + 16].copy_from_slice(&v.to_le_bytes());
    }
    /// ST(`n`): sign and exponent, significand.
    pub fn st(&self, n: usize) -> (u16, u64) {
        (self.fx16(40 + 16 * n), self.fx64(32 + 16 * n))
    }
    /// Replaces bytes of `fx`.
    pub fn put_fx(&mut self, at: usize, bytes: &[u8]) {
        self.fx[at..at + bytes.len()].copy_from_slice(bytes);
    }
    /// 16, 32 or 64, by CS.
    pub fn bitness(&self) -> u32 {
        match self.sel[1] {
            sel::CODE64 => 64,
            sel::CODE16 => 16,
            _ => 32,
        }
    }
    /// The linear address of RIP.
    pub fn rip_linear(&self) -> u64 {
        if self.sel[1] == sel::CODE16 { CODE + self.rip } else { self.rip }
    }
}

/// How a case ends when nothing else ends it.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// An INT3 stands behind the instruction.
    Breakpoint = 0,
    /// TF is set: a trap after the instruction.
    Step = 1,
}

/// Bytes laid over the background.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Patch {
    /// Address.
    pub addr: u64,
    /// How many.
    pub len: u32,
    /// The bytes.
    pub data: [u8; 64],
}

impl Patch {
    /// No bytes.
    pub const NONE: Self = Self { addr: 0, len: 0, data: [0; 64] };
}

/// Patches of a case.
pub const PATCHES: usize = 6;

/// One instruction and all it starts from.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Case {
    /// The state before.
    pub regs: Regs,
    /// The instruction.
    pub code: [u8; 15],
    /// How many bytes of it; 0: the code has been placed by other means, and stays.
    pub code_len: u8,
    /// How the case ends.
    pub end: End,
    /// Number of patches.
    pub patches: u8,
    /// The patches.
    pub patch: [Patch; PATCHES],
}

impl Case {
    /// The instruction's bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.code[..usize::from(self.code_len).min(15)]
    }
    /// The patches in use.
    pub fn patches(&self) -> &[Patch] {
        &self.patch[..usize::from(self.patches).min(PATCHES)]
    }
    /// Lays bytes over the background, if there is room for another patch.
    pub fn patch(&mut self, addr: u64, bytes: &[u8]) {
        let n = usize::from(self.patches);
        if n < PATCHES && bytes.len() <= 64 {
            let mut data = [0; 64];
            data[..bytes.len()].copy_from_slice(bytes);
            self.patch[n] = Patch { addr, len: bytes.len() as u32, data };
            self.patches += 1;
        }
    }
    /// The bytes of data memory before the case: `background` with the patches.
    pub fn memory(&self, background: &[u8]) -> Vec<u8> {
        let mut m = background.to_vec();
        for p in self.patches() {
            for (i, b) in p.data[..p.len as usize].iter().enumerate() {
                if let Some(o) = data_offset(p.addr.wrapping_add(i as u64)) {
                    m[o] = *b;
                }
            }
        }
        m
    }
    /// Writes the instruction, and what follows it, into `code`, an array of all code bytes.
    pub fn place(&self, code: &mut [u8]) {
        if self.code_len == 0 {
            return;
        }
        let at = self.regs.rip_linear();
        let filler = if self.end == End::Breakpoint { 0xcc } else { 0x90 };
        for i in 0..31u64 {
            let b = self.bytes().get(i as usize).copied().unwrap_or(filler);
            if let Some(p) = code_offset(at.wrapping_add(i)).and_then(|o| code.get_mut(o)) {
                *p = b;
            }
        }
    }
}

/// 64 bytes of memory that differ from the background.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Chunk {
    /// Offset in data memory.
    pub offset: u32,
    /// The bytes.
    pub data: [u8; 64],
}

/// Chunks kept of an outcome.
pub const CHUNKS: usize = 40;

/// What became of a case.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Outcome {
    /// The state after.
    pub regs: Regs,
    /// The exception that ended the case: 3 (INT3) or 1 (TF) if nothing else.
    pub vector: u32,
    /// Its error code.
    pub error: u32,
    /// CR2, for a page fault.
    pub cr2: u64,
    /// Number of chunks (more may have changed than are kept).
    pub chunks: u32,
    /// The chunks.
    pub chunk: [Chunk; CHUNKS],
}

impl Outcome {
    /// An empty one.
    pub fn new() -> Box<Self> {
        Box::new(Self {
            regs: Regs::default(),
            vector: 0,
            error: 0,
            cr2: 0,
            chunks: 0,
            chunk: [Chunk { offset: 0, data: [0; 64] }; CHUNKS],
        })
    }
    /// The chunks kept.
    pub fn chunks(&self) -> &[Chunk] {
        &self.chunk[..(self.chunks as usize).min(CHUNKS)]
    }
    /// Data memory after the case.
    pub fn memory(&self, background: &[u8]) -> Vec<u8> {
        let mut m = background.to_vec();
        for c in self.chunks() {
            m[c.offset as usize..c.offset as usize + 64].copy_from_slice(&c.data);
        }
        m
    }
    /// Notes what differs between `now` and `background` in the writable pages, and makes it equal again.
    ///
    /// # Safety
    /// Both point to `DATA_LEN` bytes that nobody else touches meanwhile.
    pub unsafe fn collect(&mut self, now: *mut u8, background: *const u8) {
        self.chunks = 0;
        let mut at = 0;
        while at < WRITABLE_LEN {
            // SAFETY: `at` and the lengths stay below DATA_LEN.
            unsafe {
                let same =
                    |o: usize, n: usize| libc::memcmp(now.add(o).cast(), background.add(o).cast(), n) == 0;
                if at & 0xfff == 0 && same(at, 4096) {
                    at += 4096;
                    continue;
                }
                if !same(at, 64) {
                    if let Some(c) = self.chunk.get_mut(self.chunks as usize) {
                        c.offset = at as u32;
                        std::ptr::copy_nonoverlapping(now.add(at), c.data.as_mut_ptr(), 64);
                    }
                    self.chunks += 1;
                    std::ptr::copy_nonoverlapping(background.add(at), now.add(at), 64);
                }
            }
            at += 64;
        }
    }
}

/// Lays the patches of `case` over `data`, or takes those of the read-only page away again (`undo`): the writable ones
/// go with
/// [`Outcome::collect`].
///
/// # Safety
/// Both point to `DATA_LEN` bytes that nobody else touches meanwhile.
pub unsafe fn apply_patches(case: &Case, data: *mut u8, background: *const u8, undo: bool) {
    for p in case.patches() {
        for i in 0..(p.len as usize).min(64) {
            let Some(o) = data_offset(p.addr.wrapping_add(i as u64)) else { continue };
            // SAFETY: `data_offset` gives numbers below DATA_LEN.
            unsafe {
                if !undo {
                    *data.add(o) = p.data[i];
                } else if o >= WRITABLE_LEN {
                    *data.add(o) = *background.add(o);
                }
            }
        }
    }
}
