//! OVMF in flash, as Debian packages it: it comes to its shell, keeps its variables in the image, and boots GRUB from a
//! disk with a GPT.
//!
//! Images are fetched once through apt (`tests/guests/manifest.toml`): `cargo test --release --test flash --
//! --ignored`. MYNAH_GUESTS=cached passes over what is not there.
#![cfg(unix)]
#[allow(dead_code, reason = "it drives machines by their consoles")]
mod common;
#[allow(dead_code, reason = "its disk has one partition")]
#[path = "common/disk.rs"]
mod disk;
mod kit;
use common::guest;
use disk::{ESP, FIRST, Partition, SECTOR, gpt};
use kit::typed::Machine;
use kit::{Folder, command};
use std::time::Instant;

/// The disk: a partition of 32 MiB from the first MiB on, and another MiB.
const PARTITION: usize = 65_536;
const DISK: usize = FIRST as usize + PARTITION + 2048;

/// A FAT16 volume with one file, EFI/BOOT/BOOTX64.EFI.
fn volume(file: &[u8]) -> Vec<u8> {
    const PER_CLUSTER: usize = 4;
    const FAT: usize = 65;
    const ROOT: usize = 1 + 2 * FAT;
    const DATA: usize = ROOT + 32;
    const CLUSTER: usize = PER_CLUSTER * SECTOR;
    let mut v = vec![0; PARTITION * SECTOR];
    let mut put = |at: usize, bytes: &[u8]| v[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, b"\xeb\x3c\x90MYNAH   ");
    // Bytes of a sector, sectors of a cluster, reserved, FATs, root entries, sectors, medium, sectors of a FAT.
    put(11, &[0, 2, PER_CLUSTER as u8, 1, 0, 2, 0, 2, 0, 0, 0xf8, FAT as u8, 0, 32, 0, 64, 0]);
    put(28, &(FIRST as u32).to_le_bytes());
    put(32, &(PARTITION as u32).to_le_bytes());
    put(36, b"\x80\0\x29\x12\x34\x56\x78MYNAH      FAT16   ");
    put(510, &[0x55, 0xaa]);
    let clusters = file.len().div_ceil(CLUSTER);
    let mut fat: Vec<u16> = vec![0xfff8, 0xffff, 0xffff, 0xffff];
    fat.extend((0..clusters).map(|n| if n + 1 == clusters { 0xffff } else { n as u16 + 5 }));
    let fat: Vec<u8> = fat.into_iter().flat_map(u16::to_le_bytes).collect();
    put(SECTOR, &fat);
    put((1 + FAT) * SECTOR, &fat);
    let entry = |name: &[u8; 11], attributes: u8, cluster: u16, len: usize| {
        let mut e = [0; 32];
        e[..11].copy_from_slice(name);
        e[11] = attributes;
        e[26..28].copy_from_slice(&cluster.to_le_bytes());
        e[28..].copy_from_slice(&(len as u32).to_le_bytes());
        e
    };
    let at = |cluster: usize| DATA * SECTOR + (cluster - 2) * CLUSTER;
    put(ROOT * SECTOR, &entry(b"EFI        ", 0x10, 2, 0));
    let dots =
        |own, parent| [entry(b".          ", 0x10, own, 0), entry(b"..         ", 0x10, parent, 0)].concat();
    put(at(2), &[dots(2, 0), entry(b"BOOT       ", 0x10, 3, 0).to_vec()].concat());
    put(at(3), &[dots(3, 2), entry(b"BOOTX64 EFI", 0x20, 4, file.len()).to_vec()].concat());
    put(at(4), file);
    v
}

/// A disk with a GPT and an EFI system partition.
fn disk(file: &[u8]) -> Vec<u8> {
    let [begin, end] = gpt(DISK as u64, &[Partition { kind: ESP, first: FIRST, sectors: PARTITION as u64 }]);
    let mut d = vec![0; DISK * SECTOR];
    d[..begin.len()].copy_from_slice(&begin);
    d[FIRST as usize * SECTOR..][..PARTITION * SECTOR].copy_from_slice(&volume(file));
    let end_at = d.len() - end.len();
    d[end_at..].copy_from_slice(&end);
    d
}

/// The options for OVMF in flash, with variables of its own.
fn flash(folder: &Folder, size: &str) -> Option<[String; 2]> {
    let (code, vars) = (guest(&format!("ovmf-code{size}"))?, guest(&format!("ovmf-vars{size}"))?);
    let vars = folder.file(&format!("vars{size}"), &std::fs::read(vars).unwrap());
    Some([
        format!("if=pflash,format=raw,unit=0,readonly=on,file={}", code.display()),
        format!("if=pflash,format=raw,unit=1,file={vars}"),
    ])
}

const VARIABLE: &str = "setvar Kept -guid 12345678-1234-1234-1234-123456789abc";

#[test]
#[ignore = "boots OVMF"]
fn ovmf_comes_to_its_shell_and_its_variables_outlive_the_machine() {
    for size in ["", "-4m"] {
        let folder = Folder::new("flash");
        let Some([code, vars]) = flash(&folder, size) else { return };
        let args = ["-nographic", "-no-reboot", "-net", "none", "-drive", &code, "-drive", &vars];
        let start = Instant::now();
        let mut machine = Machine::start(&args);
        machine.until("Shell>");
        eprintln!("OVMF{size} to its shell: {:?}", start.elapsed());
        machine.types(&format!("{VARIABLE} -nv -bs =1badcafe\r"));
        machine.until("Shell>");
        // A reset keeps them too, and goes through the flash's own.
        machine.types("reset -s\r");
        assert_eq!(machine.ends(), Some(0), "OVMF{size}");
        let mut machine = Machine::start(&args);
        machine.until("Shell>");
        machine.types(&format!("{VARIABLE}\r"));
        machine.until("1B AD CA FE");
        machine.until("Shell>");
        machine.types("reset -s\r");
        assert_eq!(machine.ends(), Some(0), "OVMF{size}");
    }
}

#[test]
#[ignore = "boots OVMF"]
fn ovmf_boots_grub_from_a_disk_by_ide_and_virtio_in_the_order_that_is_asked_for() {
    let folder = Folder::new("flash");
    let Some([code, vars]) = flash(&folder, "") else { return };
    let Some(grub) = guest("grub-efi") else { return };
    let image = folder.file("disk", &disk(&std::fs::read(grub).unwrap()));
    let empty = folder.file("empty", &[0; 1 << 20]);
    let (image, empty) =
        (format!("format=raw,file={image}"), format!("if=none,id=e,format=raw,file={empty}"));
    let none = format!("if=none,id=d,{image}");
    for more in [
        vec!["-drive", &image],
        vec!["-drive", &none, "-device", "virtio-blk-pci,drive=d"],
        vec![
            "-drive",
            &none,
            "-drive",
            &empty,
            "-device",
            "ide-hd,drive=e,bootindex=1",
            "-device",
            "virtio-blk-pci,drive=d,bootindex=0",
        ],
    ] {
        let args = ["-nographic", "-no-reboot", "-drive", &code, "-drive", &vars, "-snapshot"];
        let mut machine = Machine::start(&[&args[..], &more].concat());
        machine.until("grub>");
        machine.types("ls\r");
        machine.until(",gpt1)");
        machine.until("grub>");
        machine.types("halt\r");
        assert_eq!(machine.ends(), Some(0), "{more:?}");
    }
}

#[test]
fn what_is_no_flash_image_is_refused() {
    let folder = Folder::new("flash");
    let (odd, large) = (folder.file("odd", &[0; 5000]), folder.file("large", &vec![0xff; 9 << 20]));
    let whole = folder.file("whole", &[0xff; 8192]);
    for (drives, said) in [
        (vec![format!("if=pflash,format=raw,file={odd}")], "a multiple of 4096 bytes"),
        (vec![format!("if=pflash,format=raw,file={large}")], "8388608 bytes at most"),
        (vec![format!("if=pflash,format=raw,unit=1,file={whole}")], "no unit 0"),
        (vec![format!("if=pflash,index=0,file={whole}"), format!("if=pflash,index=0,file={odd}")], "taken"),
    ] {
        let mut args = vec!["run", "-display", "none"];
        drives.iter().for_each(|d| args.extend(["-drive", d]));
        let out = command(&args).output().unwrap();
        let text = String::from_utf8_lossy(&out.stderr);
        assert_eq!(out.status.code(), Some(1), "{drives:?}: {text}");
        assert!(text.contains(said), "{drives:?}: {text}");
    }
}
