//! What is behind a network card: back ends that take frames from a guest and give frames to it.
//!
//! A card knows no back end and a back end no card: they meet in two small traits. A guest's frame goes card -> [`Backend::send`]; a frame for
//! the guest goes back end -> [`Nic::receive`], if [`Nic::can_receive`]; when a card that was full has room again it calls
//! [`Backend::wake`].
//!
//! Here today: [`Hub`], which passes every frame to all other ports (with it two cards talk to each other), and [`capture`], a
//! back end in front of another that writes what passes to a pcap file. The NAT, tap devices and sockets come with the network cards.

pub mod capture;
pub mod hub;

pub use capture::Capture;
pub use hub::Hub;

use std::sync::Arc;

/// The longest frame: 64 KiB of a segmentation-offloaded packet and its headers.
pub const MAX_FRAME: usize = 65_536 + 64;

/// The guest's side: a network card.
pub trait Nic: Send + Sync {
    /// Whether the card has a buffer for a frame now.
    fn can_receive(&self) -> bool;
    /// Gives the card an Ethernet frame without its checksum. A card without room drops it, as hardware does.
    fn receive(&self, frame: &[u8]);
}

/// The host's side.
pub trait Backend: Send + Sync {
    /// Connects the card; once.
    fn connect(&self, nic: Arc<dyn Nic>);
    /// Takes a frame from the guest. Never blocks; what cannot be sent is dropped.
    fn send(&self, frame: &[u8]);
    /// The card has room again.
    fn wake(&self) {}
}
