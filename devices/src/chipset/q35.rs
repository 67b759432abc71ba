//! The Q35 host bridge (82Q35 GMCH), 8086:29C0 at 00:00.0.
//!
//! ```text
//!   60h PCIEXBAR  configuration space in memory (ECAM), 256, 128 or 64 MiB: a MiB for each bus
//!   90h PAM0-PAM6 what C0000h-FFFFFh shows, as on the i440FX
//!   9Dh SMRAM     9Eh ESMRAMC: kept, with their lock
//! ```
//!
//! There is no SMM, so that neither SMRAM nor TSEG hides memory. On purpose absent: the graphics device and PCI Express
//! port of the chip (00:01.0, 00:02.0), DRAM geometry, the windows MCHBAR, EPBAR and DMIBAR, which are storage; TOLUD
//! and its like read as 0, as on QEMU's board.
//!
//! Locks: `ecam` is held while the window is moved, before those of the address map.
//!
//! Source: Intel 3 Series Express Chipset Family data sheet (316966-002), 5.1.
use super::pam::{self, Pam, Shadow};
use crate::device::{Device, Invalid, Reset};
use crate::pci::config::{ConfigV1, reg};
use crate::pci::ecam::{BUS, Ecam};
use crate::pci::{ConfigSpace, DevFn, PciBus, PciDevice};
use mynah_mmu::PhysMemory;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::sync::{Arc, Weak};

/// Where the bridge is.
pub const DEVFN: DevFn = DevFn::new(0, 0);
/// Where firmware puts configuration space.
pub const ECAM_BASE: u64 = 0xb000_0000;
/// Bytes of it, for 256 buses.
pub const ECAM_LEN: u64 = 256 * BUS;

/// PCI Express register range base address (5.1.15).
pub const PCIEXBAR: u8 = 0x60;
/// PCIEXBAR's enable bit.
pub const PCIEXBAREN: u32 = 1;
/// Programmable attribute map registers (5.1.17).
pub const PAM0: u8 = 0x90;
/// System management RAM control (5.1.28), and its extension.
const SMRAM: u8 = 0x9d;
const ESMRAMC: u8 = 0x9e;
/// SMRAM bits: open, locked.
const D_OPEN: u8 = 1 << 6;
const D_LCK: u8 = 1 << 4;

/// Base and length of the window, and its mapping.
type Window = Option<(u64, u64, u64)>;

/// The host bridge.
pub struct Q35Mch {
    config: Mutex<ConfigSpace>,
    pam: Pam,
    memory: Arc<PhysMemory>,
    bus: Weak<PciBus>,
    ecam: Mutex<Window>,
}

impl Q35Mch {
    /// The bridge of `bus`, which shows its configuration space in that bus's memory. `on_shadow` is called for each
    /// region whose attributes change, on the thread that writes; all start with neither reads nor writes going to RAM.
    pub fn new(bus: &Arc<PciBus>, on_shadow: impl Fn(Shadow) + Send + Sync + 'static) -> Arc<Self> {
        let mut c = ConfigSpace::new(0x8086, 0x29c0, 0x06_0000, 0x00);
        c.set16(reg::COMMAND, 0x0006);
        c.allow16(reg::COMMAND, 0x0100);
        c.set16(reg::STATUS, 0x0080);
        c.allow8(reg::CACHE_LINE_SIZE, 0);
        c.allow8(reg::LATENCY_TIMER, 0);
        c.allow8(reg::INTERRUPT_LINE, 0);
        c.set16(reg::SUBSYSTEM_VENDOR_ID, 0x1af4);
        c.set16(reg::SUBSYSTEM_ID, 0x1100);
        // EPBAR, MCHBAR, DMIBAR: storage.
        for at in [0x40, 0x48, 0x68] {
            c.allow32(at, 0xffff_f001);
            c.allow32(at + 4, 0xf);
        }
        c.set32(PCIEXBAR, ECAM_BASE as u32);
        c.allow32(PCIEXBAR, 0xfc00_0007);
        c.allow32(PCIEXBAR + 4, 0xf);
        pam::allow(&mut c, PAM0);
        c.set8(SMRAM, 0x02);
        c.allow8(SMRAM, 0x78);
        // Caches of SMRAM are fixed as disabled; E_SMERR is cleared by writing 1.
        c.set8(ESMRAMC, 0x38);
        c.allow8(ESMRAMC, 0x87);
        c.allow_clear8(ESMRAMC, 0x40);
        Arc::new(Self {
            config: Mutex::new(c),
            pam: Pam::new(PAM0, on_shadow),
            memory: bus.memory().clone(),
            bus: Arc::downgrade(bus),
            ecam: Mutex::new(None),
        })
    }

    /// The attributes of all regions, in the order of their addresses.
    #[cfg(test)]
    fn shadows(&self) -> [Shadow; super::pam::REGIONS] {
        self.pam.shadows(&self.config.lock())
    }

    /// What firmware leaves: the first MiB is RAM, configuration space is in memory.
    pub fn like_firmware(&self) {
        for i in 0..7 {
            self.config_write(PAM0 + i, 1, 0x33);
        }
        self.config_write(PCIEXBAR + 4, 4, 0);
        self.config_write(PCIEXBAR, 4, ECAM_BASE as u32 | PCIEXBAREN);
    }

    /// Where the configuration space says that configuration space is: base and length.
    fn wanted(&self) -> Option<(u64, u64)> {
        let c = self.config.lock();
        let low = c.get32(PCIEXBAR);
        let base = u64::from(c.get32(PCIEXBAR + 4)) << 32 | u64::from(low & 0xfc00_0000);
        let buses = match low >> 1 & 3 {
            0 => 256,
            1 => 128,
            2 => 64,
            _ => return None,
        };
        // Address bits below the length are the register's, and do not count.
        let len = buses * BUS;
        (low & PCIEXBAREN != 0).then_some((base & !(len - 1), len))
    }

    /// Moves the window to where it is wanted.
    fn remap(&self) {
        let mut ecam = self.ecam.lock();
        let wanted = self.wanted();
        if ecam.map(|(base, len, _)| (base, len)) == wanted {
            return;
        }
        if let Some((_, _, id)) = ecam.take() {
            self.memory.unmap(id);
        }
        *ecam = wanted.map(|(base, len)| {
            let id = self.memory.map_mmio(base, len, Arc::new(Ecam(self.bus.clone())));
            (base, len, id)
        });
    }

    fn change<R>(&self, f: impl FnOnce(&mut ConfigSpace) -> R) -> R {
        let result = self.pam.change(&self.config, f);
        self.remap();
        result
    }
}

impl PciDevice for Q35Mch {
    fn config(&self) -> &Mutex<ConfigSpace> {
        &self.config
    }

    fn config_write(&self, offset: u8, size: u8, value: u32) {
        self.change(|c| {
            let before = [c.get8(SMRAM), c.get8(ESMRAMC)];
            c.write(offset, size, value);
            if before[0] & D_LCK != 0 {
                // Once locked the registers are read-only until a reset.
                c.change8(SMRAM, 0xff, before[0]);
                c.change8(ESMRAMC, 0xff, before[1]);
            } else if c.get8(SMRAM) & D_LCK != 0 {
                c.change8(SMRAM, D_OPEN, 0);
            }
        });
    }
}

/// What is saved of a host bridge.
#[derive(Serialize, Deserialize)]
pub struct Q35MchV1 {
    config: ConfigV1,
}

impl Device for Q35Mch {
    type State = Q35MchV1;
    const KIND: &'static str = "mch";

    /// The bridge has kept its power when the machine wakes.
    fn reset(&self, why: Reset) {
        if why == Reset::Board {
            self.change(ConfigSpace::reset);
        }
    }

    fn save(&self) -> Q35MchV1 {
        Q35MchV1 { config: self.config.lock().save() }
    }

    fn restore(&self, Q35MchV1 { config }: Q35MchV1) -> Result<(), Invalid> {
        self.change(|c| c.restore(config))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pci::testing::Pc;
    use mynah_mmu::Target;

    fn setup() -> (Pc, Arc<Q35Mch>, Arc<Mutex<Vec<Shadow>>>) {
        let pc = Pc::new();
        let log = Arc::new(Mutex::new(Vec::new()));
        let theirs = log.clone();
        let mch = Q35Mch::new(&pc.bus, move |s| theirs.lock().push(s));
        pc.bus.attach(DEVFN, mch.clone());
        (pc, mch, log)
    }

    #[test]
    fn configuration_space_is_in_memory_where_pciexbar_says() {
        let (pc, mch, _) = setup();
        assert_eq!((pc.read(DEVFN, 0, 4), pc.read(DEVFN, 8, 4)), (0x29c0_8086, 0x0600_0000));
        assert!(matches!(pc.memory.lookup(ECAM_BASE), Target::None), "not before it is enabled");
        mch.like_firmware();
        assert_eq!(pc.memory.phys_read(ECAM_BASE, 4), 0x29c0_8086);
        // It may be moved through itself: 64 MiB at C4000000h.
        pc.memory.phys_write(ECAM_BASE + u64::from(PCIEXBAR), 4, 0xc400_0005);
        assert!(matches!(pc.memory.lookup(ECAM_BASE), Target::None));
        assert_eq!(pc.memory.phys_read(0xc400_0000, 2), 0x8086);
        assert!(matches!(pc.memory.lookup(0xc7ff_ffff), Target::Mmio(..)));
        assert!(matches!(pc.memory.lookup(0xc800_0000), Target::None));
        mch.reset(Reset::Board);
        assert!(matches!(pc.memory.lookup(0xc400_0000), Target::None));
    }

    #[test]
    fn pam_registers_shadow_their_regions() {
        let (pc, mch, log) = setup();
        pc.write(DEVFN, PAM0, 1, 0x30);
        pc.write(DEVFN, PAM0 + 6, 1, 0x02);
        let expected = [
            Shadow { base: 0xf_0000, len: 0x1_0000, read_ram: true, write_ram: true },
            Shadow { base: 0xe_8000, len: 0x4000, read_ram: false, write_ram: true },
        ];
        assert_eq!(*log.lock(), expected);
        mch.reset(Reset::Wake);
        assert_eq!(log.lock().len(), 2, "it has kept its power");
        mch.reset(Reset::Board);
        assert!(mch.shadows().iter().all(|s| !s.read_ram && !s.write_ram));
    }

    #[test]
    fn locked_smram_registers_stay_as_they_are() {
        let (pc, _, _) = setup();
        pc.write(DEVFN, SMRAM, 1, 0x5a);
        assert_eq!(pc.read(DEVFN, SMRAM, 1), 0x1a, "locking closes it");
        pc.write(DEVFN, SMRAM, 2, 0x814a);
        assert_eq!(pc.read(DEVFN, SMRAM, 2), 0x381a);
    }
}
