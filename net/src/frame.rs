//! A frame on its way: slices of memory, and what is left for the receiver to do.
use smallvec::SmallVec;
use std::io::IoSlice;

/// Where UDP's checksum is in its header, by which what is left to do tells UDP from TCP (virtio 1.3, 5.1.6.2).
pub(crate) const UDP_CHECKSUM: u16 = 6;

/// A checksum that the receiver has to compute: from `start` to the frame's end, into the two bytes at
/// `start + offset`, where the sum of the pseudo-header is already (virtio 1.3, 5.1.6.2: csum_start, csum_offset).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Partial {
    /// Where the sum begins, in bytes from the frame's first.
    pub start: u16,
    /// Where it goes, in bytes from `start`.
    pub offset: u16,
}

/// A TCP segment that is longer than the link's: whoever needs to splits it (virtio 1.3, 5.1.6.2: gso_type, gso_size). If
/// the partial checksum with it is UDP's it is several datagrams of one flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gso {
    /// Whether it is over IPv6.
    pub v6: bool,
    /// Bytes of data for each of the segments.
    pub size: u16,
}

/// What is not as on a wire.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offload {
    /// A checksum that is not there yet.
    pub partial: Option<Partial>,
    /// More than one segment.
    pub gso: Option<Gso>,
    /// The transport's checksum is known to be right, or needs none.
    pub valid: bool,
}

/// What a receiver takes beside plain frames.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Takes {
    /// Partial checksums.
    pub partial: bool,
    /// Long TCP segments over IPv4; it takes partial checksums as well.
    pub tso4: bool,
    /// Long TCP segments over IPv6; it takes partial checksums as well.
    pub tso6: bool,
    /// Long datagrams of UDP over IPv4; it takes partial checksums as well.
    pub uso4: bool,
    /// Long datagrams of UDP over IPv6; it takes partial checksums as well.
    pub uso6: bool,
}

impl Takes {
    /// Whether it takes a frame of which this is left to do, as it is.
    pub fn includes(&self, offload: &Offload) -> bool {
        match (offload.gso, offload.partial) {
            (None, partial) => partial.is_none() || self.partial,
            (Some(_), None) => false,
            (Some(gso), Some(partial)) => match (partial.offset == UDP_CHECKSUM, gso.v6) {
                (false, false) => self.tso4,
                (false, true) => self.tso6,
                (true, false) => self.uso4,
                (true, true) => self.uso6,
            },
        }
    }
}

/// An Ethernet frame without its checksum (FCS), in as many slices as its owner has it in.
#[derive(Clone, Copy)]
pub struct Frame<'a> {
    /// What is not as on a wire.
    pub offload: Offload,
    /// Its bytes.
    pub parts: &'a [IoSlice<'a>],
}

impl<'a> Frame<'a> {
    /// A plain frame.
    pub fn new(parts: &'a [IoSlice<'a>]) -> Self {
        Self { offload: Offload::default(), parts }
    }

    /// Its length in bytes.
    pub fn len(&self) -> usize {
        self.parts.iter().map(|p| p.len()).sum()
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Its bytes in one piece.
    pub fn to_vec(&self) -> Vec<u8> {
        let mut all = Vec::with_capacity(self.len());
        self.parts.iter().for_each(|p| all.extend_from_slice(p));
        all
    }

    /// The slices of `len` bytes from `skip` on; fewer where the frame ends.
    pub fn slices(&self, mut skip: usize, mut len: usize) -> Slices<'a> {
        let mut found = Slices::new();
        for part in self.parts {
            if len == 0 {
                break;
            }
            if skip >= part.len() {
                skip -= part.len();
                continue;
            }
            let end = part.len().min(skip + len);
            found.push(&part[skip..end]);
            len -= end - skip;
            skip = 0;
        }
        found
    }
}

/// Some bytes of a frame. A chain of a network card's descriptors is seldom longer than this has room for without
/// memory of its own (64 KiB in pages, and the headers).
pub type Slices<'a> = SmallVec<[&'a [u8]; 20]>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_are_cut_where_they_are_asked_for() {
        let parts = [IoSlice::new(b"abc"), IoSlice::new(b""), IoSlice::new(b"defg"), IoSlice::new(b"h")];
        let frame = Frame::new(&parts);
        assert_eq!(frame.len(), 8);
        assert_eq!(frame.to_vec(), b"abcdefgh");
        let cut = |skip, len| frame.slices(skip, len).concat();
        assert_eq!(cut(0, 8), b"abcdefgh");
        assert_eq!(cut(2, 3), b"cde");
        assert_eq!(cut(3, 4), b"defg");
        assert_eq!(cut(7, 100), b"h");
        assert_eq!(cut(8, 1), b"");
    }
}
