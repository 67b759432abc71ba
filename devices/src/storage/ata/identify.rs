//! What a device says of itself: IDENTIFY DEVICE and IDENTIFY PACKET DEVICE (ATA/ATAPI-6, 8.15 and 8.16).
//!
//! The words are those of QEMU's devices, so that a guest that has been installed there finds the same.
use super::device::{Setup, State};
use super::disk::MULTIPLE;
use mynah_block::Drive;

struct Words([u16; 256]);

impl Words {
    /// Text, the first character in the high byte, filled with blanks.
    fn text(&mut self, at: usize, words: usize, text: &str) {
        let mut bytes =
            text.bytes().map(|b| if b.is_ascii() { b } else { b'?' }).chain(std::iter::repeat(b' '));
        let mut next = || bytes.next().unwrap_or(b' ');
        for word in &mut self.0[at..at + words] {
            *word = u16::from_be_bytes([next(), next()]);
        }
    }

    fn wide(&mut self, at: usize, value: u64, words: usize) {
        for i in 0..words {
            self.0[at + i] = (value >> (16 * i)) as u16;
        }
    }

    fn bytes(self) -> Vec<u8> {
        self.0.iter().flat_map(|w| w.to_le_bytes()).collect()
    }
}

fn common(setup: &Setup, state: &State) -> Words {
    let mut w = Words([0; 256]);
    w.text(10, 10, &setup.serial);
    w.0[20] = 3;
    w.0[21] = 512;
    w.0[22] = 4;
    w.text(23, 4, &setup.version);
    w.text(27, 20, &setup.model);
    w.0[48] = 1;
    w.0[53] = 7;
    // What of each kind of DMA there is, and which one is chosen.
    w.0[62] = 7 | state.single_dma << 8;
    w.0[63] = 7 | state.multi_dma << 8;
    w.0[88] = 0x3f | state.ultra_dma << 8;
    w.0[64] = 3;
    if setup.queue > 0 {
        // Queue depth; native command queuing.
        w.0[75] = u16::from(setup.queue) - 1;
        w.0[76] = 1 << 8;
    }
    if let Some(wwn) = setup.wwn {
        for at in [84, 87] {
            w.0[at] |= 1 << 8;
        }
        for i in 0..4 {
            w.0[108 + i] = (wwn >> (48 - 16 * i)) as u16;
        }
    }
    w
}

/// A disk's 512 bytes.
pub fn disk(setup: &Setup, state: &State, drive: &Drive, sectors: u64) -> Vec<u8> {
    let mut w = common(setup, state);
    let (default, now) = (setup.geometry, state.geometry());
    let set = |w: &mut Words, values: &[(usize, u16)]| values.iter().for_each(|(at, v)| w.0[*at] |= v);
    w.0[0] = 0x0040;
    w.0[1] = default.cylinders as u16;
    w.0[3] = default.heads as u16;
    w.0[4] = (512 * default.sectors) as u16;
    w.0[5] = 512;
    w.0[6] = default.sectors as u16;
    w.0[47] = 0x8000 | MULTIPLE;
    // Standby timers as the standard has them, IORDY, LBA, DMA.
    w.0[49] = 0x0b00;
    w.0[51] = 0x0200;
    w.0[52] = 0x0200;
    w.0[54] = now.cylinders as u16;
    w.0[55] = now.heads as u16;
    w.0[56] = now.sectors as u16;
    w.wide(57, now.capacity().into(), 2);
    w.0[59] = if state.multiple != 0 { 0x0100 | state.multiple } else { 0 };
    w.wide(60, sectors.min(0x0fff_ffff), 2);
    for at in 65..69 {
        w.0[at] = 120;
    }
    // Reads of what was trimmed are determinate.
    w.0[69] = 0x4000;
    w.0[80] = 0x00f0;
    w.0[81] = 0x0016;
    // NOP, write cache, SMART; flushes, 48-bit addresses.
    set(&mut w, &[(82, 0x4021), (83, 0x7400), (84, 0x4000), (86, 0x3400), (87, 0x4000)]);
    if setup.queue > 0 {
        // Logs, of which one says what has failed of a queue.
        set(&mut w, &[(84, 1 << 5), (87, 1 << 5)]);
    }
    w.0[85] = 0x4000 | u16::from(drive.write_cache()) << 5 | u16::from(state.smart);
    w.0[93] = 0x6001;
    w.wide(100, sectors, 4);
    // 2^n logical sectors in a physical one.
    w.0[106] = 0x6000 | (setup.physical_block / 512).max(1).trailing_zeros() as u16 & 0x0f;
    w.0[169] = 1;
    w.bytes()
}

/// A packet device's 512 bytes.
pub fn packet(setup: &Setup, state: &State) -> Vec<u8> {
    let mut w = common(setup, state);
    // A removable CD-ROM drive, DRQ within 50 us, packets of 12 bytes.
    w.0[0] = 0x85c0;
    w.0[49] = 0x0300;
    w.0[65] = 0xb4;
    w.0[66] = 0xb4;
    w.0[67] = 0x12c;
    w.0[68] = 0xb4;
    w.0[71] = 30;
    w.0[72] = 30;
    w.0[80] = 0x001e;
    w.bytes()
}
