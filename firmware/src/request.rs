//! What is to be booted: the kernel's file, and what it gets.
use crate::error::Reason;
use crate::mem::Fields;

/// A file given to the guest beside its kernel.
#[derive(Clone, Copy, Debug)]
pub struct Module<'a> {
    /// The file name and its arguments, as they stand between the commas of `-initrd`.
    pub command: &'a str,
    /// The file's content.
    pub data: &'a [u8],
}

/// Which protocol enters the kernel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BootProtocol {
    /// The best one that both the kernel and the CPU know.
    #[default]
    Auto,
    /// Linux's real-mode setup code (needs BIOS services).
    Linux16,
    /// Linux's 32-bit entry.
    Linux32,
    /// Linux's 64-bit entry.
    Linux64,
    /// PVH: an ELF note names a 32-bit entry.
    Pvh,
    /// Multiboot 1.
    Multiboot1,
    /// Multiboot 2.
    Multiboot2,
}

/// What to boot.
#[derive(Clone, Debug)]
pub struct LoadRequest<'a> {
    /// The kernel file.
    pub kernel: &'a [u8],
    /// Its name, for messages and for multiboot's command line.
    pub kernel_name: &'a str,
    /// The initial RAM disk of Linux and PVH kernels; for multiboot, a single module if `modules` is empty.
    pub initrd: Option<&'a [u8]>,
    /// Modules of multiboot kernels.
    pub modules: &'a [Module<'a>],
    /// The command line.
    pub cmdline: &'a str,
    /// Whether the CPU model has long mode.
    pub cpu_is_64bit: bool,
    /// Which protocol to use.
    pub protocol: BootProtocol,
    /// Whether INT 10h, 13h, 15h and 16h are there for a kernel that starts in real mode.
    pub bios_services: bool,
    /// A seed for the kernel's random numbers, which it wipes when it has used it.
    pub rng_seed: Option<[u8; 32]>,
    /// Whether there is a VGA in text mode 3 for the kernel to write to.
    pub vga_text: bool,
}

impl<'a> LoadRequest<'a> {
    /// A kernel alone, on a 64-bit CPU, without VGA or BIOS.
    pub fn new(kernel_name: &'a str, kernel: &'a [u8]) -> Self {
        LoadRequest {
            kernel,
            kernel_name,
            initrd: None,
            modules: &[],
            cmdline: "",
            cpu_is_64bit: true,
            protocol: BootProtocol::Auto,
            bios_services: false,
            rng_seed: None,
            vga_text: false,
        }
    }

    /// The one RAM disk of a protocol that knows no modules.
    pub(crate) fn one_initrd(&self) -> Result<Option<&'a [u8]>, Reason> {
        match (self.initrd, self.modules) {
            (initrd, []) => Ok(initrd.filter(|d| !d.is_empty())),
            (None, [one]) => Ok(Some(one.data).filter(|d| !d.is_empty())),
            (initrd, modules) => Err(Reason::OneInitrd(modules.len() + usize::from(initrd.is_some()))),
        }
    }
}

/// Whether `bytes` has `magic` at `offset`.
pub(crate) fn has(bytes: &[u8], offset: usize, magic: &[u8]) -> bool {
    bytes.bytes_at(offset, magic.len()) == Some(magic)
}
