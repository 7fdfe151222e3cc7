//! Whether answers that lack something can be believed: what the token may see, and of which datacenter the agent is.
//!
//! Consul leaves out of its answers what the token may not read, without a word, and a service that is not in the
//! catalog would be dialled in clear.

use std::time::Instant;

use tokio::sync::Mutex;

use super::{
    api::{HealthEntry, Node},
    client::{ApiError, Client},
    settings::{Kind, Settings},
};

const SERVERS: &str = "/v1/health/service/consul";
const NODES: &str = "/v1/catalog/nodes";

/// When the token was last seen to see everything.
#[derive(Default)]
pub(super) struct Sight(Mutex<Option<Instant>>);

impl Sight {
    /// Returns well if the token saw everything at some time after `since`; asks when that is not known yet.
    ///
    /// # Errors
    /// [`ApiError::Forbidden`] when ACLs hide parts, [`ApiError::Elsewhere`] when the agent is not where the
    /// configuration says.
    pub async fn clear(&self, settings: &Settings, client: &Client, since: Instant) -> Result<(), ApiError> {
        if settings.kind != Kind::Consul {
            return Ok(());
        }
        let mut seen = self.0.lock().await;
        if seen.is_some_and(|seen| seen >= since) {
            return Ok(());
        }
        let now = Instant::now();
        if settings.access.tenancy.is_default() {
            let servers: Vec<HealthEntry> = client.get(SERVERS).await?;
            examine(settings, servers.first().map(|server| &server.node), SERVERS)?;
        } else {
            // Consul's own service is in the default namespace and partition only.
            let nodes: Vec<Node> = client.get(NODES).await?;
            examine(settings, nodes.first(), NODES)?;
        }
        *seen = Some(now);
        Ok(())
    }
}

/// Consul's own service `consul` is in every catalog: who does not see that lacks permissions.
fn examine(settings: &Settings, node: Option<&Node>, path: &str) -> Result<(), ApiError> {
    let Some(node) = node else {
        return Err(ApiError::Forbidden {
            path: path.to_owned(),
            reason: "the service `consul` is not visible, so ACLs hide parts of the catalog; the token needs \
                     service_prefix \"\" { policy = \"read\" intentions = \"read\" } and node_prefix \"\" { policy = \"read\" }"
                .to_owned(),
            with_token: settings.access.token.is_some(),
        });
    };
    let elsewhere = |key, found: &str, wanted: &str| ApiError::Elsewhere {
        address: settings.access.address.to_string(),
        key,
        found: found.to_owned(),
        wanted: wanted.to_owned(),
    };
    if settings.datacenter_given && node.datacenter != settings.datacenter {
        return Err(elsewhere("datacenter", &node.datacenter, &settings.datacenter));
    }
    match &settings.access.tenancy.partition {
        // A server without partitions does not look at the question's.
        Some(wanted) if node.partition != *wanted => {
            let found = if node.partition.is_empty() { "none" } else { &node.partition };
            Err(elsewhere("control_plane.partition", found, wanted))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control_plane::testing;

    fn node(datacenter: &str, partition: &str) -> Node {
        Node { datacenter: datacenter.to_owned(), partition: partition.to_owned(), ..Node::default() }
    }

    #[test]
    fn an_agent_of_another_datacenter_or_without_the_partition_is_refused_by_both_names() {
        let mut settings = testing::settings("http://127.0.0.1:1");
        let examine = |settings: &Settings, node: &Node| {
            examine(settings, Some(node), SERVERS).map_err(|e| e.to_string())
        };
        assert_eq!(examine(&settings, &node("dc1", "")), Ok(()));
        let error = examine(&settings, &node("eu-1", "")).unwrap_err();
        assert!(
            error.contains("`eu-1`") && error.contains("`dc1`") && error.contains("datacenter"),
            "{error}"
        );
        settings.datacenter_given = false;
        assert_eq!(
            examine(&settings, &node("eu-1", "")),
            Ok(()),
            "what is not configured is the agent's business"
        );

        settings.access.tenancy.partition = Some("team".to_owned());
        assert_eq!(examine(&settings, &node("dc1", "team")), Ok(()));
        let error = examine(&settings, &node("dc1", "")).unwrap_err();
        assert!(error.contains("`none`") && error.contains("`team`"), "{error}");
    }
}
