//! What a guest reaches of the host, and by which door: the gateway's address, `guestfwd`, nothing with `restrict=on`.
#![cfg(unix)]
mod common;

use common::raw::{ACK, FIN, PSH, Raw, SYN, Tcp, datagram, packet, segment};
use common::{Guest, byte};
use mynah_net::user::{Behind, Config, GuestForward};
use smoltcp::socket::tcp::State;
use smoltcp::wire::IpProtocol;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::os::unix::net::UnixListener;
use std::thread;
use std::time::Duration;

/// Half a MiB there and back through what is at `server`.
fn there_and_back(g: &mut Guest, server: SocketAddr) {
    let h = g.connect(server, 64 << 10);
    let data: Vec<u8> = (0..512 << 10).map(|i| byte(i, 4)).collect();
    let (mut sent, mut got) = (0, Vec::new());
    g.until("all of it", |g| {
        let s = g.socket(h);
        if s.can_send() && sent < data.len() {
            sent += s.send_slice(&data[sent..]).unwrap();
        }
        if sent == data.len() {
            s.close();
        }
        while s.can_recv() {
            s.recv(|d| (d.len(), got.extend_from_slice(d))).unwrap();
        }
        sent == data.len() && !s.may_recv()
    });
    assert!(got == data);
}

fn copy(mut from: impl Read, mut to: impl Write) {
    let _ = std::io::copy(&mut from, &mut to);
}

#[test]
fn addresses_of_the_network_lead_to_servers_sockets_and_programs() {
    let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
    let path = std::env::temp_dir().join(format!("mynah-door-{}", std::process::id()));
    let unix = UnixListener::bind(&path).unwrap();
    let to =
        [Behind::Tcp(tcp.local_addr().unwrap()), Behind::Unix(path.clone()), Behind::Command("cat".into())];
    let at = |n: usize| SocketAddr::from(([10, 0, 2, 100 + n as u8], 7));
    let guest_forwards =
        to.into_iter().enumerate().map(|(n, to)| GuestForward { server: at(n), to }).collect();
    // Also where the guest gets nowhere else.
    for restrict in [false, true] {
        let mut g =
            Guest::new(Config { restrict, guest_forwards: Vec::clone(&guest_forwards), ..Config::default() });
        // Its stack asks for one neighbour in a second.
        g.hurry = Duration::from_millis(50);
        let (tcp, unix) = (tcp.try_clone().unwrap(), unix.try_clone().unwrap());
        thread::spawn(move || {
            let s = tcp.accept().unwrap().0;
            copy(&s, &s);
        });
        thread::spawn(move || {
            let s = unix.accept().unwrap().0;
            copy(&s, &s);
        });
        for n in 0..3 {
            there_and_back(&mut g, at(n));
        }
    }
    drop(unix);
    std::fs::remove_file(&path).unwrap();
    // What is gone is refused, and another port of the address is nobody's.
    let mut g = Guest::new(Config { guest_forwards, ..Config::default() });
    for to in [at(1), SocketAddr::new(at(0).ip(), 8)] {
        let h = g.connect(to, 4096);
        let mut tries = 0;
        g.until("no connection", |g| {
            tries += 1;
            assert_ne!(g.socket(h).state(), State::Established);
            g.socket(h).state() == State::Closed || tries > 200
        });
    }
    assert!(g.user.flows().is_empty());
}

/// A host with a TCP and a UDP port, both of which hear of nobody until they are looked at.
struct Host {
    tcp: TcpListener,
    udp: UdpSocket,
}

impl Host {
    fn new(at: &str) -> Self {
        let (tcp, udp) = (TcpListener::bind(at).unwrap(), UdpSocket::bind(at).unwrap());
        tcp.set_nonblocking(true).unwrap();
        udp.set_nonblocking(true).unwrap();
        Self { tcp, udp }
    }

    fn ports(&self) -> [u16; 2] {
        [self.tcp.local_addr().unwrap().port(), self.udp.local_addr().unwrap().port()]
    }

    fn heard(&self) -> [bool; 2] {
        thread::sleep(Duration::from_millis(20));
        [self.tcp.accept().is_ok(), self.udp.recv_from(&mut [0; 9]).is_ok()]
    }
}

/// Every way over IPv4 to an address; whether the host has heard of it, by TCP and by UDP.
fn knock(raw: &Raw, host: &Host, to: Ipv4Addr) -> [bool; 2] {
    let [tcp, udp] = host.ports();
    raw.send(&segment(to.octets(), Tcp { ports: (1000, tcp), seq: 1, flags: SYN, ..Tcp::default() }));
    raw.send(&datagram(1000, SocketAddrV4::new(to, udp), b"x"));
    for _ in 0..5 {
        raw.poll.turn(&raw.user, Duration::from_millis(1));
    }
    host.heard()
}

/// The same over IPv6.
fn knock6(g: &mut Guest, host: &Host, to: &str) -> [bool; 2] {
    use smoltcp::socket::udp;
    let to: std::net::Ipv6Addr = to.parse().unwrap();
    let [tcp_port, udp_port] = host.ports();
    let b = || udp::PacketBuffer::new(vec![udp::PacketMetadata::EMPTY; 4], vec![0; 4096]);
    let mut socket = udp::Socket::new(b(), b());
    socket.bind(1000).unwrap();
    let _ = socket.send_slice(b"x", (to, udp_port));
    let h = g.sockets.add(socket);
    let c = g.tcp(4096);
    let (context, socket) = (g.iface.context(), g.sockets.get_mut::<smoltcp::socket::tcp::Socket<'_>>(c));
    // Where a guest's own stack knows better, it has not tried.
    let _ = socket.connect(context, (to, tcp_port), 1000);
    for _ in 0..50 {
        g.turn();
    }
    g.socket(c).abort();
    g.sockets.remove(h);
    host.heard()
}

#[test]
fn the_hosts_loopback_is_behind_the_gateway_and_nowhere_else() {
    let raw = Raw::new(Config::default(), false);
    let host = Host::new("127.0.0.1:0");
    for to in [
        [127, 0, 0, 1],
        [127, 1, 2, 3],
        [127, 255, 255, 255],
        [0, 0, 0, 0],
        [0, 0, 0, 1],
        [255, 255, 255, 255],
        [224, 0, 0, 1],
        [10, 0, 2, 3],
        [10, 0, 2, 1],
        [10, 0, 2, 15],
        [10, 0, 2, 255],
    ] {
        assert_eq!(knock(&raw, &host, to.into()), [false, false], "{to:?}");
    }
    assert_eq!(knock(&raw, &host, [10, 0, 2, 2].into()), [true, true]);
    let mut g = Guest::new(Config::default());
    let six = Host::new("[::1]:0");
    for to in [
        "::1",
        "::",
        "::ffff:127.0.0.1",
        "::127.0.0.1",
        "::ffff:0:127.0.0.1",
        "ff02::1",
        "fec0::3",
        "fec0::9",
    ] {
        assert_eq!(knock6(&mut g, &six, to), [false, false], "{to}");
        assert_eq!(knock6(&mut g, &host, to), [false, false], "{to}, of IPv4");
    }
    assert_eq!(knock6(&mut g, &six, "fec0::2"), [true, true]);
}

#[test]
fn a_restricted_guest_reaches_nothing_but_its_forwards() {
    let config = Config::parse([
        ("restrict", "on"),
        ("hostfwd", "tcp:127.0.0.1:0-:80"),
        ("hostfwd", "udp:127.0.0.1:0-:81"),
    ]);
    let raw = Raw::new(config.unwrap(), false);
    let host = Host::new("0.0.0.0:0");
    // The host's own addresses are no way either.
    let own = UdpSocket::bind("0.0.0.0:0").ok().filter(|s| s.connect("192.0.2.77:9").is_ok());
    let own = own.and_then(|s| match s.local_addr() {
        Ok(SocketAddr::V4(a)) => Some(*a.ip()),
        _ => None,
    });
    let mut all = vec![Ipv4Addr::new(10, 0, 2, 2), Ipv4Addr::new(10, 0, 2, 3), Ipv4Addr::LOCALHOST];
    all.extend(own);
    for to in all {
        assert_eq!(knock(&raw, &host, to), [false, false], "{to}");
        // No echo that asks other hosts, no name.
        if to != Ipv4Addr::new(10, 0, 2, 2) {
            raw.send(&packet(
                common::raw::GUEST,
                to.octets(),
                IpProtocol::Icmp,
                &[8, 0, 0xf7, 0xff, 0, 0, 0, 0],
            ));
        }
        raw.send(&datagram(1001, SocketAddrV4::new(to, 53), b"\0\x01name"));
    }
    assert!(raw.user.flows().is_empty());
    assert_eq!(raw.poll.sockets(), 2, "the forwards");
    let mut g = Guest::new(Config { restrict: true, ..Config::default() });
    assert_eq!(knock6(&mut g, &Host::new("[::1]:0"), "fec0::2"), [false, false]);
    // Who comes from outside gets in, and an answer.
    raw.card.frames.lock().unwrap().clear();
    let forwards = raw.user.forwards();
    let mut peer = TcpStream::connect(forwards[0].host).unwrap();
    let syn = raw.wait();
    let ports = (80, syn.ports.0);
    let t = Tcp { ports, ack: syn.seq.wrapping_add(1), ..Tcp::default() };
    raw.tcp(Tcp { seq: 700, flags: SYN | ACK, ..t });
    raw.tcp(Tcp { seq: 701, flags: ACK | PSH | FIN, data: b"in", ..t });
    let mut got = Vec::new();
    peer.read_to_end(&mut got).unwrap();
    assert_eq!(got, b"in");
    let peer = UdpSocket::bind("127.0.0.1:0").unwrap();
    peer.send_to(b"ask", forwards[1].host).unwrap();
    let (from, to, data) = raw.wait_datagram();
    assert_eq!((to, &data[..]), (81, &b"ask"[..]));
    raw.send(&datagram(81, from, b"told"));
    let mut buffer = [0; 9];
    assert_eq!(peer.recv(&mut buffer).unwrap(), 4);
    // That does not open the way for what the guest begins.
    raw.send(&datagram(82, from, b"other"));
    peer.set_nonblocking(true).unwrap();
    thread::sleep(Duration::from_millis(20));
    assert!(peer.recv(&mut buffer).is_err());
}
