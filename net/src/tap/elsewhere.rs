//! Hosts other than Linux have no taps of this kind: each request is refused by name.
use super::{RawFd, TapError};
use crate::Takes;
use socket2::Socket;
use std::fs::File;
use std::io;
use std::net::Ipv4Addr;

pub(super) struct Opened {
    pub name: String,
    pub queues: Vec<File>,
    pub vnet_hdr: bool,
}

pub(super) fn may_administer() -> bool {
    false
}

pub(super) fn open(_: &str, _: u16, _: Option<bool>) -> Result<Opened, TapError> {
    Err(TapError::OtherHost)
}

pub(super) fn adopt(_: &[RawFd], _: Option<bool>) -> Result<Opened, TapError> {
    Err(TapError::OtherHost)
}

pub(super) fn watched(_: &File) -> io::Result<Socket> {
    Err(io::ErrorKind::Unsupported.into())
}

pub(super) fn offer(_: &File, _: Takes) -> io::Result<()> {
    Ok(())
}

pub(super) fn join_bridge(_: &str, _: &str) -> Result<(), TapError> {
    Err(TapError::OtherHost)
}

pub(super) fn bring_up(_: &str) -> Result<(), TapError> {
    Err(TapError::OtherHost)
}

pub(super) fn set_address(_: &str, _: Ipv4Addr, _: u8) -> Result<(), TapError> {
    Err(TapError::OtherHost)
}

pub(super) fn exists(_: &str) -> bool {
    false
}
