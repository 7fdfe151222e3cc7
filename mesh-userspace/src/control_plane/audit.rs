//! Whether the token grants what this host needs. A registration or a certificate that is refused says so itself; what
//! a read leaves out for want of a permission is left out without a word, and only asking tells.

use std::{sync::Arc, time::Duration, time::SystemTime};

use tokio::sync::watch;

use super::{
    client::ApiError,
    link::Part,
    permission,
    settings::{Kind, LocalService},
    sync::Shared,
};

/// A token, or its policies, may have changed meanwhile.
const AGAIN: Duration = Duration::from_secs(30);

/// Asks when the services change, and now and then, for ever.
pub(super) async fn follow(shared: Arc<Shared>, mut local: watch::Receiver<Arc<Vec<LocalService>>>) {
    if shared.settings.kind == Kind::Embedded {
        // Its own socket is root's.
        return;
    }
    loop {
        let services = Arc::clone(&local.borrow_and_update());
        let each = services.iter().map(|service| (&service.name, service.listens.is_some()));
        match permission::missing(&shared.client, each).await {
            Ok(Some(lacks)) if !lacks.is_empty() => {
                let reason = format!("what this host needs is not all granted: missing {}", lacks.join(", "));
                let with_token = shared.settings.access.token.is_some();
                let path = "/v1/internal/acl/authorize".to_owned();
                let error = ApiError::Forbidden { path, reason, with_token };
                shared.link.failed(&Part::Token, &error, SystemTime::now());
            }
            Ok(Some(_)) => shared.link.answered(&Part::Token, None, SystemTime::now()),
            // ACLs are off, or the server does not tell; or it does not answer, which others will say.
            Ok(None) | Err(_) => shared.link.forget(&Part::Token),
        }
        tokio::select! {
            () = tokio::time::sleep(AGAIN) => {}
            Ok(()) = local.changed() => {}
        }
    }
}
