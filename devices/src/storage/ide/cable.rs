//! Where a drive is plugged in, whatever carries its task file: an IDE channel with two places, or the port of a SATA
//! controller with one.
use crate::device::Invalid;
use crate::storage::ata::{Device, DeviceV1};

/// Places for drives, with who moves their data.
pub trait Cable: Send + Sync {
    /// As `bus=` has it: "ide.0".
    fn name(&self) -> String;

    /// Its number among those of its controller, by which drives have their usual serial numbers.
    fn number(&self) -> u8;

    /// How many drives it has places for.
    fn units(&self) -> usize;

    /// How many commands it queues for a disk; 0: none.
    fn queue(&self) -> u8 {
        0
    }

    /// Whether there is no device at this place.
    fn is_free(&self, unit: usize) -> bool;

    /// Plugs a device in; false if there is one, or no such place.
    fn plug(&self, unit: usize, device: Device) -> bool;

    /// Does something to a device, and has follow what that has changed.
    fn with(&self, unit: usize, what: &mut dyn FnMut(&mut Device));

    /// From now on no end of what was asked so far of the device's drive is heard.
    fn forget_requests(&self, unit: usize);

    /// The state of a device.
    ///
    /// # Panics
    /// There is no device at this place, which only who has plugged one in asks for.
    fn save_device(&self, unit: usize) -> DeviceV1;

    /// Takes a device's state on. No pin moves.
    ///
    /// # Errors
    /// It is no state of such a device.
    fn restore_device(&self, unit: usize, saved: DeviceV1) -> Result<(), Invalid>;
}
