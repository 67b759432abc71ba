//! A host adapter's bus: its logical units by target and number.
use super::unit::Unit;
use super::{Outcome, Sense, field, inquiry};
use parking_lot::RwLock;
use std::sync::{Arc, OnceLock, Weak};

const INQUIRY: u8 = 0x12;
const REQUEST_SENSE: u8 = 0x03;
const REPORT_LUNS: u8 = 0xa0;

/// A host adapter, as its units see it.
pub trait HostAdapter: Send + Sync {
    /// Something of a unit has changed, which a command would be told by this sense.
    fn changed(&self, unit: &Unit, why: Sense);
}

/// A bus.
#[derive(Default)]
pub struct ScsiBus {
    /// By target and number.
    units: RwLock<Vec<Arc<Unit>>>,
    adapter: OnceLock<Weak<dyn HostAdapter>>,
}

/// Who a command is for.
pub enum Found {
    /// This unit.
    Unit(Arc<Unit>),
    /// No unit of a target that there is; one of its units.
    Target(Arc<Unit>),
    /// Nobody.
    Nobody,
}

impl ScsiBus {
    /// Says whose it is. Once.
    pub fn connect(&self, adapter: Weak<dyn HostAdapter>) {
        let _ = self.adapter.set(adapter);
    }

    /// Its units.
    pub fn units(&self) -> Vec<Arc<Unit>> {
        self.units.read().clone()
    }

    /// A place for a unit: as it is asked for, or the first free one.
    pub(super) fn place(&self, target: Option<u8>, lun: Option<u16>) -> Result<(u8, u16), String> {
        let units = self.units.read();
        let free = |t: u8, l: u16| units.iter().all(|u| (u.target, u.lun) != (t, l));
        match (target, lun) {
            (Some(t), Some(l)) if free(t, l) => Ok((t, l)),
            (Some(t), Some(l)) => Err(format!("scsi-id={t},lun={l}: there is another unit")),
            (Some(t), None) => {
                let found = (0..16384).find(|l| free(t, *l)).map(|l| (t, l));
                found.ok_or_else(|| format!("scsi-id={t}: it has no unit left"))
            }
            (None, lun) => {
                let l = lun.unwrap_or(0);
                (0..=255)
                    .find(|t| free(*t, l))
                    .map(|t| (t, l))
                    .ok_or_else(|| "no target is left for it".into())
            }
        }
    }

    /// Plugs a unit in.
    pub fn add(&self, unit: Arc<Unit>) {
        let mut units = self.units.write();
        units.push(unit);
        units.sort_by_key(|u| (u.target, u.lun));
    }

    /// Who a command for this place is for.
    pub fn find(&self, target: u8, lun: u16) -> Found {
        let units = self.units.read();
        if let Some(unit) = units.iter().find(|u| (u.target, u.lun) == (target, lun)) {
            return Found::Unit(unit.clone());
        }
        units.iter().find(|u| u.target == target).map_or(Found::Nobody, |u| Found::Target(u.clone()))
    }

    /// A command for a unit, or for one that a target has not.
    pub fn command(&self, unit: &Unit, there: bool, cdb: &[u8; 16]) -> Outcome {
        match cdb[0] {
            REPORT_LUNS => self.report_luns(unit.target, cdb),
            _ if there => unit.command(cdb),
            INQUIRY => inquiry::of_none(cdb, unit.identity()),
            REQUEST_SENSE => super::cut(Sense::NO_UNIT.fixed(), cdb[4].into()),
            _ => Outcome::Check(Sense::NO_UNIT),
        }
    }

    /// REPORT LUNS (SPC-3, 6.21).
    fn report_luns(&self, target: u8, cdb: &[u8; 16]) -> Outcome {
        const WELL_KNOWN_ONLY: u8 = 1;
        let most = field::<4>(cdb, 6);
        if cdb[2] > 2 || most < 16 {
            return Outcome::Check(Sense::FIELD_IN_CDB);
        }
        let mut luns: Vec<u16> =
            self.units.read().iter().filter(|u| u.target == target).map(|u| u.lun).collect();
        // Unit 0 is there, if only to be asked for the others.
        if !luns.contains(&0) {
            luns.insert(0, 0);
        }
        if cdb[2] == WELL_KNOWN_ONLY {
            luns.clear();
        }
        let mut data = vec![0; 8];
        data[..4].copy_from_slice(&(8 * luns.len() as u32).to_be_bytes());
        for lun in luns {
            // Peripheral device addressing, or flat space.
            let address = if lun < 256 { lun } else { lun | 0x4000 };
            data.extend(address.to_be_bytes());
            data.extend([0; 6]);
        }
        super::cut(data, most)
    }

    /// Something of a unit has changed.
    pub(super) fn changed(&self, unit: &Unit, why: Sense) {
        if let Some(adapter) = self.adapter.get().and_then(Weak::upgrade) {
            adapter.changed(unit, why);
        }
    }
}
