//! One connection: what is known of both its ends, and the host's end of it.
use super::ring::Ring;
use crate::reactor::{Interest, Token};
use crate::user::core::{Core, FlowCounters};
use socket2::Socket;
use std::io::{self, ErrorKind, IoSlice};
use std::net::{Shutdown, SocketAddr};
use std::process::Child;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The most that is kept of what the guest has sent and the host's socket has no room for: the largest window.
pub(super) const OUT: usize = 512 << 10;
/// The most that is kept of what was sent to the guest and not yet acknowledged.
pub(super) const IN: usize = 1 << 20;
/// A flow's share when all together have more than [`BUDGET`].
pub(super) const FRUGAL: usize = 16 << 10;
/// Bytes in all flows' buffers above which each gets by with [`FRUGAL`].
pub(super) const BUDGET: usize = 128 << 20;
/// Those above which nothing more is kept of what the guest sends, though a window had been told: it is lost, and the
/// guest sends it again.
const MOST: usize = 2 * BUDGET;
/// Our window's scale: 512 KiB in 16 bits and some to spare.
pub(super) const SCALE: u8 = 5;
/// Pieces out of order that are kept for one flow, and their bytes.
const PIECES: usize = 256;
const PIECES_BYTES: usize = 256 << 10;
/// RFC 6298, 2.1 and 2.4, with the least time as other stacks have it: the link is in memory.
const FIRST_RTO: Duration = Duration::from_secs(1);
pub(super) const LEAST_RTO: Duration = Duration::from_millis(200);
pub(super) const MOST_RTO: Duration = Duration::from_secs(60);
/// When a silent guest is asked whether it is there (RFC 9293, 3.8.4).
pub(super) const IDLE: Duration = Duration::from_secs(7200);
/// After so many segments without an answer, full ones or short ones without a pause, the guest sends a stream: it wants
/// throughput. Its bytes are gathered to longer writes, and acknowledged together.
const STREAM: u32 = 16;
/// What is a pause between short segments.
pub(super) const PAUSE: Duration = Duration::from_millis(1);
/// Bytes that are written at once then, and the most that are acknowledged at once.
pub(super) const GATHER: usize = 32 << 10;
/// How long they wait at most.
pub(super) const GATHERING: Duration = Duration::from_micros(250);
/// How long a name server may take to answer a SYN before the next one is asked: less than guests wait themselves.
pub(super) const PATIENCE: Duration = Duration::from_secs(2);
/// The longest message of a name server's client, with its length in front (RFC 1035, 4.2.2).
const QUESTION: usize = 2 + 65_535;
/// The most slices of one write: sendmsg(2) has a limit.
const WRITE_PARTS: usize = 512;

/// A connection, as the guest sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    /// The guest's end.
    pub guest: SocketAddr,
    /// The other end.
    pub remote: SocketAddr,
}

/// How far it is. What each side has closed is told by other fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// The guest's SYN waits until the host's socket is connected.
    Connecting,
    /// Our SYN has gone out (a forward).
    SynSent,
    /// SYN and ACK have gone out.
    SynReceived,
    /// Both know.
    Open,
    /// Both have closed; it stays for what the guest may repeat.
    TimeWait,
}

/// What becomes of a flow after something happened to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    Live,
    /// It is over; nobody needs to be told.
    Gone,
    /// The guest gets RST.
    Reset,
    /// The guest has reset it, or does not answer: the host's side gets RST.
    Aborted,
}

pub(super) struct Flow {
    pub id: Token,
    pub key: Key,
    pub phase: Phase,
    pub last: Instant,
    pub counters: FlowCounters,

    /// The host's end. The interest goes before the socket.
    pub interest: Option<Box<dyn Interest>>,
    pub armed: (bool, bool),
    /// None once both halves have ended.
    pub socket: Option<Arc<Socket>>,
    pub child: Option<Child>,
    /// Which of the host's name servers it is, if it is one.
    pub resolver: Option<usize>,
    /// What the guest has asked a name server, as long as that has said nothing and there is another to ask; and when
    /// that is asked.
    pub question: Option<Vec<u8>>,
    pub answer_at: Option<Instant>,

    // Towards the guest (RFC 9293, 3.3.1). SND.UNA is the sequence number of the ring's first byte.
    pub iss: u32,
    pub una: u32,
    pub nxt: u32,
    /// The highest that NXT has been.
    pub max: u32,
    /// The end of the guest's window.
    pub edge: u32,
    pub max_wnd: u32,
    pub wl1: u32,
    pub wl2: u32,
    /// The guest's window scale, if both scale.
    pub scale: Option<u8>,
    pub mss: usize,
    pub ring: Ring,
    /// How much is read at a time; grows while the host has more.
    pub chunk: usize,
    /// The host has ended its half: FIN follows the ring's last byte.
    pub eof: bool,
    pub fin_acked: bool,

    // From the guest.
    pub rcv_nxt: u32,
    /// The end of the window that we have told.
    pub rcv_adv: u32,
    pub out: Ring,
    /// What came too early: sequence number and bytes, sorted, none over another.
    pub pieces: Vec<(u32, Vec<u8>)>,
    /// The sequence number of the one that came last.
    pub latest: u32,
    /// Whether the guest is told of them (RFC 2018): it has said that it understands.
    pub sack: bool,
    /// The guest's time stamp that is to be answered, if both send them (RFC 7323, 4.3: TS.Recent), and up to where was
    /// acknowledged (Last.ACK.sent).
    pub stamp: Option<u32>,
    pub acked: u32,
    pub fin_in: bool,
    /// The guest closed first, so that it is the one who waits (RFC 9293, 3.6).
    pub passive: bool,
    pub shut: bool,
    /// Bytes that are not acknowledged yet.
    pub unacked: usize,
    /// Segments of a stream that came one after the other, and nothing went back.
    pub streak: u32,
    /// The last one was not full.
    pub short: bool,
    /// Bytes that are acknowledged at once in a stream.
    pub stretch: usize,
    /// What is in `out` waits for more.
    pub gathering: bool,
    pub ack_now: bool,
    /// An answer may take the acknowledgement with it, if it comes soon.
    pub ack_soon: bool,

    // Loss towards the guest.
    pub dup: u8,
    pub recover: Option<u32>,
    pub rto: Duration,
    pub srtt: Option<(Duration, Duration)>,
    pub timed: Option<(u32, Instant)>,
    pub retries: u32,
    pub probes: u32,

    pub rto_at: Option<Instant>,
    pub ack_at: Option<Instant>,
    pub idle_at: Option<Instant>,
    /// When the timer of this flow goes off.
    pub queued: Option<Instant>,
    /// The card had no room.
    pub blocked: bool,
    /// What its buffers have been counted as.
    pub counted: usize,
}

impl Flow {
    pub fn new(core: &mut Core, id: Token, key: Key, socket: Arc<Socket>, phase: Phase) -> io::Result<Self> {
        let interest = Some(core.reactor.register(&socket, id)?);
        let iss = core.random();
        let mss = core.mss(key.guest.ip());
        Ok(Self {
            id,
            key,
            phase,
            last: core.now,
            counters: FlowCounters::default(),
            interest,
            armed: (false, false),
            socket: Some(socket),
            child: None,
            resolver: None,
            question: None,
            answer_at: None,
            iss,
            una: iss,
            nxt: iss,
            max: iss,
            edge: iss,
            max_wnd: 0,
            wl1: 0,
            wl2: 0,
            scale: None,
            mss,
            ring: Ring::default(),
            chunk: 16 << 10,
            eof: false,
            fin_acked: false,
            rcv_nxt: 0,
            rcv_adv: 0,
            out: Ring::default(),
            pieces: Vec::new(),
            latest: 0,
            sack: false,
            stamp: None,
            acked: 0,
            fin_in: false,
            passive: false,
            shut: false,
            unacked: 0,
            streak: 0,
            short: false,
            stretch: 0,
            gathering: false,
            ack_now: false,
            ack_soon: false,
            dup: 0,
            recover: None,
            rto: FIRST_RTO,
            srtt: None,
            timed: None,
            retries: 0,
            probes: 0,
            rto_at: None,
            ack_at: None,
            idle_at: Some(core.now + IDLE),
            queued: None,
            blocked: false,
            counted: 0,
        })
    }

    /// Whether the guest sends and sends.
    pub fn streams(&self) -> bool {
        self.streak >= STREAM
    }

    /// Whether it waits for a name server of the host's to answer at all.
    pub fn asks(&self) -> bool {
        self.phase == Phase::Connecting && self.resolver.is_some()
    }

    /// Whether a socket says that it is still being connected to another name server.
    fn connects(&self, e: &io::Error) -> bool {
        self.resolver.is_some_and(|n| n > 0) && e.kind() == ErrorKind::NotConnected
    }

    /// The guest asks a name server something: it is kept for the next one.
    fn ask(&mut self, parts: &[&[u8]], keep: bool) {
        let Some(question) = &mut self.question else { return };
        if !keep || question.len() + parts.iter().map(|p| p.len()).sum::<usize>() > QUESTION {
            (self.question, self.answer_at) = (None, None);
            return;
        }
        parts.iter().for_each(|p| question.extend_from_slice(p));
        self.answer_at = self.answer_at.or(Some(self.last + PATIENCE));
    }

    /// The same question for another name server, which `last` says is the last of them.
    pub fn ask_again(&mut self, now: Instant, last: bool) {
        let Some(question) = self.question.clone() else { return };
        self.out = Ring::default();
        self.out.push(&question);
        (self.gathering, self.shut) = (false, false);
        self.answer_at = Some(now + PATIENCE);
        if last {
            (self.question, self.answer_at) = (None, None);
        }
    }

    /// How many bytes more the guest may send.
    pub fn window(&self, core: &Core) -> usize {
        let most = if core.buffered > BUDGET { FRUGAL } else { OUT };
        most.saturating_sub(self.out.len())
    }

    /// The sequence number behind the last byte that there is.
    pub fn data_end(&self) -> u32 {
        self.una.wrapping_add(self.ring.len() as u32)
    }

    /// Whether the guest's FIN has come and all before it has reached the host.
    pub fn delivered(&self) -> bool {
        self.fin_in && self.out.is_empty()
    }

    /// Writes to the host's socket: how many bytes it took.
    fn write(&self, parts: &[IoSlice<'_>]) -> Result<usize, Fate> {
        let parts = &parts[..parts.len().min(WRITE_PARTS)];
        let Some(socket) = &self.socket else { return Ok(0) };
        loop {
            match socket.send_vectored(parts) {
                Ok(n) => return Ok(n),
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) if e.kind() == ErrorKind::WouldBlock || self.connects(&e) => return Ok(0),
                Err(e) => {
                    tracing::debug!("{:?}: the host's side has failed: {e}", self.key);
                    return Err(Fate::Reset);
                }
            }
        }
    }

    /// Takes data in order: to the socket as far as it has room, the rest is kept if `keep` says so. It is within the
    /// window.
    pub fn take(&mut self, parts: &[&[u8]], keep: bool) -> Result<(), Fate> {
        let mut total: usize = parts.iter().map(|p| p.len()).sum();
        let mut gone = 0;
        if self.question.is_some() {
            self.ask(parts, keep);
        }
        let gathers = self.gathering || self.out.is_empty();
        if keep && gathers && self.streams() && !self.shut && self.out.len() + total < GATHER {
            parts.iter().for_each(|part| self.out.push(part));
            self.gathering = true;
            self.rcv_nxt = self.rcv_nxt.wrapping_add(total as u32);
            self.unacked += total;
            self.counters.from_guest += total as u64;
            return Ok(());
        }
        if self.gathering {
            self.flush()?;
        }
        if self.out.is_empty() && total > 0 && !self.shut {
            let slices: smallvec::SmallVec<[IoSlice<'_>; 20]> =
                parts.iter().map(|p| IoSlice::new(p)).collect();
            gone = self.write(&slices)?;
        }
        if !keep {
            total = gone;
        }
        self.rcv_nxt = self.rcv_nxt.wrapping_add(total as u32);
        self.unacked += total;
        self.counters.from_guest += total as u64;
        if self.shut {
            return Ok(());
        }
        if !keep {
            return Ok(());
        }
        for part in parts {
            let skip = gone.min(part.len());
            gone -= skip;
            if skip < part.len() {
                self.out.push(&part[skip..]);
            }
        }
        Ok(())
    }

    /// Keeps what has come too early. What is nearest is needed first: what is further on makes room for it.
    pub fn keep(&mut self, core: &Core, seq: u32, parts: &[&[u8]]) {
        if core.buffered > BUDGET {
            return;
        }
        let place = |s: u32| s.wrapping_sub(self.rcv_nxt) as usize;
        let (mut from, mut end) = (place(seq), place(seq) + parts.iter().map(|p| p.len()).sum::<usize>());
        let at = self.pieces.partition_point(|(s, _)| place(*s) < from);
        if let Some((s, b)) = at.checked_sub(1).and_then(|n| self.pieces.get(n)) {
            from = from.max(place(*s) + b.len());
        }
        while let Some((s, b)) = self.pieces.get(at).filter(|(s, _)| place(*s) < end) {
            if place(*s) + b.len() > end {
                end = place(*s);
                break;
            }
            self.pieces.remove(at);
        }
        if from >= end {
            return;
        }
        let mut held: usize = self.pieces.iter().map(|(_, b)| b.len()).sum();
        while self.pieces.len() >= PIECES || held + (end - from) > PIECES_BYTES {
            if self.pieces.len() <= at {
                return;
            }
            held -= self.pieces.pop().map_or(0, |(_, b)| b.len());
        }
        let (skip, len) = (from - place(seq), end - from);
        let mut bytes = Vec::with_capacity(len);
        bytes.extend(parts.iter().flat_map(|p| p.iter()).skip(skip).take(len));
        self.pieces.insert(at, (self.rcv_nxt.wrapping_add(from as u32), bytes));
    }

    /// Whether there is memory for what the guest sends.
    pub fn may_keep(core: &Core) -> bool {
        core.buffered <= MOST
    }

    /// Takes what is in order now of what came too early.
    pub fn fit(&mut self, keep: bool) -> Result<(), Fate> {
        while let Some((seq, bytes)) = self.pieces.first() {
            let ahead = self.rcv_nxt.wrapping_sub(*seq);
            if ahead as i32 >= 0 {
                let fresh = bytes.len().saturating_sub(ahead as usize);
                let (_, bytes) = self.pieces.remove(0);
                if fresh > 0 {
                    self.take(&[&bytes[bytes.len() - fresh..]], keep)?;
                }
            } else {
                break;
            }
        }
        Ok(())
    }

    /// Writes what is kept; ends the host's half after the guest's.
    pub fn flush(&mut self) -> Result<(), Fate> {
        self.gathering = false;
        while !self.out.is_empty() {
            let n = self.write(&self.out.slices())?;
            if n == 0 {
                return Ok(());
            }
            self.out.consume(n);
        }
        if self.fin_in && !self.shut {
            self.shut = true;
            // It fails if the peer has gone, which reading will tell.
            let _ = self.socket.as_ref().map(|s| s.shutdown(Shutdown::Write));
        }
        Ok(())
    }

    /// How much may be read of the host's, if the guest has room for `most`.
    pub fn appetite(&self, core: &Core, most: usize) -> usize {
        let limit = if core.buffered > BUDGET { FRUGAL } else { IN };
        most.min(self.chunk).min(limit.saturating_sub(self.ring.len()))
    }

    /// Reads at most `want` bytes from the host: how many there were, None if there are none now.
    pub fn read(&mut self, want: usize) -> Result<Option<usize>, Fate> {
        let Some(socket) = self.socket.as_deref() else { return Ok(None) };
        if want == 0 {
            return Ok(None);
        }
        self.ring.reserve(want);
        let got = loop {
            match io::Read::read_vectored(&mut &*socket, &mut self.ring.room(want)) {
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                other => break other,
            }
        };
        match got {
            // Another one may answer.
            Ok(0) if self.question.is_some() => Err(Fate::Reset),
            Ok(0) => {
                self.eof = true;
                Ok(None)
            }
            Ok(n) => {
                (self.question, self.answer_at) = (None, None);
                self.ring.filled(n);
                self.counters.to_guest += n as u64;
                self.chunk = if n == self.chunk {
                    (self.chunk * 2).min(256 << 10)
                } else if n * 4 < self.chunk {
                    (self.chunk / 2).max(16 << 10)
                } else {
                    self.chunk
                };
                Ok(Some(n))
            }
            Err(e) if e.kind() == ErrorKind::WouldBlock || self.connects(&e) => Ok(None),
            Err(e) => {
                tracing::debug!("{:?}: the host's side has failed: {e}", self.key);
                Err(Fate::Reset)
            }
        }
    }

    /// Says what is waited for on the host's socket.
    pub fn arm(&mut self, read: bool, write: bool) {
        if self.armed == (read, write) {
            return;
        }
        if let Some(interest) = &self.interest
            && interest.want(read, write).is_ok()
        {
            self.armed = (read, write);
        }
    }

    /// Brings the sum of all flows' buffers up to date.
    pub fn count(&mut self, core: &mut Core) {
        let held: usize = self.pieces.iter().map(|(_, b)| b.len()).sum();
        let now = self.ring.capacity() + self.out.capacity() + held;
        core.buffered = (core.buffered + now).saturating_sub(self.counted);
        self.counted = now;
    }
}
