//! The server under load: an embedded one or a Consul, on a host of its own.

use std::{net::SocketAddr, time::Instant};

use anyhow::{Context as _, Result};
use mesh_tests::{
    config::{API_PORT, CONFIG, Config, ControlPlane, STATE_DIR, Service, TOKEN},
    fixture::share_ca,
    host::Host,
    meshnode::Meshnode,
    program::consul::{self, Consul, Role},
};
use serde_json::{Value, json};

use crate::{
    api::Endpoint,
    figures::{mib, ms},
    usage,
};

pub enum Server {
    Embedded(Meshnode),
    /// With the agent, which runs as long as it is held.
    Consul(Host, Consul),
}

/// The cgroup of a daemon, below its host's.
pub const DAEMON_CGROUP: &str = "meshnode.daemon";

impl Server {
    pub fn start(host: Host, consul: bool) -> Self {
        if consul {
            // So that the load's host reaches it, with as many connections as it wants.
            let open = json!({"client_addr": "0.0.0.0", "limits": {"http_max_conns_per_client": 16_000}});
            let agent = Consul::start(&host, Role::server().with(open));
            return Self::Consul(host, agent);
        }
        let config = config(&host, ControlPlane::Embedded { lines: String::new() }, Vec::new());
        let mut meshnode = prepare(host, config);
        meshnode.run();
        Self::Embedded(meshnode)
    }

    pub fn host(&self) -> &Host {
        match self {
            Self::Embedded(meshnode) => &meshnode.host,
            Self::Consul(host, _) => host,
        }
    }

    /// Returns the API as other hosts see it.
    pub fn endpoint(&self) -> Result<Endpoint> {
        let host = self.host();
        match self {
            Self::Embedded(_) => {
                let ca = host.read(&format!("{STATE_DIR}/api-ca.pem"));
                Endpoint::embedded(SocketAddr::new(host.v4.into(), API_PORT), TOKEN, &ca)
            }
            Self::Consul(..) => Ok(Endpoint::consul(SocketAddr::new(host.v4.into(), 8500))),
        }
    }

    /// Prepares the daemon of another host that uses this server.
    pub fn client(&self, host: Host, services: Vec<Service>) -> Client {
        match self {
            Self::Embedded(meshnode) => {
                share_ca(meshnode, &host);
                let server = meshnode.host.v4.into();
                let config = config(&host, ControlPlane::Remote { server }, services);
                Client { meshnode: prepare(host, config), _agent: None }
            }
            Self::Consul(server, _) => {
                let agent = Consul::start(&host, Role::client(server));
                let config = config(&host, ControlPlane::Consul { lines: String::new() }, services);
                Client { meshnode: prepare(host, config), _agent: Some(agent) }
            }
        }
    }

    pub fn pid(&self) -> Result<i32> {
        match self {
            Self::Embedded(meshnode) => pid_in(&meshnode.host, DAEMON_CGROUP),
            Self::Consul(host, _) => pid_in(host, consul::CGROUP),
        }
    }

    /// Ends an embedded server and returns how long it takes to serve what it has on disk.
    pub fn restart(&mut self) -> Result<Value> {
        let Self::Embedded(meshnode) = self else { return Ok(Value::Null) };
        meshnode.terminate();
        let store = std::fs::metadata(meshnode.host.space().path(&format!("{STATE_DIR}/embedded.db")));
        let start = Instant::now();
        meshnode.run();
        let ready = start.elapsed();
        Ok(json!({"ready_ms": ms(ready), "store_mib": store.ok().map(|file| mib(file.len()))}))
    }

    pub fn memory(&self) -> Result<u64> {
        usage::rss(self.pid()?)
    }
}

/// A host's daemon, with the agent it speaks to where that is a Consul.
pub struct Client {
    pub meshnode: Meshnode,
    _agent: Option<Consul>,
}

impl Client {
    pub fn pid(&self) -> Result<i32> {
        pid_in(&self.meshnode.host, DAEMON_CGROUP)
    }
}

/// Returns the process in the host's cgroup.
fn pid_in(host: &Host, cgroup: &str) -> Result<i32> {
    let procs = host.space().cgroup().child(cgroup).path().join("cgroup.procs");
    let text = std::fs::read_to_string(&procs)?;
    let first = text.lines().next().with_context(|| format!("nothing runs in {}", procs.display()))?;
    Ok(first.parse()?)
}

fn config(host: &Host, control_plane: ControlPlane, services: Vec<Service>) -> Config {
    Config {
        node: format!("host-{}", host.name),
        advertise: host.v4.into(),
        control_plane,
        services,
        top: String::new(),
        sections: String::new(),
    }
}

/// Like [`Meshnode::prepare`], with the log that users have: what tests log costs more than what is measured.
fn prepare(host: Host, config: Config) -> Meshnode {
    let meshnode = Meshnode::prepare(host, config);
    let text = meshnode.config.to_string().replace("info,mesh_userspace=debug", "info");
    meshnode.host.write(CONFIG, &text);
    meshnode
}
