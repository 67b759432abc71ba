//! What is done with whole images: copied, compared, moved onto what they stand on, put on something else.
use crate::image::{Extent, Image};
use std::io;
use std::sync::Arc;

/// Bytes that are read at once.
const CHUNK: u64 = 2 << 20;

/// Told now and then: bytes done, and bytes in all.
pub type Progress<'a> = &'a mut dyn FnMut(u64, u64);

/// What stands at a place of an image with all that it stands on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layer {
    /// Bytes that are alike.
    pub len: u64,
    /// Which image of the chain has it: 0 is the uppermost.
    pub depth: usize,
    /// That image really has it.
    pub present: bool,
    /// There are zeros.
    pub zero: bool,
    /// There are data.
    pub data: bool,
    /// Where it is in that image's file.
    pub offset: Option<u64>,
}

/// What stands at `at`, and which image of the chain has it.
///
/// # Errors
/// The image's.
pub fn layer(image: &dyn Image, at: u64) -> io::Result<Layer> {
    let left = image.size().saturating_sub(at);
    let Extent { len, data, allocated, host_offset } = image.extent(at)?;
    let len = len.min(left);
    let here = Layer { len, depth: 0, present: allocated, zero: !data, data, offset: host_offset };
    let backing = match image.backing() {
        Some(backing) if !allocated => backing,
        _ => return Ok(if allocated { here } else { Layer { zero: true, data: false, ..here } }),
    };
    if at >= backing.size() {
        // After its end there is nothing below either.
        return Ok(Layer { present: false, zero: true, data: false, offset: None, ..here });
    }
    let below = layer(&*backing, at)?;
    Ok(Layer { len: len.min(below.len), depth: below.depth + 1, ..below })
}

/// As [`layer`], with all that follows and is the same.
///
/// # Errors
/// The image's.
pub fn long_layer(image: &dyn Image, at: u64) -> io::Result<Layer> {
    let mut found = layer(image, at)?;
    while found.len > 0 && at + found.len < image.size() {
        let next = layer(image, at + found.len)?;
        let wanted = found.offset.map(|o| o + found.len);
        if next.len == 0
            || (Layer { len: found.len, offset: wanted, ..found }) != (Layer { len: found.len, ..next })
        {
            break;
        }
        found.len += next.len;
    }
    Ok(found)
}

/// How an image is copied.
#[derive(Clone, Copy, Debug, Default)]
pub struct CopyOptions {
    /// What is written is compressed.
    pub compressed: bool,
    /// The target reads as zeros before: zeros need not be written.
    pub target_is_zero: bool,
    /// Images of the source's chain from this one on are not copied: the target stands on it.
    pub above: Option<usize>,
    /// Zeros of so many bytes are found and not written, 4 KiB if nothing is said; with 0 everything is written.
    pub sparse: Option<u64>,
}

/// Copies `from` to `to`, which is as large.
///
/// # Errors
/// The images'.
pub fn copy(from: &dyn Image, to: &dyn Image, options: CopyOptions, progress: Progress) -> io::Result<()> {
    let size = from.size();
    let mut at = 0;
    let mut buf = vec![0; CHUNK as usize];
    let cluster = to.details().cluster_size.unwrap_or(65_536);
    while at < size {
        progress(at, size);
        let layer = layer(from, at)?;
        let mut n = layer.len.min(size - at).max(1);
        if options.above.is_some_and(|depth| layer.depth >= depth) && !options.compressed {
            at += n;
            continue;
        }
        let sparse = options.sparse.unwrap_or(4096).next_multiple_of(512).min(CHUNK);
        if layer.zero && !options.compressed && sparse > 0 {
            if !options.target_is_zero || options.above.is_some() {
                to.zero(at, n, true)?;
            }
            at += n;
            continue;
        }
        let wanted = options.target_is_zero && options.above.is_none() && at.is_multiple_of(cluster);
        if options.compressed && layer.zero && wanted && layer.len >= cluster {
            at += layer.len / cluster * cluster;
            continue;
        }
        if options.compressed {
            // By whole clusters of the target, whatever the source is made of.
            n = cluster.min(size - at);
            let part = &mut buf[..n as usize];
            from.read(at, part)?;
            if options.above.is_some() || !is_zero(part) {
                to.write_compressed(at, part)?;
            } else if !options.target_is_zero {
                to.zero(at, n, true)?;
            }
            at += n;
            continue;
        }
        n = n.min(CHUNK - (at & (CHUNK - 1)));
        let part = &mut buf[..n as usize];
        from.read(at, part)?;
        if sparse == 0 {
            to.write(at, part)?;
        } else {
            write_sparse(to, at, part, sparse as usize, options.target_is_zero && options.above.is_none())?;
        }
        at += n;
    }
    progress(size, size);
    to.flush()
}

/// Writes what is not zero, `piece` bytes at least at a time; zeros only if they are not there.
fn write_sparse(to: &dyn Image, at: u64, data: &[u8], piece: usize, is_zero_already: bool) -> io::Result<()> {
    let mut start = 0;
    for run in data.chunks(piece).collect::<Vec<_>>().chunk_by(|a, b| is_zero(a) == is_zero(b)) {
        let len: usize = run.iter().map(|c| c.len()).sum();
        let here = at + start as u64;
        if !is_zero(run[0]) {
            to.write(here, &data[start..start + len])?;
        } else if !is_zero_already {
            to.zero(here, len as u64, true)?;
        }
        start += len;
    }
    Ok(())
}

/// Whether there are zeros only.
pub fn is_zero(bytes: &[u8]) -> bool {
    let (words, tail) = bytes.split_at(bytes.len() / 16 * 16);
    words.chunks_exact(16).all(|w| w == [0; 16]) && tail.iter().all(|b| *b == 0)
}

/// How two images differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Difference {
    /// They do not.
    None,
    /// Their sizes do; what both have is the same, and zeros follow.
    Size,
    /// The first byte that differs.
    Content(u64),
    /// One of them has something after the other's end, from there on.
    Tail(u64),
    /// With `strict`: one has a cluster where the other has none.
    Allocation(u64),
}

/// Compares what two disks hold; `strict` looks at sizes and at what is allocated too.
///
/// # Errors
/// The images'.
pub fn compare(a: &dyn Image, b: &dyn Image, strict: bool, progress: Progress) -> io::Result<Difference> {
    let (size, all) = (a.size().min(b.size()), a.size().max(b.size()));
    if strict && a.size() != b.size() {
        return Ok(Difference::Size);
    }
    let (mut one, mut two) = (vec![0; CHUNK as usize], vec![0; CHUNK as usize]);
    let mut at = 0;
    while at < size {
        progress(at, all);
        let (x, y) = (layer(a, at)?, layer(b, at)?);
        let mut n = x.len.min(y.len).min(size - at).max(1);
        if strict && x.present != y.present {
            return Ok(Difference::Allocation(at));
        }
        if !(x.zero && y.zero) {
            n = n.min(CHUNK);
            let (one, two) = (&mut one[..n as usize], &mut two[..n as usize]);
            a.read(at, one)?;
            b.read(at, two)?;
            if one != two {
                let first = one.iter().zip(two.iter()).position(|(p, q)| p != q).unwrap_or(0);
                return Ok(Difference::Content(at + first as u64));
            }
        }
        at += n;
    }
    let longer = if a.size() > b.size() { a } else { b };
    while at < all {
        progress(at, all);
        let layer = layer(longer, at)?;
        let n = if layer.zero { layer.len } else { layer.len.min(CHUNK) }.min(all - at).max(1);
        if !layer.zero {
            let part = &mut one[..n as usize];
            longer.read(at, part)?;
            if let Some(first) = part.iter().position(|b| *b != 0) {
                return Ok(Difference::Tail(at + first as u64));
            }
        }
        at += n;
    }
    progress(all, all);
    Ok(if a.size() == b.size() { Difference::None } else { Difference::Size })
}

/// Writes what `top` has of its own to `base`, which is one of the images that it stands on, opened for writing.
/// `depth` is how far below: 1 is what `top` itself names.
///
/// # Errors
/// The images'.
pub fn commit(top: &dyn Image, base: &dyn Image, depth: usize, progress: Progress) -> io::Result<()> {
    if base.size() < top.size() {
        base.resize(top.size())?;
    }
    let above = CopyOptions { above: Some(depth), ..CopyOptions::default() };
    copy(top, base, above, progress)
}

/// Writes to `image` what differs between what it stands on and what it is to stand on, so that what it holds stays
/// the same.
///
/// # Errors
/// The images'.
pub fn rebase(
    image: &dyn Image,
    old: Option<&Arc<dyn Image>>,
    new: Option<&Arc<dyn Image>>,
    progress: Progress,
) -> io::Result<()> {
    let size = image.size();
    let (mut was, mut will) = (vec![0; CHUNK as usize], vec![0; CHUNK as usize]);
    let mut at = 0;
    while at < size {
        progress(at, size);
        let extent = image.extent(at)?;
        let n = extent.len.min(size - at).clamp(1, CHUNK);
        if !extent.allocated {
            let (was, will) = (&mut was[..n as usize], &mut will[..n as usize]);
            read_from(old, at, was)?;
            read_from(new, at, will)?;
            // By pieces, so that little is copied that is the same.
            for (i, (x, y)) in was.chunks(65_536).zip(will.chunks(65_536)).enumerate() {
                let here = at + i as u64 * 65_536;
                if x == y {
                    continue;
                }
                if is_zero(x) { image.zero(here, x.len() as u64, false)? } else { image.write(here, x)? }
            }
        }
        at += n;
    }
    progress(size, size);
    image.flush()
}

fn read_from(image: Option<&Arc<dyn Image>>, at: u64, buf: &mut [u8]) -> io::Result<()> {
    let there = image.map_or(0, |i| i.size().saturating_sub(at)).min(buf.len() as u64);
    let (part, rest) = buf.split_at_mut(there as usize);
    rest.fill(0);
    match image {
        Some(image) if !part.is_empty() => image.read(at, part),
        _ => Ok(()),
    }
}
