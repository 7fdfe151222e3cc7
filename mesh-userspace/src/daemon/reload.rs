//! The configuration, read again: taken as a whole, or not at all.

use std::sync::Arc;

use super::{Daemon, all_announced, all_inbound, services};
use crate::{
    admin::{AdminError, ReloadReport},
    config::{Config, ControlPlane},
    control_plane::embedded::{CheckedCa, Embedded},
};

impl Daemon {
    /// Reads the configuration again; takes it as a whole, or changes nothing.
    pub(super) async fn reload_config(&self) -> Result<ReloadReport, AdminError> {
        let _one = self.reloading.lock().await;
        let new = Config::load_with_files(self.config_path.as_deref())
            .map_err(|e| AdminError::ConfigRefused(e.to_string()))?;
        let old = self.config.load_full();
        old.diff_reloadable(&new).map_err(AdminError::RestartNeeded)?;
        let system = |e: &dyn std::fmt::Display| AdminError::System(e.to_string());
        let (embedded, ca) = self.given_ca(&new)?;
        for service in &new.services {
            self.governed.make(&services::exec_cgroup(&service.name)).map_err(|e| system(&e))?;
        }
        let mut changes = changes(&old, &new);
        {
            let (mut services, mut gateways) = (self.services(), self.gateways());
            let inbound = services.apply(&new).map_err(|e| system(&e))?;
            let served = gateways.apply(&new).map_err(|e| system(&e)).and_then(|external| {
                let all = all_inbound((&services, inbound), (&gateways, external));
                self.proxy.set_inbound(all).map_err(|e| system(&e))
            });
            if let Err(error) = served {
                // Back to what there was; of a gateway whose TLS files are others by now, with these.
                if let (Ok(inbound), Ok(external)) = (services.apply(&old), gateways.apply(&old)) {
                    let all = all_inbound((&services, inbound), (&gateways, external));
                    if let Err(error) = self.proxy.set_inbound(all) {
                        tracing::error!(%error, "what was served before a refused reload is not all served again");
                    }
                }
                return Err(error);
            }
            let rules = services::rules(&new, &self.own_cgroup);
            changes.extend(gateways.renewed().iter().map(|name| format!("gateway {name}: other TLS files")));
            self.egress.set(&new);
            self.kernel.lock().configure(services::kernel_view(&new), rules);
            let all = all_announced(&new, &services, &gateways, &self.advertised);
            self.announce.send_replace(Arc::new(all));
        }
        if let (Some(embedded), Some(ca)) = (embedded, ca) {
            embedded.use_ca(ca).await.map_err(|e| AdminError::ConfigRefused(e.to_string()))?;
        }
        if old.log != new.log {
            self.telemetry.set_filter(&new.log).map_err(|e| system(&e))?;
        }
        self.config.store(Arc::new(new));
        self.kernel.reconcile();
        // Before the namespaces of services that are no more are left: nobody can cut in there afterwards.
        self.kernel.cut_everywhere().await;
        self.kernel.want_namespaces();
        tracing::info!(?changes, "the configuration was read again");
        Ok(ReloadReport { changes })
    }

    /// Returns the embedded server with the CA that `new` gives it, read and checked.
    fn given_ca(&self, new: &Config) -> Result<(Option<Arc<Embedded>>, Option<CheckedCa>), AdminError> {
        let embedded = self.embedded();
        let files = match &new.control_plane {
            ControlPlane::Embedded(settings) => settings.ca.as_ref(),
            _ => None,
        };
        let checked = match (&embedded, files) {
            (Some(embedded), Some(files)) => Some(embedded.check_ca(files)),
            _ => None,
        };
        let checked = checked.transpose().map_err(|e| AdminError::ConfigRefused(e.to_string()))?;
        Ok((embedded, checked))
    }
}

/// One line for each service that came, went or changed.
fn changes(old: &Config, new: &Config) -> Vec<String> {
    let mut lines = Vec::new();
    for service in &new.services {
        match old.service(&service.name) {
            None => lines.push(format!("service {} added", service.name)),
            Some(before) if before != service => lines.push(format!("service {} changed", service.name)),
            Some(_) => {}
        }
    }
    lines.extend(
        old.services
            .iter()
            .filter(|s| new.service(&s.name).is_none())
            .map(|s| format!("service {} removed", s.name)),
    );
    if old.gateways != new.gateways {
        lines.push("gateways changed".into());
    }
    if old.exempt != new.exempt {
        lines.push("exemptions changed".into());
    }
    if old.log != new.log {
        lines.push("log changed".into());
    }
    if old.drain_deadline != new.drain_deadline {
        lines.push("drain_deadline changed".into());
    }
    lines
}
