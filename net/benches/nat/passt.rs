//! passt behind the guest's card: a process of its own at the other end of a Unix socket, with QEMU's stream framing.
use crate::guest::{HEADERS, Link};
use socket2::{Domain, Socket, Type};
use std::io::{self, ErrorKind, IoSlice, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// passt, and the guest's end of its socket.
pub struct Passt {
    child: Child,
    stream: UnixStream,
    buffer: Vec<u8>,
    /// Where what has come and not been told begins and ends.
    at: (usize, usize),
    long: bool,
    queue: Vec<([u8; HEADERS + 8], usize)>,
}

impl Passt {
    /// Starts it; an error if it is not there.
    pub fn new(long: bool) -> io::Result<Self> {
        let (ours, theirs) = Socket::pair(Domain::UNIX, Type::STREAM, None)?;
        theirs.set_cloexec(false)?;
        for end in [&ours, &theirs] {
            end.set_send_buffer_size(4 << 20)?;
        }
        let fd = theirs.as_raw_fd().to_string();
        let child = Command::new("passt")
            .args(["--foreground", "--quiet", "--stderr", "--fd", &fd, "--ipv4-only"])
            .args(["--address", "10.0.2.15", "--netmask", "24", "--gateway", "10.0.2.2"])
            .args(["--mac-addr", "52:55:0a:00:02:02", "--tcp-ports", "none", "--udp-ports", "none"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        drop(theirs);
        ours.set_nonblocking(true)?;
        let stream = UnixStream::from(OwnedFd::from(ours));
        Ok(Self { child, stream, buffer: vec![0; 1 << 20], at: (0, 0), long, queue: Vec::new() })
    }

    fn wait(&self, write: bool, most: Duration) -> bool {
        let events = libc::POLLIN | if write { libc::POLLOUT } else { 0 };
        let mut fd = libc::pollfd { fd: self.stream.as_raw_fd(), events, revents: 0 };
        // SAFETY: one entry, of a descriptor that is open.
        unsafe { libc::poll(&raw mut fd, 1, most.as_micros().div_ceil(1000) as i32) > 0 }
    }

    /// Reads what there is; keeps heads.
    fn read(&mut self) {
        let (start, end) = self.at;
        if self.buffer.len() - end < 128 << 10 {
            self.buffer.copy_within(start..end, 0);
            self.at = (0, end - start);
        }
        match self.stream.read(&mut self.buffer[self.at.1..]) {
            Ok(0) => panic!("passt has gone"),
            Ok(n) => self.at.1 += n,
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            Err(e) => panic!("passt: {e}"),
        }
        while let Some(len) = self.buffer[self.at.0..self.at.1].first_chunk::<4>() {
            let len = u32::from_be_bytes(*len) as usize;
            let Some(frame) = self.buffer[self.at.0 + 4..self.at.1].get(..len) else { break };
            let mut head = [0; HEADERS + 8];
            let n = len.min(head.len());
            head[..n].copy_from_slice(&frame[..n]);
            self.queue.push((head, len));
            self.at.0 += 4 + len;
        }
    }
}

impl Link for Passt {
    fn gateway(&self) -> ([u8; 6], [u8; 4]) {
        ([0x52, 0x55, 10, 0, 2, 2], [10, 0, 2, 2])
    }

    fn mss(&self) -> (usize, u16) {
        if self.long { (44 * 1460, 44 * 1460) } else { (1460, 1460) }
    }

    fn send(&mut self, head: &[u8], data: &[u8]) {
        let len = ((head.len() + data.len()) as u32).to_be_bytes();
        let mut parts = [IoSlice::new(&len), IoSlice::new(head), IoSlice::new(data)];
        let mut left = &mut parts[..];
        while !left.is_empty() {
            match (&self.stream).write_vectored(left) {
                Ok(n) => IoSlice::advance_slices(&mut left, n),
                Err(e) if e.kind() == ErrorKind::WouldBlock => {
                    // It may wait for us as we do for it.
                    self.wait(true, Duration::from_millis(10));
                    self.read();
                }
                Err(e) => panic!("passt: {e}"),
            }
            while left.first().is_some_and(|p| p.is_empty()) {
                left = &mut left[1..];
            }
        }
    }

    fn turn(&mut self, most: Duration, frame: &mut dyn FnMut(&[u8], usize)) {
        if self.queue.is_empty() && self.wait(false, most) {
            self.read();
        }
        for (head, len) in self.queue.drain(..) {
            frame(&head, len);
        }
    }

    fn cpu(&self) -> Duration {
        // Nanoseconds on a processor are the first number (Linux, scheduler statistics).
        let text =
            std::fs::read_to_string(format!("/proc/{}/schedstat", self.child.id())).unwrap_or_default();
        Duration::from_nanos(text.split(' ').next().and_then(|n| n.parse().ok()).unwrap_or(0))
    }
}

impl Drop for Passt {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
