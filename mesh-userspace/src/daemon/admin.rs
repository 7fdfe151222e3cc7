//! What the admin socket asks of the daemon.

use tokio::task::spawn_blocking;

use super::{Daemon, clear, services, status};
use crate::{
    admin::{
        AdminBackend, AdminError, Answer, CutReport, CutRequest, ExecTicket, ReloadReport, StatusReport,
    },
    identity::ServiceName,
};

impl AdminBackend for Daemon {
    fn status(&self) -> StatusReport {
        status::report(self)
    }

    fn prepare_exec(&self, service: ServiceName) -> Answer<'_, ExecTicket> {
        Box::pin(async move {
            let config = self.config();
            if config.service(&service).is_none() {
                let known = config.services.iter().map(|s| s.name.clone()).collect();
                return Err(AdminError::UnknownService { service, known });
            }
            let cgroup = self
                .governed
                .make(&services::exec_cgroup(&service))
                .map_err(|e| AdminError::System(e.to_string()))?;
            // The kernel knows the cgroup before the program is in it.
            self.kernel.reconcile();
            self.kernel.want_namespaces();
            if !self.kernel.lock().is_workload(&cgroup, &service) {
                let why = "the kernel does not know the cgroup yet; `meshnode status` says what is degraded";
                return Err(AdminError::System(why.into()));
            }
            Ok(ExecTicket { cgroup_procs_path: cgroup.join("cgroup.procs") })
        })
    }

    fn reload(&self) -> Answer<'_, ReloadReport> {
        Box::pin(self.reload_config())
    }

    fn cut(&self, CutRequest { service }: CutRequest) -> Answer<'_, CutReport> {
        Box::pin(async move {
            let system = |error: &dyn std::fmt::Display| AdminError::System(error.to_string());
            let (visitor, namespaces) = (self.visitor.clone(), self.namespaces.clone());
            let listing = spawn_blocking(move || clear::connections(visitor.as_ref(), &namespaces));
            let connections = listing.await.map_err(|e| system(&e))?.map_err(|e| system(&e))?;
            let uncaptured = self.kernel.lock().uncaptured(connections);
            let mut report = CutReport::default();
            for one in uncaptured {
                if service.is_some() && one.source != service && one.destination != service {
                    continue;
                }
                let status = status::uncaptured_status(self, &one);
                match clear::cut(self.visitor.as_ref(), &one).await {
                    Ok(()) => report.cut.push(status),
                    Err(error) => report.failed.push(format!("{} → {}: {error}", one.local, one.remote)),
                }
            }
            Ok(report)
        })
    }

    fn drain(&self) -> Answer<'_, ()> {
        Box::pin(async move {
            self.stop.notify_one();
            Ok(())
        })
    }
}
