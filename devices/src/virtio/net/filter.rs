//! Which frames the driver wishes to see (5.1.6.5.1, 5.1.6.5.3), and which pair of queues they go to.
use mynah_net::Frame;
pub(super) use mynah_net::numbers::ip::{TCP, UDP};
use serde::{Deserialize, Serialize};

/// Addresses of each sort that are looked at; a driver that has more gets all frames of that sort. As in QEMU.
pub(super) const ADDRESSES: usize = 64;
/// Numbers of VLANs.
pub(super) const VLANS: u16 = 4096;

const BROADCAST: [u8; 6] = [0xff; 6];
const TAGGED: [u8; 2] = [0x81, 0];

/// Addresses that the driver has told; none if these were too many.
pub(super) type Addresses = Option<Vec<[u8; 6]>>;

/// What the driver has said.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Filter {
    pub promiscuous: bool,
    pub all_multicast: bool,
    pub all_unicast: bool,
    pub no_multicast: bool,
    pub no_unicast: bool,
    pub no_broadcast: bool,
    pub unicast: Addresses,
    pub multicast: Addresses,
    /// A bit for each VLAN; without, frames of all of them.
    vlans: Option<Vec<u64>>,
}

impl Default for Filter {
    /// All frames, as long as the driver has said nothing.
    fn default() -> Self {
        Self {
            promiscuous: true,
            all_multicast: false,
            all_unicast: false,
            no_multicast: false,
            no_unicast: false,
            no_broadcast: false,
            unicast: Some(Vec::new()),
            multicast: Some(Vec::new()),
            vlans: None,
        }
    }
}

impl Filter {
    /// The driver tells the VLANs whose frames it wishes.
    pub fn filter_vlans(&mut self) {
        self.vlans = Some(vec![0; usize::from(VLANS / 64)]);
    }

    /// Adds a VLAN, or takes it away.
    pub fn set_vlan(&mut self, number: u16, on: bool) {
        let Some(word) = self.vlans.as_mut().and_then(|v| v.get_mut(usize::from(number / 64))) else {
            return;
        };
        let bit = 1 << (number % 64);
        *word = if on { *word | bit } else { *word & !bit };
    }

    /// Whether a card of this address gives such a frame to its driver.
    pub fn passes(&self, frame: &Frame<'_>, mac: [u8; 6]) -> bool {
        if self.promiscuous {
            return true;
        }
        let mut head = [0; 16];
        super::header::copy(frame, &mut head);
        let [a, b, c, d, e, f, _, _, _, _, _, _, t0, t1, v0, v1] = head;
        if let Some(vlans) = &self.vlans
            && [t0, t1] == TAGGED
        {
            let number = u16::from_be_bytes([v0, v1]) % VLANS;
            if vlans.get(usize::from(number / 64)).is_none_or(|word| word >> (number % 64) & 1 == 0) {
                return false;
            }
        }
        let to = [a, b, c, d, e, f];
        let is_told = |all: &Addresses| all.as_ref().is_none_or(|all| all.contains(&to));
        if to == BROADCAST {
            !self.no_broadcast
        } else if a & 1 != 0 {
            !self.no_multicast && (self.all_multicast || is_told(&self.multicast))
        } else {
            !self.no_unicast && (self.all_unicast || to == mac || is_told(&self.unicast))
        }
    }

    /// Whether it can be one that was saved.
    pub fn is_sound(&self) -> bool {
        let few = |all: &Addresses| all.as_ref().is_none_or(|all| all.len() <= ADDRESSES);
        let vlans = self.vlans.as_ref().is_none_or(|v| v.len() == usize::from(VLANS / 64));
        few(&self.unicast) && few(&self.multicast) && vlans
    }
}

/// Where a packet comes from and goes to.
pub(super) struct Ends {
    pub v6: bool,
    pub protocol: u8,
    /// Source and destination, of which the first 8 or 32 bytes count.
    addresses: [u8; 32],
    /// Those of TCP and UDP, unless they are in another fragment.
    pub ports: Option<[u8; 4]>,
}

impl Ends {
    /// Those of a frame with an IP packet.
    pub fn of(frame: &Frame<'_>) -> Option<Self> {
        let mut bytes = [0; 128];
        let n = super::header::copy(frame, &mut bytes);
        let bytes = &bytes[..n];
        let at = if bytes.get(12..14)? == TAGGED { 18 } else { 14 };
        let mut ends = Self { v6: false, protocol: 0, addresses: [0; 32], ports: None };
        let ports = match bytes.get(at - 2..at)? {
            [8, 0] => {
                ends.protocol = *bytes.get(at + 9)?;
                ends.addresses[..8].copy_from_slice(bytes.get(at + 12..at + 20)?);
                // More fragments, or not the first one.
                let cut = bytes[at + 6] & 0x3f != 0 || bytes[at + 7] != 0;
                (!cut).then_some(at + usize::from(bytes[at] & 15) * 4)
            }
            [0x86, 0xdd] => {
                ends.v6 = true;
                ends.protocol = *bytes.get(at + 6)?;
                ends.addresses.copy_from_slice(bytes.get(at + 8..at + 40)?);
                Some(at + 40)
            }
            _ => return None,
        };
        let ports = ports.filter(|_| matches!(ends.protocol, TCP | UDP));
        ends.ports = ports.and_then(|at| bytes.get(at..)?.first_chunk().copied());
        Some(ends)
    }

    /// Source and destination.
    pub fn addresses(&self) -> &[u8] {
        &self.addresses[..if self.v6 { 32 } else { 8 }]
    }
}

/// A number of the flow that a frame belongs to, the same in both directions; 0 for what is no IP.
pub(super) fn flow(frame: &Frame<'_>) -> u8 {
    let Some(ends) = Ends::of(frame) else { return 0 };
    // Words of both ends are added up, so that either may be the source.
    let sum = |sum: u32, word: &[u8]| {
        sum.wrapping_add(word.iter().fold(0, |w, b| w << 8 | u32::from(*b)).wrapping_mul(0x9e37_79b1))
    };
    let ports = ends.ports.unwrap_or_default();
    let all = ends.addresses().chunks(4).chain(ports.chunks(2)).fold(0, sum);
    (all >> 24 ^ all >> 12) as u8
}
