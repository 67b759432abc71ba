//! Pictures of a screen in files: PNG, and PPM as QEMU's `screendump` makes it.
use super::Surface;
use std::io::{self, Write};

/// Writes PPM: the binary kind (P6), 8 bits for each colour.
///
/// # Errors
/// `to` cannot be written.
pub fn ppm(surface: &Surface, to: &mut dyn Write) -> io::Result<()> {
    write!(to, "P6\n{} {}\n255\n", surface.width(), surface.height())?;
    to.write_all(&surface.rgb())
}

/// Writes PNG: 8 bits for each colour, no alpha.
///
/// # Errors
/// `to` cannot be written; the surface has no pixel.
pub fn png(surface: &Surface, to: &mut dyn Write) -> io::Result<()> {
    let side = |n: usize| u32::try_from(n).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput));
    let mut encoder = png::Encoder::new(to, side(surface.width())?, side(surface.height())?);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    encoder.set_compression(png::Compression::Fast);
    let mut writer = encoder.write_header().map_err(io::Error::other)?;
    writer.write_image_data(&surface.rgb()).map_err(io::Error::other)?;
    writer.finish().map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn surface() -> Surface {
        let mut s = Surface::new(3, 2);
        s.row_mut(0).copy_from_slice(&[0x00ff_0000, 0x0000_ff00, 0x0000_00ff]);
        s.row_mut(1).copy_from_slice(&[0x0012_3456, 0, 0x00ff_ffff]);
        s
    }

    #[test]
    fn ppm_has_a_head_and_three_bytes_for_each_pixel() {
        let mut file = Vec::new();
        ppm(&surface(), &mut file).unwrap();
        let pixels = [255, 0, 0, 0, 255, 0, 0, 0, 255, 0x12, 0x34, 0x56, 0, 0, 0, 255, 255, 255];
        assert_eq!(file, [b"P6\n3 2\n255\n".as_slice(), &pixels].concat());
    }

    #[test]
    fn png_gives_the_same_pixels_back() {
        let mut file = Vec::new();
        png(&surface(), &mut file).unwrap();
        let mut reader = png::Decoder::new(io::Cursor::new(&file)).read_info().unwrap();
        let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
        let info = reader.next_frame(&mut pixels).unwrap();
        assert_eq!((info.width, info.height, info.color_type), (3, 2, png::ColorType::Rgb));
        assert_eq!(pixels, surface().rgb());
        assert!(png(&Surface::default(), &mut Vec::new()).is_err());
    }
}
