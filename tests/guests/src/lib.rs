//! Guests for `mynah demo` and for tests.
//!
//! - Debian's kernels and busybox, unmodified, fetched once into a cache: [`store`], from the packages that [`apt`]
//!   gets;
//!   [`vmlinux`] takes the ELF kernel out of a bzImage.
//! - An initial RAM disk of a busybox and an `/init` script: [`ramdisk`], which [`cpio`] packs.
//! - A small one for a bare PC, which is always there: [`embedded`].
//! - What `mynah demo` boots of these: [`demo`].
//!
//! Nothing here knows the emulator: what comes of it is files and options for them.

pub mod apt;
pub mod cpio;
pub mod demo;
pub mod embedded;
pub mod ramdisk;
pub mod store;
pub mod vmlinux;

pub use ramdisk::{MOUNTS, initramfs};
pub use store::{Guest, Store, find, manifest};
