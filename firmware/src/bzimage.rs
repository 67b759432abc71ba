//! Linux kernels with a setup header (bzImage, zImage): the Linux/x86 boot protocol 2.00 to 2.15.
//!
//! ```text
//!   file: | boot sector + setup code, (setup_sects + 1) * 512 | protected-mode kernel, syssize * 16 |
//! ```
//!
//! Three entries: 64-bit (payload + 0x200, with boot_params in RSI), 32-bit (payload, boot_params in ESI) and
//! 16-bit (the setup code itself, which then calls the BIOS). The first two skip the setup code, so that this
//! module fills in boot_params, the "zero page", as the setup code would have. Missing on purpose: EFI handover, EDD
//! and APM data (all of them describe firmware that is not there), kernels before protocol 2.00.
//!
//! Source: Linux Documentation/arch/x86/boot.rst and zero-page.rst.
use crate::entry::{Entry, reg};
use crate::error::{Reason, Size};
use crate::mem::{FOUR_GIB, Fields, GuestMemory};
use crate::place::{LOW_END, ONE_MIB, Places};
use crate::request::{BootProtocol, LoadRequest, has};
use crate::tables::Tables;

/// Offsets in the setup header, which stand in the file and in boot_params alike.
mod hdr {
    pub const SETUP_SECTS: usize = 0x1f1;
    pub const SYSSIZE: usize = 0x1f4;
    pub const VID_MODE: usize = 0x1fa;
    pub const BOOT_FLAG: usize = 0x1fe;
    /// Displacement of the short jump at 0x200: the header ends where it leads.
    pub const JUMP: usize = 0x201;
    pub const MAGIC: usize = 0x202;
    pub const VERSION: usize = 0x206;
    pub const TYPE_OF_LOADER: usize = 0x210;
    pub const LOADFLAGS: usize = 0x211;
    pub const SETUP_MOVE_SIZE: usize = 0x212;
    pub const CODE32_START: usize = 0x214;
    pub const RAMDISK_IMAGE: usize = 0x218;
    pub const RAMDISK_SIZE: usize = 0x21c;
    pub const HEAP_END_PTR: usize = 0x224;
    pub const CMD_LINE_PTR: usize = 0x228;
    pub const INITRD_ADDR_MAX: usize = 0x22c;
    pub const RELOCATABLE_KERNEL: usize = 0x234;
    pub const XLOADFLAGS: usize = 0x236;
    pub const CMDLINE_SIZE: usize = 0x238;
    /// The first of a list of structs, since 2.09.
    pub const SETUP_DATA: usize = 0x250;
    pub const PREF_ADDRESS: usize = 0x258;
    pub const INIT_SIZE: usize = 0x260;
    /// Where boot_params has other fields again.
    pub const END: usize = 0x290;
}

/// Offsets in boot_params outside the setup header.
mod params {
    pub const SIZE: usize = 0x1000;
    /// A33Fh: the next word is the offset of the command line (before 2.02).
    pub const OLD_CMDLINE_MAGIC: usize = 0x020;
    pub const OLD_CMDLINE_OFFSET: usize = 0x022;
    pub const EXT_MEM_K: usize = 0x002;
    pub const ORIG_VIDEO_PAGE: usize = 0x004;
    pub const ORIG_VIDEO_MODE: usize = 0x006;
    pub const ORIG_VIDEO_COLS: usize = 0x007;
    pub const ORIG_VIDEO_EGA_BX: usize = 0x00a;
    pub const ORIG_VIDEO_LINES: usize = 0x00e;
    pub const ORIG_VIDEO_ISVGA: usize = 0x00f;
    pub const ORIG_VIDEO_POINTS: usize = 0x010;
    pub const ACPI_RSDP_ADDR: usize = 0x070;
    pub const EXT_RAMDISK_IMAGE: usize = 0x0c0;
    pub const EXT_RAMDISK_SIZE: usize = 0x0c4;
    pub const ALT_MEM_K: usize = 0x1e0;
    pub const E820_ENTRIES: usize = 0x1e8;
    pub const E820_TABLE: usize = 0x2d0;
    pub const E820_MAX: usize = 128;
}

/// The type of setup_data that is a seed for random numbers.
const SETUP_RNG_SEED: u32 = 9;
/// loadflags: the payload is loaded at 1 MiB (a bzImage) and not at 64 KiB (a zImage).
const LOADED_HIGH: u8 = 1 << 0;
/// loadflags: heap_end_ptr is valid.
const CAN_USE_HEAP: u8 = 1 << 7;
/// xloadflags: there is a 64-bit entry at 0x200.
const XLF_KERNEL_64: u16 = 1 << 0;
/// xloadflags: kernel, boot_params, command line and initrd may lie above 4 GiB.
const XLF_CAN_BE_LOADED_ABOVE_4G: u16 = 1 << 1;
/// type_of_loader of a loader without a number of its own.
const LOADER_UNDEFINED: u8 = 0xff;
/// The highest initrd byte of kernels before protocol 2.03.
const OLD_INITRD_MAX: u64 = 0x37ff_ffff;

/// Whether the file has a Linux setup header.
pub fn is_linux(file: &[u8]) -> bool {
    has(file, hdr::MAGIC, b"HdrS") && has(file, hdr::BOOT_FLAG, &[0x55, 0xaa])
}

/// Least room for the setup code's stack and heap.
pub(crate) const MIN_STACK: u64 = 0x1000;

/// A checked setup header.
pub(crate) struct Image<'a> {
    /// Boot sector and setup code.
    pub setup: &'a [u8],
    /// The protected-mode kernel.
    pub payload: &'a [u8],
    /// Version of the boot protocol.
    pub version: u16,
    loadflags: u8,
    xloadflags: u16,
    relocatable: bool,
    code32_start: u32,
    /// Bytes of command line that the kernel takes.
    cmdline_max: usize,
    /// Highest address that an initrd byte may have.
    initrd_max: u64,
    /// (pref_address, init_size), from protocol 2.10 on.
    pub runtime: Option<(u64, u64)>,
}

impl<'a> Image<'a> {
    /// Reads the header of a file that has one.
    pub fn parse(file: &'a [u8]) -> Result<Self, Reason> {
        let cut =
            |needed: u64| Reason::Truncated { what: "Linux kernel", needed, present: file.len() as u64 };
        let version = file.u16_at(hdr::VERSION).ok_or_else(|| cut(hdr::END as u64))?;
        if !(0x200..0x300).contains(&version) {
            let why = format!("boot protocol {}.{:02} is not known", version >> 8, version & 0xff);
            return Err(Reason::bad("Linux setup header", why));
        }
        let sectors = match file[hdr::SETUP_SECTS] {
            0 => 4,
            n => usize::from(n),
        };
        let setup_len = (sectors + 1) * 512;
        let Some((setup, rest)) = file.split_at_checked(setup_len) else { return Err(cut(setup_len as u64)) };
        // The setup code is at least two sectors of 512 bytes here, so that the whole header is in `setup`.
        let since = |v: u16| version >= v;
        let u32_at = |at: usize| u64::from(setup.u32_at(at).unwrap_or(0));
        let payload = if since(0x204) {
            // In paragraphs, rounded up: the file may end within the last one.
            let len = u32_at(hdr::SYSSIZE) * 16;
            if len > rest.len() as u64 + 15 {
                return Err(cut(setup_len as u64 + len));
            }
            &rest[..rest.len().min(len as usize)]
        } else {
            rest // syssize was 16 bits wide and told nothing of a bzImage
        };
        if payload.is_empty() {
            return Err(cut(setup_len as u64 + 16));
        }
        let xloadflags = if since(0x20c) { setup.u16_at(hdr::XLOADFLAGS).unwrap_or(0) } else { 0 };
        if xloadflags & XLF_KERNEL_64 != 0 && payload.len() <= 0x200 {
            return Err(cut(setup_len as u64 + 0x201));
        }
        let cmdline_max = if since(0x206) { u32_at(hdr::CMDLINE_SIZE) as usize } else { 255 };
        Ok(Image {
            setup,
            payload,
            version,
            loadflags: setup[hdr::LOADFLAGS],
            xloadflags,
            relocatable: since(0x205) && setup[hdr::RELOCATABLE_KERNEL] != 0,
            code32_start: u32_at(hdr::CODE32_START) as u32,
            cmdline_max: if cmdline_max == 0 { 255 } else { cmdline_max },
            initrd_max: if since(0x203) { u32_at(hdr::INITRD_ADDR_MAX) } else { OLD_INITRD_MAX },
            runtime: since(0x20a)
                .then(|| (setup.u64_at(hdr::PREF_ADDRESS).unwrap_or(0), u32_at(hdr::INIT_SIZE)))
                .filter(|&(_, size)| size != 0),
        })
    }

    /// Whether it runs on 64-bit processors only.
    pub fn needs_64bit(&self) -> bool {
        self.xloadflags & XLF_KERNEL_64 != 0
    }

    /// Whether the payload is loaded at 1 MiB (a bzImage).
    pub fn loaded_high(&self) -> bool {
        self.loadflags & LOADED_HIGH != 0
    }

    /// Refuses a command line that the kernel would cut.
    pub fn check_cmdline(&self, cmdline: &str) -> Result<(), Reason> {
        match cmdline.len() > self.cmdline_max {
            true => Err(Reason::CmdlineTooLong { len: cmdline.len(), max: self.cmdline_max }),
            false => Ok(()),
        }
    }

    /// Where the initrd must end that a 32-bit loader places.
    pub fn initrd_limit(&self) -> u64 {
        let above = self.xloadflags & XLF_CAN_BE_LOADED_ABOVE_4G != 0;
        if above { FOUR_GIB } else { self.initrd_max + 1 }
    }

    /// boot_params with the setup header, the loader's number and what `cmdline` says of the video mode.
    pub fn filled_in(&self, loader: u8, cmdline: &str) -> Params {
        let mut p = Params([0; params::SIZE]);
        let header = self.header();
        p.0[header.clone()].copy_from_slice(&self.setup[header]);
        p.0[hdr::TYPE_OF_LOADER] = loader;
        if let Some(mode) = vga_mode(cmdline) {
            p.put(hdr::VID_MODE, mode.to_le_bytes());
        }
        p
    }

    /// Where the header's fields are, which a loader fills in.
    fn header(&self) -> std::ops::Range<usize> {
        hdr::SETUP_SECTS..(hdr::MAGIC + usize::from(self.setup[hdr::JUMP])).min(hdr::END)
    }

    /// Whether the payload is entered in protected mode with boot_params in ESI by other loaders, too: protocol 2.07
    /// (Linux 2.6.24) is the first that describes this. Other programs with a setup header (memdisk, iPXE) say by an
    /// older one, or leave code32_start 0, that only their setup code can enter what follows it.
    fn has_32bit_entry(&self) -> bool {
        self.loaded_high() && self.version >= 0x207 && self.code32_start != 0
    }

    /// The best entry for this kernel and CPU, or the one that was asked for.
    fn protocol(&self, req: &LoadRequest<'_>) -> Result<BootProtocol, Reason> {
        use BootProtocol::*;
        let has64 = self.needs_64bit();
        if has64 && !req.cpu_is_64bit {
            return Err(Reason::Needs64Bit);
        }
        let low = !self.loaded_high();
        let lacks = |wanted, why| Err(Reason::Protocol { wanted, why });
        let protocol = match req.protocol {
            Linux64 if !has64 => return lacks("64-bit Linux boot", "it has no 64-bit entry (XLF_KERNEL_64)"),
            Linux32 if low || self.version < 0x202 => {
                return lacks("32-bit Linux boot", "it is a zImage or older than boot protocol 2.02");
            }
            Linux32 if self.code32_start == 0 => {
                return lacks("32-bit Linux boot", "it has no 32-bit entry (code32_start is 0)");
            }
            wanted @ (Linux16 | Linux32 | Linux64) => wanted,
            _ if has64 => Linux64,
            _ if self.has_32bit_entry() => Linux32,
            _ => Linux16,
        };
        if protocol == Linux16 && !req.bios_services {
            return Err(Reason::NeedsBios);
        }
        Ok(protocol)
    }

    /// Takes the RAM that the kernel will run in and puts the payload there; returns its address.
    fn place_payload(&self, mem: &dyn GuestMemory, places: &mut Places) -> Result<u64, Reason> {
        const KERNEL: &str = "the Linux kernel";
        let len = self.payload.len() as u64;
        if !self.loaded_high() {
            places.claim_for(KERNEL, 0x1_0000, len)?;
            mem.write(0x1_0000, self.payload);
            return Ok(0x1_0000);
        }
        // Before 2.10 nothing tells how far the unpacked kernel reaches; the initrd goes to the far end of
        // RAM anyway.
        let Some((preferred, init_size)) = self.runtime else {
            let at = if self.relocatable { u64::from(self.code32_start).max(ONE_MIB) } else { ONE_MIB };
            places.claim_for(KERNEL, at, len)?;
            mem.write(at, self.payload);
            return Ok(at);
        };
        let size = init_size.max(len);
        if preferred.saturating_add(size) > FOUR_GIB {
            let why = format!("it wants {} at {preferred:#x}, beyond 4 GiB", Size(size));
            return Err(Reason::bad("Linux setup header", why));
        }
        places.claim_for(KERNEL, preferred, size)?;
        let at = if self.relocatable {
            preferred
        } else {
            // It copies itself from where it was loaded to `preferred`; the two may overlap.
            let at = u64::from(self.code32_start).max(ONE_MIB);
            let end = at + len;
            let outside = [(at, end.min(preferred)), (at.max(preferred + size), end)];
            for (from, to) in outside.into_iter().filter(|(from, to)| from < to) {
                places.claim_for(KERNEL, from, to - from)?;
            }
            at
        };
        mem.write(at, self.payload);
        Ok(at)
    }

    /// Finds a place for the initrd, as high as the kernel can take it.
    fn place_initrd(
        &self,
        mem: &dyn GuestMemory,
        places: &mut Places,
        data: &[u8],
        protocol: BootProtocol,
        mem_limit: u64,
    ) -> Result<u64, Reason> {
        let len = data.len() as u64;
        let above = self.xloadflags & XLF_CAN_BE_LOADED_ABOVE_4G != 0;
        let mut limits = vec![self.initrd_max + 1];
        if above {
            limits.push(FOUR_GIB);
        }
        if above && protocol == BootProtocol::Linux64 {
            limits.push(u64::MAX);
        }
        let at = limits.iter().find_map(|&l| places.highest(len, 0x1000, ONE_MIB, l.min(mem_limit)));
        let Some(at) = at else {
            let limit = limits.last().map_or(FOUR_GIB, |&l| l.min(mem_limit));
            return Err(places.does_not_fit("the initrd", len, ONE_MIB, limit));
        };
        mem.write(at, data);
        Ok(at)
    }
}

/// boot_params while it is filled in. Offsets are this module's own constants, all within the page.
pub(crate) struct Params([u8; params::SIZE]);

impl Params {
    fn put<const N: usize>(&mut self, at: usize, bytes: [u8; N]) {
        self.0[at..at + N].copy_from_slice(&bytes);
    }
    fn put32(&mut self, at: usize, value: u64) {
        self.put(at, (value as u32).to_le_bytes());
    }

    /// The end of the setup code's heap, from its start; the protocol counts it short by 200h bytes.
    pub fn set_heap(&mut self, image: &Image<'_>, end: u16) {
        if image.version >= 0x201 {
            self.put(hdr::HEAP_END_PTR, end.to_le_bytes());
            self.0[hdr::LOADFLAGS] |= CAN_USE_HEAP;
        }
    }

    /// Where the command line is; before 2.02 in the segment of the setup code at `setup`, which ends at `end`.
    pub fn set_cmdline(&mut self, image: &Image<'_>, setup: u64, at: u64, end: u64) {
        if image.version >= 0x202 {
            self.put32(hdr::CMD_LINE_PTR, at);
            return;
        }
        self.put(params::OLD_CMDLINE_MAGIC, 0xa33fu16.to_le_bytes());
        self.put(params::OLD_CMDLINE_OFFSET, ((at - setup) as u16).to_le_bytes());
        self.put(hdr::SETUP_MOVE_SIZE, ((end - setup) as u16).to_le_bytes());
    }

    /// Where the initrd is; the upper halves are not in the setup header.
    pub fn set_initrd(&mut self, at: u64, len: u64) {
        self.put32(hdr::RAMDISK_IMAGE, at);
        self.put32(hdr::RAMDISK_SIZE, len);
    }

    /// The setup code with the header filled in.
    pub fn setup(&self, image: &Image<'_>) -> Vec<u8> {
        let mut setup = image.setup.to_vec();
        let header = image.header();
        setup[header.clone()].copy_from_slice(&self.0[header]);
        if image.version < 0x202 {
            let words = params::OLD_CMDLINE_MAGIC..params::OLD_CMDLINE_OFFSET + 2;
            setup[words.clone()].copy_from_slice(&self.0[words]);
        }
        setup
    }
}

/// Loads a Linux kernel.
pub fn load(mem: &dyn GuestMemory, tables: &Tables, req: &LoadRequest<'_>) -> Result<Entry, Reason> {
    let image = Image::parse(req.kernel)?;
    let protocol = image.protocol(req)?;
    image.check_cmdline(req.cmdline)?;
    let mut places = Places::new(&tables.e820);
    let setup_at = match protocol {
        BootProtocol::Linux16 => Some(image.place_setup(&mut places)?),
        _ => None,
    };
    let payload_at = image.place_payload(mem, &mut places)?;
    let cmdline_at = match setup_at {
        Some(s) if image.version < 0x202 => s.cmdline,
        _ => places.low("the command line", req.cmdline.len() as u64 + 1, 16)?,
    };
    if let Some(s) = setup_at.filter(|_| image.version < 0x202)
        && req.cmdline.len() as u64 >= s.end - s.cmdline
    {
        return Err(Reason::CmdlineTooLong { len: req.cmdline.len(), max: (s.end - s.cmdline - 1) as usize });
    }
    mem.write(cmdline_at, req.cmdline.as_bytes());
    mem.write(cmdline_at + req.cmdline.len() as u64, &[0]);

    let mut p = image.filled_in(LOADER_UNDEFINED, req.cmdline);
    if image.loaded_high() {
        p.put32(hdr::CODE32_START, payload_at);
    }
    let setup = setup_at.map_or((0, 0), |s| (s.base, s.end));
    p.set_cmdline(&image, setup.0, cmdline_at, setup.1);
    if let Some(initrd) = req.one_initrd()? {
        let limit = mem_option(req.cmdline).unwrap_or(u64::MAX);
        let at = image.place_initrd(mem, &mut places, initrd, protocol, limit)?;
        let len = initrd.len() as u64;
        p.set_initrd(at, len);
        if protocol == BootProtocol::Linux64 {
            p.put32(params::EXT_RAMDISK_IMAGE, at >> 32);
            p.put32(params::EXT_RAMDISK_SIZE, len >> 32);
        }
    }

    if let Some(seed) = req.rng_seed
        && image.version >= 0x209
    {
        // struct setup_data: next, type, length, data.
        let mut data = [0; 48];
        data[8..12].copy_from_slice(&SETUP_RNG_SEED.to_le_bytes());
        data[12..16].copy_from_slice(&(seed.len() as u32).to_le_bytes());
        data[16..].copy_from_slice(&seed);
        let at = places.low("the kernel's random seed", data.len() as u64, 16)?;
        mem.write(at, &data);
        p.put(hdr::SETUP_DATA, at.to_le_bytes());
    }
    if let Some(s) = setup_at {
        p.set_heap(&image, s.heap_end - 0x200);
        mem.write(s.base, &p.setup(&image));
        let segment = (s.base >> 4) as u16;
        return Ok(Entry::real(segment + 0x20, 0, segment, s.heap_end));
    }
    describe_machine(&mut p, tables, req.vga_text);
    let params_at = places.low("boot_params", params::SIZE as u64, 0x1000)?;
    mem.write(params_at, &p.0);
    let mut entry = match protocol {
        BootProtocol::Linux64 => Entry::long64(mem, &mut places, payload_at + 0x200)?,
        _ => Entry::linux32(mem, &mut places, payload_at as u32)?,
    };
    entry.gpr[reg::RSI] = params_at;
    Ok(entry)
}

/// What the setup code would have asked the BIOS: memory, ACPI, video.
fn describe_machine(p: &mut Params, tables: &Tables, vga_text: bool) {
    p.put(params::ACPI_RSDP_ADDR, tables.rsdp.unwrap_or(0).to_le_bytes());
    let upper_k = tables.e820.upper_memory() >> 10;
    p.put32(params::ALT_MEM_K, upper_k);
    p.put(params::EXT_MEM_K, (upper_k.min(0xfc00) as u16).to_le_bytes());
    let entries = &tables.e820.entries()[..tables.e820.entries().len().min(params::E820_MAX)];
    p.0[params::E820_ENTRIES] = entries.len() as u8;
    for (i, e) in entries.iter().enumerate() {
        let at = params::E820_TABLE + i * 20;
        p.put(at, e.base.to_le_bytes());
        p.put(at + 8, e.len.to_le_bytes());
        p.put32(at + 16, e.kind as u64);
    }
    // Without a VGA screen_info stays zero: the kernel then takes its dummy console.
    if vga_text {
        p.put(params::ORIG_VIDEO_PAGE, [0, 0]);
        p.0[params::ORIG_VIDEO_MODE] = 3;
        p.0[params::ORIG_VIDEO_COLS] = 80;
        p.put(params::ORIG_VIDEO_EGA_BX, 3u16.to_le_bytes());
        p.0[params::ORIG_VIDEO_LINES] = 25;
        p.0[params::ORIG_VIDEO_ISVGA] = 1;
        p.put(params::ORIG_VIDEO_POINTS, 16u16.to_le_bytes());
    }
}

/// Where the setup code, its heap and stack, and an old kernel's command line stand.
#[derive(Clone, Copy)]
struct SetupPlace {
    base: u64,
    /// End of heap and stack, from `base`.
    heap_end: u16,
    /// The command line of protocols before 2.02.
    cmdline: u64,
    end: u64,
}

impl Image<'_> {
    /// Takes conventional memory for the real-mode code: 64 KiB from 0x10000, or from 0x90000 for kernels
    /// that must be there.
    fn place_setup(&self, places: &mut Places) -> Result<SetupPlace, Reason> {
        let fixed = self.version < 0x202 || !self.loaded_high();
        let place = if fixed {
            SetupPlace { base: 0x9_0000, heap_end: 0x9800, cmdline: 0x9_9800, end: LOW_END.min(0x9_a000) }
        } else {
            SetupPlace { base: 0x1_0000, heap_end: 0xe000, cmdline: 0x2_0000, end: 0x2_0000 }
        };
        if self.setup.len() as u64 > u64::from(place.heap_end) - MIN_STACK {
            let why = format!("{} of setup code leave no room for its stack", Size(self.setup.len() as u64));
            return Err(Reason::bad("Linux setup header", why));
        }
        places.claim_for("the kernel's setup code", place.base, place.end - place.base)?;
        Ok(place)
    }
}

/// The value of the last `key=` word of a command line.
fn option<'a>(cmdline: &'a str, key: &str) -> Option<&'a str> {
    cmdline.split_ascii_whitespace().filter_map(|w| w.strip_prefix(key)).next_back()
}

/// `vga=`, which the boot loader is meant to interpret.
fn vga_mode(cmdline: &str) -> Option<u16> {
    match option(cmdline, "vga=")? {
        "normal" => Some(0xffff),
        "ext" => Some(0xfffe),
        "ask" => Some(0xfffd),
        n => match n.strip_prefix("0x") {
            Some(hex) => u16::from_str_radix(hex, 16).ok(),
            None => n.parse().ok(),
        },
    }
}

/// `mem=`, above which the kernel will not see an initrd.
pub(crate) fn mem_option(cmdline: &str) -> Option<u64> {
    let value = option(cmdline, "mem=")?;
    let (digits, shift) = match value.as_bytes().last()?.to_ascii_lowercase() {
        b'k' => (&value[..value.len() - 1], 10),
        b'm' => (&value[..value.len() - 1], 20),
        b'g' => (&value[..value.len() - 1], 30),
        _ => (value, 0),
    };
    let n: u64 = match digits.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16).ok()?,
        None => digits.parse().ok()?,
    };
    n.checked_mul(1 << shift)
}

#[cfg(test)]
#[path = "bzimage_tests.rs"]
mod tests;
