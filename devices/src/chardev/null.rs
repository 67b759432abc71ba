//! `null` and `none`: a line that leads nowhere.
use super::{Chardev, Receiver};
use std::sync::Arc;

/// Swallows output, gives no input.
pub struct Null;

impl Chardev for Null {
    fn write(&self, _: &[u8]) {}
    fn set_receiver(&self, _: Arc<dyn Receiver>) {}
    fn flush(&self) {}
}
