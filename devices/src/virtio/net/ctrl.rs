//! What the driver commands through the control queue (5.1.6.5).
//!
//! ```text
//!   class 8 | command 8 | data ...   read      answer 8   written
//! ```
use super::super::chain::{self, Broken, Chain};
use super::filter::{ADDRESSES, Addresses, VLANS};
use super::rss::{KEY, Rss, TABLE};
use super::{Net, Settings, feature};
use crate::dma::Session;
use mynah_net::Mac;

/// Answers.
const OK: u8 = 0;
const ERR: u8 = 1;

/// Classes, and the commands of each.
mod class {
    pub const RX: u8 = 0;
    pub const MAC: u8 = 1;
    pub const VLAN: u8 = 2;
    pub const ANNOUNCE: u8 = 3;
    pub const MQ: u8 = 4;
    pub const GUEST_OFFLOADS: u8 = 5;
}

/// A command's data, of which there may be any number.
struct Data<'a> {
    memory: &'a Session<'a>,
    chain: &'a Chain,
    at: u64,
}

impl Data<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let mut bytes = [0; N];
        let there = chain::read(self.memory, &self.chain.readable, self.at, &mut bytes);
        self.at += N as u64;
        there.then_some(bytes)
    }

    fn take_flag(&mut self) -> Option<bool> {
        self.take().map(|[b]| b != 0)
    }

    fn take_word(&mut self) -> Option<u16> {
        self.take().map(u16::from_le_bytes)
    }

    /// Hashes, and how many pairs there are to be.
    fn take_rss(&mut self) -> Option<(Rss, u16)> {
        let kinds = u32::from_le_bytes(self.take()?);
        let entries = self.take_word()?.checked_add(1).filter(|n| *n <= TABLE)?;
        let others = self.take_word()?;
        let table = (0..entries).map(|_| self.take_word()).collect::<Option<_>>()?;
        let pairs = self.take_word()?;
        let [key] = self.take()?;
        let bytes = (0..usize::from(key).min(KEY + 1)).map(|_| self.take().map(|[b]| b));
        Some((Rss { kinds, others, table, key: bytes.collect::<Option<_>>()? }, pairs))
    }

    /// A number of addresses, and the addresses.
    fn take_addresses(&mut self) -> Option<Addresses> {
        let count = u64::from(u32::from_le_bytes(self.take()?));
        let left = chain::total(&self.chain.readable).checked_sub(self.at)?;
        if count * 6 > left {
            return None;
        }
        if count > ADDRESSES as u64 {
            self.at += count * 6;
            return Some(None);
        }
        let all: Option<Vec<_>> = (0..count).map(|_| self.take()).collect();
        all.map(Some)
    }
}

impl Net {
    /// Carries a command out; bytes written.
    pub(super) fn command(&self, chain: &Chain, memory: &Session<'_>) -> Result<u32, Broken> {
        if chain::total(&chain.readable) < 2 || chain.writable.is_empty() {
            return Err(Broken("a command that is none"));
        }
        let mut data = Data { memory, chain, at: 0 };
        let Some([class, command]) = data.take() else {
            return Err(Broken("a command that is not in memory"));
        };
        let done = {
            let mut settings = self.settings.lock();
            self.obey(&mut settings, class, command, &mut data).is_some()
        };
        // Who waits for a queue that is not in use any more is heard by another one.
        if done && class == class::MQ {
            self.wake();
        }
        let answer = if done { OK } else { ERR };
        if !chain::write(memory, &chain.writable, 0, &[answer]) {
            return Err(Broken("an answer that is not in memory"));
        }
        Ok(1)
    }

    /// None if it cannot be done: nothing has changed then.
    fn obey(&self, s: &mut Settings, class: u8, command: u8, data: &mut Data<'_>) -> Option<()> {
        let features = self.features();
        let has = |bit: u64| (features & bit != 0).then_some(());
        match (class, command) {
            (class::RX, 0 | 1) => has(feature::CTRL_RX)?,
            (class::RX, _) => has(feature::CTRL_RX_EXTRA)?,
            (class::MAC, 0) => has(feature::CTRL_RX)?,
            (class::MAC, _) => has(feature::CTRL_MAC_ADDR)?,
            (class::VLAN, _) => has(feature::CTRL_VLAN)?,
            (class::ANNOUNCE, _) => has(feature::GUEST_ANNOUNCE)?,
            (class::MQ, 1) => has(feature::RSS)?,
            (class::MQ, _) => has(feature::MQ)?,
            (class::GUEST_OFFLOADS, _) => has(feature::CTRL_GUEST_OFFLOADS)?,
            _ => return None,
        }
        let f = &mut s.filter;
        match (class, command) {
            (class::RX, 0) => f.promiscuous = data.take_flag()?,
            (class::RX, 1) => f.all_multicast = data.take_flag()?,
            (class::RX, 2) => f.all_unicast = data.take_flag()?,
            (class::RX, 3) => f.no_multicast = data.take_flag()?,
            (class::RX, 4) => f.no_unicast = data.take_flag()?,
            (class::RX, 5) => f.no_broadcast = data.take_flag()?,
            (class::MAC, 0) => {
                let tables = (data.take_addresses()?, data.take_addresses()?);
                (f.unicast, f.multicast) = tables;
            }
            (class::MAC, 1) => {
                let mac = data.take()?;
                s.mac = Some(mac).filter(|mac| !Mac(*mac).is_multicast())?;
            }
            (class::VLAN, 0 | 1) => {
                let number = data.take_word()?;
                f.set_vlan(Some(number).filter(|n| *n < VLANS)?, command == 0);
            }
            (class::ANNOUNCE, 0) => {
                s.announce.then_some(())?;
                s.announce = false;
            }
            (class::MQ, 0) => {
                let pairs = data.take_word()?;
                s.pairs = Some(pairs).filter(|n| (1..=self.options.queues).contains(n))?;
                s.rss = None;
            }
            (class::MQ, 1) => {
                let (rss, pairs) = data.take_rss()?;
                let sound = rss.is_sound(self.options.queues) && (1..=self.options.queues).contains(&pairs);
                s.rss = Some(Some(rss).filter(|_| sound)?);
                s.pairs = pairs;
            }
            (class::GUEST_OFFLOADS, 0) => {
                let offloads = u64::from_le_bytes(data.take()?);
                s.offloads = Some(offloads).filter(|o| o & !(features & feature::GUEST_OFFLOADS) == 0)?;
            }
            _ => return None,
        }
        Some(())
    }
}
