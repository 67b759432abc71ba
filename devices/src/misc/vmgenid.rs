//! The VM generation id: 128 bits by which a guest notices that it goes on from a copy of itself.
//!
//! ```text
//!   etc/vmgenid_guid   4096 bytes, the id at 28h: firmware puts them somewhere      \_SB.VGEN  _CID "VM_Gen_Counter"
//!   etc/vmgenid_addr   firmware tells where the id is then                          ADDR       where it is, low and high
//!   VGIA               and writes into the DSDT where these bytes are               \_GPE._E05 notifies VGEN by 80h
//! ```
//!
//! The built-in firmware places it beside the FACS ([`VmGenId::placed`]). With `guid=auto` each process has an id of
//! its own, so a machine that goes on from a saved one has another than that: it is written to the guest's memory, and
//! general-purpose event 5 tells of it, before the machine goes on. An id that the user has given stays.
//!
//! Source: Microsoft, Virtual Machine Generation ID (2018); QEMU's specification of its device (docs/specs/vmgenid).
use super::entropy::Asker;
use crate::aml::{Encoded, Fragment, Under, name};
use crate::device::{Device, Invalid, Reset};
use crate::kind::{Bus, KINDS, Kind, PlugError, Property, Site, Type, Values};
use acpi_tables::aml::{Device as AmlDevice, Method, Notify, Path, Scope};
use linkme::distributed_slice;
use mynah_mmu::PhysMemory;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::sync::{Arc, OnceLock};

/// Where in the pages that firmware places the id is.
pub const OFFSET: usize = 0x28;
/// Bytes that firmware places.
pub const BLOB: usize = 4096;
/// The general-purpose event that tells of another id.
pub const EVENT: u8 = 5;
/// How the place of the blob stands in the DSDT: `Name (VGIA, 0)`, the number in four bytes at the end.
pub const PLACE: [u8; 10] = [0x08, b'V', b'G', b'I', b'A', 0x0c, 0, 0, 0, 0];

#[distributed_slice(KINDS)]
static KIND: Kind = Kind {
    name: "vmgenid",
    bus: Bus::System,
    about: "an id by which a guest notices that it goes on from a copy",
    properties: &[Property {
        name: "guid",
        kind: Type::Text,
        default: None,
        help: "the id, or auto (the default) for another one in each run",
    }],
    plug,
};

fn plug(site: &Site<'_>, values: &Values) -> Result<(), PlugError> {
    let guid = match values.text("guid") {
        None | Some("auto") => {
            let mut bytes = [0; 16];
            site.entropy.fill(Asker::Device, &mut bytes);
            Guid::random(bytes)
        }
        Some(text) => Guid::parse(text)
            .ok_or_else(|| PlugError::Value(format!("guid={text}: that is no UUID, and not 'auto'")))?,
    };
    let memory = site.pci.ok_or(PlugError::NoPci)?.memory().clone();
    let device = VmGenId::new(memory, guid);
    if site.vmgenid.set(device.clone()).is_err() {
        return Err(PlugError::Value("there is a vmgenid already, and a machine has one".into()));
    }
    let name = values.id.clone().unwrap_or_else(|| "vmgenid".into());
    site.registry.plug("main-system-bus", name, device);
    Ok(())
}

/// An id, in the order in which it is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Guid(pub [u8; 16]);

impl Guid {
    /// A random one: version 4, variant 1 (RFC 9562, 5.4).
    fn random(mut bytes: [u8; 16]) -> Self {
        bytes[6] = bytes[6] & 0x0f | 0x40;
        bytes[8] = bytes[8] & 0x3f | 0x80;
        Self(bytes)
    }

    /// Of 32 hexadecimal digits, in groups of 8-4-4-4-12 or without dashes.
    pub fn parse(text: &str) -> Option<Self> {
        let dashes: Vec<usize> = text.match_indices('-').map(|(at, _)| at).collect();
        let digits: Vec<u8> = text
            .chars()
            .filter(|c| *c != '-')
            .map(|c| c.to_digit(16).map(|d| d as u8))
            .collect::<Option<_>>()?;
        if digits.len() != 32 || !(dashes.is_empty() || dashes == [8, 13, 18, 23]) {
            return None;
        }
        Some(Self(std::array::from_fn(|n| digits[2 * n] << 4 | digits[2 * n + 1])))
    }

    /// As it is in memory: the first three groups are little-endian numbers.
    pub fn in_memory(&self) -> [u8; 16] {
        const ORDER: [usize; 16] = [3, 2, 1, 0, 5, 4, 7, 6, 8, 9, 10, 11, 12, 13, 14, 15];
        ORDER.map(|n| self.0[n])
    }
}

impl fmt::Display for Guid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, byte) in self.0.iter().enumerate() {
            let dash = if matches!(n, 4 | 6 | 8 | 10) { "-" } else { "" };
            write!(f, "{dash}{byte:02x}")?;
        }
        Ok(())
    }
}

struct State {
    /// Where the id is in the guest's memory, once firmware has told.
    at: Option<u64>,
    /// What is there is another one: it was restored.
    changed: bool,
}

/// The device.
pub struct VmGenId {
    memory: Arc<PhysMemory>,
    guid: Guid,
    state: Mutex<State>,
    event: OnceLock<Box<dyn Fn() + Send + Sync>>,
}

impl VmGenId {
    /// An id for the guest in this memory.
    pub fn new(memory: Arc<PhysMemory>, guid: Guid) -> Arc<Self> {
        let state = Mutex::new(State { at: None, changed: false });
        Arc::new(Self { memory, guid, state, event: OnceLock::new() })
    }

    /// Names what raises event 5. Once.
    pub fn connect(&self, event: impl Fn() + Send + Sync + 'static) {
        let _ = self.event.set(Box::new(event));
    }

    /// The id.
    pub fn guid(&self) -> Guid {
        self.guid
    }

    /// What firmware places.
    pub fn blob(&self) -> Vec<u8> {
        let mut blob = vec![0; BLOB];
        blob[OFFSET..OFFSET + 16].copy_from_slice(&self.guid.in_memory());
        blob
    }

    /// The id is at `at` in the guest's memory: firmware says so. It is written there.
    pub fn placed(&self, at: u64) {
        let mut state = self.state.lock();
        state.at = (at != 0).then_some(at);
        self.write(&state);
    }

    /// Writes the id into the guest's memory, and nowhere else.
    fn write(&self, state: &State) {
        let Some(at) = state.at else { return };
        if self.memory.memory_run(at).is_none_or(|run| run < 16) {
            tracing::debug!("vmgenid: {at:#x}: there is no memory for the id");
            return;
        }
        self.memory.write(at, &self.guid.in_memory());
    }
}

/// What is saved of the device.
#[derive(Serialize, Deserialize)]
pub struct VmGenIdV1 {
    guid: Guid,
    at: Option<u64>,
}

impl Device for VmGenId {
    type State = VmGenIdV1;
    const KIND: &'static str = "vmgenid";

    fn aml(&self) -> Option<Fragment> {
        const ID: &str = "VM_Gen_Counter";
        // If (VGIA == 0) { Return (0) } Return (0x0F)
        let sta = [0xa0, 0x09, 0x93, b'V', b'G', b'I', b'A', 0x00, 0xa4, 0x00, 0xa4, 0x0a, 0x0f];
        // Local0 = Package (2) {0, 0}; Local0[0] = VGIA + 0x28; Return (Local0)
        let addr = [
            0x70,
            0x12,
            0x04,
            0x02,
            0x00,
            0x00,
            0x60,
            0x70,
            0x72,
            b'V',
            b'G',
            b'I',
            b'A',
            0x0a,
            OFFSET as u8,
            0x00,
            0x88,
            0x60,
            0x00,
            0x00,
            0xa4,
            0x60,
        ];
        let (hid, cid, ddn) = (name("_HID", &"QEMUVGID"), name("_CID", &ID), name("_DDN", &ID));
        let (sta, addr) = (Encoded(sta.into()), Encoded(addr.into()));
        let sta = Method::new("_STA".into(), 0, false, vec![&sta]);
        let addr = Method::new("ADDR".into(), 0, false, vec![&addr]);
        let device = AmlDevice::new("VGEN".into(), vec![&hid, &cid, &ddn, &sta, &addr]);
        let path = Path::new("\\_SB_.VGEN");
        let notify = Notify::new(&path, &0x80u8);
        let method = Method::new("_E05".into(), 0, false, vec![&notify]);
        let bus = Scope::new("\\_SB_".into(), vec![&device]);
        let events = Scope::new("\\_GPE".into(), vec![&method]);
        Some(Fragment::new(Under::Root, &[&Encoded(PLACE.into()), &bus, &events]))
    }

    /// Firmware places it anew.
    fn reset(&self, why: Reset) {
        // A machine that wakes has its memory, and its tables.
        if why == Reset::Board {
            *self.state.lock() = State { at: None, changed: false };
        }
    }

    /// A restored machine is told of its new id.
    fn resume(&self) {
        let mut state = self.state.lock();
        if !std::mem::take(&mut state.changed) || state.at.is_none() {
            return;
        }
        self.write(&state);
        drop(state);
        if let Some(event) = self.event.get() {
            event();
        }
    }

    fn save(&self) -> VmGenIdV1 {
        VmGenIdV1 { guid: self.guid, at: self.state.lock().at }
    }

    fn restore(&self, saved: VmGenIdV1) -> Result<(), Invalid> {
        *self.state.lock() = State { at: saved.at, changed: saved.guid != self.guid };
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mynah_mmu::GuestRam;
    use std::sync::atomic::{AtomicUsize, Ordering};

    const TEXT: &str = "324e6eaf-d1d1-4bf6-bf41-b9bb6c91fb87";

    fn device(guid: [u8; 16]) -> (Arc<VmGenId>, Arc<PhysMemory>, Arc<AtomicUsize>) {
        let memory = PhysMemory::new(GuestRam::new(1 << 20).unwrap(), 1 << 20);
        let device = VmGenId::new(memory.clone(), Guid(guid));
        let events = Arc::new(AtomicUsize::new(0));
        let counted = events.clone();
        device.connect(move || _ = counted.fetch_add(1, Ordering::SeqCst));
        (device, memory, events)
    }

    fn there(memory: &PhysMemory) -> [u8; 16] {
        let mut id = [0; 16];
        memory.read(0x5028, &mut id);
        id
    }

    #[test]
    fn ids_are_written_as_people_and_as_guests_read_them() {
        let guid = Guid::parse(TEXT).unwrap();
        assert_eq!(guid.to_string(), TEXT);
        assert_eq!(guid.in_memory()[..8], [0xaf, 0x6e, 0x4e, 0x32, 0xd1, 0xd1, 0xf6, 0x4b]);
        assert_eq!(Guid::parse(&TEXT.replace('-', "")), Some(guid));
        for bad in ["", "auto", &TEXT[1..], "324e6eafd-1d1-4bf6-bf41-b9bb6c91fb87", &TEXT.replace('a', "ä")]
        {
            assert_eq!(Guid::parse(bad), None, "{bad}");
        }
        let random = Guid::random([0xff; 16]).to_string();
        assert_eq!(random, "ffffffff-ffff-4fff-bfff-ffffffffffff");
    }

    #[test]
    fn a_guest_that_is_restored_has_another_id_and_is_told() {
        let (one, memory, events) = device([1; 16]);
        assert_eq!(one.blob()[OFFSET..OFFSET + 16], [1; 16]);
        one.placed(0x5028);
        one.resume();
        assert_eq!((there(&memory), events.load(Ordering::SeqCst)), ([1; 16], 0));
        let (two, memory, events) = device([2; 16]);
        memory.write(0x5028, &[1; 16]);
        Device::restore(&*two, Device::save(&*one)).unwrap();
        assert_eq!((there(&memory), events.load(Ordering::SeqCst)), ([1; 16], 0), "not before it goes on");
        two.resume();
        two.resume();
        assert_eq!((there(&memory), events.load(Ordering::SeqCst)), ([2; 16], 1));
        // One with the same id is not told, nor one whose firmware has told nothing.
        let (same, _, events) = device([1; 16]);
        Device::restore(&*same, Device::save(&*one)).unwrap();
        same.resume();
        Device::reset(&*one, Reset::Board);
        Device::restore(&*two, Device::save(&*one)).unwrap();
        two.resume();
        assert_eq!(events.load(Ordering::SeqCst), 0);
        assert_eq!(there(&memory), [2; 16]);
    }

    #[test]
    fn an_id_that_firmware_places_nowhere_goes_nowhere() {
        let (device, ..) = device([1; 16]);
        for at in [0, 1 << 40, u64::MAX, (1 << 20) - 8, u64::MAX - 8] {
            device.placed(at);
        }
    }

    #[test]
    fn the_name_space_has_the_place_once() {
        let aml = device([1; 16]).0.aml().unwrap().aml;
        assert_eq!(aml.windows(PLACE.len()).filter(|w| *w == PLACE).count(), 1);
        assert_eq!(aml[..PLACE.len()], PLACE);
    }
}
