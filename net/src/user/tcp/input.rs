//! What a flow makes of a segment from the guest (RFC 9293, 3.10.7; RFC 5961).
use super::flow::{Fate, Flow, PAUSE, Phase};
use super::output::{ACK, FIN, RST, STAMPS, SYN, before};
use crate::frame::Slices;
use crate::user::core::Core;
use smoltcp::wire::{TcpOption, TcpPacket};
use std::time::Duration;

/// After so long a time stamp says nothing any more (RFC 7323, 5.5).
const LONG_AGO: Duration = Duration::from_secs(24 * 24 * 3600);

/// A segment.
pub(in crate::user) struct Segment<'a> {
    pub seq: u32,
    pub ack: u32,
    pub flags: u8,
    pub window: u16,
    /// Of a SYN: maximum segment size, window scale, and whether selective acknowledgements are understood.
    pub mss: Option<u16>,
    pub scale: Option<u8>,
    pub sack: bool,
    /// The time stamp of who sent it, and the one that it answers (RFC 7323, 3.2).
    pub stamps: Option<(u32, u32)>,
    pub data: Slices<'a>,
    pub len: usize,
}

impl<'a> Segment<'a> {
    /// Reads a header. None if it is not one.
    pub fn parse(header: &[u8], data: Slices<'a>) -> Option<Self> {
        let packet = TcpPacket::new_checked(header).ok()?;
        let mut segment = Self {
            seq: packet.seq_number().0 as u32,
            ack: packet.ack_number().0 as u32,
            flags: header[13],
            window: packet.window_len(),
            mss: None,
            scale: None,
            sack: false,
            stamps: stamps(header.get(20..).unwrap_or_default()),
            len: data.iter().map(|d| d.len()).sum(),
            data,
        };
        if segment.has(SYN) {
            let mut options = packet.options();
            while !options.is_empty() {
                // An option that is cut off ends them.
                let Ok((rest, option)) = TcpOption::parse(options) else { break };
                match option {
                    TcpOption::EndOfList => break,
                    TcpOption::MaxSegmentSize(mss) => segment.mss = Some(mss),
                    // More than 14 counts as 14 (RFC 7323, 2.3).
                    TcpOption::WindowScale(n) => segment.scale = Some(n.min(14)),
                    TcpOption::SackPermitted => segment.sack = true,
                    _ => {}
                }
                options = rest;
            }
        }
        Some(segment)
    }

    pub fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    /// How many sequence numbers it takes.
    pub fn space(&self) -> u32 {
        self.len as u32 + u32::from(self.has(SYN)) + u32::from(self.has(FIN))
    }
}

/// The time stamps among options.
fn stamps(mut options: &[u8]) -> Option<(u32, u32)> {
    loop {
        match options {
            [1, rest @ ..] => options = rest,
            [8, 10, a, b, c, d, e, f, g, h, ..] => {
                return Some((u32::from_be_bytes([*a, *b, *c, *d]), u32::from_be_bytes([*e, *f, *g, *h])));
            }
            [kind, len, ..] if *kind != 0 && *len >= 2 => options = options.get(usize::from(*len)..)?,
            _ => return None,
        }
    }
}

/// What is left of slices without the first `skip` bytes, and no longer than `len`.
fn cut<'a>(parts: &Slices<'a>, mut skip: usize, mut len: usize) -> Slices<'a> {
    let mut found = Slices::new();
    for part in parts {
        let from = skip.min(part.len());
        skip -= from;
        let n = (part.len() - from).min(len);
        if n > 0 {
            found.push(&part[from..from + n]);
            len -= n;
        }
    }
    found
}

impl Flow {
    /// Takes the guest's SYN.
    pub fn synchronize(&mut self, core: &Core, s: &Segment<'_>) {
        self.rcv_nxt = s.seq.wrapping_add(1);
        // 536 if it says nothing, 1220 over IPv6 (RFC 9293, 3.7.1). None of a few bytes, which would be a burden.
        let least = if self.key.guest.is_ipv4() { 536 } else { 1220 };
        let said = usize::from(s.mss.unwrap_or(least)).max(64);
        self.mss = said.min(core.mss(self.key.guest.ip()));
        (self.scale, self.sack) = (s.scale, s.sack);
        self.stamp = s.stamps.map(|(theirs, _)| theirs);
        if self.stamp.is_some() {
            self.mss -= STAMPS;
        }
        (self.edge, self.max_wnd) = (self.una.wrapping_add(s.window.into()), s.window.into());
        (self.wl1, self.wl2) = (s.seq, s.ack);
        self.rcv_adv = self.rcv_nxt;
    }

    /// A segment has arrived.
    pub fn arrives(&mut self, core: &mut Core, s: &Segment<'_>) -> Fate {
        let pause = core.now.saturating_duration_since(self.last);
        self.last = core.now;
        self.probes = 0;
        self.counters.segments_from += 1;
        match self.phase {
            Phase::Connecting => {
                // The SYN again, or the guest has changed its mind.
                return if s.has(RST) && s.seq == self.rcv_nxt { Fate::Aborted } else { Fate::Live };
            }
            Phase::SynSent => return self.answered(core, s),
            _ => {}
        }
        if self.phase == Phase::SynReceived
            && s.has(SYN)
            && !s.has(ACK)
            && s.seq.wrapping_add(1) == self.rcv_nxt
        {
            self.send_syn(core);
            return Fate::Live;
        }
        // Before all, the time stamp: one from before another is an old segment's (RFC 7323, 5.3).
        if let (Some(recent), Some((theirs, _))) = (self.stamp, s.stamps) {
            if before(theirs, recent) && !s.has(RST) && pause < LONG_AGO {
                self.send_ack(core);
                return Fate::Live;
            }
            // What is answered is the first of what is not acknowledged yet (4.3).
            if !before(self.acked, s.seq) {
                self.stamp = Some(theirs);
            }
        }
        // First, the sequence number (3.10.7.4).
        let window = (self.rcv_adv.wrapping_sub(self.rcv_nxt) as i32).max(0) as u32;
        let from = s.seq.wrapping_sub(self.rcv_nxt) as i32;
        let end = from.wrapping_add(s.space() as i32);
        let at_edge = from == 0;
        let acceptable = at_edge
            || if s.space() == 0 {
                from > 0 && (from as u32) < window
            } else {
                end > 0 && from < window as i32
            };
        if !acceptable {
            if !s.has(RST) {
                self.send_ack(core);
            }
            return Fate::Live;
        }
        if s.has(RST) {
            // Only the exact number resets (RFC 5961, 3.2).
            if at_edge {
                return Fate::Aborted;
            }
            self.challenge(core);
            return Fate::Live;
        }
        if s.has(SYN) {
            // A simultaneous open ends with SYN and ACK, whose SYN we know already (3.5, figure 8).
            if !(self.phase == Phase::SynReceived && s.has(ACK) && s.seq.wrapping_add(1) == self.rcv_nxt) {
                self.challenge(core);
                return Fate::Live;
            }
        }
        if !s.has(ACK) {
            return Fate::Live;
        }
        if self.phase == Phase::SynReceived {
            if s.ack != self.max {
                return Fate::Reset;
            }
            self.opened(s);
        } else if !self.acknowledged(core, s) {
            return Fate::Live;
        }
        if let Err(fate) = self.text(core, s, window, pause) {
            return fate;
        }
        self.pump(core)
    }

    /// An answer to our SYN (3.10.7.3).
    fn answered(&mut self, core: &mut Core, s: &Segment<'_>) -> Fate {
        if s.has(ACK) && s.ack != self.max {
            return if s.has(RST) { Fate::Live } else { Fate::Reset };
        }
        if s.has(RST) {
            return if s.has(ACK) { Fate::Aborted } else { Fate::Live };
        }
        if !s.has(SYN) {
            return Fate::Live;
        }
        self.synchronize(core, s);
        if s.has(ACK) {
            self.opened(s);
            // The window of a SYN is not scaled.
            self.edge = s.ack.wrapping_add(s.window.into());
            self.ack_now = true;
            self.pump(core)
        } else {
            // Both have opened at once.
            self.phase = Phase::SynReceived;
            self.send_syn(core);
            self.pump(core)
        }
    }

    /// Our SYN is acknowledged.
    fn opened(&mut self, s: &Segment<'_>) {
        self.phase = Phase::Open;
        self.una = s.ack;
        self.nxt = s.ack;
        self.max = s.ack;
        self.window_update(s);
        (self.retries, self.rto_at) = (0, None);
        if self.srtt.is_none() {
            self.rto = super::flow::LEAST_RTO;
        }
    }

    fn window_update(&mut self, s: &Segment<'_>) {
        let window = u32::from(s.window) << self.scale.unwrap_or(0);
        self.edge = s.ack.wrapping_add(window);
        self.max_wnd = self.max_wnd.max(window);
        (self.wl1, self.wl2) = (s.seq, s.ack);
    }

    /// Answers what an attacker may have made up, not more often than the guest needs it (RFC 5961, 5 and 7).
    fn challenge(&mut self, core: &mut Core) {
        if core.challenge() {
            self.send_ack(core);
        }
    }

    /// Fifth, the acknowledgement. Whether the segment is to be looked at further.
    fn acknowledged(&mut self, core: &mut Core, s: &Segment<'_>) -> bool {
        if before(self.max, s.ack) || before(s.ack, self.una.wrapping_sub(self.max_wnd)) {
            self.challenge(core);
            return false;
        }
        let closed = (self.edge.wrapping_sub(self.una) as i32) <= 0;
        let old_edge = self.edge;
        if before(self.wl1, s.seq) || (self.wl1 == s.seq && !before(s.ack, self.wl2)) {
            self.window_update(s);
        }
        self.retries = 0;
        if before(self.una, s.ack) {
            let count = s.ack.wrapping_sub(self.una) as usize;
            let fin = count > self.ring.len();
            self.ring.consume(count);
            self.fin_acked |= fin && self.eof;
            self.una = s.ack;
            if before(self.nxt, self.una) {
                self.nxt = self.una;
            }
            self.dup = 0;
            match self.timed {
                Some((seq, at)) if !before(s.ack, seq) => {
                    self.timed = None;
                    self.sample(core.now.saturating_duration_since(at));
                }
                // Something gets there. While all that is sent is sent again there is no sample, and the time would
                // only ever double.
                _ => self.rto = self.usual_rto(),
            }
            self.rto_at = None;
            match self.recover {
                // One more is missing (RFC 6582, 3.2, partial acknowledgement).
                Some(recover) if before(s.ack, recover) => self.repeat_first(core),
                _ => self.recover = None,
            }
        } else if closed && before(old_edge, self.edge) {
            // The window opens: what it was asked with may have been thrown away.
            self.nxt = self.una;
            self.rto_at = None;
        } else if s.ack == self.una && s.space() == 0 && self.una != self.max && self.edge == old_edge {
            self.dup = self.dup.saturating_add(1);
            if self.dup == 3 && self.recover.is_none() {
                self.recover = Some(self.max);
                self.repeat_first(core);
            }
        }
        true
    }

    /// Seventh and eighth, the data and FIN. The urgent pointer is ignored: its data is in its place in the stream.
    fn text(&mut self, core: &mut Core, s: &Segment<'_>, window: u32, pause: Duration) -> Result<(), Fate> {
        let offset = s.seq.wrapping_add(u32::from(s.has(SYN))).wrapping_sub(self.rcv_nxt) as i32;
        if s.len > 0 && !self.fin_in {
            if offset <= 0 {
                let old = offset.unsigned_abs() as usize;
                let fresh = s.len.saturating_sub(old).min(window as usize);
                // Whatever is not new or has no room is answered at once.
                self.ack_now |= fresh < s.len || !self.pieces.is_empty();
                if fresh > 0 {
                    let full = fresh >= self.mss;
                    let goes_on = full || pause < PAUSE;
                    self.streak = if goes_on { self.streak.saturating_add(1) } else { 0 };
                    // What is short after full ones may be the end of something: nothing waits for more.
                    let ends = !full && !self.short;
                    self.short = !full;
                    let keep = Self::may_keep(core);
                    self.take(&cut(&s.data, old, fresh), keep)?;
                    self.fit(keep)?;
                    if ends && self.gathering {
                        self.flush()?;
                    }
                    let waits = self.streams() && !ends;
                    if s.flags & super::output::PSH != 0 && self.out.is_empty() && !waits {
                        // The guest has said what it had to say.
                        let paces = core.nic.as_ref().is_some_and(|nic| nic.paces());
                        (self.ack_now, self.ack_soon) = (self.ack_now | !paces, paces);
                    }
                }
            } else {
                let fits = (window as usize).saturating_sub(offset as usize).min(s.len);
                self.keep(core, s.seq, &cut(&s.data, 0, fits));
                self.latest = s.seq;
                // At once, so that it is seen as missing (RFC 5681, 4.2).
                self.send_ack(core);
                return Ok(());
            }
        }
        let fin_at = s.seq.wrapping_add(s.len as u32).wrapping_add(u32::from(s.has(SYN)));
        if s.has(FIN) {
            if !self.fin_in && fin_at == self.rcv_nxt {
                self.fin_in = true;
                self.passive = !(self.fin_acked || self.eof && before(self.data_end(), self.nxt));
                self.rcv_nxt = self.rcv_nxt.wrapping_add(1);
                self.pieces = Vec::new();
                self.flush()?;
            }
            self.ack_now = true;
        }
        Ok(())
    }
}
