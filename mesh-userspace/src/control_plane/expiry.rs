//! How far the lives of leafs have come: said in the log when one should have been renewed long ago, and when it is over.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, SystemTime},
};

use super::sync::Shared;
use crate::identity::{Leaf, ServiceName};

/// Longest sleep before the clock is looked at again: it may be set, and the host may have been suspended.
const LOOK_AGAIN: Duration = Duration::from_secs(30);

/// Says in the log, once for each leaf, when it should have been renewed long ago and when it has expired, for ever.
///
/// An expired leaf stays where it is: new connections are refused because of it, and what is open goes on, as it was
/// authenticated when it was opened and an outage stops nothing that runs. Only a service that the control plane
/// refuses a leaf loses it, and its flows with it (`leaf::forget_refused`).
pub(super) async fn follow(shared: Arc<Shared>) {
    let mut said: HashMap<(ServiceName, String), Life> = HashMap::new();
    loop {
        let now = SystemTime::now();
        let mut next = now + LOOK_AGAIN;
        let leafs = shared.state.load().leafs.clone();
        said.retain(|(name, serial), _| leafs.get(name).is_some_and(|leaf| leaf.serial == *serial));
        for (name, leaf) in leafs {
            let life = life(&leaf, now);
            if let Some(change) = [late_at(&leaf), leaf.not_after].into_iter().find(|at| *at > now) {
                next = next.min(change);
            }
            if said.insert((name.clone(), leaf.serial.clone()), life) != Some(life) {
                tell(&shared, &name, &leaf, life, now);
            }
        }
        tokio::time::sleep(next.duration_since(now).unwrap_or_default().max(Duration::from_millis(100)))
            .await;
    }
}

/// How far a leaf's life has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Life {
    Good,
    /// Renewal is overdue.
    Late,
    Expired,
}

fn life(leaf: &Leaf, now: SystemTime) -> Life {
    match now {
        now if now >= leaf.not_after => Life::Expired,
        now if now >= late_at(leaf) => Life::Late,
        _ => Life::Good,
    }
}

/// When a tenth of its life is left: later than everybody renews (Consul's agents at six to nine tenths).
pub fn late_at(leaf: &Leaf) -> SystemTime {
    let life = leaf.not_after.duration_since(leaf.not_before).unwrap_or_default();
    leaf.not_after - life / 10
}

fn tell(shared: &Shared, name: &ServiceName, leaf: &Leaf, life: Life, now: SystemTime) {
    let left = leaf.not_after.duration_since(now).unwrap_or_default().as_secs();
    let because = shared.link.status().why_not_renewed(name, life != Life::Good);
    let because = because.unwrap_or_else(|| "the control plane has not answered".to_owned());
    match life {
        Life::Good => {}
        Life::Late => {
            tracing::warn!(service = %name, seconds_left = left, because, "the certificate expires soon and is not renewed");
        }
        Life::Expired => {
            tracing::error!(service = %name, because, "the certificate has expired and could not be renewed: new connections are refused, open ones go on");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tls::test_pki::Ca;

    #[test]
    fn leaf_is_late_with_a_tenth_of_its_life_left() {
        let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        let any = Ca::new("td.consul").leaf("web");
        let (id, key, serial) = (any.id.clone(), any.key.clone(), any.serial.clone());
        let leaf = Leaf { id, key, serial, not_before: at(0), not_after: at(3600) };
        for (age, expected) in
            [(3239, Life::Good), (3240, Life::Late), (3599, Life::Late), (3600, Life::Expired)]
        {
            assert_eq!(life(&leaf, at(age)), expected, "{age}");
        }
    }
}
