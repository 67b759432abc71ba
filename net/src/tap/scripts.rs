//! Programs of the user's that set a tap up.
use super::TapError;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// A script's name, or the usual one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Script {
    /// QEMU's usual one, if there is a file of that name.
    #[default]
    Usual,
    /// None.
    No,
    /// This one.
    Program(PathBuf),
}

impl Script {
    /// As `script=` has it: `no` or nothing for none.
    pub fn named(text: &str) -> Self {
        match text {
            "" | "no" => Self::No,
            path => Self::Program(path.into()),
        }
    }

    /// What is run; `usual` if it is there.
    pub(super) fn program(&self, usual: &str) -> Option<PathBuf> {
        match self {
            Self::No => None,
            Self::Program(path) => Some(path.clone()),
            Self::Usual => Some(PathBuf::from(usual)).filter(|p| p.exists()),
        }
    }
}

/// Runs a script with the tap's name, and waits for its end.
pub(super) fn run(option: &'static str, script: &Path, name: &str) -> Result<(), TapError> {
    let bad = |why: String| TapError::Script { option, path: script.into(), why };
    let status = Command::new(script).arg(name).stdin(Stdio::null()).status();
    match status {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(bad(format!("it has failed ({status}); {option}=no runs none"))),
        Err(why) => Err(bad(why.to_string())),
    }
}
