//! Option ROMs: those that lie between C0000h and DFFFFh, and what their headers say.
//!
//! A ROM is at a multiple of 2 KiB: 55 AA, its length in 512 bytes, its initialisation, and a sum of zero. A Plug and
//! Play header adds what is called to join the disks (BCV) or to boot (BEV).
//!
//! Source: Plug and Play BIOS Specification 1.0A, 3; PCI Firmware Specification 3.0, 5.1.
use super::Platform;
use serde::{Deserialize, Serialize};

/// Where option ROMs are.
pub(super) const AREA: std::ops::Range<u32> = 0xc_0000..0xe_0000;
const STEP: u32 = 0x800;
/// ROMs that are started, at most: one for each place.
const UNIT: u32 = 512;
/// Devices that a ROM's list may have.
const MOST: usize = 256;

/// An option ROM that was found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Found {
    pub segment: u16,
    /// Bus, device and function that it is of, if it is of a PCI function.
    pub device: u16,
    /// Its boot connection vector.
    pub connect: u16,
    /// Its boot entry vector.
    pub entry: u16,
    /// What it says that it is.
    pub name: String,
    /// It is a network card's, which is started only if that is to be booted from.
    pub network: bool,
    /// Its initialisation was called.
    pub started: bool,
}

/// The next ROM at or after `at`, and where to look for the one behind it.
pub(super) fn next(pc: &mut dyn Platform, at: u32) -> Option<(Found, u32)> {
    let mut at = at.next_multiple_of(STEP);
    while at < AREA.end {
        let len = u32::from(pc.u8(at + 2)) * UNIT;
        if pc.u16(at) == 0xaa55 && len > 0 && at + len <= AREA.end {
            let mut image = vec![0; len as usize];
            pc.read(at, &mut image);
            if image.iter().fold(0u8, |sum, b| sum.wrapping_add(*b)) == 0 {
                let (device, network) = function_of(pc, &image);
                let found = Found {
                    segment: (at >> 4) as u16,
                    device,
                    network,
                    started: false,
                    connect: 0,
                    entry: 0,
                    name: String::new(),
                };
                return Some((found, (at + len).next_multiple_of(STEP)));
            }
        }
        at += STEP;
    }
    None
}

/// The PCI function whose vendor and device a ROM's PCI data structure has, 0 if it has none; and whether it is a
/// network card's (PCI Firmware Specification 3.0, 5.1.2).
fn function_of(pc: &mut dyn Platform, image: &[u8]) -> (u16, bool) {
    const NETWORK: u8 = 2;
    let word = |i: usize| Some(u16::from_le_bytes(image.get(i..i + 2)?.try_into().ok()?));
    let Some(data) = word(0x18).map(usize::from) else { return (0, false) };
    if image.get(data..data + 4) != Some(b"PCIR") {
        return (0, false);
    }
    let network = image.get(data + 0xf) == Some(&NETWORK);
    let (Some(vendor), Some(device)) = (word(data + 4), word(data + 6)) else { return (0, network) };
    // From revision 3 on there may be a list of others that it is for as well, with a zero behind it.
    let list =
        word(data + 8).filter(|at| *at != 0 && image.get(data + 0xc).is_some_and(|revision| *revision >= 3));
    let mut devices = vec![device];
    if let Some(at) = list {
        let others = (0..MOST).map_while(|n| word(data + usize::from(at) + 2 * n));
        devices.extend(others.take_while(|device| *device != 0));
    }
    let is = |id: u32| id as u16 == vendor && devices.contains(&((id >> 16) as u16));
    let all = super::pci::functions(pc);
    let found = all.iter().copied().find(|bdf| is(super::pci::read(pc, *bdf, 0, 4)));
    // iPXE's for virtio tells the number of the card's later form alone.
    let found = found.or_else(|| {
        let is_card = |bdf: &u16| {
            network
                && super::pci::read(pc, *bdf, 0, 2) == u32::from(vendor)
                && super::pci::read(pc, *bdf, 0xb, 1) == u32::from(NETWORK)
        };
        all.into_iter().find(is_card)
    });
    (found.unwrap_or(0), network)
}

impl Found {
    /// Looks for a Plug and Play header, and takes vectors and name from it.
    pub fn read_headers(&mut self, pc: &mut dyn Platform) {
        let base = u32::from(self.segment) << 4;
        let at = base + u32::from(pc.u16(base + 0x1a));
        let mut mark = [0; 4];
        pc.read(at, &mut mark);
        if &mark != b"$PnP" {
            return;
        }
        let (name, connect, entry) = (pc.u16(at + 0x10), pc.u16(at + 0x16), pc.u16(at + 0x1a));
        (self.connect, self.entry) = (connect, entry);
        if name != 0 {
            let mut text = [0; 60];
            pc.read(base + u32::from(name), &mut text);
            let text = text.iter().take_while(|b| **b != 0).map(|b| char::from(*b));
            self.name = text.filter(|c| matches!(c, ' '..='~')).collect();
        }
    }
}
