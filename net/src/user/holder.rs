//! Who has a port of the host's, as far as the host tells.
use std::fs;
use std::net::SocketAddr;

/// The process that listens at an address, or at all addresses: its name and number. None if nobody does, if it is
/// another user's, or if the host has no /proc.
pub(super) fn of(udp: bool, at: SocketAddr) -> Option<String> {
    let tables: &[&str] = if udp { &["udp", "udp6"] } else { &["tcp", "tcp6"] };
    let mut inodes = Vec::new();
    for table in tables.iter().filter_map(|t| fs::read_to_string(format!("/proc/net/{t}")).ok()) {
        let found = table.lines().skip(1).filter_map(|line| inode(line, udp, at.port()));
        inodes.extend(found.map(|inode| format!("socket:[{inode}]")));
    }
    for process in fs::read_dir("/proc").ok()?.flatten() {
        let Some(number) = process.file_name().to_str().and_then(|n| n.parse::<u32>().ok()) else { continue };
        let Ok(descriptors) = fs::read_dir(process.path().join("fd")) else { continue };
        let has = descriptors.flatten().filter_map(|d| fs::read_link(d.path()).ok());
        if has.into_iter().any(|to| inodes.iter().any(|i| to.as_os_str() == i.as_str())) {
            let name = fs::read_to_string(process.path().join("comm")).unwrap_or_default();
            return Some(format!("{} (process {number})", name.trim_end()));
        }
    }
    None
}

/// The inode of a socket that listens at `port`, of a line of /proc/net/tcp (proc(5)).
fn inode(line: &str, udp: bool, port: u16) -> Option<&str> {
    const LISTEN: &str = "0A";
    let mut fields = line.split_whitespace();
    let local = fields.nth(1)?;
    let state = fields.nth(1)?;
    let here = u16::from_str_radix(local.rsplit(':').next()?, 16).ok()?;
    (here == port && (udp || state == LISTEN)).then(|| fields.nth(5)).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, UdpSocket};

    #[test]
    #[cfg(target_os = "linux")]
    fn this_process_is_found() {
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        let me = format!("(process {})", std::process::id());
        for (is_udp, at) in [(false, tcp.local_addr().unwrap()), (true, udp.local_addr().unwrap())] {
            assert!(of(is_udp, at).unwrap().ends_with(&me), "{at}");
        }
        let at = tcp.local_addr().unwrap();
        drop(tcp);
        assert_eq!(of(false, at), None);
    }
}
