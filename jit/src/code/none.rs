//! Hosts that are not known: there is no memory for code.
use std::convert::Infallible;
use std::io;
use std::ops::Range;

/// What is mapped: nothing.
pub(super) struct Mapping(Infallible);

impl Mapping {
    pub fn write(&self) -> *mut u8 {
        match self.0 {}
    }
    pub fn execute(&self) -> *const u8 {
        match self.0 {}
    }
    pub fn collapses(&self) -> bool {
        match self.0 {}
    }
    pub fn rest(&self, _: Range<usize>) {
        match self.0 {}
    }
}

pub(super) fn single(_: usize) -> io::Result<Mapping> {
    Err(io::Error::new(io::ErrorKind::Unsupported, "no executable memory on this host"))
}

pub(super) fn dual(len: usize) -> io::Result<Mapping> {
    single(len)
}
