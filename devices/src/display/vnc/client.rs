//! One client: the handshake, what it asks for, and what waits to be sent to it.
//!
//! What is read is bounded by the longest message (a list of encodings, 256 KiB; text that was cut is passed over),
//! what waits to be sent by one update: the next is made when the last has gone.
use super::encode::{self, Zlib};
use super::protocol::{Message, Parsed, PixelFormat, encoding, parse};
use super::tight::{self, Tight};
use super::websocket::{self, WebSocket};
use super::{Server, auth, keys};
use crate::descriptor;
use crate::display::input::Pointer;
use crate::display::{Rect, Surface};
use crate::event_loop::{Descriptor, Registration, Source};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::io;
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
    /// What is to be sent, and is not on its way yet.
    output: Vec<u8>,
    /// What is on its way: output, in frames if there is a WebSocket.
    wire: Vec<u8>,
    /// How many bytes of that are sent.
    sent: usize,
    socket: Option<Box<WebSocket>>,
    format: PixelFormat,
    encodings: Vec<i32>,
    /// Gone while a thread encodes.
    zlib: Option<Zlib>,
    tight: Option<Tight>,
    /// The client does not know yet that scan codes are understood; that it has a map of colours.
    tell_keys: bool,
    tell_colours: bool,
    /// That the pointer is relative.
    tell_pointer: bool,
    /// The screen's size, with whether the client has asked for another.
    tell_size: Option<bool>,
    /// The pointer's movements come, not its places.
    relative: bool,
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

impl State {
    /// Whether something waits to be sent that can be.
    fn waits(&self) -> bool {
        let output = match &self.socket {
            Some(socket) => socket.has_reply() || socket.is_open() && !self.output.is_empty(),
            None => !self.output.is_empty(),
        };
        output || self.sent < self.wire.len()
    }

    /// Whether nothing does, so that an update may be made.
    fn is_idle(&self) -> bool {
        self.output.is_empty() && self.sent >= self.wire.len()
    }

    /// What goes on its way next.
    fn next_wire(&mut self) -> Vec<u8> {
        let Some(socket) = &mut self.socket else { return std::mem::take(&mut self.output) };
        let mut wire = socket.take_reply();
        if socket.is_open() && !self.output.is_empty() {
            wire.extend(websocket::frame(&std::mem::take(&mut self.output)));
        }
        wire
    }
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
    pub fn new(server: &Arc<Server>, peer: Descriptor, websocket: bool) -> io::Result<Arc<Self>> {
        let state = State {
            phase: Phase::Version,
            minor: 8,
            input: Vec::new(),
            skip: 0,
            output: VERSION.to_vec(),
            wire: Vec::new(),
            sent: 0,
            socket: websocket.then(Box::default),
            format: PixelFormat::OWN,
            encodings: Vec::new(),
            zlib: Some(Zlib::new()),
            tight: Some(Tight::new()),
            tell_keys: false,
            tell_colours: false,
            tell_pointer: false,
            tell_size: None,
            relative: false,
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
        state.phase == Phase::Running && state.wanted.is_some() && state.is_idle()
    }

    /// Bytes that are held to be sent.
    #[cfg(test)]
    pub fn held(&self) -> usize {
        let state = self.state.lock();
        state.output.len() + state.wire.len()
    }

    /// Whether the handshake is over.
    pub fn is_running(&self) -> bool {
        self.state.lock().phase == Phase::Running
    }

    fn want(&self) {
        let waits = self.state.lock().waits();
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
        let Some(incremental) = state.wanted.filter(|_| state.is_idle()) else { return };
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
        if std::mem::take(&mut state.tell_pointer) {
            // At 0 the pointer is relative.
            encode::head(&mut update, Rect { x: 0, y: 0, width: 0, height: 0 }, encoding::POINTER);
            count += 1;
        }
        let size = (surface.width(), surface.height());
        let extended = has(&state, encoding::EXTENDED_DESKTOP_SIZE);
        let resized = state.size != size && (extended || has(&state, encoding::DESKTOP_SIZE));
        let told = state.tell_size.take();
        if resized || told.is_some() && extended {
            if resized {
                state.size = size;
                state.whole = true;
            }
            state.wanted = None;
            // The client asks for all of it next.
            if extended {
                encode::extended_size(&mut update, size, !resized && told == Some(true));
            } else {
                let all = Rect { x: 0, y: 0, width: size.0, height: size.1 };
                encode::head(&mut update, all, encoding::DESKTOP_SIZE);
            }
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
        // The first that the client names.
        let kind = state.encodings.iter().copied().find(|e| [encoding::ZRLE, encoding::TIGHT].contains(e));
        let mut zlib = if kind == Some(encoding::ZRLE) { state.zlib.take() } else { None };
        let mut tight = if kind == Some(encoding::TIGHT) { state.tight.take() } else { None };
        // Nothing else takes an update from here, as one is on its way; messages of the client are heard meanwhile.
        state.wanted = None;
        drop(state);
        for rect in rects {
            match (&mut zlib, &mut tight) {
                (Some(zlib), _) => encode::zrle(&mut update, zlib, &format, surface, rect),
                (_, Some(tight)) => {
                    for part in tight::parts(rect) {
                        tight.rect(&mut update, &format, surface, part);
                        count = count.saturating_add(1);
                    }
                    continue;
                }
                _ => encode::raw(&mut update, &format, surface, rect),
            }
            count += 1;
        }
        update[count_at..count_at + 2].copy_from_slice(&count.to_be_bytes());
        let mut state = self.state.lock();
        if zlib.is_some() {
            state.zlib = zlib;
        }
        if tight.is_some() {
            state.tight = tight;
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
        loop {
            if state.sent >= state.wire.len() {
                // The memory of a large update is not kept.
                (state.wire, state.sent) = (state.next_wire(), 0);
                if state.wire.is_empty() {
                    return state.phase != Phase::Closing;
                }
            }
            let rest = &state.wire[state.sent..];
            match descriptor::send(&self.peer, rest) {
                Ok(n) => state.sent += n,
                Err(e) => return may_wait(&e),
            }
        }
    }

    /// Reads what has come; whether the client is still there.
    fn fill(&self, state: &mut State) -> bool {
        let mut chunk = vec![0; CHUNK];
        match descriptor::read(&self.peer, &mut chunk) {
            Ok(0) => false,
            Ok(n) => {
                chunk.truncate(n);
                if let Some(socket) = &mut state.socket {
                    let mut plain = Vec::new();
                    if let Err(why) = socket.receive(&chunk, &mut plain) {
                        tracing::debug!("vnc: a client is left: it sends {why}");
                        return false;
                    }
                    if !socket.is_open() && !socket.has_reply() && plain.is_empty() {
                        // The request is not whole yet.
                        return true;
                    }
                    chunk = plain;
                }
                let passed = chunk.len().min(state.skip);
                state.skip -= passed;
                state.input.extend_from_slice(&chunk[passed..]);
                true
            }
            Err(e) => may_wait(&e),
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
                    match (kind, server.auth.lock().needed) {
                        (PASSWORD, true) => self.challenge(state)?,
                        (NONE, false) if state.minor >= 8 => self.accept(state),
                        (NONE, false) => state.phase = Phase::Init,
                        _ => return Err("it wants security that was not offered".into()),
                    }
                }
                Phase::Response(challenge) => {
                    let Some(answer) = rest.first_chunk::<{ auth::CHALLENGE }>().copied() else { break };
                    used += auth::CHALLENGE;
                    let right = server.auth.lock().password().map(|p| auth::response(p, challenge));
                    if right.is_some_and(|right| auth::same(&right, &answer)) {
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
                    state.alone = shared == 0 && !server.shared;
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
        let kind = if server.auth.lock().needed { PASSWORD } else { NONE };
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
            // In the client's order; a list of one and the same is not kept.
            state.encodings.clear();
            for e in encodings {
                if encoding::KNOWN.contains(&e) && !state.encodings.contains(&e) {
                    state.encodings.push(e);
                }
            }
            let has = |e: i32| state.encodings.contains(&e);
            state.tell_keys = has(encoding::QEMU_KEYS);
            state.relative = has(encoding::POINTER);
            state.tell_pointer = state.relative;
            state.tell_size = has(encoding::EXTENDED_DESKTOP_SIZE).then_some(false);
        }
        Message::UpdateRequest(incremental) => {
            state.wanted = Some(incremental && state.wanted.unwrap_or(true));
        }
        Message::Key { pressed, keysym, code } => {
            let key = code.and_then(keys::from_code).or_else(|| keys::from_keysym(keysym, server.layout));
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
            let wheel = i32::from(bit(4, new)) - i32::from(bit(3, new));
            if state.relative {
                let by = |n: u16| i32::from(n) - 0x7fff;
                return server.input.motion(by(x), by(y), [0, 1, 2].map(|n| bit(n, buttons)), wheel);
            }
            server.input.pointer(Pointer {
                x: usize::from(x).min(width.saturating_sub(1)),
                y: usize::from(y).min(height.saturating_sub(1)),
                width,
                height,
                buttons: [0, 1, 2].map(|n| bit(n, buttons)),
                wheel,
            });
        }
        // The guest's resolution is its own.
        Message::SetDesktopSize => state.tell_size = Some(true),
        Message::CutText(_) => {}
    }
}
