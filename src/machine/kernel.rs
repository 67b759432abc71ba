//! Direct boot: reading the kernel's files, placing them in RAM with the firmware tables, and the CPU's first state.
use crate::config::{Config, Device};
use anyhow::{Context, bail};
use mynah_cpu::model::Dynamic;
use mynah_cpu::state::{Segment as CpuSegment, Table, gpr, seg};
use mynah_cpu::{Cpu, CpuModel};
use mynah_firmware::{Entry, Kind, LoadRequest, Module, Segment, build_tables, identify, load};
use mynah_mmu::PhysMemory;
use std::path::Path;
use std::sync::Arc;

/// What is to be booted: the files' contents, and what the tables say of the machine.
#[derive(Clone)]
pub struct Boot {
    name: String,
    kernel: Arc<Vec<u8>>,
    modules: Arc<Vec<(String, Vec<u8>)>>,
    initrd: bool,
    cmdline: String,
    tables: mynah_firmware::Config,
    long_mode: bool,
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

impl Boot {
    /// Reads the files that `cfg` names.
    pub fn read(cfg: &Config, model: &CpuModel) -> anyhow::Result<Self> {
        let Some(path) = &cfg.kernel else { bail!("no kernel was given (-kernel)") };
        let kernel = read_file("-kernel", path)?;
        let name = path.display().to_string();
        let kind = identify(&name, &kernel)?;
        let mut modules = Vec::new();
        let multiboot = matches!(kind, Kind::Multiboot1 | Kind::Multiboot2);
        if multiboot {
            for (file, command) in cfg.modules() {
                modules.push((command, read_file("-initrd", &file)?));
            }
        } else if let Some(initrd) = &cfg.initrd {
            modules.push((initrd.clone(), read_file("-initrd", Path::new(initrd))?));
        }
        let cpuid = |leaf: u32| leaf_of(model, leaf);
        let mut com_ports = [false; 4];
        for (n, s) in cfg.serials.iter().enumerate().take(4) {
            com_ports[n] = s.backend != crate::config::CharBackend::None;
        }
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
            com_ports,
            acpi: cfg.machine.acpi,
            hpet: cfg.machine.hpet,
            pvpanic: cfg.devices.iter().any(|d| matches!(d, Device::Pvpanic { .. })),
            uuid: cfg.uuid.unwrap_or([0; 16]),
            ..Default::default()
        };
        Ok(Self {
            name,
            kernel: Arc::new(kernel),
            modules: Arc::new(modules),
            initrd: !multiboot,
            cmdline: cfg.append.clone(),
            tables,
            long_mode: model.is_64bit(),
        })
    }

    /// Writes tables, kernel and initrd to RAM; the state in which the kernel starts.
    pub fn load(&self, memory: &Arc<PhysMemory>) -> anyhow::Result<Entry> {
        let tables = build_tables(&**memory, &self.tables)?;
        let modules: Vec<Module<'_>> = if self.initrd {
            Vec::new()
        } else {
            self.modules.iter().map(|(command, data)| Module { command, data }).collect()
        };
        let initrd = if self.initrd { self.modules.first().map(|(_, d)| d.as_slice()) } else { None };
        let mut request = LoadRequest::new(&self.name, &self.kernel);
        request.initrd = initrd;
        request.modules = &modules;
        request.cmdline = &self.cmdline;
        request.cpu_is_64bit = self.long_mode;
        Ok(load(&**memory, &tables, &request)?)
    }
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

/// Puts the CPU into the state that a boot protocol asks for.
pub fn enter(cpu: &mut Cpu, e: &Entry) {
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

/// The state in which firmware leaves the processors that do not boot: waiting for a start-up IPI, with memory types set.
pub fn park(cpu: &mut Cpu) {
    cpu.reset();
    set_mtrrs(cpu);
}

/// Memory types as firmware sets them: RAM is write-back, the legacy video window and the PCI hole are uncached (SDM volume 3A, 11.11).
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
