//! Guests in real mode, assembled for the tests beside this folder: a kernel that has a 16-bit entry only, and what
//! such guests share.
#![allow(dead_code, reason = "not every test uses all of it")]
use iced_x86::code_asm::*;

/// What assembling gives.
pub type Result = std::result::Result<(), iced_x86::IcedError>;

/// Written to isa-debug-exit by a guest that is content; other values are the numbers of checks that failed.
pub const CONTENT: u32 = 0x10;
/// Where isa-debug-exit is.
pub const EXIT_PORT: u32 = 0xf4;

/// The entry is the jump at 200h, CS:0; the header ends where it leads.
pub const HEADER: usize = 0x40;

/// A zImage of boot protocol 2.00: it has a 16-bit entry only. `code` starts with DS the segment of the boot sector.
pub fn zimage(code: impl FnOnce(&mut CodeAssembler) -> Result) -> Vec<u8> {
    const SECTORS: usize = 4;
    let mut a = CodeAssembler::new(16).unwrap();
    code(&mut a).unwrap();
    let code = a.assemble(HEADER as u64).unwrap();
    let mut image = vec![0; 512 * (1 + SECTORS) + 512];
    let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
    put(0x1f1, &[SECTORS as u8]);
    put(0x1f4, &[32, 0]);
    put(0x1fe, &[0x55, 0xaa, 0xeb, (HEADER - 2) as u8]);
    put(0x202, b"HdrS\x00\x02");
    put(0x200 + HEADER, &code);
    assert!(code.len() <= 512 * SECTORS - HEADER);
    image
}

/// What guests share: checks that end them, and text.
pub struct Guest<'a> {
    /// Where it is assembled.
    pub a: &'a mut CodeAssembler,
    /// Checks so far.
    pub check: u32,
}

impl Guest<'_> {
    /// Ends the guest by isa-debug-exit.
    pub fn exit(&mut self, value: u32) -> Result {
        self.a.mov(al, value)?;
        self.a.out(EXIT_PORT, al)?;
        let mut here = self.a.create_label();
        self.a.set_label(&mut here)?;
        self.a.jmp(here)
    }

    /// Goes on if ZF is set; else ends with the check's number, counted from 1.
    pub fn equal(&mut self) -> Result {
        self.check += 1;
        let mut good = self.a.create_label();
        self.a.jz(good)?;
        self.exit(self.check)?;
        self.a.set_label(&mut good)?;
        self.a.nop()
    }

    /// The same, for CF set.
    pub fn carry(&mut self) -> Result {
        self.a.sbb(ax, ax)?;
        self.a.inc(ax)?;
        self.equal()
    }

    /// Shows text by INT 10h.
    pub fn print(&mut self, text: &str) -> Result {
        for c in text.bytes() {
            self.a.mov(ax, 0x0e00 + i32::from(c))?;
            self.a.mov(bx, 7)?;
            self.a.int(0x10)?;
        }
        Ok(())
    }
}
