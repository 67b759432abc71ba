//! Debian's kernel for virtual machines drives virtio devices: a disk, random numbers, a balloon and lines.
//!
//! It is fetched once through apt, with its modules: `cargo test --release --test virtio -- --ignored`. The guest finds
//! the same under QEMU, if that is there, and writes the same to its disk.
mod common;
use common::{Boot, guest, has_qemu, key_lines, ramdisk, run, run_qemu};
use std::path::{Path, PathBuf};
use std::time::Duration;

const SCRIPT: &str = r#"
cd /modules
for m in ring : pci_legacy_dev pci_modern_dev pci blk -rng balloon console; do
    case $m in :) m=virtio;; -*) m=virtio$m;; *) m=virtio_$m;; esac
    insmod $m.ko || echo "MISSING $m"
done
for d in /sys/bus/virtio/devices/*; do
    echo "DEVICE $(cat $d/device) $(basename $(readlink $d/driver))"
done
b=/sys/block/vda
echo "DISK $(cat $b/size) $(cat $b/serial) $(cat $b/queue/write_cache) $(cat $b/queue/logical_block_size)"
echo "READ $(sha256sum < /dev/vda | cut -c1-16)"
i=0; while [ $i -lt 2000 ]; do echo "line $i"; i=$((i + 1)); done > /tmp/text
dd if=/tmp/text of=/dev/vda bs=512 seek=5 conv=fsync 2>/dev/null
dd if=/dev/vda of=/dev/vda bs=64k count=16 skip=1 seek=32 conv=fsync 2>/dev/null
echo 3 > /proc/sys/vm/drop_caches
echo "AGAIN $(sha256sum < /dev/vda | cut -c1-16)"
echo "RANDOM $(cat /sys/class/misc/hw_random/rng_current) $(dd if=/dev/hwrng bs=32 count=4 2>/dev/null | wc -c)"
echo "a line of its own" > /dev/hvc0
echo "INTERRUPTS $(awk '/virtio0-req/ { n += $2 + $3 } END { print (n > 10) }' /proc/interrupts)"
echo "WRONG $(dmesg | grep -c -E 'I/O error|BUG:|Oops|Call Trace')"
poweroff -f
"#;

const KEYS: &[&str] =
    &["MISSING", "DEVICE", "DISK ", "READ ", "AGAIN", "RANDOM", "INTERRUPTS", "WRONG", "a line of its own"];

/// A disk of 8 MiB, each of its sectors with a number of its own.
fn disk(tag: &str) -> PathBuf {
    let path = std::env::temp_dir().join(format!("mynah-virtio-{}-{tag}.img", std::process::id()));
    let bytes: Vec<u8> = (0..1_u64 << 20).flat_map(|n| (n * n).to_le_bytes()).collect();
    std::fs::write(&path, bytes).unwrap();
    path
}

/// A machine with the devices; `more` are properties of the disk.
fn boot(tag: &str, more: &str, run: impl FnOnce(&[&str]) -> Boot) -> Option<(Vec<String>, Vec<u8>)> {
    let (kernel, modules) = (guest("cloud")?, guest("cloud-virtio")?);
    let initrd = ramdisk(&format!("virtio-{tag}"), "busybox", SCRIPT)?;
    append(&initrd, &modules);
    let disk = disk(tag);
    let drive = format!("file={},if=none,id=d0,format=raw", disk.display());
    let device = format!("virtio-blk-pci,drive=d0,serial=MYNAH-1{more}");
    let mut args: Vec<&str> =
        "-cpu max -m 512 -display none -serial stdio -monitor none -no-reboot".split(' ').collect();
    args.extend(["-drive", &drive, "-device", &device, "-device", "virtio-rng-pci"]);
    args.extend(["-device", "virtio-balloon-pci", "-device", "virtio-serial-pci", "-chardev", "null,id=c"]);
    args.extend(["-device", "virtconsole,chardev=c", "-append", "console=ttyS0 quiet panic=-1"]);
    args.extend(["-kernel", kernel.to_str().unwrap(), "-initrd", initrd.to_str().unwrap()]);
    let boot = run(&args);
    assert_eq!(boot.code, Some(0), "the console said:\n{}", boot.console);
    let lines = key_lines(&boot.console, KEYS).into_iter().map(str::to_owned).collect();
    let written = std::fs::read(&disk).unwrap();
    for file in [initrd, disk] {
        std::fs::remove_file(file).unwrap();
    }
    Some((lines, written))
}

fn append(file: &Path, more: &Path) {
    let all = [std::fs::read(file).unwrap(), std::fs::read(more).unwrap()].concat();
    std::fs::write(file, all).unwrap();
}

#[test]
#[ignore = "boots a kernel from Debian's packages"]
fn linux_drives_virtio_devices_of_the_old_and_the_new_kind() {
    let limit = Duration::from_secs(300);
    let expected = has_qemu().then(|| boot("qemu", "", |args| run_qemu(args, limit, |_| None))).flatten();
    for (tag, more, options) in [
        ("both", "", &["-accel", "jit"][..]),
        ("old", ",disable-modern=on", &["-accel", "jit"]),
        ("new", ",disable-legacy=on,num-queues=2", &["-accel", "jit", "-smp", "2"]),
        ("pin", ",vectors=0", &["-accel", "interp"]),
    ] {
        let of = |args: &[&str]| run(&[options, args].concat(), limit, |_| None);
        let Some((lines, written)) = boot(tag, more, of) else { return };
        assert!(lines.iter().any(|l| l == "DEVICE 0x0002 virtio_blk"), "{tag}: {lines:#?}");
        assert!(lines.iter().any(|l| l == "RANDOM virtio_rng.0 128"), "{tag}: {lines:#?}");
        assert!(lines.iter().any(|l| l == "WRONG 0"), "{tag}: {lines:#?}");
        let Some((expected, on_disk)) = &expected else { continue };
        // Without messages the disk's interrupts have another name.
        let told = |all: &[String]| {
            let kept = all.iter().filter(|l| tag != "pin" || !l.starts_with("INTERRUPTS"));
            kept.cloned().collect::<Vec<_>>()
        };
        assert_eq!(told(&lines), told(expected), "{tag}");
        assert!(written == *on_disk, "{tag}: the disk differs");
    }
}
