//! Takes the ELF kernel out of a bzImage.
//!
//! A bzImage is a setup part and a small program that unpacks the payload after it; the payload is the ELF kernel,
//! compressed, and the setup header (protocol 2.08 and later) says where it is and how long. An ELF kernel can be
//! started by PVH, which needs no decompressor. Not handled: bzip2 and LZO payloads, which Debian's kernels do not
//! have.
//!
//! Source: Linux, Documentation/arch/x86/boot.rst ("payload_offset", "payload_length").

use std::io::Read;

/// Why there is no ELF kernel to be had.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The signature of the setup header is missing.
    #[error("this is no bzImage: it has no Linux setup header")]
    NotBzImage,
    /// The setup header's protocol is older than the fields needed.
    #[error("its boot protocol {0}.{1:02} is older than 2.08, and does not say where the kernel is")]
    OldProtocol(u8, u8),
    /// The image ends before its payload does.
    #[error("the image is truncated: its kernel ends at byte {end} of {size}")]
    Truncated {
        /// Where the payload ends.
        end: u64,
        /// The image's size.
        size: u64,
    },
    /// The payload's compression.
    #[error("its kernel is compressed with {0}, which is not supported")]
    Compression(&'static str),
    /// The payload cannot be decompressed.
    #[error("its kernel cannot be decompressed: {0}")]
    Corrupt(std::io::Error),
    /// What comes out is something else.
    #[error("what it holds is no ELF file")]
    NotElf,
    /// More than any kernel holds comes out.
    #[error("its kernel is larger than 1 GiB")]
    TooLarge,
}

/// More than any kernel: a damaged image shall not fill the host's memory.
const MAX_KERNEL: u64 = 1 << 30;

/// The ELF kernel in `image`.
pub fn payload(image: &[u8]) -> Result<Vec<u8>, Error> {
    let packed = packed(image)?;
    let elf = if packed.starts_with(b"\x7fELF") { packed.to_vec() } else { unpack(packed)? };
    if !elf.starts_with(b"\x7fELF") {
        return Err(Error::NotElf);
    }
    Ok(elf)
}

/// The payload as it lies in the image.
fn packed(image: &[u8]) -> Result<&[u8], Error> {
    // setup_sects at 1F1h, "HdrS" at 202h, version at 206h, payload_offset at 248h, payload_length at 24Ch.
    let word = |at: usize| Some(u32::from_le_bytes(image.get(at..at + 4)?.try_into().ok()?));
    if image.get(0x202..0x206) != Some(b"HdrS") {
        return Err(Error::NotBzImage);
    }
    let (Some(&sectors), Some(&minor), Some(&major)) = (image.get(0x1F1), image.get(0x206), image.get(0x207))
    else {
        return Err(Error::NotBzImage);
    };
    if (major, minor) < (2, 8) {
        return Err(Error::OldProtocol(major, minor));
    }
    let (Some(offset), Some(length)) = (word(0x248), word(0x24C)) else { return Err(Error::NotBzImage) };
    // A count of 0 means 4; the boot sector comes on top.
    let sectors = if sectors == 0 { 4 } else { u64::from(sectors) };
    let start = (sectors + 1) * 512 + u64::from(offset);
    let end = start + u64::from(length);
    image.get(start as usize..end as usize).ok_or(Error::Truncated { end, size: image.len() as u64 })
}

/// Decompresses; the size that the build appends after the compressed bytes is left unread.
fn unpack(packed: &[u8]) -> Result<Vec<u8>, Error> {
    if packed.starts_with(b"\xfd7zXZ\0") {
        unpack_xz(packed)
    } else if packed.starts_with(&[0x1F, 0x8B]) {
        read(flate2::read::GzDecoder::new(packed))
    } else if packed.starts_with(&[0x28, 0xB5, 0x2F, 0xFD]) {
        let decoder = ruzstd::decoding::StreamingDecoder::new(packed);
        read(decoder.map_err(|e| Error::Corrupt(std::io::Error::other(e)))?)
    } else if packed.starts_with(&[0x5D, 0, 0]) {
        unpack_lzma(packed)
    } else if packed.starts_with(b"BZh") {
        Err(Error::Compression("bzip2"))
    } else if let Some(blocks) = packed.strip_prefix(&[0x02, 0x21, 0x4C, 0x18]) {
        unpack_lz4(blocks)
    } else if packed.starts_with(&[0x89, b'L', b'Z', b'O']) {
        Err(Error::Compression("LZO"))
    } else {
        Err(Error::Compression("something unknown"))
    }
}

#[cfg(not(target_vendor = "apple"))]
fn unpack_xz(packed: &[u8]) -> Result<Vec<u8>, Error> {
    read(liblzma::read::XzDecoder::new(packed))
}

#[cfg(not(target_vendor = "apple"))]
fn unpack_lzma(packed: &[u8]) -> Result<Vec<u8>, Error> {
    let stream = liblzma::stream::Stream::new_lzma_decoder(u64::MAX);
    let stream = stream.map_err(|e| Error::Corrupt(std::io::Error::other(e)))?;
    read(liblzma::read::XzDecoder::new_stream(packed, stream))
}

#[cfg(target_vendor = "apple")]
fn unpack_xz(packed: &[u8]) -> Result<Vec<u8>, Error> {
    read(lzma_rust2::XzReader::new(packed, false))
}

#[cfg(target_vendor = "apple")]
fn unpack_lzma(packed: &[u8]) -> Result<Vec<u8>, Error> {
    read(lzma_rust2::LzmaReader::new_mem_limit(packed, u32::MAX, None).map_err(Error::Corrupt)?)
}

/// LZ4's legacy frame after its magic: blocks of up to 8 MiB, each after its compressed size
/// (LZ4 Frame Format Description, "Legacy frame"). What is too short for a block is the build's own size field.
fn unpack_lz4(mut blocks: &[u8]) -> Result<Vec<u8>, Error> {
    const BLOCK: usize = 8 << 20;
    let mut out = Vec::new();
    while let Some((size, rest)) = blocks.split_first_chunk::<4>()
        && !rest.is_empty()
    {
        let size = u32::from_le_bytes(*size) as usize;
        let block = rest.get(..size).ok_or_else(|| {
            Error::Corrupt(std::io::Error::new(std::io::ErrorKind::UnexpectedEof, "an LZ4 block is cut off"))
        })?;
        let block = lz4_flex::block::decompress(block, BLOCK);
        out.extend(block.map_err(|e| Error::Corrupt(std::io::Error::other(e)))?);
        if out.len() as u64 > MAX_KERNEL {
            return Err(Error::TooLarge);
        }
        blocks = &rest[size..];
    }
    Ok(out)
}

fn read(from: impl Read) -> Result<Vec<u8>, Error> {
    let mut out = Vec::new();
    from.take(MAX_KERNEL + 1).read_to_end(&mut out).map_err(Error::Corrupt)?;
    if out.len() as u64 > MAX_KERNEL {
        return Err(Error::TooLarge);
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    /// A bzImage of one setup sector with `packed` as its payload, 16 bytes into the protected-mode part.
    fn image(packed: &[u8]) -> Vec<u8> {
        let mut image = vec![0; 2 * 512 + 16];
        image[0x1F1] = 1;
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x206..0x208].copy_from_slice(&[0x0F, 2]);
        image[0x248..0x24C].copy_from_slice(&16u32.to_le_bytes());
        image[0x24C..0x250].copy_from_slice(&(packed.len() as u32).to_le_bytes());
        image.extend_from_slice(packed);
        image
    }

    fn elf() -> Vec<u8> {
        let mut elf = b"\x7fELF".to_vec();
        elf.extend((0..100_000u32).flat_map(|n| (n / 7).to_le_bytes()));
        elf
    }

    #[test]
    fn kernels_come_out_of_every_compression_debian_has_used() {
        let with_size = |mut packed: Vec<u8>| {
            packed.extend_from_slice(&(elf().len() as u32).to_le_bytes());
            packed
        };
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(&elf()).unwrap();
        assert_eq!(payload(&image(&gzip.finish().unwrap())).unwrap(), elf());
        #[cfg(not(target_vendor = "apple"))]
        {
            let mut xz = liblzma::write::XzEncoder::new(Vec::new(), 1);
            xz.write_all(&elf()).unwrap();
            assert_eq!(payload(&image(&with_size(xz.finish().unwrap()))).unwrap(), elf());
        }
        let zstd =
            ruzstd::encoding::compress_to_vec(elf().as_slice(), ruzstd::encoding::CompressionLevel::Fastest);
        assert_eq!(payload(&image(&with_size(zstd))).unwrap(), elf());
        let mut lz4 = vec![0x02, 0x21, 0x4C, 0x18];
        for block in elf().chunks(300_000) {
            let block = lz4_flex::block::compress(block);
            lz4.extend_from_slice(&(block.len() as u32).to_le_bytes());
            lz4.extend_from_slice(&block);
        }
        assert_eq!(payload(&image(&with_size(lz4.clone()))).unwrap(), elf());
        lz4.truncate(lz4.len() - 10);
        assert!(matches!(payload(&image(&lz4)), Err(Error::Corrupt(_))));
        assert_eq!(payload(&image(&elf())).unwrap(), elf());
    }

    #[test]
    fn what_is_no_kernel_is_refused() {
        assert!(matches!(payload(b""), Err(Error::NotBzImage)));
        assert!(matches!(payload(&[0; 4096]), Err(Error::NotBzImage)));
        let mut old = image(&elf());
        old[0x206] = 7;
        assert!(matches!(payload(&old), Err(Error::OldProtocol(2, 7))));
        let mut short = image(&elf());
        short.truncate(5000);
        assert!(matches!(payload(&short), Err(Error::Truncated { .. })));
        short.truncate(0x249);
        assert!(matches!(payload(&short), Err(Error::NotBzImage)));
        assert!(matches!(payload(&image(b"BZh91AY")), Err(Error::Compression("bzip2"))));
        assert!(matches!(payload(&image(b"\xfd7zXZ\0garbage")), Err(Error::Corrupt(_))));
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(b"not a kernel").unwrap();
        assert!(matches!(payload(&image(&gzip.finish().unwrap())), Err(Error::NotElf)));
    }
}
