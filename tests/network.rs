//! Debian's kernels use the network through each card: an address by DHCP, the gateway, services of the host's by IPv4
//! and IPv6, both ways, and a port of the host's that leads to the guest.
//!
//! Kernels are fetched once through apt: `cargo test --release --test network -- --ignored`. All services are of this
//! test, on the host's loopback.
mod common;
use common::{Boot, guest, has_qemu, key_lines, ramdisk, run, run_qemu};
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

/// Bytes that are fetched and sent.
const BIG: usize = 24 << 20;
/// Small requests.
const SMALL: usize = 100;

const SCRIPT: &str = r#"
word() { grep -o "$1=[^ ]*" /proc/cmdline | cut -d= -f2; }
cd /modules
for m in $(word modules | tr , ' '); do insmod $m.ko || echo "MISSING $m"; done
echo '#!/bin/sh
[ "$1" = bound ] || exit 0
ip addr add $ip/$mask dev $interface
ip route add default via $router
echo "nameserver $dns" > /etc/resolv.conf
echo "LEASE $ip/$mask router $router dns $dns"' > /etc/leased
chmod 755 /etc/leased
ip link set lo up
i=0; while [ ! -e /sys/class/net/eth0 ] && [ $i -lt 60 ]; do sleep 1; i=$((i + 1)); done
ip link set eth0 up
i=0; while [ "$(cat /sys/class/net/eth0/carrier 2>/dev/null)" != 1 ] && [ $i -lt 60 ]; do sleep 1; i=$((i + 1)); done
echo "CARD $(basename $(readlink /sys/class/net/eth0/device/driver)) $(cat /sys/class/net/eth0/address)"
udhcpc -i eth0 -q -f -n -t 10 -s /etc/leased | grep LEASE
echo "PING $(ping -c 3 -W 20 10.0.2.2 | grep -o '[0-9]* packets received')"
port=$(word http)
echo "DOWN $(wget -q -O - http://10.0.2.2:$port/big | sha256sum | cut -c1-16)"
wget -q -O /tmp/big http://10.0.2.2:$port/big
echo "UP $(nc 10.0.2.2 $(word sink) < /tmp/big)"
n=0; i=0; while [ $i -lt $(word small) ]; do
    [ "$(wget -q -O - http://10.0.2.2:$port/small/$i)" = "answer $i" ] && n=$((n + 1)); i=$((i + 1))
done
echo "SMALL $n"
tftp -g -r file -l /tmp/file 10.0.2.2 && echo "TFTP $(sha256sum < /tmp/file | cut -c1-16)"
echo "CLOSED $(wget -q -O - http://10.0.2.2:1/ 2>&1 | grep -o 'Connection refused')"
timeout 60 nc -l -p 7777 > /tmp/in & sleep 1
echo "LISTENING"
wait
echo "FORWARD $(cat /tmp/in)"
i=0; while ! ip -6 addr show dev eth0 | grep -q 'fec0.*scope' && [ $i -lt 30 ]; do sleep 1; i=$((i + 1)); done
sleep 2
echo "SIX $(wget -q -O - http://[fec0::2]:$(word http6)/small/6)"
echo "RESOLVER $(cat /etc/resolv.conf)"
echo "ERRORS $(cat /sys/class/net/eth0/statistics/rx_errors /sys/class/net/eth0/statistics/tx_errors | tr '\n' ' ')"
wrong='NETDEV WATCHDOG|Tx Unit Hang|BUG:|Oops|Call Trace|csum failure'
dmesg | grep -E "$wrong"
echo "WRONG $(dmesg | grep -c -E "$wrong")"
poweroff -f
"#;

const KEYS: &[&str] = &[
    "MISSING", "CARD", "LEASE", "PING", "DOWN", "UP ", "SMALL", "TFTP", "CLOSED", "FORWARD", "SIX",
    "RESOLVER", "ERRORS", "WRONG",
];

/// The bytes that are fetched, and sent.
fn big() -> Vec<u8> {
    (0..BIG as u64 / 8).flat_map(|n| (n.wrapping_mul(n) ^ n << 40).to_le_bytes()).collect()
}

/// The first digits of a SHA-256, as the guest makes it: by the host's own program.
fn digest(bytes: &[u8]) -> String {
    use std::process::{Command, Stdio};
    let mut sum =
        Command::new("sha256sum").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("sha256sum");
    sum.stdin.take().unwrap().write_all(bytes).unwrap();
    let out = sum.wait_with_output().unwrap().stdout;
    String::from_utf8_lossy(&out[..16]).into_owned()
}

/// Serves /big and /small/N by HTTP 1.0 at a port of the loopback's.
fn http(at: IpAddr, big: Arc<Vec<u8>>) -> u16 {
    let listener = TcpListener::bind((at, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            let big = big.clone();
            thread::spawn(move || {
                let mut request = Vec::new();
                let mut chunk = [0; 1024];
                while !request.windows(4).any(|w| w == b"\r\n\r\n") {
                    match stream.read(&mut chunk) {
                        Ok(n) if n > 0 => request.extend_from_slice(&chunk[..n]),
                        _ => return,
                    }
                }
                let request = String::from_utf8_lossy(&request).into_owned();
                let path = request.split(' ').nth(1).unwrap_or_default();
                let body = match path.strip_prefix("/small/") {
                    Some(n) => format!("answer {n}").into_bytes(),
                    None => big.to_vec(),
                };
                let head = format!("HTTP/1.0 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
                let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&body));
            });
        }
    });
    port
}

/// Takes all until the other side is done, and answers with its digest.
fn sink() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            thread::spawn(move || {
                let mut all = Vec::new();
                let _ = stream.read_to_end(&mut all);
                let _ = stream.write_all(digest(&all).as_bytes());
            });
        }
    });
    port
}

/// A port of the loopback's that is free.
fn free_port() -> u16 {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port()
}

/// A folder with a file for TFTP.
fn folder(tag: &str, file: &[u8]) -> PathBuf {
    let path = std::env::temp_dir().join(format!("mynah-network-{}-{tag}", std::process::id()));
    std::fs::create_dir_all(&path).unwrap();
    std::fs::write(path.join("file"), file).unwrap();
    path
}

/// Boots `kernel` with a card, and looks at what it says of its network.
fn works(tag: &str, kernel: &str, options: &str, driver: &str, modules: &str) {
    let (busybox, archive) = match kernel {
        "686" => ("busybox-i386", "686-net"),
        _ => ("busybox", "generic-net"),
    };
    let (Some(vmlinuz), Some(archive)) = (guest(kernel), guest(archive)) else { return };
    let Some(initrd) = ramdisk(&format!("network-{tag}"), busybox, SCRIPT) else { return };
    let all = [std::fs::read(&initrd).unwrap(), std::fs::read(archive).unwrap()].concat();
    std::fs::write(&initrd, all).unwrap();
    let big = Arc::new(big());
    let (http4, http6) =
        (http(Ipv4Addr::LOCALHOST.into(), big.clone()), http(Ipv6Addr::LOCALHOST.into(), big.clone()));
    let (sink, forward) = (sink(), free_port());
    let folder = folder(tag, &big[..100_000]);
    let append = format!(
        "console=ttyS0 panic=-1 quiet modules={modules} http={http4} http6={http6} sink={sink} small={SMALL}"
    );
    let netdev = format!("user,id=n0,tftp={},hostfwd=tcp:127.0.0.1:{forward}-:7777", folder.display());
    let fixed = "-cpu max -m 512 -display none -serial stdio -monitor none -no-reboot";
    let mut args: Vec<&str> = fixed.split(' ').chain(options.split(' ')).collect();
    args.extend(["-netdev", &netdev, "-append", &append, "-kernel", vmlinuz.to_str().unwrap()]);
    args.extend(["-initrd", initrd.to_str().unwrap()]);
    let boot: Boot = run(&args, Duration::from_secs(300), |line| {
        if line.contains("LISTENING") {
            thread::spawn(move || {
                let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, forward)).unwrap();
                stream.write_all(b"from outside").unwrap();
                stream.shutdown(Shutdown::Write).unwrap();
                let _ = stream.read(&mut [0]);
            });
        }
        None
    });
    std::fs::remove_file(&initrd).unwrap();
    std::fs::remove_dir_all(&folder).unwrap();
    let lines = key_lines(&boot.console, KEYS);
    let digest = digest(&big);
    let expected = [
        format!("CARD {driver} 52:54:00:12:34:56"),
        "LEASE 10.0.2.15/24 router 10.0.2.2 dns 10.0.2.3".into(),
        "PING 3 packets received".into(),
        format!("DOWN {digest}"),
        format!("UP {digest}"),
        format!("SMALL {SMALL}"),
        format!("TFTP {}", self::digest(&big[..100_000])),
        "CLOSED Connection refused".into(),
        "FORWARD from outside".into(),
        "SIX answer 6".into(),
        "RESOLVER nameserver 10.0.2.3".into(),
        "ERRORS 0 0".into(),
        "WRONG 0".into(),
    ];
    assert_eq!(lines, expected, "{tag}; the console said:\n{}", boot.console);
    assert_eq!(boot.code, Some(0), "{tag}");
}

const VIRTIO: &str = "virtio_ring,virtio,virtio_pci_legacy_dev,virtio_pci_modern_dev,virtio_pci,failover,net_failover,virtio_net";

#[test]
#[ignore = "boots a kernel from Debian's packages"]
fn virtio_net_on_pc() {
    works("virtio", "generic", "-device virtio-net-pci,netdev=n0", "virtio_net", VIRTIO);
}

#[test]
#[ignore = "boots a kernel from Debian's packages"]
fn virtio_net_with_packed_rings_on_q35() {
    works(
        "packed",
        "generic",
        "-M q35 -smp 2 -device virtio-net-pci,netdev=n0,packed=on",
        "virtio_net",
        VIRTIO,
    );
}

#[test]
#[ignore = "boots a kernel from Debian's packages"]
fn virtio_net_on_a_machine_without_pci() {
    let modules = "virtio_ring,virtio,virtio_mmio,failover,net_failover,virtio_net";
    works("mmio", "generic", "-M microvm -device virtio-net-device,netdev=n0", "virtio_net", modules);
}

#[test]
#[ignore = "boots a kernel from Debian's packages"]
fn e1000_on_pc() {
    works("e1000", "generic", "-device e1000,netdev=n0", "e1000", "e1000");
}

#[test]
#[ignore = "boots a kernel from Debian's packages"]
fn e1000e_on_q35() {
    works("e1000e", "generic", "-M q35 -device e1000e,netdev=n0", "e1000e", "e1000e");
}

#[test]
#[ignore = "boots a kernel from Debian's packages"]
fn rtl8139_on_pc() {
    works("8139cp", "generic", "-device rtl8139,netdev=n0", "8139cp", "mii,8139cp");
}

#[test]
#[ignore = "boots a kernel from Debian's packages"]
fn cards_under_a_32_bit_kernel() {
    works("686-e1000", "686", "-device e1000,netdev=n0", "e1000", "e1000");
    works("686-virtio", "686", "-device virtio-net-pci,netdev=n0", "virtio_net", VIRTIO);
}

const RETRY: &str = r#"
word() { grep -o "$1=[^ ]*" /proc/cmdline | cut -d= -f2; }
cd /modules
for m in $(word modules | tr , ' '); do insmod $m.ko || echo "MISSING $m"; done
i=0; while [ ! -e /sys/class/net/eth0 ] && [ $i -lt 60 ]; do sleep 1; i=$((i + 1)); done
ip addr add 10.0.2.15/24 dev eth0
ip link set eth0 up
ping -c 1 -W 60 10.0.2.2 > /dev/null
tries=1
echo "BEGIN"
until wget -q -O /tmp/big http://10.0.2.2:$(word http)/big; do echo "AGAIN"; tries=$((tries + 1)); sleep 1; done
echo "DOWN $(sha256sum < /tmp/big | cut -c1-16) after $tries"
poweroff -f
"#;

/// Says this to the monitor that listens at a socket, and waits for the machine to be done with it.
fn tell(monitor: &std::path::Path, commands: &str) {
    let mut stream = std::os::unix::net::UnixStream::connect(monitor).unwrap();
    stream.write_all(commands.as_bytes()).unwrap();
    let _ = stream.read_to_end(&mut Vec::new());
}

/// A machine is saved in the middle of a transfer: the restored one finds its connection reset, tries again, and has
/// the whole file.
fn is_saved(tag: &str, card: &str, modules: &str, wait: u64) {
    let (Some(vmlinuz), Some(archive)) = (guest("generic"), guest("generic-net")) else { return };
    let Some(initrd) = ramdisk(&format!("saved-{tag}"), "busybox", RETRY) else { return };
    let all = [std::fs::read(&initrd).unwrap(), std::fs::read(archive).unwrap()].concat();
    std::fs::write(&initrd, all).unwrap();
    let big = Arc::new(big());
    let http = http(Ipv4Addr::LOCALHOST.into(), big.clone());
    let folder = folder(&format!("saved-{tag}"), b"");
    let (monitor, saved) = (folder.join("monitor"), folder.join("saved"));
    let append = format!("console=ttyS0 panic=-1 quiet modules={modules} http={http}");
    let device = format!("{card},netdev=n0");
    let line = format!("unix:{},server,nowait", monitor.display());
    let mut args = vec!["-cpu", "max", "-m", "256", "-smp", "2", "-display", "none", "-serial", "stdio"];
    args.extend(["-monitor", &line, "-no-reboot", "-netdev", "user,id=n0", "-device", &device]);
    // The file takes some ten seconds.
    args.extend(["-object", "filter-fault,id=f0,netdev=n0,rate=20M"]);
    args.extend(["-append", &append, "-kernel", vmlinuz.to_str().unwrap()]);
    args.extend(["-initrd", initrd.to_str().unwrap()]);
    let limit = Duration::from_secs(300);
    let migrate = format!("migrate file:{}\nquit\n", saved.display());
    let first = run(&args, limit, |line| {
        if line.contains("BEGIN") {
            let (monitor, migrate) = (monitor.clone(), migrate.clone());
            thread::spawn(move || {
                thread::sleep(Duration::from_millis(wait));
                tell(&monitor, &migrate);
            });
        }
        None
    });
    assert!(!first.console.contains("DOWN"), "{tag}: it was saved too late:\n{}", first.console);
    let incoming = format!("file:{}", saved.display());
    args.extend(["-incoming", &incoming]);
    let second = run(&args, limit, |_| None);
    std::fs::remove_file(&initrd).unwrap();
    std::fs::remove_dir_all(&folder).unwrap();
    let lines = key_lines(&second.console, &["AGAIN", "DOWN"]);
    let expected = [String::from("AGAIN"), format!("DOWN {} after 2", digest(&big))];
    assert_eq!(lines, expected, "{tag}; the console said:\n{}", second.console);
}

#[test]
#[ignore = "boots a kernel from Debian's packages"]
fn a_restored_guest_has_a_network() {
    is_saved("virtio", "virtio-net-pci", VIRTIO, 1500);
    is_saved("e1000", "e1000", "e1000", 3000);
}

const MEET: &str = r#"
word() { grep -o "$1=[^ ]*" /proc/cmdline | cut -d= -f2; }
cd /modules
for m in $(word modules | tr , ' '); do insmod $m.ko || echo "MISSING $m"; done
i=0; while [ ! -e /sys/class/net/eth0 ] && [ $i -lt 60 ]; do sleep 1; i=$((i + 1)); done
ip addr add 192.168.7.$(word me)/24 dev eth0
ip link set eth0 up
for n in $(word others | tr , ' '); do
    i=0; while ! ping -c 1 -W 1 192.168.7.$n > /dev/null && [ $i -lt 200 ]; do sleep 1; i=$((i + 1)); done
    echo "REACHED $n $(ping -c 3 -s 1400 -W 20 192.168.7.$n | grep -o '[0-9]* packets received')"
done
# The others may still be asking.
sleep 15
poweroff -f
"#;

/// A machine of several on one network: whether it is QEMU, its card and what is behind it.
type Member = (bool, &'static str, String);

/// Machines that are alone with each other all reach each other.
fn meet(tag: &str, members: &[Member]) {
    let (Some(vmlinuz), Some(archive)) = (guest("generic"), guest("generic-net")) else { return };
    let Some(initrd) = ramdisk(&format!("meet-{tag}"), "busybox", MEET) else { return };
    let all = [std::fs::read(&initrd).unwrap(), std::fs::read(archive).unwrap()].concat();
    std::fs::write(&initrd, all).unwrap();
    let count = members.len();
    thread::scope(|scope| {
        for (n, (qemu, card, netdev)) in members.iter().enumerate() {
            let (vmlinuz, initrd) = (&vmlinuz, &initrd);
            scope.spawn(move || {
                let others: Vec<String> =
                    (0..count).filter(|o| *o != n).map(|o| (o + 1).to_string()).collect();
                let modules = if *card == "e1000" { "e1000" } else { VIRTIO };
                let append = format!(
                    "console=ttyS0 panic=-1 quiet modules={modules} me={} others={}",
                    n + 1,
                    others.join(",")
                );
                let device = format!("{card},netdev=n0,mac=52:54:00:00:07:0{n}");
                let netdev = format!("{netdev},id=n0");
                let mut args = vec!["-cpu", "max", "-m", "256", "-display", "none", "-serial", "stdio"];
                args.extend(["-monitor", "none", "-no-reboot", "-netdev", &netdev, "-device", &device]);
                args.extend(["-append", &append, "-kernel", vmlinuz.to_str().unwrap()]);
                args.extend(["-initrd", initrd.to_str().unwrap()]);
                let limit = Duration::from_secs(400);
                let boot = if *qemu { run_qemu(&args, limit, |_| None) } else { run(&args, limit, |_| None) };
                let expected: Vec<String> =
                    others.iter().map(|o| format!("REACHED {o} 3 packets received")).collect();
                let lines = key_lines(&boot.console, &["REACHED", "MISSING"]);
                assert_eq!(lines, expected, "{tag} {n}; the console said:\n{}", boot.console);
            });
            // Who listens is there before who connects.
            thread::sleep(Duration::from_secs(1));
        }
    });
    std::fs::remove_file(&initrd).unwrap();
}

#[test]
#[ignore = "boots a kernel from Debian's packages"]
fn machines_and_qemu_s_are_on_one_network() {
    let qemu = has_qemu();
    let group = format!("socket,mcast=239.192.7.9:{},localaddr=127.0.0.1", free_port());
    let mut members = vec![(false, "virtio-net-pci", group.clone()), (false, "e1000", group.clone())];
    if qemu {
        members.push((true, "e1000", group));
    }
    meet("group", &members);
    let port = free_port();
    let ends = ["listen", "connect"].map(|end| format!("socket,{end}=127.0.0.1:{port}"));
    let [listen, connect] = ends;
    meet("stream", &[(false, "virtio-net-pci", listen), (qemu, "e1000", connect)]);
}

/// Boots from the network: iPXE in the card's ROM takes a script and a kernel from TFTP, and an initial RAM disk from
/// HTTP.
fn boots(tag: &str, rom: &str, card: &str, bios: Option<&str>) {
    let (Some(vmlinuz), Some(rom)) = (guest("generic"), guest(rom)) else { return };
    let script = "echo \"BOOTED $(cat /proc/cmdline)\"; poweroff -f\n";
    let Some(initrd) = ramdisk(&format!("pxe-{tag}"), "busybox", script) else { return };
    let bios = match bios.map(guest) {
        Some(None) => return,
        Some(Some(path)) => path.display().to_string(),
        None => String::new(),
    };
    let http = http(Ipv4Addr::LOCALHOST.into(), Arc::new(std::fs::read(&initrd).unwrap()));
    let folder = folder(tag, b"");
    std::fs::copy(vmlinuz, folder.join("kernel")).unwrap();
    let ipxe = format!(
        "#!ipxe\nkernel tftp://10.0.2.2/kernel console=ttyS0 panic=-1 quiet pxe={tag}\n\
         initrd http://10.0.2.2:{http}/big\nboot\n"
    );
    std::fs::write(folder.join("script"), ipxe).unwrap();
    let netdev = format!("user,id=n0,tftp={},bootfile=script", folder.display());
    let card = format!("{card},netdev=n0,romfile={},bootindex=1", rom.display());
    let mut args =
        vec!["-m", "512", "-display", "none", "-serial", "stdio", "-monitor", "none", "-no-reboot"];
    args.extend(card.split(' '));
    args.extend(["-netdev", &netdev]);
    if !bios.is_empty() {
        args.extend(["-bios", &bios]);
    }
    let boot = run(&args, Duration::from_secs(300), |_| None);
    std::fs::remove_file(&initrd).unwrap();
    std::fs::remove_dir_all(&folder).unwrap();
    let lines = key_lines(&boot.console, &["BOOTED"]);
    assert!(
        lines.len() == 1 && lines[0].contains(&format!("pxe={tag}")),
        "{tag}; the console said:\n{}",
        boot.console
    );
    assert_eq!(boot.code, Some(0), "{tag}");
}

#[test]
#[ignore = "boots a kernel from Debian's packages"]
fn kernels_come_over_the_network() {
    boots("virtio", "ipxe-virtio", "-device virtio-net-pci", None);
    boots("e1000", "ipxe-e1000", "-device e1000", None);
    boots("e1000e", "ipxe-e1000e", "-M q35 -device e1000e", None);
    boots("seabios", "ipxe-e1000", "-device e1000", Some("seabios"));
}
