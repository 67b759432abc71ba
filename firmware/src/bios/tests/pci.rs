//! PCI BIOS, its structures in the ROM, and the set-up at power-on.
use super::*;

/// Functions with their configuration spaces, and which bits of them can be written.
struct Bus {
    functions: BTreeMap<u16, ([u8; 256], [u8; 256])>,
    address: u32,
    memory: SparseMemory,
    ports: BTreeMap<u16, u8>,
}

impl Bus {
    fn new() -> Bus {
        let (functions, ports) = (BTreeMap::new(), BTreeMap::new());
        Bus { functions, address: 0, memory: SparseMemory::new(0xff00_0000, 0), ports }
    }

    /// A function with BARs: type bits and size of each.
    fn add(&mut self, bdf: u16, id: u32, class: u16, header: u8, pin: u8, bars: &[(u8, u32, u64)]) {
        let (mut space, mut mask) = ([0; 256], [0; 256]);
        space[..4].copy_from_slice(&id.to_le_bytes());
        space[0x0a..0x0c].copy_from_slice(&class.to_le_bytes());
        space[0x0e] = header;
        space[0x3d] = pin;
        mask[4] = 7;
        mask[0x3c] = 0xff;
        mask[0x40..0xa0].fill(0xff);
        if header & 0x7f == 1 {
            mask[0x18..0x28].fill(0xff);
        }
        for &(register, kind, size) in bars {
            let (at, bits) = (usize::from(register), !(size - 1));
            space[at] = kind as u8;
            let width = if kind & 5 == 4 { 8 } else { 4 };
            mask[at..at + width].copy_from_slice(&bits.to_le_bytes()[..width]);
        }
        self.functions.insert(bdf, (space, mask));
    }

    fn u32(&self, bdf: u16, at: usize) -> u32 {
        u32::from_le_bytes(self.functions[&bdf].0[at..at + 4].try_into().unwrap())
    }

    /// Whether a bus can be reached: bridges say which.
    fn reaches(&self, bdf: u16) -> bool {
        let is =
            |s: &[u8; 256]| s[0x0e] & 0x7f == 1 && s[0x19] <= (bdf >> 8) as u8 && s[0x1a] >= (bdf >> 8) as u8;
        bdf < 0x100 || self.functions.values().any(|(s, _)| is(s))
    }
}

impl Platform for Bus {
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
        if !(0xcfc..0xd00).contains(&port) {
            return self.ports.get(&port).copied().unwrap_or(0).into();
        }
        let bdf = (self.address >> 8) as u16;
        let at = usize::from(self.address as u8 & !3) + usize::from(port & 3);
        let Some((space, _)) = self.functions.get(&bdf).filter(|_| self.reaches(bdf)) else {
            return u32::MAX >> (32 - 8 * size);
        };
        (0..usize::from(size)).fold(0, |v, i| v | u32::from(space[at + i]) << (8 * i))
    }
    fn port_out(&mut self, port: u16, size: u8, value: u32) {
        if port == 0xcf8 {
            self.address = value;
        }
        if !(0xcfc..0xd00).contains(&port) {
            self.ports.insert(port, value as u8);
            return;
        }
        let bdf = (self.address >> 8) as u16;
        let at = usize::from(self.address as u8 & !3) + usize::from(port & 3);
        if let Some((space, mask)) = self.functions.get_mut(&bdf) {
            for i in 0..usize::from(size) {
                let (old, m) = (space[at + i], mask[at + i]);
                space[at + i] = old & !m | (value >> (8 * i)) as u8 & m;
            }
        }
    }
    fn now(&mut self) -> u64 {
        0
    }
}

#[test]
fn functions_get_addresses_interrupts_and_decoding() {
    let mut bus = Bus::new();
    bus.add(0x00, 0x1237_8086, 0x0600, 0, 0, &[]);
    bus.add(0x08, 0x7000_8086, 0x0601, 0x80, 0, &[]);
    bus.add(0x09, 0x7010_8086, 0x0101, 0, 0, &[(0x20, 1, 16)]);
    bus.add(0x0b, 0x7113_8086, 0x0680, 0, 1, &[]);
    bus.add(0x10, 0x1111_1234, 0x0300, 0, 0, &[(0x10, 8, 16 << 20), (0x18, 0, 4096), (0x30, 0, 65536)]);
    bus.add(0x18, 0x100e_8086, 0x0200, 0, 1, &[(0x10, 0, 128 << 10), (0x14, 1, 64)]);
    bus.add(0x20, 0x1041_1af4, 0x0200, 0, 1, &[(0x10, 4, 16 << 10)]);
    bus.add(0x28, 0x0001_1b36, 0x0604, 1, 0, &[]);
    bus.add(0x110, 0x100e_8086, 0x0200, 0, 1, &[(0x10, 0, 128 << 10), (0x14, 1, 64)]);
    bus.add(0x30, 0x1110_1af4, 0x0500, 0, 1, &[(0x10, 0, 1 << 31)]);
    // The VGA's ROM will be at the first free address: behind the 16 MiB, 128 KiB come first.
    let got = set_up_pci(&mut bus, 0x8000_0000, None);
    assert_eq!(got.last_bus, 1);
    let bars = [
        (0x10, 0x10, 0xc000_0008u32),
        (0x18, 0x10, 0xc100_0000),
        (0x10, 0x30, 0xc102_0000),
        (0x20, 0x10, 0xc103_0004),
        (0x20, 0x14, 0),
        (0x10, 0x18, 0xc103_4000),
        (0x18, 0x14, 0xc001),
        (0x09, 0x20, 0xc041),
        (0x110, 0x10, 0xc110_0000),
        (0x110, 0x14, 0xd001),
        (0x30, 0x10, 0),
    ];
    for (bdf, at, want) in bars {
        assert_eq!(bus.u32(bdf, at), want, "{bdf:#x} {at:#x}");
    }
    // Bus numbers, and windows of 4 KiB and 1 MiB.
    assert_eq!(bus.u32(0x28, 0x18) & 0xff_ffff, 0x01_0100);
    assert_eq!((bus.u32(0x28, 0x1c) & 0xffff, bus.u32(0x28, 0x20)), (0xd0d0, 0xc110_c110));
    let command = |bdf: u16| bus.u32(bdf, 4) & 7;
    assert_eq!([0x09, 0x10, 0x18, 0x28, 0x110, 0x30].map(command), [7, 7, 3, 7, 3, 1]);
    assert_eq!(bus.u32(0x09, 0x40), 0x8000_8000, "both IDE channels are on");
    // PIRQA to D are 10, 10, 11, 11; slot 3's INTA# is PIRQC, slot 4's D; behind slot 5, slot 2's is INTC#.
    assert_eq!(bus.u32(0x08, 0x60), 0x0b0b_0a0a);
    let line = |bdf: u16| bus.u32(bdf, 0x3c) as u8;
    assert_eq!([0x18, 0x20, 0x0b, 0x110].map(line), [11, 11, 9, 11]);
    assert_eq!((bus.ports[&0x4d1], bus.u32(0, 0x5c)), (0x0c, 0x3333_3333));
    let mut again = bus;
    assert_eq!(set_up_pci(&mut again, 0x8000_0000, None), got, "a second time gives the same");
    // RAM that reaches higher moves the window.
    set_up_pci(&mut again, 0xe000_0000, None);
    assert_eq!(again.u32(0x10, 0x10), 0xe000_0008);
}

#[test]
fn what_has_no_room_below_4_gib_goes_above_ram() {
    let mut bus = Bus::new();
    bus.add(0x00, 0x29c0_8086, 0x0600, 0, 0, &[]);
    bus.add(0xf8, 0x2918_8086, 0x0601, 0x80, 0, &[]);
    // A root port with a card whose two BARs are prefetchable, or not.
    bus.add(0x10, 0x000c_1b36, 0x0604, 1, 1, &[]);
    bus.functions.get_mut(&0x10).unwrap().1[0x28..0x30].fill(0xff);
    bus.add(0x100, 0x1234_1234, 0x0300, 0, 1, &[(0x10, 0xc, 4 << 30), (0x18, 4, 1 << 31)]);
    bus.add(0x18, 0x1050_1af4, 0x0380, 0, 1, &[(0x10, 0xc, 8 << 30)]);
    let got = set_up_pci(&mut bus, 0x8000_0000, Some((5 << 30, (37 << 30) - 1)));
    // The larger one on bus 0 first; the bridge's window is behind it.
    assert_eq!((bus.u32(0x18, 0x10), bus.u32(0x18, 0x14)), (0xc, 2), "a multiple of its size");
    assert_eq!((bus.u32(0x100, 0x10), bus.u32(0x100, 0x14)), (0xc, 4));
    assert_eq!((bus.u32(0x10, 0x24), bus.u32(0x10, 0x28), bus.u32(0x10, 0x2c)), (0xfff0_0000, 4, 4));
    assert_eq!(got.high_end, 20 << 30);
    assert_eq!(bus.u32(0x100, 4) & 3, 1, "what is not prefetchable has no place there");
    // PIRQE to H are routed as well; slot 3's INTA# is PIRQH.
    assert_eq!((bus.u32(0xf8, 0x60), bus.u32(0xf8, 0x68)), (0x0b0b_0a0a, 0x0b0b_0a0a));
    assert_eq!((bus.u32(0x18, 0x3c) as u8, bus.u32(0, 0x90)), (11, 0x3333_3300));
}

#[test]
fn option_roms_are_copied_that_of_the_vga_first() {
    let mut bus = Bus::new();
    bus.add(0x00, 0x1237_8086, 0x0600, 0, 0, &[]);
    bus.add(0x10, 0x100e_8086, 0x0200, 0, 1, &[(0x30, 0, 0x1000)]);
    bus.add(0x18, 0x1111_1234, 0x0300, 0, 0, &[(0x30, 0, 0x1000)]);
    let rom = |name: u8| {
        let mut r = vec![name; 0x1000];
        r[..3].copy_from_slice(&[0x55, 0xaa, 3]);
        r[0x18..0x1a].copy_from_slice(&[0x1c, 0]);
        r[0x1c..0x20].copy_from_slice(b"PCIR");
        (r[0x30], r[0x31]) = (0, 0x80);
        r
    };
    bus.memory.write(0xc000_0000, &rom(b'n'));
    bus.memory.write(0xc000_1000, &rom(b'v'));
    bus.memory.write(0xd_0000, b"stale");
    let got = set_up_pci(&mut bus, 1 << 30, None);
    let at = |at: u64| {
        let mut b = [0; 1];
        bus.memory.read(at, &mut b);
        b[0]
    };
    assert_eq!(
        (at(0xc_0003), at(0xc_05ff), at(0xc_0600), at(0xc_0803), at(0xd_0000)),
        (b'v', b'v', 0, b'n', 0)
    );
    assert_eq!((got.rom_end, bus.u32(0x10, 0x30) & 1), (0xc_1000, 0), "ROMs do not decode");
}

#[test]
fn structures_in_the_rom_have_their_sums_and_lead_somewhere() {
    let mut rig = Rig::new();
    let mut read = |at: u32, len: usize| {
        let mut b = vec![0; len];
        rig.pc.read(at, &mut b);
        assert_eq!(b.iter().fold(0u8, |s, b| s.wrapping_add(*b)), 0, "{at:x}");
        b
    };
    let pnp = read(0xf_e100, 33);
    assert!(pnp.starts_with(b"$PnP\x10\x21"));
    let directory = read(0xf_e130, 16);
    assert!(directory.starts_with(b"_32_"));
    let routes = read(0xf_f110, 32 + 31 * 16);
    assert!(routes.starts_with(b"$PIR\0\x01"));
    assert_eq!(usize::from(u16::from_le_bytes([routes[6], routes[7]])), routes.len());
    // Slot 2's INTA# is PIRQB (61h).
    assert_eq!(routes[32 + 16..][..5], [0, 0x10, 0x61, 0xf8, 0xde]);
    // The directory is code that compares EAX with "$PCI".
    let entry = u32::from_le_bytes(directory[4..8].try_into().unwrap());
    let mut code = [0; 5];
    rig.pc.read(entry, &mut code);
    assert_eq!(&code, b"\x3d$PCI");
}

#[test]
fn the_32_bit_pci_bios_is_the_same_service() {
    let mut rig = Rig::new();
    let ip = rig.stub(Service::Pci32);
    let mut r = Regs { eax: 0xb101, ip, cs: 0x60, esp: 0x1234_5678, ..Regs::default() };
    let flat = Caller::default();
    assert!(rig.bios.call_protected(&mut r, ip, &flat, &mut rig.pc));
    assert_eq!((r.ah(), r.edx, r.bx(), r.cs, r.ip, r.esp), (0, 0x2049_4350, 0x0210, 0x60, ip, 0x1234_5678));
    (r.eax, r.ebx, r.edi) = (0xb10a, 0x08, 0);
    assert!(rig.bios.call_protected(&mut r, ip, &flat, &mut rig.pc));
    assert_eq!((r.ah(), r.ecx), (0, 0x7000_8086));
    r.eax = 0xb1ff;
    assert!(rig.bios.call_protected(&mut r, ip, &flat, &mut rig.pc));
    assert_eq!(r.ah(), 0x81);
    assert!(!rig.bios.call_protected(&mut r, rig.stub(Service::Disk), &flat, &mut rig.pc));
    // In real mode the routing table goes to a far pointer, if there is room.
    rig.pc.write(0x40000, &[0, 0, 0x10, 0, 0, 0x50]);
    (rig.regs.es, rig.regs.edi, rig.regs.ebx) = (0x4000, 0, 0);
    assert!(rig.fails(Service::Clock, 0xb10e) && rig.regs.ah() == 0x89);
    assert_eq!(rig.bda16(0x40000), 31 * 16, "it says how much");
    assert!(!rig.fails(Service::Clock, 0xb10e));
    assert_eq!(rig.bda16(0x50010), 0x0800);
}

#[test]
fn protected_mode_of_16_bits_calls_int_1ah_with_its_own_segments() {
    let mut rig = Rig::new();
    let ip = rig.stub(Service::Clock);
    // Descriptor 18h of the GDT and 0Ch of the LDT: bases 123450h and 234560h.
    rig.pc.write(0x40018, &[0xff, 0xff, 0x50, 0x34, 0x12, 0x93, 0, 0]);
    rig.pc.write(0x50008, &[0xff, 0xff, 0x60, 0x45, 0x23, 0x93, 0, 0]);
    let caller = Caller {
        es: 0x10_0000,
        ss: 0x20_0000,
        wide_stack: false,
        gdt: DescriptorsAt { base: 0x40000, limit: 0x1f },
        ldt: DescriptorsAt { base: 0x50000, limit: 0x0f },
    };
    // The frame: IP, CS, flags.
    let frame = 0x20_0104;
    rig.pc.write(frame, &(FLAGS | CF).to_le_bytes());
    let mut r = Regs { eax: 0xb101, ip, cs: 0x60, esp: 0x1234_0100, ..Regs::default() };
    assert!(rig.bios.call_protected(&mut r, ip, &caller, &mut rig.pc));
    assert_eq!((r.ah(), r.edx, r.esp, rig.bda16(frame)), (0, 0x2049_4350, 0x1234_0100, FLAGS));
    r.eax = 0xb1ff;
    assert!(rig.bios.call_protected(&mut r, ip, &caller, &mut rig.pc));
    assert_eq!((r.ah(), rig.bda16(frame)), (0x81, FLAGS | CF));
    // The routing table's buffer is at ES:DI, and names its segment by a selector.
    for (selector, base) in [(0x18u16, 0x12_3450), (0x0f, 0x23_4560), (0x20, 0)] {
        rig.pc.write(0x10_0010, &0x200u16.to_le_bytes());
        rig.pc.write(0x10_0012, &[0x00, 0x70]);
        rig.pc.write(0x10_0014, &selector.to_le_bytes());
        (r.eax, r.edi) = (0xb10e, 0x10);
        assert!(rig.bios.call_protected(&mut r, ip, &caller, &mut rig.pc));
        assert_eq!((r.ah(), rig.bda16(base + 0x7000)), (0, 0x0800), "{selector:x}");
    }
    // The clock itself is real mode's.
    r.eax = 0;
    assert!(!rig.bios.call_protected(&mut r, ip, &caller, &mut rig.pc));
}

#[test]
fn apm_is_called_from_protected_mode_of_both_sizes() {
    let mut rig = Rig::new();
    assert!(!rig.fails(Service::System, 0x5303));
    let [_, wide] = rig.bios.rom.apm;
    assert_eq!((rig.regs.ax(), rig.regs.ebx, rig.regs.cx()), (SEGMENT, wide.into(), SEGMENT));
    assert_eq!((rig.regs.dx(), rig.regs.esi, rig.regs.edi), (SEGMENT, 0xfff0_fff0, 0xfff0));
    assert!(!rig.fails(Service::System, 0x5302));
    let [narrow, _] = rig.bios.rom.apm;
    assert_eq!((rig.regs.ax(), rig.regs.bx(), rig.regs.cx()), (SEGMENT, narrow, SEGMENT));
    // An OUT is there or is jumped to, and what is behind it is the stub.
    let out = |rig: &mut Rig, at: u16| {
        let mut b = [0; 2];
        rig.pc.read(linear(SEGMENT, at), &mut b);
        let at = if b[0] == 0xeb { at + 2 + u16::from(b[1]) } else { at };
        rig.pc.read(linear(SEGMENT, at), &mut b);
        assert_eq!(b, [0xe6, PORT as u8]);
        at + 2
    };
    for entry in [narrow, wide] {
        let ip = out(&mut rig, entry);
        let mut r = Regs { eax: 0x530b, ip, esp: 0x100, ..Regs::default() };
        assert!(rig.bios.call_protected(&mut r, ip, &Caller::default(), &mut rig.pc));
        assert_eq!((r.ah(), r.flags & CF), (0x80, CF), "no event");
        (r.eax, r.ebx, r.ecx) = (0x5307, 1, 3);
        rig.pc.ports.remove(&0x604);
        assert!(rig.bios.call_protected(&mut r, ip, &Caller::default(), &mut rig.pc));
        assert_eq!((r.flags & CF, rig.pc.ports.contains_key(&0x604)), (0, true), "off");
        r.eax = 0x5303;
        assert!(rig.bios.call_protected(&mut r, ip, &Caller::default(), &mut rig.pc));
        assert_eq!((r.ah(), r.flags & CF), (7, CF), "connected already");
    }
}

#[test]
fn a_mouse_handler_is_called_with_a_packet() {
    let mut rig = Rig::new();
    (rig.regs.es, rig.regs.ebx) = (0x2000, 0x0123);
    assert!(!rig.fails(Service::System, 0xc207));
    rig.pc.ports.insert(0x64, 0x21);
    let sp = rig.regs.esp;
    // A byte that begins no packet, then one of three.
    for byte in [0x00, 0x08, 5, 0xfb] {
        assert_eq!(rig.regs.cs, SEGMENT);
        rig.pc.ports.insert(0x60, byte);
        rig.regs.ip = rig.stub(Service::Mouse);
        assert!(rig.bios.call(&mut rig.regs, &mut rig.pc));
    }
    assert_eq!((rig.regs.cs, rig.regs.ip, sp - rig.regs.esp), (0x2000, 0x0123, 12));
    let words: Vec<u16> = (0..6).map(|i| rig.bda16(sp - 12 + 2 * i)).collect();
    assert_eq!(words, [rig.bios.rom.mouse_done, SEGMENT, 0, 0xfb, 5, 8]);
}

#[test]
fn protected_mode_is_entered_with_the_controllers_moved() {
    let mut rig = Rig::new();
    (rig.regs.eax, rig.regs.ebx) = (0x8900, 0x2028);
    rig.call(Service::System);
    assert_eq!(rig.regs.ip, rig.bios.rom.protect);
    assert_eq!((rig.pc.ports[&0x21], rig.pc.ports[&0xa1], rig.pc.ports[&0x92]), (0xff, 0xff, 2));
}
