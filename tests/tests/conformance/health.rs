//! `/v1/health/*`.

use mesh_tests::conformance::Run;

use crate::catalog::{deregister_far, register_far};

pub fn reads(run: &mut Run<'_>) {
    register_far(run);
    for path in [
        "service/cache",
        "service/cache?passing",
        "service/cache?passing=true",
        "service/cache?passing=false",
        "service/cache?passing=perhaps",
        "service/cache?tag=hot",
        "service/cache?tag=cold",
        "service/cache?node-meta=rack:r1",
        "service/cache?near=_agent",
        "service/cache?cached",
        "service/nobody",
        "connect/cache",
        "connect/cache?passing",
        "connect/nobody",
        "checks/cache",
        "checks/nobody",
        "node/far",
        "node/nobody",
        "state/any",
        "state/passing",
        "state/warning",
        "state/critical",
        "state/any?node-meta=rack:r1",
        "checks/cache?node-meta=rack:r2",
    ] {
        run.get(&format!("/v1/health/{path}"));
    }
    deregister_far(run);
}
