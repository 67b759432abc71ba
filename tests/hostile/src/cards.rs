//! Drivers of network cards that mean harm: rings whose descriptors are nearly right, over frames that are nearly right,
//! moved while they are used. All cards are on one hub with a NAT that leads nowhere (`restrict=on`): what one sends the
//! others get, and the NAT answers.
use crate::devices::{BUFFERS, Driver, RINGS, Window};
use mynah_oracle::rng::Rng;

/// Bytes between two buffers, and how many there are.
const BUFFER: u64 = 0x1000;
const COUNT: u64 = 64;
/// Queues of a driver, and entries of one.
const ENTRIES: u64 = 64;

/// Which card is behind a window: vendor and device.
const E1000: u32 = 0x100e_8086;
const E1000E: u32 = 0x10d3_8086;
const RTL8139: u32 = 0x8139_10ec;
const VIRTIO: [u32; 2] = [0x1000_1af4, 0x1041_1af4];

impl Driver {
    /// What is done to a network card, if the window is one's.
    pub(crate) fn card(&mut self, w: &Window) -> bool {
        match w.id {
            E1000 | E1000E if !w.io && w.len >= 0x2_0000 => self.e1000(w),
            RTL8139 => self.rtl8139(w),
            id if VIRTIO.contains(&id) && !w.io && w.len >= 0x4000 => self.virtio_net(w),
            _ => return false,
        }
        true
    }

    /// Frames in buffers: right ones, of which some bytes are others.
    pub(crate) fn frames(&mut self) {
        for _ in 0..1 + self.rng.below(8) {
            let mut bytes = frame(&mut self.rng);
            for _ in 0..self.rng.below(4) {
                let at = self.rng.below(bytes.len() as u64) as usize;
                bytes[at] = self.rng.u32() as u8;
            }
            let at = BUFFERS + BUFFER * self.rng.below(COUNT);
            self.memory.write(at, &bytes);
        }
    }

    /// Where a buffer is, and its length.
    fn buffer(&mut self) -> (u64, u64) {
        let at = if self.rng.chance(95) { BUFFERS + BUFFER * self.rng.below(COUNT) } else { self.address() };
        let len = match self.rng.below(8) {
            0 => self.rng.below(0x10),
            1 => self.rng.below(0x1_0000),
            2 => self.value(),
            _ => 42 + self.rng.below(1500),
        };
        (at, len)
    }

    fn ring(&mut self) -> u64 {
        RINGS + 0x1000 * self.rng.below(16)
    }

    fn descriptors(&mut self, ring: u64, mut make: impl FnMut(&mut Self) -> [u64; 2]) {
        let first = self.rng.below(ENTRIES);
        for n in 0..self.rng.below(ENTRIES) {
            let [low, high] = make(self);
            let at = ring + 16 * ((first + n) % ENTRIES);
            self.memory.write(at, &low.to_le_bytes());
            self.memory.write(at + 8, &high.to_le_bytes());
        }
    }

    /// Both kinds of descriptors for sending, contexts among them; those for receiving are addresses.
    fn e1000(&mut self, w: &Window) {
        // Others reset it all the time.
        if self.rng.chance(5) || self.read(w, 0x2808, 4) == 0 || self.read(w, 0x100, 4) & 2 == 0 {
            let (rctl, rfctl) = (0x0400_801a | self.rng.u32() & self.rng.u32(), self.rng.below(2) << 15);
            let (psrctl, rxcsum) = (self.rng.u64(), self.rng.below(0x4000));
            let (mrqc, more) = (self.rng.below(2) | self.rng.u64() & 0x3f_0000, self.rng.u64());
            let steps = [
                (0x100, u64::from(rctl)),
                (0x5008, rfctl),
                (0x2170, psrctl),
                (0x5000, rxcsum),
                (0x5818, mrqc),
                (0x5c00 + 4 * self.rng.below(42), more),
                (0x400, 0x10a),
                (0x38, self.rng.pick(&[0x8100, 0x8100, 0x0800])),
                (0, 0x240 | self.rng.u64() & 0x4000_0000),
                (0xd0, self.rng.u64()),
                (0xc4, self.rng.below(0x200)),
                (0x2820, self.rng.below(0x40)),
            ];
            steps.into_iter().for_each(|(at, value)| self.write(w, at, 4, value));
            for base in [0x2800, 0x2900, 0x3800, 0x3900] {
                let ring = self.ring();
                let len = self.rng.pick(&[0x400, 0x400, 0x400, 0x80, 0, 0xf_ff80]);
                self.write(w, base, 4, ring);
                let high = u64::from(self.rng.chance(2));
                self.write(w, base + 4, 4, high);
                self.write(w, base + 8, 4, len);
                let head = if self.rng.chance(80) { 0 } else { self.rng.below(0x100) };
                self.write(w, base + 0x10, 4, head);
            }
        }
        self.frames();
        let queue = 0x100 * self.rng.below(2);
        let ring = self.read(w, 0x2800 + queue, 4);
        self.descriptors(ring, |d| [d.buffer().0, d.buffer().0]);
        let ring = self.read(w, 0x3800 + queue, 4);
        self.descriptors(ring, |d| {
            let (at, len) = d.buffer();
            let command = d.rng.below(0x100) << 24;
            match d.rng.below(4) {
                // A context: where checksums are, the length of all data, that of headers, that of a segment.
                0 => {
                    let places = d.rng.u64() & 0x003f_3f3f_003f_3f3f;
                    let lengths = d.rng.below(256) << 40 | d.rng.below(2000) << 48;
                    let kind = d.rng.u64() & 0x8f00_0000 | 1 << 29;
                    [places, (len & 0xf_ffff) | kind | lengths]
                }
                1 => [at, len & 0xffff | command & !(1 << 29) | d.rng.u64() << 32],
                _ => [at, len & 0xf_ffff | command | 1 << 20 | 1 << 29 | d.rng.below(0x400) << 40],
            }
        });
        for base in [0x2818, 0x3818, 0x2918, 0x3918] {
            let tail = self.rng.below(ENTRIES + 1);
            self.write(w, base, 4, tail);
        }
        self.read(w, 0xc0, 4);
    }

    /// Both modes: four buffers and a ring of bytes, or descriptors.
    fn rtl8139(&mut self, w: &Window) {
        self.frames();
        if self.rng.chance(5) || self.read(w, 0x37, 1) & 0x0c != 0x0c {
            let (rcr, tcr, plus) = (self.rng.u64() | 0xf, self.rng.u64(), self.rng.below(0x80));
            let rings = [self.ring(), self.ring(), self.ring()];
            let steps: [(u64, u8, u64); 9] = [
                (0x50, 1, 0xc0),
                (0xe0, 2, plus),
                (0x37, 1, 0x0c),
                (0x44, 4, rcr),
                (0x40, 4, tcr),
                (0x3c, 2, self.rng.below(0x1_0000)),
                (0x20, 4, rings[0]),
                (0x28, 4, rings[1]),
                (0xe4, 4, rings[2]),
            ];
            steps.into_iter().for_each(|(at, size, value)| self.write(w, at, size, value));
            for at in [0x24, 0x2c, 0xe8] {
                self.write(w, at, 4, 0);
            }
            let ring = self.address();
            self.write(w, 0x30, 4, ring);
        }
        let ring = self.rng.pick(&[0x20, 0x28, 0xe4]);
        let ring = self.read(w, ring, 4);
        self.descriptors(ring, |d| {
            let (at, len) = d.buffer();
            // OWN, EOR, FS and LS, LGSEN; the segment's length or checksums; the length.
            let bits =
                d.rng.pick(&[0xb000_0000, 0x8000_0000, 0xf000_0000, 0xb800_0000, 0xa000_0000, 0x9000_0000]);
            let options = bits | len & 0x1fff | d.rng.below(0x800) << 16 & 0x07ff_0000;
            [options | d.rng.below(0x4_0000) << 32, at]
        });
        if self.rng.chance(30) {
            for n in 0..4 {
                let (at, len) = self.buffer();
                self.write(w, 0x20 + 4 * n, 4, at);
                self.write(w, 0x10 + 4 * n, 4, len & 0x1fff);
            }
        }
        let (poll, read) = (self.rng.pick(&[0x40, 0x80, 0xc0, 0xc1]), self.rng.below(0x1_0000));
        self.write(w, 0xd9, 1, poll);
        self.write(w, 0x38, 2, read);
        let seen = self.read(w, 0x3e, 2);
        self.write(w, 0x3e, 2, seen);
    }

    /// Buffers for frames, frames behind headers that are nearly right, and commands.
    fn virtio_net(&mut self, w: &Window) {
        if self.rng.chance(10) || self.read(w, 20, 1) & 0x44 != 4 {
            self.set_up_virtio(w);
        }
        self.frames();
        let queue = self.net_chains();
        self.write(w, 0x3000 + 4 * queue, 2, queue);
    }

    /// Some chains in a queue of virtio-net's; which queue.
    pub(crate) fn net_chains(&mut self) -> u64 {
        let queue = self.rng.below(5);
        for _ in 0..1 + self.rng.below(8) {
            self.net_chain(queue);
        }
        queue
    }

    fn net_chain(&mut self, queue: u64) {
        let ring = RINGS + 0x1000 * queue;
        let head = self.rng.below(12);
        match queue {
            0 | 2 => {
                for n in 0..4 {
                    let (at, _) = self.buffer();
                    let len = self.rng.pick(&[1526, 1526, 4096, 12, 8, 70_000]);
                    let more = u64::from(n < 3 && self.rng.chance(30));
                    self.entry(ring, head + n, at, len, 2 | more, head + n + 1);
                }
            }
            1 | 3 => {
                let place = BUFFERS + BUFFER * COUNT;
                self.net_header(place);
                let (at, len) = self.buffer();
                let length = self.rng.pick(&[12, 12, 12, 10, 20]);
                self.entry(ring, head, place, length, 1, head + 1);
                let parts = self.rng.below(3);
                for n in 0..parts {
                    self.entry(ring, head + 1 + n, at + 600 * n, 600, 1, head + 2 + n);
                }
                self.entry(ring, head + 1 + parts, at + 600 * parts, len, 0, 0);
            }
            _ => {
                let place = BUFFERS + BUFFER * (COUNT + 1);
                let command = self.rng.below(8) | self.rng.below(8) << 8 | self.rng.u64() << 16;
                self.memory.write(place, &command.to_le_bytes());
                for n in 1..32 {
                    let more = if self.rng.chance(50) { self.rng.below(8) } else { self.rng.u64() };
                    self.memory.write(place + 8 * n, &more.to_le_bytes());
                }
                let len = self.rng.below(0x100);
                self.entry(ring, head, place, 2, 1, head + 1);
                self.entry(ring, head + 1, place + 2, len, 1, head + 2);
                self.entry(ring, head + 2, BUFFERS + BUFFER * (COUNT + 2), 1, 2, 0);
            }
        }
        let index = self.memory.read_u16(ring + 0x402);
        self.memory.write_u16(ring + 0x404 + 2 * u64::from(index % 16), head as u16);
        let more = if self.rng.chance(1) { self.rng.below(0x1_0000) as u16 } else { 1 };
        self.memory.write_u16(ring + 0x402, index.wrapping_add(more));
    }

    fn entry(&mut self, ring: u64, n: u64, at: u64, len: u64, flags: u64, next: u64) {
        let odd = self.rng.chance(3);
        let (at, next) = if odd { (self.address(), self.rng.below(40)) } else { (at, next) };
        self.memory.write(ring + 16 * n, &at.to_le_bytes());
        let rest = len & 0xffff_ffff | flags << 32 | next << 48;
        self.memory.write(ring + 16 * n + 8, &rest.to_le_bytes());
    }

    /// What is left to the card: a checksum, segments of TCP or UDP.
    fn net_header(&mut self, at: u64) {
        let mut header = [0; 12];
        if self.rng.chance(70) {
            header[0] = self.rng.below(4) as u8;
            header[1] = self.rng.pick(&[0, 1, 4, 3, 5, 0x81]);
            let words = [
                self.rng.pick(&[54, 66, 42, 14]),
                self.rng.pick(&[1448, 100, 1, 0]),
                self.rng.pick(&[34, 34, 54, 14]),
                self.rng.pick(&[16, 6, 16]),
            ];
            for (n, word) in words.into_iter().enumerate() {
                let word = if self.rng.chance(5) { self.rng.u32() as u16 } else { word };
                header[2 + 2 * n..4 + 2 * n].copy_from_slice(&word.to_le_bytes());
            }
        }
        self.memory.write(at, &header);
    }
}

/// A frame that is right but for its checksums, for all or for the gateway.
fn frame(rng: &mut Rng) -> Vec<u8> {
    let mut bytes = match rng.below(2) {
        0 => vec![0xff; 6],
        _ => vec![0x52, 0x55, 10, 0, 2, 2],
    };
    bytes.extend([0x52, 0x54, 0, 0x12, 0x34, 0x50 | rng.below(16) as u8]);
    if rng.chance(10) {
        bytes.extend([0x81, 0, 0, rng.below(8) as u8]);
    }
    let len = rng.below(1400) as usize;
    match rng.below(4) {
        0 => {
            bytes.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 1 + rng.below(2) as u8]);
            bytes.extend([0x52, 0x54, 0, 0x12, 0x34, 0x56, 10, 0, 2, 15, 0, 0, 0, 0, 0, 0, 10, 0, 2, 2]);
        }
        1 => {
            bytes.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
            bytes.extend((len as u16).to_be_bytes());
            bytes.extend([
                rng.pick(&[6, 17, 58, 0]),
                255,
                0xfe,
                0xc0,
                0,
                0,
                0,
                0,
                0,
                0,
                0,
                0,
                0,
                0,
                0,
                0,
                0,
                0x15,
            ]);
            bytes.extend([0xfe, 0xc0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2]);
            bytes.extend((0..len).map(|_| rng.u32() as u8));
        }
        kind => {
            let protocol = if kind == 2 { 6 } else { rng.pick(&[17, 1]) };
            bytes.extend([8, 0, 0x45, 0]);
            bytes.extend((20 + 20 + len as u16).to_be_bytes());
            bytes.extend([0, 1, 0, 0, 64, protocol, 0, 0, 10, 0, 2, 15, 10, 0, 2, rng.pick(&[2, 3, 255])]);
            let from = bytes.len() - 20;
            let sum = checksum(&bytes[from..]);
            bytes[from + 10..from + 12].copy_from_slice(&sum.to_be_bytes());
            bytes.extend([4, 0, 0, rng.pick(&[53, 67, 69, 80]), 0, 0, 0, 1, 0, 0, 0, 1, 0x50]);
            bytes.extend([rng.below(64) as u8, 0x10, 0, 0, 0, 0, 0]);
            bytes.extend((0..len).map(|n| n as u8));
        }
    }
    bytes
}

/// The checksum of a header (RFC 1071).
fn checksum(header: &[u8]) -> u16 {
    let sum: u32 = header.as_chunks::<2>().0.iter().map(|w| u32::from(u16::from_be_bytes(*w))).sum();
    !((sum & 0xffff) + (sum >> 16)) as u16
}
