//! Who holds a socket address: for error messages only, from Linux's /proc (proc(5), net/unix and net/tcp).
use super::spec::Address;
use std::fs;

/// The process that listens on `address`, as `process 123 (name)`, if /proc tells.
pub(super) fn of(address: &Address) -> Option<String> {
    let inode = match address {
        Address::Unix(path) => {
            let table = fs::read("/proc/net/unix").ok()?;
            table.split(|b| *b == b'\n').find_map(|line| {
                // Num RefCount Protocol Flags Type St Inode Path, the inode padded with spaces.
                let fields: Vec<&[u8]> = line.splitn(7, |b| *b == b' ').collect();
                let tail = fields.get(6)?.trim_ascii_start();
                let (inode, name) = tail.split_at(tail.iter().position(|b| *b == b' ')?);
                let listening = fields.get(3).is_some_and(|f| *f == b"00010000");
                (listening && name.trim_ascii() == path.as_os_str().as_encoded_bytes())
                    .then(|| String::from_utf8_lossy(inode).into_owned())
            })?
        }
        Address::Tcp { port, .. } => ["/proc/net/tcp", "/proc/net/tcp6"].into_iter().find_map(|table| {
            fs::read_to_string(table).ok()?.lines().skip(1).find_map(|line| {
                // sl local_address rem_address st tx:rx tr:tm retrnsmt uid timeout inode; state 0A is LISTEN.
                let fields: Vec<&str> = line.split_whitespace().collect();
                let local = fields.get(1)?.rsplit_once(':')?.1;
                (u16::from_str_radix(local, 16) == Ok(*port) && fields.get(3) == Some(&"0A"))
                    .then(|| fields.get(9).map(|s| (*s).to_owned()))?
            })
        })?,
    };
    let link = format!("socket:[{inode}]");
    fs::read_dir("/proc").ok()?.flatten().find_map(|entry| {
        let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
        let mut fds = fs::read_dir(entry.path().join("fd")).ok()?.flatten();
        fds.find(|fd| fs::read_link(fd.path()).is_ok_and(|to| to.as_os_str() == link.as_str()))?;
        let name = fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
        Some(format!("process {pid} ({})", name.trim_end()))
    })
}
