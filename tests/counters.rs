//! What is said of traffic is what has passed: frames and octets of each card, of the NAT and of its flows, as the
//! monitor, `mynah network` and `-d net` tell them, beside what this test has counted by itself at the other end: of a
//! cable that ends in its own socket, and of a service of its own behind the NAT. With each card.
//!
//! Kernels are fetched once through apt: `cargo test --release --test counters -- --ignored`.
#![cfg(unix)]
#[allow(dead_code, reason = "others boot other guests")]
mod common;
mod kit;
use common::{MODULES, TWO_CARDS, guest, key_lines, ramdisk, run};
use kit::Client;
use serde_json::Value;
use std::fmt::Write as _;
use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

/// Octets that a connection has from the guest, and for it.
const UP: usize = 1_000_003;
const DOWN: usize = 2_000_005;
/// How long the figures may take to settle: what is asked for while a frame passes has it in one of them only.
const SETTLED: Duration = Duration::from_secs(60);

const SCRIPT: &str = r#"
for n in 0 1; do
    i=0; while [ "$(cat /sys/class/net/eth$n/carrier 2>/dev/null)" != 1 ] && [ $i -lt 60 ]; do sleep 1; i=$((i + 1)); done
done
for size in 0 1 17 18 19 500 1472 1473 5000; do
    echo "PING $size $(ping -c 2 -W 20 -s $size 10.0.3.9 | grep -o '[0-9]* packets received')"
done
ping -c 1 -W 20 10.0.2.2 > /dev/null
head -c $(word up) /dev/zero | nc 10.0.2.2 $(word port) > /tmp/got
echo "GOT $(wc -c < /tmp/got)"
poweroff -f
"#;

/// Frames and octets, each way as the guest sees it.
#[derive(Default)]
struct Counted {
    sent: [AtomicU64; 2],
    received: [AtomicU64; 2],
}

fn count(what: &[AtomicU64; 2], octets: usize) {
    what[0].fetch_add(1, Ordering::SeqCst);
    what[1].fetch_add(octets as u64, Ordering::SeqCst);
}

fn figures(what: &[AtomicU64; 2]) -> [u64; 2] {
    [what[0].load(Ordering::SeqCst), what[1].load(Ordering::SeqCst)]
}

/// The other end of the cable: 10.0.3.9, which answers pings, also those in fragments.
fn neighbour(socket: &UnixDatagram, counted: &Counted) {
    const MAC: [u8; 6] = [0x52, 0x54, 0, 0x77, 0x77, 0x77];
    let mut frame = [0; 2048];
    while let Ok(n @ 1..) = socket.recv(&mut frame) {
        count(&counted.sent, n);
        let f = &mut frame[..n];
        let asks = n >= 42 && f[12..14] == [8, 6] && f[20..22] == [0, 1] && f[38..42] == [10, 0, 3, 9];
        let pings = n >= 34 && f[12..14] == [8, 0] && f[23] == 1 && f[30..34] == [10, 0, 3, 9];
        if asks {
            f[21] = 2;
            f.copy_within(22..32, 32);
            f[22..32].copy_from_slice(&[&MAC[..], &[10, 0, 3, 9]].concat());
        } else if pings {
            f.copy_within(26..30, 30);
            f[26..30].copy_from_slice(&[10, 0, 3, 9]);
            // The first fragment has the type, a request's of 8, which is in the sum.
            if f[20] & 0x1f == 0 && f[21] == 0 {
                assert_eq!(f[34], 8);
                let sum = u32::from(u16::from_be_bytes([f[36], f[37]])) + 0x0800;
                f[34] = 0;
                f[36..38].copy_from_slice(&((sum + (sum >> 16)) as u16).to_be_bytes());
            }
        } else {
            continue;
        }
        f.copy_within(6..12, 0);
        f[6..12].copy_from_slice(&MAC);
        if socket.send(f).is_ok() {
            count(&counted.received, n);
        }
    }
}

/// Frames and octets in the log of a network in one direction; those alone that say `what`.
fn logged(log: &str, network: &str, direction: &str, what: &str) -> [u64; 2] {
    let mut sum = [0; 2];
    for line in log.lines() {
        let words: Vec<&str> = line.split(' ').collect();
        if words[0] == network && words[2] == direction && line.contains(what) {
            sum = [sum[0] + 1, sum[1] + words[3].parse::<u64>().unwrap()];
        }
    }
    sum
}

/// Where the figures differ.
fn differences(monitor: &Path, log: &Path, counted: &Counted, port: u16) -> String {
    let program = env!("CARGO_BIN_EXE_mynah");
    let out = Command::new(program).arg("network").arg(monitor).output().unwrap();
    let all: Value = serde_json::from_slice(&out.stdout).unwrap();
    let mut client = Client::at(monitor.to_str().unwrap());
    let [json, usernet, network] =
        ["info network -j", "info usernet", "info network"].map(|line| client.ask(line));
    let log = std::fs::read_to_string(log).unwrap();
    let mut wrong = String::new();
    let mut same = |what: &str, a: &dyn std::fmt::Debug, b: &dyn std::fmt::Debug| {
        let (a, b) = (format!("{a:?}"), format!("{b:?}"));
        if a != b {
            let _ = writeln!(wrong, "{what}: {a}, but {b}");
        }
    };
    for name in ["n0", "n1"] {
        let card = all["cards"].as_array().unwrap().iter().find(|c| c["netdev"] == name).unwrap();
        let said = |way: &str| ["frames", "bytes"].map(|key| card[way][key].as_u64().unwrap());
        let (sent, received) = (said("sent"), said("received"));
        same(&format!("{name}: the log, out"), &logged(&log, name, "out", ""), &sent);
        same(&format!("{name}: the log, in"), &logged(&log, name, "in", ""), &received);
        same(&format!("{name}: dropped"), &card["dropped"].as_u64(), &Some(0));
        let line = format!(
            "sent {} frames, {} bytes; received {} frames, {} bytes; dropped 0",
            sent[0], sent[1], received[0], received[1]
        );
        same(&format!("{name}: '{line}' is in {network}"), &network.contains(&line), &true);
        same(
            &format!("{name}: the monitor's JSON"),
            &json.contains(&format!("\"bytes\":{}", sent[1])),
            &true,
        );
        if name == "n1" {
            same("what came by the cable", &figures(&counted.sent), &sent);
            same("what went by the cable", &figures(&counted.received), &received);
        } else {
            let user = &all["networks"][name]["user"];
            same("frames from the guest", &user["stats"]["from_guest"].as_u64(), &Some(sent[0]));
            same("frames to the guest", &user["stats"]["to_guest"].as_u64(), &Some(received[0]));
            let flows = user["flows"].as_array().unwrap();
            let remote = format!("10.0.2.2:{port}");
            let Some(flow) = flows.iter().find(|f| f["remote"] == remote.as_str()) else {
                same("flows", &flows, &remote);
                continue;
            };
            let said = |key: &str| flow["counters"][key].as_u64().unwrap();
            same("octets of the flow", &[said("from_guest"), said("to_guest")], &[UP as u64, DOWN as u64]);
            let guest = flow["guest"].as_str().unwrap();
            let (out, into) = (format!(" {guest} > {remote} tcp "), format!(" {remote} > {guest} tcp "));
            same("segments out", &said("segments_from"), &logged(&log, name, "out", &out)[0]);
            same("segments in", &said("segments_to"), &logged(&log, name, "in", &into)[0]);
            let words = ["TCP[Open]", guest, &remote, &UP.to_string(), &DOWN.to_string()].join(" ");
            let is = |l: &str| l.split_whitespace().collect::<Vec<_>>().join(" ").starts_with(&words);
            same(&format!("'{words}' is in {usernet}"), &usernet.lines().any(is), &true);
        }
    }
    wrong
}

fn counts(card: &str, machine: &str, modules: &str) {
    let (Some(vmlinuz), Some(archive)) = (guest("generic"), guest("generic-net")) else { return };
    let Some(initrd) =
        ramdisk(&format!("counted-{card}"), "busybox", &format!("{MODULES}{TWO_CARDS}{SCRIPT}"))
    else {
        return;
    };
    let bytes = [std::fs::read(&initrd).unwrap(), std::fs::read(archive).unwrap()].concat();
    std::fs::write(&initrd, bytes).unwrap();
    let folder = std::env::temp_dir().join(format!("mynah-counted-{}-{card}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let at = |name: &str| folder.join(name);
    let path = |name: &str| at(name).display().to_string();
    // The cable.
    let counted = Arc::new(Counted::default());
    let socket = UnixDatagram::bind(at("ours")).unwrap();
    let end = socket.try_clone().unwrap();
    let connect = {
        let (socket, theirs) = (socket.try_clone().unwrap(), at("theirs"));
        move || socket.connect(&theirs).is_ok()
    };
    let cable = thread::spawn({
        let counted = counted.clone();
        move || {
            // The machine binds its end when it starts.
            while !connect() {
                thread::sleep(Duration::from_millis(10));
            }
            neighbour(&socket, &counted);
        }
    });
    // The service; it holds the connection open until all has been looked at.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let wrong = Arc::new(Mutex::new(String::from("nobody has connected")));
    thread::spawn({
        let (counted, wrong, monitor, log) = (counted.clone(), wrong.clone(), at("monitor"), at("log"));
        move || {
            let mut peer = listener.accept().unwrap().0;
            peer.read_exact(&mut vec![0; UP]).unwrap();
            peer.write_all(&vec![1; DOWN]).unwrap();
            let end = Instant::now() + SETTLED;
            loop {
                let found = differences(&monitor, &log, &counted, port);
                let done = found.is_empty() || Instant::now() > end;
                *wrong.lock().unwrap() = found;
                if done {
                    break;
                }
                thread::sleep(Duration::from_millis(200));
            }
        }
    });
    let append = format!("console=ttyS0 panic=-1 quiet ipv6.disable=1 modules={modules} up={UP} port={port}");
    let monitor = format!("unix:{},server,nowait", path("monitor"));
    let cable_options = format!(
        "dgram,id=n1,local.type=unix,local.path={},remote.type=unix,remote.path={}",
        path("theirs"),
        path("ours")
    );
    let [first, second] = [0, 1].map(|n| format!("{card},netdev=n{n},mac=52:54:00:12:34:5{n}"));
    let log = path("log");
    let mut args = vec!["-M", machine, "-cpu", "max", "-m", "512", "-display", "none", "-serial", "stdio"];
    args.extend(["-monitor", &monitor, "-no-reboot", "-netdev", "user,id=n0", "-netdev", &cable_options]);
    args.extend(["-device", &first, "-device", &second, "-d", "net", "-D", &log, "-append", &append]);
    args.extend(["-kernel", vmlinuz.to_str().unwrap(), "-initrd", initrd.to_str().unwrap()]);
    let boot = run(&args, Duration::from_secs(300), |_| None);
    std::fs::remove_file(&initrd).unwrap();
    // The other end of the cable ends, too.
    end.shutdown(std::net::Shutdown::Both).unwrap();
    let console = &boot.console;
    assert_eq!(*wrong.lock().unwrap(), "", "{card}; the console said:\n{console}");
    let mut expected: Vec<_> = [0, 1, 17, 18, 19, 500, 1472, 1473, 5000]
        .map(|size| format!("PING {size} 2 packets received"))
        .into();
    expected.push(format!("GOT {DOWN}"));
    assert_eq!(
        key_lines(console, &["MISSING", "PING", "GOT"]),
        expected,
        "{card}; the console said:\n{console}"
    );
    cable.join().unwrap();
    std::fs::remove_dir_all(&folder).unwrap();
}

#[test]
#[ignore = "boots a kernel from Debian's packages"]
fn what_passes_through_virtio_net_is_counted() {
    let modules =
        "virtio_ring,virtio,virtio_pci_legacy_dev,virtio_pci_modern_dev,virtio_pci,failover,net_failover";
    counts("virtio-net-pci", "pc", &format!("{modules},virtio_net"));
}

#[test]
#[ignore = "boots a kernel from Debian's packages"]
fn what_passes_through_e1000_is_counted() {
    counts("e1000", "pc", "e1000");
}

#[test]
#[ignore = "boots a kernel from Debian's packages"]
fn what_passes_through_e1000e_is_counted() {
    counts("e1000e", "q35", "e1000e");
}

#[test]
#[ignore = "boots a kernel from Debian's packages"]
fn what_passes_through_rtl8139_is_counted() {
    counts("rtl8139", "pc", "mii,8139cp");
}
