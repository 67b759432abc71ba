//! Fixed places of the ROM; floppies' tables, motors and DMA; the clock's event.
use super::*;

/// The byte of INT at the handler that a near jump at F000:`at` leads to.
fn jumps_to(rig: &mut Rig, at: u16) -> u16 {
    let mut b = [0; 3];
    rig.pc.read(linear(SEGMENT, at), &mut b);
    assert_eq!(b[0], 0xe9, "{at:04x}");
    at.wrapping_add(3).wrapping_add(u16::from_le_bytes([b[1], b[2]]))
}

#[test]
fn interrupts_enter_where_ibms_do() {
    let mut rig = Rig::new();
    for (at, vector, service) in [
        (0xe3fe, 0x13, Some(Service::Disk)),
        (0xe6f2, 0x19, Some(Service::Boot)),
        (0xe739, 0x14, Some(Service::Serial)),
        (0xe82e, 0x16, Some(Service::Keyboard)),
        (0xe987, 0x09, None),
        (0xec59, 0x40, Some(Service::Floppy)),
        (0xefd2, 0x17, Some(Service::Printer)),
        (0xf065, 0x10, Some(Service::Video)),
        (0xf841, 0x12, Some(Service::MemorySize)),
        (0xf84d, 0x11, Some(Service::Equipment)),
        (0xf859, 0x15, Some(Service::System)),
        (0xfe6e, 0x1a, Some(Service::Clock)),
        (0xfea5, 0x08, Some(Service::Tick)),
    ] {
        assert_eq!((rig.bda16(4 * vector), rig.bda16(4 * vector + 2)), (at, SEGMENT), "{vector:02x}");
        let there = jumps_to(&mut rig, at);
        if let Some(service) = service {
            // JMP SHORT to the OUT, which is just before the stub's own offset.
            let behind = rig.stub(service);
            assert!((8..20).contains(&(behind - there)), "{vector:02x}");
        }
        let mut word = [0; 2];
        if (8..0x20).contains(&vector) {
            rig.pc.read(linear(SEGMENT, 0xfef3) + 2 * (vector - 8), &mut word);
            assert_eq!(u16::from_le_bytes(word), at);
        }
    }
    let mut rom = vec![0; 0x10000];
    rig.pc.read(0xf0000, &mut rom);
    assert_eq!((rom[0xff53], rom[0xe6f5 + 6], rom[0xe729]), (0xcf, 0x40, 0x17));
    // Types of hard disks: type 2 has 615 cylinders, 4 heads, 17 sectors; type 9 is told that it has more than eight.
    let kind = |n: usize| &rom[0xe401 + 16 * (n - 1)..][..16];
    assert_eq!((&kind(2)[..3], kind(2)[14], kind(9)[8]), (&[0x67, 2, 4][..], 17, 8));
    assert_eq!(rom[0xfa6e + 8 * 0x41..][..8], crate::bios::video::font_8()[8 * 0x41..][..8]);
    assert_eq!((rom[0xf0a4], rom[0xf0a4 + 16], rig.bda16(4 * 0x1d)), (0x38, 0x71, 0xf0a4));
}

/// A call of INT 13h for floppy 0 with memory at `at`.
fn floppy(rig: &mut Rig, ax: u32, at: u32) -> bool {
    (rig.regs.es, rig.regs.ebx, rig.regs.edx) = ((at >> 4) as u16, at & 15, 0);
    rig.fails(Service::Disk, ax)
}

#[test]
fn a_floppys_transfer_ends_at_64_kib_and_its_motor_by_itself() {
    let mut rig = with_disk();
    rig.regs.ecx = 1;
    rig.pc.write(0x2fe00, &[0x11; 0x400]);
    assert!(floppy(&mut rig, 0x0202, 0x2fe00));
    assert_eq!((rig.regs.ax(), rig.bda16(0x2fe00)), (0x0900, 0x1111), "nothing was moved");
    assert!(!floppy(&mut rig, 0x0201, 0x2fe00));
    assert_eq!(rig.bda16(0x2fe00), 0xebeb);
    assert!(!floppy(&mut rig, 0x0402, 0x2fe00), "to verify, no memory is needed");
    // A disk has no such boundary.
    (rig.regs.ecx, rig.regs.edx) = (1, 0x80);
    assert!(!rig.fails(Service::Disk, 0x0202));
    assert_eq!(rig.bda16(bda::MOTORS), 0x2501);
    for _ in 0..0x25 {
        assert!(!rig.pc.ports.contains_key(&0x3f2));
        rig.call(Service::Tick);
    }
    assert_eq!((rig.bda16(bda::MOTORS), rig.pc.ports[&0x3f2]), (0, 0x0c));
}

#[test]
fn a_floppy_drive_tells_its_own_type_and_formats_with_the_tables_byte() {
    let mut bios = Bios::new(BiosConfig::default());
    bios.add_disk(0, Arc::new(Ram(Mutex::new(vec![0; 720 << 10]))));
    let mut rig = Rig::with(bios);
    for (cmos, want) in [(0x40, (4, 0x4f12, 18)), (0x50, (5, 0x4f24, 36)), (0, (3, 0x4f09, 9))] {
        rig.pc.cmos[0x10] = cmos;
        rig.regs.edx = 0;
        assert!(!rig.fails(Service::Disk, 0x0800));
        let table = linear(rig.regs.es, rig.regs.edi as u16);
        let sectors = (&mut rig.pc as &mut dyn Platform).u8(table + 4);
        assert_eq!((rig.regs.bl(), rig.regs.cx(), sectors), want, "{cmos:x}");
    }
    (rig.regs.ecx, rig.regs.edx) = (0x4f09, 0);
    assert!(!rig.fails(Service::Disk, 0x1800));
    let table = linear(rig.regs.es, rig.regs.edi as u16);
    assert_eq!((&mut rig.pc as &mut dyn Platform).u8(table + 7), 0x50, "the gap of 720 KiB");
    // The program's own table.
    rig.pc.write(0x5000, &[0xaf, 2, 0x25, 2, 9, 0x2a, 0xff, 0x50, 0x5a, 15, 8]);
    rig.pc.write(4 * 0x1e, &[0, 0, 0, 5]);
    rig.pc.write(0x20000, &[0, 0, 1, 2]);
    rig.regs.ecx = 1;
    assert!(!floppy(&mut rig, 0x0501, 0x20000));
    rig.regs.ecx = 1;
    assert!(!floppy(&mut rig, 0x0201, 0x20000));
    assert_eq!(rig.bda16(0x20000), 0x5a5a);
}

#[test]
fn an_event_is_told_when_its_time_is_over() {
    let mut rig = Rig::new();
    let ask = |rig: &mut Rig, ax| {
        (rig.regs.es, rig.regs.ebx, rig.regs.ecx, rig.regs.edx) = (0x3000, 5, 0, 2000);
        rig.fails(Service::System, ax)
    };
    assert!(!ask(&mut rig, 0x8300));
    assert_eq!((rig.pc.cmos[0x0b] & 0x40, rig.pc.cmos[0x0a] & 0x0f), (0x40, 6));
    assert!(ask(&mut rig, 0x8300), "there is one already");
    rig.pc.cmos[0x0c] = 0x40;
    for want in [0, 0, 0x80] {
        rig.call(Service::RtcInterrupt);
        assert_eq!(rig.bda16(0x30005), want);
    }
    assert_eq!((rig.pc.cmos[0x0b] & 0x40, rig.bda16(bda::WAIT_ACTIVE)), (0, 0));
    assert!(!ask(&mut rig, 0x8300) && !ask(&mut rig, 0x8301));
    assert_eq!((rig.pc.cmos[0x0b] & 0x40, rig.bda16(bda::WAIT_ACTIVE)), (0, 0));
}
