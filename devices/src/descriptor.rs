//! What the event loop waits for, and bytes through it, as the host has them: on Unix a descriptor is anything, on
//! Windows it is a socket, or something that cannot be waited for and is written by a thread.
use std::io;
use std::sync::Arc;
use std::time::Duration;

/// Something of the host's that the loop can wait for. It stays open as long as it is registered.
#[cfg(unix)]
pub type Descriptor = Arc<dyn polling::AsSource + Send + Sync>;

/// Something of the host's that the loop can wait for if it is a socket. It stays open as long as it is registered.
#[cfg(windows)]
pub type Descriptor = Arc<dyn Handle>;

#[cfg(windows)]
pub use windows::Handle;
#[cfg(windows)]
pub(crate) use windows::Plain;

/// Reads what has come.
pub(crate) fn read(from: &Descriptor, buf: &mut [u8]) -> io::Result<usize> {
    host::read(from, buf)
}

/// Writes to it.
pub(crate) fn write(to: &Descriptor, bytes: &[u8]) -> io::Result<usize> {
    host::write(to, bytes)
}

/// Writes to a socket. A peer that has gone sends no SIGPIPE.
pub(crate) fn send(to: &Descriptor, bytes: &[u8]) -> io::Result<usize> {
    host::send(to, bytes)
}

/// Whether reading would not wait; or it has failed, which reading will show.
#[cfg_attr(windows, allow(unused_variables))]
pub(crate) fn is_readable(from: &Descriptor) -> bool {
    #[cfg(unix)]
    return host::is_ready(from, libc::POLLIN, Duration::ZERO);
    // All that is read there does not wait.
    #[cfg(windows)]
    true
}

/// Whether writing would not wait, now or within so long; or it has failed, which writing will show.
#[cfg_attr(windows, allow(unused_variables))]
pub(crate) fn is_writable(to: &Descriptor, within: Duration) -> bool {
    #[cfg(unix)]
    return host::is_ready(to, libc::POLLOUT, within);
    // Windows does not tell of files and consoles.
    #[cfg(windows)]
    true
}

#[cfg(unix)]
mod host {
    use super::{Descriptor, Duration, io};
    use std::os::fd::AsRawFd;

    #[cfg(target_os = "macos")]
    const NO_SIGNAL: libc::c_int = 0;
    #[cfg(not(target_os = "macos"))]
    const NO_SIGNAL: libc::c_int = libc::MSG_NOSIGNAL;

    pub fn read(from: &Descriptor, buf: &mut [u8]) -> io::Result<usize> {
        // SAFETY: `buf` is writable for its length, and the descriptor is open as long as it is borrowed.
        let n = unsafe { libc::read(from.source().as_raw_fd(), buf.as_mut_ptr().cast(), buf.len()) };
        usize::try_from(n).map_err(|_| io::Error::last_os_error())
    }

    pub fn write(to: &Descriptor, bytes: &[u8]) -> io::Result<usize> {
        // SAFETY: `bytes` is readable for its length, and the descriptor is open as long as it is borrowed.
        let n = unsafe { libc::write(to.source().as_raw_fd(), bytes.as_ptr().cast(), bytes.len()) };
        usize::try_from(n).map_err(|_| io::Error::last_os_error())
    }

    pub fn send(to: &Descriptor, bytes: &[u8]) -> io::Result<usize> {
        // SAFETY: as for `write`. Where there is no such flag, the runtime ignores the signal.
        let n = unsafe { libc::send(to.source().as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), NO_SIGNAL) };
        usize::try_from(n).map_err(|_| io::Error::last_os_error())
    }

    pub fn is_ready(fd: &Descriptor, events: libc::c_short, within: Duration) -> bool {
        let mut fd = libc::pollfd { fd: fd.source().as_raw_fd(), events, revents: 0 };
        // SAFETY: one initialised pollfd.
        unsafe { libc::poll(&mut fd, 1, within.as_millis() as libc::c_int) > 0 }
    }
}

#[cfg(windows)]
mod host {
    use super::{Descriptor, io};

    pub fn read(from: &Descriptor, buf: &mut [u8]) -> io::Result<usize> {
        from.read(buf)
    }

    pub fn write(to: &Descriptor, bytes: &[u8]) -> io::Result<usize> {
        to.write(bytes)
    }

    pub fn send(to: &Descriptor, bytes: &[u8]) -> io::Result<usize> {
        to.write(bytes)
    }
}

#[cfg(windows)]
mod windows {
    use socket2::SockRef;
    use std::io;
    use std::os::windows::io::{AsSocket, BorrowedSocket};

    /// What a [`super::Descriptor`] is on Windows.
    pub trait Handle: Send + Sync {
        /// The socket, if it is one: what can be waited for.
        fn socket(&self) -> Option<BorrowedSocket<'_>>;
        /// Reads from it.
        fn read(&self, buf: &mut [u8]) -> io::Result<usize>;
        /// Writes to it.
        fn write(&self, bytes: &[u8]) -> io::Result<usize>;
    }

    impl<T: AsSocket + Send + Sync> Handle for T {
        fn socket(&self) -> Option<BorrowedSocket<'_>> {
            Some(self.as_socket())
        }
        fn read(&self, buf: &mut [u8]) -> io::Result<usize> {
            let socket = SockRef::from(self);
            let mut socket: &socket2::Socket = &socket;
            io::Read::read(&mut socket, buf)
        }
        fn write(&self, bytes: &[u8]) -> io::Result<usize> {
            SockRef::from(self).send(bytes)
        }
    }

    /// What is written to and cannot be waited for.
    pub(crate) struct Plain<F>(pub F);

    impl<F: Fn(&[u8]) -> io::Result<usize> + Send + Sync> Handle for Plain<F> {
        fn socket(&self) -> Option<BorrowedSocket<'_>> {
            None
        }
        fn read(&self, _: &mut [u8]) -> io::Result<usize> {
            Ok(0)
        }
        fn write(&self, bytes: &[u8]) -> io::Result<usize> {
            (self.0)(bytes)
        }
    }
}
