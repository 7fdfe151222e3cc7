//! The admin interface: what `meshnode status`, `exec`, `reload` and `drain` ask the running daemon, over a unix socket.
//!
//! Owns the protocol and the report's shape; what is reported comes from the daemon through [`AdminBackend`].

mod metrics;
mod server;
mod status;

use std::{future::Future, path::PathBuf, pin::Pin};

use serde::{Deserialize, Serialize};

pub use metrics::encode as encode_metrics;
pub use server::{AdminServer, BindError};
pub use status::{
    Attachment, AttachmentState, CertificateStatus, ControlPlaneStatus, ExemptStatus, FlowDirection,
    FlowState, FlowStatus, ListenerStatus, MOST_ALLOWED, ServiceStatus, StatusReport, Timestamp,
    UncapturedStatus, VirtualServiceStatus, WorkloadStatus,
};

use crate::identity::ServiceName;

/// The future of a backend's answer, boxed so that the trait can be an object.
pub type Answer<'a, T> = Pin<Box<dyn Future<Output = Result<T, AdminError>> + Send + 'a>>;

/// What the daemon answers.
pub trait AdminBackend: Send + Sync + 'static {
    /// Returns the state of now; attachments are asked of the kernel, not remembered.
    fn status(&self) -> StatusReport;

    /// Returns metrics in the OpenMetrics text format.
    fn metrics(&self) -> String {
        encode_metrics(&self.status())
    }

    /// Makes the cgroup in which programs run as `service`, known to the kernel before this returns.
    fn prepare_exec(&self, service: ServiceName) -> Answer<'_, ExecTicket>;

    /// Reads the configuration again and takes it as a whole, or refuses it as a whole.
    fn reload(&self) -> Answer<'_, ReloadReport>;

    /// Ends the connections that [`status`](Self::status) lists as uncaptured: those of one service, or all.
    fn cut(&self, request: CutRequest) -> Answer<'_, CutReport>;

    /// Stops taking flows, and ends the daemon when the live ones have ended, at the latest after `drain_deadline`.
    /// Returns when draining has begun.
    fn drain(&self) -> Answer<'_, ()>;
}

/// Body of `POST /exec`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExecRequest {
    pub service: ServiceName,
    /// The process that will move itself into the cgroup; for the audit log.
    pub pid: u32,
}

/// Answer to `POST /exec`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecTicket {
    /// The file to write a pid into.
    pub cgroup_procs_path: PathBuf,
}

/// Answer to `POST /reload`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReloadReport {
    /// What took effect, one line each; empty when nothing differed.
    pub changes: Vec<String>,
}

/// Body of `POST /cut`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CutRequest {
    /// Only connections from or to this service.
    pub service: Option<ServiceName>,
}

/// Answer to `POST /cut`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CutReport {
    pub cut: Vec<UncapturedStatus>,
    /// Those that could not be ended, and why; one line each.
    pub failed: Vec<String>,
}

/// Why the daemon did not do what was asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AdminError {
    #[error("no service `{service}` is configured on this host; configured: {}", known_names(.known))]
    UnknownService { service: ServiceName, known: Vec<ServiceName> },
    /// The new configuration is not valid; nothing was changed. One mistake in each line.
    #[error("the configuration was refused, and the running one is unchanged:\n{0}")]
    ConfigRefused(String),
    /// The new configuration is valid, but not for a running daemon; nothing was changed.
    #[error("these keys need a restart, and nothing was changed: {}", .0.join(", "))]
    RestartNeeded(Vec<String>),
    #[error("the daemon is draining")]
    Draining,
    /// The operating system refused.
    #[error("{0}")]
    System(String),
}

fn known_names(known: &[ServiceName]) -> String {
    if known.is_empty() {
        return "none".to_owned();
    }
    known.iter().map(ServiceName::as_str).collect::<Vec<_>>().join(", ")
}

/// Body of every refusal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorBody {
    /// One word for programs, as in `unknown-service`.
    pub code: String,
    /// For people.
    pub error: String,
}

impl AdminError {
    /// Returns one word for programs.
    pub fn code(&self) -> &'static str {
        match self {
            Self::UnknownService { .. } => "unknown-service",
            Self::ConfigRefused(_) => "config-refused",
            Self::RestartNeeded(_) => "restart-needed",
            Self::Draining => "draining",
            Self::System(_) => "system",
        }
    }
}
