//! What is refused, descriptors, and grains that are written once. Histories with losses of power are in
//! `crate::losses`, QEMU's view in `tests/qemu_img.rs`.
use super::*;
use crate::testing::Fragile;
use parking_lot::Mutex as Lock;

type Files = Lock<HashMap<String, Arc<Fragile>>>;

fn make(options: &Options) -> Files {
    let files = Files::default();
    let main = Arc::new(Fragile::new(Vec::new()));
    let mut new = |name: &str| -> io::Result<Arc<dyn Storage>> {
        let file = Arc::new(Fragile::new(Vec::new()));
        files.lock().insert(name.into(), file.clone());
        Ok(file)
    };
    create(&*main, "disk.vmdk", options, &mut new).unwrap();
    files.lock().insert("disk.vmdk".into(), main);
    files
}

fn open_in(files: &Files, read_only: bool) -> io::Result<Vmdk> {
    let get = |name: &str, _: bool| -> io::Result<Arc<dyn Storage>> {
        Ok(files.lock().get(name).ok_or(io::ErrorKind::NotFound)?.clone())
    };
    open(get("disk.vmdk", true)?, read_only, &get)
}

fn main_file(files: &Files) -> Arc<Fragile> {
    files.lock()["disk.vmdk"].clone()
}

#[test]
fn both_copies_of_the_tables_are_written_and_the_identifier_changes_once() {
    let files = make(&Options::new(1 << 20));
    let file = main_file(&files);
    let id = |file: &Fragile| {
        let bytes = file.bytes();
        value(&String::from_utf8_lossy(&bytes[512..2048]), "CID").unwrap()
    };
    let before = id(&file);
    let disk = open_in(&files, false).unwrap();
    assert_eq!(id(&file), before, "nothing is written yet");
    disk.write(70_000, &[3; 100]).unwrap();
    let after = id(&file);
    assert_ne!(after, before);
    assert_eq!(file.bytes()[72], 1);
    disk.flush().unwrap();
    disk.write(200_000, &[3; 100]).unwrap();
    drop(disk);
    assert_eq!((id(&file), file.bytes()[72]), (after, 0));
    let bytes = file.bytes();
    let table = |directory: usize| {
        let at = le64(&bytes, directory) as usize * 512;
        let table = crate::storage::le32(&bytes, at) as usize * 512;
        bytes[table..table + 2048].to_vec()
    };
    assert_eq!(table(48), table(56));
    assert!(table(56)[4..8] != [0; 4] && table(56)[12..16] != [0; 4]);
    // Who has not come to the copy leaves the mark.
    let copy = le64(&bytes, 48) as usize * 512;
    let copy = crate::storage::le32(&bytes, copy) as usize * 512;
    file.edit(|b| {
        b[copy + 4..copy + 8].fill(0);
        b[72] = 1;
    });
    drop(open_in(&files, false).unwrap());
    assert_eq!(file.bytes()[copy..copy + 2048], table(56));
}

#[test]
fn a_stream_is_written_once() {
    let files = make(&Options { kind: Kind::StreamOptimized, ..Options::new(300_000) });
    let disk = open_in(&files, false).unwrap();
    assert!(disk.compressed_only());
    disk.write_compressed(65_536, &[4; 65_536]).unwrap();
    disk.write_compressed(4 * 65_536, &[5; 300_032 - 4 * 65_536]).unwrap();
    let text = disk.write_compressed(65_536, &[1; 65_536]).unwrap_err().to_string();
    assert!(text.contains("written once"), "{text}");
    assert!(disk.write(0, &[1; 512]).is_err());
    drop(disk);
    let disk = open_in(&files, true).unwrap();
    let mut now = vec![1; 300_032];
    disk.read(0, &mut now).unwrap();
    assert!(now[..65_536].iter().all(|b| *b == 0) && now[65_536..131_072].iter().all(|b| *b == 4));
    assert!(now[4 * 65_536..].iter().all(|b| *b == 5));
    assert!(main_file(&files).len().unwrap() < 70_000 + 2048);
}

#[test]
fn descriptors_of_others_are_read_as_they_are_meant() {
    let files = Files::default();
    let flat = Arc::new(Fragile::new(vec![6; 8192]));
    files.lock().insert("flat.bin".into(), flat.clone());
    let text = "# Disk DescriptorFile\r\nversion=1\r\nCID=1\r\nparentCID=ffffffff\r\n\
                createType=\"custom\"\r\nRW 4 FLAT \"flat.bin\" 8\r\nRDONLY 4 FLAT \"flat.bin\" 0\r\nRW 4 ZERO\r\n";
    files.lock().insert("disk.vmdk".into(), Arc::new(Fragile::new(text.as_bytes().to_vec())));
    let disk = open_in(&files, false).unwrap();
    assert_eq!(disk.size(), 12 * 512);
    disk.write(10, &[9; 20]).unwrap();
    assert_eq!(flat.bytes()[8 * 512 + 9..][..3], [6, 9, 9]);
    assert!(disk.write(4 * 512, &[1]).unwrap_err().to_string().contains("'flat.bin' is read-only"));
    assert!(disk.write(8 * 512, &[1]).is_err());
    disk.write(8 * 512, &[0; 512]).unwrap();
    drop(disk);
    let bytes = main_file(&files).bytes();
    let text = String::from_utf8_lossy(&bytes);
    assert_eq!(text.lines().nth(2).unwrap().len(), "CID=00000001".len(), "{text}");
    assert!(text.contains("RW 4 ZERO"));
}

#[test]
fn what_is_not_there_is_refused_by_name() {
    let refused = |text: &str| {
        let files = Files::default();
        files.lock().insert("disk.vmdk".into(), Arc::new(Fragile::new(text.as_bytes().to_vec())));
        open_in(&files, true).map(drop).unwrap_err().to_string()
    };
    let head = "version=1\nCID=1\n";
    assert!(refused(&format!("{head}parentCID=12345678\nRW 4 ZERO\n")).contains("a parent"));
    assert!(refused(&format!("{head}RW 4 VMFS \"x\"\n")).contains("ESX (VMFS)"));
    assert!(refused(&format!("{head}RW 4 SESPARSE \"x\"\n")).contains("ESX (SESPARSE)"));
    assert!(refused("COWD").contains("ESX (COWD)"));
    assert!(refused(head).contains("no extent"));
    // A grain where none can be is not written to.
    let files = make(&Options::new(1 << 20));
    let file = main_file(&files);
    let table = crate::storage::le32(&file.bytes(), le64(&file.bytes(), 56) as usize * 512) as usize * 512;
    for sector in [u32::MAX, 1 << 24] {
        file.edit(|b| b[table..table + 4].copy_from_slice(&sector.to_le_bytes()));
        let disk = open_in(&files, false).unwrap();
        assert_eq!(disk.write(0, &[1]).unwrap_err().kind(), io::ErrorKind::InvalidData);
        assert_eq!(disk.check(false).unwrap().corruptions, 1);
    }
}
