//! What is measured, round by round.
use crate::guest::{Link, Tcp};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// Requests of a round, and connections.
const REQUESTS: u32 = 2000;
const CONNECTIONS: u32 = 200;

/// What is measured.
#[derive(Clone, Copy, PartialEq)]
pub enum What {
    /// So many MiB from the guest to the host.
    Up(usize),
    /// So many to the guest.
    Down(usize),
    /// 64 bytes there and back.
    Requests,
    /// Open, 64 bytes there and back, close.
    Connections,
}

/// What is measured, by name; whether segments are long.
pub const ALL: [(&str, bool, What); 6] = [
    ("to host, 64 KiB", true, What::Up(64)),
    ("to guest, 64 KiB", true, What::Down(64)),
    ("to host, 1500", false, What::Up(16)),
    ("to guest, 1500", false, What::Down(16)),
    ("request and response", false, What::Requests),
    ("connection", false, What::Connections),
];

impl What {
    /// How much a round has of it: bits, or how many.
    pub fn amount(self) -> u64 {
        match self {
            Self::Up(mib) | Self::Down(mib) => (mib as u64) << 23,
            Self::Requests => u64::from(REQUESTS),
            Self::Connections => u64::from(CONNECTIONS),
        }
    }
}

/// What one measurement needs of the host.
struct Host {
    port: u16,
    read: Arc<AtomicU64>,
}

impl Host {
    fn new(what: What) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (port, read) = (listener.local_addr().unwrap().port(), Arc::new(AtomicU64::new(0)));
        let count = read.clone();
        thread::spawn(move || {
            for peer in listener.incoming() {
                let mut peer = peer.unwrap();
                peer.set_nodelay(true).unwrap();
                let _ = match what {
                    What::Up(_) => sink(&mut peer, &count),
                    What::Down(_) => source(&mut peer),
                    What::Requests | What::Connections => echo(&mut peer),
                };
            }
        });
        Self { port, read }
    }
}

fn sink(peer: &mut TcpStream, count: &AtomicU64) -> std::io::Result<()> {
    let mut buffer = vec![0; 256 << 10];
    loop {
        match peer.read(&mut buffer)? {
            0 => return Ok(()),
            n => count.fetch_add(n as u64, Ordering::Relaxed),
        };
    }
}

fn source(peer: &mut TcpStream) -> std::io::Result<()> {
    let buffer = vec![0x5a; 256 << 10];
    loop {
        peer.write_all(&buffer)?;
    }
}

fn echo(peer: &mut TcpStream) -> std::io::Result<()> {
    let mut buffer = [0; 64];
    loop {
        peer.read_exact(&mut buffer)?;
        peer.write_all(&buffer)?;
    }
}

/// One way to the host in one measurement.
pub struct Side {
    link: Box<dyn Link>,
    host: Host,
    tcp: Option<Tcp>,
    port: u16,
    /// Of each round: what the wall's clock and the processors' say, in seconds.
    rounds: Vec<(f64, f64)>,
}

impl Side {
    pub fn new(link: Box<dyn Link>, what: What) -> std::io::Result<Self> {
        let mut side = Self { link, host: Host::new(what), tcp: None, port: 20_000, rounds: Vec::new() };
        if what != What::Connections {
            side.tcp = Some(Tcp::connect(&mut *side.link, side.port, side.host.port)?);
        }
        side.round(what);
        side.rounds.clear();
        Ok(side)
    }

    pub fn round(&mut self, what: What) {
        let data = vec![0x5a; 64 << 10];
        let link = &mut *self.link;
        let (start, cpu) = (Instant::now(), own_cpu() + link.cpu());
        match (what, &mut self.tcp) {
            (What::Up(mib), Some(tcp)) => {
                let end = self.host.read.load(Ordering::Relaxed) + (mib << 20) as u64;
                let read = self.host.read.clone();
                tcp.send(link, mib << 20, &data, || read.load(Ordering::Relaxed) >= end);
            }
            (What::Down(mib), Some(tcp)) => tcp.receive(link, (mib << 20) as u64),
            (What::Requests, Some(tcp)) => {
                for _ in 0..REQUESTS {
                    request(tcp, link, &data[..64]);
                }
            }
            _ => {
                for _ in 0..CONNECTIONS {
                    self.port = if self.port < 60_000 { self.port + 1 } else { 20_000 };
                    let mut tcp = Tcp::connect(link, self.port, self.host.port).unwrap();
                    request(&mut tcp, link, &data[..64]);
                    tcp.close(link);
                }
            }
        }
        let cpu = own_cpu() + link.cpu() - cpu;
        self.rounds.push((start.elapsed().as_secs_f64(), cpu.as_secs_f64()));
    }

    pub fn median(&self, of: fn(&(f64, f64)) -> f64) -> f64 {
        let mut all: Vec<f64> = self.rounds.iter().map(of).collect();
        all.sort_by(f64::total_cmp);
        all[all.len() / 2]
    }
}

fn request(tcp: &mut Tcp, link: &mut dyn Link, data: &[u8]) {
    let end = tcp.received + data.len() as u64;
    tcp.send(link, data.len(), data, || true);
    tcp.receive(link, end - tcp.received.min(end));
}

/// Processor time of this thread.
fn own_cpu() -> Duration {
    // SAFETY: a timespec of zeros is one.
    let mut time: libc::timespec = unsafe { std::mem::zeroed() };
    // SAFETY: the call fills in the structure that it is given.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}
