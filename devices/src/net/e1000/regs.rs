//! Names, offsets and bits of the registers (317453, chapter 13; 316080, chapter 10), and those that only keep what is
//! written.

pub(super) const CTRL: u32 = 0x0000;
pub(super) const CTRL_DUP: u32 = 0x0004;
pub(super) const STATUS: u32 = 0x0008;
pub(super) const EECD: u32 = 0x0010;
pub(super) const EERD: u32 = 0x0014;
pub(super) const CTRL_EXT: u32 = 0x0018;
pub(super) const MDIC: u32 = 0x0020;
pub(super) const VET: u32 = 0x0038;
pub(super) const ICR: u32 = 0x00c0;
pub(super) const ITR: u32 = 0x00c4;
pub(super) const ICS: u32 = 0x00c8;
pub(super) const IMS: u32 = 0x00d0;
pub(super) const IMC: u32 = 0x00d8;
pub(super) const EIAC: u32 = 0x00dc;
pub(super) const IAM: u32 = 0x00e0;
pub(super) const IVAR: u32 = 0x00e4;
pub(super) const EITR: u32 = 0x00e8;
pub(super) const EITR_END: u32 = EITR + 4 * super::irq::VECTORS as u32;
pub(super) const RCTL: u32 = 0x0100;
pub(super) const TCTL: u32 = 0x0400;
pub(super) const PBA: u32 = 0x1000;
pub(super) const EEMNGCTL: u32 = 0x1010;
pub(super) const EEWR: u32 = 0x102c;
pub(super) const PSRCTL: u32 = 0x2170;
/// Receive rings: the second one, of the 82574, is 100h further.
pub(super) const RDBAL: u32 = 0x2800;
pub(super) const RDTR: u32 = 0x2820;
pub(super) const RADV: u32 = 0x282c;
/// Transmit rings, in the same way.
pub(super) const TDBAL: u32 = 0x3800;
pub(super) const TIDV: u32 = 0x3820;
pub(super) const TADV: u32 = 0x382c;
/// Offsets in a ring's registers.
pub(super) mod ring {
    pub const BASE_LOW: u32 = 0x00;
    pub const BASE_HIGH: u32 = 0x04;
    pub const LEN: u32 = 0x08;
    pub const HEAD: u32 = 0x10;
    pub const TAIL: u32 = 0x18;
    /// RXDCTL or TXDCTL.
    pub const CONTROL: u32 = 0x28;
}
/// Statistics (13.7), 64 of them.
pub(super) const STATISTICS: u32 = 0x4000;
pub(super) const STATISTICS_END: u32 = 0x4128;
pub(super) const RXCSUM: u32 = 0x5000;
pub(super) const RFCTL: u32 = 0x5008;
pub(super) const MTA: u32 = 0x5200;
pub(super) const RAL: u32 = 0x5400;
pub(super) const VFTA: u32 = 0x5600;
pub(super) const MRQC: u32 = 0x5818;
pub(super) const SWSM: u32 = 0x5b50;
pub(super) const RETA: u32 = 0x5c00;
pub(super) const RSSRK: u32 = 0x5c80;
pub(super) const RSSRK_END: u32 = RSSRK + 40;

/// Time stamps: TIMINCA says by how much the counter grows, and in how many units of 40 ns.
pub(super) const SYSTIML: u32 = 0xb600;
pub(super) const SYSTIMH: u32 = 0xb604;
pub(super) const TIMINCA: u32 = 0xb608;

pub(super) mod ctrl {
    pub const FD: u32 = 1 << 0;
    pub const GIO_MASTER_DISABLE: u32 = 1 << 2;
    pub const SLU: u32 = 1 << 6;
    pub const SPEED_1000: u32 = 2 << 8;
    pub const FRCSPD: u32 = 1 << 11;
    pub const FRCDPX: u32 = 1 << 12;
    pub const RST: u32 = 1 << 26;
    pub const VME: u32 = 1 << 30;
    pub const PHY_RST: u32 = 1 << 31;
}
pub(super) mod ctrl_ext {
    pub const EE_RST: u32 = 1 << 13;
    pub const IAME: u32 = 1 << 27;
    pub const PBA_CLR: u32 = 1 << 31;
}
pub(super) mod status {
    pub const FD: u32 = 1 << 0;
    pub const LU: u32 = 1 << 1;
    pub const MTXCKOK: u32 = 1 << 10;
    pub const GIO_MASTER_ENABLE: u32 = 1 << 19;
}
pub(super) mod rctl {
    pub const EN: u32 = 1 << 1;
    pub const UPE: u32 = 1 << 3;
    pub const MPE: u32 = 1 << 4;
    pub const LPE: u32 = 1 << 5;
    pub const DTYP: u32 = 3 << 10;
    pub const DTYP_SPLIT: u32 = 1 << 10;
    pub const BAM: u32 = 1 << 15;
    pub const VFE: u32 = 1 << 18;
    pub const BSEX: u32 = 1 << 25;
    pub const SECRC: u32 = 1 << 26;
}
pub(super) mod rxcsum {
    pub const IPOFL: u32 = 1 << 8;
    pub const TUOFL: u32 = 1 << 9;
    pub const IPV6OFL: u32 = 1 << 10;
    pub const PCSD: u32 = 1 << 13;
}
/// Bits of MRQC (316080, 10.2.6.13): how many rings there are for what comes, and which hashes.
pub(super) mod mrqc {
    pub const QUEUES: u32 = 3;
    pub const RSS: u32 = 1;
    pub const TCP_IPV4: u32 = 1 << 16;
    pub const IPV4: u32 = 1 << 17;
    pub const TCP_IPV6: u32 = 1 << 18;
    pub const IPV6_EX: u32 = 1 << 19;
    pub const IPV6: u32 = 1 << 20;
}
pub(super) mod rfctl {
    pub const EXSTEN: u32 = 1 << 15;
}
pub(super) mod tctl {
    pub const EN: u32 = 1 << 1;
    pub const PSP: u32 = 1 << 3;
}
/// Interrupt causes (13.4.17; 316080, 10.2.4.1).
pub(super) mod cause {
    pub const TXDW: u32 = 1 << 0;
    pub const TXQE: u32 = 1 << 1;
    pub const LSC: u32 = 1 << 2;
    pub const RXDMT0: u32 = 1 << 4;
    pub const RXO: u32 = 1 << 6;
    pub const RXT0: u32 = 1 << 7;
    pub const MDAC: u32 = 1 << 9;
    pub const TXD_LOW: u32 = 1 << 15;
    pub const SRPD: u32 = 1 << 16;
    pub const ACK: u32 = 1 << 17;
    pub const MNG: u32 = 1 << 18;
    /// The 82574's, one for each vector: RXQ0, RXQ1, TXQ0, TXQ1, OTHER.
    pub const RXQ0: u32 = 1 << 20;
    pub const TXQ0: u32 = 1 << 22;
    pub const OTHER: u32 = 1 << 24;
    pub const VECTORS: u32 = 0x1f << 20;
    pub const INT_ASSERTED: u32 = 1 << 31;
    /// What OTHER stands for.
    pub const OTHERS: u32 = LSC | RXO | MDAC | SRPD | ACK | MNG;
    /// What there is of an 82540EM's.
    pub const ALL_82540: u32 = 0x1_e2df;
    pub const ALL_82574: u32 = 0x01f7_e2df;
}

/// Where a register is that is named by its older place, the 82542's (table 13-2).
pub(super) fn alias(at: u32) -> u32 {
    match at {
        0x0040..=0x00bc => RAL + at - 0x40,
        0x0108 => RDTR,
        0x0110..=0x0118 => RDBAL + at - 0x110,
        0x0120 | 0x0128 => RDBAL + ring::HEAD + at - 0x120,
        0x0160 | 0x0168 => 0x2160 + at - 0x160,
        0x0200..=0x03fc => MTA + at - 0x200,
        0x0420..=0x0428 => TDBAL + at - 0x420,
        0x0430 | 0x0438 => TDBAL + ring::HEAD + at - 0x430,
        0x0440 => TIDV,
        0x0600..=0x07fc => VFTA + at - 0x600,
        at => at,
    }
}

/// Registers without effects: the first one's offset, how many there are, what of them can be written, and the value
/// after a reset.
const PLAIN: &[(u32, u32, u32, u32)] = &[
    // FCAL, FCAH, FCT: addresses and type of flow control.
    (0x0028, 3, u32::MAX, 0),
    // FCTTV, TXCW.
    (0x0170, 1, 0xffff, 0),
    (0x0178, 1, u32::MAX, 0),
    // TIPG, AIT.
    (0x0410, 1, u32::MAX, 0x0060_2008),
    (0x0458, 1, 0xffff, 0),
    // LEDCTL.
    (0x0e00, 1, u32::MAX, 0x0706_8302),
    // EXTCNF_CTRL, EXTCNF_SIZE, PHY_CTRL.
    (0x0f00, 2, u32::MAX, 0),
    (0x0f10, 1, u32::MAX, 0),
    // PBECCSTS, PBA_ECC; FCRTL, FCRTH, FCRTV.
    (0x100c, 1, u32::MAX, 0),
    (0x1100, 1, u32::MAX, 0),
    (0x2160, 1, 0xfff8 | 1 << 31, 0),
    (0x2168, 1, 0xfff8, 0),
    (0x2340, 1, 0xffff, 0),
    // Heads and tails of the FIFOs.
    (0x2410, 5, 0x1fff, 0),
    (0x3410, 5, 0x1fff, 0),
    (0x2430, 1, 0x1fff, 0),
    (0x3430, 1, 0x1fff, 0),
    // RSRPD, RAID, TXDMAC, TSPMT, TARC0, TARC1.
    (0x2c00, 1, 0xfff, 0),
    (0x2c08, 1, 0xffff, 0),
    (0x3000, 1, 1, 0),
    (0x3830, 1, u32::MAX, 0x0100_0400),
    (0x3840, 1, u32::MAX, 0x0000_0403),
    (0x3940, 1, u32::MAX, 0x0000_0403),
    // WUC, WUFC, WUS, MANC, IPAV, IP4AT, IP6AT, WUPL, WUPM.
    (0x5800, 1, u32::MAX, 0),
    (0x5808, 1, u32::MAX, 0),
    (0x5810, 1, u32::MAX, 0),
    (0x5820, 1, u32::MAX, 0),
    (0x5838, 1, u32::MAX, 0),
    (0x5840, 8, u32::MAX, 0),
    (0x5880, 4, u32::MAX, 0),
    (0x5900, 1, 0xfff, 0),
    (0x5a00, 32, u32::MAX, 0),
    // GCR, FUNCTAG, GSCL_1 to GSCL_4, FACTPS (read), GCR2, SW_FW_SYNC.
    (0x5b00, 2, u32::MAX, 0),
    (0x5b10, 4, u32::MAX, 0),
    (0x5b64, 1, u32::MAX, 0),
    (0x5b5c, 1, u32::MAX, 0),
    // RETA, RSSRK.
    (RETA, 32, u32::MAX, 0),
    (RSSRK, 10, u32::MAX, 0),
    // FFLT, FFMT, FFVT: flexible filters, every other word.
    (0x5f00, 8, 0x7ff, 0),
    (0x9000, 256, 0xf, 0),
    (0x9800, 256, u32::MAX, 0),
];

/// The registers of [`PLAIN`], one after the other.
pub(super) fn plain_reset() -> Vec<u32> {
    PLAIN.iter().flat_map(|(_, count, _, reset)| std::iter::repeat_n(*reset, *count as usize)).collect()
}

/// Where a register is in [`plain_reset`], and what of it can be written.
pub(super) fn plain(at: u32) -> Option<(usize, u32)> {
    let mut first = 0;
    for (start, count, mask, _) in PLAIN {
        if let Some(n) = at.checked_sub(*start).map(|n| n / 4).filter(|n| n < count) {
            return Some(((first + n) as usize, *mask));
        }
        first += count;
    }
    None
}
