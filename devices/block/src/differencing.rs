//! Differencing VHD and VDI images: what they do not have stands in their parent. They are only read: who is to write
//! puts another image on top (`snapshot=on`, or a qcow2 image that stands on them).
//!
//! A VHD has a bitmap of sectors before each block: those that are its own. Of a VDI's blocks all of one is its own, or
//! zeros, or nothing.
use crate::image::{Details, Extent, Image, within};
use crate::storage::{Storage, damaged};
use parking_lot::Mutex;
use std::io;
use std::sync::Arc;

/// What an entry of the table of blocks means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Block {
    /// The parent has it.
    Parent,
    /// Zeros.
    Zero,
    /// It is in the file from there on; its bitmap of sectors before it, if it has one.
    Own(u64),
}

/// Such an image.
pub(crate) struct Differencing {
    pub(crate) storage: Arc<dyn Storage>,
    pub(crate) format: &'static str,
    pub(crate) size: u64,
    pub(crate) block_size: u64,
    /// Bytes of a block's bitmap; 0 for none.
    pub(crate) bitmap: u64,
    pub(crate) table: Vec<u32>,
    pub(crate) entry: Box<dyn Fn(u32) -> Block + Send + Sync>,
    pub(crate) parent: Option<Arc<dyn Image>>,
    /// As the image names it.
    pub(crate) parent_name: Option<String>,
    pub(crate) identity: Option<[u8; 16]>,
    /// The bitmap that was read last, and whose.
    pub(crate) last: Mutex<Option<(u64, Arc<Vec<u8>>)>>,
}

impl Differencing {
    fn bitmap(&self, block: u64, data: u64) -> io::Result<Arc<Vec<u8>>> {
        let mut last = self.last.lock();
        if let Some((_, bytes)) = last.as_ref().filter(|(of, _)| *of == block) {
            return Ok(bytes.clone());
        }
        let mut bytes = vec![0; self.bitmap as usize];
        self.storage.read_at(data - self.bitmap, &mut bytes)?;
        let bytes = Arc::new(bytes);
        *last = Some((block, bytes.clone()));
        Ok(bytes)
    }

    /// Where what stands at `at` is, and how much of `len` is together.
    fn run(&self, at: u64, len: u64) -> io::Result<(Block, u64)> {
        let (number, inside) = (at / self.block_size, at % self.block_size);
        let most = len.min(self.block_size - inside);
        let entry =
            self.table.get(number as usize).ok_or_else(|| damaged("the table of blocks is too short"))?;
        let data = match (self.entry)(*entry) {
            Block::Own(data) => data,
            other => return Ok((other, most)),
        };
        if self.bitmap == 0 {
            return Ok((Block::Own(data + inside), most));
        }
        let bits = self.bitmap(number, data)?;
        let own = |sector: u64| bits[sector as usize / 8] & 0x80 >> (sector % 8) != 0;
        let first = inside / 512;
        let mut end = first + 1;
        while end * 512 < inside + most && own(end) == own(first) {
            end += 1;
        }
        let what = if own(first) { Block::Own(data + inside) } else { Block::Parent };
        Ok((what, (end * 512 - inside).min(most)))
    }
}

impl Image for Differencing {
    fn format(&self) -> &'static str {
        self.format
    }

    fn size(&self) -> u64 {
        self.size
    }

    fn read_only(&self) -> bool {
        true
    }

    fn read(&self, mut at: u64, mut buf: &mut [u8]) -> io::Result<()> {
        within(self.size, at, buf.len() as u64)?;
        while !buf.is_empty() {
            let (what, n) = self.run(at, buf.len() as u64)?;
            let (part, rest) = buf.split_at_mut(n as usize);
            match (what, &self.parent) {
                (Block::Own(host), _) => self.storage.read_at(host, part)?,
                (Block::Parent, Some(parent)) => {
                    let there = parent.size().saturating_sub(at).min(n) as usize;
                    let (there, beyond) = part.split_at_mut(there);
                    beyond.fill(0);
                    if !there.is_empty() {
                        parent.read(at, there)?;
                    }
                }
                _ => part.fill(0),
            }
            at += n;
            buf = rest;
        }
        Ok(())
    }

    fn extent(&self, at: u64) -> io::Result<Extent> {
        let left = self.size.saturating_sub(at);
        if left == 0 {
            return Ok(Extent { len: 0, data: false, allocated: false, host_offset: None });
        }
        let (what, len) = self.run(at, left)?;
        let (data, allocated, host_offset) = match what {
            Block::Parent => (false, false, None),
            Block::Zero => (false, true, None),
            Block::Own(host) => (true, true, Some(host)),
        };
        Ok(Extent { len, data, allocated, host_offset })
    }

    fn details(&self) -> Details {
        Details {
            cluster_size: Some(self.block_size),
            backing_file: self.parent_name.clone(),
            backing_format: self.parent_name.as_ref().map(|_| self.format.into()),
            ..Details::default()
        }
    }

    fn backing(&self) -> Option<Arc<dyn Image>> {
        self.parent.clone()
    }

    fn identity(&self) -> Option<[u8; 16]> {
        self.identity
    }
}

/// The error for opening one to write to it.
pub(crate) fn only_read() -> io::Error {
    io::Error::new(
        io::ErrorKind::Unsupported,
        "a differencing image is only read: say readonly=on, or snapshot=on to have writes go elsewhere",
    )
}

#[cfg(test)]
mod tests {
    use crate::storage::{be32, be64};
    use crate::{Backing, OpenOptions, open};
    use std::fs;
    use std::path::{Path, PathBuf};

    const SIZE: usize = 8 << 20;

    /// A folder with a parent that is `parent` all over, and a child of which `own` says which sectors are its own: of
    /// its first two blocks of 2 MiB, which are `child` all over. The child calls the parent by `name`.
    fn vhd(own: impl Fn(usize) -> bool, name: &str) -> PathBuf {
        let folder = crate::testing::scratch("differencing").join("images");
        fs::create_dir_all(&folder).unwrap();
        let of = |name: &str, byte: u8, len: usize| {
            let path = folder.join(name);
            crate::create(&path, "vpc", SIZE as u64, &[]).unwrap();
            open(&OpenOptions::new(&path)).unwrap().write(0, &vec![byte; len]).unwrap();
            fs::read(path).unwrap()
        };
        let (parent, mut child) = (of("parent.vhd", 1, SIZE), of("child.vhd", 2, 4 << 20));
        for block in 0..2 {
            let bitmap = be32(&child, 1536 + block * 4) as usize * 512;
            child[bitmap..bitmap + 512].fill(0);
            for sector in (0..4096).filter(|n| own(block * 4096 + n)) {
                child[bitmap + sector / 8] |= 0x80 >> (sector % 8);
            }
        }
        let text: Vec<u8> = name.encode_utf16().flat_map(u16::to_le_bytes).collect();
        let at = child.len() - 512;
        child[512 + 40..512 + 56].copy_from_slice(&parent[68..84]);
        let locator = &mut child[512 + 576..512 + 600];
        locator[..4].copy_from_slice(b"W2ru");
        locator[4..8].copy_from_slice(&512u32.to_be_bytes());
        locator[8..12].copy_from_slice(&(text.len() as u32).to_be_bytes());
        locator[16..24].copy_from_slice(&(at as u64).to_be_bytes());
        let sum = |bytes: &mut [u8], at: usize| {
            bytes[at..at + 4].fill(0);
            let sum = !bytes.iter().map(|b| u32::from(*b)).sum::<u32>();
            bytes[at..at + 4].copy_from_slice(&sum.to_be_bytes());
        };
        sum(&mut child[512..1536], 36);
        child[63] = 4;
        sum(&mut child[..512], 64);
        let footer = child[..512].to_vec();
        child.truncate(at);
        child.extend(&text);
        child.resize(at + 512, 0);
        child.extend(footer);
        assert_eq!(be64(&child, 16), 512);
        fs::write(folder.join("child.vhd"), child).unwrap();
        folder
    }

    fn refused(options: &OpenOptions) -> String {
        open(options).map(drop).unwrap_err().to_string()
    }

    #[test]
    fn sectors_of_a_vhd_are_its_own_or_its_parents() {
        let own = |sector: usize| sector % 7 < 3 || (5000..5100).contains(&sector);
        let folder = vhd(own, r".\parent.vhd");
        let path = folder.join("child.vhd");
        let image = open(&OpenOptions::read_only(&path)).unwrap();
        assert_eq!((image.format(), image.size()), ("vpc", SIZE as u64));
        let mut model = vec![1; SIZE];
        for sector in (0..8192).filter(|n| own(*n)) {
            model[sector * 512..][..512].fill(2);
        }
        let mut now = vec![9; SIZE];
        image.read(0, &mut now).unwrap();
        assert!(now == model);
        for at in [100usize, 1500, 2_559_900, (4 << 20) - 700] {
            let mut part = vec![9; 1000];
            image.read(at as u64, &mut part).unwrap();
            assert!(part == model[at..at + 1000], "at {at}");
        }
        let extent = image.extent(5000 * 512).unwrap();
        assert_eq!((extent.allocated, extent.len), (true, 100 * 512));
        assert!(!image.extent(3 * 512).unwrap().allocated && image.backing().is_some());
        assert_eq!(image.details().backing_file.as_deref(), Some("parent.vhd"));
        drop(image);
        // It is not written; an overlay is.
        assert!(refused(&OpenOptions::new(&path)).contains("snapshot=on"));
        let image = open(&OpenOptions { snapshot: true, ..OpenOptions::new(&path) }).unwrap();
        image.write(700, &[8; 100]).unwrap();
        image.read(0, &mut now).unwrap();
        assert_eq!((now[699], now[700], now[800]), (2, 8, 2));
        drop(image);
        let alone = OpenOptions { backing: Backing::Ignore, ..OpenOptions::read_only(&path) };
        open(&alone).unwrap().read(0, &mut now).unwrap();
        assert!(now[3 * 512] == 0 && now[0] == 2);
        fs::remove_dir_all(folder.parent().unwrap()).unwrap();
    }

    #[test]
    fn a_parent_is_looked_for_where_it_may_be_and_is_the_right_one() {
        let folder = vhd(|_| true, r"..\parent.vhd");
        let child = folder.join("child.vhd");
        let up = folder.join("../parent.vhd");
        assert!(refused(&OpenOptions::read_only(&child)).contains("parent.vhd"));
        fs::copy(folder.join("parent.vhd"), &up).unwrap();
        assert!(refused(&OpenOptions::read_only(&child)).contains("outside of its folder"));
        open(&OpenOptions { backing: Backing::Anywhere, ..OpenOptions::read_only(&child) }).unwrap();
        fs::remove_file(&up).unwrap();
        // One that was made anew is another.
        let parent = folder.join("parent.vhd");
        let given = |path: &Path| OpenOptions {
            backing: Backing::File { path: path.into(), format: Some("vpc".into()) },
            ..OpenOptions::read_only(&child)
        };
        open(&given(&parent)).unwrap();
        fs::remove_file(&parent).unwrap();
        crate::create(&parent, "vpc", SIZE as u64, &[]).unwrap();
        assert!(refused(&given(&parent)).contains("another image"));
        fs::remove_dir_all(folder.parent().unwrap()).unwrap();
    }

    #[test]
    fn blocks_of_a_vdi_are_its_own_zeros_or_its_parents() {
        let folder = crate::testing::scratch("differencing");
        fs::create_dir(&folder).unwrap();
        let (parent, child) = (folder.join("parent.vdi"), folder.join("child.vdi"));
        for (path, byte, len) in [(&parent, 1, SIZE), (&child, 2, 2 << 20)] {
            crate::create(path, "vdi", SIZE as u64, &[]).unwrap();
            open(&OpenOptions::new(path)).unwrap().write(0, &vec![byte; len]).unwrap();
        }
        let mut bytes = fs::read(&child).unwrap();
        bytes[76] = 4;
        bytes[424..440].copy_from_slice(&fs::read(&parent).unwrap()[392..408]);
        // The second of the disk's blocks is zeros.
        bytes[512 + 4..512 + 8].copy_from_slice(&0xffff_fffeu32.to_le_bytes());
        fs::write(&child, bytes).unwrap();
        assert!(refused(&OpenOptions::read_only(&child)).contains("backing.file.filename"));
        let backing = Backing::File { path: parent, format: None };
        let image = open(&OpenOptions { backing, ..OpenOptions::read_only(&child) }).unwrap();
        let mut now = vec![9; SIZE];
        image.read(0, &mut now).unwrap();
        let mut model = vec![1; SIZE];
        model[..1 << 20].fill(2);
        model[1 << 20..2 << 20].fill(0);
        assert!(now == model);
        fs::remove_dir_all(folder).unwrap();
    }
}
