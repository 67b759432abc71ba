//! One client: the handshake, what it asks for, and what waits to be sent to it.
//!
//! What is read is bounded by the longest message (a list of encodings, 256 KiB; text that was cut is passed over),
//! what waits to be sent by one update: the next is made when the last has gone.
use super::encode::{self, Zlib};
use super::protocol::{Message, Parsed, PixelFormat, encoding, parse};
use super::{Server, auth, keys};
use crate::display::input::Pointer;
use crate::display::{Rect, Surface};
use crate::event_loop::{Descriptor, Registration, Source};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::{Arc, OnceLock, Weak};

const VERSION: &[u8; 12] = b"RFB 003.008\n";
/// Bytes read in a turn of the loop.
const CHUNK: usize = 1 << 16;
/// More rectangles than these become one.
const MOST_RECTS: usize = 128;

/// Kinds of security (RFC 6143, 7.1.2).
const NONE: u8 = 1;
const PASSWORD: u8 = 2;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    Version,
    Security,
    Response([u8; auth::CHALLENGE]),
    Init,
    Running,
    /// What waits is still sent.
    Closing,
}

struct State {
    phase: Phase,
    /// The second part of the version: 3, 7 or 8.
    minor: u8,
    input: Vec<u8>,
    /// Bytes of a text that are passed over.
    skip: usize,
    output: Vec<u8>,
    /// How many of these are sent.
    sent: usize,
    format: PixelFormat,
    encodings: Vec<i32>,
    /// Gone while a thread encodes.
    zlib: Option<Zlib>,
    /// The client does not know yet that scan codes are understood; that it has a map of colours.
    tell_keys: bool,
    tell_colours: bool,
    /// The screen's size as the client knows it.
    size: (usize, usize),
    /// An update is waited for: incrementally if true.
    wanted: Option<bool>,
    whole: bool,
    damage: Vec<Rect>,
    buttons: u8,
    /// The other clients are to go.
    alone: bool,
    /// Keys that are down, by keysym: they come up when the client goes.
    down: BTreeMap<u32, crate::input::ps2::Key>,
}

/// A client.
pub(super) struct Client {
    server: Weak<Server>,
    peer: Descriptor,
    at: OnceLock<Registration>,
    state: Mutex<State>,
}

impl Client {
    /// A client that has come.
    pub fn new(server: &Arc<Server>, peer: Descriptor) -> io::Result<Arc<Self>> {
        let state = State {
            phase: Phase::Version,
            minor: 8,
            input: Vec::new(),
            skip: 0,
            output: VERSION.to_vec(),
            sent: 0,
            format: PixelFormat::OWN,
            encodings: Vec::new(),
            zlib: Some(Zlib::new()),
            tell_keys: false,
            tell_colours: false,
            size: (0, 0),
            wanted: None,
            whole: true,
            damage: Vec::new(),
            buttons: 0,
            alone: false,
            down: BTreeMap::new(),
        };
        let server_ref = Arc::downgrade(server);
        let client =
            Arc::new(Self { server: server_ref, peer, at: OnceLock::new(), state: Mutex::new(state) });
        let source: Weak<Self> = Arc::downgrade(&client);
        let at = server.events.add(&client.peer, source, true, true)?;
        let _ = client.at.set(at);
        // It may have been ready before its registration was here.
        client.want();
        Ok(client)
    }

    /// Whether an update is waited for, and may be sent.
    pub fn wants(&self) -> bool {
        let state = self.state.lock();
        state.phase == Phase::Running && state.wanted.is_some() && state.output.is_empty()
    }

    /// Whether the handshake is over.
    pub fn is_running(&self) -> bool {
        self.state.lock().phase == Phase::Running
    }

    fn want(&self) {
        let waits = !self.state.lock().output.is_empty();
        if let Some(at) = self.at.get() {
            let _ = at.want(true, waits);
        }
    }

    /// Sends an update if one is waited for; in either case what has changed is noted.
    pub fn update(&self, surface: &Surface, damage: &[Rect]) {
        let mut state = self.state.lock();
        if state.phase != Phase::Running {
            return;
        }
        state.damage.extend_from_slice(damage);
        state.whole |= state.damage.len() > MOST_RECTS;
        let Some(incremental) = state.wanted.filter(|_| state.output.is_empty()) else { return };
        let has = |state: &State, e: i32| state.encodings.contains(&e);
        let mut update = Vec::new();
        let mut count = 0_u16;
        if std::mem::take(&mut state.tell_colours) {
            colour_map(&mut update);
        }
        let count_at = update.len() + 2;
        update.extend([0, 0, 0, 0]);
        if std::mem::take(&mut state.tell_keys) {
            encode::head(&mut update, Rect { x: 0, y: 0, width: 0, height: 0 }, encoding::QEMU_KEYS);
            count += 1;
        }
        let size = (surface.width(), surface.height());
        if state.size != size && has(&state, encoding::DESKTOP_SIZE) {
            state.size = size;
            state.whole = true;
            state.wanted = None;
            // The client asks for all of it next.
            encode::head(
                &mut update,
                Rect { x: 0, y: 0, width: size.0, height: size.1 },
                encoding::DESKTOP_SIZE,
            );
            update[count_at..count_at + 2].copy_from_slice(&(count + 1).to_be_bytes());
            return self.send_update(&mut state, update);
        }
        // A client that cannot change its size sees the part that it has room for.
        let (width, height) = (state.size.0.min(size.0), state.size.1.min(size.1));
        let whole = std::mem::take(&mut state.whole) || !incremental;
        let rects = if whole {
            state.damage.clear();
            vec![Rect { x: 0, y: 0, width, height }]
        } else {
            let clip = |r: Rect| Rect {
                width: r.width.min(width.saturating_sub(r.x)),
                height: r.height.min(height.saturating_sub(r.y)),
                ..r
            };
            std::mem::take(&mut state.damage).into_iter().map(clip).collect()
        };
        let rects: Vec<_> = rects.into_iter().filter(|r| r.width > 0 && r.height > 0).collect();
        if rects.is_empty() && count == 0 {
            return;
        }
        let format = state.format;
        let mut zlib = if has(&state, encoding::ZRLE) { state.zlib.take() } else { None };
        // Nothing else takes an update from here, as one is on its way; messages of the client are heard meanwhile.
        state.wanted = None;
        drop(state);
        for rect in rects {
            match &mut zlib {
                Some(zlib) => encode::zrle(&mut update, zlib, &format, surface, rect),
                None => encode::raw(&mut update, &format, surface, rect),
            }
            count += 1;
        }
        update[count_at..count_at + 2].copy_from_slice(&count.to_be_bytes());
        let mut state = self.state.lock();
        if zlib.is_some() {
            state.zlib = zlib;
        }
        self.send_update(&mut state, update);
    }

    fn send_update(&self, state: &mut State, update: Vec<u8>) {
        state.output.extend(update);
        if let Some(at) = self.at.get() {
            let _ = at.want(true, true);
        }
    }

    /// Sends what there is room for; whether the client is still there.
    fn flush(&self, state: &mut State) -> bool {
        while state.sent < state.output.len() {
            let rest = &state.output[state.sent..];
            // A peer that has gone sends no SIGPIPE.
            // SAFETY: `rest` is readable for its length, and the descriptor is open as long as `peer` is held.
            let n = unsafe {
                libc::send(
                    self.peer.source().as_raw_fd(),
                    rest.as_ptr().cast(),
                    rest.len(),
                    libc::MSG_NOSIGNAL,
                )
            };
            match usize::try_from(n) {
                Ok(n) => state.sent += n,
                Err(_) => return may_wait(&io::Error::last_os_error()),
            }
        }
        // The memory of a large update is not kept.
        state.output = Vec::new();
        state.sent = 0;
        state.phase != Phase::Closing
    }

    /// Reads what has come; whether the client is still there.
    fn fill(&self, state: &mut State) -> bool {
        let mut chunk = vec![0; CHUNK];
        // SAFETY: `chunk` is writable for its length, and the descriptor is open as long as `peer` is held.
        let n =
            unsafe { libc::recv(self.peer.source().as_raw_fd(), chunk.as_mut_ptr().cast(), chunk.len(), 0) };
        match usize::try_from(n) {
            Ok(0) => false,
            Ok(n) => {
                let passed = n.min(state.skip);
                state.skip -= passed;
                state.input.extend_from_slice(&chunk[passed..n]);
                true
            }
            Err(_) => may_wait(&io::Error::last_os_error()),
        }
    }

    /// Follows all that is whole of what has come.
    fn follow(&self, server: &Arc<Server>, state: &mut State) -> Result<(), String> {
        let mut used = 0;
        loop {
            let rest = &state.input[used..];
            match state.phase {
                Phase::Version => {
                    let Some(version) = rest.first_chunk::<12>() else { break };
                    used += 12;
                    state.minor = minor(version).ok_or("it does not speak RFB 3")?;
                    self.offer_security(server, state)?;
                }
                Phase::Security => {
                    let Some(kind) = rest.first().copied() else { break };
                    used += 1;
                    match (kind, server.password.is_some()) {
                        (PASSWORD, true) => self.challenge(state)?,
                        (NONE, false) if state.minor >= 8 => self.accept(state),
                        (NONE, false) => state.phase = Phase::Init,
                        _ => return Err("it wants security that was not offered".into()),
                    }
                }
                Phase::Response(challenge) => {
                    let Some(answer) = rest.first_chunk::<{ auth::CHALLENGE }>().copied() else { break };
                    used += auth::CHALLENGE;
                    let right = auth::response(server.password.as_deref().unwrap_or_default(), challenge);
                    if auth::same(&right, &answer) {
                        self.accept(state);
                    } else {
                        tracing::warn!("vnc: a client has the wrong password");
                        state.output.extend(1_u32.to_be_bytes());
                        if state.minor >= 8 {
                            text(&mut state.output, "wrong password");
                        }
                        state.phase = Phase::Closing;
                    }
                }
                Phase::Init => {
                    let Some(shared) = rest.first().copied() else { break };
                    used += 1;
                    state.alone = shared == 0;
                    state.size = server.display.size();
                    let (width, height) = state.size;
                    state.output.extend((width as u16).to_be_bytes());
                    state.output.extend((height as u16).to_be_bytes());
                    state.output.extend(PixelFormat::OWN.to_bytes());
                    text(&mut state.output, &server.name);
                    state.phase = Phase::Running;
                }
                Phase::Running => match parse(rest) {
                    Parsed::Message(message, len) => {
                        used += len;
                        if let Message::CutText(len) = message {
                            let here = (len as usize).min(state.input.len() - used);
                            used += here;
                            state.skip = len as usize - here;
                        } else {
                            message_came(server, state, message);
                        }
                    }
                    Parsed::Incomplete => break,
                    Parsed::Bad(why) => return Err(format!("it sends {why}")),
                },
                Phase::Closing => {
                    used = state.input.len();
                    break;
                }
            }
        }
        state.input.drain(..used);
        Ok(())
    }

    fn offer_security(&self, server: &Server, state: &mut State) -> Result<(), String> {
        let kind = if server.password.is_some() { PASSWORD } else { NONE };
        if state.minor >= 7 {
            state.output.extend([1, kind]);
            state.phase = Phase::Security;
            return Ok(());
        }
        // In the oldest version the server decides.
        state.output.extend(u32::from(kind).to_be_bytes());
        if kind == PASSWORD {
            return self.challenge(state);
        }
        state.phase = Phase::Init;
        Ok(())
    }

    fn challenge(&self, state: &mut State) -> Result<(), String> {
        let challenge = auth::challenge().map_err(|e| format!("no random numbers for it: {e}"))?;
        state.output.extend(challenge);
        state.phase = Phase::Response(challenge);
        Ok(())
    }

    fn accept(&self, state: &mut State) {
        state.output.extend(0_u32.to_be_bytes());
        state.phase = Phase::Init;
    }

    /// The client has gone, or is to: keys that it holds come up.
    pub fn release(&self, server: &Server) {
        let down = std::mem::take(&mut self.state.lock().down);
        down.into_values().for_each(|key| server.input.key(key, false));
    }
}

impl Source for Client {
    fn ready(&self, readable: bool, writable: bool) {
        let Some(server) = self.server.upgrade() else { return };
        let mut state = self.state.lock();
        let mut there = !writable || self.flush(&mut state);
        if there && readable {
            there = self.fill(&mut state);
            if let Err(why) = self.follow(&server, &mut state) {
                tracing::debug!("vnc: a client is left: {why}");
                // It may know by then what it did wrong.
                self.flush(&mut state);
                there = false;
            }
            there = there && self.flush(&mut state);
        }
        let wants = state.wanted.is_some();
        let alone = std::mem::take(&mut state.alone);
        drop(state);
        if alone {
            server.leave_others(self);
        }
        if !there {
            server.leave(self);
            return;
        }
        self.want();
        if wants {
            server.wake_up();
        }
    }
}

fn may_wait(e: &io::Error) -> bool {
    matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}

/// The part of a client's version that counts: 3.3, 3.7 or 3.8; others are taken for the next lower.
fn minor(version: &[u8; 12]) -> Option<u8> {
    let digits = |b: &[u8]| std::str::from_utf8(b).ok()?.parse::<u16>().ok();
    match (&version[..4], digits(&version[4..7])?, digits(&version[8..11])?) {
        (b"RFB ", 3, minor) => Some(match minor {
            8.. => 8,
            7 => 7,
            _ => 3,
        }),
        (b"RFB ", 4.., _) => Some(8),
        _ => None,
    }
}

fn text(to: &mut Vec<u8>, text: &str) {
    to.extend((text.len() as u32).to_be_bytes());
    to.extend(text.as_bytes());
}

/// The colours of a client with a map of them: as its pixels are made.
fn colour_map(to: &mut Vec<u8>) {
    to.extend([1, 0, 0, 0, 1, 0]);
    for n in 0..=255_u16 {
        for (value, most) in [(n >> 6, 3), (n >> 3 & 7, 7), (n & 7, 7)] {
            to.extend((value * (0xffff / most)).to_be_bytes());
        }
    }
}

fn message_came(server: &Server, state: &mut State, message: Message) {
    match message {
        Message::SetPixelFormat(format) => {
            state.tell_colours = !format.true_colour;
            state.format = format;
            state.whole = true;
        }
        Message::SetEncodings(encodings) => {
            let known = [encoding::RAW, encoding::ZRLE, encoding::DESKTOP_SIZE, encoding::QEMU_KEYS];
            state.encodings = known.into_iter().filter(|e| encodings.contains(e)).collect();
            state.tell_keys = state.encodings.contains(&encoding::QEMU_KEYS);
        }
        Message::UpdateRequest(incremental) => {
            state.wanted = Some(incremental && state.wanted.unwrap_or(true));
        }
        Message::Key { pressed, keysym, code } => {
            let key = code.and_then(keys::from_code).or_else(|| keys::from_keysym(keysym));
            let Some(key) = key else { return };
            if pressed {
                // No keyboard has more keys.
                if state.down.len() < 128 {
                    state.down.insert(keysym, key);
                }
            } else {
                state.down.remove(&keysym);
            }
            server.input.key(key, pressed);
        }
        Message::Pointer { buttons, x, y } => {
            let new = buttons & !state.buttons;
            state.buttons = buttons;
            let bit = |n: u8, of: u8| of >> n & 1 != 0;
            let (width, height) = state.size;
            server.input.pointer(Pointer {
                x: usize::from(x).min(width.saturating_sub(1)),
                y: usize::from(y).min(height.saturating_sub(1)),
                width,
                height,
                buttons: [0, 1, 2].map(|n| bit(n, buttons)),
                wheel: i32::from(bit(4, new)) - i32::from(bit(3, new)),
            });
        }
        Message::CutText(_) => {}
    }
}
