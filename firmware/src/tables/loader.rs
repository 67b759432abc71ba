//! The tables for a firmware that places them itself: files of fw_cfg, and the script that links them.
//!
//! ```text
//!   etc/acpi/tables   FACS, DSDT, FADT, ..., XSDT; pointers are offsets in the file
//!   etc/acpi/rsdp     the root pointer
//!   etc/table-loader  allocate both, make pointers of offsets, sum up
//!   etc/smbios/*      SMBIOS structures and their entry point
//!   etc/e820          RAM and what is reserved in it
//! ```
//!
//! Source: QEMU's specification of the "linker/loader" commands and of its fw_cfg files (docs/specs, and the comments
//! of SeaBIOS's romfile loader): each command has 128 bytes, names have 56.
use super::acpi::{self, Built};
use super::{Config, E820Kind, smbios};
use crate::mem::FOUR_GIB;
use mynah_devices::misc::vmgenid;

/// Bytes of a command of the script.
const COMMAND: usize = 128;
/// Bytes of a file's name in a command.
const NAME: usize = 56;
const TABLES: &str = "etc/acpi/tables";
const RSDP: &str = "etc/acpi/rsdp";
/// The generation id, and the file in which firmware tells where it has put it.
pub const VMGENID: &str = "etc/vmgenid_guid";
/// See [`VMGENID`].
pub const VMGENID_ADDRESS: &str = "etc/vmgenid_addr";
/// Where a table has its checksum.
const CHECKSUM: usize = 9;
/// The root pointer's checksums, and the bytes from its start that each is over.
const RSDP_CHECKSUMS: [(usize, usize); 2] = [(8, 20), (32, 36)];
/// Alignment of the FACS, with which the tables' file starts.
const FACS_ALIGN: usize = 64;

/// Where a file is put: anywhere in RAM, or in the BIOS area.
const ZONE_HIGH: u8 = 1;
const ZONE_FSEG: u8 = 2;

/// The script in the making.
#[derive(Default)]
struct Script(Vec<u8>);

impl Script {
    fn command(&mut self, number: u32, fill: impl FnOnce(&mut [u8])) {
        let mut c = [0; COMMAND];
        c[..4].copy_from_slice(&number.to_le_bytes());
        fill(&mut c[4..]);
        self.0.extend(c);
    }

    fn allocate(&mut self, file: &str, align: usize, zone: u8) {
        self.command(1, |c| {
            c[..file.len()].copy_from_slice(file.as_bytes());
            c[NAME..NAME + 4].copy_from_slice(&(align as u32).to_le_bytes());
            c[NAME + 4] = zone;
        });
    }

    /// The address of file `to` is added to the `bytes` at `offset` in file `at`.
    fn add_pointer(&mut self, at: &str, to: &str, offset: usize, bytes: u8) {
        self.command(2, |c| {
            c[..at.len()].copy_from_slice(at.as_bytes());
            c[NAME..NAME + to.len()].copy_from_slice(to.as_bytes());
            c[2 * NAME..2 * NAME + 4].copy_from_slice(&(offset as u32).to_le_bytes());
            c[2 * NAME + 4] = bytes;
        });
    }

    /// The address of file `from`, and `offset`, is written to the file `to`, which has 8 bytes.
    fn write_pointer(&mut self, to: &str, from: &str, offset: usize) {
        self.command(4, |c| {
            c[..to.len()].copy_from_slice(to.as_bytes());
            c[NAME..NAME + from.len()].copy_from_slice(from.as_bytes());
            c[2 * NAME + 4..2 * NAME + 8].copy_from_slice(&(offset as u32).to_le_bytes());
            c[2 * NAME + 8] = 8;
        });
    }

    /// The byte at `offset` makes the sum of `len` bytes from `start` zero.
    fn add_checksum(&mut self, file: &str, offset: usize, start: usize, len: usize) {
        self.command(3, |c| {
            c[..file.len()].copy_from_slice(file.as_bytes());
            for (i, v) in [offset, start, len].into_iter().enumerate() {
                c[NAME + 4 * i..NAME + 4 * i + 4].copy_from_slice(&(v as u32).to_le_bytes());
            }
        });
    }
}

/// The ACPI tables and their script. They tell of what firmware has set up, so they are to be made when it first reads
/// them; their lengths do not depend on that. None without ACPI.
pub fn acpi_files(cfg: &Config, below: u64) -> Vec<(&'static str, Vec<u8>)> {
    let built = cfg.acpi.then(|| acpi::build(cfg, below, |_| Some((FACS_ALIGN as u64, 0)))).flatten();
    let Some(built) = built else { return Vec::new() };
    let script = script(&built).0;
    let (mut tables, mut rsdp) = (built.facs, built.rsdp.to_vec());
    tables.resize(FACS_ALIGN, 0);
    tables.extend(built.tables);
    // Checksums are the script's business, and must be zero before: some firmware sums them up (OVMF), other subtracts
    // from them (SeaBIOS).
    for (offset, _) in &built.parts {
        tables[FACS_ALIGN + offset + CHECKSUM] = 0;
    }
    RSDP_CHECKSUMS.iter().for_each(|(offset, _)| rsdp[*offset] = 0);
    vec![("etc/table-loader", script), (RSDP, rsdp), (TABLES, tables)]
}

/// The files of fw_cfg by which a firmware of its own finds RAM and SMBIOS; `below` and `above` are bytes of RAM below
/// and above 4 GiB.
pub fn firmware_files(cfg: &Config, below: u64, above: u64) -> Vec<(&'static str, Vec<u8>)> {
    let mut files = vec![("etc/e820", memory_map(below, above))];
    let smbios = smbios::build(cfg, below, above);
    files.push(("etc/smbios/smbios-anchor", smbios.entry_point(0).to_vec()));
    files.push(("etc/smbios/smbios-tables", smbios.table));
    // S0; S3 and S4 by their SLP_TYP, bit 7 if they are offered; S5.
    let state = |slp_typ: u8, offered: bool| slp_typ | u8::from(offered) << 7;
    files.push(("etc/system-states", vec![0x80, 0, 0, state(1, cfg.s3), state(2, cfg.s4), 0x80]));
    files
}

fn script(built: &Built) -> Script {
    let mut s = Script::default();
    s.allocate(RSDP, 16, ZONE_FSEG);
    s.allocate(TABLES, FACS_ALIGN, ZONE_HIGH);
    for &(offset, bytes) in &built.pointers {
        s.add_pointer(TABLES, TABLES, FACS_ALIGN + offset, bytes);
    }
    if let Some(offset) = built.vmgenid {
        s.allocate(VMGENID, vmgenid::BLOB, ZONE_HIGH);
        s.write_pointer(VMGENID_ADDRESS, VMGENID, vmgenid::OFFSET);
        s.add_pointer(TABLES, VMGENID, FACS_ALIGN + offset, 4);
    }
    for &(offset, len) in &built.parts {
        s.add_checksum(TABLES, FACS_ALIGN + offset + CHECKSUM, FACS_ALIGN + offset, len);
    }
    s.add_pointer(RSDP, TABLES, 16, 4);
    s.add_pointer(RSDP, TABLES, 24, 8);
    for (offset, len) in RSDP_CHECKSUMS {
        s.add_checksum(RSDP, offset, 0, len);
    }
    s
}

/// Entries of 20 bytes: address, length, kind.
fn memory_map(below: u64, above: u64) -> Vec<u8> {
    let mut map = Vec::new();
    let mut add = |base: u64, len: u64, kind: E820Kind| {
        map.extend(base.to_le_bytes());
        map.extend(len.to_le_bytes());
        map.extend((kind as u32).to_le_bytes());
    };
    // Pages that hypervisors keep.
    add(0xfeff_c000, 0x4000, E820Kind::Reserved);
    add(0, below, E820Kind::Usable);
    if above > 0 {
        add(FOUR_GIB, above, E820Kind::Usable);
    }
    map
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(bytes: &[u8]) -> String {
        String::from_utf8(bytes.iter().copied().take_while(|b| *b != 0).collect()).unwrap()
    }

    fn word(bytes: &[u8], at: usize) -> usize {
        u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()) as usize
    }

    /// Does what a firmware does with the script: files by name, with the addresses where they were put.
    fn run(files: &[(&'static str, Vec<u8>)]) -> Vec<(String, usize, Vec<u8>)> {
        let file = |n: &str| files.iter().find(|f| f.0 == n).unwrap().1.clone();
        let mut placed: Vec<(String, usize, Vec<u8>)> = Vec::new();
        for c in file("etc/table-loader").chunks(COMMAND) {
            let (number, c) = (word(c, 0), &c[4..]);
            let index = |placed: &[(String, usize, Vec<u8>)], at: usize| {
                placed.iter().position(|p| p.0 == name(&c[at..at + NAME])).unwrap()
            };
            match number {
                1 => {
                    assert!(word(c, NAME).is_power_of_two() && matches!(c[NAME + 4], 1 | 2));
                    let address = 0x7f0_0000 + 0x1_0000 * placed.len();
                    placed.push((name(&c[..NAME]), address, file(&name(&c[..NAME]))));
                }
                2 => {
                    let (at, to) = (index(&placed, 0), index(&placed, NAME));
                    let (offset, bytes) = (word(c, 2 * NAME), usize::from(c[2 * NAME + 4]));
                    let base = placed[to].1;
                    let field = &mut placed[at].2[offset..offset + bytes];
                    let mut v = [0; 8];
                    v[..bytes].copy_from_slice(field);
                    let v = u64::from_le_bytes(v) + base as u64;
                    field.copy_from_slice(&v.to_le_bytes()[..bytes]);
                }
                3 => {
                    let at = index(&placed, 0);
                    let (offset, start, len) = (word(c, NAME), word(c, NAME + 4), word(c, NAME + 8));
                    let sum = placed[at].2[start..start + len].iter().fold(0u8, |s, b| s.wrapping_add(*b));
                    // As OVMF: what was there is not looked at.
                    placed[at].2[offset] = sum.wrapping_neg();
                }
                n => panic!("command {n}"),
            }
        }
        placed
    }

    #[test]
    fn the_script_leads_from_the_root_pointer_to_every_table() {
        let files = acpi_files(&Config::default(), 128 << 20);
        let placed = run(&files);
        let rsdp = &placed.iter().find(|p| p.0 == RSDP).unwrap().2;
        let (_, base, tables) = placed.iter().find(|p| p.0 == TABLES).unwrap();
        let sum = |b: &[u8]| b.iter().fold(0u8, |s, b| s.wrapping_add(*b));
        assert_eq!((&rsdp[..8], sum(&rsdp[..20]), sum(rsdp)), (&b"RSD PTR "[..], 0, 0));
        let table = |address: usize| {
            let at = address - base;
            let t = &tables[at..at + word(tables, at + 4)];
            assert_eq!(sum(t), 0, "{}", name(&t[..4]));
            t
        };
        let xsdt = table(word(rsdp, 24));
        assert_eq!((&xsdt[..4], &table(word(rsdp, 16))[..4]), (&b"XSDT"[..], &b"RSDT"[..]));
        let mut seen = Vec::new();
        for at in (36..xsdt.len()).step_by(8) {
            let t = table(word(xsdt, at));
            seen.push(name(&t[..4]));
            if t.starts_with(b"FACP") {
                assert_eq!(&table(word(t, 40))[..4], b"DSDT");
                assert_eq!(word(t, 40), word(t, 140));
                let facs = word(t, 36);
                assert_eq!((&tables[facs - base..facs - base + 4], facs % 64), (&b"FACS"[..], 0));
            }
        }
        assert_eq!(seen, ["FACP", "APIC", "HPET", "WAET"]);
    }

    #[test]
    fn tables_follow_the_power_management_registers_and_keep_their_lengths() {
        let of = |pm_base| acpi_files(&Config { pm_base, ..Config::default() }, 128 << 20);
        let (usual, moved) = (of(0x600), of(0xb000));
        for ((name, a), (_, b)) in usual.iter().zip(&moved) {
            assert_eq!((a.len(), a == b), (b.len(), *name != TABLES), "{name}");
        }
        let (_, _, tables) = run(&moved).into_iter().find(|p| p.0 == TABLES).unwrap();
        let fadt = tables.windows(4).position(|w| w == b"FACP").unwrap();
        assert_eq!([56, 64, 76].map(|field| word(&tables, fadt + field)), [0xb000, 0xb004, 0xb008]);
        assert_eq!([152, 176, 212].map(|field| word(&tables, fadt + field)), [0xb000, 0xb004, 0xb008]);
    }

    #[test]
    fn sleeping_states_are_told_of_as_the_dsdt_has_them() {
        let of = |s3, s4| {
            let files = firmware_files(&Config { s3, s4, ..Config::default() }, 128 << 20, 0);
            files.into_iter().find(|f| f.0 == "etc/system-states").unwrap().1
        };
        assert_eq!(of(true, true), [0x80, 0, 0, 0x81, 0x82, 0x80]);
        assert_eq!(of(false, false), [0x80, 0, 0, 0x01, 0x02, 0x80]);
    }

    #[test]
    fn memory_above_the_hole_is_told_of() {
        let find = |files: Vec<(&str, Vec<u8>)>| files.into_iter().find(|f| f.0 == "etc/e820").unwrap().1;
        let small = find(firmware_files(&Config::default(), 128 << 20, 0));
        let big = find(firmware_files(&Config::default(), 3 << 30, 1 << 30));
        assert_eq!((small.len(), big.len()), (40, 60));
        assert_eq!(big[40..56], [FOUR_GIB.to_le_bytes(), (1u64 << 30).to_le_bytes()].concat()[..]);
    }
}
