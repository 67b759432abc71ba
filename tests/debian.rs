//! Debian, as it is installed: from power-on by firmware and GRUB to `login:`, from every controller and in every
//! format of disk image, and off again by the power button, with its file system sound; and what it has itself to test
//! disks.
//!
//! The disk is made of Debian's packages, once, and kept (`tests/common/debian.rs`):
//! `cargo test --release --test debian -- --ignored --test-threads=1`. MYNAH_GUESTS=cached passes over what is not
//! there; a tool that is not is said, and passed over.
#![cfg(unix)]
#[allow(dead_code, reason = "it drives machines by their consoles")]
mod common;
#[allow(dead_code, reason = "its system with a network is of another test")]
#[path = "common/debian.rs"]
mod debian;
#[path = "common/disk.rs"]
mod disk;
mod kit;
#[path = "common/login.rs"]
mod login;
#[path = "common/tools.rs"]
mod tools;
use common::{guest, has_qemu, key_lines};
use debian::System;
use kit::{Folder, command};
use login::Debian;
use std::path::Path;
use std::process::Command;
use std::time::Instant;
use tools::{firmware, text, tool, tools};

/// What a disk is behind, and the options for that.
const CONTROLLERS: &[(&str, &[&str])] = &[
    // IDE on pc, AHCI on q35.
    ("ata", &["-device", "ide-hd,drive=d,bus=ide.0,serial=SYSTEM"]),
    ("virtio-blk", &["-device", "virtio-blk-pci,drive=d,serial=SYSTEM"]),
    ("virtio-scsi", &["-device", "virtio-scsi-pci,id=s", "-device", "scsi-hd,drive=d,bus=s.0,serial=SYSTEM"]),
    ("nvme", &["-device", "nvme,drive=d,serial=SYSTEM"]),
];

fn controller(name: &str) -> &'static [&'static str] {
    CONTROLLERS.iter().find(|(n, _)| *n == name).unwrap().1
}

/// What every boot has to show: all services came up, nothing in the kernel's log is amiss, what is written is kept.
const SCRIPT: &str = r#"
echo "KEY STATE $(systemctl is-system-running --wait)"
systemctl --failed --no-legend | sed 's/^/FAILED /'
wrong='I/O error|BUG:|Oops|Call Trace|lockup|ACPI.*(Error|Exception)|timeout|failed command|hostbyte|EXT4-fs error'
dmesg | grep -v 'ommand line: ' | grep -E "$wrong" | sed 's/^/WRONG /'
echo "KEY WRONG $(dmesg | grep -v 'ommand line: ' | grep -c -E "$wrong")"
echo "KEY ROOT $(findmnt -no SOURCE,FSTYPE /)"
cat /usr/bin/* > /root/many
sha256sum < /root/many | cut -c1-64 > /root/sum
sync
echo 3 > /proc/sys/vm/drop_caches
[ "$(sha256sum < /root/many | cut -c1-64)" = "$(cat /root/sum)" ] && echo "KEY KEPT"
"#;

/// Debian in Mynah.
fn boot(folder: &Folder, args: &[&str], script: &str) -> Debian {
    Debian::log_in(&mut command(&["run", "-m", "512"]), folder, args, script)
}

/// The file system is as it should be when it was taken off, and what the guest wrote is there.
fn check(disk: &str, at: u64) {
    let part = format!("{disk}?offset={at}");
    tool("e2fsck", &["-f", "-n", &part]);
    let folder = Folder::new("debian-check");
    let (many, sum) = (folder.path("many"), folder.path("sum"));
    tool("debugfs", &["-R", &format!("dump /root/many {many}"), &part]);
    tool("debugfs", &["-R", &format!("dump /root/sum {sum}"), &part]);
    let said = tool("sha256sum", &[&many]);
    assert_eq!(said.split(' ').next(), std::fs::read_to_string(sum).unwrap().split('\n').next(), "{disk}");
}

/// Boots the disk at `image`, has it do what every boot does, and switches it off.
fn boots(folder: &Folder, image: &str, format: &str, args: &[&str]) {
    let drive = format!("if=none,id=d,format={format},file={image}");
    let mut guest = boot(folder, &[&["-drive", &drive], args].concat(), SCRIPT);
    let said = guest.script();
    for key in ["KEY STATE running", "KEY WRONG 0", "KEY KEPT"] {
        assert!(said.contains(key), "no '{key}': {said}");
    }
    assert!(key_lines(&said, &["KEY ROOT"]).iter().any(|l| l.ends_with(" ext4")), "{said}");
    guest.power_down();
}

/// What makes an image of another format.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Maker {
    /// `mynah image`.
    Mynah,
    /// `qemu-img`, if that is there.
    Qemu,
}
use Maker::{Mynah, Qemu};

/// Makes an image of another format of it.
fn convert(maker: Maker, from: (&str, &str), to: (&str, &str)) {
    let args = ["convert", "-f", from.0, "-O", to.0, from.1, to.1];
    let by_qemu = maker == Qemu && tools(&[("qemu-img", "qemu-utils")]);
    let mut program = if by_qemu { Command::new("qemu-img") } else { command(&["image"]) };
    let out = program.args(args).output().unwrap();
    assert!(out.status.success(), "{args:?}: {}", String::from_utf8_lossy(&out.stderr));
}

/// A disk with an MBR and GRUB is made an image of this format, boots, and is sound after that.
fn mbr_disk_boots(what: &str, (format, maker): (&str, Maker), args: &[&str]) {
    let start = Instant::now();
    eprintln!("{what}: {format} by {maker:?}");
    let Some(system) = System::get() else { return };
    let folder = Folder::new("debian");
    let raw = folder.path("disk.raw");
    let Some(at) = system.with_mbr(Path::new(&raw)) else { return };
    let image = folder.path("image");
    if format == "raw" {
        std::fs::rename(&raw, &image).unwrap();
    } else {
        convert(maker, ("raw", &raw), (format, &image));
        std::fs::remove_file(&raw).unwrap();
    }
    boots(&folder, &image, format, args);
    if format == "raw" {
        check(&image, at);
    } else {
        let checked = command(&["image", "check", "-f", format, &image]).output().unwrap();
        // There is nothing to check in a format that counts nothing.
        assert!(matches!(checked.status.code(), Some(0 | 63)), "{format}: {checked:?}");
        convert(Mynah, (format, &image), ("raw", &raw));
        check(&raw, at);
    }
    eprintln!("{what}: {format}: {:?}", start.elapsed());
}

/// Boots from each controller, each time in another format.
fn from_each_controller(board: &str, formats: [(&str, Maker); 4]) {
    for ((name, args), format) in CONTROLLERS.iter().zip(formats) {
        mbr_disk_boots(&format!("{board} {name}"), format, &[&["-M", board], *args].concat());
    }
}

#[test]
#[ignore = "boots Debian from a disk"]
fn debian_boots_from_ide_virtio_scsi_and_nvme_logs_in_and_is_switched_off_on_pc() {
    from_each_controller("pc", [("raw", Mynah), ("vmdk", Mynah), ("vdi", Mynah), ("vpc", Mynah)]);
}

#[test]
#[ignore = "boots Debian from a disk"]
fn debian_boots_from_ahci_virtio_scsi_and_nvme_logs_in_and_is_switched_off_on_q35() {
    from_each_controller("q35", [("qcow2", Mynah), ("vhdx", Mynah), ("vmdk", Qemu), ("raw", Mynah)]);
}

#[test]
#[ignore = "boots Debian from a disk"]
fn debian_boots_by_seabios_too() {
    for bios in &firmware()[1..] {
        for (board, name) in
            [("pc", "ata"), ("q35", "ata"), ("pc", "virtio-blk"), ("q35", "virtio-scsi"), ("q35", "nvme")]
        {
            let args = [&["-M", board], *bios, controller(name)].concat();
            mbr_disk_boots(&format!("{board} {name} {bios:?}"), ("raw", Mynah), &args);
        }
    }
}

/// OVMF in flash, with variables in the folder.
fn flash(folder: &Folder) -> Option<[String; 2]> {
    let (code, vars) = (guest("ovmf-code-4m")?, guest("ovmf-vars-4m")?);
    let vars = folder.file("vars", &std::fs::read(vars).unwrap());
    Some([
        format!("if=pflash,format=raw,unit=0,readonly=on,file={}", text(&code)),
        format!("if=pflash,format=raw,unit=1,file={vars}"),
    ])
}

/// What the first boot leaves in the variables: another entry to boot, and one of its own.
const SET: &str = r#"
part=$(findmnt -no SOURCE /); disk=$(lsblk -no PKNAME $part)
efibootmgr -q -c -d /dev/$disk -p 1 -L Chosen -l '\EFI\systemd\systemd-bootx64.efi' && echo "KEY CHOSEN"
printf '\007\0\0\0kept' > /sys/firmware/efi/efivars/Mynah-12345678-1234-1234-1234-123456789abc && echo "KEY SET"
"#;

/// What a boot finds of that.
const FIND: &str = r#"
cd /sys/firmware/efi/efivars
echo "KEY LOADER $(cat LoaderInfo-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f 2>/dev/null | tail -c +5 | tr -d '\0' | cut -d' ' -f1)"
echo "KEY VARIABLE $(cat Mynah-12345678-1234-1234-1234-123456789abc 2>/dev/null | tail -c +5)"
echo "KEY BOOTED $(efibootmgr | grep "Boot$(efibootmgr | sed -n 's/BootCurrent: //p')" | sed 's/^Boot....[* ] *//' | cut -f1)"
cd /
"#;

#[test]
#[ignore = "boots Debian from a disk"]
fn debian_boots_by_uefi_s_grub_then_by_the_entry_for_systemd_boot_that_it_has_set() {
    let (Some(grub), Some(systemd)) = (guest("grub-efi"), guest("systemd-boot")) else { return };
    let Some(system) = System::get() else { return };
    for (board, name) in [("pc", "ata"), ("q35", "nvme")] {
        let folder = Folder::new("debian");
        let disk = folder.path("disk.raw");
        let Some(at) = system.with_gpt(Path::new(&disk), &grub, &systemd) else { return };
        let Some([code, vars]) = flash(&folder) else { return };
        let drive = format!("if=none,id=d,format=raw,file={disk}");
        let own = ["-M", board, "-drive", &code, "-drive", &vars, "-drive", &drive];
        let args = [&own, controller(name)].concat();
        for (more, expected) in [
            (SET, vec!["KEY LOADER", "KEY VARIABLE", "KEY CHOSEN", "KEY SET"]),
            ("", vec!["KEY LOADER systemd-boot", "KEY VARIABLE kept", "KEY BOOTED Chosen"]),
        ] {
            let start = Instant::now();
            let mut guest = boot(&folder, &args, &format!("{FIND}{more}{SCRIPT}"));
            let said = guest.script();
            let lines: Vec<&str> = key_lines(&said, &["KEY "]);
            for key in expected.iter().chain(&["KEY STATE running", "KEY WRONG 0", "KEY KEPT"]) {
                assert!(lines.contains(key), "{board}: no '{key}': {said}");
            }
            guest.power_down();
            check(&disk, at);
            eprintln!("{board} {name} by UEFI, {:?}: {:?}", expected[0], start.elapsed());
        }
    }
}

/// Bytes of a scratch disk.
const SCRATCH: u64 = 32 << 20;

/// Linux' own tests of disks, on a scratch disk behind each controller: what they say.
const DISK_TESTS: &str = r#"
dev() { for l in /dev/disk/by-id/*_$1 /dev/disk/by-id/virtio-$1; do [ -e $l ] && readlink -f $l && return; done; }
for name in ATA VIRTIO SCSI NVME; do
    d=$(dev $name)
    echo "KEY $name $(blockdev --getsize64 $d)"
    badblocks -w -b 4096 $d > /tmp/bad 2>&1
    echo "KEY $name badblocks $? $(cat /tmp/bad)"
    mkfs.ext4 -q -F $d && mount $d /mnt && cp -a /usr/sbin /mnt && umount /mnt
    echo "KEY $name filled $?"
    fsck.ext4 -f -n $d > /dev/null 2>&1
    echo "KEY $name fsck $?"
    mount -r $d /mnt && diff -r --no-dereference /usr/sbin /mnt/sbin && umount /mnt
    echo "KEY $name compared $?"
done
d=$(dev ATA)
hdparm -I $d | grep . | sed 's/^/KEY hdparm -I /'
echo hello | dd of=$d bs=512 seek=7 conv=sync,fsync 2>/dev/null
hdparm --read-sector 7 $d | grep . | sed '1d;s/^/KEY sector /'
hdparm --yes-i-know-what-i-am-doing --write-sector 7 $d | tail -1 | sed 's/^/KEY write-sector /'
hdparm --read-sector 7 $d | sed '1d' | sort -u | sed 's/^/KEY zeroes /'
for o in -W -W0 -W1 -F -C -A -a; do hdparm $o $d 2>&1 | grep -v : | grep . | sed "s/^/KEY hdparm $o /"; done
hdparm -tT $d | sed 's/^/SPEED /'
d=$(dev NVME); c=${d%n1}
nvme list | tail -1 | sed 's/^/KEY nvme list /'
nvme id-ctrl $c | sed 's/^/KEY nvme id-ctrl /'
nvme id-ns $d | sed 's/^/KEY nvme id-ns /'
nvme smart-log $c | sed 's/^/KEY nvme smart-log /'
nvme flush $c -n 1 | sed 's/^/KEY nvme /'
nvme error-log $c | head -3 | sed 's/^/KEY nvme error-log /'
nvme device-self-test $c -n 1 -s 1 2>&1 | sed 's/^/KEY nvme device-self-test /'
nvme get-feature $c -f 7 2>&1 | sed 's/^/KEY nvme feature /'
echo "KEY DONE"
"#;

#[test]
#[ignore = "boots Debian from a disk"]
fn debian_s_own_tests_of_disks_pass_and_find_what_they_find_under_qemu() {
    let Some(system) = System::get() else { return };
    for board in ["pc", "q35"] {
        let folder = Folder::new("debian");
        let disk = folder.path("disk.raw");
        if system.with_mbr(Path::new(&disk)).is_none() {
            return;
        }
        let run = |mut program: Command, log: &str| {
            let start = Instant::now();
            let drives = ["s", "a", "b", "c", "n"].map(|id| match id {
                "s" => format!("if=none,id=s,format=raw,snapshot=on,file={disk}"),
                _ => {
                    let scratch = folder.file(id, &[]);
                    std::fs::File::options().write(true).open(&scratch).unwrap().set_len(SCRATCH).unwrap();
                    format!("if=none,id={id},format=raw,file={scratch}")
                }
            });
            let mut args = vec!["-m", "512", "-M", board];
            drives.iter().for_each(|drive| args.extend(["-drive", drive]));
            // The default CD-ROM drive is the first on pc's second cable.
            let other = if board == "pc" { "ide.0,unit=1" } else { "ide.1" };
            let other = format!("ide-hd,drive=a,bus={other},serial=ATA");
            for device in [
                "ide-hd,drive=s,bus=ide.0,bootindex=0",
                &other,
                "virtio-blk-pci,drive=b,serial=VIRTIO",
                "virtio-scsi-pci,id=v",
                "scsi-hd,drive=c,bus=v.0,serial=SCSI",
                "nvme,drive=n,serial=NVME",
            ] {
                args.extend(["-device", device]);
            }
            let mut guest = Debian::log_in(&mut program, &folder, &args, &format!("{DISK_TESTS}{SCRIPT}"));
            let said = guest.script();
            if let Ok(folder) = std::env::var("MYNAH_MEDIA") {
                std::fs::write(format!("{folder}/disks-{board}-{log}"), &said).unwrap();
            }
            guest.power_down();
            eprintln!("{board} {log}: {:?}", start.elapsed());
            said
        };
        let ours = run(command(&["run"]), "mynah");
        let lines = findings(&ours);
        let has = |line: &str| assert!(lines.iter().any(|l| l == line), "{board}: no '{line}': {ours}");
        ["KEY DONE", "KEY WRONG 0", "KEY STATE running"].iter().for_each(|line| has(line));
        for disk in ["ATA", "VIRTIO", "SCSI", "NVME"] {
            has(&format!("KEY {disk} {SCRATCH}"));
            for passed in ["badblocks 0", "filled 0", "fsck 0", "compared 0"] {
                has(&format!("KEY {disk} {passed}"));
            }
        }
        has("KEY nvme id-ctrl sn : NVME");
        has("KEY nvme smart-log critical_warning : 0");
        has("KEY nvme smart-log media_errors : 0");
        if has_qemu() {
            let mut qemu = Command::new("qemu-system-x86_64");
            qemu.args(["-accel", "tcg", "-nic", "none"]);
            let theirs = findings(&run(qemu, "qemu"));
            let of = |lines: &[String]| lines.iter().filter(|l| is_common(l)).cloned().collect::<Vec<_>>();
            assert_eq!(of(&lines), of(&theirs), "{board}");
        }
    }
}

/// What was found, a blank between two words.
fn findings(said: &str) -> Vec<String> {
    // Which adapter's disk is sda and which sdb is a race in the guest's kernel.
    let unnamed = |word: &str| match word.strip_prefix("/dev/sd").and_then(|rest| rest.get(1..)) {
        Some(rest) => format!("/dev/sd?{rest}"),
        None => word.to_owned(),
    };
    let words = |line: &&str| line.split_whitespace().map(unnamed).collect::<Vec<_>>().join(" ");
    key_lines(said, &["KEY "]).iter().map(words).collect()
}

/// Whether Mynah and QEMU have to agree on a finding: not on the model of NVMe controller, which is one of its own, and
/// on what it counts; nor on how fast caches are, or on the firmware's version; nor on READ LOG EXT, which tells of a
/// failed NCQ command and QEMU's disks do not have, and the checksum that changes with it; nor on services that give up
/// on a slow guest.
fn is_common(line: &str) -> bool {
    let own = [
        "nvme id-ctrl",
        "nvme id-ns",
        "nvme smart-log",
        "nvme error-log",
        "nvme device-self-test",
        "nvme list",
        "hdparm -I Firmware",
        "hdparm -I * General Purpose Logging",
        "hdparm -I Integrity word",
        "WRONG",
    ];
    !own.iter().any(|own| line.starts_with(&format!("KEY {own}")))
}
