//! Services against a platform of memory and a few ports: calls as the stubs make them.
use super::*;
use crate::mem::SparseMemory;
use crate::tables::{Config, build_tables};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;

mod boot;
mod keys;
mod pci;
mod places;

/// A machine of memory, a serial port, CMOS and a clock; other ports remember what is written to them.
struct Pc {
    memory: SparseMemory,
    ports: BTreeMap<u16, u8>,
    cmos: [u8; 128],
    terminal: Vec<u8>,
    typed: Vec<u8>,
    pci: u32,
    now: u64,
}

impl Platform for Pc {
    fn read(&mut self, linear: u32, buf: &mut [u8]) {
        self.memory.read(linear.into(), buf);
    }
    fn write(&mut self, linear: u32, buf: &[u8]) {
        self.memory.write(linear.into(), buf);
    }
    fn read_physical(&mut self, gpa: u64, buf: &mut [u8]) {
        self.memory.read(gpa, buf);
    }
    fn write_physical(&mut self, gpa: u64, buf: &[u8]) {
        self.memory.write(gpa, buf);
    }
    fn port_in(&mut self, port: u16, size: u8) -> u32 {
        match port {
            0x71 => self.cmos[usize::from(self.ports.get(&0x70).copied().unwrap_or(0) & 0x7f)].into(),
            0x3f8 if !self.typed.is_empty() => self.typed.remove(0).into(),
            0x3fd => 0x60 | u32::from(!self.typed.is_empty()),
            // One function, 00:01.0, with its header's first words.
            0xcfc..=0xcff => {
                let registers: [u32; 4] = [0x7000_8086, 0, 0x0601_0000, 0];
                let value = match self.pci & 0xffff {
                    at @ 0x0800..0x0810 => registers[usize::from(at as u16 & 0xf) / 4],
                    _ => u32::MAX,
                };
                let value = value >> (8 * (port & 3));
                if size == 4 { value } else { value & ((1 << (8 * size)) - 1) }
            }
            _ => self.ports.get(&port).copied().unwrap_or(0).into(),
        }
    }
    fn port_out(&mut self, port: u16, _: u8, value: u32) {
        match port {
            0x3f8 => self.terminal.push(value as u8),
            0x71 => self.cmos[usize::from(self.ports[&0x70] & 0x7f)] = value as u8,
            0xcf8 => self.pci = value,
            _ => {
                self.ports.insert(port, value as u8);
            }
        }
    }
    fn now(&mut self) -> u64 {
        self.now
    }
}

/// A BIOS that is installed, and a caller's registers.
struct Rig {
    bios: Bios,
    pc: Pc,
    regs: Regs,
}

const STACK: u32 = 0x8000;
/// Flags that a caller has, to see that others stay: IF and the bit that is always set.
const FLAGS: u16 = 0x0202;

impl Rig {
    fn new() -> Rig {
        Rig::with(Bios::new(BiosConfig {
            console: Some(0x3f8),
            debug_ports: vec![0x402],
            ..Default::default()
        }))
    }

    fn with(mut bios: Bios) -> Rig {
        let memory = SparseMemory::new(64 << 20, 0);
        let tables = build_tables(&memory, &Config::default()).unwrap();
        bios.install(&memory, &tables);
        let pc = Pc {
            memory,
            ports: BTreeMap::new(),
            cmos: [0; 128],
            terminal: Vec::new(),
            typed: Vec::new(),
            pci: 0,
            now: 0,
        };
        Rig { bios, pc, regs: Regs { esp: STACK, cs: SEGMENT, ..Regs::default() } }
    }

    fn bda16(&mut self, at: u32) -> u16 {
        (&mut self.pc as &mut dyn Platform).u16(at)
    }

    /// The offset behind the OUT of a service's stub.
    fn stub(&self, service: Service) -> u16 {
        *self.bios.rom.stubs.iter().find(|(_, s)| s.service == service).unwrap().0
    }

    /// Calls a service; the flags that IRET would bring.
    fn call(&mut self, service: Service) -> u16 {
        self.pc.write(STACK + 4, &FLAGS.to_le_bytes());
        self.regs.ip = self.stub(service);
        assert!(self.bios.call(&mut self.regs, &mut self.pc));
        self.bda16(STACK + 4)
    }

    /// Calls with EAX; whether carry is set.
    fn fails(&mut self, service: Service, eax: u32) -> bool {
        self.regs.eax = eax;
        let flags = self.call(service);
        assert_eq!(flags & !(CF | ZF), FLAGS, "other flags are the caller's");
        flags & CF != 0
    }

    fn press(&mut self, codes: &[u8]) {
        for c in codes {
            self.regs.eax = u32::from(*c);
            self.call(Service::Scancode);
        }
    }

    /// The next key by INT 16h AH 10h.
    fn key(&mut self) -> Option<u16> {
        self.regs.eax = 0x1100;
        if self.call(Service::Keyboard) & ZF != 0 {
            return None;
        }
        self.regs.eax = 0x1000;
        self.call(Service::Keyboard);
        Some(self.regs.ax())
    }

    fn text(&mut self, s: impl AsRef<[u8]>) {
        for c in s.as_ref() {
            self.regs.eax = 0x0e00 | u32::from(*c);
            self.call(Service::Video);
        }
    }

    fn shown(&mut self) -> String {
        String::from_utf8(std::mem::take(&mut self.pc.terminal)).unwrap()
    }
}

#[test]
fn a_program_switches_the_machine_off_by_apm() {
    let mut rig = Rig::new();
    assert!(!rig.fails(Service::System, 0x5300));
    assert_eq!((rig.regs.ax(), rig.regs.bx(), rig.regs.cx()), (0x0102, 0x504d, 3));
    rig.regs.ebx = 0;
    assert!(!rig.fails(Service::System, 0x5301));
    rig.regs.ecx = 0x0102;
    assert!(!rig.fails(Service::System, 0x530e) && rig.regs.ax() == 0x0102);
    assert!(rig.fails(Service::System, 0x530b) && rig.regs.ah() == 0x80, "no event");
    (rig.regs.ebx, rig.regs.ecx) = (1, 1);
    assert!(!rig.fails(Service::System, 0x5307));
    assert!(!rig.pc.ports.contains_key(&0x604), "standby is nothing");
    rig.regs.ecx = 3;
    assert!(!rig.fails(Service::System, 0x5307));
    assert!(rig.pc.ports.contains_key(&0x604));
}

#[test]
fn every_vector_leads_into_the_rom_and_the_rom_ends_as_programs_expect() {
    let mut rig = Rig::new();
    for n in 0..0x20u32 {
        let (offset, segment) = (rig.bda16(4 * n), rig.bda16(4 * n + 2));
        assert!(
            (n == 0x1d || n == 0x1f) && segment == 0 || segment == SEGMENT && offset >= rom::START,
            "{n:02x}"
        );
    }
    let mut end = [0; 16];
    rig.pc.read(0xffff0, &mut end);
    assert_eq!((end[0], &end[5..13], end[14]), (0xea, &b"01/01/99"[..], 0xfc));
    assert_eq!(rig.bda16(bda::MEMORY_KIB), 639);
}

#[test]
fn only_stubs_call() {
    let mut rig = Rig::new();
    let before = Regs { cs: 0x1000, ip: rig.stub(Service::Equipment), ..rig.regs };
    let mut regs = before;
    assert!(!rig.bios.call(&mut regs, &mut rig.pc));
    regs.cs = SEGMENT;
    regs.ip += 1;
    assert!(!rig.bios.call(&mut regs, &mut rig.pc));
    assert_eq!(regs.eax, before.eax);
}

#[test]
fn the_memory_map_is_told_entry_by_entry() {
    let mut rig = Rig::new();
    let mut found = Vec::new();
    rig.regs.ebx = 0;
    loop {
        (rig.regs.ecx, rig.regs.edx, rig.regs.es, rig.regs.edi) = (24, 0x534d_4150, 0x2000, 0x10);
        assert!(!rig.fails(Service::System, 0xe820));
        assert_eq!((rig.regs.eax, rig.regs.ecx), (0x534d_4150, 20));
        let mut e = [0; 20];
        rig.pc.read(0x20010, &mut e);
        let q = |i: usize| u64::from_le_bytes(e[i..i + 8].try_into().unwrap());
        found.push((q(0), q(8), u32::from(e[16])));
        if rig.regs.ebx == 0 {
            break;
        }
    }
    let want: Vec<_> = rig.bios.e820.entries().iter().map(|e| (e.base, e.len, e.kind as u32)).collect();
    assert_eq!(found, want);
    // A bad signature, too small a buffer, beyond the end.
    for (ebx, ecx, edx) in [(0, 20, 0), (0, 19, 0x534d_4150), (99, 20, 0x534d_4150)] {
        (rig.regs.ebx, rig.regs.ecx, rig.regs.edx) = (ebx, ecx, edx);
        assert!(rig.fails(Service::System, 0xe820));
        assert_eq!(rig.regs.ah(), 0x86);
    }
}

#[test]
fn memory_sizes_agree_with_the_map() {
    let mut rig = Rig::new();
    let upper = rig.bios.e820.upper_memory();
    assert!(!rig.fails(Service::System, 0xe801));
    assert_eq!((rig.regs.ax(), rig.regs.cx()), (15 * 1024, 15 * 1024));
    assert_eq!(u64::from(rig.regs.bx()), (upper - (15 << 20)) / 65536);
    assert!(!rig.fails(Service::System, 0x8800));
    assert_eq!(u64::from(rig.regs.ax()), upper / 1024);
    rig.call(Service::MemorySize);
    assert_eq!(rig.regs.ax(), 639);
}

#[test]
fn blocks_move_beyond_the_first_mebibyte() {
    let mut rig = Rig::new();
    rig.pc.write(0x5000, b"over there");
    let mut table = [0; 48];
    let mut descriptor = |i: usize, base: u32| {
        let b = base.to_le_bytes();
        table[8 * i..8 * i + 8].copy_from_slice(&[0xff, 0xff, b[0], b[1], b[2], 0x93, 0, b[3]]);
    };
    descriptor(2, 0x5000);
    descriptor(3, 0x0130_0000);
    rig.pc.write(0x30100, &table);
    (rig.regs.es, rig.regs.esi, rig.regs.ecx) = (0x3000, 0x100, 5);
    assert!(!rig.fails(Service::System, 0x8700));
    let mut got = [0; 10];
    rig.pc.memory.read(0x0130_0000, &mut got);
    assert_eq!(&got, b"over there");
    rig.regs.ecx = 0x8001;
    assert!(rig.fails(Service::System, 0x8700));
}

#[test]
fn the_a20_gate_is_port_92() {
    let mut rig = Rig::new();
    assert!(!rig.fails(Service::System, 0x2401));
    assert_eq!(rig.pc.ports[&0x92], 2);
    assert!(!rig.fails(Service::System, 0x2402));
    assert_eq!(rig.regs.al(), 1);
    assert!(!rig.fails(Service::System, 0x2400));
    assert_eq!(rig.pc.ports[&0x92], 0);
    assert!(!rig.fails(Service::System, 0x2403));
    assert_eq!(rig.regs.bx(), 3);
}

#[test]
fn a_delay_calls_again_until_its_time_has_come() {
    let mut rig = Rig::new();
    let stub = rig.bios.rom.stubs[&rig.stub(Service::System)];
    (rig.regs.eax, rig.regs.ecx, rig.regs.edx) = (0x8600, 1, 0x86a0); // 100 ms
    let asked = rig.regs;
    rig.call(Service::System);
    assert_eq!(rig.regs, Regs { ip: stub.wait, flags: FLAGS, ..asked });
    rig.pc.now = 60_000_000;
    rig.call(Service::System);
    assert_eq!(rig.regs.ip, stub.poll, "the rest is too short for a tick");
    rig.pc.now = 100_000_000;
    assert_eq!(rig.call(Service::System) & CF, 0);
    assert_eq!((rig.regs.ip, rig.regs.ah()), (rig.stub(Service::System), 0));
}

#[test]
fn functions_that_are_not_there_say_so() {
    let mut rig = Rig::new();
    for ax in [0x4100, 0xe980, 0x8400, 0xd800] {
        assert!(rig.fails(Service::System, ax), "{ax:04x}");
        assert_eq!(rig.regs.ah(), 0x86);
    }
    // Without a VBE AX is not 004Fh.
    rig.regs.eax = 0x4f00;
    rig.call(Service::Video);
    assert_ne!(rig.regs.ax(), 0x004f);
    // Without disks every drive is a bad parameter.
    for (ax, dl) in [(0x0201, 0x80), (0x0800, 0x80), (0x4100, 0x80), (0x0000, 0x80), (0x0201, 0)] {
        (rig.regs.ecx, rig.regs.edx) = (1, dl);
        assert!(rig.fails(Service::Disk, ax));
        assert_eq!(rig.regs.ah(), 1);
        assert!(rig.fails(Service::Disk, 0x0100), "and stays the last status");
    }
    rig.regs.edx = 0x81;
    assert!(!rig.fails(Service::Disk, 0x1500));
    assert_eq!(rig.regs.ah(), 0);
}

#[test]
fn text_is_a_plain_log_until_a_program_moves_the_cursor() {
    let mut rig = Rig::new();
    rig.text(b"one\r\ntwo \x82\r\n");
    assert_eq!(rig.shown(), "one\r\ntwo é\r\n");
    assert_eq!(rig.bda16(bda::CURSORS), 0x0200);
    (rig.regs.eax, rig.regs.ebx, rig.regs.edx) = (0x0200, 0, 0x0a05);
    rig.call(Service::Video);
    rig.text("here");
    assert_eq!(rig.shown(), "\x1b[11;6Hhere");
    // What stands at the cursor can be read, and is gone after a mode set.
    (rig.regs.eax, rig.regs.edx) = (0x0200, 0x0a05);
    rig.call(Service::Video);
    rig.regs.eax = 0x0800;
    rig.call(Service::Video);
    assert_eq!(rig.regs.ax(), 0x0768);
    rig.regs.eax = 0x0003;
    rig.call(Service::Video);
    rig.regs.eax = 0x0f00;
    rig.call(Service::Video);
    assert_eq!((rig.regs.ax(), rig.regs.bh()), (0x5003, 0));
    assert_eq!(rig.bda16(bda::CURSORS), 0);
    assert_eq!(rig.pc.ports[&0x402], b'e', "debug ports get the text");
}

impl Rig {
    /// INT 10h AH=02h, 03h's cursor back.
    fn cursor(&mut self, row: u8, column: u8) {
        (self.regs.eax, self.regs.ebx, self.regs.edx) = (0x0200, 0, u32::from(row) << 8 | u32::from(column));
        self.call(Service::Video);
    }

    /// INT 10h AH=09h at the cursor: `count` times `c`.
    fn attribute(&mut self, c: u8, count: u16) {
        (self.regs.eax, self.regs.ebx, self.regs.ecx) = (0x0900 | u32::from(c), 0x1e, count.into());
        self.call(Service::Video);
    }
}

#[test]
fn a_character_with_its_attribute_and_again_as_on_a_teletype_is_shown_once() {
    let mut rig = Rig::new();
    for c in "one two  three".bytes() {
        rig.attribute(c, 1);
        rig.text([c]);
    }
    rig.text("\r\n");
    // As boot loaders do it: the cursor is moved on in place of the second character.
    for (i, c) in "a b".bytes().enumerate() {
        rig.attribute(c, 1);
        rig.cursor(1, i as u8 + 1);
    }
    rig.text("\r\n");
    // A blank with an attribute, then the character.
    for c in "xyz".bytes() {
        rig.attribute(b' ', 1);
        rig.text([c]);
    }
    let shown = rig.shown();
    assert!(shown.starts_with("one two  three\r\na b\r\n"), "{shown:?}");
    let plain = shown.replace("\x1b[3;1H", "").replace("\x1b[3;2H", "").replace("\x1b[3;3H", "");
    assert!(plain.ends_with(" x y z"), "each blank is seen, then covered: {shown:?}");
    // What the terminal shows need not be sent again.
    rig.cursor(0, 4);
    rig.text("two");
    assert_eq!(rig.shown(), "");
    // A line that is overwritten in place is sent.
    rig.cursor(5, 0);
    rig.text("50%\r50%");
    assert_eq!(rig.shown(), "\x1b[6;1H50%\r50%");
}

#[test]
fn a_terminal_and_the_screen_show_the_same() {
    // What a terminal makes of what it is sent: as far as the BIOS makes use of one.
    fn terminal(sent: &str) -> Vec<String> {
        let mut screen = vec![vec![' '; 80]; 25];
        let (mut row, mut column) = (0, 0);
        let mut chars = sent.chars().peekable();
        while let Some(c) = chars.next() {
            match c {
                '\x1b' => {
                    let sequence: String =
                        std::iter::from_fn(|| chars.next_if(|c| !c.is_ascii_alphabetic())).collect();
                    match chars.next() {
                        Some('H') => {
                            let at: Vec<usize> =
                                sequence[1..].split(';').map(|n| n.parse().unwrap_or(1)).collect();
                            (row, column) = (at[0] - 1, at.get(1).map_or(0, |c| c - 1));
                        }
                        Some('J') => screen = vec![vec![' '; 80]; 25],
                        other => panic!("{other:?}"),
                    }
                }
                '\r' => column = 0,
                '\n' if row == 24 => {
                    screen.remove(0);
                    screen.push(vec![' '; 80]);
                }
                '\n' => row += 1,
                '\x08' => column = column.saturating_sub(1),
                '\x07' => {}
                c => {
                    screen[row][column.min(79)] = c;
                    column = (column + 1).min(80);
                }
            }
        }
        screen.into_iter().map(|line| line.into_iter().collect()).collect()
    }
    let mut seed = 7u32;
    let mut random = |n: u32| {
        seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (seed >> 8) % n
    };
    for _ in 0..40 {
        let mut rig = Rig::new();
        for _ in 0..200 {
            match random(6) {
                0 => rig.cursor(random(25) as u8, random(80) as u8),
                1 => rig.attribute(b"ab "[random(3) as usize], random(90) as u16),
                2 => rig.text([b"\r\n\x08"[random(3) as usize]]),
                3 => rig.text("x".repeat(random(100) as usize)),
                _ => rig.text([b"ab "[random(3) as usize]]),
            }
        }
        let sent = rig.shown();
        let shown = terminal(&sent);
        for row in 0..25 {
            let want: String = (0..80).map(|c| char::from(rig.bios.screen.at(row, c).0)).collect();
            assert_eq!(shown[usize::from(row)], want, "row {row} of {sent:?}");
        }
    }
}

#[test]
fn the_screen_scrolls_and_ten_thousand_lines_pass() {
    let mut rig = Rig::new();
    for n in 0..10_000 {
        rig.text(format!("line {n}\r\n"));
    }
    assert_eq!(rig.bda16(bda::CURSORS), 0x1800);
    (rig.regs.eax, rig.regs.edx) = (0x0200, 0x1700);
    rig.call(Service::Video);
    rig.regs.eax = 0x0800;
    rig.call(Service::Video);
    assert_eq!(rig.regs.al(), b'l');
    assert_eq!(rig.shown().lines().count(), 10_000);
}

#[test]
fn keys_come_from_scan_codes() {
    let mut rig = Rig::new();
    // a, Shift-a, Ctrl-a, Alt-a, F1, cursor up of the enhanced keyboard, 5 with Num Lock.
    rig.press(&[0x1e, 0x9e, 0x2a, 0x1e, 0x9e, 0xaa, 0x1d, 0x1e, 0x9e, 0x9d, 0x38, 0x1e, 0x9e, 0xb8]);
    rig.press(&[0x3b, 0xbb, 0xe0, 0x48, 0xe0, 0xc8, 0x45, 0xc5, 0x4c, 0xcc]);
    let keys: Vec<u16> = std::iter::from_fn(|| rig.key()).collect();
    assert_eq!(keys, [0x1e61, 0x1e41, 0x1e01, 0x1e00, 0x3b00, 0x48e0, 0x4c35]);
    rig.regs.eax = 0x0200;
    rig.call(Service::Keyboard);
    assert_eq!(rig.regs.al(), 0x20, "Num Lock is on, nothing is held");
    // The old functions show the enhanced keys as the old ones.
    rig.press(&[0xe0, 0x48]);
    rig.regs.eax = 0;
    rig.call(Service::Keyboard);
    assert_eq!(rig.regs.ax(), 0x4800);
}

#[test]
fn a_program_waits_for_a_key_and_the_buffer_holds_fifteen() {
    let mut rig = Rig::new();
    let stub = rig.bios.rom.stubs[&rig.stub(Service::Keyboard)];
    rig.regs.eax = 0;
    rig.call(Service::Keyboard);
    assert_eq!((rig.regs.ip, rig.regs.ax()), (stub.wait, 0));
    rig.press(&[0x10; 20]);
    assert_eq!(std::iter::from_fn(|| rig.key()).count(), 15);
    (rig.regs.eax, rig.regs.ecx) = (0x0500, 0x1234);
    rig.call(Service::Keyboard);
    assert_eq!((rig.regs.al(), rig.key()), (0, Some(0x1234)));
}

#[test]
fn a_terminal_is_a_keyboard_too() {
    let mut rig = Rig::new();
    rig.pc.typed = b"yQ\r\x1b[A\x1b[6~\x1bOP\x03*".to_vec();
    let keys: Vec<u16> = std::iter::from_fn(|| rig.key()).collect();
    assert_eq!(keys, [0x1579, 0x1051, 0x1c0d, 0x48e0, 0x51e0, 0x3b00, 0x2e03, 0x092a]);
    rig.pc.typed = vec![0x1b];
    assert_eq!(rig.key(), Some(0x011b), "a lone escape is the key");
}

#[test]
fn ticks_count_to_midnight() {
    let mut rig = Rig::new();
    rig.pc.write(bda::TICKS, &0x1800af_u32.to_le_bytes());
    rig.call(Service::Tick);
    (rig.regs.ecx, rig.regs.edx) = (7, 7);
    assert!(!rig.fails(Service::Clock, 0));
    assert_eq!((rig.regs.al(), rig.regs.cx(), rig.regs.dx()), (1, 0, 0));
    rig.call(Service::Tick);
    assert!(!rig.fails(Service::Clock, 0));
    assert_eq!((rig.regs.al(), rig.regs.dx()), (0, 1), "midnight is told once");
}

#[test]
fn the_clock_is_the_rtc() {
    let mut rig = Rig::new();
    rig.pc.cmos[..10].copy_from_slice(&[0x56, 0, 0x34, 0, 0x12, 0, 7, 0x21, 0x11, 0x26]);
    rig.pc.cmos[0x32] = 0x20;
    assert!(!rig.fails(Service::Clock, 0x0200));
    assert_eq!((rig.regs.cx(), rig.regs.dh()), (0x1234, 0x56));
    assert!(!rig.fails(Service::Clock, 0x0400));
    assert_eq!((rig.regs.cx(), rig.regs.dx()), (0x2026, 0x1121));
    // Power-on sets the ticks from it: 12:34:56 is 45,296 seconds.
    rig.bios.power_on(&mut rig.pc);
    assert!(!rig.fails(Service::Clock, 0));
    let ticks = u32::from(rig.regs.cx()) << 16 | u32::from(rig.regs.dx());
    assert_eq!(ticks, (45_296u64 * 1_193_182 / 65_536) as u32);
    assert!(!rig.fails(Service::Clock, 0x0600));
    assert!(rig.fails(Service::Clock, 0x0600), "one alarm at a time");
}

#[test]
fn a_system_that_wakes_goes_on_where_its_facs_says_with_its_memory_as_it_was() {
    use crate::entry::{CpuMode, FLAT_GDT};
    const FACS: u64 = (64 << 20) - 0x1000;
    let mut rig = Rig::new();
    let mut low = vec![0; 0xa_0000];
    rig.pc.read(0, &mut low);
    // The vector, the extended one, the version; mode, CS and IP.
    let post = (CpuMode::Real, 0xf000, 0xfff0);
    for (vector, extended, version, want) in [
        (0x9_a123u32, 0u64, 1u8, (CpuMode::Real, 0x9a12, 3)),
        (0x9_a123, 0x20_0010, 1, (CpuMode::Protected32, 8, 0x20_0010)),
        (0x9_a123, 0x20_0010, 0, (CpuMode::Real, 0x9a12, 3)),
        (0x9_a120, 0x1_0020_0010, 1, (CpuMode::Real, 0x9a12, 0)),
        (0, 0, 1, post),
        (0x10_0000, 0, 1, post),
    ] {
        rig.pc.write_physical(FACS + 12, &vector.to_le_bytes());
        rig.pc.write_physical(FACS + 24, &extended.to_le_bytes());
        rig.pc.write_physical(FACS + 32, &[version]);
        let e = rig.bios.resume(&mut rig.pc);
        assert_eq!((e.mode, e.cs.selector, e.rip), want, "{vector:#x} {extended:#x} {version}");
        if e.mode == CpuMode::Protected32 {
            let mut gdt = [0; 40];
            rig.pc.read_physical(e.gdt.base, &mut gdt);
            assert_eq!((gdt[..] == *FLAT_GDT.map(u64::to_le_bytes).as_flattened(), e.gdt.limit), (true, 39));
        }
        let mut now = vec![0; low.len()];
        rig.pc.read(0, &mut now);
        assert!(now == low, "it has written to memory");
    }
    assert_eq!(rig.pc.ports[&0x21], 0xb8, "the 8259s are set up");
    rig.pc.write_physical(FACS, b"none");
    rig.pc.write_physical(FACS + 12, &0x9_a123u32.to_le_bytes());
    assert_eq!(rig.bios.resume(&mut rig.pc).rip, 0xfff0);
}

#[test]
fn pci_functions_are_found_and_read() {
    let mut rig = Rig::new();
    assert!(!rig.fails(Service::Clock, 0xb101));
    assert_eq!((rig.regs.edx, rig.regs.bx()), (0x2049_4350, 0x0210));
    (rig.regs.ecx, rig.regs.edx, rig.regs.esi) = (0x7000, 0x8086, 0);
    assert!(!rig.fails(Service::Clock, 0xb102));
    assert_eq!(rig.regs.bx(), 0x0008);
    rig.regs.esi = 1;
    assert!(rig.fails(Service::Clock, 0xb102));
    assert_eq!(rig.regs.ah(), 0x86);
    (rig.regs.ecx, rig.regs.esi) = (0x06_0100, 0);
    assert!(!rig.fails(Service::Clock, 0xb103));
    (rig.regs.ebx, rig.regs.edi) = (8, 2);
    assert!(!rig.fails(Service::Clock, 0xb109));
    assert_eq!(rig.regs.cx(), 0x7000);
    rig.regs.edi = 1;
    assert!(rig.fails(Service::Clock, 0xb109), "registers are aligned");
}

/// A disk of RAM.
struct Ram(Mutex<Vec<u8>>);

impl Disk for Ram {
    fn sectors(&self) -> u64 {
        self.0.lock().len() as u64 / 512
    }
    fn read(&self, lba: u64, buf: &mut [u8]) -> Result<(), DiskError> {
        let at = lba as usize * 512;
        buf.copy_from_slice(self.0.lock().get(at..at + buf.len()).ok_or(DiskError::Range)?);
        Ok(())
    }
    fn write(&self, lba: u64, buf: &[u8]) -> Result<(), DiskError> {
        let at = lba as usize * 512;
        self.0.lock().get_mut(at..at + buf.len()).ok_or(DiskError::Range)?.copy_from_slice(buf);
        Ok(())
    }
}

fn with_disk() -> Rig {
    let floppy = Arc::new(Ram(Mutex::new(vec![0xeb; 1440 << 10])));
    let mut data = vec![0; 64 << 20];
    for (lba, sector) in data.chunks_mut(512).enumerate() {
        sector[..4].copy_from_slice(&(lba as u32).to_le_bytes());
    }
    data[510..512].copy_from_slice(&[0x55, 0xaa]);
    let mut bios = Bios::new(BiosConfig { console: Some(0x3f8), ..Default::default() });
    bios.add_disk(0x80, Arc::new(Ram(Mutex::new(data))));
    bios.add_disk(0, floppy);
    Rig::with(bios)
}

#[test]
fn sectors_are_read_by_cylinder_and_by_block() {
    let mut rig = with_disk();
    rig.regs.edx = 0x80;
    assert!(!rig.fails(Service::Disk, 0x0800));
    let (heads, per_track) = (u32::from(rig.regs.dh()) + 1, u32::from(rig.regs.cl() & 63));
    assert_eq!((heads, per_track, rig.regs.dl()), (16, 63, 1));
    // Cylinder 2, head 3, sector 4; two sectors.
    (rig.regs.ecx, rig.regs.edx, rig.regs.ebx, rig.regs.es) = (0x0204, 0x0380, 0, 0x4000);
    assert!(!rig.fails(Service::Disk, 0x0202));
    let lba = (2 * heads + 3) * per_track + 3;
    let word = |rig: &mut Rig, at: u32| (&mut rig.pc as &mut dyn Platform).u32(at);
    assert_eq!((word(&mut rig, 0x40000), word(&mut rig, 0x40200)), (lba, lba + 1));
    // The same by EDD.
    (rig.regs.ebx, rig.regs.edx) = (0x55aa, 0x80);
    assert!(!rig.fails(Service::Disk, 0x4100));
    assert_eq!((rig.regs.bx(), rig.regs.cx() & 1), (0xaa55, 1));
    let packet = [&[16, 0, 3, 0, 0, 0, 0, 0x50][..], &1000u64.to_le_bytes()].concat();
    rig.pc.write(0x60000, &packet);
    (rig.regs.ds, rig.regs.esi) = (0x6000, 0);
    assert!(!rig.fails(Service::Disk, 0x4200));
    assert_eq!((word(&mut rig, 0x50000), word(&mut rig, 0x50400)), (1000, 1002));
    rig.pc.write(0x50000, &[7; 4]);
    assert!(!rig.fails(Service::Disk, 0x4300));
    assert!(!rig.fails(Service::Disk, 0x4200));
    assert_eq!(word(&mut rig, 0x50000), 0x0707_0707);
    // Beyond the end: an error, and a count of none.
    rig.pc.write(0x60008, &(64u64 << 11).to_le_bytes());
    assert!(rig.fails(Service::Disk, 0x4200));
    assert_eq!((rig.regs.ah(), rig.bda16(0x60002)), (4, 0));
    rig.pc.write(0x60008, &u64::MAX.to_le_bytes());
    assert!(rig.fails(Service::Disk, 0x4200));
    rig.pc.write(0x60000, &30u16.to_le_bytes());
    assert!(!rig.fails(Service::Disk, 0x4800));
    assert_eq!((word(&mut rig, 0x60010), rig.bda16(0x60018)), (64 << 11, 512));
}

#[test]
fn stray_interrupts_are_ended_and_masked() {
    let mut rig = Rig::new();
    // IRQ 5 in service of the master.
    rig.pc.ports.insert(0x20, 0x20);
    rig.pc.ports.insert(0x21, 0x98);
    struct Isr<'a>(&'a mut Pc);
    impl Platform for Isr<'_> {
        fn read(&mut self, a: u32, b: &mut [u8]) {
            self.0.read(a, b);
        }
        fn write(&mut self, a: u32, b: &[u8]) {
            self.0.write(a, b);
        }
        fn read_physical(&mut self, a: u64, b: &mut [u8]) {
            self.0.read_physical(a, b);
        }
        fn write_physical(&mut self, a: u64, b: &[u8]) {
            self.0.write_physical(a, b);
        }
        fn port_in(&mut self, port: u16, size: u8) -> u32 {
            match port {
                0x20 => 0x20,
                0xa0 => 0,
                _ => self.0.port_in(port, size),
            }
        }
        fn port_out(&mut self, port: u16, size: u8, v: u32) {
            self.0.port_out(port, size, v);
        }
        fn now(&mut self) -> u64 {
            0
        }
    }
    misc::stray_interrupt(&mut Isr(&mut rig.pc));
    assert_eq!((rig.pc.ports[&0x21], rig.pc.ports[&0x20]), (0xb8, 0x20));
}

#[test]
fn no_registers_make_a_service_panic() {
    let mut rig = with_disk();
    let services: Vec<u16> = rig.bios.rom.stubs.keys().copied().collect();
    let mut seed = 1u64;
    let mut random = || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed as u32
    };
    for round in 0..60_000 {
        let ip = services[random() as usize % services.len()];
        rig.regs = Regs {
            eax: random() & if round % 2 == 0 { u32::MAX } else { 0xff0f },
            ebx: random(),
            ecx: random() & 0xffff_03ff,
            edx: random() & 0xffff_0f81,
            esi: random(),
            edi: random(),
            ebp: random(),
            esp: random(),
            ip,
            cs: SEGMENT,
            ds: random() as u16,
            es: random() as u16,
            ss: random() as u16,
            flags: 0,
        };
        rig.pc.typed = vec![random() as u8, random() as u8];
        rig.bios.call(&mut rig.regs, &mut rig.pc);
        rig.pc.terminal.clear();
    }
}
