//! Splits port accesses of any width into bytes, for chips whose data bus is 8 bits wide.
use crate::bus::{read_bytes, write_bytes};

/// Reads `size` bytes (at most 4) from consecutive ports, the lowest port in the lowest byte.
pub(crate) fn read(offset: u16, size: u8, mut byte: impl FnMut(u16) -> u8) -> u32 {
    read_bytes(size, |i| byte(offset.wrapping_add(i)))
}

/// Writes the low `size` bytes (at most 4) of `value` to consecutive ports, the lowest byte first.
pub(crate) fn write(offset: u16, size: u8, value: u32, mut byte: impl FnMut(u16, u8)) {
    write_bytes(size, value, |i, b| byte(offset.wrapping_add(i), b));
}
