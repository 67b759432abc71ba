//! Programmable attribute maps: who answers in the upper part of the first MiB.
//!
//! Seven registers of a host bridge choose, for each of 13 regions between C0000h and FFFFFh, whether reads and writes
//! go to RAM or to the ROM and the bus below it. i440FX and Q35 have them at other offsets, and alike else.
//!
//! Source: Intel 82440FX PMC data sheet (290549-001), 3.2.18; 3 Series Express Chipset Family (316966-002), 5.1.17.
use crate::pci::ConfigSpace;
use parking_lot::Mutex;

/// A region of the first MiB, and who answers in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shadow {
    /// First address.
    pub base: u32,
    /// Length in bytes.
    pub len: u32,
    /// Reads come from RAM (else from ROM or the bus).
    pub read_ram: bool,
    /// Writes go to RAM (else to the bus).
    pub write_ram: bool,
}

/// Regions that PAM controls.
pub const REGIONS: usize = 13;

/// Nothing of any region comes from RAM, as after power-on.
pub fn power_on() -> [Shadow; REGIONS] {
    regions(|_| 0)
}

/// The regions in the order of addresses, by the value of each of the seven registers.
fn regions(register: impl Fn(u8) -> u8) -> [Shadow; REGIONS] {
    std::array::from_fn(|i| {
        // Twelve regions of 16 KiB from C0000h, a nibble of PAM1-PAM6 each; then F0000h with PAM0's high nibble.
        let (base, len, attributes) = if i < 12 {
            (0xc_0000 + 0x4000 * i as u32, 0x4000, register(1 + i as u8 / 2) >> (4 * (i % 2)))
        } else {
            (0xf_0000, 0x1_0000, register(0) >> 4)
        };
        Shadow { base, len, read_ram: attributes & 1 != 0, write_ram: attributes & 2 != 0 }
    })
}

/// The registers from `first` on can be written.
pub(super) fn allow(c: &mut ConfigSpace, first: u8) {
    c.allow8(first, 0x30);
    for i in 1..7 {
        c.allow8(first + i, 0x33);
    }
}

/// The registers of one bridge, and who is told of what changes in them.
pub(super) struct Pam {
    first: u8,
    on_shadow: Box<dyn Fn(Shadow) + Send + Sync>,
}

impl Pam {
    /// Registers from `first` on. `on_shadow` is called for each region whose attributes change.
    pub fn new(first: u8, on_shadow: impl Fn(Shadow) + Send + Sync + 'static) -> Self {
        Self { first, on_shadow: Box::new(on_shadow) }
    }

    /// The attributes of all regions, in the order of their addresses.
    pub fn shadows(&self, c: &ConfigSpace) -> [Shadow; REGIONS] {
        regions(|i| c.get8(self.first + i))
    }

    /// Changes a configuration space, and tells of each region that is another then, without holding the lock.
    pub fn change<R>(&self, config: &Mutex<ConfigSpace>, f: impl FnOnce(&mut ConfigSpace) -> R) -> R {
        let (before, after, result) = {
            let mut c = config.lock();
            let before = self.shadows(&c);
            let result = f(&mut c);
            (before, self.shadows(&c), result)
        };
        for (b, a) in before.into_iter().zip(after) {
            if b != a {
                (self.on_shadow)(a);
            }
        }
        result
    }
}
