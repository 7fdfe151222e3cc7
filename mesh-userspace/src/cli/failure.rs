//! Why a command did not do what was asked, and the exit code that says so to scripts.

use std::{io, path::PathBuf};

use crate::{config::ConfigError, control_plane::ApiError};

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
    /// The daemon answers, but not to the end, or with something else.
    #[error("the daemon at {socket}: {reason}")]
    Daemon { socket: PathBuf, reason: String },
    #[error("{0}{hint}", hint = options(.0))]
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
            Self::NoDaemon { .. } | Self::Daemon { .. } => exit::UNAVAILABLE,
            Self::NoPermission { .. } | Self::Api(ApiError::SocketPermission { .. }) => exit::NO_PERMISSION,
            Self::Api(error) if error.is_outage() => exit::UNAVAILABLE,
            Self::Api(_) | Self::Refused(_) | Self::Output(_) => exit::FAILED,
            Self::Exec { code, .. } => *code,
            Self::ClosedPipe => exit::OK,
        }
    }
}

/// Returns what an error of the API does not say: the options of a command that correct it.
fn options(error: &ApiError) -> &'static str {
    match error {
        ApiError::Forbidden { .. } | ApiError::Token(_) => {
            "\nFor one command: --token TOKEN, or CONSUL_HTTP_TOKEN."
        }
        ApiError::Tls { .. } | ApiError::TlsSetup(_) => {
            "\nFor one command: --ca-file FILE, or CONSUL_CACERT."
        }
        ApiError::Refused { .. }
        | ApiError::NoSocket { .. }
        | ApiError::Unreachable { .. }
        | ApiError::NotTls { .. } => "\nFor one command: --http-addr ADDRESS, or CONSUL_HTTP_ADDR.",
        _ => "",
    }
}
