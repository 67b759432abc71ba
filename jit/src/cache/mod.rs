//! Compiled regions kept on disk.
//!
//! ```text
//!   DIR/lock                     taken by whoever merges or removes packs
//!   DIR/KEY-CONTENTS.pack      regions of one key (16 hexadecimal digits each), named after their contents
//!   DIR/tmp-PID-N                a pack that is being written
//! ```
//!
//! * A *cache key* is a hash of everything that code depends on but the guest's bytes and mode: this very build of the
//!   program, the host's CPU, the guest's CPU model, how much is optimised; and, unless guests are to share, the image
//!   that the guest is booted from. It is the key of all
//!   checksums, so what was written under another is not taken even under this one's name.
//! * A *pack* is never changed. It is written under another name and renamed; packs are merged into a new
//!   one, and the old ones are removed. So a reader needs no lock: what it has mapped stays as it was.
//! * Of a pack its index is read and checked when it is opened. Regions are mapped, and looked at when code
//!   is looked for; a region's checksum (BLAKE3) is compared over a private copy, and the copy is what is
//!   executed.
//! * What is executed must come from this user: folder and files belong to the effective user, who alone may
//!   read or write them, and files are plain ones with one name in that very folder; else they are not looked
//!   at. The checksums are against damage and mistakes: they are no help against somebody who can write files
//!   as this user, as such a one could as well replace the program.
//! * One key takes no more than its share of the limit: beyond that its own regions go that have not been used for
//!   longest. When all packs together take more than the limit, those of the key that has not been used for longest
//!   go first. So what a guest runs, however much of it, leaves the others at least the rest.
//!
//! A file cut short by somebody else while it is mapped would end the process at the next access (SIGBUS).
//! Mynah itself never does that, and looks at the length before each access.
//!
//! Where the host cannot tell so of a file in the same way (Windows), nothing is kept, and who asks for it is told.
#[cfg(unix)]
mod disk;
#[cfg(not(unix))]
#[path = "none.rs"]
mod disk;
pub(crate) mod key;
pub(crate) mod pack;
pub mod private;
pub(crate) mod store;

pub(crate) use disk::Cache;
pub use disk::Folder;
use std::sync::atomic::AtomicU64;

/// Bytes that packs may take together unless told otherwise.
pub const LIMIT: u64 = 256 << 20;
/// One image's share of that, if they do not share all: one part of so many.
pub(crate) const SHARES: u64 = 4;

/// What has been done.
#[derive(Default)]
pub(crate) struct Counters {
    /// Regions found.
    pub hits: AtomicU64,
    /// Looked for and not found.
    pub misses: AtomicU64,
    /// Bytes of code found.
    pub read: AtomicU64,
    /// Regions whose checksum was wrong.
    pub damaged: AtomicU64,
    /// Packs that were not taken.
    pub refused: AtomicU64,
    /// Regions and bytes written.
    pub written: (AtomicU64, AtomicU64),
}
