//! The switch as a whole: by cases, and by many steps that chance chooses, after each of which all that must hold does.
use super::*;

const S: Duration = Duration::from_secs(1);

fn mac(n: u8) -> Mac {
    Mac([2, 0, 0, 0, 0, n])
}

/// A frame of a type that nothing is known of.
fn frame(to: Mac, from: Mac, tag: Option<u16>, text: &[u8]) -> Vec<u8> {
    let mut bytes = [to.0, from.0].concat();
    if let Some(tci) = tag {
        bytes.extend([0x81, 0]);
        bytes.extend(tci.to_be_bytes());
    }
    bytes.extend([0x88, 0xb5]);
    bytes.extend(text);
    bytes
}

fn switch(ports: Vec<PortConfig>) -> Switch {
    let mut switch = Switch::new(1000, 300 * S);
    for port in ports {
        let n = switch.add(port).unwrap();
        switch.connect(n, true);
    }
    switch
}

fn plain(names: &[&str]) -> Vec<PortConfig> {
    names.iter().map(|n| PortConfig::named(n)).collect()
}

/// All that a port has to send.
fn drain(switch: &mut Switch, port: usize) -> Vec<Vec<u8>> {
    let mut all = Vec::new();
    while let Next::Frame(frame) = switch.next(port, S) {
        all.push(frame.to_vec());
    }
    all
}

const NOBODY: [usize; 0] = [];

/// Who gets a frame.
fn reached(switch: &mut Switch, from: usize, frame: &[u8]) -> Vec<usize> {
    (0..switch.ports().len()).for_each(|p| _ = drain(switch, p));
    switch.input(from, frame, S).unwrap();
    (0..switch.ports().len()).filter(|p| !drain(switch, *p).is_empty()).collect()
}

fn dropped(switch: &Switch, port: usize, cause: Cause) -> u64 {
    switch.ports()[port].counters.dropped(cause)
}

#[test]
fn stations_are_learnt() {
    let mut s = switch(plain(&["a", "b", "c"]));
    assert_eq!(reached(&mut s, 0, &frame(mac(2), mac(1), None, b"?")), [1, 2], "nobody knows where it is");
    assert_eq!(reached(&mut s, 1, &frame(mac(1), mac(2), None, b"!")), [0]);
    assert_eq!(reached(&mut s, 0, &frame(mac(2), mac(1), None, b".")), [1]);
    assert_eq!(reached(&mut s, 0, &frame(Mac::BROADCAST, mac(1), None, b"all")), [1, 2]);
    assert_eq!(reached(&mut s, 0, &frame(mac(1), mac(1), None, b"me")), NOBODY, "it is there already");
    // It moves with its frames, and is forgotten with its port.
    assert_eq!(reached(&mut s, 2, &frame(mac(1), mac(2), None, b"moved")), [0]);
    assert_eq!(reached(&mut s, 0, &frame(mac(2), mac(1), None, b"")), [2]);
    s.connect(2, false);
    assert_eq!(reached(&mut s, 0, &frame(mac(2), mac(1), None, b"")), [1]);
    assert_eq!(s.ports()[0].counters.flooded, 3);
}

#[test]
fn what_is_no_frame_or_for_bridges_goes_nowhere() {
    let mut s = switch(plain(&["a", "b"]));
    for (bytes, cause) in [
        (&[0xff; 11][..], Cause::Malformed),
        (&frame(mac(2), Mac::BROADCAST, None, b""), Cause::Malformed),
        (&frame(mac(2), Mac::default(), None, b""), Cause::Malformed),
        (&frame(mac(2), mac(1), None, &[0; MAX_FRAME]), Cause::Malformed),
        (&frame(Mac([1, 0x80, 0xc2, 0, 0, 0]), mac(1), None, b"stp"), Cause::Reserved),
        (&frame(Mac([1, 0x80, 0xc2, 0, 0, 15]), mac(1), None, b""), Cause::Reserved),
    ] {
        let before = dropped(&s, 0, cause);
        assert_eq!(reached(&mut s, 0, bytes), NOBODY, "{cause:?}");
        assert_eq!(dropped(&s, 0, cause), before + 1, "{cause:?}");
    }
    assert_eq!(reached(&mut s, 0, &frame(Mac([1, 0x80, 0xc2, 0, 0, 16]), mac(1), None, b"")), [1]);
    assert_eq!(s.stations().len(), 1);
}

#[test]
fn vlans_are_apart_and_trunks_carry_them() {
    let mut ports = plain(&["a10", "b10", "a20", "trunk"]);
    for (port, vlans) in ports.iter_mut().zip([Vlans::access(10), Vlans::access(10), Vlans::access(20)]) {
        port.vlans = vlans;
    }
    ports[3].vlans = Vlans::trunk(Some(10), "20:30").unwrap();
    let mut s = switch(ports);
    let all = |tag| frame(Mac::BROADCAST, mac(1), tag, b"all");
    assert_eq!(reached(&mut s, 0, &all(None)), [1, 3]);
    s.input(2, &all(None), S).unwrap();
    assert_eq!(drain(&mut s, 3), [all(Some(20))], "with its tag on the trunk");
    assert!(drain(&mut s, 0).is_empty() && drain(&mut s, 1).is_empty());
    s.input(3, &all(Some(0x6014)), S).unwrap();
    assert_eq!(drain(&mut s, 2), [all(None)], "without it at an access port");
    s.input(3, &all(None), S).unwrap();
    assert_eq!((drain(&mut s, 0).len(), drain(&mut s, 1).len(), drain(&mut s, 2).len()), (1, 1, 0));
    // The same station in another VLAN is another one.
    s.input(2, &frame(mac(9), mac(5), None, b""), S).unwrap();
    assert_eq!(reached(&mut s, 0, &frame(mac(5), mac(6), None, b"")), [1, 3]);
    // A tag does not lead out of a guest's VLAN, and neither do two.
    assert_eq!(reached(&mut s, 0, &all(Some(20))), NOBODY);
    assert_eq!(dropped(&s, 0, Cause::Vlan), 1);
    let mut double = all(Some(10));
    double.splice(16..16, [0x81, 0, 0, 20]);
    for port in [0, 3] {
        assert_eq!(reached(&mut s, port, &double), NOBODY);
        assert_eq!(dropped(&s, port, Cause::DoubleTag), 1);
    }
}

#[test]
fn a_port_that_is_locked_sends_from_its_own_address_and_nobody_else_does() {
    let mut ports = plain(&["a", "b", "c"]);
    ports[0].macs = vec![mac(1)];
    let mut s = switch(ports);
    assert_eq!(reached(&mut s, 0, &frame(mac(9), mac(1), None, b"")), [1, 2]);
    assert_eq!(reached(&mut s, 0, &frame(mac(9), mac(7), None, b"")), NOBODY);
    assert_eq!(reached(&mut s, 1, &frame(mac(9), mac(1), None, b"")), NOBODY, "it is the other's");
    assert_eq!((dropped(&s, 0, Cause::SourceLock), dropped(&s, 1, Cause::SourceLock)), (1, 1));
    assert_eq!(reached(&mut s, 1, &frame(mac(1), mac(7), None, b"")), [0]);
}

#[test]
fn rules_hold_both_ways() {
    let mut ports = plain(&["a", "b", "c"]);
    ports[0].acl = Acl::parse("deny ether 0x88b5; deny out ether 0x88b6").unwrap();
    let mut s = switch(ports);
    assert_eq!(reached(&mut s, 0, &frame(mac(9), mac(1), None, b"")), NOBODY);
    assert_eq!(dropped(&s, 0, Cause::AclIn), 1);
    let mut other = frame(mac(9), mac(2), None, b"");
    assert_eq!(reached(&mut s, 1, &other), [0, 2]);
    other[13] = 0xb6;
    assert_eq!(reached(&mut s, 1, &other), [2]);
    assert_eq!(dropped(&s, 0, Cause::AclOut), 1);
}

#[test]
fn mirrors_see_what_passes_and_send_nothing() {
    let mut ports = plain(&["a", "b", "c", "all", "of-b"]);
    ports[0].acl = Acl::parse("deny ether 0x88b6").unwrap();
    ports[3].mirror = Some(Mirror::All);
    ports[4].mirror = Some(Mirror::Port("b".into()));
    let mut s = switch(ports);
    let mut refused = frame(mac(9), mac(1), None, b"");
    refused[13] = 0xb6;
    let sent = [
        (0, frame(Mac::BROADCAST, mac(1), None, b"one")),
        (1, frame(mac(1), mac(2), None, b"two")),
        (0, refused),
        (2, frame(mac(1), mac(3), None, b"three")),
        (0, vec![1, 2, 3]),
    ];
    for (from, bytes) in &sent {
        s.input(*from, bytes, S).unwrap();
    }
    assert_eq!(drain(&mut s, 3), sent.clone().map(|(_, bytes)| bytes));
    assert_eq!(drain(&mut s, 4), [sent[0].1.clone(), sent[1].1.clone()]);
    assert_eq!(reached(&mut s, 3, &sent[0].1), NOBODY);
    assert_eq!(dropped(&s, 3, Cause::FromMirror), 1);
}

#[test]
fn a_port_that_does_not_read_costs_nobody_else_anything() {
    let mut s = switch(plain(&["flood", "deaf", "a", "b"]));
    for n in 1..4 {
        s.input(n, &frame(Mac::BROADCAST, mac(n as u8), None, b"here"), S).unwrap();
    }
    (0..4).for_each(|p| _ = drain(&mut s, p));
    let mut got = 0;
    for n in 0..100_000_u32 {
        s.input(0, &frame(mac(1), mac(0xf0), None, &[n as u8; 1400]), S).unwrap();
        s.input(0, &frame(Mac::BROADCAST, mac(0xf0), None, &[n as u8; 100]), S).unwrap();
        if n % 1000 == 0 {
            s.input(2, &frame(mac(3), mac(2), None, &n.to_be_bytes()), S).unwrap();
            got += drain(&mut s, 3).iter().filter(|f| f[6..12] == mac(2).0).count();
        }
        let (now, most) = s.ports()[1].queued();
        assert!(now <= most);
    }
    assert_eq!(got, 100, "each of them comes, though a flood of broadcasts waits there too");
    let lost = dropped(&s, 1, Cause::QueueFull);
    assert_eq!(lost + drain(&mut s, 1).len() as u64, 200_000, "what was lost is counted");
    // Also with a port that stands in the flood's way: its own frames are what is lost.
    assert_eq!(dropped(&s, 2, Cause::QueueFull) + drain(&mut s, 2).len() as u64, 100_000);
}

#[test]
fn rates_are_kept_both_ways() {
    let mut ports = plain(&["slow", "fast"]);
    (ports[0].rate, ports[0].burst) = (Some(8_000_000), Some(10_000));
    let mut s = switch(ports);
    let bytes = frame(mac(2), mac(1), None, &[7; 1000 - 14]);
    // A second of as much as it may send, in steps as a loop takes them: it waits as long as it is told.
    let (mut now, mut sent) = (S, 0_u64);
    while now < 2 * S {
        match s.input(0, &bytes, now) {
            Ok(()) => sent += 1000,
            Err(at) => now = at,
        }
        drain(&mut s, 1);
    }
    assert!((1_010_000..=1_011_000).contains(&sent), "{sent}");
    // And what goes to it.
    s.input(0, &frame(mac(9), mac(1), None, b""), 9 * S).unwrap();
    let back = frame(mac(1), mac(2), None, &[7; 1000 - 14]);
    let (mut now, mut got) = (10 * S, 0_u64);
    while now < 11 * S {
        s.input(1, &back, now).unwrap();
        match s.next(0, now) {
            Next::Frame(f) => got += f.len() as u64,
            Next::Wait(at) => now = at,
            Next::Nothing => panic!(),
        }
    }
    assert!((1_010_000..=1_011_000).contains(&got), "{got}");
    assert!(dropped(&s, 0, Cause::QueueFull) == 0 || s.ports()[0].queued().0 > 0);
    let [_, out] = s.ports()[0].limits().unwrap();
    assert_eq!(out.passed().octets, got);
}

#[test]
fn guests_addresses_are_known() {
    let mut ports = plain(&["a", "up"]);
    ports[1].uplink = true;
    let mut s = switch(ports);
    let mut arp = [Mac::BROADCAST.0, mac(1).0].concat();
    arp.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
    arp.extend(mac(1).0);
    arp.extend([10, 0, 2, 15, 0, 0, 0, 0, 0, 0, 10, 0, 2, 2]);
    s.input(0, &arp, S).unwrap();
    s.input(1, &arp, S).unwrap();
    let found = Address { mac: mac(1), ip: "10.0.2.15".parse().unwrap(), seen: S };
    assert_eq!((s.ports()[0].addresses(), s.ports()[1].addresses()), (&[found][..], &[][..]));
    // As many as anyone has use for, and no more.
    for n in 0..1000_u32 {
        arp[28..32].copy_from_slice(&(0x0a00_0000 + n).to_be_bytes());
        s.input(0, &arp, 2 * S + Duration::from_millis(n.into())).unwrap();
    }
    assert_eq!(s.ports()[0].addresses().len(), MOST_ADDRESSES);
    assert!(s.ports()[0].addresses().iter().any(|a| a.ip.to_string() == "10.0.3.231"));
    s.connect(0, false);
    assert!(s.ports()[0].addresses().is_empty());
}

#[test]
fn names_are_told_apart_and_ports_counted() {
    let mut s = Switch::new(10, S);
    s.add(PortConfig::named("a")).unwrap();
    assert!(s.add(PortConfig::named("a")).unwrap_err().contains("'a'"));
    for n in 1..MOST_PORTS {
        s.add(PortConfig::named(&n.to_string())).unwrap();
    }
    assert!(s.add(PortConfig::named("b")).unwrap_err().contains("at most"));
}

/// xorshift64 (Marsaglia, 2003).
struct Chance(u64);

impl Chance {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % n
    }
}

#[test]
fn whatever_comes_in_vlans_stay_apart_and_memory_is_bounded() {
    for seed in 1..40_u64 {
        let mut chance = Chance(0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(seed));
        let count = 2 + chance.below(6) as usize;
        let mut configs = Vec::new();
        for n in 0..count {
            let mut port = PortConfig::named(&n.to_string());
            port.vlans = match chance.below(3) {
                0 => Vlans::access(1 + chance.below(3) as u16),
                1 => Vlans::trunk(None, "1-2").unwrap(),
                _ => Vlans::trunk(Some(3), "1-2").unwrap(),
            };
            port.stations = 1 + chance.below(8) as usize;
            port.rate = (chance.below(4) == 0).then_some(1_000_000);
            if chance.below(4) == 0 {
                port.acl = Acl::parse("deny udp to port 9; deny out ip6; deny out ether 0x88b6").unwrap();
            }
            if n > 1 && chance.below(4) == 0 {
                port.mirror = Some(Mirror::Port("0".into()));
            }
            configs.push(port);
        }
        let mut s = Switch::new(12, 10 * S);
        configs.iter().for_each(|c| _ = s.add(c.clone()).unwrap());
        let mut now = S;
        let mut got = vec![0_u64; count];
        for step in 0..3000_u64 {
            now += Duration::from_micros(chance.below(3000));
            let port = chance.below(count as u64) as usize;
            match chance.below(10) {
                0 => s.connect(port, chance.below(4) != 0),
                1 => s.age(now),
                2..4 => {
                    while let Next::Frame(f) = s.next(port, now) {
                        got[port] += 1;
                        let vlans = &configs[port].vlans;
                        if configs[port].mirror.is_some() {
                            continue;
                        }
                        let seen = u64::from_be_bytes(f[f.len() - 8..].try_into().unwrap());
                        assert!(
                            usize::try_from(seen >> 32).unwrap() != port,
                            "not back to where it came from"
                        );
                        // As an independent reader has it: the VLAN by the tag or its absence.
                        let tag = u16::from_be_bytes([f[12], f[13]]) == 0x8100;
                        let inner = if tag { &f[16..18] } else { &f[12..14] };
                        assert!(!matches!(inner, [0x81, 0] | [0x88, 0xa8]), "one tag at most");
                        let vlan = if tag { u16::from_be_bytes([f[14], f[15]]) & 0xfff } else { 0 };
                        match vlan {
                            0 => assert!(vlans.untagged.is_some()),
                            v => assert!(vlans.tagged().any(|t| t == v)),
                        }
                        let from = &configs[(seen >> 32) as usize].vlans;
                        let vlan = if vlan == 0 { vlans.untagged.unwrap() } else { vlan };
                        assert!(from.leaves(vlan).is_some(), "a VLAN that its sender is in");
                    }
                }
                _ => {
                    let tag = [None, None, Some(0), Some(1), Some(2), Some(3), Some(0xe001)];
                    let tag = tag[chance.below(7) as usize];
                    let to = if chance.below(4) == 0 { Mac::BROADCAST } else { mac(chance.below(30) as u8) };
                    let mut bytes = frame(to, mac(1 + chance.below(30) as u8), tag, b"");
                    if chance.below(5) == 0 {
                        bytes.splice(12..12, [0x81, 0, 0, chance.below(4) as u8]);
                    }
                    let len = chance.below(1500);
                    bytes.extend((0..len).map(|n| (n ^ seed) as u8));
                    for _ in 0..chance.below(3) {
                        let at = chance.below(bytes.len() as u64) as usize;
                        if at >= 12 && !(12..20).contains(&at) {
                            bytes[at] = chance.below(256) as u8;
                        }
                    }
                    // Where it came from and which it is, for the reader at the other end.
                    bytes.extend(((port as u64) << 32 | step).to_be_bytes());
                    let _ = s.input(port, &bytes, now);
                    // What is shorter than that is no frame, or a short one: it must only not hurt.
                    let short = chance.below(20) as usize;
                    if configs[port].vlans.admit(&bytes[..short.min(13)]).is_err() {
                        let _ = s.input(port, &bytes[..short.min(13)], now);
                    }
                }
            }
            assert!(s.stations().len() <= 12);
            for (n, port) in s.ports().iter().enumerate() {
                assert!(port.queued().0 <= port.queued().1);
                assert!(s.stations().iter().filter(|t| t.port == n).count() <= configs[n].stations);
                assert_eq!(port.counters.output.frames, got[n]);
            }
        }
        assert!(got.iter().sum::<u64>() > 100, "seed {seed}: nothing has passed");
    }
}

#[test]
fn rules_and_addresses_are_read_out_of_anything() {
    let mut chance = Chance(0x1234_5678_9abc_def1);
    let rules = "deny tcp to port 22; deny out ip6 from fe80::/10 to any; allow udp from port 1-9; deny in any to ::1";
    let mut ports = plain(&["a", "b"]);
    ports.iter_mut().for_each(|p| p.acl = Acl::parse(rules).unwrap());
    let mut s = switch(ports);
    for n in 0..200_000_u64 {
        let kind: &[u8] = [&[8, 0, 0x45][..], &[0x86, 0xdd, 0x60], &[8, 6, 0, 1, 8, 0, 6, 4], &[8, 0], &[0]]
            [chance.below(5) as usize];
        let mut bytes = [Mac::BROADCAST.0, mac(1 + n as u8 % 2).0].concat();
        bytes.extend(kind);
        // Small numbers are protocols and lengths more often than others.
        bytes.extend((0..chance.below(90)).map(|_| match chance.below(3) {
            0 => chance.below(64) as u8,
            1 => [0, 6, 17, 43, 44, 51, 58, 60][chance.below(8) as usize],
            _ => chance.below(256) as u8,
        }));
        s.input(n as usize % 2, &bytes, S).unwrap();
        if n % 64 == 0 {
            (0..2).for_each(|p| _ = drain(&mut s, p));
        }
    }
    let counters = &s.ports()[0].counters;
    assert!(counters.dropped(Cause::AclIn) > 1000 && counters.output.frames > 1000, "{counters:?}");
}
