//! The program on hosts that are not this one: for Windows under Wine, for arm64 Linux under qemu-user.
//!
//! ```text
//!   cargo build --target ... --> mynah.exe --wine------------> guest's console, images, messages
//!                           \--> mynah ----qemu-aarch64-static-->
//! ```
//!
//! They take minutes, most of them to build: `.ci/nightly`, or `cargo test --release --test hosts -- --ignored`. What is
//! not installed is said, and what needs it is left out. MYNAH_WINDOWS and MYNAH_ARM64 name programs that are built
//! already.
mod common;

use common::{guest, key_lines, ramdisk};
use std::fs;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Another host, as this one runs its programs.
struct Host {
    name: &'static str,
    target: &'static str,
    /// The variable that names a program that is there.
    given: &'static str,
    /// What has to be there, and the package that has it.
    tools: &'static [(&'static str, &'static str)],
    /// The linker, in Cargo's variable.
    linker: (&'static str, &'static str),
    runner: &'static str,
    program: &'static str,
}

const WINDOWS: Host = Host {
    name: "Windows under Wine",
    target: "x86_64-pc-windows-gnu",
    given: "MYNAH_WINDOWS",
    tools: &[("x86_64-w64-mingw32-gcc", "gcc-mingw-w64-x86-64"), ("wine", "wine64 wine")],
    linker: ("CARGO_TARGET_X86_64_PC_WINDOWS_GNU_LINKER", "x86_64-w64-mingw32-gcc"),
    runner: "wine",
    program: "mynah.exe",
};

const ARM64: Host = Host {
    name: "arm64 Linux under qemu-user",
    target: "aarch64-unknown-linux-gnu",
    given: "MYNAH_ARM64",
    tools: &[
        ("aarch64-linux-gnu-gcc", "gcc-aarch64-linux-gnu libc6-dev-arm64-cross"),
        ("qemu-aarch64-static", "qemu-user-static"),
    ],
    linker: ("CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER", "aarch64-linux-gnu-gcc"),
    runner: "qemu-aarch64-static",
    program: "mynah",
};

/// A program for another host, which this one can run.
struct Program {
    host: &'static Host,
    file: PathBuf,
    /// One at a time: there are few processors, and times out for who waits.
    _alone: MutexGuard<'static, ()>,
}

/// Whether a command is there.
fn is_there(command: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| dir.join(command).is_file())
}

impl Program {
    /// Builds it; `None` if something for it is not there, which is said.
    fn get(host: &'static Host) -> Option<Self> {
        static ALONE: Mutex<()> = Mutex::new(());
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let lacking: Vec<_> = host.tools.iter().filter(|(command, _)| !is_there(command)).collect();
        if let Some((command, package)) = lacking.first() {
            eprintln!("SKIPPED: {}: {command} is not installed (Debian: {package})", host.name);
            return None;
        }
        let file = match std::env::var_os(host.given) {
            Some(given) => given.into(),
            None => build(host)?,
        };
        Some(Self { host, file, _alone: alone })
    }

    /// The program with some arguments, in this folder.
    fn command(&self, folder: &Path, args: &[&str]) -> Command {
        let mut command = match self.host.runner {
            // What Wine keeps is beside what Cargo does.
            "wine" => {
                let mut command = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.ci/wine"));
                command.env("CARGO_TARGET_DIR", target_dir());
                command
            }
            // What it looks up there is the same for all.
            runner => {
                let mut command = Command::new(runner);
                command.args(["-L", "/usr/aarch64-linux-gnu"]);
                command
            }
        };
        command.arg(&self.file);
        command.args(args).current_dir(folder);
        command
    }

    fn output(&self, folder: &Path, args: &[&str]) -> Output {
        self.command(folder, args).stdin(Stdio::null()).output().unwrap()
    }

    /// What it says where it is to end well.
    fn says(&self, folder: &Path, args: &[&str]) -> String {
        let out = self.output(folder, args);
        let error = String::from_utf8_lossy(&out.stderr);
        assert!(out.status.success(), "{}: {args:?}: {}\n{error}", self.host.name, out.status);
        String::from_utf8_lossy(&out.stdout).replace('\r', "")
    }

    fn start(&self, folder: &Path, args: &[&str]) -> Session {
        let mut child = self
            .command(folder, args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .unwrap();
        let mut out = child.stdout.take().unwrap();
        let (to, from) = channel();
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(n) = out.read(&mut bytes) {
                if n == 0 || to.send(bytes[..n].to_vec()).is_err() {
                    break;
                }
            }
        });
        Session { child, from, said: String::new(), seen: 0 }
    }
}

/// Where Cargo puts what it builds.
fn target_dir() -> &'static Path {
    Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap()
}

/// Builds the program for another host.
fn build(host: &Host) -> Option<PathBuf> {
    let installed =
        Command::new("rustc").args(["--print", "target-libdir", "--target", host.target]).output();
    let libraries = installed.ok().map(|o| PathBuf::from(String::from_utf8_lossy(&o.stdout).trim()));
    if !libraries.is_some_and(|l| l.exists()) {
        eprintln!("SKIPPED: {}: rustup target add {}", host.name, host.target);
        return None;
    }
    let target = target_dir();
    let (variable, linker) = host.linker;
    let built = Command::new(env!("CARGO"))
        .args(["build", "--release", "--package", "mynah", "--bin", "mynah", "--target", host.target])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .env("CARGO_TARGET_DIR", target)
        .env(variable, linker)
        .status();
    assert!(built.unwrap().success(), "{} cannot be built", host.name);
    Some(target.join(host.target).join("release").join(host.program))
}

/// A running program, and what it says.
struct Session {
    child: Child,
    from: Receiver<Vec<u8>>,
    said: String,
    /// What of it has been looked at.
    seen: usize,
}

impl Session {
    /// Waits until it says `what`.
    fn wait_for(&mut self, what: &str, limit: Duration) {
        let until = Instant::now() + limit;
        loop {
            if let Some(at) = self.said[self.seen..].find(what) {
                self.seen += at + what.len();
                return;
            }
            match self.from.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(bytes) => self.said += &String::from_utf8_lossy(&bytes).replace('\r', ""),
                Err(why) => {
                    let _ = self.child.kill();
                    let why = if why == RecvTimeoutError::Timeout { "not in time" } else { "it has ended" };
                    panic!("'{what}': {why}; it said:\n{}", self.said);
                }
            }
        }
    }

    fn types(&mut self, text: &str) {
        let keys = self.child.stdin.as_mut().unwrap();
        keys.write_all(text.as_bytes()).and_then(|()| keys.flush()).unwrap();
    }

    /// Waits for its end: what it has said, and its exit code.
    fn ends(mut self, limit: Duration) -> (String, Option<i32>) {
        let until = Instant::now() + limit;
        loop {
            match self.from.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(bytes) => self.said += &String::from_utf8_lossy(&bytes).replace('\r', ""),
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => {
                    let _ = self.child.kill();
                    panic!("no end in time; it said:\n{}", self.said);
                }
            }
        }
        (self.said, self.child.wait().unwrap().code())
    }
}

/// A folder for a test, empty.
fn folder(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("hosts-{name}"));
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder).unwrap();
    folder
}

/// The same commands here and there, in folders of their own, leave the same files and say the same.
fn images_are_the_same(host: &'static Host) {
    let Some(theirs) = Program::get(host) else { return };
    let folders = ["here", "there"].map(|name| folder(&format!("images-{}-{name}", host.target)));
    let disk: Vec<u8> = (0..3 << 20_u32)
        .map(|n| if n / 65_536 % 3 == 1 { 0 } else { (n / 7) as u8 ^ (n >> 9) as u8 })
        .collect();
    for folder in &folders {
        fs::write(folder.join("disk.raw"), &disk).unwrap();
    }
    let steps: &[&[&str]] = &[
        &["create", "-f", "qcow2", "empty.qcow2", "64M"],
        &["convert", "-f", "raw", "-O", "qcow2", "disk.raw", "disk.qcow2"],
        &["convert", "-c", "-f", "raw", "-O", "qcow2", "disk.raw", "packed.qcow2"],
        &["create", "-f", "qcow2", "-b", "disk.qcow2", "-F", "qcow2", "top.qcow2"],
        &["snapshot", "-c", "first", "disk.qcow2"],
        &["resize", "empty.qcow2", "+16M"],
        &["convert", "-O", "raw", "top.qcow2", "back.raw"],
        &["convert", "-O", "vmdk", "disk.raw", "disk.vmdk"],
        &["convert", "-O", "vdi", "disk.raw", "disk.vdi"],
        &["convert", "-O", "vhdx", "disk.raw", "disk.vhdx"],
        &["convert", "-O", "vpc", "disk.raw", "disk.vpc"],
        &["check", "disk.qcow2"],
        &["compare", "disk.raw", "disk.vmdk"],
        &["compare", "disk.raw", "disk.vdi"],
        &["compare", "disk.raw", "disk.vhdx"],
        &["compare", "-f", "raw", "-F", "qcow2", "disk.raw", "packed.qcow2"],
    ];
    for step in steps {
        let args = [&["image"], *step].concat();
        let here = Command::new(env!("CARGO_BIN_EXE_mynah")).args(&args).current_dir(&folders[0]).output();
        let here = here.unwrap();
        assert!(here.status.success(), "here: {args:?}: {}", String::from_utf8_lossy(&here.stderr));
        let said = theirs.says(&folders[1], &args);
        assert_eq!(said, String::from_utf8_lossy(&here.stdout), "{args:?}");
    }
    // The others have identifiers that are drawn, and times.
    for name in ["empty.qcow2", "packed.qcow2", "top.qcow2", "back.raw", "disk.raw"] {
        let [here, there] = [0, 1].map(|n| fs::read(folders[n].join(name)).unwrap());
        assert!(here == there, "{name} differs ({} and {} bytes)", here.len(), there.len());
    }
    // What was made there is read here, and is what it was.
    for name in ["disk.qcow2", "disk.vmdk", "disk.vdi", "disk.vhdx", "back.raw"] {
        let args = ["image", "compare", "disk.raw", name];
        let same = Command::new(env!("CARGO_BIN_EXE_mynah")).args(args).current_dir(&folders[1]).output();
        let same = same.unwrap();
        assert!(same.status.success(), "{name}: {}", String::from_utf8_lossy(&same.stdout));
    }
    // Two writers are kept apart.
    let mut first = theirs
        .start(&folders[1], &["run", "-S", "-display", "none", "-monitor", "stdio", "-hda", "disk.qcow2"]);
    first.wait_for("(", Duration::from_secs(120));
    let second = theirs.output(&folders[1], &["image", "resize", "disk.qcow2", "+1M"]);
    let why = String::from_utf8_lossy(&second.stderr).into_owned();
    assert!(!second.status.success() && why.contains("in use by"), "{why}");
    first.types("quit\n");
    assert_eq!(first.ends(Duration::from_secs(60)).1, Some(0));
    for folder in folders {
        fs::remove_dir_all(folder).unwrap();
    }
}

#[test]
#[ignore = "builds for another host: minutes"]
fn images_under_wine() {
    images_are_the_same(&WINDOWS);
}

#[test]
#[ignore = "builds for another host: minutes"]
fn images_under_qemu_user() {
    images_are_the_same(&ARM64);
}

/// The built-in guest answers at its prompt, and Ctrl-A X ends it.
fn demo(host: &'static Host, limit: Duration) {
    let Some(program) = Program::get(host) else { return };
    let folder = folder(&format!("demo-{}", host.target));
    let mut guest = program.start(&folder, &["demo", "--embedded"]);
    guest.wait_for("Mynah's built-in guest", limit);
    guest.types("help\r");
    guest.wait_for("switch the machine off", limit);
    guest.types("\x01x");
    assert_eq!(guest.ends(limit).1, Some(0));
}

#[test]
#[ignore = "builds for another host: minutes"]
fn the_built_in_guest_under_wine() {
    demo(&WINDOWS, Duration::from_secs(120));
}

#[test]
#[ignore = "builds for another host: minutes"]
fn the_built_in_guest_under_qemu_user() {
    demo(&ARM64, Duration::from_secs(300));
}

/// What the guest does with its disk and its network.
const WORK: &str = r#"
cd /modules
for m in virtio_ring virtio virtio_pci_legacy_dev virtio_pci_modern_dev virtio_pci virtio_blk failover net_failover virtio_net; do
    [ -e $m.ko ] && insmod $m.ko
done
echo '#!/bin/sh
[ "$1" = bound ] || exit 0
ip addr add $ip/$mask dev $interface; ip route add default via $router
echo "LEASE $ip router $router dns $dns"' > /etc/leased
chmod 755 /etc/leased
ip link set lo up; ip link set eth0 up
udhcpc -i eth0 -q -f -n -t 20 -s /etc/leased | grep LEASE
echo "KEY PING $(ping -c 1 -W 20 10.0.2.2 | grep -o '[0-9]* packets received')"
echo "KEY OUTSIDE $(ping -c 2 -W 20 $(grep -o 'out=[^ ]*' /proc/cmdline | cut -d= -f2) | grep -o '[0-9]* packets received')"
url=$(grep -o 'url=[^ ]*' /proc/cmdline | cut -d= -f2)
echo "KEY HTTP $(wget -q -O - $url | sha256sum | cut -c1-64)"
echo "KEY FORWARD $(wget -q -O - http://10.0.2.100/ | sha256sum | cut -c1-64)"
echo "KEY READ $(dd if=/dev/vda bs=1M skip=40 count=8 2>/dev/null | sha256sum | cut -c1-64)"
dd if=/dev/vda of=/dev/vda bs=1M skip=40 seek=50 count=8 conv=fsync 2>/dev/null && echo "KEY WROTE"
echo "KEY TROUBLE $(dmesg | grep -c -E 'BUG:|Oops|Call Trace|I/O error')"
poweroff -f
"#;

/// The SHA-256 of some bytes, by the host's own program.
fn sha256(bytes: &[u8]) -> String {
    let mut sum = Command::new("sha256sum").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    sum.stdin.take().unwrap().write_all(bytes).unwrap();
    String::from_utf8_lossy(&sum.wait_with_output().unwrap().stdout)[..64].to_owned()
}

/// Serves some bytes by HTTP 1.0 to whoever asks for anything.
fn http(body: Vec<u8>) -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            let (mut request, mut byte) = (Vec::new(), [0]);
            while !request.ends_with(b"\r\n\r\n") && stream.read(&mut byte).is_ok_and(|n| n > 0) {
                request.push(byte[0]);
            }
            let head = format!("HTTP/1.0 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
            let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&body));
        }
    });
    port
}

/// An address of this host's that is not its loopback's: that by which others are reached.
fn own_address() -> IpAddr {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
    // Nothing is sent.
    let found = socket.connect((Ipv4Addr::new(192, 0, 2, 1), 9)).and_then(|()| socket.local_addr());
    found.expect("an address").ip()
}

/// Debian's cloud kernel is booted by GRUB from a disk in a qcow2 image, which was made there, and uses that and the
/// NAT's network.
#[test]
#[ignore = "builds for another host, and boots Debian's kernel: minutes"]
fn debian_boots_from_qcow2_with_network_under_wine() {
    const GRUB: &str = "/usr/lib/grub/i386-pc";
    let Some(program) = Program::get(&WINDOWS) else { return };
    if !is_there("grub-mkimage") || !Path::new(GRUB).join("boot.img").exists() {
        eprintln!(
            "SKIPPED: a disk that boots: grub-mkimage (grub-common) or its modules (grub-pc-bin) are not installed"
        );
        return;
    }
    let (Some(kernel), Some(modules)) = (guest("cloud"), guest("cloud-net")) else { return };
    let Some(initrd) = ramdisk("hosts", "busybox", WORK) else { return };
    let initrd = [fs::read(initrd).unwrap(), fs::read(modules).unwrap()].concat();
    let body: Vec<u8> = (0..4_u64 << 20).map(|n| (n.wrapping_mul(n) >> 7) as u8).collect();
    let digest = sha256(&body);
    let url = format!("http://10.0.2.2:{}/file", http(body));
    let piece: Vec<u8> = (0..100_000_u32).map(|n| (n % 251) as u8).collect();
    let forwarded = sha256(&piece);
    let web = format!("socket,id=web,host=127.0.0.1,port={}", http(piece));
    let own = own_address();
    let folder = folder("boot");
    // A partition that is an archive, which GRUB reads as a file system.
    fs::write(folder.join("linux"), fs::read(kernel).unwrap()).unwrap();
    fs::write(folder.join("initrd"), initrd).unwrap();
    let tar = Command::new("tar")
        .args(["--format=ustar", "-cf", "root.tar", "linux", "initrd"])
        .current_dir(&folder)
        .status()
        .unwrap();
    assert!(tar.success());
    fs::write(
        folder.join("menu"),
        format!(
            "set root=(hd0,msdos1)\nlinux /linux console=ttyS0 panic=-1 url={url} out={own}\ninitrd /initrd\nboot\n"
        ),
    )
    .unwrap();
    let made = Command::new("grub-mkimage")
        .args(["-O", "i386-pc", "-d", GRUB, "-c", "menu", "-p", "/", "-o", "core"])
        .args(["biosdisk", "part_msdos", "tar", "linux", "normal", "boot"])
        .current_dir(&folder)
        .status();
    assert!(made.unwrap().success());
    let mut disk =
        mbr(&fs::read(format!("{GRUB}/boot.img")).unwrap(), fs::read(folder.join("core")).unwrap());
    disk.extend(fs::read(folder.join("root.tar")).unwrap());
    disk.resize(64 << 20, 0x5a);
    fs::write(folder.join("disk.raw"), &disk).unwrap();
    let convert = ["image", "convert", "-f", "raw", "-O", "qcow2", "disk.raw", "disk.qcow2"];
    program.says(&folder, &convert);
    // As a user of Windows names it.
    let drive = format!(
        "file=Z:{}\\disk.qcow2,if=virtio,cache=none",
        folder.display().to_string().replace('/', "\\")
    );
    let boot = program.start(
        &folder,
        &[
            "run",
            "-m",
            "512",
            "-nographic",
            "-no-reboot",
            "-accel",
            "jit",
            "-drive",
            &drive,
            "-chardev",
            &web,
            "-nic",
            "user,model=virtio-net-pci,guestfwd=tcp:10.0.2.100:80-chardev:web",
        ],
    );
    let (console, code) = boot.ends(Duration::from_secs(900));
    let expected = [
        "LEASE 10.0.2.15 router 10.0.2.2 dns 10.0.2.3".to_owned(),
        "KEY PING 1 packets received".into(),
        "KEY OUTSIDE 2 packets received".into(),
        format!("KEY HTTP {digest}"),
        format!("KEY FORWARD {forwarded}"),
        format!("KEY READ {}", sha256(&disk[40 << 20..48 << 20])),
        "KEY WROTE".into(),
        "KEY TROUBLE 0".into(),
    ];
    assert_eq!(key_lines(&console, &["LEASE", "KEY "]), expected, "the console said:\n{console}");
    assert_eq!(code, Some(0));
    // What it has written is there, for this host as well.
    let back = Command::new(env!("CARGO_BIN_EXE_mynah"))
        .args(["image", "convert", "-O", "raw", "disk.qcow2", "after.raw"])
        .current_dir(&folder)
        .status();
    assert!(back.unwrap().success());
    let after = fs::read(folder.join("after.raw")).unwrap();
    assert!(after[50 << 20..58 << 20] == disk[40 << 20..48 << 20], "what was written is not there");
    fs::remove_dir_all(folder).unwrap();
}

/// A disk's first MiB: GRUB's boot sector with one partition behind, and its core image from sector 1 on.
fn mbr(boot: &[u8], core: Vec<u8>) -> Vec<u8> {
    let sectors = core.len().div_ceil(512);
    assert!(sectors < 2047 && boot.len() == 512);
    let mut disk = [boot, &core].concat();
    disk.resize(1 << 20, 0);
    // As grub-bios-setup does: the boot sector reads sector 1 of the disk that it is on, and that the rest, from
    // sector 2 on, to 8200h.
    disk[0x5c..0x64].copy_from_slice(&1_u64.to_le_bytes());
    disk[0x66..0x68].copy_from_slice(&[0x90, 0x90]);
    disk[0x3f4..0x3fc].copy_from_slice(&2_u64.to_le_bytes());
    disk[0x3fc..0x3fe].copy_from_slice(&(sectors as u16 - 1).to_le_bytes());
    disk[0x3fe..0x400].copy_from_slice(&0x820_u16.to_le_bytes());
    disk[0x1be..0x1fe].fill(0);
    disk[0x1be..0x1c6].copy_from_slice(&[0x80, 32, 33, 0, 0x83, 254, 255, 255]);
    disk[0x1c6..0x1ca].copy_from_slice(&2048_u32.to_le_bytes());
    disk[0x1ca..0x1ce].copy_from_slice(&(63_u32 * 2048).to_le_bytes());
    disk[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
    disk
}

/// Debian's kernel comes to its init.
fn debian(host: &'static Host, engine: &str, limit: Duration) {
    let Some(program) = Program::get(host) else { return };
    let Some(kernel) = guest("cloud") else { return };
    let Some(initrd) = ramdisk("hosts-init", "busybox", "echo \"KEY INIT $(uname -sm)\"\npoweroff -f\n")
    else {
        return;
    };
    let folder = folder(&format!("init-{}", host.target));
    let boot = program.start(
        &folder,
        &[
            "run",
            "-m",
            "256",
            "-nographic",
            "-no-reboot",
            "-nic",
            "none",
            "-accel",
            engine,
            "-append",
            "console=ttyS0 panic=-1",
            "-kernel",
            kernel.to_str().unwrap(),
            "-initrd",
            initrd.to_str().unwrap(),
        ],
    );
    let (console, code) = boot.ends(limit);
    assert_eq!(key_lines(&console, &["KEY "]), ["KEY INIT Linux x86_64"], "the console said:\n{console}");
    assert_eq!(code, Some(0));
}

#[test]
#[ignore = "builds for another host, and boots Debian's kernel: minutes"]
fn debian_by_the_interpreter_under_qemu_user() {
    debian(&ARM64, "interp", Duration::from_secs(3600));
}

#[test]
#[ignore = "builds for another host, and boots Debian's kernel: minutes"]
fn debian_by_the_translator_under_qemu_user() {
    debian(&ARM64, "jit", Duration::from_secs(3600));
}

/// What a host has not is refused by name, with what to say instead.
#[test]
#[ignore = "builds for another host: minutes"]
fn what_windows_has_not_is_refused_by_name() {
    let Some(program) = Program::get(&WINDOWS) else { return };
    let folder = folder("refused");
    fs::write(folder.join("disk.raw"), [0; 4096]).unwrap();
    let run = |args: &[&'static str]| {
        [&["run", "-display", "none", "-drive", "file=disk.raw,format=raw"], args].concat()
    };
    for (args, said) in [
        (run(&["-netdev", "tap,id=n"]), "taps and bridges are there on Linux hosts only"),
        (run(&["-netdev", "bridge,id=n"]), "taps and bridges are there on Linux hosts only"),
        (run(&["-netdev", "tap,id=n,fd=3"]), "taps and bridges are there on Linux hosts only"),
        (
            run(&["-netdev", "stream,id=n,addr.type=unix,addr.path=s"]),
            "Unix sockets are there on Unix hosts only",
        ),
        (run(&["-nic", "user,guestfwd=tcp:10.0.2.9:80-cmd:cat"]), "cmd: is there on Unix hosts only"),
        (run(&["-serial", "pty"]), "they are there on Unix hosts only"),
        (run(&["-serial", "unix:s,server,nowait"]), "unix sockets are there on Unix hosts only"),
        (run(&["-monitor", "unix:s,server,nowait"]), "unix sockets are there on Unix hosts only"),
        (run(&["-daemonize"]), "-daemonize"),
        (run(&["-accel", "kvm"]), "KVM"),
        (run(&["-incoming", "exec:cat x"]), "'exec:' is there on Unix hosts only"),
        (vec!["switch", "--guest", "a"], "switch, ip and network are there on Unix hosts only"),
        (vec!["network"], "switch, ip and network are there on Unix hosts only"),
        (vec!["ip"], "switch, ip and network are there on Unix hosts only"),
    ] {
        let out = program.output(&folder, &args);
        let error = String::from_utf8_lossy(&out.stderr).into_owned();
        assert_eq!(out.status.code(), Some(1), "{args:?}: {error}");
        assert!(error.contains(said), "{args:?}: {error}");
        assert!(!error.contains("panicked"), "{args:?}: {error}");
    }
    fs::remove_dir_all(folder).unwrap();
}
