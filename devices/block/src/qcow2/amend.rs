//! Another version, another size, and the permission for lazy refcounts, of an image that is there: `amend`.
//!
//! Version 2 has no zero clusters: they become holes where nothing is below them, and bytes elsewhere. All of that is
//! durable before the header says that there are none.
use super::header::{Compression, LAZY_REFCOUNTS};
use super::{Mapping, Qcow2};
use crate::create::{bytes, invalid, switch};
use crate::storage::unsupported;
use std::io;
use std::sync::atomic::Ordering::Relaxed;

impl Qcow2 {
    /// As [`crate::Image::amend`].
    pub(super) fn change_options(&self, options: &[(String, String)]) -> io::Result<()> {
        self.may_write()?;
        let (mut version, mut lazy, mut size) = (None, None, None);
        let bits = self.meta.lock().header.refcount_bits();
        for (name, value) in options {
            match name.as_str() {
                "compat" => {
                    version = Some(match value.as_str() {
                        "0.10" | "v2" => 2,
                        "1.1" | "v3" => 3,
                        _ => return Err(invalid(format!("compat={value}: it is 0.10 or 1.1"))),
                    });
                }
                "lazy_refcounts" => lazy = Some(switch(name, value)?),
                "size" => size = Some(bytes(name, value)?),
                "refcount_bits" if *value == bits.to_string() => {}
                "refcount_bits" => {
                    return Err(unsupported(format!(
                        "refcount_bits={value}: they stay {bits} bits wide; 'convert' makes an image with others"
                    )));
                }
                "backing_file" | "backing_fmt" => {
                    return Err(invalid(format!("{name} is changed by 'rebase'")));
                }
                "cluster_size" | "compression_type" | "preallocation" => {
                    return Err(invalid(format!("{name} is chosen when an image is made, and stays")));
                }
                _ => {
                    return Err(invalid(format!("there is no option '{name}' of qcow2 that can be amended")));
                }
            }
        }
        let old = self.meta.lock().header.version;
        let new = version.unwrap_or(old);
        if lazy == Some(true) && new < 3 {
            return Err(invalid("lazy_refcounts=on needs compat=1.1"));
        }
        if new < old {
            self.may_be_version_2()?;
        }
        if let Some(size) = size {
            self.set_size(size.next_multiple_of(512))?;
        }
        if new < old {
            self.expand_zeros()?;
        }
        let mut meta = self.settle();
        self.flush_meta(&mut meta)?;
        let mut header = meta.header.clone();
        header.version = new;
        if new == 2 {
            (header.incompatible, header.compatible, header.autoclear) = (0, 0, 0);
        } else if let Some(on) = lazy {
            header.compatible = header.compatible & !LAZY_REFCOUNTS | if on { LAZY_REFCOUNTS } else { 0 };
        }
        let mut bytes = header.to_bytes()?;
        bytes.resize(self.cluster_size() as usize, 0);
        meta.header = header;
        self.storage.write_at(0, &bytes)?;
        self.storage.flush()
    }

    /// Whether what the image has can be in one of version 2.
    fn may_be_version_2(&self) -> io::Result<()> {
        let meta = self.meta.lock();
        let bits = meta.header.refcount_bits();
        if bits != 16 {
            return Err(unsupported(format!("compat=0.10 has refcount_bits=16, and this image {bits}")));
        }
        if meta.header.compression != Compression::Zlib {
            return Err(unsupported(
                "compat=0.10 knows zlib alone, and this image has compression_type=zstd",
            ));
        }
        if !meta.snapshots.is_empty() {
            return Err(unsupported(
                "compat=0.10: the image has snapshots, whose zeros version 2 does not know: delete them first",
            ));
        }
        if !meta.header.extensions.is_empty() {
            return Err(unsupported(
                "compat=0.10: the image has bitmaps or other extensions that version 2 does not know",
            ));
        }
        Ok(())
    }

    /// Has no zero cluster be left.
    fn expand_zeros(&self) -> io::Result<()> {
        let (size, mut at) = (self.size.load(Relaxed), 0);
        while at < size {
            let (mapping, len) = self.run(at, size - at)?;
            let end = at + len.max(1);
            if matches!(mapping, Mapping::Zero { .. }) {
                let cluster = self.cluster_size();
                while at < end {
                    let next = ((at / cluster + 1) * cluster).min(size);
                    let number = at / cluster;
                    if self.is_backed(at / cluster * cluster) {
                        self.write_range(at, &vec![0; (next - at) as usize])?;
                    } else {
                        self.change_entries(number..number + 1, |_, _| 0)?;
                    }
                    at = next;
                }
            }
            at = end;
        }
        self.flush_meta(&mut self.settle())
    }
}
