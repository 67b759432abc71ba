//! The DHCP server (RFC 2131, RFC 2132), which answers BOOTP (RFC 951) as well.
use super::core::Core;
use super::lease::{self, Leases};
use smoltcp::wire::{DhcpMessageType, DhcpOpCode, DhcpPacket};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

/// Where the server listens, and the clients.
pub(super) const SERVER: u16 = 67;
const CLIENT: u16 = 68;
/// The fixed part, and the least length of a BOOTP message (RFC 1542, 2.1).
const FIXED: usize = 236;
const LEAST: usize = 300;
const COOKIE: [u8; 4] = [99, 130, 83, 99];

/// Options (RFC 2132 by section 3.3, 3.5, 3.8, 3.14, 3.17, 9.2, 9.6, 9.7, 9.1, 9.4; RFC 3397; RFC 2132, 5.1).
const MASK: u8 = 1;
const ROUTER: u8 = 3;
const NAME_SERVER: u8 = 6;
const HOST_NAME: u8 = 12;
const DOMAIN: u8 = 15;
const MTU: u8 = 26;
const WISH: u8 = 50;
const LEASE: u8 = 51;
const KIND: u8 = 53;
const SERVER_ID: u8 = 54;
const TFTP_NAME: u8 = 66;
const BOOT_FILE: u8 = 67;
const SEARCH: u8 = 119;

/// A message from a guest.
pub(super) fn input(core: &mut Core, leases: &mut Leases, data: &[u8]) {
    let Ok(packet) = DhcpPacket::new_checked(data) else { return };
    if data.len() < FIXED || packet.opcode() != DhcpOpCode::Request || packet.hardware_len() != 6 {
        return;
    }
    let mac = packet.client_hardware_address().0;
    if mac[0] & 1 != 0 {
        return;
    }
    let (mut kind, mut wish, mut server) = (None, None, None);
    if data.len() >= FIXED + 4 && packet.magic_number() == u32::from_be_bytes(COOKIE) {
        for option in packet.options() {
            let address = || <[u8; 4]>::try_from(option.data).ok().map(Ipv4Addr::from);
            match option.kind {
                KIND => kind = option.data.first().copied().map(DhcpMessageType::from),
                WISH => wish = address(),
                SERVER_ID => server = address(),
                _ => {}
            }
        }
    }
    let ours = core.config.host;
    let ciaddr = packet.client_ip();
    let reply = |core: &mut Core, kind, address: Option<Ipv4Addr>| send(core, data, mac, kind, address);
    match kind {
        None => {
            // BOOTP: an address for good.
            if let Some(address) = leases.offer(mac, None, core.now)
                && leases.request(mac, address, core.now)
            {
                core.leased = Some(address.into());
                reply(core, None, Some(address));
            }
        }
        Some(DhcpMessageType::Discover) => match leases.offer(mac, wish, core.now) {
            Some(address) => reply(core, Some(DhcpMessageType::Offer), Some(address)),
            None => core.once("leases", format_args!("there is no address left for DHCP")),
        },
        Some(DhcpMessageType::Request) => {
            if server.is_some_and(|s| s != ours) {
                // It has taken another server's offer.
                leases.release(mac);
                return;
            }
            let wanted = wish.or(Some(ciaddr).filter(|a| !a.is_unspecified()));
            if wanted.is_some_and(|a| leases.request(mac, a, core.now)) {
                core.leased = wanted.map(IpAddr::from);
                reply(core, Some(DhcpMessageType::Ack), wanted);
            } else {
                reply(core, Some(DhcpMessageType::Nak), None);
            }
        }
        Some(DhcpMessageType::Inform) => reply(core, Some(DhcpMessageType::Ack), None),
        Some(DhcpMessageType::Release) => leases.release(mac),
        Some(DhcpMessageType::Decline) => {
            if let Some(address) = wish {
                leases.decline(mac, address);
            }
        }
        _ => {}
    }
}

/// Sends an answer (RFC 2131, 4.3.1, table 3; where to, 4.1).
fn send(
    core: &mut Core,
    request: &[u8],
    mac: [u8; 6],
    kind: Option<DhcpMessageType>,
    address: Option<Ipv4Addr>,
) {
    let packet = DhcpPacket::new_unchecked(request);
    let (ciaddr, flags) = (packet.client_ip(), u16::from_be_bytes([request[10], request[11]]));
    let host = core.config.host;
    let refused = kind == Some(DhcpMessageType::Nak);
    let mut m = vec![0; FIXED];
    m[0] = 2;
    m[1] = 1;
    m[2] = 6;
    m[4..8].copy_from_slice(&request[4..8]);
    m[10..12].copy_from_slice(&request[10..12]);
    if !refused {
        m[12..16].copy_from_slice(&ciaddr.octets());
        m[16..20].copy_from_slice(&address.unwrap_or(Ipv4Addr::UNSPECIFIED).octets());
        m[20..24].copy_from_slice(&host.octets());
        let file = core.config.bootfile.as_deref().unwrap_or_default().as_bytes();
        let file = &file[..file.len().min(127)];
        m[108..108 + file.len()].copy_from_slice(file);
    }
    m[28..44].copy_from_slice(&request[28..44]);
    m.extend_from_slice(&COOKIE);
    let mut option = |code: u8, data: &[u8]| {
        for part in data.chunks(255) {
            m.extend_from_slice(&[code, part.len() as u8]);
            m.extend_from_slice(part);
        }
    };
    if let Some(kind) = kind {
        option(KIND, &[kind.into()]);
        option(SERVER_ID, &host.octets());
    }
    if !refused {
        let config = &core.config;
        if address.is_some() && kind.is_some() {
            option(LEASE, &(lease::TIME.as_secs() as u32).to_be_bytes());
        }
        option(MASK, &config.mask().to_be_bytes());
        if !config.restrict {
            option(ROUTER, &host.octets());
            option(NAME_SERVER, &config.dns.octets());
        }
        if config.mtu != 1500 {
            option(MTU, &config.mtu.to_be_bytes());
        }
        let text = [
            (HOST_NAME, &config.hostname),
            (DOMAIN, &config.domain),
            (TFTP_NAME, &config.tftp_name),
            (BOOT_FILE, &config.bootfile),
        ];
        for (code, value) in text {
            option(code, value.as_deref().unwrap_or_default().as_bytes());
        }
        option(SEARCH, &names(&config.search));
    }
    m.push(255);
    m.resize(m.len().max(LEAST), 0);
    let broadcast = (IpAddr::V4(Ipv4Addr::BROADCAST), [0xff; 6]);
    let (to, at) = match address {
        _ if refused => broadcast,
        _ if !ciaddr.is_unspecified() => (ciaddr.into(), mac),
        Some(address) if flags & 0x8000 == 0 => (address.into(), mac),
        _ => broadcast,
    };
    core.datagram_to(Some(at), SocketAddr::new(host.into(), SERVER), SocketAddr::new(to, CLIENT), &m);
}

/// Domains as DNS has them (RFC 1035, 3.1), without compression. One that cannot be written so is left out.
pub(super) fn names(domains: &[String]) -> Vec<u8> {
    let mut all = Vec::new();
    for domain in domains {
        let labels: Vec<&str> = domain.trim_end_matches('.').split('.').collect();
        if labels.iter().all(|l| (1..=63).contains(&l.len())) && domain.len() <= 253 {
            for label in labels {
                all.push(label.len() as u8);
                all.extend_from_slice(label.as_bytes());
            }
            all.push(0);
        }
    }
    all
}
