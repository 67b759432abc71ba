//! The guest's memory map, its selectors, and descriptors as words (SDM volume 3A, 3.4.5, 3.5, 5.8.3, 6.11).

/// Where the image is loaded.
pub const IMAGE: u32 = 0x10_0000;
/// The GDT.
pub const GDT: u32 = 0x10_1000;
/// The IDT outside long mode.
pub const IDT32: u32 = 0x10_2000;
/// The IDT of long mode.
pub const IDT64: u32 = 0x10_3000;
/// The 32-bit TSS that the main program runs in, with the interrupt redirection and I/O permission bitmaps.
pub const TSS32: u32 = 0x10_4000;
/// The 64-bit TSS.
pub const TSS64: u32 = 0x10_7000;
/// The LDT (not loaded at the start; 100h bytes).
pub const LDT: u32 = 0x10_a000;
/// Where the handler goes on after a fault: an offset and a selector.
pub const RECOVER: u32 = 0x10_b000;
/// The stack pointer there.
pub const RECOVER_SP: u32 = 0x10_b010;
/// Vectors 0-31 from which the handler returns with IRET instead.
pub const RESUME: u32 = 0x10_b020;
/// Free for the test's variables.
pub const VARS: u32 = 0x10_b100;
/// The host writes it when a guest that goes from engine to engine has done so often enough, at once if it does not.
pub const ENOUGH: u32 = VARS + 0xef0;
/// The exception stubs of protected mode.
pub const STUBS32: u32 = 0x10_c000;
/// The exception stubs of 64-bit mode.
pub const STUBS64: u32 = 0x10_e000;
/// Top of the main program's stack.
pub const STACK_MAIN: u32 = 0x11_1000;
/// Tops of the stacks of privilege levels 0 to 3, as the TSSs have them.
pub const STACKS: [u32; 4] = [0x11_3000, 0x11_5000, 0x11_7000, 0x11_9000];
/// Top of the stack of IST 1; IST n is n - 1 times 1000h higher.
pub const IST1: u32 = 0x11_a000;
/// The first program.
pub const CODE: u32 = 0x12_0000;
/// Page tables.
pub const TABLES: u32 = 0x15_0000;
/// Data that the test preloads.
pub const DATA: u32 = 0x18_0000;
/// The copy of low memory in the image, and its size: it is moved to address 0 at the start.
pub const LOW_COPY: u32 = 0x1c_0000;
/// Bytes of low memory that the image provides.
pub const LOW_SIZE: u32 = 0x1_8000;
/// The first program of low memory (16-bit).
pub const LOW_CODE: u32 = 0x8000;
/// The stack segment's top for 16-bit programs of low memory.
pub const LOW_STACK: u32 = 0x1_7000;
/// The image's end.
pub const IMAGE_END: u32 = 0x1e_0000;
/// RAM that is zero at the start, free for use.
pub const SCRATCH: u32 = 0x20_0000;
/// RAM's end as far as the page tables map it.
pub const RAM_END: u32 = 0x40_0000;

/// Flat 32-bit code, level 0.
pub const CODE0: u16 = 0x08;
/// Flat data, level 0.
pub const DATA0: u16 = 0x10;
/// Flat 32-bit code, level 1.
pub const CODE1: u16 = 0x18 | 1;
/// Flat data, level 1.
pub const DATA1: u16 = 0x20 | 1;
/// Flat 32-bit code, level 2.
pub const CODE2: u16 = 0x28 | 2;
/// Flat data, level 2.
pub const DATA2: u16 = 0x30 | 2;
/// Flat 32-bit code, level 3.
pub const CODE3: u16 = 0x38 | 3;
/// Flat data, level 3.
pub const DATA3: u16 = 0x40 | 3;
/// 64-bit code, level 0.
pub const CODE64: u16 = 0x48;
/// 64-bit code, level 3.
pub const CODE64_3: u16 = 0x50 | 3;
/// 16-bit code with base 0, level 0.
pub const CODE16: u16 = 0x58;
/// 16-bit data with base 0, level 0.
pub const DATA16: u16 = 0x60;
/// The TSS at [`TSS32`].
pub const TR32: u16 = 0x68;
/// The TSS at [`TSS64`] (16 bytes).
pub const TR64: u16 = 0x70;
/// The LDT (16 bytes).
pub const LDTR: u16 = 0x80;
/// The first selector for the test's own descriptors.
pub const FREE: u16 = 0x90;

/// Flat code and data selectors by level.
pub const FLAT: [(u16, u16); 4] = [(CODE0, DATA0), (CODE1, DATA1), (CODE2, DATA2), (CODE3, DATA3)];

/// The port of the log.
pub const LOG_PORT: u32 = 0xe9;
/// The port of isa-debug-exit.
pub const EXIT_PORT: u32 = 0xf4;
/// The vector that ends a program without a word.
pub const QUIT: u8 = 0x30;

/// Access bytes of code and data descriptors, level 0, accessed.
pub mod access {
    /// Read/write data.
    pub const DATA: u8 = 0x93;
    /// Read-only data.
    pub const READ_ONLY: u8 = 0x91;
    /// Read/write data that grows down.
    pub const DOWN: u8 = 0x97;
    /// Readable code.
    pub const CODE: u8 = 0x9b;
    /// Execute-only code.
    pub const EXECUTE: u8 = 0x99;
    /// Readable conforming code.
    pub const CONFORMING: u8 = 0x9f;
    /// An LDT.
    pub const LDT: u8 = 0x82;
    /// Available TSSs.
    pub const TSS16: u8 = 0x81;
    /// Available TSSs.
    pub const TSS32: u8 = 0x89;
    /// Gates.
    pub const CALL16: u8 = 0x84;
    /// Gates.
    pub const TASK: u8 = 0x85;
    /// Gates.
    pub const INT16: u8 = 0x86;
    /// Gates.
    pub const TRAP16: u8 = 0x87;
    /// Gates.
    pub const CALL32: u8 = 0x8c;
    /// Gates.
    pub const INT32: u8 = 0x8e;
    /// Gates.
    pub const TRAP32: u8 = 0x8f;
}

/// The granularity nibble: G, D/B, L, AVL.
pub mod size {
    /// Byte granular, 16-bit.
    pub const B16: u8 = 0;
    /// Byte granular, 32-bit.
    pub const B32: u8 = 4;
    /// Page granular, 32-bit.
    pub const P32: u8 = 0xc;
    /// Page granular, 16-bit.
    pub const P16: u8 = 8;
    /// Page granular, 64-bit code.
    pub const P64: u8 = 0xa;
}

/// A segment descriptor; `limit` counts bytes or pages.
pub const fn segment(base: u32, limit: u32, access: u8, size: u8) -> u64 {
    let (base, limit) = (base as u64, limit as u64);
    (limit & 0xffff)
        | (base & 0xff_ffff) << 16
        | (access as u64) << 40
        | (limit >> 16 & 0xf) << 48
        | (size as u64) << 52
        | (base >> 24) << 56
}

/// A flat descriptor.
pub const fn flat(access: u8, size: u8) -> u64 {
    segment(0, 0xf_ffff, access, size)
}

/// The access byte with another DPL.
pub const fn dpl(access: u8, level: u8) -> u8 {
    access & !0x60 | level << 5
}

/// The access byte with P clear.
pub const fn absent(access: u8) -> u8 {
    access & !0x80
}

/// A gate (the low half of a 16-byte one); `count` is a call gate's parameter count or an IST index.
pub const fn gate(sel: u16, offset: u32, access: u8, count: u8) -> u64 {
    let offset = offset as u64;
    (offset & 0xffff)
        | (sel as u64) << 16
        | (count as u64) << 32
        | (access as u64) << 40
        | (offset >> 16) << 48
}
