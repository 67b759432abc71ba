//! Files by TFTP from a disk that takes its time, in a mount namespace of this test's own (unshare(1)). Without that, or
//! without FUSE, it is said that nothing was tried.
#![cfg(target_os = "linux")]
mod common;

use common::byte;
use common::fuse::Slow;
use common::listen;
use common::process::alone;
use common::raw::{ACK, PSH, Raw, Tcp, datagram};
use mynah_net::user::Config;
use std::io::{Read, Write};
use std::net::{SocketAddrV4, UdpSocket};
use std::process::Command;
use std::time::Duration;

const WRAP: [&str; 4] = ["unshare", "--mount", "--user", "--map-root-user"];
/// How long reads stand still if all else does.
const PATIENCE: Duration = Duration::from_secs(30);

#[test]
fn a_slow_disk_holds_up_nothing_but_the_file() {
    let possible = Command::new(WRAP[0]).args(&WRAP[1..]).arg("true").status().is_ok_and(|s| s.success());
    if !possible || !std::path::Path::new("/dev/fuse").exists() {
        eprintln!("skipped: no namespaces (unshare), or no /dev/fuse");
        return;
    }
    alone("a_slow_disk_holds_up_nothing_but_the_file", &WRAP, "", |_| {
        let folder = std::env::temp_dir().join(format!("mynah-slow-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        // More than is read at once.
        let content: Vec<u8> = (0..600_000).map(|i| byte(i, 5)).collect();
        let disk = match Slow::mount(&folder, "kernel", content.clone(), PATIENCE) {
            Ok(disk) => disk,
            Err(e) => {
                eprintln!("skipped: FUSE cannot be mounted: {e}");
                return;
            }
        };
        let raw = Raw::new(Config { tftp: Some(folder.clone()), ..Config::default() }, false);
        let server = SocketAddrV4::new([10, 0, 2, 2].into(), 69);
        raw.send(&datagram(5000, server, b"\0\x01kernel\0octet\0blksize\x001400\0windowsize\x0016\0"));
        assert_eq!(raw.wait_datagram().2[..2], [0, 6]);
        raw.send(&datagram(5000, server, &[0, 4, 0, 0]));
        while disk.reads().0 == 0 {
            std::thread::yield_now();
        }
        // The guest's other traffic goes on.
        let (listener, at) = listen();
        let ack = raw.open(1000, at.port(), &[]);
        let mut host = listener.accept().unwrap().0;
        host.set_read_timeout(Some(PATIENCE)).unwrap();
        for n in 0..100 {
            let data = [n as u8; 100];
            let seq = 101 + 100 * n;
            raw.tcp(Tcp {
                ports: (1000, at.port()),
                seq,
                ack,
                flags: ACK | PSH,
                data: &data,
                ..Tcp::default()
            });
            // What comes without a pause is gathered for a moment.
            raw.poll.advance(Duration::from_millis(2));
            raw.poll.turn(&raw.user, Duration::ZERO);
            let mut got = [0; 100];
            host.read_exact(&mut got).unwrap();
            assert_eq!(got, data);
        }
        host.write_all(b"answer").unwrap();
        while raw.wait().data != b"answer" {}
        let echo = UdpSocket::bind("127.0.0.1:0").unwrap();
        let to = SocketAddrV4::new([10, 0, 2, 2].into(), echo.local_addr().unwrap().port());
        raw.send(&datagram(5001, to, b"there"));
        let (n, from) = echo.recv_from(&mut [0; 10]).unwrap();
        assert_eq!(n, 5);
        echo.send_to(b"back", from).unwrap();
        assert_eq!(raw.wait_datagram().1, 5001, "nothing of the file has come");
        // However long it takes: the guest is not at fault, and is not given up.
        for _ in 0..60 {
            raw.poll.advance(Duration::from_secs(1));
            raw.poll.turn(&raw.user, Duration::ZERO);
        }
        assert!(!disk.reads().1, "all of that was while the disk stood still");
        disk.open();
        let mut got = Vec::new();
        let mut block = 0u16;
        while got.len() == 1400 * usize::from(block) {
            let (_, port, data) = raw.wait_datagram();
            assert_eq!((port, &data[..2]), (5000, &[0, 3][..]));
            block += 1;
            assert_eq!(data[2..4], block.to_be_bytes());
            got.extend_from_slice(&data[4..]);
            if block.is_multiple_of(16) {
                raw.send(&datagram(5000, server, &[[0, 4], block.to_be_bytes()].concat()));
            }
        }
        assert!(got == content);
    });
}
