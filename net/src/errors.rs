//! What the host's errors of sockets are called: POSIX' names, for Windows' numbers too (winerror.h, winsock.h).
#[cfg(unix)]
pub(crate) use libc::{
    EACCES, EADDRNOTAVAIL, EAFNOSUPPORT, ECONNREFUSED, EHOSTDOWN, EHOSTUNREACH, EINPROGRESS, EMFILE,
    EMSGSIZE, ENETDOWN, ENETUNREACH, ENFILE, EPERM, ETIMEDOUT,
};

#[cfg(windows)]
mod windows {
    use windows_sys::Win32::Networking::WinSock as ws;

    pub(crate) const EACCES: i32 = ws::WSAEACCES;
    pub(crate) const EADDRNOTAVAIL: i32 = ws::WSAEADDRNOTAVAIL;
    pub(crate) const EAFNOSUPPORT: i32 = ws::WSAEAFNOSUPPORT;
    pub(crate) const ECONNREFUSED: i32 = ws::WSAECONNREFUSED;
    pub(crate) const EHOSTDOWN: i32 = ws::WSAEHOSTDOWN;
    pub(crate) const EHOSTUNREACH: i32 = ws::WSAEHOSTUNREACH;
    /// What `connect` says of a socket that does not wait.
    pub(crate) const EINPROGRESS: i32 = ws::WSAEWOULDBLOCK;
    pub(crate) const EMFILE: i32 = ws::WSAEMFILE;
    pub(crate) const EMSGSIZE: i32 = ws::WSAEMSGSIZE;
    pub(crate) const ENETDOWN: i32 = ws::WSAENETDOWN;
    pub(crate) const ENETUNREACH: i32 = ws::WSAENETUNREACH;
    pub(crate) const ENFILE: i32 = ws::WSAENOBUFS;
    /// ERROR_ACCESS_DENIED, which a firewall may say.
    pub(crate) const EPERM: i32 = 5;
    pub(crate) const ETIMEDOUT: i32 = ws::WSAETIMEDOUT;
}
#[cfg(windows)]
pub(crate) use windows::*;
