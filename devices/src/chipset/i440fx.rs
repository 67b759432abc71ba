//! The i440FX host bridge (82441FX PMC), 8086:1237 at 00:00.0.
//!
//! Subset: identification and the registers that say what the first MiB shows. PAM0-PAM6 (59h-5Fh) choose,
//! for each of 13 regions between C0000h and FFFFFh, whether reads and writes go to RAM or to the ROM and the
//! bus below it; the machine is told of changes and remaps. SMRAM (72h) is kept with its lock bit. On purpose
//! absent: DRAM geometry (DRB, 60h-67h, is storage only), error reporting, the memory buffer's registers.
//!
//! Source: Intel 82440FX PMC data sheet (290549-001), chapter 3.
use super::pam::{self, Pam, Shadow};
use crate::device::{Device, Invalid, Reset};
use crate::pci::config::{ConfigV1, reg};
use crate::pci::{ConfigSpace, DevFn, PciDevice};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

/// Where the bridge is.
pub const DEVFN: DevFn = DevFn::new(0, 0);

/// Programmable attribute map registers (3.2.18).
pub const PAM0: u8 = 0x59;
/// System management RAM control (3.2.23).
const SMRAM: u8 = 0x72;
/// SMRAM bits: open, closed, locked, enabled.
const D_OPEN: u8 = 1 << 6;
const D_LCK: u8 = 1 << 4;

/// The host bridge.
pub struct I440fx {
    config: Mutex<ConfigSpace>,
    pam: Pam,
}

impl I440fx {
    /// A bridge. `on_shadow` is called for each region whose attributes change, on the thread that writes;
    /// all regions start with neither reads nor writes going to RAM.
    pub fn new(on_shadow: impl Fn(Shadow) + Send + Sync + 'static) -> Self {
        let mut c = ConfigSpace::new(0x8086, 0x1237, 0x06_0000, 0x02);
        // Memory and master enables are fixed; the bridge answers no I/O of its own.
        c.set16(reg::COMMAND, 0x0006);
        c.allow16(reg::COMMAND, 0x0140);
        // Fast back-to-back capable: no; DEVSEL# medium.
        c.set16(reg::STATUS, 0x0280);
        c.allow8(reg::CACHE_LINE_SIZE, 0);
        c.allow8(reg::INTERRUPT_LINE, 0);
        // PMC configuration, deturbo counter, DBX buffer control.
        c.allow16(0x50, 0xffff);
        c.allow8(0x52, 0xff);
        c.allow8(0x53, 0xff);
        // DRAM timing and control, then PAM, then DRAM row boundaries: storage.
        c.allow16(0x55, 0xffff);
        c.allow8(0x57, 0xff);
        c.set8(0x57, 0x01);
        c.allow8(0x58, 0xff);
        pam::allow(&mut c, PAM0);
        for i in 0x60..0x68 {
            c.allow8(i, 0xff);
        }
        c.allow8(0x68, 0xc0);
        c.allow8(0x70, 0xff);
        c.allow8(0x71, 0x1f);
        c.set8(SMRAM, 0x02);
        c.allow8(SMRAM, 0x78);
        Self { config: Mutex::new(c), pam: Pam::new(PAM0, on_shadow) }
    }

    /// The attributes of all regions, in the order of their addresses.
    #[cfg(test)]
    fn shadows(&self) -> [Shadow; super::pam::REGIONS] {
        self.pam.shadows(&self.config.lock())
    }

    /// Whether SMRAM at A0000h is open to everyone (D_OPEN).
    pub fn smram_open(&self) -> bool {
        self.config.lock().get8(SMRAM) & D_OPEN != 0
    }

    fn change<R>(&self, f: impl FnOnce(&mut ConfigSpace) -> R) -> R {
        self.pam.change(&self.config, f)
    }
}

impl PciDevice for I440fx {
    fn config(&self) -> &Mutex<ConfigSpace> {
        &self.config
    }

    fn config_write(&self, offset: u8, size: u8, value: u32) {
        self.change(|c| {
            let locked = c.get8(SMRAM) & D_LCK != 0;
            let smram = c.get8(SMRAM);
            c.write(offset, size, value);
            if locked {
                // Once locked the register is read-only and closed until a reset (3.2.23).
                c.change8(SMRAM, 0xff, smram);
            } else if c.get8(SMRAM) & D_LCK != 0 {
                c.change8(SMRAM, D_OPEN, 0);
            }
        });
    }
}

/// What is saved of a host bridge.
#[derive(Serialize, Deserialize)]
pub struct I440fxV1 {
    config: ConfigV1,
}

impl Device for I440fx {
    type State = I440fxV1;
    const KIND: &'static str = "i440FX";

    /// The bridge has kept its power when the machine wakes.
    fn reset(&self, why: Reset) {
        if why == Reset::Board {
            self.change(ConfigSpace::reset);
        }
    }

    fn save(&self) -> I440fxV1 {
        I440fxV1 { config: self.config.lock().save() }
    }

    fn restore(&self, I440fxV1 { config }: I440fxV1) -> Result<(), Invalid> {
        self.change(|c| c.restore(config))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pci::testing::Pc;
    use std::sync::Arc;

    fn setup() -> (Pc, Arc<I440fx>, Arc<Mutex<Vec<Shadow>>>) {
        let pc = Pc::new();
        let log = Arc::new(Mutex::new(Vec::new()));
        let theirs = log.clone();
        let bridge = Arc::new(I440fx::new(move |s| theirs.lock().push(s)));
        pc.bus.attach(DEVFN, bridge.clone());
        (pc, bridge, log)
    }

    #[test]
    fn it_is_an_intel_host_bridge() {
        let (pc, _, _) = setup();
        assert_eq!((pc.read(DEVFN, 0, 4), pc.read(DEVFN, 8, 4)), (0x1237_8086, 0x0600_0002));
    }

    #[test]
    fn pam_registers_shadow_their_regions() {
        let (pc, bridge, log) = setup();
        pc.write(DEVFN, 0x59, 1, 0x30);
        pc.write(DEVFN, 0x5a, 1, 0x12);
        assert_eq!(
            *log.lock(),
            [
                Shadow { base: 0xf_0000, len: 0x1_0000, read_ram: true, write_ram: true },
                Shadow { base: 0xc_0000, len: 0x4000, read_ram: false, write_ram: true },
                Shadow { base: 0xc_4000, len: 0x4000, read_ram: true, write_ram: false },
            ]
        );
        log.lock().clear();
        pc.write(DEVFN, 0x5c, 4, u32::MAX);
        assert_eq!(log.lock().len(), 8);
        assert_eq!(pc.read(DEVFN, 0x5c, 4), 0x3333_3333);
        assert_eq!(bridge.shadows()[11].base, 0xe_c000);
        log.lock().clear();
        bridge.reset(Reset::Board);
        assert_eq!(log.lock().len(), 11);
        assert!(log.lock().iter().all(|s| !s.read_ram && !s.write_ram));
    }

    #[test]
    fn a_locked_smram_stays_closed() {
        let (pc, bridge, _) = setup();
        pc.write(DEVFN, SMRAM, 1, 0x4a);
        assert!(bridge.smram_open());
        pc.write(DEVFN, SMRAM, 1, 0x1a);
        pc.write(DEVFN, SMRAM, 1, 0x4a);
        assert!(!bridge.smram_open());
        assert_eq!(pc.read(DEVFN, SMRAM, 1), 0x1a);
    }
}
