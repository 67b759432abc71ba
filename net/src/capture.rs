//! A back end in front of another that writes every frame, both ways, to a pcap file.
//!
//! Format: the classic pcap file (draft-ietf-opsawg-pcap), version 2.4, nanosecond times, link type 1 (Ethernet).
use crate::watch::{Record, Watch};
use crate::{Backend, Frame};
use std::io::{self, Write};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

/// Magic number of a file with nanosecond times.
const MAGIC: u32 = 0xa1b2_3c4d;
const ETHERNET: u32 = 1;

/// Writes frames to a pcap file.
pub struct Capture<W> {
    out: W,
    /// Bytes of a frame that are kept.
    most: u32,
    failed: bool,
}

impl<W: Write + Send + 'static> Capture<W> {
    /// Puts a capture of `most` bytes of each frame in front of `behind`; the file's header is written at once.
    pub fn in_front(behind: Arc<dyn Backend>, mut out: W, most: u32) -> io::Result<Arc<Watch<Self>>> {
        let mut head = Vec::with_capacity(24);
        head.extend_from_slice(&MAGIC.to_le_bytes());
        head.extend_from_slice(&2u16.to_le_bytes());
        head.extend_from_slice(&4u16.to_le_bytes());
        for word in [0, 0, most, ETHERNET] {
            head.extend_from_slice(&u32::to_le_bytes(word));
        }
        out.write_all(&head)?;
        Ok(Watch::new(behind, Self { out, most, failed: false }))
    }
}

impl<W: Write + Send> Record for Capture<W> {
    fn record(&mut self, _: bool, frame: &Frame<'_>) {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Hub, Nic};
    use parking_lot::Mutex;
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
        let mine = Capture::in_front(hub.port(), out.clone(), 14).unwrap();
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
