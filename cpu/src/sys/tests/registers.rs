use super::super::msr::index as m;
use super::*;
use iced_x86::code_asm::*;

#[test]
fn cr0_refuses_what_cannot_be() {
    let mut r = Rig::protected();
    assert!(r.cpu.write_cr0(cr0::PG).is_err());
    assert!(r.cpu.write_cr0(cr0::PE | cr0::NW).is_err());
    assert!(r.cpu.write_cr0(1 << 40).is_err());
    assert!(r.cpu.write_cr0(cr0::PE | 0x40).is_ok());
    assert_eq!(r.cpu.state.cr0, cr0::PE | cr0::ET);
}

#[test]
fn cr4_has_the_bits_of_the_model() {
    let mut r = Rig::with_model("qemu64");
    assert!(r.cpu.write_cr4(cr4::SMEP).is_err());
    assert!(r.cpu.write_cr4(cr4::PAE | cr4::PGE | cr4::OSFXSR).is_ok());
    assert!(r.cpu.write_cr4(1 << 13).is_err());
    let mut r = Rig::long();
    assert!(r.cpu.write_cr4(0).is_err(), "PAE cannot go in long mode");
    assert!(r.cpu.write_cr4(cr4::PAE | cr4::LA57).is_err());
    assert!(r.cpu.write_cr4(cr4::PAE | cr4::PCIDE | cr4::SMEP).is_ok());
    r.cpu.write_cr3(TABLES | 5 | 1 << 63).unwrap();
    assert_eq!(r.cpu.state.cr3, TABLES | 5);
    assert!(r.cpu.write_cr3(1 << 52).is_err());
    // PCIDE cannot be set while CR3 names a PCID.
    r.cpu.write_cr4(cr4::PAE).unwrap();
    assert!(r.cpu.write_cr4(cr4::PAE | cr4::PCIDE).is_err());
}

#[test]
fn pae_paging_loads_and_checks_its_four_entries() {
    let mut r = Rig::protected();
    r.write64(TABLES, (TABLES + 0x1000) | 1);
    r.write64(TABLES + 0x1000, 0x83);
    r.cpu.write_cr4(cr4::PAE).unwrap();
    r.cpu.write_cr3(TABLES).unwrap();
    r.cpu.write_cr0(cr0::PE | cr0::PG).unwrap();
    assert_eq!(r.cpu.state.pdpte[0], (TABLES + 0x1000) | 1);
    r.write64(TABLES, (TABLES + 0x1000) | 3);
    assert!(r.cpu.write_cr3(TABLES).is_err(), "bit 1 is reserved");
}

#[test]
fn user_code_meets_umip_and_privilege() {
    for code in [&[0x0f, 0x01, 0x05, 0, 0, 6, 0][..], &[0x0f, 0x00, 0xc8], &[0x0f, 0x01, 0xe0]] {
        let mut r = Rig::protected();
        r.ring(3);
        r.cpu.state.cr4 |= cr4::UMIP;
        r.cpu.sync_all();
        r.bytes(code);
        assert_eq!(r.vector(), 13, "{code:x?}");
    }
    let privileged: &[&[u8]] = &[
        &[0xf4],
        &[0x0f, 0x20, 0xc0],
        &[0x0f, 0x06],
        &[0x0f, 0x32],
        &[0x0f, 0x30],
        &[0x0f, 0x01, 0x15],
        &[0xfa],
    ];
    for code in privileged {
        let mut r = Rig::protected();
        r.ring(3);
        r.bytes(code);
        assert_eq!(r.vector(), 13, "{code:x?}");
        assert_eq!((r.stack32(0), r.stack32(1)), (0, CODE as u32));
    }
}

#[test]
fn popf_changes_what_the_privilege_allows() {
    let mut r = Rig::protected();
    r.code(32, |a| {
        a.push(-1)?;
        a.popfd()?;
        a.hlt()
    });
    r.cpu.state.rflags &= !fl::TF;
    r.cpu.step();
    r.cpu.step();
    assert_eq!(r.cpu.state.rflags(), 0x24_7fd7);

    let mut r = Rig::protected();
    r.ring(3);
    r.bytes(&[0x68, 0xff, 0xfe, 0xff, 0xff, 0x9d]);
    r.cpu.step();
    r.cpu.step();
    assert_eq!(r.cpu.state.rflags(), 0x24_4cd7, "neither IF nor IOPL");
}

#[test]
fn lgdt_with_16_bit_operands_takes_24_bits() {
    let mut r = Rig::protected();
    r.write16(DATA, 0x7f);
    r.write32(DATA + 2, 0xff00_1000);
    r.bytes(&[0x66, 0x0f, 0x01, 0x15, 0, 0, 6, 0, 0xf4]);
    r.cpu.step();
    assert_eq!(r.cpu.state.gdtr, Table { base: 0x1000, limit: 0x7f });
}

#[test]
fn cpuid_and_rdtsc_answer() {
    let mut r = Rig::long();
    r.code(64, |a| {
        a.xor(eax, eax)?;
        a.cpuid()?;
        a.mov(esi, ebx)?;
        a.rdtsc()?;
        a.hlt()
    });
    assert_eq!(r.run(), Exit::Halt);
    assert_eq!(r.cpu.state.gpr[gpr::RSI], u64::from(u32::from_le_bytes(*b"Auth")));
    assert_eq!(r.cpu.state.gpr[gpr::RAX], 1000);
    r.cpu.write_msr(m::TSC, 5000).unwrap();
    assert_eq!(r.cpu.tsc(), 5000);
    assert_eq!(r.cpu.read_msr(m::TSC_ADJUST).unwrap(), 4000);
    r.cpu.write_msr(m::TSC_ADJUST, 0).unwrap();
    assert_eq!(r.cpu.tsc(), 1000);
}

/// Deadlines of the local APIC are in terms of the counter as the guest has it.
#[test]
fn the_board_knows_how_far_the_counter_is_ahead() {
    let mut r = Rig::long();
    let ahead = |r: &Rig| *r.board.tsc_ahead.lock();
    r.cpu.write_msr(m::TSC, 5000).unwrap();
    assert_eq!(ahead(&r), 4000);
    r.cpu.write_msr(m::TSC_ADJUST, 7000).unwrap();
    assert_eq!(ahead(&r), 7000);
    r.cpu.init();
    assert_eq!((ahead(&r), r.cpu.tsc()), (7000, 8000), "INIT leaves it");
    let saved = r.cpu.save();
    r.cpu.reset();
    assert_eq!((ahead(&r), r.cpu.tsc()), (0, 1000));
    r.cpu.restore(saved).unwrap();
    assert_eq!(ahead(&r), 7000);
    // What the guest has not done itself stays at RESET.
    r.cpu.set_tsc_offset(9000);
    r.cpu.reset();
    assert_eq!((ahead(&r), r.cpu.tsc()), (2000, 3000));
}

#[test]
fn msrs_check_what_is_written() {
    let mut r = Rig::long();
    let c = &mut r.cpu;
    assert!(c.write_msr(m::PAT, 0x0007_0406_0007_0402).is_err());
    assert!(c.write_msr(m::PAT, 0x0007_0406_0107_0406).is_ok());
    assert!(c.write_msr(m::LSTAR, 1 << 56).is_err());
    assert!(c.write_msr(m::EFER, efer::LME | efer::LMA | 1 << 12).is_err(), "no SVM");
    assert!(c.write_msr(m::EFER, efer::SCE).is_err(), "LME cannot go while paging is on");
    assert!(c.write_msr(m::EFER, efer::SCE | efer::LME).is_ok());
    assert_eq!(c.read_msr(m::EFER).unwrap(), efer::SCE | efer::LME | efer::LMA);
    assert!(c.write_msr(m::MTRRCAP, 0).is_err());
    assert!(c.write_msr(m::MTRR_PHYSBASE0, 2).is_err());
    assert!(c.write_msr(m::MTRR_PHYSBASE0, 6).is_ok());
    assert!(c.read_msr(0x1234_5678).is_err());
    assert!(c.read_msr(m::MISC_ENABLE).is_err(), "Intel's alone");
    assert!(c.write_msr(m::APIC_BASE, 0xfee0_0d00).is_ok());
    assert!(c.write_msr(m::APIC_BASE, 0xfee0_0a00).is_err());
    assert_eq!(c.read_msr(m::MCG_CAP).unwrap() & 0xff, 10);
}

#[test]
fn amd_models_have_performance_counters_that_stay_zero() {
    let legacy = m::PERF_LEGACY_CTL0..=m::PERF_LEGACY_CTR3;
    // The model, and whether it has the six newer ones.
    for (model, newer) in
        [("max", false), ("qemu64", false), ("max,family=21", true), ("max,family=23", true)]
    {
        let c = &mut Rig::with_model(model).cpu;
        for index in legacy.clone().chain((m::PERF_CTL0..=m::PERF_CTR5).filter(|_| newer)) {
            assert_eq!(c.read_msr(index).ok(), Some(0), "{model}: {index:#x}");
            assert!(c.write_msr(index, 0x0053_0076).is_ok(), "{model}: {index:#x}");
            assert_eq!(c.read_msr(index).ok(), Some(0), "{model}: {index:#x}");
        }
        assert_eq!(c.read_msr(m::PERF_CTL0).is_ok(), newer, "{model}");
    }
    let c = &mut Rig::with_model("max,vendor=GenuineIntel").cpu;
    for index in legacy.chain([m::PERF_CTL0, m::HWCR]) {
        assert!(c.read_msr(index).is_err() && c.write_msr(index, 0).is_err(), "{index:#x}");
    }
}

#[test]
fn msrs_hold_as_wide_an_address_as_the_model_has() {
    const WIDE: u64 = 1 << 55;
    let of = [m::FS_BASE, m::GS_BASE, m::KERNEL_GS_BASE, m::LSTAR, m::CSTAR];
    for vendor in ["AuthenticAMD", "GenuineIntel"] {
        for la57 in [true, false] {
            let model = format!("max,vendor={vendor},la57={}", if la57 { "on" } else { "off" });
            let c = &mut Rig::with_model(&model).cpu;
            for index in of {
                assert!(c.write_msr(index, 1 << 46).is_ok() && c.write_msr(index, !0 << 47).is_ok());
                assert_eq!(c.write_msr(index, WIDE).is_ok(), la57, "{model}: {index:#x}");
                assert_eq!(c.write_msr(index, !WIDE).is_ok(), la57, "{model}: {index:#x}");
                assert!(c.write_msr(index, 1 << 56).is_err(), "{model}: {index:#x}");
            }
            // AMD's processors leave out the upper half of SYSENTER's addresses.
            for index in [m::SYSENTER_ESP, m::SYSENTER_EIP] {
                let amd = vendor == "AuthenticAMD";
                assert_eq!(c.write_msr(index, 1 << 62 | 5).is_ok(), amd, "{model}");
                assert_eq!(c.write_msr(index, WIDE | 5).is_ok(), amd || la57, "{model}");
                let want = if amd { 5 } else { u64::from(la57) * (WIDE | 5) };
                assert_eq!(c.read_msr(index).ok(), Some(want), "{model}");
            }
        }
    }
}

#[test]
fn protection_keys_are_read_and_written_when_enabled() {
    let mut r = Rig::long();
    r.bytes(&[0x0f, 0x01, 0xee]);
    assert_eq!(r.vector(), 6);
    let mut r = Rig::long();
    r.cpu.write_cr4(r.cpu.state.cr4 | cr4::PKE).unwrap();
    r.code(64, |a| {
        a.xor(ecx, ecx)?;
        a.xor(edx, edx)?;
        a.mov(eax, 0x5555)?;
        a.wrpkru()?;
        a.xor(eax, eax)?;
        a.rdpkru()?;
        a.hlt()
    });
    assert_eq!(r.run(), Exit::Halt);
    assert_eq!((r.cpu.state.gpr[gpr::RAX], r.cpu.state.pkru), (0x5555, 0x5555));
}

#[test]
fn invpcid_and_monitor_check_their_operands() {
    let mut r = Rig::long();
    r.write64(DATA, 1);
    r.code(64, |a| {
        a.mov(eax, 1)?;
        a.invpcid(rax, xmmword_ptr(DATA))
    });
    assert_eq!(r.vector(), 13, "a PCID without CR4.PCIDE");
    let mut r = Rig::long();
    r.code(64, |a| {
        a.mov(eax, 2)?;
        a.invpcid(rax, xmmword_ptr(DATA))?;
        a.hlt()
    });
    assert_eq!(r.run(), Exit::Halt);
    // MONITOR is not in `max`.
    let mut r = Rig::long();
    r.bytes(&[0x0f, 0x01, 0xc8]);
    assert_eq!(r.vector(), 6);
}

#[test]
fn bound_raises_br_outside_its_bounds() {
    for (index, vector) in [(-5i32, 5u64), (-4, 0xf0), (9, 0xf0), (10, 5)] {
        let mut r = Rig::protected();
        r.write32(DATA, -4i32 as u32);
        r.write32(DATA + 4, 9);
        r.cpu.state.gpr[gpr::RAX] = u64::from(index as u32);
        // BOUND EAX, [DATA]; INT F0h
        r.bytes(&[0x62, 0x05, 0, 0, 6, 0, 0xcd, 0xf0]);
        assert_eq!(r.vector(), vector, "{index}");
    }
}

#[test]
fn cr8_is_the_task_priority() {
    let mut r = Rig::long();
    r.code(64, |a| {
        a.mov(eax, 9)?;
        a.mov(cr8, rax)?;
        a.mov(rbx, cr8)?;
        a.mov(eax, 16)?;
        a.mov(cr8, rax)
    });
    assert_eq!(r.vector(), 13);
    assert_eq!(r.cpu.state.gpr[gpr::RBX], 9);
}

#[test]
fn alignment_is_checked_at_ring_3_as_soon_as_ac_is_set() {
    let mut r = Rig::long_user();
    r.cpu.state.cr0 |= cr0::AM;
    r.cpu.sync_all();
    r.code(64, |a| {
        a.mov(eax, dword_ptr(DATA + 1))?;
        a.pushfq()?;
        a.or(dword_ptr(rsp), 0x4_0000)?;
        a.popfq()?;
        a.mov(ebx, dword_ptr(DATA + 4))?;
        a.mov(eax, dword_ptr(DATA + 1))
    });
    assert_eq!(r.vector(), 17);
    assert_eq!(r.stack64(0), 0);
}
