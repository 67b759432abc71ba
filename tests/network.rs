//! Debian's kernels use the network through each card: an address by DHCP, the gateway, services of the host's by IPv4
//! and IPv6, both ways, and a port of the host's that leads to the guest.
//!
//! Kernels are fetched once through apt: `cargo test --release --test network -- --ignored`. All services are of this
//! test, on the host's loopback.
mod common;
#[allow(dead_code, reason = "others use more of them")]
#[path = "common/servers.rs"]
mod servers;
use common::{Boot, MODULES, TWO_CARDS, guest, has_qemu, key_lines, ramdisk, run, run_qemu};
use servers::{digest, free_port, http, sink};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, Shutdown, TcpStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

/// Bytes that are fetched and sent.
const BIG: usize = 24 << 20;
/// Small requests.
const SMALL: usize = 100;

const SCRIPT: &str = r#"
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
    servers::bytes(BIG)
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
    let Some(initrd) = ramdisk(&format!("network-{tag}"), busybox, &format!("{MODULES}{SCRIPT}")) else {
        return;
    };
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
    let whole = digest(&big);
    let expected = [
        format!("CARD {driver} 52:54:00:12:34:56"),
        "LEASE 10.0.2.15/24 router 10.0.2.2 dns 10.0.2.3".into(),
        "PING 3 packets received".into(),
        format!("DOWN {whole}"),
        format!("UP {whole}"),
        format!("SMALL {SMALL}"),
        format!("TFTP {}", digest(&big[..100_000])),
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
fn e1000_on_pc_and_what_passes_is_logged() {
    let folder = folder("log", b"");
    let log = folder.join("log");
    let options = format!("-device e1000,netdev=n0 -d net -D {}", log.display());
    works("e1000", "generic", &options, "e1000", "e1000");
    let log = std::fs::read_to_string(&log).unwrap();
    for (direction, said) in [
        ("out", " 10.0.2.15 > 10.0.2.2 icmp type 8 code 0"),
        ("in", " 10.0.2.2 > 10.0.2.15 icmp type 0 code 0"),
        ("in", " arp 10.0.2.2 is here"),
        ("out", " 0.0.0.0:68 > 255.255.255.255:67 udp "),
        ("in", " tcp SA seq "),
        ("out", " tcp S seq "),
    ] {
        let is = |l: &str| l.starts_with("n0 +") && l.contains(&format!(" {direction} ")) && l.contains(said);
        assert!(log.lines().any(is), "no '{direction} ...{said}'");
    }
    std::fs::remove_dir_all(&folder).unwrap();
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
    let Some(initrd) = ramdisk(&format!("saved-{tag}"), "busybox", &format!("{MODULES}{RETRY}")) else {
        return;
    };
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

/// A file comes through each of two cards, from where the last try has ended.
const RESUME: &str = r#"
for net in 2 3; do ping -c 1 -W 60 10.0.$net.2 > /dev/null; done
get() {
    tries=1
    until wget -q -c -O /tmp/$1 http://$1:$(word http)/big; do tries=$((tries + 1)); sleep 0.2; done
    echo "DOWN $1 $(sha256sum < /tmp/$1 | cut -c1-16)"
    echo "TRIES $1 $tries"
}
echo "BEGIN"
get 10.0.2.2 & get 10.0.3.2
wait
wrong='NETDEV WATCHDOG|Tx Unit Hang|BUG:|Oops|Call Trace|lockup|stall'
dmesg | grep -E "$wrong" | sed 's/^/WRONG /'
poweroff -f
"#;

/// Saves a machine that goes on with something, after so many milliseconds of that, and ends it.
fn save_after(monitor: &std::path::Path, saved: &std::path::Path, millis: u64) {
    let give_up = std::time::Instant::now() + Duration::from_secs(120);
    let mut stream = loop {
        match std::os::unix::net::UnixStream::connect(monitor) {
            Ok(stream) => break stream,
            Err(why) => assert!(std::time::Instant::now() < give_up, "{}: {why}", monitor.display()),
        }
        thread::sleep(Duration::from_millis(5));
    };
    thread::sleep(Duration::from_millis(millis));
    stream.write_all(format!("migrate file:{}\nquit\n", saved.display()).as_bytes()).unwrap();
    let _ = stream.read_to_end(&mut Vec::new());
}

#[test]
#[ignore = "boots a kernel from Debian's packages"]
fn a_file_arrives_however_often_the_machine_is_saved_and_restored() {
    // MYNAH_NETWORK_SAVES of them; the moments follow MYNAH_SEED.
    let number = |name: &str| std::env::var(name).ok().map(|n| n.parse::<u64>().expect("a number"));
    let saves = number("MYNAH_NETWORK_SAVES").unwrap_or(4);
    let mut seed = number("MYNAH_SEED").unwrap_or(1) | 1;
    let mut random = move || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed
    };
    let (Some(vmlinuz), Some(archive)) = (guest("generic"), guest("generic-net")) else { return };
    let Some(initrd) = ramdisk("saved-often", "busybox", &format!("{MODULES}{TWO_CARDS}{RESUME}")) else {
        return;
    };
    let all = [std::fs::read(&initrd).unwrap(), std::fs::read(archive).unwrap()].concat();
    std::fs::write(&initrd, all).unwrap();
    let big = Arc::new(big());
    let http = http(Ipv4Addr::LOCALHOST.into(), big.clone());
    let folder = folder("saved-often", b"");
    let append = format!("console=ttyS0 panic=-1 quiet modules={VIRTIO},e1000 http={http}");
    let limit = Duration::from_secs(600);
    let mut console = String::new();
    for n in 0..=saves {
        let (monitor, saved) = (folder.join(format!("monitor{n}")), folder.join(format!("saved{n}")));
        let line = format!("unix:{},server,nowait", monitor.display());
        let mut args = vec!["-cpu", "max", "-m", "512", "-smp", "4", "-display", "none", "-serial", "stdio"];
        args.extend([
            "-monitor",
            &line,
            "-no-reboot",
            "-netdev",
            "user,id=n0",
            "-netdev",
            "user,id=n1,net=10.0.3.0/24",
        ]);
        args.extend(["-device", "virtio-net-pci,netdev=n0,mac=52:54:00:12:34:50"]);
        args.extend(["-device", "e1000,netdev=n1,mac=52:54:00:12:34:51"]);
        // The files take longer than all savings.
        let rate = format!("rate={}K", 8 * BIG as u64 / 1000 / (2 * saves + 4));
        let [fast, slow] = ["n0", "n1"].map(|n| format!("filter-fault,id=f{n},netdev={n},{rate}"));
        args.extend(["-object", &fast, "-object", &slow]);
        args.extend(["-append", &append, "-kernel", vmlinuz.to_str().unwrap()]);
        args.extend(["-initrd", initrd.to_str().unwrap()]);
        let before = folder.join(format!("saved{}", n.wrapping_sub(1)));
        let incoming = format!("file:{}", before.display());
        if n > 0 {
            args.extend(["-incoming", &incoming]);
        }
        let millis = 200 + random() % 1500;
        let mut save = Some((monitor, saved)).filter(|_| n < saves);
        let begin = |save: &mut Option<(PathBuf, PathBuf)>| {
            let (monitor, saved) = save.take()?;
            Some(thread::spawn(move || save_after(&monitor, &saved, millis)))
        };
        // A restored machine goes on at once.
        let mut saving = if n > 0 { begin(&mut save) } else { None };
        let boot = run(&args, limit, |line| {
            if line.contains("BEGIN") {
                saving = begin(&mut save);
            }
            None
        });
        if let Some(saving) = saving {
            saving.join().unwrap();
        }
        console += &boot.console;
        assert!(n == saves || !boot.console.contains("DOWN"), "saved too late ({n} of {saves}):\n{console}");
        if n > 0 {
            std::fs::remove_file(before).unwrap();
        }
    }
    std::fs::remove_file(&initrd).unwrap();
    std::fs::remove_dir_all(&folder).unwrap();
    let mut lines = key_lines(&console, &["DOWN", "WRONG", "MISSING"]);
    lines.sort_unstable();
    let whole = digest(&big);
    assert_eq!(lines, [format!("DOWN 10.0.2.2 {whole}"), format!("DOWN 10.0.3.2 {whole}")], "{console}");
    // Each saving ends both connections, unless one of them is just being tried again.
    for line in key_lines(&console, &["TRIES"]) {
        let tries: u64 = line.rsplit(' ').next().unwrap().parse().unwrap();
        assert!((2..=saves + 1).contains(&tries), "{line}: {console}");
    }
}

const MEET: &str = r#"
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
    let Some(initrd) = ramdisk(&format!("meet-{tag}"), "busybox", &format!("{MODULES}{MEET}")) else {
        return;
    };
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

#[test]
#[ignore = "boots a kernel from Debian's packages"]
fn linux_guests_of_both_meet_on_a_switch() {
    let folder = folder("switch", b"");
    let path = folder.join("lan");
    let port = format!("{},guests=3", path.display());
    let mut switch = std::process::Command::new(env!("CARGO_BIN_EXE_mynah"));
    let mut switch = switch.args(["switch", "--port", &port]).spawn().unwrap();
    while !path.exists() {
        assert!(switch.try_wait().unwrap().is_none(), "the switch has ended");
        thread::sleep(Duration::from_millis(5));
    }
    let netdev = format!("stream,addr.type=unix,addr.path={}", path.display());
    let mut members = vec![(false, "virtio-net-pci", netdev.clone()), (false, "e1000", netdev.clone())];
    // It has had streams since 7.2.
    if has_qemu() {
        members.push((true, "e1000", netdev));
    }
    meet("switch", &members);
    switch.kill().unwrap();
    switch.wait().unwrap();
    std::fs::remove_dir_all(&folder).unwrap();
}

/// Lines, each worse than the one before it.
const LINES: &[(&str, &str)] = &[
    ("loss=1%", "1M"),
    ("loss=5%,delay=2ms,jitter=2ms,reorder=5%", "1M"),
    ("duplicate=20%,reorder=20%", "1M"),
    ("corrupt=10%", "1M"),
    ("loss=5%,duplicate=5%,reorder=5%,corrupt=5%,delay=1ms", "512K"),
    ("loss=20%", "128K"),
];

const BAD: &str = r#"
i=0; while [ ! -e /sys/class/net/eth5 ] && [ $i -lt 60 ]; do sleep 1; i=$((i + 1)); done
try() {
    net=$1; size=$2
    until wget -q -O /tmp/in$net http://10.0.$net.2:$(word http)/big; do echo "AGAIN $net"; done
    [ "$(sha256sum < /tmp/in$net | cut -c1-16)" = "$(word digest)" ] && echo "DOWN $net"
    [ "$(head -c $size /tmp/in$net | nc 10.0.$net.2 $(word sink))" = "$(head -c $size /tmp/in$net | sha256sum | cut -c1-16)" ] && echo "UP $net"
    # Half of that, as it goes through twice.
    [ "$(head -c $((size / 2)) /tmp/in$net | nc 10.0.$net.2 $(word echo) | sha256sum)" = "$(head -c $((size / 2)) /tmp/in$net | sha256sum)" ] && echo "BOTH $net"
}
for n in 0 1 2 3 4 5; do
    net=$((0x$(cut -c17 /sys/class/net/eth$n/address) + 10))
    ip addr add 10.0.$net.15/24 dev eth$n
    ip link set eth$n up
done
n=0; for size in $(word sizes | tr , ' '); do
    try $((10 + n)) $size & n=$((n + 1))
done
wait
poweroff -f
"#;

#[test]
#[ignore = "boots a kernel from Debian's packages"]
fn transfers_over_bad_lines_are_right() {
    let (Some(vmlinuz), Some(archive)) = (guest("generic"), guest("generic-net")) else { return };
    let Some(initrd) = ramdisk("bad", "busybox", &format!("{MODULES}{BAD}")) else { return };
    let all = [std::fs::read(&initrd).unwrap(), std::fs::read(archive).unwrap()].concat();
    std::fs::write(&initrd, all).unwrap();
    let big = Arc::new(servers::bytes(1 << 20));
    let (http, sink, echo) = (http(Ipv4Addr::LOCALHOST.into(), big.clone()), sink(), servers::tcp_echo());
    let sizes: Vec<String> = LINES.iter().map(|(_, size)| mib(size).to_string()).collect();
    let append = format!(
        "console=ttyS0 panic=-1 quiet modules={VIRTIO},e1000 http={http} sink={sink} echo={echo} digest={} sizes={}",
        digest(&big),
        sizes.join(",")
    );
    let mut args = ["-m", "512", "-display", "none", "-serial", "stdio", "-monitor", "none", "-no-reboot"]
        .map(String::from)
        .to_vec();
    args.extend(["-append".into(), append, "-kernel".into(), vmlinuz.to_str().unwrap().into()]);
    args.extend(["-initrd".into(), initrd.to_str().unwrap().into()]);
    for (n, (faults, _)) in LINES.iter().enumerate() {
        let card = if n % 2 == 0 { "virtio-net-pci" } else { "e1000" };
        args.extend(["-netdev".into(), format!("user,id=n{n},net=10.0.{}.0/24", 10 + n)]);
        args.extend(["-device".into(), format!("{card},netdev=n{n},mac=52:54:00:12:34:0{n}")]);
        args.extend(["-object".into(), format!("filter-fault,id=f{n},netdev=n{n},seed={n},{faults}")]);
    }
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let boot = run(&args, Duration::from_secs(1200), |_| None);
    std::fs::remove_file(&initrd).unwrap();
    let mut lines = key_lines(&boot.console, &["DOWN", "UP ", "BOTH", "MISSING", "AGAIN"]);
    lines.sort_unstable();
    let expected = ["BOTH", "DOWN", "UP"];
    let expected = expected.iter().flat_map(|key| (10..16).map(move |n| format!("{key} {n}")));
    assert_eq!(lines, expected.collect::<Vec<_>>(), "the console said:\n{}", boot.console);
}

/// `2M`, `512K`, in bytes.
fn mib(size: &str) -> usize {
    let (number, unit) = size.split_at(size.len() - 1);
    number.parse::<usize>().unwrap() << if unit == "M" { 20 } else { 10 }
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
