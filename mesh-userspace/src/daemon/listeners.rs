//! The sockets that the daemon listens on, and the settings of the parts that own them.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener},
    path::Path,
};

use anyhow::Context as _;
use mesh_common::map::{
    LISTENER_DNS4, LISTENER_DNS6, LISTENER_GUARD4, LISTENER_GUARD6, LISTENER_OUTBOUND4, LISTENER_OUTBOUND6,
};

use super::{kernel::Kernel, services::listen};
use crate::{
    config::{Config, ControlPlane},
    control_plane::{
        ApiAccess, ApiAddress, Kind, LINGER, Settings, TokenSource,
        embedded::{self, Embedded},
    },
    datapath::engine::Engine,
    dns,
};

/// What is known of the listeners after their sockets went to the proxy.
pub struct Listeners {
    list: Vec<(String, SocketAddr)>,
}

/// The sockets themselves.
pub struct Sockets {
    pub outbound: Vec<TcpListener>,
    pub guard: Vec<TcpListener>,
    /// For names, unless the configuration has them left alone.
    pub names: Option<dns::Sockets>,
}

impl Listeners {
    /// Binds the outbound and guard listeners on loopback, IPv4 and, where the host has it, IPv6.
    pub fn bind(config: &Config) -> anyhow::Result<(Self, Sockets)> {
        let mut new = Self { list: Vec::new() };
        let sockets = Sockets {
            outbound: new.bind_pair("outbound", config.listen.outbound_port)?,
            guard: new.bind_pair("guard", config.listen.guard_port)?,
            names: config.dns.enabled.then(|| new.bind_names()).transpose()?,
        };
        Ok((new, sockets))
    }

    fn bind_pair(&mut self, role: &str, port: u16) -> anyhow::Result<Vec<TcpListener>> {
        let mut sockets = Vec::new();
        for ip in [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)] {
            let address = SocketAddr::new(ip, port);
            match listen(address) {
                Ok(socket) => {
                    self.list.push((role.to_owned(), socket.local_addr()?));
                    sockets.push(socket);
                }
                Err(error) if ip.is_ipv6() && is_absent(&error) => {
                    tracing::warn!(
                        role,
                        "this host has no IPv6 loopback: IPv6 connections of workloads to the mesh are denied"
                    );
                }
                Err(error) => return Err(error).with_context(|| {
                    format!(
                        "cannot listen for {role} connections on {address}: set another listen.{role}_port"
                    )
                }),
            }
        }
        Ok(sockets)
    }

    fn bind_names(&mut self) -> anyhow::Result<dns::Sockets> {
        let sockets = dns::Sockets::bind()
            .context("cannot open the sockets that answer for names (without them: dns.enabled = false)")?;
        for listener in sockets.listeners() {
            self.list.push(("dns".to_owned(), listener.local_addr()?));
        }
        Ok(sockets)
    }

    /// From here on the kernel redirects to them.
    pub fn hand_to_kernel(&self, kernel: &Kernel, sockets: &Sockets) -> anyhow::Result<()> {
        let mut engine = kernel.lock();
        let netns = engine.host_netns();
        for (socket, v4, v6) in sockets
            .outbound
            .iter()
            .map(|s| (s, LISTENER_OUTBOUND4, LISTENER_OUTBOUND6))
            .chain(sockets.guard.iter().map(|s| (s, LISTENER_GUARD4, LISTENER_GUARD6)))
        {
            engine.set_listener(netns, if socket.local_addr()?.is_ipv4() { v4 } else { v6 }, socket)?;
        }
        if let Some(names) = &sockets.names {
            hand_over_names(&mut engine, netns, names)?;
        }
        Ok(())
    }

    pub fn list(&self) -> Vec<(String, String)> {
        self.list.iter().map(|(role, address)| (role.clone(), address.to_string())).collect()
    }
}

/// Has the kernel divert to `names` what programs in the network namespace ask; returns where they listen.
pub fn hand_over_names(
    engine: &mut Engine,
    netns: u64,
    names: &dns::Sockets,
) -> anyhow::Result<Vec<SocketAddr>> {
    let mut listeners = Vec::new();
    for listener in names.listeners() {
        let at = listener.local_addr()?;
        engine.set_listener(netns, if at.is_ipv4() { LISTENER_DNS4 } else { LISTENER_DNS6 }, listener)?;
        listeners.push(at);
    }
    Ok(listeners)
}

/// Whether the error means that there is no such family, or no loopback of it.
pub fn is_absent(error: &std::io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EADDRNOTAVAIL | libc::EAFNOSUPPORT))
}

/// Starts the embedded control plane where the configuration asks for it.
pub async fn start_embedded(config: &Config, node_address: IpAddr) -> anyhow::Result<Option<Embedded>> {
    let ControlPlane::Embedded(settings) = &config.control_plane else { return Ok(None) };
    let expose = match &settings.expose {
        None => None,
        Some(expose) => Some(embedded::Expose {
            listen: expose.listen,
            cert_file: expose.certificate.as_ref().map(|c| c.cert_file.clone()),
            key_file: expose.certificate.as_ref().map(|c| c.key_file.clone()),
            token: expose.token_file.as_deref().map_or_else(|| Ok(String::new()), expose_token)?,
        }),
    };
    let embedded = Embedded::start(embedded::Settings {
        node: config.node.clone(),
        node_address,
        datacenter: config.datacenter().to_owned(),
        state_dir: config.state_dir.clone(),
        default_policy: settings.default_policy,
        leaf_ttl: settings.leaf_ttl,
        trust_domain: settings.trust_domain.clone(),
        listen_tcp: Some(settings.listen),
        unix_socket: Some(config.api_socket()),
        acl: settings.acl,
        expose,
        ca: settings.ca.clone(),
    })
    .await?;
    Ok(Some(embedded))
}

fn expose_token(path: &Path) -> anyhow::Result<String> {
    let token = TokenSource::file(path).current().context("control_plane.embedded.expose.token_file")?;
    Ok(token.to_str().expect("invariant: a token is ASCII").to_owned())
}

/// Returns how the client reaches its control plane.
pub fn client_settings(config: &Config, node_address: IpAddr) -> Settings {
    let (kind, access) = match &config.control_plane {
        ControlPlane::Embedded(_) => {
            (Kind::Embedded, ApiAccess::anonymous(ApiAddress::Unix(config.api_socket())))
        }
        ControlPlane::Remote(access) => (Kind::Remote, access.clone()),
        ControlPlane::Consul(access) => (Kind::Consul, access.clone()),
    };
    Settings {
        kind,
        access,
        node: config.node.clone(),
        node_address,
        datacenter: config.datacenter().to_owned(),
        datacenter_given: config.datacenter.is_some(),
        catalog_limit: config.catalog_limit,
        state_dir: config.state_dir.clone(),
        linger: LINGER,
        virtual_ranges: config.address.virtual_ranges,
        speaks_meshnode: config.proxy.pool,
    }
}
