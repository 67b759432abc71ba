//! The keyboard's interrupt, and what INT 15h is told of waits.
use super::*;

impl Rig {
    fn bda8(&mut self, at: u32) -> u8 {
        (&mut self.pc as &mut dyn Platform).u8(at)
    }

    /// INT 15h is a program's.
    fn hook_system(&mut self) {
        self.pc.write(4 * 0x15, &[0, 1, 0, 0x30]);
    }
}

#[test]
fn pause_holds_the_machine_until_another_key() {
    let mut rig = Rig::new();
    rig.press(&[0xe1, 0x1d, 0x45]);
    assert_eq!(rig.regs.ip, rig.bios.rom.pause);
    rig.press(&[0xe1, 0x9d, 0xc5]);
    assert_eq!((rig.bda8(bda::SHIFT_FLAGS), rig.bda8(bda::SHIFT_FLAGS_2)), (0, 8), "no Num Lock, no Ctrl");
    rig.call(Service::Pause);
    let stub = rig.bios.rom.stubs[&rig.stub(Service::Pause)];
    assert_eq!(rig.regs.ip, stub.wait);
    rig.press(&[0x2a, 0xaa]);
    assert_eq!(rig.bda8(bda::SHIFT_FLAGS_2), 8, "Shift does not end it");
    rig.press(&[0x1e, 0x9e]);
    assert_eq!((rig.bda8(bda::SHIFT_FLAGS_2), rig.key()), (0, None));
    rig.call(Service::Pause);
    assert_eq!(rig.regs.ip, rig.stub(Service::Pause));
    rig.press(&[0x1e, 0x9e]);
    assert_eq!(rig.key(), Some(0x1e61));
}

#[test]
fn a_lock_that_repeats_changes_once_and_the_lights_follow() {
    let mut rig = Rig::new();
    for (key, bit, light) in [(0x3a, 0x40, 4), (0x45, 0x20, 2), (0x46, 0x10, 1)] {
        rig.press(&[key, key, key]);
        assert_eq!((rig.bda8(bda::SHIFT_FLAGS), rig.bda8(bda::SHIFT_FLAGS_2)), (bit, bit));
        assert_eq!((rig.pc.ports[&0x60], rig.bda8(bda::KEYBOARD_LEDS)), (0xed, 0x40 | light));
        rig.press(&[0xfa]);
        assert_eq!(rig.pc.ports[&0x60], light);
        rig.press(&[0xfa]);
        assert_eq!(rig.bda8(bda::KEYBOARD_LEDS), light);
        rig.press(&[key | 0x80, key, key | 0x80, 0xfa, 0xfa]);
        assert_eq!((rig.bda8(bda::SHIFT_FLAGS), rig.bda8(bda::SHIFT_FLAGS_2)), (0, 0));
        assert_eq!(rig.bda8(bda::KEYBOARD_LEDS), 0);
    }
    // A program changes a lock; the next call shows it.
    rig.pc.write(bda::SHIFT_FLAGS, &[0x40]);
    assert_eq!(rig.key(), None);
    assert_eq!(rig.pc.ports[&0x60], 0xed);
}

#[test]
fn both_ctrl_and_alt_keys_are_told_apart() {
    let mut rig = Rig::new();
    let mut after = |codes: &[u8]| {
        rig.press(codes);
        rig.regs.eax = 0x1200;
        rig.call(Service::Keyboard);
        (rig.regs.ax(), rig.bda8(bda::KEYBOARD_MODE) & 0x0c)
    };
    assert_eq!(after(&[0xe0, 0x1d]), (0x0404, 4));
    assert_eq!(after(&[0x1d]), (0x0504, 4));
    assert_eq!(after(&[0xe0, 0x9d]), (0x0104, 0), "the other is still down");
    assert_eq!(after(&[0x9d, 0xe0, 0x38]), (0x0808, 8));
    assert_eq!(after(&[0xe0, 0xb8]), (0, 0));
}

#[test]
fn system_request_calls_int_15h_when_pressed_and_when_released() {
    let mut rig = Rig::new();
    rig.press(&[0x38, 0x54]);
    assert_eq!((rig.regs.ax(), rig.regs.ip), (0x8500, rig.bios.rom.system_request));
    rig.regs.eax = 0x1200;
    rig.call(Service::Keyboard);
    assert_eq!(rig.regs.ah(), 0x82, "and left Alt");
    rig.press(&[0xd4]);
    assert_eq!((rig.regs.ax(), rig.regs.ip), (0x8501, rig.bios.rom.system_request));
}

#[test]
fn the_typematic_rate_is_told_to_the_keyboard_and_unknown_functions_change_nothing() {
    let mut rig = Rig::new();
    (rig.regs.eax, rig.regs.ebx) = (0x0306, 0);
    rig.call(Service::Keyboard);
    assert_eq!(rig.regs.bx(), 0x010b);
    (rig.regs.eax, rig.regs.ebx) = (0x0305, 0x0300 | 0x1f);
    rig.call(Service::Keyboard);
    assert_eq!(rig.pc.ports[&0x60], 0xf3);
    rig.press(&[0xfa]);
    assert_eq!(rig.pc.ports[&0x60], 0x7f);
    (rig.regs.eax, rig.regs.ebx) = (0x0306, 0);
    rig.call(Service::Keyboard);
    assert_eq!(rig.regs.bx(), 0x031f);
    for ax in [0x0412, 0x0634, 0x5555] {
        rig.regs.eax = ax;
        rig.call(Service::Keyboard);
        assert_eq!(rig.regs.eax, ax);
    }
}

#[test]
fn a_program_at_int_15h_is_told_of_waits_for_keys_and_drives() {
    let mut rig = with_disk();
    rig.regs.eax = 0x1000;
    rig.call(Service::Keyboard);
    let wait = rig.bios.rom.stubs[&rig.stub(Service::Keyboard)].wait;
    assert_eq!(rig.regs.ip, wait, "nobody wants to know");
    rig.hook_system();
    rig.call(Service::Keyboard);
    assert_eq!(rig.regs.ip, rig.bios.rom.key_wait);
    rig.call(Service::KeyWaited);
    let wait = rig.bios.rom.stubs[&rig.stub(Service::KeyWaited)].wait;
    assert_eq!((rig.regs.ip, rig.regs.ax()), (wait, 0x1000));
    rig.press(&[0x1e]);
    assert_eq!(rig.regs.ip, rig.bios.rom.key_posted);
    // A disk: the timer's interrupt posts it, and else the call does.
    for ticks in [false, true] {
        (rig.regs.eax, rig.regs.ecx, rig.regs.edx, rig.regs.es, rig.regs.ebx) = (0x0201, 2, 0x80, 0x4000, 0);
        rig.call(Service::Disk);
        assert_eq!((rig.regs.ip, rig.regs.ax()), (rig.bios.rom.drive_wait[1], 0x0201));
        if ticks {
            let asked = rig.regs;
            rig.call(Service::Tick);
            assert_eq!(rig.regs.ip, rig.bios.rom.tick_posts[1]);
            rig.regs = asked;
        }
        rig.call(Service::DriveWaited);
        assert_eq!(rig.regs.ip == rig.bios.rom.drive_posted, ticks);
        assert!(!rig.fails(Service::DriveReady, 0x0201));
        assert_eq!(rig.bda16(0x40000), 1);
    }
}
