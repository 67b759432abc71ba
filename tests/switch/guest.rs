//! What stands in for a guest: speaks frames to a port of the switch's, answers ARP, has UDP.
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

pub type Mac = [u8; 6];
pub type Ip = [u8; 4];

/// How long something may take that has to come.
pub const LONG: Duration = Duration::from_secs(30);
/// How long one waits for what must not come.
pub const SHORT: Duration = Duration::from_millis(300);
/// All stations.
pub const ALL: Mac = [0xff; 6];
/// A type for experiments (IEEE 802, local experimental).
pub const TEST: [u8; 2] = [0x88, 0xb5];

pub struct Guest {
    stream: UnixStream,
    read: Vec<u8>,
    pub mac: Mac,
    pub ip: Ip,
}

/// A datagram.
#[derive(Debug, PartialEq)]
pub struct Datagram {
    pub mac: Mac,
    pub from: (Ip, u16),
    pub to: u16,
    pub data: Vec<u8>,
}

impl Guest {
    pub fn new(path: &Path, n: u8, ip: Ip) -> Self {
        let stream = UnixStream::connect(path).unwrap();
        Self { stream, read: Vec::new(), mac: [2, 0, 0, 0, 0, n], ip }
    }

    /// Sends a frame.
    pub fn send(&mut self, frame: &[u8]) {
        self.stream.write_all(&prefixed(frame)).unwrap();
    }

    /// One for the same guest, to write from another thread.
    pub fn writer(&self) -> UnixStream {
        self.stream.try_clone().unwrap()
    }

    /// A frame of no protocol.
    pub fn frame(&self, to: Mac, data: &[u8]) -> Vec<u8> {
        [&to[..], &self.mac, &TEST, data].concat()
    }

    /// The next frame, if one comes in time.
    pub fn next(&mut self, within: Duration) -> Option<Vec<u8>> {
        let end = Instant::now() + within;
        loop {
            if let Some(head) = self.read.first_chunk::<4>() {
                let len = u32::from_be_bytes(*head) as usize;
                if self.read.len() >= 4 + len {
                    return Some(self.read.drain(..4 + len).skip(4).collect());
                }
            }
            let left = end.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
            self.stream.set_read_timeout(Some(left)).unwrap();
            let mut chunk = [0; 65_536];
            match self.stream.read(&mut chunk) {
                Ok(0) => panic!("the switch has hung up"),
                Ok(n) => self.read.extend_from_slice(&chunk[..n]),
                Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                    if Instant::now() >= end {
                        return None;
                    }
                }
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => panic!("{e}"),
            }
        }
    }

    /// The next frame that `wanted` makes something of; others are taken as a guest takes them.
    pub fn wait<R>(&mut self, within: Duration, mut wanted: impl FnMut(&[u8]) -> Option<R>) -> Option<R> {
        let end = Instant::now() + within;
        loop {
            let frame = self.next(end.saturating_duration_since(Instant::now()))?;
            if let Some(found) = wanted(&frame) {
                return Some(found);
            }
            self.serve(&frame);
        }
    }

    /// Answers who asks for our address (RFC 826).
    fn serve(&mut self, frame: &[u8]) {
        if frame.len() >= 42 && frame[12..14] == [8, 6] && frame[20..22] == [0, 1] && frame[38..42] == self.ip
        {
            let (mac, ip) = (frame[22..28].try_into().unwrap(), frame[28..32].try_into().unwrap());
            let answer = self.arp(2, mac, mac, ip);
            self.send(&answer);
        }
    }

    fn arp(&self, op: u8, to: Mac, target: Mac, ip: Ip) -> Vec<u8> {
        let head = [8, 6, 0, 1, 8, 0, 6, 4, 0, op];
        [&to[..], &self.mac, &head, &self.mac, &self.ip, &target, &ip].concat()
    }

    /// Who has this address, if anybody says so in time.
    pub fn resolve(&mut self, ip: Ip, within: Duration) -> Option<Mac> {
        let question = self.arp(1, ALL, [0; 6], ip);
        self.send(&question);
        self.wait(within, |f| {
            let answer = f.len() >= 42 && f[12..14] == [8, 6] && f[20..22] == [0, 2] && f[28..32] == ip;
            answer.then(|| f[22..28].try_into().unwrap())
        })
    }

    /// Sends a datagram.
    pub fn datagram(&mut self, mac: Mac, to: (Ip, u16), from: u16, data: &[u8]) {
        let len = (20 + 8 + data.len()) as u16;
        let mut ip = vec![0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, 17, 0, 0];
        ip[2..4].copy_from_slice(&len.to_be_bytes());
        ip.extend(self.ip);
        ip.extend(to.0);
        let sum = ip.chunks(2).map(|w| u32::from(u16::from_be_bytes([w[0], w[1]]))).sum::<u32>();
        let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
        ip[10..12].copy_from_slice(&sum.to_be_bytes());
        let ports = [from.to_be_bytes(), to.1.to_be_bytes(), (len - 20).to_be_bytes(), [0, 0]].concat();
        let frame = [&mac[..], &self.mac, &[8, 0], &ip, &ports, data].concat();
        self.send(&frame);
    }

    /// The next datagram for a port.
    pub fn receive(&mut self, port: u16, within: Duration) -> Option<Datagram> {
        let own = self.ip;
        self.wait(within, |f| {
            let sound = f.len() >= 42 && f[12..15] == [8, 0, 0x45] && f[23] == 17 && f[30..34] == own;
            let word = |at: usize| u16::from_be_bytes([f[at], f[at + 1]]);
            (sound && word(36) == port).then(|| Datagram {
                mac: f[6..12].try_into().unwrap(),
                from: (f[26..30].try_into().unwrap(), word(34)),
                to: word(36),
                data: f[42..34 + usize::from(word(38))].to_vec(),
            })
        })
    }

    /// Whether one who sends back what comes does so; by way of `gateway`, if it is not on the link.
    pub fn echoes(&mut self, to: (Ip, u16), gateway: Ip, expected: bool) -> bool {
        let within = if expected { LONG } else { SHORT };
        let Some(mac) = self.resolve(gateway, within) else { return false };
        self.datagram(mac, to, 4000, b"to and fro");
        self.receive(4000, within).is_some_and(|d| d.data == b"to and fro" && d.from == (to.0, to.1))
    }
}

/// A frame as it is on the stream.
pub fn prefixed(frame: &[u8]) -> Vec<u8> {
    [&(frame.len() as u32).to_be_bytes()[..], frame].concat()
}
