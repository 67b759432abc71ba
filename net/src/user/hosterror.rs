//! What the network has said of a datagram that we sent: on Linux the socket's error queue (ip(7), IP_RECVERR), which
//! names who said it. Elsewhere only the socket's error is known.
use super::core::Unreachable;
use socket2::Socket;
use std::net::IpAddr;

/// What the network has said.
#[derive(Clone, Copy, Debug)]
pub(super) struct Told {
    /// By whom, if that is known.
    pub from: Option<IpAddr>,
    pub why: Unreachable,
    /// The first bytes of what was sent, without IP and UDP headers.
    pub data: [u8; 8],
}

#[cfg(target_os = "linux")]
mod linux {
    use super::{IpAddr, Socket, Told, Unreachable};
    use std::mem::{MaybeUninit, size_of};
    use std::net::Ipv6Addr;
    use std::os::fd::AsRawFd;

    pub fn set(socket: &Socket, level: i32, name: i32, value: i32) {
        // SAFETY: the option is an int, which lives as long as the call.
        unsafe {
            let value = (&raw const value).cast();
            libc::setsockopt(socket.as_raw_fd(), level, name, value, size_of::<i32>() as u32);
        }
    }

    pub fn get(socket: &Socket, level: i32, name: i32) -> Option<i32> {
        let (mut value, mut len) = (0i32, size_of::<i32>() as u32);
        // SAFETY: the option is an int, and its length is told.
        let done = unsafe {
            libc::getsockopt(socket.as_raw_fd(), level, name, (&raw mut value).cast(), &raw mut len)
        };
        (done == 0).then_some(value)
    }

    /// One entry of the error queue.
    pub fn next(socket: &Socket) -> Option<Option<Told>> {
        let mut control = [0u64; 64];
        let mut data = [0u8; 64];
        let mut iov = libc::iovec { iov_base: data.as_mut_ptr().cast(), iov_len: data.len() };
        // SAFETY: a message header of zeros is an empty one.
        let mut message: libc::msghdr = unsafe { MaybeUninit::zeroed().assume_init() };
        message.msg_iov = &raw mut iov;
        message.msg_iovlen = 1;
        message.msg_control = control.as_mut_ptr().cast();
        message.msg_controllen = size_of::<[u64; 64]>() as _;
        // SAFETY: all that the header points to lives as long as the call, with the lengths that it says.
        let n = unsafe {
            libc::recvmsg(socket.as_raw_fd(), &raw mut message, libc::MSG_ERRQUEUE | libc::MSG_DONTWAIT)
        };
        if n < 0 {
            return None;
        }
        // SAFETY: the kernel has filled the control buffer and said how much of it; CMSG_* walk within that.
        let mut header = unsafe { libc::CMSG_FIRSTHDR(&raw const message) };
        while !header.is_null() {
            // SAFETY: not null, thus a whole header within the buffer.
            let (level, kind, len) =
                unsafe { ((*header).cmsg_level, (*header).cmsg_type, (*header).cmsg_len) };
            // It is a u32 with other C libraries.
            #[allow(clippy::unnecessary_cast)]
            let whole = len as usize;
            let ours = (level, kind) == (libc::IPPROTO_IP, libc::IP_RECVERR)
                || (level, kind) == (libc::IPPROTO_IPV6, libc::IPV6_RECVERR);
            // SAFETY: it computes a length.
            let least = unsafe { libc::CMSG_LEN((size_of::<libc::sock_extended_err>()) as u32) } as usize;
            if ours && whole >= least {
                // SAFETY: it points behind a header that is in the buffer.
                let at = unsafe { libc::CMSG_DATA(header) };
                // SAFETY: the length says that the whole structure is there; it may be unaligned.
                let error = unsafe { at.cast::<libc::sock_extended_err>().read_unaligned() };
                let rest = whole - least;
                // SAFETY: `rest` bytes follow the structure, within the same message.
                let offender =
                    unsafe { std::slice::from_raw_parts(at.add(size_of::<libc::sock_extended_err>()), rest) };
                let data = *data.first_chunk().unwrap_or(&[0; 8]);
                return Some(meaning(&error).map(|why| Told { from: address(offender), why, data }));
            }
            // SAFETY: as for the first.
            header = unsafe { libc::CMSG_NXTHDR(&raw const message, header) };
        }
        Some(None)
    }

    /// The offender: a `sockaddr_in` or `sockaddr_in6`.
    fn address(bytes: &[u8]) -> Option<IpAddr> {
        let family = i32::from(u16::from_ne_bytes(*bytes.first_chunk()?));
        match family {
            libc::AF_INET => Some(IpAddr::from(*bytes.get(4..)?.first_chunk::<4>()?)),
            libc::AF_INET6 => Some(Ipv6Addr::from(*bytes.get(8..)?.first_chunk::<16>()?).into()),
            _ => None,
        }
    }

    fn meaning(e: &libc::sock_extended_err) -> Option<Unreachable> {
        let mtu = || u16::try_from(e.ee_info).unwrap_or(u16::MAX);
        match (e.ee_origin, e.ee_type, e.ee_code) {
            (libc::SO_EE_ORIGIN_ICMP, 3, 4) | (libc::SO_EE_ORIGIN_ICMP6, 2, _) => {
                Some(Unreachable::TooBig(mtu()))
            }
            (libc::SO_EE_ORIGIN_ICMP, 11, 0) | (libc::SO_EE_ORIGIN_ICMP6, 3, 0) => Some(Unreachable::Expired),
            // The host's error says less than the message (RFC 792; RFC 1812, 5.2.7.1; RFC 4443, 3.1).
            (libc::SO_EE_ORIGIN_ICMP, 3, 9 | 10 | 13) | (libc::SO_EE_ORIGIN_ICMP6, 1, 1) => {
                Some(Unreachable::Prohibited)
            }
            (libc::SO_EE_ORIGIN_LOCAL, ..) if e.ee_errno == libc::EMSGSIZE as u32 => {
                Some(Unreachable::TooBig(mtu()))
            }
            _ => Unreachable::from_error(&std::io::Error::from_raw_os_error(e.ee_errno as i32)),
        }
    }
}

/// Asks for the network's errors.
pub(super) fn enable(socket: &Socket, v6: bool) {
    #[cfg(target_os = "linux")]
    if v6 {
        linux::set(socket, libc::IPPROTO_IPV6, libc::IPV6_RECVERR, 1);
    } else {
        linux::set(socket, libc::IPPROTO_IP, libc::IP_RECVERR, 1);
    }
    #[cfg(not(target_os = "linux"))]
    let _ = (socket, v6);
}

/// What has been said since the last call.
pub(super) fn take(socket: &Socket) -> Vec<Told> {
    #[cfg(target_os = "linux")]
    {
        std::iter::from_fn(|| linux::next(socket)).take(16).flatten().collect()
    }
    #[cfg(not(target_os = "linux"))]
    {
        let _ = socket;
        Vec::new()
    }
}

/// The longest packet that the path of a connected socket takes, as far as the host knows.
pub(super) fn path_mtu(socket: &Socket, v6: bool) -> Option<u16> {
    #[cfg(target_os = "linux")]
    {
        let found = if v6 {
            linux::get(socket, libc::IPPROTO_IPV6, libc::IPV6_MTU)
        } else {
            linux::get(socket, libc::IPPROTO_IP, libc::IP_MTU)
        };
        found.and_then(|mtu| u16::try_from(mtu).ok())
    }
    #[cfg(not(target_os = "linux"))]
    {
        let _ = (socket, v6);
        None
    }
}
