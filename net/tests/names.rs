//! Names and addresses: the host's name servers by UDP and TCP, and what DHCP and DHCPv6 say beside addresses.
#![cfg(unix)]
mod common;

use common::raw::{Raw, datagram, packet};
use common::{Guest, MAC};
use mynah_net::user::Config;
use smoltcp::socket::udp;
use smoltcp::wire::{IpEndpoint, IpProtocol, Ipv4Packet};
use socket2::{Domain, Socket, Type};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, UdpSocket};
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

const DNS: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 0, 2, 3), 53);

/// A resolv.conf that goes with this.
struct Servers(PathBuf);

impl Servers {
    fn new(name: &str, all: &[SocketAddr]) -> Self {
        let path = std::env::temp_dir().join(format!("mynah-{name}-{}", std::process::id()));
        let servers = Self(path);
        servers.set(all);
        servers
    }

    /// As programs do that write it: another file takes its place.
    fn set(&self, all: &[SocketAddr]) {
        let new = self.0.with_extension("new");
        let text: String = all.iter().map(|a| format!("nameserver [{}]:{}\n", a.ip(), a.port())).collect();
        std::fs::write(&new, text).unwrap();
        std::fs::rename(new, &self.0).unwrap();
    }

    fn config(&self) -> Config {
        Config { resolv_conf: self.0.clone(), ..Config::default() }
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// A name server that puts its own word behind each question.
fn server(at: &str, word: &'static str) -> SocketAddr {
    let socket = UdpSocket::bind(at).unwrap();
    let address = socket.local_addr().unwrap();
    thread::spawn(move || {
        let mut buffer = [0; 512];
        while let Ok((n, peer)) = socket.recv_from(&mut buffer) {
            socket.send_to(&[&buffer[..n], word.as_bytes()].concat(), peer).unwrap();
        }
    });
    address
}

fn ask(raw: &Raw, from: u16, question: &[u8]) -> String {
    raw.send(&datagram(from, DNS, question));
    let (server, to, answer) = raw.wait_datagram();
    assert_eq!((server, to), (DNS, from));
    assert_eq!(&answer[..question.len()], question);
    String::from_utf8(answer[question.len()..].to_vec()).unwrap()
}

#[test]
fn a_resolver_on_the_hosts_loopback_answers_and_one_that_takes_its_place() {
    // As systemd-resolved and dnsmasq listen.
    #[cfg(target_os = "linux")]
    let stub = server("127.0.0.53:0", "stub");
    #[cfg(not(target_os = "linux"))]
    let stub = server("127.0.0.1:0", "stub");
    let (other, six) = (server("127.0.0.1:0", "other"), server("[::1]:0", "six"));
    let servers = Servers::new("stub", &[stub]);
    let raw = Raw::new(servers.config(), false);
    assert_eq!(ask(&raw, 5000, b"\0\x01a"), "stub");
    assert_eq!(ask(&raw, 5000, b"\0\x02b"), "stub");
    // The host is on another network now: also a guest that goes on with the same port gets there.
    servers.set(&[other]);
    raw.poll.advance(Duration::from_secs(2));
    assert_eq!(ask(&raw, 5000, b"\0\x03c"), "other");
    assert_eq!(ask(&raw, 5001, b"\0\x04d"), "other");
    // A guest of IPv4 with a server that has IPv6 only.
    servers.set(&[six]);
    raw.poll.advance(Duration::from_secs(2));
    assert_eq!(ask(&raw, 5001, b"\0\x05e"), "six");
    assert!(raw.user.flows().len() <= 2);
}

#[test]
fn names_are_asked_for_by_tcp_of_the_first_that_is_there() {
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let server = thread::spawn({
        let listener = listener.try_clone().unwrap();
        move || {
            let mut s = listener.accept().unwrap().0;
            let mut got = [0; 5];
            s.read_exact(&mut got).unwrap();
            s.write_all(&[&got[..], &[0; 3000]].concat()).unwrap();
        }
    });
    // Nobody is at the first two.
    let servers = Servers::new("tcp", &[free, free, listener.local_addr().unwrap()]);
    let mut g = Guest::new(servers.config());
    let h = g.connect(DNS.into(), 8192);
    g.until("a connection", |g| g.socket(h).may_send());
    g.socket(h).send_slice(b"\0\x03abc").unwrap();
    let mut got = Vec::new();
    g.until("an answer", |g| {
        while g.socket(h).can_recv() {
            g.socket(h).recv(|d| (d.len(), got.extend_from_slice(d))).unwrap();
        }
        got.len() == 3005
    });
    assert_eq!(&got[..5], b"\0\x03abc");
    server.join().unwrap();
    // Another port of the name server's is nobody's, and without a server it is refused.
    let h = g.connect(SocketAddrV4::new(*DNS.ip(), 80).into(), 4096);
    g.until("a reset", |g| g.socket(h).state() == smoltcp::socket::tcp::State::Closed);
    servers.set(&[free]);
    g.poll.advance(Duration::from_secs(2));
    let h = g.connect(DNS.into(), 4096);
    g.until("a reset", |g| g.socket(h).state() == smoltcp::socket::tcp::State::Closed);
}

#[test]
#[cfg(target_os = "linux")]
fn a_name_server_that_says_nothing_to_tcp_is_not_waited_for() {
    // Its queue is full, and nobody accepts: further SYNs are lost.
    let silent = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    silent.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    silent.listen(0).unwrap();
    let at = silent.local_addr().unwrap().as_socket().unwrap();
    let queued: Vec<Socket> = (0..4)
        .map(|_| {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
            socket.set_nonblocking(true).unwrap();
            let _ = socket.connect(&at.into());
            socket
        })
        .collect();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let servers = Servers::new("silent", &[at, listener.local_addr().unwrap()]);
    let mut g = Guest::new(servers.config());
    let h = g.connect(DNS.into(), 8192);
    for _ in 0..20 {
        g.turn();
    }
    assert!(!g.socket(h).may_send(), "it is asked first");
    g.poll.advance(Duration::from_secs(3));
    g.until("a connection", |g| g.socket(h).may_send());
    g.socket(h).send_slice(b"\0\x03abc").unwrap();
    g.until("the question", |g| g.socket(h).send_queue() == 0);
    let mut got = [0; 5];
    listener.accept().unwrap().0.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"\0\x03abc");
    // With no other one the host's own patience decides.
    servers.set(&[at]);
    g.poll.advance(Duration::from_secs(3));
    let h = g.connect(DNS.into(), 4096);
    for _ in 0..20 {
        g.turn();
        g.poll.advance(Duration::from_secs(1));
    }
    assert_eq!(g.socket(h).state(), smoltcp::socket::tcp::State::SynSent);
    drop(queued);
}

#[test]
fn a_question_by_tcp_goes_on_to_whoever_answers_it() {
    // The first takes it and says nothing, the second closes, the third is not there, the fourth resets.
    let listen = || TcpListener::bind("127.0.0.1:0").unwrap();
    let (silent, closing, resetting, right) = (listen(), listen(), listen(), listen());
    let nobody = listen().local_addr().unwrap();
    let at = |l: &TcpListener| l.local_addr().unwrap();
    let all = [at(&silent), at(&closing), nobody, at(&resetting), at(&right)];
    let question = |s: &mut std::net::TcpStream| {
        let mut got = [0; 5];
        s.read_exact(&mut got).unwrap();
        assert_eq!(&got, b"\0\x03abc");
    };
    let servers = Servers::new("again", &all);
    let mut g = Guest::new(servers.config());
    let h = g.connect(DNS.into(), 8192);
    g.until("a connection", |g| g.socket(h).may_send());
    // In two pieces, with the end behind it: all of that is said again.
    g.socket(h).send_slice(b"\0\x03").unwrap();
    g.until("a piece", |g| g.socket(h).send_queue() == 0);
    g.socket(h).send_slice(b"abc").unwrap();
    g.socket(h).close();
    g.until("the question", |g| g.socket(h).send_queue() == 0);
    let mut first = silent.accept().unwrap().0;
    question(&mut first);
    let others = thread::spawn(move || {
        let mut second = closing.accept().unwrap().0;
        question(&mut second);
        drop(second);
        let mut fourth = Socket::from(resetting.accept().unwrap().0);
        fourth.set_linger(Some(Duration::ZERO)).unwrap();
        fourth.read_exact(&mut [0; 2]).unwrap();
        drop(fourth);
        let mut last = right.accept().unwrap().0;
        question(&mut last);
        assert_eq!(last.read(&mut [0]).unwrap(), 0, "the guest has closed its half");
        last.write_all(&[7; 3000]).unwrap();
    });
    // For a second it has time.
    g.poll.advance(Duration::from_secs(1));
    for _ in 0..20 {
        g.turn();
    }
    assert!(!others.is_finished() && g.user.flows().len() == 1);
    g.poll.advance(Duration::from_secs(2));
    let mut got = Vec::new();
    g.until("an answer", |g| {
        while g.socket(h).can_recv() {
            g.socket(h).recv(|d| (d.len(), got.extend_from_slice(d))).unwrap();
        }
        got.len() == 3000
    });
    others.join().unwrap();
    // One that answers is not left, however long the next answer takes.
    let server = listen();
    servers.set(&[at(&server), nobody]);
    g.poll.advance(Duration::from_secs(2));
    let h = g.connect(DNS.into(), 8192);
    g.until("a connection", |g| g.socket(h).may_send());
    let mut host = server.accept().unwrap().0;
    for pause in [0, 60] {
        g.socket(h).send_slice(b"\0\x03abc").unwrap();
        g.until("the question", |g| g.socket(h).send_queue() == 0);
        question(&mut host);
        g.poll.advance(Duration::from_secs(pause));
        for _ in 0..20 {
            g.turn();
        }
        host.write_all(b"an answer").unwrap();
        let mut got = 0;
        g.until("an answer", |g| {
            while g.socket(h).can_recv() {
                got += g.socket(h).recv(|d| (d.len(), d.len())).unwrap();
            }
            got == 9
        });
    }
}

#[test]
fn dhcpv6_tells_names_and_what_to_boot() {
    let config = Config::parse([("dnssearch", "example.org"), ("bootfile", "pxe/grub.efi")]).unwrap();
    let mut g = Guest::new(config);
    let b = || udp::PacketBuffer::new(vec![udp::PacketMetadata::EMPTY; 4], vec![0; 4096]);
    let mut socket = udp::Socket::new(b(), b());
    socket.bind(546).unwrap();
    let h = g.sockets.add(socket);
    // INFORMATION-REQUEST with a client's identifier and the wish for options 23, 24, 59 (RFC 8415, 18.2.6).
    let id = [0, 1, 0, 4, 0, 3, 0, 1];
    let request = [&[11, 1, 2, 3][..], &id, &[0, 6, 0, 6, 0, 23, 0, 24, 0, 59]].concat();
    let servers = IpEndpoint::new("ff02::1:2".parse::<std::net::Ipv6Addr>().unwrap().into(), 547);
    g.sockets.get_mut::<udp::Socket<'_>>(h).send_slice(&request, servers).unwrap();
    g.until("an answer", |g| g.sockets.get_mut::<udp::Socket<'_>>(h).can_recv());
    let (m, from) = g.sockets.get_mut::<udp::Socket<'_>>(h).recv().unwrap();
    assert_eq!((from.endpoint.port, &m[..4]), (547, &[7, 1, 2, 3][..]));
    let (mut rest, mut options) = (&m[4..], Vec::new());
    while let [a, b, c, d, more @ ..] = rest {
        let (value, more) = more.split_at(usize::from(u16::from_be_bytes([*c, *d])));
        options.push((u16::from_be_bytes([*a, *b]), value.to_vec()));
        rest = more;
    }
    assert_eq!(rest, b"");
    let option = |code| options.iter().find(|o| o.0 == code).map(|o| o.1.clone());
    assert_eq!(option(1), Some(id[4..].to_vec()));
    let server = option(2).unwrap();
    assert_eq!(option(23), Some("fec0::3".parse::<std::net::Ipv6Addr>().unwrap().octets().to_vec()));
    assert_eq!(option(24), Some(b"\x07example\x03org\0".to_vec()));
    assert_eq!(option(59), Some(b"tftp://[fec0::2]/pxe/grub.efi".to_vec()));
    // Who asks this server by name is answered, who asks another is not; nor is what is cut off.
    let named =
        |duid: &[u8], n: u8| [&[11, 0, 0, n][..], &[0, 2], &(duid.len() as u16).to_be_bytes(), duid].concat();
    for request in
        [named(b"somebody", 1), vec![11, 0, 0], [&named(&server, 2)[..], &[0, 1]].concat(), named(&server, 3)]
    {
        g.sockets.get_mut::<udp::Socket<'_>>(h).send_slice(&request, servers).unwrap();
    }
    let mut answered = Vec::new();
    g.until("answers", |g| {
        while let Ok((m, _)) = g.sockets.get_mut::<udp::Socket<'_>>(h).recv() {
            answered.push(m[3]);
        }
        answered.contains(&3)
    });
    assert!(!answered.contains(&1), "{answered:?}");
}

/// A message of DHCP: its kind, what it has of an address, and options.
fn dhcp(kind: u8, mac: [u8; 6], own: [u8; 4], options: &[u8]) -> Vec<u8> {
    let mut m = vec![0; 240];
    m[..8].copy_from_slice(&[1, 1, 6, 0, 9, 9, 9, 9]);
    m[12..16].copy_from_slice(&own);
    m[28..34].copy_from_slice(&mac);
    m[236..].copy_from_slice(&[99, 130, 83, 99]);
    m.extend_from_slice(&[53, 1, kind]);
    m.extend_from_slice(options);
    m.push(255);
    let mut udp = vec![0, 68, 0, 67, 0, 0, 0, 0];
    udp[4..6].copy_from_slice(&(8 + m.len() as u16).to_be_bytes());
    udp.extend_from_slice(&m);
    let mut f = packet(own, [255; 4], IpProtocol::Udp, &udp);
    f[..6].fill(0xff);
    f[6..12].copy_from_slice(&mac);
    Ipv4Packet::new_unchecked(&mut f[14..]).fill_checksum();
    f
}

#[test]
fn a_lease_is_given_back_or_declined_and_who_has_an_address_may_ask() {
    let [discover, offer, request, decline, ack, nak, release, inform] = [1, 2, 3, 4, 5, 6, 7, 8];
    let raw = Raw::new(Config::default(), false);
    let answer = |frame: &[u8]| {
        raw.send(frame);
        let (_, _, m) = raw.wait_datagram();
        (m[242], [m[16], m[17], m[18], m[19]], m)
    };
    let none = [0; 4];
    let wish = |last| [50, 4, 10, 0, 2, last];
    let (kind, address, _) = answer(&dhcp(discover, MAC, none, &[]));
    assert_eq!((kind, address), (offer, [10, 0, 2, 15]));
    let (kind, address, _) = answer(&dhcp(request, MAC, none, &wish(15)));
    assert_eq!((kind, address), (ack, [10, 0, 2, 15]));
    // Another guest cannot have it, until it is given back.
    let other = [2, 0, 0, 0, 0, 1];
    let (kind, _, _) = answer(&dhcp(request, other, none, &wish(15)));
    assert_eq!(kind, nak);
    raw.send(&dhcp(release, MAC, [10, 0, 2, 15], &[]));
    assert!(raw.user.leases().is_empty());
    let (kind, address, _) = answer(&dhcp(request, other, none, &wish(15)));
    assert_eq!((kind, address), (ack, [10, 0, 2, 15]));
    // It has found that somebody has it: it gets another one, and nobody gets that.
    raw.send(&dhcp(decline, other, none, &wish(15)));
    let (kind, address, _) = answer(&dhcp(discover, other, none, &wish(15)));
    assert_eq!((kind, address), (offer, [10, 0, 2, 16]));
    // Who has an address of its own hears the rest, and gets none (RFC 2131, 4.3.5).
    let (kind, address, m) = answer(&dhcp(inform, [2, 0, 0, 0, 0, 2], [10, 0, 2, 77], &[]));
    assert_eq!((kind, address), (ack, none));
    let options = &m[240..];
    assert!(options.windows(6).any(|o| o == [6, 4, 10, 0, 2, 3]), "the name server");
    assert!(!options.windows(2).any(|o| o == [51, 4]), "no lease");
    assert_eq!(raw.user.leases().len(), 1);
    let json = raw.user.json();
    assert_eq!(json["leases"], serde_json::json!([{ "mac": "02:00:00:00:00:01", "address": "10.0.2.16" }]));
}
