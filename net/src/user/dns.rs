//! The host's name servers, as resolv.conf(5) names them now; on Windows, where there is no such file, those of its
//! network adapters.
#[cfg(unix)]
use std::ffi::CString;
use std::fs::Metadata;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime};

/// How often is looked whether the file has changed.
const EVERY: Duration = Duration::from_secs(if cfg!(windows) { 10 } else { 1 });
/// The most name servers (MAXNS of the C library is 3).
const MOST: usize = 8;
/// What a file of name servers is at most.
const LONGEST: u64 = 64 << 10;

/// What is another if a file is: when it was written, its length, and which file it is, as one may take its place.
type Stamp = (SystemTime, u64, u64);

fn stamp(file: &Metadata) -> Option<Stamp> {
    #[cfg(unix)]
    let file_id = std::os::unix::fs::MetadataExt::ino(file);
    #[cfg(windows)]
    let file_id = std::os::windows::fs::MetadataExt::creation_time(file);
    Some((file.modified().ok()?, file.len(), file_id))
}

/// The name servers of the host.
pub(super) struct Resolvers {
    path: PathBuf,
    stamp: Option<Stamp>,
    looked: Option<Instant>,
    list: Vec<SocketAddr>,
}

impl Resolvers {
    pub fn new(path: PathBuf) -> Self {
        Self { path, stamp: None, looked: None, list: Vec::new() }
    }

    /// The name servers now; without any in the file the host's own, as the C library has it.
    pub fn current(&mut self, now: Instant) -> &[SocketAddr] {
        if self.looked.is_none_or(|t| now.saturating_duration_since(t) >= EVERY) {
            self.looked = Some(now);
            let found = std::fs::metadata(&self.path).ok();
            let stamp = found.filter(|m| m.len() <= LONGEST).and_then(|m| stamp(&m));
            if stamp != self.stamp || self.list.is_empty() {
                self.stamp = stamp;
                let text = stamp.and_then(|_| std::fs::read(&self.path).ok()).unwrap_or_default();
                self.list = parse(&String::from_utf8_lossy(&text));
                #[cfg(windows)]
                if self.list.is_empty() {
                    self.list = windows::servers();
                }
                if self.list.is_empty() {
                    self.list.push(SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 53));
                }
            }
        }
        &self.list
    }
}

fn parse(text: &str) -> Vec<SocketAddr> {
    let servers = text.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        (words.next() == Some("nameserver")).then(|| words.next())?
    });
    servers.filter_map(server).take(MOST).collect()
}

/// An address, of IPv6 with its interface perhaps.
fn server(word: &str) -> Option<SocketAddr> {
    if let Some((address, scope)) = word.split_once('%') {
        let address: Ipv6Addr = address.parse().ok()?;
        let scope = scope.parse().ok().or_else(|| {
            #[cfg(unix)]
            let index = {
                let name = CString::new(scope).ok()?;
                // SAFETY: the name is a string of C's.
                unsafe { libc::if_nametoindex(name.as_ptr()) }
            };
            #[cfg(windows)]
            let index = 0;
            (index != 0).then_some(index)
        })?;
        return Some(SocketAddrV6::new(address, 53, 0, scope).into());
    }
    // With a port, as OpenBSD's resolv.conf(5) has it.
    let (address, port) = match word.strip_prefix('[').and_then(|w| w.split_once("]:")) {
        Some((address, port)) => (address, port.parse().ok()?),
        None => (word, 53),
    };
    Some(SocketAddr::new(address.parse::<IpAddr>().ok()?, port))
}

#[cfg(windows)]
mod windows {
    use super::{Ipv4Addr, Ipv6Addr, MOST, SocketAddr, SocketAddrV6};
    use std::ptr;
    use windows_sys::Win32::NetworkManagement::IpHelper as ip;
    use windows_sys::Win32::NetworkManagement::Ndis::IfOperStatusUp;
    use windows_sys::Win32::Networking::WinSock as ws;

    /// Those of all adapters that are up.
    pub(super) fn servers() -> Vec<SocketAddr> {
        let flags = ip::GAA_FLAG_SKIP_UNICAST | ip::GAA_FLAG_SKIP_ANYCAST | ip::GAA_FLAG_SKIP_MULTICAST;
        let mut room: Vec<u64> = Vec::new();
        for _ in 0..4 {
            let mut len = (room.len() * 8) as u32;
            let first: *mut ip::IP_ADAPTER_ADDRESSES_LH = room.as_mut_ptr().cast();
            // SAFETY: `first` has `len` bytes, aligned as the structure wants.
            let done = unsafe {
                ip::GetAdaptersAddresses(ws::AF_UNSPEC.into(), flags, ptr::null(), first, &raw mut len)
            };
            match done {
                // SAFETY: the call has filled in a list, all of which is within `room`.
                0 => return unsafe { walk(first) },
                // ERROR_BUFFER_OVERFLOW: `len` is what it takes.
                111 => room.resize(len.div_ceil(8) as usize, 0),
                _ => break,
            }
        }
        Vec::new()
    }

    /// # Safety
    /// `adapter` is a list of GetAdaptersAddresses', or null.
    unsafe fn walk(mut adapter: *const ip::IP_ADAPTER_ADDRESSES_LH) -> Vec<SocketAddr> {
        let mut found = Vec::new();
        // SAFETY: by the caller's promise each pointer is null or leads to the next of the list.
        while let Some(this) = unsafe { adapter.as_ref() } {
            let mut server = this.FirstDnsServerAddress;
            // SAFETY: as above.
            while let Some(one) = unsafe { server.as_ref() } {
                if this.OperStatus == IfOperStatusUp {
                    // SAFETY: it has an address of that many bytes.
                    found.extend(unsafe { address(&one.Address) });
                }
                server = one.Next;
            }
            adapter = this.Next;
        }
        found.dedup();
        found.truncate(MOST);
        found
    }

    /// # Safety
    /// `at` points to as many bytes as it says.
    unsafe fn address(at: &ws::SOCKET_ADDRESS) -> Option<SocketAddr> {
        // SAFETY: it has the family at least.
        let family = unsafe { at.lpSockaddr.as_ref() }?.sa_family;
        if family == ws::AF_INET && at.iSockaddrLength as usize >= size_of::<ws::SOCKADDR_IN>() {
            // SAFETY: it is an address of IPv4, all of which is there.
            let v4 = unsafe { &*at.lpSockaddr.cast::<ws::SOCKADDR_IN>() };
            // SAFETY: any bits are a number.
            let bits = unsafe { v4.sin_addr.S_un.S_addr };
            return Some(SocketAddr::new(Ipv4Addr::from(bits.to_ne_bytes()).into(), 53));
        }
        if family == ws::AF_INET6 && at.iSockaddrLength as usize >= size_of::<ws::SOCKADDR_IN6>() {
            // SAFETY: it is an address of IPv6, all of which is there.
            let v6 = unsafe { &*at.lpSockaddr.cast::<ws::SOCKADDR_IN6>() };
            // SAFETY: any bits are bytes, and any are a number.
            let (bytes, scope) = unsafe { (v6.sin6_addr.u.Byte, v6.Anonymous.sin6_scope_id) };
            let address = Ipv6Addr::from(bytes);
            // Site-local addresses that Windows names where nobody has named others.
            let placeholder = address.segments()[..7] == [0xfec0, 0, 0, 0xffff, 0, 0, 0];
            return (!placeholder).then(|| SocketAddrV6::new(address, 53, 0, scope).into());
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_are_read() {
        let text = "# nameserver 9.9.9.9\nsearch a b\nnameserver 127.0.0.53\n nameserver\t2001:db8::53 # x\n\
                    nameserver nonsense\nnameserver fe80::1%7\nnameserver [192.0.2.1]:5353\n";
        let found: Vec<String> = parse(text).iter().map(ToString::to_string).collect();
        assert_eq!(found, ["127.0.0.53:53", "[2001:db8::53]:53", "[fe80::1%7]:53", "192.0.2.1:5353"]);
    }

    #[test]
    fn a_change_is_seen() {
        let path = std::env::temp_dir().join(format!("mynah-resolv-{}", std::process::id()));
        std::fs::write(&path, "nameserver 192.0.2.1\n").unwrap();
        let (mut r, now) = (Resolvers::new(path.clone()), Instant::now());
        assert_eq!(r.current(now)[0].to_string(), "192.0.2.1:53");
        std::fs::write(&path, "nameserver 2001:db8::1\n").unwrap();
        assert_eq!(r.current(now)[0].to_string(), "192.0.2.1:53", "not looked at again so soon");
        let later = now + EVERY;
        assert_eq!(r.current(later)[0].to_string(), "[2001:db8::1]:53");
        // Another file in its place, as old and as long.
        let other = path.with_extension("new");
        std::fs::write(&other, "nameserver 2001:db8::2\n").unwrap();
        let old = std::fs::metadata(&path).unwrap().modified().unwrap();
        std::fs::File::options().write(true).open(&other).unwrap().set_modified(old).unwrap();
        std::fs::rename(&other, &path).unwrap();
        let later = later + EVERY;
        assert_eq!(r.current(later)[0].to_string(), "[2001:db8::2]:53");
        std::fs::remove_file(&path).unwrap();
        assert_eq!(r.current(later + EVERY)[0].to_string(), "127.0.0.1:53");
    }
}
