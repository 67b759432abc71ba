//! Names, places and bits of registers, and of the descriptors of C+ mode.

/// Where registers are. Those of C+ mode lie over some of the older mode's.
pub(super) const IDR: u32 = 0x00;
pub(super) const IDR_END: u32 = 0x06;
pub(super) const MAR: u32 = 0x08;
pub(super) const MAR_END: u32 = 0x10;
pub(super) const TSD: u32 = 0x10;
pub(super) const TSD_END: u32 = 0x20;
/// In C+ mode, over TSD0 and TSD1.
pub(super) const DTCCR: u32 = 0x10;
pub(super) const DTCCR_HIGH: u32 = 0x14;
pub(super) const TSAD: u32 = 0x20;
pub(super) const TSAD_END: u32 = 0x30;
/// In C+ mode, over TSAD0 to TSAD3.
pub(super) const TNPDS: u32 = 0x20;
pub(super) const THPDS: u32 = 0x28;
pub(super) const RBSTART: u32 = 0x30;
pub(super) const CR: u32 = 0x37;
pub(super) const CAPR: u32 = 0x38;
pub(super) const CBR: u32 = 0x3a;
pub(super) const IMR: u32 = 0x3c;
pub(super) const ISR: u32 = 0x3e;
pub(super) const TCR: u32 = 0x40;
pub(super) const RCR: u32 = 0x44;
pub(super) const TCTR: u32 = 0x48;
pub(super) const MPC: u32 = 0x4c;
/// 9346CR.
pub(super) const EECR: u32 = 0x50;
pub(super) const CONFIG0: u32 = 0x51;
pub(super) const CONFIG1: u32 = 0x52;
pub(super) const TIMER_INT: u32 = 0x54;
pub(super) const MSR: u32 = 0x58;
pub(super) const CONFIG3: u32 = 0x59;
pub(super) const CONFIG4: u32 = 0x5a;
pub(super) const MULINT: u32 = 0x5c;
pub(super) const RERID: u32 = 0x5e;
/// The status of all four descriptors.
pub(super) const TSAD_ALL: u32 = 0x60;
pub(super) const BMCR: u32 = 0x62;
pub(super) const BMSR: u32 = 0x64;
pub(super) const ANAR: u32 = 0x66;
pub(super) const ANLPAR: u32 = 0x68;
pub(super) const ANER: u32 = 0x6a;
pub(super) const CONFIG5: u32 = 0xd8;
pub(super) const TPPOLL: u32 = 0xd9;
pub(super) const CPCR: u32 = 0xe0;
pub(super) const RDSAR: u32 = 0xe4;
pub(super) const RDSAR_HIGH: u32 = 0xe8;

/// The register that a byte belongs to: its place and its bytes.
pub(super) fn register(at: u32) -> (u32, u32) {
    match at {
        0x10..0x34 | 0x40..0x50 | 0x54..0x58 | 0x78..0x84 | 0xe4..0xec | 0xf0..=0xff => (at & !3, 4),
        0x34..0x36 | 0x38..0x40 | 0x5c..0x5e | 0x60..0x78 | 0xe0..0xe4 => (at & !1, 2),
        _ => (at, 1),
    }
}

/// Whether bytes only keep what was written: PHY parameters, patterns that wake, thresholds, function events.
pub(super) fn is_plain(at: u32) -> bool {
    matches!(at, 0x6c..0xd8 | 0xec | 0xf0..=0xff)
}

/// CR.
pub(super) mod cr {
    pub const BUFE: u8 = 1 << 0;
    pub const TE: u8 = 1 << 2;
    pub const RE: u8 = 1 << 3;
    pub const RST: u8 = 1 << 4;
}
/// ISR and IMR.
pub(super) mod isr {
    pub const ROK: u16 = 1 << 0;
    pub const TOK: u16 = 1 << 2;
    pub const TER: u16 = 1 << 3;
    /// The receive buffer is full; in C+ mode there is no descriptor.
    pub const RXOVW: u16 = 1 << 4;
    /// The link came up or went down.
    pub const LINK_CHG: u16 = 1 << 5;
    /// No more descriptors of C+ mode to send.
    pub const TDU: u16 = 1 << 7;
    pub const SW_INT: u16 = 1 << 8;
    pub const TIMEOUT: u16 = 1 << 14;
    pub const ALL: u16 = 0xe1ff;
}
/// TSD.
pub(super) mod tsd {
    pub const SIZE: u32 = 0x1fff;
    /// The descriptor is software's.
    pub const OWN: u32 = 1 << 13;
    pub const TOK: u32 = 1 << 15;
    pub const TUN: u32 = 1 << 14;
    pub const ERTXTH: u32 = 0x3f << 16;
    pub const TABT: u32 = 1 << 30;
}
/// TCR.
pub(super) mod tcr {
    pub const LBK: u32 = 3 << 17;
    /// What of it can be written: gap, loopback, CRC, DMA burst, retries.
    pub const WRITABLE: u32 = 0x0307_07f0;
    /// The version of the hardware: an 8139C+.
    pub const HWVERID: u32 = 0x7480_0000;
}
/// RCR.
pub(super) mod rcr {
    pub const AAP: u32 = 1 << 0;
    pub const APM: u32 = 1 << 1;
    pub const AM: u32 = 1 << 2;
    pub const AB: u32 = 1 << 3;
    pub const WRAP: u32 = 1 << 7;
    pub const WRITABLE: u32 = 0x0f03_ffbf;
}
/// 9346CR.
pub(super) mod eecr {
    pub const EEDO: u8 = 1 << 0;
    pub const EEDI: u8 = 1 << 1;
    pub const EESK: u8 = 1 << 2;
    pub const EECS: u8 = 1 << 3;
    pub const EEM: u8 = 3 << 6;
    pub const AUTO_LOAD: u8 = 1 << 6;
    pub const PROGRAM: u8 = 2 << 6;
    /// CONFIG registers and parts of BMCR can be written.
    pub const CONFIG: u8 = 3 << 6;
}
/// CPCR, the command register of C+ mode.
pub(super) mod cpcr {
    pub const TE: u16 = 1 << 0;
    pub const RE: u16 = 1 << 1;
    pub const RX_CHK_SUM: u16 = 1 << 5;
    pub const RX_VLAN: u16 = 1 << 6;
    pub const WRITABLE: u16 = 0x007b;
}
/// TPPoll.
pub(super) mod tppoll {
    pub const FSW_INT: u8 = 1 << 0;
    pub const NPQ: u8 = 1 << 6;
    pub const HPQ: u8 = 1 << 7;
}
/// DTCCR: statistics are written to memory.
pub(super) const DTCCR_CMD: u32 = 1 << 3;
/// The status in the header of a packet in the receive buffer.
pub(super) mod header {
    pub const ROK: u16 = 1 << 0;
    pub const BAR: u16 = 1 << 13;
    pub const PAM: u16 = 1 << 14;
    pub const MAR: u16 = 1 << 15;
}
/// The first word of a descriptor of C+ mode, and the second's bits.
pub(super) mod desc {
    pub const OWN: u32 = 1 << 31;
    pub const EOR: u32 = 1 << 30;
    pub const FS: u32 = 1 << 29;
    pub const LS: u32 = 1 << 28;
    /// Transmit: segmentation, with MSS in bits 26 to 16.
    pub const LGSEN: u32 = 1 << 27;
    pub const IPCS: u32 = 1 << 18;
    pub const UDPCS: u32 = 1 << 17;
    pub const TCPCS: u32 = 1 << 16;
    /// What is the status after a transmission.
    pub const TX_STATUS: u32 = 0x0fff_0000;
    /// Transmit: a tag is put in; the second word.
    pub const TAGC: u32 = 1 << 17;
    /// Receive: multicast, own and broadcast address.
    pub const MAR: u32 = 1 << 26;
    pub const PAM: u32 = 1 << 25;
    pub const BAR: u32 = 1 << 24;
    /// Receive: TCP, UDP or both bits for other IP.
    pub const PID_TCP: u32 = 1 << 16;
    pub const PID_UDP: u32 = 2 << 16;
    pub const PID_IP: u32 = 3 << 16;
    pub const IPF: u32 = 1 << 15;
    pub const UDPF: u32 = 1 << 14;
    pub const TCPF: u32 = 1 << 13;
    /// Receive: bytes of the buffer, or of the frame.
    pub const LEN: u32 = 0x1fff;
    /// Receive: a tag was taken out; the second word.
    pub const TAVA: u32 = 1 << 16;
}
/// Bytes of a descriptor, and how many a ring has at most.
pub(super) const DESCRIPTOR: u64 = 16;
pub(super) const DESCRIPTORS: u32 = 64;

/// Whether a ring ends behind this descriptor, and which is next.
pub(super) fn next(index: u32, first: u32) -> u32 {
    if first & desc::EOR != 0 || index + 1 >= DESCRIPTORS { 0 } else { index + 1 }
}
