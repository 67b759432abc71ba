//! What starts the guest: a kernel that is put into RAM with the firmware tables, under the built-in BIOS; or a
//! firmware image (`-bios`), which gets kernel and tables through fw_cfg. And the boot processor's first state.
use super::bios::BoardPlatform;
use super::board::{Board, Firmware};
use super::boards::common::boot_order_cells;
use super::drives::{cards_of_bios, of_bios};
use super::flash;
use crate::cli::build::find_firmware;
use crate::cli::size::show_size;
use crate::config::{CharBackend, Config, KernelEntry};
use anyhow::{Context, bail};
use mynah_cpu::model::leaves::Dynamic;
use mynah_cpu::state::{Segment as CpuSegment, Table, gpr, seg};
use mynah_cpu::{Cpu, CpuModel};
use mynah_devices::misc::debugcon;
use mynah_devices::misc::entropy::Asker;
use mynah_devices::misc::fw_cfg::{FwCfg, key};
use mynah_devices::serial::COM;
use mynah_firmware::bios::{BootConfig, set_up_pci};
use mynah_firmware::linuxboot::{Parts, ROM_FILE, option_rom};
use mynah_firmware::tables::Chipset;
use mynah_firmware::tables::{PM_BASE, VMGENID_ADDRESS_FILE, VMGENID_FILE, acpi_files};
use mynah_firmware::{
    Bios, BiosConfig, BootProtocol, Entry, Kind, LoadError, LoadRequest, Module, Reason, Segment,
    build_tables, identify, load,
};
use mynah_jit::tier::Image;
use mynah_mmu::{GuestRam, PhysMemory};
use parking_lot::Mutex;
use std::path::Path;
use std::sync::Arc;

/// A kernel and what goes with it: the files' contents.
#[derive(Clone)]
struct Kernel {
    name: String,
    kind: Kind,
    image: Arc<Vec<u8>>,
    modules: Arc<Vec<(String, Vec<u8>)>>,
    cmdline: String,
    entry: KernelEntry,
    /// There is a VGA, which the built-in BIOS has set to its text mode.
    vga: bool,
}

impl Kernel {
    fn multiboot(&self) -> bool {
        matches!(self.kind, Kind::Multiboot1 | Kind::Multiboot2)
    }

    /// Calls `f` with what is to be loaded.
    fn with_request<R>(&self, long_mode: bool, f: impl FnOnce(&LoadRequest<'_>) -> R) -> R {
        let modules: Vec<Module<'_>> = match self.multiboot() {
            true => self.modules.iter().map(|(command, data)| Module { command, data }).collect(),
            false => Vec::new(),
        };
        let initrd = if self.multiboot() { None } else { self.modules.first().map(|(_, d)| d.as_slice()) };
        let mut request = LoadRequest::new(&self.name, &self.image);
        request.initrd = initrd;
        request.modules = &modules;
        request.cmdline = &self.cmdline;
        request.cpu_is_64bit = long_mode;
        request.bios_services = true;
        request.vga_text = self.vga;
        request.protocol = match self.entry {
            KernelEntry::Auto => BootProtocol::Auto,
            KernelEntry::Real => BootProtocol::Linux16,
            KernelEntry::Protected => BootProtocol::Linux32,
            KernelEntry::Long => BootProtocol::Linux64,
        };
        f(&request)
    }
}

/// What is to be booted, and what the tables say of the machine.
#[derive(Clone)]
pub struct Boot {
    kernel: Option<Kernel>,
    firmware: Firmware,
    tables: mynah_firmware::Config,
    long_mode: bool,
    /// The images of drives, by the paths that they are known by.
    disks: Vec<Vec<u8>>,
    /// `-boot order=`, if another one holds for the first boot (`once=`).
    later_order: Option<String>,
}

fn read_file(option: &str, path: &Path) -> anyhow::Result<Vec<u8>> {
    let shown = path.display();
    let meta = std::fs::metadata(path).with_context(|| format!("{option} {shown}"))?;
    if meta.is_dir() {
        bail!("{option} {shown}: this is a directory, not a file");
    }
    let data = std::fs::read(path).with_context(|| format!("{option} {shown}"))?;
    if data.is_empty() {
        bail!("{option} {shown}: the file is empty");
    }
    Ok(data)
}

/// Reads the kernel that `cfg` names, and its modules.
fn read_kernel(cfg: &Config) -> anyhow::Result<Option<Kernel>> {
    let Some(path) = &cfg.kernel else { return Ok(None) };
    let image = read_file("-kernel", path)?;
    let name = path.display().to_string();
    let kind = identify(&name, &image).context("-kernel")?;
    let mut modules = Vec::new();
    if matches!(kind, Kind::Multiboot1 | Kind::Multiboot2) {
        for (file, command) in cfg.modules() {
            modules.push((command, read_file("-initrd", &file)?));
        }
    } else if let Some(initrd) = &cfg.initrd {
        modules.push((initrd.clone(), read_file("-initrd", Path::new(initrd))?));
    }
    Ok(Some(Kernel {
        name,
        kind,
        image: Arc::new(image),
        modules: Arc::new(modules),
        cmdline: match kind {
            Kind::Linux | Kind::Pvh => {
                format!("{}{}", cfg.append, (cfg.machine.board.command_line)(cfg))
            }
            _ => cfg.append.clone(),
        },
        entry: cfg.machine.kernel_entry,
        vga: has_vga(cfg),
    }))
}

fn has_vga(cfg: &Config) -> bool {
    cfg.devices.iter().any(|d| d.kind.name == "VGA")
}

/// Reads the firmware image that `cfg` names; without one, the built-in BIOS.
fn read_firmware(cfg: &Config) -> anyhow::Result<Firmware> {
    const UNIT: usize = 64 << 10;
    const MOST: usize = 16 << 20;
    if let Some(end) = flash::legacy_part(cfg)? {
        if cfg.bios.is_some() {
            crate::cli::say(
                &cfg.program,
                "-bios: the firmware is in flash (if=pflash), and this is not used",
            );
        }
        return Ok(Firmware::Image(Arc::new(end)));
    }
    let Some(name) = &cfg.bios else {
        let console = (cfg.nographic && com_ports(cfg)[0]).then_some(COM[0].0);
        let of_option = cfg.debugcons.iter().map(|_| debugcon::PORT);
        let of_device = cfg.devices.iter().filter(|d| d.kind.name == "isa-debugcon");
        let of_device = of_device.map(|d| d.values.port("iobase", debugcon::PORT));
        let debug_ports = of_option.chain(of_device).collect();
        return Ok(Firmware::BuiltIn(Arc::new(Mutex::new(Bios::new(BiosConfig {
            console,
            text_only: cfg.nographic && cfg.vnc.is_none(),
            debug_ports,
            boot: boot_config(cfg),
        })))));
    };
    let path = find_firmware(cfg, name);
    let image = read_file("-bios", &path)?;
    if image.len() % UNIT != 0 || image.len() > MOST {
        bail!(
            "-bios {}: a firmware image has a multiple of 64 KiB, up to 16 MiB; this one has {} bytes",
            path.display(),
            image.len()
        );
    }
    Ok(Firmware::Image(Arc::new(image)))
}

/// What the built-in BIOS boots, the first time.
fn boot_config(cfg: &Config) -> BootConfig {
    let first = if cfg.boot.once.is_empty() { &cfg.boot.order } else { &cfg.boot.once };
    BootConfig {
        order: BootConfig::classes(first),
        strict: cfg.boot.strict,
        menu: cfg.boot.menu,
        menu_time: cfg.boot.splash_time,
        reboot_timeout: cfg.boot.reboot_timeout,
        network: Vec::new(),
    }
}

/// Where PCI memory may be above RAM on a board with PCI Express: 32 GiB as on QEMU's, as far as the processor's
/// addresses reach.
fn pci_window(cfg: &Config, model: &CpuModel) -> Option<(u64, u64)> {
    const SIZE: u64 = 32 << 30;
    if cfg.machine.board.tables != Chipset::Q35 {
        return None;
    }
    let above = cfg.memory.size - (cfg.machine.board.below_4g)(cfg.memory.size);
    let first = ((4 << 30) + above).next_multiple_of(1 << 30);
    let end = (first + SIZE).min(1 << model.phys_bits());
    (first < end).then(|| (first, end - 1))
}

fn com_ports(cfg: &Config) -> [bool; 4] {
    let mut ports = [false; 4];
    for (port, s) in ports.iter_mut().zip(&cfg.serials) {
        *port = s.backend != CharBackend::None;
    }
    ports
}

impl Boot {
    /// Reads the files that `cfg` names.
    pub fn read(cfg: &Config, model: &CpuModel) -> anyhow::Result<Self> {
        let kernel = read_kernel(cfg)?;
        let firmware = read_firmware(cfg)?;
        if let (Firmware::Image(_), Some(k)) = (&firmware, &kernel)
            && k.kind != Kind::Linux
        {
            bail!(
                "-kernel {}: under a firmware image (-bios) only Linux kernels with setup code are supported yet; leave -bios out",
                k.name
            );
        }
        let cpuid = |leaf: u32| leaf_of(model, leaf);
        let tables = mynah_firmware::Config {
            apic_ids: (0..cfg.smp.cpus).map(|n| model.apic_id(n)).collect(),
            cpu: mynah_firmware::tables::CpuInfo {
                signature: model.signature(),
                features: cpuid(1)[3],
                vendor: vendor(cpuid(0)),
                name: brand(model),
                mhz: 2000,
                long_mode: model.is_64bit(),
            },
            com_ports: com_ports(cfg),
            acpi: cfg.machine.acpi,
            hpet: cfg.machine.chosen.switch("hpet"),
            pic: cfg.machine.chosen.switch("pic"),
            second_ioapic: (cfg.machine.board.has_second_ioapic)(&cfg.machine),
            chipset: cfg.machine.board.tables,
            product: cfg.machine.board.product,
            i8042: cfg.machine.board.pci,
            s3: cfg.machine.board.sleeps,
            s4: cfg.machine.board.sleeps,
            uuid: cfg.uuid.unwrap_or([0; 16]),
            pci_window_64: pci_window(cfg, model),
            ..Default::default()
        };
        let path = |file: &Path| std::fs::canonicalize(file).unwrap_or_else(|_| file.into());
        let files = cfg.drives.iter().filter_map(|d| d.file.as_deref());
        let disks = files.map(|file| path(file).into_os_string().into_encoded_bytes()).collect();
        let later_order = (!cfg.boot.once.is_empty()).then(|| cfg.boot.order.clone());
        Ok(Self { kernel, firmware, tables, long_mode: model.is_64bit(), disks, later_order })
    }

    /// What the guest is booted from, by contents: firmware, kernel, RAM disk or modules. The command line is not of
    /// it, so that one may be tried after another; guests that differ in nothing else are one to the kept code. Where
    /// there is no kernel disks are of it, by the paths of their images, as what is on them changes.
    pub fn image(&self) -> Image {
        let Boot { kernel, firmware, disks, .. } = self.clone();
        Image::new(move |add| {
            if let Firmware::Image(image) = &firmware {
                add("firmware", image);
            }
            if let Some(kernel) = &kernel {
                add("kernel", &kernel.image);
                kernel.modules.iter().for_each(|(_, contents)| add("module", contents));
            } else {
                disks.iter().for_each(|path| add("disk", path));
            }
        })
    }

    /// The machine was reset: what held for its first boot alone (`-boot once=`) does not any more.
    pub fn not_the_first(&self, board: &Board) {
        let Some(order) = &self.later_order else { return };
        match &self.firmware {
            Firmware::BuiltIn(bios) => bios.lock().set_boot_order(BootConfig::classes(order)),
            Firmware::Image(_) => {
                for (cell, value) in boot_order_cells(order) {
                    board.ports.write(0x70, 1, cell.into());
                    board.ports.write(0x71, 1, value.into());
                }
            }
        }
    }

    /// The machine's firmware.
    pub fn firmware(&self) -> Firmware {
        self.firmware.clone()
    }

    /// Tells the built-in BIOS of the machine's drives. Once.
    pub fn plug_drives(&self, cfg: &Config, board: &Board) {
        if let Firmware::BuiltIn(bios) = &self.firmware {
            for drive in of_bios(cfg, board) {
                bios.lock().add_drive(drive);
            }
            for (device, index) in cards_of_bios(cfg, board) {
                bios.lock().add_network(device, index);
            }
        }
    }

    /// What the tables say of this board.
    fn tables(&self, board: &Board) -> mynah_firmware::Config {
        mynah_firmware::Config { devices: board.devices.aml(), ..self.tables.clone() }
    }

    /// Brings the machine to where its boot processor starts. With a kernel under the built-in BIOS: tables, BIOS,
    /// kernel and initrd are in RAM, and the state is the one in which the kernel starts. With a firmware image it is
    /// the reset state (none).
    pub fn load(&self, board: &Board) -> anyhow::Result<Option<Entry>> {
        let Firmware::BuiltIn(bios) = &self.firmware else { return Ok(None) };
        let memory = &*board.memory;
        let tables = build_tables(memory, &self.tables(board)).context("-m, -smp")?;
        if let (Some(id), Some(at)) = (board.vmgenid.get(), tables.vmgenid) {
            id.placed(at);
        }
        let mut bios = bios.lock();
        bios.install(memory, &tables);
        let Some(kernel) = &self.kernel else {
            let mut pc = BoardPlatform::new(board);
            if board.what.pci {
                set_up_pci(&mut pc, memory.below_4g(), self.tables.pci_window_64);
            }
            bios.power_on(&mut pc);
            return Ok(Some(bios.boot_entry()));
        };
        let mut seed = [0; 32];
        board.entropy.fill(Asker::Boot, &mut seed);
        let entry = kernel
            .with_request(self.long_mode, |r| {
                load(memory, &tables, &LoadRequest { rng_seed: Some(seed), ..*r })
            })
            .map_err(|e| named(e, memory))?;
        bios.power_on(&mut BoardPlatform::new(board));
        board.chips.chipset.before_kernel(board);
        Ok(Some(entry))
    }

    /// Tells the built-in BIOS of the machine, as [`Boot::load`] does, and leaves the machine as it is: it was saved
    /// after that, and is to go on.
    pub fn describe(&self, board: &Board) -> anyhow::Result<()> {
        let Firmware::BuiltIn(bios) = &self.firmware else { return Ok(()) };
        // What goes to memory goes to some that is then given up.
        let size = board.memory.ram().size();
        let scratch = PhysMemory::new(GuestRam::new(size).context("-m")?, board.memory.below_4g());
        let tables = build_tables(&*scratch, &self.tables(board)).context("-m, -smp")?;
        bios.lock().install(&*scratch, &tables);
        Ok(())
    }

    /// The state in which the boot processor goes on when the machine has woken from S3: where the system said that it
    /// wakes; with a firmware image the reset state (none).
    pub fn resume(&self, board: &Board) -> Option<Entry> {
        let Firmware::BuiltIn(bios) = &self.firmware else { return None };
        Some(bios.lock().resume(&mut BoardPlatform::new(board)))
    }

    /// What a firmware image finds in fw_cfg: RAM, tables, boot order, and the kernel with the option ROM that starts
    /// it.
    pub fn fill(&self, cfg: &Config, fw_cfg: &FwCfg, board: &Board) -> anyhow::Result<()> {
        let Firmware::Image(_) = &self.firmware else { return Ok(()) };
        let memory = &board.memory;
        const IRQ0_OVERRIDE: u16 = 0x8002;
        fw_cfg.set_u16(key::NOGRAPHIC, u16::from(cfg.nographic));
        fw_cfg.set_u16(key::BOOT_MENU, u16::from(cfg.boot.menu));
        fw_cfg.set_u32(IRQ0_OVERRIDE, u32::from(self.tables.irq0_override));
        if let Some(uuid) = cfg.uuid {
            fw_cfg.set_item(key::UUID, uuid.to_vec());
        }
        let files =
            mynah_firmware::tables::firmware_files(&self.tables, memory.below_4g(), memory.above_4g());
        for (name, bytes) in files {
            fw_cfg.add_file(name, bytes)?;
        }
        // Firmware moves the power management registers before it reads the tables that say where they are.
        let (tables, chipset, below) = (self.tables(board), board.chips.chipset.clone(), memory.below_4g());
        fw_cfg.add_late_files(move || {
            let pm_base = chipset.pm_base().unwrap_or(PM_BASE);
            acpi_files(&mynah_firmware::Config { pm_base, ..tables.clone() }, below)
        })?;
        if let Some(id) = board.vmgenid.get().cloned() {
            fw_cfg.add_file(VMGENID_FILE, id.blob())?;
            let place = move |bytes: &[u8]| {
                id.placed(bytes.first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes)));
            };
            fw_cfg.add_writable_file(VMGENID_ADDRESS_FILE, vec![0; 8], place)?;
        }
        let number = |n: u32| n.to_le_bytes().to_vec();
        if cfg.nographic && com_ports(cfg)[0] {
            fw_cfg.add_file("etc/sercon-port", number(COM[0].0.into()))?;
        }
        if let Some(ms) = cfg.boot.splash_time {
            fw_cfg.add_file("etc/boot-menu-wait", number(ms))?;
        }
        if let Some(ms) = cfg.boot.reboot_timeout {
            fw_cfg.add_file("etc/boot-fail-wait", number(ms))?;
        }
        // SeaBIOS takes this for the ROM of the function with these numbers, and tells it which that is; by it the VGA
        // BIOS finds its linear frame buffer. (One in `vgaroms/` is not told, and answers with an address of old.)
        const VGA_ROM: &str = "vgabios-stdvga.bin";
        const VGA_ROM_OF: &str = "pci1234,1111.rom";
        if has_vga(cfg) {
            let path = find_firmware(cfg, Path::new(VGA_ROM));
            match std::fs::read(&path) {
                Ok(rom) => drop(fw_cfg.add_file(VGA_ROM_OF, rom)?),
                Err(e) => tracing::warn!("{}: {e}; the VGA has no ROM (Debian: seabios)", path.display()),
            }
        }
        let mut order = board.boot_paths.clone();
        if let Some(kernel) = &self.kernel {
            let parts = kernel
                .with_request(self.long_mode, |r| Parts::of(r, memory.below_4g()))
                .map_err(|e| named(e, memory))?;
            for (key, bytes) in parts.into_items() {
                fw_cfg.set_item(key, bytes);
            }
            fw_cfg.add_file(ROM_FILE, option_rom())?;
            order.insert(0, format!("/rom@{ROM_FILE}"));
        }
        if cfg.boot.strict {
            order.push("HALT".into());
        }
        if !order.is_empty() {
            let mut text = order.join("\n").into_bytes();
            text.push(0);
            fw_cfg.add_file("bootorder", text)?;
        }
        Ok(())
    }
}

/// Names the option that a kernel's trouble comes from, or that mends it.
fn named(error: LoadError, memory: &mynah_mmu::PhysMemory) -> anyhow::Error {
    let size = show_size(memory.below_4g() + memory.above_4g());
    let option = match &error.reason {
        Reason::NoRam { .. } | Reason::DoesNotFit { .. } => format!("-m {size} may be too little RAM"),
        Reason::CmdlineTooLong { .. } => "-append".into(),
        Reason::OneInitrd(_) => "-initrd".into(),
        _ => "-kernel".into(),
    };
    anyhow::Error::new(error).context(option)
}

fn leaf_of(model: &CpuModel, leaf: u32) -> [u32; 4] {
    model.cpuid(&Dynamic::default(), leaf, 0)
}

fn vendor(leaf0: [u32; 4]) -> String {
    let bytes: Vec<u8> = [leaf0[1], leaf0[3], leaf0[2]].iter().flat_map(|r| r.to_le_bytes()).collect();
    String::from_utf8_lossy(&bytes).into_owned()
}

fn brand(model: &CpuModel) -> String {
    let bytes: Vec<u8> =
        (0x8000_0002..=0x8000_0004).flat_map(|l| leaf_of(model, l)).flat_map(u32::to_le_bytes).collect();
    String::from_utf8_lossy(&bytes).trim_end_matches('\0').trim().to_owned()
}

/// Puts the CPU into the state that a boot protocol asks for; without one it stays in its reset state.
pub fn enter(cpu: &mut Cpu, entry: Option<&Entry>) {
    let Some(e) = entry else { return };
    let convert = |s: &Segment| CpuSegment {
        base: s.base,
        limit: s.limit,
        attr: u32::from(s.attributes),
        sel: s.selector,
    };
    let s = &mut cpu.state;
    s.gpr[..16].copy_from_slice(&e.gpr);
    s.gpr[gpr::RIP] = e.rip;
    s.set_rflags(e.rflags);
    s.seg[seg::CS] = convert(&e.cs);
    s.seg[seg::SS] = convert(&e.ss);
    for i in [seg::DS, seg::ES, seg::FS, seg::GS] {
        s.seg[i] = convert(&e.ds_es_fs_gs);
    }
    s.tr = convert(&e.tr);
    s.ldtr = convert(&e.ldtr);
    s.gdtr = Table { base: e.gdt.base, limit: e.gdt.limit };
    s.idtr = Table { base: e.idt.base, limit: e.idt.limit };
    s.cr0 = e.cr0;
    s.cr3 = e.cr3;
    s.cr4 = e.cr4;
    s.msr.efer = e.efer;
    s.cpl = 0;
    set_mtrrs(cpu);
    cpu.sync_all();
}

/// The state in which firmware leaves the processors that do not boot: waiting for a start-up IPI, with memory types
/// set.
pub fn park(cpu: &mut Cpu) {
    cpu.reset();
    set_mtrrs(cpu);
}

/// Memory types as firmware sets them: RAM is write-back, the legacy video window and the PCI hole are uncached (SDM
/// volume 3A, 11.11).
fn set_mtrrs(cpu: &mut Cpu) {
    const WRITE_BACK: u64 = 6;
    const ENABLE: u64 = 1 << 11 | 1 << 10;
    const WRITE_BACK_ALL: u64 = 0x0606_0606_0606_0606;
    let below = cpu.mem.below_4g();
    let mask = (1u64 << cpu.model.phys_bits()) - 1;
    let m = &mut cpu.state.msr;
    m.mtrr_def_type = ENABLE | WRITE_BACK;
    // 64K_00000, 16K_80000, then 16K_A0000 (video: uncached), then the BIOS area.
    m.mtrr_fixed = [WRITE_BACK_ALL; 11];
    m.mtrr_fixed[2] = 0;
    // One uncached range from the hole's start, 3 GiB or 3.5 GiB, or with less RAM from 2 GiB, up to 4 GiB.
    let hole: u64 = match below {
        b if b > 0xc000_0000 => 0xe000_0000,
        b if b > 0x8000_0000 => 0xc000_0000,
        _ => 0x8000_0000,
    };
    m.mtrr_var[0] = hole;
    m.mtrr_var[1] = !((1u64 << 32) - hole - 1) & mask | 1 << 11;
}
