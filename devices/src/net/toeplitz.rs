//! The hash of receive-side scaling, as Microsoft has defined it for all cards.

/// For each bit of `bytes` that is set, the 32 bits of the key that begin where the bit is; zeros are behind the key.
pub(crate) fn hash<'a>(key: &[u8], bytes: impl Iterator<Item = &'a u8>) -> u32 {
    let mut key = key.iter().copied().chain(std::iter::repeat(0));
    let mut window = (0..4).fold(0, |w, _| w << 8 | u64::from(key.next().unwrap_or(0)));
    let mut hash = 0;
    for byte in bytes {
        window = window << 8 | u64::from(key.next().unwrap_or(0));
        for bit in 0..8 {
            if byte >> (7 - bit) & 1 != 0 {
                hash ^= (window >> (8 - bit)) as u32;
            }
        }
    }
    hash
}
