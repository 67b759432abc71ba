//! Which guest has which address.
use std::collections::{HashMap, HashSet};
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

/// How long an address is leased for.
pub(super) const TIME: Duration = Duration::from_secs(86_400);
/// How long one that was only offered is kept.
const OFFERED: Duration = Duration::from_secs(60);
/// The most leases.
const MOST: u32 = 128;

struct Lease {
    address: Ipv4Addr,
    until: Instant,
}

/// The addresses from the first on.
pub(super) struct Leases {
    first: u32,
    count: u32,
    by_mac: HashMap<[u8; 6], Lease>,
    taken: HashSet<Ipv4Addr>,
    ours: Vec<Ipv4Addr>,
    /// Somebody else was found to have it (RFC 2131, 4.3.3).
    declined: HashSet<Ipv4Addr>,
}

impl Leases {
    /// Leases from `first` up to before `end`, without `ours`.
    pub fn new(first: Ipv4Addr, end: Ipv4Addr, ours: &[Ipv4Addr]) -> Self {
        let first = u32::from(first);
        let count = u32::from(end).saturating_sub(first).min(MOST);
        let (by_mac, taken) = (HashMap::new(), ours.iter().copied().collect());
        Self { first, count, by_mac, taken, ours: ours.to_vec(), declined: HashSet::new() }
    }

    /// What a guest has leased, or been offered.
    pub fn of(&self, mac: [u8; 6]) -> Option<Ipv4Addr> {
        self.by_mac.get(&mac).map(|l| l.address)
    }

    /// All leases.
    pub fn all(&self) -> impl Iterator<Item = ([u8; 6], Ipv4Addr)> + '_ {
        self.by_mac.iter().map(|(mac, lease)| (*mac, lease.address))
    }

    /// An address to offer: the guest's own, the one it wishes if it is free, or the first that is.
    pub fn offer(&mut self, mac: [u8; 6], wish: Option<Ipv4Addr>, now: Instant) -> Option<Ipv4Addr> {
        if let Some(address) = self.of(mac) {
            return Some(address);
        }
        let wish = wish.filter(|a| self.is_free(*a));
        let address = wish.or_else(|| self.free()).or_else(|| {
            let expired =
                self.by_mac.iter().filter(|(_, l)| l.until <= now).min_by_key(|(_, l)| (l.until, l.address));
            let mac = expired.map(|(mac, _)| *mac)?;
            self.release(mac);
            self.free()
        })?;
        self.taken.insert(address);
        self.by_mac.insert(mac, Lease { address, until: now + OFFERED });
        Some(address)
    }

    /// Leases `address`, if it may be had.
    pub fn request(&mut self, mac: [u8; 6], address: Ipv4Addr, now: Instant) -> bool {
        if self.of(mac) != Some(address) {
            if !self.is_free(address) {
                return false;
            }
            self.release(mac);
            self.taken.insert(address);
        }
        self.by_mac.insert(mac, Lease { address, until: now + TIME });
        true
    }

    /// A guest gives its address back.
    pub fn release(&mut self, mac: [u8; 6]) {
        if let Some(lease) = self.by_mac.remove(&mac) {
            self.taken.remove(&lease.address);
        }
    }

    /// A guest has found that somebody has its address.
    pub fn decline(&mut self, mac: [u8; 6], address: Ipv4Addr) {
        if self.of(mac) == Some(address) {
            self.release(mac);
            // A guest that declines everything gets everything offered again.
            if self.declined.len() + 1 >= self.count as usize {
                self.declined.clear();
            }
            self.declined.insert(address);
        }
    }

    /// Takes on the leases of an earlier network, as far as they can be had here.
    pub fn restore(&mut self, leases: &[([u8; 6], Ipv4Addr)], now: Instant) {
        self.by_mac.clear();
        self.taken = self.ours.iter().copied().collect();
        self.declined.clear();
        for (mac, address) in leases {
            self.request(*mac, *address, now);
        }
    }

    fn is_free(&self, address: Ipv4Addr) -> bool {
        let inside = u32::from(address).checked_sub(self.first).is_some_and(|n| n < self.count);
        inside && !self.taken.contains(&address) && !self.declined.contains(&address)
    }

    fn free(&self) -> Option<Ipv4Addr> {
        (0..self.count).map(|n| Ipv4Addr::from(self.first + n)).find(|a| self.is_free(*a))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_guest_has_its_own_address_and_keeps_it() {
        let now = Instant::now();
        let ours = [Ipv4Addr::new(10, 0, 2, 16)];
        let mut l = Leases::new([10, 0, 2, 15].into(), [10, 0, 2, 19].into(), &ours);
        let mac = |n| [2, 0, 0, 0, 0, n];
        let mut offer = |n, now| l.offer(mac(n), None, now).map(|a| a.octets()[3]);
        assert_eq!([offer(1, now), offer(2, now), offer(1, now)], [Some(15), Some(17), Some(15)]);
        assert_eq!([offer(3, now), offer(4, now)], [Some(18), None], "16 is ours, 19 is the end");
        assert_eq!(offer(4, now + OFFERED), Some(15), "an offer that nobody took");
        assert!(!l.request(mac(9), [10, 0, 2, 17].into(), now), "it is another's");
        assert!(l.request(mac(2), [10, 0, 2, 17].into(), now));
        l.decline(mac(2), [10, 0, 2, 17].into());
        assert_eq!(l.of(mac(2)), None);
        l.release(mac(3));
        assert_eq!(l.offer(mac(2), Some([10, 0, 2, 17].into()), now), Some([10, 0, 2, 18].into()));
        assert!(!l.request(mac(5), [10, 0, 3, 1].into(), now), "not in the network");
        let kept: Vec<_> = l.all().collect();
        l.restore(&kept, now);
        assert_eq!(l.all().collect::<HashSet<_>>(), kept.into_iter().collect());
        l.restore(&[(mac(7), [10, 0, 2, 16].into())], now);
        assert_eq!(l.all().count(), 0, "an address of ours is nobody's");
    }
}
