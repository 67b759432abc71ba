//! The built-in guest: a small program for a bare PC, so that there is always something to run.
//!
//! It is a Multiboot 1 image without ELF around it (address fields in the header), 32-bit, assembled when it is asked
//! for. It says what it runs on, and offers a prompt on COM1. It uses what any PC has: a 16550A with its interrupt, the
//! 8259 pair, CPUID, the Multiboot memory map, the ACPI power-off port, the keyboard controller's reset. While it waits
//! for a key it halts, so it costs the host nothing. Other interrupts are masked, and any exception ends it with a
//! message.
//!
//! ```text
//!   BASE  Multiboot header | texts, command table, GDT, GDTR, IDTR | code | IDT | (stack, line: beyond the file)
//! ```
//!
//! The data stands before the code, so that its addresses are known when the code is written. Sources: Multiboot
//! Specification 0.6.96; Intel SDM volume 3, chapters 3 and 6; 16550D and 8259A data sheets.

use iced_x86::IcedError;
use iced_x86::code_asm::*;

/// Where the image is loaded: 1 MiB, above all that a BIOS uses.
const BASE: u32 = 0x10_0000;

/// Room for the stack, growing down to the line that is typed.
const STACK: u32 = 4096;

/// Room for the line that is typed, with its closing zero.
const LINE: u32 = 80;

/// COM1's first port.
const COM1: u32 = 0x3F8;

/// The Multiboot header's magic, and its flags: memory information wanted (bit 1), addresses given (bit 16).
const MULTIBOOT: (u32, u32) = (0x1BAD_B002, 0x0001_0002);

/// What is in EAX when a Multiboot loader starts the image.
const MULTIBOOT_LOADED: u32 = 0x2BAD_B002;

/// The image's data, and where each part of it is.
struct Data {
    bytes: Vec<u8>,
}

impl Data {
    fn here(&self) -> u32 {
        BASE + self.bytes.len() as u32
    }

    /// Adds bytes at the next multiple of eight, and says where.
    fn put(&mut self, bytes: &[u8]) -> u32 {
        self.bytes.resize(self.bytes.len().next_multiple_of(8), 0);
        let at = self.here();
        self.bytes.extend_from_slice(bytes);
        at
    }

    /// Adds a text with a closing zero, and says where.
    fn text(&mut self, text: &str) -> u32 {
        let at = self.here();
        self.bytes.extend_from_slice(text.as_bytes());
        self.bytes.push(0);
        at
    }

    fn patch(&mut self, at: u32, bytes: &[u8]) {
        let start = (at - BASE) as usize;
        self.bytes[start..start + bytes.len()].copy_from_slice(bytes);
    }
}

/// The subroutines that others call.
struct Routines {
    /// Prints AL.
    putc: CodeLabel,
    /// Prints the text at ESI.
    puts: CodeLabel,
    /// Waits for a key; AL.
    getc: CodeLabel,
    /// Prints EAX in decimal.
    decimal: CodeLabel,
    /// Prints EAX as eight hexadecimal digits.
    hex: CodeLabel,
    /// Prints the memory's size.
    memory: CodeLabel,
    /// Prints what CPUID says.
    cpuid: CodeLabel,
    /// Compares the texts at ESI and EDI; ZF.
    same: CodeLabel,
}

/// Assembles the image.
pub fn image() -> Result<Vec<u8>, IcedError> {
    let mut data = Data { bytes: vec![0; 32] };
    let gdtr = data.put(&[0; 6]);
    let idtr = data.put(&[0; 6]);
    // Null, flat 32-bit code (08h), flat data (10h).
    let gdt = data.put(&[0, 0x00CF_9A00_0000_FFFF_u64, 0x00CF_9200_0000_FFFF].map(u64::to_le_bytes).concat());
    data.patch(gdtr, &descriptor_table(gdt, 24));
    // Where the first instructions keep the loader's information, and information that says nothing.
    let info = data.put(&[0; 4]);
    let no_info = data.put(&[0; 4]);
    // The far pointer that loads CS.
    let far = data.put(&[0, 0, 0, 0, 8, 0]);

    let mut a = CodeAssembler::new(32)?;
    let r = Routines {
        putc: a.create_label(),
        puts: a.create_label(),
        getc: a.create_label(),
        decimal: a.create_label(),
        hex: a.create_label(),
        memory: a.create_label(),
        cpuid: a.create_label(),
        same: a.create_label(),
    };
    let mut irq = a.create_label();
    let mut exception = a.create_label();
    let mut flat = a.create_label();

    // The line and the stack come after all that is in the file; where that is shows only when the code is there, so
    // they get a fixed place of their own, 64 KiB above the base.
    let line = BASE + 0x1_0000;
    let stack = line + LINE + STACK;

    a.cli()?;
    a.cld()?;
    a.mov(esp, stack)?;
    // Without a Multiboot loader there is no information; flags of zero say so.
    a.cmp(eax, MULTIBOOT_LOADED)?;
    let mut loaded = a.create_label();
    a.je(loaded)?;
    a.mov(ebx, no_info)?;
    a.set_label(&mut loaded)?;
    a.mov(dword_ptr(info), ebx)?;
    a.lgdt(fword_ptr(gdtr))?;
    a.jmp(fword_ptr(far))?;
    a.set_label(&mut flat)?;
    a.mov(ax, 0x10)?;
    for segment in [ds, es, fs, gs, ss] {
        a.mov(segment, ax)?;
    }
    a.lidt(fword_ptr(idtr))?;
    interrupt_controllers(&mut a)?;
    serial_port(&mut a)?;

    let banner = data.text(
        "\n+-------------------------------------------------------------+\n\
         | This is Mynah's built-in guest: no operating system, only   |\n\
         | a prompt on a bare PC. 'help' lists what it can do.         |\n\
         +-------------------------------------------------------------+\n\n",
    );
    a.mov(esi, banner)?;
    a.call(r.puts)?;
    a.call(r.cpuid)?;
    a.call(r.memory)?;
    prompt(&mut a, &mut data, &r, line)?;
    let puts = r.puts;
    routines(&mut a, &mut data, r, info)?;

    a.set_label(&mut irq)?;
    a.push(eax)?;
    a.mov(al, 0x20)?;
    a.out(0x20, al)?;
    a.pop(eax)?;
    a.iretd()?;

    let unexpected = data.text("\nAn exception that this guest did not expect. It is halted.\n");
    a.set_label(&mut exception)?;
    a.mov(esi, unexpected)?;
    a.call(puts)?;
    halt(&mut a)?;

    data.bytes.resize(data.bytes.len().next_multiple_of(16), 0);
    let entry = data.here();
    let code =
        a.assemble_options(u64::from(entry), iced_x86::BlockEncoderOptions::RETURN_NEW_INSTRUCTION_OFFSETS)?;
    let irq = code.label_ip(&irq)? as u32;
    let exception = code.label_ip(&exception)? as u32;
    data.patch(far, &(code.label_ip(&flat)? as u32).to_le_bytes());
    data.bytes.extend_from_slice(&code.inner.code_buffer);

    let gates: Vec<u8> =
        (0..256).flat_map(|n| gate(if (0x20..0x30).contains(&n) { irq } else { exception })).collect();
    let idt = data.put(&gates);
    data.patch(idtr, &descriptor_table(idt, gates.len()));
    let (magic, flags) = MULTIBOOT;
    let header = [
        magic,
        flags,
        0u32.wrapping_sub(magic).wrapping_sub(flags),
        // header, load, end of the file, end of the memory to clear, entry
        BASE,
        BASE,
        data.here(),
        stack,
        entry,
    ];
    data.patch(BASE, &header.map(u32::to_le_bytes).concat());
    Ok(data.bytes)
}

/// What LGDT and LIDT load: limit and base.
fn descriptor_table(base: u32, size: usize) -> [u8; 6] {
    let [a, b, c, d] = base.to_le_bytes();
    let [low, high] = (size as u16).wrapping_sub(1).to_le_bytes();
    [low, high, a, b, c, d]
}

/// A 32-bit interrupt gate for the code segment 08h.
fn gate(handler: u32) -> [u8; 8] {
    let [a, b, c, d] = handler.to_le_bytes();
    [a, b, 8, 0, 0, 0x8E, c, d]
}

/// Gives the 8259 pair the vectors 20h-2Fh, and lets only COM1's interrupt 4 through.
fn interrupt_controllers(a: &mut CodeAssembler) -> Result<(), IcedError> {
    // ICW1 to ICW4, then the masks.
    for (port, value) in [
        (0x20, 0x11),
        (0xA0, 0x11),
        (0x21, 0x20),
        (0xA1, 0x28),
        (0x21, 4),
        (0xA1, 2),
        (0x21, 1),
        (0xA1, 1),
        (0x21, !(1 << 4) & 0xFF),
        (0xA1, 0xFF),
    ] {
        a.mov(al, value)?;
        a.out(port, al)?;
    }
    Ok(())
}

/// 115,200 baud, 8 data bits, no parity, FIFOs on, an interrupt for each character that comes.
fn serial_port(a: &mut CodeAssembler) -> Result<(), IcedError> {
    // IER, LCR with DLAB, DLL, DLM, LCR, FCR, MCR (DTR, RTS, OUT2), IER
    for (register, value) in [(1, 0), (3, 0x80), (0, 1), (1, 0), (3, 3), (2, 7), (4, 0xB), (1, 1)] {
        a.mov(dx, COM1 + register)?;
        a.mov(al, value)?;
        a.out(dx, al)?;
    }
    Ok(())
}

/// Halts for good.
fn halt(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut again = a.create_label();
    a.cli()?;
    a.set_label(&mut again)?;
    a.hlt()?;
    a.jmp(again)
}

/// Reads lines and does what they say. Control never leaves it.
fn prompt(a: &mut CodeAssembler, data: &mut Data, r: &Routines, line: u32) -> Result<(), IcedError> {
    let mut next = a.create_label();
    let mut key = a.create_label();
    let mut rub = a.create_label();
    let mut done = a.create_label();
    let sign = data.text("\nmynah> ");
    let back = data.text("\x08 \x08");
    let newline = data.text("\n");

    a.set_label(&mut next)?;
    a.mov(esi, sign)?;
    a.call(r.puts)?;
    a.mov(ebx, line)?;
    a.set_label(&mut key)?;
    a.call(r.getc)?;
    a.cmp(al, i32::from(b'\r'))?;
    a.je(done)?;
    a.cmp(al, i32::from(b'\n'))?;
    a.je(done)?;
    a.cmp(al, 0x08)?;
    a.je(rub)?;
    a.cmp(al, 0x7F)?;
    a.je(rub)?;
    a.cmp(al, i32::from(b' '))?;
    a.jb(key)?;
    a.cmp(ebx, line + LINE - 1)?;
    a.jae(key)?;
    a.mov(byte_ptr(ebx), al)?;
    a.inc(ebx)?;
    a.call(r.putc)?;
    a.jmp(key)?;

    a.set_label(&mut rub)?;
    a.cmp(ebx, line)?;
    a.jbe(key)?;
    a.dec(ebx)?;
    a.mov(esi, back)?;
    a.call(r.puts)?;
    a.jmp(key)?;

    a.set_label(&mut done)?;
    a.mov(byte_ptr(ebx), 0)?;
    a.mov(esi, newline)?;
    a.call(r.puts)?;
    a.cmp(ebx, line)?;
    a.je(next)?;

    let help = data.text(
        "help    this text\nmem     how much memory there is\ncpuid   what the processor is\n\
         off     switch the machine off\nreboot  start it again\n",
    );
    let unknown = data.text("That is no command; 'help' lists them.\n");
    let bye = data.text("Switching off.\n");
    let again = data.text("Starting again.\n");
    let no_answer = data.text("The machine does not answer. This guest is halted.\n");

    type Action<'a> = &'a dyn Fn(&mut CodeAssembler) -> Result<(), IcedError>;
    let show_help: Action = &|a| {
        a.mov(esi, help)?;
        a.call(r.puts)
    };
    let off: Action = &|a| {
        a.mov(esi, bye)?;
        a.call(r.puts)?;
        // PM1a control: SLP_EN with sleep type 0, which is S5 on this board.
        a.mov(dx, 0x604)?;
        a.mov(ax, 0x2000)?;
        a.out(dx, ax)?;
        a.mov(esi, no_answer)?;
        a.call(r.puts)?;
        halt(a)
    };
    let reboot: Action = &|a| {
        a.mov(esi, again)?;
        a.call(r.puts)?;
        // The keyboard controller pulses its reset line.
        a.mov(al, 0xFE)?;
        a.out(0x64, al)?;
        a.mov(esi, no_answer)?;
        a.call(r.puts)?;
        halt(a)
    };
    let memory: Action = &|a| a.call(r.memory);
    let cpuid: Action = &|a| a.call(r.cpuid);
    for (name, action) in
        [("help", show_help), ("mem", memory), ("cpuid", cpuid), ("off", off), ("reboot", reboot)]
    {
        let mut other = a.create_label();
        let name = data.text(name);
        a.mov(esi, line)?;
        a.mov(edi, name)?;
        a.call(r.same)?;
        a.jne(other)?;
        action(a)?;
        a.jmp(next)?;
        a.set_label(&mut other)?;
    }
    a.mov(esi, unknown)?;
    a.call(r.puts)?;
    a.jmp(next)
}

/// The subroutines. All but the results that they name may change EAX, ECX, EDX, ESI and EDI.
fn routines(a: &mut CodeAssembler, data: &mut Data, mut r: Routines, info: u32) -> Result<(), IcedError> {
    characters(a, &mut r)?;
    numbers(a, &mut r)?;
    show_memory(a, data, &mut r, info)?;
    show_cpu(a, data, &mut r)?;

    a.set_label(&mut r.same)?;
    let mut different = a.create_label();
    a.mov(al, byte_ptr(esi))?;
    a.cmp(al, byte_ptr(edi))?;
    a.jne(different)?;
    a.inc(esi)?;
    a.inc(edi)?;
    a.test(al, al)?;
    a.jne(r.same)?;
    a.set_label(&mut different)?;
    a.ret()
}

fn characters(a: &mut CodeAssembler, r: &mut Routines) -> Result<(), IcedError> {
    // putc: waits until the transmitter's holding register is empty (LSR bit 5).
    let mut busy = a.create_label();
    a.set_label(&mut r.putc)?;
    a.mov(ah, al)?;
    a.mov(dx, COM1 + 5)?;
    a.set_label(&mut busy)?;
    a.in_(al, dx)?;
    a.test(al, 0x20)?;
    a.je(busy)?;
    a.mov(dx, COM1)?;
    a.mov(al, ah)?;
    a.out(dx, al)?;
    a.ret()?;

    // puts: a carriage return goes before each line feed.
    let mut plain = a.create_label();
    let mut end = a.create_label();
    a.set_label(&mut r.puts)?;
    a.lodsb()?;
    a.test(al, al)?;
    a.je(end)?;
    a.cmp(al, i32::from(b'\n'))?;
    a.jne(plain)?;
    a.mov(al, i32::from(b'\r'))?;
    a.call(r.putc)?;
    a.mov(al, i32::from(b'\n'))?;
    a.set_label(&mut plain)?;
    a.call(r.putc)?;
    a.jmp(r.puts)?;
    a.set_label(&mut end)?;
    a.ret()?;

    // getc: halts until a character is there (LSR bit 0). The interrupt cannot slip in between the look and the halt,
    // as STI takes effect after the instruction that follows.
    let mut ready = a.create_label();
    a.set_label(&mut r.getc)?;
    a.cli()?;
    a.mov(dx, COM1 + 5)?;
    a.in_(al, dx)?;
    a.test(al, 1)?;
    a.jne(ready)?;
    a.sti()?;
    a.hlt()?;
    a.jmp(r.getc)?;
    a.set_label(&mut ready)?;
    a.mov(dx, COM1)?;
    a.in_(al, dx)?;
    a.ret()
}

fn numbers(a: &mut CodeAssembler, r: &mut Routines) -> Result<(), IcedError> {
    // decimal: digits from the last, on the stack, then out.
    let mut divide = a.create_label();
    let mut out = a.create_label();
    a.set_label(&mut r.decimal)?;
    a.xor(ecx, ecx)?;
    a.mov(edi, 10)?;
    a.set_label(&mut divide)?;
    a.xor(edx, edx)?;
    a.div(edi)?;
    a.push(edx)?;
    a.inc(ecx)?;
    a.test(eax, eax)?;
    a.jne(divide)?;
    a.set_label(&mut out)?;
    a.pop(eax)?;
    a.add(al, i32::from(b'0'))?;
    a.call(r.putc)?;
    a.loop_(out)?;
    a.ret()?;

    // hex: digits from the first, each rotated into the low four bits.
    let mut digit = a.create_label();
    let mut small = a.create_label();
    a.set_label(&mut r.hex)?;
    a.mov(edi, eax)?;
    a.mov(ecx, 8)?;
    a.set_label(&mut digit)?;
    a.rol(edi, 4)?;
    a.mov(eax, edi)?;
    a.and(eax, 0xF)?;
    a.add(al, i32::from(b'0'))?;
    a.cmp(al, i32::from(b'9'))?;
    a.jbe(small)?;
    a.add(al, i32::from(b'a' - b'9' - 1))?;
    a.set_label(&mut small)?;
    a.call(r.putc)?;
    a.loop_(digit)?;
    a.ret()
}

/// Multiboot information: flags at 0, mem_lower and mem_upper (KiB) at 4 and 8 with flag 0, the memory map's length and
/// address at 44 and 48 with flag 6. A map entry is its size less four, base, length (both 64 bits), type; 1 is RAM.
fn show_memory(a: &mut CodeAssembler, data: &mut Data, r: &mut Routines, info: u32) -> Result<(), IcedError> {
    let before = data.text("Memory: ");
    let unit = data.text(" MiB\n");
    let none = data.text("Memory: the loader does not say\n");
    let mut entry = a.create_label();
    let mut skip = a.create_label();
    let mut summed = a.create_label();
    let mut no_map = a.create_label();
    let mut show = a.create_label();
    let mut unknown = a.create_label();

    a.set_label(&mut r.memory)?;
    a.push(ebx)?;
    a.push(ebp)?;
    a.mov(ebp, dword_ptr(info))?;
    a.test(dword_ptr(ebp), 1 << 6)?;
    a.je(no_map)?;
    // EDX:EAX sums bytes; ESI goes from EBX on to EDI.
    a.mov(esi, dword_ptr(ebp + 48))?;
    a.mov(edi, dword_ptr(ebp + 44))?;
    a.add(edi, esi)?;
    a.xor(eax, eax)?;
    a.xor(edx, edx)?;
    a.set_label(&mut entry)?;
    a.cmp(esi, edi)?;
    a.jae(summed)?;
    a.cmp(dword_ptr(esi + 20), 1)?;
    a.jne(skip)?;
    a.add(eax, dword_ptr(esi + 12))?;
    a.adc(edx, dword_ptr(esi + 16))?;
    a.set_label(&mut skip)?;
    a.add(esi, dword_ptr(esi))?;
    a.add(esi, 4)?;
    a.jmp(entry)?;
    // In MiB, rounded up: the holes of the first MiB are less than one.
    a.set_label(&mut summed)?;
    a.add(eax, 0xF_FFFF)?;
    a.adc(edx, 0)?;
    a.shrd(eax, edx, 20)?;
    a.jmp(show)?;

    a.set_label(&mut no_map)?;
    a.test(dword_ptr(ebp), 1)?;
    a.je(unknown)?;
    a.mov(eax, dword_ptr(ebp + 4))?;
    a.add(eax, dword_ptr(ebp + 8))?;
    a.add(eax, 1023)?;
    a.shr(eax, 10)?;
    a.set_label(&mut show)?;
    a.push(eax)?;
    a.mov(esi, before)?;
    a.call(r.puts)?;
    a.pop(eax)?;
    a.call(r.decimal)?;
    a.mov(esi, unit)?;
    a.call(r.puts)?;
    a.pop(ebp)?;
    a.pop(ebx)?;
    a.ret()?;

    a.set_label(&mut unknown)?;
    a.mov(esi, none)?;
    a.call(r.puts)?;
    a.pop(ebp)?;
    a.pop(ebx)?;
    a.ret()
}

/// Vendor (leaf 0), brand (leaves 8000_0002h to 8000_0004h), signature and features (leaf 1).
fn show_cpu(a: &mut CodeAssembler, data: &mut Data, r: &mut Routines) -> Result<(), IcedError> {
    // Twelve and forty-eight characters, each with a closing zero.
    let vendor = data.put(&[0; 13]);
    let brand = data.put(&[0; 49]);
    let processor = data.text("Processor: ");
    let comma = data.text(", ");
    let no_brand = data.text("without a brand string");
    let signature = data.text("\nSignature ");
    let features = data.text(", features ");
    let space = data.text(" ");
    let newline = data.text("\n");
    let mut unnamed = a.create_label();

    a.set_label(&mut r.cpuid)?;
    a.push(ebx)?;
    a.push(ebp)?;
    a.xor(eax, eax)?;
    a.cpuid()?;
    for (at, register) in [(0, ebx), (4, edx), (8, ecx)] {
        a.mov(dword_ptr(vendor + at), register)?;
    }
    a.mov(ebp, no_brand)?;
    a.mov(eax, 0x8000_0000u32)?;
    a.cpuid()?;
    a.cmp(eax, 0x8000_0004u32)?;
    a.jb(unnamed)?;
    for leaf in 0..3u32 {
        a.mov(eax, 0x8000_0002 + leaf)?;
        a.cpuid()?;
        for (at, register) in [(0, eax), (4, ebx), (8, ecx), (12, edx)] {
            a.mov(dword_ptr(brand + leaf * 16 + at), register)?;
        }
    }
    a.cmp(byte_ptr(brand), 0)?;
    a.je(unnamed)?;
    a.mov(ebp, brand)?;
    a.set_label(&mut unnamed)?;
    for text in [processor, vendor, comma] {
        a.mov(esi, text)?;
        a.call(r.puts)?;
    }
    a.mov(esi, ebp)?;
    a.call(r.puts)?;

    a.mov(eax, 1)?;
    a.cpuid()?;
    a.push(ecx)?;
    a.push(edx)?;
    a.push(eax)?;
    for before in [signature, features, space] {
        a.mov(esi, before)?;
        a.call(r.puts)?;
        a.pop(eax)?;
        a.call(r.hex)?;
    }
    a.mov(esi, newline)?;
    a.call(r.puts)?;
    a.pop(ebp)?;
    a.pop(ebx)?;
    a.ret()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn word(image: &[u8], at: usize) -> u32 {
        u32::from_le_bytes(image[at..at + 4].try_into().unwrap())
    }

    #[test]
    fn the_header_is_multiboots_and_its_addresses_fit_the_image() {
        let image = image().unwrap();
        let [magic, flags, checksum] = [0, 4, 8].map(|at| word(&image, at));
        assert_eq!((magic, flags), MULTIBOOT);
        assert_eq!(magic.wrapping_add(flags).wrapping_add(checksum), 0);
        let [header, load, load_end, bss_end, entry] = [12, 16, 20, 24, 28].map(|at| word(&image, at));
        assert_eq!((header, load), (BASE, BASE));
        assert_eq!((load_end - load) as usize, image.len());
        assert!(entry > load && entry < load_end && bss_end > load_end);
        assert!(load_end <= BASE + 0x1_0000, "the file reaches into the typed line");
        // CLI is the first thing it does.
        assert_eq!(image[(entry - load) as usize], 0xFA);
    }

    #[test]
    fn every_interrupt_has_a_gate_into_the_image() {
        let image = image().unwrap();
        let gates = &image[image.len() - 2048..];
        for gate in gates.chunks(8) {
            let handler = u32::from(gate[0]) | u32::from(gate[1]) << 8 | u32::from(gate[6]) << 16;
            assert!((BASE..BASE + image.len() as u32).contains(&handler));
            assert_eq!(gate[2..6], [8, 0, 0, 0x8E]);
        }
        assert_ne!(gates[0x24 * 8..0x24 * 8 + 2], gates[13 * 8..13 * 8 + 2]);
    }
}
