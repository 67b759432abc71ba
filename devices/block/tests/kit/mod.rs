//! What the tests of images share: QEMU's tools, folders that go, numbers by seed.
#![allow(dead_code, reason = "each test uses some of it")]
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

/// Whether QEMU's tools are installed; says what is skipped if not.
pub fn qemu_there() -> bool {
    let there = ["qemu-img", "qemu-io"].iter().all(|t| Command::new(t).arg("--version").output().is_ok());
    if !there {
        eprintln!("skipped: qemu-img and qemu-io (qemu-utils) are not installed");
    }
    there
}

/// Runs `qemu-img`, which has to succeed.
pub fn qemu_img(args: &[&str]) -> String {
    let out = Command::new("qemu-img").args(args).output().unwrap();
    let text = String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "qemu-img {}: {text}", args.join(" "));
    text
}

/// A number from the environment.
pub fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|n| n.parse().ok()).unwrap_or(default)
}

/// A folder that goes with the test.
pub struct Folder(PathBuf);

impl Folder {
    /// A new one.
    pub fn new(name: &str) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let n = NEXT.fetch_add(1, Relaxed);
        let path = std::env::temp_dir().join(format!("mynah-image-{}-{n}-{name}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    /// A file's name in it.
    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Where it is.
    pub fn folder(&self) -> &Path {
        &self.0
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Numbers by seed (splitmix64).
pub struct Rng(pub u64);

impl Rng {
    /// The next one.
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    /// One from 0 to `n` - 1.
    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    /// Bytes that differ from place to place, and can be compressed.
    pub fn pattern(&mut self, len: usize) -> Vec<u8> {
        let byte = self.next() as u8;
        (0..len).map(|i| if i % 7 == 0 { byte } else { (i / 64) as u8 ^ (i >> 14) as u8 }).collect()
    }
}
