//! What Intel's and AMD's processors do differently.
use super::*;
use crate::model::Vendor;

const MAKERS: [Vendor; 2] = [Vendor::Intel, Vendor::Amd];

/// 64-bit mode on a model of this maker.
fn long(maker: Vendor) -> Rig {
    let mut r = Rig::long();
    Arc::make_mut(&mut r.cpu.model).vendor = maker;
    r
}

#[test]
fn a_repeated_comparison_that_faults_leaves_intels_flags_as_they_were() {
    for maker in MAKERS {
        let mut r = long(maker);
        // The second byte is on a page that is not there.
        let last = (2 << 20) - 1;
        r.write8(DATA, 5);
        r.write8(last, 3);
        let s = &mut r.cpu.state;
        (s.gpr[gpr::RSI], s.gpr[gpr::RDI], s.gpr[gpr::RCX]) = (DATA, last, 9);
        s.set_rflags(2 | fl::CF | fl::OF);
        r.bytes(&[0xf2, 0xa6]); // REPNE CMPSB
        assert_eq!(r.vector(), 14);
        assert_eq!(r.cpu.state.gpr[gpr::RCX], 8, "{maker:?}");
        let saved = r.stack64(3) & fl::ARITH;
        assert_eq!(saved, if maker == Vendor::Intel { fl::CF | fl::OF } else { 0 }, "{maker:?}");
    }
}

#[test]
fn pause_with_rex_b_exchanges_registers_with_amd_only() {
    for maker in MAKERS {
        let mut r = long(maker);
        (r.cpu.state.gpr[gpr::RAX], r.cpu.state.gpr[8]) = (1, 2);
        r.bytes(&[0xf3, 0x41, 0x90, 0xf4]);
        assert_eq!(r.run(), Exit::Halt);
        let want = if maker == Vendor::Intel { (1, 2) } else { (2, 1) };
        assert_eq!((r.cpu.state.gpr[gpr::RAX], r.cpu.state.gpr[8]), want, "{maker:?}");
    }
}

#[test]
fn intels_wrfsbase_wants_an_address_that_is_canonical_under_the_paging_mode() {
    for maker in MAKERS {
        let mut r = long(maker);
        r.cpu.state.cr4 |= cr4::FSGSBASE;
        r.cpu.sync_all();
        r.cpu.state.gpr[gpr::RCX] = 1 << 50;
        r.bytes(&[0xf3, 0x48, 0x0f, 0xae, 0xd1, 0xcd, 0x40]); // WRFSBASE RCX; INT 40h
        assert_eq!(r.vector(), if maker == Vendor::Intel { 13 } else { 0x40 }, "{maker:?}");
    }
}

#[test]
fn a_far_return_to_32_bit_code_leaves_the_upper_half_of_the_offset_out_with_intel() {
    for maker in MAKERS {
        for code in [[0x48, 0xcb], [0x48, 0xcf]] {
            let mut r = long(maker);
            let top = STACK0 - 40;
            let frame = [1 << 32 | handler(0x55), CODE0.into(), 2, STACK0, DATA0.into()];
            for (n, v) in frame.into_iter().enumerate() {
                r.write64(top + 8 * n as u64, v);
            }
            r.cpu.state.gpr[gpr::RSP] = top;
            r.bytes(&code);
            assert_eq!(r.vector(), if maker == Vendor::Intel { 0x55 } else { 13 }, "{maker:?} {code:02x?}");
        }
    }
}

#[test]
fn a_repeated_move_with_32_bit_addresses_cuts_its_registers_first_with_intel() {
    const HIGH: u64 = 0x55 << 32;
    for maker in MAKERS {
        // REP MOVSB, STOSB, LODSB with ECX 0.
        for (opcode, cut) in [(0xa4, [true, true]), (0xaa, [false, true]), (0xac, [false, false])] {
            let mut r = long(maker);
            let s = &mut r.cpu.state;
            (s.gpr[gpr::RCX], s.gpr[gpr::RSI], s.gpr[gpr::RDI]) = (HIGH, HIGH | DATA, HIGH | DATA);
            r.bytes(&[0xf3, 0x67, opcode, 0xf4]);
            assert_eq!(r.run(), Exit::Halt);
            let kept = |r: &Rig, n: usize| r.cpu.state.gpr[n] >> 32 != 0;
            let intel = maker == Vendor::Intel;
            assert_eq!(kept(&r, gpr::RCX), !intel, "{maker:?} {opcode:x}");
            let want = cut.map(|c| !(c && intel));
            assert_eq!([kept(&r, gpr::RSI), kept(&r, gpr::RDI)], want, "{maker:?} {opcode:x}");
        }
    }
}
