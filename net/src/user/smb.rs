//! A folder of the host's as a Windows share (`smb=`): Samba's smbd, started for each connection as inetd would, with a
//! configuration and a place for its files of its own. The guest finds the share as `\\10.0.2.4\qemu`.
use super::config::{Behind, Config, GuestForward};
use std::io::{Error, ErrorKind, Result};
use std::net::SocketAddr;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

/// Where smbd is.
const PLACES: [&str; 3] = ["/usr/sbin/smbd", "/usr/local/sbin/smbd", "/usr/local/samba/sbin/smbd"];
/// NetBIOS' session service, and SMB without it.
const PORTS: [u16; 2] = [139, 445];

/// What smbd needs while the network is there.
pub(super) struct Smb {
    /// Its own files, which go with it.
    state: PathBuf,
}

impl Smb {
    /// Adds the share that `config` names to what the guest sees, if it names one.
    ///
    /// # Errors
    /// There is no such folder, or no smbd, or no place for its files.
    pub fn share(config: &mut Config) -> Result<Option<Self>> {
        let Some(folder) = config.smb.clone() else { return Ok(None) };
        let smbd = PLACES.iter().find(|path| Path::new(path).exists()).ok_or_else(|| {
            Error::new(ErrorKind::NotFound, "Samba's smbd is not installed (Debian's package 'samba')")
        })?;
        let folder = folder.canonicalize()?;
        if !folder.is_dir() {
            return Err(Error::new(ErrorKind::NotADirectory, "it is no folder"));
        }
        let shown = folder.to_str().filter(|text| !text.contains(['\n', '\r', '"']));
        let shown = shown.ok_or_else(|| Error::new(ErrorKind::InvalidInput, "smbd takes no such name"))?;
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let state = std::env::temp_dir().join(format!("mynah-smb-{}-{n}", std::process::id()));
        // Nobody else may put something there.
        std::fs::DirBuilder::new().mode(0o700).create(&state)?;
        let smb = Self { state };
        let settings = smb.state.join("smb.conf");
        std::fs::write(&settings, settings_of(shown, &smb.state.display().to_string(), &user()))?;
        let program = format!("exec {smbd} -l '{0}' -s '{0}/smb.conf'", smb.state.display());
        let server = config.smb_server;
        config.guest_forwards.extend(PORTS.map(|port| GuestForward {
            server: SocketAddr::new(server.into(), port),
            to: Behind::Command(program.clone()),
        }));
        Ok(Some(smb))
    }
}

impl Drop for Smb {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.state);
    }
}

/// The user whom files belong to that the guest makes.
fn user() -> String {
    // SAFETY: getuid cannot fail, and takes nothing.
    let uid = unsafe { libc::getuid() };
    let users = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let of = |line: &str| {
        let mut fields = line.split(':');
        let name = fields.next()?.to_owned();
        (fields.nth(1)?.parse() == Ok(uid)).then_some(name)
    };
    users.lines().find_map(of).or_else(|| std::env::var("USER").ok()).unwrap_or_else(|| "nobody".into())
}

/// smb.conf(5): everybody may come in without a password and is `user`; nothing is looked for outside of `state`.
fn settings_of(folder: &str, state: &str, user: &str) -> String {
    let mut text = String::from("[global]\n");
    for name in [
        "private dir",
        "pid directory",
        "lock directory",
        "state directory",
        "cache directory",
        "ncalrpc dir",
    ] {
        text += &format!("{name} = {state}\n");
    }
    text += &format!("log file = {state}/log.smbd\nsmb passwd file = {state}/smbpasswd\n");
    text += "interfaces = 127.0.0.1\nbind interfaces only = yes\nsecurity = user\nmap to guest = Bad User\n";
    text += "load printers = no\nprinting = bsd\ndisable spoolss = yes\nusershare max shares = 0\n";
    text + &format!("[qemu]\npath = {folder}\nread only = no\nguest ok = yes\nforce user = {user}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_shared_is_said() {
        let file = std::env::temp_dir().join(format!("mynah-no-folder-{}", std::process::id()));
        std::fs::write(&file, "").unwrap();
        for path in [&file, Path::new("/there/is/none")] {
            let mut config = Config { smb: Some(path.into()), ..Config::default() };
            assert!(Smb::share(&mut config).is_err());
            assert!(config.guest_forwards.is_empty());
        }
        std::fs::remove_file(&file).unwrap();
        assert!(Smb::share(&mut Config::default()).unwrap().is_none());
    }

    #[test]
    fn smbd_is_told_of_one_share_and_its_own_folder() {
        let text = settings_of("/home/me/files", "/tmp/state", "me");
        let share = text.split("[qemu]\n").nth(1).unwrap();
        assert_eq!(share, "path = /home/me/files\nread only = no\nguest ok = yes\nforce user = me\n");
        assert!(text.contains("private dir = /tmp/state\n") && text.contains("load printers = no\n"));
    }
}
