//! Receive-side scaling of the 82574 (316080, 7.1.11, 10.2.6.13 to 10.2.6.15): the hash of where a frame comes from and
//! goes to, and the ring that the table has for it.
//!
//! The registers keep what is written; here is what they say, where the receiver finds it without their lock.
use super::packet::Summary;
use super::regs::{RETA, RSSRK, mrqc, rxcsum};
use super::rx::Rx;
use crate::net::toeplitz;

/// Kinds of hashes, as descriptors tell of them (316080, table 7-15).
const NONE: u32 = 0;
const TCP_IPV4: u32 = 1;
const IPV4: u32 = 2;
const TCP_IPV6: u32 = 3;
const IPV6_EX: u32 = 4;
const IPV6: u32 = 5;

/// What RETA and RSSRK say.
#[derive(Clone, Default)]
pub(super) struct Rss {
    /// The ring of each of the 128 values, whose highest bit it is.
    table: [u32; 32],
    key: [u32; 10],
}

impl Rss {
    /// A register was written.
    pub(super) fn write(&mut self, at: u32, value: u32) {
        let word = |first: u32| (at.wrapping_sub(first) / 4) as usize;
        if let Some(entry) = self.table.get_mut(word(RETA)) {
            *entry = value;
        } else if let Some(entry) = self.key.get_mut(word(RSSRK)) {
            *entry = value;
        }
    }

    fn ring(&self, hash: u32) -> usize {
        let entries = self.table[(hash >> 2 & 31) as usize].to_le_bytes();
        usize::from(entries[(hash & 3) as usize] >> 7)
    }
}

/// Where a frame goes, and what is said of that.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Choice {
    pub(super) ring: usize,
    pub(super) hash: u32,
    /// The kind of the hash.
    pub(super) kind: u32,
}

impl Rx {
    /// The ring for a frame. All go to the first one without scaling, which wants extended descriptors, and the place
    /// in them where a checksum would be.
    pub(super) fn choose(&self, bytes: &[u8], summary: &Summary, extended: bool) -> Choice {
        let scales = self.mrqc & mrqc::QUEUES == mrqc::RSS && self.rxcsum & rxcsum::PCSD != 0;
        if !scales || !extended {
            return Choice::default();
        }
        let Some((addresses, v6)) = summary.addresses(bytes) else { return Choice::default() };
        let has = |bit: u32| self.mrqc & bit != 0;
        let ports = summary.tcp_ports(bytes);
        let (kind, ports) = match (v6, ports) {
            (false, Some(ports)) if has(mrqc::TCP_IPV4) => (TCP_IPV4, ports),
            (false, _) if has(mrqc::IPV4) => (IPV4, &[][..]),
            (true, Some(ports)) if has(mrqc::TCP_IPV6) => (TCP_IPV6, ports),
            // Without extension headers, which nobody looks for here, it is the same number.
            (true, _) if has(mrqc::IPV6_EX) => (IPV6_EX, &[][..]),
            (true, _) if has(mrqc::IPV6) => (IPV6, &[][..]),
            _ => (NONE, &[][..]),
        };
        if kind == NONE {
            return Choice::default();
        }
        let key = self.rss.key.map(u32::to_le_bytes);
        let hash = toeplitz::hash(key.as_flattened(), addresses.iter().chain(ports));
        Choice { ring: self.rss.ring(hash), hash, kind }
    }
}
