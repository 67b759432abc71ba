//! A back end in front of another that writes every frame, both ways, to a pcap file.
//!
//! Format: the classic pcap file (draft-ietf-opsawg-pcap), version 2.4, nanosecond times, link type 1 (Ethernet).
use crate::{Backend, Frame, Nic, Takes};
use parking_lot::Mutex;
use std::io::{self, Write};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

/// Magic number of a file with nanosecond times.
const MAGIC: u32 = 0xa1b2_3c4d;
const ETHERNET: u32 = 1;

struct File<W> {
    out: W,
    /// Bytes of a frame that are kept.
    most: u32,
    failed: bool,
}

impl<W: Write> File<W> {
    fn record(&mut self, frame: &Frame<'_>) {
        if self.failed {
            return;
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let len = frame.len() as u32;
        let kept = len.min(self.most);
        let mut head = Vec::with_capacity(16 + kept as usize);
        for word in [now.as_secs() as u32, now.subsec_nanos(), kept, len] {
            head.extend_from_slice(&word.to_le_bytes());
        }
        frame.slices(0, kept as usize).iter().for_each(|part| head.extend_from_slice(part));
        // A full disk ends the capture, not the guest's network.
        self.failed = self.out.write_all(&head).is_err();
    }
}

/// Writes what passes between a card and a back end.
pub struct Capture<W> {
    behind: Arc<dyn Backend>,
    file: Arc<Mutex<File<W>>>,
}

impl<W: Write + Send + 'static> Capture<W> {
    /// Puts a capture of `most` bytes of each frame in front of `behind`; the file's header is written at once.
    pub fn new(behind: Arc<dyn Backend>, mut out: W, most: u32) -> io::Result<Arc<Self>> {
        let mut head = Vec::with_capacity(24);
        head.extend_from_slice(&MAGIC.to_le_bytes());
        head.extend_from_slice(&2u16.to_le_bytes());
        head.extend_from_slice(&4u16.to_le_bytes());
        for word in [0, 0, most, ETHERNET] {
            head.extend_from_slice(&u32::to_le_bytes(word));
        }
        out.write_all(&head)?;
        Ok(Arc::new(Self { behind, file: Arc::new(Mutex::new(File { out, most, failed: false })) }))
    }

    /// Flushes the file.
    pub fn flush(&self) -> io::Result<()> {
        self.file.lock().out.flush()
    }
}

struct Tap<W> {
    nic: Arc<dyn Nic>,
    file: Arc<Mutex<File<W>>>,
}

impl<W: Write + Send> Nic for Tap<W> {
    fn can_receive(&self) -> bool {
        self.nic.can_receive()
    }
    fn receive(&self, frame: &Frame<'_>) -> bool {
        let taken = self.nic.receive(frame);
        if taken {
            self.file.lock().record(frame);
        }
        taken
    }
    fn takes(&self) -> Takes {
        self.nic.takes()
    }
}

impl<W: Write + Send + 'static> Backend for Capture<W> {
    fn connect(&self, nic: Arc<dyn Nic>) {
        self.behind.connect(Arc::new(Tap { nic, file: self.file.clone() }));
    }
    fn send(&self, frame: &Frame<'_>) {
        self.file.lock().record(frame);
        self.behind.send(frame);
    }
    fn wake(&self) {
        self.behind.wake();
    }
    fn takes(&self) -> Takes {
        self.behind.takes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Hub;
    use std::io::IoSlice;

    #[derive(Clone, Default)]
    struct Shared(Arc<Mutex<Vec<u8>>>);
    impl Write for Shared {
        fn write(&mut self, b: &[u8]) -> io::Result<usize> {
            self.0.lock().extend_from_slice(b);
            Ok(b.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    struct Silent;
    impl Nic for Silent {
        fn can_receive(&self) -> bool {
            true
        }
        fn receive(&self, _: &Frame<'_>) -> bool {
            true
        }
    }

    #[test]
    fn frames_of_both_directions_are_in_the_file() {
        let hub = Hub::new();
        let out = Shared::default();
        let mine = Capture::new(hub.port(), out.clone(), 14).unwrap();
        mine.connect(Arc::new(Silent));
        let other = hub.port();
        other.connect(Arc::new(Silent));
        mine.send(&Frame::new(&[IoSlice::new(b"from "), IoSlice::new(b"the guest")]));
        other.send(&Frame::new(&[IoSlice::new(b"to it, and more than is kept")]));
        let file = out.0.lock();
        assert_eq!(file[..4], MAGIC.to_le_bytes());
        assert_eq!(file[20..24], ETHERNET.to_le_bytes());
        assert_eq!(file[32..36], 14u32.to_le_bytes());
        assert_eq!(&file[40..54], b"from the guest");
        assert_eq!(file[66..70], 28u32.to_le_bytes());
        assert_eq!(&file[70..], b"to it, and mor");
    }
}
