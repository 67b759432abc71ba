//! Numbers of the protocols that several parts look at.

/// EtherTypes (IEEE 802 Numbers, IANA).
pub mod ether {
    /// ARP.
    pub const ARP: u16 = 0x0806;
    /// IPv4.
    pub const IPV4: u16 = 0x0800;
    /// IPv6.
    pub const IPV6: u16 = 0x86dd;
}

/// Protocols in IP (Protocol Numbers, IANA).
pub mod ip {
    /// ICMP.
    pub const ICMP: u8 = 1;
    /// TCP.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
    /// ICMPv6.
    pub const ICMPV6: u8 = 58;
    const DCCP: u8 = 33;
    const SCTP: u8 = 132;
    const UDP_LITE: u8 = 136;

    /// Whether a transport has ports, and they are its first four bytes.
    pub fn has_ports(protocol: u8) -> bool {
        matches!(protocol, TCP | UDP | DCCP | SCTP | UDP_LITE)
    }
}

/// Extension headers of IPv6 (RFC 8200, 4).
pub(crate) mod extension {
    pub const HOP_BY_HOP: u8 = 0;
    pub const ROUTING: u8 = 43;
    pub const FRAGMENT: u8 = 44;
    pub const AH: u8 = 51;
    pub const DESTINATION: u8 = 60;
}

/// The header of virtio-net in front of a frame (virtio 1.3, 5.1.6), which taps have too.
pub mod vnet {
    /// flags: the checksum is to be computed from `csum_start` on.
    pub const NEEDS_CSUM: u8 = 1;
    /// flags: it has been found right.
    pub const DATA_VALID: u8 = 2;
    /// gso_type: the frame is whole.
    pub const GSO_NONE: u8 = 0;
    /// gso_type: TCP over IPv4.
    pub const GSO_TCPV4: u8 = 1;
    /// gso_type: TCP over IPv6.
    pub const GSO_TCPV6: u8 = 4;
    /// gso_type: UDP.
    pub const GSO_UDP: u8 = 5;
    /// gso_type: the segments tell of congestion (RFC 3168, 6.1.2).
    pub const GSO_ECN: u8 = 0x80;
}

/// TCP's flags, in the header's byte 13: congestion window reduced (RFC 3168, 6.1).
pub const TCP_CWR: u8 = 0x80;
