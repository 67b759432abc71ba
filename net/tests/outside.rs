//! Other hosts: a network of this test's own, with a router in it, in namespaces of Linux (unshare(1), ip(8)). Without
//! these, or where the host does not allow them, it is said that nothing was tried.
#![cfg(target_os = "linux")]
mod common;

use common::process::alone;
use common::raw::{GUEST, Raw, datagram, packet, six, sum_six};
use mynah_net::user::Config;
use smoltcp::wire::{IpProtocol, Ipv4Packet};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddrV4};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const WRAP: [&str; 4] = ["unshare", "--net", "--user", "--map-root-user"];

fn possible() -> bool {
    let works = |program: &str, args: &[&str]| {
        Command::new(program)
            .args(args)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .is_ok_and(|s| s.success())
    };
    let all = works("unshare", &["--net", "--user", "--map-root-user", "ip", "link"])
        && works("nsenter", &["--version"]);
    if !all {
        eprintln!("skipped: no namespaces (unshare, nsenter, ip)");
    }
    all
}

fn shell(script: &str) {
    let out = Command::new("sh").args(["-ec", script]).output().unwrap();
    assert!(out.status.success(), "{script}: {}", String::from_utf8_lossy(&out.stderr));
}

/// A router, as a process that holds its namespace.
struct Router(Child);

impl Router {
    /// This host is 192.0.2.2 and knows the router 192.0.2.1, behind which is 198.51.100.0/24, where nobody is.
    fn new() -> Self {
        let router = Command::new("unshare").args(["--net", "sleep", "600"]).spawn().unwrap();
        let id = router.id();
        let own = std::fs::read_link("/proc/self/ns/net").unwrap();
        let end = Instant::now() + Duration::from_secs(10);
        while std::fs::read_link(format!("/proc/{id}/ns/net")).unwrap() == own {
            assert!(Instant::now() < end);
            std::thread::sleep(Duration::from_millis(5));
        }
        let inside = format!("nsenter --target {id} --net");
        shell(&format!(
            "ip link set lo up; ip addr add 203.0.113.7/32 dev lo; ip -6 addr add 2001:db8::7/128 dev lo
             ip link add v0 type veth peer name v1; ip link set v1 netns {id}
             ip addr add 192.0.2.2/24 dev v0; ip -6 addr add 2001:db8:1::2/64 dev v0 nodad; ip link set v0 up
             {inside} ip addr add 192.0.2.1/24 dev v1; {inside} ip -6 addr add 2001:db8:1::1/64 dev v1 nodad
             {inside} ip link set v1 up
             {inside} sh -c 'echo 1 > /proc/sys/net/ipv4/ip_forward; echo 1 > /proc/sys/net/ipv6/conf/all/forwarding'
             {inside} ip -6 route add 2001:db8:2::/64 via 2001:db8:1::2
             ip -6 route add 2001:db8:2::/64 via 2001:db8:1::1
             {inside} ip route add 198.51.100.0/25 via 192.0.2.2
             {inside} ip route add prohibit 198.51.100.128/25
             ip route add 198.51.100.0/24 via 192.0.2.1
             echo 0 0 > /proc/sys/net/ipv4/ping_group_range"
        ));
        Self(router)
    }
}

impl Drop for Router {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn hops(mut frame: Vec<u8>, hops: u8) -> Vec<u8> {
    frame[22] = hops;
    Ipv4Packet::new_unchecked(&mut frame[14..]).fill_checksum();
    frame
}

fn echo(to: [u8; 4], ttl: u8, seq: u8) -> Vec<u8> {
    let mut m = vec![8, 0, 0, 0, 0x12, 0x34, 0, seq];
    m.extend_from_slice(b"data");
    let words: u32 = m.chunks(2).map(|c| u32::from(u16::from_be_bytes([c[0], c[1]]))).sum();
    let sum = !((words & 0xffff) + (words >> 16)) as u16;
    m[2..4].copy_from_slice(&sum.to_be_bytes());
    hops(packet(GUEST, to, IpProtocol::Icmp, &m), ttl)
}

/// The next ICMP message that comes: from whom, and what.
#[track_caller]
fn message(raw: &Raw) -> ([u8; 4], Vec<u8>) {
    let end = Instant::now() + Duration::from_secs(20);
    loop {
        let next = raw.card.frames.lock().unwrap().pop_front();
        if let Some((_, f)) = next
            && f[12..14] == [8, 0]
            && f[23] == 1
        {
            return ([f[26], f[27], f[28], f[29]], f[34..].to_vec());
        }
        assert!(Instant::now() < end, "no answer: {:?}", raw.user.flows());
        raw.poll.turn(&raw.user, Duration::from_millis(10));
    }
}

fn echo_six(to: &str, ttl: u8, seq: u8) -> Vec<u8> {
    let mut m = vec![128, 0, 0, 0, 0x56, 0x78, 0, seq];
    m.extend_from_slice(b"data");
    sum_six(to, &mut m);
    six(58, to, ttl, &m)
}

/// The next ICMPv6 message that is not neighbour discovery; asked who it is, the guest answers.
#[track_caller]
fn message_six(raw: &Raw) -> (String, Vec<u8>) {
    let end = Instant::now() + Duration::from_secs(20);
    loop {
        let next = raw.card.frames.lock().unwrap().pop_front();
        if let Some((_, f)) = next
            && f[12..14] == [0x86, 0xdd]
            && f[20] == 58
        {
            if f[54] == 135 {
                // ADVERT of fec0::15 (RFC 4861, 4.4).
                let mut m = vec![136, 0, 0, 0, 0x60, 0, 0, 0];
                m.extend_from_slice(&f[62..78]);
                m.extend_from_slice(&[2, 1]);
                m.extend_from_slice(&common::MAC);
                let to = Ipv6Addr::from(*f[22..].first_chunk::<16>().unwrap()).to_string();
                sum_six(&to, &mut m);
                raw.send(&six(58, &to, 255, &m));
            } else if f[54] != 134 {
                return (Ipv6Addr::from(*f[22..].first_chunk::<16>().unwrap()).to_string(), f[54..].to_vec());
            }
        }
        assert!(Instant::now() < end, "no answer: {:?}", raw.user.flows());
        raw.poll.turn(&raw.user, Duration::from_millis(10));
    }
}

#[test]
fn echoes_and_traceroute_go_to_other_hosts() {
    if std::env::var("MYNAH_TEST_ALONE").is_err() && !possible() {
        return;
    }
    alone("echoes_and_traceroute_go_to_other_hosts", &WRAP, "", |_| {
        let _router = Router::new();
        let raw = Raw::new(Config::default(), false);
        // There and back, with the guest's own number; of two hosts at once.
        for to in [[203, 0, 113, 7], [192, 0, 2, 1]] {
            raw.send(&echo(to, 64, 1));
            let (from, m) = message(&raw);
            assert_eq!((from, &m[..2], &m[4..]), (to, &[0, 0][..], &b"\x12\x34\0\x01data"[..]));
        }
        assert_eq!(raw.user.flows().len(), 2);
        // The router on the way says that an echo's time is over, and quotes the guest's.
        raw.send(&echo([198, 51, 100, 9], 2, 7));
        let (from, m) = message(&raw);
        assert_eq!((from, &m[..2]), ([192, 0, 2, 1], &[11, 0][..]));
        assert_eq!((m[8 + 9], &m[8 + 16..8 + 20]), (1, &[198, 51, 100, 9][..]), "the packet it is about");
        assert_eq!(&m[8 + 20..8 + 28], [8, 0, 0, 0, 0x12, 0x34, 0, 7]);
        // The same of a datagram, as traceroute(8) sends them; the first hop is the NAT.
        let to = SocketAddrV4::new(Ipv4Addr::new(198, 51, 100, 9), 33_434);
        raw.send(&hops(datagram(5000, to, b"x"), 1));
        let (from, m) = message(&raw);
        assert_eq!((from, &m[..2]), ([10, 0, 2, 2], &[11, 0][..]));
        raw.send(&hops(datagram(5000, to, b"x"), 2));
        let (from, m) = message(&raw);
        assert_eq!((from, &m[..2]), ([192, 0, 2, 1], &[11, 0][..]));
        assert_eq!(m[8 + 20..8 + 24], [0x13, 0x88, 0x82, 0x9a], "the guest's ports");
        // It is said of where nobody may go, of both.
        raw.send(&echo([198, 51, 100, 200], 64, 8));
        let (from, m) = message(&raw);
        assert_eq!((from, &m[..2]), ([192, 0, 2, 1], &[3, 13][..]));
        raw.send(&datagram(5001, SocketAddrV4::new(Ipv4Addr::new(198, 51, 100, 200), 9), b"x"));
        let (from, m) = message(&raw);
        assert_eq!((from, &m[..2]), ([192, 0, 2, 1], &[3, 13][..]));
        // Over IPv6: there and back, and the router on the way.
        raw.send(&echo_six("2001:db8::7", 64, 3));
        let (from, m) = message_six(&raw);
        assert_eq!((&from[..], &m[..2], &m[4..]), ("2001:db8::7", &[129, 0][..], &b"\x56\x78\0\x03data"[..]));
        raw.send(&echo_six("2001:db8:2::9", 2, 4));
        let (from, m) = message_six(&raw);
        assert_eq!((&from[..], &m[..2]), ("2001:db8:1::1", &[3, 0][..]));
        assert_eq!((m[8 + 40], &m[8 + 44..8 + 48]), (128, &[0x56, 0x78, 0, 4][..]));
        // All of it ends.
        raw.poll.advance(Duration::from_secs(300));
        raw.poll.turn(&raw.user, Duration::ZERO);
        assert_eq!((raw.user.flows().len(), raw.poll.sockets()), (0, 0));
    });
}

#[test]
fn a_host_that_forbids_pings_says_so() {
    if std::env::var("MYNAH_TEST_ALONE").is_err() && !possible() {
        return;
    }
    let said = alone("a_host_that_forbids_pings_says_so", &WRAP, "", |_| {
        shell("ip link set lo up; ip addr add 203.0.113.7/32 dev lo");
        let raw = Raw::new(Config::default(), false);
        raw.send(&echo([203, 0, 113, 7], 64, 1));
        raw.poll.turn(&raw.user, Duration::ZERO);
        assert!(raw.user.flows().is_empty());
    });
    assert!(said.is_none_or(|s| s.contains("net.ipv4.ping_group_range")));
}
