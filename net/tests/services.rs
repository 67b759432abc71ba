//! Everything but TCP: addresses, names, echoes, files, forwards, and guests that mean harm.
#![cfg(unix)]
mod common;

use common::raw::{ACK, PSH, Raw, Tcp};
use common::{Guest, MAC, byte, gateway, listen};
use mynah_net::Partial;
use mynah_net::user::{Behind, Config, GuestForward};
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::socket::{dhcpv4, icmp, tcp, udp};
use smoltcp::wire::{Icmpv4Packet, Icmpv4Repr, IpAddress, IpEndpoint, Ipv4Address};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

fn datagrams(g: &mut Guest, port: u16) -> smoltcp::iface::SocketHandle {
    let b = || udp::PacketBuffer::new(vec![udp::PacketMetadata::EMPTY; 16], vec![0; 64 << 10]);
    let mut s = udp::Socket::new(b(), b());
    s.bind(port).unwrap();
    g.sockets.add(s)
}

fn exchange(
    g: &mut Guest,
    h: smoltcp::iface::SocketHandle,
    to: IpEndpoint,
    data: &[u8],
) -> (Vec<u8>, IpEndpoint) {
    g.sockets.get_mut::<udp::Socket<'_>>(h).send_slice(data, to).unwrap();
    receive(g, h)
}

fn receive(g: &mut Guest, h: smoltcp::iface::SocketHandle) -> (Vec<u8>, IpEndpoint) {
    g.until("an answer", |g| g.sockets.get_mut::<udp::Socket<'_>>(h).can_recv());
    let (data, from) = g.sockets.get_mut::<udp::Socket<'_>>(h).recv().unwrap();
    (data.to_vec(), from.endpoint)
}

fn server(at: &str) -> UdpSocket {
    let s = UdpSocket::bind(at).unwrap();
    s.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    s
}

#[test]
fn dhcp_gives_what_qemu_gives() {
    let mut g = Guest::new(Config::default());
    g.iface.update_ip_addrs(|a| a.clear());
    let h = g.sockets.add(dhcpv4::Socket::new());
    let mut found = None;
    g.until("a lease", |g| {
        if let Some(dhcpv4::Event::Configured(c)) = g.sockets.get_mut::<dhcpv4::Socket<'_>>(h).poll() {
            found = Some((c.address.to_string(), c.router, c.dns_servers.to_vec()));
        }
        found.is_some()
    });
    let (address, router, dns) = found.unwrap();
    assert_eq!(address, "10.0.2.15/24");
    assert_eq!(router, Some(Ipv4Address::new(10, 0, 2, 2)));
    assert_eq!(dns, [Ipv4Address::new(10, 0, 2, 3)]);
    assert_eq!(g.user.leases(), [(MAC, Ipv4Address::new(10, 0, 2, 15))]);
}

#[test]
fn datagrams_of_any_size_go_both_ways_and_flows_end() {
    for at in ["127.0.0.1:0", "[::1]:0"] {
        let host = server(at);
        let to = gateway(host.local_addr().unwrap()).into();
        let mut g = Guest::new(Config::default());
        let h = datagrams(&mut g, 5000);
        // smoltcp's IPv6 does not fragment: what it sends is short, what it gets over IPv4 is not.
        let sizes: &[usize] = if at.starts_with('[') { &[1, 1400] } else { &[0, 1, 1472, 1473, 8192] };
        for &len in sizes {
            let data: Vec<u8> = (0..len).map(|i| byte(i, 3)).collect();
            g.sockets.get_mut::<udp::Socket<'_>>(h).send_slice(&data, to).unwrap();
            for _ in 0..20 {
                g.turn();
            }
            let mut buffer = vec![0; 65_536];
            let (n, peer) = host.recv_from(&mut buffer).unwrap();
            assert_eq!(buffer[..n], data, "{len} bytes");
            host.send_to(&buffer[..n], peer).unwrap();
            assert_eq!(receive(&mut g, h), (data, to));
        }
        assert_eq!(g.user.flows().len(), 1);
        g.poll.advance(Duration::from_secs(241));
        g.until("the flow's end", |g| g.user.flows().is_empty());
    }
}

#[test]
fn names_are_asked_of_the_hosts_servers() {
    let host = server("127.0.0.1:0");
    let silent = server("127.0.0.1:0");
    let path = std::env::temp_dir().join(format!("mynah-names-{}", std::process::id()));
    let line = |s: &UdpSocket| format!("nameserver [127.0.0.1]:{}\n", s.local_addr().unwrap().port());
    std::fs::write(&path, line(&silent) + &line(&host)).unwrap();
    let mut g = Guest::new(Config { resolv_conf: path.clone(), ..Config::default() });
    let h = datagrams(&mut g, 5353);
    let dns = IpEndpoint::new(Ipv4Address::new(10, 0, 2, 3).into(), 53);
    let answer = std::thread::spawn(move || {
        let mut buffer = [0; 512];
        let (n, peer) = host.recv_from(&mut buffer).unwrap();
        host.send_to(&[&buffer[..n], b"!"].concat(), peer).unwrap();
    });
    // The first server says nothing; the guest asks again, and the second one answers.
    g.sockets.get_mut::<udp::Socket<'_>>(h).send_slice(b"\x12\x34query", dns).unwrap();
    for _ in 0..20 {
        g.turn();
    }
    assert_eq!(exchange(&mut g, h, dns, b"\x12\x34query"), (b"\x12\x34query!".to_vec(), dns));
    answer.join().unwrap();
    std::fs::remove_file(path).unwrap();
}

#[test]
fn the_gateway_answers_echoes() {
    let mut g = Guest::new(Config::default());
    let b = || icmp::PacketBuffer::new(vec![icmp::PacketMetadata::EMPTY; 4], vec![0; 4096]);
    let mut s = icmp::Socket::new(b(), b());
    s.bind(icmp::Endpoint::Ident(0x77)).unwrap();
    let h = g.sockets.add(s);
    let request = Icmpv4Repr::EchoRequest { ident: 0x77, seq_no: 9, data: b"ping" };
    let mut bytes = vec![0; request.buffer_len()];
    request.emit(&mut Icmpv4Packet::new_unchecked(&mut bytes), &ChecksumCapabilities::default());
    let to = IpAddress::v4(10, 0, 2, 2);
    g.sockets.get_mut::<icmp::Socket<'_>>(h).send_slice(&bytes, to).unwrap();
    g.until("an echo", |g| g.sockets.get_mut::<icmp::Socket<'_>>(h).can_recv());
    let (reply, from) = g.sockets.get_mut::<icmp::Socket<'_>>(h).recv().unwrap();
    assert_eq!((from, reply[0], &reply[4..]), (to, 0, &bytes[4..]));
}

#[test]
fn a_port_where_nobody_is_is_said_to_be_unreachable() {
    let mut g = Guest::new(Config::default());
    let b = || icmp::PacketBuffer::new(vec![icmp::PacketMetadata::EMPTY; 4], vec![0; 4096]);
    let mut s = icmp::Socket::new(b(), b());
    s.bind(icmp::Endpoint::Udp(5001.into())).unwrap();
    let errors = g.sockets.add(s);
    let h = datagrams(&mut g, 5001);
    let free = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    g.sockets.get_mut::<udp::Socket<'_>>(h).send_slice(b"anybody?", gateway(free)).unwrap();
    g.until("an error", |g| g.sockets.get_mut::<icmp::Socket<'_>>(errors).can_recv());
    let (message, from) = g.sockets.get_mut::<icmp::Socket<'_>>(errors).recv().unwrap();
    assert_eq!((from, &message[..2]), (IpAddress::v4(10, 0, 2, 2), &[3u8, 3][..]));
}

#[test]
fn files_come_by_tftp() {
    let folder = std::env::temp_dir().join(format!("mynah-files-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let content: Vec<u8> = (0..10_000).map(|i| byte(i, 5)).collect();
    std::fs::write(folder.join("kernel"), &content).unwrap();
    let mut g = Guest::new(Config { tftp: Some(folder.clone()), ..Config::default() });
    let h = datagrams(&mut g, 5002);
    let to = IpEndpoint::new(Ipv4Address::new(10, 0, 2, 2).into(), 69);
    let (oack, _) = exchange(&mut g, h, to, b"\0\x01kernel\0octet\0blksize\x001000\0tsize\x000\0");
    assert_eq!(oack, b"\0\x06blksize\x001000\0tsize\x0010000\0");
    let mut got = Vec::new();
    for block in 0u16.. {
        let ack = [[0, 4], block.to_be_bytes()].concat();
        let (data, _) = exchange(&mut g, h, to, &ack);
        assert_eq!(data[..4], [[0, 3], (block + 1).to_be_bytes()].concat());
        if block == 3 {
            // One that is lost comes again.
            g.poll.advance(Duration::from_secs(2));
            assert_eq!(receive(&mut g, h).0, data);
        }
        got.extend_from_slice(&data[4..]);
        if data.len() < 1004 {
            break;
        }
    }
    assert_eq!(got, content);
    // Several blocks at a time.
    let request = b"\0\x01kernel\0octet\0blksize\x001000\0windowsize\x004\0";
    let (oack, _) = exchange(&mut g, h, to, request);
    assert_eq!(oack, b"\0\x06blksize\x001000\0windowsize\x004\0");
    let ack = |block: u8| [0, 4, 0, block];
    let mut sends = |acknowledged: u8, blocks: std::ops::RangeInclusive<u8>| {
        let (first, _) = exchange(&mut g, h, to, &ack(acknowledged));
        let mut all = vec![first];
        all.extend(blocks.clone().skip(1).map(|_| receive(&mut g, h).0));
        for (data, block) in all.iter().zip(blocks) {
            assert_eq!(data[..4], [0, 3, 0, block]);
            let at = usize::from(block - 1) * 1000;
            assert_eq!(data[4..], content[at..content.len().min(at + 1000)]);
        }
    };
    sends(0, 1..=4);
    // The third one was lost.
    sends(2, 3..=6);
    sends(6, 7..=10);
    // What is full is not the last.
    sends(10, 11..=11);
    assert_eq!(exchange(&mut g, h, to, b"\0\x01../kernel\0octet\0").0[..4], [0, 5, 0, 2]);
    assert_eq!(exchange(&mut g, h, to, b"\0\x02kernel\0octet\0").0[..4], [0, 5, 0, 2]);
    std::fs::remove_dir_all(folder).unwrap();
}

#[test]
fn who_asks_for_files_where_there_are_none_is_told() {
    let mut g = Guest::new(Config::default());
    let h = datagrams(&mut g, 5003);
    let to = IpEndpoint::new(Ipv4Address::new(10, 0, 2, 2).into(), 69);
    assert_eq!(exchange(&mut g, h, to, b"\0\x01kernel\0octet\0").0[..4], [0, 5, 0, 2]);
}

#[test]
fn ports_of_the_host_lead_to_the_guest() {
    let config =
        Config::parse([("hostfwd", "tcp:127.0.0.1:0-:80"), ("hostfwd", "udp:127.0.0.1:0-:81")]).unwrap();
    let mut g = Guest::new(config);
    let forwards = g.user.forwards();
    assert!(forwards.iter().all(|f| f.host.port() != 0), "the host's choice is told");
    let h = g.tcp(4096);
    g.socket(h).listen(80).unwrap();
    let mut peer = TcpStream::connect(forwards[0].host).unwrap();
    g.until("a connection", |g| g.socket(h).state() == tcp::State::Established);
    let seen = g.socket(h).remote_endpoint().unwrap();
    assert_eq!(seen, IpEndpoint::new(IpAddress::v4(10, 0, 2, 2), peer.local_addr().unwrap().port()));
    peer.write_all(b"hello").unwrap();
    g.until("data", |g| g.socket(h).can_recv());
    g.socket(h).send_slice(b"world").unwrap();
    g.socket(h).close();
    let reader = std::thread::spawn(move || {
        let mut got = String::new();
        peer.read_to_string(&mut got).unwrap();
        got
    });
    g.until("the answer", |_| reader.is_finished());
    assert_eq!(reader.join().unwrap(), "world");

    let h = datagrams(&mut g, 81);
    let peer = server("127.0.0.1:0");
    peer.send_to(b"in", forwards[1].host).unwrap();
    let (data, from) = receive(&mut g, h);
    assert_eq!(data, b"in");
    g.sockets.get_mut::<udp::Socket<'_>>(h).send_slice(b"out", from).unwrap();
    for _ in 0..20 {
        g.turn();
    }
    let mut buffer = [0; 10];
    let (n, from) = peer.recv_from(&mut buffer).unwrap();
    assert_eq!((&buffer[..n], from), (&b"out"[..], forwards[1].host));
    // Nobody listens in the guest: the host's peer is told.
    let free = g.user.add_forward("tcp:127.0.0.1:0-:9").unwrap();
    let mut peer = TcpStream::connect(free).unwrap();
    let reader = std::thread::spawn(move || peer.read(&mut [0]).map_err(|e| e.kind()));
    g.until("a reset", |_| reader.is_finished());
    assert_eq!(reader.join().unwrap(), Err(std::io::ErrorKind::ConnectionReset));
    assert!(g.user.remove_forward(false, free));
    assert!(TcpStream::connect(free).is_err());
}

#[test]
fn programs_and_sockets_are_behind_addresses_of_the_network() {
    let server = "10.0.2.100:7".parse().unwrap();
    // One that ends as smbd does: with a signal to all of its process group.
    let forward = GuestForward { server, to: Behind::Command("tr a-z A-Z; kill 0".into()) };
    let mut g = Guest::new(Config { guest_forwards: vec![forward], restrict: true, ..Config::default() });
    let h = g.connect(server, 4096);
    g.until("a connection", |g| g.socket(h).may_send());
    g.socket(h).send_slice(b"shout").unwrap();
    g.socket(h).close();
    let mut got = Vec::new();
    g.until("its output", |g| {
        while g.socket(h).can_recv() {
            g.socket(h).recv(|d| (d.len(), got.extend_from_slice(d))).unwrap();
        }
        !g.socket(h).may_recv()
    });
    assert_eq!(got, b"SHOUT");
}

#[test]
fn what_the_machine_has_is_behind_an_address_of_the_network() {
    /// The other ends of all connections.
    struct Lines(std::sync::Mutex<Vec<(String, socket2::Socket)>>);
    impl mynah_net::user::Dial for Lines {
        fn dial(&self, name: &str) -> std::io::Result<socket2::Socket> {
            let (ours, theirs) = socket2::Socket::pair(socket2::Domain::UNIX, socket2::Type::STREAM, None)?;
            self.0.lock().unwrap().push((name.into(), ours));
            Ok(theirs)
        }
    }
    let server = "10.0.2.100:1234".parse().unwrap();
    let forward = GuestForward { server, to: Behind::Chardev("line".into()) };
    let mut g = Guest::new(Config { guest_forwards: vec![forward], restrict: true, ..Config::default() });
    // Without anybody who makes connections it is refused.
    let h = g.connect(server, 4096);
    g.until("a reset", |g| g.socket(h).state() == tcp::State::Closed);
    let lines = std::sync::Arc::new(Lines(std::sync::Mutex::default()));
    g.user.set_dial(lines.clone());
    let h = g.connect(server, 4096);
    g.until("a connection", |g| g.socket(h).may_send());
    let (name, mut line) = lines.0.lock().unwrap().pop().unwrap();
    assert_eq!(name, "line");
    g.socket(h).send_slice(b"to the line").unwrap();
    g.until("it is sent", |g| g.socket(h).send_queue() == 0);
    let mut got = [0; 11];
    std::io::Read::read_exact(&mut line, &mut got).unwrap();
    assert_eq!(&got, b"to the line");
    std::io::Write::write_all(&mut line, b"from it").unwrap();
    let mut back = Vec::new();
    g.until("an answer", |g| {
        while g.socket(h).can_recv() {
            g.socket(h).recv(|d| (d.len(), back.extend_from_slice(d))).unwrap();
        }
        back.len() == 7
    });
    assert_eq!(back, b"from it");
}

#[test]
fn a_restricted_guest_gets_nowhere() {
    let (listener, at) = listen();
    listener.set_nonblocking(true).unwrap();
    let host = server("127.0.0.1:0");
    host.set_nonblocking(true).unwrap();
    let mut g = Guest::new(Config { restrict: true, ..Config::default() });
    let tcp = g.connect(gateway(at), 4096);
    let udp = datagrams(&mut g, 5003);
    let to = gateway(host.local_addr().unwrap());
    g.sockets.get_mut::<udp::Socket<'_>>(udp).send_slice(b"out", to).unwrap();
    let dns = SocketAddr::new([10, 0, 2, 3].into(), 53);
    g.sockets.get_mut::<udp::Socket<'_>>(udp).send_slice(b"name", dns).unwrap();
    g.until("a reset", |g| g.socket(tcp).state() == tcp::State::Closed);
    assert!(listener.accept().is_err());
    assert!(host.recv_from(&mut [0; 10]).is_err());
    assert!(g.user.flows().is_empty());
}

#[test]
fn long_segments_pass_unsplit_both_ways() {
    let (raw, port, ack, mut host) = Raw::with_connection(true, &[]);
    // Without window scaling the window is 64 KiB.
    let data: Vec<u8> = (0..60_000).map(|i| byte(i, 1)).collect();
    raw.tcp(Tcp { ports: (1000, port), seq: 101, ack, flags: ACK | PSH, data: &data, ..Tcp::default() });
    let mut got = vec![0; data.len()];
    host.read_exact(&mut got).unwrap();
    assert!(got == data);
    assert_eq!(raw.next().expect("acknowledged at once").ack, 101 + 60_000);
    assert_eq!(raw.user.flows()[0].counters.segments_from, 3, "SYN, ACK and one segment");

    host.write_all(&data[..50_000]).unwrap();
    let mut back = Vec::new();
    let mut longest = 0;
    while back.len() < 50_000 {
        let seen = raw.wait();
        assert_eq!(seen.partial, Some(Partial { start: 34, offset: 16 }));
        let len = seen.data.len();
        assert_eq!(seen.gso.is_some(), len > 536, "536 is what a guest takes that says nothing");
        longest = longest.max(len);
        back.extend_from_slice(&seen.data);
    }
    assert!(back == data[..50_000]);
    assert!(longest > 10_000, "{longest}");
}
