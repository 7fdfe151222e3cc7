//! `meshnode.toml` for a test's daemon, as the tests need it: what they do not say is left to the daemon's defaults.

use std::{fmt, net::IpAddr};

/// Where the daemons of a test keep their files, inside their hosts. All of it is the documented default.
pub const CONFIG: &str = "/etc/meshnode/meshnode.toml";
pub const TOKEN_FILE: &str = "/etc/meshnode/token";
pub const CA_FILE: &str = "/etc/meshnode/ca.pem";
pub const STATE_DIR: &str = "/var/lib/meshnode";
/// The port at which an embedded server serves other hosts.
pub const API_PORT: u16 = 8501;
pub const TOKEN: &str = "the-token-of-these-tests-0123456789";

/// `pool` or `direct`: the fast path that all daemons of a test run have switched off.
const OFF: &str = "MESHNODE_TEST_OFF";

/// One daemon's configuration.
#[derive(Clone, Debug)]
pub struct Config {
    pub node: String,
    pub advertise: IpAddr,
    pub control_plane: ControlPlane,
    pub services: Vec<Service>,
    /// Further top-level lines, before any section.
    pub top: String,
    /// Further sections.
    pub sections: String,
}

#[derive(Clone, Debug)]
pub enum ControlPlane {
    /// Served here, and to the other hosts; with further lines for `[control_plane.embedded]`.
    Embedded { lines: String },
    /// Served by the host with this address.
    Remote { server: IpAddr },
    /// The Consul agent of this host, with further lines of `[control_plane]`; its API at loopback unless they say where.
    Consul { lines: String },
}

/// A `[[service]]`: its cgroup is `/NAME`, or `/CGROUP`.
#[derive(Clone, Debug)]
pub struct Service {
    pub name: String,
    pub cgroup: Option<String>,
    pub port: Option<u16>,
    /// Further lines of the section.
    pub lines: String,
}

impl Service {
    /// A workload that only connects.
    pub fn client(name: &str) -> Self {
        Self { name: name.to_owned(), cgroup: None, port: None, lines: String::new() }
    }

    /// One that listens at `port`, which is guarded.
    pub fn server(name: &str, port: u16) -> Self {
        Self { port: Some(port), ..Self::client(name) }
    }

    pub fn with(mut self, line: &str) -> Self {
        self.lines.push_str(line);
        self.lines.push('\n');
        self
    }
}

/// Returns a further service of the programs in the cgroup of the service `first`.
pub fn second_port(first: &str, (name, port): (&str, u16)) -> Service {
    Service { cgroup: Some(first.to_owned()), ..Service::server(name, port) }
}

impl fmt::Display for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { node, advertise, control_plane, services, top, sections } = self;
        let off = std::env::var(OFF).unwrap_or_default();
        if off == "direct" && !top.contains("same_host") {
            writeln!(f, "same_host = \"mtls\"")?;
        }
        writeln!(f, "node = \"{node}\"\nlog = \"info,mesh_userspace=debug\"\n{top}")?;
        writeln!(f, "[address]\nadvertise = \"{advertise}\"\n")?;
        match control_plane {
            ControlPlane::Embedded { lines } => {
                // With ACLs on, the door for other hosts has no token of its own.
                let acl = lines.contains("acl = true");
                let token = if acl { String::new() } else { format!("token_file = \"{TOKEN_FILE}\"\n") };
                writeln!(
                    f,
                    "[control_plane]\nkind = \"embedded\"\n\n[control_plane.embedded]\n{lines}\n\
                     [control_plane.embedded.expose]\nlisten = \"{}\"\n{token}",
                    std::net::SocketAddr::new(*advertise, API_PORT)
                )?;
            }
            ControlPlane::Remote { server } => writeln!(
                f,
                "[control_plane]\nkind = \"remote\"\naddress = \"https://{}\"\nca_file = \"{CA_FILE}\"\n\
                 token_file = \"{TOKEN_FILE}\"\n",
                std::net::SocketAddr::new(*server, API_PORT)
            )?,
            ControlPlane::Consul { lines } => {
                writeln!(f, "[control_plane]\nkind = \"consul\"")?;
                if !lines.contains("address = ") {
                    writeln!(f, "address = \"{}\"", crate::program::consul::API)?;
                }
                writeln!(f, "{lines}\n")?;
            }
        }
        for Service { name, cgroup, port, lines } in services {
            let cgroup = cgroup.as_ref().unwrap_or(name);
            writeln!(f, "[[service]]\nname = \"{name}\"\ncgroup = \"/{cgroup}\"")?;
            if let Some(port) = port {
                writeln!(f, "port = {port}")?;
            }
            writeln!(f, "{lines}")?;
        }
        if off == "pool" && !sections.contains("[proxy]") {
            writeln!(f, "[proxy]\npool = false")?;
        }
        f.write_str(sections)
    }
}
