//! Taps as Linux has them: /dev/net/tun and the ioctls of interfaces (Linux, Documentation/networking/tuntap.rst;
//! netdevice(7)).
use super::TapError;
use crate::{Takes, tap::header};
use socket2::Socket;
use std::ffi::{c_int, c_ulong, c_void};
use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind};
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;

/// The device that taps are made with.
const DEVICE: &str = "/dev/net/tun";
/// Bytes of an interface's name, with the zero at its end.
const NAME: usize = libc::IFNAMSIZ;
/// CAP_NET_ADMIN's bit (capabilities(7)).
const CAP_NET_ADMIN: u32 = 12;
/// Puts an interface on a bridge (include/uapi/linux/sockios.h).
const SIOCBRADDIF: c_ulong = 0x89a2;
/// Processes that are looked at for who has a tap.
const MOST_PROCESSES: usize = 4096;

/// The descriptors of a tap, one for each queue.
pub(super) struct Opened {
    pub name: String,
    pub queues: Vec<File>,
    pub vnet_hdr: bool,
}

/// Whether this process may make and set up interfaces.
pub(super) fn may_administer() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status.lines().find_map(|l| l.strip_prefix("CapEff:"));
    let bits = effective.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()).unwrap_or(0);
    bits >> CAP_NET_ADMIN & 1 != 0
}

/// What the loop waits for: a duplicate, which is ready when the tap is.
pub(super) fn watched(queue: &File) -> io::Result<Socket> {
    Ok(OwnedFd::from(queue.try_clone()?).into())
}

/// Makes a tap, or takes one that is there and no one else has.
pub(super) fn open(ifname: &str, queues: u16, vnet_hdr: Option<bool>) -> Result<Opened, TapError> {
    let mut name = ifname.to_owned();
    let mut opened = Vec::new();
    let mut with_header = vnet_hdr.unwrap_or(true);
    for _ in 0..queues {
        let device = OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open(DEVICE);
        let device = device.map_err(|why| match why.kind() {
            ErrorKind::NotFound => TapError::NoDevice,
            ErrorKind::PermissionDenied => TapError::DeviceRefused { user: user() },
            _ => TapError::Host { what: DEVICE.into(), why },
        })?;
        let has = features(&device);
        if has & libc::IFF_VNET_HDR == 0 {
            if vnet_hdr == Some(true) {
                return Err(TapError::NoHeader);
            }
            with_header = false;
        }
        let mut flags = libc::IFF_TAP | libc::IFF_NO_PI;
        flags |= if with_header { libc::IFF_VNET_HDR } else { 0 };
        flags |= if queues > 1 { libc::IFF_MULTI_QUEUE } else { 0 };
        let mut request = request(&name)?;
        request.ifr_ifru.ifru_flags = flags as i16;
        // SAFETY: TUNSETIFF reads and writes one ifreq, which this is.
        let made = unsafe { libc::ioctl(device.as_raw_fd(), libc::TUNSETIFF as _, &mut request) };
        check(made).map_err(|why| refused(&name, queues, why))?;
        name = name_of(&request);
        opened.push(device);
    }
    let made = Opened { name, queues: opened, vnet_hdr: with_header };
    made.set_up_headers()?;
    Ok(made)
}

/// Takes descriptors of a tap that somebody else has opened: the process's parent (`fd=`) or a helper.
pub(super) fn adopt(descriptors: &[RawFd], vnet_hdr: Option<bool>) -> Result<Opened, TapError> {
    let mut made = Opened { name: String::new(), queues: Vec::new(), vnet_hdr: false };
    for &number in descriptors {
        let bad = |why| TapError::Descriptor { number, why };
        // SAFETY: F_GETFD takes no argument and is answered for any number.
        check(unsafe { libc::fcntl(number, libc::F_GETFD) }).map_err(bad)?;
        // SAFETY: the number is an open descriptor, as has just been seen; whoever gave it to us keeps it open. It is
        // borrowed for this one call, whose result is a descriptor of our own.
        let own: OwnedFd = unsafe { BorrowedFd::borrow_raw(number) }.try_clone_to_owned().map_err(bad)?;
        let device = File::from(own);
        let mut request = request("")?;
        // SAFETY: TUNGETIFF writes one ifreq, which this is.
        let got = unsafe { libc::ioctl(number, libc::TUNGETIFF as _, &mut request) };
        check(got).map_err(bad)?;
        // SAFETY: TUNGETIFF has filled the flags in.
        let flags = c_int::from(unsafe { request.ifr_ifru.ifru_flags });
        made.name = name_of(&request);
        made.vnet_hdr = flags & libc::IFF_VNET_HDR != 0;
        if flags & libc::IFF_TAP == 0 || flags & libc::IFF_NO_PI == 0 {
            return Err(bad(io::Error::other("it is no tap with IFF_NO_PI")));
        }
        nonblocking(&device).map_err(bad)?;
        made.queues.push(device);
    }
    if vnet_hdr == Some(true) && !made.vnet_hdr {
        return Err(TapError::NoHeader);
    }
    made.set_up_headers()?;
    Ok(made)
}

impl Opened {
    fn set_up_headers(&self) -> Result<(), TapError> {
        if !self.vnet_hdr {
            return Ok(());
        }
        for queue in &self.queues {
            let mut len = header::LEN as c_int;
            // SAFETY: TUNSETVNETHDRSZ reads one int, which this is.
            let set = unsafe { libc::ioctl(queue.as_raw_fd(), libc::TUNSETVNETHDRSZ as _, &mut len) };
            check(set).map_err(|why| TapError::Host { what: self.name.clone(), why })?;
        }
        // What an earlier owner of a tap that stays has asked for, we have not.
        self.queues.first().map_or(Ok(()), |q| offer(q, Takes::default())).or(Ok(()))
    }
}

/// Tells the host what may be left to us of the frames that it sends.
pub(super) fn offer(queue: &File, takes: Takes) -> io::Result<()> {
    let any = takes.partial || takes.tso4 || takes.tso6;
    let bits = if any { libc::TUN_F_CSUM } else { 0 }
        | if takes.tso4 { libc::TUN_F_TSO4 } else { 0 }
        | if takes.tso6 { libc::TUN_F_TSO6 } else { 0 };
    // SAFETY: TUNSETOFFLOAD takes its argument by value.
    check(unsafe { libc::ioctl(queue.as_raw_fd(), libc::TUNSETOFFLOAD as _, bits as c_ulong) })
}

/// Puts an interface on a bridge, with an address that leaves the bridge its own, and the bridge's longest packet.
pub(super) fn join_bridge(name: &str, bridge: &str) -> Result<(), TapError> {
    let at = |why| TapError::Bridge { bridge: bridge.into(), name: name.into(), why };
    let socket = control().map_err(at)?;
    let mut hardware = request(name)?;
    interface(&socket, libc::SIOCGIFHWADDR, &mut hardware).map_err(at)?;
    // SAFETY: SIOCGIFHWADDR has filled the address in; its bytes are plain numbers. A bridge takes the lowest address
    // of its ports for its own.
    unsafe { hardware.ifr_ifru.ifru_hwaddr.sa_data[0] = 0xfe_u8 as _ };
    interface(&socket, libc::SIOCSIFHWADDR, &mut hardware).map_err(at)?;
    let mut mtu = request(bridge)?;
    interface(&socket, libc::SIOCGIFMTU, &mut mtu).map_err(at)?;
    mtu.ifr_name = request(name)?.ifr_name;
    interface(&socket, libc::SIOCSIFMTU, &mut mtu).map_err(at)?;
    let mut index = request(name)?;
    interface(&socket, libc::SIOCGIFINDEX, &mut index).map_err(at)?;
    index.ifr_name = request(bridge)?.ifr_name;
    interface(&socket, SIOCBRADDIF, &mut index).or_else(|why| match why.raw_os_error() {
        // It is on one already: on this one, or the user has seen to it.
        Some(libc::EBUSY) => Ok(()),
        _ => Err(at(why)),
    })
}

/// Switches an interface on.
pub(super) fn bring_up(name: &str) -> Result<(), TapError> {
    let at = |why| TapError::Host { what: format!("{name}: it cannot be brought up"), why };
    let socket = control().map_err(at)?;
    let mut flags = request(name)?;
    interface(&socket, libc::SIOCGIFFLAGS, &mut flags).map_err(at)?;
    // SAFETY: SIOCGIFFLAGS has filled the flags in.
    let now = unsafe { flags.ifr_ifru.ifru_flags };
    if c_int::from(now) & libc::IFF_UP == 0 {
        flags.ifr_ifru.ifru_flags = now | libc::IFF_UP as i16;
        interface(&socket, libc::SIOCSIFFLAGS, &mut flags).map_err(at)?;
    }
    Ok(())
}

/// Gives an interface an address and the length of its network's prefix.
pub(super) fn set_address(name: &str, address: Ipv4Addr, prefix: u8) -> Result<(), TapError> {
    let at = |why| TapError::Host { what: format!("{name}: the address {address}/{prefix}"), why };
    let socket = control().map_err(at)?;
    let mask = Ipv4Addr::from(u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0));
    for (what, value) in [(libc::SIOCSIFADDR, address), (libc::SIOCSIFNETMASK, mask)] {
        let mut set = request(name)?;
        // Family, port, address (ip(7)).
        let mut bytes = [0; 14];
        bytes[2..6].copy_from_slice(&value.octets());
        let family = libc::AF_INET as libc::sa_family_t;
        set.ifr_ifru.ifru_addr = libc::sockaddr { sa_family: family, sa_data: bytes.map(|b| b as _) };
        interface(&socket, what, &mut set).map_err(at)?;
    }
    Ok(())
}

/// Whether there is an interface of this name.
pub(super) fn exists(name: &str) -> bool {
    let asked = control().ok().zip(request(name).ok());
    asked.is_some_and(|(socket, mut index)| interface(&socket, libc::SIOCGIFINDEX, &mut index).is_ok())
}

/// A socket to ask the host's network by.
fn control() -> io::Result<socket2::Socket> {
    socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::DGRAM, None)
}

fn interface(socket: &socket2::Socket, what: c_ulong, request: &mut libc::ifreq) -> io::Result<()> {
    let request: *mut c_void = std::ptr::from_mut(request).cast();
    // SAFETY: each of netdevice(7)'s requests reads and writes one ifreq, which this is.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), what as _, request) })
}

/// A request that names an interface.
fn request(name: &str) -> Result<libc::ifreq, TapError> {
    let bytes = name.as_bytes();
    if bytes.len() >= NAME || bytes.iter().any(|b| *b == 0 || *b == b'/' || b.is_ascii_whitespace()) {
        return Err(TapError::Name { name: name.into() });
    }
    let mut ifr_name = [0; NAME];
    ifr_name.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from as _);
    // SAFETY: an ifreq is plain numbers, for which all zeroes are values.
    let empty: libc::ifreq = unsafe { std::mem::zeroed() };
    Ok(libc::ifreq { ifr_name, ..empty })
}

fn name_of(request: &libc::ifreq) -> String {
    let bytes: Vec<u8> = request.ifr_name.iter().map(|c| *c as u8).take_while(|b| *b != 0).collect();
    String::from_utf8_lossy(&bytes).into_owned()
}

fn features(device: &File) -> c_int {
    let mut bits: c_int = 0;
    // SAFETY: TUNGETFEATURES writes one unsigned int, which this has room for.
    match unsafe { libc::ioctl(device.as_raw_fd(), libc::TUNGETFEATURES as _, &mut bits) } {
        0 => bits,
        _ => 0,
    }
}

fn nonblocking(device: &File) -> io::Result<()> {
    // SAFETY: F_GETFL takes no argument, and the descriptor is open.
    let flags = unsafe { libc::fcntl(device.as_raw_fd(), libc::F_GETFL) };
    check(flags)?;
    // SAFETY: F_SETFL takes flags by value, and the descriptor is open.
    check(unsafe { libc::fcntl(device.as_raw_fd(), libc::F_SETFL, flags | libc::O_NONBLOCK) })
}

fn check(result: c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn refused(name: &str, queues: u16, why: io::Error) -> TapError {
    let name = name.to_owned();
    match why.raw_os_error() {
        Some(libc::EPERM) => TapError::Refused { name, queues, user: user() },
        Some(libc::EBUSY) => TapError::Busy { holder: holder(&name), name },
        Some(libc::EINVAL) if exists(&name) => TapError::OtherKind { name, queues },
        _ => TapError::Host { what: format!("ifname={name}"), why },
    }
}

/// Who we are, for a command that the user may copy.
fn user() -> String {
    std::env::var("USER").ok().filter(|u| !u.is_empty()).unwrap_or_else(|| "$USER".into())
}

/// Who has a tap, as far as the host tells: a descriptor's file in /proc names its interface.
fn holder(name: &str) -> Option<String> {
    let wanted = format!("iff:\t{name}");
    let processes = std::fs::read_dir("/proc").ok()?.take(MOST_PROCESSES).map_while(Result::ok);
    for process in processes.filter(|p| p.file_name().to_string_lossy().bytes().all(|b| b.is_ascii_digit())) {
        let Ok(files) = std::fs::read_dir(process.path().join("fdinfo")) else { continue };
        for file in files.take(MOST_PROCESSES).map_while(Result::ok) {
            let text = std::fs::read_to_string(file.path()).unwrap_or_default();
            if text.lines().any(|line| line == wanted) {
                let program = std::fs::read_to_string(process.path().join("comm")).unwrap_or_default();
                return Some(format!(
                    "{} (process {})",
                    program.trim(),
                    process.file_name().to_string_lossy()
                ));
            }
        }
    }
    None
}
