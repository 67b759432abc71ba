//! `smb=` on hosts without Samba's smbd: it is refused.
use super::config::Config;
use std::io::{Error, ErrorKind, Result};

/// There is none.
pub(super) enum Smb {}

impl Smb {
    /// Refuses what `config` names, if it names something.
    ///
    /// # Errors
    /// It does.
    pub fn share(config: &mut Config) -> Result<Option<Self>> {
        match config.smb {
            None => Ok(None),
            Some(_) => Err(Error::new(ErrorKind::Unsupported, "Samba's smbd is there on Unix hosts only")),
        }
    }
}
