//! fw_cfg: the firmware configuration device, by which the board hands items (numbered blobs and named files)
//! to firmware and kernels.
//!
//! ```text
//!   510h  selector (16 bits, write)       chooses an item and goes to its start
//!   511h  data (8 bits)                   the next byte of the item; zeroes after its end
//!   514h  DMA address (64 bits big-endian): a write of the low half, at 518h, starts
//! ```
//!
//! Items are added by the board before the guest runs. Files have keys from 20h in the order of their
//! addition. Some files tell of what firmware has set up: they are made anew when one of them is first selected
//! after power-on or a reset (`add_late_files`). Writing by the data port is ignored (as in current versions of the
//! interface); by DMA it works for files that were added as writable. A DMA descriptor is the guest's: its length is
//! honoured without ever touching more than guest RAM, and addresses wrap nowhere.
//!
//! Locks: `state` is held for a whole access, DMA included, and while late files are made. A writable file's hook runs
//! with nothing locked.
//!
//! Source: QEMU's specification "QEMU Firmware Configuration (fw_cfg) Device".
use crate::aml::{Fragment, STA_HIDDEN, Under, crs, io, name};
use crate::bus::{PortBus, PortIo, open_bus};
use crate::device::{Device, Invalid, Reset};
use crate::dma::{Dma, DmaError};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;

/// First of the device's ports.
pub const PORT: u16 = 0x510;
/// Ports that it takes.
pub const PORTS: u32 = 12;

/// Keys of the standard items.
pub mod key {
    /// The signature "QEMU".
    pub const SIGNATURE: u16 = 0x00;
    /// Features, 32 bits: 0 the traditional interface, 1 DMA.
    pub const ID: u16 = 0x01;
    /// System UUID, 16 bytes.
    pub const UUID: u16 = 0x02;
    /// RAM in bytes, 64 bits.
    pub const RAM_SIZE: u16 = 0x03;
    /// No display, 16 bits.
    pub const NOGRAPHIC: u16 = 0x04;
    /// CPUs present, 16 bits.
    pub const NB_CPUS: u16 = 0x05;
    /// Kernel: load address, 32 bits.
    pub const KERNEL_ADDR: u16 = 0x07;
    /// Kernel: bytes, 32 bits.
    pub const KERNEL_SIZE: u16 = 0x08;
    /// Initial RAM disk: load address, 32 bits.
    pub const INITRD_ADDR: u16 = 0x0a;
    /// Initial RAM disk: bytes, 32 bits.
    pub const INITRD_SIZE: u16 = 0x0b;
    /// Show a boot menu, 16 bits.
    pub const BOOT_MENU: u16 = 0x0e;
    /// CPUs possible, 16 bits.
    pub const MAX_CPUS: u16 = 0x0f;
    /// Kernel: entry point, 32 bits.
    pub const KERNEL_ENTRY: u16 = 0x10;
    /// Kernel: the bytes.
    pub const KERNEL_DATA: u16 = 0x11;
    /// Initial RAM disk: the bytes.
    pub const INITRD_DATA: u16 = 0x12;
    /// Command line: load address, 32 bits.
    pub const CMDLINE_ADDR: u16 = 0x13;
    /// Command line: bytes with the terminator, 32 bits.
    pub const CMDLINE_SIZE: u16 = 0x14;
    /// Command line: the bytes.
    pub const CMDLINE_DATA: u16 = 0x15;
    /// Setup code of a bzImage: load address, 32 bits.
    pub const SETUP_ADDR: u16 = 0x16;
    /// Setup code: bytes, 32 bits.
    pub const SETUP_SIZE: u16 = 0x17;
    /// Setup code: the bytes.
    pub const SETUP_DATA: u16 = 0x18;
    /// The directory of files.
    pub const FILE_DIR: u16 = 0x19;
    /// The first file.
    pub const FILE_FIRST: u16 = 0x20;
    /// Memory map as E820 entries (PC).
    pub const E820_TABLE: u16 = 0x8003;
    /// HPET configuration (PC).
    pub const HPET: u16 = 0x8004;
}

/// DMA control bits.
mod dma {
    pub const ERROR: u32 = 1 << 0;
    pub const READ: u32 = 1 << 1;
    pub const SKIP: u32 = 1 << 2;
    pub const SELECT: u32 = 1 << 3;
    pub const WRITE: u32 = 1 << 4;
}

/// What the DMA register reads as: "QEMU CFG", big-endian.
const DMA_SIGNATURE: u64 = 0x5145_4d55_2043_4647;
/// Longest name of a file, in bytes, without its terminator.
pub const NAME_MAX: usize = 55;
/// Files there can be: keys go up to 3FFFh.
const FILES_MAX: usize = 0x3fe0;
/// Bytes moved at once.
const CHUNK: usize = 4096;

type WriteHook = Arc<dyn Fn(&[u8]) + Send + Sync>;
type MakeFiles = Arc<dyn Fn() -> Vec<(&'static str, Vec<u8>)> + Send + Sync>;

/// Files that are made when the guest first looks at one of them.
struct Late {
    make: MakeFiles,
    keys: Vec<u16>,
    made: bool,
}

struct Item {
    bytes: Vec<u8>,
    /// The guest may write; the hook is called with the whole contents after it has.
    on_write: Option<WriteHook>,
}

#[derive(Default)]
struct State {
    items: BTreeMap<u16, Item>,
    /// Names of the files, in the order of their keys.
    files: Vec<String>,
    late: Vec<Late>,
    selected: u16,
    offset: usize,
    dma_high: u32,
}

/// Why a file cannot be added.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FwCfgError {
    /// The name does not fit.
    #[error("fw_cfg: the file name '{0}' is longer than {NAME_MAX} bytes, or empty")]
    Name(String),
    /// The name is taken.
    #[error("fw_cfg: there is a file '{0}' already")]
    Duplicate(String),
    /// All keys are used, or the contents need more than 32 bits of length.
    #[error("fw_cfg: no room for the file '{0}'")]
    Full(String),
}

/// The firmware configuration device.
pub struct FwCfg {
    dma: Dma,
    state: Mutex<State>,
}

impl FwCfg {
    /// A device with its signature and an empty directory, whose DMA goes by `dma`.
    pub fn new(dma: Dma) -> Arc<Self> {
        let cfg = Arc::new(Self { dma, state: Mutex::new(State::default()) });
        cfg.set_item(key::SIGNATURE, b"QEMU".to_vec());
        cfg.set_u32(key::ID, 3);
        cfg.state.lock().write_directory();
        cfg
    }

    /// Puts the device on the bus.
    pub fn attach(self: &Arc<Self>, bus: &PortBus) {
        bus.map(PORT, PORTS, self.clone());
    }

    /// Sets item `key` to `bytes`.
    pub fn set_item(&self, key: u16, bytes: Vec<u8>) {
        self.state.lock().items.insert(key & 0xbfff, Item { bytes, on_write: None });
    }

    /// Sets a 16-bit item, little-endian.
    pub fn set_u16(&self, key: u16, value: u16) {
        self.set_item(key, value.to_le_bytes().to_vec());
    }

    /// Sets a 32-bit item, little-endian.
    pub fn set_u32(&self, key: u16, value: u32) {
        self.set_item(key, value.to_le_bytes().to_vec());
    }

    /// Sets a 64-bit item, little-endian.
    pub fn set_u64(&self, key: u16, value: u64) {
        self.set_item(key, value.to_le_bytes().to_vec());
    }

    /// Adds a file. Returns its key.
    pub fn add_file(&self, name: &str, bytes: Vec<u8>) -> Result<u16, FwCfgError> {
        self.add(name, Item { bytes, on_write: None })
    }

    /// Adds a file that the guest may write to by DMA; `on_write` is then called with its contents.
    pub fn add_writable_file(
        &self,
        name: &str,
        bytes: Vec<u8>,
        on_write: impl Fn(&[u8]) + Send + Sync + 'static,
    ) -> Result<u16, FwCfgError> {
        self.add(name, Item { bytes, on_write: Some(Arc::new(on_write)) })
    }

    /// Adds files that `make` gives, by name and contents. It is called now, which says how long they are, and again
    /// when the guest first selects one of them after power-on or a reset, so that they tell of what its firmware has
    /// set up until then. It must give the same names each time.
    pub fn add_late_files(
        &self,
        make: impl Fn() -> Vec<(&'static str, Vec<u8>)> + Send + Sync + 'static,
    ) -> Result<(), FwCfgError> {
        let files = make().into_iter().map(|(name, bytes)| self.add_file(name, bytes));
        let keys = files.collect::<Result<_, _>>()?;
        self.state.lock().late.push(Late { make: Arc::new(make), keys, made: false });
        Ok(())
    }

    fn add(&self, name: &str, item: Item) -> Result<u16, FwCfgError> {
        if name.is_empty() || name.len() > NAME_MAX || name.contains('\0') {
            return Err(FwCfgError::Name(name.to_owned()));
        }
        let mut state = self.state.lock();
        if state.files.iter().any(|f| f == name) {
            return Err(FwCfgError::Duplicate(name.to_owned()));
        }
        if state.files.len() >= FILES_MAX || u32::try_from(item.bytes.len()).is_err() {
            return Err(FwCfgError::Full(name.to_owned()));
        }
        let key = key::FILE_FIRST + state.files.len() as u16;
        state.files.push(name.to_owned());
        state.items.insert(key, item);
        state.write_directory();
        Ok(key)
    }

    /// The contents of a file as they are now.
    pub fn file(&self, name: &str) -> Option<Vec<u8>> {
        let state = self.state.lock();
        let index = state.files.iter().position(|f| f == name)?;
        state.items.get(&(key::FILE_FIRST + index as u16)).map(|i| i.bytes.clone())
    }

    /// Carries the descriptor at `at` out.
    fn transfer(&self, at: u64) {
        let mut head = [0_u8; 16];
        if self.dma.read(at, &mut head).is_err() {
            return;
        }
        let word = |i: usize| u32::from_be_bytes([head[i], head[i + 1], head[i + 2], head[i + 3]]);
        let (control, len) = (word(0), word(4));
        let address = u64::from(word(8)) << 32 | u64::from(word(12));
        let mut written = None;
        let status = {
            let mut state = self.state.lock();
            if control & dma::SELECT != 0 {
                state.select((control >> 16) as u16);
            }
            // One thing at a time, in this order of preference.
            if control & dma::READ != 0 {
                self.read_to(&mut state, address, len).map_or(dma::ERROR, |()| 0)
            } else if control & dma::WRITE != 0 {
                written = self.write_from(&mut state, address, len);
                if written.is_some() { 0 } else { dma::ERROR }
            } else {
                if control & dma::SKIP != 0 {
                    state.offset = state.offset.saturating_add(len as usize);
                }
                0
            }
        };
        // A descriptor that was read is in memory, but for one in ROM.
        let _ = self.dma.write(at, &status.to_be_bytes());
        if let Some((hook, bytes)) = written {
            hook(&bytes);
        }
    }

    /// Copies `len` bytes of the item, and zeroes after its end, to the guest.
    fn read_to(&self, state: &mut State, address: u64, len: u32) -> Result<(), DmaError> {
        let (offset, len) = (state.offset, len as usize);
        state.offset = offset.saturating_add(len);
        let bytes = state.items.get(&state.selected).map_or(&[][..], |i| &i.bytes[..]);
        let bytes = bytes.get(offset.min(bytes.len())..).unwrap_or(&[]);
        let bytes = &bytes[..bytes.len().min(len)];
        let mut done = 0;
        while done < len {
            let to = address.wrapping_add(done as u64);
            let n = (len - done).min(CHUNK);
            let part = bytes.get(done..).filter(|b| !b.is_empty()).unwrap_or(&[0; CHUNK]);
            let n = n.min(part.len());
            self.dma.write(to, &part[..n])?;
            done += n;
        }
        Ok(())
    }

    /// Copies `len` bytes from the guest over the item's, if it is writable and they fit.
    fn write_from(&self, state: &mut State, address: u64, len: u32) -> Option<(WriteHook, Vec<u8>)> {
        let (offset, len) = (state.offset, len as usize);
        let selected = state.selected;
        let item = state.items.get_mut(&selected)?;
        let hook = item.on_write.clone()?;
        let to = item.bytes.get_mut(offset..offset.checked_add(len)?)?;
        self.dma.read(address, to).ok()?;
        let bytes = item.bytes.clone();
        state.offset = offset + len;
        Some((hook, bytes))
    }
}

impl State {
    fn select(&mut self, key: u16) {
        // Bit 14 asks for writing by the data port, which is no more.
        self.selected = key & 0xbfff;
        self.offset = 0;
        let selected = self.selected;
        if let Some(late) = self.late.iter_mut().find(|late| !late.made && late.keys.contains(&selected)) {
            late.made = true;
            let (make, keys) = (late.make.clone(), late.keys.clone());
            for (key, (_, bytes)) in keys.into_iter().zip(make()) {
                self.items.insert(key, Item { bytes, on_write: None });
            }
            self.write_directory();
        }
    }

    fn next_byte(&mut self) -> u8 {
        let byte = self.items.get(&self.selected).and_then(|i| i.bytes.get(self.offset)).copied();
        if byte.is_some() {
            self.offset += 1;
        }
        byte.unwrap_or(0)
    }

    fn write_directory(&mut self) {
        let mut dir = (self.files.len() as u32).to_be_bytes().to_vec();
        for (i, name) in self.files.iter().enumerate() {
            let key = key::FILE_FIRST + i as u16;
            let size = self.items.get(&key).map_or(0, |item| item.bytes.len() as u32);
            dir.extend(size.to_be_bytes());
            dir.extend(key.to_be_bytes());
            dir.extend([0; 2]);
            let mut field = [0; NAME_MAX + 1];
            for (to, from) in field.iter_mut().zip(name.bytes()) {
                *to = from;
            }
            dir.extend(field);
        }
        self.items.insert(key::FILE_DIR, Item { bytes: dir, on_write: None });
    }
}

impl PortIo for FwCfg {
    fn read(&self, offset: u16, size: u8) -> u32 {
        match (offset, size) {
            (0 | 1, 1) => u32::from(self.state.lock().next_byte()),
            (4..12, _) if u32::from(offset) + u32::from(size) <= 12 => {
                // Big-endian: the byte at the lowest port is the highest.
                let bytes = DMA_SIGNATURE.to_be_bytes();
                crate::bus::read_bytes(size, |i| {
                    bytes.get(usize::from(offset) - 4 + usize::from(i)).copied().unwrap_or(0xff)
                })
            }
            _ => open_bus(size),
        }
    }

    fn write(&self, offset: u16, size: u8, value: u32) {
        match (offset, size) {
            (0, 2) => self.state.lock().select(value as u16),
            (4, 4) => self.state.lock().dma_high = value.swap_bytes(),
            (8, 4) => {
                let high = std::mem::take(&mut self.state.lock().dma_high);
                self.transfer(u64::from(high) << 32 | u64::from(value.swap_bytes()));
            }
            _ => {}
        }
    }
}

/// What is saved of the device: its registers, and the items that are not as the machine's builder has made them.
#[derive(Serialize, Deserialize)]
pub struct FwCfgV1 {
    selected: u16,
    offset: u64,
    dma_high: u32,
    /// Which groups of late files were made.
    made: Vec<bool>,
    /// Contents of these and of files that the guest may write, by key.
    contents: Vec<(u16, Vec<u8>)>,
}

impl Device for FwCfg {
    type State = FwCfgV1;
    const KIND: &'static str = "fw_cfg_io";

    fn aml(&self) -> Option<Fragment> {
        let (hid, sta) = (name("_HID", &"QEMU0002"), name("_STA", &STA_HIDDEN));
        Some(Fragment::device(Under::Pci, "FWCF", vec![&hid, &sta, &crs(vec![&io(PORT, PORTS as u8)])]))
    }

    /// Items stay, but for late files, which will be made again.
    fn reset(&self, _: Reset) {
        let mut state = self.state.lock();
        (state.selected, state.offset, state.dma_high) = (0, 0, 0);
        state.late.iter_mut().for_each(|late| late.made = false);
    }

    fn save(&self) -> FwCfgV1 {
        let state = self.state.lock();
        let made = |key: &u16| state.late.iter().any(|late| late.made && late.keys.contains(key));
        let changed = state.items.iter().filter(|(key, item)| item.on_write.is_some() || made(key));
        FwCfgV1 {
            selected: state.selected,
            offset: state.offset as u64,
            dma_high: state.dma_high,
            made: state.late.iter().map(|late| late.made).collect(),
            contents: changed.map(|(key, item)| (*key, item.bytes.clone())).collect(),
        }
    }

    fn restore(&self, saved: FwCfgV1) -> Result<(), Invalid> {
        let mut state = self.state.lock();
        if saved.made.len() != state.late.len() {
            return Err(Invalid("the files that are made late"));
        }
        for (key, bytes) in saved.contents {
            let item = state.items.get_mut(&key).ok_or(Invalid("a file's key"))?;
            item.bytes = bytes;
        }
        state.late.iter_mut().zip(saved.made).for_each(|(late, made)| late.made = made);
        state.selected = saved.selected;
        state.offset = usize::try_from(saved.offset).unwrap_or(usize::MAX);
        state.dma_high = saved.dma_high;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::events::testing::hammer;
    use mynah_mmu::{GuestRam, PhysMemory};

    struct Pc {
        memory: Arc<PhysMemory>,
        cfg: Arc<FwCfg>,
        bus: PortBus,
    }

    impl Pc {
        fn new() -> Self {
            let memory = PhysMemory::new(GuestRam::new(1 << 20).unwrap(), 1 << 20);
            let (cfg, bus) = (FwCfg::new(Dma::always(memory.clone())), PortBus::new());
            cfg.attach(&bus);
            Self { memory, cfg, bus }
        }
        fn bytes(&self, key: u16, n: usize) -> Vec<u8> {
            self.bus.write(0x510, 2, key.into());
            (0..n).map(|_| self.bus.read(0x511, 1) as u8).collect()
        }
        /// Runs a descriptor that is put at 1000h; returns its control word afterwards.
        fn dma(&self, control: u32, len: u32, address: u64) -> u32 {
            let mut d = control.to_be_bytes().to_vec();
            d.extend(len.to_be_bytes());
            d.extend(address.to_be_bytes());
            self.memory.write(0x1000, &d);
            self.bus.write(0x514, 4, 0);
            self.bus.write(0x518, 4, 0x1000_u32.swap_bytes());
            let mut word = [0; 4];
            self.memory.read(0x1000, &mut word);
            u32::from_be_bytes(word)
        }
        fn memory(&self, at: u64, n: usize) -> Vec<u8> {
            let mut v = vec![0; n];
            self.memory.read(at, &mut v);
            v
        }
    }

    #[test]
    fn late_files_are_made_when_one_is_first_selected_and_again_after_a_reset() {
        use std::sync::atomic::{AtomicU8, Ordering};
        let (pc, now) = (Pc::new(), Arc::new(AtomicU8::new(1)));
        let theirs = now.clone();
        let make = move || {
            let n = theirs.load(Ordering::Relaxed);
            vec![("etc/one", vec![n; 2]), ("etc/two", vec![n; 3])]
        };
        pc.cfg.add_late_files(make).unwrap();
        assert_eq!(pc.cfg.add_file("etc/two", vec![]), Err(FwCfgError::Duplicate("etc/two".into())));
        now.store(2, Ordering::Relaxed);
        pc.bytes(key::FILE_DIR, 4);
        now.store(3, Ordering::Relaxed);
        assert_eq!(pc.bytes(0x21, 4), [3, 3, 3, 0], "at the first look");
        now.store(4, Ordering::Relaxed);
        assert_eq!((pc.bytes(0x20, 2), pc.bytes(0x21, 2)), (vec![3, 3], vec![3, 3]), "all belong together");
        pc.cfg.reset(Reset::Board);
        assert_eq!(pc.dma(0x20 << 16 | dma::SELECT | dma::READ, 3, 0x2000), 0);
        assert_eq!(pc.memory(0x2000, 3), [4, 4, 0], "by DMA as well");
    }

    #[test]
    fn items_are_read_byte_by_byte_and_end_in_zeroes() {
        let pc = Pc::new();
        assert_eq!(pc.bytes(key::SIGNATURE, 6), b"QEMU\0\0");
        assert_eq!(pc.bytes(key::ID, 4), [3, 0, 0, 0]);
        pc.cfg.set_u16(key::NB_CPUS, 2);
        assert_eq!(pc.bytes(key::NB_CPUS, 2), [2, 0]);
        assert_eq!(pc.bytes(0x1234, 2), [0, 0]);
    }

    #[test]
    fn the_directory_lists_files_and_their_keys() {
        let pc = Pc::new();
        assert_eq!(pc.bytes(key::FILE_DIR, 4), [0; 4]);
        pc.cfg.add_file("etc/e820", vec![1; 20]).unwrap();
        let key = pc.cfg.add_file("opt/x", b"hello".to_vec()).unwrap();
        let dir = pc.bytes(key::FILE_DIR, 4 + 2 * 64);
        assert_eq!(dir[..4], [0, 0, 0, 2]);
        assert_eq!(dir[4..12], [0, 0, 0, 20, 0, 0x20, 0, 0]);
        assert_eq!(dir[68..76], [0, 0, 0, 5, 0, 0x21, 0, 0]);
        assert_eq!(&dir[76..82], b"opt/x\0");
        assert_eq!(pc.bytes(key, 5), b"hello");
    }

    #[test]
    fn bad_files_are_refused_by_name() {
        let pc = Pc::new();
        pc.cfg.add_file("a", vec![]).unwrap();
        assert_eq!(pc.cfg.add_file("a", vec![]), Err(FwCfgError::Duplicate("a".into())));
        assert!(matches!(pc.cfg.add_file(&"n".repeat(56), vec![]), Err(FwCfgError::Name(_))));
        assert!(pc.cfg.add_file(&"n".repeat(55), vec![]).is_ok());
    }

    #[test]
    fn dma_announces_itself_and_reads_with_padding() {
        let pc = Pc::new();
        assert_eq!(pc.bus.read(0x514, 4).to_le_bytes(), *b"QEMU");
        assert_eq!(pc.bus.read(0x518, 4).to_le_bytes(), *b" CFG");
        let key = pc.cfg.add_file("f", b"abcdef".to_vec()).unwrap();
        pc.memory.write(0x2000, &[0xee; 16]);
        assert_eq!(pc.dma(u32::from(key) << 16 | dma::SELECT | dma::SKIP, 1, 0), 0);
        assert_eq!(pc.dma(dma::READ, 8, 0x2000), 0);
        assert_eq!(pc.memory(0x2000, 9), b"bcdef\0\0\0\xee");
    }

    #[test]
    fn dma_moves_more_than_a_page() {
        let pc = Pc::new();
        let blob: Vec<u8> = (0..20_000_u32).map(|i| (i * 7) as u8).collect();
        let key = pc.cfg.add_file("blob", blob.clone()).unwrap();
        assert_eq!(pc.dma(u32::from(key) << 16 | dma::SELECT | dma::READ, 20_000, 0x3001), 0);
        assert!(pc.memory(0x3001, 20_000) == blob);
    }

    #[test]
    fn only_writable_files_can_be_written() {
        let pc = Pc::new();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let theirs = seen.clone();
        let rw = pc.cfg.add_writable_file("rw", vec![0; 4], move |b| *theirs.lock() = b.to_vec()).unwrap();
        let ro = pc.cfg.add_file("ro", vec![0; 4]).unwrap();
        pc.memory.write(0x2000, b"wxyz");
        let write = |key: u16, len| pc.dma(u32::from(key) << 16 | dma::SELECT | dma::WRITE, len, 0x2000);
        assert_eq!(write(rw, 4), 0);
        assert_eq!(*seen.lock(), b"wxyz");
        assert_eq!((write(rw, 5), write(ro, 4)), (dma::ERROR, dma::ERROR));
        assert_eq!(pc.cfg.file("ro").unwrap(), [0; 4]);
    }

    #[test]
    fn hostile_descriptors_do_no_harm() {
        let pc = Pc::new();
        for address in [0, 0xf_fff0, 0x10_0000, 0xffff_fff0, u64::MAX - 3, 1 << 63] {
            for op in [dma::READ, dma::WRITE, dma::SKIP, dma::READ | dma::WRITE | dma::SKIP | dma::SELECT] {
                pc.dma(op, u32::MAX, address);
                pc.dma(op, u32::MAX, address);
            }
        }
        // A descriptor that nobody can read or write.
        for at in [0xf_fff8_u32, 0x10_0000, u32::MAX] {
            pc.bus.write(0x514, 4, u32::MAX);
            pc.bus.write(0x518, 4, at.swap_bytes());
            pc.bus.write(0x514, 4, 0);
            pc.bus.write(0x518, 4, at.swap_bytes());
        }
        assert_eq!(pc.bytes(0, 4), b"QEMU");
    }

    #[test]
    fn no_access_of_any_width_panics() {
        let pc = Pc::new();
        hammer(&*pc.cfg, 12);
    }
}
