//! Why a kernel cannot be booted, in words that name the file.
use std::fmt;

/// An amount of memory, for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size(pub u64);

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let n = self.0;
        match n {
            0..0x400 => write!(f, "{n} bytes"),
            0x400..0x10_0000 => write!(f, "{:.1} KiB", n as f64 / 1024.0),
            _ => write!(f, "{:.1} MiB", n as f64 / (1 << 20) as f64),
        }
    }
}

/// A kernel file that cannot be booted, and why.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{name} {reason}")]
pub struct LoadError {
    /// The file as the user called it.
    pub name: String,
    /// The reason.
    pub reason: Reason,
}

/// The reason, as the rest of a sentence that starts with the file's name.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Reason {
    /// No bytes.
    #[error("is empty")]
    Empty,
    /// The file ends before what its header promises.
    #[error("is truncated: its header describes {needed} bytes of {what}, the file has {present}")]
    Truncated {
        /// What is cut.
        what: &'static str,
        /// Bytes that there must be.
        needed: u64,
        /// Bytes that there are.
        present: u64,
    },
    /// A kernel for another architecture.
    #[error("is {what}; Mynah runs x86 guests")]
    OtherArchitecture {
        /// What it is, with its article.
        what: String,
    },
    /// Something recognisable that is no kernel.
    #[error("is {what}, which cannot be booted as a kernel: {advice}")]
    NotAKernel {
        /// What it is, with its article.
        what: &'static str,
        /// What to do instead.
        advice: &'static str,
    },
    /// Nothing known.
    #[error("is not a kernel that Mynah knows: it is no bzImage, ELF file or multiboot image")]
    Unknown,
    /// An ELF file that no boot protocol covers.
    #[error(
        "is an ELF file with neither a PVH note (XEN_ELFNOTE_PHYS32_ENTRY) nor a multiboot header; a Linux vmlinux needs CONFIG_PVH=y"
    )]
    NoEntryNote,
    /// The boot protocol that was asked for is not the file's.
    #[error("cannot be booted by the {wanted} protocol: {why}")]
    Protocol {
        /// The protocol asked for or needed.
        wanted: &'static str,
        /// What is missing.
        why: &'static str,
    },
    /// A header's fields make no sense.
    #[error("has a bad {what}: {why}")]
    BadHeader {
        /// Which structure.
        what: &'static str,
        /// What is wrong with it, with numbers.
        why: String,
    },
    /// A 64-bit kernel and a 32-bit CPU.
    #[error("is a 64-bit kernel, and the chosen CPU model has no long mode")]
    Needs64Bit,
    /// The real-mode entry needs INT services.
    #[error("starts in real mode and needs BIOS services, which a direct boot of it does not have")]
    NeedsBios,
    /// The kernel's place in memory is not free RAM.
    #[error(
        "needs RAM at {start:#x}-{end:#x} for {what}, which the guest does not have free (RAM below 4 GiB ends at {ram_end:#x})"
    )]
    NoRam {
        /// For what.
        what: String,
        /// First byte.
        start: u64,
        /// Last byte.
        end: u64,
        /// Where RAM ends.
        ram_end: u64,
    },
    /// An initrd or module finds no place.
    #[error(
        "cannot be booted: {what} of {size} does not fit; the largest free piece of RAM below {limit:#x} is {free}"
    )]
    DoesNotFit {
        /// What does not fit.
        what: String,
        /// Its size.
        size: Size,
        /// Where it must end.
        limit: u64,
        /// The room there is.
        free: Size,
    },
    /// A command line beyond the kernel's limit.
    #[error("takes a command line of at most {max} bytes, and {len} were given")]
    CmdlineTooLong {
        /// Bytes given.
        len: usize,
        /// Bytes allowed.
        max: usize,
    },
    /// More modules than the protocol knows.
    #[error("takes one initrd, and {0} were given")]
    OneInitrd(usize),
}

impl Reason {
    pub(crate) fn bad(what: &'static str, why: impl Into<String>) -> Reason {
        Reason::BadHeader { what, why: why.into() }
    }
}
