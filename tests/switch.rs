//! `mynah switch`, `mynah ip` and taps: who reaches whom in each mode, and what one guest can do to others.
//!
//! The host and the outside are network namespaces, for which the tests must be root; small programs that speak frames
//! stand in for guests. `cargo test --test switch`.
#![cfg(target_os = "linux")]

#[path = "switch/guest.rs"]
mod guest;
#[path = "switch/taps.rs"]
mod taps;
#[path = "switch/world.rs"]
mod world;

use guest::{ALL, Guest, Ip, LONG, SHORT, prefixed};
use std::io::Write;
use std::net::UdpSocket;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use world::{ECHO, HOST, OUTSIDE, Place, Switch, can, mynah, world};

/// A mode of the switch's, and what of it is proven: the rows of the table in docs/network.md.
struct Row {
    /// Of the switch; @ is its folder.
    options: &'static str,
    guests: [Ip; 2],
    /// Where a guest finds the host, and who brings it there.
    host: Ip,
    /// Who brings a guest outside.
    gateway: Ip,
    /// Guest to guest, guest to host, host to guest, guest to outside, outside to guest.
    cells: [bool; 5],
}

/// Whether a datagram gets to a guest from a socket of the host's or of the outside's, and back.
fn gets_in(from: &UdpSocket, to: (Ip, u16), guest: &mut Guest, expected: bool) -> bool {
    // Nobody may be there to send it to.
    if from.send_to(b"hello", to_addr(to)).is_err() {
        return false;
    }
    let Some(got) = guest.receive(9, if expected { LONG } else { SHORT }) else { return false };
    guest.datagram(got.mac, got.from, 9, b"hello yourself");
    let mut bytes = [0; 64];
    from.set_read_timeout(Some(LONG)).unwrap();
    // What the host says of an earlier try may come first.
    let n = (0..3).find_map(|_| from.recv(&mut bytes).ok()).unwrap_or(0);
    got.data == b"hello" && bytes[..n] == *b"hello yourself"
}

fn to_addr(to: (Ip, u16)) -> std::net::SocketAddr {
    to.into()
}

/// Tries each cell.
fn cells(host: &Place, outside: &Place, row: &Row) -> [bool; 5] {
    let switch = Switch::start(host, row.options);
    let [a, b] = row.guests;
    let mut one = Guest::new(&switch.path("a"), 1, a);
    let mut two = Guest::new(&switch.path("b"), 2, b);
    let expected = row.cells;
    // Both are there, and known.
    switch.settle(2);
    two.send(&two.frame(ALL, b"here"));
    one.send(&one.frame(ALL, b"here"));
    let reaches = two.wait(LONG, |f| (f.ends_with(b"here")).then_some(()));
    let found = [
        reaches.is_some() && one.wait(LONG, |f| (f.ends_with(b"here")).then_some(())).is_some(),
        one.echoes((row.host, ECHO), row.host, expected[1]),
        gets_in(&host.socket(0), (a, 9), &mut one, expected[2]),
        one.echoes((OUTSIDE, ECHO), row.gateway, expected[3]),
        gets_in(&outside.socket(0), (a, 9), &mut one, expected[4]),
    ];
    let ip = mynah().arg("ip").arg(switch.path("ctl")).arg("a").output().unwrap();
    let said = String::from_utf8_lossy(&ip.stdout).trim().to_owned();
    assert_eq!(said, a.map(|n| n.to_string()).join("."), "mynah ip: {}", String::from_utf8_lossy(&ip.stderr));
    found
}

#[test]
fn who_reaches_whom_in_each_mode() {
    if !can() {
        return;
    }
    let ports = "--port @/a --port @/b";
    let lan = [[192, 0, 2, 11], [192, 0, 2, 12]];
    let (private, internal) = (format!("{ports} --mode private"), [[10, 77, 0, 11], [10, 77, 0, 12]]);
    let rows = [
        ("private", private, internal, [10, 77, 0, 1], [10, 77, 0, 1], [true, false, false, false, false]),
        (
            "internal",
            format!("{ports} --mode internal --tap m0,address=10.77.0.1/24"),
            internal,
            [10, 77, 0, 1],
            [10, 77, 0, 1],
            [true, true, true, false, false],
        ),
        ("external", format!("{ports} --mode external --tap m0,bridge=br0"), lan, HOST, OUTSIDE, [true; 5]),
        // Addresses are given away, and no more.
        (
            "private",
            format!("{ports} --mode private --user restrict=on"),
            [[10, 0, 2, 15], [10, 0, 2, 16]],
            [10, 0, 2, 2],
            [10, 0, 2, 2],
            [true, false, false, false, false],
        ),
        (
            "nat",
            format!("{ports} --mode nat"),
            [[10, 0, 2, 15], [10, 0, 2, 16]],
            [10, 0, 2, 2],
            [10, 0, 2, 2],
            [true, true, false, true, false],
        ),
    ];
    for (name, options, guests, at, gateway, cells) in rows {
        let (host, outside) = world();
        if name == "external" {
            host.ip("link add br0 type bridge");
            host.ip("link set h0 master br0");
            host.ip("link set br0 up");
            host.ip("addr add 192.0.2.1/24 dev br0");
        } else {
            host.ip("addr add 192.0.2.1/24 dev h0");
        }
        // The outside would send guests' answers by the host, if that let it.
        if name != "external" {
            outside.ip("route add default via 192.0.2.1");
        }
        let options: &'static str = options.leak();
        let row = Row { options, guests, host: at, gateway, cells };
        assert_eq!(self::cells(&host, &outside, &row), cells, "{name}");
    }
}

#[test]
fn forwards_lead_to_a_guest_behind_the_nat() {
    if !can() {
        return;
    }
    let (host, outside) = world();
    host.ip("addr add 192.0.2.1/24 dev h0");
    let forward = "hostfwd=udp:0.0.0.0:5009-10.0.2.16:9";
    let switch = Switch::start(&host, &format!("--port @/lan,guests=2 --user {forward}"));
    let mut first = Guest::new(&switch.path("lan"), 1, [10, 0, 2, 15]);
    let mut second = Guest::new(&switch.path("lan"), 2, [10, 0, 2, 16]);
    switch.settle(2);
    first.send(&first.frame(ALL, b"here"));
    second.wait(LONG, |f| f.ends_with(b"here").then_some(())).unwrap();
    assert!(gets_in(&host.socket(0), ([127, 0, 0, 1], 5009), &mut second, true));
    assert!(gets_in(&outside.socket(0), (HOST, 5009), &mut second, true));
    // A third finds no place, and the two go on.
    let mut third = std::os::unix::net::UnixStream::connect(switch.path("lan")).unwrap();
    assert_eq!(std::io::Read::read(&mut third, &mut [0]).unwrap(), 0);
    assert!(first.echoes((OUTSIDE, ECHO), [10, 0, 2, 2], true));
}

#[test]
fn vlans_are_apart_and_a_trunk_has_them_all() {
    if !can() {
        return;
    }
    let host = Place::new().unwrap();
    let ports = "--port @/a,vlan=10 --port @/b,vlan=10 --port @/c,vlan=20 --port @/t,trunk=10:20";
    let switch = Switch::start(&host, ports);
    let of = |name: &str, n| Guest::new(&switch.path(name), n, [10, 0, 0, n]);
    let (mut a, mut b, mut c, mut t) = (of("a", 1), of("b", 2), of("c", 3), of("t", 4));
    switch.settle(4);
    let plain = a.frame(ALL, b"from a");
    let tagged = |vlan: u8, frame: &[u8]| [&frame[..12], &[0x81, 0, 0, vlan], &frame[12..]].concat();
    a.send(&plain);
    assert_eq!(b.next(LONG).unwrap(), plain);
    assert_eq!(t.next(LONG).unwrap(), tagged(10, &plain), "a trunk has tags");
    // A tag of another's VLAN, or two, lead nowhere.
    let own = a.frame(ALL, b"hopping");
    a.send(&tagged(20, &own));
    a.send(&tagged(10, &tagged(20, &own)));
    t.send(&tagged(10, &tagged(20, &own)));
    let last = t.frame(ALL, b"from the trunk");
    t.send(&tagged(20, &last));
    // What comes first at c is what came last: nothing of all that was before.
    assert_eq!(c.next(LONG).unwrap(), last);
    let after = t.frame(ALL, b"and for ten");
    t.send(&tagged(10, &after));
    assert_eq!(b.next(LONG).unwrap(), after);
    let (a, t) = (switch.port("a"), switch.port("t"));
    assert_eq!((&a["drops"]["vlan"], &a["drops"]["double_tag"]), (&1.into(), &1.into()));
    assert_eq!(t["drops"]["double_tag"], 1);
}

/// What a bucket should have let pass by its own clock, in octets; and no more of it than by ours.
fn may_pass(limit: &serde_json::Value, way: &str, wall: Duration) -> f64 {
    let number = |v: &serde_json::Value| v.as_f64().unwrap();
    let (clock, idle) = (number(&limit[way]["clock_ns"]), number(&limit[way]["idle_ns"]));
    assert!(clock <= wall.as_nanos() as f64, "its clock is the host's");
    number(&limit["burst"]) + number(&limit["rate"]) / 8.0 * (clock - idle) / 1e9
}

#[test]
fn a_rate_is_kept_both_ways() {
    if !can() {
        return;
    }
    let host = Place::new().unwrap();
    let options = "--port @/slow,rate=20M,burst=16K --port @/fast,queue=16M --port @/deep";
    let options = options.replace("rate=20M", "queue=16M,rate=20M");
    let switch = Switch::start(&host, &options);
    const FRAMES: usize = 2000;
    for way in ["in", "out"] {
        let names = if way == "in" { ["slow", "fast"] } else { ["fast", "slow"] };
        let mut from = Guest::new(&switch.path(names[0]), 1, [10, 0, 0, 1]);
        let mut to = Guest::new(&switch.path(names[1]), 2, [10, 0, 0, 2]);
        switch.settle(2);
        to.send(&to.frame(ALL, b"here"));
        from.wait(LONG, |f| f.ends_with(b"here").then_some(())).unwrap();
        let before = switch.port("slow")["limit"][way]["octets"].as_u64().unwrap();
        let start = Instant::now();
        let frame = prefixed(&from.frame(to.mac, &[7; 1400]));
        let mut writer = from.writer();
        let sender = std::thread::spawn(move || (0..FRAMES).for_each(|_| writer.write_all(&frame).unwrap()));
        let mut octets = before as usize;
        for n in 0..FRAMES {
            octets += to.next(LONG).unwrap_or_else(|| panic!("{n} have come")).len();
        }
        let wall = start.elapsed();
        sender.join().unwrap();
        let limit = switch.port("slow")["limit"].clone();
        let most = 20e6 / 8.0 * wall.as_secs_f64() * 1.05 + 32e3;
        assert!((octets as f64) < most, "{way}: {octets} octets in {wall:?}");
        // Of the clock there may be the time before, when little passed.
        let may = may_pass(&limit, way, wall + Duration::from_secs(60));
        let off = (octets as f64 - may).abs() / may;
        assert!(off < 0.05, "{way}: {octets} octets where {may} may pass: {limit}");
        assert_eq!(limit[way]["octets"].as_u64().unwrap(), octets as u64);
        // Both leave, so that others may come.
        drop((from, to));
        switch.settle(0);
    }
}

#[test]
fn an_uplink_with_a_rate_waits_and_goes_on() {
    if !can() {
        return;
    }
    let (host, _outside) = world();
    host.ip("addr add 192.0.2.1/24 dev h0");
    let limit = "rate=4M,burst=4K";
    let options =
        format!("--port @/a,queue=4M --tap m0,address=10.77.0.1/24,{limit} --user {limit} --mode nat");
    let switch = Switch::start(&host, &options);
    // Of the NAT's network, and of the tap's.
    for (own, to, gateway) in
        [([10, 0, 2, 15], OUTSIDE, [10, 0, 2, 2]), ([10, 77, 0, 9], [10, 77, 0, 1], [10, 77, 0, 1])]
    {
        let mut guest = Guest::new(&switch.path("a"), own[1] + 1, own);
        switch.settle(1);
        let mac = guest.resolve(gateway, LONG).unwrap();
        for turn in 0..4_u8 {
            // More than a burst comes back at once: it has to wait, and what waits has to come.
            (0..20).for_each(|n| guest.datagram(mac, (to, ECHO), 4000, &[turn * 20 + n; 1000]));
            for n in 0..20 {
                let got = guest.receive(4000, LONG).unwrap_or_else(|| panic!("{turn} {n} by {gateway:?}"));
                assert_eq!(got.data, [turn * 20 + n; 1000]);
            }
        }
        drop(guest);
        switch.settle(0);
    }
    for name in ["nat", "m0"] {
        let port = switch.port(name);
        assert!(port["limit"]["in"]["octets"].as_u64().unwrap() > 80_000, "{port}");
    }
}

#[test]
fn a_mirror_sees_every_frame() {
    if !can() {
        return;
    }
    let host = Place::new().unwrap();
    let options = "--port @/a,rule=deny_ether_0x88b6 --port @/b --port @/m,mirror=on,queue=16M";
    let switch = Switch::start(&host, options);
    let mut a = Guest::new(&switch.path("a"), 1, [10, 0, 0, 1]);
    let mut b = Guest::new(&switch.path("b"), 2, [10, 0, 0, 2]);
    let mut m = Guest::new(&switch.path("m"), 3, [10, 0, 0, 3]);
    switch.settle(3);
    let mut sent = Vec::new();
    for n in 0..1500_u32 {
        let data = [&n.to_be_bytes()[..], &vec![n as u8; n as usize % 700]].concat();
        let mut frame = a.frame(b.mac, &data);
        // Also what a rule has kept from b.
        let refused = n % 10 == 9;
        if refused {
            frame[13] = 0xb6;
        }
        a.send(&frame);
        sent.push(frame);
        if !refused {
            assert!(b.wait(LONG, |f| f.ends_with(&data).then_some(())).is_some(), "{n}");
        }
        // In turn: what two send at once comes in either order.
        if n % 3 == 0 && !refused {
            let frame = b.frame(a.mac, &data);
            b.send(&frame);
            assert!(a.wait(LONG, |f| f.ends_with(&data).then_some(())).is_some());
            sent.push(frame);
        }
    }
    // What a mirror port sends goes nowhere.
    m.send(&m.frame(ALL, b"nothing"));
    for (n, frame) in sent.iter().enumerate() {
        assert!(m.next(LONG).as_ref() == Some(frame), "frame {n} of {}", sent.len());
    }
    assert_eq!(switch.port("a")["drops"]["acl_in"], 150);
    while switch.port("m")["drops"]["from_mirror"] != 1 {}
    assert!(a.next(SHORT).is_none());
}

#[test]
fn a_flood_costs_others_nothing() {
    if !can() {
        return;
    }
    let host = Place::new().unwrap();
    let ports = "--port @/flood --port @/deaf --port @/a --port @/b";
    let switch = Switch::start(&host, ports);
    let flood = Guest::new(&switch.path("flood"), 1, [10, 0, 0, 1]);
    let mut deaf = Guest::new(&switch.path("deaf"), 2, [10, 0, 0, 2]);
    let mut a = Guest::new(&switch.path("a"), 3, [10, 0, 0, 3]);
    let mut b = Guest::new(&switch.path("b"), 4, [10, 0, 0, 4]);
    switch.settle(4);
    deaf.send(&deaf.frame(ALL, b"here"));
    for guest in [&mut a, &mut b] {
        guest.wait(LONG, |f| f.ends_with(b"here").then_some(())).unwrap();
    }
    let before = switch.memory();
    // To one that does not read, to all, and from a new address each time.
    let to_deaf = prefixed(&flood.frame(deaf.mac, &[1; 1400]));
    let to_all = prefixed(&flood.frame(ALL, &[2; 200]));
    let done = Arc::new(AtomicBool::new(false));
    let (mut writer, stop) = (flood.writer(), done.clone());
    writer.set_write_timeout(Some(Duration::from_millis(100))).unwrap();
    let flooding = std::thread::spawn(move || {
        let mut number = 0_u32;
        while !stop.load(Ordering::SeqCst) {
            for frame in [&to_deaf, &to_deaf, &to_all] {
                let mut frame = frame.clone();
                number += 1;
                frame[11..15].copy_from_slice(&number.to_be_bytes());
                // What is left of a frame when the time is over has to follow.
                let mut rest = &frame[..];
                while !(rest.is_empty() || stop.load(Ordering::SeqCst) && rest.len() == frame.len()) {
                    match writer.write(rest) {
                        Ok(n) => rest = &rest[n..],
                        Err(_) if stop.load(Ordering::SeqCst) => return number,
                        Err(_) => {}
                    }
                }
            }
        }
        number
    });
    // The flood has filled the queue of who does not read, and theirs, as they do not read just now.
    for name in ["deaf", "a", "b"] {
        while switch.port(name)["drops"]["queue_full"].as_u64().unwrap() < 1000 {}
    }
    for n in 0..300_u32 {
        // Longer than what may be left where a frame of the flood's does not fit.
        let data = [&[0; 1000][..], b"ping", &n.to_be_bytes()].concat();
        a.send(&a.frame(b.mac, &data));
        // The first comes to a queue that is full.
        while n == 0 && switch.port("a")["in"]["frames"] != 1 {}
        assert!(b.wait(LONG, |f| f.ends_with(&data).then_some(())).is_some(), "{n}: to b");
        b.send(&b.frame(a.mac, &data));
        assert!(a.wait(LONG, |f| f.ends_with(&data).then_some(())).is_some(), "{n}: to a");
    }
    let (after, stats) = (switch.memory(), switch.stats());
    done.store(true, Ordering::SeqCst);
    assert!(flooding.join().unwrap() > 3000);
    assert!(after < before + (32 << 20), "{before} {after}");
    let deaf_port = switch.port("deaf");
    assert!(deaf_port["queue"]["octets"].as_u64() <= deaf_port["queue"]["limit"].as_u64());
    let stations = stats["stations"].as_array().unwrap();
    let of = |name: &str| stations.iter().filter(|s| s["port"] == name).count();
    assert_eq!((of("flood"), of("a"), of("b")), (64, 1, 1));
    assert!(switch.port("flood")["unlearned"].as_u64().unwrap() > 1000);
}

#[test]
fn what_is_no_frame_ends_a_link_and_paths_are_looked_after() {
    if !can() {
        return;
    }
    let host = Place::new().unwrap();
    let switch = Switch::start(&host, "--port @/a --port @/b");
    let mut b = Guest::new(&switch.path("b"), 2, [10, 0, 0, 2]);
    let mut bad = std::os::unix::net::UnixStream::connect(switch.path("a")).unwrap();
    bad.write_all(&[0xff; 64]).unwrap();
    let mut gone = [0; 1];
    assert!(matches!(std::io::Read::read(&mut bad, &mut gone), Ok(0) | Err(_)), "it is hung up on");
    // The port is free for another.
    let mut a = Guest::new(&switch.path("a"), 1, [10, 0, 0, 1]);
    switch.settle(2);
    a.send(&a.frame(ALL, b"still here"));
    assert!(b.wait(LONG, |f| f.ends_with(b"still here").then_some(())).is_some());
    // Another switch does not take the path, nor a file's.
    let file = switch.path("file");
    std::fs::write(&file, "kept").unwrap();
    for (path, said) in [(switch.path("a"), "another program listens there"), (file.clone(), "no socket")] {
        let out = mynah().arg("switch").arg("--port").arg(&path).output().unwrap();
        let why = String::from_utf8_lossy(&out.stderr).into_owned();
        assert!(out.status.code() == Some(1) && why.contains(said), "{why}");
    }
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "kept");
    // Its sockets go with it.
    // SAFETY: kill takes plain numbers; it is a child of ours that has not been waited for.
    unsafe { libc::kill(switch.child.id() as i32, libc::SIGTERM) };
    let end = Instant::now() + LONG;
    while switch.path("a").exists() || switch.path("ctl").exists() {
        assert!(Instant::now() < end, "its sockets stay");
        std::thread::sleep(Duration::from_millis(5));
    }
}
