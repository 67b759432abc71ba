//! Frames that are random, and frames that were right once: none of them harms, and what they take up is bounded.
#![cfg(target_os = "linux")]
mod common;

use common::MAC;
use common::process::{alone, memory};
use common::raw::{ACK, FIN, GATEWAY, PSH, RST, Raw, SYN, Tcp, datagram, packet, segment, six};
use mynah_net::user::Config;
use mynah_net::{Backend, Frame, Gso, Offload, Partial};
use smoltcp::wire::{IpProtocol, Ipv4Packet};
use std::io::IoSlice;
use std::net::{SocketAddrV4, TcpListener, UdpSocket};
use std::process::Command;
use std::time::Duration;

/// The next number below `n` (xorshift).
struct Dice(u32);

impl Dice {
    fn draw(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 17;
        self.0 ^= self.0 << 5;
        self.0 as usize % n.max(1)
    }
}

/// Frames that are right, of each kind.
fn seeds(raw: &Raw, from: u16, tcp: u16, udp: u16) -> Vec<Vec<u8>> {
    let gateway = |port| SocketAddrV4::new(GATEWAY.into(), port);
    let mut all = Vec::new();
    // Connections: new ones, and one that is open, with its numbers.
    let syn = Tcp {
        ports: (from, tcp),
        seq: 100,
        flags: SYN,
        options: &[2, 4, 5, 0xb4, 1, 3, 3, 7],
        ..Tcp::default()
    };
    raw.tcp(syn);
    let ack = loop {
        let seen = raw.wait();
        if seen.ports.1 != from {
            continue;
        }
        if (seen.flags, seen.ack) == (SYN | ACK, 101) {
            break seen.seq.wrapping_add(1);
        }
        // A changed frame has opened a connection there: it is closed.
        raw.tcp(Tcp { ports: (from, tcp), seq: seen.ack, flags: RST, ..Tcp::default() });
        raw.tcp(syn);
    };
    for (from, seq, ack, flags, data) in [
        (1001, 1, 0, SYN, &[][..]),
        (from, 101, ack, ACK | PSH, &[7; 300]),
        (from, 401, ack, ACK, &[7; 1460]),
        (from, 5000, ack, ACK, &[7; 900]),
        (from, 101, ack.wrapping_add(9), ACK, &[]),
        (1001, 2, 1, FIN | ACK, &[]),
        (1001, 2, 1, RST, &[]),
    ] {
        all.push(segment(GATEWAY, Tcp { ports: (from, tcp), seq, ack, flags, data, ..Tcp::default() }));
    }
    all.push(datagram(5000, gateway(udp), &[1; 100]));
    all.push(datagram(
        5001,
        SocketAddrV4::new([10, 0, 2, 3].into(), 53),
        b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0",
    ));
    all.push(datagram(5002, gateway(69), b"\0\x01file\0octet\0blksize\x001000\0tsize\x000\0"));
    all.push(datagram(5002, gateway(69), b"\0\x04\0\x01"));
    // DISCOVER that wishes for an address.
    let mut dhcp = vec![0; 240];
    dhcp[..4].copy_from_slice(&[1, 1, 6, 0]);
    dhcp[28..34].copy_from_slice(&MAC);
    dhcp[236..].copy_from_slice(&[99, 130, 83, 99]);
    dhcp.extend_from_slice(&[53, 1, 1, 50, 4, 10, 0, 2, 15, 55, 2, 1, 3, 255]);
    let mut discover = datagram(68, SocketAddrV4::new([255; 4].into(), 67), &dhcp);
    discover[..6].fill(0xff);
    all.push(discover);
    // An echo, an error about a datagram, fragments.
    all.push(packet([10, 0, 2, 15], GATEWAY, IpProtocol::Icmp, &[8, 0, 0xf7, 0xff, 0, 0, 0, 0]));
    all.push(packet(
        [10, 0, 2, 15],
        GATEWAY,
        IpProtocol::Icmp,
        &[3, 3, 0xfc, 0xfc, 0, 0, 0, 0, 0x45, 0, 0, 28],
    ));
    for (place, len) in [(0x2000, 1480), (0x20b9, 1480), (0x00b9, 64)] {
        let mut f = packet([10, 0, 2, 15], GATEWAY, IpProtocol::Udp, &vec![0x55; len]);
        f[20..22].copy_from_slice(&u16::to_be_bytes(place));
        Ipv4Packet::new_unchecked(&mut f[14..]).fill_checksum();
        all.push(f);
    }
    let mut arp = vec![0xff; 6];
    arp.extend_from_slice(&MAC);
    arp.extend_from_slice(&[8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
    arp.extend_from_slice(&MAC);
    arp.extend_from_slice(&[10, 0, 2, 15, 0, 0, 0, 0, 0, 0, 10, 0, 2, 2]);
    all.push(arp);
    // IPv6: solicitations, DHCPv6, a SYN, a fragment behind other extension headers.
    all.push(six(58, "ff02::2", 255, &[133, 0, 0x7b, 0x37, 0, 0, 0, 0]));
    let target = "fec0::2".parse::<std::net::Ipv6Addr>().unwrap().octets();
    all.push(six(58, "ff02::1:ff00:2", 255, &[&[135, 0, 0, 0, 0, 0, 0, 0][..], &target].concat()));
    all.push(six(17, "ff02::1:2", 1, &[2, 0x22, 2, 0x23, 0, 16, 0, 0, 11, 1, 2, 3, 0, 6, 0, 0]));
    all.push(six(6, "fec0::2", 64, &all[0][34..]));
    all.push(six(
        0,
        "fec0::2",
        64,
        &[&[43, 0, 0, 0, 0, 0, 0, 0, 44, 0, 0, 0, 0, 0, 0, 0, 17, 0, 0, 1, 0, 0, 0, 1][..], &[9; 64]]
            .concat(),
    ));
    all
}

/// The frames of a capture that `-object filter-dump` has made, if MYNAH_PCAP names one: of a real guest's.
fn captured() -> Vec<Vec<u8>> {
    let Some(path) = std::env::var_os("MYNAH_PCAP") else { return Vec::new() };
    let file = std::fs::read(path).unwrap();
    let mut rest = &file[24..];
    let mut all = Vec::new();
    while let Some((head, behind)) = rest.split_first_chunk::<16>() {
        let len = u32::from_le_bytes(head[8..12].try_into().unwrap()) as usize;
        all.push(behind[..len].to_vec());
        rest = &behind[len..];
    }
    assert!(!all.is_empty());
    all
}

fn change(frame: &mut Vec<u8>, dice: &mut Dice) {
    for _ in 0..dice.draw(5) {
        match dice.draw(6) {
            0 => frame.truncate(dice.draw(frame.len() + 1)),
            1 => frame.resize(frame.len() + dice.draw(64), dice.draw(256) as u8),
            2 => {
                // A length, an offset or a number at its ends.
                let at = dice.draw(frame.len().saturating_sub(1));
                let value = [0, 1, 0x7fff, 0x8000, 0xffff][dice.draw(5)];
                if let Some(two) = frame.get_mut(at..at + 2) {
                    two.copy_from_slice(&u16::to_be_bytes(value));
                }
            }
            _ => {
                let at = dice.draw(frame.len());
                if let Some(b) = frame.get_mut(at) {
                    *b = dice.draw(256) as u8;
                }
            }
        }
    }
}

fn storm(rounds: u32, seed: u32) {
    let mut config =
        Config::parse([("hostfwd", "tcp:127.0.0.1:0-:80"), ("hostfwd", "udp:127.0.0.1:0-:81")]).unwrap();
    config.max_flows = 16;
    config.resolv_conf = "/nonexistent".into();
    config.tftp = Some(std::env::temp_dir());
    let raw = Raw::new(config, true);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
    let (tcp, udp_port) = (listener.local_addr().unwrap().port(), udp.local_addr().unwrap().port());
    let mut seeds = seeds(&raw, 1000, tcp, udp_port);
    let captured = captured();
    let arp = seeds.iter().find(|f| f[12..14] == [8, 6]).unwrap().clone();
    let mut dice = Dice(seed);
    let mut before = 0;
    for round in 0..rounds {
        let mut frame = if dice.draw(10) == 0 {
            (0..dice.draw(200)).map(|_| dice.draw(256) as u8).collect()
        } else if !captured.is_empty() && dice.draw(2) == 0 {
            captured[dice.draw(captured.len())].clone()
        } else {
            seeds[dice.draw(seeds.len())].clone()
        };
        change(&mut frame, &mut dice);
        // Nothing is asked of what is outside of this machine.
        if frame.len() >= 34 && frame[12..14] == [8, 0] {
            frame[30..33].copy_from_slice(&[10, 0, 2]);
        } else if frame.len() >= 54 && frame[38] != 0xff {
            frame[38..40].copy_from_slice(&[0xfe, 0xc0]);
        }
        // A right header checksum lets what is wrong get further.
        if dice.draw(4) != 0 && frame.len() >= 34 && frame[12..14] == [8, 0] {
            let n = usize::from(frame[14] & 15) * 4;
            if n >= 20 && frame.len() >= 14 + n {
                Ipv4Packet::new_unchecked(&mut frame[14..]).fill_checksum();
            }
        }
        let offload = match dice.draw(3) {
            0 => Offload { valid: true, ..Offload::default() },
            1 => Offload::default(),
            _ => Offload {
                partial: Some(Partial { start: dice.draw(65_536) as u16, offset: dice.draw(65_536) as u16 }),
                gso: Some(Gso { v6: dice.draw(2) == 0, size: dice.draw(65_536) as u16 }),
                valid: false,
            },
        };
        let (a, b) = frame.split_at(dice.draw(frame.len() + 1));
        raw.user.send(&Frame { offload, parts: &[IoSlice::new(a), IoSlice::new(b)] });
        if round % 64 == 0 {
            raw.poll.advance(Duration::from_millis(dice.draw(3000) as u64));
            raw.poll.turn(&raw.user, Duration::ZERO);
            while listener.accept().is_ok() {}
        }
        if round % 4096 == 0 {
            assert!(raw.user.buffered() <= 16 * (2 << 20), "{}", raw.user.buffered());
            assert!(raw.user.flows().len() <= 3 * 16 + 64 && raw.poll.sockets() <= 3 * 16 + 64 + 2);
            // What is open is not for ever: another in its place.
            seeds.splice(
                ..7,
                self::seeds(&raw, 1100 + (round >> 12) as u16, tcp, udp_port).into_iter().take(7),
            );
        }
        raw.card.frames.lock().unwrap().clear();
        if round == 10_000 {
            before = memory();
        }
    }
    let more = memory().saturating_sub(before);
    assert!(more < 40 << 20, "{more} bytes");
    // It still works.
    raw.send(&arp);
    let answers = raw.card.frames.lock().unwrap();
    assert!(answers.iter().any(|(_, f)| f[12..14] == [8, 6] && f[21] == 2), "ARP is answered");
}

/// In a network of its own, if the host allows that: no service of this machine hears of it.
fn apart(name: &str, rounds: u32, seeds: u32) {
    let apart = ["unshare", "--net", "--user", "--map-root-user"];
    let works = Command::new(apart[0]).args([&apart[1..], &["ip", "link"]].concat()).output();
    let wrap = if works.is_ok_and(|w| w.status.success()) { &apart[..] } else { &[] };
    alone(name, wrap, if wrap.is_empty() { "" } else { "apart" }, |apart| {
        if !apart.is_empty() {
            assert!(Command::new("ip").args(["link", "set", "lo", "up"]).status().unwrap().success());
        }
        (1..=seeds).for_each(|seed| storm(rounds, seed.wrapping_mul(0x2545_f491)));
    });
}

#[test]
fn no_frame_at_all_harms() {
    apart("no_frame_at_all_harms", 300_000, 1);
}

#[test]
#[ignore = "minutes: thirty million frames"]
fn no_frame_of_many_millions_harms() {
    // MYNAH_PCAP adds a real guest's; MYNAH_SEEDS has so many times three million.
    let seeds = std::env::var("MYNAH_SEEDS").map_or(10, |n| n.parse().expect("a number"));
    apart("no_frame_of_many_millions_harms", 3_000_000, seeds);
}
