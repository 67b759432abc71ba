//! Many connections, few descriptors, floods: what a guest can take up is bounded, and others go on.
#![cfg(target_os = "linux")]
mod common;

use common::listen;
use common::process::{alone, descriptors, limit_descriptors, memory};
use common::raw::{ACK, FIN, PSH, RST, Raw, SYN, Seen, Tcp, datagram, packet};
use mynah_net::user::{Behind, Config, GuestForward};
use smoltcp::wire::IpProtocol;
use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::os::unix::net::UnixListener;
use std::thread;
use std::time::{Duration, Instant};

/// A server that gives back what it gets; after a first byte of `h` it closes at once, else when its peer does.
fn echoes() -> u16 {
    let (listener, at) = listen();
    thread::spawn(move || {
        for peer in listener.incoming() {
            let mut peer = peer.unwrap();
            thread::Builder::new().stack_size(64 << 10).spawn(move || echo(&mut peer)).unwrap();
        }
    });
    at.port()
}

fn echo(peer: &mut TcpStream) -> std::io::Result<()> {
    let mut buffer = [0; 100];
    loop {
        let n = peer.read(&mut buffer)?;
        peer.write_all(&buffer[..n])?;
        if n == 0 || buffer[0] == b'h' {
            return Ok(());
        }
    }
}

/// Sends a byte and has it back; then both close, the guest first or the host.
fn whole(raw: &Raw, from: u16, to: u16, guest_first: bool) {
    let ports = (from, to);
    let mut next = raw.open(from, to, &[]);
    let data = if guest_first { b"g" } else { b"h" };
    raw.tcp(Tcp { ports, seq: 101, ack: next, flags: ACK | PSH, data, ..Tcp::default() });
    let (mut got, mut ended, mut closed, mut acked) = (0, false, false, false);
    while !(ended && acked) {
        let seen = raw.wait();
        assert_eq!((seen.flags & RST, seen.seq), (0, next));
        next = next.wrapping_add(seen.data.len() as u32 + u32::from(seen.flags & FIN));
        got += seen.data.len();
        ended |= seen.flags & FIN != 0;
        acked |= seen.ack == 103;
        let close = !closed && (ended || guest_first && got > 0);
        let (seq, flags) = if close { (102, FIN | ACK) } else { (102 + u32::from(closed), ACK) };
        closed |= close;
        raw.tcp(Tcp { ports, seq, ack: next, flags, ..Tcp::default() });
    }
    assert_eq!(got, 1);
}

#[test]
fn twenty_thousand_connections_leave_nothing() {
    alone("twenty_thousand_connections_leave_nothing", &[], "", |_| {
        let to = echoes();
        let raw = Raw::new(Config { max_flows: 256, ..Config::default() }, false);
        let before = descriptors();
        let mut warm = 0;
        for n in 0..20_000u16 {
            whole(&raw, 1024 + n, to, n % 2 == 0);
            if n == 4000 {
                warm = memory();
            }
        }
        assert!(raw.user.flows().iter().all(|f| f.state == "TimeWait"));
        raw.poll.advance(Duration::from_secs(31));
        raw.poll.turn(&raw.user, Duration::ZERO);
        assert!(raw.user.flows().is_empty());
        assert_eq!((raw.poll.sockets(), raw.user.buffered()), (0, 0));
        // The host's end of the last ones may not have seen its end yet.
        let end = Instant::now() + Duration::from_secs(20);
        while descriptors() > before {
            assert!(Instant::now() < end, "{} descriptors, {before} before", descriptors());
            thread::sleep(Duration::from_millis(10));
        }
        let more = memory().saturating_sub(warm);
        assert!(more < 4 << 20, "{more} bytes more after 16,000 connections");
    });
}

#[test]
fn two_thousand_connections_at_once() {
    alone("two_thousand_connections_at_once", &[], "", |_| {
        const COUNT: u16 = 2000;
        if limit_descriptors(10_000) < 10_000 {
            eprintln!("skipped: the host allows less than 10,000 descriptors");
            return;
        }
        let (listener, at) = listen();
        let to = at.port();
        let server = thread::spawn(move || {
            let all: Vec<_> = listener.incoming().take(COUNT.into()).map(Result::unwrap).collect();
            for mut peer in &all {
                let mut buffer = [0; 2];
                peer.read_exact(&mut buffer).unwrap();
                peer.write_all(&buffer).unwrap();
            }
            all
        });
        let raw = Raw::new(Config::default(), false);
        let send = |from, seq, ack, flags, data: &[u8]| {
            raw.tcp(Tcp { ports: (from, to), seq, ack, flags, data, ..Tcp::default() });
        };
        for from in 1000..1000 + COUNT {
            send(from, 100, 0, SYN, b"");
        }
        let (mut opened, mut answers) = (0, HashMap::new());
        while answers.len() < COUNT.into() {
            let seen = raw.wait();
            let from = seen.ports.1;
            if seen.flags & SYN != 0 {
                opened += 1;
                send(from, 101, seen.seq.wrapping_add(1), ACK | PSH, &from.to_be_bytes());
            } else if !seen.data.is_empty() {
                assert_eq!(answers.insert(from, seen.data.clone()), None);
                send(from, 103, seen.seq.wrapping_add(2), ACK, b"");
            }
        }
        assert_eq!((opened, raw.user.flows().len()), (COUNT, COUNT.into()));
        assert!(answers.iter().all(|(from, data)| *data == from.to_be_bytes()));
        drop(server.join().unwrap());
        // They end when the host's ends have.
        for from in 1000..1000 + COUNT {
            send(from, 103, 0, RST, b"");
        }
        raw.poll.turn(&raw.user, Duration::ZERO);
        assert!(raw.user.flows().is_empty());
    });
}

/// Waits for the data of one flow; what other flows get is passed over, and returned if it is a reset.
fn answer(raw: &Raw, from: u16, resets: &mut Vec<u16>) -> Seen {
    loop {
        let seen = raw.wait();
        if seen.flags & RST != 0 {
            resets.push(seen.ports.1);
        } else if seen.ports.1 == from && (!seen.data.is_empty() || seen.flags & SYN != 0) {
            return seen;
        }
    }
}

/// One end of a connection that says a byte now and then.
struct Talk {
    ports: (u16, u16),
    seq: u32,
    ack: u32,
}

impl Talk {
    fn open(raw: &Raw, from: u16, to: u16, resets: &mut Vec<u16>) -> Self {
        let ports = (from, to);
        raw.tcp(Tcp { ports, seq: 100, flags: SYN, ..Tcp::default() });
        let seen = answer(raw, from, resets);
        assert_eq!(seen.flags, SYN | ACK);
        let talk = Self { ports, seq: 101, ack: seen.seq.wrapping_add(1) };
        raw.tcp(Tcp { ports, seq: 101, ack: talk.ack, flags: ACK, ..Tcp::default() });
        talk
    }

    fn say(&mut self, raw: &Raw, resets: &mut Vec<u16>) {
        let t = Tcp { ports: self.ports, ..Tcp::default() };
        raw.tcp(Tcp { seq: self.seq, ack: self.ack, flags: ACK | PSH, data: b"x", ..t });
        self.seq = self.seq.wrapping_add(1);
        let seen = answer(raw, self.ports.0, resets);
        assert_eq!((seen.seq, &seen.data[..]), (self.ack, &b"x"[..]));
        self.ack = self.ack.wrapping_add(1);
        raw.tcp(Tcp { seq: self.seq, ack: self.ack, flags: ACK, ..t });
    }
}

#[test]
fn without_descriptors_the_longest_idle_goes_and_new_ones_work() {
    let name = "without_descriptors_the_longest_idle_goes_and_new_ones_work";
    let to = if std::env::var("MYNAH_TEST_ALONE").is_ok() { 0 } else { echoes() };
    let said = alone(name, &[], &to.to_string(), |to| {
        let to = to.parse().unwrap();
        // Of 100 descriptors a protocol takes a quarter.
        limit_descriptors(100);
        let raw = Raw::new(Config::default(), false);
        let forward = raw.user.add_forward("tcp:127.0.0.1:0-:80").unwrap();
        let mut resets = Vec::new();
        let mut first = Talk::open(&raw, 1000, to, &mut resets);
        for from in 1001..1040 {
            Talk::open(&raw, from, to, &mut resets).say(&raw, &mut resets);
            first.say(&raw, &mut resets);
        }
        assert_eq!(raw.user.flows().len(), 25);
        assert_eq!(
            resets,
            Vec::from_iter(1001..1016),
            "the longest idle, in that order, and not the one that talks"
        );
        // Now others have all the descriptors that there were.
        let mut others = Vec::new();
        while let Ok(file) = File::open("/dev/null") {
            others.push(file);
        }
        for from in 1040..1045 {
            Talk::open(&raw, from, to, &mut resets).say(&raw, &mut resets);
            first.say(&raw, &mut resets);
        }
        assert_eq!(resets[15..], Vec::from_iter(1016..1021));
        // UDP, and who comes by a forward, as well.
        let dns = SocketAddrV4::new(Ipv4Addr::new(10, 0, 2, 2), 9);
        raw.send(&datagram(5000, dns, b"x"));
        assert!(raw.user.flows().iter().any(|f| f.protocol == "udp"));
        others.pop();
        let peer = TcpStream::connect(forward).unwrap();
        while let Ok(file) = File::open("/dev/null") {
            others.push(file);
        }
        raw.poll.turn(&raw.user, Duration::from_secs(1));
        assert!(raw.user.flows().iter().any(|f| f.guest.port() == 80));
        first.say(&raw, &mut resets);
        drop(peer);
    });
    if let Some(said) = said {
        assert!(said.contains("the guest has 25 connections: the oldest is closed"), "{said}");
        assert!(said.contains("no descriptor left (ulimit -n)"), "{said}");
    }
}

#[test]
fn a_flood_takes_up_little_and_others_go_on() {
    alone("a_flood_takes_up_little_and_others_go_on", &[], "", |_| {
        let to = echoes();
        // Nobody takes what comes here, so that connections stay half open; and a name server that says nothing.
        let deaf = TcpListener::bind("127.0.0.1:0").unwrap();
        let silent = UdpSocket::bind("127.0.0.1:0").unwrap();
        let path = std::env::temp_dir().join(format!("mynah-flood-{}", std::process::id()));
        std::fs::write(&path, format!("nameserver [127.0.0.1]:{}\n", silent.local_addr().unwrap().port()))
            .unwrap();
        let raw = Raw::new(Config { max_flows: 300, resolv_conf: path.clone(), ..Config::default() }, false);
        let mut resets = Vec::new();
        let mut other = Talk::open(&raw, 999, to, &mut resets);
        let mut random = 0x1234_5678_u32;
        let mut draw = move || {
            random ^= random << 13;
            random ^= random >> 17;
            random ^= random << 5;
            random
        };
        let (descriptors_before, memory_before) = (descriptors(), memory());
        let syn = |to: [u8; 4], ports, seq| {
            common::raw::segment(to, Tcp { ports, seq, flags: SYN, ..Tcp::default() })
        };
        let deaf = deaf.local_addr().unwrap().port();
        let name = SocketAddrV4::new(Ipv4Addr::new(10, 0, 2, 3), 53);
        let mut discover = vec![0; 240];
        discover[..4].copy_from_slice(&[1, 1, 6, 0]);
        discover[236..].copy_from_slice(&[99, 130, 83, 99]);
        discover.extend_from_slice(&[53, 1, 1, 255]);
        for kind in 0..7 {
            for n in 0..20_000u32 {
                let some = draw();
                let port = 1024 + (some >> 8) as u16 % 50_000;
                let mac = [2, 0, (n >> 16) as u8, (n >> 8) as u8, n as u8, 1];
                let mut frame = match kind {
                    0 => syn([10, 0, 2, 2], (port, deaf), some),
                    1 => syn([10, 0, 2, 99], (port, 80), some),
                    2 => datagram(port, name, &some.to_be_bytes()),
                    3 => datagram(port, SocketAddrV4::new(Ipv4Addr::new(10, 0, 2, 2), some as u16 | 1), b"x"),
                    4 => {
                        let mut f = vec![0xff; 6];
                        f.extend_from_slice(&mac);
                        f.extend_from_slice(&[8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
                        f.extend_from_slice(&mac);
                        f.extend_from_slice(&[
                            10,
                            0,
                            2,
                            20 + some as u8 % 200,
                            0,
                            0,
                            0,
                            0,
                            0,
                            0,
                            10,
                            0,
                            2,
                            2,
                        ]);
                        f
                    }
                    5 => {
                        discover[28..34].copy_from_slice(&mac);
                        datagram(68, SocketAddrV4::new(Ipv4Addr::BROADCAST, 67), &discover)
                    }
                    // The first fragment of a datagram that has no other.
                    _ => {
                        let mut f = packet([10, 0, 2, 15], [10, 0, 2, 2], IpProtocol::Udp, &[0x55; 1480]);
                        f[18..22].copy_from_slice(&[(n >> 8) as u8, n as u8, 0x20, 0]);
                        smoltcp::wire::Ipv4Packet::new_unchecked(&mut f[14..]).fill_checksum();
                        f
                    }
                };
                if kind == 5 {
                    frame[..6].fill(0xff);
                }
                raw.send(&frame);
                if n % 100 == 0 {
                    raw.poll.turn(&raw.user, Duration::ZERO);
                    raw.card.frames.lock().unwrap().clear();
                }
                if n % 1000 == 0 {
                    other.say(&raw, &mut resets);
                }
            }
            let flows = raw.user.flows();
            assert!(flows.iter().filter(|f| f.protocol == "tcp").count() <= 300);
            assert!(flows.iter().filter(|f| f.protocol == "udp").count() <= 300);
            assert!(raw.user.leases().len() <= 128);
            assert!(raw.user.buffered() <= 1 << 20, "{}", raw.user.buffered());
            // Both ends of connections are here.
            assert!(descriptors() <= descriptors_before + 4 * 300, "{kind}: {}", descriptors());
            let more = memory().saturating_sub(memory_before);
            assert!(more < 24 << 20, "{kind}: {more} bytes");
        }
        assert!(!resets.contains(&999));
        std::fs::remove_file(path).unwrap();
    });
}

#[test]
#[ignore = "half a GiB of memory"]
fn windows_that_were_told_are_no_promise_of_memory() {
    alone("windows_that_were_told_are_no_promise_of_memory", &[], "", |_| {
        limit_descriptors(10_000);
        let path = std::env::temp_dir().join(format!("mynah-promise-{}", std::process::id()));
        let listener = UnixListener::bind(&path).unwrap();
        let (deaf, to) = (7, echoes());
        let server = SocketAddrV4::new(Ipv4Addr::new(10, 0, 2, 2), deaf).into();
        let guest_forwards = vec![GuestForward { server, to: Behind::Unix(path.clone()) }];
        // They are taken, and nothing is read from them.
        thread::spawn(move || listener.incoming().map(Result::unwrap).for_each(std::mem::forget));
        let raw = Raw::new(Config { max_flows: 1000, guest_forwards, ..Config::default() }, true);
        let data = vec![7; 60_000];
        let mut most = 0;
        // All are told a window before the first sends anything.
        let opened = (2000..2900).map(|from| {
            raw.card.frames.lock().unwrap().clear();
            (from, raw.open(from, deaf, &[2, 4, 5, 0xb4, 1, 3, 3, 7]))
        });
        for (from, ack) in Vec::from_iter(opened) {
            for n in 0..14 {
                let seq = 101 + n * data.len() as u32;
                raw.tcp(Tcp { ports: (from, deaf), seq, ack, flags: ACK, data: &data, ..Tcp::default() });
            }
            most = most.max(raw.user.buffered());
        }
        assert!(most > 200 << 20, "{most} bytes: nothing was tried");
        assert!(most < 280 << 20, "{most} bytes");
        raw.card.frames.lock().unwrap().clear();
        let mut resets = Vec::new();
        Talk::open(&raw, 999, to, &mut resets).say(&raw, &mut resets);
        assert!(resets.is_empty());
        std::fs::remove_file(path).unwrap();
    });
}
