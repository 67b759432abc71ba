//! Which station is behind which port: learnt from what it sends, forgotten when it is silent (IEEE 802.1Q-2022, 8.8).
use crate::Mac;
use std::collections::HashMap;
use std::time::Duration;

/// Between two looks for what is too old, if somebody asks for room.
const SWEEP: Duration = Duration::from_secs(1);

/// A station.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Behind which port.
    pub port: usize,
    /// When it has sent last.
    pub seen: Duration,
}

/// All stations. Keys are what guests choose, so that the map's hash has a secret.
pub struct Table {
    entries: HashMap<(u16, Mac), Entry>,
    /// How many each port has.
    counts: HashMap<usize, usize>,
    limit: usize,
    ageing: Duration,
    swept: Duration,
}

impl Table {
    /// At most `limit` stations, each of which is forgotten after `ageing` of silence.
    pub fn new(limit: usize, ageing: Duration) -> Self {
        Self { entries: HashMap::new(), counts: HashMap::new(), limit, ageing, swept: Duration::ZERO }
    }

    /// A station has sent; whether it is known now, and not one too many of its port or of all.
    pub fn learn(&mut self, vlan: u16, mac: Mac, port: usize, most: usize, now: Duration) -> bool {
        if let Some(entry) = self.entries.get_mut(&(vlan, mac)).filter(|e| e.port == port) {
            entry.seen = now;
            return true;
        }
        let full = |t: &Self| t.count(port) >= most || t.entries.len() >= t.limit;
        if full(self) && now.saturating_sub(self.swept) >= SWEEP {
            self.age(now);
        }
        // One that has moved gives its place up.
        let moved = self.entries.get(&(vlan, mac)).map(|e| e.port);
        if self.count(port) >= most || (moved.is_none() && full(self)) {
            return false;
        }
        if let Some(old) = moved {
            self.lose(old);
        }
        self.entries.insert((vlan, mac), Entry { port, seen: now });
        *self.counts.entry(port).or_default() += 1;
        true
    }

    /// The port that a station is behind, if it is known.
    pub fn find(&self, vlan: u16, mac: Mac, now: Duration) -> Option<usize> {
        let entry = self.entries.get(&(vlan, mac))?;
        (now.saturating_sub(entry.seen) < self.ageing).then_some(entry.port)
    }

    /// Forgets who was behind a port.
    pub fn forget(&mut self, port: usize) {
        self.entries.retain(|_, e| e.port != port);
        self.counts.remove(&port);
    }

    /// Forgets who has been silent.
    pub fn age(&mut self, now: Duration) {
        self.swept = now;
        let (ageing, counts) = (self.ageing, &mut self.counts);
        self.entries.retain(|_, e| {
            let stays = now.saturating_sub(e.seen) < ageing;
            if !stays && let Some(count) = counts.get_mut(&e.port) {
                *count -= 1;
            }
            stays
        });
    }

    /// All: VLAN, address, entry.
    pub fn all(&self) -> impl Iterator<Item = (u16, Mac, Entry)> {
        self.entries.iter().map(|((vlan, mac), entry)| (*vlan, *mac, *entry))
    }

    /// How many a port has.
    pub fn count(&self, port: usize) -> usize {
        self.counts.get(&port).copied().unwrap_or(0)
    }

    /// How many there may be.
    pub fn limit(&self) -> usize {
        self.limit
    }

    fn lose(&mut self, port: usize) {
        if let Some(count) = self.counts.get_mut(&port) {
            *count -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mac(n: u32) -> Mac {
        let [a, b, c, d] = n.to_be_bytes();
        Mac([2, 0, a, b, c, d])
    }

    const S: Duration = Duration::from_secs(1);

    #[test]
    fn stations_move_and_are_forgotten() {
        let mut table = Table::new(100, 300 * S);
        assert!(table.learn(1, mac(1), 4, 10, S));
        assert_eq!(table.find(1, mac(1), 2 * S), Some(4));
        assert_eq!(table.find(2, mac(1), 2 * S), None, "each VLAN has its own");
        assert!(table.learn(1, mac(1), 5, 10, 10 * S));
        assert_eq!((table.find(1, mac(1), 10 * S), table.count(4), table.count(5)), (Some(5), 0, 1));
        assert_eq!(table.find(1, mac(1), 309 * S), Some(5));
        assert_eq!(table.find(1, mac(1), 310 * S), None);
        table.age(310 * S);
        assert_eq!((table.all().count(), table.count(5)), (0, 0));
    }

    #[test]
    fn a_flood_of_addresses_takes_its_own_port_s_places_only() {
        let mut table = Table::new(100, 300 * S);
        assert!(table.learn(1, mac(0), 1, 64, S));
        let known = (1..5000).filter(|n| table.learn(1, mac(*n), 2, 64, S)).count();
        assert_eq!((known, table.all().count()), (64, 65));
        assert_eq!(table.find(1, mac(0), S), Some(1));
        assert!(!table.learn(1, mac(0), 2, 64, S), "nor does it take another's");
        // The whole is bounded as well.
        assert_eq!((9000..9999).filter(|n| table.learn(1, mac(*n), 3, 64, S)).count(), 35);
        // Places are free again when their stations have been silent.
        assert!(table.learn(1, mac(7777), 2, 64, 400 * S));
        assert_eq!(table.all().count(), 1);
        table.forget(2);
        assert_eq!((table.all().count(), table.count(2)), (0, 0));
    }
}
