//! Disk images, and the drives that devices see of them.
//!
//! ```text
//!   IDE, virtio-blk, ...  --Request-->  Drive  --worker threads-->  Image: raw, qcow2, ... --> a file of the host
//!                         <--Done-----
//! ```
//!
//! An [`Image`] is a row of bytes that is read and written by offset, whatever the file's format; its calls wait for
//! the host. A [`Drive`] is what a device has of it: requests are queued, carried out by threads of the drive's own,
//! and their ends are told, so that neither a vCPU nor the event loop ever waits for a disk. What becomes of errors
//! (`werror=`, `rerror=`), of media that are changed, and of requests under way when the machine is paused is the
//! drive's concern: a device gets a result.
mod blocks;
mod crc32c;
mod create;
mod differencing;
mod drive;
mod host;
mod image;
mod lock;
#[cfg(test)]
mod losses;
mod memory;
mod open;
pub mod ops;
mod probe;
pub mod qcow2;
mod raw;
#[cfg(target_os = "linux")]
mod ring;
mod storage;
#[cfg(test)]
mod testing;
mod throttle;
mod vdi;
mod vhd;
mod vhdx;
mod vmdk;

pub use create::{FormatOption, create, format_options, qcow2_options};
pub use drive::{
    Aio, Counts, DetectZeroes, Drive, DriveError, Locked, MediumWatcher, OnError, Options, Reply, Request,
    Stopper,
};
pub use host::HostFile;
pub use image::{CheckReport, Detail, Details, Extent, Image, Snapshot};
pub use lock::{Use, lock};
pub use memory::Memory;
pub use open::{
    Backing, Cache, FORMATS, MAX_CHAIN, OpenError, OpenOptions, open, open_file, overlay, probe_format,
    resolve,
};
pub use raw::Raw;
pub use storage::Storage;
pub use throttle::{Limits, Rate, ThrottleGroup};
