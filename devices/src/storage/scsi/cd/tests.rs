//! What the drive says is what QEMU's says (tables of version 7.2), but where the standard says otherwise.
use super::*;
use mynah_block::{Memory, Options};
use std::sync::Arc;

fn drive(bytes: usize) -> Arc<Drive> {
    Drive::new(Options::default(), Some(Arc::new(Memory::read_only(vec![0; bytes])))).unwrap()
}

struct Test {
    cd: Cd,
    drive: Arc<Drive>,
}

impl Test {
    fn new(bytes: usize) -> Self {
        let mut test = Self { cd: Cd::default(), drive: drive(bytes) };
        assert_eq!(test.ask(&[0]), Outcome::Check(Sense::RESET));
        test
    }
    fn ask(&mut self, cdb: &[u8]) -> Outcome {
        let identity =
            Identity { product: "QEMU DVD-ROM".into(), revision: "2.5+".into(), serial: "QM00003".into() };
        self.cd.command(cdb, &self.drive, &identity)
    }
    fn hex(&mut self, cdb: &[u8]) -> String {
        match self.ask(cdb) {
            Outcome::Data(data) => data.iter().map(|b| format!("{b:02x}")).collect(),
            other => format!("{other:?}"),
        }
    }
}

#[test]
fn answers_are_those_of_qemus_drive() {
    let mut t = Test::new(1 << 20);
    for (cdb, answer) in [
        (&[0x25][..], "000001ff00000800"),
        (&[0x43, 0, 0, 0, 0, 0, 0, 0, 100], "0012010100140100000000000014aa0000000200"),
        (&[0x43, 2, 0, 0, 0, 0, 0, 0, 100], "0012010100140100000002000014aa000000083e"),
        (&[0x43, 0, 0, 0, 0, 0, 0xaa, 0, 100], "000a01010014aa0000000200"),
        (&[0x43, 0, 0, 0, 0, 0, 0, 0, 12, 0x40], "000a01010014010000000000"),
        (&[0x43, 0, 0, 0, 0, 0, 0, 0, 12, 0x80], "002e0101011400a000000000"),
        (
            &[0x43, 0, 2, 0, 0, 0, 0, 0, 100],
            "002e0101011400a000000000010000011400a100000000010000011400a20000000000083e0114000100000000000200",
        ),
        (&[0x5a, 0, 1, 0, 0, 0, 0, 0, 200], "000e0100000000000106000500000000"),
        (
            &[0x5a, 0, 0x2a, 0, 0, 0, 0, 0, 200],
            "001c0100000000002a143b007160290002c00002020002c0000000000000",
        ),
        (&[0xbd, 0, 0, 0, 0, 0, 0, 0, 0, 8], "0000000000010000"),
        (&[0x46, 2, 0, 0, 0, 0, 0, 0, 200], "0000001000000008000003080010000000080100"),
        (&[0x4a, 1, 0, 0, 0x10, 0, 0, 0, 8], "0004041000020000"),
        (&[0x4a, 1, 0, 0, 0x02, 0, 0, 0, 8], "00008010"),
        (&[0x51, 0, 0, 0, 0, 0, 0, 0, 8], "00200e0101010120"),
        (&[0xad, 0, 0, 0, 0, 0, 0, 0xff, 0x10, 0], "001200000040080401400008044008 04ff400014"),
        (&[0x52, 1, 0, 0, 0, 1, 0, 0, 7], "00220101000401"),
    ] {
        let found = t.hex(cdb);
        assert_eq!(found, answer.replace(' ', ""), "{cdb:x?}");
    }
    let inquiry = t.hex(&[0x12, 0, 0, 0, 96]);
    assert_eq!(inquiry, "058000211f00000051454d552020202051454d55204456442d524f4d20202020322e352b");
    let vpd = t.hex(&[0x12, 1, 0x83, 0, 24]);
    assert_eq!(vpd, "0583006002000014514d303030303320202020202020202020202020".get(..48).unwrap());
}

#[test]
fn what_is_wrong_is_told_by_its_sense() {
    let mut t = Test::new(1 << 20);
    for (cdb, sense) in [
        (&[0xff][..], Sense::OPERATION_CODE),
        (&[0x28, 0, 0, 0, 2, 0, 0, 0, 1], Sense::OUT_OF_RANGE),
        (&[0x28, 0, 0xff, 0xff, 0xff, 0xff, 0, 0xff, 0xff], Sense::OUT_OF_RANGE),
        (&[0x2b, 0, 0, 0, 9, 1], Sense::OUT_OF_RANGE),
        (&[0x43, 0, 0, 0, 0, 0, 2, 0, 100], Sense::FIELD_IN_CDB),
        (&[0x5a, 0, 0xea, 0, 0, 0, 0, 0, 200], Sense::NO_SAVING),
        (&[0x5a, 0, 0x11, 0, 0, 0, 0, 0, 200], Sense::FIELD_IN_CDB),
        (&[0x4a, 0, 0, 0, 0x10, 0, 0, 0, 8], Sense::FIELD_IN_CDB),
        (&[0xad, 0, 0, 0, 0, 0, 0, 0, 0x10, 0], Sense::INCOMPATIBLE_MEDIUM),
        (&[0xbe, 4, 0, 0, 0, 0, 0, 0, 1, 0x10], Sense::TRACK_MODE),
        (&[0xbe, 0, 0, 0, 0, 0, 0, 0, 1, 0x14], Sense::FIELD_IN_CDB),
    ] {
        assert_eq!(t.ask(cdb), Outcome::Check(sense), "{cdb:x?}");
        assert_eq!(t.ask(&[3, 0, 0, 0, 18]), Outcome::Data(sense.fixed()), "{cdb:x?}");
        assert_eq!(t.ask(&[3, 0, 0, 0, 18]), Outcome::Data(Sense::NONE.fixed()), "it is told once");
    }
}

#[test]
fn raw_sectors_have_the_parts_that_are_asked_for() {
    let mut t = Test::new(1 << 20);
    let of = |outcome| match outcome {
        Outcome::Read { parts, .. } => parts,
        other => panic!("{other:?}"),
    };
    let user = vec![9; 2048];
    for (flags, len) in
        [(0x10, 2048), (0xf8, 2352), (0x20, 4), (0x80, 12), (0x18, 2336), (0x30, 2052), (0xb8, 2352)]
    {
        let parts = of(t.ask(&[0xbe, 0, 0, 0, 0, 5, 0, 0, 1, flags]));
        let data = sector_parts(parts, 5, &user);
        assert_eq!((data.len(), parts.len()), (len, len), "{flags:#x}");
    }
    assert_eq!(t.ask(&[0xbe, 0, 0, 0, 0, 5, 0, 0, 1, 0]), Outcome::Done);
}

#[test]
fn no_command_of_any_bytes_panics() {
    let mut seed = 1_u64;
    for bytes in [0, 2047, 1 << 20] {
        let mut t = Test { cd: Cd::default(), drive: drive(bytes) };
        for _ in 0..100_000 {
            let mut cdb = [0; 16];
            for byte in &mut cdb {
                seed = seed.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
                *byte = if seed >> 62 == 0 { (seed >> 40) as u8 } else { 0 };
            }
            cdb[0] = (seed >> 32) as u8;
            if let Outcome::Parameters(_) = t.ask(&cdb) {
                let data: Vec<u8> = (0..seed >> 57).map(|i| (seed >> (i % 50)) as u8).collect();
                t.cd.parameters(&cdb, &data);
            }
        }
    }
}
