//! What every PCI function that transfers data or interrupts has beside its registers: the command register's effects,
//! INTx, MSI and MSI-X.
//!
//! ```text
//!   device --set_interrupt(level)--> INTx pin, while neither INTx Disable nor MSI nor MSI-X is on
//!          --notify(vector)--------> MSI-X table entry, or MSI message --write--> local APICs
//!          --dma()-----------------> guest memory, while Bus Master is on
//! ```
//!
//! A device owns a [`Function`], adds the capabilities it wants to its configuration space, and hands it to the bus
//! by [`super::PciDevice::function`]; the bus has it follow after each configuration write. A message is a write to
//! memory as any other: no Bus Master, no message. One that is masked waits in its pending bit.
//!
//! Locks: `state`, then the configuration space, then the pin or what takes messages. The gate of the DMA handle is
//! moved with none of them held, as it waits for transfers under way. A device must hold no lock in
//! [`Function::reset`] that one of its threads takes in the middle of a transfer.
//!
//! Source: PCI Local Bus Specification 3.0, 6.2.2 (command register) and 6.8 (message signalled interrupts).
use super::PciBus;
use super::config::{ConfigSpace, ConfigV1, command, reg, status};
use super::{BarKind, DevFn};
use crate::bus::Irq;
use crate::device::Invalid;
use crate::dma::Dma;
use mynah_mmu::{DeviceRam, Mmio};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// Capability of message signalled interrupts (6.8.1).
const MSI: u8 = 0x05;
/// The same with a table (6.8.2).
const MSIX: u8 = 0x11;
/// Offsets in the MSI capability with 64-bit addresses and masks.
mod msi {
    pub const CONTROL: u8 = 2;
    pub const ADDRESS: u8 = 4;
    pub const DATA: u8 = 12;
    pub const MASK: u8 = 16;
    pub const PENDING: u8 = 20;
    pub const LEN: u8 = 24;
    pub const ENABLE: u16 = 1 << 0;
    pub const WIDE: u16 = 1 << 7;
    pub const MASKABLE: u16 = 1 << 8;
}
/// Offsets in the MSI-X capability.
mod msix {
    pub const CONTROL: u8 = 2;
    pub const TABLE: u8 = 4;
    pub const PENDING: u8 = 8;
    pub const LEN: u8 = 12;
    pub const MASKED: u16 = 1 << 14;
    pub const ENABLE: u16 = 1 << 15;
    /// Bytes of a table's entry: address, data, vector control.
    pub const ENTRY: u64 = 16;
}
/// The most vectors that a table has.
pub const MSIX_VECTORS: u16 = 2048;

/// Takes messages that are writes to FEExxxxxh.
pub trait MsiSink: Send + Sync {
    /// A write of `data` to `address`.
    fn msi(&self, address: u64, data: u32);
}

/// Takes messages to nobody.
pub(super) struct NoMessages;
impl MsiSink for NoMessages {
    fn msi(&self, _: u64, _: u32) {}
}

struct State {
    /// What the device wants of its INTx pin.
    asserted: bool,
    /// The MSI-X table: four words for each vector.
    table: Vec<[u32; 4]>,
    /// Messages that wait as their vector is masked.
    pending: Vec<bool>,
}

/// A function's side of the bus.
pub struct Function {
    config: Mutex<ConfigSpace>,
    dma: Dma,
    pin: Irq,
    messages: Arc<dyn MsiSink>,
    state: Mutex<State>,
    rom: Option<Arc<OptionRom>>,
}

/// A function's expansion ROM (PCI 2.1, 6.3).
pub struct OptionRom(Arc<DeviceRam>);

impl OptionRom {
    /// The bytes of a ROM.
    ///
    /// # Errors
    /// It is none, or has more than 16 MiB; or the host has no memory.
    pub fn new(bytes: &[u8]) -> Result<Arc<Self>, String> {
        if bytes.get(..2) != Some(&[0x55, 0xaa]) {
            return Err("it is no option ROM (its first bytes are not 55 AA)".into());
        }
        if bytes.len() > 16 << 20 {
            return Err("an option ROM has at most 16 MiB".into());
        }
        let size = bytes.len().next_power_of_two().max(0x1000);
        let ram = DeviceRam::new(size as u64).map_err(|e| e.to_string())?;
        ram.write(0, bytes);
        Ok(Arc::new(Self(ram)))
    }

    /// Bytes that its BAR decodes.
    pub fn size(&self) -> u64 {
        self.0.size()
    }

    /// What is in it.
    pub(super) fn memory(&self) -> &Arc<DeviceRam> {
        &self.0
    }
}

/// A ROM ignores what is written to it.
impl Mmio for OptionRom {
    fn read(&self, _: u64, _: u8) -> u64 {
        u64::MAX
    }

    fn write(&self, _: u64, _: u8, _: u64) {}
}

/// What is saved of a function.
#[derive(Clone, Serialize, Deserialize)]
pub struct FunctionV1 {
    config: ConfigV1,
    asserted: bool,
    table: Vec<[u32; 4]>,
    pending: Vec<bool>,
}

impl ConfigSpace {
    /// Adds the MSI capability, with 64-bit addresses and a mask for each of `vectors` (1, 2, 4, to 32).
    pub fn add_msi(&mut self, vectors: u8) {
        assert!(vectors.is_power_of_two() && vectors <= 32, "{vectors} vectors");
        let at = self.add_capability(MSI, msi::LEN);
        let capable = (vectors.trailing_zeros() as u16) << 1;
        self.set16(at + msi::CONTROL, msi::WIDE | msi::MASKABLE | capable);
        self.allow16(at + msi::CONTROL, msi::ENABLE | 7 << 4);
        self.allow32(at + msi::ADDRESS, !3);
        self.allow32(at + msi::ADDRESS + 4, u32::MAX);
        self.allow16(at + msi::DATA, 0xffff);
        self.allow32(at + msi::MASK, u32::MAX >> (32 - vectors));
    }

    /// Adds the MSI-X capability: the table of `vectors` is at offset `table` in BAR `bar`, the pending bits at
    /// `pending`. The device leads accesses there to [`Function::table_read`] and its kin.
    pub fn add_msix(&mut self, vectors: u16, bar: u8, table: u32, pending: u32) {
        assert!((1..=MSIX_VECTORS).contains(&vectors) && (table | pending) & 7 == 0, "{vectors} vectors");
        let size = u64::from(table.max(pending)) + msix::ENTRY * u64::from(vectors);
        assert!(matches!(self.bar(bar.into()), Some((kind, have)) if kind != BarKind::Io && have >= size));
        let at = self.add_capability(MSIX, msix::LEN);
        self.set16(at + msix::CONTROL, vectors - 1);
        self.allow16(at + msix::CONTROL, msix::MASKED | msix::ENABLE);
        self.set32(at + msix::TABLE, table | u32::from(bar));
        self.set32(at + msix::PENDING, pending | u32::from(bar));
    }

    fn vectors(&self) -> usize {
        self.capability(MSIX).map_or(0, |at| usize::from(self.get16(at + msix::CONTROL) & 0x7ff) + 1)
    }

    fn msix_control(&self) -> u16 {
        self.capability(MSIX).map_or(0, |at| self.get16(at + msix::CONTROL))
    }

    /// Where the MSI capability is, if MSI is on.
    fn msi_on(&self) -> Option<u8> {
        self.capability(MSI).filter(|at| self.get16(at + msi::CONTROL) & msi::ENABLE != 0)
    }

    fn message_mode(&self) -> bool {
        self.msi_on().is_some() || self.msix_control() & msix::ENABLE != 0
    }
}

impl PciBus {
    /// A function at `devfn` with this configuration space, which has its capabilities already, on this bus's wires.
    pub fn function(&self, devfn: DevFn, config: ConfigSpace) -> Function {
        let pin = match config.get8(reg::INTERRUPT_PIN) {
            0 => Irq::unconnected(),
            n => self.intx(devfn, n - 1),
        };
        let vectors = config.vectors();
        let state =
            State { asserted: false, table: vec![MASKED_ENTRY; vectors], pending: vec![false; vectors] };
        Function {
            config: Mutex::new(config),
            dma: Dma::gated(self.memory.clone()),
            pin,
            messages: self.messages(),
            state: Mutex::new(state),
            rom: None,
        }
    }
}

/// An entry of the table after a reset: masked.
const MASKED_ENTRY: [u32; 4] = [0, 0, 0, 1];

impl Function {
    /// Its expansion ROM, for whose BAR the bus answers.
    pub fn rom(&self) -> Option<&Arc<OptionRom>> {
        self.rom.as_ref()
    }

    /// Gives it an expansion ROM, before it is plugged in.
    pub fn set_rom(&mut self, rom: Option<Arc<OptionRom>>) {
        self.rom = rom;
    }

    /// Its configuration space.
    pub fn config(&self) -> &Mutex<ConfigSpace> {
        &self.config
    }

    /// Its way into guest memory.
    pub fn dma(&self) -> &Dma {
        &self.dma
    }

    /// What the device wants of its INTx pin.
    pub fn set_interrupt(&self, asserted: bool) {
        let mut state = self.state.lock();
        state.asserted = asserted;
        self.drive(&state);
    }

    /// Whether interrupts are messages.
    pub fn has_messages(&self) -> bool {
        self.config.lock().message_mode()
    }

    /// Sends the message of a vector, if interrupts are messages; whether they are.
    pub fn notify(&self, vector: u16) -> bool {
        let mut state = self.state.lock();
        let n = usize::from(vector);
        if self.config.lock().msix_control() & msix::ENABLE != 0 {
            if let Some(pending) = state.pending.get_mut(n) {
                *pending = true;
                self.send_pending(&mut state);
            }
            return true;
        }
        let message = {
            let mut c = self.config.lock();
            let Some(at) = c.msi_on() else { return false };
            // Vectors that were not granted share the last one.
            let n = vector & ((1 << (c.get16(at + msi::CONTROL) >> 4 & 7).min(5)) - 1);
            let pending = c.get32(at + msi::PENDING) | 1 << n;
            for (i, byte) in pending.to_le_bytes().into_iter().enumerate() {
                c.change8(at + msi::PENDING + i as u8, 0xff, byte);
            }
            Self::msi_message(&mut c)
        };
        self.send_all(message);
        true
    }

    /// Messages whose pending bit is set and that are not masked; they do not wait any more.
    fn msi_message(c: &mut ConfigSpace) -> Vec<(u64, u32)> {
        let Some(at) = c.msi_on() else { return Vec::new() };
        let (pending, mask) = (c.get32(at + msi::PENDING), c.get32(at + msi::MASK));
        for (i, byte) in (pending & mask).to_le_bytes().into_iter().enumerate() {
            c.change8(at + msi::PENDING + i as u8, 0xff, byte);
        }
        let address = u64::from(c.get32(at + msi::ADDRESS)) | u64::from(c.get32(at + msi::ADDRESS + 4)) << 32;
        let granted = (1_u32 << (c.get16(at + msi::CONTROL) >> 4 & 7).min(5)) - 1;
        let data = u32::from(c.get16(at + msi::DATA));
        let due = pending & !mask;
        (0..32).filter(|n| due >> n & 1 != 0).map(|n| (address, data & !granted | n & granted)).collect()
    }

    fn send_all(&self, messages: Vec<(u64, u32)>) {
        messages.into_iter().for_each(|(address, data)| self.send(address, data));
    }

    fn send(&self, address: u64, data: u32) {
        if !self.dma.is_enabled() {
            tracing::debug!("a device that may not master the bus has lost a message");
        } else if address >> 20 == 0xfee {
            self.messages.msi(address, data);
        } else {
            // It is a write to memory, wherever that is.
            let _ = self.dma.write(address, &data.to_le_bytes());
        }
    }

    /// Sends what waits in the table and is not masked.
    fn send_pending(&self, state: &mut State) {
        let control = self.config.lock().msix_control();
        if control & msix::ENABLE == 0 || control & msix::MASKED != 0 {
            return;
        }
        let State { table, pending, .. } = state;
        for ([low, high, data, mask], waits) in table.iter().zip(pending) {
            if *waits && mask & 1 == 0 {
                *waits = false;
                self.send(u64::from(*low & !3) | u64::from(*high) << 32, *data);
            }
        }
    }

    /// Drives the pin, and shows in the status register what it is to be.
    fn drive(&self, state: &State) {
        let level = self.level(state);
        self.pin.set(level);
    }

    fn level(&self, state: &State) -> bool {
        let mut c = self.config.lock();
        let shown = if state.asserted { status::INTERRUPT } else { 0 };
        c.change8(reg::STATUS, status::INTERRUPT, shown);
        state.asserted && c.get16(reg::COMMAND) & command::INTERRUPT_DISABLE == 0 && !c.message_mode()
    }

    /// Has gate, pin and messages follow the configuration space. The bus calls it after each write.
    pub fn follow(&self) {
        let wanted = || self.config.lock().get16(reg::COMMAND) & command::MASTER != 0;
        let mut on = wanted();
        loop {
            self.dma.enable(on);
            // Another vCPU may have written it meanwhile.
            let now = wanted();
            if now == on {
                break;
            }
            on = now;
        }
        let mut state = self.state.lock();
        self.drive(&state);
        let messages = Self::msi_message(&mut self.config.lock());
        self.send_all(messages);
        self.send_pending(&mut state);
    }

    /// A read of the MSI-X table, at an offset in it.
    pub fn table_read(&self, offset: u64, size: u8) -> u64 {
        let state = self.state.lock();
        crate::bus::read_bytes64(size, |i| {
            let at = offset + u64::from(i);
            let word =
                state.table.get((at / msix::ENTRY) as usize).map(|e| e[(at % msix::ENTRY / 4) as usize]);
            word.map_or(0, |w| w.to_le_bytes()[(at % 4) as usize])
        })
    }

    /// A write to the table: of 32 or 64 bits, aligned; others are ignored (6.8.3).
    pub fn table_write(&self, offset: u64, size: u8, value: u64) {
        if !matches!(size, 4 | 8) || !offset.is_multiple_of(size.into()) {
            return;
        }
        let mut state = self.state.lock();
        for (i, word) in
            [value as u32, (value >> 32) as u32].into_iter().enumerate().take(usize::from(size / 4))
        {
            let at = offset + 4 * i as u64;
            if let Some(entry) = state.table.get_mut((at / msix::ENTRY) as usize) {
                entry[(at % msix::ENTRY / 4) as usize] = word;
            }
        }
        self.send_pending(&mut state);
    }

    /// A read of the pending bits, at an offset in their array.
    pub fn pending_read(&self, offset: u64, size: u8) -> u64 {
        let state = self.state.lock();
        crate::bus::read_bytes64(size, |i| {
            let first = (offset + u64::from(i)) as usize * 8;
            let bit = |n: usize| u8::from(state.pending.get(first + n).is_some_and(|p| *p)) << n;
            (0..8).map(bit).sum()
        })
    }

    /// RESET: transfers are cut off, the pin is let go, the configuration space is as after power-on.
    pub fn reset(&self) {
        self.config.lock().reset();
        {
            let mut state = self.state.lock();
            state.asserted = false;
            state.table.fill(MASKED_ENTRY);
            state.pending.fill(false);
        }
        self.follow();
    }

    /// What is saved of it.
    pub fn save(&self) -> FunctionV1 {
        let state = self.state.lock();
        FunctionV1 {
            config: self.config.lock().save(),
            asserted: state.asserted,
            table: state.table.clone(),
            pending: state.pending.clone(),
        }
    }

    /// Takes on what was saved of such a function. No pin moves, no message is sent.
    ///
    /// # Errors
    /// It is another function's.
    pub fn restore(&self, saved: FunctionV1) -> Result<(), Invalid> {
        let mut state = self.state.lock();
        if saved.table.len() != state.table.len() || saved.pending.len() != state.pending.len() {
            return Err(Invalid("the MSI-X table"));
        }
        self.config.lock().restore(saved.config)?;
        (state.asserted, state.table, state.pending) = (saved.asserted, saved.table, saved.pending);
        self.pin.restore(self.level(&state));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Pc, Wires};
    use super::super::{BarTarget, PciDevice};
    use super::*;
    use crate::bus::Mmio;

    struct Card(Function);
    impl PciDevice for Card {
        fn config(&self) -> &Mutex<ConfigSpace> {
            self.0.config()
        }
        fn function(&self) -> Option<&Function> {
            Some(&self.0)
        }
        fn bar(&self, _: usize) -> BarTarget {
            BarTarget::Memory(Arc::new(Nothing))
        }
    }
    struct Nothing;
    impl Mmio for Nothing {
        fn read(&self, _: u64, _: u8) -> u64 {
            0
        }
        fn write(&self, _: u64, _: u8, _: u64) {}
    }

    const AT: DevFn = DevFn::new(3, 0);
    const UP: (u64, u32) = (0, 1);
    const DOWN: (u64, u32) = (0, 0);

    struct Test {
        pc: Pc,
        card: Arc<Card>,
        log: Arc<Wires>,
    }

    fn setup(prepare: impl FnOnce(&mut ConfigSpace)) -> Test {
        let pc = Pc::new();
        let log = Wires::on(&pc.bus);
        let mut config = ConfigSpace::new(0x1234, 0x5678, 0xff_0000, 0);
        config.set8(reg::INTERRUPT_PIN, 1);
        config.add_bar(0, BarKind::Memory32 { prefetchable: false }, 0x1000);
        prepare(&mut config);
        let card = Arc::new(Card(pc.bus.function(AT, config)));
        pc.bus.attach(AT, card.clone());
        Test { pc, card, log }
    }

    impl Test {
        fn command(&self, value: u16) {
            self.pc.write(AT, reg::COMMAND, 2, value.into());
        }
        fn took(&self) -> Vec<(u64, u32)> {
            self.log.take()
        }
    }

    #[test]
    fn the_pin_follows_the_device_unless_software_has_disabled_it() {
        let t = setup(|_| {});
        t.card.0.set_interrupt(true);
        t.command(command::INTERRUPT_DISABLE);
        assert_eq!(t.took(), [UP, DOWN]);
        assert_eq!(t.pc.read(AT, reg::STATUS, 1) & 8, 8, "the status shows it all the same");
        t.command(0);
        assert!(!t.card.0.notify(0), "there are no messages");
        t.card.0.reset();
        assert_eq!((t.took(), t.pc.read(AT, reg::STATUS, 1) & 8), (vec![UP, DOWN], 0));
    }

    #[test]
    fn transfers_need_bus_mastering_and_end_with_a_reset() {
        let t = setup(|_| {});
        let dma = t.card.0.dma();
        assert!(dma.write(0x1000, &[1]).is_err());
        t.command(command::MASTER);
        dma.write(0x1000, &[1]).unwrap();
        t.card.0.reset();
        assert!(dma.write(0x1000, &[2]).is_err());
        assert_eq!(t.pc.memory.phys_read(0x1000, 1), 1);
    }

    #[test]
    fn msi_vectors_share_an_address_and_wait_while_masked() {
        let t = setup(|c| c.add_msi(4));
        let at = t.pc.read(AT, reg::CAPABILITIES, 1) as u8;
        assert_eq!(t.pc.read(AT, at, 4), 0x0184_0005, "4 vectors, 64-bit addresses, masks");
        t.pc.write(AT, at + msi::ADDRESS, 4, 0xfee0_1003);
        t.pc.write(AT, at + msi::DATA, 2, 0x4041);
        t.card.0.set_interrupt(true);
        t.pc.write(AT, at + msi::CONTROL, 2, 0x21);
        assert_eq!(t.took(), [UP, DOWN], "messages take the pin's place");
        assert!(t.card.0.notify(2));
        assert_eq!(t.took(), [], "no bus mastering, no message");
        t.command(command::MASTER);
        t.card.0.notify(2);
        t.card.0.notify(7);
        assert_eq!(t.took(), [(0xfee0_1000, 0x4042), (0xfee0_1000, 0x4043)]);
        t.pc.write(AT, at + msi::MASK, 4, 0x2);
        t.card.0.notify(1);
        t.card.0.notify(1);
        assert_eq!((t.took(), t.pc.read(AT, at + msi::PENDING, 4)), (vec![], 2));
        t.pc.write(AT, at + msi::MASK, 4, 0);
        assert_eq!((t.took(), t.pc.read(AT, at + msi::PENDING, 4)), (vec![(0xfee0_1000, 0x4041)], 0));
        t.pc.write(AT, at + msi::CONTROL, 2, 0);
        assert_eq!(t.took(), [UP]);
    }

    #[test]
    fn a_message_elsewhere_is_a_write_to_memory() {
        let t = setup(|c| c.add_msi(1));
        let at = t.pc.read(AT, reg::CAPABILITIES, 1) as u8;
        t.pc.write(AT, at + msi::ADDRESS, 4, 0x8000);
        t.pc.write(AT, at + msi::DATA, 2, 0xabcd);
        t.pc.write(AT, at + msi::CONTROL, 2, 1);
        t.command(command::MASTER);
        t.card.0.notify(0);
        assert_eq!((t.took(), t.pc.memory.phys_read(0x8000, 4)), (vec![], 0xabcd));
    }

    #[test]
    fn an_msix_vector_has_an_entry_of_its_own_and_waits_while_masked() {
        let t = setup(|c| c.add_msix(3, 0, 0, 0x800));
        let (f, at) = (&t.card.0, t.pc.read(AT, reg::CAPABILITIES, 1) as u8);
        assert_eq!((t.pc.read(AT, at, 4), t.pc.read(AT, at + 8, 4)), (0x0002_0011, 0x800));
        assert_eq!(f.table_read(0x2c, 4), 1, "masked after a reset");
        for n in 0..3 {
            f.table_write(16 * n, 8, 0xfee0_0000 + (n << 12));
            f.table_write(16 * n + 8, 4, 0x30 + n);
        }
        f.table_write(12, 4, 0);
        f.table_write(16 + 12, 2, 0);
        t.command(command::MASTER);
        t.pc.write(AT, at + 2, 2, 0xc000);
        assert!(f.notify(0) && f.notify(1) && f.notify(9));
        assert_eq!((t.took(), f.pending_read(0, 8)), (vec![], 3), "all are masked by the function");
        t.pc.write(AT, at + 2, 2, 0x8000);
        assert_eq!((t.took(), f.pending_read(0, 8)), (vec![(0xfee0_0000, 0x30)], 2));
        f.table_write(16 + 8, 8, 0x31);
        assert_eq!((t.took(), f.pending_read(0, 1)), (vec![(0xfee0_1000, 0x31)], 0));
        assert_eq!(
            (f.table_read(0x10, 8), f.table_read(0x12, 2), f.table_read(0x30, 4)),
            (0xfee0_1000, 0xfee0, 0)
        );
    }

    #[test]
    fn a_restored_function_moves_no_pin_and_goes_on() {
        let one = setup(|c| c.add_msix(2, 0, 0, 0x800));
        one.command(command::MASTER);
        one.card.0.set_interrupt(true);
        one.card.0.table_write(0, 8, 0xfee0_5000);
        let other = setup(|c| c.add_msix(2, 0, 0, 0x800));
        other.card.0.restore(one.card.0.save()).unwrap();
        other.pc.bus.follow();
        assert_eq!(other.took(), []);
        other.card.0.set_interrupt(false);
        assert_eq!((other.took(), other.card.0.table_read(0, 8)), (vec![DOWN], 0xfee0_5000));
        other.card.0.dma().write(0, &[1]).unwrap();
        let third = setup(|c| c.add_msix(3, 0, 0, 0x800));
        assert!(third.card.0.restore(one.card.0.save()).is_err());
    }
}
