//! Why a command did not do what was asked, and the exit code that says so to scripts.

use std::{io, path::PathBuf};

use super::api::ApiError;
use crate::config::ConfigError;

/// Exit codes; from 64 on they are those of sysexits.h, from 125 on those of env(1).
pub mod exit {
    pub const OK: u8 = 0;
    pub const FAILED: u8 = 1;
    pub const DENIED: u8 = 2;
    pub const UNHEALTHY: u8 = 3;
    pub const USAGE: u8 = 64;
    pub const UNAVAILABLE: u8 = 69;
    pub const NO_PERMISSION: u8 = 77;
    pub const CONFIG: u8 = 78;
    pub const EXEC_FAILED: u8 = 125;
    pub const EXEC_CANNOT: u8 = 126;
    pub const EXEC_NOT_FOUND: u8 = 127;
}

#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Failure {
    #[error("{0}\nFor the accepted form, try `--help`.")]
    Usage(String),
    #[error("the configuration is wrong:\n{0}")]
    Config(#[from] ConfigError),
    #[error(
        "the daemon is not running (nobody answers at {socket}).\nStart it: `sudo systemctl start meshnode`, or \
         `sudo meshnode run` in the foreground. If it runs with another run_dir: --admin-socket PATH, or --config FILE."
    )]
    NoDaemon { socket: PathBuf },
    #[error("permission denied: {what}\nUse sudo.")]
    NoPermission { what: String },
    #[error(transparent)]
    Api(#[from] ApiError),
    /// It was understood, and not done.
    #[error("{0}")]
    Refused(String),
    /// `exec` failed before, or at, the command; the code is one of `exit::EXEC_*`.
    #[error("{message}")]
    Exec { code: u8, message: String },
    #[error("cannot write the output: {0}")]
    Output(io::Error),
    /// The reader of the output went away, as `head` does; not an error.
    #[error("the output was closed")]
    ClosedPipe,
}

impl Failure {
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Usage(_) => exit::USAGE,
            Self::Config(_) => exit::CONFIG,
            Self::NoDaemon { .. } => exit::UNAVAILABLE,
            Self::NoPermission { .. } => exit::NO_PERMISSION,
            Self::Api(error) if error.is_unreachable() => exit::UNAVAILABLE,
            Self::Api(_) | Self::Refused(_) | Self::Output(_) => exit::FAILED,
            Self::Exec { code, .. } => *code,
            Self::ClosedPipe => exit::OK,
        }
    }
}
