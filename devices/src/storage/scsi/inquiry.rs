//! INQUIRY of logical units on a SCSI bus (SPC-3, 6.4 and 7.6; SBC-3, 6.5).
use super::unit::{Identity, Kind};
use super::{Outcome, Sense, cut, disk, field};

/// Peripheral qualifier and type of a unit that is not there.
pub const NO_UNIT: u8 = 0x7f;

fn padded(text: &str, len: usize) -> impl Iterator<Item = u8> {
    text.bytes().chain(std::iter::repeat(b' ')).take(len)
}

/// Standard data: version SPC-3, ordered and queued commands.
fn standard(peripheral: u8, removable: bool, identity: &Identity) -> Vec<u8> {
    let head = [peripheral, u8::from(removable) << 7, 5, 0x12, 31, 0, 0, 0x12];
    let names =
        padded(&identity.vendor, 8).chain(padded(&identity.product, 16)).chain(padded(&identity.revision, 4));
    head.into_iter().chain(names).collect()
}

/// A unit's answer.
pub fn inquiry(cdb: &[u8; 16], kind: &Kind, identity: &Identity) -> Outcome {
    let most = field::<2>(cdb, 3);
    let (peripheral, removable) = match kind {
        Kind::Cd => (5, true),
        Kind::Disk(geometry) => (0, geometry.removable),
    };
    if cdb[1] & 1 == 0 {
        if cdb[2] != 0 {
            return Outcome::Check(Sense::FIELD_IN_CDB);
        }
        return cut(standard(peripheral, removable, identity), most);
    }
    let page = match (cdb[2], kind) {
        (0x00, _) => {
            let mut pages = vec![0x00];
            if !identity.serial.is_empty() {
                pages.push(0x80);
            }
            pages.push(0x83);
            if matches!(kind, Kind::Disk(_)) {
                pages.extend([0xb0, 0xb1, 0xb2]);
            }
            pages
        }
        (0x80, _) if !identity.serial.is_empty() => identity.serial.bytes().take(36).collect(),
        (0x83, _) => identification(identity),
        (0xb0, Kind::Disk(geometry)) => limits(geometry),
        (0xb1, Kind::Disk(_)) => {
            // Rotations are not told.
            let mut page = vec![0; 60];
            page[..2].copy_from_slice(&identity.rotation_rate.to_be_bytes());
            page
        }
        // UNMAP, WRITE SAME of 16 and 10 bytes; thin if room is given back.
        (0xb2, Kind::Disk(_)) => vec![0, 0xe0, if identity.thin { 2 } else { 1 }, 0],
        _ => return Outcome::Check(Sense::FIELD_IN_CDB),
    };
    let head = [peripheral, cdb[2], 0, page.len() as u8];
    cut([&head[..], &page].concat(), most)
}

/// The answer for a logical unit that a target has not.
pub fn of_none(cdb: &[u8; 16], identity: &Identity) -> Outcome {
    if cdb[1] & 1 != 0 || cdb[2] != 0 {
        return Outcome::Check(Sense::FIELD_IN_CDB);
    }
    cut(standard(NO_UNIT, false, identity), field::<2>(cdb, 3))
}

/// Device identification: the name in ASCII, and the world wide name if there is one.
fn identification(identity: &Identity) -> Vec<u8> {
    let name: Vec<u8> = identity.device_id.bytes().take(247).collect();
    let mut page = vec![2, 0, 0, name.len() as u8];
    page.extend(name);
    if let Some(wwn) = identity.wwn {
        page.extend([1, 3, 0, 8]);
        page.extend(wwn.to_be_bytes());
    }
    page.truncate(255);
    page
}

/// Block limits.
fn limits(geometry: &disk::Geometry) -> Vec<u8> {
    let mut page = vec![0; 60];
    let mut put = |at: usize, bytes: &[u8]| page[at - 4..at - 4 + bytes.len()].copy_from_slice(bytes);
    let most = (disk::UNMAP_BYTES / u64::from(geometry.block)) as u32;
    // WRITE SAME says how many.
    put(4, &[1]);
    put(8, &((0x7fff_ffff / geometry.block).to_be_bytes()));
    put(20, &most.to_be_bytes());
    put(24, &disk::UNMAP_DESCRIPTORS.to_be_bytes());
    put(28, &(4096 / geometry.block).max(1).to_be_bytes());
    put(36, &u64::from(most).to_be_bytes());
    page
}
