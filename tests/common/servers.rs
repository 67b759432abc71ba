//! Services on the host's loopback, for guests to use.
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::thread;

/// Bytes to fetch and send, none like its neighbours.
pub fn bytes(len: usize) -> Vec<u8> {
    (0..len as u64 / 8).flat_map(|n| (n.wrapping_mul(n) ^ n << 40).to_le_bytes()).collect()
}

/// The first digits of a SHA-256, as a guest makes it: by the host's own program.
pub fn digest(bytes: &[u8]) -> String {
    use std::process::{Command, Stdio};
    let mut sum =
        Command::new("sha256sum").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("sha256sum");
    sum.stdin.take().unwrap().write_all(bytes).unwrap();
    let out = sum.wait_with_output().unwrap().stdout;
    String::from_utf8_lossy(&out[..16]).into_owned()
}

/// Has each connection to a port of the loopback's that is free served on a thread of its own; the port.
pub fn serve(at: IpAddr, service: impl Fn(TcpStream) + Clone + Send + 'static) -> u16 {
    let listener = TcpListener::bind((at, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let service = service.clone();
            thread::spawn(move || service(stream));
        }
    });
    port
}

/// HTTP 1.0: GET of /small/N has an answer to N, of anything else the big file, or its end from where the other side
/// goes on; PUT is answered with a digest of what has come.
pub fn http(at: IpAddr, big: Arc<Vec<u8>>) -> u16 {
    serve(at, move |mut stream| {
        let (mut request, mut chunk) = (Vec::new(), [0; 4096]);
        let head = loop {
            if let Some(end) = request.windows(4).position(|w| w == b"\r\n\r\n") {
                break end + 4;
            }
            match stream.read(&mut chunk) {
                Ok(n) if n > 0 => request.extend_from_slice(&chunk[..n]),
                _ => return,
            }
        };
        let mut body = request.split_off(head);
        let request = String::from_utf8_lossy(&request).into_owned();
        let path = request.split(' ').nth(1).unwrap_or_default();
        let small;
        let answer = if request.starts_with("PUT ") {
            let header = request.lines().find_map(|l| l.strip_prefix("Content-Length: "));
            let len: usize = header.and_then(|n| n.trim().parse().ok()).expect("a length");
            let _ = (&mut stream).take((len - body.len()) as u64).read_to_end(&mut body);
            small = digest(&body).into_bytes();
            &small
        } else if let Some(n) = path.strip_prefix("/small/") {
            small = format!("answer {n}\n").into_bytes();
            &small
        } else {
            &*big
        };
        let range = request.lines().find_map(|l| l.strip_prefix("Range: bytes=")?.strip_suffix('-'));
        let from = range.map(|n| n.parse::<usize>().expect("a number").min(answer.len()));
        let len = answer.len();
        let status = match from {
            Some(from) => {
                format!("206 Partial Content\r\nContent-Range: bytes {from}-{}/{len}", len.max(1) - 1)
            }
            None => "200 OK".into(),
        };
        let answer = &answer[from.unwrap_or(0)..];
        let head = format!("HTTP/1.0 {status}\r\nContent-Length: {}\r\n\r\n", answer.len());
        let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(answer));
    })
}

/// Takes all until the other side is done, and answers with its digest.
pub fn sink() -> u16 {
    serve(Ipv4Addr::LOCALHOST.into(), |mut stream| {
        let mut all = Vec::new();
        let _ = stream.read_to_end(&mut all);
        let _ = stream.write_all(digest(&all).as_bytes());
    })
}

/// Sends back what comes by TCP.
pub fn tcp_echo() -> u16 {
    serve(Ipv4Addr::LOCALHOST.into(), |mut stream| {
        let mut bytes = [0; 4096];
        while let Ok(n @ 1..) = stream.read(&mut bytes) {
            if stream.write_all(&bytes[..n]).is_err() {
                break;
            }
        }
    })
}

/// Sends back what comes by UDP.
pub fn udp_echo() -> u16 {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = socket.local_addr().unwrap().port();
    thread::spawn(move || {
        let mut bytes = [0; 65_536];
        while let Ok((n, from)) = socket.recv_from(&mut bytes) {
            let _ = socket.send_to(&bytes[..n], from);
        }
    });
    port
}

/// A name server, by UDP and TCP at the same port: `mynah.test` has the address 192.0.2.77, `long.mynah.test` a text of
/// 3,000 bytes, which UDP says is cut. What else is asked goes to another server, or has no answer.
pub fn names(elsewhere: Option<String>) -> u16 {
    // The port of the one may be taken at the other.
    let (tcp, udp) = loop {
        let tcp = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        if let Ok(udp) = UdpSocket::bind(tcp.local_addr().unwrap()) {
            break (tcp, udp);
        }
    };
    let port = tcp.local_addr().unwrap().port();
    let other = elsewhere.clone();
    thread::spawn(move || {
        for mut stream in tcp.incoming().map_while(Result::ok) {
            let mut len = [0; 2];
            while stream.read_exact(&mut len).is_ok() {
                let mut question = vec![0; usize::from(u16::from_be_bytes(len))];
                if stream.read_exact(&mut question).is_err() {
                    break;
                }
                let answer = answer(&question, true, other.as_deref());
                let framed = [&(answer.len() as u16).to_be_bytes()[..], &answer].concat();
                if stream.write_all(&framed).is_err() {
                    break;
                }
            }
        }
    });
    thread::spawn(move || {
        let mut bytes = [0; 4096];
        while let Ok((n, from)) = udp.recv_from(&mut bytes) {
            let _ = udp.send_to(&answer(&bytes[..n], false, elsewhere.as_deref()), from);
        }
    });
    port
}

fn answer(question: &[u8], whole: bool, elsewhere: Option<&str>) -> Vec<u8> {
    const NXDOMAIN: u8 = 3;
    let name =
        |name: &[&[u8]]| name.iter().flat_map(|l| [&[l.len() as u8], *l].concat()).collect::<Vec<u8>>();
    let asks = |n: Vec<u8>| question.get(12..12 + n.len()).is_some_and(|q| q.eq_ignore_ascii_case(&n));
    let end = 12 + question[12..].iter().position(|b| *b == 0).unwrap_or(0) + 5;
    // The header with these flags and counts, and the question again.
    let begin = |flags: u8, code: u8, answers: u8| {
        let mut head = question[..end].to_vec();
        head[2] = 0x84 | flags | question[2] & 1;
        head[3] = 0x80 | code;
        head[4..12].copy_from_slice(&[0, 1, 0, answers, 0, 0, 0, 0]);
        head
    };
    let kind = question[end - 3];
    if asks(name(&[b"mynah", b"test", b""])) {
        return match kind {
            1 => [begin(0, 0, 1), vec![0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 9, 0, 4, 192, 0, 2, 77]].concat(),
            _ => begin(0, 0, 0),
        };
    }
    if asks(name(&[b"long", b"mynah", b"test", b""])) {
        if !whole {
            return begin(2, 0, 0);
        }
        let text: Vec<u8> = (0..15).flat_map(|n| [&[200_u8][..], &[b'a' + n; 200]].concat()).collect();
        let mut record = vec![0xc0, 12, 0, 16, 0, 1, 0, 0, 0, 9];
        record.extend((text.len() as u16).to_be_bytes());
        return [begin(0, 0, 1), record, text].concat();
    }
    let ask = |server: &str| -> std::io::Result<Vec<u8>> {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        socket.set_read_timeout(Some(std::time::Duration::from_secs(3)))?;
        socket.send_to(question, (server, 53))?;
        let mut bytes = vec![0; 4096];
        let n = socket.recv(&mut bytes)?;
        bytes.truncate(n);
        Ok(bytes)
    };
    elsewhere.and_then(|server| ask(server).ok()).unwrap_or_else(|| begin(0, NXDOMAIN, 0))
}

/// A port of the loopback's that is free.
pub fn free_port() -> u16 {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port()
}
