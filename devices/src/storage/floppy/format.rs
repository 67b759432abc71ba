//! Diskettes: how many tracks, heads and sectors an image of so many bytes has, and how fast it turns.
//!
//! As in QEMU an image that is none of the known sizes is taken for the first format of the drive's kind: what is not
//! in it reads as zeros.
use serde::{Deserialize, Serialize};

/// Bytes of a sector.
pub const SECTOR: usize = 512;

/// A kind of drive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DriveKind {
    /// 5.25", 1.2 MB and less.
    D120,
    /// 3.5", 1.44 MB and less.
    D144,
    /// 3.5", 2.88 MB and less.
    D288,
}

impl DriveKind {
    /// Its number in CMOS 10h.
    pub fn cmos(self) -> u8 {
        match self {
            Self::D120 => 2,
            Self::D144 => 4,
            Self::D288 => 5,
        }
    }

    /// By QEMU's name; none for `auto` and what is no name.
    pub fn from_name(name: &str) -> Option<Self> {
        match name {
            "120" => Some(Self::D120),
            "144" => Some(Self::D144),
            "288" => Some(Self::D288),
            _ => None,
        }
    }

    /// The drive for an image of so many bytes; without one the drive that takes most.
    pub fn for_image(bytes: u64) -> Self {
        if bytes == 0 {
            return Self::D288;
        }
        exact(None, bytes).map_or(Self::D144, |f| f.kind)
    }
}

/// Data rates, as the data rate select register has them.
mod rate {
    pub const K500: u8 = 0;
    pub const K300: u8 = 1;
    pub const K250: u8 = 2;
    pub const M1: u8 = 3;
}

/// How a diskette is laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Format {
    kind: DriveKind,
    /// Sectors of a track.
    pub sectors: u8,
    /// Tracks of a side.
    pub tracks: u8,
    /// Sides.
    pub heads: u8,
    /// The data rate it is read at.
    pub rate: u8,
}

const fn of(kind: DriveKind, sectors: u8, tracks: u8, heads: u8, rate: u8) -> Format {
    Format { kind, sectors, tracks, heads, rate }
}

use DriveKind::{D120, D144, D288};

/// All of them; of a kind the usual one comes first.
const FORMATS: [Format; 32] = [
    of(D144, 18, 80, 2, rate::K500),
    of(D144, 20, 80, 2, rate::K500),
    of(D144, 21, 80, 2, rate::K500),
    of(D144, 21, 82, 2, rate::K500),
    of(D144, 21, 83, 2, rate::K500),
    of(D144, 22, 80, 2, rate::K500),
    of(D144, 23, 80, 2, rate::K500),
    of(D144, 24, 80, 2, rate::K500),
    of(D288, 36, 80, 2, rate::M1),
    of(D288, 39, 80, 2, rate::M1),
    of(D288, 40, 80, 2, rate::M1),
    of(D288, 44, 80, 2, rate::M1),
    of(D288, 48, 80, 2, rate::M1),
    of(D144, 9, 80, 2, rate::K250),
    of(D144, 10, 80, 2, rate::K250),
    of(D144, 10, 82, 2, rate::K250),
    of(D144, 10, 83, 2, rate::K250),
    of(D144, 13, 80, 2, rate::K250),
    of(D144, 14, 80, 2, rate::K250),
    of(D120, 15, 80, 2, rate::K500),
    of(D120, 18, 80, 2, rate::K500),
    of(D120, 18, 82, 2, rate::K500),
    of(D120, 18, 83, 2, rate::K500),
    of(D120, 20, 80, 2, rate::K500),
    of(D120, 9, 80, 2, rate::K250),
    of(D120, 11, 80, 2, rate::K250),
    of(D120, 9, 40, 2, rate::K300),
    of(D120, 9, 40, 1, rate::K300),
    of(D120, 10, 41, 2, rate::K300),
    of(D120, 10, 42, 2, rate::K300),
    of(D120, 8, 40, 2, rate::K250),
    of(D120, 8, 40, 1, rate::K250),
];

fn exact(kind: Option<DriveKind>, bytes: u64) -> Option<Format> {
    FORMATS.into_iter().find(|f| f.bytes() == bytes && kind.is_none_or(|k| k == f.kind))
}

impl Format {
    /// Of an image of so many bytes in a drive of this kind. A drive for 2.88 MB takes those of 1.44 MB as well.
    pub fn of(kind: DriveKind, bytes: u64) -> Self {
        let also = || if kind == D288 { exact(Some(D144), bytes) } else { None };
        let usual = || {
            let small = kind == D288 && (1..=FORMATS[0].bytes()).contains(&bytes);
            let kind = if small { D144 } else { kind };
            FORMATS.into_iter().find(|f| f.kind == kind).unwrap_or(FORMATS[0])
        };
        exact(Some(kind), bytes).or_else(also).unwrap_or_else(usual)
    }

    /// Bytes of it.
    pub fn bytes(self) -> u64 {
        u64::from(self.sectors) * u64::from(self.tracks) * u64::from(self.heads) * SECTOR as u64
    }

    /// The offset of a sector that it has.
    pub fn offset(self, track: u8, head: u8, sector: u8) -> Option<u64> {
        if track >= self.tracks || head >= self.heads || sector == 0 || sector > self.sectors {
            return None;
        }
        let n = (u64::from(track) * u64::from(self.heads) + u64::from(head)) * u64::from(self.sectors)
            + u64::from(sector)
            - 1;
        Some(n * SECTOR as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_have_the_drive_and_layout_of_their_size() {
        for (kib, kind, layout, cmos) in [
            (160, D120, (40, 1, 8), 2),
            (180, D120, (40, 1, 9), 2),
            (320, D120, (40, 2, 8), 2),
            (360, D120, (40, 2, 9), 2),
            (720, D144, (80, 2, 9), 4),
            (1200, D120, (80, 2, 15), 2),
            (1440, D144, (80, 2, 18), 4),
            (1680, D144, (80, 2, 21), 4),
            (2880, D288, (80, 2, 36), 5),
        ] {
            let found = DriveKind::for_image(kib << 10);
            let f = Format::of(found, kib << 10);
            assert_eq!((found, (f.tracks, f.heads, f.sectors), found.cmos()), (kind, layout, cmos), "{kib}");
            assert_eq!(f.bytes(), kib << 10);
        }
    }

    #[test]
    fn what_is_no_diskette_is_as_large_as_the_drives_usual_one() {
        for bytes in [512, 10_000, 1 << 20] {
            let f = Format::of(DriveKind::for_image(bytes), bytes);
            assert_eq!((f.tracks, f.heads, f.sectors), (80, 2, 18));
        }
        assert_eq!(DriveKind::for_image(0), D288);
        assert_eq!(Format::of(D288, 1440 << 10).sectors, 18, "it reads those of its little sister");
        assert_eq!((Format::of(D288, 3 << 20).sectors, Format::of(D288, 0).sectors), (36, 36));
        let f = FORMATS[0];
        assert_eq!((f.offset(0, 0, 1), f.offset(79, 1, 18)), (Some(0), Some((2880 - 1) * 512)));
        assert_eq!([f.offset(80, 0, 1), f.offset(0, 2, 1), f.offset(0, 0, 0), f.offset(0, 0, 19)], [None; 4]);
    }
}
