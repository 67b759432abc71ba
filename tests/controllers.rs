//! Debian's kernel for virtual machines drives NVMe and SCSI disks, and virtio devices by packed rings and without PCI;
//! the built-in BIOS boots from such disks.
//!
//! It is fetched once through apt, with its modules: `cargo test --release --test controllers -- --ignored`. The guest
//! finds the same under QEMU, if that is there, and writes the same to its disks.
mod common;
mod kit;
use common::{Boot, guest, has_qemu, key_lines, ramdisk, run, run_qemu};
use mynah_guests::cpio::Archive;
use std::path::PathBuf;
use std::time::Duration;

/// In the order in which they need each other, after virtio's own.
const MODULES: [&str; 5] = ["scsi_common", "scsi_mod", "cdrom", "sr_mod", "sd_mod"];

const SCRIPT: &str = r#"
for m in scsi_common scsi_mod cdrom sr_mod sd_mod; do insmod /$m.ko || echo "MISSING $m"; done
cd /modules
for m in virtio_ring virtio virtio_pci_legacy_dev virtio_pci_modern_dev virtio_pci virtio_mmio virtio_blk virtio_scsi; do
    insmod $m.ko || echo "MISSING $m"
done
n=$(grep -o 'disks=[0-9]*' /proc/cmdline | cut -d= -f2)
i=0; while [ $(ls /sys/block | grep -c -E '^(nvme|sd|sr|vd)') -lt $n ] && [ $i -lt 60 ]; do sleep 1; i=$((i + 1)); done
for c in /sys/class/nvme/*; do
    [ -e $c ] && echo "CONTROLLER $(cat $c/model) $(cat $c/serial) $(cat $c/cntlid) $(cat $c/subsysnqn)"
done
for d in /sys/bus/virtio/devices/*; do
    echo "VIRTIO $(cat $d/device) $(basename $(readlink $d/driver)) packed $(cut -c35 $d/features)"
done
i=0; while [ $i -lt 2000 ]; do echo "line $i"; i=$((i + 1)); done > /tmp/text
# SCSI disks are probed side by side: they are called by their place here, not by who was first.
disks=0
for b in /sys/block/nvme* /sys/bus/scsi/devices/[0-9]*/block/sd* /sys/block/sr* /sys/block/vd*; do
    [ -e $b/size ] || continue
    dev=/dev/$(basename $b); d=$(basename $b); q=$b/queue
    case $d in sd*) d=sd$disks; disks=$((disks + 1));; esac
    echo BLOCK $d $(cat $b/size $b/ro $q/write_cache $q/logical_block_size $q/physical_block_size)
    [ -e $b/nsid ] && echo "NAMESPACE $d $(cat $b/nsid)"
    v=$b/device
    [ -e $v/vendor -a -e $v/rev ] && echo INQUIRY $d $(cat $v/vendor $v/model $v/rev $v/type $v/scsi_level)
    for p in 80 83; do
        [ -e $v/vpd_pg$p ] && echo "PAGE $d $(od -An -v -tx1 $v/vpd_pg$p | tr -d ' \n')"
    done
    echo "READ $d $(sha256sum < $dev | cut -c1-16)"
    [ $(cat $b/ro) = 0 -a $d != sr0 ] || continue
    dd if=/tmp/text of=$dev bs=512 seek=5 conv=fsync 2>/dev/null
    dd if=$dev of=$dev bs=64k count=16 skip=1 seek=32 conv=fsync 2>/dev/null
    dd if=/tmp/text of=$dev bs=4096 seek=301 count=3 oflag=direct 2>/dev/null
    # Several at once.
    for k in 0 1 2 3; do
        dd if=$dev of=$dev bs=256k count=2 skip=$k seek=$((16 + 2 * k)) iflag=direct oflag=direct 2>/dev/null &
    done
    wait
    echo 3 > /proc/sys/vm/drop_caches
    echo "AGAIN $d $(sha256sum < $dev | cut -c1-16)"
done
wrong='nvme[0-9].*(timeout|error|reset|failed)|I/O error|BUG:|Oops|Call Trace|Sense Key|hostbyte'
dmesg | grep -E "$wrong"
echo "WRONG $(dmesg | grep -c -E "$wrong")"
poweroff -f
"#;

const KEYS: &[&str] = &[
    "MISSING",
    "CONTROLLER",
    "VIRTIO",
    "BLOCK ",
    "NAMESPACE",
    "INQUIRY",
    "PAGE ",
    "READ ",
    "AGAIN",
    "WRONG",
];

/// A disk of 8 MiB, each of its sectors with a number of its own.
fn disk(tag: &str, n: u64) -> PathBuf {
    let path = std::env::temp_dir().join(format!("mynah-controllers-{}-{tag}-{n}.img", std::process::id()));
    let bytes: Vec<u8> = (0..1_u64 << 20).flat_map(|i| (i * i + n).to_le_bytes()).collect();
    std::fs::write(&path, bytes).unwrap();
    path
}

/// What the guest says on a machine with these devices, of which each `%` is a drive, and what is on the disks then.
fn boot(
    tag: &str,
    devices: &str,
    runner: impl FnOnce(&[&str]) -> Boot,
) -> Option<(Vec<String>, Vec<Vec<u8>>)> {
    let (kernel, virtio) = (guest("cloud")?, guest("cloud-virtio")?);
    let initrd = ramdisk(&format!("controllers-{tag}"), "busybox", SCRIPT)?;
    let mut modules = Archive::new();
    for name in MODULES {
        let module = std::fs::read(guest(&format!("cloud-{name}"))?).unwrap();
        modules.file(&format!("{name}.ko"), 0o644, &module);
    }
    let all = [std::fs::read(&initrd).unwrap(), modules.finish(), std::fs::read(virtio).unwrap()].concat();
    std::fs::write(&initrd, all).unwrap();
    let count = devices.matches('%').count();
    let disks: Vec<PathBuf> = (0..count as u64).map(|n| disk(tag, n)).collect();
    let mut args: Vec<String> =
        "-cpu max -m 512 -display none -serial stdio -monitor none -no-reboot -smp 2 -nodefaults"
            .split(' ')
            .map(str::to_owned)
            .collect();
    let mut words = String::new();
    for (n, part) in devices.split('%').enumerate() {
        words.push_str(part);
        if n < count {
            words.push_str(&format!("d{n}"));
            let drive = format!("file={},if=none,id=d{n},format=raw,discard=unmap", disks[n].display());
            args.extend(["-drive".into(), drive]);
        }
    }
    args.extend(words.split_whitespace().map(str::to_owned));
    let append = format!("console=ttyS0 panic=-1 quiet disks={count}");
    args.extend(["-append".into(), append, "-kernel".into(), kernel.display().to_string()]);
    args.extend(["-initrd".into(), initrd.display().to_string()]);
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let boot = runner(&args);
    assert_eq!(boot.code, Some(0), "the console said:\n{}", boot.console);
    let lines = key_lines(&boot.console, KEYS).into_iter().map(str::to_owned).collect();
    let written = disks.iter().map(|d| std::fs::read(d).unwrap()).collect();
    for file in disks.iter().chain([&initrd]) {
        std::fs::remove_file(file).unwrap();
    }
    Some((lines, written))
}

/// The guest finds and writes what it does under QEMU, on both engines.
/// There the devices are `qemus`.
fn is_as_under_qemu(tag: &str, devices: &str, qemus: &str, finds: &[&str]) {
    let limit = Duration::from_secs(400);
    let expected = has_qemu()
        .then(|| boot(&format!("{tag}-q"), qemus, |args| run_qemu(args, limit, |_| None)))
        .flatten();
    for accel in ["jit", "interp"] {
        let of = |args: &[&str]| run(&[&["-accel", accel], args].concat(), limit, |_| None);
        let Some((lines, written)) = boot(&format!("{tag}-{accel}"), devices, of) else { return };
        for line in finds.iter().chain(&["WRONG 0"]) {
            assert!(lines.iter().any(|l| l.starts_with(line)), "{tag} {accel}: no {line} in {lines:#?}");
        }
        let Some((expected, on_disks)) = &expected else { continue };
        assert_eq!(lines, *expected, "{tag} {accel}");
        assert!(written == *on_disks, "{tag} {accel}: the disks differ");
    }
}

#[test]
#[ignore = "boots a kernel from Debian's packages"]
fn linux_drives_nvme() {
    let devices = "-device nvme,id=n0,serial=MYNAH-N,drive=% -device nvme-ns,drive=%,bus=n0,nsid=5 \
         -device nvme,serial=OTHER,drive=%,max_ioqpairs=1,mdts=3";
    is_as_under_qemu(
        "nvme",
        devices,
        devices,
        &["CONTROLLER QEMU NVMe Ctrl", "BLOCK nvme0n1 16384", "AGAIN nvme1n1"],
    );
}

#[test]
#[ignore = "boots a kernel from Debian's packages"]
fn linux_drives_scsi_disks_and_cds() {
    let devices = "-device virtio-scsi-pci,id=s0 -device scsi-hd,drive=%,bus=s0.0,scsi-id=1,lun=0,serial=ONE,wwn=0x5000c50012345678 \
         -device scsi-hd,drive=%,bus=s0.0,scsi-id=1,lun=3 -device scsi-cd,drive=%,bus=s0.0,scsi-id=4";
    is_as_under_qemu("scsi", devices, devices, &["INQUIRY sd0 QEMU", "AGAIN sd1", "READ sr0"]);
}

#[test]
#[ignore = "boots a kernel from Debian's packages"]
fn linux_drives_packed_rings() {
    let devices = "-device virtio-blk-pci,drive=%,packed=on,serial=P -device virtio-scsi-pci,packed=on,event_idx=off \
         -device scsi-hd,drive=% -device virtio-blk-pci,drive=%,packed=on,indirect_desc=off,disable-legacy=on";
    is_as_under_qemu(
        "packed",
        devices,
        devices,
        &[
            "VIRTIO 0x0002 virtio_blk packed 1",
            "VIRTIO 0x0008 virtio_scsi packed 1",
            "AGAIN sd0",
            "AGAIN vdb",
        ],
    );
}

#[test]
#[ignore = "boots a kernel from Debian's packages"]
fn linux_drives_virtio_devices_without_pci() {
    // QEMU's board has no clock by which this kernel could measure its TSC: there the same devices are behind PCI.
    let devices = |bus: &str| {
        format!(
            "-device virtio-blk-{bus},drive=% -device virtio-scsi-{bus} -device scsi-hd,drive=% \
             -device virtio-blk-{bus},drive=%,packed=on"
        )
    };
    let finds = ["VIRTIO 0x0002 virtio_blk", "VIRTIO 0x0008 virtio_scsi", "AGAIN sd0", "AGAIN vdb"];
    is_as_under_qemu("mmio", &format!("-M microvm {}", devices("device")), &devices("pci"), &finds);
}

/// A boot sector that writes a letter to port E9h, and ends the machine with exit code 33.
fn boot_sector(letter: u8) -> Vec<u8> {
    let mut sector = vec![0xb0, letter, 0xe6, 0xe9, 0xba, 0x01, 0x05, 0xb0, 0x10, 0xee, 0xf4, 0xeb, 0xfd];
    sector.resize(1 << 20, 0);
    sector[510..512].copy_from_slice(&[0x55, 0xaa]);
    sector
}

#[test]
fn the_bios_boots_from_what_comes_first_in_the_boot_order() {
    let folder = kit::Folder::new("controllers");
    let disks = ["A", "B", "C", "D"].map(|name| folder.file(name, &boot_sector(name.as_bytes()[0])));
    let board = |first: [&str; 4]| {
        format!(
            "-device virtio-blk-pci,drive=A{} -device nvme,serial=1,drive=B{} -device nvme-ns,drive=C{} \
             -device virtio-scsi-pci -device scsi-hd,drive=D{}",
            first[0], first[1], first[2], first[3]
        )
    };
    let cases = [
        (board(["", "", "", ""]), "A"),
        (board(["", ",bootindex=1", "", ""]), "B"),
        (board([",bootindex=3", ",bootindex=2", ",bootindex=1", ""]), "C"),
        (board([",bootindex=2", "", "", ",bootindex=0"]), "D"),
        ("-M microvm -device virtio-blk-device,drive=A".into(), "A"),
    ];
    for (devices, letter) in cases {
        let said = folder.path("said");
        let drives = disks.iter().zip(["A", "B", "C", "D"]);
        let mut args: Vec<String> = "run -m 16 -nodefaults -display none -device isa-debug-exit,iobase=0x501"
            .split(' ')
            .map(str::to_owned)
            .collect();
        for (file, id) in drives.filter(|(_, id)| devices.contains(&format!("drive={id}"))) {
            args.extend(["-drive".into(), format!("file={file},if=none,id={id},format=raw")]);
        }
        args.extend(devices.split_whitespace().map(str::to_owned));
        args.extend(["-debugcon".into(), format!("file:{said}")]);
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let mut machine = kit::Running::start(&mut kit::command(&args));
        let status = machine.ended(kit::PATIENCE).expect("it ends");
        assert_eq!(status.code(), Some(33), "{devices}");
        let said = std::fs::read_to_string(&said).unwrap();
        assert!(said.ends_with(letter), "{devices}: {said}");
    }
}
