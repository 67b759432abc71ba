//! What the network does just now, for programs to read.
use super::User;
use super::config::HostForward;
use super::core::{FlowInfo, Stats};
use crate::Mac;
use serde::Serialize;
use std::net::Ipv4Addr;

/// A guest's address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Lease {
    /// The card's, as `52:54:00:12:34:56`.
    pub mac: String,
    /// What it has leased, or been offered.
    pub address: Ipv4Addr,
}

/// All that there is to tell. Addresses are text, with their ports; counters are of bytes and frames since the start.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The ports of the host's that are open.
    pub forwards: Vec<HostForward>,
    /// What guests have leased, by address.
    pub leases: Vec<Lease>,
    /// What passes through, by the guest's end and the other one.
    pub flows: Vec<FlowInfo>,
    /// What has passed in all.
    pub stats: Stats,
    /// Bytes in the buffers of all flows.
    pub buffered: usize,
}

impl User {
    /// What the network does just now.
    pub fn report(&self) -> Report {
        let leases = self.leases().into_iter();
        let mut leases: Vec<_> =
            leases.map(|(mac, address)| Lease { mac: Mac(mac).to_string(), address }).collect();
        leases.sort_by_key(|l| l.address);
        let mut flows = self.flows();
        flows.sort_by_key(|f| (f.guest, f.remote, f.protocol));
        Report { forwards: self.forwards(), leases, flows, stats: self.stats(), buffered: self.buffered() }
    }

    /// The same as JSON (RFC 8259), an object with the names of [`Report`]'s fields.
    pub fn json(&self) -> serde_json::Value {
        // Numbers, texts and lists of them, all of which JSON has.
        serde_json::to_value(self.report()).unwrap_or_default()
    }
}
