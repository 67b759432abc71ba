use super::*;

#[test]
fn geometries_follow_the_size_or_the_partitions() {
    let of = |sectors| {
        let g = Geometry::of_size(sectors);
        (g.cylinders, g.heads, g.sectors)
    };
    assert_eq!([of(0), of(40_960), of(1 << 32)], [(2, 16, 63), (40, 16, 63), (16_383, 16, 63)]);
    let mut first = [0; 512];
    let set = |first: &mut [u8; 512], head: u8, sector: u8| {
        first[446..462].fill(0);
        (first[446 + 5], first[446 + 6]) = (head, sector);
        first[446 + 12] = 1;
        first[510..].copy_from_slice(&[0x55, 0xaa]);
    };
    set(&mut first, 3, 17 | 0xc0);
    let g = Geometry::guess(41_720, &first);
    assert_eq!((g.cylinders, g.heads, g.sectors), (613, 4, 17));
    set(&mut first, 254, 63);
    assert_eq!(Geometry::guess(41_720, &first), Geometry::of_size(41_720), "a BIOS's translation");
    first[510] = 0;
    assert_eq!(Geometry::guess(41_720, &first), Geometry::of_size(41_720));
    assert_eq!(Geometry::guess(41_720, &[]), Geometry::of_size(41_720));
}

#[test]
fn addresses_and_their_translation_are_each_others_inverse() {
    let g = Geometry { cylinders: 10, heads: 7, sectors: 11 };
    for lba in 0..770 {
        let (c, h, s) = g.chs(lba);
        assert_eq!(g.lba(c, h, s), Some(lba));
    }
    assert_eq!([g.lba(0, 7, 1), g.lba(0, 0, 0), g.lba(0, 0, 12)], [None; 3]);
}

#[test]
fn a_register_is_two_bytes_deep() {
    let mut r = Registers::default();
    for value in [0x12, 0x34] {
        for register in [Register::Count, Register::Low, Register::Mid, Register::High] {
            r.write(register, value);
        }
    }
    assert_eq!((r.read(Register::Low, false), r.read(Register::Low, true)), (0x34, 0x12));
    assert_eq!((r.sectors(true), r.sectors(false)), (0x1234, 0x34));
    r.write(Register::Device, 0x4f);
    assert_eq!(
        (r.lba(true), r.lba(false), r.read(Register::Device, false)),
        (0x1212_1234_3434, 0xf34_3434, 0xef)
    );
    r.set_lba(true, 0x0605_0403_0201);
    assert_eq!(r.lba(true), 0x0605_0403_0201);
    r.count = [0, 0];
    assert_eq!((r.sectors(true), r.sectors(false)), (65_536, 256));
}
