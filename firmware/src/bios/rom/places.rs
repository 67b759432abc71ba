//! What programs look for at fixed offsets in segment F000h: the entries of interrupts, which they jump to or call with
//! the flags pushed, and tables.
//!
//! Source: IBM Technical Reference Personal Computer AT (1985), listing of the BIOS; IBM BIOS Interface Technical
//! Reference.

/// Entries of interrupts: offset, and interrupt.
pub(super) const ENTRIES: [(u16, u8); 17] = [
    (0xe2c3, 0x02),
    (0xe3fe, 0x13),
    (0xe6f2, 0x19),
    (0xe739, 0x14),
    (0xe82e, 0x16),
    (0xe987, 0x09),
    (0xec59, 0x40),
    (0xef57, 0x0e),
    (0xefd2, 0x17),
    (0xf065, 0x10),
    (0xf841, 0x12),
    (0xf84d, 0x11),
    (0xf859, 0x15),
    (0xfe6e, 0x1a),
    (0xfea5, 0x08),
    // Those of interrupts that nobody has asked for.
    (0xff23, 0x0f),
    // An IRET: FF53h, which `RETURN` is; then INT 05h.
    (0xff54, 0x05),
];
/// An IRET.
pub(super) const RETURN: u16 = 0xff53;
/// Divisors of INT 14h's rates.
pub(super) const BAUD: u16 = 0xe729;
/// Offsets of the handlers of interrupts 08h to 1Fh.
pub(super) const OFFSETS: u16 = 0xfef3;
/// The CGA's and MDA's registers by mode, where INT 1Dh points.
pub(super) const VIDEO_PARAMETERS: u16 = 0xf0a4;
/// Characters 0 to 127, 8 lines each.
pub(super) const FONT: u16 = 0xfa6e;
/// Parameters of the AT's types of hard disks, 1 to 15 and on to 23.
const DISK_TYPES: u16 = 0xe401;
/// The floppy parameter table, where INT 1Eh points.
pub const FLOPPY_TABLE: u16 = 0xefc7;
/// Tables of all types of diskettes.
const FLOPPY_TABLES: u16 = 0xe160;

/// Registers of the 6845 in 40 and 80 columns, graphics and on the MDA; bytes of a page, columns, and mode registers.
#[rustfmt::skip]
pub(super) const CRTC: [u8; 88] = [
    0x38, 0x28, 0x2d, 0x0a, 0x1f, 0x06, 0x19, 0x1c, 0x02, 0x07, 0x06, 0x07, 0, 0, 0, 0,
    0x71, 0x50, 0x5a, 0x0a, 0x1f, 0x06, 0x19, 0x1c, 0x02, 0x07, 0x06, 0x07, 0, 0, 0, 0,
    0x38, 0x28, 0x2d, 0x0a, 0x7f, 0x06, 0x64, 0x70, 0x02, 0x01, 0x06, 0x07, 0, 0, 0, 0,
    0x61, 0x50, 0x52, 0x0f, 0x19, 0x06, 0x19, 0x19, 0x02, 0x0d, 0x0b, 0x0c, 0, 0, 0, 0,
    0x00, 0x08, 0x00, 0x10, 0x00, 0x40, 0x00, 0x40,
    40, 40, 80, 80, 40, 40, 80, 80,
    0x2c, 0x28, 0x2d, 0x29, 0x2a, 0x2e, 0x1e, 0x29,
];

/// Diskettes' parameter tables: step rate and head unload time, head load time and DMA, motor off delay, 512 bytes,
/// sectors, gap, data length, gap when formatting, fill byte, head settle time, motor start time; last track, data
/// rate.
const DISKETTES: [[u8; 13]; 5] = [
    // 360 KiB and less, 1.2 MB, 720 KiB, 1.44 MB, 2.88 MB.
    [0xdf, 0x02, 0x25, 0x02, 9, 0x2a, 0xff, 0x50, 0xf6, 0x0f, 0x08, 39, 0x40],
    [0xdf, 0x02, 0x25, 0x02, 15, 0x1b, 0xff, 0x54, 0xf6, 0x0f, 0x08, 79, 0x00],
    [0xdf, 0x02, 0x25, 0x02, 9, 0x2a, 0xff, 0x50, 0xf6, 0x0f, 0x08, 79, 0x80],
    [0xaf, 0x02, 0x25, 0x02, 18, 0x1b, 0xff, 0x6c, 0xf6, 0x0f, 0x08, 79, 0x00],
    [0xaf, 0x02, 0x25, 0x02, 36, 0x1b, 0xff, 0x54, 0xf6, 0x0f, 0x08, 79, 0xc0],
];

/// The table of a diskette's format, whose type is as INT 13h AH 08h has it (1: 360 KiB to 5: 2.88 MB).
pub fn floppy_table(kind: u8) -> u16 {
    let index = usize::from(kind.clamp(1, 5) - 1);
    FLOPPY_TABLES + (index * size_of_val(&DISKETTES[0])) as u16
}

/// Types of hard disks: cylinders, heads, cylinder from which writes are compensated, and on which heads land. Type 15
/// says that CMOS has the type elsewhere; what this machine has is none of them (47, as BIOSes after the AT's call it).
const DISKS: [(u16, u8, u16, u16); 23] = [
    (306, 4, 128, 305),
    (615, 4, 300, 615),
    (615, 6, 300, 615),
    (940, 8, 512, 940),
    (940, 6, 512, 940),
    (615, 4, 0xffff, 615),
    (462, 8, 256, 511),
    (733, 5, 0xffff, 733),
    (900, 15, 0xffff, 901),
    (820, 3, 0xffff, 820),
    (855, 5, 0xffff, 855),
    (855, 7, 0xffff, 855),
    (306, 8, 128, 319),
    (733, 7, 0xffff, 733),
    (0, 0, 0, 0),
    (612, 4, 0, 663),
    (977, 5, 300, 977),
    (977, 7, 0xffff, 977),
    (1024, 7, 512, 1023),
    (733, 5, 300, 732),
    (733, 7, 300, 732),
    (733, 5, 300, 733),
    (306, 4, 0, 336),
];

/// A fixed disk parameter table of an AT: 17 sectors; more than eight heads are told to the controller.
fn disk_type((cylinders, heads, compensated, landing): (u16, u8, u16, u16)) -> [u8; 16] {
    let mut t = [0; 16];
    if cylinders != 0 {
        t[..2].copy_from_slice(&cylinders.to_le_bytes());
        (t[2], t[8], t[14]) = (heads, u8::from(heads > 8) << 3, 17);
        t[5..7].copy_from_slice(&compensated.to_le_bytes());
        t[12..14].copy_from_slice(&landing.to_le_bytes());
    }
    t
}

/// All tables, with their places.
pub(super) fn tables() -> Vec<(u16, Vec<u8>)> {
    let baud = super::super::misc::DIVISORS.map(u16::to_le_bytes).as_flattened().to_vec();
    vec![
        (BAUD, baud),
        (VIDEO_PARAMETERS, CRTC.to_vec()),
        (FONT, super::super::video::font_8()[..1024].to_vec()),
        (DISK_TYPES, DISKS.map(disk_type).as_flattened().to_vec()),
        (FLOPPY_TABLE, DISKETTES[3][..11].to_vec()),
        (FLOPPY_TABLES, DISKETTES.as_flattened().to_vec()),
    ]
}
