//! RFB in a WebSocket, as browsers speak it: the opening handshake, and frames.
//!
//! A request has 8 KiB at most. Frames are not collected: what of one has come goes on at once, whatever its length.
//!
//! Source: RFC 6455.
use super::sha1::sha1;

const MOST_REQUEST: usize = 8 << 10;
/// What is added to the client's key (4.2.2).
const GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// Kinds of frames (5.2).
const BINARY: u8 = 2;
const CLOSE: u8 = 8;
const PING: u8 = 9;
const PONG: u8 = 10;
const FINAL: u8 = 0x80;
/// A control frame's payload at most.
const MOST_CONTROL: usize = 125;

/// One connection's framing.
#[derive(Default)]
pub struct WebSocket {
    /// What has come of the request, or of a frame's head.
    head: Vec<u8>,
    open: bool,
    closed: bool,
    /// The frame that is coming: kind, bytes that are still to come, mask and where in it.
    kind: u8,
    left: u64,
    mask: [u8; 4],
    at: usize,
    /// A control frame's payload.
    control: Vec<u8>,
    /// What is to be sent as it is.
    reply: Vec<u8>,
}

impl WebSocket {
    /// Whether the handshake is over, so that frames may be sent.
    pub fn is_open(&self) -> bool {
        self.open && !self.closed
    }

    /// Whether something is to be sent beside the data.
    pub fn has_reply(&self) -> bool {
        !self.reply.is_empty()
    }

    /// Answers, to be sent as they are.
    pub fn take_reply(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.reply)
    }

    /// Takes what has come; data go to `plain`.
    ///
    /// # Errors
    /// What the client does wrong: it is to be left.
    pub fn receive(&mut self, mut bytes: &[u8], plain: &mut Vec<u8>) -> Result<(), &'static str> {
        if !self.open {
            let before = self.head.len();
            self.head.extend_from_slice(&bytes[..bytes.len().min(MOST_REQUEST - before)]);
            let end = self.head.windows(4).position(|w| w == b"\r\n\r\n");
            let Some(end) = end else {
                let full = self.head.len() >= MOST_REQUEST;
                return if full { Err("a request that is too long") } else { Ok(()) };
            };
            let request = String::from_utf8_lossy(&self.head[..end]).into_owned();
            bytes = &bytes[end + 4 - before..];
            self.head.clear();
            self.reply = match answer(&request) {
                Some(answer) => answer,
                None => {
                    self.closed = true;
                    b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Length: 0\r\n\r\n".to_vec()
                }
            };
            self.open = true;
        }
        while !bytes.is_empty() && !self.closed {
            if self.left == 0 {
                self.head.push(bytes[0]);
                bytes = &bytes[1..];
                self.begin()?;
                continue;
            }
            let n = self.left.min(bytes.len() as u64) as usize;
            let (here, rest) = bytes.split_at(n);
            let (mask, at) = (self.mask, self.at);
            let clear = here.iter().enumerate().map(|(i, b)| b ^ mask[(at + i) % 4]);
            if self.kind >= CLOSE {
                self.control.extend(clear)
            } else {
                plain.extend(clear)
            }
            (self.at, self.left) = ((at + n) % 4, self.left - n as u64);
            bytes = rest;
            if self.left == 0 {
                self.end();
            }
        }
        if self.closed && self.reply.is_empty() { Err("the end of a WebSocket") } else { Ok(()) }
    }

    /// A byte of a frame's head has come.
    fn begin(&mut self) -> Result<(), &'static str> {
        let Some([first, second]) = self.head.first_chunk::<2>().copied() else { return Ok(()) };
        let extended = match second & 0x7f {
            126 => 2,
            127 => 8,
            _ => 0,
        };
        if self.head.len() < 2 + extended + 4 {
            return Ok(());
        }
        if second & 0x80 == 0 {
            return Err("a frame without a mask");
        }
        let length = &self.head[2..2 + extended];
        self.left = match extended {
            0 => u64::from(second & 0x7f),
            _ => length.iter().fold(0, |n, b| n << 8 | u64::from(*b)),
        };
        self.mask.copy_from_slice(&self.head[2 + extended..]);
        (self.kind, self.at) = (first & 0x0f, 0);
        self.head.clear();
        let control = self.kind >= CLOSE;
        if control && self.left > MOST_CONTROL as u64 || matches!(self.kind, 3..=7 | 11..) {
            return Err("a frame that there is not");
        }
        if self.left == 0 {
            self.end();
        }
        Ok(())
    }

    /// The frame has come to its end.
    fn end(&mut self) {
        let payload = std::mem::take(&mut self.control);
        // Answers that nobody takes are not piled up.
        let room = self.reply.len() < MOST_REQUEST;
        match self.kind {
            PING if room => self.reply.extend(frame_of(PONG, &payload)),
            CLOSE => {
                self.reply.extend(frame_of(CLOSE, &payload[..payload.len().min(2)]));
                self.closed = true;
            }
            _ => {}
        }
    }
}

/// Data as a frame.
pub fn frame(data: &[u8]) -> Vec<u8> {
    frame_of(BINARY, data)
}

fn frame_of(kind: u8, data: &[u8]) -> Vec<u8> {
    let mut f = Vec::with_capacity(data.len() + 10);
    f.push(FINAL | kind);
    match data.len() {
        n @ ..126 => f.push(n as u8),
        n @ ..0x1_0000 => {
            f.push(126);
            f.extend((n as u16).to_be_bytes());
        }
        n => {
            f.push(127);
            f.extend((n as u64).to_be_bytes());
        }
    }
    f.extend_from_slice(data);
    f
}

/// The answer to a request that opens a WebSocket (4.2.2); none if it is another.
fn answer(request: &str) -> Option<Vec<u8>> {
    let mut lines = request.split("\r\n");
    if !lines.next()?.starts_with("GET ") {
        return None;
    }
    let field = |name: &str| {
        let mut fields = request.split("\r\n").skip(1).filter_map(|l| l.split_once(':'));
        fields.find(|(n, _)| n.trim().eq_ignore_ascii_case(name)).map(|(_, v)| v.trim())
    };
    if !field("Upgrade")?.eq_ignore_ascii_case("websocket") || field("Sec-WebSocket-Version")? != "13" {
        return None;
    }
    let accept = base64(&sha1(&[field("Sec-WebSocket-Key")?.as_bytes(), GUID].concat()));
    let binary = field("Sec-WebSocket-Protocol").is_some_and(|p| p.split(',').any(|p| p.trim() == "binary"));
    let protocol = if binary { "Sec-WebSocket-Protocol: binary\r\n" } else { "" };
    let head = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n";
    Some(format!("{head}Sec-WebSocket-Accept: {accept}\r\n{protocol}\r\n").into_bytes())
}

/// RFC 4648, 4.
fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for three in bytes.chunks(3) {
        let bits = (0..3).fold(0_u32, |all, n| all << 8 | u32::from(three.get(n).copied().unwrap_or(0)));
        for n in 0..4 {
            let digit = DIGITS[(bits >> (18 - 6 * n) & 63) as usize];
            text.push(if n <= three.len() { char::from(digit) } else { '=' });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const REQUEST: &str = "GET /websockify HTTP/1.1\r\nHost: h\r\nUpgrade: WebSocket\r\nConnection: Upgrade\r\n\
        Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: chat, binary\r\n\
        sec-websocket-version: 13\r\n\r\n";

    fn masked(kind: u8, data: &[u8]) -> Vec<u8> {
        let mask = [1, 2, 3, 4];
        let mut f = frame_of(kind, data);
        f[1] |= 0x80;
        let at = f.len() - data.len();
        f.splice(at..at, mask);
        f[at + 4..].iter_mut().zip(mask.iter().cycle()).for_each(|(b, m)| *b ^= m);
        f
    }

    #[test]
    fn the_handshake_is_the_standards_own() {
        let mut ws = WebSocket::default();
        let mut plain = Vec::new();
        for byte in REQUEST.as_bytes() {
            assert!(!ws.is_open() && !ws.has_reply());
            ws.receive(&[*byte], &mut plain).unwrap();
        }
        // RFC 6455, 1.3.
        let reply = String::from_utf8(ws.take_reply()).unwrap();
        assert!(reply.contains("\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n"), "{reply}");
        assert!(reply.contains("Protocol: binary\r\n") && reply.ends_with("\r\n\r\n") && ws.is_open());
    }

    #[test]
    fn frames_come_in_any_pieces_and_control_frames_in_between() {
        let long = vec![7; 70_000];
        let frames = [masked(BINARY, b"he"), masked(PING, b"?"), masked(0, b"llo"), masked(BINARY, &long)];
        let all = [REQUEST.as_bytes(), &frames.concat()].concat();
        for step in [1, 3, 1000, all.len()] {
            let mut ws = WebSocket::default();
            let mut plain = Vec::new();
            all.chunks(step).for_each(|c| ws.receive(c, &mut plain).unwrap());
            assert_eq!(plain, [b"hello", &long[..]].concat());
            assert!(ws.take_reply().ends_with(&[0x8a, 1, b'?']));
        }
        assert_eq!(frame(&[5; 200])[..4], [0x82, 126, 0, 200]);
    }

    #[test]
    fn what_is_no_websocket_is_left() {
        let mut plain = Vec::new();
        let open = || {
            let mut ws = WebSocket::default();
            ws.receive(REQUEST.as_bytes(), &mut Vec::new()).unwrap();
            ws.take_reply();
            ws
        };
        assert!(open().receive(&frame(b"without a mask"), &mut plain).is_err());
        assert!(open().receive(&masked(CLOSE, &[0; 126]), &mut plain).is_err());
        assert!(open().receive(&masked(5, b"x"), &mut plain).is_err());
        let mut ws = open();
        ws.receive(&masked(CLOSE, &[3, 232]), &mut plain).unwrap();
        assert_eq!((ws.take_reply(), ws.is_open()), (vec![0x88, 2, 3, 232], false));
        let mut ws = WebSocket::default();
        ws.receive(b"GET / HTTP/1.1\r\n\r\n", &mut plain).unwrap();
        assert!(ws.take_reply().starts_with(b"HTTP/1.1 400") && !ws.is_open());
        assert!(WebSocket::default().receive(&[b'a'; MOST_REQUEST], &mut plain).is_err());
        assert!(plain.is_empty());
    }
}
