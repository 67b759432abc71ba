//! The server as clients see it: one that is written here, and vncdotool where that is installed.
use super::protocol::PixelFormat;
use super::*;
use crate::display::input::Pointer;
use crate::display::{Rect, Surface, TextScreen, dump};
use crate::input::ps2::Key;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Command;

/// A picture that tests change.
struct Fake(Mutex<Surface>);

impl Fake {
    fn new(width: usize, height: usize) -> Arc<Self> {
        let mut surface = Surface::new(width, height);
        for y in 0..height {
            for (x, p) in surface.row_mut(y).iter_mut().enumerate() {
                *p = ((x * 3) as u32 & 0xff) << 16
                    | ((y * 5) as u32 & 0xff) << 8
                    | (((x / 16) ^ (y / 16)) as u32 * 8) & 0xff;
            }
        }
        Arc::new(Self(Mutex::new(surface)))
    }
}

impl Display for Fake {
    fn refresh(&self, screen: &mut Screen) -> Vec<Rect> {
        let surface = self.0.lock();
        let (width, height) = (surface.width(), surface.height());
        if (screen.surface.width(), screen.surface.height()) != (width, height) {
            screen.surface = surface.clone();
            return vec![Rect { x: 0, y: 0, width, height }];
        }
        let changed = |y: usize| Some((y, screen.put(y, surface.row(y))?));
        let rows: Vec<_> = (0..height).filter_map(changed).collect();
        rows.into_iter().map(|(y, (from, to))| Rect { x: from, y, width: to - from, height: 1 }).collect()
    }
    fn size(&self) -> (usize, usize) {
        let surface = self.0.lock();
        (surface.width(), surface.height())
    }
    fn text(&self) -> Option<TextScreen> {
        None
    }
}

#[derive(Default)]
struct Hands {
    keys: Mutex<Vec<(Key, bool)>>,
    pointers: Mutex<Vec<Pointer>>,
    motions: Mutex<Vec<(i32, i32, bool, i32)>>,
}

impl Input for Hands {
    fn key(&self, key: Key, pressed: bool) {
        self.keys.lock().push((key, pressed));
    }
    fn pointer(&self, pointer: Pointer) {
        self.pointers.lock().push(pointer);
    }
    fn motion(&self, x: i32, y: i32, buttons: [bool; 3], wheel: i32) {
        self.motions.lock().push((x, y, buttons[0], wheel));
    }
}

struct Setup {
    fake: Arc<Fake>,
    hands: Arc<Hands>,
    server: VncServer,
    port: u16,
}

fn setup(password: Option<&str>) -> Setup {
    let (fake, hands) = (Fake::new(200, 100), Arc::new(Hands::default()));
    let options = VncOptions {
        address: Address::Tcp { host: "127.0.0.1".into(), port: 0 },
        needs_password: password.is_some(),
        password: password.map(Into::into),
        websocket: Some(Address::Tcp { host: "127.0.0.1".into(), port: 0 }),
        more_ports: 0,
        shared: false,
        layout: crate::display::layout::usual(),
        name: "a machine".into(),
    };
    let events = Arc::new(EventLoop::new().unwrap());
    let server = VncServer::start(&options, fake.clone(), hands.clone(), events).unwrap();
    let Address::Tcp { port, .. } = *server.address() else { panic!("not TCP") };
    Setup { fake, hands, server, port }
}

/// A client after its handshake.
struct Peer(TcpStream);

impl Peer {
    fn connect(s: &Setup) -> Self {
        let stream = TcpStream::connect(("127.0.0.1", s.port)).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        Self(stream)
    }
    fn read<const N: usize>(&mut self) -> [u8; N] {
        let mut bytes = [0; N];
        self.0.read_exact(&mut bytes).unwrap();
        bytes
    }
    fn write(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).unwrap();
    }
    /// All until the server hangs up.
    fn rest(&mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        let _ = self.0.read_to_end(&mut bytes);
        bytes
    }
    /// The handshake without a password.
    fn open(s: &Setup, shared: u8) -> Self {
        let mut peer = Self::connect(s);
        assert_eq!(&peer.read::<12>(), b"RFB 003.008\n");
        peer.write(b"RFB 003.008\n");
        assert_eq!(peer.read::<2>(), [1, 1]);
        peer.write(&[1]);
        assert_eq!(peer.read::<4>(), [0; 4]);
        peer.write(&[shared]);
        peer.init();
        peer
    }
    fn init(&mut self) {
        assert_eq!(self.read::<4>(), [0, 200, 0, 100]);
        assert_eq!(self.read::<16>(), PixelFormat::OWN.to_bytes());
        assert_eq!(self.read::<4>(), [0, 0, 0, 9]);
        assert_eq!(&self.read::<9>(), b"a machine");
    }
    fn ask(&mut self, incremental: bool) {
        self.write(&[3, incremental.into(), 0, 0, 0, 0, 255, 255, 255, 255]);
    }
    /// The rectangles of an update: place, size, encoding, and raw pixels.
    fn update(&mut self) -> Vec<([u16; 4], i32, Vec<u32>)> {
        let [kind, _, high, low] = self.read::<4>();
        assert_eq!(kind, 0);
        let mut rects = Vec::new();
        for _ in 0..u16::from_be_bytes([high, low]) {
            let head = self.read::<12>();
            let place = [0, 2, 4, 6].map(|at| u16::from_be_bytes([head[at], head[at + 1]]));
            let encoding = i32::from_be_bytes([head[8], head[9], head[10], head[11]]);
            let pixels = if encoding == 0 { usize::from(place[2]) * usize::from(place[3]) } else { 0 };
            rects.push((place, encoding, (0..pixels).map(|_| u32::from_le_bytes(self.read())).collect()));
        }
        rects
    }
}

fn until(what: impl Fn() -> bool) {
    while !what() {
        thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn a_client_sees_the_picture_and_then_what_changes() {
    let s = setup(None);
    let mut peer = Peer::open(&s, 1);
    peer.ask(false);
    let rects = peer.update();
    assert_eq!((rects.len(), rects[0].0, rects[0].1), (1, [0, 0, 200, 100], 0));
    assert_eq!(rects[0].2, s.fake.0.lock().pixels());
    peer.ask(true);
    thread::sleep(FRAME * 3);
    s.fake.0.lock().row_mut(42)[7..9].fill(0x0012_3456);
    assert_eq!(peer.update(), [([7, 42, 2, 1], 0, vec![0x0012_3456; 2])]);
    // What changes while nobody asks is not lost.
    s.fake.0.lock().row_mut(0)[0] = 0x00ab_cdef;
    let mut other = Peer::open(&s, 1);
    other.ask(false);
    assert_eq!(other.update()[0].2[0], 0x00ab_cdef);
    peer.ask(true);
    assert_eq!(peer.update(), [([0, 0, 1, 1], 0, vec![0x00ab_cdef])]);
}

#[test]
fn a_desktop_changes_its_size_for_those_who_can() {
    let s = setup(None);
    let (mut can, mut cannot) = (Peer::open(&s, 1), Peer::open(&s, 1));
    can.write(&[2, 0, 0, 2, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0x21]);
    for peer in [&mut can, &mut cannot] {
        peer.ask(false);
        peer.update();
        peer.ask(true);
    }
    let new = Fake::new(320, 50);
    *s.fake.0.lock() = new.0.lock().clone();
    assert_eq!(can.update(), [([0, 0, 320, 50], -223, vec![])]);
    can.ask(true);
    assert_eq!(can.update()[0].2, new.0.lock().pixels());
    let rects = cannot.update();
    assert_eq!((rects[0].0, rects[0].2.len()), ([0, 0, 200, 50], 10_000));
}

#[test]
fn the_password_is_asked_for() {
    let s = setup(Some("sesame"));
    for (minor, password, result) in
        [(b"8", "sesame", 0), (b"8", "wrong", 1), (b"7", "sesame", 0), (b"3", "sesame", 0), (b"3", "", 1)]
    {
        let mut peer = Peer::connect(&s);
        peer.read::<12>();
        peer.write(&[b"RFB 003.00", minor.as_slice(), b"\n"].concat());
        if minor == b"3" {
            assert_eq!(peer.read::<4>(), [0, 0, 0, 2]);
        } else {
            assert_eq!(peer.read::<2>(), [1, 2]);
            peer.write(&[2]);
        }
        let challenge = peer.read();
        peer.write(&auth::response(password, challenge));
        assert_eq!(peer.read::<4>(), [0, 0, 0, result]);
        if result == 0 {
            peer.write(&[1]);
            peer.init();
        } else {
            assert_eq!(peer.rest().is_empty(), minor != b"8", "a reason, if the client knows of reasons");
        }
    }
    // Nobody comes in without.
    let mut peer = Peer::connect(&s);
    peer.write(b"RFB 003.008\n\x01\x01");
    assert_eq!(peer.rest(), b"RFB 003.008\n\x01\x02");
}

#[test]
fn a_password_that_is_needed_and_not_there_keeps_all_out_until_it_is_set() {
    let s = setup(Some("sesame"));
    let control = s.server.control();
    let result = |password: &str| {
        let mut peer = Peer::connect(&s);
        peer.read::<12>();
        peer.write(b"RFB 003.008\n");
        peer.read::<2>();
        peer.write(&[2]);
        let challenge = peer.read();
        peer.write(&auth::response(password, challenge));
        peer.read::<4>()[3]
    };
    control.set_password(None).unwrap();
    assert_eq!((result(""), result("sesame")), (1, 1));
    control.set_password(Some("open".into())).unwrap();
    assert_eq!((result("open"), result("sesame")), (0, 1));
    control.expire_password(Some(SystemTime::UNIX_EPOCH)).unwrap();
    assert_eq!(result("open"), 1);
    control.expire_password(None).unwrap();
    assert_eq!(result("open"), 0);
    assert!(setup(None).server.control().set_password(Some("x".into())).is_err());
}

#[test]
fn a_browser_sees_the_picture_by_a_websocket() {
    let s = setup(None);
    let Some(&Address::Tcp { port, .. }) = s.server.websocket() else { panic!("no WebSocket") };
    let stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let mut peer = Peer(stream);
    peer.write(b"GET / HTTP/1.1\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n");
    peer.write(b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n");
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.extend(peer.read::<1>());
    }
    assert!(head.starts_with(b"HTTP/1.1 101 "));
    // What comes in frames, as many as it takes.
    fn plain(peer: &mut Peer, len: usize) -> Vec<u8> {
        let mut all = Vec::new();
        while all.len() < len {
            let [kind, n] = peer.read::<2>();
            assert_eq!(kind, 0x82);
            let n = match n {
                126 => u16::from_be_bytes(peer.read()).into(),
                127 => u64::from_be_bytes(peer.read()) as usize,
                n => usize::from(n),
            };
            let mut data = vec![0; n];
            peer.0.read_exact(&mut data).unwrap();
            all.extend(data);
        }
        assert_eq!(all.len(), len);
        all
    }
    // With a mask of zeroes.
    let send = |peer: &mut Peer, bytes: &[u8]| {
        peer.write(&[&[0x82, 0x80 | bytes.len() as u8, 0, 0, 0, 0], bytes].concat());
    };
    assert_eq!(plain(&mut peer, 12), b"RFB 003.008\n");
    send(&mut peer, b"RFB 003.008\n");
    assert_eq!(plain(&mut peer, 2), [1, 1]);
    send(&mut peer, &[1]);
    let result = plain(&mut peer, 4);
    send(&mut peer, &[1]);
    let init = [result, plain(&mut peer, 24 + 9)].concat();
    assert_eq!(init[28..], *b"a machine");
    send(&mut peer, &[3, 0, 0, 0, 0, 0, 255, 255, 255, 255]);
    let update = plain(&mut peer, 4 + 12 + 200 * 100 * 4);
    let pixels: Vec<u32> = update[16..].as_chunks::<4>().0.iter().map(|p| u32::from_le_bytes(*p)).collect();
    assert_eq!(pixels, s.fake.0.lock().pixels());
}

#[test]
fn the_pointer_is_relative_for_those_who_can_and_the_size_is_the_guests() {
    let s = setup(None);
    let mut peer = Peer::open(&s, 1);
    // Pointer changes, extended sizes.
    peer.write(&[2, 0, 0, 2, 0xff, 0xff, 0xfe, 0xff, 0xff, 0xff, 0xfe, 0xcc]);
    peer.ask(false);
    let mut head = |encodings: &[i32], places: &[[u16; 4]]| {
        let [_, _, _, n] = peer.read::<4>();
        assert_eq!(usize::from(n), encodings.len());
        for (encoding, place) in encodings.iter().zip(places) {
            let head = peer.read::<12>();
            let at = |n: usize| u16::from_be_bytes([head[n], head[n + 1]]);
            assert_eq!([0, 2, 4, 6].map(at), *place);
            assert_eq!(head[8..], encoding.to_be_bytes());
        }
        assert_eq!(peer.read::<20>()[..12], [1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        peer.ask(true);
    };
    head(&[-257, -308], &[[0; 4], [0, 0, 200, 100]]);
    let mut other = Peer::open(&s, 1);
    other.write(&[2, 0, 0, 1, 0xff, 0xff, 0xfe, 0xcc]);
    other.write(&[251, 0, 3, 0, 2, 0, 0, 0]);
    other.ask(true);
    assert_eq!(other.read::<16>()[4..], [0, 1, 0, 1, 0, 200, 0, 100, 0xff, 0xff, 0xfe, 0xcc], "refused");
    peer.write(&[5, 1, 0x80, 0x09, 0x7f, 0xfc]);
    until(|| !s.hands.motions.lock().is_empty());
    assert_eq!(*s.hands.motions.lock(), [(10, -3, true, 0)]);
    assert!(s.hands.pointers.lock().is_empty());
}

#[test]
fn a_client_that_takes_nothing_holds_nobody_up_and_one_update_at_most() {
    let s = setup(None);
    *s.fake.0.lock() = Surface::new(2560, 1600);
    let mut stalled: Vec<_> = (0..4).map(|_| Peer::connect(&s)).collect();
    for peer in &mut stalled {
        peer.write(b"RFB 003.008\n\x01\x01");
        (0..100).for_each(|_| peer.ask(false));
    }
    let mut friend = Peer::connect(&s);
    friend.write(b"RFB 003.008\n\x01\x01");
    friend.read::<{ 12 + 2 + 4 + 24 + 9 }>();
    for n in 1..20 {
        s.fake.0.lock().row_mut(0)[0] = n;
        // The first update may be of what was drawn before.
        loop {
            friend.ask(n > 1);
            if friend.update().last().unwrap().2[0] == n {
                break;
            }
        }
    }
    let most = 2560 * 1600 * 4 + 4096;
    let held = |c: &Arc<Client>| c.held();
    assert!(s.server.server.clients.lock().all.iter().map(held).all(|n| n < most));
}

#[test]
fn the_next_port_is_taken_if_one_is_in_use() {
    let s = setup(None);
    let options = |more_ports| VncOptions {
        address: Address::Tcp { host: "127.0.0.1".into(), port: s.port },
        needs_password: false,
        password: None,
        websocket: None,
        more_ports,
        shared: false,
        layout: crate::display::layout::usual(),
        name: String::new(),
    };
    let start = |more| {
        let events = Arc::new(EventLoop::new().unwrap());
        VncServer::start(&options(more), s.fake.clone(), s.hands.clone(), events)
    };
    assert!(start(0).is_err());
    let second = start(99).unwrap();
    let Address::Tcp { port, .. } = *second.address() else { panic!("not TCP") };
    assert!((s.port + 1..=s.port + 99).contains(&port));
}

#[test]
fn keys_and_the_pointer_come_through() {
    let s = setup(None);
    let mut peer = Peer::open(&s, 1);
    // A text that was cut, in between and in parts; "a"; the cursor key by its scan code; buttons and the wheel.
    peer.write(&[6, 0, 0, 0, 0, 0, 0, 5, 4, 4]);
    peer.write(&[4, 4, 4, 4, 1, 0, 0, 0, 0, 0, b'a']);
    peer.write(&[255, 0, 0, 1, 0, 0, 0xff, 0x51, 0, 0, 0, 0xcb]);
    peer.write(&[5, 1 | 8, 0, 20, 0, 30]);
    peer.write(&[5, 1 | 8, 0xff, 0xff, 0, 30]);
    until(|| s.hands.pointers.lock().len() == 2);
    assert_eq!(*s.hands.keys.lock(), [(Key::new(0x1e), true), (Key::extended(0x4b), true)]);
    let first = Pointer { x: 20, y: 30, width: 200, height: 100, buttons: [true, false, false], wheel: -1 };
    assert_eq!(*s.hands.pointers.lock(), [first, Pointer { x: 199, wheel: 0, ..first }]);
    drop(peer);
    until(|| s.hands.keys.lock().len() == 4);
    assert!(
        s.hands.keys.lock()[2..].iter().all(|(_, pressed)| !pressed),
        "they come up when the client goes"
    );
}

#[test]
fn a_client_that_wants_the_screen_for_itself_gets_it() {
    let s = setup(None);
    let mut first = Peer::open(&s, 1);
    let mut alone = Peer::open(&s, 0);
    assert!(first.rest().is_empty());
    alone.ask(false);
    assert_eq!(alone.update().len(), 1);
    assert_eq!(s.server.clients(), 1);
}

#[test]
fn strangers_neither_crowd_nor_harm() {
    let s = setup(None);
    let mut friend = Peer::open(&s, 1);
    let mut strangers: Vec<_> = (0..3 * MOST_CLIENTS).map(|_| Peer::connect(&s)).collect();
    strangers[5].write(b"GET / HTTP/1.1\r\n\r\n");
    let mut late = Peer::open(&s, 1);
    for nonsense in
        [&[9_u8; 40][..], &[2, 0, 0xff, 0xff], &[255; 100], &[0; 20], &[6, 0, 0, 0, 0x80, 0, 0, 0]]
    {
        let mut bad = Peer::open(&s, 1);
        bad.write(nonsense);
        bad.ask(true);
        drop(bad);
    }
    for peer in [&mut friend, &mut late] {
        peer.ask(false);
        assert_eq!(peer.update()[0].0, [0, 0, 200, 100]);
    }
    drop(s);
    assert!(friend.rest().is_empty(), "the server has ended");
}

/// One who holds nothing for a character that takes it, as scripts and keyboards of touch screens do.
#[test]
fn shift_is_pressed_for_those_who_send_characters_alone() {
    let s = setup(None);
    let mut peer = Peer::open(&s, 1);
    let mut press = |keysym: u16, pressed: bool| {
        let [high, low] = keysym.to_be_bytes();
        peer.write(&[4, pressed.into(), 0, 0, 0, 0, high, low]);
    };
    let (shift, a, two) = (Key::new(0x2a), Key::new(0x1e), Key::new(0x03));
    // Alone: with Shift around the press.
    for c in [b'A', b'@'] {
        press(c.into(), true);
        press(c.into(), false);
    }
    // A viewer's user holds Shift, or Control; Caps Lock may be on.
    for held in [0xffe1, 0xffe3] {
        press(held, true);
        press(b'A'.into(), true);
        press(b'A'.into(), false);
        press(held, false);
    }
    press(0xffe5, true);
    press(0xffe5, false);
    press(b'A'.into(), true);
    let held = |key| [(shift, true), (key, true), (shift, false), (key, false)];
    let by_user = |key| [(key, true), (a, true), (a, false), (key, false)];
    let caps = Key::new(0x3a);
    let wanted: Vec<_> = [held(a), held(two), by_user(shift), by_user(Key::new(0x1d))]
        .concat()
        .into_iter()
        .chain([(caps, true), (caps, false), (a, true)])
        .collect();
    until(|| s.hands.keys.lock().len() == wanted.len());
    assert_eq!(*s.hands.keys.lock(), wanted);
}

/// A Python that has vncdotool, of MYNAH_VNCDOTOOL or the path.
fn vncdotool() -> Option<String> {
    let tool = std::env::var("MYNAH_VNCDOTOOL").unwrap_or_else(|_| "vncdotool".into());
    Command::new(&tool).arg("--help").output().is_ok_and(|o| o.status.success()).then_some(tool)
}

#[test]
fn vncdotool_sees_and_types() {
    let Some(tool) = vncdotool() else {
        eprintln!("SKIPPED: there is no vncdotool (pip install vncdotool; MYNAH_VNCDOTOOL names it)");
        return;
    };
    let s = setup(Some("sesame"));
    let picture = std::env::temp_dir().join(format!("mynah-vnc-{}.png", std::process::id()));
    let server = format!("127.0.0.1::{}", s.port);
    let words = ["-s", &server, "-p", "sesame", "key", "x", "move", "11", "22", "click", "1", "capture"];
    let output = Command::new(tool).args(words).arg(&picture).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let file = std::fs::File::open(&picture).unwrap();
    let mut reader = png::Decoder::new(io::BufReader::new(file)).read_info().unwrap();
    let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
    let info = reader.next_frame(&mut pixels).unwrap();
    assert_eq!((info.width, info.height), (200, 100));
    let step = info.color_type.samples();
    let rgb: Vec<u8> = pixels.chunks(step).flat_map(|p| p[..3].to_vec()).collect();
    assert!(rgb == s.fake.0.lock().rgb(), "the pictures differ");
    assert_eq!(*s.hands.keys.lock(), [(Key::new(0x2d), true), (Key::new(0x2d), false)]);
    let pointers = s.hands.pointers.lock();
    assert!(pointers.iter().any(|p| (p.x, p.y, p.buttons[0]) == (11, 22, true)), "{pointers:?}");
    let mut own = Vec::new();
    dump::png(&s.fake.0.lock(), &mut own).unwrap();
    std::fs::remove_file(&picture).unwrap();
}
