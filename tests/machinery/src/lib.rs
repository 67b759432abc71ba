//! A kit for tests of the processor's protected-mode machinery: gates, tasks, faults, paging, debug traps.
//!
//! ```text
//!   test: Guest (tables, programs) --image--> Multiboot 1 file --+--> Mynah's CPU in process, with each engine
//!                                                                +--> qemu-system-x86_64, if it is installed
//!   port 0E9h: records of the guest --log::decode--> text, compared with what the manual says
//! ```
//!
//! A test states the whole log that the Intel SDM demands; Mynah must write exactly it, four times: with the
//! interpreter by
//! [`mynah_cpu::Cpu::run`] and by [`mynah_cpu::Cpu::step`], with the translator compiling every block when it is first
//! met, and with the translator compiling regions of blocks met for the third time. QEMU must write it too; where it is
//! known to deviate from the manual the test gives QEMU's own text and the reason. Without QEMU the log is compared
//! with the manual only, and that is said on stderr.
//!
//! * [`layout`]: where everything lies in the guest, and descriptors. [`guest`]: building a guest. [`prog`]: its
//!   programs.
//! * [`paging`]: page tables in all four formats. [`stubs`]: what the guest runs on every exception. [`log`]: its
//!   records as text.
//! * [`machine`]: Mynah's CPU with RAM, a local APIC, port 0E9h and isa-debug-exit. [`qemu`]: the same image in QEMU.
//!
//! Missing on purpose: other processors, devices, firmware services.

pub mod guest;
pub mod layout;
pub mod log;
pub mod machine;
pub mod paging;
pub mod prog;
pub mod qemu;
pub mod stubs;

pub use guest::{Guest, Main};
pub use layout::*;
pub use paging::{Format, PageTables};
pub use prog::Prog;

/// Assembles instructions into a [`Prog`]: `asm!(p; mov eax, 1; ret)`.
#[macro_export]
macro_rules! asm {
    ($p:expr; $($name:ident $($arg:expr),*);* $(;)?) => {{
        #[allow(unused_imports)]
        use iced_x86::code_asm::*;
        $( $p.a.$name($($arg),*).expect(concat!("assembling ", stringify!($name))); )*
    }};
}
