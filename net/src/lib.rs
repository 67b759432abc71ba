//! What is behind a network card: back ends that take frames from a guest and give frames to it.
//!
//! A card knows no back end and a back end no card: they meet in two small traits. A guest's frame goes card ->
//! [`Backend::send`]; a frame for the guest goes back end -> [`Nic::receive`], which takes it or says that there is no
//! room; when a card that was full has room again it calls [`Backend::wake`].
//!
//! * [`Hub`] passes every frame to all other ports: with it two cards talk to each other.
//! * [`watch`] stands in front of another back end and shows what passes to [`capture`], which writes a pcap file, or to
//!   [`log`], which writes lines.
//! * [`fault`] stands in front of another and is a bad line.
//! * [`sockets`] lead to other machines, this program's or QEMU's, and to passt.
//! * [`tap`] leads to a network interface of the host's.
//! * [`switch`] is what a switch knows: who is behind which port, and where a frame goes.
//! * [`user`] is the NAT: an IPv4 and IPv6 network of its own, whose flows end in sockets of the host.
//!
//! [`offload`] does for a receiver what a sender has left to it.

pub mod capture;
pub mod checksum;
mod errors;
pub mod fault;
pub mod frame;
pub mod hub;
pub mod log;
mod mac;
pub mod numbers;
pub mod offload;
pub mod reactor;
pub mod sockets;
pub mod switch;
pub mod sync;
pub mod tap;
pub mod user;
pub mod watch;

pub use capture::Capture;
pub use frame::{Frame, Gso, Offload, Partial, Takes};
pub use hub::Hub;
pub use mac::Mac;
pub use tap::Tap;
pub use user::User;

use std::sync::Arc;

/// The longest frame: 64 KiB of a segmentation-offloaded packet and its headers.
pub const MAX_FRAME: usize = 65_536 + 64;

/// The guest's side: a network card.
///
/// A back end may hold a lock of its own while it calls these: a card does not call its back end from within them, nor
/// wait there for a lock that it holds while it calls [`Backend::send`].
pub trait Nic: Send + Sync {
    /// Whether the card has a buffer for a frame now.
    fn can_receive(&self) -> bool;
    /// Gives the card an Ethernet frame without its checksum (FCS); whether it took it. A card without room takes
    /// nothing, and calls [`Backend::wake`] once there is some.
    fn receive(&self, frame: &Frame<'_>) -> bool;
    /// What the guest has said that it takes beside plain frames.
    fn takes(&self) -> Takes {
        Takes::default()
    }
    /// Whether the interrupt for a frame has that for the next one wait, as the driver has asked for.
    fn paces(&self) -> bool {
        false
    }
}

/// The host's side.
pub trait Backend: Send + Sync {
    /// Connects the card; once.
    fn connect(&self, nic: Arc<dyn Nic>);
    /// Takes a frame from the guest. Never blocks; what cannot be sent is dropped.
    fn send(&self, frame: &Frame<'_>);
    /// The card has room again.
    fn wake(&self) {}
    /// What a guest may send beside plain frames.
    fn takes(&self) -> Takes {
        Takes::default()
    }
}
