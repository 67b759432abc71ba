//! Flash chips with the firmware and its variables (`if=pflash`): unit 0 ends at 4 GiB, unit 1 below it.
use super::board::Board;
use super::drives::open_image;
use crate::config::{Config, Drive, Interface};
use anyhow::{Context, bail};
use mynah_devices::storage::pflash::{BLOCK, Pflash};

/// Units that there are.
const UNITS: u32 = 2;
/// Bytes of all chips together, as on QEMU's boards.
const MOST: u64 = 8 << 20;
/// Bytes of the first chip that show below 1 MiB.
const SHOWN: u64 = 128 << 10;

fn unit(cfg: &Config, unit: u32) -> Option<&Drive> {
    cfg.drives.iter().find(|d| d.interface == Some(Interface::Pflash) && d.index == Some(unit))
}

/// Whether the firmware is in flash.
pub fn is_used(cfg: &Config) -> bool {
    unit(cfg, 0).is_some()
}

/// What of the firmware in flash shows below 1 MiB, whole pages, if it is in flash.
///
/// # Errors
/// It cannot be read, or the chips are none that this board has.
pub fn legacy_part(cfg: &Config) -> anyhow::Result<Option<Vec<u8>>> {
    let Some(drive) = unit(cfg, 0) else {
        if let Some(second) = unit(cfg, 1) {
            bail!("{}: there is flash unit 1 and no unit 0", second.shown());
        }
        return Ok(None);
    };
    if !cfg.machine.board.pci {
        bail!("{}: the board '{}' has no flash", drive.shown(), cfg.machine.board.name);
    }
    let Some(file) = &drive.file else { bail!("{}: a file= is missing", drive.shown()) };
    // For reading alone, and closed again: it is opened for the machine later.
    let image = open_image(&Drive { read_only: true, ..drive.clone() }, file)?;
    let size = image.size();
    if size == 0 || !size.is_multiple_of(BLOCK) {
        bail!(
            "{}: a flash image has a multiple of {BLOCK} bytes, and some; this one has {size}",
            drive.shown()
        );
    }
    let len = size.min(SHOWN);
    let mut bytes = vec![0; len as usize];
    image.read(size - len, &mut bytes).with_context(|| drive.shown())?;
    Ok(Some(bytes))
}

/// Plugs the chips in. The board's drives are open.
///
/// # Errors
/// An image cannot be read, or has another size than a chip.
pub fn plug(cfg: &Config, board: &mut Board) -> anyhow::Result<()> {
    let mut end = 1 << 32;
    for n in 0..UNITS {
        let Some(wanted) = unit(cfg, n) else { continue };
        let Some(drive) = board.drives.take(&wanted.id) else {
            bail!("{}: another device uses it", wanted.shown());
        };
        if (1u64 << 32) - end + drive.size() > MOST {
            bail!("{}: flash has {MOST} bytes at most, all units together", wanted.shown());
        }
        let chip = Pflash::new(drive, board.memory.clone(), end).with_context(|| wanted.shown())?;
        end = chip.base();
        board.devices.plug("main-system-bus", format!("system.flash{n}"), chip.clone());
        board.flash.push(chip);
    }
    Ok(())
}
