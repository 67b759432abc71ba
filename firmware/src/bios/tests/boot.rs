//! Booting, and drives as programs see them.
use super::*;

/// A CD, or a disk of any kind: bytes, their sector's size, and whether they can be written.
struct Bytes {
    data: Mutex<Vec<u8>>,
    size: u32,
    medium: Mutex<u64>,
    writable: bool,
}

impl Disk for Bytes {
    fn sectors(&self) -> u64 {
        self.data.lock().len() as u64 / u64::from(self.size)
    }
    fn sector_size(&self) -> u32 {
        self.size
    }
    fn writable(&self) -> bool {
        self.writable
    }
    fn medium(&self) -> u64 {
        *self.medium.lock()
    }
    fn read(&self, lba: u64, buf: &mut [u8]) -> Result<(), DiskError> {
        let at = lba as usize * self.size as usize;
        buf.copy_from_slice(self.data.lock().get(at..at + buf.len()).ok_or(DiskError::Range)?);
        Ok(())
    }
    fn write(&self, lba: u64, buf: &[u8]) -> Result<(), DiskError> {
        let at = lba as usize * self.size as usize;
        self.data.lock().get_mut(at..at + buf.len()).ok_or(DiskError::Range)?.copy_from_slice(buf);
        Ok(())
    }
}

fn disk_of(data: Vec<u8>, size: u32) -> Arc<Bytes> {
    Arc::new(Bytes { data: Mutex::new(data), size, medium: Mutex::new(0), writable: true })
}

/// A disk whose boot sector is code and names itself.
fn bootable(bytes: usize, name: u8) -> Arc<Bytes> {
    let mut data = vec![0; bytes];
    data[..3].copy_from_slice(&[0xeb, 0xfe, name]);
    data[510..512].copy_from_slice(&[0x55, 0xaa]);
    disk_of(data, 512)
}

/// A CD with this catalog (without its validation entry) at block 20, and block `n` from 30 on filled with `n`.
fn cd(platform: u8, entries: &[[u8; 32]]) -> Arc<Bytes> {
    let mut data = vec![0; 2048 * 2000];
    for n in 30..2000 {
        data[2048 * n..2048 * (n + 1)].fill(n as u8);
    }
    data[2048 * 16..][..6].copy_from_slice(b"\x01CD001");
    data[2048 * 17..][..30].copy_from_slice(b"\0CD001\x01EL TORITO SPECIFICATION");
    data[2048 * 17 + 0x47] = 20;
    let mut validation = [0; 32];
    (validation[0], validation[1]) = (1, platform);
    validation[30..].copy_from_slice(&[0x55, 0xaa]);
    let sum = validation.chunks(2).fold(0u16, |s, w| s.wrapping_add(u16::from_le_bytes([w[0], w[1]])));
    validation[28..30].copy_from_slice(&0u16.wrapping_sub(sum).to_le_bytes());
    let catalog = [&[validation][..], entries].concat();
    data[2048 * 20..][..32 * catalog.len()].copy_from_slice(catalog.as_flattened());
    disk_of(data, 2048)
}

/// An entry of a catalog: indicator, media, segment, sectors, block.
fn entry(indicator: u8, media: u8, segment: u16, sectors: u16, lba: u32) -> [u8; 32] {
    let mut e = [0; 32];
    (e[0], e[1]) = (indicator, media);
    e[2..4].copy_from_slice(&segment.to_le_bytes());
    e[6..8].copy_from_slice(&sectors.to_le_bytes());
    e[8..12].copy_from_slice(&lba.to_le_bytes());
    e
}

fn drive(kind: DriveKind, name: &str, boot_index: Option<u32>, disk: Arc<Bytes>) -> Drive {
    let path = DrivePath::Unknown;
    Drive { kind, name: name.into(), boot_index, path, disk }
}

/// Where a start ends.
#[derive(Debug, PartialEq, Eq)]
enum End {
    /// What was booted is entered at CS:IP with DL.
    At(u16, u16, u8),
    Halted,
    Waits,
}

impl Rig {
    fn booting(boot: BootConfig, drives: Vec<Drive>) -> Rig {
        let mut bios = Bios::new(BiosConfig { console: Some(0x3f8), boot, ..Default::default() });
        for drive in drives {
            assert!(bios.add_drive(drive));
        }
        let mut rig = Rig::with(bios);
        let e = rig.bios.boot_entry();
        assert_eq!((e.cs.selector, e.rip), (SEGMENT, u64::from(rig.bios.rom.start)));
        rig.regs = Regs { esp: 0x7000, cs: SEGMENT, ip: rig.bios.rom.start, ..Regs::default() };
        rig
    }

    /// Goes on as the vCPU would, until a program is entered, nothing is left, or a key is waited for.
    fn go(&mut self) -> End {
        for _ in 0..1000 {
            let (cs, ip) = (self.regs.cs, self.regs.ip);
            let rom = &self.bios.rom;
            let service = if ip == rom.start {
                Service::Start
            } else if ip == rom.boot {
                Service::Boot
            } else if ip == rom.halt {
                return End::Halted;
            } else if ip == rom.iret {
                let at = linear(self.regs.ss, self.regs.esp as u16);
                let end = End::At(self.bda16(at + 2), self.bda16(at), self.regs.dl());
                // The program has a stack where calls expect it.
                (self.regs.ss, self.regs.esp) = (0, STACK);
                return end;
            } else {
                return if cs == SEGMENT { End::Waits } else { End::At(cs, ip, self.regs.dl()) };
            };
            self.regs.ip = self.stub(service);
            assert!(self.bios.call(&mut self.regs, &mut self.pc));
        }
        panic!("it does not end");
    }

    /// The program that was booted gives up.
    fn give_up(&mut self) -> End {
        self.regs = Regs { cs: SEGMENT, esp: 0x6000, ..Regs::default() };
        self.call(Service::NoBoot);
        self.go()
    }
}

#[test]
fn drives_are_tried_in_order_and_passed_over_with_a_reason() {
    use DriveKind::*;
    let mut gpt = vec![0; 1 << 20];
    gpt[510..512].copy_from_slice(&[0x55, 0xaa]);
    gpt[0x1c2] = 0xee;
    let drives = vec![
        drive(HardDisk, "data", None, disk_of(gpt, 512)),
        drive(Floppy, "a", None, bootable(1440 << 10, b'a')),
        drive(Cd, "dvd", None, disk_of(vec![0; 2048 * 40], 2048)),
        drive(HardDisk, "second", None, bootable(1 << 20, b'2')),
        drive(HardDisk, "first", Some(1), bootable(1 << 20, b'1')),
        drive(HardDisk, "empty", Some(0), disk_of(vec![0; 1 << 20], 512)),
        drive(Floppy, "b", None, disk_of(Vec::new(), 512)),
    ];
    let mut rig =
        Rig::booting(BootConfig { order: BootConfig::classes("dca"), ..Default::default() }, drives);
    assert_eq!(rig.bda16(bda::EQUIPMENT) & 0xc1, 0x41, "two floppies");
    assert_eq!(rig.bda16(bda::DISK_COUNT) & 0xff, 4);
    let name = |rig: &mut Rig| (rig.bda16(0x7c02) as u8) as char;
    // By index, then the CD, then the other hard disks, the floppies.
    assert_eq!((rig.go(), name(&mut rig)), (End::At(0, 0x7c00, 0x80), '1'));
    let shown = rig.shown();
    assert_eq!(shown.matches("Booting from Hard Disk...").count(), 2);
    assert!(shown.contains("Boot failed: it is not a bootable disk"), "{shown}");
    assert_eq!((rig.give_up(), name(&mut rig)), (End::At(0, 0x7c00, 0x80), '2'));
    let shown = rig.shown();
    assert!(shown.contains("DVD/CD...\r\nBoot failed: it is not a bootable CD"), "{shown}");
    assert!(shown.contains("GPT, without boot code"), "{shown}");
    // What is booted is drive 80h; the others come behind it in their order.
    (rig.regs.es, rig.regs.ebx, rig.regs.ecx, rig.regs.edx) = (0x2000, 0, 1, 0x82);
    assert!(!rig.fails(Service::Disk, 0x0201));
    assert_eq!(rig.bda16(0x20002) as u8, b'1');
    assert_eq!((rig.give_up(), name(&mut rig)), (End::At(0, 0x7c00, 0), 'a'));
    assert_eq!(rig.give_up(), End::Halted);
    let shown = rig.shown();
    assert!(shown.contains("no medium") && shown.ends_with("No bootable device.\r\n"), "{shown}");
    // INT 19h begins anew.
    rig.regs = Regs { cs: SEGMENT, esp: 0x6000, ..Regs::default() };
    rig.call(Service::Boot);
    assert_eq!((rig.go(), name(&mut rig)), (End::At(0, 0x7c00, 0x80), '1'));
}

#[test]
fn strict_tries_nothing_else_and_a_failed_boot_is_tried_again_if_that_is_asked_for() {
    use DriveKind::*;
    let boot = BootConfig {
        order: vec![BootClass::Cd],
        strict: true,
        reboot_timeout: Some(100),
        ..Default::default()
    };
    let mut rig = Rig::booting(boot, vec![drive(HardDisk, "", None, bootable(1 << 20, b'1'))]);
    assert_eq!(rig.go(), End::Waits);
    assert_eq!(rig.shown(), "No bootable device.\r\n");
    rig.pc.now = 100_000_000;
    rig.regs.ip = rig.bios.rom.start;
    assert_eq!((rig.go(), rig.pc.ports.get(&0xcf9)), (End::Halted, Some(&6)), "the machine is reset");
}

#[test]
fn the_menu_lists_all_and_starts_what_is_chosen() {
    use DriveKind::*;
    let drives = || {
        vec![
            drive(HardDisk, "one", None, bootable(1 << 20, b'1')),
            drive(HardDisk, "two", None, bootable(1 << 20, b'2')),
        ]
    };
    let boot = BootConfig { menu: true, ..Default::default() };
    let mut rig = Rig::booting(boot.clone(), drives());
    assert_eq!(rig.go(), End::Waits);
    // F12 of a terminal, then the second line, by the serial console.
    rig.pc.typed = b"\x1b[24~2".to_vec();
    rig.regs.ip = rig.bios.rom.start;
    assert_eq!((rig.go(), rig.bda16(0x7c02) as u8), (End::At(0, 0x7c00, 0x80), b'2'));
    let shown = rig.shown();
    assert!(shown.contains("1. Hard Disk: one\r\n2. Hard Disk: two\r\n"), "{shown}");
    // Nobody presses a key.
    let mut rig = Rig::booting(boot, drives());
    assert_eq!(rig.go(), End::Waits);
    rig.pc.now = 2_500_000_000;
    rig.regs.ip = rig.bios.rom.start;
    assert_eq!((rig.go(), rig.bda16(0x7c02) as u8), (End::At(0, 0x7c00, 0x80), b'1'));
}

#[test]
fn a_cd_without_emulation_is_loaded_and_read_by_blocks() {
    let image = entry(0x88, 0, 0, 4, 40);
    let mut rig = Rig::booting(BootConfig::default(), vec![drive(DriveKind::Cd, "", None, cd(0, &[image]))]);
    assert_eq!(rig.go(), End::At(0, 0x7c00, 0xe0));
    assert_eq!((rig.bda16(0x7c00), rig.bda16(0x83fe), rig.bda16(0x8400)), (0x2828, 0x2828, 0));
    // Its status, as boot loaders ask for it.
    (rig.regs.ds, rig.regs.esi, rig.regs.edx) = (0x3000, 0, 0xe0);
    assert!(!rig.fails(Service::Disk, 0x4b01));
    let mut p = [0; 16];
    rig.pc.read(0x30000, &mut p);
    assert_eq!(p, [0x13, 0, 0xe0, 0, 40, 0, 0, 0, 0, 0, 0, 0, 0, 0, 4, 0]);
    rig.pc.write(0x30000, &30u16.to_le_bytes());
    rig.regs.edx = 0xe0;
    assert!(!rig.fails(Service::Disk, 0x4800));
    assert_eq!((rig.bda16(0x30018), rig.bda16(0x30010)), (2048, 2000));
    (rig.regs.ebx, rig.regs.edx) = (0x55aa, 0xe0);
    assert!(!rig.fails(Service::Disk, 0x4100));
    let packet = [&[16, 0, 2, 0, 0, 0, 0, 0x50][..], &50u64.to_le_bytes()].concat();
    rig.pc.write(0x30000, &packet);
    assert!(!rig.fails(Service::Disk, 0x4200));
    assert_eq!((rig.bda16(0x507fe), rig.bda16(0x50800), rig.bda16(0x51000)), (0x3232, 0x3333, 0));
    // To a flat address beyond the first MiB.
    let packet =
        [&[24, 0, 1, 0, 255, 255, 255, 255][..], &51u64.to_le_bytes(), &0x20_0000u64.to_le_bytes()].concat();
    rig.pc.write(0x30000, &packet);
    assert!(!rig.fails(Service::Disk, 0x4200));
    assert_eq!(rig.bda16(0x20_0000), 0x3333);
    // By cylinders it cannot be read; it is locked before it is ejected.
    (rig.regs.ecx, rig.regs.edx) = (1, 0xe0);
    assert!(rig.fails(Service::Disk, 0x0201));
    assert!(!rig.fails(Service::Disk, 0x4500));
    assert!(rig.fails(Service::Disk, 0x4600) && rig.regs.ah() == 0xb1);
    assert!(!rig.fails(Service::Disk, 0x4501));
    assert!(rig.fails(Service::Disk, 0x4501) && rig.regs.ah() == 0xb0);
}

#[test]
fn a_floppy_on_a_cd_is_drive_0_until_that_is_ended() {
    use DriveKind::*;
    // An entry for UEFI comes first; the one for a PC is in the second section.
    let header = |id: u8, platform: u8, count: u8| {
        let mut e = [0; 32];
        (e[0], e[1], e[2]) = (id, platform, count);
        e
    };
    let entries = [
        entry(0x88, 0, 0, 1, 33),
        header(0x90, 0xef, 2),
        entry(0x88, 0, 0, 1, 34),
        entry(0x88, 0, 0, 1, 35),
        header(0x91, 0, 1),
        entry(0x88, 2, 0, 1, 100),
    ];
    let drives = vec![
        drive(Floppy, "", Some(1), bootable(1440 << 10, b'f')),
        drive(Cd, "", Some(0), cd(0xef, &entries)),
    ];
    let mut rig = Rig::booting(BootConfig::default(), drives);
    assert_eq!(rig.go(), End::At(0, 0x7c00, 0));
    assert_eq!((rig.bda16(0x7c00), rig.bda16(bda::EQUIPMENT) & 0xc1), (100 * 0x0101, 0x41));
    // Cylinder 0, head 1, sector 1 is sector 18: the image's fifth block.
    (rig.regs.es, rig.regs.ebx, rig.regs.ecx, rig.regs.edx) = (0x2000, 0, 1, 0x0100);
    assert!(!rig.fails(Service::Disk, 0x0201));
    assert_eq!(rig.bda16(0x20000), 104 * 0x0101);
    assert!(rig.fails(Service::Disk, 0x0301) && rig.regs.ah() == 3, "it cannot be written");
    rig.regs.edx = 0;
    assert!(!rig.fails(Service::Disk, 0x0800));
    assert_eq!((rig.regs.bl(), rig.regs.cx(), rig.regs.dx()), (4, 0x4f12, 0x0102));
    // The real one is the second.
    (rig.regs.es, rig.regs.ecx, rig.regs.edx, rig.regs.ebx) = (0x2000, 1, 1, 0);
    assert!(!rig.fails(Service::Disk, 0x0201));
    assert_eq!(rig.bda16(0x20002) as u8, b'f');
    (rig.regs.ds, rig.regs.edx) = (0x3000, 0x7f);
    assert!(!rig.fails(Service::Disk, 0x4b00));
    (rig.regs.ecx, rig.regs.edx) = (1, 0);
    assert!(!rig.fails(Service::Disk, 0x0201));
    assert_eq!((rig.bda16(0x20002) as u8, rig.bda16(bda::EQUIPMENT) & 0xc1), (b'f', 1));
    assert!(rig.fails(Service::Disk, 0x4b01) == (rig.regs.dl() != 0), "its status can still be asked for");
}

#[test]
fn a_program_boots_an_image_of_its_choice_on_a_cd() {
    let image = entry(0x88, 0, 0, 4, 40);
    let mut rig = Rig::booting(BootConfig::default(), vec![drive(DriveKind::Cd, "", None, cd(0, &[image]))]);
    assert_eq!(rig.go(), End::At(0, 0x7c00, 0xe0));
    // A floppy of 1.44 MB at block 100, loaded at 0:7C00.
    let packet = [0x13, 2, 0, 0, 100, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0];
    rig.pc.write(0x30000, &packet);
    (rig.regs.ds, rig.regs.esi, rig.regs.eax) = (0x3000, 0, 0x4c00);
    rig.call(Service::Disk);
    assert_eq!(rig.regs.ip, rig.bios.rom.iret);
    let at = linear(rig.regs.ss, rig.regs.esp as u16);
    assert_eq!((rig.bda16(at), rig.bda16(at + 2), rig.regs.dl()), (0x7c00, 0, 0));
    assert_eq!(rig.bda16(0x7c00), 100 * 0x0101);
    rig.regs = Regs { esp: STACK, cs: SEGMENT, es: 0x2000, ecx: 1, edx: 0x0100, ..Regs::default() };
    assert!(!rig.fails(Service::Disk, 0x0201));
    assert_eq!(rig.bda16(0x20000), 104 * 0x0101);
    // An image that is not on the CD's kind.
    rig.pc.write(0x30001, &[7]);
    (rig.regs.ds, rig.regs.esi) = (0x3000, 0);
    assert!(rig.fails(Service::Disk, 0x4c00) && rig.regs.ah() == 1);
}

#[test]
fn option_roms_have_memory_until_booting_begins() {
    let mut rig = Rig::booting(BootConfig::default(), Vec::new());
    let at = linear(SEGMENT, rom::PMM);
    let mut table = [0; 16];
    rig.pc.read(at, &mut table);
    assert_eq!((&table[..6], table.iter().fold(0u8, |s, b| s.wrapping_add(*b))), (&b"$PMM\x01\x10"[..], 0));
    let asks = |rig: &mut Rig, words: &[u16]| {
        let words = words.iter().flat_map(|w| w.to_le_bytes()).collect::<Vec<_>>();
        rig.pc.write(STACK + 4, &words);
        (rig.regs.esp, rig.regs.ip) = (STACK, rig.stub(Service::Pmm));
        assert!(rig.bios.call(&mut rig.regs, &mut rig.pc));
        let mut left = vec![0; words.len()];
        rig.pc.read(STACK + 4, &mut left);
        assert_eq!(left, words, "the caller's stack is as it was");
        u32::from(rig.regs.dx()) << 16 | u32::from(rig.regs.ax())
    };
    let low = asks(&mut rig, &[0, 0x100, 0, 0xffff, 0xffff, 1]);
    let high = asks(&mut rig, &[0, 0x1000, 1, 0x5678, 0x1234, 2 | 4]);
    assert!((0x2_0000..0x7_0000).contains(&low) && high >= 1 << 20 && high.is_multiple_of(1 << 16));
    assert!(u64::from(high) + 0x11000 <= (1 << 20) + rig.bios.upper);
    let other = asks(&mut rig, &[0, 0x100, 0, 0xffff, 0xffff, 1]);
    assert!(other >= low + 0x1000 || low >= other + 0x1000);
    assert_eq!(asks(&mut rig, &[0, 1, 0, 0x5678, 0x1234, 3]), 0, "there is one of this name");
    assert_eq!(asks(&mut rig, &[1, 0x5678, 0x1234]), high);
    assert_eq!(asks(&mut rig, &[0, 0xffff, 0xffff, 0xffff, 0xffff, 3]), 0);
    let left = asks(&mut rig, &[0, 0, 0, 0, 0, 1]);
    assert_eq!((asks(&mut rig, &[2, low as u16, (low >> 16) as u16]), left), (0, 0x4e00));
    assert_eq!(asks(&mut rig, &[2, low as u16, (low >> 16) as u16]), 1);
    rig.regs = Regs { esp: 0x7000, cs: SEGMENT, ip: rig.bios.rom.start, ..Regs::default() };
    assert_eq!(rig.go(), End::Halted);
    rig.pc.read(at, &mut table);
    assert_eq!(table, [0; 16]);
    assert_eq!(asks(&mut rig, &[0, 1, 0, 0xffff, 0xffff, 3]), u32::MAX);
}

#[test]
fn a_damaged_catalog_boots_nothing() {
    let ends = |catalog: &dyn Fn(&mut Vec<u8>)| {
        let disk = cd(0, &[entry(0x88, 0, 0, 4, 40)]);
        catalog(&mut disk.data.lock());
        let mut rig = Rig::booting(BootConfig::default(), vec![drive(DriveKind::Cd, "", None, disk)]);
        (rig.go(), rig.shown())
    };
    assert_eq!(ends(&|_| {}).0, End::At(0, 0x7c00, 0xe0));
    for (at, byte, why) in [
        (2048 * 20 + 4, 1, "damaged"),
        (2048 * 20 + 32, 0, "no boot image for a PC"),
        (2048 * 20 + 33, 9, "unknown kind"),
        (2048 * 20 + 42, 1, "not on it"),
        (2048 * 17 + 0x4a, 0xff, "beyond the end"),
        (2048 * 20 + 35, 0xff, "cannot be loaded"),
    ] {
        let (end, shown) = ends(&|data| data[at] = byte);
        assert!(end == End::Halted && shown.contains(why), "{why}: {shown}");
    }
}

#[test]
fn programs_that_have_taken_the_vectors_of_disks_are_asked() {
    use DriveKind::*;
    let drives = vec![
        drive(HardDisk, "", None, bootable(1 << 20, b'h')),
        drive(Floppy, "", None, bootable(1440 << 10, b'f')),
    ];
    let mut rig = Rig::booting(BootConfig::default(), drives);
    rig.pc.write(4 * 0x13, &[0x34, 0x12, 0x00, 0xd0]);
    assert_eq!(rig.go(), End::At(0xd000, 0x1234, 0x80));
    assert_eq!((rig.regs.ax(), rig.regs.cx(), rig.regs.bx()), (0x0201, 1, 0x7c00));
    let frame = rig.regs.esp;
    assert_eq!((rig.bda16(frame), rig.bda16(frame + 2)), (rig.bios.rom.boot_read, SEGMENT));
    // It has loaded a sector of its own, and returns by IRET to a stub that has the flags where services look for them.
    rig.pc.write(0x7c00, &[0xeb, 0xfe]);
    rig.pc.write(0x7dfe, &[0x55, 0xaa]);
    rig.regs.cs = SEGMENT;
    rig.call(Service::BootRead);
    assert_eq!(rig.go(), End::At(0, 0x7c00, 0x80));
    // INT 40h for floppies.
    rig.pc.write(4 * 0x40, &[0x78, 0x56, 0x00, 0xd0]);
    rig.regs =
        Regs { eax: 0x0201, ecx: 1, esp: STACK, cs: SEGMENT, ip: rig.stub(Service::Disk), ..Regs::default() };
    assert!(rig.bios.call(&mut rig.regs, &mut rig.pc));
    assert_eq!((rig.regs.cs, rig.regs.ip, rig.regs.ax()), (0xd000, 0x5678, 0x0201));
}

#[test]
fn option_roms_are_started_then_joined_and_can_boot() {
    let mut rig = Rig::booting(BootConfig::default(), Vec::new());
    let mut rom = vec![0; 2048];
    rom[..3].copy_from_slice(&[0x55, 0xaa, 4]);
    rom[0x1a] = 0x40;
    rom[0x40..0x44].copy_from_slice(b"$PnP");
    rom[0x50..0x52].copy_from_slice(&0x80u16.to_le_bytes());
    rom[0x56..0x58].copy_from_slice(&0x111u16.to_le_bytes());
    rom[0x5a..0x5c].copy_from_slice(&0x222u16.to_le_bytes());
    rom[0x80..0x84].copy_from_slice(b"iPXE");
    rig.pc.write(0xc8000, &rom);
    assert_eq!(rig.go(), End::Halted, "its sum is not zero");
    rom[2047] = rom.iter().fold(0u8, |s, b| s.wrapping_sub(*b));
    let mut rig = Rig::booting(BootConfig::default(), Vec::new());
    rig.pc.write(0xc8000, &rom);
    let back = |rig: &mut Rig| {
        let at = rig.regs.esp;
        assert_eq!((rig.regs.es, rig.regs.edi), (SEGMENT, 0xe100));
        rig.regs.ip = rig.bda16(at);
        rig.regs.cs = rig.bda16(at + 2);
        rig.regs.ip
    };
    assert_eq!(rig.go(), End::At(0xc800, 3, 0xff));
    back(&mut rig);
    assert_eq!(rig.go(), End::At(0xc800, 0x111, 0xff));
    back(&mut rig);
    assert_eq!(rig.go(), End::At(0xc800, 0x222, 0xff));
    assert_eq!(back(&mut rig), rig.bios.rom.rom_failed);
    assert_eq!(rig.give_up(), End::Halted);
}

#[test]
fn a_network_rom_is_started_when_it_is_to_be_booted_from_and_not_before() {
    let mut rom = vec![0; 2048];
    rom[..3].copy_from_slice(&[0x55, 0xaa, 4]);
    (rom[0x18], rom[0x1a]) = (0x20, 0x40);
    rom[0x20..0x24].copy_from_slice(b"PCIR");
    rom[0x2f] = 2;
    rom[0x40..0x44].copy_from_slice(b"$PnP");
    rom[0x5a..0x5c].copy_from_slice(&0x222u16.to_le_bytes());
    rom[2047] = rom.iter().fold(0u8, |s, b| s.wrapping_sub(*b));
    let disk = || vec![drive(DriveKind::HardDisk, "", None, bootable(1 << 20, b'd'))];
    let mark = |rig: &mut Rig| <dyn Platform>::u16(&mut rig.pc, 0xf_0000 + u32::from(rom::PMM));
    let mut rig = Rig::booting(BootConfig::default(), disk());
    rig.pc.write(0xc8000, &rom);
    assert_eq!(rig.go(), End::At(0, 0x7c00, 0x80), "the disk comes first");
    assert_eq!(mark(&mut rig), 0);
    // The disk's boot sector gives up.
    rig.regs.cs = SEGMENT;
    rig.call(Service::NoBoot);
    assert_eq!(rig.go(), End::At(0xc800, 3, 0xff));
    assert_eq!(mark(&mut rig), u16::from_le_bytes(*b"$P"), "it finds the memory manager");
    let at = rig.regs.esp;
    (rig.regs.ip, rig.regs.cs) = (rig.bda16(at), rig.bda16(at + 2));
    assert_eq!(rig.go(), End::At(0xc800, 0x222, 0xff));
    assert_eq!(mark(&mut rig), 0);
    // With a menu it is started first.
    let mut rig = Rig::booting(BootConfig { menu: true, ..BootConfig::default() }, disk());
    rig.pc.write(0xc8000, &rom);
    assert_eq!(rig.go(), End::At(0xc800, 3, 0xff));
}

#[test]
fn a_floppy_tells_of_its_change_once_is_formatted_and_may_be_absent() {
    let floppy = bootable(1440 << 10, b'f');
    let mut rig =
        Rig::booting(BootConfig::default(), vec![drive(DriveKind::Floppy, "", None, floppy.clone())]);
    rig.regs = Regs { esp: STACK, cs: SEGMENT, es: 0x2000, ecx: 1, ..Regs::default() };
    assert!(!rig.fails(Service::Disk, 0x1500) && rig.regs.ah() == 2);
    assert!(!rig.fails(Service::Disk, 0x1600));
    *floppy.medium.lock() = 1;
    for _ in 0..2 {
        assert!(rig.fails(Service::Disk, 0x1600) && rig.regs.ah() == 6, "to ask does not take it away");
    }
    assert!(rig.fails(Service::Disk, 0x0201) && rig.regs.ah() == 6);
    assert_eq!(rig.bda16(bda::FLOPPY_STATUS) & 0xff, 6);
    assert!(!rig.fails(Service::Disk, 0x0201));
    assert!(rig.fails(Service::Disk, 0x0213) || rig.regs.al() == 0x13, "a call goes over the end of a track");
    // The last track's eighteen sectors.
    let fields: Vec<u8> = (1..=18).flat_map(|s| [79, 1, s, 2]).collect();
    rig.pc.write(0x20000, &fields);
    (rig.regs.ebx, rig.regs.ecx, rig.regs.edx) = (0, 0x4f01, 0x0100);
    assert!(!rig.fails(Service::Disk, 0x0512));
    assert!(floppy.data.lock()[(2880 - 18) * 512..].iter().all(|b| *b == 0xf6));
    assert!(floppy.data.lock()[(2880 - 19) * 512..][..512].iter().all(|b| *b == 0));
    (rig.regs.ecx, rig.regs.edx) = (0x4f12, 0);
    assert!(!rig.fails(Service::Disk, 0x1800));
    rig.regs.ecx = 0x4f0f;
    assert!(rig.fails(Service::Disk, 0x1800) && rig.regs.ah() == 0x0c);
    floppy.data.lock().clear();
    rig.regs.ecx = 1;
    assert!(rig.fails(Service::Disk, 0x0201) && rig.regs.ah() == 0x80);
}

#[test]
fn geometry_is_that_of_the_partition_table_or_translated() {
    use super::drive::Geometry;
    let of = |g: Geometry| (g.cylinders, g.heads, g.sectors);
    for (mib, want) in [
        (10, (20, 16, 63)),
        (504, (1024, 16, 63)),
        (1000, (1015, 32, 63)),
        (4000, (1015, 128, 63)),
        (9000, (1024, 255, 63)),
        (100_000, (1024, 255, 63)),
    ] {
        assert_eq!(of(Geometry::translated(mib << 11)), want, "{mib}");
    }
    assert_eq!(of(Geometry::of_floppy(2880)), (80, 2, 18));
    assert_eq!(of(Geometry::of_floppy(5760)), (80, 2, 36));
    // A partition of 64 heads and 32 sectors, as hybrid ISOs have it: cylinders 0 to 99.
    let mut mbr = [0; 512];
    mbr[510..].copy_from_slice(&[0x55, 0xaa]);
    mbr[0x1be..0x1ce].copy_from_slice(&[0x80, 0, 1, 0, 0x17, 63, 32, 99, 0, 0, 0, 0, 0, 0x20, 3, 0]);
    assert_eq!(of(Geometry::of_partition_table(&mbr, 204_800).unwrap()), (100, 64, 32));
    mbr[0x1c3] = 62;
    assert!(Geometry::of_partition_table(&mbr, 204_800).is_none(), "it does not fit the partition's end");
    mbr[0x1c2] = 0xee;
    assert!(Geometry::of_partition_table(&mbr, 204_800).is_none());
}

#[test]
fn edd_tells_where_a_drive_is() {
    let path =
        DrivePath::Ata { pci: Some((0, 1, 1)), ports: (0x1f0, 0x3f6), irq: 14, slave: true, packet: false };
    let disk = Drive { path, ..drive(DriveKind::HardDisk, "", None, bootable(1 << 20, b'1')) };
    let mut rig = Rig::booting(BootConfig::default(), vec![disk]);
    rig.regs = Regs { esp: STACK, cs: SEGMENT, ds: 0x3000, edx: 0x80, ..Regs::default() };
    for (room, want) in [(26, 26), (30, 30), (65, 30), (66, 66), (73, 66), (74, 74), (500, 74)] {
        rig.pc.write(0x30000, &[0xcc; 80]);
        rig.pc.write(0x30000, &u16::to_le_bytes(room));
        assert!(!rig.fails(Service::Disk, 0x4800));
        assert_eq!((rig.bda16(0x30000), rig.bda16(0x30000 + u32::from(want))), (want, 0xcccc));
    }
    let sum = |b: &[u8]| b.iter().fold(0u8, |s, b| s.wrapping_add(*b));
    let mut long = [0; 74];
    rig.pc.read(0x30000, &mut long);
    assert_eq!(
        (&long[36..48], long[32], long[56], &long[57..73]),
        (&b"PCI ATA     "[..], 44, 1, &[0; 16][..])
    );
    assert_eq!(sum(&long[30..]), 0);
    rig.pc.write(0x30000, &66u16.to_le_bytes());
    assert!(!rig.fails(Service::Disk, 0x4800));
    let mut b = [0; 66];
    rig.pc.read(0x30000, &mut b);
    assert_eq!((&b[36..48], &b[48..52], b[56]), (&b"PCI ATA     "[..], &[0, 1, 1, 0][..], 1));
    assert_eq!((u16::from_le_bytes([b[30], b[31]]), b[32]), (0xbedd, 36));
    assert_eq!(sum(&b[30..]), 0);
    let mut table = [0; 16];
    let word = |i: usize| u16::from_le_bytes([b[i], b[i + 1]]);
    rig.pc.read(linear(word(28), word(26)), &mut table);
    assert_eq!((&table[..4], table[4], table[6], sum(&table)), (&[0xf0, 1, 0xf6, 3][..], 0xf0, 14, 0));
    // INT 41h's table.
    let at = linear(rig.bda16(4 * 0x41 + 2), rig.bda16(4 * 0x41));
    rig.pc.read(at, &mut table);
    assert_eq!((table[2], table[14], sum(&table)), (16, 63, 0));
    rig.pc.write(0x30000, &25u16.to_le_bytes());
    assert!(rig.fails(Service::Disk, 0x4800));
}

#[test]
fn edd_tells_of_a_scsi_disk_its_target_and_unit() {
    let path = DrivePath::Pci { pci: (0, 4, 0), interface: "SCSI", unit: 2 | 3 << 16 };
    let disk = Drive { path, ..drive(DriveKind::HardDisk, "", None, bootable(1 << 20, b'1')) };
    let mut rig = Rig::booting(BootConfig::default(), vec![disk]);
    rig.regs = Regs { esp: STACK, cs: SEGMENT, ds: 0x3000, edx: 0x80, ..Regs::default() };
    for room in [66u16, 74] {
        rig.pc.write(0x30000, &room.to_le_bytes());
        assert!(!rig.fails(Service::Disk, 0x4800));
        let mut b = vec![0; room.into()];
        rig.pc.read(0x30000, &mut b);
        assert_eq!((&b[36..48], &b[48..56]), (&b"PCI SCSI    "[..], &[0, 4, 0, 0, 0, 0, 0, 0][..]), "{room}");
        assert_eq!((&b[56..64], &b[26..30]), (&[2, 0, 3, 0, 0, 0, 0, 0][..], &[0xff; 4][..]), "{room}");
        assert_eq!(b[30..].iter().fold(0u8, |s, b| s.wrapping_add(*b)), 0);
    }
}
