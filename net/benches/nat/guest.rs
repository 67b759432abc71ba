//! A guest of a few lines: one TCP connection at a time over Ethernet and IPv4, whose data is not looked at.
use std::io::{self, IoSlice};
use std::time::{Duration, Instant};

pub const MAC: [u8; 6] = [0x52, 0x54, 0, 0x12, 0x34, 0x56];
pub const FIN: u8 = 1;
pub const SYN: u8 = 2;
pub const RST: u8 = 4;
pub const PSH: u8 = 8;
pub const ACK: u8 = 16;
/// Bytes of Ethernet, IPv4 and TCP headers without options.
pub const HEADERS: usize = 54;
/// The window is 2 MiB, scaled by this.
const SCALE: u8 = 5;
/// What is sent and not acknowledged is at most this.
const FLIGHT: u32 = 512 << 10;
/// What is not acknowledged is sent again after this.
const AGAIN: Duration = Duration::from_millis(250);

/// What carries frames between the guest and what is behind its card.
pub trait Link {
    /// The gateway, behind which this host is.
    fn gateway(&self) -> ([u8; 6], [u8; 4]);
    /// The most data in one segment, and what the guest says of it in its SYN.
    fn mss(&self) -> (usize, u16);
    /// Sends a frame, in two pieces.
    fn send(&mut self, head: &[u8], data: &[u8]);
    /// Waits until something can be done, `most` at most, and does it; tells each frame's head and length.
    fn turn(&mut self, most: Duration, frame: &mut dyn FnMut(&[u8], usize));
    /// Processor time that all but the guest's thread has taken.
    fn cpu(&self) -> Duration;
}

/// A connection.
#[derive(Default)]
pub struct Tcp {
    ports: (u16, u16),
    una: u32,
    nxt: u32,
    edge: u32,
    shift: u8,
    rcv_nxt: u32,
    told: u32,
    flags: u8,
    /// Bytes that have come.
    pub received: u64,
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

impl Tcp {
    /// Opens a connection from one port to another of this host's.
    pub fn connect(link: &mut dyn Link, from: u16, to: u16) -> io::Result<Self> {
        let mut tcp = Self { ports: (from, to), una: 100, nxt: 101, ..Self::default() };
        let [high, low] = link.mss().1.to_be_bytes();
        let end = Instant::now() + Duration::from_secs(20);
        while tcp.flags & SYN == 0 {
            tcp.segment(link, 100, SYN, &[2, 4, high, low, 1, 3, 3, SCALE], &[]);
            let again = Instant::now() + Duration::from_secs(1);
            while tcp.flags & SYN == 0 && Instant::now() < again {
                tcp.turn(link, Duration::from_millis(10));
            }
            if tcp.flags & RST != 0 || Instant::now() > end {
                return Err(io::Error::other("no connection through it"));
            }
        }
        tcp.acknowledge(link);
        Ok(tcp)
    }

    fn segment(&mut self, link: &mut dyn Link, seq: u32, flags: u8, options: &[u8], data: &[u8]) {
        let (mac, address) = link.gateway();
        let mut f = [0; HEADERS + 8];
        f[..6].copy_from_slice(&mac);
        f[6..12].copy_from_slice(&MAC);
        f[12..16].copy_from_slice(&[8, 0, 0x45, 0]);
        let len = 40 + options.len() + data.len();
        f[16..18].copy_from_slice(&(len as u16).to_be_bytes());
        f[20..30].copy_from_slice(&[0x40, 0, 64, 6, 0, 0, 10, 0, 2, 15]);
        f[30..34].copy_from_slice(&address);
        let sum: u32 = f[14..34].chunks(2).map(|c| u32::from(u16::from_be_bytes([c[0], c[1]]))).sum();
        let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
        f[24..26].copy_from_slice(&sum.to_be_bytes());
        f[34..36].copy_from_slice(&self.ports.0.to_be_bytes());
        f[36..38].copy_from_slice(&self.ports.1.to_be_bytes());
        f[38..42].copy_from_slice(&seq.to_be_bytes());
        f[42..46].copy_from_slice(&self.rcv_nxt.to_be_bytes());
        f[46..50].copy_from_slice(&[((20 + options.len()) << 2) as u8, flags, 0xff, 0xff]);
        f[HEADERS..HEADERS + options.len()].copy_from_slice(options);
        self.told = self.rcv_nxt;
        link.send(&f[..HEADERS + options.len()], data);
    }

    fn acknowledge(&mut self, link: &mut dyn Link) {
        self.segment(link, self.nxt, ACK, &[], &[]);
    }

    /// A frame has come.
    fn input(&mut self, head: &[u8]) {
        if head.len() < HEADERS || head[12..14] != [8, 0] || head[23] != 6 {
            return;
        }
        let ports = (u16::from_be_bytes([head[36], head[37]]), u16::from_be_bytes([head[34], head[35]]));
        if ports != self.ports {
            return;
        }
        let (seq, ack, flags) = (word(head, 38), word(head, 42), head[47]);
        let window = u32::from(u16::from_be_bytes([head[48], head[49]]));
        self.flags |= flags;
        if flags & SYN != 0 {
            let at = head[HEADERS..].windows(3).position(|o| o[..2] == [3, 3]);
            self.shift = at.map_or(0, |at| head[HEADERS + at + 2]);
            self.rcv_nxt = seq.wrapping_add(1);
            (self.una, self.edge) = (ack, ack.wrapping_add(window));
            return;
        }
        if ack.wrapping_sub(self.una) as i32 >= 0 {
            (self.una, self.edge) = (ack, ack.wrapping_add(window << self.shift));
        }
        let headers = 20 + usize::from(head[46] >> 4) * 4;
        let len = usize::from(u16::from_be_bytes([head[16], head[17]])).saturating_sub(headers) as u32;
        if seq == self.rcv_nxt {
            self.received += u64::from(len);
            self.rcv_nxt = seq.wrapping_add(len + u32::from(flags & FIN));
        } else if len > 0 {
            // It has lost something: it hears at once what is missing.
            self.told = self.rcv_nxt.wrapping_sub(1);
        }
    }

    /// One turn; what has come is acknowledged.
    fn turn(&mut self, link: &mut dyn Link, most: Duration) {
        link.turn(most, &mut |head, _| self.input(head));
        if self.told != self.rcv_nxt {
            self.acknowledge(link);
        }
    }

    /// Sends `total` bytes, each segment as long as it may be, and goes on until `done`.
    pub fn send(&mut self, link: &mut dyn Link, total: usize, data: &[u8], mut done: impl FnMut() -> bool) {
        let (first, mss) = (self.nxt, link.mss().0);
        let end = first.wrapping_add(total as u32);
        let mut progress = (self.una, Instant::now());
        while self.una != end || !done() {
            let flight = self.edge.wrapping_sub(self.una).min(FLIGHT);
            let room = self.una.wrapping_add(flight).wrapping_sub(self.nxt) as i32;
            let n = (end.wrapping_sub(self.nxt) as usize).min(mss);
            if n > 0 && room >= n as i32 {
                self.segment(link, self.nxt, ACK | PSH, &[], &data[..n]);
                self.nxt = self.nxt.wrapping_add(n as u32);
                self.turn(link, Duration::ZERO);
            } else {
                self.turn(link, Duration::from_millis(1));
            }
            if self.una != progress.0 || self.una == end {
                progress = (self.una, Instant::now());
            } else if progress.1.elapsed() > AGAIN {
                self.nxt = self.una;
                progress.1 = Instant::now();
            }
        }
    }

    /// Goes on until `total` bytes more have come.
    pub fn receive(&mut self, link: &mut dyn Link, total: u64) {
        let end = self.received + total;
        while self.received < end {
            self.turn(link, Duration::from_millis(10));
        }
    }

    /// Closes, and waits for the other side's end.
    pub fn close(mut self, link: &mut dyn Link) {
        self.segment(link, self.nxt, FIN | ACK, &[], &[]);
        self.nxt = self.nxt.wrapping_add(1);
        while self.flags & (FIN | RST) == 0 {
            self.turn(link, Duration::from_millis(10));
        }
    }
}

/// Two pieces of one frame.
pub fn parts<'a>(head: &'a [u8], data: &'a [u8]) -> [IoSlice<'a>; 2] {
    [IoSlice::new(head), IoSlice::new(data)]
}
