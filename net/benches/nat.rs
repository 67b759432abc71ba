//! TCP through the NAT without a guest: long segments and those of a link, each way, to a socket on the loopback.
//!
//! `cargo bench -p mynah-net`: what is said is bytes of data in a second on one thread, whose other end is a thread of
//! the host's.
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use mynah_net::user::{Config, Poll, User};
use mynah_net::{Backend, Frame, Gso, Nic, Offload, Partial, Takes};
use std::hint::black_box;
use std::io::{IoSlice, Read, Write};
use std::net::TcpListener;
use std::sync::{Arc, Mutex};
use std::time::Duration;

const MAC: [u8; 6] = [0x52, 0x54, 0, 0x12, 0x34, 0x56];
/// Bytes of data in one measurement.
const TOTAL: usize = 16 << 20;

/// What has come of data, and the newest acknowledgement.
#[derive(Default)]
struct Seen {
    iss: u32,
    acked: u32,
    data: u32,
}

struct Card {
    seen: Mutex<Seen>,
    long: bool,
    /// Where data is put, as a guest's memory.
    memory: Mutex<Vec<u8>>,
}

impl Nic for Card {
    fn can_receive(&self) -> bool {
        true
    }
    fn receive(&self, frame: &Frame<'_>) -> bool {
        let head = &frame.parts[0];
        let mut memory = self.memory.lock().unwrap();
        memory.clear();
        frame.parts.iter().for_each(|p| memory.extend_from_slice(p));
        black_box(&*memory);
        let mut seen = self.seen.lock().unwrap();
        if head[12..14] == [8, 0] && head[23] == 6 {
            let word = |at: usize| u32::from_be_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
            if head[47] & 2 != 0 {
                seen.iss = word(38);
            }
            seen.acked = word(42);
            seen.data = seen.data.wrapping_add((frame.len() - 34 - usize::from(head[46] >> 4) * 4) as u32);
        }
        true
    }
    fn takes(&self) -> Takes {
        Takes { partial: self.long, tso4: self.long, tso6: self.long }
    }
}

fn header(port: u16, seq: u32, ack: u32, flags: u8, options: &[u8], len: usize) -> Vec<u8> {
    let mut f = vec![0x52, 0x55, 10, 0, 2, 2];
    f.extend_from_slice(&MAC);
    f.extend_from_slice(&[8, 0, 0x45, 0]);
    f.extend_from_slice(&((40 + options.len() + len) as u16).to_be_bytes());
    f.extend_from_slice(&[0, 0, 0x40, 0, 64, 6, 0, 0, 10, 0, 2, 15, 10, 0, 2, 2]);
    let sum: u32 = f[14..34].chunks(2).map(|c| u32::from(u16::from_be_bytes([c[0], c[1]]))).sum();
    let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
    f[24..26].copy_from_slice(&sum.to_be_bytes());
    f.extend_from_slice(&1234u16.to_be_bytes());
    f.extend_from_slice(&port.to_be_bytes());
    f.extend_from_slice(&seq.to_be_bytes());
    f.extend_from_slice(&ack.to_be_bytes());
    f.extend_from_slice(&[((20 + options.len()) << 2) as u8, flags, 0xff, 0xff, 0, 0, 0, 0]);
    f.extend_from_slice(options);
    f
}

struct Rig {
    user: Arc<User>,
    poll: Poll,
    card: Arc<Card>,
    port: u16,
    seq: u32,
    got: u32,
}

impl Rig {
    fn new(long: bool, peer: impl FnOnce(std::net::TcpStream) + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        std::thread::spawn(move || peer(listener.accept().unwrap().0));
        let poll = Poll::new();
        let user = User::new(Config::default(), Arc::new(poll.clone())).unwrap();
        let card = Arc::new(Card { seen: Mutex::default(), long, memory: Mutex::default() });
        user.connect(card.clone());
        let mut rig = Self { user, poll, card, port, seq: 101, got: 0 };
        // MSS 1460, window scale 7: the window is 8 MiB.
        rig.send(&header(port, 100, 0, 2, &[2, 4, 5, 0xb4, 1, 3, 3, 7], 0), &[], false);
        while rig.card.seen.lock().unwrap().iss == 0 {
            rig.poll.turn(&rig.user, Duration::from_millis(10));
        }
        rig.got = rig.card.seen.lock().unwrap().iss.wrapping_add(1);
        rig.card.seen.lock().unwrap().data = 0;
        rig.ack();
        rig
    }

    fn send(&self, head: &[u8], data: &[u8], long: bool) {
        let partial = Some(Partial { start: 34, offset: 16 });
        let gso = long.then_some(Gso { v6: false, size: 1460 });
        let parts = [IoSlice::new(head), IoSlice::new(data)];
        self.user.send(&Frame { offload: Offload { partial, gso, valid: false }, parts: &parts });
    }

    fn ack(&self) {
        self.send(&header(self.port, self.seq, self.got, 0x10, &[], 0), &[], false);
    }

    fn up(&mut self, data: &[u8]) {
        let mut left = TOTAL;
        while left > 0 {
            let n = left.min(data.len());
            // 256 KiB in flight.
            while self.seq.wrapping_sub(self.card.seen.lock().unwrap().acked) as i32 > 256 << 10 {
                self.poll.turn(&self.user, Duration::from_millis(1));
            }
            let head = header(self.port, self.seq, self.got, 0x10, &[], n);
            self.send(&head, &data[..n], n > 1460);
            self.seq = self.seq.wrapping_add(n as u32);
            left -= n;
        }
    }

    fn down(&mut self) {
        let mut left = TOTAL as i64;
        while left > 0 {
            self.poll.turn(&self.user, Duration::from_millis(1));
            let n = std::mem::take(&mut self.card.seen.lock().unwrap().data);
            if n > 0 {
                self.got = self.got.wrapping_add(n);
                left -= i64::from(n);
                self.ack();
            }
        }
    }
}

fn nat(c: &mut Criterion) {
    let mut group = c.benchmark_group("nat");
    group.throughput(Throughput::Bytes(TOTAL as u64)).sample_size(10);
    for (name, len) in [("64k", 62_780), ("1500", 1460)] {
        let data = vec![0x5a; len];
        let mut rig = Rig::new(len > 1460, |mut s| {
            let mut buffer = vec![0; 1 << 20];
            while s.read(&mut buffer).is_ok_and(|n| n > 0) {}
        });
        group.bench_function(format!("tcp-to-host-{name}"), |b| b.iter(|| rig.up(&data)));
        let mut rig = Rig::new(len > 1460, |mut s| {
            let buffer = vec![0; 1 << 20];
            while s.write_all(&buffer).is_ok() {}
        });
        group.bench_function(format!("tcp-to-guest-{name}"), |b| b.iter(|| rig.down()));
    }
    group.finish();
}

criterion_group!(benches, nat);
criterion_main!(benches);
