//! From the guest: one copy of header and frame, which nobody else can change, and on to what is behind the card.
use super::super::chain::{self, Broken};
use super::super::{Served, Then};
use super::{Net, filter, header};
use mynah_net::{Frame, MAX_FRAME};
use std::io::IoSlice;
use std::sync::atomic::Ordering;

/// Bytes of an Ethernet header.
const ETHERNET: usize = 14;

impl Net {
    /// Sends what a pair's queue has. What is behind the card may give it frames meanwhile.
    pub(super) fn transmit(&self, pair: usize, served: &mut Served<'_, '_>) -> Result<Then, Broken> {
        let mut buffer = self.pairs[pair].buffer.lock();
        if buffer.is_empty() {
            *buffer = vec![0; header::LONG + MAX_FRAME];
        }
        let features = self.features();
        let head = header::len(features);
        while let Some(chain) = served.pop()? {
            let total = chain::total(&chain.readable);
            if (head + ETHERNET..=head + MAX_FRAME).contains(&(total as usize)) {
                let bytes = &mut buffer[..total as usize];
                if chain::read(served.memory, &chain.readable, 0, bytes) {
                    self.send(pair, &bytes[..head], &bytes[head..], features);
                }
            }
            served.done(chain.head, 0)?;
        }
        Ok(Then::Empty)
    }

    fn send(&self, pair: usize, header: &[u8], bytes: &[u8], features: u64) {
        let Some(offload) = header::parse(header, bytes.len(), features) else {
            tracing::debug!(
                "virtio-net: a frame of {} bytes with a header that is none: {header:x?}",
                bytes.len()
            );
            return;
        };
        let frame = Frame { offload, parts: &[IoSlice::new(bytes)] };
        if self.pairs.len() > 1 {
            // What comes back goes to the queue that its driver's vCPU looks at (5.1.6.5.6).
            self.flows[usize::from(filter::flow(&frame))].store(pair as u16, Ordering::Relaxed);
        }
        self.link.send(&frame);
    }
}
