//! TCP's windows and order, segment by segment.
#![cfg(unix)]
mod common;

use common::raw::{ACK, PSH, RST, Raw, SYN, Tcp};
use common::{byte, listen};
use mynah_net::user::Config;
use std::io::{Read, Write};
use std::thread;
use std::time::{Duration, Instant};

/// Window scale 7.
const SCALED: [u8; 4] = [1, 3, 3, 7];
/// MSS 1460, and the same.
const OPTIONS: [u8; 8] = [2, 4, 5, 0xb4, 1, 3, 3, 7];

#[test]
fn a_window_may_be_filled_to_its_end_and_is_told_when_it_opens() {
    let (listener, at) = listen();
    let port = at.port();
    let total = 24 << 20;
    let server = thread::spawn(move || {
        let mut s = listener.accept().unwrap().0;
        thread::park();
        let mut got = vec![0; total];
        s.read_exact(&mut got).unwrap();
        got
    });
    let raw = Raw::new(Config::default(), true);
    let ack = raw.open(1000, port, &OPTIONS);
    let data: Vec<u8> = (0..62_780).map(|i| byte(i, 1)).collect();
    let (mut sent, mut edge, mut full) = (0, 0, 0);
    let mut heard = Instant::now();
    while sent < total {
        while let Some(seen) = raw.next() {
            // The window ends there. It goes back by what scaling has no bits for, no more (RFC 7323, 2.4).
            let told = (seen.ack as usize - 101) + (usize::from(seen.window) << 5);
            assert!(told + 31 >= edge, "{told} after {edge}");
            (edge, heard) = (told.max(edge), Instant::now());
        }
        let n = (edge - sent).min(data.len()).min(total - sent);
        // To its last byte; nothing is sent again, and nothing to ask.
        if n > 0 {
            let seq = 101 + sent as u32;
            let from = sent % data.len();
            let n = n.min(data.len() - from);
            let data = &data[from..from + n];
            raw.tcp(Tcp { ports: (1000, port), seq, ack, flags: ACK, data, ..Tcp::default() });
            sent += n;
        } else {
            if sent > 0 {
                full += 1;
                server.thread().unpark();
            }
            assert!(
                heard.elapsed() < Duration::from_secs(60),
                "{sent} of {total}, the window ends at {edge}"
            );
            raw.poll.turn(&raw.user, Duration::from_millis(5));
        }
    }
    assert!(full > 0, "the window was never full");
    while !server.is_finished() {
        raw.poll.turn(&raw.user, Duration::from_millis(5));
    }
    let got = server.join().unwrap();
    assert!(got.iter().enumerate().all(|(i, b)| *b == byte(i % data.len(), 1)));
}

#[test]
fn what_is_missing_next_has_room_however_much_came_too_early() {
    let (raw, port, ack, mut host) = Raw::with_connection(true, &SCALED);
    let all: Vec<u8> = (0..400_000).map(|i| byte(i, 1)).collect();
    let send = |at: usize, len: usize| {
        let data = &all[at..at + len];
        raw.tcp(Tcp { ports: (1000, port), seq: 101 + at as u32, ack, flags: ACK, data, ..Tcp::default() });
    };
    // Far more pieces than anybody keeps, each overlapping others in its own way.
    for n in 0..2000 {
        send(100_000 + n * 131, 60 + n % 50 * 2);
    }
    // Then the first bytes in the wrong order, some of them twice.
    for (at, len) in [(2000, 1000), (1000, 1000), (2500, 300), (1000, 2500), (0, 1000)] {
        send(at, len);
    }
    let last = std::iter::from_fn(|| raw.next()).last().unwrap();
    assert_eq!(last.ack - 101, 3500, "all of them are taken");
    // The rest in order, over what is there.
    for at in (3500..all.len()).step_by(1000) {
        send(at, 1000.min(all.len() - at));
    }
    let last = std::iter::from_fn(|| raw.next()).last().unwrap();
    let mut got = vec![0; all.len()];
    host.read_exact(&mut got).unwrap();
    assert!(got == all);
    assert!((last.ack - 101) as usize > 390_000, "{}", last.ack - 101);
    assert!(raw.user.buffered() <= 300 << 10, "{}", raw.user.buffered());
}

#[test]
fn the_smallest_segments_of_a_guest_fit_into_long_frames() {
    let data: Vec<u8> = (0..300_000).map(|i| byte(i, 1)).collect();
    for mss in [1u16, 64, 88, 536, 1460, 65_535] {
        for long in [true, false] {
            let [high, low] = mss.to_be_bytes();
            let options = [2, 4, high, low, 1, 3, 3, 7];
            let (raw, port, mut next, mut host) = Raw::with_connection(long, &options);
            let all = data.clone();
            let writer = thread::spawn(move || {
                host.write_all(&all).unwrap();
                let mut got = vec![0; all.len()];
                host.read_exact(&mut got).unwrap();
                assert!(got == all);
            });
            // Less than 64 bytes is taken for 64: every byte would be a frame.
            let most = usize::from(mss.clamp(64, 1460));
            let mut got = Vec::new();
            while got.len() < data.len() {
                let seen = raw.wait();
                if seen.seq == next {
                    next = seen.seq.wrapping_add(seen.data.len() as u32);
                    match seen.gso {
                        Some(gso) => assert_eq!(usize::from(gso.size), most),
                        None => assert!(seen.data.len() <= most, "{}", seen.data.len()),
                    }
                    got.extend_from_slice(&seen.data);
                }
                let t = Tcp { ports: (1000, port), seq: 101, ack: next, flags: ACK, ..Tcp::default() };
                raw.tcp(t);
            }
            assert!(got == data, "{mss}");
            // And from the guest, long frames that say they are of such segments.
            for (i, chunk) in data.chunks(60_000).enumerate() {
                let seq = 101 + 60_000 * i as u32;
                raw.tcp(Tcp {
                    ports: (1000, port),
                    seq,
                    ack: next,
                    flags: ACK,
                    data: chunk,
                    ..Tcp::default()
                });
            }
            while !writer.is_finished() {
                raw.poll.turn(&raw.user, Duration::from_millis(5));
            }
            writer.join().unwrap();
        }
    }
}

#[test]
fn an_acknowledgement_is_not_answered() {
    let (_listener, at) = listen();
    let port = at.port();
    let raw = Raw::new(Config::default(), true);
    for (from, options) in [(1000, &[][..]), (1001, &OPTIONS)] {
        let ack = raw.open(from, port, options);
        let t = Tcp { ports: (from, port), seq: 101, ack, flags: ACK, ..Tcp::default() };
        // What is larger than a SYN can tell is told once.
        while raw.next().is_some() {}
        for n in 0..10 {
            raw.tcp(t);
            raw.poll.turn(&raw.user, Duration::from_millis(1));
            assert_eq!(raw.next().map(|s| s.window), None, "{n}");
        }
    }
}

#[test]
fn a_guest_whose_network_is_another_one_now_is_told_that_its_connection_has_ended() {
    let (raw, port, ack, mut server) = Raw::with_connection(true, &OPTIONS);
    server.write_all(&[7; 1000]).unwrap();
    while raw.wait().data.is_empty() {}
    // It has acknowledged a part of that, and only listens.
    let heard = ack.wrapping_add(400);
    raw.tcp(Tcp { ports: (1000, port), seq: 101, ack: heard, flags: ACK, ..Tcp::default() });
    let lost = raw.user.connections();
    assert_eq!(lost.len(), 1);
    let other = Raw::new(Config::default(), true);
    other.user.restore(&[], None, &lost);
    let asked = other.wait();
    // What is no news is answered with where the guest is (RFC 9293, 3.10.7.4).
    assert_eq!((asked.ports, asked.flags, asked.ack, asked.data.len()), ((port, 1000), ACK, 101, 0));
    assert_eq!(asked.seq, heard.wrapping_sub(1));
    let at = ack.wrapping_add(1000);
    other.tcp(Tcp { ports: (1000, port), seq: 101, ack: at, flags: ACK, ..Tcp::default() });
    let answer = other.wait();
    assert_eq!((answer.flags & RST, answer.seq), (RST, at), "the number that the guest takes");
}

#[test]
fn a_stream_of_full_segments_is_acknowledged_together_and_all_of_it_arrives() {
    let (raw, port, ack, mut server) = Raw::with_connection(true, &OPTIONS);
    let data: Vec<u8> = (0..200 * 1460).map(|i| byte(i, 9)).collect();
    let (mut answers, mut acknowledged) = (0, 0);
    for (n, part) in data.chunks(1460).enumerate() {
        let seq = 101 + (n * 1460) as u32;
        // As a program's writes of a segment's length make it.
        raw.tcp(Tcp { ports: (1000, port), seq, ack, flags: ACK | PSH, data: part, ..Tcp::default() });
        while let Some(seen) = raw.next() {
            (answers, acknowledged) = (answers + 1, seen.ack - 101);
        }
    }
    assert!((16..60).contains(&answers), "{answers} acknowledgements of 200 segments");
    // The last ones do not wait for more for long, neither at the host nor for their acknowledgement.
    raw.poll.advance(Duration::from_millis(1));
    while acknowledged as usize != data.len() {
        acknowledged = raw.wait().ack - 101;
    }
    let mut got = vec![0; data.len()];
    server.read_exact(&mut got).unwrap();
    assert!(got == data);
    // What is short is wanted at once.
    let seq = 101 + data.len() as u32;
    raw.tcp(Tcp { ports: (1000, port), seq, ack, flags: ACK | PSH, data: b"end", ..Tcp::default() });
    assert_eq!(raw.next().expect("no waiting").ack, seq + 3);
}

#[test]
fn a_program_that_writes_little_at_a_time_is_not_interrupted_for_each_of_it() {
    let (raw, port, ack, mut server) = Raw::with_connection(true, &OPTIONS);
    server.set_nonblocking(true).unwrap();
    let data: Vec<u8> = (0..400 * 1000).map(|i| byte(i, 9)).collect();
    let mut seq = 101;
    let send = |seq: &mut u32, part: &[u8]| {
        let flags = ACK | PSH;
        raw.tcp(Tcp { ports: (1000, port), seq: *seq, ack, flags, data: part, ..Tcp::default() });
        *seq += part.len() as u32;
    };
    let (mut answers, mut got, mut chunk) = (0, Vec::new(), [0; 4096]);
    for part in data.chunks(1000) {
        send(&mut seq, part);
        while raw.next().is_some() {
            answers += 1;
        }
        while let Ok(n @ 1..) = server.read(&mut chunk) {
            got.extend_from_slice(&chunk[..n]);
        }
    }
    // A busy host makes pauses of its own, each of which begins anew.
    assert!((12..300).contains(&answers), "{answers} acknowledgements of 400 segments");
    // A short one after a full one ends something: it and all before it are there at once.
    raw.poll.advance(Duration::from_millis(1));
    raw.poll.turn(&raw.user, Duration::ZERO);
    while raw.next().is_some() {}
    send(&mut seq, &[1; 1460]);
    while raw.next().is_some() {}
    send(&mut seq, b"end");
    assert_eq!(raw.next().expect("no waiting").ack, seq);
    let want = [&data[..], &[1; 1460], b"end"].concat();
    while got.len() < want.len() {
        if let Ok(n @ 1..) = server.read(&mut chunk) {
            got.extend_from_slice(&chunk[..n]);
        }
    }
    assert!(got == want);
    // With pauses there is nothing to gather.
    for _ in 0..40 {
        raw.poll.advance(Duration::from_millis(2));
        send(&mut seq, b"now and then");
        assert_eq!(raw.next().expect("no waiting").ack, seq);
    }
}

#[test]
fn an_answer_takes_the_acknowledgement_with_it_on_a_card_that_paces_its_interrupts() {
    let (raw, port, mut ack, mut server) = Raw::with_connection(true, &OPTIONS);
    let (mut seq, mut byte) = (101, [0]);
    let mut say = |seq: &mut u32, ack: u32| {
        let flags = ACK | PSH;
        raw.tcp(Tcp { ports: (1000, port), seq: *seq, ack, flags, data: b"?", ..Tcp::default() });
        *seq += 1;
        server.read_exact(&mut byte).unwrap();
        server.try_clone().unwrap()
    };
    // The window has opened.
    while raw.next().is_some() {}
    say(&mut seq, ack);
    assert_eq!(raw.next().expect("at once").ack, seq);
    raw.card.paces.store(true, std::sync::atomic::Ordering::Relaxed);
    let mut server = say(&mut seq, ack);
    assert!(raw.next().is_none());
    server.write_all(b"!").unwrap();
    let answer = raw.wait();
    // Its time may be over before on a busy host.
    if answer.data.is_empty() {
        assert_eq!((answer.ack, raw.wait().data), (seq, b"!".to_vec()));
    } else {
        assert_eq!((answer.ack, answer.data), (seq, b"!".to_vec()));
    }
    ack = ack.wrapping_add(1);
    // Without an answer it is soon there.
    say(&mut seq, ack);
    assert!(raw.next().is_none());
    raw.poll.advance(Duration::from_millis(1));
    let answer = raw.wait();
    assert_eq!((answer.ack, answer.data.len()), (seq, 0));
}

#[test]
fn a_guest_is_told_what_has_come_too_early() {
    let (listener, at) = listen();
    let port = at.port();
    let raw = Raw::new(Config::default(), true);
    // One that does not say that it understands is told nothing.
    for (from, options) in [(1000, &OPTIONS[..]), (1001, &[&OPTIONS[..], &[1, 1, 4, 2]].concat())] {
        let ports = (from, port);
        raw.tcp(Tcp { ports, seq: 100, flags: SYN, options, ..Tcp::default() });
        let answer = std::iter::repeat_with(|| raw.wait()).find(|s| s.ports.1 == from).unwrap();
        let understands = options.len() > OPTIONS.len();
        assert_eq!(answer.options.windows(2).any(|w| w == [4, 2]), understands, "{:?}", answer.options);
        let ack = answer.seq.wrapping_add(1);
        raw.tcp(Tcp { ports, seq: 101, ack, flags: ACK, ..Tcp::default() });
        while raw.next().is_some() {}
        let mut server = listener.accept().unwrap().0;
        let data: Vec<u8> = (0..3000).map(|i| byte(i, 3)).collect();
        let send = |from: usize, end: usize| {
            let (seq, data) = (101 + from as u32, &data[from..end]);
            raw.tcp(Tcp { ports, seq, ack, flags: ACK, data, ..Tcp::default() });
            let seen = std::iter::from_fn(|| raw.next()).last().expect("an answer at once");
            let blocks = seen.options.get(4..).unwrap_or_default().as_chunks::<4>().0;
            let place = |b: &[u8; 4]| u32::from_be_bytes(*b).wrapping_sub(101);
            let blocks: Vec<[u32; 2]> =
                blocks.as_chunks::<2>().0.iter().map(|b| b.each_ref().map(place)).collect();
            if !blocks.is_empty() {
                assert_eq!(seen.options[..4], [1, 1, 5, 2 + 8 * blocks.len() as u8]);
            }
            (seen.ack - 101, blocks)
        };
        // What has come last is told first, what is together is one block, and there are four of them.
        let told = [
            (send(200, 300), vec![[200, 300]]),
            (send(600, 700), vec![[600, 700], [200, 300]]),
            (send(300, 400), vec![[200, 400], [600, 700]]),
            (send(800, 900), vec![[800, 900], [200, 400], [600, 700]]),
            (send(1000, 1100), vec![[1000, 1100], [200, 400], [600, 700], [800, 900]]),
            (send(1200, 1300), vec![[1200, 1300], [200, 400], [600, 700], [800, 900]]),
        ];
        for ((acknowledged, told), want) in told {
            assert_eq!((acknowledged, told), (0, if understands { want } else { Vec::new() }));
        }
        let (acknowledged, told) = send(0, 200);
        assert_eq!(acknowledged, 400);
        assert_eq!(told.len(), if understands { 4 } else { 0 });
        assert_eq!(send(0, 3000), (3000, Vec::new()));
        let mut got = vec![0; 3000];
        server.read_exact(&mut got).unwrap();
        assert!(got == data);
    }
}

#[test]
fn the_time_for_an_answer_does_not_grow_while_the_guest_answers() {
    let (raw, port, mut ack, mut server) = Raw::with_connection(true, &OPTIONS);
    server.write_all(&[7; 20_000]).unwrap();
    let mut sent = 0;
    while sent < 20_000 {
        sent += raw.wait().data.len();
    }
    for n in 0..12 {
        // All of it is lost, but for 1,000 bytes.
        ack = ack.wrapping_add(1000);
        raw.tcp(Tcp { ports: (1000, port), seq: 101, ack, flags: ACK, ..Tcp::default() });
        raw.poll.advance(Duration::from_millis(250));
        raw.poll.turn(&raw.user, Duration::ZERO);
        let again = raw.next().unwrap_or_else(|| panic!("it is not sent again (the {n}th time)"));
        assert_eq!(again.seq, ack);
        while raw.next().is_some() {}
    }
}

#[test]
fn a_guest_s_time_stamps_are_answered_and_old_ones_are_none() {
    let (listener, at) = listen();
    let port = at.port();
    let raw = Raw::new(Config::default(), true);
    let stamp = |ours: u32, theirs: u32| {
        let mut option = vec![1, 1, 8, 10];
        option.extend(ours.to_be_bytes());
        option.extend(theirs.to_be_bytes());
        option
    };
    // Ours, and the one that is answered; behind the SYN's other options.
    let stamps = |options: &[u8]| {
        let at = options.windows(2).position(|w| w == [8, 10]).expect("time stamps") + 2;
        [0, 4].map(|n| u32::from_be_bytes(*options[at + n..].first_chunk().unwrap()))
    };
    let ports = (1000, port);
    let options = [&OPTIONS[..], &[1, 1, 4, 2], &stamp(5000, 0)].concat();
    raw.tcp(Tcp { ports, seq: 100, flags: SYN, options: &options, ..Tcp::default() });
    let answer = raw.wait();
    let [first, theirs] = stamps(&answer.options);
    assert_eq!(theirs, 5000);
    let ack = answer.seq.wrapping_add(1);
    raw.tcp(Tcp { ports, seq: 101, ack, flags: ACK, options: &stamp(5001, first), ..Tcp::default() });
    while raw.next().is_some() {}
    let mut server = listener.accept().unwrap().0;
    raw.poll.advance(Duration::from_millis(70));
    let send = |seq: u32, at: u32, data: &[u8]| {
        let options = &stamp(at, first);
        raw.tcp(Tcp { ports, seq, ack, flags: ACK | PSH, options, data });
        let seen = std::iter::from_fn(|| raw.next()).last().expect("an answer at once");
        let [ours, theirs] = stamps(&seen.options);
        assert!((70..5000).contains(&ours.wrapping_sub(first)), "{} ms", ours.wrapping_sub(first));
        (seen.ack, theirs, seen.options.len())
    };
    assert_eq!(send(101, 5010, b"one"), (104, 5010, 12));
    // What is too early does not count, as it may have overtaken others; three blocks fit beside the stamps.
    for n in 1..5 {
        let len = 12 + 4 + 8 * n.min(3);
        assert_eq!(send(104 + 10 * n as u32, 5030, b"far"), (104, 5010, len));
    }
    // One from before another is thrown away.
    assert_eq!(send(104, 5009, b"old").0, 104);
    assert_eq!(send(104, 5040, b"new").0, 107);
    let mut got = [0; 6];
    server.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"onenew");
    // Segments to the guest are shorter by the stamps.
    server.write_all(&[7; 5000]).unwrap();
    let seen = std::iter::repeat_with(|| raw.wait()).find(|s| !s.data.is_empty()).unwrap();
    assert_eq!((seen.gso.map(|g| g.size), seen.data.len()), (Some(1448), 5000));
    assert_eq!(stamps(&seen.options)[1], 5040);
}
