//! Debian, as it is installed, uses the network with its own programs: an address by DHCP, names by UDP and TCP, HTTP of
//! 256 MiB both ways and 2,000 small requests, apt, ssh and scp from the host, IPv6, TFTP, datagrams of 8 KiB, and a
//! connection that is quiet for long; through each card.
//!
//! The disk is made of Debian's packages, once, and kept (`tests/common/debian.rs`):
//! `cargo test --release --test services -- --ignored --test-threads=1`. All services but apt's are of this test, on
//! the host's loopback. MYNAH_QUIET is how many seconds a connection has nothing to say (600); MYNAH_OPTIONS has more
//! options for the machine, such as `-object filter-dump,id=f,netdev=n0,file=x.pcap`.
#![cfg(unix)]
#[allow(dead_code, reason = "it drives machines by their consoles")]
mod common;
#[allow(dead_code, reason = "others make disks with it")]
#[path = "common/debian.rs"]
mod debian;
#[allow(dead_code, reason = "others make disks with it")]
#[path = "common/disk.rs"]
mod disk;
mod kit;
#[path = "common/login.rs"]
mod login;
#[allow(dead_code, reason = "others use more of them")]
#[path = "common/servers.rs"]
mod servers;
#[allow(dead_code, reason = "others use firmware")]
#[path = "common/tools.rs"]
mod tools;
use common::key_lines;
use debian::System;
use kit::{Folder, command, connect};
use login::Debian;
use servers::{bytes, digest, free_port};
use std::io::Write;
use std::net::{Ipv4Addr, Ipv6Addr, TcpStream, ToSocketAddrs};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tools::{text, tool, tools};

/// Bytes that are fetched and sent, and those that scp carries.
const BIG: usize = 256 << 20;
const COPIED: usize = 16 << 20;
/// Small requests, and datagrams.
const SMALL: usize = 2000;
const DATAGRAMS: usize = 1000;

/// What a guest does by itself; ports and sizes stand before it.
const SCRIPT: &str = r#"
wrong='NETDEV WATCHDOG|Tx Unit Hang|BUG:|Oops|Call Trace|csum failure|lockup'
echo "KEY CARD $(basename $(readlink /sys/class/net/eth0/device/driver))"
echo "KEY ADDRESS $(ip -4 -o addr show dev eth0 | awk '{print $4}') by $(ip route | awk '/^default/ {print $3}')"
echo "KEY NAMES FROM $(grep nameserver /etc/resolv.conf)"
echo "KEY GATEWAY $(ping -c 5 -W 20 10.0.2.2 | grep -o '[0-9]* received')"
echo "KEY NAME BY UDP $(dig +short +notcp mynah.test)"
echo "KEY NAME BY TCP $(dig +short +tcp mynah.test)"
echo "KEY NAME BY BOTH $(dig +short TXT long.mynah.test | tr -d '" \n' | wc -c)"
echo "KEY NAME BY THE LIBRARY $(getent ahostsv4 mynah.test | awk 'NR == 1 {print $1}')"
curl -s -o /dev/shm/big http://10.0.2.2:$http/big
echo "KEY DOWN $(sha256sum < /dev/shm/big | cut -c1-16)"
echo "KEY UP $(curl -s -H Expect: -T /dev/shm/big http://10.0.2.2:$http/up)"
rm /dev/shm/big
echo "KEY SMALL $(curl -s "http://10.0.2.2:$http/small/[1-$small]" | sort -u | grep -c '^answer [0-9]*$')"
i=0; while ! ip -6 addr show dev eth0 | grep -q 'fec0.*scope' && [ $i -lt 60 ]; do sleep 1; i=$((i + 1)); done
echo "KEY SIX $(curl -s "http://[fec0::2]:$http6/small/6")"
echo "KEY TFTP $(curl -s tftp://10.0.2.2/file | sha256sum | cut -c1-16)"
cat > /tmp/datagrams.py <<'END'
import socket, sys
port, count = int(sys.argv[1]), int(sys.argv[2])
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.connect(("10.0.2.2", port))
s.settimeout(30)
right, asked = set(), 0
def ask(n):
    s.send(bytes([n % 251]) * 8188 + n.to_bytes(4, "little"))
for n in range(min(4, count)):
    ask(n)
    asked += 1
while len(right) < count:
    d = s.recv(65536)
    n = int.from_bytes(d[8188:], "little")
    if len(d) != 8192 or d[:8188] != bytes([n % 251]) * 8188 or n in right:
        break
    right.add(n)
    if asked < count:
        ask(asked)
        asked += 1
print(len(right))
END
echo "KEY DATAGRAMS $(python3 /tmp/datagrams.py $udp $datagrams)"
if [ "$apt" = yes ]; then
    apt-get -q update > /tmp/apt 2>&1; echo "KEY APT $?"; grep -E '^[WE]:' /tmp/apt
fi
dmesg | grep -E "$wrong" | sed 's/^/WRONG /'
echo "KEY ERRORS $(cat /sys/class/net/eth0/statistics/[rt]x_errors | tr '\n' ' ')"
echo "KEY WRONG $(dmesg | grep -c -E "$wrong")"
"#;

/// A connection says something, is quiet, and says something again.
const QUIET: &str = r#"
cat > /tmp/quiet.py <<'END'
import socket, sys, time
s = socket.create_connection(("10.0.2.2", int(sys.argv[1])))
s.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
s.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 20)
s.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5)
s.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)
s.settimeout(60)
for text in (b"before", b"after"):
    s.sendall(text)
    print("KEY", s.recv(100).decode(), flush=True)
    if text == b"before":
        time.sleep(int(sys.argv[2]))
END
python3 /tmp/quiet.py $echo $quiet
"#;

/// Debian in Mynah. `around` are words before Mynah's own.
fn boot(system: &System, folder: &Folder, around: &[&str], args: &[&str], script: &str) -> Debian {
    let [kernel, initrd, root] = system.parts();
    let drive = format!("if=virtio,format=raw,snapshot=on,file={}", text(&root));
    let append =
        "root=LABEL=root ro console=ttyS0 quiet net.ifnames=0 systemd.default_device_timeout_sec=900";
    let mynah = command(&["run"]);
    let mut program = match around {
        [] => mynah,
        [first, rest @ ..] => {
            let mut program = Command::new(first);
            program.args(rest).arg(mynah.get_program()).args(mynah.get_args()).env("MYNAH_ACCEL", "jit");
            program
        }
    };
    program.args(["-m", "1024", "-drive", &drive, "-append", append]);
    program.args(["-kernel", text(&kernel), "-initrd", text(&initrd)]);
    program.args(std::env::var("MYNAH_OPTIONS").iter().flat_map(|options| options.split_whitespace()));
    Debian::log_in(&mut program, folder, args, script)
}

/// Words before a program's that have it see another resolv.conf; none if the host does not permit that.
fn with_names(folder: &Folder, port: u16) -> Vec<String> {
    let file = folder.file("resolv.conf", format!("nameserver [127.0.0.1]:{port}\n").as_bytes());
    let line = format!("mount --bind {file} /etc/resolv.conf && exec \"$@\"");
    ["unshare", "-m", "sh", "-c", &line, "sh"].map(Into::into).to_vec()
}

/// Whether apt's archive can be reached from here.
fn has_archive() -> bool {
    let there = ("deb.debian.org", 80).to_socket_addrs().ok().and_then(|mut all| all.next());
    let there = there.is_some_and(|at| TcpStream::connect_timeout(&at, Duration::from_secs(10)).is_ok());
    if !there {
        eprintln!("SKIPPED: apt-get update in the guest: deb.debian.org is not reached from here");
    }
    there
}

/// All that a guest does through a card.
fn uses(card: &str, driver: &str, more: &[&str]) {
    let start = Instant::now();
    eprintln!("{card} {more:?}");
    let Some(system) = System::with_network() else { return };
    if !tools(&[("ssh", "openssh-client"), ("scp", "openssh-client"), ("unshare", "util-linux")]) {
        return;
    }
    let folder = Folder::new("services");
    let host = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    let server = host.lines().find_map(|l| l.strip_prefix("nameserver ").map(|s| s.trim().to_owned()));
    let around = with_names(&folder, servers::names(server));
    let around: Vec<&str> = around.iter().map(String::as_str).collect();
    let big = Arc::new(bytes(BIG));
    let copied = folder.file("file", &big[..COPIED]);
    let (http, http6) = (
        servers::http(Ipv4Addr::LOCALHOST.into(), big.clone()),
        servers::http(Ipv6Addr::LOCALHOST.into(), big.clone()),
    );
    let (udp, apt) = (servers::udp_echo(), if has_archive() { "yes" } else { "no" });
    let key = folder.path("key");
    tool("ssh-keygen", &["-q", "-t", "ed25519", "-N", "", "-f", &key]);
    let public = std::fs::read_to_string(format!("{key}.pub")).unwrap();
    let script = format!(
        "http={http} http6={http6} udp={udp} apt={apt} small={SMALL} datagrams={DATAGRAMS}\n\
         mkdir -p /root/.ssh; echo '{}' > /root/.ssh/authorized_keys\n{SCRIPT}",
        public.trim()
    );
    let ssh = free_port();
    let netdev = format!("user,id=n0,tftp={},hostfwd=tcp:127.0.0.1:{ssh}-:22", folder.0.display());
    let device = format!("{card},netdev=n0");
    let args = [&["-netdev", &netdev, "-device", &device], more].concat();
    let mut guest = boot(&system, &folder, &around, &args, &script);
    let said = guest.script();
    let whole = digest(&big);
    let mut expected = vec![
        format!("KEY CARD {driver}"),
        "KEY ADDRESS 10.0.2.15/24 by 10.0.2.2".into(),
        "KEY NAMES FROM nameserver 10.0.2.3".into(),
        "KEY GATEWAY 5 received".into(),
        "KEY NAME BY UDP 192.0.2.77".into(),
        "KEY NAME BY TCP 192.0.2.77".into(),
        "KEY NAME BY BOTH 3000".into(),
        "KEY NAME BY THE LIBRARY 192.0.2.77".into(),
        format!("KEY DOWN {whole}"),
        format!("KEY UP {whole}"),
        format!("KEY SMALL {SMALL}"),
        "KEY SIX answer 6".into(),
        format!("KEY TFTP {}", digest(&big[..COPIED])),
        format!("KEY DATAGRAMS {DATAGRAMS}"),
    ];
    expected.extend((apt == "yes").then(|| "KEY APT 0".into()));
    expected.extend(["KEY ERRORS 0 0".into(), "KEY WRONG 0".into()]);
    assert_eq!(key_lines(&said, &["KEY "]), expected, "{card}: {said}");
    // From the host.
    let port = ssh.to_string();
    let options = ["StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "LogLevel=ERROR"];
    let options: Vec<&str> = options.iter().flat_map(|o| ["-o", *o]).chain(["-i", &key]).collect();
    let copy =
        |from: &str, to: &str| tool("scp", &[&["-q", "-P", &port], &options[..], &[from, to]].concat());
    copy(&copied, "root@127.0.0.1:/root/copied");
    let sum = ["-p", &port, "root@127.0.0.1", "sha256sum /root/copied"];
    let sum = tool("ssh", &[&options[..], &sum].concat());
    assert_eq!(sum[..16], digest(&big[..COPIED]), "{card}: by scp to the guest");
    let back = folder.path("back");
    copy("root@127.0.0.1:/root/copied", &back);
    assert!(std::fs::read(&back).unwrap() == big[..COPIED], "{card}: by scp from the guest");
    guest.power_down();
    eprintln!("{card}: {:?}", start.elapsed());
}

#[test]
#[ignore = "boots Debian from a disk"]
fn debian_uses_virtio_net_on_pc() {
    uses("virtio-net-pci", "virtio_net", &["-M", "pc"]);
}

#[test]
#[ignore = "boots Debian from a disk"]
fn debian_uses_virtio_net_with_several_queues_on_q35() {
    uses("virtio-net-pci", "virtio_net", &["-M", "q35", "-smp", "2"]);
}

#[test]
#[ignore = "boots Debian from a disk"]
fn debian_uses_e1000_on_pc() {
    uses("e1000", "e1000", &["-M", "pc"]);
}

#[test]
#[ignore = "boots Debian from a disk"]
fn debian_uses_e1000_on_q35() {
    uses("e1000", "e1000", &["-M", "q35"]);
}

#[test]
#[ignore = "boots Debian from a disk"]
fn debian_uses_e1000e_on_q35() {
    uses("e1000e", "e1000e", &["-M", "q35", "-smp", "2"]);
}

#[test]
#[ignore = "boots Debian from a disk"]
fn debian_uses_rtl8139_on_pc() {
    uses("rtl8139", "8139cp", &["-M", "pc"]);
}

#[test]
#[ignore = "boots Debian from a disk"]
fn debian_uses_rtl8139_on_q35() {
    uses("rtl8139", "8139cp", &["-M", "q35"]);
}

#[test]
#[ignore = "boots Debian from a disk"]
fn a_quiet_connection_lasts() {
    let Some(system) = System::with_network() else { return };
    let folder = Folder::new("services");
    let quiet: u64 = std::env::var("MYNAH_QUIET").map_or(600, |n| n.parse().expect("seconds"));
    let script = format!("echo={} quiet={quiet}\n{QUIET}", servers::tcp_echo());
    let mut guest = boot(&system, &folder, &[], &["-nic", "user,model=virtio-net-pci"], &script);
    let said = guest.script();
    assert_eq!(key_lines(&said, &["KEY "]), ["KEY before", "KEY after"], "{said}");
    guest.power_down();
}

#[test]
#[ignore = "boots Debian from a disk"]
fn a_folder_of_the_host_s_is_a_share() {
    if !tools(&[("/usr/sbin/smbd", "samba")]) {
        return;
    }
    let Some(system) = System::with_network() else { return };
    let (folder, shared) = (Folder::new("services"), Folder::new("share"));
    let bytes = bytes(COPIED);
    shared.file("from the host", &bytes);
    let nic = format!("user,model=virtio-net-pci,smb={}", shared.0.display());
    let script = "cd /tmp\n\
                  smbclient -N //10.0.2.4/qemu -c 'ls' | grep -o 'from the host' | sed 's/^/KEY LISTED /'\n\
                  smbclient -N //10.0.2.4/qemu -c 'get \"from the host\" there; mkdir made; cd made; put there back'\n\
                  echo \"KEY GOT $(sha256sum < there | cut -c1-16)\"\n";
    let mut guest = boot(&system, &folder, &[], &["-nic", &nic], script);
    let said = guest.script();
    let listed = "KEY LISTED from the host".to_owned();
    assert_eq!(key_lines(&said, &["KEY "]), [listed, format!("KEY GOT {}", digest(&bytes))], "{said}");
    let back = std::fs::read(shared.0.join("made/back")).expect("what the guest has put there");
    assert!(back == bytes, "{} bytes came back", back.len());
    guest.power_down();
}

#[test]
#[ignore = "boots Debian from a disk"]
fn a_character_device_is_behind_an_address() {
    let Some(system) = System::with_network() else { return };
    let folder = Folder::new("services");
    let line = folder.path("line");
    let chardev = format!("socket,id=line,path={line},server=on,wait=off");
    let nic = "user,model=virtio-net-pci,restrict=on,guestfwd=tcp:10.0.2.100:1234-chardev:line";
    // Twice, as the first connection is over then.
    let script = "for n in 1 2; do exec 3<>/dev/tcp/10.0.2.100/1234; head -c 200000 /dev/zero >&3\n\
                  echo \"KEY $(head -c 300000 <&3 | sha256sum | cut -c1-16)\"; exec 3>&-; done\n";
    let script = format!("bash -c '{script}'\n");
    let mut guest = boot(&system, &folder, &[], &["-chardev", &chardev, "-nic", nic], &script);
    let mut device = connect(&line);
    let host = std::thread::spawn(move || {
        for _ in 0..2 {
            let mut got = vec![1; 200_000];
            std::io::Read::read_exact(&mut device, &mut got).unwrap();
            assert!(got.iter().all(|b| *b == 0));
            device.write_all(&bytes(300_000)).unwrap();
        }
        device
    });
    let said = guest.script();
    let key = format!("KEY {}", digest(&bytes(300_000)));
    assert_eq!(key_lines(&said, &["KEY "]), [key.clone(), key], "{said}");
    host.join().unwrap();
    guest.power_down();
}

/// A host with an address of its own, that permits pings: in a network namespace.
const HOST: &str = "ip link set lo up && ip addr add 192.0.2.7/32 dev lo && \
    echo 0 2147483647 > /proc/sys/net/ipv4/ping_group_range && exec \"$@\"";

#[test]
#[ignore = "boots Debian from a disk"]
fn another_host_is_pinged() {
    if !tools(&[("unshare", "util-linux"), ("ip", "iproute2")]) {
        return;
    }
    let Some(system) = System::with_network() else { return };
    let folder = Folder::new("services");
    let script = "echo \"KEY $(ping -c 5 -W 20 192.0.2.7 | grep -o '[0-9]* received')\"\n\
                  echo \"KEY $(ping -c 3 -s 6000 -W 20 192.0.2.7 | grep -o '[0-9]* received')\"\n";
    for card in ["virtio-net-pci", "e1000"] {
        let around = ["unshare", "-n", "sh", "-c", HOST, "sh"];
        let nic = format!("user,model={card}");
        let mut guest = boot(&system, &folder, &around, &["-nic", &nic], script);
        let said = guest.script();
        assert_eq!(key_lines(&said, &["KEY "]), ["KEY 5 received", "KEY 3 received"], "{card}: {said}");
        guest.power_down();
    }
}
