//! Character devices behind addresses of a NAT's (`guestfwd=tcp:ADDRESS:PORT-chardev:ID`).
//!
//! ```text
//!   guest -- NAT (a flow, as to any server) -- pair of sockets -- Line -- Chardev
//! ```
//!
//! A line has one connection at a time: a new one takes the place of the one before, which may be of a guest that has
//! been reset. With none, what comes from the device waits there, and what the guest sends waits while the device has no
//! room.
use mynah_devices::chardev::{Chardev, Receiver};
use mynah_devices::event_loop::{Descriptor, EventLoop, Registration, Source};
use mynah_net::user::Dial;
use parking_lot::Mutex;
use socket2::Socket;
use std::collections::HashMap;
use std::io::{self, ErrorKind, Read, Write};
use std::sync::{Arc, Weak};

/// What of the device's bytes waits for the guest at most, and what is read of the guest's at once.
const ROOM: usize = 4096;

/// The devices that a NAT leads to, by name.
pub struct Lines(HashMap<String, Arc<Line>>);

/// One device.
struct Line {
    me: Weak<Line>,
    chardev: Arc<dyn Chardev>,
    events: Arc<EventLoop>,
    open: Mutex<Option<Open>>,
}

/// A connection to it.
struct Open {
    /// It goes before the socket.
    registration: Registration,
    socket: Arc<Socket>,
    /// For the guest.
    out: Vec<u8>,
    /// The device had no room: the guest is not read until it has.
    full: bool,
}

impl Lines {
    /// Those devices, of which each gets its bytes from here from now on.
    pub fn new(
        devices: impl IntoIterator<Item = (String, Arc<dyn Chardev>)>,
        events: &Arc<EventLoop>,
    ) -> Self {
        let line = |chardev: Arc<dyn Chardev>| {
            let line = Arc::new_cyclic(|me: &Weak<Line>| Line {
                me: me.clone(),
                chardev: chardev.clone(),
                events: events.clone(),
                open: Mutex::new(None),
            });
            chardev.set_receiver(line.clone());
            line
        };
        Self(devices.into_iter().map(|(id, chardev)| (id, line(chardev))).collect())
    }
}

impl Dial for Lines {
    fn dial(&self, name: &str) -> io::Result<Socket> {
        let line = self.0.get(name).ok_or(ErrorKind::NotFound)?;
        // Windows has no pairs of Unix sockets.
        #[cfg(windows)]
        let (ours, theirs) = mynah_net::sockets::pair()?;
        #[cfg(unix)]
        let (ours, theirs) = Socket::pair(socket2::Domain::UNIX, socket2::Type::STREAM, None)?;
        ours.set_nonblocking(true)?;
        let socket = Arc::new(ours);
        let descriptor: Descriptor = socket.clone();
        let source: Weak<dyn Source> = line.me.clone();
        let registration = line.events.add(&descriptor, source, true, false)?;
        *line.open.lock() = Some(Open { registration, socket, out: Vec::new(), full: false });
        line.chardev.accept_input();
        Ok(theirs)
    }
}

impl Open {
    /// Gives the guest what it has room for; false if it has gone.
    fn flush(&mut self) -> bool {
        while !self.out.is_empty() {
            match (&*self.socket).write(&self.out) {
                Ok(n @ 1..) => _ = self.out.drain(..n),
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) if e.kind() == ErrorKind::WouldBlock => return true,
                _ => return false,
            }
        }
        true
    }

    /// Gives the device what it has room for of what the guest has sent; false if that has gone.
    fn take(&mut self, chardev: &dyn Chardev) -> bool {
        let mut bytes = [0; ROOM];
        loop {
            let room = chardev.room().min(ROOM);
            self.full = room == 0;
            if self.full {
                return true;
            }
            match (&*self.socket).read(&mut bytes[..room]) {
                Ok(0) => return false,
                Ok(n) => {
                    let taken = chardev.write(&bytes[..n]);
                    // Others write to a device that is shared: what it has no room for any more is in its reserve.
                    if taken < n {
                        chardev.write_all(&bytes[taken..n], std::time::Duration::ZERO);
                    }
                }
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) if e.kind() == ErrorKind::WouldBlock => return true,
                Err(_) => return false,
            }
        }
    }

    fn wait(&self) {
        let _ = self.registration.want(!self.full, !self.out.is_empty());
    }
}

impl Line {
    /// Moves what there is both ways.
    fn go_on(&self) {
        let mut open = self.open.lock();
        let Some(connection) = open.as_mut() else { return };
        let before = connection.out.len();
        if !connection.flush() || !connection.take(&*self.chardev) {
            *open = None;
            return;
        }
        connection.wait();
        let room = before > connection.out.len();
        drop(open);
        if room {
            self.chardev.accept_input();
        }
    }
}

impl Source for Line {
    fn ready(&self, _: bool, _: bool) {
        self.go_on();
    }
}

impl Receiver for Line {
    fn can_receive(&self) -> usize {
        self.open.lock().as_ref().map_or(0, |open| ROOM - open.out.len().min(ROOM))
    }

    fn receive(&self, bytes: &[u8]) {
        let mut open = self.open.lock();
        let Some(connection) = open.as_mut() else { return };
        connection.out.extend_from_slice(bytes);
        if connection.flush() {
            connection.wait();
        } else {
            *open = None;
        }
    }

    fn writable(&self) {
        self.go_on();
    }
}
