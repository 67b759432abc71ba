//! Logs that have something in them, tables beyond the first page, and what is refused. Histories with losses of power
//! are in `crate::losses`, QEMU's view in `tests/qemu_img.rs`.
use super::format::{FILE_PARAMETERS, REGION_TABLES};
use super::*;
use crate::testing::Fragile;

fn image(options: Options) -> Arc<Fragile> {
    let storage = Arc::new(Fragile::new(Vec::new()));
    create(&*storage, &options).unwrap();
    storage
}

fn small() -> Options {
    Options { block_size: MIB, ..Options::new(6 * MIB) }
}

fn open_ours(storage: &Arc<Fragile>, read_only: bool) -> io::Result<Vhdx> {
    open(storage.clone(), read_only)
}

/// The file as it is, whatever is still in memory: nothing is closed.
fn left_open(storage: &Arc<Fragile>) -> Arc<Fragile> {
    Arc::new(Fragile::new(storage.bytes()))
}

#[test]
fn a_log_is_replayed_in_place_and_in_memory() {
    let storage = image(small());
    let disk = open_ours(&storage, false).unwrap();
    disk.write(MIB + 10, &[7; 100]).unwrap();
    disk.flush().unwrap();
    // The table is not in place yet: only the log has it.
    let killed = left_open(&storage);
    let bat = disk.regions.bat.at;
    killed.edit(|bytes| bytes[bat as usize..bat as usize + SECTOR].fill(0));
    let before = killed.bytes();
    for read_only in [true, false] {
        let disk = open_ours(&killed, read_only).unwrap();
        let mut now = [0; 102];
        disk.read(MIB + 9, &mut now).unwrap();
        assert_eq!((now[0], now[1], now[100], now[101]), (0, 7, 7, 0));
        assert_eq!(disk.check(false).unwrap().corruptions, 0);
        drop(disk);
        assert_eq!(killed.bytes() == before, read_only);
    }
    assert_eq!(Header::read(&*killed).unwrap().log_guid, Guid::default());
    // A log of an image that was closed is nobody's any more.
    drop(disk);
    storage.edit(|bytes| bytes[bat as usize..bat as usize + SECTOR].fill(0));
    let mut now = [1; 1];
    open_ours(&storage, true).unwrap().read(MIB + 10, &mut now).unwrap();
    assert_eq!(now, [0]);
}

#[test]
fn a_torn_entry_of_the_log_is_none_and_a_shorter_file_is_told() {
    let storage = image(small());
    let disk = open_ours(&storage, false).unwrap();
    disk.write(0, &[1; 10]).unwrap();
    disk.flush().unwrap();
    disk.write(MIB, &[2; 10]).unwrap();
    disk.flush().unwrap();
    let (bat, log) = (disk.regions.bat.at as usize, disk.log.at as usize);
    let killed = left_open(&storage);
    // The second entry is torn; the first one is the last that is whole.
    killed.edit(|bytes| {
        bytes[bat..bat + 16].fill(0);
        bytes[log + 2 * SECTOR + 100] ^= 1;
    });
    let (mut first, mut second) = ([0; 1], [0; 1]);
    let again = open_ours(&killed, true).unwrap();
    again.read(0, &mut first).unwrap();
    again.read(MIB, &mut second).unwrap();
    assert_eq!((first, second), ([1], [0]));
    let cut = left_open(&storage);
    cut.edit(|bytes| bytes.truncate(bytes.len() - MIB as usize));
    let text = open_ours(&cut, true).map(drop).unwrap_err().to_string();
    assert!(text.contains("has been cut"), "{text}");
}

#[test]
fn entries_over_several_places_and_zeros_are_replayed_in_their_order() {
    let storage = image(small());
    let disk = open_ours(&storage, false).unwrap();
    disk.write(0, &[1; 10]).unwrap();
    let (guid, log, bat) = (disk.growth.lock().header.log_guid, disk.log, disk.regions.bat);
    let killed = left_open(&storage);
    let len = killed.len().unwrap();
    // Two entries that begin at the log's end and go on at its start; the second says that both are wanted.
    let at = log.len - SECTOR as u64;
    let piece = |block: u64| {
        let mut piece = [0; SECTOR];
        piece[..8].copy_from_slice(&((log.end() + 2 * MIB + block) | FULLY_PRESENT).to_le_bytes());
        piece
    };
    let one = log::entry(&[(bat.at, piece(0)), (bat.at + SECTOR as u64, [9; SECTOR])], at, 40, guid, len);
    let mut two = log::entry(&[(bat.at + 2 * SECTOR as u64, [8; SECTOR])], at, 41, guid, len);
    // A descriptor of zeros in place of the one of data.
    two[64..68].copy_from_slice(b"zero");
    two[68..72].fill(0);
    two[72..80].copy_from_slice(&(SECTOR as u64).to_le_bytes());
    two[80..88].copy_from_slice(&(bat.at + SECTOR as u64).to_le_bytes());
    let sum = crate::crc32c::without_itself(&two, 4);
    two[4..8].copy_from_slice(&sum.to_le_bytes());
    killed.edit(|bytes| {
        let (log_at, end) = (log.at as usize, log.end() as usize);
        bytes[end - SECTOR..end].copy_from_slice(&one[..SECTOR]);
        bytes[log_at..log_at + 2 * SECTOR].copy_from_slice(&one[SECTOR..]);
        bytes[log_at + 2 * SECTOR..log_at + 4 * SECTOR].copy_from_slice(&two);
    });
    let again = open_ours(&killed, false).unwrap();
    let mut now = [0; 1];
    again.read(0, &mut now).unwrap();
    assert_eq!(now, [1]);
    let mut page = [5; 16];
    killed.read_at(bat.at + SECTOR as u64, &mut page).unwrap();
    assert_eq!(page, [0; 16]);
}

#[test]
fn bitmaps_entries_are_passed_over_and_tables_of_many_pages_are_written_in_parts() {
    // Blocks of 256 MiB: each sixteenth is followed by a bitmap's entry.
    let options = Options { block_size: 256 * MIB, ..Options::new(40 << 32) };
    let metadata = Metadata { block_size: 256 * MIB, size: 40 << 32, logical_sector: 512 };
    assert_eq!((metadata.chunk_ratio(), metadata.index(15), metadata.index(16)), (16, 15, 17));
    assert_eq!((metadata.blocks(), metadata.entries()), (640, 640 + 39));
    options.validate().unwrap();
    let storage = image(Options { block_size: MIB, ..Options::new(80 << 30) });
    let disk = open_ours(&storage, true).unwrap();
    assert_eq!(disk.extent(0).unwrap().len, MIB << 10);
    assert_eq!(disk.entry(4096).unwrap() & 7, NOT_PRESENT, "a bitmap's");
    assert_eq!(disk.entry(4097).unwrap() & 7, ZERO);
}

#[test]
fn what_is_damaged_or_not_there_is_told() {
    let storage = image(small());
    let refused = |change: &dyn Fn(&mut Vec<u8>)| {
        let copy = left_open(&storage);
        copy.edit(|bytes| change(bytes));
        open_ours(&copy, true).map(drop).unwrap_err().to_string()
    };
    assert!(refused(&|b| b[0] = 0).contains("not a VHDX"));
    assert!(refused(&|b| (b[65_536], b[131_072]) = (0, 0)).contains("two headers"));
    let tables = |b: &mut Vec<u8>| REGION_TABLES.into_iter().for_each(|at| b[at as usize + 40] ^= 1);
    assert!(refused(&tables).contains("region tables"));
    assert!(refused(&|b| b.truncate(2 << 20)).contains("metadata"));
    let item = |b: &mut Vec<u8>, id: Guid| b.windows(16).position(|w| w == id).unwrap();
    let text = refused(&|b| {
        let at = item(b, FILE_PARAMETERS);
        b[at..at + 16].copy_from_slice(&format::PARENT_LOCATOR);
    });
    assert!(text.contains("differencing"), "{text}");
    // One header is enough, and one region table.
    let copy = left_open(&storage);
    copy.edit(|b| (b[65_536], b[192 << 10]) = (0, 0));
    open_ours(&copy, true).unwrap();
    // Blocks where none can be.
    let bat = open_ours(&storage, true).unwrap().regions.bat.at as usize;
    for entry in [FULLY_PRESENT, MIB | FULLY_PRESENT, 1 << 62 | FULLY_PRESENT, PARTIALLY_PRESENT, 5] {
        let copy = left_open(&storage);
        copy.edit(|b| b[bat..bat + 8].copy_from_slice(&entry.to_le_bytes()));
        let disk = open_ours(&copy, true).unwrap();
        assert_eq!(disk.read(0, &mut [0; 1]).unwrap_err().kind(), io::ErrorKind::InvalidData, "{entry:#x}");
        assert_eq!(disk.check(false).unwrap().corruptions, 1);
    }
}
