//! The AT's two 8237A DMA controllers with their page registers: eight channels, of which the floppy controller has
//! number 2.
//!
//! ```text
//!   00h-07h  address and count of channels 0-3, 08h-0Fh control    bytes, up to 64 KiB
//!   C0h-DFh  the same of channels 4-7, on even ports               words, up to 128 KiB; channel 4 is the cascade
//!   81h-8Fh  page registers: address bits 16 (17 for words) to 23  the others of these ports keep a byte
//! ```
//!
//! A device says that it wants a transfer ([`IsaDma::request`]) and makes it by [`IsaDma::to_memory`] or
//! [`IsaDma::from_memory`], which move as much as the channel lets through. Where the guest has not set the channel up
//! yet that is nothing: the device is called ([`DmaRequester`]) when the guest has changed what would let it go on.
//!
//! A transfer of any mode goes on until the device has no more or the count ends: what the modes (single, demand,
//! block) and priorities decide is who has the bus in between, which nobody sees. Missing on purpose: transfers from
//! memory to memory (a PC's page registers make them of little use), which are refused and told of once.
//!
//! Locks: the device's before the controller's; a requester is called with none held.
//!
//! Sources: Intel 8237A data sheet (231466-005); IBM PC AT Technical Reference, "DMA controller".
use crate::bus::{PortBus, PortIo};
use crate::bytewise;
use crate::device::{Device, Invalid, Reset};
use crate::dma::Dma;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::sync::{Arc, Weak};

/// Channels of both controllers.
pub const CHANNELS: usize = 8;
/// The one that the second controller has the first one on.
const CASCADE: usize = 4;

/// Bits of the command register.
mod command {
    pub const MEMORY_TO_MEMORY: u8 = 1 << 0;
    pub const DISABLE: u8 = 1 << 2;
}

/// Bits of a mode register, without the channel's number.
mod mode {
    pub const TRANSFER: u8 = 3 << 2;
    pub const WRITE: u8 = 1 << 2;
    pub const READ: u8 = 2 << 2;
    pub const AUTOINIT: u8 = 1 << 4;
    pub const DECREMENT: u8 = 1 << 5;
    pub const SELECT: u8 = 3 << 6;
    pub const CASCADE: u8 = 3 << 6;
}

/// Who wants transfers on a channel.
pub trait DmaRequester: Send + Sync {
    /// The guest has changed what may let the channel go on.
    fn dma_ready(&self);
}

/// What has become of a transfer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Moved {
    /// Bytes that went.
    pub bytes: usize,
    /// The last of them was the count's last (TC).
    pub terminal: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Channel {
    base: [u16; 2],
    /// Address, and transfers that are left less one.
    now: [u16; 2],
    mode: u8,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Chip {
    channels: [Channel; 4],
    command: u8,
    /// Channels that have come to the end of their count.
    ended: u8,
    /// Requests of software.
    requests: u8,
    mask: u8,
    /// The next byte is the high one.
    high: bool,
}

impl Default for Chip {
    fn default() -> Self {
        Self { channels: Default::default(), command: 0, ended: 0, requests: 0, mask: 0xf, high: false }
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct State {
    chips: [Chip; 2],
    /// Of ports 80h to 8Fh.
    pages: [u8; 16],
    /// Channels whose devices want a transfer.
    wanted: u8,
}

/// The port of each channel's page register, less 80h.
const PAGES: [usize; CHANNELS] = [7, 3, 1, 2, 0xf, 0xb, 9, 0xa];

impl Chip {
    /// A register: address and count in turn below 8, then control.
    fn read(&mut self, register: u16, wanted: u8) -> u8 {
        match register {
            0..=7 => {
                let value = self.channels[usize::from(register / 2)].now[usize::from(register & 1)];
                let high = self.high;
                self.high = !high;
                if high { (value >> 8) as u8 } else { value as u8 }
            }
            8 => (self.requests | wanted) << 4 | std::mem::take(&mut self.ended),
            0xf => 0xf0 | self.mask,
            // The temporary register, and what is written only.
            _ => 0,
        }
    }

    fn write(&mut self, register: u16, value: u8) {
        let (channel, bit) = (usize::from(value & 3), 1 << (value & 3));
        let set = value & 4 != 0;
        match register {
            0..=7 => {
                let c = &mut self.channels[usize::from(register / 2)];
                let word = &mut c.base[usize::from(register & 1)];
                let high = self.high;
                self.high = !high;
                *word = if high {
                    *word & 0xff | u16::from(value) << 8
                } else {
                    *word & 0xff00 | u16::from(value)
                };
                c.now[usize::from(register & 1)] = *word;
            }
            8 => {
                if value & !self.command & command::MEMORY_TO_MEMORY != 0 {
                    tracing::info!("8237A: transfers from memory to memory are not supported");
                }
                self.command = value;
            }
            9 => self.requests = if set { self.requests | bit } else { self.requests & !bit },
            0xa => self.mask = if set { self.mask | bit } else { self.mask & !bit },
            0xb => self.channels[channel].mode = value & !3,
            0xc => self.high = false,
            0xd => *self = Self { channels: self.channels, ..Self::default() },
            0xe => self.mask = 0,
            0xf => self.mask = value & 0xf,
            _ => {}
        }
    }
}

impl State {
    /// The bytes that go at once from where a channel is, at most `len`: where they are, how many, and whether
    /// backwards. None if it does not go on.
    fn run(&self, channel: usize, len: usize) -> Option<(u64, usize, bool)> {
        let (chip, c) = (&self.chips[channel / 4], self.chips[channel / 4].channels[channel % 4]);
        let off = chip.command & (command::DISABLE | command::MEMORY_TO_MEMORY) != 0;
        if off
            || channel == CASCADE
            || chip.mask & 1 << (channel % 4) != 0
            || c.mode & mode::SELECT == mode::CASCADE
        {
            return None;
        }
        let width = if channel < 4 { 1 } else { 2 };
        // The page stays: addresses go round in it.
        let page = u64::from(self.pages[PAGES[channel]]);
        let page = if width == 1 { page << 16 } else { (page & !1) << 16 };
        let backwards = c.mode & mode::DECREMENT != 0;
        let units = (len / width).min(usize::from(c.now[1]) + 1);
        let room = if backwards { usize::from(c.now[0]) + 1 } else { 0x1_0000 - usize::from(c.now[0]) };
        let units = units.min(room);
        let first = if backwards { usize::from(c.now[0]) + 1 - units } else { usize::from(c.now[0]) };
        (units > 0).then_some((page + (first * width) as u64, units * width, backwards))
    }

    /// `bytes` have gone; whether that was the end.
    fn moved(&mut self, channel: usize, bytes: usize) -> bool {
        let width = if channel < 4 { 1 } else { 2 };
        let (chip, n) = (&mut self.chips[channel / 4], channel % 4);
        let c = &mut chip.channels[n];
        let units = bytes / width;
        let end = units == usize::from(c.now[1]) + 1;
        let backwards = c.mode & mode::DECREMENT != 0;
        let by = units as u16;
        c.now[0] = if backwards { c.now[0].wrapping_sub(by) } else { c.now[0].wrapping_add(by) };
        c.now[1] = c.now[1].wrapping_sub(by);
        if end {
            chip.ended |= 1 << n;
            chip.requests &= !(1 << n);
            if c.mode & mode::AUTOINIT != 0 {
                c.now = c.base;
            } else {
                chip.mask |= 1 << n;
            }
        }
        end
    }
}

/// Both controllers.
pub struct IsaDma {
    memory: Dma,
    state: Mutex<State>,
    requesters: Mutex<[Option<Weak<dyn DmaRequester>>; CHANNELS]>,
}

impl IsaDma {
    /// Controllers that reach guest memory by `memory`.
    pub fn new(memory: Dma) -> Arc<Self> {
        Arc::new(Self { memory, state: Mutex::default(), requesters: Mutex::default() })
    }

    /// Puts their ports on the bus, but for 80h, which has no page register.
    pub fn attach(self: &Arc<Self>, bus: &PortBus) {
        bus.map(0x00, 0x10, Arc::new(Ports { dma: self.clone(), chip: 0 }));
        bus.map(0xc0, 0x20, Arc::new(Ports { dma: self.clone(), chip: 1 }));
        bus.map(0x81, 0x0f, Arc::new(PagePorts(self.clone())));
    }

    /// Names the device of a channel.
    pub fn connect(&self, channel: usize, requester: Weak<dyn DmaRequester>) {
        if let Some(place) = self.requesters.lock().get_mut(channel) {
            *place = Some(requester);
        }
    }

    /// A device wants a transfer, or does not any more (DREQ).
    pub fn request(&self, channel: usize, on: bool) {
        let mut state = self.state.lock();
        let bit = 1 << (channel % CHANNELS);
        state.wanted = if on { state.wanted | bit } else { state.wanted & !bit };
    }

    /// A device has `bytes` for memory.
    pub fn to_memory(&self, channel: usize, bytes: &[u8]) -> Moved {
        self.transfer(channel, bytes.len(), |state, at, range, backwards| {
            // A channel that verifies, or goes the other way, moves nothing, and counts.
            if state & mode::TRANSFER != mode::WRITE {
                return;
            }
            let part = &bytes[range];
            // What is not memory swallows it.
            let _ = if backwards {
                let turned: Vec<u8> = part.iter().rev().copied().collect();
                self.memory.write(at, &turned)
            } else {
                self.memory.write(at, part)
            };
        })
    }

    /// A device wants to have `bytes` from memory.
    pub fn from_memory(&self, channel: usize, bytes: &mut [u8]) -> Moved {
        let len = bytes.len();
        self.transfer(channel, len, |state, at, range, backwards| {
            let part = &mut bytes[range];
            if state & mode::TRANSFER != mode::READ || self.memory.read(at, part).is_err() {
                part.fill(0xff);
            } else if backwards {
                part.reverse();
            }
        })
    }

    fn transfer(
        &self,
        channel: usize,
        len: usize,
        mut copy: impl FnMut(u8, u64, std::ops::Range<usize>, bool),
    ) -> Moved {
        let mut moved = Moved::default();
        if channel >= CHANNELS {
            return moved;
        }
        let mut state = self.state.lock();
        while moved.bytes < len && !moved.terminal {
            let Some((at, n, backwards)) = state.run(channel, len - moved.bytes) else { break };
            let mode = state.chips[channel / 4].channels[channel % 4].mode;
            copy(mode, at, moved.bytes..moved.bytes + n, backwards);
            moved.terminal = state.moved(channel, n);
            moved.bytes += n;
        }
        moved
    }

    fn read(&self, chip: usize, register: u16) -> u8 {
        let mut state = self.state.lock();
        let wanted = state.wanted >> (4 * chip) & 0xf;
        state.chips[chip].read(register, wanted)
    }

    fn write(&self, chip: usize, register: u16, value: u8) {
        let mut state = self.state.lock();
        state.chips[chip].write(register, value);
        if register < 8 {
            return;
        }
        let open = !state.chips[chip].mask & 0xf;
        let ready = state.wanted & open << (4 * chip);
        drop(state);
        for channel in (0..CHANNELS).filter(|n| ready & 1 << n != 0) {
            let requester = self.requesters.lock()[channel].clone();
            if let Some(requester) = requester.and_then(|r| r.upgrade()) {
                requester.dma_ready();
            }
        }
    }
}

/// The ports of one controller: those of the second are two bytes apart.
struct Ports {
    dma: Arc<IsaDma>,
    chip: usize,
}

impl PortIo for Ports {
    fn name(&self) -> &'static str {
        "i8237"
    }

    fn read(&self, offset: u16, size: u8) -> u32 {
        bytewise::read(offset, size, |port| self.dma.read(self.chip, port >> self.chip & 0xf))
    }

    fn write(&self, offset: u16, size: u8, value: u32) {
        bytewise::write(offset, size, value, |port, byte| {
            self.dma.write(self.chip, port >> self.chip & 0xf, byte);
        });
    }
}

/// Page registers, from 81h on.
struct PagePorts(Arc<IsaDma>);

impl PortIo for PagePorts {
    fn name(&self) -> &'static str {
        "i8237"
    }

    fn read(&self, offset: u16, size: u8) -> u32 {
        bytewise::read(offset, size, |port| self.0.state.lock().pages[usize::from(port + 1) & 0xf])
    }

    fn write(&self, offset: u16, size: u8, value: u32) {
        bytewise::write(offset, size, value, |port, byte| {
            self.0.state.lock().pages[usize::from(port + 1) & 0xf] = byte;
        });
    }
}

/// What is saved of both controllers.
#[derive(Serialize, Deserialize)]
pub struct IsaDmaV1 {
    state: State,
}

impl Device for IsaDma {
    type State = IsaDmaV1;
    const KIND: &'static str = "i8257";

    /// Addresses and counts are as they were on a chip; here nothing is left of them.
    fn reset(&self, _: Reset) {
        *self.state.lock() = State::default();
    }

    fn save(&self) -> IsaDmaV1 {
        IsaDmaV1 { state: self.state.lock().clone() }
    }

    fn restore(&self, IsaDmaV1 { state }: IsaDmaV1) -> Result<(), Invalid> {
        for chip in &state.chips {
            if (chip.mask | chip.requests | chip.ended) & 0xf0 != 0 {
                return Err(Invalid("a channel of the DMA controller"));
            }
            if chip.channels.iter().any(|c| c.mode & 3 != 0) {
                return Err(Invalid("a mode of the DMA controller"));
            }
        }
        *self.state.lock() = state;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Plugged;
    use mynah_mmu::{GuestRam, PhysMemory};
    use std::sync::atomic::{AtomicUsize, Ordering};

    struct Bench {
        memory: Arc<PhysMemory>,
        ports: PortBus,
        dma: Arc<IsaDma>,
    }

    impl Bench {
        fn new() -> Self {
            let memory = PhysMemory::new(GuestRam::new(2 << 20).unwrap(), 2 << 20);
            let (dma, ports) = (IsaDma::new(Dma::always(memory.clone())), PortBus::new());
            dma.attach(&ports);
            Self { memory, ports, dma }
        }

        fn out(&self, port: u16, value: u8) {
            self.ports.write(port, 1, value.into());
        }

        fn word(&self, port: u16) -> u16 {
            (self.ports.read(port, 1) | self.ports.read(port, 1) << 8) as u16
        }

        /// Channel 2, as a floppy's driver sets it up.
        fn set_up(&self, mode: u8, at: u32, len: u32) {
            for (port, value) in [
                (0x0a, 6),
                (0x0c, 0),
                (0x0b, mode | 2),
                (0x04, at as u8),
                (0x04, (at >> 8) as u8),
                (0x81, (at >> 16) as u8),
                (0x05, (len - 1) as u8),
                (0x05, ((len - 1) >> 8) as u8),
                (0x0a, 2),
            ] {
                self.out(port, value);
            }
        }

        fn memory(&self, at: u64, len: usize) -> Vec<u8> {
            let mut bytes = vec![0; len];
            self.memory.read(at, &mut bytes);
            bytes
        }
    }

    #[test]
    fn bytes_go_to_memory_until_the_count_ends() {
        let b = Bench::new();
        b.set_up(0x44, 0x1_2345, 6);
        assert_eq!(b.dma.to_memory(2, &[1, 2, 3, 4]), Moved { bytes: 4, terminal: false });
        b.out(0x0c, 0);
        assert_eq!((b.word(4), b.word(5)), (0x2349, 1));
        assert_eq!(b.ports.read(8, 1), 0);
        assert_eq!(b.dma.to_memory(2, &[5, 6, 7]), Moved { bytes: 2, terminal: true });
        assert_eq!(b.memory(0x1_2345, 7), [1, 2, 3, 4, 5, 6, 0]);
        assert_eq!((b.ports.read(8, 1), b.ports.read(8, 1)), (4, 0), "reading clears what has ended");
        assert_eq!((b.word(4), b.word(5)), (0x234b, 0xffff));
        assert_eq!((b.dma.to_memory(2, &[7]), b.ports.read(0xf, 1)), (Moved::default(), 0xff));
    }

    #[test]
    fn a_page_is_not_left_and_words_have_larger_ones() {
        let b = Bench::new();
        b.memory.write(0x1_fffe, &[1, 2]);
        b.memory.write(0x1_0000, &[3, 4]);
        b.set_up(0x48, 0x1_fffe, 4);
        let mut bytes = [0; 4];
        assert_eq!(b.dma.from_memory(2, &mut bytes), Moved { bytes: 4, terminal: true });
        assert_eq!(bytes, [1, 2, 3, 4]);
        // Channel 5: words from 3_0002h on, of a page whose lowest bit does not count.
        for (port, value) in [
            (0xd6, 0x45),
            (0xd8, 0),
            (0xc4, 0x01),
            (0xc4, 0x80),
            (0x8b, 0x03),
            (0xc6, 1),
            (0xc6, 0),
            (0xd4, 1),
        ] {
            b.out(port, value);
        }
        assert_eq!(b.dma.to_memory(5, &[9, 8, 7, 6, 5]), Moved { bytes: 4, terminal: true });
        assert_eq!(b.memory(0x3_0002, 4), [9, 8, 7, 6]);
        assert_eq!(b.ports.read(0xd0, 1), 2);
    }

    #[test]
    fn backwards_again_and_verifying() {
        let b = Bench::new();
        b.set_up(0x74, 0x1_0003, 4);
        for _ in 0..2 {
            assert_eq!(b.dma.to_memory(2, &[1, 2, 3, 4]), Moved { bytes: 4, terminal: true });
            assert_eq!(b.memory(0x1_0000, 4), [4, 3, 2, 1]);
        }
        b.set_up(0x40, 0x1_0000, 2);
        assert_eq!(b.dma.to_memory(2, &[7, 7]), Moved { bytes: 2, terminal: true });
        assert_eq!(b.memory(0x1_0000, 4), [4, 3, 2, 1]);
        // Beyond memory all is ones, and nothing is written.
        b.set_up(0x48, 0xff_0000, 2);
        let mut bytes = [0; 2];
        b.dma.from_memory(2, &mut bytes);
        assert_eq!(bytes, [0xff; 2]);
    }

    #[test]
    fn what_is_off_moves_nothing_and_its_device_is_told_when_it_is_on() {
        struct Device(AtomicUsize);
        impl DmaRequester for Device {
            fn dma_ready(&self) {
                self.0.fetch_add(1, Ordering::Relaxed);
            }
        }
        let b = Bench::new();
        let device = Arc::new(Device(AtomicUsize::new(0)));
        let weak: Weak<dyn DmaRequester> = Arc::downgrade(&(device.clone() as Arc<dyn DmaRequester>));
        b.dma.connect(2, weak);
        let told = || device.0.swap(0, Ordering::Relaxed);
        b.set_up(0x44, 0, 8);
        assert_eq!(told(), 0, "it wants nothing");
        b.out(0x0a, 6);
        b.dma.request(2, true);
        assert_eq!((b.ports.read(8, 1), b.dma.to_memory(2, &[1]).bytes), (0x40, 0));
        b.out(0x0a, 2);
        assert!(told() > 0);
        for (port, off, on) in [(0x08, 4, 0), (0x08, 1, 0), (0x0f, 0xf, 0xb), (0x0b, 0xc6, 0x46)] {
            b.out(port, off);
            assert_eq!(b.dma.to_memory(2, &[1]).bytes, 0, "{port:x}");
            told();
            b.out(port, on);
            assert!(told() > 0 && b.dma.to_memory(2, &[1]).bytes == 1, "{port:x}");
        }
        b.out(0x0d, 0);
        assert_eq!(b.dma.to_memory(2, &[1]).bytes, 0, "a master clear masks");
        b.out(0x0e, 0);
        assert_eq!(b.dma.to_memory(2, &[1]).bytes, 1);
        assert_eq!(b.dma.to_memory(4, &[1]).bytes + b.dma.to_memory(99, &[1]).bytes, 0);
    }

    #[test]
    fn it_is_restored_and_reset() {
        let b = Bench::new();
        b.set_up(0x54, 0x1_0000, 0x200);
        b.dma.to_memory(2, &[1; 100]);
        b.out(0x84, 0x5a);
        let saved = Plugged::save(&*b.dma, "dma");
        let other = Bench::new();
        Plugged::restore(&*other.dma, &saved).unwrap();
        assert_eq!(*b.dma.state.lock(), *other.dma.state.lock());
        assert_eq!(other.ports.read(0x84, 1), 0x5a);
        Plugged::reset(&*other.dma, Reset::Board);
        assert_eq!(*other.dma.state.lock(), State::default());
    }
}
