//! Transfers over a line that loses, doubles, reorders, corrupts and cuts frames: all arrives as it was sent, or the
//! guest sees an error; never something else.
#![cfg(unix)]
mod common;

use common::{Guest, byte, gateway, listen};
use mynah_net::fault::{Alarm, Fault, Faults, Line};
use mynah_net::user::Config;
use smoltcp::socket::tcp::State;
use std::io::{Read, Write};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

#[derive(Default)]
struct Clock(Mutex<Option<Instant>>);

impl Alarm for Clock {
    fn set(&self, deadline: Option<Instant>) {
        *self.0.lock().unwrap() = deadline;
    }
}

/// What has become of a transfer.
#[derive(Debug, PartialEq)]
enum End {
    Whole,
    Error,
}

fn data(len: usize, seed: u8) -> Vec<u8> {
    (0..len).map(|i| byte(i, seed)).collect()
}

/// `len` bytes to the host, and then as many back.
fn transfer(faults: Faults, len: usize) -> End {
    let (listener, at) = listen();
    let server = thread::spawn(move || {
        let mut s = listener.accept().unwrap().0;
        let mut got = vec![0; len];
        if s.read_exact(&mut got).is_err() {
            return;
        }
        assert!(got == data(len, 1), "what arrives at the host is what was sent");
        let _ = s.write_all(&data(len, 2));
    });
    let clock = Arc::new(Clock::default());
    let mut line = None;
    let mut g = Guest::behind(Config::default(), |user| {
        let fault = Fault::new(Faults { from_guest: true, to_guest: true, ..faults }, user);
        fault.set_alarm(clock.clone());
        line = Some(fault.clone());
        Arc::new(Line(fault))
    });
    g.hurry = Duration::from_millis(100);
    let line = line.unwrap();
    let h = g.connect(gateway(at), 128 << 10);
    let (out, mut sent, mut got) = (data(len, 1), 0, Vec::new());
    g.until("the transfer", |g| {
        let deadline = *clock.0.lock().unwrap();
        if deadline.is_some_and(|d| d <= Instant::now()) {
            line.due();
        }
        let s = g.socket(h);
        if s.can_send() && sent < len {
            sent += s.send_slice(&out[sent..]).unwrap();
        }
        while s.can_recv() {
            s.recv(|d| (d.len(), got.extend_from_slice(d))).unwrap();
        }
        got.len() >= len || s.state() == State::Closed
    });
    assert!(got == data(len, 2)[..got.len()], "what arrives at the guest is what was sent");
    let end = if got.len() == len { End::Whole } else { End::Error };
    g.socket(h).abort();
    g.turn();
    drop(g);
    server.join().unwrap();
    let tally = line.tally();
    assert!(tally[0].seen > 20 && tally[1].seen > 20);
    end
}

/// Each kind of fault at `percent`, and all of them at once.
fn kinds(percent: &str, seed: u64) -> [(&'static str, Faults); 6] {
    let chance = percent.parse().unwrap();
    let none = Faults { seed, ..Faults::default() };
    let late = Duration::from_micros(700);
    let all = Faults { loss: chance, duplicate: chance, corrupt: chance, cut: chance, ..none };
    [
        ("loss", Faults { loss: chance, ..none }),
        ("duplicate", Faults { duplicate: chance, ..none }),
        ("corrupt", Faults { corrupt: chance, ..none }),
        ("cut", Faults { cut: chance, ..none }),
        ("reorder", Faults { reorder: chance, delay: late, jitter: late, ..none }),
        ("all", Faults { reorder: chance, delay: late, jitter: late, ..all }),
    ]
}

#[test]
fn a_bad_line_changes_nothing() {
    for (percent, len) in [("1", 1 << 20), ("5", 1 << 20), ("20", 256 << 10)] {
        for (name, faults) in kinds(percent, 1) {
            let len = if name == "all" { len / 8 } else { len };
            let end = transfer(faults, len);
            // All at 20 % is more than half of the frames: a stack may give up.
            assert!(end == End::Whole || (percent, name) == ("20", "all"), "{name} at {percent} %");
        }
    }
}

#[test]
#[ignore = "minutes: many megabytes over a bad line"]
fn a_bad_line_changes_nothing_of_many_megabytes() {
    for seed in 1..=2 {
        for percent in ["1", "5", "20"] {
            for (name, faults) in kinds(percent, seed) {
                let start = Instant::now();
                let len = if (percent, name) == ("20", "all") { 512 << 10 } else { 4 << 20 };
                let end = transfer(faults, len);
                println!("{name} at {percent} %, seed {seed}: {end:?} in {:?}", start.elapsed());
                assert!(end == End::Whole || (percent, name) == ("20", "all"), "{name} at {percent} %");
            }
        }
    }
}
