//! Compressed clusters: deflate with a window of 4 KiB and no header, or a Zstandard frame.
use super::header::Compression;
use flate2::{Compress, Decompress, FlushCompress, FlushDecompress, Status};
use ruzstd::encoding::{CompressionLevel, compress_to_vec};
use std::io::Read;

/// log2 of the window: other programs have no larger one for qcow2.
const WINDOW_BITS: u8 = 12;

/// Fills `out` with what `packed` holds; what follows in `packed` is not looked at.
///
/// # Errors
/// It holds no such data, or fewer.
pub fn unpack(how: Compression, packed: &[u8], out: &mut [u8]) -> Result<(), String> {
    match how {
        Compression::Zlib => {
            // The widest window reads all, also what others have written.
            let mut inflate = Decompress::new(false);
            match inflate.decompress(packed, out, FlushDecompress::Finish) {
                // The room is full before the end's mark is read.
                Ok(Status::StreamEnd | Status::BufError | Status::Ok)
                    if inflate.total_out() == out.len() as u64 =>
                {
                    Ok(())
                }
                Ok(_) => Err(format!("{} bytes instead of {}", inflate.total_out(), out.len())),
                Err(e) => Err(e.to_string()),
            }
        }
        Compression::Zstd => {
            let mut source = packed;
            let mut decoder =
                ruzstd::decoding::StreamingDecoder::new(&mut source).map_err(|e| e.to_string())?;
            decoder.read_exact(out).map_err(|e| e.to_string())
        }
    }
}

/// Compresses `data`, or `None` if that does not make it smaller.
pub fn pack(how: Compression, data: &[u8]) -> Option<Vec<u8>> {
    match how {
        Compression::Zlib => {
            let mut deflate =
                Compress::new_with_window_bits(flate2::Compression::default(), false, WINDOW_BITS);
            let mut out = vec![0; data.len()];
            match deflate.compress(data, &mut out, FlushCompress::Finish) {
                Ok(Status::StreamEnd) if deflate.total_out() < data.len() as u64 => {
                    out.truncate(deflate.total_out() as usize);
                    Some(out)
                }
                _ => None,
            }
        }
        Compression::Zstd => {
            Some(compress_to_vec(data, CompressionLevel::Fastest)).filter(|out| out.len() < data.len())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Rng;

    #[test]
    fn what_was_packed_comes_out_and_noise_is_left_alone() {
        for how in [Compression::Zlib, Compression::Zstd] {
            let mut rng = Rng(1);
            let noise: Vec<u8> = (0..65_536).map(|_| rng.next() as u8).collect();
            assert_eq!(pack(how, &noise), None);
            let text: Vec<u8> =
                (0..65_536u32).flat_map(|n| (n / 9).to_string().into_bytes()).take(65_536).collect();
            let mut packed = pack(how, &text).expect("smaller");
            packed.extend([0xaa; 700]);
            let mut out = vec![0; 65_536];
            unpack(how, &packed, &mut out).unwrap();
            assert!(out == text);
            let mut more = vec![0; 65_537];
            assert!(unpack(how, &packed[..packed.len() / 2], &mut out).is_err());
            packed.truncate(packed.len() - 700);
            assert!(unpack(how, &packed, &mut more).is_err());
        }
    }
}
