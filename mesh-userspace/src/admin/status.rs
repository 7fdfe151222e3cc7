//! The report that `GET /status` answers with: what this host's mesh is and does.
//!
//! Fields are added, never renamed. A reader of another version ignores what it does not know.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::SystemTime,
};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use crate::fast_path::FastPath;

/// A moment, as RFC 3339 text in UTC, whole seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Timestamp(pub SystemTime);

impl std::fmt::Display for Timestamp {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let moment = OffsetDateTime::from(self.0).replace_nanosecond(0).unwrap_or(OffsetDateTime::UNIX_EPOCH);
        f.write_str(&moment.format(&Rfc3339).map_err(|_| std::fmt::Error)?)
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let moment = OffsetDateTime::parse(&text, &Rfc3339).map_err(de::Error::custom)?;
        Ok(Self(moment.into()))
    }
}

/// The whole report.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct StatusReport {
    pub version: String,
    pub node: String,
    pub datacenter: String,
    pub pid: u32,
    pub uptime_s: u64,
    /// SIGTERM or `drain` came: no new flows.
    pub draining: bool,
    pub attachments: Vec<Attachment>,
    pub workloads: Vec<WorkloadStatus>,
    /// Services of this host that have a port.
    pub services: Vec<ServiceStatus>,
    /// Services outside the mesh that this host offers to it.
    pub gateways: Vec<GatewayStatus>,
    /// Services that have virtual IPs, this host's or others'.
    pub virtual_services: Vec<VirtualServiceStatus>,
    /// Live flows.
    pub flows: Vec<FlowStatus>,
    /// Connections in clear that would be the mesh's, had they been opened now: from before the daemon knew of them.
    pub uncaptured: Vec<UncapturedStatus>,
    /// Flows that ended or were denied, the newest first; a bounded number of them.
    pub recent: Vec<FlowStatus>,
    pub certificates: Vec<CertificateStatus>,
    pub control_plane: ControlPlaneStatus,
    /// Counters of the kernel side and the proxy, by name, since the start.
    pub counters: BTreeMap<String, u64>,
    pub listeners: Vec<ListenerStatus>,
    /// Ways to carry flows with less work: which are in use, and why others are not.
    pub fast_paths: Vec<FastPath>,
    /// What this kernel or host lacks, and what that costs; one sentence each.
    pub degraded: Vec<String>,
    pub exempt: Vec<ExemptStatus>,
}

/// One BPF program where it should be attached, as the kernel says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Attachment {
    /// As in `connect4`.
    pub program: String,
    /// The attach type, as in `cgroup/connect4`.
    pub hook: String,
    /// The cgroup's path, or the network namespace.
    pub target: String,
    /// The id of the program that should be there.
    pub expected_prog_id: Option<u32>,
    pub state: AttachmentState,
    /// What else the kernel said; empty if nothing.
    #[serde(default)]
    pub detail: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum AttachmentState {
    Attached,
    Missing,
    /// Another program is where ours should be.
    Foreign,
    /// Said by a daemon of another version.
    #[serde(other)]
    Unknown,
}

/// A connection in clear between two ends that the mesh should connect.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UncapturedStatus {
    pub direction: FlowDirection,
    /// Empty for a caller that is no workload of this host.
    #[serde(default)]
    pub source: String,
    pub destination: String,
    /// Relative to `cgroup_root`; empty where the kernel does not say.
    #[serde(default)]
    pub cgroup: String,
    pub local: SocketAddr,
    pub remote: SocketAddr,
    /// The inode number of the network namespace that it is in, if that is not the host's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<u64>,
}

/// One workload: the service that it is, and the cgroups in which its processes are.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct WorkloadStatus {
    pub service: String,
    /// Relative to `cgroup_root`.
    pub cgroups: Vec<String>,
    pub processes: u64,
    /// `passthrough` or `mesh-only`.
    pub egress: String,
    /// What a `mesh-only` one may reach outside the mesh all the same, in words.
    pub egress_allow: Vec<String>,
    pub exempt: bool,
    /// Services with an instance that an intention lets it connect to, in order; the first [`MOST_ALLOWED`] of them.
    pub allowed: Vec<String>,
}

/// How many services a workload's report names as allowed.
pub const MOST_ALLOWED: usize = 50;

/// One service of this host.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ServiceStatus {
    pub name: String,
    pub port: u16,
    /// Where the daemon dials the program.
    pub address: IpAddr,
    /// `strict` or `permissive`.
    pub guard: String,
    pub mesh_port: Option<u16>,
    /// `passing`, `warning`, `critical`, or `unknown`.
    pub health: String,
}

/// A service outside the mesh for which this host is a gateway.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct GatewayStatus {
    pub service: String,
    /// As it is configured.
    pub address: String,
    /// What that means now; empty while a name does not resolve.
    pub resolved: Vec<SocketAddr>,
    pub mesh_port: u16,
    /// The name that its certificate must be for; `None`: it is spoken to in clear.
    pub tls: Option<String>,
    /// `passing` or `critical`.
    pub health: String,
    /// Why it is critical.
    pub reason: Option<String>,
}

/// A service by its virtual IPs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct VirtualServiceStatus {
    pub service: String,
    pub virtual_ipv4: Option<Ipv4Addr>,
    pub virtual_ipv6: Option<Ipv6Addr>,
    /// The one that Consul itself gave it.
    pub consul_ipv4: Option<Ipv4Addr>,
    /// Known instances, and those of them whose checks pass.
    pub instances: usize,
    pub healthy: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum FlowDirection {
    /// A program of this host dialled.
    Outbound,
    /// A peer dialled a service of this host.
    Inbound,
    /// Between two workloads of this host, not through the proxy.
    Local,
    #[serde(other)]
    Unknown,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum FlowState {
    /// Captured; the upstream is not there yet.
    Connecting,
    /// Connected by the kernel.
    Direct,
    Mtls,
    /// Let past the mesh: a permissive guard.
    Passed,
    /// Over, in order.
    Closed,
    /// Over, by a reset or an error; the reason says which.
    Failed,
    /// Never opened; the reason says why.
    Denied,
    /// Ended because an intention changed.
    Revoked,
    /// Reset by the guard: it came around the mesh.
    Guarded,
    #[serde(other)]
    Unknown,
}

impl ControlPlaneStatus {
    /// Returns what it means that a part of the catalog is not watched; `None` when all is.
    pub fn partial(&self) -> Option<String> {
        let unwatched = self.unwatched_services.filter(|n| *n > 0)?;
        Some(format!(
            "{unwatched} services of the catalog are not watched (control_plane.catalog_limit): a dial to one that no \
             intention allows is refused by its own host, not here"
        ))
    }
}

impl FlowState {
    /// Returns the word that people read.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Connecting => "connecting",
            Self::Direct => "direct",
            Self::Mtls => "mTLS",
            Self::Passed => "passed",
            Self::Closed => "closed",
            Self::Failed => "failed",
            Self::Denied => "denied",
            Self::Revoked => "revoked",
            Self::Guarded => "guarded",
            Self::Unknown => "unknown",
        }
    }

    /// Whether it is over, or never began, for a reason worth showing.
    pub fn is_refusal(self) -> bool {
        matches!(self, Self::Failed | Self::Denied | Self::Revoked | Self::Guarded)
    }
}

/// One flow, live or recent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FlowStatus {
    pub id: u64,
    pub direction: FlowDirection,
    /// The program's command name; empty where the peer's host knows it.
    #[serde(default)]
    pub program: String,
    /// 0 where unknown.
    #[serde(default)]
    pub pid: u32,
    /// The calling service; empty for an unmanaged caller.
    #[serde(default)]
    pub source: String,
    /// The service called; empty if none.
    #[serde(default)]
    pub destination: String,
    /// What the program dialled.
    pub original_dst: Option<SocketAddr>,
    /// The chosen instance's mesh address (outbound), the peer (inbound).
    pub instance: Option<SocketAddr>,
    pub state: FlowState,
    /// `TLS 1.3`, or `TLS 1.2` with a foreign peer that has no 1.3; `None` without TLS, and before the handshake is done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<String>,
    /// Application bytes from the caller to the called.
    #[serde(default)]
    pub bytes_sent: u64,
    /// Application bytes from the called to the caller.
    #[serde(default)]
    pub bytes_received: u64,
    /// Seconds since it was opened; for one that is over: since it ended.
    #[serde(default)]
    pub age_s: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CertificateStatus {
    pub service: String,
    pub spiffe_id: String,
    /// Colon-separated hex.
    pub serial: String,
    pub not_after: Timestamp,
    /// Negative once expired.
    pub seconds_left: i64,
    /// Its renewal is overdue.
    #[serde(default)]
    pub late: bool,
    /// Why it is not renewed at present; absent while nothing fails.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub renewal_error: Option<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ControlPlaneStatus {
    /// `embedded`, `remote` or `consul`.
    pub kind: String,
    pub address: String,
    pub connected: bool,
    /// Since when it answers.
    pub since: Option<Timestamp>,
    /// Since when it does not; with `from_cache`, when it last did.
    pub stale_since: Option<Timestamp>,
    pub last_error: Option<String>,
    /// The highest index seen.
    pub index: u64,
    /// What is served was read from the disk cache.
    pub from_cache: bool,
    /// Catalog and intentions were not read yet: everything is denied.
    pub unsynced: bool,
    /// Services of the catalog that are watched: a dial to one of them is decided here.
    pub watched_services: usize,
    /// Services of the catalog that are not: a dial to one of them is refused by its own host only. `None` where nobody
    /// counts them.
    pub unwatched_services: Option<usize>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ListenerStatus {
    /// `outbound`, `guard`, `inbound DB`, `api`…
    pub role: String,
    pub address: String,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ExemptStatus {
    /// The selector, as configured.
    pub selector: String,
    pub reason: String,
    /// What it matches now.
    pub cgroups: Vec<String>,
    pub processes: u64,
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_timestamp_is_rfc_3339_in_whole_seconds() {
        let moment = Timestamp(SystemTime::UNIX_EPOCH + Duration::from_millis(1_700_000_000_900));
        assert_eq!(serde_json::to_string(&moment).unwrap(), "\"2023-11-14T22:13:20Z\"");
        let back: Timestamp = serde_json::from_str("\"2023-11-14T22:13:20Z\"").unwrap();
        assert_eq!(back.0, SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000));
        assert!(serde_json::from_str::<Timestamp>("\"yesterday\"").is_err());
    }

    #[test]
    fn a_report_of_another_version_is_read() {
        let text = r#"{"version":"9","novelty":1,"flows":[{"id":1,"direction":"sideways","state":"quantum",
            "original_dst":null,"instance":null}]}"#;
        let report: StatusReport = serde_json::from_str(text).unwrap();
        assert_eq!(report.flows[0].state, FlowState::Unknown);
        assert_eq!(report.flows[0].direction, FlowDirection::Unknown);
    }

    #[test]
    fn states_are_spelled_as_documented() {
        let spelled = |state| serde_json::to_string(&state).unwrap();
        assert_eq!(spelled(FlowState::Mtls), "\"mtls\"");
        assert_eq!(spelled(FlowState::Denied), "\"denied\"");
        assert_eq!(serde_json::to_string(&AttachmentState::Foreign).unwrap(), "\"foreign\"");
    }
}
