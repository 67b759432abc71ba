//! The password of VNC: a challenge of 16 bytes that the client encrypts with DES (RFC 6143, 7.2.2).
//!
//! Eight characters of it count, and each byte's bits are in reverse. It keeps honest people out, and no others.
use des::Des;
use des::cipher::{Block, BlockCipherEncrypt, KeyInit};
use std::io;

/// Bytes of a challenge.
pub const CHALLENGE: usize = 16;

/// A challenge that nobody has seen before.
///
/// # Errors
/// The host gives no random numbers.
pub fn challenge() -> io::Result<[u8; CHALLENGE]> {
    let mut bytes = [0; CHALLENGE];
    getrandom::fill(&mut bytes).map_err(|e| io::Error::other(e.to_string()))?;
    Ok(bytes)
}

/// What a client with this password answers.
pub fn response(password: &str, challenge: [u8; CHALLENGE]) -> [u8; CHALLENGE] {
    let mut key = [0; 8];
    for (k, p) in key.iter_mut().zip(password.bytes()) {
        *k = p.reverse_bits();
    }
    let cipher = Des::new(&key.into());
    let mut answer = challenge;
    for half in answer.chunks_exact_mut(8) {
        let mut block = Block::<Des>::default();
        block.copy_from_slice(half);
        cipher.encrypt_block(&mut block);
        half.copy_from_slice(&block);
    }
    answer
}

/// Whether two answers are the same, in a time that does not tell where they differ.
pub fn same(a: &[u8; CHALLENGE], b: &[u8; CHALLENGE]) -> bool {
    a.iter().zip(b).fold(0, |differ, (a, b)| differ | (a ^ b)) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn eight_characters_of_the_password_count() {
        let c = challenge().unwrap();
        assert_ne!(c, challenge().unwrap());
        assert_eq!(response("password", c), response("password and more", c));
        assert!(!same(&response("password", c), &response("passwore", c)));
        // DES of zeroes under the weak key of zeroes, as FIPS 46's tables have it.
        let zero = [0x8c, 0xa6, 0x4d, 0xe9, 0xc1, 0xb1, 0x23, 0xa7];
        assert_eq!(response("", [0; 16]), [zero, zero].concat()[..]);
    }
}
