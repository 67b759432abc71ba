//! An image in memory, for tests: it can be made to fail, and tells what of it is durable.
use crate::image::{Extent, Image, within};
use parking_lot::Mutex;
use std::io;

/// An image in memory.
pub struct Memory {
    state: Mutex<State>,
    read_only: bool,
}

struct State {
    now: Vec<u8>,
    durable: Vec<u8>,
    fails: Option<io::ErrorKind>,
}

impl Memory {
    /// An image that holds `bytes`.
    pub fn new(bytes: Vec<u8>) -> Self {
        let state = State { durable: bytes.clone(), now: bytes, fails: None };
        Self { state: Mutex::new(state), read_only: false }
    }

    /// One that is not written.
    pub fn read_only(bytes: Vec<u8>) -> Self {
        Self { read_only: true, ..Self::new(bytes) }
    }

    /// From now on all requests end with this error, or none does.
    pub fn fail(&self, with: Option<io::ErrorKind>) {
        self.state.lock().fails = with;
    }

    /// What is in it.
    pub fn contents(&self) -> Vec<u8> {
        self.state.lock().now.clone()
    }

    /// What was in it at the last flush.
    pub fn durable(&self) -> Vec<u8> {
        self.state.lock().durable.clone()
    }

    fn at(&self, at: u64, len: u64, then: impl FnOnce(&mut State, std::ops::Range<usize>)) -> io::Result<()> {
        let mut state = self.state.lock();
        within(state.now.len() as u64, at, len)?;
        match state.fails {
            Some(kind) => Err(kind.into()),
            None => {
                then(&mut state, at as usize..(at + len) as usize);
                Ok(())
            }
        }
    }

    fn change(
        &self,
        at: u64,
        len: u64,
        then: impl FnOnce(&mut State, std::ops::Range<usize>),
    ) -> io::Result<()> {
        if self.read_only { Err(io::ErrorKind::PermissionDenied.into()) } else { self.at(at, len, then) }
    }
}

impl Image for Memory {
    fn format(&self) -> &'static str {
        "memory"
    }

    fn size(&self) -> u64 {
        self.state.lock().now.len() as u64
    }

    fn read_only(&self) -> bool {
        self.read_only
    }

    fn read(&self, at: u64, buf: &mut [u8]) -> io::Result<()> {
        self.at(at, buf.len() as u64, |s, range| buf.copy_from_slice(&s.now[range]))
    }

    fn write(&self, at: u64, data: &[u8]) -> io::Result<()> {
        self.change(at, data.len() as u64, |s, range| s.now[range].copy_from_slice(data))
    }

    fn flush(&self) -> io::Result<()> {
        self.at(0, 0, |s, _| s.durable.clone_from(&s.now))
    }

    fn zero(&self, at: u64, len: u64, _unmap: bool) -> io::Result<()> {
        self.change(at, len, |s, range| s.now[range].fill(0))
    }

    fn discard(&self, at: u64, len: u64) -> io::Result<()> {
        self.zero(at, len, true)
    }

    fn extent(&self, at: u64) -> io::Result<Extent> {
        let len = self.size().saturating_sub(at);
        Ok(Extent { len, data: true, allocated: true, host_offset: None })
    }

    fn resize(&self, size: u64) -> io::Result<()> {
        self.change(0, 0, |s, _| s.now.resize(size as usize, 0))
    }
}
