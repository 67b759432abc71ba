//! DHCPv6 without state (RFC 8415, 18.3.6): addresses come by router advertisements, this tells the rest.
use super::core::Core;
use super::dhcp::names;
use std::net::{IpAddr, SocketAddr};

/// Where servers listen.
pub(super) const SERVER: u16 = 547;
const REPLY: u8 = 7;
const INFORMATION_REQUEST: u8 = 11;
/// Options (RFC 8415, 21; RFC 3646; RFC 5970).
const CLIENT_ID: u16 = 1;
const SERVER_ID: u16 = 2;
const NAME_SERVERS: u16 = 23;
const SEARCH: u16 = 24;
const BOOT_FILE: u16 = 59;

/// A message from a guest.
pub(super) fn input(core: &mut Core, guest: SocketAddr, data: &[u8]) {
    let [INFORMATION_REQUEST, xid @ ..] = data else { return };
    let Some(xid) = xid.first_chunk::<3>() else { return };
    let mut server = vec![0, 3, 0, 1];
    server.extend_from_slice(&core.mac());
    let mut client = None;
    let mut rest = &data[4..];
    while let Some(header) = rest.first_chunk::<4>() {
        let code = u16::from_be_bytes([header[0], header[1]]);
        let len = usize::from(u16::from_be_bytes([header[2], header[3]]));
        let Some(value) = rest.get(4..4 + len) else { return };
        match code {
            CLIENT_ID => client = Some(value),
            // It asks another server.
            SERVER_ID if value != server => return,
            _ => {}
        }
        rest = &rest[4 + len..];
    }
    let mut m = vec![REPLY];
    m.extend_from_slice(xid);
    let mut option = |code: u16, value: &[u8]| {
        m.extend_from_slice(&code.to_be_bytes());
        m.extend_from_slice(&(value.len() as u16).to_be_bytes());
        m.extend_from_slice(value);
    };
    // A DUID is at most 130 bytes (RFC 8415, 11.1).
    if let Some(id) = client.filter(|id| id.len() <= 130) {
        option(CLIENT_ID, id);
    }
    option(SERVER_ID, &server);
    let config = &core.config;
    if !config.restrict {
        option(NAME_SERVERS, &config.dns6.octets());
    }
    let search = names(&config.search);
    if !search.is_empty() && search.len() <= 1000 {
        option(SEARCH, &search);
    }
    if let Some(file) = &config.bootfile {
        option(BOOT_FILE, format!("tftp://[{}]/{}", config.host6, file.trim_start_matches('/')).as_bytes());
    }
    let from = SocketAddr::new(IpAddr::V6(core.link_local()), SERVER);
    core.datagram(from, guest, &m);
}
