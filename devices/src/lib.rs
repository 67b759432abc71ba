//! Buses, chipset and devices of the PC.

pub mod aml;
pub mod bus;
mod bytewise;
pub mod chardev;
pub mod chipset;
pub mod clock;
mod descriptor;
pub mod device;
pub mod display;
pub mod dma;
pub mod edu;
pub mod event_loop;
pub mod events;
mod host_time;
pub mod input;
pub mod interrupts;
pub mod kind;
pub mod misc;
pub mod net;
pub mod pci;
pub mod pieces;
pub mod serial;
pub mod storage;
pub mod timers;
pub mod virtio;
