//! A guest for the NAT: smoltcp's stack on a link that may lose, repeat and reorder frames.
// Each of the tests has its own need of it.
#![allow(dead_code)]
#[cfg(target_os = "linux")]
pub mod fuse;
pub mod process;
pub mod raw;

use mynah_net::user::{Config, Poll, Reactor, User};
use mynah_net::{Backend, Frame, Nic};
use smoltcp::iface::{Config as IfaceConfig, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::tcp;
use smoltcp::time::Instant as Time;
use smoltcp::wire::{EthernetAddress, IpCidr, Ipv4Address};
use std::collections::VecDeque;
use std::io::IoSlice;
use std::net::{SocketAddr, TcpListener};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

pub const MAC: [u8; 6] = [0x52, 0x54, 0, 0x12, 0x34, 0x56];

/// The guest's card: a queue.
pub struct Wire {
    pub frames: Mutex<VecDeque<Vec<u8>>>,
    /// How many frames it holds.
    pub room: AtomicUsize,
}

impl Nic for Wire {
    fn can_receive(&self) -> bool {
        self.frames.lock().unwrap().len() < self.room.load(Ordering::Relaxed)
    }
    fn receive(&self, frame: &Frame<'_>) -> bool {
        let room = self.can_receive();
        if room {
            self.frames.lock().unwrap().push_back(frame.to_vec());
        }
        room
    }
}

/// One in `loss` frames is lost, repeated or held back, each way; 0 for none.
#[derive(Clone, Copy, Default)]
pub struct Faults {
    pub loss: u32,
    pub twice: u32,
    pub late: u32,
}

pub struct Link {
    pub wire: Arc<Wire>,
    /// What is behind the card: the NAT, or a line to it.
    pub behind: Arc<dyn Backend>,
    pub faults: Faults,
    random: u32,
    held: Vec<Vec<u8>>,
}

impl Link {
    fn one_in(&mut self, n: u32) -> bool {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 17;
        self.random ^= self.random << 5;
        n != 0 && self.random.is_multiple_of(n)
    }

    /// What arrives of a frame that is sent, in what order.
    fn pass(&mut self, frame: Vec<u8>) -> Vec<Vec<u8>> {
        if self.one_in(self.faults.loss) {
            return Vec::new();
        }
        if self.one_in(self.faults.late) {
            self.held.push(frame);
            return Vec::new();
        }
        let mut all = vec![frame];
        if self.one_in(self.faults.twice) {
            all.push(all[0].clone());
        }
        all.append(&mut self.held);
        all
    }
}

pub struct Rx(Vec<u8>);
pub struct Tx<'a>(&'a mut Link);

impl RxToken for Rx {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

impl TxToken for Tx<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut frame = vec![0; len];
        let result = f(&mut frame);
        for frame in self.0.pass(frame) {
            // In pieces, as descriptors are.
            let (a, b) = frame.split_at(frame.len().min(54));
            self.0.behind.send(&Frame::new(&[IoSlice::new(a), IoSlice::new(b)]));
        }
        result
    }
}

impl Device for Link {
    type RxToken<'a> = Rx;
    type TxToken<'a> = Tx<'a>;

    fn receive(&mut self, _: Time) -> Option<(Rx, Tx<'_>)> {
        let faults = self.faults;
        let frame = loop {
            let frame = self.wire.frames.lock().unwrap().pop_front()?;
            if self.one_in(faults.loss) {
                continue;
            }
            if self.one_in(faults.late) {
                // Behind the next.
                let mut frames = self.wire.frames.lock().unwrap();
                let at = frames.len().min(1);
                frames.insert(at, frame);
                break frames.pop_front().unwrap_or_default();
            }
            if self.one_in(faults.twice) {
                self.wire.frames.lock().unwrap().push_front(frame.clone());
            }
            break frame;
        };
        Some((Rx(frame), Tx(self)))
    }

    fn transmit(&mut self, _: Time) -> Option<Tx<'_>> {
        Some(Tx(self))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut caps = DeviceCapabilities::default();
        caps.max_transmission_unit = 1514;
        caps.medium = Medium::Ethernet;
        caps
    }
}

pub struct Guest {
    pub poll: Poll,
    pub user: Arc<User>,
    pub link: Link,
    pub iface: Interface,
    pub sockets: SocketSet<'static>,
    /// How much the clock is put forward when nothing happens.
    pub hurry: Duration,
    start: Instant,
    port: u16,
}

impl Guest {
    pub fn new(config: Config) -> Self {
        Self::behind(config, |user| user)
    }

    /// A guest with something between it and the NAT.
    pub fn behind(config: Config, line: impl FnOnce(Arc<User>) -> Arc<dyn Backend>) -> Self {
        let poll = Poll::new();
        let user = User::new(config, Arc::new(poll.clone())).unwrap();
        let wire = Arc::new(Wire { frames: Mutex::default(), room: AtomicUsize::new(256) });
        let behind = line(user.clone());
        behind.connect(wire.clone());
        let mut link =
            Link { wire, behind, faults: Faults::default(), random: 0x1234_5678, held: Vec::new() };
        let mut config = IfaceConfig::new(EthernetAddress(MAC).into());
        config.random_seed = 7;
        let mut iface = Interface::new(config, &mut link, Time::ZERO);
        iface.update_ip_addrs(|a| {
            a.push(IpCidr::new(Ipv4Address::new(10, 0, 2, 15).into(), 24)).unwrap();
            a.push(IpCidr::new("fec0::15".parse::<std::net::Ipv6Addr>().unwrap().into(), 64)).unwrap();
        });
        iface.routes_mut().add_default_ipv4_route(Ipv4Address::new(10, 0, 2, 2)).unwrap();
        iface.routes_mut().add_default_ipv6_route("fec0::2".parse().unwrap()).unwrap();
        let start = poll.now();
        let sockets = SocketSet::new(Vec::new());
        Self { poll, user, link, iface, sockets, hurry: Duration::ZERO, start, port: 40_000 }
    }

    pub fn now(&self) -> Time {
        Time::from_micros((self.poll.now() - self.start).as_micros() as i64)
    }

    /// Both sides do what they can.
    pub fn turn(&mut self) {
        let full = !self.link.wire.can_receive();
        let now = self.now();
        self.iface.poll(now, &mut self.link, &mut self.sockets);
        if full {
            self.link.behind.wake();
        }
        let idle = self.link.wire.frames.lock().unwrap().is_empty();
        self.poll.turn(&self.user, Duration::from_millis(u64::from(idle)));
        if idle && self.link.wire.frames.lock().unwrap().is_empty() {
            self.poll.advance(self.hurry);
        }
    }

    /// Goes on until something is so; a minute is for what never comes.
    #[track_caller]
    pub fn until(&mut self, what: &str, mut so: impl FnMut(&mut Self) -> bool) {
        let end = Instant::now() + Duration::from_secs(120);
        while !so(self) {
            assert!(Instant::now() < end, "{what}: {:?} {:?}", self.user.flows(), self.user.stats());
            self.turn();
        }
    }

    pub fn tcp(&mut self, buffer: usize) -> SocketHandle {
        let b = || tcp::SocketBuffer::new(vec![0; buffer]);
        self.sockets.add(tcp::Socket::new(b(), b()))
    }

    pub fn socket(&mut self, handle: SocketHandle) -> &mut tcp::Socket<'static> {
        self.sockets.get_mut(handle)
    }

    /// Begins to connect.
    pub fn connect(&mut self, to: SocketAddr, buffer: usize) -> SocketHandle {
        let handle = self.tcp(buffer);
        self.port += 1;
        let socket = self.sockets.get_mut::<tcp::Socket<'_>>(handle);
        socket.connect(self.iface.context(), to, self.port).unwrap();
        handle
    }
}

/// Byte `i` of a stream that is easily told from another.
pub fn byte(i: usize, seed: u8) -> u8 {
    (i as u32).wrapping_mul(2_654_435_761).to_be_bytes()[0] ^ seed
}

/// A port of the host's loopback that listens, and where it is.
pub fn listen() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let at = listener.local_addr().unwrap();
    (listener, at)
}

/// The gateway, at a port of the host's.
pub fn gateway(host: SocketAddr) -> SocketAddr {
    if host.is_ipv4() {
        SocketAddr::new([10, 0, 2, 2].into(), host.port())
    } else {
        SocketAddr::new("fec0::2".parse().unwrap(), host.port())
    }
}
