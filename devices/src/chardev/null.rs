//! `null` and `none`: a line that leads nowhere.
use super::{Chardev, Receiver};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Swallows output, gives no input.
pub struct Null;

impl Chardev for Null {
    fn write(&self, bytes: &[u8]) -> usize {
        bytes.len()
    }
    fn write_all(&self, _: &[u8], _: Duration) {}
    fn room(&self) -> usize {
        usize::MAX
    }
    fn set_receiver(&self, _: Arc<dyn Receiver>) {}
    fn flush(&self, _: Instant) {}
}
