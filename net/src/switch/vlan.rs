//! VLANs: which frames a port takes and gives, with which tag (IEEE 802.1Q-2022, 6.9, 8.6, 9.6).
//!
//! A port has one VLAN whose frames have no tag there (an access port has that only), and any number whose frames have
//! one (a trunk). A frame with a second tag is refused at every port, and one with a tag at an access port: so no guest
//! gets into a VLAN that is not his.

/// The types of tags: 802.1Q's, 802.1ad's, and two that were in use before it.
const TPIDS: [u16; 4] = [0x8100, 0x88a8, 0x9100, 0x9200];
const C_TAG: u16 = 0x8100;
/// The last VLAN; 0 is none, 4095 is reserved (9.6).
const LAST: u16 = 4094;

/// The VLANs of a port.
#[derive(Clone, PartialEq, Eq)]
pub struct Vlans {
    /// The one without tags.
    pub untagged: Option<u16>,
    /// Those with tags, a bit each.
    tagged: Box<[u64; 64]>,
}

impl std::fmt::Debug for Vlans {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Vlans({:?}, {:?})", self.untagged, self.tagged().collect::<Vec<_>>())
    }
}

impl Default for Vlans {
    fn default() -> Self {
        Self::access(1)
    }
}

/// A frame without its tag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plain<'a> {
    /// Its VLAN.
    pub vlan: u16,
    /// Its tag's other bits: priority and drop eligibility.
    pub priority: u16,
    /// Destination and source.
    pub addresses: &'a [u8],
    /// From the type on.
    pub rest: &'a [u8],
}

/// Why a port does not take a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// It is shorter than its header.
    Short,
    /// It has more than one tag, or one that is not 802.1Q's.
    Double,
    /// Its VLAN is none of the port's.
    Vlan,
}

impl Vlans {
    /// An access port.
    pub fn access(vlan: u16) -> Self {
        Self { untagged: Some(vlan), tagged: Box::new([0; 64]) }
    }

    /// A port with tags for `tagged`, a list such as `10:20:30-39` or `all`, and none for `untagged`.
    ///
    /// # Errors
    /// Says what is wrong with the list.
    pub fn trunk(untagged: Option<u16>, tagged: &str) -> Result<Self, String> {
        let mut made = Self { untagged, tagged: Box::new([0; 64]) };
        let list = if tagged == "all" { "1-4094" } else { tagged };
        for part in list.split(':') {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            for vlan in vlan_number(first)?..=vlan_number(last)? {
                // In 'all' the one without tags is left out.
                if untagged == Some(vlan) && tagged != "all" {
                    return Err(format!(
                        "VLAN {vlan} is to be with and without tags: leave it out of one of both"
                    ));
                }
                if untagged != Some(vlan) {
                    made.tagged[usize::from(vlan) / 64] |= 1 << (vlan % 64);
                }
            }
        }
        if made.tagged().next().is_none() {
            return Err(format!("'{tagged}' has no VLAN in it"));
        }
        Ok(made)
    }

    /// The VLANs with tags.
    pub fn tagged(&self) -> impl Iterator<Item = u16> {
        (1..=LAST).filter(|v| self.has_tagged(*v))
    }

    fn has_tagged(&self, vlan: u16) -> bool {
        self.tagged[usize::from(vlan) / 64] >> (vlan % 64) & 1 != 0
    }

    /// Whether a VLAN's frames leave here, and if so whether with a tag.
    pub fn leaves(&self, vlan: u16) -> Option<bool> {
        if self.untagged == Some(vlan) {
            return Some(false);
        }
        self.has_tagged(vlan).then_some(true)
    }

    /// Takes a frame in.
    ///
    /// # Errors
    /// The port does not take it.
    pub fn admit<'a>(&self, frame: &'a [u8]) -> Result<Plain<'a>, Refused> {
        let (addresses, rest) = frame.split_at_checked(12).ok_or(Refused::Short)?;
        let kind = type_of(rest).ok_or(Refused::Short)?;
        if !TPIDS.contains(&kind) {
            let vlan = self.untagged.ok_or(Refused::Vlan)?;
            return Ok(Plain { vlan, priority: 0, addresses, rest });
        }
        let (tag, rest) = rest.split_first_chunk::<4>().ok_or(Refused::Short)?;
        let inner = type_of(rest).ok_or(Refused::Short)?;
        if kind != C_TAG || TPIDS.contains(&inner) {
            return Err(Refused::Double);
        }
        let tci = u16::from_be_bytes([tag[2], tag[3]]);
        let vlan = match tci & 0xfff {
            // A priority only (6.9.1).
            0 => self.untagged.ok_or(Refused::Vlan)?,
            vlan if self.has_tagged(vlan) => vlan,
            _ => return Err(Refused::Vlan),
        };
        Ok(Plain { vlan, priority: tci & 0xf000, addresses, rest })
    }
}

impl Plain<'_> {
    /// The frame as it leaves without a tag, or with one.
    pub fn to_vec(self, tagged: bool) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.addresses.len() + self.rest.len() + 4);
        bytes.extend_from_slice(self.addresses);
        if tagged {
            bytes.extend(C_TAG.to_be_bytes());
            bytes.extend((self.priority | self.vlan).to_be_bytes());
        }
        bytes.extend_from_slice(self.rest);
        bytes
    }
}

/// A VLAN's number.
///
/// # Errors
/// It is none.
pub fn vlan_number(text: &str) -> Result<u16, String> {
    let number = text.parse().ok().filter(|n| (1..=LAST).contains(n));
    number.ok_or_else(|| format!("'{text}' is no VLAN: they are 1 to {LAST}"))
}

fn type_of(rest: &[u8]) -> Option<u16> {
    rest.first_chunk::<2>().map(|b| u16::from_be_bytes(*b))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(tags: &[(u16, u16)]) -> Vec<u8> {
        let mut bytes: Vec<u8> = (0..12).collect();
        for (tpid, tci) in tags {
            bytes.extend(tpid.to_be_bytes());
            bytes.extend(tci.to_be_bytes());
        }
        bytes.extend([8, 0, 1, 2, 3]);
        bytes
    }

    #[test]
    fn tags_come_and_go() {
        let (access, trunk) = (Vlans::access(7), Vlans::trunk(Some(7), "10:20-22").unwrap());
        let admitted = |port: &Vlans, tags: &[(u16, u16)]| port.admit(&frame(tags)).map(|p| p.vlan);
        assert_eq!(admitted(&access, &[]), Ok(7));
        assert_eq!(admitted(&access, &[(C_TAG, 0xe000)]), Ok(7), "a priority is no VLAN");
        assert_eq!(admitted(&access, &[(C_TAG, 7)]), Err(Refused::Vlan));
        assert_eq!(admitted(&trunk, &[]), Ok(7));
        assert_eq!(admitted(&trunk, &[(C_TAG, 21)]), Ok(21));
        assert_eq!(admitted(&trunk, &[(C_TAG, 11)]), Err(Refused::Vlan));
        assert_eq!(admitted(&Vlans::trunk(None, "10").unwrap(), &[]), Err(Refused::Vlan));
        assert_eq!(admitted(&trunk, &[(C_TAG, 0xfff)]), Err(Refused::Vlan));
        let bytes = frame(&[(C_TAG, 0xa015)]);
        let plain = trunk.admit(&bytes).unwrap();
        assert_eq!((plain.to_vec(true), plain.to_vec(false)), (bytes.clone(), frame(&[])));
        assert_eq!((trunk.leaves(7), trunk.leaves(21), trunk.leaves(9)), (Some(false), Some(true), None));
    }

    #[test]
    fn two_tags_get_nowhere() {
        let trunk = Vlans::trunk(Some(1), "all").unwrap();
        for port in [&trunk, &Vlans::access(1)] {
            for tags in [
                &[(C_TAG, 1), (C_TAG, 20)][..],
                &[(C_TAG, 0), (C_TAG, 20)],
                &[(C_TAG, 10), (0x88a8, 20)],
                &[(0x88a8, 10)],
                &[(0x9100, 10), (C_TAG, 20)],
            ] {
                assert_eq!(port.admit(&frame(tags)), Err(Refused::Double), "{tags:?}");
            }
        }
        let bytes = frame(&[(C_TAG, 10)]);
        for len in 0..18 {
            assert!(len == 14 || trunk.admit(&bytes[..len]).is_err(), "{len}");
        }
    }

    #[test]
    fn lists_are_read() {
        let of = |text| Vlans::trunk(None, text).map(|v| v.tagged().collect::<Vec<_>>());
        assert_eq!(of("1:4094:20-22").unwrap(), [1, 20, 21, 22, 4094]);
        assert_eq!(of("all").unwrap().len(), 4094);
        for bad in ["", "0", "4095", "x", "1,2", "5-", "9-3"] {
            assert!(of(bad).is_err(), "{bad}");
        }
        assert!(Vlans::trunk(Some(3), "1-5").unwrap_err().contains("VLAN 3"));
    }
}
