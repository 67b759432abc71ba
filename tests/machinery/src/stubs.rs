//! What the guest runs on every exception: a stub for each vector, and the common handler that writes a record to the
//! log.
//!
//! The record is a line of hexadecimal fields; `E` from protected mode, `L` from 64-bit mode:
//! vector, error code, EIP, CS, EFLAGS, then the handler's own EFLAGS, CS, SS and ESP (at the frame), the interrupted
//! ESP and SS (if the level changed), CR2, DR6 (for #DB, and set to its initial value then). After it the handler
//! returns (with RF set for #DB; vectors of [`crate::layout::RESUME`], and 32 up), or takes the flat segments of level
//! 0 (FS, GS and the general registers stay) and goes where [`crate::layout::RECOVER`] says.
use crate::asm;
use crate::layout::*;
use crate::prog::Prog;
use iced_x86::code_asm::*;

/// Vectors whose frames have an error code.
pub fn has_error_code(vector: u8) -> bool {
    matches!(vector, 8 | 10..=14 | 17 | 21)
}

/// The stub of a vector in protected mode.
pub fn stub32(vector: u8) -> u32 {
    STUBS32 + 16 * u32::from(vector)
}

/// The stub of a vector in 64-bit mode.
pub fn stub64(vector: u8) -> u32 {
    STUBS64 + 16 * u32::from(vector)
}

/// Number of stubs.
pub const VECTORS: u8 = 0x40;
const COMMON: u32 = 16 * VECTORS as u32;
/// The routine that prints EAX as eight digits behind a space, with near calls of 32-bit code.
pub const HEX32: u32 = STUBS32 + COMMON + 0x400;
/// As [`HEX32`], for 64-bit code.
pub const HEX64: u32 = STUBS64 + COMMON + 0x400;

/// Prints AL.
pub(crate) fn put(p: &mut Prog, c: u8) {
    asm!(p; mov al, u32::from(c); out LOG_PORT, al);
}

/// The routine at [`HEX32`] or [`HEX64`]: keeps registers and flags; uses the stack and no data segment.
pub fn hex(bits: u32) -> Prog {
    let mut program = Prog::new(bits, if bits == 64 { HEX64 } else { HEX32 });
    let p = &mut program;
    let mut next = p.a.create_label();
    if p.bits == 64 {
        asm!(p; pushfq; push rax; push rcx; push rdx; mov edx, eax; mov al, 0x20; out LOG_PORT, al; mov ecx, 8);
    } else {
        asm!(p; pushfd; push eax; push ecx; push edx; mov edx, eax; mov al, 0x20; out LOG_PORT, al; mov ecx, 8);
    }
    p.place(&mut next);
    // 0-9 and A-F without a table: the carry of the comparison chooses.
    asm!(p; rol edx, 4; mov al, dl; and al, 15; add al, 0x30; cmp al, 0x3a);
    let mut digit = p.a.create_label();
    asm!(p; jb digit; add al, 7);
    p.place(&mut digit);
    asm!(p; out LOG_PORT, al; dec ecx; jnz next);
    if p.bits == 64 {
        asm!(p; pop rdx; pop rcx; pop rax; popfq; ret);
    } else {
        asm!(p; pop edx; pop ecx; pop eax; popfd; ret);
    }
    program
}

/// The stubs: PUSH 0 where there is no error code, PUSH vector, JMP to the handler behind them. The same bytes do in
/// both modes.
pub fn stubs() -> Vec<u8> {
    let mut bytes = Vec::new();
    for v in 0..VECTORS {
        let end = 16 * (usize::from(v) + 1);
        if !has_error_code(v) {
            bytes.extend([0x6a, 0]);
        }
        bytes.extend([0x6a, v, 0xe9]);
        let next = bytes.len() as u32 + 4;
        bytes.extend((COMMON - next).to_le_bytes());
        bytes.resize(end, 0x90);
    }
    bytes
}

/// The handler of protected mode, behind the stubs at [`STUBS32`].
pub fn protected() -> Prog {
    let mut program = Prog::new(32, STUBS32 + COMMON);
    let p = &mut program;
    let digits = u64::from(HEX32);
    asm!(p; pushfd; cld; pushad; push ds; push es; mov eax, u32::from(DATA0); mov ds, ax; mov es, ax;
        mov ebp, esp; mov eax, ss; lar eax, eax; test eax, 1 << 22);
    // A 16-bit stack: the upper half of ESP means nothing.
    let mut wide = p.a.create_label();
    asm!(p; jnz wide; movzx ebp, bp);
    p.place(&mut wide);
    let at = |offset: i32| dword_ptr(ebp + offset).ss();
    let (mut recover, mut quit) = (p.a.create_label(), p.a.create_label());
    asm!(p; cmp at(44), u32::from(QUIT); je quit);
    put(p, b'E');
    for offset in [44, 48, 52, 56, 60, 40] {
        asm!(p; mov eax, at(offset); call digits);
    }
    asm!(p; mov eax, cs; call digits; mov eax, ss; call digits; lea eax, dword_ptr(ebp + 48); call digits);
    // ESP and SS are in the frame only if the level changed (or virtual-8086 mode was left).
    let (mut outer, mut shown, mut same) = (p.a.create_label(), p.a.create_label(), p.a.create_label());
    asm!(p; test at(60), 1 << 17; jnz outer; mov eax, cs; mov ecx, at(56); and eax, 3; and ecx, 3; cmp ecx, eax; je same);
    p.place(&mut outer);
    asm!(p; mov eax, at(64); call digits; mov eax, at(68); call digits; jmp shown);
    p.place(&mut same);
    asm!(p; mov eax, -1; call digits; call digits);
    p.place(&mut shown);
    asm!(p; mov eax, cr2; call digits);
    let (mut other, mut done) = (p.a.create_label(), p.a.create_label());
    asm!(p; cmp at(44), 1; jne other; mov eax, dr6; mov dword_ptr(RECOVER + 0x48), eax; call digits; mov eax, 0xffff_0ff0u32; mov dr6, eax; jmp done);
    p.place(&mut other);
    asm!(p; xor eax, eax; call digits);
    p.place(&mut done);
    put(p, b'\n');
    let mut resume = p.a.create_label();
    asm!(p; mov ecx, at(44); cmp ecx, 32; jae resume; bt dword_ptr(RESUME), ecx; jc resume; jmp recover);
    p.place(&mut resume);
    // RF, so that an instruction breakpoint lets its instruction run; not after a single step, which may be followed by
    // one.
    let mut no_debug = p.a.create_label();
    asm!(p; cmp at(44), 1; jne no_debug; test byte_ptr(RECOVER + 0x49), 0x40; jnz no_debug; or at(60), 1 << 16);
    p.place(&mut no_debug);
    asm!(p; pop es; pop ds; popad; add esp, 12; iretd);
    p.place(&mut quit);
    p.place(&mut recover);
    // The interrupted program's general registers stay, but for the stack pointer.
    asm!(p; mov eax, at(36); mov dword_ptr(RECOVER + 0x40), eax; mov edi, at(8); mov esi, at(12); mov ebx, at(24); mov edx, at(28);
        mov ecx, at(32); mov ebp, at(16); mov eax, u32::from(DATA0); mov ss, ax; mov esp, dword_ptr(RECOVER_SP);
        mov ds, ax; mov es, ax);
    let mut known = p.a.create_label();
    asm!(p; cmp dword_ptr(RECOVER), 0; jne known);
    p.say("no way on");
    p.exit();
    p.place(&mut known);
    asm!(p; push dword_ptr(RECOVER); pop dword_ptr(RECOVER + 8); mov dword_ptr(RECOVER), 0; mov eax, dword_ptr(RECOVER + 0x40);
        jmp fword_ptr(RECOVER + 8));
    program
}

/// The handler of 64-bit mode, behind the stubs at [`STUBS64`].
pub fn long() -> Prog {
    let mut program = Prog::new(64, STUBS64 + COMMON);
    let p = &mut program;
    let digits = u64::from(HEX64);
    asm!(p; pushfq; cld; push rbp; push rcx; push rax; mov rbp, rsp);
    // [rbp]: rax, rcx, rbp, flags, vector, error, then the processor's frame.
    let (mut recover, mut quit) = (p.a.create_label(), p.a.create_label());
    asm!(p; cmp dword_ptr(rbp + 32), u32::from(QUIT); je quit);
    put(p, b'L');
    for offset in [32, 40] {
        asm!(p; mov eax, dword_ptr(rbp + offset); call digits);
    }
    let wide = |p: &mut Prog, offset: i32| {
        asm!(p; mov eax, dword_ptr(rbp + offset + 4); call digits; mov eax, dword_ptr(rbp + offset); call digits);
    };
    wide(p, 48);
    for offset in [56, 64, 24] {
        asm!(p; mov eax, dword_ptr(rbp + offset); call digits);
    }
    asm!(p; mov eax, cs; call digits; mov eax, ss; call digits; lea eax, dword_ptr(rbp + 40); call digits);
    wide(p, 72);
    asm!(p; mov eax, dword_ptr(rbp + 80); call digits; mov rcx, cr2; mov rax, rcx; shr rax, 32; call digits; mov eax, ecx; call digits);
    let (mut other, mut done) = (p.a.create_label(), p.a.create_label());
    asm!(p; cmp dword_ptr(rbp + 32), 1; jne other; mov rax, dr6; mov dword_ptr(RECOVER + 0x48), eax; call digits; mov eax, 0xffff_0ff0u32; mov dr6, rax; jmp done);
    p.place(&mut other);
    asm!(p; xor eax, eax; call digits);
    p.place(&mut done);
    put(p, b'\n');
    let mut resume = p.a.create_label();
    asm!(p; mov ecx, dword_ptr(rbp + 32); cmp ecx, 32; jae resume; mov eax, dword_ptr(RESUME); bt eax, ecx; jc resume; jmp recover);
    p.place(&mut resume);
    let mut no_debug = p.a.create_label();
    asm!(p; cmp dword_ptr(rbp + 32), 1; jne no_debug; test byte_ptr(RECOVER + 0x49), 0x40; jnz no_debug; or dword_ptr(rbp + 64), 1 << 16);
    p.place(&mut no_debug);
    asm!(p; pop rax; pop rcx; pop rbp; add rsp, 24; iretq);
    p.place(&mut quit);
    p.place(&mut recover);
    asm!(p; pop rax; mov qword_ptr(RECOVER + 0x40), rax; pop rcx; pop rbp; mov eax, u32::from(DATA0); mov ss, ax; mov rsp, qword_ptr(RECOVER_SP);
        mov ds, ax; mov es, ax);
    let mut known = p.a.create_label();
    asm!(p; mov rax, qword_ptr(RECOVER); test rax, rax; jne known);
    p.say("no way on");
    p.exit();
    p.place(&mut known);
    asm!(p; mov qword_ptr(RECOVER), 0; push i32::from(CODE64); push rax; mov rax, qword_ptr(RECOVER + 0x40); retf);
    program
}
