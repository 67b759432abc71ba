//! QEMU's bridge helper: a program with rights that this process has not, which makes a tap and passes it on.
use super::TapError;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, IntoRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};

/// Where the helper is if nobody says so: as Debian, Fedora and others have it.
const HELPERS: [&str; 4] = [
    "/usr/lib/qemu/qemu-bridge-helper",
    "/usr/libexec/qemu-bridge-helper",
    "/usr/libexec/qemu/qemu-bridge-helper",
    "/usr/local/libexec/qemu-bridge-helper",
];

/// Has QEMU's helper open a tap on a bridge: it sends its descriptor through a socket that it inherits.
pub(super) fn helped(program: Option<&str>, bridge: &str) -> Result<RawFd, TapError> {
    let found = HELPERS.iter().find(|p| Path::new(p).exists()).copied();
    let program = program.or(found).ok_or_else(|| TapError::NoHelper { bridge: bridge.into() })?;
    let bad = |why: String| TapError::Helper { program: program.into(), bridge: bridge.into(), why };
    let failed = |why: io::Error| bad(why.to_string());
    let (ours, theirs) = UnixStream::pair().map_err(failed)?;
    // It is inherited: a duplicate does not close when the program is executed.
    rustix::io::fcntl_setfd(&theirs, rustix::io::FdFlags::empty()).map_err(|e| failed(e.into()))?;
    let (socket, bridge_of) = (format!("--fd={}", theirs.as_raw_fd()), format!("--br={bridge}"));
    let mut command = if program.contains([' ', '\t']) {
        // With arguments of its own, as in QEMU.
        let mut shell = Command::new("/bin/sh");
        shell.args(["-c", &format!("{program} --use-vnet {socket} {bridge_of}")]);
        shell
    } else {
        let mut direct = Command::new(program);
        direct.args(["--use-vnet", &socket, &bridge_of]);
        direct
    };
    let mut child = command.stdin(Stdio::null()).spawn().map_err(failed)?;
    drop(theirs);
    let got = receive(&ours);
    let status = child.wait().map_err(failed)?;
    match got {
        Ok(Some(descriptor)) if status.success() => Ok(descriptor.into_raw_fd()),
        Err(why) => Err(failed(why)),
        _ => {
            Err(bad(format!("it gives no tap ({status}); /etc/qemu/bridge.conf must have 'allow {bridge}'")))
        }
    }
}

/// One descriptor (unix(7), SCM_RIGHTS).
fn receive(socket: &UnixStream) -> io::Result<Option<OwnedFd>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut messages = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    #[cfg(target_os = "linux")]
    let flags = RecvFlags::CMSG_CLOEXEC;
    #[cfg(not(target_os = "linux"))]
    let flags = RecvFlags::empty();
    recvmsg(socket, &mut [IoSliceMut::new(&mut byte)], &mut messages, flags)?;
    let mut rights = messages.drain().filter_map(|m| match m {
        RecvAncillaryMessage::ScmRights(rights) => Some(rights),
        _ => None,
    });
    Ok(rights.next().and_then(|mut r| r.next()))
}
