//! Peers that do not do as they should: reset, stall, half-close, vanish; each is one's own affair.
#![cfg(unix)]
mod common;

use common::raw::{ACK, FIN, PSH, RST, Raw, SYN, Tcp};
use common::{Guest, byte, gateway, listen};
use mynah_net::user::Config;
use smoltcp::socket::tcp::State;
use socket2::SockRef;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

#[test]
fn a_host_that_closes_its_half_first_still_gets_all() {
    let (listener, at) = listen();
    let total = 1 << 20;
    let server = thread::spawn(move || {
        let mut s = listener.accept().unwrap().0;
        s.write_all(b"that is all").unwrap();
        s.shutdown(Shutdown::Write).unwrap();
        let mut got = Vec::new();
        s.read_to_end(&mut got).unwrap();
        got
    });
    let mut g = Guest::new(Config::default());
    let h = g.connect(gateway(at), 64 << 10);
    g.until("the host's end", |g| g.socket(h).state() == State::CloseWait);
    let mut got = Vec::new();
    g.socket(h).recv(|d| (d.len(), got.extend_from_slice(d))).unwrap();
    assert_eq!(got, b"that is all");
    let mut sent = 0;
    g.until("the guest's data", |g| {
        let s = g.socket(h);
        if sent < total && s.can_send() {
            let data: Vec<u8> = (sent..total.min(sent + 10_000)).map(|i| byte(i, 1)).collect();
            sent += s.send_slice(&data).unwrap();
        }
        sent == total
    });
    g.socket(h).close();
    g.until("the end", |g| g.socket(h).state() == State::Closed && server.is_finished());
    let got = server.join().unwrap();
    assert!(got.len() == total && got.iter().enumerate().all(|(i, b)| *b == byte(i, 1)));
    // The host has closed first: the NAT waits in its place.
    assert_eq!(g.user.flows()[0].state, "TimeWait");
    assert_eq!(g.poll.sockets(), 0);
}

#[test]
fn a_host_that_never_answers_holds_up_nobody_and_may_be_given_up() {
    // A listener whose queue is full answers nothing.
    let (listener, at) = listen();
    SockRef::from(&listener).listen(0).unwrap();
    let full: Vec<_> = (0..4)
        .map(|_| TcpStream::connect_timeout(&at, Duration::from_millis(100)))
        .take_while(Result::is_ok)
        .collect();
    assert!(full.len() < 4, "its queue is not full");
    let raw = Raw::new(Config::default(), false);
    let ports = (1000, at.port());
    raw.tcp(Tcp { ports, seq: 100, flags: SYN, ..Tcp::default() });
    // Others go on.
    let (other, other_at) = listen();
    raw.open(1001, other_at.port(), &[]);
    drop(other.accept().unwrap());
    let states = || Vec::from_iter(raw.user.flows().iter().map(|f| (f.guest.port(), f.state.clone())));
    assert!(states().contains(&(1000, "Connecting".into())));
    // Its SYN once more is not another connection; a reset with the wrong number is none.
    raw.tcp(Tcp { ports, seq: 100, flags: SYN, ..Tcp::default() });
    raw.tcp(Tcp { ports, seq: 7, flags: RST, ..Tcp::default() });
    assert_eq!(raw.user.flows().iter().filter(|f| f.guest.port() == 1000).count(), 1);
    raw.tcp(Tcp { ports, seq: 101, flags: RST, ..Tcp::default() });
    assert!(states().iter().all(|(port, _)| *port != 1000));
}

#[test]
fn a_guest_that_vanishes_is_given_up_and_the_host_hears_of_it() {
    let (raw, _, _, mut host) = Raw::with_connection(false, &[]);
    host.write_all(&[7; 100_000]).unwrap();
    // It acknowledges nothing: what is sent again is sent ever more seldom, and then no more.
    let (mut times, end) = (0, Instant::now() + Duration::from_secs(60));
    while !raw.user.flows().is_empty() {
        raw.poll.turn(&raw.user, Duration::from_millis(1));
        times += usize::from(!raw.card.frames.lock().unwrap().is_empty());
        raw.card.frames.lock().unwrap().clear();
        raw.poll.advance(Duration::from_secs(1));
        assert!(Instant::now() < end, "{:?}", raw.user.flows());
    }
    assert!((5..=30).contains(&times), "{times}");
    assert_eq!((raw.poll.sockets(), raw.user.buffered()), (0, 0));
    assert_eq!(host.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);
}

#[test]
fn a_guest_that_says_nothing_for_hours_is_asked_whether_it_is_there() {
    let (raw, port, ack, mut host) = Raw::with_connection(false, &[]);
    let hours = |n: u64| {
        raw.poll.advance(Duration::from_secs(n * 3600 + 60));
        raw.poll.turn(&raw.user, Duration::ZERO);
    };
    hours(1);
    assert!(raw.next().is_none());
    hours(1);
    // It is there: it answers what it has had before.
    let asked = raw.next().unwrap();
    assert_eq!((asked.seq, asked.flags, asked.data.len()), (ack.wrapping_sub(1), ACK, 0));
    raw.tcp(Tcp { ports: (1000, port), seq: 101, ack, flags: ACK, ..Tcp::default() });
    hours(2);
    assert!(raw.next().is_some());
    assert_eq!(raw.user.flows().len(), 1);
    // Now it is not.
    for _ in 0..20 {
        raw.poll.advance(Duration::from_secs(76));
        raw.poll.turn(&raw.user, Duration::ZERO);
    }
    assert!(raw.user.flows().is_empty());
    assert_eq!(host.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);
}

#[test]
fn a_reset_of_the_hosts_ends_one_connection_only() {
    let (listener, at) = listen();
    let raw = Raw::new(Config::default(), false);
    let ack = raw.open(1000, at.port(), &[]);
    let other = raw.open(1001, at.port(), &[]);
    let (host, mut second) = (listener.accept().unwrap().0, listener.accept().unwrap().0);
    // The host resets with data that it has not read.
    let t = Tcp { ports: (1000, at.port()), seq: 101, ack, flags: ACK | PSH, ..Tcp::default() };
    raw.tcp(Tcp { data: b"unread", ..t });
    SockRef::from(&host).set_linger(Some(Duration::ZERO)).unwrap();
    drop(host);
    let reset = loop {
        let seen = raw.wait();
        if seen.flags & RST != 0 {
            break seen;
        }
    };
    assert_eq!((reset.ports.1, reset.seq), (1000, ack));
    // What the guest still sends is answered with a reset, too.
    raw.tcp(Tcp { seq: 107, data: b"more", ..t });
    assert_eq!(raw.wait().flags & RST, RST);
    second.write_all(b"x").unwrap();
    let seen = raw.wait();
    assert_eq!((seen.ports.1, seen.seq, &seen.data[..]), (1001, other, &b"x"[..]));
    // Programs may read what passes.
    let json = raw.user.json();
    let flows = json["flows"].as_array().unwrap();
    assert_eq!(
        (flows.len(), &flows[0]["guest"], &flows[0]["state"]),
        (1, &"10.0.2.15:1001".into(), &"Open".into())
    );
    assert_eq!(flows[0]["counters"]["to_guest"], 1);
    assert_eq!(json["stats"]["from_guest"], raw.user.stats().from_guest);
}

#[test]
fn both_open_at_once_and_become_one_connection() {
    let raw = Raw::new(Config::parse([("hostfwd", "tcp:127.0.0.1:0-:80")]).unwrap(), false);
    // The guest must be known, or it is asked for its address first.
    raw.send(&common::raw::packet([10, 0, 2, 15], [10, 0, 2, 2], smoltcp::wire::IpProtocol::Udp, &[0; 8]));
    let mut host = TcpStream::connect(raw.user.forwards()[0].host).unwrap();
    let syn = raw.wait();
    assert_eq!(syn.flags, SYN);
    // The guest's SYN crosses ours (RFC 9293, 3.5, figure 8).
    let ports = (80, syn.ports.0);
    raw.tcp(Tcp { ports, seq: 500, flags: SYN, ..Tcp::default() });
    let both = raw.wait();
    assert_eq!((both.flags, both.seq, both.ack), (SYN | ACK, syn.seq, 501));
    let ack = syn.seq.wrapping_add(1);
    raw.tcp(Tcp { ports, seq: 500, ack, flags: SYN | ACK, ..Tcp::default() });
    raw.tcp(Tcp { ports, seq: 501, ack, flags: ACK | PSH, data: b"hello", ..Tcp::default() });
    let mut got = [0; 5];
    host.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"hello");
    assert_eq!(raw.user.flows()[0].state, "Open");
    raw.tcp(Tcp { ports, seq: 506, ack, flags: ACK | FIN, ..Tcp::default() });
    assert_eq!(host.read(&mut got).unwrap(), 0);
}
