//! `-M q35`: Debian's kernels find what they find under QEMU, and use it: disk and CD on AHCI, virtio devices behind a
//! PCI Express port and a bridge, configuration space in memory; they switch off by ACPI.
//!
//! Kernels and modules are fetched once through apt (`tests/guests/manifest.toml`): `cargo test --release --test q35 --
//! --ignored`. MYNAH_GUESTS=cached passes over what is not there.
mod common;
use common::{guest, has_qemu, ramdisk, run, run_qemu};
use std::path::{Path, PathBuf};
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(600);

/// Modules in the order in which they need each other.
const LOAD: &str = r#"
load() { for m in "$@"; do insmod /modules/$m.ko || echo "KEY missing $m"; done; }
"#;

const WORK: &str = r#"
load crct10dif_common crc-t10dif crc64 crc64-rocksoft t10-pi scsi_common scsi_mod libata libahci ahci cdrom sr_mod sd_mod
load virtio_ring virtio virtio_pci_legacy_dev virtio_pci_modern_dev virtio_pci virtio_blk virtio-rng
i=0; while [ ! -b /dev/sda -o ! -b /dev/sr0 -o ! -b /dev/vda ] && [ $i -lt 60 ]; do sleep 1; i=$((i + 1)); done
for d in /sys/bus/pci/devices/*; do
    # QEMU's bridges and ports have registers of their own to be hot-plugged by.
    echo "KEY pci ${d##*/} $(cat $d/vendor) $(cat $d/device) $(cat $d/class) $(cat $d/subsystem_vendor) $(stat -c %s $d/config)"
done
echo "KEY $(dmesg | grep -o 'ahci 0000:00:1f.2: AHCI .*')"
echo "KEY $(dmesg | grep -o 'ahci 0000:00:1f.2: flags.*')"
dmesg | grep -o -E 'ata[1-6](.00)?: (SATA link|ATA-7|[0-9]* sectors|ATAPI|configured).*' | sort | sed 's/^/KEY /'
echo "KEY $(dmesg | grep -o 'MMCONFIG at .*')"
echo "KEY $(dmesg | grep -o 'sr0. scsi3-mmc.*')"
echo "KEY depth $(cat /sys/block/sda/device/queue_depth)"
echo "KEY disk $(md5sum < /dev/sda)"
echo "KEY disc $(md5sum < /dev/sr0)"
echo "KEY port $(md5sum < /dev/vda)"
echo "KEY random $(dd if=/dev/hwrng bs=32 count=4 2>/dev/null | wc -c)"
# Many at a time, each to a place of its own.
n=0; while [ $n -lt 16 ]; do
    dd if=/dev/sda of=/dev/sda bs=64k count=8 skip=$n seek=$((100 + 8 * n)) conv=notrunc 2>/dev/null &
    n=$((n + 1))
done
wait; sync
echo 3 > /proc/sys/vm/drop_caches
n=0; while [ $n -lt 8 ]; do dd if=/dev/sda bs=1M skip=$n count=4 2>/dev/null | md5sum > /tmp/$n & n=$((n + 1)); done
wait
echo "KEY parts $(cat /tmp/[0-7] | md5sum)"
dd if=/dev/sda of=/dev/sda bs=64k count=16 skip=1 seek=240 oflag=direct conv=fsync 2>/dev/null
echo "KEY all $(md5sum < /dev/sda)"
echo "KEY lines $(awk '/ahci/ { print ($1 == "16:") }' /proc/interrupts)"
echo "KEY faults $(dmesg | grep -c -E 'ata[0-9].*(exception|error|failed|timeout|frozen)|I/O error|Oops|Call Trace')"
poweroff -f
"#;

/// Bytes that are nowhere alike.
fn pattern(len: usize, seed: u64) -> Vec<u8> {
    let mut n = seed;
    let mut next = || {
        n = n.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        (n >> 56) as u8
    };
    (0..len).map(|_| next()).collect()
}

struct Files(PathBuf);

impl Files {
    fn new(tag: &str) -> Self {
        let folder = std::env::temp_dir().join(format!("mynah-q35-{}-{tag}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        for (name, len, seed) in [("disk", 20 << 20, 1), ("disc", 3 << 20, 2), ("port", 2 << 20, 3)] {
            std::fs::write(folder.join(name), pattern(len, seed)).unwrap();
        }
        Self(folder)
    }

    fn path(&self, name: &str) -> String {
        self.0.join(name).to_str().expect("the temporary folder's name is text").into()
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A RAM disk with a script and modules.
fn initrd(tag: &str, script: &str, modules: &str) -> Option<PathBuf> {
    let modules = guest(modules)?;
    let initrd = ramdisk(tag, "busybox", &format!("{LOAD}{script}"))?;
    let all = [std::fs::read(&initrd).unwrap(), std::fs::read(modules).unwrap()].concat();
    std::fs::write(&initrd, all).unwrap();
    Some(initrd)
}

fn text(path: &Path) -> &str {
    path.to_str().expect("the temporary folder's name is text")
}

/// What the guest says, and what is on its disk then.
fn boot(tag: &str, accel: Option<&str>, append: &str) -> Option<(Vec<String>, Vec<u8>)> {
    let (kernel, initrd) = (guest("generic")?, initrd(&format!("q35-{tag}"), WORK, "generic-sata")?);
    let files = Files::new(tag);
    // A host with other work is too slow for the kernel's look at its timer.
    let append = format!("console=ttyS0 panic=-1 quiet no_timer_check {append}");
    let (disk, port) = (files.path("disk"), files.path("port"));
    let (disk, port) = (format!("file={disk},format=raw"), format!("file={port},format=raw,if=none,id=v"));
    let disc = files.path("disc");
    let mut args: Vec<&str> =
        "-M q35 -cpu max -m 512 -nodefaults -display none -serial stdio -no-reboot".split(' ').collect();
    args.extend(["-kernel", text(&kernel), "-initrd", text(&initrd), "-append", &append]);
    args.extend(["-drive", &disk, "-cdrom", &disc, "-device", "pcie-root-port,id=rp1,chassis=1,addr=4"]);
    args.extend(["-drive", &port, "-device", "virtio-blk-pci,drive=v,bus=rp1"]);
    args.extend([
        "-device",
        "pci-bridge,id=br,chassis_nr=2,addr=5",
        "-device",
        "virtio-rng-pci,bus=br,addr=3",
    ]);
    let boot = match accel {
        Some(accel) => run(&[&args[..], &["-accel", accel]].concat(), LIMIT, |_| None),
        None => run_qemu(&args, LIMIT, |_| None),
    };
    std::fs::remove_file(&initrd).unwrap();
    assert_eq!(boot.code, Some(0), "{}", boot.console);
    let said: Vec<String> =
        boot.console.lines().filter_map(|l| Some(l.split_once("KEY ")?.1.trim_end().to_owned())).collect();
    assert_eq!(said.last().map(String::as_str), Some("faults 0"), "{}", boot.console);
    Some((said, std::fs::read(files.path("disk")).unwrap()))
}

#[test]
#[ignore = "boots kernels from Debian's packages"]
fn linux_finds_and_does_what_it_does_under_qemu() {
    let expected = has_qemu().then(|| boot("qemu", None, "")).flatten();
    for (tag, accel, append) in [("msi", "jit", ""), ("pin", "jit", "pci=nomsi"), ("interp", "interp", "")] {
        let Some((said, disk)) = boot(tag, Some(accel), append) else { return };
        let has = |line: &str| assert!(said.iter().any(|l| l.contains(line)), "no '{line}': {said:#?}");
        has("AHCI 0001.0000 32 slots 6 ports 1.5 Gbps 0x3f impl SATA mode");
        has("NCQ (depth 32)");
        has("pci 0000:01:00.0 0x1af4 0x1042");
        has("random 128");
        has(if append.is_empty() { "lines 0" } else { "lines 1" });
        let Some((qemus, qemus_disk)) = &expected else { continue };
        let told =
            |all: &[String]| all.iter().filter(|l| !l.starts_with("lines")).cloned().collect::<Vec<_>>();
        assert_eq!(told(&said), told(qemus), "{tag}");
        assert!(disk == *qemus_disk, "{tag}: what is on the disk");
    }
}

const CLOUD: &str = r#"
cd /modules
load virtio_ring virtio virtio_pci_legacy_dev virtio_pci_modern_dev virtio_pci virtio_blk virtio-rng
echo "KEY memory $(awk '/MemTotal/ { print ($2 > 2900000) }' /proc/meminfo)"
echo "KEY low $(grep -c '^00100000-7fff.*System RAM' /proc/iomem) high $(grep -c '^100000000-13fffffff : System RAM' /proc/iomem)"
echo "KEY window $(grep -E '^[0-9a-f]{9}-' /proc/iomem | grep -c 'PCI Bus 0000:00')"
echo "KEY vcpus $(grep -c ^processor /proc/cpuinfo)"
echo "KEY port $(md5sum < /dev/vda)"
echo "KEY link $(cat /sys/bus/pci/devices/0000:01:00.0/current_link_speed)"
poweroff -f
"#;

#[test]
#[ignore = "boots a kernel from Debian's packages"]
fn ram_is_split_and_pci_memory_is_above_it() {
    let Some(kernel) = guest("cloud") else { return };
    let Some(initrd) = initrd("q35-cloud", CLOUD, "cloud-virtio") else { return };
    let files = Files::new("cloud");
    let port = format!("file={},format=raw,if=none,id=v", files.path("port"));
    let mut args: Vec<&str> = "-M q35 -cpu max -m 3G -smp 2 -nographic -no-reboot".split(' ').collect();
    args.extend([
        "-kernel",
        text(&kernel),
        "-initrd",
        text(&initrd),
        "-append",
        "console=ttyS0 panic=-1 quiet no_timer_check",
    ]);
    args.extend([
        "-device",
        "pcie-root-port,id=rp1",
        "-drive",
        &port,
        "-device",
        "virtio-blk-pci,drive=v,bus=rp1",
    ]);
    let boot = run(&args, LIMIT, |_| None);
    std::fs::remove_file(&initrd).unwrap();
    assert_eq!(boot.code, Some(0), "{}", boot.console);
    for line in ["memory 1", "low 1 high 1", "window 1", "vcpus 2", "link 2.5 GT/s PCIe"] {
        assert!(boot.console.contains(&format!("KEY {line}")), "no '{line}':\n{}", boot.console);
    }
}

#[test]
fn what_cannot_be_plugged_in_is_refused_by_name() {
    let files = Files::new("refused");
    let kernel = files.path("kernel");
    std::fs::write(&kernel, mynah_guests::embedded::image().unwrap()).unwrap();
    let refused = |args: &[&str]| {
        let mynah = std::process::Command::new(env!("CARGO_BIN_EXE_mynah"))
            .args(["run", "-display", "none", "-serial", "null", "-m", "16", "-kernel", &kernel])
            .args(args)
            .output()
            .unwrap();
        assert_ne!(mynah.status.code(), Some(0), "{args:?}");
        String::from_utf8_lossy(&mynah.stderr).into_owned()
    };
    for (args, why) in [
        (&["-device", "edu,bus=rp1"][..], "bus=rp1: there is no such PCI bus"),
        (&["-device", "pcie-root-port,id=rp1"], "a board with PCI Express (-M q35)"),
        (
            &["-M", "q35", "-device", "pcie-root-port,id=a", "-device", "edu,bus=a,addr=1"],
            "there is device 0 alone",
        ),
        (
            &["-M", "q35", "-device", "pcie-root-port,id=a", "-device", "edu,bus=a", "-device", "edu,bus=a"],
            "no free slot",
        ),
        (&["-M", "q35", "-device", "ide-cd,bus=ide.6"], "there is no such bus; there are ide.0, ide.1"),
        (&["-device", "ahci,id=s", "-device", "ide-cd,bus=s.0,unit=1"], "unit=1: there is another device"),
    ] {
        let said = refused(args);
        assert!(said.contains(why), "{args:?}: {said}");
    }
}
