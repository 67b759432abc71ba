//! Receive-side scaling (5.1.6.5.7.1): the driver gives a key and a table, and a frame goes to the pair of queues that
//! the table has for the Toeplitz hash of where it comes from and goes to.
use super::filter::{Ends, TCP, UDP};
use crate::net::toeplitz;
use mynah_net::Frame;
use serde::{Deserialize, Serialize};

/// Kinds of hashes: addresses, with the ports of TCP or UDP, for IPv4 and in the next three bits for IPv6.
const ADDRESSES: u32 = 1 << 0;
const WITH_TCP: u32 = 1 << 1;
const WITH_UDP: u32 = 1 << 2;
const V6: u32 = 3;
/// All that are offered: those of IPv6 with extension headers are not.
pub(super) const KINDS: u32 = 0x3f;
/// The longest key, and the most entries of the table, as in QEMU.
pub(super) const KEY: usize = 40;
pub(super) const TABLE: u16 = 128;

/// What the driver has set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Rss {
    pub kinds: u32,
    /// The pair for what has no hash.
    pub others: u16,
    /// Pairs; a power of two of entries.
    pub table: Vec<u16>,
    pub key: Vec<u8>,
}

impl Rss {
    /// Whether it can be one of a card with so many pairs.
    pub fn is_sound(&self, pairs: u16) -> bool {
        self.kinds & !KINDS == 0
            && self.key.len() <= KEY
            && self.table.len().is_power_of_two()
            && self.table.len() <= TABLE.into()
            && self.table.iter().chain([&self.others]).all(|pair| *pair < pairs)
    }

    /// The pair that a frame goes to.
    pub fn pair(&self, frame: &Frame<'_>) -> u16 {
        let Some(hash) = self.hash(frame) else { return self.others };
        self.table.get(hash as usize & (self.table.len() - 1)).copied().unwrap_or(self.others)
    }

    fn hash(&self, frame: &Frame<'_>) -> Option<u32> {
        let ends = Ends::of(frame)?;
        let kinds = if ends.v6 { self.kinds >> V6 } else { self.kinds };
        let with_ports = match ends.protocol {
            TCP => kinds & WITH_TCP != 0,
            UDP => kinds & WITH_UDP != 0,
            _ => false,
        };
        match ends.ports.filter(|_| with_ports) {
            Some(ports) => Some(self.toeplitz(ends.addresses().iter().chain(&ports))),
            None => (kinds & ADDRESSES != 0).then(|| self.toeplitz(ends.addresses().iter())),
        }
    }

    fn toeplitz<'a>(&self, bytes: impl Iterator<Item = &'a u8>) -> u32 {
        toeplitz::hash(&self.key, bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::IoSlice;

    /// Numbers that Microsoft gives ("Verifying the RSS hash calculation").
    #[test]
    fn hashes_are_those_of_the_specification() {
        let key = [
            0x6d, 0x5a, 0x56, 0xda, 0x25, 0x5b, 0x0e, 0xc2, 0x41, 0x67, 0x25, 0x3d, 0x43, 0xa3, 0x8f, 0xb0,
            0xd0, 0xca, 0x2b, 0xcb, 0xae, 0x7b, 0x30, 0xb4, 0x77, 0xcb, 0x2d, 0xa3, 0x80, 0x30, 0xf2, 0x0c,
            0x6a, 0x42, 0xb7, 0x3b, 0xbe, 0xac, 0x01, 0xfa,
        ];
        let hash = |kinds, protocol, cut: bool| {
            let mut bytes = vec![0; 60];
            bytes[12..15].copy_from_slice(&[8, 0, 0x45]);
            bytes[20] = u8::from(cut) << 5;
            bytes[23] = protocol;
            bytes[26..34].copy_from_slice(&[66, 9, 149, 187, 161, 142, 100, 80]);
            bytes[34..36].copy_from_slice(&2794_u16.to_be_bytes());
            bytes[36..38].copy_from_slice(&1766_u16.to_be_bytes());
            let rss = Rss { kinds, others: 0, table: vec![0], key: key.to_vec() };
            rss.hash(&Frame::new(&[IoSlice::new(&bytes)]))
        };
        assert_eq!(hash(ADDRESSES, TCP, false), Some(0x323e_8fc2));
        assert_eq!(hash(ADDRESSES | WITH_TCP, TCP, false), Some(0x51cc_c178));
        assert_eq!(
            hash(ADDRESSES | WITH_TCP, TCP, true),
            Some(0x323e_8fc2),
            "the ports are not in a fragment"
        );
        assert_eq!(hash(ADDRESSES | WITH_TCP, UDP, false), Some(0x323e_8fc2));
        assert_eq!(hash(WITH_UDP, UDP, false), Some(0x51cc_c178));
        assert_eq!(hash(WITH_UDP, TCP, false), None);
        assert_eq!(hash(KINDS << V6 & KINDS, TCP, false), None);
    }
}
