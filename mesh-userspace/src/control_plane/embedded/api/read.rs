//! Reading requests: their query parameters, and answering with an index, at once or when something has changed
//! (Consul's blocking queries).

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use axum::{
    extract::{FromRef, FromRequestParts, Query},
    http::{HeaderMap, HeaderName, HeaderValue, request::Parts},
    response::{IntoResponse, Response},
};
use serde::Serialize;
use sha2::{Digest, Sha256};
use time::OffsetDateTime;
use tokio::{
    sync::watch::Receiver,
    time::{Instant, timeout_at},
};

use super::{ApiError, App, names, viewer::Viewer};
use crate::control_plane::embedded::{
    acl::{Caller, Right},
    duration,
    model::Opaque,
    tables::Tables,
    topics::{DependsOn, Topic},
};

/// Consul's limits for `wait`.
const DEFAULT_WAIT: Duration = Duration::from_secs(300);
const MAX_WAIT: Duration = Duration::from_secs(600);

const INDEX: HeaderName = HeaderName::from_static("x-consul-index");
const KNOWN_LEADER: HeaderName = HeaderName::from_static("x-consul-knownleader");
const LAST_CONTACT: HeaderName = HeaderName::from_static("x-consul-lastcontact");
const CONTENT_HASH: HeaderName = HeaderName::from_static("x-consul-contenthash");
const CONSISTENCY: HeaderName = HeaderName::from_static("x-consul-effective-consistency");

/// From Consul 1.11: part of the answer was withheld, so that "nothing" need not mean that there is nothing.
const FILTERED: HeaderName = HeaderName::from_static("x-consul-results-filtered-by-acls");

/// A request's query parameters, checked for what no endpoint supports.
pub struct Read {
    pub app: App,
    /// Who asks; renewed before each answer, since a token may change while its holder waits.
    caller: ArcSwap<Caller>,
    /// Something was left out of the answer.
    withheld: AtomicBool,
    pairs: Vec<(String, String)>,
    /// The index that the caller has seen; waits for a later one.
    index: Option<u64>,
    wait: Duration,
}

impl<S> FromRequestParts<S> for Read
where
    App: FromRef<S>,
    S: Send + Sync,
{
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let bad = |text: &str| ApiError::BadRequest(text.to_owned());
        let Query(pairs) = Query::<Vec<(String, String)>>::try_from_uri(&parts.uri)
            .map_err(|error| ApiError::BadRequest(format!("Invalid query: {error}")))?;
        let caller = Caller::from_request_parts(parts, state).await?;
        let caller = ArcSwap::from_pointee(caller);
        let withheld = AtomicBool::new(false);
        let app = App::from_ref(state);
        let mut read = Self { app, caller, withheld, pairs, index: None, wait: DEFAULT_WAIT };
        if let Some(index) = read.value("index") {
            read.index = Some(index.parse().map_err(|_| bad("Invalid index"))?);
        }
        if let Some(wait) = read.value("wait") {
            let wait = duration::parse(wait).ok_or_else(|| bad("Invalid wait time"))?;
            read.wait = if wait.is_zero() { DEFAULT_WAIT } else { wait.min(MAX_WAIT) };
        }
        if read.value("dc").is_some_and(|dc| dc != read.app.datacenter) {
            let own = &read.app.datacenter;
            return Err(ApiError::BadRequest(format!("No path to datacenter: this server's is `{own}`")));
        }
        names::namespace("ns", read.value("ns").unwrap_or_default())?;
        if read.flag("stale")? && read.flag("consistent")? {
            return Err(bad("Cannot specify ?stale with ?consistent, conflicting semantics."));
        }
        if read.value("filter").is_some() {
            return Err(bad("filter: expressions are not supported by the embedded control plane"));
        }
        Ok(read)
    }
}

impl Read {
    /// Returns who asks, with what the token grants now.
    pub fn caller(&self) -> Arc<Caller> {
        self.caller.load_full()
    }

    /// Returns what the caller may see, for an answer that leaves the rest out.
    pub fn viewer(&self) -> Viewer<'_> {
        Viewer::new(self.caller(), &self.withheld)
    }

    /// # Errors
    /// 403 with the name of what the caller lacks.
    pub fn demand(&self, right: Right<'_>) -> Result<(), ApiError> {
        Ok(self.caller.load().demand(right)?)
    }

    /// Looks the caller's token up again.
    ///
    /// # Errors
    /// 403 when it is no more.
    pub fn renew(&self, tables: &Tables) -> Result<(), ApiError> {
        let caller = self.caller.load();
        if caller.grant().is_some() {
            self.caller.store(Arc::new(caller.renewed(tables.acl(), OffsetDateTime::now_utc())?));
        }
        Ok(())
    }

    /// Returns the index at which what the caller may see last changed; 0 for one who sees everything.
    fn granted(&self) -> u64 {
        self.caller.load().grant().map_or(0, |grant| grant.index)
    }

    /// Has what the caller may see changed beyond the index `seen`?
    fn granted_beyond(&self, seen: u64) -> bool {
        let caller = self.caller.load();
        let Some(grant) = caller.grant() else { return false };
        let tables = self.app.store.tables();
        let now = tables.acl().grant(&grant.secret, OffsetDateTime::now_utc());
        now.is_none_or(|grant| grant.index > seen)
    }

    /// Returns when any policy or token has changed; never for a caller who sees everything.
    pub fn watch_acl(&self) -> AclWatch {
        let caller = self.caller.load();
        AclWatch(caller.grant().map(|_| self.app.store.topics().watch(&Topic::Acl)))
    }

    /// Returns the parameter's value; `None` where it is missing or empty.
    pub fn value(&self, name: &str) -> Option<&str> {
        self.pairs.iter().find(|(key, _)| key == name).map(|(_, value)| &**value).filter(|v| !v.is_empty())
    }

    /// Returns all values of a parameter that may be repeated.
    pub fn values<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.pairs.iter().filter(move |(key, _)| key == name).map(|(_, value)| &**value)
    }

    pub fn required(&self, name: &str) -> Result<&str, ApiError> {
        let missing = || ApiError::BadRequest(format!("required query parameter '{name}' not set"));
        self.value(name).ok_or_else(missing)
    }

    /// Reads `?name`, `?name=true` and the like.
    pub fn flag(&self, name: &str) -> Result<bool, ApiError> {
        match self.pairs.iter().find(|(key, _)| key == name).map(|(_, value)| &**value) {
            None | Some("0" | "f" | "F" | "false" | "False" | "FALSE") => Ok(false),
            Some("" | "1" | "t" | "T" | "true" | "True" | "TRUE") => Ok(true),
            Some(_) => Err(ApiError::BadRequest(format!("Invalid value for ?{name}"))),
        }
    }

    /// Returns the node that an agent call is about: `mesh-node`, or this server's own.
    pub fn node(&self) -> Result<&str, ApiError> {
        match self.value("mesh-node") {
            Some(node) => names::node("mesh-node", node).map(|()| node),
            None => Ok(&self.app.node),
        }
    }

    /// Returns until when this request may wait. Up to a sixteenth is added, so that watchers do not come back at once.
    pub fn deadline(&self) -> Instant {
        let wait = self.wait + self.wait.mul_f32(rand::random::<f32>() / 16.0);
        let caller = self.caller.load();
        let expires = caller.grant().and_then(|grant| grant.expires);
        let left =
            expires.map(|at| (at - OffsetDateTime::now_utc()).max(time::Duration::ZERO).unsigned_abs());
        Instant::now() + left.map_or(wait, |left| left.min(wait))
    }

    /// Returns the index to wait beyond, if the caller wants to wait. One that this store cannot have given is of
    /// another store: such a caller is answered at once, and sees the index go backwards.
    pub fn wait_beyond(&self) -> Option<u64> {
        self.index.filter(|index| *index > 0 && *index <= self.app.store.topics().newest())
    }

    /// Waits until what it depends on, or what the caller's token grants, has moved beyond the caller's index, the time
    /// is up, or the server stops.
    async fn wait(&self, on: &DependsOn) {
        let Some(seen) = self.wait_beyond() else { return };
        let mut acl = self.watch_acl();
        let granted = async {
            while !self.granted_beyond(seen) {
                acl.changed().await;
            }
        };
        let moved = async {
            tokio::select! {
                () = self.app.store.topics().moved_beyond(on, seen) => {}
                () = granted => {}
            }
        };
        // The result does not matter: the caller gets what is there.
        let _ = self.app.closing.run_until_cancelled(timeout_at(self.deadline(), moved)).await;
    }

    /// Answers with what `result` makes of the tables, which depends on no other topics than `on`.
    pub async fn answer<T: Serialize>(
        &self,
        on: impl Into<DependsOn>,
        result: impl FnOnce(&Tables) -> Result<T, ApiError>,
    ) -> Response {
        let on = on.into();
        self.wait(&on).await;
        // In this order: see `Topics`.
        let index = self.app.store.topics().index_of(&on);
        let tables = self.app.store.tables();
        let mut response = match self.renew(&tables).and_then(|()| result(&tables)) {
            Ok(value) => self.json(&value),
            Err(error) => error.into_response(),
        };
        if self.withheld.load(Ordering::Relaxed) {
            response.headers_mut().insert(FILTERED, HeaderValue::from_static("true"));
        }
        mark(response.headers_mut(), index.max(self.granted()));
        response
    }

    /// Likewise for what agents answer with a hash of the content instead of an index: waits until the content has
    /// another one than the caller has seen.
    pub async fn answer_by_hash(
        &self,
        topic: Topic,
        result: impl Fn(&Tables) -> Result<Opaque, ApiError>,
    ) -> Response {
        let deadline = self.deadline();
        let seen = self.value("hash");
        let (mut watch, mut acl) = (self.app.store.topics().watch(&topic), self.watch_acl());
        loop {
            watch.mark_unchanged();
            let tables = self.app.store.tables();
            let mut content = match self.renew(&tables).and_then(|()| result(&tables)) {
                Ok(content) => content,
                Err(error) => return error.into_response(),
            };
            let hash = hash_of(&content);
            if seen != Some(&hash) || !self.woken(&mut watch, &mut acl, deadline).await {
                content.insert("ContentHash".to_owned(), hash.as_str().into());
                let mut response = self.json(&content);
                let hash = HeaderValue::try_from(hash).expect("invariant: hex digits are a header's value");
                response.headers_mut().insert(CONTENT_HASH, hash);
                return response;
            }
        }
    }

    /// Waits for the topic to move; false when the time is up or the server stops.
    async fn woken(&self, watch: &mut Receiver<u64>, acl: &mut AclWatch, deadline: Instant) -> bool {
        let changed = async {
            tokio::select! {
                changed = watch.changed() => changed.is_ok(),
                () = acl.changed() => true,
            }
        };
        matches!(self.app.closing.run_until_cancelled(timeout_at(deadline, changed)).await, Some(Ok(true)))
    }

    pub fn json(&self, value: &impl Serialize) -> Response {
        let pretty = self.pairs.iter().any(|(key, _)| key == "pretty");
        json(value, pretty)
    }
}

/// Tells when policies or tokens change, to those whom they concern.
pub struct AclWatch(Option<Receiver<u64>>);

impl AclWatch {
    pub async fn changed(&mut self) {
        let gone = match &mut self.0 {
            Some(watch) => watch.changed().await.is_err(),
            None => true,
        };
        if gone {
            std::future::pending().await
        }
    }
}

pub fn json(value: &impl Serialize, pretty: bool) -> Response {
    let text = if pretty { serde_json::to_string_pretty(value) } else { serde_json::to_string(value) };
    let text = text.expect("invariant: what the API shows has string keys only");
    ([("content-type", "application/json")], text).into_response()
}

fn mark(headers: &mut HeaderMap, index: u64) {
    headers.insert(INDEX, HeaderValue::from(index));
    headers.insert(KNOWN_LEADER, HeaderValue::from_static("true"));
    headers.insert(LAST_CONTACT, HeaderValue::from_static("0"));
    headers.insert(CONSISTENCY, HeaderValue::from_static("leader"));
}

/// Adds the index to an answer that was made otherwise.
pub fn with_index(mut response: Response, index: u64) -> Response {
    mark(response.headers_mut(), index);
    response
}

fn hash_of(value: &impl Serialize) -> String {
    let text = serde_json::to_vec(value).expect("invariant: what the API shows has string keys only");
    Sha256::digest(text)[..8].iter().map(|byte| format!("{byte:02x}")).collect()
}
