//! Splits port accesses of any width into bytes, for chips whose data bus is 8 bits wide.

/// Reads `size` bytes (at most 4) from consecutive ports, the lowest port in the lowest byte.
pub(crate) fn read(offset: u16, size: u8, mut byte: impl FnMut(u16) -> u8) -> u32 {
    (0..u16::from(size.min(4))).fold(0, |value, i| value | u32::from(byte(offset.wrapping_add(i))) << (8 * i))
}

/// Writes the low `size` bytes (at most 4) of `value` to consecutive ports, the lowest byte first.
pub(crate) fn write(offset: u16, size: u8, value: u32, mut byte: impl FnMut(u16, u8)) {
    for i in 0..u16::from(size.min(4)) {
        byte(offset.wrapping_add(i), (value >> (8 * i)) as u8);
    }
}
