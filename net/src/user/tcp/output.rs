//! What a flow sends to the guest, and its timers.
use super::flow::{
    FRUGAL, Fate, Flow, GATHER, GATHERING, IDLE, LEAST_RTO, MOST_RTO, OUT, PATIENCE, Phase, SCALE,
};
use crate::user::core::Core;
use crate::user::ip;
use crate::{Frame, Gso, Offload, Partial};
use smallvec::SmallVec;
use smoltcp::wire::TcpPacket;
use std::io::IoSlice;
use std::net::SocketAddr;
use std::time::Duration;

/// Flags of a segment (RFC 9293, 3.1).
pub(in crate::user) const FIN: u8 = 0x01;
pub(in crate::user) const SYN: u8 = 0x02;
pub(in crate::user) const RST: u8 = 0x04;
pub(in crate::user) const PSH: u8 = 0x08;
pub(in crate::user) const ACK: u8 = 0x10;

/// How long an acknowledgement may be put off (RFC 9293, 3.8.6.3 allows 500 ms).
const DELAYED: Duration = Duration::from_millis(20);
/// The same of what ends with PSH, which a guest may wait for before it sends more (Nagle's algorithm), on a card that
/// paces its interrupts: with one for an acknowledgement alone an answer would have to wait, as a service of this host's
/// is quicker.
const SOON: Duration = Duration::from_micros(100);
/// How often is tried before a guest counts as gone; with the times doubling these are some minutes.
const TRIES: u32 = 10;
/// How often a SYN is.
const SYN_TRIES: u32 = 6;
const PROBES: u32 = 9;
const PROBE_EVERY: Duration = Duration::from_secs(75);
/// How long what the guest may repeat is answered after the end.
const TIME_WAIT: Duration = Duration::from_secs(30);
/// What is read in one turn of the loop.
const TURN: usize = 1 << 20;
/// Bytes for options: the most there may be. Those of time stamps, with their padding.
const OPTIONS: usize = 40;
pub(super) const STAMPS: usize = 12;
/// The most data in one frame: with its headers it is an IP packet.
const LONGEST: usize = 65_535 - 120;

/// `a < b` for sequence numbers.
pub(super) fn before(a: u32, b: u32) -> bool {
    (a.wrapping_sub(b) as i32) < 0
}

/// Everything of a header but addresses.
pub(super) struct Header {
    pub seq: u32,
    pub ack: u32,
    pub flags: u8,
    pub window: u16,
}

/// Writes a TCP header with `options`; how long it is.
pub(super) fn header(out: &mut [u8], from: SocketAddr, to: SocketAddr, h: &Header, options: &[u8]) -> usize {
    let len = 20 + options.len();
    out[..20].fill(0);
    let mut packet = TcpPacket::new_unchecked(&mut out[..len]);
    packet.set_src_port(from.port());
    packet.set_dst_port(to.port());
    packet.set_header_len(len as u8);
    packet.set_window_len(h.window);
    out[4..8].copy_from_slice(&h.seq.to_be_bytes());
    out[8..12].copy_from_slice(&h.ack.to_be_bytes());
    out[13] = h.flags;
    out[20..len].copy_from_slice(options);
    len
}

impl Flow {
    /// Sends a segment with `len` bytes of the ring from the `from`th on. False if the card has no room.
    fn segment(&mut self, core: &mut Core, seq: u32, flags: u8, from: usize, len: usize) -> bool {
        let (guest, remote) = (self.key.guest, self.key.remote);
        let free = self.window(core);
        let mut options = [0; OPTIONS];
        let mut options_len = 0;
        let shift = if flags & SYN != 0 { 0 } else { self.scale.map_or(0, |_| SCALE) };
        if flags & SYN != 0 {
            let mss = core.mss(guest.ip()) as u16;
            options[..2].copy_from_slice(&[2, 4]);
            options[2..4].copy_from_slice(&mss.to_be_bytes());
            options_len = 4;
            if self.scale.is_some() {
                options[4..8].copy_from_slice(&[1, 3, 3, SCALE]);
                options_len = 8;
            }
            if self.sack {
                options[options_len..][..4].copy_from_slice(&[1, 1, 4, 2]);
                options_len += 4;
            }
        }
        if let Some(theirs) = self.stamp {
            // In milliseconds, from a number that nobody can guess.
            let ours = core.uptime().as_millis() as u32;
            let place = &mut options[options_len..][..STAMPS];
            place[..4].copy_from_slice(&[1, 1, 8, 10]);
            place[4..8].copy_from_slice(&ours.wrapping_add(self.iss).to_be_bytes());
            place[8..].copy_from_slice(&theirs.to_be_bytes());
            options_len += STAMPS;
        }
        if flags == ACK && len == 0 && self.sack && !self.pieces.is_empty() {
            options_len += self.sack(&mut options[options_len..]);
        }
        // The end of the window never goes back (RFC 9293, 3.8.6).
        let told = self.rcv_adv.wrapping_sub(self.rcv_nxt);
        let told = if (told as i32) < 0 { 0 } else { told as usize };
        let window = (free.max(told) >> shift).min(0xffff);
        let ack = if flags & ACK != 0 { self.rcv_nxt } else { 0 };
        let h = Header { seq, ack, flags, window: window as u16 };

        let mut head = [0; ip::ETHERNET + 40 + 20 + OPTIONS];
        let transport_len = 20 + options_len + len;
        let Some(macs) = core.macs(guest.ip()) else {
            // Sent when the guest has told its address; data is sent again by the timer.
            if len == 0 {
                let mut bytes = [0; 20 + OPTIONS];
                let n = header(&mut bytes, remote, guest, &h, &options[..options_len]);
                ip::fill(remote.ip(), guest.ip(), ip::TCP, &mut bytes[..n], 16, &[]);
                core.packet(remote.ip(), guest.ip(), ip::TCP, 64, &bytes[..n]);
            }
            if flags & ACK != 0 {
                (self.unacked, self.ack_now, self.ack_soon, self.ack_at) = (0, false, false, None);
            }
            return true;
        };
        let at = ip::headers(&mut head, macs, (remote.ip(), guest.ip()), ip::TCP, 64, transport_len, None);
        let end = at + header(&mut head[at..], remote, guest, &h, &options[..options_len]);
        let (a, b) = self.ring.data(from, len);
        let mut offload = Offload::default();
        if core.takes.partial {
            let sum = ip::partial(remote.ip(), guest.ip(), ip::TCP, transport_len);
            head[at + 16..at + 18].copy_from_slice(&sum.to_be_bytes());
            offload.partial = Some(Partial { start: at as u16, offset: 16 });
            if len > self.mss {
                offload.gso = Some(Gso { v6: guest.is_ipv6(), size: self.mss as u16 });
            }
        } else {
            ip::fill(remote.ip(), guest.ip(), ip::TCP, &mut head[at..end], 16, &[a, b]);
        }
        let parts = [IoSlice::new(&head[..end]), IoSlice::new(a), IoSlice::new(b)];
        let used = if b.is_empty() { if a.is_empty() { 1 } else { 2 } } else { 3 };
        if !core.give(&Frame { offload, parts: &parts[..used] }) {
            if len == 0 {
                // Without data it waits with the other frames, so that an answer is not lost.
                core.queue(Frame { offload, parts: &parts[..1] }.to_vec(), offload);
            } else {
                return false;
            }
        }
        self.counters.segments_to += 1;
        if flags & ACK != 0 {
            (self.unacked, self.ack_now, self.ack_soon, self.ack_at) = (0, false, false, None);
            // What was told once is taken, also if its last bytes are lost in scaling now.
            self.rcv_adv = self.rcv_nxt.wrapping_add((window << shift).max(told) as u32);
            self.acked = self.rcv_nxt;
        }
        true
    }

    /// Sends SYN, or SYN and ACK.
    pub fn send_syn(&mut self, core: &mut Core) {
        let flags = if self.phase == Phase::SynReceived { SYN | ACK } else { SYN };
        self.segment(core, self.iss, flags, 0, 0);
        self.nxt = self.iss.wrapping_add(1);
        self.max = self.nxt;
        self.rto_at = Some(core.now + self.rto);
    }

    /// Sends an acknowledgement.
    pub fn send_ack(&mut self, core: &mut Core) {
        let seq = if before(self.nxt, self.max) { self.max } else { self.nxt };
        self.segment(core, seq, ACK, 0, 0);
    }

    /// Tells the guest that it is over.
    pub fn send_reset(&mut self, core: &mut Core) {
        match self.phase {
            // Refused: its SYN is answered, as nobody had been there (RFC 9293, 3.5.2, group 1).
            Phase::Connecting => self.segment(core, 0, RST | ACK, 0, 0),
            _ => self.segment(core, self.max, RST | ACK, 0, 0),
        };
    }

    /// Sends what there is to send and the guest's window has room for. False if the card has no room.
    fn output(&mut self, core: &mut Core) -> bool {
        let v6 = self.key.guest.is_ipv6();
        let long = core.takes.partial && if v6 { core.takes.tso6 } else { core.takes.tso4 };
        let most = if long { (LONGEST / self.mss).max(1) * self.mss } else { self.mss };
        loop {
            let sent = self.nxt.wrapping_sub(self.una) as usize;
            let left = self.ring.len().saturating_sub(sent);
            let room = self.edge.wrapping_sub(self.nxt) as i32;
            let n = left.min(most).min(room.max(0) as usize);
            // No silly windows (RFC 9293, 3.8.6.2.1): a full segment, all there is, or half the window.
            let worth = n == left || n >= self.mss || n >= self.max_wnd as usize / 2;
            if n > 0 && worth {
                let flags = if n == left { ACK | PSH } else { ACK };
                let seq = self.nxt;
                if !self.segment(core, seq, flags, sent, n) {
                    self.blocked = true;
                    return false;
                }
                self.streak = 0;
                self.nxt = seq.wrapping_add(n as u32);
                if before(self.max, self.nxt) {
                    if seq == self.max && self.timed.is_none() {
                        self.timed = Some((self.nxt, core.now));
                    }
                    self.max = self.nxt;
                } else {
                    self.counters.retransmitted += 1;
                }
                continue;
            }
            break;
        }
        if self.eof && !self.fin_acked && self.nxt == self.data_end() {
            self.segment(core, self.nxt, FIN | ACK, 0, 0);
            self.nxt = self.nxt.wrapping_add(1);
            if before(self.max, self.nxt) {
                self.max = self.nxt;
            }
        }
        true
    }

    /// Sends the first segment that is not acknowledged once more (RFC 6582, 3.2).
    pub fn repeat_first(&mut self, core: &mut Core) {
        let n = self.ring.len().min(self.mss).min(self.max.wrapping_sub(self.una) as usize);
        self.counters.retransmitted += 1;
        self.timed = None;
        if n > 0 {
            self.segment(core, self.una, ACK | PSH, 0, n);
        } else if self.eof && !self.fin_acked {
            self.segment(core, self.una, FIN | ACK, 0, 0);
        }
    }

    /// Does everything that can be done now: reads from the host what the guest has room for, sends it, acknowledges,
    /// and says what is waited for.
    pub fn pump(&mut self, core: &mut Core) -> Fate {
        if !matches!(self.phase, Phase::Open | Phase::TimeWait) {
            self.arm(false, self.phase == Phase::Connecting);
            return self.settle(core);
        }
        if !self.gathering
            && let Err(fate) = self.flush()
        {
            return fate;
        }
        self.blocked = false;
        let (mut more, mut turn, mut drained) = (false, TURN, false);
        while self.output(core) && !self.eof {
            // One byte at least, so that a closed window is asked about.
            let room = (self.edge.wrapping_sub(self.una) as i32).max(1) as usize;
            let want = self.appetite(core, room.saturating_sub(self.ring.len()));
            more = want > 0;
            // There was nothing when it was last looked at, and the loop will tell: no call for each segment.
            if turn == 0 || drained || self.armed.0 {
                break;
            }
            let asked = want.min(turn);
            match self.read(asked) {
                // Fewer than there was room for are all that there are.
                Ok(Some(n)) => (turn, drained) = (turn - n, n < asked),
                Ok(None) if self.eof => {}
                Ok(None) => break,
                Err(fate) => return fate,
            }
        }
        let told = self.rcv_adv.wrapping_sub(self.rcv_nxt) as i32;
        // As much as can be told: without a scale 64 KiB are all.
        let can = self.window(core).min(0xffff << self.scale.map_or(0, |_| SCALE));
        let gain = (can as i64 - i64::from(told)).max(0) as usize;
        // A window that opens is told when it is worth it (RFC 9293, 3.8.6.2.2): also a small one of long segments.
        let worth = (2 * self.mss).min(FRUGAL / 2);
        let opens = !self.fin_in && gain >= worth && (told < worth as i32 || gain >= OUT / 2);
        // Every second segment; a stream's as many as it sends without waiting.
        let enough = if self.streams() { self.stretch.max(2 * self.mss) } else { 2 * self.mss };
        if self.ack_now || self.unacked >= enough || opens {
            if self.streams() && self.unacked >= enough {
                self.stretch = (2 * enough).min(GATHER);
            }
            if self.gathering
                && let Err(fate) = self.flush()
            {
                return fate;
            }
            self.send_ack(core);
        } else if self.unacked > 0 {
            let delay = if self.ack_soon {
                SOON
            } else if self.streams() {
                GATHERING
            } else {
                DELAYED
            };
            let at = core.now + delay;
            self.ack_at = Some(self.ack_at.map_or(at, |before| before.min(at)));
        }
        if self.phase == Phase::Open && self.fin_acked && self.delivered() {
            if self.passive {
                return Fate::Gone;
            }
            self.phase = Phase::TimeWait;
            self.idle_at = Some(core.now + TIME_WAIT);
            // The host's socket has done its part: nothing more comes from either side.
            (self.interest, self.socket) = (None, None);
            self.ring.release();
            self.out.release();
        }
        let reads = !self.eof && !self.blocked && more;
        self.arm(reads, !self.out.is_empty() && !self.gathering);
        self.settle(core)
    }

    /// Sets the timers.
    fn settle(&mut self, core: &mut Core) -> Fate {
        let outstanding = self.una != self.max;
        let waiting = !self.ring.is_empty() || (self.eof && !self.fin_acked);
        if self.asks() {
            self.rto_at = self.rto_at.or(Some(core.now + PATIENCE));
        } else if !(outstanding || waiting) {
            self.rto_at = None;
        } else if self.rto_at.is_none() {
            self.rto_at = Some(core.now + self.rto);
        }
        if self.gathering && self.ack_at.is_none() {
            self.ack_at = Some(core.now + GATHERING);
        }
        let next = [self.rto_at, self.ack_at, self.idle_at, self.answer_at].into_iter().flatten().min();
        core.arm(self.id, &mut self.queued, next);
        self.count(core);
        Fate::Live
    }

    /// A time has come.
    pub fn due(&mut self, core: &mut Core) -> Fate {
        self.queued = None;
        let now = core.now;
        if self.ack_at.is_some_and(|t| t <= now) {
            if self.streams() {
                // It waits for this: its congestion window is smaller than was thought.
                self.stretch /= 2;
            }
            if self.gathering
                && let Err(fate) = self.flush()
            {
                return fate;
            }
            self.send_ack(core);
        }
        if self.idle_at.is_some_and(|t| t <= now) {
            if self.phase == Phase::TimeWait {
                return Fate::Gone;
            }
            if self.last + IDLE > now {
                self.idle_at = Some(self.last + IDLE);
                self.probes = 0;
            } else if self.probes >= PROBES {
                tracing::debug!("{:?}: the guest does not answer", self.key);
                return Fate::Aborted;
            } else {
                self.probes += 1;
                self.segment(core, self.una.wrapping_sub(1), ACK, 0, 0);
                self.idle_at = Some(now + PROBE_EVERY);
            }
            self.ring.release();
            self.out.release();
        }
        if self.rto_at.is_some_and(|t| t <= now)
            && let fate @ (Fate::Gone | Fate::Reset | Fate::Aborted) = self.timeout(core)
        {
            return fate;
        }
        self.pump(core)
    }

    /// What was sent is not acknowledged (RFC 6298, 5.4 to 5.7), or the guest's window stays closed.
    fn timeout(&mut self, core: &mut Core) -> Fate {
        if !core.nic.as_ref().is_some_and(|nic| nic.can_receive()) {
            // It has not had the chance, as when its machine is stopped.
            self.rto_at = Some(core.now + self.rto);
            return Fate::Live;
        }
        self.retries += 1;
        self.rto = (self.rto * 2).min(MOST_RTO);
        self.timed = None;
        let tries = if self.phase == Phase::Open { TRIES } else { SYN_TRIES };
        if self.retries > tries {
            tracing::debug!("{:?}: the guest does not answer", self.key);
            return Fate::Aborted;
        }
        if matches!(self.phase, Phase::SynSent | Phase::SynReceived) {
            self.send_syn(core);
            return Fate::Live;
        }
        self.rto_at = Some(core.now + self.rto);
        (self.recover, self.dup) = (None, 0);
        // Everything from the first byte that is missing, as far as there is a window.
        self.nxt = self.una;
        if (self.edge.wrapping_sub(self.una) as i32) <= 0 && !self.ring.is_empty() {
            // A probe of one byte (RFC 9293, 3.8.6.1).
            if self.segment(core, self.una, ACK | PSH, 0, 1) {
                self.nxt = self.una.wrapping_add(1);
                if before(self.max, self.nxt) {
                    self.max = self.nxt;
                }
            }
        }
        Fate::Live
    }

    /// A sample of the round trip (RFC 6298, 2).
    pub fn sample(&mut self, took: Duration) {
        let (srtt, var) = match self.srtt {
            None => (took, took / 2),
            Some((srtt, var)) => ((srtt * 7 + took) / 8, (var * 3 + srtt.abs_diff(took)) / 4),
        };
        self.srtt = Some((srtt, var));
        self.rto = self.usual_rto();
    }

    /// How long an answer may take, as far as is known.
    pub fn usual_rto(&self) -> Duration {
        self.srtt.map_or(LEAST_RTO, |(srtt, var)| (srtt + var * 4).clamp(LEAST_RTO, MOST_RTO))
    }

    /// What has come too early, as a segment tells of it (RFC 2018, 3): how long the option is. What came last is in the
    /// first block (4), so that a guest knows what each segment has done.
    fn sack(&self, out: &mut [u8]) -> usize {
        let mut blocks: SmallVec<[(u32, u32); 8]> = SmallVec::new();
        for (seq, bytes) in &self.pieces {
            let end = seq.wrapping_add(bytes.len() as u32);
            match blocks.last_mut() {
                Some((_, last)) if *last == *seq => *last = end,
                _ => blocks.push((*seq, end)),
            }
        }
        let has = |&(from, end): &(u32, u32)| !before(self.latest, from) && before(self.latest, end);
        if let Some(at) = blocks.iter().position(has) {
            blocks[..=at].rotate_right(1);
        }
        blocks.truncate((out.len() - 4) / 8);
        if blocks.is_empty() {
            return 0;
        }
        out[..4].copy_from_slice(&[1, 1, 5, 2 + 8 * blocks.len() as u8]);
        for (place, (from, end)) in out[4..].as_chunks_mut::<8>().0.iter_mut().zip(&blocks) {
            place[..4].copy_from_slice(&from.to_be_bytes());
            place[4..].copy_from_slice(&end.to_be_bytes());
        }
        4 + 8 * blocks.len()
    }
}
