//! Asks now and then whether the control plane is alive.
//!
//! Watches wait for minutes for an answer, by design: of an agent that hangs, or of servers without a leader, they would
//! tell late. And when it is over they would go on waiting on connections that have nothing to tell any more.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use super::{client::ApiError, link::Part, settings::Kind, sync::Shared};

const PATH: &str = "/v1/status/leader";
const INTERVAL: Duration = Duration::from_secs(8);
/// A healthy cluster answers at once; an agent holds a question for up to 7 s while a leader is elected.
const LIMIT: Duration = Duration::from_secs(5);

/// Asks, for ever.
pub(super) async fn follow(shared: Arc<Shared>) {
    if shared.settings.kind == Kind::Embedded {
        // In this very process.
        return std::future::pending().await;
    }
    let mut failures = 0;
    loop {
        match ask(&shared).await {
            Ok(()) => {
                if failures > 0 {
                    shared.link.ask_anew();
                }
                failures = 0;
                shared.link.answered(&Part::Leader, None, SystemTime::now());
                tokio::time::sleep(INTERVAL.mul_f64(0.75 + rand::random::<f64>() / 2.0)).await;
            }
            Err(error) => {
                failures += 1;
                shared.link.failed(&Part::Leader, &error, SystemTime::now());
                shared.link.pause(failures, &error).await;
            }
        }
    }
}

async fn ask(shared: &Shared) -> Result<(), ApiError> {
    let leader: String = shared.client.get_within(PATH, LIMIT).await?;
    if leader.is_empty() { Err(shared.client.no_leader()) } else { Ok(()) }
}
