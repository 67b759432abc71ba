//! What Identify tells (5.15): of the controller, and of its namespaces.
use super::features::{CRITICAL, WARNING};
use super::log::ERRORS;
use super::registers::VERSION;
use super::{NAMESPACES, Namespace, Options};

/// Bytes of each of them.
pub const LEN: usize = 4096;
/// The firmware's revision.
pub const FIRMWARE: &[u8; 8] = b"1.0     ";
/// Aborts that may be under way, less one.
const ABORTS: u8 = 3;

/// Puts text at `at`, with blanks behind it.
fn text(page: &mut [u8], at: usize, len: usize, text: &str) {
    page[at..at + len].fill(b' ');
    let n = text.len().min(len);
    page[at..at + n].copy_from_slice(&text.as_bytes()[..n]);
}

/// Identify Controller (figure 249).
pub fn controller(options: &Options) -> Vec<u8> {
    let mut page = vec![0; LEN];
    let vendor: u16 = if options.intel { 0x8086 } else { 0x1b36 };
    text(&mut page, 4, 20, &options.serial);
    text(&mut page, 24, 40, "QEMU NVMe Ctrl");
    page[64..72].copy_from_slice(FIRMWARE);
    let name = format!("nqn.2019-08.org.qemu:{}", options.serial);
    page[768..768 + name.len()].copy_from_slice(name.as_bytes());
    let mut put = |at: usize, bytes: &[u8]| page[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &vendor.to_le_bytes());
    put(2, &0x1af4_u16.to_le_bytes());
    // Arbitration bursts of 64; the organization.
    put(72, &[6, 0x00, 0x54, 0x52]);
    put(77, &[options.mdts]);
    put(80, &VERSION.to_le_bytes());
    // An I/O controller.
    put(111, &[1]);
    // Admin commands: Format NVM.
    put(256, &2_u16.to_le_bytes());
    // Slot 1 of firmware is read-only and the only one; log pages: effects, extended data.
    put(258, &[ABORTS, options.aerl, 1 << 1 | 1, 1 << 1 | 1 << 2, ERRORS as u8 - 1, 0]);
    put(266, &WARNING.to_le_bytes());
    put(268, &CRITICAL.to_le_bytes());
    // Entries of 64 and 16 bytes.
    put(512, &[0x66, 0x44]);
    put(516, &NAMESPACES.to_le_bytes());
    // Optional: compare, dataset management, write zeroes, timestamp, verify.
    put(520, &(1_u16 << 0 | 1 << 2 | 1 << 3 | 1 << 6 | 1 << 7).to_le_bytes());
    // A format is of one namespace. A volatile write cache, which can be flushed for all namespaces.
    put(524, &[0, 1 | 3 << 1]);
    // SGLs, aligned as they like.
    put(536, &1_u32.to_le_bytes());
    // The one power state: 25 W; microseconds of entry and exit.
    put(2048, &2500_u16.to_le_bytes());
    put(2052, &16_u32.to_le_bytes());
    put(2056, &4_u32.to_le_bytes());
    page
}

/// Identify Namespace (figure 247).
pub fn namespace(namespace: &Namespace) -> Vec<u8> {
    let mut page = vec![0; LEN];
    let mut put = |at: usize, bytes: &[u8]| page[at..at + bytes.len()].copy_from_slice(bytes);
    let blocks = namespace.blocks().to_le_bytes();
    // All of it is allocated, as far as is known.
    put(0, &blocks);
    put(8, &blocks);
    put(16, &blocks);
    // What Write Zeroes deallocates reads as zeros; what else is deallocated reads as it does.
    put(33, &[1 << 3]);
    put(99, &[namespace.drive.read_only().into()]);
    put(120, &namespace.eui64.to_be_bytes());
    // Format 0: no metadata.
    put(130, &[namespace.shift]);
    page
}

/// Active namespaces behind `after` (figure 245).
pub fn list(namespaces: &[Namespace], after: u32) -> Vec<u8> {
    let mut page: Vec<u8> =
        namespaces.iter().filter(|n| n.nsid > after).flat_map(|n| n.nsid.to_le_bytes()).collect();
    page.resize(LEN, 0);
    page
}

/// Namespace identification descriptors (figure 248).
pub fn descriptors(namespace: &Namespace) -> Vec<u8> {
    let mut page = Vec::new();
    if namespace.eui64 != 0 {
        page.extend([1, 8, 0, 0]);
        page.extend(namespace.eui64.to_be_bytes());
    }
    if namespace.uuid != [0; 16] {
        page.extend([3, 16, 0, 0]);
        page.extend(namespace.uuid);
    }
    page.resize(LEN, 0);
    page
}
