//! TCP through the NAT: a guest with a stack of its own on one side, sockets of the host on the other.
#![cfg(unix)]
mod common;

use common::{Faults, Guest, byte, gateway, listen};
use mynah_net::user::Config;
use smoltcp::iface::SocketHandle;
use smoltcp::socket::tcp::State;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::thread::{self, JoinHandle};
use std::time::Duration;

fn serve<T: Send + 'static>(
    at: &str,
    f: impl FnOnce(TcpStream) -> T + Send + 'static,
) -> (SocketAddr, JoinHandle<T>) {
    let listener = TcpListener::bind(at).unwrap();
    let address = listener.local_addr().unwrap();
    (address, thread::spawn(move || f(listener.accept().unwrap().0)))
}

fn check(bytes: &[u8], len: usize, seed: u8) {
    assert_eq!(bytes.len(), len);
    assert!(bytes.iter().enumerate().all(|(i, b)| *b == byte(i, seed)), "what arrives is what was sent");
}

/// The guest sends `up` bytes and closes, then reads until the end.
fn talk(g: &mut Guest, h: SocketHandle, up: usize) -> Vec<u8> {
    let (mut sent, mut got) = (0, Vec::new());
    g.until("the whole conversation", |g| {
        let s = g.socket(h);
        while sent < up && s.can_send() {
            sent += s
                .send(|room| {
                    let n = room.len().min(up - sent);
                    (0..n).for_each(|i| room[i] = byte(sent + i, 1));
                    (n, n)
                })
                .unwrap();
        }
        if sent == up && s.may_send() && s.state() != State::SynSent {
            s.close();
        }
        while s.can_recv() {
            s.recv(|data| {
                got.extend_from_slice(data);
                (data.len(), ())
            })
            .unwrap();
        }
        sent == up && !s.may_recv() && matches!(s.state(), State::TimeWait | State::Closed | State::LastAck)
    });
    got
}

fn both_ways(at: &str, faults: Faults, up: usize, down: usize) {
    let (address, server) = serve(at, move |mut s| {
        let mut got = Vec::new();
        s.read_to_end(&mut got).unwrap();
        // The guest has closed its half; the other still works.
        let answer: Vec<u8> = (0..down).map(|i| byte(i, 2)).collect();
        s.write_all(&answer).unwrap();
        got
    });
    let mut g = Guest::new(Config::default());
    g.link.faults = faults;
    let h = g.connect(gateway(address), 128 << 10);
    let got = talk(&mut g, h, up);
    check(&got, down, 2);
    check(&server.join().unwrap(), up, 1);
}

#[test]
fn many_megabytes_go_both_ways_and_each_half_closes_on_its_own() {
    for at in ["127.0.0.1:0", "[::1]:0"] {
        both_ways(at, Faults::default(), 8 << 20, 8 << 20);
    }
}

#[test]
fn a_link_that_loses_repeats_and_reorders_frames_is_only_slower() {
    both_ways("127.0.0.1:0", Faults { loss: 50, twice: 30, late: 30 }, 1 << 20, 1 << 20);
}

#[test]
fn what_nobody_answers_is_refused() {
    let mut g = Guest::new(Config::default());
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let h = g.connect(gateway(free), 4096);
    g.until("a reset", |g| g.socket(h).state() == State::Closed);
    assert!(g.user.flows().is_empty());
    // The loopback by its own name is not the way there; what listens does not hear of it.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let h = g.connect(SocketAddr::new([127, 0, 0, 1].into(), listener.local_addr().unwrap().port()), 4096);
    for _ in 0..50 {
        g.turn();
    }
    assert_ne!(g.socket(h).state(), State::Established);
    assert!(listener.accept().is_err());
}

#[test]
fn resets_pass_both_ways() {
    let mut g = Guest::new(Config::default());
    let (address, server) = serve("127.0.0.1:0", |s| {
        socket2::SockRef::from(&s).set_linger(Some(Duration::ZERO)).unwrap();
    });
    let h = g.connect(gateway(address), 4096);
    g.until("the host's reset", |g| g.socket(h).state() == State::Closed);
    server.join().unwrap();

    let (address, server) = serve("127.0.0.1:0", |mut s| s.read(&mut [0; 10]).unwrap_err().kind());
    let h = g.connect(gateway(address), 4096);
    g.until("a connection", |g| g.socket(h).state() == State::Established);
    g.socket(h).abort();
    g.until("the host's end", |_| server.is_finished());
    assert_eq!(server.join().unwrap(), std::io::ErrorKind::ConnectionReset);
    assert!(g.user.flows().is_empty());
}

#[test]
fn two_hundred_connections_at_once() {
    let (listener, address) = listen();
    thread::spawn(move || {
        for s in listener.incoming().take(200) {
            let mut s = s.unwrap();
            thread::spawn(move || {
                let mut got = Vec::new();
                s.read_to_end(&mut got).unwrap();
                s.write_all(&got).unwrap();
            });
        }
    });
    let mut g = Guest::new(Config::default());
    let handles: Vec<_> = (0..200).map(|_| g.connect(gateway(address), 4096)).collect();
    for (i, h) in handles.iter().enumerate() {
        g.until("a connection", |g| g.socket(*h).may_send());
        let text = format!("flow {i}");
        g.socket(*h).send_slice(text.as_bytes()).unwrap();
    }
    assert_eq!(g.user.flows().len(), 200);
    handles.iter().for_each(|h| g.socket(*h).close());
    for (i, h) in handles.iter().enumerate() {
        let mut got = Vec::new();
        g.until("an answer", |g| {
            while g.socket(*h).can_recv() {
                g.socket(*h).recv(|d| (d.len(), got.extend_from_slice(d))).unwrap();
            }
            !g.socket(*h).may_recv()
        });
        assert_eq!(String::from_utf8(got).unwrap(), format!("flow {i}"));
    }
}

#[test]
fn a_host_that_does_not_read_stops_the_guest() {
    let (address, server) = serve("127.0.0.1:0", |mut s| {
        let mut got = Vec::new();
        thread::park();
        s.read_to_end(&mut got).unwrap();
        got
    });
    let total = 16 << 20;
    let mut g = Guest::new(Config::default());
    let h = g.connect(gateway(address), 256 << 10);
    g.until("a connection", |g| g.socket(h).may_send());
    let mut sent = 0;
    let mut still = 0;
    while still < 300 {
        let s = g.socket(h);
        let n = s
            .send(|room| {
                let n = room.len().min(total - sent);
                (0..n).for_each(|i| room[i] = byte(sent + i, 1));
                (n, n)
            })
            .unwrap();
        sent += n;
        still = if n == 0 { still + 1 } else { 0 };
        g.turn();
        assert!(g.user.buffered() <= 2 << 20, "{}", g.user.buffered());
    }
    assert!(sent < total, "the window closes");
    server.thread().unpark();
    let rest = total - sent;
    g.until("the rest", |g| {
        let s = g.socket(h);
        if sent < total && s.can_send() {
            sent += s
                .send(|room| {
                    let n = room.len().min(total - sent);
                    (0..n).for_each(|i| room[i] = byte(sent + i, 1));
                    (n, n)
                })
                .unwrap();
        }
        if sent == total {
            g.socket(h).close();
        }
        server.is_finished()
    });
    assert!(rest > 0);
    check(&server.join().unwrap(), total, 1);
}

#[test]
fn a_guest_that_does_not_read_stops_the_host() {
    let total = 32 << 20;
    let (address, server) = serve("127.0.0.1:0", move |mut s| {
        s.set_nonblocking(true).unwrap();
        let all: Vec<u8> = (0..total).map(|i| byte(i, 2)).collect();
        let (mut sent, mut still) = (0, 0);
        while still < 100 {
            match s.write(&all[sent..]) {
                Ok(0) => break,
                Ok(n) => (sent, still) = (sent + n, 0),
                Err(_) => {
                    still += 1;
                    thread::sleep(Duration::from_millis(2));
                }
            }
        }
        let stopped = sent < total;
        s.set_nonblocking(false).unwrap();
        (stopped, s, sent)
    });
    let mut g = Guest::new(Config::default());
    let h = g.connect(gateway(address), 64 << 10);
    g.until("the host stops", |g| {
        assert!(g.user.buffered() <= 2 << 20, "{}", g.user.buffered());
        server.is_finished()
    });
    let (stopped, s, sent) = server.join().unwrap();
    assert!(stopped, "{sent} of {total}");
    s.shutdown(Shutdown::Write).unwrap();
    let mut got = Vec::new();
    g.until("all of it", |g| {
        while g.socket(h).can_recv() {
            g.socket(h).recv(|d| (d.len(), got.extend_from_slice(d))).unwrap();
        }
        !g.socket(h).may_recv()
    });
    check(&got, sent, 2);
}

#[test]
fn a_peer_of_single_bytes() {
    let (address, server) = serve("127.0.0.1:0", |mut s| {
        s.set_nodelay(true).unwrap();
        let (mut got, mut b) = (Vec::new(), [0]);
        while s.read(&mut b).unwrap() == 1 {
            s.write_all(&b).unwrap();
            got.push(b[0]);
        }
        got
    });
    let mut g = Guest::new(Config::default());
    let h = g.connect(gateway(address), 4096);
    g.socket(h).set_nagle_enabled(false);
    let mut got = Vec::new();
    for i in 0..500 {
        g.until("room", |g| g.socket(h).can_send());
        g.socket(h).send_slice(&[byte(i, 1)]).unwrap();
        g.until("its echo", |g| g.socket(h).can_recv());
        g.socket(h).recv(|d| (d.len(), got.extend_from_slice(d))).unwrap();
    }
    check(&got, 500, 1);
    g.socket(h).close();
    g.until("the end", |_| server.is_finished());
    check(&server.join().unwrap(), 500, 1);
}

#[test]
fn a_card_without_room_loses_nothing() {
    let (address, server) = serve("127.0.0.1:0", |mut s| {
        let all: Vec<u8> = (0..1 << 20).map(|i| byte(i, 2)).collect();
        s.write_all(&all).unwrap();
    });
    let mut g = Guest::new(Config::default());
    g.link.wire.room.store(3, std::sync::atomic::Ordering::Relaxed);
    let h = g.connect(gateway(address), 256 << 10);
    let got = talk(&mut g, h, 0);
    check(&got, 1 << 20, 2);
    server.join().unwrap();
}

#[test]
fn the_oldest_flow_goes_when_there_are_too_many() {
    let (_listener, address) = listen();
    let mut g = Guest::new(Config { max_flows: 4, ..Config::default() });
    let mut handles = Vec::new();
    for _ in 0..6 {
        let h = g.connect(gateway(address), 4096);
        g.until("a connection", |g| g.socket(h).may_send());
        handles.push(h);
    }
    assert_eq!(g.user.flows().len(), 4);
    g.until("resets", |g| handles[..2].iter().all(|h| g.socket(*h).state() == State::Closed));
    assert!(handles[2..].iter().all(|h| g.socket(*h).state() == State::Established));
}
