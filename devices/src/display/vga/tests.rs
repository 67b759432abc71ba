//! The adapter as its guests see it, and what shows on its screen.
use super::*;
use crate::clock::{ManualClock, SECOND};
use crate::display::{Display, dump};
use crate::pci::DevFn;
use crate::pci::testing::Pc;
use mynah_mmu::{Page, Target};

const AT: DevFn = DevFn::new(2, 0);
const LFB: u64 = 0xe000_0000;
const BAR2: u64 = 0xfeb0_0000;

struct Machine {
    pc: Pc,
    clock: ManualClock,
    vga: Arc<Vga>,
}

/// A machine with BARs set up, as firmware leaves it.
fn machine() -> Machine {
    let (pc, clock) = (Pc::new(), ManualClock::new());
    let ram = DeviceRam::new(16 * MIB).unwrap();
    let function = pc.bus.function(AT, config(16 * MIB));
    let edid = Some(edid::block(1280, 800));
    let vga = Vga::new(function, pc.memory.clone(), ram, Arc::new(clock.clone()), edid);
    pc.bus.attach(AT, vga.clone());
    vga.attach(&pc.ports);
    pc.write(AT, 0x10, 4, LFB as u32);
    pc.write(AT, 0x18, 4, BAR2 as u32);
    pc.write(AT, 0x04, 2, 3);
    Machine { pc, clock, vga }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.pc.ports.clear();
        self.pc.memory.unmap_devices();
    }
}

impl Machine {
    fn out(&self, port: u16, value: u8) {
        self.pc.ports.write(port, 1, value.into());
    }
    fn inb(&self, port: u16) -> u8 {
        self.pc.ports.read(port, 1) as u8
    }
    /// Writes a register of an index and data pair.
    fn set(&self, port: u16, index: u8, value: u8) {
        self.pc.ports.write(port, 2, u32::from(value) << 8 | u32::from(index));
    }
    fn attribute(&self, index: u8, value: u8) {
        self.inb(0x3da);
        [index, value, 0x20].into_iter().for_each(|v| self.out(0x3c0, v));
    }
    fn mode(&self, mode: u8) {
        for status in [0x3ba, 0x3da] {
            self.inb(status);
        }
        modes::writes(mode).into_iter().for_each(|(port, value)| self.out(port, value));
    }
    fn vbe(&self, index: u16, value: u16) {
        self.pc.ports.write(0x1ce, 2, index.into());
        self.pc.ports.write(0x1cf, 2, value.into());
    }
    fn linear(&self, x: u16, y: u16, bits: u16) {
        for (index, value) in [(4, 0), (1, x), (2, y), (3, bits), (4, 0x41)] {
            self.vbe(index, value);
        }
        [0x3ba, 0x3da].into_iter().for_each(|status| _ = self.inb(status));
        self.out(0x3c0, 0x20);
    }
    fn poke(&self, at: u64, value: u8) {
        self.pc.memory.phys_write(at, 1, value.into());
    }
    fn screen(&self) -> Screen {
        let mut screen = Screen::default();
        self.vga.refresh(&mut screen);
        screen
    }
    /// A font of 16 lines whose glyphs are as their codes: seen, they are all different.
    fn font(&self, offset: u64) {
        [(2, 4), (4, 7)].into_iter().for_each(|(n, v)| self.set(0x3c4, n, v));
        [(5, 0), (6, 4)].into_iter().for_each(|(n, v)| self.set(0x3ce, n, v));
        for code in 0..256_u64 {
            for line in 0..16_u64 {
                let row = match (code, line) {
                    (0x20, _) => 0,
                    (0xdb, _) => 0xff,
                    (0xc4, n) => 0xff * u8::from(n == 7),
                    (_, 0 | 15) => 0,
                    (_, 1 | 14) => 0x7e,
                    (_, n) => 0x42 | (code as u8 >> ((n - 2) / 3 * 2) & 3) << (2 + (offset != 0) as u8),
                };
                self.poke(0xa_0000 + offset + code * 32 + line, row);
            }
        }
    }
    /// Characters in all colours, once the font is there and the mode set again.
    fn text(&self, mode: u8) {
        self.mode(mode);
        self.font(0);
        self.font(0x4000);
        self.mode(mode);
        let base = if mode == 7 { 0xb_0000 } else { 0xb_8000 };
        let columns = if mode == 1 { 40 } else { 80 };
        for n in 0..columns * 25 {
            let (x, y) = (n % columns, n / columns);
            let code = if y == 24 { 0x20 } else { (x + 16 * y) as u8 };
            self.poke(base + 2 * n, code);
            self.poke(base + 2 * n + 1, (x + 80 * (y % 8)) as u8);
        }
        for (x, b) in b"line of text".iter().enumerate() {
            self.poke(base + 2 * (columns * 24 + 3 + x as u64), *b);
            self.poke(base + 2 * (columns * 24 + 3 + x as u64) + 1, if mode == 7 { 1 } else { 0x1e });
        }
        self.set(if mode == 7 { 0x3b4 } else { 0x3d4 }, 0x0f, (columns * 2 + 5) as u8);
    }
    /// A pattern in each of the planes: bars, steps, a ramp.
    fn planar(&self, width: u64, height: u64) {
        for plane in 0..4 {
            self.set(0x3c4, 2, 1 << plane);
            for y in 0..height {
                for x in 0..width / 8 {
                    let at = y * width / 8 + x;
                    let v = if y < height / 2 {
                        0xff * u8::from((x * 8 * 16 / width) >> plane & 1 != 0)
                    } else {
                        (x as u8).wrapping_mul(plane as u8 * 2 + 1) ^ y as u8
                    };
                    self.poke(0xa_0000 + at, v);
                }
            }
        }
        self.set(0x3c4, 2, 15);
    }
}

/// FNV-1a of a picture's size and pixels.
fn hash(surface: &Surface) -> u64 {
    let words = [surface.width() as u32, surface.height() as u32];
    words.iter().chain(surface.pixels()).fold(0xcbf2_9ce4_8422_2325, |h, word| {
        word.to_le_bytes().iter().fold(h, |h, b| (h ^ u64::from(*b)).wrapping_mul(0x100_0000_01b3))
    })
}

/// A name, and what makes the picture.
type Scene = (&'static str, fn(&Machine));

/// All kinds of pictures.
const SCENES: &[Scene] = &[
    ("text", |m| m.text(3)),
    ("text-40", |m| m.text(1)),
    ("text-mono", |m| m.text(7)),
    ("text-two-fonts", |m| {
        m.text(3);
        m.set(0x3c4, 3, 0x04);
        m.attribute(0x12, 7);
    }),
    ("text-8-dots-blink-dark", |m| {
        m.text(3);
        m.set(0x3c4, 1, 1);
        m.clock.advance(17 * m.vga.state.lock().regs.frame_time());
    }),
    ("text-split-and-scrolled", |m| {
        m.text(3);
        // From the third row on, half a character lower and three dots to the left; rows 12 and on again from 0.
        [(0x0d, 160), (8, 8), (0x18, 199), (7, 0x0f), (9, 0x0f)]
            .into_iter()
            .for_each(|(n, v)| m.set(0x3d4, n, v));
        m.attribute(0x10, 0x2c);
        m.attribute(0x13, 2);
    }),
    ("cga-4", |m| {
        m.mode(4);
        for y in 0..200 {
            for x in 0..80 {
                let v = if y < 100 { [0, 0x55, 0xaa, 0xff][x as usize / 20] } else { (x ^ y) as u8 };
                m.poke(0xb_8000 + (y & 1) * 0x2000 + y / 2 * 80 + x, v);
            }
        }
    }),
    ("cga-2", |m| {
        m.mode(6);
        for y in 0..200 {
            for x in 0..80 {
                m.poke(0xb_8000 + (y & 1) * 0x2000 + y / 2 * 80 + x, ((x * y) >> 3) as u8);
            }
        }
    }),
    ("planar-320", |m| {
        m.mode(0x0d);
        m.planar(320, 200);
    }),
    ("planar-640", |m| {
        m.mode(0x12);
        m.planar(640, 480);
    }),
    ("mode-13h", |m| {
        m.mode(0x13);
        for at in 0..64_000 {
            m.poke(0xa_0000 + at, (at % 320 + at / 320) as u8);
        }
    }),
    ("mode-x-panned", |m| {
        m.mode(0x14);
        for plane in 0..4 {
            m.set(0x3c4, 2, 1 << plane);
            for at in 0..16_000 {
                m.poke(0xa_0000 + at, (at % 80 * 4 + plane + at / 80) as u8);
            }
        }
        m.set(0x3d4, 0x0d, 80 * 3 + 1);
        m.attribute(0x13, 2);
    }),
    ("linear-8", |m| {
        m.mode(0x13);
        m.linear(320, 240, 8);
        (0..320 * 240).for_each(|at| m.poke(LFB + at, (at % 320 / 2 + at / 320) as u8));
    }),
    ("linear-4", |m| {
        m.mode(0x12);
        m.linear(320, 200, 4);
        m.planar(320, 200);
    }),
    ("linear-16", |m| {
        m.linear(320, 240, 16);
        for at in 0..320 * 240 {
            m.pc.memory.phys_write(LFB + 2 * at, 2, (at % 320 / 5) << 5 | (at / 320 / 8) << 11 | (at % 32));
        }
    }),
    ("linear-15", |m| {
        m.linear(320, 240, 15);
        for at in 0..320 * 240 {
            m.pc.memory.phys_write(LFB + 2 * at, 2, (at % 320 / 10) << 5 | (at / 320 / 8) << 10 | (at % 32));
        }
    }),
    ("linear-24", |m| {
        m.linear(320, 240, 24);
        for at in 0..320 * 240 {
            for (n, v) in [at % 320, at / 320, 0x80].into_iter().enumerate() {
                m.poke(LFB + 3 * at + n as u64, v as u8);
            }
        }
    }),
    ("linear-32-in-a-larger-picture", |m| {
        m.linear(320, 240, 32);
        [(6, 400), (8, 20), (9, 10)].into_iter().for_each(|(n, v)| m.vbe(n, v));
        for at in 0..400 * 300 {
            m.pc.memory.phys_write(LFB + 4 * at, 4, (at % 400 / 2) << 16 | (at / 400) << 8 | 0x40);
        }
    }),
    ("bank-by-bank", |m| {
        m.mode(0x13);
        m.linear(640, 480, 8);
        for at in 0..640 * 480 {
            if at % 0x1_0000 == 0 {
                m.vbe(5, (at >> 16) as u16);
            }
            m.poke(0xa_0000 + at % 0x1_0000, (at % 640 / 3 + at / 640) as u8);
        }
    }),
    ("dark", |m| {
        m.text(3);
        m.inb(0x3da);
        m.out(0x3c0, 0);
    }),
];

/// What `SCENES` look like. `MYNAH_PICTURES=DIRECTORY` has them written as PNG files, to be looked at.
const PICTURES: &[(usize, usize, u64)] = &[
    (720, 400, 0x91bb_4dc1_123b_aeca), // text
    (720, 400, 0xf0e8_b797_b21c_f004), // text-40
    (720, 400, 0x177c_ac02_4f46_e864), // text-mono
    (720, 400, 0x2e29_dbf0_da3b_ce94), // text-two-fonts
    (640, 400, 0x833b_1eb6_7cbc_aef1), // text-8-dots-blink-dark
    (720, 400, 0xdf76_bf5a_4744_831e), // text-split-and-scrolled
    (640, 400, 0xa62d_1582_a3cf_4494), // cga-4
    (640, 400, 0x6e84_c383_4e1a_b374), // cga-2
    (640, 400, 0xd799_da58_6d71_1f34), // planar-320
    (640, 480, 0xfd5f_59c0_499e_dc84), // planar-640
    (640, 400, 0x0bf7_bad3_b4dc_aa14), // mode-13h
    (640, 400, 0xbe4b_67e0_af33_9574), // mode-x-panned
    (320, 240, 0xf0f1_1219_c4d8_cfca), // linear-8
    (320, 200, 0x8676_182b_30e8_1062), // linear-4
    (320, 240, 0xfd24_e61c_37c7_e71a), // linear-16
    (320, 240, 0x4b63_591f_bf80_b91a), // linear-15
    (320, 240, 0xcc81_1c7e_1286_671a), // linear-24
    (320, 240, 0xc80a_eea5_93a5_a25a), // linear-32-in-a-larger-picture
    (640, 480, 0x2b3f_5962_6304_ff05), // bank-by-bank
    (720, 400, 0x37e2_27ad_34a6_21c4), // dark
];

#[test]
fn all_kinds_of_pictures_look_as_they_did() {
    let pictures = std::env::var("MYNAH_PICTURES").ok();
    let mut seen = Vec::new();
    for (name, make) in SCENES {
        let m = machine();
        make(&m);
        let screen = m.screen();
        let s = screen.surface();
        if let Some(directory) = &pictures {
            let mut file = std::fs::File::create(format!("{directory}/{name}.png")).unwrap();
            dump::png(s, &mut file).unwrap();
        }
        seen.push((s.width(), s.height(), hash(s)));
    }
    let named = |all: &[(usize, usize, u64)]| -> String {
        let names = SCENES.iter().map(|(name, _)| name);
        names.zip(all).map(|(name, (w, h, hash))| format!("({w}, {h}, {hash:#018x}), // {name}\n")).collect()
    };
    assert_eq!(named(&seen), named(PICTURES), "\n{}", named(&seen));
}

#[test]
fn pixels_are_where_the_modes_have_them() {
    let m = machine();
    // 320 columns in 256 colours: two dots and two lines for each.
    m.mode(0x13);
    m.poke(0xa_0000 + 320 * 7 + 5, 0x0f);
    let s = m.screen();
    let lit: Vec<_> = (0..400).flat_map(|y| (0..640).map(move |x| (x, y))).collect();
    let lit: Vec<_> = lit.into_iter().filter(|(x, y)| s.surface().row(*y)[*x] != 0).collect();
    assert_eq!(lit, [(10, 14), (11, 14), (10, 15), (11, 15)]);
    // Sixteen colours: one bit in each plane.
    m.mode(0x12);
    m.pc.memory.phys_read(0xa_0000 + 80 * 479 + 79, 1);
    m.set(0x3ce, 8, 0x01);
    m.poke(0xa_0000 + 80 * 479 + 79, 0xff);
    assert_eq!(m.screen().surface().row(479)[639], 0x00ff_ffff);
    // A row of a linear mode.
    m.linear(64, 64, 32);
    m.pc.memory.phys_write(LFB + 4 * (64 * 63 + 63), 4, 0xff12_3456);
    assert_eq!(m.screen().surface().row(63)[63], 0x0012_3456);
}

#[test]
fn a_screen_before_any_mode_is_dark_and_has_a_size() {
    let m = machine();
    let screen = m.screen();
    assert_eq!((m.vga.size(), screen.surface().width()), ((720, 400), 720));
    assert!(screen.surface().pixels().iter().all(|p| *p == 0));
}

#[test]
fn text_is_had_as_characters() {
    let m = machine();
    m.text(3);
    let text = m.vga.text().unwrap();
    assert_eq!((text.columns, text.cells.len(), text.cursor), (80, 2000, Some((5, 2))));
    assert_eq!(text.rows().nth(24).unwrap(), "   line of text");
    assert_eq!(text.rows().next().unwrap().chars().nth(0x41), Some('A'));
    assert_eq!(text.cells[81].attribute, 81);
    // Scrolled by a row, without a cursor.
    [(0x0d, 80), (0x0a, 0x20)].into_iter().for_each(|(n, v)| m.set(0x3d4, n, v));
    let text = m.vga.text().unwrap();
    assert_eq!((text.rows().nth(23).unwrap().as_str(), text.cursor), ("   line of text", None));
    m.linear(640, 480, 32);
    assert!(m.vga.text().is_none());
}

#[test]
fn the_crtc_can_be_protected() {
    let m = machine();
    m.mode(3);
    assert_eq!(m.inb(0x3b5), 0xff, "it is at 3D4h");
    m.set(0x3d4, 0x11, 0x8e);
    for index in 0..8 {
        m.set(0x3d4, index, 0);
    }
    m.out(0x3d4, 1);
    assert_eq!(m.inb(0x3d5), 79);
    m.out(0x3d4, 7);
    assert_eq!(m.inb(0x3d5), 0x0f, "but for bit 8 of the line compare");
    m.out(0x3c2, 0x66);
    assert_eq!((m.inb(0x3d5), m.inb(0x3b5)), (0xff, 0x0f));
}

#[test]
fn the_attribute_controller_takes_index_and_data_in_turns() {
    let m = machine();
    m.mode(3);
    m.inb(0x3da);
    m.out(0x3c0, 0x05);
    m.out(0x3c0, 0xff);
    m.out(0x3c0, 0x25);
    assert_eq!((m.inb(0x3c0), m.inb(0x3c1)), (0x25, 0x3f), "a colour has six bits");
    m.inb(0x3da);
    m.out(0x3c0, 0x14);
    assert_eq!(m.inb(0x3c1), 0, "reading the status had the index come next");
    assert_eq!(m.screen().surface().pixels().iter().max(), Some(&0), "the palette is the CPU's");
}

#[test]
fn the_dac_counts_through_its_colours() {
    let m = machine();
    m.out(0x3c8, 254);
    (1..=9).for_each(|v| m.out(0x3c9, v | 0xc0));
    assert_eq!(m.inb(0x3c7), 0);
    m.out(0x3c7, 255);
    assert_eq!(m.inb(0x3c7), 3);
    assert_eq!([0; 6].map(|_| m.inb(0x3c9)), [4, 5, 6, 7, 8, 9], "six bits each, and from 255 on to 0");
    // With eight bits, in a mode that says so.
    [(1, 64), (2, 64), (3, 8), (4, 0x61)].into_iter().for_each(|(n, v)| m.vbe(n, v));
    m.out(0x3c0, 0x20);
    m.out(0x3c8, 7);
    [0xfe, 0x81, 0x40].into_iter().for_each(|v| m.out(0x3c9, v));
    m.poke(LFB, 7);
    assert_eq!(m.screen().surface().pixels()[0], 0x00fe_8140);
    m.out(0x3c6, 0xf8);
    assert_eq!(m.screen().surface().pixels()[0], 0x0007_0809, "the mask leaves colour 0");
}

#[test]
fn status_1_follows_guest_time() {
    let m = machine();
    m.mode(3);
    let frame = m.vga.state.lock().regs.frame_time();
    let mut seen = Vec::new();
    for _ in 0..449 {
        seen.push(m.inb(0x3da) & 8 != 0);
        m.clock.advance(frame / 449);
    }
    assert_eq!(seen.iter().filter(|r| **r).count(), 2);
    assert!((SECOND / 71..SECOND / 70).contains(&frame), "{frame}");
}

#[test]
fn the_framebuffer_is_ram_wherever_bar_0_is() {
    let m = machine();
    assert_eq!(m.pc.read(AT, 0x00, 4), 0x1111_1234);
    assert_eq!((m.pc.read(AT, 0x08, 4) >> 8, m.pc.read(AT, 0x2c, 4)), (0x03_0000, 0x1100_1af4));
    m.pc.memory.phys_write(LFB + 0xff_fffc, 4, 0x1234_5678);
    assert!(matches!(m.pc.memory.lookup(LFB + 0xff_f000), Target::DeviceRam(_)));
    m.pc.write(AT, 0x10, 4, 0xd000_0000);
    assert_eq!(m.pc.memory.phys_read(LFB + 0xff_fffc, 4), 0xffff_ffff);
    assert_eq!(m.pc.memory.phys_read(0xd0ff_fffc, 4), 0x1234_5678);
    m.pc.write(AT, 0x04, 2, 0);
    assert!(matches!(m.pc.memory.lookup(0xd000_0000), Target::None));
}

#[test]
fn bar_2_has_the_monitor_and_the_same_registers() {
    let m = machine();
    let read = |at: u64, size: u8| m.pc.memory.phys_read(BAR2 + at, size);
    assert_eq!((read(0, 8), read(0x38, 1)), (0x00ff_ffff_ffff_ff00, 1280 & 0xff));
    m.mode(3);
    assert_eq!(read(0x40c, 1), 0x67, "3CCh");
    m.pc.memory.phys_write(BAR2 + 0x414, 2, 0x0a0e);
    assert_eq!((read(0x415, 1), m.inb(0x3d5)), (0x0a, 0x0a), "3D4h and 3D5h");
    for (index, value) in [(1, 1024), (2, 768), (3, 32), (4, 0x41)] {
        m.pc.memory.phys_write(BAR2 + 0x500 + 2 * index, 2, value);
    }
    assert_eq!((read(0x502, 4), read(0x50c, 2), read(0x514, 2)), (768 << 16 | 1024, 1024, 256));
    assert_eq!((read(0x600, 4), read(0x604, 4)), (8, 0x1e1e_1e1e));
    m.pc.memory.phys_write(LFB, 4, 0x1122_3344);
    m.pc.memory.phys_write(BAR2 + 0x604, 4, 0xbebe_bebe);
    m.out(0x3c0, 0x20);
    assert_eq!((read(0x604, 4), m.screen().surface().pixels()[0]), (0xbebe_bebe, 0x0033_2211));
}

#[test]
fn chained_memory_is_ram_until_something_changes_its_bytes() {
    let m = machine();
    m.mode(0x13);
    assert!(matches!(m.pc.memory.page_at(0xa_5000, true), Page::Device(..)));
    assert!(matches!(m.pc.memory.page_at(0xb_0000, true), Page::Other));
    m.poke(0xa_0123, 0x77);
    m.set(0x3c4, 4, 6);
    assert!(matches!(m.pc.memory.page_at(0xa_5000, true), Page::Other));
    m.set(0x3ce, 4, 3);
    assert_eq!(m.pc.memory.phys_read(0xa_0000 + 0x123 / 4, 1), 0x77, "plane 3 has it");
    m.linear(1024, 768, 8);
    m.vbe(5, 3);
    m.poke(0xa_0010, 0x55);
    assert_eq!(m.pc.memory.phys_read(LFB + 0x3_0010, 1), 0x55);
    Device::reset(&*m.vga, Reset::Board);
    assert!(matches!(m.pc.memory.page_at(0xa_5000, true), Page::Other));
}

#[test]
fn a_mode_begins_with_a_clear_picture_unless_it_is_to_be_kept() {
    let m = machine();
    for (keep, left) in [(0, 0), (0x80, 0xaa)] {
        m.linear(64, 64, 8);
        m.poke(LFB + 100, 0xaa);
        m.vbe(4, 0);
        m.vbe(4, 0x41 | keep);
        assert_eq!(m.pc.memory.phys_read(LFB + 100, 1), left);
    }
}

#[test]
fn only_what_has_changed_is_drawn_again() {
    let m = machine();
    m.linear(1024, 768, 32);
    let mut screen = Screen::default();
    assert_eq!(m.vga.refresh(&mut screen), [Rect { x: 0, y: 0, width: 1024, height: 768 }]);
    assert_eq!(m.vga.refresh(&mut screen), []);
    m.pc.memory.phys_write(LFB + 4 * (1024 * 100 + 7), 8, u64::MAX);
    m.pc.memory.phys_write(LFB + 4 * (1024 * 101 + 6), 4, u64::MAX);
    let mut other = Screen::default();
    m.vga.refresh(&mut other);
    assert_eq!(m.vga.refresh(&mut screen), [Rect { x: 6, y: 100, width: 3, height: 2 }]);
    assert_eq!(m.vga.refresh(&mut screen), []);
    assert_eq!(screen.surface(), other.surface());
    // A vCPU whose TLB lets it write goes on after the page was looked at: it is looked at again.
    let Page::Device(host, true) = m.pc.memory.page_at(LFB, true) else { panic!("no memory") };
    m.vga.refresh(&mut screen);
    // SAFETY: a page of the framebuffer, which the machine keeps.
    unsafe { host.cast::<u32>().write_volatile(5) };
    assert_eq!(m.vga.refresh(&mut screen), [Rect { x: 0, y: 0, width: 1, height: 1 }]);
    for (size, rects) in [(800, 1), (800, 0)] {
        m.vbe(1, size);
        assert_eq!(m.vga.refresh(&mut screen).len(), rects);
    }
}

#[test]
fn a_cursor_blinks_with_guest_time() {
    let m = machine();
    m.text(3);
    let mut screen = m.screen();
    let frame = m.vga.state.lock().regs.frame_time();
    m.clock.advance(8 * frame);
    let changed = m.vga.refresh(&mut screen);
    assert_eq!(changed, [Rect { x: 45, y: 45, width: 9, height: 2 }]);
    m.clock.advance(frame);
    assert_eq!(m.vga.refresh(&mut screen), []);
}

#[test]
fn what_was_saved_shows_the_same_on_another_machine() {
    for (name, make) in SCENES {
        let (one, other) = (machine(), machine());
        make(&one);
        other.mode(0x12);
        other.planar(640, 480);
        let saved = one.vga.save();
        let bytes = postcard::to_stdvec(&saved).unwrap();
        assert!(bytes.len() < 600_000, "{name}: {}", bytes.len());
        other.clock.jump(one.clock.now());
        Device::restore(&*other.vga, postcard::from_bytes(&bytes).unwrap()).map_err(|_| name).unwrap();
        other.pc.bus.follow();
        assert_eq!(one.screen().surface(), other.screen().surface(), "{name}");
        assert_eq!(postcard::to_stdvec(&other.vga.save()).unwrap(), bytes, "{name}");
        assert_eq!(one.pc.memory.phys_read(0xa_0010, 8), other.pc.memory.phys_read(0xa_0010, 8), "{name}");
    }
}
