//! Cylinders, heads and sectors.
use super::SECTOR;

/// A translation of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Cylinders.
    pub cylinders: u32,
    /// Heads.
    pub heads: u32,
    /// Sectors of a track.
    pub sectors: u32,
}

impl Geometry {
    /// The default translation of a disk of so many sectors: 16 heads, 63 sectors, up to 16,383 cylinders
    /// (ATA/ATAPI-6, 6.2).
    pub fn of_size(sectors: u64) -> Self {
        let cylinders = (sectors / (16 * 63)).clamp(2, 16_383) as u32;
        Self { cylinders, heads: 16, sectors: 63 }
    }

    /// What its partitions were made with, as their last heads and sectors have it, if that can be a disk's own
    /// geometry; else the default translation.
    pub fn guess(sectors: u64, first_sector: &[u8]) -> Self {
        let default = Self::of_size(sectors);
        match Self::of_partitions(sectors, first_sector) {
            Some(g) if g.heads <= 16 => g,
            _ => default,
        }
    }

    fn of_partitions(sectors: u64, first_sector: &[u8]) -> Option<Self> {
        let table = first_sector.get(..SECTOR as usize).filter(|s| s[510..] == [0x55, 0xaa])?;
        table[446..510].chunks_exact(16).find_map(|entry| {
            let count = u32::from_le_bytes([entry[12], entry[13], entry[14], entry[15]]);
            let (heads, per_track) = (u32::from(entry[5]) + 1, u32::from(entry[6] & 63));
            if count == 0 || entry[5] == 0 || per_track == 0 {
                return None;
            }
            let cylinders = sectors / u64::from(heads * per_track);
            let fits = (1..=16_383).contains(&cylinders);
            fits.then_some(Self { cylinders: cylinders as u32, heads, sectors: per_track })
        })
    }

    /// Sectors in all.
    pub fn capacity(self) -> u32 {
        self.cylinders.saturating_mul(self.heads).saturating_mul(self.sectors)
    }

    /// The address of a sector, if there is such a one.
    pub fn lba(self, cylinder: u32, head: u32, sector: u32) -> Option<u64> {
        let there = head < self.heads && (1..=self.sectors).contains(&sector);
        let track = u64::from(cylinder) * u64::from(self.heads) + u64::from(head);
        there.then(|| track * u64::from(self.sectors) + u64::from(sector) - 1)
    }

    /// Cylinder, head and sector of an address.
    pub fn chs(self, lba: u64) -> (u32, u32, u32) {
        let (heads, sectors) = (u64::from(self.heads.max(1)), u64::from(self.sectors.max(1)));
        let track = lba / sectors;
        ((track / heads) as u32, (track % heads) as u32, (lba % sectors) as u32 + 1)
    }
}
