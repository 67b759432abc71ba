use super::*;
use crate::entry::{BOOT_CS, BOOT_DS, CpuMode};
use crate::error::LoadError;
use crate::mem::SparseMemory;
use crate::request::Module;
use crate::testing::{linux_image, read_u32, read_u64, read_vec, small_tables};

const RAM: u64 = 128 << 20;

fn boot(mem: &SparseMemory, req: &LoadRequest<'_>) -> Result<Entry, LoadError> {
    crate::load(mem, &small_tables(mem), req)
}

fn put(image: &mut [u8], at: usize, bytes: &[u8]) {
    image[at..at + bytes.len()].copy_from_slice(bytes);
}

#[test]
fn a_64_bit_kernel_is_entered_in_long_mode_at_its_preferred_address() {
    let mem = SparseMemory::new(RAM, 0);
    let kernel = linux_image();
    let initrd = vec![0x5a; 5000];
    let req = LoadRequest {
        initrd: Some(&initrd),
        cmdline: "console=ttyS0",
        rng_seed: Some(std::array::from_fn(|n| n as u8)),
        ..LoadRequest::new("vmlinuz", &kernel)
    };
    let tables = small_tables(&mem);
    let e = crate::load(&mem, &tables, &req).unwrap();
    assert_eq!((e.mode, e.rip), (CpuMode::Long64, 0x100_0200));
    assert_eq!((e.cs.selector, e.ss.selector, e.rflags), (BOOT_CS, BOOT_DS, 2));
    assert_eq!(read_vec(&mem, 0x100_0000, 4), [0xa5, 0xa5, 0xa5, 0xa5]);

    let zp = e.gpr[reg::RSI];
    assert_eq!(read_vec(&mem, zp + 0x202, 4), b"HdrS");
    assert_eq!(read_vec(&mem, zp + 0x1ef, 1), [0], "the sentinel must be zero");
    assert_eq!(read_vec(&mem, zp + 0x210, 1), [0xff]);
    assert_eq!(read_u64(&mem, zp + 0x70), tables.rsdp.unwrap());
    assert_eq!(read_vec(&mem, read_u32(&mem, zp + 0x228).into(), 14), b"console=ttyS0\0");
    let (at, len) = (read_u32(&mem, zp + 0x218), read_u32(&mem, zp + 0x21c));
    assert_eq!((at % 4096, len), (0, 5000));
    assert_eq!(read_vec(&mem, at.into(), 5000), initrd);
    let entries = tables.e820.entries();
    assert_eq!(usize::from(read_vec(&mem, zp + 0x1e8, 1)[0]), entries.len());
    for (i, want) in entries.iter().enumerate() {
        let at = zp + 0x2d0 + i as u64 * 20;
        assert_eq!((read_u64(&mem, at), read_u64(&mem, at + 8)), (want.base, want.len));
        assert_eq!(read_u32(&mem, at + 16), want.kind as u32);
    }
    assert_eq!(read_vec(&mem, zp, 0x40)[0xf], 0, "no VGA");
    let seed = read_u64(&mem, zp + 0x250);
    assert_eq!([read_u64(&mem, seed), read_u64(&mem, seed + 8)], [0, 32 << 32 | 9], "the only setup_data");
    assert_eq!(read_vec(&mem, seed + 16, 32), (0..32).collect::<Vec<u8>>());
}

#[test]
fn a_32_bit_kernel_is_entered_in_protected_mode_with_boot_params_in_esi() {
    let mem = SparseMemory::new(RAM, 0);
    let mut kernel = linux_image();
    put(&mut kernel, hdr::XLOADFLAGS, &[0, 0]);
    let req = LoadRequest { cpu_is_64bit: false, vga_text: true, ..LoadRequest::new("vmlinuz", &kernel) };
    let e = boot(&mem, &req).unwrap();
    assert_eq!((e.mode, e.rip, e.cr0 & CR0_PE_PG), (CpuMode::Protected32, 0x100_0000, 1));
    assert_eq!((e.cs.selector, e.ds_es_fs_gs.selector), (BOOT_CS, BOOT_DS));
    let zp = e.gpr[reg::RSI];
    assert_eq!(read_u32(&mem, zp + 0x214), 0x100_0000, "code32_start is where it was loaded");
    let screen = read_vec(&mem, zp, 0x12);
    assert_eq!((screen[6], screen[7], screen[14], screen[15], screen[16]), (3, 80, 25, 1, 16));
}

const CR0_PE_PG: u64 = crate::entry::CR0_PE | crate::entry::CR0_PG;

#[test]
fn the_last_paragraph_of_the_file_may_be_short() {
    let mem = SparseMemory::new(RAM, 0);
    let kernel = linux_image();
    assert!(boot(&mem, &LoadRequest::new("k", &kernel[..kernel.len() - 15])).is_ok());
    assert!(boot(&mem, &LoadRequest::new("k", &kernel[..kernel.len() - 16])).is_err());
}

#[test]
fn a_kernel_that_cannot_be_moved_is_loaded_at_one_mebibyte() {
    let mem = SparseMemory::new(RAM, 0);
    let mut kernel = linux_image();
    put(&mut kernel, hdr::RELOCATABLE_KERNEL, &[0]);
    assert_eq!(boot(&mem, &LoadRequest::new("k", &kernel)).unwrap().rip, 0x10_0200);
}

#[test]
fn the_real_mode_entry_is_for_those_who_ask_and_have_a_bios() {
    let mem = SparseMemory::new(RAM, 0);
    let kernel = linux_image();
    let mut req = LoadRequest {
        protocol: BootProtocol::Linux16,
        cmdline: "quiet vga=0x317",
        ..LoadRequest::new("vmlinuz", &kernel)
    };
    assert_eq!(boot(&mem, &req).unwrap_err().reason, Reason::NeedsBios);
    req.bios_services = true;
    let e = boot(&mem, &req).unwrap();
    assert_eq!((e.mode, e.cs.selector, e.rip, e.cr0 & 1), (CpuMode::Real, 0x1020, 0, 0));
    assert_eq!((e.cs.base, e.ss.selector, e.gpr[reg::RSP], e.idt.limit), (0x1_0200, 0x1000, 0xe000, 0x3ff));
    let header = read_vec(&mem, 0x1_0000, 0x290);
    assert_eq!(header[hdr::LOADFLAGS] & CAN_USE_HEAP, CAN_USE_HEAP);
    assert_eq!(header[hdr::HEAP_END_PTR..][..2], 0xde00u16.to_le_bytes());
    assert_eq!(header[hdr::VID_MODE..][..2], 0x317u16.to_le_bytes());
    let cmdline = read_u32(&mem, 0x1_0000 + hdr::CMD_LINE_PTR as u64);
    assert_eq!(read_vec(&mem, cmdline.into(), 6), b"quiet ");
}

#[test]
fn an_image_without_a_32_bit_entry_is_entered_at_its_setup_code() {
    let mem = SparseMemory::new(RAM, 0);
    let mut old = linux_image();
    put(&mut old, hdr::XLOADFLAGS, &[0, 0]);
    // As Linux 2.6.24, and as memdisk and iPXE say it.
    for (version, start, mode) in [
        (0x207u16, 0x10_0000u32, CpuMode::Protected32),
        (0x206, 0x10_0000, CpuMode::Real),
        (0x203, 0x10_0000, CpuMode::Real),
        (0x207, 0, CpuMode::Real),
    ] {
        put(&mut old, hdr::VERSION, &version.to_le_bytes());
        put(&mut old, hdr::CODE32_START, &start.to_le_bytes());
        let mut req = LoadRequest { bios_services: true, ..LoadRequest::new("k", &old) };
        assert_eq!(boot(&mem, &req).unwrap().mode, mode, "{version:#x} {start:#x}");
        // Who asks for the other may have it where there is one.
        req.protocol = BootProtocol::Linux32;
        match boot(&mem, &req) {
            Ok(e) => assert_eq!((e.mode, start), (CpuMode::Protected32, 0x10_0000)),
            Err(e) => assert!(start == 0 && e.to_string().contains("code32_start is 0"), "{e}"),
        }
    }
}

#[test]
fn an_old_zimage_has_its_command_line_behind_its_setup_code() {
    let mem = SparseMemory::new(RAM, 0);
    let mut kernel = linux_image();
    put(&mut kernel, hdr::VERSION, &0x200u16.to_le_bytes());
    put(&mut kernel, hdr::LOADFLAGS, &[0]);
    let mut req = LoadRequest { cmdline: "root=/dev/fd0", ..LoadRequest::new("zImage", &kernel) };
    assert_eq!(boot(&mem, &req).unwrap_err().reason, Reason::NeedsBios);
    req.bios_services = true;
    let e = boot(&mem, &req).unwrap();
    assert_eq!((e.cs.selector, e.ss.selector), (0x9020, 0x9000));
    let setup = read_vec(&mem, 0x9_0000, 0x24);
    assert_eq!(setup[0x20..0x22], 0xa33fu16.to_le_bytes());
    let offset = u64::from(u16::from_le_bytes([setup[0x22], setup[0x23]]));
    assert_eq!(read_vec(&mem, 0x9_0000 + offset, 14), b"root=/dev/fd0\0");
    assert_eq!(read_vec(&mem, 0x1_0000, 2), [0xa5, 0xa5], "the payload is at 64 KiB");
}

#[test]
fn the_initrd_stays_below_the_kernels_limit_and_goes_above_only_if_it_may() {
    let mem = SparseMemory::new(3 << 30, 4 << 30);
    let mut kernel = linux_image();
    let initrd = vec![1; 3 << 20];
    put(&mut kernel, hdr::INITRD_ADDR_MAX, &0x37ff_ffffu32.to_le_bytes());
    let at = |kernel: &[u8], cmdline| {
        let req = LoadRequest { initrd: Some(&initrd), cmdline, ..LoadRequest::new("k", kernel) };
        let e = boot(&mem, &req)?;
        let zp = e.gpr[reg::RSI];
        Ok::<_, LoadError>(
            (u64::from(read_u32(&mem, zp + 0xc0)) << 32) + u64::from(read_u32(&mem, zp + 0x218)),
        )
    };
    assert_eq!(at(&kernel, "").unwrap(), 0x3800_0000 - (3 << 20));
    assert_eq!(at(&kernel, "mem=64M").unwrap(), (64 << 20) - (3 << 20));
    // No room below the limit: the kernel takes up what is there.
    put(&mut kernel, hdr::INITRD_ADDR_MAX, &0x17f_ffffu32.to_le_bytes());
    put(&mut kernel, hdr::INIT_SIZE, &0x7f_ffffu32.to_le_bytes());
    put(&mut kernel, hdr::PREF_ADDRESS, &0x100_0000u64.to_le_bytes());
    put(&mut kernel, hdr::XLOADFLAGS, &3u16.to_le_bytes());
    assert_eq!(at(&kernel, "").unwrap(), 0x100_0000 - (3 << 20), "below the kernel is below the limit");
    put(&mut kernel, hdr::INITRD_ADDR_MAX, &0xf_ffffu32.to_le_bytes());
    let high = at(&kernel, "").unwrap();
    assert!(high > 1 << 31 && high < 3 << 30, "{high:#x}");
    put(&mut kernel, hdr::XLOADFLAGS, &1u16.to_le_bytes());
    let error = at(&kernel, "").unwrap_err().to_string();
    assert_eq!(
        error,
        "k cannot be booted: the initrd of 3.0 MiB does not fit; the largest free piece of RAM below 0x100000 is 0 bytes"
    );
}

#[test]
fn an_initrd_larger_than_ram_is_refused_with_numbers() {
    let mem = SparseMemory::new(64 << 20, 0);
    let (kernel, initrd) = (linux_image(), vec![0; 100 << 20]);
    let req = LoadRequest { initrd: Some(&initrd), ..LoadRequest::new("vmlinuz", &kernel) };
    let error = boot(&mem, &req).unwrap_err().to_string();
    assert!(error.starts_with("vmlinuz cannot be booted: the initrd of 100.0 MiB does not fit"), "{error}");
}

#[test]
fn only_one_initrd_is_taken() {
    let mem = SparseMemory::new(RAM, 0);
    let kernel = linux_image();
    let m = Module { command: "a", data: b"x" };
    let req = LoadRequest { modules: &[m, m], ..LoadRequest::new("k", &kernel) };
    assert_eq!(boot(&mem, &req).unwrap_err().to_string(), "k takes one initrd, and 2 were given");
}

#[test]
fn errors_say_what_is_wrong_with_the_kernel() {
    let small = SparseMemory::new(16 << 20, 0);
    let mem = SparseMemory::new(RAM, 0);
    let good = linux_image();
    let why = |mem, kernel: &[u8], f: &dyn Fn(&mut LoadRequest<'_>)| {
        let mut req = LoadRequest::new("k", kernel);
        f(&mut req);
        boot(mem, &req).unwrap_err().to_string()
    };
    assert_eq!(
        why(&small, &good, &|_| ()),
        "k needs RAM at 0x1000000-0x1ffffff for the Linux kernel, which the guest does not have free (RAM below 4 GiB ends at 0xffd000)"
    );
    assert_eq!(
        why(&mem, &good, &|r| r.cpu_is_64bit = false),
        "k is a 64-bit kernel, and the chosen CPU model has no long mode"
    );
    let long = "x".repeat(3000);
    let mut req = LoadRequest::new("k", &good);
    req.cmdline = &long;
    assert_eq!(
        boot(&mem, &req).unwrap_err().to_string(),
        "k takes a command line of at most 2047 bytes, and 3000 were given"
    );
    let cut = why(&mem, &good[..good.len() - 100], &|_| ());
    assert!(cut.starts_with("k is truncated: its header describes"), "{cut}");
    let cut = why(&mem, &good[..0x206], &|_| ());
    assert!(cut.starts_with("k is truncated"), "{cut}");
    let mut old = good.clone();
    put(&mut old, hdr::VERSION, &0x0109u16.to_le_bytes());
    assert_eq!(why(&mem, &old, &|_| ()), "k has a bad Linux setup header: boot protocol 1.09 is not known");
    let mut far = good.clone();
    put(&mut far, hdr::PREF_ADDRESS, &u64::MAX.to_le_bytes());
    assert!(why(&mem, &far, &|_| ()).contains("beyond 4 GiB"));
    let mut no64 = good.clone();
    put(&mut no64, hdr::XLOADFLAGS, &[0, 0]);
    assert!(why(&mem, &no64, &|r| r.protocol = BootProtocol::Linux64).contains("XLF_KERNEL_64"));
}

#[test]
fn nothing_handed_to_the_kernel_overlaps() {
    let mem = SparseMemory::new(RAM, 0);
    let (kernel, initrd) = (linux_image(), vec![7; 70_000]);
    let line = "y".repeat(2047);
    let req = LoadRequest { initrd: Some(&initrd), cmdline: &line, ..LoadRequest::new("k", &kernel) };
    let e = boot(&mem, &req).unwrap();
    let zp = e.gpr[reg::RSI];
    let mut ranges = [
        (0, 0x1000),
        (zp, 0x1000),
        (e.gdt.base, 32),
        (e.cr3, 0x6000),
        (read_u32(&mem, zp + 0x228).into(), 2048),
        (read_u32(&mem, zp + 0x218).into(), 70_000),
        (0x100_0000, 0x100_0000),
    ];
    ranges.sort();
    assert!(ranges.windows(2).all(|w| w[0].0 + w[0].1 <= w[1].0), "{ranges:x?}");
}

#[test]
fn command_line_options_for_the_loader_are_read() {
    assert_eq!(vga_mode("quiet vga=ask"), Some(0xfffd));
    assert_eq!(vga_mode("vga=791 vga=normal"), Some(0xffff));
    assert_eq!(vga_mode("novga=1"), None);
    assert_eq!(mem_option("mem=512M"), Some(512 << 20));
    assert_eq!(mem_option("mem=0x100k"), Some(0x100 << 10));
    for odd in ["mem=", "mem=G", "mem=é", "mem=99999999999999G", "vga=", "vga=0x"] {
        assert_eq!((mem_option(odd), vga_mode(odd)), (None, None), "{odd}");
    }
}

#[test]
fn the_machines_own_memory_is_filled_as_the_tests_memory_is() {
    use mynah_mmu::{GuestRam, PhysMemory};
    let sparse = SparseMemory::new(RAM, 0);
    let phys = PhysMemory::new(GuestRam::new(RAM).unwrap(), RAM);
    let kernel = linux_image();
    let req = LoadRequest { initrd: Some(b"initrd"), cmdline: "quiet", ..LoadRequest::new("k", &kernel) };
    let entry = boot(&sparse, &req).unwrap();
    let tables = crate::build_tables(&*phys, &crate::Config::default()).unwrap();
    assert_eq!(crate::load(&*phys, &tables, &req).unwrap(), entry);
    for at in [0x400, 0x1000, 0xf_0000, 0x100_0000, RAM - 0x3000] {
        assert!(read_vec(&sparse, at, 0x3000) == read_vec(&*phys, at, 0x3000), "{at:#x}");
    }
}
